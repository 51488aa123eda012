r"""Compare backbones, hand aspects and protocols: a run each, one table, one figure.

    python compare.py --backbones swin_t resnet50 --aspects dorsal_dr palmar_pr \
        --protocols paper subject-disjoint --input ./11k --output ./comparison --N_epochs 50

starts train.py and test.py for every backbone, aspect, protocol, fold and seed; flags that are not
listed below go to train.py. Writes, after every finished run: results.csv, differences.csv,
table.md, comparison.png. The same command again goes on where it was interrupted, and repeats
nothing that is finished.

    python compare.py --output ./comparison --difference dorsal_dr-paper-swin_t \
        dorsal_dr-paper-resnet50

says whether two rows of the table differ by more than chance. A row is named as its runs' folders
are; without -fold_<k> or -seed_<s> all folds or seeds are averaged.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from data.splits import PROTOCOLS, SplitFiles, locate
from data.tables import WRITE_CSV, advise
from dataset_11k import TASKS
from engine.checkpoint import (
    FREE_ON_RESUME,
    checkpoints_of,
    config_of_run,
    describe_checkpoint,
    lock_run,
    read_run,
)
from engine.loop import check_backbone
from measures.across_runs import (
    COMPARED,
    Cell,
    Measure,
    Result,
    Row,
    compare_rows,
    control_values,
    differences_table,
    folds_of,
    interval,
    photos_differ,
    read_evaluation,
    results_table,
)
from measures.bootstrap import CONFIDENCE, Difference, Interval
from pages.figures import save_figure
from pages.wording import CONTROLS
from train import TrainConfig, read_run_data
from utils import (
    UserError,
    atomic_write,
    build_config,
    build_parser,
    config_to_json,
    flag,
    logger,
    one_line_errors,
    safe_name,
    setup_logging,
    usable_cpus,
)

# ----------------------------------------------------------------------------- comparison

# What compare.py sets for every run, so that it cannot be a flag for train.py.
OWN_FLAGS = (
    *("attributes_file", "protocol", "fold", "backbone", "backbone_weights", "seed"),
    *("run_dir", "resume"),
)


@dataclass(frozen=True)
class CompareConfig:
    """What compare.py is asked for; further flags are train.py's."""

    backbones: tuple[str, ...] = flag((), "as train.py's --backbone", nargs="+", metavar="NAME")
    aspects: tuple[str, ...] = flag(
        ("dorsal_dr",), "names of the CSVs in <input>/sub_dataset", nargs="+", metavar="ASPECT"
    )
    protocols: tuple[str, ...] = flag(
        ("paper", "subject-disjoint"),
        "splits to train on, as in dataset_11k_split.py",
        choices=tuple(PROTOCOLS),
        nargs="+",
    )
    folds: tuple[int, ...] = flag(
        (), "of subject-disjoint (default: all that were drawn)", nargs="+", metavar="FOLD"
    )
    seeds: tuple[int, ...] = flag((42,), "of the trainings", nargs="+", metavar="SEED")
    backbone_weights: tuple[str, ...] = flag(
        (), "start from these files instead of timm's weights", nargs="+", metavar="NAME=FILE"
    )
    input: Path = flag(Path("./11k"), "folder with Hands/ and the splits", metavar="DIR")
    output: Path = flag(Path("./comparison"), "folder of runs and results", metavar="DIR")
    add: tuple[Path, ...] = flag(
        (), "finished runs made elsewhere, for the table too", nargs="+", metavar="RUN_DIR"
    )
    processes: int = flag(1, "runs at once, one per GPU where there are several")
    dry_run: bool = flag(False, "say what there is to do, and do nothing")
    difference: tuple[str, ...] = flag(
        (), "compare two rows of the table in --output", nargs=2, metavar="ROW"
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range, and flags that contradict each other."""
        if self.processes < 1:
            raise ValueError(f"--processes must be above 0, not {self.processes}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            again = isinstance(value, tuple) and len(set(value)) < len(value)
            if again and field.name != "difference":
                raise ValueError(f"--{field.name}: something is there twice")
            if value == field.default:
                continue
            if self.difference and field.name not in ("difference", "output"):
                raise ValueError(f"--difference goes with --output alone, not --{field.name}")
            if not self.backbones and field.name in ("aspects", "protocols", "folds", "seeds"):
                raise ValueError(f"--{field.name} goes with --backbones")
        if not (self.backbones or self.add or self.difference):
            raise ValueError("give --backbones, or --add, or --difference")
        if self.folds and not any(PROTOCOLS[protocol].disjoint for protocol in self.protocols):
            raise ValueError(f"--folds: --protocols {' '.join(self.protocols)} have none")
        safe = {safe_name(backbone): backbone for backbone in self.backbones}
        for backbone in self.backbones:
            if safe[safe_name(backbone)] != backbone:
                raise ValueError(
                    f"--backbones {backbone} and {safe[safe_name(backbone)]} would share a folder"
                )
        for text in self.backbone_weights:
            name, equals, _ = text.partition("=")
            if not equals or name not in self.backbones:
                raise ValueError(
                    f"--backbone_weights {text}: expected NAME=FILE, NAME one of --backbones"
                )
        if len(self.weights) < len(self.backbone_weights):
            raise ValueError("--backbone_weights: a backbone is there twice")

    @property
    def weights(self) -> dict[str, Path]:
        """The weights' file of each backbone that has one."""
        pairs = (text.partition("=") for text in self.backbone_weights)
        return {name: Path(file) for name, _, file in pairs}


@dataclass(frozen=True)
class Summary:
    """A row of the table.

    folds: that are in it; `n_folds`: that the protocol has.
    n_images: photos evaluated, those of another seed counted once.
    controls: name -> value, as far as they answer the measure.
    """

    row: Row
    folds: tuple[int, ...]
    n_folds: int
    seeds: tuple[int, ...]
    n_runs: int
    n_images: int
    numbers: dict[Measure, Interval]
    controls: dict[Measure, dict[str, float]]

    @property
    def made_of(self) -> str:
        """Folds and seeds; what is missing is said."""
        parts = []
        if self.folds:
            there = len(self.folds)
            whole = there == self.n_folds
            parts.append(f"{there} folds" if whole else f"**{there} of {self.n_folds} folds**")
        parts.append(
            ("seed " if len(self.seeds) == 1 else "seeds ") + " ".join(map(str, self.seeds))
        )
        n_whole = max(len(self.folds), 1) * len(self.seeds)
        if self.n_runs < n_whole:
            parts.append(f"**{self.n_runs} of {n_whole} runs**")
        return ", ".join(parts)


def rows_of(results: Sequence[Result]) -> dict[Row, tuple[Result, ...]]:
    """Return the results of each row, rows in the order of aspect and protocol."""
    rows: dict[Row, list[Result]] = {}
    for result in results:
        rows.setdefault(result.cell.row, []).append(result)
    order = {row[:2]: i for i, row in reversed(list(enumerate(rows)))}
    return {row: tuple(rows[row]) for row in sorted(rows, key=lambda row: order[row[:2]])}


def summarise(row: Row, results: tuple[Result, ...], n_folds: int) -> Summary:
    """Return a row of the table; `n_folds`: that its protocol has."""
    first_of_fold = {result.cell.fold: result for result in reversed(results)}
    keys = [key for key in COMPARED if all(key in result.measures for result in results)]
    return Summary(
        row=row,
        folds=tuple(sorted(fold for fold in first_of_fold if fold is not None)),
        n_folds=n_folds,
        seeds=tuple(sorted({result.cell.seed for result in results})),
        n_runs=len(results),
        n_images=sum(result.metrics["n_images"] for result in first_of_fold.values()),
        numbers={key: interval(results, key) for key in keys},
        controls={key: control_values(results, key) for key in keys},
    )


def find_row(name: str, results: Sequence[Result]) -> tuple[Result, ...]:
    """Return the results of the row called `name`."""
    found = tuple(result for result in results if name in result.cell.names)
    if not found:
        there = sorted({result.cell.named(fold=False, seed=False) for result in results})
        raise UserError(f"--difference {name}: no such row; there are {', '.join(there) or 'none'}")
    return found


def check_comparable(
    names: Sequence[str], first: Sequence[Result], second: Sequence[Result]
) -> None:
    """Refuse two rows that were not evaluated on the same photos of the same people, saying why."""
    both = f"{names[0]} and {names[1]}"
    one, other = first[0].cell, second[0].cell
    if one.aspect != other.aspect:
        reason = f"they show other photos ({one.aspect}, {other.aspect})"
    elif one.protocol != other.protocol:
        reason = (
            f"{one.protocol} and {other.protocol} report on other people and photos, so that"
            " nothing is paired"
        )
    elif folds_of(first) != folds_of(second):
        folds = [sorted(str(fold) for fold in folds_of(part)) for part in (first, second)]
        reason = f"folds {' '.join(folds[0])} and {' '.join(folds[1])} show other people"
    elif photos_differ(first, second):
        reason = "they were evaluated on another draw of the split"
    else:
        return
    raise UserError(
        f"--difference: {both} cannot be compared: {reason}; name two rows of one aspect,"
        " protocol and fold"
    )


def difference_text(names: Sequence[str], found: Mapping[Measure, Difference]) -> str:
    """Return what --difference prints."""
    lines = [f"{names[0]} minus {names[1]}", ""]
    lines.append(f"{'':28}difference  95 % interval      people")
    for key, one in found.items():
        ends = f"{one.low:+.4f} to {one.high:+.4f}"
        verdict = "more than chance" if one.more_than_chance else "not more than chance"
        title = " ".join(key).replace("_", " ")
        lines.append(f"{title:28}{one.value:+10.4f}  {ends:20}{one.n_people:5}  {verdict}")
    lines += ["", "Paired bootstrap over people; not corrected for the number of comparisons."]
    return "\n".join(lines)


def read_results(output: Path) -> list[Result]:
    """Return the results that results.csv lists."""
    path = output / "results.csv"
    try:
        table = pd.read_csv(path, dtype={"backbone": str})
        needed = [*Cell._fields, "evaluation"]
        if not set(needed) <= set(table.columns):
            raise ValueError(f"it lacks columns of {', '.join(needed)}")
        gaps = table[[n for n in needed if n != "fold"]].isna().any(axis=1)
        if gaps.any():
            raise ValueError(f"line {int(gaps.to_numpy().argmax()) + 2} is not complete")
        records = table.to_dict("records")
        cells = [
            Cell(
                *(record["aspect"], record["protocol"], record["backbone"]),
                None if pd.isna(record["fold"]) else int(record["fold"]),
                int(record["seed"]),
            )
            for record in records
        ]
        folders = [output / record["evaluation"] for record in records]
    except FileNotFoundError:
        raise UserError(f"{path} not found; give the --output of a comparison") from None
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({error}); move it away, and run the comparison again"
        ) from error
    results = []
    for cell, folder in zip(cells, folders, strict=True):
        result = read_evaluation(cell, folder)
        if result is None:
            raise UserError(f"{folder} is no finished evaluation; run the comparison again")
        results.append(result)
    return results


