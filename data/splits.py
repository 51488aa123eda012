"""Splits on disk: protocols, paths, leakage between splits, and the checked data of a run."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data.tables import (
    other_spelling,
    photo_names,
    read_csv,
    read_samples,
    split_command,
    warn_of_similar_ids,
    warn_of_unusual_ages,
)
from dataset_11k import ASPECTS, TASKS, LabelSpace, class_names, split_columns
from utils import UserError, logger


class SplitProtocol(NamedTuple):
    """A way to divide photos into training, validation and test photos."""

    splits: tuple[str, ...]  # the first is trained on, the last is reported on
    folds: int  # default number of folds; 1: it has none
    unseen: tuple[str, ...]  # the splits that show nobody of another split
    reason: str  # what it is for, in two lines


# Drawn by dataset_11k_split.py; `SplitFiles.split` returns their files.
PROTOCOLS = {
    "paper": SplitProtocol(
        ("train", "val"),
        folds=1,
        unseen=(),
        reason="The published split, to compare with published scores: half of the photos train,\n"
        "the others select the epoch and are reported on. Neighbouring frames are in both halves.",
    ),
    "stratified": SplitProtocol(
        ("train", "val", "test"),
        folds=1,
        unseen=(),
        reason="50, 20 and 30 % of each person's photos (below 5 photos: all in train). The test\n"
        "photos did not select the epoch. Neighbouring frames are still in different splits.",
    ),
    "burst": SplitProtocol(
        ("train", "val", "test"),
        folds=1,
        unseen=(),
        reason="The same fractions in blocks of consecutive frames with gaps between them: how\n"
        "well people are recognised without near-duplicates in train, though from one session.",
    ),
    "subject-disjoint": SplitProtocol(
        ("train", "val", "test"),
        folds=5,
        unseen=("val", "test"),
        reason="Cross-validation over people: nobody is in two splits, everybody is in one test\n"
        "split. Gender and age of unseen people, and how well unseen people are matched.",
    ),
    "half": SplitProtocol(
        ("train", "val", "test"),
        folds=1,
        unseen=("test",),
        reason="The published re-identification split (GPA-Net, MBA-Net): the first half of the\n"
        "people by id is in train, with one photo each in val; the second half is matched in test.",
    ),
    "lists": SplitProtocol(
        ("train", "val", "test"),
        folds=10,
        unseen=("test",),
        reason="The published gender split (Afifi 2019): train and test from list files, repeats\n"
        "as folds, both hands together. Val is one photo of each training person.",
    ),
}

LEFT_SUFFIX = " left"  # of the ids of left hands under --identity_per hand

LEAK_FRAMES = (1, 2, 5)  # distances in frame numbers; neighbouring frames are near-duplicates

# What `leakage` returns.
LEAKAGE = ("person_in_train", *(f"within_{n}" for n in LEAK_FRAMES), "identical_in_train")


# ----------------------------------------------------------------------------- samples


def describe_overlap(samples: pd.DataFrame, train: pd.DataFrame, split: str) -> str:
    """Return how many people of a split are in train, and what its scores mean then."""
    people = set(samples["id"])
    known = people & set(train["id"])
    if not known:
        meaning = "identity is measured by comparing embeddings"
    elif known == people:
        meaning = "the scores say nothing about unseen people"
    else:
        meaning = "every prediction of the identity of the others is wrong"
    return f"{len(known)} of {len(people)} {split} people are in train: {meaning}"


def frame_numbers(names: pd.Series) -> pd.Series:
    """Return each photo's frame number, float: the last number in its file name, or NaN.

    Hand_0000123.jpg is frame 123. Only the last 15 digits count, which a float represents exactly.
    """
    stems = names.str.rsplit("/", n=1).str[-1].str.replace(r"\.[^.]*$", "", regex=True)
    return stems.str.extract(r"([0-9]{1,15})[^0-9]*$", expand=False).astype(float)


def label_hands(
    samples: pd.DataFrame, files: SplitFiles, config: Mapping[str, Any]
) -> pd.DataFrame:
    """Return `samples` with `LEFT_SUFFIX` and the column mirrored, as the flags of a run ask for.

    Args:
        samples: of an aspect.
        files: of the aspect, whose name decides if there is no column aspectOfHand.
        config: flags of train.py. --mirror left: mirrored is true for left hands. --identity_per
            hand: their ids get the suffix. Neither, or absent: samples are returned unchanged.

    Raises:
        UserError: it is unknown which hands are left, or they cannot get ids of their own.
    """
    mirror, by_hand = config.get("mirror") == "left", config.get("identity_per") == "hand"
    if not mirror and not by_hand:
        return samples
    hands = samples.get("aspectOfHand", pd.Series(ASPECTS.get(files.aspect, ""), samples.index))
    is_left = hands.str.endswith("left")
    if not (is_left | hands.str.endswith("right")).all():
        raise UserError(
            f"which hands are left is unknown: {files.attributes}. Add the column aspectOfHand"
            f" ({', '.join(ASPECTS.values())}) to this file and its splits, or call the file as an"
            f" aspect of 11k Hands ({', '.join(ASPECTS)}); or omit --mirror and --identity_per"
        )
    if by_hand and (is_left.nunique() > 1 or samples["id"].str.endswith(LEFT_SUFFIX).any()):
        raise UserError(
            "--identity_per hand needs one file of right hands and one of left hands, and no id"
            f" that ends in {LEFT_SUFFIX!r}: {files.attributes}. Divide the file, or omit the flag"
        )
    ids = samples["id"] + np.where(is_left & by_hand, LEFT_SUFFIX, "")
    return samples.assign(id=ids, mirrored=is_left & mirror)


def permute_labels(samples: pd.DataFrame, everyone: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return `samples` with the labels other than id permuted between people.

    Such labels have nothing to do with the hands: whoever predicts them recognises the person.

    Args:
        samples: photos of some of the people.
        everyone: photos of all people; the permutation is drawn over these.
        seed: of the draw.
    """
    columns = [column for column in split_columns()[1:] if column != "id"]
    # Unknown labels are empty or NaN, so that the maximum is the known one.
    labels = everyone.groupby("id")[columns].max()  # sorted by id
    order = np.random.default_rng(seed).permutation(len(labels))
    permuted = labels.iloc[order].set_axis(labels.index).loc[samples["id"]]
    return samples.assign(**{column: permuted[column].to_numpy() for column in columns})


