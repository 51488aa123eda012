"""IGAENet: shapes, heads, sizes, weights from files and from the hub."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

import model
from model import (
    BACKBONES,
    IGAENet,
    compute_feature_widths,
    find_backbone,
    hub_is_reachable,
    parameter_groups,
)
from utils import UserError

N_CLASSES = {"identity": 7, "gender": 2, "age": 6}
TINY = "test_vit"  # 0.3 million parameters, with position embeddings
TINY_TAG = "test_resnet.r160_in1k"  # the same size, with a tag and a place on the hub


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(backbone: str = TINY, **options: Any) -> IGAENet:
    return IGAENet(backbone, N_CLASSES, **{"pretrained": False, "image_size": 32, **options})


def random_state(tag: str, **options: Any) -> dict[str, Tensor]:
    """Return a state dict of a timm model, every number of it drawn anew."""
    generator = torch.Generator().manual_seed(1)
    state = timm.create_model(tag, **options).state_dict()
    return {
        name: torch.rand(tensor.shape, generator=generator) * 0.1 + 0.01
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state.items()
    }


def assert_loaded(loaded: nn.Module, state: dict[str, Tensor]) -> None:
    """Assert that every tensor of a backbone is the one of that name in `state`."""
    own = loaded.state_dict()
    assert own
    for name, tensor in own.items():
        assert torch.equal(tensor, state[name]), name


# ----------------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    ("backbone", "tag", "width", "image_size", "mean"),
    [
        ("resnet50", "resnet50.tv2_in1k", 2048, 64, 0.485),
        ("densenet121", "densenet121.tv_in1k", 1024, 64, 0.485),
        ("convnext_t", "convnext_tiny.fb_in1k", 768, 64, 0.485),
        ("vit_b_16", "vit_base_patch16_224.augreg_in1k", 768, 32, 0.5),
        ("swin_t", "swin_tiny_patch4_window7_224.ms_in1k", 768, 64, 0.485),
        ("maxvit_t", "maxvit_tiny_tf_224.in1k", 512, 64, 0.485),
        ("mobilenetv2_100.ra_in1k", "mobilenetv2_100.ra_in1k", 1280, 64, 0.485),
    ],
)
def test_backbones(backbone: str, tag: str, width: int, image_size: int, mean: float) -> None:
    assert find_backbone(backbone).tag == tag
    assert tag in timm.list_pretrained()
    network = build(backbone, image_size=image_size).eval()
    with torch.no_grad():
        embeddings, logits = network(torch.rand(2, 3, image_size, image_size))
    assert embeddings.shape == (2, width)
    assert {task: tuple(v.shape) for task, v in logits.items()} == {
        "identity": (2, 7),
        "gender": (2, 2),
        "age": (2, 6),
    }
    assert all(v.isfinite().all() for v in logits.values())
    assert network.mean[0] == mean
    assert len(network.mean) == len(network.std) == 3


def test_forward_is_embed_and_classify() -> None:
    network, images = build().eval(), torch.rand(3, 3, 32, 32)
    embeddings, logits = network(images)
    assert torch.equal(embeddings, network.embed(images))
    for task, values in network.classify(embeddings).items():
        assert torch.equal(values, logits[task])
        assert not torch.equal(values[0], values[1])


@pytest.mark.parametrize(
    ("backbone", "body"),
    [("convnext_t", ["LayerNorm"]), ("maxvit_t", ["LayerNorm", "Linear", "Tanh"])],
)
def test_heads_take_over_what_lies_between_pooling_and_classifier(
    backbone: str, body: list[str], tmp_path: Path
) -> None:
    """Every head starts from the weights' own norm (and hidden layer), and trains it apart."""
    size: dict[str, Any] = {"img_size": 64} if backbone == "maxvit_t" else {}
    reference: Any = timm.create_model(BACKBONES[backbone].tag, num_classes=0, **size)
    with torch.no_grad():
        for parameter in reference.head.parameters():
            parameter.normal_(std=0.5)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    network = build(
        backbone, pretrained=True, backbone_weights=tmp_path / "weights.pth", image_size=64
    ).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        embedding = network.embed(images)
        pooled = reference.eval().forward_features(images).mean(dim=(2, 3))
        expected = reference(images)  # pooled, normalised, MaxViT also through linear and tanh
    torch.testing.assert_close(embedding, pooled, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(pooled, expected, atol=1e-2)
    for head in network.heads.values():
        assert isinstance(head, nn.Sequential)
        assert [type(layer).__name__ for layer in head[:-1]] == body
        torch.testing.assert_close(head[:-1](embedding), expected, atol=1e-4, rtol=1e-3)

    before = network.classify(embedding)
    with torch.no_grad():
        network.heads["age"][0].weight.zero_()  # type: ignore[index]
    after = network.classify(embedding)
    changed = {task for task in N_CLASSES if not torch.equal(before[task], after[task])}
    assert changed == {"age"}


@pytest.mark.parametrize("backbone", [TINY, "test_convnext", "test_resnet"])
def test_parameter_groups_hold_every_parameter_once(backbone: str) -> None:
    network = build(backbone)
    groups = parameter_groups(network, backbone_scale=0.25)
    assert [group["lr_scale"] for group in groups] == [0.25, 1.0]
    ids = [[id(parameter) for parameter in group["params"]] for group in groups]
    assert len(ids[0] + ids[1]) == len({*ids[0], *ids[1]})
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {*ids[0], *ids[1]} == names.keys()
    assert all(names[i].startswith("backbone.") for i in ids[0])
    assert all(names[i].startswith("heads.") for i in ids[1])
    if backbone == "test_convnext":  # norms of the heads learn at the heads' rate
        norms = [p for p in groups[1]["params"] if tuple(p.shape) == (64,)]
        assert len(norms) == 2 * len(N_CLASSES)  # weight and bias of each task's copy
    assert [group["lr_scale"] for group in parameter_groups(network)] == [0.1, 1.0]


# ----------------------------------------------------------------------------- names and sizes


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("swin", "swin_t"),
        ("vit_b16", "vit_b_16"),
        ("resnet5O", "resnet50"),
        ("resnet50.nonsense", "resnet50"),
        ("qqqqqqqq", "Known: resnet50, densenet121, convnext_t, vit_b_16, swin_t, maxvit_t"),
    ],
)
def test_unknown_backbone_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"unknown backbone {name!r}")) as caught:
        find_backbone(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "image_size"),
    [
        ("maxvit_t", 225),
        ("vit_b_16", 8),
        ("swin_t", 1),
        ("densenet121", 17),
        ("test_vit", 15),
    ],
)
def test_a_refused_size_names_one_that_works(
    backbone: str, image_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights(*args: Any, **kwargs: Any) -> Any:
        pytest.fail("weights were looked for before the size was checked")

    monkeypatch.setattr(model, "create_pretrained", no_weights)
    with pytest.raises(
        UserError, match=f"{backbone} does not .*--image_size {image_size} "
    ) as caught:
        build(backbone, pretrained=True, image_size=image_size)
    named = re.search(r"Use (\d+)$", str(caught.value))
    assert named
    assert sum(compute_feature_widths(backbone, int(named[1]))) > 0


# ----------------------------------------------------------------------------- stochastic depth


@pytest.mark.parametrize(
    ("backbone", "given", "expected"),
    [
        ("convnext_t", None, 0.1),
        ("swin_t", None, 0.2),
        ("maxvit_t", None, 0.2),
        ("resnet50", None, 0.0),
        ("vit_b_16", None, 0.0),
        ("swin_t", 0.0, 0.0),
        ("swin_t", 0.4, 0.4),
        ("resnet50", 0.3, 0.3),
        ("swin_small_patch4_window7_224", None, 0.0),
    ],
)
def test_largest_drop_probability(backbone: str, given: float | None, expected: float) -> None:
    network = build(backbone, image_size=64, drop_path=given)
    drops = [getattr(module, "drop_prob", None) or 0 for module in network.modules()]
    assert max(drops) == pytest.approx(expected)


def test_stochastic_depth_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "hub_is_reachable", lambda: True)
    for pretrained in (False, True):
        with pytest.raises(UserError, match="^backbone densenet121.tv_in1k has no stochastic"):
            build("densenet121", pretrained=pretrained, drop_path=0.1)
    assert build("densenet121", drop_path=0.0)


