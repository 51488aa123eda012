"""The pages: from files alone, of old files and new, in a real browser where one is."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_html import NASTY, Tags

import report
import test as test_script
from dataset_11k import AGE_GROUPS, TASKS
from pages import build, charts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
PHOTO = "a photo $1$ <b>.jpg"
INTERVAL = {"low": 0.6, "high": 0.9, "n_photos": 60, "n_people": 12}
GROUP = {"value": 0.7, "low": 0.6, "high": 0.9, "n_photos": 30, "n_people": 12, "few_people": False}


def slices_of(measure: str) -> dict[str, Any]:
    few = {**GROUP, "value": None, "low": None, "high": None, "n_people": 3, "few_people": True}
    gap = {"highest": "female", "lowest": "male", "value": 0.2, "low": 0.1, "high": 0.3}
    groups = {"female": GROUP, "male": GROUP}
    return {
        "gender": {measure: {"groups": groups, "gap": gap}},
        "skin_color": {measure: {"groups": {f"dark {NASTY}": few}, "gap": None}},
    }


def pairs_block(*, strangers: bool) -> dict[str, Any]:
    measures = {"n_genuine": 100, "n_impostor": 900, "eer": 0.1, "fnmr_at_fmr_0.01": 0.3}
    intervals = {"eer": INTERVAL}
    ratio = {"calibrated_on": "val", "calibration_people": 9, "slope": 8.0, "intercept": -4.0}
    new = {
        "open_set": {"fnir_at_fpir_0.1": 0.25, "n_gallery_people": 7, "n_outside_people": 5},
        "likelihood_ratio": {**ratio, "cllr": 0.4321, "cllr_min": 0.4, "misleading_genuine": 0.1}
        | {"intervals": {"cllr": {"low": 0.3, "high": 0.5}}},
        "slices": slices_of("eer"),
    }
    if strangers:
        measures |= {"rank_1": 0.8, "mAP": 0.7}
        intervals |= {"rank_1": INTERVAL, "mAP": INTERVAL}
    kind = {**measures, "intervals": intervals, **new}
    block: dict[str, Any] = {"all_pairs": kind, "beyond_2_frames": kind}
    return {**block, "n_galleries": 2, "controls": {"chance": {"rank_1": 0.1}}}


def measured(n_rows: int, n_people: int, *, strangers: bool = False) -> dict[str, Any]:
    """Return a metrics.json with every key that there is."""
    probabilities = {"brier": 0.1, "expected_calibration_error": 0.05, "log_loss": 0.4}
    extra = {"identity": {}, "gender": {"roc_auc": 0.9}, "age": {"mae_years": 3.25}}
    tasks: dict[str, Any] = {}
    for task in TASKS:
        scores = {"accuracy": 0.8, "balanced_accuracy": 0.75, "macro_f1": 0.7, **extra[task]}
        sure = dict.fromkeys(("balanced_accuracy", *extra[task]), INTERVAL)
        controls = {"majority_class": {"balanced_accuracy": 0.5, "mae_years": 6.0}}
        tasks[task] = {
            **{"n_images": n_rows, "batch_mean_balanced_accuracy": 0.9, **scores, **probabilities},
            **{"before_temperature": probabilities, "intervals": sure, "controls": controls},
            "slices": slices_of("balanced_accuracy"),
        }
    tasks["identity"]["matching" if strangers else "verification"] = pairs_block(
        strangers=strangers
    )
    if strangers:
        tasks["identity"] |= {"n_images": 0, "balanced_accuracy": None, "intervals": {}}
    return {
        **{"protocol": "paper", "fold": None, "aspect": "dorsal_dr", "split": "val"},
        **{"split_as_at_training": True, "cross_hand": None, "backbone": "swin_t", "seed": 42},
        **{"selected_on_reported_split": True, "calibrated_on_reported_split": False},
        **{"n_images": n_rows, "n_people": n_people, "tasks": tasks, "commit": "abc123"},
        "protocol_reason": "Half of the photos train.",
        "leakage": {"person_in_train": 0.99, "within_1": 0.7, "within_2": 0.9, "within_5": None},
        "permuted_labels": False,
        "command": f"python test.py --checkpoint '{NASTY}'",
        "training": {"config": {"lr": 0.0008, "run_dir": NASTY}, "commit": "def456"},
        "environment": {"torch": "2.14.1"},
    }


def write_results(
    folder: Path,
    n_rows: int = 60,
    n_people: int = 12,
    *,
    strangers: bool = False,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write an evaluation of random answers; one person's id and all file names are nasty."""
    numbers = np.random.default_rng(0)
    people = [NASTY, *(f"{i:07d}" for i in range(1, n_people))]
    person = np.arange(n_rows) % n_people
    age, gender = person % len(AGE_GROUPS), person % 2
    labels = {"identity": person, "gender": gender, "age": age}
    names = {"identity": people, "gender": ["female", "male"], "age": list(AGE_GROUPS)}
    arrays: dict[str, np.ndarray] = {
        "embedding": numbers.normal(size=(n_rows, 8)) + 2 * np.eye(n_people, 8)[person],
        "people": np.array(people)[person],
        "frame_number": np.arange(n_rows) * 3.0,
        "age_years": 20 + age,
        "mean_ages": 20.0 + np.arange(len(AGE_GROUPS)),
    }
    table: dict[str, Any] = {"image_path": [f"./11k/Hands/{PHOTO}"] * n_rows}
    for task in TASKS:
        logits = numbers.normal(size=(n_rows, len(names[task])))
        logits[np.arange(n_rows), labels[task]] += 2
        unknown = strangers and task == "identity"
        arrays[f"{task}_true"] = np.full(n_rows, -1) if unknown else labels[task]
        arrays[f"{task}_logits"], arrays[f"{task}_temperature"] = logits, np.array(1.5)
        arrays[f"{task}_classes"] = np.array(names[task])
        table[f"{task}_true"] = np.array(names[task])[labels[task]]
        table[f"{task}_pred"] = np.array(names[task])[logits.argmax(axis=1)]
        table[f"{task}_prob"] = 0.9
    if strangers:
        arrays["galleries"] = np.stack([np.arange(n_people), np.arange(n_people) + n_people])
    folder.mkdir(parents=True)
    pd.DataFrame(table).to_csv(folder / "predictions.csv", index=False)
    np.savez(folder / "predictions.npz", **arrays)  # type: ignore[arg-type]
    said = measured(n_rows, n_people, strangers=strangers) if metrics is None else metrics
    (folder / "metrics.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "Hands"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (600, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / PHOTO, "JPEG")
    return folder


def write_run(run_dir: Path) -> Path:
    """Write what train.py leaves of three epochs, of which the second was kept."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = []
    for epoch in (1, 2, 3):
        record: dict[str, Any] = {"epoch": epoch, "lr": 1e-4, "train_loss": 3.0 / epoch}
        for task in TASKS:
            record |= {f"train_loss_{task}": 1.0 / epoch, f"train_accuracy_{task}": 0.5}
            record[f"val_balanced_accuracy_{task}"] = 0.6 if epoch == 2 else None
        lines.append(json.dumps({**record, "val_loss": None, "val_rank_1": None}) + "\n")
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    config = {"backbone": "swin_t", "protocol": "paper", "cache_dir": NASTY}
    (run_dir / "config.json").write_text(
        json.dumps({"config": config, "aspect": "dorsal_dr", "fingerprints": {"train": "0ff"}})
    )
    (run_dir / "checkpoint-000002-best.pth").write_text("")
    return run_dir


def titles(text: str) -> list[str]:
    return [html.unescape(t) for t in re.findall(r"<h[23][^>]*>(.*?)</h[23]>", text)]


def said(text: str) -> str:
    """Return the text of a page's body, every blank a single one."""
    body = re.sub("<[^>]*>", " ", text.partition("<body>")[2])
    return " ".join(html.unescape(body).split())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the charts empty, as drawing them takes nearly all of the time."""
    monkeypatch.setattr(charts, "as_svg", lambda figure: b"<svg/>")


quickly = pytest.mark.usefixtures("undrawn")


# ----------------------------------------------------------------------------- the page


def test_a_report_has_every_block_that_was_measured(tmp_path: Path, photos: Path) -> None:
    folder = write_results(write_run(tmp_path / "run") / "evaluation")
    path = build.write_report(folder, photos=photos)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    found, words = titles(text), said(text)
    for title in (
        "Identity, balanced accuracy",
        "Age group, mean absolute error",
        "All pairs, EER",
        "Leakage",
        "Who or what was taken for what: gender",
        "Is the right person among the first? CMC",
        "Same person or not? DET",
        "Evidence for a court: Tippett plot",
        "Is its confidence right? Age group",
        "Age in years",
        "Gender, balanced accuracy, by group",
        "Pairs beyond 2 frames, EER, by group",
        "Who is often wrong?",
        "Most confident mistakes: identity",
        "Random photos with every answer right",
        "Loss",
        "To repeat it",
    ):
        assert title in found
    for sentence in (
        "60 photos of 12 people: back of the right hand (dorsal_dr), split val of protocol paper",
        "Why this protocol: Half of the photos train.",
        "These photos chose the epoch",
        "95 % interval 60.0 to 90.0 %, 60 photos of 12 people",
        "3.2 years",
        "one recording session",
        "a frame of their person at most 2 away is in train 90.0 %",
        "Cllr in bits 0.432 0.432",
        "Cllr, 95 % interval 0.300 to 0.500",
        "FNIR at FPIR 10 % 25.0 % 25.0 %",
        "female above male by 20.0 percentage points (95 % interval 10.0 to 30.0 %): more than",
        "python test.py --checkpoint",
        "def456",
        "0ff",
        "2.14.1",
    ):
        assert sentence in words
    assert "permuted between people" not in words


@quickly
def test_a_report_of_strangers_matches_and_does_not_classify_identity(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "evaluation", strangers=True)
    text = build.write_report(folder, photos=None).read_text(encoding="utf-8")
    found = titles(text)
    assert "All pairs, rank-1" in found
    assert "Is the right person among the first? CMC" in found
    assert "Who or what was taken for what: identity" not in found
    assert "Is its confidence right? Identity" not in found
    assert "Nobody here was trained on" in said(text)
    assert "No photo is embedded: they were left out, as hand photos are biometric" in said(text)
    assert "Loss" not in found


@quickly
def test_another_hand_has_no_identity(tmp_path: Path) -> None:
    metrics = measured(60, 12)
    metrics["tasks"]["identity"] = None
    metrics["cross_hand"] = {"trained_on": "palmar_pl", "people_left_out_as_trained_on": 4}
    folder = write_results(tmp_path / "evaluation", strangers=True, metrics=metrics)
    text = build.write_report(folder, photos=None).read_text(encoding="utf-8")
    assert "Same person or not? DET" not in titles(text)
    assert "one recording session" not in said(text).replace("FMR, FNMR", "")
    assert "Trained on another aspect (palmar_pl)" in said(text)


ABSENT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "leakage": (lambda m: m.pop("leakage"), "Leakage"),
    "leakage null": (lambda m: m.update(leakage=None), "Leakage"),
    "likelihood ratio": (
        lambda m: [
            m["tasks"]["identity"]["verification"][kind].update(likelihood_ratio=None)
            for kind in build.KINDS
        ],
        "Evidence for a court: Tippett plot",
    ),
    "verification": (
        lambda m: m["tasks"]["identity"].pop("verification"),
        "Same person or not? DET",
    ),
    "beyond 2 frames": (
        lambda m: m["tasks"]["identity"]["verification"].update(beyond_2_frames=None),
        "Pairs beyond 2 frames, EER",
    ),
    "slices": (
        lambda m: m["tasks"]["gender"].update(slices=None),
        "Gender, balanced accuracy, by group",
    ),
}


@quickly
@pytest.mark.parametrize("name", list(ABSENT))
def test_what_was_not_measured_is_left_out(tmp_path: Path, name: str) -> None:
    remove, title = ABSENT[name]
    metrics = measured(60, 12)
    remove(metrics)
    folder = write_results(tmp_path / "evaluation", metrics=metrics)
    text = build.write_report(folder, photos=None).read_text(encoding="utf-8")
    assert title not in titles(text)
    assert "Identity, balanced accuracy" in titles(text)


@quickly
def test_the_oldest_files_still_give_a_report(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "evaluation")
    score = {"accuracy": 0.5, "balanced_accuracy": 0.4, "macro_f1": 0.3}
    old = {"protocol": "paper", "aspect": "mine", "split": "val", "backbone": "swin_t"}
    tasks = dict.fromkeys(TASKS, {**score, "batch_mean_balanced_accuracy": 0.6})
    (folder / "metrics.json").write_text(json.dumps({**old, "n_images": 60, "tasks": tasks}))
    arrays = np.load(folder / "predictions.npz")
    kept = [f"{task}_{part}" for task in TASKS for part in ("logits", "classes", "true")]
    np.savez(folder / "predictions.npz", **{key: arrays[key] for key in kept})
    text = build.write_report(folder, photos=None).read_text(encoding="utf-8")
    assert "60 photos: aspect (mine)" in said(text)
    assert "How sure it is was not measured." in said(text)
    assert "Who or what was taken for what: age group" in titles(text)
    assert "Age in years" not in titles(text)


@quickly
def test_nothing_in_the_files_becomes_markup(tmp_path: Path, photos: Path) -> None:
    metrics = measured(60, 12)
    metrics |= {"aspect": NASTY, "backbone": NASTY, "protocol": NASTY, "protocol_reason": NASTY}
    folder = write_results(write_run(tmp_path / "run") / "evaluation", metrics=metrics)
    build.write_report(folder, photos=photos)
    build.write_training_report(tmp_path / "run")
    for path in (folder / "report.html", tmp_path / "run" / "training.html"):
        found = Tags(path.read_text(encoding="utf-8"))
        assert not found.of("script")
        assert not found.of("b")
        assert NASTY in found.said
    alts = [image["alt"] for image in Tags((folder / "report.html").read_text()).of("img")]
    assert any(alt and NASTY in alt and PHOTO in alt for alt in alts)


def test_the_same_files_give_the_same_page(tmp_path: Path, photos: Path) -> None:
    folder = write_results(tmp_path / "evaluation")
    first = build.write_report(folder, photos=photos).read_bytes()
    assert build.write_report(folder, photos=photos).read_bytes() == first


def test_a_thousand_photos_of_143_people_stay_under_5_mb(tmp_path: Path, photos: Path) -> None:
    folder = write_results(write_run(tmp_path / "run") / "evaluation", 1000, 143)
    text = build.write_report(folder, photos=photos).read_text(encoding="utf-8")
    assert len(text.encode()) < 5_000_000
    assert "All 143 people" in said(text)
    assert 6 <= len(re.findall("data:image/jpeg", text)) <= 4 * build.N_PHOTOS


def test_photos_are_the_most_confident_mistakes_and_random_hits() -> None:
    columns: dict[str, list[Any]] = {"image_path": [f"{i}.jpg" for i in range(40)]}
    for task in TASKS:
        columns |= {f"{task}_true": ["yes"] * 40, f"{task}_pred": ["yes"] * 40}
        columns[f"{task}_prob"] = [0.5 + i / 100 for i in range(40)]
    columns["gender_pred"][3:13] = ["no"] * 10
    table = pd.DataFrame(columns)
    mistakes, none, hits = build.choose_photos(table, ("gender", "age")).values()
    assert mistakes == [12, 11, 10, 9, 8, 7]
    assert none == []
    assert len(set(hits)) == build.N_PHOTOS
    assert not set(hits) & set(range(3, 13))
    assert build.choose_photos(table, ("gender", "age")) == build.choose_photos(
        table, ("gender", "age")
    )


def test_a_photo_is_embedded_small(photos: Path) -> None:
    data, size = build.small_photo(photos / PHOTO)
    assert size == (160, 120)
    assert data[:3] == b"\xff\xd8\xff"
    assert len(data) < 20_000


@quickly
def test_who_is_most_often_wrong_comes_first(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "evaluation")
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    for task in TASKS:
        bad = table["identity_true"] == "0000003"
        table[f"{task}_pred"] = table[f"{task}_true"].where(~bad, "another")
    table.to_csv(folder / "predictions.csv", index=False)
    text = said(build.write_report(folder, photos=None).read_text(encoding="utf-8"))
    named = text.partition("Most often wrong: share answered right")[2].partition("All 12")[0]
    assert named.split("age group ")[1].strip() == "0000003 5 0.0 % 0.0 % 0.0 %"


# ----------------------------------------------------------------------------- the training's


@quickly
def test_a_training_report_has_curves_the_best_epoch_and_the_config(tmp_path: Path) -> None:
    path = build.write_training_report(write_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "training.html"
    text = path.read_text(encoding="utf-8")
    for title in ("Loss", "Loss on train, by task", "Identity", "Gender", "Learning rate"):
        assert title in titles(text)
    assert "Kept: epoch 2" in said(text)
    assert "gender, balanced accuracy 60.0 %" in said(text)
    assert "Flags of the training" in said(text)


@quickly
def test_curves_of_strangers_do_not_stand_beside_those_of_people_trained_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    known = build.write_training_report(run).read_text(encoding="utf-8")
    assert "Strangers matched on val" not in titles(known)
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    strangers = {"val_rank_1": 0.5, "val_loss": 1.0, "val_balanced_accuracy_identity": None}
    path.write_text("".join(json.dumps({**r, **strangers}) + "\n" for r in records))
    text = build.write_training_report(run).read_text(encoding="utf-8")
    assert "Strangers matched on val" in titles(text)
    assert "Val shows strangers, who have no identity loss" in said(text)
    alts = {image["alt"] for image in Tags(text).of("img")}
    assert "Loss over epochs; last: train 1, val, gender and age 1." in alts
    assert "Identity over epochs; last: train, accuracy 0.5." in alts
    assert "Strangers matched on val over epochs; last: rank-1 0.5." in alts


def test_a_line_that_a_kill_left_unfinished_is_dropped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lr"')
    assert [r["epoch"] for r in build.read_records(run / "metrics.jsonl")] == [1, 2, 3]


@quickly
def test_damaged_curves_do_not_cost_the_evaluation_its_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text("[]\n{}\n")
    text = build.write_report(write_results(run / "evaluation"), photos=None).read_text()
    assert "No curves:" in said(text)


# ----------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, "missing") for name in ("metrics.json", "predictions.csv", "predictions.npz")),
        *((name, "another") for name in ("metrics.json", "predictions.csv", "predictions.npz")),
        *((name, "cut") for name in ("metrics.json", "predictions.npz")),  # a table: see below
    ],
)
def test_missing_and_damaged_files_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    folder = write_results(tmp_path / "evaluation")
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[: len(whole) // 3] if damage == "cut" else b'{"a": 1}')
    assert report.main(["--results", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert not (folder / "report.html").exists()


def test_files_of_two_evaluations_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_results(tmp_path / "evaluation")
    lines = (folder / "predictions.csv").read_text().splitlines(keepends=True)
    (folder / "predictions.csv").write_text("".join(lines[:-1]))
    assert report.main(["--results", str(folder)]) == 1
    assert "has 59 rows, predictions.npz 60; run test.py again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "holds no epoch yet"),
        ('{"epoch": 1}\n{"lr": 1}\n{"epoch": 3}\n', "line 2 holds no epoch"),
        (None, "cannot be read"),
    ],
)
def test_a_run_without_epochs_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str | None, expected: str
) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    if lines is not None:
        (run / "metrics.jsonl").write_text(lines)
    assert report.main(["--run_dir", str(run)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert expected in error


@quickly
def test_a_photo_that_cannot_be_read_is_named(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / PHOTO).write_text("no photo")
    folder = write_results(tmp_path / "evaluation")
    assert report.main(["--results", str(folder), "--photos", str(photos)]) == 1
    error = capsys.readouterr().err
    assert f"photo {photos / PHOTO}" in error
    assert "--no_photos" in error


# ----------------------------------------------------------------------------- the script


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "give one of --results, --run_dir and --architecture"),
        (["--results", "a", "--run_dir", "b"], "give one of"),
        (["--run_dir", "b", "--no_photos"], "go with --results"),
        (["--results", "a", "--photos", ".", "--no_photos"], "not both"),
        (["--results", "a", "--photos", "nowhere"], "nowhere: no such folder"),
        (["--architecture", "."], "give a .png or .svg or .pdf file"),
        (["--architecture", "network"], "give a .png or .svg or .pdf file"),
        (["--architecture", "network.gif"], "give a .png or .svg or .pdf file"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        report.main(flags)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


@quickly
@pytest.mark.parametrize(
    ("named", "flags", "expected"),
    [
        ("there", [], None),
        ("there", ["--no_photos"], "they were left out"),
        ("elsewhere", [], "elsewhere is not there; report.py --photos DIR"),
        (None, [], "metrics.json names no folder of photos"),
        (None, ["--photos"], None),
    ],
)
def test_photos_come_from_the_folder_named_or_the_page_says_why_not(
    tmp_path: Path, photos: Path, named: str | None, flags: list[str], expected: str | None
) -> None:
    metrics = measured(60, 12)
    metrics["photos"] = str(photos) if named == "there" else named
    folder = write_results(tmp_path / "evaluation", metrics=metrics)
    flags = [*flags, str(photos)] if flags == ["--photos"] else flags
    assert report.main(["--results", str(folder), *flags]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert ("data:image/jpeg" in text) == (expected is None)
    assert (expected or "Most confident mistakes") in said(text)


def test_what_test_py_writes_becomes_a_report(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"
    flags = ["--checkpoint", str(tiny_checkpoint), "--attributes_file", str(attributes)]
    assert test_script.main([*flags, "--num_workers", "0", "--device", "cpu"]) == 0
    folder = tiny_checkpoint.with_name(f"{tiny_checkpoint.stem}-dorsal_dr-val")
    photos = str(split_root / "Hands")
    assert report.main(["--results", str(folder), "--photos", photos]) == 0
    assert report.main(["--run_dir", str(tiny_checkpoint.parent)]) == 0
    assert capsys.readouterr().out.endswith(
        f"wrote {folder / 'report.html'}\nwrote {tiny_checkpoint.parent / 'training.html'}\n"
    )
    found = titles((folder / "report.html").read_text(encoding="utf-8"))
    assert "Same person or not? DET" in found
    assert "Learning rate" in found


def test_the_architecture_is_drawn_by_one_command(tmp_path: Path) -> None:
    path = tmp_path / "architecture.png"
    assert report.main(["--architecture", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.width > 1000
    assert report.main(["--architecture", str(path.with_suffix(".svg"))]) == 0
    assert b"<svg" in path.with_suffix(".svg").read_bytes()


def test_a_folder_that_cannot_be_written_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert report.main(["--architecture", str(tmp_path / "file" / "x.png")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# ----------------------------------------------------------------------------- a browser

MEASURE = """<script>
window.addEventListener("load", () => {
  const root = document.documentElement, findings = [];
  for (const opened of [false, true]) {
    document.querySelectorAll("details").forEach(box => { box.open = opened; });
    findings.push({
      inner: window.innerWidth, wide: root.scrollWidth, room: root.clientWidth,
      outside: [...document.querySelectorAll("main *")].filter(element =>
        !element.closest(".scroll table") &&
        element.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML)
    });
  }
  const images = [...document.images].map(i => [i.alt.length, i.naturalWidth, i.clientWidth]);
  const boxes = [...document.querySelectorAll(".scroll")].map(box => box.tabIndex);
  parent.postMessage(JSON.stringify({findings, images, boxes}), "*");
});
</script></body>"""


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page in Chromium; stdout is its content at the end, stderr what it logs."""
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", *flags]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    return subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )


FRAME = """<!DOCTYPE html><title></title>
<script>window.onmessage = message => { document.title = message.data; };</script>
<iframe src="copy.html" style="border: 0; width: {width}px; height: 900px"></iframe>"""


def measure_page(page: Path, width: int, tmp_path: Path) -> dict[str, Any]:
    """Return what a copy of the page, that may run a script, measures of itself.

    It is shown in a frame, as Chromium's own window has at least 500 pixels.
    """
    text, n_policies = re.subn(
        r"<meta http-equiv.*?>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert n_policies == 1
    (tmp_path / "copy.html").write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.replace("{width}", str(width)), encoding="utf-8")
    window = ("--window-size=1600,1000", "--virtual-time-budget=5000")
    dumped = browse(tmp_path / "frame.html", tmp_path / "profile", *window).stdout
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dumped, re.DOTALL)[1]))  # type: ignore[index]


