"""linear.py against scikit-learn and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from measures.classes import softmax
from measures.linear import fit_logistic, fit_whitening

RANDOM = np.random.default_rng(3)


def features(people: np.ndarray, size: int = 12) -> np.ndarray:
    """Return features of which some dimensions vary with the person and some with the photo."""
    own = np.random.default_rng(0).normal(size=(20, size))
    return own[people] + RANDOM.normal(size=(len(people), size)) * np.linspace(0.1, 5, size)


def test_people_and_classes_weigh_alike_in_the_logistic_regression() -> None:
    people = np.array([0] * 40 + [1] * 2 + [2] * 3 + [3] * 3)
    training, labels = features(people), np.array([0] * 42 + [1] * 6)
    weights = np.concatenate([np.full(40, 6 / 40), np.full(2, 6 / 2), np.full(6, 2)])
    scaler = StandardScaler().fit(training)
    reference = LogisticRegression(max_iter=1000)
    training = scaler.transform(training)
    reference.fit(training, labels, sample_weight=weights * 48 / weights.sum())
    evaluated = scaler.transform(features(np.arange(9) % 4))
    found = softmax(fit_logistic(training, labels, people.astype(str), 2, 1.0)(evaluated))
    expected = reference.predict_proba(evaluated)
    assert found == pytest.approx(expected, abs=1e-4)
    one_class = fit_logistic(training, labels * 0 + 1, people.astype(str), 3, 1.0)(evaluated)
    assert softmax(one_class)[:, 1].min() > 0.999


def test_whitening_gives_training_people_equal_variance_in_all_directions() -> None:
    people = np.repeat(np.arange(20), 30)
    training = features(people)
    found = fit_whitening(training, people.astype(str), 12)(training)
    within = found - np.stack([found[people == p].mean(axis=0) for p in people])
    variances = np.linalg.eigvalsh(np.cov(within.T, bias=True))
    before = training - np.stack([training[people == p].mean(axis=0) for p in people])
    conditions = variances.max() / variances.min(), np.linalg.cond(np.cov(before.T))
    assert conditions[0] < conditions[1] / 10


def test_fewer_photos_than_dimensions() -> None:
    people = np.array(["a", "a", "b", "b", "c"])
    training = features(np.array([0, 0, 1, 1, 2]))
    whitening = fit_whitening(training, people, 8)
    assert (whitening.weight[4:] == 0).all()  # 5 photos span 4 dimensions
    assert np.abs(whitening(training).mean(axis=0)).max() < 1e-9
    alone = fit_whitening(training, np.arange(5), 8)  # nobody has two photos
    assert np.isfinite(alone.weight).all()
