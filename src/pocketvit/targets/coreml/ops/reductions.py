"""Many elements to one, along axes: sums, norms, extremes and where they are, running sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....errors import BadInput
from . import Handler, Ints, handles

Reduction = Callable[[Tensor, Ints, bool], Tensor]


def _sum(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)  # torch would widen integers


def _prod(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


_EXACT: dict[str, Reduction] = {
    "reduce_sum": _sum,
    "reduce_sum_square": lambda x, axes, keep: _sum(x.square(), axes, keep),
    "reduce_l1_norm": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "reduce_prod": _prod,
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
}
# of integers these are fractions, which MIL's evaluation of constants cuts towards zero
_FRACTIONAL: dict[str, Reduction] = {
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}


def _reduction(reduce: Reduction) -> Handler:
    def handler(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        if axes is None:
            axes = tuple(range(x.ndim))
        if not axes:  # torch would take no axes for all; here each element is reduced on its own
            return reduce(x.unsqueeze(-1), (-1,), False)
        return reduce(x, axes, keep_dims)

    return handler


def _through_fractions(reduce: Reduction) -> Reduction:
    def whole(x: Tensor, axes: Ints, keep: bool) -> Tensor:
        return reduce(x, axes, keep) if x.is_floating_point() else reduce(x.double(), axes, keep).to(x.dtype)

    return whole


for _kind, _reduce in _EXACT.items():
    handles(_kind)(_reduction(_reduce))
for _kind, _reduce in _FRACTIONAL.items():
    handles(_kind)(_reduction(_through_fractions(_reduce)))


@handles("reduce_argmax")
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Where along the axis the largest element is; among equals MIL promises none."""
    check_index_type(x, axis, output_dtype)
    return x.argmax(axis, keepdim=keep_dims).int()


@handles("reduce_argmin")
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Where along the axis the smallest element is; among equals MIL promises none."""
    check_index_type(x, axis, output_dtype)
    return x.argmin(axis, keepdim=keep_dims).int()


@handles("cumsum")
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sums along the axis. exclusive: without the element itself; reverse: from the end.

    MIL's own evaluation of an exclusive sum of constants cannot run; its text decides here.
    """
    x = x.flip(axis) if reverse else x
    sums = x.cumsum(axis, dtype=x.dtype)
    if exclusive:
        before = sums.narrow(axis, 0, x.shape[axis] - 1)
        sums = torch.cat((torch.zeros_like(sums.narrow(axis, 0, 1)), before), axis)
    return sums.flip(axis) if reverse else sums


def check_index_type(x: Tensor, axis: int, dtype: str) -> None:
    """Raise BadInput unless the places along an axis fit the index type, int32 or uint16."""
    if dtype.lower() not in ("int32", "uint16"):
        raise BadInput(f"its indices are {dtype!r}; known are int32 and uint16")
    if dtype.lower() == "uint16" and x.shape[axis] > 1 << 16:
        raise BadInput(f"its indices go to {x.shape[axis]}, which uint16 does not hold")
