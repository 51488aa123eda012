"""A model's input, losses by hand, an epoch's means over photos, predictions, mixed precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from data.tables import read_rows
from dataset_11k import (
    TASKS,
    Augmentation,
    BatchSampler,
    HandsDataset,
    Item,
    LabelSpace,
    build_loader,
    read_pixels,
    resize_size,
)
from engine import precision
from engine.distributed import Ranks
from engine.loop import (
    Predictions,
    Preprocessing,
    Recipe,
    build_model,
    check_backbone,
    predict_split,
    train_one_epoch,
)
from engine.losses import task_losses
from engine.precision import Shape, resolve_amp, step_seconds
from measures.classes import softmax
from model import IGAENet, parameter_groups
from utils import UserError

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = Preprocessing(CPU, MEAN, STD)
ALONE = Ranks(0, 1, CPU)
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


def hands(root: Path, augmentation: Augmentation | None = None) -> HandsDataset:
    rows = read_rows(root / "trainval" / "dorsal_dr" / "train.csv")
    space = LabelSpace.of_people(rows["id"].tolist())
    assert space.sizes == N_CLASSES
    side = resize_size(32) if augmentation else 32
    return HandsDataset(rows, root / "Hands", space, side=side, augmentation=augmentation)


def photos(n: int) -> Item:
    """Return a batch of noise with legal labels."""
    generator = torch.Generator().manual_seed(n)
    labels = [torch.randint(size, (n,), generator=generator) for size in N_CLASSES.values()]
    images = torch.randint(256, (n, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return Item(images, torch.stack(labels, dim=1), torch.arange(n), torch.empty(n, 0))


def inputs(batch: Item) -> Tensor:
    return PREPROCESSING(batch)[0]


class Batches(list[Item]):
    """A loader of batches that are made already, and its sampler."""

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


def run_epoch(
    model: IGAENet,
    loader: Any,
    *,
    lr: float,
    loss_weights: Sequence[float] = (1.0, 1.0, 1.0),
    epoch: int = 1,
    preprocessing: Preprocessing = PREPROCESSING,
    ranks: Ranks = ALONE,
    after_step: Callable[[], None] | None = None,
    **options: Any,
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
        recipe=Recipe("off", loss_weights, label_smoothing=0.1, **options),
        preprocessing=preprocessing,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        ranks=ranks,
        epoch=epoch,
        after_step=after_step,
    )


def gradients(model: IGAENet) -> Tensor:
    """Return a copy of all gradients, one after the other."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def copy_weights(model: IGAENet) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> np.ndarray:
    """Return each row's cross-entropy with a smoothed target, written out."""
    values = logits.detach().double().numpy()
    logs = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    n_classes = values.shape[1]
    target = np.full_like(values, smoothing / n_classes)
    target[np.arange(len(values)), labels.numpy()] += 1 - smoothing
    return -(target * logs).sum(axis=1)


# ----------------------------------------------------------------------------- a model's input


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
        pixels.append(torch.from_numpy(np.array(read_pixels(tmp_path / "photo.png", image_size))))
        expected.append(v2.Compose(steps)(image))
    batch = photos(2)._replace(image=torch.stack(pixels))
    images, labels = PREPROCESSING(batch)
    assert (images - torch.stack(expected)).abs().max() <= 1e-6
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, batch.labels)


def test_a_grey_photo_against_hand_computation() -> None:
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(1, 32, 32, 3)
    images = inputs(photos(1)._replace(image=image))
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    for channel, value in zip(images[0], expected, strict=True):
        assert channel.min().item() == pytest.approx(value, abs=1e-5)
        assert channel.max().item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("by_batch", [False, True])
def test_what_is_augmented_by_photo_is_not_augmented_again(by_batch: bool) -> None:
    augmentation = Augmentation(24, flip=0.5, jitter=0.3, by_batch=by_batch)
    batch = photos(5)._replace(draws=augmentation.draw(range(5)))
    images, _ = Preprocessing(CPU, MEAN, STD, augmentation)(batch)
    expected = inputs(batch)
    if by_batch:
        colours = augmentation.augment_batch(torch.as_tensor(batch.image), batch.draws)
        expected = v2.functional.normalize(colours, list(MEAN), list(STD))
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
    assert images.is_contiguous(memory_format=torch.channels_last)


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
        logits = model.train()(inputs(batch))  # this backbone has no dropout and no batch norm
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
    losses = task_losses(by_hand.train()(inputs(batch)), batch.labels, 0.1)
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
        by_hand.zero_grad()
        run_epoch(by_hand, Batches([part]), lr=0.1)
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_batch_in_parts_gives_the_same_step() -> None:
    """Of 8 photos in parts of 3, 3 and 2, then of 2, one at a time."""
    batch, results, weights = cut(photos(10), [8, 2]), [], []
    for parts in (1, 3):
        model = tiny_model()  # without batch norm, whose statistics would be the parts' own
        results.append(run_epoch(model, batch, lr=0.1, parts=parts))
        weights.append(copy_weights(model))
    assert results[1] == pytest.approx(results[0], abs=1e-6)
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-5)
    assert (weights[0] - copy_weights(tiny_model())).abs().max() > 1e-3


