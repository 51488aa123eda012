"""Read and check CSV files: HandInfo.csv, split CSVs, attributes files, people.csv."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from dataset_11k import (
    AGE_GROUPS,
    AGE_RANGE,
    ASPECTS,
    DATA_URL,
    HAND_INFO_COLUMNS,
    SKIN_COLORS,
    TASKS,
    split_columns,
)
from utils import UserError, logger

SEPARATORS = ",;\t"

# A line break in a cell is a quote that is not closed: it swallows the lines below it.
CONTROL = r"[\x00-\x08\n-\x1f\x7f-\x9f]"

LONGEST = 200  # characters of the file that a message shows


def read_csv(path: Path, columns: Sequence[str], what_next: str) -> pd.DataFrame:
    """Return a CSV with every cell as text, indexed by line number; blank lines are dropped.

    The separator is the one of `SEPARATORS` that the header has most of; a first line `sep=;`, as
    spreadsheets write it, is skipped.

    Args:
        path: a UTF-8 file with a header line.
        columns: required columns; others are kept.
        what_next: end of the error message if the file is missing.

    Raises:
        UserError: the file cannot be read, or lacks a column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        header_line = 1
        if text[:4].lower() == "sep=":
            header_line, text = 2, text.partition("\n")[2]
        first_line = text.partition("\n")[0]
        layout: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skip_blank_lines": False}
        layout["sep"] = max(SEPARATORS, key=first_line.count)
        # The header is read by itself because pandas renames the second of two equal columns.
        header = pd.read_csv(io.StringIO(text), header=None, nrows=1, **layout).iloc[0].tolist()
        table = pd.read_csv(io.StringIO(text), **layout)
    except FileNotFoundError:
        raise UserError(f"not found: {path}. {what_next}") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(f"not UTF-8 text: {path} (byte {byte:#x}). Save it as UTF-8") from error
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read {path} as CSV: {reason}. Correct the file") from error
    check_header(header, columns, path)
    if not isinstance(table.index, pd.RangeIndex):  # pandas turns surplus cells into an index
        raise UserError(f"more cells than columns: {path}. Correct the file")
    table.index += header_line + 1
    lines = [header_line] * any(re.search(CONTROL, name) for name in header)
    for _, cells in table.items():
        lines += table.index[cells.str.contains(CONTROL)].tolist()
    if lines:
        raise UserError(
            f"line break or control character in a cell: {path} line {min(lines)}. Remove it, or"
            " the quote that begins the cell"
        )
    return table[(table != "").any(axis=1)]


def check_header(header: list[str], columns: Sequence[str], path: Path) -> None:
    """Refuse a header that lacks one of `columns` or has a column twice."""
    missing = [name for name in columns if name not in header]
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    for problem, wrong in (("missing", missing), ("duplicate", twice)):
        if wrong:
            raise UserError(
                f"{problem} column {', '.join(wrong)}: {path} has {shorten(', '.join(header))}."
                f" The file needs {', '.join(columns)}"
            )


# ----------------------------------------------------------------------------- cells


class Rule(NamedTuple):
    """The legal cells of a column."""

    legal: pd.Series  # bool, by line
    expected: str


def check_cells(table: pd.DataFrame, path: Path, rules: dict[str, Rule]) -> None:
    """Refuse a table with an illegal cell; the message names the first one's line.

    Args:
        table: as `read_csv` returns it.
        path: its file, for the message.
        rules: by column.
    """
    for column, (legal, expected) in rules.items():
        lines = table.index[~legal.to_numpy(dtype=bool)]
        if len(lines):
            raise UserError(
                f"{column} is {shorten(table[column][lines[0]])!r}, expected {expected}: {path}"
                f" line {lines[0]}{and_others(lines)}. Correct the file"
            )


