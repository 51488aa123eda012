"""Predict identity, gender and age group of the hands on photos.

    python predict.py --checkpoint ./checkpoints/<run>/checkpoint-000030-best.pth photo.jpg folder

prints one JSON line (or CSV row) per photo with the most probable classes of each task; folders are
searched for pictures. --output writes each photo with its predictions below. A photo that cannot be
read is reported on stderr, the others are predicted, and the exit code is 1.

A prediction is an estimate among the people of the training set, never a proof of identity.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import DataLoader, Dataset

from dataset_11k import TASKS, Item, PhotoReader, open_photo
from engine.checkpoint import load_checkpoint
from engine.loop import (
    BATCH_SIZE_HELP,
    Predictor,
    check_loading,
    load_predictor,
    predict_batches,
)
from measures.classes import softmax
from utils import (
    AMP_MODES,
    DEVICES,
    REQUIRED,
    UserError,
    atomic_write,
    build_config,
    build_parser,
    flag,
    one_line,
    one_line_errors,
    setup_logging,
    usable_cpus,
)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
ANNOTATED_WIDTH = 640  # pixels


@dataclass(frozen=True)
class PredictConfig:
    """Flags of predict.py."""

    photos: tuple[Path, ...]
    checkpoint: Path = flag(REQUIRED, "checkpoint-NNNNNN.pth of train.py")
    format: str = flag("json", "a JSON line or a CSV row per photo", choices=("json", "csv"))
    top_k: int = flag(3, "classes to print per task, the most probable first")
    output: Path | None = flag(None, "folder for the annotated photos", metavar="DIR")
    batch_size: int | None = flag(None, f"photos per forward pass ({BATCH_SIZE_HELP})")
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    device: str = flag("auto", "auto: cuda, then mps, then cpu", choices=DEVICES)
    amp: str | None = flag(None, "mixed precision (default: as in training)", choices=AMP_MODES)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.top_k < 1:
            raise ValueError("--top_k must be above 0")
        check_loading(self.batch_size, self.num_workers)


# ----------------------------------------------------------------------------- photos


class Batch(NamedTuple):
    """The readable photos of a batch (None: none), and a message for each of the others."""

    item: Item | None  # `row` is the index in the list of photos
    failures: list[str]


class PhotoFiles(Dataset[Item | str]):
    """Photos by path; an unreadable one is its error message.

    Args:
        paths: of the photos.
        reader: makes a photo the model's input.
    """

    def __init__(self, paths: Sequence[Path], reader: PhotoReader) -> None:
        self.paths, self.reader = paths, reader

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Item | str:
        """Return the photo at `index`, or why it cannot be read."""
        try:
            photo = self.reader.read(self.paths[index])
        except UserError as error:
            return str(error)
        return Item(torch.from_numpy(np.array(photo)), torch.empty(0), index, torch.empty(0))


def collate(members: Sequence[Item | str]) -> Batch:
    """Return a batch of `PhotoFiles` members."""
    items = [member for member in members if isinstance(member, Item)]
    failures = [member for member in members if isinstance(member, str)]
    if not items:
        return Batch(None, failures)
    images, labels, indices, draws = zip(*items, strict=True)
    item = Item(torch.stack(images), torch.stack(labels), torch.tensor(indices), torch.stack(draws))
    return Batch(item, failures)


def find_photos(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the photos that `paths` name or contain, and a message per path without any."""
    photos, failures = [], []
    for path in paths:
        if path.is_dir():
            found = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()
            )
            photos += found
            if not found:
                failures.append(f"no picture ({', '.join(EXTENSIONS)}): {path}")
        elif path.is_file():
            photos.append(path)
        else:
            failures.append(f"no such file or folder: {path}")
    return photos, failures


def report_failures(failures: Sequence[str]) -> None:
    """Print one line per failure to stderr."""
    for failure in failures:
        print(f"error: {one_line(failure)}", file=sys.stderr)


# ----------------------------------------------------------------------------- predictions


