"""Decoded photos, kept between epochs and runs: each is decoded and resized once.

A cache is a pair of files in <root>/cache/: <side>px-<settings>.pixels has one photo's pixels after
the other, the .json beside it says whose, from which state of the photo's file, and with which
checksum. Pixels are only ever added, under a lock, and named in the .json once they are on disk: a
process that is killed loses what it had not named yet, and whoever reads is not disturbed. A file
that is mostly stale is begun anew as another one; who has the former one mapped keeps it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import PIL
import torch
from filelock import FileLock
from PIL import features
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset_11k import HandsDataset, as_it_is
from utils import UserError, logger, write_json

CACHE_FORMAT = 1  # goes up when the same settings give other bytes

BATCH = 16  # photos that a worker decodes at a time

PORTION = 1024  # photos after which what is on disk is named at the latest

MEMORY_SHARE = 4  # a cache in memory takes at most the nth part of the machine's

DEVICE_SHARE = 4  # a copy on the GPU at most the nth part of what is free there

WAYS_OUT = "see --cache_dir, --cache ram and --cache none"


class CacheError(UserError):
    """A cache that cannot be had, for want of room or rights; `--cache auto` goes on without."""


class Entry(NamedTuple):
    """Where a photo's pixels are, and what tells that they are its own."""

    place: int  # in photos, from the start of the file
    size: int  # of the photo's file, in bytes
    mtime: int  # of the photo's file, in nanoseconds
    checksum: int  # CRC-32 of the pixels


class MappedPixels:
    """Rows of a cache file, memory-mapped; a spawned worker process maps them itself.

    Args:
        path: the .pixels file.
        side: of the square photos in pixels.
        places: of the rows, in photos from the start of the file.
    """

    def __init__(self, path: Path, side: int, places: Sequence[int]) -> None:
        self.path, self.side, self.places = path, side, np.array(places)
        self.inode = path.stat().st_ino  # not given to another file while this one is mapped
        self.mapped: np.memmap | None = self.map()

    def map(self) -> np.memmap:
        """Return all photos up to the last row's, (n, side, side, 3) uint8.

        Raises:
            UserError: another process has put another file into the place of the one opened first.
        """
        shape = (int(self.places.max()) + 1, self.side, self.side, 3)
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_ino == self.inode:
                return np.memmap(file, np.uint8, "r", shape=shape)
        raise UserError(
            f"cache {self.path} was begun anew by another process; start this one again"
        )

    def __getitem__(self, row: int) -> np.ndarray:
        """Return a copy of the pixels of a row, (side, side, 3) uint8."""
        if self.mapped is None:
            self.mapped = self.map()
        return np.array(self.mapped[self.places[row]])

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: the map is not."""
        return {**vars(self), "mapped": None}


class MemoryPixels:
    """Rows in memory that worker processes share; `tensor` is (n_rows, side, side, 3) uint8."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the pixels of a row, (side, side, 3) uint8."""
        return self.tensor[row].numpy()


def decode(dataset: HandsDataset, rows: Sequence[int], num_workers: int) -> Iterator[np.ndarray]:
    """Yield the plain pixels of the rows in their order, (n, side, side, 3) uint8 at a time.

    A progress bar counts those that the caller is done with.
    """
    plain = copy.copy(dataset)
    plain.augmentation, plain.cached, plain.resident = None, None, None
    batches = [[(row, 0) for row in rows[i : i + BATCH]] for i in range(0, len(rows), BATCH)]
    loader: DataLoader[Any] = DataLoader(
        plain,
        batch_sampler=batches,
        num_workers=min(num_workers, len(batches)),
        collate_fn=as_it_is,
        generator=torch.Generator(),  # else it draws from the global one
    )
    bar = tqdm(total=len(rows), desc="decode", unit="photo", leave=False, disable=None)
    with bar as progress:
        for batch in loader:
            yield batch.image.numpy()
            progress.update(len(batch.image))


def write_all(file: IO[bytes], data: memoryview) -> None:
    """Write all bytes; an unbuffered file may take fewer at a time."""
    rest = data.cast("B")
    while rest:
        rest = rest[file.write(rest) :]


