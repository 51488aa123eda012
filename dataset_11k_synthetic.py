"""Draw a stand-in for the 11k Hands data set, in the same layout, with nobody's hands in it.

    python dataset_11k_synthetic.py --identities 40 --output ./demo/11k

writes <output>/Hands/Hand_0000002.jpg ..., <output>/HandInfo.csv, and <output>/synthetic.json, the
mark by which the script knows a folder as its own. Anything else in <output> it leaves alone and
stops. `--contact_sheet FILE` also writes a PNG that shows a few people from all four sides.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tqdm import tqdm

from dataset_11k import AGE_GROUPS, ASPECTS, HAND_INFO_COLUMNS, SKIN_COLORS
from utils import (
    UserError,
    atomic_write,
    build_config,
    build_parser,
    flag,
    logger,
    one_line_errors,
    setup_logging,
    usable_cpus,
    write_json,
)

Array = NDArray[np.floating[Any]]  # pictures: float32; matrices: float64

Rng = np.random.Generator

Points = list[tuple[float, float]]

DIRTY_ID = "1200000"  # one row of the real file has a blank behind this id

FIRST_NUMBER = 2  # of a photo, as in the real file

MARKER = "synthetic.json"

DRAWING = 1  # goes up when the same flags give other pictures

DERIVED = ("sub_dataset", "trainval")  # what dataset_11k_split.py makes from a set

STALE_SECONDS = 3600  # a temporary folder untouched for so long was left by a killed run

JPEG_QUALITY = 90

ASPECT_NUMBERS = {aspect: i for i, aspect in enumerate(ASPECTS.values())}

LEAST_DRAWN = 400  # smaller photos are drawn at this width, then reduced

FULL_WIDTH = 640  # that the sizes given in pixels refer to

GRAIN_SHIFT = 256  # pixels that the camera's grain moves by from photo to photo, at most

SKIN_PER_MM = 3.0  # pixels of drawn skin to the millimetre, at that width


@dataclass(frozen=True)
class SyntheticConfig:
    """What dataset_11k_synthetic.py is asked for."""

    identities: int = flag(40, "number of people")
    images_per_identity: int = flag(8, "photos of each person and aspect")
    width: int = flag(640, "of a photo in pixels, a multiple of 4; the height is 3/4 of it")
    processes: int = flag(usable_cpus(), "processes that draw; the files do not depend on it")
    seed: int = flag(0, "of everything that is drawn")
    output: Path = flag(Path("demo/11k"), "folder to write", metavar="DIR")
    overwrite: bool = flag(False, "replace a set drawn with other flags, with its splits")
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


def generator(seed: int, *key: int) -> Rng:
    """Return the random numbers that belong to `key` alone, whoever draws them."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


# ----------------------------------------------------------------------------- people


class Trait(NamedTuple):
    """How a trait is spread over people."""

    female: float  # mean
    male: float  # mean
    spread: float  # standard deviation between people of one gender
    sides: float  # standard deviation between a person's hand and the mean of both


# Relative to a mean hand, unless a unit is given.
TRAITS = {
    "palm_breadth": Trait(0.965, 1.035, 0.025, 0.006),
    "wrist": Trait(0.93, 1.07, 0.035, 0.008),
    "finger_length": Trait(1.035, 0.965, 0.025, 0.006),
    "finger_width": Trait(0.94, 1.06, 0.03, 0.008),
    "taper": Trait(0.10, 0.02, 0.03, 0.008),  # how much a fingertip narrows
    "joint": Trait(0.03, 0.07, 0.018, 0.006),  # how much a joint bulges
    "index": Trait(1.012, 0.988, 0.015, 0.006),  # length: the ratio of index to ring finger
    "ring": Trait(0.992, 1.010, 0.015, 0.006),
    "little": Trait(1.0, 1.0, 0.04, 0.012),
    "thumb_length": Trait(1.0, 1.0, 0.035, 0.010),
    "thumb_angle": Trait(33.0, 33.0, 4.0, 1.5),  # degrees
    "nail_width": Trait(0.70, 0.78, 0.03, 0.01),  # of the finger's width
    "nail_length": Trait(12.8, 11.2, 0.8, 0.2),  # mm
    "nail_free": Trait(2.4, 0.9, 0.9, 0.2),  # mm beyond the finger's flesh
    "veins": Trait(0.40, 0.62, 0.2, 0.05),
    "heart_line": Trait(0.0, 0.0, 1.0, 0.45),  # shape of the palm's creases, in sigmas
    "head_line": Trait(0.0, 0.0, 1.0, 0.45),
    "life_line": Trait(0.0, 0.0, 1.0, 0.45),
    "crease": Trait(1.0, 1.0, 0.18, 0.05),
    "redness": Trait(1.0, 1.0, 0.25, 0.05),
    "mottle": Trait(1.0, 1.0, 0.3, 0.08),
    "freckles": Trait(1.0, 1.0, 0.5, 0.1),
}

SKIN_SHARES = (0.06, 0.34, 0.48, 0.12)  # of people, in the order of SKIN_COLORS

SKIN_RGB = {  # of lit skin on the back of the hand, 0 to 1
    "very fair": (0.95, 0.80, 0.72),
    "fair": (0.90, 0.72, 0.60),
    "medium": (0.80, 0.60, 0.46),
    "dark": (0.56, 0.39, 0.29),
}

PALM_RGB = (0.97, 0.76, 0.67)  # palms are half-way from the back's colour to this one

AGE_SHARES = (33, 57, 27, 12, 9, 5)  # people of 11k Hands per age group (dorsal right)

GENDER_CYCLE = ("female", "male", "female", "male", "female")  # 3 to 2, and both among any two

POLISH_SHARE = 0.12  # of either gender, so that polish tells nothing about it

WEARER_SHARE = 0.4  # of people with a ring or watch in a part of their photos

WORN_PART = 0.4  # of a wearer's photos of an aspect

SCAR_SHARE = 0.03  # of people with a scar (column irregularities)


@dataclass(frozen=True)
class Person:
    """A row's columns that belong to the person, and what only the drawing needs."""

    number: int  # place among the people, from 0
    id: str
    age: int
    gender: str
    skin: str
    polish: bool
    wearer: bool
    scar: bool


