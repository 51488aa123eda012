"""Measure how far training, evaluation and the scripts are from what the machine can do.

    python benchmark.py --backbones swin_t resnet50 --parts train start evaluate

prints a table and writes benchmark.json (every sample, the environment, the commit; --output) and
beside it benchmark.png, the rates of the part `train`. Two variants alternate within one run:

plain  As published: every photo decoded anew, whole, by the training process; float32; channels
       first; PyTorch's default optimiser and algorithms. In `scripts` channels come last in it too,
       and algorithms are deterministic: test.py and predict.py have no flag for these.
fast   The defaults of train.py, or what --amp, --compile, --cache, --augment, --num_workers say.

Parts, each a group of rows of the table:

train     Photos/s of the data path alone, of the model alone (pixels on the device: forward,
          backward, optimiser) and end to end; end to end over the smaller of both; FLOP/s of the
          step beside those of a large matrix product of the same type.
start     Seconds to the end of the first step and peak memory, each in a process of its own.
evaluate  Photos/s of an evaluation.
scripts   test.py and predict.py as commands: seconds, peak memory above their imports.
help      Every script's --help, and what its imports take above those of torch and timm.
split     dataset_11k_split.py on a made-up HandInfo.csv, every photo an empty file.
cache     Decoding photos into the cache, and opening it again.
compile   Seconds of compiling, a step before and after, the steps after which that has paid back.

Weights are random: speed does not depend on them. Nothing is written besides the results and a
temporary folder.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from data.cache import attach_cache
from data.splits import Data, SplitFiles
from dataset_11k import (
    ASPECTS,
    GENDERS,
    HAND_INFO_COLUMNS,
    SKIN_COLORS,
    Augmentation,
    HandsDataset,
    Item,
    resize_size,
)
from engine.distributed import Ranks
from engine.loop import Preprocessing, Recipe, check_backbone, predict_split, train_one_epoch
from engine.precision import AMP_DTYPES, Shape, compile_backbone, has_fast_bf16, keep_freed_memory
from pages.figures import save_figure
from train import (
    Resolved,
    Run,
    TrainConfig,
    build_loaders,
    prepare_run,
    read_run_data,
    set_learning_rate,
)
from utils import (
    DEVICES,
    UserError,
    build_config,
    build_parser,
    config_to_json,
    describe_environment,
    flag,
    git_commit,
    logger,
    one_line_errors,
    resolve_device,
    set_determinism,
    setup_logging,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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


HERE = Path(__file__).resolve().parent  # where the scripts are

RESULT_FORMAT = 1

PARTS_WITHOUT_DATA = {"help", "split"}

PLAIN_SCRIPT_FLAGS = ("--amp", "off", "--num_workers", "0", "--batch_size", "20")

# Measure -> unit. Of what is neither a rate nor a time no speed-up is shown.
UNITS = {
    "data_alone": "photos/s",
    "model_alone": "photos/s",
    "end_to_end": "photos/s",
    "share_of_the_smaller": "",
    "step_flops": "TFLOP/s",
    "matrix_flops": "TFLOP/s",
    "share_of_matrix_product": "",
    "gpu_utilisation": "%",
    "evaluation": "photos/s",
    "first_step": "s",
    "first_step_with_empty_cache": "s",
    "imports": "s",
    "help": "s",
    "imports_above_torch_and_timm": "s",
    "wall_time": "s",
    "peak_memory": "MB",
    "peak_above_imports": "MB",
    "peak_device_memory": "MB",
    "build": "photos/s",
    "open_again": "s",
    "compile": "s",
    "compile_again": "s",
    "step_before": "s",
    "step_after": "s",
    "break_even": "steps",
}

# Script -> the module that it loads once its flags are read; others do their work themselves.
ROOMS = {
    "train": "training",
    "test": "evaluation",
    "predict": "prediction",
    "compare": "sweep",
    "report": "run_pages",
    "benchmark": "speed",
}

# Of the matrix product. On a CPU over 32 MB a matrix: glibc adapts to freed blocks up to that size,
# and decoding would then cost less than in a training.
MATRIX_SIDE = {"cpu": 4100, "mps": 4096, "cuda": 8192}

MATRIX_SECONDS = 2  # at most, of a measurement of it

POLL_SECONDS = 0.02  # between two looks at a command's memory, and whether it has ended

MEGABYTE = 1e6

Case = Mapping[str, str | int]  # what was measured, such as the backbone and the batch size

Samples = dict[str, dict[str, list[float]]]  # variant -> measure -> a value per round

Value = TypeVar("Value")

Call = Callable[..., Any]  # (function, *its arguments) -> what it returns


# ----------------------------------------------------------------------------- numbers


class Summary(NamedTuple):
    """The spread of a measure over the rounds."""

    median: float
    minimum: float
    maximum: float


def summarise(samples: Sequence[float]) -> Summary:
    """Return median, minimum and maximum of at least one sample."""
    return Summary(statistics.median(samples), min(samples), max(samples))


def paired_ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return over / under, round by round: what drifts from round to round cancels out."""
    return [a / b for a, b in zip(over, under, strict=True)]


