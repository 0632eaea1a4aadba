"""Mobile-Former: the published sizes, its parts against plain formulas, its features, training, and every target."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketvit.artifacts import ProofImages, export, proof_images, reference_logits
from pocketvit.errors import BadInput
from pocketvit.measure.cost import count
from pocketvit.models import Model, create, deployable
from pocketvit.models.mobile_former_blocks import DynamicReLU, Former, FormerToMobile, MobileToFormer
from pocketvit.targets import TARGETS

# the authors' README (AAboys/MobileFormer), at 224 pixels: parameters in M, MACs in M
PUBLISHED = {
    "mobile_former_26m": (3.2, 26),
    "mobile_former_52m": (3.5, 52),
    "mobile_former_96m": (4.6, 96),
    "mobile_former_151m": (7.6, 151),
    "mobile_former_214m": (9.4, 214),
    "mobile_former_294m": (11.4, 294),
    "mobile_former_508m": (14.0, 508),
}
SMALLEST = "mobile_former_26m"
Array = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _seeded() -> object:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    params, macs = PUBLISHED[name]
    with torch.device("meta"):
        found = count(timm.create_model(name).eval(), (3, 224, 224))
    assert abs(found.params / 1e6 - params) <= 0.05, f"{found.params} parameters, {params} M published"
    assert abs(found.macs / 1e6 / macs - 1) < 0.01, f"{found.macs / 1e6:.2f} M counted, {macs} M published"


def _weights(layer: nn.Module) -> tuple[Array, Array]:
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def _linear(layer: nn.Module, x: Array) -> Array:
    weight, bias = _weights(layer)
    return x @ weight.T + bias


def _norm(layer: nn.Module, x: Array) -> Array:
    weight, bias = _weights(layer)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def _softmax(x: Array) -> Array:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def _hard_sigmoid(x: Array) -> Array:
    return np.clip(x + 3, 0, 6) / 6


def _attend(queries: Array, keys: Array, values: Array, heads: int) -> Array:
    """One query, one head at a time: queries (Q, C), keys and values (K, C)."""
    result = np.zeros((len(queries), values.shape[1]))
    width = queries.shape[1] // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for q, query in enumerate(queries):
            shares = _softmax(np.array([query[part] @ key[part] / math.sqrt(width) for key in keys]))
            result[q, part] = sum(share * value[part] for share, value in zip(shares, values, strict=True))
    return result


def _loud(module: nn.Module) -> nn.Module:
    """In float64, with weights large enough that nothing is near its starting point."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


def _map_and_tokens() -> tuple[Tensor, Tensor, list[Array]]:
    """A map (2, 8, 3, 5), tokens (2, 4, 16), and for each image of the map its pixels (15, 8)."""
    x_BCHW = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    return (
        x_BCHW,
        torch.randn(2, 4, 16, dtype=torch.float64),
        list(x_BCHW.numpy().reshape(2, 8, 15).transpose(0, 2, 1)),
    )


def _assert_equal(found: Tensor, expected: list[Array]) -> None:
    worst = np.abs(found.detach().numpy() - np.stack(expected)).max()
    assert worst < 1e-12, f"off by {worst}"


def test_dynamic_relu_takes_the_larger_of_two_lines() -> None:
    layer = _loud(DynamicReLU(8, 16))
    x_BCHW, t_BTD, _ = _map_and_tokens()
    found = layer(x_BCHW, t_BTD[:, 0])
    expected = []
    for image, token in zip(x_BCHW.numpy(), t_BTD[:, 0].numpy(), strict=True):
        share = _hard_sigmoid(_linear(layer.slopes.fc2, np.maximum(_linear(layer.slopes.fc1, token), 0)))
        first, second = 1 + 2 * (share[:8] - 0.5), 2 * (share[8:] - 0.5)  # around 1 and around 0
        expected.append(np.stack([np.maximum(first[c] * image[c], second[c] * image[c]) for c in range(8)]))
    _assert_equal(found, expected)


def test_dynamic_relu_starts_near_a_plain_relu() -> None:
    model = timm.create_model(SMALLEST)
    layer = next(m for m in model.modules() if isinstance(m, DynamicReLU))
    channels = layer.slopes.fc2.out_features // 2
    x_BCHW = torch.randn(1, channels, 4, 4)
    off = (layer(x_BCHW, torch.randn(1, 128)) - x_BCHW.relu()).abs().max().item()
    assert off < 0.05, f"{off} away"


