"""Padded channels: the same outputs, wider insides, and a refusal of what would change them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pocketvit.errors import BadInput
from pocketvit.layers import aligned, pad_channels


def _convolutions() -> nn.Sequential:
    """An inverted bottleneck, channels first; norms as after some training."""
    return nn.Sequential(
        nn.BatchNorm2d(5),
        nn.Conv2d(5, 20, 1, bias=False),
        nn.BatchNorm2d(20),
        nn.GELU(),
        nn.Conv2d(20, 20, 3, stride=2, padding=1, groups=20),
        nn.BatchNorm2d(20, affine=False),
        nn.GELU(),
        nn.Conv2d(20, 40, 3, dilation=2, padding=2, padding_mode="reflect"),
        nn.BatchNorm2d(40, track_running_stats=False),
        nn.Sigmoid(),  # 0.5 at zero
        nn.Dropout2d(0.5),
        nn.Conv2d(40, 7, 1),
        nn.Hardswish(),
    )


def _linears() -> nn.Sequential:
    """A perceptron, channels last."""
    return nn.Sequential(
        nn.Linear(6, 50), nn.BatchNorm1d(50), nn.SiLU(), nn.Dropout(0.5), nn.Linear(50, 33, bias=False), nn.Tanh(),
        nn.Identity(), nn.Linear(33, 4), nn.LayerNorm(4),
    )  # fmt: skip


MODULES = {"convolutions": (_convolutions, (3, 5, 9, 8)), "linears": (_linears, (11, 6))}


def _trained(build, shape, seed=0) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(seed)
    module = build()
    for layer in module:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias)
            if layer.track_running_stats:
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    return module.eval(), torch.randn(shape)


def _widths(module: nn.Sequential) -> list[int]:
    """What each layer with weights makes, and what the last one reads."""
    layers = [layer for layer in module if isinstance(layer, nn.Conv2d | nn.Linear)]
    reads = [layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features for layer in layers]
    makes = [layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features for layer in layers]
    assert reads[1:] == makes[:-1]
    for layer, read, make in zip(layers, reads, makes, strict=True):
        assert layer.weight.shape[:2] == (make, read // getattr(layer, "groups", 1))
    return [*reads, makes[-1]]


@pytest.mark.parametrize("multiple", [1, 8, 32])
@pytest.mark.parametrize("name", MODULES)
def test_outputs_stay_and_hidden_widths_are_multiples(name, multiple):
    module, x = _trained(*MODULES[name])
    module, x = module.double(), x.double()
    before = copy.deepcopy(module.state_dict())
    padded = pad_channels(module, multiple)
    first, *hidden, last = _widths(padded)
    assert [first, last] == [_widths(module)[0], _widths(module)[-1]]
    assert hidden == [-(-width // multiple) * multiple for width in _widths(module)[1:-1]]
    assert [type(layer) for layer in padded] == [type(layer) for layer in module]
    with torch.no_grad():
        expected, found = module(x), padded(x)
    # Zeros change no sum, but a longer one may be added up in another order: in float64 that is nine digits below
    # what one wrong weight would do.
    terms = sum(layer.weight[0].numel() for layer in padded if isinstance(layer, nn.Conv2d | nn.Linear))
    allowed = terms * torch.finfo(x.dtype).eps * 100 * expected.abs().max().item()
    wrong = (found - expected).abs().max().item()
    print(f"{name} to multiples of {multiple}: {wrong:.1e} apart, {allowed:.1e} allowed")
    assert found.isfinite().all()
    assert wrong <= allowed, f"outputs are {wrong:.2e} apart, {allowed:.2e} can be rounding"
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items()), "the original was edited"
    shared = {t.data_ptr() for t in module.state_dict().values() if t.numel()}
    assert not shared & {t.data_ptr() for t in padded.state_dict().values() if t.numel()}, "memory is shared"


def test_outputs_are_the_same_bit_for_bit_where_arithmetic_is_exact():
    """Small integers: every sum is exact in any order, so that not one bit has an excuse."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20, eps=0.0), nn.ReLU(),
        nn.Conv2d(20, 20, 3, groups=20), nn.ReLU6(), nn.Conv2d(20, 9, 1),
    ).eval()  # fmt: skip
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randint(-3, 4, tensor.shape))
    module[1].running_var.fill_(4.0)
    x = torch.randint(-3, 4, (2, 3, 8, 8)).float()
    with torch.no_grad():
        expected = module(x)
        assert expected.abs().max() > 50
        assert torch.equal(pad_channels(module)(x), expected)


