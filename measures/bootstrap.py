"""How sure a number is: bootstrap over people, slices by group, paired differences.

Photos of one person are no independent observations, so people are drawn, not photos. A
`PeopleMeasure` is a measure written once, as a function of how often each person counts; from it
come the number itself, its interval, its slices and the difference of two models. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from measures.classes import ratio

N_DRAWS = 2000  # of the bootstrap; the ends of its interval then stand on 50 draws each

CONFIDENCE = 0.95

FEW_PEOPLE = 10  # a slice of fewer is marked, and no gap is named with it


@dataclass(frozen=True)
class PeopleMeasure:
    """A measure as a function of how often each person counts.

    people: (P,) names, sorted.
    of_weights: people's weights, (B, P) float64, to B values, NaN where undefined.
    photos: (P, C) photos of each person in each class that the measure is taken over.
    """

    people: np.ndarray
    of_weights: Callable[[np.ndarray], np.ndarray]
    photos: np.ndarray

    @property
    def value(self) -> float:
        """The measure with everybody counted once."""
        return float(self.of_weights(np.ones((1, len(self.people))))[0])

    def at(self, people: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the values for weights, (B, len(people)), of all of `people`, sorted."""
        return self.of_weights(weights[:, np.searchsorted(people, self.people)])


class Interval(NamedTuple):
    """A measure with the ends of its bootstrap interval over people.

    The ends are NaN for a single person. A score without an error has an interval without width:
    draws repeat what was seen, and no error was.

    absent_classes: how many classes a draw lacked on average; they dropped out of it.
    undefined_draws: draws left out, as nothing could be compared in them.
    """

    value: float
    low: float
    high: float
    n_photos: int
    n_people: int
    absent_classes: float
    undefined_draws: int


