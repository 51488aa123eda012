"""Cache of arrays with a row per photo: decoded photos (memory-mapped) and features."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock
from PIL import Image, features
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.splits import lines_of
from data.tables import photo_names, read_csv
from dataset_11k import HandsDataset, Photo, PhotoReader, collate
from utils import BrokenPhotoError, UserError, atomic_write, logger

MAX_CACHE_GB = 50  # least recently used files beyond this total are deleted

DECODE_BATCH = 16  # photos that a worker decodes at a time

N_NAMED = 5  # broken photos that a message names

DEVICE_SHARE = 4  # a copy on the GPU takes at most a quarter of its free memory


class MappedPixels:
    """Photos of a cache file, memory-mapped; unpickling opens the file again.

    Args:
        path: .npy file, (n_photos, H, W, 3) uint8.
        places: position in the file of each row of the dataset.
    """

    def __init__(self, path: Path, places: Sequence[int]) -> None:
        self.path, self.places = path, places
        self.photos = np.load(path, mmap_mode="r")

    def __getitem__(self, row: int) -> np.ndarray:
        """Return a copy of the pixels of a row, (H, W, 3) uint8."""
        return np.array(self.photos[self.places[row]])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path instead of the pixels."""
        return MappedPixels, (self.path, self.places)


class PhotoFiles(Dataset[Image.Image | str]):
    """Decode photos; a broken photo gives its error message instead of an image."""

    def __init__(self, photos: Sequence[Photo], reader: PhotoReader) -> None:
        self.photos, self.reader = photos, reader

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.photos)

    def __getitem__(self, place: int) -> Image.Image | str:
        """Return the image, as `PhotoReader.read`, or an error message."""
        try:
            return self.reader.read(self.photos[place])
        except UserError as error:
            return str(error)


def cache_path(
    dataset: HandsDataset, names: Sequence[str], cache_dir: Path, features_of: str = ""
) -> Path:
    """Return the cache file of photos; its name is a hash of all that its content depends on.

    Args:
        dataset: whose folder and reader are used.
        names: photos.
        cache_dir: folder of the cache files.
        features_of: hash of the model, if the file holds features.
    """
    stats = [(dataset.folder / name).stat() for name in names]
    content = {
        "folder": str(dataset.folder.resolve()),
        "photos": [(n, s.st_size, s.st_mtime_ns) for n, s in zip(names, stats, strict=True)],
        "reader": dataclasses.asdict(dataset.reader),
        "pillow": PIL.__version__,
        "libjpeg": features.version("libjpeg_turbo") or features.version("jpg"),
        "features_of": features_of,
    }
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    kind = "features" if features_of else f"{dataset.reader.shape[0]}px"
    return cache_dir / f"{kind}-{digest}.npy"


def build_once(path: Path, build: Callable[[], None]) -> None:
    """Let `build` write a cache file unless it exists; other processes wait for it.

    Raises:
        OSError: no room or permission.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # waits for a process that builds this file
            for remnant in path.parent.glob(f".{path.stem}.*"):  # of a killed process
                remnant.unlink()
            if not path.is_file():
                build()
        prune(path.parent)
    with suppress(OSError):  # the folder may be read-only
        os.utime(path)  # for `prune`


def cached_features(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array in a cache file; if it is absent or damaged, compute and store it.

    Without room or permission on the disk it logs a warning, and the array is computed each time.
    """
    with suppress(OSError, ValueError, EOFError):
        found = np.load(path)
        with suppress(OSError):  # the folder may be read-only
            os.utime(path)  # for `prune`
        if np.isfinite(found).all():
            return found
    found = compute()
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, found)
        prune(path.parent)
    except (OSError, UserError) as error:
        logger.warning("no cache in %s: %s. Features are computed each time", path.parent, error)
    return found


