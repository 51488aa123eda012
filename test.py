r"""Evaluate a checkpoint of train.py: every photo of a split once, every score over the whole set.

    python test.py --attributes_file ./11k/sub_dataset/dorsal_dr.csv \
        --checkpoint ./checkpoints/<run>/checkpoint-000030-best.pth

prints accuracies, a classification report per task, and each headline number with its interval and
controls; writes, in the folder <checkpoint>-<aspect>-<split>/ beside the checkpoint: metrics.json,
predictions.csv, predictions.npz, confusion matrices and a grid of photos with truth and prediction.

People that a disjoint protocol shows were never trained on: their embeddings are matched.
--test_attributes_file evaluates gender and age on another aspect, on people not trained on.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data.splits import (
    PROTOCOLS,
    SplitFiles,
    check_photos,
    fingerprint,
    frame_numbers,
    leaks,
    locate,
    permute_labels,
    say_who_is_known,
)
from data.tables import read_csv_text, read_hand_info, read_rows
from dataset_11k import (
    TASKS,
    HandsDataset,
    LabelSpace,
    age_group,
    build_loader,
    class_names,
    open_photo,
)
from engine.checkpoint import CHECKPOINT_KEYS, load_checkpoint, without_tensors
from engine.distributed import Ranks
from engine.loop import (
    BATCH_SIZE_HELP,
    MAX_BATCH_SIZE,
    Predictions,
    Predictor,
    load_predictor,
    predict_split,
)
from measures.bootstrap import CONFIDENCE, FEW_PEOPLE, N_DRAWS
from measures.classes import softmax
from measures.metrics_json import BOOTSTRAP_SEED, MOST_MATCHED, measure, plain
from pages.build import write_report
from pages.figures import choose_rows, plot_confusion, plot_sample_grid
from pages.wording import CONTROLS, headlines, name, what_the_control_means
from utils import (
    AMP_MODES,
    DEVICES,
    REQUIRED,
    UserError,
    atomic_write,
    build_config,
    build_parser,
    describe_environment,
    flag,
    git_commit,
    logger,
    one_line_errors,
    setup_logging,
    usable_cpus,
    write_json,
)

# ----------------------------------------------------------------------------- evaluation

ALL_SPLITS = ("train", "val", "test")


def check_loading(batch_size: int | None, num_workers: int) -> None:
    """Refuse values of --batch_size and --num_workers outside their range."""
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ValueError(f"--batch_size must be from 1 to {MAX_BATCH_SIZE}")
    if num_workers < 0:
        raise ValueError("--num_workers must not be negative")


@dataclass(frozen=True)
class EvalConfig:
    """What test.py is asked for; everything else is in the checkpoint."""

    checkpoint: Path = flag(REQUIRED, "checkpoint-NNNNNN.pth of train.py")
    attributes_file: Path = flag(Path("./11k/sub_dataset/dorsal_dr.csv"), "CSV of the hand aspect")
    split: str | None = flag(
        None, "rows to evaluate (default: test, or val where there is none)", choices=ALL_SPLITS
    )
    test_attributes_file: Path | None = flag(
        None, "CSV of another aspect: gender and age there, on people who were not trained on"
    )
    batch_size: int | None = flag(
        None, f"batch size; changes no score in float32 ({BATCH_SIZE_HELP})"
    )
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    device: str = flag("auto", "where to evaluate: cuda, then mps, then cpu", choices=DEVICES)
    amp: str | None = flag(
        None, "mixed precision; auto: see train.py (default: as trained)", choices=AMP_MODES
    )
    no_photos: bool = flag(False, "leave photos, biometric data, out of report.html")

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        check_loading(self.batch_size, self.num_workers)


# Of the checkpoint, for whoever has to repeat the training.
TRAINING_FACTS = ("config", "resolved", "fingerprints", "best", "commit", "environment")


def check_aspect(state: Mapping[str, Any], attributes_file: Path, checkpoint: Path) -> None:
    """Refuse an attributes file of another aspect than was trained on."""
    aspect = attributes_file.stem
    if state["aspect"] != aspect:
        raise UserError(
            f"{checkpoint} was trained on {state['aspect']}, --attributes_file {attributes_file}"
            f" is {aspect}; give {attributes_file.with_stem(state['aspect'])}"
        )


def check_people(
    state: Mapping[str, Any], rows: pd.DataFrame, split: str, files: SplitFiles, checkpoint: Path
) -> None:
    """Refuse an attributes file, or rows to evaluate, of other people than were trained on.

    In val and test of a disjoint protocol strangers are legal, and nobody else.
    """
    trained, here = set(state["label_space"]["identity"]), set(rows["id"])
    everyone = set(read_rows(files.attributes)["id"])
    strangers_only = PROTOCOLS[files.protocol].disjoint and split != "train"
    both = sorted(trained & here)
    if strangers_only and both:
        raise UserError(
            f"{files.split(split)} shows {len(both)} people that {checkpoint} was trained on"
            f" ({', '.join(both[:3])}); give the fold that train.py was given"
        )
    known = everyone | here if files.protocol == "paper" else here
    more = [] if strangers_only else sorted(known - trained)
    fewer = sorted(trained - everyone)
    if more or fewer:
        raise UserError(
            f"{files.attributes} shows other people than {checkpoint} was trained on:"
            f" {len(more)} only in the file ({', '.join(more[:3]) or 'none'}),"
            f" {len(fewer)} only in the checkpoint ({', '.join(fewer[:3]) or 'none'});"
            " give the file that train.py was given"
        )


# ----------------------------------------------------------------------------- what is evaluated


def rows_of(files: SplitFiles, split: str, state: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of a split with the labels that the training had."""
    rows = read_rows(files.split(split))
    if not is_permuted(state):
        return rows
    return permute_labels(rows, read_rows(files.attributes), state["config"]["seed"])


