"""The names of the paper's backbones, and what they stand for; any other name is timm's own."""

from __future__ import annotations

import re
from dataclasses import dataclass


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


def safe_name(name: str) -> str:
    """Return `name` as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