def decode(
    photos: PhotoFiles, names: Sequence[str], sources: Sequence[Path], num_workers: int
) -> Iterator[Image.Image]:
    """Yield all photos, in order; `sources` are the CSVs that list their `names`.

    Raises:
        UserError: photos cannot be decoded; raised after the last photo, so that it counts all.
    """
    loader: DataLoader[Any] = DataLoader(
        photos,
        batch_size=DECODE_BATCH,
        num_workers=min(num_workers, math.ceil(len(photos) / DECODE_BATCH)),
        collate_fn=collate,
        generator=torch.Generator(),  # the default is the global generator
    )
    broken: dict[str, str] = {}  # name -> message
    with tqdm(total=len(photos), desc="decode", unit="photo", leave=False, disable=None) as bar:
        decoded = (photo for batch in loader for photo in batch)
        for name, photo in zip(names, decoded, strict=True):
            if isinstance(photo, str):
                broken[name] = photo
            elif not broken:
                yield photo
            bar.update()
    if broken:
        lines = lines_of(list(broken), sources)
        first = [f"{broken[name]} ({lines.get(name)})" for name in list(broken)[:N_NAMED]]
        others = f"; and {len(broken) - len(first)} others" if len(broken) > len(first) else ""
        raise UserError("; ".join(first) + others)


@contextmanager
def name_all_broken_photos(
    folder: Path, sources: Sequence[Path], num_workers: int
) -> Iterator[None]:
    """If a photo that cannot be decoded stops the block, name all of them instead of the first.

    Args:
        folder: of the photos.
        sources: the CSVs that list them; they need not exist.
        num_workers: number of processes that decode.

    Raises:
        UserError: with the CSV and line of each photo.
    """
    try:
        yield
    except BrokenPhotoError:
        files = [path for path in sources if path.is_file()]
        listed = [photo_names(read_csv(f, ("image_path",), "")["image_path"]) for f in files]
        names = [n for n in dict.fromkeys(itertools.chain(*listed)) if (folder / n).is_file()]
        photos = PhotoFiles([folder / name for name in names], PhotoReader(1))
        for _ in decode(photos, names, files, num_workers):
            pass
        raise


def build(path: Path, photos: PhotoFiles, decoded: Iterator[Image.Image]) -> None:
    """Write `photos` into the cache file `path`, which appears when all are decoded."""
    shape = (len(photos), *photos.reader.shape)
    needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free")
    logger.info("cache: decoding %d photos into %s (%.1f MB)", len(photos), path, needed / 1e6)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        # Written in order, not through a map: a full disk is then an error instead of a crash.
        np.lib.format.write_array_header_1_0(file, header)
        for photo in decoded:
            file.write(photo.tobytes())


def prune(cache_dir: Path) -> None:
    """Delete the least recently used cache files beyond `MAX_CACHE_GB`."""
    total, files = 0, []
    for path in cache_dir.glob("*.npy"):
        with suppress(OSError):  # another process may rename or delete it
            files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > MAX_CACHE_GB * 1e9:
            logger.info("cache: deleting %s, least recently used", path)
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)


def attach_cache(
    dataset: HandsDataset,
    photo_names: Sequence[str],
    *,
    sources: Sequence[Path] = (),
    cache_dir: Path,
    num_workers: int,
) -> None:
    """Let a dataset read decoded photos from a cache file, which is built if it does not exist.

    Without room or permission on the disk it logs a warning, and photos are decoded as needed.

    Args:
        dataset: of a split.
        photo_names: photos of the whole aspect, whose splits and folds share the file.
        sources: the CSVs that list them, for messages.
        cache_dir: folder of the cache files.
        num_workers: number of processes that decode.

    Raises:
        UserError: photos cannot be decoded.
    """
    try:
        path = cache_path(dataset, photo_names, cache_dir)
        photos = PhotoFiles([dataset.folder / name for name in photo_names], dataset.reader)
        decoded = decode(photos, photo_names, sources, num_workers)
        build_once(path, lambda: build(path, photos, decoded))
        places = {name: place for place, name in enumerate(photo_names)}
        dataset.cached = MappedPixels(path, [places[name] for name in dataset.names])
    except (OSError, NotImplementedError, UserError) as error:
        if isinstance(error, UserError) and not isinstance(error.__cause__, OSError):
            raise  # broken photos, not a failure to write
        logger.warning("no cache in %s: %s. Photos are decoded in every epoch", cache_dir, error)


def copy_to_device(dataset: HandsDataset, device: torch.device) -> None:
    """Copy the dataset's cached photos to the GPU if it has room for them."""
    if dataset.cached is None or device.type != "cuda":
        return
    shape = (len(dataset), *dataset.reader.shape)
    if math.prod(shape) <= torch.cuda.mem_get_info(device)[0] / DEVICE_SHARE:
        dataset.resident = torch.empty(shape, dtype=torch.uint8, device=device)
        for row in range(len(dataset)):  # one at a time: main memory may be smaller than the GPU's
            dataset.resident[row] = torch.from_numpy(dataset.read_pixels(row))