# ----------------------------------------------------------------------------- weights files


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "none": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "module": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("classifier", [0, 10])
@pytest.mark.parametrize("wrapper", [*WRAPPERS, "safetensors"])
def test_weights_files_load(wrapper: str, classifier: int, tmp_path: Path) -> None:
    state = random_state(TINY_TAG, num_classes=classifier)
    path = tmp_path / "weights.pth"
    if wrapper == "safetensors":
        path = path.with_suffix(".safetensors")
        safetensors.torch.save_file(state, path)
    else:
        torch.save(WRAPPERS[wrapper](state), path)
    network = build(TINY_TAG, pretrained=True, backbone_weights=path)
    assert_loaded(network.backbone, state)


def without_a_key(state: dict[str, Tensor]) -> None:
    del state["layer1.0.conv1.weight"]


def with_a_key_more(state: dict[str, Tensor]) -> None:
    state["layer9.conv.weight"] = torch.zeros(1)


def with_another_shape(state: dict[str, Tensor]) -> None:
    state["layer2.0.bn1.weight"] = torch.zeros(5)


MISFITS = [
    (without_a_key, r"1 missing: layer1\.0\.conv1\.weight"),
    (with_a_key_more, r"1 unused: layer9\.conv\.weight"),
    (with_another_shape, r"1 of another shape: layer2\.0\.bn1\.weight"),
]


