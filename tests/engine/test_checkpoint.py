"""Checkpoints: what is written can be read, what is no checkpoint is said to be none."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint import CHECKPOINT_KEYS, describe_checkpoint, load_checkpoint, save_checkpoint
from utils import UserError


def test_a_checkpoint_is_read_by_the_safe_default(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-000001.pth"
    state = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 3, "names": ["a", "b"]}
    save_checkpoint(path, state)
    for found in (load_checkpoint(path), torch.load(path)):
        assert found["epoch"] == 3
        assert found["names"] == ["a", "b"]
        assert torch.equal(found["model"]["weight"], state["model"]["weight"])  # type: ignore[index]
    assert list(tmp_path.iterdir()) == [path]


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
UNREADABLE = r"cannot be read as a checkpoint .*; give a checkpoint-NNNNNN.pth that train.py wrote$"
BARE = r"holds no IGAE-Net checkpoint .*; give a checkpoint-NNNNNN.pth that train.py wrote$"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"image_path,id\n", UNREADABLE, id="a csv"),
        pytest.param(b"", UNREADABLE, id="empty"),
        pytest.param(zip_bytes(), UNREADABLE, id="a foreign zip"),
        pytest.param(WHOLE[: len(WHOLE) // 2], UNREADABLE, id="truncated"),
        pytest.param(
            torch_bytes({"model": {}, "args": Path("x")}), UNREADABLE, id="pickled objects"
        ),
        pytest.param(torch_bytes({"head.weight": torch.zeros(2)}), BARE, id="bare weights"),
        pytest.param(torch_bytes({"model": {}}), BARE, id="no format"),
        pytest.param(torch_bytes([1, 2]), BARE, id="a list"),
        pytest.param(
            torch_bytes({"format": 99, "model": {}}),
            r"has checkpoint format 99, this version reads 1; use the version that wrote it$",
            id="another format",
        ),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("there", "asked", "message"),
    [
        ([], "none.pth", "not found; train.py writes them to checkpoints/<run>/"),
        ([], "", "is a folder; train.py writes them to checkpoints/<run>/"),
        (["000003", "000002-best"], "none.pth", "not found; {} holds {}"),
        (["000003", "000002-best"], "", "is a folder; give {}/checkpoint-000002-best.pth"),
        (["000003"], "", "is a folder; {} holds {}"),
    ],
)
def test_a_checkpoint_that_is_not_there(
    tmp_path: Path, there: list[str], asked: str, message: str
) -> None:
    names = sorted(f"checkpoint-{name}.pth" for name in there)
    for name in names:
        (tmp_path / name).touch()
    expected = f"checkpoint {tmp_path / asked} {message.format(tmp_path, ', '.join(names))}"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        load_checkpoint(tmp_path / asked)


def test_a_checkpoint_that_cannot_be_written_leaves_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint-000001.pth"
    save_checkpoint(path, {"model": {}, "epoch": 1})

    def full_disk(_state: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:659] unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="cannot write .*; is the disk full?"):
        save_checkpoint(path, {"model": {}, "epoch": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mapped", [True, False])
def test_a_checkpoint_that_was_read_may_be_replaced(tmp_path: Path, mapped: bool) -> None:
    path = tmp_path / "checkpoint-000001.pth"
    save_checkpoint(path, {"model": {"weight": torch.ones(5)}})
    state = load_checkpoint(path, mapped=mapped)
    save_checkpoint(path, {"model": {"weight": torch.zeros(5)}})
    assert state["model"]["weight"].sum() == 5
    state["model"]["weight"] += 1  # in memory alone
    assert load_checkpoint(path)["model"]["weight"].sum() == 0


@pytest.mark.parametrize("mapped", [True, False])
def test_changed_bytes_and_every_truncation_are_refused(tmp_path: Path, mapped: bool) -> None:
    path = tmp_path / "checkpoint-000001.pth"
    save_checkpoint(path, {"model": {"weight": torch.ones(20_000)}})
    content = path.read_bytes()
    at = content.index(np.ones(99, np.float32).tobytes()) + 400
    path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(UserError, match="is damaged: its bytes are not those written; move it$"):
        load_checkpoint(path, mapped=mapped, what_next="move it")
    for n_bytes in (0, *range(1, len(content), 9_000)):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(UserError, match="cannot be read as a checkpoint.*; move it$"):
            load_checkpoint(path, mapped=mapped, what_next="move it")


@pytest.mark.parametrize("key", ["model", *CHECKPOINT_KEYS])
def test_a_checkpoint_without_a_part_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "checkpoint-000001.pth"
    parts: dict[str, Any] = dict.fromkeys(("model", *CHECKPOINT_KEYS), {})
    save_checkpoint(path, parts)
    load_checkpoint(path, CHECKPOINT_KEYS)
    save_checkpoint(path, {**parts, key: None})
    with pytest.raises(UserError, match="holds no IGAE-Net checkpoint"):
        load_checkpoint(path, CHECKPOINT_KEYS)


def test_a_description_keeps_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-000001.pth"
    state: dict[str, Any] = dict.fromkeys(CHECKPOINT_KEYS, "told")
    tensors = {key: {"weight": torch.ones(5)} for key in ("model", "trained", "optimizer")}
    save_checkpoint(path, state | tensors)
    assert describe_checkpoint(path) == {"format": 1} | {
        key: "told" for key in CHECKPOINT_KEYS if key != "optimizer"
    }
