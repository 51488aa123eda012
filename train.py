"""Train IGAE-Net on one hand aspect: identity, gender and age group from one photo.

    python train.py --attributes_file ./11k/sub_dataset/dorsal_dr.csv

reads the train and val samples that dataset_11k_split.py drew (--protocol, --fold) and writes
checkpoints/<time>/: config.json, metrics.jsonl (one line per epoch), train.log, tensorboard/, and
checkpoints, each of which is enough to evaluate, predict or resume. The defaults are the published
recipe; --recipe frozen and strong fit linear layers on a frozen backbone (`RECIPES`). With several
GPUs: torchrun --nproc_per_node=<n> train.py --run_dir <folder>; the same command again resumes it.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from data.cache import attach_cache, copy_to_device, name_all_broken_photos
from data.splits import PROTOCOLS, Data, describe_overlap, read_data, trained_files
from dataset_11k import (
    SAMPLERS,
    TASKS,
    Augmentation,
    HandsDataset,
    LabelSpace,
    PhotoReader,
    build_loader,
    resize_size,
)
from engine.checkpoint import (
    TrainingRun,
    advise_on_damage,
    best_checkpoint,
    check_resumable,
    check_unused,
    create_run_dir,
    describe_checkpoint,
    describe_training,
    is_last_epoch,
    last_checkpoint,
    list_checkpoints,
    lock_run,
    read_run,
    repair_run,
    warn_of_changes,
)
from engine.distributed import (
    Distributed,
    explain_lost_rank,
    init_distributed,
    launched_by_torchrun,
)
from engine.features import backbone_features
from engine.loop import (
    Predictions,
    Preprocessing,
    check_workers,
    epoch_means,
    epoch_sums,
    predict_split,
    train_one_epoch,
)
from engine.losses import UNKNOWN, MultiTaskLoss
from engine.precision import (
    available_amp,
    compile_backbone,
    keep_freed_memory,
    resolve_amp,
    unfuse_attention,
)
from measures.classes import balanced_accuracy, fit_temperature
from measures.linear import Linear, balanced_weights, fit_logistic, fit_whitening
from measures.pairs import cosine_similarity, gallery_ranks
from model import BACKBONES, IGAENet, compute_feature_widths, find_backbone, parameter_groups
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

MAX_NECK = 4096

MAX_IMAGE_SIZE = 4096  # pixels; the photos have 1600 x 1200

# Value of --fit -> whether an epoch, counted from 1, is fitted.
FITS: dict[str, Callable[[int, int], bool]] = {
    "never": lambda epoch, n_epochs: False,
    "first": lambda epoch, n_epochs: epoch == 1,
    "first_last": lambda epoch, n_epochs: epoch in (1, n_epochs),
}

# Inverse penalties of fitted heads. The one with the lowest loss on val is kept; the first, if val
# has no labels of the task's classes.
STRENGTHS = (1.0, 0.1, 0.01, 0.001, 10.0)

FROZEN = {"fit": "first", "multi_level": True, "neck": 512, "freeze": True, "N_epochs": 1}

# Recipe -> values of flags; any flag that is given besides overrides them.
RECIPES: dict[str, dict[str, Any]] = {
    "published": {},
    "frozen": FROZEN,
    "strong": {**FROZEN, "image_size": 320},  # docs/results.md: what else was tried
}


@dataclass(frozen=True)
class TrainConfig:
    """The flags of train.py; the defaults are the published recipe.

    Source: github.com/nathanlem1/IGAE-Net, train.py; arXiv 2303.15263, section IV.
    """

    attributes_file: tuple[Path, ...] = flag(
        (Path("./11k/sub_dataset/dorsal_dr.csv"),), "CSV of each hand aspect to train on", nargs="+"
    )
    mirror: str = flag(
        "none", "left: mirror photos of left hands into right hands", choices=("none", "left")
    )
    identity_per: str = flag(
        "person",
        "person: both hands of a person are one identity; hand: each is its own",
        choices=("person", "hand"),
    )
    recipe: str = flag(
        "published", "set of flag values; flags that are given override it", choices=tuple(RECIPES)
    )
    protocol: str = flag(
        "paper", "split to train on, as in dataset_11k_split.py", choices=tuple(PROTOCOLS)
    )
    fold: int | None = flag(
        None, "fold of --protocol subject-disjoint or lists, from 0 (default: 0)"
    )
    permute_labels: bool = flag(
        False, "baseline: permute gender and age between people, so that no hand shows them"
    )
    tasks: tuple[str, ...] = flag(
        (), "what to train (default: every task with two classes)", choices=tuple(TASKS), nargs="+"
    )
    backbone: str = flag("swin_t", f"{', '.join(BACKBONES)} or any timm model")
    pretrained: bool = flag(True, "start from timm's ImageNet weights")
    backbone_weights: Path | None = flag(None, "start from this .pth or .safetensors file instead")
    allow_partial_weights: bool = flag(False, "load those of --backbone_weights that fit")
    image_size: int = flag(224, "side of the model's input in pixels")
    multi_level: bool = flag(
        False, "also pool three lower maps of the backbone (mean and deviation of each channel)"
    )
    neck: int = flag(0, "dimension of a linear layer between backbone and heads; 0: none")
    fit: str = flag(
        "never",
        "epochs that fit neck (whitening) and heads (logistic regression) to the backbone's"
        " features, without gradient steps",
        choices=tuple(FITS),
    )
    freeze: bool = flag(False, "exclude the backbone from training, batch-norm statistics included")
    drop_path: float | None = flag(None, "stochastic depth (default: 0.2 swin_t and maxvit_t, 0.1 convnext_t, else 0)")  # fmt: skip  # noqa: E501
    fast_decode: bool = flag(True, "let the JPEG decoder scale down before the resize")
    flip: float = flag(0.5, "probability of a horizontal flip")
    jitter: float = flag(0.3, "largest relative change of brightness, contrast and saturation")
    sampler: str = flag(
        next(iter(SAMPLERS)), "how batches are drawn from the photos", choices=tuple(SAMPLERS)
    )
    optimizer: str = flag("adam", "optimiser", choices=("adam", "sgd"))
    lr: float = flag(8e-4, "learning rate of the heads")
    backbone_lr_scale: float = flag(
        0.1, "learning rate of the backbone, relative to --lr; 0: as --freeze"
    )
    weight_decay: float = flag(5e-4, "L2 penalty")
    warmup: bool = flag(
        True, "warm up, halve at epochs 25 and 40; without: a tenth after 20 and 40"
    )
    batch_size: int = flag(20, "photos per step, of all ranks together")
    N_epochs: int = flag(50, "epochs")
    eval_every: int = flag(5, "epochs between evaluations; the last is always evaluated")
    patience: int | None = flag(
        None, "stop after this many evaluations without a better score (default: never)"
    )
    label_smoothing: float = flag(0.1, "share of the target spread over all classes")
    loss_weights: tuple[float, ...] = flag(
        (),
        "weight of each task's loss, in the order of --tasks (default: as in TASKS, 1 each)",
        nargs="+",
    )
    seed: int = flag(42, "of weights, order and augmentation")
    deterministic: bool = flag(
        False, "deterministic algorithms on the GPU too (the CPU's always are)"
    )
    ema: float | None = flag(
        None, "decay of a moving average of the weights, which is then what is evaluated"
    )
    clip_grad: float | None = flag(None, "largest norm of the gradients")
    accumulate: int = flag(
        1, "split each batch into this many parts to save memory; same step if all labels are known"
    )
    grad_checkpointing: bool = flag(False, "recompute activations instead of storing them")
    sync_bn: bool = flag(False, "batch norm over the photos of all GPUs, not of each")
    amp: str = flag(
        "auto",
        "mixed precision; auto: bf16 on CUDA, fp16 on GPUs without it; elsewhere off",
        choices=AMP_MODES,
    )
    compile: bool = flag(False, "compile the backbone: a start of minutes, faster steps")
    cache: bool = flag(True, "keep decoded photos on disk between epochs and runs")
    cache_dir: Path | None = flag(
        None, "folder of the decoded photos (default: <root>/cache)", metavar="DIR"
    )
    augment: str = flag(
        "auto",
        "augment photo by photo, or by batch on the device; auto: by batch on CUDA",
        choices=("auto", "photo", "batch"),
    )
    device: str = flag("auto", "where to train: cuda, then mps, then cpu", choices=DEVICES)
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    run_dir: Path | None = flag(
        None, "folder of the run (default: checkpoints/<time>)", metavar="DIR"
    )
    resume: Path | None = flag(
        None, "folder of the run to continue, or its last checkpoint", metavar="DIR"
    )

    def __post_init__(self) -> None:
        """Refuse values out of range, and flags that contradict each other."""
        positive = ("image_size", "lr", "batch_size", "N_epochs", "eval_every", "accumulate")
        not_negative = ("backbone_lr_scale", "weight_decay", "jitter", "seed", "neck")
        at_most = {"flip": 1.0, "label_smoothing": 0.999, "drop_path": 0.999, "jitter": 1.0}
        at_most["ema"] = 0.99999
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be a number above 0, not {getattr(self, name)}")
        for name in not_negative:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be a number from 0, not {getattr(self, name)}")
        for name, most in at_most.items():
            if not 0 <= (getattr(self, name) or 0) <= most:
                raise ValueError(f"--{name} must be in [0, {most:g}], not {getattr(self, name)}")
        check_workers(self.num_workers)
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"--patience must be at least 1, not {self.patience}")
        if self.clip_grad is not None and not 0 < self.clip_grad < math.inf:
            raise ValueError(f"--clip_grad must be a number above 0, not {self.clip_grad}")
        weights = self.loss_weights or (1.0,)
        if not (all(w >= 0 for w in weights) and 0 < sum(weights) < math.inf):
            raise ValueError("--loss_weights must be numbers from 0, not all of them 0")
        contradictions = {
            f"--fold: --protocol {self.protocol} has no folds; leave it out": (
                self.fold is not None and PROTOCOLS[self.protocol].folds == 1
            ),
            f"--image_size must be at most {MAX_IMAGE_SIZE}": self.image_size > MAX_IMAGE_SIZE,
            f"--seed must be below 2**64, not {self.seed}": self.seed >= 2**64,
            "--accumulate must be at most --batch_size": self.accumulate > self.batch_size,
            "--attributes_file names an aspect twice": (
                len({path.stem for path in self.attributes_file}) < len(self.attributes_file)
            ),
            "--tasks names a task twice": len(set(self.tasks)) < len(self.tasks),
            "--cache_dir has no effect with --no-cache": self.cache_dir and not self.cache,
            "--backbone_weights and --no-pretrained contradict each other": (
                self.backbone_weights and not self.pretrained
            ),
            "--allow_partial_weights needs --backbone_weights": (
                self.allow_partial_weights and not self.backbone_weights
            ),
            "--resume names the run's folder; leave --run_dir out": self.resume and self.run_dir,
            f"--fit {self.fit} needs --neck": self.fit != "never" and not self.neck,
            f"--neck must be at most {MAX_NECK}": self.neck > MAX_NECK,
            "--fit first_last needs the last epoch; leave --patience out": (
                self.fit == "first_last" and self.patience is not None
            ),
        }
        for message, is_wrong in contradictions.items():
            if is_wrong:
                raise ValueError(message)


DECODE_MARGIN = 2  # the JPEG decoder leaves at least this many times the resize's target

MOMENTUM = 0.9  # of SGD, as published


@dataclass(frozen=True)
class Resolved:
    """What `auto` and the defaults were resolved to: stored with the run, reused by --resume.

    by_batch, decode_size: as in dataset_11k.
    mean, std: of the input's normalisation, per RGB channel.
    """

    amp: str
    by_batch: bool
    drop_path: float
    warmup_epochs: int
    loss_weights: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decode_size: int


# ----------------------------------------------------------------------------- recipe


def warmup_epochs(n_epochs: int) -> int:
    """Return the epoch from which the full rate holds: 10, or less for a short run."""
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
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, **options)
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, **options)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set each group's rate to its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def build_loaders(
    config: TrainConfig, resolved: Resolved, data: Data, distributed: Distributed
) -> dict[str, DataLoader[Any]]:
    """Return the loaders of train (shuffled, augmented) and val (in CSV order)."""
    loaders = {}
    for split, samples in data.samples.items():
        train = split == "train"
        augmentation = Augmentation(
            config.image_size, flip=config.flip, jitter=config.jitter, by_batch=resolved.by_batch
        )
        size = resize_size(config.image_size) if train else config.image_size
        dataset = HandsDataset(
            samples,
            data.folder,
            data.label_space,
            reader=PhotoReader(size, resolved.decode_size),
            augmentation=augmentation if train else None,
        )
        if config.cache:
            cache_dir = config.cache_dir or data.folder.parent / "cache"
            attach_cache(
                dataset,
                data.listed["name"].tolist(),
                sources=data.sources,
                cache_dir=cache_dir,
                num_workers=config.num_workers,
            )
        if resolved.by_batch or not train:
            copy_to_device(dataset, distributed.device)
        n_photos = config.batch_size if train else config.batch_size // distributed.world_size
        loaders[split] = build_loader(
            dataset,
            batch_size=n_photos,
            num_workers=config.num_workers,
            train=train,
            sampler=config.sampler,
            seed=config.seed,
            rank=distributed.rank,
            world_size=distributed.world_size,
            pin_memory=distributed.device.type == "cuda",
        )
    return loaders


# ----------------------------------------------------------------------------- validation


def first_photo_rank_1(embeddings: np.ndarray, people: np.ndarray) -> float | None:
    """Return the share of photos whose most similar gallery photo shows the same person.

    The gallery is everybody's first photo, the others are queries; each person counts the same
    (`measures.pairs.gallery_ranks`). None if nobody has two photos.
    """
    gallery = np.unique(people, return_index=True)[1]
    ranks = gallery_ranks(cosine_similarity(embeddings, embeddings), people, gallery[None])
    ranks = ranks[~np.isnan(ranks)]
    return float((ranks == 1).mean()) if len(ranks) else None


def val_scores(
    predictions: Predictions, people: np.ndarray, config: TrainConfig, resolved: Resolved
) -> dict[str, float | None]:
    """Return loss and scores (`val_names`), each computed once over the whole split.

    None: not applicable. Unseen people (val of subject-disjoint) cannot be classified; their
    embeddings are compared instead (`rank_1`).

    Args:
        predictions: for val.
        people: (N,) id of each photo's person.
        config: the flags.
        resolved: what they were resolved to.
    """
    tasks = list(predictions.logits)
    criterion = MultiTaskLoss(tasks, resolved.loss_weights, config.label_smoothing)
    logits = {task: torch.from_numpy(values) for task, values in predictions.logits.items()}
    labels = torch.from_numpy(np.stack(list(predictions.labels.values()), axis=1))
    losses = criterion(torch.from_numpy(predictions.embeddings), logits, labels)
    if not losses.isfinite().all():
        raise UserError(
            "the loss on val is not finite. Start a new run with a lower --lr, or with --amp off"
        )
    scores: dict[str, float | None] = {}
    for task, truth in predictions.labels.items():
        known = truth != UNKNOWN
        predicted = predictions.logits[task].argmax(axis=1)
        score = balanced_accuracy(truth[known], predicted[known]) if known.any() else None
        scores[f"balanced_accuracy_{task}"] = score
    unseen = "val" in PROTOCOLS[config.protocol].unseen
    computed = [score for score in scores.values() if score is not None]
    return {
        "loss": float((losses * criterion.weights).sum()),
        **scores,
        "mean_balanced_accuracy": sum(computed) / len(computed) if computed else None,
        "rank_1": first_photo_rank_1(predictions.embeddings, people) if unseen else None,
    }


def val_names(tasks: Sequence[str]) -> list[str]:
    """Return the keys of `val_scores`."""
    scores = [f"balanced_accuracy_{task}" for task in tasks]
    return ["loss", *scores, "mean_balanced_accuracy", "rank_1"]


def selection_score(
    scores: Mapping[str, float | None], tasks: Sequence[str], resolved: Resolved
) -> float:
    """Return the score that selects the best epoch.

    The mean of the balanced accuracies of the tasks whose loss has a weight; if val shows unseen
    people, identity contributes rank-1 instead.
    """
    names = []
    for task, weight in zip(tasks, resolved.loss_weights, strict=True):
        names += [f"balanced_accuracy_{task}"] * (weight > 0)
        names += ["rank_1"] * (weight > 0 and TASKS[task].column == "id")
    found = [score for name in names if (score := scores[name]) is not None]
    if not found:
        raise UserError("val has no labels of the trained tasks, so that no epoch can be selected")
    return sum(found) / len(found)


def fit_temperatures(predictions: Predictions) -> dict[str, float]:
    """Return the temperature of each task with known labels, fitted on val."""
    return {
        task: fit_temperature(predictions.logits[task][known], labels[known])
        for task, labels in predictions.labels.items()
        if (known := labels != UNKNOWN).any()
    }


# ----------------------------------------------------------------------------- fitting


def balanced_loss(
    head: Linear, embeddings: np.ndarray, labels: np.ndarray, people: np.ndarray
) -> float:
    """Return the cross-entropy of a head with `balanced_weights`; 0 without photos."""
    if not len(labels):
        return 0.0
    log_probabilities = log_softmax(head(embeddings), axis=1)[np.arange(len(labels)), labels]
    return -float((balanced_weights(labels, people) * log_probabilities).mean())


def set_linear(layer: nn.Module, fitted: Linear) -> None:
    """Copy what was fitted into a layer of the same size."""
    state = {"weight": torch.from_numpy(fitted.weight), "bias": torch.from_numpy(fitted.bias)}
    layer.load_state_dict(state)


def fit(
    model: IGAENet, config: TrainConfig, resolved: Resolved, data: Data, device: torch.device
) -> tuple[dict[str, float | None], Predictions]:
    """Fit neck and heads; return the means of `train_one_epoch` and the predictions for val.

    Heads weigh all classes the same, and in each class all people (`balanced_weights`); whitening
    weighs photos the same. Of `STRENGTHS` each head keeps the one with the lowest loss on val,
    weighted likewise.

    Args:
        model: whose neck and heads are set.
        config: the flags.
        resolved: what they were resolved to.
        data: to fit to.
        device: of the model.
    """
    cache_dir = config.cache_dir or data.folder.parent / "cache"
    features = backbone_features(
        model,
        data.listed,
        data.folder,
        reader=PhotoReader(config.image_size, resolved.decode_size),
        preprocessing=Preprocessing(device, resolved.mean, resolved.std),
        amp=resolved.amp,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        cache_dir=cache_dir if config.cache else None,
    )
    rows = pd.Series(np.arange(len(features)), index=data.listed["name"])
    pooled = {s: features[rows[x["name"]]].astype(float) for s, x in data.samples.items()}
    labels = {split: data.label_space.encode(x) for split, x in data.samples.items()}
    people = {split: x["id"].to_numpy() for split, x in data.samples.items()}
    neck = fit_whitening(pooled["train"], people["train"], config.neck, model.feature_widths)
    set_linear(model.neck, neck)
    embeddings = {split: neck(values) for split, values in pooled.items()}
    logits: dict[str, dict[str, np.ndarray]] = {split: {} for split in pooled}
    for column, task in enumerate(model.heads):
        known = {split: labels[split][:, column] != UNKNOWN for split in labels}
        photos, val = (
            (embeddings[s][known[s]], labels[s][known[s], column], people[s][known[s]])
            for s in ("train", "val")
        )
        n_classes = data.label_space.sizes[task]
        strengths = STRENGTHS if known["val"].any() else STRENGTHS[:1]
        heads = [fit_logistic(*photos, n_classes, strength) for strength in strengths]
        head = min(heads, key=lambda head: balanced_loss(head, *val))
        set_linear(model.get_submodule(f"heads.{task}.0"), head)
        for split, values in embeddings.items():
            logits[split][task] = head(values).astype(np.float32)
    criterion = MultiTaskLoss(list(model.heads), resolved.loss_weights, config.label_smoothing)
    scores = {task: torch.from_numpy(values) for task, values in logits["train"].items()}
    targets = torch.from_numpy(labels["train"])
    losses = criterion(torch.from_numpy(embeddings["train"]), scores, targets)
    means = epoch_means(
        epoch_sums(losses, scores, targets), list(model.heads), resolved.loss_weights
    )
    predictions = Predictions(
        dict(zip(model.heads, labels["val"].T, strict=True)),
        embeddings["val"].astype(np.float32),
        logits["val"],
    )
    return means, predictions


# ----------------------------------------------------------------------------- training


def train(
    run: TrainingRun, config: TrainConfig, resolved: Resolved, data: Data, distributed: Distributed
) -> None:
    """Train to the last epoch; each writes a checkpoint and a line of metrics.jsonl."""
    from torch.utils.tensorboard import SummaryWriter

    start = time.perf_counter()
    epochs = range(run.epoch + 1, config.N_epochs + 1)
    fitted = {epoch for epoch in epochs if FITS[config.fit](epoch, config.N_epochs)}
    loaders = build_loaders(config, resolved, data, distributed) if set(epochs) - fitted else {}
    tasks, device = data.label_space.tasks, distributed.device
    normalisation = (device, resolved.mean, resolved.std)
    criterion = MultiTaskLoss(tasks, resolved.loss_weights, config.label_smoothing).to(device)
    model = distributed.wrap(run.model)
    board = None
    if distributed.is_main:
        board = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.epoch + 1)
    for epoch in epochs:
        seed_everything(config.seed, epoch, *([distributed.rank] if distributed.rank else []))
        lr = learning_rate(
            epoch, base=config.lr, warmup=config.warmup, warmup_epochs=resolved.warmup_epochs
        )
        set_learning_rate(run.optimizer, lr)
        evaluated = epoch in fitted or epoch % config.eval_every == 0 or epoch == config.N_epochs
        if epoch in fitted:
            means, predictions = distributed.broadcast_object(
                lambda: fit(run.evaluated_model, config, resolved, data, device)
            )
            distributed.broadcast_weights(run.evaluated_model)
            run.model.load_state_dict(run.evaluated_model.state_dict())
        else:
            train_set: Any = loaders["train"].dataset
            batch_sampler: Any = loaders["train"].batch_sampler
            batch_sampler.set_epoch(epoch)
            means = train_one_epoch(
                model,
                loaders["train"],
                run.optimizer,
                criterion,
                preprocessing=Preprocessing(*normalisation, train_set.augmentation),
                scaler=run.scaler,
                amp=resolved.amp,
                epoch=epoch,
                accumulate=config.accumulate,
                clip_grad=config.clip_grad,
                distributed=distributed,
                after_step=run.update_ema,
            )
            if evaluated:
                predictions = predict_split(
                    run.evaluated_model,
                    loaders["val"],
                    preprocessing=Preprocessing(*normalisation),
                    amp=resolved.amp,
                    distributed=distributed,
                )
        scores: dict[str, float | None] = {}
        temperature: dict[str, float] = {}
        if evaluated:
            scores = val_scores(predictions, data.samples["val"]["id"].to_numpy(), config, resolved)
            temperature = fit_temperatures(predictions)
        run.finish_epoch(epoch, selection_score(scores, tasks, resolved) if scores else None)
        if board is not None:
            record = {
                "epoch": epoch,
                "lr": lr,
                "seconds": round(time.perf_counter() - start, 3),  # the first includes decoding
                **{f"train_{name}": value for name, value in means.items()},
                **{f"val_{name}": scores.get(name) for name in val_names(tasks)},
            }
            log_epoch(record, config.N_epochs, board)
            append_line(run.folder / "metrics.jsonl", json.dumps(record, allow_nan=False))
            run.save(record, temperature)
        if is_last_epoch(epoch, run.best_epoch, vars(config)):
            if epoch < config.N_epochs:
                logger.info("stopped: %d evaluations without a better score", config.patience)
            return
        start = time.perf_counter()


def log_epoch(record: Mapping[str, Any], n_epochs: int, board: SummaryWriter) -> None:
    """Log one line, and the same numbers to TensorBoard."""
    parts = [f"epoch {record['epoch']}/{n_epochs}", f"{record['seconds']:.0f} s"]
    parts += [f"lr {record['lr']:.2e}", f"train loss {record['train_loss']:.4f}"]
    if record["val_loss"] is not None:
        parts += [f"val loss {record['val_loss']:.4f}", describe_scores(record)]
    logger.info("%s", ", ".join(parts))
    for name, value in record.items():
        if value is not None and name != "epoch":
            board.add_scalar(name.replace("_", "/", 1), value, record["epoch"])


def describe_scores(record: Mapping[str, Any]) -> str:
    """Return the validation scores of an epoch's record as text."""
    prefix = "val_balanced_accuracy_"
    scores = {name.removeprefix(prefix): record[name] for name in record if prefix in name}
    balanced = [f"{task} {score:.4f}" for task, score in scores.items() if score is not None]
    parts = [f"balanced accuracy {', '.join(balanced)}"] if balanced else []
    if record["val_rank_1"] is not None:
        parts.append(f"rank-1 {record['val_rank_1']:.4f}")
    return "; ".join(parts)


