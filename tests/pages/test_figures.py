"""The pictures: text fits, curves are where the numbers are, styles differ without colour."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from made_up_results import LONG, NASTY
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import norm

from measures.registry import NUMBER, PERCENT
from pages import figures


def test_text_is_escaped_and_cut_to_a_width() -> None:
    assert figures.fit_text("short", 1, 9) == "short"
    assert figures.fit_text("a\n\U0001f91a", 5, 9) == r"a\n\U0001f91a"
    cut = figures.fit_text(LONG, 1, 9)
    assert cut.startswith("long-")
    assert cut.endswith("…")
    assert len(cut) < 20
    assert len(figures.fit_text("i" * 100, 1, 9)) > len(figures.fit_text("W" * 100, 1, 9))


def overlaps(figure: Figure, texts: list) -> list[tuple[str, str]]:
    """Return the pairs of texts that overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in texts]
    shown = [(text, box) for text, box in boxes if text]
    assert shown
    assert all(box.x0 >= 0 and box.y0 >= 0 for _, box in shown)
    assert all(box.x1 <= figure.bbox.x1 for _, box in shown)
    return [(a, b) for (a, one), (b, two) in combinations(shown, 2) if one.overlaps(two)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_classes", [1, 2, 6, 9, 30, 143])
def test_no_names_of_a_confusion_matrix_overlap(n_classes: int) -> None:
    names = [f"{LONG}{i}" for i in range(n_classes - 1)] + [NASTY]
    counts = np.random.default_rng(0).integers(0, 3, (n_classes, n_classes))
    figure = figures.draw_confusion(counts, names, "identity")
    axes = figure.axes[0]
    for axis, labels in enumerate((axes.get_xticklabels(), axes.get_yticklabels())):
        inside = [label for label in labels if -1 <= label.get_position()[axis] <= n_classes]
        assert overlaps(figure, inside) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
def test_no_captions_of_photos_overlap(size: tuple[int, int]) -> None:
    lines = [(f"✗ identity: {LONG}", False), (f"true: {NASTY}", False), ("✓ gender: male", True)]
    panel = figures.PhotoPanel(Image.new("RGB", size, "white"), lines)
    panels = [panel] * figures.PHOTO_COLUMNS
    figure = figures.draw_photos({"Random photos": panels, "None": [], "Errors": panels})
    texts = [text for axes in figure.axes for text in axes.texts]
    assert len(texts) == 2 * 3 * figures.PHOTO_COLUMNS
    assert overlaps(figure, [*texts, *figure.texts]) == []


def test_a_curve_leaves_out_gaps_and_marks_few_points() -> None:
    gaps = figures.Curve("val", np.arange(1, 6), np.array([np.nan, 1, np.nan, 2, np.nan]))
    dense = figures.Curve("train", np.arange(50), np.arange(50.0))
    figure = figures.draw_lines([gaps, dense], labels=("epoch", "loss"), unit=NUMBER)
    lines = figure.axes[0].lines
    assert np.asarray(lines[0].get_ydata()).tolist() == [1, 2]
    assert [line.get_marker() for line in lines] == ["o", "None"]
    assert len({line.get_linestyle() for line in lines}) == 2


def test_a_det_curve_is_probit_and_stays_within_the_chart() -> None:
    fmr, fnmr = np.array([0, 0.01, 0.5, 1]), np.array([1, 0.2, 0.05, 0])
    band = figures.Band(np.array([0.1, 0.2, 0.3]), np.array([0, 0.01, np.nan]), np.full(3, 0.9))
    figure = figures.draw_det([figures.Curve("pairs", fmr, fnmr, band)])
    x, y = (np.asarray(values) for values in figure.axes[0].lines[1].get_data())
    low, high = norm.ppf(figures.DET_LIMITS)
    assert x.tolist() == pytest.approx([low, norm.ppf(0.01), norm.ppf(0.5), high])
    assert y.tolist() == pytest.approx([high, norm.ppf(0.2), norm.ppf(0.05), low])
    (area,) = figure.axes[0].collections
    ends = area.get_paths()[0].get_extents()
    assert (ends.x0, ends.x1) == pytest.approx(norm.ppf([0.1, 0.2]))  # 0.3 has no lower end
    assert (ends.y0, ends.y1) == pytest.approx((low, high))


def test_few_people_are_hollow_and_headings_have_no_dot() -> None:
    rows = [
        figures.IntervalRow("heading", heading=True),
        figures.IntervalRow("many", 0.4, 0.3, 0.5, {"chance": 0.5}),
        figures.IntervalRow(LONG, 0.6, 0.1, 0.9, few_people=True),
    ]
    figure = figures.draw_intervals(rows, "share", PERCENT)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() for line in dots[1:]] == [figures.BLUE, "white"]
    assert np.isnan(np.asarray(dots[0].get_xdata(), dtype=float)).all()
    weights = [text.get_fontweight() for text in figure.axes[0].get_yticklabels()]
    assert weights == ["bold", "normal", "normal"]
    assert figure.axes[0].get_position().width > 0.4


def test_a_person_is_a_diamond_at_the_mean_of_the_photos() -> None:
    ages, people = np.array([20.0, 20, 40]), np.array(["a", "a", "b"])
    figure = figures.draw_expected_ages(ages, np.array([18.0, 24, 35]), people)
    diamonds = figure.axes[0].lines[2]
    assert np.asarray(diamonds.get_data()).T.tolist() == [[20, 21], [40, 35]]
