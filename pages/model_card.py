"""The model card of an evaluation, with a validation matrix, from metrics.json and config.json.

Every number is in these files. What they do not hold is "not measured", or "not stated" where a
person must say it.

Source: Mitchell et al. 2019, Model cards for model reporting, arXiv 1810.03993; matrix: Meuwly,
Ramos and Haraksim 2017, A guideline for the validation of likelihood ratio methods used for
forensic evidence evaluation, Forensic Science International 276, 142-153.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataset_11k import TASKS
from engine.checkpoint import read_run
from measures.intervals import FEW_PEOPLE
from measures.registry import MEASURES, PAIR_KINDS
from pages import wording
from pages.build import differential_tables, leakage_table, read_metrics, write_page
from pages.charts import Table
from pages.wording import Headline, capitalize, name_of

NOT_MEASURED, NOT_STATED, NO_CRITERION = "not measured", "not stated", "none: for the laboratory"

ALL_PAIRS, APART = PAIR_KINDS  # without and with near-duplicates left out

Block = Mapping[str, Any]


# ----------------------------------------------------------------------------- validation matrix


class Check(NamedTuple):
    """A row of the validation matrix.

    characteristic: of performance, as the guideline names it.
    kind: of pairs; empty: these files cannot tell.
    keys: of the measures.
    figure: of report.html that shows it.
    criterion: in words.
    is_met: whether it is met, from the measures of the pairs and the headline EER; None: unknown.
    """

    characteristic: str
    kind: str
    keys: tuple[str, ...]
    figure: str
    criterion: str = NO_CRITERION
    is_met: Callable[[Block, Headline | None], bool | None] = lambda block, eer: None


def cllr_below_one(block: Block, eer: Headline | None) -> bool | None:
    """Return whether the whole interval of Cllr is below 1."""
    high = wording.value_of(block, MEASURES["cllr"])[1].get("high")
    return None if high is None else high < 1


def eer_is_better(block: Block, eer: Headline | None) -> bool | None:
    """Return whether EER is better than every baseline."""
    return eer and wording.is_better(eer)


INFORMATIVE = "whole interval of Cllr below 1, the cost of no evidence"
BETTER = "EER better than every baseline, by the whole interval of each difference"

MATRIX = (
    Check("accuracy", ALL_PAIRS, ("cllr",), "Tippett plot", INFORMATIVE, cllr_below_one),
    Check(
        "discriminating power", ALL_PAIRS, ("eer", "cllr_min"), "DET curve", BETTER, eer_is_better
    ),
    Check(
        "calibration",
        ALL_PAIRS,
        ("devpav", "misleading_genuine", "misleading_impostor"),
        "PAV plot, Tippett plot",
    ),
    Check(
        "robustness: accuracy without near-duplicate frames",
        APART,
        ("cllr", "log10_lr_min", "log10_lr_max"),
        "Tippett plot",
        INFORMATIVE,
        cllr_below_one,
    ),
    Check(
        "robustness: discriminating power without near-duplicate frames",
        APART,
        ("eer",),
        "DET curve",
        BETTER,
        eer_is_better,
    ),
    Check("coherence: more photos of a hand", ALL_PAIRS, ("rank_1_gain_4", "eer_gain_4"), ""),
    Check("coherence: better photos", "", (), ""),
    Check(
        "generalization: threshold set on other people",
        ALL_PAIRS,
        ("fmr_at_val_fmr_0.1", "fnmr_at_val_fmr_0.1"),
        "",
    ),
    Check("generalization: other sessions, cameras and data sets", "", (), ""),
)


def matrix_row(check: Check, metrics: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row: also data, result, and whether the criterion is met."""
    block = wording.pairs_of(metrics["tasks"]).get(check.kind) or {}
    results, missing = [], []
    for measure in (wording.in_gallery(MEASURES[key], block) for key in check.keys):
        value, ends = wording.value_of(block, measure)
        if value is None:
            missing.append(measure.name)
            continue
        interval = measure.unit.format_interval(ends.get("low"), ends.get("high"))
        shown = f" ({interval})" if interval != "–" else ""
        results.append(f"{measure.name} {measure.unit.format(value)}{shown}")
    names = ", ".join(MEASURES[key].name for key in check.keys) or NOT_MEASURED
    if not results:
        return [check.characteristic, names, "–", check.criterion, "–", NOT_MEASURED, "–"]
    lines = wording.headlines(metrics["tasks"])
    eer = next((x for x in lines if (x.part, x.measure.key) == (check.kind, "eer")), None)
    unseen = wording.is_unseen(metrics)  # who was trained on validates nothing
    met = check.is_met(block, eer) if unseen else None
    pairs = f"{block['n_genuine']:,} genuine, {block['n_impostor']:,} impostor"
    return [
        check.characteristic,
        names,
        check.figure or "–",
        check.criterion,
        f"{name_of(check.kind)}: {pairs}" + ("" if unseen else ", people seen in training"),
        "; ".join(results) + (f"; {NOT_MEASURED}: {', '.join(missing)}" if missing else ""),
        "–" if met is None else "met" if met else "not met",
    ]


