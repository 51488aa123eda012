"""The folder of a training run: made once, held by one process, its checkpoints kept in order."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import BaseFileLock, FileLock, Timeout

from utils import UserError, atomic_write, logger

if TYPE_CHECKING:
    pass

# What a run may go on with otherwise than it began. The data's place is among it, as its rows are
# known by their fingerprints.
FREE_ON_RESUME = (
    *("attributes_file", "cache", "cache_dir", "N_epochs", "device", "num_workers"),
    *("resume", "run_dir"),
)


def config_of_run(
    given: Mapping[str, Any], stored: Mapping[str, Any], config_class: type
) -> dict[str, Any]:
    """Return the values of a resumed run's configuration; flags given must agree with it."""
    for name, value in given.items():
        plain = list(value) if isinstance(value, (list, tuple)) else value
        plain = str(plain) if isinstance(plain, Path) else plain
        if name not in FREE_ON_RESUME and plain != stored.get(name):
            raise UserError(
                f"--{name} {plain} differs from the run's {stored.get(name)}; leave it out, or"
                " start a new run"
            )
    hints = {field.name: field.type for field in dataclasses.fields(config_class)}
    unknown = stored.keys() - hints.keys()
    if unknown:
        raise UserError(
            f"the run's configuration has {', '.join(sorted(unknown))}, unknown to this version;"
            " go on with the version that began it"
        )
    values = {
        name: Path(value) if value is not None and "Path" in str(hints[name]) else value
        for name, value in stored.items()
    }
    return {**values, **{k: v for k, v in given.items() if k in FREE_ON_RESUME}}


CHECKPOINT_FORMAT = 1

# What train.py puts into a checkpoint besides weights, and test.py and predict.py read.
CHECKPOINT_KEYS = (
    *("config", "resolved", "label_space", "aspect", "fingerprints"),
    *("epoch", "best", "metrics", "optimizer", "scaler"),
)

TENSORS = ("model", "trained", "optimizer")  # keys of what takes the room of a checkpoint


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain Python values) to `path`, all of it or nothing."""
    with atomic_write(path) as temporary:
        try:
            torch.save({"format": CHECKPOINT_FORMAT, **state}, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise UserError(
                f"cannot write {path}; is the disk full? Free some room, then go on with --resume"
                f" ({error})"
            ) from error


def describe_absence(path: Path) -> str:
    """Return why `path` is no checkpoint's file, and which are near."""
    folder = path if path.is_dir() else path.parent
    reason = "is a folder" if path.is_dir() else "not found"
    there = sorted(folder.glob("checkpoint-*.pth"))
    best = [near for near in there if near.stem.endswith("-best")]
    if path.is_dir() and best:
        return f"{reason}; give {best[0]}"
    if there:
        return f"{reason}; {folder} holds {', '.join(near.name for near in there)}"
    return f"{reason}; train.py writes them to checkpoints/<run>/"


def load_checkpoint(
    path: Path,
    needs: Sequence[str] = (),
    *,
    mapped: bool = False,
    whole: bool = True,
    what_next: str = "give a checkpoint-NNNNNN.pth that train.py wrote",
) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote, its tensors on the CPU.

    Args:
        path: the file.
        needs: keys that must be in it, besides the weights.
        mapped: leave the tensors in the file, which must not be rewritten in place while one of
            them lives (to replace it is safe); else read them at once.
        whole: compare every byte with the file's checksums.
        what_next: the end of the message if the file cannot be read.

    Raises:
        UserError: there is no such file, or it is no checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} {describe_absence(path)}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except PermissionError:
        raise
    except Exception as error:  # torch raises a dozen types for foreign and truncated files
        if "can't allocate memory" in str(error):
            raise
        if mapped:  # not every file system maps files
            return load_checkpoint(path, needs, whole=whole, what_next=what_next)
        reason = error if isinstance(error, OSError) else type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint ({reason}); {what_next}") from error
    asked = ("model", "format", *needs)
    if not isinstance(state, dict) or any(state.get(key) is None for key in asked):
        raise UserError(
            f"{path} holds no IGAE-Net checkpoint (weights alone are not enough); {what_next}"
        )
    if state["format"] != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has checkpoint format {state['format']}, this version reads"
            f" {CHECKPOINT_FORMAT}; use the version that wrote it"
        )
    if whole:
        check_sums(path, what_next)
    return state


def check_sums(path: Path, what_next: str) -> None:
    """Refuse a checkpoint whose bytes are not those that were written, which PyTorch reads on."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path} is damaged: its bytes are not those written; {what_next}")


def without_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's state but for weights and moments, which may go then."""
    return {key: value for key, value in state.items() if key not in TENSORS}


def describe_checkpoint(path: Path, **options: Any) -> dict[str, Any]:
    """Return what a checkpoint says of itself, reading none of its tensors.

    Args:
        path: the file.
        options: of `load_checkpoint`.

    Raises:
        UserError: as `load_checkpoint`, for a checkpoint of train.py.
    """
    return without_tensors(
        load_checkpoint(path, CHECKPOINT_KEYS, mapped=True, whole=False, **options)
    )


PIN_EVERY = 10  # epochs; the checkpoints of these stay

RUN_KEYS = {"config", "resolved", "label_space", "fingerprints"}  # of config.json


