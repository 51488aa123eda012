"""Seeded fuzz of the readers: damaged CSVs and photos are refused in one line or read correctly.

The environment variables FUZZ_CSVS and FUZZ_PHOTOS set the numbers of inputs, FUZZ_SEED the seed.
A failure names the input's number; the same number and seed give the same input.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data.splits import read_data
from data.tables import read_hand_info, read_people, read_samples
from dataset_11k import TASKS, age_group
from utils import UserError

N_CSVS = int(os.environ.get("FUZZ_CSVS", "120"))
N_PHOTOS = int(os.environ.get("FUZZ_PHOTOS", "70"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
LONGEST_MESSAGE = 1500  # characters; nobody reads more

Rng = np.random.Generator
Cells = list[list[str]]


def pick(rng: Rng, values: Sequence[Any]) -> Any:
    """Return one of `values`; numpy's choice would drop NULs at the end of text."""
    return values[rng.integers(len(values))]


# ----------------------------------------------------------------------------- CSVs

IDS = ("0000002", "0000041", "1200000", "202411000123", "Zo\xeb", "anna maria")
LABELS = dict(zip(IDS, (("male", 27), ("female", 21), ("male", 75), ("female", 8), ("female", 30),
                        ("male", 22)), strict=True))  # fmt: skip


def sample_cells() -> Cells:
    """Return the cells of a split CSV with a further column."""
    rows = [["image_path", "id", "gender", "age", "note"]]
    for i in range(18):
        identity = IDS[i % 6]
        gender, age = LABELS[identity]
        path = f"./11k/Hands/Hand_{i:07d}.jpg"
        rows.append([path, identity, gender, str(age), ("", "left, bent", "ok")[i % 3]])
    return rows


def hand_info_cells() -> Cells:
    """Return the cells of a HandInfo.csv."""
    header = "id age gender skinColor accessories nailPolish aspectOfHand imageName irregularities"
    rows = [header.split()]
    for i in range(18):
        identity = IDS[i % 6]
        gender, age = LABELS[identity]
        aspect = ("dorsal right", "palmar left")[i % 2]
        rows.append([identity, str(age), gender, "very fair", str(i % 2), "0", aspect,
                     f"Hand_{i:07d}.jpg", "1"])  # fmt: skip
    return rows


def people_cells() -> Cells:
    """Return the cells of a people.csv."""
    return [["id", "gender", "age"], *([i, g, str(a)] for i, (g, a) in LABELS.items())]


def to_csv(cells: Cells, rng: Rng, *, separator: str = ",", end: str = "\n") -> str:
    """Return a CSV whose cells are quoted where necessary, or all of them."""
    quoting = pick(rng, [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting).writerows(cells)
    return text.getvalue()


# A mutation returns the file and the rows (from 1) that it touched; None: all of them.
Mutated = tuple[bytes, set[int] | None]


def change_file(cells: Cells, rng: Rng) -> Mutated:
    """Change separator, line ends, encoding or blank lines: what every row still says is clear."""
    separator = pick(rng, [",", ";", "\t", "|"])
    end = pick(rng, ["\n", "\r\n", "\r"])
    text = to_csv(cells, rng, separator=separator, end=end)
    if rng.random() < 0.3:
        lines = text.split(end)
        lines.insert(int(rng.integers(1, len(lines))), pick(rng, ["", separator * 3]))
        text = end.join(lines)
    if rng.random() < 0.3:
        text = text.rstrip(end)
    if rng.random() < 0.3:
        text = f"sep={separator}{end}{text}"
    encodings = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "cp437"]
    return text.encode(pick(rng, encodings)), set()


def change_bytes(cells: Cells, rng: Rng) -> Mutated:
    """Flip, insert, delete or overwrite bytes of a row or of the header."""
    data = bytearray(to_csv(cells, rng).encode())
    touched = set()
    places = rng.integers(len(data), size=rng.integers(1, 4))
    for place in sorted({int(place) for place in places}, reverse=True):
        row = data[:place].count(b"\n")
        touched |= {row, row + 1} if data[place] == ord("\n") else {row}
        new = pick(rng, [*b'""",;\t\r\n\0\x01\x1a\x1b\x7f\\=', int(rng.integers(256))])
        kind = rng.integers(4)
        if kind == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data.insert(place, new)
        elif kind == 2:
            del data[place]
        else:
            data[place] = new
    return bytes(data), None if 0 in touched else touched


def truncate(cells: Cells, rng: Rng) -> Mutated:
    """Cut the file: a copy that was interrupted, or a download."""
    data = to_csv(cells, rng).encode()
    data = data[: rng.integers(len(data))]
    lost = data.count(b"\n")  # the row that was cut; those after it are gone
    return data, set(range(lost, len(cells))) if lost else None