# ----------------------------------------------------------------------------- table and figure


def number_text(value: float | None, *, rate: bool = True) -> str:
    """Return a rate as .884, years as 1.84; a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}".removeprefix("0") if rate else f"{value:.2f}"


def interval_text(summary: Summary, key: Measure) -> str:
    """Return a number with its interval, as .884 (.841-.921)."""
    found = summary.numbers.get(key)
    if found is None:
        return "-"
    rate = key[1] != "mae_years"
    low, high = (number_text(end, rate=rate) for end in (found.low, found.high))
    return f"{number_text(found.value, rate=rate)} ({low}-{high})"


def table_line(summary: Summary) -> str:
    """Return a row of table.md."""
    known = ("identity", "balanced_accuracy") in summary.numbers
    identity = ("identity", "balanced_accuracy" if known else "rank_1")
    people = max(found.n_people for found in summary.numbers.values())
    cells = [
        *(f"`{summary.row.backbone}`", f"`{summary.row.aspect}`", f"`{summary.row.protocol}`"),
        *(summary.made_of, f"{summary.n_images}, {people}"),
        f"{'' if known else 'rank-1 '}{interval_text(summary, identity)}",
    ]
    for task, more in (("gender", "roc_auc"), ("age", "mae_years")):
        controls = summary.controls.get((task, "balanced_accuracy"), {})
        named = (*CONTROLS[:2], *(["nearest_embedding"] * ("nearest_embedding" in controls)))
        beside = [number_text(controls.get(name)) for name in named]
        cells += [interval_text(summary, (task, "balanced_accuracy")), " / ".join(beside)]
        cells.append(interval_text(summary, (task, more)))
    return f"| {' | '.join(cells)} |"


TABLE_HEAD = (
    "| backbone | hand | protocol | averaged over | photos, people | identity | gender"
    " | majority / lookup / nearest | gender AUC | age group | majority / lookup / nearest"
    " | age MAE, years |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)

TABLE_NOTES = (
    f"In brackets: {CONFIDENCE:.0%} bootstrap interval over people; what another seed would bring"
    " is not in it.",
    "Identity, gender and age group: balanced accuracy. Where nobody was trained on, identity is"
    " rank-1: the share of photos whose most similar gallery photo, of the same recording session,"
    " shows the same person.",
    "Majority: who always answers the training rows' most frequent class. Lookup: who answers the"
    " gender and age group of the person that the identity head names. Nearest, of strangers alone:"
    " those of the training photo that is most alike.",
    "Several folds or seeds: the mean of each model's own score; no model's answers are pooled"
    " with another's.",
)


def table_text(
    summaries: Sequence[Summary],
    recipes: Mapping[Row, str],
    differences: pd.DataFrame,
    n_left: int,
) -> str:
    """Return table.md.

    Args:
        summaries: of the finished rows.
        recipes: each row's flags, where they are not train.py's defaults.
        differences: as `differences_table` returns it.
        n_left: runs that are not finished.
    """
    notes = list(TABLE_NOTES)
    by_recipe: dict[str, list[str]] = {}
    for summary in summaries:
        by_recipe.setdefault(recipes[summary.row], []).append("-".join(summary.row))
    for recipe, names in by_recipe.items():
        who = "" if len(by_recipe) == 1 else f" ({', '.join(names)})"
        notes.append(f"Trained{who} with {f'`{recipe}`' if recipe else 'the defaults'}.")
    if len(differences):
        n_more = int(differences["more_than_chance"].sum())
        notes.append(
            f"Pairs of backbones: {n_more} of {len(differences)} differences are more than chance"
            f" (differences.csv), each taken by itself at {CONFIDENCE:.0%}: they are not corrected"
            " for the number of comparisons."
        )
    if n_left:
        notes.append(f"**Not finished: {n_left} runs are missing.**")
    lines = [TABLE_HEAD, *map(table_line, summaries), "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


# Okabe and Ito's colours, which the colour-blind tell apart; each has a marker of its own.
LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))

LEGEND_COLUMNS = 4  # what one line has room for

CONTROL_LOOKS = {
    "majority_class": ("majority class", "|"),
    "identity_lookup": ("identity lookup", "x"),
    "nearest_embedding": ("nearest embedding", "+"),
    "chance": ("chance", "|"),
}


def plot_comparison(summaries: Sequence[Summary], path: Path) -> None:
    """Draw every row's balanced accuracies (of strangers, identity's rank-1) with intervals.

    Args:
        summaries: rows of the table, at least one.
        path: picture to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    n_rows = len(summaries)
    figure = Figure(figsize=(11, 1.9 + 0.3 * n_rows), layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharey=True)
    looks = dict(zip(PROTOCOLS, LOOKS, strict=True))
    seen: set[str] = set()
    for panel, task in zip(panels, TASKS, strict=True):
        for place, summary in enumerate(summaries):
            for key in ((task, "balanced_accuracy"), (task, "rank_1")):
                if key not in summary.numbers:
                    continue
                color, marker = looks[summary.row.protocol]
                found = summary.numbers[key]
                style: dict[str, Any] = {"color": color, "clip_on": False}  # whole at the edge too
                panel.plot([found.low, found.high], [place, place], linewidth=1.8, **style)
                face = "white" if key[1] == "rank_1" else color
                panel.plot(found.value, place, marker, markerfacecolor=face, **style)
                for name, value in summary.controls[key].items():
                    seen.add(name)
                    look = {**style, "color": "#444444", "markersize": 9}
                    panel.plot(value, place, CONTROL_LOOKS[name][1], **look)
        panel.set_title({"age": "age group"}.get(task, task), loc="left", fontweight="bold")
        panel.set(xlim=(-0.02, 1.02), ylim=(n_rows - 0.5, -0.5), xlabel="balanced accuracy")
        panel.grid(axis="x", color="#DDDDDD", linewidth=0.8)
        panel.set_axisbelow(True)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.tick_params(axis="y", length=0)
        for place in range(1, n_rows):  # a line between what cannot be compared
            if summaries[place].row[:2] != summaries[place - 1].row[:2]:
                panel.axhline(place - 0.5, color="#BBBBBB", linewidth=0.8)
    protocols = list(dict.fromkeys(summary.row.protocol for summary in summaries))
    if any(PROTOCOLS[protocol].disjoint for protocol in protocols):
        panels[0].set_xlabel("balanced accuracy; hollow: rank-1")
    names = [row_label(summary) for summary in summaries]
    panels[0].set_yticks(range(n_rows), names, parse_math=False)
    handles = [
        Line2D([], [], color=looks[protocol][0], marker=looks[protocol][1], label=protocol)
        for protocol in protocols
    ]
    controls = {CONTROL_LOOKS[name] for name in CONTROLS if name in seen}
    by_marker = {m: " or ".join(sorted(t for t, n in controls if n == m)) for _, m in controls}
    handles += [
        Line2D([], [], color="#444444", linestyle="", marker=marker, label=f"control: {text}")
        for marker, text in sorted(by_marker.items())
    ]
    n_columns = len(handles) if len(handles) <= LEGEND_COLUMNS else math.ceil(len(handles) / 2)
    figure.legend(handles=handles, loc="outside upper right", ncols=n_columns, frameon=False)
    save_figure(figure, path)


