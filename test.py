r"""Evaluate a checkpoint of train.py: predict every photo of a split once, compute all measures.

    python test.py --attributes_file ./11k/sub_dataset/dorsal_dr.csv \
        --checkpoint ./checkpoints/<run>/checkpoint-000030-best.pth

prints a classification report per task and the headline measures with confidence intervals and
baselines; writes, beside the checkpoint in <checkpoint stem>-<aspect>-<split>/: metrics.json,
predictions.csv, predictions.npz, the figures and report.html.

Where nobody is known to the model (val and test of subject-disjoint, test of half), identity is
measured by comparing embeddings. --test_attributes_file evaluates gender and age on another aspect.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.cache import name_all_broken_photos
from data.splits import (
    LEFT_SUFFIX,
    PROTOCOLS,
    SplitFiles,
    check_photos,
    describe_overlap,
    duplicate_digests,
    fingerprint,
    frame_numbers,
    leakage,
    locate,
    missing_photos,
    read_run_samples,
    run_files,
    trained_aspects,
)
from data.tables import (
    further_columns,
    parse_samples,
    read_csv,
    read_hand_info,
)
from dataset_11k import TASKS, HandsDataset, build_loader, class_names
from engine.checkpoint import evaluation_dir, load_checkpoint, without_tensors
from engine.features import compute_features
from engine.loop import (
    BATCH_SIZE_HELP,
    Predictions,
    Predictor,
    build_predictor,
    check_loading,
    predict_split,
)
from measures.classes import softmax
from measures.intervals import CONFIDENCE, INTERVAL_METHOD
from measures.metrics_json import (
    MAX_COMPARED_PHOTOS,
    compute_metrics,
    to_json,
)
from measures.registry import measures_for
from pages.build import write_report
from pages.wording import (
    classified_tasks,
    explain_baselines,
    headline_table,
    single_class_warning,
    temperature_warning,
)
from utils import (
    AMP_MODES,
    DEVICES,
    REQUIRED,
    UserError,
    atomic_write,
    describe_environment,
    flag,
    git_commit,
    logger,
    one_line_errors,
    parse_config,
    setup_logging,
    usable_cpus,
    write_json,
)

SPLITS = ("train", "val", "test")
# Copied from the checkpoint into metrics.json: what repeats the training.
TRAINING_FACTS = ("aspect", "config", "resolved", "fingerprints", "best", "commit", "environment")
MAX_GROUPS = 20  # a further CSV column with more distinct values is no grouping
State = Mapping[str, Any]  # a checkpoint without its tensors


@dataclass(frozen=True)
class EvalConfig:
    """Flags of test.py; everything else is in the checkpoint."""

    checkpoint: Path = flag(REQUIRED, "checkpoint-NNNNNN.pth of train.py")
    attributes_file: Path = flag(Path("./11k/sub_dataset/dorsal_dr.csv"), "CSV of the hand aspect")
    split: str | None = flag(
        None, "split to evaluate (default: test, or val if the protocol has none)", choices=SPLITS
    )
    test_attributes_file: Path | None = flag(
        None, "CSV of another aspect: gender and age are evaluated there, on unseen people"
    )
    batch_size: int | None = flag(None, f"photos per forward pass ({BATCH_SIZE_HELP})")
    num_workers: int = flag(min(8, usable_cpus()), "processes that load photos")
    device: str = flag("auto", "auto: cuda, then mps, then cpu", choices=DEVICES)
    amp: str | None = flag(None, "mixed precision (default: as in training)", choices=AMP_MODES)
    no_photos: bool = flag(False, "embed no photos (biometric data) in the figures and the report")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_loading(self.batch_size, self.num_workers)


# ----------------------------------------------------------------------------- what is evaluated


@dataclass(frozen=True)
class Scope:
    """The samples that are evaluated, and what the model knows about them.

    cross_hand: another aspect than was trained on.
    n_people_left_out: people of the split that were trained on (cross-hand).
    """

    files: SplitFiles
    split: str
    samples: pd.DataFrame
    tasks: tuple[str, ...]
    cross_hand: bool = False
    n_people_left_out: int = 0

    @property
    def unseen(self) -> bool:
        """Whether nobody in the samples was trained on, so that identity cannot be classified."""
        return self.cross_hand or self.split in PROTOCOLS[self.files.protocol].unseen

    @property
    def is_matched(self) -> bool:
        """Whether identity is measured by comparing embeddings with a gallery."""
        return self.unseen and not self.cross_hand and "identity" in self.tasks


def is_permuted(state: State) -> bool:
    """Return whether the checkpoint was trained with --permute_labels."""
    return bool(state["config"]["permute_labels"])


def read_run_split(scope: Scope, split: str, state: State) -> pd.DataFrame:
    """Return the samples of a split of all aspects that were trained on."""
    files = run_files(scope.files.attributes, state["config"])
    return read_run_samples(files, split, state["config"])


def read_everyone(files: SplitFiles, state: State) -> pd.DataFrame:
    """Return all samples of the aspects that were trained on; `files` are of one of them."""
    return read_run_samples(run_files(files.attributes, state["config"]), None, state["config"])


def choose_split(asked: str | None, protocol: str) -> str:
    """Return the split to evaluate: the one asked for, or the one that is reported on."""
    splits = PROTOCOLS[protocol].splits
    if asked is not None and asked not in splits:
        raise UserError(f"--split {asked}: protocol {protocol} has {', '.join(splits)}")
    return asked or splits[-1]


def check_people(state: State, scope: Scope, checkpoint: Path) -> None:
    """Refuse samples of other people than the checkpoint's.

    In an unseen split of the protocol all people must be unseen; elsewhere identity, if it was
    trained, must know everybody.
    """
    here, everyone = set(scope.samples["id"]), set(read_everyone(scope.files, state)["id"])
    if scope.unseen:
        both = sorted(set(state["training"]["people"]) & here)
        if both:
            raise UserError(
                f"{len(both)} people were in training: {scope.files.split(scope.split)} (first:"
                f" {both[0]}). Give the attributes file and fold that train.py was given"
            )
    elif "identity" in scope.tasks:
        known = set(state["label_space"]["identity"])
        needed = everyone | here if scope.files.protocol == "paper" else here
        more, fewer = sorted(needed - known), sorted(known - everyone)
        if more or fewer:
            raise UserError(
                f"other people than {checkpoint} was trained on: {scope.files.attributes} has"
                f" {len(more)} more ({', '.join(more[:3]) or 'none'}) and lacks {len(fewer)}"
                f" ({', '.join(fewer[:3]) or 'none'}). Give the file that train.py was given"
            )


def read_scope(config: EvalConfig, state: State) -> Scope:
    """Return the checked samples to evaluate."""
    protocol, fold = state["config"]["protocol"], state["config"]["fold"] or 0
    split, tasks = choose_split(config.split, protocol), tuple(state["label_space"])
    files = locate(config.attributes_file, protocol, fold)
    aspects = trained_aspects(state["config"])
    if files.aspect not in aspects:
        raise UserError(
            f"{config.checkpoint} was trained on {state['aspect']}, not {files.aspect}:"
            f" --attributes_file {config.attributes_file}. Give"
            f" {config.attributes_file.with_stem(aspects[0])}, or the other aspect as"
            " --test_attributes_file"
        )
    if config.test_attributes_file is not None:
        return read_cross_hand(config, state, split)
    scope = Scope(files, split, read_run_samples([files], split, state["config"]), tasks)
    check_people(state, scope, config.checkpoint)
    return check_samples(scope)


def read_cross_hand(config: EvalConfig, state: State, split: str) -> Scope:
    """Return the samples of another aspect, without the people who were trained on."""
    other = config.test_attributes_file
    assert other is not None
    files = locate(other, state["config"]["protocol"], state["config"]["fold"] or 0)
    if files.aspect in trained_aspects(state["config"]):
        raise UserError(f"--test_attributes_file {other} is an aspect of the training. Omit it")
    if is_permuted(state):
        raise UserError(
            f"{config.checkpoint} was trained with --permute_labels: its labels mean nothing on"
            " another aspect. Omit --test_attributes_file"
        )
    samples = read_run_samples([files], split, state["config"])
    suffix = LEFT_SUFFIX if state["config"].get("identity_per") == "hand" else ""
    trained = {person.removesuffix(suffix) for person in state["training"]["people"]}
    unseen = samples[[person.removesuffix(suffix) not in trained for person in samples["id"]]]
    unseen = unseen.reset_index(drop=True)
    n_left_out = samples["id"].nunique() - unseen["id"].nunique()
    tasks = tuple(task for task in state["label_space"] if task != "identity")
    return check_samples(Scope(files, split, unseen, tasks, True, n_left_out))


def check_samples(scope: Scope) -> Scope:
    """Return the scope; refuse one without samples, or with missing photos."""
    path = scope.files.split(scope.split)
    if scope.samples.empty:
        who = " of unseen people" if scope.n_people_left_out else ""
        raise UserError(f"no photos{who}: {path}. Evaluate another split or aspect")
    check_photos(scope.samples, scope.files.photos, path)
    return scope


def read_galleries(scope: Scope) -> np.ndarray:
    """Return the gallery of each draw, (n_draws, n_people) sample indices, one photo per person.

    Test has stored draws; elsewhere the gallery is the first photo of each person, as in train.py.
    """
    people = scope.samples["id"].to_numpy()
    if scope.split != "test":
        return np.unique(people, return_index=True)[1][None]
    path = scope.files.gallery
    table = read_csv(path, ("draw", "image_path"), "Run dataset_11k_split.py first")
    index_of = {name: i for i, name in enumerate(scope.samples["image_path"])}
    draws = [
        np.array([index_of.get(x, -1) for x in part])
        for _, part in table.groupby("draw")["image_path"]
    ]
    everybody = sorted(set(people))
    if not draws or any((d < 0).any() or sorted(people[d]) != everybody for d in draws):
        raise UserError(
            f"a gallery draw is not one photo per person of {scope.files.split('test')}: {path}."
            " Rerun dataset_11k_split.py"
        )
    return np.stack(draws)


def training_samples(state: State, scope: Scope) -> pd.DataFrame | None:
    """Return the samples that were trained on; None if their file is gone or has changed."""
    if scope.cross_hand or not scope.files.split("train").is_file():
        return None
    samples = read_run_split(scope, "train", state)
    return samples if fingerprint(samples) == state["fingerprints"]["train"] else None


def selected_the_epoch(state: State, scope: Scope) -> bool:
    """Return whether the checkpoint's epoch was selected on these samples."""
    is_best = state["best"]["epoch"] == state["epoch"]
    return scope.split == "val" and is_best and not scope.cross_hand


