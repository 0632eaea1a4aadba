"""Attention in all its forms against one plain form in float64, written out head by head and pair by pair."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from pocketvit import torchvision_repair  # noqa: F401  (before timm)
from pocketvit.errors import BadInput
from pocketvit.layers import (
    Attention,
    Position,
    Projection,
    pad_to_windows,
    separate_qkv,
    window_partition,
    window_reverse,
)

DIM, HEADS, WINDOW = 12, 3, (4, 3)
TOKENS = WINDOW[0] * WINDOW[1]
POSITIONS = list(Position)
FORMS = list(itertools.product(Projection, [False, True]))  # qkv, split_heads


def _attention(position=Position.NONE, *, seed=0, **options) -> Attention:
    """An attention whose every parameter is random and large enough to be seen in the output."""
    torch.manual_seed(seed)
    layer = Attention(DIM, HEADS, window=WINDOW, position=position, **options).eval()
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter, std=0.3 if name.split(".")[0] in ("q", "k", "v", "qkv", "proj") else 1.0)
    return layer


def _same_weights(layer: Attention, other: Attention) -> Attention:
    """Give `other` the weights of `layer`, whichever way each holds its projections."""
    weights = dict(layer.state_dict())
    for kind in ("weight", "bias"):
        if other.qkv is None and layer.qkv is not None:
            q, k, v = weights.pop(f"qkv.{kind}").chunk(3)
            weights |= {f"q.{kind}": q, f"k.{kind}": k, f"v.{kind}": v}
        elif other.qkv is not None and layer.qkv is None:
            weights[f"qkv.{kind}"] = torch.cat([weights.pop(f"{n}.{kind}") for n in "qkv"])
    other.load_state_dict(weights)
    return other


def _neighbours(x_hwC: Tensor, weight: Tensor) -> Tensor:
    """Depthwise 3x3 with zeros around, by shifts."""
    h, w, _ = x_hwC.shape
    found = torch.zeros_like(x_hwC)
    for y, x, dy, dx in itertools.product(range(h), range(w), range(-1, 2), range(-1, 2)):
        if 0 <= y + dy < h and 0 <= x + dx < w:
            found[y, x] += weight[:, 0, dy + 1, dx + 1] * x_hwC[y + dy, x + dx]
    return found


def _by_distance(table: Tensor, size: tuple[int, int]) -> Tensor:
    """The relative bias of one head for the upper left `size` of a window, pair by pair."""
    places = list(itertools.product(range(size[0]), range(size[1])))
    pairs = [table[yj - yi + WINDOW[0] - 1, xj - xi + WINDOW[1] - 1] for yi, xi in places for yj, xj in places]
    return torch.stack(pairs).reshape(len(places), len(places))


@torch.no_grad()
def _plain(layer: Attention, x_hwC: Tensor) -> tuple[Tensor, Tensor]:
    """One window in float64, or as much of one as there are real tokens: its upper left part; and its rounding.

    The rounding is how many eps a form may be off, element by element, whatever the order of its sums: a sum of n
    products is off by n eps of the sum of their sizes (Higham, Accuracy and Stability, section 3.1) and by what its
    factors are off; a weight of a softmax by twice the share that its scores are off.
    """
    weights = {name: tensor.double() for name, tensor in layer.state_dict().items()}
    (h, w, C), d = x_hwC.shape, layer.head_dim

    def linear(x: Tensor, off: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        size = x.abs() @ weight.T.abs() + bias.abs()
        return x @ weight.T + bias, off @ weight.T.abs() + (x.shape[1] + 1) * size

    def enhanced(x: Tensor, off: Tensor, y: Tensor, y_off: Tensor) -> tuple[Tensor, Tensor]:
        x, off, y, y_off = (t.reshape(h, w, -1) for t in (x, off, y, y_off))
        kernel = weights["lepe.weight"]
        added = _neighbours(y, kernel)
        off = off + _neighbours(y_off + 9 * y.abs(), kernel.abs()) + x.abs() + added.abs()
        return (x + added).reshape(h * w, -1), off.reshape(h * w, -1)

    x = x_hwC.double().reshape(h * w, C)
    off = torch.zeros_like(x)
    if layer.position is Position.ABSOLUTE:
        x = x + weights["absolute.table"].reshape(*WINDOW, C)[:h, :w].reshape(h * w, C)
        off = x.abs()
    if layer.position is Position.LEPE_FUSED:
        x, off = enhanced(x, off, x, off)
    names = [f"{n}." for n in "qkv"] if layer.qkv is None else ["qkv."]
    weight = torch.cat([weights[f"{n}weight"] for n in names])
    bias = torch.cat([weights.get(f"{n}bias", torch.zeros(len(weight) // len(names)).double()) for n in names])
    (q, k, v), (q_off, k_off, v_off) = (t.chunk(3, dim=1) for t in linear(x, off, weight, bias))
    outs = []
    for head in range(HEADS):
        part = slice(head * d, (head + 1) * d)
        qd, kd, qd_off, kd_off = (t[:, part] for t in (q, k, q_off, k_off))
        scores = qd @ kd.T / d**0.5
        scores_off = (qd_off @ kd.T.abs() + qd.abs() @ kd_off.T + (d + 2) * qd.abs() @ kd.T.abs()) / d**0.5
        if layer.relative is not None:
            table = weights["relative.table"]
            scores = scores + _by_distance(table[head % len(table)], (h, w))
            scores_off = scores_off + scores.abs()
        softmax = scores.softmax(1)
        share = 2 * scores_off.amax(1, keepdim=True) + 2 * TOKENS
        outs.append((softmax @ v[:, part], share * (softmax @ v[:, part].abs()) + softmax @ v_off[:, part]))
    out, out_off = (torch.cat(parts, 1) for parts in zip(*outs, strict=True))
    if layer.position is Position.LEPE:
        out, out_off = enhanced(out, out_off, v, v_off)
    out, out_off = linear(out, out_off, weights["proj.weight"], weights["proj.bias"])
    return out.reshape(h, w, C), out_off.reshape(h, w, C)


def _plain_windows(layer: Attention, x_BSC: Tensor) -> tuple[Tensor, Tensor]:
    """The same for whole windows, one after the other."""
    found = [_plain(layer, window.reshape(*WINDOW, DIM)) for window in x_BSC]
    out, off = (torch.stack(parts).flatten(1, 2) for parts in zip(*found, strict=True))
    return out, off


def _close(found: Tensor, expected: Tensor, off: Tensor, what: object) -> None:
    """Two results in the precision of `found`, each of which may be off by `off` eps."""
    allowed = 2 * torch.finfo(found.dtype).eps * off
    apart = (found.double() - expected.double()).abs()
    text = f"{what}: {apart.max():.1e} apart where up to {allowed.max():.1e} can be rounding"
    print(text)
    assert (apart <= allowed).all(), text


@pytest.mark.parametrize(("qkv", "split_heads"), FORMS)
@pytest.mark.parametrize("position", POSITIONS)
def test_every_form_is_the_plain_one(position, qkv, split_heads):
    layer = _attention(position, qkv=qkv, split_heads=split_heads).double()
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    with torch.no_grad():  # in float64, where a wrong formula cannot hide behind rounding
        _close(layer(x), *_plain_windows(layer, x), f"{position} {qkv}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("position", POSITIONS)
def test_split_heads_are_fused_attention_but_for_rounding(position, dtype):
    fused = _attention(position).to(dtype)
    split = _attention(position, split_heads=True).to(dtype)
    split.load_state_dict(fused.state_dict())
    x = torch.randn(5, TOKENS, DIM, dtype=dtype)
    with torch.no_grad():
        _close(split(x), fused(x), _plain_windows(fused, x)[1], f"{position} {dtype}")


@pytest.mark.parametrize("split_heads", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_projections_may_be_fused_or_separate(position, split_heads):
    fused = _attention(position, qkv="fused", split_heads=split_heads)
    separate = _same_weights(fused, _attention(position, qkv="separate", split_heads=split_heads, seed=1))
    x = torch.randn(2, TOKENS, DIM)
    with torch.no_grad():
        _close(separate(x), fused(x), _plain_windows(fused, x)[1], position)
    assert {"q", "k", "v", "proj"} <= {name for name, _ in separate.named_children()}
    assert {"qkv", "proj"} <= {name for name, _ in fused.named_children()}


@pytest.mark.parametrize("biased", [True, False])
def test_timms_fused_layer_cut_in_three_gives_timms_attention(biased):
    from timm.layers import Attention as Timms

    torch.manual_seed(0)
    theirs = Timms(DIM, num_heads=HEADS, qkv_bias=biased).eval()
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    ours = Attention(DIM, HEADS, qkv_bias=biased).eval()
    ours.q, ours.k, ours.v = separate_qkv(theirs.qkv)
    ours.proj = theirs.proj
    x = torch.randn(2, TOKENS, DIM)
    with torch.no_grad():
        for part in (ours.q, ours.k, ours.v):
            assert (part.bias is not None) is biased
        _close(ours(x), theirs(x), _plain_windows(ours, x)[1], "timm's attention")
        ours.q.weight.zero_()
    assert all(torch.equal(t, before[n]) for n, t in theirs.state_dict().items()), "the fused layer's memory is shared"
    with pytest.raises(BadInput, match="16 is not 3 times"):
        separate_qkv(nn.Linear(4, 16))


@pytest.mark.parametrize("split_heads", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_attention_over_padded_windows_is_attention_over_the_real_tokens(position, split_heads):
    layer = _attention(position, split_heads=split_heads).double()
    B, H, W = 2, 7, 8  # in windows of 4x3: the last of each row and column are smaller
    x = torch.randn(B, H, W, DIM, dtype=torch.float64)
    padded, bias = pad_to_windows(x, WINDOW)
    padded = torch.where(padded == 0, 9.0, padded)  # a norm after the padding leaves something there
    size = tuple(padded.shape[1:3])
    windows = window_partition(padded, WINDOW).flatten(1, 2)
    with torch.no_grad():
        out = layer(windows, bias).unflatten(1, WINDOW)
    found = window_reverse(out, WINDOW, size)[:, :H, :W]
    expected, off = torch.zeros_like(x), torch.zeros_like(x)
    for b, y, x_ in itertools.product(range(B), range(0, H, WINDOW[0]), range(0, W, WINDOW[1])):
        part = (b, slice(y, min(y + WINDOW[0], H)), slice(x_, min(x_ + WINDOW[1], W)))
        expected[part], off[part] = _plain(layer, x[part])
    _close(found, expected, off, position)
    with torch.no_grad():
        without = window_reverse(layer(windows).unflatten(1, WINDOW), WINDOW, size)[:, :H, :W]
    assert (without - expected).abs().max() > 1e-3, "the bias makes no difference, so this test shows nothing"


@pytest.mark.parametrize("split_heads", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_in_half_precision_padding_weighs_nothing_either(position, split_heads):
    layer = _attention(position, split_heads=split_heads).half()
    x = torch.randn(2, 7, 8, DIM).half()
    padded, bias = pad_to_windows(x, WINDOW)
    noisy = torch.where(padded == 0, 9.0, padded.float()).half()
    with torch.no_grad():
        quiet, loud = (layer(window_partition(p, WINDOW).flatten(1, 2), bias) for p in (padded, noisy))
    real = (bias == 0).transpose(1, 2).repeat(2, 1, 1).expand_as(quiet)
    assert quiet.isfinite().all()
    assert loud.isfinite().all()
    assert torch.equal(quiet[real], loud[real]), "what stands in the padding reaches the real tokens"


def _softmaxes(layer: Attention, x: Tensor) -> tuple[int, list[tuple[int, ...]]]:
    """How often a softmax (or attention in one operation) runs, and the shapes of all results."""
    program = torch.export.export(layer, (x,))
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    fused = sum("scaled_dot_product_attention" in str(n.target) for n in nodes)
    split = sum("softmax" in str(n.target) for n in nodes)
    assert fused == 0 or split == 0
    shapes = [tuple(v.shape) for n in nodes for v in ([n.meta["val"]] if isinstance(n.meta["val"], Tensor) else [])]
    return fused or split, shapes


@pytest.mark.parametrize("position", POSITIONS)
def test_split_heads_run_one_softmax_each_and_never_hold_all_scores(position):
    x = torch.randn(5, TOKENS, DIM)
    count, shapes = _softmaxes(_attention(position, split_heads=True), x)
    assert count == HEADS
    assert all(len(shape) <= 5 for shape in shapes)
    scores = [shape for shape in shapes if shape[-2:] == (TOKENS, TOKENS)]
    assert (5, TOKENS, TOKENS) in scores
    assert not [shape for shape in scores if len(shape) > 3], scores
    together, shapes = _softmaxes(_attention(position), x)
    assert together == 1
    assert max(map(len, shapes)) <= 5


def test_single_head_tables_are_multi_head_tables_that_repeat():
    one = _attention(Position.SINGLE_HEAD)
    many = _attention(Position.RELATIVE)
    x = torch.randn(2, TOKENS, DIM)
    with torch.no_grad():
        weights = dict(one.state_dict())
        table = weights.pop("relative.table")
        random = many.relative.table.clone()
        many.load_state_dict(weights | {"relative.table": table.expand(HEADS, -1, -1)})
        _close(one(x), many(x), _plain_windows(one, x)[1], "one table repeated")
        many.relative.table.copy_(random)
        apart = (one(x) - many(x)).abs().max().item()
    assert apart > 0.01, f"a table for each head gives the output of one for all, {apart:.1e} apart"
    assert [random.shape[0], table.shape[0]] == [HEADS, 1]


EXTRA = {
    Position.NONE: 0,
    Position.ABSOLUTE: TOKENS * DIM,
    Position.RELATIVE: HEADS * 7 * 5,
    Position.SINGLE_HEAD: 7 * 5,
    Position.LEPE: 9 * DIM,
    Position.LEPE_FUSED: 9 * DIM,
}


@pytest.mark.parametrize("position", POSITIONS)
def test_a_position_has_its_own_parameters_all_of_which_matter(position):
    layer, x = _attention(position), torch.randn(2, TOKENS, DIM)
    extra = {n: p for n, p in layer.named_parameters() if n.split(".")[0] not in ("q", "k", "v", "proj")}
    assert sum(p.numel() for p in extra.values()) == EXTRA[position]
    plain = _attention(Position.NONE)
    plain.load_state_dict({n: t for n, t in layer.state_dict().items() if n not in extra})
    with torch.no_grad():
        expected, found = plain(x), layer(x)
        for parameter in extra.values():
            changed = (found - expected).abs().max().item()
            assert changed > 0.01, f"{position} changes the output by {changed:.1e} only"
            parameter.zero_()
        _close(layer(x), expected, _plain_windows(plain, x)[1], f"{position} of zeros")


def test_lepe_fused_is_not_lepe():
    after, before = _attention(Position.LEPE), _attention(Position.LEPE_FUSED)
    before.load_state_dict(after.state_dict())
    x = torch.randn(2, TOKENS, DIM)
    with torch.no_grad():
        assert (after(x) - before(x)).abs().max() > 0.01


def test_a_table_of_another_window_is_resized():
    layer = _attention(Position.RELATIVE, position_base=(7, 7))
    assert layer.relative.table.shape == (HEADS, 13, 13)
    resized = nn.functional.interpolate(layer.relative.table[None], (7, 5), mode="bilinear", align_corners=False)[0]
    own = _attention(Position.RELATIVE)
    own.load_state_dict(dict(layer.state_dict()) | {"relative.table": resized})
    x = torch.randn(2, TOKENS, DIM)
    with torch.no_grad():
        _close(layer(x), own(x), _plain_windows(own, x)[1], "resized table")


@pytest.mark.parametrize("split_heads", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_everything_learns_and_nothing_of_the_callers_is_edited(position, split_heads):
    layer = _attention(position, split_heads=split_heads).train()
    x, bias = pad_to_windows(torch.randn(2, 3, 3, DIM), WINDOW)
    x = x.flatten(1, 2).requires_grad_()
    before = [(t, t.detach().clone(), t._version) for t in (x, bias)]
    layer(x, bias)[:, : 3 * 3].pow(2).sum().backward()
    assert all(torch.equal(t, copy) and t._version == version for t, copy, version in before)
    assert x.grad is not None
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.isfinite().all(), f"{name} gets no finite gradient"
        if name != "k.bias":  # it shifts all scores of a query alike, which a softmax does not see
            assert parameter.grad.abs().max() > 1e-4, f"{name} gets no gradient"


@pytest.mark.parametrize("split_heads", [False, True])
def test_dropout_of_everything_leaves_the_bias_or_nothing_and_only_in_training(split_heads):
    x = torch.randn(2, TOKENS, DIM)
    layer = _attention(attn_drop=1.0, split_heads=split_heads)
    expected = _attention(split_heads=split_heads)(x)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.train()(x), layer.proj.bias.expand_as(x))
    layer = _attention(proj_drop=1.0, split_heads=split_heads)
    assert torch.equal(layer(x), expected)
    assert not layer.train()(x).any()


@pytest.mark.parametrize("split_heads", [False, True])
def test_bfloat16_autocast_trains(split_heads):
    layer = _attention(Position.RELATIVE, split_heads=split_heads).train()
    x, bias = pad_to_windows(torch.randn(2, 3, 3, DIM), WINDOW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x.flatten(1, 2), bias)
    out.float().sum().backward()
    assert out.isfinite().all()
    assert layer.relative.table.grad.isfinite().all()


@pytest.mark.parametrize("qkv", Projection)
def test_heads_may_be_wider_or_narrower_than_the_channels_would_give(qkv):
    layer = Attention(DIM, 5, head_dim=2, qkv=qkv, qkv_bias=False, window=WINDOW, position="lepe")
    assert layer(torch.randn(2, TOKENS, DIM)).shape == (2, TOKENS, DIM)
    assert layer.proj.in_features == 10
    assert layer.lepe.in_channels == 10, "LePE is of the values, which are as wide as all heads"
    assert [n for n, _ in layer.named_parameters() if n.endswith("bias")] == ["proj.bias"]


def test_without_a_position_any_number_of_tokens_will_do():
    layer = Attention(DIM, HEADS)
    assert [layer(torch.randn(1, tokens, DIM)).shape[1] for tokens in (1, 5, 49)] == [1, 5, 49]


REFUSED = [
    ({"heads": 5}, "12 channels do not make 5 heads; give a divisor"),
    ({"heads": 0}, "12 channels do not make 0 heads"),
    ({"head_dim": 0}, "do not make 3 heads of 0"),
    ({"position": "lepe", "window": None}, "The position 'lepe' needs the window"),
    ({"position": "somewhere"}, "There is no position called 'somewhere'; there are none, absolute, relative"),
    ({"qkv": "chunked"}, "There is no projection called 'chunked'; there are separate, fused"),
    ({"position": "absolute", "position_base": (7, 7)}, "'absolute' has no table to resize"),
]


@pytest.mark.parametrize(("options", "why"), REFUSED)
def test_what_does_not_go_together_is_refused(options, why):
    with pytest.raises(BadInput, match=why):
        Attention(DIM, **({"heads": HEADS, "window": WINDOW} | options))


def test_tokens_and_biases_that_do_not_fit_are_refused():
    layer = _attention(Position.RELATIVE)
    with pytest.raises(BadInput, match="7 tokens do not fill a window of 4x3"):
        layer(torch.zeros(2, 7, DIM))
    for shape in ((3, 1, TOKENS), (2, 1, 5)):
        with pytest.raises(BadInput, match="use the one that pad_to_windows gave"):
            layer(torch.zeros(2, TOKENS, DIM), torch.zeros(shape))
