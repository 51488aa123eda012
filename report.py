"""Every picture of a run, drawn from its predictions: no model, no data set.

    python report.py --architecture doc_images/architecture.png

draws the README's picture of the network. The pictures of an evaluation are drawn by test.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import confusion_matrix

from flags import REQUIRED, build_config, config_parser, flag
from utils import (
    atomic_write,
    one_line_errors,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASKS = ("identity", "gender", "age")
FORMATS = (".png", ".svg", ".pdf")
FEW_CLASSES = 12  # up to here every cell of a confusion matrix has room for its count
RIGHT, WRONG = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion
GRID_COLUMNS = 5


def save_figure(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure in the format of the path's suffix, all of it or nothing."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


# ----------------------------------------------------------------------------- confusion


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
    counts = confusion_matrix(true, predicted, labels=shown)
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


def choose_rows(table: pd.DataFrame, tasks: Sequence[str] = TASKS, seed: int = 0) -> ChosenRows:
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
    tasks: Sequence[str] = TASKS,
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


@dataclass(frozen=True)
class ReportConfig:
    """What report.py is asked for."""

    architecture: Path = flag(REQUIRED, f"picture to draw the network into: {', '.join(FORMATS)}")

    def __post_init__(self) -> None:
        """Refuse other formats."""
        if self.architecture.suffix not in FORMATS:
            formats = " or ".join(FORMATS)
            raise ValueError(f"--architecture {self.architecture}: give a {formats} file")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = config_parser(ReportConfig, __doc__)
    config = build_config(parser, ReportConfig, vars(parser.parse_args(argv)))
    plot_architecture(config.architecture)
    print(f"wrote {config.architecture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
