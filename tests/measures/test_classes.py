"""classes.py against brute force, scikit-learn and values worked out by hand."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.metrics import log_loss as sklearn_log_loss

from measures.classes import (
    ClassPredictions,
    at_bound,
    balanced_accuracy,
    batch_mean_balanced_accuracy,
    brier_score,
    calibrated_error,
    class_means,
    cmc,
    expected_age,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    quadratic_weighted_kappa,
    reliability,
    softmax,
    true_ranks,
)
from measures.registry import MEASURES

RANDOM = np.random.default_rng(7)


def predictions(true: Any, logits: Any, **changes: Any) -> ClassPredictions:
    """Return predictions of photos of one person each."""
    n = len(true)
    fields: dict[str, Any] = {
        "temperature": 1.0,
        "people": np.arange(n),
        "ages": np.arange(18, 18 + n),
        "mean_ages": np.full(np.shape(logits)[1], np.nan),
    }
    return ClassPredictions(np.array(true), np.array(logits, dtype=float), **fields | changes)


@pytest.fixture(autouse=True)
def _no_warnings() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ----------------------------------------------------------------------------- labels

LABELS = {
    "all correct": ([0, 1, 2, 2], [0, 1, 2, 2]),
    "all wrong": ([0, 1, 1], [1, 0, 0]),
    "one photo, wrong": ([3], [5]),
    "one class in the truth": ([4, 4, 4, 4], [4, 4, 0, 1]),
    "a predicted class not in the truth": ([0, 0, 1, 1], [0, 5, 1, 5]),
    "always the majority": ([0] * 9 + [1], [0] * 10),
    "few of many classes": (RANDOM.integers(0, 150, 200), RANDOM.integers(0, 150, 200)),
    "skewed": (
        RANDOM.choice(6, 333, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]),
        RANDOM.choice(6, 333, p=[0.6, 0.3, 0.1, 0.0, 0.0, 0.0]),
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_measures_of_labels_equal_brute_force(case: str) -> None:
    true, predicted = (np.array(labels) for labels in LABELS[case])
    pairs = list(zip(true.tolist(), predicted.tolist(), strict=True))
    recalls = [np.mean([t == p for t, p in pairs if t == c]) for c in set(true.tolist())]
    f1 = [
        2 * sum(t == p == c for t, p in pairs) / sum((t == c) + (p == c) for t, p in pairs)
        for c in {*true.tolist(), *predicted.tolist()}
    ]
    given = predictions(true, np.eye(200)[predicted])
    assert MEASURES["accuracy"].function(given) == pytest.approx(np.mean(true == predicted))
    assert MEASURES["macro_f1"].function(given) == pytest.approx(np.mean(f1))
    assert MEASURES["balanced_accuracy"].function(given).value == pytest.approx(np.mean(recalls))
    assert balanced_accuracy(true, predicted) == pytest.approx(np.mean(recalls))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predicted classes that are not in the truth
        reference = balanced_accuracy_score(true, predicted)
    assert balanced_accuracy(true, predicted) == pytest.approx(reference)


def test_batch_mean_is_the_plain_mean_over_batches_of_20() -> None:
    # batches of 20, 20 and 5: recalls (1, 0), (1), (3/4, 1)
    true = np.array([0] * 18 + [1] * 2 + [0] * 20 + [0] * 4 + [1])
    predicted = np.array([0] * 40 + [0, 0, 0, 1, 1])
    found = batch_mean_balanced_accuracy(true, predicted)
    assert found == pytest.approx((1 / 2 + 1 + 7 / 8) / 3)
    assert balanced_accuracy(true, predicted) == pytest.approx((41 / 42 + 1 / 3) / 2)


@pytest.mark.parametrize(
    ("n_photos", "expected"), [(1, 0.0), (19, 18 / 19), (20, 19 / 20), (21, (19 / 20 + 1) / 2)]
)
def test_batch_mean_at_the_edge_of_a_batch(n_photos: int, expected: float) -> None:
    predicted = np.array([1] + [0] * (n_photos - 1))
    found = batch_mean_balanced_accuracy(np.zeros(n_photos, dtype=int), predicted)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("true", "predicted"),
    [
        (RANDOM.integers(0, 6, 80), RANDOM.integers(0, 6, 80)),
        ([0, 0, 5, 5, 2], [0, 2, 5, 2, 2]),  # groups in between do not occur
        ([0, 1, 5], [1, 1, 1]),
        ([2, 2], [2, 2]),
        ([0], [4]),
    ],
)
def test_kappa_equals_brute_force(true: Any, predicted: Any) -> None:
    observed = np.mean([(t - p) ** 2 for t, p in zip(true, predicted, strict=True)])
    chance = np.mean([(t - p) ** 2 for t in true for p in predicted])
    found = quadratic_weighted_kappa(np.array(true), np.array(predicted))
    expected = 1 - observed / chance if chance else math.nan
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_within_one_group_by_hand() -> None:
    given = predictions([0, 1, 5, 3], np.eye(6)[[1, 3, 4, 3]])
    assert MEASURES["within_one_group"].function(given) == 0.75


# ----------------------------------------------------------------------------- ranks


@pytest.mark.parametrize(
    "logits",
    [
        RANDOM.normal(size=(40, 7)),
        RANDOM.integers(0, 3, (40, 7)).astype(float),  # ties
        np.zeros((5, 4)),
        np.zeros((3, 1)),
    ],
)
def test_ranks_of_the_true_class_equal_sorting(logits: np.ndarray) -> None:
    true = RANDOM.integers(0, logits.shape[1], len(logits))
    expected = []
    for row, label in zip(logits.tolist(), true.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c == label))
        expected.append(order.index(label) + 1)
    ranks = true_ranks(logits, true)
    assert ranks.tolist() == expected
    curve = cmc(ranks, 5)
    assert curve == pytest.approx([sum(r <= k for r in expected) / len(true) for k in range(1, 6)])
    given = predictions(true, logits)
    for k in (1, 5):  # a rank that cannot be missed is no result
        value = MEASURES[f"top_{k}"].function(given)
        expected_value = curve[k - 1] if k < logits.shape[1] else np.nan
        assert value == pytest.approx(expected_value, nan_ok=True)
    if len(np.unique(logits)) == logits.size:
        reference = [top_k_accuracy_score(true, logits, k=k, labels=range(7)) for k in (1, 5)]
        assert curve[[0, 4]] == pytest.approx(reference)


def test_queries_without_a_mate_are_left_out_of_the_cmc() -> None:
    assert cmc(np.array([1, np.nan, 3]), 3).tolist() == [0.5, 0.5, 1.0]
    assert np.isnan(cmc(np.array([np.nan]), 2)).all()


# ----------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, [0.25, 0.75]), (0.5, [0.1, 0.9]), (1e9, [0.5, 0.5])]
)
def test_softmax_by_hand(temperature: float, expected: list[float]) -> None:
    logits = np.array([[0.0, math.log(3)]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits, temperature), [expected], atol=1e-7)


@pytest.mark.parametrize("logits", [[1e4, 0.0, -1e4], [3e38, 3e38, -3e38], [89.0, 90.0, 91.0]])
def test_softmax_of_extreme_logits(logits: list[float]) -> None:
    probabilities = softmax(np.array([logits], dtype=np.float32))
    assert probabilities.dtype == np.float64
    reference = torch.tensor([logits], dtype=torch.float32).double().softmax(dim=1)
    np.testing.assert_allclose(probabilities, reference.numpy(), atol=1e-12)


def random_probabilities(n: int, n_classes: int, sharpness: float) -> np.ndarray:
    return softmax(RANDOM.normal(size=(n, n_classes)) * sharpness)


@pytest.mark.parametrize(
    ("true", "probabilities"),
    [
        (RANDOM.integers(0, 6, 300), random_probabilities(300, 6, 1.0)),
        (RANDOM.integers(0, 2, 300), random_probabilities(300, 2, 8.0)),
        ([0, 0], np.ones((2, 1))),
        ([1, 0], np.eye(2)[[1, 0]]),
        ([0, 1], np.eye(2)[[1, 0]]),  # certain and wrong
        ([0, 1, 1, 0], np.full((4, 2), 0.5)),
        ([0] * 50, random_probabilities(50, 3, 2.0)),
    ],
)
def test_measures_of_probabilities_equal_brute_force(true: Any, probabilities: np.ndarray) -> None:
    rows = list(zip(true, probabilities.tolist(), strict=True))
    n, error = len(rows), 0.0
    brier = sum((p - (c == t)) ** 2 for t, row in rows for c, p in enumerate(row)) / (2 * n)
    for k in range(15):
        found = [(max(row), row.index(max(row)) == t) for t, row in rows]
        inside = [(p, correct) for p, correct in found if k / 15 < p <= (k + 1) / 15]
        error += abs(sum(p - correct for p, correct in inside)) / n
    true = np.array(true)
    assert brier_score(true, probabilities) == pytest.approx(brier, abs=1e-12)
    assert expected_calibration_error(true, probabilities) == pytest.approx(error, abs=1e-12)
    if probabilities.shape[1] > 1:
        labels = range(probabilities.shape[1])
        reference = sklearn_log_loss(true, probabilities, labels=labels)
        assert log_loss(true, probabilities) == pytest.approx(reference, rel=1e-9)


def test_reliability_by_hand() -> None:
    probabilities = np.array([[0.5, 0.5], [0.4, 0.6], [0.0, 1.0], [1.0, 0.0]])
    bins = reliability(np.array([0, 0, 1, 1]), probabilities, n_bins=2)
    assert bins.photos.tolist() == [1, 3]  # a bin includes its upper end
    np.testing.assert_allclose(bins.confidence, [0.5, 2.6 / 3])
    np.testing.assert_allclose(bins.accuracy, [1, 1 / 3])
    empty = reliability(np.array([0]), np.array([[1.0]]), n_bins=2)
    assert np.isnan(empty.accuracy).tolist() == [True, False]


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_the_temperature_minimises_the_log_loss(scale: float) -> None:
    logits = RANDOM.normal(size=(400, 5)) * 2
    true = np.array([RANDOM.choice(5, p=row) for row in softmax(logits)])
    found = fit_temperature((logits * scale).astype(np.float32), true)
    grid = np.geomspace(0.05, 20, 2001)
    losses = [log_loss(true, softmax(logits * scale, t)) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=4e-3)


@pytest.mark.parametrize(
    ("logits", "true", "expected"),
    [
        ([[0.9, 0.0], [0.0, 0.3]], [0, 1], 1.0),  # no error
        ([[0.9, 0.0], [0.0, 0.3]], [1, 0], 20.0),  # nothing correct
        ([[1.0, 1.0]], [0], 1.0),  # no temperature changes anything
        ([[4.0], [2.0]], [0, 0], 1.0),  # a single class
        (np.zeros((0, 3)), np.zeros(0, dtype=int), math.nan),
    ],
)
def test_temperatures_without_an_optimum(logits: Any, true: Any, expected: float) -> None:
    found = fit_temperature(np.array(logits), np.array(true))
    assert found == pytest.approx(expected, rel=1e-3, nan_ok=True)


# ----------------------------------------------------------------------------- age


def test_expected_age_by_hand() -> None:
    means = class_means(np.array([18.0, 20.0, 21.0, 50.0]), np.array([0, 0, 1, 3]), 4)
    np.testing.assert_array_equal(means, [19, 21, np.nan, 50])
    probabilities = np.array([[0.5, 0.25, 0.0, 0.25], [0.1, 0.1, 0.6, 0.2], [0.0, 0.0, 1.0, 0.0]])
    expected = [27.25, (1.9 + 2.1 + 10) / 0.4, np.nan]  # groups without a mean are left out
    np.testing.assert_allclose(expected_age(probabilities, means), expected)


def test_mean_absolute_error_by_hand() -> None:
    logits = np.log([[0.5, 0.5], [0.9, 0.1]])
    given = predictions([0, 1], logits, ages=np.array([20, 31]), mean_ages=np.array([20.0, 30.0]))
    assert MEASURES["mae_years_of_expectation"].function(given) == pytest.approx((5 + 10) / 2)
    assert MEASURES["mae_years"].function(given).value == pytest.approx((0 + 11) / 2)


def test_the_error_of_a_calibrated_model_is_that_of_labels_drawn_from_it() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet((3, 1, 1), 60)
    errors = []
    for _ in range(1000):
        true = (random.random(60)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)
        errors.append(expected_calibration_error(true, probabilities))
    assert calibrated_error(probabilities) == pytest.approx(np.mean(errors), rel=0.04)
    assert calibrated_error(np.eye(2)) == 0


def test_a_fit_that_ends_at_a_bound_is_told_from_one_inside() -> None:
    true, confident = np.array([0, 1]), np.array([[500.0, 0], [499, 0]])  # one right, one wrong
    assert at_bound(fit_temperature(confident, true))
    assert not at_bound(fit_temperature(np.array([[5.0, 0], [4, 0], [1, 0]]), np.array([0, 1, 0])))
    assert at_bound(0.05)
    assert not at_bound(1.0)
    assert not at_bound(None)
