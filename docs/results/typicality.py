"""Strangers, pictures without a hand and hands on other ground: what predict.py says of them.

    python docs/results/typicality.py --checkpoints CHECKPOINT ... --attributes_file CSV

predicts for drawn pictures and for real photos of people the model does not know, and writes
typicality.csv beside this file: fractions of photos that are not called unknown, that are warned
of as untypical, and whose age lies in the interval. Real hands are cut out by colour before their
ground is replaced.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from data.splits import PROTOCOLS, locate  # noqa: E402
from data.tables import read_hand_info, read_samples  # noqa: E402
from dataset_11k import ASPECTS, open_photo  # noqa: E402
from dataset_11k_synthetic import SKIN_PER_MM  # noqa: E402
from engine.checkpoint import describe_checkpoint  # noqa: E402
from predict import ATYPICAL, Prediction, load_predictor  # noqa: E402
from synthetic import render  # noqa: E402
from synthetic.people import draw_outfit, draw_people  # noqa: E402
from synthetic.skin import build_hand  # noqa: E402

N_DRAWN = 60  # pictures of each kind
SIZE = (640, 480)
DRAWN_SEED = 7  # of the drawn people
FPIRS = (0.1, 0.05, 0.01)
PHOTOS_PER_PERSON = 3  # whose ground is replaced

Rng = np.random.Generator


# ----------------------------------------------------------------------------- grounds


def draw_clutter(rng: Rng) -> Image.Image:
    """Return coloured rectangles and ellipses over one another."""
    picture = Image.new("RGB", SIZE, tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        left, top = rng.integers((-50, -50), SIZE).tolist()
        width, height = rng.integers(20, 200, 2).tolist()
        shape = draw.rectangle if rng.random() < 0.5 else draw.ellipse
        colour = tuple(rng.integers(0, 256, 3).tolist())
        shape((left, top, left + width, top + height), fill=colour)
    return picture.filter(ImageFilter.GaussianBlur(1.5))


def draw_dark(rng: Rng) -> Image.Image:
    """Return a dark ground, a little lighter at the bottom, with camera noise."""
    slope = np.linspace(0, 12, SIZE[1])[:, None, None]
    noise = rng.normal(0, 3, (SIZE[1], SIZE[0], 3))
    return Image.fromarray((rng.integers(5, 50, 3) + slope + noise).clip(0, 255).astype(np.uint8))


# ----------------------------------------------------------------------------- pictures


def draw_without_hand(rng: Rng) -> Iterator[Image.Image]:
    """Yield clutter, noise, chessboards, text, a ball on a white table, and gradients."""
    for i in range(N_DRAWN):
        if i % 6 == 0:
            yield draw_clutter(rng)
        elif i % 6 == 1:
            yield Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))
        elif i % 6 == 2:
            fields = (np.indices(SIZE[::-1]) // rng.integers(4, 40)).sum(axis=0) % 2
            yield Image.fromarray((fields * 255).astype(np.uint8)).convert("RGB")
        elif i % 6 == 3:
            page, font = Image.new("RGB", SIZE, "white"), ImageFont.load_default(18)
            for line in range(20):
                text = "".join(chr(97 + c) for c in rng.integers(0, 26, 60))
                ImageDraw.Draw(page).text((20, 10 + 23 * line), text, "black", font)
            yield page
        elif i % 6 == 4:
            table, radius = Image.new("RGB", SIZE, (240, 240, 238)), int(rng.integers(40, 120))
            x, y = rng.integers((150, 120), (450, 330)).tolist()
            colour = tuple(rng.integers(0, 256, 3).tolist())
            box = (x - radius, y - radius, x + radius, y + radius)
            ImageDraw.Draw(table).ellipse(box, fill=colour)
            yield table.filter(ImageFilter.GaussianBlur(2))
        else:
            first, last = rng.integers(0, 256, (2, 1, 1, 3))
            steps = np.linspace(0, 1, SIZE[0])[None, :, None]
            gradient = np.broadcast_to(first + (last - first) * steps, (*SIZE[::-1], 3))
            yield Image.fromarray(gradient.astype(np.uint8))


def draw_hands(
    rng: Rng, aspect: str, ground: Callable[[Rng], Image.Image] | None
) -> Iterator[Image.Image]:
    """Yield drawn hands, each of another person; None: on the white table."""
    table = render.draw_table

    def draw_ground(covered: Any, pose: Any, factor: int = 4) -> Any:
        return table(covered, pose, factor) if ground is None else np.array(ground(rng))

    render.draw_table = draw_ground
    try:
        for person in draw_people(DRAWN_SEED, N_DRAWN):
            (pose,) = render.draw_poses(DRAWN_SEED, person, aspect, 1)
            yield render.render(
                build_hand(DRAWN_SEED, person, aspect, SKIN_PER_MM),
                draw_outfit(DRAWN_SEED, person, aspect),
                pose,
                size=SIZE,
                accessories=False,
                noise=rng.standard_normal(SIZE[::-1], np.float32),
            )
    finally:
        render.draw_table = table


def draw_empty_tables(aspect: str) -> Iterator[Image.Image]:
    """Yield the tables of `draw_hands`, without hands."""
    for person in draw_people(DRAWN_SEED, N_DRAWN):
        (pose,) = render.draw_poses(DRAWN_SEED, person, aspect, 1)
        yield Image.fromarray(render.draw_table(np.zeros(SIZE[::-1], np.float32), pose))


def replace_ground(photo: Path, ground: Image.Image) -> Image.Image:
    """Return a real hand on another ground; the hand is what differs from the photo's top."""
    hand = np.asarray(open_photo(photo)).astype(float)
    table = np.median(hand[:20].reshape(-1, 3), axis=0)
    saturation = hand.max(axis=2) - hand.min(axis=2)
    mask = (saturation > 40) | (np.abs(hand - table).max(axis=2) > 70)
    image = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.MedianFilter(9))
    alpha = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)))[..., None] / 255
    other = np.asarray(ground.resize(hand.shape[1::-1]))
    return Image.fromarray((hand * alpha + other * (1 - alpha)).astype(np.uint8))


