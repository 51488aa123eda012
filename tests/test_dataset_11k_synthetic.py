"""The drawn data set: its layout, its folder's safety, and what its pictures tell."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import dataset_11k_synthetic as synthetic
from data.tables import read_hand_info
from dataset_11k import AGE_GROUPS, ASPECTS, GENDERS, HAND_INFO_COLUMNS, age_group
from dataset_11k_synthetic import SyntheticConfig, main

SMALL = ("--identities", "3", "--images_per_identity", "3", "--width", "64", "--processes", "1")
SIZE = (320, 240)


def draw_small(output: Path, *more: str) -> int:
    return main([*SMALL, "--output", str(output), *more])


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that no test writes to."""
    output = tmp_path_factory.mktemp("drawn") / "11k"
    assert draw_small(output) == 0
    return output


@pytest.fixture
def own_set(small_set: Path, tmp_path: Path) -> Path:
    """A copy of `small_set` to write to, alone in its folder."""
    return Path(shutil.copytree(small_set, tmp_path / "11k"))


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def photo(
    person: synthetic.Person,
    aspect: str,
    *,
    accessories: bool = False,
    frame: int = 0,
    size: tuple[int, int] = SIZE,
    pose: dict[str, float] | None = None,
    outfit: dict[str, Any] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return a photo, (h, w, 3) float64 in 0..255; `pose` and `outfit` change what was drawn."""
    hand = synthetic.build_hand(seed, person, aspect, 3 * size[0] / 640)
    drawn = synthetic.draw_poses(seed, person, aspect, frame + 1)[frame] | (pose or {})
    worn = synthetic.draw_outfit(seed, person, aspect)._replace(**(outfit or {}))
    noise = np.zeros(size[::-1], np.float32)
    image = synthetic.render(hand, worn, drawn, size=size, accessories=accessories, noise=noise)
    return np.asarray(image, dtype=np.float64)


@pytest.fixture
def person() -> synthetic.Person:
    return replace(synthetic.draw_people(0, 1)[0], skin="medium", polish=False, scar=False)


# ----------------------------------------------------------------------------- layout


def test_layout_is_that_of_the_real_set(small_set: Path) -> None:
    assert sorted(path.name for path in small_set.iterdir()) == [
        "HandInfo.csv",
        "Hands",
        "synthetic.json",
    ]
    names = sorted(path.name for path in (small_set / "Hands").iterdir())
    assert names == [f"Hand_{number:07d}.jpg" for number in range(2, 2 + 3 * 4 * 3)]
    with Image.open(small_set / "Hands" / names[0]) as image:
        assert (image.size, image.mode, image.format) == ((64, 48), "RGB", "JPEG")
    table = read_hand_info(small_set / "HandInfo.csv")
    assert table["imageName"].tolist() == names
    runs = table.groupby(["id", "aspectOfHand"], sort=False)["imageName"].agg(list)
    assert [name for run in runs for name in run] == names  # neighbours are of one hand
    assert table["aspectOfHand"].drop_duplicates().tolist() == list(ASPECTS.values())


def test_quoting_line_ends_and_dirty_id_are_as_published(small_set: Path) -> None:
    text = (small_set / "HandInfo.csv").read_bytes().decode()
    assert text.endswith("\r\n")
    assert text.count("\n") == text.count("\r\n") == 1 + 36
    header, *lines = text.split("\r\n")[:-1]
    assert header == ",".join(HAND_INFO_COLUMNS)
    rows = list(csv.reader(lines))
    for line, row in zip(lines, rows, strict=True):
        identity, age, gender, skin, worn, polish, aspect, name, odd = row
        assert line == (
            f'"{identity}",{age},"{gender}","{skin}",{worn},{polish},"{aspect}","{name}",{odd}'
        )
        assert len(identity.strip()) == 7
    dirty = [row for row in rows if row[0] != row[0].strip()]
    assert [(row[0], row[4], row[6]) for row in dirty] == [("1200000 ", "0", "dorsal right")]
    assert sum(row[0] == "1200000" for row in rows) == 11


@pytest.mark.parametrize("n_people", [1, 2, 7, 24, 200])
def test_people_are_varied_and_in_order(n_people: int) -> None:
    people = synthetic.draw_people(5, n_people)
    ids = [person.id for person in people]
    assert ids == sorted(set(ids))
    assert len(ids) == n_people
    assert "1200000" in ids
    assert all(18 <= person.age <= 75 for person in people)
    if n_people >= 2:
        assert {person.gender for person in people} == set(GENDERS)
    if n_people >= 24:
        groups = [age_group(person.age) for person in people]
        counts = {group: groups.count(group) for group in AGE_GROUPS}
        assert min(counts.values()) >= 3
        for group in AGE_GROUPS:  # or gender would follow from age
            genders = [p.gender for p in people if age_group(p.age) == group]
            assert set(genders) == set(GENDERS)
    if n_people == 200:
        assert counts["21"] > 3 * counts["31-75"]


def test_columns_agree_within_a_person() -> None:
    config = SyntheticConfig(identities=60, images_per_identity=5)
    lines = synthetic.hand_info_text(config).split("\r\n")[1:-1]
    rows = [dict(zip(HAND_INFO_COLUMNS, row, strict=True)) for row in csv.reader(lines)]
    facts: dict[str, set[tuple[str, ...]]] = {}
    for row in rows:
        same = ("age", "gender", "skinColor", "irregularities")
        facts.setdefault(row["id"].strip(), set()).add(tuple(row[name] for name in same))
    assert len(facts) == 60
    assert all(len(found) == 1 for found in facts.values())
    plain = {(row["id"].strip(), row["aspectOfHand"]) for row in rows if row["accessories"] == "0"}
    assert len(plain) == 60 * 4  # the split loses nobody
    for column in ("accessories", "nailPolish", "irregularities"):
        assert {row[column] for row in rows} == {"0", "1"}
    assert not any(r["nailPolish"] == "1" for r in rows if r["aspectOfHand"].startswith("palmar"))


def test_files_do_not_depend_on_processes_but_on_the_seed(tmp_path: Path) -> None:
    flags = ("--identities", "2", "--images_per_identity", "1", "--width", "64")
    for name, more in (("a", "1"), ("b", "2")):
        assert main([*flags, "--output", str(tmp_path / name), "--processes", more]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    output = str(tmp_path / "c")
    assert main([*flags, "--output", output, "--processes", "1", "--seed", "1"]) == 0
    a, c = contents(tmp_path / "a"), contents(tmp_path / "c")
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a)


# ----------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("aspect", "side"),
    [("dorsal right", 1), ("dorsal left", -1), ("palmar right", -1), ("palmar left", 1)],
)
def test_thumb_is_on_its_side(person: synthetic.Person, aspect: str, side: int) -> None:
    pose = {"turn": 0.0, "x": 0.5, "spread": 0.3, "thumb": 8.0, "shadow": 0.0, "warmth": 0.0}
    image = photo(person, aspect, pose=pose, outfit={"sleeve": None})
    hand = image.min(axis=2) < 0.75 * 255
    assert not hand[-1].any()  # fingers down, in the photo
    assert hand[0].any()  # the arm comes from above
    row = hand[int(0.42 * SIZE[1])]  # between wrist and fingertips
    left, right = np.flatnonzero(row)[[0, -1]]
    assert side * ((right - SIZE[0] / 2) - (SIZE[0] / 2 - left)) > 0.05 * SIZE[0]


@pytest.mark.parametrize("aspect", ASPECTS.values())
@pytest.mark.parametrize("ring", ["index", "middle", "ring"])
def test_accessories_are_drawn(person: synthetic.Person, aspect: str, ring: str) -> None:
    straight = {"turn": 0.0, "x": 0.5}
    changed = {}
    for watch in (None, -10.0):
        outfit = {"sleeve": None, "ring": ring, "watch": watch}
        without, worn = (
            photo(person, aspect, accessories=on, pose=straight, outfit=outfit)
            for on in (False, True)
        )
        changed[watch] = np.abs(worn - without).max(axis=2) > 25
    ring_rows, watch_rows = (np.flatnonzero(c.any(axis=1)) for c in changed.values())
    assert 8 < changed[None].sum() < 400  # pixels of the ring
    assert ring_rows.min() > 0.42 * SIZE[1]  # on a finger, below the knuckles
    assert watch_rows.min() < 0.3 * SIZE[1]
    assert changed[-10.0].sum() > changed[None].sum() + 200


def test_nail_polish_is_drawn_on_the_back_alone(person: synthetic.Person) -> None:
    for aspect in ("dorsal right", "palmar right"):
        bare, painted = (photo(replace(person, polish=on), aspect) for on in (False, True))
        differ = np.abs(bare - painted).max(axis=2) > 15
        assert differ.any() == aspect.startswith("dorsal")
        assert differ.mean() < 0.03


def test_scar_is_drawn(person: synthetic.Person) -> None:
    plain, scarred = (photo(replace(person, scar=on), "dorsal right") for on in (False, True))
    differ = np.abs(plain - scarred).max(axis=2) > 5
    assert 10 < differ.sum() < 1000


def test_neighbours_are_nearer_than_other_people() -> None:
    people = synthetic.draw_people(0, 4)
    for aspect in ASPECTS.values():
        frames = [[photo(p, aspect, frame=frame) for frame in (0, 1)] for p in people]
        near = np.array([np.abs(second - first).mean() for first, second in frames])
        others = np.array(
            [[np.abs(a[0] - b[0]).mean() for b in frames if b is not a] for a in frames]
        )
        assert (near > 0).all()
        assert (near < others.min(axis=1)).all()
        assert near.mean() < 0.65 * others.mean()


def test_age_wears_the_skin(person: synthetic.Person) -> None:
    for aspect in ("dorsal right", "palmar left"):
        detail = []
        for age in (18, 26, 70):
            image = photo(replace(person, age=age), aspect, size=(640, 480), pose={"blur": 0.0})
            palm = image[120:240, 280:360].mean(axis=2)
            detail.append(np.abs(np.diff(palm, axis=0)).mean() / palm.mean())
        assert detail[0] < detail[1] < detail[2]
        assert detail[2] > 1.3 * detail[0]


def test_picture_is_the_same_at_any_width(person: synthetic.Person) -> None:
    large = photo(person, "palmar right", size=(1600, 1200))
    small = photo(person, "palmar right", size=(400, 300))
    reduced = large.reshape(300, 4, 400, 4, 3).mean(axis=(1, 3))
    other = photo(person, "palmar right", size=(400, 300), frame=1)
    assert np.abs(reduced - small).mean() < 0.5 * np.abs(other - small).mean()


def gender_photos(
    n_people: int, n_photos: int, aspects: Sequence[str], size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return photos (n_people, n_photos, h, w, 3) in 0..1 and who is male, (n_people,) int."""
    people = synthetic.draw_people(seed, n_people)
    drawn = 2 * size[0], 2 * size[1]
    noise = np.zeros(drawn[::-1], np.float32)
    photos = np.empty((n_people, n_photos, size[1], size[0], 3), np.float32)
    for i, someone in enumerate(people):
        aspect = aspects[i % len(aspects)]
        hand = synthetic.build_hand(seed, someone, aspect, 3 * drawn[0] / 640)
        outfit = synthetic.draw_outfit(seed, someone, aspect)
        poses = synthetic.draw_poses(seed, someone, aspect, 2 * n_photos)[::2]
        for j, pose in enumerate(poses):
            image = synthetic.render(hand, outfit, pose, size=drawn, accessories=False, noise=noise)
            photos[i, j] = np.asarray(image.resize(size, Image.Resampling.BOX)) / 255
    return photos, np.array([someone.gender == "male" for someone in people], dtype=np.int64)


def cross_validated(features: np.ndarray, male: np.ndarray) -> float:
    """Return the balanced accuracy of a logistic regression on people it has not seen."""
    fold = np.random.default_rng(0).permutation(len(male)) % 5
    predicted = np.empty_like(male)
    for k in range(5):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        model.fit(features[fold != k], male[fold != k])
        predicted[fold == k] = model.predict(features[fold == k])
    return float(balanced_accuracy_score(male, predicted))


def test_colours_tell_no_gender() -> None:
    photos, male = gender_photos(160, 1, list(ASPECTS.values()), (80, 60), seed=3)
    features = np.concatenate([photos[:, 0].mean((1, 2)), photos[:, 0].std((1, 2))], axis=1)
    assert cross_validated(features, male) < 0.6
    leak = features + 0.02 * male[:, None] * np.array([0, 0, 0, 1, 1, 1])
    assert cross_validated(leak, male) > 0.6  # so the check would see a leak


def small_network() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 48), (48, 64)):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers gain nothing from threads, and lose much where processors are shared."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_small_network_learns_gender_of_people_never_seen() -> None:
    photos, male = gender_photos(160, 3, ["dorsal right"], (128, 96), seed=4)
    n_train, n_epochs, batch = 110, 20, 32
    images = torch.from_numpy(photos).permute(0, 1, 4, 2, 3).sub(0.8).div(0.25)
    seen, unseen = images[:n_train].flatten(0, 1), images[n_train:].flatten(0, 1)
    target = torch.from_numpy(male).repeat_interleave(3)
    torch.manual_seed(0)
    network = small_network()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    n_steps = n_epochs * (len(seen) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, n_steps)
    for _ in range(n_epochs):
        for rows in torch.randperm(len(seen))[: len(seen) // batch * batch].split(batch):
            shift = tuple(torch.randint(-4, 5, (2,)).tolist())
            logits = network(seen[rows].roll(shift, (2, 3)))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, target[rows]).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        predicted = network(unseen).argmax(1).numpy()
    assert balanced_accuracy_score(target[3 * n_train :].numpy(), predicted) > 0.7


