"""What a torch operator becomes in an ML program: the steps that coremltools writes for it, as shapes.

Only what changes the traffic or the kinds is spelt out; an operator that is not named here counts as one operation
under its own name. The steps were read off packages that coremltools 9 wrote; a test converts models and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch.fx import Node

from .graph import Tensor

# operators whose result is their input
REMOVED = frozenset({
    "clone", "alias", "dropout", "contiguous", "detach", "lift_fresh_copy", "detach_", "feature_dropout", "_to_copy",
})  # fmt: skip
_KINDS = {
    "div": "real_div", "bmm": "matmul", "mm": "matmul", "addmm": "linear", "_softmax": "softmax",
    "native_layer_norm": "layer_norm", "cat": "concat", "stack": "concat", "mean": "reduce_mean", "sum": "reduce_sum",
    "amax": "reduce_max", "adaptive_avg_pool2d": "reduce_mean", "avg_pool2d": "avg_pool", "max_pool2d": "max_pool",
    "max_pool2d_with_indices": "max_pool", "constant_pad_nd": "pad", "view": "reshape", "_unsafe_view": "reshape",
    "flatten": "reshape", "unsqueeze": "expand_dims", "slice": "slice_by_index", "select": "slice_by_index",
    "split_with_sizes": "split", "chunk": "split", "expand": "tile", "repeat": "tile", "index": "gather",
    "embedding": "gather", "index_select": "gather", "gather": "gather_along_axis", "neg": "mul", "rsub": "sub",
    "upsample_nearest2d": "upsample_nearest_neighbor", "upsample_bilinear2d": "upsample_bilinear",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """An operation without its place in the model. axes, dilated and rolled as in OpRecord."""

    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    axes: tuple[int, ...] = ()
    dilated: bool = False
    rolled: bool = False


def lower(operator: str, node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[Step]:
    """The steps of one node. inputs: the activations it reads; outputs: what it gives, several for a split."""
    special = _SPECIAL.get(operator)
    if special is not None:
        return special(node, inputs, outputs)
    kind = _KINDS.get(operator, operator)
    if kind == "real_div" and len(inputs) == 1:  # by a constant
        kind = "mul"
    return [Step(kind, inputs, outputs, axes=_axes(kind, node, inputs))]


def _axes(kind: str, node: Node, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    rank = len(inputs[0].shape) if inputs else 0
    arguments: tuple[Any, ...] = node.args
    if kind == "softmax":
        return (arguments[1] % rank,)
    if kind == "layer_norm":
        return tuple(range(rank - len(arguments[1]), rank))
    return ()


def _shaped(tensor: Tensor, suffix: str, shape: tuple[int | None, ...]) -> Tensor:
    return replace(tensor, name=f"{tensor.name}/{suffix}", shape=shape)


def _conv(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[Step]:
    transposed = "conv_transpose" in str(node.target)
    position = 7 if transposed else 5
    dilation: Any = node.args[position] if len(node.args) > position else 1
    gaps = max(dilation) if isinstance(dilation, list | tuple) else dilation
    return [Step("conv_transpose" if transposed else "conv", inputs, outputs, dilated=gaps > 1)]


def _permute(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[Step]:
    rank = len(inputs[0].shape)
    order: Any = node.args[1:]
    if len(order) == 1:
        axes = tuple(int(axis) % rank for axis in order[0])
    else:  # transpose(x, a, b), or t(x) of a matrix
        a, b = (int(axis) % rank for axis in order) if order else (0, rank - 1)
        axes = tuple(b if axis == a else a if axis == b else axis for axis in range(rank))
    return [Step("transpose", inputs, outputs, axes=axes)]


def _batch_norm(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[Step]:
    """Of a matrix (N, C), Core ML's norm needs one more axis; of (N, C, L) and up it takes the tensor as it is."""
    x, y = inputs[0], outputs[0]
    if len(x.shape) != 2:
        return [Step("batch_norm", (x,), (y,))]
    wide, normed = _shaped(y, "expanded", (*x.shape, 1)), _shaped(y, "normed", (*x.shape, 1))
    return [
        Step("expand_dims", (x,), (wide,)),
        Step("batch_norm", (wide,), (normed,)),
        Step("squeeze", (normed,), (y,)),
    ]


