"""Shared fixtures: a tiny data set, tiny checkpoints, the real photos if available, clean globals.

`hands_root` is a root with Hands/ and HandInfo.csv, `split_root` the same after
dataset_11k_split.py; `make_hands_root(name, n_frames=...)` makes further ones.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import dataset_11k_split
from dataset_11k import ASPECTS, HAND_INFO_COLUMNS

# id, age, gender, skin colour, colour of the hand: every age group once, ids with leading zeros.
PEOPLE = (
    ("0000000", 18, "male", "fair", (200, 60, 60)),
    ("0000002", 21, "female", "medium", (60, 200, 60)),
    ("0000041", 22, "female", "medium", (60, 60, 200)),
    ("0000503", 23, "male", "dark", (200, 200, 60)),
    ("0001071", 30, "female", "very fair", (60, 200, 200)),
    ("1200000", 75, "male", "fair", (200, 60, 200)),
)
# Wears a ring on every photo, so is in no split.
RING_BEARER = ("0000777", 45, "female", "fair", (120, 120, 120))


def pytest_configure() -> None:
    """Make the model hub and its local cache unreachable, also for child processes."""
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
    os.environ["no_proxy"] = "*"  # a proxy would answer instead
    os.environ["HF_HUB_CACHE"] = str(Path(tempfile.gettempdir()) / "igae-tests-empty-hub-cache")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections that leave this machine."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    def resolve_nothing(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host in (None, "", "127.0.0.1", "::1", "localhost", b"localhost"):
            return resolve(host, *args, **kwargs)
        raise socket.gaierror(f"a test tried to look up {host}")

    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_nothing)


@contextlib.contextmanager
def same_globals() -> Iterator[None]:
    """Restore what a script's `main` changes: logger, random generators, torch settings."""
    logger = logging.getLogger("igae")
    logging_before = (list(logger.handlers), logger.level, logger.propagate)
    generators = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filler: Any = torch.utils.deterministic
    fill = filler.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    for handler in logger.handlers:
        if handler not in logging_before[0]:
            handler.close()
    logger.handlers, level, logger.propagate = logging_before
    logger.setLevel(level)
    random.setstate(generators[0])
    np.random.set_state(generators[1])
    torch.set_rng_state(generators[2])
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    filler.fill_uninitialized_memory = fill
    torch.backends.cudnn.benchmark = benchmark
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if workspace is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


@pytest.fixture(autouse=True)
def clean_globals() -> Iterator[None]:
    with same_globals():
        yield


def draw_hand(person: tuple[Any, ...], aspect: str, frame: int) -> Image.Image:
    """Return a 64x48 near-white photo: a blob in the person's colour, a black bar for males.

    Frames of a person and aspect are shifted by a pixel, like neighbouring frames of real data.
    """
    _, _, gender, _, colour = person
    photo = Image.new("RGB", (64, 48), (245, 245, 240))
    draw = ImageDraw.Draw(photo)
    left = 10 + frame + (6 if aspect.endswith("left") else 0)
    draw.ellipse((left, 6, left + 34, 44), fill=colour)
    if gender == "male":
        draw.rectangle((0, 0, 63, 4), fill=(20, 20, 20))
    return photo


