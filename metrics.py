"""Every measure of a run, from arrays: no model, no disk. Rates are fractions in [0, 1]."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score

PUBLISHED_BATCH = 20  # rows; the published scores are means over batches of this size


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return probabilities, (N, C) float64, of `logits`, (N, C), divided by `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean recall over the classes present in `true`.

    Args:
        true: (N,) class indices.
        predicted: (N,) class indices.
    """
    present = np.unique(true)
    return float(recall_score(true, predicted, labels=present, average="macro", zero_division=0))


def batch_mean_balanced_accuracy(
    true: np.ndarray, predicted: np.ndarray, batch_size: int = PUBLISHED_BATCH
) -> float:
    """Return the published score: a plain mean of balanced accuracies of consecutive rows.

    It is no balanced accuracy of the set: a batch holds few of the rare classes. Kept for
    comparison with published numbers alone.

    Source: github.com/nathanlem1/IGAE-Net, test.py lines 82-141.
    """
    starts = range(0, len(true), batch_size)
    parts = [slice(start, start + batch_size) for start in starts]
    return float(np.mean([balanced_accuracy(true[part], predicted[part]) for part in parts]))


def label_measures(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return the measures of one task, each taken once over all rows.

    Args:
        true: (N,) class indices, N at least 1.
        predicted: (N,) class indices.
    """
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "balanced_accuracy": balanced_accuracy(true, predicted),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
        "batch_mean_balanced_accuracy": batch_mean_balanced_accuracy(true, predicted),
    }
