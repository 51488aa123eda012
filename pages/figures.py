"""Every picture of a run, drawn from numbers: no model, no data set.

`plot_*` write a file. `draw_*` return a figure for a page, narrow enough that its text stays
legible on a telephone; `as_svg` and `as_png` turn it into the bytes that a page embeds, the same
ones for the same numbers. Colour is never the only sign: lines differ in dashes, points in shape.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from dataset_11k import TASKS
from measures.classes import Reliability
from utils import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FEW_CLASSES = 12  # up to here every cell of a confusion matrix has room for its count

RIGHT, WRONG = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion

GRID_COLUMNS = 5


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure in the format of the path's suffix, all of it or nothing."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


# ----------------------------------------------------------------------------- confusion


def count_confusions(true: pd.Series, predicted: pd.Series, names: Sequence[str]) -> np.ndarray:
    """Return (n_names, n_names) counts of photos: rows true, columns predicted classes.

    scikit-learn's confusion_matrix warns of a single name, even where no other is asked for.

    Args:
        true: (N,) class names; the index does not count.
        predicted: (N,) class names, likewise.
        names: in the order of the counts.
    """
    counts = pd.crosstab(np.asarray(true), np.asarray(predicted))
    return counts.reindex(index=list(names), columns=list(names), fill_value=0).to_numpy()


def plot_confusion(
    true: pd.Series, predicted: pd.Series, names: Sequence[str], *, task: str, path: Path
) -> None:
    """Draw one task's confusion matrix, each row normalised to the class's photos.

    Few classes: counts and shares in the cells. Many: the cells alone, with the most frequent
    confusions listed beside them.

    Args:
        true: (N,) class names.
        predicted: (N,) class names.
        names: all classes in order; those without a photo in `true` or `predicted` are left out.
        task: for the title.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    seen = set(true) | set(predicted)
    shown = [name for name in names if name in seen]
    counts = count_confusions(true, predicted, shown)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(shown) <= FEW_CLASSES
    side = 2.6 + 0.75 * len(shown) if few else max(8.0, 2.5 + 0.105 * len(shown))
    figure = Figure(figsize=(side + (0.8 if few else 3.6), side), layout="compressed")
    if few:
        axes = figure.subplots()
        annotate_cells(axes, counts, shares)
    else:
        axes, beside = figure.subplots(1, 2, width_ratios=(side, 2.6))
        list_confusions(beside, counts, shown)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    size = 10 if few else 5
    plain: dict[str, Any] = {"fontsize": size, "parse_math": False}  # an id may hold a $
    axes.set_xticks(range(len(shown)), shown, rotation=0 if few else 90, **plain)
    axes.set_yticks(range(len(shown)), shown, **plain)
    axes.set_xlabel(f"predicted {task}")
    axes.set_ylabel(f"true {task}")
    right = int(np.trace(counts))
    title = f"{task}: {right} of {len(true)} photos right"
    axes.set_title(f"{title}\n{len(shown)} of {len(names)} classes occur", loc="left")
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class's photos")
    save_figure(figure, path)


def annotate_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    """Write count and share into every cell that is not empty."""
    for (row, column), count in np.ndenumerate(counts):
        if count:
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{count}\n{share:.0%}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if share > 0.5 else "black",
            )


def list_confusions(axes: Axes, counts: np.ndarray, names: Sequence[str], most: int = 25) -> None:
    """List the most frequent confusions: true, predicted, count of the true class's photos."""
    axes.axis("off")
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(place, wrong.shape) for place in order if wrong.flat[place]]
    totals = counts.sum(axis=1)
    lines = [f"{names[i]} > {names[j]}  {counts[i, j]} of {totals[i]}" for i, j in pairs]
    heading = "most frequent confusions\n(true > predicted)\n\n" if lines else "no confusions"
    axes.text(
        0,
        1,
        heading + "\n".join(lines),
        va="top",
        fontsize=10,
        family="monospace",
        parse_math=False,
    )


# ----------------------------------------------------------------------------- photos


class ChosenRows(NamedTuple):
    """Rows of predictions.csv that the grid shows."""

    random: list[int]
    mistakes: list[int]  # most confident first


