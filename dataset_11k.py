"""The way from a split's rows to pixels and batches of the 11k Hands data set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from utils import UserError

# ----------------------------------------------------------------------------- facts and tasks

DATA_URL = "https://sites.google.com/view/11khands"

HAND_INFO_COLUMNS = (
    "id",
    "age",
    "gender",
    "skinColor",
    "accessories",
    "nailPolish",
    "aspectOfHand",
    "imageName",
    "irregularities",
)

SPLIT_COLUMNS = ("image_path", "id", "gender", "age")

# File name -> value of the column aspectOfHand, in the order the published split draws them.
ASPECTS = {
    "dorsal_dr": "dorsal right",
    "dorsal_dl": "dorsal left",
    "palmar_pr": "palmar right",
    "palmar_pl": "palmar left",
}

GENDERS = ("female", "male")

SKIN_COLORS = ("very fair", "fair", "medium", "dark")

# Name -> first and last age in whole years, both inclusive.
AGE_GROUPS = {
    "0-20": (0, 20),
    "21": (21, 21),
    "22": (22, 22),
    "23": (23, 23),
    "24-30": (24, 30),
    "31-75": (31, 75),
}

# The ages that occur in 11k Hands; others are counted into the first or the last group.
AGE_RANGE = (18, 75)


def age_group(age: int) -> str:
    """Return the name of the group that `age`, in whole years, belongs to."""
    names = list(AGE_GROUPS)
    return next((name for name in names if age <= AGE_GROUPS[name][1]), names[-1])


@dataclass(frozen=True)
class Task:
    """A question asked of every photo: one head of the network, one row of `TASKS`.

    column: of HandInfo.csv and of the split CSVs.
    title: the task's name in tables, figures and reports.
    classes: class names in order; None: the values in the training samples, sorted as text.
    class_of: turns a cell (text; whole years if `in_years`) into a class name.
    pattern: regular expression of a legal cell; empty: one of `classes`.
    expected: what a legal cell holds, for messages.
    in_years: whether the cells are ages and the classes consecutive age ranges.
    loss: key of `engine.losses.LOSSES`.
    weight: of the task's loss in the sum.
    """

    column: str
    title: str
    classes: tuple[str, ...] | None = None
    class_of: Callable[[Any], str] = str
    pattern: str = ""
    expected: str = ""
    in_years: bool = False
    loss: str = "cross_entropy"
    weight: float = 1.0


TASKS = {
    "identity": Task("id", "identity", pattern=r".*\S.*", expected="a person's id"),
    "gender": Task("gender", "gender", GENDERS),
    "age": Task(
        "age",
        "age group",
        tuple(AGE_GROUPS),
        class_of=age_group,
        pattern="[0-9]{1,3}",
        expected="a whole number of years",
        in_years=True,
    ),
}


@dataclass(frozen=True)
class LabelSpace:
    """The class names of each task that is trained; the index of a name is its class index."""

    names: dict[str, tuple[str, ...]]

    @classmethod
    def of_samples(cls, samples: pd.DataFrame, tasks: Sequence[str] = tuple(TASKS)) -> LabelSpace:
        """Return the classes of `tasks`; open ones (people) are those that occur in `samples`."""
        names = {}
        for task in tasks:
            classes = TASKS[task].classes
            found = tuple(sorted(set(class_names(samples, task)) - {""}))
            names[task] = found if classes is None else classes
        return cls(names)

    @classmethod
    def from_json(cls, names: dict[str, list[str]]) -> LabelSpace:
        """Return the space that `to_json` described."""
        return cls({task: tuple(classes) for task, classes in names.items()})

    def to_json(self) -> dict[str, list[str]]:
        """Return the class names as lists, for a checkpoint."""
        return {task: list(names) for task, names in self.names.items()}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the order of heads and label columns."""
        return tuple(self.names)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of classes of each task."""
        return {task: len(names) for task, names in self.names.items()}

    def encode(self, samples: pd.DataFrame) -> np.ndarray:
        """Return class indices, (n_samples, n_tasks) int64 in the order of `tasks`; -1: unknown."""
        columns = []
        for task, names in self.names.items():
            index = {name: i for i, name in enumerate(names)}
            columns.append([index.get(name, -1) for name in class_names(samples, task)])
        return np.array(columns, dtype=np.int64).reshape(len(self.names), len(samples)).T


def class_names(samples: pd.DataFrame, task: str) -> list[str]:
    """Return the true class name of every sample; an empty cell (unknown) stays empty."""
    row = TASKS[task]
    return [row.class_of(cell) if cell != "" else "" for cell in samples[row.column]]


# ----------------------------------------------------------------------------- pixels


def open_photo(path: Path, decode_size: int = 0) -> Image.Image:
    """Return the photo at `path` as an upright RGB image, alpha laid onto white.

    Args:
        path: any file that Pillow reads.
        decode_size: lets the JPEG decoder scale by 1/2, 1/4 or 1/8 while both sides stay at
            least that many pixels; 0 decodes every pixel.

    Raises:
        UserError: the file cannot be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            if decode_size:
                image.draft(None, (decode_size, decode_size))
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bit grey; Pillow's own conversion clips it
                grey = np.asarray(upright, dtype=np.float64) / 257
                return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                return Image.alpha_composite(white, upright).convert("RGB")
            return upright.convert("RGB")
    except Exception as error:  # Pillow's plugins raise whatever damaged data makes them meet
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"photo {path} cannot be decoded: {reason}; replace the file") from error