def describe_exposure(state: State, scope: Scope) -> str:
    """Return how the training used these samples and people, for the terminal."""
    if scope.split == "train":
        return "these photos were trained on: the scores measure memorisation only"
    sentences = []
    trained = training_samples(state, scope)
    if trained is not None and not scope.unseen:
        sentences.append(describe_overlap(scope.samples, trained, scope.split))
    if is_permuted(state):
        sentences.append("labels were permuted between people: a baseline, not a result")
    if selected_the_epoch(state, scope):
        sentences.append("the epoch was selected on this split")
    return "; ".join(sentences)


# ----------------------------------------------------------------------------- predictions


def predict(
    config: EvalConfig, predictor: Predictor, samples: pd.DataFrame, photos: Path
) -> Predictions:
    """Return the model's predictions for the samples, in their order."""
    dataset = HandsDataset(
        samples,
        photos,
        predictor.label_space,
        reader=predictor.reader,
    )
    loader = build_loader(
        dataset, batch_size=predictor.batch_size, num_workers=config.num_workers, train=False
    )
    return predict_split(
        predictor.model, loader, preprocessing=predictor.preprocessing, amp=predictor.amp
    )


def build_table(samples: pd.DataFrame, predictions: Predictions, predictor: Predictor) -> Any:
    """Return predictions.csv: image_path, then <task>_true, <task>_pred, <task>_prob."""
    table = pd.DataFrame({"image_path": samples["image_path"]})
    for task, names in predictor.label_space.names.items():
        probabilities = softmax(predictions.logits[task], predictor.temperature[task])
        table[f"{task}_true"] = class_names(samples, task)
        table[f"{task}_pred"] = np.array(names)[probabilities.argmax(axis=1)]
        table[f"{task}_prob"] = probabilities.max(axis=1)
    return table


