"""Many runs: which there are, which are done, the processes that train and evaluate the rest."""

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
import torch

from checkpoints import describe_checkpoint
from comparison import (
    Cell,
    Result,
    Row,
    check_comparable,
    compare_rows,
    difference_text,
    find_row,
    read_evaluation,
    read_results,
    write_results,
)
from configs import FREE_ON_RESUME, OWN_FLAGS, CompareConfig, TrainConfig, config_of_run
from engine import check_backbone
from flags import build_config, config_to_json
from rows import PROTOCOLS, WRITE_CSV, SplitFiles, advise, locate
from run_folder import checkpoints_of, lock_run, read_run
from training import read_data
from utils import UserError, lock_file, logger, setup_logging, usable_cpus

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
            fingerprints[key] = read_data(run.config).fingerprints
        check_stored(run, fingerprints[key])
    return runs


def plan_added(folder: Path, root: Path) -> Run:
    """Return a finished run made elsewhere, as its best checkpoint describes it."""
    if not folder.is_dir():
        raise UserError(f"--add {folder} is no folder; give a run's, as train.py made it")
    state = describe_checkpoint(best_checkpoint(folder))
    stored = read_run(folder)["config"] if (folder / "config.json").exists() else state["config"]
    values = config_of_run({}, stored).items()
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
        check_rows(state["fingerprints"], read_data(here).fingerprints, folder)
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
            lock_run(folder).close()
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
        lock = lock_file(config.output / ".lock", wait=False)
    except OSError as error:
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
