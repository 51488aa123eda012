"""Every measure of classes and probabilities, from arrays: no model, no disk.

Rates are fractions in [0, 1]. NaN says that there was nothing to measure: no row, or one class
where two are compared. matching.py measures embeddings, intervals.py says how sure a number is.

scikit-learn and SciPy's optimiser take a second to load: they are imported where they are used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PUBLISHED_BATCH = 20  # rows; the published scores are means over batches of this size

CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv 1706.04599, section 5

TEMPERATURE_RANGE = (0.05, 20.0)  # a set without an error asks for 0, one of noise for infinity


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient in float64, NaN where the denominator is 0."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator != 0)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return probabilities, (N, C) float64, of `logits`, (N, C), divided by `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


# ----------------------------------------------------------------------------- labels


def balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean recall over the classes present in `true`; NaN without a row.

    Args:
        true: (N,) class indices.
        predicted: (N,) class indices.
    """
    from sklearn.metrics import recall_score

    present = np.unique(true)
    if not len(present):
        return np.nan
    return float(recall_score(true, predicted, labels=present, average="macro", zero_division=0))


def batch_mean_balanced_accuracy(
    true: np.ndarray, predicted: np.ndarray, batch_size: int = PUBLISHED_BATCH
) -> float:
    """Return the published score: a plain mean of balanced accuracies of consecutive rows.

    It is no balanced accuracy of the set: a batch holds few of the rare classes. Kept for
    comparison with published numbers alone. NaN without a row.

    Source: github.com/nathanlem1/IGAE-Net, test.py lines 82-141.
    """
    starts = range(0, len(true), batch_size)
    parts = [slice(start, start + batch_size) for start in starts]
    scores = [balanced_accuracy(true[part], predicted[part]) for part in parts]
    return float(np.mean(scores)) if scores else np.nan


