"""gallery.py as a command: enrolment survives kills, searches are exact, removals leave nothing."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import train_tiny

import gallery
import test as test_script
from data.gallery_file import PAGE_SIZE, Entry, Gallery
from data.tables import read_samples
from measures.comparison import compare_fused, support_of
from measures.metrics_json import pair_scores
from measures.typicality import to_unit_length

QUICK = ("--num_workers", "0", "--device", "cpu")
FORK = multiprocessing.get_context("fork" if hasattr(os, "fork") else None)
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command, which must succeed; return its lines."""

    def call(*arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert gallery.main([*map(str, arguments), *QUICK]) == code
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call


@pytest.fixture
def people_dir(split_root: Path, tmp_path: Path) -> Path:
    """Two photos each of three people, in a folder per person."""
    samples = read_samples(split_root / "sub_dataset" / "dorsal_dr.csv")
    for name, part in list(samples.groupby("id"))[:3]:
        folder = tmp_path / "people" / f"person-{name}"
        folder.mkdir(parents=True)
        for photo in part["name"].iloc[2:4]:
            shutil.copy(split_root / "Hands" / photo, folder)
    return tmp_path / "people"


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def test_from_enrolment_to_removal(
    tiny_checkpoint: Path, people_dir: Path, tmp_path: Path, run: Run
) -> None:
    file, sheet = tmp_path / "hands.sqlite", tmp_path / "sheet.html"
    *added, total = run("enroll", file, people_dir, "--checkpoint", tiny_checkpoint)
    assert [line["photos_enrolled"] for line in added] == [2, 2, 2]
    assert total == {"people": 3, "photos": 6}
    assert run("enroll", file, people_dir) == [total]  # nothing new
    name = added[1]["person"]
    photos = sorted((people_dir / name).iterdir())
    (found,) = run("search", file, photos[0], "--html", sheet)
    assert found["candidates"][0]["person"] == name
    assert found["candidates"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert found["candidates"][0]["photo"] == str(photos[0])
    assert f"this photo is enrolled, as {name}: {photos[0]}" in found["warnings"]
    assert len(found["candidates"]) == 3
    page = sheet.read_text("utf-8")
    assert name in page
    assert "data:image/jpeg" not in page
    run("search", file, photos[0], "--html", sheet, "--show_photos")
    assert "data:image/jpeg" in sheet.read_text("utf-8")
    (compared,) = run("verify", file, photos[0], added[0]["person"], "--html", sheet)
    assert -1 <= compared["similarity"] <= 1
    assert compared["support"] is None  # nobody was unseen in the evaluation
    assert "subject-disjoint" in compared["calibration"]
    assert [line["photos"] for line in run("list", file)] == [2, 2, 2]
    with sqlite3.connect(file) as db:
        gone = db.execute(
            "SELECT embedding, sha256, photo.path FROM photo JOIN person ON person.id = person"
            " WHERE name = ?",
            (name,),
        ).fetchall()
    assert any(gone[0][1] in str(line) for line in run("list", file, "--audit"))
    assert run("remove", file, name) == [{"people_removed": 1, "photos_removed": 2}]
    content = b"".join(path.read_bytes() for path in tmp_path.glob("hands.sqlite*"))
    for embedding, sha256, path in gone:
        for secret in (embedding, embedding[:32], sha256.encode(), path, name.encode()):
            assert secret not in content
    actions = [line["action"] for line in run("list", file, "--audit")]
    assert actions == ["enroll"] * 3 + ["search"] * 2 + ["verify", "remove"]


def test_maps_of_a_comparison(
    split_root: Path,
    people_dir: Path,
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pytorch_grad_cam")
    file, folder = tmp_path / "hands.sqlite", tmp_path / "maps"
    checkpoint = train_tiny(split_root, tmp_path / "run", "--N_epochs", "1", "--image_size", "64")
    run("enroll", file, people_dir, "--checkpoint", checkpoint)
    one, other = sorted(people_dir.iterdir())[:2]
    photos = sorted(one.iterdir())
    run("verify", file, photos[0], other.name, "--explain", folder)
    assert (folder / "similarity.png").is_file()
    with (folder / "maps.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["compared_with"] for row in rows] == [other.name, *[str(photos[0])] * 2]
    with np.load(folder / "similarity.npz") as maps:
        assert list(maps) == [row["map"] for row in rows] == ["1_1", "2_1", "2_2"]
        assert all(maps[name].shape == (64, 64) for name in maps)
        assert all(maps[name].max() > 0.9 for name in maps)
    changed = sorted(other.iterdir())[0]
    changed.write_bytes(photos[1].read_bytes())
    arguments = ["verify", file, photos[0], other.name, "--explain", folder / "again"]
    assert gallery.main([*map(str, arguments), *QUICK]) == 1
    assert f"changed since its enrolment: {changed}" in one_error(capsys)
    assert not (folder / "again").exists()
    audit = run("list", file, "--audit")
    assert gallery.main([*map(str, arguments[:-1]), str(changed), *QUICK]) == 1
    assert "error: a file, not a folder" in one_error(capsys)
    assert run("list", file, "--audit") == audit


def test_a_search_equals_brute_force(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    known = random.standard_normal((700, 33)).astype(np.float32)
    person, base = random.integers(0, 40, 700), Gallery(tmp_path / "g", create=True)
    for i in range(40):
        rows = np.flatnonzero(person == i)
        base.enroll(str(i), [Entry(Path(f"{j}.jpg"), str(j), known[j]) for j in rows])
    probes = to_unit_length(random.standard_normal((5, 33)))
    names = base.people()
    found = gallery.search(list(base.chunks()), probes, max(names) + 1)
    wide = known / np.linalg.norm(known.astype(np.float64), axis=1, keepdims=True)
    for row, probe in zip(found, probes, strict=True):
        expected = {str(i): (wide[person == i] @ probe).max() for i in range(40)}
        ranked = [names[i] for i in np.argsort(-row)[:40]]
        assert ranked == sorted(expected, key=expected.__getitem__, reverse=True)
        np.testing.assert_allclose([row[i] for i in names], list(expected.values()), atol=1e-6)


def test_search_and_verification_reproduce_the_evaluation(
    disjoint_checkpoint: Path, split_root: Path, tmp_path: Path, run: Run
) -> None:
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"
    arguments = ["--checkpoint", str(disjoint_checkpoint), "--attributes_file", str(attributes)]
    assert test_script.main([*arguments, *QUICK]) == 0
    results = gallery.find_calibration(disjoint_checkpoint)
    assert results is not None
    arrays = dict(results.arrays)
    fold = split_root / "trainval" / "subject-disjoint" / "dorsal_dr" / "fold_1"
    samples, file = read_samples(fold / "test.csv"), tmp_path / "hands.sqlite"
    draw, hands, unique = arrays["galleries"][0], tmp_path / "hands.csv", {}
    rows = [f"{samples['image_path'][i]},{samples['id'][i]}" for i in draw]
    hands.write_text("\n".join(["image_path,id", *rows]), "utf-8")
    run("enroll", file, hands, "--checkpoint", disjoint_checkpoint)
    scores = pair_scores(arrays, 0)
    for i, photo in enumerate(samples["image_path"]):
        (found,) = run("search", file, photo)
        expected = dict(zip(samples["id"][draw], scores.similarity[i][draw], strict=True))
        for candidate in found["candidates"]:
            if i not in draw:
                similarity = expected[candidate["person"]]
                assert candidate["similarity"] == pytest.approx(similarity, abs=1e-5)
        unique[i] = found["candidates"][0]["person"] == samples["id"][i]
    queries = np.setdiff1d(np.arange(len(samples)), draw)
    expected_hits = scores.ranks[queries, 0] == 1
    assert [unique[i] for i in queries] == expected_hits.tolist()


def test_a_ratio_of_the_calibration_is_that_of_the_evaluation() -> None:
    random = np.random.default_rng(0)
    people = np.repeat([f"p{i:02d}" for i in range(14)], 6)
    centers = np.repeat(random.standard_normal((14, 8)), 6, axis=0)
    embeddings = (centers + 0.7 * random.standard_normal((84, 8))).astype(np.float32)
    arrays = {"embedding": embeddings, "people": people, "frame_number": np.arange(84.0)}
    scores = pair_scores(arrays | {"galleries": np.arange(0, 84, 6)[None]}, 0)
    for pair in (0, 3, 1000, 3000):
        ends = scores.pairs.first[pair], scores.pairs.second[pair]
        one, two = (embeddings[[i]] for i in ends)
        found = support_of(one, two, embeddings, people)
        assert found is not None
        assert found.log10_ratio == pytest.approx(scores.log_ratios[pair] / np.log(10), abs=1e-5)
        assert found.bounds[0] <= found.log10_ratio <= found.bounds[1]
    stranger = centers[:1] + 0.7 * random.standard_normal((1, 8))
    other = support_of(stranger, embeddings[[0]] + 0.1, embeddings, people)
    assert other is not None
    assert other.left_out == []
    assert other.n_people == 14


def test_fused_photos_are_calibrated_on_disjoint_photos() -> None:
    people = np.repeat(["a", "b", "c"], [7, 6, 2])
    embeddings = np.eye(15, dtype=np.float32)  # only a shared photo would make a similarity
    pairs = compare_fused(embeddings, people, 1, 2)
    assert pairs.genuine.sum() == 2 * 2 + 2 * 2
    assert len(pairs.score) == 4 * 4
    assert pairs.score.max() == 0 or pairs.genuine[pairs.score > 0].all()


# ----------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("damage", ["text", "cut", "other", "zeros"])
@pytest.mark.parametrize("command", ["list", "search", "remove"])
def test_a_damaged_file_is_one_line(
    damage: str,
    command: str,
    tiny_checkpoint: Path,
    people_dir: Path,
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "hands.sqlite"
    run("enroll", file, people_dir, "--checkpoint", tiny_checkpoint)
    content = file.read_bytes()
    if damage == "other":
        file.unlink()
        sqlite3.connect(file).execute("CREATE TABLE x (y)")
    else:
        file.write_bytes(
            {
                "text": b"image_path,id\n" * 99,
                "cut": content[: PAGE_SIZE + 99],
                "zeros": content[:PAGE_SIZE] + bytes(len(content) - PAGE_SIZE),
            }[damage]
        )
    photo = next(people_dir.rglob("*.jpg"))
    inputs = {"list": [], "search": [str(photo)], "remove": [photo.parent.name]}[command]
    run(command, file, *inputs, code=1)
    gallery.main([command, str(file), *inputs, *QUICK])
    assert str(file) in one_error(capsys)


def test_what_cannot_be_done_is_one_line(
    tiny_checkpoint: Path,
    disjoint_checkpoint: Path,
    people_dir: Path,
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "hands.sqlite"
    photos = sorted(people_dir.rglob("*.jpg"))

    def error_of(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert gallery.main([*map(str, arguments), *QUICK]) == 1
        return one_error(capsys)

    assert "no such gallery" in error_of("search", file, photos[0])
    assert "Give --checkpoint" in error_of("enroll", file, people_dir)
    assert not file.exists()
    run("enroll", file, people_dir, "--checkpoint", tiny_checkpoint)
    other = ("--checkpoint", disjoint_checkpoint)
    assert "not the model" in error_of("search", file, photos[0], *other)
    assert "not enrolled: nobody" in error_of("remove", file, photos[0].parent.name, "nobody")
    assert len(run("list", file)) == 3
    assert "same photo" in error_of("verify", file, photos[0], photos[0].parent.name)
    assert "neither" in error_of("verify", file, photos[0], "nobody")
    moved = tiny_checkpoint.rename(tmp_path / "moved.pth")
    assert "Give --checkpoint if it has moved" in error_of("search", file, photos[0])
    moved.rename(tiny_checkpoint)
    copy = people_dir / "copycat"
    copy.mkdir()
    shutil.copy(photos[0], copy)
    assert "already enrolled as" in error_of("enroll", file, people_dir)
    shutil.rmtree(copy)
    photos[0].write_bytes(photos[1].read_bytes()[:-2] + b"\xff\xd9\x00")
    assert "changed since its enrolment" in error_of("enroll", file, people_dir)


# ----------------------------------------------------------------------------- several processes

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def write(file: Path, first: int, n_people: int, log: Path) -> None:
    """Enroll people and remove every third again; log each step when it is done."""
    base, photos = Gallery(file, create=True), np.eye(4, 300, dtype=np.float32)
    with log.open("ab", buffering=0) as lines:
        for i in range(first, first + n_people):
            base.enroll(f"p{i}", [Entry(Path(f"{i}-{j}"), f"{i}-{j}", photos[j]) for j in range(4)])
            lines.write(f"enrolled p{i}\n".encode())
            if i % 3 == 0:
                lines.write(f"removing p{i}\n".encode())
                base.remove([f"p{i}"])
                lines.write(f"removed p{i}\n".encode())


def check_log(file: Path, log: Path) -> None:
    """Check that what was logged is in the gallery, and nothing half."""
    base, done = Gallery(file), [line.split() for line in log.read_text().splitlines()]
    assert base.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    counts = base.db.execute(
        "SELECT COUNT(photo.id) FROM person LEFT JOIN photo"
        " ON person = person.id GROUP BY person.id"
    )
    assert {count for (count,) in counts} <= {4}
    enrolled, removing, removed = (
        {name for word, name in done if word == step}
        for step in ("enrolled", "removing", "removed")
    )
    names = set(base.people().values())
    assert enrolled - removing <= names
    assert not removed & names


@needs_fork
@pytest.mark.parametrize("n_kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_nothing_is_lost_or_half_after_a_kill(n_kills: int, tmp_path: Path) -> None:
    file, log, random = tmp_path / "hands.sqlite", tmp_path / "log", np.random.default_rng(0)
    for kill in range(n_kills):
        start = len(log.read_bytes()) if log.exists() else 0
        writer = FORK.Process(target=write, args=(file, 10_000 * kill, 10_000, log))
        writer.start()
        while not log.exists() or len(log.read_bytes()) == start:
            assert writer.is_alive()
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.05))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        check_log(file, log)


@needs_fork
def test_two_processes_enroll_at_once(tmp_path: Path) -> None:
    file, log = tmp_path / "hands.sqlite", tmp_path / "log"  # both create the file
    writers = [FORK.Process(target=write, args=(file, first, 30, log)) for first in (0, 1000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    check_log(file, log)
    assert len(Gallery(file).people()) == 40