# ----------------------------------------------------------------------------- the run


def read_run_data(config: TrainConfig, stored: Mapping[str, Any] | None = None) -> Data:
    """Return the checked samples of the run's aspects, protocol and fold.

    Args:
        config: the flags.
        stored: of a resumed run, what describes it.
    """
    data = read_data(
        config.attributes_file,
        config.protocol,
        config.fold or 0,
        tasks=tuple(stored["label_space"]) if stored else config.tasks,
        permutation_seed=config.seed if config.permute_labels else None,
        config=config_to_json(config),
    )
    if stored or not config.loss_weights:
        return data
    named = config.tasks or data.label_space.tasks
    if len(config.loss_weights) != len(named):
        raise UserError(
            f"--loss_weights has {len(config.loss_weights)} values for {len(named)} tasks"
            f" ({', '.join(named)}). Give one for each"
        )
    left_out = [t for t, w in zip(named, config.loss_weights, strict=True) if w == 0]
    if left_out:
        logger.info("left out, as the weight of the loss is 0: %s", ", ".join(left_out))
    kept = {t: names for t, names in data.label_space.names.items() if t not in left_out}
    return replace(data, label_space=LabelSpace(kept))


def check_model(config: TrainConfig) -> None:
    """Refuse an unknown backbone, or an image size it does not support, without loading weights."""
    compute_feature_widths(config.backbone, config.image_size, multi_level=config.multi_level)


