"""One-line errors, atomic files, locks, the machine, logging."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from utils import (
    UserError,
    append_line,
    atomic_write,
    lock_file,
    one_line_errors,
    setup_logging,
    total_memory,
    write_json,
)

# ----------------------------------------------------------------------------- errors


def run_main(error: BaseException | None) -> int:
    """Return what a decorated `main` returns if its body raises `error`."""

    @one_line_errors
    def main(argv: Sequence[str] | None = None) -> int:
        if error is not None:
            raise error
        return 7

    return main([])


def test_a_main_without_errors_keeps_its_exit_code() -> None:
    assert run_main(None) == 7


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.csv line 3: wrong"), 1, "error: a.csv line 3: wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            1,
            "error: the device is out of memory; lower --batch_size\n",
        ),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
            1,
            "error: the device is out of memory; lower --batch_size\n",
        ),
        (
            UserError(
                "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most"
                " recent call last):\n  File x, line 1\nutils.UserError: row 3: bad photo\n"
            ),
            1,
            "error: row 3: bad photo\n",
        ),
    ],
)
def test_expected_failures_are_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert run_main(error) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [ValueError("bug"), SystemExit(2), RuntimeError("bug")])
def test_bugs_keep_their_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_main(error)


@pytest.mark.parametrize("n_rows", [1, 100_000])  # less and more than a pipe's buffer
def test_a_reader_that_leaves_ends_the_script_quietly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, n_rows: int
) -> None:
    @one_line_errors
    def main(argv: Sequence[str] | None = None) -> int:
        for _ in range(n_rows):
            print("row")
        return 0

    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        code = main([])
        monkeypatch.undo()
    assert code == 1
    assert capsys.readouterr().err == ""


# ----------------------------------------------------------------------------- files


def test_atomic_write_makes_folders_and_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("text")
        assert not path.exists()
        assert temporary.suffix == path.suffix  # savers that go by the suffix
    assert [(entry.name, entry.read_text()) for entry in path.parent.iterdir()] == [
        ("a.txt", "text")
    ]


@pytest.mark.parametrize("error", [RuntimeError("half-way"), KeyboardInterrupt(), OSError("disk")])
def test_a_block_that_fails_leaves_the_former_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("former")
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), atomic_write(path) as temporary:  # noqa: PT012 - the block fails
        temporary.write_text("half")
        raise error
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [
        ("a.txt", "former")
    ]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(UserError, match="cannot write .*a.txt"), atomic_write(path):
        pass
    with pytest.raises(UserError, match="cannot write .*a.txt"):
        append_line(path, "line")


def test_write_json_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "Zoë", "loss": 0.5, "none": None})
    assert json.loads(path.read_bytes()) == {"name": "Zoë", "loss": 0.5, "none": None}
    assert path.read_bytes().endswith(b"}\n")
    assert b"\r" not in path.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("nan")])
def test_write_json_refuses_what_json_has_not(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"loss": 1})
    former = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": value})
    assert path.read_bytes() == former
    assert len(list(tmp_path.iterdir())) == 1


def test_append_line_adds_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_line(path, "one")
    append_line(path, "two")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork"
)
def test_a_lock_is_held_until_its_process_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def hold() -> None:
        with lock_file(path, wait=False):
            held.set()
            time.sleep(60)

    caplog.set_level(logging.INFO, "igae")
    path, context = tmp_path / ".lock", multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=hold)
    holder.start()
    assert held.wait(30)
    with pytest.raises((BlockingIOError, PermissionError)):
        lock_file(path, wait=False)
    assert caplog.records == []
    threading.Timer(0.3, holder.kill).start()
    with lock_file(path, wait=True):
        holder.join(30)
    assert [r.message for r in caplog.records] == [
        f"waiting for another process, which holds {path}"
    ]
    caplog.clear()
    lock_file(path, wait=True).close()  # free again
    assert caplog.records == []


@pytest.mark.parametrize("wait", [False, True])
def test_a_lock_that_cannot_be_had_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    def refuse(file: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with pytest.raises(FileNotFoundError):
        lock_file(tmp_path / "nowhere" / ".lock", wait=wait)
    monkeypatch.setattr(utils, "take_lock", refuse)
    with pytest.raises(OSError, match="No locks available"):
        lock_file(tmp_path / ".lock", wait=wait)


# ----------------------------------------------------------------------------- machine


def test_total_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert total_memory() == 0 or 2**28 < total_memory() < 2**50

    def unknown(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert total_memory() == 0


def test_git_commit_outside_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "utils.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert utils.git_commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert utils.git_commit() == "unknown"


def test_git_commit_tells_changed_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*command: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *who, *command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "utils.py"))
    (tmp_path / "utils.py").write_text("a = 1\n")
    git("init", "-q")
    git("add", "utils.py")
    git("commit", "-q", "-m", "first")
    git("tag", "v1")  # a tag's name is no commit
    commit = git("rev-parse", "HEAD")
    assert utils.git_commit() == commit
    (tmp_path / "utils.py").write_text("a = 2\n")
    assert utils.git_commit() == f"{commit}-dirty"


def test_progress_goes_to_stderr_and_the_log_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log_file = tmp_path / "train.log"
    log_file.write_text("former run\n")
    setup_logging()
    setup_logging(log_file)  # a second call replaces the first: no line twice
    logging.getLogger("igae").info("epoch %d", 1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("epoch 1") == 1
    former, line = log_file.read_text().splitlines()
    assert former == "former run"
    assert line == err.strip()
    assert line.endswith("INFO epoch 1")


def test_the_log_file_of_a_former_run_is_closed(tmp_path: Path) -> None:
    setup_logging(tmp_path / "former.log")
    _, former = logging.getLogger("igae").handlers
    assert isinstance(former, logging.FileHandler)
    setup_logging(tmp_path / "next.log")
    assert former.stream is None
    logging.getLogger("igae").info("epoch 1")
    assert (tmp_path / "former.log").read_text() == ""
