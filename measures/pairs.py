"""How well embeddings match people: retrieval, verification, open-set search, likelihood ratios.

Scores are cosine similarities, higher for the same person. Terms are those of ISO/IEC 19795-1: a
query's mates are the gallery's photos of its person; a comparison of two photos of one person is
genuine, of two people an impostor's. Ties count against the system. Pure functions of arrays; NaN
says that there was nothing to compare.

scikit-learn takes a second to load: it is imported where it is used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from measures.bootstrap import PeopleMeasure
from measures.classes import ratio

BURST = 2  # frames; neighbours in number are near-duplicates, cut from one video

WEIGHTS_AT_ONCE = (
    100  # draws of the bootstrap; bounds the memory to some tens of MB for 1,000 photos
)


def cosine_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosines, (N, M) float64 in [-1, 1], of embeddings (N, D) and (M, D); 0 for zeros.

    scikit-learn's function of this name refuses an empty set, and stays in float32, which ties.
    """
    units = []
    for embedding in (first, second):
        wide = embedding.astype(np.float64)
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        units.append(wide / np.where(length == 0, 1, length))
    return units[0] @ units[1].T


def near_pairs(
    people: tuple[np.ndarray, np.ndarray], frames: tuple[np.ndarray, np.ndarray], gap: int = BURST
) -> np.ndarray:
    """Return which pairs show one person within `gap` frames, (N, M) bool.

    Args:
        people: (N,) and (M,) who is on the photos.
        frames: (N,) and (M,) the numbers in the photos' names, integers.
        gap: in frames, inclusive; 0 finds a photo's pair with itself.
    """
    same = people[0][:, None] == people[1]
    return same & (np.abs(frames[0][:, None] - frames[1]) <= gap)


# ----------------------------------------------------------------------------- retrieval


class Retrieval(NamedTuple):
    """What each query found, each (N,) float64, NaN for a query without a mate.

    rank: of its best mate, from 1; the CMC is `metrics.cmc(rank, max_rank)`.
    average_precision: mean over its mates of the share of mates down to their rank; mean: mAP.
    inverse_penalty: number of mates by the rank of the last; mean: mINP.
    """

    rank: np.ndarray
    average_precision: np.ndarray
    inverse_penalty: np.ndarray


def retrieve(
    similarity: np.ndarray,
    query_people: np.ndarray,
    gallery_people: np.ndarray,
    excluded: np.ndarray | None = None,
) -> Retrieval:
    """Return how each query ranks the photos of the gallery.

    Leave-one-out: all photos are queries and gallery, `excluded` is their pairs with themselves
    (`np.eye(N, dtype=bool)`), or `near_pairs` to leave out those within some frames as well.

    Args:
        similarity: (N, M) of queries and gallery.
        query_people: (N,) who is on the photo.
        gallery_people: (M,) who is on the photo.
        excluded: (N, M) bool, pairs to leave out; None: no pair.

    Source: average precision as in torchreid, metrics/rank.py, and Market-1501 (Zheng et al.
    2015); mINP: Ye et al. 2021, arXiv 2001.04193.
    """
    found = np.full((3, len(query_people)), np.nan)
    for i, scores in enumerate(similarity):
        kept = slice(None) if excluded is None else ~excluded[i]
        mate = (gallery_people == query_people[i])[kept]
        order = np.lexsort((mate, -scores[kept]))  # at a tie the mates come last
        ranks = np.flatnonzero(mate[order]) + 1
        if len(ranks):
            precision = np.arange(1, len(ranks) + 1) / ranks
            found[:, i] = ranks[0], precision.mean(), precision[-1]
    return Retrieval(*found)


