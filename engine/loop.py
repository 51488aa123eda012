"""One epoch of training and one pass of prediction: what training, testing, predicting share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset_11k import TASKS, Augmentation, Item, LabelSpace
from engine.distributed import Ranks
from engine.losses import task_losses
from engine.precision import Shape, autocast, keep_freed_memory, resolve_amp
from model import IGAENet, ModelError, embedding_width
from utils import UserError, resolve_device, set_determinism

# Default batch sizes of evaluation and prediction.
BATCH_SIZE_CPU, BATCH_SIZE_GPU = 16, 128
BATCH_SIZE_HELP = f"default: {BATCH_SIZE_CPU} on a CPU, else {BATCH_SIZE_GPU}"
MAX_BATCH_SIZE = 65_536  # of photos; at 224 pixels they take 39 GB
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


class Preprocessing:
    """From a batch of photos to a model's input, on its device.

    Args:
        device: of the model.
        mean: of the normalisation, per RGB channel in [0, 1].
        std: likewise.
        augmentation: of training, where it is done by batch.
    """

    def __init__(
        self,
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
    ) -> None:
        self.device, self.augmentation = device, augmentation
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (mean, std))

    def __call__(self, batch: Item) -> tuple[Tensor, Tensor]:
        """Return images, (N, 3, H, W) float32 normalised, channels last, and labels."""
        pixels = batch.image.to(self.device, non_blocking=True)
        if self.augmentation is not None and self.augmentation.by_batch:
            draws = batch.draws.to(self.device, non_blocking=True)
            images = self.augmentation.augment_batch(pixels, draws)
        else:
            images = pixels.permute(0, 3, 1, 2).float() / 255
        images = images.sub_(self.mean).div_(self.std)
        labels = batch.labels.to(self.device, non_blocking=True)
        return images.contiguous(memory_format=torch.channels_last), labels


@dataclass(frozen=True)
class Predictor:
    """A checkpoint's model, ready to answer, with what turns a photo into its input."""

    model: IGAENet
    label_space: LabelSpace
    preprocessing: Preprocessing
    image_size: int
    decode_size: int
    device: torch.device
    amp: str
    batch_size: int
    temperature: dict[str, float]  # task -> what its logits are divided by before softmax


def load_predictor(
    state: Mapping[str, Any], *, device: str, amp: str | None, batch_size: int | None
) -> Predictor:
    """Return what a checkpoint describes, rebuilt from it alone.

    Args:
        state: as `checkpoints.load_checkpoint` returns it.
        device: value of the flag `--device`.
        amp: value of the flag `--amp`; None: the precision of the training.
        batch_size: value of the flag `--batch_size`; None: as the device fits.
    """
    where = resolve_device(device)
    n_at_once = batch_size or (BATCH_SIZE_CPU if where.type == "cpu" else BATCH_SIZE_GPU)
    set_determinism(where, deterministic=False)
    keep_freed_memory(where)
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
        preprocessing=Preprocessing(where, resolved["mean"], resolved["std"]),
        image_size=size,
        decode_size=resolved["decode_size"],
        device=where,
        batch_size=n_at_once,
        amp=resolve_amp(amp or resolved["amp"], model, where, Shape(n_at_once, size)),
        temperature={task: (state.get("temperature") or {}).get(task, 1.0) for task in TASKS},
    )


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


