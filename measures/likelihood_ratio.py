"""Likelihood ratios of comparison scores: calibration, cost (Cllr), Tippett plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from measures.bootstrap import PeopleMeasure, normalised
from measures.classes import ratio


@dataclass(frozen=True)
class ScoreCalibration:
    """A linear map from a score to the natural logarithm of its likelihood ratio."""

    slope: float
    intercept: float

    def log_likelihood_ratio(self, scores: np.ndarray) -> np.ndarray:
        """Return ln(LR) of same person versus different people, in the shape of `scores`."""
        return self.slope * scores + self.intercept


def fit_calibration(scores: np.ndarray, genuine: np.ndarray) -> ScoreCalibration | None:
    """Return the calibration by logistic regression; None if all scores or labels are equal.

    Genuine and impostor pairs have equal total weight: prior odds of 1 make the posterior odds the
    likelihood ratio. An L2 penalty (C = 1, scores scaled to a standard deviation of 1) keeps the
    ratio finite where the scores separate the kinds perfectly.

    Args:
        scores: (M,) of pairs of people who are in no pair that is evaluated.
        genuine: (M,) bool.

    Source: Morrison 2013, Tutorial on logistic-regression calibration and fusion, Australian
    Journal of Forensic Sciences 45(2), 173-197.
    """
    spread = scores.std() if len(scores) else 0.0
    if not spread or genuine.all() or not genuine.any():
        return None
    model = LogisticRegression(class_weight="balanced")
    model.fit((scores / spread)[:, None], genuine)
    return ScoreCalibration(float(model.coef_[0, 0] / spread), float(model.intercept_[0]))


def people_cllr(
    log_ratios: np.ndarray, first: np.ndarray, second: np.ndarray, people: np.ndarray
) -> PeopleMeasure:
    """Return the log-likelihood-ratio cost in bits, pairs weighted by their people.

    0 is perfect, 1 no information; there is no upper bound. NaN without a genuine or an impostor
    pair.

    Args:
        log_ratios: (M,) natural logarithms of the pairs' likelihood ratios.
        first: (M,) index of the pair's one photo.
        second: (M,) index of its other photo.
        people: (N,) person on each photo.

    Source: Brümmer and du Preez 2006, Application-independent evaluation of speaker detection,
    Computer Speech and Language 20, 230-275.
    """
    names, person = np.unique(people, return_inverse=True)
    one, other = person[first], person[second]
    genuine, n_people = one == other, len(names)
    costs = np.logaddexp(0, np.where(genuine, -log_ratios, log_ratios)) / np.log(2)
    sum_and_count = (costs, np.ones(len(costs)))
    same = [np.bincount(one[genuine], v[genuine], minlength=n_people) for v in sum_and_count]
    cells = (one[~genuine], other[~genuine])
    different = [csr_array((v[~genuine], cells), shape=(n_people,) * 2) for v in sum_and_count]

    def of_weights(weights: np.ndarray) -> np.ndarray:
        columns = weights.T  # (P, B)
        genuine_cost = ratio(*(weights @ v for v in same))
        impostor_cost = ratio(*((columns * (v @ columns)).sum(axis=0) for v in different))
        return (genuine_cost + impostor_cost) / 2

    shares = normalised(same[1][:, None])
    return PeopleMeasure(names, of_weights, shares, len(people), is_rate=False)


def cllr_min(scores: np.ndarray, genuine: np.ndarray) -> float:
    """Return Cllr in bits after the best monotonic calibration on the same pairs (PAV).

    It measures discrimination alone; Cllr minus it is the loss by calibration. NaN without a
    genuine or an impostor pair.

    Args:
        scores: (M,) scores or log ratios; only their order counts.
        genuine: (M,) bool.

    Source: Brümmer and du Preez 2006, as `people_cllr`.
    """
    if genuine.all() or not genuine.any():
        return np.nan
    _, order = np.unique(scores, return_inverse=True)  # scikit-learn merges scores that are close
    weights = np.where(genuine, 1 / genuine.sum(), 1 / (~genuine).sum())
    posterior = IsotonicRegression().fit_transform(order, genuine, sample_weight=weights)
    # LR = posterior odds, so 1 + 1 / LR = 1 / posterior and 1 + LR = 1 / (1 - posterior)
    costs = (-np.log2(posterior[genuine]), -np.log2(1 - posterior[~genuine]))
    return float(sum(cost.mean() for cost in costs) / 2)


def fraction_positive(log_ratios: np.ndarray) -> float:
    """Return the fraction of (M,) log ratios that support the same person; NaN without any."""
    return float((log_ratios > 0).mean()) if len(log_ratios) else np.nan


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
