"""What two or more scripts share: errors, files, the machine, logging. Takes no time to load."""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

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