class CacheFile:
    """The cache of a folder's photos at one size.

    Args:
        folder: of the cache.
        dataset: says where the photos lie and how they are decoded.
    """

    def __init__(self, folder: Path, dataset: HandsDataset) -> None:
        self.settings = {
            "format": CACHE_FORMAT,
            "photos": str(dataset.folder.resolve()),
            "side": dataset.side,
            "decode_size": dataset.decode_size,
            "resampling": "bicubic",
            "pillow": PIL.__version__,
            "libjpeg": features.version("libjpeg_turbo") or features.version("jpg"),
        }
        digest = hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()[:12]
        self.pixels = folder / f"{dataset.side}px-{digest}.pixels"
        self.index = self.pixels.with_suffix(".json")
        self.photo_bytes = dataset.side**2 * 3
        self.dataset = dataset

    def open(self, num_workers: int) -> MappedPixels:
        """Return the data set's rows, once those that are missing have been decoded.

        Raises:
            CacheError: the cache cannot be read or written.
            UserError: a photo cannot be decoded.
        """
        names = self.dataset.names
        try:
            self.pixels.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.pixels.with_suffix(".lock")):
                for left in self.pixels.parent.glob(f".{self.pixels.stem}.*"):
                    left.unlink()  # by a process that was killed while it wrote the index
                entries, stats = self.read_index(), self.read_stats()
                missing = self.find_missing(entries, stats)
                if missing:
                    self.add(entries, missing, stats, num_workers)
                places = [entries[name].place for name in names]
                return MappedPixels(self.pixels, self.dataset.side, places)
        except OSError as error:
            reason = error.strerror or error
            message = f"cache {self.pixels.parent} cannot be used: {reason}; {WAYS_OUT}"
            raise CacheError(message) from error

    def read_index(self) -> dict[str, Entry]:
        """Return what is in the cache; one that is damaged or mostly stale is begun anew."""
        try:
            stored = json.loads(self.index.read_text(encoding="utf-8"))
            entries = {name: Entry(*map(int, e)) for name, e in stored["photos"].items()}
            places = {entry.place for entry in entries.values()}
            if stored["settings"] != self.settings or len(places) != len(entries):
                raise ValueError("it describes another one")
            if min(places, default=0) < 0:
                raise ValueError("a place is negative")
            if max(places, default=0) < 2 * len(places) + PORTION and self.pixels.is_file():
                return entries
        except FileNotFoundError:
            pass
        except OSError:
            raise
        except Exception as error:  # whatever a foreign file makes of the lines above
            reason = " ".join(str(error).split())
            logger.warning("cache %s is damaged (%s): it is built anew", self.index, reason)
        for path in (self.index, self.pixels):  # a process that has them mapped keeps them
            path.unlink(missing_ok=True)
        return {}

    def read_stats(self) -> list[os.stat_result]:
        """Return the state of every row's file, as it is before the photo is decoded."""
        stats = []
        for row, name in enumerate(self.dataset.names):
            path = self.dataset.folder / name
            try:
                stats.append(path.stat())
            except OSError as error:
                reason = error.strerror or error
                raise UserError(
                    f"row {row + 1}: photo {path} cannot be read: {reason}; replace the file"
                ) from error
        return stats

    def find_missing(self, entries: dict[str, Entry], stats: Sequence[os.stat_result]) -> list[int]:
        """Return the rows whose photo is not in the cache, has changed, or is damaged there."""
        if not entries:
            return list(range(len(stats)))
        missing, n_damaged = [], 0
        with self.pixels.open("rb") as file:  # a map would count as this process's memory
            for row, (name, stat) in enumerate(zip(self.dataset.names, stats, strict=True)):
                entry = entries.get(name)
                if entry is None or (entry.size, entry.mtime) != (stat.st_size, stat.st_mtime_ns):
                    missing.append(row)
                    continue
                file.seek(entry.place * self.photo_bytes)
                if zlib.crc32(file.read(self.photo_bytes)) != entry.checksum:
                    missing.append(row)
                    n_damaged += 1
        if n_damaged:
            logger.warning(
                "cache %s: %d photos are damaged there and decoded anew", self.pixels, n_damaged
            )
        return missing

    def add(
        self,
        entries: dict[str, Entry],
        rows: Sequence[int],
        stats: Sequence[os.stat_result],
        num_workers: int,
    ) -> None:
        """Decode the rows to the end of the file; add them to `entries` and to the index.

        What was decoded before a bad photo or Ctrl-C is kept; where the disk refuses, what has no
        name yet is given back.
        """
        needed, free = len(rows) * self.photo_bytes, shutil.disk_usage(self.pixels.parent).free
        size = f"{needed / 1e6:.1f} MB"
        if needed > free:
            raise OSError(f"{size} are needed, {free / 1e6:.1f} MB are free")
        logger.info("cache: decoding %d photos once, %s, into %s", len(rows), size, self.pixels)
        photos = (photo for batch in decode(self.dataset, rows, num_workers) for photo in batch)
        new: dict[str, Entry] = {}
        with self.pixels.open("ab", buffering=0) as file:
            end = self.cut(file, entries)  # what a killed process left behind
            try:
                for row, photo in zip(rows, photos, strict=True):
                    write_all(file, photo.data)
                    stat, place = stats[row], end + len(new)
                    entry = Entry(place, stat.st_size, stat.st_mtime_ns, zlib.crc32(photo.data))
                    new[self.dataset.names[row]] = entry
                    if len(new) == PORTION:
                        end = self.keep(file, entries, new)
            except OSError:
                new.clear()
                raise
            finally:
                self.keep(file, entries, new)

    def cut(self, file: IO[bytes], entries: dict[str, Entry]) -> int:
        """Cut off what is not in `entries`; return the place behind the last that is."""
        end = 1 + max((entry.place for entry in entries.values()), default=-1)
        file.truncate(end * self.photo_bytes)
        return end

    def keep(self, file: IO[bytes], entries: dict[str, Entry], new: dict[str, Entry]) -> int:
        """Name `new` photos once they are on disk, or cut them off; return the place behind them.

        They move to `entries`.
        """
        try:
            end = self.cut(file, entries | new)
            os.fsync(file.fileno())
            if new:
                write_json(self.index, {"settings": self.settings, "photos": entries | new})
        except (OSError, UserError) as error:
            self.cut(file, entries)
            raise OSError(getattr(error, "strerror", None) or str(error)) from error
        entries.update(new)
        new.clear()
        return end


