"""The evaluations of many runs side by side: averages, differences, a table, a figure.

compare.py makes the runs. Nothing here needs a model: all is taken from what test.py wrote.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from backbones import safe_name
from figures import save_figure
from findings import CONTROLS, KINDS, headlines
from intervals import (
    CONFIDENCE,
    Difference,
    Interval,
    PeopleMeasure,
    bootstrap,
    paired_difference,
    people_average,
    people_mean,
)
from matching import cosine_similarity, gallery_ranks
from measures import BOOTSTRAP_SEED, headline, task_answers
from rows import PROTOCOLS, TASKS, SplitFiles
from utils import UserError, atomic_write

METRICS_KEYS = {"checkpoint", "epoch", "split", "n_images", "n_people", "tasks"}
Measure = tuple[str, str]  # task, name
# What the table shows and rows are compared by; identity has one of its two.
COMPARED: tuple[Measure, ...] = (
    ("identity", "balanced_accuracy"),
    ("identity", "rank_1"),
    ("gender", "balanced_accuracy"),
    ("gender", "roc_auc"),
    ("age", "balanced_accuracy"),
    ("age", "mae_years"),
)
Value = TypeVar("Value")


# ----------------------------------------------------------------------------- cells and names


class Row(NamedTuple):
    """What a row of the table is about; folds and seeds are averaged."""

    aspect: str
    protocol: str
    backbone: str


class Cell(NamedTuple):
    """What a run is about."""

    aspect: str
    protocol: str
    backbone: str
    fold: int | None  # None: the protocol has no folds
    seed: int

    @property
    def row(self) -> Row:
        """The row of the table that it belongs to."""
        return Row(self.aspect, self.protocol, self.backbone)

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.named(fold=True, seed=True)

    def named(self, *, fold: bool, seed: bool) -> str:
        """Return the name of the run, or of those of all folds or seeds."""
        parts = [self.aspect, self.protocol]
        parts += [f"fold_{self.fold}"] * (fold and self.fold is not None)
        return "-".join([*parts, safe_name(self.backbone), *[f"seed_{self.seed}"] * seed])

    @property
    def names(self) -> set[str]:
        """The names of the rows that it can be part of."""
        return {self.named(fold=f, seed=s) for f in (True, False) for s in (True, False)}


@dataclass(frozen=True, eq=False)
class Result:
    """A finished evaluation."""

    cell: Cell
    folder: Path
    metrics: Mapping[str, Any]

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the measures are taken from."""
        with np.load(self.folder / "predictions.npz") as stored:
            return dict(stored)

    @functools.cached_property
    def numbers(self) -> dict[str, float]:
        """The headline numbers of metrics.json, by column of results.csv."""
        return headline_numbers(self.metrics["tasks"])

    @functools.cached_property
    def measures(self) -> dict[Measure, PeopleMeasure]:
        """Those of `COMPARED` that there are, as functions of people's weights."""
        return people_measures(self.arrays, strangers=PROTOCOLS[self.cell.protocol].disjoint)


def people_measures(
    arrays: Mapping[str, np.ndarray], *, strangers: bool
) -> dict[Measure, PeopleMeasure]:
    """Return the headline measures of predictions.npz that have been `COMPARED`.

    Args:
        arrays: as test.py wrote them.
        strangers: nobody was trained on: identity is matched by embeddings, not classified.
    """
    found: dict[Measure, PeopleMeasure] = {}
    for task in TASKS:
        if task != "identity" or not strangers:
            measures = headline(task_answers(arrays, task))
            found |= {(task, name): measure for name, measure in measures.items()}
    if strangers:
        people, embedding = arrays["people"], arrays["embedding"]
        similarity = cosine_similarity(embedding, embedding)
        itself = np.eye(len(people), dtype=bool)
        ranks = gallery_ranks(similarity, people, arrays["galleries"], itself)
        hits = np.where(np.isnan(ranks), np.nan, ranks <= 1)
        found["identity", "rank_1"] = people_mean(hits, people)
    return {key: found[key] for key in COMPARED if key in found}


