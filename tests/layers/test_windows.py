"""Windows against their definition and the form of rank 6, and that no exported graph exceeds rank 5."""

from __future__ import annotations

import itertools

import pytest
import torch

from pocketvit.errors import BadInput
from pocketvit.layers import pad_to_windows, window_partition, window_reverse
from pocketvit.layers.windows import PADDED

# (B, H, W, C), window
WHOLE = [
    ((1, 4, 6, 3), (2, 3)),
    ((3, 14, 7, 5), (7, 7)),
    ((2, 8, 8, 32), (8, 8)),
    ((2, 1, 9, 1), (1, 3)),
    ((2, 6, 10, 4), (3, 5)),
    ((1, 5, 3, 7), (1, 1)),
]
# (B, H, W, C), window, padded (H, W)
RAGGED = [
    ((2, 7, 8, 4), (4, 3), (8, 9)),
    ((1, 5, 6, 2), (5, 4), (5, 8)),
    ((3, 2, 3, 1), (7, 7), (7, 7)),
    ((2, 13, 12, 3), (6, 6), (18, 12)),
]


def _numbered(*shape: int) -> torch.Tensor:
    """Every element different, so that none can pass for another."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def _six_axes(x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """As Swin's authors write it: one reshape to rank 6."""
    (B, H, W, C), (h, w) = x.shape, window
    x = x.view(B, H // h, h, W // w, w, C).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, h, w, C)


@pytest.mark.parametrize(("shape", "window"), WHOLE)
def test_windows_are_the_slices_they_are_defined_as_row_by_row(shape, window):
    x, (h, w) = _numbered(*shape), window
    corners = itertools.product(range(shape[0]), range(0, shape[1], h), range(0, shape[2], w))
    expected = torch.stack([x[b, top : top + h, left : left + w] for b, top, left in corners])
    found = window_partition(x, window)
    assert torch.equal(found, expected)
    assert torch.equal(found, _six_axes(x, window)), "differs from the form of rank 6"


@pytest.mark.parametrize(("shape", "window"), WHOLE)
def test_joining_is_the_exact_inverse(shape, window):
    x = _numbered(*shape)
    assert torch.equal(window_reverse(window_partition(x, window), window, shape[1:3]), x)
    windows = _numbered(*window_partition(x, window).shape)
    assert torch.equal(window_partition(window_reverse(windows, window, shape[1:3]), window), windows)


@pytest.mark.parametrize(("shape", "window", "padded"), RAGGED)
def test_padded_maps_have_zeros_a_bias_and_the_way_back(shape, window, padded):
    x = _numbered(*shape) + 1
    larger, bias = pad_to_windows(x, window)
    assert larger.shape == (shape[0], *padded, shape[3])
    assert torch.equal(larger[:, : shape[1], : shape[2]], x)
    assert larger.count_nonzero() == x.numel(), "what was added is not zero"
    real = window_partition(larger[:1, :, :, :1], window).flatten(1) != 0
    assert bias.shape == (real.shape[0], 1, window[0] * window[1])
    assert torch.equal(bias[:, 0] == 0, real), "the bias is 0 at other places than the real keys"
    assert torch.equal(bias[:, 0] == PADDED, ~real)
    assert real.any(1).all(), "a window without a real key has no attention"
    back = window_reverse(window_partition(larger, window), window, padded)
    assert torch.equal(back[:, : shape[1], : shape[2]], x)


def test_what_needs_no_padding_gets_none():
    x = _numbered(2, 6, 4, 3)
    same, bias = pad_to_windows(x, (3, 2))
    assert same is x
    assert bias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_bias_silences_a_key_in_every_float_type(dtype):
    _, bias = pad_to_windows(torch.zeros(1, 1, 1, 1, dtype=dtype), (1, 2))
    assert bias.dtype == dtype
    for score in (-35_000.0, 0.0, 29_000.0):  # of the padded key, beside a real one of 0
        scores = torch.tensor([0, score], dtype=dtype) + bias[0, 0]
        assert scores.isfinite().all(), f"{score} + {PADDED} is not finite in {dtype}"
        assert scores.softmax(0).tolist() == [1, 0]


def test_sizes_that_do_not_divide_are_refused_with_the_way_out():
    for shape in ((1, 7, 6, 2), (1, 6, 7, 2)):
        with pytest.raises(
            BadInput, match=r"no whole number of 3x3 windows; pad it to \dx\d with pad_to_windows first"
        ):
            window_partition(torch.zeros(shape), (3, 3))
    with pytest.raises(BadInput, match="pad_to_windows"):
        window_reverse(torch.zeros(4, 3, 3, 2), (3, 3), (6, 7))
    for windows in (torch.zeros(5, 3, 3, 2), torch.zeros(4, 3, 2, 2)):
        with pytest.raises(BadInput, match=r"do not make maps of 6x6 out of 3x3 windows"):
            window_reverse(windows, (3, 3), (6, 6))
    for function in (window_partition, pad_to_windows):
        with pytest.raises(BadInput, match="not 0x3"):
            function(torch.zeros(1, 6, 6, 2), (0, 3))


def test_the_callers_tensor_is_not_edited():
    x = torch.randn(2, 7, 8, 3)
    before, version = x.clone(), x._version
    padded, _ = pad_to_windows(x, (4, 4))
    windows = window_partition(padded, (4, 4))
    untouched, _ = windows.clone(), window_reverse(windows, (4, 4), (8, 8))
    assert torch.equal(x, before)
    assert x._version == version
    assert torch.equal(windows, untouched)


def test_one_transpose_of_rank_5_each_way():
    class ThereAndBack(torch.nn.Module):
        def forward(self, x):
            padded, _ = pad_to_windows(x, (4, 4))
            return window_reverse(window_partition(padded, (4, 4)) * 2, (4, 4), (8, 12))[:, :7, :10]

    x = torch.randn(2, 7, 10, 3)
    program = torch.export.export(ThereAndBack(), (x,)).run_decompositions({})
    assert torch.equal(program.module()(x), 2 * x)
    ranks = {n.name: n.meta["val"].ndim for n in program.graph.nodes if n.op == "call_function"}
    moved = [n.name for n in program.graph.nodes if "transpose" in str(n.target) or "permute" in str(n.target)]
    assert max(ranks.values()) == 5, ranks
    assert [ranks[name] for name in moved] == [5, 5], moved


def test_gradients_flow_back_to_each_element_once():
    x = torch.randn(2, 5, 6, 3, requires_grad=True)
    padded, _ = pad_to_windows(x, (3, 4))
    window_partition(padded, (3, 4)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
