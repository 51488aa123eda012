"""Decide who goes where: HandInfo.csv to one CSV per hand aspect and the rows of its splits.

    python dataset_11k_split.py --input ./11k --protocol subject-disjoint

writes <input>/sub_dataset/<aspect>.csv, the same for every protocol, and, where <drawn> is
<input>/trainval for `paper`, <input>/trainval/<protocol> for the others:

<drawn>/<aspect>/{train,val}.csv                   of `paper`
<drawn>/<aspect>/fold_<k>/{train,val,test}.csv     of the others, folds counted from 0
<drawn>/<aspect>/fold_<k>/gallery.csv              of `subject-disjoint`: draw, image_path
<drawn>/leakage.csv                                what the sides have in common, who is on them

It prints how many photos and people that makes. The protocols and their reasons:
"""

from __future__ import annotations

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
    LEAK_FRAMES,
    PROTOCOLS,
    SplitFiles,
    check_photos,
    frame_numbers,
    leaks,
    missing_photos,
)
from data.tables import read_hand_info
from dataset_11k import AGE_GROUPS, ASPECTS, GENDERS, SKIN_COLORS, SPLIT_COLUMNS, age_group
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

SEED = 42  # of `paper`, where another would be another split than the published one

LEAST_PHOTOS = 5  # so that a fifth of them is a photo

NEAR = 2  # numbers that frames of two sides are more than apart in `burst`

N_DEALS = 100  # of people to folds, to choose the best balanced of

N_GALLERIES = 10  # draws, as MBA-Net has them (arXiv 2108.02234)

LEFT_OUT = "left out"  # the side of photos that are in no split

GROUPS: dict[str, Sequence[str]] = {
    "gender": GENDERS,
    "age_group": tuple(AGE_GROUPS),
    "skinColor": SKIN_COLORS,
}

Random = np.random.RandomState  # its stream is the same in every version of NumPy


@dataclass(frozen=True)
class SplitConfig:
    """What dataset_11k_split.py is asked for."""

    input: str = flag("./11k", "folder that holds Hands/ and HandInfo.csv", metavar="DIR")
    protocol: str = flag("paper", "who goes where, see above", choices=tuple(PROTOCOLS))
    seed: int | None = flag(None, f"of the draw (default: {SEED}, which it always is for paper)")
    folds: int | None = flag(
        None, "parts to deal the people to (default: 5, only with subject-disjoint)"
    )
    skip_missing: bool = flag(False, "leave out photos that are listed but not in Hands/")

    def __post_init__(self) -> None:
        """Refuse values out of range, and flags that would have no effect."""
        if self.protocol == "paper" and self.seed is not None:
            raise ValueError(
                f"--seed: of --protocol paper it is {SEED}, as published; leave it out"
            )
        if self.folds is not None and not PROTOCOLS[self.protocol].disjoint:
            raise ValueError(f"--folds: --protocol {self.protocol} has one; leave it out")
        if self.folds is not None and self.folds < 3:
            raise ValueError(f"--folds is {self.folds}, expected 3 or more: train, val and test")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed is {self.seed}, expected 0 to {2**32 - 1}")
        try:
            self.input.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"--input is {self.input!r}, which the CSVs cannot hold as they are UTF-8; rename"
                " the folder"
            ) from None


class AspectSplit(NamedTuple):
    """What was drawn for an aspect."""

    rows: pd.DataFrame  # all, in the published order
    folds: list[dict[str, pd.DataFrame]]  # split -> its rows, in the same order


# ----------------------------------------------------------------------------- rows


def rows_by_aspect(hand_info: pd.DataFrame, input_folder: str) -> dict[str, pd.DataFrame]:
    """Return the photos without accessories, in file order, as the columns of a split CSV.

    Besides: name (of the photo), number (`frame_numbers`), age_group, and those of HandInfo.csv.

    Args:
        hand_info: as `read_hand_info` returns it.
        input_folder: the data root as the user wrote it; image_path begins with it, as published.
    """
    plain = hand_info[hand_info["accessories"] == 0]
    rows = plain.assign(
        image_path=f"{input_folder.rstrip('/')}/Hands/" + plain["imageName"],
        name=plain["imageName"],
        number=frame_numbers(plain["imageName"]),
        age_group=plain["age"].map(age_group),
    )
    return {aspect: rows[rows["aspectOfHand"] == value] for aspect, value in ASPECTS.items()}


