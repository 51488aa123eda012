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
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from measures.classes import ClassPredictions, class_means, softmax
from measures.pairs import cosine_similarity

FEATURES = ("thumbnail", "corners", "background", "imagenet")

NEAREST_SCALE = 1000.0  # of similarities as logits: nearly all probability is on the nearest photo

PENALTY = 1.0  # C of scikit-learn

PCA_SIZE = 256  # dimensions before whitening

SHRINKAGE = 0.1  # of the within-person covariance, whose rank may be below PCA_SIZE

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
    for name in FEATURES if len(trained) else ():
        if f"training_{name}" in arrays:
            evaluated, training = centred(arrays, name)
            photos = evaluated[known], training[trained], labels[trained]
            found[f"{name}_nearest"] = nearest_logits(*photos, shape[1])
            people = arrays["training_people"][trained]
            found[f"{name}_logistic"] = logistic_logits(*photos, people, shape[1])
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


def logistic_logits(
    evaluated: np.ndarray,
    training: np.ndarray,
    labels: np.ndarray,
    people: np.ndarray,
    n_classes: int,
) -> np.ndarray:
    """Return the log probabilities, (N, C), of a logistic regression on standardised features.

    Args:
        evaluated: (N, D) features.
        training: (M, D) features.
        labels: (M,) classes of the training photos.
        people: (M,) person on the photo. All classes have equal weight, and within a class all
            people, however many photos they have.
        n_classes: C.
    """
    logits = np.full((len(evaluated), n_classes), np.log(np.finfo(np.float64).tiny))
    present = np.unique(labels)
    if len(present) == 1 or not len(evaluated):
        logits[:, present] = 0.0
        return logits
    pair, photos = np.unique(
        [labels, np.unique(people, return_inverse=True)[1]],
        axis=1,
        return_inverse=True,
        return_counts=True,
    )[1:]
    weights = 1 / photos[pair]
    weights *= len(labels) / len(present) / np.bincount(labels, weights)[labels]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
    model.fit(training, labels, logisticregression__sample_weight=weights)
    logits[:, present] = to_logits(model.predict_proba(evaluated))
    return logits


# ----------------------------------------------------------------------------- pairs


def baseline_embeddings(arrays: Arrays) -> dict[str, np.ndarray]:
    """Return the embeddings, (N, D) float64, by which baselines compare photos."""
    found = {}
    for name in FEATURES:
        if f"training_{name}" in arrays:
            found[name], training = centred(arrays, name)
            if name == "imagenet":
                people = arrays["training_people"]
                found[f"{name}_whitened"] = whiten(found[name], training, people)
    return found


def whiten(evaluated: np.ndarray, training: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Return embeddings, (N, K), after within-class covariance normalisation (WCCN).

    A principal component analysis of the training photos comes before it.

    Args:
        evaluated: (N, D).
        training: (M, D).
        people: (M,) person on the training photo.

    Source: Hatch et al. 2006, Within-class covariance normalization for SVM-based speaker
    recognition, Interspeech.
    """
    mean = training.mean(axis=0)
    axes = np.linalg.svd(training - mean, full_matrices=False)[2][:PCA_SIZE].T
    reduced = (training - mean) @ axes
    _, person = np.unique(people, return_inverse=True)
    n_people = person.max() + 1
    centres = np.stack([class_means(column, person, n_people) for column in reduced.T], axis=1)
    within = np.cov((reduced - centres[person]).T, bias=True)
    size = axes.shape[1]
    shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / size * np.eye(size)
    return (evaluated - mean) @ axes @ np.linalg.cholesky(np.linalg.inv(shrunk))
