"""The 11k Hands data set: columns, tasks and labels, photos, augmentation, samplers, loaders.

Data set: Afifi, "11K Hands: Gender recognition and biometric identification using a large dataset
of hand images", 2019, https://arxiv.org/abs/1711.04322.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from utils import BrokenPhotoError, UserError, logger

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

# File name -> value of aspectOfHand, in the order in which the published split draws them.
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

# Ages in 11k Hands; younger people count as the first group, older ones as the last.
AGE_RANGE = (18, 75)


def age_group(age: float) -> str:
    """Return the name of the age group of `age`, in whole years."""
    names = list(AGE_GROUPS)
    return next((name for name in names if age <= AGE_GROUPS[name][1]), names[-1])


@dataclass(frozen=True)
class Task:
    """A classification task: one head of the network, one row of `TASKS`.

    All photos of a person have the same label.

    column: column of HandInfo.csv and of the split CSVs.
    title: the task's name in tables, figures and reports.
    classes: class names in order; None: the values of the training samples, sorted as text.
    class_of: turns a cell (text; a number if `in_years`) into a class name.
    pattern: regular expression of a legal cell; empty: one of `classes`.
    expected: description of a legal cell, for messages; empty: `classes`.
    in_years: whether cells are ages in whole years and classes consecutive age ranges.
    loss: key of `engine.losses.LOSSES`.
    weight: weight of the task's loss in the sum.
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
    "identity": Task(
        "id",
        "identity",
        pattern=r"(?!\s*\d+([.,]\d+)?[eE]\+\d+\s*$).*\S.*",  # no 2.02E+11
        expected="a person's id as text (spreadsheets round long ids)",
    ),
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


def split_columns() -> list[str]:
    """Return the first columns of a split CSV; further ones may follow."""
    return ["image_path", *(task.column for task in TASKS.values())]


@dataclass(frozen=True)
class LabelSpace:
    """The class names of each trained task; a name's position is its class index."""

    names: dict[str, tuple[str, ...]]

    @classmethod
    def of_samples(cls, samples: pd.DataFrame, tasks: Iterable[str] = TASKS) -> LabelSpace:
        """Return the classes of `tasks`; where TASKS fixes none, those that occur in `samples`."""
        names = {}
        for task in tasks:
            occurring = tuple(sorted(set(class_names(samples, task)) - {""}))
            names[task] = TASKS[task].classes or occurring
        return cls(names)

    @classmethod
    def from_json(cls, names: dict[str, list[str]]) -> LabelSpace:
        """Return the label space that `to_json` described."""
        return cls({task: tuple(classes) for task, classes in names.items()})

    def to_json(self) -> dict[str, list[str]]:
        """Return the class names as lists, for a checkpoint."""
        return {task: list(names) for task, names in self.names.items()}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of the columns of `encode`."""
        return tuple(self.names)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of classes of each task."""
        return {task: len(names) for task, names in self.names.items()}

    def encode(self, samples: pd.DataFrame) -> np.ndarray:
        """Return class indices, (n_samples, n_tasks) int64, -1 where unknown."""
        columns = []
        for task, names in self.names.items():
            index = {name: i for i, name in enumerate(names)}
            columns.append([index.get(name, -1) for name in class_names(samples, task)])
        return np.array(columns, dtype=np.int64).reshape(len(self.names), len(samples)).T


def class_names(samples: pd.DataFrame, task: str) -> list[str]:
    """Return the true class name of every sample; empty where unknown."""
    column, class_of = TASKS[task].column, TASKS[task].class_of
    return ["" if pd.isna(cell) or cell == "" else class_of(cell) for cell in samples[column]]


# ----------------------------------------------------------------------------- pixels


MAX_PIXELS = 100_000_000  # that are decoded; in memory they take 300 MB

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

MIN_GREY_LEVELS = 32  # of 256; photos that use fewer are warned of

# Formats whose further frames belong to the first: previews, depth maps, layers.
ONE_PHOTO_FORMATS = ("MPO", "HEIF", "PSD")