@pytest.mark.parametrize(("change", "expected"), MISFITS)
def test_weights_that_do_not_fit_stop_with_the_keys(
    change: Callable[[dict[str, Tensor]], None], expected: str, tmp_path: Path
) -> None:
    state = random_state(TINY_TAG)
    change(state)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(
        UserError, match=rf"does not fit the backbone \({expected}\): .*partial"
    ) as caught:
        build(TINY_TAG, pretrained=True, backbone_weights=path)
    assert str(path) in str(caught.value)

    network = build(TINY_TAG, pretrained=True, backbone_weights=path, allow_partial_weights=True)
    own = network.backbone.state_dict()
    fitting = {n for n, t in state.items() if n in own and own[n].shape == t.shape}
    assert len(fitting) >= len(own) - 1
    assert all(torch.equal(own[name], state[name]) for name in fitting)


@pytest.mark.parametrize("allow_partial", [False, True])
def test_weights_of_another_model_are_refused(allow_partial: bool, tmp_path: Path) -> None:
    """Timm's converters fail with many of these."""
    states = [timm.create_model("test_resnet").state_dict(), {"norm.weight": torch.zeros(3)}, {}]
    weights = tmp_path / "weights.pth"
    options = {"backbone_weights": weights, "allow_partial_weights": allow_partial}
    for state in states:
        torch.save(state, weights)
        with pytest.raises(UserError, match=r"does not fit the backbone \(\d+ missing: "):
            build("test_convnext", pretrained=True, **options)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.pth", None, "--backbone_weights not found: "),
        ("", None, "--backbone_weights not found: "),
        ("garbage.pth", b"no weights at all", "cannot read --backbone_weights .*: "),
        ("garbage.safetensors", b"no weights at all", "cannot read --backbone_weights .*: "),
        ("list.pth", [1, 2], "--backbone_weights holds no state dict .*: "),
        ("numbers.pth", {"epoch": 3}, "--backbone_weights holds no state dict .*: "),
    ],
)
def test_files_that_are_no_weights(name: str, content: Any, expected: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=f"^{expected}{path}"):
        build(pretrained=True, backbone_weights=path)


