"""Several processes that train together: as one would, whoever falls out, in both directions."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from engine.distributed import Ranks, check_restarts, has_lost_a_rank, join_ranks
from utils import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def command(root: Path, run_dir: Path, n_ranks: int, *flags: str) -> list[str]:
    """Return the command that trains a tiny transformer for 4 epochs of batches of 8 and 4."""
    program = [sys.executable]
    if n_ranks > 1:
        program += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_ranks}"]
    attributes = root / "sub_dataset" / "dorsal_dr.csv"
    tiny = "--backbone test_vit --no-pretrained --image_size 32 --drop_path 0 --amp off"
    tiny += " --device cpu --num_workers 0 --batch_size 8 --N_epochs 4 --eval_every 2 --ema 0.9"
    train = [str(REPOSITORY / "train.py"), "--attributes_file", str(attributes), *tiny.split()]
    return [*program, *train, "--run_dir", str(run_dir), *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, env=environment(), timeout=300, check=False
    )


def resume(run_dir: Path, n_ranks: int, n_epochs: int) -> subprocess.CompletedProcess[str]:
    whole = command(run_dir, run_dir, n_ranks)
    start = whole.index(str(REPOSITORY / "train.py")) + 1
    return run([*whole[:start], "--resume", str(run_dir), "--N_epochs", str(n_epochs)])


def curve(run_dir: Path) -> list[dict[str, Any]]:
    """Return the epochs' records, without the seconds."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_same_curve(one: Path, other: Path) -> None:
    """Losses within float tolerance; scores of the same photos."""
    assert len(curve(one)) == len(curve(other))
    for mine, theirs in zip(curve(one), curve(other), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_one_process_alone_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.delenv(name, raising=False)
    ranks = join_ranks(CPU)
    assert ranks == Ranks(0, 1, CPU)
    assert ranks.is_first
    assert ranks.share(lambda: 7) == 7
    assert ranks.gather("x") == ["x"]
    model = torch.nn.Linear(2, 2)
    assert ranks.together(model) is model
    assert not train.may_be_restarted()


def test_two_processes_learn_what_one_learns(split_root: Path, tmp_path: Path) -> None:
    """Of 12 val photos in batches of 4, and of a last training batch of 4, each has a part."""
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    assert run(command(split_root, alone, 1)).returncode == 0
    done = run(command(split_root, pair, 2))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1  # the first process alone prints
    assert done.stderr.count("epoch 4/4") == 1
    assert_same_curve(alone, pair)
    one, other = (
        torch.load(folder / "checkpoint-000004.pth", weights_only=True) for folder in (alone, pair)
    )
    for key in ("model", "trained"):
        for name, tensor in one[key].items():
            torch.testing.assert_close(tensor, other[key][name], atol=2e-4, rtol=1e-3)
    assert sorted(path.name for path in pair.iterdir()) == sorted(
        path.name for path in alone.iterdir()
    )


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on(
    before: int, after: int, split_root: Path, tmp_path: Path
) -> None:
    for folder, first, then in ((tmp_path / "one", 1, 1), (tmp_path / "two", before, after)):
        assert run(command(split_root, folder, first, "--N_epochs", "2")).returncode == 0
        done = resume(folder, then, 4)
        assert done.returncode == 0, done.stderr
        assert ("resumed elsewhere than begun" in done.stderr) == (first != then)
    assert_same_curve(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_killed_process_ends_the_other(split_root: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        command(split_root, tmp_path / "killed", 2, "--N_epochs", "40"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        kill_one_child(process.pid, tmp_path / "killed")
        start = time.monotonic()
        process.communicate(timeout=200)
    assert process.returncode != 0
    assert time.monotonic() - start < 30


def test_a_process_that_is_started_again_goes_on(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun gives it the same flags, and says that it may not be the first time."""
    assert run(command(split_root, tmp_path / "run", 1, "--N_epochs", "2")).returncode == 0
    longer = command(split_root, tmp_path / "run", 1, "--N_epochs", "3")
    assert "is in use" in run(longer).stderr
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    assert run(longer).returncode == 0
    assert [line["epoch"] for line in curve(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.slow
def test_torchrun_starts_again_what_was_killed(split_root: Path, tmp_path: Path) -> None:
    folder, alone = tmp_path / "killed", tmp_path / "alone"
    whole = command(split_root, folder, 2, "--N_epochs", "30")
    whole.insert(whole.index("--standalone"), "--max-restarts=2")
    with subprocess.Popen(
        whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(), text=True
    ) as process:
        kill_one_child(process.pid, folder)
        said = process.communicate(timeout=280)[1]
    assert process.returncode == 0, said
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert log.count("a checkpoint takes about") == 2  # started twice
    assert run(command(split_root, alone, 1, "--N_epochs", "30")).returncode == 0
    assert_same_curve(alone, folder)


@pytest.mark.slow
def test_torchrun_of_two_machines_starts_again_what_was_killed_on_one(
    split_root: Path, tmp_path: Path
) -> None:
    """Two torchruns that meet as those of two machines would, on this one."""
    folder, alone = tmp_path / "killed", tmp_path / "alone"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whole = command(split_root, folder, 2, "--N_epochs", "30")
    place = whole.index("--standalone")
    whole[place : place + 2] = ["--nnodes=2", "--nproc_per_node=1", "--max-restarts=2"]
    meet = ["--rdzv_backend=c10d", "--rdzv_id=7", f"--rdzv_endpoint=127.0.0.1:{port}"]
    whole[place:place] = meet
    apart = {**environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    with contextlib.ExitStack() as stack:
        both = []
        for path in logs:
            log = stack.enter_context(path.open("w", encoding="utf-8"))
            both.append(subprocess.Popen(whole, stdout=log, stderr=log, env=apart))
            stack.callback(both[-1].kill)
        kill_one_child(both[1].pid, folder)
        codes = [process.wait(timeout=280) for process in both]
    assert codes == [0, 0], "".join(path.read_text(encoding="utf-8") for path in logs)
    told = (folder / "train.log").read_text(encoding="utf-8")
    assert told.count("a checkpoint takes about") == 2  # started twice
    assert run(command(split_root, alone, 1, "--N_epochs", "30")).returncode == 0
    assert_same_curve(alone, folder)


def test_restarts_on_several_machines_ask_for_a_store_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    check_restarts()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        check_restarts()
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    check_restarts()


def kill_one_child(parent: int, run_dir: Path) -> None:
    """Kill -9 a process that torchrun started, once the run has done an epoch."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(run_dir.glob("checkpoint-*.pth")):
            found = subprocess.run(
                ["pgrep", "-P", str(parent)], capture_output=True, text=True, check=True
            )
            os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError("the run has not begun")


def test_an_error_that_says_that_a_rank_is_gone() -> None:
    """Which of torchrun's signal and this error ends the other process is a matter of time."""
    assert has_lost_a_rank(RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection reset"))
    assert not has_lost_a_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_batch_that_cannot_be_divided_is_refused(split_root: Path, tmp_path: Path) -> None:
    done = run(command(split_root, tmp_path / "run", 2, "--batch_size", "7"))
    assert done.returncode != 0
    assert re.search(r"error: --batch_size 7 cannot be divided among 2 processes", done.stderr)
    assert "Traceback" not in done.stderr.split("torch/distributed")[0]
