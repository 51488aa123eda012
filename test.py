r"""Evaluate a checkpoint of train.py: every photo of a split once, every score over the whole set.

    python test.py --attributes_file ./11k/sub_dataset/dorsal_dr.csv \
        --checkpoint ./checkpoints/<run>/checkpoint-000030-best.pth

prints accuracies and a classification report per task, and writes, in the folder
<checkpoint>-<aspect>-<split>/ beside the checkpoint: metrics.json, predictions.csv,
predictions.npz, three confusion matrices and a grid of photos with truth and prediction.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report

from dataset_11k import (
    SPLITS,
    TASKS,
    HandsDataset,
    LabelSpace,
    SplitFiles,
    build_loader,
    check_photos,
    class_names,
    fingerprint,
    locate,
    open_photo,
    read_rows,
    say_who_is_known,
)
from engine import Predictions, Predictor, load_predictor, predict_split
from flags import AMP_MODES, DEVICES, REQUIRED, build_config, config_parser, flag
from metrics import label_measures, softmax
from ranks import Ranks
from report import choose_rows, plot_confusion, plot_sample_grid
from utils import (
    CHECKPOINT_KEYS,
    UserError,
    atomic_write,
    describe_environment,
    git_commit,
    load_checkpoint,
    logger,
    one_line_errors,
    setup_logging,
    usable_cpus,
    write_json,
)

TEMPERATURE = 1.0  # probabilities are the plain softmax of the logits


@dataclass(frozen=True)
class EvalConfig:
    """What test.py is asked for; everything else is in the checkpoint."""

    checkpoint: Path = flag(REQUIRED, "checkpoint-NNNNNN.pth of train.py")
    attributes_file: Path = flag(Path("./11k/sub_dataset/dorsal_dr.csv"), "CSV of the hand aspect")
    split: str = flag("val", "rows to evaluate", choices=SPLITS)
    batch_size: int = flag(64, "photos at once; changes no score in float32")
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    device: str = flag("auto", "where to evaluate: cuda, then mps, then cpu", choices=DEVICES)
    amp: str | None = flag(
        None, "mixed precision; auto: see train.py (default: as trained)", choices=AMP_MODES
    )

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError("--batch_size must be above 0, --num_workers not negative")


def check_aspect(state: Mapping[str, Any], attributes_file: Path, checkpoint: Path) -> None:
    """Refuse an attributes file of another aspect than was trained on."""
    aspect = attributes_file.stem
    if state["aspect"] != aspect:
        raise UserError(
            f"{checkpoint} was trained on {state['aspect']}, --attributes_file {attributes_file}"
            f" is {aspect}; give {attributes_file.with_stem(state['aspect'])}"
        )


def check_people(
    state: Mapping[str, Any], rows: pd.DataFrame, attributes_file: Path, checkpoint: Path
) -> None:
    """Refuse an attributes file, or rows to evaluate, of other people than were trained on."""
    trained = set(state["label_space"]["identity"])
    here = set(read_rows(attributes_file)["id"]) | (set(rows["id"]) - trained)
    if trained != here:
        more, fewer = sorted(here - trained), sorted(trained - here)
        raise UserError(
            f"{attributes_file} shows other people than {checkpoint} was trained on:"
            f" {len(more)} only in the file ({', '.join(more[:3]) or 'none'}),"
            f" {len(fewer)} only in the checkpoint ({', '.join(fewer[:3]) or 'none'});"
            " give the file that train.py was given"
        )


def say_what_was_seen(
    state: Mapping[str, Any], rows: pd.DataFrame, files: SplitFiles, split: str
) -> str:
    """Return what of the rows was trained on, or chose the checkpoint's epoch."""
    if split == "train":
        return "these photos were trained on: the scores say what was memorised, and no more"
    said = []
    train_csv = files.split("train")
    if train_csv.is_file():
        trained = read_rows(train_csv)
        if fingerprint(trained) == state["fingerprints"]["train"]:
            said.append(say_who_is_known(rows, trained, split))
    if chose_epoch(state, split):
        same = fingerprint(rows) == state["fingerprints"][split]
        said.append(f"{'the same' if same else 'val'} photos chose the epoch")
    return "; ".join(said)


