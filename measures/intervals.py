"""Confidence intervals: jackknife over people, paired differences, values by group.

Photos of one person are not independent, so people are left out, not photos. A `PeopleMeasure` is a
measure as a function of how often each person counts; its value, interval, values by group and the
difference between two models all come from that function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from measures.classes import ratio

CONFIDENCE = 0.95

INTERVAL_METHOD = "jackknife over people, Student's t"

FEW_PEOPLE = 10  # fewer people are marked as too few, and not compared with other groups


@dataclass(frozen=True)
class PeopleMeasure:
    """A measure as a function of how often each person counts.

    people: (P,) names, sorted.
    of_weights: maps people's weights, (B, P) float64, to B values, NaN where undefined.
    shares: (P,) float64, each person's share in the measure; the sum is 1.
    n_photos: number of photos that are measured.
    is_rate: whether values lie in [0, 1]; so do the ends of the interval then.
    minimum: lowest possible value, if it is no rate.
    """

    people: np.ndarray
    of_weights: Callable[[np.ndarray], np.ndarray]
    shares: np.ndarray
    n_photos: int
    is_rate: bool = True
    minimum: float = -np.inf

    @property
    def value(self) -> float:
        """The measure with everybody counted once."""
        return float(self.of_weights(np.ones((1, len(self.people))))[0])

    @cached_property
    def leave_one_out(self) -> np.ndarray:
        """The measure without each person, (P,)."""
        return self.of_weights(1 - np.eye(len(self.people)))

    @property
    def effective_people(self) -> float:
        """How many people with equal shares would be as informative; at most P.

        Source: Kish 1965, Survey Sampling, effective sample size (sum w)^2 / sum w^2.
        """
        return effective_number(self.shares)

    def at(self, people: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the values for weights, (B, len(people)), of a sorted superset of its people."""
        return self.of_weights(weights[:, np.searchsorted(people, self.people)])

    def shares_of(self, people: np.ndarray) -> np.ndarray:
        """Return the shares of a sorted superset of its people; 0 for the others."""
        shares = np.zeros(len(people))
        shares[np.searchsorted(people, self.people)] = self.shares
        return shares


def effective_number(shares: np.ndarray) -> float:
    """Return Kish's effective number of (P,) shares; 0 where all are 0."""
    return float(shares.sum() ** 2 / (shares**2).sum()) if shares.any() else 0.0


def normalised(counts: np.ndarray) -> np.ndarray:
    """Return each person's share, (P,), of counts, (P, C), averaged over columns that are not 0."""
    columns = counts[:, counts.any(axis=0)]
    return (columns / columns.sum(axis=0)).mean(axis=1) if columns.size else np.zeros(len(counts))


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
        classes_are_people: a person who counts twice is then two classes.
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

    counts = np.ones((len(names), 1)) if classes_are_people else photos
    return PeopleMeasure(names, of_weights, normalised(counts), len(true))


def people_mean(values: np.ndarray, people: np.ndarray, *, is_rate: bool = False) -> PeopleMeasure:
    """Return the mean over photos: accuracy, absolute error, rank-k, average precision.

    Args:
        values: (N,) one per photo, or (N, n_draws) one per photo and gallery; NaN is left out.
        people: (N,) person on the photo.
        is_rate: whether values lie in [0, 1].
    """
    columns = values if values.ndim == 2 else values[:, None]
    counted = ~np.isnan(columns)
    rows = counted.any(axis=1)
    names, person = np.unique(people[rows], return_inverse=True)
    sums = np.bincount(person, np.nansum(columns[rows], axis=1), minlength=len(names))
    counts = np.bincount(person, counted[rows].sum(axis=1), minlength=len(names))

    def of_weights(weights: np.ndarray) -> np.ndarray:
        return ratio(weights @ sums, weights @ counts)

    shares = normalised(counts[:, None])
    return PeopleMeasure(names, of_weights, shares, int(rows.sum()), is_rate)


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

    return PeopleMeasure(names, of_weights, normalised(photos), len(true))


def people_average(measures: Sequence[PeopleMeasure]) -> PeopleMeasure:
    """Return the mean of a measure over models (folds, seeds), whose scores must not be pooled.

    NaN where one of them is. A photo counts once for each model that was evaluated on it.
    """
    people = np.unique(np.concatenate([measure.people for measure in measures]))
    return PeopleMeasure(
        people,
        lambda weights: np.mean([measure.at(people, weights) for measure in measures], axis=0),
        np.mean([measure.shares_of(people) for measure in measures], axis=0),
        sum(measure.n_photos for measure in measures),
        measures[0].is_rate,
        measures[0].minimum,
    )


# ----------------------------------------------------------------------------- intervals


class Interval(NamedTuple):
    """A measure with the ends of its 95 % confidence interval over people.

    The ends are NaN for a single person, and where the measure is undefined without one of them.

    effective_people: `PeopleMeasure.effective_people`.
    """

    value: float
    low: float
    high: float
    n_photos: int
    n_people: int
    effective_people: float


