"""The cache of decoded photos: right pixels or a clear error, whatever happens to its files."""

from __future__ import annotations

import errno
import io
import json
import logging
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import dataset_11k
from data import cache as cache_module
from data.cache import (
    CacheError,
    CacheFile,
    MappedPixels,
    MemoryPixels,
    attach_cache,
    keep_on_device,
)
from dataset_11k import Augmentation, HandsDataset, LabelSpace, as_it_is, build_loader, read_pixels
from utils import UserError, one_line_errors

NAMES = [f"Hand_{i:07d}.jpg" for i in range(20)]
SIDE = 8  # of the cached photos in pixels
PHOTO_BYTES = SIDE * SIDE * 3
needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork"
)


def draw_photo(path: Path, seed: int, size: tuple[int, int] = (24, 16)) -> None:
    """Write noise; the file is as long for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "BMP")


def draw_photos(root: Path, *, first_seed: int = 0) -> Path:
    """Return the folder <root>/Hands with the photos `NAMES`."""
    folder = root / "Hands"
    folder.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        draw_photo(folder / name, first_seed + i)
    return folder


def make_dataset(
    folder: Path, names: Sequence[str] = NAMES, *, side: int = SIDE, decode_size: int = 0
) -> HandsDataset:
    rows = pd.DataFrame({"name": names}).assign(id="1", gender="male", age=20)
    return HandsDataset(
        rows, folder, LabelSpace.of_people(["1"]), side=side, decode_size=decode_size
    )


def plain_pixels(dataset: HandsDataset) -> np.ndarray:
    """Return what is right, (n_rows, side, side, 3) uint8."""
    side, decode_size = dataset.side, dataset.decode_size
    photos = [read_pixels(dataset.folder / name, side, decode_size) for name in dataset.names]
    return np.stack([np.asarray(photo) for photo in photos])


def all_pixels(cached: dataset_11k.Pixels | None, n_rows: int = len(NAMES)) -> np.ndarray:
    assert cached is not None
    return np.stack([cached[row] for row in range(n_rows)])


def assert_right(cached: dataset_11k.Pixels | None, dataset: HandsDataset) -> None:
    np.testing.assert_array_equal(all_pixels(cached, len(dataset)), plain_pixels(dataset))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "11k")


@pytest.fixture
def dataset(photos: Path) -> HandsDataset:
    return make_dataset(photos)


@pytest.fixture
def cache(tmp_path: Path, dataset: HandsDataset) -> CacheFile:
    return CacheFile(tmp_path / "11k" / "cache", dataset)


class Decoded:
    """The names of the photos that were decoded since the last look, by forked processes too."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def note(self, path: Path) -> None:
        file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{path.name}\n".encode())
        os.close(file)

    def count(self) -> int:
        return self.log.read_text().count("\n") if self.log.exists() else 0

    def look(self) -> list[str]:
        names = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return sorted(names)


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decoded:
    noted = Decoded(tmp_path / "decoded.txt")

    def read_and_note(path: Path, side: int, decode_size: int = 0) -> Image.Image:
        noted.note(path)
        time.sleep(0.002)  # a real photo takes longer still
        return read_pixels(path, side, decode_size)

    monkeypatch.setattr(dataset_11k, "read_pixels", read_and_note)
    return noted


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name photos after every fourth, and decode two at a time."""
    monkeypatch.setattr(cache_module, "PORTION", 4)
    monkeypatch.setattr(cache_module, "BATCH", 2)


def fork(target: Callable[[], Any]) -> Any:
    """Return the process that runs `target`."""
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def mount_tmpfs(folder: Path, options: str) -> None:
    """Mount a file system of its own, or skip the test."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {getattr(error, 'stderr', '') or error}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for about half the pixels of `NAMES` at 64 px."""
    folder = tmp_path / "small_disk"
    mount_tmpfs(folder, "size=128k")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# ----------------------------------------------------------------------------- right pixels


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_photo_is_decoded_once(
    cache: CacheFile, dataset: HandsDataset, decoded: Decoded, num_workers: int
) -> None:
    assert_right(cache.open(num_workers), dataset)
    assert decoded.look() == NAMES
    assert_right(cache.open(num_workers), dataset)
    assert decoded.look() == []
    assert sorted(path.name for path in cache.pixels.parent.iterdir()) == sorted(
        path.name for path in (cache.pixels, cache.index, cache.pixels.with_suffix(".lock"))
    )
    assert cache.pixels.stat().st_size == len(NAMES) * PHOTO_BYTES


