"""Confidence intervals: bootstrap over people, paired differences, values by group.

Photos of one person are not independent, so people are drawn, not photos. A `PeopleMeasure` is a
measure as a function of how often each person counts; its value, interval, values by group and the
difference between two models all come from that function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from measures.classes import ratio

N_DRAWS = 2000  # of the bootstrap: 50 of them lie beyond each end of the interval

CONFIDENCE = 0.95

FEW_PEOPLE = 10  # fewer people are marked as too few, and not compared with other groups


@dataclass(frozen=True)
class PeopleMeasure:
    """A measure as a function of how often each person counts.

    people: (P,) names, sorted.
    of_weights: maps people's weights, (B, P) float64, to B values, NaN where undefined.
    photos: (P, C) photos of each person in each class that the measure is averaged over.
    """

    people: np.ndarray
    of_weights: Callable[[np.ndarray], np.ndarray]
    photos: np.ndarray

    @property
    def value(self) -> float:
        """The measure with everybody counted once."""
        return float(self.of_weights(np.ones((1, len(self.people))))[0])

    def at(self, people: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the values for weights, (B, len(people)), of a sorted superset of its people."""
        return self.of_weights(weights[:, np.searchsorted(people, self.people)])


# ----------------------------------------------------------------------------- measures


def count_table(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return how often each (row, column) occurs, `shape` int64."""
    cells = rows * shape[1] + columns
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)


def people_balanced_accuracy(
    true: np.ndarray, predicted: np.ndarray, people: np.ndarray, *, classes_are_people: bool = False
) -> PeopleMeasure:
    """Return balanced accuracy.

    Args:
        true: (N,) class indices.
        predicted: (N,) class indices.
        people: (N,) person on the photo.
        classes_are_people: a person who is drawn twice then counts as two classes; as one class,
            the interval would be a quarter too narrow.
    """
    names, person = np.unique(people, return_inverse=True)
    present, label = np.unique(true, return_inverse=True)
    shape, correct = (len(names), len(present)), true == predicted
    photos = count_table(person, label, shape)
    hits = count_table(person[correct], label[correct], shape)

    def of_weights(weights: np.ndarray) -> np.ndarray:
        drawn = weights @ photos  # (B, C)
        recall = ratio(weights @ hits, drawn)
        shares = weights @ (photos > 0) if classes_are_people else (drawn > 0).astype(np.float64)
        return ratio(np.nansum(recall * shares, axis=1), shares.sum(axis=1))

    per_class = photos.sum(axis=1, keepdims=True) if classes_are_people else photos
    return PeopleMeasure(names, of_weights, per_class)


def people_mean(values: np.ndarray, people: np.ndarray) -> PeopleMeasure:
    """Return the mean over photos: accuracy, absolute error, rank-k, average precision.

    Args:
        values: (N,) one per photo, or (N, n_draws) one per photo and gallery; NaN is left out.
        people: (N,) person on the photo.
    """
    columns = values if values.ndim == 2 else values[:, None]
    counted = ~np.isnan(columns)
    rows = counted.any(axis=1)
    names, person = np.unique(people[rows], return_inverse=True)
    sums = np.bincount(person, np.nansum(columns[rows], axis=1), minlength=len(names))
    counts = np.bincount(person, counted[rows].sum(axis=1), minlength=len(names))
    photos = np.bincount(person, minlength=len(names))[:, None]
    return PeopleMeasure(names, lambda weights: ratio(weights @ sums, weights @ counts), photos)


def people_roc_auc(true: np.ndarray, scores: np.ndarray, people: np.ndarray) -> PeopleMeasure:
    """Return the area under the ROC curve; a pair's weight is the product of its people's.

    Args:
        true: (N,) 0 or 1.
        scores: (N,) higher for class 1.
        people: (N,) person on the photo.

    Source: Hanley and McNeil 1982: the fraction of pairs in the right order, ties counted half.
    """
    names, person = np.unique(people, return_inverse=True)
    own = np.eye(len(names))[person]  # (N, P)
    difference = scores[true == 1][:, None] - scores[true == 0]
    wins = own[true == 1].T @ (np.sign(difference) / 2 + 0.5) @ own[true == 0]  # (P, P)
    photos = count_table(person, true, (len(names), 2))

    def of_weights(weights: np.ndarray) -> np.ndarray:
        return ratio(((weights @ wins) * weights).sum(axis=1), (weights @ photos).prod(axis=1))

    return PeopleMeasure(names, of_weights, photos)


def people_average(measures: Sequence[PeopleMeasure]) -> PeopleMeasure:
    """Return the mean of a measure over models (folds, seeds), whose scores must not be pooled.

    NaN where one of them is. A photo counts once for each model that was evaluated on it.
    """
    people = np.unique(np.concatenate([measure.people for measure in measures]))
    photos = np.zeros((len(people), sum(measure.photos.shape[1] for measure in measures)))
    ends = np.cumsum([measure.photos.shape[1] for measure in measures])
    for measure, end in zip(measures, ends, strict=True):
        columns = np.arange(end - measure.photos.shape[1], end)
        photos[np.ix_(np.searchsorted(people, measure.people), columns)] = measure.photos
    return PeopleMeasure(
        people,
        lambda weights: np.mean([measure.at(people, weights) for measure in measures], axis=0),
        photos,
    )


def cache_draws(measure: PeopleMeasure) -> PeopleMeasure:
    """Return the measure with cached values: interval and differences use the same draws.

    2,000 draws of an equal error rate take seconds.
    """
    known: dict[int, np.ndarray] = {}

    def of_weights(weights: np.ndarray) -> np.ndarray:
        key = hash(weights.tobytes())
        if key not in known:
            known[key] = measure.of_weights(weights)
        return known[key]

    return replace(measure, of_weights=of_weights)


# ----------------------------------------------------------------------------- intervals


class Interval(NamedTuple):
    """A measure with the ends of its 95 % bootstrap interval over people.

    The ends are NaN for a single person. An error rate of 0 has an interval of width 0, because
    every draw repeats what was observed.

    absent_classes: mean number of classes that were missing in a draw.
    undefined_draws: number of draws that were left out because their value is NaN.
    """

    value: float
    low: float
    high: float
    n_photos: int
    n_people: int
    absent_classes: float
    undefined_draws: int


@functools.lru_cache(maxsize=4)  # an evaluation draws the same people repeatedly
def draw_weights(n_people: int, n_draws: int, seed: int) -> np.ndarray:
    """Return how often each person is drawn, (n_draws, n_people) float64, rows summing to n_people.

    Source: Efron 1979, bootstrap with replacement.
    """
    if not n_people:
        return np.zeros((n_draws, 0))
    probabilities = np.full(n_people, 1 / n_people)
    drawn = np.random.default_rng(seed).multinomial(n_people, probabilities, size=n_draws)
    weights = drawn.astype(np.float64)
    weights.flags.writeable = False
    return weights


def percentile_interval(draws: np.ndarray, n_people: int) -> tuple[float, float]:
    """Return the ends of the percentile interval; NaN for one person, or without a defined draw."""
    defined = draws[~np.isnan(draws)]
    if n_people < 2 or not len(defined):
        return np.nan, np.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def describe_draws(
    measure: PeopleMeasure, people: np.ndarray, weights: np.ndarray, draws: np.ndarray
) -> Interval:
    """Return the interval of a measure's values, (B,), at weights, (B, len(people))."""
    photos = weights[:, np.searchsorted(people, measure.people)] @ measure.photos
    low, high = percentile_interval(draws, len(measure.people))
    return Interval(
        value=measure.value,
        low=low,
        high=high,
        n_photos=int(measure.photos.sum()),
        n_people=len(measure.people),
        absent_classes=float((photos == 0).sum(axis=1).mean()),
        undefined_draws=int(np.isnan(draws).sum()),
    )


def bootstrap(measure: PeopleMeasure, *, seed: int, n_draws: int = N_DRAWS) -> Interval:
    """Return the measure with its percentile interval over draws of people with replacement."""
    weights = draw_weights(len(measure.people), n_draws, seed)
    return describe_draws(measure, measure.people, weights, measure.of_weights(weights))


class Difference(NamedTuple):
    """First minus second, with its interval.

    more_than_chance: the interval excludes 0, and there are at least `FEW_PEOPLE` people.
    """

    value: float
    low: float
    high: float
    n_people: int
    more_than_chance: bool


def paired_difference(
    first: PeopleMeasure, second: PeopleMeasure, *, seed: int, n_draws: int = N_DRAWS
) -> Difference:
    """Return the difference of a measure between two models, the same people drawn for both.

    Raises:
        ValueError: the people are not the same.
    """
    people = first.people
    if not np.array_equal(people, second.people):
        n_other = len(np.setxor1d(people, second.people))
        raise ValueError(f"a paired difference needs the same people; {n_other} are in one only")
    weights = draw_weights(len(people), n_draws, seed)
    low, high = percentile_interval(
        first.of_weights(weights) - second.of_weights(weights), len(people)
    )
    excludes_zero = low > 0 or high < 0
    return Difference(
        value=first.value - second.value,
        low=low,
        high=high,
        n_people=len(people),
        more_than_chance=len(people) >= FEW_PEOPLE and excludes_zero,
    )


class Gap(NamedTuple):
    """The largest difference between two groups: highest minus lowest value.

    The pair was selected for its difference, so the interval is somewhat too narrow.
    """

    highest: Any
    lowest: Any
    value: float
    low: float
    high: float


def by_group(
    measures: Mapping[Any, PeopleMeasure],
    people: np.ndarray,
    *,
    seed: int,
    n_draws: int = N_DRAWS,
) -> tuple[dict[Any, Interval], Gap | None]:
    """Return the interval of each group and the largest gap; the same people drawn for all groups.

    The gap is None unless two groups of at least `FEW_PEOPLE` people have a value.

    Args:
        measures: of the photos of each group.
        people: everybody; a person may be in several groups.
        seed: of the draws.
        n_draws: of the bootstrap.
    """
    everyone = np.unique(people)
    weights = draw_weights(len(everyone), n_draws, seed)
    draws = {group: measure.at(everyone, weights) for group, measure in measures.items()}
    intervals = {
        group: describe_draws(measure, everyone, weights, draws[group])
        for group, measure in measures.items()
    }
    compared = [
        group
        for group, found in intervals.items()
        if found.n_people >= FEW_PEOPLE and not np.isnan(found.value)
    ]
    if len(compared) < 2:
        return intervals, None
    lowest, *_, highest = sorted(compared, key=lambda group: intervals[group].value)
    value = intervals[highest].value - intervals[lowest].value
    ends = percentile_interval(draws[highest] - draws[lowest], len(everyone))
    return intervals, Gap(highest, lowest, value, *ends)
