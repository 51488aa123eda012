"""pairs.py against computations by plain loops and scikit-learn."""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_curve

from measures.intervals import interval_of
from measures.pairs import (
    PROBE_SEED,
    PairScores,
    Verification,
    compare_all,
    cosine_similarity,
    extended_ranks,
    fnir_at_fpir,
    fnmr_at_fmr,
    gallery_ranks,
    pairwise_similarity,
    retrieve,
)
from measures.registry import MEASURES

RANDOM = np.random.default_rng(11)
GAPS = (0, 2)


def scene(n_people: int, n_photos: int, *, steps: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and people; `steps` rounds the scores, so that many are tied."""
    people = np.concatenate(
        [np.arange(n_people), RANDOM.integers(0, n_people, n_photos - n_people)]
    )
    embeddings = RANDOM.normal(size=(n_people, 8))[people] + 0.8 * RANDOM.normal(size=(n_photos, 8))
    similarity = cosine_similarity(embeddings, embeddings)
    if steps:
        similarity = np.round(similarity * steps) / steps
    return similarity, np.array([f"p{person:02d}" for person in people])


SCENES = {
    "some people": scene(9, 50),
    "ties": scene(9, 50, steps=4),
    "fewer people": scene(7, 25),
    "fewer, with ties": scene(7, 25, steps=4),
    "all tied": (np.ones((12, 12)), scene(4, 12)[1]),
    "one photo per person": scene(10, 10),
    "one photo of most": scene(10, 13),
    "a single person": scene(1, 6),
    "two photos of one person": scene(1, 2),
    "two people": scene(2, 2),
    "one photo": scene(1, 1),
    "none": (np.zeros((0, 0)), np.zeros(0, dtype=str)),
    "separated without error": (np.kron(np.eye(4), np.ones((3, 3))), np.repeat([*"abcd"], 3)),
}


def excluding(name: str, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene without pairs of a photo with itself, or of neighbouring frames."""
    similarity, people = SCENES[name]
    frames = np.arange(len(people)) // 2 * 3  # two photos with each number
    near = (np.abs(frames[:, None] - frames) <= gap) & (people[:, None] == people) & (gap > 0)
    return np.where(near | np.eye(len(people), dtype=bool), -np.inf, similarity), people


@pytest.fixture(autouse=True)
def _no_warnings() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ----------------------------------------------------------------------------- similarity


def test_cosines_by_hand() -> None:
    one = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    other = np.array([[6.0, 8.0], [-3.0, -4.0], [4.0, -3.0]], dtype=np.float32)
    found = cosine_similarity(one, other)
    np.testing.assert_allclose(found, [[1, -1, 0], [0, 0, 0]], atol=1e-15)
    assert found.dtype == np.float64


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_excluded_pairs_equal_a_loop(gap: int) -> None:
    people, frames = RANDOM.integers(0, 3, 20), RANDOM.integers(0, 9, 20).astype(float)
    embeddings = RANDOM.normal(size=(20, 4))
    found = pairwise_similarity(embeddings, people, frames, gap)
    cosines = cosine_similarity(embeddings, embeddings)
    for i in range(20):
        for j in range(20):
            near = gap > 0 and people[i] == people[j] and abs(frames[i] - frames[j]) <= gap
            assert found[i, j] == (-np.inf if i == j or near else cosines[i, j])


# ----------------------------------------------------------------------------- search in a gallery


def scores_of(similarity: np.ndarray, people: np.ndarray, galleries: np.ndarray) -> PairScores:
    """Return scores without distractors."""
    return PairScores(
        similarity=similarity,
        all_people=people,
        galleries=galleries,
        ranks=gallery_ranks(similarity, people, galleries),
        n_distractors=0,
        extended_ranks=None,
        retrieval=retrieve(similarity, people),
        photos=np.arange(len(people)),
    )


def brute_search(
    scores: np.ndarray, person: str, gallery: np.ndarray
) -> tuple[float, float, float]:
    """Return best rank, average precision and inverse penalty of a query, from a sorted list."""
    kept = [j for j in range(len(gallery)) if scores[j] != -np.inf]
    hits = [
        gallery[j] == person for j in sorted(kept, key=lambda j: (-scores[j], gallery[j] == person))
    ]
    if not any(hits):
        return (math.nan,) * 3
    precisions = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits)) if hits[k]]
    return hits.index(True) + 1, float(np.mean(precisions)), precisions[-1]


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", SCENES)
def test_retrieval_equals_brute_force(name: str, gap: int) -> None:
    similarity, people = excluding(name, gap)
    expected = [brute_search(s, p, people)[1:] for s, p in zip(similarity, people, strict=True)]
    found = np.transpose(retrieve(similarity, people))
    np.testing.assert_allclose(found, np.array(expected).reshape(-1, 2))


