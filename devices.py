"""Where a script computes: its device, determinism, seeds, and what else a result depends on."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import sys
from importlib.metadata import version

import numpy as np
import torch

from utils import UserError

# Parameters of glibc's mallopt (malloc.h, mallopt(3)).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is cuda, then mps, then cpu."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, usable in available.items() if usable)
    if not available[name]:
        usable = ", ".join(device for device, there in available.items() if there)
        raise UserError(f"--device {name}: PyTorch finds no such device here; usable: {usable}")
    return torch.device(name)


def prepare_determinism(device: torch.device, deterministic: bool) -> None:
    """Ask for deterministic algorithms: always on the CPU, elsewhere where `deterministic`.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if device.type == "cpu" or deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Else every torch.empty is filled first, some 3 % of a step. Nothing here reads what it has
        # not written; the filling would only make such a bug show the same number each time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic


def keep_freed_memory(device: torch.device) -> None:
    """Let tensors of the CPU reuse freed memory, in this process from now on.

    glibc else hands blocks over 32 MB back to the system when they are freed, and every page of the
    next one is cleared and costs a fault. With the memory kept, Swin-T trained 1.12 to 1.25 and was
    evaluated 1.2 times as fast, ResNet50 1.02 to 1.03 and 1.12 to 1.14 times (2 cores of an AMD
    EPYC, batch 20, 224 pixels, bf16, two pairs each); peaks of memory changed by -1 to 6 %. Without
    glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if device.type == "cpu" and mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # every block comes from the heap,
        mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks


def seed_everything(*numbers: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators (every device) from `numbers`."""
    state = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


def describe_environment(device: torch.device) -> dict[str, str | int]:
    """Return what a result depends on besides code, data and seed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow")
    return {
        "device": device.type,
        "device_name": name,
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
