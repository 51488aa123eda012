"""report.py: which page, which photos, and one line for everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_results import PHOTO, made_up_metrics, write_photo, write_results, write_run

import report
from pages import build, charts


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