def resize_size(image_size: int) -> int:
    """Return the side in pixels that photos are resized to before a crop of `image_size`."""
    return round(image_size * 256 / 224)


def read_pixels(path: Path, side: int, decode_size: int = 0) -> Image.Image:
    """Return the photo at `path` as `side` x `side` RGB, bicubic; the aspect ratio is not kept.

    Args:
        path: any file that Pillow reads.
        side: in pixels.
        decode_size: as in `open_photo`.

    Source: github.com/nathanlem1/IGAE-Net, train.py lines 93-110.
    """
    photo = open_photo(path, decode_size)
    return photo.resize((side, side), Image.Resampling.BICUBIC)


# Weights of red, green and blue in grey, as Pillow has them (ITU-R BT.601).
GREY = (0.299, 0.587, 0.114)


def pick(draws: torch.Tensor, n: int) -> torch.Tensor:
    """Return whole numbers from 0 to n - 1, int64, of draws in [0, 1)."""
    return (draws * n).long().clamp(max=n - 1)  # rounding may reach n


@dataclass(frozen=True)
class Augmentation:
    """The published augmentation: random crop, horizontal flip, colour jitter.

    Two ways to the same distribution: photo by photo with torchvision's transforms, or a batch at
    once on the training device, where the photo's seed draws what is done to it.

    image_size: side of the crop in pixels.
    flip: probability of a horizontal flip.
    jitter: largest relative change of brightness, contrast and saturation, in [0, 1].
    by_batch: which way.

    Source: github.com/nathanlem1/IGAE-Net, train.py lines 93-100.
    """

    image_size: int
    flip: float
    jitter: float
    by_batch: bool

    def augment_photo(self, photo: Image.Image, seed: int) -> Image.Image:
        """Return the augmented photo, image_size x image_size."""
        size, jitter = self.image_size, self.jitter
        steps = [
            v2.RandomCrop((size, size)),
            v2.RandomHorizontalFlip(self.flip),
            v2.ColorJitter(jitter, jitter, jitter, 0),
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return v2.Compose(steps)(photo)

    @staticmethod
    def draw(seeds: Sequence[int]) -> torch.Tensor:
        """Return what the photos' seeds draw for `augment_batch`: (N, 7) in [0, 1)."""
        draws = [np.random.default_rng(seed).random(7, dtype=np.float32) for seed in seeds]
        return torch.from_numpy(np.stack(draws))

    def augment_batch(self, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Return the augmented photos, (N, 3, image_size, image_size) float32 in [0, 1].

        Args:
            pixels: (N, side, side, 3) uint8.
            draws: (N, 7) in [0, 1) on the same device: top, left, flip, three factors, their order.
        """
        n, size = len(pixels), self.image_size
        starts = pick(draws[:, :2], pixels.shape[1] - size + 1)
        steps = torch.arange(size, device=pixels.device)
        flipped = draws[:, 2, None] < self.flip
        rows = starts[:, :1] + steps
        columns = starts[:, 1:] + torch.where(flipped, size - 1 - steps, steps)
        photo = torch.arange(n, device=pixels.device)[:, None, None]
        crops = pixels[photo, rows[:, :, None], columns[:, None, :]]  # (N, size, size, 3)
        images = crops.permute(0, 3, 1, 2).float() / 255
        return self.jitter_batch(images, draws[:, 3:6], draws[:, 6])

    def jitter_batch(
        self, images: torch.Tensor, factors: torch.Tensor, order: torch.Tensor
    ) -> torch.Tensor:
        """Return `images`, (N, 3, H, W) in [0, 1], with other colours.

        Each change is a blend: of brightness with black, of contrast with the mean grey, of
        saturation with the grey photo. Every photo has its own factors and order.

        Args:
            images: float32.
            factors: (N, 3) in [0, 1), of brightness, contrast and saturation.
            order: (N,) in [0, 1), which of the six orders.
        """
        orders = torch.tensor(list(itertools.permutations(range(3))), device=images.device)
        change_at = orders[pick(order, len(orders))]  # (N, 3): which change comes when
        strength = 1 - self.jitter + 2 * self.jitter * factors
        grey_weights = torch.tensor(GREY, device=images.device).view(3, 1, 1)
        for changes in change_at.T:
            grey = (images * grey_weights).sum(dim=1, keepdim=True)
            change = changes.view(-1, 1, 1, 1)
            mean = grey.mean(dim=(2, 3), keepdim=True)
            other = torch.where(change == 2, grey, torch.where(change == 1, mean, 0.0))
            share = strength.gather(1, changes[:, None]).view(-1, 1, 1, 1)
            images = torch.lerp(other.expand_as(images), images, share).clamp(0, 1)
        return images


class Item(NamedTuple):
    """One photo, or a batch of them."""

    image: torch.Tensor  # (H, W, 3) uint8, RGB; of a batch: (N, H, W, 3)
    labels: torch.Tensor  # (n_tasks,) int64 in the order of TASKS, -1 where unknown
    row: int | torch.Tensor  # place in the split's CSV, from 0; of a batch: (N,) int64
    draws: torch.Tensor  # (7,) float32 for `Augmentation.augment_batch`, or (0,)


class Pixels(Protocol):
    """Photos that are decoded already: by row, (H, W, 3) uint8."""

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the pixels of a row."""


class HandsDataset(Dataset[Item]):
    """The photos of a split's rows.

    Args:
        rows: as `read_rows` returns them.
        folder: where the photos lie.
        label_space: turns names into indices.
        side: that photos are resized to, in pixels.
        decode_size: as in `open_photo`.
        augmentation: of a training split.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        folder: Path,
        label_space: LabelSpace,
        *,
        side: int,
        decode_size: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.names = rows["name"].tolist()
        self.labels = torch.from_numpy(label_space.encode(rows))
        self.folder = folder
        self.side = side
        self.decode_size = decode_size
        self.augmentation = augmentation
        self.cached: Pixels | None = None  # what photo_cache.py holds of the rows
        self.resident: torch.Tensor | None = None  # (n_rows, side, side, 3) on the GPU

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.names)

    def read(self, row: int, seed: int) -> torch.Tensor:
        """Return the pixels of a row, (H, W, 3) uint8, augmented if that is done by photo.

        Raises:
            UserError: the photo cannot be decoded; the message names row and file.
        """
        by_photo = self.augmentation is not None and not self.augmentation.by_batch
        if self.cached is not None and not by_photo:
            return torch.from_numpy(self.cached[row])
        if self.cached is not None:
            photo = Image.fromarray(self.cached[row])
        else:
            try:
                photo = read_pixels(self.folder / self.names[row], self.side, self.decode_size)
            except UserError as error:
                raise UserError(f"row {row + 1}: {error}") from error
        if self.augmentation is not None and by_photo:
            photo = self.augmentation.augment_photo(photo, seed)
        return torch.from_numpy(np.array(photo))

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Item:
        """Return a batch of photos, each augmented by what its seed draws.

        Args:
            keys: (row, seed), as the samplers of this module yield them.
        """
        rows = torch.tensor([row for row, _ in keys])
        if self.resident is not None:
            images = self.resident[rows.to(self.resident.device, non_blocking=True)]
        else:
            images = torch.stack([self.read(row, seed) for row, seed in keys])
        draws = torch.empty(len(keys), 0)
        if self.augmentation is not None and self.augmentation.by_batch:
            draws = self.augmentation.draw([seed for _, seed in keys])
        return Item(images, self.labels[rows], rows, draws)


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields batches of (row, seed) keys: shuffled anew each epoch if `shuffle`, else in CSV order.

    The order depends on (seed, epoch) alone, a photo's augmentation on (seed, epoch, row): neither
    the number of workers or ranks nor a resume changes them. `set_epoch` comes before each epoch.

    Of several ranks each takes an equal part of every batch in training, which all of them step
    through together, and every nth batch else.

    Args:
        n_rows: of the split.
        batch_size: photos of all ranks together.
        shuffle: for training.
        seed: of order and augmentation.
        rank: which part of the batches, from 0.
        n_ranks: among how many they are divided.
    """

    def __init__(
        self,
        n_rows: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self.n_rows, self.batch_size, self.shuffle, self.seed = n_rows, batch_size, shuffle, seed
        self.rank, self.n_ranks = rank, n_ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 1, whose order and seeds come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        n_batches = math.ceil(self.n_rows / self.batch_size)
        return n_batches if self.shuffle else len(range(self.rank, n_batches, self.n_ranks))

    def shares(self) -> list[tuple[int, int]]:
        """Return, per batch of training, the photos of this rank and those of all ranks.

        A rank whose part of the last batch is empty gets a photo that does not count.
        """
        sizes = [
            min(self.batch_size, self.n_rows - i) for i in range(0, self.n_rows, self.batch_size)
        ]
        return [(len(range(self.rank, size, self.n_ranks)), size) for size in sizes]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches of one epoch."""
        sequence = np.random.SeedSequence((self.seed, self.epoch))
        seeds = sequence.generate_state(self.n_rows, np.uint64) >> np.uint64(1)
        order = np.arange(self.n_rows)
        if self.shuffle:
            order = np.random.default_rng(sequence).permutation(self.n_rows)
        keys = [(int(row), int(seeds[row])) for row in order]
        batches = [keys[i : i + self.batch_size] for i in range(0, len(keys), self.batch_size)]
        if self.shuffle:
            yield from (batch[self.rank :: self.n_ranks] or batch[:1] for batch in batches)
        else:
            yield from batches[self.rank :: self.n_ranks]


def as_it_is(batch: Any) -> Any:
    """Return the batch that `HandsDataset` made (a lambda could not go to a spawned worker)."""
    return batch


def build_loader(
    dataset: HandsDataset,
    *,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    seed: int = 0,
    rank: int = 0,
    n_ranks: int = 1,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Return a loader of `Item` batches; its batch sampler is a `BatchSampler`."""
    if dataset.resident is not None:  # its batches are made on the GPU
        num_workers, pin_memory = 0, False
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(
            len(dataset),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            n_ranks=n_ranks,
        ),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=as_it_is,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # else it draws from the global one
    )
