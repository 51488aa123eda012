"""The model's input, an epoch's steps and means by hand, predictions, ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from data.tables import read_samples
from dataset_11k import (
    TASKS,
    Augmentation,
    BatchSampler,
    HandsDataset,
    Item,
    LabelSpace,
    PhotoReader,
    build_loader,
    resize_size,
)
from engine.distributed import Distributed
from engine.loop import (
    Predictions,
    Preprocessing,
    predict_split,
    train_one_epoch,
)
from engine.losses import MultiTaskLoss
from measures.classes import softmax
from model import IGAENet, parameter_groups
from utils import UserError

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = Preprocessing(CPU, MEAN, STD)
N_CLASSES = {"identity": 6, "gender": 2, "age": 6}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_model(backbone: str = "test_vit", **options: Any) -> IGAENet:
    torch.manual_seed(5)
    return IGAENet(backbone, N_CLASSES, pretrained=False, image_size=32, **options)


def hands(root: Path, augmentation: Augmentation | None = None) -> HandsDataset:
    samples = read_samples(root / "trainval" / "dorsal_dr" / "train.csv")
    space = LabelSpace.of_samples(samples)
    assert space.sizes == N_CLASSES
    image_size = resize_size(32) if augmentation else 32
    return HandsDataset(
        samples, root / "Hands", space, reader=PhotoReader(image_size), augmentation=augmentation
    )


def photos(n: int) -> Item:
    """Return a batch of noise with legal labels."""
    generator = torch.Generator().manual_seed(n)
    labels = [torch.randint(size, (n,), generator=generator) for size in N_CLASSES.values()]
    images = torch.randint(256, (n, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return Item(images, torch.stack(labels, dim=1), torch.arange(n), torch.empty(n, 0))


def inputs(batch: Item) -> Tensor:
    return PREPROCESSING(batch)[0]


class Batches(list[Item]):
    """A loader of ready batches, and its sampler."""

    def __init__(self, batches: Iterable[Item], sampler: BatchSampler | None = None) -> None:
        super().__init__(batches)
        self.batch_sampler = sampler or self

    def shares(self) -> list[tuple[int, int]]:
        return [(len(batch.image), len(batch.image)) for batch in self]


def cut(batch: Item, sizes: Sequence[int]) -> Batches:
    """Return the photos of a batch in batches of these sizes."""
    assert sum(sizes) == len(batch.image)
    columns = [torch.as_tensor(column).split(list(sizes)) for column in batch]
    return Batches(Item(*part) for part in zip(*columns, strict=True))


def criterion(weights: Sequence[float] = (1.0, 1.0, 1.0)) -> MultiTaskLoss:
    return MultiTaskLoss(list(TASKS), weights, 0.1)


def run_epoch(
    model: IGAENet,
    loader: Any,
    *,
    lr: float,
    loss_weights: Sequence[float] = (1.0, 1.0, 1.0),
    epoch: int = 1,
    preprocessing: Preprocessing = PREPROCESSING,
    **options: Any,
) -> dict[str, Any]:
    """Train an epoch by plain gradient descent at `lr`, the backbone at a tenth of it."""
    optimizer = torch.optim.SGD(parameter_groups(model), lr=lr)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return train_one_epoch(
        model,
        loader,
        optimizer,
        criterion(loss_weights),
        preprocessing=preprocessing,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        amp="off",
        epoch=epoch,
        **options,
    )


def gradients(model: IGAENet) -> Tensor:
    """Return a copy of all gradients, one after the other."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def copy_weights(model: IGAENet) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ----------------------------------------------------------------------------- the model's input