def label_measures(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return the measures of one task, each taken once over all rows; NaN without a row.

    Args:
        true: (N,) class indices.
        predicted: (N,) class indices.
    """
    from sklearn.metrics import accuracy_score, f1_score

    some = len(true) > 0
    f1 = f1_score(true, predicted, average="macro", zero_division=0) if some else np.nan
    return {
        "accuracy": float(accuracy_score(true, predicted)) if some else np.nan,
        "balanced_accuracy": balanced_accuracy(true, predicted),
        "macro_f1": float(f1),
        "batch_mean_balanced_accuracy": batch_mean_balanced_accuracy(true, predicted),
    }


def true_ranks(logits: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the rank of the true class among all, (N,) int64, from 1; ties count against it.

    Args:
        logits: (N, C); any monotone function of them gives the same.
        true: (N,) class indices.
    """
    own = np.take_along_axis(logits, true[:, None], axis=1)
    return (logits >= own).sum(axis=1)  # itself is one of them


def cmc(ranks: np.ndarray, max_rank: int) -> np.ndarray:
    """Return the cumulative match characteristic, (max_rank,): the share of ranks up to 1, 2, ...

    Args:
        ranks: (N,) rank of each query's mate, from 1; NaN where it has none, which is left out.
        max_rank: the last rank; its first is top-1, its fifth top-5.

    Source: ISO/IEC 19795-1:2021, identification rank and CMC curve.
    """
    known = ranks[~np.isnan(ranks)]
    if not len(known):
        return np.full(max_rank, np.nan)
    return (known[:, None] <= np.arange(1, max_rank + 1)).mean(axis=0)


def roc_auc(true: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve of class 1 against 0; NaN where one of them is absent.

    Args:
        true: (N,) 0 or 1.
        scores: (N,) higher for class 1.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(true, scores)) if len(np.unique(true)) == 2 else np.nan


# ----------------------------------------------------------------------------- probabilities


class Reliability(NamedTuple):
    """Photos, mean confidence and accuracy per bin of confidence, each (n_bins,); NaN: empty."""

    photos: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(
    true: np.ndarray, probabilities: np.ndarray, n_bins: int = CALIBRATION_BINS
) -> Reliability:
    """Return the reliability diagram of the top label over equal-width bins, upper ends inclusive.

    Args:
        true: (N,) class indices.
        probabilities: (N, C), rows summing to 1.
        n_bins: over [0, 1].
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == true
    bins = np.digitize(confidence, np.linspace(0, 1, n_bins + 1)[1:-1], right=True)
    photos = np.bincount(bins, minlength=n_bins)
    sums = [np.bincount(bins, weights=values, minlength=n_bins) for values in (confidence, right)]
    return Reliability(photos, *(ratio(values, photos) for values in sums))


def probability_measures(true: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return Brier score, expected calibration error and log loss of one task; NaN without a row.

    The Brier score is half the squared distance, so within [0, 1]; the calibration error is that
    of the top label; the log loss is in nats, and a probability counts as 2.2e-16 at least.

    Args:
        true: (N,) class indices.
        probabilities: (N, C), rows summing to 1.

    Source: Brier 1950, halved; Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    if not len(true):
        return dict.fromkeys(("brier", "expected_calibration_error", "log_loss"), np.nan)
    distance = probabilities - np.eye(probabilities.shape[1])[true]
    bins = reliability(true, probabilities)
    gaps = np.abs(bins.accuracy - bins.confidence)
    return {
        "brier": float((distance**2).sum(axis=1).mean() / 2),
        "expected_calibration_error": float(np.nansum(gaps * bins.photos) / len(true)),
        "log_loss": _log_loss(true, probabilities),
    }


def _log_loss(true: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean log loss in nats; scikit-learn's refuses a task with a single class."""
    own = np.take_along_axis(probabilities, true[:, None], axis=1)
    return float(-np.log(np.maximum(own, np.finfo(np.float64).eps)).mean())


def fit_temperature(logits: np.ndarray, true: np.ndarray) -> float:
    """Return the temperature within `TEMPERATURE_RANGE` that minimises the log loss.

    It is 1 where none does better than 1, and NaN without a row.

    Args:
        logits: (N, C), before softmax, of photos that no score is reported on.
        true: (N,) class indices.

    Source: Guo et al. 2017, arXiv 1706.04599, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    if not len(true):
        return np.nan

    def loss(log_temperature: float) -> float:
        # log-softmax, as probabilities would lose what lies below the smallest of them
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        own = np.take_along_axis(scaled, true[:, None], axis=1)[:, 0]
        return float((np.log(np.exp(scaled).sum(axis=1)) - own).mean())

    # convex in 1/temperature, so with one minimum in its logarithm too
    low, high = np.log(TEMPERATURE_RANGE)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x
    return float(np.exp(best)) if loss(best) < loss(0.0) else 1.0


# ----------------------------------------------------------------------------- age


def class_means(values: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the mean of `values` (such as training ages in years) per class, (n_classes,).

    NaN for a class without a row.
    """
    sums = np.bincount(classes, weights=values, minlength=n_classes)
    return ratio(sums, np.bincount(classes, minlength=n_classes))


def expected_age(probabilities: np.ndarray, mean_ages: np.ndarray) -> np.ndarray:
    """Return the age in years, (N,), that a distribution over age groups expects.

    Args:
        probabilities: (N, C), rows summing to 1.
        mean_ages: (C,) mean training age of each group in years; a group without one (NaN) is
            left out, and the probabilities of the others are scaled to 1.
    """
    known = ~np.isnan(mean_ages)
    return ratio(probabilities[:, known] @ mean_ages[known], probabilities[:, known].sum(axis=1))


def age_measures(
    true: np.ndarray, predicted: np.ndarray, ages: np.ndarray, expected: np.ndarray
) -> dict[str, float]:
    """Return what the order of the age groups adds to `label_measures`.

    Keys: `within_one_group` (share of predictions at most one group off), `mae_years`,
    `quadratic_weighted_kappa` (1 perfect, 0 chance, negative below; NaN where truth and
    predictions are one and the same class, as nothing is left to agree on).

    Args:
        true: (N,) indices of age groups, young to old.
        predicted: (N,) indices of age groups.
        ages: (N,) true ages in whole years.
        expected: (N,) as `expected_age` returns them.

    Source: Cohen 1968, weighted kappa, by scikit-learn.
    """
    from sklearn.metrics import cohen_kappa_score

    if not len(true):
        return dict.fromkeys(("within_one_group", "mae_years", "quadratic_weighted_kappa"), np.nan)
    kappa = np.nan
    if len(np.unique([true, predicted])) > 1:
        groups = np.arange(max(true.max(), predicted.max()) + 1)  # the weights need empty ones too
        kappa = cohen_kappa_score(true, predicted, labels=groups, weights="quadratic")
    return {
        "within_one_group": float((np.abs(true - predicted) <= 1).mean()),
        "mae_years": float(np.abs(ages - expected).mean()),
        "quadratic_weighted_kappa": float(kappa),
    }


# ----------------------------------------------------------------------------- controls


def majority_class(train: np.ndarray) -> int:
    """Return the most frequent of the training rows' class indices, ties: the lowest."""
    return int(np.bincount(train).argmax())


def identity_lookup(identity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the class, (N,), of whoever each photo is taken for: a control, which knows no hands.

    Args:
        identity: (N,) rows of `labels`: the person the identity head says, or the training photo
            whose embedding is nearest (`matching.nearest`).
        labels: (n_people,) or (n_train,) class index of each person or training photo.
    """
    return labels[identity]
