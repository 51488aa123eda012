"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from measures.bootstrap import PeopleMeasure
from measures.classes import ratio
from measures.pairs import Comparisons

# ----------------------------------------------------------------------------- likelihood ratios


@dataclass(frozen=True)
class ScoreCalibration:
    """A line from a score to the natural logarithm of its likelihood ratio."""

    slope: float
    intercept: float

    def log_likelihood_ratio(self, scores: np.ndarray) -> np.ndarray:
        """Return ln(LR) of each score: one person against two, in the shape of `scores`."""
        return self.slope * scores + self.intercept


def fit_calibration(
    scores: np.ndarray, genuine: np.ndarray, inverse_penalty: float = 1.0
) -> ScoreCalibration | None:
    """Return the calibration by logistic regression, genuine and impostor pairs of equal weight.

    With equal weights the prior odds are 1, so the posterior odds are the likelihood ratio. A weak
    penalty keeps the ratio finite where the scores separate the two without an error.

    Args:
        scores: (M,) of people who are in no comparison that the calibration is used on.
        genuine: (M,) bool.
        inverse_penalty: C of scikit-learn, on scores scaled to a standard deviation of 1.

    Returns:
        None where a kind of comparison is missing, or all scores are one.

    Source: Morrison 2013, Tutorial on logistic-regression calibration and fusion, Australian
    Journal of Forensic Sciences 45(2), 173-197.
    """
    from sklearn.linear_model import LogisticRegression

    spread = scores.std() if len(scores) else 0.0
    if not spread or genuine.all() or not genuine.any():
        return None
    model = LogisticRegression(class_weight="balanced", C=inverse_penalty)
    model.fit((scores / spread)[:, None], genuine)
    return ScoreCalibration(float(model.coef_[0, 0] / spread), float(model.intercept_[0]))


def cllr(log_ratios: np.ndarray, genuine: np.ndarray) -> float:
    """Return the log-likelihood-ratio cost in bits: 0 perfect, 1 for saying nothing, no upper end.

    NaN where a kind of comparison is missing.

    Args:
        log_ratios: (M,) natural logarithms of likelihood ratios.
        genuine: (M,) bool.

    Source: Brümmer and du Preez 2006, Application-independent evaluation of speaker detection,
    Computer Speech and Language 20, 230-275.
    """
    if genuine.all() or not genuine.any():
        return np.nan
    costs = (np.logaddexp(0, -log_ratios[genuine]), np.logaddexp(0, log_ratios[~genuine]))
    return float(sum(cost.mean() for cost in costs) / (2 * np.log(2)))


def people_cllr(pairs: Comparisons, log_ratios: np.ndarray) -> PeopleMeasure:
    """Return `cllr` with genuine pairs weighted by their person, impostor pairs by both people.

    Args:
        pairs: (M,) comparisons.
        log_ratios: (M,) natural logarithms of their likelihood ratios.
    """
    people, person, photos = np.unique(pairs.people, return_inverse=True, return_counts=True)
    one, other = person[pairs.first], person[pairs.second]
    genuine, n_people = one == other, len(people)
    costs = np.logaddexp(0, np.where(genuine, -log_ratios, log_ratios)) / np.log(2)
    summed = (costs, np.ones(len(costs)))
    own = [np.bincount(one[genuine], v[genuine], minlength=n_people) for v in summed]
    couples = (one[~genuine], other[~genuine])
    cross = [csr_array((v[~genuine], couples), shape=(n_people, n_people)) for v in summed]

    def of_weights(weights: np.ndarray) -> np.ndarray:
        columns = weights.T  # (P, B)
        same = ratio(*(weights @ v for v in own))
        different = ratio(*((columns * (v @ columns)).sum(axis=0) for v in cross))
        return (same + different) / 2

    return PeopleMeasure(people, of_weights, photos[:, None])


def cllr_min(scores: np.ndarray, genuine: np.ndarray) -> float:
    """Return the cost left after the best calibration that keeps the scores' order (PAV), in bits.

    It was fitted on these very scores, so it measures discrimination alone; `cllr` minus it is
    the loss by calibration. NaN where a kind of comparison is missing.

    Args:
        scores: (M,) scores or log ratios; their order alone counts.
        genuine: (M,) bool.

    Source: Brümmer and du Preez 2006, as `cllr`.
    """
    from sklearn.isotonic import IsotonicRegression

    if genuine.all() or not genuine.any():
        return np.nan
    _, order = np.unique(scores, return_inverse=True)  # scikit-learn merges close scores else
    weights = np.where(genuine, 1 / genuine.sum(), 1 / (~genuine).sum())
    posterior = IsotonicRegression().fit_transform(order, genuine, sample_weight=weights)
    # the posterior odds are the ratio; 1 + 1/ratio is 1 / posterior, 1 + ratio 1 / (1 - posterior)
    costs = (-np.log2(posterior[genuine]), -np.log2(1 - posterior[~genuine]))
    return float(sum(cost.mean() for cost in costs) / 2)


class Tippett(NamedTuple):
    """Share of genuine and of impostor comparisons with at least each log10(LR), (K,) each."""

    log10_ratio: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray


def tippett(log_ratios: np.ndarray, genuine: np.ndarray, n_points: int) -> Tippett:
    """Return the curves of a Tippett plot at `n_points` equal steps from the least to the most.

    The impostors' share right of 0 and the genuine ones' left of it are misleading evidence. NaN
    where a kind of comparison is missing; no point without any.

    Args:
        log_ratios: (M,) natural logarithms of likelihood ratios.
        genuine: (M,) bool.
        n_points: at least 2.

    Source: Meuwly 2001; Drygajlo et al. 2015, ENFSI guideline on speaker recognition, Tippett plot.
    """
    ratios = log_ratios / np.log(10)
    points = np.empty(0)
    if len(ratios):
        points = np.linspace(ratios.min(), ratios.max(), n_points)
    shares = []
    for kind in (np.sort(ratios[genuine]), np.sort(ratios[~genuine])):
        at_least = len(kind) - np.searchsorted(kind, points, side="left")
        shares.append(ratio(at_least, np.array(len(kind))))
    return Tippett(points, *shares)
