r"""Predict identity, gender and age group of the hands on photos.

    python predict.py --checkpoint ./checkpoints/<run>/checkpoint-000030-best.pth photo.jpg folder

prints one JSON line (or CSV row) per photo: the most probable classes of each task, the expected
age, whether the person is unknown, and how typical the photo is of the training photos. Folders are
searched for photos; what cannot be read is reported on stderr, the others are predicted, and the
exit code is 1. Photos of one hand, in a CSV with the columns image_path,hand, get one prediction.
--output writes each photo with its predictions below, --explain maps of what influences them,
--embeddings the embeddings. From Python:

    from predict import load_predictor
    predictor = load_predictor("checkpoint.pth")
    prediction = predictor("photo.jpg")  # or a PIL image, an (H, W, 3) uint8 array, a list of them

A prediction is an estimate among the people of the training set, never a proof of identity.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import DataLoader

from data.cache import PhotoFiles
from data.splits import check_photos, fingerprint, read_run_samples, run_files, trained_files
from data.tables import Rule, check_cells, read_csv
from dataset_11k import (
    AGE_GROUPS,
    TASKS,
    HandsDataset,
    Item,
    Photo,
    build_loader,
    collate,
    describe_photo,
    is_photo_name,
    open_photo,
)
from engine import loop
from engine.checkpoint import load_checkpoint
from engine.explain import Explainer, Explanation, load_grad_cam
from engine.features import digest_of
from measures.classes import expected_age, softmax
from measures.typicality import TrainingReference
from utils import (
    AMP_MODES,
    DEVICES,
    REQUIRED,
    UserError,
    atomic_write,
    build_config,
    build_parser,
    flag,
    logger,
    one_line,
    one_line_errors,
    safe_name,
    setup_logging,
    usable_cpus,
)

ANNOTATED_WIDTH = 640  # pixels
AGE_COVERAGE = 0.9  # probability of the age groups in the interval
ATYPICAL = 0.01  # typicality below which a photo is warned of
DEFAULT_FPIR = 0.1
HANDS = ("right", "left")
MAP_NUMBERS = ("outside_hand", "randomised_correlation")  # fields of an `Explanation`


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """Flags of the scripts that predict for photos: what `load_predictor` takes."""

    fpir: float = flag(
        DEFAULT_FPIR, "false-positive identification rate at which a person is called unknown"
    )
    attributes_file: Path | None = flag(
        None, "CSV of the training, if it has moved: its photos are embedded once, for typicality"
    )
    hand: str | None = flag(
        None, "hand in the photos; needed after train.py --mirror left", choices=HANDS
    )
    batch_size: int | None = flag(None, f"photos per forward pass ({loop.BATCH_SIZE_HELP})")
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    device: str = flag("auto", "auto: cuda, then mps, then cpu", choices=DEVICES)
    amp: str | None = flag(None, "mixed precision (default: as in training)", choices=AMP_MODES)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 < self.fpir < 1:
            raise ValueError("--fpir must be between 0 and 1")
        loop.check_loading(self.batch_size, self.num_workers)

    def load(self, checkpoint: Path) -> HandPredictor:
        """Return the predictor of a checkpoint."""
        names = [field.name for field in dataclasses.fields(LoadingConfig)]
        return load_predictor(checkpoint, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class PredictConfig(LoadingConfig):
    """Flags of predict.py."""

    photos: tuple[str, ...]
    checkpoint: Path = flag(REQUIRED, "checkpoint-NNNNNN.pth of train.py")
    format: str = flag("json", "a JSON line or a CSV row per photo", choices=("json", "csv"))
    top_k: int = flag(3, "classes to print per task, the most probable first")
    photos_per_hand: int = flag(1, "number of consecutive photos that show one hand")
    output: Path | None = flag(None, "folder for the annotated photos", metavar="DIR")
    explain: Path | None = flag(
        None, "folder for class-activation maps: what influences each prediction", metavar="DIR"
    )
    embeddings: Path | None = flag(None, "file for the embeddings", metavar="FILE.npz")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        for name in ("top_k", "photos_per_hand"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be above 0")
        if self.embeddings and self.embeddings.suffix != ".npz":
            raise ValueError("--embeddings must end in .npz")


# ----------------------------------------------------------------------------- photos


class Hand(NamedTuple):
    """Photos of one hand, which get one prediction; `name`: in a CSV, else empty."""

    photos: Sequence[Photo]
    name: str = ""


class PhotoResult(NamedTuple):
    """What the model computes for a photo; `failure`: why it could not be read, else empty."""

    photo: Photo
    embedding: np.ndarray  # (D,) float32
    logits: dict[str, np.ndarray]  # task -> (n_classes,) float32
    warnings: Sequence[str]
    failure: str = ""


def search_folder(folder: Path, outputs: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the photos in a folder and its subfolders, and a message per other file.

    Hidden files and what is in `outputs` are left out.
    """
    found, failures = [], []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_file() or hidden or is_output(path, outputs):
            continue
        if is_photo_name(path):
            found.append(path)
        else:
            failures.append(f"skipped, as its name is not that of a photo: {path}")
    if not found:
        failures.append(f"no photo in the folder: {folder}")
    return found, failures


