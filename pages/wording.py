"""The sentences of a report, made from metrics.json: headlines, comparisons, warnings, terms.

Names, units, directions and explanations of measures come from `measures.registry.MEASURES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from data.splits import PROTOCOLS
from dataset_11k import ASPECTS, TASKS
from measures.classes import TEMPERATURE_RANGE, at_bound
from measures.intervals import FEW_PEOPLE
from measures.registry import BASELINES, MEASURES, PAIR_KINDS, PERCENT, Measure

MAX_NAMED = 3  # baselines that a sentence names

NAMES = {"skin_color": "skin colour"}  # where replacing the underscores is not enough

ONE_SESSION = (
    "If each person was recorded in a single session, as in 11k Hands, the two photos of a genuine"
    " pair share lighting, camera and skin condition, and results of matching and verification are"
    " optimistic: expect lower similarity between photos of different days."
)

CASEWORK = (
    "These likelihood ratios describe the photos of this evaluation. They are not validated for"
    " casework, where the relevant population and the conditions of the recordings differ."
)

GENERAL_TERMS = {
    "95 % confidence interval": "Student's t with a jackknife over people (not over photos). It"
    " reflects the choice of people, not other cameras, sessions or populations. In simulated data"
    " with as many photos per person as in 11k Hands, 93 to 98 % of the intervals contain the true"
    " value; of EER and FNMR only 85 % (28 people) to 92 % (140 people), of rank-1 with several"
    " photos per probe 88 to 94 %.",
    "Unseen people": "People without any photo in the training data.",
    "Genuine and impostor pairs": "Two photos of the same person; two photos of different people.",
    "False match rate (FMR)": "Fraction of impostor pairs whose similarity reaches the threshold.",
    "False non-match rate (FNMR)": "Fraction of genuine pairs whose similarity stays below the"
    " threshold.",
    "Likelihood ratio (LR)": "Probability density of a similarity among genuine pairs, divided by"
    " that among impostor pairs. Above 1 it supports the same person, below 1 different people.",
    "Verbal equivalent": "Words for a likelihood ratio, as in the ENFSI guideline for evaluative"
    " reporting in forensic science (2015): weak support from 2, moderate from 10, moderately"
    " strong from 100, strong from 1,000, very strong from 10,000, extremely strong from 1,000,000;"
    " for different people below 1/2, 1/10 and so on.",
    "Temperature": "Number by which logits are divided before softmax, fitted on validation photos"
    " so that confidence agrees with accuracy.",
}


def name_of(key: str) -> str:
    """Return the printed name of a task, a kind of pairs, a baseline or a grouping."""
    if key in TASKS:
        return TASKS[key].title
    if key in BASELINES or key in PAIR_KINDS:
        return (BASELINES | PAIR_KINDS)[key].name
    return NAMES.get(key, key.replace("_", " "))


def capitalize(text: str) -> str:
    """Return the text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


# ----------------------------------------------------------------------------- metrics.json


