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
from types import NoneType
from typing import Any

import pandas as pd
import torch
from filelock import BaseFileLock, FileLock, Timeout
from timm.utils import ModelEmaV3

from data.splits import PROTOCOLS
from dataset_11k import TASKS, LabelSpace
from engine.losses import UNKNOWN
from engine.precision import AMP_DTYPES
from model import IGAENet
from utils import UserError, atomic_write, logger

CHECKPOINT_FORMAT = 1

TENSOR_KEYS = ("model", "trained", "optimizer")

KEEP_EVERY = 10  # epochs

LOCK_SECONDS = 10  # the data-loading workers of a killed run hold its lock for some seconds

# Settings that may change on --resume. The samples are identified by fingerprints, not by path.
MAY_CHANGE_ON_RESUME = (
    *("attributes_file", "cache", "cache_dir", "N_epochs", "device", "num_workers"),
    *("amp", "compile", "patience", "resume", "run_dir"),
)

# Types of what is read from config.json and checkpoints: a type, several, a dict of types by key,
# or a list with the type of its items.
RUN_TYPES: dict[str, Any] = {
    "config": {
        "protocol": str,
        "fold": (int, NoneType),
        "permute_labels": bool,
        "backbone": str,
        "image_size": int,
        "seed": int,
        "N_epochs": int,
    },
    "resolved": {"amp": str, "mean": [float], "std": [float], "decode_size": int},
    "label_space": dict,
    "aspect": str,
    "fingerprints": dict,
    "environment": dict,
    "commit": str,
}
CHECKPOINT_TYPES: dict[str, Any] = {
    **RUN_TYPES,
    "training": {"people": [str], "counts": dict, "mean_ages": list, "class_of_person": dict},
    "temperature": dict,
    "epoch": int,
    "best": {"epoch": int, "score": float},
    "metrics": dict,
    "model": dict,
    "optimizer": dict,
    "scaler": dict,
}


# ----------------------------------------------------------------------------- stored types


def check_types(value: Any, expected: Any, name: str) -> None:
    """Raise a ValueError that names the first part of `value` with another type than expected.

    Args:
        value: as read from a file.
        expected: see `RUN_TYPES`.
        name: of the value.
    """
    kind = type(expected) if isinstance(expected, (dict, list)) else expected
    is_bool_number = isinstance(value, bool) and kind in (int, float)
    if not isinstance(value, kind) or is_bool_number:
        raise ValueError(f"{name} is {str(value)[:40]!r}")
    if isinstance(expected, dict):
        for key, inner in expected.items():
            if key not in value:
                raise ValueError(f"no {key}" if not name else f"{name} has no {key}")
            check_types(value[key], inner, f"{name}.{key}" if name else key)
    if isinstance(expected, list):
        for item in value:
            check_types(item, expected[0], f"{name}[]")


def check_run(stored: Any, expected: Mapping[str, Any]) -> None:
    """Raise a ValueError unless `stored` describes a run: types, classes, sizes.

    Args:
        stored: content of config.json or of a checkpoint.
        expected: `RUN_TYPES` or `CHECKPOINT_TYPES`.
    """
    check_types(stored, expected, "")
    space, resolved = stored["label_space"], stored["resolved"]
    if not space or not set(space) <= set(TASKS):
        found = ", ".join(map(str, space)) or "no task"
        raise ValueError(f"label_space has {found}, expected tasks of {', '.join(TASKS)}")
    check_types(space, dict.fromkeys(space, [str]), "label_space")
    if not all(space.values()):
        raise ValueError("label_space has a task without classes")
    if stored["config"]["protocol"] not in PROTOCOLS:
        raise ValueError(f"config.protocol is {stored['config']['protocol']!r}")
    if resolved["amp"] not in AMP_DTYPES:
        raise ValueError(f"resolved.amp is {resolved['amp']!r}")
    if len(resolved["mean"]) != 3 or len(resolved["std"]) != 3 or not all(resolved["std"]):
        raise ValueError("resolved.mean and resolved.std are not three numbers each")
    check_types(stored["fingerprints"], dict.fromkeys(("train", "val"), str), "fingerprints")
    if "training" not in stored:
        return
    training, classes = stored["training"], {task: len(names) for task, names in space.items()}
    check_types(training["counts"], dict.fromkeys(space, [int]), "training.counts")
    check_types(training["mean_ages"], [(float, int, NoneType)], "training.mean_ages")
    sizes = {task: len(training["counts"][task]) for task in space}
    years = [len(training["mean_ages"])] * any(TASKS[task].in_years for task in space)
    expected_years = [n for task, n in classes.items() if TASKS[task].in_years]
    if sizes != classes or years != expected_years:
        raise ValueError("training does not fit label_space")
    for task, index in training["class_of_person"].items():
        check_types(index, [int], f"training.class_of_person.{task}")
        if len(index) != classes.get("identity") or task not in space:
            raise ValueError("training.class_of_person does not fit label_space")
        if not all(UNKNOWN <= i < classes[task] for i in index):
            raise ValueError("training.class_of_person has an unknown class")
    temperatures = stored.get("temperature", {}).values()
    if not all(isinstance(t, float) and 0 < t < math.inf for t in temperatures):
        raise ValueError("temperature is not a positive number")


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
    if verify:
        verify_archive(path, advice)
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
    try:
        check_run(state, CHECKPOINT_TYPES)
    except ValueError as error:
        raise UserError(f"not a checkpoint of train.py ({error}): {path}. {advice}") from error
    return state


