"""A float model to its integer form: walked exactly to find ranges and to prove the walk, then recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ... import torchvision_repair  # noqa: F401 - before timm

# isort: split
from timm.models import SwinTransformer

from ...errors import CheckFailed
from ...layers.integer import IntegerProgram, Recorder
from .deit import MIDDLE, walk_deit
from .exact import Exact
from .recording import Quantity, Recording
from .swin import walk_swin

_BATCH = 64
_AGREES = 1e-4  # of the largest logit: what float32 rounds differently when sums are taken in another order


class IntegerModel(nn.Module):
    """RGB in [0, 1] (N, C, H, W) to logits (N, classes), in integers between the image's bytes and the logits.

    program: uint8 pixels (N, C, H, W) to int32 logits (N, classes), which `scale` turns into real ones. layers: the
    modules whose weights are integers in it. sites: number and scale of the value rounded at each, by name.
    """

    def __init__(self, program: IntegerProgram, scale: float, layers: tuple[str, ...], sites: dict[str, Any]) -> None:
        super().__init__()
        self.program, self.scale, self.layers, self.sites = program, scale, layers, sites

    def forward(self, image: Tensor) -> Tensor:
        """Float32 logits of float32 images."""
        return self.dequantize(self.program(self.quantize(image)))

    def quantize(self, image: Tensor) -> Tensor:
        """The bytes of an image: exact where it came from 8-bit pixels."""
        return (image * 255).round().clamp(0, 255).to(torch.uint8)

    def dequantize(self, logits: Tensor) -> Tensor:
        """Real logits of integer ones."""
        return logits.to(torch.float32) * self.scale


def walker(module: nn.Module) -> Callable[..., Any]:
    """The walk of a module that was checked."""
    return walk_swin if isinstance(module, SwinTransformer) else walk_deit


@torch.no_grad()
def observe(module: nn.Module, mean: Tensor, std: Tensor, images: NDArray[np.float32]) -> dict[str, float]:
    """The largest magnitude at each site over images (N, C, H, W) in [0, 1].

    Raises CheckFailed where the walk does not give the module's own logits: it would be another model's.
    """
    form = Exact()
    for start in range(0, len(images), _BATCH):
        batch = torch.from_numpy(images[start : start + _BATCH]).to(mean.device)
        walked = walker(module)(form, module, batch - MIDDLE, mean, std)
        own = module((batch - mean) / std)
        error, largest = (walked - own).abs().max().item(), own.abs().max().item()
        if not error <= _AGREES * max(largest, 1e-3):
            raise CheckFailed(
                f"{type(module).__name__} computes something that its integer form leaves out: the logits differ by "
                f"{error:.3g} of {largest:.3g} before anything is quantized."
            )
    return form.peaks


def record(
    module: nn.Module, mean: Tensor, std: Tensor, size: tuple[int, ...], peaks: dict[str, float]
) -> IntegerModel:
    """The integer form of a module whose sites have these peaks."""
    recorder = Recorder()
    form = Recording(recorder, peaks)
    pixels = Quantity(ints=recorder.input((1, *size), torch.uint8), scale=1 / 255, zero=128)
    with torch.no_grad():
        logits = walker(module)(form, module, pixels, mean, std)
    sites = {name: (at.ints.number, at.scale, at.zero) for name, at in form.marks.items()}
    layers = tuple(name for joined in form.layers for name in joined.split("+"))
    return IntegerModel(IntegerProgram(recorder, logits.ints), logits.scale, layers, sites)
