"""The table of measures, one row each; all code that computes, prints or draws them loops over it.

To add a measure, add a row here and its function. `needs` says which evaluations have the measure,
and what its function is given:

classes        `classes.ClassPredictions` of any task
probabilities  the same; the measure is also computed before temperature scaling
two classes    the same, of tasks with two named classes
people         the same, of tasks whose classes are people (identity)
ages           the same, of tasks whose classes are age ranges
pairs          `pairs.PairScores`: similarities of all pairs of photos
galleries      the same, where galleries were drawn (unseen people)
distractors    the same, where the galleries are also extended by distractors
calibration    the same, of unseen people, if they are enough to calibrate likelihood ratios
val            the same, where val has other unseen people, on whom thresholds are set

The function returns a number, or a `intervals.PeopleMeasure`, which adds a 95 % confidence interval
over people. Only the latter can be a headline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from dataset_11k import TASKS
from measures import classes, likelihood_ratio, pairs
from measures.intervals import (
    effective_number,
    people_balanced_accuracy,
    people_mean,
    people_roc_auc,
)
from measures.pairs import BURST, FALSE_MATCH_RATES, MIN_FALSE_MATCHES


@dataclass(frozen=True)
class Unit:
    """How a value is printed: multiplied by `scale`, with `digits` decimals, then `suffix`.

    words: what the value means, in brackets behind it.
    """

    suffix: str = ""
    scale: float = 1.0
    digits: int = 3
    axis: str = ""  # label of a chart's axis
    words: Callable[[float], str] | None = None

    @property
    def is_percent(self) -> bool:
        """Whether values are fractions in [0, 1]."""
        return self.suffix.endswith("%")

    def format(self, value: float | None, *, suffix: bool = True) -> str:
        """Return the value with its unit; an en dash for None and NaN."""
        if value is None or value != value:
            return "–"
        rounded = round(self.scale * value, self.digits) + 0.0  # no negative zero
        text = f"{rounded:,.{self.digits}f}".replace("-", "\u2212")
        meaning = f" ({self.words(value)})" if suffix and self.words else ""
        return f"{text}{self.suffix if suffix else ''}{meaning}"

    def format_interval(self, low: float | None, high: float | None) -> str:
        """Return `low to high` with the unit; an en dash if an end is unknown."""
        ends = self.format(low, suffix=False), self.format(high, suffix=False)
        return "–" if "–" in ends else f"{ends[0]} to {ends[1]}{self.suffix}"

    def format_both(self, value: float | None, low: float | None, high: float | None) -> str:
        """Return the value, and behind it the interval in brackets if it is known."""
        ends = self.format_interval(low, high)
        return f"{self.format(value)}{f' ({ends})' if ends != '–' else ''}"


PERCENT = Unit("\u00a0%", 100, 1, "fraction")
YEARS = Unit("\u00a0years", 1, 1, "years")
BITS = Unit("\u00a0bits", 1, 3, "bits")
NATS = Unit("\u00a0nats", 1, 3, "nats")
COUNT = Unit("", 1, 0, "count")
NUMBER = Unit("", 1, 3)
LOG10_RATIO = Unit("", 1, 2, words=likelihood_ratio.verbal_equivalent)

OPEN_SET_RATES = (0.01, 0.1)  # FPIR

CLASS_NEEDS = ("classes", "probabilities", "two classes", "people", "ages")
PAIR_NEEDS = ("pairs", "galleries", "distractors", "calibration", "val")


DET_RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # FMR

GALLERY_SIZES = (2, 5, 10, 20, 50, 100, 200)  # people

PROBE_PHOTOS = (2, 4, 8)  # photos of one person that are searched for together


@dataclass(frozen=True)
class Measure:
    """One row of `MEASURES`.

    key: in metrics.json, results.csv.
    name: as printed.
    explanation: one or two sentences: what it is, and which values are good.
    function: returns the value, or, of a headline, a `intervals.PeopleMeasure`.
    needs: see the docstring of this module.
    headline: gets differences to baselines and values by group besides its interval.
    block: key of the nested object in metrics.json that holds it; empty: none.
    chance: of pairs, and of classes that are people: returns the value of guessing, from the same
        argument; None: unknown.
    in_gallery: depends on the size of the gallery, which is printed behind the name.
    of_baselines: of pairs: also computed for baselines, as headlines are, without differences.
    """

    key: str
    name: str
    explanation: str
    function: Callable[[Any], Any]
    needs: str = "classes"
    unit: Unit = PERCENT
    higher_is_better: bool = True
    headline: bool = False
    block: str = ""
    chance: Callable[[Any], float] | None = None
    in_gallery: bool = False
    of_baselines: bool = False

    def __post_init__(self) -> None:
        """Refuse a row that no evaluation would have."""
        if self.needs not in (*CLASS_NEEDS, *PAIR_NEEDS):
            known = ", ".join((*CLASS_NEEDS, *PAIR_NEEDS))
            raise ValueError(f"measure {self.key} needs {self.needs!r}. Known: {known}")


def _fnmr_at_fmr(rate: float) -> Measure:
    """Return the row of FNMR at a false match rate of the evaluated people."""
    return Measure(
        f"fnmr_at_fmr_{rate:g}",
        f"FNMR at FMR {100 * rate:g} %",
        "False non-match rate (genuine pairs rejected) at the threshold that accepts"
        f" {100 * rate:g} % of the impostor pairs (false match rate). Needs"
        f" {MIN_FALSE_MATCHES / rate:,.0f} pairs of different people, so that {MIN_FALSE_MATCHES}"
        " of them may match falsely.",
        lambda s: s.verification.fnmr_at_fmr(rate),
        needs="pairs",
        higher_is_better=False,
    )


def _fnir_at_fpir(rate: float) -> Measure:
    """Return the row of FNIR at a false positive identification rate of the evaluated people."""
    return Measure(
        f"fnir_at_fpir_{rate:g}",
        f"FNIR at FPIR {100 * rate:g} %",
        "Open-set search: false negative identification rate (enrolled people not found) at the"
        f" threshold where {100 * rate:g} % of the searches for people who are not enrolled return"
        f" somebody. Needs {MIN_FALSE_MATCHES / rate:,.0f} people who are not enrolled, so that"
        f" {MIN_FALSE_MATCHES} of them may match falsely.",
        lambda s: s.open_set_fnir(rate),
        needs="galleries",
        higher_is_better=False,
        block="open_set",
    )


def _at_val_fmr(rate: float) -> tuple[Measure, Measure]:
    """Return the rows of FNMR and FMR at the threshold of a false match rate on val."""
    place = f"at the threshold of FMR {100 * rate:g} % on val"
    return (
        Measure(
            f"fnmr_at_val_fmr_{rate:g}",
            f"FNMR {place}",
            f"False non-match rate at the threshold that {100 * rate:g} % of the impostor pairs of"
            f" val exceed, which shows other people. Needs {MIN_FALSE_MATCHES / rate:,.0f} pairs of"
            " different people in val.",
            lambda s: s.match_rate_at_val(rate, genuine=True),
            needs="val",
            higher_is_better=False,
            block="val_threshold",
        ),
        Measure(
            f"fmr_at_val_fmr_{rate:g}",
            f"FMR {place}",
            "False match rate of the evaluated people at that threshold, which aims at"
            f" {100 * rate:g} %.",
            lambda s: s.match_rate_at_val(rate, genuine=False),
            needs="val",
            higher_is_better=False,
            block="val_threshold",
        ),
    )


def _at_val_fpir(rate: float) -> tuple[Measure, Measure]:
    """Return the rows of FNIR and FPIR at the threshold of an FPIR on val."""
    place = f"at the threshold of FPIR {100 * rate:g} % on val"
    return (
        Measure(
            f"fnir_at_val_fpir_{rate:g}",
            f"FNIR {place}",
            f"False negative identification rate at the threshold that {100 * rate:g} % of the"
            " searches for people of val who are not enrolled exceed. Needs"
            f" {MIN_FALSE_MATCHES / rate:,.0f} such people in val.",
            lambda s: s.open_set_at_val(rate, outside=False),
            needs="val",
            higher_is_better=False,
            block="val_threshold",
        ),
        Measure(
            f"fpir_at_val_fpir_{rate:g}",
            f"FPIR {place}",
            "False positive identification rate of the evaluated people at that threshold, which"
            f" aims at {100 * rate:g} %. It rises with the number of people enrolled.",
            lambda s: s.open_set_at_val(rate, outside=True),
            needs="val",
            higher_is_better=False,
            block="val_threshold",
        ),
    )


def _gallery_size_row(n_people: int) -> Measure:
    return Measure(
        f"rank_1_among_{n_people}",
        f"rank-1 (in {n_people} photos of {n_people} random people)",
        f"Expected rank-1 if a gallery has {n_people} random people of those evaluated, one photo"
        " each, among them the person searched for.",
        lambda s: s.rank_1_among(n_people),
        needs="galleries",
        block="gallery_size",
        of_baselines=True,
    )


def _fused_rank_row(n_photos: int) -> Measure:
    return Measure(
        f"rank_1_fused_{n_photos}",
        f"rank-1, {n_photos} photos per probe",
        f"Rank-1 of the mean of the normalised embeddings of {n_photos} photos of one hand, none"
        " of them in the gallery. People with fewer photos are in the gallery, but not searched"
        " for.",
        lambda s: s.fused_rank_1(n_photos),
        needs="galleries",
        block="fused_probes",
        in_gallery=True,
        of_baselines=True,
    )


def _rank_gain_row(n_photos: int) -> Measure:
    return Measure(
        f"rank_1_gain_{n_photos}",
        f"gain in rank-1 by {n_photos} photos per probe",
        f"Rank-1 with {n_photos} photos per probe minus rank-1 of the same photos one at a time, in"
        " the same galleries.",
        lambda s: s.fused_rank_1(n_photos, gain=True),
        needs="galleries",
        block="fused_probes",
        in_gallery=True,
    )


def _fused_eer_row(n_photos: int) -> Measure:
    return Measure(
        f"eer_fused_{n_photos}",
        f"EER, {n_photos} photos per probe",
        f"EER of comparing {n_photos} photos of one hand with one photo of a gallery; the"
        " similarity is the mean of the photos' similarities.",
        lambda s: s.fused_eer(n_photos),
        needs="galleries",
        higher_is_better=False,
        block="fused_probes",
        of_baselines=True,
    )


def _eer_gain_row(n_photos: int) -> Measure:
    return Measure(
        f"eer_gain_{n_photos}",
        f"change in EER by {n_photos} photos per probe",
        f"EER with {n_photos} photos per probe minus EER of the same photos one at a time, with the"
        " same gallery photos.",
        lambda s: s.fused_eer(n_photos, gain=True),
        needs="galleries",
        higher_is_better=False,
        block="fused_probes",
    )


_ROWS = (
    # ------------------------------------------------------------------------- classes
    Measure(
        "accuracy",
        "accuracy",
        "Fraction of photos with the correct class.",
        lambda p: accuracy_score(p.true, p.predicted),
    ),
    Measure(
        "balanced_accuracy",
        "balanced accuracy",
        "Recall averaged over the classes that occur. Always predicting one class scores"
        " 1 / number of classes.",
        lambda p: people_balanced_accuracy(
            p.true, p.predicted, p.people, classes_are_people=p.classes_are_people
        ),
        headline=True,
        chance=lambda p: 1 / len(np.unique(p.true)) if len(p.true) else np.nan,
    ),
    Measure(
        "macro_f1",
        "macro F1",
        "F1 score (harmonic mean of precision and recall) averaged over the classes.",
        lambda p: f1_score(p.true, p.predicted, average="macro", zero_division=0),
    ),
    Measure(
        "batch_mean_balanced_accuracy",
        "mean of per-batch balanced accuracies (as published)",
        "Balanced accuracy of every 20 consecutive photos, averaged. Usually higher than balanced"
        " accuracy because few classes occur in a batch; use it only to compare with published"
        " scores.",
        lambda p: classes.batch_mean_balanced_accuracy(p.true, p.predicted),
    ),
    Measure(
        "top_1",
        "top-1 accuracy",
        "Fraction of photos whose person has the highest score.",
        lambda p: p.top(1),
        needs="people",
    ),
    Measure(
        "top_5",
        "top-5 accuracy",
        "Fraction of photos whose person is among the five with the highest scores.",
        lambda p: p.top(5),
        needs="people",
    ),
    Measure(
        "top_10",
        "top-10 accuracy",
        "Fraction of photos whose person is among the ten with the highest scores.",
        lambda p: p.top(10),
        needs="people",
    ),
    Measure(
        "roc_auc",
        "ROC AUC",
        "Area under the ROC curve: probability that a photo of the second class (gender: male)"
        " scores higher than one of the first. 50 % is chance.",
        lambda p: people_roc_auc(p.true, p.scores, p.people),
        needs="two classes",
        headline=True,
    ),
    Measure(
        "within_one_group",
        "within one age group",
        "Fraction of photos whose predicted age group is the true one or adjacent to it.",
        lambda p: (np.abs(p.true - p.predicted) <= 1).mean(),
        needs="ages",
    ),
    Measure(
        "mae_years",
        "mean absolute error",
        "Mean absolute difference between predicted and true age. The predicted age is the mean"
        " training age of the median age group of the predicted distribution.",
        lambda p: replace(people_mean(np.abs(p.ages - p.median_ages), p.people), minimum=0),
        needs="ages",
        unit=YEARS,
        higher_is_better=False,
        headline=True,
    ),
    Measure(
        "mae_years_of_expectation",
        "mean absolute error of the expected age",
        "The same, where the predicted age is the mean of the age groups' mean training ages,"
        " weighted by their probabilities.",
        lambda p: np.abs(p.ages - p.expected_ages).mean(),
        needs="ages",
        unit=YEARS,
        higher_is_better=False,
    ),
    Measure(
        "quadratic_weighted_kappa",
        "quadratic weighted kappa",
        "Agreement of predicted and true age group beyond chance; an error is weighted by its"
        " squared distance in groups. 1 is perfect, 0 is chance.",
        lambda p: classes.quadratic_weighted_kappa(p.true, p.predicted),
        needs="ages",
        unit=NUMBER,
    ),
    Measure(
        "brier",
        "Brier score",
        "Half the mean squared distance between predicted probabilities and the one-hot true class:"
        " 0 is perfect, 1 is worst.",
        lambda p: classes.brier_score(p.true, p.probabilities),
        needs="probabilities",
        unit=NUMBER,
        higher_is_better=False,
    ),
    Measure(
        "expected_calibration_error",
        "expected calibration error",
        "Mean absolute difference between confidence and accuracy in 15 confidence bins, weighted"
        " by photos: 0 % is perfect calibration.",
        lambda p: classes.expected_calibration_error(p.true, p.probabilities),
        needs="probabilities",
        higher_is_better=False,
    ),
    Measure(
        "calibrated_error",
        "expected calibration error if calibrated",
        "Expected calibration error that a perfectly calibrated model with the same confidences"
        " would have on average, because bins have few photos.",
        lambda p: classes.calibrated_error(p.probabilities),
        needs="probabilities",
        higher_is_better=False,
    ),
    Measure(
        "log_loss",
        "log loss",
        "Mean negative logarithm of the probability given to the true class: 0 is perfect.",
        lambda p: classes.log_loss(p.true, p.probabilities),
        needs="probabilities",
        unit=NATS,
        higher_is_better=False,
    ),
    # ------------------------------------------------------------------------- pairs
    Measure(
        "n_genuine",
        "genuine pairs",
        "Number of pairs of two photos of the same person.",
        lambda s: s.curve.n_genuine,
        needs="pairs",
        unit=COUNT,
    ),
    Measure(
        "n_impostor",
        "impostor pairs",
        "Number of pairs of two photos of different people.",
        lambda s: s.curve.n_impostor,
        needs="pairs",
        unit=COUNT,
    ),
    Measure(
        "effective_people",
        "effective people",
        "How many people with equally many genuine pairs would be as informative: (sum of n)^2 /"
        " sum of n^2 over each person's number n of genuine pairs. Few, if some people have many"
        " more photos than others.",
        lambda s: effective_number(s.verification.shares),
        needs="pairs",
        unit=COUNT,
    ),
    Measure(
        "eer",
        "EER",
        "Equal error rate: the error rate at the threshold where false match rate and false"
        " non-match rate are equal. 50 % is chance.",
        lambda s: s.verification.equal_error_rate(),
        needs="pairs",
        higher_is_better=False,
        headline=True,
        chance=lambda s: 0.5,  # of scores that are independent of the person
    ),
    *map(_fnmr_at_fmr, DET_RATES),
    Measure(
        "gallery_people",
        "people in a gallery",
        "Number of people in a gallery, with one photo each: as many photos.",
        lambda s: s.galleries.shape[1],
        needs="galleries",
        unit=COUNT,
    ),
    Measure(
        "rank_1",
        "rank-1",
        "Fraction of photos whose most similar gallery photo shows the same person. The gallery"
        " has one photo per person; mean over several random galleries.",
        lambda s: s.rank_rate(1),
        needs="galleries",
        headline=True,
        chance=lambda s: 1 / s.galleries.shape[1],
        in_gallery=True,
    ),
    *map(_gallery_size_row, GALLERY_SIZES),
    *map(_fused_rank_row, PROBE_PHOTOS),
    *map(_rank_gain_row, PROBE_PHOTOS),
    *map(_fused_eer_row, PROBE_PHOTOS),
    *map(_eer_gain_row, PROBE_PHOTOS),
    Measure(
        "rank_1_sd",
        "rank-1, standard deviation over galleries",
        "Standard deviation of rank-1 over the random galleries. It does not include the choice of"
        " people, nor the training.",
        lambda s: pairs.sd_over_draws(s.rank_hits(1)),
        needs="galleries",
        higher_is_better=False,
        in_gallery=True,
    ),
    Measure(
        "rank_5",
        "rank-5",
        "Fraction of photos with the same person among the five most similar gallery photos.",
        lambda s: s.rank_rate(5).value,
        needs="galleries",
        in_gallery=True,
    ),
    Measure(
        "rank_10",
        "rank-10",
        "Fraction of photos with the same person among the ten most similar gallery photos.",
        lambda s: s.rank_rate(10).value,
        needs="galleries",
        in_gallery=True,
    ),
    Measure(
        "mAP",
        "mAP",
        "Mean average precision of ranking all other photos by similarity: 100 % if every photo of"
        " the same person comes before all photos of others.",
        lambda s: people_mean(s.retrieval.average_precision[s.photos], s.people, is_rate=True),
        needs="galleries",
        headline=True,
    ),
    Measure(
        "mAP_trapezoidal",
        "mAP in galleries, trapezoidal (as published)",
        "Mean over searches in a gallery with one photo per person of 1 if that photo is the most"
        " similar, else 1 / (2 rank); use it only to compare with published scores.",
        lambda s: people_mean(pairs.trapezoidal_precision(s.query_ranks), s.people),
        needs="galleries",
        in_gallery=True,
    ),
    Measure(
        "mAP_trapezoidal_sd",
        "mAP in galleries, trapezoidal, standard deviation over galleries",
        "Standard deviation of this mAP over the random galleries. It does not include the choice"
        " of people, nor the training.",
        lambda s: pairs.sd_over_draws(pairs.trapezoidal_precision(s.query_ranks)),
        needs="galleries",
        higher_is_better=False,
        in_gallery=True,
    ),
    Measure(
        "mINP",
        "mINP",
        "Mean inverse negative penalty: number of photos of the same person divided by the rank of"
        " the last of them. 100 % if all of them come first.",
        lambda s: people_mean(s.retrieval.inverse_penalty[s.photos], s.people).value,
        needs="galleries",
    ),
    Measure(
        "n_distractors",
        "distractors in a gallery",
        "Number of photos that extend a gallery: the gallery photos of the other aspects, as other"
        " people. On the whole of 11k Hands, gallery and distractors are 290.",
        lambda s: s.n_distractors,
        needs="distractors",
        unit=COUNT,
        block="extended_gallery",
    ),
    Measure(
        "rank_1_extended",
        "rank-1, extended galleries",
        "Rank-1 if the galleries also hold the distractors.",
        lambda s: people_mean(pairs.rank_hits(s.extended_query_ranks, 1), s.people),
        needs="distractors",
        block="extended_gallery",
        in_gallery=True,
    ),
    Measure(
        "rank_1_extended_sd",
        "rank-1, extended galleries, standard deviation over galleries",
        "Standard deviation of this rank-1 over the random galleries. It does not include the"
        " choice of people, nor the training.",
        lambda s: pairs.sd_over_draws(pairs.rank_hits(s.extended_query_ranks, 1)),
        needs="distractors",
        higher_is_better=False,
        block="extended_gallery",
        in_gallery=True,
    ),
    Measure(
        "mAP_trapezoidal_extended",
        "mAP in extended galleries, trapezoidal (as published)",
        "The trapezoidal mAP if the galleries also hold the distractors.",
        lambda s: people_mean(pairs.trapezoidal_precision(s.extended_query_ranks), s.people),
        needs="distractors",
        block="extended_gallery",
        in_gallery=True,
    ),
    Measure(
        "mAP_trapezoidal_extended_sd",
        "mAP in extended galleries, trapezoidal, standard deviation over galleries",
        "Standard deviation of this mAP over the random galleries. It does not include the choice"
        " of people, nor the training.",
        lambda s: pairs.sd_over_draws(pairs.trapezoidal_precision(s.extended_query_ranks)),
        needs="distractors",
        higher_is_better=False,
        block="extended_gallery",
        in_gallery=True,
    ),
    *(_fnir_at_fpir(rate) for rate in OPEN_SET_RATES),
    Measure(
        "n_draws",
        "random galleries",
        "Number of random galleries that open-set rates are averaged over.",
        lambda s: len(s.galleries),
        needs="galleries",
        unit=COUNT,
        block="open_set",
    ),
    Measure(
        "n_gallery_people",
        "people enrolled",
        "Number of people in a gallery of the open-set search.",
        lambda s: s.n_enrolled,
        needs="galleries",
        unit=COUNT,
        block="open_set",
    ),
    Measure(
        "n_outside_people",
        "people not enrolled",
        "Number of people who are searched for in the open-set search but not in the gallery.",
        lambda s: s.n_outside,
        needs="galleries",
        unit=COUNT,
        block="open_set",
    ),
    *(row for rate in FALSE_MATCH_RATES for row in _at_val_fmr(rate)),
    *(row for rate in OPEN_SET_RATES for row in _at_val_fpir(rate)),
    Measure(
        "calibration_people",
        "people in the smallest calibration set",
        "Least number of people that a likelihood ratio was calibrated on. Each pair is calibrated"
        " on pairs of other people.",
        lambda s: s.calibration.n_people,
        needs="calibration",
        unit=COUNT,
        block="likelihood_ratio",
    ),
    Measure(
        "slope",
        "slope of the calibration",
        "Change of the natural logarithm of the likelihood ratio per unit of similarity, mean over"
        " the calibrations.",
        lambda s: np.mean([part.slope for part in s.calibration.parts]),
        needs="calibration",
        unit=NUMBER,
        block="likelihood_ratio",
    ),
    Measure(
        "intercept",
        "intercept of the calibration",
        "Natural logarithm of the likelihood ratio at similarity 0 before bounding, mean over the"
        " calibrations.",
        lambda s: np.mean([part.intercept for part in s.calibration.parts]),
        needs="calibration",
        unit=NUMBER,
        block="likelihood_ratio",
    ),
    Measure(
        "log10_lr_min",
        "lower bound of log10(LR)",
        "Lowest log10 of a likelihood ratio that the calibration data support (ELUB: empirical"
        " lower and upper bounds); lower ones were raised to it. The narrowest bounds of"
        " all calibrations.",
        lambda s: min(part.log10_min for part in s.calibration.parts),
        needs="calibration",
        unit=LOG10_RATIO,
        block="likelihood_ratio",
    ),
    Measure(
        "log10_lr_max",
        "upper bound of log10(LR)",
        "Highest log10 of a likelihood ratio that the calibration data support; higher ones were"
        " lowered to it.",
        lambda s: max(part.log10_max for part in s.calibration.parts),
        needs="calibration",
        unit=LOG10_RATIO,
        block="likelihood_ratio",
    ),
    Measure(
        "cllr",
        "Cllr",
        "Log-likelihood-ratio cost: 0 is perfect, 1 is the cost of no evidence, above 1 is worse."
        " A likelihood ratio is how many times more probable a similarity is for the same person"
        " than for different people.",
        lambda s: likelihood_ratio.people_cllr(s.log_ratios, *s.pairs[1:]),
        needs="calibration",
        unit=BITS,
        higher_is_better=False,
        block="likelihood_ratio",
    ),
    Measure(
        "cllr_min",
        "minimum Cllr",
        "Cllr after the best monotonic calibration of the same likelihood ratios: the cost of"
        " imperfect discrimination. The rest of Cllr is the cost of imperfect calibration.",
        lambda s: likelihood_ratio.cllr_min(s.log_ratios, s.pairs.genuine),
        needs="calibration",
        unit=BITS,
        higher_is_better=False,
        block="likelihood_ratio",
    ),
    Measure(
        "devpav",
        "devPAV",
        "Mean distance, in log10, of the likelihood ratios from their best monotonic calibration"
        " (PAV): 0 is perfect calibration, 1 a factor of 10.",
        lambda s: likelihood_ratio.devpav(s.log_ratios, s.pairs.genuine),
        needs="calibration",
        unit=NUMBER,
        higher_is_better=False,
        block="likelihood_ratio",
    ),
    Measure(
        "misleading_genuine",
        "misleading evidence, genuine pairs",
        "Fraction of genuine pairs with a likelihood ratio below 1.",
        lambda s: s.misleading(genuine=True),
        needs="calibration",
        higher_is_better=False,
        block="likelihood_ratio",
    ),
    Measure(
        "misleading_impostor",
        "misleading evidence, impostor pairs",
        "Fraction of impostor pairs with a likelihood ratio above 1.",
        lambda s: s.misleading(genuine=False),
        needs="calibration",
        higher_is_better=False,
        block="likelihood_ratio",
    ),
    Measure(
        "strongly_misleading_genuine",
        "strongly misleading evidence, genuine pairs",
        "Fraction of genuine pairs with a likelihood ratio below 1/100.",
        lambda s: s.misleading(genuine=True, beyond=2),
        needs="calibration",
        higher_is_better=False,
        block="likelihood_ratio",
    ),
    Measure(
        "strongly_misleading_impostor",
        "strongly misleading evidence, impostor pairs",
        "Fraction of impostor pairs with a likelihood ratio above 100.",
        lambda s: s.misleading(genuine=False, beyond=2),
        needs="calibration",
        higher_is_better=False,
        block="likelihood_ratio",
    ),
)

MEASURES: dict[str, Measure] = {row.key: row for row in _ROWS}  # in the order of tables


def measures_for(task: str) -> list[Measure]:
    """Return the measures of a task's class predictions."""
    row = TASKS[task]
    applies = {
        "classes": True,
        "probabilities": True,
        "two classes": row.classes is not None and len(row.classes) == 2,
        "people": row.classes is None,
        "ages": row.in_years,
    }
    return [measure for measure in MEASURES.values() if applies.get(measure.needs)]