def test_mobile_to_former_is_attention_of_projected_tokens_over_plain_pixels() -> None:
    bridge = _loud(MobileToFormer(8, 16, drop_path=0.0))
    x_BCHW, t_BTD, pixels = _map_and_tokens()
    expected = []
    for image, tokens in zip(pixels, t_BTD.numpy(), strict=True):
        seen = _attend(_linear(bridge.query, tokens), image, image, heads=2)
        seen = seen * 2 * _hard_sigmoid(_linear(bridge.gate, tokens))
        expected.append(_norm(bridge.norm, tokens + _linear(bridge.proj, seen)))
    _assert_equal(bridge(x_BCHW, t_BTD), expected)


def test_former_to_mobile_is_attention_of_plain_pixels_over_projected_tokens() -> None:
    bridge = _loud(FormerToMobile(8, 16, drop_path=0.0))
    x_BCHW, t_BTD, pixels = _map_and_tokens()
    expected = []
    for image, tokens in zip(pixels, t_BTD.numpy(), strict=True):
        found = image + _attend(image, _linear(bridge.key, tokens), _linear(bridge.value, tokens), heads=2)
        expected.append(found.T.reshape(8, 3, 5))
    _assert_equal(bridge(x_BCHW, t_BTD), expected)


def test_former_is_a_post_norm_block_with_four_heads() -> None:
    block = _loud(Former(16, drop_path=0.0))
    _, t_BTD, _ = _map_and_tokens()
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))
    expected = []
    for tokens in t_BTD.numpy():
        mixed = _attend(_linear(block.query, tokens), tokens, tokens, heads=4)
        tokens = _norm(block.norm1, tokens + _linear(block.proj, mixed))
        hidden = gelu(_linear(block.mlp.fc1, tokens))
        assert hidden.shape[-1] == 32, "the feed-forward layer doubles the width"
        expected.append(_norm(block.norm2, tokens + _linear(block.mlp.fc2, hidden)))
    _assert_equal(block(t_BTD), expected)