def row_label(summary: Summary) -> str:
    """Return a row's name in the figure; missing folds are said."""
    partial = len(summary.folds) < summary.n_folds if summary.folds else False
    said = f" ({len(summary.folds)} of {summary.n_folds} folds)" if partial else ""
    return f"{summary.row.backbone}  {summary.row.protocol}  {summary.row.aspect}{said}"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV, all of it or nothing."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def write_results(
    output: Path, results: Sequence[Result], recipes: Mapping[Row, str], root: Path, n_left: int
) -> None:
    """Write results.csv, differences.csv, table.md and comparison.png.

    Args:
        output: folder to write to.
        results: finished ones, in the order of the table.
        recipes: each row's flags, where they are not train.py's defaults.
        root: of the splits, which say how many folds there are.
        n_left: runs that are not finished.
    """
    rows = rows_of(results)
    summaries = []
    for row, those in rows.items():
        files = SplitFiles(root, row.aspect, row.protocol)
        n_folds = len(files.folds) or PROTOCOLS[row.protocol].folds
        summaries.append(summarise(row, those, n_folds))
    differences = differences_table(rows)
    write_table(results_table(results, output), output / "results.csv")
    write_table(differences, output / "differences.csv")
    with atomic_write(output / "table.md") as temporary:
        text = table_text(summaries, recipes, differences, n_left)
        temporary.write_text(text, encoding="utf-8", newline="\n")
    if summaries:
        plot_comparison(summaries, output / "comparison.png")


