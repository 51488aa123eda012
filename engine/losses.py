"""TODO."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812  the name that PyTorch's users know
from torch import Tensor

from dataset_11k import TASKS


def task_losses(logits: Mapping[str, Tensor], labels: Tensor, label_smoothing: float) -> Tensor:
    """Return each task's mean cross-entropy, (n_tasks,) float32 in the order of TASKS.

    Args:
        logits: task -> (N, n_classes[task]), before softmax.
        labels: (N, n_tasks) int64.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Source: arXiv 2303.15263, section III; github.com/nathanlem1/IGAE-Net, utils/get_loss.py.
    """
    losses = [
        F.cross_entropy(logits[task].float(), labels[:, i], label_smoothing=label_smoothing)
        for i, task in enumerate(TASKS)
    ]
    return torch.stack(losses)
