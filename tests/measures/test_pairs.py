"""Every measure of embeddings against a computation by plain loops, scikit-learn and lir."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score, roc_curve

from measures.bootstrap import bootstrap, draw_people, people_mean
from measures.classes import cmc
from measures.likelihood_ratio import cllr, cllr_min, fit_calibration, people_cllr, tippett
from measures.pairs import (
    Verification,
    compare_all,
    cosine_similarity,
    fnir_at_fpir,
    fnmr_at_fmr,
    gallery_ranks,
    near_pairs,
    nearest,
    retrieve,
)

RANDOM = np.random.default_rng(11)


def scene(n_people: int, n_photos: int, *, steps: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and people; `steps` rounds the scores, so that many are tied."""
    people = np.concatenate(
        [np.arange(n_people), RANDOM.integers(0, n_people, n_photos - n_people)]
    )
    centres = RANDOM.normal(size=(n_people, 8))
    embedding = centres[people] + 0.8 * RANDOM.normal(size=(n_photos, 8))
    similarity = cosine_similarity(embedding, embedding)
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
    "told apart without error": (np.kron(np.eye(4), np.ones((3, 3))), np.repeat([*"abcd"], 3)),
}
EXCLUDED = {"none": None, "itself": 0, "near": 2}


def left_out(people: np.ndarray, kind: str) -> np.ndarray | None:
    gap = EXCLUDED[kind]
    frames = np.arange(len(people)) // 2 * 3  # pairs of photos with one number
    if gap == 0:
        return np.eye(len(people), dtype=bool)
    return None if gap is None else near_pairs((people, people), (frames, frames), gap)


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
    assert nearest(found).tolist() == [0, 0]


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_near_pairs_equal_a_loop(gap: int) -> None:
    people, others = RANDOM.integers(0, 3, 20), RANDOM.integers(0, 3, 15)
    frames, numbers = RANDOM.integers(0, 9, 20), RANDOM.integers(0, 9, 15)
    expected = [
        [bool(p == q and abs(int(f) - int(g)) <= gap) for q, g in zip(others, numbers, strict=True)]
        for p, f in zip(people, frames, strict=True)
    ]
    assert near_pairs((people, others), (frames, numbers), gap).tolist() == expected


# ----------------------------------------------------------------------------- retrieval


def brute_retrieve(
    similarity: np.ndarray,
    queries: np.ndarray,
    gallery: np.ndarray,
    excluded: np.ndarray | None,
) -> list[tuple[float, float, float]]:
    """Return rank, average precision and inverse penalty of each query, from sorted lists."""
    found = []
    for i, person in enumerate(queries):
        kept = [j for j in range(len(gallery)) if excluded is None or not excluded[i, j]]
        ranked = sorted(kept, key=lambda j: (-similarity[i, j], gallery[j] == person))
        hits = [gallery[j] == person for j in ranked]
        if not any(hits):
            found.append((math.nan,) * 3)
            continue
        precisions = [sum(hits[: k + 1]) / (k + 1) for k in range(len(hits)) if hits[k]]
        last = max(k for k in range(len(hits)) if hits[k])
        found.append(
            (hits.index(True) + 1, sum(precisions) / len(precisions), sum(hits) / (last + 1))
        )
    return found


@pytest.mark.parametrize("kind", ["itself", "near"])
@pytest.mark.parametrize("name", SCENES)
def test_leave_one_out_equals_brute_force(name: str, kind: str) -> None:
    similarity, people = SCENES[name]
    excluded = left_out(people, kind)
    found = retrieve(similarity, people, people, excluded)
    expected = brute_retrieve(similarity, people, people, excluded)
    np.testing.assert_allclose(np.transpose(found), np.array(expected).reshape(-1, 3))
    ranks = [rank for rank, _, _ in expected if not math.isnan(rank)]
    curve = [sum(r <= k for r in ranks) / len(ranks) if ranks else math.nan for k in range(1, 11)]
    np.testing.assert_allclose(cmc(found.rank, 10), curve)


def test_average_precision_equals_scikit_learn() -> None:
    similarity, people = SCENES["some people"]
    found = retrieve(similarity, people, people, np.eye(50, dtype=bool)).average_precision
    for i in range(50):
        others = np.arange(50) != i
        mates = (people == people[i])[others]
        reference = average_precision_score(mates, similarity[i][others]) if mates.any() else np.nan
        assert found[i] == pytest.approx(reference, nan_ok=True)


def test_ties_never_flatter() -> None:
    similarity, people = SCENES["all tied"]
    found = retrieve(similarity, people, people, np.eye(12, dtype=bool))
    mates = (people[:, None] == people).sum(axis=1) - 1
    np.testing.assert_array_equal(found.rank[mates > 0], (12 - mates)[mates > 0])