HERE = Path(__file__).resolve().parent

POLL_SECONDS = 0.2

SAY_EVERY = 60.0  # seconds between lines that say what is left

GRACE = 10.0  # seconds that a child has to end by itself

# What a run's folder may hold before its config.json is written.
UNBEGUN = re.compile(r"\.lock|train\.log|\..*\.tmp.*")


@dataclass(frozen=True)
class Run:
    """A run to train and evaluate; one that was `added` has been trained elsewhere."""

    cell: Cell
    folder: Path
    config: TrainConfig
    added: bool = False

    @property
    def recipe(self) -> str:
        """The flags that rows should share, where they are not the defaults."""
        return describe_recipe(config_to_json(self.config))


def describe_recipe(stored: Mapping[str, Any]) -> str:
    """Return as flags what a configuration changes in the recipe."""
    plain = {k: v for k, v in config_to_json(TrainConfig()).items() if k not in OWN_FLAGS}
    parts = []
    for name, default in plain.items():
        value = stored.get(name, default)
        if value == default or (name in FREE_ON_RESUME and name != "N_epochs"):
            continue
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        prefix = "--no-" if value is False else "--"
        parts.append(f"{prefix}{name}" + ("" if isinstance(value, bool) else f" {text}"))
    return " ".join(parts)


# ----------------------------------------------------------------------------- inputs


def attributes_file(root: Path, aspect: str) -> Path:
    """Return the CSV of an aspect below `root`."""
    return root / "sub_dataset" / f"{aspect}.csv"


def find_folds(
    root: Path, aspect: str, protocol: str, asked: Sequence[int]
) -> tuple[int | None, ...]:
    """Return the folds to run, None for a protocol without.

    Raises:
        UserError: aspect, protocol or fold was not drawn; the message has the command to run.
    """
    command = f"python dataset_11k_split.py --input {root}"
    command += "" if protocol == "paper" else f" --protocol {protocol}"
    path = attributes_file(root, aspect)
    there = sorted(p.stem for p in path.parent.glob("*.csv"))
    if there and aspect not in there:
        raise UserError(f"--aspects {aspect}: {path.parent} has {', '.join(there)}")
    what_next = advise(path, f"run: {command}", by_hand=WRITE_CSV)
    if not there:
        raise UserError(f"{path} not found; {what_next}")
    files = locate(path, protocol)
    folds = files.folds
    if not PROTOCOLS[protocol].disjoint:
        if not files.split("train").is_file():
            raise UserError(f"{files.split('train')} not found; {what_next}")
        return (None,)
    if not folds:
        raise UserError(f"{files.drawn / aspect} has no folds; {what_next}")
    missing = [fold for fold in asked if fold not in folds]
    if missing:
        raise UserError(
            f"--folds {missing[0]}: {files.drawn / aspect} has {', '.join(map(str, folds))}"
        )
    return tuple(asked or folds)


