"""What a report says in words, from metrics.json: headline numbers, how sure, warnings, terms.

Pure functions of what test.py measured. A key that is absent or null was not measured, as in files
of older versions, and nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dataset_11k import TASKS
from measures.bootstrap import FEW_PEOPLE
from measures.pairs import BURST

CONTROLS = ("majority_class", "identity_lookup", "nearest_embedding", "chance")

KINDS = ("all_pairs", f"beyond_{BURST}_frames")

NONE = "–"

LOWER_IS_BETTER = ("mae_years", "eer")

NAMES = {
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "ROC AUC",
    "mae_years": "mean absolute error",
    "rank_1": "rank-1",
    "mAP": "mAP",
    "eer": "EER",
    "majority_class": "majority class",
    "identity_lookup": "identity lookup",
    "nearest_embedding": "nearest embedding",
    "chance": "chance",
    "all_pairs": "all pairs",
    KINDS[1]: f"pairs beyond {BURST} frames",
    "skin_color": "skin colour",
    "age": "age group",
}

HANDS = {
    "dorsal_dr": "back of the right hand",
    "dorsal_dl": "back of the left hand",
    "palmar_pr": "palm of the right hand",
    "palmar_pl": "palm of the left hand",
}

ONE_SESSION = (
    "The two photos of a genuine pair come from one recording session: 11k Hands has one for each"
    " person. Light, camera and skin were the same, so all numbers of matching and verification"
    " are optimistic: photos taken on another day will match less well."
)

TERMS = (
    (
        "balanced accuracy",
        "The share of photos answered right, taken for each class apart and then averaged:"
        " guessing one class always gives 1 / number of classes.",
    ),
    (
        "ROC AUC",
        "The chance that a photo of a man is rated more male than one of a woman: 50 % is"
        " guessing.",
    ),
    (
        "mean absolute error",
        "How many years the expected age is off, on average. The expected age is the mean of the"
        " age groups' mean training ages, weighted by their probabilities.",
    ),
    (
        "rank-1, CMC",
        "The share of photos whose most similar gallery photo is of the same person; the CMC is"
        " the share with that person among the k most similar.",
    ),
    (
        "mAP",
        "Mean average precision: how far all photos of the same person come before those of"
        " others, when the photos are sorted by likeness. 100 %: all before.",
    ),
    (
        "genuine, impostor pair",
        "Two photos of one person; two photos of two people.",
    ),
    (
        "FMR, FNMR",
        "False match rate: impostor pairs taken for one person. False non-match rate: genuine"
        " pairs taken for two people. FNMR at FMR 1 % is the latter where the threshold lets 1 % of"
        " impostor pairs pass.",
    ),
    ("EER", "Equal error rate: the error at the threshold where both error rates are equal."),
    (
        "FNIR at FPIR",
        "Search in a gallery that may lack the person: the share of searches that miss the person"
        " where the threshold answers that share of searches for people who are not there.",
    ),
    (
        "likelihood ratio (LR)",
        "How many times likelier a comparison score is if both photos show one person than if"
        " they show two.",
    ),
    (
        "Cllr",
        "Cost of likelihood ratios in bits: 0 is perfect, 1 says nothing, above 1 misleads. Cllr"
        " min is what is left after the best re-scaling; the rest is lost by calibration.",
    ),
    (
        "expected calibration error",
        "How far confidence and share of right answers lie apart, on average.",
    ),
    (
        "95 % interval",
        "From 2,000 repetitions in which as many people are drawn anew from these people (bootstrap"
        " over people, not photos): how much the number hangs on who happened to be there. It knows"
        " nothing of other cameras, sessions or populations.",
    ),
)


class Headline(NamedTuple):
    """A headline number. NaN: unknown.

    controls: those with a value.
    above: control -> interval of the number minus the control's, paired over people, if measured.
    """

    part: str  # the task, or the kind of pairs
    measure: str
    value: float
    low: float
    high: float
    n_photos: int
    n_people: int
    controls: dict[str, float]
    above: dict[str, tuple[float, float]]

    @property
    def name(self) -> str:
        """What was measured, for a reader."""
        return f"{name(self.part)}, {name(self.measure)}"

    @property
    def lower_is_better(self) -> bool:
        """Whether it is an error."""
        return self.measure in LOWER_IS_BETTER


def name(key: str) -> str:
    """Return a key of metrics.json as a reader says it."""
    return NAMES.get(key, key.replace("_", " "))


def number(value: float | None, measure: str) -> str:
    """Return a measure's value with its unit; a dash where there is none."""
    text = _digits(value, measure)
    return text if text == NONE else f"{text}{_unit(measure)}"


