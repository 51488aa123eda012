"""The folder of a training run: made once, held by one process, its checkpoints kept in order."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from utils import UserError, atomic_write, lock_file

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


def lock_run(run_dir: Path) -> IO[str]:
    """Hold the run for this process; the system lets go when the process ends, however it does.

    Raises:
        UserError: another process trains in the folder.
    """
    try:
        return lock_file(run_dir / ".lock", wait=False)
    except OSError as error:
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
        from checkpoints import describe_checkpoint  # loads PyTorch, which takes long

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
