"""Devices, determinism, seeds."""

from __future__ import annotations

import ctypes
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils import (
    UserError,
    describe_environment,
    resolve_device,
    seed_everything,
    set_determinism,
)


@pytest.mark.parametrize(
    ("cuda", "mps", "name", "expected"),
    [
        (True, True, "auto", "cuda"),
        (False, True, "auto", "mps"),
        (False, False, "auto", "cpu"),
        (True, True, "cpu", "cpu"),
        (True, True, "mps", "mps"),
    ],
)
def test_resolve_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, name: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device(name) == torch.device(expected)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device cuda: .*usable: cpu$"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("device", "asked", "deterministic"),
    [("cpu", False, True), ("cpu", True, True), ("cuda", False, False), ("cuda", True, True)],
)
def test_determinism_is_always_on_for_the_cpu(
    device: str, asked: bool, deterministic: bool
) -> None:
    torch.use_deterministic_algorithms(False)
    set_determinism(torch.device(device), asked)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    filler: Any = torch.utils.deterministic
    assert filler.fill_uninitialized_memory != deterministic
    assert torch.backends.cudnn.benchmark == (not asked)


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seed_everything_seeds_every_generator() -> None:
    seed_everything(1, 2)
    first = drawn()
    second = drawn()
    seed_everything(1, 2)
    assert drawn() == first
    assert all(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("numbers", [(1, 3), (2, 1), (1,), (12,)])
def test_other_numbers_give_other_draws(numbers: tuple[int, ...]) -> None:
    seed_everything(1, 2)
    first = drawn()
    seed_everything(*numbers)
    assert all(a != b for a, b in zip(first, drawn(), strict=True))


def test_describe_environment_can_go_into_a_checkpoint() -> None:
    found = describe_environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert json.loads(json.dumps(found)) == found
    assert {type(value) for value in found.values()} <= {str, int}


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="glibc alone has mallopt",
)
@pytest.mark.parametrize("kept", [False, True])
def test_freed_memory_is_kept_where_asked(kept: bool) -> None:
    code = "import os, torch; from devices import keep_freed_memory\n"
    code += "keep_freed_memory(torch.device('cpu'))\n" if kept else ""
    code += "page = os.sysconf('SC_PAGE_SIZE') / 1e6\n"
    code += "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * page\n"
    code += "before = resident(); held = torch.ones(50_000_000); del held\n"
    code += "print(resident() - before)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert (float(ended.stdout) > 150) == kept  # it was 200 MB
