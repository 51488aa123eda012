"""Say whose hand a photo shows, of which gender and age group, as far as a checkpoint knows.

    python predict.py --checkpoint ./checkpoints/<run>/checkpoint-000030-best.pth photo.jpg folder

prints one JSON line (or CSV row) per photo with the likeliest classes of each task; folders are
searched for pictures. With --output it writes the photos with their answers below as well. A photo
that cannot be read gets a line on stderr, the others are answered, and the exit code is 1.

The answer is an estimate among the people of the training, never a proof of identity.
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

from dataset_11k import TASKS, Item, open_photo, read_pixels
from engine.checkpoint import CHECKPOINT_KEYS, load_checkpoint
from engine.loop import BATCH_SIZE_HELP, Predictor, load_predictor, predict_batches
from measures.classes import softmax
from test import check_loading
from utils import (
    AMP_MODES,
    DEVICES,
    REQUIRED,
    UserError,
    atomic_write,
    build_config,
    build_parser,
    flag,
    one_line_errors,
    setup_logging,
    usable_cpus,
)

# ----------------------------------------------------------------------------- prediction


@dataclass(frozen=True)
class PredictConfig:
    """What predict.py is asked for."""

    photos: tuple[Path, ...]
    checkpoint: Path = flag(REQUIRED, "checkpoint-NNNNNN.pth of train.py")
    format: str = flag("json", "a JSON line or a CSV row per photo", choices=("json", "csv"))
    top_k: int = flag(3, "how many classes of each task to name, likeliest first")
    output: Path | None = flag(
        None, "folder for the photos with their answers written below", metavar="DIR"
    )
    batch_size: int | None = flag(
        None, f"batch size; changes no answer in float32 ({BATCH_SIZE_HELP})"
    )
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    device: str = flag("auto", "where to predict: cuda, then mps, then cpu", choices=DEVICES)
    amp: str | None = flag(
        None, "mixed precision; auto: see train.py (default: as trained)", choices=AMP_MODES
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.top_k < 1:
            raise ValueError("--top_k must be above 0")
        check_loading(self.batch_size, self.num_workers)


PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")

ANNOTATED_WIDTH = 640  # pixels


class Batch(NamedTuple):
    """Photos of one batch: those that could be read, and what was wrong with the others."""

    item: Item | None  # its rows are places in the list of photos
    failures: list[str]


class PhotoFiles(Dataset[Item | str]):
    """Photos by path; one that cannot be read is its error message.

    Args:
        paths: the photos.
        predictor: says how to read them.
    """

    def __init__(self, paths: Sequence[Path], predictor: Predictor) -> None:
        self.paths = paths
        self.side, self.decode_size = predictor.image_size, predictor.decode_size

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.paths)

    def __getitem__(self, place: int) -> Item | str:
        """Return the photo at a place of the list, or why it cannot be read."""
        try:
            photo = read_pixels(self.paths[place], self.side, self.decode_size)
        except UserError as error:
            return str(error)
        return Item(torch.from_numpy(np.array(photo)), torch.empty(0), place, torch.empty(0))


def collate(members: Sequence[Item | str]) -> Batch:
    """Return a batch of `PhotoFiles` members."""
    items = [member for member in members if isinstance(member, Item)]
    failures = [member for member in members if isinstance(member, str)]
    if not items:
        return Batch(None, failures)
    images, labels, places, draws = zip(*items, strict=True)
    batch = Item(torch.stack(images), torch.stack(labels), torch.tensor(places), torch.stack(draws))
    return Batch(batch, failures)


def find_photos(asked: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the photos that the paths name, folders searched, and what was wrong with paths."""
    photos, failures = [], []
    for path in asked:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
            photos += inside
            if not inside:
                failures.append(f"folder {path} holds no picture ({', '.join(PICTURES)})")
        elif path.is_file():
            photos.append(path)
        else:
            failures.append(f"{path}: no such file or folder")
    return photos, failures


def readable(batches: Iterable[Batch], failures: list[str]) -> Iterator[Item]:
    """Yield the batches' readable photos; the others' messages go to stderr and `failures`."""
    for batch in batches:
        report_failures(batch.failures)
        failures += batch.failures
        if batch.item is not None:
            yield batch.item


