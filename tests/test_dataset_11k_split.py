"""The published split, byte for byte, the other protocols' promises, and every refusal."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.splits import PROTOCOLS, locate, read_data
from data.tables import read_samples
from dataset_11k import age_group
from dataset_11k_split import (
    AspectSplit,
    draw_splits,
    leakage_table,
    main,
    people_to_folds,
    samples_by_aspect,
)
from dataset_11k_synthetic import SyntheticConfig, hand_info_text
from utils import UserError

ASPECTS = {
    "dorsal_dr": "dorsal right",
    "dorsal_dl": "dorsal left",
    "palmar_pr": "palmar right",
    "palmar_pl": "palmar left",
}
FIELDS = ("image_path", "id", "gender", "age")
SIDES = ("train", "val")
LISTS = ("leakage", "gallery", "distractors")  # CSVs that are no splits

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
    """Return every file below sub_dataset/ and trainval/: CSVs, and what should not be there."""
    paths = [*root.glob("sub_dataset/**/*"), *root.glob("trainval/**/*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


def split_csvs(root: Path) -> list[str]:
    """Return the CSVs of `written` that have the columns of a split."""
    return [name for name in written(root) if Path(name).stem not in LISTS]


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
    made = written(root)
    made.pop("trainval/leakage.csv")
    assert made == expected


def test_the_default_input_is_11k_in_the_current_folder(
    hands_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hands_root.parent)
    assert main([]) == 0
    assert read_split(hands_root / "sub_dataset/dorsal_dr.csv")[0][0].startswith("./11k/Hands/")


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
        unseen = [row[1] for row in val if row[1] not in {row[1] for row in train}]
        people[name] = rf"{len(set(unseen))} \({len(unseen)}\)"
    for name, line in {
        "dorsal_dr": "0 24 6 4-4-4 12/12 0",
        "dorsal_dl": "0 25 6 4-4-5 12/13 0",
        "palmar_pr": "0 24 6 4-4-4 12/12 0",
        "palmar_pl": "0 24 6 4-4-4 12/12 0",
    }.items():
        cells = r"\s+".join([name, *line.split(), r"\d+ \(\d+\)", people[name]])
        assert re.search(rf"^{cells}$", table, re.MULTILINE), table
    assert f"wrote 13 files below {hands_root}\n" in table
    command = f"python train.py --attributes_file {hands_root}/sub_dataset/dorsal_dr.csv"
    assert table.endswith(f"\ntrain: {command}\n")


# ----------------------------------------------------------------------------- --skip_missing


def test_a_whole_aspect_may_be_missing(
    split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remove_photos(split_root, "sub_dataset/dorsal_dr.csv", tuple(range(24)))
    assert main(["--input", str(split_root), "--skip_missing"]) == 0
    assert capsys.readouterr().out.endswith("sub_dataset/dorsal_dl.csv\n")  # what to train on
    assert read_split(split_root / "trainval/dorsal_dr/val.csv") == []
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


def spoil_encoding(root: Path) -> None:
    path = root / "HandInfo.csv"
    path.write_bytes(path.read_bytes().replace(b"Hand_0000002", "Händ".encode("latin-1"), 1))


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
        (
            lambda root: (root / "HandInfo.csv").unlink(),
            [],
            "or draw a data set: python dataset_11k_s",
        ),
        (spoil_encoding, [], "HandInfo.csv (byte 0xe4). Save it as UTF-8"),
        (spoil_header, [], "missing column gender: "),
        (spoil_last_row, [], "irregularities is 'maybe', expected 0 or 1: "),
        (
            lambda root: remove_photos(root, "sub_dataset/palmar_pr.csv", (2, 0, 1)),
            [],
            "3 of 97 photos of ",
        ),
        (empty_hands, [], "97 of 97 photos of "),
        (empty_hands, ["--skip_missing"], "none of 97 photos: "),
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
    errors = [line for line in err.splitlines() if not re.search(" INFO | identical photos ", line)]
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
    assert len(former) == (13 if has_former else 0)
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
    ("flag", "name", "message"),
    [
        ("--input", "HandInfo.csv", "not a folder: --input {}. Give the one with Hands/"),
        ("--attributes_file", "none.csv", "not found: --attributes_file {}. Give <root>/sub_"),
    ],
)
def test_a_source_that_is_none_gets_advice(
    hands_root: Path, capsys: pytest.CaptureFixture[str], flag: str, name: str, message: str
) -> None:
    assert main([flag, str(hands_root / name)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message.format(hands_root / name)}")
    assert written(hands_root) == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol", "mine"], "argument --protocol: invalid choice: 'mine'"),
        (["--seed", "42"], "--seed has no effect with --protocol paper, whose seed is 42"),
        (["--folds", "5"], "--folds has no effect with --protocol paper"),
        (["--protocol", "burst", "--folds", "5"], "--folds has no effect with --protocol burst"),
        (["--protocol", "subject-disjoint", "--folds", "2"], "--folds is 2, expected 3 or more"),
        (["--protocol", "burst", "--seed", "-1"], "--seed is -1, expected 0 to 4294967295"),
        (["--protocol", "burst", "--seed", str(2**32)], "--seed is 4294967296, expected 0 to"),
        (
            ["--input", os.fsdecode(b"\xff")],
            "--input is not UTF-8 text, as the CSVs are: '\\udcff'. Rename",
        ),
        (["--skip"], "unrecognized arguments: --skip"),
        (["--folders", "Hands"], "--input and --folders exclude each other: give one of them"),
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


# ----------------------------------------------------------------------------- other protocols

Photo = tuple[str, str]  # id, name
Sides = dict[tuple[str, int], dict[str, list[Photo]]]  # (aspect, fold) -> split -> its photos
SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
NEW_PROTOCOLS = ("stratified", "burst", "subject-disjoint", "half")
DRAWN = ("paper", *NEW_PROTOCOLS)  # lists draws val only


def number(photo: Photo) -> int:
    """Return the number in a name like x_0000123.jpg."""
    return int(photo[1].removesuffix(".jpg").rpartition("_")[2])


def sides_of(splits: dict[str, AspectSplit]) -> Sides:
    return {
        (aspect, fold): {
            side: list(zip(rows["id"], rows["name"], strict=True)) for side, rows in parts.items()
        }
        for aspect, (_, folds) in splits.items()
        for fold, parts in enumerate(folds)
    }


def photos_in(path: Path) -> list[Photo]:
    return [(row[1], Path(row[0]).name) for row in read_split(path)]


def sides_on_disk(root: Path, protocol: str) -> Sides:
    return {
        (aspect, fold): {side: photos_in(folder / f"{side}.csv") for side in SHARES}
        for aspect in ASPECTS
        for fold in range(5 if protocol == "subject-disjoint" else 1)
        if (folder := root / "trainval" / protocol / aspect / f"fold_{fold}")
    }


def by_person(photos: list[Photo]) -> dict[str, list[int]]:
    people: dict[str, list[int]] = {}
    for photo in photos:
        people.setdefault(photo[0], []).append(number(photo))
    return people


def check_stratified(sides: Sides, everyone: dict[str, list[Photo]]) -> None:
    for (aspect, _), parts in sides.items():
        assert sorted(sum(parts.values(), [])) == sorted(everyone[aspect])
        counts = {side: by_person(photos) for side, photos in parts.items()}
        for person, numbers in by_person(everyone[aspect]).items():
            n = {side: len(counts[side].get(person, [])) for side in SHARES}
            if len(numbers) < 5:
                assert n == {"train": len(numbers), "val": 0, "test": 0}
            else:
                assert all(
                    abs(n[side] - share * len(numbers)) < 1 for side, share in SHARES.items()
                )
                assert all(n.values())


def check_burst(sides: Sides, everyone: dict[str, list[Photo]]) -> None:
    for (aspect, _), parts in sides.items():
        kept = sum(parts.values(), [])
        assert len(set(kept)) == len(kept)
        assert set(kept) <= set(everyone[aspect])
        numbers = {side: by_person(photos) for side, photos in parts.items()}
        assert numbers["val"].keys() == numbers["test"].keys()
        for person, photos in by_person(everyone[aspect]).items():
            if person in numbers["val"]:
                train, val, test = (numbers[side][person] for side in SHARES)
                assert max(train) + 2 < min(val)  # so no frame is within 2 of another side's
                assert max(val) + 2 < min(test)
                assert set(val) == {n for n in photos if min(val) <= n <= max(val)}
            else:
                assert sorted(numbers["train"][person]) == sorted(photos)


def check_disjoint(sides: Sides, everyone: dict[str, list[Photo]], n_folds: int) -> None:
    tested: dict[str, set[int]] = {}
    for fold in range(n_folds):
        people: dict[str, set[str]] = {side: set() for side in SHARES}  # of all aspects together
        for aspect, photos in everyone.items():
            parts = sides[aspect, fold]
            assert sorted(sum(parts.values(), [])) == sorted(photos)
            assert parts["val"] == sides[aspect, (fold + 1) % n_folds]["test"]
            for side in SHARES:
                people[side] |= {person for person, _ in parts[side]}
        assert not people["train"] & people["val"]
        assert not people["train"] & people["test"]
        assert not people["val"] & people["test"]
        for person in people["test"]:
            tested.setdefault(person, set()).add(fold)
    assert all(len(folds) == 1 for folds in tested.values())
    assert tested.keys() == {person for photos in everyone.values() for person, _ in photos}


def sort_key(person: str) -> tuple[bool, int, str]:
    """Sort numbers by value, and before other ids."""
    return not person.isdigit(), int(person) if person.isdigit() else 0, person


def check_half(sides: Sides, everyone: dict[str, list[Photo]]) -> None:
    for (aspect, _), parts in sides.items():
        assert sorted(sum(parts.values(), [])) == sorted(everyone[aspect])
        train, val, test = (by_person(parts[side]) for side in SHARES)
        assert len(train) - len(test) in (0, 1)
        assert not (train and test) or max(map(sort_key, train)) < min(map(sort_key, test))
        for person, numbers in by_person(everyone[aspect]).items():
            expected = 1 if person in train and len(numbers) > 1 else 0
            assert len(val.get(person, [])) == expected


def check(protocol: str, sides: Sides, everyone: dict[str, list[Photo]], n_folds: int) -> None:
    if protocol == "subject-disjoint":
        check_disjoint(sides, everyone, n_folds)
    else:
        checks = {"stratified": check_stratified, "burst": check_burst, "half": check_half}
        checks[protocol](sides, everyone)


@st.composite
def data_sets(draw: st.DrawFn) -> dict[str, pd.DataFrame]:
    """Return the rows of a random set, some photos with the same number, some aspects empty."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_people, most = draw(st.integers(3, 15)), draw(st.sampled_from([1, 6, 25]))
    gaps = draw(st.sampled_from([[1], [1, 1, 1, 2, 3], [0, 1, 5], [3]]))
    lines: list[tuple[Any, ...]] = []
    frame = 0
    for person in range(n_people):
        age, gender = int(random.integers(18, 30)), str(random.choice(["female", "male"]))
        for aspect in ASPECTS.values():
            for _ in range(random.integers(0, most + 1)):
                frame += int(random.choice(gaps))
                name = f"{len(lines)}_{frame}.jpg"
                lines.append((f"p{person}", age, gender, "fair", 0, aspect, name))
    columns = ["id", "age", "gender", "skinColor", "accessories", "aspectOfHand", "imageName"]
    return samples_by_aspect(
        pd.DataFrame(lines, columns=columns).astype({"imageName": str}), "root"
    )


