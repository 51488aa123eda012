"""Measure how fast training and evaluation are, optimised against a baseline.

    python benchmark.py --backbones swin_t resnet50 --parts data model train evaluate

prints a table and writes benchmark.json (every sample, environment, commit) and benchmark.png into
--output. Two variants, each in its own process, alternate over the rounds:

baseline   As published: the training process decodes every photo in every epoch, at full size;
           float32; not compiled; augmentation photo by photo.
optimised  The defaults of train.py, or the values of --amp, --compile, --cache, --augment and
           --num_workers.

Parts:

data       Photos/s of loading, augmenting and copying to the device.
model      A training step on a batch that is on the device: forward, backward, optimiser.
train      Photos/s of training end to end.
evaluate   Photos/s of evaluation on the val split.
start      Seconds from the start of a process to the end of its first step, with an empty and with
           a filled cache; peak memory of the process.
compile    Seconds of compiling the backbone; duration of a step before and after it.

Weights are random, as they do not change the speed.

    python benchmark.py --runs checkpoints/published checkpoints/frozen

compares the time to accuracy of finished runs of train.py on the same split: minutes until a run
reaches the best score on val of the first and stays at or above it (the first: until it reaches
it). Features that were cached before are not timed. Writes accuracy.csv and accuracy.png.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.benchmark import Timer

from data.splits import PROTOCOLS, locate
from dataset_11k import Item
from engine.checkpoint import read_epochs, read_run
from engine.distributed import Distributed
from engine.loop import (
    Preprocessing,
    predict_split,
    train_one_epoch,
)
from engine.losses import MultiTaskLoss
from engine.precision import autocast, compile_backbone, keep_freed_memory, resolve_amp
from pages.figures import save_figure
from train import (
    TrainConfig,
    build_loaders,
    check_model,
    prepare_run,
    read_run_data,
    set_learning_rate,
)
from utils import (
    DEVICES,
    UserError,
    atomic_write,
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

# Measured in one process per variant, which lasts for all rounds.
STEADY_PARTS = ("data", "model", "train", "evaluate")

PARTS = (*STEADY_PARTS, "start", "compile")

# Flags of train.py; those of the optimised variant come from `BenchmarkConfig`.
BASELINE: dict[str, Any] = {
    "cache": False,
    "fast_decode": False,
    "amp": "off",
    "compile": False,
    "augment": "photo",
    "num_workers": 0,
}

VARIANTS = ("baseline", "optimised")

# Quantity -> unit.
UNITS = {
    "data path": "photos/s",
    "model": "photos/s",
    "forward": "ms",
    "backward": "ms",
    "optimiser": "ms",
    "end to end": "photos/s",
    "evaluation": "photos/s",
    "first step": "s",
    "first step, filled cache": "s",
    "peak memory": "MB",
    "compilation": "s",
    "step, not compiled": "ms",
    "step, compiled": "ms",
}

RESULT_FORMAT = 2


def train_flag(name: str) -> Any:
    """Return the flag `name` of train.py with its default."""
    known = TrainConfig.__dataclass_fields__[name]
    return field(default=known.default, metadata=known.metadata)


@dataclass(frozen=True)
class BenchmarkConfig:
    """The flags of benchmark.py."""

    attributes_file: Path = flag(Path("./11k/sub_dataset/dorsal_dr.csv"), "CSV of the hand aspect")
    parts: tuple[str, ...] = flag(
        STEADY_PARTS, "what to measure (see above)", choices=PARTS, nargs="+"
    )
    backbones: tuple[str, ...] = flag(("swin_t",), "names as in train.py", nargs="+")
    batch_sizes: tuple[int, ...] = flag((20,), "photos per step", nargs="+")
    image_size: int = train_flag("image_size")
    rounds: int = flag(3, "number of rounds, each of which measures both variants")
    seconds: float = flag(2.0, "minimum duration of a measurement in seconds")
    n_photos: int = flag(200, "photos to use of each split")
    amp: str = train_flag("amp")
    compile: bool = train_flag("compile")
    cache: bool = train_flag("cache")
    augment: str = train_flag("augment")
    num_workers: int = train_flag("num_workers")
    device: str = flag("auto", "where to measure; auto: cuda, then mps, then cpu", choices=DEVICES)
    runs: tuple[Path, ...] = flag(
        (), "compare the time to accuracy of these runs instead", nargs="+", metavar="RUN_DIR"
    )
    output: Path = flag(Path("./benchmark_results"), "folder of the results", metavar="DIR")

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if len(self.runs) == 1 or len(set(self.runs)) < len(self.runs):
            raise ValueError("--runs: give at least two different runs")
        for name in ("rounds", "seconds", "batch_sizes", "n_photos"):
            value = getattr(self, name)
            if not all(0 < v < math.inf for v in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"--{name} must be above 0")
        for backbone, batch_size in itertools.product(self.backbones, self.batch_sizes):
            for variant in VARIANTS:
                self.training(variant, backbone, batch_size, Path())  # refuses what train.py does

    def training(self, variant: str, backbone: str, batch_size: int, scratch: Path) -> TrainConfig:
        """Return the flags of train.py; the cache is kept in `scratch`."""
        optimised = {name: getattr(self, name) for name in BASELINE if name != "fast_decode"}
        chosen = BASELINE if variant == "baseline" else optimised
        return TrainConfig(
            attributes_file=(self.attributes_file,),
            backbone=backbone,
            pretrained=False,
            image_size=self.image_size,
            batch_size=batch_size,
            device=self.device,
            cache_dir=scratch / "cache" if chosen["cache"] else None,
            **chosen,
        )


# ----------------------------------------------------------------------------- measuring


class RepeatedBatch:
    """A substitute for a loader: the same batch on the device, `n_steps` times."""

    def __init__(self, batch: Item, n_steps: int) -> None:
        self.batch, self.n_steps, self.batch_sampler = batch, n_steps, self

    def shares(self) -> list[tuple[int, int]]:
        """Return the number of photos of each step, as `BatchSampler.shares`."""
        return [(len(self.batch.image), len(self.batch.image))] * self.n_steps

    def __iter__(self) -> Iterator[Item]:
        """Yield the batches."""
        return itertools.repeat(self.batch, self.n_steps)


def seconds_per_call(work: Callable[[], Any], min_seconds: float) -> float:
    """Return the median duration of a call, after a warm-up."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=min_seconds).median


