"""Every measure against brute force, scikit-learn and values worked out by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score
from sklearn.metrics import log_loss as sklearn_log_loss

from measures.classes import (
    age_measures,
    balanced_accuracy,
    batch_mean_balanced_accuracy,
    class_means,
    cmc,
    expected_age,
    fit_temperature,
    identity_lookup,
    label_measures,
    majority_class,
    probability_measures,
    reliability,
    roc_auc,
    softmax,
    true_ranks,
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


def test_no_row_no_number() -> None:
    none, no_logits = np.zeros(0, dtype=int), np.zeros((0, 3))
    found = [
        label_measures(none, none),
        probability_measures(none, no_logits),
        age_measures(none, none, none, none),
    ]
    assert all(math.isnan(value) for measures in found for value in measures.values())
    assert math.isnan(roc_auc(none, none))
    assert math.isnan(fit_temperature(no_logits, none))
    assert np.isnan(cmc(none, 2)).all()


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
    if len(np.unique(logits)) == logits.size:
        classes = range(logits.shape[1])
        reference = [top_k_accuracy_score(true, logits, k=k, labels=classes) for k in (1, 5)]
        assert curve[[0, 4]] == pytest.approx(reference)


def test_a_query_without_a_mate_is_left_out_of_the_curve() -> None:
    assert cmc(np.array([1, np.nan, 3]), 3).tolist() == [0.5, 0.5, 1.0]


AUC_CASES = {
    "ties": ([0, 1, 0, 1, 1], [0.5, 0.5, 0.1, 0.9, 0.1]),
    "all the same score": ([0, 1, 1], [0.3, 0.3, 0.3]),
    "upside down": ([0, 1], [1.0, 0.0]),
    "many": (RANDOM.integers(0, 2, 90).tolist(), RANDOM.integers(0, 20, 90).tolist()),
    "no man": ([0, 0], [0.2, 0.4]),
    "no woman": ([1], [0.2]),
}


@pytest.mark.parametrize("case", AUC_CASES)
def test_area_under_the_curve_counts_pairs(case: str) -> None:
    true, scores = AUC_CASES[case]
    pairs = [
        (high > low) + (high == low) / 2
        for high, a in zip(scores, true, strict=True)
        for low, b in zip(scores, true, strict=True)
        if a == 1 and b == 0
    ]
    expected = sum(pairs) / len(pairs) if pairs else math.nan
    found = roc_auc(np.array(true), np.array(scores))
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


# ----------------------------------------------------------------------------- probabilities


def uniform_rows(n_rows: int, n_classes: int, sharpness: float) -> np.ndarray:
    return softmax(RANDOM.normal(size=(n_rows, n_classes)) * sharpness)


PROBABILITY_CASES = {
    "mild": ([*RANDOM.integers(0, 6, 300)], uniform_rows(300, 6, 1.0)),
    "sharp": ([*RANDOM.integers(0, 2, 300)], uniform_rows(300, 2, 8.0)),
    "one row": ([1], np.array([[0.25, 0.75]])),
    "one class": ([0, 0], np.ones((2, 1))),
    "sure and right": ([1, 0], np.eye(2)[[1, 0]]),
    "sure and wrong": ([0, 1], np.eye(2)[[1, 0]]),
    "undecided": ([0, 1, 1, 0], np.full((4, 2), 0.5)),
    "one class absent": ([0] * 50, uniform_rows(50, 3, 2.0)),
}


@pytest.mark.parametrize("case", PROBABILITY_CASES)
def test_probability_measures_equal_brute_force(case: str) -> None:
    true, probabilities = PROBABILITY_CASES[case]
    rows = list(zip(true, probabilities.tolist(), strict=True))
    n = len(rows)
    brier = sum((p - (c == t)) ** 2 for t, row in rows for c, p in enumerate(row)) / (2 * n)
    log_loss = -sum(math.log(max(row[t], 2**-52)) for t, row in rows) / n
    error = 0.0
    for k in range(15):
        held = [(max(row), row.index(max(row)) == t) for t, row in rows]
        held = [(p, right) for p, right in held if k / 15 < p <= (k + 1) / 15]
        error += abs(sum(p - right for p, right in held)) / n
    found = probability_measures(np.array(true), probabilities)
    assert found["brier"] == pytest.approx(brier, abs=1e-12)
    assert found["log_loss"] == pytest.approx(log_loss, abs=1e-12)
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-12)
    assert 0 <= found["brier"] <= 1
    if probabilities.shape[1] > 1:
        labels = range(probabilities.shape[1])
        reference = sklearn_log_loss(true, probabilities, labels=labels)
        assert found["log_loss"] == pytest.approx(reference, rel=1e-9)


def test_reliability_by_hand() -> None:
    probabilities = np.array([[0.5, 0.5], [0.4, 0.6], [0.0, 1.0], [1.0, 0.0]])
    bins = reliability(np.array([0, 0, 1, 1]), probabilities, n_bins=2)
    assert bins.photos.tolist() == [1, 3]  # a bin holds its upper end
    np.testing.assert_allclose(bins.confidence, [0.5, 2.6 / 3])
    np.testing.assert_allclose(bins.accuracy, [1, 1 / 3])
    empty = reliability(np.array([0]), np.array([[1.0]]), n_bins=2)
    assert np.isnan(empty.accuracy).tolist() == [True, False]


LOGITS = RANDOM.normal(size=(400, 5)) * 2
DRAWN = np.array([RANDOM.choice(5, p=row) for row in softmax(LOGITS)])


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_the_temperature_is_the_one_of_least_log_loss(scale: float) -> None:
    found = fit_temperature((LOGITS * scale).astype(np.float32), DRAWN)
    grid = np.geomspace(0.05, 20, 4001)
    losses = [probability_measures(DRAWN, softmax(LOGITS * scale, t))["log_loss"] for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=2e-3)
    assert found == pytest.approx(scale, rel=0.15)  # the labels were drawn from LOGITS


@pytest.mark.parametrize(
    ("logits", "true", "expected"),
    [
        ([[0.9, 0.0], [0.0, 0.3]], [0, 1], 0.05),  # no error
        ([[0.9, 0.0], [0.0, 0.3]], [1, 0], 20.0),  # nothing right
        ([[1.0, 1.0]], [0], 1.0),  # no temperature changes anything
        ([[4.0], [2.0]], [0, 0], 1.0),  # a single class
    ],
)
def test_temperatures_without_an_optimum(
    logits: list[list[float]], true: list[int], expected: float
) -> None:
    assert fit_temperature(np.array(logits), np.array(true)) == pytest.approx(expected, rel=1e-3)


# ----------------------------------------------------------------------------- age


KAPPA_CASES = {
    "random": (RANDOM.integers(0, 6, 80).tolist(), RANDOM.integers(0, 6, 80).tolist()),
    "a group in between absent": ([0, 0, 5, 5, 2], [0, 2, 5, 2, 2]),
    "all right": ([0, 1, 2], [0, 1, 2]),
    "always one group": ([0, 1, 5], [1, 1, 1]),
    "one and the same": ([2, 2], [2, 2]),
    "one row, wrong": ([0], [4]),
}


@pytest.mark.parametrize("case", KAPPA_CASES)
def test_age_measures_equal_brute_force(case: str) -> None:
    true, predicted = KAPPA_CASES[case]
    ages = [18 + 3 * group for group in true]
    expected = [19.5 + 2 * group for group in predicted]
    observed = sum((t - p) ** 2 for t, p in zip(true, predicted, strict=True)) / len(true)
    chance = sum((t - p) ** 2 for t in true for p in predicted) / len(true) ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = age_measures(*(np.array(a) for a in (true, predicted, ages, expected)))
    kappa = 1 - observed / chance if chance else math.nan
    assert found["quadratic_weighted_kappa"] == pytest.approx(kappa, abs=1e-12, nan_ok=True)
    years = sum(abs(a - e) for a, e in zip(ages, expected, strict=True)) / len(ages)
    assert found["mae_years"] == pytest.approx(years)
    near = sum(abs(t - p) <= 1 for t, p in zip(true, predicted, strict=True)) / len(true)
    assert found["within_one_group"] == pytest.approx(near)


def test_the_expected_age_weighs_mean_training_ages() -> None:
    means = class_means(np.array([18, 20, 20, 40]), np.array([0, 0, 0, 2]), 4)
    np.testing.assert_allclose(means, [58 / 3, math.nan, 40, math.nan])
    probabilities = np.array([[1.0, 0, 0, 0], [0.2, 0.5, 0.2, 0.1], [0, 1, 0, 0]])
    # the second row splits evenly between the groups with an age; the third knows none of them
    expected = [58 / 3, (58 / 3 + 40) / 2, math.nan]
    np.testing.assert_allclose(expected_age(probabilities, means), expected)


# ----------------------------------------------------------------------------- controls


def test_controls_by_hand() -> None:
    assert majority_class(np.array([2, 0, 2, 0, 1])) == 0
    genders = np.array([1, 0, 1])
    assert identity_lookup(np.array([2, 2, 1]), genders).tolist() == [1, 1, 0]