@pytest.mark.usefixtures("small_portions")
def test_portions_and_batches_that_do_not_divide_the_photos(
    tmp_path: Path, photos: Path, decoded: Decoded
) -> None:
    for n_photos in (1, 3, 4, 5, 9, 20):
        dataset = make_dataset(photos, NAMES[:n_photos])
        assert_right(CacheFile(tmp_path / str(n_photos), dataset).open(0), dataset)
        assert decoded.look() == NAMES[:n_photos]


def test_aspects_and_splits_share_a_file(tmp_path: Path, photos: Path, decoded: Decoded) -> None:
    parts = [NAMES[:6], NAMES[4:12], NAMES[::-1]]
    opened = []
    for part, new in zip(parts, (NAMES[:6], NAMES[6:12], NAMES[12:]), strict=True):
        dataset = make_dataset(photos, part)
        cache = CacheFile(tmp_path / "cache", dataset)
        opened.append((cache.open(0), dataset))
        assert decoded.look() == new
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1
    for cached, dataset in opened:
        assert_right(cached, dataset)


@pytest.mark.parametrize("what", ["size", "mtime"])
def test_a_changed_photo_gets_its_new_pixels(
    cache: CacheFile, dataset: HandsDataset, decoded: Decoded, what: str
) -> None:
    former = cache.open(0)
    pixels = all_pixels(former)
    decoded.look()
    changed = [NAMES[3], NAMES[-1]]  # the last one ends the file
    for name in changed:
        path = dataset.folder / name
        before = path.stat()
        draw_photo(path, 99, size=(24, 16) if what == "mtime" else (25, 16))
        mtime = before.st_mtime_ns + (1 if what == "mtime" else 0)
        os.utime(path, ns=(mtime, mtime))
        assert (path.stat().st_size == before.st_size) == (what == "mtime")
    opened = cache.open(0)
    assert decoded.look() == changed
    assert_right(opened, dataset)
    np.testing.assert_array_equal(all_pixels(former), pixels)  # what is open is left alone
    assert np.any(all_pixels(opened)[3] != pixels[3])
    cache.open(0)
    assert decoded.look() == []


def test_a_photo_that_changes_while_it_is_decoded_is_decoded_again(
    cache: CacheFile, dataset: HandsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_change(path: Path, side: int, decode_size: int = 0) -> Image.Image:
        photo = read_pixels(path, side, decode_size)
        if path.name == NAMES[3]:
            draw_photo(path, 99)
            os.utime(path, ns=(1, 1))
        return photo

    with monkeypatch.context() as patched:
        patched.setattr(dataset_11k, "read_pixels", read_and_change)
        cache.open(0)
    assert_right(cache.open(0), dataset)


def test_other_settings_have_other_files(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_with(side: int = SIDE, decode_size: int = 0) -> Path:
        dataset = make_dataset(photos, side=side, decode_size=decode_size)
        cache = CacheFile(tmp_path / "cache", dataset)
        assert_right(cache.open(0), dataset)
        return cache.pixels

    files = [open_with(), open_with(side=9), open_with(decode_size=10)]
    with monkeypatch.context() as patched:
        patched.setattr(cache.PIL, "__version__", "0.0.1")
        files.append(open_with())
    with monkeypatch.context() as patched:
        patched.setattr(cache.features, "version", lambda name: "0.0.1")
        files.append(open_with())
    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "CACHE_FORMAT", 0)
        files.append(open_with())
    assert len(set(files)) == len(files) == 6
    assert open_with() == files[0]


def test_two_roots_share_a_folder_but_no_file(tmp_path: Path, decoded: Decoded) -> None:
    for root, seed in (("a", 0), ("b", 100)):
        dataset = make_dataset(draw_photos(tmp_path / root, first_seed=seed))
        assert_right(CacheFile(tmp_path / "cache", dataset).open(0), dataset)
        assert decoded.look() == NAMES
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 2


def test_a_link_to_the_photos_is_the_photos(tmp_path: Path, photos: Path, decoded: Decoded) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "Hands").symlink_to(photos, target_is_directory=True)
    for folder, new in ((photos, NAMES), (other / "Hands", [])):
        dataset = make_dataset(folder)
        assert_right(CacheFile(tmp_path / "cache", dataset).open(0), dataset)
        assert decoded.look() == new
    (other / "Hands").unlink()
    draw_photos(other, first_seed=100)  # now the same path holds others
    dataset = make_dataset(other / "Hands")
    assert_right(CacheFile(tmp_path / "cache", dataset).open(0), dataset)


