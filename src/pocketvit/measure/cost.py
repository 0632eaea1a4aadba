"""Parameters and multiply-accumulates of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..models import Model, deployable


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """params: number of weights. macs: multiply-accumulates for one image (half of torch's floating point count)."""

    params: int
    macs: int


def cost(model: Model) -> Cost:
    """Count parameters and the MACs of one forward pass at the model's own input size."""
    module = deployable(model)
    # the fused attention kernel of the CPU has no formula in torch's counter; the plain form is made of matmuls
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        module(torch.zeros(1, *model.spec.size))
    return Cost(params=sum(p.numel() for p in model.module.parameters()), macs=counter.get_total_flops() // 2)
