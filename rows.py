"""Facts of the 11k Hands data set, and the way from CSV rows to checked rows and their labels.

Data set: Afifi, "11K Hands: Gender recognition and biometric identification using a large dataset
of hand images", 2019, https://arxiv.org/abs/1711.04322.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

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


class SplitProtocol(NamedTuple):
    """Who goes where, and why."""

    splits: tuple[str, ...]  # of a fold: the first trains, the last is reported on
    folds: int  # where --folds does not say otherwise
    disjoint: bool  # whether val and test show strangers only, to be matched by a gallery
    reason: str  # in two lines


# dataset_11k_split.py draws them; `SplitFiles.split` says where their files lie.
PROTOCOLS = {
    "paper": SplitProtocol(
        ("train", "val"),
        folds=1,
        disjoint=False,
        reason="Half of the photos train, the others choose the epoch and are reported on, as\n"
        "published: to compare with published numbers. Neighbouring frames are on both sides.",
    ),
    "stratified": SplitProtocol(
        ("train", "val", "test"),
        folds=1,
        disjoint=False,
        reason="50, 20 and 30 % of everybody's photos (under 5: all train): what is reported on\n"
        "did not choose the epoch. Neighbouring frames are still on both sides.",
    ),
    "burst": SplitProtocol(
        ("train", "val", "test"),
        folds=1,
        disjoint=False,
        reason="The same shares, in blocks of neighbouring frames with gaps between them: to know\n"
        "a person again without a near-duplicate in train, though in the same session.",
    ),
    "subject-disjoint": SplitProtocol(
        ("train", "val", "test"),
        folds=5,
        disjoint=True,
        reason="Nobody is on two sides, everybody is in the test split of one fold: what gender\n"
        "and age scores are worth on strangers, and how well strangers can be matched.",
    ),
}
LEAK_FRAMES = (1, 2, 5)  # numbers apart: neighbours in number are near-duplicates


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
    plain: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    plain["skip_blank_lines"] = False
    try:  # the header by itself, as pandas renames a column that is there twice
        header = pd.read_csv(path, header=None, nrows=1, **plain).iloc[0].tolist()
        table = pd.read_csv(path, **plain)
    except FileNotFoundError:
        raise UserError(f"{path} not found; {what_next}") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path} is not UTF-8 text (byte {byte:#x} in it); save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a CSV file: {reason}") from error
    for problem, wrong in (
        ("missing columns", [name for name in columns if name not in header]),
        ("two columns are called", [x for x in dict.fromkeys(header) if x and header.count(x) > 1]),
    ):
        if wrong:
            raise UserError(
                f"{path}: {problem} {', '.join(wrong)} (found {', '.join(header)});"
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


def check_one_gender(ids: pd.Series, genders: pd.Series, path: Path) -> None:
    """Refuse a person who has two genders.

    Args:
        ids: of the rows, indexed by line of the file.
        genders: likewise.
        path: named in the message.
    """
    first = genders.groupby(ids).transform("first")
    wrong = genders.index[genders != first]
    if len(wrong):
        line = wrong[0]
        other = ids.index[ids == ids[line]][0]
        raise UserError(
            f"{path} line {line}: {ids[line]} is {genders[line]}, in line {other} {first[line]}"
            f" ({len(wrong)} such rows); correct the file"
        )


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
    what_next = (
        f"get Hands/ and HandInfo.csv from {DATA_URL}, or draw some:"
        f" python dataset_11k_synthetic.py --output {path.parent}"
    )
    table = read_csv_text(path, HAND_INFO_COLUMNS, what_next)
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
    check_one_gender(ids, table["gender"], path)
    numbers = {column: table[column].astype("int64") for column in ("age", *flags)}
    return table.assign(id=ids, **numbers)[list(HAND_INFO_COLUMNS)].reset_index(drop=True)


def advise(path: Path, what_next: str, *, by_hand: str) -> str:
    """Return `what_next`, or `by_hand` for somebody's own photos: they have no HandInfo.csv."""
    for root in path.absolute().parents:
        if (root / "Hands").is_dir() or (root / "sub_dataset").is_dir():
            return what_next if (root / "HandInfo.csv").is_file() else by_hand
    return what_next


RUN_SPLIT = "run dataset_11k_split.py first"
WRITE_CSV = "write it (README, Your own photos)"


def read_rows(path: Path) -> pd.DataFrame:
    """Return the rows of a split CSV: columns image_path, name (of the photo), id, gender, age.

    All are text but age, which is int64; blanks around an id are removed.

    Args:
        path: a CSV with at least the columns image_path, id, gender, age. An image_path is a bare
            file name, or anything that ends in `Hands/<name>`.

    Raises:
        UserError: the file, a column or a cell is not as expected; the message names the line.
    """
    table = read_csv_text(path, SPLIT_COLUMNS, advise(path, RUN_SPLIT, by_hand=WRITE_CSV))
    names = table["image_path"].str.replace(r"^(?:.*[/\\])?Hands[/\\]", "", regex=True)
    legal = is_photo_name(names) & ~names.duplicated()
    check_cells(table, path, {**people_rules(table), "image_path": (legal, PHOTO_NAME)})
    ids, ages = table["id"].str.strip(), table["age"].astype("int64")
    check_one_gender(ids, table["gender"], path)
    rows = table.assign(name=names, id=ids, age=ages)
    return rows[["image_path", "name", "id", "gender", "age"]].reset_index(drop=True)


def say_who_is_known(rows: pd.DataFrame, trained: pd.DataFrame, split: str) -> str:
    """Return how many people of a split's rows were trained on, and what its scores say then."""
    people = set(rows["id"])
    known = people & set(trained["id"])
    if not known:
        meaning = "identity cannot be right; gender and age are read from strangers' hands"
    elif known == people:
        meaning = "the scores are of known hands, and say nothing of strangers'"
    else:
        meaning = "the others' identity cannot be right; the scores mix known and strangers' hands"
    return f"{len(known)} of {len(people)} {split} people are in train: {meaning}"


