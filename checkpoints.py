"""A checkpoint's file: written whole or not at all, checked when it is read."""

from __future__ import annotations

from collections.abc import Sequence
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


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain Python values) to `path`, all of it or nothing."""
    with atomic_write(path) as temporary:
        try:
            torch.save({"format": CHECKPOINT_FORMAT, **state}, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise UserError(f"cannot write {path}; is the disk full? ({error})") from error


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
    path: Path, needs: Sequence[str] = (), *, mapped: bool = True
) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote, its tensors on the CPU.

    Args:
        path: the file.
        needs: keys that must be in it, besides the weights.
        mapped: read tensors when they are used, from the file, which stays open as long as they
            live; else at once.

    Raises:
        UserError: there is no such file, or it is no checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} {describe_absence(path)}")
    hint = "give a checkpoint-NNNNNN.pth that train.py wrote"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises a dozen types for foreign and truncated files
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); {hint}"
        ) from error
    if not isinstance(state, dict) or any(key not in state for key in ("model", "format", *needs)):
        raise UserError(
            f"{path} holds no IGAE-Net checkpoint (weights alone are not enough); {hint}"
        )
    if state["format"] != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has checkpoint format {state['format']}, this version reads"
            f" {CHECKPOINT_FORMAT}; use the version that wrote it"
        )
    return state