def pair_measures() -> list[Measure]:
    """Return the measures of similarities of pairs of photos."""
    return [measure for measure in MEASURES.values() if measure.needs in PAIR_NEEDS]


# ----------------------------------------------------------------------------- baselines and pairs


@dataclass(frozen=True)
class Baseline:
    """A baseline that measures are compared with: name and one sentence, as printed."""

    name: str
    explanation: str


BASELINES = {
    "constant": Baseline(
        "constant",
        "Predicts the frequencies of the classes in train for every photo, thus always the most"
        " frequent class and the median age group. Balanced accuracy of identity is then"
        " 1 / number of people, exactly.",
    ),
    "thumbnail_nearest": Baseline(
        "thumbnail, nearest photo",
        "Predicts the class of the most similar training photo; photos are reduced to 8x8 pixels"
        " and compared by cosine after the mean of train is removed.",
    ),
    "thumbnail_logistic": Baseline(
        "thumbnail, logistic", "Logistic regression on the 8x8 pixels, fitted on train."
    ),
    "corners_nearest": Baseline(
        "corners, nearest photo",
        "Predicts the class of the most similar training photo by the four corner pixels of the"
        " thumbnail: background, in some photos sleeve or hand.",
    ),
    "corners_logistic": Baseline(
        "corners, logistic", "Logistic regression on the four corner pixels, fitted on train."
    ),
    "background_nearest": Baseline(
        "background, nearest photo",
        "Predicts the class of the most similar training photo by thumbnails in which the mean"
        " colour of the white background replaces the hand, its sleeve and a margin.",
    ),
    "background_logistic": Baseline(
        "background, logistic",
        "Logistic regression on the thumbnail without the hand, fitted on train.",
    ),
    "imagenet_nearest": Baseline(
        "ImageNet, nearest photo",
        "Predicts the class of the most similar training photo by the output of the same backbone"
        " with ImageNet weights, without training on hands.",
    ),
    "imagenet_logistic": Baseline(
        "ImageNet, logistic",
        "Logistic regression on the output of the same backbone with ImageNet weights.",
    ),
    "identity_lookup": Baseline(
        "identity lookup",
        "Predicts the training labels of the people that the identity head names, weighted by their"
        " probabilities. The backbone may have been trained on these labels as well.",
    ),
    "embedding_nearest": Baseline(
        "embedding, nearest photo",
        "Predicts the class of the training photo with the most similar embedding of the trained"
        " model, which may have been trained on these labels as well.",
    ),
    "chance": Baseline("chance", "Guesses at random."),
    "thumbnail": Baseline(
        "thumbnail", "Compares photos by their 8x8 pixels after the mean of train is removed."
    ),
    "corners": Baseline("corners", "Compares photos by the four corner pixels of the thumbnail."),
    "background": Baseline(
        "background",
        "Compares photos by thumbnails in which the mean colour of the white background replaces"
        " the hand, its sleeve and a margin.",
    ),
    "imagenet": Baseline(
        "ImageNet",
        "Compares photos by the output of the same backbone with ImageNet weights, without training"
        " on hands.",
    ),
    "imagenet_whitened": Baseline(
        "ImageNet, whitened",
        "As ImageNet, after within-class covariance normalisation, fitted on the people of train.",
    ),
}


@dataclass(frozen=True)
class PairKind:
    """Which pairs of photos are compared.

    name: as printed.
    excluded_gap: genuine pairs at most this many frames apart are left out; 0: none.
    """

    name: str
    excluded_gap: int


PAIR_KINDS = {
    "all_pairs": PairKind("all pairs", 0),
    f"beyond_{BURST}_frames": PairKind(f"pairs more than {BURST} frames apart", BURST),
}
