"""Checkpoint files: what is written can be read, and what cannot be used is named."""

from __future__ import annotations

import copy
import functools
import io
import json
import operator
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint import (
    CHECKPOINT_TYPES,
    best_checkpoint,
    describe_checkpoint,
    evaluation_dir,
    last_checkpoint,
    list_checkpoints,
    load_checkpoint,
    lock_run,
    read_epochs,
    save_checkpoint,
)
from utils import UserError

CONFIG = {
    **{"protocol": "paper", "fold": None, "permute_labels": False, "backbone": "test_resnet"},
    **{"image_size": 32, "seed": 42, "N_epochs": 5},
}
VALID: dict[str, Any] = {
    "config": CONFIG,
    "resolved": {"amp": "off", "mean": [0.5] * 3, "std": [0.5] * 3, "decode_size": 0},
    "label_space": {"gender": ["female", "male"]},
    "aspect": "dorsal_dr",
    "fingerprints": {"train": "a", "val": "b"},
    "environment": {},
    "commit": "unknown",
    "training": {
        **{"people": ["1"], "counts": {"gender": [3, 4]}, "mean_ages": []},
        "class_of_person": {},
    },
    "temperature": {"gender": 1.5},
    "epoch": 1,
    "best": {"epoch": 1, "score": 0.5},
    **{"metrics": {}, "model": {}, "optimizer": {}, "scaler": {}},
}


def save(path: Path, **state: Any) -> None:
    """Save a checkpoint that has all keys."""
    save_checkpoint(path, {**VALID, **state})


def test_a_checkpoint_is_read_by_the_safe_default(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-000001.pth"
    weights = {"weight": torch.arange(6.0).reshape(2, 3)}
    save(path, model=weights, epoch=3)
    for found in (load_checkpoint(path), load_checkpoint(path, mapped=True), torch.load(path)):
        assert found["epoch"] == 3
        assert torch.equal(found["model"]["weight"], weights["weight"])
    assert list(tmp_path.iterdir()) == [path]
    assert describe_checkpoint(path).keys() == {"format", *CHECKPOINT_TYPES} - {
        "model",
        "optimizer",
    }


def torch_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "no weights here")
    return buffer.getvalue()