# ----------------------------------------------------------------------------- the folder


def test_same_flags_draw_nothing_again(small_set: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (small_set / "HandInfo.csv").stat().st_mtime_ns, contents(small_set)
    assert draw_small(small_set, "--processes", "2") == 0
    said = capfd.readouterr().err
    assert "is there already" in said
    assert said.endswith(f"split it: python dataset_11k_split.py --input {small_set}\n")
    assert ((small_set / "HandInfo.csv").stat().st_mtime_ns, contents(small_set)) == before


def test_other_flags_are_refused_by_name(
    small_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(small_set)
    assert draw_small(small_set, "--seed", "7") == 1
    error = capfd.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("error: ")
    assert "seed 0 (asked: 7)" in error
    assert "width" not in error
    assert "--overwrite" in error
    assert contents(small_set) == before


def test_overwrite_replaces_an_own_set_and_its_splits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "11k"
    flags = ("--identities", "1", "--images_per_identity", "1", "--width", "64")
    assert main([*flags, "--processes", "1", "--output", str(output)]) == 0
    before = contents(output)
    (output / "sub_dataset").mkdir()
    (output / "sub_dataset" / "dorsal_dr.csv").write_text("stale")
    again = [*flags, "--processes", "1", "--output", str(output), "--seed", "1", "--overwrite"]
    assert main(again) == 0
    assert "sub_dataset" in capfd.readouterr().err
    after = contents(output)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
    (output / "notes.txt").write_text("mine")
    assert main([*again, "--seed", "2"]) == 1
    assert "notes.txt" in capfd.readouterr().err
    assert contents(output) == {**after, "notes.txt": b"mine"}
    (output / "notes.txt").rename(output / "Hands" / "mine.jpg")
    assert main([*again, "--seed", "2"]) == 1
    assert "Hands/mine.jpg" in capfd.readouterr().err
    assert contents(output) == {**after, "Hands/mine.jpg": b"mine"}


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "files",
    [{"HandInfo.csv": "id\n"}, {"holiday.jpg": "x"}, {"HandInfo.csv": "", "synthetic.json": "{}"}],
)
def test_foreign_folder_is_left_alone(
    tmp_path: Path,
    files: dict[str, str],
    overwrite: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "11k"
    output.mkdir()
    for name, text in files.items():
        (output / name).write_text(text)
    before = contents(tmp_path)
    assert draw_small(output, *overwrite) == 1
    error = capfd.readouterr().err.strip()
    assert error.count("\n") == 0
    assert error.startswith(f"error: {output}")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_replaced_hand_info_is_noticed(
    own_set: Path, overwrite: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    (own_set / "HandInfo.csv").write_text("id,age\n")
    before = contents(own_set)
    assert draw_small(own_set, *overwrite) == 1
    assert "was changed since it was drawn" in capfd.readouterr().err
    assert contents(own_set) == before


def test_lost_photo_is_noticed(own_set: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = contents(own_set)
    (own_set / "Hands" / "Hand_0000004.jpg").unlink()
    assert draw_small(own_set) == 1
    assert "1 of 36 photos are missing" in capfd.readouterr().err
    assert draw_small(own_set, "--overwrite") == 0
    assert contents(own_set) == before
    assert [path.name for path in own_set.parent.iterdir()] == ["11k"]


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "error: cannot write"),
    ],
)
def test_interruption_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    failure: BaseException,
    code: int,
    text: str,
) -> None:
    drawn = []

    def fail_later(*args: Any, **kwargs: Any) -> Image.Image:
        drawn.append(list(tmp_path.glob(".11k.*.tmp/Hands/*.jpg")))
        if len(drawn) == 4:
            raise failure
        return Image.new("RGB", (64, 48))

    monkeypatch.setattr(synthetic, "render", fail_later)
    assert draw_small(tmp_path / "11k") == code
    assert text in capfd.readouterr().err
    assert len(drawn[-1]) == 3  # it was under way
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_runs_are_removed_once_old(tmp_path: Path) -> None:
    for name, age in (("old", 2 * synthetic.STALE_SECONDS), ("young", 0)):
        photos = tmp_path / f".11k.{name}.tmp" / "Hands"
        photos.mkdir(parents=True)
        moment = photos.stat().st_mtime - age
        os.utime(photos, (moment, moment))
    with synthetic.temporary_sibling(tmp_path / "11k"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".11k.young.tmp"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--identities", "0"),
        ("--images_per_identity", "0"),
        ("--width", "66"),
        ("--width", "32"),
        ("--processes", "0"),
        ("--seed", "-1"),
        ("--contact_sheet", "sheet.jpg"),
        ("--identity", "3"),
    ],
)
def test_bad_flags_exit_2(
    tmp_path: Path, flags: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(tmp_path / "11k"), *flags])
    assert stop.value.code == 2
    assert flags[0] in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_a_file_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "11k").write_text("mine")
    assert draw_small(tmp_path / "11k") == 1
    assert "is a file" in capfd.readouterr().err
    assert (tmp_path / "11k").read_text() == "mine"


def test_contact_sheet_of_a_set_that_is_there(small_set: Path, tmp_path: Path) -> None:
    before = contents(small_set)
    sheet = tmp_path / "sheet.png"
    assert draw_small(small_set, "--contact_sheet", str(sheet)) == 0
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.size == (960, 3 * 250 + 28)
        colours = np.asarray(image.convert("RGB"), dtype=float)
    assert (colours[:28].min(axis=(0, 2)) < 100).any()  # labels
    for cell in range(4):
        shown = colours[28:278, 240 * cell : 240 * (cell + 1)]
        assert 0.05 < (shown.min(axis=2) < 190).mean() < 0.8  # a hand
    assert sheet.stat().st_size < 500_000
    assert contents(small_set) == before


def test_marker_tells_the_flags(small_set: Path) -> None:
    marker = json.loads((small_set / "synthetic.json").read_text())
    flags = {"identities": 3, "images_per_identity": 3, "width": 64, "seed": 0}
    assert marker["flags"] == {"drawing": synthetic.DRAWING, **flags}
