"""What metrics.json says of the tasks, from the arrays of predictions.npz: no model, no disk.

metrics.py, intervals.py and matching.py have the measures; here is which of them a task gets, and
what stands beside each headline number: its interval, controls that read no hand, and slices. The
arrays are those of `evaluation.prediction_arrays`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from measures.bootstrap import (
    PeopleMeasure,
    Slices,
    bootstrap,
    by_group,
    paired_difference,
    people_balanced_accuracy,
    people_mean,
    people_roc_auc,
)
from measures.classes import (
    age_measures,
    cmc,
    expected_age,
    identity_lookup,
    label_measures,
    majority_class,
    probability_measures,
    ratio,
    roc_auc,
    softmax,
    true_ranks,
)
from measures.likelihood_ratio import cllr_min, fit_calibration, people_cllr
from measures.pairs import (
    BURST,
    Comparisons,
    Verification,
    compare_all,
    cosine_similarity,
    fnir_at_fpir,
    fnmr_at_fmr,
    gallery_ranks,
    near_pairs,
    nearest,
    retrieve,
)

BOOTSTRAP_SEED = 0

CMC_RANKS = (1, 5, 10)

FALSE_MATCH_RATES = (0.01, 0.001)

FALSE_IDENTIFICATION_RATES = (0.01, 0.1)

SLICES = ("gender", "age", "skin_color", "accessories")

SLICE_FACTS = ("value", "low", "high", "n_photos", "n_people")

CERTAIN = 1000.0  # a logit whose class has probability 1: controls answer without a doubt

CONTROL_MEASURES = (
    *("accuracy", "balanced_accuracy", "macro_f1", "roc_auc"),
    *("within_one_group", "mae_years", "quadratic_weighted_kappa"),
)

MOST_MATCHED = 6000  # photos; all their pairs take about 2 GB

Arrays = Mapping[str, np.ndarray]


# ----------------------------------------------------------------------------- classes


@dataclass(frozen=True)
class Answers:
    """A task's answers to the photos whose true class the model knows.

    true: (N,) class indices.
    logits: (N, C) before softmax, which divides them by `temperature`.
    people: (N,) who is on the photo.
    ages: (N,) in whole years.
    mean_ages: (n_age_groups,) of the training in years, NaN: unknown.
    """

    task: str
    true: np.ndarray
    logits: np.ndarray
    temperature: float
    people: np.ndarray
    ages: np.ndarray
    mean_ages: np.ndarray

    def of(self, rows: np.ndarray) -> Answers:
        """Return the answers to these rows alone, (n,) indices."""
        per_photo = ("true", "logits", "people", "ages")
        return replace(self, **{name: getattr(self, name)[rows] for name in per_photo})

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each photo, (N,)."""
        return self.logits.argmax(axis=1)

    @property
    def male(self) -> np.ndarray:
        """Of gender: how much more male than female, (N,)."""
        return self.logits[:, 1] - self.logits[:, 0]

    @property
    def expected_ages(self) -> np.ndarray:
        """Of age: in years, (N,)."""
        return expected_age(softmax(self.logits, self.temperature), self.mean_ages)


def task_answers(arrays: Arrays, task: str) -> Answers:
    """Return a task's answers to the rows whose class the model knows."""
    known = arrays[f"{task}_true"] >= 0
    return Answers(
        task=task,
        true=arrays[f"{task}_true"][known],
        logits=arrays[f"{task}_logits"][known].astype(np.float64),
        temperature=float(arrays[f"{task}_temperature"]),
        people=arrays["people"][known],
        ages=arrays["age_years"][known],
        mean_ages=arrays.get("mean_ages", np.full(len(arrays["age_classes"]), np.nan)),
    )


def class_measures(answers: Answers) -> dict[str, Any]:
    """Return the measures of the classes answered, and what each task has of its own."""
    measures: dict[str, Any] = label_measures(answers.true, answers.predicted)
    if answers.task == "identity":
        curve = cmc(true_ranks(answers.logits, answers.true), max(CMC_RANKS))
        measures |= {"top_1": curve[0], "top_5": curve[4]}
        measures["cmc"] = {str(rank): curve[rank - 1] for rank in CMC_RANKS}
    elif answers.task == "gender":
        measures["roc_auc"] = roc_auc(answers.true, answers.male)
    else:
        expected = answers.expected_ages
        measures |= age_measures(answers.true, answers.predicted, answers.ages, expected)
    return measures


