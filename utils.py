"""What two or more scripts share: errors, files, the machine, logging. Takes no time to load."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch

logger = logging.getLogger("igae")


class UserError(Exception):
    """A failure its reader can mend: one line that says what, where and what to do next."""


def one_line_errors(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Decorate a script's `main`: expected failures become one stderr line and exit code 1.

    These are `UserError` and what the system refuses (files, disk). An error of a loader's worker
    arrives with the worker's traceback before it. Bugs keep their traceback.
    """

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> int:
        try:
            code = main(argv)
            if sys.stdout is not None:
                sys.stdout.flush()  # so that a reader who has left is noticed here, not at exit
            return code
        except RuntimeError as error:
            import torch  # only here: scripts and --help that need no PyTorch do not wait for it

            of_a_cpu = "can't allocate memory" in str(error)  # has no type of its own
            if not (isinstance(error, torch.OutOfMemoryError) or of_a_cpu):
                raise
            print("error: the device is out of memory; lower --batch_size", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # `predict.py ... | head`: the reader has left, nobody to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (UserError, OSError) as error:
            message = str(error).rpartition("utils.UserError: ")[2].strip()
            print("error: " + "\\n".join(message.splitlines()), file=sys.stderr)
            return 1

    return wrapper


# ----------------------------------------------------------------------------- files


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; at the end of the block it replaces `path` at once.

    A block that fails, or a process that is killed, leaves the former file as it was.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("r+b") as written:  # Windows syncs what may be written alone
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # not there: it was moved, or could not be made
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, all of it or nothing; NaN is refused."""
    with atomic_write(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


def append_line(path: Path, line: str) -> None:
    """Add `line` to the end of a text file."""
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def take_lock(file: IO[str]) -> None:
    """Lock the file for this process, or raise OSError where another one has it."""
    if sys.platform != "win32":
        import fcntl

        # held by the process, not inherited by the workers of its loaders
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def lock_file(path: Path, *, wait: bool) -> IO[str]:
    """Hold `path` for this process until the file is closed or the process ends, however it does.

    Args:
        path: made where it is not there; its content does not matter.
        wait: for another process that holds it.

    Raises:
        OSError: another process holds it and `wait` is False, or it cannot be opened or locked.
    """
    file = path.open("w")
    told = False
    try:
        while True:
            try:
                take_lock(file)
                return file
            except (BlockingIOError, PermissionError):  # what systems call a lock that is held
                if not wait:
                    raise
            if not told:
                logger.info("waiting for another process, which holds %s", path)
                told = True
            time.sleep(0.1)
    except BaseException:
        file.close()
        raise


# ----------------------------------------------------------------------------- machine


def total_memory() -> int:
    """Return the machine's memory in bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows; a system without these names
        return 0


def usable_cpus() -> int:
    """Return the number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_commit() -> str:
    """Return the commit of the code that runs, `-dirty` behind it where files were changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def setup_logging(log_file: Path | None = None, *, quiet: bool = False) -> None:
    """Send progress to stderr and, where given, to `log_file` (appended); `quiet`: errors alone."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    form = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    for former in logger.handlers:
        former.close()
    logger.handlers = handlers
    for handler in handlers:
        handler.setFormatter(form)
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    logger.propagate = False


def end_with_parent() -> None:
    """Let this process, a child of multiprocessing, end when its parent does, however it does."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


AMP_MODES = ("auto", "off", "bf16", "fp16")

COMPILE_MODES = ("auto", "on", "off")

CACHE_MODES = ("auto", "ram", "disk", "none")

AUGMENT_MODES = ("auto", "photo", "batch")

DEVICES = ("auto", "cuda", "mps", "cpu")

# Photos at once where nothing is trained: on a CPU more are hardly faster, and fill the memory.
AT_ONCE_CPU, AT_ONCE_ELSE = 16, 128

AT_ONCE_HELP = f"default: {AT_ONCE_CPU} on a CPU, else {AT_ONCE_ELSE}"

REQUIRED: Any = dataclasses.MISSING  # the default of a flag that must be given

Config = TypeVar("Config")


def flag(
    default: Any,
    help_text: str,
    *,
    choices: Sequence[str] = (),
    nargs: int | str = 0,
    metavar: str = "",
) -> Any:
    """Return a dataclass field that `config_parser` turns into a command-line flag.

    `nargs` is of a field that is a tuple: how many values, or "+" for one or more. `metavar` is
    what `--help` shows for the value; without it FILE of a path, else the type. Of bools, one named
    no_<what> is a switch, others have a --no-<name> as well.
    """
    metadata = {"help": help_text, "choices": tuple(choices), "nargs": nargs, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def config_parser(config_class: type, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with a flag for each `flag` field of the dataclass `config_class`.

    A flag that is not given is absent from the namespace, so a caller can tell given from default.
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
    """Return `config_class(**values)`; a ValueError of its own checks ends in `parser.error`."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        parser.error(str(error))


def config_to_json(config: Any) -> dict[str, Any]:
    """Return the fields of a config dataclass as JSON types: paths as text, tuples as lists."""
    values = dataclasses.asdict(config).items()
    return {
        k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
        for k, v in values
    }


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


# ----------------------------------------------------------------------------- training

MAX_AT_ONCE = 65_536  # photos; that many at 224 pixels take 39 GB
