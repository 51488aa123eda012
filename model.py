"""The names of the paper's backbones, and what they stand for; any other name is timm's own."""

from __future__ import annotations

import contextlib
import copy
import difflib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.layers import NormMlpClassifierHead
from torch import Tensor, nn


@dataclass(frozen=True)
class Backbone:
    """A timm model and the stochastic depth it is trained with."""

    tag: str
    drop_path: float = 0.0


# The paper's names. Stochastic depth as in torchvision's models, which the paper trained.
BACKBONES = {
    "resnet50": Backbone("resnet50.tv2_in1k"),
    "densenet121": Backbone("densenet121.tv_in1k"),
    "convnext_t": Backbone("convnext_tiny.fb_in1k", drop_path=0.1),
    "vit_b_16": Backbone("vit_base_patch16_224.augreg_in1k"),
    "swin_t": Backbone("swin_tiny_patch4_window7_224.ms_in1k", drop_path=0.2),
    "maxvit_t": Backbone("maxvit_tiny_tf_224.in1k", drop_path=0.2),
}


HUB_TIMEOUT = 8  # seconds until the weights' hub counts as out of reach


class ModelError(ValueError):
    """A backbone, an image size or a weights file that cannot be used; one line that says why."""


def find_backbone(name: str) -> Backbone:
    """Return the backbone of that name: one of the paper's, or any other of timm's.

    Raises:
        ModelError: neither knows the name; the message has the nearest ones.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if timm.is_model(name) and ("." not in name or name in timm.list_models(include_tags=True)):
        return Backbone(name)
    near = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ModelError(
        f"unknown backbone {name!r}; {hint}known: {', '.join(BACKBONES)}, timm's names"
    )


def create_timm_model(
    backbone: Backbone, *, image_size: int, drop_path: float, **options: Any
) -> nn.Module:
    """Return the timm model without its classifier, for square images of `image_size` pixels.

    A `drop_path` of 0 is said as well: some of timm's models have another default.
    """
    where_taken: dict[str, Any] = {"img_size": image_size, "drop_path_rate": drop_path}
    while True:
        try:
            return timm.create_model(backbone.tag, num_classes=0, **where_taken, **options)
        except TypeError as error:
            unknown = next((name for name in where_taken if name in str(error)), None)
            if unknown is None:
                raise
            if where_taken.pop(unknown) and unknown == "drop_path_rate":
                message = f"backbone {backbone.tag} has no stochastic depth; leave --drop_path out"
                raise ModelError(message) from error


def facts(model_or_tag: nn.Module | str) -> dict[str, Any]:
    """Return what timm knows of a model's weights: input size, mean, std, classifier, hub."""
    if isinstance(model_or_tag, str):
        config = timm.get_pretrained_cfg(model_or_tag, allow_unregistered=False)
        return config.to_dict() if config else {}
    return dict(vars(model_or_tag)["pretrained_cfg"])


@torch.no_grad()
def embedding_width(name: str, image_size: int) -> int:
    """Return how many numbers the backbone's pooled feature has.

    The shapes are worked out on the meta device, without arithmetic, where timm's model allows it.

    Raises:
        ModelError: the backbone refuses images of that size; the message names one it takes.
    """
    backbone = find_backbone(name)

    def width(size: int, device: str = "meta") -> int:
        try:
            with torch.device(device):
                model = create_timm_model(backbone, image_size=size, drop_path=0).eval()
                take_norm_from_head(model)
                return model(torch.zeros(2, 3, size, size)).shape[1]
        except RuntimeError as error:
            if device == "meta" and "meta" in str(error):  # older timm reads tensors back
                return width(size, "cpu")
            raise

    refusals = (AssertionError, RuntimeError, ValueError)
    try:
        return width(image_size)
    except refusals as error:
        reason = " ".join(str(error).split())[:120]
        nearest = max(32, round(image_size / 32) * 32)
        default = facts(backbone.tag)["input_size"][-1]
        for size in (nearest, nearest + 32, nearest - 32, default):
            try:
                width(size)
            except refusals:
                continue
            message = (
                f"--image_size {image_size}: backbone {name} refuses it ({reason}); {size} works"
            )
            raise ModelError(message) from error
        raise ModelError(f"backbone {name} cannot be used: {reason}") from error