def leakage(
    samples: pd.DataFrame, train: pd.DataFrame, digests: Mapping[str, str]
) -> dict[str, float]:
    """Return the fractions of a split's photos that are close to photos in train.

    person_in_train: the person has photos in train. within_<n>: one of these is at most n frame
    numbers away, among the photos with a number. NaN without such photos. identical_in_train:
    train has the same file under another name.

    Args:
        samples: photos of the split.
        train: photos of train.
        digests: of both, as `duplicate_digests` returns them.
    """
    contents, trained_contents = (part["name"].map(digests) for part in (samples, train))
    numbered, trained = (
        part.assign(number=frame_numbers(part["name"]))
        .dropna(subset="number")
        .astype({"number": "int64"})
        .sort_values("number")
        for part in (samples, train)
    )
    nearest = pd.merge_asof(
        numbered[["id", "number"]],
        trained[["id", "number"]].assign(nearest=trained["number"]),
        on="number",
        by="id",
        direction="nearest",
    )
    distance = (nearest["number"] - nearest["nearest"]).abs()  # NaN: the person is not in train
    return {
        "person_in_train": samples["id"].isin(train["id"]).mean(),
        **{f"within_{n}": (distance <= n).mean() for n in LEAK_FRAMES},
        "identical_in_train": contents.isin(trained_contents.dropna()).mean(),
    }


def with_whole_years(samples: pd.DataFrame) -> pd.DataFrame:
    """Return `samples` with ages as integers, as a CSV shall hold them, even if some are NaN."""
    years = [t.column for t in TASKS.values() if t.in_years and t.column in samples]
    return samples.astype(dict.fromkeys(years, "Int64"))