@pytest.mark.parametrize("kind", EXCLUDED)
@pytest.mark.parametrize("name", [name for name in SCENES if name != "none"])
def test_ranks_per_gallery_equal_brute_force(name: str, kind: str) -> None:
    similarity, people = SCENES[name]
    excluded = left_out(people, kind)
    galleries = np.array(
        [[RANDOM.choice(np.flatnonzero(people == p)) for p in np.unique(people)] for _ in range(3)]
    )
    found = gallery_ranks(similarity, people, galleries, excluded)
    assert found.shape == (len(people), 3)
    for draw, gallery in enumerate(galleries):
        for i in range(len(people)):
            pairs = None if excluded is None else excluded[[i]][:, gallery]
            row = similarity[[i]][:, gallery]
            [(rank, _, _)] = brute_retrieve(row, people[[i]], people[gallery], pairs)
            expected = math.nan if i in gallery else rank
            assert found[i, draw] == pytest.approx(expected, nan_ok=True)
    hits = np.where(np.isnan(found), np.nan, found <= 1)
    interval = bootstrap(people_mean(hits, people), seed=0, n_draws=20)
    shown = hits[~np.isnan(hits)]
    assert interval.value == pytest.approx(shown.mean() if len(shown) else math.nan, nan_ok=True)


# ----------------------------------------------------------------------------- verification