def is_output(path: Path, outputs: Sequence[Path]) -> bool:
    """Return whether a path is one of `outputs`, which are resolved, or below it."""
    return any(path.resolve().is_relative_to(output) for output in outputs)


def find_photos(inputs: Sequence[str], outputs: Sequence[Path]) -> tuple[list[Photo], list[str]]:
    """Return the photos that `inputs` name or contain, and a message per input or file without.

    Args:
        inputs: photos, which need not exist, or folders.
        outputs: resolved paths that this call writes, which are no input.
    """
    photos: list[Photo] = []
    failures = []
    for text in inputs:
        if Path(text).is_dir():
            found, messages = search_folder(Path(text), outputs)
            photos += found
            failures += messages
        elif is_output(Path(text), outputs):
            failures.append(f"in --output, --explain or --embeddings, thus no input: {text}")
        else:
            photos.append(text)
    return photos, failures


def read_hands(path: Path) -> list[Hand]:
    """Return the hands of a CSV with the columns image_path and hand, in order of appearance.

    Paths are relative to the CSV.
    """
    table = read_csv(path, ("image_path", "hand"), "Give a CSV with the columns image_path,hand")
    check_cells(table, path, {"hand": Rule(table["hand"] != "", "the name of a hand")})
    grouped = table.groupby("hand", sort=False)["image_path"]
    return [Hand([path.parent / p for p in photos], str(name)) for name, photos in grouped]


def find_hands(config: PredictConfig) -> tuple[list[Hand], list[str]]:
    """Return the hands to predict for, and a message per input without one.

    Raises:
        UserError: the photos are no multiple of --photos_per_hand.
    """
    tables = [text for text in config.photos if text.lower().endswith(".csv")]
    outputs = [
        path.resolve() for path in (config.output, config.explain, config.embeddings) if path
    ]
    others = [text for text in config.photos if text not in tables]
    photos, failures = find_photos(others, outputs)
    n = config.photos_per_hand
    if len(photos) % n:
        raise UserError(
            f"{len(photos)} photos are no multiple of --photos_per_hand {n}. Give a CSV with the"
            " columns image_path,hand instead"
        )
    if others and not any("://" in text or Path(text).exists() for text in others):
        raise UserError(f"not found: {others[0]}. Give photos, folders or a CSV")
    hands = [Hand(photos[i : i + n]) for i in range(0, len(photos), n)]
    return [*hands, *(hand for path in tables for hand in read_hands(Path(path)))], failures


def report_failures(failures: Sequence[str]) -> None:
    """Print one line per failure to stderr."""
    for failure in failures:
        print(f"error: {one_line(failure)}", file=sys.stderr)


# ----------------------------------------------------------------------------- predictions


@dataclass(frozen=True)
class Prediction:
    """What the model predicts for the hand on a photo, or on several photos.

    classes: task -> the most probable class.
    probabilities: task -> class -> probability, the most probable first.
    expected_age: in years, from the mean training ages of the age groups; None: age not trained.
    age_interval: first and last year of the age groups that hold the middle 90 %.
    unknown: whether the person is not among the training people; None: no identity or reference.
    typicality: fraction of val photos at least as far from the training photos; None: no
        reference. Below 0.01 a photo is unlike those of training.
    embedding: (D,) float32, by which photos are compared (cosine similarity).
    warnings: about the photos.
    """

    classes: dict[str, str]
    probabilities: dict[str, dict[str, float]]
    expected_age: float | None
    age_interval: tuple[int, int] | None
    unknown: bool | None
    typicality: float | None
    embedding: np.ndarray
    warnings: tuple[str, ...] = ()

    def to_json(self, top_k: int) -> dict[str, Any]:
        """Return the prediction without embedding, with `top_k` classes per task."""
        return {
            **{
                task: [
                    {"class": name, "probability": probability}
                    for name, probability in itertools.islice(classes.items(), top_k)
                ]
                for task, classes in self.probabilities.items()
            },
            "expected_age": self.expected_age,
            "age_interval": self.age_interval,
            "unknown": self.unknown,
            "typicality": self.typicality,
            "warnings": self.warnings,
        }


