"""Shapes of a hand's parts, in millimetres.

A hand has its origin at the centre of the wrist, x towards the thumb and y towards the fingertips.
It has six limbs: the body (forearm and palm), the thumb and four fingers. A limb has coordinates
of its own, s along its axis and t across it, and a table of half-widths along s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from synthetic.people import Array, Traits

BODY_START, BODY_END = -150.0, 104.0  # mm along the body
TABLE_PER_MM = 8  # entries of a table of half-widths per mm
Knots = tuple[tuple[float, float], ...]  # (position, half-width)

FINGER_JOINTS = (0.22, 0.47, 0.75)  # edge of the palm, middle joint, last joint; of the length
THUMB_JOINTS = (0.44, 0.735)  # edge of the palm, joint
FINGER_KNOTS: Knots = (  # relative to length and half-width of the finger
    *((0, 1.02), (0.2, 1.0), (0.34, 0.95), (0.47, 1.0), (0.61, 0.89), (0.75, 0.885)),
    *((0.87, 0.84), (1, 0.7)),
)
THUMB_KNOTS: Knots = (
    *((0, 1.45), (0.2, 1.5), (0.36, 1.25), (0.47, 1.08), (0.6, 0.92), (0.74, 0.97)),
    *((0.87, 0.92), (1, 0.75)),
)
BODY_KNOTS: Knots = (  # mm
    *((-160, 34), (-70, 31), (-25, 28.5), (0, 27.5), (14, 29), (32, 34.5)),
    *((52, 37.5), (75, 38.5), (110, 38)),
)
BULGES = (0.47, 0.74, 0.75)  # positions of the knots that a joint widens


class FingerPlan(NamedTuple):
    """The dimensions of a mean finger."""

    x: float  # of the knuckle, mm
    y: float
    length: float  # from knuckle to fingertip, mm
    half_width: float  # at the middle joint, mm
    closed: float = 0.0  # direction with fingers together, degrees from y towards the thumb
    opened: float = 0.0  # direction with fingers spread
    joints: tuple[float, ...] = FINGER_JOINTS
    knots: Knots = FINGER_KNOTS


DIGITS = {
    "thumb": FingerPlan(13.5, 22.0, 106.0, 11.2, joints=THUMB_JOINTS, knots=THUMB_KNOTS),
    "index": FingerPlan(27.5, 79.0, 97.0, 9.4, -0.5, 12.0),
    "middle": FingerPlan(9.2, 83.0, 105.0, 9.6, 0.0, 3.0),
    "ring": FingerPlan(-9.2, 80.0, 99.0, 9.1, 0.5, -7.0),
    "little": FingerPlan(-26.0, 72.0, 80.0, 7.9, 2.0, -18.0),
}
FINGERS = ("index", "middle", "ring", "little")


class Nail(NamedTuple):
    """A rounded rectangle on a limb, mm."""

    s: float  # centre
    t: float
    half_length: float
    half_width: float


class Limb(NamedTuple):
    """A part of a hand: a bar with rounded ends in (s, t), mm."""

    half_width: Array  # (n,), from `start` on
    start: float  # s of the first half-width
    root: tuple[float, float]  # start and length of the rounding at the near end
    cap: tuple[float, float]  # start and length of the rounding at the far end
    thickness: float  # height of the centre line, relative to the half-width
    flat: bool  # plateau with round edges (palm) or half cylinder (finger)
    nail: Nail | None = None

    @property
    def length(self) -> float:
        """The far end, mm along the limb."""
        return sum(self.cap)

    def half_width_at(self, s: float) -> float:
        """Return the half-width at `s` mm."""
        return float(self.half_width[int((s - self.start) * TABLE_PER_MM)])


def half_width_table(knots: Sequence[tuple[float, float]], start: float, end: float) -> Array:
    """Interpolate half-widths from `start` to `end` mm, and smooth them over 8 mm."""
    reach = 4 * TABLE_PER_MM
    s = np.pad(np.arange(start, end, 1 / TABLE_PER_MM), reach, "reflect", reflect_type="odd")
    kernel = np.hanning(2 * reach + 1)
    table = np.interp(s, *np.transpose(knots))
    return np.convolve(table, kernel / kernel.sum(), mode="valid").astype(np.float32)


def finger_limb(name: str, traits: Traits, dorsal: bool) -> Limb:
    """Return the thumb or a finger."""
    plan, thumb = DIGITS[name], name == "thumb"
    length = plan.length * traits["thumb_length" if thumb else "finger_length"]
    length *= traits.get(name, 1.0)
    half = plan.half_width * traits["finger_width"]
    knots = []
    for place, width in plan.knots:
        joint = traits["joint"] if place in BULGES else 0.0
        taper = traits["taper"] * max(0.0, place - 0.5) * 2
        knots.append((place * length, (width + joint - taper) * half))
    table = half_width_table(knots, -12.0, length + 8)
    tip = float(table[int((length + 8) * TABLE_PER_MM)])
    nail_half = traits["nail_length"] * half / 8.5 / 2
    nail = Nail(
        s=length + traits["nail_free"] - (2.6 if thumb else 1.6) - nail_half,
        t=0.2 * tip if thumb else 0.0,
        half_length=nail_half,
        half_width=tip * traits["nail_width"] * (0.85 if thumb else 1.0),
    )
    cap = (length - tip * 1.2, tip * 1.2)
    return Limb(table, -12.0, (2.0, 12.0), cap, 0.85, False, nail if dorsal else None)


def body_limb(traits: Traits) -> Limb:
    """Return forearm and palm."""
    knots = []
    for place, width in BODY_KNOTS:
        wrist = min(max((45 - place) / 45, 0.0), 1.0)
        factor = traits["wrist"] * wrist + traits["palm_breadth"] * (1 - wrist)
        knots.append((place, width * factor))
    table = half_width_table(knots, BODY_START, BODY_END)
    return Limb(table, BODY_START, (BODY_START, 1.0), (70.0, 30.0), 0.42, True)


def hand_area(limbs: dict[str, Limb]) -> float:
    """Return the area of palm and fingers without the thumb, mm^2."""
    widths = [
        2 * float(limb.half_width[int(-limb.start * TABLE_PER_MM) :].sum())
        for name, limb in limbs.items()
        if name != "thumb"
    ]
    return sum(widths) / TABLE_PER_MM
