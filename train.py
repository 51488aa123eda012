"""Train IGAE-Net on one hand aspect: identity, gender and age group from one photo.

    python train.py --attributes_file ./11k/sub_dataset/dorsal_dr.csv

reads the aspect's train and val rows (dataset_11k_split.py) and writes checkpoints/<time>/:
config.json, metrics.jsonl (a line per epoch), train.log, tensorboard/, and checkpoints that are
each enough to evaluate, predict or resume. The defaults are the published recipe.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pandas as pd
import torch
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from dataset_11k import (
    PROTOCOLS,
    SPLITS,
    TASKS,
    HandsDataset,
    LabelSpace,
    build_loader,
    build_transform,
    check_photos,
    fingerprint,
    locate,
    read_rows,
    resize_size,
    warn_of_odd_ages,
)
from engine import (
    build_model,
    check_backbone,
    predict_split,
    resolve_amp,
    task_losses,
    train_one_epoch,
)
from flags import AMP_MODES, DEVICES, build_config, config_parser, config_to_json, flag
from metrics import balanced_accuracy
from model import IGAENet, find_backbone, parameter_groups
from run_folder import (
    checkpoints_of,
    cut_metrics,
    lock_run,
    make_run_dir,
    read_run,
    tidy_checkpoints,
)
from utils import (
    CHECKPOINT_KEYS,
    UserError,
    append_line,
    describe_environment,
    git_commit,
    load_checkpoint,
    logger,
    one_line_errors,
    prepare_determinism,
    resolve_device,
    save_checkpoint,
    seed_everything,
    setup_logging,
    usable_cpus,
    write_json,
)

MAX_IMAGE_SIZE = 4096  # pixels; the photos have 1600 x 1200
FREE_ON_RESUME = ("N_epochs", "device", "num_workers", "resume", "run_dir")
# What an evaluation during training scores, once over the whole val split.
VAL_SCORES = (*(f"balanced_accuracy_{task}" for task in TASKS), "mean_balanced_accuracy")


@dataclass(frozen=True)
class TrainConfig:
    """What train.py is asked for; the defaults are the published recipe.

    Source: github.com/nathanlem1/IGAE-Net, train.py; arXiv 2303.15263, section IV.
    """

    attributes_file: Path = flag(Path("./11k/sub_dataset/dorsal_dr.csv"), "CSV of the hand aspect")
    protocol: str = flag(
        "paper", "split to train on, as in dataset_11k_split.py", choices=PROTOCOLS
    )
    backbone: str = flag("swin_t", "resnet50, densenet121, convnext_t, vit_b_16, swin_t, maxvit_t or any timm model")  # fmt: skip  # noqa: E501
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
    amp: str = flag("auto", "mixed precision", choices=AMP_MODES)
    device: str = flag("auto", "where to train: cuda, then mps, then cpu", choices=DEVICES)
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    run_dir: Path | None = flag(None, "folder of the run (default: checkpoints/<time>)")
    resume: Path | None = flag(
        None, "continue the run in this folder, or that a checkpoint alone in a folder is of"
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range, and flags that contradict each other."""
        positive = ("image_size", "lr", "batch_size", "N_epochs", "eval_every")
        not_negative = ("backbone_lr_scale", "weight_decay", "jitter", "seed", "num_workers")
        if self.image_size > MAX_IMAGE_SIZE:
            raise ValueError(f"--image_size must be at most {MAX_IMAGE_SIZE}")
        shares = {"flip": 1.0, "label_smoothing": 0.999, "drop_path": 0.999, "jitter": 1.0}
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be a number above 0, not {getattr(self, name)}")
        for name in not_negative:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name} must be a number from 0, not {getattr(self, name)}")
        for name, most in shares.items():
            if not 0 <= (getattr(self, name) or 0) <= most:
                raise ValueError(f"--{name} must be in [0, {most:g}], not {getattr(self, name)}")
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


@dataclass(frozen=True)
class Resolved:
    """What `auto` and the defaults came to: decided once, kept for resume and test."""

    amp: str
    drop_path: float
    warmup_epochs: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decode_size: int  # as in dataset_11k.open_photo


@dataclass(frozen=True)
class Data:
    """The rows of an aspect and the names of their classes."""

    folder: Path
    rows: dict[str, pd.DataFrame]
    label_space: LabelSpace
    fingerprints: dict[str, str]


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
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set each group's rate to its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def checkpoint_bytes(model: IGAENet, optimizer: str) -> int:
    """Return about how many bytes a checkpoint takes: weights and the optimiser's moments."""
    copies = {"adam": 3, "sgd": 2}[optimizer]
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return copies * parameters + sum(b.numel() * b.element_size() for b in model.buffers())


