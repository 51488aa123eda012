r"""Export a checkpoint's model to ONNX, or with torch.export, for programs without this code.

    python export.py --checkpoint ./checkpoints/<run>/checkpoint-000030-best.pth

writes checkpoint-000030-best.onnx beside it; --output FILE.pt2 writes a torch.export program
instead. Input: photos, (N, image_size, image_size, 3) uint8 RGB, any N. Outputs: `embedding`
(N, D) and per task the probabilities of its classes, all float32. Normalisation and temperature are
inside; class names, image size, resize and licences are in the file's metadata.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.checkpoint import load_checkpoint
from engine.features import digest_of
from engine.loop import Predictor, build_predictor
from model import find_backbone, pretrained_config
from utils import (
    REQUIRED,
    UserError,
    atomic_write,
    flag,
    git_commit,
    logger,
    one_line_errors,
    parse_config,
    setup_logging,
)

OPSET = 20  # of ONNX
TOLERANCE = 1e-4  # largest difference of an output from PyTorch
NEEDED = ("onnx", "onnxruntime", "onnxscript")  # packages, for ONNX


@dataclass(frozen=True)
class ExportConfig:
    """Flags of export.py."""

    checkpoint: Path = flag(REQUIRED, "checkpoint-NNNNNN.pth of train.py")
    output: Path | None = flag(
        None,
        "file to write, .onnx or .pt2 (default: .onnx beside the checkpoint)",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        """Refuse an unknown format."""
        if self.output and self.output.suffix not in (".onnx", ".pt2"):
            raise ValueError("--output must end in .onnx or .pt2")


class PhotoModel(nn.Module):
    """A predictor's model with its preprocessing and the softmax of each task."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model, self.temperature = predictor.model, predictor.temperature
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", predictor.preprocessing.mean)
        self.register_buffer("std", predictor.preprocessing.std)

    def forward(self, photo: Tensor) -> tuple[Tensor, ...]:
        """Return embeddings and probabilities of `photo`, (N, H, W, 3) uint8 RGB."""
        images = (photo.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        embeddings, logits = self.model(images)
        scaled = [values / self.temperature[task] for task, values in logits.items()]
        return embeddings, *(torch.softmax(values, dim=1) for values in scaled)


def describe(state: Mapping[str, Any], predictor: Predictor) -> dict[str, str]:
    """Return the metadata of an exported model; lists and mappings are JSON."""
    config, reader = state["config"], predictor.reader
    size, decode_size = reader.image_size, reader.decode_size
    licence = "none: trained from random weights"
    if config.get("backbone_weights"):
        licence = f"that of {Path(config['backbone_weights']).name}"
    elif config.get("pretrained"):
        timm_config = pretrained_config(find_backbone(config["backbone"]).tag)
        licence = f"{timm_config.get('license') or 'not stated by timm'} (start weights, from timm)"
    return {
        "classes": json.dumps(predictor.label_space.names, ensure_ascii=False),
        "mean_ages": json.dumps(state["training"]["mean_ages"]),
        "mirror": state["config"].get("mirror", "none"),
        "image_size": str(size),
        "resize": f"upright RGB, bicubic with antialiasing (Pillow) to {size} x {size} whatever the"
        " aspect ratio",
        "decode_size": str(decode_size),
        "backbone": config["backbone"],
        "model": digest_of(predictor.model),
        "protocol": state["config"]["protocol"],
        "commit": git_commit(),
        "licence": f"code: MIT. Weights: those of the photos of the training, and {licence}",
        "use": "An estimate among the people of the training, never a proof of identity",
    }


def load_onnx_packages() -> Any:
    """Return the module onnxruntime.

    Raises:
        UserError: a package of `NEEDED` is missing.
    """
    for name in NEEDED:
        try:
            module = __import__(name)
            if name == "onnxruntime":
                onnxruntime = module
        except ImportError as error:
            raise UserError(
                f"ONNX needs the package {name}. Run: pip install -r requirements-extra.txt"
            ) from error
    return onnxruntime


Runner = Callable[[np.ndarray], Sequence[np.ndarray]]


def write_onnx(
    program: torch.export.ExportedProgram, names: Sequence[str], meta: Mapping[str, str], path: Path
) -> Runner:
    """Write an ONNX file, and return what runs it."""
    onnxruntime = load_onnx_packages()
    converted = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["photo"],
        output_names=names,
        verbose=False,
    )
    assert converted is not None
    converted.model.metadata_props.update(meta)
    converted.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda photos: session.run(list(names), {"photo": photos})


