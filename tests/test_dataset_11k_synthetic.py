"""The synthetic data set: layout, safety of its folder, contact sheet."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

import dataset_11k_synthetic
from data.tables import read_hand_info
from dataset_11k import ASPECTS, HAND_INFO_COLUMNS
from dataset_11k_synthetic import SyntheticConfig, hand_info_text, main

SMALL = ("--identities", "3", "--images_per_identity", "3", "--width", "64", "--processes", "1")


def draw_small(output: Path, *more: str) -> int:
    return main([*SMALL, "--output", str(output), *more])


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that no test writes to."""
    output = tmp_path_factory.mktemp("drawn") / "11k"
    assert draw_small(output) == 0
    return output


@pytest.fixture
def own_set(small_set: Path, tmp_path: Path) -> Path:
    """A copy of `small_set` to write to, alone in its folder."""
    return Path(shutil.copytree(small_set, tmp_path / "11k"))


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_layout_equals_that_of_11k_hands(small_set: Path) -> None:
    assert {path.name for path in small_set.iterdir()} == {
        "HandInfo.csv",
        "Hands",
        "synthetic.json",
    }
    names = sorted(path.name for path in (small_set / "Hands").iterdir())
    assert names == [f"Hand_{number:07d}.jpg" for number in range(2, 2 + 3 * 4 * 3)]
    with Image.open(small_set / "Hands" / names[0]) as image:
        assert (image.size, image.mode, image.format) == ((64, 48), "RGB", "JPEG")
    table = read_hand_info(small_set / "HandInfo.csv")
    assert table["imageName"].tolist() == names
    sessions = table.groupby(["id", "aspectOfHand"], sort=False)["imageName"].agg(list)
    assert [name for session in sessions for name in session] == names  # consecutive numbers
    assert table["aspectOfHand"].drop_duplicates().tolist() == list(ASPECTS.values())
    marker = json.loads((small_set / "synthetic.json").read_text())
    flags = {"identities": 3, "images_per_identity": 3, "width": 64, "seed": 0}
    assert marker["flags"] == {"drawing": dataset_11k_synthetic.DRAWING, **flags}


def test_quotes_line_ends_and_dirty_id_are_as_published(small_set: Path) -> None:
    text = (small_set / "HandInfo.csv").read_bytes().decode()
    assert text.count("\n") == text.count("\r\n") == 1 + 36
    header, *lines = text.split("\r\n")[:-1]
    assert header == ",".join(HAND_INFO_COLUMNS)
    rows = list(csv.reader(lines))
    for line, row in zip(lines, rows, strict=True):
        identity, age, gender, skin, worn, polish, aspect, name, odd = row
        assert line == (
            f'"{identity}",{age},"{gender}","{skin}",{worn},{polish},"{aspect}","{name}",{odd}'
        )
        assert len(identity.strip()) == 7
    dirty = [row for row in rows if row[0] != row[0].strip()]
    assert [(row[0], row[4], row[6]) for row in dirty] == [("1200000 ", "0", "dorsal right")]
    assert sum(row[0] == "1200000" for row in rows) == 11


def test_columns_agree_within_a_person() -> None:
    lines = hand_info_text(SyntheticConfig(identities=60, images_per_identity=5)).split("\r\n")
    rows = [dict(zip(HAND_INFO_COLUMNS, row, strict=True)) for row in csv.reader(lines[1:-1])]
    facts = {
        (r["id"].strip(), r["age"], r["gender"], r["skinColor"], r["irregularities"]) for r in rows
    }
    assert len(facts) == 60
    plain = {(row["id"].strip(), row["aspectOfHand"]) for row in rows if row["accessories"] == "0"}
    assert len(plain) == 60 * 4  # the split drops photos with accessories, but no person
    for column in ("accessories", "nailPolish", "irregularities"):
        assert {row[column] for row in rows} == {"0", "1"}
    assert not any(r["nailPolish"] == "1" for r in rows if r["aspectOfHand"].startswith("palmar"))


def test_files_depend_on_the_seed_but_not_on_processes(small_set: Path, tmp_path: Path) -> None:
    assert draw_small(tmp_path / "a", "--processes", "2") == 0
    assert contents(tmp_path / "a") == contents(small_set)
    assert draw_small(tmp_path / "b", "--seed", "1") == 0
    other = contents(tmp_path / "b")
    assert other.keys() == contents(small_set).keys()
    assert all(other[name] != content for name, content in contents(small_set).items())