def evaluate(
    model: IGAENet, loader: DataLoader[Any], *, device: torch.device, amp: str, config: TrainConfig
) -> dict[str, float]:
    """Return loss and balanced accuracies, each scored once over the whole split."""
    predictions = predict_split(model, loader, device=device, amp=amp)
    logits = {task: torch.from_numpy(values) for task, values in predictions.logits.items()}
    losses = task_losses(logits, torch.from_numpy(predictions.labels), config.label_smoothing)
    if not losses.isfinite().all():
        raise UserError(
            "the model's answers on val are not finite; go on from the last checkpoint with a lower"
            " --lr in a new run, or with --amp off"
        )
    scores = [
        balanced_accuracy(predictions.labels[:, i], predictions.logits[task].argmax(axis=1))
        for i, task in enumerate(TASKS)
    ]
    return {
        "loss": float((losses * torch.tensor(config.loss_weights)).sum()),
        **dict(zip(VAL_SCORES, [*scores, sum(scores) / len(scores)], strict=True)),
    }


# ----------------------------------------------------------------------------- data


def read_data(config: TrainConfig) -> Data:
    """Return the checked rows of the aspect: photos there, no photo or person out of place."""
    files = locate(config.attributes_file, config.protocol)
    rows = {split: read_rows(files.split(split)) for split in SPLITS}
    everyone = read_rows(config.attributes_file)
    warn_of_odd_ages(everyone, config.attributes_file)
    for split, part in rows.items():
        source = files.split(split)
        if part.empty:
            raise UserError(f"{source} lists no photo of {files.aspect}; train on another aspect")
        strangers = part[~part["id"].isin(everyone["id"])]
        if len(strangers):
            raise UserError(
                f"{source}: {strangers['name'].iloc[0]} shows {strangers['id'].iloc[0]}, who is"
                f" not in {config.attributes_file}; run dataset_11k_split.py again"
            )
        check_photos(part, files.photos, source)
    both = rows["val"][rows["val"]["name"].isin(rows["train"]["name"])]
    if len(both):
        raise UserError(
            f"{both['name'].iloc[0]} is in train.csv and in val.csv of {files.aspect};"
            " run dataset_11k_split.py again"
        )
    unseen = rows["val"][~rows["val"]["id"].isin(rows["train"]["id"])]
    counts = ", ".join(f"{len(part)} {split}" for split, part in rows.items())
    logger.info(
        "%s, protocol %s: %s photos, %d people; %d val photos show %d people without a train photo",
        *(files.aspect, config.protocol, counts, everyone["id"].nunique()),
        *(len(unseen), unseen["id"].nunique()),
    )
    fingerprints = {split: fingerprint(part) for split, part in rows.items()}
    return Data(files.photos, rows, LabelSpace.of_people(everyone["id"].tolist()), fingerprints)


