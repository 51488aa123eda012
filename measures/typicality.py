"""How a photo compares with those of training: is it as typical as val, is its person unknown?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf

from measures.pairs import best_scores

CHUNK = 256  # val photos that are compared at a time; limits memory


@dataclass(frozen=True)
class TrainingReference:
    """What a photo is compared with: the photos of train, and how those of val compare.

    embeddings: (N, D) float32 of train, of unit length.
    center: (D,) their mean.
    precision: (D, D) their inverse covariance.
    similarities: (M,) ascending: of each val photo, the cosine similarity to the nearest training
        photo of another person, as if its own person were unknown.
    distances: (M,) ascending: `distance` of each val photo.
    """

    embeddings: np.ndarray
    center: np.ndarray
    precision: np.ndarray
    similarities: np.ndarray
    distances: np.ndarray

    @classmethod
    def of_splits(
        cls, train: np.ndarray, train_people: np.ndarray, val: np.ndarray, val_people: np.ndarray
    ) -> TrainingReference:
        """Return the reference of embeddings, (N, D) and (M, D), of people, (N,) and (M,)."""
        train, val = to_unit_length(train), to_unit_length(val)
        nearest = []
        for start in range(0, len(val), CHUNK):
            part = slice(start, start + CHUNK)
            _, others = best_scores(val[part] @ train.T, val_people[part], train_people)
            nearest.append(others.max(axis=1))
        center, covariance = train.mean(axis=0), ledoit_wolf(train.astype(np.float64))[0]
        precision = np.linalg.pinv(covariance, hermitian=True)
        distances = mahalanobis(val, center, precision)
        return cls(train, center, precision, np.sort(np.concatenate(nearest)), np.sort(distances))

    def similarity(self, embedding: np.ndarray) -> float:
        """Return the cosine similarity of an embedding, (D,), to the nearest training photo."""
        return float((self.embeddings @ to_unit_length(embedding)).max())

    def typicality(self, embedding: np.ndarray) -> float:
        """Return the fraction of val photos that are at least as far from the training photos.

        Near 0: unlike the hands of the training. The distance of an embedding, (D,), is that of
        Mahalanobis, after division by its length.

        Source: Lee et al. 2018, arXiv 1807.03888, with one class.
        """
        distance = mahalanobis(to_unit_length(embedding)[None], self.center, self.precision)[0]
        return float(1 - np.searchsorted(self.distances, distance) / len(self.distances))

    def threshold(self, fpir: float) -> float | None:
        """Return the similarity that the fraction `fpir` of the val photos exceeds.

        It is the lowest at which so many searches for unknown people return somebody. None with
        fewer than 1 / fpir photos.

        Args:
            fpir: false-positive identification rate, in (0, 1).

        Source: ISO/IEC 19795-1:2021, FPIR.
        """
        n_above = int(len(self.similarities) * fpir + 1e-9)
        return float(self.similarities[-1 - n_above]) if n_above else None


def to_unit_length(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings, (..., D) float32, divided by their length; 0 for zeros."""
    length = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return (embeddings / np.where(length == 0, 1, length)).astype(np.float32)


def mahalanobis(points: np.ndarray, center: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return the Mahalanobis distances, (N,) float64, of points, (N, D)."""
    shifted = points.astype(np.float64) - center
    return np.sqrt(np.maximum(((shifted @ precision) * shifted).sum(axis=1), 0))
