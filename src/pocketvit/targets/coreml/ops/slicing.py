"""Slices: parts of a tensor, as numpy cuts them, and values put in their place."""

from __future__ import annotations

from torch import Tensor

from ....errors import BadInput
from . import Bools, Ints, LateInts, handles


@handles("slice_by_index")
def slice_by_index(
    x: Tensor,
    begin: LateInts,
    end: LateInts,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """x[begin[0]:end[0]:stride[0], ...] as numpy has it; squeeze_mask[i] takes x[begin[i]] and drops the axis.

    begin_mask[i] and end_mask[i] leave an end open. The definition says that they stand for 0 and the axis's length,
    which is the same unless the stride is negative; there coremltools itself follows numpy, and so does this.
    """
    window, backwards = _window(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return window.flip(backwards) if backwards else window


@handles("slice_update")
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: LateInts,
    end: LateInts,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """A copy of x in which the part that slice_by_index would take is `update`, which has that part's shape."""
    result = x.clone()
    window, backwards = _window(result, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if window.shape != update.shape:
        raise BadInput(f"its update has shape {tuple(update.shape)} for a part of shape {tuple(window.shape)}")
    window.copy_(update.flip(backwards) if backwards else update)
    return result


@handles("slice_by_size")
def slice_by_size(x: Tensor, begin: LateInts, size: Ints) -> Tensor:
    """size[i] elements from begin[i] on along each axis, or all that remain for a size of -1."""
    if len(size) != x.ndim or (begin is not None and len(begin) != x.ndim):
        raise BadInput(f"its begin and size do not have the rank of its input, {x.ndim}")
    for axis, length in enumerate(size):
        sides = x.shape[axis]
        # the place matters not for the shape, so a dry run may take any
        first = begin[axis] if begin is not None else 0
        if begin is None and length == -1:
            raise BadInput("its size is what remains from a place that is computed, so no shape can be known")
        first += sides if first < 0 else 0
        length = sides - first if length == -1 else length
        if not 0 <= first <= first + length <= sides:
            raise BadInput(f"it takes {length} elements from {first} on of {sides} along axis {axis}")
        if length != sides:
            x = x.narrow(axis, first, length)
    return x


def _window(
    x: Tensor,
    begin: LateInts,
    end: LateInts,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> tuple[Tensor, list[int]]:
    """A view of the part, every axis forwards, and the axes of the view that are to be turned round."""
    given = (begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if any(values is not None and len(values) != x.ndim for values in given):
        raise BadInput(f"its begin, end, stride and masks do not all have the rank of its input, {x.ndim}")
    backwards: list[int] = []
    axis = 0  # of the view, which has lost the axes squeezed before
    for i, sides in enumerate(x.shape):
        open_begin, open_end = bool(begin_mask and begin_mask[i]), bool(end_mask and end_mask[i])
        step = stride[i] if stride else 1
        if squeeze_mask and squeeze_mask[i]:
            # an index not known yet still leaves a known shape
            place = 0 if open_begin or begin is None else begin[i]
            if not -sides <= place < sides:
                raise BadInput(f"it takes element {place} of {sides} along axis {i}")
            x = x.select(axis, place)
            continue
        if (begin is None and not open_begin) or (end is None and not open_end):
            raise BadInput("its begin or end depends on what the image shows, so its shape cannot be known")
        if step == 0:
            raise BadInput(f"its stride along axis {i} is 0")
        if not (open_begin and open_end and step == 1):
            x, turned = _cut(
                x,
                axis,
                slice(None if open_begin else begin[i], None if open_end else end[i], step),  # type: ignore[index]
            )
            if turned:
                backwards.append(axis)
        axis += 1
    return x, backwards


def _cut(x: Tensor, axis: int, part: slice) -> tuple[Tensor, bool]:
    """The part along one axis, forwards, and whether it was to run backwards (torch has no negative strides)."""
    start, stop, step = part.indices(x.shape[axis])
    places = range(start, stop, step)
    if step < 0:
        places = places[::-1]
    view = x.narrow(axis, places.start if places else 0, places[-1] + 1 - places.start if places else 0)
    if abs(step) > 1 and places:
        view = view[(slice(None),) * axis + (slice(None, None, abs(step)),)]
    return view, step < 0
