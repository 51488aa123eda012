"""The people of a synthetic data set: labels, hand traits, colours, clothes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset_11k import AGE_GROUPS, ASPECTS, SKIN_COLORS

Array = NDArray[np.floating[Any]]  # images are float32, matrices float64
Rng = np.random.Generator
Traits = dict[str, float]
Colour = tuple[float, float, float]  # red, green, blue from 0 to 1

DIRTY_ID = "1200000"  # in HandInfo.csv, one row of this person has a trailing blank in the id
AGE_SHARES = (33, 57, 27, 12, 9, 5)  # people of 11k Hands per age group (dorsal right)
GENDER_CYCLE = ("female", "male", "female", "male", "female")  # 3 to 2, mixed in any three
POLISH_SHARE = 0.12  # the same for both genders, so that nail polish says nothing about gender
WEARER_SHARE = 0.4  # of people, who wear a ring or watch in some of their photos
SCAR_SHARE = 0.03  # of people (column irregularities)
SKIN_SHARES = (0.06, 0.34, 0.48, 0.12)  # of people, in the order of SKIN_COLORS
SKIN_RGB = {  # lit skin on the back of the hand
    "very fair": (0.95, 0.80, 0.72),
    "fair": (0.90, 0.72, 0.60),
    "medium": (0.80, 0.60, 0.46),
    "dark": (0.56, 0.39, 0.29),
}
PALM_RGB = (0.97, 0.76, 0.67)  # a palm's colour lies halfway between the back's and this one

# Trait: mean of women, mean of men, standard deviation between people of one gender, standard
# deviation of one hand around the mean of both. Relative to a mean hand unless a unit is given.
TRAITS = {
    "palm_breadth": (0.965, 1.035, 0.025, 0.006),
    "wrist": (0.93, 1.07, 0.035, 0.008),
    "finger_length": (1.035, 0.965, 0.025, 0.006),
    "finger_width": (0.94, 1.06, 0.03, 0.008),
    "taper": (0.10, 0.02, 0.03, 0.008),  # how much a fingertip narrows
    "joint": (0.03, 0.07, 0.018, 0.006),  # how much a joint bulges
    "index": (1.012, 0.988, 0.015, 0.006),  # length: the ratio of index to ring finger
    "ring": (0.992, 1.010, 0.015, 0.006),
    "little": (1.0, 1.0, 0.04, 0.012),
    "thumb_length": (1.0, 1.0, 0.035, 0.010),
    "thumb_angle": (33.0, 33.0, 4.0, 1.5),  # degrees
    "nail_width": (0.70, 0.78, 0.03, 0.01),  # of the finger's width
    "nail_length": (12.8, 11.2, 0.8, 0.2),  # mm
    "nail_free": (2.4, 0.9, 0.9, 0.2),  # mm beyond the fingertip
    "veins": (0.40, 0.62, 0.2, 0.05),
    "heart_line": (0.0, 0.0, 1.0, 0.45),  # shape of the palm's creases, standard deviations
    "head_line": (0.0, 0.0, 1.0, 0.45),
    "life_line": (0.0, 0.0, 1.0, 0.45),
    "crease": (1.0, 1.0, 0.18, 0.05),
    "redness": (1.0, 1.0, 0.25, 0.05),
    "mottle": (1.0, 1.0, 0.3, 0.08),
    "freckles": (1.0, 1.0, 0.5, 0.1),
}


@dataclass(frozen=True)
class Person:
    """A person's columns of HandInfo.csv, and what only the drawing needs."""

    number: int  # position in the list of people, from 0
    id: str
    age: int
    gender: str
    skin: str
    polish: bool
    wearer: bool
    scar: bool


