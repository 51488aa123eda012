"""Rows, labels, pixels and batches: from the files of 11k Hands to what a model is given."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from dataset_11k import (
    AGE_GROUPS,
    GENDERS,
    HAND_INFO_COLUMNS,
    TASKS,
    HandsDataset,
    Item,
    LabelSpace,
    RowSampler,
    SplitFiles,
    age_group,
    build_loader,
    build_transform,
    check_photos,
    fingerprint,
    locate,
    open_photo,
    read_hand_info,
    read_rows,
    resize_size,
    warn_of_odd_ages,
)
from utils import UserError, one_line_errors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RED, WHITE = (255, 0, 0), (255, 255, 255)

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
        (b"image_path,id,gender,age\n\xff\xfe.jpg,1,male,27\n", "cannot be read as a CSV file: "),
    ],
)
def test_a_file_that_is_no_split_csv(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_rows(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


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
    assert files.photos == split_root / "Hands"
    for folder, spelling in [("", "sub_dataset/palmar_pr.csv"), ("sub_dataset", "palmar_pr.csv")]:
        monkeypatch.chdir(split_root / folder)
        relative = locate(Path(spelling), "paper")
        assert relative.photos.resolve() == files.photos.resolve()
        assert relative.aspect == "palmar_pr"


def test_other_protocols_have_a_folder_of_their_own() -> None:
    files = SplitFiles(Path("r"), "dorsal_dr", "subject-disjoint")
    assert files.split("train") == Path("r/trainval/subject-disjoint/dorsal_dr/train.csv")


def test_a_file_outside_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.csv not found; run dataset_11k_split.py first"):
        locate(tmp_path / "none.csv", "paper")
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


# ----------------------------------------------------------------------------- pixels


def pixels(path: Path) -> np.ndarray:
    photo = open_photo(path)
    assert photo.mode == "RGB"
    return np.asarray(photo)


def halves(left: Any, right: Any, mode: str = "RGB") -> Image.Image:
    """Return a 64x32 image of two colours, side by side."""
    image = Image.new(mode, (64, 32), left)
    image.paste(right, (32, 0, 64, 32))
    return image


def transparent_palette() -> Image.Image:
    image = halves(0, 1, "P")
    image.putpalette([0, 0, 255, *RED])  # blue, red
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "options", "left", "right"),
    [
        pytest.param(halves(0, 200, "L"), "png", {}, (0,) * 3, (200,) * 3, id="grey"),
        pytest.param(halves(0, 1, "1"), "png", {}, (0,) * 3, WHITE, id="1 bit"),
        pytest.param(
            halves((0, 255, 255, 0), (0, 0, 0, 255), "CMYK"), "tif", {}, RED, (0,) * 3, id="CMYK"
        ),
        pytest.param(transparent_palette(), "png", {"transparency": 0}, WHITE, RED, id="palette"),
        pytest.param(transparent_palette(), "png", {}, (0, 0, 255), RED, id="opaque palette"),
        pytest.param(
            halves((*RED, 0), (*RED, 51), "RGBA"), "png", {}, WHITE, (255, 204, 204), id="RGBA"
        ),
        pytest.param(halves((9, 0), (9, 255), "LA"), "png", {}, WHITE, (9,) * 3, id="grey alpha"),
        pytest.param(
            Image.fromarray(np.full((32, 64), 257 * 100, np.uint16)),
            *("png", {}, (100,) * 3, (100,) * 3),
            id="16 bit",
        ),
        pytest.param(
            Image.fromarray(np.full((32, 64), 65535, np.uint16)),
            *("tif", {}, WHITE, WHITE),
            id="16 bit white",
        ),
    ],
)
def test_every_kind_of_image_becomes_rgb(
    tmp_path: Path,
    image: Image.Image,
    suffix: str,
    options: dict[str, Any],
    left: tuple[int, ...],
    right: tuple[int, ...],
) -> None:
    path = tmp_path / f"photo.{suffix}"
    image.save(path, **options)
    found = pixels(path)
    assert found.shape == (32, 64, 3)
    assert (found[:, :32] == left).all()
    assert (found[:, 32:] == right).all()


@pytest.mark.parametrize("decode_size", [0, 8])
@pytest.mark.parametrize(
    ("orientation", "size", "red_side"),  # size: width, height
    [
        (1, (64, 32), "left"),
        (2, (64, 32), "right"),  # mirrored
        (3, (64, 32), "right"),  # upside down
        (6, (32, 64), "top"),  # turned to the left
        (8, (32, 64), "bottom"),  # turned to the right
    ],
)
def test_photos_are_turned_upright(
    tmp_path: Path, orientation: int, size: tuple[int, int], red_side: str, decode_size: int
) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x112] = orientation
    halves(RED, WHITE).save(path, exif=exif, quality=95)
    photo = open_photo(path, decode_size)
    scale = 4 if decode_size else 1
    assert photo.size == (size[0] // scale, size[1] // scale)
    found = np.asarray(photo).astype(int)
    height, width = found.shape[:2]
    corner = {"left": (-1, 0), "right": (0, -1), "top": (0, -1), "bottom": (-1, 0)}[red_side]
    opposite = (height - 1 - corner[0] % height, width - 1 - corner[1] % width)
    assert np.abs(found[corner] - RED).max() < 8
    assert np.abs(found[opposite] - WHITE).max() < 8


@pytest.mark.parametrize(
    ("decode_size", "size"),
    [
        (0, (160, 120)),
        (15, (20, 15)),
        (16, (40, 30)),
        (30, (40, 30)),
        (31, (80, 60)),
        (61, (160, 120)),
        (500, (160, 120)),  # nothing is scaled up
    ],
)
def test_the_jpeg_decoder_scales_no_further_than_asked(
    tmp_path: Path, decode_size: int, size: tuple[int, int]
) -> None:
    path = tmp_path / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    photo = open_photo(path, decode_size)
    assert photo.size == size
    if size == (160, 120):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(photo), np.asarray(image))


def test_other_formats_are_not_scaled(tmp_path: Path) -> None:
    halves(RED, WHITE).save(tmp_path / "photo.png")
    assert open_photo(tmp_path / "photo.png", 4).size == (64, 32)


def jpeg_bytes(tmp_path: Path) -> bytes:
    path = tmp_path / "whole.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("decode_size", [0, 16])
@pytest.mark.parametrize("damage", ["half", "header", "empty", "text", "no file", "a folder"])
def test_a_photo_that_cannot_be_decoded_is_named(
    tmp_path: Path, damage: str, decode_size: int
) -> None:
    whole = jpeg_bytes(tmp_path)
    path = tmp_path / "photo.jpg"
    contents = {"half": whole[: len(whole) // 2], "header": whole[:300], "empty": b"", "text": b"x"}
    if damage in contents:
        path.write_bytes(contents[damage])
    elif damage == "a folder":
        path.mkdir()
    with pytest.raises(UserError) as caught:
        open_photo(path, decode_size)
    message = str(caught.value)
    assert message.startswith(f"photo {path} cannot be decoded: ")
    assert message.endswith("; replace the file")
    assert "\n" not in message


def test_a_photo_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves(RED, WHITE).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="cannot be decoded: .* exceeds limit"):
        open_photo(tmp_path / "photo.png")


# ----------------------------------------------------------------------------- transforms


def photo_of_noise(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)


def test_a_grey_photo_against_hand_computation() -> None:
    image = Image.new("RGB", (640, 480), (0, 255, 51))
    tensor = build_transform(train=False, image_size=32, mean=MEAN, std=STD)(image)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 32, 32)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    for channel, value in zip(tensor, expected, strict=True):
        assert channel.min().item() == pytest.approx(value, abs=1e-5)
        assert channel.max().item() == pytest.approx(value, abs=1e-5)


def published(image: Image.Image, image_size: int) -> torch.Tensor:
    """Return the published val transform of `image`, in Pillow and torchvision's functions."""
    resized = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return functional.normalize(functional.to_tensor(resized), list(MEAN), list(STD))


