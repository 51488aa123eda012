"""Averages over folds and seeds by hand, intervals by brute force, paired differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import balanced_accuracy_score

from measures.across_runs import (
    ScoredRun,
    average,
    average_baselines,
    average_interval,
    in_folds,
    n_seeds,
    paired_differences,
    same_photos,
    shared_measures,
)
from measures.intervals import people_balanced_accuracy, people_mean, standard_error

GENDER = ("gender", "balanced_accuracy")
YEARS = ("age", "mae_years")
N_PEOPLE = 12


def scored_run(
    fold: int | None, seed: int, *, skill: float = 1.0, lookup: float = 0.5, **changes: Any
) -> tuple[ScoredRun, np.ndarray, np.ndarray]:
    """Return a run of a model that guesses, the true classes and the predicted ones."""
    draw = np.random.default_rng(100 * seed + (fold or 0))
    person = np.random.default_rng(0).permutation(np.repeat(np.arange(N_PEOPLE), 6))
    people = np.array([f"fold {fold}, person {number:02}" for number in person])
    true = person % 2
    predicted = np.where(draw.random(len(true)) < 0.4 / skill, 1 - true, true)
    measures = {
        GENDER: people_balanced_accuracy(true, predicted, people),
        YEARS: people_mean(draw.random(len(true)), people),
    }
    values: dict[str, Any] = {
        **{"fold": fold, "seed": seed, "people": people, "measures": measures},
        "frame_numbers": np.arange(len(true)) * 10.0,
        "baselines": {GENDER: {"majority_class": 0.5, "identity_lookup": lookup}},
    }
    return ScoredRun(**{**values, **changes}), true, predicted


@pytest.fixture
def runs() -> list[tuple[ScoredRun, np.ndarray, np.ndarray]]:
    """Two seeds of fold 0, one of fold 1."""
    keys = ((0, 1, 0.1), (0, 2, 0.2), (1, 1, 0.3))
    return [scored_run(fold, seed, lookup=lookup) for fold, seed, lookup in keys]


def test_averages_are_means_of_each_models_own_score(runs: list[Any]) -> None:
    scored = tuple(run for run, _, _ in runs)
    scores = [balanced_accuracy_score(true, predicted) for _, true, predicted in runs]
    expected = ((scores[0] + scores[1]) / 2 + scores[2]) / 2
    assert average(scored, GENDER).value == pytest.approx(expected, abs=1e-12)
    pooled = balanced_accuracy_score(*(np.concatenate([r[i] for r in runs]) for i in (1, 2)))
    assert pooled != pytest.approx(expected, abs=1e-3)
    baselines = average_baselines(scored, GENDER)
    assert baselines == pytest.approx({"majority_class": 0.5, "identity_lookup": (0.15 + 0.3) / 2})
    assert average_baselines(scored, YEARS) == {}


def test_the_interval_is_over_the_people_of_all_folds(runs: list[Any]) -> None:
    scored = tuple(run for run, _, _ in runs)
    everyone = np.unique(np.concatenate([run.people for run in scored]))
    assert len(everyone) == 2 * N_PEOPLE
    left_out = []
    for weights in 1 - np.eye(len(everyone)):
        scores = []
        for run, true, predicted in runs:
            own = weights[np.searchsorted(everyone, run.people)]
            kept = [c for c in (0, 1) if own[true == c].any()]
            right = own * (predicted == true)
            recalls = [right[true == c].sum() / own[true == c].sum() for c in kept]
            scores.append(np.mean(recalls))
        left_out.append(((scores[0] + scores[1]) / 2 + scores[2]) / 2)
    found = average_interval(scored, GENDER)
    n = len(everyone)
    error = np.sqrt((n - 1) / n * ((left_out - np.mean(left_out)) ** 2).sum())
    # all have six photos of one class, so all weigh the same
    distance = error * scipy.stats.t.ppf(0.975, n - 1) / (found.value * (1 - found.value))
    odds = np.log(found.value / (1 - found.value)) + np.array([-distance, distance])
    assert (found.low, found.high) == pytest.approx(tuple(1 / (1 + np.exp(-odds))), abs=1e-9)
    assert found.n_people == 2 * N_PEOPLE


def test_differences_are_paired_over_people(runs: list[Any]) -> None:
    first = in_folds([run for run, _, _ in runs], {0})
    assert [run.seed for run in first] == [1, 2]
    second = (scored_run(0, 3, skill=1000.0)[0],)
    assert same_photos(first, second)
    found = paired_differences(first, second)
    assert list(found) == [GENDER, YEARS]
    assert found[GENDER].value == pytest.approx(average(first, GENDER).value - 1)
    assert found[GENDER].low < found[GENDER].value < found[GENDER].high < 0
    assert found[GENDER].significant
    same = paired_differences(first, first)[GENDER]
    assert (same.value, same.low, same.high, same.significant) == (0, 0, 0, False)


def test_three_seeds_add_the_variation_between_them() -> None:
    """Variances and Satterthwaite's degrees of freedom, written out for two folds."""
    first, second = (
        tuple(
            scored_run(fold, seed, skill=skill)[0] for fold in (0, 1) for seed in range(start, end)
        )
        for start, end, skill in ((1, 4, 1.0), (4, 8, 1.5))
    )
    assert (n_seeds(first), n_seeds(second), n_seeds(first, second)) == (3, 4, 3)
    measures = average(first, GENDER), average(second, GENDER)
    n = 2 * N_PEOPLE  # all have six photos
    over_people = (measures[0].leave_one_out - measures[1].leave_one_out).var() * (n - 1)
    terms = [(over_people, n - 1)]
    for runs, seeds in ((first, 3), (second, 4)):
        for fold in (0, 1):
            values = [run.measures[GENDER].value for run in runs if run.fold == fold]
            terms.append((np.std(values, ddof=1) ** 2 / seeds * 0.5**2, seeds - 1))
    total = sum(variance for variance, _ in terms)
    degrees = total**2 / sum(variance**2 / own for variance, own in terms)
    found = paired_differences(first, second)[GENDER]
    distance = scipy.stats.t.ppf(0.975, degrees) * np.sqrt(total)
    assert found.high - found.value == pytest.approx(distance, abs=1e-12)
    assert found.p_value == pytest.approx(
        2 * scipy.stats.t.sf(abs(found.value) / np.sqrt(total), degrees), abs=1e-12
    )
    fewer = paired_differences(first, second[:-1])[GENDER]
    assert n_seeds(second[:-1]) == 3
    without = paired_differences(first[:-1], second)[GENDER]  # two seeds in fold 1: people only
    error = standard_error(average(first[:-1], GENDER).leave_one_out - measures[1].leave_one_out)
    assert without.high - without.value == pytest.approx(scipy.stats.t.ppf(0.975, n - 1) * error)
    assert fewer.high - fewer.value > without.high - without.value


def test_photos_are_the_same_if_people_and_frames_are() -> None:
    one, _, _ = scored_run(0, 1)
    frames = one.frame_numbers.copy()
    frames[3] = np.nan
    unknown = [scored_run(0, seed, frame_numbers=frames)[0] for seed in (2, 3)]
    assert same_photos(unknown[:1], unknown[1:])
    assert not same_photos([one], unknown)
    assert not same_photos([one], [scored_run(0, 2, people=one.people[::-1])[0]])


def test_only_measures_that_all_runs_have_are_shared() -> None:
    one, _, _ = scored_run(None, 1)
    other, _, _ = scored_run(None, 2, measures={GENDER: one.measures[GENDER]})
    assert shared_measures([one, other]) == [GENDER]
    assert shared_measures([one]) == [GENDER, YEARS]