def headline(answers: Answers) -> dict[str, PeopleMeasure]:
    """Return the measures that get an interval."""
    people, is_identity = answers.people, answers.task == "identity"
    measures = {
        "balanced_accuracy": people_balanced_accuracy(
            answers.true, answers.predicted, people, class_is_person=is_identity
        )
    }
    if answers.task == "gender":
        measures["roc_auc"] = people_roc_auc(answers.true, answers.male, people)
    if answers.task == "age":
        measures["mae_years"] = people_mean(np.abs(answers.ages - answers.expected_ages), people)
    return measures


def intervals(measures: Mapping[str, PeopleMeasure]) -> dict[str, dict[str, Any]]:
    """Return each measure's bootstrap interval over people, but for its value."""
    found = {name: bootstrap(m, seed=BOOTSTRAP_SEED)._asdict() for name, m in measures.items()}
    return {name: {k: v for k, v in i.items() if k != "value"} for name, i in found.items()}


def controls(answers: Answers, arrays: Arrays) -> dict[str, Answers]:
    """Return the answers of controls, which read no gender or age from a hand, to the same photos.

    majority_class: always the training rows' most frequent class. identity_lookup (gender, age):
    the training rows' class of whoever the identity head names; who has no photo there gets the
    majority class. nearest_embedding (there, where the training photos were embedded): the class of
    the training photo that is most alike. Nothing for an older checkpoint, which does not know its
    training rows.
    """
    task, n_classes = answers.task, answers.logits.shape[1]
    if f"{task}_train_counts" not in arrays:
        return {}
    counts = arrays[f"{task}_train_counts"]
    most = majority_class(np.repeat(np.arange(n_classes), counts))
    guesses = {"majority_class": np.full(len(answers.true), most)}
    if task != "identity":
        known = arrays[f"{task}_true"] >= 0
        named = arrays["identity_logits"].argmax(axis=1)[known]
        found = identity_lookup(named, arrays[f"{task}_of_identity"])
        guesses["identity_lookup"] = np.where(found < 0, most, found)
        if "training_embedding" in arrays:
            alike = cosine_similarity(arrays["embedding"][known], arrays["training_embedding"])
            labels = arrays[f"training_{task}_true"]
            guesses["nearest_embedding"] = identity_lookup(nearest(alike), labels)
    return {
        name: replace(answers, logits=CERTAIN * np.eye(n_classes)[guess], temperature=1.0)
        for name, guess in guesses.items()
    }


def control_measures(control: Answers) -> dict[str, Any]:
    """Return the measures of a control's answers."""
    said = class_measures(control)
    return {key: said[key] for key in CONTROL_MEASURES if key in said}


def above(answers: Answers, control: Answers) -> dict[str, dict[str, Any]]:
    """Return how far each headline number is above a control's, paired over people."""
    pairs = zip(headline(answers).items(), headline(control).values(), strict=True)
    return {
        name: paired_difference(first, second, seed=BOOTSTRAP_SEED)._asdict()
        for (name, first), second in pairs
    }


def slice_groups(arrays: Arrays, kept: np.ndarray) -> dict[str, np.ndarray]:
    """Return the group of each kept row, (n,) names, for each of `SLICES` that is known."""
    names = [name for name in SLICES if f"slice_{name}" in arrays]
    return {name: arrays[f"slice_{name}"][kept] for name in names}


