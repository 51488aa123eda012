"""The likelihood ratio of one comparison of two hands, each on one or several photos."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from measures.likelihood_ratio import cross_calibrate, fit_calibration, verbal_equivalent
from measures.pairs import Comparisons, compare_all, cosine_similarity
from measures.typicality import to_unit_length

SAME_PHOTO = 1 - 1e-6  # cosine similarity; another batch size changes the last digits
SEED = 0  # of the choice of the photos that are fused


class Support(NamedTuple):
    """A bounded likelihood ratio, and the pairs of photos or fused photos that calibrated it.

    left_out: people of the calibration who are on the compared photos.
    """

    log10_ratio: float
    bounds: tuple[float, float]
    words: str
    n_people: int
    n_pairs: int
    left_out: list[str]


def fuse(embeddings: np.ndarray) -> np.ndarray:
    """Return the mean, (..., D), of the normalised embeddings of a hand's photos, (..., n, D)."""
    return to_unit_length(to_unit_length(embeddings).mean(axis=-2))


def compare_fused(
    embeddings: np.ndarray, people: np.ndarray, n_first: int, n_second: int
) -> Comparisons:
    """Return comparisons of n_first with n_second photos: one with one, all pairs of photos.

    Otherwise the photos of a person are put in a random order and cut into disjoint groups.

    Args:
        embeddings: (N, D).
        people: (N,) person on the photo.
        n_first: number of photos on the one side.
        n_second: number of photos on the other.
    """
    if n_first == n_second == 1:
        similarity = cosine_similarity(embeddings, embeddings)
        np.fill_diagonal(similarity, -np.inf)
        return compare_all(similarity, people)
    random, size = np.random.default_rng(SEED), n_first + n_second
    groups = np.zeros((0, size), dtype=np.int64)
    for name in np.unique(people):
        own = random.permutation(np.flatnonzero(people == name))
        groups = np.vstack([groups, own[: len(own) // size * size].reshape(-1, size)])
    sides = [fuse(embeddings[part]) for part in np.split(groups, [n_first], axis=1)]
    first, second = np.indices((len(groups), len(groups))).reshape(2, -1)
    scores = cosine_similarity(*sides).ravel()
    return Comparisons(scores, first, second + len(groups), np.tile(people[groups[:, 0]], 2))


def support_of(
    first: np.ndarray, second: np.ndarray, embeddings: np.ndarray, people: np.ndarray
) -> Support | None:
    """Return the likelihood ratio of two hands; None: too few people or photos to calibrate it.

    It is calibrated on comparisons of as many photos. If a compared photo is one of the
    calibration's, it is that of test.py: the people of its block are left out.

    Args:
        first: (n, D) embeddings of the photos of the one hand.
        second: (m, D) of the other.
        embeddings: (N, D) of the calibration.
        people: (N,) person on the photo.
    """
    score = cosine_similarity(fuse(first)[None], fuse(second)[None])[0]
    pairs = compare_fused(embeddings, people, len(first), len(second))
    names = [known_people(side, embeddings, people) for side in (first, second)]
    known = sorted({*names[0], *names[1]} & set(pairs.people))
    if known:
        cross = cross_calibrate(*pairs)
        if cross is None or len(known) > 2:
            return None
        ends = np.array([known[0], known[-1]])
        log_ratio = cross.log_likelihood_ratio(score, np.array([0]), np.array([1]), ends)
        calibration, n_people = cross.parts[0], cross.n_people
    else:
        everybody, person = np.unique(pairs.people, return_inverse=True)
        ends = np.sort([person[pairs.first], person[pairs.second]], axis=0)
        couple, n_people = ends[0] * len(everybody) + ends[1], len(everybody)
        weights = 1 / np.bincount(couple)[couple] if len(couple) else None
        whole = fit_calibration(pairs.score, pairs.genuine, weights)
        if whole is None:
            return None
        calibration, log_ratio = whole, whole.log_likelihood_ratio(score)
    log10_ratio = float(log_ratio[0] / np.log(10))
    bounds = calibration.log10_min, calibration.log10_max
    words = verbal_equivalent(log10_ratio)
    return Support(log10_ratio, bounds, words, n_people, len(pairs.score), known)


def known_people(photos: np.ndarray, embeddings: np.ndarray, people: np.ndarray) -> set[str]:
    """Return the people on those of the photos, (n, D), that are photos of the calibration."""
    similarity = cosine_similarity(photos, embeddings)
    nearest = similarity.argmax(axis=1)
    return set(people[nearest[similarity.max(axis=1) >= SAME_PHOTO]].tolist())
