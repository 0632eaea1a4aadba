"""Tiny models of every kind that has an integer form, with weights as trained ones have, and real images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pocketvit import torchvision_repair  # noqa: F401  (before timm)

# isort: split
import timm
from sklearn.datasets import load_digits

from pocketvit.models import Model
from pocketvit.types import InputSpec

_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
_SWIN: dict[str, Any] = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
SUBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_distilled_patch16_224", _VIT),
    "vit": ("vit_tiny_patch16_224", _VIT),
    "vit, no class in positions, LayerScale, registers": (
        "vit_tiny_patch16_224",
        {**_VIT, "init_values": 0.5, "reg_tokens": 2, "no_embed_class": True, "global_pool": "avg"},
    ),
    "vit, norm before, mean after the norm, no biases": (
        "vit_tiny_patch16_224",
        {**_VIT, "pre_norm": True, "global_pool": "avg", "fc_norm": False, "class_token": False, "qkv_bias": False},
    ),
    "swin, shifted windows and merging": ("swin_tiny_patch4_window7_224", {**_SWIN, "window_size": 4}),
}


def subject(name: str) -> Model:
    """One of SUBJECTS."""
    return tiny(*SUBJECTS[name])


def tiny(architecture: str, arguments: dict[str, Any]) -> Model:
    """A timm model for ten classes whose weights are large enough for attention to choose."""
    torch.manual_seed(0)
    module = timm.create_model(architecture, num_classes=10, **arguments).eval()
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=1.5 * part.in_features**-0.5)
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.1)
        if isinstance(part, nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
    spec = InputSpec(size=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), labels=tuple("0123456789"))
    return Model(name=architecture, module=module, spec=spec, trained=True, classes=10)


def images(count: int) -> NDArray[np.float32]:
    """Handwritten digits in three shades, float32 (N, 3, 32, 32) of whole bytes."""
    grey = np.kron(load_digits().images[:count] / 16, np.ones((4, 4)))
    shades = grey[:, None] * np.array([1.0, 0.7, 0.4])[:, None, None]
    return (np.rint(shades * 255) / 255).astype(np.float32)
