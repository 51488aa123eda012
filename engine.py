"""One epoch of training and one pass of prediction: what training, testing, predicting share."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the name that PyTorch's users know
from torch import Tensor
from tqdm import tqdm

from dataset_11k import TASKS, Item, LabelSpace, Transform, build_transform
from model import IGAENet, ModelError, embedding_width
from utils import UserError, logger, prepare_determinism, resolve_device

AMP_DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROBE_SECONDS = 50  # a CPU's probe of bf16 gives up where it would take longer
PROBE_GAIN = 1.05  # bf16 is taken where it is this much faster
CHECK_EVERY = 50  # steps between two looks at the losses, each of which waits for the device


@dataclass(frozen=True)
class Predictions:
    """What a model says of every row of a split, in CSV order.

    labels: (N, n_tasks) int64 in the order of TASKS, -1 where unknown.
    embedding: (N, D) float32.
    logits: task -> (N, n_classes[task]) float32, before softmax.
    """

    labels: np.ndarray
    embedding: np.ndarray
    logits: dict[str, np.ndarray]


def build_model(backbone: str, n_classes: Mapping[str, int], **options: Any) -> IGAENet:
    """Return `IGAENet(...)`; what it refuses becomes a `UserError`."""
    try:
        return IGAENet(backbone, n_classes, **options)
    except ModelError as error:
        raise UserError(str(error)) from error


def check_backbone(name: str, image_size: int) -> None:
    """Refuse an unknown backbone, or a size it does not take, without building its weights."""
    try:
        embedding_width(name, image_size)
    except ModelError as error:
        raise UserError(str(error)) from error


@dataclass(frozen=True)
class Predictor:
    """A checkpoint's model, ready to answer, with what turns a photo into its input."""

    model: IGAENet
    label_space: LabelSpace
    transform: Transform
    decode_size: int
    device: torch.device
    amp: str


def load_predictor(
    state: Mapping[str, Any], *, device: str, amp: str | None, batch_size: int
) -> Predictor:
    """Return what a checkpoint describes, rebuilt from it alone.

    Args:
        state: as `utils.load_checkpoint` returns it.
        device: value of the flag `--device`.
        amp: value of the flag `--amp`; None: the precision of the training.
        batch_size: photos at once, for the probe of `--amp auto`.
    """
    where = resolve_device(device)
    prepare_determinism(where, deterministic=False)
    space = LabelSpace.from_json(state["label_space"])
    config, resolved = state["config"], state["resolved"]
    size = config["image_size"]
    model = build_model(config["backbone"], space.sizes, pretrained=False, image_size=size)
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint's weights do not fit its backbone: {reason}") from error
    model = model.to(where).to(memory_format=torch.channels_last).eval()
    return Predictor(
        model=model,
        label_space=space,
        transform=build_transform(
            train=False, image_size=size, mean=resolved["mean"], std=resolved["std"]
        ),
        decode_size=resolved["decode_size"],
        device=where,
        amp=resolve_amp(
            amp or resolved["amp"], model, where, batch_size=batch_size, image_size=size
        ),
    )


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Return the context in which the model runs; `amp` is a key of `AMP_DTYPES`."""
    return torch.autocast(device.type, dtype=AMP_DTYPES[amp], enabled=amp != "off")


def resolve_amp(
    amp: str, model: IGAENet, device: torch.device, *, batch_size: int, image_size: int
) -> str:
    """Return `off`, `bf16` or `fp16` for the flag `--amp`.

    `auto` on CUDA: bf16, on cards before Ampere fp16. On a CPU: off, unless two steps each way
    show bf16 to be at least 5 % faster. On others: off.
    """
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp fp16 needs CUDA, not {device.type}; use --amp bf16 or off")
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type != "cpu":
        return "off"
    images = torch.rand(batch_size, 3, image_size, image_size)
    plain = step_seconds(model, images, "off", limit=PROBE_SECONDS / 4)
    fast = step_seconds(model, images, "bf16", limit=PROBE_SECONDS / 4)
    logger.info("--amp auto: a step takes %.2f s in float32, %.2f s in bf16", plain, fast)
    return "bf16" if plain > PROBE_GAIN * fast else "off"


def step_seconds(model: IGAENet, images: Tensor, amp: str, *, limit: float) -> float:
    """Return the seconds of the faster of two training steps of a copy of `model` on the CPU.

    A first step over `limit` seconds is the only one.
    """
    trial = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    fastest = math.inf
    for _ in range(2):
        start = time.perf_counter()
        with autocast(torch.device("cpu"), amp):
            logits = trial(images)
        torch.cat(list(logits.values()), dim=1).float().square().mean().backward()
        fastest = min(fastest, time.perf_counter() - start)
        if fastest > limit:
            break
    return fastest


def task_losses(logits: Mapping[str, Tensor], labels: Tensor, label_smoothing: float) -> Tensor:
    """Return each task's mean cross-entropy, (n_tasks,) float32 in the order of TASKS.

    Args:
        logits: task -> (N, n_classes[task]), before softmax.
        labels: (N, n_tasks) int64.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Source: arXiv 2303.15263, section III; github.com/nathanlem1/IGAE-Net, utils/get_loss.py.
    """
    losses = [
        F.cross_entropy(logits[task].float(), labels[:, i], label_smoothing=label_smoothing)
        for i, task in enumerate(TASKS)
    ]
    return torch.stack(losses)


def raise_if_not_finite(losses: Sequence[Tensor], *, epoch: int, lr: float) -> None:
    """Stop a run whose loss has left the numbers; the first such step is named.

    Args:
        losses: per step of the epoch, (n_tasks,).
        epoch: counted from 1.
        lr: the heads' learning rate.
    """
    values = torch.stack(list(losses))
    wrong = (~values.isfinite().all(dim=1)).nonzero()
    if len(wrong):
        step = int(wrong[0])
        per_task = ", ".join(
            f"{t} {v:g}" for t, v in zip(TASKS, values[step].tolist(), strict=True)
        )
        raise UserError(
            f"the loss is not finite at epoch {epoch}, step {step + 1}, learning rate {lr:g}"
            f" ({per_task}); try a lower --lr or --amp off"
        )


def to_device(batch: Item, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a batch's images, channels last, and labels on the device."""
    images = batch.image.to(device, non_blocking=True, memory_format=torch.channels_last)
    return images, batch.labels.to(device, non_blocking=True)


