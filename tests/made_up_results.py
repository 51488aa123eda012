"""Made-up results of test.py and train.py, as files, for the tests of the reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from dataset_11k import AGE_GROUPS, TASKS
from measures.metrics_json import compute_metrics, to_json

NASTY = "<script>alert('$x$')</script> & \"$100\" {{ 7 * 7 }} \U0001f91a"
LONG = "long-" * 40
PHOTO = "a photo $1$ <b>.jpg"
N_PHOTOS, N_PEOPLE = 72, 12
PEOPLE = (NASTY, LONG, *(f"{i:07d}" for i in range(2, N_PEOPLE)))
CLASSES = {"identity": PEOPLE, "gender": ("female", "male"), "age": tuple(AGE_GROUPS)}


def made_up_arrays(unseen: bool) -> dict[str, np.ndarray]:
    """Return predictions.npz: of unseen people identity has no known class."""
    numbers = np.random.default_rng(0)
    person = np.arange(N_PHOTOS) % N_PEOPLE
    labels = {"identity": person, "gender": person % 2, "age": person % len(AGE_GROUPS)}
    people = np.array(PEOPLE)[person]
    arrays = {
        "embedding": numbers.normal(size=(N_PHOTOS, 8)) + 2 * np.eye(N_PEOPLE, 8)[person],
        "people": people,
        "frame_number": np.arange(N_PHOTOS) * 3.0,
        "age_years": 20 + labels["age"],
        "mean_ages": 20.0 + np.arange(len(AGE_GROUPS)),
        "group_gender": np.array(CLASSES["gender"])[labels["gender"]],
        "group_skin_color": np.where(person < 2, NASTY, "fair"),
    }
    for task, names in CLASSES.items():
        logits = numbers.normal(size=(N_PHOTOS, len(names)))
        logits[np.arange(N_PHOTOS), labels[task]] += 2
        hidden = unseen and task == "identity"
        arrays[f"{task}_true"] = np.full(N_PHOTOS, -1) if hidden else labels[task]
        arrays[f"{task}_logits"], arrays[f"{task}_classes"] = logits, np.array(names)
        arrays[f"{task}_temperature"] = np.array(1.5)
        arrays[f"{task}_train_counts"] = np.arange(1, len(names) + 1)
    for task in ("gender", "age"):
        arrays[f"{task}_of_identity"] = np.arange(N_PEOPLE) % len(CLASSES[task])
    if unseen:
        arrays["galleries"] = np.stack([np.arange(N_PEOPLE), np.arange(N_PEOPLE) + N_PEOPLE])
    return arrays


@cache
def _tasks_as_text(unseen: bool) -> str:
    return json.dumps(
        to_json(compute_metrics(made_up_arrays(unseen), list(CLASSES), unseen=unseen))
    )


def made_up_metrics(unseen: bool = False) -> dict[str, Any]:
    """Return metrics.json with every key."""
    return {
        **{"protocol": "subject-disjoint" if unseen else "paper", "fold": 0 if unseen else None},
        **{"aspect": "dorsal_dr", "split": "test" if unseen else "val", "backbone": "swin_t"},
        **{"split_as_at_training": True, "cross_hand": None, "epoch": 3, "seed": 42},
        **{"selected_on_reported_split": True, "calibrated_on_reported_split": False},
        **{"n_images": N_PHOTOS, "n_people": N_PEOPLE, "tasks": json.loads(_tasks_as_text(unseen))},
        **{"protocol_reason": "Half of the photos train.", "permuted_labels": False},
        "leakage": {"person_in_train": 0.99, "within_1": 0.7, "within_2": 0.9, "within_5": None},
        "command": f"python test.py --checkpoint '{NASTY}'",
        "training": {"config": {"lr": 0.0008, "run_dir": NASTY}, "commit": "def456"},
        "environment": {"torch": "2.14.1"},
    }


def write_results(
    folder: Path, *, unseen: bool = False, metrics: Mapping[str, Any] | None = None
) -> Path:
    """Write what test.py leaves; one id is markup, one is long, one gender is wrong for sure."""
    arrays = made_up_arrays(unseen)
    table: dict[str, Any] = {"image_path": [f"./11k/Hands/{PHOTO}"] * N_PHOTOS}
    truth = {"identity": arrays["people"], "gender": arrays["group_gender"]}
    truth["age"] = np.array(CLASSES["age"])[arrays["age_true"]]
    for task, names in CLASSES.items():
        table[f"{task}_true"] = truth[task]
        table[f"{task}_pred"] = np.array(names)[arrays[f"{task}_logits"].argmax(axis=1)]
        table[f"{task}_prob"] = np.linspace(0.5, 0.99, N_PHOTOS)
    folder.mkdir(parents=True)
    pd.DataFrame(table).to_csv(folder / "predictions.csv", index=False)
    np.savez(folder / "predictions.npz", **arrays)  # type: ignore[arg-type]  # its stub
    text = json.dumps(made_up_metrics(unseen) if metrics is None else metrics)
    (folder / "metrics.json").write_text(text)
    return folder


def write_photo(folder: Path) -> Path:
    """Write the one photo that all predictions are of."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / PHOTO, "JPEG")
    return folder


def write_run(run_dir: Path, *, unseen: bool = False) -> Path:
    """Write what train.py leaves of three epochs, of which the second was the best."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = []
    for epoch in (1, 2, 3):
        record: dict[str, Any] = {"epoch": epoch, "lr": 1e-4, "train_loss": 3.0 / epoch}
        for task in TASKS:
            record |= {f"train_loss_{task}": 1.0 / epoch, f"train_accuracy_{task}": 0.5}
            scored = epoch == 2 and not (unseen and task == "identity")
            record[f"val_balanced_accuracy_{task}"] = 0.6 if scored else None
        record |= {"val_loss": 1.0 if epoch == 2 else None}
        record["val_rank_1"] = 0.5 if unseen and epoch == 2 else None
        lines.append(json.dumps(record) + "\n")
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    config: dict[str, Any] = {"backbone": "swin_t", "protocol": "paper", "cache_dir": NASTY}
    facts = {
        "resolved": {"amp": "off", "mean": [0.5] * 3, "std": [0.5] * 3, "decode_size": 0},
        "label_space": {"gender": ["female", "male"]},
        "environment": {},
        "commit": "c0ffee",
        "fingerprints": {"train": "0ff", "val": "0ff"},
    }
    needed: dict[str, Any] = {
        "fold": None,
        "permute_labels": False,
        "image_size": 32,
        "seed": 42,
        "N_epochs": 3,
    }
    config = {**needed, **config}
    run = {"config": config, "aspect": "dorsal_dr", **facts}
    (run_dir / "config.json").write_text(json.dumps(run))
    (run_dir / "checkpoint-000002-best.pth").write_text("")
    return run_dir
