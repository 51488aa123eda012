"""A checkpoint's file: written whole or not at all, checked when it is read."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from utils import UserError, atomic_write

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
