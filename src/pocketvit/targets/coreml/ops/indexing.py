"""Gathers and scatters: elements taken from, or put at, places that other tensors name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....errors import BadInput
from . import handles
from .shapes import axis_from_front

_NEGATIVE_UNTIL = 16  # the last iOS in whose definitions -1 is the last element; later, it is out of bounds
_REDUCTIONS = {"add": "sum", "sub": "sum", "mul": "prod", "div": "prod", "max": "amax", "min": "amin"}


@handles("gather")
def gather(
    x: Tensor, indices: Tensor, opset: int, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """x[:, ..., indices, ..., :] along `axis`, its first `batch_dims` axes shared with those of `indices`.

    From iOS 17 on an index outside x is undefined unless validate_indices asks for an error; here it is always one.
    """
    axis = axis_from_front(axis, x.ndim)
    if not 0 <= batch_dims <= min(axis, indices.ndim) or x.shape[:batch_dims] != indices.shape[:batch_dims]:
        raise BadInput(
            f"its first {batch_dims} axes are not shared by {tuple(x.shape)} and indices of {tuple(indices.shape)}, "
            f"or its axis {axis} is one of them"
        )
    places = _places(indices, x.shape[axis], opset)
    shape = (*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :])
    if batch_dims == 0:
        return x.index_select(axis, places.reshape(-1)).reshape(shape)
    batch, before, after = (math.prod(x.shape[i]) for i in _parts(batch_dims, axis))
    places = places.reshape(batch, 1, -1, 1).expand(-1, before, -1, after)
    return x.reshape(batch, before, x.shape[axis], after).gather(2, places).reshape(shape)


@handles("gather_along_axis")
def gather_along_axis(x: Tensor, indices: Tensor, opset: int, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """x[.., indices[.., i, ..], ..] for each place of `indices`, whose shape is x's but for `axis`."""
    axis = axis_from_front(axis, x.ndim)
    _check_beside(x, indices, axis)
    return x.gather(axis, _places(indices, x.shape[axis], opset))


