"""compare.py: flags, plans, running, resuming, tables, figure, differences."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

import compare
import dataset_11k_split
import test as test_script
import train
from compare import Cell, EvaluatedRun
from data.splits import PROTOCOLS
from dataset_11k import AGE_GROUPS, GENDERS, TASKS
from measures import registry
from measures.intervals import people_mean
from measures.metrics_json import compute_metrics, to_json
from measures.registry import MEASURES, Measure
from utils import UserError, logger

QUICK = "--no-pretrained --image_size 32 --amp off --device cpu --num_workers 0"
QUICK += " --batch_size 8 --N_epochs 2 --eval_every 1 --no-cache"
BOTH = ("test_resnet", "test_efficientnet")
N_PEOPLE = 12


@pytest.fixture
def root(split_root: Path) -> Path:
    """Splits of `paper`, and of `subject-disjoint` in three folds."""
    draw = ["--input", str(split_root), "--protocol", "subject-disjoint", "--folds", "3"]
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        assert dataset_11k_split.main(draw) == 0
    return split_root


class Children:
    """Stands for `subprocess`: runs the scripts in this process, and remembers which."""

    DEVNULL, STDOUT = subprocess.DEVNULL, subprocess.STDOUT

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fails: Callable[[list[str]], bool] = lambda command: False

    def run(self, command: list[str], *, stdout: IO[str], **options: Any) -> Any:
        self.commands.append(command)
        if self.fails(command):
            print("error: the disk is full", file=stdout, flush=True)
            return SimpleNamespace(returncode=1)
        script = {"train.py": train, "test.py": test_script}[Path(command[1]).name]
        handlers, level = list(logger.handlers), logger.level
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
            code = script.main(command[2:])
        stdout.flush()
        logger.handlers, logger.level = handlers, level
        return SimpleNamespace(returncode=code)

    def scripts(self) -> list[str]:
        """Return the names of the scripts that have run, and forget them."""
        names = [Path(command[1]).name for command in self.commands]
        self.commands.clear()
        return names


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    stand_in = Children()
    monkeypatch.setattr(compare, "subprocess", stand_in)
    return stand_in


def flags_of(root: Path, output: Path, *more: str, backbones: Sequence[str] = BOTH) -> list[str]:
    flags = ["--backbones", *backbones, "--input", str(root), "--output", str(output)]
    return [*flags, *QUICK.split(), *more]


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def epochs_of(run_dir: Path) -> list[int]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


# ----------------------------------------------------------------------------- flags and plans


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "give --backbones, --add or --difference"),
        ("--backbones a a", "--backbones: a value is repeated"),
        ("--backbones x/a x:a", "two would share a folder"),
        ("--backbones a --processes 0", "--processes must be above 0, not 0"),
        ("--backbones a --protocols paper --folds 0", "--protocols paper have no folds"),
        ("--backbones a --protocols papers", "invalid choice: 'papers'"),
        ("--backbones a --backbone_weights w.pth", "w.pth: expected NAME=FILE"),
        ("--backbones a --backbone_weights b=w.pth", "NAME one of --backbones"),
        ("--backbones a --backbone_weights a=v a=w", "two files for one backbone"),
        ("--backbones a --seed 3", "--seed is set for every run; give --seeds"),
        ("--backbones a --run_dir b", "--run_dir is set for every run; give --output"),
        ("--backbones a --lrate 3", "unrecognized arguments: --lrate 3"),
        ("--backbones a --lr -1", "--lr must be a number above 0, not -1.0"),
        ("--add a --lr 1e-3", "--lr is a flag of train.py, and needs --backbones"),
        ("--add a --seeds 1", "--seeds needs --backbones"),
        ("--backbones a --shard 3/2", "--shard 3/2: expected I/N"),
        ("--difference a b --backbones c", "--difference goes with --output only"),
    ],
)
def test_refused_flags(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare.main(flags.split())
    assert stopped.value.code == 2
    assert message in last_error(capsys)


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        ("--aspects dorsal", ["{root}/sub_dataset/dorsal.csv"]),
        ("--protocols burst", ["{root}/trainval/burst", "--protocol burst"]),
        ("--folds 1 3", ["subject-disjoint", "3"]),
        ("--backbone_weights test_resnet={root}/w", ["--backbone_weights: not found: {root}/w"]),
        ("--input {root}/nowhere", ["{root}/nowhere", "dataset_11k_split.py"]),
        ("--add {root}/nowhere", ["no checkpoint-NNNNNN-best.pth in {root}/nowhere"]),
        ("--backbones no_net", ["no_net"]),
        ("--output {root}/HandInfo.csv", ["{root}/HandInfo.csv"]),
    ],
)
def test_missing_inputs_are_refused_before_the_first_run(
    flags: str,
    messages: list[str],
    root: Path,
    tmp_path: Path,
    children: Children,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = flags_of(root, tmp_path / "out", *flags.format(root=root).split())
    if "weights" in flags:
        given.remove("--no-pretrained")
    assert compare.main(given) == 1
    said = last_error(capsys)
    assert said.startswith("error: ")
    for message in messages:
        assert message.format(root=root) in said
    assert not (tmp_path / "out").exists()
    assert children.scripts() == []


def test_devices_are_gpus_or_shares_of_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compare, "usable_cpus", lambda: 8)
    for n_gpus, visible, n_processes, expected in (
        (0, "", 1, [{}]),
        (0, "", 3, [{"OMP_NUM_THREADS": "2"}] * 3),
        (2, "", 3, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "010"]),
        (2, "5,7", 2, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "57"]),
    ):
        monkeypatch.setattr("torch.cuda.device_count", lambda n_gpus=n_gpus: n_gpus)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert list(compare.device_queue(n_processes).queue) == expected


# ----------------------------------------------------------------------------- runs


def test_two_recipes_in_two_shards(
    root: Path, tmp_path: Path, children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    flags = flags_of(root, output, "--protocols", "paper", backbones=BOTH[:1])
    flags += ["--recipes", "published", "frozen", "--neck", "8"]
    assert compare.main([*flags, "--shard", "1/2"]) == 0
    assert children.scripts() == ["train.py", "test.py"]
    assert "Incomplete: 1 runs" in capsys.readouterr().out
    assert compare.main([*flags, "--shard", "2/2"]) == 0
    assert children.scripts() == ["train.py", "test.py"]
    text = capsys.readouterr().out
    assert "| `test_resnet-frozen` | `dorsal_dr` | `paper` |" in text
    assert "Incomplete" not in text
    assert pd.read_csv(output / "results.csv")["recipe"].tolist() == ["published", "frozen"]
    differences = pd.read_csv(output / "differences.csv")
    assert set(differences["second"]) == {"test_resnet-frozen"}
    assert compare.main([*flags, "--dry_run"]) == 0
    assert "2 of 2 runs finished" in capsys.readouterr().out
    assert compare.main([*flags, "--dry_run", "--shard", "2/2"]) == 0
    assert "1 of 1 runs finished" in capsys.readouterr().out


def test_two_backbones_under_two_protocols(
    root: Path, tmp_path: Path, children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    flags = flags_of(root, output, "--folds", "0", "1")
    assert compare.main([*flags, "--dry_run"]) == 0
    assert "dorsal_dr-paper-test_resnet-seed_42: not started" in capsys.readouterr().out
    assert not output.exists()

    assert compare.main(flags) == 0
    assert children.scripts() == ["train.py", "test.py"] * 6
    table = pd.read_csv(output / "results.csv")
    assert len(table) == 6
    for _, line in table.iterrows():
        metrics = json.loads((output / line["evaluation"] / "metrics.json").read_text())
        for key in ("backbone", "aspect", "protocol", "seed", "split", "epoch", "n_images"):
            assert line[key] == metrics[key]
        for task in ("gender", "age"):
            block = metrics["tasks"][task]
            assert line[f"{task}_balanced_accuracy"] == block["balanced_accuracy"]
            expected = block["intervals"]["balanced_accuracy"]["high"]
            assert line[f"{task}_balanced_accuracy_high"] == expected
            expected = block["baselines"]["constant"]["balanced_accuracy"]
            assert line[f"{task}_balanced_accuracy_constant"] == expected
        identity = metrics["tasks"]["identity"]
        if line["protocol"] == "paper":
            assert line["identity_balanced_accuracy"] == identity["balanced_accuracy"]
            assert np.isnan(line["identity_rank_1"])
        else:
            assert line["identity_rank_1"] == identity["matching"]["all_pairs"]["rank_1"]
            assert line["identity_rank_1_chance"] == 1 / 2  # two people a fold
            assert np.isnan(line["identity_balanced_accuracy"])
    for result in compare.read_results_csv(
        output
    ):  # one run has the interval that test.py computed
        columns = compare.headline_columns(result.metrics["tasks"])
        averages = compare.RowAverages(result.cell.row, (result,), 3)
        assert len(averages.intervals) >= 5
        for measure, found in averages.intervals.items():
            names = [f"{'_'.join(measure)}{end}" for end in ("", "_low", "_high")]
            stored = [columns.get(name, np.nan) for name in names]
            assert [found.value, found.low, found.high] == pytest.approx(
                stored, abs=1e-12, nan_ok=True
            )

    before = {path: path.read_bytes() for path in output.glob("*.*") if path.suffix != ".log"}
    assert {path.name for path in before} >= {"differences.csv", "table.md", "comparison.png"}
    assert compare.main(flags) == 0
    assert children.scripts() == []  # finished runs are skipped
    assert all(path.read_bytes() == content for path, content in before.items())

    (output / table["evaluation"][0] / "metrics.json").unlink()
    assert compare.main(flags) == 0
    assert children.scripts() == ["train.py", "test.py"]
    assert epochs_of(output / "dorsal_dr-paper-test_resnet-seed_42") == [1, 2]
    assert (output / "results.csv").read_bytes() == before[output / "results.csv"]


def test_half_is_compared_by_embeddings(root: Path, tmp_path: Path, children: Children) -> None:
    assert dataset_11k_split.main(["--input", str(root), "--protocol", "half"]) == 0
    flags = flags_of(root, tmp_path / "out", "--protocols", "half", backbones=BOTH[:1])
    assert compare.main(flags) == 0
    (line,) = pd.read_csv(tmp_path / "out" / "results.csv").to_dict("records")
    assert (line["protocol"], line["split"]) == ("half", "test")
    assert np.isnan(line["fold"])
    assert line["identity_rank_1_chance"] == pytest.approx(1 / 3)
    assert "%) among 3 |" in (tmp_path / "out" / "table.md").read_text()


def test_repeats_of_lists_are_averaged_with_their_standard_deviation(
    hands_root: Path, lists_dir: Path, tmp_path: Path, children: Children
) -> None:
    draw = ["--input", str(hands_root), "--protocol", "lists", "--lists", str(lists_dir)]
    assert dataset_11k_split.main(draw) == 0
    more = ["--protocols", "lists", "--aspects", "palmar", "--tasks", "gender"]
    flags = flags_of(hands_root, tmp_path / "out", *more, backbones=BOTH[:1])
    assert compare.main(flags) == 0
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert list(results["fold"]) == [0, 1]
    scores = results["gender_balanced_accuracy"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| 2 folds, seed 42 |" in text
    section = text.split("## gender: balanced accuracy\n")[1].split("##")[0]
    head, _, row = (line.split(" | ") for line in section.strip().splitlines())
    assert head[5] == "SD over folds"
    assert row[4].startswith(f"{100 * scores.mean():.1f}\u00a0% (")
    assert row[5] == f"{100 * statistics.stdev(scores):.1f}\u00a0%"


def test_a_failing_run_stops_no_other_and_is_repeated(
    root: Path, tmp_path: Path, children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = flags_of(root, tmp_path / "out", "--protocols", "paper")
    children.fails = lambda command: BOTH[0] in command
    assert compare.main(flags) == 1
    log = tmp_path / "out" / "dorsal_dr-paper-test_resnet-seed_42.log"
    assert last_error(capsys) == f"error: {log.stem} failed: the disk is full ({log})"
    assert list(pd.read_csv(tmp_path / "out" / "results.csv")["backbone"]) == [BOTH[1]]
    assert "1 runs are not finished" in (tmp_path / "out" / "table.md").read_text()
    children.fails = lambda command: False
    children.scripts()
    assert compare.main(flags) == 0
    assert children.scripts() == ["train.py", "test.py"]
    assert list(pd.read_csv(tmp_path / "out" / "results.csv")["backbone"]) == list(BOTH)
    assert "not finished" not in (tmp_path / "out" / "table.md").read_text()


def test_an_interrupted_run_resumes(
    root: Path,
    tmp_path: Path,
    children: Children,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = flags_of(root, tmp_path / "out", "--protocols", "paper", backbones=BOTH[:1])
    folder = tmp_path / "out" / "dorsal_dr-paper-test_resnet-seed_42"
    real = train.train_one_epoch

    def interrupted(*args: Any, epoch: int, **kwargs: Any) -> dict[str, float | None]:
        if epoch == 2:
            raise KeyboardInterrupt
        return real(*args, epoch=epoch, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_one_epoch", interrupted)
        assert compare.main(flags) == 1
    assert epochs_of(folder) == [1]
    assert compare.main([*flags, "--dry_run"]) == 0
    assert "epoch 1 of 2" in capsys.readouterr().out
    children.scripts()
    assert compare.main([*flags, "--num_workers", "1"]) == 0
    assert "--resume" in children.commands[0]
    assert children.scripts() == ["train.py", "test.py"]
    assert epochs_of(folder) == [1, 2]


def test_a_folder_of_other_settings_or_samples_is_refused(
    root: Path, tmp_path: Path, children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    flags = flags_of(root, output, "--protocols", "paper", backbones=BOTH[:1])
    assert compare.main(flags) == 0
    folder = output / "dorsal_dr-paper-test_resnet-seed_42"
    for more in ("--lr 1e-3", "--N_epochs 3", "--patience 1", "--no-warmup"):
        assert compare.main([*flags, *more.split()]) == 1
        said = last_error(capsys)
        assert more.split()[0].replace("no-", "") in said
        assert str(folder) in said
    children.scripts()
    train_csv = root / "trainval" / "dorsal_dr" / "train.csv"
    train_csv.write_text("\n".join(train_csv.read_text().splitlines()[:-1]) + "\n")
    assert compare.main(flags) == 1
    assert "samples of train have changed" in last_error(capsys)
    (folder / "config.json").unlink()
    assert compare.main(flags) == 1
    assert f": {folder}. Give a folder that train.py made" in last_error(capsys)
    assert children.scripts() == []


def test_a_run_made_elsewhere_is_added(
    root: Path, tmp_path: Path, children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere, output = tmp_path / "elsewhere", tmp_path / "out"
    given = ["--attributes_file", str(root / "sub_dataset" / "dorsal_dr.csv"), *QUICK.split()]
    given += ["--backbone", BOTH[0], "--seed", "7", "--run_dir", str(elsewhere)]
    assert train.main(given) == 0
    add = ["--add", str(elsewhere)]
    assert compare.main([*add, "--input", str(tmp_path), "--output", str(output)]) == 1
    assert f"--add: {elsewhere} is not evaluated yet, and not found" in last_error(capsys)
    flags = flags_of(root, output, "--protocols", "paper", *add)
    assert compare.main(flags) == 0
    assert children.scripts() == ["train.py", "test.py"] * 2 + ["test.py"]
    table = pd.read_csv(output / "results.csv")
    assert list(table["seed"]) == [42, 42, 7]
    assert Path(table["evaluation"][2]).parent == elsewhere
    text = (output / "table.md").read_text()
    assert f"| `{BOTH[0]}` | `dorsal_dr` | `paper` | seeds 7 42 |" in text

    alone = tmp_path / "alone"
    for place, n_runs in ((alone, 1), (output, 3)):  # beside what the table has already
        assert compare.main(["--input", str(root), "--output", str(place), *add]) == 0
        assert len(pd.read_csv(place / "results.csv")) == n_runs
    assert children.scripts() == []

    assert compare.main([*flags, "--seeds", "7"]) == 1
    assert f"two runs of dorsal_dr-paper-{BOTH[0]}-seed_7" in last_error(capsys)
    assert compare.main([*flags_of(root, tmp_path / "more", "--lr", "1e-3"), *add]) == 1
    assert "--lr 0.001" in last_error(capsys)
    stored = json.loads((elsewhere / "config.json").read_text())
    stored["config"]["N_epochs"] = 9
    (elsewhere / "config.json").write_text(json.dumps(stored))
    assert compare.main(["--input", str(root), "--output", str(alone), *add]) == 1
    assert "stopped at epoch 2 of 9" in last_error(capsys)


def test_one_comparison_at_a_time(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with FileLock(output / ".lock"):
        assert compare.main(flags_of(root, output, "--protocols", "paper")) == 1
    assert "another compare.py is running in" in last_error(capsys)


# ----------------------------------------------------------------------------- results


def made_up_run(folder: Path, cell: Cell, skill: float = 1.0, **more: Any) -> EvaluatedRun:
    """Return a run of a model that guesses, with its evaluation in `folder`."""
    unseen = "test" in PROTOCOLS[cell.protocol].unseen
    draw = np.random.default_rng([cell.seed, cell.fold or 0, len(cell.backbone)])
    person = np.random.default_rng(0).permutation(np.repeat(np.arange(N_PEOPLE), 6))
    n_photos = len(person)
    arrays: dict[str, Any] = {
        "people": np.array([f"{cell.fold}-{number:02}" for number in person]),
        "age_years": 18 + person,
        "frame_number": np.arange(n_photos) * 10.0,
        "embedding": draw.normal(size=(n_photos, 5)) + np.eye(N_PEOPLE, 5)[person],
        "mean_ages": np.array([19.0, 21, 22, 23, 27, 40]),
    }
    classes = {
        "identity": [f"{i:02}" for i in range(N_PEOPLE)],
        "gender": list(GENDERS),
        "age": list(AGE_GROUPS),
        **{task: ["a", "b", "c"] for task in more.get("tasks", ())},
    }
    for task, names in classes.items():
        true = person % len(names)
        logits = draw.normal(size=(n_photos, len(names))) + skill * np.eye(len(names))[true]
        arrays[f"{task}_true"] = np.full(n_photos, -1) if unseen and task == "identity" else true
        arrays |= {f"{task}_logits": logits, f"{task}_classes": np.array(names)}
        arrays[f"{task}_temperature"] = np.array(1.5)
        arrays[f"{task}_train_counts"] = np.arange(1, len(names) + 1)
        arrays[f"{task}_of_identity"] = np.arange(N_PEOPLE) % len(names)
    if unseen:
        photos = [np.flatnonzero(person == one) for one in range(N_PEOPLE)]
        arrays["galleries"] = np.array([[draw.choice(p) for p in photos] for _ in range(3)])
    tasks = to_json(compute_metrics(arrays, list(classes), unseen=unseen))
    facts = {"checkpoint": "c", "epoch": 1, "split": "test", "n_people": N_PEOPLE}
    folder = folder / cell.name()
    folder.mkdir(parents=True)
    np.savez(folder / "predictions.npz", **arrays)
    metrics = {**facts, "n_images": n_photos, "tasks": tasks}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    found = compare.read_evaluation(cell, folder)
    assert found
    return found


def write_all(results: Sequence[EvaluatedRun], output: Path) -> dict[str, Any]:
    """Write what compare.py writes about results; return the tables."""
    averages = compare.average_rows(results, output)
    differences = compare.differences_table(averages)
    settings = {average.row: "--N_epochs 3" for average in averages}
    compare.write_csv(compare.results_table(results, output), output / "results.csv")
    compare.plot_comparison(averages, output / "comparison.png")
    text = compare.table_text(averages, settings, differences, 0)
    results_csv = pd.read_csv(output / "results.csv")
    return {"table": text, "differences": differences, "results": results_csv}


def test_the_tables_average_folds_and_seeds_and_name_what_is_missing(tmp_path: Path) -> None:
    cells = [
        Cell("dorsal_dr", "subject-disjoint", backbone, fold, seed)
        for backbone in ("net", "better")
        for fold, seed in ((0, 1), (0, 2), (1, 1))
    ]
    cells.append(Cell("dorsal_dr", "paper", "net", None, 1))
    runs = [made_up_run(tmp_path, c, skill=1 + 3 * (c.backbone == "better")) for c in cells]
    written = write_all(runs, tmp_path)
    text = written["table"]
    assert "**2 of 5 folds**, seeds 1 2, **3 of 4 runs** | 144 | – | `--N_epochs 3` |" in text
    assert "| `net` | `dorsal_dr` | `paper` | seed 1 | 72 |" in text
    for title in ("identity: balanced accuracy", "identity: rank-1", "gender: ROC AUC"):
        assert f"## {title}\n" in text
    section = text.split("## gender: balanced accuracy\n")[1].split("##")[0]
    accuracy = [run.metrics["tasks"]["gender"]["balanced_accuracy"] for run in runs[:3]]
    mean = ((accuracy[0] + accuracy[1]) / 2 + accuracy[2]) / 2
    line = next(line for line in section.splitlines() if "`net` | `dorsal_dr` | `subject" in line)
    assert f"| {100 * mean:.1f}\u00a0% (" in line
    assert "constant | identity lookup |" in section
    differences = written["differences"]
    assert set(zip(differences["first"], differences["second"], strict=True)) == {("net", "better")}
    assert set(differences["folds"]) == {"0 1"}
    gender = differences[differences["task"] == "gender"].iloc[0]
    assert gender["difference"] < gender["high"] < 0
    assert set(differences["seeds"]) == {1}  # in fold 1
    assert gender["p_value"] < 0.05
    assert gender["significant"] == (gender["p_value_holm"] < 0.05)
    assert "Differences with 1 seed of each backbone are between these two trained models" in text


def test_an_average_over_different_draws_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells = [Cell("dorsal_dr", "stratified", "net", None, seed) for seed in (1, 2)]
    runs = [made_up_run(tmp_path, cell) for cell in cells]
    compare.average_rows(runs, tmp_path)
    assert not caplog.text
    path = runs[1].folder / "predictions.npz"
    with np.load(path) as stored:
        arrays = {**stored, "frame_number": stored["frame_number"] + 1}
    np.savez(path, **arrays)
    for _ in range(2):
        again = [replace(found) for found in runs]
        compare.average_rows(again, tmp_path)
    message = "net, dorsal_dr, stratified: the average is over different draws of the split"
    assert caplog.text.count(message) == 1


def test_rows_of_the_table_can_be_compared_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [("net", 0, 1), ("net", 1, 1), ("better", 0, 1)]
    cells = [Cell("dorsal_dr", "subject-disjoint", *key) for key in keys]
    cells.append(Cell("dorsal_dr", "paper", "net", None, 1))
    runs = [made_up_run(tmp_path, cell) for cell in cells]
    differences = write_all(runs, tmp_path)["differences"]
    names = ["dorsal_dr-subject-disjoint-fold_0-net", "dorsal_dr-subject-disjoint-better"]
    command = ["--output", str(tmp_path), "--difference"]
    assert compare.main([*command, *names]) == 0
    told = capsys.readouterr().out
    years = differences[differences["measure"] == "mae_years"].iloc[0]
    assert f"{years['difference']:.1f}\u00a0years" in told
    assert "identity: rank-1" in told
    assert "not include the variation between seeds. Significance has Holm's correction for" in told
    assert set(differences["seeds"]) == {1}
    for other, reason in {
        "dorsal_dr-paper-net": "different protocols",
        "dorsal_dr-subject-disjoint-net": r"different folds (0; 0 1)",
        "palmar_pr-paper-net": "no row palmar_pr-paper-net. Available: dorsal_dr-paper-net, ",
    }.items():
        assert compare.main([*command, names[0], other]) == 1
        assert reason in last_error(capsys)
    with np.load(runs[2].folder / "predictions.npz") as stored:
        arrays = {**stored, "frame_number": stored["frame_number"] + 1}
    np.savez(runs[2].folder / "predictions.npz", **arrays)
    assert compare.main([*command, *names]) == 1
    assert "different photos" in last_error(capsys)


def test_a_new_task_and_a_new_measure_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        TASKS, "skin", replace(TASKS["gender"], title="skin tone", classes=("a", "b", "c"))
    )
    off = Measure(
        "half_off",
        "half of the error",
        "Half of the error rate.",
        lambda p: people_mean((p.true != p.predicted) / 2, p.people),
        unit=registry.YEARS,
        higher_is_better=False,
        headline=True,
    )
    monkeypatch.setitem(MEASURES, off.key, off)
    cells = [Cell("dorsal_dr", "paper", backbone, None, 1) for backbone in ("net", "other")]
    runs = [made_up_run(tmp_path, cell, tasks=["skin"]) for cell in cells]
    drawn: list[str] = []
    draw_measure = compare.draw_measure

    def remember(panel: Any, *arguments: Any) -> None:
        draw_measure(panel, *arguments)
        drawn.append(panel.get_title(loc="left"))

    monkeypatch.setattr(compare, "draw_measure", remember)
    written = write_all(runs, tmp_path)
    for task, title in (("skin", "skin tone"), ("gender", "gender")):
        for key, name in ((off.key, off.name), ("balanced_accuracy", "balanced accuracy")):
            assert f"## {title}: {name}\n" in written["table"]
            assert f"{title}: {name}" in drawn
            assert written["results"][f"{task}_{key}"].notna().all()
            pairs = zip(
                written["differences"]["task"], written["differences"]["measure"], strict=True
            )
            assert (task, key) in set(pairs)
    expected = [1 - r.metrics["tasks"]["skin"]["accuracy"] for r in runs]
    assert list(written["results"]["skin_half_off"]) == pytest.approx([e / 2 for e in expected])


@pytest.mark.parametrize("n_backbones", [1, 12])
def test_the_figure_is_not_cut_off(n_backbones: int, tmp_path: Path) -> None:
    runs = [
        made_up_run(tmp_path, Cell("dorsal_dr", protocol, f"network_{i}", fold, 1))
        for protocol, fold in (("paper", None), ("burst", None), ("subject-disjoint", 0))
        for i in range(n_backbones)
    ]
    write_all(runs, tmp_path)
    with Image.open(tmp_path / "comparison.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255
    assert len(compare.PROTOCOL_STYLES) >= len(PROTOCOLS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "backbone,aspect\na,b\n",
        "aspect,protocol,backbone,fold,seed,evaluation\na,paper,net,,x,y\n",
    ],
)
def test_results_that_cannot_be_read_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not found: .*results.csv. Give the --output"):
        compare.read_results_csv(tmp_path)
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(UserError, match=r"cannot read .*results.csv"):
        compare.read_results_csv(tmp_path)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", None])
def test_an_unfinished_evaluation_is_none(damage: str | None, tmp_path: Path) -> None:
    cell = Cell("dorsal_dr", "paper", "net", None, 1)
    folder = made_up_run(tmp_path, cell).folder
    if damage is None:
        (folder / "predictions.npz").write_bytes(b"PK half of it")
    else:
        (folder / "metrics.json").write_text(damage)
    assert compare.read_evaluation(cell, folder) is None
    shutil.rmtree(folder)
    assert compare.read_evaluation(cell, folder) is None


# ----------------------------------------------------------------------------- real processes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_ctrl_c_ends_the_runs_and_the_same_command_resumes(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = flags_of(root, output, "--protocols", "paper", "--processes", "2")
    flags[flags.index("--N_epochs") + 1] = "40"
    command = [sys.executable, compare.__file__, *flags]
    folders = [output / f"dorsal_dr-paper-{name}-seed_42" for name in BOTH]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, cwd=tmp_path, start_new_session=True
        )
    deadline = time.monotonic() + 300
    while not all((folder / "metrics.jsonl").exists() for folder in folders):
        assert process.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(timeout=60) == 130
    assert (tmp_path / "said").read_text().endswith("interrupted. Repeat the command to resume\n")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert [epochs_of(folder) for folder in folders] == [list(range(1, 41))] * 2
    assert len(pd.read_csv(output / "results.csv")) == 2
    log = (output / f"{folders[0].name}.log").read_text()
    assert [
        line.split()[2].rpartition("/")[2] for line in log.splitlines() if line[:2] == "$ "
    ] == [
        *("train.py", "train.py", "test.py"),
    ]
