"""Draw the splits of a data set into train, val and test, and write them as CSVs.

    python dataset_11k_split.py --input ./11k --protocol subject-disjoint
    python dataset_11k_split.py --attributes_file mine/sub_dataset/office.csv
    python dataset_11k_split.py --folders mine/Hands

--input splits 11k Hands: a folder with Hands/ and HandInfo.csv, one CSV for each hand aspect.
--attributes_file splits any CSV <root>/sub_dataset/<name>.csv with the columns
image_path,id[,gender,age]; photos are <root>/Hands/<image_path>, further columns are kept.
--folders makes such a CSV, <root>/sub_dataset/photos.csv, from one folder for each person,
<root>/Hands/<person>/<photo>, and labels in <root>/people.csv (optional): id[,gender,age].
--lists holds list files as published with 11k Hands, <k>/g_imgs_<training|testing>_<d|p>.txt with
a photo name per line, k from 1; the aspects are then dorsal and palmar.

It writes below <root>, where <drawn> is trainval for paper, else trainval/<protocol>:

sub_dataset/<aspect>.csv                           all photos (not with --attributes_file)
<drawn>/<aspect>/{train,val}.csv                   of paper
<drawn>/<aspect>/fold_<k>/{train,val,test}.csv     of the other protocols, folds from 0
<drawn>/<aspect>/fold_<k>/gallery.csv              of unseen test people: draw, image_path
<drawn>/<aspect>/fold_0/distractors.csv            of half: the other aspects' galleries
<drawn>/leakage.csv                                leakage into train, people and photos by group

and prints the numbers of photos and people. Protocols:
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data.splits import (
    LEAKAGE,
    PROTOCOLS,
    SplitFiles,
    check_photos,
    check_spelling,
    duplicate_digests,
    frame_numbers,
    is_known,
    leakage,
    locate,
    missing_photos,
    with_whole_years,
)
from data.tables import (
    further_columns,
    other_spelling,
    parse_samples,
    read_csv,
    read_hand_info,
    read_people,
    warn_of_similar_ids,
)
from dataset_11k import ASPECTS, SKIN_COLORS, TASKS, class_names, is_photo_name, split_columns
from utils import (
    UserError,
    atomic_write,
    build_config,
    build_parser,
    flag,
    logger,
    one_line_errors,
    setup_logging,
)

SEED = 42  # of the published split

LEAST_PHOTOS = 5  # of a person in `stratified`: fewer cannot be cut 50/20/30

NEAR = 2  # frames of different splits are more than this apart in `burst`

N_DEALS = 100  # random assignments of people to folds, of which the most balanced is used

N_GALLERIES = 10  # as in MBA-Net (arXiv 2108.02234)

LEFT_OUT = "left out"  # the split of photos that are in none

FOLDERS_ASPECT = "photos"  # name of the CSV that --folders makes

# Protocol -> what keeps its splits from being empty.
NEEDS = {
    "paper": "at least 2 photos",
    "stratified": f"a person with at least {LEAST_PHOTOS} photos",
    "burst": "a person with at least 10 photos of consecutive numbers",
    "subject-disjoint": "photos of people of every fold; lower --folds",
    "half": "two people, the first of them with at least 2 photos",
    "lists": "different people in the two lists, one in training with at least 2 photos",
}

LIST_LETTERS = {"dorsal": "d", "palmar": "p"}  # aspect -> letter in the names of list files

LIST_NAMES = {"train": "training", "test": "testing"}  # split -> word in the names of list files

Random = np.random.RandomState  # its stream is the same in every version of NumPy


@dataclass(frozen=True)
class SplitConfig:
    """Command line of dataset_11k_split.py."""

    input: str | None = flag(
        None, "folder with Hands/ and HandInfo.csv (default: ./11k)", metavar="DIR"
    )
    attributes_file: Path | None = flag(
        None, "split this CSV instead, <root>/sub_dataset/<name>.csv", metavar="CSV"
    )
    folders: Path | None = flag(
        None, "split the photos of <root>/Hands/<person>/ instead", metavar="DIR"
    )
    protocol: str = flag("paper", "see above", choices=tuple(PROTOCOLS))
    seed: int | None = flag(None, f"seed of the draw (default: {SEED}, the only one of paper)")
    folds: int | None = flag(None, "number of folds of subject-disjoint (default: 5)")
    lists: Path | None = flag(None, "folder of the list files of --protocol lists", metavar="DIR")
    skip_missing: bool = flag(False, "leave out photos that are not in Hands/")

    def __post_init__(self) -> None:
        """Refuse values out of range, and flags that would have no effect."""
        sources = ("input", "attributes_file", "folders")
        given = [f"--{x}" for x in sources if getattr(self, x) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
        if self.folders and self.skip_missing:
            raise ValueError("--skip_missing has no effect with --folders: leave it out")
        if self.protocol == "paper" and self.seed is not None:
            raise ValueError(f"--seed has no effect with --protocol paper, whose seed is {SEED}")
        if self.folds is not None and self.protocol != "subject-disjoint":
            raise ValueError(f"--folds has no effect with --protocol {self.protocol}")
        if (self.lists is not None) != (self.protocol == "lists"):
            raise ValueError("--protocol lists and --lists DIR go together: give both")
        if self.lists and (self.attributes_file or self.folders):
            raise ValueError(f"--lists needs HandInfo.csv: give --input instead of {given[0]}")
        if self.folds is not None and self.folds < 3:
            raise ValueError(f"--folds is {self.folds}, expected 3 or more: train, val and test")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}, expected 0 to {2**32 - 1}")
        try:
            (self.input or "").encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"--input is not UTF-8 text, as the CSVs are: {self.input!r}. Rename the folder"
            ) from None


class Source(NamedTuple):
    """The photos to split."""

    root: Path
    listing: Path  # file that lists the photos, for messages
    by_aspect: dict[str, pd.DataFrame]  # samples, in the order of the file
    columns: list[str]  # of the split CSVs

    @property
    def photos(self) -> Path:
        """The folder of the photos."""
        return self.root / "Hands"

    @property
    def is_11k(self) -> bool:
        """Whether the photos are listed in HandInfo.csv, all aspects at once."""
        return self.listing.name == "HandInfo.csv"


class AspectSplit(NamedTuple):
    """The drawn splits of an aspect."""

    samples: pd.DataFrame  # all photos, in the published order
    folds: list[dict[str, pd.DataFrame]]  # split -> its samples, in the same order


# ----------------------------------------------------------------------------- sources


def read_source(config: SplitConfig) -> Source:
    """Return the photos that the command line asks to split."""
    if config.folders:
        return source_of_folders(config.folders)
    if config.attributes_file:
        return source_of_attributes(config.attributes_file, config.protocol)
    return source_of_hand_info("./11k" if config.input is None else config.input, config.lists)


def source_of_hand_info(root: str, lists: Path | None) -> Source:
    """Return the photos of 11k Hands: those without accessories, as published, or of lists.

    Args:
        root: folder as the user wrote it; every image_path begins with it, as published.
        lists: as in `read_lists`.
    """
    if Path(root).is_file():
        raise UserError(f"not a folder: --input {root}. Give the one with Hands/ and HandInfo.csv")
    listing = Path(root) / "HandInfo.csv"
    hand_info = read_hand_info(listing)
    if lists:
        by_aspect = samples_of_lists(to_samples(hand_info, root), listing, lists)
    else:
        by_aspect = samples_by_aspect(hand_info, root)
    if not any(map(len, by_aspect.values())):
        if lists:
            raise UserError(f"no photo in the list files: --lists {lists}. Give others")
        raise UserError(f"no photo without accessories: {listing}. Add photos")
    return Source(Path(root), listing, by_aspect, split_columns())


def samples_by_aspect(hand_info: pd.DataFrame, root: str) -> dict[str, pd.DataFrame]:
    """Return the photos of `read_hand_info` without accessories as samples, in file order."""
    samples = to_samples(hand_info[hand_info["accessories"] == 0], root)
    return {aspect: samples[samples["aspectOfHand"] == x] for aspect, x in ASPECTS.items()}


def to_samples(hand_info: pd.DataFrame, root: str) -> pd.DataFrame:
    """Return the photos of `read_hand_info` as samples, in file order."""
    names = hand_info["imageName"]
    return hand_info.assign(image_path=f"{root.rstrip('/')}/Hands/" + names, name=names)


def read_lists(folder: Path, aspect: str) -> list[dict[str, tuple[Path, list[str]]]]:
    """Return the list files of every repeat of an aspect: split -> path, photo names.

    Source: github.com/mahmoudnafifi/11K-Hands, gender_classification/get_data.m.
    """
    repeats = list(itertools.takewhile(Path.is_dir, (folder / str(k) for k in itertools.count(1))))
    if not repeats:
        raise UserError(f"no folder {folder / '1'}: --lists {folder}. Give the folder of 1, 2, ...")
    found = []
    for repeat in repeats:
        paths = {
            split: repeat / f"g_imgs_{word}_{LIST_LETTERS[aspect]}.txt"
            for split, word in LIST_NAMES.items()
        }
        try:
            texts = {split: path.read_text(encoding="utf-8") for split, path in paths.items()}
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read a list of photos: {error}. Restore the file") from error
        found.append({split: (path, texts[split].split()) for split, path in paths.items()})
    return found


def samples_of_lists(samples: pd.DataFrame, listing: Path, folder: Path) -> dict[str, pd.DataFrame]:
    """Return the samples of the lists by aspect, each with its split in columns "repeat <k>".

    Args:
        samples: all photos of HandInfo.csv.
        listing: path of HandInfo.csv, for messages.
        folder: of the lists.
    """
    by_aspect = {}
    for aspect in LIST_LETTERS:
        columns = {}
        for k, lists in enumerate(read_lists(folder, aspect), start=1):
            splits = pd.Series(LEFT_OUT, samples.index, dtype=object)
            for split, (path, names) in lists.items():
                unknown = sorted(set(names) - set(samples["name"]))
                if unknown:
                    raise UserError(
                        f"{len(unknown)} of {len(names):,} photos of {path} are not in {listing}"
                        f" (first: {unknown[0]}). Give the complete HandInfo.csv of 11k Hands"
                    )
                splits[samples["name"].isin(names)] = split
            columns[f"repeat {k}"] = splits
        listed = samples.assign(**columns)
        by_aspect[aspect] = listed[(listed[[*columns]] != LEFT_OUT).any(axis=1)]
    return by_aspect


def source_of_attributes(path: Path, protocol: str) -> Source:
    """Return the photos of an attributes file; all are of one aspect."""
    if not path.exists():
        raise UserError(f"not found: --attributes_file {path}. Give <root>/sub_dataset/<name>.csv")
    files = locate(path, protocol)
    if files.aspect in ASPECTS and (files.root / "HandInfo.csv").is_file():
        raise UserError(
            f"{path} is made from HandInfo.csv. Run: python dataset_11k_split.py --input"
            f" {files.root}"
        )
    table = read_csv(path, ("image_path", "id"), "")
    return source_of_table(table, path, files.root)


def source_of_table(table: pd.DataFrame, path: Path, root: Path) -> Source:
    """Return the photos of a table with the columns of an attributes file.

    Args:
        table: as `data.tables.read_csv` returns it.
        path: its attributes file, whose name is the aspect.
        root: of the data set.
    """
    samples = parse_samples(table, path)
    if samples.empty:
        raise UserError(f"no photos: {path}. Add lines")
    columns = [column for column in split_columns() if column in table]
    return Source(root, path, {path.stem: samples}, [*columns, *further_columns(samples)])


def source_of_folders(folder: Path) -> Source:
    """Return the photos in <root>/Hands/<person>/, with the labels of <root>/people.csv."""
    if not folder.is_dir() or folder.absolute().name != "Hands":
        raise UserError(
            f"not a folder called Hands: {folder}. Give <root>/Hands, which holds a folder for"
            " each person"
        )
    root = folder.parent if folder.name else folder.absolute().parent
    if (root / "HandInfo.csv").is_file():
        raise UserError(
            f"{folder} belongs to {root / 'HandInfo.csv'}. Run: python dataset_11k_split.py"
            f" --input {root}"
        )
    paths = list_photos(folder)
    table = pd.DataFrame(
        {"image_path": [p.as_posix() for p in paths], "id": [p.parts[0] for p in paths]}
    )
    if (root / "people.csv").is_file():
        people = read_people(root / "people.csv")
        for one, other, place in (
            (people["id"], table["id"], f"{root / 'people.csv'} names people without a folder"),
            (table["id"], people["id"], f"{folder} has people without labels in people.csv"),
        ):
            unknown = sorted(set(one) - set(other))
            if found := other_spelling(unknown, set(other) - set(one)):
                raise UserError(f"{place}: {found}. Make the names equal")
            if unknown:
                logger.warning("%s: %s", place, ", ".join(unknown))
        table = table.merge(people, on="id", how="left").fillna("")
    table.index += 2  # lines of the CSV
    path = SplitFiles(root, FOLDERS_ASPECT, "paper").attributes
    source = source_of_table(table, path, root)
    check_columns_kept(path, source.columns)
    return source


def list_photos(folder: Path) -> list[Path]:
    """Return <person>/<photo> of every photo in folders of people, sorted."""
    photos: list[Path] = []
    ignored: list[Path] = []
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts):
            continue
        if len(place.parts) == 1 and path.is_dir():
            continue
        is_photo = len(place.parts) == 2 and path.is_file() and is_photo_name(path)
        (photos if is_photo and str(place).isprintable() else ignored).append(place)
    if ignored:
        logger.warning(
            "%s: ignored %d files or folders that are not <person>/<photo> in a format that"
            " is read (first: %r)",
            *(folder, len(ignored), str(ignored[0])),
        )
    if not photos:
        raise UserError(f"no photos: {folder}/<person>/. Make a folder for each person")
    return photos


def check_columns_kept(path: Path, columns: Sequence[str]) -> None:
    """Refuse to overwrite a CSV that has further columns, which somebody added by hand."""
    if not path.is_file():
        return
    lost = [str(column) for column in read_csv(path, (), "") if column not in columns]
    if lost:
        raise UserError(
            f"--folders would delete column {', '.join(lost)}: {path}. Write labels into"
            f" people.csv, or give --attributes_file {path}"
        )


# ----------------------------------------------------------------------------- draws
# A draw gives every photo of an aspect the name of its split, or LEFT_OUT.


def published_order(by_aspect: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the samples as the published split shuffles them: one draw for each aspect.

    Source: github.com/nathanlem1/IGAE-Net, dataset_11k_split.py lines 63-117.
    """
    random = Random(SEED)
    return {
        aspect: samples.iloc[random.choice(len(samples), len(samples), replace=False)]
        for aspect, samples in by_aspect.items()
    }


