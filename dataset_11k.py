"""Facts of the 11k Hands data set, and the way from CSV rows to labels, pixels and batches.

Data set: Afifi, "11K Hands: Gender recognition and biometric identification using a large dataset
of hand images", 2019, https://arxiv.org/abs/1711.04322.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, v2

from utils import UserError

logger = logging.getLogger("igae")

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

TASKS = ("identity", "gender", "age")

# A protocol decides who goes where. `SplitFiles.split` says where its files lie.
PROTOCOLS = ("paper",)
SPLITS = ("train", "val")


def age_group(age: int) -> str:
    """Return the name of the group that `age`, in whole years, belongs to."""
    names = list(AGE_GROUPS)
    return next((name for name in names if age <= AGE_GROUPS[name][1]), names[-1])


# ----------------------------------------------------------------------------- rows


def read_csv_text(path: Path, columns: Sequence[str], what_next: str) -> pd.DataFrame:
    """Return the CSV at `path`, every cell as text, once `columns` are seen to be there.

    Blank lines are left out; the index is the line in the file, whose header is line 1.

    Args:
        path: a CSV with a header line.
        columns: the columns that must be there; others are kept.
        what_next: the end of the error message if the file is missing.
    """
    try:
        table = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False
        )
    except FileNotFoundError:
        raise UserError(f"{path} not found; {what_next}") from None
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a CSV file: {reason}") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(
            f"{path}: missing columns {', '.join(missing)} (found {', '.join(table.columns)});"
            f" the file needs {', '.join(columns)}"
        )
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus cells for an index
        raise UserError(f"{path}: lines have more cells than the header; correct the file")
    table.index += 2
    return table[(table != "").any(axis=1)]


def check_cells(table: pd.DataFrame, path: Path, rules: dict[str, tuple[pd.Series, str]]) -> None:
    """Refuse the first cell that breaks a rule, by its line in the file.

    Args:
        table: as `read_csv_text` returns it.
        path: named in the message.
        rules: column -> (which rows are legal, what was expected).
    """
    for column, (legal, expected) in rules.items():
        wrong = np.flatnonzero(~legal.to_numpy(dtype=bool))
        if len(wrong):
            found = table[column].iloc[wrong[0]]
            raise UserError(
                f"{path} line {table.index[wrong[0]]}: {column} is {found!r}, expected {expected}"
                f" ({len(wrong)} such rows); correct the file"
            )


def people_rules(table: pd.DataFrame) -> dict[str, tuple[pd.Series, str]]:
    """Return the rules of `check_cells` for the columns id, gender and age."""
    return {
        "id": (table["id"].str.strip() != "", "a person's id"),
        "gender": (table["gender"].isin(GENDERS), " or ".join(GENDERS)),
        "age": (table["age"].str.fullmatch(r"[0-9]{1,3}"), "a whole number of years"),
    }


def is_photo_name(names: pd.Series) -> pd.Series:
    """Return which names stay in the folder Hands: no separator, drive letter, `.` or `..`."""
    return names.str.fullmatch(r"[^/\\:\0]+") & ~names.isin([".", ".."])


PHOTO_NAME = "a photo's bare file name, once only"


def read_hand_info(path: Path) -> pd.DataFrame:
    """Return the rows of the data set's HandInfo.csv in file order.

    Columns are `HAND_INFO_COLUMNS`: age, accessories, nailPolish and irregularities int64, the
    others text. Blanks around an id are removed by rule and logged (the file has one such row).

    Raises:
        UserError: the file, a column or a cell is not as expected; the message names the line.
    """
    table = read_csv_text(path, HAND_INFO_COLUMNS, f"get Hands/ and HandInfo.csv from {DATA_URL}")
    flags = ("accessories", "nailPolish", "irregularities")
    names = table["imageName"]
    check_cells(
        table,
        path,
        {
            **people_rules(table),
            "skinColor": (table["skinColor"].isin(SKIN_COLORS), ", ".join(SKIN_COLORS)),
            **{flag: (table[flag].isin(["0", "1"]), "0 or 1") for flag in flags},
            "aspectOfHand": (
                table["aspectOfHand"].isin(ASPECTS.values()),
                ", ".join(ASPECTS.values()),
            ),
            "imageName": (is_photo_name(names) & ~names.duplicated(), PHOTO_NAME),
        },
    )
    ids = table["id"].str.strip()
    dirty = ids != table["id"]
    if dirty.any():
        logger.info(
            "%s: removed blanks around the id of %d rows (first: %r of %s)",
            *(path, dirty.sum(), table["id"][dirty].iloc[0], names[dirty].iloc[0]),
        )
    numbers = {column: table[column].astype("int64") for column in ("age", *flags)}
    return table.assign(id=ids, **numbers)[list(HAND_INFO_COLUMNS)].reset_index(drop=True)


def read_rows(path: Path) -> pd.DataFrame:
    """Return the rows of a split CSV: columns image_path, name (of the photo), id, gender, age.

    All are text but age, which is int64; blanks around an id are removed.

    Args:
        path: a CSV with at least the columns image_path, id, gender, age. An image_path is a bare
            file name, or anything that ends in `Hands/<name>`.

    Raises:
        UserError: the file, a column or a cell is not as expected; the message names the line.
    """
    table = read_csv_text(path, SPLIT_COLUMNS, "run dataset_11k_split.py first")
    names = table["image_path"].str.replace(r"^(?:.*[/\\])?Hands[/\\]", "", regex=True)
    legal = is_photo_name(names) & ~names.duplicated()
    check_cells(table, path, {**people_rules(table), "image_path": (legal, PHOTO_NAME)})
    ids, ages = table["id"].str.strip(), table["age"].astype("int64")
    rows = table.assign(name=names, id=ids, age=ages)
    return rows[["image_path", "name", "id", "gender", "age"]].reset_index(drop=True)


def fingerprint(rows: pd.DataFrame) -> str:
    """Return a hash of the photo names and labels of `read_rows`, in their order."""
    text = rows[["name", "id", "gender", "age"]].to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


def warn_of_odd_ages(rows: pd.DataFrame, path: Path) -> None:
    """Log one warning if ages lie outside those of 11k Hands."""
    low, high = AGE_RANGE
    odd = int(((rows["age"] < low) | (rows["age"] > high)).sum())
    if odd:
        first, *_, last = AGE_GROUPS
        logger.warning(
            "%s: %d rows have an age outside %d-%d; below it counts as group %s, above as %s",
            *(path, odd, low, high, first, last),
        )


class SplitFiles(NamedTuple):
    """Where an aspect's files lie; everything is derived from the attributes file."""

    root: Path
    aspect: str
    protocol: str

    @property
    def photos(self) -> Path:
        """The folder that photos are opened in."""
        return self.root / "Hands"

    @property
    def attributes(self) -> Path:
        """The CSV of all rows of the aspect."""
        return self.root / "sub_dataset" / f"{self.aspect}.csv"

    def split(self, name: str) -> Path:
        """Return the CSV of the split `name` (train or val)."""
        folder = self.root / "trainval"
        if self.protocol != "paper":
            folder /= self.protocol
        return folder / self.aspect / f"{name}.csv"


