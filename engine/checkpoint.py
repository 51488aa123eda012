"""Checkpoint files and run folders: writing, reading, and the decision whether a run may resume.

A run folder holds config.json, metrics.jsonl (one line per epoch), train.log, tensorboard/ and
checkpoints. Each epoch replaces the previous checkpoint; those of every tenth epoch, of the last
one and of the best one (checkpoint-NNNNNN-best.pth) stay.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import BaseFileLock, FileLock, Timeout
from timm.utils import ModelEmaV3

from dataset_11k import TASKS, LabelSpace
from engine.losses import UNKNOWN
from model import IGAENet
from utils import UserError, atomic_write, logger

CHECKPOINT_FORMAT = 1

# What describes a run from its first epoch on; config.json holds the same.
RUN_KEYS = ("config", "resolved", "label_space", "aspect", "fingerprints", "environment", "commit")

# What every checkpoint holds besides weights; `trained` is there with --ema only.
CHECKPOINT_KEYS = (
    *RUN_KEYS,
    *("training", "temperature", "epoch", "best", "metrics", "optimizer", "scaler"),
)

TENSOR_KEYS = ("model", "trained", "optimizer")

KEEP_EVERY = 10  # epochs

LOCK_SECONDS = 10  # the data-loading workers of a killed run hold its lock for some seconds

# Settings that may change on --resume. The samples are identified by fingerprints, not by path.
MAY_CHANGE_ON_RESUME = (
    *("attributes_file", "cache", "cache_dir", "N_epochs", "device", "num_workers"),
    *("resume", "run_dir"),
)


# ----------------------------------------------------------------------------- checkpoint files


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain Python values) to `path` atomically."""
    with atomic_write(path) as temporary:
        try:
            torch.save({"format": CHECKPOINT_FORMAT, **state}, temporary)
        except RuntimeError as error:  # what torch raises on a full disk
            raise UserError(
                f"cannot write {path}; is the disk full? Free some space, then rerun with --resume"
                f" ({error})"
            ) from error


def explain_missing(path: Path) -> str:
    """Return the error message for a `path` that is no file, with the checkpoints near it."""
    folder = path if path.is_dir() else path.parent
    problem = "a folder, not a checkpoint" if path.is_dir() else "checkpoint not found"
    nearby = sorted(folder.glob("checkpoint-*.pth"))
    best = best_checkpoint(folder)
    if path.is_dir() and best:
        return f"{problem}: {path}. Give {best}"
    if nearby:
        return f"{problem}: {path}. {folder} contains {', '.join(p.name for p in nearby)}"
    return f"{problem}: {path}. train.py writes checkpoints to checkpoints/<run>/"


def load_checkpoint(
    path: Path,
    *,
    mapped: bool = False,
    verify: bool = True,
    advice: str = "Give a checkpoint-NNNNNN.pth that train.py wrote",
) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote, with its tensors on the CPU.

    Args:
        path: the file.
        mapped: leave the tensors in the file, memory-mapped; the file may be replaced meanwhile,
            but not rewritten in place.
        verify: compare every byte with the file's checksums.
        advice: what to do if the file cannot be used; the end of the error message.

    Raises:
        UserError: there is no such file, or it is damaged or not a checkpoint of train.py.
    """
    if not path.is_file():
        raise UserError(explain_missing(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except PermissionError:
        raise
    except Exception as error:  # torch raises a dozen types for foreign and truncated files
        if "can't allocate memory" in str(error):
            raise
        if mapped:  # some file systems cannot map files
            return load_checkpoint(path, verify=verify, advice=advice)
        reason = error if isinstance(error, OSError) else type(error).__name__
        raise UserError(f"cannot read checkpoint ({reason}): {path}. {advice}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"not an IGAE-Net checkpoint (weights alone?): {path}. {advice}")
    if state["format"] != CHECKPOINT_FORMAT:
        raise UserError(
            f"checkpoint format {state['format']}, expected {CHECKPOINT_FORMAT}: {path}. Use the"
            " version that wrote it"
        )
    missing = [key for key in ("model", *CHECKPOINT_KEYS) if state.get(key) is None]
    if missing:
        raise UserError(f"incomplete checkpoint (no {', '.join(missing)}): {path}. {advice}")
    if verify:
        verify_checksums(path, advice)
    return state


def verify_checksums(path: Path, advice: str) -> None:
    """Refuse a checkpoint whose bytes have changed, which torch.load would not notice."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise UserError(f"damaged checkpoint (wrong checksum): {path}. {advice}")