def build_loaders(
    config: TrainConfig, resolved: Resolved, data: Data, *, pin_memory: bool
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the loaders of train (shuffled, augmented) and val (in CSV order)."""
    loaders = []
    for split in SPLITS:
        train = split == "train"
        transform = build_transform(
            train=train,
            image_size=config.image_size,
            mean=resolved.mean,
            std=resolved.std,
            flip=config.flip,
            jitter=config.jitter,
        )
        dataset = HandsDataset(
            data.rows[split],
            data.folder,
            data.label_space,
            transform=transform,
            decode_size=resolved.decode_size,
        )
        loader = build_loader(
            dataset,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            shuffle=train,
            seed=config.seed,
            pin_memory=pin_memory,
        )
        loaders.append(loader)
    return loaders[0], loaders[1]


# ----------------------------------------------------------------------------- resuming


def config_of_run(given: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a resumed run's configuration; flags given must agree with it."""
    for name, value in given.items():
        plain = list(value) if isinstance(value, (list, tuple)) else value
        plain = str(plain) if isinstance(plain, Path) else plain
        if name not in FREE_ON_RESUME and plain != stored.get(name):
            raise UserError(
                f"--{name} {plain} differs from the run's {stored.get(name)}; leave it out, or"
                " start a new run"
            )
    hints = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    values = {
        name: Path(value) if value is not None and "Path" in str(hints[name]) else value
        for name, value in stored.items()
    }
    return {**values, **{k: v for k, v in given.items() if k in FREE_ON_RESUME}}


def announce_changes(stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Log what differs from the machine the run began on: exact equality holds no longer."""
    changes = [f"{k} {stored.get(k)} -> {v}" for k, v in current.items() if stored.get(k) != v]
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
    model: IGAENet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    lock: IO[str]  # held while the run is
    epoch: int = 0  # the last one finished
    best_epoch: int = 0
    best_score: float = -1.0

    def save(self, record: Mapping[str, Any]) -> None:
        """Write the epoch's checkpoint, then let go of what it replaces."""
        state = {
            **self.facts,
            "epoch": self.epoch,
            "best": {"epoch": self.best_epoch, "score": self.best_score},
            "metrics": dict(record),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.folder / f"checkpoint-{self.epoch:06d}.pth", state)
        tidy_checkpoints(self.folder, epoch=self.epoch, best_epoch=self.best_epoch)

    def restore(self) -> None:
        """Go back to the folder's last checkpoint, or to the start where there is none.

        Raises:
            UserError: that checkpoint is damaged, or of another run.
        """
        found = checkpoints_of(self.folder)
        if found:
            path = found[max(found)]
            state = load_checkpoint(path, CHECKPOINT_KEYS)
            if any(state[key] != self.facts[key] for key in ("label_space", "fingerprints")):
                raise UserError(f"{path} is of another run than {self.folder}; take it away")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.epoch = state["epoch"]
            self.best_epoch, self.best_score = state["best"]["epoch"], state["best"]["score"]
            tidy_checkpoints(self.folder, epoch=self.epoch, best_epoch=self.best_epoch)
        for unfinished in self.folder.glob(".*.tmp*"):
            unfinished.unlink()
        cut_metrics(self.folder / "metrics.jsonl", self.epoch)

    @property
    def best_checkpoint(self) -> Path:
        """The file of the best epoch."""
        return self.folder / f"checkpoint-{self.best_epoch:06d}-best.pth"


def build_run_model(config: TrainConfig, data: Data, drop_path: float, *, fresh: bool) -> IGAENet:
    """Return the model; one that is not `fresh` gets its weights from a checkpoint."""
    seed_everything(config.seed, 0)
    return build_model(
        config.backbone,
        data.label_space.sizes,
        pretrained=config.pretrained and fresh,
        backbone_weights=config.backbone_weights if fresh else None,
        allow_partial_weights=config.allow_partial_weights,
        image_size=config.image_size,
        drop_path=drop_path,
    )


def resolve(
    config: TrainConfig, model: IGAENet, device: torch.device, drop_path: float
) -> Resolved:
    """Decide once what the configuration leaves open."""
    amp = resolve_amp(
        config.amp, model, device, batch_size=config.batch_size, image_size=config.image_size
    )
    return Resolved(
        amp=amp,
        drop_path=drop_path,
        warmup_epochs=warmup_epochs(config.N_epochs),
        mean=model.mean,
        std=model.std,
        decode_size=resize_size(config.image_size) if config.fast_decode else 0,
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
    config: TrainConfig, data: Data, device: torch.device, stored: Mapping[str, Any] | None
) -> tuple[Run, Resolved]:
    """Build the model and the run's folder, or take up those of the run that `stored` describes."""
    facts: dict[str, Any] = {
        "aspect": config.attributes_file.stem,
        "label_space": data.label_space.to_json(),
        "fingerprints": data.fingerprints,
        "environment": describe_environment(device),
        "commit": git_commit(),
    }
    if stored and config.resume:
        check_resumable(stored, facts, config.resume)
        drop_path = stored["resolved"]["drop_path"]
        fresh = not checkpoints_of(config.resume)
    else:
        chosen = find_backbone(config.backbone)
        drop_path = chosen.drop_path if config.drop_path is None else config.drop_path
        fresh = True
    model = build_run_model(config, data, drop_path, fresh=fresh)
    model = model.to(device).to(memory_format=torch.channels_last)
    resolved = (
        Resolved(**stored["resolved"]) if stored else resolve(config, model, device, drop_path)
    )
    amp = resolve_amp(
        resolved.amp, model, device, batch_size=config.batch_size, image_size=config.image_size
    )
    kept = {**config_to_json(config), "run_dir": None, "resume": None}
    facts |= {"config": kept, "resolved": config_to_json(resolved)}
    folder = config.resume or make_run_dir(config.run_dir)
    run = Run(
        folder=folder,
        facts=facts,
        model=model,
        optimizer=build_optimizer(model, config),
        scaler=torch.amp.GradScaler(device.type, enabled=amp == "fp16"),
        lock=lock_run(folder),
    )
    setup_logging(run.folder / "train.log")
    if stored:
        announce_changes(stored["environment"], facts["environment"])
    run.restore()
    if run.epoch < config.N_epochs:  # a finished run stays as it is described
        write_json(run.folder / "config.json", facts)
    return run, resolved


def train(
    run: Run, config: TrainConfig, resolved: Resolved, data: Data, device: torch.device
) -> None:
    """Train until the last epoch is done, a checkpoint and a line of metrics.jsonl each."""
    train_loader, val_loader = build_loaders(
        config, resolved, data, pin_memory=device.type == "cuda"
    )
    sampler: Any = train_loader.sampler
    board = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.epoch + 1)
    for epoch in range(run.epoch + 1, config.N_epochs + 1):
        start = time.perf_counter()
        seed_everything(config.seed, epoch)
        lr = learning_rate(
            epoch, base=config.lr, warmup=config.warmup, warmup_epochs=resolved.warmup_epochs
        )
        set_learning_rate(run.optimizer, lr)
        sampler.set_epoch(epoch)
        trained = train_one_epoch(
            run.model,
            train_loader,
            run.optimizer,
            scaler=run.scaler,
            device=device,
            amp=resolved.amp,
            loss_weights=config.loss_weights,
            label_smoothing=config.label_smoothing,
            epoch=epoch,
        )
        scores: dict[str, float] = {}
        if epoch % config.eval_every == 0 or epoch == config.N_epochs:
            scores = evaluate(run.model, val_loader, device=device, amp=resolved.amp, config=config)
        record = {
            "epoch": epoch,
            "lr": lr,
            "seconds": round(time.perf_counter() - start, 3),
            **{f"train_{name}": value for name, value in trained.items()},
            **{f"val_{name}": scores.get(name) for name in ("loss", *VAL_SCORES)},
        }
        run.epoch = epoch
        if scores and scores["mean_balanced_accuracy"] > run.best_score:
            run.best_epoch, run.best_score = epoch, scores["mean_balanced_accuracy"]
        log_epoch(record, config.N_epochs, board)
        append_line(run.folder / "metrics.jsonl", json.dumps(record, allow_nan=False))
        run.save(record)
    board.close()


def log_epoch(record: Mapping[str, Any], n_epochs: int, board: SummaryWriter) -> None:
    """Log one line, and the same numbers to TensorBoard."""
    parts = [f"epoch {record['epoch']}/{n_epochs}", f"{record['seconds']:.0f} s"]
    parts += [f"lr {record['lr']:.2e}", f"train loss {record['train_loss']:.4f}"]
    if record["val_loss"] is not None:
        parts.append(f"val loss {record['val_loss']:.4f}")
        parts += [f"{name.split('_')[-1]} {record[f'val_{name}']:.4f}" for name in VAL_SCORES[:-1]]
    logger.info("%s", ", ".join(parts))
    for name, value in record.items():
        if value is not None and name != "epoch":
            board.add_scalar(name.replace("_", "/", 1), value, record["epoch"])


def print_result(run: Run, config: TrainConfig) -> None:
    """Print what came out, and the command that evaluates it."""
    if not run.best_checkpoint.exists():  # resumed from a later checkpoint alone
        print(f"the best epoch is still {run.best_epoch}, whose checkpoint is not in {run.folder}")
        return
    best = load_checkpoint(run.best_checkpoint)["metrics"]
    scores = ", ".join(f"{task} {best[f'val_balanced_accuracy_{task}']:.4f}" for task in TASKS)
    print(f"best epoch {run.best_epoch}: balanced accuracy on val {scores}")
    print(
        f"protocol {config.protocol}: the same photos chose this epoch and give this score,"
        " and show people of the training photos"
    )
    print(
        f"evaluate it: python test.py --attributes_file {config.attributes_file}"
        f" --checkpoint {run.best_checkpoint}"
    )


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = config_parser(TrainConfig, __doc__)
    given = vars(parser.parse_args(argv))
    stored = read_run(given["resume"]) if "resume" in given else None
    if stored and given["resume"].is_file():
        given["resume"] = given["resume"].parent
    values = config_of_run(given, stored["config"]) if stored else given
    config = build_config(parser, TrainConfig, values)
    setup_logging()
    device = resolve_device(config.device)
    prepare_determinism(device, config.deterministic)
    check_backbone(config.backbone, config.image_size)
    data = read_data(config)
    run, resolved = prepare_run(config, data, device, stored)
    size = checkpoint_bytes(run.model, config.optimizer)
    logger.info(
        "run %s on %s, amp %s; a checkpoint takes about %.1f MB (%d bytes)",
        *(run.folder, device.type, resolved.amp, size / 1e6, size),
    )
    if run.epoch >= config.N_epochs:
        print(f"{run.folder} is finished: {run.epoch} epochs; a larger --N_epochs goes on")
        return 0
    try:
        train(run, config, resolved, data, device)
    except KeyboardInterrupt:
        logger.info("interrupted; go on with: python train.py --resume %s", run.folder)
        return 130
    print_result(run, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