def check_unused(folder: Path) -> None:
    """Refuse a folder for a new run that holds something already."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"--run_dir {folder} is in use; give a new folder, or --resume {folder} to go on"
        )


def make_run_dir(asked: Path | None) -> Path:
    """Make the run's folder: the one asked for, or one named after the time.

    Raises:
        UserError: the folder asked for holds something already.
    """
    try:
        if asked is not None:
            asked.mkdir(parents=True, exist_ok=True)
            check_unused(asked)
            return asked
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for n in range(1, 1000):
            folder = Path("checkpoints") / (stamp if n == 1 else f"{stamp}-{n}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise UserError(f"cannot make the run's folder: {error}; see --run_dir") from error
    raise UserError(f"checkpoints/{stamp} to -999 are all taken; give --run_dir")


LOCK_SECONDS = 10  # a killed run's data-loading workers hold its lock for some seconds


def lock_run(run_dir: Path) -> BaseFileLock:
    """Hold the run for this process; the system lets go when the process ends, however it does.

    Raises:
        UserError: another process trains in the folder.
    """
    try:
        lock = FileLock(run_dir / ".lock", timeout=LOCK_SECONDS)
        lock.acquire()
        return lock
    except (OSError, Timeout) as error:
        raise UserError(f"another process trains in {run_dir}; wait for it, or stop it") from error


def checkpoints_of(run_dir: Path) -> dict[tuple[int, bool], Path]:
    """Return the run's checkpoints by (epoch, whether it is a `-best` file)."""
    found = {}
    for path in run_dir.glob("checkpoint-*.pth"):
        match = re.fullmatch(r"checkpoint-(\d{6,})(-best)?\.pth", path.name)
        if match:
            found[int(match[1]), bool(match[2])] = path
    return found


def tidy_checkpoints(run_dir: Path, *, epoch: int, best_epoch: int) -> None:
    """Leave of the checkpoints those that stay, once there is a `-best`.

    Kept: the checkpoint of `epoch`, those of every tenth epoch, and one `-best`.
    """
    found = checkpoints_of(run_dir)
    if (best_epoch, True) not in found and (best_epoch, False) in found:
        source = found[best_epoch, False]
        best = source.with_name(f"{source.stem}-best.pth")
        with atomic_write(best) as unfinished:
            try:
                os.link(source, unfinished)
            except OSError:  # file systems without hard links
                shutil.copyfile(source, unfinished)
    for (number, is_best), path in found.items():
        stale = number != best_epoch if is_best else number != epoch and number % PIN_EVERY
        if stale:
            path.unlink()


def last_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint of the latest epoch."""
    found = checkpoints_of(run_dir)
    return found[max(found)] if found else None


def what_if_damaged(path: Path) -> str:
    """Return what to do about a run's last checkpoint, `path`, where it cannot be read."""
    found = checkpoints_of(path.parent)
    epoch = max(number for number, _ in found)
    these = [p.name for (number, _), p in sorted(found.items()) if number == epoch]
    before = [p.name for (number, _), p in sorted(found.items()) if number < epoch]
    then = f"goes on from {before[-1]}" if before else "begins at epoch 1, as there is no other"
    return f"move {' and '.join(these)} away, and --resume {then}"


def tidy_run(run_dir: Path, *, epoch: int, best_epoch: int) -> None:
    """Bring the folder to what its last checkpoint says, whatever a kill left undone."""
    if epoch:
        tidy_checkpoints(run_dir, epoch=epoch, best_epoch=best_epoch)
    for unfinished in run_dir.glob(".*.tmp*"):
        unfinished.unlink()
    cut_metrics(run_dir / "metrics.jsonl", epoch)


def read_run(run_dir: Path) -> dict[str, Any]:
    """Return what describes a run: its folder's config.json, or a checkpoint's copy of that.

    Raises:
        UserError: the folder holds no run, or the file no checkpoint.
    """
    if run_dir.is_file():
        return describe_checkpoint(run_dir)
    path = run_dir / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or not stored.keys() >= RUN_KEYS:
            raise ValueError("it describes no run")
        return stored
    except (OSError, ValueError) as error:
        raise UserError(
            f"--resume {run_dir}: {path} cannot be read ({error}); give a folder that train.py made"
        ) from error


def cut_metrics(path: Path, last_epoch: int) -> None:
    """Drop the lines of metrics.jsonl after `last_epoch`, or that a kill left unfinished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record["epoch"] <= last_epoch:
            kept.append(line + "\n")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8", newline="\n")


def announce_changes(stored: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Log what differs from the machine and code the run began with: it ends a little otherwise."""
    before = {**stored.get("environment", {}), "commit": stored.get("commit")}
    now = {**facts["environment"], "commit": facts["commit"]}
    changes = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
    if changes:
        logger.warning(
            "resumed elsewhere than begun (%s): the weights will not equal an uninterrupted run's",
            ", ".join(changes),
        )


def check_resumable(stored: Mapping[str, Any], facts: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other rows than the run began with."""
    changed = [k for k, v in facts["fingerprints"].items() if stored["fingerprints"][k] != v]
    if changed or stored["label_space"] != facts["label_space"]:
        raise UserError(
            f"--resume {folder}: the rows of {' and '.join(changed) or 'the attributes file'} have"
            " changed since the run began; restore them, or start a new run"
        )
