"""Rendering: pose, projection of limbs into a photo, light, ring, watch, sleeve, background."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dataset_11k import ASPECTS
from synthetic.anatomy import DIGITS, FINGERS, TABLE_PER_MM, Limb
from synthetic.people import Array, Outfit, Person, random_generator
from synthetic.skin import Hand, Sheet

FULL_WIDTH = 640  # photo width that sizes in pixels refer to
FILLET, FILLET_THUMB = 6.5, 10.0  # mm over which a finger and the palm blend
SMOOTH_MM = 3.5  # finer relief is smoothed where they blend
SLEEVE_MM = 4.5  # distance from skin to cloth
CAMERA_NOISE = 0.008  # standard deviation, of 0..1
JUMP_SHARE, JUMP = 0.15, 3.5  # share of large steps between photos, and their factor

# Pose: mean, standard deviation between sessions, standard deviation of a step between photos.
POSE = {
    "turn": (0.0, 9.0, 0.7),  # degrees; 0: fingers point down
    "x": (0.5, 0.07, 0.006),  # of the knuckles, relative to the photo's width
    "y": (0.42, 0.035, 0.005),  # of the knuckles, relative to the photo's height
    "size": (0.465, 0.035, 0.002),  # square root of the hand's area, relative to the height
    "spread": (0.50, 0.35, 0.035),  # 0: fingers together, 1: spread
    "thumb": (0.0, 6.0, 0.8),  # degrees away from the fingers
    **{f"turn_{name}": (0.0, 1.5, 0.35) for name in FINGERS},  # degrees
    **{f"curl_{name}": (0.04, 0.03, 0.006) for name in (*FINGERS, "thumb")},  # shortens by
    **{f"bend_{name}": (0.0, 0.022, 0.004) for name in FINGERS},  # sideways, per 100 mm
    "bend_thumb": (-0.07, 0.035, 0.006),
    "light": (1.05, 0.045, 0.006),  # exposure
    "warmth": (0.0, 0.025, 0.002),  # more red, less blue
    "light_x": (0.0, 0.35, 0.02),  # direction of the light
    "light_y": (-0.35, 0.2, 0.02),
    "shadow": (0.20, 0.08, 0.005),  # darkness
    "blur": (0.35, 0.25, 0.08),  # pixels at FULL_WIDTH
}

Pose = dict[str, float]
Box = tuple[slice, slice]  # rows and columns of a photo
View = tuple[Array, Array]  # s and t of the pixels of a box, (h, w) each, mm


def draw_poses(seed: int, person: Person, aspect: str, n: int) -> list[Pose]:
    """Return the poses of `n` consecutive photos: a random walk with a few jumps."""
    rng = random_generator(seed, 6, person.number, list(ASPECTS.values()).index(aspect))
    means, sessions, steps = np.array(list(POSE.values())).T
    values = means + sessions * np.clip(rng.normal(size=len(POSE)), -2, 2)
    poses = []
    for _ in range(n):
        poses.append(dict(zip(POSE, values.tolist(), strict=True)))
        factor = JUMP if rng.random() < JUMP_SHARE else 1.0
        values = values + steps * factor * rng.normal(size=len(POSE))
        values = np.clip(values, means - 2.2 * sessions, means + 2.2 * sessions)
    return poses


# ----------------------------------------------------------------------------- projection


class Field(NamedTuple):
    """The surface in a box of the photo."""

    distance: Array  # (h, w) to the outline in mm, negative inside
    height: Array  # (h, w) above the table, mm
    rgb: Array  # (h, w, 3), multiplies the skin's colour

    def crop(self, box: Box) -> Field:
        """Return views of the arrays in `box`."""
        return Field(*(values[box] for values in self))


def hand_matrix(hand: Hand, pose: Pose, size: tuple[int, int]) -> Array:
    """Return the (3, 3) matrix from pixels (x, y, 1) to millimetres on the hand.

    All hands have the same area in the photo, so that size says nothing about gender. The thumb is
    on the photo's right for the back of a right hand and the palm of a left hand.
    """
    mirror = 1 if hand.dorsal == hand.right else -1
    scale = pose["size"] * size[1] / math.sqrt(hand.area)  # pixels per mm
    turn = math.radians(pose["turn"])
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    linear = np.array([[mirror * cos, mirror * sin], [-sin, cos]])
    knuckles = np.array([0.0, DIGITS["middle"].y])
    shift = knuckles - linear @ [pose["x"] * size[0], pose["y"] * size[1]]
    return np.vstack([np.column_stack([linear, shift]), [0, 0, 1]])


def limb_matrix(name: str, hand: Hand, pose: Pose) -> Array:
    """Return the (3, 3) matrix from millimetres on the hand to a limb's (s, t)."""
    if name == "body":
        return np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    plan = DIGITS[name]
    if name == "thumb":
        angle = hand.traits["thumb_angle"] + pose["thumb"] + 8 * pose["spread"]
    else:
        angle = plan.closed + max(pose["spread"], 0) * (plan.opened - plan.closed)
        angle += pose[f"turn_{name}"]
    sin, cos = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    x, y = plan.x * hand.traits["palm_breadth"], plan.y
    longer = 1 / (1 - max(pose[f"curl_{name}"], 0))
    along = np.array([sin, cos, -(x * sin + y * cos)]) * longer
    return np.vstack([along, [cos, -sin, -(x * cos - y * sin)], [0, 0, 1]])