def read_evaluation(cell: Cell, folder: Path) -> Result | None:
    """Return the evaluation in `folder`; None: there is none, or not all of it."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        with np.load(folder / "predictions.npz") as stored:
            complete = metrics.keys() >= METRICS_KEYS and "people" in stored
    except (OSError, ValueError, AttributeError):
        return None
    return Result(cell, folder, metrics) if complete else None


# ----------------------------------------------------------------------------- numbers


def headline_numbers(tasks: Mapping[str, Any]) -> dict[str, float]:
    """Return each headline number of metrics.json with low, high and controls, by column name.

    <task>_<measure>, and behind it _low, _high, _<control>; of pairs, _beyond_2_frames comes
    before these. What was not measured is left out.

    Args:
        tasks: of metrics.json.
    """
    numbers: dict[str, float] = {}
    for line in headlines(tasks):
        kind = f"_{line.part}" if line.part == KINDS[1] else ""
        task = line.part if line.part in TASKS else "identity"
        column = f"{task}_{line.measure}{kind}"
        numbers |= {column: line.value, f"{column}_low": line.low, f"{column}_high": line.high}
        numbers |= {f"{column}_{control}": value for control, value in line.controls.items()}
    return {column: number for column, number in numbers.items() if not math.isnan(number)}


def results_table(results: Sequence[Result], output: Path) -> pd.DataFrame:
    """Return results.csv: a line per run."""
    lines = []
    for result in results:
        about = {key: result.metrics[key] for key in ("split", "epoch", "n_images", "n_people")}
        lines.append({**result.cell._asdict(), **about, **result.numbers})
        path, base = result.folder.absolute(), output.absolute()
        inside = path.relative_to(base) if path.is_relative_to(base) else path
        lines[-1]["evaluation"] = inside.as_posix()
    table = pd.DataFrame(lines, columns=None if lines else [*Cell._fields, "evaluation"])
    table["evaluation"] = table.pop("evaluation")  # the last column
    return table.astype({"fold": "Int64"})


def mean_over_folds(
    results: Sequence[Result],
    value: Callable[[Result], Value],
    mean: Callable[[list[Value]], Value],
) -> Value:
    """Return the mean over folds of the mean over seeds: scores of models are never pooled."""
    folds: dict[int | None, list[Value]] = {}
    for result in results:
        folds.setdefault(result.cell.fold, []).append(value(result))
    return mean([mean(values) for values in folds.values()])


@functools.cache
def average(results: tuple[Result, ...], key: Measure) -> PeopleMeasure:
    """Return a measure's mean over folds and seeds."""
    return mean_over_folds(results, lambda result: result.measures[key], people_average)


@functools.cache
def interval(results: tuple[Result, ...], key: Measure) -> Interval:
    """Return a measure's mean over folds and seeds with its interval over people."""
    return bootstrap(average(results, key), seed=BOOTSTRAP_SEED)


@functools.cache
def difference(first: tuple[Result, ...], second: tuple[Result, ...], key: Measure) -> Difference:
    """Return the difference of two rows' means, people drawn together."""
    return paired_difference(average(first, key), average(second, key), seed=BOOTSTRAP_SEED)


@dataclass(frozen=True)
class Summary:
    """A row of the table.

    folds: that are in it; `n_folds`: that the protocol has.
    n_images: photos evaluated, those of another seed counted once.
    controls: name -> value, as far as they answer the measure.
    """

    row: Row
    folds: tuple[int, ...]
    n_folds: int
    seeds: tuple[int, ...]
    n_runs: int
    n_images: int
    numbers: dict[Measure, Interval]
    controls: dict[Measure, dict[str, float]]

    @property
    def made_of(self) -> str:
        """Folds and seeds; what is missing is said."""
        parts = []
        if self.folds:
            there = len(self.folds)
            whole = there == self.n_folds
            parts.append(f"{there} folds" if whole else f"**{there} of {self.n_folds} folds**")
        parts.append(
            ("seed " if len(self.seeds) == 1 else "seeds ") + " ".join(map(str, self.seeds))
        )
        n_whole = max(len(self.folds), 1) * len(self.seeds)
        if self.n_runs < n_whole:
            parts.append(f"**{self.n_runs} of {n_whole} runs**")
        return ", ".join(parts)