# ----------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("length", [0, 1, PHOTO_BYTES, 5 * PHOTO_BYTES + 7, 20 * PHOTO_BYTES - 1])
def test_a_truncated_file_is_noticed(
    cache: CacheFile,
    dataset: HandsDataset,
    decoded: Decoded,
    caplog: pytest.LogCaptureFixture,
    length: int,
) -> None:
    cache.open(0)
    decoded.look()
    os.truncate(cache.pixels, length)
    assert_right(cache.open(0), dataset)
    lost = NAMES[length // PHOTO_BYTES :]
    assert decoded.look() == lost
    assert f"{cache.pixels}: {len(lost)} photos are damaged" in caplog.text
    cache.open(0)
    assert decoded.look() == []


def test_flipped_bytes_are_noticed(
    cache: CacheFile, dataset: HandsDataset, decoded: Decoded, caplog: pytest.LogCaptureFixture
) -> None:
    cache.open(0)
    decoded.look()
    content = bytearray(cache.pixels.read_bytes())
    for place in (0, 3 * PHOTO_BYTES + 5, len(content) - 1):
        content[place] ^= 1
    cache.pixels.write_bytes(content)
    assert_right(cache.open(0), dataset)
    assert decoded.look() == [NAMES[0], NAMES[3], NAMES[-1]]
    assert f"{cache.pixels}: 3 photos are damaged" in caplog.text


def with_photos(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], str]:
    """Return a function that makes an index of another one, its photos changed."""
    return lambda stored: json.dumps({**stored, "photos": change(stored["photos"])})


