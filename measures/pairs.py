"""Measures of embeddings: verification of pairs, search in galleries, open-set search.

Scores are cosine similarities. Terms as in ISO/IEC 19795-1: a query's mates are the gallery's
photos of the same person; a pair of photos of one person is genuine, of two people impostor. Ties
count against the system. NaN: nothing to measure. Pairs with a similarity of -inf are
excluded from every measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from measures.classes import ratio
from measures.intervals import PeopleMeasure, normalised, people_mean
from measures.likelihood_ratio import (
    CrossCalibration,
    cross_calibrate,
    people_misleading,
    people_pair_rate,
)

BURST = 2  # frames; photos at most this far apart are near-duplicates, cut from one video

OPEN_SET_SEED = 0  # of the choice of the people enrolled

FALSE_MATCH_RATES = (0.1, 0.01, 0.001)  # that thresholds are set at
PROBE_SEED = 0  # of the choice of the photos that are fused

MIN_FALSE_MATCHES = 30  # pairs of people, or people not enrolled, that a threshold must rest on

WEIGHTS_PER_CHUNK = 100  # limits memory to tens of MB for 1,000 photos


def cosine_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosines, (N, M) float64 in [-1, 1], of embeddings (N, D) and (M, D); 0 for zeros.

    scikit-learn's function refuses an empty set, and stays in float32, which makes ties.
    """
    units = []
    for embeddings in (first, second):
        wide = embeddings.astype(np.float64)
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        units.append(wide / np.where(length == 0, 1, length))
    return units[0] @ units[1].T


def pairwise_similarity(
    embeddings: np.ndarray, people: np.ndarray, frames: np.ndarray, excluded_gap: int
) -> np.ndarray:
    """Return the similarity of all photos, (N, N) float64, -inf for excluded pairs.

    Excluded are pairs of a photo with itself, and near-duplicates.

    Args:
        embeddings: (N, D).
        people: (N,) person on the photo.
        frames: (N,) frame number of the photo; not used for a gap of 0.
        excluded_gap: genuine pairs at most this many frames apart are excluded; 0: none.
    """
    similarity = cosine_similarity(embeddings, embeddings)
    np.fill_diagonal(similarity, -np.inf)
    if excluded_gap:
        near = np.abs(frames[:, None] - frames) <= excluded_gap
        similarity[near & (people[:, None] == people)] = -np.inf
    return similarity


# ----------------------------------------------------------------------------- search in a gallery