def test_position_embeddings_are_resampled_to_the_image_size(tmp_path: Path) -> None:
    state = random_state(TINY, img_size=64)
    # a value that is the same everywhere stays so however it is resampled
    n_prefix = state["pos_embed"].shape[1] - (64 // 16) ** 2
    state["pos_embed"][:, n_prefix:] = 0.25
    torch.save(state, tmp_path / "weights.pth")
    weights = tmp_path / "weights.pth"
    resampled = build(pretrained=True, backbone_weights=weights, image_size=96).backbone
    grid = resampled.state_dict()["pos_embed"]
    assert grid.shape == (1, n_prefix + (96 // 16) ** 2, 64)
    torch.testing.assert_close(grid[:, n_prefix:], torch.full_like(grid[:, n_prefix:], 0.25))
    assert torch.equal(
        resampled.state_dict()["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"]
    )


@pytest.mark.real
@pytest.mark.parametrize("backbone", ["deit_tiny_patch16_224", "densenet169", "mobilenetv2_100"])
def test_published_weights_load(backbone: str, weights_dir: Path) -> None:
    path = weights_dir / f"{backbone}.pth"
    network = build(backbone, pretrained=True, backbone_weights=path, image_size=224)
    state = torch.load(path, weights_only=True)
    assert_loaded(network.backbone, state)
    assert network.eval().embed(torch.rand(1, 3, 224, 224)).isfinite().all()


# ----------------------------------------------------------------------------- the hub


def put_into_cache(cache: Path, tag: str) -> dict[str, Tensor]:
    """Lay weights of a timm model into a hub cache, as a download would."""
    state = random_state(tag)
    folder = cache / f"models--timm--{tag}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    safetensors.torch.save_file(state, folder / "snapshots" / commit / "model.safetensors")
    return state


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def serve(answer: bytes | None) -> Iterator[str]:
    """Yield the address of a server that answers every caller so (None: never)."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def loop() -> None:
            held = []
            with contextlib.suppress(OSError):  # until the server is closed
                while True:
                    connection, _ = server.accept()
                    if answer is None:
                        held.append(connection)
                        continue
                    connection.recv(1000)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=loop, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


OUT_OF_ORDER = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("answer", [None, b"", b"this is no hub\r\n\r\n", OUT_OF_ORDER])
def test_without_a_hub_two_ways_to_continue_are_named(
    answer: bytes | None, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in serve(answer):
        monkeypatch.setenv("HF_ENDPOINT", address)
        start = time.monotonic()
        with pytest.raises(UserError, match="^hub not reachable: .*or --no-pretrained$") as caught:
            build(TINY_TAG, pretrained=True)
        page = f"https://huggingface.co/timm/{TINY_TAG}"
        advice = f"Download model.safetensors from {page} and give --backbone_weights FILE"
        assert advice in str(caught.value)
        assert time.monotonic() - start < 15


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "huggingface.co", "ftp//x", ""])
def test_addresses_that_lead_nowhere(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert hub_is_reachable() is False


def test_cached_weights_need_no_hub(hub_cache: Path) -> None:
    stored = put_into_cache(hub_cache, "test_vit.r160_in1k")
    network = build("test_vit", pretrained=True, image_size=160)
    assert_loaded(network.backbone, stored)
    assert network.mean == (0.5, 0.5, 0.5)


def test_damaged_cached_weights_are_an_error(hub_cache: Path) -> None:
    put_into_cache(hub_cache, TINY_TAG)
    next(hub_cache.rglob("model.safetensors")).write_bytes(b"damaged")
    with pytest.raises(
        UserError, match="^cannot fetch the ImageNet .* and give --backbone_weights FILE"
    ):
        build(TINY_TAG, pretrained=True)
