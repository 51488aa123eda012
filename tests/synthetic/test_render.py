"""Drawn photos: side of the thumb, accessories, age, and what they say about gender."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dataset_11k import ASPECTS
from synthetic.people import Person, draw_outfit, draw_people
from synthetic.render import draw_poses, render
from synthetic.skin import build_hand

SIZE = (320, 240)


def photo(
    person: Person,
    aspect: str,
    *,
    accessories: bool = False,
    frame: int = 0,
    size: tuple[int, int] = SIZE,
    pose: dict[str, float] | None = None,
    outfit: dict[str, Any] | None = None,
) -> np.ndarray:
    """Return a photo, (h, w, 3) float64 in 0..255; `pose` and `outfit` replace drawn values."""
    hand = build_hand(0, person, aspect, 3 * size[0] / 640)
    drawn = draw_poses(0, person, aspect, frame + 1)[frame] | (pose or {})
    worn = draw_outfit(0, person, aspect)._replace(**(outfit or {}))
    noise = np.zeros(size[::-1], np.float32)
    image = render(hand, worn, drawn, size=size, accessories=accessories, noise=noise)
    return np.asarray(image, dtype=np.float64)


@pytest.fixture
def person() -> Person:
    return replace(draw_people(0, 1)[0], skin="medium", polish=False, scar=False)


@pytest.mark.parametrize(
    ("aspect", "side"),
    [("dorsal right", 1), ("dorsal left", -1), ("palmar right", -1), ("palmar left", 1)],
)
def test_thumb_is_on_its_side(person: Person, aspect: str, side: int) -> None:
    pose = {"turn": 0.0, "x": 0.5, "spread": 0.3, "thumb": 8.0, "shadow": 0.0, "warmth": 0.0}
    image = photo(person, aspect, pose=pose, outfit={"sleeve": None})
    hand = image.min(axis=2) < 0.75 * 255
    assert not hand[-1].any()  # fingers point down
    assert hand[0].any()  # the arm comes from above
    row = hand[int(0.42 * SIZE[1])]  # between wrist and fingertips
    left, right = np.flatnonzero(row)[[0, -1]]
    assert side * ((right - SIZE[0] / 2) - (SIZE[0] / 2 - left)) > 0.05 * SIZE[0]


@pytest.mark.parametrize("aspect", ASPECTS.values())
def test_accessories_are_drawn(person: Person, aspect: str) -> None:
    changed = {}
    for watch in (None, -10.0):
        outfit = {"sleeve": None, "ring": "middle", "watch": watch}
        bare, worn = (
            photo(person, aspect, accessories=on, pose={"turn": 0.0, "x": 0.5}, outfit=outfit)
            for on in (False, True)
        )
        changed[watch] = np.abs(worn - bare).max(axis=2) > 25
    ring_rows, watch_rows = (np.flatnonzero(c.any(axis=1)) for c in changed.values())
    assert 8 < changed[None].sum() < 400  # pixels of the ring
    assert ring_rows.min() > 0.42 * SIZE[1]  # on a finger, below the knuckles
    assert watch_rows.min() < 0.3 * SIZE[1]
    assert changed[-10.0].sum() > changed[None].sum() + 200


@pytest.mark.parametrize("aspect", ["dorsal right", "palmar right"])
def test_nail_polish_is_drawn_on_the_back_only(person: Person, aspect: str) -> None:
    bare, painted = (photo(replace(person, polish=on), aspect) for on in (False, True))
    changed = np.abs(bare - painted).max(axis=2) > 15
    assert changed.any() == aspect.startswith("dorsal")
    assert changed.mean() < 0.03


def test_scar_is_drawn(person: Person) -> None:
    plain, scarred = (photo(replace(person, scar=on), "dorsal right") for on in (False, True))
    assert 10 < (np.abs(plain - scarred).max(axis=2) > 5).sum() < 1000


def test_consecutive_photos_are_more_similar_than_those_of_other_people() -> None:
    frames = [[photo(p, "dorsal right", frame=i) for i in (0, 1)] for p in draw_people(0, 4)]
    near = np.array([np.abs(second - first).mean() for first, second in frames])
    others = [[np.abs(a[0] - b[0]).mean() for b in frames if b is not a] for a in frames]
    assert (near > 0).all()
    assert (near < np.min(others, axis=1)).all()


@pytest.mark.parametrize("aspect", ["dorsal right", "palmar left"])
def test_skin_gets_rougher_with_age(person: Person, aspect: str) -> None:
    detail = []
    for age in (18, 26, 70):
        image = photo(replace(person, age=age), aspect, size=(640, 480), pose={"blur": 0.0})
        palm = image[120:240, 280:360].mean(axis=2)
        detail.append(np.abs(np.diff(palm, axis=0)).mean() / palm.mean())
    assert detail[0] < detail[1] < detail[2]
    assert detail[2] > 1.3 * detail[0]


def test_colours_say_nothing_about_gender() -> None:
    people, aspects = draw_people(3, 160), list(ASPECTS.values())
    photos = [photo(p, aspects[i % 4], size=(160, 120)) / 255 for i, p in enumerate(people)]
    colours = np.array([[*image.mean((0, 1)), *image.std((0, 1))] for image in photos])
    male = np.array([person.gender == "male" for person in people], dtype=np.int64)
    leak = colours + 0.02 * male[:, None] * np.array([0, 0, 0, 1, 1, 1])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    scores = [
        balanced_accuracy_score(male, cross_val_predict(model, features, male))
        for features in (colours, leak)
    ]
    assert scores[0] < 0.6 < scores[1]  # the second: a leak would be noticed
