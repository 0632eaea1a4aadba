"""Resizing images: nearest neighbour and linear interpolation, with every way MIL lays the sampling points."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import BadInput
from ..values import TensorType
from . import Ints, handles

SAMPLING_MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")


@handles("upsample_nearest_neighbor")
def upsample_nearest_neighbor(
    x: Tensor,
    outputs: tuple[TensorType, ...],
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
) -> Tensor:
    """Scale the last two axes; element i of n comes from floor(i * size / n).

    The documentation leaves the rounding open; coremltools' own results for a width of 3 scaled by 1.12 show that the
    factor is recomputed from the sizes.
    """
    height, width = _scaled(x, outputs, scale_factor_height, scale_factor_width)
    return _pick(_pick(x, -2, height, half_pixel=False), -1, width, half_pixel=False)


@handles("resize_nearest_neighbor")
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Resize the last two axes; element i of n comes from floor((i + 0.5) * size / n).

    The documentation leaves the rule open; coremltools lowers TensorFlow's half-pixel resize to this operation.
    """
    return _pick(_pick(x, -2, target_size_height, half_pixel=True), -1, target_size_width, half_pixel=True)


@handles("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    outputs: tuple[TensorType, ...],
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Scale the last two axes with linear interpolation; factors are recomputed from the sizes.

    half_pixel_centers is the opposite of align_corners unless given; neither means points at i * size / n.
    """
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise BadInput("align_corners and half_pixel_centers exclude each other")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _linear(x, _scaled(x, outputs, scale_factor_height, scale_factor_width), mode)


@handles("resize_bilinear")
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Resize the last two axes with linear interpolation."""
    return _linear(x, (target_size_height, target_size_width), sampling_mode)


@handles("resize")
def resize(
    x: Tensor, shape: Ints, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Resize the last `resized_dims` axes to the last numbers of `shape`; 0 keeps an axis as it is.

    Nearest neighbours with the default points are half-pixel ones, as coremltools' own results show (and not the
    points that linear interpolation takes by default). What other points round to is nowhere defined.
    """
    if not 0 <= resized_dims <= len(shape) <= x.ndim:
        raise BadInput(f"it resizes {resized_dims} axes to {list(shape)}, but its input has {x.ndim} axes")
    wanted = shape[len(shape) - resized_dims :]
    sizes = tuple(new or old for new, old in zip(wanted, x.shape[x.ndim - resized_dims :], strict=True))
    if interpolation_mode == "LINEAR":
        if not x.is_floating_point():
            raise BadInput("how linear interpolation rounds whole numbers is not defined; NEAREST_NEIGHBOR is")
        return _linear(x, sizes, sampling_mode)
    if interpolation_mode != "NEAREST_NEIGHBOR":
        raise BadInput(f"its interpolation_mode is {interpolation_mode!r} instead of LINEAR or NEAREST_NEIGHBOR")
    if sampling_mode not in ("DEFAULT", "UNALIGN_CORNERS"):
        raise BadInput(f"which neighbour is nearest with sampling_mode {sampling_mode!r} is not defined")
    for axis, size in enumerate(sizes, -len(sizes)):
        x = _pick(x, axis, size, half_pixel=True)
    return x


def sampling_points(mode: str, first: Tensor, last: Tensor, count: int) -> Tensor:
    """Lay `count` points from pixel `first` to pixel `last` (both of shape (..., 1)); shape (..., count).

    The documented formulas for an axis of size X take first = 0 and last = X - 1. Points never leave the interval.
    An interval that runs backwards (last < first) is sampled as its mirror image.
    """
    extent = last - first
    size = extent + torch.where(extent < 0, -1.0, 1.0).to(extent.dtype)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        spacing = extent / max(1, count - 1)
        offset = extent / 2 if mode == "ALIGN_CORNERS" and count == 1 else torch.zeros_like(extent)
    elif mode == "DEFAULT":
        spacing, offset = size / count, torch.zeros_like(extent)
    elif mode == "OFFSET_CORNERS":
        spacing = torch.where(extent.abs() < 1, size - extent, extent) / count
        offset = spacing / 2
    elif mode == "UNALIGN_CORNERS":
        spacing = size / count
        offset = (spacing - (size - extent)) / 2
    else:
        raise BadInput(f"its sampling_mode is {mode!r} instead of one of {', '.join(SAMPLING_MODES)}")
    steps = torch.arange(count, dtype=extent.dtype, device=extent.device)
    points = first + offset + steps * spacing
    return torch.minimum(torch.maximum(points, torch.minimum(first, last)), torch.maximum(first, last))


def _linear(x: Tensor, sizes: Ints, mode: str) -> Tensor:
    """Interpolate the last len(sizes) axes, one after the other."""
    if min(sizes, default=1) < 1:
        raise BadInput(f"it resizes to {list(sizes)}")
    aligned = mode == "STRICT_ALIGN_CORNERS"
    if len(sizes) == 2 and (aligned or mode == "UNALIGN_CORNERS"):
        planes = x.reshape(1, -1, *x.shape[-2:])
        found = F.interpolate(planes, sizes, mode="bilinear", align_corners=aligned)
        return found.reshape(*x.shape[:-2], *sizes)
    for axis, count in enumerate(sizes, x.ndim - len(sizes)):
        end = x.shape[axis] - 1
        first, last = torch.tensor([[0.0], [float(end)]], dtype=torch.float64, device=x.device)
        points = sampling_points(mode, first, last, count)
        below = points.floor()
        weight = (points - below).to(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
        before = below.long()
        x = torch.lerp(x.index_select(axis, before), x.index_select(axis, (before + 1).clamp(max=end)), weight)
    return x


def _pick(x: Tensor, axis: int, count: int, half_pixel: bool) -> Tensor:
    """Take `count` elements along an axis, nearest by exact integer arithmetic."""
    size = x.shape[axis]
    if count < 1:
        raise BadInput(f"it resizes to {count}")
    if count == size:
        return x
    steps = torch.arange(count, device=x.device)
    places = (2 * steps + 1) * size // (2 * count) if half_pixel else steps * size // count
    return x.index_select(axis, places)


def _scaled(x: Tensor, outputs: tuple[TensorType, ...], *factors: float) -> Ints:
    """floor(size * factor) for the last two axes; what the file declares decides where float32 rounding could."""
    sizes = []
    for axis, factor in zip((-2, -1), factors, strict=True):
        exact, declared = x.shape[axis] * factor, outputs[0].shape[axis]
        near = {math.floor(exact * (1 - 2**-23)), math.floor(exact * (1 + 2**-23))}
        sizes.append(declared if declared is not None and declared in near else math.floor(exact))
    return tuple(sizes)