Photo = str | Path | Image.Image | np.ndarray  # an array is (H, W, 3) uint8 RGB


def open_photo(photo: Photo, decode_size: int = 0) -> Image.Image:
    """Return a photo as an upright RGB image; transparency becomes white.

    What `describe_flaws` finds is logged and kept in the image's `info["warnings"]`.

    Args:
        photo: an image, or a file in any format that Pillow or pillow-heif reads.
        decode_size: the JPEG decoder may downscale by 1/2, 1/4 or 1/8 as long as both sides keep
            this many pixels; 0: full size, if that is at most `MAX_PIXELS`.

    Raises:
        UserError: it cannot be decoded completely.
    """
    name, what_next = describe_photo(photo), "Replace the file"
    if isinstance(photo, str) and "://" in photo:
        raise UserError(f"a URL, not a file: {photo}. Download the photo and give its path")
    try:
        if isinstance(photo, str | Path):
            with open_file(Path(photo)) as image:
                scale_down(image, decode_size)
                rgb = with_warnings(image)
        else:
            what_next = "Give an image, or an array (H, W, 3) uint8 RGB"
            rgb = with_warnings(image_of_array(photo) if isinstance(photo, np.ndarray) else photo)
    except UserError:
        raise
    except Exception as error:  # on damaged data Pillow's plugins raise all kinds of exceptions
        text = getattr(error, "strerror", None) or str(error)
        reason = " ".join(text.split()).rstrip(".") or type(error).__name__
        raise BrokenPhotoError(f"cannot decode photo {name}: {reason}. {what_next}") from error
    for flaw in rgb.info["warnings"]:
        warn_once(f"photo {name}: {flaw}")
    return rgb


def is_photo_name(path: Path) -> bool:
    """Return whether Pillow or pillow-heif read files with the suffix of `path`."""
    suffix = path.suffix.lower()
    return Image.registered_extensions().get(suffix) in Image.OPEN or suffix in HEIF_SUFFIXES


def describe_photo(photo: Photo) -> str:
    """Return the path of a photo, or what else it is."""
    if isinstance(photo, str | Path):
        return str(photo)
    return str(getattr(photo, "filename", "")) or f"given as {type(photo).__name__}"