def top_classes(
    logits: np.ndarray, names: Sequence[str], top_k: int, temperature: float
) -> list[dict[str, str | float]]:
    """Return the `top_k` most probable classes of one photo, the most probable first.

    Args:
        logits: (n_classes,) float32, before softmax.
        names: of the classes.
        top_k: at most that many.
        temperature: divides the logits.
    """
    probabilities = softmax(logits[None], temperature)[0]
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [{"class": names[i], "probability": float(probabilities[i])} for i in order]


def predict_photos(
    predictor: Predictor, loader: Iterable[Batch], *, top_k: int, failures: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, task -> `top_classes`) per readable photo; append to `failures`."""

    def readable() -> Iterator[Item]:
        for batch in loader:
            report_failures(batch.failures)
            failures.extend(batch.failures)
            if batch.item is not None:
                yield batch.item

    for item, _, logits in predict_batches(
        predictor.model,
        readable(),
        preprocessing=predictor.preprocessing,
        amp=predictor.amp,
        show_progress=False,
    ):
        for i, index in enumerate(torch.as_tensor(item.row).tolist()):
            yield (
                index,
                {
                    task: top_classes(
                        logits[task][i].numpy(), names, top_k, predictor.temperature[task]
                    )
                    for task, names in predictor.label_space.names.items()
                },
            )


def flatten(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prediction as CSV columns: <task>_1, <task>_1_prob, <task>_2, ..."""
    row: dict[str, Any] = {}
    for task, classes in prediction.items():
        for i, found in enumerate(classes, start=1):
            row |= {f"{task}_{i}": found["class"], f"{task}_{i}_prob": found["probability"]}
    return row


def write_annotated(photo: Path, prediction: Mapping[str, Any], path: Path) -> None:
    """Write the photo, scaled, with the most probable class of each task below it."""
    picture = open_photo(photo, decode_size=ANNOTATED_WIDTH)
    scale = ANNOTATED_WIDTH / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    lines = [
        f"{TASKS[task].title}: {classes[0]['class']} ({classes[0]['probability']:.0%})"
        for task, classes in prediction.items()
    ]
    line_height = 28
    bottom = height + line_height * len(lines) + 6
    sheet = Image.new("RGB", (ANNOTATED_WIDTH, bottom + 26), "white")
    sheet.paste(picture.resize((width, height)))
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        corner = (12, height + 6 + line_height * i)
        draw.text(corner, line, fill="black", font=ImageFont.load_default(size=20))
    small = ImageFont.load_default(size=13)
    draw.text((12, bottom), "an estimate, no proof of identity", fill="black", font=small)
    with atomic_write(path) as temporary:
        sheet.save(temporary)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = build_parser(PredictConfig, __doc__)
    parser.add_argument("photos", nargs="+", type=Path, help="photos, or folders of photos")
    config = build_config(parser, PredictConfig, vars(parser.parse_args(argv)))
    setup_logging()
    predictor = load_predictor(
        load_checkpoint(config.checkpoint, mapped=True),
        device=config.device,
        amp=config.amp,
        batch_size=config.batch_size,
    )
    photos, failures = find_photos(config.photos)
    report_failures(failures)
    loader = DataLoader(
        PhotoFiles(photos, predictor.reader),
        batch_size=predictor.batch_size,
        num_workers=min(config.num_workers, len(photos)),
        collate_fn=collate,
    )
    table: csv.DictWriter[str] | None = None
    found = predict_photos(predictor, loader, top_k=config.top_k, failures=failures)
    for index, prediction in found:
        if config.format == "json":
            print(json.dumps({"photo": str(photos[index]), **prediction}, ensure_ascii=False))
        else:
            row = {"photo": str(photos[index]), **flatten(prediction)}
            if table is None:
                table = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
                table.writeheader()
            table.writerow(row)
        if config.output:
            name = f"{index + 1:04d}_{photos[index].stem[:80]}.png"
            write_annotated(photos[index], prediction, config.output / name)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