def test_average_precision_equals_scikit_learn() -> None:
    similarity, people = excluding("some people", 0)
    found = retrieve(similarity, people).average_precision
    for i in range(50):
        others = np.arange(50) != i
        mates = (people == people[i])[others]
        reference = average_precision_score(mates, similarity[i][others]) if mates.any() else np.nan
        assert found[i] == pytest.approx(reference, nan_ok=True)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", [name for name in SCENES if name != "none"])
def test_ranks_in_galleries_equal_brute_force(name: str, gap: int) -> None:
    similarity, people = excluding(name, gap)
    galleries = np.array(
        [[RANDOM.choice(np.flatnonzero(people == p)) for p in np.unique(people)] for _ in range(3)]
    )
    found = gallery_ranks(similarity, people, galleries)
    expected = np.full((len(people), 3), np.nan)
    for draw, gallery in enumerate(galleries):
        for i in set(range(len(people))) - set(gallery):
            expected[i, draw] = brute_search(similarity[i, gallery], people[i], people[gallery])[0]
    np.testing.assert_array_equal(found, expected)
    scores = scores_of(similarity, people, galleries)
    for part, rows in (
        (scores, slice(None)),
        (scores.of(np.arange(len(people) // 2)), slice(len(people) // 2)),
    ):
        defined = expected[rows][~np.isnan(expected[rows])]
        can_be_wrong = len(defined) and len(np.unique(people)) > 2
        rate = (defined <= 2).mean() if can_be_wrong else np.nan
        assert part.rank_rate(2).value == pytest.approx(rate, nan_ok=True)


@pytest.mark.parametrize("name", ["fewer people", "fewer, with ties", "all tied", "two people"])
def test_rank_1_by_gallery_size_equals_all_galleries_of_that_size(name: str) -> None:
    similarity, people = excluding(name, 0)
    names = np.unique(people)
    galleries = np.array(
        [[RANDOM.choice(np.flatnonzero(people == p)) for p in names] for _ in "ab"]
    )
    scores = scores_of(similarity, people, galleries)
    for size in range(2, len(names) + 1):
        chances = []
        for gallery in galleries:
            for i in set(range(len(people))) - set(gallery):
                own = next(j for j in gallery if people[j] == people[i])
                others = itertools.combinations(sorted(set(gallery) - {own}), size - 1)
                hits = [all(similarity[i, own] > similarity[i, j] for j in kept) for kept in others]
                chances.append(np.mean(hits))
        found = scores.rank_1_among(size).value
        assert found == pytest.approx(np.mean(chances) if chances else math.nan, nan_ok=True)
    if len(names) > 2:
        assert scores.rank_1_among(len(names)).value == pytest.approx(scores.rank_rate(1).value)
    assert math.isnan(scores.rank_1_among(len(names) + 1).value)


def eer_of(pairs: list[tuple[float, str, str]]) -> float:
    """Return where the polyline of error rates at every score meets the diagonal."""
    genuine = np.array([score for score, a, b in pairs if a == b])
    impostor = np.array([score for score, a, b in pairs if a != b])
    thresholds = [*sorted({score for score, *_ in pairs}), math.inf]
    return brute_eer([(t, (impostor >= t).mean(), (genuine < t).mean()) for t in thresholds])


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("n_photos", [1, 2, 4])
def test_fused_probes_equal_mean_embeddings(n_photos: int, gap: int) -> None:
    random = np.random.default_rng(3)
    people = random.permutation(np.repeat([*"abcdef"], [1, 3, 4, 6, 9, 14]))
    frames = np.arange(len(people)) * 1.0
    units = random.standard_normal((6, 3))[np.unique(people, return_inverse=True)[1]]
    units += 0.9 * random.standard_normal(units.shape)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    galleries = [[random.choice(np.flatnonzero(people == p)) for p in "abcdef"] for _ in range(3)]
    similarity = pairwise_similarity(units * random.uniform(1, 9, (37, 1)), people, frames, gap)
    scores = scores_of(similarity, people, np.array(galleries))

    def is_first(embedding: np.ndarray, gallery: list[int], own: int) -> bool:
        cosines = units[gallery] @ embedding / np.linalg.norm(embedding)
        return gallery[int(np.argmax(cosines))] == own

    def compare(embedding: np.ndarray, gallery: list[int], own: int) -> list[Any]:
        return [(units[i] @ embedding, people[own], people[i]) for i in gallery]

    order, hits, gains, used = np.random.default_rng(PROBE_SEED), [], [], set()
    compared: dict[bool, list[Any]] = {True: [], False: []}
    for gallery in galleries:
        for enrolled in gallery:
            photos = [
                i
                for i in np.flatnonzero(people == people[enrolled])
                if i not in gallery and abs(frames[i] - frames[enrolled]) > gap
            ]
            photos = order.permutation(photos).astype(int).tolist()
            while len(photos) >= n_photos:
                probe, photos = photos[:n_photos], photos[n_photos:]
                used |= set(probe)
                hit = is_first(units[probe].mean(axis=0), gallery, enrolled)
                hits.append((people[enrolled], hit))
                compared[True] += compare(units[probe].mean(axis=0), gallery, enrolled)
                for i in probe:
                    compared[False] += compare(units[i], gallery, enrolled)
                gains.append(hit - np.mean([is_first(units[i], gallery, enrolled) for i in probe]))
    found, gain = scores.fused_rank_1(n_photos), scores.fused_rank_1(n_photos, gain=True)
    assert found.value == pytest.approx(np.mean([hit for _, hit in hits]))
    assert 0 < found.value < 1
    assert found.people.tolist() == sorted({who for who, _ in hits})
    assert "a" not in found.people  # the only photo is in the gallery
    assert found.n_photos == len(used)
    without = [np.mean([hit for who, hit in hits if who != left]) for left in found.people]
    assert found.leave_one_out.tolist() == pytest.approx(without)
    assert gain.value == pytest.approx(np.mean(gains))
    for left in ("", "e"):  # everybody, and without one person
        fused, single = (
            eer_of([(score, a, b) for score, a, b in part if left not in (a, b)])
            for part in compared.values()
        )
        weights = (np.unique(people) != left)[None].astype(float)
        for gained, expected in ((False, fused), (True, fused - single)):
            measure = scores.fused_eer(n_photos, gain=gained)
            assert measure.of_weights(weights) == pytest.approx(expected)
    if n_photos == 1:
        assert found.value == pytest.approx(scores.rank_rate(1).value)
    assert math.isnan(scores.fused_rank_1(14).value)


def brute_trapezoid(hits: list[bool]) -> float:
    """Return the area under the precision-recall curve of a ranking, by trapezoids."""
    area, n_found, before = 0.0, 0, 1.0  # precision before the first is 1
    for rank, hit in enumerate(hits, start=1):
        n_found += hit
        precision = n_found / rank
        if hit:
            area += (before + precision) / 2 / sum(hits)
        before = precision
    return area


@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("name", [name for name in SCENES if name != "none"])
def test_published_measures_in_galleries_equal_brute_force(name: str, n_draws: int) -> None:
    similarity, people = excluding(name, 0)
    n_photos, names = len(people), np.unique(people)
    galleries = np.array(
        [[RANDOM.choice(np.flatnonzero(people == p)) for p in names] for _ in range(n_draws)]
    )
    to_distractors = RANDOM.choice(similarity.ravel(), (n_photos, 7))  # ties with the mates' scores
    distractors = np.array([RANDOM.permutation(7)[:4] for _ in range(n_draws)])
    scores = PairScores(
        similarity=similarity,
        all_people=people,
        galleries=galleries,
        ranks=gallery_ranks(similarity, people, galleries),
        n_distractors=4,
        extended_ranks=extended_ranks(similarity, people, galleries, to_distractors, distractors),
        retrieval=retrieve(similarity, people),
        photos=np.arange(n_photos),
    )
    for extended in (False, True):
        firsts, areas = [], []
        for gallery, others in zip(galleries, distractors, strict=True):
            pairs = []
            for i in set(range(n_photos)) - set(gallery):
                ranking = [(-similarity[i, j], people[j] == people[i]) for j in gallery]
                ranking += [(-to_distractors[i, j], False) for j in others] * extended
                hits = [hit for _, hit in sorted(ranking)]  # mates come last among ties
                pairs.append((hits[0], brute_trapezoid(hits)))
            if pairs:
                firsts.append(np.mean([first for first, _ in pairs]))
                areas.append(np.mean([area for _, area in pairs]))
        suffix = "_extended" if extended else ""
        for key, by_draw in ((f"rank_1{suffix}", firsts), (f"mAP_trapezoidal{suffix}", areas)):
            if key == "rank_1" and len(names) == 1:
                by_draw = []  # the answer could not be wrong
            mean = np.mean(by_draw) if by_draw else math.nan
            spread = statistics.stdev(by_draw) if len(by_draw) > 1 else math.nan
            assert MEASURES[key].function(scores).value == pytest.approx(mean, nan_ok=True)
            found = MEASURES[f"{key}_sd"].function(scores)
            assert found == pytest.approx(spread, nan_ok=True)


# ----------------------------------------------------------------------------- verification


def brute_rates(
    similarity: np.ndarray,
    people: np.ndarray,
    weights: dict[str, float],
) -> list[tuple[float, float, float]]:
    """Return (threshold, FMR, FNMR) at every score and above all, by a loop over pairs."""
    pairs = [
        (similarity[i, j], people[i] == people[j], i, j)
        for i in range(len(people))
        for j in range(i + 1, len(people))
        if similarity[i, j] != -np.inf
    ]
    genuine = [(s, weights[people[i]]) for s, same, i, _ in pairs if same]
    impostor = [(s, weights[people[i]] * weights[people[j]]) for s, same, i, j in pairs if not same]
    n_genuine, n_impostor = (sum(w for _, w in side) for side in (genuine, impostor))
    if not n_genuine or not n_impostor:
        return []
    return [
        (
            t,
            sum(w for s, w in impostor if s >= t) / n_impostor,
            sum(w for s, w in genuine if s < t) / n_genuine,
        )
        for t in [*sorted({s for s, *_ in pairs}), math.inf]
    ]


def brute_eer(rates: list[tuple[float, float, float]]) -> float:
    """Return the rate where the polyline through all points meets the diagonal."""
    for (_, fmr, fnmr), (_, next_fmr, next_fnmr) in zip(rates, rates[1:], strict=False):
        if next_fnmr >= next_fmr:
            before, after = fmr - fnmr, next_fnmr - next_fmr
            return fmr + (next_fmr - fmr) * before / (before + after)
    return math.nan


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", SCENES)
def test_verification_equals_brute_force(name: str, gap: int) -> None:
    similarity, people = excluding(name, gap)
    verification = Verification(compare_all(similarity, people))
    curve = verification.curve()
    brute = brute_rates(similarity, people, dict.fromkeys(people, 1.0))
    assert verification.equal_error_rate().value == pytest.approx(brute_eer(brute), nan_ok=True)
    for limit in (0.01, 0.1, 0.5):
        allowed = [fnmr for _, fmr, fnmr in brute if fmr <= limit]
        if not allowed or curve.n_impostor * limit < 1:
            assert math.isnan(fnmr_at_fmr(curve, limit))
        else:
            assert fnmr_at_fmr(curve, limit) == pytest.approx(min(allowed))
    if not brute:
        assert np.isnan(curve.fmr).all() or np.isnan(curve.fnmr).all()
        return
    by_threshold = {t: (fmr, fnmr) for t, fmr, fnmr in brute}
    for threshold, fmr, fnmr in zip(curve.threshold, curve.fmr, curve.fnmr, strict=True):
        same = by_threshold[min(t for t in by_threshold if t >= threshold)]
        assert (fmr, fnmr) == pytest.approx(same)


@pytest.mark.parametrize(
    "name", ["fewer people", "fewer, with ties", "one photo of most", "all tied", "two people"]
)
def test_weights_of_people_weigh_pairs(name: str) -> None:
    similarity, people = SCENES[name]
    measure = Verification(compare_all(similarity, people)).equal_error_rate()
    n_people = len(measure.people)
    # more than one chunk
    weights = RANDOM.multinomial(n_people, np.full(n_people, 1 / n_people), 101).astype(float)
    expected = []
    for row in weights:
        by_name = dict(zip(measure.people.tolist(), row.tolist(), strict=True))
        expected.append(brute_eer(brute_rates(similarity, people, by_name)))
    np.testing.assert_allclose(measure.of_weights(weights), expected, atol=1e-12)
    found = interval_of(measure)
    assert found.n_photos == len(people)
    pairs = [math.comb((people == person).sum(), 2) for person in measure.people]
    squares = max(sum(n**2 for n in pairs), 1)
    assert found.effective_people == pytest.approx(sum(pairs) ** 2 / squares)


@pytest.mark.parametrize("name", ["some people", "ties"])
def test_the_curve_is_scikit_learns(name: str) -> None:
    pairs = compare_all(*SCENES[name])
    fmr, tpr, _ = roc_curve(pairs.genuine, pairs.score, drop_intermediate=False)
    curve = Verification(pairs).curve()
    assert curve.n_genuine + curve.n_impostor == len(pairs.score) == 50 * 49 // 2
    points = {(round(a, 12), round(1 - b, 12)) for a, b in zip(fmr, tpr, strict=True)}
    ours = {(round(a, 12), round(b, 12)) for a, b in zip(curve.fmr, curve.fnmr, strict=True)}
    assert ours <= points
    order = np.lexsort((-curve.fnmr, curve.fmr))
    for a, b in points:  # every point of scikit-learn's is on our line
        low, high = (
            np.interp(a, curve.fmr[o], curve.fnmr[o])
            for o in (order, np.lexsort((curve.fnmr, curve.fmr)))
        )
        assert min(low, high) - 1e-9 <= b <= max(low, high) + 1e-9


def test_a_rate_below_one_pair_is_undefined() -> None:
    similarity, people = scene(20, 40)
    curve = Verification(compare_all(similarity, people)).curve()
    assert curve.n_impostor < 1000
    assert math.isnan(fnmr_at_fmr(curve, 0.001))
    assert 0 <= fnmr_at_fmr(curve, 0.01) <= 1


def test_fnmr_at_fmr_leaves_people_out_like_brute_force() -> None:
    n_people = 80  # 3,160 pairs of people
    people = np.repeat(np.arange(n_people), 2)
    random = np.random.default_rng(0)
    units = random.standard_normal((n_people, 5))[people] + random.standard_normal((160, 5))
    similarity = pairwise_similarity(units, people, np.zeros(160), 0)
    verification = Verification(compare_all(similarity, people))
    measure = verification.fnmr_at_fmr(0.01)
    assert measure.value == fnmr_at_fmr(verification.curve(), 0.01)
    for person in (0, 33, 79):
        kept = people != person
        part = Verification(compare_all(similarity[np.ix_(kept, kept)], people[kept])).curve()
        assert measure.leave_one_out[person] == pytest.approx(fnmr_at_fmr(part, 0.01))
    found = interval_of(measure)
    assert 0 < found.low < found.value < found.high < 1
    assert math.isnan(verification.fnmr_at_fmr(0.009).value)  # 28 pairs of people


def test_one_impostor_of_a_hundred_is_one_percent() -> None:
    people = np.array(["a", "a", *(f"p{i:03d}" for i in range(50))])
    similarity = np.full((52, 52), 0.1)
    similarity[:2, 2:] = np.linspace(0.2, 0.9, 100).reshape(2, 50)
    similarity[0, 1] = 0.9  # tied with the best impostor
    similarity[2:, 2:] = -np.inf  # leaves 100 impostor pairs
    curve = Verification(compare_all(similarity, people)).curve()
    assert (curve.n_genuine, curve.n_impostor) == (1, 100)
    assert fnmr_at_fmr(curve, 0.01) == 0


# ----------------------------------------------------------------------------- open set


def brute_fnir(
    similarity: np.ndarray,
    queries: np.ndarray,
    gallery: np.ndarray,
    fpir: float,
) -> float:
    """Return the lowest FNIR over all thresholds whose FPIR is allowed."""
    inside, outside = [], []
    for i, person in enumerate(queries):
        kept = [j for j in range(len(gallery)) if similarity[i, j] != -np.inf]
        others = max((similarity[i, j] for j in kept if gallery[j] != person), default=-math.inf)
        mates = [similarity[i, j] for j in kept if gallery[j] == person]
        if mates:
            inside.append((max(mates), others))
        elif person not in set(gallery):
            outside.append(others)
    if not inside or len(outside) * fpir < 1:
        return math.nan
    rates = []
    for t in [*sorted({s for pair in inside for s in pair} | set(outside)), math.inf]:
        if sum(s >= t for s in outside) / len(outside) <= fpir:
            hits = sum(mate >= t and mate > other for mate, other in inside)
            rates.append(1 - hits / len(inside))
    return min(rates)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("fpir", [0.01, 0.1, 0.29, 0.5])
@pytest.mark.parametrize("name", SCENES)
def test_open_set_search_equals_brute_force(name: str, fpir: float, gap: int) -> None:
    similarity, people = excluding(name, gap)
    names, first = np.unique(people, return_index=True)
    gallery = first[: len(names) // 2 + 1]  # half the people are enrolled
    queries = np.setdiff1d(np.arange(len(people)), gallery)
    part = similarity[np.ix_(queries, gallery)]
    arguments = (part, people[queries], people[gallery], fpir)
    assert fnir_at_fpir(*arguments) == pytest.approx(brute_fnir(*arguments), nan_ok=True)


@pytest.mark.parametrize("n_outside", [7, 100, 101])
@pytest.mark.parametrize("fpir", [0.07, 0.1, 0.29, 0.57])
def test_open_set_thresholds_at_whole_shares(n_outside: int, fpir: float) -> None:
    similarity = RANDOM.random((n_outside + 30, 2))
    queries = np.array(["a"] * 30 + ["x"] * n_outside)
    gallery = np.array(["a", "b"])
    expected = brute_fnir(similarity, queries, gallery, fpir)
    assert fnir_at_fpir(similarity, queries, gallery, fpir) == pytest.approx(expected, nan_ok=True)
