"""Parts of recipe strong, and what was tried beyond it, on val and test of subject-disjoint folds.

    python docs/results/ablation.py --attributes_file CSV --backbone_weights FILE [--study NAME]

fits the recipe's linear parts to features of EfficientNet-Lite0 with a part changed, and writes
ablation.csv beside this file: means over the five folds. Two other studies add their lines:

last_stages (folds 0 and 1) trains the two last stages of the backbone after the fit, for 3 epochs
on cached maps of the stage before, and fits the linear parts again; it needs
pytorch-metric-learning. aspects fits the linear parts to palmar_pr, palmar_pl and dorsal_dr
together; their CSVs lie beside --attributes_file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch.nn import functional
from torchvision.transforms import v2

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from data.splits import LEFT_SUFFIX, locate, read_run_samples  # noqa: E402
from data.tables import read_samples  # noqa: E402
from dataset_11k import AGE_GROUPS, PhotoReader, age_group, resize_size  # noqa: E402
from measures.linear import Linear, balanced_weights, fit_logistic, fit_whitening  # noqa: E402
from measures.pairs import cosine_similarity, gallery_ranks  # noqa: E402
from model import IGAENet  # noqa: E402
from train import RECIPES, STRENGTHS, balanced_loss, first_photo_rank_1, set_linear  # noqa: E402

BACKBONE, NECK, SEED = "tf_efficientnet_lite0", RECIPES["frozen"]["neck"], 42
PROTOCOL = "subject-disjoint"
PALMS = ("palmar_pr", "palmar_pl")

# Name -> changed photos, (3, H, W) uint8 each.
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mirrored": lambda photo: photo.flip(2),
    "augmented": v2.Compose(
        [
            v2.RandomAffine(12, (0.04, 0.04), (0.85, 1.1), fill=255),
            v2.ColorJitter(0.2, 0.2, 0.2, 0.01),
            v2.RandomErasing(0.3, (0.02, 0.12)),
        ]
    ),
}


@dataclass(frozen=True)
class Fold:
    """Samples of a fold, by split, and the galleries of test as rows of it."""

    samples: dict[str, pd.DataFrame]
    galleries: np.ndarray

    def rows(self, table: pd.Series, split: str) -> np.ndarray:
        """Return the rows of `table`, arrays by name of the photo, of a split as one array."""
        return np.stack([table[name] for name in self.samples[split]["name"]])

    def people(self, split: str) -> np.ndarray:
        """Return the person on each photo."""
        return self.samples[split]["id"].to_numpy()

    def labels(self, split: str) -> dict[str, np.ndarray]:
        """Return the classes of gender and age group."""
        samples, groups = self.samples[split], list(AGE_GROUPS)
        ages = np.array([groups.index(age_group(age)) for age in samples["age"]])
        return {"gender": (samples["gender"] == "male").to_numpy(int), "age": ages}


def read_fold(attributes: Path, number: int, added: Sequence[Path] = (), **config: str) -> Fold:
    """Return a fold of subject-disjoint.

    Args:
        attributes: CSV of the aspect.
        number: of the fold.
        added: CSVs of aspects whose train samples are added.
        config: mirror and identity_per, as flags of train.py.
    """
    files = [locate(path, PROTOCOL, number) for path in (attributes, *added)]
    samples = {
        split: read_run_samples(files if split == "train" else files[:1], split, config)
        for split in ("train", "val", "test")
    }
    positions = {path: i for i, path in enumerate(samples["test"]["image_path"])}
    draws = pd.read_csv(files[0].gallery).groupby("draw")["image_path"]
    return Fold(samples, np.stack([[positions[path] for path in draw] for _, draw in draws]))


def evaluate(
    fold: Fold, features: dict[str, np.ndarray], widths: Sequence[int], n_copies: int = 1
) -> tuple[dict[str, float], Linear, dict[str, Linear]]:
    """Fit neck and heads, and return scores on val and test, and what was fitted.

    Args:
        fold: whose photos they are.
        features: of each split, (N, D); those of train may follow each other in several copies.
        widths: as in `fit_whitening`.
        n_copies: number of these copies.
    """
    people = np.tile(fold.people("train"), n_copies)
    neck = fit_whitening(features["train"], people, NECK, widths)
    embeddings = {split: neck(values) for split, values in features.items()}
    similarity = cosine_similarity(embeddings["test"], embeddings["test"])
    ranks = gallery_ranks(similarity, fold.people("test"), fold.galleries)
    scores = {
        "val_rank_1": first_photo_rank_1(embeddings["val"], fold.people("val")) or np.nan,
        "test_rank_1": float((ranks[~np.isnan(ranks)] == 1).mean()),
    }
    heads = {}
    for task, n_classes in (("gender", 2), ("age", len(AGE_GROUPS))):
        labels = {split: fold.labels(split)[task] for split in features}
        targets = np.tile(labels["train"], n_copies)
        fitted = [
            fit_logistic(embeddings["train"], targets, people, n_classes, strength)
            for strength in STRENGTHS
        ]
        val = embeddings["val"], labels["val"], fold.people("val")
        heads[task] = min(fitted, key=lambda head: balanced_loss(head, *val))
        for split in ("val", "test"):
            logits = heads[task](embeddings[split])
            name, true = f"{split}_{task}", labels[split]
            scores[name] = balanced_accuracy_score(true, logits.argmax(axis=1))
            if n_classes == 2:
                scores[f"{name}_auc"] = roc_auc_score(true, logits[:, 1] - logits[:, 0])
    return scores, neck, heads


class Photos:
    """All photos of an aspect as the model's input, and what the model makes of them.

    Args:
        attributes: CSV of the aspect.
        model: EfficientNet-Lite0.
        image_size: pixels.
    """

    def __init__(self, attributes: Path, model: IGAENet, image_size: int) -> None:
        samples, folder = read_samples(attributes), locate(attributes, "paper").photos
        reader = PhotoReader(image_size, 2 * resize_size(image_size))
        self.names = samples["name"].tolist()
        pixels = [np.array(reader.read(folder / name)) for name in self.names]
        self.pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (model.mean, model.std))

    @torch.inference_mode()
    def compute(
        self, function: Callable[[torch.Tensor], torch.Tensor], view: str = ""
    ) -> pd.Series:
        """Return what `function` makes of each photo, by its name."""
        torch.manual_seed(SEED)
        found: list[np.ndarray] = []
        for photos in self.pixels.split(32):
            if view:
                photos = torch.stack([VIEWS[view](photo) for photo in photos])
            images = ((photos.float() / 255) - self.mean) / self.std
            with torch.autocast("cpu", torch.bfloat16):
                output = function(images.contiguous(memory_format=torch.channels_last))
            found += list(output.float().numpy())
        return pd.Series(found, index=self.names)


def change_features(attributes: Path, weights: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the name of a change of the features, and the scores of each fold."""
    folds = [read_fold(attributes, k) for k in locate(attributes, PROTOCOL, 0).folds]

    def score(tables: Sequence[pd.Series], widths: Sequence[int], views: str = "") -> Any:
        for fold in folds:
            features = {
                split: np.concatenate([fold.rows(table, split) for table in used])
                for split in fold.samples
                for used in [tables if split == "train" else tables[:1]]
            }
            yield evaluate(fold, features, widths, len(tables))[0]

    for image_size in (224, 320, 384, 448):
        model = build_model(weights, image_size, {})
        photos, widths = Photos(attributes, model, image_size), model.feature_widths
        plain = photos.compute(model.pool)
        yield from ((f"{image_size} pixels", s) for s in score([plain], widths))
        if image_size > 320:
            continue
        last = plain.map(lambda x, n=widths[0]: x[:n])
        yield from ((f"{image_size} pixels, last map alone", s) for s in score([last], widths[:1]))
        yield from ((f"{image_size} pixels, parts not scaled", s) for s in score([plain], []))
        mirrored = photos.compute(model.pool, "mirrored")
        mean = (plain + mirrored) / 2
        yield from (
            (f"{image_size} pixels, mean with mirror image", s) for s in score([mean], widths)
        )
        copies = [plain, photos.compute(model.pool, "augmented")]
        name = f"{image_size} pixels, fitted to augmented copies as well"
        yield from ((name, s) for s in score(copies, widths))


