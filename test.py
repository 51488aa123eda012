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

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report

from dataset_11k import (
    AGE_GROUPS,
    PROTOCOLS,
    TASKS,
    HandsDataset,
    LabelSpace,
    SplitFiles,
    build_loader,
    check_photos,
    class_names,
    fingerprint,
    frame_numbers,
    locate,
    open_photo,
    read_csv_text,
    read_rows,
    say_who_is_known,
)
from engine import Predictions, Predictor, load_predictor, predict_split
from figures import choose_rows, plot_confusion, plot_sample_grid
from flags import AMP_MODES, DEVICES, REQUIRED, build_config, config_parser, flag
from intervals import (
    CONFIDENCE,
    N_DRAWS,
    PeopleMeasure,
    bootstrap,
    people_balanced_accuracy,
    people_mean,
    people_roc_auc,
)
from matching import (
    BURST,
    Verification,
    compare_all,
    cosine_similarity,
    fnmr_at_fmr,
    gallery_ranks,
    near_pairs,
    retrieve,
)
from metrics import (
    age_measures,
    cmc,
    expected_age,
    identity_lookup,
    label_measures,
    majority_class,
    probability_measures,
    roc_auc,
    softmax,
    true_ranks,
)
from ranks import Ranks
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

ALL_SPLITS = ("train", "val", "test")
BOOTSTRAP_SEED = 0
CMC_RANKS = (1, 5, 10)
FALSE_MATCH_RATES = (0.01, 0.001)
CERTAIN = 1000.0  # a logit whose class has probability 1: controls answer without a doubt
CONTROL_MEASURES = (
    *("accuracy", "balanced_accuracy", "macro_f1", "roc_auc"),
    *("within_one_group", "mae_years", "quadratic_weighted_kappa"),
)


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


def chosen_split(asked: str | None, protocol: str) -> str:
    """Return the split to evaluate: the one asked for, or the one that is reported on."""
    splits = PROTOCOLS[protocol].splits
    if asked is not None and asked not in splits:
        raise UserError(f"--split {asked}: protocol {protocol} has {', '.join(splits)}")
    return asked or splits[-1]


def trained_people(state: Mapping[str, Any]) -> set[str]:
    """Return who has a training photo; of an older checkpoint, whose classes it has."""
    names = state["label_space"]["identity"]
    counts = state["training"]["counts"]["identity"] if "training" in state else [1] * len(names)
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
    rows = read_rows(files.split(split))
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
    if "training" not in state:
        return None
    stored = state["training"]
    return Training(
        {task: np.array(values) for task, values in stored["counts"].items()},
        np.array(stored["mean_ages"], dtype=np.float64),
        {task: np.array(values) for task, values in stored["people"].items()},
    )


def say_what_was_seen(state: Mapping[str, Any], scope: Scope) -> str:
    """Return what of the rows was trained on, or chose the checkpoint's epoch."""
    if scope.split == "train":
        return "these photos were trained on: the scores say what was memorised, and no more"
    said = []
    train_csv = scope.files.split("train")
    if train_csv.is_file() and not scope.strangers:
        trained = read_rows(train_csv)
        if fingerprint(trained) == state["fingerprints"]["train"]:
            said.append(say_who_is_known(scope.rows, trained, scope.split))
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
    for task, names in class_names(rows).items():
        table[f"{task}_true"] = names
        table[[f"{task}_pred", f"{task}_prob"]] = predicted[[f"{task}_pred", f"{task}_prob"]]
    return table