def is_permuted(state: Mapping[str, Any]) -> bool:
    """Return whether the checkpoint is the control of `train.py --permute_labels`."""
    return bool(state["config"].get("permute_labels"))


class Scope(NamedTuple):
    """What is evaluated."""

    files: SplitFiles
    split: str
    rows: pd.DataFrame
    cross_hand: bool  # another aspect than was trained on
    n_left_out: int  # people whom the split lists and the training knows (cross-hand)

    @property
    def strangers(self) -> bool:
        """Whether nobody on the photos was trained on, so that identity cannot be classified."""
        disjoint = PROTOCOLS[self.files.protocol].disjoint and self.split != "train"
        return self.cross_hand or disjoint

    @property
    def matched(self) -> bool:
        """Whether people are known by embeddings of a gallery."""
        return self.strangers and not self.cross_hand

    @property
    def classified(self) -> list[str]:
        """The tasks whose classes the photos can have."""
        return [task for task in TASKS if task != "identity" or not self.strangers]


def chosen_split(asked: str | None, protocol: str) -> str:
    """Return the split to evaluate: the one asked for, or the one that is reported on."""
    splits = PROTOCOLS[protocol].splits
    if asked is not None and asked not in splits:
        raise UserError(f"--split {asked}: protocol {protocol} has {', '.join(splits)}")
    return asked or splits[-1]


def trained_people(state: Mapping[str, Any]) -> set[str]:
    """Return who has a training photo; of an older checkpoint, whose classes it has."""
    names = state["label_space"]["identity"]
    counts = state["training"]["counts"]["identity"] if state.get("training") else [1] * len(names)
    return {name for name, n_photos in zip(names, counts, strict=True) if n_photos}


def read_scope(config: EvalConfig, state: Mapping[str, Any]) -> Scope:
    """Return the checked rows to evaluate."""
    protocol, fold = state["config"]["protocol"], state["config"].get("fold") or 0
    split, other = chosen_split(config.split, protocol), config.test_attributes_file
    files = locate(config.attributes_file, protocol, fold)
    check_aspect(state, config.attributes_file, config.checkpoint)
    if other is not None:
        files = locate(other, protocol, fold)
        if files.aspect == state["aspect"]:
            raise UserError(
                f"--test_attributes_file {other} is the aspect that was trained on; leave it out"
            )
        if is_permuted(state):
            raise UserError(
                f"{config.checkpoint} was trained with --permute_labels, which says nothing of"
                " another aspect; leave --test_attributes_file out"
            )
    rows = rows_of(files, split, state)
    n_people = rows["id"].nunique()
    if other is None:
        check_people(state, rows, split, files, config.checkpoint)
    else:
        rows = rows[~rows["id"].isin(trained_people(state))].reset_index(drop=True)
    if rows.empty:
        who = " of people who were not trained on" if n_people else ""
        raise UserError(
            f"{files.split(split)} lists no photo{who}; evaluate another split or aspect"
        )
    check_photos(rows, files.photos, files.split(split))
    return Scope(files, split, rows, other is not None, n_people - rows["id"].nunique())


