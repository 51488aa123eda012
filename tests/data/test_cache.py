"""The cache of decoded photos: right pixels, one file for each aspect, built once."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import shutil
import time
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image

from data import cache
from data.cache import attach_cache, cache_path, cached_features, copy_to_device
from dataset_11k import HandsDataset, LabelSpace, PhotoReader
from utils import UserError

NAMES = [*(f"{i}.bmp" for i in range(15)), "anna/0.bmp", "anna/1.bmp"]
SIZE = 8  # of the cached photos in pixels


def draw_photo(path: Path, seed: int) -> None:
    """Write noise; the file has the same size for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        draw_photo(tmp_path / "Hands" / name, i)
    return tmp_path / "Hands"


def make_dataset(
    folder: Path, names: Sequence[str] = NAMES, *, image_size: int = SIZE, decode_size: int = 0
) -> HandsDataset:
    samples = pd.DataFrame({"name": names}).assign(id="1", gender="male", age=20)
    space = LabelSpace.of_samples(samples)
    return HandsDataset(samples, folder, space, reader=PhotoReader(image_size, decode_size))


def attach(
    dataset: HandsDataset, cache_dir: Path, *, num_workers: int = 0, sources: Sequence[Path] = ()
) -> list[str]:
    """Attach the cache; return the names of the cache files."""
    attach_cache(dataset, NAMES, sources=sources, cache_dir=cache_dir, num_workers=num_workers)
    return sorted(path.name for path in cache_dir.glob("*.npy"))


