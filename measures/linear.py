"""Linear models of features: whitening, and logistic regression in which people weigh the same.

They are baselines of test.py, and neck and heads of a model that train.py fits (--fit).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from measures.classes import class_means

SHRINKAGE = 0.1  # of the within-person covariance, whose rank may be below its size

TINY = 1e-12  # added to variances, which may be 0

ABSENT_LOGIT = -20.0  # of a class without a training photo


class Linear(NamedTuple):
    """An affine map of D features to K outputs: weight (K, D) and bias (K,), float64."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return the outputs, (N, K), of features, (N, D)."""
        return features @ self.weight.T + self.bias


def fit_whitening(
    features: np.ndarray, people: np.ndarray, size: int, widths: Sequence[int] = ()
) -> Linear:
    """Return the map to embeddings in which a person's photos vary about equally in all directions.

    A principal component analysis keeps `size` dimensions (fewer if features have fewer; the rest
    are 0); within-class covariance normalisation (WCCN) follows. Outputs have the mean square 1.

    Args:
        features: (M, D) of training photos.
        people: (M,) person on the photo.
        size: K.
        widths: of the parts of the features, each of which is scaled to total variance 1; empty:
            features remain as they are.

    Source: Hatch et al. 2006, Within-class covariance normalization for SVM-based speaker
    recognition, Interspeech.
    """
    mean, scale = features.mean(axis=0), np.ones(features.shape[1])
    for part in np.split(np.arange(len(scale)), np.cumsum(widths)[:-1]) if len(widths) else ():
        scale[part] = 1 / np.sqrt(features[:, part].var(axis=0).sum() + TINY)
    features = (features - mean) * scale
    _, deviations, axes = np.linalg.svd(features, full_matrices=False)
    axes = axes[: min(size, (deviations > 1e-6 * deviations[0]).sum())].T
    reduced = features @ axes
    _, person = np.unique(people, return_inverse=True)
    centres = np.stack([class_means(x, person, person.max() + 1) for x in reduced.T], axis=1)
    within = np.cov((reduced - centres[person]).T, bias=True).reshape(axes.shape[1], -1)
    spread = np.trace(within) / len(within) or 1.0  # 0: nobody has two photos
    shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * spread * np.eye(len(within))
    whitening = axes @ np.linalg.cholesky(np.linalg.inv(shrunk))
    whitening /= np.sqrt(np.square(features @ whitening).sum() / len(features) / size)
    weight = np.zeros((size, len(mean)))
    weight[: whitening.shape[1]] = whitening.T * scale
    return Linear(weight, -weight @ mean)


def balanced_weights(labels: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Return weights of photos, mean 1: all classes weigh the same, in each all people.

    Args:
        labels: (M,) classes from 0.
        people: (M,) person on the photo.
    """
    pairs = np.stack([labels, np.unique(people, return_inverse=True)[1]])
    _, pair, photos = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    weights = 1 / photos[pair]
    per_class = np.bincount(labels, weights)
    return weights * len(labels) / (per_class > 0).sum() / per_class[labels]


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, people: np.ndarray, n_classes: int, strength: float
) -> Linear:
    """Return a logistic regression whose outputs are logits; see `balanced_weights`.

    Args:
        features: (M, D), of variances of about 1: the penalty is the same for all.
        labels: (M,) classes of the photos.
        people: (M,) person on the photo.
        n_classes: K.
        strength: C of scikit-learn, the inverse of the penalty.
    """
    present = np.unique(labels)
    weight, bias = np.zeros((n_classes, features.shape[1])), np.full(n_classes, ABSENT_LOGIT)
    bias[present] = 0.0
    if len(present) > 1:
        model = LogisticRegression(C=strength, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last iterate is used
            model.fit(features, labels, balanced_weights(labels, people))
        slopes, shifts = model.coef_, model.intercept_
        if len(present) == 2:  # scikit-learn gives the second class's alone
            slopes, shifts = np.vstack([-slopes, slopes]) / 2, np.hstack([-shifts, shifts]) / 2
        weight[present], bias[present] = slopes, shifts
    return Linear(weight, bias)
