"""What can be asked of a MOAT, checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import BadInput
from ..layers import Position
from .moat_blocks import HEAD_DIM, Size

# The position tables of the two attention stages are stored for 14 x 14 and 7 x 7 tokens whatever the input, and
# resized to the window in use, so that one checkpoint serves every resolution (as in the authors' code).
TABLE_SIZE = (14, 7)
FIRST_ATTENTION_STAGE = 2


def check_stages(depths: Sequence[int], widths: Sequence[int], table_size: Sequence[int]) -> None:
    """Raise BadInput unless there are positive depths and widths for four stages, and tables for two."""
    for name, values, count in (("depths", depths, 4), ("widths", widths, 4), ("table_size", table_size, 2)):
        numbers = _sequence(values)
        if len(numbers) != count or not all(isinstance(n, int) and n > 0 for n in numbers):
            raise BadInput(f"{name} takes {count} positive integers in MOAT, not {values}.")
    if any(width % HEAD_DIM for width in widths[FIRST_ATTENTION_STAGE:]):
        raise BadInput(f"The widths of MOAT's attention stages are multiples of {HEAD_DIM}, not {list(widths)}.")


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def image_size(value: int | Sequence[int], name: str) -> Size:
    """Height and width of `value`, an int or both; `name` is the option's, for the error."""
    size = (value, value) if isinstance(value, int) else _sequence(value)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise BadInput(f"{name} takes a positive integer or a height and a width, not {value}.")
    return size[0], size[1]


def halved(size: Size) -> Size:
    """What a stride of two leaves, rounded up."""
    return math.ceil(size[0] / 2), math.ceil(size[1] / 2)


def position_named(name: str) -> Position:
    """The position embedding of that name; raises BadInput with the names there are."""
    try:
        return Position(name)
    except ValueError as e:
        raise BadInput(f"There is no position embedding called {name!r}; there are {', '.join(Position)}.") from e


def attention_windows(
    attention: str, window_size: Sequence[int | Sequence[int]] | None, global_last: bool
) -> tuple[Size | None, ...]:
    """Window of each attention stage, None where the whole map is one."""
    if attention == "global":
        if window_size is not None or global_last:
            raise BadInput('window_size and global_last belong to attention="local".')
        return (None,) * len(TABLE_SIZE)
    if attention != "local":
        raise BadInput(f'attention is "global" or "local", not {attention!r}.')
    sizes = TABLE_SIZE if window_size is None else _sequence(window_size)
    if len(sizes) != len(TABLE_SIZE):
        raise BadInput(f"MOAT has {len(TABLE_SIZE)} attention stages, so window_size takes two windows, not {sizes}.")
    return tuple(image_size(size, "window_size") for size in sizes)
