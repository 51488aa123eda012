"""Training on several aspects, mirrored left hands: train.py, test.py and predict.py together."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PEOPLE, run_quietly
from PIL import Image, ImageOps

import compare
import dataset_11k_split
import predict
import test as evaluation
import train
from engine.checkpoint import load_checkpoint

TINY = "--backbone test_resnet --no-pretrained --image_size 32 --amp off --device cpu"
TINY += " --num_workers 0 --batch_size 8 --flip 0"
PALMS = ("palmar_pr", "palmar_pl")


def csvs(root: Path, *aspects: str) -> list[str]:
    return [str(root / "sub_dataset" / f"{aspect}.csv") for aspect in aspects]


def train_palms(root: Path, run: Path, *flags: str) -> Path:
    """Train on both palms; return the best checkpoint."""
    given = ["--attributes_file", *csvs(root, *PALMS), "--run_dir", str(run), *TINY.split()]
    assert train.main([*given, *flags]) == 0
    return next(run.glob("*-best.pth"))


def evaluate(checkpoint: Path, root: Path, aspect: str, *flags: str) -> tuple[Any, Path]:
    """Evaluate; return metrics.json and its folder."""
    path = csvs(root, aspect)[0]
    given = ["--attributes_file", path, "--checkpoint", str(checkpoint), "--device", "cpu"]
    assert evaluation.main([*given, "--num_workers", "0", *flags]) == 0
    folder = next(checkpoint.parent.glob(f"{checkpoint.stem}-{aspect}-*"))
    return json.loads((folder / "metrics.json").read_text()), folder


@pytest.mark.parametrize("recipe", ["published", "frozen"])
def test_left_hands_are_right_hands_in_the_mirror(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    flags = ["--mirror", "left", "--N_epochs", "2"]
    flags += ["--recipe", "frozen", "--neck", "8", "--no-multi_level"] * (recipe == "frozen")
    best = train_palms(split_root, tmp_path / "run", *flags)
    out = capsys.readouterr().out
    assert all(
        f"--attributes_file {path} --checkpoint {best}" in out for path in csvs(split_root, *PALMS)
    )
    assert load_checkpoint(best)["aspect"] == "palmar_pr+palmar_pl"
    metrics, folder = evaluate(best, split_root, "palmar_pl")
    assert metrics["aspect"] == "palmar_pl"
    assert "trained on palmar_pr+palmar_pl" in (folder / "report.html").read_text()
    assert metrics["split_as_at_training"]
    table = pd.read_csv(folder / "predictions.csv")
    assert evaluate(best, split_root, "palmar_pr")[0]["n_images"] == 12

    # What test.py predicts for a left hand, predict.py does with --hand left, and for its mirror
    # image with --hand right.
    photos = [split_root / "Hands" / Path(path).name for path in table["image_path"]]
    mirrored = [tmp_path / f"{path.stem}.png" for path in photos]
    for path, to in zip(photos, mirrored, strict=True):
        with Image.open(path) as photo:
            ImageOps.mirror(photo).save(to)
    found = {}
    for hand, paths in (("left", photos), ("right", mirrored), ("unflipped", photos)):
        options = ["--hand", "left"] * (hand == "left")
        capsys.readouterr()
        assert predict.main(["--checkpoint", str(best), *options, *map(str, paths)]) == 0
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        found[hand] = np.array([line["identity"][0]["probability"] for line in lines])
    np.testing.assert_allclose(found["left"], table["identity_prob"], atol=1e-4)
    np.testing.assert_allclose(found["right"], found["left"], atol=1e-4)
    assert np.abs(found["unflipped"] - found["left"]).max() > 1e-3


def test_cache_and_resume_change_nothing(split_root: Path, tmp_path: Path) -> None:
    flags = ["--mirror", "left", "--identity_per", "hand"]
    kept = train_palms(split_root, tmp_path / "run", *flags, "--N_epochs", "2")
    other = train_palms(split_root, tmp_path / "other", *flags, "--N_epochs", "1", "--no-cache")
    resumed = ["--resume", str(other.parent), "--N_epochs", "2"]
    assert train.main(resumed) == 0
    one, two = (load_checkpoint(p.parent / "checkpoint-000002.pth") for p in (kept, other))
    torch.testing.assert_close(one["model"], two["model"], rtol=0, atol=0)
    assert len(one["label_space"]["identity"]) == 12
    metrics, folder = evaluate(kept, split_root, "palmar_pl")
    table = pd.read_csv(folder / "predictions.csv")
    assert table["identity_true"].str.endswith(" left").all()
    assert metrics["tasks"]["identity"]["accuracy"] is not None


def test_a_column_says_which_hands_are_left(split_root: Path, tmp_path: Path) -> None:
    """Aspects of 11k Hands do so by their names; other attributes files need aspectOfHand."""
    flags = ["--mirror", "left", "--identity_per", "hand", "--N_epochs", "1"]
    named = load_checkpoint(train_palms(split_root, tmp_path / "run", *flags))
    name_it_otherwise(split_root)
    splits = (split_root / "trainval" / "left").glob("*.csv")
    for path in (*map(Path, csvs(split_root, "left")), *splits):
        pd.read_csv(path, dtype=str).assign(aspectOfHand="palmar left").to_csv(path, index=False)
    given = ["--attributes_file", *csvs(split_root, "palmar_pr", "left"), *TINY.split(), *flags]
    assert train.main([*given, "--run_dir", str(tmp_path / "other")]) == 0
    state = load_checkpoint(next((tmp_path / "other").glob("*-best.pth")))
    assert state["label_space"] == named["label_space"]
    torch.testing.assert_close(state["model"], named["model"], rtol=0, atol=0)


def test_unseen_people_of_both_hands(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = ["--protocol", "subject-disjoint"]
    run_quietly(dataset_11k_split.main, "--input", str(split_root), *protocol, "--folds", "3")
    flags = [*protocol, "--mirror", "left", "--identity_per", "hand", "--N_epochs", "1"]
    best = train_palms(split_root, tmp_path / "run", *flags)
    for aspect in PALMS:
        metrics, _ = evaluate(best, split_root, aspect)
        assert metrics["tasks"]["identity"]["matching"]["all_pairs"]["rank_1"] is not None
        assert metrics["leakage"]["person_in_train"] == 0
    # The left hands of people whose right hands were trained on are not unseen.
    other = ["--test_attributes_file", *csvs(split_root, "dorsal_dl"), "--split", "train"]
    given = ["--attributes_file", *csvs(split_root, "palmar_pr"), "--checkpoint", str(best)]
    capsys.readouterr()
    assert evaluation.main([*given, *other]) == 1
    assert "no photos of unseen people" in capsys.readouterr().err
    other = ["--test_attributes_file", *csvs(split_root, "palmar_pl")]
    assert evaluation.main([*given, *other]) == 1
    assert "palmar_pl.csv is an aspect of the training" in capsys.readouterr().err
    given = ["--attributes_file", *csvs(split_root, "dorsal_dr"), "--checkpoint", str(best)]
    assert evaluation.main(given) == 1
    assert "was trained on palmar_pr+palmar_pl, not dorsal_dr" in capsys.readouterr().err
    assert compare.main(["--input", str(split_root), "--add", str(best.parent)]) == 1
    assert "Add runs of one aspect" in capsys.readouterr().err


def move_to_another_root(root: Path) -> list[str]:
    shutil.copytree(root, root.with_name("other"))
    return [
        "--attributes_file",
        *csvs(root, "palmar_pr"),
        *csvs(root.with_name("other"), "palmar_pl"),
    ]


def name_it_otherwise(root: Path) -> list[str]:
    for folder in (root / "sub_dataset", root / "trainval"):
        for path in [*folder.glob("palmar_pl*")]:
            path.rename(path.with_stem("left"))
    return ["--attributes_file", *csvs(root, "palmar_pr", "left"), "--mirror", "left"]


def list_a_photo_twice(root: Path) -> list[str]:
    """Add a right palm to the left ones, as attributes files of one's own may overlap."""
    right, left = (
        [root / "sub_dataset" / f"{aspect}.csv", root / "trainval" / aspect / "val.csv"]
        for aspect in PALMS
    )
    line = right[1].read_text().splitlines(keepends=True)[1]
    for path in left:
        path.write_text(path.read_text() + line, newline="")
    return ["--attributes_file", *csvs(root, *PALMS)]


