"""Every chart of a report: the picture, how to read it, what it says in words, and its numbers.

Functions of arrays and of blocks of metrics.json. They return nothing where there is nothing to
draw, as in files of older versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dataset_11k import TASKS
from measures.classes import cmc, expected_age, reliability, softmax
from measures.likelihood_ratio import ScoreCalibration, tippett
from measures.metrics_json import left_out
from measures.pairs import (
    BURST,
    Verification,
    compare_all,
    cosine_similarity,
    fnmr_at_fmr,
    gallery_ranks,
)
from pages.figures import (
    PAGE_CLASSES,
    Curve,
    IntervalRow,
    as_png,
    as_svg,
    count_confusions,
    draw_ages,
    draw_confusion,
    draw_det,
    draw_intervals,
    draw_lines,
    draw_people,
    draw_reliability,
    shorten,
)
from pages.html import NOTHING, Html, figure, image, paragraph, table
from pages.wording import KINDS, LOWER_IS_BETTER, Headline, name, number, slice_rows, widest_gap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 96  # of a page

SVG_LIMIT = 120_000  # bytes; a picture of more points is smaller as PNG

MAX_RANK = 20

FALSE_MATCH_RATES = (0.1, 0.01, 0.001)

LOG10_RATIOS = (-4, -3, -2, -1, 0, 1, 2, 3, 4)

TIPPETT_POINTS = 400

MOST_CONFUSED = 25

SHARES = ("none", "under half", "half and more", "all")

SHARE_BOUNDS = (1e-9, 0.5, 1.0)  # lowest share of the second, third and fourth


def chart(title: str, drawn: Figure, alt: str, reading: str, numbers: Html = NOTHING) -> Html:
    """Return a chart for the page: SVG, or PNG where that has too many points.

    Args:
        title: heading above it.
        drawn: the figure.
        alt: what it says, for who does not see it.
        reading: how it is read.
        numbers: its table.
    """
    width, height = (round(side * PIXELS_PER_INCH) for side in drawn.get_size_inches())
    data = as_svg(drawn)
    if len(data) > SVG_LIMIT:
        data = min(data, as_png(drawn), key=len)
    return figure(title, image(data, alt, (width, height), "chart"), reading, numbers)


def percent(value: float) -> str:
    """Return a share as text."""
    return number(value, "")


# ----------------------------------------------------------------------------- headline


def headline_chart(lines: Sequence[Headline]) -> Html:
    """Return the chart of all headline numbers that are shares, with their controls."""
    shares = [line for line in lines if line.measure != "mae_years"]
    if not shares:
        return NOTHING
    rows = [
        IntervalRow(
            line.name,
            line.value,
            line.low,
            line.high,
            {name(key): value for key, value in line.controls.items()},
        )
        for line in shares
    ]
    said = [f"{line.name} {number(line.value, line.measure)}" for line in shares]
    return chart(
        "The numbers beside their controls",
        draw_intervals(rows, "share", percent=True),
        f"Dots with intervals: {'; '.join(said)}.",
        "Dot: the number; line: its 95 % interval; vermilion marks: what controls reach that read"
        " nothing from a hand. Of EER less is better, of the others more. Whether a number is more"
        " than its controls is said with it, above: people are paired there.",
    )


# ----------------------------------------------------------------------------- classes


def confusion_chart(answers: pd.DataFrame, task: str, names: Sequence[str]) -> Html:
    """Return a task's confusion matrix.

    Args:
        answers: predictions.csv.
        task: of its columns.
        names: all classes in order.
    """
    true, predicted = answers[f"{task}_true"], answers[f"{task}_pred"]
    seen = set(true) | set(predicted)
    shown = [name for name in names if name in seen]
    if not len(true) or not shown:
        return NOTHING
    counts = count_confusions(true, predicted, shown)
    right = int(np.trace(counts))
    few = len(shown) <= PAGE_CLASSES
    reading = (
        "Row: the true class; column: the answer. The diagonal is right. Count and share of the row"
        " in each cell."
        if few
        else "Each point is a person's photos (down) answered as a person (across). Dots on the"
        " diagonal are right, crosses are confusions; larger: more photos."
    )
    numbers = _count_table(counts, shown) if few else _confusion_list(counts, shown)
    return chart(
        f"Who or what was taken for what: {name(task)}",
        draw_confusion(counts, shown, name(task)),
        f"Confusion matrix of {name(task)}: {right} of {len(true)} photos right,"
        f" {len(shown)} of {len(names)} classes occur.",
        reading,
        numbers,
    )


def _count_table(counts: np.ndarray, names: Sequence[str]) -> Html:
    """Return the whole matrix as a table."""
    rows = [[true, *map(str, row)] for true, row in zip(names, counts.tolist(), strict=True)]
    return table("Photos by true class (row) and answer (column)", ["true", *names], rows)


def _confusion_list(counts: np.ndarray, names: Sequence[str]) -> Html:
    """Return the most frequent confusions as a table."""
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    places = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    rows = [[names[i], names[j], str(counts[i, j]), str(counts[i].sum())] for i, j in places]
    if not rows:
        return paragraph("No photo was confused.")
    caption = f"The most frequent confusions (at most {MOST_CONFUSED})"
    return table(caption, ["true", "answered", "photos", "of the person's photos"], rows)


def reliability_chart(
    task: str, true: np.ndarray, logits: np.ndarray, temperature: float, block: Mapping[str, Any]
) -> Html:
    """Return a task's reliability diagram, before and after its temperature.

    Args:
        task: for the title.
        true: (N,) class indices.
        logits: (N, C) before softmax.
        temperature: what they are divided by.
        block: the task's part of metrics.json.
    """
    if not len(true):
        return NOTHING
    before, after = (reliability(true, softmax(logits, t)) for t in (1.0, temperature))
    errors = [
        number(part.get("expected_calibration_error"), "")
        for part in (block.get("before_temperature") or {}, block)
    ]
    edges = np.linspace(0, 1, len(after.photos) + 1)
    rows = [
        [f"{percent(low)} to {percent(high)}", str(photos), percent(confidence), percent(share)]
        for low, high, photos, confidence, share in zip(edges[:-1], edges[1:], *after, strict=True)
        if photos
    ]
    header = ["confidence", "photos", "mean confidence", "share right"]
    return chart(
        f"Is its confidence right? {name(task).capitalize()}",
        draw_reliability(before, after),
        f"Reliability diagram of {name(task)}: expected calibration error {errors[0]} before the"
        f" temperature, {errors[1]} after.",
        f"On the grey line an answer is right as often as its probability says; below it, the"
        f" answers are too sure of themselves. Logits are divided by a temperature of"
        f" {temperature:.2f}. Expected calibration error {errors[0]} before, {errors[1]} after.",
        table("After the temperature, by confidence", header, rows),
    )


def age_chart(
    logits: np.ndarray,
    temperature: float,
    mean_ages: np.ndarray | None,
    ages: np.ndarray | None,
    people: np.ndarray | None,
) -> Html:
    """Return expected over true age.

    Args:
        logits: (N, n_age_groups).
        temperature: what they are divided by.
        mean_ages: (n_age_groups,) of the training in years, NaN: no photo.
        ages: (N,) true ages in years.
        people: (N,) who is on the photo.
    """
    if mean_ages is None or ages is None or people is None or np.isnan(mean_ages).all():
        return NOTHING
    expected = expected_age(softmax(logits, temperature), mean_ages)
    if not len(ages) or np.isnan(expected).any():
        return NOTHING
    found = pd.DataFrame({"age": ages, "error": np.abs(ages - expected), "person": people})
    bounds = [0, 20, 21, 22, 23, 30, 200]
    named = pd.cut(found["age"], bounds, labels=["to 20", "21", "22", "23", "24-30", "from 31"])
    rows = [
        [str(group), str(len(part)), str(part["person"].nunique()), f"{part['error'].mean():.1f}"]
        for group, part in found.groupby(named, observed=True)
    ]
    header = ["true age", "photos", "people", "mean absolute error in years"]
    return chart(
        "Age in years",
        draw_ages(ages, expected, people),
        f"Scatter of expected over true age of {len(ages)} photos:"
        f" {found['error'].mean():.1f} years off on average.",
        "On the grey line an age is right. Expected ages lie between the youngest and the oldest"
        " age group's mean training age, so the oldest people are always estimated too young."
        " Diamonds are people: points of one person are no independent observations.",
        table("By true age", header, rows),
    )


# ----------------------------------------------------------------------------- pairs


def pair_charts(arrays: Mapping[str, np.ndarray], pairs: Mapping[str, Any]) -> list[Html]:
    """Return what is drawn of embeddings: CMC (with galleries), DET, Tippett.

    Args:
        arrays: predictions.npz.
        pairs: the `matching` or `verification` part of metrics.json.
    """
    kinds = [(kind, gap) for kind, gap in zip(KINDS, (0, BURST), strict=True) if pairs.get(kind)]
    if not kinds or not {"embedding", "people", "frame_number"} <= arrays.keys():
        return []
    people, frames = arrays["people"], arrays["frame_number"]
    similarity = cosine_similarity(arrays["embedding"], arrays["embedding"])
    ranks, verified, ratios, n_people = [], [], [], 0
    for kind, gap in kinds:
        excluded = left_out(people, frames, gap)
        if "galleries" in arrays:
            found = gallery_ranks(similarity, people, arrays["galleries"], excluded)
            ranks.append((name(kind), found.ravel()))
            n_people = arrays["galleries"].shape[1]
        compared = compare_all(similarity, people, excluded)
        verified.append((name(kind), Verification(compared)))
        if line := pairs[kind].get("likelihood_ratio"):
            calibration = ScoreCalibration(line["slope"], line["intercept"])
            log_ratios = calibration.log_likelihood_ratio(compared.score)
            ratios.append((name(kind), log_ratios, compared.genuine))
    return [
        cmc_chart(ranks, n_people, "a gallery of one photo per person"),
        det_chart(verified),
        tippett_chart(ratios),
    ]


def cmc_chart(ranks: Sequence[tuple[str, np.ndarray]], n_people: int, among: str) -> Html:
    """Return the CMC.

    Args:
        ranks: (N,) by name, NaN for a query without a mate.
        n_people: the last rank there can be.
        among: who is ranked.
    """
    last = min(MAX_RANK, n_people)
    curves = [
        Curve(kind, np.arange(1, last + 1), cmc(found, last))
        for kind, found in ranks
        if not np.isnan(found).all()
    ]
    if not curves:
        return NOTHING
    shown = [rank for rank in (1, 2, 3, 5, 10, 20) if rank <= last]
    rows = [[curve.name, *(percent(curve.y[k - 1]) for k in shown)] for curve in curves]
    lowest = min(curve.y[0] for curve in curves)
    return chart(
        "Is the right person among the first? CMC",
        draw_lines(
            curves,
            labels=("rank", "share found up to this rank"),
            percent=True,
            ylim=(max(lowest - 0.1, 0) // 0.1 / 10, 1.01),
            xticks=[rank for rank in (1, 5, 10, 15, 20) if rank <= last],
        ),
        "; ".join(
            f"Curve of {curve.name}: {percent(curve.y[0])} at rank 1, {percent(curve.y[-1])} up to"
            f" rank {last}"
            for curve in curves
        )
        + ".",
        f"How often the right person is among the k likeliest of {among}. The height at 1 is"
        " rank-1. Mind where the vertical axis starts.",
        table("Share found up to a rank", ["rank", *map(str, shown)], rows),
    )


def det_chart(verified: Sequence[tuple[str, Verification]]) -> Html:
    """Return the DET curves of comparisons by name."""
    rates = [(kind, pairs.curve()) for kind, pairs in verified]
    rates = [(kind, rate) for kind, rate in rates if rate.n_genuine and rate.n_impostor]
    if not rates:
        return NOTHING
    rows = [
        [
            kind,
            str(rate.n_genuine),
            str(rate.n_impostor),
            *(percent(fnmr_at_fmr(rate, at)) for at in FALSE_MATCH_RATES),
        ]
        for kind, rate in rates
    ]
    header = ["pairs", "genuine", "impostor", *(f"FNMR at FMR {a:.1%}" for a in FALSE_MATCH_RATES)]
    said = [f"{row[0]}: false non-match rate {row[4]} at a false match rate of 1 %" for row in rows]
    return chart(
        "Same person or not? DET",
        draw_det([Curve(kind, rate.fmr, rate.fnmr) for kind, rate in rates]),
        f"DET curve. {'; '.join(said)}.",
        "Each point is a threshold: people wrongly taken for one (across) against photos of one"
        " person wrongly kept apart (up). Nearer the lower left corner is better; where a curve"
        " crosses the grey line is the EER. Along an edge: beyond what the chart shows.",
        table("Errors at thresholds", header, rows),
    )


def tippett_chart(ratios: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Html:
    """Return the Tippett plot of (M,) natural log ratios and (M,) bool genuine, by name."""
    curves, rows = [], []
    for kind, log_ratios, genuine in ratios:
        if genuine.all() or not genuine.any():
            continue
        found = tippett(log_ratios, genuine, TIPPETT_POINTS)
        curves.append(Curve(f"one person, {kind}", found.log10_ratio, found.genuine))
        curves.append(Curve(f"two people, {kind}", found.log10_ratio, found.impostor))
        for who, kept in (("one person", genuine), ("two people", ~genuine)):
            strength = log_ratios[kept] / np.log(10)
            shares = [percent(float((strength >= at).mean())) for at in LOG10_RATIOS]
            rows.append([f"{who}, {kind}", *shares])
    if not curves:
        return NOTHING
    header = ["pairs of", *(f"LR from {10.0**at:g}" for at in LOG10_RATIOS)]
    return chart(
        "Evidence for a court: Tippett plot",
        draw_lines(
            curves,
            labels=("log10 of the likelihood ratio", "share at least that high"),
            percent=True,
            upright={"LR = 1": 0.0},
        ),
        "Tippett plot. " + "; ".join(f"{row[0]}: {row[5]} have an LR of 1 or more" for row in rows),
        "Right of the dotted line the evidence speaks for one person, left of it for two. Curves of"
        " pairs of one person should stay high up to it, those of two people fall before it: what"
        " two people have right of it, and one person lacks there, is misleading evidence.",
        table("Share of pairs with at least this likelihood ratio", header, rows),
    )


# ----------------------------------------------------------------------------- groups and people


def slice_charts(title: str, slices: Mapping[str, Any] | None) -> list[Html]:
    """Return a chart per measure, with all groups of each grouping.

    Args:
        title: of what they are slices.
        slices: grouping -> measure -> {"groups", "gap"}, as in metrics.json.
    """
    if not slices:
        return []
    measures = list(dict.fromkeys(measure for found in slices.values() for measure in found))
    return [_slice_chart(title, slices, measure) for measure in measures]


def _slice_chart(title: str, slices: Mapping[str, Any], measure: str) -> Html:
    """Return the chart of one measure's slices."""
    rows = []
    for grouping, found in slices.items():
        if measure not in found:
            continue
        rows.append(IntervalRow(name(grouping), np.nan, heading=True))
        for group, sure in found[measure]["groups"].items():
            few = bool(sure["few_people"])
            value, low, high = (
                np.nan if sure[key] is None else sure[key] for key in ("value", "low", "high")
            )
            label = f"{shorten(group)} ({sure['n_people']}{'*' if few else ''})"
            rows.append(IntervalRow(label, value, low, high, few=few))
    gap = widest_gap(slices, measure)
    header = ["group", "measure", "value", "95 % interval", "photos", "people"]
    own = {
        grouping: {measure: found[measure]}
        for grouping, found in slices.items()
        if measure in found
    }
    better = "less" if measure in LOWER_IS_BETTER else "more"
    label = "years" if measure == "mae_years" else name(measure)
    return chart(
        f"{title}, {name(measure)}, by group",
        draw_intervals(rows, label, percent=measure != "mae_years"),
        f"Intervals of {name(measure)} by group. {gap}",
        f"{gap} In brackets: people; a hollow dot with a star: under 10 people, too few to compare."
        f" {better.capitalize()} is better.",
        table(f"{name(measure)} by group", header, slice_rows(own)),
    )