class Trainer:
    """Model, optimiser and loaders as train.py builds them before the first epoch.

    Args:
        config: flags of train.py.
        n_photos: number of photos to use of each split.
        folder: parent of the run's folder.
    """

    def __init__(self, config: TrainConfig, n_photos: int, folder: Path) -> None:
        setup_logging(quiet=True)
        self.device = resolve_device(config.device)
        set_determinism(self.device, config.deterministic)
        keep_freed_memory(self.device)
        data = read_run_data(config)
        data = replace(data, samples={s: part.head(n_photos) for s, part in data.samples.items()})
        distributed = Distributed(0, 1, self.device)
        run_dir = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
        self.config = replace(config, run_dir=run_dir)
        amp = resolve_amp(config.amp, self.device)
        self.run, self.resolved = prepare_run(self.config, data, distributed, None, amp=amp)
        # the rate of the first epoch, so that random weights stay finite
        set_learning_rate(self.run.optimizer, config.lr / 100)
        self.loaders = build_loaders(config, self.resolved, data, distributed)
        weights, smoothing = self.resolved.loss_weights, config.label_smoothing
        criterion = MultiTaskLoss(data.label_space.tasks, weights, smoothing)
        self.criterion = criterion.to(self.device)
        self.n_photos = {split: len(part) for split, part in data.samples.items()}

    def preprocessing(self, split: str) -> Preprocessing:
        """Return what turns the split's batches into the model's input."""
        dataset: Any = self.loaders[split].dataset
        return Preprocessing(
            self.device, self.resolved.mean, self.resolved.std, dataset.augmentation
        )

    def train(self, loader: Any, after_step: Callable[[], None] | None = None) -> None:
        """Train on the batches of a loader, as an epoch of train.py does."""
        train_one_epoch(
            self.run.model,
            loader,
            self.run.optimizer,
            self.criterion,
            preprocessing=self.preprocessing("train"),
            scaler=self.run.scaler,
            amp=self.resolved.amp,
            epoch=1,
            after_step=after_step,
        )

    def first_batch(self) -> Item:
        """Return a batch of the train split, on the device."""
        batch: Item = next(iter(self.loaders["train"]))
        return Item(*(torch.as_tensor(part).to(self.device) for part in batch))

    def measure_data(self, seconds: float) -> dict[str, float]:
        """Return the speed of the data path alone."""
        preprocessing = self.preprocessing("train")

        def load() -> None:
            for batch in self.loaders["train"]:
                preprocessing(batch)

        return {"data path": self.n_photos["train"] / seconds_per_call(load, seconds)}

    def measure_model(self, seconds: float) -> dict[str, float]:
        """Return the speed of a training step alone, and the durations of its parts."""
        batch = self.first_batch()
        images, _ = self.preprocessing("train")(batch)

        def forward() -> None:
            with autocast(self.device, self.resolved.amp):
                self.run.model(images)

        step = seconds_per_call(lambda: self.train(RepeatedBatch(batch, 1)), seconds)
        optimiser = seconds_per_call(self.run.optimizer.step, seconds)
        passed = seconds_per_call(forward, seconds)
        return {
            "model": len(images) / step,
            "forward": 1000 * passed,
            "backward": 1000 * max(0.0, step - passed - optimiser),
            "optimiser": 1000 * optimiser,
        }

    def measure_train(self, seconds: float) -> dict[str, float]:
        """Return the speed of training end to end."""
        loader = self.loaders["train"]
        duration = seconds_per_call(lambda: self.train(loader), seconds)
        return {"end to end": self.n_photos["train"] / duration}

    def measure_evaluate(self, seconds: float) -> dict[str, float]:
        """Return the speed of evaluation."""

        def evaluate() -> None:
            predict_split(
                self.run.evaluated_model,
                self.loaders["val"],
                preprocessing=self.preprocessing("val"),
                amp=self.resolved.amp,
            )

        return {"evaluation": self.n_photos["val"] / seconds_per_call(evaluate, seconds)}


