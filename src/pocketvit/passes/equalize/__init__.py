"""Equalising: the same function with weights and activations that fit an integer grid better, in every runtime.

One large channel sets the step that all channels of an activation are rounded with. A norm, or a layer, may hand its
channels on scaled and shifted where whatever reads them undoes it. The edit is of parameters alone, so it travels into
every format; it is found on the exported graph, so the model may be any.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput
from ...models import Model
from .. import PASSES, Pass
from .exactness import check_same
from .pairs import Kind, Pair, Survey, survey
from .rewriting import Editor, input_ranges
from .running import captured


@dataclass(frozen=True, kw_only=True, slots=True)
class Equalize:
    """What is equalised; with nothing on, the model stays as it is.

    smooth: norms and the layers that read them, attention's values and the projection (SmoothQuant); from 0 (outliers
    stay) to 1 (all of each outlier moves into the weights), or None for not at all. cross_layer: layers with a
    positively homogeneous function between (ReLU, a gate, pooling, nothing), by the same formula; strength is smooth,
    or one half. reparameterize: all channels of a norm get one range (RepQ-ViT); such norms are not smoothed too.
    """

    smooth: float | None = 0.5
    cross_layer: bool = False
    reparameterize: bool = False

    def __post_init__(self) -> None:
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise BadInput(f"smooth is a share from 0 to 1, or null for none; not {self.smooth}.")


OFF = Equalize(smooth=None)
_HALF = 0.5


def equalize(model: Model, config: Equalize, images: NDArray[np.float32]) -> Model:
    """Return `model` equalised, its name saying how many pairs were; the model passed in stays as it was.

    images: (N, C, H, W), float32 RGB in [0, 1]; ranges are measured on them, and outputs compared. Raises BadInput
    where a method that was asked for finds no pair, CheckFailed where outputs differ.
    """
    module = copy.deepcopy(model.module)
    if config == OFF:
        return replace(model, module=module)
    deployed, program = captured(model)
    found = survey(program, deployed)
    chosen = _chosen(model, config, found)
    editor = Editor(deployed, input_ranges(program, images))
    for pair in chosen:
        if config.reparameterize and pair.kind is Kind.NORM:
            editor.reparameterize(pair)
        else:
            editor.smooth(pair, _HALF if config.smooth is None else config.smooth)
    editor.write(module)
    equalised = replace(model, module=module, name=f"{model.name}+equalize ({len(chosen)} pairs)")
    check_same(model, equalised, images)
    return equalised


def _chosen(model: Model, config: Equalize, found: Survey) -> list[Pair]:
    """The pairs that a config asks for, in the order of the graph; every method but the default must find one."""
    norm, layer = (
        "a norm with weights that only layers read",
        "two layers with nothing, ReLU, a gate or pooling between",
    )
    value = "values of attention that only a projection reads"
    kinds: set[Kind] = set()
    if config.reparameterize:
        kinds.add(Kind.NORM)
        _require(model, found, kinds, "reparameterize", norm)
    if config.cross_layer:
        kinds.add(Kind.LAYER)
        _require(model, found, {Kind.LAYER}, "cross_layer", layer)
    if config.smooth is not None:
        kinds |= {Kind.NORM, Kind.VALUE}
        _require(model, found, kinds, "smooth", f"{norm}, or {value}")
    return [pair for pair in found.pairs if pair.kind in kinds]


def _require(model: Model, found: Survey, kinds: set[Kind], method: str, what: str) -> None:
    if any(pair.kind in kinds for pair in found.pairs):
        return
    met = ", ".join(f"{name} ({count}x)" for name, count in found.stops.most_common(6))
    raise BadInput(
        f"{model.name} has nothing to equalise by {method}: it looks for {what}. Channels end at {met or 'nothing'}; "
        "a function such as GELU or SiLU, or a sum with a shortcut, does not let a scale through."
    )


PASSES.add(
    "equalize",
    Pass(config=Equalize, apply=equalize, neutral=OFF, same_function=lambda config: True, calibrated=True),
)