def build_run_model(
    config: TrainConfig, label_space: LabelSpace, distributed: Distributed, *, fresh: bool
) -> IGAENet:
    """Return the model on its device; unless `fresh`, a checkpoint will provide its weights."""
    seed_everything(config.seed, 0)
    load = fresh and distributed.is_main  # the other ranks get rank 0's weights
    device = distributed.device
    model = IGAENet(
        config.backbone,
        label_space.sizes,
        pretrained=config.pretrained and load,
        backbone_weights=config.backbone_weights if load else None,
        allow_partial_weights=config.allow_partial_weights,
        image_size=config.image_size,
        drop_path=config.drop_path,
        grad_checkpointing=config.grad_checkpointing,
        multi_level=config.multi_level,
        neck=config.neck,
    )
    if config.sync_bn:
        model = convert_sync_batchnorm(model)
    if device.type == "cpu":
        unfuse_attention(model)
    if config.freeze or config.backbone_lr_scale == 0:
        model.freeze_backbone()
    has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if config.batch_size // distributed.world_size < 2 and has_batch_norm and not model.is_frozen:
        raise UserError(
            f"batch norm of {config.backbone} needs at least 2 photos per rank: --batch_size"
            f" {config.batch_size}. Give {2 * distributed.world_size} or more"
        )
    model = model.to(device).to(memory_format=torch.channels_last)
    distributed.broadcast_weights(model)
    return model