def take_norm_from_head(model: nn.Module) -> list[nn.Module]:
    """Take the layers between pooling and classifier out of a timm model, and return them.

    Only the heads of ConvNeXt, MaxViT and their like have such layers. As published, every task
    gets a copy of its own, and what the backbone is left with ends in the pooling.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, NormMlpClassifierHead):
        return []
    norm, hidden = head.norm, list(head.pre_logits.children())
    if not isinstance(norm, nn.LayerNorm):  # none of the paper's: it stays with the backbone
        return []
    head.norm, head.pre_logits = nn.Identity(), nn.Sequential()
    # timm normalises (N, C, 1, 1), we (N, C): the same layer without the empty axes
    flat_norm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    flat_norm.load_state_dict(norm.state_dict())
    return [flat_norm, *hidden]


# ----------------------------------------------------------------------------- weights


def hub_is_reachable() -> bool:
    """Return whether the hub that timm downloads from answers at all."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT):
            return True
    except urllib.error.HTTPError as error:  # it answered; out of order, it would be retried
        return error.code < 500
    except (OSError, http.client.HTTPException, ValueError):  # the last: no address at all
        return False


def create_pretrained(backbone: Backbone, *, image_size: int, drop_path: float) -> nn.Module:
    """Return the timm model with its ImageNet weights, from the hub or from its local cache.

    Without a hub timm retries for minutes, so the cache alone is asked then.

    Raises:
        ModelError: the weights cannot be had; the message names the two ways to go on without.
    """
    options: dict[str, Any] = {"image_size": image_size, "drop_path": drop_path}
    hub_id = facts(backbone.tag).get("hf_hub_id")
    page = f"fetch model.safetensors from https://huggingface.co/{hub_id} and " if hub_id else ""
    advice = f"{page}give --backbone_weights FILE, or --no-pretrained to train from scratch"
    if not hub_is_reachable():
        cached = try_to_load_from_cache(hub_id, "model.safetensors") if hub_id else None
        if not isinstance(cached, str):
            raise ModelError(f"ImageNet weights of {backbone.tag}: hub not reachable; {advice}")
        options["pretrained_cfg_overlay"] = {"file": cached}
    try:
        return create_timm_model(backbone, pretrained=True, **options)
    except ModelError:
        raise
    except Exception as error:  # hub, network and weights libraries share no type
        reason = " ".join(str(error).split())[:200]
        message = f"ImageNet weights of {backbone.tag} cannot be fetched ({reason}); {advice}"
        raise ModelError(message) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or .pth file by name, wrappers taken off.

    Raises:
        ModelError: there is no such file, or no named tensors in it.
    """
    if not path.is_file():
        raise ModelError(f"--backbone_weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # as many types as ways to be damaged
        raise ModelError(
            f"--backbone_weights {path} cannot be read ({type(error).__name__});"
            " expected a .safetensors file, or a .pth file of a state dict"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ModelError(f"--backbone_weights {path} holds no state dict (names to tensors)")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_backbone_weights(model: nn.Module, path: Path, *, allow_partial: bool) -> None:
    """Load the weights file at `path` into a timm model; only a classifier may be left over.

    Position embeddings are resampled to the model's image size where timm knows how.

    Raises:
        ModelError: names or shapes differ and `allow_partial` is False; the message lists them.
    """
    state = read_weights(path)
    # timm keeps each architecture's converter beside its class
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        with contextlib.suppress(Exception):  # weights of another model: the names below tell
            state = convert(state, model)
    classifier = facts(model)["classifier"] or ()
    prefixes = tuple(
        f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier)
    )
    own = model.state_dict()
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape]
    fitting = {n: t for n, t in state.items() if n not in shapes and not n.startswith(prefixes)}
    missing, left_over = model.load_state_dict(fitting, strict=False)
    missing = [name for name in missing if name not in shapes]
    misfits = {"missing": missing, "left over": left_over, "of another shape": shapes}
    if allow_partial and len(fitting) > len(left_over):
        return
    if any(misfits.values()):
        listed = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for kind, names in misfits.items()
            if names
        )
        raise ModelError(
            f"--backbone_weights {path} does not fit ({listed}); give weights of this backbone,"
            " or --allow_partial_weights to load what fits"
        )


# ----------------------------------------------------------------------------- the network


def enable_grad_checkpointing(model: Any, name: str) -> None:
    """Let a timm model keep fewer activations; it computes the others again."""
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        message = f"backbone {name} has no activation checkpointing; leave --grad_checkpointing out"
        raise ModelError(message) from error


class IGAENet(nn.Module):
    """A backbone whose pooled feature feeds one linear head per task.

    Args:
        backbone: a key of `BACKBONES`, or any timm model's name.
        n_classes: task -> number of classes; the heads are in this order.
        pretrained: start from timm's ImageNet weights.
        backbone_weights: a file to start from instead.
        allow_partial_weights: let that file's names and shapes differ from the model's.
        image_size: side of the square images in pixels.
        drop_path: largest drop probability of a residual branch; None: as in `BACKBONES`.
        grad_checkpointing: compute the backbone's activations twice rather than keep them.

    Raises:
        ModelError: no such backbone, size or weights; the message says what would do.
    """

    def __init__(
        self,
        backbone: str,
        n_classes: Mapping[str, int],
        *,
        pretrained: bool = True,
        backbone_weights: Path | None = None,
        allow_partial_weights: bool = False,
        image_size: int = 224,
        drop_path: float | None = None,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        chosen = find_backbone(backbone)
        width = embedding_width(backbone, image_size)
        depth = chosen.drop_path if drop_path is None else drop_path
        create = create_pretrained if pretrained and not backbone_weights else create_timm_model
        self.backbone = create(chosen, image_size=image_size, drop_path=depth)
        if backbone_weights:
            load_backbone_weights(
                self.backbone, backbone_weights, allow_partial=allow_partial_weights
            )
        if grad_checkpointing:
            enable_grad_checkpointing(self.backbone, backbone)
        body = take_norm_from_head(self.backbone)
        hidden = [layer.out_features for layer in body if isinstance(layer, nn.Linear)]
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(*copy.deepcopy(body), nn.Linear([width, *hidden][-1], n))
                for task, n in n_classes.items()
            }
        )
        self.mean, self.std = (tuple(facts(self.backbone)[key]) for key in ("mean", "std"))

    def embed(self, images: Tensor) -> Tensor:
        """Return the pooled feature, (N, D), of `images`, (N, 3, H, W) float32 normalised."""
        return self.backbone(images)

    def classify(self, embedding: Tensor) -> dict[str, Tensor]:
        """Return logits[task], (N, n_classes[task]), before softmax, of an `embed` result."""
        return {task: head(embedding) for task, head in self.heads.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits[task], (N, n_classes[task]), before softmax."""
        return self.classify(self.embed(images))


def parameter_groups(model: IGAENet, *, backbone_scale: float = 0.1) -> list[dict[str, Any]]:
    """Return the optimiser's groups: the backbone learns at `backbone_scale` of the heads' rate.

    Each group's `lr_scale` is what the learning rate of the epoch is multiplied by.

    Source: github.com/nathanlem1/IGAE-Net, train.py lines 136-143.
    """
    parts = [(model.backbone, backbone_scale), (model.heads, 1.0)]
    return [{"params": list(part.parameters()), "lr_scale": scale} for part, scale in parts]