def _group_norm(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[Step]:
    x, y = inputs[0], outputs[0]
    groups: Any = node.args[1]
    batch, channels, *rest = x.shape
    whole = (batch, groups, (channels or 1) // groups, *rest)
    one = (batch, groups, *(1 for _ in whole[2:]))
    grouped, mean = _shaped(y, "grouped", whole), _shaped(y, "mean", one)
    centred, square = _shaped(y, "centred", whole), _shaped(y, "square", whole)
    variance, shifted, root = (_shaped(y, name, one) for name in ("variance", "shifted", "root"))
    normed, flat = _shaped(y, "normed", whole), _shaped(y, "flat", y.shape)
    axes = tuple(range(2, len(whole)))
    scaled = len(node.args) > 2 and node.args[2] is not None
    end = [Step("batch_norm", (flat,), (y,))] if scaled else []
    return [
        Step("reshape", (x,), (grouped,)),
        Step("reduce_mean", (grouped,), (mean,), axes=axes),
        Step("sub", (grouped, mean), (centred,)),
        Step("square", (centred,), (square,)),
        Step("reduce_mean", (square,), (variance,), axes=axes),
        Step("add", (variance,), (shifted,)),
        Step("sqrt", (shifted,), (root,)),
        Step("real_div", (centred, root), (normed,)),
        Step("reshape", (normed,), (flat if scaled else y,)),
        *end,
    ]


def _hardswish(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[Step]:
    x, y = inputs[0], outputs[0]
    clipped, gate = _shaped(y, "clipped", y.shape), _shaped(y, "gate", y.shape)
    return [
        Step("thresholded_relu", (x,), (clipped,)),
        Step("sigmoid_hard", (clipped,), (gate,)),
        Step("mul", (clipped, gate), (y,)),
    ]


def _attention(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[Step]:
    """Scale the queries, multiply, add the mask where there is one, softmax, multiply."""
    (query, key, value, *masks), y = inputs, outputs[0]
    scaled = _shaped(y, "scaled", query.shape)
    scores = _shaped(y, "scores", (*query.shape[:-1], key.shape[-2]))
    steps = [Step("mul", (query,), (scaled,)), Step("matmul", (scaled, key), (scores,))]
    if masks or (len(node.args) > 3 and node.args[3] is not None) or node.kwargs.get("attn_mask") is not None:
        masked = _shaped(y, "masked", scores.shape)
        steps.append(Step("add", (scores, *masks), (masked,)))
        scores = masked
    weights = _shaped(y, "weights", scores.shape)
    return [
        *steps,
        Step("softmax", (scores,), (weights,), axes=(len(scores.shape) - 1,)),
        Step("matmul", (weights, value), (y,)),
    ]


def _unbind(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[Step]:
    x = inputs[0]
    given: Any = node.args[1] if len(node.args) > 1 else 0
    axis = given % len(x.shape)
    slices = tuple(_shaped(y, "slice", (*y.shape[:axis], 1, *y.shape[axis:])) for y in outputs)
    return [Step("split", inputs, slices)] + [
        Step("squeeze", (part,), (y,)) for part, y in zip(slices, outputs, strict=True)
    ]


def _roll(node: Node, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> list[Step]:
    """One gather for each axis that is rolled."""
    shifts: Any = node.args[1]
    count = len(shifts) if isinstance(shifts, list | tuple) else 1
    y = outputs[0]
    between = [_shaped(y, f"rolled{i}", y.shape) for i in range(count - 1)]
    chain = [inputs[0], *between, y]
    return [Step("gather", (a,), (b,), rolled=True) for a, b in pairwise(chain)]


_SPECIAL: dict[str, Callable[[Node, tuple[Tensor, ...], tuple[Tensor, ...]], list[Step]]] = {
    "conv2d": _conv,
    "conv1d": _conv,
    "conv_transpose2d": _conv,
    "convolution": _conv,
    "permute": _permute,
    "transpose": _permute,
    "t": _permute,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "group_norm": _group_norm,
    "hardswish": _hardswish,
    "scaled_dot_product_attention": _attention,
    "unbind": _unbind,
    "roll": _roll,
}
