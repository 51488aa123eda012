"""IGAE-Net: a timm backbone whose pooled features (embedding) feed one linear head per task.

`BACKBONES` has the paper's names; any other name is timm's own. Weights come from the Hugging Face
hub, its local cache, or a file.
"""

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
from torch.nn import functional

from utils import UserError, logger

# ----------------------------------------------------------------------------- backbones


@dataclass(frozen=True)
class Backbone:
    """A timm model.

    tag: timm's name of the model and its weights.
    drop_path: stochastic depth, the largest probability of dropping a residual branch.
    """

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


def find_backbone(name: str) -> Backbone:
    """Return the backbone called `name`: one of the paper's, or any of timm's.

    Raises:
        UserError: the name is unknown; the message lists similar names.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if timm.is_model(name) and ("." not in name or name in timm.list_models(include_tags=True)):
        return Backbone(name)
    similar = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=3)
    hint = f"Did you mean {' or '.join(similar)}? " if similar else ""
    raise UserError(
        f"unknown backbone {name!r}. {hint}Known: {', '.join(BACKBONES)}, and timm's names"
    )


def create_timm_model(
    backbone: Backbone, *, image_size: int, drop_path: float, **options: Any
) -> nn.Module:
    """Return the timm model without its classifier, for square images of `image_size` pixels.

    A `drop_path` of 0 is passed as well: some of timm's models have another default.
    """
    optional: dict[str, Any] = {"img_size": image_size, "drop_path_rate": drop_path}
    while True:
        try:
            return timm.create_model(backbone.tag, num_classes=0, **optional, **options)
        except TypeError as error:  # not every model takes both
            unknown = next((name for name in optional if name in str(error)), None)
            if unknown is None:
                raise
            if optional.pop(unknown) and unknown == "drop_path_rate":
                message = f"backbone {backbone.tag} has no stochastic depth. Leave --drop_path out"
                raise UserError(message) from error


def pretrained_config(model_or_tag: nn.Module | str) -> dict[str, Any]:
    """Return timm's description of a model's weights: input size, mean, std, classifier, hub."""
    if isinstance(model_or_tag, str):
        config = timm.get_pretrained_cfg(model_or_tag, allow_unregistered=False)
        return config.to_dict() if config else {}
    return dict(vars(model_or_tag)["pretrained_cfg"])


VARIANCE_EPS = 1e-6  # the root's gradient is infinite at 0


def lower_levels(model: Any) -> list[int]:
    """Return timm's indices of the maps that `pool_levels` adds to the pooled last map.

    These are the three before it with other strides (4, 8 and 16 in most models), or in a ViT those
    after a quarter, a half and three quarters of the blocks.
    """
    n, strides = len(model.feature_info), {level["reduction"] for level in model.feature_info}
    return list(range(n - 1))[-3:] if len(strides) > 1 else [n * k // 4 - 1 for k in (1, 2, 3)]


def pool_levels(model: Any, images: Tensor) -> list[Tensor]:
    """Return a timm model's pooled feature, then mean and deviation of lower maps, level by level.

    Returns:
        (N, D_i) float32 each, of length 1.
    """
    last, maps = model.forward_intermediates(images, indices=lower_levels(model), output_fmt="NCHW")
    pooled = [model.forward_head(last).float()]
    for level in maps:
        variance, mean = torch.var_mean(level.float(), dim=(2, 3), correction=0)
        pooled += [mean, (variance + VARIANCE_EPS).sqrt()]
    return [functional.normalize(part) for part in pooled]


@torch.no_grad()
def compute_feature_widths(name: str, image_size: int, *, multi_level: bool = False) -> list[int]:
    """Return the dimensions of the parts of the backbone's pooled features (`pool_levels`).

    Shapes are computed on the meta device, without arithmetic, if timm's model allows it.

    Raises:
        UserError: the backbone does not support that image size; the message names one it supports.
    """
    backbone = find_backbone(name)

    def widths(size: int, device: str = "meta") -> list[int]:
        try:
            with torch.device(device):
                model = create_timm_model(backbone, image_size=size, drop_path=0).eval()
                take_norm_from_head(model)
                images = torch.zeros(2, 3, size, size)
                parts = pool_levels(model, images) if multi_level else [model(images)]
                return [part.shape[1] for part in parts]
        except RuntimeError as error:
            if device == "meta" and "meta" in str(error):  # older timm reads tensors back
                return widths(size, "cpu")
            raise

    refusals = (AssertionError, RuntimeError, ValueError)
    try:
        return widths(image_size)
    except refusals as error:
        reason = " ".join(str(error).split())[:120]
        nearest = max(32, round(image_size / 32) * 32)
        default = pretrained_config(backbone.tag)["input_size"][-1]
        for size in (nearest, nearest + 32, nearest - 32, default):
            try:
                widths(size)
            except refusals:
                continue
            message = f"backbone {name} does not support --image_size {image_size} ({reason})"
            raise UserError(f"{message}. Use {size}") from error
        raise UserError(f"backbone {name} cannot be used: {reason}") from error


def take_norm_from_head(model: nn.Module) -> list[nn.Module]:
    """Remove the layers between pooling and classifier from a timm model, and return them.

    Models such as ConvNeXt and MaxViT have them. As published, every task's head gets its own copy,
    and the backbone ends with the pooling.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, NormMlpClassifierHead):
        return []
    norm, hidden = head.norm, list(head.pre_logits.children())
    if not isinstance(norm, nn.LayerNorm):  # none of the paper's: keep it in the backbone
        return []
    head.norm, head.pre_logits = nn.Identity(), nn.Sequential()
    # timm's layer normalises (N, C, 1, 1), this one (N, C)
    flat_norm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    flat_norm.load_state_dict(norm.state_dict())
    return [flat_norm, *hidden]