def read_galleries(scope: Scope) -> np.ndarray:
    """Return the gallery of each draw, (n_draws, n_people) rows, one photo a person.

    Of test those that were stored with the split; else one: everybody's first photo, as train.py
    has it on val.
    """
    people = scope.rows["id"].to_numpy()
    if scope.split != "test":
        return np.unique(people, return_index=True)[1][None]
    path = scope.files.gallery
    table = read_csv_text(path, ("draw", "image_path"), "run dataset_11k_split.py first")
    row_of = {name: row for row, name in enumerate(scope.rows["image_path"])}
    rows = [
        np.array([row_of.get(x, -1) for x in part])
        for _, part in table.groupby("draw")["image_path"]
    ]
    everybody = sorted(set(people))
    if not rows or any((r < 0).any() or sorted(people[r]) != everybody for r in rows):
        raise UserError(
            f"{path} does not draw one photo of every person of {scope.files.split('test')};"
            " run dataset_11k_split.py again"
        )
    return np.stack(rows)


class Training(NamedTuple):
    """What a checkpoint says of its training rows, by class index; see train.py."""

    counts: dict[str, np.ndarray]  # task -> (C,) photos of each class
    mean_ages: np.ndarray  # (n_age_groups,) in years, NaN: no photo
    people: dict[str, np.ndarray]  # gender, age -> (n_people,) class of each person, -1: no photo


def read_training(state: Mapping[str, Any]) -> Training | None:
    """Return what the checkpoint says of its training rows; None: it is an older one."""
    if not state.get("training"):
        return None
    stored = state["training"]
    return Training(
        {task: np.array(values) for task, values in stored["counts"].items()},
        np.array(stored["mean_ages"], dtype=np.float64),
        {task: np.array(values) for task, values in stored["people"].items()},
    )


def training_rows(state: Mapping[str, Any], scope: Scope) -> pd.DataFrame | None:
    """Return the rows that were trained on; None: their file is gone, or another one by now."""
    if scope.cross_hand or not scope.files.split("train").is_file():
        return None
    trained = rows_of(scope.files, "train", state)
    return trained if fingerprint(trained) == state["fingerprints"]["train"] else None


def leakage(state: Mapping[str, Any], scope: Scope) -> dict[str, float] | None:
    """Return which share of the photos training gives away (`rows.leaks`), if known."""
    trained = training_rows(state, scope)
    if trained is None or scope.split == "train":
        return None
    return leaks(
        *(part.assign(number=frame_numbers(part["name"])) for part in (scope.rows, trained))
    )


def say_what_was_seen(state: Mapping[str, Any], scope: Scope) -> str:
    """Return what of the rows was trained on, or chose the checkpoint's epoch."""
    if scope.split == "train":
        return "these photos were trained on: the scores say what was memorised, and no more"
    said = []
    trained = training_rows(state, scope)
    if trained is not None and not scope.strangers:
        said.append(say_who_is_known(scope.rows, trained, scope.split))
    if is_permuted(state):
        said.append("gender and age were permuted between people: a control, no result")
    if chose_epoch(state, scope):
        same = fingerprint(scope.rows) == state["fingerprints"][scope.split]
        said.append(f"{'the same' if same else 'val'} photos chose the epoch")
    return "; ".join(said)


def chose_epoch(state: Mapping[str, Any], scope: Scope) -> bool:
    """Return whether the checkpoint is of the epoch that was best on these photos."""
    chosen = state["best"]["epoch"] == state["epoch"]
    return scope.split == "val" and chosen and not scope.cross_hand


# ----------------------------------------------------------------------------- predictions