def enumerate_cells(
    config: CompareConfig, folds: Mapping[tuple[str, str], Sequence[int | None]]
) -> list[Cell]:
    """Return the cells in the order in which they run: those of a row's fold side by side.

    Args:
        config: what to compare.
        folds: (aspect, protocol) -> folds.
    """
    return [
        Cell(aspect, protocol, backbone, fold, seed)
        for (aspect, protocol), those in folds.items()
        for seed in config.seeds
        for fold in those
        for backbone in config.backbones
    ]


def check_stored(run: Run, fingerprints: Mapping[str, str]) -> None:
    """Refuse a run's folder that holds something else than the flags and the splits ask for."""
    if not run.folder.exists():
        return
    if not (run.folder / "config.json").exists():
        others = [p.name for p in run.folder.iterdir() if not UNBEGUN.fullmatch(p.name)]
        if others:
            raise UserError(
                f"{run.folder} holds {others[0]} and no config.json; take it away, or give"
                " another --output"
            )
        return
    stored = read_run(run.folder)
    config, asked = stored["config"], config_to_json(run.config)
    defaults = config_to_json(TrainConfig())
    unknown = sorted(config.keys() - asked.keys())
    if unknown:
        raise UserError(f"{run.folder} has --{unknown[0]}, unknown to this version; use its own")
    for name, wanted in asked.items():
        found = config.get(name, defaults[name])
        if name == "fold":
            found, wanted = found or 0, wanted or 0
        if name == "backbone_weights" and found and wanted:
            found, wanted = str(Path(found).absolute()), str(Path(wanted).absolute())
        if found != wanted and (name == "N_epochs" or name not in FREE_ON_RESUME):
            raise UserError(
                f"{run.folder} was begun with --{name} {found}, not {wanted}; give that, or"
                " another --output"
            )
    check_rows(stored["fingerprints"], fingerprints, run.folder)


def check_rows(stored: Mapping[str, str], here: Mapping[str, str], folder: Path) -> None:
    """Refuse a run of other rows than the splits list now."""
    changed = [split for split, value in here.items() if stored.get(split) != value]
    if changed:
        raise UserError(
            f"{folder} was trained on another split: its rows of {' and '.join(changed)} differ"
            " from those in --input; restore them, or take the run away"
        )


def plan_cells(
    config: CompareConfig, given: Mapping[str, Any], parser: argparse.ArgumentParser
) -> list[Run]:
    """Return the runs of all cells, once flags, splits, photos and folders are seen to fit."""
    for file in config.weights.values():
        if not file.is_file():
            raise UserError(f"--backbone_weights: {file} not found")
    pairs = itertools.product(config.aspects, config.protocols) if config.backbones else ()
    folds = {pair: find_folds(config.input, *pair, config.folds) for pair in pairs}
    runs = []
    for cell in enumerate_cells(config, folds):
        values = {
            **given,
            "attributes_file": attributes_file(config.input, cell.aspect),
            "protocol": cell.protocol,
            "fold": cell.fold,
            "backbone": cell.backbone,
            "backbone_weights": config.weights.get(cell.backbone),
            "seed": cell.seed,
        }
        asked = build_config(parser, TrainConfig, values)
        runs.append(Run(cell, config.output / cell.name, asked))
    for run in {run.cell.backbone: run for run in runs}.values():
        check_backbone(run.cell.backbone, run.config.image_size)
    fingerprints: dict[tuple[Any, ...], dict[str, str]] = {}
    for run in runs:
        key = run.cell._replace(backbone="")
        if key not in fingerprints:
            fingerprints[key] = read_run_data(run.config).fingerprints
        check_stored(run, fingerprints[key])
    return runs


def plan_added(folder: Path, root: Path) -> Run:
    """Return a finished run made elsewhere, as its best checkpoint describes it."""
    if not folder.is_dir():
        raise UserError(f"--add {folder} is no folder; give a run's, as train.py made it")
    state = describe_checkpoint(best_checkpoint(folder))
    stored = read_run(folder)["config"] if (folder / "config.json").exists() else state["config"]
    values = config_of_run({}, stored, TrainConfig).items()
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values}
    config = TrainConfig(**plain)
    last = max(*(epoch for epoch, _ in checkpoints_of(folder)), len(epoch_seconds(folder)))
    if last < config.N_epochs:
        raise UserError(
            f"--add {folder}: epoch {last} of {config.N_epochs} is its last; finish it with"
            f" python train.py --resume {folder}"
        )
    aspect, protocol = state["aspect"], config.protocol
    fold = (config.fold or 0) if PROTOCOLS[protocol].disjoint else None
    here = dataclasses.replace(config, attributes_file=attributes_file(root, aspect))
    run = Run(Cell(aspect, protocol, config.backbone, fold, config.seed), folder, here, added=True)
    is_evaluated = read_result(run) is not None
    if not is_evaluated and not here.attributes_file.is_file():
        raise UserError(
            f"--add {folder} is to be evaluated first, and {here.attributes_file} not found; give"
            " the data set's folder with --input"
        )
    if not is_evaluated or SplitFiles(root, aspect, protocol, fold or 0).split("train").exists():
        check_rows(state["fingerprints"], read_run_data(here).fingerprints, folder)
    return run