def resolve(
    config: TrainConfig, tasks: Sequence[str], model: IGAENet, *, amp: str, on_cuda: bool
) -> Resolved:
    """Decide once what the flags leave open; `amp` as `resolve_amp` returned it."""
    weights = [w for w in config.loss_weights if w > 0]  # `tasks` lacks those of weight 0
    trained = [task for task in config.tasks if task in tasks] or tasks  # in the user's order
    weight_of = {task: TASKS[task].weight for task in tasks} | dict(
        zip(trained, weights, strict=bool(weights))
    )
    default = find_backbone(config.backbone).drop_path
    return Resolved(
        amp=amp,
        by_batch=on_cuda if config.augment == "auto" else config.augment == "batch",
        drop_path=default if config.drop_path is None else config.drop_path,
        warmup_epochs=warmup_epochs(config.N_epochs),
        loss_weights=tuple(weight_of[task] for task in tasks),
        mean=model.mean,
        std=model.std,
        decode_size=DECODE_MARGIN * resize_size(config.image_size) if config.fast_decode else 0,
    )


def read_resolved(stored: Mapping[str, Any], amp: str) -> Resolved:
    """Return what a resumed run resolved when it started, with the precision it has here."""
    values: dict[str, Any] = stored["resolved"]
    try:
        weights = tuple(values["loss_weights"])
        return Resolved(**{**values, "amp": amp, "loss_weights": weights})
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the run's settings do not fit this version ({error}). Continue with the version that"
            " started it"
        ) from error