def best_scores(
    similarity: np.ndarray, query_people: np.ndarray, gallery_people: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each query's similarity to its best mate, (N,), and to each non-mate, (N, M).

    -inf: there is none, or the pair is excluded.
    """
    same = query_people[:, None] == gallery_people
    mates = np.where(same, similarity, -np.inf).max(axis=1, initial=-np.inf)
    return mates, np.where(same, -np.inf, similarity)


def gallery_ranks(similarity: np.ndarray, people: np.ndarray, galleries: np.ndarray) -> np.ndarray:
    """Return the rank of each query's best mate in each gallery, (N, n_draws) float64, from 1.

    NaN for a photo that is in the gallery, or has no mate in it.

    Args:
        similarity: (N, M) of N queries and M >= N photos, of which the queries are the first.
        people: (M,) person on the photo.
        galleries: (n_draws, G) indices of photos: each gallery, one photo per person.
    """
    n_queries = len(similarity)
    ranks = np.full((n_queries, len(galleries)), np.nan)
    for draw, gallery in enumerate(galleries):
        mate, others = best_scores(similarity[:, gallery], people[:n_queries], people[gallery])
        rank = 1 + (others >= mate[:, None]).sum(axis=1)
        ranks[:, draw] = np.where(mate == -np.inf, np.nan, rank)
        ranks[gallery[gallery < n_queries], draw] = np.nan
    return ranks


def extended_ranks(
    similarity: np.ndarray,
    people: np.ndarray,
    galleries: np.ndarray,
    to_distractors: np.ndarray,
    distractors: np.ndarray,
) -> np.ndarray:
    """Return `gallery_ranks` in galleries that are extended by distractors, who are never mates.

    Args:
        similarity: (N, N) of all photos.
        people: (N,) person on the photo.
        galleries: (n_draws, G) indices of photos.
        to_distractors: (N, D) similarity of photos and distractors.
        distractors: (n_draws, K) indices of the distractors in each gallery.
    """
    return gallery_ranks(
        np.hstack([similarity, to_distractors]),
        np.append(people, np.full(to_distractors.shape[1], "")),  # nobody has an empty id
        np.hstack([galleries, distractors + len(people)]),
    )


def rank_1_probability(ranks: np.ndarray, n_people: int, n_kept: int) -> np.ndarray:
    """Return the probability of rank 1 when random people leave the gallery; NaN stays.

    Everybody else is equally likely to stay, the person searched for always does. None of the
    r - 1 people before rank r may be among those who stay: hypergeometric.

    Args:
        ranks: of any shape, from 1.
        n_people: in the gallery that the ranks are of, one photo each.
        n_kept: people who stay, at most `n_people`.
    """
    better, place = np.arange(n_people)[:, None], np.arange(n_kept - 1)
    others = n_people - 1 - place  # left to choose the next from
    by_rank = np.append((np.maximum(others - better, 0) / others).prod(axis=1), np.nan)
    return by_rank[np.where(np.isnan(ranks), n_people, ranks - 1).astype(np.int64)]


def rank_hits(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return whether each rank is k or better, float64 0 or 1; NaN where the rank is."""
    return np.where(np.isnan(ranks), np.nan, ranks <= k)


def trapezoidal_precision(ranks: np.ndarray) -> np.ndarray:
    """Return the average precision of queries with one mate by the trapezoidal rule; NaN stays.

    It is 1 at rank 1, else 1 / (2 rank): the mean of the precisions before and at the mate, 0 and
    1 / rank.

    Source: github.com/nathanlem1/MBA-Net, evaluation_metrics.py, as in Market-1501's evaluation.
    """
    return np.where(ranks == 1, 1.0, 0.5 / ranks)


def sd_over_draws(scores: np.ndarray) -> float:
    """Return the standard deviation (n - 1) of the draws' mean scores; NaN below two draws.

    Args:
        scores: (N, n_draws), NaN for a photo that is no query.
    """
    searched = scores[:, ~np.isnan(scores).all(axis=0)]
    if searched.shape[1] < 2:
        return np.nan
    return float(np.nanmean(searched, axis=0).std(ddof=1))


class Retrieval(NamedTuple):
    """Scores of each query among all other photos, (N,) float64; NaN: it has no mate.

    average_precision: mean precision at the ranks of its mates; averaged: mAP.
    inverse_penalty: number of mates / rank of the last mate; averaged: mINP.
    """

    average_precision: np.ndarray
    inverse_penalty: np.ndarray


def retrieve(similarity: np.ndarray, people: np.ndarray) -> Retrieval:
    """Return the retrieval scores of each photo as a query among all others.

    Args:
        similarity: (N, N).
        people: (N,) person on the photo.

    Source: average precision as in torchreid, metrics/rank.py, and Market-1501 (Zheng et al.
    2015); mINP: Ye et al. 2021, arXiv 2001.04193.
    """
    found = np.full((2, len(people)), np.nan)
    for query, scores in enumerate(similarity):
        included = scores != -np.inf
        mate = (people == people[query])[included]
        order = np.lexsort((mate, -scores[included]))  # mates come last among ties
        ranks = np.flatnonzero(mate[order]) + 1
        if len(ranks):
            precision = np.arange(1, len(ranks) + 1) / ranks
            found[:, query] = precision.mean(), precision[-1]
    return Retrieval(*found)


def fnir_at_fpir(
    similarity: np.ndarray,
    query_people: np.ndarray,
    gallery_people: np.ndarray,
    fpir: float,
) -> float:
    """Return the false negative identification rate at a false positive identification rate.

    A search returns the person of the most similar photo if it reaches the threshold, which is the
    lowest at which at most `fpir` of the searches for people outside the gallery return somebody.
    The result is the fraction of searches for enrolled people that do not return them. NaN with
    fewer than 1 / fpir searches for people outside, or none for people inside.

    Args:
        similarity: (N, M) of queries and gallery.
        query_people: (N,) person on the photo, enrolled or not.
        gallery_people: (M,) person on the photo.
        fpir: in (0, 1).

    Source: ISO/IEC 19795-1:2021, FPIR and FNIR at rank 1.
    """
    mate, others = best_scores(similarity, query_people, gallery_people)
    outside = ~np.isin(query_people, gallery_people)
    other = others.max(axis=1, initial=-np.inf)
    return weighted_fnir(mate, other, outside, np.ones(len(mate)), fpir)


def weighted_fnir(
    mate: np.ndarray, other: np.ndarray, outside: np.ndarray, weights: np.ndarray, fpir: float
) -> float:
    """Return `fnir_at_fpir` of searches, (N,) each.

    Args:
        mate: similarity to the best mate; -inf: there is none.
        other: similarity to the best of the others.
        outside: whether the person is not enrolled.
        weights: how often the search counts.
        fpir: in (0, 1).
    """
    threshold = threshold_at(other[outside], weights[outside], fpir)
    return open_set_rates(mate, other, outside, weights, threshold)[0]


def threshold_at(scores: np.ndarray, weights: np.ndarray, rate: float) -> float:
    """Return the lowest of the scores that at most `rate` of them exceed.

    NaN with fewer than 1 / rate scores.

    Args:
        scores: (N,).
        weights: (N,) how often each score counts.
        rate: in (0, 1).
    """
    order = np.argsort(-scores)
    counts = np.cumsum(weights[order])
    if not len(order) or counts[-1] * rate < 1:
        return np.nan
    # a score must exceed the first that would be one too many
    return float(scores[order][np.argmax(counts / counts[-1] > rate)])


class OpenSetRates(NamedTuple):
    """False negative and false positive identification rate; NaN without a search of the kind."""

    fnir: float
    fpir: float


def open_set_rates(
    mate: np.ndarray, other: np.ndarray, outside: np.ndarray, weights: np.ndarray, threshold: float
) -> OpenSetRates:
    """Return the rates of searches that return somebody above a threshold; NaN for one of NaN.

    Arguments as of `weighted_fnir`.
    """
    missed = ~((mate > threshold) & (mate > other))
    kinds = ((missed, mate > -np.inf), (other > threshold, outside))
    return OpenSetRates(
        *(
            float(np.average(errors[rows], weights=weights[rows]))
            if weights[rows].any() and not np.isnan(threshold)
            else np.nan
            for errors, rows in kinds
        )
    )


class OpenSetSearch:
    """The searches in one gallery, from which people may be left out.

    Args:
        similarity: (N, M) of queries and gallery, one photo per person.
        query: (N,) number of the person on the photo.
        gallery: (M,) number of the person on the photo.
    """

    def __init__(self, similarity: np.ndarray, query: np.ndarray, gallery: np.ndarray) -> None:
        self.query, self.outside = query, ~np.isin(query, gallery)
        self.mate, others = best_scores(similarity, query, gallery)
        ranking = np.argsort(-others, axis=1)
        nobody = np.full((len(query), 1), -1)  # behind the last of the gallery
        self._ranked = np.hstack([gallery[ranking], nobody])
        scores = np.take_along_axis(others, ranking, axis=1)
        self._scores = np.hstack([scores, np.full(nobody.shape, -np.inf)])

    def other(self, weights: np.ndarray) -> np.ndarray:
        """Return the similarity to the best of the others, (N,); people of weight 0 are not there.

        Args:
            weights: of the people.
        """
        kept = np.append(weights > 0, True)  # nobody is the last
        rows, place = np.arange(len(self.query)), np.zeros(len(self.query), dtype=np.int64)
        while (left_out := ~kept[self._ranked[rows, place]]).any():
            place += left_out
        return self._scores[rows, place]

    def fnir(self, weights: np.ndarray, fpir: float) -> float:
        """Return FNIR at `fpir`; people with weight 0 neither search nor are in the gallery."""
        searches = (self.mate, self.other(weights), self.outside, weights[self.query])
        return weighted_fnir(*searches, fpir)

    def rates(self, weights: np.ndarray, threshold: float) -> OpenSetRates:
        """Return the rates at a threshold; people with weight 0 as in `fnir`."""
        searches = (self.mate, self.other(weights), self.outside, weights[self.query])
        return open_set_rates(*searches, threshold)


# ----------------------------------------------------------------------------- verification


class Comparisons(NamedTuple):
    """Pairs of photos: (M,) scores, (M,) indices of both photos, (N,) people of the photos."""

    score: np.ndarray
    first: np.ndarray
    second: np.ndarray
    people: np.ndarray

    @property
    def genuine(self) -> np.ndarray:
        """Whether each pair shows one person, (M,) bool."""
        return self.people[self.first] == self.people[self.second]

    def of(self, rows: np.ndarray) -> Comparisons:
        """Return some of the pairs, (M,) bool, with their photos alone."""
        photos = np.union1d(self.first[rows], self.second[rows])
        first, second = (np.searchsorted(photos, x[rows]) for x in (self.first, self.second))
        return Comparisons(self.score[rows], first, second, self.people[photos])


def compare_all(similarity: np.ndarray, people: np.ndarray) -> Comparisons:
    """Return every pair of different photos that is not excluded, once.

    Args:
        similarity: (N, N) of all photos.
        people: (N,) person on the photo.
    """
    first, second = np.nonzero(np.triu(similarity != -np.inf, k=1))
    return Comparisons(similarity[first, second], first, second, people)


class ErrorRates(NamedTuple):
    """The DET curve: (K,) false match and false non-match rates by rising threshold.

    A pair is accepted from the threshold on. The points are the corners of the curve, which is
    straight between them. NaN: there is no impostor, or no genuine pair.
    """

    threshold: np.ndarray
    fmr: np.ndarray
    fnmr: np.ndarray
    n_genuine: int
    n_impostor: int


class Verification:
    """False match and false non-match rates of pairs, for any weights of the people.

    A genuine pair of person i weighs w_i, an impostor pair of i and j w_i w_j. The corners of the
    curve are at genuine scores, so impostor scores need only be counted between these.

    Source: ISO/IEC 19795-1:2021, false match rate, false non-match rate, DET curve.
    """

    def __init__(self, pairs: Comparisons) -> None:
        self.people, person = np.unique(pairs.people, return_inverse=True)
        self.n_photos = len(person)
        one, other = np.sort([person[pairs.first], person[pairs.second]], axis=0)
        genuine = one == other
        self.scores = np.unique(pairs.score[genuine])
        # bin 2k lies between genuine scores k - 1 and k, bin 2k + 1 is score k itself
        bins = np.searchsorted(self.scores, pairs.score, side="left")
        bins += np.searchsorted(self.scores, pairs.score, side="right")
        n_bins, n_people = 2 * len(self.scores) + 1, len(self.people)
        codes, column = np.unique((one * n_people + other)[~genuine], return_inverse=True)
        self._one, self._other = codes // max(n_people, 1), codes % max(n_people, 1)
        self._impostor = _counts(bins[~genuine], column, (n_bins, len(codes)))
        self._genuine = _counts(bins[genuine], one[genuine], (n_bins, n_people))
        self.n_person_pairs = len(codes)
        self.shares = normalised(np.bincount(one[genuine], minlength=n_people)[:, None])

    def rates(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return FMR and FNMR at the corners, (K, B) each, for weights of the people, (B, P)."""
        columns = np.ascontiguousarray(weights.T)  # (P, B)
        impostor = _below(self._impostor @ (columns[self._one] * columns[self._other]))
        genuine = _below(self._genuine @ columns)
        # division of whole numbers: 1 of 100 is .01 exactly
        return ratio(impostor[-1] - impostor, impostor[-1]), ratio(genuine, genuine[-1])

    def curve(self) -> ErrorRates:
        """Return the error rates with every pair counted once."""
        fmr, fnmr = self.rates(np.ones((1, len(self.people))))
        corners = np.stack([self.scores, np.nextafter(self.scores, np.inf)], axis=1).ravel()
        threshold = np.concatenate([[-np.inf], corners, [np.inf]])
        counts = int(self._genuine.sum()), int(self._impostor.sum())
        return ErrorRates(threshold, fmr[:, 0], fnmr[:, 0], *counts)

    def equal_error_rate(self) -> PeopleMeasure:
        """Return the EER: FMR = FNMR on the curve, straight between its corners."""
        return self._of_people(_crossing)

    def fnmr_at_fmr(self, fmr: float) -> PeopleMeasure:
        """Return the lowest false non-match rate with a false match rate of at most `fmr`.

        NaN with fewer than `MIN_FALSE_MATCHES` / fmr pairs of different people: photos of the same
        two people are not independent, so the threshold would depend on a few people.

        Source: rule of 30: Doddington et al. 2000, The NIST speaker recognition evaluation.
        """
        enough = self.n_person_pairs * fmr >= MIN_FALSE_MATCHES

        def lowest(fmrs: np.ndarray, fnmrs: np.ndarray) -> np.ndarray:
            corner = np.argmax(fmrs <= fmr, axis=0)  # the first, 0, if FMR is undefined
            found = fnmrs[corner, np.arange(fnmrs.shape[1])]
            return np.where(enough & ~np.isnan(fmrs[-1]), found, np.nan)

        return self._of_people(lowest)

    def _of_people(self, of_rates: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> PeopleMeasure:
        """Return a measure from a function of FMR and FNMR, (K, B) each."""

        def of_weights(weights: np.ndarray) -> np.ndarray:
            starts = range(0, max(len(weights), 1), WEIGHTS_PER_CHUNK)
            chunks = [weights[start : start + WEIGHTS_PER_CHUNK] for start in starts]
            return np.concatenate([of_rates(*self.rates(chunk)) for chunk in chunks])

        return PeopleMeasure(self.people, of_weights, self.shares, self.n_photos)


def _counts(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """Return how often each (row, column) occurs."""
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)


def _below(counts: np.ndarray) -> np.ndarray:
    """Return sums, (K + 1, B): of the rows before each of K rows, and last of all rows."""
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

    NaN without a genuine pair, or with fewer than 1 / fmr impostor pairs, of which a rate of `fmr`
    cannot be observed.
    """
    if rates.n_impostor * fmr < 1:
        return np.nan
    return float(rates.fnmr[np.argmax(rates.fmr <= fmr)])


# ----------------------------------------------------------------------------- scores of pairs


@dataclass(frozen=True)
class PairScores:
    """Similarities of all pairs of photos, and which photos are measured.

    For one group (`of`), verification compares the group's photos with each other; searches use
    them as queries among all photos.

    similarity: (N, N) of all photos.
    all_people: (N,) person on the photo.
    galleries: (n_draws, G) indices of photos, one per person; (0, 0): none were drawn.
    ranks: (N, n_draws) as `gallery_ranks` returns them.
    n_distractors: number of photos that extend each gallery.
    extended_ranks: (N, n_draws) ranks in extended galleries; None: there are no distractors.
    retrieval: of all photos.
    photos: (n,) indices of the photos that are measured.
    val: scores of other unseen people, on whom thresholds are set; None: there are none.
    """

    similarity: np.ndarray
    all_people: np.ndarray
    galleries: np.ndarray
    ranks: np.ndarray
    n_distractors: int
    extended_ranks: np.ndarray | None
    retrieval: Retrieval
    photos: np.ndarray
    val: PairScores | None = None

    def of(self, rows: np.ndarray) -> PairScores:
        """Return the scores of some of the photos that are measured, (n,) indices of these."""
        return replace(self, photos=self.photos[rows])

    @property
    def people(self) -> np.ndarray:
        """The person on each photo that is measured, (n,)."""
        return self.all_people[self.photos]

    @cached_property
    def available(self) -> tuple[str, ...]:
        """The `needs` of measures that can be computed."""
        exists = {
            "pairs": True,
            "galleries": len(self.galleries) > 0,
            "distractors": self.extended_ranks is not None,
            "calibration": self.calibration is not None,
            "val": self.val is not None,
        }
        return tuple(need for need, found in exists.items() if found)

    @property
    def query_ranks(self) -> np.ndarray:
        """The ranks of the photos that are measured, (n, n_draws)."""
        return self.ranks[self.photos]

    @property
    def extended_query_ranks(self) -> np.ndarray:
        """The same in the extended galleries."""
        if self.extended_ranks is None:
            raise ValueError("extended galleries need distractors")
        return self.extended_ranks[self.photos]

    @cached_property
    def pairs(self) -> Comparisons:
        """The pairs of the photos that are measured."""
        return compare_all(self.similarity[np.ix_(self.photos, self.photos)], self.people)

    @cached_property
    def verification(self) -> Verification:
        """The error rates of `pairs` for any weights of the people."""
        return Verification(self.pairs)

    @cached_property
    def curve(self) -> ErrorRates:
        """The DET curve of `pairs`."""
        return self.verification.curve()

    @cached_property
    def calibration(self) -> CrossCalibration | None:
        """The calibrations of likelihood ratios; None: people seen in training, or too few."""
        if not len(self.galleries):
            return None
        return cross_calibrate(*compare_all(self.similarity, self.all_people))

    @cached_property
    def log_ratios(self) -> np.ndarray:
        """The natural logarithm of the likelihood ratio of each of `pairs`, (M,)."""
        if self.calibration is None:
            raise ValueError("likelihood ratios need a calibration")
        return self.calibration.log_likelihood_ratio(*self.pairs)

    def misleading(self, *, genuine: bool, beyond: float = 0.0) -> PeopleMeasure:
        """Return the rate of misleading evidence, as `people_misleading`."""
        return people_misleading(self.log_ratios, *self.pairs[1:], genuine=genuine, beyond=beyond)

    @property
    def n_enrolled(self) -> int:
        """The number of people in a gallery of the open-set search."""
        return self.galleries.shape[1] // 2

    @property
    def n_outside(self) -> int:
        """The number of people in the open-set search who are not in a gallery."""
        return self.galleries.shape[1] - self.n_enrolled

    def rank_rate(self, k: int) -> PeopleMeasure:
        """Return the fraction of searches with a mate at rank k or better, over all galleries."""
        return people_mean(self.rank_hits(k), self.people, is_rate=True)

    def rank_hits(self, k: int) -> np.ndarray:
        """Return whether each search has a mate at rank k or better, (n, n_draws) 0, 1 or NaN.

        NaN if a gallery has no more than k people, as it would always be 1.
        """
        hits = rank_hits(self.query_ranks, k)
        return hits if k < self.galleries.shape[1] else np.full_like(hits, np.nan)

    def rank_1_among(self, n_people: int) -> PeopleMeasure:
        """Return the expected rank-1 in galleries of `n_people` random people of those measured.

        NaN for more people than a gallery has.
        """
        ranks, n_all = self.query_ranks, self.galleries.shape[1]
        if n_people > n_all:
            return people_mean(np.full_like(ranks, np.nan), self.people, is_rate=True)
        hits = rank_1_probability(ranks, n_all, n_people)
        return people_mean(hits, self.people, is_rate=True)

    def probes(self, n_photos: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield each draw and gallery photo with the probes of its person, (q, n_photos) indices.

        The measured photos of a person that are neither in the gallery nor excluded are put in a
        random order, the same for any number, and cut into probes; the rest is left out.
        """
        random, names = np.random.default_rng(PROBE_SEED), np.unique(self.people)
        for draw, gallery in enumerate(self.galleries):
            for enrolled in gallery[np.isin(self.all_people[gallery], names)]:
                own = self.photos[self.people == self.all_people[enrolled]]
                own = random.permutation(own[self.similarity[own, enrolled] > -np.inf])
                yield draw, enrolled, own[: len(own) // n_photos * n_photos].reshape(-1, n_photos)

    def fused_rank_1(self, n_photos: int, *, gain: bool = False) -> PeopleMeasure:
        """Return rank-1 of `probes`.

        A probe's embedding is the mean of its photos' normalised embeddings: as its length changes
        no rank, the mean of their similarities stands for it.

        Args:
            n_photos: in a probe.
            gain: minus rank-1 of the same photos one at a time.
        """
        hits, people, used = [np.zeros(0)], [self.all_people[:0]], [self.photos[:0]]
        for draw, enrolled, probes in self.probes(n_photos):
            gallery = self.galleries[draw]
            scores = self.similarity[probes][:, :, gallery].mean(axis=1)
            first = (scores >= scores[:, gallery == enrolled]).sum(axis=1) == 1
            single = (self.ranks[probes, draw] == 1).mean(axis=1)
            hits.append(first - single if gain else first)
            people.append(np.full(len(probes), self.all_people[enrolled]))
            used.append(probes.ravel())
        found = people_mean(np.concatenate(hits), np.concatenate(people), is_rate=not gain)
        return replace(found, n_photos=len(np.unique(np.concatenate(used))))

    def fused_eer(self, n_photos: int, *, gain: bool = False) -> PeopleMeasure:
        """Return the EER of comparing each of `probes` with each photo of the gallery.

        The similarity is the mean of the photos' similarities.

        Args:
            n_photos: in a probe.
            gain: minus the EER of the same photos one at a time.
        """
        fused = self._probe_eer(n_photos, fused=True)
        if not gain:
            return fused
        single = self._probe_eer(n_photos, fused=False)

        def of_weights(weights: np.ndarray) -> np.ndarray:
            return fused.of_weights(weights) - single.of_weights(weights)

        return replace(fused, of_weights=of_weights, is_rate=False)

    def _probe_eer(self, n_photos: int, *, fused: bool) -> PeopleMeasure:
        """Return the EER of probes, or of their photos one at a time."""
        scores, own, compared, used = [], [], [], []
        for draw, enrolled, probes in self.probes(n_photos):
            gallery = self.galleries[draw]
            found = self.similarity[probes][:, :, gallery]
            found = found.mean(axis=1) if fused else found.reshape(-1, len(gallery))
            scores.append(found.ravel())
            own.append(np.full(found.size, enrolled))  # another photo of the person
            compared.append(np.tile(gallery, len(found)))
            used.append(probes.ravel())
        score, first, second = map(np.concatenate, (scores, own, compared))
        pairs = Comparisons(score, first, second, self.all_people)
        measure = Verification(pairs).equal_error_rate()
        return replace(measure, n_photos=len(np.unique(np.concatenate(used))))

    @cached_property
    def searches(self) -> list[OpenSetSearch]:
        """The open-set searches in each gallery; people are numbered in sorted order.

        Half of the people of each gallery, drawn at random, are enrolled; the photos that are not
        in the gallery search for them.
        """
        _, person = np.unique(self.all_people, return_inverse=True)
        random, searches = np.random.default_rng(OPEN_SET_SEED), []
        for gallery in self.galleries:
            enrolled = random.permutation(gallery)[: self.n_enrolled]
            query = np.setdiff1d(self.photos, gallery)
            similarity = self.similarity[np.ix_(query, enrolled)]
            searches.append(OpenSetSearch(similarity, person[query], person[enrolled]))
        return searches

    def open_set_fnir(self, fpir: float) -> PeopleMeasure:
        """Return FNIR at `fpir`, averaged over the galleries.

        A person with weight 0 neither searches nor is enrolled. NaN with fewer than
        `MIN_FALSE_MATCHES` / fpir people outside the galleries, as in `Verification.fnmr_at_fmr`:
        searches for the same person are not independent.
        """
        known = self.n_outside * fpir >= MIN_FALSE_MATCHES
        return self._open_set(lambda search, w: search.fnir(w, fpir), outside=False, known=known)

    def open_set_at_val(self, fpir: float, *, outside: bool) -> PeopleMeasure:
        """Return FNIR, or FPIR, at the threshold where val has `fpir`, averaged over the galleries.

        NaN where val has no threshold, as `open_set_fnir`.

        Args:
            fpir: in (0, 1).
            outside: return FPIR.
        """
        threshold = self.people_of_val.open_set_threshold(fpir)

        def rate(search: OpenSetSearch, weights: np.ndarray) -> float:
            return search.rates(weights, threshold)[int(outside)]

        return self._open_set(rate, outside=outside, known=not np.isnan(threshold))

    def _open_set(
        self,
        rate: Callable[[OpenSetSearch, np.ndarray], float],
        *,
        outside: bool,
        known: bool,
    ) -> PeopleMeasure:
        """Return the mean over the galleries of a rate of searches; NaN unless it is `known`.

        Args:
            rate: of a gallery's searches for weights of the people.
            outside: whether it is a rate of the searches for people who are not enrolled.
            known: whether there are enough people.
        """
        names = np.unique(self.all_people)
        queries = [search.query[search.outside == outside] for search in self.searches]
        counts = np.bincount(np.concatenate(queries), minlength=len(names))

        def of_weights(weights: np.ndarray) -> np.ndarray:
            if not known:
                return np.full(len(weights), np.nan)
            rates = np.array([[rate(search, row) for search in self.searches] for row in weights])
            return ratio(np.nansum(rates, axis=1), (~np.isnan(rates)).sum(axis=1))

        return PeopleMeasure(names, of_weights, normalised(counts[:, None]), len(self.photos))

    # ------------------------------------------------------------------ thresholds

    @property
    def people_of_val(self) -> PairScores:
        """The scores on which thresholds are set."""
        if self.val is None:
            raise ValueError("thresholds of val need the embeddings of val")
        return self.val

    def open_set_threshold(self, fpir: float) -> float:
        """Return the threshold of all open-set searches at `fpir`; NaN as `open_set_fnir`."""
        if self.n_outside * fpir < MIN_FALSE_MATCHES:
            return np.nan
        everybody = np.ones(len(np.unique(self.all_people)))
        scores = [search.other(everybody)[search.outside] for search in self.searches]
        return threshold_at(np.concatenate(scores), np.ones(sum(map(len, scores))), fpir)

    def match_threshold(self, fmr: float) -> float:
        """Return the similarity that `fmr` of the impostor pairs exceed.

        NaN with too few pairs of different people, as `Verification.fnmr_at_fmr`.
        """
        if self.verification.n_person_pairs * fmr < MIN_FALSE_MATCHES:
            return np.nan
        impostor = self.pairs.score[~self.pairs.genuine]
        return threshold_at(impostor, np.ones(len(impostor)), fmr)

    def match_rate_at_val(self, fmr: float, *, genuine: bool) -> PeopleMeasure:
        """Return FNMR (of genuine pairs), or FMR, at the threshold where val has `fmr`.

        NaN where val has no threshold.
        """
        threshold = self.people_of_val.match_threshold(fmr)
        matched = self.pairs.score > threshold
        errors = np.where(np.isnan(threshold), np.nan, matched != genuine)
        return people_pair_rate(errors, *self.pairs[1:], genuine=genuine)