CELLS = (
    "", " ", "2.02411E+11", "2,02E+11", "1E400", "9" * 400, "-1", "27.0", "0x1B", "1e2", "NaN",
    "None", "TRUE", "a\nb", "a\rb", "\0", "0000002\0", "\x1b[31m", "\ufeff", "\u200b", "\u202e",
    '"', '""', "'", "=1+1", "../../etc/passwd", "/dev/zero", "Hands/", "..", "\\", ";", ",", "\t",
    "\uff12\uff11", "Zoe\u0308", "\U0001f590", "\x85", "\u2028", "x" * 5000,
)  # fmt: skip


def change_cell(cells: Cells, rng: Rng) -> Mutated:
    """Replace, extend, delete, double, swap or reformat cells of one row."""
    row = int(rng.integers(1, len(cells)))
    place, other = rng.integers(len(cells[row]), size=2)
    changed = cells[row]
    odd, cell = pick(rng, CELLS), changed[place]
    kind = rng.integers(8)
    if kind == 0:
        changed[place] = odd
    elif kind == 1:
        changed[place] = pick(rng, [cell + odd, odd + cell])
    elif kind == 2:
        del changed[place]
    elif kind == 3:
        changed.insert(place, pick(rng, [cell, odd, ""]))
    elif kind == 4:
        changed[place], changed[other] = changed[other], changed[place]
    elif kind == 5:
        changed[place] = cell.lstrip("0")
    elif kind == 6:
        changed[place] = unicodedata.normalize("NFD", cell)
    else:
        changed[place] = pick(rng, [cell.upper(), f" {cell}", f"{cell} ", f"{cell}.0"])
    return to_csv(cells, rng).encode(), {row}


def change_rows(cells: Cells, rng: Rng) -> Mutated:
    """Duplicate, delete or move rows; repeat the header."""
    row, other = (int(n) for n in rng.integers(1, len(cells), size=2))
    kind = rng.integers(5)
    touched: set[int] = set()
    if kind == 4:  # a quote that a later one closes
        column = int(rng.integers(len(cells[0])))
        lines = [",".join(line).replace("left, bent", "") for line in cells]
        for line, cut in ((min(row, other), 0), (max(row, other), 1)):
            parts = lines[line].split(",")
            parts[column] = parts[column] + '"' if cut else '"' + parts[column]
            lines[line] = ",".join(parts)
        return "\n".join(lines).encode(), {row, other}
    if kind == 0:
        cells.insert(other, list(cells[row]))
        touched = {row}
    elif kind == 1:
        del cells[row]
        touched = {row}
    elif kind == 2:
        cells[row], cells[other] = cells[other], cells[row]
    else:
        cells.insert(other, list(cells[0]))
    return to_csv(cells, rng).encode(), touched


def change_columns(cells: Cells, rng: Rng) -> Mutated:
    """Delete, duplicate, rename, add or round a column."""
    place = int(rng.integers(len(cells[0])))
    kind = rng.integers(5)
    for i, row in enumerate(cells):
        if kind == 0:
            del row[place]
        elif kind == 1:
            row.append(row[place])
        elif kind == 2 and i == 0:
            row[place] = pick(rng, [" " + row[place], row[place].upper(), "", "name", "x"])
        elif kind == 3 and i:  # surplus cells without a header
            row.append("")
        elif kind == 4 and i:  # what a spreadsheet makes of numbers
            row[place] = f"{float(row[place]):.6G}" if row[place].isdecimal() else row[place]
    return to_csv(cells, rng).encode(), None


MUTATIONS = (change_file, change_bytes, truncate, change_cell, change_rows, change_columns)

COLUMNS = ("id", "gender", "age", "skinColor", "accessories", "aspectOfHand", "imageName")


def naive_rows(data: bytes, key: str) -> dict[str, list[dict[str, str]]]:
    """Return what csv.DictReader reads: rows by their cell of the column `key`."""
    text = data.decode("utf-8-sig")
    if text[:4].lower() == "sep=":
        text = text.replace("\r\n", "\n").replace("\r", "\n").partition("\n")[2]
    for separator in ",;\t":
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restval="")
        if key in (reader.fieldnames or ()):
            rows: dict[str, list[dict[str, str]]] = {}
            for row in reader:
                rows.setdefault(row[key].strip(), []).append(row)
            return rows
    raise AssertionError(f"accepted, but csv.DictReader finds no column {key}")


def same(cell: str, value: Any) -> bool:
    """Return whether a reader's value is what a cell says."""
    if pd.isna(value) or value == "":
        return cell.strip() == ""
    return int(cell) == value if isinstance(value, int | float) else cell.strip() == value.strip()