def build_arrays(
    scope: Scope, predictions: Predictions, predictor: Predictor, training: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the arrays of predictions.npz that come from the evaluated samples and the checkpoint.

    `embedding`; per task logits, class names, true index (-1: unknown) and temperature; per sample
    people, age_years and frame_number (NaN: unknown) and group_<grouping>; of the training
    mean_ages, <task>_train_counts and <task>_of_identity.
    """
    samples, space = scope.samples, predictor.label_space
    arrays = {"embedding": predictions.embeddings, **group_arrays(scope)}
    for task in space.tasks:
        arrays[f"{task}_logits"] = predictions.logits[task]
        arrays[f"{task}_classes"] = np.array(space.names[task])
        arrays[f"{task}_true"] = predictions.labels[task]
        arrays[f"{task}_temperature"] = np.array(predictor.temperature[task])
    arrays["people"] = samples["id"].to_numpy(str)
    ages = samples.get("age", pd.Series("", samples.index))
    arrays["age_years"] = pd.to_numeric(ages, errors="coerce").to_numpy(np.float64)
    arrays["frame_number"] = frame_numbers(samples["name"]).to_numpy()
    arrays["mean_ages"] = np.array(training["mean_ages"], dtype=np.float64)
    arrays |= {f"{task}_train_counts": np.array(n) for task, n in training["counts"].items()}
    arrays |= {
        f"{task}_of_identity": np.array(c) for task, c in training["class_of_person"].items()
    }
    return arrays


def group_arrays(scope: Scope) -> dict[str, np.ndarray]:
    """Return group_<grouping> -> (N,) group names: tasks, further columns, and HandInfo.csv's."""
    samples, info = scope.samples, scope.files.root / "HandInfo.csv"
    groups = {t: pd.Series(class_names(samples, t)) for t, row in TASKS.items() if row.classes}
    groups |= {column: samples[column] for column in further_columns(samples)}
    if info.is_file():
        table = read_hand_info(info).set_index("imageName").reindex(samples["name"])
        worn = table["accessories"].map({0: "none", 1: "some"})
        groups |= {"skin_color": table["skinColor"], "accessories": worn}
    filled = {name: group.fillna("").replace("", "unknown") for name, group in groups.items()}
    return {
        f"group_{name}": group.to_numpy(str)
        for name, group in filled.items()
        if group.nunique() <= MAX_GROUPS and set(group) != {"unknown"}
    }


def distractor_arrays(
    config: EvalConfig,
    state: State,
    scope: Scope,
    predictor: Predictor,
    galleries: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the distractors of each draw and their embeddings.

    Empty unless unseen people of test are matched and the split has distractors. Also empty after
    --mirror left, as the file does not say which distractors are left hands.
    """
    path, photos = scope.files.distractors, scope.files.photos
    if scope.split != "test" or not scope.is_matched or not path.is_file():
        return {}
    if state["config"].get("mirror") == "left":
        return {}
    table = read_csv(path, ("draw", "image_path"), "")
    if table.empty:  # the other aspects have no photos
        return {}
    once = table.drop_duplicates("image_path")[["image_path"]]
    samples = parse_samples(once.assign(id="distractor"), path)
    missing = missing_photos(samples, photos)
    if missing:
        logger.warning(
            "%d of %d distractors of %s are missing from %s: extended galleries are left out",
            *(len(missing), len(samples), path, photos),
        )
        return {}
    index, n_draws = pd.factorize(table["image_path"])[0], len(galleries["galleries"])
    draws = [index[table["draw"] == draw] for draw in table["draw"].unique()]
    if len(draws) != n_draws or len({len(draw) for draw in draws}) > 1:
        raise UserError(
            f"not {n_draws} draws of the same number of photos: {path}. Rerun dataset_11k_split.py"
        )
    return {
        "distractors": np.stack(draws),
        "distractor_embedding": predict(config, predictor, samples, photos).embeddings,
    }


def val_arrays(
    config: EvalConfig, state: State, scope: Scope, predictor: Predictor
) -> dict[str, np.ndarray]:
    """Return embeddings, people and frame numbers of val, on whose people thresholds are set.

    Empty unless unseen people of test are matched, the people of val are unseen too, and val is
    unchanged since the training.
    """
    path = scope.files.split("val")
    unseen = scope.is_matched and "val" in PROTOCOLS[scope.files.protocol].unseen
    if scope.split != "test" or not unseen or not path.is_file():
        return {}
    if fingerprint(read_run_split(scope, "val", state)) != state["fingerprints"]["val"]:
        return {}
    samples = read_run_samples([scope.files], "val", state["config"])
    check_photos(samples, scope.files.photos, path)
    return {
        "val_embedding": predict(config, predictor, samples, scope.files.photos).embeddings,
        "val_people": samples["id"].to_numpy(str),
        "val_frame_number": frame_numbers(samples["name"]).to_numpy(),
    }


def training_arrays(
    config: EvalConfig, state: State, scope: Scope, predictor: Predictor
) -> dict[str, np.ndarray]:
    """Return labels and features of the training photos and features of the scope's: of baselines.

    Embeddings only if unseen people are matched. Empty if train has changed since the training.
    """
    trained, photos = training_samples(state, scope), scope.files.photos
    if trained is None:
        return {}
    check_photos(trained, photos, scope.files.split("train"))
    labels = predictor.label_space.encode(trained)
    found = {f"training_{t}_true": labels[:, i] for i, t in enumerate(predictor.label_space.tasks)}
    found["training_people"] = trained["id"].to_numpy(str)
    if scope.is_matched:
        found["training_embedding"] = predict(config, predictor, trained, photos).embeddings
    # Of the whole aspects, so that all protocols and folds share the cached features.
    everyone = read_everyone(scope.files, state)
    everyone = pd.concat([everyone, scope.samples, trained]).drop_duplicates("name")
    everyone = everyone[~everyone["name"].isin(missing_photos(everyone, photos))]
    try:
        features = compute_features(
            everyone, photos, state["config"], predictor, config.num_workers
        )
    except UserError as error:  # a broken photo of another split
        logger.warning("no baselines of pixels and ImageNet features: %s", error)
        return found
    rows = pd.Series(np.arange(len(everyone)), index=everyone["name"])
    for name, values in features.items():
        found[name] = values[rows[scope.samples["name"]]]
        found[f"training_{name}"] = values[rows[trained["name"]]]
    return found


# ----------------------------------------------------------------------------- results


def describe(scope: Scope, state: State, checkpoint: Path) -> dict[str, Any]:
    """Return the facts of metrics.json, without measures."""
    split, protocol = scope.split, scope.files.protocol
    unchanged, leaked = None, None
    if not scope.cross_hand:
        found = fingerprint(read_run_split(scope, split, state))
        unchanged = found == state["fingerprints"].get(split)
    trained = training_samples(state, scope)
    if trained is not None and split != "train":
        names = pd.concat([scope.samples["name"], trained["name"]])
        digests = duplicate_digests(names, scope.files.photos)
        leaked = leakage(scope.samples, trained, digests)
    calibrated = split == "val" and not scope.cross_hand and bool(state["temperature"])
    cross = {
        "trained_on": state["aspect"],
        "people_left_out_as_trained_on": scope.n_people_left_out,
    }
    return {
        "protocol": protocol,
        "protocol_reason": " ".join(PROTOCOLS[protocol].reason.split()),
        "permuted_labels": is_permuted(state),
        "fold": scope.files.fold if PROTOCOLS[protocol].folds > 1 else None,
        "aspect": scope.files.aspect,
        "split": split,
        "split_as_at_training": unchanged,
        "selected_on_reported_split": selected_the_epoch(state, scope),
        "calibrated_on_reported_split": calibrated,
        "cross_hand": cross if scope.cross_hand else None,
        "backbone": state["config"]["backbone"],
        "checkpoint": checkpoint.name,
        "epoch": state["epoch"],
        "seed": state["config"]["seed"],
        "intervals": {"method": INTERVAL_METHOD, "confidence": CONFIDENCE},
        "n_images": len(scope.samples),
        "n_people": scope.samples["id"].nunique(),
        "leakage": leaked,
        "photos": str(scope.files.photos),
        "drawn": (scope.files.root / "synthetic.json").is_file(),  # of dataset_11k_synthetic.py
        "training": {name: state[name] for name in TRAINING_FACTS},
    }


def write_results(
    folder: Path, metrics: Mapping[str, Any], table: pd.DataFrame, arrays: Mapping[str, np.ndarray]
) -> None:
    """Write metrics.json, predictions.csv and predictions.npz."""
    with atomic_write(folder / "predictions.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    with atomic_write(folder / "predictions.npz") as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # its stub has no mapping
    write_json(folder / "metrics.json", metrics)


def print_results(metrics: Mapping[str, Any], table: pd.DataFrame, scope: Scope) -> None:
    """Print a classification report per task, the headline measures, and all class measures."""
    from sklearn.metrics import classification_report

    print(
        f"{metrics['n_images']} photos of {metrics['n_people']} people, {metrics['aspect']}"
        f" {metrics['split']}, protocol {metrics['protocol']}, epoch {metrics['epoch']}"
    )
    rows = {}
    for task in classified_tasks(metrics["tasks"]):
        known = table[table[f"{task}_true"] != ""]
        print(f"\n{TASKS[task].title}\n")
        true, predicted = known[f"{task}_true"], known[f"{task}_pred"]
        print(classification_report(true, predicted, digits=4, zero_division=0))
        block = metrics["tasks"][task]
        shown = [m for m in measures_for(task) if not isinstance(block.get(m.key), dict)]
        rows[task] = {m.name: m.unit.format(block.get(m.key)) for m in shown}
    print(*headline_table(metrics["tasks"]), sep="\n")
    for explain in (single_class_warning, temperature_warning):
        if warning := explain(metrics["tasks"]):
            print(f"\n{warning}")
    print(explain_baselines(scope.unseen) if "identity" in scope.tasks else "", end="\n\n")
    print(pd.DataFrame(rows).fillna("").to_string())


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config = parse_config(EvalConfig, __doc__, argv)
    setup_logging()
    state = load_checkpoint(config.checkpoint, mapped=True)
    scope = read_scope(config, state)
    facts = describe(scope, state, config.checkpoint)
    if facts["split_as_at_training"] is False:
        logger.warning(
            "%s has changed since the training: some of its photos may have been trained on",
            scope.files.split(scope.split),
        )
    galleries = {"galleries": read_galleries(scope)} if scope.is_matched else {}
    predictor = build_predictor(
        state, device=config.device, amp=config.amp, batch_size=config.batch_size
    )
    state = without_tensors(state)  # the predictor has its own
    splits = [scope.files.split(split) for split in (scope.split, *SPLITS)]
    sources = [*splits, scope.files.attributes]
    with name_all_broken_photos(scope.files.photos, sources, config.num_workers):
        predictions = predict(config, predictor, scope.samples, scope.files.photos)
        arrays = {
            **build_arrays(scope, predictions, predictor, state["training"]),
            **training_arrays(config, state, scope, predictor),
            **val_arrays(config, state, scope, predictor),
            **galleries,
            **distractor_arrays(config, state, scope, predictor, galleries),
        }
    table = build_table(scope.samples, predictions, predictor)
    if len(scope.samples) > MAX_COMPARED_PHOTOS and "identity" in scope.tasks:
        logger.warning(
            "%d photos: embeddings are compared only for up to %d",
            *(len(scope.samples), MAX_COMPARED_PHOTOS),
        )
    tasks = dict.fromkeys(TASKS) | compute_metrics(arrays, scope.tasks, unseen=scope.unseen)
    given = sys.argv[1:] if argv is None else argv
    metrics = {
        **to_json({**facts, "tasks": tasks}),
        "commit": git_commit(),
        "command": shlex.join(["python", "test.py", *given]),
        "amp": predictor.amp,
        "environment": describe_environment(predictor.device),
    }
    folder = evaluation_dir(config.checkpoint, scope.files.aspect, scope.split)
    write_results(folder, metrics, table, arrays)
    print_results(metrics, table, scope)
    if exposure := describe_exposure(state, scope):
        print(exposure)
    page = write_report(folder, photos=None if config.no_photos else scope.files.photos)
    print(f"\nwrote {folder}; to read: {page}")
    print(f"predict other photos: python predict.py --checkpoint {config.checkpoint} PHOTO")
    return 0


if __name__ == "__main__":
    sys.exit(main())
