"""Baselines: predictions and embeddings that results are compared with.

`compute_baselines` predicts the classes of a task, `baseline_embeddings` returns what pairs of
photos are compared by. Features of a photo are its thumbnail (8x8 pixels), the thumbnail's corners,
its background (a thumbnail without the hand), and the output of the backbone before any training on
hands (ImageNet weights). Logistic regressions and whitening are fitted on train; identity_lookup
and embedding_nearest use the trained model. Features come from predictions.npz as `<name>` (N, D)
and `training_<name>` (M, D), names of `FEATURES`; a baseline whose arrays are absent is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from sklearn.preprocessing import StandardScaler

from measures.classes import ClassPredictions, softmax
from measures.linear import fit_logistic, fit_whitening
from measures.pairs import cosine_similarity

FEATURES = ("thumbnail", "corners", "background", "imagenet")

NEAREST_SCALE = 1000.0  # of similarities as logits: nearly all probability is on the nearest photo

PENALTY = 1.0  # C of scikit-learn

PCA_SIZE = 256  # dimensions before whitening

Arrays = Mapping[str, np.ndarray]


def centred(arrays: Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features of the evaluated and the training photos, (N, D) and (M, D) float64.

    Pixels have the mean of training removed: all photos show much the same scene.
    """
    evaluated, training = (
        arrays[key].reshape(len(arrays[key]), -1).astype(np.float64)
        for key in (name, f"training_{name}")
    )
    mean = training.mean(axis=0) if name != "imagenet" else 0.0
    return evaluated - mean, training - mean


# ----------------------------------------------------------------------------- classes


def compute_baselines(
    task: str, arrays: Arrays, predictions: ClassPredictions
) -> dict[str, ClassPredictions]:
    """Return what the baselines of `registry.BASELINES` predict for the same photos.

    Args:
        task: of `TASKS`.
        arrays: of predictions.npz.
        predictions: of the model, for the photos of a known class.
    """
    if f"{task}_train_counts" not in arrays:
        return {}
    known = arrays[f"{task}_true"] >= 0
    counts = arrays[f"{task}_train_counts"].astype(np.float64)
    shape = predictions.logits.shape
    found = {"constant": np.broadcast_to(to_logits(counts), shape)}
    labels = arrays.get(f"training_{task}_true", np.empty(0))
    trained = np.flatnonzero(labels >= 0)
    for name in FEATURES if len(trained) and known.any() else ():
        if f"training_{name}" in arrays:
            evaluated, training = centred(arrays, name)
            photos = training[trained], labels[trained]
            found[f"{name}_nearest"] = nearest_logits(evaluated[known], *photos, shape[1])
            people = arrays["training_people"][trained]
            scaler = StandardScaler().fit(photos[0])
            scaled = scaler.transform(photos[0]), *photos[1:]
            logistic = fit_logistic(*scaled, people, shape[1], PENALTY)
            found[f"{name}_logistic"] = logistic(scaler.transform(evaluated[known]))
    if {"identity_logits", f"{task}_of_identity"} <= arrays.keys():
        identity = softmax(arrays["identity_logits"][known])
        found["identity_lookup"] = lookup_logits(identity, arrays[f"{task}_of_identity"], counts)
    if "training_embedding" in arrays and len(trained):
        embeddings = arrays["embedding"][known], arrays["training_embedding"][trained]
        found["embedding_nearest"] = nearest_logits(*embeddings, labels[trained], shape[1])
    return {name: replace(predictions, logits=x, temperature=1.0) for name, x in found.items()}


def to_logits(weights: np.ndarray) -> np.ndarray:
    """Return logits whose softmax is proportional to `weights`, of which some may be 0."""
    return np.log(np.maximum(weights, np.finfo(np.float64).tiny))


def lookup_logits(identity: np.ndarray, classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return logits, (N, C), of the classes of the people that the identity head names.

    Args:
        identity: (N, P) probabilities of people.
        classes: (P,) training class of each person, -1: unknown.
        counts: (C,) training photos, which decide where no named person's class is known.
    """
    of_class = np.eye(len(counts))[classes] * (classes >= 0)[:, None]
    prior = 1e-9 * counts / counts.sum()
    return to_logits(identity @ of_class + prior)


def nearest_logits(
    evaluated: np.ndarray, training: np.ndarray, labels: np.ndarray, n_classes: int
) -> np.ndarray:
    """Return each class's highest cosine similarity to a training photo, as logits, (N, C).

    The most probable class is that of the most similar training photo.

    Args:
        evaluated: (N, D) features.
        training: (M, D) features.
        labels: (M,) classes of the training photos.
        n_classes: C.
    """
    similarity = cosine_similarity(evaluated, training)
    best = np.full((len(evaluated), n_classes), -1.0)
    for label in np.unique(labels):
        best[:, label] = similarity[:, labels == label].max(axis=1)
    return NEAREST_SCALE * best


# ----------------------------------------------------------------------------- pairs


def baseline_embeddings(arrays: Arrays) -> dict[str, np.ndarray]:
    """Return the embeddings, (N, D) float64, by which baselines compare photos."""
    found = {}
    for name in FEATURES:
        if f"training_{name}" in arrays:
            found[name], training = centred(arrays, name)
            if name == "imagenet":
                people = arrays["training_people"]
                found[f"{name}_whitened"] = fit_whitening(training, people, PCA_SIZE)(found[name])
    return found
