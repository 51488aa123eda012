"""The `tasks` of metrics.json from the arrays of predictions.npz: a loop over MEASURES.

Each headline measure gets an interval over people, baselines, paired differences to these, and its
value by group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dataset_11k import TASKS
from measures.baselines import baseline_embeddings, compute_baselines
from measures.classes import ClassPredictions, class_means
from measures.intervals import (
    FEW_PEOPLE,
    PeopleMeasure,
    by_group,
    interval_of,
    paired_difference,
)
from measures.likelihood_ratio import people_pair_rate
from measures.pairs import (
    FALSE_MATCH_RATES,
    Comparisons,
    PairScores,
    cosine_similarity,
    extended_ranks,
    gallery_ranks,
    pairwise_similarity,
    retrieve,
)
from measures.registry import MEASURES, PAIR_KINDS, Measure, measures_for, pair_measures

GROUP_PREFIX = "group_"  # of the arrays that hold each photo's group

GROUP_KEYS = ("value", "low", "high", "n_photos", "n_people")

NO_BASELINE = ("probabilities", "people")  # a baseline predicts one class, without a ranking

CALIBRATED_ON = "the other people of the split"  # of likelihood ratios

MAX_COMPARED_PHOTOS = 6000  # their pairs take about 2 GB of memory

Arrays = Mapping[str, np.ndarray]
Scores = ClassPredictions | PairScores
Measured = dict[str, Any]  # key of MEASURES -> number or PeopleMeasure


def compute_metrics(
    arrays: Arrays, tasks: Sequence[str], *, unseen: bool
) -> dict[str, dict[str, Any]]:
    """Return the part of metrics.json of each of `tasks`; NaN where there is nothing to measure.

    Args:
        arrays: of predictions.npz.
        tasks: names of `TASKS`.
        unseen: whether nobody on the photos was trained on.
    """
    measured = without_single_classes(arrays, tasks)
    metrics = {
        task: compute_task(task, measured) | {"n_classes": len(classes_of(task, arrays))}
        for task in tasks
    }
    if "identity" in metrics:
        key = "matching" if unseen else "verification"
        compared = len(arrays["people"]) <= MAX_COMPARED_PHOTOS
        metrics["identity"][key] = compute_pairs(arrays) if compared else None
    return metrics


def classes_of(task: str, arrays: Arrays) -> np.ndarray:
    """Return the indices of a task's classes that occur."""
    true = arrays[f"{task}_true"]
    return np.unique(true[true >= 0])


def without_single_classes(arrays: Arrays, tasks: Sequence[str]) -> Arrays:
    """Return the arrays, with all labels unknown of tasks of which one class occurs.

    Always predicting that class would be right, so that a score means nothing.
    """
    single = [f"{task}_true" for task in tasks if len(classes_of(task, arrays)) == 1]
    return {**arrays, **{name: np.full_like(arrays[name], -1) for name in single}}


def headline_measures(
    arrays: Arrays, tasks: Sequence[str], *, unseen: bool
) -> dict[tuple[str, str], PeopleMeasure]:
    """Return the headline measures by (task, key), as functions of the people.

    Of unseen people, identity has those of all pairs of photos. A task of fewer than two classes is
    left out.

    Args:
        arrays: of predictions.npz.
        tasks: names of `TASKS`.
        unseen: whether nobody on the photos was trained on.
    """
    parts: list[tuple[str, Scores, list[Measure]]] = [
        (task, class_predictions(arrays, task), measures_for(task))
        for task in tasks
        if len(classes_of(task, arrays)) > 1
    ]
    if unseen and "identity" in tasks and len(arrays["people"]) <= MAX_COMPARED_PHOTOS:
        scores = pair_scores(arrays, 0)
        parts.append(("identity", scores, available_measures(scores)))
    return {
        (task, measure.key): measure.function(scores)
        for task, scores, measures in parts
        for measure in measures
        if measure.headline
    }


# ----------------------------------------------------------------------------- measures to values