def without_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's state without weights and optimiser state, so that they are freed."""
    return {key: value for key, value in state.items() if key not in TENSOR_KEYS}


def describe_checkpoint(path: Path, **options: Any) -> dict[str, Any]:
    """Return a checkpoint's state without reading its tensors; `options` as `load_checkpoint`."""
    return without_tensors(load_checkpoint(path, mapped=True, verify=False, **options))


def describe_training(samples: pd.DataFrame, label_space: LabelSpace) -> dict[str, Any]:
    """Return what evaluation needs to know of the training samples: for baselines, ages in years.

    Keys: `counts` (task -> photos of each class), `mean_ages` (mean age in years of each age
    group, None without a photo; empty if age is not trained), `people` (ids), `class_of_person`
    (task -> class of each person of the label space, -1 without a photo; empty if identity is not
    trained).
    """
    labels = pd.DataFrame(label_space.encode(samples), columns=list(label_space.tasks))
    labels = labels.where(labels != UNKNOWN)  # NaN where unknown
    sizes, counts = label_space.sizes, {}
    mean_ages: list[float | None] = []
    class_of_person: dict[str, list[int]] = {}
    for task, size in sizes.items():
        per_class = labels.groupby(task)
        counts[task] = per_class.size().reindex(range(size), fill_value=0).tolist()
        if TASKS[task].in_years:
            years = samples[TASKS[task].column].where(labels[task].notna()).astype(float)
            means = years.groupby(labels[task]).mean().reindex(range(size))
            mean_ages = [None if math.isnan(mean) else mean for mean in means]
        if TASKS[task].column == "id":
            first = per_class.first().reindex(range(size)).fillna(UNKNOWN).astype(int)
            class_of_person = {str(other): first[other].tolist() for other in first}
    return {
        "people": sorted(set(samples["id"])),
        "counts": counts,
        "mean_ages": mean_ages,
        "class_of_person": class_of_person,
    }


# ----------------------------------------------------------------------------- run folders


def check_unused(folder: Path) -> None:
    """Refuse a folder for a new run that is not empty."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"--run_dir is in use: {folder}. Give a new folder, or --resume {folder} to continue"
        )


def create_run_dir(requested: Path | None) -> Path:
    """Create the run's folder: the requested one, or checkpoints/<time>.

    Raises:
        UserError: the requested folder is in use, or cannot be created.
    """
    try:
        if requested is not None:
            requested.mkdir(parents=True, exist_ok=True)
            check_unused(requested)
            return requested
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for n in range(1, 1000):
            folder = Path("checkpoints") / (stamp if n == 1 else f"{stamp}-{n}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise UserError(f"cannot create the run's folder: {error}. See --run_dir") from error
    raise UserError(f"checkpoints/{stamp} to -999 are all in use. Give --run_dir")


def lock_run(run_dir: Path) -> BaseFileLock:
    """Lock the run for this process; the lock ends with the process, however that ends.

    Raises:
        UserError: another process trains in the folder.
    """
    lock = FileLock(run_dir / ".lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except (OSError, Timeout) as error:
        raise UserError(
            f"another process is training in {run_dir}. Wait for it, or stop it"
        ) from error
    return lock


def list_checkpoints(run_dir: Path) -> dict[tuple[int, bool], Path]:
    """Return the run's checkpoints by (epoch, whether it is the `-best` file)."""
    found = {}
    for path in run_dir.glob("checkpoint-*.pth"):
        match = re.fullmatch(r"checkpoint-(\d{6,})(-best)?\.pth", path.name)
        if match:
            found[int(match[1]), bool(match[2])] = path
    return found