def open_file(path: Path) -> Image.Image:
    """Return the image in a file; its pixels are not decoded yet."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # `scale_down` has its own
    try:
        try:
            return Image.open(path)
        except UnidentifiedImageError:
            with path.open("rb") as file:
                start = file.read(12)
            if start[4:8] != b"ftyp" or start[8:] not in HEIF_BRANDS:
                raise
        try:
            from pillow_heif import register_heif_opener
        except ImportError as error:
            raise UserError(
                f"HEIC photos need the package pillow-heif: {path}. Run: pip install -r"
                " requirements-extra.txt"
            ) from error
        register_heif_opener()
        return Image.open(path)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def scale_down(image: Image.Image, decode_size: int) -> None:
    """Let the JPEG decoder scale an image to `decode_size`, and to at most `MAX_PIXELS`.

    Raises:
        ValueError: more pixels would be held in memory. Of a progressive JPEG these are all.
    """
    size, n_pixels = image.size, image.width * image.height
    factor = next((f for f in (1, 2, 4) if n_pixels <= MAX_PIXELS * f * f), 8)
    if decode_size or factor > 1:
        asked = [min(side // factor, decode_size or side) for side in size]
        image.draft(None, (max(1, asked[0]), max(1, asked[1])))
    n_held = n_pixels if image.info.get("progressive") else image.width * image.height
    if n_held > MAX_PIXELS:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels ({size[0]}x{size[1]})")


def image_of_array(array: np.ndarray) -> Image.Image:
    """Return the image of an array, (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the array is of another shape or type.
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype}")
    return Image.fromarray(array)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image upright and as RGB with 8 bits.

    Raises:
        ValueError: values beyond the 16 bits of a photo, or floats beyond 0 to 255.
    """
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # grey; Pillow's own conversion clips it
        grey = np.asarray(upright, dtype=np.float64)
        white = 65_535 if upright.mode.startswith("I") else 1 if grey.max() <= 1 else 255
        if not (grey.min() >= 0 and grey.max() <= white):
            raise ValueError(f"grey values from {grey.min():g} to {grey.max():g}, not 0 to {white}")
        return Image.fromarray((grey * (255 / white)).round().astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        table = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(table, upright).convert("RGB")
    return upright.convert("RGB")


def with_warnings(image: Image.Image) -> Image.Image:
    """Return `to_rgb` of an image, with `describe_flaws` in its `info`."""
    rgb = to_rgb(image)
    rgb.info["warnings"] = describe_flaws(image, rgb)
    return rgb


def describe_flaws(image: Image.Image, rgb: Image.Image) -> list[str]:
    """Return what is unusual about a photo that can be read; empty for most photos.

    Args:
        image: as it was opened.
        rgb: what `to_rgb` made of it.
    """
    flaws = []
    if getattr(image, "is_animated", False) and image.format not in ONE_PHOTO_FORMATS:
        flaws.append("has several pages or frames, of which the first is used")
    sample = rgb.resize((64, 64), Image.Resampling.NEAREST).convert("L")
    low, high = np.percentile(np.asarray(sample), (1, 99)).round().astype(int).tolist()
    if high - low < MIN_GREY_LEVELS:
        look = "nearly black" if high < 64 else "nearly white" if low > 191 else "nearly uniform"
        flaws.append(f"is {look}, with grey levels {low} to {high} of 0 to 255")
    return flaws


@functools.lru_cache(maxsize=10_000)
def warn_once(message: str) -> None:
    """Log a warning, at most once in this process."""
    logger.warning("%s", message)


def resize_size(image_size: int) -> int:
    """Return the size in pixels that photos are resized to before a crop of `image_size`."""
    return round(image_size * 256 / 224)


@dataclass(frozen=True)
class PhotoReader:
    """Reads photos as squares, whatever their aspect ratio.

    image_size: side of the result in pixels; above --image_size where it is cropped at random.
    decode_size: as in `open_photo`.
    resampling: filter of the resize.
    mirror: whether photos are mirrored, as a left hand for a model of right hands.

    Source: github.com/nathanlem1/IGAE-Net, train.py lines 93-110.
    """

    image_size: int
    decode_size: int = 0
    resampling: Image.Resampling = Image.Resampling.BICUBIC
    mirror: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of a photo's pixels, (H, W, 3)."""
        return self.image_size, self.image_size, 3

    def read(self, photo: Photo) -> Image.Image:
        """Return the photo, (image_size, image_size), with its `info["warnings"]`."""
        rgb = open_photo(photo, self.decode_size)
        square = rgb.resize((self.image_size, self.image_size), self.resampling)
        return ImageOps.mirror(square) if self.mirror else square


# ----------------------------------------------------------------------------- augmentation

# Weights of red, green and blue in a grey value (ITU-R BT.601, as in Pillow).
GREY = (0.299, 0.587, 0.114)


def to_integers(draws: torch.Tensor, n: int) -> torch.Tensor:
    """Turn uniform draws in [0, 1) into integers from 0 to n - 1."""
    return (draws * n).long().clamp(max=n - 1)  # rounding may reach n