def check_table(table: pd.DataFrame, key: str, data: bytes) -> None:
    """Check that every label of a table is the one that csv.DictReader reads."""
    naive = naive_rows(data, key)
    for row in table.to_dict("records"):
        (found,) = naive[str(row[key]).strip()]
        for column in COLUMNS:
            if column in row:
                assert same(found.get(column, ""), row[column]), (column, found, row)


def labels_of(table: pd.DataFrame, key: str) -> dict[str, list[Any]]:
    """Return the label cells of each row by its cell of the column `key`, as text."""
    columns = [c for c in COLUMNS if c in table]
    return {
        str(row[key]).strip(): [str(row[c]).removesuffix(".0") for c in columns]
        for row in table.to_dict("records")
    }


READERS: tuple[tuple[str, Callable[[], Cells], Callable[[Path], pd.DataFrame]], ...] = (
    ("image_path", sample_cells, read_samples),
    ("imageName", hand_info_cells, read_hand_info),
    ("id", people_cells, read_people),
)


def fuzz_one_csv(path: Path, rng: Rng) -> str:
    """Mutate and read one CSV; return `read` or `refused`."""
    key, make_cells, reader = pick(rng, READERS)
    cells = make_cells()
    original = [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]
    data, touched = pick(rng, MUTATIONS)(cells, rng)
    path.write_bytes(data)
    try:
        table = reader(path)
    except UserError as error:
        if len(str(error)) > LONGEST_MESSAGE:
            raise ValueError(f"a message of {len(str(error))} characters") from error
        return "refused"
    check_table(table, key, data)
    if touched is not None:
        found = labels_of(table, key)
        for number, row in enumerate(original, start=1):
            if number not in touched:
                wanted = [row[column] for column in COLUMNS if column in row]
                assert found.get(row[key]) == wanted, f"row {number}"
    return "read"


def collect(n: int, fuzz_one: Callable[[Path, Rng], str], folder: Path) -> None:
    """Run `fuzz_one` on `n` inputs; fail with all of those that failed."""
    outcomes: dict[str, int] = {}
    failures = []
    for number in range(n):
        try:
            outcome = fuzz_one(folder / "input", np.random.default_rng((SEED, number)))
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        except Exception as error:
            failures.append(f"input {number}: {type(error).__name__}: {str(error)[:300]}")
    print(outcomes)
    assert not failures, f"{len(failures)} of {n}, seed {SEED}:\n" + "\n".join(failures)
    assert min(outcomes.get("read", 0), outcomes.get("refused", 0)) > n // 20, outcomes


@pytest.mark.timeout(60 + N_CSVS)
def test_damaged_csvs_are_refused_or_read_correctly(tmp_path: Path) -> None:
    collect(N_CSVS, fuzz_one_csv, tmp_path)


SPLITS = ("sub_dataset/dorsal_dr.csv", "trainval/dorsal_dr/train.csv", "trainval/dorsal_dr/val.csv")


def fuzz_one_split(root: Path, rng: Rng) -> str:
    """Mutate one of the three files of a split and read the data of a run."""
    rows = sample_cells()
    texts = {
        name: [rows[0], *part]
        for name, part in zip(SPLITS, (rows[1:], rows[1:10], rows[10:]), strict=True)
    }
    (root / "Hands").mkdir(parents=True, exist_ok=True)
    for row in rows[1:]:
        (root / "Hands" / Path(row[0]).name).touch()
    mutated = pick(rng, SPLITS)
    for name, cells in texts.items():
        data = to_csv(cells, rng).encode()
        touched: set[int] | None = set()
        if name == mutated:
            data, touched = pick(rng, MUTATIONS)(cells, rng)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    try:
        run = read_data(root / SPLITS[0], "paper")
    except UserError:
        return "refused"
    space = run.label_space
    for name in SPLITS[1:]:
        table = run.samples[Path(name).stem]
        rows_read = naive_rows((root / name).read_bytes(), "image_path")
        for path, encoded in zip(table["image_path"], space.encode(table), strict=True):
            (found,) = rows_read[path.strip()]
            for task, label in zip(space.tasks, encoded, strict=True):
                cell = found.get(TASKS[task].column, "").strip()
                wanted = age_group(int(cell)) if task == "age" and cell else cell
                assert wanted == ("" if label < 0 else space.names[task][label]), (path, task)
    return "read"


@pytest.mark.timeout(60 + N_CSVS)
def test_a_run_reads_the_labels_of_its_csvs(tmp_path: Path) -> None:
    collect(N_CSVS // 2, fuzz_one_split, tmp_path)
