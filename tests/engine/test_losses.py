"""Losses by hand; photos of unknown class; a loss of embeddings."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dataset_11k import TASKS
from engine.losses import LOSSES, CrossEntropy, MultiTaskLoss

EMBEDDINGS = torch.zeros(9, 4)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> np.ndarray:
    """Return each row's cross-entropy with a smoothed target, written out."""
    values = logits.detach().double().numpy()
    logs = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    target = np.full_like(values, smoothing / values.shape[1])
    target[np.arange(len(values)), labels.numpy()] += 1 - smoothing
    return -(target * logs).sum(axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_over_the_known_labels(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 6) * 3, torch.randint(6, (9,))
    loss = CrossEntropy(smoothing)
    expected = cross_entropy(logits, labels, smoothing)
    assert loss(EMBEDDINGS, logits, labels).item() == pytest.approx(expected.mean(), abs=1e-5)
    # the published sum, bit for bit
    published = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert torch.equal(loss(EMBEDDINGS, logits, labels), published)
    some = torch.where(torch.arange(9) % 3 == 0, -1, labels)
    known = expected[some.numpy() >= 0].mean()
    assert loss(EMBEDDINGS, logits, some).item() == pytest.approx(known, abs=1e-5)


def test_a_batch_without_a_known_label_has_loss_0_and_gradient_0() -> None:
    logits = torch.randn(9, 6, requires_grad=True)
    loss = CrossEntropy(0.1)(EMBEDDINGS, logits, torch.full((9,), -1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_indifferent_logits_and_half_precision() -> None:
    logits = {"identity": torch.zeros(4, 6), "gender": torch.zeros(4, 2)}
    logits = {task: values.bfloat16() for task, values in logits.items()}
    criterion = MultiTaskLoss(["identity", "gender"], [1, 2], 0.1)
    losses = criterion(torch.zeros(4, 3), logits, torch.zeros(4, 2, dtype=torch.int64))
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx([math.log(6), math.log(2)], abs=1e-6)
    assert criterion.weights.tolist() == [1, 2]


def test_a_task_may_have_a_loss_of_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    class PullTogether(nn.Module):
        """Mean distance of the photos of a class from their mean."""

        def __init__(self, label_smoothing: float) -> None:
            super().__init__()

        def forward(self, embeddings: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            groups = [embeddings[labels == label] for label in labels.unique()]
            return torch.stack([(g - g.mean(dim=0)).norm(dim=1).mean() for g in groups]).mean()

    monkeypatch.setitem(LOSSES, "pull_together", PullTogether)
    row = dataclasses.replace(TASKS["identity"], loss="pull_together")
    monkeypatch.setitem(TASKS, "identity", row)
    criterion = MultiTaskLoss(["identity", "gender"], [1, 1], 0.1)
    embeddings = torch.tensor([[0.0, 0], [2, 0], [5, 5]], requires_grad=True)
    logits = {"identity": torch.zeros(3, 2), "gender": torch.zeros(3, 2)}
    losses = criterion(embeddings, logits, torch.tensor([[0, 0], [0, 1], [1, 1]]))
    assert losses.tolist() == pytest.approx([0.5, math.log(2)])
    losses.sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad[0, 0] < 0 < embeddings.grad[1, 0]
