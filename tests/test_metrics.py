"""Every measure against brute force, scikit-learn and values worked out by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from metrics import (
    balanced_accuracy,
    batch_mean_balanced_accuracy,
    label_measures,
    softmax,
)


def brute_force(true: list[int], predicted: list[int]) -> dict[str, float]:
    """Return accuracy, balanced accuracy and macro F1 by counting pairs."""
    pairs = list(zip(true, predicted, strict=True))
    recalls = [
        sum(t == p == c for t, p in pairs) / sum(t == c for t in true) for c in sorted(set(true))
    ]
    f1 = [
        2 * sum(t == p == c for t, p in pairs) / (true.count(c) + predicted.count(c))
        for c in sorted({*true, *predicted})
    ]
    return {
        "accuracy": sum(t == p for t, p in pairs) / len(pairs),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "macro_f1": sum(f1) / len(f1),
    }


RANDOM = np.random.default_rng(7)
CASES = {
    "all right": ([0, 1, 2, 2], [0, 1, 2, 2]),
    "all wrong": ([0, 1, 1], [1, 0, 0]),
    "one row, right": ([3], [3]),
    "one row, wrong": ([3], [5]),
    "one class in the truth": ([4, 4, 4, 4], [4, 4, 0, 1]),
    "a class absent in the truth": ([0, 0, 2, 2], [0, 2, 2, 2]),
    "a predicted class not in the truth": ([0, 0, 1, 1], [0, 5, 1, 5]),
    "always the majority": ([0] * 9 + [1], [0] * 10),
    "few of many classes": (
        RANDOM.integers(0, 150, 200).tolist(),
        RANDOM.integers(0, 150, 200).tolist(),
    ),
    "skewed": (
        RANDOM.choice(6, 333, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]).tolist(),
        RANDOM.choice(6, 333, p=[0.6, 0.3, 0.1, 0.0, 0.0, 0.0]).tolist(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_measures_equal_brute_force(case: str) -> None:
    true, predicted = CASES[case]
    measures = label_measures(np.array(true), np.array(predicted))
    for name, value in brute_force(true, predicted).items():
        assert measures[name] == pytest.approx(value, abs=1e-12), name
        assert type(measures[name]) is float


@pytest.mark.parametrize("case", CASES)
def test_measures_equal_scikit_learn_and_warn_of_nothing(case: str) -> None:
    true, predicted = (np.array(values) for values in CASES[case])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measures = label_measures(true, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of classes that are not in the truth
        reference = balanced_accuracy_score(true, predicted)
        f1 = f1_score(true, predicted, average="macro")
    assert measures["balanced_accuracy"] == pytest.approx(reference, abs=1e-12)
    assert measures["macro_f1"] == pytest.approx(f1, abs=1e-12)


def test_majority_guess_scores_one_share_of_the_classes() -> None:
    true = np.array([0] * 90 + [1] * 10)
    assert balanced_accuracy(true, np.zeros(100, dtype=int)) == 0.5


# Batches of 20, 20 and 5 rows: recalls (1, 0), (1), (3/4, 1), so scores 1/2, 1 and 7/8.
TRUE_45 = np.array([0] * 18 + [1] * 2 + [0] * 20 + [0] * 4 + [1])
PREDICTED_45 = np.array([0] * 20 + [0] * 20 + [0, 0, 0, 1, 1])


def test_batch_mean_is_the_plain_mean_over_batches_of_20() -> None:
    expected = (1 / 2 + 1 + 7 / 8) / 3
    measures = label_measures(TRUE_45, PREDICTED_45)
    assert measures["batch_mean_balanced_accuracy"] == pytest.approx(expected, abs=1e-12)
    # the set's own score: recalls 41/42 and 1/3
    assert measures["balanced_accuracy"] == pytest.approx((41 / 42 + 1 / 3) / 2, abs=1e-12)


def test_batch_mean_depends_on_the_order_of_rows_as_no_other_measure_does() -> None:
    order = np.argsort(TRUE_45, kind="stable")
    before = label_measures(TRUE_45, PREDICTED_45)
    after = label_measures(TRUE_45[order], PREDICTED_45[order])
    changed = {name for name in before if before[name] != pytest.approx(after[name], abs=1e-12)}
    assert changed == {"batch_mean_balanced_accuracy"}


@pytest.mark.parametrize(
    ("n_rows", "expected"),
    [(1, 0.0), (19, 18 / 19), (20, 19 / 20), (21, (19 / 20 + 1) / 2), (40, (19 / 20 + 1) / 2)],
)
def test_batch_mean_at_the_edge_of_a_batch(n_rows: int, expected: float) -> None:
    true = np.zeros(n_rows, dtype=int)
    predicted = np.array([1] + [0] * (n_rows - 1))
    assert batch_mean_balanced_accuracy(true, predicted) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, [0.25, 0.75]), (0.5, [0.1, 0.9]), (1e9, [0.5, 0.5])]
)
def test_softmax_by_hand(temperature: float, expected: list[float]) -> None:
    logits = np.array([[0.0, math.log(3)]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits, temperature), [expected], atol=1e-7)


@pytest.mark.parametrize(
    "logits",
    [
        [1e4, 0.0, -1e4],
        [-1e4, -1e4 - 1, -1e4 - 2],
        [3e38, 3e38, -3e38],
        [5.0, 5.0, 5.0],
        [89.0, 90.0, 91.0],
    ],
)
def test_softmax_of_extreme_logits(logits: list[float]) -> None:
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        probabilities = softmax(np.array([logits], dtype=np.float32))
    assert probabilities.dtype == np.float64
    reference = torch.tensor([logits], dtype=torch.float32).double().softmax(dim=1)
    np.testing.assert_allclose(probabilities, reference.numpy(), atol=1e-12)
    np.testing.assert_allclose(probabilities.sum(), 1.0, atol=1e-12)