def between(low: float | None, high: float | None, measure: str) -> str:
    """Return an interval with its unit; a dash where there is none."""
    ends = _digits(low, measure), _digits(high, measure)
    return NONE if NONE in ends else f"{ends[0]} to {ends[1]}{_unit(measure)}"


def _digits(value: float | None, measure: str) -> str:
    if value is None or value != value:
        return NONE
    return f"{value:.1f}" if measure == "mae_years" else f"{100 * value:.1f}"


def _unit(measure: str) -> str:
    return "\u00a0years" if measure == "mae_years" else "\u00a0%"  # no-break spaces


def matching_of(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured on embeddings of pairs; empty where nothing was."""
    identity = tasks.get("identity") or {}
    return identity.get("matching") or identity.get("verification") or {}


def is_of_strangers(metrics: Mapping[str, Any]) -> bool:
    """Return whether nobody on the photos was trained on."""
    identity = metrics["tasks"].get("identity") or {}
    return bool(metrics.get("cross_hand")) or "matching" in identity


def headlines(tasks: Mapping[str, Any]) -> list[Headline]:
    """Return every number that has an interval, and of old files the balanced accuracies."""
    found = []
    for task in TASKS:
        block = tasks.get(task) or {}
        for measure in block.get("intervals", {"balanced_accuracy": {}}):
            found.append(_headline(task, measure, block, block.get("controls") or {}))
    pairs = matching_of(tasks)
    for kind in KINDS:
        block = pairs.get(kind) or {}
        for measure in block.get("intervals", {}):
            found.append(_headline(kind, measure, block, pairs.get("controls") or {}))
    return [line for line in found if line.value == line.value]


def _headline(
    part: str, measure: str, block: Mapping[str, Any], controls: Mapping[str, Any]
) -> Headline:
    """Return a block's measure as a headline; null becomes NaN."""

    def known(value: float | None) -> float:
        return float("nan") if value is None else value

    sure = (block.get("intervals") or {}).get(measure) or {}
    distances = (block.get("above_controls") or {}).items()
    above = {key: by_measure.get(measure) or {} for key, by_measure in distances}
    beside = {key: values.get(measure) for key, values in controls.items()}
    if measure == "eer":
        beside["chance"] = 0.5  # of scores that know nothing, by definition
    return Headline(
        part,
        measure,
        known(block.get(measure)),
        known(sure.get("low")),
        known(sure.get("high")),
        sure.get("n_photos", 0),
        sure.get("n_people", 0),
        {key: value for key, value in beside.items() if value is not None},
        {key: (d["low"], d["high"]) for key, d in above.items() if d.get("low") is not None},
    )


def best_control(line: Headline) -> str:
    """Return the name of the control that comes nearest to a headline number, or beyond it."""
    sign = -1 if line.lower_is_better else 1
    return max(line.controls, key=lambda key: sign * line.controls[key])


def better(line: Headline) -> bool | None:
    """Return whether the whole interval is better than the best control.

    Of the difference to that control, where people were paired; else of the number itself. Under
    `FEW_PEOPLE` people show nothing. None: there is no control, or no interval.
    """
    if not line.controls or line.low != line.low:
        return None
    if line.n_people < FEW_PEOPLE:
        return False
    best = best_control(line)
    low, high = line.above.get(best, (line.low, line.high))
    control = 0.0 if best in line.above else line.controls[best]
    return high < control if line.lower_is_better else low > control


def verdict(line: Headline) -> str:
    """Return how sure a headline number is, and whether it is more than its best control."""
    if line.low != line.low:
        return "How sure it is was not measured."
    said = ""
    if line.low == line.high:
        said = (
            "Every repetition gives the same number, so the interval has no width: how far off the"
            " number may be, it cannot say. "
        )
    if not line.controls:
        return f"{said}No control was measured beside it."
    best = best_control(line)
    control = f"{name(best)} ({number(line.controls[best], line.measure)})"
    if better(line):
        return f"{said}Better than its best control, {control}, with the whole interval."
    return f"{said}Not shown to be better than {control}."


def summary(lines: Sequence[Headline]) -> str:
    """Return the answer in one or two sentences: what is better than its controls, what is not."""
    said = []
    for found, start in (
        (True, "Better than every control, with the whole interval"),
        (False, "Not shown to be better than the best control"),
    ):
        named = [f"{x.name} {number(x.value, x.measure)}" for x in lines if better(x) is found]
        if named:
            said.append(f"{start}: {'; '.join(named)}.")
    return " ".join(said) or "Nothing was measured that a control stands beside."


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before any number."""
    conditions = [
        (
            metrics.get("permuted_labels"),
            "A control run, no result: gender and age were permuted between people before the"
            " training. What is right here is memorised people.",
        ),
        (
            metrics.get("split") == "train",
            "These are the photos that were trained on: the numbers say what was memorised, and"
            " nothing about other photos.",
        ),
        (
            metrics.get("selected_on_reported_split"),
            "These photos chose the epoch: the numbers are the best of several tries on them, so"
            " a little better than on photos kept apart.",
        ),
        (
            metrics.get("calibrated_on_reported_split"),
            "The temperature was fitted on these photos: what is said of probabilities"
            " (calibration error, log loss, Brier score, reliability) is optimistic.",
        ),
        (
            metrics.get("split_as_at_training") is False,
            "The list of photos is not the one that was there at the training: whether some of"
            " them were trained on is not known.",
        ),
        (
            metrics.get("n_people", FEW_PEOPLE) < FEW_PEOPLE,
            f"These are under {FEW_PEOPLE} people: too few to say anything of people in general,"
            " and an interval over so few is itself unsure.",
        ),
    ]
    said = [text for holds, text in conditions if holds]
    return [*said, *_cross_hand(metrics.get("cross_hand"), metrics["aspect"])]


def _cross_hand(cross: Mapping[str, Any] | None, aspect: str) -> list[str]:
    """Return what to know of a test on another aspect than was trained on."""
    if not cross:
        return []
    return [
        f"Trained on another aspect ({cross['trained_on']}) than these photos show ({aspect}):"
        " gender and age alone are scored, on people who were not trained on"
        f" ({cross['people_left_out_as_trained_on']} people were left out as they were)."
    ]


def what_was_measured(metrics: Mapping[str, Any]) -> str:
    """Return the sentence that says of what the numbers are."""
    aspect, protocol = metrics["aspect"], metrics["protocol"]
    people = f" of {metrics['n_people']} people" if metrics.get("n_people") else ""
    fold = metrics.get("fold")
    return (
        f"{metrics['n_images']} photos{people}: {HANDS.get(aspect, 'aspect')} ({aspect}), split"
        f" {metrics['split']} of protocol {protocol}"
        f"{'' if fold is None else f', fold {fold}'}, answered by {metrics['backbone']}."
    )


def what_the_control_means(strangers: bool) -> str:
    """Return the sentence that tells how to read a score beside its controls.

    Args:
        strangers: nobody on the photos was trained on.
    """
    if strangers:
        return (
            "Nobody here was trained on: what a score has above the majority class carries over to"
            " strangers, and what it has above identity lookup is more than likeness to one trained"
            " person."
        )
    return (
        "Identity lookup answers the gender and age of whoever the identity head names: a score no"
        " better than that shows that people are known again, not that gender or age is read."
    )


def leakage_rows(leakage: Mapping[str, float | None]) -> list[list[str]]:
    """Return a table's rows: how near the evaluated photos are to those trained on."""
    said = {"person_in_train": "their person is in train"}
    said |= {
        f"within_{gap}": f"a frame of their person at most {gap} away is in train"
        for gap in (1, 2, 5)
    }
    return [[text, number(leakage[key], key)] for key, text in said.items() if key in leakage]


def slice_rows(slices: Mapping[str, Any]) -> list[list[str]]:
    """Return a table's rows of one part's slices: grouping and group, measure, value, people."""
    return [
        [
            f"{name(grouping)}: {group}",
            name(measure),
            number(found["value"], measure),
            between(found["low"], found["high"], measure),
            str(found["n_photos"]),
            f"{found['n_people']}{' (few)' if found['few_people'] else ''}",
        ]
        for grouping, measures in slices.items()
        for measure, block in measures.items()
        for group, found in block["groups"].items()
    ]


def widest_gap(slices: Mapping[str, Any], measure: str) -> str:
    """Return the sentence that names the widest gap of a measure over all groupings."""
    gaps = {
        grouping: gap
        for grouping, measures in slices.items()
        if (gap := (measures.get(measure) or {}).get("gap")) and gap["value"] is not None
    }
    if not gaps:
        return "No two groups have enough people to compare."
    grouping = max(gaps, key=lambda key: gaps[key]["value"])
    gap = gaps[grouping]
    low, high = (float("nan") if gap[end] is None else gap[end] for end in ("low", "high"))
    points = "years" if measure == "mae_years" else "percentage points"
    said = (
        f"Widest gap: {name(grouping)}, {gap['highest']} above {gap['lowest']} by"
        f" {_digits(gap['value'], measure)} {points} (95 % interval"
        f" {between(low, high, measure)})"
    )
    if low > 0 or high < 0:
        return f"{said}: more than chance, though the pair was picked for its gap."
    return f"{said}: the interval does not leave out 0."