def chose_epoch(state: Mapping[str, Any], split: str) -> bool:
    """Return whether the checkpoint is of the epoch that was best on the split."""
    return split == "val" and state["best"]["epoch"] == state["epoch"]


def predicted_classes(predictions: Predictions, space: LabelSpace) -> pd.DataFrame:
    """Return <task>_pred (class name) and <task>_prob (its probability) of every row."""
    columns: dict[str, Any] = {}
    for task in TASKS:
        probabilities = softmax(predictions.logits[task], TEMPERATURE)
        top = probabilities.argmax(axis=1)
        columns[f"{task}_pred"] = np.array(space.names[task])[top]
        columns[f"{task}_prob"] = probabilities.max(axis=1)
    return pd.DataFrame(columns)


def prediction_table(
    rows: pd.DataFrame, predictions: Predictions, space: LabelSpace
) -> pd.DataFrame:
    """Return predictions.csv: image_path, then true, pred and prob of each task."""
    predicted = predicted_classes(predictions, space)
    table = pd.DataFrame({"image_path": rows["image_path"]})
    for task, names in class_names(rows).items():
        table[f"{task}_true"] = names
        table[[f"{task}_pred", f"{task}_prob"]] = predicted[[f"{task}_pred", f"{task}_prob"]]
    return table


def prediction_arrays(predictions: Predictions, space: LabelSpace) -> dict[str, np.ndarray]:
    """Return predictions.npz: the embedding; per task logits, class names, truth, temperature."""
    arrays = {"embedding": predictions.embedding}
    for i, task in enumerate(TASKS):
        arrays[f"{task}_logits"] = predictions.logits[task]
        arrays[f"{task}_classes"] = np.array(space.names[task])
        arrays[f"{task}_true"] = predictions.labels[:, i]
        arrays[f"{task}_temperature"] = np.array(TEMPERATURE)
    return arrays


def predict(
    config: EvalConfig, predictor: Predictor, rows: pd.DataFrame, photos: Path
) -> Predictions:
    """Return what the checkpoint's model says of the rows."""
    dataset = HandsDataset(
        rows,
        photos,
        predictor.label_space,
        side=predictor.image_size,
        decode_size=predictor.decode_size,
    )
    loader = build_loader(
        dataset, batch_size=config.batch_size, num_workers=config.num_workers, shuffle=False
    )
    return predict_split(
        predictor.model,
        loader,
        preprocessing=predictor.preprocessing,
        amp=predictor.amp,
        ranks=Ranks(0, 1, predictor.device),
    )


def measure(predictions: Predictions) -> dict[str, dict[str, Any]]:
    """Return the measures of each task, over the rows whose true class the model knows."""
    tasks: dict[str, dict[str, Any]] = {}
    for i, task in enumerate(TASKS):
        known = predictions.labels[:, i] >= 0
        true, predicted = predictions.labels[known, i], predictions.logits[task][known].argmax(1)
        tasks[task] = {"n_images": int(known.sum()), "n_classes": len(np.unique(true))}
        if len(true):
            tasks[task] |= label_measures(true, predicted)
    return tasks