def validation_matrix(metrics: Mapping[str, Any]) -> Table:
    """Return the validation matrix."""
    header = ["performance characteristic", "metric", "graphical representation"]
    header += ["validation criterion", "data", "result (95 % interval)", "criterion met"]
    rows = [matrix_row(check, metrics) for check in MATRIX]
    return Table("Validation matrix", header, rows, "long")


# ----------------------------------------------------------------------------- model, data, results


def model_table(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> Table:
    """Return what the model is, and what repeats its training."""
    training = metrics.get("training") or {}
    config = training.get("config") or {}
    weights = config.get("backbone_weights")
    start = {True: "ImageNet (timm)", False: "random", None: NOT_STATED}
    size = config.get("image_size")
    classes = {task: len(names) for task, names in (run.get("label_space") or {}).items()}
    facts = {
        "backbone": metrics["backbone"],
        "input": f"{size} x {size} pixels" if size else NOT_STATED,
        "initial weights": Path(weights).name if weights else start[config.get("pretrained")],
        "tasks": ", ".join(f"{name_of(t)} ({n} classes)" for t, n in classes.items()),
        "checkpoint": metrics.get("checkpoint"),
        "epoch, of epochs": f"{metrics.get('epoch')} of {config.get('N_epochs', NOT_STATED)}",
        "seed": metrics.get("seed"),
        "commit of the training": training.get("commit"),
        "contact, licence": NOT_STATED,
    }
    return Table("Model", ["", ""], [[k, str(v or NOT_STATED)] for k, v in facts.items()], "long")


def training_table(run: Mapping[str, Any]) -> Table | None:
    """Return the people and photos that were trained on, by class; None if unknown."""
    trained, space = run.get("training") or {}, run.get("label_space") or {}
    if not trained:
        return None
    rows = [["all", NOT_STATED, str(len(trained["people"]))]]
    for task, names in space.items():
        photos, of_person = trained["counts"][task], trained["class_of_person"].get(task)
        if TASKS[task].classes is None:
            rows[0][1] = f"{sum(photos):,}"
        else:
            people = [of_person.count(i) if of_person else NOT_STATED for i in range(len(names))]
            rows += [
                [f"{name_of(task)}: {name}", f"{photos[i]:,}", str(people[i])]
                for i, name in enumerate(names)
            ]
    return Table("Photos and people trained on", ["class", "photos", "people"], rows)


def result_table(lines: Sequence[Headline]) -> Table:
    """Return the headline results with intervals and the comparison with baselines."""
    rows = [
        [
            capitalize(line.name),
            f"{line.text} ({line.interval or f'interval {NOT_MEASURED}'}), {line.n_people} people",
            wording.verdict(line),
        ]
        for line in lines
    ]
    header = ["result", "value (95 % interval)", "comparison with baselines"]
    return Table("Results", header, rows, "long")


def group_table(metrics: Mapping[str, Any]) -> Table:
    """Return the largest difference of each result between groups."""
    pairs = wording.pairs_of(metrics["tasks"])
    blocks = {task: metrics["tasks"][task] for task in wording.classified_tasks(metrics["tasks"])}
    blocks |= {kind: pairs[kind] for kind in PAIR_KINDS if pairs.get(kind)}
    rows = [
        [
            f"{capitalize(name_of(part))}: {wording.in_gallery(measure, block).name}",
            wording.describe_gap(block["groups"], measure),
        ]
        for part, block in blocks.items()
        for measure in MEASURES.values()
        if any(measure.key in found for found in (block.get("groups") or {}).values())
    ]
    return Table("Largest difference between groups", ["result", "difference"], rows, "long")


def few_people(metrics: Mapping[str, Any]) -> list[str]:
    """Return the groups of fewer than `FEW_PEOPLE` people."""
    return sorted(
        {
            f"{name_of(grouping)} {group} ({found['n_people']})"
            for block in metrics["tasks"].values()
            for grouping, by_measure in ((block or {}).get("groups") or {}).items()
            for measured in by_measure.values()
            for group, found in measured["groups"].items()
            if found["n_people"] < FEW_PEOPLE
        }
    )


def write_model_card(folder: Path) -> Path:
    """Write model_card.html of an evaluation; return its path.

    Args:
        folder: with metrics.json; config.json is in the folder above, or absent.

    Raises:
        UserError: a file is missing, damaged, or cannot be written.
    """
    metrics = read_metrics(folder)
    run = read_run(folder.parent) if (folder.parent / "config.json").is_file() else {}
    context = {
        "title": f"Model card: {metrics['backbone']}, {metrics['aspect']}",
        "description": wording.describe_evaluation(metrics),
        "protocol_reason": metrics.get("protocol_reason"),
        "warnings": wording.warnings(metrics),
        "model": model_table(metrics, run),
        "trained": training_table(run),
        "leakage": leakage_table(metrics),
        "results": result_table(wording.headlines(metrics["tasks"])),
        "groups": group_table(metrics),
        "few_people": few_people(metrics),
        "least": FEW_PEOPLE,
        "differentials": differential_tables(metrics["tasks"]),
        "matrix": validation_matrix(metrics),
        "unseen": wording.is_unseen(metrics),
        "casework": wording.CASEWORK,
        "not_stated": NOT_STATED,
    }
    return write_page(folder / "model_card.html", "model_card.html.j2", context)
