"""Products, convolutions and average pooling with their accumulators kept after every 32 terms.

In which order hardware accumulates, and after how many terms it stores a half, is not public: one line of 64 bytes is
an assumption. Each block of terms is computed by the plain operation, so padding and layout are its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import OPS
from .ops.padding import explicit, window_pads
from .steps import BLOCK, MASKED, Ints, Keep, accumulate, softmax

Tensors = tuple[Tensor, ...]


def linear(keep: Keep, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X (..., D_in) times weight (D_out, D_in) transposed, plus bias."""
    parts = (F.linear(x[..., block], weight[:, block]) for block in _blocks(x.shape[-1]))
    found = accumulate(keep, "accumulator", parts)
    return found if bias is None else found + bias


def matmul(keep: Keep, x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Batched product of the last two axes, which may be swapped first."""
    x = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    return _product(keep, "accumulator", x, y)


def einsum(keep: Keep, values: Tensors, equation: str) -> Tensor:
    """The two equations that MIL knows contract the last axis of one with the third last of the other."""
    x, y = values
    plain = OPS.get("einsum")
    parts = (plain(values=(x[..., block], y[..., block, :, :]), equation=equation) for block in _blocks(x.shape[-1]))
    return accumulate(keep, "accumulator", parts)


def scaled_dot_product_attention(
    keep: Keep, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """Query times key, scaled, masked, softmax, times value; the scale comes after the product, as it is defined."""
    product = _product(keep, "query times key", query, key.transpose(-1, -2))
    scores = keep("scaled scores", product * keep("scale", query.new_full((), 1 / math.sqrt(query.shape[-1]))))
    if attn_mask is not None and not attn_mask.is_floating_point():
        scores = scores.masked_fill(~attn_mask, MASKED)
    elif attn_mask is not None:
        scores = keep("masked scores", scores + attn_mask)
    return _product(keep, "attention times value", keep("attention", softmax(keep, scores)), value)


def conv(
    keep: Keep,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution; x (N, C_in, ...), weight (C_out, C_in / groups, ...)."""
    plain, rest = OPS.get("conv"), _given(strides=strides, pad=pad, dilations=dilations)

    def parts() -> Iterator[Tensor]:
        for channels, taps in _windows(weight.shape[1], weight.shape[2:]):
            part = taps(weight[:, channels])
            yield plain(x=_of_group(x, 1, groups, channels), weight=part, pad_type=pad_type, groups=groups, **rest)

    return _plus_bias(accumulate(keep, "accumulator", parts()), bias)


def conv_transpose(
    keep: Keep,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution; x (N, C_in, ...), weight (C_in, C_out / groups, ...)."""
    plain = OPS.get("conv_transpose")
    rest = _given(strides=strides, pad=pad, dilations=dilations, output_shape=output_shape)

    def parts() -> Iterator[Tensor]:
        for channels, taps in _windows(weight.shape[0] // groups, weight.shape[2:]):
            part = taps(_of_group(weight, 0, groups, channels))
            yield plain(x=_of_group(x, 1, groups, channels), weight=part, pad_type=pad_type, groups=groups, **rest)

    return _plus_bias(accumulate(keep, "accumulator", parts()), bias)


def avg_pool(
    keep: Keep,
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """The accumulated sum of each window, then the division by as many elements as the plain operation counts."""
    steps = strides or (1,) * len(kernel_sizes)
    rest = _given(strides=strides, pad=pad)

    def mean(x: Tensor) -> Tensor:
        flags = {"exclude_padding_from_average": exclude_padding_from_average, "ceil_mode": ceil_mode}
        return OPS.get("avg_pool")(x=x, kernel_sizes=kernel_sizes, pad_type=pad_type, **flags, **rest)

    one = torch.ones_like(x[:1, :1])
    share = mean(one)
    sides = zip(window_pads(pad_type, pad, x.shape[2:], kernel_sizes, steps), x.shape[2:], kernel_sizes, strict=True)
    # up to the end of the last window, which ceil_mode may move
    ends = [(out - 1) * step for out, step in zip(share.shape[2:], steps, strict=True)]
    pads = [(b, max(a, end + k - n - b)) for ((b, a), n, k), end in zip(sides, ends, strict=True)]
    taps = x.new_ones((x.shape[1], 1, *kernel_sizes))
    summed = conv(keep, explicit(x, pads), taps, strides=steps, groups=x.shape[1])
    counted = OPS.get("conv")(x=explicit(one, pads), weight=taps[:1], strides=steps)
    return summed / (counted / share)


PRODUCTS: dict[str, Callable[..., Tensor]] = {
    step.__name__: step
    for step in (linear, matmul, einsum, scaled_dot_product_attention, conv, conv_transpose, avg_pool)
}


def _blocks(terms: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, terms, BLOCK)]


def _product(keep: Keep, name: str, x: Tensor, y: Tensor) -> Tensor:
    def rows(block: slice) -> Tensor:
        return y[block] if y.ndim == 1 else y[..., block, :]

    return accumulate(keep, name, (x[..., block] @ rows(block) for block in _blocks(x.shape[-1])))


def _windows(channels: int, window: Ints) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
    """Channels, and what to leave of their window, for blocks of at most BLOCK terms each.

    Small windows are taken whole, for as many channels as fit; large ones of one channel part by part.
    """
    taps = math.prod(window)
    if taps <= BLOCK:
        together = BLOCK // taps
        for start in range(0, channels, together):
            yield slice(start, start + together), lambda weight: weight
        return
    for channel in range(channels):
        for start in range(0, taps, BLOCK):
            yield slice(channel, channel + 1), partial(_only, start=start)


def _only(weight: Tensor, start: int) -> Tensor:
    """The weights with all but BLOCK positions of the window, from `start` on, set to 0."""
    flat = weight.flatten(2)
    part = flat[..., start : start + BLOCK]
    return F.pad(part, (start, flat.shape[-1] - start - part.shape[-1])).reshape(weight.shape)


def _of_group(x: Tensor, axis: int, groups: int, channels: slice) -> Tensor:
    """The same channels of every group."""
    return x.unflatten(axis, (groups, -1)).movedim(axis + 1, 0)[channels].movedim(0, axis + 1).flatten(axis, axis + 1)


def _given(**arguments: Ints | None) -> dict[str, Ints]:
    return {name: value for name, value in arguments.items() if value is not None}


def _plus_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.reshape([1, -1] + [1] * (x.ndim - 2))