def build_model(weights: Path, image_size: int, n_classes: dict[str, int]) -> IGAENet:
    """Return EfficientNet-Lite0 with pooling of several levels and a neck."""
    model = IGAENet(
        BACKBONE,
        n_classes,
        backbone_weights=weights,
        image_size=image_size,
        multi_level=True,
        neck=NECK,
    )
    return model.eval().to(memory_format=torch.channels_last)


# Name -> metric loss (empty: none), weight of cross-entropy of identity, learning rate, photos of a
# person that follow each other (1: all shuffled), balanced by person, augmented copies.
TUNINGS: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "augmentation": {"augmented": True},
    "gender and age balanced by person, identity .1": {"balanced": True, "identity": 0.1},
    "learning rate 5e-5": {"lr": 5e-5},
    "triplet loss, batch-hard, 4 photos per person": {"metric": "triplet", "together": 4},
    "multi-similarity loss, 4 photos per person": {"metric": "multi_similarity", "together": 4},
    "circle loss, 4 photos per person": {"metric": "circle", "together": 4},
    "ArcFace without cross-entropy": {"metric": "arcface", "identity": 0.0},
}


def metric_loss(name: str, n_people: int) -> tuple[Any, Any]:
    """Return a loss of pytorch-metric-learning and its miner, or None."""
    from pytorch_metric_learning import distances, losses, miners

    cosine = distances.CosineSimilarity()
    return {
        "triplet": lambda: (
            losses.TripletMarginLoss(margin=0.2, distance=cosine),
            miners.BatchHardMiner(distance=cosine),
        ),
        "multi_similarity": lambda: (losses.MultiSimilarityLoss(), None),
        "circle": lambda: (losses.CircleLoss(m=0.4, gamma=80), None),
        "arcface": lambda: (losses.ArcFaceLoss(n_people, NECK), None),
    }[name]()