def slices(
    measures_of: Callable[[np.ndarray], Mapping[str, PeopleMeasure]],
    groups: Mapping[str, np.ndarray],
    people: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """Return each headline measure within each group, and the widest gap.

    Args:
        measures_of: row indices, (n,), to the measures of these rows alone.
        groups: grouping -> (N,) group of each row.
        people: (N,) who is on the photo.
    """
    found: dict[str, dict[str, Any]] = {}
    for grouping, group in groups.items():
        found[grouping] = {}
        for name in measures_of(np.arange(len(people))):
            measure_of = partial(one_of, measures_of, name)
            sliced = by_group(measure_of, group, people, seed=BOOTSTRAP_SEED)
            if all(np.isnan(part.value) for part in sliced.intervals.values()):
                continue  # a measure that compares what the grouping takes apart
            found[grouping][name] = {
                "groups": {key: slice_facts(sliced, key) for key in sliced.intervals},
                "gap": sliced.gap and sliced.gap._asdict(),
            }
    return found


def one_of(
    measures_of: Callable[[np.ndarray], Mapping[str, PeopleMeasure]], name: str, rows: np.ndarray
) -> PeopleMeasure:
    """Return the measure called `name` of the rows."""
    return measures_of(rows)[name]


def slice_facts(sliced: Slices, group: Any) -> dict[str, Any]:
    """Return what metrics.json says of a group."""
    facts = {name: getattr(sliced.intervals[group], name) for name in SLICE_FACTS}
    return {**facts, "few_people": group in sliced.few_people}


def measure_task(task: str, arrays: Arrays) -> dict[str, Any]:
    """Return all that metrics.json says of a task that is classified."""
    answers = task_answers(arrays, task)
    beside = controls(answers, arrays)
    groups = slice_groups(arrays, arrays[f"{task}_true"] >= 0)
    before = probability_measures(answers.true, softmax(answers.logits))
    after = probability_measures(answers.true, softmax(answers.logits, answers.temperature))
    return {
        "n_images": len(answers.true),
        "n_classes": len(np.unique(answers.true)),
        **class_measures(answers),
        **after,
        "temperature": answers.temperature,
        "before_temperature": before,
        "intervals": intervals(headline(answers)),
        "controls": {name: control_measures(control) for name, control in beside.items()},
        "above_controls": {name: above(answers, control) for name, control in beside.items()},
        "slices": slices(lambda rows: headline(answers.of(rows)), groups, answers.people),
    }


# ----------------------------------------------------------------------------- embeddings


@dataclass(frozen=True)
class Matched:
    """Photos whose embeddings are compared.

    similarity: (N, N) of all photos.
    people: (N,) who is on the photo.
    excluded: (N, N) bool, pairs to leave out.
    """

    similarity: np.ndarray
    people: np.ndarray
    excluded: np.ndarray

    def pairs(self, rows: np.ndarray) -> Comparisons:
        """Return every pair of these rows that is not excluded, once."""
        among = np.ix_(rows, rows)
        return compare_all(self.similarity[among], self.people[rows], self.excluded[among])


def left_out(people: np.ndarray, frames: np.ndarray, gap: int) -> np.ndarray:
    """Return the pairs, (N, N) bool, of a photo with itself or of a person within `gap` frames."""
    itself = np.eye(len(people), dtype=bool)
    return itself | near_pairs((people, people), (frames, frames), gap) if gap else itself


def outside_pairs(arrays: Arrays, gap: int) -> Comparisons | None:
    """Return the pairs that likelihood ratios are calibrated on; None: there are none."""
    if "calibration_embedding" not in arrays:
        return None
    embedding, people = arrays["calibration_embedding"], arrays["calibration_people"]
    excluded = left_out(people, arrays["calibration_frame_number"], gap)
    return compare_all(cosine_similarity(embedding, embedding), people, excluded)


def open_set(matched: Matched, galleries: np.ndarray) -> dict[str, Any]:
    """Return FNIR at each of `FALSE_IDENTIFICATION_RATES`, the mean over the galleries drawn.

    Of each gallery, (n_draws, n_people) rows, half of the people are enrolled, chosen at random;
    all photos that are not in it search for them, those of the other half from outside.
    """
    random, rates = np.random.default_rng(BOOTSTRAP_SEED), FALSE_IDENTIFICATION_RATES
    n_enrolled = galleries.shape[1] // 2
    found = np.full((len(galleries), len(rates)), np.nan)
    for draw, gallery in enumerate(galleries):
        enrolled = random.permutation(gallery)[:n_enrolled]
        query = np.setdiff1d(np.arange(len(matched.people)), gallery)
        pairs = np.ix_(query, enrolled)
        people = matched.people[query], matched.people[enrolled]
        for i, rate in enumerate(rates):
            found[draw, i] = fnir_at_fpir(
                matched.similarity[pairs], *people, rate, matched.excluded[pairs]
            )
    defined = ~np.isnan(found)
    means = ratio(np.nansum(found, axis=0), defined.sum(axis=0))
    return {
        **{f"fnir_at_fpir_{rate:g}": mean for rate, mean in zip(rates, means, strict=True)},
        "n_draws": len(found),
        "n_gallery_people": n_enrolled,
        "n_outside_people": galleries.shape[1] - n_enrolled,
    }


def calibrated(pairs: Comparisons, outside: Comparisons) -> dict[str, Any] | None:
    """Return how good the likelihood ratios of `pairs` are; None: nothing to calibrate with.

    Args:
        pairs: that are evaluated.
        outside: of people in none of `pairs`, which the calibration is fitted on.
    """
    line = fit_calibration(outside.score, outside.genuine)
    if line is None:
        return None
    log_ratios, genuine = line.log_likelihood_ratio(pairs.score), pairs.genuine
    measures = {"cllr": people_cllr(pairs, log_ratios)}
    return {
        "calibrated_on": "val",
        "calibration_people": len(np.unique(outside.people)),
        "calibration_pairs": len(outside.score),
        "slope": line.slope,
        "intercept": line.intercept,
        "cllr": measures["cllr"].value,
        "cllr_min": cllr_min(log_ratios, genuine),
        "misleading_genuine": float(ratio((log_ratios < 0)[genuine].sum(), genuine.sum())),
        "misleading_impostor": float(ratio((log_ratios > 0)[~genuine].sum(), (~genuine).sum())),
        "intervals": intervals(measures),
    }


def match(
    matched: Matched,
    galleries: np.ndarray | None,
    groups: Mapping[str, np.ndarray],
    outside: Comparisons | None,
) -> dict[str, Any]:
    """Return verification of all pairs, retrieval where there are galleries, likelihood ratios.

    Args:
        matched: the photos.
        galleries: (n_draws, n_people) rows, or None.
        groups: as in `slices`.
        outside: as in `calibrated`; None: no likelihood ratios.
    """
    everyone = np.arange(len(matched.people))
    pairs = matched.pairs(everyone)
    rates = Verification(pairs).curve()
    measures: dict[str, Any] = {"n_genuine": rates.n_genuine, "n_impostor": rates.n_impostor}
    for rate in FALSE_MATCH_RATES:
        measures[f"fnmr_at_fmr_{rate:g}"] = fnmr_at_fmr(rates, rate)
    photo_values: dict[str, np.ndarray] = {}  # headline measure -> its values to take the mean of
    if galleries is not None:
        ranks = gallery_ranks(matched.similarity, matched.people, galleries, matched.excluded)
        hits = {k: np.where(np.isnan(ranks), np.nan, ranks <= k) for k in CMC_RANKS}
        found = retrieve(matched.similarity, matched.people, matched.people, matched.excluded)
        photo_values = {"rank_1": hits[1], "mAP": found.average_precision}
        for k in CMC_RANKS:
            measures[f"rank_{k}"] = people_mean(hits[k], matched.people).value
        measures["mINP"] = people_mean(found.inverse_penalty, matched.people).value
        measures["open_set"] = open_set(matched, galleries)

    def headline_of(rows: np.ndarray) -> dict[str, PeopleMeasure]:
        means = {n: people_mean(v[rows], matched.people[rows]) for n, v in photo_values.items()}
        return {"eer": Verification(matched.pairs(rows)).equal_error_rate(), **means}

    whole = headline_of(everyone)
    return {
        **measures,
        **{name: measure.value for name, measure in whole.items()},
        "intervals": intervals(whole),
        "likelihood_ratio": None if outside is None else calibrated(pairs, outside),
        "slices": slices(headline_of, groups, matched.people),
    }


def measure_matching(arrays: Arrays) -> dict[str, Any]:
    """Return `match` over all pairs, and without pairs of neighbouring frames.

    The latter is None where a photo has no frame number. Chance: to guess one of the gallery.
    """
    people, frames = arrays["people"], arrays["frame_number"]
    similarity = cosine_similarity(arrays["embedding"], arrays["embedding"])
    galleries = arrays.get("galleries")
    groups = slice_groups(arrays, np.arange(len(people)))
    measures: dict[str, Any] = {}
    for name, gap in (("all_pairs", 0), (f"beyond_{BURST}_frames", BURST)):
        if gap and np.isnan(frames).any():
            measures[name] = None
            continue
        matched = Matched(similarity, people, left_out(people, frames, gap))
        measures[name] = match(matched, galleries, groups, outside_pairs(arrays, gap))
    if galleries is None:
        return measures
    chance = {"chance": {"rank_1": 1 / galleries.shape[1]}}
    return {**measures, "n_galleries": len(galleries), "controls": chance}


def measure(arrays: Arrays, tasks: Sequence[str], *, strangers: bool) -> dict[str, dict[str, Any]]:
    """Return the part of metrics.json of each of `tasks`; NaN where nothing could be measured.

    Args:
        arrays: of predictions.npz.
        tasks: that were asked.
        strangers: whether nobody on the photos was trained on: they are then only matched.
    """
    measures = {task: measure_task(task, arrays) for task in tasks}
    if "identity" in measures:
        key = "matching" if strangers else "verification"
        compared = len(arrays["people"]) <= MOST_MATCHED
        measures["identity"][key] = measure_matching(arrays) if compared else None
    return measures


def plain(value: Any) -> Any:
    """Return nested measures as JSON has them: NaN, nothing to measure, becomes null."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value
