"""intervals.py: weights of people against repeated photos, intervals against plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from measures.classes import balanced_accuracy
from measures.intervals import (
    PeopleMeasure,
    by_group,
    holm,
    interval_of,
    paired_difference,
    people_average,
    people_balanced_accuracy,
    people_mean,
    people_roc_auc,
)
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


def draw_weights(n_people: int, n_draws: int, seed: int) -> np.ndarray:
    """Return how often each of the people is drawn with replacement, (n_draws, n_people)."""
    random = np.random.default_rng(seed)
    return random.multinomial(n_people, np.full(n_people, 1 / n_people), n_draws).astype(float)


def jackknife(values: list[float], shares: np.ndarray) -> float:
    """Return half the width of Student's t interval, by the textbook's sum."""
    n = len(values)
    error = np.sqrt((n - 1) / n * sum((v - sum(values) / n) ** 2 for v in values))
    kish = sum(shares) ** 2 / sum(share**2 for share in shares)
    return float(error * scipy.stats.t.ppf(0.975, kish - 1))


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
        people_mean(VALUES, NAMES, is_rate=True),
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


def photo_shares(kept: np.ndarray) -> np.ndarray:
    """Return each person's share of the kept photos."""
    return np.array([(PEOPLE[kept] == person).sum() for person in range(N_PEOPLE)]) / kept.sum()


def class_shares(true: np.ndarray) -> np.ndarray:
    """Return each person's share of a class's photos, averaged over classes."""
    return np.mean([photo_shares(true == label) for label in np.unique(true)], axis=0)


ALL = np.full(60, True)
SHARES = {
    "identity": np.full(N_PEOPLE, 1 / N_PEOPLE),
    "gender": class_shares(GENDER),
    "age": class_shares(AGE),
    "AUC": class_shares(GENDER),
    "mean": photo_shares(ALL),
    "mean over draws": np.array(
        [(~np.isnan(VALUES[person == PEOPLE])).sum() for person in range(N_PEOPLE)]
    )
    / (~np.isnan(VALUES)).sum(),
}


@pytest.mark.parametrize("name", CASES)
def test_the_interval_is_that_of_a_plain_loop(name: str) -> None:
    measure, brute = CASES[name]
    found = interval_of(measure)
    half = jackknife([brute(row) for row in 1 - np.eye(N_PEOPLE)], SHARES[name])
    value = brute(np.ones(N_PEOPLE))
    ends = np.array([value - half, value + half])
    if name != "mean":  # a rate: the same on the scale of log odds, by the delta method
        odds = np.log(value / (1 - value)) + np.array([-half, half]) / (value * (1 - value))
        ends = 1 / (1 + np.exp(-odds))
    assert (found.low, found.high) == pytest.approx(tuple(ends))
    assert found.effective_people == pytest.approx(1 / (SHARES[name] ** 2).sum())
    assert (found.n_photos, found.n_people) == (60 - (name == "mean over draws") * missing(), 12)


def missing() -> int:
    return int(np.isnan(VALUES).all(axis=1).sum())


@pytest.mark.parametrize("n_people", [10, 100])
def test_a_rate_without_an_error_has_the_limit_of_clopper_and_pearson(n_people: int) -> None:
    people = np.repeat(np.arange(n_people), 5)
    exact = scipy.stats.binomtest(0, n_people, alternative="less").proportion_ci(0.95)
    for value in (0.0, 1.0):
        found = interval_of(people_mean(np.full(len(people), value), people, is_rate=True))
        limit = abs(found.high - found.low)
        assert value in (found.low, found.high)
        assert limit == pytest.approx(exact.high)


def test_an_area_that_needs_one_person_has_no_interval() -> None:
    true = np.array([0, 1, 1, 1])
    found = interval_of(people_roc_auc(true, true / 10, np.arange(4)))
    assert found.value == 1
    assert np.isnan([found.low, found.high]).all()


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
    one = interval_of(build_all(np.flatnonzero(PEOPLE == 3))[name])
    assert one.n_people == 1
    assert np.isnan([one.low, one.high]).all()
    assert np.isnan(one.value) == (name in ("AUC", "EER"))
    none = interval_of(build_all(np.arange(0))[name])
    assert np.isnan([none.value, none.low, none.high]).all()
    assert (none.n_photos, none.n_people) == (0, 0)


def test_identity_has_the_interval_of_a_mean_over_people() -> None:
    people = np.arange(400)
    guess = np.where(RANDOM.random(400) < 0.7, people, -1)
    found = interval_of(people_balanced_accuracy(people, guess, people, classes_are_people=True))
    theory = scipy.stats.binomtest(int((guess == people).sum()), 400).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((theory.low, theory.high), abs=2e-3)


def test_intervals_cover_the_truth_as_often_as_stated() -> None:
    """Photos of one person are alike: an interval over photos would hold it far less often."""
    covered_people, covered_photos, n_trials = 0, 0, 300
    for trial in range(n_trials):
        random = np.random.default_rng(trial)
        hits = (random.random((60, 10)) < random.beta(1.4, 0.6, 60)[:, None]).ravel()  # mean .7
        found = interval_of(people_mean(hits * 1.0, np.repeat(np.arange(60), 10), is_rate=True))
        covered_people += found.low <= 0.7 <= found.high
        photos = interval_of(people_mean(hits * 1.0, np.arange(600), is_rate=True))
        covered_photos += photos.low <= 0.7 <= photos.high
    assert covered_people / n_trials == pytest.approx(0.95, abs=0.03)
    assert covered_photos / n_trials < 0.8


