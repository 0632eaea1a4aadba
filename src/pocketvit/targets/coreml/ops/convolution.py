"""Convolutions over one, two or three spatial axes, and their transposes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ....errors import BadInput
from . import Ints, handles
from .padding import explicit, window_pads

_FORWARD = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


@handles("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Slide weight (C_out, C_in / groups, *K) over x (n, C_in, *D); padding is zeros."""
    strides, dilations = _per_axis(x, weight, strides, dilations)
    windows = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pads = window_pads(pad_type, pad, x.shape[2:], windows, strides)
    convolve = _FORWARD[x.ndim]
    if all(before == after for before, after in pads):
        return convolve(x, weight, bias, strides, tuple(before for before, _ in pads), dilations, groups)
    return convolve(explicit(x, pads), weight, bias, strides, 0, dilations, groups)


@handles("conv_transpose")
def conv_transpose(
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
    """The gradient of `conv` by its input: x (n, C_in, *D) with weight (C_in, C_out / groups, *K).

    Padding cuts the result. same gives D * stride; what the kernel does not reach holds the bias. MIL leaves open what
    `output_shape` does beside padding; here it picks one of the sizes that `conv` maps to D, others are refused.
    """
    strides, dilations = _per_axis(x, weight, strides, dilations)
    if pad_type.lower() not in ("valid", "same", "custom"):
        raise BadInput(f"its pad_type is {pad_type!r} instead of valid, same or custom")
    sizes = x.shape[2:]
    windows = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    full = [(n - 1) * s + k for n, k, s in zip(sizes, windows, strides, strict=True)]
    if output_shape is not None:
        if len(output_shape) != x.ndim or output_shape[:2] != (x.shape[0], weight.shape[1] * groups):
            raise BadInput(f"its output_shape is {list(output_shape)}, which its input and weight cannot give")
        wanted = output_shape[2:]
    elif pad_type.lower() == "same":
        wanted = tuple(n * s for n, s in zip(sizes, strides, strict=True))
    else:
        given = window_pads(pad_type, pad, sizes, windows, strides)
        wanted = tuple(f - before - after for f, (before, after) in zip(full, given, strict=True))
    pads = window_pads(pad_type, pad, wanted, windows, strides)
    for size, n, (before, after), k, s in zip(wanted, sizes, pads, windows, strides, strict=True):
        if (size + before + after - k) // s + 1 != n:
            raise BadInput(f"a convolution of {size} elements with this kernel, stride and padding does not give {n}")
    starts = tuple(before for before, _ in pads)
    # what lies behind the full result: torch's output padding, which is always less than the stride here
    extra = tuple(max(0, w + b - f) for w, b, f in zip(wanted, starts, full, strict=True))
    transpose = _TRANSPOSED[x.ndim]
    if all(f - 2 * b + e == w for f, b, e, w in zip(full, starts, extra, wanted, strict=True)):
        return transpose(x, weight, bias, strides, starts, extra, groups, dilations)
    found = transpose(x, weight, bias, strides, 0, extra, groups, dilations)
    for axis, (start, size) in enumerate(zip(starts, wanted, strict=True), 2):
        found = found.narrow(axis, start, size)
    return found


def _per_axis(x: Tensor, weight: Tensor, strides: Ints | None, dilations: Ints | None) -> tuple[Ints, Ints]:
    """Strides and dilations, one for each spatial axis; BadInput unless they and the ranks agree."""
    axes = x.ndim - 2
    strides, dilations = strides or (1,) * axes, dilations or (1,) * axes
    if x.ndim not in _FORWARD or weight.ndim != x.ndim or len(strides) != axes or len(dilations) != axes:
        raise BadInput(
            f"its input has {axes} spatial axes, its weight {weight.ndim - 2}, its strides {len(strides)} and its "
            f"dilations {len(dilations)}; all must be the same number from 1 to 3"
        )
    if min(*strides, *dilations) < 1:
        raise BadInput(f"its strides are {list(strides)} and its dilations {list(dilations)}; they start at 1")
    return strides, dilations