def shorten(text: str) -> str:
    """Return a text of the file as a message shows it."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def and_others(lines: Sequence[int] | pd.Index) -> str:
    """Return how many lines a message does not name."""
    return f" (and {len(lines) - 1} other lines)" if len(lines) > 1 else ""


def task_rules(table: pd.DataFrame, *, unknown: bool) -> dict[str, Rule]:
    """Return the rules of the task columns that `table` has.

    Args:
        table: as `read_csv` returns it.
        unknown: whether a cell may be empty; an id may not.
    """
    rules = {}
    for task in TASKS.values():
        if task.column not in table:
            continue
        cells = table[task.column]
        legal = pd.Series(True, cells.index)
        if task.pattern:
            legal = cells.str.fullmatch(task.pattern)
        elif task.classes:
            legal = cells.isin(task.classes)
        if unknown and task.column != "id":
            legal |= cells == ""
        rules[task.column] = Rule(legal, task.expected or " or ".join(task.classes or ()))
    return rules


def parse_labels(table: pd.DataFrame, path: Path) -> dict[str, pd.Series]:
    """Return the checked label columns: ids stripped, ages as numbers, absent columns unknown.

    An unknown label is NaN in a column of numbers, else an empty string.

    Raises:
        UserError: a person has two different labels of a task.
    """
    columns = {}
    for task in TASKS.values():
        cells = table.get(task.column, pd.Series("", table.index, dtype=str))
        columns[task.column] = cells.str.strip() if task.column == "id" else cells
    ids = columns["id"]
    for column, cells in columns.items():
        known = cells[cells != ""]
        first = known.groupby(ids[known.index]).transform("first")
        wrong = known.index[known != first]
        if len(wrong):
            line = wrong[0]
            other = known.index[ids[known.index] == ids[line]][0]
            raise UserError(
                f"two values of {column} for id {ids[line]}: {path} line {other} has"
                f" {first[line]}, line {line} has {cells[line]}{and_others(wrong)}."
                " Correct the file"
            )
    numbers = [task.column for task in TASKS.values() if task.in_years]
    return columns | {column: pd.to_numeric(columns[column]) for column in numbers}


def spelling_key(name: str) -> str:
    """Return a name without what spreadsheets and file systems change in it.

    Names of one key differ in Unicode form, case or leading zeros only.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return re.sub(r"(?<!\d)0+(?=\d)", "", folded)


def other_spelling(names: Iterable[str], others: Iterable[str]) -> str:
    """Return a text on the first of `names` that `others` has in another spelling; else empty."""
    by_key = {spelling_key(other): other for other in others}
    for name in names:
        other = by_key.get(spelling_key(name), name)
        if other != name:
            return f"{name!a} is spelt {other!a}"
    return ""


def warn_of_similar_ids(samples: pd.DataFrame, path: Path) -> None:
    """Log one warning if two ids differ only as `spelling_key` says."""
    ids = samples["id"].drop_duplicates()
    keys = ids.map(spelling_key)
    similar = ids[keys.duplicated(keep=False)]
    if len(similar):
        pair = similar[keys[similar.index] == keys[similar.index[0]]]
        logger.warning(
            "%s: ids %s count as different people. If they are one person, correct the file",
            *(path, " and ".join(map(ascii, pair))),
        )


# A file name, or one in a subfolder; no part may leave the folder.
PART = r"(?!\.{1,2}(?:/|$))[^/\\:\0]+"
FILE_NAME, FILE_OR_SUBFOLDER = PART, f"(?:{PART}/)?{PART}"


# ----------------------------------------------------------------------------- files


def read_hand_info(path: Path) -> pd.DataFrame:
    """Return the photos of HandInfo.csv in file order.

    Columns are `HAND_INFO_COLUMNS` and those of `TASKS`: age, accessories, nailPolish and
    irregularities int64, the others text. Blanks around an id are removed (the published file has
    one such cell) and logged.

    Raises:
        UserError: the file, a column or a cell is not as expected.
    """
    columns = list(dict.fromkeys([*HAND_INFO_COLUMNS, *split_columns()[1:]]))
    what_next = (
        f"Get Hands/ and HandInfo.csv from {DATA_URL}, or draw a data set:"
        f" python dataset_11k_synthetic.py --output {path.parent}"
    )
    table = read_csv(path, columns, what_next)
    flags = ("accessories", "nailPolish", "irregularities")
    names, aspects = table["imageName"], list(ASPECTS.values())
    legal_name = names.str.fullmatch(FILE_NAME) & ~names.duplicated()
    rules = {
        "skinColor": Rule(table["skinColor"].isin(SKIN_COLORS), " or ".join(SKIN_COLORS)),
        **{flag: Rule(table[flag].isin(["0", "1"]), "0 or 1") for flag in flags},
        "aspectOfHand": Rule(table["aspectOfHand"].isin(aspects), " or ".join(aspects)),
        "imageName": Rule(legal_name, "a file name that occurs once"),
    }
    check_cells(table, path, task_rules(table, unknown=False) | rules)
    labels = parse_labels(table, path)
    dirty = table["id"][labels["id"] != table["id"]]
    if len(dirty):
        logger.info(
            "%s: removed blanks around the id in %d lines (first: line %d)",
            *(path, len(dirty), dirty.index[0]),
        )
    numbers = {flag: table[flag].astype("int64") for flag in flags}
    return table.assign(**labels, **numbers)[columns].reset_index(drop=True)


def read_samples(path: Path) -> pd.DataFrame:
    """Return the samples of a split CSV or attributes file; see `parse_samples`.

    Raises:
        UserError: the file, a column or a cell is not as expected.
    """
    what_next = f"Run: {split_command(path)}"
    return parse_samples(read_csv(path, ("image_path", "id"), what_next), path)


