"""Facts of the 11k Hands data set, and the way from CSV rows to checked rows and their labels.

Data set: Afifi, "11K Hands: Gender recognition and biometric identification using a large dataset
of hand images", 2019, https://arxiv.org/abs/1711.04322.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset_11k import (
    AGE_GROUPS,
    AGE_RANGE,
    ASPECTS,
    DATA_URL,
    GENDERS,
    HAND_INFO_COLUMNS,
    SKIN_COLORS,
    SPLIT_COLUMNS,
)
from utils import UserError

logger = logging.getLogger("igae")


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
