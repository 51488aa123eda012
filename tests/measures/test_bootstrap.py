"""bootstrap.py: weights of people against repeated photos, intervals against plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from measures.bootstrap import (
    PeopleMeasure,
    bootstrap,
    by_group,
    draw_weights,
    paired_difference,
    people_average,
    people_balanced_accuracy,
    people_mean,
    people_roc_auc,
)
from measures.classes import balanced_accuracy
from measures.pairs import Verification, compare_all

RANDOM = np.random.default_rng(3)
N_PEOPLE = 12
PEOPLE = np.concatenate([np.arange(N_PEOPLE), RANDOM.integers(0, N_PEOPLE, 48)])
NAMES = np.array([f"{person:07d}" for person in PEOPLE])
GENDER = PEOPLE % 2
AGE = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 5])[PEOPLE]
SCORES = RANDOM.integers(0, 8, 60) / 8 + 0.2 * GENDER  # with ties
GUESS = {
    "identity": np.where(RANDOM.random(60) < 0.7, PEOPLE, RANDOM.integers(0, N_PEOPLE, 60)),
    "gender": (SCORES > 0.5).astype(int),
    "age": np.where(RANDOM.random(60) < 0.6, AGE, RANDOM.integers(0, 6, 60)),
}
VALUES = np.where(RANDOM.random((60, 3)) < 0.2, np.nan, RANDOM.random((60, 3)))
VALUES[PEOPLE == 4, 1:] = np.nan
VALUES[PEOPLE == 4, 0] = 0.5


def repeated(weights: np.ndarray) -> np.ndarray:
    """Return the rows with every person's photos as often as the person was drawn."""
    return np.repeat(np.arange(60), weights[PEOPLE].astype(int))


def identity_of_copies(weights: np.ndarray) -> float:
    """Return identity's balanced accuracy where each copy of a person is a class of its own."""
    recalls = []
    for person in range(N_PEOPLE):
        recall = (GUESS["identity"][person == PEOPLE] == person).mean()
        recalls += [recall] * int(weights[person])
    return float(np.mean(recalls))


def area(weights: np.ndarray) -> float:
    rows = repeated(weights)
    both = len(np.unique(GENDER[rows])) == 2
    return float(roc_auc_score(GENDER[rows], SCORES[rows])) if both else np.nan