def brute_rates(
    similarity: np.ndarray,
    people: np.ndarray,
    weights: dict[str, float],
    excluded: np.ndarray | None,
) -> list[tuple[float, float, float]]:
    """Return (threshold, FMR, FNMR) at every score and above all, by a loop over pairs."""
    pairs = [
        (similarity[i, j], people[i] == people[j], i, j)
        for i in range(len(people))
        for j in range(i + 1, len(people))
        if excluded is None or not excluded[i, j]
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


@pytest.mark.parametrize("kind", ["none", "near"])
@pytest.mark.parametrize("name", SCENES)
def test_verification_equals_brute_force(name: str, kind: str) -> None:
    similarity, people = SCENES[name]
    excluded = left_out(people, kind)
    verification = Verification(compare_all(similarity, people, excluded))
    curve = verification.curve()
    brute = brute_rates(similarity, people, dict.fromkeys(people, 1.0), excluded)
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
    weights = draw_people(len(measure.people), 101, seed=1)  # more than are taken at once
    expected = []
    for row in weights:
        by_name = dict(zip(measure.people.tolist(), row.tolist(), strict=True))
        expected.append(brute_eer(brute_rates(similarity, people, by_name, None)))
    np.testing.assert_allclose(measure.of_weights(weights), expected, atol=1e-12)
    found = bootstrap(measure, seed=1, n_draws=101)
    assert found.undefined_draws == np.isnan(expected).sum()
    assert found.n_photos == len(people)


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


def test_a_rate_that_was_too_rarely_tried_is_no_number() -> None:
    similarity, people = scene(20, 40)
    curve = Verification(compare_all(similarity, people)).curve()
    assert curve.n_impostor < 1000
    assert math.isnan(fnmr_at_fmr(curve, 0.001))
    assert 0 <= fnmr_at_fmr(curve, 0.01) <= 1


def test_one_impostor_of_a_hundred_is_one_percent() -> None:
    people = np.array(["a", "a", *(f"p{i:03d}" for i in range(50))])
    similarity = np.full((52, 52), 0.1)
    similarity[:2, 2:] = np.linspace(0.2, 0.9, 100).reshape(2, 50)
    similarity[0, 1] = 0.9  # tied with the best impostor
    excluded = np.zeros((52, 52), dtype=bool)
    excluded[2:, 2:] = True  # leaves 100 impostor pairs
    curve = Verification(compare_all(similarity, people, excluded)).curve()
    assert (curve.n_genuine, curve.n_impostor) == (1, 100)
    assert fnmr_at_fmr(curve, 0.01) == 0


# ----------------------------------------------------------------------------- open set


def brute_fnir(
    similarity: np.ndarray,
    queries: np.ndarray,
    gallery: np.ndarray,
    fpir: float,
    excluded: np.ndarray | None,
) -> float:
    """Return the lowest FNIR over all thresholds whose FPIR is allowed."""
    inside, outside = [], []
    for i, person in enumerate(queries):
        kept = [j for j in range(len(gallery)) if excluded is None or not excluded[i, j]]
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


@pytest.mark.parametrize("kind", ["none", "near"])
@pytest.mark.parametrize("fpir", [0.01, 0.1, 0.29, 0.5])
@pytest.mark.parametrize("name", SCENES)
def test_open_set_search_equals_brute_force(name: str, fpir: float, kind: str) -> None:
    similarity, people = SCENES[name]
    names, first = np.unique(people, return_index=True)
    gallery = first[: len(names) // 2 + 1]  # half the people are enrolled
    queries = np.setdiff1d(np.arange(len(people)), gallery)
    excluded = left_out(people, kind)
    pairs = np.ix_(queries, gallery)
    excluded = None if excluded is None else excluded[pairs]
    arguments = (similarity[pairs], people[queries], people[gallery], fpir, excluded)
    expected = brute_fnir(*arguments)
    assert fnir_at_fpir(*arguments) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("n_outside", [7, 100, 101])
@pytest.mark.parametrize("fpir", [0.07, 0.1, 0.29, 0.57])
def test_open_set_thresholds_at_whole_shares(n_outside: int, fpir: float) -> None:
    similarity = RANDOM.random((n_outside + 30, 2))
    queries = np.array(["a"] * 30 + ["x"] * n_outside)
    gallery = np.array(["a", "b"])
    expected = brute_fnir(similarity, queries, gallery, fpir, None)
    assert fnir_at_fpir(similarity, queries, gallery, fpir) == pytest.approx(expected, nan_ok=True)


# ----------------------------------------------------------------------------- likelihood ratios


def scores_of(n_genuine: int, n_impostor: int, *, distance: float, steps: int = 0) -> tuple:
    genuine = np.array([True] * n_genuine + [False] * n_impostor)
    scores = RANDOM.normal(size=len(genuine)) + distance * genuine
    return (np.round(scores * steps) / steps if steps else scores), genuine


SCORES = {
    "plain": scores_of(40, 300, distance=1.5),
    "ties": scores_of(40, 300, distance=1.5, steps=2),
    "all tied": (np.ones(6), np.array([True] * 2 + [False] * 4)),
    "told apart": (np.array([1.0, 2.0, 5.0, 6.0]), np.array([False, False, True, True])),
    "upside down": (np.array([5.0, 6.0, 1.0, 2.0]), np.array([False, False, True, True])),
    "one of each": (np.array([0.2, 0.1]), np.array([True, False])),
    "close": (np.array([0.1, 0.1 + 1e-16, 0.1 + 1e-15, 0.1 + 3e-16]), np.array([0, 1, 1, 0], bool)),
}
ONE_KIND = {
    "no impostor": (np.array([0.1, 0.2]), np.array([True, True])),
    "no genuine": (np.array([0.1, 0.2]), np.array([False, False])),
    "nothing": (np.zeros(0), np.zeros(0, dtype=bool)),
}


def brute_cllr(log_ratios: Sequence[float], genuine: Sequence[bool]) -> float:
    costs: dict[bool, list[float]] = {True: [], False: []}
    for value, same in zip(log_ratios, genuine, strict=True):
        costs[bool(same)].append(math.log2(1 + math.exp(-value if same else value)))
    return sum(sum(side) / len(side) for side in costs.values()) / 2


@pytest.mark.parametrize("name", SCENES)
def test_cllr_over_people_is_that_of_pairs_repeated_as_often_as_their_people(name: str) -> None:
    similarity, people = SCENES[name]
    pairs = compare_all(similarity, people)
    ratios = 5 * (pairs.score - 0.4)
    measure = people_cllr(pairs, ratios)
    assert measure.value == pytest.approx(cllr(ratios, pairs.genuine), nan_ok=True)
    for times in RANDOM.integers(0, 4, size=(3, len(measure.people))):
        count = dict(zip(measure.people, times, strict=True))
        repeated = [
            (ratio, same)
            for ratio, i, j, same in zip(
                ratios, pairs.first, pairs.second, pairs.genuine, strict=True
            )
            for _ in range(count[people[i]] * (1 if same else count[people[j]]))
        ]
        kinds = {same for _, same in repeated}
        expected = brute_cllr(*zip(*repeated, strict=True)) if len(kinds) == 2 else math.nan
        found = measure.of_weights(times[None].astype(float))[0]
        assert found == pytest.approx(expected, nan_ok=True)


def brute_pav(scores: Sequence[float], genuine: Sequence[bool]) -> float:
    """Return Cllr_min: pool tied scores, then neighbours whose ratios fall, pair by pair."""
    totals = (sum(genuine), len(genuine) - sum(genuine))
    blocks = []
    for score in sorted(set(scores)):
        kinds = [g for s, g in zip(scores, genuine, strict=True) if s == score]
        blocks.append([sum(kinds), len(kinds) - sum(kinds)])
    k = 0
    while k + 1 < len(blocks):
        (g, i), (h, j) = blocks[k], blocks[k + 1]
        if g * j >= h * i:  # the ratio does not rise
            blocks[k : k + 2] = [[g + h, i + j]]
            k = max(k - 1, 0)
        else:
            k += 1
    cost = 0.0
    for g, i in blocks:
        if g and i:
            ratio = (g / totals[0]) / (i / totals[1])
            cost += g / totals[0] * math.log2(1 + 1 / ratio) + i / totals[1] * math.log2(1 + ratio)
    return cost / 2


@pytest.mark.parametrize("name", SCORES)
def test_the_cost_equals_brute_force(name: str) -> None:
    scores, genuine = SCORES[name]
    assert cllr(scores, genuine) == pytest.approx(brute_cllr(scores, genuine))
    least = cllr_min(scores, genuine)
    assert least == pytest.approx(brute_pav(scores.tolist(), genuine.tolist()), abs=1e-9)
    assert 0 <= least <= min(1, cllr(scores, genuine)) + 1e-12
    assert cllr_min(np.exp(scores), genuine) == pytest.approx(least) or name == "close"


@pytest.mark.parametrize("name", SCORES)
def test_the_cost_is_what_lir_says(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own and of what it imports
        reference = pytest.importorskip("lir.metrics")
        models = pytest.importorskip("lir.data.models")
        scores, genuine = SCORES[name]
        truth = "hypothesis" if "hypothesis" in models.LLRData.model_fields else "labels"  # older
        data = models.LLRData(features=scores / np.log(10), **{truth: genuine.astype(int)})
        assert cllr(scores, genuine) == pytest.approx(reference.cllr(data))
        if name != "close":  # it takes them for ties
            assert cllr_min(scores, genuine) == pytest.approx(reference.cllr_min(data), abs=1e-9)


@pytest.mark.parametrize("name", ["plain", "ties", "told apart", "upside down", "one of each"])
def test_the_calibration_minimises_the_penalised_cost(name: str) -> None:
    scores, genuine = SCORES[name]
    z, n = scores / scores.std(), len(scores)

    def loss(line: np.ndarray) -> float:
        cost = cllr(line[0] * z + line[1], genuine) * np.log(2)  # the mean of both kinds' means
        return n * cost + line[0] ** 2 / 2

    best = minimize(loss, np.zeros(2), tol=1e-12).x
    found = fit_calibration(scores, genuine)
    assert found is not None
    assert found.slope * scores.std() == pytest.approx(best[0], abs=2e-3)
    assert found.intercept == pytest.approx(best[1], abs=5e-3)


def test_scores_of_normal_people_get_the_ratio_of_their_densities() -> None:
    scores, genuine = scores_of(20000, 60000, distance=2.0)
    found = fit_calibration(scores, genuine)
    assert found is not None
    assert (found.slope, found.intercept) == pytest.approx((2.0, -2.0), rel=0.05)
    scaled = fit_calibration(scores / 1000, genuine)  # cosines are small numbers
    assert scaled is not None
    assert scaled.slope == pytest.approx(1000 * found.slope, rel=1e-3)
    ratios = found.log_likelihood_ratio(scores)
    assert cllr(ratios, genuine) == pytest.approx(cllr_min(scores, genuine), abs=0.005)


@pytest.mark.parametrize("name", ONE_KIND)
def test_one_kind_of_comparison_measures_nothing(name: str) -> None:
    scores, genuine = ONE_KIND[name]
    assert math.isnan(cllr(scores, genuine))
    assert math.isnan(cllr_min(scores, genuine))
    assert fit_calibration(scores, genuine) is None
    curves = tippett(scores, genuine, n_points=5)
    assert len(curves.log10_ratio) == (5 if len(scores) else 0)
    assert np.isnan(curves.genuine).all() or np.isnan(curves.impostor).all()


def test_equal_scores_calibrate_nothing() -> None:
    assert fit_calibration(*SCORES["all tied"]) is None


def test_saying_nothing_costs_one_bit() -> None:
    assert cllr(np.zeros(9), np.arange(9) < 2) == pytest.approx(1)


def test_infinite_ratios_cost_nothing_or_all() -> None:
    genuine = np.array([True, False])
    assert cllr(np.array([np.inf, -np.inf]), genuine) == 0
    assert cllr(np.array([-np.inf, -np.inf]), genuine) == np.inf


@pytest.mark.parametrize("name", SCORES)
def test_tippett_curves_equal_counting(name: str) -> None:
    scores, genuine = SCORES[name]
    curves = tippett(scores, genuine, n_points=7)
    ratios = scores / np.log(10)
    np.testing.assert_allclose(curves.log10_ratio[[0, -1]], [ratios.min(), ratios.max()])
    for k, point in enumerate(curves.log10_ratio):
        for kind, curve in ((genuine, curves.genuine), (~genuine, curves.impostor)):
            expected = sum(value >= point for value in ratios[kind]) / kind.sum()
            assert curve[k] == pytest.approx(expected)
