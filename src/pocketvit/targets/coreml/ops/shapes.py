"""Shapes: the same elements seen in another shape, in another order, or not at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....errors import BadInput
from . import Bools, Ints, Tensors, handles


@handles("reshape")
def reshape(x: Tensor, shape: Ints, opset: int) -> Tensor:
    """The elements of x in `shape`; -1 stands for what remains, 0 for a side of x.

    Until iOS 16 a 0 takes the side at its own place and the ranks must agree; from iOS 17 places count from the
    right, and a 0 left of x's first side becomes 1.
    """
    if 0 in shape and x.numel():
        missing = len(shape) - x.ndim
        if missing and opset < 17:
            raise BadInput(f"its shape {shape} has a 0 and another rank than {tuple(x.shape)}, which needs iOS 17")
        shape = tuple(side if side else (x.shape[i - missing] if i >= missing else 1) for i, side in enumerate(shape))
    return x.reshape(shape)


@handles("reshape_like")
def reshape_like(x: Tensor, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: Bools) -> Tensor:
    """The elements of x in the shape that parts of other shapes make: begins[i] to ends[i] (or the last) of each."""
    if not len(ref_tensors) == len(begins) == len(ends) == len(end_masks):
        raise BadInput("its ref_tensors, begins, ends and end_masks are not of one length")
    shape: list[int] = []
    for tensor, begin, end, to_last in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += tensor.shape[begin : None if to_last else end]
    return x.reshape(shape)


@handles("transpose")
def transpose(x: Tensor, perm: Ints) -> Tensor:
    """Axis i of the result is axis perm[i] of x."""
    return x.permute(perm)


@handles("expand_dims")
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """Axes of length 1 at places of the result; negative ones count from its end."""
    rank = x.ndim + len(axes)
    if any(not -rank <= axis < rank for axis in axes):
        raise BadInput(f"its axes {axes} lie outside a result of rank {rank}")
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@handles("squeeze")
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Without the axes of length 1 among `axes`, or without all of them; longer ones stay."""
    return x.squeeze() if axes is None else x.squeeze(axes)


@handles("flatten2d")
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """A matrix: the axes before `axis` are its rows, the others its columns."""
    if not -x.ndim <= axis <= x.ndim:
        raise BadInput(f"its axis {axis} lies outside a value of rank {x.ndim}")
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@handles("reverse")
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Backwards along `axes`, or along all."""
    return x.flip(tuple(range(x.ndim)) if axes is None else axes)


@handles("reverse_sequence")
def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """For each i along batch_axis, the first lengths[i] elements along seq_axis backwards."""
    seq_axis, batch_axis = axis_from_front(seq_axis, x.ndim), axis_from_front(batch_axis, x.ndim)
    if seq_axis == batch_axis:
        raise BadInput(f"it reverses axis {seq_axis}, which is also its batch axis")
    if tuple(lengths.shape) != (x.shape[batch_axis],):
        raise BadInput(f"its lengths have shape {tuple(lengths.shape)} for a batch of {x.shape[batch_axis]}")
    steps = x.shape[seq_axis]
    if not lengths.is_meta and bool(((lengths < 0) | (lengths > steps)).any()):
        raise BadInput(f"its lengths {lengths.tolist()} lie outside 0 to {steps}")
    place = torch.arange(steps, device=x.device).reshape(_along(seq_axis, x.ndim))
    lengths = lengths.long().reshape(_along(batch_axis, x.ndim))
    source = torch.where(place < lengths, lengths - 1 - place, place)
    return x.gather(seq_axis, source.expand(x.shape))


@handles("shape")
def shape(x: Tensor) -> Tensor:
    """The sides of x, a vector of int32."""
    return torch.tensor(x.shape, dtype=torch.int32)


@handles("identity")
def identity(x: Tensor) -> Tensor:
    """X under another name."""
    return x


def axis_from_front(axis: int, rank: int) -> int:
    """An axis as its number from the front; negative ones are counted from the end. BadInput for one that is not."""
    if not -rank <= axis < rank:
        raise BadInput(f"its axis {axis} lies outside a value of rank {rank}")
    return axis % rank


def _along(axis: int, rank: int) -> tuple[int, ...]:
    """The shape that lays a vector along one axis of `rank`."""
    return tuple(-1 if i == axis else 1 for i in range(rank))
