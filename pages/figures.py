"""Every picture of a report, drawn from arrays: one function for each kind.

`draw_*` return a figure that is legible on a phone; reports embed it and `save_figure` writes it to
a file. Colour is never the only distinction: lines also differ in dashes, points in shape.
"""

from __future__ import annotations

import io
import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from measures.classes import Reliability
from measures.registry import PERCENT, Unit
from utils import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.8  # inches: 460 CSS pixels, or 360 on a phone

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"  # Okabe and Ito; Tol

LINES = ((BLUE, "-", "o"), (VERMILION, "--", "s"), (GREEN, ":", "^"), (PURPLE, "-.", "D"))

REFERENCE: Any = {"color": "#777777", "linewidth": 1}  # lines of equality

BAND: Any = {"alpha": 0.18, "linewidth": 0}  # of a confidence interval

MARKERS = ("|", "x", "^", "D", "v", "s")  # of baselines

FEW_POINTS = 20  # up to here a curve's points are marked

CELL_CLASSES = 8  # up to here a cell of a confusion matrix has room for its count

NAMED_CLASSES = 30  # up to here the axes have room for the names

MAX_TEXT = 200  # characters; longer text is cut before its width is measured

PHOTO_COLUMNS, PHOTO_INCHES, CAPTION_SIZE = 6, 1.9, 7.5

DET_LIMITS = (5e-4, 0.6)  # of both error rates; points beyond are drawn on the edge

DET_TICKS = (0.001, 0.01, 0.05, 0.2, 0.4)


class Band(NamedTuple):
    """The area between two lines of a chart: (K,) x, lower and upper y."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Curve(NamedTuple):
    """A line of a chart: its name, (K,) x and (K,) y; points with a NaN y are left out.

    band: of its confidence interval.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    band: Band | None = None


class IntervalRow(NamedTuple):
    """A row of an interval chart: a dot, the ends of its interval, baselines by name.

    few_people: the dot is hollow. heading: a heading of the rows below it, without a value.
    """

    name: str
    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    baselines: Mapping[str, float] = {}
    few_people: bool = False
    heading: bool = False


class PhotoPanel(NamedTuple):
    """A photo with the lines of its caption, and whether each describes a correct prediction."""

    photo: Image.Image
    lines: Sequence[tuple[str, bool]]


# ----------------------------------------------------------------------------- text and files


def escape_glyphs(text: str) -> str:
    """Return text with control characters, and characters that the font lacks, escaped."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(
        c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text
    )


def fit_text(text: str, inches: float, size: float, weight: str = "normal") -> str:
    """Return text that fits a width: escaped, and if necessary cut with an ellipsis.

    Args:
        text: of a user, such as an id or a file name.
        inches: available width.
        size: of the font, in points.
        weight: of the font.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)

    def width(shown: str) -> float:
        return text_to_path.get_text_width_height_descent(shown, font, ismath=False)[0] / 72

    whole = escape_glyphs(text[:MAX_TEXT])
    if width(whole) <= inches:
        return whole
    n_kept = bisect_right(range(len(whole)), inches, key=lambda n: width(f"{whole[:n]}…")) - 1
    return f"{whole[: max(n_kept, 0)]}…"


def save_figure(figure: Figure, path: Path, dpi: int = 200) -> None:
    """Write a figure atomically, in the format of the path's suffix."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def encode_svg(figure: Figure) -> bytes:
    """Return the figure as SVG, the same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "igae-net"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def encode_png(figure: Figure, dpi: int = 200) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(height: float) -> tuple[Figure, Axes]:
    """Return a figure of `WIDTH` and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Give axes a light grid and no frame on the top and right."""
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(figure: Figure) -> None:
    """Put the legend below the axes."""
    names = [name for axes in figure.axes for name in axes.get_legend_handles_labels()[1]]
    columns = 2 if max(map(len, names)) <= 24 else 1
    figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def format_ticks(axis: Any, unit: Unit) -> None:
    """Print an axis' ticks in a unit; fractions as percent."""
    suffix = "%" if unit.is_percent else ""
    axis.set_major_formatter(lambda value, _: f"{unit.scale * value:.6g}{suffix}")


# ----------------------------------------------------------------------------- general charts


