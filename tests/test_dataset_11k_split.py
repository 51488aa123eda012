"""The published split, byte for byte, and every way in which the script can refuse."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dataset_11k_split import main

ASPECTS = {
    "dorsal_dr": "dorsal right",
    "dorsal_dl": "dorsal left",
    "palmar_pr": "palmar right",
    "palmar_pl": "palmar left",
}
FIELDS = ("image_path", "id", "gender", "age")
SIDES = ("train", "val")

Row = tuple[str, ...]


def published_procedure(hand_info: Path, image_root: str) -> dict[str, list[Row]]:
    """Return what the published script writes: file below the root -> rows of `FIELDS`.

    Written from the paper's procedure with the csv module and the global generator; it shares no
    code with dataset_11k_split.py. Leaves the global generator seeded.
    """
    by_aspect: dict[str, list[Row]] = {name: [] for name in ASPECTS}
    with hand_info.open(newline="") as file:
        for line in csv.DictReader(file):
            for name, aspect in ASPECTS.items():
                if int(line["accessories"]) == 0 and line["aspectOfHand"] == aspect:
                    identity = "1200000" if int(line["id"]) == 1200000 else line["id"]
                    path = os.path.join(image_root, "Hands", line["imageName"])  # noqa: PTH118
                    by_aspect[name].append((path, identity, line["gender"], line["age"]))
    np.random.seed(42)
    files = {}
    for name, rows in by_aspect.items():
        drawn = [rows[i] for i in np.random.choice(len(rows), len(rows), replace=False)]
        half = int(0.5 * len(rows))
        files[f"sub_dataset/{name}.csv"] = drawn
        files[f"trainval/{name}/train.csv"] = drawn[:half]
        files[f"trainval/{name}/val.csv"] = drawn[half:]
    return files


def write_as_published(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=FIELDS)
        writer.writeheader()
        for row in rows:
            writer.writerow(dict(zip(FIELDS, row, strict=True)))


def read_split(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == FIELDS
    return [tuple(row) for row in rows]


def written(root: Path) -> dict[str, bytes]:
    """Return every file below sub_dataset/ and trainval/."""
    paths = [*root.glob("sub_dataset/**/*"), *root.glob("trainval/**/*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


def remove_photos(root: Path, csv_file: str, places: tuple[int, ...]) -> list[str]:
    """Delete the photos of some rows of a split CSV; return their names."""
    names = [Path(row[0]).name for row in read_split(root / csv_file)]
    for place in places:
        (root / "Hands" / names[place]).unlink()
    return [names[place] for place in places]


# ----------------------------------------------------------------------------- the split


@pytest.mark.parametrize(
    "spelling", ["{root}", "{root}/", "11k", "./11k", "11k/", "../{parent}/11k", "a, b"]
)
def test_the_files_are_the_published_ones_byte_for_byte(
    make_hands_root: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spelling: str,
) -> None:
    root = make_hands_root("a, b" if spelling == "a, b" else "11k")
    monkeypatch.chdir(tmp_path)
    given = spelling.format(root=root, parent=tmp_path.name)
    assert main(["--input", given]) == 0
    expected = {}
    for name, rows in published_procedure(root / "HandInfo.csv", given).items():
        write_as_published(tmp_path / "expected.csv", rows)
        expected[name] = (tmp_path / "expected.csv").read_bytes()
    assert written(root) == expected


def test_the_default_input_is_11k_in_the_current_folder(
    hands_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hands_root.parent)
    assert main([]) == 0
    assert read_split(hands_root / "sub_dataset/dorsal_dr.csv")[0][0].startswith("./11k/Hands/")


def test_both_sides_together_are_the_photos_without_accessories(split_root: Path) -> None:
    info = pd.read_csv(split_root / "HandInfo.csv", dtype=str)
    for name, aspect in ASPECTS.items():
        sides = [read_split(split_root / f"trainval/{name}/{side}.csv") for side in SIDES]
        plain = info[(info["aspectOfHand"] == aspect) & (info["accessories"] == "0")]
        photos = [Path(row[0]).name for side in sides for row in side]
        assert sorted(photos) == sorted(plain["imageName"])  # so disjoint and complete
        assert len(sides[1]) - len(sides[0]) == len(plain) % 2
        assert "0000777" not in {row[1] for side in sides for row in side}  # rings on all photos


def test_a_stray_blank_makes_no_second_person(split_root: Path) -> None:
    people = {row[1] for row in read_split(split_root / "sub_dataset/dorsal_dr.csv")}
    assert people == {"0000000", "0000002", "0000041", "0000503", "0001071", "1200000"}


def test_a_second_run_changes_nothing(split_root: Path) -> None:
    first = written(split_root)
    assert main(["--input", str(split_root)]) == 0
    assert written(split_root) == first


def test_the_global_generator_is_neither_used_nor_moved(split_root: Path) -> None:
    first = written(split_root)
    np.random.seed(7)
    assert main(["--input", str(split_root)]) == 0
    after = np.random.rand()
    np.random.seed(7)
    assert np.random.rand() == after
    assert written(split_root) == first


def test_hands_may_be_a_symbolic_link(
    hands_root: Path, make_hands_root: Callable[..., Path]
) -> None:
    linked = make_hands_root("linked")
    for photo in (linked / "Hands").iterdir():
        photo.unlink()
    (linked / "Hands").rmdir()
    (linked / "Hands").symlink_to(hands_root / "Hands", target_is_directory=True)
    assert main(["--input", str(linked)]) == 0
    first, *_ = read_split(linked / "sub_dataset/dorsal_dr.csv")
    assert first[0].startswith(f"{linked}/Hands/")  # as the user wrote it, not resolved


def test_an_aspect_without_photos_gives_files_with_a_header_only(hands_root: Path) -> None:
    path = hands_root / "HandInfo.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if b"dorsal left" not in line))
    assert main(["--input", str(hands_root)]) == 0
    files = written(hands_root)
    for name in ("sub_dataset/dorsal_dl", "trainval/dorsal_dl/train", "trainval/dorsal_dl/val"):
        assert files[f"{name}.csv"] == b"image_path,id,gender,age\r\n"
    expected = published_procedure(path, str(hands_root))
    assert (
        read_split(hands_root / "trainval/palmar_pl/val.csv")
        == expected["trainval/palmar_pl/val.csv"]
    )


def test_the_table_tells_who_went_where(
    hands_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--input", str(hands_root)]) == 0
    table = capsys.readouterr().out
    people = {}
    for name in ASPECTS:
        train, val = (read_split(hands_root / f"trainval/{name}/{side}.csv") for side in SIDES)
        strangers = [row[1] for row in val if row[1] not in {row[1] for row in train}]
        people[name] = rf"{len(set(strangers))} \({len(strangers)}\)"
    for name, line in {
        "dorsal_dr": "24 6 4-4-4 12/12",
        "dorsal_dl": "25 6 4-4-5 12/13",
        "palmar_pr": "24 6 4-4-4 12/12",
        "palmar_pl": "24 6 4-4-4 12/12",
    }.items():
        cells = r"\s+".join([name, *line.split(), people[name]])
        assert re.search(rf"^{cells}$", table, re.MULTILINE), table
    assert f"wrote 12 files below {hands_root}" in table


# ----------------------------------------------------------------------------- --skip_missing


def test_skip_missing_drops_rows_after_the_draw(
    split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {name: read_split(split_root / name) for name in written(split_root)}
    gone = remove_photos(split_root, "trainval/dorsal_dr/train.csv", (0, 5, 11))
    gone += remove_photos(split_root, "trainval/palmar_pl/val.csv", (3,))
    assert main(["--input", str(split_root), "--skip_missing"]) == 0
    for name, rows in whole.items():
        left = [row for row in rows if Path(row[0]).name not in gone]
        assert read_split(split_root / name) == left  # same side, same order
    assert "left out 4 of 97 photos" in capsys.readouterr().err


def test_skip_missing_with_all_photos_there_changes_nothing(split_root: Path) -> None:
    first = written(split_root)
    assert main(["--input", str(split_root), "--skip_missing"]) == 0
    assert written(split_root) == first


def test_a_whole_aspect_may_be_missing(split_root: Path) -> None:
    remove_photos(split_root, "sub_dataset/dorsal_dl.csv", tuple(range(25)))
    assert main(["--input", str(split_root), "--skip_missing"]) == 0
    assert read_split(split_root / "trainval/dorsal_dl/val.csv") == []
    assert len(read_split(split_root / "trainval/palmar_pr/val.csv")) == 12


def test_photos_with_accessories_need_not_be_there(
    hands_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = pd.read_csv(hands_root / "HandInfo.csv", dtype=str)
    for name in info["imageName"][info["accessories"] == "1"]:
        (hands_root / "Hands" / name).unlink()
    assert main(["--input", str(hands_root)]) == 0


# ----------------------------------------------------------------------------- refusals


def spoil_header(root: Path) -> None:
    path = root / "HandInfo.csv"
    path.write_bytes(path.read_bytes().replace(b"gender", b"sex", 1))


def spoil_last_row(root: Path) -> None:
    path = root / "HandInfo.csv"
    path.write_bytes(path.read_bytes().removesuffix(b"0\r\n") + b"maybe\r\n")


def put_a_file_in_the_way(root: Path) -> None:
    for path in sorted((root / "trainval").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "trainval").rmdir()
    (root / "trainval").write_text("in the way")


def empty_hands(root: Path) -> None:
    for photo in (root / "Hands").iterdir():
        photo.unlink()


@pytest.mark.parametrize(
    ("spoil", "flags", "message"),
    [
        (lambda root: (root / "HandInfo.csv").unlink(), [], "HandInfo.csv not found; get Hands/ "),
        (spoil_header, [], "missing columns gender (found id, age, sex,"),
        (spoil_last_row, [], "line 106: irregularities is 'maybe', expected 0 or 1"),
        (
            lambda root: remove_photos(root, "sub_dataset/palmar_pr.csv", (2, 0, 1)),
            [],
            "3 of 97 photos that",
        ),
        (empty_hands, [], "97 of 97 photos that"),
        (empty_hands, ["--skip_missing"], "none of the 97 photos that are listed is in"),
        (put_a_file_in_the_way, [], "cannot write "),
    ],
)
def test_a_refusal_is_one_line_and_leaves_the_former_files(
    split_root: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Any],
    flags: list[str],
    message: str,
) -> None:
    for path in written(split_root):
        with (split_root / path).open("a") as file:
            file.write("former\r\n")  # so that a file written anew would show
    spoiled = spoil(split_root)
    former = written(split_root)
    assert main(["--input", str(split_root), *flags]) == 1
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if " INFO " not in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert all(name in errors[0] for name in spoiled or [])
    assert out == ""
    assert written(split_root) == former


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device"), 1, "cannot write .*: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
@pytest.mark.parametrize("has_former", [True, False])
def test_a_write_that_fails_half_way_leaves_the_former_files(
    hands_root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
    has_former: bool,
) -> None:
    if has_former:
        assert main(["--input", str(hands_root)]) == 0
        for path in written(hands_root):
            (hands_root / path).write_text("former")
    former = written(hands_root)
    assert len(former) == (12 if has_former else 0)
    to_csv = pd.DataFrame.to_csv
    n_calls = 0

    def fail_at_the_seventh(table: pd.DataFrame, *args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 7:
            raise error
        return to_csv(table, *args, **kwargs)

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail_at_the_seventh)
    assert main(["--input", str(hands_root)]) == code
    assert n_calls == 7
    assert re.search(line, capsys.readouterr().err)
    assert written(hands_root) == former  # and no temporary file beside them


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol", "mine"], "argument --protocol: invalid choice: 'mine'"),
        (["--seed", "1"], "unrecognized arguments: --seed 1"),
        (["--skip"], "unrecognized arguments: --skip"),
    ],
)
def test_unknown_flags_end_with_code_2(
    hands_root: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--input", str(hands_root), *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert written(hands_root) == {}


# ----------------------------------------------------------------------------- 11k Hands itself

# Per aspect, as published: photos, people, fewest and most photos of a person, train, val, female
# and male photos, photos per age group, val photos of people without a photo in train.
FACTS = {
    "dorsal_dr": (2004, 143, 2, 46, 1002, 1002, 1095, 909, (372, 878, 414, 147, 114, 79), 7),
    "dorsal_dl": (1869, 146, 2, 52, 934, 935, 1023, 846, (328, 852, 362, 162, 87, 78), 3),
    "palmar_pr": (1965, 143, 4, 71, 982, 983, 1017, 948, (371, 861, 418, 148, 95, 72), 5),
    "palmar_pl": (2027, 151, 2, 56, 1013, 1014, 1078, 949, (381, 890, 401, 180, 111, 64), 8),
}
GROUP_STARTS = (0, 21, 22, 23, 24, 31, 200)


def facts(root: Path, aspect: str) -> tuple[Any, ...]:
    """Return what `FACTS` holds, counted from the written files."""
    everyone = pd.read_csv(root / f"sub_dataset/{aspect}.csv", dtype={"id": str})
    train, val = (
        pd.read_csv(root / f"trainval/{aspect}/{side}.csv", dtype={"id": str}) for side in SIDES
    )
    per_person = everyone["id"].value_counts()
    ages, _ = np.histogram(everyone["age"], bins=GROUP_STARTS)
    return (
        len(everyone),
        len(per_person),
        per_person.min(),
        per_person.max(),
        len(train),
        len(val),
        *((everyone["gender"] == gender).sum() for gender in ("female", "male")),
        tuple(ages),
        (~val["id"].isin(train["id"])).sum(),
    )


@pytest.mark.real
def test_the_published_counts_and_rows(real_full_info: Path, tmp_path: Path) -> None:
    root = tmp_path / "11k"
    (root / "Hands").mkdir(parents=True)
    (root / "HandInfo.csv").write_bytes(real_full_info.read_bytes())
    names = pd.read_csv(root / "HandInfo.csv")["imageName"]
    assert len(names) == 11_076
    for name in names:
        (root / "Hands" / name).touch()
    assert main(["--input", str(root)]) == 0
    for name, rows in published_procedure(root / "HandInfo.csv", str(root)).items():
        assert read_split(root / name) == rows
    assert {aspect: facts(root, aspect) for aspect in ASPECTS} == FACTS


@pytest.mark.real
def test_the_real_photos_split_as_published(
    real_root: Path, real_full_info: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--input", str(real_root)]) == 0
    assert facts(real_root, "dorsal_dr") == FACTS["dorsal_dr"]
    whole = published_procedure(real_full_info, str(real_root))
    for name in ("sub_dataset/dorsal_dr.csv", *(f"trainval/dorsal_dr/{s}.csv" for s in SIDES)):
        assert read_split(real_root / name) == whole[name]
    assert read_split(real_root / "sub_dataset/dorsal_dl.csv") == []


def test_a_set_with_nothing_to_split_leaves_the_former_files(
    split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info, train_csv = split_root / "HandInfo.csv", split_root / "trainval/dorsal_dr/train.csv"
    before = train_csv.read_bytes()
    info.write_text(info.read_text().splitlines()[0] + "\n")
    capsys.readouterr()
    assert main(["--input", str(split_root)]) == 1
    assert "lists no photo without accessories" in capsys.readouterr().err
    assert train_csv.read_bytes() == before
