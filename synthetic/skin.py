"""Skin of a hand: texture, creases, nails, knuckles, veins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from synthetic.anatomy import (
    BODY_END,
    BODY_START,
    DIGITS,
    FINGERS,
    FingerPlan,
    Limb,
    Nail,
    body_limb,
    finger_limb,
    hand_area,
)
from synthetic.people import (
    Array,
    Colour,
    Person,
    Rng,
    Traits,
    draw_polish_colour,
    draw_skin_colour,
    draw_traits,
    random_generator,
)

Points = Sequence[tuple[float, float]]  # (s, t), mm


class Line(NamedTuple):
    """A crease, vein or scar."""

    points: Array  # (n, 2): s, t in mm
    width: float  # mm
    strength: float  # 0 to 1


class Sheet:
    """A rectangle of skin in limb coordinates; `rgb` (h, w, 3) multiplies the skin's colour.

    Args:
        start: smallest s, mm.
        end: largest s, mm.
        half: largest absolute t, mm.
        per_mm: pixels per mm.
    """

    def __init__(self, start: float, end: float, half: float, per_mm: float) -> None:
        self.start, self.half, self.per_mm = start, half, per_mm
        self.extent = end - start
        self.shape = (round((end - start) * per_mm), round(2 * half * per_mm))
        rows, columns = np.arange(self.shape[0]) + 0.5, np.arange(self.shape[1]) + 0.5
        self.s = (rows / per_mm + start).astype(np.float32)[:, None]
        self.t = (columns / per_mm - half).astype(np.float32)[None, :]
        self.rgb = np.ones((*self.shape, 3), np.float32)

    def noise(self, rng: Rng, cell_s: float, cell_t: float) -> Array:
        """Return smooth noise of variance about 1/2 with grains of the given size in mm.

        Grains are counted in mm, so that `per_mm` does not change the pattern.
        """
        rows, columns = max(2, round(self.extent / cell_s)), max(2, round(2 * self.half / cell_t))
        grid = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
        return np.asarray(grid.resize(self.shape[::-1], Image.Resampling.BICUBIC))

    def spot(self, s: float, t: float, radius_s: float, radius_t: float) -> Array:
        """Return a Gaussian spot of height 1."""
        along = np.exp(-(((self.s - s) / radius_s) ** 2))
        return along * np.exp(-(((self.t - t) / radius_t) ** 2))

    def lines(self, lines: Sequence[Line], blur: float) -> Array:
        """Return the strength of `lines` at each pixel, blurred by `blur` mm."""
        image = Image.new("L", self.shape[::-1])
        draw = ImageDraw.Draw(image)
        for line in lines:
            pixels = (line.points[:, ::-1] + (self.half, -self.start)) * self.per_mm
            n = len(pixels) - 1
            for i in range(n):
                fade = min(1.0, 4 * min(i + 1, n - i) / (n + 1))
                width = max(1, round(line.width * (0.5 + 0.5 * fade) * self.per_mm))
                ends = pixels[i : i + 2].ravel().tolist()
                draw.line(ends, round(255 * line.strength * fade), width)
        image = image.filter(ImageFilter.GaussianBlur(blur * self.per_mm))
        return np.asarray(image, np.float32) / 255

    def tint(self, amount: Array, rgb: Colour) -> None:
        """Multiply the colour by 1 + amount * rgb."""
        for channel, strength in enumerate(rgb):
            if strength:
                self.rgb[..., channel] *= 1 + amount * strength

    def emboss(self, relief: Array, strength: float) -> None:
        """Shade `relief` (mm) as if lit from the wrist."""
        slope = np.zeros(self.shape, np.float32)
        slope[1:-1] = (relief[2:] - relief[:-2]) * self.per_mm / 2
        self.tint(slope, (strength,) * 3)

    def crease(self, lines: Sequence[Line], depth: float) -> None:
        """Cut `lines` into the skin: a dark core in a wide hollow with one lit side."""
        core = self.lines(lines, 0.25)
        hollow = self.lines([line._replace(width=line.width * 2) for line in lines], 1.3)
        self.tint(core, (-0.42 * depth, -0.52 * depth, -0.52 * depth))
        self.tint(hollow, (-0.16 * depth, -0.25 * depth, -0.25 * depth))
        self.emboss(-hollow, 0.22 * depth)


def curve(points: Points, n: int = 24, stretch: float = 1.0) -> Array:
    """Return `n` points of a Catmull-Rom spline through `points`, (n, 2); t times `stretch`."""
    knots = np.pad(points, ((1, 1), (0, 0)), "edge") * (1, stretch)
    place = np.linspace(0, len(points) - 1 - 1e-6, n)
    i, u = place.astype(int), (place % 1)[:, None]
    a, b, c, d = knots[i], knots[i + 1], knots[i + 2], knots[i + 3]
    path = 0.5 * (2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u**2)
    return path + 0.5 * (3 * b - a - 3 * c + d) * u**3


def arc(s: float, half: float, bow: float, rng: Rng, shift: float = 0) -> Array:
    """Return an uneven arc across a limb, (12, 2); its centre is `bow` mm ahead of its ends."""
    t = np.linspace(-half, half, 12)
    wobble = np.cumsum(rng.normal(0, 0.12, 12))
    path = s + bow * (1 - (t / half) ** 2) + wobble - wobble.mean()
    return np.column_stack([path, t + shift])


def draw_texture(sheet: Sheet, rng: Rng, traits: Traits, dorsal: bool) -> None:
    """Draw what all skin has: mottling, fine texture, wear, and on the back freckles."""
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
    for _ in range(rng.poisson(max(0.0, traits["freckles"]) * 5 + 50 * traits["spots"])):
        s = rng.uniform(sheet.start, sheet.start + sheet.extent)
        t, radius = rng.uniform(-sheet.half, sheet.half), rng.uniform(0.4, 1.0)
        radius *= 1 + 1.6 * traits["spots"]
        row = max(int((s - sheet.start - 3 * radius) * sheet.per_mm), 0)
        rows = slice(row, row + int(6 * radius * sheet.per_mm))
        bell = np.exp(-(((sheet.s[rows] - s) / radius) ** 2) - ((sheet.t - t) / radius) ** 2)
        darkness = 0.22 * rng.uniform(0.4, 1) * bell[..., None]
        sheet.rgb[rows] *= 1 - darkness * np.array([0.7, 1.0, 1.15], np.float32)


def draw_nail(sheet: Sheet, nail: Nail, polish: Array | None) -> None:
    """Draw a nail with lunula, white edge, gloss and cuticle."""
    along, across = (sheet.s - nail.s) / nail.half_length, (sheet.t - nail.t) / nail.half_width
    radius = np.sqrt(np.sqrt(along**4 + across**4))
    edge = nail.half_width
    inside = np.clip(0.5 - (radius - 1) * edge * 2.2, 0, 1)[..., None]
    cuticle = np.exp(-(((radius - 1) * edge / 0.55) ** 2)) * (along < 0.75)
    sheet.tint(cuticle, (-0.28, -0.34, -0.32))
    plate = np.ones((*sheet.shape, 3), np.float32) * np.array([1.10, 1.13, 1.20], np.float32)
    lunula = np.clip(1.4 - np.hypot((along + 1.0) / 0.42, across / 0.75) * 1.4, 0, 0.6)[..., None]
    free = np.clip((along - 0.74 + 0.10 * across**2) * 9, 0, 1)[..., None]
    white = np.array([1.2, 1.34, 1.5], np.float32)
    plate += (white - plate) * np.maximum(lunula * 0.6, free * 0.9)
    if polish is not None:
        plate[:] = polish
    gloss = np.exp(-(((across + 0.35) / 0.22) ** 2)) * np.exp(-((along / 0.8) ** 2))
    curved = 1.04 - 0.16 * across**2 + 0.13 * gloss
    sheet.rgb += (plate * curved[..., None] - sheet.rgb) * inside


def back_joint(
    sheet: Sheet, s: float, half: float, size: float, traits: Traits, rng: Rng
) -> list[Line]:
    """Darken the back of a finger joint at `s`, and return its wrinkles."""
    wear = traits["wear"]
    patch = sheet.spot(s, 0, 6.5 * size, 0.75 * half) * traits["redness"]
    sheet.tint(patch, (-0.06, -0.11, -0.13))
    sheet.emboss(sheet.spot(s, 0, 5 * size, 0.8 * half), 0.25)
    lines = []
    for offset in np.linspace(-5 * size, 5 * size, int(rng.integers(4, 7) * size + 2 * wear)):
        reach = half * rng.uniform(0.5, 0.75) * (1 - abs(offset) / 14)
        points = arc(s + offset + rng.normal(0, 0.25), reach, 0.35 * offset, rng)
        lines.append(Line(points, 0.5, min(rng.uniform(0.5, 0.9) * (0.75 + 0.35 * wear), 1)))
    return lines


def inner_joint(s: float, half: float, n: int, wear: float, rng: Rng) -> list[Line]:
    """Return `n` creases on the inside of a finger joint at `s`, and finer ones."""
    lines = []
    for i in range(n):
        offset = 2.2 * (i - (n - 1) / 2)
        points = arc(s + offset + rng.normal(0, 0.3), half, 0.5 * offset, rng)
        lines.append(Line(points, 0.75, rng.uniform(0.7, 0.95)))
    for _ in range(int(2 + 4 * wear)):
        lines.append(Line(arc(s + rng.normal(0, 2.5), 0.6 * half, 0, rng), 0.4, 0.3))
    return lines


def finger_skin(
    name: str, limb: Limb, traits: Traits, *, dorsal: bool, rng: Rng, per_mm: float
) -> Sheet:
    """Return the skin of a finger or the thumb, without its nail."""
    half, length = float(limb.half_width.max()), limb.length
    palm_edge, *joints = DIGITS[name].joints
    sheet = Sheet(limb.start, length + 7, half + 1, per_mm)
    draw_texture(sheet, rng, traits, dorsal)
    lines: list[Line] = []
    for i, place in enumerate(joints):
        width = limb.half_width_at(place * length)
        if dorsal:
            lines += back_joint(sheet, place * length, width, (1.0, 0.65)[i], traits, rng)
        else:
            n = 2 if i == 0 and len(joints) > 1 else 1
            lines += inner_joint(place * length, width, n, traits["wear"], rng)
    if not dorsal:
        lines += inner_joint(palm_edge * length, 0.95 * half, int(rng.integers(1, 3)), 0, rng)
        pad = sheet.spot(length * 0.93, 0, 13, half * 2) * traits["redness"]
        sheet.tint(pad, (-0.01, -0.09, -0.07))
        for place in (palm_edge, *joints):
            sheet.emboss(sheet.spot((place + 0.13) * length, 0, 8, half), 0.35)
    sheet.crease(lines, traits["crease"] * (0.8 + 0.4 * traits["wear"]))
    return sheet


def draw_knuckle(sheet: Sheet, plan: FingerPlan, traits: Traits, rng: Rng) -> Array:
    """Draw a knuckle and its tendon; return their relief in mm."""
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


def draw_back(sheet: Sheet, traits: Traits, rng: Rng) -> None:
    """Draw knuckles, tendons and veins of the back of a hand."""
    reliefs = [draw_knuckle(sheet, DIGITS[name], traits, rng) for name in FINGERS]
    sheet.emboss(np.sum(reliefs, axis=0), 0.22)
    veins = []
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


def palm_lines(traits: Traits, rng: Rng) -> list[Line]:
    """Return the creases of a palm."""
    heart, head, life = (traits[f"{name}_line"] for name in ("heart", "head", "life"))
    breadth = traits["palm_breadth"]
    courses: list[Points] = [
        [(66, -38), (66 + heart, -26), (70 + 2 * heart, -8), (77 + 2 * heart, 6), (86 + heart, 14)],
        [(66, 37), (64 + head, 22), (58 + 2 * head, 4), (47 + 4 * head, -14), (38 + 6 * head, -26)],
        [(66, 36), (62, 24 + life), (48, 12 + 2 * life), (28, 7 + 2 * life), (8, 12 + life)],
    ]
    lines = [
        Line(curve(points, stretch=breadth), rng.uniform(0.75, 1.05), 0.85) for points in courses
    ]
    if rng.random() < 0.6:
        fate = [(14, 0), (34, -1 + life), (52, 2 + head), (70, 5)]
        lines.append(Line(curve(fate, stretch=breadth), 0.6, 0.4))
    for _ in range(int(9 + 14 * traits["wear"])):
        s, t = rng.uniform(8, 84), rng.uniform(-28, 24)
        turn, reach = rng.normal(0.5, 0.7), rng.uniform(4, 13)
        ends = [(s, t), (s + reach * math.sin(turn) / 2 + rng.normal(), t + reach / 2)]
        ends.append((s + reach * math.sin(turn), t + reach * math.cos(turn)))
        lines.append(Line(curve(ends, 10), 0.45, rng.uniform(0.2, 0.55)))
    for s in (-3.0, -8.0):
        lines.append(Line(arc(s + rng.normal(), 25 * breadth, 2.0, rng), 0.7, 0.5))
    return lines


def draw_palm(sheet: Sheet, traits: Traits, rng: Rng) -> None:
    """Draw the fleshy pads and the creases of a palm."""
    b = traits["palm_breadth"]
    mounds = [(34, 22, 20, 15, 2.8), (28, -24 * b, 22, 13, 2.4)]
    mounds += [(84, 18 * b, 7, 7, 1.0), (86, 0, 7, 7, 1.0), (82, -17 * b, 7, 7, 1.0)]
    relief = np.zeros(sheet.shape, np.float32)
    for s, t, radius_s, radius_t, height in mounds:
        mound = sheet.spot(s, t, radius_s, radius_t)
        relief += height * mound
        sheet.tint(mound * traits["redness"], (0.0, -0.075, -0.06))
        sheet.tint(np.gradient(mound, axis=1) * sheet.per_mm * height, (0.10,) * 3)
    sheet.tint(sheet.spot(54, -2, 20, 20), (0.02, 0.03, 0.03))
    sheet.emboss(relief, 0.30)
    sheet.crease(palm_lines(traits, rng), traits["crease"] * (0.9 + 0.25 * traits["wear"]))
    wrist = [Line(curve([(-90, t), (-50, t + 1), (-12, t * 0.6)]), 1.8, 0.8) for t in (-9, 1, 8)]
    sheet.tint(sheet.lines(wrist, 1.0), (-0.05, -0.012, 0.0))


class Hand(NamedTuple):
    """One side of a hand."""

    dorsal: bool
    right: bool
    limbs: dict[str, Limb]
    skins: dict[str, Sheet]
    base: Array  # (3,) colour of lit skin, 0 to 1
    traits: Traits
    area: float  # of fingers and palm, mm^2


def build_hand(seed: int, person: Person, aspect: str, per_mm: float) -> Hand:
    """Return the side of a person's hand that `aspect` (such as "dorsal right") shows.

    `per_mm` is the number of pixels per mm of skin.
    """
    dorsal, right = aspect.startswith("dorsal"), aspect.endswith("right")
    traits = draw_traits(seed, person, right)
    rng = random_generator(seed, 4, person.number, right, dorsal)
    base, polish = draw_skin_colour(seed, person, dorsal), draw_polish_colour(seed, person)
    limbs = {"body": body_limb(traits)}
    sheet = Sheet(BODY_START, BODY_END + 4, 46, per_mm)
    draw_texture(sheet, rng, traits, dorsal)
    (draw_back if dorsal else draw_palm)(sheet, traits, rng)
    if person.scar:
        scar = Line(curve([(58.0, -14.0), (50.0, -6.0), (44.0, -4.0)]), 1.6, 1.0)
        sheet.tint(sheet.lines([scar], 0.4), (0.16, -0.02, 0.02))
    skins = {"body": sheet}
    for name in DIGITS:
        limb = limbs[name] = finger_limb(name, traits, dorsal)
        skins[name] = finger_skin(name, limb, traits, dorsal=dorsal, rng=rng, per_mm=per_mm)
        if limb.nail is not None:
            draw_nail(skins[name], limb.nail, None if polish is None else polish / base)
    return Hand(dorsal, right, limbs, skins, base, traits, hand_area(limbs))