def predicted_classes(
    predictions: Predictions, space: LabelSpace, temperature: Mapping[str, float]
) -> pd.DataFrame:
    """Return <task>_pred (class name) and <task>_prob (its probability) of every row."""
    columns: dict[str, Any] = {}
    for task in TASKS:
        probabilities = softmax(predictions.logits[task], temperature[task])
        top = probabilities.argmax(axis=1)
        columns[f"{task}_pred"] = np.array(space.names[task])[top]
        columns[f"{task}_prob"] = probabilities.max(axis=1)
    return pd.DataFrame(columns)


def prediction_table(
    rows: pd.DataFrame,
    predictions: Predictions,
    space: LabelSpace,
    temperature: Mapping[str, float],
) -> pd.DataFrame:
    """Return predictions.csv: image_path, then true, pred and prob of each task."""
    predicted = predicted_classes(predictions, space, temperature)
    table = pd.DataFrame({"image_path": rows["image_path"]})
    for task in TASKS:
        table[f"{task}_true"] = class_names(rows, task)
        table[[f"{task}_pred", f"{task}_prob"]] = predicted[[f"{task}_pred", f"{task}_prob"]]
    return table


def slice_names(scope: Scope) -> dict[str, np.ndarray]:
    """Return slice_<grouping> -> (N,) names: the groups of each photo that measures are taken in.

    Skin colour and accessories are those of the data root's HandInfo.csv; photos that it does not
    list are of group `unknown`.
    """
    rows, info = scope.rows, scope.files.root / "HandInfo.csv"
    groups = {"gender": rows["gender"], "age": rows["age"].map(age_group)}
    if info.is_file():
        table = read_hand_info(info).set_index("imageName").reindex(rows["name"])
        worn = table["accessories"].map({0: "none", 1: "some"})
        groups |= {"skin_color": table["skinColor"], "accessories": worn}
    return {f"slice_{n}": group.fillna("unknown").to_numpy(str) for n, group in groups.items()}


def calibration_arrays(
    config: EvalConfig, state: Mapping[str, Any], scope: Scope, predictor: Predictor
) -> dict[str, np.ndarray]:
    """Return what likelihood ratios are calibrated on: val photos, of people who are not in test.

    Empty where test does not show strangers, or val is not there any more as it was.
    """
    files = scope.files
    if scope.split != "test" or not scope.matched or not files.split("val").is_file():
        return {}
    rows = rows_of(files, "val", state)
    if fingerprint(rows) != state["fingerprints"]["val"]:
        return {}
    check_photos(rows, files.photos, files.split("val"))
    return {
        "calibration_embedding": predict(config, predictor, rows, files.photos).embedding,
        "calibration_people": rows["id"].to_numpy(str),
        "calibration_frame_number": frame_numbers(rows["name"]).to_numpy(),
    }


def training_arrays(
    config: EvalConfig, state: Mapping[str, Any], scope: Scope, predictor: Predictor
) -> dict[str, np.ndarray]:
    """Return the training photos' embeddings and classes, in which strangers are looked up.

    Empty where photos show people who were trained on, or the training rows are gone.
    """
    trained = training_rows(state, scope) if scope.matched else None
    if trained is None:
        return {}
    check_photos(trained, scope.files.photos, scope.files.split("train"))
    predictions = predict(config, predictor, trained, scope.files.photos)
    labels = {f"training_{task}_true": predictions.labels[:, i] for i, task in enumerate(TASKS)}
    return {"training_embedding": predictions.embedding, **labels}


