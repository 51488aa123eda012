"""Draw a synthetic data set in the layout of 11k Hands, without photos of real people.

    python dataset_11k_synthetic.py --identities 40 --output ./demo/11k

writes <output>/Hands/Hand_0000002.jpg ..., <output>/HandInfo.csv and <output>/synthetic.json, which
marks the folder as drawn by this script. A folder with any other content is refused. With
`--contact_sheet FILE`, it also writes a PNG with the four aspects of a few people.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from dataset_11k import ASPECTS, HAND_INFO_COLUMNS
from synthetic.people import DIRTY_ID, Person, draw_outfit, draw_people, random_generator
from synthetic.render import FULL_WIDTH, draw_poses, render
from synthetic.skin import build_hand
from utils import (
    UserError,
    atomic_write,
    flag,
    logger,
    one_line_errors,
    parse_config,
    setup_logging,
    usable_cpus,
    write_json,
)

FIRST_NUMBER = 2  # of a photo, as in 11k Hands
MARKER = "synthetic.json"
DRAWING = 1  # version: increase it when the same flags produce other pictures
DERIVED = ("sub_dataset", "trainval", "cache")  # what the other scripts add to a data set
WORN_SHARE = 0.4  # of a wearer's photos of an aspect that show ring or watch
JPEG_QUALITY = 90
MIN_DRAWN_WIDTH = 400  # smaller photos are drawn at this width, then reduced
MAX_SHIFT = 256  # pixels that the camera noise is shifted by between photos
SKIN_PER_MM = 3.0  # pixels of drawn skin per mm, at FULL_WIDTH
SHEET_ROWS, SHEET_CELL, SHEET_LABEL = 4, (240, 250), 28  # people; pixels


@dataclass(frozen=True)
class SyntheticConfig:
    """Flags of dataset_11k_synthetic.py."""

    identities: int = flag(40, "number of people")
    images_per_identity: int = flag(8, "photos per person and aspect")
    width: int = flag(640, "width of a photo in pixels, a multiple of 4; its height is 3/4 of it")
    processes: int = flag(usable_cpus(), "number of processes; the files do not depend on it")
    seed: int = flag(0, "random seed")
    output: Path = flag(Path("demo/11k"), "folder to write", metavar="DIR")
    overwrite: bool = flag(False, "replace a synthetic data set, and delete its splits and cache")
    contact_sheet: Path | None = flag(None, "PNG to write: the four aspects of a few people")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, low, high in (
            ("identities", 1, 5000),
            ("images_per_identity", 1, 1000),
            ("width", 64, 4000),
            ("processes", 1, 1024),
            ("seed", 0, 2**63 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"--{name} is {getattr(self, name)}, expected {low} to {high}")
        if self.width % 4:
            raise ValueError(f"--width is {self.width}, expected a multiple of 4")
        if self.contact_sheet is not None and self.contact_sheet.suffix != ".png":
            raise ValueError(f"--contact_sheet is {self.contact_sheet}, expected a .png file")

    @property
    def drawing(self) -> dict[str, int]:
        """The drawing's version and the flags that the files depend on."""
        names = ("identities", "images_per_identity", "width", "seed")
        return {"drawing": DRAWING, **{name: getattr(self, name) for name in names}}


# ----------------------------------------------------------------------------- photos


class Session(NamedTuple):
    """The photos of one person and aspect; their numbers are consecutive."""

    person: Person
    aspect: str
    first: int  # number of the first photo
    worn_from: int  # index of the first photo with accessories


def plan_sessions(config: SyntheticConfig) -> list[Session]:
    """Return all sessions in the order of photo numbers."""
    n = config.images_per_identity
    sessions: list[Session] = []
    for person in draw_people(config.seed, config.identities):
        n_worn = int(n * WORN_SHARE) if person.wearer else 0
        for aspect in ASPECTS.values():
            first = FIRST_NUMBER + n * len(sessions)
            sessions.append(Session(person, aspect, first, n - n_worn))
    return sessions


def photo_name(number: int) -> str:
    """Return the file name of a photo."""
    return f"Hand_{number:07d}.jpg"