def draw_lines(
    curves: Sequence[Curve],
    *,
    labels: tuple[str, str],
    unit: Unit,
    vertical: Mapping[str, float] | None = None,
    **limits: Any,
) -> Figure:
    """Draw curves; those with few points get markers.

    Args:
        curves: in the order of the legend, those with a value; styles repeat after the fourth.
        labels: of the horizontal and the vertical axis.
        unit: of the vertical axis.
        vertical: reference lines by name.
        limits: of matplotlib's `Axes.set`.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(3.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.locator_params(
        axis="y", steps=(1, 2, 5, 10)
    )  # no steps of 2.5, whose labels would be rounded
    format_ticks(axes.yaxis, unit)
    for curve, (color, dashes, marker) in zip(curves, itertools.cycle(LINES), strict=False):
        known = ~np.isnan(curve.y)
        if not known.any():
            continue
        axes.plot(
            curve.x[known],
            curve.y[known],
            color=color,
            linestyle=dashes,
            marker=marker if known.sum() <= FEW_POINTS else None,
            markersize=4,
            label=curve.name,
        )
        if curve.band is not None:
            axes.fill_between(*curve.band, color=color, **BAND)
    for name, place in (vertical or {}).items():
        axes.axvline(place, color="black", linewidth=1, linestyle=(0, (1, 2)), label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1], **limits)
    axes.minorticks_off()
    add_legend(figure)
    return figure


def draw_intervals(rows: Sequence[IntervalRow], label: str, unit: Unit) -> Figure:
    """Draw a dot with its confidence interval in each row, baselines as marks.

    Args:
        rows: from top to bottom.
        label: of the horizontal axis.
        unit: of the values.
    """
    figure, axes = new_figure(0.9 + 0.3 * len(rows))
    names = list(dict.fromkeys(name for row in rows for name in row.baselines))
    marks = dict(zip(names, itertools.cycle(MARKERS), strict=False))
    for place, row in enumerate(rows):
        axes.plot([row.low, row.high], [place, place], color=BLUE, linewidth=2)
        fill = "white" if row.few_people else BLUE
        axes.plot(row.value, place, "o", color=BLUE, markerfacecolor=fill, markersize=6)
        for name, value in row.baselines.items():
            axes.plot(value, place, marks[name], color=VERMILION, markersize=8, markeredgewidth=1.6)
    for name in names:
        axes.plot([], [], marks[name], color=VERMILION, label=name, markeredgewidth=1.6)
    weights = ["bold" if row.heading else "normal" for row in rows]
    texts = [
        fit_text(row.name, 0.48 * WIDTH, 9, weight)
        for row, weight in zip(rows, weights, strict=True)
    ]
    axes.set_yticks(range(len(rows)), texts, parse_math=False, fontsize=9)
    for text, weight in zip(axes.get_yticklabels(), weights, strict=True):
        text.set_fontweight(weight)
    axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    format_ticks(axes.xaxis, unit)
    if unit.is_percent:
        left, right = axes.get_xlim()
        axes.set_xlim(max(left, -0.03), min(right, 1.03))
    if names:
        add_legend(figure)
    return figure


# ----------------------------------------------------------------------------- classes


def draw_confusion(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix.

    Up to `CELL_CLASSES` classes: count and fraction of the true class in each cell. More: a dot for
    each class with correct predictions and a cross for each confusion, sized by photos.

    Args:
        counts: (C, C) photos by true (row) and predicted class (column).
        names: (C,) of the classes.
        title: of the task.
    """
    figure, axes = new_figure(WIDTH - 0.3)
    numbered = "" if len(names) <= NAMED_CLASSES else " (class number)"
    axes.set(xlabel=f"predicted {title}{numbered}", ylabel=f"true {title}{numbered}")
    axes.set_aspect("equal")
    if len(names) <= CELL_CLASSES:
        _fill_cells(axes, counts)
        _name_classes(axes, names, size=9, inches=min(3.2 / len(names), 0.9), rotation=0)
        return figure
    for correct, color, marker in ((True, BLUE, "."), (False, VERMILION, "x")):
        true, predicted = np.nonzero(counts * (np.eye(len(counts), dtype=bool) == correct))
        sizes = 12 + 6 * counts[true, predicted]
        name = "correct" if correct else "confused"
        axes.scatter(predicted, true, sizes, color=color, marker=marker, linewidth=1.2, label=name)
    axes.set(xlim=(-1, len(names)), ylim=(len(names), -1))
    if len(names) <= NAMED_CLASSES:
        _name_classes(axes, names, size=5.5, inches=0.5, rotation=90)
    add_legend(figure)
    return figure