def draw_ages(rng: Rng, n_people: int) -> list[int]:
    """Return ascending ages: every group gets a few people, the rest follow the real set."""
    floor = min(n_people // (2 * len(AGE_GROUPS)) + (n_people >= 18), 6)
    shares = np.array(AGE_SHARES) / sum(AGE_SHARES)
    counts = rng.multinomial(max(n_people - floor * len(AGE_GROUPS), 0), shares) + floor
    ages = []
    for (low, high), count in zip(AGE_GROUPS.values(), counts, strict=True):
        ages += list(rng.integers(max(low, 18), min(high, 75), int(count), endpoint=True))
    return [int(age) for age in sorted(ages)]


def draw_people(seed: int, n_people: int) -> list[Person]:
    """Return the people in the order of their ids; age, gender and skin are independent."""
    rng = generator(seed, 0)
    ages = draw_ages(rng, n_people)
    offset = int(rng.integers(len(GENDER_CYCLE)))
    genders = [GENDER_CYCLE[(i + offset) % len(GENDER_CYCLE)] for i in range(n_people)]
    free = np.delete(np.arange(2_000_000), int(DIRTY_ID))
    ids = sorted([int(DIRTY_ID), *rng.choice(free, n_people - 1, replace=False).tolist()])
    order = rng.permutation(n_people)
    return [
        Person(
            number=i,
            id=f"{ids[i]:07d}",
            age=ages[order[i]],
            gender=genders[order[i]],
            skin=str(rng.choice(SKIN_COLORS, p=SKIN_SHARES)),
            polish=bool(rng.random() < POLISH_SHARE),
            wearer=bool(rng.random() < WEARER_SHARE),
            scar=bool(rng.random() < SCAR_SHARE),
        )
        for i in range(n_people)
    ]


# ----------------------------------------------------------------------------- anatomy

# Lengths are in millimetres on the hand. A hand has its origin in the middle of the wrist, x
# towards the thumb and y towards the fingertips. It is made of six limbs: the body (forearm and
# palm), the thumb and four fingers. A limb is a table of half-widths along its axis: s runs along
# it, t across.


class FingerPlan(NamedTuple):
    """A mean finger, from its knuckle."""

    x: float  # of the knuckle, mm
    y: float
    length: float  # knuckle to fingertip, mm
    half_width: float  # at the middle joint, mm
    closed: float  # direction in degrees from y towards the thumb, fingers together
    opened: float  # likewise, fingers spread


FINGERS = {
    "index": FingerPlan(27.5, 79.0, 97.0, 9.4, -0.5, 12.0),
    "middle": FingerPlan(9.2, 83.0, 105.0, 9.6, 0.0, 3.0),
    "ring": FingerPlan(-9.2, 80.0, 99.0, 9.1, 0.5, -7.0),
    "little": FingerPlan(-26.0, 72.0, 80.0, 7.9, 2.0, -18.0),
}

THUMB = FingerPlan(13.5, 22.0, 106.0, 11.2, 0.0, 0.0)

WEB, PIP, DIP = 0.22, 0.47, 0.75  # finger's end of the palm, middle and last joint (of length)

THUMB_MCP, THUMB_IP = 0.44, 0.735  # end of the palm and joint of the thumb

# Half-widths: (place, half-width); fingers relative to length and to `half_width`.
FINGER_KNOTS = (
    *((0, 1.02), (0.2, 1.0), (0.34, 0.95), (PIP, 1.0), (0.61, 0.89), (DIP, 0.885)),
    *((0.87, 0.84), (1, 0.7)),
)

THUMB_KNOTS = (
    *((0, 1.45), (0.2, 1.5), (0.36, 1.25), (0.47, 1.08), (0.6, 0.92), (0.74, 0.97)),
    *((0.87, 0.92), (1, 0.75)),
)

BODY_KNOTS = (  # of forearm and palm, mm
    *((-160, 34), (-70, 31), (-25, 28.5), (0, 27.5), (14, 29), (32, 34.5)),
    *((52, 37.5), (75, 38.5), (110, 38)),
)

BODY_START, BODY_END = -150.0, 104.0  # mm along the body

TABLE_PER_MM = 8  # entries of a limb's table


class Texture(NamedTuple):
    """What multiplies the skin's colour: rgb (n_rows, n_columns, 3) float32, rows along s."""

    rgb: Array
    start: float  # s of the first row, mm
    left: float  # t of the first column, mm
    per_mm: float


class Nail(NamedTuple):
    """A finger nail: a rounded rectangle."""

    s: float  # centre, mm
    t: float
    half_length: float
    half_width: float


class Limb(NamedTuple):
    """A part of a hand; its outline in (s, t) is a bar with rounded ends."""

    half_width: Array  # (n,) mm, from `start` on
    start: float  # s of the table's first entry, mm
    root: tuple[float, float]  # the near end is rounded from s = root[0] over root[1] mm
    cap: tuple[float, float]  # the far end likewise
    thickness: float  # height of the middle above the edge, of the half-width
    flat: bool  # a plateau with round edges (palm), else a half cylinder (finger)
    nail: Nail | None

    @property
    def length(self) -> float:
        """The end of the far cap, mm along the limb."""
        return sum(self.cap)


def half_width_table(knots: Sequence[tuple[float, float]], start: float, end: float) -> Array:
    """Return smooth half-widths from `start` to `end`, `TABLE_PER_MM` to the millimetre."""
    places, widths = zip(*knots, strict=True)
    s = np.arange(start, end, 1 / TABLE_PER_MM)
    reach = int(4 * TABLE_PER_MM)
    table = np.interp(np.pad(s, reach, mode="reflect", reflect_type="odd"), places, widths)
    kernel = np.hanning(2 * reach + 1)
    return np.convolve(table, kernel / kernel.sum(), mode="valid").astype(np.float32)


def finger_limb(name: str, traits: dict[str, float], dorsal: bool) -> Limb:
    """Return the thumb or a finger as a limb."""
    plan = THUMB if name == "thumb" else FINGERS[name]
    length = plan.length * traits["thumb_length" if name == "thumb" else "finger_length"]
    length *= traits.get(name, 1.0)
    half = plan.half_width * traits["finger_width"]
    knots = []
    for place, width in THUMB_KNOTS if name == "thumb" else FINGER_KNOTS:
        joint = traits["joint"] if place in (PIP, DIP, 0.74) else 0.0
        taper = traits["taper"] * max(0.0, place - 0.5) * 2
        knots.append((place * length, (width + joint - taper) * half))
    table = half_width_table(knots, -12.0, length + 8)
    tip = float(table[int((length + 8) * TABLE_PER_MM)])
    nail = None
    if dorsal:
        nail_half = traits["nail_length"] * half / 8.5 / 2
        thumb = name == "thumb"
        nail = Nail(
            s=length + traits["nail_free"] - (2.6 if thumb else 1.6) - nail_half,
            t=0.2 * tip if thumb else 0.0,
            half_length=nail_half,
            half_width=tip * traits["nail_width"] * (0.85 if thumb else 1.0),
        )
    cap = tip * 1.2
    return Limb(table, -12.0, (2.0, 12.0), (length - cap, cap), 0.85, False, nail)


def body_limb(traits: dict[str, float]) -> Limb:
    """Return forearm and palm as a limb."""
    knots = []
    for place, width in BODY_KNOTS:
        wrist = min(max((45 - place) / 45, 0.0), 1.0)
        factor = traits["wrist"] * wrist + traits["palm_breadth"] * (1 - wrist)
        knots.append((place, width * factor))
    table = half_width_table(knots, BODY_START, BODY_END)
    return Limb(table, BODY_START, (BODY_START, 1.0), (70.0, 30.0), 0.42, True, None)


def draw_traits(seed: int, person: Person, right: bool) -> dict[str, float]:
    """Return the traits of a person's left or right hand, plus those that follow from age."""
    both, side = generator(seed, 1, person.number), generator(seed, 2, person.number, right)
    traits = {}
    for name, trait in TRAITS.items():
        mean = trait.female if person.gender == "female" else trait.male
        traits[name] = mean + trait.spread * both.normal() + trait.sides * side.normal()
    # 0 at 18 years, .25 at 22, .43 at 27, 1 at 75: early years count more, as the groups do
    years = math.log(max(person.age, 18) - 14) - math.log(4)
    traits["wear"] = max(0.0, years / (math.log(61) - math.log(4)) + 0.03 * both.normal())
    traits["spots"] = max(0.0, traits["wear"] - 0.4) * 1.6
    return traits


# ----------------------------------------------------------------------------- skin


class Line(NamedTuple):
    """A crease, vein or scar on a sheet of skin."""

    points: Points  # (s, t), mm
    width: float  # mm
    strength: float  # 0 to 1


class Sheet:
    """A rectangle of skin in limb coordinates that things are drawn on.

    Args:
        start: first s, mm.
        end: last s, mm.
        half: largest absolute t, mm.
        per_mm: pixels to the millimetre.
    """

    def __init__(self, start: float, end: float, half: float, per_mm: float) -> None:
        self.start, self.half, self.per_mm = start, half, per_mm
        self.extent = end - start  # grains are counted by it: the same ones at any per_mm
        self.shape = (round((end - start) * per_mm), round(2 * half * per_mm))
        rows, columns = np.arange(self.shape[0]) + 0.5, np.arange(self.shape[1]) + 0.5
        self.s = (rows / per_mm + start).astype(np.float32)[:, None]
        self.t = (columns / per_mm - half).astype(np.float32)[None, :]
        self.rgb = np.ones((*self.shape, 3), np.float32)

    def noise(self, rng: Rng, cell_s: float, cell_t: float) -> Array:
        """Return smooth noise of variance about 1/2, whose grains have the given size in mm."""
        rows, columns = max(2, round(self.extent / cell_s)), max(2, round(2 * self.half / cell_t))
        grid = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
        return np.asarray(grid.resize(self.shape[::-1], Image.Resampling.BICUBIC))

    def spot(self, s: float, t: float, radius_s: float, radius_t: float) -> Array:
        """Return a bell of height 1."""
        along = np.exp(-(((self.s - s) / radius_s) ** 2))
        return along * np.exp(-(((self.t - t) / radius_t) ** 2))

    def lines(self, lines: Sequence[Line], blur: float) -> Array:
        """Return the strength of `lines` at each pixel, blurred by `blur` mm."""
        image = Image.new("L", self.shape[::-1])
        draw = ImageDraw.Draw(image)
        for line in lines:
            places = [
                ((t + self.half) * self.per_mm, (s - self.start) * self.per_mm)
                for s, t in line.points
            ]
            n = len(places) - 1
            for i in range(n):
                fade = min(1.0, 4 * (i + 1) / (n + 1), 4 * (n - i) / (n + 1))
                width = max(1, round(line.width * (0.5 + 0.5 * fade) * self.per_mm))
                draw.line([places[i], places[i + 1]], round(255 * line.strength * fade), width)
        image = image.filter(ImageFilter.GaussianBlur(blur * self.per_mm))
        return np.asarray(image, np.float32) / 255

    def tint(self, amount: Array, rgb: tuple[float, float, float]) -> None:
        """Multiply by 1 + amount * rgb."""
        for channel, strength in enumerate(rgb):
            if strength:
                self.rgb[..., channel] *= 1 + amount * strength

    def emboss(self, relief: Array, strength: float) -> None:
        """Shade `relief` (mm) by light from the wrist."""
        slope = np.zeros(self.shape, np.float32)
        slope[1:-1] = (relief[2:] - relief[:-2]) * self.per_mm / 2
        self.tint(slope, (strength,) * 3)

    def crease(self, lines: Sequence[Line], depth: float) -> None:
        """Cut `lines` into the skin: a dark core, a wide hollow and a lit lower side."""
        core = self.lines(lines, 0.25)
        hollow = self.lines([line._replace(width=line.width * 2) for line in lines], 1.3)
        self.tint(core, (-0.42 * depth, -0.52 * depth, -0.52 * depth))
        self.tint(hollow, (-0.16 * depth, -0.25 * depth, -0.25 * depth))
        self.emboss(-hollow, 0.22 * depth)

    def texture(self) -> Texture:
        """Return what was drawn."""
        return Texture(self.rgb, self.start, -self.half, self.per_mm)


def curve(points: Points, n: int = 24) -> Points:
    """Return `n` points of a Catmull-Rom spline through `points`."""
    knots = np.array([points[0], *points, points[-1]])
    place = np.linspace(0, len(points) - 1 - 1e-6, n)
    i, u = place.astype(int), (place % 1)[:, None]
    a, b, c, d = knots[i], knots[i + 1], knots[i + 2], knots[i + 3]
    path = 0.5 * (2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u**2)
    path += 0.5 * (3 * b - a - 3 * c + d) * u**3
    return [(float(s), float(t)) for s, t in path]


def arc(s: float, half: float, bow: float, rng: Rng, shift: float = 0) -> Points:
    """Return a slightly uneven arc across a limb, its middle `bow` mm further on."""
    t = np.linspace(-half, half, 12)
    wobble = np.cumsum(rng.normal(0, 0.12, 12))
    path = s + bow * (1 - (t / half) ** 2) + wobble - wobble.mean()
    return [(float(a), float(b)) for a, b in zip(path, t + shift, strict=True)]


def grain(sheet: Sheet, rng: Rng, traits: dict[str, float], dorsal: bool) -> None:
    """Give a sheet what all skin has: mottling, fine texture, and the wear of age."""
    wear = traits["wear"]
    mottle = 0.020 * traits["mottle"] * (1 if dorsal else 1.5)
    sheet.tint(sheet.noise(rng, 14, 14), (0.02, 0.03, 0.03))
    sheet.tint(sheet.noise(rng, 3.5, 3.5), (-0.2 * mottle, -mottle, -mottle))
    sheet.tint(sheet.noise(rng, 1.2, 1.2), (0.012,) * 3)
    fine = sheet.noise(rng, 0.5, 1.1 + wear) + sheet.noise(rng, 0.9, 0.5)
    sheet.tint(fine, (0.012 + 0.018 * wear,) * 3)
    folds = np.maximum(sheet.noise(rng, 0.9, 2.6), 0)
    sheet.tint(folds, (-0.055 * wear, -0.065 * wear, -0.065 * wear))
    if not dorsal:
        return
    n_spots = rng.poisson(max(0.0, traits["freckles"]) * 5 + 50 * traits["spots"])
    for _ in range(n_spots):
        s = rng.uniform(sheet.start, sheet.start + sheet.extent)
        t, radius = rng.uniform(-sheet.half, sheet.half), rng.uniform(0.4, 1.0)
        radius *= 1 + 1.6 * traits["spots"]
        row = int((s - sheet.start - 3 * radius) * sheet.per_mm)
        rows = slice(max(row, 0), max(row, 0) + int(6 * radius * sheet.per_mm))
        bell = np.exp(-(((sheet.s[rows] - s) / radius) ** 2) - ((sheet.t - t) / radius) ** 2)
        darkness = 0.22 * rng.uniform(0.4, 1) * bell[..., None]
        sheet.rgb[rows] *= 1 - darkness * np.array([0.7, 1.0, 1.15], np.float32)


def draw_nail(sheet: Sheet, nail: Nail, polish: Array | None) -> None:
    """Draw a nail with its moon, white edge, gloss and cuticle."""
    along, across = (sheet.s - nail.s) / nail.half_length, (sheet.t - nail.t) / nail.half_width
    radius = np.sqrt(np.sqrt(along**4 + across**4))
    edge = nail.half_width
    inside = np.clip(0.5 - (radius - 1) * edge * 2.2, 0, 1)[..., None]
    rim = np.exp(-(((radius - 1) * edge / 0.55) ** 2)) * (along < 0.75)
    sheet.tint(rim, (-0.28, -0.34, -0.32))
    plate = np.ones((*sheet.shape, 3), np.float32) * np.array([1.10, 1.13, 1.20], np.float32)
    moon = np.clip(1.4 - np.hypot((along + 1.0) / 0.42, across / 0.75) * 1.4, 0, 0.6)[..., None]
    free = np.clip((along - 0.74 + 0.10 * across**2) * 9, 0, 1)[..., None]
    white = np.array([1.2, 1.34, 1.5], np.float32)
    plate += (white - plate) * np.maximum(moon * 0.6, free * 0.9)
    if polish is not None:
        plate[:] = polish
    gloss = np.exp(-(((across + 0.35) / 0.22) ** 2)) * np.exp(-((along / 0.8) ** 2))
    curved = 1.04 - 0.16 * across**2 + 0.13 * gloss
    sheet.rgb += (plate * curved[..., None] - sheet.rgb) * inside


def back_joint(
    sheet: Sheet, s: float, half: float, size: float, traits: dict[str, float], rng: Rng
) -> list[Line]:
    """Darken the back of a finger's joint at `s`; return its wrinkles, an eye of short arcs."""
    wear = traits["wear"]
    patch = sheet.spot(s, 0, 6.5 * size, 0.75 * half) * traits["redness"]
    sheet.tint(patch, (-0.06, -0.11, -0.13))
    sheet.emboss(sheet.spot(s, 0, 5 * size, 0.8 * half), 0.25)
    lines = []
    for offset in np.linspace(-5 * size, 5 * size, int(rng.integers(4, 7) * size + 2 * wear)):
        reach = half * rng.uniform(0.5, 0.75) * (1 - abs(offset) / 14)
        points = arc(s + offset + rng.normal(0, 0.25), reach, 0.35 * offset, rng)
        strength = min(rng.uniform(0.5, 0.9) * (0.75 + 0.35 * wear), 1)
        lines.append(Line(points, 0.5, strength))
    return lines


def inner_joint(s: float, half: float, n: int, wear: float, rng: Rng) -> list[Line]:
    """Return the `n` creases across the inside of a finger's joint at `s`, and finer ones."""
    lines = []
    for i in range(n):
        offset = 2.2 * (i - (n - 1) / 2)
        points = arc(s + offset + rng.normal(0, 0.3), half, 0.5 * offset, rng)
        lines.append(Line(points, 0.75, rng.uniform(0.7, 0.95)))
    for _ in range(int(2 + 4 * wear)):
        lines.append(Line(arc(s + rng.normal(0, 2.5), 0.6 * half, 0, rng), 0.4, 0.3))
    return lines


def finger_skin(
    limb: Limb,
    joints: Sequence[float],
    traits: dict[str, float],
    *,
    dorsal: bool,
    rng: Rng,
    per_mm: float,
    polish: Array | None,
) -> Texture:
    """Return the skin of a finger or the thumb.

    Args:
        limb: its shape.
        joints: places on the finger, of its length: where the palm ends, then each joint.
        traits: as `draw_traits` returns them.
        dorsal: whether the back is seen.
        rng: random numbers.
        per_mm: pixels to the millimetre.
        polish: (3,) colour of the nails, of the skin's colour.
    """
    half, length = float(limb.half_width.max()), limb.length
    sheet = Sheet(limb.start, length + 7, half + 1, per_mm)
    grain(sheet, rng, traits, dorsal)
    lines: list[Line] = []
    for i, place in enumerate(joints[1:]):
        s, size = place * length, (1.0, 0.65)[i]
        width = float(limb.half_width[int((s - limb.start) * TABLE_PER_MM)])
        if dorsal:
            lines += back_joint(sheet, s, width, size, traits, rng)
        else:
            n = 2 if i == 0 and len(joints) > 2 else 1
            lines += inner_joint(s, width, n, traits["wear"], rng)
    if not dorsal:
        lines += inner_joint(joints[0] * length, 0.95 * half, int(rng.integers(1, 3)), 0, rng)
        pad = sheet.spot(length * 0.93, 0, 13, half * 2) * traits["redness"]
        sheet.tint(pad, (-0.01, -0.09, -0.07))
        for place in joints:
            sheet.emboss(sheet.spot((place + 0.13) * length, 0, 8, half), 0.35)
    sheet.crease(lines, traits["crease"] * (0.8 + 0.4 * traits["wear"]))
    if limb.nail is not None:
        draw_nail(sheet, limb.nail, polish)
    return sheet.texture()


def draw_knuckle(sheet: Sheet, plan: FingerPlan, traits: dict[str, float], rng: Rng) -> Array:
    """Draw a knuckle and the tendon that leads to it; return their relief in mm."""
    x, y, wear = plan.x * traits["palm_breadth"], plan.y, traits["wear"]
    sheet.tint(sheet.spot(y, x, 8, 7) * traits["redness"], (-0.05, -0.11, -0.12))
    lines = []
    for offset in np.linspace(-4, 4, int(rng.integers(4, 6))):
        points = arc(y + offset, rng.uniform(3, 5.5), 0.3 * offset, rng, x)
        lines.append(Line(points, 0.45, 0.32 + 0.25 * wear))
    sheet.crease(lines, 0.8)
    path = x * (0.1 + 0.9 * np.clip((sheet.s + 12) / (y + 12), 0, 1))
    fade = np.clip((sheet.s - 5) / 45, 0, 1) * np.clip((y - 4 - sheet.s) / 14, 0, 1)
    tendon = np.exp(-(((sheet.t - path) / 2.4) ** 2)) * fade
    sheet.tint(np.gradient(tendon, axis=1) * sheet.per_mm, (0.06 + 0.1 * wear,) * 3)
    return 2.0 * sheet.spot(y, x, 7, 6) + (0.35 + 0.5 * wear) * tendon


def back_skin(sheet: Sheet, traits: dict[str, float], rng: Rng) -> None:
    """Draw the back of a hand: knuckles, tendons and veins."""
    reliefs = [draw_knuckle(sheet, plan, traits, rng) for plan in FINGERS.values()]
    sheet.emboss(np.sum(reliefs, axis=0), 0.22)
    veins: list[Line] = []
    for _ in range(int(rng.integers(4, 7))):
        s, t = rng.uniform(55, 76), rng.uniform(-26, 24)
        points = [(s, t)]
        while s > -70:
            s, t = s - rng.uniform(12, 22), t * 0.9 + rng.normal(0, 4.5)
            points.append((s, t))
        veins.append(Line(curve(points, 40), rng.uniform(1.4, 2.4), 0.9))
    blood = sheet.lines(veins, 0.9) * max(0.1, traits["veins"] + 0.3 * traits["wear"])
    sheet.tint(blood, (-0.15, -0.045, -0.02))
    sheet.emboss(blood, 0.28)


def palm_lines(traits: dict[str, float], rng: Rng) -> list[Line]:
    """Return the creases of a palm."""
    heart, head, life = (traits[f"{name}_line"] for name in ("heart", "head", "life"))
    b = traits["palm_breadth"]
    courses: list[Points] = [
        [(66, -38), (66 + heart, -26), (70 + 2 * heart, -8), (77 + 2 * heart, 6), (86 + heart, 14)],
        [(66, 37), (64 + head, 22), (58 + 2 * head, 4), (47 + 4 * head, -14), (38 + 6 * head, -26)],
        [(66, 36), (62, 24 + life), (48, 12 + 2 * life), (28, 7 + 2 * life), (8, 12 + life)],
    ]
    lines = [
        Line(curve([(s, t * b) for s, t in points]), rng.uniform(0.75, 1.05), 0.85)
        for points in courses
    ]
    if rng.random() < 0.6:
        fate = [(14, 0), (34, -1 + life), (52, 2 + head), (70, 5)]
        lines.append(Line(curve([(s, t * b) for s, t in fate]), 0.6, 0.4))
    for _ in range(int(9 + 14 * traits["wear"])):
        s, t = rng.uniform(8, 84), rng.uniform(-28, 24)
        turn, reach = rng.normal(0.5, 0.7), rng.uniform(4, 13)
        ends = [(s, t), (s + reach * math.sin(turn) / 2 + rng.normal(), t + reach / 2)]
        ends.append((s + reach * math.sin(turn), t + reach * math.cos(turn)))
        lines.append(Line(curve(ends, 10), 0.45, rng.uniform(0.2, 0.55)))
    for s in (-3.0, -8.0):
        lines.append(Line(arc(s + rng.normal(), 25 * b, 2.0, rng), 0.7, 0.5))
    return lines


def palm_skin(sheet: Sheet, traits: dict[str, float], rng: Rng) -> None:
    """Draw the inside of a hand: fleshy pads and creases."""
    b = traits["palm_breadth"]
    mounds = [(34, 22, 20, 15, 2.8), (28, -24 * b, 22, 13, 2.4)]
    mounds += [(84, 18 * b, 7, 7, 1.0), (86, 0, 7, 7, 1.0), (82, -17 * b, 7, 7, 1.0)]
    relief = np.zeros(sheet.shape, np.float32)
    for s, t, radius_s, radius_t, height in mounds:
        mound = sheet.spot(s, t, radius_s, radius_t)
        relief += height * mound
        sheet.tint(mound * traits["redness"], (0.0, -0.075, -0.06))
        slope = np.gradient(mound, axis=1) * sheet.per_mm * height
        sheet.tint(slope, (0.10,) * 3)
    sheet.tint(sheet.spot(54, -2, 20, 20), (0.02, 0.03, 0.03))
    sheet.emboss(relief, 0.30)
    sheet.crease(palm_lines(traits, rng), traits["crease"] * (0.9 + 0.25 * traits["wear"]))
    wrist = [Line(curve([(-90, t), (-50, t + 1), (-12, t * 0.6)]), 1.8, 0.8) for t in (-9, 1, 8)]
    sheet.tint(sheet.lines(wrist, 1.0), (-0.05, -0.012, 0.0))


class Hand(NamedTuple):
    """A hand from one side, ready to be posed."""

    dorsal: bool
    right: bool
    limbs: dict[str, Limb]
    skins: dict[str, Texture]
    base: Array  # (3,) colour of lit skin, 0 to 1
    traits: dict[str, float]
    area: float  # of fingers and palm, mm^2


def skin_colour(seed: int, person: Person, dorsal: bool) -> Array:
    """Return the colour of a person's lit skin, (3,) float32 in 0..1; palms are paler, pinker."""
    rng = generator(seed, 3, person.number)
    rgb = np.array(SKIN_RGB[person.skin]) * (1 + rng.normal(0, 0.025)) + rng.normal(0, 0.008, 3)
    if not dorsal:
        rgb += 0.5 * (np.array(PALM_RGB) - rgb)
    return np.clip(rgb, 0.1, 0.98).astype(np.float32)


def polish_colour(seed: int, person: Person) -> Array | None:
    """Return the colour of a person's nail polish, (3,) float32 in 0..1; None: has none."""
    if not person.polish:
        return None
    rgb = generator(seed, 5, person.number).uniform(0.15, 0.9, 3)
    rgb[0] = 0.45 + 0.5 * rgb[0]
    return rgb.astype(np.float32)


def shown_area(limbs: dict[str, Limb]) -> float:
    """Return the area of fingers and palm, mm^2."""
    area = 0.0
    for name, limb in limbs.items():
        if name != "thumb":
            area += 2 * float(limb.half_width[int(-limb.start * TABLE_PER_MM) :].sum())
    return area / TABLE_PER_MM


def build_hand(seed: int, person: Person, aspect: str, per_mm: float) -> Hand:
    """Return a person's hand as seen in the photos of `aspect`.

    Args:
        seed: of the set.
        person: whose hand.
        aspect: a value of `ASPECTS`, such as "dorsal right".
        per_mm: pixels to the millimetre of its skin.
    """
    dorsal, right = aspect.startswith("dorsal"), aspect.endswith("right")
    traits = draw_traits(seed, person, right)
    rng = generator(seed, 4, person.number, right, dorsal)
    limbs = {"body": body_limb(traits)}
    limbs |= {name: finger_limb(name, traits, dorsal) for name in ("thumb", *FINGERS)}
    base, polish = skin_colour(seed, person, dorsal), polish_colour(seed, person)
    sheet = Sheet(BODY_START, BODY_END + 4, 46, per_mm)
    grain(sheet, rng, traits, dorsal)
    (back_skin if dorsal else palm_skin)(sheet, traits, rng)
    if person.scar:
        place = [(58.0, -14.0), (50.0, -6.0), (44.0, -4.0)]
        sheet.tint(sheet.lines([Line(curve(place), 1.6, 1.0)], 0.4), (0.16, -0.02, 0.02))
    skins = {"body": sheet.texture()}
    for name in ("thumb", *FINGERS):
        skins[name] = finger_skin(
            limbs[name],
            (THUMB_MCP, THUMB_IP) if name == "thumb" else (WEB, PIP, DIP),
            traits,
            dorsal=dorsal,
            rng=rng,
            per_mm=per_mm,
            polish=None if polish is None else polish / base,
        )
    return Hand(dorsal, right, limbs, skins, base, traits, shown_area(limbs))


# ----------------------------------------------------------------------------- pose and dress


class Drift(NamedTuple):
    """How a quantity varies between runs of photos, and from one photo to the next."""

    mean: float
    runs: float  # standard deviation
    step: float


POSE = {
    "turn": Drift(0.0, 9.0, 0.7),  # degrees; 0: fingers point down
    "x": Drift(0.5, 0.07, 0.006),  # of the knuckles, of the photo's width
    "y": Drift(0.42, 0.035, 0.005),  # likewise, of its height
    "size": Drift(0.465, 0.035, 0.002),  # root of the hand's area, of the photo's height
    "spread": Drift(0.50, 0.35, 0.035),  # 0: fingers together, 1: spread
    "thumb": Drift(0.0, 6.0, 0.8),  # degrees away from the fingers
    **{f"turn_{name}": Drift(0.0, 1.5, 0.35) for name in FINGERS},  # degrees
    **{f"curl_{name}": Drift(0.04, 0.03, 0.006) for name in (*FINGERS, "thumb")},  # shortens by
    **{f"bend_{name}": Drift(0.0, 0.022, 0.004) for name in FINGERS},  # sideways, per 100 mm
    "bend_thumb": Drift(-0.07, 0.035, 0.006),
    "light": Drift(1.05, 0.045, 0.006),  # exposure
    "warmth": Drift(0.0, 0.025, 0.002),  # red more, blue less
    "light_x": Drift(0.0, 0.35, 0.02),  # where light comes from
    "light_y": Drift(-0.35, 0.2, 0.02),
    "shadow": Drift(0.20, 0.08, 0.005),  # darkness
    "blur": Drift(0.35, 0.25, 0.08),  # pixels at width 640
}

JUMP_SHARE, JUMP = 0.15, 3.5  # of steps that are large, and how much larger

Pose = dict[str, float]


def draw_poses(seed: int, person: Person, aspect: str, n: int) -> list[Pose]:
    """Return `n` neighbouring photos' poses: a random walk of small steps with a few jumps."""
    rng = generator(seed, 6, person.number, ASPECT_NUMBERS[aspect])
    means, runs, steps = np.array(list(POSE.values())).T
    values = means + runs * np.clip(rng.normal(size=len(POSE)), -2, 2)
    poses = []
    for _ in range(n):
        poses.append(dict(zip(POSE, values.tolist(), strict=True)))
        large = JUMP if rng.random() < JUMP_SHARE else 1.0
        values = values + steps * large * rng.normal(size=len(POSE))
        values = np.clip(values, means - 2.2 * runs, means + 2.2 * runs)
    return poses


class Outfit(NamedTuple):
    """What a person wears in the photos of one aspect."""

    sleeve: float | None  # its end, mm along the body; None: out of sight
    cloth: tuple[float, float, float]  # colour, 0 to 1
    ribs: float  # mm from rib to rib
    ring: str  # the finger it is worn on
    ring_place: float  # of the finger's length
    metal: tuple[float, float, float]  # colour, 0 to 1
    watch: float | None  # its middle, mm along the body; None: has none


def draw_outfit(seed: int, person: Person, aspect: str) -> Outfit:
    """Return clothes, ring and watch; the latter two are worn in some photos only."""
    own = generator(seed, 7, person.number)
    run = generator(seed, 8, person.number, ASPECT_NUMBERS[aspect])
    watch = -own.uniform(8, 14) if own.random() < 0.5 else None
    sleeve = -run.uniform(14, 60) if run.random() < 0.65 else None
    if sleeve is not None and person.wearer and watch is not None:
        sleeve = min(sleeve, -48.0)  # or it would hide the watch
    red, green, blue = own.uniform(0.08, 0.85, 3) * own.uniform(0.5, 1)
    return Outfit(
        sleeve=sleeve,
        cloth=(red, green, blue),
        ribs=own.uniform(1.6, 4.0),
        ring=str(own.choice(["ring", "middle", "index"])),
        ring_place=own.uniform(0.29, 0.33),
        metal=(0.85, 0.66, 0.30) if own.random() < 0.5 else (0.76, 0.77, 0.80),
        watch=watch,
    )


def hand_matrix(hand: Hand, pose: Pose, size: tuple[int, int]) -> Array:
    """Return the (3, 3) matrix from pixels (x, y, 1) to millimetres on the hand.

    All hands are drawn equally large (root of their area), so that size tells no gender. Fingers
    down, the thumb is on the photo's right for a right hand's back and a left hand's palm.
    """
    mirror = 1 if hand.dorsal == hand.right else -1
    scale = pose["size"] * size[1] / math.sqrt(hand.area)  # px per mm
    turn = math.radians(pose["turn"])
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    linear = np.array([[mirror * cos, mirror * sin], [-sin, cos]])
    knuckles = np.array([0.0, FINGERS["middle"].y])
    shift = knuckles - linear @ [pose["x"] * size[0], pose["y"] * size[1]]
    return np.vstack([np.column_stack([linear, shift]), [0, 0, 1]])


def limb_matrix(name: str, hand: Hand, pose: Pose) -> Array:
    """Return the (3, 3) matrix from millimetres on the hand to a limb's (s, t)."""
    if name == "body":
        return np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    if name == "thumb":
        plan, angle = THUMB, hand.traits["thumb_angle"] + pose["thumb"] + 8 * pose["spread"]
    else:
        plan = FINGERS[name]
        angle = plan.closed + max(pose["spread"], 0) * (plan.opened - plan.closed)
        angle += pose[f"turn_{name}"]
    sin, cos = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    x, y = plan.x * hand.traits["palm_breadth"], plan.y
    longer = 1 / (1 - max(pose[f"curl_{name}"], 0))
    along = np.array([sin, cos, -(x * sin + y * cos)]) * longer
    return np.vstack([along, [cos, -sin, -(x * cos - y * sin)], [0, 0, 1]])


# ----------------------------------------------------------------------------- rendering


Box = tuple[slice, slice]  # rows and columns of a photo

Layer = tuple[Array, Array]  # colour (h, w, 3) and where it is (h, w)

FILLET, FILLET_THUMB = 6.5, 10.0  # mm over which a finger and the palm melt into one another

MELT_MM = 3.5  # unevenness smaller than this is smoothed there

SLEEVE_MM = 4.5  # from skin to cloth

GRAIN = 0.008  # of the camera, standard deviation in 0..1


class View(NamedTuple):
    """The pixels of a box in a limb's coordinates."""

    s: Array  # (h, w), mm
    t: Array


class Field(NamedTuple):
    """What is seen in a window of the photo."""

    distance: Array  # (h, w) to the outline in mm, negative inside
    height: Array  # (h, w) above the table, mm
    rgb: Array  # (h, w, 3), multiplies the skin's colour


def limb_box(limb: Limb, matrix: Array, size: tuple[int, int]) -> Box:
    """Return the part of a photo of `size` (width, height) that a limb may touch."""
    half = float(limb.half_width.max()) + 8
    near, far = limb.start - 2, limb.start + len(limb.half_width) / TABLE_PER_MM + 2
    corners = np.array([[s, t, 1] for s in (near, far) for t in (-half, half)]).T
    x, y, _ = np.linalg.inv(matrix) @ corners
    left, right = np.clip([x.min(), x.max() + 1], 0, size[0]).astype(int).tolist()
    top, bottom = np.clip([y.min(), y.max() + 1], 0, size[1]).astype(int).tolist()
    return slice(top, bottom), slice(left, right)


def limb_view(matrix: Array, box: Box, bend: float) -> View:
    """Return the (s, t) of a box's pixels; `bend` is the way aside at s = 100 mm, of that."""
    rows, columns = box
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] + 0.5
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5
    (a, b, c), (d, e, f) = matrix[:2].tolist()
    s, t = (a * x + c) + b * y, (d * x + f) + e * y
    return View(s, t - s * s * (bend / 100) if bend else t)


