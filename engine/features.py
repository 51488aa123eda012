"""Pooled features of a backbone, and pixels of baselines; both are cached."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, binary_fill_holes

from data.cache import attach_cache, cache_path, cached_features
from dataset_11k import (
    HandsDataset,
    LabelSpace,
    Photo,
    PhotoReader,
    build_loader,
    open_photo,
)
from engine.loop import Predictor, Preprocessing, predict_batches
from model import IGAENet, read_weights
from utils import UserError, logger

THUMBNAIL_SIZE = 8  # pixels

MASK_SIZE = 8 * THUMBNAIL_SIZE

LEAST_WHITE = 0.9  # fraction of the photos with a white background, else it is no baseline


@dataclass(frozen=True)
class BackgroundReader(PhotoReader):
    """Reads photos with the hand replaced by the mean colour of the white background.

    Black if less than `least_share` of the photo is background. Sizes are of the photo at
    `MASK_SIZE` pixels.

    darkest: lowest colour value of the background.
    colour_range: largest difference between its colour values; that of skin is larger.
    margin: pixels around the hand, with its shadow, that are replaced too.
    least_share: see above.
    """

    darkest: int = 200
    colour_range: int = 25
    margin: int = 4
    least_share: float = 0.2

    def read_small(self, photo: Photo) -> np.ndarray:
        """Return the photo, (MASK_SIZE, MASK_SIZE, 3) uint8."""
        whole = open_photo(photo, self.decode_size)
        return np.asarray(whole.resize((MASK_SIZE, MASK_SIZE), self.resampling))

    def find_background(self, pixels: np.ndarray) -> np.ndarray | None:
        """Return where `read_small`'s result is background, (MASK_SIZE, MASK_SIZE) bool.

        None if less than `least_share` is.
        """
        low, high = pixels.min(axis=2), pixels.max(axis=2)
        hand = (low < self.darkest) | (high - low > self.colour_range)
        around = np.ones((2 * self.margin + 1,) * 2)
        white: np.ndarray = ~binary_fill_holes(binary_dilation(hand, around))
        return None if white.mean() < self.least_share else white

    def read(self, photo: Photo) -> Image.Image:
        """Return the background of the photo."""
        pixels = self.read_small(photo)
        white = self.find_background(pixels)
        if white is None:
            return Image.new("RGB", (self.image_size, self.image_size))
        filled = np.where(white[..., None], pixels, pixels[white].mean(axis=0))
        found = Image.fromarray(filled.round().astype(np.uint8))
        return found.resize((self.image_size, self.image_size), self.resampling)


# Feature -> reader of its pixels.
READERS = {
    "thumbnail": PhotoReader(THUMBNAIL_SIZE, MASK_SIZE, Image.Resampling.BOX),
    "background": BackgroundReader(THUMBNAIL_SIZE, MASK_SIZE, Image.Resampling.BOX),
}


class Pooling(torch.nn.Module):
    """A model's pooled features as its embeddings, without its neck and heads."""

    def __init__(self, model: IGAENet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return features, (N, D), and no logits."""
        return self.model.pool(images), {}


def backbone_features(
    model: IGAENet,
    samples: pd.DataFrame,
    photos: Path,
    *,
    reader: PhotoReader,
    preprocessing: Preprocessing,
    amp: str,
    batch_size: int,
    num_workers: int,
    cache_dir: Path | None,
) -> np.ndarray:
    """Return the backbone's pooled features, (N, D) float32, before neck and heads.

    Args:
        model: on the device of `preprocessing`.
        samples: N photos, as `data.tables.read_samples` returns them.
        photos: their folder.
        reader: of the model's input.
        preprocessing: makes the model's input.
        amp: a key of `precision.AMP_DTYPES`.
        batch_size: photos per forward pass.
        num_workers: number of processes that load photos.
        cache_dir: where the features are kept for the next call; None: nowhere.
    """
    dataset = HandsDataset(samples, photos, LabelSpace({}), reader=reader)

    def compute() -> np.ndarray:
        logger.info("features: computing those of %d photos", len(dataset))
        loader = build_loader(dataset, batch_size=batch_size, num_workers=num_workers, train=False)
        batches = predict_batches(Pooling(model), loader, preprocessing=preprocessing, amp=amp)
        return torch.cat([features for _, features, _ in batches]).numpy()

    if cache_dir is None:
        return compute()
    model_hash = f"{digest_of(model.backbone)} {model.feature_widths} {amp} {timm.__version__}"
    if dataset.mirrored.any():
        model_hash += f" mirrored {hashlib.sha256(dataset.mirrored.tobytes()).hexdigest()}"
    return cached_features(cache_path(dataset, dataset.names, cache_dir, model_hash), compute)


def compute_features(
    samples: pd.DataFrame,
    photos: Path,
    config: Mapping[str, Any],
    predictor: Predictor,
    num_workers: int,
) -> dict[str, np.ndarray]:
    """Return the features of photos by name of `measures.baselines.FEATURES`.

    thumbnail: (N, 8, 8, 3) uint8. corners: (N, 4, 3), those of the thumbnail. background:
    (N, 8, 8, 3) uint8, absent if too few photos have a white one. imagenet: (N, D) float32, absent
    without the weights that the training started from. All are cached if `config["cache"]` is set.

    Args:
        samples: N photos, as `data.tables.read_samples` returns them.
        photos: their folder.
        config: of the training.
        predictor: of the checkpoint; its precision and batch size are used.
        num_workers: number of processes that load photos.
    """
    names, cache_dir = samples["name"].tolist(), config["cache_dir"] or photos.parent / "cache"
    space = predictor.label_space
    found = {}
    for name, reader in READERS.items():
        small = HandsDataset(samples, photos, space, reader=reader)
        if config["cache"]:
            attach_cache(small, names, cache_dir=Path(cache_dir), num_workers=num_workers)
        found[name] = np.stack([small.read(row, 0).numpy() for row in range(len(small))])
    found["corners"] = found["thumbnail"][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    n_white = int(found["background"].any(axis=(1, 2, 3)).sum())
    if n_white < LEAST_WHITE * len(names):
        logger.info(
            "the background baseline is left out: %d of %d photos have a white background",
            *(n_white, len(names)),
        )
        del found["background"]
    model = untrained_model(config)
    if model is None:
        return found
    features = backbone_features(
        model.to(predictor.device).to(memory_format=torch.channels_last),
        samples,
        photos,
        reader=predictor.reader,
        preprocessing=predictor.preprocessing,
        amp=predictor.amp,
        batch_size=predictor.batch_size,
        num_workers=num_workers,
        cache_dir=Path(cache_dir) if config["cache"] else None,
    )
    found["imagenet"] = features[:, : model.feature_widths[0]]  # all share the cache of --fit
    return found


def untrained_model(config: Mapping[str, Any]) -> IGAENet | None:
    """Return the backbone with the ImageNet weights that the training started from, if available.

    A run that started without weights, or from a checkpoint of train.py, has none.
    """
    weights = config["backbone_weights"] and Path(config["backbone_weights"])
    try:
        if not config["pretrained"] and not weights:
            return None
        if weights and read_weights(weights)[1]:
            return None
        return IGAENet(
            config["backbone"],
            {},
            backbone_weights=weights or None,
            allow_partial_weights=config["allow_partial_weights"],
            image_size=config["image_size"],
            multi_level=config.get("multi_level", False),
        )
    except UserError as error:
        logger.info("the ImageNet baseline is left out: %s", error)
        return None


def digest_of(model: torch.nn.Module) -> str:
    """Return a hash of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
