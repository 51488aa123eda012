"""Two ranks learn what one process learns; a rank that ends; the same command again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import read_epochs
from engine.distributed import Distributed, explain_lost_rank, init_distributed
from utils import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "train.py"
CPU = torch.device("cpu")


def command(root: Path, run_dir: Path, world_size: int, *flags: str) -> list[str]:
    """Return the command that trains a tiny transformer for 4 epochs of batches of 8 and 4."""
    program = [sys.executable]
    if world_size > 1:
        program += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    tiny = "--backbone test_vit --no-pretrained --image_size 32 --drop_path 0 --amp off"
    tiny += " --device cpu --num_workers 0 --batch_size 8 --N_epochs 4 --eval_every 2 --ema 0.9"
    attributes = ["--attributes_file", str(root / "sub_dataset" / "dorsal_dr.csv")]
    return [*program, str(SCRIPT), *attributes, *tiny.split(), "--run_dir", str(run_dir), *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, env=environment(), timeout=300, check=False
    )


def curve(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_epochs(run_dir)]


def assert_same_curve(one: Path, other: Path) -> None:
    """Losses within float tolerance; scores of the same photos."""
    for mine, theirs in zip(curve(one), curve(other), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_one_process_alone_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = init_distributed(CPU)
    assert alone == Distributed(0, 1, CPU)
    assert alone.is_main
    assert alone.broadcast_object(lambda: 7) == 7
    assert alone.all_gather("x") == ["x"]
    model = torch.nn.Linear(2, 2)
    assert alone.wrap(model) is model


@pytest.mark.parametrize("flags", ["", "--fit first_last --multi_level --neck 8"])
def test_two_ranks_learn_what_one_process_learns_and_resume(
    flags: str, split_root: Path, tmp_path: Path
) -> None:
    """Of 12 val photos in batches of 4, and of a last training batch of 4, each has a part."""
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    assert run(command(split_root, alone, 1, *flags.split())).returncode == 0
    done = run(command(split_root, pair, 2, *flags.split()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1  # the main rank alone prints
    assert done.stderr.count("epoch 4/4") == 1
    assert_same_curve(alone, pair)
    one, other = (
        torch.load(folder / "checkpoint-000004.pth", weights_only=True) for folder in (alone, pair)
    )
    for key in ("model", "trained"):
        for name, tensor in one[key].items():
            torch.testing.assert_close(tensor, other[key][name], atol=2e-4, rtol=1e-3)
    longer = run(command(split_root, pair, 2, "--N_epochs", "5"))  # the same command again
    assert "resuming after epoch 4" in longer.stderr
    assert [line["epoch"] for line in read_epochs(pair)] == [1, 2, 3, 4, 5]
    assert "--run_dir is in use" in run(command(split_root, alone, 1)).stderr


def test_a_left_over_photo_per_rank_joins_the_batch_before(
    split_root: Path, tmp_path: Path
) -> None:
    """Batch norm over a 1x1 map cannot train on one photo: of 12 photos, 10 are in a batch."""
    flags = ("--backbone", "resnet10t", "--batch_size", "10", "--N_epochs", "1")
    done = run(command(split_root, tmp_path / "run", 2, *flags))
    assert done.returncode == 0, done.stderr


def test_a_batch_that_cannot_be_divided(split_root: Path, tmp_path: Path) -> None:
    done = run(command(split_root, tmp_path / "run", 2, "--batch_size", "7"))
    assert "error: --batch_size 7 cannot be divided by 2 ranks" in done.stderr
    assert not (tmp_path / "run").exists()


def kill_one_rank(torchrun: int, run_dir: Path) -> None:
    """Kill one of torchrun's processes once an epoch is written."""
    deadline = time.monotonic() + 200
    while not list(run_dir.glob("checkpoint-*.pth")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True)
    found = re.findall(rf"^ *(\d+) +{torchrun} .*train\.py", listed.stdout, re.MULTILINE)
    os.kill(int(found[-1]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("n_restarts", [0, 2])
def test_a_killed_rank_ends_the_run_unless_torchrun_restarts_it(
    n_restarts: int, split_root: Path, tmp_path: Path
) -> None:
    folder, alone = tmp_path / "killed", tmp_path / "alone"
    whole = command(split_root, folder, 2, "--N_epochs", "30")
    whole.insert(whole.index("--standalone"), f"--max-restarts={n_restarts}")
    with subprocess.Popen(whole, stderr=subprocess.PIPE, env=environment(), text=True) as process:
        kill_one_rank(process.pid, folder)
        output = process.communicate(timeout=280)[1]
    assert (process.returncode == 0) == (n_restarts > 0), output
    if n_restarts:
        assert run(command(split_root, alone, 1, "--N_epochs", "30")).returncode == 0
        assert_same_curve(alone, folder)


@pytest.mark.parametrize(
    ("world_size", "raised", "expected"),
    [
        (2, RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed"), UserError),
        (2, RuntimeError("shapes cannot be multiplied"), RuntimeError),
        (1, RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed"), RuntimeError),
    ],
)
def test_a_lost_rank_is_one_line(
    world_size: int, raised: RuntimeError, expected: type[Exception]
) -> None:
    with pytest.raises(expected), explain_lost_rank(Distributed(0, world_size, CPU)):
        raise raised


def test_ranks_that_cannot_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)  # and no MASTER_ADDR
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="rank 1 of 2 cannot join the others .*torchrun"):
        init_distributed(CPU)