def write_pt2(
    program: torch.export.ExportedProgram, names: Sequence[str], meta: Mapping[str, str], path: Path
) -> Runner:
    """Write a torch.export program, and return what runs it."""
    described = json.dumps({"outputs": list(names), **meta}, ensure_ascii=False)
    torch.export.save(program, path, extra_files={"metadata.json": described})
    module = torch.export.load(path).module()
    return lambda photos: [output.numpy() for output in module(torch.from_numpy(photos))]


@torch.inference_mode()
def largest_difference(model: PhotoModel, run: Runner, image_size: int) -> float:
    """Return the largest difference of outputs from PyTorch's, over batches of 1 and 3 photos."""
    generator, found = np.random.default_rng(0), []
    for n in (1, 3):
        photos = generator.integers(0, 256, (n, image_size, image_size, 3), dtype=np.uint8)
        expected = model(torch.from_numpy(photos))
        pairs = zip(expected, run(photos), strict=True)
        found += [float(np.abs(own.numpy() - other).max()) for own, other in pairs]
    return float(np.max(found))  # NaN if there is one


def export(checkpoint: Path, output: Path) -> float:
    """Write a checkpoint's model to a .onnx or .pt2 file, in float32.

    Returns:
        The largest difference of its outputs from PyTorch's on random photos.

    Raises:
        UserError: the checkpoint cannot be used, a package is missing, the backbone cannot be
            exported, or the outputs differ by more than `TOLERANCE`.
    """
    write = write_pt2 if output.suffix == ".pt2" else write_onnx
    if write is write_onnx:
        load_onnx_packages()
    state = load_checkpoint(checkpoint)
    predictor = build_predictor(state, device="cpu", amp="off", batch_size=None)
    size = predictor.reader.image_size
    model = PhotoModel(predictor).to(memory_format=torch.contiguous_format).eval()
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with atomic_write(output) as temporary:
        try:
            with quiet(), torch.no_grad():
                batch = {0: torch.export.Dim.DYNAMIC}
                program = torch.export.export(model, (example,), dynamic_shapes=(batch,))
                names = ["embedding", *predictor.label_space.tasks]
                run = write(program, names, describe(state, predictor), temporary)
            difference = largest_difference(model, run, size)
        except (OSError, UserError):
            raise
        except Exception as error:  # the exporters share no type
            reason = " ".join(str(error).split())[:200]
            backbone = state["config"]["backbone"]
            raise UserError(f"cannot export backbone {backbone}: {reason}. Try .pt2") from error
        if not difference <= TOLERANCE:
            raise UserError(
                f"the exported model differs from PyTorch by {difference:.1e}, more than"
                f" {TOLERANCE:g}: {output}. Nothing was written; use predict.py"
            )
    return difference


@contextlib.contextmanager
def quiet() -> Any:
    """Silence the exporters' progress, and warnings about what they do inside."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    config = parse_config(ExportConfig, __doc__, argv)
    setup_logging()
    output = config.output or config.checkpoint.with_suffix(".onnx")
    difference = export(config.checkpoint, output)
    kind = f"ONNX opset {OPSET}" if output.suffix == ".onnx" else "torch.export"
    logger.info("largest difference from PyTorch on random photos: %.1e", difference)
    print(f"wrote {output} ({kind}, {output.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