@pytest.fixture
def make_hands_root(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that builds <tmp_path>/<name> with all oddities of the real data.

    - every aspect has 6 people x `n_frames` photos, dorsal left one more (an odd number);
    - one id ends in a stray blank, two neighbouring frames of a person are the same picture;
    - photos with accessories, among them all photos of one person.
    """

    def make(name: str = "11k", *, n_frames: int = 4) -> Path:
        root = tmp_path / name
        (root / "Hands").mkdir(parents=True)
        lines = [",".join(HAND_INFO_COLUMNS)]

        def add(person: tuple[Any, ...], aspect: str, frame: int, accessories: int) -> None:
            number = len(lines) + 1
            photo = f"Hand_{number:07d}.jpg"
            draw_hand(person, aspect, frame).save(root / "Hands" / photo, quality=90)
            identity, age, gender, skin, _ = person
            blank = " " if (identity, aspect, frame) == ("1200000", "dorsal right", 2) else ""
            polish = int(gender == "female" and frame % 2)
            lines.append(
                f'"{identity}{blank}",{age},"{gender}","{skin}",{accessories},{polish},'
                f'"{aspect}","{photo}",0'
            )

        for person in PEOPLE:
            for aspect in ASPECTS.values():
                for frame in range(n_frames):
                    add(person, aspect, max(frame, 1), 0)  # frames 0 and 1: the same picture
                if person is PEOPLE[1]:
                    add(person, aspect, n_frames, 1)
        add(PEOPLE[5], "dorsal left", n_frames, 0)
        for aspect in ASPECTS.values():
            add(RING_BEARER, aspect, 0, 1)
        text = "".join(line + "\r\n" for line in lines)
        (root / "HandInfo.csv").write_text(text, encoding="utf-8", newline="")
        return root

    return make


@pytest.fixture
def hands_root(make_hands_root: Callable[..., Path]) -> Path:
    return make_hands_root()


def run_quietly(main: Callable[[list[str]], int], *argv: str) -> None:
    """Run a script; it must succeed. Its output and its changes of the process are discarded."""
    with (
        same_globals(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main(list(argv))
    assert code == 0, err.getvalue()


@pytest.fixture
def split_root(hands_root: Path) -> Path:
    run_quietly(dataset_11k_split.main, "--input", str(hands_root))
    return hands_root


def train_tiny(root: Path, run: Path, *flags: str) -> Path:
    """Train a tiny model at 32 pixels on dorsal_dr of `root`; return its best checkpoint.

    A run with the same flags is trained once per session and copied.
    """
    import train  # late, so that tests of the lower rooms do not depend on it

    if flags not in TRAINED:
        kept = Path(tempfile.mkdtemp(prefix="igae-tests-")) / "run"
        fixed = "--backbone test_resnet --no-pretrained --image_size 32 --amp off --device cpu"
        fixed += f" --num_workers 0 --batch_size 8 --run_dir {kept}"
        attributes = root / "sub_dataset" / "dorsal_dr.csv"
        run_quietly(train.main, "--attributes_file", str(attributes), *fixed.split(), *flags)
        atexit.register(shutil.rmtree, kept.parent, ignore_errors=True)
        TRAINED[flags] = kept
    shutil.copytree(TRAINED[flags], run)
    return next(run.glob("*-best.pth"))


TRAINED: dict[tuple[str, ...], Path] = {}  # flags -> folder of the run


@pytest.fixture
def tiny_checkpoint(split_root: Path, tmp_path: Path) -> Path:
    """The best checkpoint of two epochs of protocol paper."""
    return train_tiny(split_root, tmp_path / "run", "--N_epochs", "2")


@pytest.fixture
def disjoint_checkpoint(split_root: Path, tmp_path: Path) -> Path:
    """One epoch on fold 1 of 3: two people each in train, val and test."""
    protocol = ("--protocol", "subject-disjoint")
    run_quietly(dataset_11k_split.main, "--input", str(split_root), *protocol, "--folds", "3")
    flags = (*protocol, "--fold", "1", "--N_epochs", "1")
    return train_tiny(split_root, tmp_path / "disjoint", *flags)


@pytest.fixture
def half_checkpoint(split_root: Path, tmp_path: Path) -> Path:
    """One epoch of protocol half: three people in train and val, three others in test."""
    protocol = ("--protocol", "half")
    run_quietly(dataset_11k_split.main, "--input", str(split_root), *protocol)
    return train_tiny(split_root, tmp_path / "half", *protocol, "--N_epochs", "1")


@pytest.fixture
def lists_dir(hands_root: Path) -> Path:
    """Two repeats of list files as published: Windows line ends, photos with accessories.

    Test has three people, then the other three. The first training lists have the bearer of the
    ring, and a photo of a person in test: the one whose id ends in a blank.
    """
    rows = [line.replace('"', "").split(",") for line in (hands_root / "HandInfo.csv").open()][1:]
    folder = hands_root.parent / "lists"
    people = [person[0] for person in PEOPLE]
    trained = {1: [*people[:3], RING_BEARER[0], "1200000 "], 2: people[3:]}
    for repeat, train in trained.items():
        (folder / str(repeat)).mkdir(parents=True)
        test = people[3:] if repeat == 1 else people[:3]
        for word, listed in (("training", train), ("testing", test)):
            for letter in "dp":
                names = [row[7] for row in rows if row[0] in listed and row[6][0] == letter]
                path = folder / str(repeat) / f"g_imgs_{word}_{letter}.txt"
                path.write_text("".join(f"{name}\r\n" for name in names[::-1]), newline="")
    return folder


def folder_of(variable: str) -> Path:
    """Return the folder that an environment variable names, or skip the test."""
    if not os.environ.get(variable):
        pytest.skip(f"environment variable {variable} is not set")
    return Path(os.environ[variable]).resolve()


@pytest.fixture
def real_root(tmp_path: Path) -> Path:
    """A root to write into: real HandInfo.csv (copied) and real photos (linked)."""
    source, root = folder_of("HANDS_11K"), tmp_path / "real11k"
    root.mkdir()
    shutil.copyfile(source / "HandInfo.csv", root / "HandInfo.csv")
    (root / "Hands").symlink_to(source / "Hands", target_is_directory=True)
    return root


@pytest.fixture
def real_full_info() -> Path:
    """The complete HandInfo.csv, 11,076 rows."""
    return folder_of("HANDS_11K") / "full" / "HandInfo.csv"


@pytest.fixture
def weights_dir() -> Path:
    """A folder with published weights."""
    return folder_of("HANDS_WEIGHTS")
