"""train.py as users meet it: recipe, flags, run folder, resume, refusals, kill -9 at any moment."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import dataset_11k_split
import train
from data.tables import read_samples
from dataset_11k import AGE_GROUPS, TASKS, HandsDataset, Task, build_loader
from engine import checkpoint, loop, precision
from engine.checkpoint import TrainingRun, load_checkpoint, read_epochs
from engine.loop import build_predictor, predict_split
from measures.classes import balanced_accuracy
from model import IGAENet
from train import Resolved, TrainConfig, build_optimizer, learning_rate, set_learning_rate
from utils import UserError, seed_everything

# A tenth of a second per epoch; batches of 8 and 4 photos; batch norm, and with `drop_path`
# random numbers in the model too.
TINY = {
    "backbone": "test_resnet",
    "pretrained": False,
    "image_size": 32,
    "drop_path": 0.3,
    "amp": "off",
    "device": "cpu",
    "num_workers": 0,
    "batch_size": 8,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def as_flags(values: Mapping[str, Any]) -> list[str]:
    flags = []
    for name, value in values.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            given = value if isinstance(value, tuple) else [value]
            flags += [f"--{name}", *(str(v) for v in given)]
    return flags


def attributes(root: Path) -> Path:
    return root / "sub_dataset" / "dorsal_dr.csv"


def split_csv(root: Path, name: str) -> Path:
    return root / "trainval" / "dorsal_dr" / f"{name}.csv"


def run(root: Path, run_dir: Path, **values: Any) -> int:
    """Train a tiny model on dorsal right; return the exit code."""
    given = {"attributes_file": attributes(root), "run_dir": run_dir, **TINY, **values}
    return train.main(as_flags(given))


def resume(run_dir: Path, **values: Any) -> int:
    return train.main(as_flags({"resume": run_dir, **values}))


def without_seconds(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_epochs(run_dir)]


def checkpoints(run_dir: Path) -> set[str]:
    """Return the checkpoints of a run as `12` and `12-best`."""
    names = (path.stem.split("-", 1)[1] for path in run_dir.glob("checkpoint-*"))
    return {name.lstrip("0") for name in names}


def learnt(run_dir: Path, epoch: int) -> dict[str, Any]:
    """Return what a checkpoint holds of the learning, as the safe loader reads it."""
    state = torch.load(run_dir / f"checkpoint-{epoch:06d}.pth", weights_only=True)
    return {k: state[k] for k in ("model", "trained", "optimizer", "scaler", "epoch", "best")}


def assert_same_run(one: Path, other: Path, epoch: int) -> None:
    torch.testing.assert_close(learnt(one, epoch), learnt(other, epoch), rtol=0, atol=0)
    assert without_seconds(one) == without_seconds(other)
    assert checkpoints(one) == checkpoints(other)


def skip_training(
    monkeypatch: pytest.MonkeyPatch, scores: Callable[[int], float] = lambda n: 0.5
) -> None:
    """Let epochs cost nothing; the n-th that is evaluated scores `scores(n)`."""
    n_evaluated = 0
    names = ["loss", *(f"{kind}_{task}" for kind in ("loss", "accuracy") for task in TASKS)]

    def evaluate(*args: Any, **kwargs: Any) -> dict[str, float]:
        nonlocal n_evaluated
        n_evaluated += 1
        return {**dict.fromkeys(train.val_names(list(TASKS)), scores(n_evaluated)), "loss": 1.0}

    monkeypatch.setattr(train, "train_one_epoch", lambda *a, **k: dict.fromkeys(names, 0.5))
    monkeypatch.setattr(train, "predict_split", lambda *a, **k: None)
    monkeypatch.setattr(train, "val_scores", evaluate)
    monkeypatch.setattr(train, "fit_temperatures", lambda *a: {})


def interrupt_in(monkeypatch: pytest.MonkeyPatch, interrupted: int) -> None:
    """Let Ctrl-C come at the end of an epoch's training, before anything of it is written."""

    def train_one_epoch(*args: Any, epoch: int, **kwargs: Any) -> dict[str, float | None]:
        result = loop.train_one_epoch(*args, epoch=epoch, **kwargs)
        if epoch == interrupted:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(train, "train_one_epoch", train_one_epoch)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error message, once it is seen to be one line and no traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


# ----------------------------------------------------------------------------- the recipe


def test_defaults_are_the_published_recipe() -> None:
    config = TrainConfig()
    published: dict[str, Any] = {"protocol": "paper", "backbone": "swin_t", "pretrained": True}
    published |= {"attributes_file": (Path("11k/sub_dataset/dorsal_dr.csv"),), "image_size": 224}
    published |= {"flip": 0.5, "jitter": 0.3, "sampler": "shuffle", "optimizer": "adam", "lr": 8e-4}
    published |= {"backbone_lr_scale": 0.1, "weight_decay": 5e-4, "warmup": True}
    published |= {"batch_size": 20, "N_epochs": 50, "eval_every": 5, "label_smoothing": 0.1}
    assert {name: getattr(config, name) for name in published} == published
    assert [task.weight for task in TASKS.values()] == [1, 1, 1]
    assert checkpoint.KEEP_EVERY == 10


@pytest.mark.parametrize(
    ("n_epochs", "warmup", "expected"),
    [
        (50, True, {1: 0.109, 9: 0.901, 10: 1, 24: 1, 25: 0.5, 39: 0.5, 40: 0.25, 50: 0.25}),
        (20, True, {1: 0.109, 5: 0.505, 9: 0.901, 10: 1, 20: 1}),
        (5, True, {1: 0.505, 2: 1, 3: 1, 5: 1}),
        (1, True, {1: 1}),
        (50, False, {1: 1, 20: 1, 21: 0.1, 40: 0.1, 41: 0.01, 50: 0.01}),
    ],
)
def test_learning_rate(n_epochs: int, warmup: bool, expected: dict[int, float]) -> None:
    """Shares of the base rate, worked out by hand."""
    width = train.warmup_epochs(n_epochs)
    rates = {e: learning_rate(e, base=8e-4, warmup=warmup, warmup_epochs=width) for e in expected}
    assert rates == pytest.approx({epoch: 8e-4 * share for epoch, share in expected.items()})


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_optimisers(optimizer: str) -> None:
    network = IGAENet("test_vit", {"age": 6}, pretrained=False, image_size=32)
    built = build_optimizer(network, TrainConfig(optimizer=optimizer))
    set_learning_rate(built, 8e-4)
    assert [group["lr"] for group in built.param_groups] == pytest.approx([8e-5, 8e-4])
    expected: dict[str, Any] = {
        "adam": {"betas": (0.9, 0.999)},
        "sgd": {"momentum": 0.9, "nesterov": True},
    }
    for group in built.param_groups:
        assert group.items() >= {"weight_decay": 5e-4, **expected[optimizer]}.items()