def test_same_flags_draw_nothing_and_others_are_refused(
    small_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (small_set / "HandInfo.csv").stat().st_mtime_ns, contents(small_set)
    assert draw_small(small_set, "--processes", "2") == 0
    log = capfd.readouterr().err
    assert "is complete" in log
    assert log.endswith(f"next: python dataset_11k_split.py --input {small_set}\n")
    assert draw_small(small_set, "--seed", "7") == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "seed 0 (now: 7)" in error
    assert "width" not in error
    assert "--overwrite" in error
    assert ((small_set / "HandInfo.csv").stat().st_mtime_ns, contents(small_set)) == before


def test_overwrite_replaces_the_set_and_its_splits_and_nothing_else(
    own_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(own_set)
    (own_set / "sub_dataset").mkdir()
    (own_set / "sub_dataset" / "dorsal_dr.csv").write_text("stale")
    assert draw_small(own_set, "--seed", "1", "--overwrite") == 0
    after = contents(own_set)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
    for extra in ("notes.txt", "Hands/mine.jpg"):
        (own_set / extra).write_text("mine")
        assert draw_small(own_set, "--seed", "2", "--overwrite") == 1
        assert extra in capfd.readouterr().err
        assert contents(own_set) == {**after, extra: b"mine"}
        (own_set / extra).unlink()


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "files",
    [
        {"11k": "a file"},
        {"11k/HandInfo.csv": "id\n"},
        {"11k/holiday.jpg": "x"},
        {"11k/HandInfo.csv": "", "11k/synthetic.json": "{}"},
    ],
)
def test_folder_with_other_files_is_refused(
    tmp_path: Path,
    files: dict[str, str],
    overwrite: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    assert draw_small(tmp_path / "11k", *overwrite) == 1
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ")
    assert str(tmp_path / "11k") in error
    assert "\n" not in error
    assert contents(tmp_path) == before


def test_edited_or_incomplete_set_is_noticed(
    own_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(own_set)
    (own_set / "Hands" / "Hand_0000004.jpg").unlink()
    assert draw_small(own_set) == 1
    assert "1 of 36 photos are missing" in capfd.readouterr().err
    assert draw_small(own_set, "--overwrite") == 0
    assert contents(own_set) == before
    assert [path.name for path in own_set.parent.iterdir()] == ["11k"]
    (own_set / "HandInfo.csv").write_text("id,age\n")
    before = contents(own_set)
    for overwrite in ((), ("--overwrite",)):
        assert draw_small(own_set, *overwrite) == 1
        assert "was edited after it was drawn" in capfd.readouterr().err
        assert contents(own_set) == before


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left"),
    ],
)
def test_interruption_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    failure: BaseException,
    code: int,
    text: str,
) -> None:
    drawn = []

    def fail_later(*args: Any, **kwargs: Any) -> Image.Image:
        drawn.append(list(tmp_path.glob(".11k.*/11k/Hands/*.jpg")))
        if len(drawn) == 4:
            raise failure
        return Image.new("RGB", (64, 48))

    monkeypatch.setattr(dataset_11k_synthetic, "render", fail_later)
    assert draw_small(tmp_path / "11k") == code
    assert text in capfd.readouterr().err
    assert len(drawn[-1]) == 3  # photos had been written
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_deleted_and_a_running_one_stays(tmp_path: Path) -> None:
    for name in ("killed", "running"):
        (tmp_path / f".11k.drawing.{name}" / "11k" / "Hands").mkdir(parents=True)
    with FileLock(tmp_path / ".11k.drawing.running" / ".lock"):
        assert draw_small(tmp_path / "11k") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"11k", ".11k.drawing.running"}


def test_killed_while_replacing_leaves_no_part_of_a_data_set(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "11k"
    shutil.copytree(small_set, output)
    entries, rename = {path.name for path in output.iterdir()}, Path.rename

    def check(self: Path, target: Path) -> Path:
        if target == output:  # the former data set must have gone at once
            assert not output.exists()
            (replaced,) = tmp_path.glob(".11k.drawing.*/replaced")
            assert {path.name for path in replaced.iterdir()} == entries
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", check)
    assert draw_small(output, "--overwrite") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["11k"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--identities", "0"),
        ("--images_per_identity", "0"),
        ("--width", "66"),
        ("--width", "32"),
        ("--processes", "0"),
        ("--seed", "-1"),
        ("--contact_sheet", "sheet.jpg"),
        ("--identity", "3"),
    ],
)
def test_bad_flags_exit_2(
    tmp_path: Path, flags: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(tmp_path / "11k"), *flags])
    assert stop.value.code == 2
    assert flags[0] in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet_of_an_existing_set(small_set: Path, tmp_path: Path) -> None:
    before = contents(small_set)
    sheet = tmp_path / "sheet.png"
    assert draw_small(small_set, "--contact_sheet", str(sheet)) == 0
    with Image.open(sheet) as image:
        assert (image.format, image.size) == ("PNG", (960, 3 * 250 + 28))
        colours = np.asarray(image.convert("RGB"), dtype=float)
    assert (colours[:28].min(axis=(0, 2)) < 100).any()  # labels
    for cell in range(4):
        shown = colours[28:278, 240 * cell : 240 * (cell + 1)]
        assert 0.05 < (shown.min(axis=2) < 190).mean() < 0.8  # a hand
    assert contents(small_set) == before
