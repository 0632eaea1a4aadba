"""Exact rewrites that keep attention within fp16: scores scaled before they are summed, shifted, masked finitely.

A rule gets one finding and the graph. It returns a Change when it has edited the graph, a Refusal with the reason
when the finding is of its kind and cannot be helped, None when it is not. Factors are powers of two, which change no
digit in any binary format.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arithmetic import HALF_MAX
from .findings import OpHeadroom
from .graph import LAYOUT, MAX_SPELT_OUT, Graph, behind
from .headroom import TIGHT

MASK = -30000.0  # fp16 holds it twice over, and the exponential of it is 0 even in float32
_ZERO_EXP = 110.0  # exp(-104) is the last that float32 does not round to 0
_ROOM = 4.0  # scaled values stay below a quarter of 65504: images to come may be larger than those seen

Reach = Callable[[str], OpHeadroom | None]  # what was found for the operation behind a value, if anything


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A rewrite that was applied. op: the finding it answers; touched: all operations that it settles."""

    rewrite: str
    op: str
    detail: str
    touched: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A finding that no exact rewrite answers. reason: a clause that follows 'because'."""

    op: str
    reason: str


Outcome = Change | Refusal | None


def halvings(worst: float) -> int:
    """How often a value that reaches `worst` times 65504 must be halved to leave room."""
    return max(0, math.ceil(math.log2(_ROOM * worst))) if worst > 0 else 0


def scaled_query(graph: Graph, found: OpHeadroom, reach: Reach) -> Outcome:
    """A product that overflows and is scaled afterwards: the power of two of the scale goes to its first factor."""
    op = graph.maker(found.name)
    if found.kind != "matmul" or op is None:
        return None
    name, reader = behind(graph, found.name)
    if reader is None:
        return Refusal(op=found.name, reason="several operations read the product, so that no single scale applies")
    if reader.type == "softmax":
        return _shifted_scores(graph, op, found, name, reader)
    parameter = _scalar_parameter(graph, reader, name)
    if parameter is None:
        return Refusal(op=found.name, reason=f"the product goes into {reader.type!r} unscaled")
    factor = graph.scalar(reader, parameter) or 0.0
    if factor == 0 or not math.isfinite(factor):
        return Refusal(op=found.name, reason=f"it is scaled by {factor:g}")
    # what is left of the scale makes the product no larger
    rest, exponent = _divisor_parts(abs(factor)) if reader.type == "real_div" else _divisor_parts(1 / abs(factor))
    rest = math.copysign(rest if reader.type == "real_div" else abs(factor) * 2.0**exponent, factor)
    if exponent < 1:
        return Refusal(op=found.name, reason=f"it is scaled by {factor:g} afterwards, which makes it no smaller")
    if found.result.worst * 2.0**-exponent > 1:
        return Refusal(op=found.name, reason="the product overflows even after its scale")
    _scale_first(graph, op, -exponent)
    if rest == 1 and None not in graph.readers(reader.outputs[0].name):
        graph.replace(reader.outputs[0].name, name)
    else:
        like = reader.outputs[0].name
        graph.feed(reader, parameter, graph.add_constant(reader, f"{like}_rest", np.float32(rest), like))
    detail = (
        f"the first factor of {found.name} is multiplied by 2^-{exponent}, taken from the scale {factor:g} after it"
    )
    return Change(rewrite="pre-scaled QK", op=found.name, detail=detail, touched=(found.name,))


def opened_attention(graph: Graph, found: OpHeadroom, reach: Reach) -> Outcome:
    """scaled_dot_product_attention whose product overflows: spelt out, with the scale before the product."""
    op = graph.maker(found.name)
    if found.kind != "scaled_dot_product_attention" or op is None or found.step("query times key") <= TIGHT:
        return None
    if found.step("scaled scores", "masked scores") > 1:
        return Refusal(op=found.name, reason="its scores overflow even after their scale, or with their mask")
    query, key, value, mask = (graph.argument(op, name) for name in ("query", "key", "value", "attn_mask"))
    shape = graph.shape(query)
    if shape[-1] is None or (mask and not graph.is_float(mask)):
        return Refusal(op=found.name, reason="its size is not fixed or its mask is boolean")
    rest, exponent = _divisor_parts(math.sqrt(shape[-1]))
    scores_shape = (*shape[:-1], graph.shape(key)[-2])
    scaled = graph.add(op, "mul", {"x": query, "y": np.float32(2.0**-exponent)}, f"{found.name}_query", query)
    product = {"x": scaled, "y": key, "transpose_x": np.bool_(False), "transpose_y": np.bool_(True)}
    scores = graph.add(op, "matmul", product, f"{found.name}_scores", query, scores_shape)
    if rest != 1:
        left = {"x": scores, "y": np.float32(1 / rest)}
        scores = graph.add(op, "mul", left, f"{found.name}_scaled", query, scores_shape)
    if mask:
        scores = graph.add(op, "add", {"x": scores, "y": mask}, f"{found.name}_masked", query, scores_shape)
    weights = graph.add(
        op, "softmax", {"x": scores, "axis": np.int32(-1)}, f"{found.name}_weights", query, scores_shape
    )
    graph.become(op, "matmul", {"x": weights, "y": value})
    detail = f"{found.name} is spelt out, its query multiplied by 2^-{exponent} before the product"
    return Change(rewrite="pre-scaled QK", op=found.name, detail=detail, touched=(found.name,))


def shifted_softmax(graph: Graph, found: OpHeadroom, reach: Reach) -> Outcome:
    """A softmax written out as exp(x) / sum(exp(x)): the largest x is taken away first."""
    op = graph.maker(found.name)
    if op is not None and found.kind == "reduce_sum":
        op = graph.maker(graph.argument(op, "x"))
    if op is None or op.type != "exp":
        return None
    powers, x = op.outputs[0].name, graph.argument(op, "x")
    readers = graph.readers(powers)
    summed = next((r for r in readers if r is not None and r.type == "reduce_sum"), None)
    if summed is None:
        return Refusal(op=found.name, reason="its exponentials are not divided by their own sum")
    total, divided = behind(graph, summed.outputs[0].name)
    others = [r for r in readers if r is not summed]
    if divided is not None and divided.type == "inverse":
        total, divided = behind(graph, divided.outputs[0].name)
    quotient = divided is not None and (
        (divided.type == "real_div" and graph.argument(divided, "y") == total)
        or (divided.type == "mul" and total in (graph.argument(divided, "x"), graph.argument(divided, "y")))
    )
    if not quotient or [id(r) for r in others] != [id(divided)]:
        return Refusal(op=found.name, reason="its exponentials or their sum are used for more than one quotient")
    if _overflowing(graph, x, reach):
        return Refusal(op=found.name, reason="what the exponential is taken of overflows already")
    over = graph.constant_value(summed, "axes")
    axes = list(range(len(graph.shape(x)))) if over is None else [int(axis) for axis in over]
    kept = list(graph.shape(x))
    for axis in axes:
        kept[axis] = 1
    arguments = {"x": x, "axes": np.array(axes, np.int32), "keep_dims": np.bool_(True)}
    largest = graph.add(op, "reduce_max", arguments, f"{powers}_largest", x, kept)
    graph.feed(op, "x", graph.add(op, "sub", {"x": x, "y": largest}, f"{powers}_shifted", x))
    assert divided is not None
    touched = tuple(o.outputs[0].name for o in (op, summed, divided))
    detail = f"the largest of its row is taken from {x} before the exponential"
    return Change(rewrite="shifted softmax", op=found.name, detail=detail, touched=touched)


def finite_mask(graph: Graph, name: str, reach: Reach) -> Outcome:
    """A constant of -1e9 or minus infinity that is added to scores before a softmax: as low as is needed."""
    op, numbers = graph.maker(name), graph.constant_value_of(name)
    if op is None or numbers is None:
        return Refusal(op=name, reason="it is written inside an operation or a nested block")
    if np.isnan(numbers).any() or (numbers > HALF_MAX).any():
        return Refusal(op=name, reason="it holds large positive numbers, so it is no mask")
    if numbers.size > MAX_SPELT_OUT:
        return Refusal(op=name, reason=f"a mask of {numbers.size} elements is too large to write again")
    reason = _reaches_softmax(graph, name, reach, frozenset())
    if reason:
        return Refusal(op=name, reason=reason)
    low = np.where(numbers < MASK, MASK, numbers).astype(np.float32)
    graph.replace(name, graph.add_constant(op, f"{name}_finite", low, name))
    detail = f"{int((numbers < MASK).sum())} of {numbers.size} elements of {name} become {MASK:g}"
    return Change(rewrite="finite mask", op=name, detail=detail, touched=(name,))


def finite_mask_behind(graph: Graph, found: OpHeadroom, reach: Reach) -> Outcome:
    """A mask added in float32, where it fits, to scores that are then stored in fp16."""
    cast = graph.maker(found.name)
    added = graph.maker(graph.origin(graph.argument(cast, "x"))) if cast is not None and found.kind == "cast" else None
    if added is None or added.type != "add":
        return None
    for parameter in ("x", "y"):
        numbers = graph.constant_value(added, parameter)
        if numbers is not None and (numbers < -HALF_MAX).any():
            return finite_mask(graph, graph.argument(added, parameter), reach)
    return None


def _reaches_softmax(graph: Graph, name: str, reach: Reach, seen: frozenset[str]) -> str:
    """Why a value does not only select what a softmax leaves out; empty when it does."""
    if len(seen) > 12:
        return "its way to a softmax is too long to follow"
    readers = graph.readers(name)
    if not readers:
        return "nothing reads it"
    for reader in readers:
        if reader is None:
            return "a nested block or the end of the program reads it"
        result = reader.outputs[0].name
        if reader.type == "softmax" or graph.argument(reader, "attn_mask") == name:
            continue
        if reader.type == "add":
            others = {graph.argument(reader, "x"), graph.argument(reader, "y")} - {name}
            scores = reach(graph.origin(others.pop())) if others else None
            # a masked score must stay below every other by more than float32's exponential can tell
            if scores is not None and 2 * scores.result.worst * HALF_MAX > -MASK - _ZERO_EXP and not seen:
                return f"the scores it is added to reach {scores.result.worst * HALF_MAX:.3g}, too near to {MASK:g}"
        elif reader.type not in LAYOUT | {"select", "tile", "slice_by_index", "concat", "cast", "split", "band_part"}:
            return f"it goes into {reader.type!r} instead of being added to the scores of a softmax"
        reason = _reaches_softmax(graph, result, reach, seen | {name})
        if reason:
            return reason
    return ""


def _shifted_scores(graph: Graph, op: Any, found: OpHeadroom, name: str, softmax: Any) -> Outcome:
    """Scores that a softmax takes as they are: summed at a smaller scale, shifted there, and scaled back."""
    k = halvings(found.result.worst)
    if k > 12:
        return Refusal(op=found.name, reason="its scores are too large for any scale")
    axis = graph.scalar(softmax, "axis")
    axes = [-1 if axis is None else int(axis)]
    kept = list(graph.shape(name))
    kept[axes[0]] = 1
    _scale_first(graph, op, -k)
    arguments = {"x": name, "axes": np.array(axes, np.int32), "keep_dims": np.bool_(True)}
    largest = graph.add(softmax, "reduce_max", arguments, f"{name}_largest", name, kept)
    shifted = graph.add(softmax, "sub", {"x": name, "y": largest}, f"{name}_shifted", name)
    # scaled back, the lowest would overflow; their exponentials are 0 long before
    held = {"x": shifted, "y": np.float32(-(2.0 ** (14 - k)))}
    bounded = graph.add(softmax, "maximum", held, f"{name}_bounded", name)
    back = graph.add(softmax, "mul", {"x": bounded, "y": np.float32(2.0**k)}, f"{name}_scaled_back", name)
    graph.feed(softmax, "x", back)
    detail = f"{found.name} is computed at 2^-{k}, the largest of each row taken away, and scaled back"
    return Change(
        rewrite="shifted softmax", op=found.name, detail=detail, touched=(found.name, softmax.outputs[0].name)
    )


def _divisor_parts(divisor: float) -> tuple[float, int]:
    """A divisor as a part above 0.5 and up to 1, times a power of two."""
    part, exponent = math.frexp(divisor)
    return (1.0, exponent - 1) if part == 0.5 else (part, exponent)


def _scale_first(graph: Graph, op: Any, exponent: int) -> None:
    x = graph.argument(op, "x")
    scaled = {"x": x, "y": np.float32(2.0**exponent)}
    graph.feed(op, "x", graph.add(op, "mul", scaled, f"{op.outputs[0].name}_first", x))


def _scalar_parameter(graph: Graph, op: Any, name: str) -> str | None:
    """The parameter by which a value is multiplied or divided with one constant number."""
    if op.type == "real_div" and graph.argument(op, "x") == name:
        return "y" if graph.scalar(op, "y") is not None else None
    if op.type == "mul":
        other = "y" if graph.argument(op, "x") == name else "x"
        return other if graph.scalar(op, other) is not None else None
    return None


def _overflowing(graph: Graph, name: str, reach: Reach) -> bool:
    found = reach(graph.origin(name))
    return found is not None and found.result.worst > 1