class HandPrediction(NamedTuple):
    """The prediction for a hand (None: no photo could be read), and for which photos."""

    hand: Hand
    prediction: Prediction | None
    photos: list[Photo]
    failures: list[str]


def age_interval(probabilities: np.ndarray, groups: Sequence[str]) -> tuple[int, int]:
    """Return the first and last year of the age groups between two quantiles.

    Args:
        probabilities: (C,) of the groups.
        groups: names of consecutive `AGE_GROUPS`.
    """
    tail = (1 - AGE_COVERAGE) / 2
    first, last = np.searchsorted(probabilities.cumsum(), (tail, 1 - tail)).tolist()
    return AGE_GROUPS[groups[first]][0], AGE_GROUPS[groups[min(last, len(groups) - 1)]][1]


class HandPredictor:
    """Predicts for photos: `load_predictor` returns one.

    Args:
        predictor: the model and how to prepare its input.
        mean_ages: (C,) mean training age of each age group in years, NaN: unknown.
        reference: of typicality; None: there is none.
        fpir: false-positive identification rate of the decision `unknown`.
    """

    def __init__(
        self,
        predictor: loop.Predictor,
        mean_ages: np.ndarray,
        reference: TrainingReference | None,
        fpir: float,
    ) -> None:
        self.predictor, self.mean_ages, self.reference = predictor, mean_ages, reference
        self.threshold = reference.threshold(fpir) if reference else None
        if reference and self.threshold is None:
            logger.warning(
                "no decision `unknown`: --fpir %g needs %d val photos, the training had %d",
                *(fpir, np.ceil(1 / fpir), len(reference.similarities)),
            )

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the model's weights: embeddings of other models cannot be compared."""
        return digest_of(self.predictor.model)

    def __call__(self, photos: Photo | Sequence[Photo]) -> Any:
        """Return the `Prediction` of a photo, or the list of those of a list of photos.

        Args:
            photos: path, PIL image or (H, W, 3) uint8 RGB array, or a list of them.

        Raises:
            UserError: a photo cannot be read.
        """
        if isinstance(photos, str | Path | Image.Image | np.ndarray):
            return self.predict_hand([photos])
        return [self._checked(p) for p in self.predict_hands([Hand([photo]) for photo in photos])]

    def predict_hand(self, photos: Sequence[Photo]) -> Prediction:
        """Return one prediction for several photos of one hand.

        Classes, probabilities and age are those of the mean log-probabilities; embedding,
        typicality and `unknown` those of the mean embedding.

        Raises:
            UserError: a photo cannot be read.
        """
        (predicted,) = self.predict_hands([Hand(photos)])
        return self._checked(predicted)

    @staticmethod
    def _checked(predicted: HandPrediction) -> Prediction:
        """Return the prediction; refuse one without some of its photos."""
        if predicted.failures or predicted.prediction is None:
            raise UserError("; ".join(predicted.failures) or "no photo. Give at least one")
        return predicted.prediction

    def predict_hands(
        self, hands: Sequence[Hand], *, num_workers: int = 0
    ) -> Iterator[HandPrediction]:
        """Yield a prediction for each hand, in order; photos that cannot be read are left out."""
        photos = [photo for hand in hands for photo in hand.photos]
        results = self._results(photos, num_workers)
        for hand in hands:
            found = list(itertools.islice(results, len(hand.photos)))
            read = [result for result in found if not result.failure]
            yield HandPrediction(
                hand,
                self._combine(read) if read else None,
                [result.photo for result in read],
                [result.failure for result in found if result.failure],
            )

    def _results(self, photos: Sequence[Photo], num_workers: int) -> Iterator[PhotoResult]:
        """Yield what the model computes for each photo, in order."""
        predictor = self.predictor
        loader = DataLoader(
            PhotoFiles(photos, predictor.reader),
            batch_size=predictor.batch_size,
            num_workers=min(num_workers, len(photos)),
            collate_fn=collate,
            generator=torch.Generator(),  # the default is the global generator
        )
        remaining = iter(photos)
        for batch in loader:
            pixels = [np.asarray(image) for image in batch if isinstance(image, Image.Image)]
            none = torch.empty(0)
            items = [Item(torch.from_numpy(np.stack(pixels)), none, none, none)] if pixels else []
            computed = (
                (embeddings[i].numpy(), {task: v[i].numpy() for task, v in logits.items()})
                for _, embeddings, logits in loop.predict_batches(
                    predictor.model,
                    items,
                    preprocessing=predictor.preprocessing,
                    amp=predictor.amp,
                    show_progress=False,
                )
                for i in range(len(embeddings))
            )
            for decoded, photo in zip(batch, remaining, strict=False):
                if isinstance(decoded, str):
                    yield PhotoResult(photo, np.empty(0), {}, [], decoded)
                else:
                    yield PhotoResult(photo, *next(computed), decoded.info["warnings"])

    def _combine(self, results: Sequence[PhotoResult]) -> Prediction:
        """Return the prediction of all photos of a hand."""
        space, ranked, age, years = self.predictor.label_space, {}, None, None
        for task, names in space.names.items():
            logits = np.stack([result.logits[task] for result in results])
            each = softmax(logits, self.predictor.temperature[task])
            mean = np.log(np.maximum(each, np.finfo(np.float64).tiny)).mean(axis=0, keepdims=True)
            probabilities = softmax(mean)[0]
            order = np.argsort(-probabilities, kind="stable").tolist()
            ranked[task] = {names[i]: float(probabilities[i]) for i in order}
            if TASKS[task].in_years:
                age = float(expected_age(probabilities[None], self.mean_ages)[0])
                years = age_interval(probabilities, names)
        embedding = np.mean([result.embedding for result in results], axis=0)
        warnings = [
            f"{describe_photo(result.photo)} {text}"
            for result in results
            for text in result.warnings
        ]
        typicality = unknown = None
        if self.reference:
            typicality = self.reference.typicality(embedding)
            if typicality < ATYPICAL:
                warnings.append(
                    "not like the hands of the training: no prediction is to be trusted"
                )
            if self.threshold is not None and "identity" in space.tasks:
                unknown = self.reference.similarity(embedding) <= self.threshold
        return Prediction(
            {task: next(iter(classes)) for task, classes in ranked.items()},
            ranked,
            expected_age=age,
            age_interval=years,
            unknown=unknown,
            typicality=typicality,
            embedding=embedding,
            warnings=tuple(warnings),
        )