def apply_measures(measures: Sequence[Measure], scores: Scores) -> Measured:
    """Return the result of each measure; without photos NaN, except for headlines.

    Raises:
        TypeError: the function of a headline returns a plain number.
    """
    results: Measured = {}
    for measure in measures:
        empty = not len(scores.people) and not measure.headline
        result = np.nan if empty else measure.function(scores)
        if measure.headline and not isinstance(result, PeopleMeasure):
            raise TypeError(f"the function of headline {measure.key} must return a PeopleMeasure")
        results[measure.key] = result
    return results


def to_value(result: float | PeopleMeasure) -> float:
    """Return a measure's result as a number."""
    return result.value if isinstance(result, PeopleMeasure) else result


def to_block(results: Measured) -> dict[str, Any]:
    """Return values and intervals as metrics.json nests them."""
    part: dict[str, Any] = {}
    for key, result in results.items():
        name = MEASURES[key].block
        block = part.setdefault(name, {}) if name else part
        block[key] = to_value(result)
        if isinstance(result, PeopleMeasure):
            interval = interval_of(result)._asdict()
            del interval["value"]
            block.setdefault("intervals", {})[key] = interval
    return part


def compute_groups(
    measures: Sequence[Measure], scores: Scores, groups: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Return each headline measure by group with the largest gap.

    A measure without a value in any group is left out, such as ROC AUC of gender by gender.

    Args:
        measures: the ones that apply.
        scores: of (n,) photos.
        groups: grouping -> (n,) group of each photo.
    """
    found: dict[str, dict[str, Any]] = {}
    for grouping, labels in groups.items():
        found[grouping] = {}
        parts = {g: scores.of(np.flatnonzero(labels == g)) for g in np.unique(labels).tolist()}
        for measure in measures:
            if not measure.headline:
                continue
            by_part = {group: measure.function(part) for group, part in parts.items()}
            intervals, gap = by_group(by_part, scores.people)
            if all(np.isnan(interval.value) for interval in intervals.values()):
                continue
            found[grouping][measure.key] = {
                "groups": {
                    group: {key: getattr(interval, key) for key in GROUP_KEYS}
                    | {"few_people": interval.n_people < FEW_PEOPLE}
                    for group, interval in intervals.items()
                },
                "gap": gap and gap._asdict(),
            }
    return found


def read_groups(arrays: Arrays) -> dict[str, np.ndarray]:
    """Return grouping -> (N,) group of each photo, for every grouping of the arrays."""
    return {
        name.removeprefix(GROUP_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(GROUP_PREFIX)
    }


# ----------------------------------------------------------------------------- classes


def class_predictions(arrays: Arrays, task: str) -> ClassPredictions:
    """Return a task's predictions for the photos whose class the model knows."""
    known = arrays[f"{task}_true"] >= 0
    logits = arrays[f"{task}_logits"][known].astype(np.float64)
    return ClassPredictions(
        true=arrays[f"{task}_true"][known],
        logits=logits,
        temperature=float(arrays[f"{task}_temperature"]),
        people=arrays["people"][known],
        ages=arrays.get("age_years", np.full(len(known), np.nan))[known],
        mean_ages=arrays.get("mean_ages", np.full(logits.shape[1], np.nan)),
        classes_are_people=TASKS[task].classes is None,
    )


def compute_task(task: str, arrays: Arrays) -> dict[str, Any]:
    """Return the part of metrics.json of a task, without pairs."""
    known = arrays[f"{task}_true"] >= 0
    predictions = class_predictions(arrays, task)
    measures = measures_for(task)
    results = apply_measures(measures, predictions)
    uncalibrated = apply_measures(
        [measure for measure in measures if measure.needs == "probabilities"],
        replace(predictions, temperature=1.0),
    )
    compared = [measure for measure in measures if measure.needs not in NO_BASELINE]
    baselines = {
        name: apply_measures(compared, baseline)
        for name, baseline in compute_baselines(task, arrays, predictions).items()
    }
    if "constant" in baselines and predictions.classes_are_people:
        # Exact, not estimated: without an interval, as chance of pairs.
        exact = {m.key: m.chance(predictions) for m in compared if m.chance is not None}
        baselines["constant"] |= exact
    return {
        "n_images": len(predictions.true),
        **to_block(results),
        "people_per_class": people_per_class(predictions, TASKS[task].classes),
        "temperature": predictions.temperature,
        "before_temperature": {key: to_value(result) for key, result in uncalibrated.items()},
        "baselines": {
            name: {key: to_value(result) for key, result in found.items()}
            for name, found in baselines.items()
        },
        "differences_to_baselines": compute_differences(results, baselines),
        "groups": compute_groups(
            measures,
            predictions,
            {grouping: labels[known] for grouping, labels in read_groups(arrays).items()},
        ),
    }


def people_per_class(
    predictions: ClassPredictions, names: Sequence[str] | None
) -> dict[str, dict[str, int]] | None:
    """Return the people of each class that occurs, and how many have most photos right.

    None if all classes have at least `FEW_PEOPLE` people, or are people. Recall of a class of few
    people depends on so few that no interval covers it.

    Args:
        predictions: of a task.
        names: of its classes; None: they are people.
    """
    if names is None:
        return None
    found = {}
    for label in np.unique(predictions.true):
        rows = predictions.true == label
        people, person = np.unique(predictions.people[rows], return_inverse=True)
        right = class_means(predictions.predicted[rows] == label, person, len(people))
        n_right = int((right > 0.5).sum())
        found[names[label]] = {"n_people": len(people), "n_mostly_right": n_right}
    few = any(count["n_people"] < FEW_PEOPLE for count in found.values())
    return found if few else None


def compute_differences(
    results: Measured, baselines: Mapping[str, Measured]
) -> dict[str, dict[str, Any]]:
    """Return the paired difference of each headline measure to each baseline."""
    return {
        name: {
            key: paired_difference(results[key], value)._asdict()
            for key, value in found.items()
            if MEASURES[key].headline and isinstance(value, PeopleMeasure)
        }
        for name, found in baselines.items()
    }


# ----------------------------------------------------------------------------- pairs


def pair_scores(arrays: Arrays, excluded_gap: int) -> PairScores:
    """Return the similarities of all pairs of photos.

    Args:
        arrays: of predictions.npz.
        excluded_gap: as in `pairwise_similarity`.
    """
    people = arrays["people"]
    frames = arrays["frame_number"]
    similarity = pairwise_similarity(arrays["embedding"], people, frames, excluded_gap)
    galleries = arrays.get("galleries", np.zeros((0, 0), dtype=np.int64))
    distractors = arrays.get("distractors", np.zeros((len(galleries), 0), dtype=np.int64))
    extended = None
    if "distractors" in arrays:
        to_distractors = cosine_similarity(arrays["embedding"], arrays["distractor_embedding"])
        extended = extended_ranks(similarity, people, galleries, to_distractors, distractors)
    return PairScores(
        similarity=similarity,
        all_people=people,
        galleries=galleries,
        ranks=gallery_ranks(similarity, people, galleries),
        n_distractors=distractors.shape[1],
        extended_ranks=extended,
        retrieval=retrieve(similarity, people),
        photos=np.arange(len(people)),
        val=pair_scores(val_arrays(arrays), excluded_gap) if "val_embedding" in arrays else None,
    )


def val_arrays(arrays: Arrays) -> Arrays:
    """Return the arrays of val's photos; its gallery is the first photo of each person."""
    found = {key: arrays[f"val_{key}"] for key in ("embedding", "people", "frame_number")}
    return found | {"galleries": np.unique(found["people"], return_index=True)[1][None]}


def pair_kinds(arrays: Arrays) -> Iterator[tuple[str, PairScores]]:
    """Yield each of `PAIR_KINDS` with its scores; excluding a gap needs all frame numbers."""
    for kind, row in PAIR_KINDS.items():
        if not row.excluded_gap or not np.isnan(arrays["frame_number"]).any():
            yield kind, pair_scores(arrays, row.excluded_gap)


def available_measures(scores: PairScores) -> list[Measure]:
    """Return the measures that can be computed from these scores."""
    return [measure for measure in pair_measures() if measure.needs in scores.available]


def compute_pairs(arrays: Arrays) -> dict[str, Any]:
    """Return the measures of pairs of photos, as in metrics.json.

    A kind of pairs without frame numbers, or a block that cannot be computed, is None.
    """
    metrics: dict[str, Any] = dict.fromkeys(PAIR_KINDS)
    embeddings = baseline_embeddings(arrays)
    shared = ("people", "frame_number", "galleries")
    compared = {key: arrays[key] for key in shared if key in arrays}
    for kind, scores in pair_kinds(arrays):
        gap = PAIR_KINDS[kind].excluded_gap
        measures = available_measures(scores)
        blocks = dict.fromkeys(measure.block for measure in pair_measures() if measure.block)
        results = apply_measures(measures, scores)
        metrics[kind] = blocks | to_block(results)
        shown = [measure for measure in measures if measure.headline or measure.of_baselines]
        baselines = {
            name: apply_measures(shown, pair_scores({**compared, "embedding": found}, gap))
            for name, found in embeddings.items()
        }
        chance = {m.key: m.chance(scores) for m in measures if m.chance is not None}
        metrics[kind]["baselines"] = {"chance": chance} | {
            name: {key: to_value(value) for key, value in found.items()}
            for name, found in baselines.items()
        }
        metrics[kind]["differences_to_baselines"] = compute_differences(results, baselines)
        if metrics[kind]["likelihood_ratio"] is not None:
            metrics[kind]["likelihood_ratio"]["calibrated_on"] = CALIBRATED_ON
        metrics[kind]["groups"] = compute_groups(measures, scores, read_groups(arrays))
        metrics[kind]["differentials"] = compute_differentials(scores, read_groups(arrays))
    if "galleries" in arrays:
        metrics["n_galleries"] = len(arrays["galleries"])
    return metrics


def compute_differentials(
    scores: PairScores, groups: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """Return FMR and FNMR of the pairs of every two groups, all at one threshold.

    It is the threshold of the lowest of `FALSE_MATCH_RATES` that enough pairs of different people
    support; None if there is none.

    Args:
        scores: of (N,) photos.
        groups: grouping -> (N,) group of each photo.

    Source: ISO/IEC 19795-10:2024, performance variation across demographic groups.
    """
    thresholds = {fmr: scores.match_threshold(fmr) for fmr in FALSE_MATCH_RATES}
    supported = [fmr for fmr, threshold in thresholds.items() if not np.isnan(threshold)]
    if not supported:
        return None
    threshold, pairs, found = thresholds[min(supported)], scores.pairs, {}
    for grouping, labels in groups.items():
        names, group = np.unique(labels, return_inverse=True)
        low, high = np.sort([group[pairs.first], group[pairs.second]], axis=0)
        few = [len(np.unique(scores.people[labels == name])) < FEW_PEOPLE for name in names]
        found[grouping] = {
            str(one): {
                str(names[j]): differential(
                    pairs.of((low == i) & (high == j)), threshold, few=few[i] or few[j]
                )
                for j in range(i, len(names))
            }
            for i, one in enumerate(names)
        }
    return {"fmr": min(supported), "threshold": threshold, "groups": found}


def differential(pairs: Comparisons, threshold: float, *, few: bool) -> dict[str, dict[str, float]]:
    """Return FMR and FNMR of pairs at a threshold, with intervals over people.

    Rates are NaN if a group has few people, or fewer than `FEW_PEOPLE` are in the pairs.
    """
    cell = {}
    for key, genuine in (("fmr", False), ("fnmr", True)):
        part = pairs.of(pairs.genuine == genuine)
        wrong = (part.score > threshold) != genuine
        interval = interval_of(people_pair_rate(wrong, *part[1:], genuine=genuine))
        ends = dict(zip(("value", "low", "high"), interval, strict=False))
        hidden = few or interval.n_people < FEW_PEOPLE
        cell[key] = {
            **(dict.fromkeys(ends, np.nan) if hidden else ends),
            "n_pairs": len(wrong),
            "n_people": interval.n_people,
        }
    return cell


# ----------------------------------------------------------------------------- JSON


def to_json(value: Any) -> Any:
    """Return nested metrics as JSON types; NaN becomes None (null)."""
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value
