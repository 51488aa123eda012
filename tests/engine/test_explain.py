"""predict.py --explain: a map per task, which depends on the weights."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import predict
from engine.explain import last_map, to_channels_first
from model import IGAENet


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


@pytest.mark.parametrize(
    "backbone", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"]
)
def test_every_backbone_has_a_last_map(backbone: str) -> None:
    model = IGAENet(
        backbone, {"gender": 2}, pretrained=False, image_size=160, multi_level=True, neck=4
    ).eval()
    found: list[torch.Tensor] = []
    last_map(model.backbone).register_forward_hook(lambda m, i, output: found.append(output))
    model(torch.zeros(1, 3, 160, 160))
    shape = to_channels_first(model.backbone, found[0]).shape
    assert shape[2] == shape[3] < shape[1]


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