@pytest.mark.parametrize("image_size", [224, 64])
def test_evaluation_pixels_are_the_published_transforms(tmp_path: Path, image_size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    pixels, expected = [], []
    steps = [
        v2.Resize((image_size, image_size), InterpolationMode.BICUBIC),
        *(v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)),
    ]
    for photo in noise:
        image = Image.fromarray(photo).resize((160, 120), Image.Resampling.BICUBIC)
        image.save(tmp_path / "photo.png")
        pixels.append(
            torch.from_numpy(np.array(PhotoReader(image_size).read(tmp_path / "photo.png")))
        )
        expected.append(v2.Compose(steps)(image))
    batch = photos(2)._replace(image=torch.stack(pixels))
    images, labels = PREPROCESSING(batch)
    assert (images - torch.stack(expected)).abs().max() <= 1e-6
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, batch.labels)


@pytest.mark.parametrize("by_batch", [False, True])
def test_photos_augmented_one_by_one_are_not_augmented_again(by_batch: bool) -> None:
    augmentation = Augmentation(24, flip=0.5, jitter=0.3, by_batch=by_batch)
    batch = photos(5)._replace(draws=augmentation.draw(range(5)))
    images, _ = Preprocessing(CPU, MEAN, STD, augmentation)(batch)
    expected = inputs(batch)
    if by_batch:
        colours = augmentation.augment_batch(torch.as_tensor(batch.image), batch.draws)
        expected = v2.functional.normalize(colours, list(MEAN), list(STD))
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)


# ----------------------------------------------------------------------------- an epoch


def test_means_are_over_photos_with_a_known_label() -> None:
    """Batches of 4, 4 and 3 photos; the gender of 5 is unknown, of all in the last batch."""
    model, batch = tiny_model(), photos(11)
    batch.labels[torch.tensor([0, 1, 8, 9, 10]), 1] = -1
    with torch.no_grad():
        _, logits = model.train()(inputs(batch))  # this backbone has no dropout and no batch norm
    result = run_epoch(model, cut(batch, [4, 4, 3]), lr=0.0)
    names = [f"{kind}_{task}" for kind in ("loss", "accuracy") for task in TASKS]
    assert list(result) == ["loss", *names]
    total = 0.0
    for i, task in enumerate(TASKS):
        known = batch.labels[:, i] >= 0
        values, labels = logits[task][known], batch.labels[known, i]
        loss = torch.nn.functional.cross_entropy(values, labels, label_smoothing=0.1).item()
        accuracy = (values.argmax(dim=1) == labels).double().mean().item()
        assert result[f"loss_{task}"] == pytest.approx(loss, abs=1e-5)
        assert result[f"accuracy_{task}"] == pytest.approx(accuracy, abs=1e-9)
        total += loss
    assert result["loss"] == pytest.approx(total, abs=1e-5)
    batch.labels[:, 1] = -1
    result = run_epoch(model, cut(batch, [4, 4, 3]), lr=0.0)
    assert result["loss_gender"] is result["accuracy_gender"] is None
    assert result["loss"] == pytest.approx(result["loss_identity"] + result["loss_age"])