def control_values(results: Sequence[Result], key: Measure) -> dict[str, float]:
    """Return what the controls of a measure score, averaged as it is."""
    columns = {name: "_".join((*key, name)) for name in CONTROLS}

    def average_of(column: str) -> float:
        return mean_over_folds(results, lambda result: result.numbers[column], mean_float)

    return {
        name: average_of(column)
        for name, column in columns.items()
        if all(column in result.numbers for result in results)
    }


def mean_float(values: Sequence[float]) -> float:
    """Return the mean."""
    return float(np.mean(values))


def rows_of(results: Sequence[Result]) -> dict[Row, tuple[Result, ...]]:
    """Return the results of each row, rows in the order of aspect and protocol."""
    rows: dict[Row, list[Result]] = {}
    for result in results:
        rows.setdefault(result.cell.row, []).append(result)
    order = {row[:2]: i for i, row in reversed(list(enumerate(rows)))}
    return {row: tuple(rows[row]) for row in sorted(rows, key=lambda row: order[row[:2]])}


def summarise(row: Row, results: tuple[Result, ...], n_folds: int) -> Summary:
    """Return a row of the table; `n_folds`: that its protocol has."""
    first_of_fold = {result.cell.fold: result for result in reversed(results)}
    keys = [key for key in COMPARED if all(key in result.measures for result in results)]
    return Summary(
        row=row,
        folds=tuple(sorted(fold for fold in first_of_fold if fold is not None)),
        n_folds=n_folds,
        seeds=tuple(sorted({result.cell.seed for result in results})),
        n_runs=len(results),
        n_images=sum(result.metrics["n_images"] for result in first_of_fold.values()),
        numbers={key: interval(results, key) for key in keys},
        controls={key: control_values(results, key) for key in keys},
    )


# ----------------------------------------------------------------------------- differences


def photos_differ(first: Sequence[Result], second: Sequence[Result]) -> bool:
    """Return whether two rows were evaluated on other photos, fold by fold."""
    ones = {result.cell.fold: result for result in first}
    return any(
        not np.array_equal(ones[result.cell.fold].arrays["people"], result.arrays["people"])
        or not np.array_equal(
            ones[result.cell.fold].arrays["frame_number"],
            result.arrays["frame_number"],
            equal_nan=True,
        )
        for result in second
    )


def folds_of(results: Sequence[Result]) -> set[int | None]:
    """Return the folds that results are of."""
    return {result.cell.fold for result in results}


def compare_rows(
    first: tuple[Result, ...], second: tuple[Result, ...]
) -> dict[Measure, Difference]:
    """Return first minus second of every measure that both have."""
    keys = [key for key in COMPARED if all(key in r.measures for r in (*first, *second))]
    return {key: difference(first, second, key) for key in keys}


def differences_table(rows: Mapping[Row, tuple[Result, ...]]) -> pd.DataFrame:
    """Return differences.csv: every pair of backbones of an aspect and protocol, by measure.

    Compared over the folds that both have; a pair without any, or of other photos, is left out.
    """
    columns = ["aspect", "protocol", "first", "second", "folds", "task", "measure", "difference"]
    columns += ["low", "high", "n_people", "more_than_chance"]
    lines = []
    for one, other in itertools.combinations(rows, 2):
        common = folds_of(rows[one]) & folds_of(rows[other])
        if one[:2] != other[:2] or not common:
            continue
        first, second = (
            tuple(result for result in rows[row] if result.cell.fold in common)
            for row in (one, other)
        )
        if photos_differ(first, second):
            continue
        folds = " ".join(str(fold) for fold in sorted(f for f in common if f is not None))
        about = (one.aspect, one.protocol, one.backbone, other.backbone, folds)
        lines += [(*about, *key, *found) for key, found in compare_rows(first, second).items()]
    return pd.DataFrame(lines, columns=columns)


