"""How a step is computed: in which precision, compiled or not; what `auto` comes to is measured."""

from __future__ import annotations

import copy
import ctypes
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from model import IGAENet
from utils import UserError, logger

# Parameters of glibc's mallopt (malloc.h, mallopt(3)).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory(device: torch.device) -> None:
    """Let tensors of the CPU reuse freed memory, in this process from now on.

    glibc else hands blocks over 32 MB back to the system when they are freed, and every page of the
    next one is cleared and costs a fault. With the memory kept, Swin-T trained 1.12 to 1.25 and was
    evaluated 1.2 times as fast, ResNet50 1.02 to 1.03 and 1.12 to 1.14 times (2 cores of an AMD
    EPYC, batch 20, 224 pixels, bf16, two pairs each); peaks of memory changed by -1 to 6 %. Without
    glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if device.type == "cpu" and mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # every block comes from the heap,
        mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks


AMP_DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

PROBE_SECONDS = 50  # a CPU's probe of bf16 gives up where it would take longer

PROBE_PHOTOS = 8  # at most, in a step of it

PROBE_GAIN = 1.05  # bf16, or a compiled model, is taken where it is this much faster

COMPILE_SECONDS = {"cpu": 120, "cuda": 60}  # what compiling is expected to take

COMPILE_SHARE = 10  # it is tried where the run takes at least this many times as long


@dataclass(frozen=True)
class Shape:
    """What a step works on: photos at a time, and the side of the square images in pixels."""

    batch_size: int
    image_size: int


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Return the context in which the model runs; `amp` is a key of `AMP_DTYPES`."""
    return torch.autocast(device.type, dtype=AMP_DTYPES[amp], enabled=amp != "off")


def check_amp(amp: str, device: torch.device) -> None:
    """Refuse a precision that the device does not have."""
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp fp16 needs CUDA, not {device.type}; use --amp bf16 or off")


def unfuse_attention(model: IGAENet) -> None:
    """Let the attention of timm's models keep its matrix, as a training on a CPU is faster so.

    There the way back through PyTorch's fused attention multiplies many small matrices one by one:
    a step of deit_tiny in bf16 took 1.4 times as long (2 cores of an AMD EPYC, batch 20, 160
    pixels), in float32 as long.
    """
    for module in model.modules():
        if getattr(module, "fused_attn", False):
            module.fused_attn = False  # type: ignore[assignment]


def resolve_amp(amp: str, model: IGAENet, device: torch.device, shape: Shape) -> str:
    """Return `off`, `bf16` or `fp16` for the flag `--amp`.

    `auto` on CUDA: bf16, on cards before Ampere fp16. On a CPU: off, unless two steps of a few
    photos each way show bf16 to be at least 5 % faster. On others: off.
    """
    check_amp(amp, device)
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type != "cpu":
        return "off"
    trial = copy.deepcopy(model)
    few = Shape(min(shape.batch_size, PROBE_PHOTOS), shape.image_size)
    plain = step_seconds(trial, device, "off", few, limit=PROBE_SECONDS / 4)
    fast = step_seconds(trial, device, "bf16", few, limit=PROBE_SECONDS / 4)
    found = "bf16" if plain > PROBE_GAIN * fast else "off"
    logger.info(
        "--amp auto: %s; a step of %d photos takes %.3g s in float32, %.3g s in bf16",
        *(found, few.batch_size, plain, fast),
    )
    return found


def train_step(model: IGAENet, device: torch.device, amp: str, shape: Shape) -> Callable[[], None]:
    """Return a function that takes a step of training on made-up images, but for the optimiser."""
    images = torch.rand(shape.batch_size, 3, shape.image_size, shape.image_size, device=device)
    images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        with autocast(device, amp):
            logits = model(images)
        torch.cat(list(logits.values()), dim=1).float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def step_seconds(
    model: IGAENet, device: torch.device, amp: str, shape: Shape, *, limit: float = math.inf
) -> float:
    """Return the seconds of the faster of two training steps of `model`, whose gradients it spoils.

    A first step over `limit` seconds is the only one.
    """
    step = train_step(model.train(), device, amp, shape)
    fastest = math.inf
    for _ in range(2):
        start = time.perf_counter()
        step()
        fastest = min(fastest, time.perf_counter() - start)
        if fastest > limit:
            break
    return fastest