# ----------------------------------------------------------------------------- differences


def test_a_paired_difference_is_that_of_a_plain_loop() -> None:
    other = np.where(RANDOM.random(60) < 0.9, AGE, GUESS["age"])
    first, second = (people_balanced_accuracy(AGE, guess, NAMES) for guess in (other, GUESS["age"]))
    found = paired_difference(first, second)
    differences = [
        balanced(AGE, other)(row) - balanced(AGE, GUESS["age"])(row) for row in 1 - np.eye(N_PEOPLE)
    ]
    half = jackknife(differences, class_shares(AGE))
    value = first.value - second.value
    assert (found.value, found.low, found.high) == pytest.approx(
        (value, value - half, value + half)
    )
    assert found.significant == (found.low > 0)
    back = paired_difference(second, first)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(
    ("second", "expected"), [(SCORES, False), (SCORES + 0.01, True), (SCORES[::-1], False)]
)
def test_a_significant_difference_needs_an_interval_without_zero(
    second: np.ndarray, expected: bool
) -> None:
    found = paired_difference(people_mean(SCORES, NAMES), people_mean(second, NAMES))
    assert found.significant is expected


@pytest.mark.parametrize(("n_people", "expected"), [(9, False), (10, True)])
def test_few_people_are_never_significant(n_people: int, expected: bool) -> None:
    people = np.array([f"p{i:02d}" for i in range(n_people)])
    ones, noughts = (people_mean(np.full(n_people, v), people) for v in (1.0, 0.0))
    found = paired_difference(ones, noughts)
    assert (found.value, found.low, found.high) == (1, 1, 1)
    assert found.significant is expected


def test_one_person_shows_no_difference() -> None:
    first, second = (people_mean(np.array([v]), np.array(["a"])) for v in (0.0, 1.0))
    found = paired_difference(first, second)
    assert found.value == -1
    assert np.isnan([found.low, found.high]).all()
    assert not found.significant


def test_holm_multiplies_by_the_comparisons_that_are_left() -> None:
    found = holm(np.array([0.04, 0.01, np.nan, 0.03, 0.9]))
    # sorted: .01 x 4, .03 x 3, .04 x 2 (at least the one before), .9 x 1
    assert found == pytest.approx([0.09, 0.04, np.nan, 0.09, 0.9], nan_ok=True)
    assert holm(np.array([0.6, 0.6])).tolist() == [1, 1]
    assert holm(np.empty(0)).shape == (0,)


def test_other_people_are_refused() -> None:
    with pytest.raises(ValueError, match="same people; 2 are in one only"):
        paired_difference(
            people_mean(SCORES, NAMES), people_mean(SCORES[PEOPLE > 1], NAMES[PEOPLE > 1])
        )


def test_the_average_of_folds_and_seeds_weighs_their_people_together() -> None:
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
        assert interval_of(average).n_photos == sum(part.n_photos for part in parts)


# ----------------------------------------------------------------------------- groups


def test_a_gap_is_paired_over_people() -> None:
    ring = (np.arange(60) % 3 == 0).astype(int)  # a person may be in both groups
    measures = {g: build_all(np.flatnonzero(ring == g))["mean"] for g in (0, 1)}
    intervals, gap = by_group(measures, NAMES)
    for group, interval in intervals.items():
        assert interval.value == pytest.approx(SCORES[ring == group].mean())
        assert interval == interval_of(measures[group])
    assert gap is not None
    assert gap.value == pytest.approx(intervals[gap.highest].value - intervals[gap.lowest].value)
    assert gap.value > 0

    def difference(without: int) -> float:
        parts = [SCORES[(ring == g) & (without != PEOPLE)] for g in (gap.highest, gap.lowest)]
        return float(parts[0].mean() - parts[1].mean())

    shares = (photo_shares(ring == 0) + photo_shares(ring == 1)) / 2
    half = jackknife([difference(person) for person in range(N_PEOPLE)], shares)
    assert (gap.low, gap.high) == pytest.approx((gap.value - half, gap.value + half))


def test_small_groups_and_groups_without_a_value_have_no_gap() -> None:
    people = np.arange(40)
    groups = np.array(["a"] * 10 + ["b"] * 9 + ["c"] * 20 + ["d"])
    values = np.array([0.0] * 10 + [-5.0] * 9 + [1.0] * 20 + [9.0])
    measures = {g: people_mean(values[groups == g], people[groups == g]) for g in "abcd"}
    intervals, gap = by_group(measures, people)
    assert gap is not None
    assert (gap.highest, gap.lowest, gap.value) == ("c", "a", 1.0)
    assert np.isnan(intervals["d"].low)
    assert by_group({g: measures[g] for g in "abd"}, people)[1] is None
    undefined = {g: people_roc_auc(np.zeros(10, dtype=int), values[:10], people[:10]) for g in "ab"}
    assert by_group(undefined, people)[1] is None