trainer: Trainer | None = None  # of a variant's process


def build_trainer(*arguments: Any) -> None:
    """Build the trainer of this process; `arguments` as for `Trainer`."""
    global trainer
    trainer = Trainer(*arguments)


def measure_part(part: str, seconds: float) -> dict[str, float]:
    """Return one measurement by this process's trainer."""
    measured: dict[str, float] = getattr(trainer, f"measure_{part}")(seconds)
    return measured


def measure_first_step(config: TrainConfig, folder: Path, started: float) -> dict[str, float]:
    """Return the seconds until the end of this process's first step, and its peak memory.

    Args:
        config: flags of train.py.
        folder: for the run and the compiler's cache.
        started: time at which the process was started, in seconds since the epoch.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    new = Trainer(config, 2 * config.batch_size, folder)
    ended: list[float] = []

    def after_step() -> None:
        if new.device.type == "cuda":
            torch.cuda.synchronize(new.device)
        ended.append(time.time())

    new.train(new.loaders["train"], after_step)
    return {"first step": ended[0] - started, **peak_memory()}


def peak_memory() -> dict[str, float]:
    """Return the peak resident memory of this process in MB; empty on Windows."""
    if sys.platform == "win32":
        return {}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak memory": peak * (1 if sys.platform == "darwin" else 1024) / 1e6}


def measure_compilation(config: TrainConfig, folder: Path, seconds: float) -> dict[str, float]:
    """Return the durations of compilation, and of a step before and after it."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
    new = Trainer(replace(config, compile=False), config.batch_size, folder)
    steps = RepeatedBatch(new.first_batch(), 1)
    before = seconds_per_call(lambda: new.train(steps), seconds)
    start = time.perf_counter()
    compile_backbone(
        new.run.model,
        new.device,
        new.resolved.amp,
        (len(steps.batch.image), 3, config.image_size, config.image_size),
    )
    spent = time.perf_counter() - start
    after = seconds_per_call(lambda: new.train(steps), seconds)
    return {
        "compilation": spent,
        "step, not compiled": 1000 * before,
        "step, compiled": 1000 * after,
    }


# ----------------------------------------------------------------------------- processes


def new_process() -> ProcessPoolExecutor:
    """Return an executor of one new process, whose data loaders start workers as train.py's do."""
    usual = (multiprocessing.get_start_method(), True)
    return ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), multiprocessing.set_start_method, usual
    )