def sample(texture: Texture, view: View) -> Array:
    """Return the texture's nearest colours at the view's points, (h, w, 3) float32."""
    n_rows, n_columns, _ = texture.rgb.shape
    row = ((view.s - texture.start) * texture.per_mm).astype(np.int32)
    column = ((view.t - texture.left) * texture.per_mm).astype(np.int32)
    np.clip(row, 0, n_rows - 1, out=row)
    np.clip(column, 0, n_columns - 1, out=column)
    return np.take(texture.rgb.reshape(-1, 3), row * n_columns + column, axis=0)


def limb_field(limb: Limb, skin: Texture, view: View) -> Field:
    """Return how a limb looks at the points of a view."""
    s, t = view.s, view.t
    row = ((s - limb.start) * TABLE_PER_MM).astype(np.int32)
    half = limb.half_width[np.clip(row, 0, len(limb.half_width) - 1, out=row)]
    end = s
    if limb.flat:  # the palm's far edge follows the knuckles: lower towards the little finger
        lower = np.maximum(6 - t, 0)
        end = s + 0.0045 * lower * lower + 0.04 * lower
    beyond = np.maximum((end - limb.cap[0]) / limb.cap[1], (limb.root[0] - s) / limb.root[1])
    beyond = np.maximum(beyond, 0) ** 2
    across = (t / half) ** 2
    square = np.sqrt(across**2 + beyond**2) if limb.flat else across + beyond
    distance = (np.sqrt(square) - 1) * half
    dome = np.maximum(1 - square**2 if limb.flat else 1 - square, 0.03)
    height = np.sqrt(dome) * half * limb.thickness
    if limb.flat:  # thins out towards the fingers
        height *= np.clip(1.55 - s * 0.011, 0.5, 1)
    if limb.nail is not None:
        nail = limb.nail
        u = ((s - nail.s) / nail.half_length) ** 2
        v = ((t - nail.t) / nail.half_width) ** 2
        plate = (np.sqrt(np.sqrt(u * u + v * v)) - 1) * nail.half_width
        distance = np.minimum(distance, plate)
    return Field(distance, height, sample(skin, view))