def test_a_step_follows_the_gradient_of_the_weighted_sum() -> None:
    """One step by hand: heads at the learning rate, backbone at a tenth of it."""
    model, by_hand, batch = tiny_model().eval(), tiny_model(), photos(8)
    result = run_epoch(model, cut(batch, [8]), lr=0.1, loss_weights=(1.0, 0.0, 0.5))
    assert model.training
    assert result["loss"] == pytest.approx(result["loss_identity"] + result["loss_age"] / 2)
    losses = criterion()(*by_hand.train()(inputs(batch)), batch.labels)
    (losses[0] + losses[2] / 2).backward()
    stepped = dict(model.named_parameters())
    for name, parameter in by_hand.named_parameters():
        lr = 0.01 if name.startswith("backbone.") else 0.1
        expected = parameter if parameter.grad is None else parameter - lr * parameter.grad
        torch.testing.assert_close(stepped[name], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(stepped["heads.gender.0.weight"], by_hand.heads["gender"][0].weight)  # type: ignore[index]


def test_gradients_do_not_add_up_over_steps() -> None:
    model, by_hand, batch = tiny_model(), tiny_model(), photos(8)
    seen = [copy_weights(model)]
    batches = cut(batch, [4, 4])
    run_epoch(model, batches, lr=0.1, after_step=lambda: seen.append(copy_weights(model)))
    for part, weights in zip(batches, seen[1:], strict=True):
        by_hand.zero_grad()
        run_epoch(by_hand, Batches([part]), lr=0.1)
        torch.testing.assert_close(copy_weights(by_hand), weights, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("clip_grad", [None, 0.5])
def test_a_batch_in_parts_gives_the_same_step(clip_grad: float | None) -> None:
    """Of 8 photos in parts of 3, 3 and 2, then of 2, one at a time."""
    batch, results, weights = cut(photos(10), [8, 2]), [], []
    for accumulate in (1, 3):
        model = tiny_model()  # without batch norm, whose statistics would be the parts' own
        options: dict[str, Any] = {"accumulate": accumulate, "clip_grad": clip_grad}
        results.append(run_epoch(model, batch, lr=0.1, **options))
        weights.append(copy_weights(model))
        assert (gradients(model).norm() < 0.501) == (clip_grad is not None)
    assert results[1] == pytest.approx(results[0], abs=1e-6)
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-5)
    assert (weights[0] - copy_weights(tiny_model())).abs().max() > 1e-3


class Meeting(Distributed):
    """Ranks that take turns in one process; `held` is what they have contributed so far."""

    held: dict[int, Any]

    def all_gather(self, value: Any) -> list[Any]:
        self.held[self.rank] = value
        return [self.held[rank] for rank in sorted(self.held)]


def meeting(world_size: int) -> list[Meeting]:
    Meeting.held = {}
    return [Meeting(rank, world_size, CPU) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_mean_of_the_ranks_gradients_is_that_of_one(world_size: int) -> None:
    """Batches of 6, 6 and 1, of which two of three ranks have no part."""
    batch, steps, results = photos(13), [], []
    for place in (Distributed(0, 1, CPU), *meeting(world_size)):
        model = tiny_model()
        sampler = BatchSampler(
            range(13), batch_size=6, train=True, rank=place.rank, world_size=place.world_size
        )
        rows = [torch.tensor([row for row, _ in keys]) for keys in sampler]
        items = (Item(*(torch.as_tensor(column)[part] for column in batch)) for part in rows)
        found: list[Tensor] = []

        def record(found: list[Tensor], model: IGAENet) -> None:
            found.append(gradients(model))

        options: dict[str, Any] = {"distributed": place, "accumulate": 2}
        after_step = partial(record, found, model)
        loader = Batches(items, sampler)
        results.append(run_epoch(model, loader, lr=0, after_step=after_step, **options))
        steps.append(found)
    for step, *parts in zip(*steps, strict=True):
        mean = torch.stack(parts).mean(dim=0)  # sums in another order: 2e-6 seen with PyTorch 2.11
        torch.testing.assert_close(mean, step, atol=5e-6, rtol=1e-4)
    assert results[-1] == pytest.approx(results[0], abs=1e-6)  # as the last rank sums them up


def diverge(model: IGAENet) -> None:
    with torch.no_grad():
        dict(model.named_parameters())["heads.age.0.bias"].fill_(math.nan)


@pytest.mark.parametrize(("step", "n_batches"), [(1, 1), (3, 4), (4, 4)])
def test_a_loss_that_is_not_finite_stops_with_the_place(step: int, n_batches: int) -> None:
    model, n_steps = tiny_model(), 0

    def after_step() -> None:
        nonlocal n_steps
        n_steps += 1
        if n_steps == step - 1:
            diverge(model)

    if step == 1:
        diverge(model)
    batches = cut(photos(2 * n_batches), [2] * n_batches)
    with pytest.raises(UserError, match="not finite") as caught:
        run_epoch(model, batches, lr=3e-4, epoch=7, accumulate=2, after_step=after_step)
    message = str(caught.value)
    for part in (f"epoch 7, step {step}, learning rate 0.0003", "age nan", "--lr"):
        assert part in message
    assert "identity nan" not in message


def test_a_long_epoch_stops_before_its_end() -> None:
    model, steps = tiny_model(), []
    diverge(model)
    with pytest.raises(UserError, match="step 1,"):
        run_epoch(model, Batches([photos(7)] * 1000), lr=0.1, after_step=lambda: steps.append(1))
    assert len(steps) <= 100


# ----------------------------------------------------------------------------- predictions


def predict(
    model: IGAENet,
    dataset: HandsDataset,
    batch_size: int,
    place: Distributed | None = None,
    amp: str = "off",
) -> Predictions:
    rank, world_size = (place.rank, place.world_size) if place else (0, 1)
    loader = build_loader(
        dataset,
        batch_size=batch_size,
        num_workers=0,
        train=False,
        rank=rank,
        world_size=world_size,
    )
    return predict_split(model, loader, preprocessing=PREPROCESSING, amp=amp, distributed=place)


def assert_equal(one: Predictions, other: Predictions) -> None:
    np.testing.assert_array_equal(one.embeddings, other.embeddings)
    for task in TASKS:
        np.testing.assert_array_equal(one.labels[task], other.labels[task])
        np.testing.assert_array_equal(one.logits[task], other.logits[task])


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
def test_batch_size_changes_no_prediction(backbone: str, split_root: Path) -> None:
    model = tiny_model(backbone, drop_path=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dataset = hands(split_root)
    whole = predict(model, dataset, len(dataset))
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    for batch_size in (1, 5):
        result = predict(model, dataset, batch_size)
        for task, n in N_CLASSES.items():
            np.testing.assert_array_equal(result.labels[task], whole.labels[task])
            logits, expected = result.logits[task], whole.logits[task]
            assert (logits.shape, logits.dtype) == ((len(dataset), n), np.float32)
            np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
            np.testing.assert_allclose(softmax(logits), softmax(expected), atol=1e-4)


def test_predictions_come_in_csv_order(split_root: Path) -> None:
    model, dataset = tiny_model().eval(), hands(split_root)
    result = predict(model, dataset, 5)
    for i, task in enumerate(TASKS):
        np.testing.assert_array_equal(result.labels[task], dataset.labels[:, i].numpy())
    with torch.inference_mode():
        for row in range(len(dataset)):
            embedding = model.embed(inputs(dataset.__getitems__([(row, 0)]))).numpy()[0]
            np.testing.assert_allclose(result.embeddings[row], embedding, atol=1e-4)
    distances = np.abs(result.embeddings - result.embeddings[0]).max(axis=1)
    assert (distances[1:] > 1e-3).any()  # the photos differ, so the order can be told


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_predict_what_one_does(world_size: int, split_root: Path) -> None:
    """Of three batches: the fourth rank has none."""
    model, dataset = tiny_model(), hands(split_root)
    results = [predict(model, dataset, 5, place) for place in meeting(world_size)]
    assert_equal(results[-1], predict(model, dataset, 5))


def test_bf16_predictions_are_float32_and_near(split_root: Path) -> None:
    model, dataset = tiny_model(), hands(split_root)
    full, half = (predict(model, dataset, 6, amp=amp) for amp in ("off", "bf16"))
    assert half.embeddings.dtype == np.float32
    np.testing.assert_allclose(half.embeddings, full.embeddings, atol=0.2)
    assert not np.array_equal(half.embeddings, full.embeddings)


def test_predictions_that_are_not_finite_are_refused(split_root: Path) -> None:
    model = tiny_model()
    diverge(model)
    with pytest.raises(UserError, match="predictions are not finite"):
        predict(model, hands(split_root), 6)