def _fill_cells(axes: Axes, counts: np.ndarray) -> None:
    """Colour the cells by the fraction of the true class; print count and fraction where not 0."""
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.grid(visible=False)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for (row, column), count in np.ndenumerate(counts):
        fraction = fractions[row, column]
        color = "white" if fraction > 0.5 else "black"
        text = f"{count}\n{PERCENT.scale * fraction:.0f}%" if count else ""
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=color)


def _name_classes(
    axes: Axes, names: Sequence[str], *, size: float, inches: float, rotation: int
) -> None:
    """Label both axes with class names, cut to a width."""
    texts = [fit_text(name, inches, size) for name in names]
    style: dict[str, Any] = {"fontsize": size, "parse_math": False}
    axes.set_xticks(range(len(names)), texts, rotation=rotation, **style)
    axes.set_yticks(range(len(names)), texts, **style)


def draw_reliability(before: Reliability, after: Reliability) -> Figure:
    """Draw accuracy against confidence before and after temperature scaling; photos per bin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], **REFERENCE, label="perfect calibration")
    edges = np.linspace(0, 1, len(before.photos) + 1)
    named = (("before temperature", before), ("after temperature", after))
    for (name, bins), (color, dashes, marker) in zip(named, reversed(LINES[:2]), strict=True):
        filled = bins.photos > 0
        line: dict[str, Any] = {"color": color, "linestyle": dashes, "label": name}
        above.plot(
            bins.confidence[filled], bins.accuracy[filled], marker=marker, clip_on=False, **line
        )
        below.stairs(bins.photos, edges, color=color, linestyle=dashes)
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    format_ticks(above.yaxis, PERCENT)
    format_ticks(below.xaxis, PERCENT)
    add_legend(figure)
    below.set(xlabel="confidence (probability of the predicted class)", ylabel="photos")
    for axes in (above, below):
        style_axes(axes)
    return figure


def draw_expected_ages(ages: np.ndarray, expected: np.ndarray, people: np.ndarray) -> Figure:
    """Draw expected against true age in years: a dot per photo, a diamond per person's mean."""
    figure, axes = new_figure(WIDTH)
    both = np.concatenate([ages, expected])
    ends = np.array([np.nanmin(both) - 1, np.nanmax(both) + 1])
    axes.plot(ends, ends, **REFERENCE, label="expected = true")
    axes.plot(ages, expected, ".", color=VERMILION, alpha=0.35, markersize=4, label="photo")
    means = pd.DataFrame({"true": ages, "expected": expected}).groupby(people).mean()
    style: dict[str, Any] = {"color": BLUE, "markerfacecolor": "none", "label": "mean of a person"}
    axes.plot(means["true"], means["expected"], "D", markersize=5, **style)
    axes.set(xlabel="true age in years", ylabel="expected age in years", aspect="equal")
    axes.set(xlim=ends, ylim=ends)
    add_legend(figure)
    return figure


def draw_people_bars(counts: pd.DataFrame) -> Figure:
    """Draw how many people (values) have which fraction of photos correct (rows), for each task."""
    figure, axes = new_figure(3.5)
    places, width = np.arange(len(counts)), 0.8 / counts.shape[1]
    hatches = ("", "//", "..", "xx")
    for i, task in enumerate(counts):
        bars = axes.bar(
            places + (i - (counts.shape[1] - 1) / 2) * width,
            counts[task],
            width,
            color=LINES[i % len(LINES)][0],
            edgecolor="white",
            hatch=hatches[i % len(hatches)],
            label=str(task),
        )
        axes.bar_label(bars, fontsize=8)
    axes.set_xticks(places, [str(name) for name in counts.index])
    axes.set(xlabel="fraction of the person's photos that are correct", ylabel="people")
    add_legend(figure)
    return figure


# ----------------------------------------------------------------------------- pairs of photos


