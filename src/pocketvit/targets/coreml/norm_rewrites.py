"""Exact rewrites that keep norms within fp16: their input scaled by a power of two before it is squared.

A norm forgets the scale of its input, so that norm(x; epsilon) is norm(x s; epsilon s^2). Where fp16 cannot hold the
scaled epsilon well enough, a layer norm is spelt out, with the squares scaled and the variance scaled back.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .findings import OpHeadroom
from .graph import Graph, behind, terms
from .headroom import TIGHT
from .rewrites import Change, Outcome, Reach, Refusal, halvings

_SQUARES = ("square", "sum of squares", "variance", "variance plus epsilon", "sum of squares plus epsilon")
_SUMS = ("sum", "mean", "centred values")
_EPSILON = {"layer_norm": 1e-5, "instance_norm": 1e-5, "l2_norm": 1e-6, "rsqrt": 1e-12}
_DRIFT = 2.0**-18  # relative change of a result that an epsilon held roughly may cause: a two hundredth of fp16's own
_LEAST_HALF = 2.0**-24
_MOST = 12  # halvings; more would flush what is small beside the largest


def scaled_norm(graph: Graph, found: OpHeadroom, reach: Reach) -> Outcome:
    """layer_norm, instance_norm or l2_norm whose squares overflow."""
    op = graph.maker(found.name)
    if found.kind not in ("layer_norm", "instance_norm", "l2_norm") or op is None:
        return None
    squares, sums = found.step(*_SQUARES), found.step(*_SUMS)
    if max(squares, sums) <= TIGHT:
        return None
    x = graph.argument(op, "x")
    before = reach(graph.origin(x))
    if before is not None and before.result.worst > 1:
        return Refusal(op=found.name, reason="its input overflows already")
    k = max(_halvings_of_squares(squares), halvings(sums))
    least = min((step.least for step in found.steps if step.name.endswith("plus epsilon")), default=0.0)
    if k > _MOST:
        return Refusal(op=found.name, reason=f"its input would have to be halved {k} times")
    given = graph.scalar(op, "epsilon")
    epsilon = _EPSILON[found.kind] if given is None else given
    scaled = _scaled_epsilon(epsilon, k, least)
    if scaled is None:
        return _split(graph, op, found, x, epsilon)
    factor = {"x": x, "y": np.float32(2.0**-k)}
    graph.feed(op, "x", graph.add(op, "mul", factor, f"{found.name}_scaled", x))
    graph.feed(op, "epsilon", graph.add_constant(op, f"{found.name}_epsilon", np.float32(scaled), _like(graph, op)))
    detail = f"the input of {found.name} is multiplied by 2^-{k}, its epsilon {epsilon:.2g} becomes {scaled:.2g}"
    return Change(rewrite="scaled norm", op=found.name, detail=detail, touched=(found.name,))


def scaled_decomposed_norm(graph: Graph, found: OpHeadroom, reach: Reach) -> Outcome:
    """A norm written out: c / root(mean(c c) + epsilon), c the values or what is left without their mean."""
    square = _square_behind(graph, found)
    if square is None:
        return None
    c, squared = square
    parts = [squared]
    name, reader = behind(graph, squared.outputs[0].name)
    if squared.type != "reduce_sum_square":
        if reader is None or reader.type not in ("reduce_mean", "reduce_sum"):
            return Refusal(op=found.name, reason="its squares are not summed up by one operation")
        parts.append(reader)
        name, reader = behind(graph, reader.outputs[0].name)
    added = None
    if reader is not None and reader.type == "add" and graph.scalar(reader, _other(graph, reader)) is not None:
        added = reader
        parts.append(reader)
        name, reader = behind(graph, reader.outputs[0].name)
    power = graph.scalar(reader, "y") if reader is not None and reader.type == "pow" else None
    if reader is None or not (reader.type in ("rsqrt", "sqrt") or power in (0.5, -0.5)):
        return Refusal(op=found.name, reason="its sum of squares does not go into one root alone")
    root, inverted = reader, reader.type == "rsqrt" or power == -0.5
    name, _ = behind(graph, root.outputs[0].name)
    quotients = [r for r in graph.readers(name) if r is not None]
    if (
        not quotients
        or None in graph.readers(name)
        or not all(_divides(graph, q, c, name, inverted) for q in quotients)
    ):
        return Refusal(op=found.name, reason="its root divides something else than what was squared")
    chain = [r for part in parts if (r := reach(part.outputs[0].name)) is not None]
    k = _halvings_of_squares(max((part.worst for part in chain), default=0.0))
    if not 0 < k <= _MOST:
        return Refusal(op=found.name, reason=f"its input would have to be halved {k} times")
    at_root = reach(root.outputs[0].name)
    least = min((step.least for step in at_root.steps), default=0.0) if at_root is not None else 0.0
    if least == 0.0 and chain:
        least = chain[-1].result.smallest
    epsilons = []
    if added is not None:
        epsilons.append((added, graph.scalar(added, _other(graph, added)), "add"))
    if root.type == "rsqrt":
        given = graph.scalar(root, "epsilon")
        epsilons.append((root, _EPSILON["rsqrt"] if given is None else given, "rsqrt"))
    scaled = [_scaled_epsilon(e or 0.0, k, least) for _, e, _ in epsilons]
    if None in scaled:
        return Refusal(op=found.name, reason="fp16 cannot hold its epsilon at the smaller scale")
    smaller = graph.add(squared, "mul", {"x": c, "y": np.float32(2.0**-k)}, f"{c}_scaled", c)
    for op in (squared, *quotients):
        for parameter in ("x", "y"):
            if graph.argument(op, parameter) == c:
                graph.feed(op, parameter, smaller)
    for (op, _, kind), value in zip(epsilons, scaled, strict=True):
        constant = graph.add_constant(op, f"{op.outputs[0].name}_epsilon", np.float32(value), _like(graph, op))
        graph.feed(op, "epsilon" if kind == "rsqrt" else _other(graph, op), constant)
    touched = tuple(op.outputs[0].name for op in (*parts, root))
    detail = f"{c} is multiplied by 2^-{k} before it is squared and where the root divides it"
    return Change(rewrite="scaled norm", op=found.name, detail=detail, touched=touched)


def scaled_reduction(graph: Graph, found: OpHeadroom, reach: Reach) -> Outcome:
    """A mean or a norm that fits while its sum overflows: computed at a smaller scale, its result scaled back."""
    op = graph.maker(found.name)
    if found.kind not in ("reduce_mean", "avg_pool", "reduce_l2_norm") or op is None or found.result.worst > TIGHT:
        return None
    sums = found.step("sum", "accumulator")
    k = _halvings_of_squares(found.step(*_SQUARES)) if found.kind == "reduce_l2_norm" else halvings(sums)
    if k > _MOST:
        return Refusal(op=found.name, reason=f"its input would have to be halved {k} times")
    x = graph.argument(op, "x")
    smaller = graph.add(op, "mul", {"x": x, "y": np.float32(2.0**-k)}, f"{found.name}_scaled", x)
    reduced = graph.duplicate(op, f"{found.name}_small")
    graph.feed(reduced, "x", smaller)
    graph.become(op, "mul", {"x": reduced.outputs[0].name, "y": np.float32(2.0**k)})
    detail = f"the input of {found.name} is multiplied by 2^-{k} and its result by 2^{k}"
    return Change(rewrite="scaled mean", op=found.name, detail=detail, touched=(found.name,))


def _split(graph: Graph, op: Any, found: OpHeadroom, x: str, epsilon: float) -> Outcome:
    """A layer norm spelt out: only its squares are scaled, its variance and epsilon are not."""
    name, rank = found.name, len(graph.shape(x))
    given = graph.constant_value(op, "axes")
    axes = sorted(int(a) % rank for a in (range(rank) if given is None else given.reshape(-1)))
    count = terms(graph, x, axes)
    if found.kind != "layer_norm" or found.step("variance", "variance plus epsilon") > TIGHT or count is None:
        return Refusal(
            op=name, reason="fp16 holds neither its epsilon at a smaller scale nor its variance at this one"
        )
    if axes != list(range(rank - len(axes), rank)):
        return Refusal(op=name, reason="its axes are not the last ones, so that it cannot be spelt out simply")
    k, down = _halvings_of_squares(found.step("square", "sum of squares")), halvings(found.step("sum"))
    back = 4.0**k / count
    if not 2.0**-14 <= back <= 2.0**14:
        return Refusal(op=name, reason="no scale suits both its squares and their mean")
    kept = [1 if axis in axes else side for axis, side in enumerate(graph.shape(x))]
    over = {"axes": np.array(axes, np.int32), "keep_dims": np.bool_(True)}
    source = x if not down else graph.add(op, "mul", {"x": x, "y": np.float32(2.0**-down)}, f"{name}_small", x)
    mean = graph.add(op, "reduce_mean", {"x": source, **over}, f"{name}_mean", x, kept)
    if down:
        mean = graph.add(op, "mul", {"x": mean, "y": np.float32(2.0**down)}, f"{name}_mean_back", x, kept)
    centred = graph.add(op, "sub", {"x": x, "y": mean}, f"{name}_centred", x)
    small = graph.add(op, "mul", {"x": centred, "y": np.float32(2.0**-k)}, f"{name}_scaled", x)
    squares = graph.add(op, "mul", {"x": small, "y": small}, f"{name}_squares", x)
    summed = graph.add(op, "reduce_sum", {"x": squares, **over}, f"{name}_sum", x, kept)
    variance = graph.add(op, "mul", {"x": summed, "y": np.float32(back)}, f"{name}_variance", x, kept)
    root = graph.add(op, "rsqrt", {"x": variance, "epsilon": np.float32(epsilon)}, f"{name}_root", x, kept)
    gamma, beta = (graph.argument(op, parameter) for parameter in ("gamma", "beta"))
    value, following = centred, [("mul", root), *[("mul", gamma)] * bool(gamma), *[("add", beta)] * bool(beta)]
    for kind, other in following[:-1]:
        value = graph.add(op, kind, {"x": value, "y": other}, f"{name}_normalised", x)
    graph.become(op, following[-1][0], {"x": value, "y": following[-1][1]})
    detail = f"{name} is spelt out, its centred values multiplied by 2^-{k} before they are squared"
    return Change(rewrite="split LayerNorm", op=name, detail=detail, touched=(name,))


def _halvings_of_squares(worst: float) -> int:
    return max(1, math.ceil(halvings(worst) / 2)) if 0 < worst < math.inf else 0 if worst == 0 else _MOST + 1


def _scaled_epsilon(epsilon: float, k: int, least: float) -> float | None:
    """Epsilon for an input halved k times, as fp16 holds it; None when results would drift by its rounding.

    least: the smallest variance plus epsilon that was seen. An epsilon that is 0 in fp16 from the start stays exact.
    """
    wanted = epsilon * 4.0**-k
    if np.float16(epsilon) == 0:
        return wanted
    held = max(float(np.float16(wanted)), _LEAST_HALF)
    drift = abs(held * 4.0**k - epsilon) / (2 * least) if least > 0 else math.inf
    return held if drift <= _DRIFT else None


def _square_behind(graph: Graph, found: OpHeadroom) -> tuple[str, Any] | None:
    """What was squared and the operation that squares it, where a finding is such an operation or sums its results."""
    op = graph.maker(found.name)
    if op is not None and op.type in ("reduce_mean", "reduce_sum"):
        op = graph.maker(graph.argument(op, "x"))
    if op is None:
        return None
    x = graph.argument(op, "x")
    if not x or graph.maker(x) is None:
        return None
    product = op.type == "mul" and graph.argument(op, "y") == x
    power = op.type == "pow" and graph.scalar(op, "y") == 2
    return (x, op) if product or power or op.type in ("square", "reduce_sum_square") else None


def _divides(graph: Graph, op: Any, c: str, root: str, inverted: bool) -> bool:
    x, y = graph.argument(op, "x"), graph.argument(op, "y")
    return {x, y} == {c, root} if inverted and op.type == "mul" else op.type == "real_div" and (x, y) == (c, root)


def _other(graph: Graph, op: Any) -> str:
    """The parameter of an addition that is a constant number."""
    return "y" if graph.scalar(op, "y") is not None else "x"


def _like(graph: Graph, op: Any) -> str:
    """A value of the type that an operation's epsilon must have: from iOS 17 on that need not be its input's."""
    given = (graph.argument(op, parameter) for parameter in ("epsilon", "gamma", "beta", "x"))
    return next(name for name in given if name)