def plan_kept(config: CompareConfig) -> list[Run]:
    """Return the runs that the table has already, where `--add` alone puts others beside them."""
    if config.backbones or not (config.output / "results.csv").is_file():
        return []
    added = {folder.resolve() for folder in config.add}
    folders = [result.folder.parent for result in read_results(config.output)]
    return [plan_added(path, config.input) for path in folders if path.resolve() not in added]


def check_together(runs: Sequence[Run]) -> None:
    """Refuse runs that are the same cell, or whose average would mix recipes."""
    cells: dict[Cell, Run] = {}
    rows: dict[Row, Run] = {}
    for run in runs:
        other = cells.setdefault(run.cell, run)
        if other is not run:
            raise UserError(f"--add {run.folder} is {run.cell.name}, as {other.folder} is")
        other = rows.setdefault(run.cell.row, run)
        if other.recipe != run.recipe:
            raise UserError(
                f"--add {run.folder}: trained with {run.recipe or 'the defaults'}, and"
                f" {other.folder} of the same row with {other.recipe or 'the defaults'}; leave"
                " one out"
            )


# ----------------------------------------------------------------------------- what a run left


def best_checkpoint(folder: Path) -> Path:
    """Return the run's one `-best` checkpoint."""
    best = [path for (_, is_best), path in checkpoints_of(folder).items() if is_best]
    if len(best) != 1:
        raise UserError(f"{folder} has {len(best)} checkpoint-NNNNNN-best.pth, not one")
    return best[0]


def epoch_seconds(folder: Path) -> list[float]:
    """Return how long each finished epoch of a run took."""
    path = folder / "metrics.jsonl"
    seconds = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):  # a line that is being written
            seconds.append(float(json.loads(line)["seconds"]))
    return seconds


def read_result(run: Run) -> Result | None:
    """Return the evaluation of the run's reported split; None: not yet, or training goes on."""
    best = [path for (_, is_best), path in checkpoints_of(run.folder).items() if is_best]
    last = max((epoch for epoch, _ in checkpoints_of(run.folder)), default=0)
    if len(best) != 1 or not (run.added or last >= run.config.N_epochs):
        return None
    split = PROTOCOLS[run.cell.protocol].splits[-1]
    result = read_evaluation(
        run.cell, best[0].with_name(f"{best[0].stem}-{run.cell.aspect}-{split}")
    )
    return result if result and result.metrics["checkpoint"] == best[0].name else None


# ----------------------------------------------------------------------------- time


class Progress(NamedTuple):
    """How far a run's training is."""

    backbone: str
    n_epochs: int
    seconds: list[float]  # of each finished epoch
    is_finished: bool  # evaluated too


def seconds_left(runs: Sequence[Progress], overhead: float, n_processes: int) -> float | None:
    """Return about how long the rest takes; None: no epoch has shown it yet.

    An epoch takes what the run's own took; else those of its backbone, else of any.

    Args:
        runs: all of them.
        overhead: seconds of a run that are no epoch: its start, and its evaluation.
        n_processes: runs at once.
    """
    by_backbone: dict[str, list[float]] = {}
    for run in runs:
        by_backbone.setdefault(run.backbone, []).extend(run.seconds)
    everything = [second for seconds in by_backbone.values() for second in seconds]
    waiting = [run for run in runs if not run.is_finished]
    if waiting and not everything:
        return None
    needed = [
        overhead
        + max(0, run.n_epochs - len(run.seconds))
        * float(np.mean(run.seconds or by_backbone[run.backbone] or everything))
        for run in waiting
    ]
    return max(sum(needed) / n_processes, max(needed, default=0.0))


def duration_text(seconds: float | None) -> str:
    """Return seconds as a person says them."""
    if seconds is None:
        return "how long it takes is seen after the first epoch"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"about {hours} h {minutes} min left" if hours else f"about {minutes} min left"


# ----------------------------------------------------------------------------- processes


def train_command(run: Run, flags: Sequence[str], given: Mapping[str, Any]) -> list[str]:
    """Return the command that begins the run or goes on with it.

    Args:
        run: to train.
        flags: for train.py, as they were given.
        given: the same, by name.
    """
    command = [sys.executable, str(HERE / "train.py")]
    command += ["--attributes_file", str(run.config.attributes_file)]
    if (run.folder / "config.json").exists():
        free = [(k, v) for k, v in given.items() if k in FREE_ON_RESUME]
        command += ["--resume", str(run.folder)]
        return command + [part for name, value in free for part in (f"--{name}", str(value))]
    command += ["--protocol", run.cell.protocol, "--backbone", run.cell.backbone]
    command += [] if run.cell.fold is None else ["--fold", str(run.cell.fold)]
    if run.config.backbone_weights:
        command += ["--backbone_weights", str(run.config.backbone_weights)]
    return command + ["--seed", str(run.cell.seed), "--run_dir", str(run.folder), *flags]


