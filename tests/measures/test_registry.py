"""registry.py: which rows apply, how values are printed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dataset_11k import TASKS, Task
from measures.metrics_json import pair_scores
from measures.registry import (
    BASELINES,
    COUNT,
    MEASURES,
    NATS,
    PAIR_NEEDS,
    PERCENT,
    YEARS,
    Measure,
    Unit,
    measures_for,
    pair_measures,
)


def test_every_row_has_what_a_reader_and_a_table_need() -> None:
    names = [measure.name for measure in MEASURES.values()]
    assert len(set(names)) == len(names)
    for key, measure in MEASURES.items():
        assert measure.key == key
        assert measure.explanation.endswith(".")
        assert measure.chance is None or measure.needs in (*PAIR_NEEDS, "classes")
    assert all(row.explanation.endswith(".") for row in BASELINES.values())


def test_a_row_that_would_never_apply_is_refused() -> None:
    with pytest.raises(ValueError, match="measure a needs 'class'. Known: classes, "):
        Measure("a", "a", "An a.", len, needs="class")


def test_the_task_decides_which_rows_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "skin_color", Task("skinColor", "skin colour", ("fair", "dark")))
    monkeypatch.setitem(TASKS, "years", Task("age", "years", ("0-50", "51-99"), in_years=True))
    shared = {m.key for m in MEASURES.values() if m.needs in ("classes", "probabilities")}
    own = {task: {m.key for m in measures_for(task)} - shared for task in TASKS}
    ages = {"mae_years", "mae_years_of_expectation", "within_one_group"}
    ages |= {"quadratic_weighted_kappa"}
    assert own == {
        "identity": {"top_1", "top_5", "top_10"},
        "gender": {"roc_auc"},
        "age": ages,
        "skin_color": {"roc_auc"},
        "years": ages | {"roc_auc"},
    }
    assert all(shared <= {m.key for m in measures_for(task)} for task in TASKS)
    assert {m.key for m in pair_measures()} >= {"eer", "rank_1", "mAP", "cllr", "fnir_at_fpir_0.1"}


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        (PERCENT, 0.12345, "12.3\u00a0%"),
        (PERCENT, np.float64(1), "100.0\u00a0%"),
        (YEARS, 3.14, "3.1\u00a0years"),
        (NATS, 0.5, "0.500\u00a0nats"),
        (COUNT, 12022, "12,022"),
        (COUNT, None, "–"),
        (PERCENT, math.nan, "–"),
    ],
)
def test_values_are_printed_with_their_unit(unit: Unit, value: float, expected: str) -> None:
    assert unit.format(value) == expected


def test_intervals_are_printed_with_their_unit() -> None:
    assert PERCENT.format_interval(0.1, 0.25) == "10.0 to 25.0\u00a0%"
    assert YEARS.format_interval(1.0, math.nan) == "–"
    assert PERCENT.is_percent
    assert not YEARS.is_percent


def test_effective_people_of_uneven_genuine_pairs() -> None:
    people = np.repeat(["a", "b", "c", "d"], [5, 3, 2, 1])  # 10, 3, 1 and 0 genuine pairs
    random = np.random.default_rng(0)
    n_photos = len(people)
    arrays = {
        "people": people,
        "frame_number": np.full(n_photos, np.nan),
        "embedding": random.standard_normal((n_photos, 4)),
    }
    found = MEASURES["effective_people"].function(pair_scores(arrays, 0))
    assert found == pytest.approx(14**2 / (100 + 9 + 1))