def draw_order(people: np.ndarray, together: int, random: np.random.Generator) -> np.ndarray:
    """Return the rows of an epoch; each run shows `together` photos of a person, far apart."""
    runs = []
    for person in np.unique(people):
        rows = np.roll(np.flatnonzero(people == person), random.integers(len(people)))
        n_runs = -(-len(rows) // together)
        runs += [rows[i::n_runs] for i in range(n_runs)]
    return np.concatenate([runs[i] for i in random.permutation(len(runs))])


class LastStages(torch.nn.Module):
    """The stages of EfficientNet-Lite0 that follow the maps of stride 16."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.stages = torch.nn.Sequential(*backbone.blocks[5:], backbone.conv_head, backbone.bn2)
        self.pool = backbone.forward_head

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the pooled last map, of length 1."""
        return functional.normalize(self.pool(self.stages(maps)).float())


def tune(
    fold: Fold,
    weights: Path,
    maps: Sequence[pd.Series],
    lower: pd.Series,
    *,
    metric: str = "",
    identity: float = 1.0,
    lr: float = 2e-4,
    together: int = 1,
    balanced: bool = False,
    augmented: bool = False,
    n_epochs: int = 3,
) -> dict[str, float]:
    """Train the last stages after a fit, fit again, and return the scores.

    Args:
        fold: to train on.
        weights: ImageNet weights.
        maps: input of `LastStages` by photo: plain, augmented.
        lower: the other parts of the features by photo.
        metric: a name of `metric_loss`; empty: none.
        identity: weight of the cross-entropy of identity.
        lr: largest rate of neck and heads; half of it for the stages.
        together: as in `draw_order`.
        balanced: weigh gender and age by `balanced_weights`.
        augmented: train on plain and augmented photos.
        n_epochs: number of epochs.
    """
    torch.manual_seed(SEED)
    random, people = np.random.default_rng(SEED), fold.people("train")
    person = np.unique(people, return_inverse=True)[1]
    labels = {"identity": person, **fold.labels("train")}
    n_classes = {"identity": person.max() + 1, "gender": 2, "age": len(AGE_GROUPS)}
    model = build_model(weights, 224, n_classes)
    stages = LastStages(model.backbone)
    inputs = {
        split: [torch.from_numpy(fold.rows(m, split)) for m in maps] for split in fold.samples
    }
    rest = {split: fold.rows(lower, split) for split in fold.samples}

    def compute() -> dict[str, np.ndarray]:
        stages.eval()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            top = {s: torch.cat([stages(x) for x in m[0].split(64)]) for s, m in inputs.items()}
        return {s: np.concatenate([top[s].numpy(), rest[s]], axis=1).astype(float) for s in top}

    _, neck, heads = evaluate(fold, compute(), model.feature_widths)
    features = neck(compute()["train"])
    heads["identity"] = fit_logistic(features, person, people, n_classes["identity"], STRENGTHS[0])
    set_linear(model.neck, neck)
    for task, head in heads.items():
        set_linear(model.get_submodule(f"heads.{task}.0"), head)
    groups = [
        {"params": list(stages.parameters()), "scale": 0.5},
        {"params": [*model.neck.parameters(), *model.heads.parameters()], "scale": 1.0},
    ]
    criterion, miner = metric_loss(metric, n_classes["identity"]) if metric else (None, None)
    if criterion is not None and list(criterion.parameters()):
        groups.append({"params": list(criterion.parameters()), "scale": 1.0})
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=5e-4)
    weigh = {task: np.ones(len(people)) for task in labels}
    if balanced:
        weigh |= {task: balanced_weights(labels[task], people) for task in ("gender", "age")}
    task_weights, batch_size = {"identity": identity, "gender": 1.0, "age": 1.0}, 32
    n_steps = n_epochs * (len(people) // batch_size)
    for step in range(n_steps):
        place = step % (n_steps // n_epochs)
        if place == 0:
            stages.train()
            order = draw_order(people, together, random)
        rows = order[place * batch_size :][:batch_size]
        copy = random.integers(1 + augmented, size=len(rows))
        for group in optimizer.param_groups:
            warm = min(1, (step + 1) / 20)
            group["lr"] = lr * group["scale"] * warm * (0.5 + 0.5 * np.cos(np.pi * step / n_steps))
        images = torch.stack([inputs["train"][c][row] for c, row in zip(copy, rows, strict=True)])
        with torch.autocast("cpu", torch.bfloat16):
            top = stages(images.contiguous(memory_format=torch.channels_last))
        below = torch.from_numpy(rest["train"][rows])
        embeddings = model.neck(torch.cat([top, below], dim=1))
        loss = torch.zeros(())
        for task, logits in model.classify(embeddings).items():
            truth = torch.from_numpy(labels[task][rows])
            each = functional.cross_entropy(logits, truth, label_smoothing=0.1, reduction="none")
            importance = torch.from_numpy(weigh[task][rows]).float()
            loss = loss + task_weights[task] * (each * importance).mean()
        if criterion is not None:
            truth = torch.from_numpy(person[rows])
            pairs = (miner(embeddings, truth),) if miner else ()
            loss = loss + criterion(embeddings, truth, *pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return evaluate(fold, compute(), model.feature_widths)[0]


def train_last_stages(attributes: Path, weights: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the name of a way of training the last stages, and the scores of each fold."""
    model = build_model(weights, 224, {})
    photos, backbone = Photos(attributes, model, 224), cast(Any, model.backbone)

    def lower_stages(images: torch.Tensor) -> torch.Tensor:
        return backbone.blocks[:5](backbone.bn1(backbone.conv_stem(images)))

    maps = [photos.compute(lower_stages, view) for view in ("", "augmented")]
    pooled, n_last = photos.compute(model.pool), model.feature_widths[0]
    lower = pooled.map(lambda x: x[n_last:])
    folds = [read_fold(attributes, k) for k in (0, 1)]
    for fold in folds:
        features = {split: fold.rows(pooled, split) for split in fold.samples}
        yield "folds 0 and 1: 224 pixels", evaluate(fold, features, model.feature_widths)[0]
    for name, options in TUNINGS.items():
        for fold in folds:
            scores = tune(fold, weights, maps, lower, **options)
            yield f"folds 0 and 1: last stages trained, {name}", scores


# Aspects that are trained on, and further flags.
ASPECT_TRIALS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "alone": ((), {}),
    "alone, mirrored": ((), {"mirror": "left"}),
    "both palms": (PALMS, {}),
    "both palms, left mirrored": (PALMS, {"mirror": "left"}),
    "both palms, left mirrored, identity per hand": (
        PALMS,
        {"mirror": "left", "identity_per": "hand"},
    ),
    "both palms and dorsal_dr, left mirrored, identity per hand": (
        (*PALMS, "dorsal_dr"),
        {"mirror": "left", "identity_per": "hand"},
    ),
}


def rank_1_across(
    fold: Fold, probe_fold: Fold, probes: np.ndarray, embeddings: np.ndarray
) -> float:
    """Return rank-1 of another aspect's test photos in the galleries of `fold`, by person.

    Args:
        fold: whose test photos are the galleries.
        probe_fold: the same fold of the other aspect.
        probes: embeddings of its test photos.
        embeddings: of the test photos of `fold`.
    """
    people, probe_people = (
        np.array([person.removesuffix(LEFT_SUFFIX) for person in f.people("test")])
        for f in (fold, probe_fold)
    )
    known = np.isin(probe_people, people)
    similarity = cosine_similarity(probes[known], embeddings)
    nearest = [draw[similarity[:, draw].argmax(axis=1)] for draw in fold.galleries]
    return float(np.mean([people[rows] == probe_people[known] for rows in nearest]))


def add_aspects(attributes: Path, weights: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the name of an evaluated aspect and of what was trained on, and each fold's scores."""
    model = build_model(weights, 320, {})
    path_of = {aspect: attributes.with_stem(aspect) for aspect in (*PALMS, "dorsal_dr")}
    photos = {aspect: Photos(path, model, 320) for aspect, path in path_of.items()}
    plain = {aspect: x.compute(model.pool) for aspect, x in photos.items()}
    mirrored = {"palmar_pl": photos["palmar_pl"].compute(model.pool, "mirrored")}
    for aspect in PALMS:
        for name, (trained, config) in ASPECT_TRIALS.items():
            if name == "alone, mirrored" and aspect == "palmar_pr":
                continue
            added = [path_of[other] for other in trained if other != aspect]
            table = pd.concat((plain | (mirrored if config else {})).values())
            for k in locate(attributes, PROTOCOL, 0).folds:
                fold = read_fold(path_of[aspect], k, added, **config)
                features = {split: fold.rows(table, split) for split in fold.samples}
                scores, neck, _ = evaluate(fold, features, model.feature_widths)
                if added:
                    probes = read_fold(added[0], k, (), **config)
                    found = neck(probes.rows(table, "test")), neck(features["test"])
                    scores["test_rank_1_across"] = rank_1_across(fold, probes, *found)
                yield f"{aspect}, 320 pixels: {name}", scores


STUDIES = {
    "features": change_features,
    "last_stages": train_last_stages,
    "aspects": add_aspects,
}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attributes_file", type=Path, required=True)
    parser.add_argument("--backbone_weights", type=Path, required=True)
    parser.add_argument("--study", choices=STUDIES, default="features")
    given = parser.parse_args()
    study = STUDIES[given.study]
    path, lines, start = FOLDER / "ablation.csv", [], time.perf_counter()
    for name, scores in study(given.attributes_file, given.backbone_weights):
        minutes, start = (time.perf_counter() - start) / 60, time.perf_counter()
        lines.append(
            {"trial": name, "backbone": BACKBONE, "seed": SEED, "minutes": minutes} | scores
        )
        print(lines[-1], flush=True)
    table = pd.DataFrame(lines).groupby(["trial", "backbone", "seed"], sort=False).mean().round(3)
    table = table.reset_index()
    if given.study != "features" and path.exists():
        former = pd.read_csv(path)
        table = pd.concat([former[~former["trial"].isin(table["trial"])], table])
    table.to_csv(path, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
