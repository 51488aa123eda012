"""kill -9 of the scripts: no file is half-written, and the same command then completes the work.

tests/test_train.py kills train.py and compares the weights, tests/test_gallery.py enrolments.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import train
from engine.checkpoint import load_checkpoint

N_KILLS = 6  # of each script

# Files with times; `assert_whole` reads the checkpoints among them.
WITH_TIMES = (".log", ".jsonl", ".md", ".pth", ".lock")


def start(script: str, flags: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a script in a process group of its own."""
    path = Path(train.__file__).with_name(f"{script}.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, path, *flags.split()],
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )


def written(folders: list[Path]) -> dict[Path, bytes]:
    """Return the content of all files but temporary ones (hidden) and those with times."""

    def content(path: Path) -> bytes:
        if path.name != "results.csv":
            return path.read_bytes()
        return pd.read_csv(path).drop(columns="minutes", errors="ignore").to_csv().encode()

    return {
        path: content(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in WITH_TIMES and "tfevents" not in path.name
        if not any(part.startswith(".") for part in path.parts)
    }


def assert_whole(folders: list[Path], complete: dict[Path, bytes]) -> None:
    """Check that every file is that of an uninterrupted run, or of no part of it."""
    for path, content in written(folders).items():
        if path.name != "results.csv":  # it lists the finished runs
            assert content == complete[path], path
    for folder in folders:
        for path in folder.rglob("checkpoint-*.pth"):
            load_checkpoint(path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "script", ["dataset_11k_synthetic", "dataset_11k_split", "test", "compare"]
)
def test_a_killed_script_is_completed_by_the_same_command(
    script: str, tiny_checkpoint: Path, split_root: Path, tmp_path: Path
) -> None:
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"
    drawn, compared = tmp_path / "drawn", tmp_path / "compared"
    results = tiny_checkpoint.with_name(f"{tiny_checkpoint.stem}-dorsal_dr-val")
    small = "--no-pretrained --image_size 32 --N_epochs 2 --num_workers 0 --amp off --device cpu"
    commands: dict[str, tuple[str, list[Path]]] = {
        "dataset_11k_synthetic": (
            f"--output {drawn} --identities 4 --images_per_identity 2 --width 160 --processes 1",
            [drawn],
        ),
        "dataset_11k_split": (
            f"--input {split_root} --protocol stratified",
            [split_root / "trainval", split_root / "sub_dataset"],
        ),
        "test": (
            f"--attributes_file {attributes} --checkpoint {tiny_checkpoint} --num_workers 0",
            [results],
        ),
        "compare": (
            f"--backbones test_resnet --input {split_root} --protocols paper --output {compared}"
            f" {small}",
            [compared],
        ),
    }
    flags, folders = commands[script]
    log, generator = tmp_path / "output.txt", random.Random(script)

    def finish() -> float:
        """Run it to the end; return the seconds that took."""
        began = time.monotonic()
        assert start(script, flags, log).wait(timeout=900) == 0, log.read_text()
        return time.monotonic() - began

    def clear() -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    clear()
    finish()  # also fills the caches
    complete = written(folders)
    assert complete
    clear()
    seconds = finish()
    assert written(folders) == complete
    clear()
    n_done = 0
    while n_done < N_KILLS:
        process = start(script, flags, log)
        try:
            code = process.wait(timeout=generator.uniform(0.3, 1) * seconds)
            assert code == 0, log.read_text()
            clear()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            n_done += 1
        assert_whole(folders, complete)
    finish()
    assert written(folders) == complete
