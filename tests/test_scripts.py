"""Every script as a command: what only asks or is wrong is answered before anything heavy loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = sorted(REPOSITORY.glob("*.py"))
GUARD = '\nif __name__ == "__main__":'
SCRIPTS = [path.stem for path in MODULES if GUARD in path.read_text("utf-8")]
HEAVY = {"torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib.pyplot"}  # seconds each
# Script -> flags with a value out of range, and what is said of it.
WRONG = {
    "benchmark": ("--rounds 0", "--rounds must be above 0"),
    "compare": ("--backbones swin_t --lr -1", "--lr must be a number above 0"),
    "dataset_11k_analyze": ("--input", "expected one argument"),
    "dataset_11k_split": ("--protocol none", "invalid choice: 'none'"),
    "dataset_11k_synthetic": ("--identities none", "invalid int value: 'none'"),
    "predict": ("--checkpoint x --top_k 0 photo.jpg", "--top_k must be above 0"),
    "report": ("", "give one of --results, --run_dir and --architecture"),
    "test": ("--checkpoint x --batch_size 0", "--batch_size must be from 1 to 65536"),
    "train": ("--lr -1", "--lr must be a number above 0"),
}


def answer(script: str, flags: str) -> tuple[int, str, set[str]]:
    """Return a script's exit code, all that it says, and which modules it loads."""
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / f"{script}.py"), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:")]
    return done.returncode, "\n".join([done.stdout, *said]), loaded


def test_no_module_imports_a_script() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not set(names) & set(SCRIPTS), path.name


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_heavy(script: str) -> None:
    code, said, loaded = answer(script, "--help")
    assert (code, said[: len("usage: ")]) == (0, "usage: ")
    assert f"python {script}.py" in said
    assert "flags" in loaded
    assert not HEAVY & loaded


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_flag_loads_nothing_heavy(script: str) -> None:
    flags, message = WRONG[script]
    code, said, loaded = answer(script, flags)
    assert code == 2
    assert message in said
    assert not HEAVY & loaded


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_loads_nothing_heavy(script: str) -> None:
    code, said, loaded = answer(script, f"{WRONG[script][0]} --no_such_flag")
    assert code == 2
    assert "error: " in said
    assert not HEAVY & loaded
