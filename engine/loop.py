"""One epoch of training, one prediction pass, and the preprocessing that both need."""

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

from dataset_11k import Augmentation, Item, LabelSpace, PhotoReader
from engine.distributed import Distributed
from engine.losses import UNKNOWN, MultiTaskLoss
from engine.precision import autocast, available_amp, keep_freed_memory, resolve_amp
from model import IGAENet
from utils import UserError, resolve_device, set_determinism

# Default batch sizes of evaluation and prediction.
BATCH_SIZE_CPU, BATCH_SIZE_GPU = 16, 128
BATCH_SIZE_HELP = f"default: {BATCH_SIZE_CPU} on a CPU, else {BATCH_SIZE_GPU}"
MAX_BATCH_SIZE = 65_536
MAX_WORKERS = 256
CHECK_EVERY = 50  # steps between two checks of the losses, each of which waits for the device


def check_workers(num_workers: int) -> None:
    """Refuse a value of --num_workers that is out of range."""
    if not 0 <= num_workers <= MAX_WORKERS:
        raise ValueError(f"--num_workers must be from 0 to {MAX_WORKERS}, not {num_workers}")


def check_loading(batch_size: int | None, num_workers: int) -> None:
    """Refuse values of --batch_size and --num_workers that are out of range."""
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ValueError(f"--batch_size must be from 1 to {MAX_BATCH_SIZE}")
    check_workers(num_workers)


# ----------------------------------------------------------------------------- model input


class Preprocessing:
    """Turns a batch of photos into the model's input, on the model's device.

    Args:
        device: of the model.
        mean: of the normalisation, per RGB channel in [0, 1].
        std: likewise.
        augmentation: of training.
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


# ----------------------------------------------------------------------------- training


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    criterion: MultiTaskLoss,
    *,
    preprocessing: Preprocessing,
    scaler: torch.amp.GradScaler,
    amp: str,
    epoch: int,
    accumulate: int = 1,
    clip_grad: float | None = None,
    distributed: Distributed | None = None,
    after_step: Callable[[], None] | None = None,
) -> dict[str, float | None]:
    """Train on every photo once; return the epoch's means over the photos of all ranks.

    Keys: `loss` (weighted sum), `loss_<task>`, `accuracy_<task>` (fractions, on augmented photos);
    None for a task without a known label.

    Args:
        model: an `IGAENet`, or one that `Distributed.wrap` returned.
        loader: as `dataset_11k.build_loader` returns it for training.
        optimizer: its groups have their learning rates.
        criterion: on the model's device.
        preprocessing: makes the model's input.
        scaler: of the gradients; enabled in fp16 only.
        amp: a key of `precision.AMP_DTYPES`.
        epoch: counted from 1.
        accumulate: number of parts that a batch is split into to save memory. The step is the same
            if all labels are known; else parts (and ranks) weigh by their photos all the same.
        clip_grad: largest norm of the gradients; None: any.
        distributed: the ranks that train together; None: this process alone.
        after_step: called after each step of the optimiser.
    """
    model.train()
    device = preprocessing.device
    distributed = distributed or Distributed(0, 1, device)
    tasks = list(criterion.losses)
    losses = []  # of each step, (n_tasks,)
    totals = torch.zeros(3, len(tasks), dtype=torch.float64, device=device)
    lr = max(group["lr"] for group in optimizer.param_groups)
    sampler: Any = loader.batch_sampler
    hidden = None if distributed.is_main else True  # None: hidden unless stderr is a terminal
    progress = tqdm(loader, desc=f"epoch {epoch}", unit="batch", leave=False, disable=hidden)
    for batch, (n_here, n_all) in zip(progress, sampler.shares(), strict=True):
        images, labels = preprocessing(batch)
        optimizer.zero_grad()
        # gradients are averaged over ranks: multiplied by their number they add up; a rank
        # that has no photo of the batch keeps in step with one that does not count
        scale = distributed.world_size if n_here else 0
        losses.append(torch.zeros(len(tasks), device=device))
        n_parts = min(accumulate, max(1, len(images) // 2))  # batch norm needs two photos
        parts = [t.tensor_split(n_parts) for t in (images, labels)]
        for i, (part, part_labels) in enumerate(zip(*parts, strict=True), start=1):
            with defer_gradients(model) if i < n_parts else nullcontext():
                with autocast(device, amp):
                    embeddings, logits = model(part)
                per_task = criterion(embeddings, logits, part_labels)
                loss = (per_task * criterion.weights).sum() * (scale * len(part) / n_all)
                scaler.scale(loss).backward()
            losses[-1] += per_task.detach() * (len(part) / len(images))
            totals += epoch_sums(per_task.detach(), logits, part_labels) * (n_here > 0)
        if clip_grad is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
        scaler.step(optimizer)
        scaler.update()
        if after_step is not None:
            after_step()
        if len(losses) % CHECK_EVERY == 0:
            check_finite(losses, tasks, epoch=epoch, lr=lr)
    check_finite(losses, tasks, epoch=epoch, lr=lr)
    sums = torch.stack(distributed.all_gather(totals.cpu())).sum(dim=0)
    return epoch_means(sums, tasks, criterion.weights.tolist())


def defer_gradients(model: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which ranks do not exchange gradients yet."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def epoch_sums(losses: Tensor, logits: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Return sums over photos, (3, n_tasks): losses, correct predictions, known labels."""
    predicted = torch.stack([values.argmax(dim=1) for values in logits.values()], dim=1)
    n_known = (labels != UNKNOWN).sum(dim=0)
    return torch.stack([losses * n_known, (predicted == labels).sum(dim=0), n_known])


