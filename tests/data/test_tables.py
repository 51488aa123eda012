"""Checked CSV files: what is read, and what is refused with which line."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.tables import (
    further_columns,
    read_hand_info,
    read_people,
    read_samples,
    split_command,
    warn_of_unusual_ages,
)
from dataset_11k import HAND_INFO_COLUMNS, SKIN_COLORS, TASKS, Task
from utils import UserError

# ----------------------------------------------------------------------------- split CSVs

HEADER = "image_path,id,gender,age\n"


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "samples.csv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("image_path", "name"),
    [
        ("./11k/Hands/a.jpg", "a.jpg"),
        ("/data/11k/Hands/a.jpg", "a.jpg"),
        ("Hands/a.jpg", "a.jpg"),
        ("a.jpg", "a.jpg"),
        ("C:\\x\\Hands\\a.jpg", "a.jpg"),
        (".\\11k/Hands\\a.jpg", "a.jpg"),
        ("/Hands/11k/Hands/a.jpg", "a.jpg"),
        ("anna/0.jpg", "anna/0.jpg"),
        ("Hands/anna/0.jpg", "anna/0.jpg"),
        ("C:\\x\\Hands\\anna\\..jpg", "anna/..jpg"),
    ],
)
def test_image_path_spellings(tmp_path: Path, image_path: str, name: str) -> None:
    samples = read_samples(write_csv(tmp_path, f"{HEADER}{image_path},0000002,male,27\n"))
    assert samples["image_path"].tolist() == [image_path]
    assert samples["name"].tolist() == [name]


def test_text_stays_text_and_further_columns_stay(tmp_path: Path) -> None:
    lines = [
        "\ufeffage,note,id,image_path,gender,",
        "27,007,0000002,b.jpg,male,",
        ",,,,,",
        "8,,NA ,a.jpg,female,",
    ]
    samples = read_samples(write_csv(tmp_path, "\r\n".join(lines)))
    assert list(samples) == ["image_path", "name", "id", "gender", "age", "note"]
    assert samples["id"].tolist() == ["0000002", "NA"]  # not 2, not a missing value
    assert samples["name"].tolist() == ["b.jpg", "a.jpg"]
    assert samples["age"].tolist() == [27, 8]
    assert samples["age"].dtype == np.int64
    assert samples["note"].tolist() == ["007", ""]
    assert samples.index.tolist() == [0, 1]
    assert further_columns(samples) == ["note"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("first_line", ["", "sep={}\r\n", "\ufeffSEP={}\n"])
def test_every_separator(tmp_path: Path, separator: str, first_line: str) -> None:
    text = 'image_path,id,gender,age\na.jpg,1,male,27\n"b.jpg",2,female,old\n'
    text = first_line.format(separator) + text.replace(",", separator)
    line = 3 + bool(first_line)
    with pytest.raises(UserError, match=f"samples.csv line {line}. Correct"):
        read_samples(write_csv(tmp_path, text))
    samples = read_samples(write_csv(tmp_path, text.replace("old", "30")))
    assert samples[["name", "id", "gender", "age"]].to_numpy().tolist() == [
        ["a.jpg", "1", "male", 27],
        ["b.jpg", "2", "female", 30],
    ]


def test_unknown_labels(tmp_path: Path) -> None:
    text = HEADER + "a.jpg,1,male,\nb.jpg,1,,30\nc.jpg,2,female\n"
    samples = read_samples(write_csv(tmp_path, text))
    assert samples["gender"].tolist() == ["male", "", "female"]
    assert samples["age"].isna().tolist() == [True, False, True]
    assert samples["age"].tolist()[1] == 30


@pytest.mark.parametrize("text", ["image_path,id\na.jpg,1\n", HEADER + "a.jpg,1,,\n"])
def test_labels_may_be_missing_altogether(tmp_path: Path, text: str) -> None:
    samples = read_samples(write_csv(tmp_path, text))
    assert list(samples) == ["image_path", "name", "id", "gender", "age"]
    assert samples["gender"].tolist() == [""]
    assert samples["age"].isna().all()


NAME = "a photo in Hands/ or in a subfolder of it"


@pytest.mark.parametrize(
    ("row", "line", "found"),
    [
        ("c.jpg,1,other,27", 4, "gender is 'other', expected female or male"),
        ("c.jpg,1,Male,27", 4, "gender is 'Male', expected female or male"),
        ("c.jpg,1,male,21.5", 4, "age is '21.5', expected a whole number of years"),
        ("c.jpg,1,male,-3", 4, "age is '-3', expected a whole number of years"),
        (
            "c.jpg, ,male,27",
            4,
            "id is ' ', expected a person's id as text (spreadsheets round long ids)",
        ),
        (
            "c.jpg,,male,27",
            4,
            "id is '', expected a person's id as text (spreadsheets round long ids)",
        ),
        ("x/y/c.jpg,1,male,27", 4, f"image_path is 'x/y/c.jpg', expected {NAME}"),
        ("x\\y\\c.jpg,1,male,27", 4, f"image_path is 'x\\\\y\\\\c.jpg', expected {NAME}"),
        ("/c.jpg,1,male,27", 4, f"image_path is '/c.jpg', expected {NAME}"),
        ("C:c.jpg,1,male,27", 4, f"image_path is 'C:c.jpg', expected {NAME}"),
        ("C:/c.jpg,1,male,27", 4, f"image_path is 'C:/c.jpg', expected {NAME}"),
        ("11k/Hands/../c.jpg,1,male,27", 4, f"image_path is '11k/Hands/../c.jpg', expected {NAME}"),
        ("anna/..,1,male,27", 4, f"image_path is 'anna/..', expected {NAME}"),
        ("./c.jpg,1,male,27", 4, f"image_path is './c.jpg', expected {NAME}"),
        ("Hands/..,1,male,27", 4, f"image_path is 'Hands/..', expected {NAME}"),
        ("..,1,male,27", 4, f"image_path is '..', expected {NAME}"),
        ("Hands/,1,male,27", 4, f"image_path is 'Hands/', expected {NAME}"),
        ("\nc.jpg,1,male,old", 5, "age is 'old', expected a whole number of years"),
    ],
)
def test_a_wrong_cell_is_named_by_its_line(tmp_path: Path, row: str, line: int, found: str) -> None:
    path = write_csv(tmp_path, f"{HEADER}a.jpg,1,male,27\nb.jpg,1,male,27\n{row}\n")
    with pytest.raises(UserError, match=re.escape(f"{found}: {path} line {line}. Correct the")):
        read_samples(path)


def test_a_photo_that_occurs_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    path = write_csv(tmp_path, HEADER + "a.jpg,1,male,27\nb.jpg,1,male,27\nHands/a.jpg,1,male,27\n")
    with pytest.raises(UserError, match=r"duplicate photo 'a.jpg': .* lines 2 and 4\. Delete one"):
        read_samples(path)


@pytest.mark.parametrize("identity", ["2.02411E+11", " 1E+05", '"2,02E+11"'])
def test_an_id_that_a_spreadsheet_rounded_is_refused(tmp_path: Path, identity: str) -> None:
    message = r"spreadsheets round long ids\): .* line 2"
    with pytest.raises(UserError, match=message):
        read_samples(write_csv(tmp_path, HEADER + f"a.jpg,{identity},male,21\n"))
    with pytest.raises(UserError, match=message):
        read_people(write_csv(tmp_path, f"id\n{identity}\n"))
    assert read_samples(write_csv(tmp_path, HEADER + "a.jpg,1E5,male,21\n"))["id"][0] == "1E5"


def test_a_long_cell_is_shortened_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^age is 'x{200}\.\.\.', expected a whole number"):
        read_samples(write_csv(tmp_path, f"{HEADER}a.jpg,1,male,{'x' * 5000}\n"))


@pytest.mark.parametrize(
    "rows",
    [
        'a.jpg,1,male,27,"bent\nb.jpg,2,female,30,"\n',  # swallows b.jpg
        '"a.jpg,1,male,27,\nb.jpg",2,female,30,\n',
        "a.jpg,1\0,male,27,\nb.jpg,1,female,30,\n",  # looks like the same person
    ],
)
def test_a_line_break_or_control_character_in_a_cell_is_refused(tmp_path: Path, rows: str) -> None:
    path = write_csv(tmp_path, f"image_path,id,gender,age,note\n{rows}")
    with pytest.raises(UserError, match="^line break or control character in a cell: .* line 2. R"):
        read_samples(path)


def test_further_wrong_cells_are_counted(tmp_path: Path) -> None:
    path = write_csv(tmp_path, f"{HEADER}a.jpg,1,male,x\nb.jpg,1,male,27\nc.jpg,1,male,y\n")
    with pytest.raises(UserError, match=r"age is 'x', .* line 2 \(and 1 other lines\)\. Correct"):
        read_samples(path)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (
            "b.jpg,2,female,27\nc.jpg, 1,female,27",
            "gender for id 1: {} line 2 has male, line 4 has",
        ),
        ("b.jpg,1,male,28\nc.jpg,1,male,27", "age for id 1: {} line 2 has 27, line 3 has 28. Corr"),
        ("b.jpg,1,,\nc.jpg,1,male,30", "age for id 1: {} line 2 has 27, line 4 has 30. Correct"),
    ],
)
def test_a_person_with_two_labels_is_refused(tmp_path: Path, lines: str, found: str) -> None:
    path = write_csv(tmp_path, f"{HEADER}a.jpg,1,male,27\n{lines}\n")
    with pytest.raises(UserError, match=re.escape(f"two values of {found.format(path)}")):
        read_samples(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image_path,gender,age\n", "missing column id: {} has image_path, gender, age. The file"),
        (b"name\na.jpg\n", "missing column image_path, id: {} has name. The file needs image_path"),
        (b"", "cannot read {} as CSV: No columns to parse from file. Correct"),
        (b"a,b\n1,2\n1,2,3,4\n", "cannot read {} as CSV: "),
        (b"image_path,id,gender,age\na.jpg,1,male,27,5\n", "more cells than columns: {}. Correct"),
        (b"\nimage_path,id\n", "cannot read {} as CSV: No columns to parse"),
        (b"id,age,image_path,age\n", "duplicate column age: {} has id, age, image_path, age."),
        (b"a,a,image_path,id\n", "duplicate column a: {} has a, a, image_path, id."),
        (b"image_path,id,name\n", "the column name is reserved: {}. Rename the column"),
        (b"image_path,id\n\xff\xfe.jpg,1\n", "not UTF-8 text: {} (byte 0xff). Save it as UTF-8"),
        (b"image_path,id,\xe2ge\n", "not UTF-8 text: {} (byte 0xe2). Save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_split_csv(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "samples.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message.format(path))) as caught:
        read_samples(path)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_header_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .* as CSV"):
        read_samples(tmp_path)
    samples = read_samples(write_csv(tmp_path, HEADER))
    assert len(samples) == 0
    assert samples["age"].dtype == np.int64


@pytest.mark.parametrize(("ages", "n"), [((18, 75), 0), ((17, 18), 1), ((0, 76, 30), 2)])
def test_unusual_ages_are_one_warning(
    caplog: pytest.LogCaptureFixture, ages: tuple[int, ...], n: int
) -> None:
    warn_of_unusual_ages(pd.DataFrame({"age": ages}), Path("samples.csv"))
    expected = (
        f"samples.csv: {n} photos of people younger than 18 or older than 75; they count as age"
        " group 0-20 or 31-75"
    )
    assert [record.getMessage() for record in caplog.records] == [expected] * bool(n)


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
    assert re.search(r"blanks around the id in 1 lines \(first: line \d+\)", record.getMessage())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",nailPolish,", ",", "missing column nailPolish: {} has id, age, gender, skinColor,"),
        ('"dorsal left"', '"dorsal"', "aspectOfHand is 'dorsal', expected dorsal right or dorsal"),
        ('"male"', '"m"', "gender is 'm', expected female or male: {} line 2. Correct the file"),
        ('"male"', '""', "gender is '', expected female or male: {} line 2. Correct the file"),
        (",18,", ",18.5,", "age is '18.5', expected a whole number of years: {} line 2"),
        (",18,", ",,", "age is '', expected a whole number of years: {} line 2"),
        ('"fair",0', '"fair",2', "accessories is '2', expected 0 or 1: {} line 2"),
        ('"fair"', '"blue"', "skinColor is 'blue', expected very fair or fair or medium or dark"),
        ("Hand_0000003.jpg", "Hand_0000002.jpg", "imageName is 'Hand_0000002.jpg', expected a fi"),
        ("Hand_0000003.jpg", "../x.jpg", "imageName is '../x.jpg', expected a file name that occ"),
        ("Hand_0000003.jpg", "x/y.jpg", "imageName is 'x/y.jpg', expected a file name that occurs"),
        ("Hand_0000003.jpg", "", "imageName is '', expected a file name that occurs once: {} line"),
        (
            '"0000000"',
            '" "',
            "(spreadsheets round long ids): {} line 2. Correct the file",
        ),
        ('"male"', '"female"', "two values of gender for id 0000000: {} line 2 has female, line 3"),
        (",18,", ",19,", "two values of age for id 0000000: {} line 2 has 19, line 3 has 18"),
    ],
)
def test_a_wrong_hand_info_is_refused(hands_root: Path, old: str, new: str, message: str) -> None:
    path = edit_hand_info(hands_root, old, new)
    with pytest.raises(UserError, match=re.escape(message.format(path))):
        read_hand_info(path)


def test_a_fourth_task_is_checked_by_its_row(
    hands_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "skin_color", Task("skinColor", "skin colour", SKIN_COLORS))
    monkeypatch.setitem(TASKS, "hand_span", Task("span", "span", None, pattern="[0-9]+ cm"))
    with pytest.raises(UserError, match="missing column span: "):
        read_hand_info(hands_root / "HandInfo.csv")
    header = "image_path,id,skinColor,span\n"
    samples = read_samples(write_csv(tmp_path, header + "a.jpg,1,dark,8 cm\nb.jpg,2,,\n"))
    assert samples["skinColor"].tolist() == ["dark", ""]
    assert further_columns(samples) == []
    with pytest.raises(UserError, match="skinColor is 'blue', expected very fair or fair or "):
        read_samples(write_csv(tmp_path, header + "a.jpg,1,blue,8 cm\n"))
    with pytest.raises(UserError, match="span is '8', expected "):
        read_samples(write_csv(tmp_path, header + "a.jpg,1,dark,8\n"))


# ----------------------------------------------------------------------------- people.csv


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,gender\n", "missing column id: "),
        ("id,gender\nanna,female\nanna ,female\n", "id is 'anna ', expected an id that occurs on"),
        (
            "id,gender\n ,female\n",
            "id is ' ', expected a person's id as text (spreadsheets round long ids): ",
        ),
        ("id,gender\nanna,f\n", "gender is 'f', expected female or male: "),
        ("id;age\nanna;old\n", "age is 'old', expected a whole number of years: "),
        ("id,name\nanna,Anna\n", "the column name is reserved: "),
        ("id,image_path\nanna,a.jpg\n", "the column image_path is reserved: "),
    ],
)
def test_a_wrong_people_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_people(write_csv(tmp_path, text))


def test_people_keep_their_columns_as_text(tmp_path: Path) -> None:
    people = read_people(write_csv(tmp_path, "id;age;job;\n anna;030;cook;\nben;;;\n"))
    assert people.to_dict("list") == {
        "id": ["anna", "ben"],
        "age": ["030", ""],
        "job": ["cook", ""],
    }


# ----------------------------------------------------------------------------- what to do next


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    split = "python dataset_11k_split.py"

    def command(path: str) -> str:
        return split_command(root / path)

    assert command("trainval/office/train.csv") == f"{split} --input <root>"
    (root / "Hands").mkdir(parents=True)
    assert command("sub_dataset/office.csv") == f"{split} --folders {root}/Hands"
    (root / "sub_dataset").mkdir()
    for name in ("home", "office"):
        (root / "sub_dataset" / f"{name}.csv").touch()
    given = f"{split} --attributes_file {root}/sub_dataset/office.csv"
    assert command("trainval/office/train.csv") == given
    assert command("trainval/burst/office/fold_0/train.csv") == f"{given} --protocol burst"
    (root / "HandInfo.csv").touch()
    assert command("trainval/office/train.csv") == f"{split} --input {root}"
    with pytest.raises(UserError, match=f"not found: {root}/trainval/x.csv. Run: {split} --input"):
        read_samples(root / "trainval" / "x.csv")
    with pytest.raises(UserError, match=r"HandInfo.csv. Get Hands/ and HandInfo.csv from https://"):
        read_hand_info(tmp_path / "HandInfo.csv")