def call_in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function(*arguments)` of a new process."""
    with new_process() as pool:
        return pool.submit(function, *arguments).result()


def measure_start(config: TrainConfig, folder: Path) -> dict[str, float]:
    """Measure the start of two new processes; the second uses the caches of the first."""
    if config.cache:
        config = replace(config, cache_dir=folder / "cache")
    first, second = (
        call_in_new_process(measure_first_step, config, folder, time.time()) for _ in range(2)
    )
    return {**first, "first step, filled cache": second["first step"]}


def measure(
    part: str, config: TrainConfig, pool: ProcessPoolExecutor, seconds: float, folder: Path
) -> dict[str, float]:
    """Return one sample of each quantity of a part.

    Args:
        part: of `PARTS`.
        config: flags of train.py.
        pool: the variant's process, which has called `build_trainer`.
        seconds: minimum duration of a measurement.
        folder: for runs and caches.
    """
    new_folder = Path(tempfile.mkdtemp(prefix=f"{part}-", dir=folder))
    if part == "start":
        return measure_start(config, new_folder)
    if part == "compile":
        sample: dict[str, float] = call_in_new_process(
            measure_compilation, config, new_folder, seconds
        )
        return sample
    return pool.submit(measure_part, part, seconds).result()


def measure_case(
    config: BenchmarkConfig, backbone: str, batch_size: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield the samples of a backbone and batch size."""
    configs = {v: config.training(v, backbone, batch_size, folder) for v in VARIANTS}
    with ExitStack() as stack:
        pools = {variant: stack.enter_context(new_process()) for variant in VARIANTS}
        if set(config.parts) & set(STEADY_PARTS):
            for variant, pool in pools.items():
                pool.submit(build_trainer, configs[variant], config.n_photos, folder).result()
        for part, number in itertools.product(config.parts, range(config.rounds)):
            logger.info("%s, batch size %d: %s, round %d", backbone, batch_size, part, number + 1)
            # alternate the order, so that drift favours neither variant
            for variant in VARIANTS if number % 2 == 0 else reversed(VARIANTS):
                if part == "compile" and variant == "baseline":
                    continue
                found = measure(part, configs[variant], pools[variant], config.seconds, folder)
                case = {"backbone": backbone, "batch_size": batch_size, "part": part}
                case |= {"round": number, "variant": variant}
                for quantity, value in found.items():
                    yield {**case, "quantity": quantity, "value": value}


# ----------------------------------------------------------------------------- results


def speed_up(quantity: str, baseline: float, optimised: float) -> float:
    """Return how many times as fast the optimised variant is; NaN for memory."""
    if UNITS[quantity] == "MB":
        return math.nan
    return optimised / baseline if UNITS[quantity] == "photos/s" else baseline / optimised


def speed_table(samples: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the medians over rounds of both variants, and of the speed-up within a round."""
    table = pd.DataFrame(samples)
    keys = ["backbone", "batch_size", "part", "quantity"]
    wide = table.pivot_table(index=[*keys, "round"], columns="variant", values="value", sort=False)
    wide = wide.reindex(columns=list(VARIANTS))
    wide["speed-up"] = [
        speed_up(str(index[3]), *pair)
        for index, pair in zip(wide.index, wide.itertuples(index=False), strict=True)
    ]
    summary = wide.groupby(level=keys, sort=False).median().reset_index()
    summary.insert(4, "unit", summary["quantity"].map(UNITS))
    return summary


def format_number(value: float) -> str:
    """Return a number with three significant digits; from 100 on, as a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot_speeds(summary: pd.DataFrame, path: Path) -> None:
    """Draw the median photos/s of every backbone and batch size.

    Args:
        summary: as `speed_table` returns it, with at least one rate.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    rates_of_all = summary[summary["unit"] == "photos/s"]
    cases = list(rates_of_all.groupby(["backbone", "batch_size"], sort=False))
    figure = Figure(figsize=(1.5 + 4.5 * len(cases), 4.2), layout="constrained")
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for panel, ((backbone, batch_size), rates) in zip(panels, cases, strict=True):
        for i, (variant, color) in enumerate(zip(VARIANTS, ("#D55E00", "#0072B2"), strict=True)):
            places = [place + 0.4 * i for place in range(len(rates))]
            bars = panel.bar(places, rates[variant], 0.38, color=color, label=variant)
            panel.bar_label(bars, [format_number(value) for value in rates[variant]], padding=2)
        panel.set_xticks([place + 0.2 for place in range(len(rates))], list(rates["quantity"]))
        panel.set_title(f"{backbone}, batch size {batch_size}", loc="left", parse_math=False)
        panel.margins(y=0.1)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("photos/s (median over rounds)")
    panels[0].legend(frameon=False)
    save_figure(figure, path)


def write_samples(
    config: BenchmarkConfig, facts: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> None:
    """Write benchmark.json with the samples measured so far."""
    content = {"format": RESULT_FORMAT, **facts, "config": config_to_json(config)}
    units = {sample["quantity"]: UNITS[sample["quantity"]] for sample in samples}
    content |= {"baseline": BASELINE, "units": units, "samples": list(samples)}
    write_json(config.output / "benchmark.json", content)


# ----------------------------------------------------------------------------- time to accuracy


def read_curves(run_dirs: Sequence[Path]) -> pd.DataFrame:
    """Return the evaluated epochs of runs: run, epoch, minutes since the start, score on val.

    The score is rank-1 if val shows unseen people, else the mean balanced accuracy of the tasks.
    """
    curves, first = [], read_run(run_dirs[0])
    for run_dir in run_dirs:
        stored = read_run(run_dir)
        if stored["fingerprints"] != first["fingerprints"]:
            raise UserError(f"--runs: {run_dir} has other samples than {run_dirs[0]}. Leave it out")
        if stored["environment"] != first["environment"]:
            logger.warning("%s ran on another machine or version than %s", run_dir, run_dirs[0])
        table = pd.DataFrame(read_epochs(run_dir))
        unseen = "val" in PROTOCOLS[stored["config"]["protocol"]].unseen
        score = table["val_rank_1" if unseen else "val_mean_balanced_accuracy"]
        table = table.assign(run=str(run_dir), minutes=table["seconds"].cumsum() / 60, score=score)
        curves.append(table.dropna(subset="score")[["run", "epoch", "minutes", "score"]])
    return pd.concat(curves, ignore_index=True)


def time_to_accuracy(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the minutes until each run stays at or above the first one's best score; NaN: never.

    Args:
        curves: as `read_curves` returns them.
    """
    groups = {run: group for run, group in curves.groupby("run", sort=False)}
    reference = next(iter(groups.values()))
    target = reference["score"].max()
    needed = reference["minutes"].to_numpy()[reference["score"].argmax()]
    rows = []
    for run, group in groups.items():
        lowest_since = np.minimum.accumulate(group["score"].to_numpy()[::-1])[::-1]
        minutes = group["minutes"][lowest_since >= target].min()
        if group is reference:  # its best epoch is what is kept, whatever follows
            minutes = needed
        best = group["score"].max()
        rows.append((run, target, best, minutes, needed / minutes))
    return pd.DataFrame(rows, columns=["run", "target", "best score", "minutes", "speed-up"])


def plot_accuracy(curves: pd.DataFrame, target: float, path: Path) -> None:
    """Draw the score on val over the minutes since the start of each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    for run, group in curves.groupby("run", sort=False):
        panel.plot(group["minutes"], 100 * group["score"], marker="o", markersize=3, label=run)
    panel.axhline(100 * target, color="#888888", linewidth=0.8)
    panel.set_xscale("log")
    panel.set_xlabel("minutes since the start of the training")
    panel.set_ylabel("score on val (%)")
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def compare_runs(config: BenchmarkConfig) -> None:
    """Print and write the time to accuracy of --runs."""
    curves = read_curves(config.runs)
    table = time_to_accuracy(curves)
    config.output.mkdir(parents=True, exist_ok=True)
    with atomic_write(config.output / "accuracy.csv") as temporary:
        curves.to_csv(temporary, index=False, lineterminator="\n")
    plot_accuracy(curves, table["target"][0], config.output / "accuracy.png")
    print(table.to_string(index=False, float_format="{:.3g}".format, na_rep="never"))
    print(f"\nwrote accuracy.csv and accuracy.png to {config.output}")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = build_parser(BenchmarkConfig, __doc__)
    config = build_config(parser, BenchmarkConfig, vars(parser.parse_args(argv)))
    setup_logging()
    if config.runs:
        compare_runs(config)
        return 0
    device = resolve_device(config.device)
    for backbone in config.backbones:
        check_model(config.training("baseline", backbone, config.batch_sizes[0], Path()))
    locate(config.attributes_file, "paper")  # refuses a missing file
    facts = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": git_commit(),
        "environment": describe_environment(device),
    }
    samples: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="igae-benchmark-") as folder:
        for case in itertools.product(config.backbones, config.batch_sizes):
            for sample in measure_case(config, *case, Path(folder)):
                samples.append(sample)
                write_samples(config, facts, samples)
    summary = speed_table(samples)
    print(f"medians of {config.rounds} rounds, in which baseline and optimised alternate\n")
    print(summary.to_string(index=False, na_rep="", float_format=format_number))
    written = "benchmark.json"
    if (summary["unit"] == "photos/s").any():
        plot_speeds(summary, config.output / "benchmark.png")
        written += " and benchmark.png"
    print(f"\nwrote {written} to {config.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