def epoch_means(
    sums: Tensor, tasks: Sequence[str], loss_weights: Sequence[float]
) -> dict[str, float | None]:
    """Return an epoch's means by name, from `epoch_sums` over the epoch."""
    loss, accuracy = (sums[:2] / sums[2]).tolist()  # NaN: no known label
    named = {
        **{f"loss_{task}": mean for task, mean in zip(tasks, loss, strict=True)},
        **{f"accuracy_{task}": mean for task, mean in zip(tasks, accuracy, strict=True)},
    }
    weighted = [w * mean for w, mean in zip(loss_weights, loss, strict=True) if mean == mean]
    return {
        "loss": sum(weighted),
        **{name: mean if mean == mean else None for name, mean in named.items()},
    }


def check_finite(losses: Sequence[Tensor], tasks: Sequence[str], *, epoch: int, lr: float) -> None:
    """Stop the run at the first step whose loss is not finite.

    Args:
        losses: of each step of the epoch, (n_tasks,).
        tasks: their names.
        epoch: counted from 1.
        lr: the heads' learning rate.
    """
    values = torch.stack(list(losses))
    wrong = (~values.isfinite().all(dim=1)).nonzero()
    if len(wrong):
        step = int(wrong[0])
        named = zip(tasks, values[step].tolist(), strict=True)
        raise UserError(
            f"the loss is not finite ({', '.join(f'{task} {value:g}' for task, value in named)}):"
            f" epoch {epoch}, step {step + 1}, learning rate {lr:g}. Try a lower --lr or --amp off"
        )


