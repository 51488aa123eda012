"""compute.py: attention, and a model that cannot be compiled (the rest is in test_training.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.precision import Shape, compile_backbone, unfuse_attention
from model import IGAENet
from utils import UserError

FOLDER = "/somewhere/compiled"


@pytest.mark.parametrize("folder", [FOLDER, None])
def test_a_failed_compiling_names_the_folder_it_may_be_mended_in(
    folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_not(*args: Any, **kwargs: Any) -> None:
        if folder:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)  # as the compiler does
        raise RuntimeError("file too short")

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_not)
    model = IGAENet("test_resnet", {"identity": 3, "gender": 2, "age": 6}, pretrained=False)
    with pytest.raises(UserError, match="RuntimeError: file too short") as stop:
        compile_backbone(model, torch.device("cpu"), "off", Shape(2, 32))
    expected = f"; or, if a former run was killed, delete {folder} and try again" if folder else ""
    assert str(stop.value).endswith(f"use --compile off{expected}")


def test_attention_that_keeps_its_matrix_answers_alike() -> None:
    torch.manual_seed(0)
    model = IGAENet("test_vit", {"identity": 3, "gender": 2, "age": 6}, pretrained=False).eval()
    images = torch.rand(2, 3, 224, 224)
    fused = model.embed(images)
    assert any(getattr(module, "fused_attn", False) for module in model.modules())
    unfuse_attention(model)
    assert not any(getattr(module, "fused_attn", False) for module in model.modules())
    torch.testing.assert_close(model.embed(images), fused)
