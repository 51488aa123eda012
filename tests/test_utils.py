"""One-line errors, atomic files, logging, flags, devices, determinism, seeds."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import utils
from utils import (
    REQUIRED,
    UserError,
    append_line,
    atomic_write,
    build_config,
    build_parser,
    config_to_json,
    describe_environment,
    flag,
    one_line_errors,
    resolve_device,
    seed_everything,
    set_determinism,
    setup_logging,
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
            "error: the device is out of memory. Lower --batch_size\n",
        ),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
            1,
            "error: the device is out of memory. Lower --batch_size\n",
        ),
        (
            UserError("photo \x1b[31m\nname: not found"),
            1,
            "error: photo \\x1b[31m\\nname: not found\n",
        ),
        (
            UserError(
                "Caught OtherError in DataLoader worker process 0.\nOriginal Traceback (most"
                " recent call last):\n  File x, line 1\nutils.OtherError: row 3: bad photo\n"
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


def test_a_killed_worker_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")) == 1
    expected = "error: DataLoader worker (pid 7) is killed by signal: Killed. If memory ran out, "
    assert capsys.readouterr().err == f"{expected}lower --num_workers\n"


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
    with pytest.raises(UserError, match="a file, not a folder: .*file. Ch"), atomic_write(path):
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


# ----------------------------------------------------------------------------- machine


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


def test_log_lines_escape_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    logging.getLogger("igae").warning("first: %s", "a\x1b[31m\nb.jpg")
    assert capsys.readouterr().err.endswith("WARNING first: a\\x1b[31m\\nb.jpg\n")


def test_the_log_file_of_a_former_run_is_closed(tmp_path: Path) -> None:
    setup_logging(tmp_path / "former.log")
    _, former = logging.getLogger("igae").handlers
    assert isinstance(former, logging.FileHandler)
    setup_logging(tmp_path / "next.log")
    assert former.stream is None
    logging.getLogger("igae").info("epoch 1")
    assert (tmp_path / "former.log").read_text() == ""


# ----------------------------------------------------------------------------- flags


@dataclass(frozen=True)
class ExampleConfig:
    """A config with a flag of every kind."""

    data: Path = flag(Path("here.csv"), "a path")
    weights: Path | None = flag(None, "an optional path")
    epochs: int = flag(50, "a whole number")
    lr: float = flag(8e-4, "a number")
    device: str = flag("auto", "one of a few", choices=("auto", "cpu"))
    output: Path = flag(Path("out"), "a folder", metavar="DIR")
    crop: tuple[int, ...] = flag((1, 2), "two numbers", nargs=2)
    warmup: bool = flag(True, "a switch that is on")
    resume: bool = flag(False, "a switch that is off")
    derived: int = 3

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"--epochs {self.epochs}: expected at least 1")


def parse(*argv: str) -> ExampleConfig:
    parser = build_parser(ExampleConfig, "An example.")
    return build_config(parser, ExampleConfig, vars(parser.parse_args(argv)))


def test_no_flags_give_the_defaults() -> None:
    assert parse() == ExampleConfig()


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--data", "x/y.csv"], "data", Path("x/y.csv")),
        (["--weights", "w.pth"], "weights", Path("w.pth")),
        (["--epochs", "3"], "epochs", 3),
        (["--lr", "1e-5"], "lr", 1e-5),
        (["--device", "cpu"], "device", "cpu"),
        (["--crop", "8", "9"], "crop", (8, 9)),
        (["--no-warmup"], "warmup", False),
        (["--warmup"], "warmup", True),
        (["--resume"], "resume", True),
        (["--resume", "--no-resume"], "resume", False),
    ],
)
def test_a_flag_sets_its_field_alone(argv: list[str], field: str, value: Any) -> None:
    config = parse(*argv)
    found = getattr(config, field)
    assert (found, type(found)) == (value, type(value))
    assert config == ExampleConfig(**{field: value})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),  # no abbreviations
        (["--derived", "3"], "unrecognized arguments: --derived 3"),
        (["--epochs", "1.5"], "argument --epochs: invalid int value: '1.5'"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--crop", "8"], "argument --crop: expected 2 arguments"),
        (["--warmup", "False"], "unrecognized arguments: False"),
        (["--epochs", "0"], "--epochs 0: expected at least 1"),  # the config's own check
    ],
)
def test_a_wrong_flag_ends_with_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_each_default_once() -> None:
    text = build_parser(ExampleConfig, "An example.").format_help()
    assert text.count("(default: 50)") == 1
    assert text.count("(default: True)") == 1
    assert "(default: None)" not in text
    assert "--derived" not in text
    assert all(shown in text for shown in ("--data FILE", "--output DIR", "--epochs INT"))


def test_flags_not_given_are_absent() -> None:
    parser = build_parser(ExampleConfig, None)
    assert vars(parser.parse_args(["--lr", "0.1"])) == {"lr": 0.1}


@dataclass(frozen=True)
class RequiredConfig:
    """A config with a flag that must be given."""

    checkpoint: Path = flag(REQUIRED, "a file")


def test_a_required_flag(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser(RequiredConfig, None)
    assert vars(parser.parse_args(["--checkpoint", "x"])) == {"checkpoint": Path("x")}
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([])
    assert stop.value.code == 2
    assert "the following arguments are required: --checkpoint" in capsys.readouterr().err
    assert "default" not in parser.format_help()


def test_config_to_json_is_plain_json() -> None:
    values = config_to_json(ExampleConfig(weights=Path("a") / "b", crop=(8, 9)))
    assert json.loads(json.dumps(values)) == values
    assert values["weights"] == str(Path("a") / "b")
    assert values["crop"] == [8, 9]
    assert values["warmup"] is True


# ----------------------------------------------------------------------------- device and seeds


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
    with pytest.raises(UserError, match=r"--device cuda: .*Available: cpu$"):
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