def people_chart(shares: pd.DataFrame) -> Html:
    """Return how many people have how many of their photos right.

    Args:
        shares: a row per person, a column per task: share of the person's photos right.
    """
    counts = pd.DataFrame(
        {
            name(str(task)): np.bincount(np.digitize(found, SHARE_BOUNDS), minlength=len(SHARES))
            for task, found in shares.items()
        },
        index=SHARES,
    )
    said = [f"{task}: {count} of {len(shares)} people" for task, count in counts.loc["all"].items()]
    return chart(
        "Who is often wrong?",
        draw_people(counts),
        f"People by the share of their photos answered right. All right: {'; '.join(said)}.",
        "How many people have none, some or all of their photos right. A few people who are always"
        " wrong are another fault than many who are wrong now and then.",
    )


# ----------------------------------------------------------------------------- training


def training_charts(records: Sequence[Mapping[str, Any]], best: int | None) -> list[Html]:
    """Return loss, scores of each task, and learning rate over epochs.

    Args:
        records: lines of metrics.jsonl.
        best: the epoch kept, marked.
    """
    epochs = np.array([record["epoch"] for record in records])
    upright = {} if best is None else {f"kept: epoch {best}": float(best)}

    def curve(label: str, key: str) -> Curve | None:
        values = np.array([record.get(key) for record in records], dtype=np.float64)
        return None if np.isnan(values).all() else Curve(label, epochs, values)

    def drawn(title: str, axis: str, keys: Mapping[str, str], reading: str) -> Html:
        curves = [found for label, key in keys.items() if (found := curve(label, key))]
        if not curves:
            return NOTHING
        ends = [f"{c.name} {c.y[~np.isnan(c.y)][-1]:.4g}" for c in curves]
        percent = axis == "score"
        lines = draw_lines(curves, labels=("epoch", axis), percent=percent, upright=upright)
        return chart(title, lines, f"{title} over epochs; last: {', '.join(ends)}.", reading)

    no_identity = (
        " Val shows strangers, who have no identity loss: compare how the two move, not how high"
        " they are."
    )
    of_strangers = any(record.get("val_rank_1") is not None for record in records)
    charts = [
        drawn(
            "Loss",
            "loss",
            {"train": "train_loss", "val, gender and age" if of_strangers else "val": "val_loss"},
            "The weighted sum of the tasks' losses. Val rising while train falls: it learns by"
            " heart. Train photos are changed at random and val photos are not."
            + (no_identity if of_strangers else ""),
        ),
        drawn(
            "Loss on train, by task",
            "loss",
            {task: f"train_loss_{task}" for task in TASKS},
            "Before weights. With label smoothing a loss does not fall to 0.",
        ),
    ]
    for task in TASKS:
        keys = {
            "train, accuracy": f"train_accuracy_{task}",
            "val, balanced accuracy": f"val_balanced_accuracy_{task}",
        }
        reading = "Train far above val: it knows its photos, not the task."
        if of_strangers and task == "identity":
            reading = "Only the people trained on: val shows others."
        charts.append(drawn(f"{name(task).capitalize()}", "score", keys, reading))
    charts.append(
        drawn(
            "Strangers matched on val",
            "score",
            {"rank-1": "val_rank_1"},
            "The share of photos whose most similar gallery photo shows the same person.",
        )
    )
    charts.append(
        drawn("Learning rate", "learning rate", {"learning rate": "lr"}, "As the schedule set it.")
    )
    return charts
