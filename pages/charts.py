"""Every chart of a report: the picture, how to read it, an alternative text, and its numbers.

The functions take arrays of predictions.npz and blocks of metrics.json. A chart without values is
None, or left out.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dataset_11k import TASKS
from measures.classes import ClassPredictions, cmc, reliability, true_ranks
from measures.intervals import FEW_PEOPLE, interval_of
from measures.likelihood_ratio import (
    describe_support,
    devpav,
    pav_log10_ratio,
    support_level,
    tippett,
)
from measures.metrics_json import Arrays, pair_kinds
from measures.pairs import MIN_FALSE_MATCHES, Verification
from measures.registry import (
    DET_RATES,
    GALLERY_SIZES,
    MEASURES,
    NUMBER,
    PERCENT,
    PROBE_PHOTOS,
    YEARS,
    Measure,
    Unit,
    pair_measures,
)
from pages.figures import (
    CELL_CLASSES,
    DET_LIMITS,
    Band,
    Curve,
    IntervalRow,
    draw_confusion,
    draw_det,
    draw_expected_ages,
    draw_intervals,
    draw_lines,
    draw_people_bars,
    draw_ratio_calibration,
    draw_reliability,
    encode_png,
    encode_svg,
)
from pages.wording import Headline, capitalize, describe_gap, in_gallery, name_of, value_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 96  # of CSS

SVG_LIMIT = 120_000  # bytes; a picture with more points is smaller as PNG

MAX_RANK = 20

BAND_POINTS = 25  # of the DET curve

TIPPETT_POINTS = 400

MOST_CONFUSED = 25

FRACTIONS = ("none", "under half", "half or more", "all")

FRACTION_BOUNDS = (1e-9, 0.5, 1.0)  # lowest fraction of the second, third and fourth


class Table(NamedTuple):
    """A table of texts; `kind` is a class of style.css: values (numbers) or long (texts)."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: str = "values"


class Chart(NamedTuple):
    """A figure with its title (may be empty), alternative text, explanation and numbers."""

    title: str
    figure: Figure
    alt: str
    reading: str
    table: Table | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels."""
        width, height = (round(side * PIXELS_PER_INCH) for side in self.figure.get_size_inches())
        return width, height

    @property
    def source(self) -> str:
        """The picture as a data URI: SVG, or PNG if that is smaller."""
        data, kind = encode_svg(self.figure), "svg+xml"
        if len(data) > SVG_LIMIT and len(raster := encode_png(self.figure)) < len(data):
            data, kind = raster, "png"
        return data_uri(data, kind)


def data_uri(data: bytes, kind: str) -> str:
    """Return the bytes of a picture as a data URI; `kind` is png, jpeg or svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# ----------------------------------------------------------------------------- headlines


def headline_charts(lines: Sequence[Headline]) -> list[Chart]:
    """Return a chart of the headline numbers with their baselines for each unit."""
    units = dict.fromkeys(line.measure.unit for line in lines)
    return [_headline_chart([x for x in lines if x.measure.unit == unit]) for unit in units]


def _headline_chart(lines: Sequence[Headline]) -> Chart:
    """Return the chart of headline numbers in one unit."""
    unit = lines[0].measure.unit
    rows = []
    for part in dict.fromkeys(x.part for x in lines):
        rows.append(IntervalRow(name_of(part), heading=True))
        for x in (line for line in lines if line.part == part):
            best = x.best_baseline
            baselines = {name_of(best): x.baselines[best]} if best else {}
            few = x.n_people < FEW_PEOPLE
            rows.append(IntervalRow(x.measure.name, x.value, x.low, x.high, baselines, few))
    falling = dict.fromkeys(x.measure.name for x in lines if not x.measure.higher_is_better)
    rising = any(x.measure.higher_is_better for x in lines)
    directions = [f"lower is better for {', '.join(falling)}"] if falling else []
    directions += [f"higher is better{' for the others' if falling else ''}"] if rising else []
    return Chart(
        f"Results in {unit.suffix.strip()}" if unit.suffix else "Results without a unit",
        draw_intervals(rows, unit.axis, unit),
        f"Dots with intervals: {'; '.join(f'{x.name} {x.text}' for x in lines)}.",
        "Dot: result; line: its 95 % confidence interval; orange mark: the strongest baseline. A"
        f" hollow dot marks fewer than {FEW_PEOPLE} people."
        f" {capitalize('; '.join(directions))}.",
    )