def hand_info_text(config: SyntheticConfig) -> str:
    """Return the text of HandInfo.csv; quotes, line ends and trailing blank as published."""
    lines = [",".join(HAND_INFO_COLUMNS)]
    for person, aspect, first, worn_from in plan_sessions(config):
        polish = int(person.polish and aspect.startswith("dorsal"))
        for i in range(config.images_per_identity):
            dirty = person.id == DIRTY_ID and aspect == ASPECTS["dorsal_dr"] and i == 0
            lines.append(
                f'"{person.id}{" " * dirty}",{person.age},"{person.gender}","{person.skin}",'
                f'{int(i >= worn_from)},{polish},"{aspect}","{photo_name(first + i)}",'
                f"{int(person.scar)}"
            )
    return "\r\n".join(lines) + "\r\n"


def draw_session(config: SyntheticConfig, session: Session, folder: Path) -> int:
    """Write the photos of a session into `folder` and return their number."""
    person, aspect, first, worn_from = session
    n, width = config.images_per_identity, max(config.width, MIN_DRAWN_WIDTH)
    size = (width, width * 3 // 4)
    hand = build_hand(config.seed, person, aspect, SKIN_PER_MM * width / FULL_WIDTH)
    outfit = draw_outfit(config.seed, person, aspect)
    rng = random_generator(config.seed, 9, first)
    noise = rng.standard_normal((size[1] + MAX_SHIFT, size[0] + MAX_SHIFT), np.float32)
    for i, pose in enumerate(draw_poses(config.seed, person, aspect, n)):
        down, aside = rng.integers(MAX_SHIFT, size=2)
        shifted, worn = noise[down:, aside:], i >= worn_from
        photo = render(hand, outfit, pose, size=size, accessories=worn, noise=shifted)
        if width != config.width:
            photo = photo.resize((config.width, config.width * 3 // 4), Image.Resampling.BOX)
        photo.save(folder / photo_name(first + i), quality=JPEG_QUALITY)
    return n


def draw_sessions(config: SyntheticConfig, folder: Path) -> Iterator[int]:
    """Draw all photos into `folder`, in several processes; yield the photos per session."""
    sessions = plan_sessions(config)
    if config.processes == 1:
        yield from map(draw_session, repeat(config), sessions, repeat(folder))
        return
    n_workers = min(config.processes, len(sessions))
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by the workers
        drawn = pool.map(draw_session, repeat(config), sessions, repeat(folder))
        signal.signal(signal.SIGINT, handler)  # Ctrl-C is for this process
        yield from drawn


def write_data_set(config: SyntheticConfig, output: Path) -> None:
    """Draw the data set next to `output` and rename it when it is complete."""
    start = time.perf_counter()
    n_photos = config.identities * len(ASPECTS) * config.images_per_identity
    output.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{output.name}.drawing."
    for remnant in output.parent.glob(f"{glob.escape(prefix)}*"):  # of a killed process
        with suppress(OSError, Timeout), FileLock(remnant / ".lock", timeout=0):
            shutil.rmtree(remnant, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=output.parent) as folder,
        FileLock(Path(folder) / ".lock"),
    ):
        temporary = Path(folder) / output.name
        (temporary / "Hands").mkdir(parents=True)
        logger.info("%s: drawing %d photos", output, n_photos)
        with tqdm(total=n_photos, unit="photo", disable=None) as bar:
            for n_drawn in draw_sessions(config, temporary / "Hands"):
                bar.update(n_drawn)
        text = hand_info_text(config).encode()
        (temporary / "HandInfo.csv").write_bytes(text)
        digest = hashlib.sha256(text).hexdigest()
        write_json(temporary / MARKER, {"flags": config.drawing, "hand_info_sha256": digest})
        if output.exists():
            output.rename(Path(folder) / "replaced")  # at once, unlike its deletion
        temporary.rename(output)
    seconds = time.perf_counter() - start
    logger.info("%s: drew %d photos in %.0f s", output, n_photos, seconds)


# ----------------------------------------------------------------------------- existing folders


def read_marker(output: Path) -> dict[str, int]:
    """Return the flags that the data set in `output` was drawn with.

    Raises:
        UserError: this script did not write the folder's content, or it was edited since.
    """
    advice = "Nothing was changed. Choose another --output"
    try:
        marker = json.loads((output / MARKER).read_text(encoding="utf-8"))
        flags, digest = dict(marker["flags"]), marker["hand_info_sha256"]
        intact = hashlib.sha256((output / "HandInfo.csv").read_bytes()).hexdigest() == digest
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{output} holds files that this script did not write. {advice}") from None
    if not intact:
        raise UserError(f"{output / 'HandInfo.csv'} was edited after it was drawn. {advice}")
    return flags


def check_replaceable(output: Path, names: set[str]) -> None:
    """Refuse to delete a data set whose folder holds anything but its own files `names`."""
    own = {"Hands", "HandInfo.csv", MARKER, *DERIVED}
    extra = {entry.name for entry in output.iterdir()} - own
    if (output / "Hands").is_symlink():
        extra.add("Hands (a link)")
    elif (output / "Hands").is_dir():
        extra |= {f"Hands/{e.name}" for e in (output / "Hands").iterdir() if e.name not in names}
    if extra:
        raise UserError(
            f"{output} holds files that this script did not write:"
            f" {', '.join(sorted(extra)[:5])}. Move them away, or choose another --output"
        )


def is_complete(config: SyntheticConfig, output: Path) -> bool:
    """Return whether `output` holds the data set of `config`; False: it may be written there.

    Raises:
        UserError: it holds anything else.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output is a file: {output}. Choose a folder")
    if not output.exists() or not any(output.iterdir()):
        return False
    found, wanted = read_marker(output), config.drawing
    n_photos = len(ASPECTS) * found["identities"] * found["images_per_identity"]
    names = {photo_name(FIRST_NUMBER + i) for i in range(n_photos)}
    if config.overwrite:
        check_replaceable(output, names)
        return False
    advice = "Add --overwrite to replace it and its splits, or choose another --output"
    if found != wanted:
        changes = (f"{k} {found.get(k)} (now: {v})" for k, v in wanted.items() if found.get(k) != v)
        raise UserError(f"{output} was drawn with other flags: {', '.join(changes)}. {advice}")
    n_missing = sum(not (output / "Hands" / name).is_file() for name in names)
    if n_missing:
        raise UserError(f"{n_missing} of {n_photos} photos are missing: {output}. {advice}")
    return True


# ----------------------------------------------------------------------------- contact sheet


def contact_sheet(config: SyntheticConfig, folder: Path) -> Image.Image:
    """Return a picture of the four aspects (columns) of a few people, youngest first."""
    by_age = sorted(plan_sessions(config), key=lambda s: (s.person.age, s.person.id))
    rows = [by_age[i : i + len(ASPECTS)] for i in range(0, len(by_age), len(ASPECTS))]
    places = np.linspace(0, len(rows) - 1, min(SHEET_ROWS, len(rows))).round().astype(int)
    width, height = SHEET_CELL
    sheet = Image.new("RGB", (len(ASPECTS) * width, len(places) * height + SHEET_LABEL), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for column, aspect in enumerate(ASPECTS.values()):
        middle = (column * width + width // 2, SHEET_LABEL // 2)
        draw.text(middle, aspect, "black", font, anchor="mm")
        for row, place in enumerate(places):
            session, n = rows[place][column], config.images_per_identity
            x = draw_poses(config.seed, session.person, aspect, n)[-1]["x"]
            with Image.open(folder / photo_name(session.first + n - 1)) as photo:
                shown = photo.height * width / height  # around the hand
                left = min(max(x * photo.width - shown / 2, 0), photo.width - shown)
                box = (left, 0, left + shown, photo.height)
                cell = photo.resize(SHEET_CELL, Image.Resampling.LANCZOS, box)
            sheet.paste(cell, (column * width, SHEET_LABEL + row * height))
    return sheet.quantize(256, Image.Quantize.MEDIANCUT)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the data set, unless it exists, and its contact sheet if asked for."""
    config = parse_config(SyntheticConfig, __doc__, argv)
    setup_logging()
    output = config.output.resolve()
    if is_complete(config, output):
        logger.info("%s: the data set exists with these flags, and is complete", output)
    else:
        write_data_set(config, output)
    if config.contact_sheet is not None:
        with atomic_write(config.contact_sheet) as temporary:
            contact_sheet(config, output / "Hands").save(temporary, "PNG", optimize=True)
        logger.info("wrote %s", config.contact_sheet)
    logger.info("next: python dataset_11k_split.py --input %s", config.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
