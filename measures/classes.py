"""Measures of predicted classes and probabilities: arrays in, numbers out.

Rates are fractions in [0, 1]; NaN: nothing to measure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.special
from scipy.optimize import minimize_scalar
from sklearn.metrics import cohen_kappa_score

PUBLISHED_BATCH = 20  # photos; the published scores are means over batches of this size

CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv 1706.04599, section 5

CALIBRATED_DRAWS, CALIBRATED_SEED = 1000, 0  # of the error of a calibrated model

TEMPERATURE_RANGE = (0.05, 20.0)  # with few errors the optimum nears 0, with many infinity


@dataclass(frozen=True)
class ClassPredictions:
    """A task's predictions for the photos whose true class the model knows.

    true: (N,) class indices.
    logits: (N, C) float64.
    temperature: logits are divided by it before softmax.
    people: (N,) person on the photo.
    ages: (N,) in whole years.
    mean_ages: (C,) of an age task: mean training age of each class in years, NaN: unknown.
    classes_are_people: whether each class is a person.
    """

    true: np.ndarray
    logits: np.ndarray
    temperature: float
    people: np.ndarray
    ages: np.ndarray
    mean_ages: np.ndarray
    classes_are_people: bool = False

    def of(self, rows: np.ndarray) -> ClassPredictions:
        """Return the predictions for some photos, (n,) indices."""
        per_photo = ("true", "logits", "people", "ages")
        return replace(self, **{name: getattr(self, name)[rows] for name in per_photo})

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each photo, (N,)."""
        return self.logits.argmax(axis=1)

    @property
    def scores(self) -> np.ndarray:
        """Of two classes: logit of the second minus logit of the first, (N,)."""
        return self.logits[:, 1] - self.logits[:, 0]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The probability of each class, (N, C)."""
        return softmax(self.logits, self.temperature)

    @property
    def median_ages(self) -> np.ndarray:
        """Of an age task: the age in years of the median group of each distribution, (N,)."""
        return median_age(self.probabilities, self.mean_ages)

    @property
    def expected_ages(self) -> np.ndarray:
        """Of an age task: the expected age in years, (N,)."""
        return expected_age(self.probabilities, self.mean_ages)

    def top(self, k: int) -> float:
        """Return the fraction of photos whose true class is among the k most probable.

        NaN if there are no more than k classes, as it would always be 1.
        """
        if k >= self.logits.shape[1]:
            return np.nan
        return (true_ranks(self.logits, self.true) <= k).mean()


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient in float64, NaN where the denominator is 0."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator != 0)


# ----------------------------------------------------------------------------- labels


def balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean recall over the classes present in `true`; NaN without a photo.

    Args:
        true: (N,) class indices.
        predicted: (N,) class indices.
    """
    if not len(true):
        return np.nan
    present, label = np.unique(true, return_inverse=True)
    return float(class_means(true == predicted, label, len(present)).mean())


def batch_mean_balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the published score: the mean balanced accuracy of batches of consecutive photos.

    Source: github.com/nathanlem1/IGAE-Net, test.py lines 82-141.
    """
    starts = range(0, len(true), PUBLISHED_BATCH)
    batches = [slice(start, start + PUBLISHED_BATCH) for start in starts]
    return float(np.mean([balanced_accuracy(true[b], predicted[b]) for b in batches]))


def quadratic_weighted_kappa(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return Cohen's kappa with quadratic weights; NaN where all labels are one class.

    Args:
        true: (N,) indices of ordered classes.
        predicted: (N,) indices of ordered classes.

    Source: Cohen 1968, weighted kappa.
    """
    if len(np.unique([true, predicted])) < 2:
        return np.nan
    groups = np.arange(
        max(true.max(), predicted.max()) + 1
    )  # an empty class between two others counts as distance
    return float(cohen_kappa_score(true, predicted, labels=groups, weights="quadratic"))


# ----------------------------------------------------------------------------- ranks


def true_ranks(logits: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the rank of the true class, (N,) int64, from 1; ties count against it.

    Args:
        logits: (N, C).
        true: (N,) class indices.
    """
    own = np.take_along_axis(logits, true[:, None], axis=1)
    return (logits >= own).sum(axis=1)  # the true class itself is one of them


def cmc(ranks: np.ndarray, max_rank: int) -> np.ndarray:
    """Return the cumulative match characteristic, (max_rank,): fraction of ranks up to 1, 2, ...

    Args:
        ranks: (N,) rank of each query's mate, from 1; NaN (no mate) is left out.
        max_rank: last rank of the curve.

    Source: ISO/IEC 19795-1:2021, identification rank and CMC curve.
    """
    known = ranks[~np.isnan(ranks)]
    if not len(known):
        return np.full(max_rank, np.nan)
    return (known[:, None] <= np.arange(1, max_rank + 1)).mean(axis=0)


# ----------------------------------------------------------------------------- probabilities


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return probabilities, (N, C) float64, of `logits`, (N, C), divided by `temperature`."""
    return scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1)


