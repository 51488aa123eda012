"""A fourth task is one row of TASKS: it is split, trained, evaluated, drawn and compared."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROW = '    "skin_color": Task("skinColor", "skin colour", SKIN_COLORS),\n'


@pytest.fixture
def four_tasks(tmp_path: Path) -> Path:
    """A copy of the repository whose TASKS has one more row."""
    copy = tmp_path / "repository"
    ignored = shutil.ignore_patterns(".*", "demo", "checkpoints", "__pycache__", "doc_images")
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    path = copy / "dataset_11k.py"
    before, table, after = path.read_text("utf-8").partition("TASKS = {\n")
    rows, end, rest = after.partition("\n}\n")
    path.write_text(before + table + rows + "\n" + ROW + end[1:] + rest, "utf-8")
    return copy


def test_a_fourth_task_needs_one_row(four_tasks: Path, hands_root: Path, tmp_path: Path) -> None:
    def run(command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command.split()],
            cwd=four_tasks,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(f"dataset_11k_split.py --input {hands_root}")
    attributes = hands_root / "sub_dataset" / "dorsal_dr.csv"
    header = attributes.read_text().splitlines()[0]
    assert header == "image_path,id,gender,age,skinColor"
    output = tmp_path / "comparison"
    run(
        f"compare.py --backbones test_resnet --protocols paper --input {hands_root}"
        f" --output {output} --no-pretrained --image_size 32"
        " --amp off --num_workers 0 --N_epochs 1 --batch_size 8"
    )
    (folder,) = output.glob("*/checkpoint-*-best-dorsal_dr-val")
    metrics = json.loads((folder / "metrics.json").read_text())
    block = metrics["tasks"]["skin_color"]
    assert 0 <= block["balanced_accuracy"] <= 1
    assert block["intervals"]["balanced_accuracy"]["low"] is not None
    assert set(block["baselines"]) >= {"constant", "identity_lookup", "thumbnail_nearest"}
    with np.load(folder / "predictions.npz") as arrays:
        assert arrays["skin_color_classes"].tolist() == ["very fair", "fair", "medium", "dark"]
    epoch = json.loads((folder.parent / "metrics.jsonl").read_text())
    assert epoch["train_loss_skin_color"] > 0
    assert (folder / "confusion_skin_color.png").is_file()
    assert "skin colour" in (folder / "report.html").read_text("utf-8")
    with (output / "results.csv").open(newline="") as file:
        (result,) = csv.DictReader(file)
    value = float(result["skin_color_balanced_accuracy"])
    assert value == pytest.approx(block["balanced_accuracy"])
    assert "skin colour" in (output / "table.md").read_text("utf-8")
    (checkpoint,) = folder.parent.glob("*-best.pth")
    photo = next((hands_root / "Hands").iterdir())
    prediction = json.loads(run(f"predict.py --checkpoint {checkpoint} {photo}"))
    assert len(prediction["skin_color"]) == 3
    # metrics.json of the run has all that a page needs
    run(f"report.py --run_dir {folder.parent}")
    assert "skin colour" in (folder.parent / "training.html").read_text("utf-8")