def best_checkpoint(run_dir: Path) -> Path | None:
    """Return the run's `-best` checkpoint, if there is one."""
    best = {epoch: path for (epoch, is_best), path in list_checkpoints(run_dir).items() if is_best}
    return best[max(best)] if best else None


def last_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint of the latest epoch, if there is one."""
    found = list_checkpoints(run_dir)
    return found[max(found)] if found else None


def evaluation_dir(checkpoint: Path, aspect: str, split: str) -> Path:
    """Return the folder that test.py writes to, beside the checkpoint."""
    return checkpoint.with_name(f"{checkpoint.stem}-{aspect}-{split}")


def read_run(run_dir: Path) -> dict[str, Any]:
    """Return what describes a run (`RUN_KEYS`): its config.json, or a checkpoint's copy of it.

    Args:
        run_dir: the run's folder, or a checkpoint of the run.

    Raises:
        UserError: the folder holds no run, or the file is no checkpoint.
    """
    if run_dir.is_file():
        return describe_checkpoint(run_dir)
    path = run_dir / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in RUN_KEYS if key not in stored]
        if not isinstance(stored, dict) or missing:
            raise ValueError(f"no {', '.join(missing)}")
        return stored
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"not a run folder: {run_dir}. Its config.json cannot be read ({error}); give a folder"
            " that train.py made"
        ) from error


def read_epochs(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, one per finished epoch; none if there is no file.

    An incomplete last line, which a killed process may leave, is dropped.

    Raises:
        UserError: another line is damaged.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["epoch"] + 0
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise UserError(f"line {number} describes no epoch: {path}. Delete it") from error
        records.append(record)
    return records


def prune_checkpoints(run_dir: Path, *, epoch: int, best_epoch: int) -> None:
    """Make the `-best` file of `best_epoch` if it is new, then delete what need not stay."""
    found = list_checkpoints(run_dir)
    if (best_epoch, True) not in found and (best_epoch, False) in found:
        source = found[best_epoch, False]
        with atomic_write(source.with_name(f"{source.stem}-best.pth")) as temporary:
            try:
                os.link(source, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, temporary)
    for (number, is_best), path in found.items():
        stale = number != best_epoch if is_best else number != epoch and number % KEEP_EVERY
        if stale:
            path.unlink()


def repair_run(run_dir: Path, *, epoch: int, best_epoch: int) -> None:
    """Finish what a killed process left undone, as of the last checkpoint's `epoch` (0: none)."""
    if epoch:
        prune_checkpoints(run_dir, epoch=epoch, best_epoch=best_epoch)
    for unfinished in run_dir.glob(".*.tmp*"):
        unfinished.unlink()
    path = run_dir / "metrics.jsonl"
    if path.exists():
        kept = [record for record in read_epochs(run_dir) if record["epoch"] <= epoch]
        with atomic_write(path) as temporary:
            text = "".join(json.dumps(record) + "\n" for record in kept)
            temporary.write_text(text, encoding="utf-8", newline="\n")


# ----------------------------------------------------------------------------- resuming


def check_resumable(
    run_dir: Path,
    stored: Mapping[str, Any],
    *,
    settings: Mapping[str, Any] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    label_space: Mapping[str, list[str]] | None = None,
) -> None:
    """Refuse to continue a run with other settings or samples than it was started with.

    Args:
        run_dir: the run, for messages.
        stored: what describes the run (`read_run`, or a checkpoint).
        settings: flags by name, as JSON types; None: not known yet.
        fingerprints: of the splits, as in `stored`; None: not known yet.
        label_space: as in `stored`; None: not known yet.
    """
    for name, value in (settings or {}).items():
        before = stored["config"].get(name)
        if name not in MAY_CHANGE_ON_RESUME and value != before:
            raise UserError(
                f"--{name} {value} differs from {before}, which the run was started with:"
                f" {run_dir}. Leave it out, or start a new run"
            )
    splits = [k for k, v in (fingerprints or {}).items() if stored["fingerprints"].get(k) != v]
    if splits or label_space not in (None, stored["label_space"]):
        raise UserError(
            f"the samples of {' and '.join(splits) or 'the attributes file'} have changed since the"
            f" run was started: {run_dir}. Restore the CSV files, or start a new run"
        )


