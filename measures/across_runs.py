"""TODO."""

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

from data.splits import PROTOCOLS
from dataset_11k import TASKS
from measures.bootstrap import (
    Difference,
    Interval,
    PeopleMeasure,
    bootstrap,
    paired_difference,
    people_average,
    people_mean,
)
from measures.metrics_json import BOOTSTRAP_SEED, headline, task_answers
from measures.pairs import cosine_similarity, gallery_ranks
from pages.wording import CONTROLS, KINDS, headlines
from utils import safe_name

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
