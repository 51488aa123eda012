"""TODO."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from data.tables import RUN_SPLIT, WRITE_CSV, advise, read_rows, warn_of_odd_ages
from dataset_11k import LabelSpace
from utils import UserError, logger

if TYPE_CHECKING:
    pass


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


@dataclass(frozen=True)
class Data:
    """The rows of an aspect and the names of their classes."""

    folder: Path
    rows: dict[str, pd.DataFrame]  # train and val
    label_space: LabelSpace
    fingerprints: dict[str, str]  # of every split, as test.py asks whether it is the same


# ----------------------------------------------------------------------------- data


def check_fold(files: SplitFiles) -> None:
    """Refuse a protocol that was not drawn for the aspect, or a fold that it does not have."""
    if files.protocol == "paper" or files.split("train").parent.is_dir():
        return
    aspect = files.drawn / files.aspect
    if not files.folds:
        raise UserError(
            f"{aspect} has no folds; run dataset_11k_split.py --protocol {files.protocol} first"
        )
    raise UserError(
        f"--fold {files.fold}: {aspect} has the folds {', '.join(map(str, files.folds))}"
    )


def check_sides(rows: Mapping[str, pd.DataFrame], files: SplitFiles) -> None:
    """Refuse a photo, and in a disjoint protocol a person, on two sides; elsewhere strangers."""
    again = "run dataset_11k_split.py again"
    disjoint = PROTOCOLS[files.protocol].disjoint
    for one, other in itertools.combinations(rows, 2):
        for column in ("name", "id") if disjoint else ("name",):
            both = rows[other][rows[other][column].isin(rows[one][column])]
            if len(both):
                raise UserError(
                    f"{both[column].iloc[0]} is in {one}.csv and in {other}.csv of {files.aspect}; "
                    + advise(files.photos, again, by_hand="delete one of the rows")
                )
    for split, part in rows.items():
        strangers = part[~part["id"].isin(rows["train"]["id"])]
        if len(strangers) and not disjoint and files.protocol != "paper":
            raise UserError(
                f"{files.split(split)}: {strangers['name'].iloc[0]} shows"
                f" {strangers['id'].iloc[0]}, who has no train photo; only subject-disjoint tests"
                f" strangers; {again}"
            )


def read_data(
    attributes_file: Path, protocol: str, fold: int = 0, *, permutation_seed: int | None = None
) -> Data:
    """Return the checked rows of the aspect: photos there, no photo or person out of place.

    Of test only the list is read, to see that nothing of it is on another side.
    """
    files = locate(attributes_file, protocol, fold)
    check_fold(files)
    rows = {s: read_rows(files.split(s)) for s in PROTOCOLS[protocol].splits}
    everyone = read_rows(attributes_file)
    warn_of_odd_ages(everyone, attributes_file)
    again = "run dataset_11k_split.py again"
    for split, part in rows.items():
        source = files.split(split)
        if part.empty and split != "test":
            raise UserError(f"{source} lists no photo of {files.aspect}; train on another aspect")
        strangers = part[~part["id"].isin(everyone["id"])]
        if len(strangers):
            raise UserError(
                f"{source}: {strangers['name'].iloc[0]} shows {strangers['id'].iloc[0]}, who is"
                f" not in {attributes_file}; " + advise(source, again, by_hand="add the row there")
            )
        if split != "test":
            check_photos(part, files.photos, source)
    check_sides(rows, files)
    unseen = rows["val"][~rows["val"]["id"].isin(rows["train"]["id"])]
    counts = ", ".join(f"{len(part)} {split}" for split, part in rows.items())
    logger.info(
        "%s, protocol %s: %s photos, %d people; %d val photos show %d people without a train photo",
        *(files.aspect, protocol, counts, everyone["id"].nunique()),
        *(len(unseen), unseen["id"].nunique()),
    )
    known = everyone if protocol == "paper" else rows["train"]
    if permutation_seed is not None:
        rows = {s: permute_labels(part, everyone, permutation_seed) for s, part in rows.items()}
        logger.info("gender and age are permuted between people: a control, no result")
    fingerprints = {split: fingerprint(part) for split, part in rows.items()}
    rows.pop("test", None)
    return Data(files.photos, rows, LabelSpace.of_samples(known), fingerprints)