def published_order(by_aspect: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the rows as the published split shuffles them: a draw per aspect, in that order.

    Source: github.com/nathanlem1/IGAE-Net, dataset_11k_split.py lines 63-117.
    """
    random = Random(SEED)
    return {
        aspect: rows.iloc[random.choice(len(rows), len(rows), replace=False)]
        for aspect, rows in by_aspect.items()
    }


# ----------------------------------------------------------------------------- sides
# A side is the name of a split for every photo of an aspect, or LEFT_OUT.


def paper_sides(rows: pd.DataFrame, random: Random) -> pd.Series:
    """Return the published sides, 50/50 in the rows' order; nothing is drawn."""
    sides = np.where(np.arange(len(rows)) < len(rows) // 2, "train", "val")
    return pd.Series(sides, rows.index, dtype=object)


def cut(photos: pd.Series, random: Random) -> dict[str, pd.Series]:
    """Return the first 50, the next 20 and the last 30 % of the photos.

    Shares are rounded up or down at random, so that they hold on average: each part is less than
    one photo from its share.
    """
    first, second = (np.array([5, 7]) * len(photos) + random.randint(10)) // 10
    parts = photos.iloc[:first], photos.iloc[first:second], photos.iloc[second:]
    return dict(zip(("train", "val", "test"), parts, strict=True))


def stratified_sides(rows: pd.DataFrame, random: Random) -> pd.Series:
    """Return sides that cut every person's photos at random; few photos all train."""
    sides = pd.Series("train", rows.index, dtype=object)
    for _, photos in rows.groupby("id")["name"]:
        if len(photos) >= LEAST_PHOTOS:
            for side, part in cut(photos.iloc[random.permutation(len(photos))], random).items():
                sides[part.index] = side
    return sides


def burst_sides(rows: pd.DataFrame, random: Random) -> pd.Series:
    """Return sides that cut every person's photos in the order of their numbers.

    Photos of train and test that are not more than `NEAR` numbers from val are left out: val is
    the smallest block and could not spare them. Who is then missing on a side trains only.

    Raises:
        UserError: a name has no number.
    """
    unnumbered = rows["name"][rows["number"].isna()]
    if len(unnumbered):
        raise UserError(
            f"{len(unnumbered)} photos have no number in their name (first: {unnumbered.iloc[0]}),"
            " so --protocol burst cannot tell neighbouring frames; choose another"
        )
    sides = pd.Series("train", rows.index, dtype=object)
    for _, numbers in rows.sort_values("number", kind="stable").groupby("id")["number"]:
        parts = cut(numbers, random)
        first, last = parts["val"].min(), parts["val"].max()
        parts["train"] = parts["train"][parts["train"] < first - NEAR]
        parts["test"] = parts["test"][parts["test"] > last + NEAR]
        if all(len(part) for part in parts.values()):
            sides[numbers.index] = LEFT_OUT
            for side, part in parts.items():
                sides[part.index] = side
    return sides


def disjoint_sides(fold_of_photo: pd.Series, n_folds: int) -> list[pd.Series]:
    """Return the sides of every fold k: the people of k are test, those of the next are val."""
    sides = []
    for k in range(n_folds):
        tests, vals = fold_of_photo == k, fold_of_photo == (k + 1) % n_folds
        side = np.select([tests, vals], ["test", "val"], "train")
        sides.append(pd.Series(side, fold_of_photo.index, dtype=object))
    return sides


class Deal(NamedTuple):
    """People dealt to folds."""

    imbalance: tuple[int, int]  # how far folds differ in people of a gender, then in photos
    fold_of: dict[str, int]  # id -> fold from 0


def deal(people: pd.DataFrame, n_folds: int) -> Deal:
    """Deal each of `people` to the fold that has fewest like them.

    That is fewest of their age group (so folds differ by one at most), then of these with photos of
    the same aspects, then of their gender, then photos.

    Args:
        people: index id; columns age_group, alike, gender, photos; rare age groups come first.
        n_folds: their number.
    """
    folds: list[Counter[str]] = [Counter() for _ in range(n_folds)]
    fold_of = {}
    kinds = people[["age_group", "alike", "gender"]].itertuples(index=False)
    for person, photos, like in zip(people.index, people["photos"], kinds, strict=True):
        k = min(range(n_folds), key=lambda k: [folds[k][x] for x in (*like, "photos")])
        folds[k].update({**dict.fromkeys(like, 1), "photos": int(photos)})
        fold_of[str(person)] = k

    def spread(key: str) -> int:
        return max(fold[key] for fold in folds) - min(fold[key] for fold in folds)

    return Deal((max(map(spread, GENDERS)), spread("photos")), fold_of)


def people_to_folds(rows: pd.DataFrame, n_folds: int, seed: int) -> dict[str, int]:
    """Return everybody's fold, the same for all aspects: the best balanced of `N_DEALS` deals.

    scikit-learn's StratifiedGroupKFold balances photos: on 11k Hands its folds differ by 3 people
    of a gender or age group, these by 1.

    Raises:
        UserError: there are fewer people than folds.
    """
    people = rows.groupby("id").agg(
        age_group=("age_group", "first"),
        gender=("gender", "first"),
        photos=("name", "size"),
        alike=("aspectOfHand", lambda aspects: "+".join(sorted(set(aspects)))),
    )
    if len(people) < n_folds:
        raise UserError(f"--folds is {n_folds}, but there are only {len(people)} people; lower it")
    people["alike"] = people["age_group"] + " " + people["alike"]
    people["rarity"] = people.groupby("age_group")["photos"].transform("size")
    random = Random(seed)
    deals = []
    for _ in range(N_DEALS):
        shuffled = people.iloc[random.permutation(len(people))]
        deals.append(deal(shuffled.sort_values("rarity", kind="stable"), n_folds))
    return min(deals, key=lambda dealt: dealt.imbalance).fold_of


def draw_sides(
    ordered: dict[str, pd.DataFrame], protocol: str, *, n_folds: int, seed: int
) -> dict[str, list[pd.Series]]:
    """Return, for every aspect and fold, the side of each photo.

    Args:
        ordered: the aspects' rows as `published_order` returns them.
        protocol: of `PROTOCOLS`.
        n_folds: of a disjoint protocol.
        seed: of the draw.
    """
    if PROTOCOLS[protocol].disjoint:
        fold_of = people_to_folds(pd.concat(ordered.values()), n_folds, seed)
        return {a: disjoint_sides(rows["id"].map(fold_of), n_folds) for a, rows in ordered.items()}
    sides = {"paper": paper_sides, "stratified": stratified_sides, "burst": burst_sides}[protocol]
    random = Random(seed)
    return {aspect: [sides(rows, random)] for aspect, rows in ordered.items()}


def split_rows(
    by_aspect: dict[str, pd.DataFrame], protocol: str, *, n_folds: int, seed: int
) -> dict[str, AspectSplit]:
    """Return who goes where; see `draw_sides`."""
    ordered = published_order(by_aspect)
    drawn = draw_sides(ordered, protocol, n_folds=n_folds, seed=seed)
    splits = PROTOCOLS[protocol].splits
    return {
        aspect: AspectSplit(
            rows, [{name: rows[sides == name] for name in splits} for sides in drawn[aspect]]
        )
        for aspect, rows in ordered.items()
    }


def without_missing(splits: dict[str, AspectSplit], photos: Path) -> dict[str, AspectSplit]:
    """Return the splits without the rows whose photo is not in the folder; sides stay as drawn."""
    every_row = pd.concat([split.rows for split in splits.values()])
    missing = missing_photos(every_row, photos)
    if len(missing) == len(every_row):
        raise UserError(f"none of the {len(every_row)} photos that are listed is in {photos}")
    logger.info("--skip_missing left out %d of %d photos", len(missing), len(every_row))

    def there(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[~rows["name"].isin(missing)]

    return {
        aspect: AspectSplit(
            there(rows), [{name: there(part) for name, part in parts.items()} for parts in folds]
        )
        for aspect, (rows, folds) in splits.items()
    }


def gallery_draws(rows: pd.DataFrame, random: Random) -> pd.DataFrame:
    """Return `N_GALLERIES` times one photo of every person: columns draw (from 0), image_path.

    The person's other photos are that draw's queries.
    """
    draws = [
        rows.iloc[random.permutation(len(rows))].drop_duplicates("id").assign(draw=draw)
        for draw in range(N_GALLERIES)
    ]
    return pd.concat(draws)[["draw", "image_path"]]


# ----------------------------------------------------------------------------- what that makes


def each_fold(
    splits: dict[str, AspectSplit],
) -> Iterator[tuple[str, int, pd.DataFrame, dict[str, pd.DataFrame]]]:
    """Yield aspect, fold, all rows of the aspect, and the fold's splits."""
    for aspect, (rows, folds) in splits.items():
        for fold, parts in enumerate(folds):
            yield aspect, fold, rows, parts


def people_and_images(rows: pd.DataFrame) -> str:
    """Return their numbers as text."""
    return f"{rows['id'].nunique()} ({len(rows)})"


def split_summary(splits: dict[str, AspectSplit]) -> pd.DataFrame:
    """Return one line per aspect and fold: photos, people, sides, who is on one side only."""
    lines = []
    for aspect, fold, rows, parts in each_fold(splits):
        per_person = rows["id"].value_counts()
        spread = (per_person.min(), per_person.median(), per_person.max())
        train, reported = parts["train"], list(parts)[-1]
        others = pd.concat([part["id"] for name, part in parts.items() if name != "train"])
        train_only = train[~train["id"].isin(others)]
        strangers = parts[reported][~parts[reported]["id"].isin(train["id"])]
        lines.append(
            {
                "aspect": aspect,
                "fold": fold,
                "images": len(rows),
                "people": len(per_person),
                "per person (min-median-max)": "-".join(f"{n:g}" for n in spread if len(rows)),
                "/".join(parts): "/".join(str(len(part)) for part in parts.values()),
                LEFT_OUT: len(rows) - sum(map(len, parts.values())),
                "train only: people (images)": people_and_images(train_only),
                f"{reported}, not train: people (images)": people_and_images(strangers),
            }
        )
    return pd.DataFrame(lines).set_index(["aspect", "fold"])


def leakage_table(splits: dict[str, AspectSplit]) -> pd.DataFrame:
    """Return one line per aspect, fold and side: `leaks`, and the people and photos of each group.

    Columns: aspect, fold, side, those of `leaks` (empty for train), people, photos, and
    people_<value>, photos_<value> for every value of `GROUPS`.
    """
    lines = []
    for aspect, fold, _, parts in each_fold(splits):
        for side, rows in parts.items():
            leaked = {} if side == "train" else leaks(rows, parts["train"])
            line: dict[str, Any] = {"aspect": aspect, "fold": fold, "side": side, **leaked}
            line |= {"people": rows["id"].nunique(), "photos": len(rows)}
            for column, values in GROUPS.items():
                for value in values:
                    chosen = rows[rows[column] == value]
                    line[f"people_{value}"] = chosen["id"].nunique()
                    line[f"photos_{value}"] = len(chosen)
            lines.append(line)
    leading = ["aspect", "fold", "side", "person_in_train", *(f"within_{n}" for n in LEAK_FRAMES)]
    table = pd.DataFrame(lines)
    return table[[*leading, *table.columns.difference(leading, sort=False)]]


def fold_balance(splits: dict[str, AspectSplit], n_folds: int) -> pd.DataFrame:
    """Return the people of each test fold, n/n/..., per aspect and group.

    A star marks what could not be balanced: folds that differ by more than one, or a fold without.
    """
    tested = pd.concat(
        parts["test"].assign(aspect=name, fold=fold)
        for aspect, fold, _, parts in each_fold(splits)
        for name in ("all aspects", aspect)
    ).drop_duplicates(["aspect", "id"])
    lines: dict[str, dict[str, str]] = {}
    for aspect, rows in tested.groupby("aspect"):
        for column in ("gender", "age_group"):
            counts = pd.crosstab(rows[column], rows["fold"])
            counts = counts.reindex(pd.Index(GROUPS[column]), columns=range(n_folds), fill_value=0)
            for value, people in counts.iterrows():
                uneven = people.max() - people.min() > 1 or people.min() == 0
                text = "/".join(map(str, people)) + ("*" if uneven else "")
                lines.setdefault(str(aspect), {})[str(value)] = text
    return pd.DataFrame.from_dict(lines, orient="index")


# ----------------------------------------------------------------------------- files and print


def split_tables(
    splits: dict[str, AspectSplit], root: Path, protocol: str, seed: int
) -> Iterator[tuple[Path, pd.DataFrame]]:
    """Yield the CSVs of a protocol and what they hold."""
    columns = list(SPLIT_COLUMNS)
    for place, (aspect, (rows, folds)) in enumerate(splits.items()):
        yield SplitFiles(root, aspect, protocol).attributes, rows[columns]
        for fold, parts in enumerate(folds):
            files = SplitFiles(root, aspect, protocol, fold)
            yield from ((files.split(name), part[columns]) for name, part in parts.items())
            if PROTOCOLS[protocol].disjoint:
                yield files.gallery, gallery_draws(parts["test"], Random([seed, place, fold]))


def check_no_other_folds(paths: Iterable[Path]) -> None:
    """Refuse to leave folds of a former split, into more of them, beside those of `paths`."""
    folders = {path.parent for path in paths if path.parent.name.startswith("fold_")}
    for aspect in sorted({folder.parent for folder in folders}):
        others = sorted(set(aspect.glob("fold_*")) - folders)
        if others:
            raise UserError(f"{others[0]} is of a split into more folds; delete {aspect.parent}")


def write_csvs(tables: Iterable[tuple[Path, pd.DataFrame]]) -> None:
    """Write every table; no file is replaced before all are written.

    Lines end as the published script's do (CRLF), so that its files and these are equal.
    """
    with ExitStack() as stack:
        for path, table in tables:
            temporary = stack.enter_context(atomic_write(path))
            table.to_csv(temporary, index=False, lineterminator="\r\n")


def print_split(splits: dict[str, AspectSplit], leakage: pd.DataFrame, protocol: str) -> None:
    """Print what was drawn: counts, leakage, and who is on the sides."""
    *_, reported = PROTOCOLS[protocol].splits
    print(split_summary(splits).to_string())
    shares = leakage[leakage["side"] == reported].set_index(["aspect", "fold"])
    shares = shares[["person_in_train", *(f"within_{n}" for n in LEAK_FRAMES)]] * 100
    print(f"\n% of {reported} photos whose person, or a frame of theirs within n, is in train:")
    print(shares.to_string(float_format="%.1f", na_rep="-"))

    print("\npeople/photos on each side:")
    counts = leakage.set_index(["aspect", "fold", "side"]).astype(str)
    people, photos = counts.filter(regex="^people"), counts.filter(regex="^photos")
    cells = people + "/" + photos.to_numpy()
    print(cells.rename(columns=lambda name: name.removeprefix("people_")).to_string())
    if PROTOCOLS[protocol].disjoint:
        print("\npeople per test fold (*: could not be balanced):")
        print(fold_balance(splits, leakage["fold"].max() + 1).to_string())


def warn_of_unnumbered(rows: pd.DataFrame) -> None:
    """Log how many photos have no number, so that no neighbours of theirs are known."""
    unnumbered = rows["name"][rows["number"].isna()]
    if len(unnumbered):
        logger.warning(
            "%d photos have no number in their name (first: %s): the leakage table counts"
            " neighbouring frames without them",
            *(len(unnumbered), unnumbered.iloc[0]),
        )


def print_train_command(splits: dict[str, AspectSplit], root: Path, protocol: str) -> None:
    """Print how to train on the first aspect that has photos to train on and to choose by."""
    for aspect, (_, folds) in splits.items():
        if len(folds[0]["train"]) and len(folds[0]["val"]):
            attributes = SplitFiles(root, aspect, "paper").attributes
            other = "" if protocol == "paper" else f" --protocol {protocol}"
            print(f"train on one: python train.py --attributes_file {attributes}{other}")
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

    root = Path(config.input)
    hand_info_file, photos = root / "HandInfo.csv", root / "Hands"
    seed = SEED if config.seed is None else config.seed
    by_aspect = rows_by_aspect(read_hand_info(hand_info_file), config.input)
    every_row = pd.concat(by_aspect.values())
    if every_row.empty:
        raise UserError(f"{hand_info_file} lists no photo without accessories; nothing to split")
    warn_of_unnumbered(every_row)
    n_folds = config.folds or PROTOCOLS[config.protocol].folds
    splits = split_rows(by_aspect, config.protocol, n_folds=n_folds, seed=seed)
    if config.skip_missing:
        splits = without_missing(splits, photos)
    else:
        check_photos(every_row, photos, hand_info_file)

    leakage = leakage_table(splits)
    tables = list(split_tables(splits, root, config.protocol, seed))
    check_no_other_folds(path for path, _ in tables)
    files = SplitFiles(root, "", config.protocol)
    write_csvs([*tables, (files.leakage, leakage)])
    print_split(splits, leakage, config.protocol)
    folder = files.drawn.relative_to(root)
    print(f"wrote {len(tables) + 1} files below {root}: sub_dataset/, {folder}/")
    print_train_command(splits, root, config.protocol)
    return 0


if __name__ == "__main__":
    sys.exit(main())
