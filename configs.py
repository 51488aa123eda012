"""What the scripts of a run are asked for: their flags, defaults and ranges, one dataclass each.

Nothing here, and nothing that it imports, needs PyTorch: --help and a wrong flag are answered at
once.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones import BACKBONES, safe_name
from flags import (
    AMP_MODES,
    AT_ONCE_HELP,
    AUGMENT_MODES,
    CACHE_MODES,
    COMPILE_MODES,
    DEVICES,
    REQUIRED,
    flag,
)
from rows import PROTOCOLS
from utils import UserError, usable_cpus

# ----------------------------------------------------------------------------- training

MAX_AT_ONCE = 65_536  # photos; that many at 224 pixels take 39 GB
MAX_IMAGE_SIZE = 4096  # pixels; the photos have 1600 x 1200
# What a run may go on with otherwise than it began. The data's place is among it, as its rows are
# known by their fingerprints.
FREE_ON_RESUME = (
    *("attributes_file", "cache", "cache_dir", "N_epochs", "device", "num_workers"),
    *("resume", "run_dir"),
)


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
    unknown = stored.keys() - hints.keys()
    if unknown:
        raise UserError(
            f"the run's configuration has {', '.join(sorted(unknown))}, unknown to this version;"
            " go on with the version that began it"
        )
    values = {
        name: Path(value) if value is not None and "Path" in str(hints[name]) else value
        for name, value in stored.items()
    }
    return {**values, **{k: v for k, v in given.items() if k in FREE_ON_RESUME}}


# ----------------------------------------------------------------------------- evaluation

ALL_SPLITS = ("train", "val", "test")


def check_loading(batch_size: int | None, num_workers: int) -> None:
    """Refuse values of --batch_size and --num_workers outside their range."""
    if batch_size is not None and not 1 <= batch_size <= MAX_AT_ONCE:
        raise ValueError(f"--batch_size must be from 1 to {MAX_AT_ONCE}")
    if num_workers < 0:
        raise ValueError("--num_workers must not be negative")


@dataclass(frozen=True)
class EvalConfig:
    """What test.py is asked for; everything else is in the checkpoint."""

    checkpoint: Path = flag(REQUIRED, "checkpoint-NNNNNN.pth of train.py")
    attributes_file: Path = flag(Path("./11k/sub_dataset/dorsal_dr.csv"), "CSV of the hand aspect")
    split: str | None = flag(
        None, "rows to evaluate (default: test, or val where there is none)", choices=ALL_SPLITS
    )
    test_attributes_file: Path | None = flag(
        None, "CSV of another aspect: gender and age there, on people who were not trained on"
    )
    batch_size: int | None = flag(
        None, f"photos at once; changes no score in float32 ({AT_ONCE_HELP})"
    )
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    device: str = flag("auto", "where to evaluate: cuda, then mps, then cpu", choices=DEVICES)
    amp: str | None = flag(
        None, "mixed precision; auto: see train.py (default: as trained)", choices=AMP_MODES
    )
    no_photos: bool = flag(False, "leave photos, biometric data, out of report.html")

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_loading(self.batch_size, self.num_workers)


# ----------------------------------------------------------------------------- prediction


@dataclass(frozen=True)
class PredictConfig:
    """What predict.py is asked for."""

    photos: tuple[Path, ...]
    checkpoint: Path = flag(REQUIRED, "checkpoint-NNNNNN.pth of train.py")
    format: str = flag("json", "a JSON line or a CSV row per photo", choices=("json", "csv"))
    top_k: int = flag(3, "how many classes of each task to name, likeliest first")
    output: Path | None = flag(
        None, "folder for the photos with their answers written below", metavar="DIR"
    )
    batch_size: int | None = flag(
        None, f"photos at once; changes no answer in float32 ({AT_ONCE_HELP})"
    )
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    device: str = flag("auto", "where to predict: cuda, then mps, then cpu", choices=DEVICES)
    amp: str | None = flag(
        None, "mixed precision; auto: see train.py (default: as trained)", choices=AMP_MODES
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.top_k < 1:
            raise ValueError("--top_k must be above 0")
        check_loading(self.batch_size, self.num_workers)


# ----------------------------------------------------------------------------- pages

FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class ReportConfig:
    """What report.py is asked for: one of results, run_dir and architecture."""

    results: Path | None = flag(None, "folder that test.py wrote: report.html", metavar="DIR")
    run_dir: Path | None = flag(None, "folder that train.py wrote: training.html", metavar="DIR")
    architecture: Path | None = flag(
        None, f"picture to draw the network into: {', '.join(FORMATS)}"
    )
    photos: Path | None = flag(
        None, "of --results: folder of the photos (default: as metrics.json says)", metavar="DIR"
    )
    no_photos: bool = flag(False, "of --results: embed no photo, as they are biometric data")

    def __post_init__(self) -> None:
        """Refuse none or several pages at once, and what would have no effect."""
        asked = [self.results, self.run_dir, self.architecture]
        if sum(path is not None for path in asked) != 1:
            raise ValueError("give one of --results, --run_dir and --architecture")
        if self.results is None and (self.photos is not None or self.no_photos):
            raise ValueError("--photos and --no_photos go with --results")
        if self.photos is not None and self.no_photos:
            raise ValueError("give --photos or --no_photos, not both")
        if self.photos is not None and not self.photos.is_dir():
            raise ValueError(f"--photos {self.photos}: no such folder")
        if self.architecture is not None and self.architecture.suffix not in FORMATS:
            formats = " or ".join(FORMATS)
            raise ValueError(f"--architecture {self.architecture}: give a {formats} file")


# ----------------------------------------------------------------------------- comparison

# What compare.py sets for every run, so that it cannot be a flag for train.py.
OWN_FLAGS = (
    *("attributes_file", "protocol", "fold", "backbone", "backbone_weights", "seed"),
    *("run_dir", "resume"),
)


@dataclass(frozen=True)
class CompareConfig:
    """What compare.py is asked for; further flags are train.py's."""

    backbones: tuple[str, ...] = flag((), "as train.py's --backbone", nargs="+", metavar="NAME")
    aspects: tuple[str, ...] = flag(
        ("dorsal_dr",), "names of the CSVs in <input>/sub_dataset", nargs="+", metavar="ASPECT"
    )
    protocols: tuple[str, ...] = flag(
        ("paper", "subject-disjoint"),
        "splits to train on, as in dataset_11k_split.py",
        choices=tuple(PROTOCOLS),
        nargs="+",
    )
    folds: tuple[int, ...] = flag(
        (), "of subject-disjoint (default: all that were drawn)", nargs="+", metavar="FOLD"
    )
    seeds: tuple[int, ...] = flag((42,), "of the trainings", nargs="+", metavar="SEED")
    backbone_weights: tuple[str, ...] = flag(
        (), "start from these files instead of timm's weights", nargs="+", metavar="NAME=FILE"
    )
    input: Path = flag(Path("./11k"), "folder with Hands/ and the splits", metavar="DIR")
    output: Path = flag(Path("./comparison"), "folder of runs and results", metavar="DIR")
    add: tuple[Path, ...] = flag(
        (), "finished runs made elsewhere, for the table too", nargs="+", metavar="RUN_DIR"
    )
    processes: int = flag(1, "runs at once, one per GPU where there are several")
    dry_run: bool = flag(False, "say what there is to do, and do nothing")
    difference: tuple[str, ...] = flag(
        (), "compare two rows of the table in --output", nargs=2, metavar="ROW"
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range, and flags that contradict each other."""
        if self.processes < 1:
            raise ValueError(f"--processes must be above 0, not {self.processes}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            again = isinstance(value, tuple) and len(set(value)) < len(value)
            if again and field.name != "difference":
                raise ValueError(f"--{field.name}: something is there twice")
            if value == field.default:
                continue
            if self.difference and field.name not in ("difference", "output"):
                raise ValueError(f"--difference goes with --output alone, not --{field.name}")
            if not self.backbones and field.name in ("aspects", "protocols", "folds", "seeds"):
                raise ValueError(f"--{field.name} goes with --backbones")
        if not (self.backbones or self.add or self.difference):
            raise ValueError("give --backbones, or --add, or --difference")
        if self.folds and not any(PROTOCOLS[protocol].disjoint for protocol in self.protocols):
            raise ValueError(f"--folds: --protocols {' '.join(self.protocols)} have none")
        safe = {safe_name(backbone): backbone for backbone in self.backbones}
        for backbone in self.backbones:
            if safe[safe_name(backbone)] != backbone:
                raise ValueError(
                    f"--backbones {backbone} and {safe[safe_name(backbone)]} would share a folder"
                )
        for text in self.backbone_weights:
            name, equals, _ = text.partition("=")
            if not equals or name not in self.backbones:
                raise ValueError(
                    f"--backbone_weights {text}: expected NAME=FILE, NAME one of --backbones"
                )
        if len(self.weights) < len(self.backbone_weights):
            raise ValueError("--backbone_weights: a backbone is there twice")

    @property
    def weights(self) -> dict[str, Path]:
        """The weights' file of each backbone that has one."""
        pairs = (text.partition("=") for text in self.backbone_weights)
        return {name: Path(file) for name, _, file in pairs}


# ----------------------------------------------------------------------------- speed

PARTS = ("train", "start", "evaluate", "scripts", "help", "split", "cache", "compile")
VARIANTS = ("plain", "fast")
# The published way, as far as flags go; the fast one has those of `BenchmarkConfig`.
PLAIN: dict[str, Any] = {
    "cache": "none",
    "fast_decode": False,
    "amp": "off",
    "compile": "off",
    "num_workers": 0,
    "augment": "photo",
}


def as_in_training(name: str) -> Any:
    """Return the flag `name` of train.py, with its default."""
    field = TrainConfig.__dataclass_fields__[name]
    return flag(field.default, field.metadata["help"], choices=field.metadata["choices"])


@dataclass(frozen=True)
class BenchmarkConfig:
    """What benchmark.py is asked for."""

    attributes_file: Path = as_in_training("attributes_file")
    parts: tuple[str, ...] = flag(
        ("train", "start"), "what to measure, see above", choices=PARTS, nargs="+"
    )
    backbones: tuple[str, ...] = flag(("swin_t",), "names as in train.py", nargs="+")
    batch_sizes: tuple[int, ...] = flag((20,), "photos per step", nargs="+")
    image_size: int = as_in_training("image_size")
    rounds: int = flag(3, "times that plain and fast alternate")
    seconds: float = flag(10.0, "of one measurement, about; at least two batches are taken")
    script_photos: tuple[int, ...] = flag(
        (100, 1000), "photos for test.py and predict.py; too few are repeated", nargs="+"
    )
    split_rows: tuple[int, ...] = flag(
        (11_076, 1_000_000), "rows of the made-up HandInfo.csv", nargs="+"
    )
    amp: str = as_in_training("amp")
    compile: str = as_in_training("compile")
    cache: str = as_in_training("cache")
    augment: str = as_in_training("augment")
    num_workers: int = as_in_training("num_workers")
    device: str = flag("auto", "what to measure: cuda, then mps, then cpu", choices=DEVICES)
    output: Path = flag(Path("./benchmark.json"), "file of the results")

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("rounds", "seconds", "batch_sizes", "script_photos", "split_rows"):
            value = getattr(self, name)
            if not all(0 < v < math.inf for v in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"--{name} must be above 0")
        if self.output.suffix != ".json":
            raise ValueError(f"--output must end in .json, not {self.output}")
        for backbone, batch_size in itertools.product(self.backbones, self.batch_sizes):
            for variant in VARIANTS:
                self.training(variant, backbone, batch_size, Path())  # refuses what train does

    def training(self, variant: str, backbone: str, batch_size: int, scratch: Path) -> TrainConfig:
        """Return what train.py would be asked for; the cache on disk is kept in `scratch`."""
        fast = {name: getattr(self, name) for name in PLAIN if name != "fast_decode"}
        chosen = PLAIN if variant == "plain" else fast
        return TrainConfig(
            attributes_file=self.attributes_file,
            backbone=backbone,
            pretrained=False,
            image_size=self.image_size,
            batch_size=batch_size,
            device=self.device,
            cache_dir=None if chosen["cache"] in ("none", "ram") else scratch / "cache",
            **chosen,
        )
