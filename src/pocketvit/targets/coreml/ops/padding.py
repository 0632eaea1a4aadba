"""Padding: the operation itself, and the amounts that the named paddings of convolutions and pools stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import BadInput
from . import Ints, handles

Pads = list[tuple[int, int]]  # before and after, per axis


@handles("pad")
def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pad the last len(pad) / 2 axes, amounts in the order of the axes: before, after, before, after...

    mode: constant, reflect (the edge is not repeated; at most size - 1) or replicate (at most size).
    """
    amounts = pairs(pad)
    if len(amounts) > x.ndim:
        raise BadInput(f"it pads {len(amounts)} axes of a tensor that has {x.ndim}")
    if mode == "constant":
        return explicit(x, amounts, constant_val)
    if mode not in ("reflect", "replicate"):
        raise BadInput(f"its mode is {mode!r} instead of constant, reflect or replicate")
    for axis, (before, after) in enumerate(amounts, x.ndim - len(amounts)):
        size = x.shape[axis]
        most = size - 1 if mode == "reflect" else size
        if max(before, after) > most:
            raise BadInput(f"it pads axis {axis} by {max(before, after)}; {mode} can add {most} to {size} elements")
        if before or after:
            places = torch.arange(-before, size + after, device=x.device)
            if mode == "reflect":
                places = size - 1 - (size - 1 - places.abs()).abs()
            x = x.index_select(axis, places.clamp(0, size - 1))
    return x


def pairs(amounts: Sequence[int]) -> Pads:
    """Amounts by axis; BadInput for an odd number of them and for negative ones."""
    if len(amounts) % 2 or min(amounts, default=0) < 0:
        raise BadInput(f"its padding is {list(amounts)} instead of two amounts from 0 for each axis")
    return list(zip(amounts[::2], amounts[1::2], strict=True))


def window_pads(
    pad_type: str, pad: Sequence[int] | None, sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> Pads:
    """The padding of each spatial axis for windows of `windows` elements (dilation included).

    same: as much as it takes for ceil(size / stride) windows, the odd element behind; same_lower: before. `pad` counts
    for custom only. MIL's text for conv has a second formula, from the window alone, which contradicts its own output
    shapes for strides above 1; every converter relies on this one.
    """
    kind = pad_type.lower()
    if kind == "custom":
        amounts = pairs(pad or (0, 0) * len(sizes))
        if len(amounts) != len(sizes):
            raise BadInput(f"its pad has {len(amounts)} pairs for {len(sizes)} axes")
        return amounts
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind not in ("same", "same_lower"):
        raise BadInput(f"its pad_type is {pad_type!r} instead of valid, same, same_lower or custom")
    totals = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(sizes, windows, strides, strict=True)]
    if kind == "same":
        return [(total // 2, total - total // 2) for total in totals]
    return [(total - total // 2, total // 2) for total in totals]


def explicit(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """Pad the last axes with a constant."""
    return F.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)