def find_row(name: str, results: Sequence[Result]) -> tuple[Result, ...]:
    """Return the results of the row called `name`."""
    found = tuple(result for result in results if name in result.cell.names)
    if not found:
        there = sorted({result.cell.named(fold=False, seed=False) for result in results})
        raise UserError(f"--difference {name}: no such row; there are {', '.join(there) or 'none'}")
    return found


def check_comparable(
    names: Sequence[str], first: Sequence[Result], second: Sequence[Result]
) -> None:
    """Refuse two rows that were not evaluated on the same photos of the same people, saying why."""
    both = f"{names[0]} and {names[1]}"
    one, other = first[0].cell, second[0].cell
    if one.aspect != other.aspect:
        reason = f"they show other photos ({one.aspect}, {other.aspect})"
    elif one.protocol != other.protocol:
        reason = (
            f"{one.protocol} and {other.protocol} report on other people and photos, so that"
            " nothing is paired"
        )
    elif folds_of(first) != folds_of(second):
        folds = [sorted(str(fold) for fold in folds_of(part)) for part in (first, second)]
        reason = f"folds {' '.join(folds[0])} and {' '.join(folds[1])} show other people"
    elif photos_differ(first, second):
        reason = "they were evaluated on another draw of the split"
    else:
        return
    raise UserError(
        f"--difference: {both} cannot be compared: {reason}; name two rows of one aspect,"
        " protocol and fold"
    )


def difference_text(names: Sequence[str], found: Mapping[Measure, Difference]) -> str:
    """Return what --difference prints."""
    lines = [f"{names[0]} minus {names[1]}", ""]
    lines.append(f"{'':28}difference  95 % interval      people")
    for key, one in found.items():
        ends = f"{one.low:+.4f} to {one.high:+.4f}"
        verdict = "more than chance" if one.more_than_chance else "not more than chance"
        title = " ".join(key).replace("_", " ")
        lines.append(f"{title:28}{one.value:+10.4f}  {ends:20}{one.n_people:5}  {verdict}")
    lines += ["", "Paired bootstrap over people; not corrected for the number of comparisons."]
    return "\n".join(lines)


def read_results(output: Path) -> list[Result]:
    """Return the results that results.csv lists."""
    path = output / "results.csv"
    try:
        table = pd.read_csv(path, dtype={"backbone": str})
        needed = [*Cell._fields, "evaluation"]
        if not set(needed) <= set(table.columns):
            raise ValueError(f"it lacks columns of {', '.join(needed)}")
        gaps = table[[n for n in needed if n != "fold"]].isna().any(axis=1)
        if gaps.any():
            raise ValueError(f"line {int(gaps.to_numpy().argmax()) + 2} is not complete")
        records = table.to_dict("records")
        cells = [
            Cell(
                *(record["aspect"], record["protocol"], record["backbone"]),
                None if pd.isna(record["fold"]) else int(record["fold"]),
                int(record["seed"]),
            )
            for record in records
        ]
        folders = [output / record["evaluation"] for record in records]
    except FileNotFoundError:
        raise UserError(f"{path} not found; give the --output of a comparison") from None
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({error}); move it away, and run the comparison again"
        ) from error
    results = []
    for cell, folder in zip(cells, folders, strict=True):
        result = read_evaluation(cell, folder)
        if result is None:
            raise UserError(f"{folder} is no finished evaluation; run the comparison again")
        results.append(result)
    return results


# ----------------------------------------------------------------------------- table and figure