def fingerprint(samples: pd.DataFrame) -> str:
    """Return a hash of photo names, labels and their order."""
    columns = ["name", *split_columns()[1:]]
    text = with_whole_years(samples[columns]).to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


# ----------------------------------------------------------------------------- files


class SplitFiles(NamedTuple):
    """Paths of an aspect's files; all follow from the attributes file."""

    root: Path
    aspect: str
    protocol: str
    fold: int = 0  # `paper` has no folds

    @property
    def photos(self) -> Path:
        """The folder of the photos."""
        return self.root / "Hands"

    @property
    def attributes(self) -> Path:
        """The CSV of all photos of the aspect."""
        return self.root / "sub_dataset" / f"{self.aspect}.csv"

    @property
    def drawn(self) -> Path:
        """The folder of the protocol's splits of all aspects."""
        folder = self.root / "trainval"
        return folder if self.protocol == "paper" else folder / self.protocol

    @property
    def leakage(self) -> Path:
        """The CSV of leakage and group sizes of all splits of the protocol."""
        return self.drawn / "leakage.csv"

    @property
    def gallery(self) -> Path:
        """The CSV of gallery draws from the test split, if it shows unseen people."""
        return self.split("gallery")

    @property
    def distractors(self) -> Path:
        """The CSV of the other aspects' gallery photos in each draw (protocol half)."""
        return self.split("distractors")

    @property
    def folds(self) -> list[int]:
        """The folds of the aspect that exist."""
        paths = (self.drawn / self.aspect).glob("fold_*")
        names = [path.name.removeprefix("fold_") for path in paths]
        return sorted(int(name) for name in names if name.isdecimal())

    def split(self, name: str) -> Path:
        """Return the CSV of the split `name` (of `PROTOCOLS`)."""
        fold = "" if self.protocol == "paper" else f"fold_{self.fold}"
        return self.drawn / self.aspect / fold / f"{name}.csv"


def locate(attributes_file: Path, protocol: str, fold: int = 0) -> SplitFiles:
    """Return the paths that belong to `<root>/sub_dataset/<aspect>.csv`.

    Raises:
        UserError: the file does not exist, or is not in a folder called sub_dataset.
    """
    if attributes_file.is_dir():
        raise UserError(f"not a file: {attributes_file}. Give <root>/sub_dataset/<aspect>.csv")
    if not attributes_file.is_file():
        raise UserError(
            f"not found: {attributes_file}. Run: {split_command(attributes_file)}; or, if the data"
            " has moved, give --attributes_file"
        )
    folder = attributes_file.absolute().parent
    if folder.name != "sub_dataset" or attributes_file.suffix != ".csv":
        raise UserError(
            f"not a file <root>/sub_dataset/<aspect>.csv: {attributes_file}. Move it into a folder"
            " sub_dataset/ beside Hands/"
        )
    root = attributes_file.parent.parent if attributes_file.parent.name else folder.parent
    return SplitFiles(root, attributes_file.stem, protocol, fold)


def run_files(attributes_file: Path, config: Mapping[str, Any]) -> list[SplitFiles]:
    """Return the paths of all aspects that a run was trained on.

    Args:
        attributes_file: of one of them, perhaps moved since; of a single one, perhaps renamed.
        config: flags of the run.
    """
    files = locate(attributes_file, config["protocol"], config["fold"] or 0)
    names = trained_aspects(config)
    found = [files] if len(names) == 1 else [files._replace(aspect=name) for name in names]
    for other in found:
        if not other.attributes.is_file():
            raise UserError(
                f"not found: {other.attributes}, an aspect of the training. Restore it and its"
                " splits"
            )
    return found


def trained_files(config: Mapping[str, Any]) -> list[str]:
    """Return the attributes files of a run; checkpoints of earlier versions have a single one."""
    paths = config["attributes_file"]
    return [paths] if isinstance(paths, str) else paths