@pytest.mark.parametrize("parts", [1, 3])
def test_clipping_bounds_the_norm_of_the_whole_steps_gradient(parts: int) -> None:
    found = []
    for clip_grad in (None, 0.5, 1e6):
        model = tiny_model()
        run_epoch(model, cut(photos(8), [8]), lr=0.1, clip_grad=clip_grad, parts=parts)
        found.append(gradients(model))
    plain, clipped, free = found
    assert plain.norm() > 1
    assert clipped.norm().item() == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(clipped, plain * 0.5 / plain.norm(), atol=1e-6, rtol=1e-4)
    assert torch.equal(free, plain)


def test_the_hook_is_called_after_every_step() -> None:
    model = tiny_model()
    seen = [copy_weights(model)]
    batches = cut(photos(11), [4, 4, 3])
    run_epoch(model, batches, lr=0.1, parts=2, after_step=lambda: seen.append(copy_weights(model)))
    assert len(seen) == 4
    assert all((b - a).abs().max() > 1e-4 for a, b in zip(seen, seen[1:], strict=False))
    assert torch.equal(seen[-1], copy_weights(model))


class Meeting(Ranks):
    """Ranks that take their turn in one process; `held` is what they have said so far."""

    held: dict[int, Any]

    def gather(self, value: Any) -> list[Any]:
        self.held[self.rank] = value
        return [self.held[rank] for rank in sorted(self.held)]


def meeting(n_ranks: int) -> list[Meeting]:
    Meeting.held = {}
    return [Meeting(rank, n_ranks, CPU) for rank in range(n_ranks)]


def record_gradients(model: IGAENet, found: list[Tensor]) -> None:
    found.append(gradients(model))


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_the_mean_of_the_ranks_gradients_is_that_of_one(n_ranks: int) -> None:
    """Batches of 6, 6 and 1, of which two of three ranks have no part."""
    batch, steps = photos(13), []
    for ranks in (ALONE, *meeting(n_ranks)):
        model = tiny_model()
        sampler = BatchSampler(13, batch_size=6, shuffle=True, rank=ranks.rank, n_ranks=ranks.count)
        rows = [torch.tensor([row for row, _ in keys]) for keys in sampler]
        items = (Item(*(torch.as_tensor(column)[part] for column in batch)) for part in rows)
        found: list[Tensor] = []
        result = run_epoch(
            model,
            Batches(items, sampler),
            lr=0,
            ranks=ranks,
            parts=2,
            after_step=partial(record_gradients, model, found),
        )
        steps.append(found)
        if ranks is ALONE:
            expected = result
    for step, *parts in zip(*steps, strict=True):
        mean = torch.stack(parts).mean(dim=0)  # sums in another order: 2e-6 seen with PyTorch 2.11
        torch.testing.assert_close(mean, step, atol=5e-6, rtol=1e-4)
    assert result == pytest.approx(expected, abs=1e-6)  # as the last rank sums them up


def diverge(model: IGAENet) -> None:
    with torch.no_grad():
        dict(model.named_parameters())["heads.age.0.bias"].fill_(math.nan)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("step", "n_batches"), [(1, 1), (3, 4), (4, 4)])
def test_a_loss_that_is_not_finite_stops_with_the_place(
    step: int, n_batches: int, parts: int
) -> None:
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
        run_epoch(model, batches, lr=3e-4, epoch=7, parts=parts, after_step=after_step)
    message = str(caught.value)
    for part in (f"epoch 7, step {step}, learning rate 0.0003", "age nan", "--lr"):
        assert part in message
    assert "identity nan" not in message


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_a_long_epoch_does_not_wait_for_its_end(parts: int) -> None:
    model, steps = tiny_model(), []
    diverge(model)
    batches = Batches([photos(7)] * 1000)
    with pytest.raises(UserError, match="step 1,"):
        run_epoch(model, batches, lr=0.1, parts=parts, after_step=lambda: steps.append(1))
    assert len(steps) <= 100


# ----------------------------------------------------------------------------- predictions


def predict(
    model: IGAENet, dataset: HandsDataset, batch_size: int, ranks: Ranks = ALONE, amp: str = "off"
) -> Predictions:
    loader = build_loader(
        dataset,
        batch_size=batch_size,
        num_workers=0,
        shuffle=False,
        rank=ranks.rank,
        n_ranks=ranks.count,
    )
    return predict_split(model, loader, preprocessing=PREPROCESSING, amp=amp, ranks=ranks)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext"])