def number_text(value: float | None, *, rate: bool = True) -> str:
    """Return a rate as .884, years as 1.84; a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}".removeprefix("0") if rate else f"{value:.2f}"


def interval_text(summary: Summary, key: Measure) -> str:
    """Return a number with its interval, as .884 (.841-.921)."""
    found = summary.numbers.get(key)
    if found is None:
        return "-"
    rate = key[1] != "mae_years"
    low, high = (number_text(end, rate=rate) for end in (found.low, found.high))
    return f"{number_text(found.value, rate=rate)} ({low}-{high})"


def table_line(summary: Summary) -> str:
    """Return a row of table.md."""
    known = ("identity", "balanced_accuracy") in summary.numbers
    identity = ("identity", "balanced_accuracy" if known else "rank_1")
    people = max(found.n_people for found in summary.numbers.values())
    cells = [
        *(f"`{summary.row.backbone}`", f"`{summary.row.aspect}`", f"`{summary.row.protocol}`"),
        *(summary.made_of, f"{summary.n_images}, {people}"),
        f"{'' if known else 'rank-1 '}{interval_text(summary, identity)}",
    ]
    for task, more in (("gender", "roc_auc"), ("age", "mae_years")):
        controls = summary.controls.get((task, "balanced_accuracy"), {})
        named = (*CONTROLS[:2], *(["nearest_embedding"] * ("nearest_embedding" in controls)))
        beside = [number_text(controls.get(name)) for name in named]
        cells += [interval_text(summary, (task, "balanced_accuracy")), " / ".join(beside)]
        cells.append(interval_text(summary, (task, more)))
    return f"| {' | '.join(cells)} |"


TABLE_HEAD = (
    "| backbone | hand | protocol | averaged over | photos, people | identity | gender"
    " | majority / lookup / nearest | gender AUC | age group | majority / lookup / nearest"
    " | age MAE, years |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)
TABLE_NOTES = (
    f"In brackets: {CONFIDENCE:.0%} bootstrap interval over people; what another seed would bring"
    " is not in it.",
    "Identity, gender and age group: balanced accuracy. Where nobody was trained on, identity is"
    " rank-1: the share of photos whose most similar gallery photo, of the same recording session,"
    " shows the same person.",
    "Majority: who always answers the training rows' most frequent class. Lookup: who answers the"
    " gender and age group of the person that the identity head names. Nearest, of strangers alone:"
    " those of the training photo that is most alike.",
    "Several folds or seeds: the mean of each model's own score; no model's answers are pooled"
    " with another's.",
)


def table_text(
    summaries: Sequence[Summary],
    recipes: Mapping[Row, str],
    differences: pd.DataFrame,
    n_left: int,
) -> str:
    """Return table.md.

    Args:
        summaries: of the finished rows.
        recipes: each row's flags, where they are not train.py's defaults.
        differences: as `differences_table` returns it.
        n_left: runs that are not finished.
    """
    notes = list(TABLE_NOTES)
    by_recipe: dict[str, list[str]] = {}
    for summary in summaries:
        by_recipe.setdefault(recipes[summary.row], []).append("-".join(summary.row))
    for recipe, names in by_recipe.items():
        who = "" if len(by_recipe) == 1 else f" ({', '.join(names)})"
        notes.append(f"Trained{who} with {f'`{recipe}`' if recipe else 'the defaults'}.")
    if len(differences):
        n_more = int(differences["more_than_chance"].sum())
        notes.append(
            f"Pairs of backbones: {n_more} of {len(differences)} differences are more than chance"
            f" (differences.csv), each taken by itself at {CONFIDENCE:.0%}: they are not corrected"
            " for the number of comparisons."
        )
    if n_left:
        notes.append(f"**Not finished: {n_left} runs are missing.**")
    lines = [TABLE_HEAD, *map(table_line, summaries), "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


# Okabe and Ito's colours, which the colour-blind tell apart; each has a marker of its own.
LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
LEGEND_COLUMNS = 4  # what one line has room for
CONTROL_LOOKS = {
    "majority_class": ("majority class", "|"),
    "identity_lookup": ("identity lookup", "x"),
    "nearest_embedding": ("nearest embedding", "+"),
    "chance": ("chance", "|"),
}


def plot_comparison(summaries: Sequence[Summary], path: Path) -> None:
    """Draw every row's balanced accuracies (of strangers, identity's rank-1) with intervals.

    Args:
        summaries: rows of the table, at least one.
        path: picture to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    n_rows = len(summaries)
    figure = Figure(figsize=(11, 1.9 + 0.3 * n_rows), layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharey=True)
    looks = dict(zip(PROTOCOLS, LOOKS, strict=True))
    seen: set[str] = set()
    for panel, task in zip(panels, TASKS, strict=True):
        for place, summary in enumerate(summaries):
            for key in ((task, "balanced_accuracy"), (task, "rank_1")):
                if key not in summary.numbers:
                    continue
                color, marker = looks[summary.row.protocol]
                found = summary.numbers[key]
                style: dict[str, Any] = {"color": color, "clip_on": False}  # whole at the edge too
                panel.plot([found.low, found.high], [place, place], linewidth=1.8, **style)
                face = "white" if key[1] == "rank_1" else color
                panel.plot(found.value, place, marker, markerfacecolor=face, **style)
                for name, value in summary.controls[key].items():
                    seen.add(name)
                    look = {**style, "color": "#444444", "markersize": 9}
                    panel.plot(value, place, CONTROL_LOOKS[name][1], **look)
        panel.set_title({"age": "age group"}.get(task, task), loc="left", fontweight="bold")
        panel.set(xlim=(-0.02, 1.02), ylim=(n_rows - 0.5, -0.5), xlabel="balanced accuracy")
        panel.grid(axis="x", color="#DDDDDD", linewidth=0.8)
        panel.set_axisbelow(True)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.tick_params(axis="y", length=0)
        for place in range(1, n_rows):  # a line between what cannot be compared
            if summaries[place].row[:2] != summaries[place - 1].row[:2]:
                panel.axhline(place - 0.5, color="#BBBBBB", linewidth=0.8)
    protocols = list(dict.fromkeys(summary.row.protocol for summary in summaries))
    if any(PROTOCOLS[protocol].disjoint for protocol in protocols):
        panels[0].set_xlabel("balanced accuracy; hollow: rank-1")
    names = [row_label(summary) for summary in summaries]
    panels[0].set_yticks(range(n_rows), names, parse_math=False)
    handles = [
        Line2D([], [], color=looks[protocol][0], marker=looks[protocol][1], label=protocol)
        for protocol in protocols
    ]
    controls = {CONTROL_LOOKS[name] for name in CONTROLS if name in seen}
    by_marker = {m: " or ".join(sorted(t for t, n in controls if n == m)) for _, m in controls}
    handles += [
        Line2D([], [], color="#444444", linestyle="", marker=marker, label=f"control: {text}")
        for marker, text in sorted(by_marker.items())
    ]
    n_columns = len(handles) if len(handles) <= LEGEND_COLUMNS else math.ceil(len(handles) / 2)
    figure.legend(handles=handles, loc="outside upper right", ncols=n_columns, frameon=False)
    save_figure(figure, path)