WHOLE = torch_bytes({"format": 1, "model": {"weight": torch.zeros(1000)}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"image_path,id\n", "damaged checkpoint", id="a csv"),
        pytest.param(b"", "damaged checkpoint", id="empty"),
        pytest.param(zip_bytes(), "cannot read checkpoint", id="a foreign zip"),
        pytest.param(WHOLE[: len(WHOLE) // 2], "damaged checkpoint", id="truncated"),
        pytest.param(torch_bytes({"args": Path("x")}), "cannot read checkpoint", id="objects"),
        pytest.param(torch_bytes({"a": torch.zeros(2)}), "not an IGAE-Net checkpoint", id="bare"),
        pytest.param(torch_bytes([1, 2]), "not an IGAE-Net checkpoint", id="a list"),
        pytest.param(WHOLE, r"not a checkpoint of train.py \(no config", id="incomplete"),
        pytest.param(torch_bytes({"format": 99}), "checkpoint format 99, expected 1", id="format"),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{message}.*: {path}. (Give|Use)") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("existing", "given", "message"),
    [
        ([], "none.pth", "checkpoint not found: {0}/none.pth. train.py writes checkpoints to"),
        (["000003"], "none.pth", "checkpoint not found: {0}/none.pth. {0} contains checkpoint-"),
        (["000003"], "", "a folder, not a checkpoint: {0}. {0} contains checkpoint-000003.pth"),
        (["000002-best"], "", "a folder, not a checkpoint: {0}. Give {0}/checkpoint-000002-best"),
    ],
)
def test_a_checkpoint_that_does_not_exist(
    tmp_path: Path, existing: list[str], given: str, message: str
) -> None:
    for name in existing:
        (tmp_path / f"checkpoint-{name}.pth").touch()
    with pytest.raises(UserError, match=f"^{re.escape(message.format(tmp_path))}"):
        load_checkpoint(tmp_path / given)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_checkpoint_that_was_read_may_be_replaced(tmp_path: Path, mapped: bool) -> None:
    path = tmp_path / "checkpoint-000001.pth"
    save(path, model={"weight": torch.ones(5)})
    state = load_checkpoint(path, mapped=mapped)
    save(path, model={"weight": torch.zeros(5)})
    assert state["model"]["weight"].sum() == 5
    state["model"]["weight"] += 1  # in memory alone
    assert load_checkpoint(path)["model"]["weight"].sum() == 0


@pytest.mark.parametrize("mapped", [True, False])
def test_changed_bytes_and_truncations_are_refused(tmp_path: Path, mapped: bool) -> None:
    path = tmp_path / "checkpoint-000001.pth"
    save(path, model={"weight": torch.ones(20_000)})
    content = path.read_bytes()
    at = content.index(np.ones(99, np.float32).tobytes()) + 400
    path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(UserError, match=r"damaged checkpoint \(wrong checksum\).*\. Move it$"):
        load_checkpoint(path, mapped=mapped, advice="Move it")
    for n_bytes in (0, *range(1, len(content), 9_000)):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(UserError, match=r"damaged checkpoint.*\. Move it$"):
            load_checkpoint(path, mapped=mapped, advice="Move it")


WRONG: list[Any] = [None, 5, -1, 1e308, "text", [], {}, [None], {"x": []}, True, "train"]


def test_wrong_metadata_is_one_line(tmp_path: Path) -> None:
    """Every value of a good checkpoint, replaced by values of other types, is refused or legal."""

    def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else ()
        for key, inner in items:
            yield (*place, key)
            yield from places(inner, (*place, key))

    path = tmp_path / "checkpoint-000001.pth"
    messages = []
    for place in places(VALID):
        for wrong in WRONG:
            state = copy.deepcopy(VALID)
            parent = functools.reduce(operator.getitem, place[:-1], state)
            parent[place[-1]] = wrong
            save_checkpoint(path, state)
            try:
                load_checkpoint(path)
            except UserError as error:
                messages.append(str(error))
    assert len(messages) > 200
    assert all(str(path) in text and "\n" not in text for text in messages)


def test_a_file_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(UserError, match=r"damaged checkpoint \(10,000,000 bytes unpacked\)"):
        load_checkpoint(path)


def test_damaged_bytes_of_the_archive_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-000001.pth"
    save(path, model={"weight": torch.ones(50)})
    content, messages = path.read_bytes(), []
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1 :])
        try:
            load_checkpoint(path)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all("\n" not in text for text in messages)


def test_checkpoints_of_a_run(tmp_path: Path) -> None:
    assert (best_checkpoint(tmp_path), last_checkpoint(tmp_path)) == (None, None)
    names = ("000002", "000002-best", "000010", "1000000", "x")
    paths = {name: tmp_path / f"checkpoint-{name}.pth" for name in names}
    for path in paths.values():
        path.touch()
    assert list_checkpoints(tmp_path).keys() == {(2, False), (2, True), (10, False), (10**6, False)}
    assert best_checkpoint(tmp_path) == paths["000002-best"]
    assert last_checkpoint(tmp_path) == paths["1000000"]
    expected = tmp_path / "checkpoint-000002-best-dorsal_dr-val"
    assert evaluation_dir(paths["000002-best"], "dorsal_dr", "val") == expected


def test_an_unfinished_last_line_is_dropped_and_another_is_named(tmp_path: Path) -> None:
    assert read_epochs(tmp_path) == []
    lines = [json.dumps({"epoch": epoch}) for epoch in (1, 2)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*lines, '{"epoch": 3, "l']))
    assert read_epochs(tmp_path) == [{"epoch": 1}, {"epoch": 2}]
    path.write_text("\n".join(['{"epoch"', *lines]))
    with pytest.raises(UserError, match=f"line 1 describes no epoch: {path}. Delete it"):
        read_epochs(tmp_path)


def test_a_run_that_another_process_trains_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.checkpoint.LOCK_SECONDS", 0.1)
    code = "import pathlib, sys; from engine.checkpoint import lock_run"
    code += "; lock = lock_run(pathlib.Path(sys.argv[1])); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training"):
            lock_run(tmp_path)
        other.kill()
    lock_run(tmp_path).release()
