"""Count and plot the photos and people of 11k Hands; only HandInfo.csv is needed.

    python dataset_11k_analyze.py --input ./11k --output ./dataset_analysis

writes <output>/counts.csv (question, subset, aspect, value, images, people) and a figure for each
question, <output>/<question>.png: gender, age, age_group, skin_color, accessories, nail_polish,
irregularities, images_per_person. It prints a summary. Counts cover the whole data set and each
hand aspect, with all photos and with those without accessories (the published split).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from data.tables import read_hand_info
from dataset_11k import AGE_GROUPS, ASPECTS, DATA_URL, GENDERS, SKIN_COLORS, age_group
from pages.figures import save_figure
from utils import (
    UserError,
    atomic_write,
    flag,
    one_line_errors,
    parse_config,
    setup_logging,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Question(NamedTuple):
    """A property of photos that is counted."""

    column: str  # of HandInfo.csv
    values: tuple[str, ...]  # possible values in order; empty: the numbers that occur
    label: str  # of the figure's horizontal axis


WITHOUT_WITH = ("without", "with")  # 0 and 1 in HandInfo.csv

BOTH = "a person can have photos of both kinds"

QUESTIONS = {
    "gender": Question("gender", GENDERS, "gender"),
    "age": Question("age", (), "age in years (counts.csv has all counts)"),
    "age_group": Question("age", tuple(AGE_GROUPS), "age group in years, bounds inclusive"),
    "skin_color": Question("skinColor", SKIN_COLORS, "skin colour"),
    "accessories": Question("accessories", WITHOUT_WITH, f"accessories ({BOTH})"),
    "nail_polish": Question("nailPolish", WITHOUT_WITH, f"nail polish ({BOTH})"),
    "irregularities": Question("irregularities", WITHOUT_WITH, f"irregularities ({BOTH})"),
}

PER_PERSON = "images_per_person"  # counts people, not photos

SUBSETS = {"all": (0, 1), "no_accessories": (0,)}  # -> values of the column accessories

PANELS = {"all": "whole data set", **ASPECTS}  # aspect in counts.csv -> title

BRACKETS = "numbers: all photos (in brackets: without accessories)"

# Blue and orange of Okabe and Ito's colour-blind safe palette. To be readable without colour, bars
# of people are hatched, and the part that is not in the published split is hollow.
STYLES: dict[str, dict[str, Any]] = {
    "images": {"facecolor": "#0072B2", "edgecolor": "#0072B2"},
    "people": {"facecolor": "#F6C667", "edgecolor": "#9A5B00", "hatch": "//////"},
    "all": {"facecolor": "#DDDDDD", "edgecolor": "#444444"},
}

HOLLOW = {"facecolor": "white", "hatch": None}

FONT = 7.5  # size in points of counts and tick labels

BIN_WIDTHS = tuple(m * 10**k for k in range(7) for m in (1, 2, 5))  # photos per person

MAX_BINS = 20


@dataclass(frozen=True)
class AnalyzeConfig:
    """Flags of dataset_11k_analyze.py."""

    input: Path = flag(
        Path("./11k"), "folder with HandInfo.csv; photos are not needed", metavar="DIR"
    )
    output: Path = flag(
        Path("./dataset_analysis"), "folder for counts.csv and the figures", metavar="DIR"
    )


# ----------------------------------------------------------------------------- counts


def photo_values(photos: pd.DataFrame, question: str) -> pd.Series:
    """Return the value of each photo, categorical with all possible values in order.

    Args:
        photos: as `read_hand_info` returns them.
        question: a key of `QUESTIONS`.
    """
    column, values, _ = QUESTIONS[question]
    cells = photos[column]
    if values == WITHOUT_WITH:
        cells = cells.map(dict(enumerate(WITHOUT_WITH)))
    elif question == "age_group":
        cells = cells.map(age_group)
    texts = [str(cell) for cell in cells]
    categories = list(values) or [str(number) for number in sorted(set(cells))]
    return pd.Series(pd.Categorical(texts, categories), index=photos.index)


def count_values(ids: pd.Series, values: pd.Series) -> pd.DataFrame:
    """Return columns value, images, people: a row for each possible value, even with no photo.

    A person whose photos have different values counts once for each value.
    """
    counts = ids.groupby(values, observed=False).agg(images="size", people="nunique")
    return counts.rename_axis("value").reset_index()


def count_images_per_person(ids: pd.Series) -> pd.DataFrame:
    """Return columns value, images, people: `people` people have `value` photos each."""
    people = ids.value_counts().value_counts().sort_index()
    counts = people.rename_axis("value").reset_index(name="people")
    return counts.assign(images=counts["value"] * counts["people"])


def count_all(hand_info: pd.DataFrame) -> pd.DataFrame:
    """Return all counts: columns question, subset, aspect, value (text), images, people."""
    values = hand_info[["id"]].assign(**{name: photo_values(hand_info, name) for name in QUESTIONS})
    tables = []
    for subset, accessories in SUBSETS.items():
        kept = hand_info["accessories"].isin(accessories)
        for aspect in PANELS:
            here = kept if aspect == "all" else kept & (hand_info["aspectOfHand"] == PANELS[aspect])
            photos = values[here]
            found = {name: count_values(photos["id"], photos[name]) for name in QUESTIONS}
            found[PER_PERSON] = count_images_per_person(photos["id"])
            for question, table in found.items():
                place = {"question": question, "subset": subset, "aspect": aspect}
                tables.append(table.assign(**place, value=table["value"].astype(str)))
    columns = ["question", "subset", "aspect", "value", "images", "people"]
    return pd.concat(tables, ignore_index=True)[columns]


def select(counts: pd.DataFrame, question: str, subset: str, aspect: str) -> pd.DataFrame:
    """Return columns images, people of a question, indexed by its values in order."""
    wanted = {"question": question, "subset": subset, "aspect": aspect}
    rows = counts[(counts[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return rows.set_index("value")[["images", "people"]]


def spread_per_person(counts: pd.DataFrame, subset: str, aspect: str) -> str:
    """Return `min-median-max` of the photos per person, `none` without photos."""
    people = select(counts, PER_PERSON, subset, aspect)["people"]
    each = pd.Series(people.index.astype("int64").repeat(people.to_numpy()))
    return f"{each.min()}-{each.median():g}-{each.max()}" if len(each) else "none"


def summary_table(counts: pd.DataFrame) -> pd.DataFrame:
    """Return the most important counts, one line for each subset and aspect."""
    lines = {}
    for subset in SUBSETS:
        for aspect in PANELS:
            gender = select(counts, "gender", subset, aspect)
            ages = select(counts, "age", subset, aspect).query("images > 0").index
            lines[subset, aspect] = {
                **select(counts, PER_PERSON, subset, aspect).sum(),
                **{f"{name} photos (people)": f"{n} ({k})" for name, n, k in gender.itertuples()},
                "ages": f"{ages[0]}-{ages[-1]}" if len(ages) else "none",
                "photos per person (min-median-max)": spread_per_person(counts, subset, aspect),
            }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis(["photos", "aspect"])


# ----------------------------------------------------------------------------- figures
# Bars of a panel: style -> columns height, filled (part of the height), label; indexed by values.


def build_panels(
    title: str, x_label: str, y_label: str, legend: dict[str, dict[str, Any]]
) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure and its axes: the whole data set on top, the aspects 2x2 below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure((10, 9))
    aspects = list(ASPECTS)
    mosaic: list[Any] = [["all", "all"], aspects[:2], aspects[2:]]
    grid = {
        "left": 0.065,
        "right": 0.985,
        "bottom": 0.1,
        "top": 0.875,
        "hspace": 0.4,
        "wspace": 0.1,
    }
    panels = figure.subplot_mosaic(mosaic, height_ratios=(1.3, 1, 1), gridspec_kw=grid)
    figure.suptitle(title, y=0.985, fontsize=13)
    figure.supxlabel(x_label, y=0.008, fontsize=10)
    figure.supylabel(y_label, x=0.006, fontsize=10)
    handles = [Patch(**style, label=text) for text, style in legend.items()]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.967), "ncols": 2}
    figure.legend(handles=handles, fontsize=9, frameon=False, **place)
    return figure, panels


def text_width(text: str) -> float:
    """Return the approximate width in points of `text` in size `FONT`."""
    return FONT * sum(0.42 if sign in " ,.()-" else 0.65 for sign in text)


def draw_bars(axes: Axes, bars: dict[str, pd.DataFrame], *, top: float, labels: set[str]) -> None:
    """Draw grouped bars, with counts above them if these fit.

    Args:
        axes: to draw in.
        bars: style -> columns height, filled, label.
        top: height of the highest bar among the axes that share a scale.
        labels: labels of all axes that share a layout.
    """
    values = next(iter(bars.values())).index
    width, height = (side * 72 / axes.figure.dpi for side in axes.bbox.size)
    step = width / (len(values) + 0.2)  # points from value to value
    slot = 0.9 * step / len(bars)
    flat = max(text_width(word) for label in labels for word in label.split(" ")) < slot
    fits = flat or slot > 1.1 * FONT
    room = 2.6 * FONT if flat else fits * max(map(text_width, labels))
    text_style: dict[str, Any] = {"ha": "center", "va": "bottom", "textcoords": "offset points"}
    text_style |= {"fontsize": FONT, "linespacing": 1.0, "rotation": 0 if flat else 90}
    for i, (style, table) in enumerate(bars.items()):
        x = [k + 0.9 * ((i + 0.5) / len(bars) - 0.5) for k in range(len(values))]
        for part, bar_style in (("height", STYLES[style] | HOLLOW), ("filled", STYLES[style])):
            axes.bar(x, table[part], 0.84 / len(bars), linewidth=0.7, **bar_style)
        for place, bar, label in zip(x, table["height"], table["label"], strict=True):
            if fits:
                text = label.replace(" ", "\n") if flat else label
                axes.annotate(text, (place, bar), (0, 2), **text_style)
    axes.set(xlim=(-0.6, len(values) - 0.4), ylim=(0, top * height / (height - room - 6)))
    axes.locator_params(axis="y", integer=True, nbins=7)
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 1.1 * top])
    every = math.ceil((max(map(text_width, values)) + 4) / step)
    axes.set_xticks(range(0, len(values), every), values[::every])


def draw_panels(
    panels: dict[str, Axes], bars: dict[str, dict[str, pd.DataFrame]], titles: dict[str, str]
) -> None:
    """Draw the bars: the four aspects share a scale, the whole data set has its own."""
    for group in (["all"], list(ASPECTS)):
        tables = pd.concat([table for aspect in group for table in bars[aspect].values()])
        top, labels = max(tables["height"], default=0), set(tables["label"])
        for aspect in group:
            axes = panels[aspect]
            axes.set_title(titles[aspect], fontsize=9.5, loc="left")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=FONT)
            if any(table["height"].any() for table in bars[aspect].values()):
                draw_bars(axes, bars[aspect], top=top, labels=labels)
            else:
                axes.text(0.5, 0.5, "no photos", ha="center", transform=axes.transAxes)
                axes.set(xticks=[], yticks=[])


def plot_fractions(counts: pd.DataFrame, path: Path, *, question: str) -> None:
    """Plot the fractions of photos and people with each value of a question.

    Args:
        counts: as `count_all` returns it.
        path: the PNG to write.
        question: a key of `QUESTIONS`.
    """
    bars: dict[str, dict[str, pd.DataFrame]] = {aspect: {} for aspect in PANELS}
    titles = {}
    for aspect, name in PANELS.items():
        every, kept = (select(counts, question, subset, aspect) for subset in SUBSETS)
        totals = [select(counts, PER_PERSON, subset, aspect).sum() for subset in SUBSETS]
        brackets = {m: f"{totals[0][m]:,} ({totals[1][m]:,})" for m in ("images", "people")}
        titles[aspect] = f"{name}: {brackets['images']} photos, {brackets['people']} people"
        for measure in brackets:
            pairs = zip(every[measure], kept[measure], strict=True)
            percent = 100 / max(totals[0][measure], 1)
            columns = {"height": every[measure] * percent, "filled": kept[measure] * percent}
            labels = [f"{n:,} ({k:,})" for n, k in pairs]
            bars[aspect][measure] = pd.DataFrame(columns).assign(label=labels)
    images, people = STYLES["images"], STYLES["people"]
    figure, panels = build_panels(
        f"Photos and people by {question.replace('_', ' ').replace('color', 'colour')}",
        f"{QUESTIONS[question].label}\n{BRACKETS}",
        "% of the photos or people of each panel",
        {
            "photos without accessories (in the published split)": images,
            "photos with accessories (not in it)": images | HOLLOW,
            "people with photos in the published split": people,
            "people without photos in it": people | HOLLOW,
        },
    )
    draw_panels(panels, bars, titles)
    save_figure(figure, path, dpi=150)


def bin_people(table: pd.DataFrame, largest: int) -> pd.DataFrame:
    """Return the bars of a histogram of photos per person, at most `MAX_BINS`.

    Args:
        table: as `select` returns it for images_per_person.
        largest: number of photos that the last bin must include; the first bin begins at 1.
    """
    width = next(width for width in BIN_WIDTHS if largest <= width * MAX_BINS)
    firsts = range(1, largest + 1, width)
    bins = (table.index.astype("int64") - 1) // width
    people = table["people"].groupby(bins).sum().reindex(range(len(firsts)), fill_value=0)
    people.index = pd.Index([f"{k}-{k + width - 1}" if width > 1 else f"{k}" for k in firsts])
    labels = people.astype(str).replace("0", "")
    return pd.DataFrame({"height": people, "filled": people, "label": labels})


def plot_images_per_person(counts: pd.DataFrame, path: Path) -> None:
    """Plot a histogram of the photos per person.

    Args:
        counts: as `count_all` returns it.
        path: the PNG to write.
    """
    rows = counts[counts["question"] == PER_PERSON]
    largest = rows["value"].astype("int64").groupby(rows["aspect"] == "all").max()
    bars, titles = {}, {}
    for aspect, name in PANELS.items():
        tables = [select(counts, PER_PERSON, subset, aspect) for subset in SUBSETS]
        every, kept = (bin_people(table, largest[aspect == "all"]) for table in tables)
        bars[aspect] = {"all": every, "people": kept}
        people = "{:,} ({:,})".format(*(table["people"].sum() for table in tables))
        spreads = "{} ({})".format(*(spread_per_person(counts, s, aspect) for s in SUBSETS))
        titles[aspect] = f"{name}, {people} people: {spreads}"
    figure, panels = build_panels(
        "Photos per person",
        "photos per person\n"
        "panel titles: min-median-max of all photos (in brackets: without accessories)",
        "people",
        {
            "all photos": STYLES["all"],
            "photos without accessories (in the published split)": STYLES["people"],
        },
    )
    draw_panels(panels, bars, titles)
    save_figure(figure, path, dpi=150)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config = parse_config(AnalyzeConfig, __doc__, argv)
    setup_logging()
    source = config.input / "HandInfo.csv"
    hand_info = read_hand_info(source)
    if hand_info.empty:
        raise UserError(f"no photos: {source}. Get HandInfo.csv from {DATA_URL}")
    counts = count_all(hand_info)
    with atomic_write(config.output / "counts.csv") as temporary:
        counts.to_csv(temporary, index=False, lineterminator="\n")
    for question in QUESTIONS:
        plot_fractions(counts, config.output / f"{question}.png", question=question)
    plot_images_per_person(counts, config.output / f"{PER_PERSON}.png")
    print(summary_table(counts).to_string())
    figures = ", ".join(f"{question}.png" for question in (*QUESTIONS, PER_PERSON))
    print(f"wrote to {config.output}: counts.csv, {figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