def row_label(summary: Summary) -> str:
    """Return a row's name in the figure; missing folds are said."""
    partial = len(summary.folds) < summary.n_folds if summary.folds else False
    said = f" ({len(summary.folds)} of {summary.n_folds} folds)" if partial else ""
    return f"{summary.row.backbone}  {summary.row.protocol}  {summary.row.aspect}{said}"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV, all of it or nothing."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def write_results(
    output: Path, results: Sequence[Result], recipes: Mapping[Row, str], root: Path, n_left: int
) -> None:
    """Write results.csv, differences.csv, table.md and comparison.png.

    Args:
        output: folder to write to.
        results: finished ones, in the order of the table.
        recipes: each row's flags, where they are not train.py's defaults.
        root: of the splits, which say how many folds there are.
        n_left: runs that are not finished.
    """
    rows = rows_of(results)
    summaries = []
    for row, those in rows.items():
        files = SplitFiles(root, row.aspect, row.protocol)
        n_folds = len(files.folds) or PROTOCOLS[row.protocol].folds
        summaries.append(summarise(row, those, n_folds))
    differences = differences_table(rows)
    write_table(results_table(results, output), output / "results.csv")
    write_table(differences, output / "differences.csv")
    with atomic_write(output / "table.md") as temporary:
        text = table_text(summaries, recipes, differences, n_left)
        temporary.write_text(text, encoding="utf-8", newline="\n")
    if summaries:
        plot_comparison(summaries, output / "comparison.png")