# ----------------------------------------------------------------------------- classes


def confusion_chart(predictions: pd.DataFrame, task: str, names: Sequence[str]) -> Chart:
    """Return a task's confusion matrix.

    Args:
        predictions: of predictions.csv, those with a known class.
        task: of its columns.
        names: all classes in order; those that are neither true nor predicted are left out.
    """
    true, predicted = predictions[f"{task}_true"], predictions[f"{task}_pred"]
    occurring = set(true) | set(predicted)
    shown = [name for name in names if name in occurring]
    counts = count_confusions(true, predicted, shown)
    cells = len(shown) <= CELL_CLASSES
    reading = "Rows: true class. Columns: predicted class. " + (
        "Each cell shows the number of photos and its fraction of the true class. Correct"
        " predictions are on the diagonal."
        if cells
        else "Dots on the diagonal are correct, crosses are confusions; larger means more photos."
    )
    return Chart(
        capitalize(name_of(task)),
        draw_confusion(counts, shown, name_of(task)),
        f"Confusion matrix of {name_of(task)}: {int(np.trace(counts))} of {len(true)} photos"
        f" correct; {len(shown)} of {len(names)} classes occur.",
        reading,
        _count_table(counts, shown) if cells else _confusion_table(counts, shown),
    )


def count_confusions(true: pd.Series, predicted: pd.Series, names: Sequence[str]) -> np.ndarray:
    """Return (n_names, n_names) counts of photos: rows true, columns predicted classes.

    scikit-learn's confusion_matrix warns if there is a single class.
    """
    counts = pd.crosstab(true.to_numpy(), predicted.to_numpy())
    return counts.reindex(index=list(names), columns=list(names), fill_value=0).to_numpy()


def _count_table(counts: np.ndarray, names: Sequence[str]) -> Table:
    """Return the whole matrix."""
    rows = [[true, *map(str, row)] for true, row in zip(names, counts.tolist(), strict=True)]
    return Table("Photos by true class (row) and predicted class (column)", ["true", *names], rows)


def _confusion_table(counts: np.ndarray, names: Sequence[str]) -> Table | None:
    """Return the most frequent confusions."""
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    cells = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    rows = [[names[i], names[j], str(counts[i, j]), str(counts[i].sum())] for i, j in cells]
    caption = f"Most frequent confusions (at most {MOST_CONFUSED})"
    return (
        Table(caption, ["true", "predicted", "photos", "photos of the true class"], rows)
        if rows
        else None
    )


def reliability_chart(task: str, predicted: ClassPredictions, block: Mapping[str, Any]) -> Chart:
    """Return a task's reliability diagram before and after temperature scaling.

    Args:
        task: for the title.
        predicted: the task's predictions.
        block: the task's part of metrics.json.
    """
    before, after = (
        reliability(p.true, p.probabilities) for p in (replace(predicted, temperature=1), predicted)
    )
    earlier = block.get("before_temperature") or {}
    changes = [
        f"{m.name} {m.unit.format(earlier[m.key])} before, {m.unit.format(block.get(m.key))} after"
        for m in MEASURES.values()
        if m.key in earlier
    ]
    edges = np.linspace(0, 1, len(after.photos) + 1)
    rows = [
        [f"{PERCENT.format(low)} to {PERCENT.format(high)}", str(photos), *map(PERCENT.format, two)]
        for low, high, photos, *two in zip(edges[:-1], edges[1:], *after, strict=True)
        if photos
    ]
    return Chart(
        capitalize(name_of(task)),
        draw_reliability(before, after),
        f"Reliability diagram of {name_of(task)}: {'; '.join(changes)}.",
        "On the grey line accuracy equals confidence; below it the model is overconfident."
        f" Temperature {predicted.temperature:.2f}: {'; '.join(changes)}.",
        Table(
            "Bins of confidence after temperature scaling",
            ["confidence", "photos", "mean confidence", "accuracy"],
            rows,
        ),
    )


