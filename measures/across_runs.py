"""Averages over folds and seeds, and paired differences of averages: arrays in, numbers out.

Scores of different models are never pooled: a measure is computed for each run, averaged over the
seeds of a fold, then over folds. Intervals are over the people of all folds together.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from measures.intervals import (
    Difference,
    Interval,
    PeopleMeasure,
    interval_of,
    paired_difference,
    people_average,
)

MIN_SEEDS = 3  # in each fold of both rows, so that their difference is one of the backbones

MeasureKey = tuple[str, str]  # task, key of `registry.MEASURES`

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """One run's headline measures on the split that its protocol reports.

    fold: None if the protocol has no folds.
    people: (N,) the person on each photo.
    frame_numbers: (N,) float, NaN where unknown; with `people`, it identifies a photo.
    measures: headline measures as functions of people's weights, in the order of tables.
    baselines: measure -> baseline -> its value.
    """

    fold: int | None
    seed: int
    people: np.ndarray
    frame_numbers: np.ndarray
    measures: Mapping[MeasureKey, PeopleMeasure]
    baselines: Mapping[MeasureKey, Mapping[str, float]]


def shared_measures(runs: Sequence[ScoredRun]) -> list[MeasureKey]:
    """Return the measures that all runs have, in the order of the first run."""
    return [key for key in runs[0].measures if all(key in run.measures for run in runs)]


def folds_of(runs: Sequence[ScoredRun]) -> set[int | None]:
    """Return the folds of the runs."""
    return {run.fold for run in runs}


def in_folds(runs: Sequence[ScoredRun], folds: set[int | None]) -> tuple[ScoredRun, ...]:
    """Return the runs of `folds`."""
    return tuple(run for run in runs if run.fold in folds)


# ----------------------------------------------------------------------------- averages


def mean_over_folds(
    runs: Sequence[ScoredRun],
    value_of: Callable[[ScoredRun], Value],
    mean: Callable[[list[Value]], Value],
) -> Value:
    """Return the mean over folds of the mean over each fold's seeds."""
    by_fold: dict[int | None, list[Value]] = {}
    for run in runs:
        by_fold.setdefault(run.fold, []).append(value_of(run))
    return mean([mean(values) for values in by_fold.values()])


@functools.cache
def average(runs: tuple[ScoredRun, ...], key: MeasureKey) -> PeopleMeasure:
    """Return a measure's mean over folds and seeds as a function of people's weights."""
    return mean_over_folds(runs, lambda run: run.measures[key], people_average)


@functools.cache
def average_interval(runs: tuple[ScoredRun, ...], key: MeasureKey) -> Interval:
    """Return a measure's mean over folds and seeds with its interval over people."""
    return interval_of(average(runs, key))


def average_baselines(runs: Sequence[ScoredRun], key: MeasureKey) -> dict[str, float]:
    """Return a measure's baselines that all runs have, averaged like the measure."""
    known = [run.baselines.get(key, {}) for run in runs]

    def mean_of(baseline: str) -> float:
        return mean_over_folds(
            runs, lambda run: run.baselines[key][baseline], lambda values: float(np.mean(values))
        )

    return {name: mean_of(name) for name in known[0] if all(name in values for values in known)}


def sd_over_folds(runs: Sequence[ScoredRun], key: MeasureKey) -> float:
    """Return the standard deviation of a measure between folds; NaN for fewer than two."""
    means = [average(in_folds(runs, {fold}), key).value for fold in folds_of(runs)]
    return float(np.std(means, ddof=1)) if len(means) > 1 else np.nan


# ----------------------------------------------------------------------------- differences


def same_photos(first: Sequence[ScoredRun], second: Sequence[ScoredRun]) -> bool:
    """Return whether all runs of a fold, of both averages, were evaluated on the same photos."""
    first_of_fold: dict[int | None, ScoredRun] = {}
    for run in (*first, *second):
        other = first_of_fold.setdefault(run.fold, run)
        same_people = np.array_equal(other.people, run.people)
        frames = other.frame_numbers, run.frame_numbers
        if not (same_people and np.array_equal(*frames, equal_nan=True)):
            return False
    return True


def n_seeds(*rows: Sequence[ScoredRun]) -> int:
    """Return the number of seeds in the fold of any row that has the fewest."""
    return min(min(Counter(run.fold for run in runs).values()) for runs in rows)


def seed_variances(runs: Sequence[ScoredRun], key: MeasureKey) -> list[tuple[float, float]]:
    """Return each fold's share in the variance of an average between seeds, and its degrees.

    Trainings of different folds are independent, also with the same seed.
    """
    by_fold: dict[int | None, list[float]] = {}
    for run in runs:
        by_fold.setdefault(run.fold, []).append(run.measures[key].value)
    return [
        (float(np.var(values, ddof=1)) / len(values) / len(by_fold) ** 2, len(values) - 1)
        for values in by_fold.values()
    ]


@functools.cache
def paired_differences(
    first: tuple[ScoredRun, ...], second: tuple[ScoredRun, ...]
) -> dict[MeasureKey, Difference]:
    """Return first minus second of every measure that both have, paired over people.

    With `MIN_SEEDS` seeds in each fold of both, intervals also contain the variation between seeds,
    somewhat too much of it: the jackknife over people has its part that differs between people.

    Args:
        first: runs to average.
        second: runs to average, of the same folds and photos as `first`.
    """
    with_seeds = n_seeds(first, second) >= MIN_SEEDS
    differences = {}
    for key in shared_measures((*first, *second)):
        seeds = [*seed_variances(first, key), *seed_variances(second, key)] if with_seeds else []
        differences[key] = paired_difference(average(first, key), average(second, key), seeds)
    return differences