@dataclass(frozen=True)
class Result:
    """One measure of one variant.

    part: one of `PARTS`.
    case: what was measured.
    variant: one of `VARIANTS`.
    measure: a key of `UNITS`.
    samples: a value per round, in that unit.
    """

    part: str
    case: Case
    variant: str
    measure: str
    samples: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the unit and the summary."""
        spread = summarise(self.samples)._asdict()
        return {**vars(self), "unit": UNITS[self.measure], **spread}


def results_of(part: str, case: Case, samples: Samples) -> Iterator[Result]:
    """Yield what was sampled as results, in the order of `UNITS`."""
    for measure, variant in itertools.product(UNITS, samples):
        if measure in samples[variant]:
            yield Result(part, case, variant, measure, samples[variant][measure])


def speed_up(plain: Result, fast: Result) -> list[float]:
    """Return, per round, how many times as fast the fast variant is; empty where that is moot."""
    if plain.measure == "imports":
        return []
    if UNITS[plain.measure] == "photos/s":
        return paired_ratios(fast.samples, plain.samples)
    if UNITS[plain.measure] == "s":
        return paired_ratios(plain.samples, fast.samples)
    return []


def pairs(results: Sequence[Result]) -> Iterator[tuple[Result, Result]]:
    """Yield the results that both variants have, plain first."""
    fast = {(r.part, str(r.case), r.measure): r for r in results if r.variant == "fast"}
    for plain in results:
        key = (plain.part, str(plain.case), plain.measure)
        if plain.variant == "plain" and key in fast:
            yield plain, fast[key]


def speed_ups(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the speed-ups of all measures that have one, for the JSON file."""
    found = []
    for plain, fast in pairs(results):
        samples = speed_up(plain, fast)
        if samples:
            spread = summarise(samples)._asdict()
            named = {"part": plain.part, "case": plain.case, "measure": plain.measure}
            found.append({**named, "samples": samples, **spread})
    return found


def alternate(
    rounds: int, variants: Sequence[str], measure: Callable[[str], Mapping[str, float]]
) -> Samples:
    """Measure the variants in turn, in every other round from the last to the first."""
    samples: Samples = {variant: {} for variant in variants}
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            for name, value in measure(variant).items():
                samples[variant].setdefault(name, []).append(value)
    return samples


def rows_within(seconds: float, rate: float, *, n_rows: int, batch_size: int) -> int:
    """Return how many rows take about `seconds`: whole batches, at least two, or all rows.

    Args:
        seconds: that they are to take.
        rate: in photos/s.
        n_rows: that there are.
        batch_size: photos per step.
    """
    n_batches = max(2, int(rate * seconds / batch_size))
    return min(n_rows, n_batches * batch_size)


def break_even_steps(seconds: float, before: float, after: float) -> int | None:
    """Return the steps after which compiling has paid back; None: never.

    Args:
        seconds: of compiling.
        before: seconds of a step as it is.
        after: seconds of a compiled step.
    """
    return math.ceil(seconds / (before - after)) if after < before else None


# ----------------------------------------------------------------------------- instruments


def wait_for(device: torch.device) -> None:
    """Return once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure_rate(work: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Return the photos/s of `work`, which returns the number of its photos.

    It is done once, and again as long as less than half of `seconds` has passed.
    """
    n_photos, elapsed = 0, 0.0
    wait_for(device)
    start = time.perf_counter()
    while not n_photos or elapsed < seconds / 2:
        n_photos += work()
        wait_for(device)
        elapsed = time.perf_counter() - start
    return n_photos / elapsed


def peak_memory(pid: int | None = None) -> float | None:
    """Return the peak resident memory in MB of a process, else of this one; None: not known.

    Of this process alone: the workers of its loaders have their own.
    """
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / MEGABYTE
    except (OSError, StopIteration):  # not Linux, or the process has ended
        pass
    if pid is not None or sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / MEGABYTE


@contextmanager
def watch_utilisation(device: torch.device) -> Iterator[list[int]]:
    """Yield a list that fills with the GPU's utilisation in per cent while the block runs."""
    readings: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            try:
                readings.append(torch.cuda.utilization(device))
            except Exception:  # no nvidia-ml-py, or a driver that does not say: types of its own
                return

    thread = threading.Thread(target=watch, daemon=True)
    if device.type == "cuda":
        thread.start()
    try:
        yield readings
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join()


