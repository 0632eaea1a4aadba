"""PyTorch's own quantization, where torchao alone gets the network wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pocketvit.targets._torch_program import quantize
from pocketvit.types import InputSpec


class Branching(nn.Module):
    """A convolution that a shortcut and a norm both read, as at the start of a MOAT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)
        self.norm.running_mean.uniform_(-2, 2)
        self.norm.running_var.uniform_(4, 9)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        return self.head((x + self.expand(self.norm(x))).mean((2, 3)))


@pytest.mark.parametrize("backend", ["executorch", "torch_export"])
def test_a_norm_is_not_folded_into_what_a_shortcut_reads(backend: str) -> None:
    torch.manual_seed(0)
    module = Branching().eval().requires_grad_(False)
    images = torch.rand(16, 3, 16, 16)
    program = quantize(module, InputSpec(size=(3, 16, 16)), _quantizer(backend), images.numpy())
    run = program.module()
    wanted = module(images)
    found = torch.cat([run(image[None]) for image in images])
    noise = (wanted - found).square().sum() / wanted.square().sum()
    decibels = float(-10 * torch.log10(noise))
    # 8-bit integers keep some 35 dB of so small a network; with the norm folded into the shortcut it is -1
    assert decibels > 20, f"{decibels:.1f} dB"


def _quantizer(backend: str) -> object:
    if backend == "executorch":
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )

        return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    return X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
