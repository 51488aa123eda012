r"""Compare backbones, recipes, hand aspects and protocols: train and evaluate each, one table.

    python compare.py --backbones swin_t resnet50 --aspects dorsal_dr palmar_pr \
        --protocols paper subject-disjoint --input ./11k --output ./comparison --N_epochs 50

runs train.py and test.py for every backbone, recipe, aspect, protocol, fold and seed; flags that
are not listed below are passed to train.py. After every run it updates results.csv,
differences.csv, table.md and comparison.png. Repeating the command resumes an interrupted
comparison and skips finished runs. With --shard I/N it executes every N-th run, so that N commands,
such as the tasks of a Slurm job array, share the work on one --output.

    python compare.py --output ./comparison --difference dorsal_dr-paper-swin_t \
        dorsal_dr-paper-resnet50

prints the paired differences between two rows of the table. A row is named like its runs' folders;
without -fold_<k> or -seed_<s> all folds or seeds are averaged.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data.splits import PROTOCOLS, SplitFiles, locate, trained_files
from dataset_11k import TASKS, warn_once
from engine.checkpoint import (
    MAY_CHANGE_ON_RESUME,
    best_checkpoint,
    check_resumable,
    describe_checkpoint,
    evaluation_dir,
    is_last_epoch,
    is_unused,
    list_checkpoints,
    read_epochs,
    read_run,
)
from measures.across_runs import (
    MIN_SEEDS,
    MeasureKey,
    ScoredRun,
    average_baselines,
    average_interval,
    folds_of,
    in_folds,
    n_seeds,
    paired_differences,
    same_photos,
    sd_over_folds,
    shared_measures,
)
from measures.intervals import CONFIDENCE, Difference, Interval, holm
from measures.metrics_json import headline_measures
from measures.registry import BASELINES, MEASURES
from pages.figures import save_figure
from pages.wording import headlines
from train import RECIPES, TrainConfig, check_model, read_run_data, with_recipe
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
    write_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Flags of train.py that compare.py sets for every run, and what replaces them.
SET_PER_RUN = {
    "attributes_file": "--input and --aspects",
    "protocol": "--protocols",
    "fold": "--folds",
    "backbone": "--backbones",
    "recipe": "--recipes",
    "backbone_weights": "--backbone_weights NAME=FILE",
    "seed": "--seeds",
    "run_dir": "--output",
    "resume": "the same command again",
}

NEEDS_BACKBONES = ("recipes", "aspects", "protocols", "folds", "seeds", "shard")

HERE = Path(__file__).resolve().parent

LEVEL = f"{100 * CONFIDENCE:.0f} %"


@dataclass(frozen=True)
class CompareConfig:
    """The flags of compare.py; all others are train.py's."""

    backbones: tuple[str, ...] = flag(
        (), "backbones, named as in train.py", nargs="+", metavar="NAME"
    )
    recipes: tuple[str, ...] = flag(
        ("published",), "recipes of train.py", choices=tuple(RECIPES), nargs="+"
    )
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
        (),
        "folds of subject-disjoint or lists (default: all that exist)",
        nargs="+",
        metavar="FOLD",
    )
    seeds: tuple[int, ...] = flag((42,), "seeds of the training", nargs="+", metavar="SEED")
    backbone_weights: tuple[str, ...] = flag(
        (), "start from these files instead of timm's weights", nargs="+", metavar="NAME=FILE"
    )
    input: Path = flag(Path("./11k"), "folder with Hands/ and the splits", metavar="DIR")
    output: Path = flag(Path("./comparison"), "folder of runs and results", metavar="DIR")
    add: tuple[Path, ...] = flag(
        (), "add finished runs from other folders to the table", nargs="+", metavar="RUN_DIR"
    )
    processes: int = flag(1, "number of parallel runs, each on its own GPU if there are several")
    shard: str = flag("1/1", "execute the I-th of N parts of the runs", metavar="I/N")
    dry_run: bool = flag(False, "print the state of every run and exit")
    difference: tuple[str, ...] = flag(
        (), "print the differences between two rows of the table", nargs=2, metavar="ROW"
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range, and flags that contradict each other."""
        if self.processes < 1:
            raise ValueError(f"--processes must be above 0, not {self.processes}")
        i, slash, n = self.shard.partition("/")
        if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
            raise ValueError(f"--shard {self.shard}: expected I/N with I from 1 to N, such as 1/4")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            repeated = isinstance(value, tuple) and len(set(value)) < len(value)
            if repeated and field.name != "difference":
                raise ValueError(f"--{field.name}: a value is repeated")
            if value == field.default:
                continue
            if self.difference and field.name not in ("difference", "output"):
                raise ValueError(f"--difference goes with --output only, not with --{field.name}")
            if not self.backbones and field.name in NEEDS_BACKBONES:
                raise ValueError(f"--{field.name} needs --backbones")
        if not (self.backbones or self.add or self.difference):
            raise ValueError("give --backbones, --add or --difference")
        if self.folds and all(PROTOCOLS[protocol].folds == 1 for protocol in self.protocols):
            raise ValueError(f"--folds: --protocols {' '.join(self.protocols)} have no folds")
        folders = [safe_name(backbone) for backbone in self.backbones]
        if len(set(folders)) < len(folders):
            raise ValueError(f"--backbones {' '.join(self.backbones)}: two would share a folder")
        for text in self.backbone_weights:
            name, equals, _ = text.partition("=")
            if not equals or name not in self.backbones:
                raise ValueError(
                    f"--backbone_weights {text}: expected NAME=FILE, NAME one of --backbones"
                )
        if len(self.weights) < len(self.backbone_weights):
            raise ValueError("--backbone_weights: two files for one backbone")

    @property
    def weights(self) -> dict[str, Path]:
        """The weights file of each backbone that has one."""
        pairs = (text.partition("=") for text in self.backbone_weights)
        return {name: Path(file) for name, _, file in pairs}


# ----------------------------------------------------------------------------- runs and rows


class TableRow(NamedTuple):
    """A row of the table, which averages folds and seeds."""

    aspect: str
    protocol: str
    backbone: str
    recipe: str = "published"

    @property
    def model(self) -> str:
        """The backbone, and its recipe if it is not the published one."""
        return self.backbone if self.recipe == "published" else f"{self.backbone}-{self.recipe}"


class Cell(NamedTuple):
    """What identifies a run within the comparison."""

    aspect: str
    protocol: str
    backbone: str
    fold: int | None  # None: the protocol has no folds
    seed: int
    recipe: str = "published"

    @property
    def row(self) -> TableRow:
        """The row of the table that the run belongs to."""
        return TableRow(self.aspect, self.protocol, self.backbone, self.recipe)

    def name(self, *, fold: bool = True, seed: bool = True) -> str:
        """Return the name of the run's folder; without fold or seed, of their average."""
        parts = [self.aspect, self.protocol]
        parts += [f"fold_{self.fold}"] * (fold and self.fold is not None)
        return "-".join([*parts, safe_name(self.row.model), *[f"seed_{self.seed}"] * seed])


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run to train and evaluate; one that was `added` has been trained elsewhere.

    settings: flags of train.py by name, as JSON types.
    """

    cell: Cell
    folder: Path
    settings: Mapping[str, Any]
    added: bool = False

    @property
    def flags(self) -> str:
        """The flags that differ from the recipe's; runs that are averaged share them."""
        parts = []
        defaults = TrainConfig(**with_recipe({"recipe": self.settings.get("recipe", "published")}))
        for name, default in config_to_json(defaults).items():
            value = self.settings.get(name, default)
            unlisted = {*MAY_CHANGE_ON_RESUME, *SET_PER_RUN} - {"N_epochs", "patience"}
            if value == default or name in unlisted:
                continue
            values = value if isinstance(value, list) else [value]
            if isinstance(value, bool):
                parts.append(f"--{'' if value else 'no-'}{name}")
            else:
                parts.append(" ".join([f"--{name}", *map(str, values)]))
        return " ".join(parts)


@dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """The evaluation of a run's best checkpoint, as test.py wrote it."""

    cell: Cell
    folder: Path
    metrics: Mapping[str, Any]

    @functools.cached_property
    def scored(self) -> ScoredRun:
        """The headline measures as functions of people's weights, and their baselines."""
        with np.load(self.folder / "predictions.npz") as stored:
            arrays = dict(stored)
        baselines = {
            (task_of(line.part), line.measure.key): line.baselines
            for line in headlines(self.metrics["tasks"])
            if line.part in (*TASKS, "all_pairs")
        }
        unseen = self.metrics["split"] in PROTOCOLS[self.cell.protocol].unseen
        tasks = tuple(task for task, block in self.metrics["tasks"].items() if block)
        measures = headline_measures(arrays, tasks, unseen=unseen)
        return ScoredRun(
            fold=self.cell.fold,
            seed=self.cell.seed,
            people=arrays["people"],
            frame_numbers=arrays["frame_number"],
            measures={key: measure for key, measure in measures.items() if key in baselines},
            baselines=baselines,
        )


def task_of(part: str) -> str:
    """Return the task of a part of metrics.json: pairs of photos are compared for identity."""
    return part if part in TASKS else "identity"


def read_evaluation(cell: Cell, folder: Path) -> EvaluatedRun | None:
    """Return the evaluation in `folder`; None if it does not exist or is incomplete."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        with np.load(folder / "predictions.npz") as stored:
            complete = metrics.keys() >= {"checkpoint", "tasks"} and "people" in stored
    except (OSError, ValueError, AttributeError):
        return None
    return EvaluatedRun(cell, folder, metrics) if complete else None


def find_evaluation(run: PlannedRun) -> EvaluatedRun | None:
    """Return the evaluation of the run's reported split; None unless training has finished."""
    found = list_checkpoints(run.folder)
    best_epoch = max((epoch for epoch, is_best in found if is_best), default=None)
    if best_epoch is None:
        return None
    if not (run.added or is_last_epoch(max(found)[0], best_epoch, run.settings)):
        return None
    best = found[best_epoch, True]
    split = PROTOCOLS[run.cell.protocol].splits[-1]
    folder = evaluation_dir(best, run.cell.aspect, split)
    if not run.added and not (folder / "report.html").is_file():  # test.py writes it last
        return None
    evaluated = read_evaluation(run.cell, folder)
    return evaluated if evaluated and evaluated.metrics["checkpoint"] == best.name else None


# ----------------------------------------------------------------------------- planning


def plan_runs(
    config: CompareConfig, given: Mapping[str, Any], parser: argparse.ArgumentParser
) -> list[PlannedRun]:
    """Return the runs to train, after checks of flags, splits, photos and folders."""
    for file in config.weights.values():
        if not file.is_file():
            raise UserError(f"--backbone_weights: not found: {file}")
    runs = []
    fingerprints: dict[Cell, dict[str, str]] = {}
    checked: set[str] = set()  # models
    pairs = itertools.product(config.aspects, config.protocols) if config.backbones else ()
    for aspect, protocol in pairs:
        attributes = config.input / "sub_dataset" / f"{aspect}.csv"
        folds: Sequence[int | None] = (None,)
        if PROTOCOLS[protocol].folds > 1:  # without any, reading fold 0 says what to do
            folds = config.folds or locate(attributes, protocol).folds or (0,)
        for seed, fold, backbone, recipe in itertools.product(
            config.seeds, folds, config.backbones, config.recipes
        ):
            cell = Cell(aspect, protocol, backbone, fold, seed, recipe)
            own = {"attributes_file": (attributes,), **cell._asdict()}
            own |= {"backbone_weights": config.weights.get(backbone)}
            del own["aspect"]
            train_config = build_config(parser, TrainConfig, with_recipe({**given, **own}))
            if cell.row.model not in checked:
                check_model(train_config)
                checked.add(cell.row.model)
            run = PlannedRun(cell, config.output / cell.name(), config_to_json(train_config))
            data = cell._replace(backbone="", recipe="")
            if data not in fingerprints:
                fingerprints[data] = read_run_data(train_config).fingerprints
            check_folder(run, fingerprints[data])
            runs.append(run)
    return runs


def has_config(folder: Path) -> bool:
    """Return whether a run has been started in the folder."""
    return (folder / "config.json").is_file()


def check_folder(run: PlannedRun, fingerprints: Mapping[str, str]) -> None:
    """Refuse a run folder whose settings or samples are not the planned ones."""
    if is_unused(run.folder):
        return
    stored = read_run(run.folder)
    check_resumable(run.folder, stored, settings=run.settings, fingerprints=fingerprints)
    for name in ("N_epochs", "patience"):  # train.py may change them
        started, planned = stored["config"].get(name), run.settings[name]
        if started != planned:
            raise UserError(
                f"--{name} {planned} differs from {started}, which the run was started with:"
                f" {run.folder}. Give the same, or another --output"
            )


def plan_added(folder: Path, root: Path) -> PlannedRun:
    """Return a finished run that was trained elsewhere, as its best checkpoint describes it."""
    best = best_checkpoint(folder)
    if best is None:
        raise UserError(f"--add: no checkpoint-NNNNNN-best.pth in {folder}. Give a run's folder")
    state = describe_checkpoint(best)
    stored = (read_run(folder) if has_config(folder) else state)["config"]
    n_done = max(max(epoch for epoch, _ in list_checkpoints(folder)), len(read_epochs(folder)))
    if not is_last_epoch(n_done, state["epoch"], stored):
        raise UserError(
            f"--add: training stopped at epoch {n_done} of {stored['N_epochs']}: {folder}. Finish"
            f" it with: python train.py --resume {folder}"
        )
    if len(trained_files(stored)) > 1:
        raise UserError(f"--add: trained on {state['aspect']}: {folder}. Add runs of one aspect")
    fold = (stored["fold"] or 0) if PROTOCOLS[stored["protocol"]].folds > 1 else None
    recipe = stored.get("recipe", "published")  # earlier versions had no other
    own = (stored["backbone"], fold, stored["seed"], recipe)
    cell = Cell(state["aspect"], stored["protocol"], *own)
    attributes = root / "sub_dataset" / f"{cell.aspect}.csv"
    here = {"attributes_file": [str(attributes)], "device": "auto"}
    run = PlannedRun(cell, folder, {**stored, **here}, added=True)
    if find_evaluation(run) is None and not attributes.is_file():
        raise UserError(
            f"--add: {folder} is not evaluated yet, and not found: {attributes}. Give the data"
            " set's folder with --input"
        )
    return run


def plan_listed(config: CompareConfig) -> list[PlannedRun]:
    """Return the runs of the existing results.csv, which `--add` without --backbones extends."""
    if config.backbones or not (config.output / "results.csv").is_file():
        return []
    added = {folder.resolve() for folder in config.add}
    folders = [found.folder.parent for found in read_results_csv(config.output)]
    return [plan_added(path, config.input) for path in folders if path.resolve() not in added]


def check_distinct(runs: Sequence[PlannedRun]) -> None:
    """Refuse two runs of one cell, and rows that would average different settings."""
    cells: dict[Cell, PlannedRun] = {}
    rows: dict[TableRow, PlannedRun] = {}
    for run in runs:
        other = cells.setdefault(run.cell, run)
        if other is not run:
            raise UserError(
                f"two runs of {run.cell.name()}: {run.folder} and {other.folder}. Leave one out"
            )
        other = rows.setdefault(run.cell.row, run)
        if other.flags != run.flags:
            raise UserError(
                f"runs to average differ in their settings: {run.folder}"
                f" ({run.flags or 'defaults'}) and {other.folder} ({other.flags or 'defaults'})."
                " Leave one out"
            )


# ----------------------------------------------------------------------------- execution


def train_command(run: PlannedRun, flags: Sequence[str]) -> list[str]:
    """Return the command that starts or resumes the run; `flags` are given to all runs."""
    command = [sys.executable, str(HERE / "train.py")]
    command += ["--attributes_file", *run.settings["attributes_file"]]
    command += ["--resume" if has_config(run.folder) else "--run_dir", str(run.folder)]
    for name in ("recipe", "protocol", "fold", "backbone", "backbone_weights", "seed"):
        value = run.settings[name]
        command += [] if value is None else [f"--{name}", str(value)]
    return [*command, *flags]


def test_command(run: PlannedRun) -> list[str]:
    """Return the command that evaluates the run's best checkpoint."""
    command = [sys.executable, str(HERE / "test.py")]
    command += ["--attributes_file", *run.settings["attributes_file"]]
    command += ["--checkpoint", str(best_checkpoint(run.folder))]
    for name in ("device", "num_workers"):
        command += [f"--{name}", str(run.settings[name])]
    return command


def device_queue(n_processes: int) -> queue.Queue[dict[str, str]]:
    """Return environment variables for each process: its GPU, or its share of the CPUs."""
    devices: queue.Queue[dict[str, str]] = queue.Queue()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
        map(str, range(torch.cuda.device_count()))
    )
    for place in range(n_processes):
        if n_processes == 1:
            devices.put({})
        elif visible:
            gpus = visible.split(",")
            devices.put({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]})
        else:
            share = str(max(1, usable_cpus() // n_processes))
            devices.put({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", share)})
    return devices


class Comparison:
    """The planned runs, their evaluations and their failures.

    Args:
        config: flags of compare.py.
        runs: in the order of the table.
        flags: those of train.py, as text.
    """

    def __init__(
        self, config: CompareConfig, runs: Sequence[PlannedRun], flags: Sequence[str]
    ) -> None:
        self.config, self.runs, self.flags = config, runs, flags
        found = {run: find_evaluation(run) for run in runs}
        self.evaluated = {run: result for run, result in found.items() if result}
        self.failures: dict[PlannedRun, str] = {}
        self.devices = device_queue(config.processes)
        self.interrupted = threading.Event()

    @property
    def shard(self) -> Sequence[PlannedRun]:
        """The runs that this process executes."""
        i, n = map(int, self.config.shard.split("/"))
        return self.runs[i - 1 :: n]

    def log_file(self, run: PlannedRun) -> Path:
        """Return the log of the run's commands."""
        return self.config.output / f"{run.cell.name()}.log"

    def commands(self, run: PlannedRun) -> Iterator[list[str]]:
        """Yield the run's commands; train.py exits at once if training is finished."""
        if not run.added:
            yield train_command(run, self.flags)
        yield test_command(run)

    def execute(self, run: PlannedRun) -> str:
        """Train and evaluate a run on the next free device; return an error, or nothing."""
        device = self.devices.get()
        try:
            with self.log_file(run).open("a", encoding="utf-8") as log:
                for command in self.commands(run):
                    if self.interrupted.is_set():
                        return "interrupted"
                    print(f"$ {shlex.join(command)}", file=log, flush=True)
                    done = subprocess.run(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **device},
                        check=False,
                    )
                    if done.returncode:
                        return last_line(self.log_file(run)) or f"exit code {done.returncode}"
            return ""
        except OSError as error:
            return str(error)
        finally:
            self.devices.put(device)

    def execute_all(self) -> None:
        """Execute the unfinished runs, and write the results after each.

        Raises:
            KeyboardInterrupt: Ctrl-C; the running commands receive it too, and end by themselves.
        """
        mine = self.shard
        waiting = [run for run in mine if run not in self.evaluated]
        n_done = len(mine) - len(waiting)
        with (
            logging_redirect_tqdm([logger]),
            tqdm(total=len(mine), initial=n_done, unit="run", disable=None) as bar,
            ThreadPoolExecutor(self.config.processes) as pool,
        ):
            futures = {pool.submit(self.execute, run): run for run in waiting}
            try:
                for future in as_completed(futures):
                    self.finish(futures[future], future.result())
                    bar.update()
            except BaseException:
                self.interrupted.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def finish(self, run: PlannedRun, failure: str) -> None:
        """Record the end of a run, and write the results if it succeeded."""
        result = None if failure else find_evaluation(run)
        if result:
            self.evaluated[run] = result
            self.write()
        else:
            self.failures[run] = failure or "its evaluation is incomplete"
            logger.error("%s failed: %s", run.cell.name(), self.failures[run])
        logger.info("%d of %d runs finished", len(self.evaluated), len(self.runs))

    def write(self) -> None:
        """Write results.csv, differences.csv, table.md and comparison.png."""
        output = self.config.output
        others = [run for run in self.runs if run not in self.evaluated]  # perhaps in other shards
        self.evaluated |= {run: found for run in others if (found := find_evaluation(run))}
        results = [self.evaluated[run] for run in self.runs if run in self.evaluated]
        averages = average_rows(results, self.config.input)
        differences = differences_table(averages)
        settings = {run.cell.row: run.flags for run in self.runs}
        write_csv(results_table(results, output), output / "results.csv")
        write_csv(differences, output / "differences.csv")
        n_missing = len(self.runs) - len(results)
        write_text(output / "table.md", table_text(averages, settings, differences, n_missing))
        if averages:
            plot_comparison(averages, output / "comparison.png")

    def print_state(self) -> None:
        """Print the progress of every run."""
        for run in self.shard:
            n_done = len(read_epochs(run.folder))
            state = f"epoch {n_done} of {run.settings['N_epochs']}" if n_done else "not started"
            print(f"{run.cell.name()}: {'finished' if run in self.evaluated else state}")
        n_finished = sum(run in self.evaluated for run in self.shard)
        print(f"{n_finished} of {len(self.shard)} runs finished")


def last_line(path: Path) -> str:
    """Return the last line of a log that is not blank, without "error: "."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("error: ")


# ----------------------------------------------------------------------------- tables


@dataclass(frozen=True, eq=False)
class RowAverages:
    """The averages in a row of the table, over the folds and seeds of its runs.

    n_folds: number of folds of the protocol.
    """

    row: TableRow
    runs: tuple[EvaluatedRun, ...]
    n_folds: int

    @functools.cached_property
    def scored(self) -> tuple[ScoredRun, ...]:
        """The headline measures of each run."""
        return tuple(run.scored for run in self.runs)

    @functools.cached_property
    def intervals(self) -> dict[MeasureKey, Interval]:
        """The averages and intervals of the measures that all runs have."""
        return {key: average_interval(self.scored, key) for key in shared_measures(self.scored)}

    @property
    def n_images(self) -> int:
        """Number of evaluated photos; those of several seeds count once."""
        return sum({run.cell.fold: run.metrics["n_images"] for run in self.runs}.values())

    @property
    def cells(self) -> list[str]:
        """The first cells of the row in table.md."""
        return [f"`{name}`" for name in (self.row.model, self.row.aspect, self.row.protocol)]

    @property
    def folds_text(self) -> str:
        """The number of folds, and of all folds if some are missing; empty without folds."""
        n_folds = len(folds_of(self.scored) - {None})
        missing = f" of {self.n_folds}" if n_folds < self.n_folds else ""
        return f"{n_folds}{missing} folds" if n_folds else ""

    @property
    def averaged_over(self) -> str:
        """Folds and seeds; bold if some are missing."""
        seeds = sorted({run.cell.seed for run in self.runs})
        folds = f"**{self.folds_text}**" if " of " in self.folds_text else self.folds_text
        n_expected = max(len(folds_of(self.scored)), 1) * len(seeds)
        incomplete = len(self.runs) < n_expected
        parts = [
            folds,
            f"seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}",
            f"**{len(self.runs)} of {n_expected} runs**" * incomplete,
        ]
        return ", ".join(filter(None, parts))


def average_rows(results: Sequence[EvaluatedRun], root: Path) -> list[RowAverages]:
    """Return the rows of the table, those of one aspect and protocol together.

    Args:
        results: finished runs.
        root: folder of the data set, whose splits give the number of folds.
    """
    by_row: dict[TableRow, list[EvaluatedRun]] = {}
    for result in results:
        by_row.setdefault(result.cell.row, []).append(result)
    blocks = list(dict.fromkeys(row[:2] for row in by_row))
    averages = []
    for row in sorted(by_row, key=lambda row: blocks.index(row[:2])):
        n_folds = len(SplitFiles(root, row.aspect, row.protocol).folds)
        n_folds = n_folds or PROTOCOLS[row.protocol].folds
        averages.append(RowAverages(row, tuple(by_row[row]), n_folds))
        if not same_photos(averages[-1].scored, ()):
            name = f"{row.model}, {row.aspect}, {row.protocol}"
            warn_once(f"{name}: the average is over different draws of the split")
    return averages


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV atomically."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def headline_columns(tasks: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's columns of results.csv: <task>_<measure>, with _low, _high, _<baseline>.

    For pairs other than `all_pairs`, the kind of pairs follows the measure.

    Args:
        tasks: of metrics.json.
    """
    columns: dict[str, float] = {}
    for line in headlines(tasks):
        kind = "" if line.part in (*TASKS, "all_pairs") else f"_{line.part}"
        column = f"{task_of(line.part)}_{line.measure.key}{kind}"
        columns |= {column: line.value, f"{column}_low": line.low, f"{column}_high": line.high}
        columns |= {f"{column}_{baseline}": value for baseline, value in line.baselines.items()}
    return {column: value for column, value in columns.items() if not math.isnan(value)}


def results_table(results: Sequence[EvaluatedRun], output: Path) -> pd.DataFrame:
    """Return results.csv: one row per run."""
    rows = []
    for result in results:
        facts = {key: result.metrics[key] for key in ("split", "epoch", "n_images", "n_people")}
        path, base = result.folder.absolute(), output.absolute()
        place = path.relative_to(base) if path.is_relative_to(base) else path
        facts |= {"evaluation": place.as_posix(), "minutes": training_minutes(path.parent)}
        rows.append({**result.cell._asdict(), **facts, **headline_columns(result.metrics["tasks"])})
    table = pd.DataFrame(rows, columns=None if rows else [*Cell._fields, "evaluation"])
    return table.astype({"fold": "Int64"})


def seeds_text(n: int) -> str:
    """Return what a difference is between, if `n` seeds of each row stand behind it."""
    seeds = f"{n} seed{'s' * (n > 1)} of each backbone"
    if n < MIN_SEEDS:
        return (
            f"Differences with {seeds} are between these two trained models, not their backbones,"
            f" which need {MIN_SEEDS} seeds each: the intervals do not include the variation"
            " between seeds"
        )
    return (
        f"Differences with {seeds} or more are between backbones: the intervals include the"
        " variation between seeds"
    )


def differences_table(averages: Sequence[RowAverages]) -> pd.DataFrame:
    """Return differences.csv: all pairs of backbones of an aspect and protocol, by measure.

    Pairs are compared on their common folds; pairs without any, or evaluated on different photos,
    are left out. Significance is corrected for all rows.
    """
    columns = ["aspect", "protocol", "first", "second", "folds", "task", "measure", "difference"]
    columns += [*Difference._fields[1:], "seeds"]
    rows = []
    for one, other in itertools.combinations(averages, 2):
        common = folds_of(one.scored) & folds_of(other.scored)
        if one.row[:2] != other.row[:2] or not common:
            continue
        first, second = in_folds(one.scored, common), in_folds(other.scored, common)
        if not same_photos(first, second):
            continue
        folds = " ".join(str(fold) for fold in sorted(fold for fold in common if fold is not None))
        names = (*one.row[:2], one.row.model, other.row.model, folds)
        found, seeds = paired_differences(first, second), n_seeds(first, second)
        rows += [(*names, *key, *difference, seeds) for key, difference in found.items()]
    table = pd.DataFrame(rows, columns=columns)
    table["p_value_holm"] = holm(table["p_value"].to_numpy(dtype=np.float64))
    table["significant"] &= table["p_value_holm"] < 1 - CONFIDENCE
    return table


NOTES = f"""\
- In brackets: {LEVEL} confidence interval over people; it does not include
  the variation between seeds.
- Minutes: mean duration of a training, with the decoding of photos that were not cached.
- Scores are averaged over seeds, then over folds (the repeats of lists); predictions are never
  pooled. SD over folds: standard deviation of the folds' scores.
"""


def measures_of(averages: Sequence[RowAverages]) -> list[MeasureKey]:
    """Return the measures of all rows: by task, then in the order of `MEASURES`."""
    found = {key for average in averages for key in average.intervals}
    return [(task, key) for task in TASKS for key in MEASURES if (task, key) in found]


def markdown_section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a heading and a table."""
    table = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"## {title}", "", *table, ""])


def training_minutes(run_dir: Path) -> float:
    """Return the duration of a training from the decoding of the photos on; NaN: unknown."""
    seconds = [epoch["seconds"] for epoch in read_epochs(run_dir)]
    return sum(seconds) / 60 if seconds else math.nan


def runs_section(averages: Sequence[RowAverages], settings: Mapping[TableRow, str]) -> str:
    """Return the part of table.md about runs: what is averaged, and how it was trained."""
    head = ["backbone", "aspect", "protocol", "averaged over", "photos", "minutes", "settings"]
    rows = []
    for average in averages:
        flags = settings[average.row]
        flags = f"`{flags}`" if flags else f"defaults of recipe {average.row.recipe}"
        minutes = np.mean([training_minutes(run.folder.parent) for run in average.runs])
        shown = "–" if math.isnan(minutes) else f"{minutes:.1f}"
        facts = [average.averaged_over, str(average.n_images), shown]
        rows.append([*average.cells, *facts, flags])
    return markdown_section("Runs", head, rows)


def measure_section(averages: Sequence[RowAverages], key: MeasureKey) -> str:
    """Return the part of table.md about one measure, with its baselines."""
    measure, unit = MEASURES[key[1]], MEASURES[key[1]].unit
    shown = [average for average in averages if key in average.intervals]
    averaged = [average_baselines(average.scored, key) for average in shown]
    baselines = [name for name in BASELINES if any(name in values for values in averaged)]
    sds = [sd_over_folds(average.scored, key) for average in shown]
    has_sd = any(not math.isnan(sd) for sd in sds)
    head = ["backbone", "aspect", "protocol", "people", measure.name]
    head += ["SD over folds"] * has_sd
    head += [BASELINES[name].name for name in baselines]
    rows = []
    for average, sd, values in zip(shown, sds, averaged, strict=True):
        found = average.intervals[key]
        value = f"{unit.format(found.value)} ({unit.format_interval(found.low, found.high)})"
        if measure.in_gallery:
            matching = [run.metrics["tasks"][key[0]]["matching"] for run in average.runs]
            sizes = [block["all_pairs"]["gallery_people"] for block in matching]
            value += f" among {' to '.join(map(str, sorted({min(sizes), max(sizes)})))}"
        others = [unit.format(sd)] * has_sd
        others += [unit.format(values.get(name)) for name in baselines]
        rows.append([*average.cells, str(found.n_people), value, *others])
    return markdown_section(f"{TASKS[key[0]].title}: {measure.name}", head, rows)


def table_text(
    averages: Sequence[RowAverages],
    settings: Mapping[TableRow, str],
    differences: pd.DataFrame,
    n_missing: int,
) -> str:
    """Return table.md.

    Args:
        averages: rows with finished runs.
        settings: each row's flags that differ from those of its recipe.
        differences: as `differences_table` returns it.
        n_missing: number of runs that are not finished.
    """
    parts = [f"**Incomplete: {n_missing} runs are not finished.**\n"] if n_missing else []
    parts.append(runs_section(averages, settings))
    parts += [measure_section(averages, key) for key in measures_of(averages)]
    notes = NOTES
    for baseline in BASELINES.values():
        notes += f"- Baseline {baseline.name}: {baseline.explanation}\n"
    if len(differences):
        notes += (
            f"- differences.csv: {int(differences['significant'].sum())} of {len(differences)}"
            f" differences are significant at {LEVEL}, with Holm's correction for multiple"
            " comparisons.\n"
        )
        notes += "".join(f"- {seeds_text(n)}.\n" for n in sorted(set(differences["seeds"])))
    return "\n".join([*parts, notes])


# ----------------------------------------------------------------------------- figure

# Colour (Okabe and Ito) and marker of each protocol, in the order of PROTOCOLS.
PROTOCOL_STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#56B4E9", "v"),
    ("#E69F00", "P"),
)

STRONGEST = "strongest baseline"

MAX_PANELS = 4  # side by side


def plot_comparison(averages: Sequence[RowAverages], path: Path) -> None:
    """Draw a panel per headline measure: each row of the table with interval and best baseline.

    Args:
        averages: rows of the table, at least one.
        path: picture to write.
    """
    from matplotlib.figure import Figure

    keys = measures_of(averages)
    n_rows = math.ceil(len(keys) / MAX_PANELS)
    n_columns = math.ceil(len(keys) / n_rows)
    height = 1.2 + n_rows * (1.0 + 0.28 * len(averages))
    figure = Figure(figsize=(3.2 + 2.6 * n_columns, height), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for panel, key in itertools.zip_longest(panels.flat, keys):
        if key is None:
            panel.axis("off")
        else:
            draw_measure(panel, averages, key)
    for panel in panels[:, 0]:
        labels = [
            ", ".join(filter(None, (*average.row[::-1], average.folds_text)))
            for average in averages
        ]
        panel.set_yticks(range(len(averages)), labels, parse_math=False)
    # each label once
    entries = {
        label: handle
        for panel in panels.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    order = [name for name in (*PROTOCOLS, STRONGEST) if name in entries]
    figure.legend(
        [entries[name] for name in order],
        order,
        loc="outside upper right",
        ncols=math.ceil(len(order) / math.ceil(len(order) / MAX_PANELS)),
        frameon=False,
    )
    save_figure(figure, path)


def draw_measure(panel: Axes, averages: Sequence[RowAverages], key: MeasureKey) -> None:
    """Draw one measure of all rows of the table into a panel, with its best baseline."""
    task, measure = key[0], MEASURES[key[1]]
    scale, n_rows = measure.unit.scale, len(averages)
    styles = dict(zip(PROTOCOLS, itertools.cycle(PROTOCOL_STYLES), strict=False))
    best_of = max if measure.higher_is_better else min
    for place, average in enumerate(averages):
        found = average.intervals.get(key)
        if found is None:
            continue
        color, marker = styles[average.row.protocol]
        # not clipped, so that a marker at 0 or 100 % is whole
        style: dict[str, Any] = {"color": color, "clip_on": False, "label": average.row.protocol}
        panel.plot([scale * found.low, scale * found.high], [place, place], linewidth=1.8, **style)
        panel.plot(scale * found.value, place, marker, **style)
        if baselines := average_baselines(average.scored, key).values():
            style |= {"color": "#444444", "markersize": 8, "label": STRONGEST}
            panel.plot(scale * best_of(baselines), place, "|", linestyle="", **style)
    panel.set_title(f"{TASKS[task].title}: {measure.name}", loc="left", fontsize="medium")
    direction = "higher" if measure.higher_is_better else "lower"
    panel.set_xlabel(f"{measure.unit.suffix.strip()} ({direction} is better)".strip())
    if measure.unit.is_percent:
        panel.set_xlim(-2, 102)
    panel.set_ylim(n_rows - 0.5, -0.5)
    panel.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    for place in range(1, n_rows):  # a rule between rows that cannot be compared
        if averages[place].row[:2] != averages[place - 1].row[:2]:
            panel.axhline(place - 0.5, color="#BBBBBB", linewidth=0.8)


# ----------------------------------------------------------------------------- --difference


def read_results_csv(output: Path) -> list[EvaluatedRun]:
    """Return the evaluations that results.csv lists."""
    path = output / "results.csv"
    try:
        records = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        cells = [
            Cell(
                *(record["aspect"], record["protocol"], record["backbone"]),
                int(record["fold"]) if record["fold"] else None,
                int(record["seed"]),
                record.get("recipe", "published"),
            )
            for record in records
        ]
        folders = [output / record["evaluation"] for record in records]
    except FileNotFoundError:
        raise UserError(f"not found: {path}. Give the --output of a comparison") from None
    except (KeyError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error!r}). Rerun the comparison") from error
    results = []
    for cell, folder in zip(cells, folders, strict=True):
        result = read_evaluation(cell, folder)
        if result is None:
            raise UserError(f"incomplete evaluation: {folder}. Rerun the comparison")
        results.append(result)
    return results


def find_row(name: str, results: Sequence[EvaluatedRun]) -> tuple[EvaluatedRun, ...]:
    """Return the runs of the row, or part of a row, called `name`."""
    either = (True, False)
    found = tuple(
        result
        for result in results
        if name in [result.cell.name(fold=f, seed=s) for f in either for s in either]
    )
    if not found:
        names = sorted({result.cell.name(fold=False, seed=False) for result in results})
        raise UserError(f"--difference: no row {name}. Available: {', '.join(names)}")
    return found


def check_comparable(first: Sequence[EvaluatedRun], second: Sequence[EvaluatedRun]) -> None:
    """Refuse two rows that were not evaluated on the same photos, and say why."""
    one, other = first[0].cell, second[0].cell
    folds = [sorted(str(run.cell.fold) for run in runs) for runs in (first, second)]
    if one.aspect != other.aspect:
        reason = f"different aspects ({one.aspect}, {other.aspect})"
    elif one.protocol != other.protocol:
        reason = f"different protocols ({one.protocol}, {other.protocol})"
    elif set(folds[0]) != set(folds[1]):
        reason = f"different folds ({' '.join(folds[0])}; {' '.join(folds[1])})"
    elif not same_photos([run.scored for run in first], [run.scored for run in second]):
        reason = "different photos in the evaluated split"
    else:
        return
    raise UserError(
        f"--difference: rows cannot be compared: {reason}. Give two rows of the same aspect,"
        " protocol and folds"
    )


def difference_text(
    names: Sequence[str], found: Mapping[MeasureKey, Difference], seeds: int
) -> str:
    """Return the text that --difference prints, if at least `seeds` seeds are behind each row."""
    lines = [f"{names[0]} minus {names[1]}", ""]
    lines.append(f"{'':32}{'difference':>14}  {'interval':24}{'people':>6}")
    p_values = holm(np.array([one.p_value for one in found.values()]))
    for ((task, key), one), p_value in zip(found.items(), p_values, strict=True):
        unit = MEASURES[key].unit
        sign = "+" if one.value > 0 else ""
        is_significant = one.significant and p_value < 1 - CONFIDENCE
        verdict = "significant" if is_significant else "not significant"
        lines.append(
            f"{f'{TASKS[task].title}: {MEASURES[key].name}':32}{sign + unit.format(one.value):>14}"
            f"  {unit.format_interval(one.low, one.high):24}{one.n_people:6}  {verdict}"
        )
    note = (
        f"The {LEVEL} intervals are paired over people. {seeds_text(seeds)}. Significance has"
        f" Holm's correction for {len(found)} comparisons, intervals have none. Differences in %"
        " are percentage points."
    )
    return "\n".join([*lines, "", note])


def print_difference(config: CompareConfig) -> None:
    """Print the paired differences of the two rows of --difference."""
    results = read_results_csv(config.output)
    first, second = (find_row(name, results) for name in config.difference)
    check_comparable(first, second)
    scored = [tuple(run.scored for run in runs) for runs in (first, second)]
    found = paired_differences(scored[0], scored[1])
    print(difference_text(config.difference, found, n_seeds(*scored)))


# ----------------------------------------------------------------------------- the command


def parse_flags(
    argv: Sequence[str] | None,
) -> tuple[CompareConfig, list[str], dict[str, Any], argparse.ArgumentParser]:
    """Return the configuration, train.py's flags as text and by name, and train.py's parser."""
    parser = build_parser(CompareConfig, __doc__)
    values, flags = parser.parse_known_args(argv)
    config = build_config(parser, CompareConfig, vars(values))
    train_parser = build_parser(TrainConfig, None)
    train_parser.prog, train_parser.usage = parser.prog, parser.format_usage()[7:]
    given = vars(train_parser.parse_args(flags))
    for name in given:
        if name in SET_PER_RUN:
            parser.error(f"--{name} is set for every run; give {SET_PER_RUN[name]}")
        if not config.backbones:
            parser.error(f"--{name} is a flag of train.py, and needs --backbones")
    every = itertools.product(config.backbones, config.seeds, config.recipes)
    for backbone, seed, recipe in every:  # refuses what train.py refuses
        own = {"backbone_weights": config.weights.get(backbone), "seed": seed, "recipe": recipe}
        build_config(train_parser, TrainConfig, with_recipe({**given, **own}))
    return config, flags, given, train_parser


def lock_output(output: Path, shard: str) -> FileLock:
    """Create the output folder and lock it, or its shard, for this process."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        name = ".lock" if shard == "1/1" else f".lock-{shard.replace('/', '-of-')}"
        lock = FileLock(output / name, timeout=0)
        lock.acquire()
    except FileExistsError as error:
        raise UserError(f"not a folder: --output {output}. Give a folder") from error
    except Timeout as error:
        raise UserError(f"another compare.py is running in {output}. Wait for it") from error
    return lock


def run_comparison(comparison: Comparison) -> int:
    """Execute the unfinished runs, write and print the results; return the exit code."""
    output = comparison.config.output
    with lock_output(output, comparison.config.shard):
        setup_logging(output / "compare.log")
        comparison.write()
        try:
            comparison.execute_all()
        except KeyboardInterrupt:
            print("interrupted. Repeat the command to resume", file=sys.stderr)
            return 130
    print((output / "table.md").read_text(encoding="utf-8"))
    print(f"wrote results.csv, differences.csv, table.md and comparison.png to {output}")
    for run, reason in comparison.failures.items():
        log = comparison.log_file(run)
        print(f"error: {run.cell.name()} failed: {reason} ({log})", file=sys.stderr)
    return 1 if comparison.failures else 0


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config, flags, given, train_parser = parse_flags(argv)
    if config.difference:
        print_difference(config)
        return 0
    setup_logging(quiet=True)  # planning reads every split; the runs log that themselves
    runs = plan_runs(config, given, train_parser) + plan_listed(config)
    runs += [plan_added(folder, config.input) for folder in config.add]
    check_distinct(runs)
    comparison = Comparison(config, runs, flags)
    if config.dry_run:
        comparison.print_state()
        return 0
    return run_comparison(comparison)


if __name__ == "__main__":
    sys.exit(main())