def gallery_ranks(
    similarity: np.ndarray,
    people: np.ndarray,
    galleries: np.ndarray,
    excluded: np.ndarray | None = None,
) -> np.ndarray:
    """Return the rank of each photo's best mate per gallery drawn, (N, n_draws) float64.

    NaN for a photo in that gallery, or without a mate in it. Rank-k is the share of ranks up to k
    in a column; `intervals.people_mean` takes hits (`np.where(np.isnan(r), r, r <= k)`) whole.

    Args:
        similarity: (N, N) of all photos.
        people: (N,) who is on the photo.
        galleries: (n_draws, G) row indices: the gallery of each draw, one photo a person.
        excluded: (N, N) bool, pairs to leave out; None: no pair.
    """
    ranks = np.full((len(people), len(galleries)), np.nan)
    for draw, gallery in enumerate(galleries):
        query = np.setdiff1d(np.arange(len(people)), gallery)
        pairs = np.ix_(query, gallery)
        left_out = None if excluded is None else excluded[pairs]
        found = retrieve(similarity[pairs], people[query], people[gallery], left_out)
        ranks[query, draw] = found.rank
    return ranks


def nearest(similarity: np.ndarray) -> np.ndarray:
    """Return the most similar photo of the gallery, (N,), first at a tie, for `identity_lookup`."""
    return similarity.argmax(axis=1)


# ----------------------------------------------------------------------------- verification


class Comparisons(NamedTuple):
    """Pairs of photos: (M,) scores, (M,) rows of the one and the other, (N,) people of the rows."""

    score: np.ndarray
    first: np.ndarray
    second: np.ndarray
    people: np.ndarray

    @property
    def genuine(self) -> np.ndarray:
        """Which pairs show one person, (M,) bool."""
        return self.people[self.first] == self.people[self.second]


def compare_all(
    similarity: np.ndarray, people: np.ndarray, excluded: np.ndarray | None = None
) -> Comparisons:
    """Return each pair of different photos once.

    Args:
        similarity: (N, N) of all photos.
        people: (N,) who is on the photo.
        excluded: (N, N) bool, pairs to leave out; None: no pair.
    """
    pairs = np.ones(similarity.shape, dtype=bool) if excluded is None else ~excluded
    first, second = np.nonzero(np.triu(pairs, k=1))
    return Comparisons(similarity[first, second], first, second, people)


class ErrorRates(NamedTuple):
    """The ROC and DET curve: a pair is accepted from `threshold` on; (K,) each, threshold rising.

    fmr: share of impostor comparisons accepted. fnmr: share of genuine ones rejected. The points
    are the corners of the curve, which is straight between them. NaN: no comparison of the kind.
    """

    threshold: np.ndarray
    fmr: np.ndarray
    fnmr: np.ndarray
    n_genuine: int
    n_impostor: int