@in_a_browser
@pytest.mark.parametrize("kind", ["report", "training"])
def test_a_page_holds_in_a_browser_at_two_widths(tmp_path: Path, photos: Path, kind: str) -> None:
    run = write_run(tmp_path / "run")
    page = build.write_training_report(run)
    if kind == "report":
        page = build.write_report(write_results(run / "evaluation", 200, 30), photos=photos)
    assert "CONSOLE" not in browse(page, tmp_path / "profile").stderr
    for width in (1280, 400):
        found = measure_page(page, width, tmp_path)
        for state in found["findings"]:
            assert state["inner"] == width
            assert state["wide"] <= state["room"]
            assert state["outside"] == []
        assert len(found["images"]) >= 6
        assert all(min(image) > 0 for image in found["images"])
        assert all(index == 0 for index in found["boxes"])


@in_a_browser
def test_the_browser_test_sees_what_is_wrong(tmp_path: Path) -> None:
    page = build.write_training_report(write_run(tmp_path / "run"))
    text = page.read_text(encoding="utf-8")
    wide = '<p style="width: 3000px">wide</p><img src="data:image/png;base64,AA" alt="">'
    page.write_text(text.replace("</main>", f"{wide}<script>let x</script></main>"))
    assert "CONSOLE" in browse(page, tmp_path / "profile").stderr  # the page's policy forbids it
    found = measure_page(page, 400, tmp_path)
    assert found["findings"][0]["wide"] > found["findings"][0]["room"]
    assert any("3000px" in element for element in found["findings"][0]["outside"])
    assert found["images"][-1][:2] == [0, 0]