def pairs_of(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measures of pairs of photos; empty if none was computed."""
    identity = tasks.get("identity") or {}
    return identity.get("matching") or identity.get("verification") or {}


def is_unseen(metrics: Mapping[str, Any]) -> bool:
    """Return whether all people on the photos are unseen."""
    protocol = PROTOCOLS.get(metrics["protocol"])
    unseen = protocol is not None and metrics["split"] in protocol.unseen
    return unseen or bool(metrics.get("cross_hand"))


def classified_tasks(tasks: Mapping[str, Any]) -> list[str]:
    """Return the tasks with photos of a known class; for unseen people, identity has none."""
    return [task for task, block in tasks.items() if block and block.get("n_images")]


def value_of(block: Mapping[str, Any], measure: Measure) -> tuple[float | None, dict[str, Any]]:
    """Return a measure's value and its interval in a block of metrics.json; None and {}: absent."""
    holder = (block.get(measure.block) or {}) if measure.block else block
    return holder.get(measure.key), (holder.get("intervals") or {}).get(measure.key) or {}


def in_gallery(measure: Measure, block: Mapping[str, Any]) -> Measure:
    """Return the measure; of a search, the name says how many people and photos are in a gallery.

    Args:
        measure: any.
        block: of metrics.json, with the measure.
    """
    size = block.get("gallery_people")
    if not measure.in_gallery or size is None:
        return measure
    size += (block.get(measure.block) or {}).get("n_distractors", 0)  # as other people
    return replace(measure, name=f"{measure.name} (in {size} photos of {size} people)")


# ----------------------------------------------------------------------------- headlines


class Headline(NamedTuple):
    """A headline number; NaN: unknown.

    part: the task, or the kind of pairs.
    baselines: baseline -> its value.
    differences: baseline -> interval of the number minus the baseline's, paired over people.
    """

    part: str
    measure: Measure
    value: float
    low: float
    high: float
    n_photos: int
    n_people: int
    baselines: dict[str, float]
    differences: dict[str, tuple[float, float]]

    @property
    def name(self) -> str:
        """Part and measure."""
        return f"{name_of(self.part)}: {self.measure.name}"

    @property
    def text(self) -> str:
        """The value with its unit."""
        return self.measure.unit.format(self.value)

    @property
    def interval(self) -> str:
        """The confidence interval with its unit; empty if unknown."""
        has_interval = self.low == self.low
        return self.measure.unit.format_interval(self.low, self.high) if has_interval else ""

    @property
    def best_baseline(self) -> str:
        """The baseline with the best value; empty if there is none."""
        sign = 1 if self.measure.higher_is_better else -1
        return max(self.baselines, key=lambda key: sign * self.baselines[key], default="")


def headlines(metrics_tasks: Mapping[str, Any]) -> list[Headline]:
    """Return the headline numbers: of each classified task, then of each kind of pairs."""
    pairs = pairs_of(metrics_tasks)
    tasks = {task: metrics_tasks[task] for task in classified_tasks(metrics_tasks)}
    return [
        _headline(part, measure, block)
        for part, block in [*tasks.items(), *((kind, pairs.get(kind) or {}) for kind in PAIR_KINDS)]
        for measure in MEASURES.values()
        if measure.headline and value_of(block, measure)[0] is not None
    ]


def _headline(part: str, measure: Measure, block: Mapping[str, Any]) -> Headline:
    """Return a block's measure as a headline; null becomes NaN."""
    value, interval = value_of(block, measure)
    low, high = (
        float("nan") if interval.get(end) is None else interval[end] for end in ("low", "high")
    )
    values = {key: x.get(measure.key) for key, x in (block.get("baselines") or {}).items()}
    found = {
        key: by_measure.get(measure.key) or {}
        for key, by_measure in (block.get("differences_to_baselines") or {}).items()
    }
    return Headline(
        part,
        in_gallery(measure, block),
        float("nan") if value is None else value,
        low,
        high,
        interval.get("n_photos", 0),
        interval.get("n_people", 0),
        {key: value for key, value in values.items() if value is not None},
        {key: (d["low"], d["high"]) for key, d in found.items() if d.get("low") is not None},
    )


def is_better(line: Headline) -> bool | None:
    """Return whether a headline number is better than every baseline; None: not comparable.

    The whole interval of the paired difference from each baseline must be on the better side of 0;
    without a paired difference, the number's own interval on the better side of the baseline.
    False for fewer than `FEW_PEOPLE` people.
    """
    if not line.baselines or not line.interval:
        return None
    return line.n_people >= FEW_PEOPLE and all(beats(line, key) for key in line.baselines)


def beats(line: Headline, baseline: str) -> bool:
    """Return whether the interval of the difference to a baseline is on the better side of 0."""
    low, high = line.differences.get(baseline, (line.low, line.high))
    bound = 0.0 if baseline in line.differences else line.baselines[baseline]
    return low > bound if line.measure.higher_is_better else high < bound


def verdict(line: Headline) -> str:
    """Return the sentence that compares a headline number with its strongest baseline."""
    if not line.interval:
        return "No confidence interval could be computed."
    flat = ""
    if line.low == line.high:
        flat = "No single person changes this value, so its interval has no width. "
    elif line.measure.unit.is_percent and line.value in (0, 1):
        flat = "The value is at the end of its range, so the interval is a one-sided 95 % limit. "
    best = line.best_baseline
    if not best:
        return f"{flat}No baseline applies."
    named = f"{name_of(best)} ({line.measure.unit.format(line.baselines[best])})"
    if is_better(line):
        return f"{flat}Better than every baseline; the strongest is {named}."
    few = f": fewer than {FEW_PEOPLE} people" if line.n_people < FEW_PEOPLE else ""
    if few:
        return f"{flat}Not compared with baselines{few}. The strongest is {named}."
    missed = [name_of(key) for key in line.baselines if not beats(line, key)]
    which = f"{len(missed)} of {len(line.baselines)} baselines"
    if len(missed) <= MAX_NAMED:
        which = " and ".join(missed)
    return f"{flat}Not shown to be better than {which}; the strongest baseline is {named}."


def summary(lines: Sequence[Headline]) -> str:
    """Return which headline numbers are shown to be better than every baseline."""
    sentences = []
    for wanted, start in (
        (True, "Better than every baseline (95 % confidence in each comparison)"),
        (False, "Not shown to be better than every baseline"),
    ):
        named = [f"{line.name} {line.text}" for line in lines if is_better(line) is wanted]
        if named:
            sentences.append(f"{start}: {'; '.join(named)}.")
    return " ".join(sentences) or "No result can be compared with a baseline."


def headline_table(metrics_tasks: Mapping[str, Any]) -> list[str]:
    """Return text lines: each headline number with its interval, people and baselines."""
    lines = headlines(metrics_tasks)
    rows = [["", "value", "95 % interval", "people", "strongest baseline", ""]]
    for line in lines:
        unit = line.measure.unit
        few = " (few)" if line.n_people < FEW_PEOPLE else ""
        best = line.best_baseline
        baseline = [unit.format(line.baselines.get(best)), name_of(best)]
        rows.append(
            [line.name, line.text, line.interval or "–", f"{line.n_people}{few}", *baseline]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


# ----------------------------------------------------------------------------- sentences


def describe_evaluation(metrics: Mapping[str, Any]) -> str:
    """Return a description of the photos and the model that were evaluated."""
    aspect = metrics["aspect"]
    hand = f" ({ASPECTS[aspect]})" if aspect in ASPECTS else ""
    people = f" of {metrics['n_people']} people" if metrics.get("n_people") else ""
    fold = "" if metrics.get("fold") is None else f", fold {metrics['fold']}"
    training = metrics.get("training", {})
    trained = training.get("aspect", aspect)  # earlier versions had one aspect
    on = f", trained on {trained}" if trained != aspect else ""
    recipe = training.get("config", {}).get("recipe", "published")
    return (
        f"{metrics['n_images']} photos{people}, aspect {aspect}{hand}, {metrics['split']} split of"
        f" protocol {metrics['protocol']}{fold}. Model: {metrics['backbone']}, recipe {recipe}"
        f"{on}, epoch {metrics.get('epoch', 'unknown')}."
    )


def temperature_warning(metrics_tasks: Mapping[str, Any]) -> str:
    """Return which temperatures are at a bound of their range; empty if none is."""
    tasks = {task: metrics_tasks[task] for task in classified_tasks(metrics_tasks)}
    bounded = [task for task, block in tasks.items() if at_bound(block.get("temperature"))]
    low, high = TEMPERATURE_RANGE
    return (
        f"The temperature of {', '.join(map(name_of, bounded))} is at a bound of its range"
        f" ({low:g} to {high:g}), so the best one may lie outside: do not rely on these"
        " probabilities."
        if bounded
        else ""
    )


def single_class_warning(metrics_tasks: Mapping[str, Any]) -> str:
    """Return which tasks have no result because one class occurs; empty if none has."""
    blocks = {task: block for task, block in metrics_tasks.items() if block}
    left_out = [task for task, block in blocks.items() if block.get("n_classes") == 1]
    return (
        f"No result for {' and '.join(map(name_of, left_out))}: all photos are of one class."
        if left_out
        else ""
    )


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return the warnings that a reader needs before any number."""
    n_people, cross = metrics.get("n_people", FEW_PEOPLE), metrics.get("cross_hand") or {}
    single_class = single_class_warning(metrics["tasks"])
    temperature = temperature_warning(metrics["tasks"])
    in_train = (metrics.get("leakage") or {}).get("person_in_train")
    conditions = {
        "The hands are drawn, not photographed: the scores say nothing about real hands.": (
            metrics.get("drawn")
        ),
        "Permuted labels: the labels were permuted between people before training. Scores above"
        " chance show that the model recognises people, not the attribute.": metrics.get(
            "permuted_labels"
        ),
        "These photos were used for training. The scores measure memorisation and say nothing about"
        " other photos.": metrics.get("split") == "train",
        "People on these photos have training photos: the scores say nothing about unseen"
        " people.": in_train and metrics.get("split") != "train",
        ONE_SESSION: pairs_of(metrics["tasks"]),
        "The epoch was selected on this split, so the scores are optimistic.": metrics.get(
            "selected_on_reported_split"
        ),
        "The temperature was fitted on this split, so all measures of probabilities (calibration"
        " error, log loss, Brier score, reliability diagram) are optimistic.": metrics.get(
            "calibrated_on_reported_split"
        ),
        single_class: single_class,
        temperature: temperature,
        "The split file has changed since training, so some of these photos may have been used for"
        " training.": metrics.get("split_as_at_training") is False,
        f"Only {n_people} people: too few to generalise. Confidence intervals from fewer than"
        f" {FEW_PEOPLE} people are themselves unreliable.": n_people < FEW_PEOPLE,
        f"Trained on aspect {cross.get('trained_on')}, evaluated on aspect {metrics['aspect']}:"
        f" identity is not evaluated, and {cross.get('people_left_out_as_trained_on')} people with"
        " training photos were excluded.": cross,
    }
    return [text for text, holds in conditions.items() if holds]


def explain_baselines(unseen: bool) -> str:
    """Return how to compare a score with its baselines.

    Args:
        unseen: nobody on the photos has a training photo.
    """
    if unseen:
        return (
            "Nobody on these photos was seen in training. Only a score better than every baseline"
            " shows a benefit of training on hands. Pixels and ImageNet features are not trained on"
            " hands; logistic regression and whitening are fitted on training photos. Background"
            " shows no hand, corners hardly any, and the constant uses no photo."
        )
    return (
        "The people on these photos were seen in training. Identity lookup predicts the other"
        " attributes from the predicted people alone: a score no better than it can be explained by"
        " recognising people. Pixels and ImageNet features are not trained on hands; logistic"
        " regressions on them are fitted on training photos. Background shows no"
        " hand, corners hardly any: a score no better can be explained by light and surroundings."
    )


def leakage_rows(leakage: Mapping[str, float | None]) -> list[list[str]]:
    """Return a table's rows: fractions of the evaluated photos close to training photos."""
    texts = {"person_in_train": "the same person", "identical_in_train": "the same file"}
    for key in leakage:
        if key.startswith("within_"):
            gap = key.removeprefix("within_")
            texts[key] = f"a frame of the same person at most {gap} away"
    return [[text, PERCENT.format(leakage[key])] for key, text in texts.items() if key in leakage]


def describe_gap(groups: Mapping[str, Any], measure: Measure) -> str:
    """Return the sentence on the largest difference of a measure between groups.

    Args:
        groups: grouping -> measure -> {"groups", "gap"}, as in metrics.json.
        measure: that differs.
    """
    gaps = {
        grouping: gap
        for grouping, found in groups.items()
        if (gap := (found.get(measure.key) or {}).get("gap")) and gap["value"] is not None
    }
    if not gaps:
        return f"No two groups have at least {FEW_PEOPLE} people each, so none are compared."
    grouping = max(gaps, key=lambda key: gaps[key]["value"])
    gap, unit = gaps[grouping], measure.unit
    points = " percentage points" if unit.is_percent else unit.suffix
    low, high = (float("nan") if gap[end] is None else gap[end] for end in ("low", "high"))
    value, *ends = (unit.format(x, suffix=False) for x in (gap["value"], low, high))
    sentence = (
        f"Largest difference: {name_of(grouping)}, {gap['highest']} exceeds {gap['lowest']} by"
        f" {value}{points} (95 % confidence interval {' to '.join(ends)})."
    )
    if low > 0 or high < 0:
        return (
            f"{sentence} The interval excludes 0, but is too narrow: the pair was chosen for its"
            " large difference."
        )
    return f"{sentence} The interval includes 0."


def terms(metrics_tasks: Mapping[str, Any]) -> dict[str, str]:
    """Return the glossary: general terms, baselines, and every measure that the report shows."""
    pairs = pairs_of(metrics_tasks)
    blocks = [block for block in metrics_tasks.values() if block]
    blocks += [pairs[kind] for kind in PAIR_KINDS if pairs.get(kind)]
    shown = {m.name: m.explanation for m in measures_in(blocks)}
    baselines = {f"Baseline: {b.name}": b.explanation for b in BASELINES.values()}
    return GENERAL_TERMS | baselines | {capitalize(k): text for k, text in shown.items()}


def measures_in(blocks: Sequence[Mapping[str, Any]]) -> Iterator[Measure]:
    """Yield, in the order of `MEASURES`, the measures with a value in any of the blocks."""
    for measure in MEASURES.values():
        holders = [block for block in blocks if value_of(block, measure)[0] is not None]
        if holders:
            yield in_gallery(measure, holders[0])
