"""Wide layers whose result is cut up become several: Q, K and V each from a layer of their own.

Smaller results stay in the L2 cache more often (Apple, "Deploying Transformers on the Apple Neural Engine", principle
2), and a layer of its own needs no cut. Rows of a weight are chosen, never changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .program import Builder, Op, Program, aten, rewrite
from .rearrange import Atom, Rearrangement

_CHANNELS = {aten.linear.default: -1, aten.conv2d.default: 1}  # the axis that a layer's rows become


def split_projections(program: Program) -> Program:
    """Layers that are read in separate parts only, as separate layers."""
    readers = program.readers()
    parts: dict[Op, dict[tuple[Atom, ...], Op]] = {}

    def visit(builder: Builder, op: Op, new: Callable[[Op], Any]) -> Op:
        if op.is_rearrangement and _is_cut_up(op.args[0], readers):
            layer, wanted = op.args
            chosen = _chosen(layer, wanted)
            made = parts.setdefault(layer, {})
            if chosen not in made:
                made[chosen] = _part(builder, layer, chosen, new)
            return builder.move(made[chosen], _of_part(layer, wanted), op.path)
        return builder.again(op, new)

    return rewrite(program, visit)


def channel_axis(layer: Op) -> int:
    """The axis of a linear's or convolution's result that its rows become."""
    return _CHANNELS[layer.target] % len(layer.sides)  # type: ignore[index]


def is_layer(op: Op) -> bool:
    """True for a linear, or a convolution of one group, with constant weights."""
    if op.target not in _CHANNELS or not isinstance(op.args[0], Op) or not isinstance(op.args[1], torch.Tensor):
        return False
    return op.target is aten.linear.default or len(op.args) < 7 or op.args[6] == 1


def _is_cut_up(layer: Op, readers: dict[Op, list[Op]]) -> bool:
    """True where every reader takes some of the channels, and no channel is taken in two ways."""
    if not is_layer(layer) or not all(reader.is_rearrangement for reader in readers[layer]):
        return False
    channels = layer.sides[channel_axis(layer)]
    counts = {chosen: _count(chosen) for chosen in (_chosen(layer, reader.args[1]) for reader in readers[layer])}
    return len(counts) > 1 and sum(counts.values()) <= channels


def _chosen(layer: Op, wanted: Rearrangement) -> tuple[Atom, ...]:
    axis = channel_axis(layer)
    return tuple(atom for atom in wanted.merged(range(len(wanted.source))).atoms if atom.axis == axis)


def _count(chosen: tuple[Atom, ...]) -> int:
    count = 1
    for atom in chosen:
        count *= atom.length
    return count


def _part(builder: Builder, layer: Op, chosen: tuple[Atom, ...], new: Callable[[Op], Any]) -> Op:
    rows = torch.arange(len(layer.args[1])).reshape([atom.size for atom in chosen])
    for axis, atom in enumerate(chosen):
        rows = rows.narrow(axis, atom.start, atom.length)
    rows = rows.flatten()
    x, weight, *rest = layer.args
    bias = rest[0][rows] if rest and rest[0] is not None else None
    return builder.call(layer.target, new(x), weight[rows], bias, *rest[1:], path=layer.path, **layer.kwargs)


def _of_part(layer: Op, wanted: Rearrangement) -> Rearrangement:
    """The same move, of a layer that has the chosen channels only."""
    axis = channel_axis(layer)
    fine = wanted.merged(range(len(wanted.source)))
    kept = [i for i, atom in enumerate(fine.atoms) if atom.axis != axis or atom.length > 1]
    atoms = tuple(
        Atom(axis, fine.atoms[i].length, 0, fine.atoms[i].length) if fine.atoms[i].axis == axis else fine.atoms[i]
        for i in kept
    )
    count = _count(_chosen(layer, wanted))
    source = (*wanted.source[:axis], count, *wanted.source[axis + 1 :])
    return replace(fine, source=source, atoms=atoms, order=tuple(kept.index(i) for i in fine.order))
