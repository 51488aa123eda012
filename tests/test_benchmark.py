"""benchmark.py: a run on the tiny tree, summaries by hand, refused flags."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import benchmark
import train
from benchmark import (
    BASELINE,
    STEADY_PARTS,
    VARIANTS,
    BenchmarkConfig,
    Trainer,
    speed_table,
    speed_up,
)
from train import TrainConfig

QUICK = "--backbones test_resnet --image_size 32 --batch_sizes 4 --seconds 0.01 --rounds 2"
QUICK += " --device cpu --num_workers 0 --amp off --n_photos 6"


@pytest.fixture
def attributes(split_root: Path) -> Path:
    return split_root / "sub_dataset" / "dorsal_dr.csv"


@pytest.mark.slow  # every process imports PyTorch, and one compiles
@pytest.mark.parametrize(("parts", "n_rounds"), [(STEADY_PARTS, 2), (("start", "compile"), 1)])
def test_every_part(
    parts: tuple[str, ...],
    n_rounds: int,
    attributes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "results"
    flags = [*QUICK.split(), "--attributes_file", str(attributes), "--output", str(output)]
    assert benchmark.main([*flags, "--parts", *parts, "--rounds", str(n_rounds)]) == 0
    stored = json.loads((output / "benchmark.json").read_text())
    assert stored["environment"]["device"] == "cpu"
    assert stored["baseline"] == BASELINE
    samples = stored["samples"]
    assert {sample["part"] for sample in samples} == set(parts)
    assert all(math.isfinite(s["value"]) and s["value"] >= 0 for s in samples)
    told = capsys.readouterr().out
    if "compile" in parts:
        assert {s["variant"] for s in samples if s["part"] == "compile"} == {"optimised"}
        assert {s["variant"] for s in samples if s["quantity"] == "first step"} == set(VARIANTS)
        assert [path.name for path in output.iterdir()] == ["benchmark.json"]
        return
    variants = [s["variant"] for s in samples if s["quantity"] == "end to end"]
    assert variants == [*VARIANTS, *reversed(VARIANTS)]
    assert "end to end" in told
    with Image.open(output / "benchmark.png") as picture:
        assert min(picture.size) > 400


def test_a_trainer_measures_what_train_py_builds(attributes: Path, tmp_path: Path) -> None:
    config = BenchmarkConfig(
        attributes_file=attributes, image_size=32, device="cpu", num_workers=0, amp="off"
    )
    flags = config.training("optimised", "test_resnet", 4, tmp_path)
    trainer = Trainer(flags, 6, tmp_path)
    before = [parameter.clone() for parameter in trainer.run.model.parameters()]
    found: dict[str, float] = {}
    for part in benchmark.STEADY_PARTS:
        found |= getattr(trainer, f"measure_{part}")(0.001)
    assert all(value >= 0 for value in found.values())
    assert found.keys() <= benchmark.UNITS.keys()
    after = trainer.run.model.parameters()
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))
    assert {len(loader.dataset) for loader in trainer.loaders.values()} == {6}  # type: ignore[arg-type]
    assert list((tmp_path / "cache").iterdir())


def test_variants_differ_in_flags_of_speed_only(tmp_path: Path) -> None:
    config = BenchmarkConfig(num_workers=3)
    baseline, optimised = (config.training(v, "swin_t", 20, tmp_path) for v in VARIANTS)
    same = {f for f in vars(baseline) if getattr(baseline, f) == getattr(optimised, f)}
    assert vars(baseline).keys() - same <= {*BASELINE, "cache_dir"}
    for name, value in BASELINE.items():
        assert getattr(baseline, name) == value
        expected = 3 if name == "num_workers" else getattr(TrainConfig(), name)
        assert getattr(optimised, name) == expected


def sample(number: int, variant: str, quantity: str, value: float) -> dict[str, Any]:
    case = {"backbone": "swin_t", "batch_size": 20, "part": "train"}
    return {**case, "round": number, "variant": variant, "quantity": quantity, "value": value}


def test_speed_up_is_paired_by_round() -> None:
    rates = [(10.0, 20.0), (10.0, 40.0), (40.0, 120.0)]
    samples = [
        sample(i, variant, quantity, value)
        for quantity in ("end to end", "first step", "peak memory")
        for i, values in enumerate(rates)
        for variant, value in zip(VARIANTS, values, strict=True)
    ]
    samples.append(sample(0, "optimised", "compilation", 5.0))
    table = speed_table(samples).set_index("quantity")
    assert list(table["unit"]) == ["photos/s", "s", "MB", "s"]
    assert list(table["baseline"][:3]) == [10.0] * 3
    assert list(table["optimised"]) == [40.0, 40.0, 40.0, 5.0]
    assert table["speed-up"].iloc[0] == 3.0  # median of 2, 4, 3
    assert table["speed-up"].iloc[1] == pytest.approx(1 / 3)
    assert table[["speed-up"]].iloc[2:].isna().all().all()
    assert speed_up("forward", 10.0, 5.0) == 2.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--rounds 0", "--rounds must be above 0"),
        ("--seconds nan", "--seconds must be above 0"),
        ("--batch_sizes 20 0", "--batch_sizes must be above 0"),
        ("--parts train nonsense", "invalid choice: 'nonsense'"),
        ("--num_workers -1", "--num_workers must be from 0 to 256"),
    ],
)
def test_refused_flags(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark.main(flags.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_backbones_and_missing_data_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "11k" / "sub_dataset" / "dorsal_dr.csv")
    flags = ["--attributes_file", nowhere, "--output", str(tmp_path / "out")]
    assert benchmark.main([*flags, "--backbones", "test_resnet", "resnet5"]) == 1
    assert "resnet5" in capsys.readouterr().err
    assert benchmark.main([*flags, "--backbones", "test_resnet"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error:")
    assert nowhere in error
    assert not (tmp_path / "out").exists()


def test_time_to_accuracy_of_finished_runs(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = "--backbone test_resnet --no-pretrained --image_size 32 --amp off --device cpu"
    tiny += f" --num_workers 0 --attributes_file {split_root / 'sub_dataset' / 'dorsal_dr.csv'}"
    runs = [str(tmp_path / name) for name in ("published", "frozen")]
    assert (
        train.main([*tiny.split(), *["--N_epochs", "3", "--eval_every", "1", "--run_dir"], runs[0]])
        == 0
    )
    assert (
        train.main([*tiny.split(), *["--recipe", "frozen", "--neck", "8", "--run_dir"], runs[1]])
        == 0
    )
    scores = {"published": (0.5, 0.9, 0.8), "frozen": (0.95,)}
    for name, values in scores.items():
        path = tmp_path / name / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line, score in zip(lines, values, strict=True):
            line |= {"seconds": 30.0, "val_mean_balanced_accuracy": score}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out"
    assert benchmark.main(["--runs", *runs, "--output", str(output)]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[-4:-2] == [
        [runs[0], "0.9", "0.9", "1", "1"],
        [runs[1], "0.9", "0.95", "0.5", "2"],
    ]
    assert len(pd.read_csv(output / "accuracy.csv")) == 4
    assert (output / "accuracy.png").is_file()
    split = split_root / "trainval" / "dorsal_dr" / "val.csv"
    split.write_text(split.read_text().rstrip().rpartition("\n")[0] + "\n")
    fewer = str(tmp_path / "fewer")
    assert train.main([*tiny.split(), "--N_epochs", "1", "--run_dir", fewer]) == 0
    assert benchmark.main(["--runs", *runs, fewer, "--output", str(output)]) == 1
    assert "fewer has other samples than" in capsys.readouterr().err
