"""predict.py: predictions for any photo; unreadable ones are reported, the others predicted."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import test as test_script
from dataset_11k import TASKS
from engine.checkpoint import load_checkpoint


def run(checkpoint: Path, *arguments: str | Path) -> int:
    quick = ["--num_workers", "0", "--device", "cpu"]
    return predict.main(["--checkpoint", str(checkpoint), *quick, *map(str, arguments)])


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
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [prediction["photo"] for prediction in predictions] == [str(photo) for photo in photos]
    for prediction, row in zip(predictions, expected, strict=True):
        for task in TASKS:
            first, second = prediction[task]
            assert first["class"] == row[f"{task}_pred"]
            assert first["probability"] == pytest.approx(float(row[f"{task}_prob"]), abs=1e-4)
            assert first["probability"] >= second["probability"]


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
    (folder / "notes.txt").write_text("not a picture, not looked at")
    missing = tmp_path / "missing.jpg"
    code = run(tiny_checkpoint, folder, good[1], missing, empty, "--num_workers", workers)
    captured = capsys.readouterr()
    assert code == 1
    predicted = [json.loads(line)["photo"] for line in captured.out.splitlines()]
    assert predicted == [str(folder / "a.jpg"), str(good[1])]
    errors = captured.err.splitlines()
    assert len(errors) == 3
    for part in (str(folder / "b.jpg"), str(missing), str(empty)):
        assert sum(part in error for error in errors) == 1


def test_nothing_readable_predicts_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    assert run(tiny_checkpoint, tmp_path / "x.jpg") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


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