# ----------------------------------------------------------------------------- prediction


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for every sample of a split, in CSV order.

    labels: task -> (N,) int64 true class index, -1 where unknown.
    embeddings: (N, D) float32.
    logits: task -> (N, n_classes[task]) float32, before softmax.
    """

    labels: dict[str, np.ndarray]
    embeddings: np.ndarray
    logits: dict[str, np.ndarray]


@torch.inference_mode()
def predict_batches(
    model: nn.Module,
    loader: Iterable[Item],
    *,
    preprocessing: Preprocessing,
    amp: str,
    show_progress: bool = True,
) -> Iterator[tuple[Item, Tensor, dict[str, Tensor]]]:
    """Yield (batch, embeddings, logits) in the loader's order; results are float32 on the CPU.

    Args:
        model: an `IGAENet`, or what returns embeddings and logits as it does; put into evaluation
            mode.
        loader: batches of `Item`.
        preprocessing: makes the model's input.
        amp: a key of `precision.AMP_DTYPES`.
        show_progress: show a progress bar if stderr is a terminal.
    """
    model.eval()
    hidden = None if show_progress else True
    for batch in tqdm(loader, desc="predict", unit="batch", leave=False, disable=hidden):
        images, _ = preprocessing(batch)
        with autocast(preprocessing.device, amp):
            embeddings, logits = model(images)
        # one copy from the device, which also waits for it
        columns = [embeddings.float(), *(values.float() for values in logits.values())]
        widths = [column.shape[1] for column in columns]
        embeddings, *parts = torch.cat(columns, dim=1).cpu().split(widths, dim=1)
        if not all(part.isfinite().all() for part in parts):
            raise UserError(
                "the model's predictions are not finite: its weights have diverged, or --amp fp16"
                " overflows. Take an earlier checkpoint, or --amp off"
            )
        yield batch, embeddings, dict(zip(logits, parts, strict=True))


def predict_split(
    model: IGAENet,
    loader: DataLoader[Any],
    *,
    preprocessing: Preprocessing,
    amp: str,
    distributed: Distributed | None = None,
) -> Predictions:
    """Return the predictions for every sample of the split, on every rank.

    Args:
        model: put into evaluation mode.
        loader: as `dataset_11k.build_loader` returns it for evaluation.
        preprocessing: makes the model's input.
        amp: a key of `precision.AMP_DTYPES`.
        distributed: the ranks that share the batches; None: this process alone.
    """
    distributed = distributed or Distributed(0, 1, preprocessing.device)
    batches = [
        (torch.as_tensor(batch.row), batch.labels, embeddings, *logits.values())
        for batch, embeddings, logits in predict_batches(
            model,
            loader,
            preprocessing=preprocessing,
            amp=amp,
            show_progress=distributed.is_main,
        )
    ]
    mine = [torch.cat(column).numpy() for column in zip(*batches, strict=True)]
    parts = [part for part in distributed.all_gather(mine) if part]  # a rank may have no batch
    rows, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    labels, embeddings, *logits = (column[np.argsort(rows)] for column in columns)
    return Predictions(
        dict(zip(model.heads, labels.T, strict=True)),
        embeddings,
        dict(zip(model.heads, logits, strict=True)),
    )


@dataclass(frozen=True)
class Predictor:
    """A checkpoint's model, ready to predict, and how to prepare its input.

    amp: a key of `precision.AMP_DTYPES`.
    temperature: task -> what logits are divided by before softmax.
    """

    model: IGAENet
    label_space: LabelSpace
    preprocessing: Preprocessing
    reader: PhotoReader
    device: torch.device
    amp: str
    batch_size: int
    temperature: dict[str, float]


def build_predictor(
    state: Mapping[str, Any], *, device: str, amp: str | None, batch_size: int | None
) -> Predictor:
    """Return the predictor that a checkpoint describes.

    Args:
        state: as `checkpoint.load_checkpoint` returns it.
        device: value of the flag `--device`.
        amp: value of the flag `--amp`; None: the precision of the training.
        batch_size: value of the flag `--batch_size`; None: the default for the device.
    """
    where = resolve_device(device)
    set_determinism(where, deterministic=False)
    keep_freed_memory(where)
    label_space = LabelSpace.from_json(state["label_space"])
    config, resolved = state["config"], state["resolved"]
    image_size = config["image_size"]
    model = IGAENet(
        config["backbone"],
        label_space.sizes,
        pretrained=False,
        image_size=image_size,
        multi_level=config.get("multi_level", False),  # checkpoints of earlier versions lack both
        neck=config.get("neck", 0),
    )
    try:
        model.load_state_dict(state["model"])
    except Exception as error:  # PyTorch raises as many types as states can be wrong
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint's weights do not fit its backbone: {reason}") from error
    return Predictor(
        model=model.to(where).to(memory_format=torch.channels_last).eval(),
        label_space=label_space,
        preprocessing=Preprocessing(where, resolved["mean"], resolved["std"]),
        reader=PhotoReader(image_size, resolved["decode_size"]),
        device=where,
        amp=resolve_amp(amp, where) if amp else available_amp(resolved["amp"], where),
        batch_size=batch_size or (BATCH_SIZE_CPU if where.type == "cpu" else BATCH_SIZE_GPU),
        temperature={task: state["temperature"].get(task, 1.0) for task in label_space.tasks},
    )