def join(finger: Field, body: Field, result: Field, melt: Array, fillet: float) -> None:
    """Put a finger that grows smoothly out of the body into `result`, where it is nearer.

    All are of one box. `melt` (h, w) becomes 1 where finger and body turn into one another, over
    `fillet` mm, and 0 elsewhere on the finger.
    Source: https://iquilezles.org/articles/smin (the quadratic smooth minimum).
    """
    share = np.clip((body.distance - finger.distance) * (0.5 / fillet) + 0.5, 0, 1)
    rest = share * (1 - share)
    distance = body.distance + share * (finger.distance - body.distance) - fillet * rest
    share *= share * (3 - 2 * share)  # no edge where the melting begins
    height = body.height + share * (finger.height - body.height)
    depth = np.clip(-distance, 0, 8)  # where they melt, the skin rises from the new outline
    height += np.maximum(0.85 * np.sqrt(depth * (16 - depth)) - height, 0) * np.minimum(6 * rest, 1)
    rgb = body.rgb + share[..., None] * (finger.rgb - body.rgb)
    nearer = distance < result.distance
    np.copyto(result.distance, distance, where=nearer)
    np.copyto(result.height, height, where=nearer)
    np.copyto(result.rgb, rgb, where=nearer[..., None])
    np.copyto(melt, np.minimum(10 * rest, 1), where=nearer)


