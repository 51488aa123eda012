"""Likelihood ratios of comparison scores: calibration, bounds, cost (Cllr), Tippett plot, PAV.

`log_ratios` are natural logarithms; names with log10 are what people read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.isotonic import isotonic_regression
from sklearn.linear_model import LogisticRegression

from measures.classes import ratio
from measures.intervals import PeopleMeasure, normalised

ELUB_STEP = 0.01  # accuracy of the bounds, in log10(LR)

MAX_BLOCKS = 10  # of people in cross-validation: 55 calibrations, on about 80 % of the people

SUPPORT = (  # least log10(LR), word: see `verbal_equivalent`
    (np.log10(2), "weak"),
    (1.0, "moderate"),
    (2.0, "moderately strong"),
    (3.0, "strong"),
    (4.0, "very strong"),
    (6.0, "extremely strong"),
)


# ----------------------------------------------------------------------------- words


def support_level(log10_ratios: np.ndarray) -> np.ndarray:
    """Return the place in `SUPPORT`, from 1, negative for different people; 0: no support."""
    strength = np.abs(log10_ratios).round(9)  # bounds are multiples of `ELUB_STEP`, in float64
    places = np.searchsorted([least for least, _ in SUPPORT], strength, side="right")
    return np.where(log10_ratios < 0, -places, places)


def describe_support(level: int) -> str:
    """Return the words for a `support_level`."""
    if not level:
        return "no support for either"
    who = "the same person" if level > 0 else "different people"
    return f"{SUPPORT[abs(level) - 1][1]} support for {who}"


def verbal_equivalent(log10_ratio: float) -> str:
    """Return the words for a likelihood ratio, such as "moderate support for the same person".

    Source: ENFSI guideline for evaluative reporting in forensic science, 2015: from 2 weak, 10
    moderate, 100 moderately strong, 1,000 strong, 10,000 very strong, 1,000,000 extremely strong.
    """
    return describe_support(int(support_level(np.array(log10_ratio))))


# ----------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class ScoreCalibration:
    """A linear map from a score to the natural logarithm of its likelihood ratio, with bounds.

    log10_min, log10_max: bounds of log10(LR), as `elub` returns them.
    """

    slope: float
    intercept: float
    log10_min: float
    log10_max: float

    def log_likelihood_ratio(self, scores: np.ndarray) -> np.ndarray:
        """Return ln(LR) of same person versus different people, in the shape of `scores`."""
        bounds = np.log(10) * np.array([self.log10_min, self.log10_max])
        return np.clip(self.slope * scores + self.intercept, *bounds)


def fit_calibration(
    scores: np.ndarray, genuine: np.ndarray, weights: np.ndarray | None = None
) -> ScoreCalibration | None:
    """Return the calibration by logistic regression; None if all scores or labels are equal.

    Genuine and impostor pairs have equal total weight: prior odds of 1 make the posterior odds the
    likelihood ratio. An L2 penalty (C = 1, scores scaled to a standard deviation of 1) keeps the
    ratio finite where the scores separate the kinds perfectly.

    Args:
        scores: (M,) of pairs of people who are in no pair that is evaluated.
        genuine: (M,) bool.
        weights: as of `elub`, for the bounds only.

    Source: Morrison 2013, Tutorial on logistic-regression calibration and fusion, Australian
    Journal of Forensic Sciences 45(2), 173-197.
    """
    spread = scores.std() if len(scores) else 0.0
    if not spread or genuine.all() or not genuine.any():
        return None
    model = LogisticRegression(class_weight="balanced", solver="newton-cholesky")
    model.fit((scores / spread)[:, None], genuine)
    slope, intercept = float(model.coef_[0, 0] / spread), float(model.intercept_[0])
    bounds = elub((slope * scores + intercept) / np.log(10), genuine, weights)
    return ScoreCalibration(slope, intercept, *bounds)


def elub(
    log10_ratios: np.ndarray, genuine: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Return the empirical lower and upper bound of log10(LR), at most and at least 0.

    Whoever decides for "same person" above a threshold t pays 1 for each genuine pair missed and t
    for each impostor pair accepted, as means over the pairs. With one misleading pair of each kind
    added, the ratios may go from 1 only as far as deciding by them costs no more than deciding
    without, at every threshold on the way.

    Args:
        log10_ratios: (M,) with at least one pair of each kind.
        genuine: (M,) bool.
        weights: (M,) of the pairs; the added pairs weigh 1. Default: 1.

    Source: Vergeer et al. 2016, Numerical likelihood ratios outputted by LR systems are often
    based on extrapolation: when to stop extrapolating? Science and Justice 56(6), 482-491.
    """
    weights = np.ones(len(log10_ratios)) if weights is None else weights
    totals = weights[genuine].sum() + 1, weights[~genuine].sum() + 1  # with the added pair
    lowest = max(log10_ratios.min(), -np.log10(totals[0]))
    highest = min(log10_ratios.max(), np.log10(totals[1]))
    steps = min(0, int(lowest // ELUB_STEP)), max(0, int(highest // ELUB_STEP) + 1)
    thresholds = ELUB_STEP * np.arange(steps[0], steps[1] + 1)
    n_below = np.searchsorted(thresholds, log10_ratios)  # thresholds that a ratio exceeds
    above = []
    for kind in (genuine, ~genuine):
        counts = np.bincount(n_below[kind], weights[kind], minlength=len(thresholds) + 1)
        above.append(counts[:0:-1].cumsum()[::-1])
    missed, accepted = 1 - above[0] / totals[0], (above[1] + 1) / totals[1]
    odds = 10**thresholds
    too_costly = missed + odds * accepted > np.minimum(1, odds) * (1 + 1e-12)  # rounding
    left = thresholds[too_costly & (thresholds <= 0)]
    right = thresholds[too_costly & (thresholds >= 0)]
    low = np.max(left + ELUB_STEP, initial=thresholds[0])
    high = np.min(right - ELUB_STEP, initial=thresholds[-1])
    return float(min(low, 0)), float(max(high, 0))


@dataclass(frozen=True)
class CrossCalibration:
    """Calibrations for pairs of people who also calibrate: none was fitted on its own people.

    people: (P,) names, sorted; person i is in block i modulo n_blocks.
    by_blocks: blocks of a pair's people, lower first -> calibration without these blocks' people.
    """

    people: np.ndarray
    n_blocks: int
    by_blocks: Mapping[tuple[int, int], ScoreCalibration]

    def log_likelihood_ratio(
        self, scores: np.ndarray, first: np.ndarray, second: np.ndarray, people: np.ndarray
    ) -> np.ndarray:
        """Return ln(LR) of pairs, (M,): their scores, indices of photos, (N,) person on each."""
        block = np.searchsorted(self.people, people) % self.n_blocks
        low, high = np.sort([block[first], block[second]], axis=0)
        found = np.empty(len(scores))
        for blocks, calibration in self.by_blocks.items():
            rows = (low == blocks[0]) & (high == blocks[1])
            found[rows] = calibration.log_likelihood_ratio(scores[rows])
        return found

    @property
    def n_people(self) -> int:
        """The number of people that the smallest calibration was fitted on."""
        block = np.arange(len(self.people)) % self.n_blocks
        return min(int((~np.isin(block, left_out)).sum()) for left_out in self.by_blocks)

    @property
    def parts(self) -> list[ScoreCalibration]:
        """The calibrations."""
        return list(self.by_blocks.values())


def cross_calibrate(
    scores: np.ndarray, first: np.ndarray, second: np.ndarray, people: np.ndarray
) -> CrossCalibration | None:
    """Return calibrations of pairs by leaving out the people of each pair; None: too few people.

    Up to `MAX_BLOCKS` people are left out one by one, more in that many blocks. For the bounds, all
    photo pairs of the same two people count together as one: they are not independent, so more
    photos of the same people must not widen the bounds. All calibrations get the narrowest bounds.

    Args:
        scores: (M,) of all pairs.
        first: (M,) index of the pair's one photo.
        second: (M,) index of its other photo.
        people: (N,) person on each photo.
    """
    names, person = np.unique(people, return_inverse=True)
    n_people, n_blocks = len(names), min(len(names), MAX_BLOCKS)
    one, other = np.sort([person[first], person[second]], axis=0)
    genuine, couple = one == other, one * n_people + other
    weights = 1 / np.bincount(couple)[couple]
    by_blocks = {}
    for low in range(n_blocks):
        for high in range(low, n_blocks):
            kept = ~np.isin(np.arange(n_people) % n_blocks, (low, high))
            rows = kept[one] & kept[other]
            calibration = fit_calibration(scores[rows], genuine[rows], weights[rows])
            if calibration is None:
                return None
            by_blocks[low, high] = calibration
    if not by_blocks:
        return None
    parts = by_blocks.values()
    bounds = max(x.log10_min for x in parts), min(x.log10_max for x in parts)
    bounded = {
        k: replace(x, log10_min=bounds[0], log10_max=bounds[1]) for k, x in by_blocks.items()
    }
    return CrossCalibration(names, n_blocks, bounded)


# ----------------------------------------------------------------------------- measures


class PairMeans(NamedTuple):
    """Means of a value of pairs for weights of the people, (B, P): (B,), NaN without a pair.

    A genuine pair of person i weighs w_i, an impostor pair of i and j w_i w_j. The shares are the
    people's shares in the pairs of each kind, (P,).
    """

    people: np.ndarray
    genuine_shares: np.ndarray
    impostor_shares: np.ndarray
    genuine: Callable[[np.ndarray], np.ndarray]
    impostor: Callable[[np.ndarray], np.ndarray]


def pair_means(
    values: np.ndarray, first: np.ndarray, second: np.ndarray, people: np.ndarray
) -> PairMeans:
    """Return the means over genuine and over impostor pairs.

    Args:
        values: (M,) of the pairs.
        first: (M,) index of the pair's one photo.
        second: (M,) index of its other photo.
        people: (N,) person on each photo.
    """
    names, person = np.unique(people, return_inverse=True)
    one, other = person[first], person[second]
    genuine, n_people = one == other, len(names)
    sum_and_count = (values, np.ones(len(values)))
    same = [np.bincount(one[genuine], v[genuine], minlength=n_people) for v in sum_and_count]
    cells = (one[~genuine], other[~genuine])
    different = [csr_array((v[~genuine], cells), shape=(n_people,) * 2) for v in sum_and_count]

    def of_impostors(weights: np.ndarray) -> np.ndarray:
        columns = weights.T  # (P, B)
        return ratio(*((columns * (v @ columns)).sum(axis=0) for v in different))

    ends = np.concatenate(cells)
    return PairMeans(
        names,
        normalised(same[1][:, None]),
        normalised(np.bincount(ends, minlength=n_people)[:, None]),
        lambda weights: ratio(*(weights @ v for v in same)),
        of_impostors,
    )


def people_cllr(
    log_ratios: np.ndarray, first: np.ndarray, second: np.ndarray, people: np.ndarray
) -> PeopleMeasure:
    """Return the log-likelihood-ratio cost in bits; further arguments as of `pair_means`.

    0 is perfect, 1 no information; there is no upper bound. NaN without a genuine or an impostor
    pair.

    Source: Brümmer and du Preez 2006, Application-independent evaluation of speaker detection,
    Computer Speech and Language 20, 230-275.
    """
    genuine = people[first] == people[second]
    costs = np.logaddexp(0, np.where(genuine, -log_ratios, log_ratios)) / np.log(2)
    means = pair_means(costs, first, second, people)
    return PeopleMeasure(
        means.people,
        lambda w: (means.genuine(w) + means.impostor(w)) / 2,
        means.genuine_shares,
        len(people),
        is_rate=False,
        minimum=0,
    )


def people_pair_rate(
    events: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    people: np.ndarray,
    *,
    genuine: bool,
) -> PeopleMeasure:
    """Return the fraction of the genuine, or of the impostor pairs with an event.

    Args:
        events: (M,) bool of the pairs.
        first: as of `pair_means`.
        second: as of `pair_means`.
        people: as of `pair_means`.
        genuine: of genuine pairs, else of impostor pairs.
    """
    means = pair_means(events.astype(np.float64), first, second, people)
    of_weights = means.genuine if genuine else means.impostor
    shares = means.genuine_shares if genuine else means.impostor_shares
    return PeopleMeasure(means.people, of_weights, shares, len(people))


def people_misleading(
    log_ratios: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    people: np.ndarray,
    *,
    genuine: bool,
    beyond: float = 0.0,
) -> PeopleMeasure:
    """Return the fraction of pairs of one kind whose evidence supports the other.

    Args:
        log_ratios: (M,).
        first: as of `pair_means`.
        second: as of `pair_means`.
        people: as of `pair_means`.
        genuine: of genuine pairs those with log10(LR) < -beyond, else of impostor pairs those with
            log10(LR) > beyond.
        beyond: at least 0.
    """
    misleading = (-log_ratios if genuine else log_ratios) > beyond * np.log(10)
    return people_pair_rate(misleading, first, second, people, genuine=genuine)


def pav_posterior(scores: np.ndarray, genuine: np.ndarray) -> np.ndarray:
    """Return the probability of a genuine pair, (M,), by pool adjacent violators at equal priors.

    Args:
        scores: (M,) of pairs of both kinds; only their order counts.
        genuine: (M,) bool.
    """
    _, place = np.unique(scores, return_inverse=True)
    weights = np.where(genuine, 1 / genuine.sum(), 1 / (~genuine).sum())
    totals = np.bincount(place, weights)
    shares = np.bincount(place, weights * genuine) / totals
    return isotonic_regression(shares, sample_weight=totals)[place]


def pav_log10_ratio(log_ratios: np.ndarray, genuine: np.ndarray) -> np.ndarray:
    """Return log10(LR), (M,), after the best monotonic calibration on the same pairs; may be inf.

    Arguments as of `pav_posterior`.
    """
    posterior = pav_posterior(log_ratios, genuine)
    with np.errstate(divide="ignore"):
        return np.log10(posterior) - np.log10(1 - posterior)


def cllr_min(scores: np.ndarray, genuine: np.ndarray) -> float:
    """Return Cllr in bits after the best monotonic calibration on the same pairs (PAV).

    It measures discrimination alone; Cllr minus it is the loss by calibration. NaN without a
    genuine or an impostor pair. Arguments as of `pav_posterior`.

    Source: Brümmer and du Preez 2006, as `people_cllr`.
    """
    if genuine.all() or not genuine.any():
        return np.nan
    posterior = pav_posterior(scores, genuine)
    # LR = posterior odds, so 1 + 1 / LR = 1 / posterior and 1 + LR = 1 / (1 - posterior)
    costs = (-np.log2(posterior[genuine]), -np.log2(1 - posterior[~genuine]))
    return float(sum(cost.mean() for cost in costs) / 2)


def devpav(log_ratios: np.ndarray, genuine: np.ndarray) -> float:
    """Return the mean distance of log10(LR) from its PAV-transformed value; 0: calibrated.

    It is the area between the line of `pav_log10_ratio` over log10(LR) and the line of equality,
    where the former is finite, divided by the width of that part. NaN if no part is finite.

    Args:
        log_ratios: (M,), finite.
        genuine: (M,) bool.

    Source: Vergeer et al. 2021, Measuring calibration of likelihood-ratio systems: a comparison of
    four metrics, including a new metric devPAV, Forensic Science International 321, 110722.
    """
    if genuine.all() or not genuine.any():
        return np.nan
    transformed = pav_log10_ratio(log_ratios, genuine)
    finite = np.isfinite(transformed)
    reported, rows = np.unique(log_ratios[finite] / np.log(10), return_index=True)
    off = transformed[finite][rows] - reported
    if len(off) < 2:
        return float(np.abs(off).sum()) if len(off) else np.nan
    start, end = off[:-1], off[1:]
    sides = np.abs(start) + np.abs(end)
    # a trapezium, or two triangles where the lines cross
    crossed = ratio(start**2 + end**2, np.where(sides, sides, 1))
    areas = np.diff(reported) * np.where(start * end < 0, crossed, sides) / 2
    return float(areas.sum() / (reported[-1] - reported[0]))


class Tippett(NamedTuple):
    """Fraction of genuine and of impostor pairs with at least each log10(LR), (K,) each."""

    log10_ratio: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray


def tippett(log_ratios: np.ndarray, genuine: np.ndarray, n_points: int) -> Tippett:
    """Return the curves of a Tippett plot at equal steps; NaN without a pair of the kind.

    Args:
        log_ratios: (M,) natural logarithms of likelihood ratios, at least one.
        genuine: (M,) bool.
        n_points: at least 2.

    Source: Meuwly 2001; Drygajlo et al. 2015, ENFSI guideline on speaker recognition.
    """
    ratios = log_ratios / np.log(10)
    points = np.linspace(ratios.min(), ratios.max(), n_points)
    curves = []
    for kind in (np.sort(ratios[genuine]), np.sort(ratios[~genuine])):
        at_least = len(kind) - np.searchsorted(kind, points, side="left")
        curves.append(ratio(at_least, np.array(len(kind))))
    return Tippett(points, *curves)