def trained_aspects(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the aspects that a run was trained on."""
    return [Path(path).stem for path in trained_files(config)]


def read_run_samples(
    files: Sequence[SplitFiles], split: str | None, config: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the samples of a split as a run uses them (`label_hands`, `permute_labels`).

    Args:
        files: of all aspects of the run, or some of them.
        split: its name; None: the whole aspects.
        config: flags of the run.
    """
    parts = [
        label_hands(read_samples(f.split(split) if split else f.attributes), f, config)
        for f in files
    ]
    samples = pd.concat(parts, ignore_index=True)
    if split is None or not config.get("permute_labels"):
        return samples
    everyone = read_run_samples(run_files(files[0].attributes, config), None, config)
    return permute_labels(samples, everyone, config["seed"])


def missing_photos(samples: pd.DataFrame, folder: Path) -> list[str]:
    """Return the names in `samples` that are not a file (or a link to one) in `folder`."""
    existing = set()
    for subfolder in sorted({name.rpartition("/")[0] for name in samples["name"]}):
        if not (folder / subfolder).is_dir():
            continue
        with os.scandir(folder / subfolder) as entries:  # much faster than a stat of each photo
            for entry in entries:
                if entry.is_file(follow_symlinks=False) or Path(entry).is_file():
                    existing.add(f"{subfolder}/{entry.name}" if subfolder else entry.name)
    return [name for name in samples["name"] if name not in existing]


def check_photos(samples: pd.DataFrame, folder: Path, source: Path) -> None:
    """Refuse samples without a photo in `folder`; `source` is the CSV that lists them."""
    missing = missing_photos(samples, folder)
    check_spelling(missing, samples, folder, source)
    if missing:
        others = ", ..." if len(missing) > 5 else ""
        raise UserError(
            f"{len(missing)} of {len(samples):,} photos of {source} are missing from {folder}:"
            f" {', '.join(missing[:5])}{others}. Restore them or rerun"
            " dataset_11k_split.py with --skip_missing"
        )


def check_spelling(
    missing: Sequence[str], samples: pd.DataFrame, folder: Path, source: Path
) -> None:
    """Refuse missing photos that `folder` has in another spelling; else their labels are lost."""
    if not missing:
        return
    files = (path.relative_to(folder).as_posix() for path in folder.glob("**/*"))
    if found := other_spelling(missing, set(files) - set(samples["name"])):
        raise UserError(f"a photo of {source} {found} in {folder}. Make the names equal")


def duplicate_digests(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Return the hash of every photo that another photo of `names` equals byte for byte."""
    by_size: dict[int, list[str]] = {}
    for name in dict.fromkeys(names):
        with suppress(OSError):  # it need not exist
            by_size.setdefault((folder / name).stat().st_size, []).append(name)
    by_digest: dict[str, list[str]] = {}
    for alike in by_size.values():
        for name in alike if len(alike) > 1 else ():
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            by_digest.setdefault(digest, []).append(name)
    equal = ((digest, found) for digest, found in by_digest.items() if len(found) > 1)
    return {name: digest for digest, found in equal for name in found}


def lines_of(names: Sequence[str], sources: Iterable[Path]) -> dict[str, str]:
    """Return the first CSV and line that list each photo, such as `train.csv line 3`."""
    found: dict[str, str] = {}
    for source in sources:
        table = read_csv(source, ("image_path",), "")
        listed = photo_names(table["image_path"])
        for line, name in listed[listed.isin(names)].items():
            found.setdefault(name, f"{source} line {line}")
    return found


# ----------------------------------------------------------------------------- data of a run


@dataclass(frozen=True)
class Data:
    """The checked samples of a run's aspects, protocol and fold, and their label space."""

    folder: Path  # of the photos
    samples: dict[str, pd.DataFrame]  # of train and val
    label_space: LabelSpace
    fingerprints: dict[str, str]  # of every split, test included
    listed: pd.DataFrame  # samples of the whole aspects, all folds and splits
    sources: list[Path]  # the CSVs that list them


def check_fold(files: SplitFiles) -> None:
    """Refuse a protocol or fold that was not drawn for the aspect."""
    if files.protocol == "paper" or files.split("train").parent.is_dir():
        return
    aspect = files.drawn / files.aspect
    if not files.folds:
        raise UserError(
            f"no split of protocol {files.protocol}: {aspect}. Run:"
            f" {split_command(files.split('train'))}"
        )
    raise UserError(
        f"no such fold: {files.fold}. {aspect} has the folds {', '.join(map(str, files.folds))}"
    )


def check_splits(
    samples: Mapping[str, pd.DataFrame], everyone: pd.DataFrame, files: SplitFiles
) -> None:
    """Refuse splits that break the rules of their protocol.

    No split but test may be empty, no photo in two splits, nobody outside the attributes file.
    People of an unseen split are in no other, all others (not in `paper`) are in train.
    """
    unseen = PROTOCOLS[files.protocol].unseen
    again = f"Run again: {split_command(files.split('train'))}"
    for split, part in samples.items():
        sources = {files.attributes: everyone}  # of the people who may occur
        if split not in unseen and files.protocol != "paper":
            sources[files.split("train")] = samples["train"]
        if part.empty and split != "test":
            raise UserError(
                f"no photo of {files.aspect}: {files.split(split)}. Train on another aspect"
            )
        for source, people in sources.items():
            outside = part[~part["id"].isin(people["id"])]
            if len(outside):
                found = other_spelling(outside["id"], people["id"])
                raise UserError(
                    f"{outside['id'].iloc[0]} (photo {outside['name'].iloc[0]}) is in"
                    f" {files.split(split)} but not in {source}{found and f', where {found}'}."
                    f" {again}"
                )
    for one, other in itertools.combinations(samples, 2):
        for column in ("name", "id") if {one, other} & {*unseen} else ("name",):
            both = samples[other][column][samples[other][column].isin(samples[one][column])]
            if len(both):
                raise UserError(
                    f"{both.iloc[0]} is in two splits: {files.split(one)} and"
                    f" {files.split(other)}. {again}"
                )
    for split, part in samples.items():
        check_same_labels(part, everyone, files.split(split), files.attributes, again)


def check_same_labels(
    part: pd.DataFrame, everyone: pd.DataFrame, source: Path, attributes: Path, what_next: str
) -> None:
    """Refuse a photo with two ids, or a person with two labels, in two files."""
    for column in split_columns()[1:]:
        key = "name" if column == "id" else "id"
        known = part[is_known(part[column])]
        labels = everyone[is_known(everyone[column])].groupby(key)[column].first()
        other = known[key].map(labels)
        wrong = known[is_known(other) & (other != known[column])]
        if len(wrong):
            first = wrong.iloc[0]
            raise UserError(
                f"two values of {column} for {first[key]}: {attributes} has"
                f" {other[wrong.index[0]]}, {source} has {first[column]}. {what_next}"
            )


def choose_tasks(train: pd.DataFrame, tasks: Sequence[str], source: Path) -> list[str]:
    """Return the tasks to train: `tasks`, or if empty all that have two classes in train.

    Raises:
        UserError: one of `tasks` has no labels, or no task has two classes.
    """
    n_classes = {task: len(set(class_names(train, task)) - {""}) for task in TASKS}
    if not tasks:
        for task, n in n_classes.items():
            if n < 2:
                found = "labels of one class" if n else "no labels"
                logger.info("%s has %s of %s: the task is left out", source, found, task)
        tasks = [task for task, n in n_classes.items() if n > 1]
        if not tasks:
            raise UserError(f"one person only: {source}. Add people")
    labelled = [task for task, n in n_classes.items() if n]
    for task in tasks:
        if task not in labelled:
            raise UserError(f"no labels of --tasks {task}: {source} has {', '.join(labelled)}")
    return [task for task in TASKS if task in tasks]


def is_known(cells: pd.Series) -> pd.Series:
    """Return which cells of a task column hold a label."""
    return cells.notna() & (cells != "")


def read_data(
    attributes_files: Sequence[Path],
    protocol: str,
    fold: int = 0,
    *,
    tasks: Sequence[str] = (),
    permutation_seed: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> Data:
    """Return the checked data of a run. Photos of the test split need not exist.

    Args:
        attributes_files: <root>/sub_dataset/<aspect>.csv of each aspect.
        protocol: of `PROTOCOLS`.
        fold: from 0.
        tasks: of `TASKS`; empty: all that have labels in train.
        permutation_seed: of `permute_labels`; None: true labels.
        config: flags of the run, for `label_hands`.
    """
    located = [locate(path, protocol, fold) for path in attributes_files]
    parts = []
    for files in located:
        check_fold(files)
        samples = {split: read_samples(files.split(split)) for split in PROTOCOLS[protocol].splits}
        everyone = read_samples(files.attributes)
        warn_of_unusual_ages(everyone, files.attributes)
        warn_of_similar_ids(everyone, files.attributes)
        check_splits(samples, everyone, files)
        for split in ("train", "val"):
            check_photos(samples[split], files.photos, files.split(split))
        log_data(samples, everyone, files)
        parts.append({**samples, "everyone": everyone})
    check_aspects(parts, located)
    samples = {
        name: pd.concat(
            [label_hands(p[name], f, config or {}) for p, f in zip(parts, located, strict=True)],
            ignore_index=True,
        )
        for name in parts[0]
    }
    everyone, files = samples.pop("everyone"), located[0]
    tasks = choose_tasks(samples["train"], tasks, files.split("train"))
    if permutation_seed is not None:
        samples = {s: permute_labels(x, everyone, permutation_seed) for s, x in samples.items()}
        logger.info("labels are permuted between people: a baseline, not a result")
    listed = pd.concat([everyone, *samples.values()]).drop_duplicates("name")
    absent = set(missing_photos(listed, files.photos))
    return Data(
        files.photos,
        {split: part for split, part in samples.items() if split != "test"},
        # The published network has an output for everybody in the file, trained on or not.
        LabelSpace.of_samples(everyone if protocol == "paper" else samples["train"], tasks),
        {split: fingerprint(part) for split, part in samples.items()},
        listed[~listed["name"].isin(absent)].reset_index(drop=True),
        [*(f.split(split) for f in located for split in samples), *attributes_files],
    )


def check_aspects(
    parts: Sequence[Mapping[str, pd.DataFrame]], located: Sequence[SplitFiles]
) -> None:
    """Refuse aspects that cannot be trained on together.

    They are of one data set, with equal labels and no photo in two of them. Nobody is in train of
    one and in an unseen split of another.

    Args:
        parts: samples of each aspect by split, and of `everyone`.
        located: their files.
    """
    protocol = located[0].protocol
    names = ", ".join(str(files.attributes) for files in located)
    if len({files.root.resolve() for files in located}) > 1:
        raise UserError(f"attributes files of different data sets: {names}. Give those of one")
    for i, j in itertools.combinations(range(len(parts)), 2):
        everyone = parts[i]["everyone"], parts[j]["everyone"]
        paths = located[i].attributes, located[j].attributes
        check_same_labels(everyone[1], everyone[0], paths[1], paths[0], "Make them equal")
        if photos := set(everyone[0]["name"]) & set(everyone[1]["name"]):
            raise UserError(
                f"{len(photos)} photos are in two attributes files (first: {min(photos)}):"
                f" {paths[0]} and {paths[1]}. Give files without common photos"
            )
    for one, other in itertools.permutations(parts, 2):
        for split in PROTOCOLS[protocol].unseen:
            if people := set(one["train"]["id"]) & set(other[split]["id"]):
                raise UserError(
                    f"{len(people)} people are in train of one aspect and in {split} of another"
                    f" (first: {min(people)}): {names}, protocol {protocol}. Train on one aspect,"
                    " or give --protocol subject-disjoint"
                )


def log_data(
    samples: Mapping[str, pd.DataFrame], everyone: pd.DataFrame, files: SplitFiles
) -> None:
    """Log the numbers of photos and people."""
    unseen = samples["val"][~samples["val"]["id"].isin(samples["train"]["id"])]
    counts = ", ".join(f"{len(part)} {split}" for split, part in samples.items())
    logger.info(
        "%s, protocol %s: %s photos, %d people; %d val photos show %d people without a train photo",
        *(files.aspect, files.protocol, counts, everyone["id"].nunique()),
        *(len(unseen), unseen["id"].nunique()),
    )