def prediction_arrays(
    scope: Scope,
    predictions: Predictions,
    predictor: Predictor,
    training: Training | None,
    galleries: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Return predictions.npz, all that the measures are taken from.

    The embedding; per task logits, class names, truth, temperature; people, age_years and
    frame_number (NaN: none) of the rows. Where they are known: mean_ages and <task>_train_counts
    of the training, gender_of_identity and age_of_identity, galleries.
    """
    rows, arrays = scope.rows, {"embedding": predictions.embedding}
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
    return arrays if galleries is None else {**arrays, "galleries": galleries}


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


# ----------------------------------------------------------------------------- measures


@dataclass(frozen=True)
class Answers:
    """A task's answers to the photos whose true class the model knows.

    true: (N,) class indices.
    logits: (N, C) before softmax, which divides them by `temperature`.
    people: (N,) who is on the photo.
    ages: (N,) in whole years.
    mean_ages: (n_age_groups,) of the training in years, NaN: unknown.
    """

    task: str
    true: np.ndarray
    logits: np.ndarray
    temperature: float
    people: np.ndarray
    ages: np.ndarray
    mean_ages: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each photo, (N,)."""
        return self.logits.argmax(axis=1)

    @property
    def male(self) -> np.ndarray:
        """Of gender: how much more male than female, (N,)."""
        return self.logits[:, 1] - self.logits[:, 0]

    @property
    def expected_ages(self) -> np.ndarray:
        """Of age: in years, (N,)."""
        return expected_age(softmax(self.logits, self.temperature), self.mean_ages)


def task_answers(arrays: Mapping[str, np.ndarray], task: str) -> Answers:
    """Return a task's answers, from the arrays of `prediction_arrays`."""
    known = arrays[f"{task}_true"] >= 0
    return Answers(
        task=task,
        true=arrays[f"{task}_true"][known],
        logits=arrays[f"{task}_logits"][known].astype(np.float64),
        temperature=float(arrays[f"{task}_temperature"]),
        people=arrays["people"][known],
        ages=arrays["age_years"][known],
        mean_ages=arrays.get("mean_ages", np.full(len(AGE_GROUPS), np.nan)),
    )


def class_measures(answers: Answers) -> dict[str, Any]:
    """Return the measures of the classes answered, and what each task has of its own."""
    measures: dict[str, Any] = label_measures(answers.true, answers.predicted)
    if answers.task == "identity":
        curve = cmc(true_ranks(answers.logits, answers.true), max(CMC_RANKS))
        measures |= {"top_1": curve[0], "top_5": curve[4]}
        measures["cmc"] = {str(rank): curve[rank - 1] for rank in CMC_RANKS}
    elif answers.task == "gender":
        measures["roc_auc"] = roc_auc(answers.true, answers.male)
    else:
        expected = answers.expected_ages
        measures |= age_measures(answers.true, answers.predicted, answers.ages, expected)
    return measures


def headline(answers: Answers) -> dict[str, PeopleMeasure]:
    """Return the measures that get an interval."""
    people, is_identity = answers.people, answers.task == "identity"
    measures = {
        "balanced_accuracy": people_balanced_accuracy(
            answers.true, answers.predicted, people, class_is_person=is_identity
        )
    }
    if answers.task == "gender":
        measures["roc_auc"] = people_roc_auc(answers.true, answers.male, people)
    if answers.task == "age":
        measures["mae_years"] = people_mean(np.abs(answers.ages - answers.expected_ages), people)
    return measures


def intervals(measures: Mapping[str, PeopleMeasure]) -> dict[str, dict[str, Any]]:
    """Return each measure's bootstrap interval over people, but for its value."""
    found = {name: bootstrap(m, seed=BOOTSTRAP_SEED)._asdict() for name, m in measures.items()}
    return {name: {k: v for k, v in i.items() if k != "value"} for name, i in found.items()}


def controls(answers: Answers, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return what the same measures say of answers that read no gender or age from a hand.

    majority_class: always the training rows' most frequent class. identity_lookup (gender, age):
    the training rows' class of whoever the identity head names; who has no photo there gets the
    majority class. Nothing for an older checkpoint, which does not know its training rows.
    """
    task, n_classes = answers.task, answers.logits.shape[1]
    if f"{task}_train_counts" not in arrays:
        return {}
    counts = arrays[f"{task}_train_counts"]
    most = majority_class(np.repeat(np.arange(n_classes), counts))
    guesses = {"majority_class": np.full(len(answers.true), most)}
    if task != "identity":
        named = arrays["identity_logits"].argmax(axis=1)[arrays[f"{task}_true"] >= 0]
        found = identity_lookup(named, arrays[f"{task}_of_identity"])
        guesses["identity_lookup"] = np.where(found < 0, most, found)
    measures = {}
    for name, guess in guesses.items():
        certain = CERTAIN * np.eye(n_classes)[guess]
        said = class_measures(replace(answers, logits=certain, temperature=1.0))
        measures[name] = {key: said[key] for key in CONTROL_MEASURES if key in said}
    return measures


def measure_task(task: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return all that metrics.json says of a task that is classified."""
    answers = task_answers(arrays, task)
    before = probability_measures(answers.true, softmax(answers.logits))
    after = probability_measures(answers.true, softmax(answers.logits, answers.temperature))
    return {
        "n_images": len(answers.true),
        "n_classes": len(np.unique(answers.true)),
        **class_measures(answers),
        **after,
        "temperature": answers.temperature,
        "before_temperature": before,
        "intervals": intervals(headline(answers)),
        "controls": controls(answers, arrays),
    }


def match(
    similarity: np.ndarray,
    people: np.ndarray,
    excluded: np.ndarray,
    galleries: np.ndarray | None,
) -> dict[str, Any]:
    """Return verification of all pairs that are not excluded, and retrieval where galleries are.

    Args:
        similarity: (N, N) of all photos.
        people: (N,) who is on the photo.
        excluded: (N, N) bool, pairs to leave out.
        galleries: (n_draws, n_people) rows, or None.
    """
    verification = Verification(compare_all(similarity, people, excluded))
    rates = verification.curve()
    measures: dict[str, Any] = {"n_genuine": rates.n_genuine, "n_impostor": rates.n_impostor}
    sure = {"eer": verification.equal_error_rate()}
    for rate in FALSE_MATCH_RATES:
        measures[f"fnmr_at_fmr_{rate:g}"] = fnmr_at_fmr(rates, rate)
    if galleries is not None:
        ranks = gallery_ranks(similarity, people, galleries, excluded)
        for rank in CMC_RANKS:
            hits = people_mean(np.where(np.isnan(ranks), np.nan, ranks <= rank), people)
            measures[f"rank_{rank}"] = hits.value
            if rank == 1:
                sure["rank_1"] = hits
        found = retrieve(similarity, people, people, excluded)
        sure["mAP"] = people_mean(found.average_precision, people)
        measures["mINP"] = people_mean(found.inverse_penalty, people).value
    measures |= {name: measure.value for name, measure in sure.items()}
    return {**measures, "intervals": intervals(sure)}


def measure_matching(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return `match` over all pairs, and without pairs of neighbouring frames.

    The latter is None where a photo has no frame number. Chance: to guess one of the gallery.
    """
    people, frames = arrays["people"], arrays["frame_number"]
    similarity = cosine_similarity(arrays["embedding"], arrays["embedding"])
    same, galleries = np.eye(len(people), dtype=bool), arrays.get("galleries")
    beyond = None
    if not np.isnan(frames).any():
        near = near_pairs((people, people), (frames, frames))
        beyond = match(similarity, people, same | near, galleries)
    measures = {
        "all_pairs": match(similarity, people, same, galleries),
        f"beyond_{BURST}_frames": beyond,
    }
    if galleries is None:
        return measures
    return {
        **measures,
        "n_galleries": len(galleries),
        "controls": {"chance": {"rank_1": 1 / galleries.shape[1]}},
    }


def measure(arrays: Mapping[str, np.ndarray], scope: Scope) -> dict[str, dict[str, Any] | None]:
    """Return each task's part of metrics.json; identity has none on another aspect."""
    tasks: dict[str, dict[str, Any] | None] = {task: measure_task(task, arrays) for task in TASKS}
    if scope.cross_hand:
        tasks["identity"] = None
    elif identity := tasks["identity"]:
        identity["matching" if scope.strangers else "verification"] = measure_matching(arrays)
    return tasks


def plain(value: Any) -> Any:
    """Return nested measures as JSON has them: NaN, nothing to measure, becomes null."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value


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
    lines = [f"{'':30}   value  95 % interval     people  majority class  identity lookup"]

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    def add(title: str, name: str, block: Mapping[str, Any], by: Mapping[str, Any]) -> None:
        sure = block["intervals"][name]
        ends = f"{number(sure['low'])}-{number(sure['high'])}"
        said = [number(by.get(c, {}).get(name)) for c in ("majority_class", "identity_lookup")]
        lines.append(
            f"{title:30}{number(block[name]):>8}  {ends:16}{sure['n_people']:8}"
            f"{said[0]:>16}{said[1]:>17}"
        )

    for task, block in tasks.items():
        if block is None:
            continue
        for name in block["intervals"]:
            if block["n_images"]:
                add(f"{task} {name.replace('_', ' ')}", name, block, block["controls"])
        pairs = block.get("matching") or block.get("verification") or {}
        for kind in ("all_pairs", f"beyond_{BURST}_frames"):
            part = pairs.get(kind) or {"intervals": {}}
            for name in part["intervals"]:
                add(f"{kind.replace('_', ' ')}, {name.replace('_', '-')}", name, part, {})
    return lines


def what_the_control_means(strangers: bool) -> str:
    """Return the sentence that tells how to read a score beside its controls."""
    if strangers:
        return (
            "Nobody here was trained on: what a score has above the majority class carries over to"
            " strangers, and what it has above identity lookup is more than likeness to one trained"
            " person."
        )
    return (
        "Identity lookup answers the gender and age of whoever the identity head names: a score no"
        " better than that shows that people are known again, not that gender or age is read."
    )


def print_scores(
    metrics: Mapping[str, Any], table: pd.DataFrame, strangers: bool, seen: str
) -> None:
    """Print a report per task, what is sure, controls, what was `seen` before."""
    print(
        f"{metrics['n_images']} photos of {metrics['n_people']} people, {metrics['aspect']}"
        f" {metrics['split']}, protocol {metrics['protocol']}, epoch {metrics['epoch']}"
    )
    tasks = [task for task in TASKS if task != "identity" or not strangers]
    for task in tasks:
        true, predicted = table[f"{task}_true"], table[f"{task}_pred"]
        print(f"\n{task} classification report\n")
        print(classification_report(true, predicted, digits=4, zero_division=0))
    print(*headline_lines(metrics["tasks"]), what_the_control_means(strangers), "", sep="\n")
    print(f"{'':10}accuracy  balanced accuracy  macro F1  per-batch mean (as published)")
    for task in tasks:
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
    }


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = config_parser(EvalConfig, __doc__)
    config = build_config(parser, EvalConfig, vars(parser.parse_args(argv)))
    setup_logging()
    state = load_checkpoint(config.checkpoint, CHECKPOINT_KEYS)
    scope = read_scope(config, state)
    matched = scope.strangers and not scope.cross_hand
    galleries = read_galleries(scope) if matched else None
    facts = describe(scope, state, config.checkpoint)
    if facts["split_as_at_training"] is False:
        logger.warning(
            "%s is not the file that was there at the training: make sure that none of its photos"
            " was trained on",
            scope.files.split(scope.split),
        )
    seen = say_what_was_seen(state, scope)
    predictor = load_predictor(
        state, device=config.device, amp=config.amp, batch_size=config.batch_size
    )
    space, rows, photos = predictor.label_space, scope.rows, scope.files.photos
    predictions = predict(config, predictor, rows, photos)
    table = prediction_table(rows, predictions, space, predictor.temperature)
    arrays = prediction_arrays(scope, predictions, predictor, read_training(state), galleries)
    metrics = {
        **facts,
        "tasks": plain(measure(arrays, scope)),
        "commit": git_commit(),
        "amp": predictor.amp,
        "environment": describe_environment(predictor.device),
    }
    name = f"{config.checkpoint.stem}-{scope.files.aspect}-{scope.split}"
    folder = config.checkpoint.with_name(name)
    write_results(folder, metrics, table, arrays)
    drawn = [task for task in TASKS if task != "identity" or not scope.strangers]
    plot_results(folder, table, space, [photos / name for name in rows["name"]], drawn)
    print_scores(metrics, table, scope.strangers, seen)
    print(f"\nwrote {folder}")
    print(f"ask about other photos: python predict.py --checkpoint {config.checkpoint} PHOTO")
    return 0


if __name__ == "__main__":
    sys.exit(main())