def verify_archive(path: Path, advice: str) -> None:
    """Refuse a file whose bytes have changed, or that unpacks to more than its size.

    torch.load would not notice the former. It stores tensors uncompressed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > path.stat().st_size:
                raise ValueError(f"{unpacked:,} bytes unpacked")
            if archive.testzip() is not None:
                raise ValueError("wrong checksum")
    except PermissionError:
        raise
    except Exception as error:  # zipfile raises half a dozen types for damaged files
        raise UserError(f"damaged checkpoint ({error}): {path}. {advice}") from error


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


def is_unused(folder: Path) -> bool:
    """Return whether a run may start in `folder`: nothing in it but what a killed start leaves."""
    leftovers = re.compile(r"\.lock|train\.log|\..*\.tmp.*")
    return not folder.is_dir() or all(leftovers.fullmatch(p.name) for p in folder.iterdir())


def check_unused(folder: Path) -> None:
    """Refuse a folder for a new run that is in use."""
    if not is_unused(folder):
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
    """Return what describes a run (`RUN_TYPES`): its config.json, or a checkpoint's copy of it.

    Args:
        run_dir: the run's folder, or a checkpoint of the run.

    Raises:
        UserError: the folder holds no run, or the file is no checkpoint.
    """
    if run_dir.suffix == ".pth":
        return describe_checkpoint(run_dir)
    try:
        stored = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        check_run(stored, RUN_TYPES)
        return stored
    except (OSError, ValueError) as error:
        last = last_checkpoint(run_dir)
        raise UserError(
            f"cannot read config.json ({error}): {run_dir}. Give a folder that train.py made"
            + (f", or its checkpoint {last}" if last else "")
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
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
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


def is_last_epoch(epoch: int, best_epoch: int, config: Mapping[str, Any]) -> bool:
    """Return whether training ends after `epoch`, counted from 1.

    Args:
        epoch: the last finished one.
        best_epoch: the one with the best score so far; 0: none was evaluated.
        config: flags of the run; earlier versions have no patience.
    """
    n_since_best = epoch // config["eval_every"] - best_epoch // config["eval_every"]
    patience = config.get("patience")
    return epoch >= config["N_epochs"] or (patience is not None and n_since_best >= patience)


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
            f" run was started: {run_dir}. Restore the CSV files, give all files of"
            " --attributes_file in the same order, or start a new run"
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
    facts: `RUN_TYPES`, and `training` (`describe_training`).
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
            try:
                self.evaluated_model.load_state_dict(state["model"])
                if self.ema:
                    self.model.load_state_dict(state["trained"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.scaler.load_state_dict(state["scaler"])
            except Exception as error:  # PyTorch raises as many types as states can be wrong
                reason = " ".join(str(error).split())[:160]
                raise UserError(
                    f"checkpoint does not fit the run ({reason}): {path}. {advise_on_damage(path)}"
                ) from error
            self.epoch = state["epoch"]
            self.best_epoch, self.best_score = state["best"]["epoch"], state["best"]["score"]
            best = list_checkpoints(self.folder).get((self.best_epoch, True))
            if best and is_main:
                advice = "Move it away; then --resume continues without it"
                load_checkpoint(best, mapped=True, advice=advice)
            logger.info("resuming after epoch %d from %s", self.epoch, path)
        if is_main:
            repair_run(self.folder, epoch=self.epoch, best_epoch=self.best_epoch)