def prediction_arrays(
    scope: Scope, predictions: Predictions, predictor: Predictor, training: Training | None
) -> dict[str, np.ndarray]:
    """Return predictions.npz but for what embeddings are matched with.

    The embedding; per task logits, class names, truth, temperature; people, age_years,
    frame_number (NaN: none) and slice_<grouping> of the rows. Where they are known: mean_ages and
    <task>_train_counts of the training, gender_of_identity and age_of_identity.
    """
    rows, arrays = scope.rows, {"embedding": predictions.embedding, **slice_names(scope)}
    for i, task in enumerate(TASKS):
        arrays[f"{task}_logits"] = predictions.logits[task]
        arrays[f"{task}_classes"] = np.array(predictor.label_space.names[task])
        arrays[f"{task}_true"] = predictions.labels[:, i]
        arrays[f"{task}_temperature"] = np.array(predictor.temperature[task])
    arrays["people"] = np.array(rows["id"].tolist())
    arrays["age_years"] = rows["age"].to_numpy()
    arrays["frame_number"] = frame_numbers(rows["name"]).to_numpy()
    if training is not None:
        arrays["mean_ages"] = training.mean_ages
        arrays |= {f"{task}_train_counts": counts for task, counts in training.counts.items()}
        arrays |= {f"{task}_of_identity": values for task, values in training.people.items()}
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
        dataset, batch_size=predictor.batch_size, num_workers=config.num_workers, shuffle=False
    )
    return predict_split(
        predictor.model,
        loader,
        preprocessing=predictor.preprocessing,
        amp=predictor.amp,
        ranks=Ranks(0, 1, predictor.device),
    )


# ----------------------------------------------------------------------------- results


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
    folder: Path,
    table: pd.DataFrame,
    space: LabelSpace,
    photos: Sequence[Path],
    tasks: Sequence[str],
) -> None:
    """Draw the confusion matrices of `tasks` and the grid of photos (paths: `photos`)."""
    for task in tasks:
        path = folder / f"confusion_{task}.png"
        plot_confusion(
            table[f"{task}_true"], table[f"{task}_pred"], space.names[task], task=task, path=path
        )
    chosen = choose_rows(table, tasks)
    rows = (*chosen.random, *chosen.mistakes)
    pictures = [open_photo(photos[row], decode_size=300) for row in rows]
    plot_sample_grid(table, chosen, pictures, path=folder / "sample_grid.png", tasks=tasks)


def headline_lines(tasks: Mapping[str, dict[str, Any] | None]) -> list[str]:
    """Return a line per headline number: value, interval, people, controls."""

    def cell(value: float | None) -> str:
        return "-" if value is None or math.isnan(value) else f"{value:.4f}"

    titles = "".join(f"{name(control):>19}" for control in CONTROLS)
    lines = [f"{'':32}   value  95 % interval     people{titles}"]
    for line in headlines(tasks):
        people = f"{'few: ' if line.n_people < FEW_PEOPLE else ''}{line.n_people}"
        ends = f"{cell(line.low)}-{cell(line.high)}"
        lines.append(
            f"{line.name:32}{cell(line.value):>8}  {ends:16}{people:>8}"
            + "".join(f"{cell(line.controls.get(control)):>19}" for control in CONTROLS)
        )
    return lines


def print_scores(metrics: Mapping[str, Any], table: pd.DataFrame, scope: Scope, seen: str) -> None:
    """Print a report per task, what is sure, controls, what was `seen` before."""
    from sklearn.metrics import classification_report

    print(
        f"{metrics['n_images']} photos of {metrics['n_people']} people, {metrics['aspect']}"
        f" {metrics['split']}, protocol {metrics['protocol']}, epoch {metrics['epoch']}"
    )
    for task in scope.classified:
        true, predicted = table[f"{task}_true"], table[f"{task}_pred"]
        print(f"\n{task} classification report\n")
        print(classification_report(true, predicted, digits=4, zero_division=0))
    print(*headline_lines(metrics["tasks"]), what_the_control_means(scope.strangers), "", sep="\n")
    print(f"{'':10}accuracy  balanced accuracy  macro F1  per-batch mean (as published)")
    for task in scope.classified:
        values = metrics["tasks"][task]
        print(
            f"{task:10}{values['accuracy']:8.4f}  {values['balanced_accuracy']:17.4f}"
            f"  {values['macro_f1']:8.4f}  {values['batch_mean_balanced_accuracy']:14.4f}"
        )
    if seen:
        print(f"\n{seen}")


