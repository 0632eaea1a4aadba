"""Compressed weights, unpacked when a program is loaded, and quantised activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....errors import BadInput
from . import Ints, handles

_PALETTES = (2, 4, 16, 64, 256)


@handles("constexpr_affine_dequantize")
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Scale * (quantized_data - zero_point), each of them one number or one per element of `axis`."""
    return _dequantized(quantized_data, scale, zero_point, axis)


@handles("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Scale * (data - offset), where one scale (and offset) serves a block of data; all have one rank."""
    if offset is not None and offset.shape != scale.shape:
        raise BadInput(f"its offset of {tuple(offset.shape)} does not fit its scale of {tuple(scale.shape)}")
    blocks, once = _blocks(data.shape, scale.shape, "scale")
    shifted = data.float().reshape(blocks)
    if offset is not None:
        shifted = shifted - offset.float().reshape(once)
    return (shifted * scale.reshape(once)).reshape(data.shape)


@handles("constexpr_cast")
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """fp16 kept for fp32; floats are float32 here already."""
    if output_dtype != "fp32" or not source_val.is_floating_point():
        raise BadInput(f"it casts {source_val.dtype} to {output_dtype}; only fp16 to fp32 is defined")
    return source_val


@handles("constexpr_lut_to_dense")
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Ints | None = None, vector_axis: int | None = None
) -> Tensor:
    """Each index replaced by what a palette holds at it.

    Until iOS 17 `indices` is a vector of bytes, with indices of log2(len(lut)) bits packed from the lowest up, for a
    result of `shape`. From iOS 18 it has the result's shape; lut (*groups, P, V) holds a palette of P entries per
    block of indices, and entries of V > 1 numbers are laid out along vector_axis.
    """
    if shape is None:
        return _looked_up(indices, lut, vector_axis)
    if vector_axis is not None or lut.ndim != 1 or lut.numel() not in _PALETTES:
        raise BadInput(f"its lut of {tuple(lut.shape)} is not a vector of {', '.join(map(str, _PALETTES))} entries")
    places = _unpacked(indices, lut.numel().bit_length() - 1, math.prod(shape))
    return lut.index_select(0, places).reshape(shape)