def age_chart(predicted: ClassPredictions, names: Sequence[str]) -> Chart | None:
    """Return expected against true age; None if ages are unknown.

    Args:
        predicted: of a task whose classes are age ranges.
        names: of the classes.
    """
    ages, expected, people = predicted.ages, predicted.expected_ages, predicted.people
    if np.isnan(ages - expected).any():
        return None
    found = pd.DataFrame({"error": np.abs(ages - expected), "who": people})
    rows = [
        [str(name), str(len(x)), str(x["who"].nunique()), YEARS.format(x["error"].mean())]
        for name, x in found.groupby(np.array(names)[predicted.true])
    ]
    return Chart(
        "",
        draw_expected_ages(ages, expected, people),
        f"Scatter plot of expected against true age of {len(ages)} photos; mean absolute error"
        f" {YEARS.format(found['error'].mean())}.",
        "On the grey line the expected age is the true age. Expected ages lie between the mean"
        " training ages of the youngest and the oldest age group, so the age of the oldest people"
        " is always underestimated. Points of one person are not independent observations.",
        Table(
            "Error by true age group",
            ["age group", "photos", "people", "mean absolute error"],
            rows,
        ),
    )


def rank_curve(predicted: ClassPredictions) -> Chart:
    """Return the CMC of a task whose classes are people, over the people seen in training."""
    ranks = true_ranks(predicted.logits, predicted.true).astype(np.float64)
    among = "people seen in training, ranked by predicted probability"
    n_people = predicted.logits.shape[1]
    return cmc_chart("Classification", [("identity head", ranks)], n_people, among)


# ----------------------------------------------------------------------------- pairs of photos


def pair_charts(arrays: Arrays) -> dict[str, list[Chart]]:
    """Return the charts of pairs of photos: cmc (where galleries were drawn), det and ratios."""
    ranks, rates, ratios, n_people = [], [], [], 0
    for kind, scores in pair_kinds(arrays):
        name = name_of(kind)
        rates.append((name, scores.verification))
        if "galleries" in scores.available:
            ranks.append((name, scores.ranks.ravel()))
            n_people = scores.galleries.shape[1]
        if "calibration" in scores.available:
            ratios.append((name, scores.log_ratios, scores.pairs.genuine))
    gallery = f"the photos of a gallery of {n_people} people, one photo each, ranked by similarity"
    cmc_title = "Identification rate by rank"
    return {
        "cmc": [cmc_chart(cmc_title, ranks, n_people, gallery)] if ranks else [],
        "det": det_charts(rates),
        "ratios": ratio_charts(ratios),
    }