@pytest.mark.parametrize("image_size", [224, 64])
def test_the_val_transform_is_the_published_one(image_size: int) -> None:
    image = photo_of_noise()
    found = build_transform(train=False, image_size=image_size, mean=MEAN, std=STD)(image)
    assert (found - published(image, image_size)).abs().max().item() <= 1e-6


def augmented(seed: int = 0, **options: float) -> torch.Tensor:
    """Return a 56x56 augmentation of `photo_of_noise`, (3, 56, 56) in [0, 1]."""
    transform = build_transform(train=True, image_size=56, mean=(0,) * 3, std=(1,) * 3, **options)
    torch.manual_seed(seed)
    return transform(photo_of_noise())


def as_bytes(tensor: torch.Tensor) -> bytes:
    return (tensor * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes()


@pytest.fixture(scope="module")
def crops() -> dict[bytes, tuple[int, int]]:
    """Every 56x56 crop of the photo resized to 64x64: its bytes and (top, left)."""
    resized = np.asarray(photo_of_noise().resize((64, 64), Image.Resampling.BICUBIC))
    places = [(top, left) for top in range(9) for left in range(9)]
    return {
        resized[top : top + 56, left : left + 56].tobytes(): (top, left) for top, left in places
    }


def test_the_train_transform_crops_the_resized_photo_anywhere(
    crops: dict[bytes, tuple[int, int]],
) -> None:
    places = [crops[as_bytes(augmented(seed, flip=0, jitter=0))] for seed in range(60)]
    assert {top for top, _ in places} == {left for _, left in places} == set(range(9))


def test_half_of_the_photos_are_mirrored(crops: dict[bytes, tuple[int, int]]) -> None:
    images = [augmented(seed, jitter=0) for seed in range(60)]
    n_mirrored = sum(as_bytes(image.flip(-1)) in crops for image in images)
    n_plain = sum(as_bytes(image) in crops for image in images)
    assert n_mirrored + n_plain == 60
    assert 15 <= n_mirrored <= 45  # a fair coin leaves this range once in 10,000 such tests


def test_flip_and_jitter_can_be_set() -> None:
    plain = augmented(flip=0, jitter=0)
    assert torch.equal(augmented(flip=1, jitter=0), plain.flip(-1))
    changes = [(augmented(flip=0, jitter=jitter) - plain).abs().max() for jitter in (0.01, 0.3)]
    assert 0 < changes[0] < 0.05 < changes[1]


@pytest.mark.parametrize("train", [True, False])
def test_transforms_can_be_sent_to_spawned_workers(train: bool) -> None:
    transform = build_transform(train=train, image_size=56, mean=MEAN, std=STD)
    image = photo_of_noise()
    torch.manual_seed(0)
    expected = transform(image)
    torch.manual_seed(0)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), expected)