def report_failures(failures: Sequence[str]) -> None:
    """Print a line per failure to stderr."""
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)


def likeliest(
    logits: np.ndarray, names: Sequence[str], top_k: int, temperature: float
) -> list[dict[str, str | float]]:
    """Return the `top_k` likeliest classes of one photo, likeliest first.

    Args:
        logits: (n_classes,) float32, before softmax.
        names: of the classes.
        top_k: at most that many.
        temperature: that the logits are divided by.
    """
    probabilities = softmax(logits[None], temperature)[0]
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [{"class": names[i], "probability": float(probabilities[i])} for i in order]


def answers(
    predictor: Predictor, loader: Iterable[Batch], *, top_k: int, failures: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (place in the list, task -> likeliest classes) for each photo that can be read."""
    names = predictor.label_space.names
    for item, _, logits in predict_batches(
        predictor.model,
        readable(loader, failures),
        preprocessing=predictor.preprocessing,
        amp=predictor.amp,
        show_progress=False,
    ):
        for i, place in enumerate(torch.as_tensor(item.row).tolist()):
            said = {
                task: likeliest(
                    logits[task][i].numpy(), names[task], top_k, predictor.temperature[task]
                )
                for task in TASKS
            }
            yield place, said


def csv_row(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer as flat columns: <task>_1, <task>_1_prob, <task>_2, ..."""
    row = {}
    for task in TASKS:
        for i, said in enumerate(answer[task], start=1):
            row[f"{task}_{i}"] = said["class"]
            row[f"{task}_{i}_prob"] = said["probability"]
    return row


def write_annotated(photo: Path, answer: Mapping[str, Any], path: Path) -> None:
    """Write the photo, scaled, with the likeliest class of each task below it."""
    picture = open_photo(photo, decode_size=ANNOTATED_WIDTH)
    scale = ANNOTATED_WIDTH / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    lines = [
        f"{task}: {answer[task][0]['class']} ({answer[task][0]['probability']:.0%})"
        for task in TASKS
    ]
    line_height = 28
    bottom = height + line_height * len(lines) + 6
    sheet = Image.new("RGB", (ANNOTATED_WIDTH, bottom + 26), "white")
    sheet.paste(picture.resize((width, height)))
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        place = (12, height + 6 + line_height * i)
        draw.text(place, line, fill="black", font=ImageFont.load_default(size=20))
    small = ImageFont.load_default(size=13)
    draw.text((12, bottom), "an estimate, no proof of identity", fill="black", font=small)
    with atomic_write(path) as temporary:
        sheet.save(temporary)


def answer_photos(config: PredictConfig) -> int:
    """Print, and write, the answers that the flags ask for; return how many photos have none."""
    setup_logging()
    predictor = load_predictor(
        load_checkpoint(config.checkpoint, CHECKPOINT_KEYS, mapped=True),
        device=config.device,
        amp=config.amp,
        batch_size=config.batch_size,
    )
    photos, failures = find_photos(config.photos)
    report_failures(failures)
    loader = DataLoader(
        PhotoFiles(photos, predictor),
        batch_size=predictor.batch_size,
        num_workers=min(config.num_workers, len(photos)),
        collate_fn=collate,
    )
    table: csv.DictWriter[str] | None = None
    for place, answer in answers(predictor, loader, top_k=config.top_k, failures=failures):
        if config.format == "json":
            print(json.dumps({"photo": str(photos[place]), **answer}, ensure_ascii=False))
        else:
            row = {"photo": str(photos[place]), **csv_row(answer)}
            if table is None:
                table = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
                table.writeheader()
            table.writerow(row)
        if config.output:
            name = f"{place + 1:04d}_{photos[place].stem[:80]}.png"
            write_annotated(photos[place], answer, config.output / name)
    return len(failures)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = build_parser(PredictConfig, __doc__)
    parser.add_argument("photos", nargs="+", type=Path, help="photos, or folders of photos")
    config = build_config(parser, PredictConfig, vars(parser.parse_args(argv)))
    return 1 if answer_photos(config) else 0


if __name__ == "__main__":
    sys.exit(main())
