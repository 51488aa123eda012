"""Train IGAE-Net on one hand aspect: identity, gender and age group from one photo.

    python train.py --attributes_file ./11k/sub_dataset/dorsal_dr.csv

reads the aspect's train and val rows (dataset_11k_split.py; --protocol, --fold) and writes
checkpoints/<time>/:
config.json, metrics.jsonl (a line per epoch), train.log, tensorboard/, and checkpoints that are
each enough to evaluate, predict or resume. The defaults are the published recipe.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from filelock import BaseFileLock
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from data.cache import attach_cache, keep_on_device
from data.splits import PROTOCOLS, Data, read_data, say_who_is_known
from dataset_11k import TASKS, Augmentation, HandsDataset, LabelSpace, build_loader, resize_size
from engine.checkpoint import (
    CHECKPOINT_KEYS,
    announce_changes,
    check_resumable,
    check_unused,
    config_of_run,
    describe_checkpoint,
    last_checkpoint,
    load_checkpoint,
    lock_run,
    make_run_dir,
    read_run,
    save_checkpoint,
    tidy_checkpoints,
    tidy_run,
    what_if_damaged,
)
from engine.distributed import Ranks, has_lost_a_rank, join_ranks
from engine.loop import (
    Predictions,
    Preprocessing,
    Recipe,
    build_model,
    check_backbone,
    predict_split,
    train_one_epoch,
)
from engine.losses import task_losses
from engine.precision import (
    Shape,
    check_amp,
    compile_backbone,
    keep_freed_memory,
    resolve_compute,
    unfuse_attention,
)
from measures.classes import balanced_accuracy, class_means, fit_temperature
from measures.pairs import cosine_similarity, gallery_ranks
from model import BACKBONES, IGAENet, find_backbone, parameter_groups
from pages.build import write_training_report
from utils import (
    AMP_MODES,
    DEVICES,
    UserError,
    append_line,
    build_config,
    build_parser,
    config_to_json,
    describe_environment,
    flag,
    git_commit,
    logger,
    one_line_errors,
    resolve_device,
    seed_everything,
    set_determinism,
    setup_logging,
    usable_cpus,
    write_json,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COMPILE_MODES = ("auto", "on", "off")
CACHE_MODES = ("auto", "ram", "disk", "none")
AUGMENT_MODES = ("auto", "photo", "batch")
MAX_IMAGE_SIZE = 4096  # pixels; the photos have 1600 x 1200


@dataclass(frozen=True)
class TrainConfig:
    """What train.py is asked for; the defaults are the published recipe.

    Source: github.com/nathanlem1/IGAE-Net, train.py; arXiv 2303.15263, section IV.
    """

    attributes_file: Path = flag(Path("./11k/sub_dataset/dorsal_dr.csv"), "CSV of the hand aspect")
    protocol: str = flag(
        "paper", "split to train on, as in dataset_11k_split.py", choices=tuple(PROTOCOLS)
    )
    fold: int | None = flag(None, "of --protocol subject-disjoint, from 0 (default: 0)")
    permute_labels: bool = flag(
        False, "a control: permute gender and age between people, so that no hand tells them"
    )
    backbone: str = flag("swin_t", f"{', '.join(BACKBONES)} or any timm model")
    pretrained: bool = flag(True, "start from timm's ImageNet weights")
    backbone_weights: Path | None = flag(None, "start from this .pth or .safetensors file instead")
    allow_partial_weights: bool = flag(False, "load of --backbone_weights what fits")
    image_size: int = flag(224, "side of the model's input in pixels")
    drop_path: float | None = flag(None, "stochastic depth (default: 0.2 swin_t and maxvit_t, 0.1 convnext_t, else 0)")  # fmt: skip  # noqa: E501
    fast_decode: bool = flag(True, "let the JPEG decoder scale down before the resize")
    flip: float = flag(0.5, "probability of a horizontal flip")
    jitter: float = flag(0.3, "relative change of brightness, contrast and saturation")
    optimizer: str = flag("adam", "optimiser", choices=("adam", "sgd"))
    lr: float = flag(8e-4, "learning rate of the heads")
    backbone_lr_scale: float = flag(0.1, "learning rate of the backbone, relative to --lr")
    weight_decay: float = flag(5e-4, "L2 penalty")
    warmup: bool = flag(
        True, "warm up, halve at epochs 25 and 40; without: a tenth after 20 and 40"
    )
    batch_size: int = flag(20, "photos per step")
    N_epochs: int = flag(50, "epochs")
    eval_every: int = flag(5, "epochs between evaluations; the last is always evaluated")
    label_smoothing: float = flag(0.1, "share of the target spread over all classes")
    loss_weights: tuple[float, ...] = flag((1.0, 1.0, 1.0), "of identity, gender and age", nargs=3)
    seed: int = flag(42, "of weights, order and augmentation")
    deterministic: bool = flag(
        False, "deterministic algorithms on the GPU too (the CPU's always are)"
    )
    ema: float | None = flag(
        None, "decay of a moving average of the weights, which is then what is evaluated"
    )
    clip_grad: float | None = flag(None, "largest norm of the gradients")
    accumulate: int = flag(
        1, "parts that a batch is taken in, one after the other: less memory, the same step"
    )
    grad_checkpointing: bool = flag(False, "compute activations twice rather than keep them")
    sync_bn: bool = flag(False, "batch norm over the batch of all GPUs, not of each")
    amp: str = flag(
        "auto",
        "mixed precision; auto: on CUDA bf16 (old cards: fp16), on a CPU bf16 if a trial is faster",
        choices=AMP_MODES,
    )
    compile: str = flag(
        "auto", "compile the model; auto: where a trial shows that it pays", choices=COMPILE_MODES
    )
    cache: str = flag(
        "auto", "keep decoded photos; auto: on disk, else in memory", choices=CACHE_MODES
    )
    cache_dir: Path | None = flag(
        None, "folder of the cache on disk (default: <root>/cache)", metavar="DIR"
    )
    augment: str = flag(
        "auto", "by photo, or by batch on the device; auto: by batch on CUDA", choices=AUGMENT_MODES
    )
    device: str = flag("auto", "where to train: cuda, then mps, then cpu", choices=DEVICES)
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    run_dir: Path | None = flag(
        None, "folder of the run (default: checkpoints/<time>)", metavar="DIR"
    )
    resume: Path | None = flag(
        None, "folder of the run to go on with; a checkpoint in it will do", metavar="DIR"
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range, and flags that contradict each other."""
        positive = ("image_size", "lr", "batch_size", "N_epochs", "eval_every", "accumulate")
        not_negative = ("backbone_lr_scale", "weight_decay", "jitter", "seed", "num_workers")
        if self.fold is not None and not PROTOCOLS[self.protocol].disjoint:
            raise ValueError(f"--fold: --protocol {self.protocol} has no folds; leave it out")
        if self.image_size > MAX_IMAGE_SIZE:
            raise ValueError(f"--image_size must be at most {MAX_IMAGE_SIZE}")
        shares = {"flip": 1.0, "label_smoothing": 0.999, "drop_path": 0.999, "jitter": 1.0}
        shares["ema"] = 0.99999
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be a number above 0, not {getattr(self, name)}")
        for name in not_negative:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be a number from 0, not {getattr(self, name)}")
        for name, most in shares.items():
            if not 0 <= (getattr(self, name) or 0) <= most:
                raise ValueError(f"--{name} must be in [0, {most:g}], not {getattr(self, name)}")
        if self.clip_grad is not None and not 0 < self.clip_grad < math.inf:
            raise ValueError(f"--clip_grad must be a number above 0, not {self.clip_grad}")
        if self.accumulate > self.batch_size:
            raise ValueError("--accumulate must be at most --batch_size")
        if self.cache_dir and self.cache in ("none", "ram"):
            raise ValueError(f"--cache_dir has no effect with --cache {self.cache}")
        if self.seed >= 2**64:
            raise ValueError(f"--seed must be below 2**64, not {self.seed}")
        if not (all(w >= 0 for w in self.loss_weights) and 0 < sum(self.loss_weights) < math.inf):
            raise ValueError("--loss_weights must be numbers from 0, not all of them 0")
        if self.backbone_weights and not self.pretrained:
            raise ValueError("--backbone_weights and --no-pretrained contradict each other")
        if self.allow_partial_weights and not self.backbone_weights:
            raise ValueError("--allow_partial_weights goes with --backbone_weights")
        if self.resume and self.run_dir:
            raise ValueError("--resume names the run's folder; leave --run_dir out")