def assert_right(dataset: HandsDataset) -> None:
    assert dataset.cached is not None
    for row, name in enumerate(dataset.names):
        photo = dataset.reader.read(dataset.folder / name)
        np.testing.assert_array_equal(dataset.cached[row], np.asarray(photo))


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function after which decoding a photo fails the test."""

    def forbid() -> None:
        monkeypatch.setattr(cache, "build", lambda *_: pytest.fail("decoded again"))

    return forbid


@pytest.mark.parametrize("num_workers", [0, 2])
def test_splits_of_an_aspect_share_a_file_that_is_built_once(
    folder: Path, tmp_path: Path, no_decoding: Any, num_workers: int
) -> None:
    state = torch.get_rng_state()
    files = attach(make_dataset(folder, NAMES[:6]), tmp_path / "cache", num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(files) == 1
    assert not list((tmp_path / "cache").glob("*.tmp*"))
    no_decoding()
    for names in (NAMES[:6], NAMES[4:], NAMES[::-3]):
        dataset = make_dataset(folder, names)
        assert attach(dataset, tmp_path / "cache") == files
        assert_right(dataset)


def test_settings_and_photos_make_the_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, place = make_dataset(folder), tmp_path / "cache"
    files = [
        cache_path(dataset, NAMES, place),
        cache_path(make_dataset(folder, image_size=9), NAMES, place),
        cache_path(make_dataset(folder, decode_size=16), NAMES, place),
        cache_path(dataset, NAMES[1:], place),
        cache_path(dataset, NAMES[::-1], place),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(cache.PIL, "__version__", "0.0.1")
        files.append(cache_path(dataset, NAMES, place))
    with monkeypatch.context() as patched:
        patched.setattr(cache.features, "version", lambda name: "0.0.1")
        files.append(cache_path(dataset, NAMES, place))
    other = shutil.copytree(folder, tmp_path / "other")  # same names, sizes and times
    files.append(cache_path(make_dataset(other), NAMES, place))
    assert len(set(files)) == len(files)
    assert cache_path(dataset, NAMES, place) == files[0]


@pytest.mark.parametrize("what", ["size", "mtime"])
def test_a_changed_photo_is_decoded_again(folder: Path, tmp_path: Path, what: str) -> None:
    first = attach(make_dataset(folder), tmp_path / "cache")
    path = folder / NAMES[3]
    before = path.stat()
    draw_photo(path, 99)
    if what == "size":
        path.write_bytes(path.read_bytes() + b"x")
    mtime = before.st_mtime_ns + (what == "mtime")
    os.utime(path, ns=(mtime, mtime))
    changed = make_dataset(folder)
    assert len(attach(changed, tmp_path / "cache")) == 2
    assert first[0] in attach(changed, tmp_path / "cache")
    assert_right(changed)


def test_a_spawned_worker_opens_the_file_by_its_path(folder: Path, tmp_path: Path) -> None:
    dataset = make_dataset(folder, NAMES[5:])
    attach(dataset, tmp_path / "cache")
    sent = pickle.dumps(dataset)
    assert len(sent) < 5000 < len(NAMES) * SIZE * SIZE * 3 * 5  # paths, no pixels
    assert_right(pickle.loads(sent))


def test_broken_photos_are_named_and_counted(folder: Path, tmp_path: Path) -> None:
    for name in (*NAMES[2:10], "anna/0.bmp"):
        (folder / name).write_bytes(b"no photo")
    train, everyone = tmp_path / "train.csv", tmp_path / "all.csv"
    train.write_text(f"image_path,id\n\nHands/{NAMES[3]},1\n")
    everyone.write_text("\n".join(["image_path,id", *(f"Hands/{name},1" for name in NAMES)]))
    with pytest.raises(UserError) as caught:
        attach(make_dataset(folder), tmp_path / "cache", num_workers=2, sources=[train, everyone])
    message = str(caught.value)
    assert message.startswith(f"cannot decode photo {folder / NAMES[2]}: ")
    assert message.count(f"({everyone} line ") == 4
    assert f"({everyone} line 4); cannot decode photo {folder / NAMES[3]}: " in message
    assert f"({train} line 3); cannot" in message
    assert message.endswith("; and 4 others")
    assert "\n" not in message
    assert not list((tmp_path / "cache").rglob("*.npy"))  # nor a temporary one


Usage = namedtuple("Usage", "total used free")


def fail_to_write(*args: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("place", "patch", "reason"),
    [
        ("cache", (cache.shutil, "disk_usage", lambda _: Usage(9, 9, 99)), "needed, 0.0 MB free"),
        ("cache", (cache.np.lib.format, "write_array_header_1_0", fail_to_write), "No space left"),
        ("cache", (cache, "FileLock", fail_to_write), "No space left on device"),
        ("Hands/0.bmp", None, "0.bmp"),  # the folder would be a file
    ],
)
def test_without_room_or_rights_training_goes_on(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    patch: Any,
    reason: str,
) -> None:
    if patch:
        monkeypatch.setattr(*patch)
    dataset = make_dataset(folder)
    attach(dataset, tmp_path / place)
    assert dataset.cached is None
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert record.getMessage().startswith(f"no cache in {tmp_path / place}: ")
    assert reason in record.getMessage()
    assert not list(tmp_path.rglob("*.npy"))
    assert dataset.read(0, 0).shape == (SIZE, SIZE, 3)


def test_the_least_recently_used_files_are_deleted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache"
    (first,) = attach(make_dataset(folder), place)
    (second,) = set(attach(make_dataset(folder, image_size=9), place)) - {first}
    for age, name in ((200, second), (100, first)):
        os.utime(place / name, (time.time() - age, time.time() - age))
    attach(make_dataset(folder, image_size=9), place)  # now the first is older
    monkeypatch.setattr(cache, "MAX_CACHE_GB", 2.5 * len(NAMES) * 9 * 9 * 3 / 1e9)
    files = attach(make_dataset(folder, image_size=10), place)
    assert len(files) == 2
    assert second in files
    assert not (place / first).with_suffix(".lock").exists()


def build_in_a_process(folder: Path, place: Path) -> None:
    dataset = make_dataset(folder)
    attach(dataset, place)
    assert_right(dataset)


def test_a_second_process_waits_for_the_first(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    place.mkdir()
    path = cache_path(make_dataset(folder), NAMES, place)
    remnant = path.with_name(f".{path.stem}.1.tmp.npy")
    remnant.write_bytes(b"of a process that was killed")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build_in_a_process, args=(folder, place)) for _ in range(3)]
    with FileLock(path.with_suffix(".lock")):
        for process in processes:
            process.start()
        time.sleep(0.5)
        assert not path.exists()
        assert all(process.is_alive() for process in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert [file for file in place.iterdir() if file.suffix == ".npy"] == [path]


def test_nothing_is_copied_to_a_cpu(folder: Path, tmp_path: Path) -> None:
    dataset = make_dataset(folder)
    attach(dataset, tmp_path / "cache")
    copy_to_device(dataset, torch.device("cpu"))
    assert dataset.resident is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_photos_are_copied_to_the_gpu(folder: Path, tmp_path: Path) -> None:
    dataset = make_dataset(folder, NAMES[4:])
    attach(dataset, tmp_path / "cache")
    copy_to_device(dataset, torch.device("cuda"))
    assert dataset.resident is not None
    for row, photo in enumerate(dataset.resident.cpu().numpy()):
        np.testing.assert_array_equal(photo, dataset.cached[row])  # type: ignore[index]


def test_features_are_computed_once_and_without_a_disk_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("igae"), "propagate", True)
    calls: list[int] = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(3.0)

    for _ in range(2):
        assert cached_features(tmp_path / "cache" / "f.npy", compute).tolist() == [0, 1, 2]
    assert len(calls) == 1
    (tmp_path / "cache" / "f.npy").write_bytes(b"damaged")
    for _ in range(2):
        assert cached_features(tmp_path / "cache" / "f.npy", compute).tolist() == [0, 1, 2]
    assert len(calls) == 2
    (tmp_path / "file").touch()  # where the folder should be
    assert cached_features(tmp_path / "file" / "f.npy", compute).tolist() == [0, 1, 2]
    assert len(calls) == 3
    assert "Features are computed each time" in caplog.text
