"""How an interpreted program rounds: as float32, or as hardware that stores half precision."""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor

HALF_MAX = 65504.0  # the largest finite fp16
HALF_TINY = 2.0**-14  # the smallest normal fp16; below it precision falls away bit by bit


class Arithmetic(StrEnum):
    """The Neural Engine stores fp16; how it accumulates is not public, so there is a bracket of two.

    fp32: everything in float32, whatever the program declares: shows structure without rounding.
    fp16-fp32acc: an operation computes in float32 and rounds what the program declares fp16 as it stores it.
    fp16: as well, the steps inside norms, softmax, reductions and the accumulators of products are rounded.
    """

    FP32 = "fp32"
    FP16_FP32_ACC = "fp16-fp32acc"
    FP16 = "fp16"


def to_half(x: Tensor) -> Tensor:
    """Round to fp16 and widen again; what is too large becomes infinite, as it does when stored on a device."""
    return x.half().float()
