"""XNNPACK on integers: where its kernels end, where they are wrong, and what a file says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pocketvit.errors import BadInput
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.types import ASKED, Precision, Quantization


class Stages(nn.Module):
    """A stage that starts with two strides from one input; a depthwise convolution, a ReLU and wide linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.expand = nn.Conv2d(24, 64, 1)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.shortcut = nn.Conv2d(24, 64, 1, stride=2)
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image - 0.5)
        x = nn.functional.max_pool2d(self.depthwise(torch.relu(self.expand(x))), 2) + self.shortcut(x)
        x = x.flatten(2).mT
        return self.head((x + self.fc2(nn.functional.gelu(self.fc1(x)))).mean(1))


@pytest.fixture(scope="module")
def stages() -> nn.Module:
    torch.manual_seed(0)
    return Stages().eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("precision", "floor"),
    [(Precision.W8A8_DYNAMIC, 28.0), (Precision.W4, 15.0), pytest.param(Precision.W8A8, 20.0, marks=pytest.mark.slow)],
)
def test_it_follows_the_model_and_says_what_stayed_float(
    precision, floor, stages, draft, digits, logits_of, sqnr_db, tmp_path
):
    target, images = TARGETS.get("executorch"), digits(16, 16)
    wanted = replace(
        draft(tmp_path / "m.pte", "executorch", precision, size=16), quantization=Quantization(keep={"stem": ASKED})
    )
    made = target.export(stages, wanted, images[8:])
    found = sqnr_db(logits_of(stages, images[:8]), target.load(read_artifact(made.path), 1)(images[:8]))
    # convolutions of two strides that share what is quantized at run time give 9 dB; 8 bits keep about 30
    assert found > floor, f"{found:.1f} dB, {made.quantized}"
    assert made.quantized is not None
    reasons = {"stem": ASKED}
    if precision is not Precision.W8A8:
        reasons["depthwise"] = "XNNPACK has no dynamic kernel for a depthwise convolution"
    assert made.quantized.kept == reasons
    assert (made.quantized.layers, made.quantized.of) == (7 - len(reasons), 7)
    assert read_artifact(made.path).quantized == made.quantized


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
    assert made.quantized.kept == {"0": "XNNPACK has no dynamic kernel for a convolution behind a padding of its own"}


def test_groups_that_its_kernels_do_not_have_are_refused(stages, draft, digits, tmp_path):
    wanted = replace(
        draft(tmp_path / "m.pte", "executorch", Precision.W4, size=16), quantization=Quantization(group_size=16)
    )
    with pytest.raises(BadInput, match="multiples of 32, not 16"):
        TARGETS.get("executorch").export(stages, wanted, digits(2, 16))
    assert list(tmp_path.iterdir()) == []


class Back(nn.Module):
    """From an image to patches and back, as MobileViT does, with a convolution on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.back, self.last = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(64, 32, 1)
        self.fc, self.head = nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        y = nn.functional.layer_norm(self.fc(x.flatten(2).mT), (32,)).mT.reshape(x.shape)
        return self.head(self.last(torch.cat([x, torch.relu(self.back(y))], 1)).mean((2, 3)))


def test_a_convolution_behind_a_reshape_stays_float_in_a_dynamic_file(
    draft, digits, logits_of, sqnr_db, tmp_path
) -> None:
    """XNNPACK's layout pass follows its input to the layer norm, which is no image, and fails."""
    target, images, module = TARGETS.get("executorch"), digits(8, 16), Back().eval()
    made = target.export(module, draft(tmp_path / "m.pte", "executorch", Precision.W8A8_DYNAMIC, size=16), None)
    assert made.quantized is not None
    assert made.quantized.kept == {"back": "XNNPACK cannot lay out, for a dynamic kernel, what a reshape gives"}
    found = sqnr_db(logits_of(module, images), target.load(read_artifact(made.path), 1)(images))
    assert found > 28, f"{found:.1f} dB"