def frame_numbers(names: pd.Series) -> pd.Series:
    """Return each photo's place in the videos, float: the last number in its name, or NaN.

    Hand_0000123.jpg is frame 123. Of more than 15 digits, what a float can tell, the last count.
    """
    stems = names.str.replace(r"\.[^.]*$", "", regex=True)
    return stems.str.extract(r"([0-9]{1,15})[^0-9]*$", expand=False).astype(float)


def permute_labels(rows: pd.DataFrame, everyone: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return `rows` with gender and age permuted between people: everybody has somebody's.

    No hand tells these labels, so whatever is learnt of them is who has which.

    Args:
        rows: of some of the people.
        everyone: rows of all the people that the permutation is drawn over.
        seed: of the draw.
    """
    labels = everyone.groupby("id")[["gender", "age"]].first()  # sorted by id
    order = np.random.default_rng(seed).permutation(len(labels))
    given = labels.iloc[order].set_axis(labels.index).loc[rows["id"]]
    return rows.assign(gender=given["gender"].to_numpy(), age=given["age"].to_numpy())


def leaks(rows: pd.DataFrame, train: pd.DataFrame) -> dict[str, float]:
    """Return which share of a side's photos training gives away; NaN where there are none.

    Both have the columns id and number (`frame_numbers`).

    person_in_train: the person has photos in train; within_<n>: one of these is at most n numbers
    away, of those photos that have a number.
    """
    numbered, trained = (
        part.dropna(subset="number").astype({"number": "int64"}).sort_values("number")
        for part in (rows, train)
    )
    nearest = pd.merge_asof(
        numbered,
        trained[["id", "number"]].assign(nearest=trained["number"]),
        on="number",
        by="id",
        direction="nearest",
    )
    distance = (nearest["number"] - nearest["nearest"]).abs()  # NaN: the person is not in train
    return {
        "person_in_train": rows["id"].isin(train["id"]).mean(),
        **{f"within_{n}": (distance <= n).mean() for n in LEAK_FRAMES},
    }


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
    fold: int = 0  # `paper` has no folds

    @property
    def photos(self) -> Path:
        """The folder that photos are opened in."""
        return self.root / "Hands"

    @property
    def attributes(self) -> Path:
        """The CSV of all rows of the aspect."""
        return self.root / "sub_dataset" / f"{self.aspect}.csv"

    @property
    def drawn(self) -> Path:
        """The folder of what the protocol drew, for every aspect."""
        folder = self.root / "trainval"
        return folder if self.protocol == "paper" else folder / self.protocol

    @property
    def leakage(self) -> Path:
        """The CSV that says what the protocol's splits have in common, for every aspect."""
        return self.drawn / "leakage.csv"

    @property
    def gallery(self) -> Path:
        """The CSV of the gallery draws of the fold's test split (disjoint protocols)."""
        return self.split("gallery")

    @property
    def folds(self) -> list[int]:
        """The folds that were drawn of the aspect."""
        paths = (self.drawn / self.aspect).glob("fold_*")
        names = [path.name.removeprefix("fold_") for path in paths]
        return sorted(int(name) for name in names if name.isdecimal())

    def split(self, name: str) -> Path:
        """Return the CSV of the split `name` (of `PROTOCOLS`)."""
        folder = self.drawn / self.aspect
        return (
            folder if self.protocol == "paper" else folder / f"fold_{self.fold}"
        ) / f"{name}.csv"


def locate(attributes_file: Path, protocol: str, fold: int = 0) -> SplitFiles:
    """Return the places that belong to `<root>/sub_dataset/<aspect>.csv`.

    Raises:
        UserError: the file is not there, or not in a folder called sub_dataset.
    """
    if not attributes_file.is_file():
        what_next = advise(attributes_file, RUN_SPLIT, by_hand=WRITE_CSV)
        if attributes_file.is_dir():
            raise UserError(f"{attributes_file} is a folder; give <root>/sub_dataset/<aspect>.csv")
        raise UserError(f"{attributes_file} not found; {what_next}")
    folder = attributes_file.absolute().parent
    if folder.name != "sub_dataset" or attributes_file.suffix != ".csv":
        raise UserError(
            f"{attributes_file}: expected <root>/sub_dataset/<aspect>.csv; <root> holds Hands/ and"
            " trainval/ as well"
        )
    root = attributes_file.parent.parent if attributes_file.parent.name else folder.parent
    return SplitFiles(root, attributes_file.stem, protocol, fold)


def missing_photos(rows: pd.DataFrame, folder: Path) -> list[str]:
    """Return the names in `rows` that are no file in `folder`, in the rows' order.

    A link to nowhere is no file.
    """
    there = set()
    if folder.is_dir():
        with os.scandir(folder) as entries:  # looks at no file but the links; those may be loops
            real = ((e, e.is_file(follow_symlinks=False)) for e in entries)
            there = {entry.name for entry, is_file in real if is_file or Path(entry).is_file()}
    return [name for name in rows["name"] if name not in there]


def check_photos(rows: pd.DataFrame, folder: Path, source: Path) -> None:
    """Refuse rows whose photo is not in `folder`: the first five are named, all counted."""
    missing = missing_photos(rows, folder)
    if missing:
        leave_out = advise(
            folder,
            "leave them out with dataset_11k_split.py --skip_missing",
            by_hand="delete their rows",
        )
        raise UserError(
            f"{len(missing)} of {len(rows)} photos that {source} lists are not in {folder}:"
            f" {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; put them there, or"
            f" {leave_out}"
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
