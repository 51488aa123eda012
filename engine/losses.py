"""Losses: one per task, chosen by name in `dataset_11k.TASKS`, and their weighted sum.

A loss is called with everything the model computes for a batch, so that metric losses, which
compare embeddings, fit as well as losses of logits. To add one, write a class like `CrossEntropy`
and enter it in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812  the name that PyTorch's users know
from torch import Tensor, nn

from dataset_11k import TASKS

UNKNOWN = -1  # label of a photo whose class is unknown


class CrossEntropy(nn.Module):
    """Mean cross-entropy over the photos whose label is known; 0 if there are none.

    Args:
        label_smoothing: fraction of the target spread over all classes, in [0, 1).

    Source: arXiv 2303.15263, section III; github.com/nathanlem1/IGAE-Net, utils/get_loss.py.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, embeddings: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a float32 scalar.

        Args:
            embeddings: (N, D), not used.
            logits: (N, n_classes), before softmax.
            labels: (N,) int64, `UNKNOWN` where the class is unknown.
        """
        any_known = (labels != UNKNOWN).any()
        # with no known label the mean is 0 / 0: take any class, and multiply by 0
        labels = torch.where(any_known, labels, 0)
        loss = F.cross_entropy(
            logits.float(), labels, label_smoothing=self.label_smoothing, ignore_index=UNKNOWN
        )
        return loss * any_known


# Name -> class; it is constructed with `label_smoothing`, and has no parameters to be trained.
LOSSES: dict[str, type[nn.Module]] = {"cross_entropy": CrossEntropy}


class MultiTaskLoss(nn.Module):
    """The losses of several tasks, and the weights of their sum, which is trained on.

    Args:
        tasks: names, in the order of the label columns.
        weights: of the tasks in the sum.
        label_smoothing: of the losses that use it.
    """

    weights: Tensor  # (n_tasks,) float32

    def __init__(
        self, tasks: Sequence[str], weights: Sequence[float], label_smoothing: float
    ) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(
            {task: LOSSES[TASKS[task].loss](label_smoothing=label_smoothing) for task in tasks}
        )
        self.register_buffer("weights", torch.tensor(list(weights), dtype=torch.float32))

    def forward(self, embeddings: Tensor, logits: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Return each task's loss, (n_tasks,) float32.

        Args:
            embeddings: (N, D).
            logits: task -> (N, n_classes[task]), before softmax.
            labels: (N, n_tasks) int64, `UNKNOWN` where the class is unknown.
        """
        pairs = zip(self.losses.items(), labels.unbind(dim=1), strict=True)
        return torch.stack(
            [loss(embeddings, logits[task], column) for (task, loss), column in pairs]
        )