# ----------------------------------------------------------------------------- loading


def load_predictor(
    checkpoint: Path | str,
    *,
    fpir: float = DEFAULT_FPIR,
    attributes_file: Path | str | None = None,
    hand: str | None = None,
    device: str = "auto",
    amp: str | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
) -> HandPredictor:
    """Return a predictor of photos.

    The first call for a checkpoint embeds its training and val photos, if they are available, and
    keeps the result beside it in <checkpoint stem>-reference.npz.

    Args:
        checkpoint: checkpoint-NNNNNN.pth of train.py.
        fpir: false-positive identification rate at which a person is called unknown.
        attributes_file: CSV of the training, if it has moved.
        hand: in the photos, right or left; needed if the training mirrored left hands.
        device: auto, cuda, mps or cpu.
        amp: mixed precision; None: as in training.
        batch_size: photos per forward pass; None: the default of the device.
        num_workers: processes that load training photos.

    Raises:
        UserError: the checkpoint cannot be used.
        ValueError: an argument is out of range.
    """
    if hand not in (None, *HANDS):
        raise ValueError(f"hand must be right or left, not {hand}")
    if not 0 < fpir < 1:
        raise ValueError(f"fpir must be between 0 and 1, not {fpir}")
    path = Path(checkpoint)
    state = load_checkpoint(path, mapped=True)
    predictor = loop.build_predictor(state, device=device, amp=amp, batch_size=batch_size)
    source = Path(attributes_file or trained_files(state["config"])[0])
    try:
        reference = load_reference(path, state, predictor, source, num_workers)
    except UserError as error:
        logger.warning("no typicality, no decision `unknown`: %s", error)
        reference = None
    if state["config"].get("mirror") == "left":
        if hand is None:
            logger.warning("left hands were mirrored in training: give --hand left for them")
        reader = dataclasses.replace(predictor.reader, mirror=hand == "left")
        predictor = dataclasses.replace(predictor, reader=reader)
    mean_ages = np.array(state["training"]["mean_ages"], dtype=np.float64)
    return HandPredictor(predictor, mean_ages, reference, fpir)


