"""test.py: one pass, scores over the whole set, files that another program can score again."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

import test as evaluation
from dataset_11k import TASKS, read_rows
from utils import load_checkpoint


def evaluate(checkpoint: Path, root: Path, *flags: str, aspect: str = "dorsal_dr") -> int:
    attributes = root / "sub_dataset" / f"{aspect}.csv"
    quick = ["--num_workers", "0", "--device", "cpu"]
    return evaluation.main(
        ["--checkpoint", str(checkpoint), "--attributes_file", str(attributes), *quick, *flags]
    )


def results_of(checkpoint: Path, split: str = "val") -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}-dorsal_dr-{split}")


def test_scores_equal_scikit_learns_from_predictions_csv(
    tiny_checkpoint: Path, split_root: Path
) -> None:
    assert evaluate(tiny_checkpoint, split_root, "--batch_size", "5") == 0
    folder = results_of(tiny_checkpoint)
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    tasks = json.loads((folder / "metrics.json").read_text())["tasks"]
    for task in TASKS:
        true, predicted = table[f"{task}_true"], table[f"{task}_pred"]
        known = true.isin(load_checkpoint(tiny_checkpoint)["label_space"][task])
        assert known.all()
        assert tasks[task]["accuracy"] == pytest.approx(accuracy_score(true, predicted))
        with warnings.catch_warnings():  # classes predicted that are not in the truth
            warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
            expected = balanced_accuracy_score(true, predicted)
        assert tasks[task]["balanced_accuracy"] == pytest.approx(expected)
        assert tasks[task]["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))


def test_scores_equal_those_of_the_training(tiny_checkpoint: Path, split_root: Path) -> None:
    evaluate(tiny_checkpoint, split_root)
    tasks = json.loads((results_of(tiny_checkpoint) / "metrics.json").read_text())["tasks"]
    stored = load_checkpoint(tiny_checkpoint)["metrics"]
    for task in TASKS:
        assert tasks[task]["balanced_accuracy"] == stored[f"val_balanced_accuracy_{task}"]


def test_batch_size_changes_no_label_and_no_file_but_in_rounding(
    tiny_checkpoint: Path, split_root: Path
) -> None:
    tables, measures = [], []
    for batch_size in ("1", "7", "64"):
        evaluate(tiny_checkpoint, split_root, "--batch_size", batch_size)
        folder = results_of(tiny_checkpoint)
        tables.append(pd.read_csv(folder / "predictions.csv", dtype={"identity_true": str}))
        measures.append(json.loads((folder / "metrics.json").read_text())["tasks"])
    for other in tables[1:]:
        for task in TASKS:
            assert (other[f"{task}_pred"] == tables[0][f"{task}_pred"]).all()
            assert (other[f"{task}_prob"] - tables[0][f"{task}_prob"]).abs().max() < 1e-4
    assert measures[0] == measures[1] == measures[2]


def test_files_hold_what_other_programs_rely_on(tiny_checkpoint: Path, split_root: Path) -> None:
    evaluate(tiny_checkpoint, split_root)
    folder = results_of(tiny_checkpoint)
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = read_rows(split_root / "trainval" / "dorsal_dr" / "val.csv")
    assert metrics["protocol"] == "paper"
    assert metrics["aspect"] == "dorsal_dr"
    assert metrics["split"] == "val"
    assert metrics["backbone"] == "test_resnet"
    assert metrics["n_images"] == len(rows)
    assert metrics["selected_on_reported_split"] is True
    assert metrics["split_as_at_training"] is True
    for values in metrics["tasks"].values():
        names = ("accuracy", "balanced_accuracy", "macro_f1", "batch_mean_balanced_accuracy")
        assert all(0 <= values[name] <= 1 for name in names)

    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    columns = [f"{task}_{part}" for task in TASKS for part in ("true", "pred", "prob")]
    assert list(table.columns) == ["image_path", *columns]
    assert table["image_path"].tolist() == rows["image_path"].tolist()
    assert table["identity_true"].tolist() == rows["id"].tolist()

    arrays = np.load(folder / "predictions.npz")
    assert arrays["embedding"].shape[0] == len(rows)
    for task in TASKS:
        classes = arrays[f"{task}_classes"]
        assert arrays[f"{task}_logits"].shape == (len(rows), len(classes))
        assert classes[arrays[f"{task}_true"]].tolist() == table[f"{task}_true"].tolist()
        predicted = classes[arrays[f"{task}_logits"].argmax(axis=1)]
        assert predicted.tolist() == table[f"{task}_pred"].tolist()
        assert float(arrays[f"{task}_temperature"]) == 1.0
    for name in (*(f"confusion_{task}" for task in TASKS), "sample_grid"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.format == "PNG"


def test_it_prints_accuracies_and_three_reports(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(tiny_checkpoint, split_root)
    printed = capsys.readouterr().out
    for task in TASKS:
        assert f"{task} classification report" in printed
    assert printed.count("weighted avg") == 3
    assert "chose the epoch" in printed


def test_the_train_rows_can_be_evaluated(tiny_checkpoint: Path, split_root: Path) -> None:
    assert evaluate(tiny_checkpoint, split_root, "--split", "train") == 0
    metrics = json.loads((results_of(tiny_checkpoint, "train") / "metrics.json").read_text())
    assert metrics["selected_on_reported_split"] is False


def test_another_aspect_is_refused(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_checkpoint, split_root, aspect="palmar_pl") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "trained on dorsal_dr" in error
    assert "palmar_pl" in error


def test_other_people_are_refused(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"
    attributes.write_text(attributes.read_text().replace(",0000041,", ",0009999,"))
    assert evaluate(tiny_checkpoint, split_root) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "0009999" in error
    assert "0000041" in error
    assert not results_of(tiny_checkpoint).exists()


def test_a_changed_split_is_said_and_recorded(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = split_root / "trainval" / "dorsal_dr" / "val.csv"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:-1]))
    assert evaluate(tiny_checkpoint, split_root) == 0
    assert "is not the file that was there at the training" in capsys.readouterr().err
    metrics = json.loads((results_of(tiny_checkpoint) / "metrics.json").read_text())
    assert metrics["split_as_at_training"] is False


def test_a_photo_that_cannot_be_decoded_leaves_no_results(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = read_rows(split_root / "trainval" / "dorsal_dr" / "val.csv")["name"][2]
    (split_root / "Hands" / name).write_bytes(b"no picture")
    assert evaluate(tiny_checkpoint, split_root) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error
    assert "row 3" in error
    assert not results_of(tiny_checkpoint).exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--checkpoint"),
        (["--checkpoint", "x.pth", "--batch_size", "0"], "--batch_size"),
        (["--checkpoint", "x.pth", "--num_workers", "-1"], "--num_workers"),
        (["--checkpoint", "x.pth", "--split", "test"], "--split"),
    ],
)
def test_bad_flags_exit_with_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluation.main(flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_or_foreign_checkpoint_gets_one_line(
    tmp_path: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path / "none.pth", split_root) == 1
    foreign = tmp_path / "foreign.pth"
    torch.save({"weight": torch.zeros(2)}, foreign)
    assert evaluate(foreign, split_root) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "not found" in errors[0]
    assert "no IGAE-Net checkpoint" in errors[1]
