"""report.py: pictures from tables alone, legible with 2 classes and with 143."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import report
from dataset_11k import TASKS


def prediction_table(n_rows: int, wrong: dict[str, list[int]]) -> pd.DataFrame:
    """Return a predictions.csv in which the named rows of each task are wrong, and doubtful."""
    columns: dict[str, object] = {"image_path": [f"{i}.jpg" for i in range(n_rows)]}
    for task in TASKS:
        bad = wrong.get(task, [])
        columns[f"{task}_true"] = ["yes"] * n_rows
        columns[f"{task}_pred"] = ["no" if i in bad else "yes" for i in range(n_rows)]
        columns[f"{task}_prob"] = [0.5 + i / 100 for i in range(n_rows)]
    return pd.DataFrame(columns)


def test_the_grid_shows_random_rows_and_the_most_confident_mistakes() -> None:
    table = prediction_table(30, {"gender": [3, 9], "age": list(range(10, 16))})
    chosen = report.choose_rows(table)
    assert len(set(chosen.random)) == 10
    assert chosen.mistakes == [15, 14, 13, 12, 11]
    assert report.choose_rows(table) == chosen


def test_the_grid_of_a_few_right_rows_has_no_mistakes() -> None:
    chosen = report.choose_rows(prediction_table(3, {}))
    assert chosen.random == [0, 1, 2]
    assert chosen.mistakes == []


@pytest.mark.parametrize("wrong", [{}, {"identity": [0, 1]}])
def test_the_grid_is_drawn(tmp_path: Path, wrong: dict[str, list[int]]) -> None:
    table = prediction_table(7, wrong)
    chosen = report.choose_rows(table)
    photos = [Image.new("RGB", (64, 48), "white")] * (len(chosen.random) + len(chosen.mistakes))
    report.plot_sample_grid(table, chosen, photos, path=tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        colours = {tuple(c) for c in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert ((0xD5, 0x5E, 0x00) in colours) == bool(wrong)
    assert (0x00, 0x72, 0xB2) in colours


@pytest.mark.parametrize("n_classes", [1, 2, 6, 20, 30, 60, 143])
def test_a_confusion_matrix_is_drawn_for_any_number_of_classes(
    tmp_path: Path, n_classes: int
) -> None:
    names = [f"{i:07d}" for i in range(n_classes)]
    true = pd.Series(names * 3)
    predicted = true.copy()
    predicted.iloc[0] = names[-1]
    report.plot_confusion(true, predicted, names, task="identity", path=tmp_path / "cm.png")
    with Image.open(tmp_path / "cm.png") as picture:
        assert picture.width >= (2000 if n_classes == 143 else 300)
        pixels = np.asarray(picture.convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255  # no text is cut off


def test_the_architecture_is_drawn_by_one_command(tmp_path: Path) -> None:
    path = tmp_path / "architecture.png"
    assert report.main(["--architecture", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.width > 1000
    assert report.main(["--architecture", str(path.with_suffix(".svg"))]) == 0
    assert b"<svg" in path.with_suffix(".svg").read_bytes()


@pytest.mark.parametrize("name", [".", "network", "network.gif"])
def test_a_format_that_is_not_drawn_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        report.main(["--architecture", str(tmp_path / name)])
    assert stop.value.code == 2
    assert "give a .png or .svg or .pdf file" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert report.main(["--architecture", str(tmp_path / "file" / "x.png")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