def matrix_flops(dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """Return the TFLOP/s of a product of two large square matrices."""
    side = MATRIX_SIDE[device.type]
    left = torch.rand(side, side, device=device).to(dtype)
    right = left.clone()
    torch.mm(left, right)
    wait_for(device)
    n_products, elapsed, start = 0, 0.0, time.perf_counter()
    while not n_products or elapsed < seconds:
        torch.mm(left, right)
        wait_for(device)
        n_products += 1
        elapsed = time.perf_counter() - start
    return 2 * side**3 * n_products / elapsed / 1e12


def run_command(arguments: Sequence[str | Path]) -> dict[str, float]:
    """Return seconds and peak memory of a Python command.

    Raises:
        UserError: it failed; the message ends in its last line.
    """
    command = [sys.executable, *map(str, arguments)]
    peak = None
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                peak = peak_memory(process.pid) or peak
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()  # where this process is interrupted; else it has ended
            process.wait()
        seconds = time.perf_counter() - start
        if process.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise UserError(f"{' '.join(command[1:3])} ended with {process.returncode}: {last}")
    return {"wall_time": seconds} | ({} if peak is None else {"peak_memory": peak})


def begin_child(start_method: str) -> None:
    """Let this process start children in that way, and end with its parent or at Ctrl-C."""
    multiprocessing.set_start_method(start_method, force=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says that it was interrupted


@contextmanager
def own_process() -> Iterator[Call]:
    """Start a fresh process; yield a function that runs others there, each in that one process.

    Its loaders start their workers in the way that is usual here, not in the way it was started.
    """
    usual = (multiprocessing.get_start_method(),)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh, begin_child, usual) as pool:

        def call(function: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return pool.submit(function, *arguments).result()
            except BrokenProcessPool as error:
                raise UserError("a measured process was killed; is the memory used up?") from error

        yield call


def in_new_process(function: Callable[..., Value], *arguments: Any) -> Value:
    """Return `function(*arguments)` of a process that has done nothing before."""
    with own_process() as call:
        return cast(Value, call(function, *arguments))


def set_compiler_cache(folder: Path) -> None:
    """Let torch.compile keep what it compiles in `folder`, and find nothing of former runs."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")


# ----------------------------------------------------------------------------- training


class OnDevice:
    """In a loader's place: the same batch `n_steps` times, ready on the device.

    Args:
        images: (N, 3, H, W) float32, normalised.
        labels: (N, n_tasks) int64.
        n_steps: of the epoch.
    """

    def __init__(self, images: Tensor, labels: Tensor, n_steps: int) -> None:
        self.images, self.labels, self.n_steps = images, labels, n_steps
        self.device, self.batch_sampler = images.device, self

    def shares(self) -> list[tuple[int, int]]:
        """Return the photos of each step, as `BatchSampler.shares` does."""
        return [(len(self.images), len(self.images))] * self.n_steps

    def __iter__(self) -> Iterator[None]:
        """Yield a nothing per step, which `__call__` makes the batch of."""
        return itertools.repeat(None, self.n_steps)

    def __call__(self, _: None) -> tuple[Tensor, Tensor]:
        """Return the batch, as `Preprocessing` does."""
        return self.images, self.labels


class ChannelsFirst(Preprocessing):
    """The same images with their channels first, as torchvision's transforms return them."""

    def __call__(self, batch: Item) -> tuple[Tensor, Tensor]:
        """Return images and labels, as `Preprocessing` does."""
        images, labels = super().__call__(batch)
        return images.contiguous(), labels


@contextmanager
def any_algorithms(allowed: bool) -> Iterator[None]:
    """Let PyTorch use algorithms that are not deterministic in the block, where `allowed`."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before and not allowed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@dataclass
class Variant:
    """A model and its loaders, as train.py has them before the first epoch; `plain`: as published.

    What has no flag in train.py is undone here: layout, fused optimiser, deterministic algorithms,
    and in `prepare` how memory is freed.
    """

    config: TrainConfig
    resolved: Resolved
    run: Run
    loaders: dict[str, DataLoader[Any]]
    ranks: Ranks
    plain: bool
    epoch: int = 0

    def __post_init__(self) -> None:
        """Undo what is in the model and the optimiser."""
        if self.plain:
            self.run.model.to(memory_format=self.layout)
            for group in self.run.optimizer.param_groups:
                group |= {"fused": None, "foreach": None}  # PyTorch chooses, as where none is given

    @property
    def layout(self) -> torch.memory_format:
        """How images and weights lie in memory: the published way is channels first."""
        return torch.contiguous_format if self.plain else torch.channels_last

    def first_rows(self, split: str, n_rows: int) -> DataLoader[Any]:
        """Return the split's loader, in its next epoch of the first `n_rows` rows alone."""
        loader = self.loaders[split]
        sampler: Any = loader.batch_sampler
        self.epoch += 1
        sampler.n_rows = n_rows
        sampler.set_epoch(self.epoch)
        return loader

    def n_rows(self, split: str) -> int:
        """Return how many rows the split has."""
        dataset: Any = self.loaders[split].dataset
        return len(dataset)

    def preprocessing(self, split: str) -> Preprocessing:
        """Return what makes the model's input of the split's batches."""
        dataset: Any = self.loaders[split].dataset
        kind = ChannelsFirst if self.plain else Preprocessing
        return kind(self.ranks.device, self.resolved.mean, self.resolved.std, dataset.augmentation)

    def load(self, n_rows: int) -> int:
        """Take the data path alone over training rows; return their number."""
        preprocessing = self.preprocessing("train")
        for batch in self.first_rows("train", n_rows):
            preprocessing(batch)
        return n_rows

    def train(self, loader: Any, preprocessing: Any, after_step: Callable[[], None]) -> None:
        """Train an epoch of the loader's, with the steps of train.py."""
        recipe = Recipe(
            amp=self.resolved.amp,
            loss_weights=self.config.loss_weights,
            label_smoothing=self.config.label_smoothing,
        )
        with any_algorithms(self.plain):
            train_one_epoch(
                self.run.model,
                loader,
                self.run.optimizer,
                recipe=recipe,
                preprocessing=preprocessing,
                scaler=self.run.scaler,
                ranks=self.ranks,
                epoch=max(1, self.epoch),
                after_step=after_step,
            )

    def train_rows(self, n_rows: int) -> int:
        """Train end to end on training rows; return their number."""
        loader = self.first_rows("train", n_rows)
        self.train(loader, self.preprocessing("train"), self.run.average)
        return n_rows

    def train_in_place(self, batch: OnDevice, n_steps: int) -> int:
        """Train the model alone on a batch that is on the device; return the photos."""
        batch.n_steps = n_steps
        self.train(batch, batch, self.run.average)
        return n_steps * len(batch.images)

    def batch_on_device(self) -> OnDevice:
        """Return one full batch of training, its pixels ready on the device.

        A data set that is smaller than a batch is repeated.
        """
        item: Item = next(iter(self.first_rows("train", self.n_rows("train"))))
        images, labels = self.preprocessing("train")(item)
        repeats = math.ceil(self.config.batch_size / len(images))
        size = self.config.batch_size
        images = images.repeat(repeats, 1, 1, 1)[:size].contiguous(memory_format=self.layout)
        return OnDevice(images, labels.repeat(repeats, 1)[:size], 1)

    def evaluate(self, n_rows: int) -> int:
        """Evaluate val rows; return their number."""
        with any_algorithms(self.plain):
            predict_split(
                self.run.evaluated,
                self.first_rows("val", n_rows),
                preprocessing=self.preprocessing("val"),
                amp=self.resolved.amp,
                ranks=self.ranks,
            )
        return n_rows


def prepare(config: TrainConfig, data: Data, folder: Path, *, plain: bool = False) -> Variant:
    """Return what `training.train` would start with; its run folder is made in `folder`.

    The learning rate is a hundredth, as in the first epoch, so that random weights stay finite.
    """
    ranks = Ranks(0, 1, resolve_device(config.device))
    if not plain:
        keep_freed_memory(ranks.device)
    run_dir = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    run, resolved = prepare_run(replace(config, run_dir=run_dir), data, ranks, None)
    setup_logging()  # lets go of the run's train.log
    set_learning_rate(run.optimizer, config.lr / 100)
    loaders = build_loaders(config, resolved, data, ranks)
    return Variant(config, resolved, run, loaders, ranks, plain)


@dataclass
class Trial:
    """A variant, and how much of each work takes about `seconds`, once that is prepared."""

    variant: Variant
    seconds: float
    n_loaded: int = 0  # rows
    n_steps: int = 0
    n_trained: int = 0  # rows
    n_evaluated: int = 0  # rows

    def __post_init__(self) -> None:
        """Make what the methods share."""
        self.device, self.batch_size = self.variant.ranks.device, self.variant.config.batch_size
        self.batch = self.variant.batch_on_device()

    def amount(self, rate: float, split: str) -> int:
        """Return how many rows of the split take the seconds at `rate` photos/s."""
        n_rows = self.variant.n_rows(split)
        return rows_within(self.seconds, rate, n_rows=n_rows, batch_size=self.batch_size)

    def prepare_training(self) -> None:
        """Find the amounts of training by a short trial, which also starts the workers."""
        variant, n_rows = self.variant, self.variant.n_rows("train")
        variant.load(min(n_rows, 2 * self.batch_size))
        data = measure_rate(lambda: variant.load(min(n_rows, 4 * self.batch_size)), 0, self.device)
        variant.train_in_place(self.batch, 1)
        model = measure_rate(lambda: variant.train_in_place(self.batch, 2), 0, self.device)
        self.n_loaded = self.amount(data, "train")
        self.n_trained = self.amount(min(data, model), "train")
        self.n_steps = max(2, int(self.seconds * model / self.batch_size))

    def flops_per_photo(self) -> float:
        """Return the floating-point operations of a training step per photo."""
        return count_flops(self.variant, self.batch) / self.batch_size

    def sample_training(self, flops: float) -> dict[str, float]:
        """Return a sample of the part `train`; `flops`: of a training step, per photo."""
        variant = self.variant
        rate = partial(measure_rate, seconds=self.seconds, device=self.device)
        data = rate(lambda: variant.load(self.n_loaded))
        model = rate(lambda: variant.train_in_place(self.batch, self.n_steps))
        with watch_utilisation(self.device) as utilisation:
            whole = rate(lambda: variant.train_rows(self.n_trained))
        dtype = AMP_DTYPES[variant.resolved.amp]
        matrix = matrix_flops(dtype, self.device, min(self.seconds, MATRIX_SECONDS))
        achieved = model * flops / 1e12
        measured = {
            "data_alone": data,
            "model_alone": model,
            "end_to_end": whole,
            "share_of_the_smaller": whole / min(data, model),
            "step_flops": achieved,
            "matrix_flops": matrix,
            "share_of_matrix_product": achieved / matrix,
        }
        if utilisation:
            measured["gpu_utilisation"] = statistics.fmean(utilisation)
        return measured

    def prepare_evaluation(self) -> None:
        """Find the amount of evaluation, likewise."""
        few = min(self.variant.n_rows("val"), 2 * self.batch_size)
        self.variant.evaluate(few)
        rate = measure_rate(lambda: self.variant.evaluate(few), 0, self.device)
        self.n_evaluated = self.amount(rate, "val")

    def sample_evaluation(self) -> dict[str, float]:
        """Return a sample of the part `evaluate`."""
        work = partial(self.variant.evaluate, self.n_evaluated)
        return {"evaluation": measure_rate(work, self.seconds, self.device)}


def count_flops(variant: Variant, batch: OnDevice) -> int:
    """Return the floating-point operations of a training step; a multiply-add counts as two.

    Attention is counted in its plain form: PyTorch does not count the CPU's fused one.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        variant.train_in_place(batch, 1)
    return counter.get_total_flops()


# Of this process. A variant has its own, so that it finds no memory that the other one freed.
trial: Trial | None = None


def begin_trial(
    config: TrainConfig, data: Data, folder: Path, plain: bool, seconds: float
) -> Resolved:
    """Make this process that of a variant; return what `auto` came to.

    Args:
        config: of the variant.
        data: to train on and evaluate.
        folder: for its run.
        plain: as published.
        seconds: of a measurement.
    """
    global trial
    setup_logging()
    set_determinism(resolve_device(config.device), config.deterministic)
    trial = Trial(prepare(config, data, folder, plain=plain), seconds)
    return trial.variant.resolved


def in_trial(method: Callable[..., Value], *arguments: Any) -> Value:
    """Return what a method of `Trial` returns for this process's."""
    return method(trial, *arguments)


def measure_training(calls: Mapping[str, Call], rounds: int) -> Samples:
    """Return the samples of the part `train`; `calls`: of each variant's process."""
    flops = calls["plain"](in_trial, Trial.flops_per_photo)
    for call in calls.values():
        call(in_trial, Trial.prepare_training)

    def measure(name: str) -> dict[str, float]:
        found: dict[str, float] = calls[name](in_trial, Trial.sample_training, flops)
        rates = (found["data_alone"], found["model_alone"], found["end_to_end"])
        logger.info("%s: data %.1f, model %.1f, end to end %.1f photos/s", name, *rates)
        return found

    return alternate(rounds, tuple(calls), measure)


def measure_evaluation(calls: Mapping[str, Call], rounds: int) -> Samples:
    """Return the samples of the part `evaluate`; `calls`: of each variant's process."""
    for call in calls.values():
        call(in_trial, Trial.prepare_evaluation)

    def measure(name: str) -> dict[str, float]:
        found: dict[str, float] = calls[name](in_trial, Trial.sample_evaluation)
        logger.info("%s: evaluation %.1f photos/s", name, found["evaluation"])
        return found

    return alternate(rounds, tuple(calls), measure)


def first_step(config: TrainConfig, plain: bool, folder: Path, began: float) -> dict[str, float]:
    """Train a few steps in this fresh process; return when the first ended, and the peak memory.

    Args:
        config: of the training.
        plain: as published.
        folder: for the run and the compiler's cache.
        began: when the process was asked for, in seconds since the epoch of the clock.
    """
    imports, memory = time.time() - began, peak_memory()
    set_compiler_cache(folder)
    setup_logging()
    device = resolve_device(config.device)
    set_determinism(device, config.deterministic)
    variant = prepare(config, read_run_data(config), folder, plain=plain)
    ended: list[float] = []

    def after_step() -> None:
        if not ended:
            wait_for(device)
            ended.append(time.time() - began)

    loader = variant.first_rows("train", min(variant.n_rows("train"), 4 * config.batch_size))
    variant.train(loader, variant.preprocessing("train"), after_step)
    measured = {"imports": imports, "first_step": ended[0]}
    peak = peak_memory()
    if memory is not None and peak is not None:
        measured |= {"peak_memory": peak, "peak_above_imports": peak - memory}
    if device.type == "cuda":
        measured["peak_device_memory"] = torch.cuda.max_memory_allocated(device) / MEGABYTE
    return measured


def measure_start(configs: Mapping[str, TrainConfig], rounds: int, folder: Path) -> Samples:
    """Return the samples of the part `start`; the fast variant begins without a cache, then has it.

    Args:
        configs: of the variants.
        rounds: of alternation.
        folder: for the caches, of photos and of the compiler.
    """

    def measure(name: str) -> dict[str, float]:
        place = Path(tempfile.mkdtemp(prefix="start-", dir=folder))
        config = configs[name]
        if config.cache_dir:
            config = replace(config, cache_dir=place / "cache")
        plain = name == "plain"
        measured = in_new_process(first_step, config, plain, place, time.time())
        if not plain:
            empty = measured["first_step"]
            measured = in_new_process(first_step, config, plain, place, time.time())
            measured["first_step_with_empty_cache"] = empty
        logger.info("%s: first step after %.1f s", name, measured["first_step"])
        return measured

    return alternate(rounds, tuple(configs), measure)


def compile_once(config: TrainConfig, folder: Path, seconds: float) -> dict[str, float]:
    """Compile the model in this fresh process; return what it costs and gains.

    Args:
        config: of the training.
        folder: for the run and the compiler's cache.
        seconds: of a measurement.
    """
    set_compiler_cache(folder)
    setup_logging()
    device = resolve_device(config.device)
    set_determinism(device, config.deterministic)
    config = replace(config, cache="none", cache_dir=None, num_workers=0)  # a single batch is read
    variant = prepare(replace(config, compile="off"), read_run_data(config), folder)
    batch, size = variant.batch_on_device(), config.batch_size

    def step_seconds() -> float:
        variant.train_in_place(batch, 1)
        return size / measure_rate(lambda: variant.train_in_place(batch, 2), seconds, device)

    before, amp = step_seconds(), variant.resolved.amp
    if config.amp == "auto" and device.type == "cpu" and has_fast_bf16():
        amp = "bf16"  # as compute.resolve_compute has it
    variant.resolved = replace(variant.resolved, amp=amp)
    spent = compile_backbone(variant.run.model, device, amp, Shape(size, config.image_size))
    after = step_seconds()
    measured = {"compile": spent, "step_before": before, "step_after": after}
    steps = break_even_steps(spent, before, after)
    return measured if steps is None else {**measured, "break_even": steps}


def measure_compiling(config: TrainConfig, rounds: int, seconds: float, folder: Path) -> Samples:
    """Return the samples of the part `compile`; the second time the compiler's cache is filled."""

    def measure(_: str) -> dict[str, float]:
        place = Path(tempfile.mkdtemp(prefix="compile-", dir=folder))
        measured = in_new_process(compile_once, config, place, seconds)
        again = in_new_process(compile_once, config, place, 0)
        logger.info("compiling took %.1f s", measured["compile"])
        return {**measured, "compile_again": again["compile"]}

    return alternate(rounds, ("fast",), measure)


# ----------------------------------------------------------------------------- scripts


def run_imports(*modules: str) -> dict[str, float]:
    """Return seconds and peak memory of a process that imports the modules and ends."""
    code = "import importlib, sys; sys.path.insert(0, sys.argv[1])"
    code += "; [importlib.import_module(name) for name in sys.argv[2:]]"
    return run_command(["-c", code, HERE, *modules])


def run_script(script: str, flags: Sequence[str | Path], imports: float | None) -> dict[str, float]:
    """Return seconds and peak memory of a script of the project, and that above its imports."""
    measured = run_command([HERE / script, *flags])
    if imports is not None and "peak_memory" in measured:
        measured["peak_above_imports"] = measured["peak_memory"] - imports
    logger.info("%s: %.1f s", script, measured["wall_time"])
    return measured


def write_checkpoint(config: TrainConfig, data: Data, folder: Path) -> Path:
    """Write the checkpoint of a model that has taken one step; return its path."""
    config = replace(config, compile="off", cache="none", cache_dir=None)
    variant = prepare(config, data, folder)
    variant.train_in_place(variant.batch_on_device(), 1)
    variant.run.epoch = 1
    variant.run.save({})
    return variant.run.folder / "checkpoint-000001.pth"


def write_photo_set(n_photos: int, data: Data, attributes_file: Path, folder: Path) -> Path:
    """Write a data root whose val split has `n_photos`, links to those of val, repeated as needed.

    Returns:
        Its attributes file.
    """
    rows = data.rows["val"].iloc[np.arange(n_photos) % len(data.rows["val"])]
    files = SplitFiles(folder, attributes_file.stem, TrainConfig.protocol)
    names = [f"{place:06d}_{name}" for place, name in enumerate(rows["name"])]
    for path in (files.photos, files.attributes.parent, files.split("val").parent):
        path.mkdir(parents=True, exist_ok=True)
    for name, source in zip(names, rows["name"], strict=True):
        photo = (data.folder / source).resolve()
        try:
            (files.photos / name).symlink_to(photo)
        except OSError:  # Windows, without the right to make links
            shutil.copyfile(photo, files.photos / name)
    shutil.copyfile(attributes_file, files.attributes)
    table = rows.assign(image_path=names)[["image_path", "id", "gender", "age"]]
    table.to_csv(files.split("val"), index=False)
    return files.attributes


def measure_scripts(
    config: BenchmarkConfig, backbone: str, data: Data, folder: Path
) -> Iterator[Result]:
    """Yield the results of the part `scripts` for a backbone."""
    checkpoints = {}
    for variant in VARIANTS:
        asked = config.training(variant, backbone, config.batch_sizes[0], folder)
        checkpoints[variant] = write_checkpoint(asked, data, folder)
    imports = {s: run_imports(ROOMS[s]).get("peak_memory") for s in ("test", "predict")}
    flags: dict[str, Sequence[str]] = {"plain": PLAIN_SCRIPT_FLAGS, "fast": ()}
    for n_photos in config.script_photos:
        root = folder / f"photos-{n_photos}"
        attributes = write_photo_set(n_photos, data, config.attributes_file, root)
        inputs = {"test": ("--attributes_file", attributes), "predict": (root / "Hands",)}
        for script, given in inputs.items():

            def measure(variant: str, script: str = script, given: Any = given) -> dict[str, float]:
                checkpoint = ("--checkpoint", checkpoints[variant], "--device", config.device)
                arguments = [*checkpoint, *flags[variant], *given]
                return run_script(f"{script}.py", arguments, imports[script])

            case: Case = {"script": f"{script}.py", "backbone": backbone, "photos": n_photos}
            yield from results_of("scripts", case, alternate(config.rounds, VARIANTS, measure))


def measure_help(rounds: int) -> Iterator[Result]:
    """Yield the results of the part `help`: for every file of the project that is a script."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.py"))}
    scripts = [name for name, source in sources.items() if '\nif __name__ == "__main__":' in source]
    for script in scripts:

        def measure(_: str, script: str = script) -> dict[str, float]:
            below = run_imports("torch", "timm")
            imports = run_imports("torch", "timm", ROOMS.get(script, script))
            above = imports["wall_time"] - below["wall_time"]
            told = run_command([HERE / f"{script}.py", "--help"])
            logger.info("%s.py: --help %.2f s, imports %.2f s", script, told["wall_time"], above)
            return {"help": told["wall_time"], "imports_above_torch_and_timm": above}

        samples = alternate(rounds, ("fast",), measure)
        yield from results_of("help", {"script": f"{script}.py"}, samples)


def write_hand_info(n_rows: int, folder: Path) -> None:
    """Write a HandInfo.csv of made-up people, 58 photos each as in 11k Hands, and empty photos."""
    random = np.random.default_rng(n_rows)
    person = np.arange(n_rows) // 58
    ages = random.integers(18, 76, person[-1] + 1)
    genders = random.choice(GENDERS, person[-1] + 1)
    columns = {
        "id": [f"{number:07d}" for number in person],
        "age": ages[person],
        "gender": genders[person],
        "skinColor": random.choice(SKIN_COLORS, n_rows),
        "accessories": (random.random(n_rows) < 0.29).astype(int),  # the share of 11k Hands
        "nailPolish": 0,
        "aspectOfHand": random.choice(list(ASPECTS.values()), n_rows),
        "imageName": [f"Hand_{number:07d}.jpg" for number in range(n_rows)],
        "irregularities": 0,
    }
    (folder / "Hands").mkdir(parents=True)
    pd.DataFrame(columns)[list(HAND_INFO_COLUMNS)].to_csv(folder / "HandInfo.csv", index=False)
    for name in columns["imageName"]:
        (folder / "Hands" / name).touch()


def measure_split(config: BenchmarkConfig, folder: Path) -> Iterator[Result]:
    """Yield the results of the part `split`."""
    imports = run_imports("dataset_11k_split").get("peak_memory")
    for n_rows in config.split_rows:
        root = folder / f"split-{n_rows}"
        write_hand_info(n_rows, root)
        flags = ("--input", root)

        def measure(_: str, flags: Any = flags) -> dict[str, float]:
            return run_script("dataset_11k_split.py", flags, imports)

        samples = alternate(config.rounds, ("fast",), measure)
        yield from results_of("split", {"rows": n_rows}, samples)
        shutil.rmtree(root)


def measure_cache(config: BenchmarkConfig, data: Data, folder: Path) -> Iterator[Result]:
    """Yield the results of the part `cache`: the train photos, on disk."""
    rows, side = data.rows["train"], resize_size(config.image_size)
    augmentation = Augmentation(config.image_size, flip=0.5, jitter=0, by_batch=True)

    def seconds_to_open(place: Path) -> float:
        dataset = HandsDataset(
            rows,
            data.folder,
            data.label_space,
            side=side,
            decode_size=side,
            augmentation=augmentation,
        )
        start = time.perf_counter()
        attach_cache(dataset, "disk", folder=place, num_workers=config.num_workers)
        return time.perf_counter() - start

    def measure(_: str) -> dict[str, float]:
        place = Path(tempfile.mkdtemp(prefix="cache-", dir=folder))
        built, opened = seconds_to_open(place), seconds_to_open(place)
        shutil.rmtree(place)
        return {"build": len(rows) / built, "open_again": opened}

    case = {"photos": len(rows), "side": side, "workers": config.num_workers}
    yield from results_of("cache", case, alternate(config.rounds, ("fast",), measure))


# ----------------------------------------------------------------------------- all of it


def check_asked(config: BenchmarkConfig) -> None:
    """Refuse what cannot be measured before anything is."""
    if set(config.parts) <= PARTS_WITHOUT_DATA:
        return
    if not config.attributes_file.is_file():
        raise UserError(
            f"{config.attributes_file} not found; to measure on drawn hands: python"
            " dataset_11k_synthetic.py --identities 143 --images_per_identity 14 --width 1600"
            " --output demo/1600, python dataset_11k_split.py --input demo/1600, and here"
            " --attributes_file demo/1600/sub_dataset/dorsal_dr.csv"
        )
    for backbone in config.backbones:
        check_backbone(backbone, config.image_size)


def measure_setting(
    config: BenchmarkConfig, backbone: str, batch_size: int, data: Data, folder: Path
) -> Iterator[Result]:
    """Yield the results of the parts that have a backbone and a batch size."""
    case: Case = {"backbone": backbone, "batch_size": batch_size, "image_size": config.image_size}
    configs = {v: config.training(v, backbone, batch_size, folder) for v in VARIANTS}
    rounds, seconds = config.rounds, config.seconds
    if "start" in config.parts:  # before this process takes memory
        yield from results_of("start", case, measure_start(configs, rounds, folder))
    if "compile" in config.parts:
        samples = measure_compiling(configs["fast"], rounds, seconds, folder)
        yield from results_of("compile", case, samples)
    if not {"train", "evaluate"} & set(config.parts):
        return
    with own_process() as plain, own_process() as fast:
        calls = {"plain": plain, "fast": fast}
        resolved = {
            name: call(begin_trial, configs[name], data, folder, name == "plain", seconds)
            for name, call in calls.items()
        }
        chosen = resolved["fast"]
        case = {**case, "amp": chosen.amp, "compiled": "yes" if chosen.compile else "no"}
        if "train" in config.parts:
            yield from results_of("train", case, measure_training(calls, rounds))
        if "evaluate" in config.parts:
            yield from results_of("evaluate", case, measure_evaluation(calls, rounds))


def measure_all(config: BenchmarkConfig, folder: Path) -> Iterator[Result]:
    """Yield the results of all parts, as they come."""
    if "split" in config.parts:
        yield from measure_split(config, folder)
    if "help" in config.parts:
        yield from measure_help(config.rounds)
    if set(config.parts) <= PARTS_WITHOUT_DATA:
        return
    backbone, batch_size = config.backbones[0], config.batch_sizes[0]
    data = read_run_data(config.training("fast", backbone, batch_size, folder))
    if "cache" in config.parts:
        yield from measure_cache(config, data, folder)
    for backbone in config.backbones:
        if "scripts" in config.parts:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                yield from measure_scripts(config, backbone, data, Path(place))
        for batch_size in config.batch_sizes:
            logger.info("%s, batch %d", backbone, batch_size)
            yield from measure_setting(config, backbone, batch_size, data, folder)


# ----------------------------------------------------------------------------- output


def in_short(value: float) -> str:
    """Return a number with at least three significant digits."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def cell(samples: Sequence[float]) -> str:
    """Return median (minimum-maximum)."""
    if not samples:
        return ""
    median, *spread = map(in_short, summarise(samples))
    return f"{median} ({'-'.join(spread)})" if len(samples) > 1 else median


def table_lines(results: Sequence[Result]) -> list[str]:
    """Return the table: per part and case a heading, and a line per measure."""
    lines: list[str] = []
    for (part, _), group in itertools.groupby(results, lambda r: (r.part, str(r.case))):
        members = list(group)
        told = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in members[0].case.items())
        shown = [v for v in VARIANTS if any(r.variant == v for r in members)]
        both = len(shown) == len(VARIANTS)
        heading = [f"{part}: {told}", *(shown if both else [""]), "speed-up" if both else ""]
        rows = []
        for measure in dict.fromkeys(r.measure for r in members):
            found = {r.variant: r for r in members if r.measure == measure}
            ratios = speed_up(found["plain"], found["fast"]) if len(found) == 2 else []
            unit = f", {UNITS[measure]}" if UNITS[measure] else ""
            cells = [cell(found[v].samples) if v in found else "" for v in shown]
            rows.append([f"  {measure.replace('_', ' ')}{unit}", *cells, cell(ratios)])
        lines += ["", heading[0], *aligned([["", *heading[1:]], *rows])]
    return lines[1:]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines, columns in line: the first to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return [line for line in lines if line]


# Bars of the figure: measure and variant -> label, Okabe and Ito's colour, hatch.
BARS = {
    ("end_to_end", "plain"): ("plain, end to end", "#D55E00", "///"),
    ("end_to_end", "fast"): ("fast, end to end", "#0072B2", ""),
    ("data_alone", "fast"): ("fast, data alone", "#56B4E9", "..."),
    ("model_alone", "fast"): ("fast, model alone", "#E69F00", "\\\\\\"),
}


def plot_rates(results: Sequence[Result], path: Path) -> None:
    """Draw the photos/s of the part `train`: a group of bars per backbone and batch size.

    Args:
        results: those of other parts are left out.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    trained = [r for r in results if r.part == "train"]
    cases = list({str(r.case): r.case for r in trained}.values())
    figure = Figure(figsize=(2.2 + 2.6 * max(2, len(cases)), 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (measure, variant) in enumerate(BARS):
        found = [r for r in trained if (r.measure, r.variant) == (measure, variant)]
        draw_bars(axes, found, place, *BARS[measure, variant])
    labels = [f"{case['backbone']}\nbatch {case['batch_size']}" for case in cases]
    axes.set_xticks([i + 0.3 for i in range(len(cases))], labels)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_ylabel("photos/s (logarithmic)")
    axes.set_title("training: median over rounds, bars from minimum to maximum", loc="left")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path)


def draw_bars(
    axes: Axes, results: Sequence[Result], place: int, label: str, color: str, hatch: str
) -> None:
    """Draw one bar per result, the `place`-th of each group, with its value above it."""
    at = [i + 0.2 * place for i in range(len(results))]
    spreads = [summarise(r.samples) for r in results]
    heights = [s.median for s in spreads]
    errors = [[s.median - s.minimum for s in spreads], [s.maximum - s.median for s in spreads]]
    axes.bar(
        at,
        heights,
        0.19,
        yerr=errors,
        label=label,
        color=color,
        hatch=hatch,
        edgecolor="#333333",
        linewidth=0.6,
        error_kw={"capsize": 3, "elinewidth": 1},
    )
    for x, spread in zip(at, spreads, strict=True):
        axes.annotate(
            in_short(spread.median),
            (x, spread.maximum),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def write_results(
    config: BenchmarkConfig, facts: Mapping[str, Any], results: Sequence[Result]
) -> None:
    """Write what was measured so far."""
    write_json(
        config.output,
        {
            "format": RESULT_FORMAT,
            **facts,
            "config": config_to_json(config),
            "plain": PLAIN,
            "results": [result.to_json() for result in results],
            "speed_ups": speed_ups(results),
        },
    )


def measure_and_write(config: BenchmarkConfig) -> None:
    """Measure what the flags ask for, write the results as they come, print the table."""
    setup_logging()
    device = resolve_device(config.device)
    set_determinism(device, deterministic=False)
    check_asked(config)
    facts = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": git_commit(),
        "environment": describe_environment(device),
    }
    results: list[Result] = []
    if not config.output.exists():  # former results stay until there are new ones
        write_results(config, facts, results)  # says now, not in an hour, that it cannot be written
    with tempfile.TemporaryDirectory(prefix="igae-benchmark-") as folder:
        for result in measure_all(config, Path(folder)):
            results.append(result)
            write_results(config, facts, results)
    spread = f"median (minimum-maximum) of {config.rounds} rounds"
    print(f"{spread if config.rounds > 1 else 'one round'}, plain and fast in alternation")
    print(", ".join(f"{name} {value}" for name, value in describe_environment(device).items()))
    print("\n".join(["", *table_lines(results), ""]))
    if "train" in config.parts:
        plot_rates(results, config.output.with_suffix(".png"))
        print(f"wrote {config.output.with_suffix('.png')}")
    print(f"wrote {config.output}")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = build_parser(BenchmarkConfig, __doc__)
    config = build_config(parser, BenchmarkConfig, vars(parser.parse_args(argv)))
    measure_and_write(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
