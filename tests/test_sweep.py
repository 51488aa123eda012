"""Many runs: cells, refusals, resuming, failing and added runs, and the processes themselves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pandas as pd
import pytest

import compare
import dataset_11k_split
import test as test_script
import train
from compare import (
    CompareConfig,
    Progress,
    duration_text,
    enumerate_cells,
    read_results,
    seconds_left,
)
from measures.across_runs import Cell, interval
from utils import lock_file, logger

QUICK = "--no-pretrained --image_size 32 --amp off --device cpu --num_workers 0"
QUICK += " --batch_size 8 --N_epochs 2 --eval_every 1"
BOTH = ("test_resnet", "test_efficientnet")


@pytest.fixture
def root(split_root: Path) -> Path:
    """Splits of `paper`, and of `subject-disjoint` in three folds."""
    draw = ["--input", str(split_root), "--protocol", "subject-disjoint", "--folds", "3"]
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        assert dataset_11k_split.main(draw) == 0
    return split_root


class InProcess:
    """Stands for a child process: runs its script here, at once."""

    started: list[list[str]] = []
    fails: Callable[[list[str]], bool] = staticmethod(lambda command: False)

    def __init__(self, command: list[str], *, stdout: IO[str], **options: Any) -> None:
        self.started.append(command)
        script = {"train.py": train, "test.py": test_script}[Path(command[1]).name]
        handlers, level = list(logger.handlers), logger.level
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
            if type(self).fails(command):
                print("error: the disk is full", file=stdout)
                self.code = 1
            else:
                self.code = script.main(command[2:])
            stdout.flush()
        logger.handlers, logger.level = handlers, level

    def poll(self) -> int:
        return self.code

    @classmethod
    def scripts(cls) -> list[str]:
        """Return which scripts have been started, and forget them."""
        names = [Path(command[1]).name for command in cls.started]
        cls.started.clear()
        return names


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> type[InProcess]:
    """Lets compare.py start its children within this process."""
    stand_in = SimpleNamespace(
        Popen=InProcess, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT
    )
    monkeypatch.setattr(compare, "subprocess", stand_in)
    monkeypatch.setattr(compare, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(compare, "end_processes", lambda processes: None)
    monkeypatch.setattr(InProcess, "started", [])
    monkeypatch.setattr(InProcess, "fails", staticmethod(lambda command: False))
    return InProcess


def flags_of(root: Path, output: Path, *more: str, backbones: Sequence[str] = BOTH) -> list[str]:
    flags = ["--backbones", *backbones, "--input", str(root), "--output", str(output)]
    return [*flags, *QUICK.split(), *more]


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def epochs_of(run_dir: Path) -> list[int]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


# ----------------------------------------------------------------------------- cells


def test_cells_are_every_combination_and_names_tell_them_apart() -> None:
    config = CompareConfig(backbones=("a", "hf/b:c"), seeds=(1, 2))
    folds = {("dorsal_dr", "paper"): (None,), ("palmar_pr", "subject-disjoint"): (0, 3)}
    cells = enumerate_cells(config, folds)
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names) == 2 * 2 * (1 + 2)
    assert names[:3] == [
        "dorsal_dr-paper-a-seed_1",
        "dorsal_dr-paper-hf_b_c-seed_1",
        "dorsal_dr-paper-a-seed_2",
    ]
    assert cells[-1] == Cell("palmar_pr", "subject-disjoint", "hf/b:c", 3, 2)
    assert cells[-1].names == {
        "palmar_pr-subject-disjoint-fold_3-hf_b_c-seed_2",
        "palmar_pr-subject-disjoint-fold_3-hf_b_c",
        "palmar_pr-subject-disjoint-hf_b_c-seed_2",
        "palmar_pr-subject-disjoint-hf_b_c",
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "give --backbones, or --add, or --difference"),
        ("--backbones a a", "--backbones: something is there twice"),
        ("--backbones x/a x:a", "--backbones x/a and x:a would share a folder"),
        ("--backbones a --processes 0", "--processes must be above 0, not 0"),
        ("--backbones a --protocols paper --folds 0", "--folds: --protocols paper have none"),
        ("--backbones a --protocols papers", "invalid choice: 'papers'"),
        ("--backbones a --backbone_weights w.pth", "w.pth: expected NAME=FILE"),
        ("--backbones a --backbone_weights b=w.pth", "NAME one of --backbones"),
        ("--backbones a --backbone_weights a=v a=w", "a backbone is there twice"),
        ("--backbones a --seed 3", "--seed is set for every run; give --seeds"),
        ("--backbones a --backbone b", "--backbone is set for every run; give --backbones"),
        ("--backbones a --run_dir b", "--run_dir is set for every run; give --output"),
        ("--backbones a --resume b", "give the same command again"),
        ("--backbones a --lrate 3", "unrecognized arguments: --lrate 3"),
        ("--add a --lr 1e-3", "--lr is for train.py, and nothing is to be trained"),
        ("--add a --seeds 1", "--seeds goes with --backbones"),
        ("--difference a b --backbones c", "--difference goes with --output alone"),
    ],
)
def test_flags_that_cannot_be_are_refused(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare.main(flags.split())
    assert stopped.value.code == 2
    assert message in last_error(capsys)


def test_ranges_of_train_flags_are_checked_before_the_first_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare.main(flags_of(root, tmp_path / "out", "--lr", "-1"))
    assert "--lr must be a number above 0, not -1.0" in last_error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--aspects dorsal", "--aspects dorsal: {root}/sub_dataset has dorsal_dl, dorsal_dr"),
        (
            "--protocols burst",
            "trainval/burst/dorsal_dr/fold_0/train.csv not found; run: python dataset_11k_split.py"
            " --input {root} --protocol burst",
        ),
        ("--folds 1 3", "--folds 3: {root}/trainval/subject-disjoint/dorsal_dr has 0, 1, 2"),
        ("--backbone_weights test_resnet={root}/w", "--backbone_weights: {root}/w not found"),
        ("--image_size 4000000", "--image_size must be at most 4096"),
        ("--input {root}/nowhere", "dorsal_dr.csv not found; run: python dataset_11k_split.py"),
        ("--add {root}/nowhere", "--add {root}/nowhere is no folder"),
        ("--add {root}", "{root} has 0 checkpoint-NNNNNN-best.pth, not one"),
    ],
)
def test_inputs_that_are_not_there_are_refused_in_a_line(
    flags: str, message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags_of(root, tmp_path / "out", *flags.format(root=root).split())
    if "weights" in flags:
        given.remove("--no-pretrained")
    with contextlib.suppress(SystemExit):
        assert compare.main(given) == 1
    assert message.format(root=root) in last_error(capsys)
    assert not (tmp_path / "out").exists()


def test_an_unknown_backbone_and_missing_photos_are_refused_before_the_first_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(flags_of(root, tmp_path / "out", backbones=("test_resnet", "no_net"))) == 1
    assert "no_net" in last_error(capsys)
    photo = next((root / "Hands").glob("*.jpg"))
    shutil.rmtree(root / "Hands")
    assert compare.main(flags_of(root, tmp_path / "out")) == 1
    assert photo.suffix in last_error(capsys)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------- the whole way


def test_two_backbones_under_two_protocols(
    root: Path, tmp_path: Path, children: type[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert compare.main([*flags_of(root, output, "--folds", "0", "1"), "--dry_run"]) == 0
    assert "dorsal_dr-paper-test_resnet-seed_42: not begun" in capsys.readouterr().out
    assert not output.exists()

    assert compare.main(flags_of(root, output, "--folds", "0", "1")) == 0
    assert children.scripts() == ["train.py", "test.py"] * 6
    table = pd.read_csv(output / "results.csv")
    assert len(table) == 6
    for _, line in table.iterrows():
        metrics = metrics_of(output / line["evaluation"])
        for key in ("backbone", "aspect", "protocol", "seed", "split", "epoch", "n_images"):
            assert line[key] == metrics[key]
        assert metrics["fold"] is None if pd.isna(line["fold"]) else metrics["fold"] == line["fold"]
        for task in ("gender", "age"):
            block = metrics["tasks"][task]
            assert line[f"{task}_balanced_accuracy"] == block["balanced_accuracy"]
            for end in ("low", "high"):
                expected = block["intervals"]["balanced_accuracy"][end]
                assert line[f"{task}_balanced_accuracy_{end}"] == expected
            for name, said in block["controls"].items():
                if f"{task}_balanced_accuracy_{name}" in line:
                    assert line[f"{task}_balanced_accuracy_{name}"] == said["balanced_accuracy"]
            assert f"{task}_balanced_accuracy_majority_class" in line
        identity = metrics["tasks"]["identity"]
        if line["protocol"] == "paper":
            assert line["identity_balanced_accuracy"] == identity["balanced_accuracy"]
            assert line["identity_eer"] == identity["verification"]["all_pairs"]["eer"]
            assert np.isnan(line["identity_rank_1"])
        else:
            pairs = identity["matching"]["all_pairs"]
            assert line["identity_rank_1"] == pairs["rank_1"]
            assert line["identity_rank_1_high"] == pairs["intervals"]["rank_1"]["high"]
            assert line["identity_rank_1_chance"] == 1 / 2  # two people a fold
            assert np.isnan(line["identity_balanced_accuracy"])
    text = (output / "table.md").read_text()
    assert len([row for row in text.splitlines() if row.startswith("| `")]) == 4
    assert text.count("**2 of 3 folds**, seed 42") == 2
    assert "--N_epochs 2" in text
    assert "not corrected for the number of comparisons" in text
    for result in read_results(output):
        assert len(result.measures) == 5
        for measure in result.measures:  # a row of one run has the interval that test.py gave it
            sure, column = interval((result,), measure), "_".join(measure)
            stored = [result.numbers[f"{column}{end}"] for end in ("", "_low", "_high")]
            assert [sure.value, sure.low, sure.high] == pytest.approx(stored, abs=1e-12)
    differences = pd.read_csv(output / "differences.csv")
    assert set(differences["protocol"]) == {"paper", "subject-disjoint"}
    assert (output / "comparison.png").stat().st_size > 10_000

    before = {path: path.read_bytes() for path in output.glob("*.*") if path.suffix != ".log"}
    assert compare.main(flags_of(root, output, "--folds", "0", "1")) == 0
    assert children.scripts() == []  # nothing finished is repeated
    assert all(path.read_bytes() == content for path, content in before.items())

    (output / table["evaluation"][0] / "metrics.json").unlink()
    assert compare.main(flags_of(root, output, "--folds", "0", "1")) == 0
    assert children.scripts() == ["train.py", "test.py"]  # the former says it is finished
    assert epochs_of(output / "dorsal_dr-paper-test_resnet-seed_42") == [1, 2]
    assert (output / "results.csv").read_bytes() == before[output / "results.csv"]

    capsys.readouterr()
    names = [f"dorsal_dr-subject-disjoint-{name}" for name in BOTH]
    assert compare.main(["--output", str(output), "--difference", *names]) == 0
    told = capsys.readouterr().out
    gender = differences[
        (differences["protocol"] == "subject-disjoint")
        & (differences["task"] == "gender")
        & (differences["measure"] == "balanced_accuracy")
    ].iloc[0]
    assert f"{gender['difference']:+.4f}" in told
    folds = table[table["protocol"] == "subject-disjoint"].groupby("backbone")
    means = folds["gender_balanced_accuracy"].mean()
    assert gender["difference"] == pytest.approx(means[BOTH[0]] - means[BOTH[1]])

    for other, reason in {
        "dorsal_dr-paper-test_resnet": "report on other people and photos",
        f"dorsal_dr-subject-disjoint-fold_0-{BOTH[0]}": "folds 0 1 and 0 show other people",
        "palmar_pr-paper-test_resnet": "no such row; there are dorsal_dr-paper-test_eff",
    }.items():
        assert compare.main(["--output", str(output), "--difference", names[0], other]) == 1
        assert reason in last_error(capsys)


def test_a_failing_run_stops_no_other_and_is_tried_again(
    root: Path,
    tmp_path: Path,
    children: type[InProcess],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = flags_of(root, tmp_path / "out", "--protocols", "paper")
    with monkeypatch.context() as patch:
        patch.setattr(children, "fails", staticmethod(lambda command: "test_resnet" in command))
        assert compare.main(flags) == 1
    said = last_error(capsys)
    log = tmp_path / "out" / "dorsal_dr-paper-test_resnet-seed_42.log"
    assert said == f"error: {log.stem} failed: the disk is full ({log})"
    assert list(pd.read_csv(tmp_path / "out" / "results.csv")["backbone"]) == [BOTH[1]]
    assert "**Not finished: 1 runs are missing.**" in (tmp_path / "out" / "table.md").read_text()
    children.scripts()
    assert compare.main(flags) == 0
    assert children.scripts() == ["train.py", "test.py"]
    assert list(pd.read_csv(tmp_path / "out" / "results.csv")["backbone"]) == list(BOTH)
    assert "Not finished" not in (tmp_path / "out" / "table.md").read_text()


def test_a_folder_that_contradicts_the_flags_is_refused(
    root: Path, tmp_path: Path, children: type[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    flags = flags_of(root, output, "--protocols", "paper", backbones=BOTH[:1])
    assert compare.main(flags) == 0
    folder = output / "dorsal_dr-paper-test_resnet-seed_42"
    for more, message in {
        "--lr 1e-3": "was begun with --lr 0.0008, not 0.001",
        "--N_epochs 3": "was begun with --N_epochs 2, not 3",
        "--no-warmup": "was begun with --warmup True, not False",
    }.items():
        assert compare.main([*flags, *more.split()]) == 1
        assert last_error(capsys).startswith(f"error: {folder} {message}")
    children.scripts()
    assert compare.main([*flags, "--num_workers", "1"]) == 0  # changes no result
    stored = json.loads((folder / "config.json").read_text())
    del stored["config"]["clip_grad"]  # an older version had no such flag
    (folder / "config.json").write_text(json.dumps(stored))
    assert compare.main(flags) == 0
    assert compare.main([*flags, "--clip_grad", "1"]) == 1
    assert "--clip_grad None, not 1.0" in last_error(capsys)
    stored["config"]["of_later"] = 1
    (folder / "config.json").write_text(json.dumps(stored))
    assert compare.main(flags) == 1
    assert "has --of_later, unknown to this version" in last_error(capsys)
    assert children.scripts() == []
    del stored["config"]["of_later"]
    (folder / "config.json").write_text(json.dumps(stored))
    train_csv = root / "trainval" / "dorsal_dr" / "train.csv"
    train_csv.write_text("\n".join(train_csv.read_text().splitlines()[:-1]) + "\n")
    assert compare.main(flags) == 1
    assert "was trained on another split: its rows of train differ" in last_error(capsys)
    (folder / "config.json").unlink()
    assert compare.main(flags) == 1
    assert "and no config.json; take it away" in last_error(capsys)


def test_what_a_kill_left_before_and_within_training_goes_on(
    root: Path, tmp_path: Path, children: type[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = flags_of(root, tmp_path / "out", "--protocols", "paper", "--seeds", "1", "2")
    flags[flags.index(BOTH[1]) : flags.index(BOTH[1]) + 1] = []
    folders = [tmp_path / "out" / f"dorsal_dr-paper-test_resnet-seed_{seed}" for seed in (1, 2)]
    folders[0].mkdir(parents=True)
    for name in (".lock", "train.log", ".config.77.tmp.json"):  # killed before its config.json
        (folders[0] / name).touch()

    real = train.train_one_epoch

    def interrupted(*args: Any, epoch: int, **kwargs: Any) -> dict[str, float]:
        result = real(*args, epoch=epoch, **kwargs)
        if epoch == 2:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_one_epoch", interrupted)
        assert compare.main(flags) == 1
    assert [epochs_of(folder) for folder in folders] == [[1], [1]]
    children.scripts()
    assert compare.main(flags) == 0
    assert [epochs_of(folder) for folder in folders] == [[1, 2], [1, 2]]
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert list(table["seed"]) == [1, 2]
    assert "seeds 1 2" in (tmp_path / "out" / "table.md").read_text()


def test_a_run_made_elsewhere_is_added(
    root: Path, tmp_path: Path, children: type[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere, output = tmp_path / "elsewhere", tmp_path / "out"
    given = ["--attributes_file", str(root / "sub_dataset" / "dorsal_dr.csv"), *QUICK.split()]
    given += ["--backbone", BOTH[0], "--seed", "7"]
    assert train.main([*given, "--run_dir", str(elsewhere)]) == 0
    add = ["--add", str(elsewhere)]
    assert compare.main([*add, "--input", str(tmp_path), "--output", str(output)]) == 1
    assert f"--add {elsewhere} is to be evaluated first, and {tmp_path}" in last_error(capsys)
    assert compare.main([*add, "--input", str(root), "--output", str(elsewhere / "train.log")]) == 1
    assert "train.log is a file; give a folder" in last_error(capsys)
    flags = flags_of(root, output, "--protocols", "paper", *add)
    assert compare.main(flags) == 0
    assert children.scripts() == ["train.py", "test.py"] * 2 + ["test.py"]
    table = pd.read_csv(output / "results.csv")
    assert list(zip(table["backbone"], table["seed"], strict=True)) == [
        *((BOTH[0], 42), (BOTH[1], 42)),
        (BOTH[0], 7),
    ]
    assert Path(table["evaluation"][2]).parent == elsewhere
    text = (output / "table.md").read_text()
    assert f"| `{BOTH[0]}` | `dorsal_dr` | `paper` | seeds 7 42 |" in text
    assert compare.main(flags) == 0
    assert children.scripts() == []

    alone = ["--input", str(root), "--output", str(tmp_path / "alone"), *add]
    assert compare.main(alone) == 0
    assert children.scripts() == []
    assert len(pd.read_csv(tmp_path / "alone" / "results.csv")) == 1
    assert compare.main(["--input", str(root), "--output", str(output), *add]) == 0
    assert children.scripts() == []
    assert len(pd.read_csv(output / "results.csv")) == 3  # beside what was there

    assert compare.main([*flags, "--seeds", "7"]) == 1
    assert f"--add {elsewhere} is dorsal_dr-paper-{BOTH[0]}-seed_7, as" in last_error(capsys)
    assert compare.main([*flags_of(root, tmp_path / "more", "--lr", "1e-3"), *add]) == 1
    assert "--lr 0.001" in last_error(capsys)
    assert not (tmp_path / "more").exists()
    stored = json.loads((elsewhere / "config.json").read_text())
    stored["config"]["N_epochs"] = 9
    (elsewhere / "config.json").write_text(json.dumps(stored))
    assert compare.main(alone) == 1
    assert "epoch 2 of 9 is its last; finish it with" in last_error(capsys)


def test_one_comparison_at_a_time_and_runs_that_others_hold_wait(
    root: Path,
    tmp_path: Path,
    children: type[InProcess],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    flags = flags_of(root, output, "--protocols", "paper")
    holder = "import sys, pathlib, utils; lock = utils.lock_file(pathlib.Path(sys.argv[1]),"
    holder += " wait=False); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(output / ".lock")]
    with subprocess.Popen(
        command, cwd=compare.HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert compare.main(flags) == 1
        assert "another compare.py works in" in last_error(capsys)
        other.communicate("")
    lock_file(output / ".lock", wait=False).close()

    asked: list[str] = []

    def held_at_first(folder: Path) -> bool:
        asked.append(folder.name)
        return asked == [f"dorsal_dr-paper-{BOTH[0]}-seed_42"]

    monkeypatch.setattr(compare, "is_held", held_at_first)
    assert compare.main(flags) == 0
    trained = [c[c.index("--backbone") + 1] for c in children.started if "--backbone" in c]
    assert trained == [BOTH[1], BOTH[0]]


# ----------------------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("runs", "overhead", "n_processes", "expected"),
    [
        ([Progress("a", 4, [], False)], 0.0, 1, None),
        ([Progress("a", 4, [], True)], 0.0, 1, 0.0),
        ([Progress("a", 4, [2.0, 4.0], False)], 10.0, 1, 10 + 2 * 3),
        # another run of the backbone says more than one of another backbone
        ([Progress("a", 2, [1.0, 3.0], True), Progress("a", 5, [], False)], 0.0, 1, 5 * 2.0),
        ([Progress("a", 2, [1.0, 3.0], True), Progress("b", 5, [], False)], 0.0, 1, 5 * 2.0),
        ([Progress("b", 1, [9.0], True), *[Progress("a", 2, [1.0], False)] * 4], 1.0, 2, 4.0),
        # the longest of the rest, where there are processes to spare
        ([Progress("a", 11, [1.0], False), Progress("a", 2, [1.0], False)], 0.0, 4, 10.0),
    ],
)
def test_time_left(
    runs: list[Progress], overhead: float, n_processes: int, expected: float | None
) -> None:
    assert seconds_left(runs, overhead, n_processes) == expected


def test_durations_as_text() -> None:
    assert duration_text(0) == "about 0 min left"
    assert duration_text(61) == "about 2 min left"
    assert duration_text(3600) == "about 1 h 0 min left"
    assert duration_text(3601) == "about 1 h 1 min left"
    assert "after the first epoch" in duration_text(None)


def test_children_share_cpus_or_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(compare, "usable_cpus", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert compare.child_environment(0, 1) == dict(os.environ)
    assert compare.child_environment(1, 3)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    gpus = [compare.child_environment(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert gpus == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    gpus = [compare.child_environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)]
    assert gpus == ["5", "7"]


# ----------------------------------------------------------------------------- real processes


def processes_about(path: Path) -> list[int]:
    """Return who has `path` in its command line (Linux)."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and str(path) in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_ended_while_it_trains_and_started_again(
    number: int, code: int, root: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    flags = flags_of(root, output, "--protocols", "paper", "--processes", "2")
    flags[flags.index("--N_epochs") + 1] = "60"
    flags[flags.index("--num_workers") + 1] = "1"
    command = [sys.executable, compare.__file__, *flags]
    folder = output / "dorsal_dr-paper-test_resnet-seed_42"
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not (folder / "metrics.jsonl").exists():
        assert process.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    if number != signal.SIGKILL:  # nobody can clean up after that; the next start waits
        assert processes_about(output) == []
        assert "the same command again goes on" in (tmp_path / "said").read_text()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=600).returncode == 0
    assert epochs_of(folder) == list(range(1, 61))
    assert len(pd.read_csv(output / "results.csv")) == 2
    log = (output / f"{folder.name}.log").read_text()
    assert re.findall(r"^\$ .*(train|test)\.py", log, re.MULTILINE)[-1] == "test"
    assert processes_about(output) == []
