"""predict.py --explain: a map per task, which depends on the weights."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from engine.explain import ScoreModel, find_background, last_map, to_channels_first
from model import BACKBONES, IGAENet

MEASURED = ("deit_tiny_patch16_224", "tf_efficientnet_lite0")  # whose maps docs describe


def explain(checkpoint: Path, photo: Path, folder: Path) -> int:
    flags = ["--num_workers", "0", "--device", "cpu", "--explain", str(folder)]
    return predict.main(["--checkpoint", str(checkpoint), *flags, str(photo)])


def test_maps_of_a_photo(tiny_checkpoint: Path, split_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_grad_cam")
    photo = min((split_root / "Hands").iterdir())
    assert explain(tiny_checkpoint, photo, tmp_path / "maps") == 0
    (path,) = (tmp_path / "maps").glob("*.npz")
    assert path.with_suffix(".png").is_file()
    with (tmp_path / "maps" / "maps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["identity", "gender", "age"]
    with np.load(path) as maps:
        for row in rows:
            found = maps[row["task"]]
            assert found.shape == (32, 32)
            assert 0 <= found.min() <= found.max() <= 1
            assert float(row["randomised_correlation"] or 0) < 0.99


@pytest.mark.parametrize("multi_level", [False, True])
@pytest.mark.parametrize(
    "backbone",
    [
        *("test_vit", "test_resnet", "test_convnext", "test_efficientnet"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in (*BACKBONES, *MEASURED)),
    ],
)
def test_every_backbone_has_a_map_in_its_layout(backbone: str, multi_level: bool) -> None:
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    size = 160 if backbone.startswith("test_") else 64
    torch.manual_seed(0)
    model: Any = IGAENet(
        *(backbone, {"gender": 2}),
        pretrained=False,
        image_size=size,
        multi_level=multi_level,
        neck=4 * multi_level,
    ).eval()
    inner, images = model.backbone, torch.randn(1, 3, size, size)
    with grad_cam.GradCAM(
        ScoreModel(model, lambda embeddings, _: embeddings.square().sum(dim=1)),
        [last_map(inner)],
        lambda values: to_channels_first(inner, values),
    ) as cam:
        cam(images, [torch.sum])
        kept = cam.activations_and_grads
        found, gradient = kept.activations[0], kept.gradients[0]
    maps = inner.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    expected = maps[-1]
    if hasattr(inner, "num_prefix_tokens"):  # a ViT
        norm = inner.blocks[-1].norm1
        expected = norm(maps[-2].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert gradient.shape == found.shape
    assert gradient.isfinite().all()
    assert gradient.any()


def test_the_background_of_a_mirrored_photo_is_mirrored() -> None:
    photo = Image.new("RGB", (640, 480), (245, 245, 245))
    photo.paste((200, 120, 90), (40, 100, 240, 400))
    mask = find_background(photo, mirror=False)
    mirrored = find_background(photo, mirror=True)
    assert mask is not None
    assert mirrored is not None
    assert not np.array_equal(mirrored, mask)
    np.testing.assert_array_equal(mirrored, mask[:, ::-1])


def test_a_missing_package_is_named(
    tiny_checkpoint: Path,
    split_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    assert explain(tiny_checkpoint, min((split_root / "Hands").iterdir()), tmp_path / "maps") == 1
    assert "--explain needs the package grad-cam" in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()
