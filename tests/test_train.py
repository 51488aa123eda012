"""Training: schedule, flags, run folder, resume, errors, and kill -9 at any moment."""

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
import torch

import dataset_11k_split
import test as test_script
import train
from data.tables import read_rows
from dataset_11k import AGE_GROUPS, GENDERS, TASKS, HandsDataset, build_loader
from engine import checkpoint, loop
from engine.checkpoint import load_checkpoint, what_if_damaged
from engine.distributed import Ranks
from engine.loop import predict_split
from measures.classes import balanced_accuracy
from model import IGAENet
from train import TrainConfig, build_optimizer, learning_rate, set_learning_rate, warmup_epochs
from utils import UserError

ALONE = Ranks(0, 1, torch.device("cpu"))

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
            flags += [
                f"--{name}",
                *(str(v) for v in (value if isinstance(value, tuple) else [value])),
            ]
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


def records(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def without_seconds(run_dir: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records(run_dir)]


def checkpoints(run_dir: Path) -> set[str]:
    """Return the checkpoints of a run as `12` and `12-best`."""
    return {
        str(int(path.stem.split("-")[1])) + ("-best" if path.stem.endswith("-best") else "")
        for path in run_dir.glob("checkpoint-*")
    }


def learned(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds of the learning, as the safe loader reads it."""
    state = torch.load(path, weights_only=True)
    return {k: state[k] for k in ("model", "optimizer", "scaler", "epoch", "best")}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Assert that two nested states are equal bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path, epoch: int) -> None:
    name = f"checkpoint-{epoch:06d}.pth"
    assert_same(learned(one / name), learned(other / name))
    assert without_seconds(one) == without_seconds(other)
    assert checkpoints(one) == checkpoints(other)


def skip_training(
    monkeypatch: pytest.MonkeyPatch, scores: Callable[[int], float] = lambda epoch: 0.5
) -> None:
    """Let epochs cost nothing; the one that is evaluated as nth scores `scores(n)`."""
    n_evaluated = 0
    trained = {
        "loss": 1.0,
        **{f"{kind}_{task}": 0.5 for kind in ("loss", "accuracy") for task in TASKS},
    }

    def evaluate(*args: Any, **kwargs: Any) -> dict[str, float]:
        nonlocal n_evaluated
        n_evaluated += 1
        return {"loss": 1.0, **dict.fromkeys(train.VAL_SCORES, scores(n_evaluated))}

    monkeypatch.setattr(train, "train_one_epoch", lambda *args, **kwargs: trained)
    monkeypatch.setattr(train, "predict_split", lambda *args, **kwargs: None)
    monkeypatch.setattr(train, "val_scores", evaluate)
    monkeypatch.setattr(train, "fit_temperatures", lambda *args: {})


def interrupt_in(monkeypatch: pytest.MonkeyPatch, interrupted: int) -> None:
    """Let Ctrl-C come at the end of an epoch's training, before anything of it is written."""
    real = loop.train_one_epoch

    def train_one_epoch(*args: Any, epoch: int, **kwargs: Any) -> dict[str, float]:
        result = real(*args, epoch=epoch, **kwargs)
        if epoch == interrupted:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(train, "train_one_epoch", train_one_epoch)


def last_line_of_stderr(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error line, once it is seen to be the only one and no traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


# ----------------------------------------------------------------------------- the recipe


def test_defaults_are_the_published_recipe() -> None:
    config = TrainConfig()
    published = {
        "attributes_file": Path("11k/sub_dataset/dorsal_dr.csv"),
        "protocol": "paper",
        "backbone": "swin_t",
        "pretrained": True,
        "image_size": 224,
        "flip": 0.5,
        "jitter": 0.3,
        "optimizer": "adam",
        "lr": 8e-4,
        "backbone_lr_scale": 0.1,
        "weight_decay": 5e-4,
        "warmup": True,
        "batch_size": 20,
        "N_epochs": 50,
        "eval_every": 5,
        "label_smoothing": 0.1,
        "loss_weights": (1.0, 1.0, 1.0),
    }
    assert {name: getattr(config, name) for name in published} == published
    assert checkpoint.PIN_EVERY == 10


FULL_RUN = {1: 0.109, 9: 0.901, 10: 1, 24: 1, 25: 0.5, 39: 0.5, 40: 0.25, 50: 0.25}
NO_WARMUP = {1: 1, 20: 1, 21: 0.1, 40: 0.1, 41: 0.01, 50: 0.01}


@pytest.mark.parametrize(
    ("n_epochs", "warmup", "expected"),
    [
        (50, True, FULL_RUN),
        (30, True, {1: 0.109, 10: 1, 24: 1, 25: 0.5, 30: 0.5}),
        (20, True, {1: 0.109, 5: 0.505, 9: 0.901, 10: 1, 20: 1}),
        (5, True, {1: 0.505, 2: 1, 3: 1, 5: 1}),
        (2, True, {1: 1, 2: 1}),
        (1, True, {1: 1}),
        (50, False, NO_WARMUP),
        (2, False, {1: 1, 2: 1}),
    ],
)
def test_learning_rate(n_epochs: int, warmup: bool, expected: dict[int, float]) -> None:
    """Shares of the base rate, worked out by hand."""
    width = warmup_epochs(n_epochs)
    rates = {
        epoch: learning_rate(epoch, base=8e-4, warmup=warmup, warmup_epochs=width)
        for epoch in expected
    }
    assert rates == pytest.approx({epoch: 8e-4 * share for epoch, share in expected.items()})


def test_warm_up_begins_at_a_hundredth_and_has_equal_steps() -> None:
    rates = [learning_rate(e, base=1.0, warmup=True, warmup_epochs=10) for e in range(0, 11)]
    steps = [after - before for before, after in zip(rates[:-1], rates[1:], strict=True)]
    assert rates[0] == pytest.approx(0.01)
    assert steps == pytest.approx([0.099] * 10)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_optimisers(optimizer: str) -> None:
    network = IGAENet("test_vit", {"age": 6}, pretrained=False, image_size=32)
    built = build_optimizer(network, TrainConfig(optimizer=optimizer))
    set_learning_rate(built, 8e-4)
    assert [group["lr"] for group in built.param_groups] == pytest.approx([8e-5, 8e-4])
    assert {group["weight_decay"] for group in built.param_groups} == {5e-4}
    if optimizer == "adam":
        assert type(built) is torch.optim.Adam
        assert {group["betas"] for group in built.param_groups} == {(0.9, 0.999)}
    else:
        assert type(built) is torch.optim.SGD
        assert {(g["momentum"], g["nesterov"]) for g in built.param_groups} == {(0.9, True)}


# ----------------------------------------------------------------------------- flags


OUT_OF_RANGE = [
    ("ema", 1),
    ("ema", -0.1),
    ("clip_grad", 0),
    ("clip_grad", "nan"),
    ("accumulate", 0),
    ("accumulate", 21),
    ("compile", "maybe"),
    ("cache", "tape"),
    ("augment", "all"),
    ("image_size", 0),
    ("lr", 0),
    ("lr", -1),
    ("lr", "nan"),
    ("lr", "inf"),
    ("batch_size", 0),
    ("N_epochs", 0),
    ("N_epochs", -3),
    ("N_epochs", 1.5),
    ("eval_every", 0),
    ("backbone_lr_scale", -0.1),
    ("backbone_lr_scale", "nan"),
    ("weight_decay", -1e-4),
    ("weight_decay", "inf"),
    ("jitter", -0.1),
    ("jitter", 1.1),
    ("flip", -0.1),
    ("flip", 1.1),
    ("flip", "nan"),
    ("label_smoothing", 1),
    ("label_smoothing", -0.1),
    ("drop_path", 1),
    ("drop_path", -0.1),
    ("seed", -1),
    ("seed", 2**64),
    ("num_workers", -1),
    ("loss_weights", (0, 0, 0)),
    ("loss_weights", (1, -1, 1)),
    ("loss_weights", (1, "nan", 1)),
    ("loss_weights", (1, "inf", 1)),
    ("loss_weights", (1, 1)),
    ("optimizer", "adamw"),
    ("protocol", "none"),
    ("amp", "fp8"),
    ("device", "tpu"),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_values_out_of_range_are_refused_by_name(
    name: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = as_flags({"attributes_file": tmp_path / "none.csv", name: value})
    with pytest.raises(SystemExit) as caught:
        train.main(flags)
    assert caught.value.code == 2
    assert f"--{name}" in capsys.readouterr().err.splitlines()[-1]


AT_THE_EDGE = [
    ("N_epochs", 1),
    ("batch_size", 1),
    ("eval_every", 1),
    ("flip", 0.0),
    ("flip", 1.0),
    ("jitter", 0.0),
    ("jitter", 1.0),
    ("label_smoothing", 0.0),
    ("drop_path", 0.0),
    ("backbone_lr_scale", 0.0),
    ("weight_decay", 0.0),
    ("num_workers", 0),
    ("seed", 0),
    ("seed", 2**64 - 1),
    ("loss_weights", (0.0, 0.0, 1.0)),
]


@pytest.mark.parametrize(("name", "value"), AT_THE_EDGE)
def test_values_at_the_edge_are_taken(name: str, value: Any) -> None:
    assert getattr(TrainConfig(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"backbone_weights": "w.pth", "pretrained": False},
            "--backbone_weights and --no-pretrained contradict",
        ),
        ({"allow_partial_weights": True}, "--allow_partial_weights goes with --backbone_weights"),
        ({"fold": 0}, "--fold: --protocol paper has no folds"),
        ({"fold": 0, "protocol": "burst"}, "--fold: --protocol burst has no folds"),
    ],
)
def test_flags_that_contradict_each_other(
    values: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(as_flags(values))
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--batch", "3"], ["--warm_up"], ["extra"]])
def test_flags_that_are_not_there(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(flags)
    assert caught.value.code == 2


def test_help_shows_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in TrainConfig.__dataclass_fields__:
        assert f"--{name}" in text
    for default in ("0.0008", "0.0005", "50", "swin_t", "11k/sub_dataset/dorsal_dr.csv"):
        assert f"(default: {default})" in text


# ----------------------------------------------------------------------------- a run


RECORD = [
    "epoch",
    "lr",
    "seconds",
    "train_loss",
    *(f"train_{kind}_{task}" for kind in ("loss", "accuracy") for task in TASKS),
    "val_loss",
    *(f"val_balanced_accuracy_{task}" for task in TASKS),
    "val_mean_balanced_accuracy",
    "val_rank_1",
]


def test_a_run_leaves_what_the_contract_says(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "deep" / "run"
    assert run(split_root, run_dir, N_epochs=7, backbone="test_vit", lr=0.002) == 0
    captured = capsys.readouterr()

    lines = records(run_dir)
    assert [line["epoch"] for line in lines] == list(range(1, 8))
    assert all(list(line) == RECORD for line in lines)
    val = [name for name in RECORD[:-1] if name.startswith("val_")]
    for line in lines:
        assert line["val_rank_1"] is None
        evaluated = line["epoch"] in (5, 7)  # every fifth, and the last
        assert all((line[name] is not None) == evaluated for name in val)
        assert all(math.isfinite(value) for value in line.values() if value is not None)
        total = sum(line[f"train_loss_{task}"] for task in TASKS)
        assert line["train_loss"] == pytest.approx(total, abs=1e-6)
        if evaluated:
            scores = [line[f"val_balanced_accuracy_{task}"] for task in TASKS]
            assert line["val_mean_balanced_accuracy"] == pytest.approx(sum(scores) / 3)

    best = max((5, 7), key=lambda e: (lines[e - 1]["val_mean_balanced_accuracy"], -e))
    assert {path.name for path in run_dir.iterdir()} == {
        ".lock",
        "config.json",
        "metrics.jsonl",
        "train.log",
        "tensorboard",
        "training.html",
        "checkpoint-000007.pth",
        f"checkpoint-{best:06d}-best.pth",
    }
    assert list((run_dir / "tensorboard").glob("events.out.tfevents.*"))
    log = (run_dir / "train.log").read_text(encoding="utf-8")
    assert len(re.findall(r"epoch \d/7, .*train loss", log)) == 7

    assert captured.out.startswith(f"best epoch {best}: balanced accuracy on val identity ")
    assert captured.out.endswith(f"the curves: {run_dir / 'training.html'}\n")
    assert f"--checkpoint {run_dir}/checkpoint-{best:06d}-best.pth" in captured.out
    assert "protocol paper" in captured.out
    assert "epoch 1/7" not in captured.out

    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    assert config["config"]["lr"] == 0.002
    assert config["resolved"]["amp"] == "off"
    assert config["resolved"]["warmup_epochs"] == 3
    assert config["aspect"] == "dorsal_dr"
    ids = sorted(set(read_rows(attributes(split_root))["id"]))
    assert config["label_space"]["identity"] == ids


def put_sides(root: Path, trained: slice, scored: slice) -> None:
    """Let train.csv show some people and val.csv some; who is on both sides has photos on both."""
    header, *rows = attributes(root).read_text(encoding="utf-8").splitlines()
    people = sorted({row.split(",")[1] for row in rows})
    sides: dict[str, list[str]] = {"train": [header], "val": [header]}
    for person in people:
        first, second, *others = [row for row in rows if row.split(",")[1] == person]
        sides["train"] += [first, second] if person in people[trained] else []
        sides["val"] += others if person in people[scored] else []
    for name, lines in sides.items():
        split_csv(root, name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (slice(0, 3), "0 of 3 val people are in train: identity cannot be right;"),
        (slice(0, 4), "1 of 3 val people are in train: the others' identity cannot be right;"),
        (slice(0, 6), "3 of 3 val people are in train: the scores are of known hands,"),
    ],
)
def test_the_result_says_whose_hands_were_scored(
    trained: slice,
    expected: str,
    split_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_sides(split_root, trained, scored=slice(3, 6))
    assert run(split_root, tmp_path / "run", N_epochs=1) == 0
    assert f"protocol paper: {expected}" in capsys.readouterr().out
    best = tmp_path / "run" / "checkpoint-000001-best.pth"
    where = {"attributes_file": attributes(split_root), "device": "cpu", "num_workers": 0}
    flags = as_flags({"checkpoint": best, **where})
    assert test_script.main(flags) == 0
    out = capsys.readouterr().out
    assert f"\n{expected}" in out
    assert "; the same photos chose the epoch\n" in out
    split_csv(split_root, "train").unlink()  # now nobody can count
    assert test_script.main(flags) == 0
    assert "\nthe same photos chose the epoch\n" in capsys.readouterr().out


def test_a_checkpoint_alone_gives_the_score_it_names(split_root: Path, tmp_path: Path) -> None:
    assert run(split_root, tmp_path / "run", N_epochs=3, eval_every=1, lr=0.002) == 0
    (path,) = (tmp_path / "run").glob("*-best.pth")
    plain = torch.load(path, weights_only=True)
    assert {"format", "model", "optimizer", "config", "label_space", "epoch"} <= plain.keys()
    assert plain["metrics"] == records(tmp_path / "run")[plain["epoch"] - 1]

    ready = loop.load_predictor(load_checkpoint(path), device="cpu", amp=None, batch_size=8)
    rows = read_rows(split_csv(split_root, "val"))
    dataset = HandsDataset(
        rows,
        split_root / "Hands",
        ready.label_space,
        side=ready.image_size,
        decode_size=ready.decode_size,
    )
    loader = build_loader(dataset, batch_size=5, num_workers=0, shuffle=False)
    said = predict_split(
        ready.model, loader, preprocessing=ready.preprocessing, amp=ready.amp, ranks=ALONE
    )
    for i, task in enumerate(TASKS):
        score = balanced_accuracy(said.labels[:, i], said.logits[task].argmax(axis=1))
        stored = plain["metrics"][f"val_balanced_accuracy_{task}"]
        assert score == pytest.approx(stored, abs=1e-9)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_size_of_a_checkpoint_is_told_before_the_run(
    optimizer: str, split_root: Path, tmp_path: Path
) -> None:
    assert run(split_root, tmp_path / "run", N_epochs=1, optimizer=optimizer) == 0
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    told = re.search(r"\((\d+) bytes\)", log.split("epoch 1/1")[0])
    assert told
    size = (tmp_path / "run" / "checkpoint-000001.pth").stat().st_size
    assert int(told[1]) == pytest.approx(size, rel=0.05)


def test_one_epoch_gives_a_best(split_root: Path, tmp_path: Path) -> None:
    assert run(split_root, tmp_path / "run", N_epochs=1) == 0
    assert checkpoints(tmp_path / "run") == {"1", "1-best"}


def test_bf16_trains_on_a_cpu(split_root: Path, tmp_path: Path) -> None:
    assert run(split_root, tmp_path / "run", N_epochs=1, amp="bf16", backbone="test_vit") == 0
    (line,) = records(tmp_path / "run")
    assert all(math.isfinite(line[name]) for name in RECORD[:-1])


def test_which_checkpoints_stay_while_it_runs(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated at 5, 10, 15, 20, 22; the scores tie at 5 and 10, the best is 15."""
    skip_training(monkeypatch, lambda n: [0.3, 0.3, 0.6, 0.6, 0.1][n - 1])
    seen, save = [], train.Run.save

    def watched(self: train.Run, record: Mapping[str, Any], temperature: Any) -> None:
        save(self, record, temperature)
        seen.append(checkpoints(self.folder))

    monkeypatch.setattr(train.Run, "save", watched)
    assert run(split_root, tmp_path / "run", N_epochs=22) == 0
    best = {**dict.fromkeys(range(5, 15), {"5-best"}), **dict.fromkeys(range(15, 23), {"15-best"})}
    for epoch in range(1, 23):
        pinned = {str(number) for number in (10, 20) if number <= epoch}
        assert seen[epoch - 1] == {str(epoch)} | pinned | best.get(epoch, set()), epoch
    state = torch.load(tmp_path / "run" / "checkpoint-000015-best.pth", weights_only=True)
    assert state["epoch"] == 15
    assert state["best"] == {"epoch": 15, "score": 0.6}


def test_a_best_of_zero_is_a_best(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_training(monkeypatch, lambda n: 0.0)
    assert run(split_root, tmp_path / "run", N_epochs=3, eval_every=1) == 0
    assert checkpoints(tmp_path / "run") == {"3", "1-best"}


def test_file_systems_without_hard_links(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*args: Any, **kwargs: Any) -> None:
        raise OSError("Operation not supported")

    monkeypatch.setattr(os, "link", no_link)
    skip_training(monkeypatch)
    assert run(split_root, tmp_path / "run", N_epochs=2, eval_every=1) == 0
    assert checkpoints(tmp_path / "run") == {"2", "1-best"}
    assert load_checkpoint(tmp_path / "run" / "checkpoint-000001-best.pth")["epoch"] == 1


def test_the_same_seed_gives_the_same_run_and_another_does_not(
    split_root: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(split_root, tmp_path / name, N_epochs=2, seed=seed) == 0
    assert_same_run(tmp_path / "a", tmp_path / "b", 2)
    assert without_seconds(tmp_path / "a") != without_seconds(tmp_path / "c")


# ----------------------------------------------------------------------------- the run's folder


def test_two_runs_of_one_second_get_two_folders(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        @staticmethod
        def now() -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5)

    skip_training(monkeypatch)
    monkeypatch.setattr(checkpoint, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    flags = as_flags({"attributes_file": attributes(split_root), **TINY, "N_epochs": 1})
    for _ in range(3):
        assert train.main(flags) == 0
    names = sorted(path.name for path in Path("checkpoints").iterdir())
    stamp = "2026-01-02_03-04-05"
    assert names == [stamp, f"{stamp}-2", f"{stamp}-3"]
    assert all(checkpoints(Path("checkpoints") / name) == {"1", "1-best"} for name in names)


def test_a_folder_in_use_is_refused_and_an_empty_one_taken(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "notes.txt").write_text("mine")
    assert run(split_root, run_dir, N_epochs=1) == 1
    assert f"--run_dir {run_dir} is in use" in last_line_of_stderr(capsys)
    assert [path.name for path in run_dir.iterdir()] == ["notes.txt"]
    (run_dir / "notes.txt").unlink()
    assert run(split_root, run_dir, N_epochs=1) == 0


def test_a_folder_that_cannot_be_made(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(split_root, tmp_path / "file" / "run", N_epochs=1) == 1
    assert "--run_dir" in last_line_of_stderr(capsys)


# ----------------------------------------------------------------------------- resume


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("interrupted", [1, 3])
def test_interrupted_and_resumed_equals_uninterrupted(
    optimizer: str,
    interrupted: int,
    split_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"N_epochs": 4, "eval_every": 2, "optimizer": optimizer}
    assert run(split_root, tmp_path / "whole", **values) == 0
    with monkeypatch.context() as patch:
        interrupt_in(patch, interrupted)
        assert run(split_root, tmp_path / "cut", **values) == 130
    log = (tmp_path / "cut" / "train.log").read_text(encoding="utf-8")
    assert f"python train.py --resume {tmp_path / 'cut'}" in log
    assert "Traceback" not in capsys.readouterr().err
    assert len(records(tmp_path / "cut") if interrupted > 1 else []) == interrupted - 1
    assert resume(tmp_path / "cut") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut", 4)


def test_resume_with_workers_equals_without(
    split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(split_root, tmp_path / "whole", N_epochs=2) == 0
    with monkeypatch.context() as patch:
        interrupt_in(patch, 2)
        assert run(split_root, tmp_path / "cut", N_epochs=2) == 130
    assert resume(tmp_path / "cut", num_workers=2) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut", 2)


def test_a_longer_run_goes_on(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert run(split_root, run_dir, N_epochs=3, eval_every=2) == 0
    before = without_seconds(run_dir)
    assert resume(run_dir, N_epochs=11) == 0
    after = without_seconds(run_dir)
    assert after[:3] == before
    assert [line["epoch"] for line in after] == list(range(1, 12))
    assert [line["lr"] for line in after] == pytest.approx([8e-4] * 11)  # warmed up long ago
    best = max(
        (line for line in after if line["val_loss"] is not None),
        key=lambda line: (line["val_mean_balanced_accuracy"], -line["epoch"]),
    )["epoch"]
    assert checkpoints(run_dir) == {"10", "11", f"{best}-best"}
    stored = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    assert stored["config"]["N_epochs"] == 11
    assert stored["config"]["resume"] is None


def test_a_finished_run_says_so(
    split_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    skip_training(monkeypatch)
    run_dir = tmp_path / "run"
    assert run(split_root, run_dir, N_epochs=2) == 0
    before = (checkpoints(run_dir), records(run_dir))
    capsys.readouterr()
    assert resume(run_dir) == 0
    out = capsys.readouterr().out
    assert f"{run_dir} is finished: 2 epochs" in out
    assert "--N_epochs" in out
    assert (checkpoints(run_dir), records(run_dir)) == before


@pytest.fixture
def finished(split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of three epochs whose training cost nothing; `--N_epochs 4` goes on."""
    skip_training(monkeypatch)
    assert run(split_root, tmp_path / "run", N_epochs=3, eval_every=1) == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 1e-3),
        ("batch_size", 4),
        ("backbone", "test_vit"),
        ("optimizer", "sgd"),
        ("warmup", False),
        ("pretrained", True),
        ("seed", 43),
        ("drop_path", 0.1),
        ("loss_weights", (1, 1, 2)),
        ("amp", "bf16"),
        ("eval_every", 5),
    ],
)
def test_flags_that_differ_from_the_runs_are_refused(
    name: str, value: Any, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert resume(finished, N_epochs=4, **{name: value}) == 1
    assert re.match(rf"error: --{name} .*differs from the run's", last_line_of_stderr(capsys))
    assert len(records(finished)) == 3


def test_flags_that_agree_with_the_runs_are_taken(finished: Path, split_root: Path) -> None:
    agreeing = {**TINY, "lr": 8e-4, "loss_weights": (1, 1, 1), "warmup": True}
    assert resume(finished, attributes_file=attributes(split_root), N_epochs=4, **agreeing) == 0
    assert len(records(finished)) == 4


def test_resume_and_run_dir_contradict_each_other(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(as_flags({"resume": finished, "run_dir": finished}))
    assert caught.value.code == 2
    assert "leave --run_dir out" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"architecture": "swin"}', "\xff"])
def test_a_folder_without_a_runs_config(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
    assert resume(tmp_path) == 1
    line = last_line_of_stderr(capsys)
    assert f"--resume {tmp_path}" in line
    assert "config.json" in line


def test_what_a_kill_leaves_behind_is_tidied(finished: Path) -> None:
    """Lines after the checkpoint, half a line, temporary files, a second best, a stale epoch."""
    shutil.copyfile(finished / "checkpoint-000003.pth", finished / "checkpoint-000002.pth")
    shutil.copyfile(finished / "checkpoint-000003.pth", finished / "checkpoint-000003-best.pth")
    for name in (".checkpoint-000004.123.tmp.pth", ".config.99.tmp.json"):
        (finished / name).write_bytes(b"half")
    before = records(finished)
    with (finished / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**before[-1], "epoch": 4}) + "\n" + '{"epoch": 5, "lr"')
    assert resume(finished) == 0
    assert records(finished) == before
    assert checkpoints(finished) == {"3", "1-best"}
    assert not list(finished.glob(".*.tmp*"))


def test_a_best_that_a_kill_prevented_is_made(finished: Path) -> None:
    """Killed right after the checkpoint of epoch 1, which is the best, was written."""
    state = torch.load(finished / "checkpoint-000001-best.pth", weights_only=True)
    for path in finished.glob("checkpoint-*"):
        path.unlink()
    torch.save(state, finished / "checkpoint-000001.pth")
    (finished / ".checkpoint-000001-best.99.tmp.pth").write_bytes(b"half")
    assert resume(finished) == 0
    assert checkpoints(finished) == {"3", "1-best"}
    assert [line["epoch"] for line in records(finished)] == [1, 2, 3]
    assert not list(finished.glob(".*.tmp*"))


def test_metrics_are_cut_back_at_once_or_not_at_all(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill or a full disk in the middle of the rewriting loses no line."""
    before = (finished / "metrics.jsonl").read_bytes()
    write = Path.write_text

    def half(self: Path, text: str, **options: Any) -> int:
        write(self, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        assert resume(finished, N_epochs=4) == 1
    assert "No space left on device" in last_line_of_stderr(capsys)
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert resume(finished, N_epochs=4) == 0


@pytest.mark.parametrize("name", ["train", "val"])
def test_changed_rows_are_refused(
    name: str, finished: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = split_csv(split_root, name)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    capsys.readouterr()
    assert resume(finished, N_epochs=4) == 1
    line = last_line_of_stderr(capsys)
    assert f"--resume {finished}: the rows of {name} have changed" in line
    assert len(records(finished)) == 3


def test_the_data_may_move(finished: Path, split_root: Path) -> None:
    moved = split_root.rename(split_root.with_name("moved"))
    assert resume(finished) == 0  # it is finished, wherever the data may be
    assert resume(finished, N_epochs=4, attributes_file=attributes(moved)) == 0
    assert [line["epoch"] for line in records(finished)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored["config"].update(colour="red"), "has colour, unknown"),
        (lambda stored: stored["resolved"].pop("amp"), "begun by another version"),
        (lambda stored: stored.pop("fingerprints"), "it describes no run"),
    ],
)
def test_a_configuration_of_another_version_is_refused(
    change: Callable[[dict[str, Any]], Any],
    message: str,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = finished / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    change(stored)
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert resume(finished, N_epochs=4) == 1
    assert message in last_line_of_stderr(capsys)


def test_another_machine_is_announced(finished: Path) -> None:
    path = finished / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["environment"]["torch"] = "1.0"
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert resume(finished, N_epochs=4) == 0
    log = (finished / "train.log").read_text(encoding="utf-8")
    assert "WARNING resumed elsewhere than begun (torch 1.0 -> " in log


def test_a_damaged_checkpoint_is_named(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished / "checkpoint-000003.pth"
    path.write_bytes(path.read_bytes()[:1000])
    assert resume(finished, N_epochs=4) == 1
    error = last_line_of_stderr(capsys)
    assert str(path) in error
    then = "--resume goes on from checkpoint-000001-best.pth"
    assert error.endswith(f"; move checkpoint-000003.pth away, and {then}")
    first = records(finished)[0]
    path.unlink()
    assert resume(finished, N_epochs=4) == 0
    assert [record["epoch"] for record in records(finished)] == [1, 2, 3, 4]
    assert records(finished)[0] == first
    assert "begins again" not in (finished / "train.log").read_text(encoding="utf-8")


def test_a_damaged_best_is_named_before_anything_is_trained(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / "checkpoint-000001-best.pth"
    path.write_bytes(path.read_bytes()[:-2000])
    assert resume(finished, N_epochs=4) == 1
    error = last_line_of_stderr(capsys)
    assert f"{path} cannot be read" in error
    assert error.endswith("; move it away, and --resume goes on without it")
    path.unlink()
    assert resume(finished, N_epochs=4) == 0
    assert "goes on after epoch 3, from " in (finished / "train.log").read_text(encoding="utf-8")


def test_what_to_do_about_a_damaged_checkpoint(tmp_path: Path) -> None:
    """A best epoch has two files, often of the same bytes."""
    both = [tmp_path / f"checkpoint-000002{end}.pth" for end in ("", "-best")]
    for path in both:
        path.touch()
    names = "checkpoint-000002.pth and checkpoint-000002-best.pth"
    said = f"move {names} away, and --resume begins at epoch 1, as there is no other"
    assert what_if_damaged(both[0]) == said
    (tmp_path / "checkpoint-000001.pth").touch()
    assert what_if_damaged(both[1]).endswith("--resume goes on from checkpoint-000001.pth")


# ----------------------------------------------------------------------------- protocols


def draw(root: Path, protocol: str) -> Path:
    """Draw the protocol's split (3 folds, where it has folds); return dorsal right's folder."""
    folds = ["--folds", "3"] if protocol == "subject-disjoint" else []
    assert dataset_11k_split.main(["--input", str(root), "--protocol", protocol, *folds]) == 0
    return root / "trainval" / protocol / "dorsal_dr"


@pytest.mark.parametrize("protocol", ["stratified", "burst"])
def test_a_protocol_of_known_people(
    protocol: str,
    make_hands_root: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_hands_root(n_frames=20)
    drawn = draw(root, protocol) / "fold_0"
    assert run(root, tmp_path / "run", N_epochs=1, protocol=protocol) == 0
    assert "the val photos, not the test photos, chose this epoch" in capsys.readouterr().out
    (record,) = records(tmp_path / "run")
    assert record["val_rank_1"] is None
    assert record["val_balanced_accuracy_identity"] is not None
    state = load_checkpoint(tmp_path / "run" / "checkpoint-000001.pth")
    rows = read_rows(drawn / "train.csv")
    assert state["label_space"]["identity"] == sorted(set(rows["id"]))
    assert state["fingerprints"].keys() == {"train", "val", "test"}
    assert state["temperature"].keys() == set(TASKS)


def test_strangers_are_matched_and_choose_the_epoch(
    hands_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = draw(hands_root, "subject-disjoint") / "fold_1"
    given = {"protocol": "subject-disjoint", "fold": 1, "N_epochs": 2, "eval_every": 2}
    assert run(hands_root, tmp_path / "run", **given) == 0
    assert "rank-1" in capsys.readouterr().out
    first, record = records(tmp_path / "run")
    assert first["val_rank_1"] is None
    assert record["val_balanced_accuracy_identity"] is None
    parts = [record[f"val_balanced_accuracy_{task}"] for task in ("gender", "age")]
    assert record["val_mean_balanced_accuracy"] == pytest.approx(sum(parts) / 2)

    state = load_checkpoint(tmp_path / "run" / "checkpoint-000002.pth")
    assert state["best"]["score"] == pytest.approx((sum(parts) + record["val_rank_1"]) / 3)
    assert state["temperature"].keys() == {"gender", "age"}
    trained = read_rows(drawn / "train.csv")
    assert state["label_space"]["identity"] == sorted(set(trained["id"]))
    assert sum(state["training"]["counts"]["gender"]) == len(trained)
    groups = zip(AGE_GROUPS.values(), state["training"]["mean_ages"], strict=True)
    for (low, high), mean in groups:
        ages = trained["age"][trained["age"].between(low, high)]
        assert mean == (pytest.approx(ages.mean()) if len(ages) else None)
    names, genders = state["label_space"]["identity"], state["training"]["people"]["gender"]
    of_person = dict(zip(names, genders, strict=True))
    for person, gender in zip(trained["id"], trained["gender"], strict=True):
        assert GENDERS[of_person[person]] == gender


def test_val_scores_of_strangers_by_hand() -> None:
    """Identity is unknown: it enters neither loss nor mean. Persons b and c look alike."""
    embedding = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.2], [0, 1], [0.1, 1.0]], np.float32)
    labels = np.array([[-1, 0, 0], [-1, 0, 0], [-1, 1, 1], [-1, 1, 1], [-1, 1, 1], [-1, 1, 1]])
    logits = {
        "identity": np.zeros((6, 3), np.float32),
        "gender": np.array([[2, 0], [0, 2]] * 3, np.float32),
        "age": np.eye(6, dtype=np.float32)[[0, 0, 1, 1, 1, 1]],
    }
    config = TrainConfig(protocol="subject-disjoint", label_smoothing=0.0)
    predictions = loop.Predictions(labels, embedding, logits)
    scores = train.val_scores(predictions, np.array(list("aabbcc")), config)
    # queries: a finds a; b's second photo finds a; c's finds b or c at a tie, which counts against
    assert scores["rank_1"] == pytest.approx(1 / 3)
    wrong, right = math.log(1 + math.exp(2)), math.log(1 + math.exp(-2))
    age = math.log(5 + math.e) - 1
    assert scores["loss"] == pytest.approx((wrong + right) / 2 + age, abs=1e-5)
    assert scores["balanced_accuracy_identity"] is None
    assert scores["mean_balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert train.selection_score(scores) == pytest.approx((0.5 + 1 + 1 / 3) / 3)


def test_a_photo_or_person_on_two_sides(
    hands_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = draw(hands_root, "subject-disjoint") / "fold_0"
    val, test = (drawn / f"{name}.csv" for name in ("val", "test"))
    before = test.read_text(encoding="utf-8")
    photo, person, *rest = val.read_text(encoding="utf-8").splitlines()[1].split(",")
    capsys.readouterr()
    for name, expected in (
        (photo, "Hand_"),
        (photo.replace("Hand_", "Other_"), f"{person} is in val.csv and in test.csv"),
    ):
        test.write_text(before + ",".join((name, person, *rest)) + "\n", encoding="utf-8")
        assert run(hands_root, tmp_path / "run", protocol="subject-disjoint") == 1
        error = last_line_of_stderr(capsys)
        assert expected in error
        assert "in val.csv and in test.csv of dorsal_dr" in error


def test_a_stranger_under_a_protocol_of_known_people(
    make_hands_root: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_hands_root(n_frames=8)
    drawn = draw(root, "stratified") / "fold_0"
    lines = (drawn / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if ",0000041," not in line)
    (drawn / "train.csv").write_text(kept, encoding="utf-8")
    capsys.readouterr()
    assert run(root, tmp_path / "run", protocol="stratified") == 1
    error = last_line_of_stderr(capsys)
    assert "shows 0000041, who has no train photo; only subject-disjoint tests strangers" in error


def test_a_fold_or_protocol_that_was_not_drawn(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"protocol": "subject-disjoint", "fold": 3}
    assert run(split_root, tmp_path / "run", **values) == 1
    assert "dataset_11k_split.py --protocol subject-disjoint first" in last_line_of_stderr(capsys)
    draw(split_root, "subject-disjoint")
    capsys.readouterr()
    assert run(split_root, tmp_path / "run", **values) == 1
    assert "--fold 3: " in (error := last_line_of_stderr(capsys))
    assert error.endswith("has the folds 0, 1, 2")
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------- errors


def no_such_file(root: Path) -> None:
    attributes(root).unlink()


def no_rows(root: Path) -> None:
    for path in (attributes(root), split_csv(root, "train"), split_csv(root, "val")):
        path.write_text("image_path,id,gender,age\n", encoding="utf-8")


def no_split(root: Path) -> None:
    split_csv(root, "val").unlink()


def photo_in_both(root: Path) -> None:
    line = split_csv(root, "val").read_text(encoding="utf-8").splitlines()[1]
    with split_csv(root, "train").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def unknown_person(root: Path) -> None:
    path = split_csv(root, "train")
    lines = path.read_text(encoding="utf-8").splitlines()
    photo, _, gender, age = lines[3].split(",")
    lines[3] = ",".join((photo, "7654321", gender, age))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def missing_photo(root: Path) -> None:
    (root / "Hands" / read_rows(split_csv(root, "val"))["name"][0]).unlink()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (no_such_file, r"dorsal_dr\.csv not found; run dataset_11k_split\.py"),
        (no_rows, r"train\.csv lists no photo of dorsal_dr; train on another aspect"),
        (no_split, r"val\.csv not found; run dataset_11k_split\.py"),
        (photo_in_both, r"Hand_\d+\.jpg is in train\.csv and in val\.csv of dorsal_dr"),
        (
            unknown_person,
            r"train\.csv: Hand_\d+\.jpg shows 7654321, who is not in .*dorsal_dr\.csv",
        ),
        (missing_photo, r"1 of 12 photos that .*val\.csv lists .*Hand_\d+\.jpg; .*--skip_missing"),
    ],
)
def test_what_is_wrong_with_the_data_is_said_before_a_folder_is_made(
    damage: Callable[[Path], None],
    expected: str,
    split_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(split_root)
    assert run(split_root, tmp_path / "run", N_epochs=1) == 1
    assert re.search(expected, last_line_of_stderr(capsys))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (no_such_file, "dorsal_dr.csv not found; write it (README, Your own photos)"),
        (no_split, "val.csv not found; write it (README, Your own photos)"),
        (photo_in_both, "val.csv of dorsal_dr; delete one of the rows"),
        (unknown_person, "dorsal_dr.csv; add the row there"),
        (missing_photo, "put them there, or delete their rows"),
    ],
)
def test_own_photos_are_not_sent_to_the_splitting_script(
    damage: Callable[[Path], None],
    expected: str,
    split_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (split_root / "HandInfo.csv").unlink()
    damage(split_root)
    assert run(split_root, tmp_path / "run", N_epochs=1) == 1
    assert last_line_of_stderr(capsys).endswith(expected)


def test_a_run_of_which_only_the_best_checkpoint_is_left_goes_on_from_it(finished: Path) -> None:
    for path in finished.glob("checkpoint-??????.pth"):
        path.unlink()
    assert resume(finished, N_epochs=4) == 0
    assert checkpoints(finished) == {"4", "1-best"}
    assert [record["epoch"] for record in records(finished)] == [1, 2, 3, 4]


def test_a_run_without_any_checkpoint_begins_again_and_says_so(finished: Path) -> None:
    for path in finished.glob("checkpoint-*.pth"):
        path.unlink()
    assert resume(finished, N_epochs=4) == 0
    log = (finished / "train.log").read_text(encoding="utf-8")
    assert f"WARNING {finished} holds no checkpoint: it begins again at epoch 1, and" in log
    assert [record["epoch"] for record in records(finished)] == [1, 2, 3, 4]


def test_a_checkpoint_alone_is_enough_to_resume(finished: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "checkpoint-000003.pth"
    alone.parent.mkdir()
    shutil.copyfile(finished / alone.name, alone)
    assert resume(alone, N_epochs=4) == 0
    assert [record["epoch"] for record in records(alone.parent)] == [4]
    assert resume(alone.parent, N_epochs=5) == 0  # by now it is a run's folder
    assert checkpoints(alone.parent) == {"5"}  # the best epoch's stayed where it was


def test_a_checkpoint_of_another_run_is_not_resumed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / "checkpoint-000003.pth"
    state = load_checkpoint(path)
    state["fingerprints"]["train"] = "other rows"
    torch.save(state, path)
    capsys.readouterr()
    assert resume(finished, N_epochs=5) == 1
    assert "is of another run" in capsys.readouterr().err
    assert path.exists()


def test_a_run_that_another_process_trains_is_refused(tmp_path: Path) -> None:
    hold = f"import pathlib as p, run_folder; lock = checkpoint.lock_run(p.Path({str(tmp_path)!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", f"{hold}; print('held', flush=True); input()"],
        cwd=Path(train.__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process trains"):
            checkpoint.lock_run(tmp_path)
        other.kill()
    checkpoint.lock_run(tmp_path).close()


def test_a_csv_outside_of_sub_dataset(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "dorsal_dr.csv"
    shutil.copyfile(attributes(split_root), elsewhere)
    assert run(split_root, tmp_path / "run", attributes_file=elsewhere) == 1
    assert f"{elsewhere}: expected <root>/sub_dataset/" in last_line_of_stderr(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"backbone": "resnet5O"}, "unknown backbone 'resnet5O'; did you mean resnet50"),
        ({"backbone": "test_vit", "image_size": 15}, "--image_size 15: .* works"),
        ({"amp": "fp16"}, "--amp fp16 needs CUDA"),
        ({"backbone": "densenet121", "drop_path": 0.1}, "no stochastic depth"),
        ({"pretrained": True, "backbone_weights": "none.pth"}, "none.pth: no such file"),
    ],
)
def test_a_model_that_cannot_be_had(
    values: dict[str, Any],
    expected: str,
    split_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(split_root, tmp_path / "run", **values) == 1
    assert re.search(expected, last_line_of_stderr(capsys))
    assert not (tmp_path / "run").exists()


def test_backbone_and_size_are_refused_before_data_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, tmp_path / "run", backbone="test_vit", image_size=15) == 1
    assert "--image_size 15" in last_line_of_stderr(capsys)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corrupt_photo_stops_the_run_by_path_and_row(
    split: str,
    num_workers: int,
    split_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = 5
    photo = split_root / "Hands" / read_rows(split_csv(split_root, split))["name"][row - 1]
    whole = photo.read_bytes()
    photo.write_bytes(whole[: len(whole) // 2])
    run_dir = tmp_path / "run"
    assert run(split_root, run_dir, N_epochs=1, num_workers=num_workers) == 1
    line = last_line_of_stderr(capsys)
    assert line.startswith(f"error: row {row}: photo {photo} cannot be decoded")
    assert not checkpoints(run_dir)
    assert not list(run_dir.glob(".*.tmp*"))
    assert not (run_dir / "metrics.jsonl").exists()
    photo.write_bytes(whole)
    assert resume(run_dir) == 0


def test_a_loss_out_of_range_stops_the_run(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(split_root, tmp_path / "run", N_epochs=3, lr=1e30, optimizer="sgd") == 1
    line = last_line_of_stderr(capsys)
    assert re.search(r"not finite at epoch \d, step \d, learning rate 1e\+30 \(identity ", line)


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
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
    assert "checkpoint-000003.pth; is the disk full?" in last_line_of_stderr(capsys)
    assert checkpoints(tmp_path / "run") == {"2", "1-best"}
    assert not list((tmp_path / "run").glob(".*.tmp*"))
    assert resume(tmp_path / "run") == 0
    assert [line["epoch"] for line in records(tmp_path / "run")] == [1, 2, 3, 4]


# ----------------------------------------------------------------------------- kill -9


class Process:
    """train.py in a process of its own, and what it has said so far."""

    def __init__(self, flags: Sequence[str], log: Path) -> None:
        self.log = log
        script = Path(train.__file__)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(script), *flags],
                stdout=file,
                stderr=file,
                env=environment,
                cwd=log.parent,
            )

    def wait_for(self, event: Callable[[], bool]) -> None:
        """Wait until `event` is there, or the process has ended."""
        deadline = time.monotonic() + 400  # a busy machine
        while not event() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def finish(self) -> None:
        assert self.process.wait(timeout=300) == 0, self.log.read_text()

    def kill_after(self, seconds: float) -> bool:
        """Kill it; return False if it had ended well before."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return True
        self.finish()
        return False


BEGINS = "a checkpoint takes about"  # the run's folder is complete, the first epoch is next
RESUMES = "people without a train photo"  # the run's folder is about to be read


def assert_readable(run_dir: Path) -> None:
    """Assert that nothing a kill left is half a file, but for the names that say so."""
    json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    for path in run_dir.glob("checkpoint-*.pth"):
        assert load_checkpoint(path)["epoch"] >= 1


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
        process.wait_for(lambda: (BEGINS if fresh else RESUMES) in process.log.read_text())
        return process

    def n_lines(run_dir: Path) -> int:
        path = run_dir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    whole, draw = tmp_path / "whole", random.Random(n_kills)
    process, began = start(whole), time.monotonic()
    process.finish()
    seconds_per_epoch = (time.monotonic() - began) / n_epochs

    n_done, n_runs = 0, 0
    while n_done < n_kills:
        n_runs += 1
        run_dir, alive = tmp_path / f"killed-{n_runs}", True
        while alive and n_done < n_kills:
            process = start(run_dir)
            n_finished = max((int(n) for n in checkpoints(run_dir) if n.isdigit()), default=0)
            moment = draw.uniform(n_finished, n_epochs)  # in epochs; a line comes before its file
            process.wait_for(lambda: n_lines(run_dir) >= int(moment))  # noqa: B023
            alive = process.kill_after(moment % 1 * seconds_per_epoch)
            n_done += alive
            assert_readable(run_dir)
        if alive:
            start(run_dir).finish()
        assert_same_run(whole, run_dir, n_epochs)
        assert not list(run_dir.glob(".*.tmp*"))


# ----------------------------------------------------------------------------- how it computes


def test_cached_photos_change_nothing(split_root: Path, tmp_path: Path) -> None:
    for cache, workers in (("none", 0), ("disk", 2), ("ram", 0)):
        assert run(split_root, tmp_path / cache, N_epochs=2, cache=cache, num_workers=workers) == 0
    for cache in ("disk", "ram"):
        assert_same(
            learned(tmp_path / "none" / "checkpoint-000002.pth"),
            learned(tmp_path / cache / "checkpoint-000002.pth"),
        )
    assert len(list((split_root / "cache").glob("*.pixels"))) == 2  # train and val have two sizes


@pytest.mark.parametrize(
    "values",
    [
        {"ema": 0.5},
        {"augment": "batch"},
        {"clip_grad": 0.1},
        {"accumulate": 3},
        {"grad_checkpointing": True, "backbone": "test_vit"},
    ],
)
def test_a_flag_changes_what_is_learned_and_resumes(
    values: dict[str, Any], split_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations computed twice are the same ones; the other flags make a difference."""
    plain = {k: v for k, v in values.items() if k == "backbone"}
    assert run(split_root, tmp_path / "plain", N_epochs=2, **plain) == 0
    assert run(split_root, tmp_path / "whole", N_epochs=2, **values) == 0
    with monkeypatch.context() as patch:
        interrupt_in(patch, 2)
        assert run(split_root, tmp_path / "parted", N_epochs=2, **values) == 130
    assert resume(tmp_path / "parted") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parted", 2)
    name = "checkpoint-000002.pth"
    models = [learned(tmp_path / run_dir / name)["model"] for run_dir in ("plain", "whole")]
    same = all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert same == ("grad_checkpointing" in values)


def test_the_average_is_what_is_evaluated(split_root: Path, tmp_path: Path) -> None:
    """With a decay of 0 the average is the model itself."""
    assert run(split_root, tmp_path / "plain", N_epochs=2) == 0
    assert run(split_root, tmp_path / "ema", N_epochs=2, ema=0) == 0
    state = torch.load(tmp_path / "ema" / "checkpoint-000002.pth", weights_only=True)
    assert_same(state["model"], state["trained"])
    assert without_seconds(tmp_path / "ema") == without_seconds(tmp_path / "plain")


def test_a_cache_folder_of_its_own(split_root: Path, tmp_path: Path) -> None:
    assert run(split_root, tmp_path / "run", N_epochs=1, cache_dir=tmp_path / "scratch") == 0
    assert list((tmp_path / "scratch").glob("*.pixels"))
    assert not (split_root / "cache").exists()


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(split_root: Path, tmp_path: Path) -> None:
    """Within float tolerance; the short last batch runs as it is."""
    values = {"backbone": "test_vit", "drop_path": 0, "N_epochs": 3, "eval_every": 1}
    try:
        assert run(split_root, tmp_path / "compiled", compile="on", **values) == 0
        assert resume(tmp_path / "compiled", N_epochs=4) == 0
    finally:
        torch.compiler.set_stance("default")
    assert run(split_root, tmp_path / "plain", **values) == 0
    assert resume(tmp_path / "plain", N_epochs=4) == 0
    pairs = zip(
        without_seconds(tmp_path / "compiled"), without_seconds(tmp_path / "plain"), strict=True
    )
    for compiled, plain in pairs:
        assert compiled == pytest.approx(plain, abs=1e-4)


def test_a_machine_that_cannot_compile(
    split_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def compile_not(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_not)
    assert run(split_root, tmp_path / "on", N_epochs=1, compile="on") == 1
    assert "no C++ compiler" in last_line_of_stderr(capsys)
    monkeypatch.setattr("compute.COMPILE_SECONDS", {"cpu": 0})
    try:
        assert run(split_root, tmp_path / "auto", N_epochs=1) == 0
    finally:
        torch.compiler.set_stance("default")
    assert "--compile auto: off, the model cannot be compiled" in capsys.readouterr().err