def with_first(*entry: Any) -> Callable[[dict[str, Any]], str]:
    return with_photos(lambda photos: {**photos, NAMES[0]: list(entry)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: "",
        lambda stored: json.dumps(stored)[:-20],
        lambda stored: "\0" * 100,
        lambda stored: "\udcff",
        lambda stored: "[" * 100_000,
        lambda stored: "[]",
        lambda stored: "{}",
        lambda stored: "3",
        lambda stored: json.dumps({**stored, "settings": {**stored["settings"], "side": 9}}),
        with_photos(list),
        with_photos(lambda photos: None),
        with_first(),
        with_first(0, 1),
        with_first(0, 1, 2, 3, 4),
        with_first("a", 1, 2, 3),
        with_first(None, 1, 2, 3),
        with_first(float("inf"), 1, 2, 3),
        with_first(float("nan"), 1, 2, 3),
        with_first(-1, 1, 2, 3),
        with_photos(lambda photos: {**photos, NAMES[0]: photos[NAMES[1]]}),
    ],
)
def test_a_damaged_index_is_built_anew(
    cache: CacheFile,
    dataset: HandsDataset,
    decoded: Decoded,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[dict[str, Any]], str],
) -> None:
    former = cache.open(0)
    decoded.look()
    text = damage(json.loads(cache.index.read_text()))
    cache.index.write_bytes(text.encode(errors="surrogateescape"))
    assert_right(cache.open(0), dataset)
    assert decoded.look() == NAMES
    (warning,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert f"{cache.index} is damaged" in warning.message
    assert "\n" not in warning.message
    assert_right(former, dataset)  # who has it mapped keeps it
    cache.open(0)
    assert decoded.look() == []


@pytest.mark.parametrize("place", [10**6, 10**30, 3, 19, 30])
def test_an_index_that_names_other_places(
    cache: CacheFile, dataset: HandsDataset, place: int
) -> None:
    cache.open(0)
    stored = json.loads(cache.index.read_text())
    stored["photos"][NAMES[0]][0] = place
    cache.index.write_text(json.dumps(stored))
    assert_right(cache.open(0), dataset)
    assert cache.pixels.stat().st_size <= 40 * PHOTO_BYTES


@pytest.mark.parametrize("lost", ["pixels", "index"])
def test_one_file_without_the_other_is_built_anew(
    cache: CacheFile, dataset: HandsDataset, decoded: Decoded, lost: str
) -> None:
    cache.open(0)
    decoded.look()
    getattr(cache, lost).unlink()
    assert_right(cache.open(0), dataset)
    assert decoded.look() == NAMES
    assert cache.pixels.stat().st_size == len(NAMES) * PHOTO_BYTES


def test_what_a_killed_process_left_behind_is_cut_off(
    cache: CacheFile, photos: Path, decoded: Decoded
) -> None:
    part = make_dataset(photos, NAMES[:5])
    CacheFile(cache.pixels.parent, part).open(0)
    decoded.look()
    with cache.pixels.open("ab") as file:
        file.write(b"x" * (7 * PHOTO_BYTES + 11))
    left = cache.index.with_name(f".{cache.index.stem}.12345.tmp.json")
    left.write_text("{")
    assert_right(cache.open(0), cache.dataset)
    assert decoded.look() == NAMES[5:]
    assert cache.pixels.stat().st_size == len(NAMES) * PHOTO_BYTES
    assert not left.exists()


@pytest.mark.usefixtures("small_portions")
def test_a_file_that_is_mostly_stale_is_begun_anew(
    cache: CacheFile, dataset: HandsDataset, decoded: Decoded
) -> None:
    former, sizes, n_decoded = cache.open(0), [], []
    pixels = all_pixels(former)
    for i in range(12):
        for name in NAMES[: len(NAMES) // 2]:
            os.utime(dataset.folder / name, ns=(i, i))
        decoded.look()
        assert_right(cache.open(0), dataset)
        n_decoded.append(len(decoded.look()))
        sizes.append(cache.pixels.stat().st_size // PHOTO_BYTES)
    assert max(sizes) <= 3 * len(NAMES)
    assert min(sizes[1:]) == len(NAMES)  # begun anew at least once
    assert sorted(set(n_decoded)) == [10, 20]
    np.testing.assert_array_equal(all_pixels(former), pixels)


def test_a_worker_never_maps_a_file_that_took_the_place_of_the_one_opened(
    cache: CacheFile, dataset: HandsDataset
) -> None:
    opened = cache.open(0)
    sent = pickle.dumps(opened)
    assert_right(pickle.loads(sent), dataset)
    cache.index.write_text("damaged")
    CacheFile(cache.pixels.parent, make_dataset(dataset.folder, NAMES[::-1])).open(0)
    assert_right(opened, dataset)
    with pytest.raises(UserError, match="begun anew by another process; start this one again"):
        pickle.loads(sent)[0]
    cache.pixels.unlink()
    with pytest.raises(UserError, match="begun anew by another process; start this one again"):
        pickle.loads(sent)[0]


# ----------------------------------------------------------------------------- several processes


def start_builder(cache: CacheFile, num_workers: int = 0) -> Any:
    """Return a forked process that opens the cache; its exit code is 0 if the pixels are right."""
    return fork(lambda: assert_right(cache.open(num_workers), cache.dataset))


@needs_fork
@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_processes_decode_every_photo_once(
    cache: CacheFile, decoded: Decoded, num_workers: int
) -> None:
    builders = [start_builder(cache, num_workers) for _ in range(3)]
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert decoded.look() == NAMES


def kill_builders(
    cache: CacheFile, decoded: Decoded, *, n_kills: int, num_workers: int = 0
) -> list[int]:
    """Return how many photos each of `n_kills` builders, killed at random, left to be done."""
    generator, left = random.Random(n_kills + num_workers), []
    for _ in range(n_kills):
        builder = start_builder(cache, num_workers)
        n_first = generator.randrange(len(NAMES) + 1)
        while builder.is_alive() and decoded.count() < n_first:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.02))
        os.kill(builder.pid, signal.SIGKILL)
        builder.join()  # with a limit it would wait for the builder's workers too
        time.sleep(0.5 * (num_workers > 0))  # its workers finish what they were given
        decoded.look()
        assert_right(cache.open(0), cache.dataset)
        left.append(len(decoded.look()))
        assert cache.pixels.stat().st_size == len(NAMES) * PHOTO_BYTES
        assert len(list(cache.pixels.parent.iterdir())) == 3
        for path in cache.pixels.parent.iterdir():
            path.unlink()
    return left


@needs_fork
@pytest.mark.usefixtures("small_portions")
def test_a_builder_that_is_killed_loses_at_most_a_portion(
    cache: CacheFile, decoded: Decoded
) -> None:
    kill_builders(cache, decoded, n_kills=3)


@pytest.mark.slow
@needs_fork
@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize(("num_workers", "n_kills"), [(0, 60), (2, 8)])
def test_many_builders_are_killed(
    cache: CacheFile, decoded: Decoded, num_workers: int, n_kills: int
) -> None:
    left = kill_builders(cache, decoded, n_kills=n_kills, num_workers=num_workers)
    assert len(set(left)) > 2  # some early, some late
    assert all(n % 4 == 0 for n in left)


@pytest.mark.usefixtures("small_portions")
def test_ctrl_c_keeps_what_was_decoded(
    cache: CacheFile, dataset: HandsDataset, decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, side: int, decode_size: int = 0) -> Image.Image:
        if path.name == NAMES[11]:
            raise KeyboardInterrupt
        return read_pixels(path, side, decode_size)

    with monkeypatch.context() as patched:
        patched.setattr(dataset_11k, "read_pixels", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cache.open(0)
    assert cache.pixels.stat().st_size == 10 * PHOTO_BYTES
    assert_right(cache.open(0), dataset)
    assert decoded.look() == NAMES[10:]


# ----------------------------------------------------------------------------- photos that fail


@needs_fork
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("mode", ["disk", "auto", "ram"])
def test_a_photo_that_cannot_be_decoded_is_named(
    dataset: HandsDataset,
    tmp_path: Path,
    decoded: Decoded,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    mode: str,
    num_workers: int,
) -> None:
    monkeypatch.setattr(cache_module, "BATCH", 4)
    bad = dataset.folder / NAMES[9]
    bad.write_bytes(b"no photo")

    @one_line_errors
    def main(argv: Sequence[str] | None = None) -> int:
        attach_cache(dataset, mode, folder=tmp_path / "cache", num_workers=num_workers)
        assert_right(dataset.cached, dataset)
        return 0

    # in a process of its own, whose workers end with it
    process = fork(lambda: sys.exit(main([])))
    process.join(60)
    assert process.exitcode == 1
    error = capfd.readouterr().err
    assert error.startswith(f"error: row 10: photo {bad} cannot be decoded: ")
    assert error.endswith("; replace the file\n")
    assert error.count("\n") == 1
    decoded.look()
    draw_photo(bad, 7)
    assert main([]) == 0
    assert decoded.look() == (NAMES if mode == "ram" else NAMES[8:])  # the bad one's batch on


def test_a_photo_that_is_gone_is_named(cache: CacheFile, dataset: HandsDataset) -> None:
    (dataset.folder / NAMES[9]).unlink()
    with pytest.raises(UserError, match=f"^row 10: photo .*{NAMES[9]} cannot be read: No such"):
        cache.open(0)
    assert not cache.pixels.exists()


# ----------------------------------------------------------------------------- room and rights


def attach(dataset: HandsDataset, mode: str, folder: Path) -> dataset_11k.Pixels | None:
    dataset.cached = None
    attach_cache(dataset, mode, folder=folder, num_workers=0)
    return dataset.cached


def assert_refused(dataset: HandsDataset, folder: Path, reason: str, caplog: Any) -> None:
    """Check that `disk` says why it cannot be, and that `auto` says it and goes on in memory."""
    with pytest.raises(CacheError) as caught:
        attach(dataset, "disk", folder)
    message = str(caught.value)
    assert message.startswith(f"cache {folder} cannot be used: ")
    assert reason in message
    assert message.endswith("; see --cache_dir, --cache ram and --cache none")
    assert "\n" not in message
    caplog.clear()
    cached = attach(dataset, "auto", folder)
    assert isinstance(cached, MemoryPixels)
    assert_right(cached, dataset)
    assert f"--cache auto goes on without: {message.partition(';')[0][:60]}" in caplog.text


def test_a_disk_that_is_too_small_is_seen_before(
    small_disk: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_dataset(photos, side=64)
    assert_refused(dataset, small_disk, "0.2 MB are needed, 0.1 MB are free", caplog)
    assert [path.suffix for path in small_disk.iterdir()] == [".lock"]


@pytest.mark.parametrize("portion", [4, 1024])
def test_a_disk_that_fills_meanwhile(
    small_disk: Path,
    photos: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    portion: int,
) -> None:
    dataset = make_dataset(photos, side=64)
    photo_bytes = 64 * 64 * 3
    monkeypatch.setattr(cache_module, "PORTION", portion)
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: usage)
    assert_refused(dataset, small_disk, "No space left on device", caplog)
    (pixels,) = small_disk.glob("*.pixels")
    n_named = 8 if portion == 4 else 0  # ten photos' pixels have room
    assert pixels.stat().st_size == n_named * photo_bytes
    assert len(list(small_disk.iterdir())) == (3 if n_named else 2)
    part = make_dataset(photos, NAMES[:8], side=64)
    assert_right(attach(part, "disk", small_disk), part)


@pytest.mark.parametrize("where", ["write", "sync", "index"])
@pytest.mark.usefixtures("small_portions")
def test_a_disk_that_refuses(
    cache: CacheFile,
    dataset: HandsDataset,
    decoded: Decoded,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse_later(act: Callable[..., Any], n_first: int) -> Callable[..., Any]:
        def refuse(*args: Any) -> Any:
            nonlocal n_first
            n_first -= 1
            if n_first < 0:
                raise full if where != "index" else UserError("cannot write a.json: No space left")
            return act(*args)

        return refuse

    def write_half(file: IO[bytes], data: memoryview) -> None:
        if file.tell() >= 10 * PHOTO_BYTES:
            file.write(b"half a photo")
            raise full
        write_all(file, data)

    write_all = cache.write_all
    with monkeypatch.context() as patched:
        if where == "write":
            patched.setattr(cache_module, "write_all", write_half)
        elif where == "sync":
            patched.setattr(cache.os, "fsync", refuse_later(os.fsync, 2 * 2))  # and the index
        else:
            patched.setattr(cache_module, "write_json", refuse_later(cache.write_json, 2))
        assert_refused(dataset, cache.pixels.parent, "No space left", caplog)
    assert cache.pixels.stat().st_size == 8 * PHOTO_BYTES
    decoded.look()
    assert_right(cache.open(0), dataset)
    assert decoded.look() == NAMES[8:]


def test_a_write_may_take_fewer_bytes() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data[:7]))

    file = Slow()
    photo = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    cache.write_all(file, photo.data)
    assert file.getvalue() == photo.tobytes()


def test_a_folder_that_cannot_be_made(
    tmp_path: Path, dataset: HandsDataset, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_refused(dataset, tmp_path / "file" / "cache", "Not a directory", caplog)
    assert_refused(dataset, tmp_path / "file", "File exists", caplog)


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, dataset: HandsDataset, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "read_only"
    mount_tmpfs(folder, "ro")
    try:
        assert_refused(dataset, folder, "Read-only file system", caplog)
        assert_refused(dataset, folder / "cache", "Read-only file system", caplog)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_too_little_memory(
    tmp_path: Path,
    dataset: HandsDataset,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = len(NAMES) * PHOTO_BYTES
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(cache_module, "total_memory", lambda: 4 * needed - 1)
    with pytest.raises(CacheError, match="a cache in memory needs 0.0 MB, over 1/4 of the 0.0 MB"):
        attach(dataset, "ram", tmp_path)
    assert attach(dataset, "auto", tmp_path / "file") is None
    reasons = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert [reason.partition("without: ")[2][:17] for reason in reasons] == [
        f"cache {tmp_path}"[:17],
        "a cache in memory",
    ]
    for memory in (4 * needed, 0):  # just enough, unknown
        monkeypatch.setattr(cache_module, "total_memory", lambda: memory)  # noqa: B023
        assert isinstance(attach(dataset, "ram", tmp_path), MemoryPixels)


def test_memory_that_cannot_be_shared(
    tmp_path: Path, dataset: HandsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm):\nNo space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(CacheError, match="in memory.*No space left on device.*see --cache_dir"):
        attach(dataset, "ram", tmp_path)


# ----------------------------------------------------------------------------- in use


@pytest.mark.parametrize(
    ("mode", "kind", "num_workers"),
    [
        ("disk", MappedPixels, 0),
        ("disk", MappedPixels, 2),
        ("ram", MemoryPixels, 2),
        ("auto", MappedPixels, 0),
        ("none", type(None), 0),
    ],
)
def test_batches_are_the_same_with_and_without(
    tmp_path: Path, dataset: HandsDataset, mode: str, kind: type, num_workers: int
) -> None:
    attach_cache(dataset, mode, folder=tmp_path / "cache", num_workers=num_workers)
    assert type(dataset.cached) is kind
    for augmentation in (None, Augmentation(6, flip=0.5, jitter=0.3, by_batch=False)):
        batches = []
        for cached in (dataset.cached, None):
            reader = make_dataset(dataset.folder)
            reader.cached, reader.augmentation = cached, augmentation
            loader = build_loader(reader, batch_size=8, num_workers=num_workers, shuffle=True)
            batches.append([(batch.row, batch.image) for batch in loader])
        for (rows, images), (plain_rows, plain_images) in zip(*batches, strict=True):
            assert torch.equal(rows, plain_rows)
            assert torch.equal(images, plain_images)


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_whoever_changes_pixels_does_not_change_the_file(
    tmp_path: Path, dataset: HandsDataset, mode: str
) -> None:
    cached = attach(dataset, mode, tmp_path / "cache")
    dataset.__getitems__([(row, 0) for row in range(len(dataset))]).image.zero_()
    assert_right(cached, dataset)


@pytest.mark.slow
def test_a_spawned_worker_reads_the_cache(tmp_path: Path, dataset: HandsDataset) -> None:
    expected = plain_pixels(dataset)
    for mode in ("disk", "ram"):
        attach(dataset, mode, tmp_path / "cache")
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=[[(row, 0) for row in range(len(dataset))]],
            num_workers=1,
            collate_fn=as_it_is,
            multiprocessing_context="spawn",
        )
        (batch,) = loader
        np.testing.assert_array_equal(batch.image.numpy(), expected)


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_random_numbers_do_not_depend_on_the_cache(
    tmp_path: Path, dataset: HandsDataset, mode: str
) -> None:
    state = torch.get_rng_state()
    attach(dataset, mode, tmp_path / "cache")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_bytes_and_place_are_said_before(
    tmp_path: Path,
    photos: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    caplog.set_level(logging.INFO, "igae")
    dataset = make_dataset(photos, side=64)

    def is_said(path: Path, side: int, decode_size: int = 0) -> Image.Image:
        (record,) = caplog.records
        place = f"{tmp_path / 'cache'}{os.sep}64px-" if mode == "disk" else "memory"
        assert f"cache: decoding 20 photos once, 0.2 MB, into {place}" in record.message
        return read_pixels(path, side, decode_size)

    monkeypatch.setattr(dataset_11k, "read_pixels", is_said)
    attach(dataset, mode, tmp_path / "cache")
    caplog.clear()
    if mode == "disk":
        attach(dataset, mode, tmp_path / "cache")
        assert caplog.records == []


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_the_bar_counts_the_photos_that_are_done(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    bars = []

    class Bar(cache.tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(cache_module, "tqdm", Bar)
    attach(make_dataset(photos, NAMES[:3]), mode, tmp_path / "cache")
    attach(make_dataset(photos), mode, tmp_path / "cache")
    first = 17 if mode == "disk" else 20
    assert [(bar.n, bar.total) for bar in bars] == [(3, 3), (first, first)]


def memory_now() -> dict[str, int]:
    """Return the bytes this process holds and its peak, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "BATCH", 2)
    side, names = 512, [f"{i}.jpg" for i in range(60)]
    n_bytes = len(names) * side**2 * 3  # 47 MB
    for i, name in enumerate(names):
        draw_photo(tmp_path / name, i)
    cache = CacheFile(tmp_path / "cache", make_dataset(tmp_path, names, side=side))
    for _ in ("filled", "checked"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = memory_now()["VmRSS"]
        cache.open(0)
        assert memory_now()["VmHWM"] - before < n_bytes / 2


def test_nothing_is_copied_to_a_device_that_is_no_gpu(
    tmp_path: Path, dataset: HandsDataset
) -> None:
    keep_on_device(dataset, torch.device("cpu"))
    attach(dataset, "disk", tmp_path / "cache")
    keep_on_device(dataset, torch.device("cpu"))
    assert dataset.resident is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_on_the_gpu(
    tmp_path: Path, dataset: HandsDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    keep_on_device(dataset, device)
    assert dataset.resident is None  # nothing is cached
    cached = attach(dataset, "disk", tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 20 * PHOTO_BYTES - 1, 0))
        keep_on_device(dataset, device)
    assert dataset.resident is None
    keep_on_device(dataset, device)
    assert dataset.resident is not None
    np.testing.assert_array_equal(dataset.resident.cpu().numpy(), all_pixels(cached))