@dataclass(frozen=True)
class Recipe:
    """How every step of training is taken.

    amp: a key of `compute.AMP_DTYPES`.
    loss_weights: of the tasks, in the order of TASKS.
    label_smoothing: share of the target spread over all classes, in [0, 1).
    parts: that a batch is taken in, one after the other; less memory, the same step.
    clip_grad: largest norm of the gradients; None: any.
    """

    amp: str
    loss_weights: Sequence[float]
    label_smoothing: float
    parts: int = 1
    clip_grad: float | None = None


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    *,
    recipe: Recipe,
    preprocessing: Preprocessing,
    scaler: torch.amp.GradScaler,
    ranks: Ranks,
    epoch: int,
    after_step: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train on every photo once; return the epoch's means over the photos of all ranks.

    Keys: `loss` (weighted sum), `loss_<task>`, `accuracy_<task>` (fractions, as trained on).

    Args:
        model: an `IGAENet`, or the same wrapped for several ranks.
        loader: as `dataset_11k.build_loader` returns it, shuffled.
        optimizer: its groups have their learning rates.
        recipe: how a step is taken.
        preprocessing: makes the model's input.
        scaler: of the gradients; acts in fp16 alone.
        ranks: that train together.
        epoch: counted from 1.
        after_step: called after each step of the optimiser.
    """
    model.train()
    device, n_parts = preprocessing.device, recipe.parts
    weights = torch.tensor(recipe.loss_weights, device=device)
    losses, totals = [], torch.zeros(2, len(TASKS), dtype=torch.float64, device=device)
    lr = max(group["lr"] for group in optimizer.param_groups)
    sampler: Any = loader.batch_sampler
    progress = tqdm(
        loader,
        desc=f"epoch {epoch}",
        unit="batch",
        leave=False,
        disable=None if ranks.is_first else True,
    )
    for batch, (n_here, n_all) in zip(progress, sampler.shares(), strict=True):
        images, labels = preprocessing(batch)
        optimizer.zero_grad()
        parts = list(zip(images.chunk(n_parts), labels.chunk(n_parts), strict=True))
        losses.append(torch.zeros(len(TASKS), device=device))
        for i, (part, part_labels) in enumerate(parts, start=1):
            with gradients_later(model) if i < len(parts) else nullcontext():
                with autocast(device, recipe.amp):
                    logits = model(part)
                per_task = task_losses(logits, part_labels, recipe.label_smoothing)
                n_counted = len(part) if n_here else 0  # 0: a photo that keeps a rank in step
                # several ranks' gradients are averaged, so each counts as often as there are ranks
                share = ranks.count * n_counted / n_all
                scaler.scale((per_task * weights).sum() * share).backward()
            losses[-1] += per_task.detach() * (len(part) / len(images))
            predicted = torch.stack([logits[task].argmax(dim=1) for task in TASKS], dim=1)
            totals[1] += (predicted == part_labels).sum(dim=0) * (n_counted > 0)
        totals[0] += losses[-1] * n_here
        if recipe.clip_grad is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        if after_step is not None:
            after_step()
        if len(losses) % CHECK_EVERY == 0:
            raise_if_not_finite(losses, epoch=epoch, lr=lr)
    raise_if_not_finite(losses, epoch=epoch, lr=lr)
    n_photos = sum(n_all for _, n_all in sampler.shares())
    return epoch_means(sum(ranks.gather(totals.cpu())) / n_photos, recipe.loss_weights)


def gradients_later(model: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which ranks do not exchange gradients yet."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def epoch_means(means: Tensor, loss_weights: Sequence[float]) -> dict[str, float]:
    """Return means by name: (2, n_tasks) of losses and hits."""
    loss = float((means[0] * torch.tensor(loss_weights, dtype=torch.float64)).sum())
    named = zip(("loss", "accuracy"), means.tolist(), strict=True)
    return {
        "loss": loss,
        **{f"{k}_{t}": v for k, values in named for t, v in zip(TASKS, values, strict=True)},
    }


@torch.inference_mode()
def predict_batches(
    model: IGAENet,
    loader: Iterable[Item],
    *,
    preprocessing: Preprocessing,
    amp: str,
    show_progress: bool = True,
) -> Iterator[tuple[Item, Tensor, dict[str, Tensor]]]:
    """Yield (batch, embedding, logits) in the loader's order; results are float32 on the CPU.

    Args:
        model: put into evaluation mode.
        loader: batches of `Item`.
        preprocessing: makes the model's input.
        amp: a key of `compute.AMP_DTYPES`.
        show_progress: in a terminal; not where results are printed as they come.
    """
    model.eval()
    disable = None if show_progress else True  # None: where stderr is no terminal
    for batch in tqdm(loader, desc="predict", unit="batch", leave=False, disable=disable):
        images, _ = preprocessing(batch)
        with autocast(preprocessing.device, amp):
            embedding = model.embed(images)
            logits = model.classify(embedding)
        # one copy from the device, which also waits for it
        columns = torch.cat([embedding.float(), *(logits[task].float() for task in TASKS)], dim=1)
        widths = [embedding.shape[1], *(logits[task].shape[1] for task in TASKS)]
        embedding, *parts = columns.cpu().split(widths, dim=1)
        if not all(part.isfinite().all() for part in parts):
            raise UserError(
                "the model's answers are not finite: its weights have diverged, or --amp fp16"
                " overflows; take an earlier checkpoint, or --amp off"
            )
        yield batch, embedding, dict(zip(TASKS, parts, strict=True))


def predict_split(
    model: IGAENet,
    loader: DataLoader[Any],
    *,
    preprocessing: Preprocessing,
    amp: str,
    ranks: Ranks,
) -> Predictions:
    """Return what the model says of all rows, once over the whole split, in every rank."""
    columns: dict[str, list[np.ndarray]] = {}
    for batch, embedding, logits in predict_batches(
        model, loader, preprocessing=preprocessing, amp=amp, show_progress=ranks.is_first
    ):
        named = {
            "row": torch.as_tensor(batch.row),
            "labels": batch.labels,
            "embedding": embedding,
            **logits,
        }
        for name, values in named.items():
            columns.setdefault(name, []).append(values.numpy())
    mine = {name: np.concatenate(values) for name, values in columns.items()}
    parts = [part for part in ranks.gather(mine) if part]  # more ranks than batches: empty ones
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(whole["row"])
    return Predictions(
        whole["labels"][order],
        whole["embedding"][order],
        {task: whole[task][order] for task in TASKS},
    )