def standard_error(leave_one_out: np.ndarray) -> float:
    """Return the standard error of a measure from its values without each person, (P,).

    NaN for one person, and where one of the values is NaN.

    Source: Efron and Stein 1981, The jackknife estimate of variance.
    """
    n_people = len(leave_one_out)
    if n_people < 2:
        return np.nan
    return float(np.sqrt((n_people - 1) * leave_one_out.var()))


def t_quantile(degrees: float) -> float:
    """Return how many standard errors an end of the interval is away from the value."""
    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) if degrees > 0 else np.nan


def interval_of(measure: PeopleMeasure) -> Interval:
    """Return the measure with its confidence interval.

    The interval is Student's t with the jackknife's standard error and the effective number of
    people minus 1 degrees of freedom; of a rate on the logit scale. A rate of 0 or 1, whose
    standard error is 0, has a one-sided limit: what n effective people without an error exclude
    (about 3 / n).

    docs/results/coverage.md has its coverage.

    Source: logit scale: Agresti 2013, Categorical Data Analysis, section 3.2.6; one-sided limit:
    Hanley and Lippman-Hand 1983, If nothing goes wrong, is everything all right?
    """
    value, effective = measure.value, measure.effective_people
    error = standard_error(measure.leave_one_out)
    distance = t_quantile(effective - 1) * error
    low, high = max(value - distance, measure.minimum), value + distance
    if measure.is_rate and value in (0, 1) and not np.isnan(error):
        limit = 1 - (1 - CONFIDENCE) ** (1 / effective)
        low, high = (0.0, limit) if value == 0 else (1 - limit, 1.0)
    elif measure.is_rate and 0 < value < 1:
        distance /= value * (1 - value)
        low, high = (float(expit(logit(value) + d)) for d in (-distance, distance))
    return Interval(value, low, high, measure.n_photos, len(measure.people), effective)


class Difference(NamedTuple):
    """First minus second, with its interval.

    significant: the interval excludes 0, and there are at least `FEW_PEOPLE` people.
    p_value: two-sided, of Student's t; not corrected for other comparisons.
    """

    value: float
    low: float
    high: float
    n_people: int
    significant: bool
    p_value: float


def paired_difference(
    first: PeopleMeasure,
    second: PeopleMeasure,
    other_variances: Sequence[tuple[float, float]] = (),
) -> Difference:
    """Return the difference of a measure between two models, paired over people.

    Args:
        first: of one model, or averaged over several.
        second: of the other.
        other_variances: variance and degrees of freedom of what adds to the jackknife's variance
            over people, such as the seeds of the training.

    Raises:
        ValueError: the people are not the same.

    Source: degrees of freedom of a sum of variances: Satterthwaite 1946.
    """
    if not np.array_equal(first.people, second.people):
        n_other = len(np.setxor1d(first.people, second.people))
        raise ValueError(f"a paired difference needs the same people; {n_other} are in one only")
    value, n_people = first.value - second.value, len(first.people)
    error = standard_error(first.leave_one_out - second.leave_one_out)
    degrees = effective_number(first.shares + second.shares) - 1
    if other_variances and degrees > 0:
        variances, own_degrees = np.array([(error**2, degrees), *other_variances]).T
        error = np.sqrt(variances.sum())
        degrees = error**4 / (variances**2 / own_degrees).sum() if error else degrees
    distance = t_quantile(degrees) * error
    low, high = value - distance, value + distance
    if first.is_rate:
        low, high = max(low, -1), min(high, 1)
    excludes_zero = low > 0 or high < 0
    if error:
        p_value = 2 * float(stdtr(degrees, -abs(value) / error)) if degrees > 0 else np.nan
    else:
        p_value = float(value == 0)
    significant = n_people >= FEW_PEOPLE and bool(excludes_zero)
    return Difference(value, float(low), float(high), n_people, significant, p_value)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values, (N,), corrected for N comparisons; NaN stays, and is no comparison.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    corrected = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: (~np.isnan(p_values)).sum()]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return corrected


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
    measures: Mapping[Any, PeopleMeasure], people: np.ndarray
) -> tuple[dict[Any, Interval], Gap | None]:
    """Return the interval of each group and the largest gap, paired over people of both groups.

    The gap is None unless two groups of at least `FEW_PEOPLE` people have a value.

    Args:
        measures: of the photos of each group.
        people: everybody; a person may be in several groups.
    """
    intervals = {group: interval_of(measure) for group, measure in measures.items()}
    compared = [
        group
        for group, found in intervals.items()
        if found.n_people >= FEW_PEOPLE and not np.isnan(found.value)
    ]
    if len(compared) < 2:
        return intervals, None
    lowest, *_, highest = sorted(compared, key=lambda group: intervals[group].value)
    everyone = np.unique(people)
    without = 1 - np.eye(len(everyone))
    low, high = measures[lowest], measures[highest]
    error = standard_error(high.at(everyone, without) - low.at(everyone, without))
    shares = high.shares_of(everyone) + low.shares_of(everyone)
    distance = t_quantile(effective_number(shares) - 1) * error
    value = high.value - low.value
    ends = value - distance, value + distance
    if high.is_rate:
        ends = max(ends[0], -1), min(ends[1], 1)
    return intervals, Gap(highest, lowest, value, *ends)