def count_table(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return how often each (row, column) occurs, `shape` int64."""
    cells = rows * shape[1] + columns
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)


def people_balanced_accuracy(
    true: np.ndarray, predicted: np.ndarray, people: np.ndarray, *, class_is_person: bool = False
) -> PeopleMeasure:
    """Return balanced accuracy: each class's recall over photos weighted by their person.

    Args:
        true: (N,) class indices.
        predicted: (N,) class indices.
        people: (N,) who is on the photo.
        class_is_person: the classes are the people themselves (identity). Who is drawn twice is
            then two classes; counted as one, the interval would be a quarter too narrow.
    """
    names, person = np.unique(people, return_inverse=True)
    classes, label = np.unique(true, return_inverse=True)
    shape, right = (len(names), len(classes)), true == predicted
    photos, hits = (
        count_table(person, label, shape),
        count_table(person[right], label[right], shape),
    )

    def of_weights(weights: np.ndarray) -> np.ndarray:
        seen = weights @ photos  # (B, C)
        recall = ratio(weights @ hits, seen)
        shares = weights @ (photos > 0) if class_is_person else (seen > 0).astype(np.float64)
        return ratio(np.nansum(recall * shares, axis=1), shares.sum(axis=1))

    return PeopleMeasure(
        names, of_weights, photos.sum(axis=1, keepdims=True) if class_is_person else photos
    )


def people_mean(values: np.ndarray, people: np.ndarray) -> PeopleMeasure:
    """Return the mean over photos weighted by their person: accuracy, MAE, rank-k, mAP.

    Args:
        values: (N,) one per photo, or (N, n_draws) one per photo and gallery drawn; NaN (a photo
            without a mate, or in the gallery itself) drops out.
        people: (N,) who is on the photo.
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
    """Return the area under the ROC curve, each pair of photos weighted by both their people.

    Args:
        true: (N,) 0 or 1.
        scores: (N,) higher for class 1.
        people: (N,) who is on the photo.

    Source: Hanley and McNeil 1982: the share of pairs in the right order, ties counted half.
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
    """Return the mean of measures whose scores must not be pooled: folds or seeds, each a model's.

    NaN where one of them is. A photo counts once for each measure that it is in.
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


def draw_people(n_people: int, n_draws: int, seed: int) -> np.ndarray:
    """Return how often each person is drawn, (n_draws, n_people) float64, rows summing to n_people.

    Source: Efron 1979; people, as photos of one person are no independent observations.
    """
    if not n_people:
        return np.zeros((n_draws, 0))
    chances = np.full(n_people, 1 / n_people)
    drawn = np.random.default_rng(seed).multinomial(n_people, chances, size=n_draws)
    return drawn.astype(np.float64)


def _percentiles(draws: np.ndarray, n_people: int, confidence: float) -> tuple[float, float]:
    """Return the ends of the percentile interval; NaN for one person, or without a defined draw."""
    defined = draws[~np.isnan(draws)]
    if n_people < 2 or not len(defined):
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def _interval(
    measure: PeopleMeasure, people: np.ndarray, weights: np.ndarray, confidence: float
) -> tuple[Interval, np.ndarray]:
    """Return the measure's interval over weights of `people`, and the (B,) values it stands on."""
    draws = measure.at(people, weights)
    seen = weights[:, np.searchsorted(people, measure.people)] @ measure.photos
    low, high = _percentiles(draws, len(measure.people), confidence)
    interval = Interval(
        value=measure.value,
        low=low,
        high=high,
        n_photos=int(measure.photos.sum()),
        n_people=len(measure.people),
        absent_classes=float((seen == 0).sum(axis=1).mean()),
        undefined_draws=int(np.isnan(draws).sum()),
    )
    return interval, draws


def bootstrap(
    measure: PeopleMeasure, *, seed: int, n_draws: int = N_DRAWS, confidence: float = CONFIDENCE
) -> Interval:
    """Return the measure with its percentile interval over draws of people with replacement."""
    weights = draw_people(len(measure.people), n_draws, seed)
    return _interval(measure, measure.people, weights, confidence)[0]


class Difference(NamedTuple):
    """First minus second, with its interval.

    more_than_chance: the interval leaves out 0, and stands on at least `FEW_PEOPLE` people.
    """

    value: float
    low: float
    high: float
    n_people: int
    more_than_chance: bool


def paired_difference(
    first: PeopleMeasure,
    second: PeopleMeasure,
    *,
    seed: int,
    n_draws: int = N_DRAWS,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Return the difference of a measure of two models on the same people, drawn together.

    Raises:
        ValueError: the people are not the same.
    """
    people = first.people
    if not np.array_equal(people, second.people):
        n_other = len(np.setxor1d(people, second.people))
        raise ValueError(f"a paired difference needs the same people; {n_other} are in one only")
    weights = draw_people(len(people), n_draws, seed)
    draws = first.of_weights(weights) - second.of_weights(weights)
    low, high = _percentiles(draws, len(people), confidence)
    apart = len(people) >= FEW_PEOPLE and (low > 0 or high < 0)
    return Difference(first.value - second.value, low, high, len(people), apart)


class Gap(NamedTuple):
    """The widest gap between two slices: the best and the worst by value, best minus worst.

    The pair was chosen for its gap, so the interval makes it look a little surer than it is.
    """

    highest: Any
    lowest: Any
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Slices:
    """A measure by group: its interval, the groups of under `FEW_PEOPLE` people, the widest gap.

    gap: None where fewer than two groups have enough people and a value.
    """

    intervals: dict[Any, Interval]
    few_people: tuple[Any, ...]
    gap: Gap | None


def by_group(
    measure: Callable[[np.ndarray], PeopleMeasure],
    groups: np.ndarray,
    people: np.ndarray,
    *,
    seed: int,
    n_draws: int = N_DRAWS,
    confidence: float = CONFIDENCE,
) -> Slices:
    """Return a measure within each group of photos; one draw of people serves all groups.

    Args:
        measure: row indices, (n,), to the measure of these rows alone. Retrieval is sliced by
            query: of ranks found in the whole gallery, those of the rows.
        groups: (N,) gender, age group, skin colour or accessories of each row.
        people: (N,) who is on the photo; a person may be in several groups.
        seed: of the draws.
        n_draws: of the bootstrap.
        confidence: of the intervals.
    """
    names = np.unique(people)
    weights = draw_people(len(names), n_draws, seed)
    intervals, draws = {}, {}
    for group in np.unique(groups).tolist():
        part = measure(np.flatnonzero(groups == group))
        intervals[group], draws[group] = _interval(part, names, weights, confidence)
    few = tuple(group for group, found in intervals.items() if found.n_people < FEW_PEOPLE)
    values = {g: found.value for g, found in intervals.items() if g not in few}
    rated = sorted((g for g in values if not np.isnan(values[g])), key=lambda g: values[g])
    if len(rated) < 2:
        return Slices(intervals, few, None)
    low, high = rated[0], rated[-1]
    ends = _percentiles(draws[high] - draws[low], len(names), confidence)
    return Slices(intervals, few, Gap(high, low, values[high] - values[low], *ends))