def cmc_chart(
    title: str, ranks: Sequence[tuple[str, np.ndarray]], n_people: int, among: str
) -> Chart:
    """Return the cumulative match characteristic.

    Args:
        title: of the chart.
        ranks: (N,) by name, NaN for a query without a mate.
        n_people: the highest possible rank.
        among: who is ranked.
    """
    last = min(MAX_RANK, n_people)
    curves = [Curve(kind, np.arange(1, last + 1), cmc(found, last)) for kind, found in ranks]
    shown = [rank for rank in (1, 2, 3, 5, 10, 20) if rank <= last]
    rows = [[c.name, *(PERCENT.format(c.y[rank - 1]) for rank in shown)] for c in curves]
    lowest = np.nanmin([curve.y[0] for curve in curves])
    ends = [
        f"{c.name} {PERCENT.format(c.y[0])} at rank 1, {PERCENT.format(c.y[-1])} at rank {last}"
        for c in curves
    ]
    figure = draw_lines(
        curves,
        labels=("rank", "identification rate"),
        unit=PERCENT,
        ylim=(max(lowest - 0.1, 0) // 0.1 / 10, 1.01),
        xticks=[rank for rank in (1, 5, 10, 15, 20) if rank <= last],
    )
    return Chart(
        title,
        figure,
        f"CMC curve. {'; '.join(ends)}.",
        f"Fraction of photos whose person is at this rank or a better one among {among}. The"
        " vertical axis may not start at 0.",
        Table("Identification rate by rank", ["rank", *map(str, shown)], rows),
    )


def gallery_charts(blocks: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """Return rank-1 by the size of the gallery, and by the number of photos of a probe.

    Args:
        blocks: of metrics.json, by kind of pairs.
    """
    needed = {"rank_1", "gallery_people"}  # an older test.py wrote no size
    searched = {
        kind: b for kind, b in blocks.items() if needed <= b.keys() and b["rank_1"] is not None
    }
    if not searched:
        return []
    n_people = next(iter(searched.values()))["gallery_people"]
    sizes = {n: f"rank_1_among_{n}" for n in GALLERY_SIZES if n < n_people} | {n_people: "rank_1"}
    probes = {1: "rank_1"} | {n: f"rank_1_fused_{n}" for n in PROBE_PHOTOS}
    charts = [gallery_size_chart(searched, sizes)] if len(sizes) > 1 else []
    fused = any(_points(block, ["rank_1_fused_2"])[0, 0] >= 0 for block in searched.values())
    return [*charts, fused_chart(searched, probes, n_people)] if fused else charts


def _points(block: Mapping[str, Any], keys: Sequence[str]) -> np.ndarray:
    """Return the value, low and high of measures in a block of metrics.json, (3, K)."""
    found = [value_of(block, MEASURES[key]) for key in keys]
    rows = [(value, interval.get("low"), interval.get("high")) for value, interval in found]
    return np.array(rows, dtype=np.float64).T


def _curve(name: str, block: Mapping[str, Any], keys: Mapping[int, str]) -> Curve:
    """Return measures, by x, of a block of metrics.json as a curve with its band."""
    value, low, high = _points(block, list(keys.values()))
    x = np.array(list(keys))
    return Curve(name, x, value, Band(x, low, high))


def _strongest(name: str, block: Mapping[str, Any], keys: Mapping[int, str]) -> Curve:
    """Return the highest value of any baseline that has all of the measures, by x."""
    baselines = (block.get("baselines") or {}).values()
    values = [
        [b[key] for key in keys.values()] for b in baselines if set(keys.values()) <= b.keys()
    ]
    table = np.array([*values, [None] * len(keys)], dtype=np.float64)  # a row even without any
    return Curve(f"strongest baseline: {name}", np.array(list(keys)), np.fmax.reduce(table))


def gallery_size_chart(blocks: Mapping[str, Mapping[str, Any]], sizes: Mapping[int, str]) -> Chart:
    """Return rank-1 by the people in the gallery: a measure for each size."""
    curves = [_curve(name_of(kind), block, sizes) for kind, block in blocks.items()]
    strongest = [_strongest(name_of(kind), block, sizes) for kind, block in blocks.items()]
    rows = []
    for i, (n_people, key) in enumerate(sizes.items()):
        cells = [PERCENT.format_both(*_points(block, [key])[:, 0]) for block in blocks.values()]
        rows.append([str(n_people), *cells, *(PERCENT.format(c.y[i]) for c in strongest)])
    ends = [f"{c.name} {PERCENT.format(c.y[0])} to {PERCENT.format(c.y[-1])}" for c in curves]
    first, *_, last = sizes
    return Chart(
        "Rank-1 by size of the gallery",
        draw_lines(
            [*curves, strongest[0]],
            labels=("people in the gallery, one photo each", "rank-1"),
            unit=PERCENT,
            **_log_ticks(list(sizes)),
        ),
        f"Rank-1 from {first} to {last} people in the gallery: {'; '.join(ends)}.",
        f"Expected rank-1 with the person searched for and random others of the {last} people in"
        " the gallery. Larger galleries are harder: compare rank-1 only at the same size. Band:"
        " pointwise 95 % confidence interval over people. The vertical axis may not start at 0.",
        Table(
            "Rank-1 by people in the gallery, one photo each",
            ["people", *(c.name for c in (*curves, *strongest))],
            rows,
        ),
    )


def fused_chart(
    blocks: Mapping[str, Mapping[str, Any]], probes: Mapping[int, str], n_people: int
) -> Chart:
    """Return rank-1 by the photos per probe: a measure for each number of photos."""
    curves, others, rows = [], [], []
    for kind, block in blocks.items():
        fused, best = (f(name_of(kind), block, probes) for f in (_curve, _strongest))
        gain = _points(block, [f"rank_1_gain_{n}" for n in PROBE_PHOTOS])
        single = fused.y - np.append(0, gain[0])
        curves.append(fused)
        others += [Curve(f"one photo at a time: {fused.name}", fused.x, single), best]
        for i, (n, key) in enumerate(probes.items()):
            people = value_of(block, MEASURES[key])[1].get("n_people", 0)
            both = PERCENT.format_both(*_points(block, [key])[:, 0])
            gained = PERCENT.format_both(*gain[:, i - 1]) if i else "–"
            cells = [both, PERCENT.format(single[i]), gained, PERCENT.format(best.y[i])]
            rows.append([f"{fused.name}: {n}", str(people), *cells])
    ends = [f"{c.name} {PERCENT.format(c.y[0])} to {PERCENT.format(c.y[-1])}" for c in curves]
    enough = ", ".join(f"{row[1]} people have {n}" for row, n in zip(rows, probes, strict=False))
    return Chart(
        "Rank-1 by photos per probe",
        draw_lines(
            [*curves, *others[:2]],
            labels=("photos per probe", "rank-1"),
            unit=PERCENT,
            **_log_ticks(list(probes)),
        ),
        f"Rank-1 from 1 to {max(probes)} photos per probe: {'; '.join(ends)}.",
        "A probe is the mean of the normalised embeddings of several photos of one hand; the"
        f" gallery has one other photo of each of {n_people} people. People with too few photos are"
        f" left out as probes: {enough} photos. So the people differ along a curve: compare it with"
        " the same photos one at a time. Band: pointwise 95 % confidence interval over people. The"
        " vertical axis may not start at 0.",
        Table(
            "Rank-1 by photos per probe",
            [
                "photos per probe",
                "people",
                "rank-1",
                "one at a time",
                "gain",
                "strongest baseline",
            ],
            rows,
        ),
    )


def _log_ticks(places: Sequence[int]) -> dict[str, Any]:
    """Return what `draw_lines` needs for a logarithmic horizontal axis."""
    return {"xscale": "log", "xticks": places, "xticklabels": places}


def det_charts(verifications: Sequence[tuple[str, Verification]]) -> list[Chart]:
    """Return the DET curves of verifications by name; none without pairs of both kinds."""
    every = [(name, found, found.curve()) for name, found in verifications]
    rates = [(name, v, curve) for name, v, curve in every if curve.n_genuine and curve.n_impostor]
    if not rates:
        return []
    rows = [
        ["genuine pairs", *(str(curve.n_genuine) for *_, curve in rates)],
        ["impostor pairs", *(str(curve.n_impostor) for *_, curve in rates)],
    ]
    for fmr in DET_RATES:
        found = [interval_of(v.fnmr_at_fmr(fmr)) for _, v, _ in rates]
        cells = [PERCENT.format_both(x.value, x.low, x.high) for x in found]
        rows.append([f"FNMR at FMR {PERCENT.scale * fmr:g} %", *cells])
    ends = [f"{name}: EER {PERCENT.format(v.equal_error_rate().value)}" for name, v, _ in rates]
    curves = [Curve(name, curve.fmr, curve.fnmr, det_band(v)) for name, v, curve in rates]
    chart = Chart(
        "",
        draw_det(curves),
        f"DET curve. {'; '.join(ends)}.",
        "Each point is a threshold on the similarity. Horizontal: impostor pairs accepted."
        " Vertical: genuine pairs rejected. Closer to the lower left corner is better; the curve"
        " crosses the grey line at the equal error rate. Points beyond the axes lie on the edge."
        " Band: pointwise 95 % confidence interval over people of FNMR at each FMR, where at least"
        f" {MIN_FALSE_MATCHES} pairs of people may match falsely and FNMR is not 0. In simulated"
        " data it contains the true value in 87 to 92 % of cases.",
        Table("Error rates", ["", *(name for name, *_ in rates)], rows),
    )
    return [chart]


def det_band(verification: Verification) -> Band:
    """Return the interval of FNMR at each FMR that enough pairs of people support."""
    lowest = MIN_FALSE_MATCHES / max(verification.n_person_pairs, 1)
    highest = DET_LIMITS[1]
    rates = np.geomspace(min(1.001 * lowest, highest), highest, BAND_POINTS)
    found = [interval_of(verification.fnmr_at_fmr(rate)) for rate in rates]
    ends = [(x.low, x.high) if x.value else (np.nan, np.nan) for x in found]
    return Band(rates, *np.array(ends).T)


def ratio_charts(ratios: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> list[Chart]:
    """Return the Tippett plot and the calibration plot; none without pairs of both kinds.

    Args:
        ratios: name, (M,) natural log ratios, (M,) bool genuine.
    """
    both = [part for part in ratios if part[2].any() and not part[2].all()]
    return [tippett_chart(both), ratio_calibration_chart(both)] if both else []


def tippett_chart(ratios: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Chart:
    """Return the Tippett plot, with the fractions of pairs by verbal equivalent."""
    curves, levels = [], {}
    for name, log_ratios, genuine in ratios:
        found = tippett(log_ratios, genuine, TIPPETT_POINTS)
        both = (("genuine", genuine, found.genuine), ("impostor", ~genuine, found.impostor))
        for who, kept, heights in both:
            curves.append(Curve(f"{who}: {name}", found.log10_ratio, heights))
            levels[f"{who}: {name}"] = support_level(log_ratios[kept] / np.log(10))
    found_levels = np.unique(np.concatenate(list(levels.values())))
    rows = [
        [
            describe_support(int(level)),
            *(PERCENT.format((of_pairs == level).mean()) for of_pairs in levels.values()),
        ]
        for level in np.arange(found_levels.max(), found_levels.min() - 1, -1)
    ]
    ends = [
        f"{name}: {PERCENT.format((of_pairs > 0).mean())} with support for the same person,"
        f" {PERCENT.format((of_pairs < 0).mean())} with support for different people"
        for name, of_pairs in levels.items()
    ]
    labels = ("log10 of the likelihood ratio", "fraction of pairs at or above")
    return Chart(
        "Tippett plot",
        draw_lines(curves, labels=labels, unit=PERCENT, vertical={"LR = 1": 0.0}),
        f"Tippett plot. {'; '.join(ends)}.",
        "Fraction of pairs with at least the likelihood ratio on the horizontal axis. Right of the"
        " dotted line the evidence supports the same person, left of it different people."
        " Misleading evidence: impostor pairs right of the line, genuine pairs left of it. Each"
        " ratio was calibrated on pairs of other people, and bounded to what these pairs support:"
        " there the curves end.",
        Table("Fraction of pairs by verbal equivalent", ["likelihood ratio", *levels], rows),
    )


def ratio_calibration_chart(ratios: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Chart:
    """Return the plot of PAV-transformed against reported log10 likelihood ratios."""
    curves = []
    for name, log_ratios, genuine in ratios:
        reported, rows = np.unique(log_ratios / np.log(10), return_index=True)
        curves.append(Curve(name, reported, pav_log10_ratio(log_ratios, genuine)[rows]))
    distances = [f"{name} {NUMBER.format(devpav(*part))}" for name, *part in ratios]
    return Chart(
        "Calibration of likelihood ratios (PAV plot)",
        draw_ratio_calibration(curves),
        "Calibration plot of likelihood ratios. Mean distance from perfect calibration in log10"
        f" (devPAV): {'; '.join(distances)}.",
        "Vertical: the likelihood ratios after the best monotonic calibration of these pairs (pool"
        " adjacent violators, PAV). On the grey line the reported ratio is calibrated. Further from"
        " LR = 1 than the curve it overstates the evidence, closer it understates it. Points on the"
        " edge are infinite: only pairs of one kind have such ratios.",
    )


# ----------------------------------------------------------------------------- groups and people


def group_charts(part: str, block: Mapping[str, Any]) -> list[Chart]:
    """Return a chart for each headline measure with all groups of each grouping.

    Args:
        part: the task, or the kind of pairs.
        block: of metrics.json; its groups are grouping -> measure -> {"groups", "gap"}.
    """
    groups = block.get("groups") or {}
    measures = [
        in_gallery(measure, block)
        for measure in MEASURES.values()
        if any(measure.key in found for found in groups.values())
    ]
    return [_group_chart(f"{capitalize(name_of(part))}: {m.name}", groups, m) for m in measures]


def _group_chart(title: str, groups: Mapping[str, Any], measure: Measure) -> Chart:
    """Return the chart of one measure by group."""
    unit, bars, rows = measure.unit, [], []
    for grouping, by_measure in groups.items():
        if measure.key not in by_measure:
            continue
        bars.append(IntervalRow(name_of(grouping), heading=True))
        for group, found in by_measure[measure.key]["groups"].items():
            value, low, high = (
                np.nan if found[k] is None else found[k] for k in ("value", "low", "high")
            )
            few = bool(found["few_people"])
            people = f"{found['n_people']}{'*' if few else ''}"
            bars.append(IntervalRow(f"{group} ({people})", value, low, high, few_people=few))
            shown = [unit.format(value), unit.format_interval(low, high)]
            rows.append([f"{name_of(grouping)}: {group}", *shown, str(found["n_photos"]), people])
    gap = describe_gap(groups, measure)
    better = "Higher" if measure.higher_is_better else "Lower"
    axis = measure.name if unit.is_percent else f"{measure.name} in{unit.suffix}"
    header = ["group", measure.name, "95 % interval", "photos", "people"]
    return Chart(
        title,
        draw_intervals(bars, axis, unit),
        f"{title} by group. {gap}",
        f"{gap} In brackets: people; hollow dots and stars mark fewer than {FEW_PEOPLE} people, too"
        f" few to compare. {better} is better.",
        Table(f"{title} by group", header, rows),
    )


def people_chart(accuracy: pd.DataFrame) -> Chart:
    """Return how many people have which fraction of their photos correct.

    Args:
        accuracy: a row for each person, a column for each task; NaN: unknown.
    """
    counts = pd.DataFrame(
        {
            name_of(str(task)): np.bincount(
                np.digitize(found.dropna(), FRACTION_BOUNDS), minlength=len(FRACTIONS)
            )
            for task, found in accuracy.items()
        },
        index=FRACTIONS,
    )
    ends = [f"{task}: {count} of {len(accuracy)}" for task, count in counts.loc["all"].items()]
    return Chart(
        "",
        draw_people_bars(counts),
        "Bar chart of people by the fraction of their photos predicted correctly. All photos"
        f" correct: {'; '.join(ends)}.",
        "Number of people with none, some or all of their photos predicted correctly. Errors on a"
        " few people may have other causes than errors spread over everybody.",
    )


# ----------------------------------------------------------------------------- training

# Label and unit of a vertical axis.
LOSS, SCORE, RATE = ("loss", NUMBER), ("score", PERCENT), ("learning rate", NUMBER)


def training_charts(epochs: Sequence[Mapping[str, Any]], best: int | None) -> list[Chart]:
    """Return losses, scores of each task, and learning rate over epochs.

    Args:
        epochs: lines of metrics.jsonl.
        best: the selected epoch, marked.
    """
    tasks = [task for task in TASKS if f"train_loss_{task}" in epochs[0]]
    matched = [m for m in pair_measures() if any(r.get(f"val_{m.key}") is not None for r in epochs)]
    charts = [*_loss_curves(tasks, unseen=bool(matched)), *_score_curves(tasks, matched)]
    rate = "Learning rate of the heads. The backbone's is this times --backbone_lr_scale."
    charts.append(EpochChart("Learning rate", {"learning rate": "lr"}, rate, RATE))
    drawn = [_draw_epochs(chart, epochs, best) for chart in charts]
    return [chart for chart in drawn if chart is not None]


class EpochChart(NamedTuple):
    """A chart over epochs: curves by name (keys of metrics.jsonl), its text and vertical axis."""

    title: str
    keys: Mapping[str, str]
    reading: str
    axis: tuple[str, Unit]


def _loss_curves(tasks: Sequence[str], *, unseen: bool) -> list[EpochChart]:
    """Return the charts of losses; losses of unseen people get a chart of their own."""
    rising = "Validation loss that rises while training loss falls indicates overfitting."
    both = f"Weighted sum over tasks. {rising} Only training photos are augmented."
    closed = " and ".join(name_of(task) for task in tasks if TASKS[task].classes is not None)
    apart = (
        "Without the identity loss, which is undefined for unseen people: do not compare its level"
        f" with the training loss. {rising}"
    )
    charts = [EpochChart("Loss", {"train": "train_loss", "val": "val_loss"}, both, LOSS)]
    if unseen:
        all_tasks = {"train, all tasks": "train_loss"}
        charts = [
            EpochChart("Training loss", all_tasks, "Weighted sum over all tasks.", LOSS),
            EpochChart("Validation loss", {f"val, {closed}": "val_loss"}, apart, LOSS),
        ]
    by_task = {name_of(task): f"train_loss_{task}" for task in tasks}
    smoothed = "Not weighted. With label smoothing the loss cannot reach 0."
    return [*charts, EpochChart("Training loss by task", by_task, smoothed, LOSS)]


def _score_curves(tasks: Sequence[str], matched: Sequence[Measure]) -> list[EpochChart]:
    """Return the charts of scores by task, then of measures of unseen people's embeddings."""
    charts = []
    for task in tasks:
        keys = {"train, accuracy": f"train_accuracy_{task}"}
        reading = "Training photos only: the people in val are unseen and have no class."
        if not (matched and TASKS[task].classes is None):
            keys["val, balanced accuracy"] = f"val_balanced_accuracy_{task}"
            reading = (
                "A training score far above the validation score indicates overfitting. Accuracy"
                " and balanced accuracy differ if classes are unbalanced."
            )
        charts.append(EpochChart(capitalize(name_of(task)), keys, reading, SCORE))
    for m in matched:
        axis = (m.name, m.unit)
        title = f"Unseen people in val: {m.name}"
        charts.append(EpochChart(title, {f"val, {m.name}": f"val_{m.key}"}, m.explanation, axis))
    return charts


def _draw_epochs(
    chart: EpochChart, epochs: Sequence[Mapping[str, Any]], best: int | None
) -> Chart | None:
    """Draw a chart over epochs; None if none of its keys has a value."""
    numbers = np.array([record["epoch"] for record in epochs])
    curves = []
    for name, key in chart.keys.items():
        values = np.array([record.get(key) for record in epochs], dtype=np.float64)
        if not np.isnan(values).all():
            curves.append(Curve(name, numbers, values))
    if not curves:
        return None
    label, unit = chart.axis
    vertical = {} if best is None else {f"selected: epoch {best}": float(best)}
    ends = [f"{c.name} {c.y[~np.isnan(c.y)][-1]:.4g}" for c in curves]
    return Chart(
        chart.title,
        draw_lines(
            curves,
            labels=("epoch", label),
            unit=unit,
            vertical=vertical,
            xlim=(numbers[0] - 0.5, numbers[-1] + 0.5),
        ),
        f"{chart.title} over epochs. Last values: {', '.join(ends)}.",
        chart.reading,
    )
