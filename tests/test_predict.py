"""predict.py: predictions for any photo; unreadable ones are reported, the others predicted."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import torch
from conftest import train_tiny
from PIL import Image

import predict
import test as test_script
from dataset_11k import TASKS
from engine.checkpoint import load_checkpoint
from utils import UserError


def run(checkpoint: Path, *arguments: str | Path) -> int:
    quick = ["--num_workers", "0", "--device", "cpu"]
    return predict.main(["--checkpoint", str(checkpoint), *quick, *map(str, arguments)])


def error_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_predictions_equal_those_of_the_evaluation(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"
    test_script.main(
        ["--checkpoint", str(tiny_checkpoint), "--attributes_file", str(attributes)]
        + ["--num_workers", "0", "--device", "cpu"]
    )
    folder = tiny_checkpoint.with_name(f"{tiny_checkpoint.stem}-dorsal_dr-val")
    with (folder / "predictions.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    capsys.readouterr()
    photos = [split_root / "Hands" / Path(row["image_path"]).name for row in expected]
    assert run(tiny_checkpoint, *photos, "--top_k", "2", "--batch_size", "4") == 0
    predictions = records(capsys.readouterr().out)
    assert [prediction["photo"] for prediction in predictions] == [str(photo) for photo in photos]
    for prediction, row in zip(predictions, expected, strict=True):
        for task in TASKS:
            first, second = prediction[task]
            assert first["class"] == row[f"{task}_pred"]
            assert first["probability"] == pytest.approx(float(row[f"{task}_prob"]), abs=1e-4)
            assert first["probability"] >= second["probability"]
    with np.load(folder / "predictions.npz") as arrays:
        embeddings = arrays["embedding"]
    found = predict.load_predictor(tiny_checkpoint, device="cpu")(photos)
    np.testing.assert_allclose([p.embedding for p in found], embeddings, atol=1e-4)


def test_all_probabilities_of_a_task_sum_to_one(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = next((split_root / "Hands").iterdir())
    assert run(tiny_checkpoint, photo, "--top_k", "99") == 0
    prediction = json.loads(capsys.readouterr().out)
    space = load_checkpoint(tiny_checkpoint)["label_space"]
    for task in TASKS:
        assert sorted(found["class"] for found in prediction[task]) == sorted(space[task])
        assert sum(found["probability"] for found in prediction[task]) == pytest.approx(1)


def test_the_temperature_is_applied(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(tiny_checkpoint, weights_only=True)
    state["temperature"]["gender"] = 1e9
    torch.save(state, tiny_checkpoint)
    assert run(tiny_checkpoint, next((split_root / "Hands").iterdir())) == 0
    prediction = json.loads(capsys.readouterr().out)
    assert [found["probability"] for found in prediction["gender"]] == pytest.approx([0.5, 0.5])


def test_csv_has_a_column_per_class_named(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_checkpoint, split_root / "Hands", "--format", "csv", "--top_k", "2") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == len(list((split_root / "Hands").iterdir()))
    columns = [f"{t}_{k}{p}" for t in TASKS for k in (1, 2) for p in ("", "_prob")]
    columns += ["expected_age", "age_from", "age_to", "unknown", "typicality", "warnings"]
    assert list(rows[0]) == ["photo", *columns]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_bad_files_get_a_line_each_and_the_others_a_prediction(
    tiny_checkpoint: Path,
    split_root: Path,
    tmp_path: Path,
    workers: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = sorted((split_root / "Hands").iterdir())[:2]
    folder, empty = tmp_path / "mixed", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    shutil.copy(good[0], folder / "a.jpg")
    (folder / "b.jpg").write_bytes(good[1].read_bytes()[:300])
    (folder / "notes.txt").write_text("no photo")
    (folder / ".DS_Store").write_text("hidden")
    missing, url = tmp_path / "missing.jpg", "https://example.org/hand.jpg"
    code = run(tiny_checkpoint, folder, good[1], missing, empty, url, "--num_workers", workers)
    captured = capsys.readouterr()
    assert code == 1
    predicted = [json.loads(line)["photo"] for line in captured.out.splitlines()]
    assert predicted == [str(folder / "a.jpg"), str(good[1])]
    errors = error_lines(captured.err)
    named = (folder / "b.jpg", missing, empty, folder / "notes.txt", f"a URL, not a file: {url}")
    assert len(errors) == len(named)
    for part in named:
        assert sum(str(part) in error for error in errors) == 1


def test_nothing_readable_predicts_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    assert run(tiny_checkpoint, tmp_path / "x.jpg") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(error_lines(captured.err)) == 1


def test_annotated_pictures_show_photo_and_prediction(
    tiny_checkpoint: Path, split_root: Path, tmp_path: Path
) -> None:
    photo = next((split_root / "Hands").iterdir())
    before = photo.read_bytes()
    twin = tmp_path / "other" / photo.name  # the same name from another folder
    twin.parent.mkdir()
    shutil.copy(photo, twin)
    output = tmp_path / "predictions"
    assert run(tiny_checkpoint, photo, twin, "--output", output) == 0
    pictures = sorted(output.iterdir())
    assert [p.name for p in pictures] == [f"0001_{photo.stem}.png", f"0002_{photo.stem}.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.size[0] == predict.ANNOTATED_WIDTH
        pixels = np.asarray(picture.convert("L"))
    photo_height = round(48 * predict.ANNOTATED_WIDTH / 64)
    assert (pixels[photo_height:] < 100).any()  # letters below the photo
    assert photo.read_bytes() == before


@pytest.mark.parametrize("flag", ["--top_k", "--batch_size"])
def test_bad_flags_exit_with_2(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(Path("x.pth"), "x.jpg", flag, "0")
    assert stop.value.code == 2
    assert flag in capsys.readouterr().err


def test_odd_shapes_and_long_names_are_annotated(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide, tall = tmp_path / f"{'w' * 200}.png", tmp_path / "tall.png"
    Image.new("RGB", (2000, 1), "tan").save(wide)
    Image.new("RGB", (1, 3000), "tan").save(tall)
    assert run(tiny_checkpoint, wide, tall, "--output", tmp_path / "predictions") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert len(list((tmp_path / "predictions").iterdir())) == 2


# ----------------------------------------------------------------------------- from Python


def test_path_image_and_array_have_the_same_prediction(
    tiny_checkpoint: Path, split_root: Path
) -> None:
    paths = sorted((split_root / "Hands").iterdir())[:40:39]
    predictor = predict.load_predictor(str(tiny_checkpoint), device="cpu")
    expected = predictor(paths[0])
    assert list(expected.classes) == list(TASKS)
    for task, classes in expected.probabilities.items():
        assert max(classes, key=classes.__getitem__) == expected.classes[task]
        assert sum(classes.values()) == pytest.approx(1)
    years = expected.age_interval
    assert years is not None
    assert 18 <= expected.expected_age <= 75
    assert years[0] <= expected.expected_age <= years[1]
    assert 0 <= expected.typicality <= 1
    with Image.open(paths[0]) as image:
        pixels = np.asarray(image)
        for photo in (str(paths[0]), image, pixels, Image.fromarray(pixels)):
            assert np.array_equal(predictor(photo).embedding, expected.embedding)
    assert predictor([]) == []
    both = predictor([paths[1], pixels])
    np.testing.assert_allclose(both[1].embedding, expected.embedding, atol=1e-5)
    assert not np.allclose(both[0].embedding, expected.embedding, atol=1e-5)


@pytest.mark.parametrize(
    ("photo", "reason"),
    [
        (np.zeros((8, 8, 3)), "shape (8, 8, 3) and type float64. Give an image, or an array"),
        (np.zeros((8, 8), np.uint8), "shape (8, 8) and type uint8"),
        ("missing.jpg", "cannot decode photo missing.jpg: No such file or directory. Replace"),
        ("https://example.org/hand.jpg", "a URL, not a file: https://example.org/hand.jpg. Down"),
    ],
)
def test_what_is_no_photo_is_refused(tiny_checkpoint: Path, photo: Any, reason: str) -> None:
    predictor = predict.load_predictor(tiny_checkpoint, device="cpu")
    good = np.full((8, 8, 3), 99, np.uint8)
    for photos in (photo, [good, photo]):
        with pytest.raises(UserError) as caught:
            predictor(photos)
        assert reason in str(caught.value)


# ----------------------------------------------------------------------------- hands


@pytest.mark.parametrize("given", ["csv", "number"])
def test_photos_of_a_hand_have_one_prediction(
    tiny_checkpoint: Path,
    split_root: Path,
    tmp_path: Path,
    given: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = sorted((split_root / "Hands").iterdir())[:4]
    arguments: list[str | Path] = [*photos, "--photos_per_hand", "2"]
    if given == "csv":
        table = split_root / "Hands" / "hands.csv"  # photos beside it
        rows = [f"{p.name},{hand}" for p, hand in zip(photos, "ABAB", strict=True)]
        table.write_text("\n".join(["image_path,hand", *rows]))
        photos = [photos[i] for i in (0, 2, 1, 3)]
        arguments = [table]
    file = tmp_path / "found.npz"
    assert run(tiny_checkpoint, *arguments, "--top_k", "99", "--embeddings", file) == 0
    found = records(capsys.readouterr().out)
    assert [record["photos"] for record in found] == [
        [str(photo) for photo in pair] for pair in (photos[:2], photos[2:])
    ]
    assert [record["hand"] for record in found] == (["A", "B"] if given == "csv" else ["", ""])
    predictor = predict.load_predictor(tiny_checkpoint, device="cpu")
    each = predictor(photos)
    with np.load(file) as arrays:
        means = [(each[i].embedding + each[i + 1].embedding) / 2 for i in (0, 2)]
        np.testing.assert_allclose(arrays["embedding"], means, atol=1e-4)
        assert arrays["photo"][0] == f"{photos[0]}; {photos[1]}"
    for task in TASKS:
        names = sorted(each[0].probabilities[task])
        first, second = (np.array([p.probabilities[task][n] for n in names]) for p in each[:2])
        product = np.sqrt(first * second)
        computed = {c["class"]: c["probability"] for c in found[0][task]}
        expected = dict(zip(names, product / product.sum(), strict=True))
        assert computed == pytest.approx(expected, abs=1e-4)
    hand = predictor.predict_hand(photos[:2])
    np.testing.assert_allclose(hand.embedding, means[0], atol=1e-4)


def test_a_broken_photo_of_a_hand_leaves_the_others(
    tiny_checkpoint: Path,
    split_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = sorted((split_root / "Hands").iterdir())[:3]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"")
    arguments = [photos[0], broken, *photos[1:], broken, broken]
    assert run(tiny_checkpoint, *arguments, "--photos_per_hand", "2", "--batch_size", "2") == 1
    captured = capsys.readouterr()
    assert [record["photos"] for record in records(captured.out)] == [
        [str(photos[0])],
        [str(photos[1]), str(photos[2])],
    ]
    assert len(error_lines(captured.err)) == 3


def test_photos_that_cannot_be_grouped_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "hands.csv"
    table.write_text("image_path,hand\na.jpg,A\nb.jpg,\n")
    assert run(tiny_checkpoint, table) == 1
    assert f"hand is '', expected the name of a hand: {table} line 3" in capsys.readouterr().err
    assert run(tiny_checkpoint, "a.jpg", "b.jpg", "c.jpg", "--photos_per_hand", "2") == 1
    assert "3 photos are no multiple of --photos_per_hand 2" in capsys.readouterr().err


# ----------------------------------------------------------------------------- files and names


def test_output_is_no_input_and_other_formats_are_read(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pillow_heif.register_heif_opener()
    folder, noise = tmp_path / "photos", np.random.default_rng(0).integers(0, 256, (48, 64, 3))
    folder.mkdir()
    names = ["a.heic", "b.HEIF", "c.jfif", "d.ppm", "e.webp"]
    for name in names:
        Image.fromarray(noise.astype(np.uint8)).save(folder / name)
    flags = ("--output", folder / "out", "--embeddings", folder / "found.npz")
    for _ in range(2):
        assert run(tiny_checkpoint, folder, *flags) == 0
        found = records(capsys.readouterr().out)
        assert [record["photo"] for record in found] == [str(folder / name) for name in names]
    assert run(tiny_checkpoint, folder / "out" / "0001_a.png", *flags) == 1
    assert "thus no input" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8:strict", "ascii"])
@pytest.mark.parametrize("form", ["json", "csv"])
def test_output_is_utf_8_whatever_the_console(
    tiny_checkpoint: Path, split_root: Path, tmp_path: Path, encoding: str, form: str
) -> None:
    names = [b"a.jpg", "\u624b.jpg".encode(), b"z.jpg"]
    if sys.platform == "linux":  # elsewhere names are Unicode
        names.insert(1, b"b_\xe9.jpg")
    for name in names:
        copy = tmp_path / os.fsdecode(name)
        shutil.copy(next((split_root / "Hands").iterdir()), copy)
    paths = [os.fsencode(tmp_path / os.fsdecode(name)) for name in names]
    command = [sys.executable, predict.__file__, "--checkpoint", str(tiny_checkpoint), "--format"]
    command += [form, "--num_workers", "0", "--device", "cpu", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([*command, *paths], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode("utf-8")
    if form == "csv":
        found = [row["photo"] for row in csv.DictReader(io.StringIO(text))]
        assert "\u624b.jpg" in found[-2]
    else:
        found = [record["photo"] for record in records(text)]
        assert [os.fsencode(photo) for photo in found] == paths
    assert len(found) == len(names)
    assert len(list((tmp_path / "out").iterdir())) == len(names)


def test_a_long_name_in_any_script_is_annotated(
    tiny_checkpoint: Path, split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / f"{chr(0x624B) * 80}.jpg"  # 240 bytes
    shutil.copy(next((split_root / "Hands").iterdir()), photo)
    assert run(tiny_checkpoint, photo, "--output", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_flawed_photos_are_named(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black = tmp_path / "black.png"
    Image.new("RGB", (64, 48)).save(black)
    assert run(tiny_checkpoint, black) == 0
    captured = capsys.readouterr()
    (record,) = records(captured.out)
    assert f"{black} is nearly black, with grey levels 0 to 0 of 0 to 255" in record["warnings"]
    assert f"photo {black}: is nearly black" in captured.err


# ----------------------------------------------------------------------------- typicality


def test_typicality_outlives_the_training_photos(
    tiny_checkpoint: Path, split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first call stores what it needs; a reference of another model is not used."""
    photo = shutil.copy(next((split_root / "Hands").iterdir()), tmp_path / "hand.jpg")
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"

    def typicality(*flags: str | Path) -> float | None:
        assert run(tiny_checkpoint, photo, *flags) == 0
        captured = capsys.readouterr()
        (record,) = records(captured.out)
        left_out = record["typicality"] is None
        assert left_out == (record["unknown"] is None)
        assert left_out == ("no typicality, no decision `unknown`: " in captured.err)
        return record["typicality"]

    missing = tmp_path / "sub_dataset" / "dorsal_dr.csv"
    assert typicality("--attributes_file", missing) is None
    first = typicality("--attributes_file", attributes)
    assert first is not None
    assert typicality("--attributes_file", missing) == first
    state = torch.load(tiny_checkpoint, weights_only=True)
    state["model"]["heads.gender.0.bias"] += 1
    torch.save(state, tiny_checkpoint)
    assert typicality("--attributes_file", missing) is None
    assert typicality("--attributes_file", attributes) == first  # the embedding is the same
    attributes.with_name("dorsal_dl.csv").replace(attributes)
    train = split_root / "trainval" / "dorsal_dr" / "train.csv"
    train.write_text("\n".join(train.read_text().splitlines()[:-1]))
    tiny_checkpoint.with_name(f"{tiny_checkpoint.stem}-reference.npz").write_bytes(b"damaged")
    assert typicality("--attributes_file", attributes) is None  # train has changed