def limb_box(limb: Limb, matrix: Array, size: tuple[int, int]) -> Box:
    """Return the part of a photo of `size` (width, height) that a limb may cover."""
    half = float(limb.half_width.max()) + 8
    near, far = limb.start - 2, limb.start + len(limb.half_width) / TABLE_PER_MM + 2
    corners = np.array([[s, t, 1] for s in (near, far) for t in (-half, half)]).T
    x, y, _ = np.linalg.inv(matrix) @ corners
    left, right = np.clip([x.min(), x.max() + 1], 0, size[0]).astype(int).tolist()
    top, bottom = np.clip([y.min(), y.max() + 1], 0, size[1]).astype(int).tolist()
    return slice(top, bottom), slice(left, right)


def limb_view(matrix: Array, box: Box, bend: float = 0.0) -> View:
    """Return (s, t) of a box's pixels; a limb bent by `bend` is 100 * bend mm off at s = 100."""
    rows, columns = box
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] + 0.5
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5
    (a, b, c), (d, e, f) = matrix[:2].tolist()
    s, t = (a * x + c) + b * y, (d * x + f) + e * y
    return s, (t - s * s * (bend / 100) if bend else t)


def sample(skin: Sheet, view: View) -> Array:
    """Return the nearest colours of `skin` at the points of a view, (h, w, 3) float32."""
    n_rows, n_columns = skin.shape
    row = ((view[0] - skin.start) * skin.per_mm).astype(np.int32)
    column = ((view[1] + skin.half) * skin.per_mm).astype(np.int32)
    np.clip(row, 0, n_rows - 1, out=row)
    np.clip(column, 0, n_columns - 1, out=column)
    return np.take(skin.rgb.reshape(-1, 3), row * n_columns + column, axis=0)