# ----------------------------------------------------------------------------- weights

HUB_TIMEOUT = 8  # seconds


def hub_is_reachable() -> bool:
    """Return whether the hub that timm downloads from responds."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT):
            return True
    except urllib.error.HTTPError as error:  # timm would retry server errors
        return error.code < 500
    except (OSError, http.client.HTTPException, ValueError):  # ValueError: not an address
        return False


def create_pretrained(backbone: Backbone, *, image_size: int, drop_path: float) -> nn.Module:
    """Return the timm model with its ImageNet weights, from the hub or its local cache.

    If the hub does not respond, only the cache is used: timm would retry for minutes.

    Raises:
        UserError: the weights are not available; the message names two ways to continue.
    """
    options: dict[str, Any] = {"image_size": image_size, "drop_path": drop_path}
    hub_id = pretrained_config(backbone.tag).get("hf_hub_id")
    download = f"Download model.safetensors from https://huggingface.co/{hub_id} and give"
    advice = f"{download if hub_id else 'Give'} --backbone_weights FILE, or --no-pretrained"
    if not hub_is_reachable():
        cached = try_to_load_from_cache(hub_id, "model.safetensors") if hub_id else None
        if not isinstance(cached, str):
            raise UserError(f"hub not reachable: no ImageNet weights of {backbone.tag}. {advice}")
        options["pretrained_cfg_overlay"] = {"file": cached}
    try:
        return create_timm_model(backbone, pretrained=True, **options)
    except UserError:
        raise
    except Exception as error:  # hub, network and weights libraries share no type
        reason = " ".join(str(error).split())[:200]
        message = f"cannot fetch the ImageNet weights of {backbone.tag} ({reason}). {advice}"
        raise UserError(message) from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a .safetensors or .pth file by name, without wrappers.

    Of a checkpoint of train.py these are the backbone's; the second value is then the name of its
    backbone, else empty.

    Raises:
        UserError: there is no such file, or it holds no named tensors.
    """
    if not path.is_file():
        raise UserError(f"--backbone_weights not found: {path}")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the libraries raise many types for damaged files
        raise UserError(
            f"cannot read --backbone_weights ({type(error).__name__}): {path}. Give a .safetensors"
            " file, or a .pth file of a state dict"
        ) from error
    origin = ""
    if isinstance(state, dict) and isinstance(state.get("config"), dict):
        origin = str(state["config"].get("backbone", ""))
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise UserError(f"--backbone_weights holds no state dict (names to tensors): {path}")
    prefix = "backbone." if origin else "module."
    if origin:
        state = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}, origin