def train_one_epoch(
    model: IGAENet,
    loader: Iterable[Item],
    optimizer: torch.optim.Optimizer,
    *,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    amp: str,
    loss_weights: Sequence[float],
    label_smoothing: float,
    epoch: int,
) -> dict[str, float]:
    """Train on every photo once; return the epoch's means over photos.

    Keys: `loss` (weighted sum), `loss_<task>`, `accuracy_<task>` (fractions, as trained on).
    """
    model.train()
    weights = torch.tensor(loss_weights, device=device)
    losses, hits, sizes = [], [], []
    lr = max(group["lr"] for group in optimizer.param_groups)
    for batch in tqdm(loader, desc=f"epoch {epoch}", unit="batch", leave=False, disable=None):
        images, labels = to_device(batch, device)
        with autocast(device, amp):
            logits = model(images)
        per_task = task_losses(logits, labels, label_smoothing)
        optimizer.zero_grad()
        scaler.scale((per_task * weights).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

        losses.append(per_task.detach())
        predicted = torch.stack([logits[task].argmax(dim=1) for task in TASKS], dim=1)
        hits.append((predicted == labels).sum(dim=0))
        sizes.append(len(images))
        if len(losses) % CHECK_EVERY == 0:
            raise_if_not_finite(losses, epoch=epoch, lr=lr)
    raise_if_not_finite(losses, epoch=epoch, lr=lr)

    share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    mean_losses = (torch.stack(losses).cpu().double() * share[:, None]).sum(dim=0)
    accuracies = torch.stack(hits).sum(dim=0).cpu().double() / sum(sizes)
    return {
        "loss": float((mean_losses * weights.cpu().double()).sum()),
        **{f"loss_{task}": float(v) for task, v in zip(TASKS, mean_losses, strict=True)},
        **{f"accuracy_{task}": float(v) for task, v in zip(TASKS, accuracies, strict=True)},
    }


@torch.inference_mode()
def predict_batches(
    model: IGAENet,
    loader: Iterable[Item],
    *,
    device: torch.device,
    amp: str,
    show_progress: bool = True,
) -> Iterator[tuple[Item, Tensor, dict[str, Tensor]]]:
    """Yield (batch, embedding, logits) in the loader's order; results are float32 on the CPU.

    Args:
        model: put into evaluation mode.
        loader: batches of `Item`.
        device: the model's.
        amp: a key of `AMP_DTYPES`.
        show_progress: in a terminal; not where results are printed as they come.
    """
    model.eval()
    disable = None if show_progress else True  # None: where stderr is no terminal
    for batch in tqdm(loader, desc="predict", unit="batch", leave=False, disable=disable):
        images, _ = to_device(batch, device)
        with autocast(device, amp):
            embedding = model.embed(images)
            logits = model.classify(embedding)
        if not all(values.isfinite().all() for values in logits.values()):
            raise UserError(
                "the model's answers are not finite: its weights have diverged, or --amp fp16"
                " overflows; take an earlier checkpoint, or --amp off"
            )
        yield batch, embedding.float().cpu(), {t: v.float().cpu() for t, v in logits.items()}


def predict_split(
    model: IGAENet, loader: Iterable[Item], *, device: torch.device, amp: str
) -> Predictions:
    """Return what the model says of all rows, once over the whole split."""
    labels, embeddings, logits = [], [], []
    for batch, embedding, batch_logits in predict_batches(model, loader, device=device, amp=amp):
        labels.append(batch.labels.numpy())
        embeddings.append(embedding.numpy())
        logits.append(batch_logits)
    return Predictions(
        np.concatenate(labels),
        np.concatenate(embeddings),
        {task: np.concatenate([part[task].numpy() for part in logits]) for task in TASKS},
    )