def has_fast_bf16() -> bool:
    """Return whether this CPU multiplies bf16 matrices faster than float32 ones."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(1024, 1024, dtype=dtype)
        matrix @ matrix
        start = time.perf_counter()
        matrix @ matrix
        seconds[dtype] = time.perf_counter() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


def other_way_out() -> str:
    """Return what else a failed compiling can be mended by; nothing where no file was in play.

    A process that was killed while it compiled may have left a truncated file behind, which every
    later one meets. The compiler names its folder in the environment once it uses it.
    """
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return f"; or, if a former run was killed, delete {folder} and try again" if folder else ""


def compile_backbone(model: IGAENet, device: torch.device, amp: str, shape: Shape) -> float:
    """Compile the backbone in its place for training and evaluation; return the seconds it took.

    Batches of another size, the short last one of an epoch, run as they are: compiling for them
    as well would take as long again. The model's weights and statistics stay as they were.

    Raises:
        UserError: PyTorch cannot compile here.
    """
    before = copy.deepcopy(model.state_dict())
    torch.compiler.set_stance("default")
    start = time.perf_counter()
    try:
        model.backbone.compile(dynamic=False)
        train_step(model.train(), device, amp, shape)()
        with torch.inference_mode(), autocast(device, amp):
            side = shape.image_size
            images = torch.rand(shape.batch_size, 3, side, side, device=device)
            model.eval()(images.to(memory_format=torch.channels_last))
    except Exception as error:  # the compiler's stages share no type
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"the model cannot be compiled here ({type(error).__name__}: {reason}); use"
            f" --compile off{other_way_out()}"
        ) from error
    finally:
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
    torch.compiler.set_stance("eager_on_recompile")
    return time.perf_counter() - start


def resolve_compute(
    amp: str, compiled: str, model: IGAENet, device: torch.device, shape: Shape, n_steps: int
) -> tuple[str, bool]:
    """Return precision and whether to compile; a model that gains by it is compiled here.

    Args:
        amp: the flag `--amp`.
        compiled: the flag `--compile`; `auto` tries where the run is long enough and keeps what
            is faster.
        model: on its device.
        device: where it trains.
        shape: of a step.
        n_steps: of the whole run.
    """
    found = resolve_amp(amp, model, device, shape)
    if compiled == "off" or (compiled == "auto" and device.type not in COMPILE_SECONDS):
        return found, False
    with_amp = "bf16" if amp == "auto" and device.type == "cpu" and has_fast_bf16() else found
    if compiled == "on":
        seconds = compile_backbone(model, device, with_amp, shape)
        logger.info("--compile on: compiling took %.0f s", seconds)
        return with_amp, True
    plain = step_seconds(copy.deepcopy(model), device, found, shape)
    if plain * n_steps < COMPILE_SHARE * COMPILE_SECONDS[device.type]:
        logger.info("--compile auto: off, the run takes about %.0f s", plain * n_steps)
        return found, False
    try:
        seconds = compile_backbone(model, device, with_amp, shape)
    except UserError as error:
        logger.warning("--compile auto: off, %s", error)
        run_as_it_is()
        return found, False
    before = copy.deepcopy(model.state_dict())
    fast = step_seconds(model, device, with_amp, shape)
    model.load_state_dict(before)
    model.zero_grad(set_to_none=True)
    pays_back = f"{seconds / (plain - fast):.0f}" if fast < plain else "no"
    logger.info(
        "--compile auto: compiling took %.0f s; a step takes %.3f s (%s), as it is %.3f s (%s);"
        " that pays back after %s steps of this run's %d",
        *(seconds, fast, with_amp, plain, found, pays_back, n_steps),
    )
    if plain < PROBE_GAIN * fast:
        run_as_it_is()
        return found, False
    return with_amp, True


def run_as_it_is() -> None:
    """Let compiled models run as if they were not."""
    torch.compiler.set_stance("force_eager")