class Reliability(NamedTuple):
    """Photos, mean confidence and accuracy per bin of confidence, (n_bins,) each; NaN: empty."""

    photos: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(
    true: np.ndarray, probabilities: np.ndarray, n_bins: int = CALIBRATION_BINS
) -> Reliability:
    """Return the reliability diagram of the predicted class.

    Args:
        true: (N,) class indices.
        probabilities: (N, C), rows summing to 1.
        n_bins: of equal width over [0, 1], upper ends inclusive.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == true
    bins = np.digitize(confidence, np.linspace(0, 1, n_bins + 1)[1:-1], right=True)
    photos = np.bincount(bins, minlength=n_bins)
    sums = [np.bincount(bins, weights=values, minlength=n_bins) for values in (confidence, correct)]
    return Reliability(photos, *(ratio(values, photos) for values in sums))


def expected_calibration_error(true: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean difference between confidence and accuracy, bins weighted by photos.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    bins = reliability(true, probabilities)
    return float(np.nansum(np.abs(bins.accuracy - bins.confidence) * bins.photos) / len(true))


def calibrated_error(probabilities: np.ndarray) -> float:
    """Return the mean expected calibration error of a perfectly calibrated model.

    It is above 0 because bins have few photos. Photos count as independent.

    Args:
        probabilities: (N, C), rows summing to 1; only their maxima, the confidences, matter.

    Source: simulation of correct predictions, as in Vaicenavicius et al. 2019, arXiv 1902.06977.
    """
    confidence = probabilities.max(axis=1)
    random = np.random.default_rng(CALIBRATED_SEED)
    bins = np.digitize(confidence, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], right=True)
    own = np.eye(CALIBRATION_BINS)[bins]  # (N, bins)
    correct = random.random((CALIBRATED_DRAWS, len(confidence))) < confidence
    return float(np.abs((correct - confidence) @ own).sum(axis=1).mean() / len(confidence))


def brier_score(true: np.ndarray, probabilities: np.ndarray) -> float:
    """Return half the mean squared distance of (N, C) probabilities from the true classes, (N,).

    Source: Brier 1950, halved so that it lies within [0, 1].
    """
    distance = probabilities - np.eye(probabilities.shape[1])[true]
    return float((distance**2).sum(axis=1).mean() / 2)


def log_loss(true: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean log loss in nats; probabilities count as at least 2.2e-16.

    scikit-learn's function refuses a task with a single class.
    """
    own = np.take_along_axis(probabilities, true[:, None], axis=1)
    return float(-np.log(np.maximum(own, np.finfo(np.float64).eps)).mean())


def fit_temperature(logits: np.ndarray, true: np.ndarray) -> float:
    """Return the temperature within `TEMPERATURE_RANGE` that minimises the log loss.

    1 if no temperature is better than 1; NaN without photos. Without an error at least 1: the
    optimum would be 0, which says nothing about confidence on other photos.

    Args:
        logits: (N, C); scores of the same photos are optimistic.
        true: (N,) class indices.

    Source: Guo et al. 2017, arXiv 1706.04599, section 4.2.
    """
    if not len(true):
        return np.nan

    def loss(log_temperature: float) -> float:
        # not log_loss(): its lower bound on probabilities would hide large errors
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        log_probabilities = scipy.special.log_softmax(scaled, axis=1)
        return -np.take_along_axis(log_probabilities, true[:, None], axis=1).mean()

    # convex in 1 / temperature, so it has one minimum in log(temperature) as well
    low, high = np.log(TEMPERATURE_RANGE)
    if (logits.argmax(axis=1) == true).all():
        low = 0.0
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x
    return float(np.exp(best)) if loss(best) < loss(0.0) else 1.0


def at_bound(temperature: float | None) -> bool:
    """Return whether a temperature is at an end of `TEMPERATURE_RANGE`, up to the fit's steps."""
    return temperature is not None and bool(
        np.isclose(temperature, TEMPERATURE_RANGE, rtol=1e-3).any()
    )


# ----------------------------------------------------------------------------- age


def class_means(values: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the mean of `values` (such as ages in years) per class, (n_classes,), NaN if empty."""
    sums = np.bincount(classes, weights=values, minlength=n_classes)
    return ratio(sums, np.bincount(classes, minlength=n_classes))


def expected_age(probabilities: np.ndarray, mean_ages: np.ndarray) -> np.ndarray:
    """Return the expected age in years, (N,), of distributions over age groups.

    Args:
        probabilities: (N, C), rows summing to 1.
        mean_ages: (C,) mean training age of each group in years; NaN: the group is left out and
            the other probabilities are rescaled.
    """
    known = ~np.isnan(mean_ages)
    return ratio(probabilities[:, known] @ mean_ages[known], probabilities[:, known].sum(axis=1))


def median_age(probabilities: np.ndarray, mean_ages: np.ndarray) -> np.ndarray:
    """Return the mean training age of the median group, (N,); arguments as of `expected_age`."""
    known = np.flatnonzero(~np.isnan(mean_ages))
    if not len(known):
        return np.full(len(probabilities), np.nan)
    sums = probabilities[:, known].cumsum(axis=1)
    return mean_ages[known[(sums >= sums[:, -1:] / 2).argmax(axis=1)]]
