"""What is said of numbers is what the numbers say, and no more."""

from __future__ import annotations

from typing import Any

import pytest
from made_up_results import made_up_metrics

from measures.registry import MEASURES
from pages import wording

NAN = float("nan")


def line(measure: str, value: float, ends: tuple[float, float], **baselines: float) -> Any:
    return wording.Headline("gender", MEASURES[measure], value, *ends, 40, 20, baselines, {})


@pytest.mark.parametrize(
    ("measure", "value", "ends", "baseline", "expected"),
    [
        ("balanced_accuracy", 0.9, (0.8, 0.95), 0.5, True),
        ("balanced_accuracy", 0.9, (0.8, 0.95), 0.8, False),  # the end itself is not beyond
        ("balanced_accuracy", 0.9, (0.8, 0.95), 0.99, False),
        ("mae_years", 2.0, (1.0, 3.0), 3.5, True),  # lower is better
        ("mae_years", 2.0, (1.0, 3.0), 3.0, False),
        ("eer", 0.1, (0.05, 0.2), 0.5, True),
    ],
)
def test_the_whole_interval_decides(
    measure: str, value: float, ends: tuple[float, float], baseline: float, expected: bool
) -> None:
    found = line(measure, value, ends, chance=baseline)
    assert wording.is_better(found) is expected
    start = "Better than" if expected else "Not shown to be better"
    assert wording.verdict(found).startswith(start)
    assert wording.summary([found]).startswith(start)
    few = found._replace(n_people=9)
    assert wording.is_better(few) is False
    assert "fewer than 10 people" in wording.verdict(few)


@pytest.mark.parametrize(
    ("measure", "difference", "expected"),
    [
        ("roc_auc", (0.01, 0.2), True),
        ("roc_auc", (-0.01, 0.2), False),
        ("mae_years", (-2.0, -0.1), True),
        ("mae_years", (-2.0, 0.1), False),
    ],
)
def test_a_paired_difference_decides_where_there_is_one(
    measure: str, difference: tuple[float, float], expected: bool
) -> None:
    alone = line(measure, 0.9, (0.8, 1.0), chance=0.85)
    assert wording.is_better(alone) is False
    assert wording.is_better(alone._replace(differences={"chance": difference})) is expected


def test_the_best_baseline_is_the_one_hardest_to_beat() -> None:
    rates = line("balanced_accuracy", 0.9, (0.8, 1.0), constant=0.5, identity_lookup=0.85)
    assert rates.best_baseline == "identity_lookup"
    years = line("mae_years", 2.0, (1.0, 3.0), constant=5.0, identity_lookup=2.5)
    assert years.best_baseline == "identity_lookup"
    verdict = wording.verdict(rates)
    assert verdict.startswith(
        "Not shown to be better than identity lookup; the strongest baseline is identity lookup"
    )
    beaten = rates._replace(low=0.86)
    assert wording.verdict(beaten).startswith(
        "Better than every baseline; the strongest is identity"
    )
    hidden = beaten._replace(differences={"constant": (-0.1, 0.9)})
    assert wording.is_better(hidden) is False  # a baseline with a lower value is not beaten
    assert "than constant and identity lookup;" in wording.verdict(rates._replace(low=0.4))


def test_no_interval_no_baseline_and_no_width_are_said() -> None:
    assert "No confidence interval" in wording.verdict(line("eer", 0.1, (NAN, NAN), chance=0.5))
    assert "No baseline" in wording.verdict(line("mAP", 0.1, (0.0, 0.2)))
    flat = line("balanced_accuracy", 0.5, (0.5, 0.5), chance=0.5)
    assert "no width" in wording.verdict(flat)
    perfect = line("roc_auc", 1.0, (0.8, 1.0), chance=0.5)
    assert "is a one-sided 95 % limit" in wording.verdict(perfect)
    assert wording.is_better(line("mAP", 0.1, (0.0, 0.2))) is None
    assert wording.summary([]) == "No result can be compared with a baseline."