def choose_rows(table: pd.DataFrame, tasks: Sequence[str] = tuple(TASKS), seed: int = 0) -> ChosenRows:
    """Choose two grid rows of photos at random, and one of the most confident mistakes.

    Args:
        table: predictions.csv.
        tasks: that were asked; of strangers, identity is not.
        seed: of the random choice.
    """
    n_random = min(2 * GRID_COLUMNS, len(table))
    random = np.random.default_rng(seed).choice(len(table), n_random, replace=False)
    wrong = np.stack([table[f"{t}_true"] != table[f"{t}_pred"] for t in tasks], axis=1)
    probability = np.stack([table[f"{t}_prob"] for t in tasks], axis=1)
    confidence = np.where(wrong, probability, 0).max(axis=1)
    order = np.argsort(-confidence, kind="stable")[:GRID_COLUMNS]
    return ChosenRows(sorted(random.tolist()), [int(i) for i in order if confidence[i] > 0])


def plot_sample_grid(
    table: pd.DataFrame,
    chosen: ChosenRows,
    photos: Sequence[Image.Image],
    *,
    path: Path,
    tasks: Sequence[str] = tuple(TASKS),
) -> None:
    """Draw photos with true and predicted classes.

    Args:
        table: predictions.csv.
        chosen: its rows to show.
        photos: their pictures, random ones first.
        path: PNG to write.
        tasks: as in `choose_rows`.
    """
    from matplotlib.figure import Figure

    rows = [*chosen.random, *chosen.mistakes]
    n_random_lines = -(-len(chosen.random) // GRID_COLUMNS)
    n_lines = n_random_lines + bool(chosen.mistakes)
    figure = Figure(figsize=(2.5 * GRID_COLUMNS, 2.6 * n_lines))
    space = {"left": 0.01, "right": 0.99, "top": 1 - 0.1 / n_lines, "bottom": 0.28 / n_lines}
    axes = figure.subplots(
        n_lines, GRID_COLUMNS, squeeze=False, gridspec_kw={**space, "wspace": 0.08, "hspace": 0.45}
    )
    for panel in axes.flat:
        panel.axis("off")
    places = [divmod(i, GRID_COLUMNS) for i in range(len(chosen.random))]
    places += [(n_random_lines, i) for i in range(len(chosen.mistakes))]
    for place, row, photo in zip(places, rows, photos, strict=True):
        show_photo(axes[place], table.iloc[row], photo, tasks)
    axes[0, 0].set_title("chosen at random", loc="left", fontsize=11, fontweight="bold")
    if chosen.mistakes:
        axes[n_random_lines, 0].set_title(
            "most confident mistakes", loc="left", fontsize=11, fontweight="bold"
        )
    save_figure(figure, path, dpi=100)


def show_photo(axes: Axes, row: pd.Series, photo: Image.Image, tasks: Sequence[str]) -> None:
    """Draw one photo; a mistake has a cross, a thick dashed frame and both classes named."""
    axes.axis("on")
    axes.imshow(photo)
    axes.set_xticks([])
    axes.set_yticks([])
    lines: list[tuple[str, bool]] = []
    for task in tasks:
        right = row[f"{task}_true"] == row[f"{task}_pred"]
        said = f"{row[f'{task}_pred']} ({row[f'{task}_prob']:.0%})"
        text = f"✓ {task} {said}" if right else f"✗ {task} {said}, is {row[f'{task}_true']}"
        lines.append((text, right))
    for i, (text, right) in enumerate(lines):
        axes.text(
            0,
            -0.05 - 0.09 * i,
            text,
            transform=axes.transAxes,
            va="top",
            fontsize=7.5,
            parse_math=False,
            color=RIGHT if right else WRONG,
            fontweight="normal" if right else "bold",
        )
    all_right = all(right for _, right in lines)
    for spine in axes.spines.values():
        spine.set(
            color=RIGHT if all_right else WRONG,
            linewidth=1.5 if all_right else 3,
            linestyle="solid" if all_right else "dashed",
        )


# ----------------------------------------------------------------------------- architecture


class Box(NamedTuple):
    """A box of the architecture's picture, in its units."""

    text: str
    x: float
    y: float
    width: float
    height: float
    color: str


ARCHITECTURE = (
    Box("hand photo\n3 x 224 x 224", 0.0, 1.2, 1.5, 1.2, "#EEEEEE"),
    Box("backbone (timm)\nImageNet weights\nlearning rate x 0.1", 2.1, 0.9, 2.1, 1.8, "#CFE3F2"),
    Box("embedding\npooled feature\nD numbers", 4.8, 1.2, 1.6, 1.2, "#D9EFE3"),
    Box("identity head\nlinear, one class a person", 7.1, 2.5, 2.6, 0.9, "#FBE3CC"),
    Box("gender head\nlinear, 2 classes", 7.1, 1.35, 2.6, 0.9, "#FBE3CC"),
    Box("age head\nlinear, 6 groups", 7.1, 0.2, 2.6, 0.9, "#FBE3CC"),
    Box("sum of three\ncross-entropies\n(smoothing 0.1)", 10.4, 1.1, 1.9, 1.4, "#EADCF0"),
)

ARROWS = ((0, 1), (1, 2), (2, 3), (2, 4), (2, 5), (3, 6), (4, 6), (5, 6))  # places in ARCHITECTURE


def plot_architecture(path: Path) -> None:
    """Draw the network: a photo, a backbone, an embedding, three heads, one loss."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(12.4, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.15, 12.45), ylim=(0, 3.6), aspect="equal")
    axes.axis("off")
    for box in ARCHITECTURE:
        shape = FancyBboxPatch(
            (box.x, box.y),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=box.color,
            edgecolor="#444444",
        )
        axes.add_patch(shape)
        axes.text(
            box.x + box.width / 2,
            box.y + box.height / 2,
            box.text,
            ha="center",
            va="center",
            fontsize=11,
        )
    for start, end in ((ARCHITECTURE[i], ARCHITECTURE[j]) for i, j in ARROWS):
        axes.annotate(
            "",
            (end.x, end.y + end.height / 2),
            (start.x + start.width, start.y + start.height / 2),
            arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.4},
        )
    save_figure(figure, path, dpi=100)


# ----------------------------------------------------------------------------- for a page

WIDTH = 4.8  # inches of a picture on a page: 460 pixels, or 360 on a telephone

BLACK, GREEN, PURPLE = "#000000", "#009E73", "#AA4499"

LINES = ((RIGHT, "-", "o"), (WRONG, "--", "s"), (GREEN, ":", "^"), (PURPLE, "-.", "D"))

PAGE_CLASSES = 8  # up to here a cell of a confusion matrix has room for its count at `WIDTH`

LONGEST_NAME = 24  # letters; two such names fit side by side

FEW_POINTS = 20  # up to here a curve's points are marked

MARKS = ("|", "x", "^", "D")  # of controls

DET_LIMITS = (5e-4, 0.6)  # of both error rates; what lies beyond is drawn on the edge

DET_TICKS = (0.001, 0.01, 0.05, 0.2, 0.4)


class Curve(NamedTuple):
    """A line of a chart: its name, (K,) places and (K,) heights; NaN leaves a gap."""

    name: str
    x: np.ndarray
    y: np.ndarray


class IntervalRow(NamedTuple):
    """A line of an interval chart: a dot, the ends of its interval, controls by name.

    `few`: too few people, drawn hollow. `heading`: of the lines below it, without a value.
    """

    name: str
    value: float
    low: float = np.nan
    high: float = np.nan
    controls: Mapping[str, float] = {}
    few: bool = False
    heading: bool = False


def as_svg(figure: Figure) -> bytes:
    """Return the figure as SVG, the same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "igae-net"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def as_png(figure: Figure, dpi: int = 200) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def as_percent(value: float, _: object = None) -> str:
    """Return a tick's share as percent."""
    return f"{round(100 * value, 1):g}%"


def page_figure(height: float) -> tuple[Figure, Axes]:
    """Return a figure of `WIDTH` and its axes, with a light grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend_below(figure: Figure) -> None:
    """Name what is drawn below the axes, where it hides nothing."""
    names = [name for axes in figure.axes for name in axes.get_legend_handles_labels()[1]]
    columns = 2 if max(map(len, names)) <= LONGEST_NAME else 1
    figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def shorten(text: str, most: int = LONGEST_NAME) -> str:
    """Return the start of a name that is too long for a chart; tables have all of it."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def draw_lines(
    curves: Sequence[Curve],
    *,
    labels: tuple[str, str],
    percent: bool = False,
    upright: Mapping[str, float] | None = None,
    **limits: Any,
) -> Figure:
    """Draw curves over one axis; few points get markers.

    Args:
        curves: at most four.
        labels: of the horizontal and the vertical axis.
        percent: heights are shares, shown as percent.
        upright: vertical lines by name.
        limits: of matplotlib's `Axes.set`.
    """
    figure, axes = page_figure(3.7)
    if percent:
        axes.locator_params(axis="y", steps=(1, 2, 5, 10))  # no quarters, which would be rounded
        axes.yaxis.set_major_formatter(as_percent)
    for curve, (color, dashes, marker) in zip(curves, LINES, strict=False):
        there = ~np.isnan(curve.y)
        axes.plot(
            curve.x[there],
            curve.y[there],
            color=color,
            linestyle=dashes,
            marker=marker if there.sum() <= FEW_POINTS else None,
            markersize=4,
            label=curve.name,
        )
    for name, place in (upright or {}).items():
        axes.axvline(place, color=BLACK, linewidth=1, linestyle=(0, (1, 2)), label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1], **limits)
    legend_below(figure)
    return figure


