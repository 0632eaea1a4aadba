"""Order: sorting, and the largest or smallest elements. Among equals the first comes first, which MIL leaves open."""

from __future__ import annotations

from torch import Tensor

from ....errors import BadInput
from . import handles
from .reductions import check_index_type


@handles("argsort")
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """The places of the elements along the axis, the largest's first, or the smallest's if ascending."""
    return x.argsort(stable=True, dim=axis, descending=not ascending).int()


@handles("topk")
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The k largest elements along the axis, or smallest if ascending, and their places; k of -1 is all.

    Without `sort` any order is right, so also the sorted one.
    """
    check_index_type(x, axis, output_indices_dtype)
    side = x.shape[axis]
    if not -1 <= k <= side:
        raise BadInput(f"it takes {k} of {side} elements")
    values, places = x.sort(stable=True, dim=axis, descending=not ascending)
    kept = side if k == -1 else k
    values, places = values.narrow(axis, 0, kept), places.narrow(axis, 0, kept).int()
    return (values, places) if return_indices else values