def commands_of(run: Run, flags: Sequence[str], given: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the run's commands, one after the other's end; a finished training ends at once."""
    if not run.added:
        if run.folder.exists() and not (run.folder / "config.json").exists():
            for path in run.folder.iterdir():  # killed before its config.json was written
                path.unlink()
        yield train_command(run, flags, given)
    command = [sys.executable, str(HERE / "test.py")]
    command += ["--attributes_file", str(run.config.attributes_file)]
    command += ["--checkpoint", str(best_checkpoint(run.folder))]
    shared = [name for name in ("device", "num_workers") if name in given]
    yield command + [part for name in shared for part in (f"--{name}", str(given[name]))]


def child_environment(slot: int, n_processes: int) -> dict[str, str]:
    """Return the environment of the child in place `slot`: its GPU, or its share of the CPUs."""
    environment = dict(os.environ)
    if n_processes == 1:
        return environment
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
        map(str, range(torch.cuda.device_count()))
    )
    if visible:
        devices = visible.split(",")
        return {**environment, "CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // n_processes)))
    return environment


def last_line(path: Path) -> str:
    """Return the last line of a log that says something."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("error: ")


def is_held(folder: Path) -> bool:
    """Return whether a process trains in the folder, as one may that a killed compare.py left."""
    try:
        if folder.exists():
            lock_run(folder).release()
    except UserError:
        return True
    return False


@dataclass
class Job:
    """A run that is being worked at."""

    run: Run
    commands: Iterator[list[str]]
    slot: int
    log: IO[str]
    began: float
    process: subprocess.Popen[bytes] | None = None

    def start_next(self, n_processes: int) -> bool:
        """Start the run's next command; return False if there is none."""
        command = next(self.commands, None)
        if command is None:
            return False
        print(f"$ {shlex.join(command)}", file=self.log, flush=True)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=child_environment(self.slot, n_processes),
            start_new_session=True,  # so that its workers can be ended with it
        )
        return True