def limb_field(limb: Limb, skin: Sheet, view: View) -> Field:
    """Return the surface of a limb at the points of a view."""
    s, t = view
    row = ((s - limb.start) * TABLE_PER_MM).astype(np.int32)
    half = limb.half_width[np.clip(row, 0, len(limb.half_width) - 1)]
    end = s
    if limb.flat:  # the palm's far edge follows the knuckles, lower towards the little finger
        lower = np.maximum(6 - t, 0)
        end = s + 0.0045 * lower * lower + 0.04 * lower
    beyond = np.maximum((end - limb.cap[0]) / limb.cap[1], (limb.root[0] - s) / limb.root[1])
    beyond = np.maximum(beyond, 0) ** 2
    across = (t / half) ** 2
    square = np.sqrt(across**2 + beyond**2) if limb.flat else across + beyond
    distance = (np.sqrt(square) - 1) * half
    dome = np.maximum(1 - square**2 if limb.flat else 1 - square, 0.03)
    height = np.sqrt(dome) * half * limb.thickness
    if limb.flat:  # thinner towards the fingers
        height *= np.clip(1.55 - s * 0.011, 0.5, 1)
    if limb.nail is not None:
        nail = limb.nail
        u, v = ((s - nail.s) / nail.half_length) ** 2, ((t - nail.t) / nail.half_width) ** 2
        plate = (np.sqrt(np.sqrt(u * u + v * v)) - 1) * nail.half_width
        distance = np.minimum(distance, plate)
    return Field(distance, height, sample(skin, view))


def join(finger: Field, body: Field, result: Field, blend: Array, fillet: float) -> None:
    """Add a finger that grows smoothly out of the body to `result`, where it is nearer.

    All share one box. `blend` (h, w) becomes 1 where finger and body meet, over `fillet` mm, and 0
    elsewhere on the finger.
    Source: https://iquilezles.org/articles/smin (the quadratic smooth minimum).
    """
    share = np.clip((body.distance - finger.distance) * (0.5 / fillet) + 0.5, 0, 1)
    rest = share * (1 - share)
    distance = body.distance + share * (finger.distance - body.distance) - fillet * rest
    share *= share * (3 - 2 * share)  # no edge where the blend begins
    height = body.height + share * (finger.height - body.height)
    depth = np.clip(-distance, 0, 8)  # where they blend, the skin rises from the new outline
    height += np.maximum(0.85 * np.sqrt(depth * (16 - depth)) - height, 0) * np.minimum(6 * rest, 1)
    rgb = body.rgb + share[..., None] * (finger.rgb - body.rgb)
    nearer = distance < result.distance
    np.copyto(result.distance, distance, where=nearer)
    np.copyto(result.height, height, where=nearer)
    np.copyto(result.rgb, rgb, where=nearer[..., None])
    np.copyto(blend, np.minimum(10 * rest, 1), where=nearer)


class Scene(NamedTuple):
    """A hand's skin in its box of the photo."""

    box: Box
    view: View  # of the body
    body: Field
    skin: Field  # body and fingers
    pixel_mm: float


def compose(hand: Hand, ring: Outfit | None, pose: Pose, size: tuple[int, int]) -> Scene:
    """Return the joined skin of all limbs in its smallest box, with the ring of an outfit."""
    to_hand = hand_matrix(hand, pose, size)
    matrices = {name: limb_matrix(name, hand, pose) @ to_hand for name in hand.limbs}
    boxes = {name: limb_box(hand.limbs[name], matrices[name], size) for name in hand.limbs}
    top, left = (min(box[i].start for box in boxes.values()) for i in (0, 1))
    bottom, right = (max(box[i].stop for box in boxes.values()) for i in (0, 1))
    whole = (slice(top, bottom), slice(left, right))
    view = limb_view(matrices["body"], whole)
    body = limb_field(hand.limbs["body"], hand.skins["body"], view)
    skin = Field(*(values.copy() for values in body))
    blend = np.zeros_like(body.height)
    for name in DIGITS:
        limb, (rows, columns) = hand.limbs[name], boxes[name]
        inner = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        near = limb_view(matrices[name], boxes[name], pose[f"bend_{name}"])
        finger = limb_field(limb, hand.skins[name], near)
        if ring is not None and name == ring.ring:
            finger = add_ring(finger, limb, ring, hand.base, near)
        fillet = FILLET_THUMB if name == "thumb" else FILLET
        join(finger, body.crop(inner), skin.crop(inner), blend[inner], fillet)
    pixel_mm = math.sqrt(hand.area) / (pose["size"] * size[1])
    skin.height[:] += blend * (smooth(skin.height, SMOOTH_MM / pixel_mm) - skin.height)
    return Scene(whole, view, body, skin, pixel_mm)


