"""Biases shifted by what rounded weights add to each channel on average (Nagel et al., arXiv 1906.04721).

Rounding W to Q(W) moves the mean of a layer's outputs by E[x] (Q(W) - W), section 4.2. The pass takes that off the
bias, for weights rounded symmetrically with one scale for each output channel. The float model then is a little off on
purpose: export it in the precision it was corrected for, and nothing else. OpenVINO's quantizer (NNCF) corrects biases
itself, and its files gain nothing here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Interpreter, Node

from ..errors import BadInput
from ..models import Model
from ..models.graph import operator
from . import PASSES, Pass
from .equalize.pairs import own_parameters
from .equalize.running import OWN, WEIGHED, captured, inputs

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True, kw_only=True, slots=True)
class BiasCorrection:
    """bits: of the integers that weights will be rounded to, 2 to 8; None leaves the model as it is."""

    bits: int | None = 8

    def __post_init__(self) -> None:
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise BadInput(f"bits of a rounded weight are 2 to 8, or null for no correction; not {self.bits}.")


OFF = BiasCorrection(bits=None)


@dataclass(frozen=True, slots=True)
class _Bias:
    """The bias that takes a layer's correction in, by name, and what it is multiplied by on the way to the result."""

    name: str
    gain: Tensor | float


def correct_biases(model: Model, config: BiasCorrection, images: NDArray[np.float32]) -> Model:
    """Return `model` with corrected biases; the model passed in stays as it was.

    images: (N, C, H, W), float32 RGB in [0, 1]. Each layer is corrected for inputs from the layers before it, rounded
    and corrected. A convolution without bias hands its correction to the batch norm behind it; other layers without
    bias keep their error. Raises BadInput where no layer can be corrected.
    """
    module = copy.deepcopy(model.module)
    if config.bits is None:
        return replace(model, module=module)
    deployed, program = captured(model)
    biases = _biases(program, own_parameters(program, deployed))
    if not biases:
        raise BadInput(f"{model.name} has no linear or convolution layer with a bias to correct.")
    shifts = _shifts(program, images, biases, config.bits)
    with torch.no_grad():
        for node, shift in shifts.items():
            bias = module.get_parameter(biases[node].name.removeprefix(OWN))
            bias.add_((shift * biases[node].gain).to(bias))
    return replace(model, module=module, name=f"{model.name}+bias_correction{config.bits} ({len(shifts)} layers)")


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The weight as its integers hold it: symmetric, one scale for each row."""
    most = 2 ** (bits - 1) - 1
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-30).view(-1, *[1] * (weight.ndim - 1)) / most
    return (weight / scale).round() * scale


def _biases(program: ExportedProgram, names: Mapping[Node, str]) -> dict[Node, _Bias]:
    """Where each layer's correction may go."""
    held = dict(zip((n for n in program.graph.nodes if n.op == "placeholder"), inputs(program), strict=True))
    found = {}
    for node in program.graph.nodes:
        if operator(node) not in WEIGHED:
            continue
        bias: Any = node.args[2] if len(node.args) > 2 else None
        if bias in names:
            found[node] = _Bias(names[bias], 1.0)
        elif bias is None and (norm := _batch_norm_behind(node)) is not None:
            norm_arguments: tuple[Any, ...] = norm.args
            _, gamma, beta, _, variance, training, _, epsilon, *_ = norm_arguments
            if beta in names and not training and held.get(variance) is not None:
                gain = (held[variance].double() + epsilon).rsqrt()
                found[node] = _Bias(names[beta], gain if gamma is None else gain * held[gamma].double())
    return found


def _batch_norm_behind(layer: Node) -> Node | None:
    """The batch norm of the layer's own channels that alone reads it."""
    node = layer
    while len(node.users) == 1:
        node = next(iter(node.users))
        if operator(node) == "batch_norm":
            return node
        if operator(node) != "flatten" or operator(layer) != "linear":  # LeViT's tokens in one row
            return None
    return None


def _shifts(
    program: ExportedProgram, images: NDArray[np.float32], biases: Mapping[Node, _Bias], bits: int
) -> dict[Node, Tensor]:
    """For each layer, the mean that rounding takes from its result, float64, over images and places.

    All images go through the graph in step, so that a layer reads what the corrected layers before it give.
    """
    interpreter = Interpreter(program.graph_module)
    environments: list[dict[Node, Any]] = [{} for _ in images]
    places = iter(inputs(program))
    shifts: dict[Node, Tensor] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                value = next(places)
                for environment, image in zip(environments, images, strict=True):
                    environment[node] = torch.from_numpy(image[None].copy()) if value is None else value
                continue
            gaps = []
            for environment in environments:
                interpreter.env = environment
                result = interpreter.run_node(node)
                if node in biases:
                    x, weight = environment[node.args[0]], environment[node.args[1]]
                    lost = node.target(x, weight - rounded(weight, bits), None, *node.args[3:])
                    axis = lost.ndim - 1 if operator(node) == "linear" else 1
                    gaps.append(lost.double().movedim(axis, 0).flatten(1).mean(1))
                    result = (result - lost, axis)
                environment[node] = result
            if node in biases:
                shifts[node] = torch.stack(gaps).mean(0)
                for environment in environments:
                    result, axis = environment[node]
                    along = [1] * result.ndim
                    along[axis] = -1
                    environment[node] = result + shifts[node].to(result).view(along)
            for spent in interpreter.user_to_last_uses.get(node, ()):
                for environment in environments:
                    environment.pop(spent, None)
    return shifts


PASSES.add(
    "bias_correction",
    Pass(config=BiasCorrection, apply=correct_biases, neutral=OFF, calibrated=True),
)