def draw_intervals(rows: Sequence[IntervalRow], label: str, *, percent: bool) -> Figure:
    """Draw a dot with its interval per line, controls as marks beside it.

    Args:
        rows: from top to bottom.
        label: of the horizontal axis.
        percent: values are shares, shown as percent.
    """
    figure, axes = page_figure(0.9 + 0.3 * len(rows))
    names = list(dict.fromkeys(name for row in rows for name in row.controls))
    marks = dict(zip(names, MARKS, strict=False))
    for place, row in enumerate(rows):
        if np.isnan(row.value):
            continue
        axes.plot([row.low, row.high], [place, place], color=RIGHT, linewidth=2)
        fill = "white" if row.few else RIGHT
        axes.plot(row.value, place, "o", color=RIGHT, markerfacecolor=fill, markersize=6)
        for name, value in row.controls.items():
            axes.plot(value, place, marks[name], color=WRONG, markersize=8, markeredgewidth=1.6)
    for name in names:
        axes.plot([], [], marks[name], color=WRONG, label=name, markeredgewidth=1.6)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], parse_math=False)
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if row.heading else "normal")
    axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    if percent:
        axes.xaxis.set_major_formatter(as_percent)
        left, right = axes.get_xlim()
        axes.set_xlim(max(left, -0.03), min(right, 1.03))
    if names:
        legend_below(figure)
    return figure


