"""Models to equalise, and 8-bit rounding as runtimes do it, in PyTorch."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketvit.data import open_data, sample
from pocketvit.models import EagerRunner, Model
from pocketvit.passes.bias_correction import rounded

from ..ane.subjects import lively

SWIN = {"depths": (2, 2), "embed_dim": 32, "num_heads": (2, 4), "img_size": 56, "window_size": 7}
SMALL = {
    "deit": lambda: lively("pocket_deit_distilled_patch4_32"),
    "swin": lambda: lively("swin_tiny_patch4_window7_224", **SWIN),
    "mobilevit": lambda: lively("pocket_mobilevit_32"),
    "moat": lambda: lively("pocket_moat_48"),
    "cait": lambda: lively("cait_xxs24_224", depth=1, img_size=32, patch_size=8),
    "convnext": lambda: lively("test_convnext"),
    "levit": lambda: lively("levit_128s"),
}


def photos(model: Model, count: int = 4) -> NDArray[np.float32]:
    return sample(open_data("photos"), model.spec, count)


def in_8_bits(model: Model, images: NDArray[np.float32], bits: int = 8) -> Model:
    """Weights rounded for each row, activations for each tensor, within the range that `images` gave them."""
    module = copy.deepcopy(model.module).eval()
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    ranges: dict[nn.Module, tuple[float, float]] = {}

    def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = ranges.get(layer, (0.0, 0.0))
        ranges[layer] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

    hooks = [layer.register_forward_pre_hook(observe) for layer in layers]
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.spec.mean, model.spec.std))
    with torch.no_grad():
        module((torch.from_numpy(images) - mean) / std)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        layer.weight.data = rounded(layer.weight.data, bits)
        low, high = ranges[layer]
        scale = max(high - low, 1e-30) / 255
        zero = round(-low / scale)
        # deepcopy keeps a hook as it is, and with it what the default arguments hold
        layer.register_forward_pre_hook(
            lambda _, inputs, scale=scale, zero=zero: (
                ((inputs[0] / scale).round() + zero).clamp(0, 255).sub(zero).mul(scale)
            )
        )
    return replace(model, module=module)


def decibels(found: Model, model: Model, images: NDArray[np.float32]) -> float:
    """Signal-to-noise ratio of the logits of `found` against those of `model`."""
    expected = EagerRunner(model)(images)
    noise = float(np.square(EagerRunner(found)(images) - expected).sum())
    return float(10 * np.log10(np.square(expected).sum() / max(noise, 1e-30)))