@pytest.mark.parametrize("name", MODULES)
def test_training_goes_on_as_it_would_have(name):
    module, x = _trained(*MODULES[name])
    for i, layer in enumerate(module):
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.p = 0.0  # what it drops would differ
        elif isinstance(layer, nn.Sigmoid):
            module[i] = nn.ReLU()  # 0.5 at zero is something that the next layer would learn from
    module.double().train()
    padded, x = pad_channels(module), x.double()
    for model in (module, padded):
        for _ in range(2):
            model.zero_grad()
            model(x).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.05 * parameter.grad
    found, expected = padded.state_dict(), module.state_dict()
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        kept = found[key][tuple(map(slice, tensor.shape))]
        torch.testing.assert_close(kept, tensor, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
        if "running_var" not in key:
            assert found[key].count_nonzero() == kept.count_nonzero(), f"{key}: what was added has learned"


def test_names_options_and_modes_are_kept():
    module, _ = _trained(*MODULES["convolutions"])
    named = nn.Sequential()
    for index, layer in enumerate(module):
        named.add_module(f"layer{index}", layer)
    named.layer1.weight.requires_grad_(False)
    named.layer3.train()
    named.training = False
    padded = pad_channels(named.half())
    assert list(padded.state_dict()) == list(named.state_dict())
    assert not padded.layer1.weight.requires_grad
    assert [m.training for m in padded.modules()] == [m.training for m in named.modules()]
    assert padded.layer4.stride == (2, 2)
    assert padded.layer7.padding_mode == "reflect"
    assert padded.layer11.weight.dtype == torch.float16


def test_a_layer_used_twice_may_become_two():
    torch.manual_seed(0)
    square, act = nn.Linear(6, 6), nn.GELU()
    module = nn.Sequential(square, act, square, act, square)
    x = torch.randn(4, 6)
    with torch.no_grad():
        torch.testing.assert_close(pad_channels(module)(x), module(x))
    assert _widths(pad_channels(module)) == [6, 32, 32, 6]


def _pruned() -> nn.Module:
    layer = nn.Conv2d(8, 8, 1)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


BETWEEN = {
    "LayerNorm": nn.LayerNorm(8),
    "GroupNorm": nn.GroupNorm(2, 8),
    "Softmax": nn.Softmax(1),
    "groups=2": nn.Conv2d(8, 8, 3, padding=1, groups=2),
    "Conv2d\\(8, 16": nn.Conv2d(8, 16, 1, groups=8),
    "Linear": nn.Linear(8, 8),
    "BatchNorm1d": nn.BatchNorm1d(8),
    "PReLU": nn.PReLU(8),
    "Flatten": nn.Flatten(),
    "Sequential": nn.Sequential(nn.ReLU()),
    "Conv2d\\(8, 8": _pruned(),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_what_more_channels_would_change_is_refused_by_name(what):
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), BETWEEN[what], nn.Conv2d(8, 2, 1))
    with pytest.raises(BadInput, match=f"(?s)Layer '2', .*{what}.* cannot be padded: between Conv2d layers"):
        pad_channels(module)


def test_linears_take_norms_along_their_own_axis_only():
    for layer in (nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)):
        with pytest.raises(BadInput, match=r"Layer '1', .* between Linear layers there can be Linear, BatchNorm1d"):
            pad_channels(nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)))


def test_without_a_hidden_width_there_is_nothing_to_pad():
    for module in (nn.Sequential(), nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU())):
        with pytest.raises(BadInput, match=r"this nn\.Sequential has none"):
            pad_channels(module)

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    with pytest.raises(BadInput, match="A Residual does more than run its layers in order"):
        pad_channels(Residual(nn.Linear(4, 8), nn.Linear(8, 4)))


def test_aligned_counts():
    assert [aligned(n) for n in (1, 31, 32, 33, 96)] == [32, 32, 32, 64, 96]
    assert [aligned(n, 8) for n in (1, 8, 9)] == [8, 8, 16]
    for wrong in ((0, 32), (-3, 32), (5, 0)):
        with pytest.raises(BadInput, match="are 1 or more"):
            aligned(*wrong)