def write_results(
    folder: Path, metrics: Mapping[str, Any], table: pd.DataFrame, arrays: Mapping[str, np.ndarray]
) -> None:
    """Write metrics.json, predictions.csv and predictions.npz."""
    with atomic_write(folder / "predictions.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    with atomic_write(folder / "predictions.npz") as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # its stub has no mapping
    write_json(folder / "metrics.json", metrics)


def plot_results(
    folder: Path, table: pd.DataFrame, space: LabelSpace, photos: Sequence[Path]
) -> None:
    """Draw the confusion matrices and the grid of photos, of which `photos` has the paths."""
    for task in TASKS:
        path = folder / f"confusion_{task}.png"
        plot_confusion(
            table[f"{task}_true"], table[f"{task}_pred"], space.names[task], task=task, path=path
        )
    chosen = choose_rows(table)
    rows = (*chosen.random, *chosen.mistakes)
    pictures = [open_photo(photos[row], decode_size=300) for row in rows]
    plot_sample_grid(table, chosen, pictures, path=folder / "sample_grid.png")


def print_scores(metrics: Mapping[str, Any], table: pd.DataFrame, seen: str) -> None:
    """Print accuracies and a classification report per task, and what of it was `seen` before."""
    print(
        f"{metrics['n_images']} photos of {metrics['n_people']} people, {metrics['aspect']}"
        f" {metrics['split']}, protocol {metrics['protocol']}, epoch {metrics['epoch']}"
    )
    for task in TASKS:
        true, predicted = table[f"{task}_true"], table[f"{task}_pred"]
        print(f"\n{task} classification report\n")
        print(classification_report(true, predicted, digits=4, zero_division=0))
    print(f"{'':10}accuracy  balanced accuracy  macro F1  per-batch mean (as published)")
    for task, values in metrics["tasks"].items():
        print(
            f"{task:10}{values['accuracy']:8.4f}  {values['balanced_accuracy']:17.4f}"
            f"  {values['macro_f1']:8.4f}  {values['batch_mean_balanced_accuracy']:14.4f}"
        )
    if seen:
        print(f"\n{seen}")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = config_parser(EvalConfig, __doc__)
    config = build_config(parser, EvalConfig, vars(parser.parse_args(argv)))
    setup_logging()
    state = load_checkpoint(config.checkpoint, CHECKPOINT_KEYS)
    files = locate(config.attributes_file, state["config"]["protocol"])
    check_aspect(state, config.attributes_file, config.checkpoint)
    source = files.split(config.split)
    rows = read_rows(source)
    check_people(state, rows, config.attributes_file, config.checkpoint)
    if rows.empty:
        raise UserError(f"{source} lists no photo; evaluate another split or aspect")
    check_photos(rows, files.photos, source)
    unchanged = fingerprint(rows) == state["fingerprints"][config.split]
    if not unchanged:
        logger.warning(
            "%s is not the file that was there at the training: make sure that none of its photos"
            " was trained on",
            source,
        )
    seen = say_what_was_seen(state, rows, files, config.split)
    predictor = load_predictor(
        state, device=config.device, amp=config.amp, batch_size=config.batch_size
    )
    space = predictor.label_space
    predictions = predict(config, predictor, rows, files.photos)
    table = prediction_table(rows, predictions, space)
    metrics = {
        "protocol": files.protocol,
        "aspect": files.aspect,
        "split": config.split,
        "split_as_at_training": unchanged,
        "selected_on_reported_split": chose_epoch(state, config.split),
        "backbone": state["config"]["backbone"],
        "checkpoint": config.checkpoint.name,
        "epoch": state["epoch"],
        "seed": state["config"]["seed"],
        "n_images": len(rows),
        "n_people": rows["id"].nunique(),
        "tasks": measure(predictions),
        "commit": git_commit(),
        "amp": predictor.amp,
        "environment": describe_environment(predictor.device),
    }
    folder = config.checkpoint.with_name(f"{config.checkpoint.stem}-{files.aspect}-{config.split}")
    write_results(folder, metrics, table, prediction_arrays(predictions, space))
    plot_results(folder, table, space, [files.photos / name for name in rows["name"]])
    print_scores(metrics, table, seen)
    print(f"\nwrote {folder}")
    print(f"ask about other photos: python predict.py --checkpoint {config.checkpoint} PHOTO")
    return 0


if __name__ == "__main__":
    sys.exit(main())