def draw_paper(samples: pd.DataFrame, random: Random) -> pd.Series:
    """Return the published halves of the samples' order; draws nothing."""
    splits = np.where(np.arange(len(samples)) < len(samples) // 2, "train", "val")
    return pd.Series(splits, samples.index, dtype=object)


def cut(photos: pd.Series, random: Random) -> dict[str, pd.Series]:
    """Return the first 50, the next 20 and the last 30 % of the photos, rounded at random."""
    first, second = (np.array([5, 7]) * len(photos) + random.randint(10)) // 10
    parts = photos.iloc[:first], photos.iloc[first:second], photos.iloc[second:]
    return dict(zip(("train", "val", "test"), parts, strict=True))


def draw_stratified(samples: pd.DataFrame, random: Random) -> pd.Series:
    """Divide each person's photos at random; people with too few photos are in train."""
    splits = pd.Series("train", samples.index, dtype=object)
    for _, photos in samples.groupby("id")["name"]:
        if len(photos) >= LEAST_PHOTOS:
            for split, part in cut(photos.iloc[random.permutation(len(photos))], random).items():
                splits[part.index] = split
    return splits


def draw_burst(samples: pd.DataFrame, random: Random) -> pd.Series:
    """Divide each person's photos in the order of their frame numbers.

    Photos of train and test within `NEAR` numbers of val are left out; val, the smallest block,
    keeps all of its photos. People who then lack a split are in train only.

    Raises:
        UserError: a name has no number.
    """
    numbers_of = frame_numbers(samples["name"])
    unnumbered = samples["name"][numbers_of.isna()]
    if len(unnumbered):
        raise UserError(
            f"{len(unnumbered)} photos have no number in their name (first: {unnumbered.iloc[0]});"
            " --protocol burst needs them to find neighbouring frames. Choose another protocol"
        )
    splits = pd.Series("train", samples.index, dtype=object)
    ordered = numbers_of.sort_values(kind="stable")
    for _, numbers in ordered.groupby(samples["id"][ordered.index]):
        parts = cut(numbers, random)
        first, last = parts["val"].min(), parts["val"].max()
        parts["train"] = parts["train"][parts["train"] < first - NEAR]
        parts["test"] = parts["test"][parts["test"] > last + NEAR]
        if all(len(part) for part in parts.values()):
            splits[numbers.index] = LEFT_OUT
            for split, part in parts.items():
                splits[part.index] = split
    return splits


def draw_disjoint(fold_of_photo: pd.Series, n_folds: int) -> list[pd.Series]:
    """Return the splits of every fold k: people of fold k in test, of fold k + 1 in val."""
    folds = []
    for k in range(n_folds):
        tests, vals = fold_of_photo == k, fold_of_photo == (k + 1) % n_folds
        splits = np.select([tests, vals], ["test", "val"], "train")
        folds.append(pd.Series(splits, fold_of_photo.index, dtype=object))
    return folds


def draw_half(samples: pd.DataFrame, random: Random) -> pd.Series:
    """Divide the people, sorted by id, into halves: train with val (a photo of each), and test.

    Numbers are sorted by value. On 11k Hands the last training ids are the published ones: 1050
    (dorsal right), 1037 (dorsal left), 1051 (palmar right), 1042 (palmar left). Somebody with a
    single photo has none in val.

    Source: github.com/nathanlem1/MBA-Net, prepare_train_val_test_11k_r_l.py.
    """
    people = sorted(set(samples["id"]), key=lambda x: (int(x) if x.isdecimal() else math.inf, x))
    first_half = samples["id"].isin(people[: math.ceil(len(people) / 2)])
    splits = pd.Series(np.where(first_half, "train", "test"), samples.index, dtype=object)
    splits[one_photo_each(samples[first_half], random)] = "val"
    return splits


def one_photo_each(samples: pd.DataFrame, random: Random) -> pd.Index:
    """Return the index of a random photo of every person with several."""
    shuffled = samples.iloc[random.permutation(len(samples))]
    return shuffled[shuffled["id"].duplicated(keep=False)].drop_duplicates("id").index


def draw_lists(samples: pd.DataFrame, random: Random) -> list[pd.Series]:
    """Return the splits of every repeat: its lists, and a photo of each training person in val.

    Training photos of people in test are left out: to the published lists, the id "1200000 " with a
    stray blank is another person.

    Args:
        samples: as `samples_of_lists` returns them.
        random: of the draw.
    """
    folds = []
    for column in samples.filter(regex="^repeat "):
        splits = samples[column].copy()
        tested = samples["id"].isin(samples["id"][splits == "test"])
        both = samples["name"][tested & (splits == "train")]
        if len(both):
            logger.warning(
                "%s: left out %d training photos of people in test (first: %s)",
                *(column, len(both), both.iloc[0]),
            )
        splits[both.index] = LEFT_OUT
        splits[one_photo_each(samples[splits == "train"], random)] = "val"
        folds.append(splits)
    return folds


class Deal(NamedTuple):
    """An assignment of people to folds."""

    imbalance: tuple[int, int]  # largest difference of folds: people of a gender, photos
    fold_of: dict[str, int]  # id -> fold from 0


def deal(people: pd.DataFrame, n_folds: int) -> Deal:
    """Assign each person to the fold with the fewest similar people.

    That is the fewest of the same age group (folds then differ by at most one), then of these
    with photos of the same aspects, then of the same gender, then the fewest photos.

    Args:
        people: indexed by id; columns age_group, aspects, gender, photos; rare age groups first.
        n_folds: number of folds.
    """
    folds: list[Counter[Any]] = [Counter() for _ in range(n_folds)]
    fold_of = {}
    for person, group, aspects, gender, photos in people[
        ["age_group", "aspects", "gender", "photos"]
    ].itertuples():
        keys: list[Any] = [("age", group), ("aspects", group, aspects), ("gender", gender)]
        k = min(range(n_folds), key=lambda k: [folds[k][key] for key in (*keys, "photos")])
        folds[k].update({**dict.fromkeys(keys, 1), "photos": int(photos)})
        fold_of[str(person)] = k

    def spread(key: Any) -> int:
        return max(fold[key] for fold in folds) - min(fold[key] for fold in folds)

    genders = max(spread(("gender", gender)) for gender in set(people["gender"]))
    return Deal((genders, spread("photos")), fold_of)


def people_to_folds(samples: pd.DataFrame, n_folds: int, seed: int) -> dict[str, int]:
    """Return everybody's fold, the same for all aspects: the most balanced of `N_DEALS` deals.

    scikit-learn's StratifiedGroupKFold balances photos: on 11k Hands its folds differ by 3 people
    of a gender or age group, these by 1.

    Args:
        samples: of all aspects, with the column aspect.
        n_folds: number of folds.
        seed: of the deals.

    Raises:
        UserError: there are fewer people than folds.
    """
    people = (
        samples.assign(age_group=class_names(samples, "age"))
        .groupby("id")
        .agg(
            age_group=("age_group", "first"),
            gender=("gender", "first"),
            photos=("name", "size"),
            aspects=("aspect", lambda aspects: tuple(sorted(set(aspects)))),
        )
    )
    if len(people) < n_folds:
        lower = "Lower --folds or add people" if len(people) >= 3 else "Add people"
        raise UserError(f"too few people for {n_folds} folds: {len(people)}. {lower}")
    people["rarity"] = people.groupby("age_group")["photos"].transform("size")
    random = Random(seed)
    deals = []
    for _ in range(N_DEALS):
        shuffled = people.iloc[random.permutation(len(people))]
        deals.append(deal(shuffled.sort_values("rarity", kind="stable"), n_folds))
    return min(deals, key=lambda dealt: dealt.imbalance).fold_of


# Protocol -> its draw, of protocols that have no folds.
DRAWS = {
    "paper": draw_paper,
    "stratified": draw_stratified,
    "burst": draw_burst,
    "half": draw_half,
}


def draw_splits(
    by_aspect: dict[str, pd.DataFrame], protocol: str, *, n_folds: int, seed: int
) -> dict[str, AspectSplit]:
    """Return the drawn splits of every aspect.

    Args:
        by_aspect: samples in the order of their file.
        protocol: of `PROTOCOLS`.
        n_folds: of a protocol with folds.
        seed: of the draw.
    """
    ordered, random = published_order(by_aspect), Random(seed)
    if protocol == "subject-disjoint":
        everyone = pd.concat([x.assign(aspect=aspect) for aspect, x in ordered.items()])
        fold_of = people_to_folds(everyone, n_folds, seed)
        drawn = {a: draw_disjoint(x["id"].map(fold_of), n_folds) for a, x in ordered.items()}
    elif protocol == "lists":
        drawn = {a: draw_lists(samples, random) for a, samples in ordered.items()}
    else:
        drawn = {a: [DRAWS[protocol](samples, random)] for a, samples in ordered.items()}
    names = PROTOCOLS[protocol].splits
    return {
        aspect: AspectSplit(
            samples, [{name: samples[splits == name] for name in names} for splits in drawn[aspect]]
        )
        for aspect, samples in ordered.items()
    }


def without_missing(
    splits: dict[str, AspectSplit], photos: Path, listing: Path
) -> dict[str, AspectSplit]:
    """Return the splits without photos that are not in the folder; nobody changes splits."""
    everything = pd.concat([split.samples for split in splits.values()])
    missing = missing_photos(everything, photos)
    check_spelling(missing, everything, photos, listing)
    if len(missing) == len(everything):
        raise UserError(f"none of {len(everything)} photos: {photos}. Copy the photos there")
    logger.info("--skip_missing left out %d of %d photos", len(missing), len(everything))

    def existing(samples: pd.DataFrame) -> pd.DataFrame:
        return samples[~samples["name"].isin(missing)]

    return {
        aspect: AspectSplit(
            existing(samples),
            [{name: existing(part) for name, part in parts.items()} for parts in folds],
        )
        for aspect, (samples, folds) in splits.items()
    }


def check_not_empty(splits: dict[str, AspectSplit], protocol: str) -> None:
    """Warn of an aspect with photos and an empty split; refuse if all aspects have one."""
    problems = {}
    for aspect, fold, samples, parts in each_fold(splits):
        empty = [name for name, part in parts.items() if part.empty]
        if len(samples) and empty and aspect not in problems:
            place = f"{aspect}, fold {fold}" if PROTOCOLS[protocol].folds > 1 else aspect
            problems[aspect] = (
                f"too few photos for --protocol {protocol}: {place} has no {' and no '.join(empty)}"
                f" photo. It needs {NEEDS[protocol]}"
            )
    if len(problems) == sum(len(split.samples) > 0 for split in splits.values()):
        raise UserError(f"{next(iter(problems.values()))}. Or choose another protocol")
    for problem in problems.values():
        logger.warning("%s", problem)


def draw_galleries(samples: pd.DataFrame, random: Random) -> pd.DataFrame:
    """Return `N_GALLERIES` draws of one photo of every person: columns draw, image_path.

    The person's other photos are the queries of that draw.
    """
    draws = [
        samples.iloc[random.permutation(len(samples))].drop_duplicates("id").assign(draw=draw)
        for draw in range(N_GALLERIES)
    ]
    return pd.concat(draws)[["draw", "image_path"]]


# ----------------------------------------------------------------------------- statistics


def each_fold(
    splits: dict[str, AspectSplit],
) -> Iterator[tuple[str, int, pd.DataFrame, dict[str, pd.DataFrame]]]:
    """Yield aspect, fold, all samples of the aspect, and the fold's splits."""
    for aspect, (samples, folds) in splits.items():
        for fold, parts in enumerate(folds):
            yield aspect, fold, samples, parts


def people_and_photos(samples: pd.DataFrame) -> str:
    """Return the numbers of people and (in brackets) photos."""
    return f"{samples['id'].nunique()} ({len(samples)})"


def summarize(splits: dict[str, AspectSplit]) -> pd.DataFrame:
    """Return a line for each aspect and fold: photos, people, split sizes, unseen people."""
    lines = []
    for aspect, fold, samples, parts in each_fold(splits):
        per_person = samples["id"].value_counts()
        spread = (per_person.min(), per_person.median(), per_person.max())
        train, reported = parts["train"], list(parts)[-1]
        others = pd.concat([part["id"] for name, part in parts.items() if name != "train"])
        train_only = train[~train["id"].isin(others)]
        unseen = parts[reported][~parts[reported]["id"].isin(train["id"])]
        lines.append(
            {
                "aspect": aspect,
                "fold": fold,
                "photos": len(samples),
                "people": len(per_person),
                "per person (min-median-max)": "-".join(f"{n:g}" for n in spread if len(samples)),
                "/".join(parts): "/".join(str(len(part)) for part in parts.values()),
                LEFT_OUT: len(samples) - sum(map(len, parts.values())),
                "only in train: people (photos)": people_and_photos(train_only),
                f"{reported}, not in train: people (photos)": people_and_photos(unseen),
            }
        )
    return pd.DataFrame(lines).set_index(["aspect", "fold"])


def count_groups(samples: pd.DataFrame) -> dict[str, int]:
    """Return people_<class>, photos_<class> for the classes of tasks, and skin colours."""
    groups = [
        (pd.Series(class_names(samples, name), samples.index, dtype=object), task.classes)
        for name, task in TASKS.items()
        if task.classes
    ]
    if "skinColor" in samples and "skinColor" not in split_columns():
        groups.append((samples["skinColor"], SKIN_COLORS))
    counts = {}
    for found, classes in groups:
        for value in classes:
            chosen = samples[found == value]
            counts[f"people_{value}"] = chosen["id"].nunique()
            counts[f"photos_{value}"] = len(chosen)
    return counts


def leakage_table(splits: dict[str, AspectSplit], digests: dict[str, str]) -> pd.DataFrame:
    """Return a line for each aspect, fold and split.

    Columns: aspect, fold, split, those of `leakage` (empty for train), people, photos,
    and those of `count_groups`.
    """
    lines = []
    for aspect, fold, _, parts in each_fold(splits):
        for name, samples in parts.items():
            leaked = {} if name == "train" else leakage(samples, parts["train"], digests)
            line: dict[str, Any] = {"aspect": aspect, "fold": fold, "split": name, **leaked}
            line |= {"people": samples["id"].nunique(), "photos": len(samples)}
            lines.append(line | count_groups(samples))
    leading = ["aspect", "fold", "split", *LEAKAGE]
    table = pd.DataFrame(lines)
    return table[[*leading, *table.columns.difference(leading, sort=False)]]


def fold_balance(splits: dict[str, AspectSplit], n_folds: int) -> pd.DataFrame:
    """Return the numbers of people in the test folds, n/n/..., by aspect and class.

    A star marks folds that differ by more than one person, or a fold without one.
    """
    tested = pd.concat(
        parts["test"].assign(aspect=name, fold=fold)
        for aspect, fold, _, parts in each_fold(splits)
        for name in ("all aspects", aspect)
    ).drop_duplicates(["aspect", "fold", "id"])
    lines: dict[str, dict[str, str]] = {}
    for name, task in TASKS.items():
        if not task.classes or not is_known(tested[task.column]).any():
            continue
        classes = np.array(class_names(tested, name), dtype=object)
        for aspect, rows in tested.assign(classes=classes).groupby("aspect"):
            counts = pd.crosstab(rows["classes"], rows["fold"])
            counts = counts.reindex(pd.Index(task.classes), columns=range(n_folds), fill_value=0)
            for value, people in counts.iterrows():
                uneven = people.max() - people.min() > 1 or people.min() == 0
                text = "/".join(map(str, people)) + ("*" if uneven else "")
                lines.setdefault(str(aspect), {})[str(value)] = text
    return pd.DataFrame.from_dict(lines, orient="index")


# ----------------------------------------------------------------------------- output


def split_tables(
    splits: dict[str, AspectSplit], source: Source, protocol: str, seed: int
) -> Iterator[tuple[Path, pd.DataFrame]]:
    """Yield the split, gallery and distractor CSVs of a protocol and their content."""
    galleries = {}
    for place, (aspect, (_, folds)) in enumerate(splits.items()):
        for fold, parts in enumerate(folds):
            files = SplitFiles(source.root, aspect, protocol, fold)
            for name, part in parts.items():
                yield files.split(name), with_whole_years(part[source.columns])
            if "test" in PROTOCOLS[protocol].unseen:
                galleries[files] = draw_galleries(parts["test"], Random([seed, place, fold]))
    for files, gallery in galleries.items():
        yield files.gallery, gallery
        others = [other for aspect, other in galleries.items() if aspect != files]
        if protocol == "half" and others:
            yield files.distractors, pd.concat(others).sort_values("draw", kind="stable")


def attributes_tables(
    splits: dict[str, AspectSplit], source: Source, config: SplitConfig
) -> Iterator[tuple[Path, pd.DataFrame]]:
    """Yield the attributes files and their content; one that was given is not written."""
    for aspect, split in splits.items():
        if config.attributes_file is None:
            samples = source.by_aspect[aspect] if config.folders else split.samples
            path = SplitFiles(source.root, aspect, config.protocol).attributes
            yield path, with_whole_years(samples[source.columns])


def keep_other_aspects(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a leakage table after the lines of other aspects that `path` has."""
    if not path.is_file():
        return table
    former = read_csv(path, ("aspect",), "")
    former = former[~former["aspect"].isin(table["aspect"])]
    return pd.concat([former, table]) if len(former) else table


def check_no_other_folds(paths: Iterable[Path]) -> None:
    """Refuse to leave folds of a former split with more folds beside those of `paths`."""
    folders = {path.parent for path in paths if path.parent.name.startswith("fold_")}
    for aspect in sorted({folder.parent for folder in folders}):
        others = sorted(set(aspect.glob("fold_*")) - folders)
        if others:
            raise UserError(
                f"a former split with more folds exists: {others[0]}. Delete {aspect.parent}"
            )


def write_csvs(tables: Iterable[tuple[Path, pd.DataFrame]]) -> None:
    """Write all tables; no file is replaced before all are written.

    Line ends are CRLF, as published.
    """
    with ExitStack() as stack:
        for path, table in tables:
            temporary = stack.enter_context(atomic_write(path))
            table.to_csv(temporary, index=False, lineterminator="\r\n")


def print_splits(splits: dict[str, AspectSplit], leaked: pd.DataFrame, protocol: str) -> None:
    """Print the numbers of photos and people, leakage, and group sizes."""
    *_, reported = PROTOCOLS[protocol].splits
    print(summarize(splits).to_string())
    shares = leaked[leaked["split"] == reported].set_index(["aspect", "fold"])
    shares = shares[list(LEAKAGE)] * 100
    print(
        f"\n% of {reported} photos with the same person, a frame within n numbers, or the same"
        " file in train:"
    )
    print(shares.to_string(float_format="%.1f", na_rep="-"))

    print("\npeople/photos in each split:")
    counts = leaked.set_index(["aspect", "fold", "split"]).astype(str)
    people, photos = counts.filter(regex="^people"), counts.filter(regex="^photos")
    cells = (people + "/" + photos.to_numpy()).loc[:, (people != "0").any()]
    print(cells.rename(columns=lambda name: name.removeprefix("people_")).to_string())
    balance = pd.DataFrame()
    if PROTOCOLS[protocol].folds > 1:
        balance = fold_balance(splits, leaked["fold"].max() + 1)
    if len(balance):
        print("\npeople in each test fold (*: not balanced):")
        print(balance.to_string())


def warn_of_unnumbered(samples: pd.DataFrame) -> None:
    """Log how many photos have no frame number."""
    unnumbered = samples["name"][frame_numbers(samples["name"]).isna()]
    if len(unnumbered):
        logger.warning(
            "%d photos have no number in their name (first: %s): neighbouring frames among them are"
            " unknown, and the leakage table ignores them",
            *(len(unnumbered), unnumbered.iloc[0]),
        )


def warn_of_identical(splits: dict[str, AspectSplit], photos: Path) -> dict[str, str]:
    """Log photos of different splits that are the same file; return `duplicate_digests` of all."""
    digests: dict[str, str] = {}
    for aspect, fold, samples, parts in each_fold(splits):
        if not fold:
            digests |= duplicate_digests(samples["name"], photos)
        names = [part["name"][part["name"].isin(digests)] for part in parts.values()]
        pairs = [
            pair
            for one, other in itertools.combinations(names, 2)
            for pair in itertools.product(one, other)
            if digests[pair[0]] == digests[pair[1]]
        ]
        if pairs:
            logger.warning(
                "%s, fold %s: %d pairs of identical photos are in two splits (first: %s, %s)",
                *(aspect, fold, len(pairs), *pairs[0]),
            )
    return digests


def print_train_command(splits: dict[str, AspectSplit], root: Path, protocol: str) -> None:
    """Print how to train on the first aspect with photos in train and val."""
    for aspect, (_, folds) in splits.items():
        if len(folds[0]["train"]) and len(folds[0]["val"]):
            attributes = SplitFiles(root, aspect, "paper").attributes
            option = "" if protocol == "paper" else f" --protocol {protocol}"
            print(f"train: python train.py --attributes_file {attributes}{option}")
            return


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    reasons = [
        f"\n{name}\n  " + protocol.reason.replace("\n", "\n  ")
        for name, protocol in PROTOCOLS.items()
    ]
    parser = build_parser(SplitConfig, f"{__doc__}{''.join(reasons)}")
    config = build_config(parser, SplitConfig, vars(parser.parse_args(argv)))
    setup_logging()

    source = read_source(config)
    seed = SEED if config.seed is None else config.seed
    n_folds = config.folds or PROTOCOLS[config.protocol].folds
    everything = pd.concat(source.by_aspect.values())
    warn_of_unnumbered(everything)
    warn_of_similar_ids(everything, source.listing)
    splits = draw_splits(source.by_aspect, config.protocol, n_folds=n_folds, seed=seed)
    if config.skip_missing:
        splits = without_missing(splits, source.photos, source.listing)
    else:
        check_photos(everything, source.photos, source.listing)
    check_not_empty(splits, config.protocol)

    files = SplitFiles(source.root, "", config.protocol)
    leaked = leakage_table(splits, warn_of_identical(splits, source.photos))
    tables = list(split_tables(splits, source, config.protocol, seed))
    check_no_other_folds(path for path, _ in tables)
    tables += attributes_tables(splits, source, config)
    all_lines = leaked if source.is_11k else keep_other_aspects(leaked, files.leakage)
    tables.append((files.leakage, all_lines))
    write_csvs(tables)
    print_splits(splits, leaked, config.protocol)
    print(f"wrote {len(tables)} files below {source.root}")
    print_train_command(splits, source.root, config.protocol)
    return 0


if __name__ == "__main__":
    sys.exit(main())