def draw_confusion(counts: np.ndarray, names: Sequence[str], task: str) -> Figure:
    """Draw a confusion matrix at the width of a page.

    Few classes: counts and shares in the cells. Many: a dot per class that was answered, and a
    cross per confusion, the larger the more photos.

    Args:
        counts: (C, C) photos by true and predicted class.
        names: (C,) of the classes.
        task: for the axes.
    """
    few = len(names) <= PAGE_CLASSES
    figure, axes = page_figure(WIDTH - 0.4)
    place = "" if few else " (place in the list)"
    axes.set(xlabel=f"predicted {task}{place}", ylabel=f"true {task}{place}", aspect="equal")
    if few:
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.grid(visible=False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        annotate_cells(axes, counts, shares)
        short = [shorten(name, 12) for name in names]
        axes.set_xticks(range(len(names)), short, parse_math=False)
        axes.set_yticks(range(len(names)), short, parse_math=False)
        return figure
    for right, color, marker in ((True, RIGHT, "."), (False, WRONG, "x")):
        true, predicted = np.nonzero(counts * (np.eye(len(counts), dtype=bool) == right))
        sizes = 12 + 6 * counts[true, predicted]
        label = "right" if right else "confused"
        axes.scatter(predicted, true, sizes, color=color, marker=marker, linewidth=1.2, label=label)
    axes.set(xlim=(-1, len(names)), ylim=(len(names), -1))
    legend_below(figure)
    return figure


def draw_det(curves: Sequence[Curve]) -> Figure:
    """Draw false non-match against false match rates, both axes probit; x is FMR, y FNMR."""
    from scipy.stats import norm  # takes half a second to load

    figure, axes = page_figure(WIDTH)
    low, high = norm.ppf(DET_LIMITS)
    axes.plot([low, high], [low, high], color="#777777", linewidth=1, label="equal errors")
    for curve, (color, dashes, _) in zip(curves, LINES, strict=False):
        places = np.clip(norm.ppf(np.stack([curve.x, curve.y], axis=1)), low, high)
        _, first = np.unique(places.round(2), axis=0, return_index=True)  # what the eye can tell
        kept = places[np.sort(first)]
        axes.plot(*kept.T, color=color, linestyle=dashes, label=curve.name, clip_on=False)
    ticks = norm.ppf(DET_TICKS)
    names = [f"{tick:.1%}" if tick < 0.01 else f"{tick:.0%}" for tick in DET_TICKS]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set(xlabel="false match rate", ylabel="false non-match rate")
    legend_below(figure)
    return figure


def draw_reliability(before: Reliability, after: Reliability) -> Figure:
    """Draw accuracy over confidence, before and after the temperature, and the photos of bins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="#777777", linewidth=1, label="as sure as right")
    edges = np.linspace(0, 1, len(before.photos) + 1)
    named = (("before temperature", before), ("after temperature", after))
    for (name, bins), (color, dashes, marker) in zip(named, reversed(LINES[:2]), strict=True):
        there = bins.photos > 0
        line: dict[str, Any] = {"color": color, "linestyle": dashes, "label": name}
        above.plot(
            bins.confidence[there], bins.accuracy[there], marker=marker, clip_on=False, **line
        )
        below.stairs(bins.photos, edges, color=color, linestyle=dashes)
    above.set(ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    above.yaxis.set_major_formatter(as_percent)
    below.xaxis.set_major_formatter(as_percent)
    legend_below(figure)
    below.set(xlabel="confidence (probability of the answer)", ylabel="photos")
    for axes in (above, below):
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_ages(ages: np.ndarray, expected: np.ndarray, people: np.ndarray) -> Figure:
    """Draw expected over true age in years: (N,) photos as dots, and people's means."""
    figure, axes = page_figure(WIDTH)
    both = np.concatenate([ages, expected])
    ends = np.array([np.nanmin(both) - 1, np.nanmax(both) + 1])
    axes.plot(ends, ends, color="#777777", linewidth=1, label="right to the year")
    axes.plot(ages, expected, ".", color=WRONG, alpha=0.35, markersize=4, label="a photo")
    means = pd.DataFrame({"true": ages, "expected": expected}).groupby(people).mean()
    person: dict[str, Any] = {"color": RIGHT, "markerfacecolor": "none", "label": "a person's mean"}
    axes.plot(means["true"], means["expected"], "D", markersize=5, **person)
    axes.set(xlabel="true age in years", ylabel="expected age in years", aspect="equal")
    axes.set(xlim=ends, ylim=ends)
    legend_below(figure)
    return figure


def draw_people(counts: pd.DataFrame) -> Figure:
    """Draw how many people (values) have how many of their photos right (rows), per task."""
    figure, axes = page_figure(3.5)
    places, width = np.arange(len(counts)), 0.8 / counts.shape[1]
    for i, (task, color, hatch) in enumerate(
        zip(counts, (RIGHT, WRONG, GREEN), ("", "//", ".."), strict=False)
    ):
        bars = axes.bar(
            places + (i - (counts.shape[1] - 1) / 2) * width,
            counts[task],
            width,
            color=color,
            edgecolor="white",
            hatch=hatch,
            label=str(task),
        )
        axes.bar_label(bars, fontsize=8)
    axes.set_xticks(places, [str(name) for name in counts.index])
    axes.set(xlabel="share of the person's photos answered right", ylabel="people")
    legend_below(figure)
    return figure