@dataclass(frozen=True)
class Augmentation:
    """The published augmentation: random crop, horizontal flip, colour jitter.

    It is done photo by photo with torchvision's transforms, or for a whole batch on the training
    device. Both draw from the same distribution; a photo's seed determines its draws.

    image_size: size of the crop in pixels.
    flip: probability of a horizontal flip.
    jitter: largest relative change of brightness, contrast and saturation, in [0, 1].
    by_batch: whether it is done for a whole batch.

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
        """Return the random draws of `augment_batch`, (N, 7) float32 in [0, 1)."""
        draws = [np.random.default_rng(seed).random(7, dtype=np.float32) for seed in seeds]
        return torch.from_numpy(np.stack(draws))

    def augment_batch(self, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Return the augmented photos, (N, 3, image_size, image_size) float32 in [0, 1].

        Args:
            pixels: (N, H, W, 3) uint8.
            draws: (N, 7) in [0, 1), same device: top, left, flip, three factors, their order.
        """
        n, size = len(pixels), self.image_size
        starts = to_integers(draws[:, :2], pixels.shape[1] - size + 1)
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
        """Return images with brightness, contrast and saturation changed, each in its own order.

        Brightness blends with black, contrast with the mean grey, saturation with the grey photo.

        Args:
            images: (N, 3, H, W) float32 in [0, 1].
            factors: (N, 3) draws in [0, 1) for brightness, contrast and saturation.
            order: (N,) draws in [0, 1) for one of the six orders.
        """
        orders = torch.tensor(list(itertools.permutations(range(3))), device=images.device)
        sequence = orders[to_integers(order, len(orders))]  # (N, 3)
        strength = 1 - self.jitter + 2 * self.jitter * factors
        grey_weights = torch.tensor(GREY, device=images.device).view(3, 1, 1)
        for changes in sequence.T:
            grey = (images * grey_weights).sum(dim=1, keepdim=True)
            change = changes.view(-1, 1, 1, 1)
            mean = grey.mean(dim=(2, 3), keepdim=True)
            other = torch.where(change == 2, grey, torch.where(change == 1, mean, 0.0))
            share = strength.gather(1, changes[:, None]).view(-1, 1, 1, 1)
            images = torch.lerp(other.expand_as(images), images, share).clamp(0, 1)
        return images


# ----------------------------------------------------------------------------- items


class Item(NamedTuple):
    """A photo, or a batch of photos (then every field has a leading batch dimension)."""

    image: torch.Tensor  # (H, W, 3) uint8, RGB
    labels: torch.Tensor  # (n_tasks,) int64 in the order of the label space, -1 where unknown
    row: int | torch.Tensor  # position in the split's CSV, from 0
    draws: torch.Tensor  # (7,) float32 for `Augmentation.augment_batch`, or (0,)