@pytest.mark.parametrize(
    ("name", "channels"), [(SMALLEST, [12, 24, 64, 96]), ("mobile_former_96m", [16, 32, 88, 128])]
)
def test_features_of_four_stages(name: str, channels: list[int]) -> None:
    image = torch.randn(2, 3, 64, 96)
    features = timm.create_model(name, features_only=True).eval()
    assert features.feature_info.channels() == channels
    assert features.feature_info.reduction() == [4, 8, 16, 32]
    assert not [n for n, _ in features.named_parameters() if "head" in n], "a backbone without a head"
    with torch.no_grad():
        maps = features(image)
        full = timm.create_model(name, num_classes=10).eval()
        full.load_state_dict({**full.state_dict(), **features.model.state_dict()})
        (x_BCHW, t_BTD), intermediates = full.forward_intermediates(image)
        some = timm.create_model(name, features_only=True, out_indices=(0, -2)).eval()
        assert some.feature_info.channels() == [channels[0], channels[2]]
        assert len(some.model.stages) == 3, "what is behind the last map is gone"
        some.load_state_dict(features.state_dict(), strict=False)
        early = full.forward_intermediates(image, indices=[1], stop_early=True, intermediates_only=True)
    assert [tuple(m.shape) for m in maps] == [(2, c, 16 >> i, 24 >> i) for i, c in enumerate(channels)]
    for ours, theirs in zip(maps, intermediates, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    torch.testing.assert_close(x_BCHW, maps[3], rtol=0, atol=0)
    assert t_BTD.shape == (2, full.tokens.shape[1], 128)
    with torch.no_grad():
        for ours, theirs in zip([*some(image), *early], [maps[0], maps[2], maps[1]], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with pytest.raises(BadInput, match="NCHW"):
        full.forward_intermediates(image, output_fmt="NHWC")


def test_heads_come_and_go() -> None:
    model = timm.create_model(SMALLEST, num_classes=7, in_chans=1).eval()
    image = torch.randn(2, 1, 40, 56)
    kept = image.clone()
    with torch.no_grad():
        logits, features = model(image), model.forward_features(image)
        before = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(model.get_classifier()(before), logits)
        assert logits.shape == (2, 7)
        model.reset_classifier(0)
        torch.testing.assert_close(model(image), before)
        assert before.shape == (2, model.head_hidden_size) == (2, 1024)
        model.reset_classifier(3)
        assert model(image).shape == (2, 3)
        assert model.num_classes == 3
        model.reset_classifier(0, global_pool="")
        assert model(image).shape == (2, model.num_features, 2, 2)
        again = timm.create_model(SMALLEST, num_classes=0, in_chans=1).eval()
        assert again(image).shape == (2, 1024)
    torch.testing.assert_close(image, kept, rtol=0, atol=0)
    with pytest.raises(BadInput, match="num_classes=0"):
        model.reset_classifier(3)
    with pytest.raises(BadInput, match="max"):
        timm.create_model(SMALLEST, global_pool="max")


def test_drop_rates_reach_their_places() -> None:
    model = timm.create_model(SMALLEST, num_classes=10, drop_rate=0.3, drop_path_rate=0.45)
    rates = [block.former_to_mobile.drop_path.drop_prob for stage in model.stages for block in stage]
    # nine blocks with the lite bottleneck, which is the first and never dropped
    np.testing.assert_allclose(rates, [0.45 * i / 9 for i in range(2, 10)])
    assert model.head.drop.p == 0.3
    image = torch.randn(4, 3, 32, 32)
    first, second = model(image), model(image)
    assert (first - second).abs().max() > 1e-3, "nothing was dropped while training"
    model.eval()
    torch.testing.assert_close(model(image), model(image), rtol=0, atol=0)


def test_parameters_are_sorted_into_layers() -> None:
    from timm.models import group_parameters

    model = timm.create_model(SMALLEST)
    assert model.no_weight_decay() == {"tokens"}
    assert "tokens" in dict(model.named_parameters())
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups["tokens"] == groups["stem.0.conv.weight"] == 0
    assert max(groups.values()) == groups["head.fc.weight"] == 1 + 8, "a stem, eight blocks, a head"
    assert group_parameters(model, model.group_matcher(coarse=True), reverse=True)["head.fc.weight"] == 1 + 4


def _digits(count_: int, size: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = torch.from_numpy(digits.images[:count_] / 8 - 1)[:, None].expand(-1, 3, -1, -1)
    return nn.functional.interpolate(image, size=size, mode="bilinear"), torch.from_numpy(digits.target[:count_])


def test_two_steps_on_digits_lower_the_loss_and_reach_every_parameter() -> None:
    model = timm.create_model(SMALLEST, num_classes=10).double().train()
    images, labels = _digits(20, 64)  # two of each; at 64 pixels the last map has more than one
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if len(losses) == 1:
            largest = {name: p.grad.abs().max().item() for name, p in model.named_parameters()}
        optimizer.step()
    assert losses[0] > losses[1] > losses[2], losses
    # a softmax over the tokens does not see what is added to every key, nor a norm over the batch what is added to all
    in_vain = {n for n in largest if n.endswith("former_to_mobile.key.bias")}
    assert len(in_vain) == 8
    in_vain |= {"head.hidden.bias", "head.bridge.norm.bias"}
    unreached = {name: g for name, g in largest.items() if g < 1e-12}
    assert set(unreached) == in_vain, unreached


def test_checkpointing_changes_memory_only() -> None:
    images, labels = _digits(6, 32)
    gradients = []
    for enable in (False, True):
        torch.manual_seed(1)
        model = timm.create_model(SMALLEST, num_classes=10).double().train()
        model.set_grad_checkpointing(enable)
        nn.functional.cross_entropy(model(images), labels).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.fixture(scope="module")
def small() -> tuple[Model, ProofImages, NDArray[np.float32]]:
    """The smallest, untrained, for 64 pixels, with images and its own logits."""
    model = create(SMALLEST, num_classes=10)
    model = dataclasses.replace(model, spec=dataclasses.replace(model.spec, size=(3, 64, 64)))
    images = proof_images(model.spec, calibration=16, verification=16)
    return model, images, reference_logits(model, images.verification)


SMALLER = "coreml:fp16 coreml:w8 executorch:w8a8 onnx:w8a8-dynamic openvino:w8a8".split()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("target", "precision"), [(t, "fp32") for t in TARGETS] + [s.split(":") for s in SMALLER])
def test_exports_to_every_target(target: str, precision: str, small: tuple, tmp_path: Path) -> None:
    model, images, reference = small
    path = tmp_path / f"model{TARGETS.get(target).suffix}"
    found = export(model, target, path, precision, images=images, reference=reference)
    assert path.exists()
    assert found.agreement.sqnr_db >= found.artifact.precision.floor_db, f"{found.agreement.sqnr_db:.1f} dB"


@pytest.mark.slow
@pytest.mark.parametrize("name", [SMALLEST, "mobile_former_294m"])
def test_no_tensor_of_the_exported_graph_has_rank_above_five(name: str) -> None:
    module = deployable(create(name, num_classes=10))
    program = torch.export.export(module, (torch.zeros(1, 3, 64, 64),)).run_decompositions({})
    ranks = {n.name: n.meta["val"].ndim for n in program.graph.nodes if isinstance(n.meta.get("val"), Tensor)}
    assert len(ranks) > 500
    assert max(ranks.values()) <= 5, {name: rank for name, rank in ranks.items() if rank > 5}
