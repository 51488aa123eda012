"""baselines.py against plain loops, NumPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from measures.baselines import (
    baseline_embeddings,
    compute_baselines,
    lookup_logits,
    nearest_logits,
)
from measures.classes import ClassPredictions, softmax

RANDOM = np.random.default_rng(3)


def features(n: int, people: np.ndarray, size: int = 12) -> np.ndarray:
    """Return features of which some dimensions vary with the person and some with the photo."""
    own = np.random.default_rng(0).normal(size=(20, size))
    return own[people] + RANDOM.normal(size=(n, size)) * np.linspace(0.1, 5, size)


def test_the_nearest_photo_decides() -> None:
    people, others = np.repeat(np.arange(10), 5), np.repeat(np.arange(10), 3)
    training, evaluated = features(50, people), features(30, others)
    labels = people % 3
    reference = KNeighborsClassifier(1, metric="cosine").fit(training, labels)
    logits = nearest_logits(evaluated, training, labels, 4)
    assert logits.argmax(axis=1).tolist() == reference.predict(evaluated).tolist()
    assert (softmax(logits)[:, 3] == 0).all()  # a class without a training photo


def test_an_identity_lookup_sums_the_probabilities_of_people() -> None:
    identity = np.array([[0.4, 0.3, 0.3], [0.0, 0.0, 1.0]])
    found = softmax(lookup_logits(identity, np.array([0, 1, 1]), np.array([3.0, 1.0])))
    assert found == pytest.approx(np.array([[0.4, 0.6], [0, 1]]), abs=1e-6)
    unknown = softmax(lookup_logits(identity, np.array([0, 1, -1]), np.array([3.0, 1.0])))
    assert unknown[1] == pytest.approx([0.75, 0.25])


def test_which_baselines_exist() -> None:
    people = np.repeat(np.arange(6), 4)
    arrays = {
        "people": people.astype(str),
        "gender_true": people % 2,
        "gender_train_counts": np.array([5, 7]),
        "training_gender_true": people % 2,
        "training_people": people.astype(str),
        "thumbnail": RANDOM.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8),
        "training_thumbnail": RANDOM.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8),
    }
    predictions = ClassPredictions(
        people % 2, np.zeros((24, 2)), 1.0, people, people * 0.0, np.full(2, np.nan)
    )
    found = compute_baselines("gender", arrays, predictions)
    assert set(found) == {"constant", "thumbnail_nearest", "thumbnail_logistic"}
    assert found["constant"].probabilities == pytest.approx(np.tile([5 / 12, 7 / 12], (24, 1)))
    assert set(baseline_embeddings(arrays)) == {"thumbnail"}
    mean = arrays["training_thumbnail"].reshape(24, -1).mean(axis=0)
    expected = arrays["thumbnail"].reshape(24, -1) - mean
    assert baseline_embeddings(arrays)["thumbnail"] == pytest.approx(expected)
    arrays |= {"imagenet": features(24, people), "training_imagenet": features(24, people)}
    found = compute_baselines("gender", arrays, predictions)
    assert {"imagenet_nearest", "imagenet_logistic"} < set(found)
    assert {"imagenet", "imagenet_whitened"} < set(baseline_embeddings(arrays))
