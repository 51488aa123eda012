"""Seeded fuzz of the readers: damaged CSVs and photos are refused in one line or read correctly.

The environment variables FUZZ_CSVS and FUZZ_PHOTOS set the numbers of inputs, FUZZ_SEED the seed.
A failure names the input's number; the same number and seed give the same input.
"""

from __future__ import annotations

import csv
import io
import os
import struct
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.cache import PhotoFiles
from data.splits import read_data
from data.tables import read_hand_info, read_people, read_samples
from dataset_11k import TASKS, PhotoReader, age_group, open_photo
from utils import UserError

N_CSVS = int(os.environ.get("FUZZ_CSVS", "120"))
N_PHOTOS = int(os.environ.get("FUZZ_PHOTOS", "70"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
LONGEST_MESSAGE = 1500  # characters; nobody reads more

Rng = np.random.Generator
Cells = list[list[str]]


def pick(rng: Rng, values: Sequence[Any]) -> Any:
    """Return one of `values`; numpy's choice would drop NULs at the end of text."""
    return values[int(rng.integers(len(values)))]


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
        run = read_data([root / SPLITS[0]], "paper")
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


# ----------------------------------------------------------------------------- photos


def hand(rng: Rng) -> Image.Image:
    """Return a smooth RGB picture without symmetry, so that a wrong rotation shows."""
    small = rng.integers(40, 216, size=(4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return an image file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "TGA", "ICO", "JPEG2000", "EPS")

# A photo's file, and the picture that it must show; None: any, or a refusal.
Photo = tuple[bytes, Image.Image | None]


def other_format(image: Image.Image, rng: Rng) -> Photo:
    """Return a picture in another format, which its suffix does not tell."""
    file_format = pick(rng, FORMATS)
    data = encode(image, file_format)
    return data, None if file_format in ("ICO", "EPS") else image


def damaged(image: Image.Image, rng: Rng) -> Photo:
    """Return a picture with flipped bytes."""
    data = bytearray(encode(image, pick(rng, FORMATS)))
    for _ in range(rng.integers(1, 20)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data), None


def other_mode(image: Image.Image, rng: Rng) -> Photo:
    """Return a grey, 16-bit, CMYK, palette, transparent or bilevel picture, or an animation."""
    grey = image.convert("L")
    wide = Image.fromarray(np.asarray(grey, dtype=np.uint16) * 257)
    clear = image.convert("RGBA")
    clear.putalpha(128)
    half = Image.blend(image, Image.new("RGB", image.size, "white"), 127 / 255)
    photos: list[tuple[bytes, Image.Image | None]] = [
        (encode(grey, "PNG"), grey),
        (encode(wide, "PNG"), grey),
        (encode(wide, "TIFF"), grey),
        (encode(image.convert("CMYK"), "JPEG"), image),
        (encode(image.quantize(256), "PNG"), image),
        (encode(image.quantize(256), "PNG", transparency=255), None),
        (encode(clear, "PNG"), half),
        (encode(clear, "WEBP", lossless=True), half),
        (encode(grey.convert("LA"), "PNG"), grey),
        (encode(image.convert("1"), "PNG"), image.convert("1")),
        (encode(image, "GIF", save_all=True, append_images=[grey, image]), image),
        (encode(image.copy(), "TIFF", save_all=True, append_images=[grey.copy()]), image),
        (encode(image.resize((1, 1)), "PNG"), image.resize((1, 1))),
        (encode(image.resize((3000, 1)), "PNG"), None),
    ]
    return pick(rng, photos)


def turned(image: Image.Image, rng: Rng) -> Photo:
    """Return a picture whose EXIF data say how to hold it, or hold nonsense."""
    turns = Image.Transpose
    orientation, stored = pick(
        rng,
        [
            (2, turns.FLIP_LEFT_RIGHT),
            (3, turns.ROTATE_180),
            (4, turns.FLIP_TOP_BOTTOM),
            (5, turns.TRANSPOSE),
            (6, turns.ROTATE_90),
            (7, turns.TRANSVERSE),
            (8, turns.ROTATE_270),
            (99, None),
        ],
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = image if stored is None else image.transpose(stored)
    if rng.random() < 0.2:
        return encode(image, "JPEG", exif=b"Exif\0\0" + rng.bytes(40)), None
    return encode(photo, pick(rng, ["JPEG", "PNG", "WEBP", "TIFF"]), exif=exif), image


def huge_header(image: Image.Image, rng: Rng) -> Photo:
    """Return a small file whose header claims a huge picture."""
    side = pick(rng, [2_000, 12_000, 60_000])
    data = encode(image, "PNG")
    chunk = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
    png = data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    jpeg = bytearray(encode(image, "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", side, side)
    gif = bytearray(encode(image, "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    bmp = bytearray(encode(image, "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    return bytes(pick(rng, [png, jpeg, gif, bmp])), None


def no_picture(image: Image.Image, rng: Rng) -> Photo:
    """Return what is no picture at all, or empty."""
    return pick(rng, [b"", b"\0" * 500, b"<svg/>", b"%PDF-1.4", rng.bytes(900), b"\xff\xd8"]), None


def fuzz_one_photo(path: Path, rng: Rng) -> str:
    """Make a photo and read it as the scripts do; return `read` or `refused`."""
    image = hand(rng)
    make = pick(rng, [other_format, damaged, other_mode, turned, huge_header, no_picture, None])
    if make is None:  # an interrupted copy; cut well before the last byte, which may say nothing
        data = encode(image, pick(rng, ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"]))
        data, wanted = data[: rng.integers(len(data) * 3 // 4)], None
    else:
        data, wanted = make(image, rng)
    photo = path.with_suffix(pick(rng, [".jpg", ".png", ".JPG", ".tif", "", ".txt"]))
    photo.unlink(missing_ok=True)
    photo.write_bytes(data)
    decode_size = int(pick(rng, [0, 20]))
    reader = PhotoReader(32, decode_size)
    found = PhotoFiles([photo], reader)[0]
    try:
        full = open_photo(photo, decode_size)
        resized = reader.read(photo)
    except UserError:
        if wanted is not None:
            raise ValueError(f"a good photo is refused: {found}") from None
        return "refused" if isinstance(found, str) else "read by predict.py only"
    if make is None:
        raise ValueError("a truncated photo is read")
    if (full.mode, resized.mode, resized.size) != ("RGB", "RGB", (32, 32)):
        raise ValueError(f"{full.mode} {resized.mode} {resized.size}")
    if wanted is not None:
        pixels = np.asarray(wanted.convert("RGB").resize((32, 32)), dtype=float)
        difference = np.abs(np.asarray(resized, dtype=float) - pixels).mean()
        if difference > 12:
            raise ValueError(f"another picture: the pixels differ by {difference:.1f}")
    return "read"


@pytest.mark.timeout(60 + 4 * N_PHOTOS)  # some decode to 56 million pixels, three times
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::DeprecationWarning")
def test_damaged_photos_are_refused_or_read_correctly(tmp_path: Path) -> None:
    collect(N_PHOTOS, fuzz_one_photo, tmp_path)
    for path in (tmp_path, tmp_path / "absent.jpg"):
        with pytest.raises(UserError, match="^cannot decode photo"):
            open_photo(path)