def end_processes(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End children with all that they started: first gently, then at once."""
    for is_gentle in (True, False):
        for process in processes:
            if sys.platform == "win32":
                process.terminate()
            else:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM if is_gentle else signal.SIGKILL)
        deadline = time.monotonic() + GRACE
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()) if is_gentle else None)


class StopSignals:
    """Within the block, notes Ctrl-C and the wish to end, rather than to break off anywhere."""

    def __init__(self) -> None:
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not on Windows
        self.numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self.received: int | None = None

    def __enter__(self) -> StopSignals:
        """Listen."""
        self.former = {number: signal.signal(number, self.note) for number in self.numbers}
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal."""
        self.received = self.received or number

    def __exit__(self, *error: object) -> None:
        """Listen no more."""
        for number, handler in self.former.items():
            signal.signal(number, handler)


class Board:
    """What is done, what failed, what is left; writes the results as they come.

    Args:
        config: what to compare.
        runs: in the order in which they are worked at.
        flags: for train.py, as they were given.
        given: the same, by name.
    """

    def __init__(
        self,
        config: CompareConfig,
        runs: Sequence[Run],
        flags: Sequence[str],
        given: Mapping[str, Any],
    ) -> None:
        self.config, self.runs, self.flags, self.given = config, runs, flags, given
        found = {run: read_result(run) for run in runs}
        self.results = {run: result for run, result in found.items() if result is not None}
        self.waiting = deque(run for run in runs if run not in self.results)
        self.failures: dict[Run, str] = {}
        self.jobs: list[Job] = []
        self.told: set[Run] = set()  # to wait for another process
        self.overheads: list[float] = []  # seconds of runs finished here that were no epoch

    def write(self) -> None:
        """Write the tables and the figure."""
        results = [self.results[run] for run in self.runs if run in self.results]
        recipes = {run.cell.row: run.recipe for run in self.runs}
        n_left = len(self.runs) - len(results)
        write_results(self.config.output, results, recipes, self.config.input, n_left)

    def left(self) -> str:
        """Return what is left, and how long it takes."""
        progress = [
            Progress(
                run.cell.backbone,
                0 if run.added else run.config.N_epochs,
                epoch_seconds(run.folder),
                run in self.results or run in self.failures,
            )
            for run in self.runs
        ]
        parts = [f"{len(self.results)} of {len(self.runs)} runs finished"]
        parts += [f"{len(self.failures)} failed"] * bool(self.failures)
        for job in self.jobs:
            done, n_epochs = len(epoch_seconds(job.run.folder)), job.run.config.N_epochs
            where = f"at epoch {done} of {n_epochs}" if done < n_epochs else "being evaluated"
            parts.append(f"{job.run.cell.name} {where}")
        overhead = float(np.mean(self.overheads)) if self.overheads else 0.0
        if self.jobs or self.waiting:
            n_processes = self.config.processes
            parts.append(duration_text(seconds_left(progress, overhead, n_processes)))
            parts += ["evaluations apart"] * (not self.overheads)
        return ", ".join(parts)

    def start_jobs(self) -> None:
        """Start what is waiting, as far as there is room and nobody else is at it."""
        for _ in range(len(self.waiting)):
            if len(self.jobs) == self.config.processes:
                return
            run = self.waiting.popleft()
            if not run.added and is_held(run.folder):
                if run not in self.told:
                    logger.info("%s waits: another process trains in it", run.cell.name)
                self.told.add(run)
                self.waiting.append(run)
                continue
            slot = min(set(range(self.config.processes)) - {job.slot for job in self.jobs})
            log = self.log_of(run).open("a", encoding="utf-8")
            commands = commands_of(run, self.flags, self.given)
            job = Job(run, commands, slot, log, began=time.monotonic())
            self.jobs.append(job)
            self.go_on(job)

    def log_of(self, run: Run) -> Path:
        """Return where the run's commands write what they say."""
        return self.config.output / f"{run.cell.name}.log"

    def go_on(self, job: Job) -> None:
        """Start the job's next command; where there is none, or it cannot be, the job is over."""
        try:
            is_over = not job.start_next(self.config.processes)
        except (UserError, OSError) as error:
            self.finish(job, str(error))
            return
        if is_over:
            self.finish(job, "")

    def finish(self, job: Job, failure: str) -> None:
        """Note the end of a job."""
        job.log.close()
        self.jobs.remove(job)
        result = None if failure else read_result(job.run)
        if result is None:
            self.failures[job.run] = failure or "its evaluation is not complete"
            logger.error("%s failed: %s", job.run.cell.name, self.failures[job.run])
        else:
            self.results[job.run] = result
            seconds = time.monotonic() - job.began
            self.overheads.append(max(0.0, seconds - sum(epoch_seconds(job.run.folder))))
            self.write()
        logger.info("%s", self.left())

    def poll(self) -> None:
        """Look which children have ended, and go on with their jobs."""
        for job in list(self.jobs):
            code = job.process.poll() if job.process else None
            if code == 0:
                self.go_on(job)
            elif code is not None:
                self.finish(job, last_line(self.log_of(job.run)) or f"exit code {code}")

    def work(self) -> int:
        """Work at the runs until all are done; return 0, or the signal that ended it before."""
        said = time.monotonic()
        with StopSignals() as signals:
            try:
                while (self.waiting or self.jobs) and signals.received is None:
                    self.start_jobs()
                    self.poll()
                    time.sleep(POLL_SECONDS)
                    if time.monotonic() - said > SAY_EVERY:
                        said = time.monotonic()
                        logger.info("%s", self.left())
            finally:
                end_processes([job.process for job in self.jobs if job.process])
                for job in self.jobs:
                    job.log.close()
        return signals.received or 0


# ----------------------------------------------------------------------------- the script


def say_plan(board: Board) -> None:
    """Print what there is to do."""
    for run in board.runs:
        done = len(epoch_seconds(run.folder))
        state = f"epoch {done} of {run.config.N_epochs}" if done else "not begun"
        print(f"{run.cell.name}: {'finished' if run in board.results else state}")
    print(board.left())


def print_difference(config: CompareConfig) -> None:
    """Print whether the two rows of `--difference` differ by more than chance."""
    results = read_results(config.output)
    first, second = (find_row(name, results) for name in config.difference)
    check_comparable(config.difference, first, second)
    print(difference_text(config.difference, compare_rows(first, second)))


def run_sweep(
    config: CompareConfig,
    flags: Sequence[str],
    given: Mapping[str, Any],
    train_parser: argparse.ArgumentParser,
) -> int:
    """Train and evaluate what is not yet, write the results; return the script's exit code.

    Args:
        config: what to compare.
        flags: for train.py, as they were given.
        given: the same, by name.
        train_parser: reports what is wrong with these.
    """
    setup_logging(quiet=True)  # the runs say themselves what they read
    files = [place for place in (config.output, *config.output.parents) if place.is_file()]
    if files:
        raise UserError(f"--output {config.output}: {files[0]} is a file; give a folder")
    runs = plan_cells(config, given, train_parser)
    runs += plan_kept(config)
    runs += [plan_added(folder, config.input) for folder in config.add]
    check_together(runs)
    board = Board(config, runs, flags, given)
    if config.dry_run:
        say_plan(board)
        return 0
    config.output.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(config.output / ".lock", timeout=0)
        lock.acquire()
    except (OSError, Timeout) as error:
        raise UserError(f"another compare.py works in {config.output}; wait for it") from error
    setup_logging(config.output / "compare.log")
    with lock:
        logger.info("%s", board.left())
        board.write()
        received = board.work()
    if received:
        logger.info("interrupted; the same command again goes on")
        return 128 + received
    print((config.output / "table.md").read_text(encoding="utf-8"))
    print(f"wrote results.csv, differences.csv, table.md and comparison.png to {config.output}")
    for run, reason in board.failures.items():
        print(f"error: {run.cell.name} failed: {reason} ({board.log_of(run)})", file=sys.stderr)
    return 1 if board.failures else 0


INSTEAD = {
    "attributes_file": "--input and --aspects",
    "backbone_weights": "--backbone_weights NAME=FILE",
    "run_dir": "--output",
    "resume": "the same command again",
}


def read_flags(
    argv: Sequence[str] | None,
) -> tuple[CompareConfig, list[str], dict[str, Any], argparse.ArgumentParser]:
    """Return the configuration, train.py's flags as text and by name, and train.py's parser."""
    parser = build_parser(CompareConfig, __doc__)
    values, flags = parser.parse_known_args(argv)
    config = build_config(parser, CompareConfig, vars(values))
    train_parser = build_parser(TrainConfig, None)
    train_parser.prog, train_parser.usage = parser.prog, parser.format_usage()[7:]
    given = vars(train_parser.parse_args(flags))
    for name in OWN_FLAGS:
        if name in given:
            instead = INSTEAD.get(name, f"--{name}s")
            parser.error(f"--{name} is set for every run; give {instead}")
    if given and not config.backbones:
        parser.error(
            f"--{next(iter(given))} is for train.py, and nothing is to be trained: leave it out, or"
            " give --backbones"
        )
    for backbone, seed in itertools.product(config.backbones, config.seeds):
        own = {"backbone_weights": config.weights.get(backbone), "seed": seed}
        build_config(train_parser, TrainConfig, {**given, **own})  # refuses what train.py does
    return config, flags, given, train_parser


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config, flags, given, train_parser = read_flags(argv)
    if config.difference:
        print_difference(config)
        return 0
    return run_sweep(config, flags, given, train_parser)


if __name__ == "__main__":
    sys.exit(main())
