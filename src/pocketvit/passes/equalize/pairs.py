"""Pairs on the captured graph: a norm or layer whose channels can be scaled, and the layers that undo it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Node

from ...models.graph import operator, owner
from .labels import Reach, follow

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# operators whose result is scaled by a parameter of one number a channel, and the places of that and of the shift
_NORMS = {"layer_norm": (2, 3), "rms_norm": (2, None), "group_norm": (2, 3), "batch_norm": (1, 2)}
_LAYERS = {"linear", "conv1d", "conv2d"}


class Kind(StrEnum):
    """What lies between the two."""

    NORM = "norm"  # a norm, then layers, only moves between
    VALUE = "value"  # the layer of attention's values, then the projection
    LAYER = "layer"  # a layer or norm, then layers behind a positively homogeneous function


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One norm or layer and everything that reads its channels.

    name: module of the producer. scale, shift: names of its parameters. channels: flags, which may be scaled.
    shiftable: flags, which may be shifted as well.
    """

    name: str
    kind: Kind
    scale: str
    shift: str | None
    reach: Reach
    channels: Tensor
    shiftable: Tensor

    @property
    def parameters(self) -> set[str]:
        """Names of all that equalising it edits."""
        both = [(self.scale, self.shift), *((absorber.weight, absorber.bias) for absorber in self.reach.absorbers)]
        return {name for names in both for name in names if name is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """The pairs of a model in the order they are computed, and what stopped the channels that are in none."""

    pairs: tuple[Pair, ...]
    stops: Counter[str]


def survey(program: ExportedProgram, module: nn.Module) -> Survey:
    """Find every pair of `program`, whose parameters are those of `module`.

    A parameter that is read twice, or that two modules share, is left alone: changing it would change both.
    """
    names = own_parameters(program, module)
    layers = {node: _weights(node, names) for node in program.graph.nodes if operator(node) in _LAYERS}
    editable = {node: found for node, found in layers.items() if found is not None}
    constants = _constants(program)
    pairs: list[Pair] = []
    stops: Counter[str] = Counter()
    for node in program.graph.nodes:
        found = _producer(node, names, editable)
        if found is None:
            continue
        scale, shift, axis, is_norm = found
        reach = follow(node, node.meta["val"].shape[axis], axis, editable, constants)
        stops.update(reach.stops - _NORMS.keys())  # a norm starts anew
        kinds = _kinds(reach, is_norm)
        for kind, channels in kinds.items():
            shiftable = channels & reach.shiftable if shift else torch.zeros_like(channels)
            if channels.any():
                pairs.append(
                    Pair(
                        name=owner(scale),
                        kind=kind,
                        scale=scale,
                        shift=shift,
                        reach=reach,
                        channels=channels,
                        shiftable=shiftable,
                    )
                )
    return Survey(pairs=tuple(pairs), stops=stops)


def _kinds(reach: Reach, is_norm: bool) -> dict[Kind, Tensor]:
    values = reach.open & reach.attended
    direct = reach.open & ~reach.passed if is_norm else torch.zeros_like(reach.open)
    return {Kind.NORM: direct, Kind.VALUE: values, Kind.LAYER: reach.open & ~values & ~direct}


def _producer(
    node: Node, names: dict[Node, str], editable: dict[Node, tuple[str, str | None]]
) -> tuple[str, str | None, int, bool] | None:
    """Names of the scale and the shift, the axis of channels, and whether it is a norm; None for anything else."""
    kind = operator(node)
    if node in editable:
        weight, bias = editable[node]
        return weight, bias, node.meta["val"].ndim - 1 if kind == "linear" else 1, False
    if kind not in _NORMS:
        return None
    if kind in ("layer_norm", "rms_norm") and len(node.args[1]) != 1:  # type: ignore[arg-type]
        return None
    places = _NORMS[kind]
    scale, shift = (node.args[at] if at is not None and len(node.args) > at else None for at in places)
    if scale not in names or (shift is not None and shift not in names):
        return None
    axis = 1 if kind in ("group_norm", "batch_norm") else node.meta["val"].ndim - 1
    return names[scale], names[shift] if shift is not None else None, axis, True  # type: ignore[index]


def _weights(node: Node, names: dict[Node, str]) -> tuple[str, str | None] | None:
    """Names of a layer's weight and bias where both may be edited."""
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    if weight not in names or (bias is not None and bias not in names):
        return None
    return names[weight], names[bias] if bias is not None else None  # type: ignore[index]


def own_parameters(program: ExportedProgram, module: nn.Module) -> dict[Node, str]:
    """Placeholders of parameters that one node reads and that share their memory with no other."""
    places = Counter(p.untyped_storage().data_ptr() for _, p in module.named_parameters(remove_duplicate=False))
    own = {name for name, p in module.named_parameters() if places[p.untyped_storage().data_ptr()] == 1}
    parameters = program.graph_signature.inputs_to_parameters
    return {
        node: parameters[node.name]
        for node in program.graph.nodes
        if node.op == "placeholder" and parameters.get(node.name) in own and len(node.users) == 1
    }


def _constants(program: ExportedProgram) -> dict[Node, Tensor]:
    signature = program.graph_signature
    held = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    stored = {**program.state_dict, **program.constants}
    return {node: stored[held[node.name]] for node in program.graph.nodes if node.name in held}