@handles("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Ints | None = None) -> Tensor:
    """nonzero_data in order where `mask` is set, zero elsewhere.

    Until iOS 17 `mask` is a vector of bytes, a bit per element of `shape` from the lowest up; from iOS 18 it has the
    result's shape.
    """
    if shape is not None:
        mask = _unpacked(mask, 1, math.prod(shape)).reshape(shape)
    return _spread(nonzero_data, mask)


@handles("constexpr_lut_to_sparse")
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The palette looked up for the indices that are there: their mask and values, as constexpr_sparse_to_dense takes.

    A mask grows with entries of several numbers, along vector_axis.
    """
    dense = _looked_up(_spread(indices_nonzero_data, indices_mask), lut, vector_axis)
    if dense.shape == indices_mask.shape:
        mask = indices_mask
    else:
        assert vector_axis is not None  # _looked_up saw to it
        mask = indices_mask.repeat_interleave(lut.shape[-1], dim=vector_axis)
    return mask, _picked(dense, mask, indices_nonzero_data.numel() * lut.shape[-1])


@handles("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """constexpr_blockwise_shift_scale of the elements that are there: their mask and values."""
    dense = constexpr_blockwise_shift_scale(_spread(nonzero_data, data_mask), scale, offset)
    return data_mask, _picked(dense, data_mask, nonzero_data.numel())


@handles("quantize")
def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """round(input / scale) + zero_point, cut off at the ends of int8 or uint8; halves round to even, as in numpy."""
    if output_dtype not in ("int8", "uint8"):
        raise BadInput(f"it quantises to {output_dtype}; int8 and uint8 are defined")
    low, high = (-128, 127) if output_dtype == "int8" else (0, 255)
    levels = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        levels = levels + _along(zero_point, input, axis).float()
    return levels.clamp(low, high).to(torch.int8 if output_dtype == "int8" else torch.uint8)


@handles("dequantize")
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """Scale * (input - zero_point), each of them one number or one per element of `axis`."""
    return _dequantized(input, scale, zero_point, axis)


def _dequantized(data: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None) -> Tensor:
    levels = data.float()
    if zero_point is not None:
        levels = levels - _along(zero_point, data, axis).float()
    return levels * _along(scale, data, axis)


def _along(values: Tensor, data: Tensor, axis: int | None) -> Tensor:
    """One number as it is, several laid along an axis of `data`."""
    if values.ndim == 0:
        return values
    if values.ndim != 1 or axis is None or not -data.ndim <= axis < data.ndim or len(values) != data.shape[axis]:
        raise BadInput(
            f"its scales or zero points of {tuple(values.shape)} do not fit axis {axis} of {tuple(data.shape)}"
        )
    return values.reshape([-1 if i == axis % data.ndim else 1 for i in range(data.ndim)])


def _blocks(shape: tuple[int, ...], groups: tuple[int, ...], name: str) -> tuple[list[int], list[int]]:
    """Per axis two: groups and what is in each; and the same with one in each, for values that a group shares."""
    if len(shape) != len(groups) or any(g < 1 or side % g for side, g in zip(shape, groups, strict=True)):
        raise BadInput(f"its {name} of {tuple(groups)} does not divide {tuple(shape)} into blocks")
    pairs = list(zip(shape, groups, strict=True))
    return [n for side, g in pairs for n in (g, side // g)], [n for _, g in pairs for n in (g, 1)]


def _looked_up(indices: Tensor, lut: Tensor, vector_axis: int | None) -> Tensor:
    if lut.ndim != indices.ndim + 2:
        raise BadInput(f"its lut of {tuple(lut.shape)} does not fit indices of {tuple(indices.shape)}")
    *groups, entries, length = lut.shape
    if not indices.is_meta and indices.numel() and int(indices.max()) >= entries:
        raise BadInput(f"it looks up entry {int(indices.max())} of {entries}")
    if length > 1 and (vector_axis is None or not -indices.ndim <= vector_axis < indices.ndim):
        raise BadInput(f"its vector_axis is {vector_axis}, but entries of {length} numbers need one of {indices.ndim}")
    blocks, once = _blocks(indices.shape, tuple(groups), "lut")
    palette = torch.arange(math.prod(groups), dtype=torch.int32, device=indices.device).reshape(once)
    places = (palette * entries + indices.int().reshape(blocks)).reshape(-1)
    found = lut.reshape(-1, length).index_select(0, places).reshape(*indices.shape, length)
    if length == 1:
        return found.squeeze(-1)
    assert vector_axis is not None  # checked above
    axis = vector_axis % indices.ndim
    return found.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    there = mask != 0
    if not there.is_meta and int(there.sum()) != values.numel():
        raise BadInput(f"its mask is set {int(there.sum())} times for {values.numel()} values")
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(there, values)


def _picked(dense: Tensor, mask: Tensor, count: int) -> Tensor:
    """The values where the mask is set; how many there are is known from what was spread."""
    return dense.new_empty(count) if dense.is_meta else dense[mask != 0]


def _unpacked(packed: Tensor, bits: int, count: int) -> Tensor:
    """`count` whole numbers (flat, int32) of a few bits each, packed into bytes from the lowest bit up."""
    if packed.ndim != 1 or len(packed) != (count * bits + 7) // 8:
        raise BadInput(f"{count} numbers of {bits} bits are not {tuple(packed.shape)} bytes")
    size = math.lcm(bits, 8) // 8  # bytes after which numbers start at a byte again: at most 3
    groups = torch.nn.functional.pad(packed, (0, -len(packed) % size)).reshape(-1, size).int()
    words = (groups << torch.arange(0, 8 * size, 8, dtype=torch.int32, device=packed.device)).sum(1, keepdim=True)
    starts = torch.arange(0, 8 * size, bits, device=packed.device)
    return ((words >> starts) & ((1 << bits) - 1)).int().reshape(-1)[:count]