def decode_to_memory(dataset: HandsDataset, num_workers: int) -> MemoryPixels:
    """Return the data set's rows in memory.

    Raises:
        CacheError: the machine's memory is too small.
        UserError: a photo cannot be decoded.
    """
    shape = (len(dataset), dataset.side, dataset.side, 3)
    needed, memory = math.prod(shape), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = f"{needed / 1e6:.1f} MB"
    if memory and needed > memory / MEMORY_SHARE:
        raise CacheError(
            f"a cache in memory needs {size}, over 1/{MEMORY_SHARE} of the {memory / 1e6:.1f} MB"
            f" there are; {WAYS_OUT}"
        )
    logger.info("cache: decoding %d photos once, %s, into memory", len(dataset), size)
    try:
        pixels = torch.empty(shape, dtype=torch.uint8).share_memory_()
    except (MemoryError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CacheError(
            f"a cache in memory, {size}, cannot be had: {reason}; {WAYS_OUT}"
        ) from error
    place = 0
    for photos in decode(dataset, range(len(dataset)), num_workers):
        pixels[place : place + len(photos)] = torch.from_numpy(photos)
        place += len(photos)
    return MemoryPixels(pixels)


def attach_cache(dataset: HandsDataset, mode: str, *, folder: Path, num_workers: int) -> None:
    """Give the data set its decoded photos.

    Args:
        dataset: of a split.
        mode: `disk`, `ram`, `none`, or `auto`: the first of these that there is room for.
        folder: of a cache on disk.
        num_workers: processes that decode.

    Raises:
        CacheError: there is no room for what was asked for.
        UserError: a photo cannot be decoded.
    """
    for kind in ("disk", "ram") if mode == "auto" else (mode,):
        try:
            if kind == "disk":
                dataset.cached = CacheFile(folder, dataset).open(num_workers)
            elif kind == "ram":
                dataset.cached = decode_to_memory(dataset, num_workers)
            return
        except CacheError as error:
            if mode != "auto":
                raise
            logger.warning("--cache auto goes on without: %s", error)


def keep_on_device(dataset: HandsDataset, device: torch.device) -> None:
    """Copy the data set's cached photos to the GPU, where there is room for all of them."""
    if dataset.cached is None or device.type != "cuda":
        return
    shape = (len(dataset), dataset.side, dataset.side, 3)
    if math.prod(shape) <= torch.cuda.mem_get_info(device)[0] / DEVICE_SHARE:
        dataset.resident = torch.empty(shape, dtype=torch.uint8, device=device)
        for row in range(len(dataset)):  # one at a time: the main memory may be the smaller one
            dataset.resident[row] = torch.from_numpy(dataset.cached[row])