# ----------------------------------------------------------------------------- flags


WRONG_VALUES = """ema 1, clip_grad 0, clip_grad nan, accumulate 0, accumulate 21, image_size 0,
image_size 5000, lr 0, lr nan, lr inf, batch_size 0, N_epochs 0, N_epochs 1.5, eval_every 0,
backbone_lr_scale -0.1, weight_decay inf, jitter 1.1, flip nan, label_smoothing 1, drop_path 1,
seed -1, seed 18446744073709551616, num_workers -1, loss_weights 0 0, loss_weights 1 -1,
loss_weights 1 nan, optimizer adamw, protocol none, amp fp8, device tpu, sampler none, augment all,
tasks identity mood, tasks age age, fold 0, warm_up, allow_partial_weights"""


@pytest.mark.parametrize("flag", WRONG_VALUES.replace("\n", " ").split(", "))
def test_wrong_values_are_refused_by_name_before_data_is_read(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["--attributes_file", str(tmp_path / "none.csv"), *f"--{flag}".split()])
    assert caught.value.code == 2
    assert f"--{flag.split()[0]}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_a_cache_all_broken_photos_are_named(
    split_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], num_workers: int
) -> None:
    names = read_samples(split_csv(split_root, "train"))["name"][[1, 6]]
    for name in names:
        (split_root / "Hands" / name).write_bytes(b"no photo")
    assert run(split_root, tmp_path / "run", cache=False, num_workers=num_workers) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert line.count("cannot decode photo ") == 2
    assert all(f"{split_root / 'Hands' / name}: " in line for name in names)
    assert (
        f"({attributes(split_root)} line " in line or f"({split_csv(split_root, 'train')}" in line
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--backbone_weights w.pth --no-pretrained", "--no-pretrained contradict"),
        ("--run_dir run --no-cache --cache_dir x", "--cache_dir has no effect with --no-cache"),
        ("--compile on", "unrecognized arguments: on"),
        ("--recipe frozen --neck 0", "--fit first needs --neck"),
        ("--recipe frozen --neck 5000", "--neck must be at most 4096"),
    ],
)
def test_flags_that_contradict_each_other(
    flags: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.main(flags.split())
    assert expected in capsys.readouterr().err


def test_help_shows_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in TrainConfig.__dataclass_fields__:
        assert f"--{name}" in text
    for default in ("0.0008", "0.0005", "50", "swin_t", "11k/sub_dataset/dorsal_dr.csv"):
        assert f"(default: {default})" in text


# ----------------------------------------------------------------------------- a run


RECORD = [
    *("epoch", "lr", "seconds", "train_loss"),
    *(f"train_{kind}_{task}" for kind in ("loss", "accuracy") for task in TASKS),
    "val_loss",
    *(f"val_balanced_accuracy_{task}" for task in TASKS),
    *("val_mean_balanced_accuracy", "val_rank_1"),
]


def test_a_run_writes_what_the_contract_says(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "deep" / "run"
    assert run(split_root, run_dir, N_epochs=7, backbone="test_vit", lr=0.002) == 0
    out = capsys.readouterr().out

    lines = read_epochs(run_dir)
    assert [line["epoch"] for line in lines] == list(range(1, 8))
    assert all(list(line) == RECORD for line in lines)
    for line in lines:
        assert line["val_rank_1"] is None
        evaluated = line["epoch"] in (5, 7)  # every fifth, and the last
        val = [name for name in RECORD[:-1] if name.startswith("val_")]
        assert all((line[name] is not None) == evaluated for name in val)
        assert all(math.isfinite(value) for value in line.values() if value is not None)
        total = sum(line[f"train_loss_{task}"] for task in TASKS)
        assert line["train_loss"] == pytest.approx(total, abs=1e-6)
        if evaluated:
            scores = [line[f"val_balanced_accuracy_{task}"] for task in TASKS]
            assert line["val_mean_balanced_accuracy"] == pytest.approx(sum(scores) / 3)

    best = max((5, 7), key=lambda e: (lines[e - 1]["val_mean_balanced_accuracy"], -e))
    names = {path.name for path in run_dir.iterdir()}
    pair = {"checkpoint-000007.pth", f"checkpoint-{best:06d}-best.pth"}
    assert names - {".lock"} == pair | {"config.json", "metrics.jsonl", "train.log", "tensorboard"}
    assert list((run_dir / "tensorboard").glob("events.out.tfevents.*"))
    log = (run_dir / "train.log").read_text(encoding="utf-8")
    assert len(re.findall(r"epoch \d/7, .*train loss", log)) == 7

    assert out.startswith(f"best epoch {best} on val: balanced accuracy identity ")
    assert f"--checkpoint {run_dir}/checkpoint-{best:06d}-best.pth\n" in out
    assert out.endswith(f"draw the curves: python report.py --run_dir {run_dir}\n")
    assert "protocol paper: 6 of 6 val people are in train" in out

    stored = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    assert stored["config"]["lr"] == 0.002
    assert stored["resolved"]["warmup_epochs"] == 3
    assert stored["aspect"] == "dorsal_dr"
    people = sorted(set(read_samples(attributes(split_root))["id"]))
    assert stored["label_space"]["identity"] == people


FITTED = {"fit": "first_last", "multi_level": True, "neck": 8}


@pytest.mark.parametrize(
    "values",
    [
        {"N_epochs": 3, "eval_every": 1, "lr": 0.002},
        {"recipe": "frozen", "neck": 8},
        {"recipe": "frozen", "backbone": "test_vit"},
    ],
)
def test_a_checkpoint_alone_gives_the_score_it_names(
    values: dict[str, Any], split_root: Path, tmp_path: Path
) -> None:
    assert run(split_root, tmp_path / "run", **values) == 0
    (path,) = (tmp_path / "run").glob("*-best.pth")
    stored = torch.load(path, weights_only=True)
    assert stored["metrics"] == read_epochs(tmp_path / "run")[stored["epoch"] - 1]

    predictor = loop.build_predictor(load_checkpoint(path), device="cpu", amp=None, batch_size=8)
    dataset = HandsDataset(
        read_samples(split_csv(split_root, "val")),
        split_root / "Hands",
        predictor.label_space,
        reader=predictor.reader,
    )
    loader = build_loader(dataset, batch_size=5, num_workers=0, train=False)
    predictions = predict_split(
        predictor.model, loader, preprocessing=predictor.preprocessing, amp=predictor.amp
    )
    for task, labels in predictions.labels.items():
        score = balanced_accuracy(labels, predictions.logits[task].argmax(axis=1))
        assert score == pytest.approx(stored["metrics"][f"val_balanced_accuracy_{task}"], abs=1e-9)


def test_the_frozen_recipe_fits_neck_and_heads(split_root: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), start)
    values = {"recipe": "frozen", "backbone_weights": start, "pretrained": True, "neck": 8}
    assert run(split_root, tmp_path / "run", **values) == 0
    stored = load_checkpoint(tmp_path / "run" / "checkpoint-000001-best.pth")
    for name, tensor in torch.load(start, weights_only=True).items():
        assert torch.equal(stored["model"][f"backbone.{name}"], tensor)
    assert stored["metrics"]["train_accuracy_identity"] == 1
    files = sorted((split_root / "cache").iterdir())
    assert len(files) == 1  # of features: no decoded photos are kept for a training without steps
    # a second run reads them
    before = files[0].read_bytes()
    files[0].chmod(0o444)
    assert run(split_root, tmp_path / "again", **values, fit="first_last") == 0
    assert files[0].read_bytes() == before
    files[0].write_bytes(before[:400] + b"\xff" * (len(before) - 400))
    assert run(split_root, tmp_path / "damaged", **values) == 0
    for folder in ("again", "damaged"):
        again = load_checkpoint(tmp_path / folder / "checkpoint-000001-best.pth")
        for name, tensor in stored["model"].items():
            assert torch.equal(again["model"][name], tensor)


def test_which_checkpoints_stay_while_it_runs(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated at 5, 10, 15, 20, 22; the scores tie at 5 and 10, the best is 15."""
    skip_training(monkeypatch, lambda n: [0.3, 0.3, 0.6, 0.6, 0.1][n - 1])
    seen, save = [], TrainingRun.save

    def watched(self: TrainingRun, *args: Any) -> None:
        save(self, *args)
        seen.append(checkpoints(self.folder))

    monkeypatch.setattr(TrainingRun, "save", watched)
    assert run(split_root, tmp_path / "run", N_epochs=22) == 0
    best = {**dict.fromkeys(range(5, 15), {"5-best"}), **dict.fromkeys(range(15, 23), {"15-best"})}
    for epoch in range(1, 23):
        kept = {str(number) for number in (10, 20) if number <= epoch}
        assert seen[epoch - 1] == {str(epoch)} | kept | best.get(epoch, set()), epoch
    state = torch.load(tmp_path / "run" / "checkpoint-000015-best.pth", weights_only=True)
    assert state["best"] == {"epoch": 15, "score": 0.6}


def test_patience(
    split_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Evaluated at 2, 4, 6, 8; the best is 4, so that 8 is the second without a better one."""
    skip_training(monkeypatch, lambda n: [0.3, 0.6, 0.6, 0.5][n - 1])
    flags: dict[str, Any] = {"N_epochs": 20, "eval_every": 2, "patience": 2}
    assert run(split_root, tmp_path / "run", **flags) == 0
    assert checkpoints(tmp_path / "run") == {"8", "4-best"}
    assert "stopped: 2 evaluations without a better score" in capsys.readouterr().err
    assert resume(tmp_path / "run") == 0
    assert "is finished: 8 epochs. Give a larger --patience" in capsys.readouterr().out
    skip_training(monkeypatch, lambda n: 0.4)
    assert resume(tmp_path / "run", patience=3) == 0
    assert checkpoints(tmp_path / "run") == {"10", "4-best"}


def test_a_score_of_zero_and_a_file_system_without_hard_links(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*args: Any, **kwargs: Any) -> None:
        raise OSError("Operation not supported")

    monkeypatch.setattr(os, "link", no_link)
    skip_training(monkeypatch, lambda n: 0.0)
    assert run(split_root, tmp_path / "run", N_epochs=3, eval_every=1) == 0
    assert checkpoints(tmp_path / "run") == {"3", "1-best"}
    assert load_checkpoint(tmp_path / "run" / "checkpoint-000001-best.pth")["epoch"] == 1


def test_the_same_seed_gives_the_same_run_and_another_does_not(
    split_root: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(split_root, tmp_path / name, N_epochs=2, seed=seed) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b", 2)
    assert without_seconds(tmp_path / "a") != without_seconds(tmp_path / "c")


def test_the_cache_changes_nothing(split_root: Path, tmp_path: Path) -> None:
    assert run(split_root, tmp_path / "none", N_epochs=2, cache=False) == 0
    assert not (split_root / "cache").exists()
    scratch = tmp_path / "scratch"
    assert run(split_root, tmp_path / "cache", N_epochs=2, cache_dir=scratch, num_workers=2) == 0
    assert list(scratch.iterdir())
    assert_same_run(tmp_path / "none", tmp_path / "cache", 2)


# ----------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("tasks", [("identity",), ("gender", "age"), ("age", "identity")])
def test_a_subset_of_the_tasks(
    tasks: tuple[str, ...], split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"tasks": tasks, "N_epochs": 2}
    values["loss_weights"] = (0.5, 2.0)[: len(tasks)]
    assert run(split_root, tmp_path / "whole", **values) == 0
    state = load_checkpoint(tmp_path / "whole" / "checkpoint-000002.pth")
    assert set(state["label_space"]) == set(tasks)
    assert {name.split(".")[1] for name in state["model"] if "heads" in name} == set(tasks)
    (_, record) = read_epochs(tmp_path / "whole")
    weighted = zip((0.5, 2.0), tasks, strict=False)  # in the order of --tasks
    total = sum(weight * record[f"train_loss_{task}"] for weight, task in weighted)
    assert record["train_loss"] == pytest.approx(total)
    assert not [name for name in record if any(t in name for t in TASKS.keys() - set(tasks))]
    assert bool(state["training"]["class_of_person"]) == ("identity" in tasks and len(tasks) > 1)
    assert bool(state["training"]["mean_ages"]) == ("age" in tasks)
    with monkeypatch.context() as patch:
        interrupt_in(patch, 2)
        assert run(split_root, tmp_path / "cut", **values) == 130
    assert resume(tmp_path / "cut") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut", 2)


def test_a_weight_per_task(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(split_root, tmp_path / "run", loss_weights=(1, 2)) == 1
    assert "--loss_weights has 2 values for 3 tasks (identity, gender, age)." in error_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [{}, {"tasks": ("age", "identity", "gender")}])
def test_a_task_of_weight_0_is_left_out(
    flags: dict[str, Any], split_root: Path, tmp_path: Path
) -> None:
    """It selects no epoch, and is neither evaluated nor reported."""
    weights = (0, 2, 1) if not flags else (1, 0, 2)
    assert run(split_root, tmp_path / "run", N_epochs=1, loss_weights=weights, **flags) == 0
    state = load_checkpoint(tmp_path / "run" / "checkpoint-000001.pth")
    assert state["label_space"].keys() == {"gender", "age"}
    assert state["resolved"]["loss_weights"] == [2, 1]
    scores = [state["metrics"][f"val_balanced_accuracy_{task}"] for task in ("gender", "age")]
    assert state["best"]["score"] == pytest.approx(np.mean(scores))
    assert resume(tmp_path / "run", N_epochs=2) == 0


def test_a_left_over_photo_joins_the_batch_before(split_root: Path, tmp_path: Path) -> None:
    """Batch norm over a 1x1 map cannot train on one photo: 12 photos in batches of 11."""
    flags: dict[str, Any] = {"backbone": "resnet10t", "N_epochs": 1}
    assert run(split_root, tmp_path / "run", batch_size=11, **flags) == 0
    assert run(split_root, tmp_path / "parts", batch_size=12, accumulate=11, **flags) == 0


def test_a_batch_of_one_is_refused_with_batch_norm(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(split_root, tmp_path / "run", batch_size=1) == 1
    assert "needs at least 2 photos per rank: --batch_size 1." in error_line(capsys)
    assert not (tmp_path / "run").exists()
    flags: dict[str, Any] = {"backbone": "test_vit", "batch_size": 1, "N_epochs": 1}
    assert run(split_root, tmp_path / "vit", **flags) == 0


def test_a_frozen_backbone_does_not_change(split_root: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"backbone": "test_resnet", "backbone_lr_scale": 0}
    assert run(split_root, tmp_path / "run", N_epochs=2, **flags) == 0
    states = [
        load_checkpoint(tmp_path / "run" / name)["model"]
        for name in ("checkpoint-000002.pth", "checkpoint-000002-best.pth")
        if (tmp_path / "run" / name).exists()
    ]
    seed_everything(42, 0)
    fresh = IGAENet(
        "test_resnet", {"identity": 6, "gender": 2, "age": 6}, pretrained=False, image_size=32
    ).state_dict()
    for state in states:
        for name, tensor in fresh.items():
            assert torch.equal(state[name], tensor) == name.startswith("backbone.")


def test_training_starts_from_a_checkpoint_of_other_people(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(split_root, tmp_path / "first", N_epochs=1, tasks=("gender",)) == 0
    weights = tmp_path / "first" / "checkpoint-000001.pth"
    start: dict[str, Any] = {"backbone_weights": weights, "pretrained": True, "N_epochs": 1}
    capsys.readouterr()
    assert run(split_root, tmp_path / "second", **start) == 0
    assert f"the backbone of {weights}, without its heads" in capsys.readouterr().err
    assert run(split_root, tmp_path / "third", **start, backbone="resnet10t") == 1
    assert "is a checkpoint of backbone test_resnet. Give" in error_line(capsys)


def edit_csv(path: Path, change: Callable[[list[str], int], None]) -> None:
    """Change the cells of every line of a CSV, by its number (0: the header)."""
    lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    for number, cells in enumerate(lines):
        change(cells, number)
    path.write_text("".join(",".join(cells) + "\n" for cells in lines), encoding="utf-8")


def csv_files(root: Path) -> list[Path]:
    return [attributes(root), split_csv(root, "train"), split_csv(root, "val")]


def test_unknown_labels_are_left_out(split_root: Path, tmp_path: Path) -> None:
    def forget(cells: list[str], number: int) -> None:
        if number % 3:
            cells[3] = ""  # the age of two photos in three

    for path in csv_files(split_root):
        edit_csv(path, forget)
    assert run(split_root, tmp_path / "run", N_epochs=3, batch_size=2) == 0  # some batches: none
    record = read_epochs(tmp_path / "run")[-1]
    assert record["val_balanced_accuracy_age"] is not None
    assert all(math.isfinite(v) for v in record.values() if v is not None)
    counts = load_checkpoint(tmp_path / "run" / "checkpoint-000003.pth")["training"]["counts"]
    assert sum(counts["age"]) < sum(counts["gender"]) == sum(counts["identity"])


def test_a_fourth_task_is_one_row(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_hand(cells: list[str], number: int) -> None:
        cells.insert(4, "hand" if number == 0 else ["left", "right"][int(cells[1]) % 2])

    for path in csv_files(split_root):
        edit_csv(path, add_hand)
    row = Task("hand", "preferred hand", ("left", "right"), weight=0.5)
    monkeypatch.setitem(TASKS, "handedness", row)
    assert run(split_root, tmp_path / "run", N_epochs=1) == 0
    (record,) = read_epochs(tmp_path / "run")
    losses = {task: record[f"train_loss_{task}"] for task in TASKS}
    assert list(losses) == ["identity", "gender", "age", "handedness"]
    assert record["train_loss"] == pytest.approx(sum(losses.values()) - losses["handedness"] / 2)
    scores = [record[f"val_balanced_accuracy_{task}"] for task in TASKS]
    state = load_checkpoint(tmp_path / "run" / "checkpoint-000001.pth")
    assert state["best"]["score"] == pytest.approx(sum(scores) / 4)
    assert resume(tmp_path / "run", N_epochs=2) == 0


# ----------------------------------------------------------------------------- the run's folder


def test_runs_of_one_second_get_folders_of_their_own(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        @staticmethod
        def now() -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(checkpoint, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    names = [checkpoint.create_run_dir(None).name for _ in range(2)]
    assert names == ["2026-01-02_03-04-05", "2026-01-02_03-04-05-2"]


def test_a_folder_in_use_or_that_cannot_be_created(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "notes.txt").write_text("mine")
    assert run(split_root, run_dir, N_epochs=1) == 1
    assert f"--run_dir is in use: {run_dir}" in error_line(capsys)
    assert run(split_root, run_dir / "notes.txt" / "run", N_epochs=1) == 1
    assert "--run_dir" in error_line(capsys)
    (run_dir / "notes.txt").unlink()
    assert run(split_root, run_dir, N_epochs=1) == 0


# ----------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("interrupted", "values"),
    [
        (1, {"optimizer": "sgd"}),
        (3, {"num_workers": 2}),
        (2, {"ema": 0.5}),
        (2, {"augment": "batch", "clip_grad": 0.1, "num_workers": 2}),
        (2, {"accumulate": 3}),
        (2, {"grad_checkpointing": True, "backbone": "test_vit"}),
        (2, FITTED),
        (3, {**FITTED, "ema": 0.5}),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    interrupted: int,
    values: dict[str, Any],
    split_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"N_epochs": 4, "eval_every": 2, **values}
    assert run(split_root, tmp_path / "whole", **{**values, "num_workers": 0}) == 0
    with monkeypatch.context() as patch:
        interrupt_in(patch, interrupted)
        assert run(split_root, tmp_path / "cut", **values) == 130
    log = (tmp_path / "cut" / "train.log").read_text(encoding="utf-8")
    assert f"python train.py --resume {tmp_path / 'cut'}" in log
    assert len(read_epochs(tmp_path / "cut")) == interrupted - 1
    assert "no checkpoint in" not in log
    assert resume(tmp_path / "cut") == 0
    log = (tmp_path / "cut" / "train.log").read_text(encoding="utf-8")
    assert ("no checkpoint in" in log) == (interrupted == 1)
    assert_same_run(tmp_path / "whole", tmp_path / "cut", 4)


def test_a_longer_run_continues(split_root: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert run(split_root, run_dir, N_epochs=3, eval_every=2) == 0
    before = without_seconds(run_dir)
    assert resume(run_dir, N_epochs=11) == 0
    after = without_seconds(run_dir)
    assert after[:3] == before
    assert [line["lr"] for line in after] == pytest.approx([8e-4] * 11)  # warmed up long ago
    best = max(
        (line for line in after if line["val_loss"] is not None),
        key=lambda line: (line["val_mean_balanced_accuracy"], -line["epoch"]),
    )["epoch"]
    assert checkpoints(run_dir) == {"10", "11", f"{best}-best"}
    assert json.loads((run_dir / "config.json").read_text())["config"]["N_epochs"] == 11


@pytest.fixture
def finished(split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of three epochs whose training cost nothing; `--N_epochs 4` continues it."""
    skip_training(monkeypatch)
    assert run(split_root, tmp_path / "run", N_epochs=3, eval_every=1) == 0
    return tmp_path / "run"


def test_a_finished_run_says_so(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (checkpoints(finished), read_epochs(finished))
    capsys.readouterr()
    assert resume(finished) == 0
    assert f"{finished} is finished: 3 epochs. Give a larger --N_epochs" in capsys.readouterr().out
    assert (checkpoints(finished), read_epochs(finished)) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 1e-3), ("batch_size", 4), ("backbone", "test_vit"), ("warmup", False), ("seed", 43)]
    + [("drop_path", 0.1), ("loss_weights", (1, 1, 2)), ("tasks", ("age",))],
)
def test_settings_that_may_not_change(
    name: str, value: Any, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert resume(finished, N_epochs=4, **{name: value}) == 1
    assert re.match(rf"error: --{name} .* differs from .*{finished}", error_line(capsys))
    assert len(read_epochs(finished)) == 3


def test_settings_that_may_be_repeated_or_change(finished: Path, split_root: Path) -> None:
    moved = split_root.rename(split_root.with_name("moved"))
    assert resume(finished) == 0  # it is finished, wherever the data may be
    repeated = {**TINY, "lr": 8e-4, "warmup": True, "num_workers": 1}
    assert resume(finished, attributes_file=attributes(moved), N_epochs=4, **repeated) == 0
    assert len(read_epochs(finished)) == 4


@pytest.mark.parametrize("content", [None, "{", "[]", '{"architecture": "swin"}', "\xff"])
def test_a_folder_that_is_no_run(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
    assert resume(tmp_path) == 1
    error = error_line(capsys)
    assert "cannot read config.json (" in error
    assert f": {tmp_path}. Give a folder that train.py made" in error


def test_what_a_kill_leaves_behind_is_repaired(finished: Path) -> None:
    """Lines after the checkpoint, half a line, temporary files, a second best, a stale epoch."""
    shutil.copyfile(finished / "checkpoint-000003.pth", finished / "checkpoint-000002.pth")
    shutil.copyfile(finished / "checkpoint-000003.pth", finished / "checkpoint-000003-best.pth")
    (finished / ".checkpoint-000004.123.tmp.pth").write_bytes(b"half")
    before = (finished / "metrics.jsonl").read_text()
    later = json.dumps({**read_epochs(finished)[-1], "epoch": 4})
    (finished / "metrics.jsonl").write_text(before + later + '\n{"epoch": 5, "lr"')
    assert resume(finished) == 0
    assert (finished / "metrics.jsonl").read_text() == before
    assert checkpoints(finished) == {"3", "1-best"}
    assert not list(finished.glob(".*.tmp*"))


@pytest.mark.parametrize("name", ["train", "val", "attributes"])
def test_changed_samples_are_refused(
    name: str, finished: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = attributes(split_root) if name == "attributes" else split_csv(split_root, name)
    lines = path.read_text().splitlines(keepends=True)
    if name == "attributes":
        photo = split_root / "Hands" / "more.jpg"
        shutil.copyfile(next((split_root / "Hands").iterdir()), photo)
        path.write_text("".join([*lines, "more.jpg,new person,male,30\n"]))
    else:
        path.write_text("".join(lines[:-1]))
    capsys.readouterr()
    assert resume(finished, N_epochs=4) == 1
    assert f"the samples of {'the attributes file' if name == 'attributes' else name} have changed"
    assert "have changed since the run was started" in error_line(capsys)
    assert len(read_epochs(finished)) == 3


def test_another_machine_is_announced(finished: Path) -> None:
    stored = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    stored["environment"]["torch"] = "1.0"
    (finished / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    assert resume(finished, N_epochs=4) == 0
    log = (finished / "train.log").read_text(encoding="utf-8")
    assert "WARNING the environment has changed since the run was started (torch 1.0 -> " in log


def test_a_damaged_last_or_best_checkpoint(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last, best = (finished / f"checkpoint-{name}.pth" for name in ("000003", "000001-best"))
    whole = best.read_bytes()
    for path, advice in (
        (best, "Move it away; then --resume continues without it"),
        (last, f"Move {last.name} away; then --resume resumes from {best.name}"),
    ):
        path.write_bytes(path.read_bytes()[:-2000])
        assert resume(finished, N_epochs=4) == 1
        error = error_line(capsys)
        assert str(path) in error
        assert error.endswith(advice)
        best.write_bytes(whole)
    last.unlink()
    assert resume(finished, N_epochs=4) == 0
    assert [record["epoch"] for record in read_epochs(finished)] == [1, 2, 3, 4]


def test_a_checkpoint_alone_is_enough_to_resume(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone" / "checkpoint-000003.pth"
    alone.parent.mkdir()
    shutil.copyfile(finished / alone.name, alone)
    assert resume(alone, N_epochs=4) == 0
    assert "best epoch 1, whose checkpoint is missing from" in capsys.readouterr().out
    assert resume(alone.parent, N_epochs=5) == 0  # by now it is a run's folder
    assert [record["epoch"] for record in read_epochs(alone.parent)] == [4, 5]


def test_an_earlier_checkpoint_is_not_resumed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, last = finished / "checkpoint-000001-best.pth", finished / "checkpoint-000003.pth"
    assert resume(best, N_epochs=4) == 1
    assert f"not the run's last checkpoint: --resume {best}. Give {last}" in capsys.readouterr().err
    assert resume(last, N_epochs=4) == 0


# ----------------------------------------------------------------------------- protocols


def draw(root: Path, protocol: str) -> Path:
    """Draw the protocol's split (3 folds, if it has folds); return dorsal right's folder."""
    folds = ["--folds", "3"] if protocol == "subject-disjoint" else []
    assert dataset_11k_split.main(["--input", str(root), "--protocol", protocol, *folds]) == 0
    return root / "trainval" / protocol / "dorsal_dr"


def test_a_protocol_with_a_test_split(
    make_hands_root: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_hands_root(n_frames=20)
    drawn = draw(root, "stratified") / "fold_0"
    assert run(root, tmp_path / "run", N_epochs=1, protocol="stratified") == 0
    assert "epoch selected on val, not on test" in capsys.readouterr().out
    state = load_checkpoint(tmp_path / "run" / "checkpoint-000001.pth")
    people = set(read_samples(drawn / "train.csv")["id"])
    assert state["label_space"]["identity"] == sorted(people)
    assert state["fingerprints"].keys() == {"train", "val", "test"}
    assert state["temperature"].keys() == set(TASKS)


def test_unseen_people_select_the_epoch_by_rank_1(
    hands_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = draw(hands_root, "subject-disjoint") / "fold_1"
    given = {"protocol": "subject-disjoint", "fold": 1, "N_epochs": 2, "eval_every": 2}
    assert run(hands_root, tmp_path / "run", **given) == 0
    assert "rank-1" in capsys.readouterr().out
    first, record = read_epochs(tmp_path / "run")
    assert first["val_rank_1"] is None
    assert record["val_balanced_accuracy_identity"] is None
    parts = [record[f"val_balanced_accuracy_{task}"] for task in ("gender", "age")]
    assert record["val_mean_balanced_accuracy"] == pytest.approx(sum(parts) / 2)

    state = load_checkpoint(tmp_path / "run" / "checkpoint-000002.pth")
    assert state["best"]["score"] == pytest.approx((sum(parts) + record["val_rank_1"]) / 3)
    assert state["temperature"].keys() == {"gender", "age"}
    trained = read_samples(drawn / "train.csv")
    assert state["label_space"]["identity"] == sorted(set(trained["id"]))
    assert sum(state["training"]["counts"]["gender"]) == len(trained)
    groups = zip(AGE_GROUPS.values(), state["training"]["mean_ages"], strict=True)
    for (low, high), mean in groups:
        ages = trained["age"][trained["age"].between(low, high)]
        assert mean == (pytest.approx(ages.mean()) if len(ages) else None)
    of_person = dict(
        zip(
            state["label_space"]["identity"],
            state["training"]["class_of_person"]["gender"],
            strict=True,
        )
    )
    for person, gender in zip(trained["id"], trained["gender"], strict=True):
        assert state["label_space"]["gender"][of_person[person]] == gender


def test_val_scores_of_unseen_people_by_hand() -> None:
    """Identity is unknown: it is part of neither loss nor mean. Persons b and c look the same."""
    embeddings = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.2], [0, 1], [0.1, 1.0]], np.float32)
    labels = {
        "identity": np.full(6, -1),
        "gender": np.array([0, 0, 1, 1, 1, 1]),
        "age": np.array([0, 0, 1, 1, 1, 1]),
    }
    logits = {
        "identity": np.zeros((6, 3), np.float32),
        "gender": np.array([[2, 0], [0, 2]] * 3, np.float32),
        "age": np.eye(6, dtype=np.float32)[[0, 0, 1, 1, 1, 1]],
    }
    config = TrainConfig(protocol="subject-disjoint", label_smoothing=0.0)
    resolved = Resolved("off", False, 0.0, 1, (1.0, 1.0, 1.0), (), (), 0)
    predictions = loop.Predictions(labels, embeddings, logits)
    scores = train.val_scores(predictions, np.array(list("aabbcc")), config, resolved)
    # queries: a finds a; b's second photo finds a; c's finds b or c at a tie, which counts against
    assert scores["rank_1"] == pytest.approx(1 / 3)
    wrong, right = math.log(1 + math.exp(2)), math.log(1 + math.exp(-2))
    age = math.log(5 + math.e) - 1
    assert scores["loss"] == pytest.approx((wrong + right) / 2 + age, abs=1e-5)
    assert scores["balanced_accuracy_identity"] is None
    assert scores["mean_balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)

    def select(*weights: float) -> float:
        chosen = Resolved("off", False, 0.0, 1, weights, (), (), 0)
        return train.selection_score(scores, list(TASKS), chosen)

    assert select(1, 1, 1) == pytest.approx((0.5 + 1 + 1 / 3) / 3)
    assert select(1, 0, 0) == pytest.approx(1 / 3)
    assert select(0, 0.1, 0) == pytest.approx(0.5)


# ----------------------------------------------------------------------------- refusals


def remove_val(root: Path) -> None:
    split_csv(root, "val").unlink()


def remove_photo(root: Path) -> None:
    (root / "Hands" / read_samples(split_csv(root, "val"))["name"][0]).unlink()


def unchanged(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "values", "expected"),
    [
        (remove_val, {}, r"val\.csv"),
        (remove_photo, {}, r"1 of 12 photos.*Hand_\d+\.jpg"),
        (unchanged, {"backbone": "resnet5O"}, "'resnet5O'. Did you mean resnet50"),
        (unchanged, {"backbone": "test_vit", "image_size": 15}, "--image_size 15.* Use 32"),
        (unchanged, {"amp": "fp16"}, "--amp fp16 needs CUDA"),
        (unchanged, {"sync_bn": True}, "--sync_bn needs CUDA"),
        (unchanged, {"backbone": "densenet121", "drop_path": 0.1}, "no stochastic depth"),
        (unchanged, {"pretrained": True, "backbone_weights": "no.pth"}, "not found: no.pth"),
        (unchanged, {"protocol": "subject-disjoint"}, "--protocol subject-disjoint"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(
    damage: Callable[[Path], None],
    values: dict[str, Any],
    expected: str,
    split_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(split_root)
    assert run(split_root, tmp_path / "run", **values) == 1
    assert re.search(expected, error_line(capsys))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"cache": False},
        {"cache": False, "num_workers": 2},
        {"cache": True},
        {"recipe": "frozen", "neck": 8, "cache": True},
    ],
)
def test_corrupt_photos_stop_the_run_and_all_are_named(
    values: dict[str, Any], split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, places = {}, []
    for split, row in (("train", 4), ("train", 7), ("val", 0)):
        path = split_csv(split_root, split)
        photo = split_root / "Hands" / read_samples(path)["name"][row]
        whole[photo] = photo.read_bytes()
        photo.write_bytes(whole[photo][: len(whole[photo]) // 2])
        places.append(f"({path} line {row + 2})")
    run_dir = tmp_path / "run"
    assert run(split_root, run_dir, N_epochs=1, **values) == 1
    line = error_line(capsys)
    assert all(str(photo) in line for photo in whole)
    assert all(place in line for place in places)
    assert not checkpoints(run_dir)
    assert read_epochs(run_dir) == []
    for photo, content in whole.items():
        photo.write_bytes(content)
    assert resume(run_dir) == 0


def test_a_task_of_one_class_is_left_out(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its score could not be wrong."""

    def only_women(cells: list[str], number: int) -> None:
        cells[2] = "female" if number else "gender"

    for path in csv_files(split_root):
        edit_csv(path, only_women)
    assert run(split_root, tmp_path / "run", N_epochs=1) == 0
    printed = capsys.readouterr()
    assert "train.csv has labels of one class of gender: the task is left out" in printed.err
    assert "gender" not in printed.out
    assert resume(tmp_path / "run", N_epochs=2) == 0


def test_a_loss_that_is_not_finite_stops_the_run(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(split_root, tmp_path / "run", N_epochs=3, lr=1e30, optimizer="sgd") == 1
    line = error_line(capsys)
    assert re.search(r"not finite \(identity .*epoch \d, step \d, learning rate 1e\+30", line)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    split_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    skip_training(monkeypatch)
    save = torch.save

    def full(state: dict[str, Any], path: Path) -> None:
        if state["epoch"] == 3:
            Path(path).write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file")
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert run(split_root, tmp_path / "run", N_epochs=4, eval_every=1) == 1
    assert "checkpoint-000003.pth; is the disk full?" in error_line(capsys)
    assert checkpoints(tmp_path / "run") == {"2", "1-best"}
    assert not list((tmp_path / "run").glob(".*.tmp*"))
    assert resume(tmp_path / "run") == 0
    assert [line["epoch"] for line in read_epochs(tmp_path / "run")] == [1, 2, 3, 4]


# ----------------------------------------------------------------------------- precision


def test_amp_auto_is_float32_on_a_cpu_and_times_nothing(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_native_bf16", lambda: True)
    forward, n_forward = IGAENet.forward, []

    def counted(self: IGAENet, images: torch.Tensor) -> Any:
        n_forward.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(IGAENet, "forward", counted)
    assert run(split_root, tmp_path / "run", N_epochs=1, amp="auto", backbone="test_vit") == 0
    assert n_forward == [8, 4, 8, 4]  # 12 photos trained, 12 evaluated
    state = load_checkpoint(tmp_path / "run" / "checkpoint-000001.pth")
    assert state["resolved"]["amp"] == "off"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "off")])
def test_bf16_of_the_training_is_kept_where_it_is_native(
    native: bool, expected: str, split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_native_bf16", lambda: True)
    assert run(split_root, tmp_path / "run", N_epochs=1, amp="bf16", backbone="test_vit") == 0
    monkeypatch.setattr(precision, "has_native_bf16", lambda: native)
    state = load_checkpoint(tmp_path / "run" / "checkpoint-000001.pth")
    assert build_predictor(state, device="cpu", amp=None, batch_size=None).amp == expected


def test_a_stored_precision_that_the_machine_lacks_is_resolved_again(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a run that --amp auto trained in fp16 on an old GPU: resume and evaluate on a CPU."""
    assert run(split_root, tmp_path / "run", N_epochs=1, backbone="test_vit") == 0
    path = tmp_path / "run" / "checkpoint-000001.pth"
    state = torch.load(path, weights_only=True)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for stored in (state, config):
        stored["resolved"]["amp"], stored["config"]["amp"] = "fp16", "auto"
        stored["config"]["device"] = "cuda"
    torch.save(state, path)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    warning = "the precision of the training, fp16, is not native to this cpu: --amp "
    build_predictor(state, device="cpu", amp=None, batch_size=None)
    with pytest.raises(UserError, match="--amp fp16 needs CUDA"):
        build_predictor(state, device="cpu", amp="fp16", batch_size=None)
    capsys.readouterr()
    assert resume(tmp_path / "run", N_epochs=2, device="cpu") == 0
    assert warning in capsys.readouterr().err
    assert resume(tmp_path / "run", N_epochs=3, device="cpu", amp="off") == 0


def test_forced_bf16_without_native_support_warns_once(
    split_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(precision, "has_native_bf16", lambda: False)
    assert run(split_root, tmp_path / "run", N_epochs=1, amp="bf16", backbone="test_vit") == 0
    assert capsys.readouterr().err.count("WARNING --amp bf16: this CPU emulates bfloat16") == 1


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(split_root: Path, tmp_path: Path) -> None:
    """Within float tolerance; the short last batch runs uncompiled."""
    values = {"backbone": "test_vit", "drop_path": 0, "N_epochs": 3, "eval_every": 1}
    try:
        assert run(split_root, tmp_path / "compiled", compile=True, **values) == 0
        assert resume(tmp_path / "compiled", N_epochs=4) == 0
    finally:
        torch.compiler.set_stance("default")
    assert run(split_root, tmp_path / "eager", **values) == 0
    assert resume(tmp_path / "eager", N_epochs=4) == 0
    runs = (without_seconds(tmp_path / name) for name in ("compiled", "eager"))
    for compiled, eager in zip(*runs, strict=True):
        assert compiled == pytest.approx(eager, abs=1e-4)


# ----------------------------------------------------------------------------- kill -9


class Process:
    """train.py in a process of its own, and its output so far."""

    def __init__(self, flags: Sequence[str], log: Path) -> None:
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("w") as file:
            command = [sys.executable, train.__file__, *flags]
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)

    def wait_for(self, event: Callable[[], bool]) -> None:
        """Wait until `event` has happened, or the process has ended."""
        deadline = time.monotonic() + 400  # a busy machine
        while not event() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def finish(self) -> None:
        assert self.process.wait(timeout=300) == 0, self.log.read_text()

    def kill_after(self, seconds: float) -> bool:
        """Kill it; return False if it had ended before."""
        end = time.monotonic() + seconds
        self.wait_for(lambda: time.monotonic() > end)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            return True
        self.finish()
        return False


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_resumed_equals_uninterrupted(
    n_kills: int, split_root: Path, tmp_path: Path
) -> None:
    n_epochs = 12
    values = {**TINY, "attributes_file": attributes(split_root), "N_epochs": n_epochs}
    values["eval_every"] = 3

    def start(run_dir: Path) -> Process:
        """Start or resume a run, and return it as soon as it can be killed."""
        fresh = not run_dir.exists()
        flags = as_flags({**values, "run_dir": run_dir} if fresh else {"resume": run_dir})
        process = Process(flags, tmp_path / "output.txt")
        moment = "world size 1" if fresh else "without a train photo"  # the folder is next
        process.wait_for(lambda: moment in process.log.read_text())
        return process

    def n_lines(run_dir: Path) -> int:
        path = run_dir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    whole, generator = tmp_path / "whole", random.Random(n_kills)
    process, began = start(whole), time.monotonic()
    process.finish()
    seconds_per_epoch = (time.monotonic() - began) / n_epochs

    n_done, n_runs = 0, 0
    while n_done < n_kills:
        n_runs += 1
        run_dir, killed = tmp_path / f"killed-{n_runs}", True
        while killed and n_done < n_kills:
            process = start(run_dir)
            n_finished = max((int(n) for n in checkpoints(run_dir) if n.isdigit()), default=0)
            moment = generator.uniform(n_finished, n_epochs)  # in epochs
            process.wait_for(lambda: n_lines(run_dir) >= int(moment))  # noqa: B023
            killed = process.kill_after(moment % 1 * seconds_per_epoch)
            n_done += killed
            json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
            for path in run_dir.glob("checkpoint-*.pth"):
                load_checkpoint(path)
        if killed:
            start(run_dir).finish()
        assert_same_run(whole, run_dir, n_epochs)
        assert not list(run_dir.glob(".*.tmp*"))