def photos_of(by_aspect: dict[str, pd.DataFrame]) -> dict[str, list[Photo]]:
    return {
        aspect: list(zip(rows["id"], rows["name"], strict=True))
        for aspect, rows in by_aspect.items()
    }


@pytest.mark.parametrize("protocol", NEW_PROTOCOLS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(by_aspect=data_sets(), seed=st.integers(0, 2**32 - 1), n_folds=st.integers(3, 6))
def test_a_protocol_keeps_its_promise_on_random_sets(
    protocol: str, by_aspect: dict[str, pd.DataFrame], seed: int, n_folds: int
) -> None:
    n_people = pd.concat(by_aspect.values())["id"].nunique()
    if protocol == "subject-disjoint" and n_people < n_folds:
        return
    splits = draw_splits(by_aspect, protocol, n_folds=n_folds, seed=seed)
    sides = sides_of(splits)
    check(protocol, sides, photos_of(by_aspect), n_folds)
    assert sides_of(draw_splits(by_aspect, protocol, n_folds=n_folds, seed=seed)) == sides


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(by_aspect=data_sets(), seed=st.integers(0, 2**32 - 1), protocol=st.sampled_from(DRAWN))
def test_the_leakage_table_agrees_with_brute_force(
    by_aspect: dict[str, pd.DataFrame], seed: int, protocol: str
) -> None:
    rows = pd.concat(by_aspect.values()).set_index("name")
    if rows["id"].nunique() < 3:
        return
    splits = draw_splits(by_aspect, protocol, n_folds=3, seed=seed)
    table = leakage_table(splits, {}).groupby(["aspect", "fold", "split"])
    for (aspect, fold), parts in sides_of(splits).items():
        for side, photos in parts.items():
            line = table.get_group((aspect, fold, side)).iloc[0]
            there = rows.loc[[name for _, name in photos]]
            assert (line["photos"], line["people"]) == (len(photos), len({p for p, _ in photos}))
            for values in (there["gender"], there["age"].map(age_group)):
                for value in set(values):
                    assert line[f"photos_{value}"] == (values == value).sum()
                    assert line[f"people_{value}"] == there["id"][values == value].nunique()
            if side == "train" or not photos:
                assert line[["person_in_train", "within_1", "within_5"]].isna().all()
                continue
            for n, column in [(10**9, "person_in_train"), *((n, f"within_{n}") for n in (1, 2, 5))]:
                near = [
                    any(
                        p == q and abs(number((p, a)) - number((q, b))) <= n
                        for q, b in parts["train"]
                    )
                    for p, a in photos
                ]
                assert line[column] == pytest.approx(np.mean(near))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(by_aspect=data_sets(), seed=st.integers(0, 2**32 - 1), n_folds=st.integers(3, 6))
def test_folds_differ_by_one_person_of_an_age_group(
    by_aspect: dict[str, pd.DataFrame], seed: int, n_folds: int
) -> None:
    people = pd.concat([part.assign(aspect=aspect) for aspect, part in by_aspect.items()])
    if people["id"].nunique() < n_folds:
        return
    fold_of = people_to_folds(people, n_folds, seed)
    for _, group in people.drop_duplicates("id").groupby(people["age"].map(age_group)):
        counts = group["id"].map(fold_of).value_counts().reindex(range(n_folds), fill_value=0)
        assert counts.max() - counts.min() <= 1


def layout(root: Path, hand_info: str) -> Path:
    """Write HandInfo.csv and a file for every photo that it lists."""
    (root / "Hands").mkdir(parents=True)
    (root / "HandInfo.csv").write_text(hand_info, newline="")
    for name in pd.read_csv(root / "HandInfo.csv")["imageName"]:
        (root / "Hands" / name).touch()
    return root


def plain_photos(root: Path) -> dict[str, list[Photo]]:
    info = pd.read_csv(root / "HandInfo.csv", dtype=str)
    info = info[info["accessories"] == "0"].assign(id=info["id"].str.strip())
    return {
        name: list(
            info[info["aspectOfHand"] == aspect][["id", "imageName"]].itertuples(False, None)
        )
        for name, aspect in ASPECTS.items()
    }


@pytest.fixture
def drawn_root(tmp_path: Path) -> Path:
    """The layout that dataset_11k_synthetic.py draws, photos left empty."""
    return layout(
        tmp_path / "drawn", hand_info_text(SyntheticConfig(identities=12, images_per_identity=13))
    )


@pytest.mark.real
@pytest.mark.parametrize("protocol", NEW_PROTOCOLS)
def test_a_protocol_keeps_its_promise_on_11k_hands(
    real_full_info: Path, tmp_path: Path, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = layout(tmp_path / "11k", real_full_info.read_bytes().decode())
    assert main(["--input", str(root), "--protocol", protocol]) == 0
    check(protocol, sides_on_disk(root, protocol), plain_photos(root), 5)
    if protocol == "subject-disjoint":  # over all aspects everything could be balanced
        (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("all aspects"))
        assert "*" not in line
        assert line.endswith(" 1/1/1/1/1")  # the five people over 30


# Per aspect, as published: last id in train; people in train, test; photos in train with val, test.
HALVES = {
    "dorsal_dr": (1050, 72, 71, 962, 1042),
    "dorsal_dl": (1037, 73, 73, 808, 1061),
    "palmar_pr": (1051, 72, 71, 977, 988),
    "palmar_pl": (1042, 76, 75, 1004, 1023),
}


@pytest.mark.real
def test_the_published_halves(real_full_info: Path, tmp_path: Path) -> None:
    root = layout(tmp_path / "11k", real_full_info.read_bytes().decode())
    assert main(["--input", str(root), "--protocol", "half"]) == 0
    sides = sides_on_disk(root, "half")
    for aspect, (last_id, n_train, n_test, train_photos, test_photos) in HALVES.items():
        train, val, test = sides[aspect, 0].values()
        people, unseen = by_person(train), by_person(test)
        assert max(map(int, people)) <= last_id < min(map(int, unseen))
        assert len(people) == len(by_person(val)) == len(val) == n_train
        assert len(unseen) == n_test
        assert (len(train) + len(val), len(test)) == (train_photos, test_photos)
        folder = root / "trainval" / "half" / aspect / "fold_0"
        for name, n_entries in (("gallery", n_test), ("distractors", 290 - n_test)):
            draws = pd.read_csv(folder / f"{name}.csv")["draw"].value_counts()
            assert draws.to_dict() == dict.fromkeys(range(10), n_entries)


@pytest.mark.real
def test_the_published_split_leaks_as_measured(real_full_info: Path, tmp_path: Path) -> None:
    root = layout(tmp_path / "11k", real_full_info.read_bytes().decode())
    assert main(["--input", str(root)]) == 0
    table = pd.read_csv(root / "trainval" / "leakage.csv")
    val = table[table["split"] == "val"].set_index("aspect")
    assert val["within_1"].between(0.69, 0.745).all()
    assert val["within_2"].between(0.885, 0.915).all()
    assert (val["person_in_train"] > 0.99).all()
    assert (val["people_female"] + val["people_male"] == val["people"]).all()
    assert val.loc["dorsal_dr", "within_1"] == pytest.approx(0.694, abs=5e-4)


@pytest.mark.parametrize("protocol", NEW_PROTOCOLS)
def test_the_seed_decides_who_goes_where(drawn_root: Path, protocol: str) -> None:
    def drawn(*flags: str) -> dict[str, bytes]:
        assert main(["--input", str(drawn_root), "--protocol", protocol, *flags]) == 0
        return written(drawn_root)

    first = drawn()
    assert drawn("--seed", "42") == first
    other = drawn("--seed", "43")
    assert other.keys() == first.keys()
    assert other != first
    everyone = {name for name in first if name.startswith("sub_dataset/")}
    assert len(everyone) == 4
    assert all(other[name] == first[name] for name in everyone)


@pytest.mark.parametrize(
    ("protocol", "digest"),
    [
        ("stratified", "a935646401771563"),
        ("burst", "b989996a40eeb300"),
        ("subject-disjoint", "f06ec35902f5e979"),
        ("half", "804c48b4d9242d00"),
    ],
)
def test_draws_are_the_same_in_every_version(
    make_hands_root: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    digest: str,
) -> None:
    """Published results name a protocol, fold and seed: these must stay the same photos."""
    root = make_hands_root(n_frames=12)
    monkeypatch.chdir(tmp_path)
    assert main(["--input", "11k", "--protocol", protocol]) == 0
    (root / "trainval" / protocol / "leakage.csv").unlink()
    content = b"".join(content for _, content in sorted(written(root).items()))
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_every_protocol_writes_the_same_files_of_all_rows(drawn_root: Path) -> None:
    rows = set()
    for protocol in DRAWN:
        assert main(["--input", str(drawn_root), "--protocol", protocol]) == 0
        rows.add((drawn_root / "sub_dataset" / "dorsal_dr.csv").read_bytes())
    assert len(rows) == 1
    left = {str(Path(name).parent) for name in written(drawn_root)}
    assert {
        "trainval",
        "trainval/dorsal_dr",
        "trainval/burst",
        "trainval/burst/palmar_pl/fold_0",
    } <= left
    assert "trainval/subject-disjoint/dorsal_dr/fold_4" in left


def galleries(root: Path) -> dict[tuple[str, int], pd.DataFrame]:
    return {
        (aspect, fold): pd.read_csv(
            root / f"trainval/subject-disjoint/{aspect}/fold_{fold}/gallery.csv"
        )
        for aspect in ASPECTS
        for fold in range(5)
    }


@pytest.mark.parametrize("missing", [False, True])
def test_a_gallery_has_one_test_photo_of_everybody(drawn_root: Path, missing: bool) -> None:
    flags = ["--input", str(drawn_root), "--protocol", "subject-disjoint"]
    if missing:
        for photo in sorted((drawn_root / "Hands").iterdir())[::3]:
            photo.unlink()
        flags.append("--skip_missing")
    assert main(flags) == 0
    sides = sides_on_disk(drawn_root, "subject-disjoint")
    first = galleries(drawn_root)
    for key, gallery in first.items():
        person_of = {name: person for person, name in sides[key]["test"]}
        assert set(gallery["draw"]) == set(range(10))
        assert gallery["image_path"].str.startswith(f"{drawn_root}/Hands/").all()
        for _, draw in gallery.groupby("draw"):
            people = [person_of[Path(path).name] for path in draw["image_path"]]
            assert sorted(people) == sorted(set(person_of.values()))
        assert gallery["image_path"].nunique() > len(set(person_of.values()))  # draws differ
    assert main(flags) == 0
    assert all(first[key].equals(gallery) for key, gallery in galleries(drawn_root).items())


def test_distractors_are_the_galleries_of_the_other_aspects(drawn_root: Path) -> None:
    for photo in sorted((drawn_root / "Hands").iterdir())[::3]:
        photo.unlink()
    assert main(["--input", str(drawn_root), "--protocol", "half", "--skip_missing"]) == 0
    folders = {aspect: drawn_root / f"trainval/half/{aspect}/fold_0" for aspect in ASPECTS}
    drawn = {aspect: pd.read_csv(path / "gallery.csv") for aspect, path in folders.items()}
    sides = sides_on_disk(drawn_root, "half")
    for aspect, folder in folders.items():
        unseen = by_person(sides[aspect, 0]["test"])
        assert set(drawn[aspect]["draw"].value_counts()) == {len(unseen)}
        expected = [line for other, x in drawn.items() if other != aspect for line in x.to_numpy()]
        found = pd.read_csv(folder / "distractors.csv").to_numpy()
        assert sorted(map(tuple, found)) == sorted(map(tuple, expected))
        assert len(found) == 10 * 3 * 6  # six people each


@pytest.mark.parametrize("protocol", DRAWN)
def test_skip_missing_moves_nobody(
    drawn_root: Path, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--input", str(drawn_root), "--protocol", protocol]
    assert main(flags) == 0
    whole = {name: read_split(drawn_root / name) for name in split_csvs(drawn_root)}
    n_photos = sum(len(rows) for name, rows in whole.items() if name.startswith("sub_dataset/"))
    gone = remove_photos(drawn_root, "sub_dataset/palmar_pr.csv", (1, 4, 30))
    (drawn_root / "Hands" / gone[0]).symlink_to("nowhere.jpg")
    assert main([*flags, "--skip_missing"]) == 0
    assert f"left out 3 of {n_photos} photos" in capsys.readouterr().err
    for name, rows in whole.items():
        left = [row for row in rows if Path(row[0]).name not in gone]
        assert read_split(drawn_root / name) == left


def test_every_reason_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name, protocol in PROTOCOLS.items():
        assert f"\n{name}\n" in text
        assert all(line in text for line in protocol.reason.splitlines())


def rename_without_number(root: Path, *photos: str) -> None:
    info = root / "HandInfo.csv"
    for i, photo in enumerate(photos):
        name = "unnumbered" + "x" * i + ".jp2"  # the 2 is no number
        info.write_text(info.read_text().replace(photo, name))
        (root / "Hands" / photo).rename(root / "Hands" / name)


def test_photos_without_a_number(hands_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rename_without_number(hands_root, "Hand_0000002.jpg", "Hand_0000003.jpg")
    assert main(["--input", str(hands_root)]) == 0
    note = "2 photos have no number in their name (first: unnumbered.jp2): neighbouring frames"
    assert note in capsys.readouterr().err
    assert main(["--input", str(hands_root), "--protocol", "burst"]) == 1
    error = "error: 2 photos have no number in their name (first: unnumbered"
    assert error in capsys.readouterr().err
    assert not (hands_root / "trainval" / "burst").exists()


def test_more_folds_than_people(hands_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--input", str(hands_root), "--protocol", "subject-disjoint", "--folds"]
    assert main([*flags, "7"]) == 1
    assert (
        "error: too few people for 7 folds: 6. Lower --folds or add people"
        in capsys.readouterr().err
    )
    assert written(hands_root) == {}
    assert main([*flags, "6"]) == 0


def test_folds_of_a_former_split_are_not_left_beside_new_ones(
    hands_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--input", str(hands_root), "--protocol", "subject-disjoint"]
    assert main(flags) == 0
    former = written(hands_root)
    capsys.readouterr()
    assert main([*flags, "--folds", "3"]) == 1
    folder = hands_root / "trainval" / "subject-disjoint"
    expected = f"more folds exists: {folder / 'dorsal_dl' / 'fold_3'}. Delete {folder}\n"
    assert capsys.readouterr().err.endswith(expected)
    assert written(hands_root) == former


def test_file_names_that_are_not_utf8_are_left_alone(split_root: Path) -> None:
    first = written(split_root)
    Path(os.fsdecode(bytes(split_root / "Hands") + b"/\xff.jpg")).touch()
    assert main(["--input", str(split_root), "--skip_missing"]) == 0
    assert written(split_root) == first


# ----------------------------------------------------------------------------- other data sets


@pytest.fixture
def own_root(tmp_path: Path) -> Path:
    """Photos in one folder for each person: anna has 12, ben 10 and carl 8."""
    root = tmp_path / "mine"
    for person, n_photos in (("anna", 12), ("ben", 10), ("carl", 8)):
        (root / "Hands" / person).mkdir(parents=True)
        for k in range(n_photos):
            (root / "Hands" / person / f"{k}.jpg").touch()
    return root


def errors_of(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """Return the one-line error of a run that fails."""
    capsys.readouterr()
    assert main([str(flag) for flag in flags]) == 1
    out, err = capsys.readouterr()
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert out == ""
    return line.removeprefix("error: ")


def read_names(path: Path) -> set[str]:
    return set(read_samples(path)["name"])


PHOTOS = "sub_dataset/photos.csv"


def test_folders_without_labels_are_split_for_identity(
    own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hands = own_root / "Hands"
    for ignored in ("stray.jpg", "anna/notes.txt", "anna/photo.raw"):
        (hands / ignored).touch()
    (hands / "anna" / "deeper").mkdir()
    (hands / "ben" / ".DS_Store").touch()
    (hands / "anna" / "0.jpg").rename(hands / "anna" / "0.heic")
    assert main(["--folders", str(hands)]) == 0
    out, err = capsys.readouterr()
    assert "ignored 4 files or folders that are not <person>/<photo>" in err
    assert out.endswith(f"train: python train.py --attributes_file {own_root / PHOTOS}\n")
    assert "male" not in out  # groups without people are not printed
    lines = (own_root / PHOTOS).read_text().splitlines()
    assert (lines[0], lines[1], len(lines)) == ("image_path,id", "anna/0.heic,anna", 31)
    data = read_data([own_root / PHOTOS], "paper")
    assert data.label_space.names == {"identity": ("anna", "ben", "carl")}
    assert len(data.samples["train"]) == len(data.samples["val"]) == 15
    first = written(own_root)
    assert main(["--attributes_file", str(own_root / PHOTOS)]) == 0
    assert written(own_root) == first  # both ways draw the same


def test_labels_of_people_csv(own_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = "sep=;\nid;gender;age;job\nanna;female;30;cook\nben;;20;\ndora;female;50;cook\n"
    (own_root / "people.csv").write_text(people)
    assert main(["--folders", str(own_root / "Hands"), "--protocol", "stratified"]) == 0
    err = capsys.readouterr().err
    assert "people.csv names people without a folder: dora" in err
    assert "has people without labels in people.csv: carl" in err
    data = read_data([own_root / PHOTOS], "stratified")
    labels = data.samples["train"].drop_duplicates("id").set_index("id").sort_index()
    assert labels["gender"].tolist() == ["female", "", ""]
    assert labels["age"].fillna(0).tolist() == [30, 20, 0]
    assert labels["job"].tolist() == ["cook", "", ""]
    assert data.label_space.tasks == ("identity", "age")  # all known genders are female
    split = own_root / "trainval" / "stratified" / "photos" / "fold_0" / "train.csv"
    lines = split.read_text().splitlines()
    assert lines[0] == "image_path,id,gender,age,job"
    assert {line.partition(",")[2] for line in lines[1:]} == {
        *("anna,female,30,cook", "ben,,20,", "carl,,,")
    }


@pytest.mark.parametrize("protocol", DRAWN)
def test_every_protocol_of_an_attributes_file(own_root: Path, protocol: str) -> None:
    path = own_root / "sub_dataset" / "office.csv"
    path.parent.mkdir()
    lines = ["sep=;", "id;image_path;ring"]
    lines += [
        f"{p.parent.name};Hands/{p.parent.name}/{p.name};yes" for p in own_root.glob("H*/*/*")
    ]
    path.write_text("\n".join(lines) + "\n")
    given = path.read_bytes()
    flags = ["--attributes_file", str(path), "--protocol", protocol]
    flags += ["--folds", "3"] if protocol == "subject-disjoint" else []
    assert main(flags) == 0
    assert path.read_bytes() == given
    for fold in range(3 if protocol == "subject-disjoint" else 1):
        files = locate(path, protocol, fold)
        parts = {s: read_samples(files.split(s)) for s in PROTOCOLS[protocol].splits}
        assert all(set(part["ring"]) == {"yes"} and len(part) for part in parts.values())
        names = [name for part in parts.values() for name in part["name"]]
        assert len(set(names)) == len(names)
        assert set(names) <= read_names(path)
        if protocol != "burst":
            assert set(names) == read_names(path)
        if protocol == "subject-disjoint":
            assert not set(parts["train"]["id"]) & set(parts["test"]["id"])
            gallery = pd.read_csv(files.gallery)
            assert len(gallery) == 10
            assert set(gallery["image_path"]) <= set(parts["test"]["image_path"])
        if protocol == "half":
            assert set(parts["train"]["id"]) == set(parts["val"]["id"]) == {"anna", "ben"}
            assert not files.distractors.exists()
        if protocol == "subject-disjoint":
            with pytest.raises(UserError, match=r"^one person only: .*train\.csv\. Add people"):
                read_data([path], protocol, fold)
        else:
            assert read_data([path], protocol, fold).label_space.tasks == ("identity",)


def test_identical_photos_in_two_splits_are_named(
    own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, photo in enumerate(sorted((own_root / "Hands").glob("*/*.jpg"))):
        photo.write_bytes(bytes([i]))
    flags = ["--folders", str(own_root / "Hands"), "--protocol", "stratified"]
    assert main(flags) == 0
    assert "identical photos" not in capsys.readouterr().err
    files = locate(own_root / PHOTOS, "stratified")
    train, test = (read_samples(files.split(split))["name"][0] for split in ("train", "test"))
    (files.photos / test).write_bytes((files.photos / train).read_bytes())
    assert main(flags) == 0
    warned = f"1 pairs of identical photos are in two splits (first: {train}, {test})"
    assert warned in capsys.readouterr().err
    table = pd.read_csv(files.leakage).set_index("split")["identical_in_train"]
    assert table["test"] == pytest.approx(1 / len(read_samples(files.split("test"))))
    assert table["val"] == 0


@pytest.mark.parametrize("flags", [[], ["--skip_missing"]])
def test_a_photo_in_another_spelling_is_not_missing(
    own_root: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    hands = own_root / "Hands"
    assert main(["--folders", str(hands)]) == 0
    for former, new in (
        ("anna/3.jpg", "anna/03.jpg"),
        ("ben/1.jpg", "ben/1.JPG"),
        ("carl", "Carl"),
    ):
        (hands / former).rename(hands / new)
        error = errors_of(capsys, "--attributes_file", own_root / PHOTOS, *flags)
        assert error.startswith(f"a photo of {own_root / PHOTOS} '{former}")
        assert f"is spelt '{new}" in error
        assert error.endswith(f"in {hands}. Make the names equal")
        (hands / new).rename(hands / former)
    (hands / "carl" / "0.jpg").rename(hands / "carl" / "u\u0308.jpg")
    path = own_root / PHOTOS
    path.write_text(path.read_text().replace("carl/0.jpg", "carl/\u00fc.jpg"))
    error = errors_of(capsys, "--attributes_file", path, *flags)
    assert r"'carl/\xfc.jpg' is spelt 'carl/u\u0308.jpg'" in error


def test_ids_that_a_spreadsheet_has_changed(
    own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hands = own_root / "Hands"
    (hands / "ben").rename(hands / "007")
    (own_root / "people.csv").write_text("id,gender,age\n7,male,30\n")
    error = errors_of(capsys, "--folders", hands)
    assert error.endswith("without a folder: '7' is spelt '007'. Make the names equal")
    (hands / "carl").rename(hands / "7")
    (own_root / "people.csv").unlink()
    assert main(["--folders", str(hands)]) == 0
    assert "ids '007' and '7' count as different people" in capsys.readouterr().err


def test_leakage_of_other_aspects_is_kept(own_root: Path) -> None:
    assert main(["--folders", str(own_root / "Hands")]) == 0
    office = own_root / "sub_dataset" / "office.csv"
    office.write_bytes((own_root / PHOTOS).read_bytes())
    for _ in range(2):
        assert main(["--attributes_file", str(office)]) == 0
    table = pd.read_csv(own_root / "trainval" / "leakage.csv")
    assert table["aspect"].tolist() == ["photos", "photos", "office", "office"]
    values = table.drop(columns="aspect")
    pd.testing.assert_frame_equal(values[:2], values[2:].reset_index(drop=True))


def test_what_cannot_be_split_says_what_would_do(
    own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hands, protocol = own_root / "Hands", "--protocol"
    folders = ("--folders", hands)
    error = errors_of(capsys, *folders, protocol, "subject-disjoint")
    assert error == "too few people for 5 folds: 3. Lower --folds or add people"
    for photo in [*hands.glob("*/[4-9].jpg"), *hands.glob("*/1?.jpg")]:
        photo.unlink()
    error = errors_of(capsys, *folders, protocol, "stratified")
    assert error == (
        "too few photos for --protocol stratified: photos has no val and no test photo."
        " It needs a person with at least 5 photos. Or choose another protocol"
    )
    assert "at least 10 photos of consecutive" in errors_of(capsys, *folders, protocol, "burst")
    (hands / "ben" / "0.jpg").rename(hands / "ben" / "zero.jpg")
    error = errors_of(capsys, *folders, protocol, "burst")
    assert error.startswith("1 photos have no number in their name (first: ben/zero.jpg)")
    for photo in [*hands.glob("*/[0-9].jpg")]:
        photo.unlink()
    assert "It needs at least 2 photos." in errors_of(capsys, *folders)
    (hands / "ben" / "zero.jpg").unlink()
    assert errors_of(capsys, *folders).startswith(f"no photos: {hands}/<person>/. Make")
    assert written(own_root) == {}


def test_what_is_no_data_set_of_folders_or_attributes(
    own_root: Path, hands_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hands = own_root / "Hands"
    assert errors_of(capsys, "--folders", own_root).startswith("not a folder called Hands: ")
    assert f"--input {hands_root}" in errors_of(capsys, "--folders", hands_root / "Hands")
    missing = errors_of(capsys, "--attributes_file", own_root / "sub_dataset" / "x.csv")
    assert missing.endswith("x.csv. Give <root>/sub_dataset/<name>.csv")
    assert main(["--folders", str(hands)]) == 0
    lines = (own_root / PHOTOS).read_text().splitlines()
    by_hand = "\n".join([f"{lines[0]},gender", *(f"{line},female" for line in lines[1:])])
    (own_root / PHOTOS).write_text(by_hand + "\n")
    error = errors_of(capsys, "--folders", hands)
    assert error.startswith(f"--folders would delete column gender: {own_root / PHOTOS}. Write")
    assert main(["--attributes_file", str(own_root / PHOTOS)]) == 0
    (hands / "anna" / "3.jpg").unlink()
    error = errors_of(capsys, "--attributes_file", own_root / PHOTOS)
    assert error.startswith(f"1 of 30 photos of {own_root / PHOTOS} are missing from {hands}: anna")
    assert main(["--attributes_file", str(own_root / PHOTOS), "--skip_missing"]) == 0
    assert len(read_data([own_root / PHOTOS], "paper").listed) == 29
    assert main(["--input", str(hands_root)]) == 0
    error = errors_of(capsys, "--attributes_file", hands_root / "sub_dataset" / "dorsal_dr.csv")
    assert error.endswith(f"Run: python dataset_11k_split.py --input {hands_root}")


# ----------------------------------------------------------------------------- published lists


def test_lists_decide_who_is_in_train_and_test(
    hands_root: Path, lists_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--input", str(hands_root), "--protocol", "lists", "--lists", str(lists_dir)]
    assert main(flags) == 0
    leaked = "repeat 1: left out 1 training photos of people in test (first: Hand_0000"
    assert capsys.readouterr().err.count(leaked) == 1  # the dorsal one
    for aspect, letter in (("dorsal", "d"), ("palmar", "p")):
        attributes = hands_root / "sub_dataset" / f"{aspect}.csv"
        everyone = read_samples(attributes)
        assert locate(attributes, "lists").folds == [0, 1]
        assert everyone["id"].nunique() == 7  # with the bearer of the ring
        for fold in (0, 1):
            folder = hands_root / "trainval" / "lists" / aspect / f"fold_{fold}"
            train, val, test = (photos_in(folder / f"{split}.csv") for split in SHARES)
            listed = {
                word: (lists_dir / str(fold + 1) / f"g_imgs_{word}_{letter}.txt").read_text()
                for word in ("training", "testing")
            }
            assert sorted(name for _, name in test) == sorted(listed["testing"].split())
            lost = set(listed["training"].split()) - {name for _, name in train + val}
            assert len(lost) == (fold == 0 and aspect == "dorsal")
            assert not {person for person, _ in train + val} & {person for person, _ in test}
            assert sorted(person for person, _ in val) == sorted(by_person(train))
            data = read_data([attributes], "lists", fold)  # checks the splits
            assert sorted(data.label_space.names["identity"]) == sorted(by_person(train))
    table = pd.read_csv(hands_root / "trainval" / "lists" / "leakage.csv")
    assert set(table[table["split"] == "test"]["person_in_train"]) == {0}
    first = written(hands_root)
    assert main([*flags, "--seed", "42"]) == 0
    assert written(hands_root) == first
    assert main([*flags, "--seed", "43"]) == 0
    changed = {name for name, content in written(hands_root).items() if content != first[name]}
    assert {Path(name).stem for name in changed} == {"train", "val", "gallery", "leakage"}


def test_lists_that_cannot_be_used(
    hands_root: Path, lists_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--input", str(hands_root), "--protocol", "lists", "--lists"]
    path = lists_dir / "2" / "g_imgs_testing_p.txt"
    text = path.read_text()
    path.write_text(f"{text}Hand_9999999.jpg\n")
    n_photos = len(text.split()) + 1
    assert errors_of(capsys, *flags, lists_dir) == (
        f"1 of {n_photos} photos of {path} are not in {hands_root / 'HandInfo.csv'} (first:"
        " Hand_9999999.jpg). Give the complete HandInfo.csv of 11k Hands"
    )
    path.unlink()
    assert str(path) in errors_of(capsys, *flags, lists_dir)
    assert errors_of(capsys, *flags, hands_root).startswith(f"no folder {hands_root / '1'}")
    for file in (path, *lists_dir.glob("*/*.txt")):
        file.write_text("")
    assert errors_of(capsys, *flags, lists_dir).startswith("no photo in the list files: --lists")
    assert written(hands_root) == {}
    for wrong, message in (
        (["--protocol", "lists"], "--protocol lists and --lists DIR go together"),
        (["--lists", "x"], "--protocol lists and --lists DIR go together"),
        (["--protocol", "lists", "--lists", "x", "--folders", "y"], "instead of --folders"),
        (["--protocol", "lists", "--lists", "x", "--folds", "3"], "--folds has no effect"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert message in capsys.readouterr().err