DECODE_MARGIN = 2  # the JPEG decoder leaves at least this many times the resize's target

MOMENTUM = 0.9  # of SGD, as published

# What an evaluation during training scores, once over the whole val split.
VAL_SCORES = (*(f"balanced_accuracy_{task}" for task in TASKS), "mean_balanced_accuracy", "rank_1")

NO_LABEL = -100  # what PyTorch's cross-entropy leaves out


@dataclass(frozen=True)
class Resolved:
    """What `auto` and the defaults came to: decided once, kept for resume and test."""

    amp: str
    compile: bool
    by_batch: bool  # as in dataset_11k.Augmentation
    drop_path: float
    warmup_epochs: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decode_size: int  # as in dataset_11k.open_photo


# ----------------------------------------------------------------------------- pure parts


def warmup_epochs(n_epochs: int) -> int:
    """Return the epoch from which on the full rate holds: 10, or less for a short run."""
    return min(10, max(1, n_epochs // 2))


def learning_rate(epoch: int, *, base: float, warmup: bool, warmup_epochs: int) -> float:
    """Return the heads' learning rate of an epoch, counted from 1.

    Source: github.com/nathanlem1/IGAE-Net, train.py lines 180-187 and lr_scheduler.py; there the
    warm-up takes 10 epochs however short the run.
    """
    if not warmup:
        return base * 0.1 ** ((epoch > 20) + (epoch > 40))
    if epoch < warmup_epochs:
        start = base / 100
        return start + (base - start) * epoch / warmup_epochs
    return base * 0.5 ** ((epoch >= 25) + (epoch >= 40))


def build_optimizer(model: IGAENet, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the published optimiser; `set_learning_rate` gives each epoch its rate."""
    groups = parameter_groups(model, backbone_scale=config.backbone_lr_scale)
    rates: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, **rates)
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, **rates)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set each group's rate to its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def checkpoint_bytes(model: IGAENet, config: TrainConfig) -> int:
    """Return about how many bytes a checkpoint takes: weights and the optimiser's moments."""
    copies = {"adam": 3, "sgd": 2}[config.optimizer] + (config.ema is not None)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return copies * parameters + sum(b.numel() * b.element_size() for b in model.buffers())


def first_photo_rank_1(predictions: Predictions, people: np.ndarray) -> float | None:
    """Return the share of photos whose most similar gallery photo shows the same person.

    The gallery is everybody's first photo by row, the others are queries; each counts the same
    (`matching.gallery_ranks`). None where nobody has two photos.
    """
    gallery = np.unique(people, return_index=True)[1]
    embedding = predictions.embedding
    ranks = gallery_ranks(cosine_similarity(embedding, embedding), people, gallery[None])
    ranks = ranks[~np.isnan(ranks)]
    return float((ranks == 1).mean()) if len(ranks) else None


def val_scores(
    predictions: Predictions, people: np.ndarray, config: TrainConfig
) -> dict[str, float | None]:
    """Return loss and `VAL_SCORES`, each scored once over the whole split.

    A disjoint protocol has only strangers on val: identity has no loss and no balanced accuracy
    (None), their embeddings are matched instead (`rank_1`, else None).

    Args:
        predictions: of the val rows.
        people: (N,) who is on the photo.
        config: of the run.
    """
    logits = {task: torch.from_numpy(values) for task, values in predictions.logits.items()}
    known = predictions.labels >= 0
    labels = torch.from_numpy(np.where(known, predictions.labels, NO_LABEL))
    asked = torch.from_numpy(known.any(axis=0))
    losses = task_losses(logits, labels, config.label_smoothing)[asked]
    if not losses.isfinite().all():
        raise UserError(
            "the model's answers on val are not finite; go on from the last checkpoint with a lower"
            " --lr in a new run, or with --amp off"
        )
    scores = {
        task: balanced_accuracy(
            predictions.labels[known[:, i], i], predictions.logits[task][known[:, i]].argmax(axis=1)
        )
        for i, task in enumerate(TASKS)
        if known[:, i].any()
    }
    disjoint = PROTOCOLS[config.protocol].disjoint
    return {
        "loss": float((losses * torch.tensor(config.loss_weights)[asked]).sum()),
        **{f"balanced_accuracy_{task}": scores.get(task) for task in TASKS},
        "mean_balanced_accuracy": sum(scores.values()) / len(scores),
        "rank_1": first_photo_rank_1(predictions, people) if disjoint else None,
    }


def selection_score(scores: Mapping[str, float | None]) -> float:
    """Return what the best epoch has most of.

    The mean of the three balanced accuracies; in a disjoint protocol of those of gender and age,
    and rank-1.
    """
    parts = [scores[name] for name in VAL_SCORES if name != "mean_balanced_accuracy"]
    counted = [part for part in parts if part is not None]
    return sum(counted) / len(counted)


def fit_temperatures(predictions: Predictions) -> dict[str, float]:
    """Return the temperature of each task, fitted on val; a task without a known class has none."""
    return {
        task: fit_temperature(predictions.logits[task][known], predictions.labels[known, i])
        for i, task in enumerate(TASKS)
        if (known := predictions.labels[:, i] >= 0).any()
    }


def describe_training(rows: pd.DataFrame, space: LabelSpace) -> dict[str, Any]:
    """Return what test.py's controls and ages in years ask of the training rows.

    Keys: `counts` (task -> photos of each class), `mean_ages` (in years, of each age group; None:
    no photo), `people` (gender, age -> class of each person of the space; -1: no photo).
    """
    labels, sizes = space.encode(rows), space.sizes
    means = class_means(rows["age"].to_numpy(), labels[:, list(TASKS).index("age")], sizes["age"])
    people, first = np.unique(labels[:, 0], return_index=True)
    of_person = np.full((sizes["identity"], len(TASKS)), -1)
    of_person[people] = labels[first]
    counts = {t: np.bincount(labels[:, i], minlength=sizes[t]) for i, t in enumerate(TASKS)}
    return {
        "counts": {task: values.tolist() for task, values in counts.items()},
        "mean_ages": [None if math.isnan(mean) else mean for mean in means.tolist()],
        "people": {t: of_person[:, i].tolist() for i, t in enumerate(TASKS) if t != "identity"},
    }


def read_run_data(config: TrainConfig) -> Data:
    """Return the checked rows of the run's aspect, protocol and fold."""
    return read_data(
        config.attributes_file,
        config.protocol,
        config.fold or 0,
        permutation_seed=config.seed if config.permute_labels else None,
    )


def build_loaders(
    config: TrainConfig, resolved: Resolved, data: Data, ranks: Ranks
) -> dict[str, DataLoader[Any]]:
    """Return the loaders of train (shuffled, augmented) and val (in CSV order), photos cached."""
    augmentation = Augmentation(
        config.image_size, flip=config.flip, jitter=config.jitter, by_batch=resolved.by_batch
    )
    loaders = {}
    for split, rows in data.rows.items():
        train = split == "train"
        dataset = HandsDataset(
            rows,
            data.folder,
            data.label_space,
            side=resize_size(config.image_size) if train else config.image_size,
            decode_size=resolved.decode_size,
            augmentation=augmentation if train else None,
        )
        folder = config.cache_dir or data.folder.parent / "cache"
        attach_cache(dataset, config.cache, folder=folder, num_workers=config.num_workers)
        if resolved.by_batch or not train:
            keep_on_device(dataset, ranks.device)
        loaders[split] = build_loader(
            dataset,
            batch_size=config.batch_size if train else max(1, config.batch_size // ranks.count),
            num_workers=config.num_workers,
            shuffle=train,
            seed=config.seed,
            rank=ranks.rank,
            n_ranks=ranks.count,
            pin_memory=ranks.device.type == "cuda",
        )
    return loaders


# ----------------------------------------------------------------------------- resuming


def read_resolved(stored: Mapping[str, Any]) -> Resolved:
    """Return what a run decided at its start."""
    try:
        return Resolved(**stored)
    except TypeError as error:
        raise UserError(
            f"the run was begun by another version ({error}); go on with that one, or start anew"
        ) from error


# ----------------------------------------------------------------------------- the run


@dataclass
class Run:
    """A run in progress: where it lies, what describes it, and what it learns."""

    folder: Path
    facts: dict[str, Any]  # config.json: config, resolved, label_space, fingerprints, ...
    training: dict[str, Any]  # as `describe_training` returns it
    model: IGAENet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    lock: BaseFileLock | None  # held by the first rank while the run is
    ema: ModelEmaV3 | None = None
    epoch: int = 0  # the last one finished
    best_epoch: int = 0
    best_score: float = -1.0

    def save(
        self, record: Mapping[str, Any], temperature: Mapping[str, float] | None = None
    ) -> None:
        """Write the epoch's checkpoint, then let go of what it replaces.

        Args:
            record: its line of metrics.jsonl.
            temperature: as `fit_temperatures` returns it; None: val was not evaluated.
        """
        state = {
            **self.facts,
            "training": self.training,
            "temperature": dict(temperature or {}),
            "epoch": self.epoch,
            "best": {"epoch": self.best_epoch, "score": self.best_score},
            "metrics": dict(record),
            "model": self.evaluated.state_dict(),
            "trained": self.model.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.folder / f"checkpoint-{self.epoch:06d}.pth", state)
        tidy_checkpoints(self.folder, epoch=self.epoch, best_epoch=self.best_epoch)

    @property
    def evaluated(self) -> IGAENet:
        """The model whose answers count: the moving average where there is one."""
        return self.ema.module if self.ema else self.model

    def average(self) -> None:
        """Move the average of the weights, where there is one, after a step."""
        if self.ema:
            self.ema.update(self.model)

    def restore(self, ranks: Ranks) -> None:
        """Go back to the folder's last checkpoint, or to the start where there is none.

        Raises:
            UserError: that checkpoint is damaged, or of another run.
        """
        path = last_checkpoint(self.folder)
        if path:
            state = load_checkpoint(path, CHECKPOINT_KEYS, what_next=what_if_damaged(path))
            if any(state[key] != self.facts[key] for key in ("label_space", "fingerprints")):
                raise UserError(f"{path} is of another run than {self.folder}; take it away")
            self.evaluated.load_state_dict(state["model"])
            if self.ema:
                self.model.load_state_dict(state["trained"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.epoch = state["epoch"]
            self.best_epoch, self.best_score = state["best"]["epoch"], state["best"]["score"]
            if self.best_checkpoint.exists() and ranks.is_first:
                without_it = "move it away, and --resume goes on without it"
                load_checkpoint(self.best_checkpoint, mapped=True, what_next=without_it)
            logger.info("goes on after epoch %d, from %s", self.epoch, path)
        if ranks.is_first:
            tidy_run(self.folder, epoch=self.epoch, best_epoch=self.best_epoch)

    @property
    def best_checkpoint(self) -> Path:
        """The file of the best epoch."""
        return self.folder / f"checkpoint-{self.best_epoch:06d}-best.pth"


def build_run_model(
    config: TrainConfig, data: Data, drop_path: float, ranks: Ranks, *, fresh: bool
) -> IGAENet:
    """Return the model on its device; if not `fresh`, a checkpoint will give it its weights."""
    seed_everything(config.seed, 0)
    fetch = fresh and ranks.is_first  # the other ranks get the first one's weights
    model = build_model(
        config.backbone,
        data.label_space.sizes,
        pretrained=config.pretrained and fetch,
        backbone_weights=config.backbone_weights if fetch else None,
        allow_partial_weights=config.allow_partial_weights,
        image_size=config.image_size,
        drop_path=drop_path,
        grad_checkpointing=config.grad_checkpointing,
    )
    if config.sync_bn and ranks.device.type != "cuda":
        raise UserError(f"--sync_bn needs CUDA, not {ranks.device.type}; leave it out")
    if config.sync_bn:
        model = convert_sync_batchnorm(model)
    if ranks.device.type == "cpu":
        unfuse_attention(model)
    model = model.to(ranks.device).to(memory_format=torch.channels_last)
    ranks.copy_from_first(model)
    return model


def step_shape(config: TrainConfig, ranks: Ranks) -> Shape:
    """Return what a rank computes at once."""
    if config.batch_size % ranks.count:
        raise UserError(
            f"--batch_size {config.batch_size} cannot be divided among {ranks.count} processes"
        )
    return Shape(math.ceil(config.batch_size / ranks.count / config.accumulate), config.image_size)


def resolve(
    config: TrainConfig, data: Data, model: IGAENet, drop_path: float, ranks: Ranks
) -> Resolved:
    """Decide once what the configuration leaves open; a model that gains by it is compiled."""
    n_steps = config.N_epochs * math.ceil(len(data.rows["train"]) / config.batch_size)
    amp, compiled = resolve_compute(
        *(config.amp, config.compile, model, ranks.device),
        step_shape(config, ranks),
        n_steps * config.accumulate,
    )
    on_cuda = ranks.device.type == "cuda"
    return Resolved(
        amp=amp,
        compile=compiled,
        by_batch=on_cuda if config.augment == "auto" else config.augment == "batch",
        drop_path=drop_path,
        warmup_epochs=warmup_epochs(config.N_epochs),
        mean=model.mean,
        std=model.std,
        decode_size=DECODE_MARGIN * resize_size(config.image_size) if config.fast_decode else 0,
    )


def prepare_run(
    config: TrainConfig, data: Data, ranks: Ranks, stored: Mapping[str, Any] | None
) -> tuple[Run, Resolved]:
    """Build the model and the run's folder, or take up those of the run that `stored` describes."""
    facts: dict[str, Any] = {
        "aspect": config.attributes_file.stem,
        "label_space": data.label_space.to_json(),
        "fingerprints": data.fingerprints,
        "environment": {**describe_environment(ranks.device), "ranks": ranks.count},
        "commit": git_commit(),
    }
    if stored and config.resume:
        check_resumable(stored, facts, config.resume)
    fresh = not (config.resume and last_checkpoint(config.resume))
    drop_path = find_backbone(config.backbone).drop_path
    drop_path = drop_path if config.drop_path is None else config.drop_path
    model = build_run_model(config, data, drop_path, ranks, fresh=fresh)
    if stored:
        resolved = read_resolved(stored["resolved"])
        check_amp(resolved.amp, ranks.device)
    else:
        resolved = ranks.share(lambda: resolve(config, data, model, drop_path, ranks))
    if resolved.compile and (stored or not ranks.is_first):
        compile_backbone(model, ranks.device, resolved.amp, step_shape(config, ranks))
    kept = {**config_to_json(config), "run_dir": None, "resume": None}
    facts |= {"config": kept, "resolved": config_to_json(resolved)}
    folder = config.resume or ranks.share(lambda: make_run_dir(config.run_dir))
    run = Run(
        folder=folder,
        facts=facts,
        training=describe_training(data.rows["train"], data.label_space),
        model=model,
        optimizer=build_optimizer(model, config),
        scaler=torch.amp.GradScaler(ranks.device.type, enabled=resolved.amp == "fp16"),
        lock=lock_run(folder) if ranks.is_first else None,
        ema=None if config.ema is None else ModelEmaV3(model, decay=config.ema),
    )
    setup_logging(run.folder / "train.log" if ranks.is_first else None, quiet=not ranks.is_first)
    if stored:
        announce_changes(stored, facts)
    run.restore(ranks)
    if stored and not run.epoch:
        logger.warning(
            "%s holds no checkpoint: it begins again at epoch 1, and metrics.jsonl is emptied",
            run.folder,
        )
    if ranks.is_first and run.epoch < config.N_epochs:  # a finished run stays as it is described
        write_json(run.folder / "config.json", facts)
    return run, resolved


def train(run: Run, config: TrainConfig, resolved: Resolved, data: Data, ranks: Ranks) -> None:
    """Train until the last epoch is done, a checkpoint and a line of metrics.jsonl each."""
    from torch.utils.tensorboard import SummaryWriter

    loaders = build_loaders(config, resolved, data, ranks)
    sampler: Any = loaders["train"].batch_sampler
    model = ranks.together(run.model)
    recipe = Recipe(
        amp=resolved.amp,
        loss_weights=config.loss_weights,
        label_smoothing=config.label_smoothing,
        parts=config.accumulate,
        clip_grad=config.clip_grad,
    )
    dataset: Any = loaders["train"].dataset
    normalisation = (ranks.device, resolved.mean, resolved.std)
    board = None
    if ranks.is_first:
        board = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.epoch + 1)
    for epoch in range(run.epoch + 1, config.N_epochs + 1):
        start = time.perf_counter()
        seed_everything(config.seed, epoch, *([ranks.rank] if ranks.rank else []))
        lr = learning_rate(
            epoch, base=config.lr, warmup=config.warmup, warmup_epochs=resolved.warmup_epochs
        )
        set_learning_rate(run.optimizer, lr)
        sampler.set_epoch(epoch)
        trained = train_one_epoch(
            model,
            loaders["train"],
            run.optimizer,
            recipe=recipe,
            preprocessing=Preprocessing(*normalisation, dataset.augmentation),
            scaler=run.scaler,
            ranks=ranks,
            epoch=epoch,
            after_step=run.average,
        )
        scores: dict[str, float | None] = {}
        temperature = None
        if epoch % config.eval_every == 0 or epoch == config.N_epochs:
            predictions = predict_split(
                run.evaluated,
                loaders["val"],
                preprocessing=Preprocessing(*normalisation),
                amp=resolved.amp,
                ranks=ranks,
            )
            scores = val_scores(predictions, data.rows["val"]["id"].to_numpy(), config)
            temperature = fit_temperatures(predictions)
        run.epoch = epoch
        if scores and selection_score(scores) > run.best_score:
            run.best_epoch, run.best_score = epoch, selection_score(scores)
        if board is not None:
            record = {
                "epoch": epoch,
                "lr": lr,
                "seconds": round(time.perf_counter() - start, 3),
                **{f"train_{name}": value for name, value in trained.items()},
                **{f"val_{name}": scores.get(name) for name in ("loss", *VAL_SCORES)},
            }
            log_epoch(record, config.N_epochs, board)
            append_line(run.folder / "metrics.jsonl", json.dumps(record, allow_nan=False))
            run.save(record, temperature)


def named_scores(record: Mapping[str, Any]) -> list[str]:
    """Return the scores of an evaluated epoch that there are, as text; `record` has its line."""
    named = {task: f"val_balanced_accuracy_{task}" for task in TASKS} | {"rank-1": "val_rank_1"}
    return [f"{n} {record[key]:.4f}" for n, key in named.items() if record.get(key) is not None]


def log_epoch(record: Mapping[str, Any], n_epochs: int, board: SummaryWriter) -> None:
    """Log one line, and the same numbers to TensorBoard."""
    parts = [f"epoch {record['epoch']}/{n_epochs}", f"{record['seconds']:.0f} s"]
    parts += [f"lr {record['lr']:.2e}", f"train loss {record['train_loss']:.4f}"]
    if record["val_loss"] is not None:
        parts.append(f"val loss {record['val_loss']:.4f}")
        parts += named_scores(record)
    logger.info("%s", ", ".join(parts))
    for name, value in record.items():
        if value is not None and name != "epoch":
            board.add_scalar(name.replace("_", "/", 1), value, record["epoch"])


def print_result(run: Run, config: TrainConfig, rows: Mapping[str, pd.DataFrame]) -> None:
    """Print what came out, and the command that evaluates it."""
    if not run.best_checkpoint.exists():  # resumed from a later checkpoint alone
        print(f"the best epoch is still {run.best_epoch}, whose checkpoint is not in {run.folder}")
        return
    best = describe_checkpoint(run.best_checkpoint)["metrics"]
    print(f"best epoch {run.best_epoch}: balanced accuracy on val {', '.join(named_scores(best))}")
    known = say_who_is_known(rows["val"], rows["train"], "val")
    reported = "test" if "test" in PROTOCOLS[config.protocol].splits else "val"
    chose = "the same photos" if reported == "val" else "the val photos, not the test photos,"
    print(f"protocol {config.protocol}: {known}; {chose} chose this epoch")
    print(
        f"evaluate it: python test.py --attributes_file {config.attributes_file}"
        f" --checkpoint {run.best_checkpoint}"
    )


def is_finished(folder: Path, n_epochs: int) -> bool:
    """Return whether a run has all its epochs; what a kill left undone at its end is done."""
    path = last_checkpoint(folder)
    if path is None:
        return False
    state = describe_checkpoint(path, what_next=what_if_damaged(path))
    if state["epoch"] < n_epochs:
        return False
    with lock_run(folder):
        tidy_run(folder, epoch=state["epoch"], best_epoch=state["best"]["epoch"])
    return True


def say_what_runs(run: Run, resolved: Resolved, config: TrainConfig, ranks: Ranks) -> None:
    """Log how the run is computed, and what a checkpoint will take."""
    size = checkpoint_bytes(run.model, config)
    logger.info(
        "run %s on %s, processes %d, amp %s, compile %s; a checkpoint takes about %.1f MB"
        " (%d bytes)",
        *(run.folder, ranks.device.type, ranks.count),
        *(resolved.amp, "on" if resolved.compile else "off", size / 1e6, size),
    )


def run_training(config: TrainConfig, stored: Mapping[str, Any] | None) -> int:
    """Train as the flags say; return the script's exit code.

    Args:
        config: the flags.
        stored: of a run that goes on, what describes it (`run_folder.read_run`).
    """
    ranks = join_ranks(resolve_device(config.device))
    setup_logging(quiet=not ranks.is_first)
    set_determinism(ranks.device, config.deterministic)
    keep_freed_memory(ranks.device)
    if config.resume and is_finished(config.resume, config.N_epochs):
        print(f"{config.resume} is finished: {config.N_epochs} epochs; a larger --N_epochs goes on")
        return 0
    if ranks.is_first and config.run_dir:
        check_unused(config.run_dir)
    step_shape(config, ranks)  # refuses a batch that the processes cannot share
    check_backbone(config.backbone, config.image_size)
    data = read_run_data(config)
    try:
        run, resolved = prepare_run(config, data, ranks, stored)
        say_what_runs(run, resolved, config, ranks)
        try:
            train(run, config, resolved, data, ranks)
        except KeyboardInterrupt:
            logger.info("interrupted; go on with: python train.py --resume %s", run.folder)
            return 130
    except RuntimeError as error:
        if ranks.count == 1 or not has_lost_a_rank(error):
            raise
        message = "another process of this run has ended; its own message says why"
        raise UserError(message) from error
    if ranks.is_first:
        print_result(run, config, data.rows)
    ranks.leave()
    if ranks.is_first:
        print(f"the curves: {write_training_report(run.folder)}")
    return 0


def may_be_restarted() -> bool:
    """Return whether torchrun starts this process again after a failure (`--max-restarts`).

    Its count of restarts does not tell: of several machines only the one that failed counts.
    """
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def is_begun(run_dir: Path) -> bool:
    """Return whether a run has been started in the folder."""
    return (run_dir / "config.json").is_file()


def read_flags(argv: Sequence[str] | None) -> tuple[TrainConfig, dict[str, Any] | None]:
    """Return the configuration, and of a run that goes on what describes it.

    A process that torchrun starts again goes on in the folder that its first start was given.
    """
    parser = build_parser(TrainConfig, __doc__)
    given = vars(parser.parse_args(argv))
    run_dir = given.get("run_dir")
    if may_be_restarted() and "resume" not in given and run_dir and is_begun(run_dir):
        given["resume"] = given.pop("run_dir")
    if "resume" not in given:
        return build_config(parser, TrainConfig, given), None
    stored = read_run(given["resume"])
    if given["resume"].is_file():
        given["resume"] = given["resume"].parent
    return build_config(
        parser, TrainConfig, config_of_run(given, stored["config"], TrainConfig)
    ), stored


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config, stored = read_flags(argv)
    return run_training(config, stored)


if __name__ == "__main__":
    sys.exit(main())