def random_generator(seed: int, *key: int) -> Rng:
    """Return the random number generator of `key`, independent of all other keys."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_ages(rng: Rng, n_people: int) -> list[int]:
    """Return ascending ages: a minimum per group, otherwise the shares of the real data set."""
    minimum = min(n_people // (2 * len(AGE_GROUPS)) + (n_people >= 18), 6)
    shares = np.array(AGE_SHARES) / sum(AGE_SHARES)
    counts = rng.multinomial(max(n_people - minimum * len(AGE_GROUPS), 0), shares) + minimum
    ages: list[int] = []
    for (low, high), count in zip(AGE_GROUPS.values(), counts, strict=True):
        ages += rng.integers(max(low, 18), min(high, 75), int(count), endpoint=True).tolist()
    return sorted(ages)


def draw_people(seed: int, n_people: int) -> list[Person]:
    """Return people in the order of their ids; age, gender and skin colour are independent."""
    rng = random_generator(seed, 0)
    ages = draw_ages(rng, n_people)
    offset = int(rng.integers(len(GENDER_CYCLE)))
    free = np.delete(np.arange(2_000_000), int(DIRTY_ID))
    ids = sorted([int(DIRTY_ID), *rng.choice(free, n_people - 1, replace=False).tolist()])
    return [
        Person(
            number=number,
            id=f"{ids[number]:07d}",
            age=ages[place],
            gender=GENDER_CYCLE[(place + offset) % len(GENDER_CYCLE)],
            skin=str(rng.choice(SKIN_COLORS, p=SKIN_SHARES)),
            polish=bool(rng.random() < POLISH_SHARE),
            wearer=bool(rng.random() < WEARER_SHARE),
            scar=bool(rng.random() < SCAR_SHARE),
        )
        for number, place in enumerate(rng.permutation(n_people))
    ]


def draw_traits(seed: int, person: Person, right: bool) -> Traits:
    """Return the traits of a person's left or right hand, with `wear` and `spots` from the age."""
    both = random_generator(seed, 1, person.number)
    side = random_generator(seed, 2, person.number, right)
    traits = {}
    for name, (female, male, between_people, between_hands) in TRAITS.items():
        mean = female if person.gender == "female" else male
        traits[name] = mean + between_people * both.normal() + between_hands * side.normal()
    # 0 at 18 years, .25 at 22, .43 at 27, 1 at 75: most age groups are of young people
    years = math.log(max(person.age, 18) - 14) - math.log(4)
    traits["wear"] = max(0.0, years / (math.log(61) - math.log(4)) + 0.03 * both.normal())
    traits["spots"] = max(0.0, traits["wear"] - 0.4) * 1.6
    return traits


def draw_skin_colour(seed: int, person: Person, dorsal: bool) -> Array:
    """Return the colour of a person's lit skin, (3,) float32 from 0 to 1."""
    rng = random_generator(seed, 3, person.number)
    rgb = np.array(SKIN_RGB[person.skin]) * (1 + rng.normal(0, 0.025)) + rng.normal(0, 0.008, 3)
    if not dorsal:
        rgb += 0.5 * (np.array(PALM_RGB) - rgb)
    return np.clip(rgb, 0.1, 0.98).astype(np.float32)


def draw_polish_colour(seed: int, person: Person) -> Array | None:
    """Return the colour of a person's nail polish, (3,) float32 from 0 to 1, or None."""
    if not person.polish:
        return None
    rgb = random_generator(seed, 5, person.number).uniform(0.15, 0.9, 3)
    rgb[0] = 0.45 + 0.5 * rgb[0]
    return rgb.astype(np.float32)


class Outfit(NamedTuple):
    """What a person wears in the photos of one aspect."""

    sleeve: float | None  # position of its end on the body, mm; None: outside the photo
    cloth: Colour
    ribs: float  # distance between ribs of the cloth, mm
    ring: str  # name of the finger
    ring_place: float  # relative to the finger's length
    metal: Colour
    watch: float | None  # position of its centre on the body, mm


def draw_outfit(seed: int, person: Person, aspect: str) -> Outfit:
    """Return sleeve, ring and watch; ring and watch are worn in some photos only."""
    own = random_generator(seed, 7, person.number)
    session = random_generator(seed, 8, person.number, list(ASPECTS.values()).index(aspect))
    watch = -own.uniform(8, 14) if own.random() < 0.5 else None
    sleeve = -session.uniform(14, 60) if session.random() < 0.65 else None
    if sleeve is not None and person.wearer and watch is not None:
        sleeve = min(sleeve, -48.0)  # otherwise it would hide the watch
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