def balanced(true: np.ndarray, guess: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda weights: balanced_accuracy(true[repeated(weights)], guess[repeated(weights)])


# A measure, and the same for people's weights by repeating photos.
CASES: dict[str, tuple[PeopleMeasure, Callable[[np.ndarray], float]]] = {
    "identity": (
        people_balanced_accuracy(PEOPLE, GUESS["identity"], NAMES, classes_are_people=True),
        identity_of_copies,
    ),
    "gender": (
        people_balanced_accuracy(GENDER, GUESS["gender"], NAMES),
        balanced(GENDER, GUESS["gender"]),
    ),
    "age": (people_balanced_accuracy(AGE, GUESS["age"], NAMES), balanced(AGE, GUESS["age"])),
    "AUC": (people_roc_auc(GENDER, SCORES, NAMES), area),
    "mean": (people_mean(SCORES, NAMES), lambda w: float(SCORES[repeated(w)].mean())),
    "mean over draws": (
        people_mean(VALUES, NAMES),
        lambda w: float(np.nanmean(VALUES[repeated(w)])),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_weight_is_a_repetition(name: str) -> None:
    measure, brute = CASES[name]
    weights = np.concatenate([np.ones((1, N_PEOPLE)), draw_weights(N_PEOPLE, 200, seed=1)])
    expected = [brute(row) for row in weights]
    np.testing.assert_allclose(measure.of_weights(weights), expected, atol=1e-12)
    assert measure.value == pytest.approx(expected[0])


@pytest.mark.parametrize("name", CASES)
def test_the_interval_is_that_of_a_plain_loop(name: str) -> None:
    measure, brute = CASES[name]
    found = bootstrap(measure, seed=5, n_draws=300)
    draws = [brute(row) for row in draw_weights(N_PEOPLE, 300, seed=5)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert found.low <= found.value <= found.high
    assert (found.n_photos, found.n_people) == (60 - (name == "mean over draws") * missing(), 12)


def missing() -> int:
    return int(np.isnan(VALUES).all(axis=1).sum())


def test_draws_are_people_with_replacement() -> None:
    weights = draw_weights(9, 4000, seed=0)
    assert (weights.sum(axis=1) == 9).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.05)
    np.testing.assert_allclose((weights == 0).mean(), (8 / 9) ** 9, atol=0.01)
    assert np.array_equal(weights, draw_weights(9, 4000, seed=0))
    assert not np.array_equal(weights, draw_weights(9, 4000, seed=1))


def test_absent_classes_drop_out_and_are_counted() -> None:
    # nine people of class 0 and one of class 1, which a draw misses with probability .9 ** 10
    people, true = np.arange(10), np.array([0] * 9 + [1])
    found = bootstrap(people_balanced_accuracy(true, np.zeros(10, dtype=int), people), seed=0)
    assert found.absent_classes == pytest.approx(0.9**10, abs=0.03)
    assert found.undefined_draws == 0
    assert (found.value, found.low, found.high) == (0.5, 0.5, 1.0)  # without class 1, all is right


def test_draws_of_one_gender_have_no_area_and_are_counted() -> None:
    found = bootstrap(people_roc_auc(np.array([0, 1]), np.array([0.1, 0.9]), np.arange(2)), seed=0)
    assert found.undefined_draws == pytest.approx(1000, abs=100)
    assert found.absent_classes == pytest.approx(0.5, abs=0.05)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def build_all(rows: np.ndarray) -> dict[str, PeopleMeasure]:
    """Return every measure of the rows alone."""
    people, similarity = NAMES[rows], np.eye(60)[np.ix_(rows, rows)]
    return {
        "identity": people_balanced_accuracy(
            PEOPLE[rows], GUESS["identity"][rows], people, classes_are_people=True
        ),
        "age": people_balanced_accuracy(AGE[rows], GUESS["age"][rows], people),
        "AUC": people_roc_auc(GENDER[rows], SCORES[rows], people),
        "mean": people_mean(SCORES[rows], people),
        "EER": Verification(compare_all(similarity, people)).equal_error_rate(),
    }


@pytest.mark.parametrize("name", build_all(np.arange(2)))
def test_one_person_has_no_interval_and_no_rows_have_no_value(name: str) -> None:
    one = bootstrap(build_all(np.flatnonzero(PEOPLE == 3))[name], seed=0, n_draws=50)
    assert one.n_people == 1
    assert np.isnan([one.low, one.high]).all()
    assert np.isnan(one.value) == (name in ("AUC", "EER"))
    none = bootstrap(build_all(np.arange(0))[name], seed=0, n_draws=50)
    assert np.isnan([none.value, none.low, none.high]).all()
    assert (none.n_photos, none.n_people) == (0, 0)


def test_identity_counts_a_person_drawn_twice_as_two_classes() -> None:
    """The interval then is as wide as the theory of a mean over people wants it."""
    people = np.arange(400)
    true, guess = people, np.where(RANDOM.random(400) < 0.7, people, -1)
    recalls = true == guess
    theory = 2 * 1.96 * recalls.std() / np.sqrt(400)
    copies = bootstrap(
        people_balanced_accuracy(true, guess, people, classes_are_people=True), seed=0
    )
    merged = bootstrap(people_balanced_accuracy(true, guess, people), seed=0)
    assert copies.high - copies.low == pytest.approx(theory, rel=0.06)
    assert merged.high - merged.low < 0.85 * theory
    assert copies.absent_classes == 0


def test_intervals_cover_the_truth_as_often_as_stated() -> None:
    """Photos of one person are alike: an interval over photos would hold it far less often."""
    covered_people, covered_photos, n_trials = 0, 0, 150
    for trial in range(n_trials):
        chances = np.random.default_rng(trial).beta(1.4, 0.6, 60)  # mean .7
        hits = np.random.default_rng(trial).random((60, 10)) < chances[:, None]
        for_people = people_mean(hits.ravel().astype(float), np.repeat(np.arange(60), 10))
        found = bootstrap(for_people, seed=trial, n_draws=400)
        covered_people += found.low <= 0.7 <= found.high
        photos = bootstrap(
            people_mean(hits.ravel().astype(float), np.arange(600)), seed=trial, n_draws=200
        )
        covered_photos += photos.low <= 0.7 <= photos.high
    assert covered_people / n_trials == pytest.approx(0.95, abs=0.04)
    assert covered_photos / n_trials < 0.8


# ----------------------------------------------------------------------------- differences


def test_a_paired_difference_is_that_of_a_plain_loop() -> None:
    other = np.where(RANDOM.random(60) < 0.9, AGE, GUESS["age"])
    first, second = (people_balanced_accuracy(AGE, guess, NAMES) for guess in (other, GUESS["age"]))
    found = paired_difference(first, second, seed=2, n_draws=200)
    draws = [
        balanced(AGE, other)(row) - balanced(AGE, GUESS["age"])(row)
        for row in draw_weights(N_PEOPLE, 200, seed=2)
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert found.value == pytest.approx(first.value - second.value)
    assert found.more_than_chance == (found.low > 0)
    back = paired_difference(second, first, seed=2, n_draws=200)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(
    ("second", "expected"), [(SCORES, False), (SCORES + 0.01, True), (SCORES[::-1], False)]
)
def test_more_than_chance_needs_an_interval_without_zero(
    second: np.ndarray, expected: bool
) -> None:
    found = paired_difference(people_mean(SCORES, NAMES), people_mean(second, NAMES), seed=0)
    assert found.more_than_chance is expected


@pytest.mark.parametrize(("n_people", "expected"), [(9, False), (10, True)])
def test_few_people_are_never_more_than_chance(n_people: int, expected: bool) -> None:
    people = np.array([f"p{i:02d}" for i in range(n_people)])
    ones, noughts = (people_mean(np.full(n_people, v), people) for v in (1.0, 0.0))
    found = paired_difference(ones, noughts, seed=0)
    assert (found.value, found.low, found.high) == (1, 1, 1)
    assert found.more_than_chance is expected


def test_one_person_shows_no_difference() -> None:
    first, second = (people_mean(np.array([v]), np.array(["a"])) for v in (0.0, 1.0))
    found = paired_difference(first, second, seed=0)
    assert found.value == -1
    assert np.isnan([found.low, found.high]).all()
    assert not found.more_than_chance


def test_other_people_are_refused() -> None:
    with pytest.raises(ValueError, match="same people; 2 are in one only"):
        paired_difference(
            people_mean(SCORES, NAMES), people_mean(SCORES[PEOPLE > 1], NAMES[PEOPLE > 1]), seed=0
        )


def test_the_average_of_folds_and_seeds_draws_their_people_together() -> None:
    folds = [build_all(np.flatnonzero(fold == PEOPLE % 3))["mean"] for fold in range(3)]
    seeds = [people_mean(values, NAMES) for values in (SCORES, SCORES**2)]
    weights = draw_weights(N_PEOPLE, 50, seed=0)
    for parts, by_hand in (
        (
            folds,
            [[SCORES[repeated(w * (np.arange(12) % 3 == f))] for f in range(3)] for w in weights],
        ),
        (seeds, [[SCORES[repeated(w)], SCORES[repeated(w)] ** 2] for w in weights]),
    ):
        average = people_average(parts)
        expected = [np.mean([values.mean() for values in row]) for row in by_hand]
        np.testing.assert_allclose(average.of_weights(weights), expected)
        assert average.value == pytest.approx(np.mean([part.value for part in parts]))
        assert bootstrap(average, seed=0).n_photos == sum(part.photos.sum() for part in parts)


# ----------------------------------------------------------------------------- groups


def test_groups_are_measured_over_the_same_draws() -> None:
    ring = (np.arange(60) % 3 == 0).astype(int)  # a person may be in both groups
    measures = {g: build_all(np.flatnonzero(ring == g))["mean"] for g in (0, 1)}
    intervals, gap = by_group(measures, NAMES, seed=4, n_draws=100)
    weights = draw_weights(N_PEOPLE, 100, seed=4)
    draws = {}
    for group, interval in intervals.items():
        rows = ring == group
        assert interval.value == pytest.approx(SCORES[rows].mean())
        assert interval.n_photos == rows.sum()
        assert interval.n_people == len(set(NAMES[rows]))
        copies = [repeated(w) for w in weights]
        draws[group] = np.array([SCORES[c][ring[c] == group].mean() for c in copies])
        ends = tuple(np.quantile(draws[group], [0.025, 0.975]))
        assert (interval.low, interval.high) == pytest.approx(ends)
    assert gap is not None
    assert gap.value == pytest.approx(intervals[gap.highest].value - intervals[gap.lowest].value)
    assert gap.value > 0
    ends = tuple(np.quantile(draws[gap.highest] - draws[gap.lowest], [0.025, 0.975]))
    assert (gap.low, gap.high) == pytest.approx(ends)


def test_small_groups_and_groups_without_a_value_have_no_gap() -> None:
    people = np.arange(40)
    groups = np.array(["a"] * 10 + ["b"] * 9 + ["c"] * 20 + ["d"])
    values = np.array([0.0] * 10 + [-5.0] * 9 + [1.0] * 20 + [9.0])
    measures = {g: people_mean(values[groups == g], people[groups == g]) for g in "abcd"}
    intervals, gap = by_group(measures, people, seed=0)
    assert gap is not None
    assert (gap.highest, gap.lowest, gap.value) == ("c", "a", 1.0)
    assert np.isnan(intervals["d"].low)
    assert by_group({g: measures[g] for g in "abd"}, people, seed=0)[1] is None
    undefined = {g: people_roc_auc(np.zeros(10, dtype=int), values[:10], people[:10]) for g in "ab"}
    assert by_group(undefined, people, seed=0, n_draws=20)[1] is None