def load_reference(
    checkpoint: Path,
    state: Mapping[str, Any],
    predictor: loop.Predictor,
    attributes_file: Path,
    num_workers: int,
) -> TrainingReference:
    """Return the reference of typicality, from its file or else from the photos.

    Raises:
        UserError: there is no file, and the training's samples or photos have moved or changed.
    """
    path = checkpoint.with_name(f"{checkpoint.stem}-reference.npz")
    model = digest_of(predictor.model)
    with suppress(OSError, ValueError, KeyError, TypeError, BadZipFile), np.load(path) as stored:
        if str(stored["model"]) == model:
            return TrainingReference(**{name: stored[name] for name in stored if name != "model"})
    config = state["config"]
    files = run_files(attributes_file, config)
    found = []
    for split in ("train", "val"):
        source = files[0].split(split)
        samples = read_run_samples(files, split, config)
        if fingerprint(samples) != state["fingerprints"][split]:
            raise UserError(f"changed since the training: {source}. Give its --attributes_file")
        check_photos(samples, files[0].photos, source)
        logger.info("typicality: embedding %d photos of %s, once", len(samples), split)
        dataset = HandsDataset(
            samples, files[0].photos, predictor.label_space, reader=predictor.reader
        )
        size = predictor.batch_size
        predictions = loop.predict_split(
            predictor.model,
            build_loader(dataset, batch_size=size, num_workers=num_workers, train=False),
            preprocessing=predictor.preprocessing,
            amp=predictor.amp,
        )
        found += [predictions.embeddings, samples["id"].to_numpy(str)]
    reference = TrainingReference.of_splits(*found)
    try:
        write_arrays(path, {**vars(reference), "model": np.array(model)})
    except UserError as error:
        logger.warning("%s. Typicality is computed in each call", error)
    return reference


# ----------------------------------------------------------------------------- output


def to_record(
    predicted: HandPrediction, prediction: Prediction, *, grouped: bool, top_k: int
) -> Any:
    """Return what is printed: the photo, or the hand and its photos; the prediction."""
    photos = [str(photo) for photo in predicted.photos]
    hand = {"hand": predicted.hand.name, "photos": photos}
    return (hand if grouped else {"photo": photos[0]}) | prediction.to_json(top_k)


