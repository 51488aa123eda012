"""export.py: exported models compute what PyTorch does, on photos and without PyTorch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train_tiny

import export
from model import IGAENet
from predict import load_predictor

DOCS = Path(__file__).resolve().parent.parent / "docs" / "export.md"


@pytest.fixture
def frozen_checkpoint(split_root: Path, tmp_path: Path) -> Path:
    """A model with a linear neck and pooling of several levels, and with temperatures."""
    start = tmp_path / "start.pth"
    torch.save(
        IGAENet("test_resnet", {}, pretrained=False, image_size=32).backbone.state_dict(), start
    )
    flags = ("--recipe", "frozen", "--backbone_weights", str(start), "--pretrained", "--neck", "8")
    checkpoint = train_tiny(split_root, tmp_path / "frozen", *flags)
    state = torch.load(checkpoint, weights_only=True)
    state["temperature"] = {task: 0.5 for task in state["label_space"]}
    torch.save(state, checkpoint)
    return checkpoint


@pytest.fixture
def photos(split_root: Path) -> list[Path]:
    return sorted((split_root / "Hands").iterdir())[::20]


def test_onnx_equals_pytorch(frozen_checkpoint: Path, photos: list[Path]) -> None:
    for name in export.NEEDED:
        pytest.importorskip(name)
    assert export.main(["--checkpoint", str(frozen_checkpoint)]) == 0
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)[0]
    saving = "\nnp.save('embedding.npy', embedding)"
    command = [sys.executable, "-c", f"import sys; sys.modules['torch'] = None\n{code}{saving}"]
    model = frozen_checkpoint.with_suffix(".onnx")
    done = subprocess.run(
        [*command, model, *photos], capture_output=True, text=True, cwd=model.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = load_predictor(frozen_checkpoint, device="cpu", amp="off")(photos)
    found = np.load(model.parent / "embedding.npy")
    np.testing.assert_allclose(found, [p.embedding for p in expected], atol=1e-4)
    rows = {
        tuple(line.rsplit(" ", 3)[:2]): line.rsplit(" ", 3)[2:] for line in done.stdout.splitlines()
    }
    assert len(rows) == 3 * len(photos)
    for photo, prediction in zip(photos, expected, strict=True):
        for task, classes in prediction.probabilities.items():
            name, probability = rows[str(photo), task]
            assert name == prediction.classes[task]
            assert float(probability) == pytest.approx(classes[name], abs=1e-4)


def test_torch_export_equals_pytorch(tiny_checkpoint: Path, photos: list[Path]) -> None:
    output = tiny_checkpoint.with_suffix(".pt2")
    assert export.main(["--checkpoint", str(tiny_checkpoint), "--output", str(output)]) == 0
    extra = {"metadata.json": ""}
    module = torch.export.load(output, extra_files=extra).module()
    facts = json.loads(extra["metadata.json"])
    predictor = load_predictor(tiny_checkpoint, device="cpu", amp="off")
    pixels = np.stack([np.array(predictor.predictor.reader.read(photo)) for photo in photos])
    embeddings, *probabilities = module(torch.from_numpy(pixels))
    expected = predictor(photos)
    np.testing.assert_allclose(embeddings.detach(), [p.embedding for p in expected], atol=1e-4)
    for (task, names), found in zip(
        json.loads(facts["classes"]).items(), probabilities, strict=True
    ):
        wanted = [[p.probabilities[task][name] for name in names] for p in expected]
        np.testing.assert_allclose(found.detach(), wanted, atol=1e-4)
    assert facts["model"] == predictor.fingerprint


def test_a_missing_package_is_named(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export.main(["--checkpoint", str(tiny_checkpoint)]) == 1
    assert "ONNX needs the package onnx. Run: pip install -r" in capsys.readouterr().err
    assert not list(tiny_checkpoint.parent.glob("*.onnx"))


def test_an_export_that_departs_from_pytorch_is_not_kept(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = export.PhotoModel.forward

    def depart(self: export.PhotoModel, photo: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = forward(self, photo)
        shift = 0.001 if torch.compiler.is_exporting() else 0
        return tuple(output + shift for output in outputs)

    monkeypatch.setattr(export.PhotoModel, "forward", depart)
    output = tiny_checkpoint.with_suffix(".pt2")
    assert export.main(["--checkpoint", str(tiny_checkpoint), "--output", str(output)]) == 1
    assert "differs from PyTorch by 1.0e-03" in capsys.readouterr().err
    assert list(tiny_checkpoint.parent.glob("*.pt2")) == []