def locate(attributes_file: Path, protocol: str) -> SplitFiles:
    """Return the places that belong to `<root>/sub_dataset/<aspect>.csv`.

    Raises:
        UserError: the file is not there, or not in a folder called sub_dataset.
    """
    if not attributes_file.is_file():
        raise UserError(f"{attributes_file} not found; run dataset_11k_split.py first")
    folder = attributes_file.absolute().parent
    if folder.name != "sub_dataset" or attributes_file.suffix != ".csv":
        raise UserError(
            f"{attributes_file}: expected <root>/sub_dataset/<aspect>.csv, the layout that"
            " dataset_11k_split.py writes; <root> holds Hands/ and trainval/ as well"
        )
    root = attributes_file.parent.parent if attributes_file.parent.name else folder.parent
    return SplitFiles(root, attributes_file.stem, protocol)


def missing_photos(rows: pd.DataFrame, folder: Path) -> list[str]:
    """Return the names in `rows` that are no file in `folder`, in the rows' order."""
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return [name for name in rows["name"] if name not in there]


def check_photos(rows: pd.DataFrame, folder: Path, source: Path) -> None:
    """Refuse rows whose photo is not in `folder`: the first five are named, all counted."""
    missing = missing_photos(rows, folder)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(rows)} photos that {source} lists are not in {folder}:"
            f" {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; put them there, or"
            " leave them out with dataset_11k_split.py --skip_missing"
        )