def put_both_hands_into_one_file(root: Path) -> list[str]:
    for file in ("sub_dataset/{}.csv", "trainval/{}/train.csv", "trainval/{}/val.csv"):
        right, left = (
            pd.read_csv(root / file.format(aspect), dtype=str).assign(aspectOfHand=name)
            for aspect, name in zip(PALMS, ("palmar right", "palmar left"), strict=True)
        )
        pd.concat([right, left]).to_csv(root / file.format(PALMS[0]), index=False)
    return ["--attributes_file", *csvs(root, PALMS[0]), "--identity_per", "hand"]


def draw_halves(root: Path) -> list[str]:
    """Leave two people out of one aspect, so that its halves are other people."""
    info = root / "HandInfo.csv"
    lines = info.read_text().splitlines(keepends=True)
    left_out = tuple(f'"{person[0]}' for person in PEOPLE[:2])
    kept = [x for x in lines if not (x.startswith(left_out) and "palmar left" in x)]
    info.write_text("".join(kept), newline="")
    protocol = ["--protocol", "half"]
    run_quietly(dataset_11k_split.main, "--input", str(root), *protocol)
    return ["--attributes_file", *csvs(root, *PALMS), *protocol]


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda root: ["--attributes_file", *csvs(root, "palmar_pr") * 2], "names an aspect twice"),
        (move_to_another_root, "attributes files of different data sets"),
        (name_it_otherwise, "which hands are left is unknown"),
        (list_a_photo_twice, "1 photos are in two attributes files"),
        (put_both_hands_into_one_file, "needs one file of right hands and one of left hands"),
        (draw_halves, "people are in train of one aspect and in test of another"),
    ],
)
def test_refused(
    split_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], list[str]],
    expected: str,
) -> None:
    run = tmp_path / "run"
    flags = [*prepare(split_root), "--run_dir", str(run), *TINY.split(), "--N_epochs", "1"]
    with contextlib.suppress(SystemExit):
        assert train.main(flags) == 1
    assert expected in capsys.readouterr().err
    assert not run.exists()