def load_backbone_weights(model: nn.Module, path: Path, *, allow_partial: bool) -> None:
    """Load the weights file at `path` into a timm model; only a classifier may be unused.

    Position embeddings are resampled to the model's image size if timm supports that.

    Raises:
        UserError: names or shapes differ and `allow_partial` is False; the message lists them.
    """
    state, origin = read_weights(path)
    # timm keeps each architecture's converter beside its class
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        with contextlib.suppress(Exception):  # weights of another model are reported below
            state = convert(state, model)
    classifier = pretrained_config(model)["classifier"] or ()
    prefixes = tuple(
        f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier)
    )
    own = model.state_dict()
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape]
    fitting = {n: t for n, t in state.items() if n not in shapes and not n.startswith(prefixes)}
    missing, unused = model.load_state_dict(fitting, strict=False)
    # a trained backbone lacks what `take_norm_from_head` gave to the heads
    missing = [n for n in missing if n not in shapes and not (origin and n.startswith("head."))]
    misfits = {"missing": missing, "unused": unused, "of another shape": shapes}
    if origin and not any(misfits.values()):
        logger.info("--backbone_weights: the backbone of %s, without its heads", path)
    if allow_partial and len(fitting) > len(unused):
        return
    if any(misfits.values()):
        listed = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for kind, names in misfits.items()
            if names
        )
        raise UserError(
            f"--backbone_weights does not fit the backbone ({listed}): {path}"
            f"{f' is a checkpoint of backbone {origin}' if origin else ''}. Give weights of this"
            " backbone, or --allow_partial_weights to load those that fit"
        )


# ----------------------------------------------------------------------------- the network


def enable_grad_checkpointing(model: Any, name: str) -> None:
    """Let a timm model recompute activations in the backward pass instead of storing them."""
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        message = f"backbone {name} has no activation checkpointing. Leave --grad_checkpointing out"
        raise UserError(message) from error


class IGAENet(nn.Module):
    """A backbone whose pooled features feed one linear head per task.

    Args:
        backbone: a key of `BACKBONES`, or any timm model's name.
        n_classes: task -> number of classes; the heads are in this order.
        pretrained: start from timm's ImageNet weights.
        backbone_weights: a file to start from instead.
        allow_partial_weights: ignore tensors of that file that do not fit.
        image_size: side of the square images in pixels.
        multi_level: pool maps of several depths (`pool_levels`), not the last alone.
        neck: dimension of a linear layer between backbone and heads, which is then the embedding;
            0: none.
        drop_path: largest probability of dropping a residual branch; None: as in `BACKBONES`.
        grad_checkpointing: recompute activations in the backward pass to save memory.

    Raises:
        UserError: no such backbone, image size or weights.
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
        multi_level: bool = False,
        neck: int = 0,
        drop_path: float | None = None,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.is_frozen = False
        self.multi_level = multi_level
        chosen = find_backbone(backbone)
        self.feature_widths = compute_feature_widths(backbone, image_size, multi_level=multi_level)
        width = sum(self.feature_widths)
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
        self.neck: nn.Module = nn.Identity()
        if neck:
            self.neck, body, width = nn.Linear(width, neck), [], neck
        hidden = [layer.out_features for layer in body if isinstance(layer, nn.Linear)]
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(*copy.deepcopy(body), nn.Linear([width, *hidden][-1], n))
                for task, n in n_classes.items()
            }
        )
        self.mean, self.std = (
            tuple(pretrained_config(self.backbone)[key]) for key in ("mean", "std")
        )

    def freeze_backbone(self) -> None:
        """Exclude the backbone from training: no gradients, batch norm and dropout as in tests."""
        self.is_frozen = True
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> IGAENet:
        """Set training or evaluation mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and not self.is_frozen)
        return self

    def embed(self, images: Tensor) -> Tensor:
        """Return embeddings, (N, D), of `images`, (N, 3, H, W) float32 normalised."""
        return self.neck(self.pool(images))

    def pool(self, images: Tensor) -> Tensor:
        """Return what the neck transforms: the backbone's pooled features, (N, D)."""
        if not self.multi_level:
            return self.backbone(images)
        return torch.cat(pool_levels(self.backbone, images), dim=1)

    def classify(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Return logits[task], (N, n_classes[task]), before softmax, from `embed`'s result."""
        return {task: head(embeddings) for task, head in self.heads.items()}

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the embeddings and the logits, as `embed` and `classify` do."""
        embeddings = self.embed(images)
        return embeddings, self.classify(embeddings)


def parameter_groups(model: IGAENet, *, backbone_scale: float = 0.1) -> list[dict[str, Any]]:
    """Return the optimiser's groups; an epoch's learning rate is multiplied by their `lr_scale`.

    That of neck and heads is 1, the backbone's `backbone_scale`.

    Source: github.com/nathanlem1/IGAE-Net, train.py lines 136-143.
    """
    own = [*model.neck.parameters(), *model.heads.parameters()]
    parts = [(list(model.backbone.parameters()), backbone_scale), (own, 1.0)]
    return [{"params": parameters, "lr_scale": scale} for parameters, scale in parts]