# ----------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class LabelSpace:
    """The class names of each task; a name's index is its place.

    The people are sorted as text; genders and age groups are always all there.
    """

    names: dict[str, tuple[str, ...]]

    @classmethod
    def of_people(cls, ids: Sequence[str]) -> LabelSpace:
        """Return the space of the people in `ids` (repeats allowed)."""
        people = tuple(sorted(set(ids)))
        return cls({"identity": people, "gender": GENDERS, "age": tuple(AGE_GROUPS)})

    @classmethod
    def from_json(cls, names: dict[str, list[str]]) -> LabelSpace:
        """Return the space that `to_json` described."""
        return cls({task: tuple(names[task]) for task in TASKS})

    def to_json(self) -> dict[str, list[str]]:
        """Return the class names as lists, for a checkpoint."""
        return {task: list(names) for task, names in self.names.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """The number of classes of each task."""
        return {task: len(names) for task, names in self.names.items()}

    def encode(self, rows: pd.DataFrame) -> np.ndarray:
        """Return class indices, (n_rows, n_tasks) int64 in the order of `TASKS`; -1: unknown."""
        texts = class_names(rows)
        columns = []
        for task in TASKS:
            index = {name: i for i, name in enumerate(self.names[task])}
            columns.append([index.get(name, -1) for name in texts[task]])
        return np.array(columns, dtype=np.int64).reshape(len(TASKS), len(rows)).T


def class_names(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Return the true class name of every row, per task."""
    return {
        "identity": rows["id"].tolist(),
        "gender": rows["gender"].tolist(),
        "age": [age_group(age) for age in rows["age"]],
    }


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


# A picklable callable: an upright RGB photo -> (3, H, W) float32, normalised.
Transform: TypeAlias = Callable[[Image.Image], torch.Tensor]


def build_transform(
    *,
    train: bool,
    image_size: int = 224,
    mean: Sequence[float],
    std: Sequence[float],
    flip: float = 0.5,
    jitter: float = 0.3,
) -> Transform:
    """Return the published transform to (3, image_size, image_size) float32.

    The aspect ratio is not kept. For training: resize, random crop, horizontal flip, colour
    jitter; else a plain resize.

    Args:
        train: whether to augment.
        image_size: side of the result in pixels.
        mean: of the normalisation, per RGB channel in [0, 1].
        std: likewise.
        flip: probability of a horizontal flip.
        jitter: largest relative change of brightness, contrast and saturation.

    Source: github.com/nathanlem1/IGAE-Net, train.py lines 93-110.
    """
    bicubic = InterpolationMode.BICUBIC
    to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    if not train:
        return v2.Compose([v2.Resize((image_size, image_size), bicubic), *to_tensor])
    side = resize_size(image_size)
    augmentations = [
        v2.Resize((side, side), bicubic),
        v2.RandomCrop((image_size, image_size)),
        v2.RandomHorizontalFlip(flip),
        v2.ColorJitter(jitter, jitter, jitter, 0),
    ]
    return v2.Compose([*augmentations, *to_tensor])


class Item(NamedTuple):
    """One photo, or a batch of them."""

    image: torch.Tensor  # (3, H, W) float32, normalised
    labels: torch.Tensor  # (n_tasks,) int64 in the order of TASKS, -1 where unknown
    row: int | torch.Tensor  # place in the split's CSV, from 0; of a batch: (N,) int64


class HandsDataset(Dataset[Item]):
    """The photos of a split's rows.

    Args:
        rows: as `read_rows` returns them.
        folder: where the photos lie.
        label_space: turns names into indices.
        transform: as `build_transform` returns it.
        decode_size: as in `open_photo`.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        folder: Path,
        label_space: LabelSpace,
        *,
        transform: Transform,
        decode_size: int = 0,
    ) -> None:
        self.names = rows["name"].tolist()
        self.labels = torch.from_numpy(label_space.encode(rows))
        self.folder = folder
        self.transform = transform
        self.decode_size = decode_size

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Return the photo of a row, augmented by what the seed draws.

        Args:
            key: (row, seed), as the samplers of this module yield them.
        """
        row, seed = key
        try:
            photo = open_photo(self.folder / self.names[row], self.decode_size)
        except UserError as error:
            raise UserError(f"row {row + 1}: {error}") from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Item(self.transform(photo), self.labels[row], row)


class RowSampler(Sampler[tuple[int, int]]):
    """Yields (row, seed) keys: shuffled anew each epoch if `shuffle`, else in CSV order.

    The order depends on (seed, epoch) alone, a photo's augmentation on (seed, epoch, row): neither
    the number of workers nor a resume changes them. `set_epoch` comes before each epoch.
    """

    def __init__(self, n_rows: int, *, seed: int = 0, shuffle: bool) -> None:
        self.n_rows, self.seed, self.shuffle = n_rows, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 1, whose order and seeds come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.n_rows

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the keys of one epoch."""
        sequence = np.random.SeedSequence((self.seed, self.epoch))
        seeds = sequence.generate_state(self.n_rows, np.uint64) >> np.uint64(1)
        order = np.arange(self.n_rows)
        if self.shuffle:
            order = np.random.default_rng(sequence).permutation(self.n_rows)
        yield from ((int(row), int(seeds[row])) for row in order)


def build_loader(
    dataset: HandsDataset,
    *,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    seed: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Return a loader of `Item` batches; its sampler is a `RowSampler`."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=RowSampler(len(dataset), seed=seed, shuffle=shuffle),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # else it draws from the global one
    )
