"""Losses by hand, an epoch's means over photos, predictions, mixed precision, workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import engine
from dataset_11k import (
    TASKS,
    HandsDataset,
    Item,
    LabelSpace,
    build_loader,
    build_transform,
    read_rows,
)
from engine import (
    build_model,
    check_backbone,
    predict_split,
    resolve_amp,
    step_seconds,
    task_losses,
    train_one_epoch,
)
from metrics import softmax
from model import IGAENet, parameter_groups
from utils import UserError

CPU = torch.device("cpu")
N_CLASSES = {"identity": 6, "gender": 2, "age": 6}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_model(backbone: str = "test_vit", **options: Any) -> IGAENet:
    torch.manual_seed(5)
    return build_model(backbone, N_CLASSES, pretrained=False, image_size=32, **options)


def hands(root: Path, *, train: bool, split: str = "train") -> HandsDataset:
    rows = read_rows(root / "trainval" / "dorsal_dr" / f"{split}.csv")
    transform = build_transform(train=train, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    space = LabelSpace.of_people(rows["id"].tolist())
    assert space.sizes == N_CLASSES
    return HandsDataset(rows, root / "Hands", space, transform=transform)


def photos(n: int) -> Item:
    """Return a batch of noise with legal labels."""
    generator = torch.Generator().manual_seed(n)
    labels = [torch.randint(size, (n,), generator=generator) for size in N_CLASSES.values()]
    images = torch.randn(n, 3, 32, 32, generator=generator)
    return Item(images, torch.stack(labels, dim=1), torch.arange(n))


def cut(batch: Item, sizes: Sequence[int]) -> list[Item]:
    """Return the photos of a batch in batches of these sizes."""
    assert sum(sizes) == len(batch.image)
    rows = torch.arange(len(batch.image))
    parts = zip(batch.image.split(sizes), batch.labels.split(sizes), rows.split(sizes), strict=True)
    return [Item(*part) for part in parts]


def run_epoch(
    model: IGAENet,
    loader: Any,
    *,
    lr: float,
    loss_weights: Sequence[float] = (1.0, 1.0, 1.0),
    epoch: int = 1,
) -> dict[str, float]:
    """Train an epoch by plain gradient descent at `lr`, the backbone at a tenth of it."""
    groups = parameter_groups(model)
    optimizer = torch.optim.SGD(groups, lr=lr)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return train_one_epoch(
        model,
        loader,
        optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=CPU,
        amp="off",
        loss_weights=loss_weights,
        label_smoothing=0.1,
        epoch=epoch,
    )


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> np.ndarray:
    """Return each row's cross-entropy with a smoothed target, written out."""
    values = logits.detach().double().numpy()
    logs = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    n_classes = values.shape[1]
    target = np.full_like(values, smoothing / n_classes)
    target[np.arange(len(values)), labels.numpy()] += 1 - smoothing
    return -(target * logs).sum(axis=1)


# ----------------------------------------------------------------------------- losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_losses_equal_smoothed_cross_entropy(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = {task: torch.randn(9, n) * 3 for task, n in N_CLASSES.items()}
    labels = photos(9).labels
    losses = task_losses(logits, labels, smoothing)
    assert losses.shape == (3,)
    for i, task in enumerate(TASKS):
        expected = cross_entropy(logits[task], labels[:, i], smoothing).mean()
        assert losses[i].item() == pytest.approx(expected, abs=1e-5)