def flatten(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as CSV columns: <task>_1, <task>_1_prob, <task>_2, ... for classes."""
    row: dict[str, Any] = {}
    for name, value in record.items():
        if name in TASKS:
            for i, found in enumerate(value, start=1):
                row |= {f"{name}_{i}": found["class"], f"{name}_{i}_prob": found["probability"]}
        elif name == "age_interval":
            row["age_from"], row["age_to"] = value or (None, None)
        else:
            row[name] = "; ".join(value) if isinstance(value, list | tuple) else value
    return row


def write_annotated(photo: Photo, prediction: Prediction, path: Path) -> None:
    """Write the photo, scaled, with the most probable class of each task below it."""
    from matplotlib.font_manager import FontProperties, findfont

    from pages.figures import fit_text

    picture = open_photo(photo, decode_size=ANNOTATED_WIDTH)
    scale = ANNOTATED_WIDTH / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    small = "identity" if prediction.unknown else ""  # whose name is one of the training people
    lines = [
        (13 if task == small else 20, f"{TASKS[task].title} ({classes[name]:.0%}): {name}")
        for task, classes in prediction.probabilities.items()
        for name in [prediction.classes[task]]
    ]
    if prediction.unknown:
        lines.insert(0, (20, "identity: probably not among the training people"))
    lines += [(13, text) for text in (*prediction.warnings, "an estimate, no proof of identity")]
    sheet_height = height + 6 + sum(round(1.4 * size) for size, _ in lines) + 6
    sheet = Image.new("RGB", (ANNOTATED_WIDTH, sheet_height), "white")
    sheet.paste(picture.resize((width, height)))
    draw, top = ImageDraw.Draw(sheet), height + 6
    for size, text in lines:
        shown = fit_text(text, (ANNOTATED_WIDTH - 24) / 72, size)
        draw.text((12, top), shown, "black", ImageFont.truetype(findfont(FontProperties()), size))
        top += round(1.4 * size)
    with atomic_write(path) as temporary:
        sheet.save(temporary)


def describe_map(found: Explanation) -> list[str]:
    """Return the numbers of a map that are known, with their names."""
    values = ((name.replace("_", " "), getattr(found, name)) for name in MAP_NUMBERS)
    return [f"{name} {value:.2f}" for name, value in values if np.isfinite(value)]


def write_explanations(
    explanations: Mapping[str, Explanation], titles: Mapping[str, str], path: Path
) -> None:
    """Write maps to <path>.npz, and side by side over their photos to <path>.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(explanations), 4.2), dpi=100)
    grid = figure.subplots(1, len(explanations), squeeze=False)[0]
    for axes, (name, found) in zip(grid, explanations.items(), strict=True):
        axes.imshow(found.overlay)
        axes.set_axis_off()
        title = titles[name]
        axes.set_title(
            title if len(title) < 34 else f"{title[:30]}...", fontsize=10, parse_math=False
        )
        text = "\n".join(describe_map(found))
        axes.text(0.5, -0.04, text, ha="center", va="top", transform=axes.transAxes)
    note = "What influenced the result through the last feature map, not its reasons."
    figure.text(0.5, 0.02, note, ha="center")
    with atomic_write(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary)
    write_arrays(path.with_suffix(".npz"), {name: e.map for name, e in explanations.items()})


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; numbers that are not finite become empty cells."""
    with atomic_write(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")


def write_embeddings(path: Path, predictions: Sequence[HandPrediction], model: str) -> None:
    """Write an .npz file: embedding (N, D) float32, photo and hand (N,), model's fingerprint."""
    arrays = {
        "embedding": np.stack([p.prediction.embedding for p in predictions if p.prediction]),
        "photo": np.array(["; ".join(map(str, p.photos)) for p in predictions]),
        "hand": np.array([p.hand.name for p in predictions]),
        "model": np.array(model),
    }
    write_arrays(path, arrays)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file atomically."""
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # its stub has no mapping


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = build_parser(PredictConfig, __doc__)
    parser.add_argument("photos", nargs="+", help="photos, folders of photos, or a CSV of hands")
    config = build_config(parser, PredictConfig, vars(parser.parse_args(argv)))
    setup_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the console's code page
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    if config.explain:
        load_grad_cam()  # before the photos
    hands, failures = find_hands(config)
    report_failures(failures)
    predictor = config.load(config.checkpoint)
    grouped = config.photos_per_hand > 1 or any(hand.name for hand in hands)
    explainer = Explainer(predictor.predictor) if config.explain else None
    explained: list[dict[str, Any]] = []
    predictions: list[HandPrediction] = []
    iterator = predictor.predict_hands(hands, num_workers=config.num_workers)
    for number, predicted in enumerate(iterator, 1):
        report_failures(predicted.failures)
        failures += predicted.failures
        if predicted.prediction is None:
            continue
        record = to_record(predicted, predicted.prediction, grouped=grouped, top_k=config.top_k)
        if config.format == "json":
            print(json.dumps(record, ensure_ascii=False))
        else:
            table = csv.DictWriter(sys.stdout, list(row := flatten(record)), lineterminator="\n")
            if not predictions:
                table.writeheader()
            table.writerow(row)
        if config.output:
            name = f"{number:04d}_{Path(str(predicted.photos[0])).stem[:40]}.png"
            write_annotated(predicted.photos[0], predicted.prediction, config.output / name)
        if explainer and config.explain:
            classes = predicted.prediction.classes
            for i, photo in enumerate(predicted.photos, start=1):
                maps = explainer.explain(photo, classes)
                path = (
                    config.explain / f"{number:04d}_{i}_{safe_name(Path(str(photo)).stem)[:40]}.png"
                )
                titles = {task: f"{TASKS[task].title}: {classes[task]}" for task in maps}
                write_explanations(maps, titles, path)
                for task, found in maps.items():
                    row = {"photo": str(photo), "task": task, "class": classes[task]}
                    explained.append(row | {name: getattr(found, name) for name in MAP_NUMBERS})
        predictions.append(predicted)
    if config.embeddings and predictions:
        write_embeddings(config.embeddings, predictions, predictor.fingerprint)
    if config.explain and explained:
        write_table(config.explain / "maps.csv", explained)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
