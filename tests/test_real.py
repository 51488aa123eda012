"""The whole way on real photos with real weights: split, analyse, train, evaluate, predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dataset_11k_analyze
import dataset_11k_split
import predict
import test as test_script
import train

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize(
    ("aspect", "n_val", "backbone"),
    [("dorsal_dr", 1002, "deit_tiny_patch16_224"), ("palmar_pl", None, "mobilenetv2_100")],
)
def test_real_photos_train_evaluate_and_predict(
    real_root: Path,
    weights_dir: Path,
    tmp_path: Path,
    aspect: str,
    n_val: int | None,
    backbone: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dataset_11k_split.main(["--input", str(real_root)]) == 0
    counts = tmp_path / "counts"
    assert dataset_11k_analyze.main(["--input", str(real_root), "--output", str(counts)]) == 0
    attributes, run = real_root / "sub_dataset" / f"{aspect}.csv", tmp_path / "run"
    flags = f"--backbone {backbone} --backbone_weights {weights_dir / backbone}.pth"
    flags += f" --attributes_file {attributes} --run_dir {run} --image_size 64 --N_epochs 1"
    assert train.main([*flags.split(), "--device", "cpu", "--amp", "off"]) == 0
    checkpoint = next(run.glob("*-best.pth"))
    arguments = ["--checkpoint", str(checkpoint), "--device", "cpu"]
    assert test_script.main([*arguments, "--attributes_file", str(attributes)]) == 0

    folder = run / f"{checkpoint.stem}-{aspect}-val"
    metrics = json.loads((folder / "metrics.json").read_text())
    scores = json.loads((run / "metrics.jsonl").read_text())
    for task, values in metrics["tasks"].items():
        assert values["balanced_accuracy"] == pytest.approx(scores[f"val_balanced_accuracy_{task}"])
    assert n_val in (None, metrics["n_images"])

    photos = sorted((real_root / "Hands").iterdir())[:3]
    capsys.readouterr()
    assert predict.main([*arguments, *map(str, photos)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_an_aspect_without_photos_is_refused(
    real_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dataset_11k_split.main(["--input", str(real_root)]) == 0
    attributes = real_root / "sub_dataset" / "dorsal_dl.csv"
    if len(attributes.read_text().splitlines()) > 1:
        pytest.skip("these photos have a left hand's back")
    capsys.readouterr()
    assert train.main(["--attributes_file", str(attributes), "--no-pretrained"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no photo of dorsal_dl" in error
