"""Joining and making: tensors put together, taken apart, repeated, or made from a few numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....errors import BadInput
from ..values import MAX_ELEMENTS, Dtype, TensorType
from . import Ints, Tensors, handles
from .shapes import axis_from_front


@handles("concat")
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """One after the other along `axis`, or in turns: the first of each, then the second of each.

    Numbers without an axis make a vector.
    """
    if values[0].ndim == 0:
        return torch.stack(values)
    if not interleave:
        return torch.cat(values, axis)
    if any(value.shape != values[0].shape for value in values):
        raise BadInput(f"it interleaves values of different shapes, {[tuple(value.shape) for value in values]}")
    axis = axis_from_front(axis, values[0].ndim)
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@handles("split")
def split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> tuple[Tensor, ...]:
    """Parts of `split_sizes` along `axis`, or `num_splits` of one size."""
    sides = x.shape[axis]
    if split_sizes is None:
        if not num_splits or num_splits < 1 or sides % num_splits:
            raise BadInput(f"it splits {sides} elements into {num_splits or 'an unknown number of'} equal parts")
        return x.split(sides // num_splits, axis)
    if sum(split_sizes) != sides or min(split_sizes) < 0 or num_splits not in (None, len(split_sizes)):
        raise BadInput(f"it splits {sides} elements into {num_splits or len(split_sizes)} parts of {split_sizes}")
    return x.split(split_sizes, axis)


@handles("stack")
def stack(values: Tensors, axis: int) -> Tensor:
    """Tensors of one shape along a new axis."""
    return torch.stack(values, axis)


@handles("tile")
def tile(x: Tensor, reps: Ints) -> Tensor:
    """X repeated reps[i] times along each axis i."""
    if len(reps) != x.ndim or any(times < 1 for times in reps):
        raise BadInput(f"its reps {reps} are not one positive number for each of {x.ndim} axes")
    _check_size(x.numel(), *reps)
    return x.repeat(reps)


@handles("one_hot")
def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    outputs: tuple[TensorType, ...],
    axis: int = -1,
    on_value: float = 1,
    off_value: float = 0,
) -> Tensor:
    """on_value at each index along a new axis, off_value elsewhere; an index outside it marks nothing.

    The definition does not speak of such an index; TensorFlow's operation, which it follows, does as said here.
    """
    rank = indices.ndim + 1
    if not -rank <= axis < rank or one_hot_vector_size < 0:
        raise BadInput(f"its axis {axis} or size {one_hot_vector_size} does not fit indices of rank {indices.ndim}")
    _check_size(indices.numel(), one_hot_vector_size)
    axis %= rank
    places = torch.arange(one_hot_vector_size, device=indices.device).reshape(-1, *(1,) * (rank - 1 - axis))
    hot = indices.unsqueeze(axis) == places
    kind = _torch_type(outputs[0].dtype)
    on, off = (torch.tensor(value, dtype=kind, device=indices.device) for value in (on_value, off_value))
    return torch.where(hot, on, off)


@handles("range_1d")
def range_1d(end: float, start: float, step: float, outputs: tuple[TensorType, ...]) -> Tensor:
    """start, start + step, ... as far as `end`, which is left out; a vector.

    How many there are follows from (end - start) / step in the type the program declares, as in numpy.
    """
    dtype = outputs[0].dtype
    if step == 0:
        raise BadInput("its step is 0")
    if not dtype.is_float:
        count = max(0, -((int(end) - int(start)) // -int(step)))
        _check_size(count)
        return int(start) + int(step) * torch.arange(count, dtype=torch.int32)
    ends = torch.tensor((start, end, step), dtype=torch.float16 if dtype is Dtype.FP16 else torch.float32)
    ratio = float((ends[1] - ends[0]) / ends[2])
    if not math.isfinite(ratio):
        raise BadInput(f"it counts from {start} to {end} in steps of {step}")
    count = max(0, math.ceil(ratio))
    _check_size(count)
    return start + step * torch.arange(count, dtype=torch.float32)


@handles("fill")
def fill(shape: Ints, outputs: tuple[TensorType, ...], value: float = 0.0) -> Tensor:
    """One value in a given shape; a view of a single element, so that size costs nothing."""
    _check_size(*shape)
    return torch.tensor(value, dtype=_torch_type(outputs[0].dtype)).expand(shape)


@handles("fill_like")
def fill_like(ref_tensor: Tensor, outputs: tuple[TensorType, ...], value: float = 0.0) -> Tensor:
    """One value in the shape of another tensor."""
    one = torch.tensor(value, dtype=_torch_type(outputs[0].dtype), device=ref_tensor.device)
    return one.expand(ref_tensor.shape)


def _torch_type(dtype: Dtype) -> torch.dtype:
    if dtype is Dtype.BOOL:
        return torch.bool
    return torch.float32 if dtype.is_float else torch.int32


def _check_size(*sides: int) -> None:
    """These operations can make much from little; refuse before memory is touched."""
    if any(side < 0 for side in sides) or math.prod(sides) > MAX_ELEMENTS:
        raise BadInput(
            f"it would make {' x '.join(map(str, sides))} elements; between 0 and {MAX_ELEMENTS} are allowed"
        )