def test_a_person_is_unknown_below_the_threshold(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"
    flags = ("--attributes_file", attributes, "--fpir")
    photos = sorted((split_root / "Hands").iterdir())
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(split_root / "noise.png")
    assert run(tiny_checkpoint, *photos, split_root / "noise.png", *flags, "0.5") == 0
    found = records(capsys.readouterr().out)
    path = tiny_checkpoint.with_name(f"{tiny_checkpoint.stem}-reference.npz")
    with np.load(path) as stored:
        train, val = stored["embeddings"], stored["similarities"]
    each = predict.load_predictor(tiny_checkpoint, device="cpu")(photos)
    for record, prediction in zip(found, each, strict=False):
        unit = prediction.embedding / np.linalg.norm(prediction.embedding)
        nearest = (train @ unit).max()
        if abs(nearest - np.median(val)) > 1e-4:
            assert record["unknown"] == (nearest < np.median(val))
    assert {record["unknown"] for record in found} == {False, True}
    assert found[-1]["typicality"] == 0
    assert any("not like the hands of the training" in text for text in found[-1]["warnings"])
    assert run(tiny_checkpoint, photos[0], *flags, "0.01") == 0
    captured = capsys.readouterr()
    assert all(record["unknown"] is None for record in records(captured.out))
    assert f"--fpir 0.01 needs 100 val photos, the training had {len(val)}" in captured.err


def test_typicality_of_permuted_labels(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train_tiny(split_root, tmp_path / "run", "--N_epochs", "1", "--permute_labels")
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"
    photo = next((split_root / "Hands").iterdir())
    assert run(checkpoint, photo, "--attributes_file", attributes) == 0
    assert records(capsys.readouterr().out)[0]["typicality"] is not None


def test_pictures_without_a_hand_are_not_typical(
    tiny_checkpoint: Path, split_root: Path, tmp_path: Path
) -> None:
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"
    predictor = predict.load_predictor(tiny_checkpoint, attributes_file=attributes, device="cpu")
    with attributes.open(newline="") as file:
        names = [Path(row["image_path"]).name for row in csv.DictReader(file)]
    hands = predictor([split_root / "Hands" / name for name in names])
    others = [np.zeros((48, 64, 3), np.uint8), np.indices((48, 64, 3)).sum(axis=0) % 5 * 60]
    pictures = predictor([picture.astype(np.uint8) for picture in others])
    assert all(hand.typicality >= predict.ATYPICAL for hand in hands)
    assert all(picture.typicality < predict.ATYPICAL for picture in pictures)
    for picture in pictures:
        assert any("not like the hands" in warning for warning in picture.warnings)