class Pixels(Protocol):
    """Decoded photos by row, each (H, W, 3) uint8."""

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the pixels of a row."""


class HandsDataset(Dataset[Item]):
    """The photos of a split.

    Args:
        samples: as `data.tables.read_samples` returns them; with the column mirrored, photos where
            it is true are mirrored before everything else.
        folder: folder of the photos.
        label_space: turns class names into indices.
        reader: reads photos at the size of the model's input, or larger for random crops.
        augmentation: of a training split.
    """

    def __init__(
        self,
        samples: pd.DataFrame,
        folder: Path,
        label_space: LabelSpace,
        *,
        reader: PhotoReader,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.names = samples["name"].tolist()
        self.mirrored = samples.get("mirrored", pd.Series(False, samples.index)).to_numpy(bool)
        self.labels = torch.from_numpy(label_space.encode(samples))
        self.folder = folder
        self.reader = reader
        self.augmentation = augmentation
        self.cached: Pixels | None = None  # set by data.cache.attach_cache
        self.resident: torch.Tensor | None = None  # (n_samples, H, W, 3) uint8 on the GPU

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.names)

    def read_pixels(self, row: int) -> np.ndarray:
        """Return a photo before its augmentation, (H, W, 3) uint8.

        Raises:
            UserError: the photo cannot be decoded.
        """
        if self.cached is not None:
            found = self.cached[row]
        else:
            found = np.array(self.reader.read(self.folder / self.names[row]))
        return found[:, ::-1].copy() if self.mirrored[row] else found

    def read(self, row: int, seed: int) -> torch.Tensor:
        """Return a photo, (H, W, 3) uint8, augmented unless that is done for whole batches."""
        pixels = self.read_pixels(row)
        if self.augmentation is not None and not self.augmentation.by_batch:
            pixels = np.array(self.augmentation.augment_photo(Image.fromarray(pixels), seed))
        return torch.from_numpy(pixels)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Item:
        """Return the batch of photos with these (row, augmentation seed) keys."""
        rows = torch.tensor([row for row, _ in keys])
        if self.resident is not None:
            images = self.resident[rows.to(self.resident.device, non_blocking=True)]
        else:
            images = torch.stack([self.read(row, seed) for row, seed in keys])
        draws = torch.empty(len(keys), 0)
        if self.augmentation is not None and self.augmentation.by_batch:
            draws = self.augmentation.draw([seed for _, seed in keys])
        return Item(images, self.labels[rows], rows, draws)


# ----------------------------------------------------------------------------- batches


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (row, augmentation seed) keys: in random order for training, else in CSV order.

    The order depends on (seed, epoch) alone, the augmentation of a photo on (seed, epoch, row);
    number of workers, world size and --resume change neither. Call `set_epoch` before each epoch.

    In training every rank gets an equal part of each batch, and all ranks make the same number of
    steps; in evaluation every rank gets each `world_size`-th batch. A last training batch of fewer
    than two photos per rank, too few for batch norm, is joined to the one before.

    Another sampler is a subclass with its own `order` and a row of `SAMPLERS`.

    Args:
        dataset: what is sampled; `order` may use its `labels`.
        batch_size: number of photos, over all ranks.
        train: whether it is for training.
        seed: of order and augmentation.
        rank: from 0.
        world_size: number of ranks.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        batch_size: int,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset, self.n_samples = dataset, len(dataset)
        self.batch_size, self.train, self.seed = batch_size, train, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def order(self, random: np.random.Generator) -> np.ndarray:
        """Return the rows of a training epoch in order, (n_samples,) int."""
        return random.permutation(self.n_samples)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 1, that is sampled next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        n_batches = len(self.slices())
        return n_batches if self.train else len(range(self.rank, n_batches, self.world_size))

    def slices(self) -> list[slice]:
        """Return the places of each batch of all ranks in the epoch's order."""
        starts = list(range(0, self.n_samples, self.batch_size))
        n_left = self.n_samples % self.batch_size
        if self.train and 0 < n_left < 2 * self.world_size and len(starts) > 1 < self.batch_size:
            starts.pop()
        return [slice(*ends) for ends in itertools.pairwise([*starts, self.n_samples])]

    def shares(self) -> list[tuple[int, int]]:
        """Return, for each training batch, the numbers of photos of this rank and of all ranks.

        A rank without photos in a short last batch gets one photo that must not count.
        """
        sizes = [part.stop - part.start for part in self.slices()]
        return [(len(range(self.rank, size, self.world_size)), size) for size in sizes]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches of one epoch."""
        sequence = np.random.SeedSequence((self.seed, self.epoch))
        seeds = sequence.generate_state(self.n_samples, np.uint64) >> np.uint64(1)
        order = np.arange(self.n_samples)
        if self.train:
            order = self.order(np.random.default_rng(sequence))
        keys = [(int(row), int(seeds[row])) for row in order]
        batches = [keys[part] for part in self.slices()]
        if self.train:
            yield from (batch[self.rank :: self.world_size] or batch[:1] for batch in batches)
        else:
            yield from batches[self.rank :: self.world_size]


# Value of train.py --sampler -> batch sampler of training.
SAMPLERS: dict[str, type[BatchSampler]] = {"shuffle": BatchSampler}


def collate(batch: Any) -> Any:
    """Return the batch as `HandsDataset` made it (a lambda cannot be pickled for workers)."""
    return batch


def build_loader(
    dataset: HandsDataset,
    *,
    batch_size: int,
    num_workers: int,
    train: bool,
    sampler: str = "shuffle",
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Return a loader of `Item` batches, sampled by `SAMPLERS[sampler]` if `train`."""
    if dataset.resident is not None:  # batches are made on the GPU
        num_workers, pin_memory = 0, False
    return DataLoader(
        dataset,
        batch_sampler=(SAMPLERS[sampler] if train else BatchSampler)(
            dataset,
            batch_size=batch_size,
            train=train,
            seed=seed,
            rank=rank,
            world_size=world_size,
        ),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # the default is the global generator
    )
