from __future__ import annotations

import torch
from torch import nn

from pocketvit.measure.cost import cost
from pocketvit.models import Model, create
from pocketvit.types import InputSpec


def test_macs_of_hand_computed_layers() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = Model(name="hand", module=module, spec=InputSpec(size=(3, 16, 16)), trained=False, classes=5)
    found = cost(model)
    assert found.macs == 16 * 16 * 8 * 3 * 9 + 8 * 5
    assert found.params == 8 * 27 + 8 + 8 * 5 + 5


def test_attention_counts_its_two_matrix_products() -> None:
    tokens, dim, depth = 197, 192, 12
    linears = depth * tokens * dim * dim * 12  # qkv 3, proj 1, mlp 8
    attention = depth * 2 * tokens * tokens * dim
    patches = 196 * dim * 3 * 16 * 16
    with torch.random.fork_rng():
        model = create("deit_tiny_patch16_224")
    assert cost(model).macs == linears + attention + patches + dim * 1000
