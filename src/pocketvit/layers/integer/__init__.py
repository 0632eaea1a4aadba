"""Integer-only inference (I-ViT, arXiv 2207.01405): its functions, its scales, and programs made of them."""

from __future__ import annotations

from .functions import (
    integer_sqrt,
    normalise,
    requantize,
    shift_gelu,
    shiftmax_weights,
    weighted_mean,
)
from .program import IntegerProgram, Recorder, Value, pad, product
from .scales import Rescaling, Site, rescale, rescale_product

__all__ = [
    "IntegerProgram",
    "Recorder",
    "Rescaling",
    "Site",
    "Value",
    "integer_sqrt",
    "normalise",
    "pad",
    "product",
    "requantize",
    "rescale",
    "rescale_product",
    "shift_gelu",
    "shiftmax_weights",
    "weighted_mean",
]