# ----------------------------------------------------------------------------- light


def reduced_blur(values: Array, factor: int, radius: float) -> Array:
    """Return `values` (0..1) reduced by `factor` and blurred by `radius` pixels, float32."""
    image = Image.fromarray((values * 255).astype(np.uint8)).reduce(factor)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius / factor)), np.float32) / 255


def smooth(values: Array, pixels: float) -> Array:
    """Return (h, w) float32 `values` without detail finer than `pixels`."""
    image, (height, width) = Image.fromarray(values), values.shape
    coarse = (max(2, round(width / pixels)), max(2, round(height / pixels)))
    image = image.resize(coarse, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def shade(skin: Field, pixel_mm: float, pose: Pose) -> Array:
    """Return the light that skin reflects, (h, w, 3), about 1; dim light is redder."""
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
    light *= 1 - 0.9 * np.clip(np.asarray(around) - solid, 0, 0.5)  # dark between the fingers
    rim = np.clip(1 + skin.distance * 0.4, 0, 1)
    light *= 1 - 0.24 * rim * rim
    return np.stack([light * (1 + k * (light - 1)) for k in (-0.2, 0.1, 0.25)], axis=-1)


def draw_table(covered: Array, pose: Pose, factor: int = 4) -> NDArray[np.uint8]:
    """Return the white table with the hand's soft shadow, (h, w, 3).

    Args:
        covered: (h, w), 1 under the hand.
        pose: light and shadow.
        factor: the smooth table is computed at a size reduced by it.
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
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


# ----------------------------------------------------------------------------- accessories


def add_ring(field: Field, limb: Limb, outfit: Outfit, base: Array, view: View) -> Field:
    """Return a finger's field with a ring on it."""
    centre = outfit.ring_place * limb.length
    half = limb.half_width_at(centre)
    around = view[1] / half
    off = np.abs(view[0] - centre + 0.03 * half * around**2)
    on = np.clip(2.6 - 2 * off, 0, 1)
    shine = 0.55 - 0.25 * around**2 - 0.25 * (off > 0.9)
    shine += 0.75 * np.exp(-(((around + 0.35) / 0.22) ** 2))
    shine += 0.25 * np.exp(-(((around - 0.55) / 0.15) ** 2))
    metal = shine[..., None] * (np.array(outfit.metal, np.float32) / base)
    pressed = 1 - 0.35 * np.exp(-((np.maximum(off - 1.2, 0) / 0.9) ** 2))
    rgb = field.rgb * pressed[..., None]
    rgb += (metal - rgb) * on[..., None]
    return Field(field.distance, field.height + on * 0.8, rgb)


def draw_watch_face(along: Array, t: Array, rgb: Array, outfit: Outfit) -> Array:
    """Draw case, dial, ticks and hands into `rgb`; return the mask of the case."""
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


def draw_watch(
    distance: Array, outfit: Outfit, place: float, view: View, dorsal: bool
) -> tuple[Array, Array]:
    """Return colour and mask of a watch `place` mm along the body; its face is on the back."""
    along, t = view[0] - place, view[1]
    strap = np.clip(2 * (9.5 - np.abs(along)), 0, 1) * np.clip(1.5 - distance, 0, 1)
    light = (0.16 + 0.05 * np.cos(t * 0.5)) * np.clip(0.4 - distance * 0.08, 0.4, 1.1)
    light += 0.008 * np.sin(along * 2.2)
    rgb = light[..., None] * np.array([1.0, 0.8, 0.65], np.float32)
    if dorsal:
        strap = np.maximum(strap, draw_watch_face(along, t, rgb, outfit))
    return rgb, strap


def draw_sleeve(
    distance: Array, outfit: Outfit, end: float, view: View, weave: Array
) -> tuple[Array, Array]:
    """Return the colour of a sleeve that ends `end` mm along the body, and the distance to it."""
    s, t = view
    edge = end + 1.2 * np.sin(t * 0.11) - s
    side = distance - SLEEVE_MM
    folds = np.sin((s + 0.35 * t) * 0.16) + np.sin((s - 0.5 * t) * 0.07)
    seam = (edge < 9) & (edge > 8)
    rows, columns = (s * 3).astype(np.int32), (t * 3).astype(np.int32)
    thread = weave[rows % weave.shape[0], columns % weave.shape[1]]
    light = 1 + 0.05 * np.sin(t * (2 * math.pi / outfit.ribs)) + 0.07 * folds + 0.08 * thread
    light = (light - 0.12 * seam) * np.clip(0.45 - 0.11 * side, 0.45, 1)
    return light[..., None] * np.array(outfit.cloth, np.float32), np.maximum(side, -edge)


def cover(rgb: Array, alpha: Array, colour: Array, mask: Array) -> None:
    """Draw `colour` (h, w, 3) over `rgb` and `alpha` where `mask` (h, w) is 1, in place."""
    rgb += (colour - rgb) * mask[..., None]
    np.maximum(alpha, mask, out=alpha)


def dress(
    scene: Scene, outfit: Outfit, rgb: Array, alpha: Array, *, weave: Array, dorsal: bool
) -> None:
    """Draw watch and sleeve over `rgb` and `alpha` (in place), in the rows they can reach."""
    reach = max(-1000.0 if place is None else place for place in (outfit.watch, outfit.sleeve)) + 18
    rows = slice(0, int(np.count_nonzero((scene.view[0] < reach).any(axis=1))))
    if rows.stop == 0:
        return
    view, body = (scene.view[0][rows], scene.view[1][rows]), scene.body.distance[rows]
    rgb, alpha = rgb[rows], alpha[rows]
    if outfit.watch is not None:
        cover(rgb, alpha, *draw_watch(body, outfit, outfit.watch, view, dorsal))
    if outfit.sleeve is not None:
        cloth, distance = draw_sleeve(body, outfit, outfit.sleeve, view, weave)
        rgb *= 1 - 0.4 * np.exp(-np.maximum(distance, 0) / 2.2)[..., None]  # its shadow
        cover(rgb, alpha, cloth, np.clip(0.5 - distance / scene.pixel_mm, 0, 1))


def render(
    hand: Hand,
    outfit: Outfit,
    pose: Pose,
    *,
    size: tuple[int, int],
    accessories: bool,
    noise: NDArray[Any],
) -> Image.Image:
    """Return a photo of a hand.

    Args:
        hand: the side of a hand that is shown.
        outfit: sleeve, ring and watch.
        pose: position, shape and light.
        size: width and height in pixels.
        accessories: whether ring and watch are worn.
        noise: unit variance, at least (height, width): camera noise and weave of the cloth.
    """
    scene = compose(hand, outfit if accessories else None, pose, size)
    rgb = scene.skin.rgb * hand.base
    rgb *= shade(scene.skin, scene.pixel_mm, pose)
    alpha = np.clip(0.5 - scene.skin.distance / scene.pixel_mm, 0, 1)
    worn = outfit if accessories else outfit._replace(watch=None)
    dress(scene, worn, rgb, alpha, weave=noise, dorsal=hand.dorsal)
    rgb *= pose["light"] * np.array([1 + pose["warmth"], 1, 1 - pose["warmth"]], np.float32)
    rgb += noise[scene.box][..., None] * CAMERA_NOISE
    covered = np.zeros(size[::-1], np.float32)
    covered[scene.box] = alpha
    photo = draw_table(covered, pose)
    part = photo[scene.box]
    colour = np.clip(rgb, 0, 1) * 255
    colour = (part + (colour - part) * alpha[..., None]).astype(np.uint8)
    blur = ImageFilter.GaussianBlur(max(pose["blur"], 0.2) * size[0] / FULL_WIDTH)
    photo[scene.box] = np.asarray(Image.fromarray(colour).filter(blur))
    return Image.fromarray(photo)