def warn_of_changes(stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Log how machine, versions and code differ from those that the run was started with."""
    before, now = ({**run["environment"], "commit": run["commit"]} for run in (stored, current))
    changes = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
    if changes:
        logger.warning(
            "the environment has changed since the run was started (%s): the weights will differ"
            " from those of an uninterrupted run",
            ", ".join(changes),
        )


def advise_on_damage(path: Path) -> str:
    """Return what to do if `path`, a run's last checkpoint, cannot be read."""
    found = sorted(list_checkpoints(path.parent).items())
    epoch = found[-1][0][0]
    these = [p.name for (number, _), p in found if number == epoch]
    earlier = [p.name for (number, _), p in found if number < epoch]
    then = f"resumes from {earlier[-1]}" if earlier else "restarts at epoch 1"
    return f"Move {' and '.join(these)} away; then --resume {then}"


@dataclass
class TrainingRun:
    """A run in progress: its folder, what describes it, and what it has learnt so far.

    folder: of the run.
    facts: `RUN_KEYS`, and `training` (`describe_training`).
    ema: moving average of the model's weights, which is then what is evaluated.
    epoch: the last finished one, counted from 1.
    best_epoch: the earliest with the highest `best_score`; 0: none was evaluated.
    """

    folder: Path
    facts: dict[str, Any]
    model: IGAENet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None
    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -1.0

    @property
    def evaluated_model(self) -> IGAENet:
        """The model that is evaluated: the moving average if there is one."""
        return self.ema.module if self.ema else self.model

    def update_ema(self) -> None:
        """Update the moving average, if there is one, after an optimiser step."""
        if self.ema:
            self.ema.update(self.model)

    def finish_epoch(self, epoch: int, score: float | None) -> None:
        """Count the epoch; `score` decides whether it is the best one (None: not evaluated)."""
        self.epoch = epoch
        if score is not None and score > self.best_score:
            self.best_epoch, self.best_score = epoch, score

    def save(self, record: Mapping[str, Any], temperature: Mapping[str, float]) -> None:
        """Write the epoch's checkpoint, then delete what it replaces.

        Args:
            record: the epoch's line of metrics.jsonl.
            temperature: task -> temperature; empty if val was not evaluated.
        """
        state = {
            **self.facts,
            "temperature": dict(temperature),
            "epoch": self.epoch,
            "best": {"epoch": self.best_epoch, "score": self.best_score},
            "metrics": dict(record),
            "model": self.evaluated_model.state_dict(),
            "trained": self.model.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.folder / f"checkpoint-{self.epoch:06d}.pth", state)
        prune_checkpoints(self.folder, epoch=self.epoch, best_epoch=self.best_epoch)

    def restore(self, *, is_main: bool) -> None:
        """Return to the folder's last checkpoint, or to the start if there is none.

        Args:
            is_main: whether this process checks the best checkpoint and repairs the folder.

        Raises:
            UserError: a checkpoint is damaged, or belongs to another run.
        """
        path = last_checkpoint(self.folder)
        if path:
            state = load_checkpoint(path, advice=advise_on_damage(path))
            data = {key: self.facts[key] for key in ("fingerprints", "label_space")}
            check_resumable(path, state, **data)
            self.evaluated_model.load_state_dict(state["model"])
            if self.ema:
                self.model.load_state_dict(state["trained"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.epoch = state["epoch"]
            self.best_epoch, self.best_score = state["best"]["epoch"], state["best"]["score"]
            best = list_checkpoints(self.folder).get((self.best_epoch, True))
            if best and is_main:
                advice = "Move it away; then --resume continues without it"
                load_checkpoint(best, mapped=True, advice=advice)
            logger.info("resuming after epoch %d from %s", self.epoch, path)
        if is_main:
            repair_run(self.folder, epoch=self.epoch, best_epoch=self.best_epoch)