@pytest.mark.parametrize(("image_size", "side"), [(224, 256), (112, 128), (384, 439), (56, 64)])
def test_photos_are_resized_by_the_published_ratio(image_size: int, side: int) -> None:
    assert resize_size(image_size) == side


# ----------------------------------------------------------------------------- batches


def hands_dataset(root: Path, *, train: bool = True) -> HandsDataset:
    rows = read_rows(root / "trainval" / "dorsal_dr" / "train.csv")
    return HandsDataset(
        rows,
        root / "Hands",
        LabelSpace.of_people(rows["id"].tolist()),
        transform=build_transform(train=train, image_size=32, mean=MEAN, std=STD),
    )


def epoch_items(
    dataset: HandsDataset, epoch: int, *, num_workers: int = 0, seed: int = 0
) -> list[Item]:
    """Return the items of an epoch as a shuffled loader gives them."""
    loader = build_loader(dataset, batch_size=5, num_workers=num_workers, shuffle=True, seed=seed)
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [
        Item(image, labels, int(row))
        for batch in loader
        for image, labels, row in zip(*batch, strict=True)
    ]


def by_row(items: list[Item]) -> list[torch.Tensor]:
    return [item.image for item in sorted(items, key=lambda item: item.row)]


def test_items_are_the_rows_photos_and_labels(split_root: Path) -> None:
    dataset = hands_dataset(split_root, train=False)
    rows = read_rows(split_root / "trainval" / "dorsal_dr" / "train.csv")
    assert len(dataset) == len(rows) == 12
    people = sorted(set(rows["id"]))
    for i, row in enumerate(rows.to_dict("records")):
        item = dataset[i, 0]
        with Image.open(split_root / "Hands" / Path(row["image_path"]).name) as image:
            assert (item.image - published(image, 32)).abs().max().item() <= 1e-6
        assert item.labels.tolist() == [
            people.index(row["id"]),
            GENDERS.index(row["gender"]),
            list(AGE_GROUPS).index(age_group(row["age"])),
        ]
        assert item.row == i


