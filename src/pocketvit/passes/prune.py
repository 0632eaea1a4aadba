"""Unstructured magnitude pruning: the smallest weights become zero (Han et al., arXiv 1506.02626)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from enum import StrEnum

from torch import nn
from torch.nn.utils import prune as torch_prune

from ..errors import BadInput
from ..models import Model
from . import PASSES, Pass


class Scope(StrEnum):
    """Where magnitudes are compared."""

    GLOBAL = "global"  # over all layers together: some layers lose more than others
    LAYER = "layer"  # within each layer: every layer loses the same share


@dataclass(frozen=True, kw_only=True, slots=True)
class Prune:
    """sparsity: share (0..1) of convolution and linear weights set to zero; 0 leaves the model as it is."""

    sparsity: float = 0.0
    scope: Scope = Scope.GLOBAL

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise BadInput(f"sparsity is a share from 0 up to, not including, 1; not {self.sparsity}.")


def prune(model: Model, config: Prune) -> Model:
    """Return a copy of `model` with its smallest weights zeroed; shapes, and so speed on dense runtimes, stay."""
    module = copy.deepcopy(model.module)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    if not layers:
        raise BadInput(f"{model.name} has no linear or convolution layer to prune.")
    if config.sparsity == 0:
        return replace(model, module=module)
    if config.scope is Scope.GLOBAL:
        pairs = [(layer, "weight") for layer in layers]
        torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=config.sparsity)
    for layer in layers:
        if config.scope is Scope.LAYER:
            torch_prune.l1_unstructured(layer, "weight", amount=config.sparsity)
        torch_prune.remove(layer, "weight")  # the mask is folded in; no hook stays behind
    return replace(model, module=module, name=f"{model.name}+prune{config.sparsity:g}")


PASSES.add("prune", Pass(config=Prune, apply=prune))