def test_the_terminal_gets_a_column_for_each_baseline_with_units() -> None:
    lines = wording.headline_table(made_up_metrics()["tasks"])
    for title in ("95 % interval", "people", "strongest baseline"):
        assert title in lines[0]
    assert len({len(text) for text in lines}) == 1
    years = next(text for text in lines if text.startswith("age group: mean absolute error"))
    assert years.count("years") == 3  # value, interval, baseline


def metrics(**changes: Any) -> dict[str, Any]:
    facts = {"aspect": "dorsal_dr", "protocol": "paper", "split": "val", "n_images": 9}
    return {**facts, "backbone": "swin_t", "tasks": {}, **changes}


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"permuted_labels": True}, "labels were permuted"),
        ({"split": "train"}, "used for training"),
        ({"selected_on_reported_split": True}, "epoch was selected on this split"),
        ({"calibrated_on_reported_split": True}, "temperature was fitted on this split"),
        (
            {"tasks": {"gender": {"n_images": 9, "temperature": 19.99999}}},
            "temperature of gender is at a bound of its range (0.05 to 20)",
        ),
        ({"split_as_at_training": False}, "changed since training"),
        ({"n_people": 9}, "Only 9 people"),
        (
            {"cross_hand": {"trained_on": "palmar_pl", "people_left_out_as_trained_on": 4}},
            "Trained on aspect palmar_pl, evaluated on aspect dorsal_dr",
        ),
    ],
)
def test_each_warning_is_given_when_it_holds_and_only_then(
    changes: dict[str, Any], warning: str
) -> None:
    assert wording.warnings(metrics(split_as_at_training=True, n_people=10)) == []
    assert wording.warnings(metrics(split_as_at_training=None, cross_hand=None)) == []
    inside = {"gender": {"n_images": 9, "temperature": 19.9}, "age": None}
    assert wording.warnings(metrics(tasks=inside)) == []
    found = wording.warnings(metrics(**changes))
    assert len(found) == 1
    assert warning in found[0]


def gap(value: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"gap": {"highest": "a", "lowest": "b", "value": value, "low": low, "high": high}}


def test_the_largest_difference_is_named_over_all_groupings() -> None:
    eer = MEASURES["eer"]
    groups = {
        "gender": {"eer": gap(0.1, 0.05, 0.2)},
        "skin_color": {"eer": gap(0.3, -0.1, 0.5)},
        "age": {"eer": {"gap": None}},
        "accessories": {},
    }
    sentence = wording.describe_gap(groups, eer)
    assert "skin colour, a exceeds b by 30.0 percentage points" in sentence
    assert "includes 0" in sentence
    assert "excludes 0" in wording.describe_gap({"gender": groups["gender"]}, eer)
    assert "No two groups" in wording.describe_gap({"age": groups["age"]}, eer)
    assert "includes 0" in wording.describe_gap({"g": {"eer": gap(0.3, None, None)}}, eer)


def test_the_baselines_mean_something_else_for_unseen_people() -> None:
    assert wording.is_unseen(metrics(protocol="subject-disjoint", split="test"))
    assert wording.is_unseen(metrics(cross_hand={"trained_on": "x"}))
    assert not wording.is_unseen(metrics(protocol="subject-disjoint", split="train"))
    assert not wording.is_unseen(metrics(protocol="half", split="val"))
    assert wording.is_unseen(metrics(protocol="half", split="test"))
    assert not wording.is_unseen(metrics())
    assert "better than every baseline" in wording.explain_baselines(True)
    assert "recognising people" in wording.explain_baselines(False)


def test_searches_name_the_people_and_photos_of_the_gallery() -> None:
    block = {"gallery_people": 28, "extended_gallery": {"n_distractors": 7}}
    names = {
        key: wording.in_gallery(MEASURES[key], block).name
        for key in ("rank_1", "rank_1_extended", "eer", "rank_1_among_10")
    }
    assert names == {
        "rank_1": "rank-1 (in 28 photos of 28 people)",
        "rank_1_extended": "rank-1, extended galleries (in 35 photos of 35 people)",
        "eer": "EER",
        "rank_1_among_10": "rank-1 (in 10 photos of 10 random people)",
    }
    assert wording.in_gallery(MEASURES["rank_1"], {}).name == "rank-1"  # of an older test.py
