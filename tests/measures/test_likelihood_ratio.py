"""likelihood_ratio.py against computations by plain loops and lir."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from measures.likelihood_ratio import (
    CrossCalibration,
    cllr_min,
    cross_calibrate,
    devpav,
    elub,
    fit_calibration,
    people_cllr,
    people_misleading,
    tippett,
    verbal_equivalent,
)

RANDOM = np.random.default_rng(11)


def scores_of(n_genuine: int, n_impostor: int, *, distance: float, steps: int = 0) -> tuple:
    genuine = np.array([True] * n_genuine + [False] * n_impostor)
    scores = RANDOM.normal(size=len(genuine)) + distance * genuine
    return (np.round(scores * steps) / steps if steps else scores), genuine


SCORES = {
    "plain": scores_of(40, 300, distance=1.5),
    "ties": scores_of(40, 300, distance=1.5, steps=2),
    "all tied": (np.ones(6), np.array([True] * 2 + [False] * 4)),
    "separated": (np.array([1.0, 2.0, 5.0, 6.0]), np.array([False, False, True, True])),
    "upside down": (np.array([5.0, 6.0, 1.0, 2.0]), np.array([False, False, True, True])),
    "one of each": (np.array([0.2, 0.1]), np.array([True, False])),
    "close": (np.array([0.1, 0.1 + 1e-16, 0.1 + 1e-15, 0.1 + 3e-16]), np.array([0, 1, 1, 0], bool)),
}
ONE_KIND = {
    "no impostor": (np.array([0.1, 0.2]), np.array([True, True])),
    "no genuine": (np.array([0.1, 0.2]), np.array([False, False])),
    "nothing": (np.zeros(0), np.zeros(0, dtype=bool)),
}


def brute_cllr(log_ratios: np.ndarray, genuine: np.ndarray) -> float:
    costs: dict[bool, list[float]] = {True: [], False: []}
    for value, same in zip(log_ratios, genuine, strict=True):
        costs[bool(same)].append(math.log2(1 + math.exp(-value if same else value)))
    return sum(sum(side) / len(side) for side in costs.values()) / 2


def cllr(log_ratios: np.ndarray, genuine: np.ndarray) -> float:
    """Return the cost of pairs of which no two share a person."""
    n = len(genuine)
    first, second = np.arange(n), np.arange(n, 2 * n)
    people = np.concatenate([first, np.where(genuine, first, second)])
    return people_cllr(log_ratios, first, second, people).value


@pytest.mark.parametrize("n_people", [1, 2, 4, 9])
def test_weights_of_people_weigh_pairs(n_people: int) -> None:
    people = RANDOM.integers(0, n_people, 20)
    first, second = np.triu_indices(20, 1)
    genuine = people[first] == people[second]
    ratios = RANDOM.normal(size=len(first)) + 2 * genuine
    measure = people_cllr(ratios, first, second, people)
    for weights in [np.ones(len(measure.people)), *RANDOM.integers(0, 4, (3, len(measure.people)))]:
        count = dict(zip(measure.people, weights.astype(int), strict=True))
        times = [
            count[people[i]] * (1 if people[i] == people[j] else count[people[j]])
            for i, j in zip(first, second, strict=True)
        ]
        kinds = set(np.repeat(genuine, times))
        expected = math.nan
        if len(kinds) == 2:
            expected = brute_cllr(np.repeat(ratios, times), np.repeat(genuine, times))
        found = measure.of_weights(weights[None].astype(float))[0]
        assert found == pytest.approx(expected, nan_ok=True)


def brute_pav(scores: list[float], genuine: list[bool]) -> float:
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
def test_the_cost_equals_that_of_lir(name: str) -> None:
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


@pytest.mark.parametrize("name", ["plain", "ties", "separated", "upside down", "one of each"])
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


def test_normal_scores_get_the_ratio_of_their_densities() -> None:
    scores, genuine = scores_of(20000, 60000, distance=2.0)
    found = fit_calibration(scores, genuine)
    assert found is not None
    assert (found.slope, found.intercept) == pytest.approx((2.0, -2.0), rel=0.05)
    scaled = fit_calibration(scores / 1000, genuine)  # cosines are small numbers
    assert scaled is not None
    assert scaled.slope == pytest.approx(1000 * found.slope, rel=1e-3)
    unbounded = found.slope * scores + found.intercept
    assert cllr(unbounded, genuine) == pytest.approx(cllr_min(scores, genuine), abs=0.005)


@pytest.mark.parametrize("name", ONE_KIND)
def test_pairs_of_one_kind_have_no_cost(name: str) -> None:
    scores, genuine = ONE_KIND[name]
    assert math.isnan(cllr(scores, genuine))
    assert math.isnan(cllr_min(scores, genuine))
    assert math.isnan(devpav(scores, genuine))
    assert fit_calibration(scores, genuine) is None
    if len(scores):
        curves = tippett(scores, genuine, n_points=5)
        assert np.isnan(curves.impostor if genuine.all() else curves.genuine).all()


def test_equal_scores_have_no_calibration() -> None:
    assert fit_calibration(*SCORES["all tied"]) is None


def test_no_information_costs_one_bit() -> None:
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


@pytest.mark.parametrize("name", ["plain", "ties", "separated", "upside down", "one of each"])
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_bounds_and_devpav_equal_those_of_lir(name: str, factor: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bayeserror = pytest.importorskip("lir.algorithms.bayeserror")
        reference = pytest.importorskip("lir.metrics.devpav")
        scores, genuine = SCORES[name]
        ratios = factor * scores
        expected = bayeserror.elub(ratios.copy(), genuine.astype(int))
        assert elub(ratios, genuine) == pytest.approx(expected, abs=1e-6)
        expected = reference.devpav(ratios, genuine.astype(int))
        found = devpav(ratios * np.log(10), genuine)
        assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_bounds_by_hand() -> None:
    separated = np.array([-5.0] * 99 + [5.0] * 9)
    genuine = separated > 0
    # 1 of 10 genuine pairs is missed from the added one on, 1 of 100 impostor pairs accepted:
    # LR = 0.1 / (99 / 100) and (9 / 10) / 0.01, to two decimals towards 1
    assert elub(separated, genuine) == pytest.approx((-0.99, 1.95))
    weights = np.where(genuine, 1 / 9, 1 / 99)  # as if one pair of each kind
    assert elub(separated, genuine, weights) == pytest.approx((0, 0))
    assert elub(-separated, genuine) == (0, 0)


def test_more_photos_of_the_same_people_do_not_widen_the_bounds() -> None:
    def bounds(n_photos: int) -> tuple[float, float]:
        people = np.repeat(np.arange(12), n_photos)
        first, second = np.triu_indices(len(people), 1)
        scores = np.where(people[first] == people[second], 1.0, 0.0)
        found = cross_calibrate(scores, first, second, people)
        assert found is not None
        ratios = found.log_likelihood_ratio(scores, first, second, people) / np.log(10)
        return ratios.min(), ratios.max()

    assert bounds(2) == pytest.approx(bounds(6))
    assert -math.log10(12) < bounds(6)[0] < bounds(6)[1] < math.log10(12 * 11 / 2)


def unbounded(calibration: CrossCalibration) -> CrossCalibration:
    parts = calibration.by_blocks.items()
    return replace(
        calibration, by_blocks={k: replace(x, log10_min=-99, log10_max=99) for k, x in parts}
    )


@pytest.mark.parametrize("n_people", [5, 23])
def test_a_pair_is_calibrated_without_its_people(n_people: int) -> None:
    people = np.array([f"p{i:02d}" for i in np.repeat(np.arange(n_people), 4)])
    first, second = np.triu_indices(len(people), 1)
    scores = RANDOM.normal(size=len(first)) + 2 * (people[first] == people[second])
    before = cross_calibrate(scores, first, second, people)
    assert before is not None
    changed = (people[first] == "p03") | (people[second] == "p03")
    after = cross_calibrate(np.where(changed, -3 * scores, scores), first, second, people)
    assert after is not None
    pairs = scores, first, second, people
    same = unbounded(before).log_likelihood_ratio(*pairs) == unbounded(after).log_likelihood_ratio(
        *pairs
    )
    assert len({(x.log10_min, x.log10_max) for x in before.parts}) == 1
    assert same[changed].all()
    assert not same.all()
    assert before.n_people == (n_people - 2 if n_people == 5 else n_people - 6)


def test_too_few_people_have_no_calibration() -> None:
    people = np.repeat(["a", "b", "c"], 3)
    first, second = np.triu_indices(len(people), 1)
    scores = RANDOM.normal(size=len(first))
    assert cross_calibrate(scores, first, second, people) is None
    assert cross_calibrate(scores[:0], first[:0], second[:0], people[:0]) is None


@pytest.mark.parametrize("kind", [True, False])
def test_misleading_evidence_equals_counting(kind: bool) -> None:
    people = RANDOM.integers(0, 6, 30)
    first, second = np.triu_indices(30, 1)
    genuine = people[first] == people[second]
    ratios = RANDOM.normal(size=len(first)) * 6
    ratios[:20] = 0  # exactly 1 misleads nobody
    for beyond in (0, 2):
        measure = people_misleading(ratios, first, second, people, genuine=kind, beyond=beyond)
        for weights in [np.ones(6), RANDOM.integers(0, 4, 6)]:
            wrong = total = 0
            for ratio, i, j, same in zip(ratios, first, second, genuine, strict=True):
                if same == kind:
                    times = weights[people[i]] * (1 if same else weights[people[j]])
                    total += times
                    wrong += times * ((ratio < 0) == kind and abs(ratio) > math.log(10**beyond))
            assert measure.of_weights(weights[None].astype(float))[0] == pytest.approx(
                wrong / total
            )


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1, "no support for either"),
        (1.9, "no support for either"),
        (2, "weak support for the same person"),
        (10, "moderate support for the same person"),
        (0.02, "moderate support for different people"),
        (100, "moderately strong support for the same person"),
        (1 / 999, "moderately strong support for different people"),
        (1e3, "strong support for the same person"),
        (1e-4, "very strong support for different people"),
        (9e5, "very strong support for the same person"),
        (1e6, "extremely strong support for the same person"),
    ],
)
def test_words_of_the_enfsi_scale(ratio: float, words: str) -> None:
    assert verbal_equivalent(math.log10(ratio)) == words
