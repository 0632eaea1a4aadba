"""PyTorch's own quantization, where torchao alone gets the network wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pocketvit.targets import TARGETS, read_artifact
from pocketvit.targets._torch_program import quantize
from pocketvit.types import InputSpec, Precision


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


def test_dynamic_ranges_run_behind_a_padding_of_its_own(draft, digits, logits_of, sqnr_db, tmp_path) -> None:
    """TensorFlow's "same" under a stride is a padding and a convolution, which XNNPACK fuses and cannot run."""
    from timm.layers import create_conv2d

    torch.manual_seed(0)
    same = create_conv2d(3, 8, 3, stride=2, padding="same", bias=True)
    module = nn.Sequential(
        same, nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(2), nn.Linear(256, 4), nn.Flatten(), nn.Linear(32, 10)
    )
    module, images = module.eval().requires_grad_(False), digits(4, 32)
    target = TARGETS.get("executorch")
    made = target.export(module, draft(tmp_path / "m.pte", "executorch", Precision.W8A8_DYNAMIC), images)
    found = sqnr_db(logits_of(module, images), target.load(read_artifact(made.path), 1)(images))
    assert made.quantized is not None
    assert found > Precision.W8A8_DYNAMIC.floor_db, f"{found:.1f} dB, quantized {made.quantized}"


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