def describe(scope: Scope, state: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return what metrics.json says of what was evaluated, before any measure."""
    split, protocol = scope.split, scope.files.protocol
    unchanged, on_val = None, split == "val" and not scope.cross_hand
    if not scope.cross_hand:
        unchanged = fingerprint(scope.rows) == state["fingerprints"].get(split)
    return {
        "protocol": protocol,
        "protocol_reason": " ".join(PROTOCOLS[protocol].reason.split()),
        "permuted_labels": is_permuted(state),
        "fold": scope.files.fold if PROTOCOLS[protocol].disjoint else None,
        "aspect": scope.files.aspect,
        "split": split,
        "split_as_at_training": unchanged,
        "selected_on_reported_split": chose_epoch(state, scope),
        "calibrated_on_reported_split": on_val and bool(state.get("temperature")),
        "cross_hand": {
            "trained_on": state["aspect"],
            "people_left_out_as_trained_on": scope.n_left_out,
        }
        if scope.cross_hand
        else None,
        "backbone": state["config"]["backbone"],
        "checkpoint": checkpoint.name,
        "epoch": state["epoch"],
        "seed": state["config"]["seed"],
        "bootstrap": {"draws": N_DRAWS, "seed": BOOTSTRAP_SEED, "confidence": CONFIDENCE},
        "n_images": len(scope.rows),
        "n_people": scope.rows["id"].nunique(),
        "leakage": leakage(state, scope),
        "photos": str(scope.files.photos),
        "training": {name: state.get(name) for name in TRAINING_FACTS},
    }


def warn_of_a_changed_split(facts: Mapping[str, Any], scope: Scope) -> None:
    """Log one warning if the rows are not those that were there at the training."""
    if facts["split_as_at_training"] is False:
        logger.warning(
            "%s is not the file that was there at the training: make sure that none of its photos"
            " was trained on",
            scope.files.split(scope.split),
        )


def measure_tasks(arrays: Mapping[str, np.ndarray], scope: Scope) -> dict[str, Any]:
    """Return each task's part of metrics.json; identity has none on another aspect."""
    asked = [task for task in TASKS if task != "identity" or not scope.cross_hand]
    if len(scope.rows) > MOST_MATCHED and "identity" in asked:
        logger.warning(
            "%d photos are too many to compare them all; of up to %d embeddings are matched",
            *(len(scope.rows), MOST_MATCHED),
        )
    return dict.fromkeys(TASKS) | measure(arrays, asked, strangers=scope.strangers)


def evaluate(config: EvalConfig, command: str) -> None:
    """Evaluate as the flags say: write the results, their pictures and page, print the scores.

    Args:
        config: the flags.
        command: that repeats it, for metrics.json.
    """
    setup_logging()
    state = load_checkpoint(config.checkpoint, CHECKPOINT_KEYS, mapped=True)
    scope = read_scope(config, state)
    facts = describe(scope, state, config.checkpoint)
    warn_of_a_changed_split(facts, scope)
    galleries = {"galleries": read_galleries(scope)} if scope.matched else {}
    predictor = load_predictor(
        state, device=config.device, amp=config.amp, batch_size=config.batch_size
    )
    state = without_tensors(state)  # the predictor has its own
    space, rows, photos = predictor.label_space, scope.rows, scope.files.photos
    predictions = predict(config, predictor, rows, photos)
    table = prediction_table(rows, predictions, space, predictor.temperature)
    arrays = {
        **prediction_arrays(scope, predictions, predictor, read_training(state)),
        **calibration_arrays(config, state, scope, predictor),
        **training_arrays(config, state, scope, predictor),
        **galleries,
    }
    metrics = {
        **plain({**facts, "tasks": measure_tasks(arrays, scope)}),
        "commit": git_commit(),
        "command": command,
        "amp": predictor.amp,
        "environment": describe_environment(predictor.device),
    }
    name = f"{config.checkpoint.stem}-{scope.files.aspect}-{scope.split}"
    folder = config.checkpoint.with_name(name)
    write_results(folder, metrics, table, arrays)
    paths = [photos / name for name in rows["name"]]
    plot_results(folder, table, space, paths, scope.classified)
    print_scores(metrics, table, scope, say_what_was_seen(state, scope))
    page = write_report(folder, photos=None if config.no_photos else photos)
    print(f"\nwrote {folder}; to read: {page}")
    print(f"ask about other photos: python predict.py --checkpoint {config.checkpoint} PHOTO")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = build_parser(EvalConfig, __doc__)
    config = build_config(parser, EvalConfig, vars(parser.parse_args(argv)))
    given = sys.argv[1:] if argv is None else argv
    evaluate(config, shlex.join(["python", "test.py", *given]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