def prepare_run(
    config: TrainConfig,
    data: Data,
    distributed: Distributed,
    stored: Mapping[str, Any] | None,
    *,
    amp: str,
) -> tuple[TrainingRun, Resolved]:
    """Build everything that is trained, and the run's folder unless a run is resumed.

    Args:
        config: the flags.
        data: to train on.
        distributed: this process.
        stored: of a resumed run, what describes it.
        amp: as `resolve_amp` returned it.
    """
    device, label_space = distributed.device, data.label_space
    fresh = not (config.resume and last_checkpoint(config.resume))
    model = build_run_model(config, label_space, distributed, fresh=fresh)
    if stored:
        resolved = read_resolved(stored, amp)
    else:
        on_cuda = device.type == "cuda"
        resolved = resolve(config, label_space.tasks, model, amp=amp, on_cuda=on_cuda)
    if config.compile:
        n_photos = math.ceil(config.batch_size / distributed.world_size / config.accumulate)
        size = config.image_size
        compile_backbone(model, device, resolved.amp, (n_photos, 3, size, size))
    facts = {
        "config": {**config_to_json(config), "run_dir": None, "resume": None},
        "resolved": config_to_json(resolved),
        "label_space": label_space.to_json(),
        "aspect": "+".join(path.stem for path in config.attributes_file),
        "fingerprints": data.fingerprints,
        "environment": {**describe_environment(device), "world_size": distributed.world_size},
        "commit": git_commit(),
        "training": describe_training(data.samples["train"], label_space),
    }
    run = TrainingRun(
        config.resume or distributed.broadcast_object(lambda: create_run_dir(config.run_dir)),
        facts,
        model,
        optimizer=build_optimizer(model, config),
        scaler=torch.amp.GradScaler(device.type, enabled=resolved.amp == "fp16"),
        ema=None if config.ema is None else ModelEmaV3(model, decay=config.ema),
    )
    return run, resolved


