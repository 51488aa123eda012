"""Typicality and the threshold of unknown people, by brute force and on known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from measures.typicality import CHUNK, TrainingReference


@pytest.fixture
def splits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings and people of train and val; the latter's are known, but for one person."""
    random = np.random.default_rng(0)
    people = np.arange(20).repeat(5), np.arange(1, 21).repeat(CHUNK // 10)
    means = random.normal(size=(21, 4)) + 1
    train, val = (means[p] + 0.1 * random.normal(size=(len(p), 4)) for p in people)
    return train, people[0].astype(str), val, people[1].astype(str)


def test_similarities_and_distances_equal_brute_force(
    splits: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    train, train_people, val, val_people = splits
    reference = TrainingReference.of_splits(*splits)
    similarity = 1 - cdist(val, train, "cosine")
    nearest = [row[train_people != p].max() for row, p in zip(similarity, val_people, strict=True)]
    np.testing.assert_allclose(reference.similarities, np.sort(nearest), atol=1e-6)
    np.testing.assert_allclose(
        [reference.similarity(embedding) for embedding in val], similarity.max(axis=1), atol=1e-6
    )
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, val)]
    squared = LedoitWolf().fit(units[0]).mahalanobis(units[1])
    np.testing.assert_allclose(reference.distances, np.sort(np.sqrt(squared)), rtol=1e-4)
    shares = [(squared >= own * (1 - 1e-9)).mean() for own in squared]
    found = [reference.typicality(embedding) for embedding in val]
    np.testing.assert_allclose(found, shares, atol=2 / len(val))


def test_the_threshold_lets_the_asked_fraction_through(
    splits: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    reference = TrainingReference.of_splits(*splits)
    n = len(reference.similarities)
    for fpir in (0.5, 0.1, 1 / n):
        threshold = reference.threshold(fpir)
        assert threshold is not None
        assert (reference.similarities > threshold).sum() == int(n * fpir + 1e-9)
    assert reference.threshold(0.9 / n) is None


def test_embeddings_that_are_all_equal_have_a_typicality() -> None:
    same = np.ones((6, 3))
    reference = TrainingReference.of_splits(
        same, np.array(list("aabbcc")), same, np.array(["a"] * 6)
    )
    assert reference.typicality(np.ones(3)) == 1
    assert reference.typicality(np.zeros(3)) <= 1