def put_on_ring(field: Field, limb: Limb, outfit: Outfit, base: Array, view: View) -> Field:
    """Return the field of a finger with a ring on it."""
    centre = outfit.ring_place * limb.length
    half = float(limb.half_width[int((centre - limb.start) * TABLE_PER_MM)])
    around = view.t / half
    off = np.abs(view.s - centre + 0.03 * half * around**2)
    on = np.clip(2.6 - 2 * off, 0, 1)
    shine = 0.55 - 0.25 * around**2 - 0.25 * (off > 0.9)
    shine += 0.75 * np.exp(-(((around + 0.35) / 0.22) ** 2))
    shine += 0.25 * np.exp(-(((around - 0.55) / 0.15) ** 2))
    metal = shine[..., None] * (np.array(outfit.metal, np.float32) / base)
    pressed = 1 - 0.35 * np.exp(-((np.maximum(off - 1.2, 0) / 0.9) ** 2))
    rgb = field.rgb * pressed[..., None]
    rgb += (metal - rgb) * on[..., None]
    return Field(field.distance, field.height + on * 0.8, rgb)


class Scene(NamedTuple):
    """A hand's skin in its box of the photo."""

    box: Box
    view: View  # of the body
    body: Field
    skin: Field  # body and fingers
    pixel_mm: float