def test_augmentation_depends_on_seed_epoch_and_row_alone(split_root: Path) -> None:
    dataset = hands_dataset(split_root)
    torch.manual_seed(1)
    here = epoch_items(dataset, 3)
    torch.manual_seed(2)
    there = epoch_items(dataset, 3, num_workers=2)
    assert [item.row for item in here] == [item.row for item in there]
    assert all(torch.equal(a.image, b.image) for a, b in zip(here, there, strict=True))
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(here, there, strict=True))
    for other in (epoch_items(dataset, 4), epoch_items(dataset, 3, seed=1)):
        assert not any(torch.equal(a, b) for a, b in zip(by_row(here), by_row(other), strict=True))


def test_every_row_is_augmented_in_its_own_way(split_root: Path) -> None:
    dataset = hands_dataset(split_root)
    dataset.names = [dataset.names[0]] * len(dataset)  # one photo in every row
    images = by_row(epoch_items(dataset, 1))
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_persistent_workers_are_told_of_the_next_epoch(split_root: Path) -> None:
    dataset = hands_dataset(split_root)
    loader = build_loader(dataset, batch_size=5, num_workers=2, shuffle=True)
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        images = torch.cat([batch.image for batch in loader])
        expected = torch.stack([item.image for item in epoch_items(dataset, epoch)])
        assert torch.equal(images, expected)


def keys(n_rows: int, *, seed: int = 0, epoch: int = 1, shuffle: bool = True) -> list[Any]:
    sampler = RowSampler(n_rows, seed=seed, shuffle=shuffle)
    sampler.set_epoch(epoch)
    assert len(sampler) == n_rows
    return list(sampler)


def test_row_sampler_order() -> None:
    shuffled, plain = keys(50), keys(50, shuffle=False)
    assert [row for row, _ in plain] == list(range(50))
    assert [row for row, _ in shuffled] != list(range(50))
    assert sorted(shuffled) == plain  # every row once, with the same seed either way
    assert keys(50) == shuffled
    order = [row for row, _ in shuffled]
    assert [row for row, _ in keys(50, epoch=2)] != order
    assert [row for row, _ in keys(50, seed=1)] != order
    assert len({seed for _, seed in shuffled}) == 50
    assert not {seed for _, seed in keys(50, epoch=2)} & {seed for _, seed in shuffled}
    torch.manual_seed(max(seed for _, seed in shuffled))  # each of them is a legal seed
    assert keys(0) == []


def test_the_order_does_not_follow_the_global_generators() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = keys(50)
    torch.manual_seed(2)
    np.random.seed(2)
    assert keys(50) == first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_leaves_the_global_generator_alone(split_root: Path, num_workers: int) -> None:
    dataset = hands_dataset(split_root)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    epoch_items(dataset, 1, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_photo_is_one_line_with_path_and_row(
    split_root: Path, capfd: pytest.CaptureFixture[str], num_workers: int
) -> None:
    dataset = hands_dataset(split_root)
    path = split_root / "Hands" / dataset.names[6]
    path.write_bytes(path.read_bytes()[:400])

    @one_line_errors
    def main(argv: Sequence[str] | None = None) -> int:
        epoch_items(dataset, 1, num_workers=num_workers)
        return 0

    assert main([]) == 1
    message = capfd.readouterr().err
    assert message.startswith(f"error: row 7: photo {path} cannot be decoded: ")
    assert message.count("\n") == 1
