"""How a step is computed: in which precision, compiled or not."""

from __future__ import annotations

import copy
import ctypes
import os
import sys
from pathlib import Path

import torch

from model import IGAENet
from utils import UserError, logger

AMP_DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Processor features that multiply bfloat16 matrices, as PyTorch and Linux name them.
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16", "svebf16"}


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Return the context in which the model runs; `amp` is a key of `AMP_DTYPES`."""
    return torch.autocast(device.type, dtype=AMP_DTYPES[amp], enabled=amp != "off")


def has_native_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 natively and PyTorch makes use of it.

    `torch.ops.mkldnn._is_mkldnn_bf16_supported` is true also where bfloat16 is emulated.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        features = {name for name, value in torch.cpu.get_capabilities().items() if value}
    elif Path("/proc/cpuinfo").exists():
        features = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    else:
        features = set()
    return bool(features & NATIVE_BF16)


def available_amp(stored: str, device: torch.device) -> str:
    """Return a precision resolved elsewhere if `device` has it natively, else what it has."""
    found = resolve_amp("auto", device)
    native = {"cuda": ("fp16",), "cpu": ("bf16",) * has_native_bf16()}
    if stored in ("off", found, *native.get(device.type, ())):
        return stored
    logger.warning(
        "the precision of the training, %s, is not native to this %s: --amp %s is used",
        *(stored, device.type, found),
    )
    return found


def resolve_amp(amp: str, device: torch.device) -> str:
    """Return `off`, `bf16` or `fp16` for the flag `--amp`; `auto` follows fixed rules.

    CUDA: bf16 from compute capability 8.0 (Ampere) on, fp16 before. Other devices: off; on a CPU
    that has bf16, identity was lower with it (docs/results.md).

    Raises:
        UserError: the device does not have that precision.
    """
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp fp16 needs CUDA, not {device.type}. Use --amp bf16 or off")
    if amp == "bf16" and device.type == "cpu" and not has_native_bf16():
        logger.warning("--amp bf16: this CPU emulates bfloat16, slower than --amp off (float32)")
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "off"


def compile_backbone(
    model: IGAENet, device: torch.device, amp: str, input_shape: tuple[int, int, int, int]
) -> None:
    """Compile the backbone in place, for training and evaluation; weights stay as they were.

    Batches of another shape than `input_shape`, (N, 3, H, W), such as an epoch's last one, run
    uncompiled: compiling for them would take as long again.

    Raises:
        UserError: PyTorch cannot compile here.
    """
    before = copy.deepcopy(model.state_dict())
    images = torch.rand(input_shape, device=device)
    images = images.to(memory_format=torch.channels_last)
    torch.compiler.set_stance("default")
    try:
        model.backbone.compile(dynamic=False)
        with autocast(device, amp):
            embeddings = model.train().embed(images)
        embeddings.float().square().mean().backward()
        with torch.inference_mode(), autocast(device, amp):
            model.eval().embed(images)
    except Exception as error:  # the compiler's stages share no type
        reason = " ".join(str(error).split())[:160]
        cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # a killed process may have damaged it
        advice = f"; or delete {cache} and try again" if cache else ""
        raise UserError(
            f"the model cannot be compiled here ({type(error).__name__}: {reason}). Give"
            f" --no-compile{advice}"
        ) from error
    finally:
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
    torch.compiler.set_stance("eager_on_recompile")


def unfuse_attention(model: IGAENet) -> None:
    """Disable fused attention: on CPUs its backward pass is slower.

    It multiplies many small matrices one by one: a step of deit_tiny in bf16 took 1.4 times as long
    (2 cores of an AMD EPYC, batch 20, 160 pixels); in float32 there was no difference.
    """
    for module in model.modules():
        if getattr(module, "fused_attn", False):
            module.fused_attn = False  # type: ignore[assignment]


# Parameters of glibc's mallopt (malloc.h, mallopt(3)).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory(device: torch.device) -> None:
    """Let this process reuse freed memory for CPU tensors; without glibc, do nothing.

    By default glibc returns freed blocks over 32 MB to the system, and every page of the next block
    must be cleared again. Keeping the memory made training of Swin-T 1.12 to 1.25 times and its
    evaluation 1.2 times as fast (ResNet50: 1.02 to 1.03, 1.12 to 1.14; 2 cores of an AMD EPYC,
    batch 20, 224 pixels, bf16); peak memory changed by -1 to 6 %.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if device.type == "cpu" and mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # take every block from the heap,
        mallopt(M_TRIM_THRESHOLD, -1)  # and never shrink the heap
