"""MOAT: the published sizes, its options, its features, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from pocketvit.errors import BadInput
from pocketvit.layers import Position
from pocketvit.layers.folding import fold
from pocketvit.measure.cost import count
from pocketvit.models import create, save

# published in google-research/deeplab2, g3doc/projects/moat_imagenet_pretrained_checkpoints.md: model, input, then
# (parameters in M, MACs in G) with and without position tables
PUBLISHED = {
    "moat_0": (224, (27.8, 5.7), (27.8, 5.7)),
    "moat_1": (224, (41.6, 9.1), (41.5, 9.1)),
    "moat_2": (384, (73.4, 54.3), (73.2, 53.8)),
    "moat_3": (512, (190.0, 271.0), (189.5, 266.1)),
    "moat_4": (512, (483.2, 648.5), (482.5, 640.6)),
    "tiny_moat_0": (256, (3.4, 1.1), (3.3, 1.1)),
    "tiny_moat_1": (256, (5.1, 1.6), (5.1, 1.6)),
    "tiny_moat_2": (256, (9.8, 3.0), (9.7, 3.0)),
    "tiny_moat_3": (256, (19.5, 6.0), (19.5, 6.0)),
}
SMALL = {"img_size": 64, "num_classes": 10}


def _within(counted: float, printed: float, decimals: int = 1) -> bool:
    """Within 1% of some number that is printed so."""
    half = 0.5 * 10**-decimals
    return 0.99 * (printed - half) <= counted <= 1.01 * (printed + half)


def _lookup_macs(model: nn.Module, images: int = 8) -> float:
    """MACs that the published counts with tables hold on top: the tables' indexing written as two products with
    one-hot matrices, once for the 8 images that were counted together (docs/log.md)."""
    total = 0.0
    for part in model.modules():
        if type(part).__name__ == "RelativePositionBias":
            h, w = part.window
            rows, columns = 2 * h - 1, 2 * w - 1
            total += part.table.shape[0] * (h * h * rows * columns + h * h * w * w * columns)
    return total / images


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("moat_3", "moat_4") else n for n in PUBLISHED]
)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    size, with_tables, without = PUBLISHED[name]
    with torch.device("meta"):
        for position, (params, macs) in (("relative", with_tables), ("none", without)):
            model = timm.create_model(name, img_size=size, position=position).eval()
            counted = count(model, (3, size, size))
            billions = counted.macs / 1e9
            if position == "relative" and size >= 384:
                billions += _lookup_macs(model) / 1e9
            told = f"{counted.params / 1e6:.2f} M and {billions:.2f} G counted, {params} M and {macs} G published"
            assert _within(counted.params / 1e6, params), told
            assert _within(billions, macs), told


@pytest.mark.parametrize(
    ("name", "arguments", "params", "macs", "decimals"),
    [
        # other papers' tables (EMOv2, RMT) at 224 px
        ("tiny_moat_0", {}, 3.4, 0.8, 1),
        ("tiny_moat_1", {}, 5.1, 1.2, 1),
        ("tiny_moat_2", {}, 10, 2.3, 0),
        # the paper's ablation of MOAT-1: blocks moved from stage 3 to stage 4, without position tables in the count
        ("moat_1", {"depths": (2, 2, 16, 2)}, 43.7, 8.9, 1),
        ("moat_1", {"depths": (2, 4, 15, 2)}, 42.6, 9.0, 1),
        ("moat_1", {"depths": (2, 6, 14, 2)}, 41.6, 9.1, 1),
        ("moat_1", {"depths": (2, 8, 13, 2)}, 40.6, 9.2, 1),
        ("moat_1", {"depths": (2, 10, 12, 2)}, 39.5, 9.3, 1),
    ],
)
@pytest.mark.slow
def test_secondary_rows_and_the_ablation(
    name: str, arguments: dict, params: float, macs: float, decimals: int
) -> None:
    with torch.device("meta"):
        counted = count(timm.create_model(name, img_size=224, **arguments), (3, 224, 224))
    assert _within(counted.params / 1e6, params, decimals), (
        f"{counted.params / 1e6:.2f} M counted, {params} M published"
    )
    assert _within(counted.macs / 1e9, macs), f"{counted.macs / 1e9:.2f} G counted, {macs} G published"


@pytest.mark.parametrize(
    ("output_stride", "reductions"), [(32, [4, 8, 16, 32]), (16, [4, 8, 16, 16]), (8, [4, 8, 8, 8])]
)
def test_features_of_four_stages(output_stride: int, reductions: list[int]) -> None:
    model = timm.create_model("tiny_moat_0", features_only=True, img_size=64, output_stride=output_stride).eval()
    assert model.feature_info.channels() == [32, 64, 128, 256]
    assert model.feature_info.reduction() == reductions
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 64, 64))
    wanted = [(2, 32 * 2**i, 64 // r, 64 // r) for i, r in enumerate(reductions)]
    assert [tuple(m.shape) for m in maps] == wanted
    some = timm.create_model("tiny_moat_0", features_only=True, img_size=64, out_indices=(1, 2)).eval()
    assert [tuple(m.shape) for m in some(torch.randn(1, 3, 64, 64))] == [(1, 64, 8, 8), (1, 128, 4, 4)]


def test_features_are_those_of_the_classifier() -> None:
    model = timm.create_model("tiny_moat_0", **SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x))
        assert torch.equal(maps[-1], last)
        assert torch.equal(model.forward_head(last), model(x))
        assert model.forward_head(last, pre_logits=True).shape == (1, 256)
        only = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(only[0], maps[1])


@pytest.mark.parametrize("position", Position)
@pytest.mark.parametrize("attention", ["global", "local"])
def test_every_position_embedding_acts_and_trains(position: Position, attention: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "tiny_moat_0",
        position=position,
        attention=attention,
        **SMALL,
        **({"window_size": [2, 2]} if attention == "local" else {}),
    )
    x = torch.randn(4, 3, 64, 64)
    model(x).logsumexp(1).sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # q and k of windows of a single token have nothing to choose from, but here there are four
    assert not still, f"no gradient reaches {still}"
    model.eval()
    with torch.no_grad():
        before = model(x)
        moved = [p for name, p in model.named_parameters() if name.endswith("table") or ".lepe." in name]
        assert bool(moved) == (position is not Position.NONE)
        for parameter in moved:
            parameter.add_(torch.randn_like(parameter))
        assert torch.equal(model(x), before) == (position is Position.NONE)


@pytest.mark.parametrize("position", Position)
def test_split_heads_and_folding_change_nothing(position: Position) -> None:
    torch.manual_seed(0)
    arguments = {"position": position, "attention": "local", "window_size": [3, 2], **SMALL}
    model = timm.create_model("tiny_moat_0", **arguments).eval()
    split = timm.create_model("tiny_moat_0", split_heads=True, **arguments).eval()
    split.load_state_dict(model.state_dict())
    folded = copy.deepcopy(model)
    fold(folded)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = model(x)
        for other in (split, folded):
            apart = float((other(x) - wanted).abs().max() / wanted.abs().max())
            assert apart < 1e-5, f"{apart:.1e} of the largest logit apart"  # float32 rounding over some 70 layers


def test_a_map_that_does_not_divide_is_padded_exactly() -> None:
    """Windows larger than the map, padded, give what attention over the map itself gives."""
    torch.manual_seed(0)
    whole = timm.create_model("tiny_moat_0", position="none", **SMALL).eval()
    padded = timm.create_model(
        "tiny_moat_0", position="none", attention="local", window_size=[7, (3, 5)], **SMALL
    ).eval()
    padded.load_state_dict(whole.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        apart = float((padded(x) - whole(x)).abs().max() / whole(x).abs().max())
    assert apart < 1e-5, f"{apart:.1e} of the largest logit apart"


def test_one_checkpoint_serves_other_sizes_and_windows(tmp_path) -> None:
    model = create("tiny_moat_0", img_size=64, attention="local", window_size=[4, 2], num_classes=10)
    save(model, tmp_path / "moat")
    same = create(str(tmp_path / "moat"))
    assert same.spec.size == (3, 64, 64)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(same.module(x), model.module(x))
    other = create(str(tmp_path / "moat"), img_size=[96, 128])
    assert other.spec.size == (3, 96, 128)
    assert other.module(torch.randn(1, 3, 96, 128)).shape == (1, 10)


def test_a_folded_model_is_not_saved(tmp_path) -> None:
    model = create("tiny_moat_0", **SMALL)
    fold(model.module)
    with pytest.raises(BadInput, match="folded for deployment"):
        save(model, tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_stochastic_depth_grows_along_the_network() -> None:
    model = timm.create_model("tiny_moat_0", drop_path_rate=0.28, drop_rate=0.5, **SMALL)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.28 * i / 14 for i in range(14)])
    assert model.head.drop.p == 0.5


def test_head_input_channels_and_checkpointing() -> None:
    model = timm.create_model("tiny_moat_0", in_chans=1, num_classes=0, img_size=64)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 256)
    model.reset_classifier(5)
    assert model.get_classifier().out_features == 5
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    model.eval()
    x = torch.randn(2, 1, 64, 64)
    plain = model(x)
    model.set_grad_checkpointing()
    model.train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert torch.equal(model(x), plain)
    assert model.no_weight_decay() == {n for n, _ in model.named_parameters() if n.endswith("relative.table")}
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert sum(len(names) for names in groups.values()) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "sliding"}, "global.*local"),
        ({"window_size": [7, 7]}, "belong to attention"),
        ({"global_last": True}, "belong to attention"),
        ({"attention": "local", "window_size": [7]}, "two windows"),
        ({"attention": "local", "window_size": [7, 0]}, "positive"),
        ({"position": "sinusoidal"}, "no position"),
        ({"output_stride": 4}, "8, 16 or 32"),
        ({"pool_size": 4}, "2 or 3"),
        ({"img_size": [64, 64, 64]}, "height and a width"),
        ({"attention": "local", "window_size": 4}, "two windows"),
        ({"table_size": [7]}, "2 positive integers"),
        ({"table_size": 7}, "2 positive integers"),
        ({"depths": [1, 1, 1]}, "4 positive integers"),
        ({"widths": [32, 64, 100, 256]}, "multiples of 32"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        timm.create_model("tiny_moat_0", **arguments)


@pytest.mark.parametrize("position", [p for p in Position if p is not Position.ABSOLUTE])
@pytest.mark.parametrize("attention", ["global", "local"])
def test_an_input_of_another_size_is_what_a_model_of_that_size_makes_of_it(position: Position, attention: str) -> None:
    torch.manual_seed(0)
    arguments = {"position": position, "attention": attention, "num_classes": 10}
    model = timm.create_model("tiny_moat_0", img_size=64, **arguments).eval()
    other = timm.create_model("tiny_moat_0", img_size=(96, 160), **arguments).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))


def test_absolute_positions_are_tied_to_their_size() -> None:
    model = timm.create_model("tiny_moat_0", position="absolute", **SMALL).eval()
    with pytest.raises(BadInput, match="64 x 64 inputs"):
        model(torch.randn(1, 3, 96, 96))