@handles("gather_nd")
def gather_nd(x: Tensor, indices: Tensor, opset: int, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """x[tuple(i)] for each vector i along the last axis of `indices`; the first `batch_dims` axes are shared."""
    depth = indices.shape[-1]
    if (
        not 0 <= batch_dims < indices.ndim
        or batch_dims + depth > x.ndim
        or x.shape[:batch_dims] != indices.shape[:batch_dims]
    ):
        raise BadInput(
            f"its indices of {tuple(indices.shape)} with {batch_dims} axes shared do not fit {tuple(x.shape)}"
        )
    inner = x.shape[batch_dims + depth :]
    batch = math.prod(x.shape[:batch_dims])
    flat = x.reshape(batch, -1, math.prod(inner))
    places = _flat_places(indices, x.shape[batch_dims : batch_dims + depth], opset).reshape(batch, -1, 1)
    return flat.gather(1, places.expand(-1, -1, flat.shape[2])).reshape(*indices.shape[:-1], *inner)


@handles("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    opset: int,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """`data` with updates[.., i, ..] put at, or combined with, its place indices[i] along `axis`.

    `mode` is left out in no file that coremltools writes; its text says that "update" is the default, its code "add".
    """
    axis = axis_from_front(axis, data.ndim)
    expected = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    if tuple(updates.shape) != expected:
        raise BadInput(f"its updates have shape {tuple(updates.shape)} instead of {expected}")
    before, after = math.prod(data.shape[:axis]), math.prod(data.shape[axis + 1 :])
    rows = updates.reshape(before, indices.numel(), after)
    places = _places(indices, data.shape[axis], opset).reshape(1, -1, 1).expand(rows.shape)
    return _combined(data.reshape(before, -1, after), 1, places, rows, mode).reshape(data.shape)


@handles("scatter_along_axis")
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    opset: int,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """`data` with each of `updates` put at, or combined with, the place along `axis` that `indices` names."""
    axis = axis_from_front(axis, data.ndim)
    _check_beside(data, indices, axis)
    if updates.shape != indices.shape:
        raise BadInput(f"its updates of {tuple(updates.shape)} do not fit its indices of {tuple(indices.shape)}")
    return _combined(data, axis, _places(indices, data.shape[axis], opset), updates, mode)


@handles("scatter_nd")
def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, opset: int, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """`data` with updates[j] put at, or combined with, data[tuple(i)] for each vector i = indices[j]."""
    depth = indices.shape[-1]
    inner = tuple(data.shape[depth:])
    if depth > data.ndim or tuple(updates.shape) != (*indices.shape[:-1], *inner):
        raise BadInput(
            f"its indices of {tuple(indices.shape)} and updates of {tuple(updates.shape)} do not fit "
            f"{tuple(data.shape)}"
        )
    rows = updates.reshape(-1, math.prod(inner))
    places = _flat_places(indices, data.shape[:depth], opset).reshape(-1, 1).expand(rows.shape)
    return _combined(data.reshape(-1, rows.shape[1]), 0, places, rows, mode).reshape(data.shape)


def _combined(data: Tensor, axis: int, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """`updates` brought into a copy of `data`; where several meet, all count, but for "update" only the last."""
    if mode == "update":
        # torch leaves open which of several wins, so the last is looked up first
        order = torch.arange(places.shape[axis], device=places.device)
        order = order.reshape([-1 if i == axis else 1 for i in range(places.ndim)]).expand(places.shape)
        none = torch.full(data.shape, -1, device=places.device)
        last = none.scatter_reduce(axis, places, order, "amax")
        return torch.where(last < 0, data, updates.gather(axis, last.clamp(min=0))) if updates.numel() else data
    if mode not in _REDUCTIONS:
        raise BadInput(f"its mode {mode!r} is not one of update, {', '.join(_REDUCTIONS)}")
    if mode == "div":
        if not data.is_floating_point():
            raise BadInput("it divides integers, and how it rounds them is not documented")
        return data / torch.ones_like(data).scatter_reduce(axis, places, updates, "prod")
    return data.scatter_reduce(axis, places, -updates if mode == "sub" else updates, _REDUCTIONS[mode])


def _parts(batch_dims: int, axis: int) -> tuple[slice, slice, slice]:
    """The shared axes, those between them and `axis`, and those after it."""
    return slice(0, batch_dims), slice(batch_dims, axis), slice(axis + 1, None)


def _check_beside(x: Tensor, indices: Tensor, axis: int) -> None:
    given, taken = list(x.shape), list(indices.shape)
    if len(given) != len(taken) or given[:axis] + given[axis + 1 :] != taken[:axis] + taken[axis + 1 :]:
        raise BadInput(f"its indices of {tuple(taken)} do not fit {tuple(given)} beside axis {axis}")


def _places(indices: Tensor, sides: int, opset: int) -> Tensor:
    """Indices as int64 from 0 to `sides`; negative ones count from the end where the opset has it so."""
    indices = indices.long()
    if indices.is_meta or indices.numel() == 0:
        return indices
    low, high = (int(end) for end in indices.aminmax())
    if low >= 0 and high < sides:
        return indices
    if opset <= _NEGATIVE_UNTIL and -sides <= low and high < sides:
        return torch.where(indices < 0, indices + sides, indices)
    lowest = -sides if opset <= _NEGATIVE_UNTIL else 0
    raise BadInput(
        f"its indices run from {low} to {high}; for iOS {opset} they may run from {lowest} to {sides - 1}, and what "
        "others do is undefined"
    )


def _flat_places(indices: Tensor, sides: tuple[int, ...], opset: int) -> Tensor:
    """Vectors of indices (..., K) as places in the K axes laid out as one."""
    places = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for k, side in enumerate(sides):
        places = places * side + _places(indices[..., k], side, opset)
    return places