def start_run(
    run: TrainingRun,
    config: TrainConfig,
    distributed: Distributed,
    stored: Mapping[str, Any] | None,
) -> None:
    """Open the log, continue from the last checkpoint if there is one, write config.json."""
    log_file = run.folder / "train.log" if distributed.is_main else None
    setup_logging(log_file, quiet=not distributed.is_main)
    if stored:
        warn_of_changes(stored, run.facts)
    run.restore(is_main=distributed.is_main)
    if stored and not run.epoch:
        logger.warning("no checkpoint in %s: restarting at epoch 1", run.folder)
    if distributed.is_main:
        write_json(run.folder / "config.json", run.facts)
    logger.info(
        "run %s on %s, world size %d, amp %s, %d parameters",
        *(run.folder, distributed.device.type, distributed.world_size),
        run.facts["resolved"]["amp"],
        sum(parameter.numel() for parameter in run.model.parameters()),
    )


def print_result(run: TrainingRun, config: TrainConfig, data: Data) -> None:
    """Print the best epoch, and the commands that evaluate it and draw the curves."""
    best = best_checkpoint(run.folder)
    if best is None:  # resumed from a later checkpoint alone
        print(f"best epoch {run.best_epoch}, whose checkpoint is missing from {run.folder}")
        return
    scores = describe_scores(describe_checkpoint(best)["metrics"])
    print(f"best epoch {run.best_epoch} on val: {scores}")
    overlap = describe_overlap(data.samples["val"], data.samples["train"], "val")
    selected = "epoch selected on val, which is also the split that is reported"
    if "test" in PROTOCOLS[config.protocol].splits:
        selected = "epoch selected on val, not on test"
    print(f"protocol {config.protocol}: {overlap}; {selected}")
    for path in config.attributes_file:
        evaluate = ["python", "test.py", "--attributes_file", str(path), "--checkpoint", str(best)]
        print(f"evaluate it: {shlex.join(evaluate)}")
    draw = ["python", "report.py", "--run_dir", str(run.folder)]
    print(f"draw the curves: {shlex.join(draw)}")


