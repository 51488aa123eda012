"""Which precision `auto` takes where; attention; compiling that fails."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import torch

from engine import precision
from engine.precision import compile_backbone, has_native_bf16, resolve_amp, unfuse_attention
from model import IGAENet
from utils import UserError

CPU, MPS, CUDA = (torch.device(name) for name in ("cpu", "mps", "cuda"))


def tiny_model(backbone: str, image_size: int = 32) -> IGAENet:
    torch.manual_seed(0)
    return IGAENet(backbone, {"gender": 2}, pretrained=False, image_size=image_size)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"avx2": True, "amx_bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": True}, True),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
    ],
)
def test_native_bf16_is_asked_of_pytorch(
    features: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert has_native_bf16() is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert has_native_bf16() is False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_linux_says_the_same_where_pytorch_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("PyTorch cannot be asked")
    expected = has_native_bf16()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert has_native_bf16() is expected


def test_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_native_bf16", lambda: True)
    assert [resolve_amp("auto", device) for device in (CPU, MPS)] == ["off", "off"]
    for capability, on_cuda in (((8, 0), "bf16"), ((9, 0), "bf16"), ((7, 5), "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert resolve_amp("auto", CUDA) == on_cuda


def test_a_given_precision_is_kept_and_an_emulated_one_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("igae"), "propagate", True)
    monkeypatch.setattr(precision, "has_native_bf16", lambda: True)
    assert [resolve_amp(amp, CPU) for amp in ("off", "bf16")] == ["off", "bf16"]
    assert not caplog.records
    monkeypatch.setattr(precision, "has_native_bf16", lambda: False)
    assert [resolve_amp(amp, CPU) for amp in ("off", "bf16")] == ["off", "bf16"]
    assert len(caplog.records) == 1
    for device in (CPU, MPS):
        with pytest.raises(UserError, match="--amp fp16 needs CUDA, .*bf16 or off"):
            resolve_amp("fp16", device)


@pytest.mark.parametrize("folder", ["/somewhere/compiled", None])
def test_failed_compiling_names_the_folder_that_may_be_damaged(
    folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_not(*args: Any, **kwargs: Any) -> None:
        if folder:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)  # as the compiler does
        raise RuntimeError("file too short")

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_not)
    model = tiny_model("test_resnet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="RuntimeError: file too short") as caught:
        compile_backbone(model, CPU, "off", (2, 3, 32, 32))
    advice = f"; or delete {folder} and try again" if folder else ""
    assert str(caught.value).endswith(f"Give --no-compile{advice}")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_attention_without_fusion_predicts_the_same() -> None:
    model = tiny_model("test_vit", 224).eval()
    images = torch.rand(2, 3, 224, 224)
    fused = model.embed(images)
    assert any(getattr(module, "fused_attn", False) for module in model.modules())
    unfuse_attention(model)
    assert not any(getattr(module, "fused_attn", False) for module in model.modules())
    torch.testing.assert_close(model.embed(images), fused)