def photo_names(image_paths: pd.Series) -> pd.Series:
    """Return the photos' paths below the folder Hands: `<photo>` or `<subfolder>/<photo>`.

    An image_path is such a path, or anything that ends in `Hands/` and such a path.
    """
    below = image_paths.str.replace(r"^(?:.*[/\\])?Hands[/\\]", "", regex=True)
    return below.str.replace("\\", "/")


def parse_samples(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return samples: columns image_path, name, those of `TASKS`, then further ones as text.

    `name` is that of `photo_names`. Task columns other than id may be absent, and their cells
    empty: see `parse_labels`.

    Args:
        table: as `read_csv` returns it.
        path: its file, for messages.
    """
    refuse_columns(table, ["name", "mirrored"], path)
    paths, names = table["image_path"], photo_names(table["image_path"])
    legal = names.str.fullmatch(FILE_OR_SUBFOLDER)
    rule = Rule(legal, "a photo in Hands/ or in a subfolder of it")
    check_cells(table, path, task_rules(table, unknown=True) | {"image_path": rule})
    again = names.index[names.duplicated()]
    if len(again):
        name = names[again[0]]
        raise UserError(
            f"duplicate photo {shorten(name)!r}: {path} lines {names.index[names == name][0]} and"
            f" {again[0]}{and_others(again)}. Delete one of them"
        )
    labels = parse_labels(table, path)
    samples = pd.DataFrame({"image_path": paths, "name": names, **labels})
    return samples.join(table[further_columns(table)]).reset_index(drop=True)


def refuse_columns(table: pd.DataFrame, reserved: Sequence[str], path: Path) -> None:
    """Refuse columns that have another meaning here."""
    for column in reserved:
        if column in table:
            raise UserError(f"the column {column} is reserved: {path}. Rename the column")


def further_columns(samples: pd.DataFrame) -> list[str]:
    """Return the columns of an attributes file that are no task's: groups for reports."""
    known = ("name", "mirrored", *split_columns())
    return [str(c) for c in samples if c not in known and not is_unnamed(str(c))]


def is_unnamed(column: str) -> bool:
    """Return whether a column has no name: spreadsheets leave such columns behind."""
    return column.strip() == "" or column.startswith("Unnamed: ")


def read_people(path: Path) -> pd.DataFrame:
    """Return people.csv: column id (once each), then those of `TASKS` and others, as text.

    Raises:
        UserError: the file, a column or a cell is not as expected.
    """
    table = read_csv(path, ("id",), "Write it, with the columns id,gender,age")
    refuse_columns(table, ["name", "image_path"], path)
    rules = task_rules(table, unknown=True)
    ids = table["id"].str.strip()
    check_cells(table, path, rules)
    check_cells(table, path, {"id": Rule(~ids.duplicated(), "an id that occurs once")})
    return table.assign(id=ids)[[c for c in table if not is_unnamed(str(c))]]


def warn_of_unusual_ages(samples: pd.DataFrame, path: Path) -> None:
    """Log one warning if ages are outside those of 11k Hands."""
    low, high = AGE_RANGE
    first, *_, last = AGE_GROUPS
    for task in TASKS.values():
        years = samples[task.column] if task.in_years else pd.Series(dtype=float)
        n_unusual = int(((years < low) | (years > high)).sum())
        if n_unusual:
            logger.warning(
                "%s: %d photos of people younger than %d or older than %d; they count as age group"
                " %s or %s",
                *(path, n_unusual, low, high, first, last),
            )


# ----------------------------------------------------------------------------- what to do next


def split_command(path: Path) -> str:
    """Return the command that writes `path`, a file in sub_dataset/ or trainval/.

    Data sets other than 11k Hands have no HandInfo.csv: their attributes file is split, or made
    from folders.
    """
    has_folds = path.parent.name.startswith("fold_")  # trainval/<protocol>/<aspect>/fold_<k>/
    option = f" --protocol {path.parents[2].name}" if has_folds else ""
    folders = [*path.parents, *path.absolute().parents]
    root = next((folder for folder in folders if is_root(folder)), None)
    if root is None or (root / "HandInfo.csv").is_file():
        return f"python dataset_11k_split.py --input {root or '<root>'}{option}"
    files = sorted((root / "sub_dataset").glob("*.csv"))
    if not files:
        return f"python dataset_11k_split.py --folders {root / 'Hands'}{option}"
    own = [file for file in files if file.stem in path.parts]
    return f"python dataset_11k_split.py --attributes_file {(own or files)[0]}{option}"


def is_root(folder: Path) -> bool:
    """Return whether a folder looks like the root of a data set."""
    return any((folder / name).is_dir() for name in ("Hands", "sub_dataset", "trainval"))
