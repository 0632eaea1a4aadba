"""Norms and scales that vanish into the layers around them, with weights computed in float64.

A batch norm of a trained model is a scale and a shift for each channel: it folds into the layer before it, through
any reshape that keeps the channels, or into the layers behind it. So do the scale and shift at the end of a layer
norm, the scale of a residual branch (LayerScale) and the scale of attention scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .program import Builder, Op, Program, aten, rewrite
from .projections import channel_axis, is_layer
from .rearrange import Rearrangement

_PRODUCTS = {aten.mul.Tensor, aten.mul.Scalar}
_QUOTIENTS = {aten.div.Tensor, aten.div.Scalar}


@dataclass(frozen=True, slots=True)
class _Affine:
    """x scale + shift, each a number or one for each channel, float64."""

    scale: Tensor
    shift: Tensor


def fold_norms(program: Program, *, as_converters_do: bool = False) -> Program:
    """Fold until nothing is left to fold. as_converters_do: only norms and scales right behind a convolution."""
    while True:
        folded = _fold_once(program, as_converters_do)
        if folded is None:
            return program
        program = folded


def _fold_once(program: Program, as_converters_do: bool) -> Program | None:
    """Fold what can be folded at the same time; None where nothing can."""
    readers = program.readers()
    after: dict[Op, _Affine] = {}  # by layer: what its result takes in
    before: dict[Op, _Affine] = {}  # by layer: what its input takes in
    gone: dict[Op, Op] = {}  # by operation: what stands in its place, of those it reads
    bare: set[Op] = set()  # layer norms that lose their scale and shift
    for op in program.ops:
        found = _affine(op)
        if found is None:
            continue
        x, affine, axis = found
        if as_converters_do and (op.target is aten.layer_norm.default or x.target is not aten.conv2d.default):
            continue
        layer = _layer_before(x, axis, readers)
        if layer is not None and layer not in after and layer not in before:
            after[layer], gone[op] = affine, x
            continue
        if as_converters_do:
            continue
        layers = _layers_behind(op, axis, affine, readers)
        if (
            op.target not in _PRODUCTS | _QUOTIENTS
            and layers
            and not any(one in before or one in after for one in layers)
        ):
            before |= dict.fromkeys(layers, affine)
            if op.target is aten.layer_norm.default:
                bare.add(op)
            else:
                gone[op] = x
    if not after and not before:
        return None

    def visit(builder: Builder, op: Op, new: Callable[[Op], Any]) -> Op:
        if op in gone:
            return new(gone[op])
        if op in bare:
            x, shape, _, _, *rest = op.args
            return builder.call(op.target, new(x), shape, None, None, *rest, path=op.path)
        if op in after or op in before:
            return _folded(builder, op, before.get(op), after.get(op), new)
        return builder.again(op, new)

    return rewrite(program, visit)


def _affine(op: Op) -> tuple[Op, _Affine, int | None] | None:
    """What an operation scales and shifts, by what, and along which axis of it; None for an axis where by numbers."""
    if op.target is aten.batch_norm.default and isinstance(op.args[0], Op):
        x, weight, bias, mean, var, training, _, eps, *_ = op.args
        if training or mean is None:
            return None
        scale = (var.double() + eps).rsqrt() * (1 if weight is None else weight.double())
        return x, _Affine(scale, (0 if bias is None else bias.double()) - mean.double() * scale), 1
    if op.target is aten.layer_norm.default and len(op.args[1]) == 1 and len(op.args) > 2 and op.args[2] is not None:
        weight, bias = op.args[2].double(), op.args[3] if len(op.args) > 3 else None
        shift = torch.zeros_like(weight) if bias is None else bias.double()
        return op, _Affine(weight, shift), len(op.sides) - 1
    if op.target not in _PRODUCTS | _QUOTIENTS or op.kwargs:
        return None
    x, factor = op.args[:2]
    if isinstance(factor, Op) and op.target in _PRODUCTS:
        x, factor = factor, x
    if not isinstance(x, Op) or isinstance(factor, Op) or x.shape != op.shape:
        return None
    factor = torch.as_tensor(factor)
    if factor.is_complex() or not op.dtype.is_floating_point or op.dtype != x.dtype:
        return None
    scale = factor.double()
    if op.target in _QUOTIENTS:
        scale = 1 / scale
    if scale.numel() == 1:
        return x, _Affine(scale.reshape(()), torch.zeros((), dtype=torch.float64)), None
    axis = next(i for i, side in enumerate(scale.shape) if side > 1) + len(op.sides) - scale.ndim
    if scale.numel() != op.sides[axis]:
        return None
    return x, _Affine(scale.flatten(), torch.zeros(scale.numel(), dtype=torch.float64)), axis


def _layer_before(x: Op, axis: int | None, readers: dict[Op, list[Op]]) -> Op | None:
    """The layer whose channels are the axis of x, where nothing else reads what lies between."""
    while len(readers[x]) == 1:
        if is_layer(x) or (x.target is aten.conv2d.default and isinstance(x.args[1], Tensor)):
            return x if axis in (None, channel_axis(x)) else None
        if x.is_rearrangement:
            if axis is not None:
                axis = x.args[1].axis_before(axis)
                if axis is None:
                    return None
            x = x.args[0]
        elif x.target is aten.matmul.default and axis is None and x.args[0] is not x.args[1]:
            if not isinstance(x.args[0], Op):
                return None
            x = x.args[0]  # a number that scales a product may scale its first factor
        else:
            return None
    return None


def _layers_behind(op: Op, axis: int | None, affine: _Affine, readers: dict[Op, list[Op]]) -> list[Op]:
    """The layers that read an operation, where all that reads it is layers whose input channels are the axis."""
    found: list[Op] = []
    for reader in readers[op]:
        if reader.is_rearrangement:
            wanted: Rearrangement = reader.args[1]
            behind = None if axis is None else wanted.axis_behind(axis)
            more = [] if behind is None else _layers_behind(reader, behind, affine, readers)
            if not more:
                return []
            found += more
        elif reader.target is aten.linear.default and reader.args[0] is op and isinstance(reader.args[1], Tensor):
            if axis != len(op.sides) - 1:
                return []
            found.append(reader)
        elif is_layer(reader) and reader.args[0] is op and axis == 1:
            padded = len(reader.args) > 4 and (isinstance(reader.args[4], str) or any(reader.args[4]))
            if padded and bool(affine.shift.any()):  # the zeros around the map are not shifted
                return []
            found.append(reader)
        else:
            return []
    return found


def _folded(
    builder: Builder, layer: Op, before: _Affine | None, after: _Affine | None, new: Callable[[Op], Any]
) -> Op:
    x, weight, *rest = layer.args
    bias = rest[0] if rest else None
    w = weight.double()
    b = torch.zeros(len(w), dtype=torch.float64) if bias is None else bias.double()
    tail = (1,) * (w.ndim - 2)
    if before is not None:
        b = b + (w * before.shift.reshape(1, -1, *tail)).flatten(1).sum(1)
        w = w * before.scale.reshape(1, -1, *tail)
    if after is not None:
        scale = after.scale.expand(len(w))
        w, b = w * scale.reshape(-1, 1, *tail), b * scale + after.shift
    has_bias = bias is not None or bool(b.any())
    bias = b.to(weight.dtype) if has_bias else None
    return builder.call(layer.target, new(x), w.to(weight.dtype), bias, *rest[1:], path=layer.path, **layer.kwargs)