# ----------------------------------------------------------------------------- the script


def with_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given, and those of the recipe that they leave open."""
    return {**RECIPES[given.get("recipe", "published")], **given}


def parse_args(argv: Sequence[str] | None) -> tuple[TrainConfig, dict[str, Any] | None]:
    """Return the flags, and of a run that is resumed what describes it.

    Under torchrun, which may start the same command again after a failure, --run_dir of a run that
    was started resumes it.
    """
    parser = build_parser(TrainConfig, __doc__)
    given = vars(parser.parse_args(argv))
    run_dir, resume = given.get("run_dir"), given.get("resume")
    if launched_by_torchrun() and run_dir and not resume and (run_dir / "config.json").is_file():
        given["resume"] = resume = given.pop("run_dir")
    if resume is None:
        return build_config(parser, TrainConfig, with_recipe(given)), None
    stored = read_run(resume)
    if resume.is_file():
        given["resume"] = resume.parent
        last = max(list_checkpoints(resume.parent).items(), default=((0, False), resume))
        if stored["epoch"] < last[0][0]:
            raise UserError(
                f"not the run's last checkpoint: --resume {resume}. Give {last[1]}; to continue"
                " from the earlier one, copy it into a new folder"
            )
    paths = {field.name for field in fields(TrainConfig) if "Path | None" in str(field.type)}
    values = {
        name: Path(value) if value is not None and name in paths else value
        for name, value in stored["config"].items()
    }
    values["attributes_file"] = tuple(map(Path, trained_files(stored["config"])))
    config = build_config(parser, TrainConfig, {**values, **given})
    settings = config_to_json(config)
    check_resumable(resume, stored, settings={name: settings[name] for name in given})
    return config, stored


def is_finished(config: TrainConfig, distributed: Distributed) -> bool:
    """Return whether the run to resume has all its epochs already; if so, repair its folder."""
    path = last_checkpoint(config.resume) if config.resume else None
    if path is None:
        return False
    state = describe_checkpoint(path, advice=advise_on_damage(path))
    if not is_last_epoch(state["epoch"], state["best"]["epoch"], vars(config)):
        return False
    if distributed.is_main:
        with lock_run(path.parent):
            repair_run(path.parent, epoch=state["epoch"], best_epoch=state["best"]["epoch"])
        larger = "--N_epochs" if state["epoch"] >= config.N_epochs else "--patience"
        print(f"{path.parent} is finished: {state['epoch']} epochs. Give a larger {larger}")
    return True


def resolve_run_amp(
    config: TrainConfig, stored: Mapping[str, Any] | None, device: torch.device
) -> str:
    """Return the precision of the run: a resumed one keeps its own unless --amp is given anew."""
    if stored and config.amp == stored["config"]["amp"]:
        return available_amp(stored["resolved"]["amp"], device)
    return resolve_amp(config.amp, device)


def check_flags(config: TrainConfig, distributed: Distributed) -> None:
    """Refuse, before any data is read, what cannot work on this machine."""
    if distributed.is_main and config.run_dir:
        check_unused(config.run_dir)
    if config.batch_size % distributed.world_size:
        raise UserError(
            f"--batch_size {config.batch_size} cannot be divided by {distributed.world_size} ranks"
        )
    if config.sync_bn and distributed.device.type != "cuda":
        raise UserError(f"--sync_bn needs CUDA, not {distributed.device.type}. Leave it out")
    check_model(config)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config, stored = parse_args(argv)
    distributed = init_distributed(resolve_device(config.device))
    setup_logging(quiet=not distributed.is_main)
    set_determinism(distributed.device, config.deterministic)
    keep_freed_memory(distributed.device)
    if is_finished(config, distributed):
        return 0
    check_flags(config, distributed)
    amp = resolve_run_amp(config, stored, distributed.device)
    data = read_run_data(config, stored)
    if config.resume and stored:
        space = data.label_space.to_json()
        check_resumable(config.resume, stored, fingerprints=data.fingerprints, label_space=space)
    with explain_lost_rank(distributed):
        run, resolved = prepare_run(config, data, distributed, stored, amp=amp)
        with lock_run(run.folder) if distributed.is_main else nullcontext():
            start_run(run, config, distributed, stored)
            try:
                with name_all_broken_photos(data.folder, data.sources, config.num_workers):
                    train(run, config, resolved, data, distributed)
            except KeyboardInterrupt:
                logger.info("interrupted. Continue with: python train.py --resume %s", run.folder)
                return 130
    if distributed.is_main:
        print_result(run, config, data)
    distributed.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