def compose(hand: Hand, outfit: Outfit, pose: Pose, size: tuple[int, int], ring: bool) -> Scene:
    """Return the skin of all limbs, joined, in the smallest box that holds them."""
    to_hand = hand_matrix(hand, pose, size)
    matrices = {name: limb_matrix(name, hand, pose) @ to_hand for name in hand.limbs}
    boxes = {name: limb_box(hand.limbs[name], matrices[name], size) for name in hand.limbs}
    top, left = (min(box[i].start for box in boxes.values()) for i in (0, 1))
    bottom, right = (max(box[i].stop for box in boxes.values()) for i in (0, 1))
    whole = (slice(top, bottom), slice(left, right))
    view = limb_view(matrices["body"], whole, 0.0)
    body = limb_field(hand.limbs["body"], hand.skins["body"], view)
    skin = Field(*(values.copy() for values in body))
    melt = np.zeros_like(body.height)
    for name in ("thumb", *FINGERS):
        limb, (rows, columns) = hand.limbs[name], boxes[name]
        inner = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        near = limb_view(matrices[name], boxes[name], pose[f"bend_{name}"])
        finger = limb_field(limb, hand.skins[name], near)
        if ring and name == outfit.ring:
            finger = put_on_ring(finger, limb, outfit, hand.base, near)
        under, onto = (Field(*(values[inner] for values in field)) for field in (body, skin))
        join(finger, under, onto, melt[inner], FILLET_THUMB if name == "thumb" else FILLET)
    pixel_mm = math.sqrt(hand.area) / (pose["size"] * size[1])
    soft = smoothed(skin.height, MELT_MM / pixel_mm) - skin.height
    skin.height[:] += melt * soft
    return Scene(whole, view, body, skin, pixel_mm)


def reduced_blur(values: Array, factor: int, radius: float) -> Array:
    """Return `values` in 0..1 blurred by `radius` pixels, (h / factor, w / factor) float32."""
    image = Image.fromarray((values * 255).astype(np.uint8)).reduce(factor)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius / factor)), np.float32) / 255