def test_batch_size_changes_no_prediction(backbone: str, split_root: Path) -> None:
    model = tiny_model(backbone, drop_path=0.5).train()  # predicting has to leave that mode
    dataset = hands(split_root)
    results = {size: predict(model, dataset, size) for size in (1, 5, len(dataset))}
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
    model, dataset = tiny_model().eval(), hands(split_root)
    result = predict(model, dataset, 5)
    np.testing.assert_array_equal(result.labels, dataset.labels.numpy())
    assert len(np.unique(result.labels[:, 0])) == 6
    with torch.inference_mode():
        for row in range(len(dataset)):
            embedding = model.embed(inputs(dataset.__getitems__([(row, 0)]))).numpy()[0]
            np.testing.assert_allclose(result.embedding[row], embedding, atol=1e-4)
    distances = np.abs(result.embedding - result.embedding[0]).max(axis=1)
    assert (distances[1:] > 1e-3).any()  # the photos differ, so an order can be told


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_ranks_predict_what_one_does(n_ranks: int, split_root: Path) -> None:
    """Of three batches: the fourth rank has none."""
    model, dataset = tiny_model(), hands(split_root)
    whole = predict(model, dataset, 5)
    result = [predict(model, dataset, 5, ranks) for ranks in meeting(n_ranks)][-1]
    np.testing.assert_array_equal(result.labels, whole.labels)
    np.testing.assert_array_equal(result.embedding, whole.embedding)
    for task in TASKS:
        np.testing.assert_array_equal(result.logits[task], whole.logits[task])


def test_predicting_keeps_no_gradients_and_moves_no_statistics(split_root: Path) -> None:
    model = tiny_model("test_resnet").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, hands(split_root), 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bf16_predictions_are_float32_and_near(split_root: Path) -> None:
    model, dataset = tiny_model(), hands(split_root)
    plain = predict(model, dataset, 6)
    half = predict(model, dataset, 6, amp="bf16")
    assert half.embedding.dtype == np.float32
    np.testing.assert_allclose(half.embedding, plain.embedding, atol=0.2)
    assert not np.array_equal(half.embedding, plain.embedding)


# ----------------------------------------------------------------------------- mixed precision


SHAPE = Shape(batch_size=3, image_size=32)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_fp16_is_refused_without_cuda(device: str) -> None:
    with pytest.raises(UserError, match=f"--amp fp16 needs CUDA, not {device}.*bf16 or off"):
        resolve_amp("fp16", tiny_model(), torch.device(device), SHAPE)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_given_precision_is_kept_without_a_probe(
    amp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "step_seconds", lambda *a, **k: pytest.fail("probed"))
    assert resolve_amp(amp, tiny_model(), CPU, SHAPE) == amp


@pytest.mark.parametrize(
    ("plain", "fast", "expected"),
    [(1.0, 0.5, "bf16"), (1.0, 0.94, "bf16"), (1.0, 0.96, "off"), (1.0, 1.0, "off"), (1, 3, "off")],
)
def test_auto_on_a_cpu_takes_bf16_where_it_is_5_percent_faster(
    plain: float, fast: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def seconds(model: Any, device: Any, amp: str, shape: Shape, *, limit: float) -> float:
        shapes.append(shape)
        return {"off": plain, "bf16": fast}[amp]

    monkeypatch.setattr(precision, "step_seconds", seconds)
    assert resolve_amp("auto", tiny_model(), CPU, SHAPE) == expected
    assert shapes == [SHAPE] * 2
    resolve_amp("auto", tiny_model(), CPU, Shape(batch_size=20, image_size=32))
    assert shapes[2:] == [Shape(batch_size=8, image_size=32)] * 2


def test_auto_elsewhere() -> None:
    mps = torch.device("mps")
    assert resolve_amp("auto", tiny_model(), mps, SHAPE) == "off"


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), "bf16"), ((7, 5), "fp16")])
def test_auto_on_cuda(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model, cuda = tiny_model(), torch.device("cuda")
    assert resolve_amp("auto", model, cuda, SHAPE) == expected


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = tiny_model("test_resnet").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert resolve_amp("auto", model, CPU, Shape(2, 64)) in ("off", "bf16")
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
        assert images.shape == (3, 3, 32, 32)
        return forward(self, images)

    monkeypatch.setattr(IGAENet, "forward", counted)
    assert 0 < step_seconds(tiny_model(), CPU, "off", SHAPE, limit=limit) < math.inf
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


@pytest.mark.parametrize("by_batch", [False, True])
def test_workers_change_no_weight(split_root: Path, by_batch: bool) -> None:
    augmentation = Augmentation(32, flip=0.5, jitter=0.3, by_batch=by_batch)
    preprocessing = Preprocessing(CPU, MEAN, STD, augmentation)
    states, results = [], []
    for num_workers in (0, 2):
        model = tiny_model("test_resnet")
        loader = build_loader(
            hands(split_root, augmentation),
            batch_size=5,
            num_workers=num_workers,
            shuffle=True,
            seed=3,
        )
        sampler: Any = loader.batch_sampler
        for epoch in (1, 2):
            sampler.set_epoch(epoch)
            results.append(
                run_epoch(model, loader, lr=0.1, epoch=epoch, preprocessing=preprocessing)
            )
        states.append(model.state_dict())
    assert results[:2] == results[2:]
    assert results[0] != results[1]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
