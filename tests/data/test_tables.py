"""From the CSV files of 11k Hands to checked rows and their labels."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.splits import (
    PROTOCOLS,
    SplitFiles,
    check_photos,
    fingerprint,
    locate,
    missing_photos,
    permute_labels,
)
from data.tables import read_hand_info, read_rows, warn_of_odd_ages
from dataset_11k import HAND_INFO_COLUMNS, TASKS, LabelSpace, age_group
from utils import UserError

# ----------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("age", "group"),
    [
        (17, "0-20"),
        (18, "0-20"),
        (20, "0-20"),
        (21, "21"),
        (22, "22"),
        (23, "23"),
        (24, "24-30"),
        (30, "24-30"),
        (31, "31-75"),
        (75, "31-75"),
        (76, "31-75"),
    ],
)
def test_age_group_bounds_are_inclusive(age: int, group: str) -> None:
    assert age_group(age) == group


def frame(*people: tuple[str, str, int]) -> pd.DataFrame:
    """Return rows of (id, gender, age), one photo each."""
    rows = pd.DataFrame(people, columns=["id", "gender", "age"])
    return rows.assign(name=[f"{i}.jpg" for i in range(len(people))])


def test_labels_are_sorted_and_keep_every_gender_and_age_group() -> None:
    space = LabelSpace.of_people(["0000010", "0000002", "0000010", "1"])
    assert space.names["identity"] == ("0000002", "0000010", "1")
    assert space.names["gender"] == ("female", "male")
    assert space.names["age"] == ("0-20", "21", "22", "23", "24-30", "31-75")
    assert space.sizes == {"identity": 3, "gender": 2, "age": 6}
    assert LabelSpace.of_people(["1", "0000010", "0000002"]) == space


def test_labels_of_rows() -> None:
    space = LabelSpace.of_people(["b", "a"])
    rows = frame(("b", "male", 24), ("stranger", "female", 20), ("a", "female", 99))
    labels = space.encode(rows)
    assert labels.dtype == np.int64
    assert labels.tolist() == [[1, 1, 4], [-1, 0, 0], [0, 0, 5]]  # identity, gender, age
    assert space.encode(rows[:0]).shape == (0, len(TASKS))


def test_label_space_survives_json() -> None:
    space = LabelSpace.of_people(["b", "a"])
    as_json = space.to_json()
    assert all(type(names) is list for names in as_json.values())  # what a checkpoint may hold
    assert LabelSpace.from_json(as_json) == space


# ----------------------------------------------------------------------------- split CSVs

HEADER = "image_path,id,gender,age\n"


def write_rows(folder: Path, text: str) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "image_path",
    [
        "./11k/Hands/a.jpg",
        "/data/11k/Hands/a.jpg",
        "Hands/a.jpg",
        "a.jpg",
        "C:\\x\\Hands\\a.jpg",
        ".\\11k/Hands\\a.jpg",
        "/Hands/11k/Hands/a.jpg",
    ],
)
def test_image_path_spellings(tmp_path: Path, image_path: str) -> None:
    rows = read_rows(write_rows(tmp_path, f"{HEADER}{image_path},0000002,male,27\n"))
    assert rows["image_path"].tolist() == [image_path]
    assert rows["name"].tolist() == ["a.jpg"]


def test_read_rows_keeps_text_as_text_and_order(tmp_path: Path) -> None:
    lines = [
        "\ufeffage,note,id,image_path,gender",
        "27,x,0000002,b.jpg,male",
        "",
        "8,,NA,a.jpg,female",
    ]
    rows = read_rows(write_rows(tmp_path, "\r\n".join(lines)))
    assert rows["id"].tolist() == ["0000002", "NA"]  # not 2, not a missing value
    assert rows["name"].tolist() == ["b.jpg", "a.jpg"]
    assert rows["age"].tolist() == [27, 8]
    assert rows["age"].dtype == np.int64
    assert rows.index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "line", "found"),
    [
        ("c.jpg,1,other,27", 4, "gender is 'other', expected female or male"),
        ("c.jpg,1,Male,27", 4, "gender is 'Male', expected female or male"),
        ("c.jpg,1,male,21.5", 4, "age is '21.5', expected a whole number of years"),
        ("c.jpg,1,male,-3", 4, "age is '-3', expected a whole number of years"),
        ("c.jpg,1,male,", 4, "age is '', expected a whole number of years"),
        ("c.jpg,1,male", 4, "age is '', expected a whole number of years"),
        ("c.jpg, ,male,27", 4, "id is ' ', expected a person's id"),
        ("x/c.jpg,1,male,27", 4, "image_path is 'x/c.jpg', expected a photo's bare file name"),
        ("x\\c.jpg,1,male,27", 4, "image_path is 'x\\\\c.jpg', expected a photo's bare file name"),
        ("/c.jpg,1,male,27", 4, "image_path is '/c.jpg', expected a photo's bare file name"),
        ("C:c.jpg,1,male,27", 4, "image_path is 'C:c.jpg', expected a photo's bare file name"),
        ("11k/Hands/../c.jpg,1,male,27", 4, "image_path is '11k/Hands/../c.jpg', expected a"),
        ("Hands/..,1,male,27", 4, "image_path is 'Hands/..', expected a photo's bare file name"),
        ("..,1,male,27", 4, "image_path is '..', expected a photo's bare file name"),
        ("Hands/,1,male,27", 4, "image_path is 'Hands/', expected a photo's bare file name"),
        ("Hands/a.jpg,1,male,27", 4, "image_path is 'Hands/a.jpg', expected a photo's bare file"),
        ("\nc.jpg,1,male,old", 5, "age is 'old', expected a whole number of years"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, row: str, line: int, found: str) -> None:
    path = write_rows(tmp_path, f"{HEADER}a.jpg,1,male,27\nb.jpg,1,male,27\n{row}\n")
    with pytest.raises(UserError, match=re.escape(f"{path} line {line}: {found}")):
        read_rows(path)


def test_a_person_with_two_genders_is_refused(tmp_path: Path) -> None:
    rows = "a.jpg,1,male,27\nb.jpg,2,female,27\nc.jpg, 1,female,27\n"
    path = write_rows(tmp_path, HEADER + rows)
    said = f"{path} line 4: 1 is female, in line 2 male (1 such rows); correct the file"
    with pytest.raises(UserError, match=re.escape(said)):
        read_rows(path)


def test_wrong_rows_are_counted(tmp_path: Path) -> None:
    path = write_rows(tmp_path, f"{HEADER}a.jpg,1,male,x\nb.jpg,1,male,27\nc.jpg,1,male,y\n")
    with pytest.raises(UserError, match=r"line 2: age is 'x', .* \(2 such rows\); correct the"):
        read_rows(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"image_path,id,sex,age\n",
            "missing columns gender (found image_path, id, sex, age); the",
        ),
        (
            b"image_path\na.jpg\n",
            "missing columns id, gender, age (found image_path); the file needs",
        ),
        (b"", "cannot be read as a CSV file: No columns to parse from file"),
        (b"a,b\n1,2\n1,2,3,4\n", "cannot be read as a CSV file: "),
        (
            b"image_path,id,gender,age\na.jpg,1,male,27,5\n",
            ": lines have more cells than the header; correct the file",
        ),
        (b"\nimage_path,id,gender,age\n", "cannot be read as a CSV file: No columns to parse"),
        (b"id,gender,age,image_path,age\n", "two columns are called age (found id, gender, age, "),
        (b"a,a,image_path,id,gender,age\n", "two columns are called a (found a, a, image_path, id"),
        (b"image_path,id,gender,age\n\xff\xfe.jpg,1,male,27\n", "is not UTF-8 text (byte 0xff in"),
        (b"image_path,id,gender,\xe2ge\n", "is not UTF-8 text (byte 0xe2 in it); save it as UTF-8"),
        (b"image_path,id,gender,age\n" + b"a.jpg,1,male,27\n" * 99_999 + b"\xe2", "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_split_csv(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_rows(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_columns_without_a_name_may_repeat(tmp_path: Path) -> None:
    """Spreadsheets leave them behind."""
    rows = read_rows(write_rows(tmp_path, "image_path,id,gender,age,,\na.jpg,1,male,27,,\n"))
    assert rows["age"].tolist() == [27]


def test_a_split_csv_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.csv not found; run dataset_11k_split.py first$"):
        read_rows(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot be read as a CSV file"):
        read_rows(tmp_path)


def test_header_only_is_no_rows(tmp_path: Path) -> None:
    rows = read_rows(write_rows(tmp_path, HEADER))
    assert len(rows) == 0
    assert rows["age"].dtype == np.int64


def test_fingerprint_is_of_names_labels_and_order() -> None:
    rows = frame(("b", "male", 24), ("a", "female", 20)).assign(image_path="x")
    same = fingerprint(rows)
    assert fingerprint(rows.assign(image_path="elsewhere/x")) == same
    for other in (
        rows[::-1],
        rows[:1],
        rows.assign(age=24),
        rows.assign(gender="male"),
        rows.assign(id="b"),
        rows.assign(name=["0.jpg", "2.jpg"]),
    ):
        assert fingerprint(other) != same


@pytest.mark.parametrize(("ages", "n_odd"), [((18, 75), 0), ((17, 18), 1), ((0, 76, 30), 2)])
def test_odd_ages_are_one_warning(
    caplog: pytest.LogCaptureFixture, ages: tuple[int, ...], n_odd: int
) -> None:
    warn_of_odd_ages(frame(*(("a", "male", age) for age in ages)), Path("rows.csv"))
    expected = (
        f"rows.csv: {n_odd} rows have an age outside 18-75; below it counts as group 0-20, above as"
        " 31-75"
    )
    assert [record.getMessage() for record in caplog.records] == [expected] * bool(n_odd)


# ----------------------------------------------------------------------------- HandInfo.csv


def edit_hand_info(root: Path, old: str, new: str) -> Path:
    """Replace the first `old` in HandInfo.csv."""
    path = root / "HandInfo.csv"
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())
    return path


def test_read_hand_info_types_and_order(hands_root: Path) -> None:
    info = read_hand_info(hands_root / "HandInfo.csv")
    assert tuple(info.columns) == HAND_INFO_COLUMNS
    assert info.iloc[0].to_dict() == {
        "id": "0000000",
        "age": 18,
        "gender": "male",
        "skinColor": "fair",
        "accessories": 0,
        "nailPolish": 0,
        "aspectOfHand": "dorsal right",
        "imageName": "Hand_0000002.jpg",
        "irregularities": 0,
    }
    assert info["imageName"].is_monotonic_increasing
    assert len(info) == len(list((hands_root / "Hands").iterdir()))


def test_a_stray_blank_in_an_id_is_removed_and_logged(
    hands_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = hands_root / "HandInfo.csv"
    assert b'"1200000 "' in path.read_bytes()
    with caplog.at_level(logging.INFO, "igae"):
        info = read_hand_info(path)
    assert set(info["id"][info["age"] == 75]) == {"1200000"}
    (record,) = caplog.records
    assert re.search(r"blanks around the id of 1 rows \(first: '1200000 ' of Hand_", caplog.text)
    assert record.levelno == logging.INFO


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",nailPolish,", ",", "missing columns nailPolish (found id, age, gender, skinColor,"),
        ("aspectOfHand", "aspect", "missing columns aspectOfHand (found "),
        (
            '"dorsal left"',
            '"dorsal"',
            " line 6: aspectOfHand is 'dorsal', expected dorsal right, d",
        ),
        ('"male"', '"m"', " line 2: gender is 'm', expected female or male (1 such rows)"),
        (",18,", ",18.5,", " line 2: age is '18.5', expected a whole number of years"),
        (",18,", ",,", " line 2: age is '', expected a whole number of years"),
        ('"fair",0', '"fair",2', " line 2: accessories is '2', expected 0 or 1"),
        (
            '"fair"',
            '"blue"',
            " line 2: skinColor is 'blue', expected very fair, fair, medium, dark",
        ),
        (
            "Hand_0000003.jpg",
            "Hand_0000002.jpg",
            " line 3: imageName is 'Hand_0000002.jpg', expect",
        ),
        ("Hand_0000003.jpg", "../x.jpg", " line 3: imageName is '../x.jpg', expected a photo's"),
        ("Hand_0000003.jpg", "..", " line 3: imageName is '..', expected a photo's bare file name"),
        ("Hand_0000003.jpg", "", " line 3: imageName is '', expected a photo's bare file name"),
        ('"0000000"', '" "', " line 2: id is ' ', expected a person's id"),
        ('"male"', '"female"', " is male, in line 2 female ("),
    ],
)
def test_a_wrong_hand_info_is_refused(hands_root: Path, old: str, new: str, message: str) -> None:
    path = edit_hand_info(hands_root, old, new)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_hand_info(path)
    assert str(caught.value).startswith(str(path))


def test_a_hand_info_that_is_not_there_tells_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not found; get Hands/ and HandInfo.csv from https://"):
        read_hand_info(tmp_path / "HandInfo.csv")


# ----------------------------------------------------------------------------- places


def test_where_the_files_of_an_aspect_lie(
    split_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = locate(split_root / "sub_dataset" / "palmar_pr.csv", "paper")
    assert files.attributes == split_root / "sub_dataset" / "palmar_pr.csv"
    assert files.split("val") == split_root / "trainval" / "palmar_pr" / "val.csv"
    assert locate(files.attributes, "burst", 2) == files._replace(protocol="burst", fold=2)
    assert files.photos == split_root / "Hands"
    for folder, spelling in [("", "sub_dataset/palmar_pr.csv"), ("sub_dataset", "palmar_pr.csv")]:
        monkeypatch.chdir(split_root / folder)
        relative = locate(Path(spelling), "paper")
        assert relative.photos.resolve() == files.photos.resolve()
        assert relative.aspect == "palmar_pr"


def test_other_protocols_have_a_folder_of_their_own() -> None:
    files = SplitFiles(Path("r"), "dorsal_dr", "subject-disjoint", fold=3)
    folder = Path("r/trainval/subject-disjoint")
    assert files.split("train") == folder / "dorsal_dr" / "fold_3" / "train.csv"
    assert files.gallery == folder / "dorsal_dr" / "fold_3" / "gallery.csv"
    assert files.leakage == folder / "leakage.csv"
    assert SplitFiles(Path("r"), "dorsal_dr", "paper").leakage == Path("r/trainval/leakage.csv")


def test_a_protocol_says_why_in_two_lines() -> None:
    for protocol in PROTOCOLS.values():
        assert len(protocol.reason.splitlines()) == 2


def test_a_file_outside_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.csv not found; run dataset_11k_split.py first"):
        locate(tmp_path / "none.csv", "paper")
    with pytest.raises(UserError, match="is a folder; give <root>/sub_dataset/<aspect>.csv"):
        locate(tmp_path, "paper")
    path = write_rows(tmp_path, HEADER)
    with pytest.raises(UserError, match="expected <root>/sub_dataset/<aspect>.csv"):
        locate(path, "paper")


def test_missing_photos_are_counted_and_five_are_named(tmp_path: Path) -> None:
    rows = pd.DataFrame({"name": [f"{i}.jpg" for i in range(8)]})
    (tmp_path / "1.jpg").touch()
    expected = (
        f"7 of 8 photos that info.csv lists are not in {tmp_path}: 0.jpg, 2.jpg, 3.jpg, 4.jpg,"
        " 5.jpg, ...; put them there, or leave them out with"
    )
    with pytest.raises(UserError, match=re.escape(expected)):
        check_photos(rows, tmp_path, Path("info.csv"))
    with pytest.raises(UserError, match=r": 0\.jpg; put them there"):
        check_photos(rows[:2], tmp_path, Path("info.csv"))
    with pytest.raises(UserError, match="8 of 8 photos"):
        check_photos(rows, tmp_path / "no folder", Path("info.csv"))
    check_photos(rows[1:2], tmp_path, Path("info.csv"))


def test_a_link_to_nowhere_and_a_folder_are_missing_photos(tmp_path: Path) -> None:
    rows = pd.DataFrame({"name": ["photo.jpg", "good.jpg", "broken.jpg", "loop.jpg", "folder.jpg"]})
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "good.jpg").symlink_to("photo.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert missing_photos(rows, tmp_path) == ["broken.jpg", "loop.jpg", "folder.jpg"]


def test_permuted_labels_stay_together_and_go_to_somebody() -> None:
    everyone = pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(40) for _ in range(2)],
            "gender": [("female", "male")[i % 2] for i in range(40) for _ in range(2)],
            "age": [18 + i for i in range(40) for _ in range(2)],
        }
    )
    rows = everyone.iloc[::-3]
    found = permute_labels(rows, everyone, seed=4)
    assert found["id"].tolist() == rows["id"].tolist()
    assert (found["gender"] == np.where(found["age"] % 2, "male", "female")).all()
    assert found.groupby("id")["age"].nunique().max() == 1
    assert sorted(permute_labels(everyone, everyone, seed=4)["age"]) == sorted(everyone["age"])
    assert (found["age"] != rows["age"]).mean() > 0.8
    shuffled = everyone.sample(frac=1, random_state=1)
    assert found.equals(permute_labels(rows, shuffled, seed=4))
    assert not found.equals(permute_labels(rows, everyone, seed=5))
