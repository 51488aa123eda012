"""figures.py: pictures from numbers alone, legible with 2 classes and with 143."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import norm

from dataset_11k import TASKS
from measures.classes import reliability
from pages import figures


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
    chosen = figures.choose_rows(table)
    assert len(set(chosen.random)) == 10
    assert chosen.mistakes == [15, 14, 13, 12, 11]
    assert figures.choose_rows(table) == chosen


def test_the_grid_of_a_few_right_rows_has_no_mistakes() -> None:
    chosen = figures.choose_rows(prediction_table(3, {}))
    assert chosen.random == [0, 1, 2]
    assert chosen.mistakes == []


@pytest.mark.parametrize("wrong", [{}, {"identity": [0, 1]}])
def test_the_grid_is_drawn(tmp_path: Path, wrong: dict[str, list[int]]) -> None:
    table = prediction_table(7, wrong)
    chosen = figures.choose_rows(table)
    photos = [Image.new("RGB", (64, 48), "white")] * (len(chosen.random) + len(chosen.mistakes))
    figures.plot_sample_grid(table, chosen, photos, path=tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        colours = {tuple(c) for c in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert ((0xD5, 0x5E, 0x00) in colours) == bool(wrong)
    assert (0x00, 0x72, 0xB2) in colours


def test_confusions_are_counted_in_the_order_of_the_names() -> None:
    true, predicted = pd.Series(["b", "a", "b", "b"]), pd.Series(["a", "a", "b", "a"])
    counts = figures.count_confusions(true, predicted, ["b", "a", "c"])
    assert counts.tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_classes", [1, 2, 6, 20, 30, 60, 143])
def test_a_confusion_matrix_is_drawn_for_any_number_of_classes(
    tmp_path: Path, n_classes: int
) -> None:
    names = [f"{i:07d}" for i in range(n_classes)]
    true = pd.Series(names * 3)
    predicted = true.copy()
    predicted.iloc[0] = names[-1]
    figures.plot_confusion(true, predicted, names, task="identity", path=tmp_path / "cm.png")
    with Image.open(tmp_path / "cm.png") as picture:
        assert picture.width >= (2000 if n_classes == 143 else 300)
        pixels = np.asarray(picture.convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255  # no text is cut off


NUMBERS = np.random.default_rng(0)
COUNTS = NUMBERS.integers(0, 5, (30, 30))
RATES = np.linspace(0, 1, 30)
CURVE = figures.Curve("a $ curve", np.arange(1, 31), RATES)
BINS = reliability(NUMBERS.integers(0, 3, 40), NUMBERS.dirichlet(np.ones(3), 40))
ROWS = [
    figures.IntervalRow("gender", np.nan, heading=True),
    figures.IntervalRow("a $ b $ (3*)", 0.5, 0.2, 0.9, {"chance": 0.5}, few=True),
]
RIGHT_ANSWERS = pd.DataFrame({"identity": [1, 2], "gender": [0, 3]}, index=["none", "all"])
DRAWN: dict[str, Callable[[], Figure]] = {
    "lines": lambda: figures.draw_lines([CURVE], labels=("x", "y"), percent=True),
    "intervals": lambda: figures.draw_intervals(ROWS, "share", percent=True),
    "few classes": lambda: figures.draw_confusion(COUNTS[:2, :2], ["a", "$b$"], "gender"),
    "many classes": lambda: figures.draw_confusion(COUNTS, [str(i) for i in range(30)], "who"),
    "det": lambda: figures.draw_det([figures.Curve("pairs", RATES, RATES[::-1])]),
    "reliability": lambda: figures.draw_reliability(BINS, BINS),
    "ages": lambda: figures.draw_ages(np.arange(20, 30), np.arange(21, 31), np.arange(10) // 2),
    "people": lambda: figures.draw_people(RIGHT_ANSWERS),
}


@pytest.mark.parametrize("name", list(DRAWN))
def test_a_picture_of_a_page_is_the_same_bytes_twice_and_narrow(name: str) -> None:
    drawn, again = DRAWN[name](), DRAWN[name]()
    assert drawn.get_figwidth() == figures.WIDTH
    svg = figures.as_svg(drawn)
    assert svg == figures.as_svg(again)
    assert b"<dc:date>" not in svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_a_raster_is_the_same_bytes_twice() -> None:
    drawn, again = DRAWN["det"](), DRAWN["det"]()
    assert figures.as_png(drawn, dpi=50) == figures.as_png(again, dpi=50)


def heights(figure: Figure, line: int) -> np.ndarray:
    return np.asarray(figure.axes[0].lines[line].get_ydata())


def test_a_curve_leaves_out_what_was_not_measured_and_marks_few_points() -> None:
    gaps = figures.Curve("val", np.arange(1, 6), np.array([np.nan, 1, np.nan, 2, np.nan]))
    dense = figures.Curve("train", np.arange(50), np.arange(50.0))
    drawn = figures.draw_lines([gaps, dense], labels=("epoch", "loss"))
    assert heights(drawn, 0).tolist() == [1, 2]
    assert [line.get_marker() for line in drawn.axes[0].lines] == ["o", "None"]
    styles = {line.get_linestyle() for line in drawn.axes[0].lines}
    assert len(styles) == 2  # told apart without colour


def test_a_det_curve_is_probit_and_stays_within_the_chart() -> None:
    fmr, fnmr = np.array([0, 0.01, 0.5, 1]), np.array([1, 0.2, 0.05, 0])
    drawn = figures.draw_det([figures.Curve("pairs", fmr, fnmr)])
    x, y = (np.asarray(values) for values in drawn.axes[0].lines[1].get_data())
    low, high = norm.ppf(figures.DET_LIMITS)
    assert x.tolist() == pytest.approx([low, norm.ppf(0.01), norm.ppf(0.5), high])
    assert y.tolist() == pytest.approx([high, norm.ppf(0.2), norm.ppf(0.05), low])


def test_few_people_are_drawn_hollow_and_headings_without_a_dot() -> None:
    rows = [
        figures.IntervalRow("heading", np.nan, heading=True),
        figures.IntervalRow("many", 0.4, 0.3, 0.5),
        figures.IntervalRow("few", 0.6, 0.1, 0.9, few=True),
    ]
    drawn = figures.draw_intervals(rows, "share", percent=True)
    dots = [line for line in drawn.axes[0].lines if line.get_marker() == "o"]
    assert [np.asarray(line.get_ydata()).tolist() for line in dots] == [[1], [2]]
    assert [line.get_markerfacecolor() for line in dots] == [figures.RIGHT, "white"]
    weights = [text.get_fontweight() for text in drawn.axes[0].get_yticklabels()]
    assert weights == ["bold", "normal", "normal"]


def test_a_long_name_leaves_room_for_the_chart() -> None:
    assert figures.shorten("short") == "short"
    assert figures.shorten("a" * 24) == "a" * 24
    assert figures.shorten("a" * 25) == "a" * 23 + "…"


def test_a_person_is_a_diamond_at_the_mean_of_the_photos() -> None:
    ages, people = np.array([20.0, 20, 40]), np.array(["a", "a", "b"])
    drawn = figures.draw_ages(ages, np.array([18.0, 24, 35]), people)
    diamonds = drawn.axes[0].lines[2]
    assert np.asarray(diamonds.get_data()).T.tolist() == [[20, 21], [40, 35]]
