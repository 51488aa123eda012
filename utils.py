"""Shared by all scripts: errors, atomic files, logging, flags from a dataclass, device, seeds."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import platform
import random
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

logger = logging.getLogger("igae")
Config = TypeVar("Config")

# ----------------------------------------------------------------------------- errors


class UserError(Exception):
    """An expected failure: one line that says what is wrong, where, and what to do next."""


class BrokenPhotoError(UserError):
    """A photo cannot be decoded; a DataLoader raises a worker's error as the same class."""


def one_line_errors(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Decorate a script's `main`: expected failures become one line on stderr and exit code 1.

    Expected are `UserError`, `OSError`, a full device, Ctrl-C (exit code 130) and a killed worker
    of a DataLoader. An error raised in a worker arrives as text with its traceback; the last line
    is kept.
    """

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> int:
        try:
            code = main(argv)
            if sys.stdout is not None:
                sys.stdout.flush()  # a closed pipe is noticed here instead of at exit
            return code
        except BrokenPipeError:  # `predict.py ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (UserError, OSError) as error:
            message = re.split(r"\n[\w.]+Error: ", str(error))[-1].strip()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except RuntimeError as error:
            on_cpu = "can't allocate memory" in str(error)  # PyTorch has no type for it
            if isinstance(error, torch.OutOfMemoryError) or on_cpu:
                message = "the device is out of memory. Lower --batch_size"
            elif str(error).startswith("DataLoader worker (pid"):
                message = f"{str(error).rstrip(' .')}. If memory ran out, lower --num_workers"
            else:
                raise
        print(f"error: {one_line(message)}", file=sys.stderr)
        return 1

    return wrapper


def one_line(text: str) -> str:
    """Return text with line breaks and control characters escaped."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


# ----------------------------------------------------------------------------- files


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; at the end of the block it replaces `path`.

    If the block fails or the process is killed, the previous file remains.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except FileExistsError as error:
        raise UserError(f"a file, not a folder: {path.parent}. Choose another folder") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with LF line ends."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file."""
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def safe_name(name: str) -> str:
    """Return `name` with everything but ASCII letters, digits, `.`, `_` and `-` replaced by `_`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


# ----------------------------------------------------------------------------- logging


class LineFormatter(logging.Formatter):
    """Escape control characters, which names from files may hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  name of the base
        """Return the record on one line."""
        return one_line(super().formatMessage(record))


def setup_logging(log_file: Path | None = None, *, quiet: bool = False) -> None:
    """Log to stderr and, if given, to `log_file` (appended); `quiet` logs errors only."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    formatter = LineFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    for previous in logger.handlers:
        previous.close()
    logger.handlers = handlers
    for handler in handlers:
        handler.setFormatter(formatter)
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    logger.propagate = False


# ----------------------------------------------------------------------------- flags

AMP_MODES = ("auto", "off", "bf16", "fp16")
DEVICES = ("auto", "cuda", "mps", "cpu")
REQUIRED: Any = dataclasses.MISSING  # the default of a flag that must be given


def flag(
    default: Any,
    help_text: str,
    *,
    choices: Sequence[str] = (),
    nargs: int | str = 0,
    metavar: str = "",
) -> Any:
    """Return a dataclass field that `build_parser` turns into a command-line flag.

    Args:
        default: `REQUIRED` for a flag that must be given.
        help_text: shown by --help, followed by the default.
        choices: legal values.
        nargs: of a tuple field: how many values, or "+" for at least one.
        metavar: placeholder in --help; default: FILE for a path, else the type.
    """
    metadata = {"help": help_text, "choices": tuple(choices), "nargs": nargs, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def build_parser(config_class: type, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with one flag per `flag` field of a dataclass.

    A flag that was not given is absent from the namespace. A bool field gets `--x/--no-x`; one
    that is called `no_x`, `--no_x` only.
    """
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if "help" not in field.metadata:
            continue
        kind = (typing.get_args(hints[field.name]) or (hints[field.name],))[0]
        options: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if kind is bool and field.name.startswith("no_"):
            options = {"action": "store_true"}
        elif kind is not bool:
            options = {"type": kind}
            if field.metadata["choices"]:
                options["choices"] = field.metadata["choices"]
            else:
                plain = "FILE" if kind is Path else kind.__name__.upper()
                options["metavar"] = field.metadata["metavar"] or plain
            if field.metadata["nargs"]:
                options["nargs"] = field.metadata["nargs"]
        if field.default is REQUIRED:
            options["required"] = True
        default = field.default
        text = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        shown = "" if default in (None, REQUIRED, ()) else f" (default: {text})"
        parser.add_argument(f"--{field.name}", help=field.metadata["help"] + shown, **options)
    return parser


def build_config(
    parser: argparse.ArgumentParser, config_class: type[Config], values: dict[str, Any]
) -> Config:
    """Return `config_class(**values)`; its ValueErrors end in `parser.error` (exit code 2)."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        parser.error(str(error))


def parse_config(
    config_class: type[Config], description: str | None, argv: Sequence[str] | None
) -> Config:
    """Return the configuration that the command line asks for."""
    parser = build_parser(config_class, description)
    return build_config(parser, config_class, vars(parser.parse_args(argv)))


def config_to_json(config: Any) -> dict[str, Any]:
    """Return the fields of a config dataclass as JSON types: paths as text, tuples as lists."""

    def convert(value: Any) -> Any:
        if isinstance(value, tuple):
            return [convert(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {name: convert(value) for name, value in dataclasses.asdict(config).items()}


# ----------------------------------------------------------------------------- device and seeds


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
        usable = ", ".join(device for device, found in available.items() if found)
        raise UserError(f"--device {name}: PyTorch finds no such device. Available: {usable}")
    return torch.device(name)


def set_determinism(device: torch.device, deterministic: bool) -> None:
    """Use deterministic algorithms: on the CPU always, elsewhere if `deterministic`.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if device.type == "cpu" or deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Filling every torch.empty costs 3 % of a step; nothing here reads uninitialised memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic


def seed_everything(*numbers: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch (all devices) from `numbers`."""
    state = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)


def usable_cpus() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def git_commit() -> str:
    """Return the commit of this code, with `-dirty` appended if files were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
