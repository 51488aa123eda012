"""wording.py: what is said of numbers is what the numbers say, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from pages import wording

NAN = float("nan")


def line(measure: str, value: float, ends: tuple[float, float], **controls: float) -> Any:
    return wording.Headline("gender", measure, value, *ends, 40, 20, controls, {})


@pytest.mark.parametrize(
    ("measure", "value", "ends", "control", "expected"),
    [
        ("balanced_accuracy", 0.9, (0.8, 0.95), 0.5, True),
        ("balanced_accuracy", 0.9, (0.8, 0.95), 0.8, False),  # the end itself is not beyond
        ("balanced_accuracy", 0.9, (0.8, 0.95), 0.99, False),
        ("mae_years", 2.0, (1.0, 3.0), 3.5, True),  # less is better
        ("mae_years", 2.0, (1.0, 3.0), 3.0, False),
        ("eer", 0.1, (0.05, 0.2), 0.5, True),
    ],
)
def test_better_than_a_control_is_what_the_whole_interval_is(
    measure: str, value: float, ends: tuple[float, float], control: float, expected: bool
) -> None:
    found = line(measure, value, ends, chance=control)
    assert wording.better(found) is expected
    assert wording.verdict(found).startswith("Better" if expected else "Not shown") is True
    said = wording.summary([found])
    assert ("Better than every control" in said) is expected
    assert ("Not shown" in said) is not expected


@pytest.mark.parametrize(
    ("measure", "above", "expected"),
    [
        ("roc_auc", (0.01, 0.2), True),
        ("roc_auc", (-0.01, 0.2), False),
        ("mae_years", (-2.0, -0.1), True),
        ("mae_years", (-2.0, 0.1), False),
    ],
)
def test_where_people_are_paired_their_difference_decides(
    measure: str, above: tuple[float, float], expected: bool
) -> None:
    alone = line(measure, 0.9, (0.8, 1.0), chance=0.85)
    assert wording.better(alone) is False
    assert wording.better(alone._replace(above={"chance": above})) is expected


def test_the_best_control_is_the_one_hardest_to_beat() -> None:
    rates = line("balanced_accuracy", 0.9, (0.8, 1.0), majority_class=0.5, identity_lookup=0.85)
    assert wording.best_control(rates) == "identity_lookup"
    years = line("mae_years", 2.0, (1.0, 3.0), majority_class=5.0, identity_lookup=2.5)
    assert wording.best_control(years) == "identity_lookup"
    assert "identity lookup (85.0" in wording.verdict(rates)


def test_no_interval_no_control_and_no_width_are_said() -> None:
    assert "not measured" in wording.verdict(line("eer", 0.1, (NAN, NAN), chance=0.5))
    assert "No control" in wording.verdict(line("mAP", 0.1, (0.0, 0.2)))
    assert "no width" in wording.verdict(line("roc_auc", 1.0, (1.0, 1.0), chance=0.5))
    assert wording.better(line("mAP", 0.1, (0.0, 0.2))) is None
    assert "Nothing was measured" in wording.summary([])


@pytest.mark.parametrize(
    ("value", "measure", "expected"),
    [
        (0.9876, "eer", "98.8\u00a0%"),
        (3.14159, "mae_years", "3.1\u00a0years"),
        (None, "eer", "–"),
        (NAN, "mae_years", "–"),
    ],
)
def test_a_number_has_its_unit(value: float | None, measure: str, expected: str) -> None:
    assert wording.number(value, measure) == expected


def test_an_interval_has_one_unit() -> None:
    assert wording.between(0.5, 0.75, "eer") == "50.0 to 75.0\u00a0%"
    assert wording.between(None, 0.75, "eer") == "–"


def metrics(**changes: Any) -> dict[str, Any]:
    said = {"aspect": "dorsal_dr", "protocol": "paper", "split": "val", "n_images": 9}
    return {**said, "backbone": "swin_t", "tasks": {}, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"permuted_labels": True}, "A control run, no result"),
        ({"split": "train"}, "trained on"),
        ({"selected_on_reported_split": True}, "chose the epoch"),
        ({"calibrated_on_reported_split": True}, "temperature was fitted on these photos"),
        ({"split_as_at_training": False}, "is not the one that was there at the training"),
        ({"n_people": 9}, "under 10 people"),
        (
            {"cross_hand": {"trained_on": "palmar_pl", "people_left_out_as_trained_on": 4}},
            "(palmar_pl) than these photos show (dorsal_dr)",
        ),
    ],
)
def test_each_caveat_is_said_when_it_holds_and_only_then(
    changes: dict[str, Any], said: str
) -> None:
    assert wording.warnings(metrics(split_as_at_training=True, n_people=10)) == []
    assert wording.warnings(metrics(split_as_at_training=None, cross_hand=None)) == []
    found = wording.warnings(metrics(**changes))
    assert len(found) == 1
    assert said in found[0]


def test_all_caveats_are_said_together() -> None:
    both = metrics(selected_on_reported_split=True, calibrated_on_reported_split=True)
    assert len(wording.warnings(both)) == 2


def gap(value: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"gap": {"highest": "a", "lowest": "b", "value": value, "low": low, "high": high}}


def test_the_widest_gap_is_named_over_all_groupings() -> None:
    slices = {
        "gender": {"eer": gap(0.1, 0.05, 0.2)},
        "skin_color": {"eer": gap(0.3, -0.1, 0.5)},
        "age": {"eer": {"gap": None}},
        "accessories": {},
    }
    said = wording.widest_gap(slices, "eer")
    assert "skin colour, a above b by 30.0 percentage points" in said
    assert "does not leave out 0" in said
    assert "more than chance" in wording.widest_gap({"gender": slices["gender"]}, "eer")
    assert "No two groups" in wording.widest_gap({"age": slices["age"]}, "eer")
    assert "does not leave out 0" in wording.widest_gap({"g": {"eer": gap(0.3, None, None)}}, "eer")


def test_what_the_control_means_depends_on_who_is_seen() -> None:
    strangers = metrics(tasks={"identity": {"matching": {}}})
    assert wording.is_of_strangers(strangers)
    assert wording.is_of_strangers(metrics(cross_hand={"trained_on": "x"}))
    assert not wording.is_of_strangers(metrics(tasks={"identity": None}))
    assert "known again" in wording.what_the_control_means(False)
    assert "carries over" in wording.what_the_control_means(True)
