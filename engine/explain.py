"""Class-activation maps: which parts of a photo influence a logit, or a similarity.

Source: Selvaraju et al., Grad-CAM, ICCV 2017; Adebayo et al., Sanity Checks for Saliency Maps,
NeurIPS 2018.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn

from dataset_11k import Photo
from engine.features import MASK_SIZE, READERS, BackgroundReader
from engine.loop import Predictor
from utils import UserError

# (N, D) embeddings and the logits of each task -> (N,) what a map explains.
Score = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


class Explanation(NamedTuple):
    """The map of a score on a photo.

    map: (image_size, image_size) float32 in [0, 1], 1: largest influence; all 0: no part of the
        photo increases the score.
    outside_hand: fraction of the map's sum on the background; NaN: no white background found, or
        the map is 0.
    randomised_correlation: Spearman's, with the map of the model with shuffled weights; NaN: one
        of the maps is constant. Near 1: the map does not depend on the training.
    overlay: (image_size, image_size, 3) uint8, the map over the photo.
    """

    map: np.ndarray
    outside_hand: float
    randomised_correlation: float
    overlay: np.ndarray


def load_grad_cam() -> Any:
    """Return the module of the package grad-cam.

    Raises:
        UserError: it is missing.
    """
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise UserError(
            "--explain needs the package grad-cam. Run: pip install -r requirements-extra.txt"
        ) from error
    return pytorch_grad_cam


class ScoreModel(nn.Module):
    """A model with a score as its only output."""

    def __init__(self, model: nn.Module, score: Score) -> None:
        super().__init__()
        self.model, self.score = model, score

    def forward(self, images: Tensor) -> Tensor:
        """Return scores, (N,)."""
        return self.score(*self.model(images))


def last_map(backbone: Any) -> nn.Module:
    """Return the layer of a timm model whose output is the last map that the prediction depends on.

    In a ViT it is the input of the last attention: behind it, a class token alone may count.
    """
    if hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens"):
        layer: nn.Module = backbone.blocks[-1].norm1
    else:
        layer = backbone.get_submodule(backbone.feature_info[-1]["module"])
    return layer


def to_channels_first(backbone: Any, values: Tensor) -> Tensor:
    """Return what `last_map` computes, or its gradient, as (N, C, H, W)."""
    if values.ndim == 3:
        patches = values[:, backbone.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, backbone.patch_embed.grid_size)
    n_channels = backbone.feature_info[-1]["num_chs"]
    in_last = values.shape[3] == n_channels and values.shape[1] != n_channels
    return values.permute(0, 3, 1, 2) if in_last else values


def shuffle_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of a model whose weights are permuted within each tensor."""
    shuffled, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in shuffled.parameters():
            order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
            weights.copy_(weights.flatten()[order].view_as(weights))
    return shuffled


class Explainer:
    """Computes class-activation maps of a predictor's model, in float32.

    Raises:
        UserError: the package grad-cam is missing.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.grad_cam = load_grad_cam()
        self.predictor = predictor
        self.shuffled = shuffle_weights(predictor.model)

    def explain(self, photo: Photo, classes: Mapping[str, str]) -> dict[str, Explanation]:
        """Return the explanation of the logit of each task's class on a photo.

        Raises:
            UserError: the photo cannot be read, or the backbone has no map.
        """
        names, scores = self.predictor.label_space.names, {}
        for task, name in classes.items():
            index = names[task].index(name)
            scores[task] = lambda _, logits, task=task, index=index: logits[task][:, index]
        return self._explain(photo, scores)

    def explain_similarity(self, photo: Photo, reference: np.ndarray) -> Explanation:
        """Return the explanation of the cosine similarity of a photo to an embedding, (D,).

        Source: Stylianou et al., Visualizing Deep Similarity Networks, WACV 2019.

        Raises:
            UserError: as `explain` does.
        """
        other = torch.from_numpy(reference).to(self.predictor.device).float()

        def score(embeddings: Tensor, _: Any) -> Tensor:
            # length held constant: its gradient would make the map's mean 0, and the maps of
            # identical photos empty
            return embeddings / embeddings.detach().norm() @ (other / other.norm())

        return self._explain(photo, {"similarity": score})["similarity"]

    def _explain(self, photo: Photo, scores: Mapping[str, Score]) -> dict[str, Explanation]:
        """Return the explanation of each score on a photo."""
        from pytorch_grad_cam.utils.image import show_cam_on_image

        predictor = self.predictor
        pixels = np.array(predictor.reader.read(photo))
        background = find_background(photo, mirror=predictor.reader.mirror)
        preprocessing, found = predictor.preprocessing, {}
        images = torch.from_numpy(pixels).to(predictor.device).permute(2, 0, 1)[None].float() / 255
        images = (images - preprocessing.mean) / preprocessing.std
        for name, score in scores.items():
            own, other = (
                self._map(ScoreModel(model, score), images)
                for model in (predictor.model, self.shuffled)
            )
            constant = np.ptp(own) == 0 or np.ptp(other) == 0
            found[name] = Explanation(
                own,
                fraction_inside(own, background),
                math.nan if constant else float(spearmanr(own, other, axis=None).statistic),
                show_cam_on_image(pixels.astype(np.float32) / 255, own, use_rgb=True),
            )
        return found

    def _map(self, model: ScoreModel, images: Tensor) -> np.ndarray:
        """Return the map of a score, (image_size, image_size) float32."""
        backbone: Any = model.model.backbone
        try:
            with self.grad_cam.GradCAM(
                model, [last_map(backbone)], lambda values: to_channels_first(backbone, values)
            ) as cam:
                maps: np.ndarray = cam(images, [torch.sum])
        except (AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"this backbone has no map of its features: {reason}") from error
        return maps[0]


def find_background(photo: Photo, *, mirror: bool) -> np.ndarray | None:
    """Return where a photo is white, (MASK_SIZE, MASK_SIZE) bool; None: too little of it is."""
    reader = READERS["background"]
    assert isinstance(reader, BackgroundReader)
    pixels = reader.read_small(photo)
    return reader.find_background(pixels[:, ::-1] if mirror else pixels)


def fraction_inside(values: np.ndarray, mask: np.ndarray | None) -> float:
    """Return the fraction of the sum of a map that lies in a mask, (MASK_SIZE, MASK_SIZE) bool."""
    if mask is None or not values.any():
        return math.nan
    small = np.asarray(Image.fromarray(values).resize((MASK_SIZE, MASK_SIZE)))
    return float(small[mask].sum() / small.sum())