class Verification:
    """False match and false non-match rates of comparisons, for any weights of the people.

    Genuine pairs weigh w_i, impostor pairs w_i w_j. The curve has its corners at genuine scores,
    so impostor scores are only counted between these: 2,000 draws take seconds, and are exact.

    Source: ISO/IEC 19795-1:2021, false match rate, false non-match rate, DET curve.
    """

    def __init__(self, pairs: Comparisons) -> None:
        self.people, person, photos = np.unique(
            pairs.people, return_inverse=True, return_counts=True
        )
        self.photos = photos[:, None]
        couple = np.sort([person[pairs.first], person[pairs.second]], axis=0)
        genuine = couple[0] == couple[1]
        self.scores = np.unique(pairs.score[genuine])
        # bin 2k lies between genuine scores k - 1 and k, bin 2k + 1 is score k itself
        bins = np.searchsorted(self.scores, pairs.score, side="left")
        bins += np.searchsorted(self.scores, pairs.score, side="right")
        n_bins, n_people = 2 * len(self.scores) + 1, len(self.people)
        code = couple[0] * n_people + couple[1]
        couples, column = np.unique(code[~genuine], return_inverse=True)
        self._one, self._other = couples // max(n_people, 1), couples % max(n_people, 1)
        self._impostor = _counts(bins[~genuine], column, (n_bins, len(couples)))
        self._genuine = _counts(bins[genuine], couple[0][genuine], (n_bins, n_people))

    def rates(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return FMR and FNMR at the corners, (K, B) each, for weights of the people, (B, P)."""
        columns = np.ascontiguousarray(weights.T)  # (P, B)
        impostor = _below(self._impostor @ (columns[self._one] * columns[self._other]))
        genuine = _below(self._genuine @ columns)
        # whole numbers divided, so that 1 of 100 is .01 and not a little more
        return ratio(impostor[-1] - impostor, impostor[-1]), ratio(genuine, genuine[-1])

    def curve(self) -> ErrorRates:
        """Return the error rates with every pair counted once."""
        fmr, fnmr = self.rates(np.ones((1, len(self.people))))
        corners = np.stack([self.scores, np.nextafter(self.scores, np.inf)], axis=1).ravel()
        threshold = np.concatenate([[-np.inf], corners, [np.inf]])
        counts = int(self._genuine.sum()), int(self._impostor.sum())
        return ErrorRates(threshold, fmr[:, 0], fnmr[:, 0], *counts)

    def equal_error_rate(self) -> PeopleMeasure:
        """Return the EER: the point of the curve, straight between corners, with FMR = FNMR."""

        def of_weights(weights: np.ndarray) -> np.ndarray:
            starts = range(0, len(weights), WEIGHTS_AT_ONCE)
            parts = [weights[start : start + WEIGHTS_AT_ONCE] for start in starts]
            return np.concatenate([_crossing(*self.rates(part)) for part in parts])

        return PeopleMeasure(self.people, of_weights, self.photos)


def _counts(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """Return how often each (row, column) occurs."""
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)


def _below(counts: np.ndarray) -> np.ndarray:
    """Return, (K + 1, B), the sum of the rows before each of K rows and, last, of all."""
    return np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts, axis=0)])


def _crossing(fmr: np.ndarray, fnmr: np.ndarray) -> np.ndarray:
    """Return where the curves, (K, B), meet: (B,), NaN where one is undefined."""
    excess = fnmr - fmr  # rises from -1 to 1
    after, draw = np.argmax(excess >= 0, axis=0), np.arange(fmr.shape[1])
    low, high = excess[after - 1, draw], excess[after, draw]
    start, end = fmr[after - 1, draw], fmr[after, draw]
    return start + (end - start) * ratio(low, low - high)


def fnmr_at_fmr(rates: ErrorRates, fmr: float) -> float:
    """Return the lowest false non-match rate with a false match rate of at most `fmr`.

    NaN without a genuine comparison, or with fewer than 1/fmr impostor comparisons: a rate of
    .001 cannot be seen in 500.
    """
    if rates.n_impostor * fmr < 1:
        return np.nan
    return float(rates.fnmr[np.argmax(rates.fmr <= fmr)])


# ----------------------------------------------------------------------------- open set


def fnir_at_fpir(
    similarity: np.ndarray,
    query_people: np.ndarray,
    gallery_people: np.ndarray,
    fpir: float,
    excluded: np.ndarray | None = None,
) -> float:
    """Return the false negative identification rate at a false positive identification rate.

    A query is answered by the person of the most similar photo, from a threshold on. The threshold
    is the lowest at which at most `fpir` of the queries of people outside the gallery are
    answered; the result is the share of queries of people inside it that are then not answered,
    or answered by somebody else. NaN with fewer than 1/fpir queries from outside, or none inside.

    Args:
        similarity: (N, M) of queries and gallery.
        query_people: (N,) who is on the photo; some are in the gallery and some are not.
        gallery_people: (M,) who is on the photo.
        fpir: in (0, 1).
        excluded: (N, M) bool, pairs to leave out; a query all of whose mates are is left out.

    Source: ISO/IEC 19795-1:2021, FPIR and FNIR at rank 1.
    """
    kept = np.ones(similarity.shape, dtype=bool) if excluded is None else ~excluded
    same = query_people[:, None] == gallery_people
    mate = np.where(same & kept, similarity, -np.inf).max(axis=1, initial=-np.inf)
    other = np.where(~same & kept, similarity, -np.inf).max(axis=1, initial=-np.inf)
    inside = (same & kept).any(axis=1)
    false = np.sort(other[~same.any(axis=1)])[::-1]
    if len(false) * fpir < 1 or not inside.any():
        return np.nan
    allowed = np.searchsorted(np.arange(len(false) + 1) / len(false), fpir, side="right") - 1
    threshold = false[allowed]  # to be exceeded: then `allowed` false answers at most
    return float(1 - ((mate > threshold) & (mate > other))[inside].mean())