def test_loss_of_indifferent_logits_is_the_log_of_the_classes() -> None:
    logits = {task: torch.zeros(4, n) for task, n in N_CLASSES.items()}
    losses = task_losses(logits, photos(4).labels, 0.1)
    expected = [math.log(6), math.log(2), math.log(6)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_losses_of_half_precision_logits_are_float32() -> None:
    logits = {task: torch.randn(4, n).bfloat16() for task, n in N_CLASSES.items()}
    assert task_losses(logits, photos(4).labels, 0.1).dtype == torch.float32


# ----------------------------------------------------------------------------- an epoch


def test_a_short_last_batch_weighs_by_its_photos() -> None:
    model, batch = tiny_model(), photos(11)
    with torch.no_grad():
        logits = model.train()(batch.image)  # this backbone has no dropout and no batch norm
    per_photo = {
        task: cross_entropy(logits[task], batch.labels[:, i], 0.1) for i, task in enumerate(TASKS)
    }
    hits = {
        task: (logits[task].argmax(dim=1) == batch.labels[:, i]).double().mean().item()
        for i, task in enumerate(TASKS)
    }
    result = run_epoch(model, cut(batch, [4, 4, 3]), lr=0.0)
    assert result.keys() == {
        "loss",
        *(f"{kind}_{task}" for kind in ("loss", "accuracy") for task in TASKS),
    }
    for task in TASKS:
        over_photos = per_photo[task].mean()
        over_batches = np.mean([part.mean() for part in np.split(per_photo[task], [4, 8])])
        assert abs(over_photos - over_batches) > 1e-4  # else this test could not tell them apart
        assert result[f"loss_{task}"] == pytest.approx(over_photos, abs=1e-5)
        assert result[f"accuracy_{task}"] == pytest.approx(hits[task], abs=1e-9)
    total = sum(values.mean() for values in per_photo.values())
    assert result["loss"] == pytest.approx(total, abs=1e-5)


def test_loss_weights_weigh_the_sum_and_the_gradients() -> None:
    model, batch = tiny_model(), photos(8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = run_epoch(model, cut(batch, [8]), lr=0.1, loss_weights=(0.5, 0.0, 2.0))
    expected = 0.5 * result["loss_identity"] + 2.0 * result["loss_age"]
    assert result["loss"] == pytest.approx(expected, abs=1e-6)
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert {"heads.identity.0.weight", "heads.age.0.weight"} < changed
    assert not changed & {"heads.gender.0.weight", "heads.gender.0.bias"}
    assert any(name.startswith("backbone.") for name in changed)


def test_a_step_follows_the_gradient_of_the_weighted_sum() -> None:
    """One step by hand: heads at the learning rate, backbone at a tenth of it."""
    model, by_hand, batch = tiny_model(), tiny_model(), photos(8)
    run_epoch(model, cut(batch, [8]), lr=0.1, loss_weights=(1.0, 2.0, 0.5))
    losses = task_losses(by_hand.train()(batch.image), batch.labels, 0.1)
    (losses[0] + 2 * losses[1] + losses[2] / 2).backward()
    stepped = dict(model.named_parameters())
    for name, parameter in by_hand.named_parameters():
        lr = 0.01 if name.startswith("backbone.") else 0.1
        expected = parameter if parameter.grad is None else parameter - lr * parameter.grad
        torch.testing.assert_close(stepped[name], expected, atol=1e-6, rtol=1e-5)


def test_training_mode_is_on_and_gradients_do_not_pile_up() -> None:
    """Two batches: the second step follows the second batch's gradient alone."""
    model, by_hand, batch = tiny_model().eval(), tiny_model(), photos(8)
    run_epoch(model, cut(batch, [4, 4]), lr=0.1)
    assert model.training
    for part in cut(batch, [4, 4]):
        run_epoch(by_hand, [part], lr=0.1)
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("step", "n_batches"), [(1, 1), (3, 4), (4, 4)])
def test_a_loss_that_is_not_finite_stops_with_the_place(step: int, n_batches: int) -> None:
    batches = cut(photos(2 * n_batches), [2] * n_batches)
    batches[step - 1].image[0] = math.nan
    with pytest.raises(UserError, match="not finite") as caught:
        run_epoch(tiny_model(), batches, lr=3e-4, epoch=7)
    message = str(caught.value)
    for part in (f"epoch 7, step {step}, learning rate 0.0003", "identity nan", "age nan", "--lr"):
        assert part in message


def test_a_long_epoch_does_not_wait_for_its_end() -> None:
    n_seen = 0

    def endless() -> Iterator[Item]:
        nonlocal n_seen
        batch = photos(1)
        batch.image[:] = math.inf
        while n_seen < 1000:
            n_seen += 1
            yield batch

    with pytest.raises(UserError, match="step 1,"):
        run_epoch(tiny_model(), endless(), lr=0.1)
    assert n_seen <= 100


# ----------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
def test_batch_size_changes_no_prediction(backbone: str, split_root: Path) -> None:
    model = tiny_model(backbone, drop_path=0.5).train()  # predicting has to leave that mode
    dataset = hands(split_root, train=False)
    results = {
        size: predict_split(
            model,
            build_loader(dataset, batch_size=size, num_workers=0, shuffle=False),
            device=CPU,
            amp="off",
        )
        for size in (1, 5, len(dataset))
    }
    assert not model.training
    whole = results[len(dataset)]
    for result in results.values():
        np.testing.assert_array_equal(result.labels, whole.labels)
        for task, n in N_CLASSES.items():
            assert result.logits[task].shape == (len(dataset), n)
            assert result.logits[task].dtype == np.float32
            np.testing.assert_array_equal(
                result.logits[task].argmax(axis=1), whole.logits[task].argmax(axis=1)
            )
            np.testing.assert_allclose(
                softmax(result.logits[task]), softmax(whole.logits[task]), atol=1e-4
            )


def test_predictions_come_in_csv_order(split_root: Path) -> None:
    model, dataset = tiny_model().eval(), hands(split_root, train=False)
    loader = build_loader(dataset, batch_size=5, num_workers=0, shuffle=False)
    result = predict_split(model, loader, device=CPU, amp="off")
    np.testing.assert_array_equal(result.labels, dataset.labels.numpy())
    assert len(np.unique(result.labels[:, 0])) == 6
    with torch.inference_mode():
        for row in range(len(dataset)):
            embedding = model.embed(dataset[row, 0].image[None]).numpy()[0]
            np.testing.assert_allclose(result.embedding[row], embedding, atol=1e-4)
    distances = np.abs(result.embedding - result.embedding[0]).max(axis=1)
    assert (distances[1:] > 1e-3).any()  # the photos differ, so an order can be told


def test_predicting_keeps_no_gradients_and_moves_no_statistics(split_root: Path) -> None:
    model = tiny_model("test_resnet").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loader = build_loader(
        hands(split_root, train=False), batch_size=4, num_workers=0, shuffle=False
    )
    predict_split(model, loader, device=CPU, amp="off")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bf16_predictions_are_float32_and_near(split_root: Path) -> None:
    model = tiny_model()
    dataset = hands(split_root, train=False)
    loader = build_loader(dataset, batch_size=6, num_workers=0, shuffle=False)
    plain = predict_split(model, loader, device=CPU, amp="off")
    half = predict_split(model, loader, device=CPU, amp="bf16")
    assert half.embedding.dtype == np.float32
    np.testing.assert_allclose(half.embedding, plain.embedding, atol=0.2)
    assert not np.array_equal(half.embedding, plain.embedding)


# ----------------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_fp16_is_refused_without_cuda(device: str) -> None:
    with pytest.raises(UserError, match=f"--amp fp16 needs CUDA, not {device}.*bf16 or off"):
        resolve_amp("fp16", tiny_model(), torch.device(device), batch_size=2, image_size=32)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_given_precision_is_kept_without_a_probe(
    amp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "step_seconds", lambda *a, **k: pytest.fail("probed"))
    assert resolve_amp(amp, tiny_model(), CPU, batch_size=2, image_size=32) == amp


@pytest.mark.parametrize(
    ("plain", "fast", "expected"),
    [(1.0, 0.5, "bf16"), (1.0, 0.94, "bf16"), (1.0, 0.96, "off"), (1.0, 1.0, "off"), (1, 3, "off")],
)
def test_auto_on_a_cpu_takes_bf16_where_it_is_5_percent_faster(
    plain: float, fast: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def seconds(model: IGAENet, images: Tensor, amp: str, *, limit: float) -> float:
        shapes.append(tuple(images.shape))
        return {"off": plain, "bf16": fast}[amp]

    monkeypatch.setattr(engine, "step_seconds", seconds)
    assert resolve_amp("auto", tiny_model(), CPU, batch_size=3, image_size=32) == expected
    assert shapes == [(3, 3, 32, 32)] * 2


def test_auto_elsewhere() -> None:
    mps = torch.device("mps")
    assert resolve_amp("auto", tiny_model(), mps, batch_size=3, image_size=32) == "off"


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), "bf16"), ((7, 5), "fp16")])
def test_auto_on_cuda(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model, cuda = tiny_model(), torch.device("cuda")
    assert resolve_amp("auto", model, cuda, batch_size=3, image_size=32) == expected


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_probe_leaves_the_model_as_it_was(amp: str) -> None:
    model = tiny_model("test_resnet").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert 0 < step_seconds(model, torch.rand(2, 3, 64, 64), amp, limit=10) < math.inf
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 1), (1e9, 2)])
def test_a_slow_probe_ends_after_its_first_step(
    limit: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_steps = 0
    forward = IGAENet.forward

    def counted(self: IGAENet, images: Tensor) -> dict[str, Tensor]:
        nonlocal n_steps
        n_steps += 1
        return forward(self, images)

    monkeypatch.setattr(IGAENet, "forward", counted)
    step_seconds(tiny_model(), torch.rand(2, 3, 32, 32), "off", limit=limit)
    assert n_steps == expected


# ----------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("name", "image_size", "expected"),
    [("no_such_net", 32, "unknown backbone"), ("test_vit", 15, "--image_size 15: .* works")],
)
def test_what_the_model_refuses_is_a_users_error(name: str, image_size: int, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        check_backbone(name, image_size)
    with pytest.raises(UserError, match=expected):
        build_model(name, N_CLASSES, pretrained=False, image_size=image_size)


# ----------------------------------------------------------------------------- workers


def test_workers_change_no_weight(split_root: Path) -> None:
    states, results = [], []
    for num_workers in (0, 2):
        model = tiny_model("test_resnet")
        loader = build_loader(
            hands(split_root, train=True),
            batch_size=5,
            num_workers=num_workers,
            shuffle=True,
            seed=3,
        )
        for epoch in (1, 2):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            results.append(run_epoch(model, loader, lr=0.1, epoch=epoch))
        states.append(model.state_dict())
    assert results[:2] == results[2:]
    assert results[0] != results[1]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