# ----------------------------------------------------------------------------- strangers


def find_strangers(state: dict[str, Any], attributes: Path) -> pd.DataFrame:
    """Return name, id and age of photos of people that neither train nor val shows.

    Of a protocol whose test shows unseen people these are test's, else the photos of the aspect
    whose people are in no split, as they wear accessories on all of them.
    """
    files = locate(attributes, state["config"]["protocol"], state["config"]["fold"] or 0)
    if "test" in PROTOCOLS[files.protocol].unseen:
        return read_samples(files.split("test"))
    info = read_hand_info(files.root / "HandInfo.csv").rename(columns={"imageName": "name"})
    aspect = info["aspectOfHand"] == ASPECTS[files.aspect]
    others = info[aspect & ~info["id"].isin(read_samples(attributes)["id"])]
    return others[[(files.photos / name).is_file() for name in others["name"]]]


def bootstrap(hits: np.ndarray, people: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `hits`, (N,), by bootstrap over people, (N,)."""
    names, person = np.unique(people, return_inverse=True)
    sums, counts = np.bincount(person, hits), np.bincount(person)
    drawn = np.random.default_rng(0).integers(len(names), size=(2000, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return tuple(np.quantile(means, (0.025, 0.975)).tolist())


def evaluate(checkpoint: Path, attributes: Path) -> Iterator[dict[str, Any]]:
    """Yield a row of typicality.csv for each kind of picture."""
    state = describe_checkpoint(checkpoint)
    predictor, rng = (
        load_predictor(checkpoint, attributes_file=attributes),
        np.random.default_rng(0),
    )
    reference, aspect = predictor.reference, ASPECTS[attributes.stem]
    if reference is None:
        sys.exit("no reference: give the --attributes_file of the training")
    files = locate(attributes, state["config"]["protocol"], state["config"]["fold"] or 0)
    strangers, val = find_strangers(state, attributes), read_samples(files.split("val"))
    known = val["id"].isin(state["training"]["people"])
    val = val[known] if known.any() else val
    few = strangers.groupby("id").head(PHOTOS_PER_PERSON)["name"]
    info = read_hand_info(files.root / "HandInfo.csv")
    palms = info[info["aspectOfHand"] == aspect.replace("dorsal", "palmar")]["imageName"]
    kinds: dict[str, Any] = {
        "without a hand": list(draw_without_hand(rng)),
        "empty white table": list(draw_empty_tables(aspect)),
        "drawn hands, white ground": list(draw_hands(rng, aspect, None)),
        "drawn hands, dark ground": list(draw_hands(rng, aspect, draw_dark)),
        "drawn hands, clutter": list(draw_hands(rng, aspect, draw_clutter)),
        "strangers, dark ground": [replace_ground(files.photos / n, draw_dark(rng)) for n in few],
        "strangers, clutter": [replace_ground(files.photos / n, draw_clutter(rng)) for n in few],
        "strangers": [files.photos / name for name in strangers["name"]],
        "palms": [path for name in palms if (path := files.photos / name).is_file()],
        "val": [files.photos / name for name in val["name"]],
    }
    for kind, photos in kinds.items():
        found: list[Prediction] = predictor(photos)
        similarity = np.array([reference.similarity(p.embedding) for p in found])
        row: dict[str, Any] = {
            "protocol": files.protocol,
            "fold": files.fold if PROTOCOLS[files.protocol].folds > 1 else "",
            "pictures": kind,
            "n": len(found),
            "untypical": np.mean([(p.typicality or 0) < ATYPICAL for p in found]),
        }
        samples = {"strangers": strangers, "val": val}.get(kind)
        for fpir in FPIRS:
            row[f"named_{fpir}"] = np.mean(similarity > (reference.threshold(fpir) or np.inf))
        if samples is not None:
            people, ages = samples["id"].to_numpy(str), samples["age"].to_numpy(float)
            spans = np.array([p.age_interval for p in found], dtype=float)
            inside = (spans[:, 0] <= ages) & (ages <= spans[:, 1])
            row |= {"people": len(set(people)), "age_in_interval": inside.mean()}
            row["age_interval_width"] = np.median(spans[:, 1] - spans[:, 0])
            for fpir in FPIRS:
                above = similarity > (reference.threshold(fpir) or np.inf)
                row[f"low_{fpir}"], row[f"high_{fpir}"] = bootstrap(above, people)
                right = np.array([p.classes["identity"] for p in found]) == people
                row[f"right_{fpir}"] = np.mean(above & right)
        yield row


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", nargs="+", type=Path, required=True)
    parser.add_argument("--attributes_file", type=Path, required=True)
    given = parser.parse_args(argv)
    rows = [row for path in given.checkpoints for row in evaluate(path, given.attributes_file)]
    table = pd.DataFrame(rows).round(3)
    table.to_csv(FOLDER / "typicality.csv", index=False, lineterminator="\n")
    print(table.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
