"""Training: the published recipe, its loop, and the run that is written while it goes."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from checkpoints import (
    CHECKPOINT_KEYS,
    describe_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from compute import Shape, check_amp, compile_backbone, resolve_compute, unfuse_attention
from configs import TrainConfig
from dataset_11k import Augmentation, HandsDataset, build_loader, resize_size
from devices import (
    describe_environment,
    keep_freed_memory,
    prepare_determinism,
    resolve_device,
    seed_everything,
)
from engine import (
    Predictions,
    Preprocessing,
    Recipe,
    build_model,
    check_backbone,
    predict_split,
    task_losses,
    train_one_epoch,
)
from flags import (
    config_to_json,
)
from matching import cosine_similarity, gallery_ranks
from metrics import balanced_accuracy, class_means, fit_temperature
from model import IGAENet, find_backbone, parameter_groups
from photo_cache import attach_cache, keep_on_device
from ranks import Ranks, has_lost_a_rank, join_ranks
from rows import (
    PROTOCOLS,
    TASKS,
    LabelSpace,
    SplitFiles,
    advise,
    check_photos,
    fingerprint,
    locate,
    permute_labels,
    read_rows,
    say_who_is_known,
    warn_of_odd_ages,
)
from run_folder import (
    check_unused,
    last_checkpoint,
    lock_run,
    make_run_dir,
    tidy_checkpoints,
    tidy_run,
    what_if_damaged,
)
from run_pages import write_training_report
from utils import (
    UserError,
    append_line,
    git_commit,
    logger,
    setup_logging,
    write_json,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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


@dataclass(frozen=True)
class Data:
    """The rows of an aspect and the names of their classes."""

    folder: Path
    rows: dict[str, pd.DataFrame]  # train and val
    label_space: LabelSpace
    fingerprints: dict[str, str]  # of every split, as test.py asks whether it is the same


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
    means = class_means(rows["age"].to_numpy(), labels[:, TASKS.index("age")], sizes["age"])
    people, first = np.unique(labels[:, 0], return_index=True)
    of_person = np.full((sizes["identity"], len(TASKS)), -1)
    of_person[people] = labels[first]
    counts = {t: np.bincount(labels[:, i], minlength=sizes[t]) for i, t in enumerate(TASKS)}
    return {
        "counts": {task: values.tolist() for task, values in counts.items()},
        "mean_ages": [None if math.isnan(mean) else mean for mean in means.tolist()],
        "people": {t: of_person[:, i].tolist() for i, t in enumerate(TASKS) if t != "identity"},
    }


# ----------------------------------------------------------------------------- data


def check_fold(files: SplitFiles) -> None:
    """Refuse a protocol that was not drawn for the aspect, or a fold that it does not have."""
    if files.protocol == "paper" or files.split("train").parent.is_dir():
        return
    aspect = files.drawn / files.aspect
    if not files.folds:
        raise UserError(
            f"{aspect} has no folds; run dataset_11k_split.py --protocol {files.protocol} first"
        )
    raise UserError(
        f"--fold {files.fold}: {aspect} has the folds {', '.join(map(str, files.folds))}"
    )


def check_sides(rows: Mapping[str, pd.DataFrame], files: SplitFiles) -> None:
    """Refuse a photo, and in a disjoint protocol a person, on two sides; elsewhere strangers."""
    again = "run dataset_11k_split.py again"
    disjoint = PROTOCOLS[files.protocol].disjoint
    for one, other in itertools.combinations(rows, 2):
        for column in ("name", "id") if disjoint else ("name",):
            both = rows[other][rows[other][column].isin(rows[one][column])]
            if len(both):
                raise UserError(
                    f"{both[column].iloc[0]} is in {one}.csv and in {other}.csv of {files.aspect}; "
                    + advise(files.photos, again, by_hand="delete one of the rows")
                )
    for split, part in rows.items():
        strangers = part[~part["id"].isin(rows["train"]["id"])]
        if len(strangers) and not disjoint and files.protocol != "paper":
            raise UserError(
                f"{files.split(split)}: {strangers['name'].iloc[0]} shows"
                f" {strangers['id'].iloc[0]}, who has no train photo; only subject-disjoint tests"
                f" strangers; {again}"
            )


def read_data(config: TrainConfig) -> Data:
    """Return the checked rows of the aspect: photos there, no photo or person out of place.

    Of test only the list is read, to see that nothing of it is on another side.
    """
    files = locate(config.attributes_file, config.protocol, config.fold or 0)
    check_fold(files)
    rows = {s: read_rows(files.split(s)) for s in PROTOCOLS[config.protocol].splits}
    everyone = read_rows(config.attributes_file)
    warn_of_odd_ages(everyone, config.attributes_file)
    again = "run dataset_11k_split.py again"
    for split, part in rows.items():
        source = files.split(split)
        if part.empty and split != "test":
            raise UserError(f"{source} lists no photo of {files.aspect}; train on another aspect")
        strangers = part[~part["id"].isin(everyone["id"])]
        if len(strangers):
            raise UserError(
                f"{source}: {strangers['name'].iloc[0]} shows {strangers['id'].iloc[0]}, who is"
                f" not in {config.attributes_file}; "
                + advise(source, again, by_hand="add the row there")
            )
        if split != "test":
            check_photos(part, files.photos, source)
    check_sides(rows, files)
    unseen = rows["val"][~rows["val"]["id"].isin(rows["train"]["id"])]
    counts = ", ".join(f"{len(part)} {split}" for split, part in rows.items())
    logger.info(
        "%s, protocol %s: %s photos, %d people; %d val photos show %d people without a train photo",
        *(files.aspect, config.protocol, counts, everyone["id"].nunique()),
        *(len(unseen), unseen["id"].nunique()),
    )
    known = everyone if config.protocol == "paper" else rows["train"]
    if config.permute_labels:
        rows = {s: permute_labels(part, everyone, config.seed) for s, part in rows.items()}
        logger.info("gender and age are permuted between people: a control, no result")
    fingerprints = {split: fingerprint(part) for split, part in rows.items()}
    rows.pop("test", None)
    return Data(files.photos, rows, LabelSpace.of_people(known["id"].tolist()), fingerprints)


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


def announce_changes(stored: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Log what differs from the machine and code the run began with: it ends a little otherwise."""
    before = {**stored.get("environment", {}), "commit": stored.get("commit")}
    now = {**facts["environment"], "commit": facts["commit"]}
    changes = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
    if changes:
        logger.warning(
            "resumed elsewhere than begun (%s): the weights will not equal an uninterrupted run's",
            ", ".join(changes),
        )


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
    lock: IO[str] | None  # held by the first rank while the run is
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


def check_resumable(stored: Mapping[str, Any], facts: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other rows than the run began with."""
    changed = [k for k, v in facts["fingerprints"].items() if stored["fingerprints"][k] != v]
    if changed or stored["label_space"] != facts["label_space"]:
        raise UserError(
            f"--resume {folder}: the rows of {' and '.join(changed) or 'the attributes file'} have"
            " changed since the run began; restore them, or start a new run"
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
    prepare_determinism(ranks.device, config.deterministic)
    keep_freed_memory(ranks.device)
    if config.resume and is_finished(config.resume, config.N_epochs):
        print(f"{config.resume} is finished: {config.N_epochs} epochs; a larger --N_epochs goes on")
        return 0
    if ranks.is_first and config.run_dir:
        check_unused(config.run_dir)
    step_shape(config, ranks)  # refuses a batch that the processes cannot share
    check_backbone(config.backbone, config.image_size)
    data = read_data(config)
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