def draw_det(curves: Sequence[Curve]) -> Figure:
    """Draw false non-match (y) against false match rates (x), both axes probit."""
    from scipy.stats import norm  # takes half a second to load

    figure, axes = new_figure(WIDTH)
    low, high = norm.ppf(DET_LIMITS)
    axes.plot([low, high], [low, high], **REFERENCE, label="equal error rates")
    for curve, (color, dashes, _) in zip(curves, itertools.cycle(LINES), strict=False):
        places = np.clip(norm.ppf(np.stack([curve.x, curve.y], axis=1)), low, high)
        _, first = np.unique(places.round(2), axis=0, return_index=True)  # visibly different points
        kept = places[np.sort(first)]
        axes.plot(*kept.T, color=color, linestyle=dashes, label=curve.name, clip_on=False)
        if curve.band is not None:
            axes.fill_between(*np.clip(norm.ppf(curve.band), low, high), color=color, **BAND)
    ticks = norm.ppf(DET_TICKS)
    names = [f"{PERCENT.scale * tick:g}%" for tick in DET_TICKS]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set(xlabel="false match rate", ylabel="false non-match rate")
    add_legend(figure)
    return figure


def draw_ratio_calibration(curves: Sequence[Curve]) -> Figure:
    """Draw PAV-transformed (y) against reported (x) log10 likelihood ratios; infinite: on edges."""
    figure, axes = new_figure(WIDTH)
    values = np.concatenate([side for curve in curves for side in (curve.x, curve.y)])
    finite = values[np.isfinite(values)]
    low, high = finite.min() - 0.2, finite.max() + 0.2
    axes.plot([low, high], [low, high], **REFERENCE, label="perfect calibration")
    for curve, (color, dashes, _) in zip(curves, itertools.cycle(LINES), strict=False):
        heights = np.clip(curve.y, low, high)
        # the ends of each level: between them a line is straight
        kept = np.diff(heights, prepend=np.nan) != 0
        kept |= np.diff(heights, append=np.nan) != 0
        axes.plot(
            curve.x[kept],
            heights[kept],
            color=color,
            linestyle=dashes,
            label=curve.name,
            clip_on=False,
        )
    for draw in (axes.axvline, axes.axhline):
        draw(0, color="black", linewidth=1, linestyle=(0, (1, 2)))
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set(xlabel="log10 of the likelihood ratio", ylabel="log10 after PAV")
    add_legend(figure)
    return figure


# ----------------------------------------------------------------------------- photos


def draw_photos(groups: Mapping[str, Sequence[PhotoPanel]]) -> Figure:
    """Draw photos with captions, a row for each heading; empty groups are left out.

    Args:
        groups: heading -> at most `PHOTO_COLUMNS` photos.
    """
    from matplotlib.figure import Figure

    rows = {heading: panels for heading, panels in groups.items() if panels}
    photo_height, step = 0.75 * PHOTO_INCHES, PHOTO_INCHES + 0.15
    heights = [
        photo_height + 0.45 + 0.15 * max(len(panel.lines) for panel in panels)
        for panels in rows.values()
    ]
    width, total = PHOTO_COLUMNS * step, 0.35 + max(sum(heights), 1)
    figure, top = Figure(figsize=(width, total)), total - 0.35
    for (heading, panels), height in zip(rows.items(), heights, strict=True):
        figure.text(0.1 / width, (top + 0.08) / total, heading, fontsize=11, fontweight="bold")
        for j, panel in enumerate(panels):
            left, bottom = 0.1 + j * step, top - photo_height
            box = left / width, bottom / total, PHOTO_INCHES / width, photo_height / total
            _show_photo(figure.add_axes(box), panel)
        top -= height
    return figure


def _show_photo(axes: Axes, panel: PhotoPanel) -> None:
    """Draw one photo; an error has bold text and a thick dashed frame."""
    axes.imshow(panel.photo, aspect="equal")
    axes.set(xticks=[], yticks=[], anchor="SW")
    for i, (text, correct) in enumerate(panel.lines):
        weight = "normal" if correct else "bold"
        axes.annotate(
            fit_text(text, PHOTO_INCHES, CAPTION_SIZE, weight),
            (0, 0),
            (0, -3 - 10.5 * i),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=CAPTION_SIZE,
            fontweight=weight,
            parse_math=False,
            color=BLUE if correct else VERMILION,
        )
    all_correct = all(correct for _, correct in panel.lines)
    for spine in axes.spines.values():
        spine.set(
            color=BLUE if all_correct else VERMILION,
            linewidth=1.5 if all_correct else 3,
            linestyle="solid" if all_correct else "dashed",
        )
