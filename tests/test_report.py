"""report.py: which page, which photos, and one line for everything that is wrong."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from made_up_results import NASTY, PHOTO, made_up_metrics, write_photo, write_results, write_run

import report
from pages import build, charts, model_card
from utils import UserError


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the charts empty: drawing them takes nearly all of the time."""
    monkeypatch.setattr(charts, "encode_svg", lambda figure: b"<svg/>")
    monkeypatch.setattr(build, "save_figure", lambda figure, path, dpi=0: None)


def error_of(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Return the one line that a failing command prints."""
    assert report.main(list(flags)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "give one of --results and --run_dir"),
        (["--results", "a", "--run_dir", "b"], "give one of"),
        (["--run_dir", "b", "--no_photos"], "need --results"),
        (["--run_dir", "b", "--model_card"], "need --results"),
        (["--results", "a", "--photos", ".", "--no_photos"], "not both"),
        (["--results", "a", "--photos", "nowhere"], "no such folder: --photos nowhere"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        report.main(flags)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "flags", "expected"),
    [
        ("Hands", [], None),
        ("Hands", ["--no_photos"], "were left out"),
        ("elsewhere", [], "elsewhere does not exist; give report.py --photos DIR"),
        (None, [], "metrics.json names no folder of photos"),
        (None, ["--photos"], None),
    ],
)
def test_photos_come_from_the_folder_named_or_the_page_says_why_not(
    tmp_path: Path, named: str | None, flags: list[str], expected: str | None
) -> None:
    photos = write_photo(tmp_path / "Hands")
    metrics = made_up_metrics() | {"photos": named and str(tmp_path / named)}
    folder = write_results(tmp_path / "evaluation", metrics=metrics)
    flags = [*flags, str(photos)] if flags == ["--photos"] else flags
    assert report.main(["--results", str(folder), *flags]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert ("data:image/jpeg" in text) == (expected is None)
    assert (expected or "Random photos") in text


def test_it_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert report.main(["--run_dir", str(run)]) == 0
    assert capsys.readouterr().out == f"wrote {run / 'training.html'}\n"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, "missing") for name in ("metrics.json", "predictions.csv", "predictions.npz")),
        *((name, "another") for name in ("metrics.json", "predictions.csv", "predictions.npz")),
        *((name, "cut") for name in ("metrics.json", "predictions.npz")),
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
    assert str(path) in error_of(capsys, "--results", str(folder))
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("training", [5, {"fingerprints": 5}, {"config": "text"}])
def test_training_facts_of_another_type_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], training: object
) -> None:
    metrics = made_up_metrics() | {"training": training}
    folder = write_results(tmp_path / "evaluation", metrics=metrics)
    assert "metrics.json: training" in error_of(capsys, "--results", str(folder))


def test_files_of_two_evaluations_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_results(tmp_path / "evaluation")
    lines = (folder / "predictions.csv").read_text().splitlines(keepends=True)
    (folder / "predictions.csv").write_text("".join(lines[:-1]))
    assert "different evaluations" in error_of(capsys, "--results", str(folder))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "no finished epoch"),
        ('{"epoch": 1}\n{"lr": 1}\n{"epoch": 3}\n', "line 2"),
        (None, "no finished epoch"),
    ],
)
def test_a_run_without_epochs_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str | None, expected: str
) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    if lines is not None:
        (run / "metrics.jsonl").write_text(lines)
    assert expected in error_of(capsys, "--run_dir", str(run))


def test_a_photo_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photo(tmp_path / "Hands")
    (photos / PHOTO).write_text("no photo")
    folder = write_results(tmp_path / "evaluation")
    error = error_of(capsys, "--results", str(folder), "--photos", str(photos))
    assert str(photos / PHOTO) in error
    assert "--no_photos" in error


# ----------------------------------------------------------------------------- model card


def text_of(folder: Path) -> str:
    """Return the words of model_card.html."""
    page = (folder / "model_card.html").read_text(encoding="utf-8").partition("</style>")[2]
    assert NASTY not in page
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def numbers_of(nested: object) -> set[str]:
    """Return the numbers of metrics.json as they may be printed: percent, years, bits."""
    if isinstance(nested, dict):
        return set().union(*map(numbers_of, nested.values()))
    if not isinstance(nested, float):
        return set()
    return {f"{abs(factor * nested):.{n}f}" for factor in (1, 100) for n in (1, 2, 3)}


@pytest.mark.parametrize("unseen", [False, True])
def test_every_number_of_a_model_card_is_in_metrics_json(tmp_path: Path, unseen: bool) -> None:
    metrics = made_up_metrics(unseen)
    folder = write_results(tmp_path / "evaluation", unseen=unseen)
    assert report.main(["--results", str(folder), "--no_photos", "--model_card"]) == 0
    assert (folder / "report.html").exists()
    text = text_of(folder)
    printed = set(re.findall(r"\d+\.\d+", text))
    assert len(printed) > 20
    assert printed <= numbers_of(metrics)
    block = metrics["tasks"]["identity"]["matching" if unseen else "verification"]["all_pairs"]
    if unseen:
        found = block["likelihood_ratio"]
        ends = [found["intervals"]["cllr"][end] for end in ("low", "high")]
        expected = f"Cllr {found['cllr']:.3f} bits ({ends[0]:.3f} to {ends[1]:.3f} bits)"
        assert f"{block['n_impostor']:,} impostor {expected}" in text
        assert "gain in rank-1 by 4 photos per probe (in 12 photos of 12 people)" in text
    else:
        assert "accuracy Cllr – whole interval" in text
        assert "were seen in training, so likelihood ratios were not calibrated" in text
        assert "not met" not in text
        assert re.search(r"people seen in training EER [^–]*; not measured: minimum Cllr –", text)
    assert "coherence: better photos not measured" in text
    assert "generalization: other sessions, cameras and data sets not measured" in text
    assert "Photos and people: not stated" in text  # without config.json


@pytest.mark.parametrize(
    ("high", "baseline", "decisions"),
    [(0.9, 0.01, ["met", "met"]), (1.0, 0.01, ["not met", "met"]), (None, -0.01, ["–", "not met"])],
)
def test_the_whole_interval_meets_a_criterion_of_the_validation_matrix(
    high: float | None, baseline: float, decisions: list[str]
) -> None:
    metrics = made_up_metrics(unseen=True)
    block = metrics["tasks"]["identity"]["matching"]["all_pairs"]
    block["likelihood_ratio"]["intervals"]["cllr"]["high"] = high
    block["baselines"] = {name: {"eer": 0.5} for name in ("chance", "thumbnail")}
    ends = {"low": -0.3, "high": -baseline}
    block["differences_to_baselines"] = {"thumbnail": {"eer": ends}}
    rows = {row[0]: row for row in model_card.validation_matrix(metrics).rows}
    assert [rows[name][-1] for name in ("accuracy", "discriminating power")] == decisions
    assert rows["calibration"][-1] == "–"


def test_a_model_card_counts_the_people_trained_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    stored = json.loads((run / "config.json").read_text())
    stored["label_space"] = {"identity": ["1", "2", "3"], "gender": ["female", "male"]}
    stored["training"] = {
        **{"people": ["1", "2", "3"], "mean_ages": [20.0] * 6},
        "counts": {"identity": [5, 6, 7], "gender": [11, 7]},
        "class_of_person": {"gender": [0, 0, 1]},
    }
    (run / "config.json").write_text(json.dumps(stored))
    folder = write_results(run / "evaluation")
    model_card.write_model_card(folder)
    text = text_of(folder)
    assert "all 18 3 gender: female 11 2 gender: male 7 1" in text
    assert "identity (3 classes), gender (2 classes)" in text
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json"):
        model_card.write_model_card(folder)