def smoothed(values: Array, pixels: float) -> Array:
    """Return (h, w) float32 `values` without what is finer than `pixels`."""
    image, (height, width) = Image.fromarray(values), values.shape
    coarse = (max(2, round(width / pixels)), max(2, round(height / pixels)))
    image = image.resize(coarse, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def shade(skin: Field, pixel_mm: float, pose: Pose) -> Array:
    """Return the light that skin sends back, (h, w, 3) about 1; dim light is redder."""
    height = skin.height
    slope_y, slope_x = np.zeros_like(height), np.zeros_like(height)
    slope_y[1:-1] = (height[2:] - height[:-2]) * (0.5 / pixel_mm)
    slope_x[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * (0.5 / pixel_mm)
    facing = 1 - slope_x * pose["light_x"] - slope_y * (0.9 * pose["light_y"])
    facing /= np.sqrt(1 + 0.7 * (slope_x * slope_x + slope_y * slope_y))
    light = 0.52 + 0.48 * np.clip(facing, 0, 1.1)
    solid = np.clip(height / 20, 0, 1) * (skin.distance < 0)
    around = Image.fromarray(reduced_blur(solid, 4, 4.5 / pixel_mm))
    around = around.resize(height.shape[::-1], Image.Resampling.BILINEAR)
    light *= 1 - 0.9 * np.clip(np.asarray(around) - solid, 0, 0.5)  # between the fingers
    rim = np.clip(1 + skin.distance * 0.4, 0, 1)
    light *= 1 - 0.24 * rim * rim
    return np.stack([light * (1 + k * (light - 1)) for k in (-0.2, 0.1, 0.25)], axis=-1)


def cover(rgb: Array, alpha: Array, colour: Array, on: Array) -> None:
    """Lay `colour` (h, w, 3) over `rgb` where `on` (h, w), both of them in place."""
    rgb += (colour - rgb) * on[..., None]
    np.maximum(alpha, on, out=alpha)


def watch_face(along: Array, t: Array, rgb: Array, outfit: Outfit) -> Array:
    """Draw case, dial, ticks and hands into `rgb` (in place); return where the case is."""
    radius = np.hypot(along, t)
    case, dial = np.clip(2 * (16 - radius), 0, 1), np.clip(2 * (13 - radius), 0, 1)
    metal = np.array(outfit.metal, np.float32) * (0.9 - 0.02 * along[..., None])
    rgb += (metal - rgb) * case[..., None]
    rgb += (0.93 - rgb) * dial[..., None]
    black = (np.abs(along - t * 0.4) < 0.6) & (t > -1) & (t < 9)
    black |= (np.abs(t + along * 0.3) < 0.7) & (along > -1) & (along < 7)
    hour = (np.arctan2(along, t) * 6 / math.pi + 0.5) % 1 - 0.5
    black |= (np.abs(hour) < 0.07) & (radius > 10) & (radius < 12.3)
    rgb *= 1 - 0.85 * black[..., None]
    return case


def draw_watch(field: Field, outfit: Outfit, place: float, view: View, dorsal: bool) -> Layer:
    """Return a watch whose middle is `place` mm along the body; its face is on the back."""
    along, t = view.s - place, view.t
    strap = np.clip(2 * (9.5 - np.abs(along)), 0, 1) * np.clip(1.5 - field.distance, 0, 1)
    light = (0.16 + 0.05 * np.cos(t * 0.5)) * np.clip(0.4 - field.distance * 0.08, 0.4, 1.1)
    light += 0.008 * np.sin(along * 2.2)
    rgb = light[..., None] * np.array([1.0, 0.8, 0.65], np.float32)
    if dorsal:
        strap = np.maximum(strap, watch_face(along, t, rgb, outfit))
    return rgb, strap


def draw_sleeve(field: Field, outfit: Outfit, end: float, view: View, weave: Array) -> Layer:
    """Return a sleeve that ends `end` mm along the body, and its distance in mm."""
    s, t = view.s, view.t
    edge = end + 1.2 * np.sin(t * 0.11) - s
    side = field.distance - SLEEVE_MM
    folds = np.sin((s + 0.35 * t) * 0.16) + np.sin((s - 0.5 * t) * 0.07)
    seam = (edge < 9) & (edge > 8)
    rows, columns = (s * 3).astype(np.int32), (t * 3).astype(np.int32)
    thread = weave[rows % weave.shape[0], columns % weave.shape[1]]
    light = 1 + 0.05 * np.sin(t * (2 * math.pi / outfit.ribs)) + 0.07 * folds + 0.08 * thread
    light = (light - 0.12 * seam) * np.clip(0.45 - 0.11 * side, 0.45, 1)
    return light[..., None] * np.array(outfit.cloth, np.float32), np.maximum(side, -edge)


def dress(
    scene: Scene,
    outfit: Outfit,
    rgb: Array,
    alpha: Array,
    *,
    watch: float | None,
    weave: Array,
    dorsal: bool,
) -> None:
    """Draw watch and sleeve over `rgb` and `alpha` (in place), in the rows they can touch."""
    reach = max(-1000.0 if place is None else place for place in (watch, outfit.sleeve)) + 18
    rows = slice(0, int(np.count_nonzero((scene.view.s < reach).any(axis=1))))
    if rows.stop == 0:
        return
    view, body = View(*(a[rows] for a in scene.view)), Field(*(a[rows] for a in scene.body))
    rgb, alpha = rgb[rows], alpha[rows]
    if watch is not None:
        cover(rgb, alpha, *draw_watch(body, outfit, watch, view, dorsal))
    if outfit.sleeve is not None:
        cloth, distance = draw_sleeve(body, outfit, outfit.sleeve, view, weave)
        rgb *= 1 - 0.4 * np.exp(-np.maximum(distance, 0) / 2.2)[..., None]  # its shadow
        cover(rgb, alpha, cloth, np.clip(0.5 - distance / scene.pixel_mm, 0, 1))


def draw_table(covered: Array, pose: Pose, factor: int = 4) -> NDArray[np.uint8]:
    """Return the white table with the hand's soft shadow, (h, w, 3).

    Args:
        covered: (h, w), 1 under the hand.
        pose: light and shadow.
        factor: it is computed at a reduced size, as all of it is smooth.
    """
    height, width = covered.shape
    far = reduced_blur(covered, factor, 0.03 * height)
    near = reduced_blur(covered, factor, 0.008 * height)
    down, aside = round(0.025 * height / factor), -round(0.035 * width * pose["light_x"] / factor)
    reach, (rows, columns) = max(down, abs(aside)), far.shape
    far = np.pad(far, reach, mode="edge")[reach - down :, reach - aside :][:rows, :columns]
    y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, columns, dtype=np.float32)[None]
    light = 0.55 + 0.47 * pose["light"] - 0.045 * (x * x + y * y) + 0.03 * pose["light_x"] * x
    light *= 1 - pose["shadow"] * (0.75 * far + 0.4 * near)
    tint = 0.6 * pose["warmth"]
    tone = np.array([0.985 + tint, 0.995, 0.995 - tint], np.float32)
    rgb = (np.clip(light[..., None] * tone, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)


def render(
    hand: Hand,
    outfit: Outfit,
    pose: Pose,
    *,
    size: tuple[int, int],
    accessories: bool,
    noise: Array,
) -> Image.Image:
    """Return a photo of a hand.

    Args:
        hand: one side of it, as `build_hand` returns it.
        outfit: sleeve, ring and watch.
        pose: where the hand is and how it is held and lit.
        size: width and height in pixels.
        accessories: whether ring and watch are worn.
        noise: of unit variance, at least (height, width), for the camera's grain and for cloth.
    """
    scene = compose(hand, outfit, pose, size, accessories)
    rgb = scene.skin.rgb * hand.base
    rgb *= shade(scene.skin, scene.pixel_mm, pose)
    alpha = np.clip(0.5 - scene.skin.distance / scene.pixel_mm, 0, 1)
    watch = outfit.watch if accessories else None
    dress(scene, outfit, rgb, alpha, watch=watch, weave=noise, dorsal=hand.dorsal)
    warmth = np.array([1 + pose["warmth"], 1, 1 - pose["warmth"]], np.float32)
    rgb *= pose["light"] * warmth
    rgb += noise[scene.box][..., None] * GRAIN
    covered = np.zeros(size[::-1], np.float32)
    covered[scene.box] = alpha
    photo = draw_table(covered, pose)
    part = photo[scene.box]
    colour = np.clip(rgb, 0, 1) * 255
    colour = (part + (colour - part) * alpha[..., None]).astype(np.uint8)
    blur = ImageFilter.GaussianBlur(max(pose["blur"], 0.2) * size[0] / FULL_WIDTH)
    photo[scene.box] = np.asarray(Image.fromarray(colour).filter(blur))
    return Image.fromarray(photo)


# ----------------------------------------------------------------------------- the set


class Run(NamedTuple):
    """The photos of one person's aspect: neighbours in number."""

    person: Person
    aspect: str
    first: int  # number of the first photo
    worn_from: int  # place of the first photo with accessories


def plan_runs(config: SyntheticConfig) -> list[Run]:
    """Return the runs in the order of their numbers."""
    n = config.images_per_identity
    runs: list[Run] = []
    for person in draw_people(config.seed, config.identities):
        for aspect in ASPECTS.values():
            first = FIRST_NUMBER + n * len(runs)
            worn = int(n * WORN_PART) if person.wearer else 0
            runs.append(Run(person, aspect, first, n - worn))
    return runs


def photo_name(number: int) -> str:
    """Return the file name of a photo."""
    return f"Hand_{number:07d}.jpg"


def hand_info_text(config: SyntheticConfig) -> str:
    """Return the contents of HandInfo.csv: quoting, line ends and the dirty id as published."""
    lines = [",".join(HAND_INFO_COLUMNS)]
    dirty = False
    for run in plan_runs(config):
        person = run.person
        for i in range(config.images_per_identity):
            worn = int(i >= run.worn_from)
            blank = ""
            if person.id == DIRTY_ID and not dirty and run.aspect == ASPECTS["dorsal_dr"]:
                blank, dirty = " ", True
            polish = int(person.polish and run.aspect.startswith("dorsal"))
            lines.append(
                f'"{person.id}{blank}",{person.age},"{person.gender}","{person.skin}",{worn},'
                f'{polish},"{run.aspect}","{photo_name(run.first + i)}",{int(person.scar)}'
            )
    return "\r\n".join(lines) + "\r\n"


def draw_run(config: SyntheticConfig, run: Run, folder: Path) -> int:
    """Write the photos of a run into `folder` and return their number."""
    drawn_width = max(config.width, LEAST_DRAWN)
    scale, n = drawn_width / FULL_WIDTH, config.images_per_identity
    hand = build_hand(config.seed, run.person, run.aspect, SKIN_PER_MM * scale)
    size = (drawn_width, drawn_width * 3 // 4)
    outfit = draw_outfit(config.seed, run.person, run.aspect)
    shape = (size[1] + GRAIN_SHIFT, size[0] + GRAIN_SHIFT)
    rng = generator(config.seed, 9, run.first)
    grain = rng.standard_normal(shape, np.float32)
    for i, pose in enumerate(draw_poses(config.seed, run.person, run.aspect, n)):
        down, aside = rng.integers(GRAIN_SHIFT, size=2)
        photo = render(
            hand,
            outfit,
            pose,
            size=size,
            accessories=i >= run.worn_from,
            noise=grain[down:, aside:],
        )
        if drawn_width != config.width:
            photo = photo.resize((config.width, config.width * 3 // 4), Image.Resampling.BOX)
        photo.save(folder / photo_name(run.first + i), quality=JPEG_QUALITY)
    return n


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C, and let processes that start now ignore it from their first line on."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal reaches this thread
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def end_with_parent() -> None:
    """Let this process, a child of multiprocessing, end when its parent does, however it does."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def prepare_worker() -> None:
    """Leave Ctrl-C to the parent (where that is not inherited), and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def draw_photos(config: SyntheticConfig, folder: Path) -> None:
    """Write all photos into `folder`, with a progress bar where stderr is a terminal."""
    runs = plan_runs(config)
    total = len(runs) * config.images_per_identity
    with tqdm(total=total, unit="photo", disable=None) as bar:
        if config.processes == 1:
            for run in runs:
                bar.update(draw_run(config, run, folder))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(config.processes, len(runs)), mp_context=context, initializer=prepare_worker
        ) as pool:
            try:
                with ignored_interrupts():  # the first submit starts the workers
                    first = pool.submit(draw_run, config, runs[0], folder)
                futures = [first] + [pool.submit(draw_run, config, r, folder) for r in runs[1:]]
                for future in as_completed(futures):
                    bar.update(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


# ----------------------------------------------------------------------------- the folder


FLAGS = ("drawing", "identities", "images_per_identity", "width", "seed")


def set_flags(config: SyntheticConfig) -> dict[str, int]:
    """Return what the files depend on, by the names in `FLAGS`."""
    return {name: DRAWING if name == "drawing" else getattr(config, name) for name in FLAGS}


def read_marker(output: Path) -> dict[str, int]:
    """Return the flags that the set in `output` was drawn with.

    Raises:
        UserError: what lies there was not written by this script, or was changed since.
    """
    keep = "nothing in it was touched; give another --output"
    try:
        marker = json.loads((output / MARKER).read_text(encoding="utf-8"))
        flags = {name: int(marker["flags"][name]) for name in FLAGS}
        found = hashlib.sha256((output / "HandInfo.csv").read_bytes()).hexdigest()
        intact = found == marker["hand_info_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{output} is not empty, and not a set that this script drew (no {MARKER} with"
            f" HandInfo.csv beside it); {keep}"
        ) from None
    if not intact:
        raise UserError(f"{output / 'HandInfo.csv'} was changed since it was drawn; {keep}")
    return flags


def check_replaceable(output: Path, names: set[str]) -> None:
    """Refuse to replace a set with files in its folder that belong to somebody else."""
    own = {"Hands", "HandInfo.csv", MARKER, *DERIVED}
    extra = sorted(entry.name for entry in output.iterdir() if entry.name not in own)
    if (output / "Hands").is_symlink():
        extra.append("Hands (a link)")
    elif (output / "Hands").is_dir():
        photos = {entry.name for entry in (output / "Hands").iterdir()}
        extra += sorted(f"Hands/{name}" for name in photos - names)
    if extra:
        raise UserError(
            f"{output} holds what this script did not draw: {', '.join(extra[:5])}; move it away,"
            " or give another --output; nothing was touched"
        )


def photo_names(flags: dict[str, int]) -> set[str]:
    """Return the names of all photos of a set drawn with `flags`."""
    n = flags["identities"] * len(ASPECTS) * flags["images_per_identity"]
    return {photo_name(FIRST_NUMBER + i) for i in range(n)}


def is_there(config: SyntheticConfig, output: Path) -> bool:
    """Return whether the set of `config` lies in `output`; False: it may be written there.

    Raises:
        UserError: something else lies there.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; give a folder as --output")
    if not output.exists() or not any(output.iterdir()):
        return False
    found, wanted = read_marker(output), set_flags(config)
    names = photo_names(found)
    if config.overwrite:
        check_replaceable(output, names)
        return False
    remedy = "pass --overwrite to replace it and its splits, or give another --output"
    if found != wanted:
        differ = (f"{k} {found[k]} (asked: {v})" for k, v in wanted.items() if found[k] != v)
        raise UserError(f"{output} was drawn with {', '.join(differ)}; {remedy}")
    lost = sum(not (output / "Hands" / name).is_file() for name in names)
    if lost:
        raise UserError(f"{output}: {lost} of {len(names)} photos are missing; {remedy}")
    return True


@contextmanager
def temporary_sibling(output: Path) -> Iterator[Path]:
    """Yield a new folder beside `output`, removed at the end; remove those of killed runs."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for stale in output.parent.glob(f".{output.name}.*.tmp"):
            photos = stale / "Hands"
            if photos.is_dir() and time.time() - photos.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(stale, ignore_errors=True)
        temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
        try:
            (temporary / "Hands").mkdir(parents=True)
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error


def put_in_place(temporary: Path, output: Path) -> None:
    """Rename the finished folder to `output`; an own set that is there goes, with its splits."""
    if output.exists() and any(output.iterdir()):
        derived = [name for name in DERIVED if (output / name).exists()]
        if derived:
            logger.info("%s: removed with the photos they list: %s", output, ", ".join(derived))
        former = temporary.with_name(temporary.name.replace(".tmp", ".old.tmp"))
        output.rename(former)
        try:
            temporary.rename(output)
        except OSError:
            former.rename(output)
            raise
        shutil.rmtree(former)
        return
    if output.exists():
        output.rmdir()
    temporary.rename(output)


def write_set(config: SyntheticConfig, output: Path) -> None:
    """Draw the set and put it into `output`, all of it or nothing."""
    began = time.perf_counter()
    with temporary_sibling(output) as temporary:
        draw_photos(config, temporary / "Hands")
        text = hand_info_text(config).encode()
        (temporary / "HandInfo.csv").write_bytes(text)
        digest = hashlib.sha256(text).hexdigest()
        marker = {"flags": set_flags(config), "hand_info_sha256": digest}
        write_json(temporary / MARKER, marker)
        put_in_place(temporary, output)
    seconds = time.perf_counter() - began
    n_photos = len(photo_names(set_flags(config)))
    logger.info("%s: drew %d photos in %.0f s", output, n_photos, seconds)


# ----------------------------------------------------------------------------- contact sheet

SHEET_ROWS, SHEET_CELL, SHEET_LABEL = 4, (240, 250), 28  # people, pixels


def contact_sheet(config: SyntheticConfig, folder: Path) -> Image.Image:
    """Return a picture of the four aspects (columns) of a few people from youngest to oldest."""
    by_age = sorted(plan_runs(config), key=lambda run: (run.person.age, run.person.id))
    rows = [by_age[i : i + len(ASPECTS)] for i in range(0, len(by_age), len(ASPECTS))]
    places = np.linspace(0, len(rows) - 1, min(SHEET_ROWS, len(rows))).round().astype(int)
    width, height = SHEET_CELL
    sheet = Image.new("RGB", (len(ASPECTS) * width, len(places) * height + SHEET_LABEL), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for column, aspect in enumerate(ASPECTS.values()):
        middle = (column * width + width // 2, SHEET_LABEL // 2)
        draw.text(middle, aspect, "black", font, anchor="mm")
        for row, place in enumerate(places):
            run, n = rows[place][column], config.images_per_identity
            x = draw_poses(config.seed, run.person, aspect, n)[-1]["x"]
            with Image.open(folder / photo_name(run.first + n - 1)) as photo:
                shown = photo.height * width / height  # around the hand
                left = min(max(x * photo.width - shown / 2, 0), photo.width - shown)
                box = (left, 0, left + shown, photo.height)
                cell = photo.resize(SHEET_CELL, Image.Resampling.LANCZOS, box)
            sheet.paste(cell, (column * width, SHEET_LABEL + row * height))
    return sheet.quantize(256, Image.Quantize.MEDIANCUT)


def write_contact_sheet(config: SyntheticConfig, output: Path, path: Path) -> None:
    """Write the contact sheet of the set in `output` as a PNG."""
    with atomic_write(path) as temporary:
        contact_sheet(config, output / "Hands").save(temporary, "PNG", optimize=True)
    logger.info("wrote %s", path)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the set, unless it is there, and its contact sheet where asked for."""
    parser = build_parser(SyntheticConfig, __doc__)
    config = build_config(parser, SyntheticConfig, vars(parser.parse_args(argv)))
    setup_logging()
    output = config.output.resolve()
    if is_there(config, output):
        logger.info("%s: the set with these flags is there already, complete", output)
    else:
        write_set(config, output)
    if config.contact_sheet is not None:
        write_contact_sheet(config, output, config.contact_sheet)
    logger.info("split it: python dataset_11k_split.py --input %s", config.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
