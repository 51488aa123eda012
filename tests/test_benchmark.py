"""Speed: numbers by hand, a whole run on the tiny tree, and what it refuses."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

import benchmark
import dataset_11k_split
import predict
import test
import test as test_script
from benchmark import (
    PARTS,
    PLAIN,
    VARIANTS,
    BenchmarkConfig,
    Result,
    alternate,
    paired_ratios,
    rows_within,
    speed_up,
    summarise,
)
from engine.checkpoint import load_checkpoint
from train import TrainConfig
from utils import UserError

QUICK = "--backbones test_resnet --image_size 32 --batch_sizes 4 --seconds 0.02 --rounds 2"
QUICK += " --device cpu --num_workers 0 --amp off --compile off"
CASE: benchmark.Case = {"backbone": "swin_t", "batch_size": 20}
SCRIPTS: dict[str, Any] = {
    "test.py": test_script,
    "predict.py": predict,
    "dataset_11k_split.py": dataset_11k_split,
}


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark, "MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


@pytest.fixture
def attributes(split_root: Path) -> Path:
    return split_root / "sub_dataset" / "dorsal_dr.csv"


def config_of(attributes: Path, **values: Any) -> BenchmarkConfig:
    quick: dict[str, Any] = {"backbones": ("test_resnet",), "image_size": 32, "batch_sizes": (4,)}
    quick |= {"seconds": 0.02, "rounds": 1, "device": "cpu", "num_workers": 0}
    quick |= {"amp": "off", "compile": "off", "attributes_file": attributes}
    return BenchmarkConfig(**{**quick, **values})


def call_script(script: str, flags: Sequence[str | Path], _: float | None) -> dict[str, float]:
    """Do in this process what `benchmark.run_script` does in another."""
    assert SCRIPTS[script].main([*map(str, flags)]) == 0
    return {"wall_time": 1.0, "peak_memory": 2.0}


def usual_start() -> str:
    return multiprocessing.get_start_method()


# ----------------------------------------------------------------------------- numbers


def test_summary_is_median_minimum_maximum() -> None:
    assert summarise([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0, 10.0)
    assert summarise([4.0]) == (4.0, 4.0, 4.0)


def test_ratios_are_paired_by_round() -> None:
    assert paired_ratios([10.0, 30.0], [5.0, 10.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="longer"):
        paired_ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("end_to_end", [4.0, 2.0]),  # photos/s: fast over plain
        ("wall_time", [0.25, 0.5]),  # seconds: plain over fast
        ("peak_memory", []),
        ("share_of_the_smaller", []),
        ("imports", []),
    ],
)
def test_speed_up_follows_the_unit(measure: str, expected: list[float]) -> None:
    plain = Result("train", CASE, "plain", measure, [1.0, 2.0])
    fast = Result("train", CASE, "fast", measure, [4.0, 4.0])
    assert speed_up(plain, fast) == expected


def test_variants_alternate_and_every_other_round_goes_back() -> None:
    order: list[str] = []

    def measure(variant: str) -> dict[str, float]:
        order.append(variant)
        return {"end_to_end": float(len(order))}

    samples = alternate(3, ("plain", "fast"), measure)
    assert order == ["plain", "fast", "fast", "plain", "plain", "fast"]
    assert samples == {"plain": {"end_to_end": [1, 4, 5]}, "fast": {"end_to_end": [2, 3, 6]}}


@pytest.mark.parametrize(
    ("seconds", "rate", "expected"),
    [(10, 20, 200), (10, 21.9, 200), (10, 1, 40), (10, 1e6, 1002), (0, 5, 40)],
)
def test_rows_within_seconds(seconds: float, rate: float, expected: int) -> None:
    assert rows_within(seconds, rate, n_rows=1002, batch_size=20) == expected


def test_break_even_is_where_what_was_gained_covers_the_compiling() -> None:
    assert benchmark.break_even_steps(100, before=3.0, after=1.0) == 50
    assert benchmark.break_even_steps(101, before=3.0, after=1.0) == 51
    assert benchmark.break_even_steps(100, before=1.0, after=1.0) is None


def test_a_result_tells_its_unit_and_spread() -> None:
    result = Result("train", CASE, "fast", "end_to_end", [1.0, 4.0, 2.0])
    assert result.to_json() == {
        "part": "train",
        "case": CASE,
        "variant": "fast",
        "measure": "end_to_end",
        "samples": [1.0, 4.0, 2.0],
        "unit": "photos/s",
        "median": 2.0,
        "minimum": 1.0,
        "maximum": 4.0,
    }


def test_table() -> None:
    results = [
        Result("train", CASE, "plain", "end_to_end", [10.0, 12.0, 11.0]),
        Result("train", CASE, "fast", "end_to_end", [100.0, 1200.0, 110.0]),
        Result("train", CASE, "fast", "share_of_the_smaller", [0.95, 0.9, 0.97]),
        Result("split", {"rows": 100}, "fast", "wall_time", [2.5]),
    ]
    assert benchmark.table_lines(results) == [
        "train: backbone swin_t, batch size 20",
        "                                   plain                 fast         speed-up",
        "  end to end, photos/s  11.0 (10.0-12.0)      110 (100-1,200)  10.0 (10.0-100)",
        "  share of the smaller                    0.950 (0.900-0.970)",
        "",
        "split: rows 100",
        "  wall time, s  2.50",
    ]


# ----------------------------------------------------------------------------- instruments


def test_rate_counts_all_photos_over_all_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 8.0])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    assert benchmark.measure_rate(lambda: 12, 16, torch.device("cpu")) == 36 / 8


def test_matrix_product_is_counted_as_two_operations_per_multiply_add(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 0.5])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    rate = benchmark.matrix_flops(torch.float32, torch.device("cpu"), 0.1)
    assert rate == pytest.approx(2 * 64**3 / 0.5 / 1e12)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of other processes")
def test_a_command_is_measured_by_its_own_peak() -> None:
    code = "import time; held = bytearray(200_000_000); del held; time.sleep(0.2)"
    measured = benchmark.run_command(["-c", code])
    assert measured["wall_time"] > 0.2
    assert 200 < measured["peak_memory"] < 300  # this process has far more


def test_a_failing_command_is_named_with_its_last_line() -> None:
    with pytest.raises(UserError, match=r"ended with 3: what was wrong$"):
        benchmark.run_command(
            ["-c", "import sys; print('first\\nwhat was wrong', file=sys.stderr); sys.exit(3)"]
        )


@pytest.mark.slow  # half a minute of imports on a busy machine
def test_a_new_process_starts_its_workers_as_train_does() -> None:
    assert benchmark.in_new_process(usual_start) == multiprocessing.get_start_method()


# ----------------------------------------------------------------------------- whole runs


def test_end_to_end(attributes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out" / "benchmark.json"
    flags = [*QUICK.split(), "--attributes_file", str(attributes), "--output", str(output)]
    assert benchmark.main([*flags, "--parts", "train", "evaluate", "cache"]) == 0
    stored = json.loads(output.read_text())
    assert stored["format"] == 1
    assert stored["commit"]
    assert stored["environment"]["device"] == "cpu"
    assert stored["config"]["backbones"] == ["test_resnet"]
    assert stored["plain"] == PLAIN
    found = {(r["part"], r["variant"], r["measure"]): r for r in stored["results"]}
    for variant in VARIANTS:
        train = {m: r["samples"] for (p, v, m), r in found.items() if (p, v) == ("train", variant)}
        assert set(train) == {
            *("data_alone", "model_alone", "end_to_end", "share_of_the_smaller"),
            *("step_flops", "matrix_flops", "share_of_matrix_product"),
        }
        for i in range(2):
            smaller = min(train["data_alone"][i], train["model_alone"][i])
            assert train["share_of_the_smaller"][i] == train["end_to_end"][i] / smaller
        assert ("evaluate", variant, "evaluation") in found
    assert {m for p, _, m in found if p == "cache"} == {"build", "open_again"}
    for result in stored["results"]:
        assert len(result["samples"]) == 2
        assert all(math.isfinite(value) and value > 0 for value in result["samples"])
    assert {s["measure"] for s in stored["speed_ups"]} == {
        *("data_alone", "model_alone", "end_to_end", "evaluation"),
    }
    with Image.open(output.with_suffix(".png")) as picture:
        assert min(picture.size) > 400
    told = capsys.readouterr().out
    assert "train: backbone test_resnet, batch size 4, image size 32" in told
    assert "end to end, photos/s" in told
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "benchmark.json",
        "benchmark.png",
    ]


def test_flops_of_a_step_are_thrice_those_of_a_forward_pass(
    attributes: Path, tmp_path: Path
) -> None:
    config = config_of(attributes).training("plain", "test_resnet", 4, tmp_path)
    variant = benchmark.prepare(config, train.read_run_data(config), tmp_path)
    batch = variant.batch_on_device()
    assert batch.images.shape == (4, 3, 32, 32)
    with benchmark.FlopCounterMode(display=False) as forward:
        variant.run.model(batch.images)
    once = forward.get_total_flops()
    # the first layer's images need no gradient
    assert 2.5 * once < benchmark.count_flops(variant, batch) <= 3 * once


def test_a_batch_larger_than_the_data_is_filled_up(attributes: Path, tmp_path: Path) -> None:
    config = config_of(attributes).training("plain", "test_resnet", 50, tmp_path)
    variant = benchmark.prepare(config, train.read_run_data(config), tmp_path)
    assert variant.batch_on_device().images.shape == (50, 3, 32, 32)


def test_first_step(attributes: Path, tmp_path: Path) -> None:
    config = config_of(attributes).training("fast", "test_resnet", 4, tmp_path)
    measured = benchmark.first_step(config, False, tmp_path, benchmark.time.time() - 100)
    assert 100 <= measured["imports"] < measured["first_step"] < 200
    assert measured["peak_above_imports"] >= 0


def test_plain_is_the_published_way(attributes: Path, tmp_path: Path) -> None:
    config = config_of(attributes, num_workers=3, cache="ram")
    plain, fast = (config.training(v, "swin_t", 20, tmp_path) for v in ("plain", "fast"))
    assert (plain.cache, plain.num_workers, plain.fast_decode) == ("none", 0, False)
    assert (plain.amp, plain.compile, plain.augment) == ("off", "off", "photo")
    assert (fast.cache, fast.num_workers, fast.fast_decode) == ("ram", 3, True)
    untouched = ("lr", "batch_size", "N_epochs", "image_size", "optimizer", "flip", "jitter")
    assert all(
        getattr(plain, n) == getattr(TrainConfig(), n) for n in untouched if n != "image_size"
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_what_has_no_flag_is_as_published_in_plain_alone(
    name: str, attributes: Path, tmp_path: Path
) -> None:
    config = config_of(attributes).training(name, "test_resnet", 4, tmp_path)
    torch.use_deterministic_algorithms(True)
    plain = name == "plain"
    variant = benchmark.prepare(config, train.read_run_data(config), tmp_path, plain=plain)
    layout = torch.contiguous_format if plain else torch.channels_last
    kernels = [p for p in variant.run.model.parameters() if p.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=layout) for kernel in kernels)
    groups = variant.run.optimizer.param_groups
    assert [(g["fused"], g["foreach"]) for g in groups] == [(None if plain else True, None)] * 2
    seen: list[tuple[bool, bool]] = []

    def look(_: Any, images: tuple[torch.Tensor]) -> None:
        in_layout = images[0].is_contiguous(memory_format=layout)
        seen.append((in_layout, torch.are_deterministic_algorithms_enabled()))

    variant.run.model.backbone.register_forward_pre_hook(look)
    variant.train_in_place(variant.batch_on_device(), 1)
    variant.train_rows(4)
    variant.evaluate(4)
    assert seen == [(True, not plain)] * 3
    assert torch.are_deterministic_algorithms_enabled()


def test_scripts_and_split(
    attributes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark, "run_script", call_script)
    monkeypatch.setattr(benchmark, "run_imports", lambda *modules: {"peak_memory": 1.0})
    monkeypatch.setattr(test, "plot_results", lambda *arguments: None)
    config = config_of(attributes, script_photos=(3, 30), split_rows=(200,))
    data = train.read_run_data(config.training("fast", "test_resnet", 4, tmp_path))
    results = list(benchmark.measure_scripts(config, "test_resnet", data, tmp_path))
    assert len(results) == 2 * 2 * 2 * 2  # sizes, scripts, variants, measures
    said = capsys.readouterr().out
    assert said.count("3 photos of ") == 2
    assert said.count("30 photos of ") == 2
    assert sum(line.startswith('{"photo"') for line in said.splitlines()) == 2 * (3 + 30)
    states = [load_checkpoint(path) for path in sorted(tmp_path.glob("run-*/*.pth"))]
    assert {state["resolved"]["decode_size"] for state in states} == {0, 74}
    assert all(state["optimizer"]["state"] for state in states)  # its size is a real one's
    split = list(benchmark.measure_split(config, tmp_path / "made_up"))
    assert [(r.case, r.measure) for r in split] == [
        ({"rows": 200}, "wall_time"),
        ({"rows": 200}, "peak_memory"),
    ]
    assert not list((tmp_path / "made_up").iterdir())


def test_help_and_imports_of_every_script(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def take_seconds(arguments: Sequence[Any]) -> dict[str, float]:
        if arguments[0] == "-c":  # the imports take as many seconds as there are modules
            return {"wall_time": len(arguments) - 3.0}
        told.append(arguments[0].name)
        return {"wall_time": 0.5} if arguments[1] == "--help" else {}

    monkeypatch.setattr(benchmark, "run_command", take_seconds)
    results = list(benchmark.measure_help(2))
    scripts = sorted({str(r.case["script"]) for r in results})
    assert {"train.py", "test.py", "predict.py", "benchmark.py"} <= set(scripts)
    assert told == [script for script in scripts for _ in range(2)]
    assert not {"utils.py", "engine.py", "benchmark.py"} & set(scripts)
    found = {r.measure: r.samples for r in results}
    assert found == {"help": [0.5, 0.5], "imports_above_torch_and_timm": [1.0, 1.0]}


def test_made_up_hand_info_is_as_large_as_asked_and_splits(tmp_path: Path) -> None:
    benchmark.write_hand_info(600, tmp_path / "made_up")
    table = pd.read_csv(tmp_path / "made_up" / "HandInfo.csv", dtype=str)
    assert len(table) == 600
    assert table["id"].nunique() == 11
    assert table.groupby("id")["age"].nunique().max() == 1
    assert dataset_11k_split.main(["--input", str(tmp_path / "made_up")]) == 0


# ----------------------------------------------------------------------------- errors


def test_missing_data_tells_how_to_draw_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "11k" / "sub_dataset" / "dorsal_dr.csv")
    assert benchmark.main(["--attributes_file", nowhere, "--output", f"{tmp_path}/b.json"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {nowhere} not found")
    assert "dataset_11k_synthetic.py" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--rounds 0", "--rounds must be above 0"),
        ("--seconds nan", "--seconds must be above 0"),
        ("--batch_sizes 20 0", "--batch_sizes must be above 0"),
        ("--parts train nonsense", "invalid choice: 'nonsense'"),
        ("--output table.png", "--output must end in .json"),
        ("--num_workers -1", "--num_workers must be a number from 0"),
    ],
)
def test_refused_flags(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark.main(flags.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_backbone_is_refused_before_anything_is_measured(
    attributes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*QUICK.split(), "--attributes_file", str(attributes), "--output", f"{tmp_path}/b.json"]
    assert benchmark.main([*flags, "--backbones", "test_resnet", "resnet5"]) == 1
    assert "unknown backbone 'resnet5'" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_at_once(
    attributes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "b.json")
    flags = [*QUICK.split(), "--attributes_file", str(attributes), "--output", output]
    assert benchmark.main(flags) == 1
    assert f"cannot write {output}" in capsys.readouterr().err


def test_former_results_stay_until_there_are_new_ones(
    attributes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "benchmark.json"
    output.write_text("former")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure_all", interrupted)
    flags = [*QUICK.split(), "--attributes_file", str(attributes), "--output", str(output)]
    assert benchmark.main(flags) == 130
    assert output.read_text() == "former"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_measured_processes_end_with_a_killed_benchmark(tmp_path: Path) -> None:
    code = "import os, signal, speed\nif __name__ == '__main__':\n"
    code += "    with benchmark.own_process() as call:\n"
    code += "        print(call(os.getpid), flush=True)\n"
    code += "        os.kill(os.getpid(), signal.SIGKILL)\n"
    script = tmp_path / "killed.py"
    script.write_text(code)
    there = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=there, check=False
    )
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while Path(f"/proc/{done.stdout.strip()}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_every_part_in_its_own_processes(attributes: Path, tmp_path: Path) -> None:
    output = tmp_path / "benchmark.json"
    flags = [*QUICK.split(), "--attributes_file", str(attributes), "--output", str(output)]
    flags += ["--rounds", "1", "--script_photos", "5", "--split_rows", "500"]
    assert benchmark.main([*flags, "--parts", *PARTS]) == 0
    stored = json.loads(output.read_text())
    assert {r["part"] for r in stored["results"]} == set(PARTS)
    measures = {r["measure"] for r in stored["results"]}
    assert {"first_step_with_empty_cache", "compile_again", "peak_above_imports"} <= measures
