"""Quantization-aware training: `prepare` rounds as the exporters will, `train.fit` trains, `finish` makes it plain.

Rounding happens in the forward pass and is ignored in the backward one (straight-through, arXiv 1712.05877, section
3). Layers keep their classes and names: the rounding of a weight is a parametrization, that of an input a hook.

The grids:

w4: groups along the input axis (`types.group_of`), each with 16 levels from its least weight (at most 0) to its
greatest (at least 0), one of them exactly 0. It is the grid that NNCF (INT4_ASYM), coremltools (int4, linear) and ONNX
Runtime (MatMulNBits with zero points) hold, and weights that are on it stay there: both ends of a group are levels, so
that whoever looks for the range again finds the same. torch programs hold it but for scales in bfloat16. Symmetric
grids differ from runtime to runtime in sign and divisor; XNNPACK has nothing else, and moves weights by about 5%.
8-bit weights: one scale for each output channel, its greatest magnitude / 127, as all exporters have it. Convolutions
train with 8-bit weights in every precision, though torch programs and Core ML (1x1 only) pack them in 4 bits for w4.
Inputs: w8a8-dynamic has torchao's 8 bits for each token, of linear layers; w8a8 has 8 bits for each tensor over a
running range, of linear layers and convolutions. torchao's QAT knows neither convolutions nor such ranges, and PT2E's
rewrites the whole model to a graph that is no timm checkpoint any more; so both are here.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from ..errors import BadInput
from ..models import Model
from ..models.graph import Layer, capture, layers
from ..models.model import Deployable
from ..types import Precision, Quantization, Quantized, group_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PRECISIONS = (Precision.W4, Precision.W8A8_DYNAMIC, Precision.W8A8)
_INPUT = "input_quantizer"
_TOP = 15  # 4-bit levels run from 0 to this
_MOMENTUM = 0.01  # how far a range moves at each step towards what the step shows


class GroupedWeight(nn.Module):
    """Rounds each group of `size` weights along the input axis to 4 bits; a last shorter group is one of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, weight: Tensor) -> Tensor:
        """Round a linear layer's weight (out, in)."""
        inputs = weight.shape[1]
        rows = functional.pad(weight, (0, -inputs % self.size)).reshape(-1, self.size)
        low, high = rows.detach().amin(1).clamp(max=0), rows.detach().amax(1).clamp(min=0)
        rounded = _round_rows(rows, (high - low) / _TOP, 0, _TOP, low)
        return rounded.reshape(len(weight), -1)[:, :inputs]

    def extra_repr(self) -> str:
        """The group size, which must tell two trainings apart."""
        return f"bits=4, group_size={self.size}"


class ChannelWeight(nn.Module):
    """Rounds the weights of each output channel to 8 bits."""

    def forward(self, weight: Tensor) -> Tensor:
        """Round a weight (out, ...)."""
        rows = weight.reshape(len(weight), -1)
        rounded = _round_rows(rows, rows.detach().abs().amax(1) / 127, -127, 127)
        return rounded.reshape(weight.shape)

    def extra_repr(self) -> str:
        """The bits, which must tell two trainings apart."""
        return "bits=8, per channel"


class RunningRange(nn.Module):
    """Rounds a tensor to 8 bits over a range that follows, in training, what the tensor shows."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.momentum = _MOMENTUM
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Round a tensor of any shape."""
        if self.training:
            least, most = x.detach().float().aminmax()
            self.low.lerp_(least, self.momentum)
            self.high.lerp_(most, self.momentum)
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)  # zero, which pads, is exact
        scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
        zero = (-low / scale).round().int()
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255).to(x.dtype)

    def extra_repr(self) -> str:
        """The bits, which must tell two trainings apart."""
        return "bits=8, per tensor"


def _round_rows(rows: Tensor, scale: Tensor, least: int, most: int, low: Tensor | None = None) -> Tensor:
    """Round each row to integers times its scale, where level `least` stands for `low`; rows of zeros stay.

    A loss that is no number any more must reach the trainer, which says so; torch refuses zero points that are none.
    """
    scale = torch.where(scale < torch.finfo(scale.dtype).tiny, torch.ones_like(scale), scale)
    zero = torch.zeros_like(scale) if low is None else (least - low / scale).round().nan_to_num(0).clamp(least, most)
    return torch.fake_quantize_per_channel_affine(rows, scale, zero.int(), 0, least, most)


def prepare(
    model: Model, precision: Precision, group_size: int = 32, images: NDArray[np.float32] | None = None
) -> Model:
    """Return a copy of a trained model that rounds as a file of `precision` will, to be trained with `train.fit`.

    images: for w8a8, float32 RGB in [0, 1] of shape (N, *spec.size), from which the ranges of the inputs start.
    Raises BadInput for another precision, a model that is untrained or prepared already, or one without any layer
    that can be rounded; `coverage` says which can.
    """
    Quantization(group_size=group_size)  # refuses what no file can hold
    if not model.trained:
        raise BadInput(
            f"{model.name} is untrained; quantization-aware training starts from trained weights: train it first."
        )
    if precision is Precision.W8A8 and (images is None or not len(images) or images.shape[1:] != model.spec.size):
        size = " x ".join(map(str, model.spec.size))
        raise BadInput(
            f"Quantization-aware training for w8a8 needs images of {size}, from which the ranges of inputs start."
        )
    kept = _why_float(model, precision)
    if all(kept.values()):
        why = "; ".join(f"{name}: {reason}" for name, reason in list(kept.items())[:3]) or "it has none"
        raise BadInput(f"None of the {len(kept)} layers of {model.name} can be rounded ({why}).")
    module = copy.deepcopy(model.module)
    for layer in [module.get_submodule(name) for name, reason in kept.items() if not reason]:
        rounding: nn.Module = ChannelWeight()
        if precision is Precision.W4 and isinstance(layer, nn.Linear):
            rounding = GroupedWeight(group_of(layer.in_features, group_size))
        parametrize.register_parametrization(layer, "weight", rounding, unsafe=True)
        if (quantizer := _input_quantizer(layer, precision)) is not None:
            layer.add_module(_INPUT, quantizer)
            layer.register_forward_pre_hook(_round_input)
    if precision is Precision.W8A8:
        assert images is not None  # checked above
        _calibrate(Deployable(module, model.spec), torch.from_numpy(images))
    return replace(model, module=module, name=f"{model.name}+qat-{precision}")


def finish(model: Model) -> Model:
    """Return a prepared model as the plain one it was made from, with its weights as they were rounded in training.

    Rounded, because then the float checkpoint computes what was trained and judged. Raises BadInput for a model that
    was not prepared.
    """
    module = copy.deepcopy(model.module)
    prepared = [layer for layer in module.modules() if is_rounded(layer)]
    if not prepared:
        raise BadInput(f"{model.name} was not prepared for quantization-aware training.")
    for layer in prepared:
        _make_plain(layer)
    return replace(model, module=module)


def coverage(model: Model, precision: Precision) -> Quantized:
    """How many layers `prepare` rounds, of those that carry weights; raises BadInput as it does.

    Layers the model does not use for one image of its own size are not counted.
    """
    found = _why_float(model, precision)
    kept = {name: reason for name, reason in found.items() if reason}
    return Quantized(layers=len(found) - len(kept), of=len(found), kept=kept)


def is_rounded(layer: nn.Module) -> bool:
    """Whether the weight of a layer is rounded by `prepare`."""
    return parametrize.is_parametrized(layer, "weight") and isinstance(
        layer.parametrizations.weight[0],  # type: ignore[index, union-attr]
        GroupedWeight | ChannelWeight,
    )


def _why_float(model: Model, precision: Precision) -> dict[str, str]:
    """Why each layer that carries weights cannot be rounded, by name; empty where it can."""
    if precision not in PRECISIONS:
        raise BadInput(f"This quantization-aware training is for {', '.join(PRECISIONS)}; not for {precision}.")
    if any(is_rounded(layer) for layer in model.module.modules()):
        raise BadInput(f"{model.name} is prepared for quantization-aware training already.")
    found = layers(capture(copy.deepcopy(model.module).cpu().float().eval(), model.spec))
    holders = Counter(id(p) for _, p in model.module.named_parameters(remove_duplicate=False))
    return {layer.name: _reason(model.module, layer, holders) for layer in found}


def _reason(module: nn.Module, layer: Layer, holders: Counter[int]) -> str:
    if layer.weight != f"{layer.name}.weight":
        return f"{layer.weight} is a parameter of its own"
    part = module.get_submodule(layer.name)
    if holders[id(part.weight)] > 1:
        return "another layer shares its weight"
    if isinstance(part, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention computes with its weight itself"
    if not isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
        return f"{type(part).__name__} is no linear layer or convolution"
    return ""


def _make_plain(layer: nn.Module) -> None:
    """Take out, in place, what `prepare` put into a layer; its rounded weight stays.

    torch's remove_parametrizations would delete the weight from the class, which copies of a prepared model share.
    """
    weight = nn.Parameter(layer.weight.detach().clone())  # type: ignore[operator]
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer._parameters = {"weight": weight, **layer._parameters}  # first, as it was
    for key, hook in list(layer._forward_pre_hooks.items()):
        if hook is _round_input:
            del layer._forward_pre_hooks[key]
            delattr(layer, _INPUT)


def _input_quantizer(layer: nn.Module, precision: Precision) -> nn.Module | None:
    """What rounds the input of a layer, None where it stays float."""
    if precision is Precision.W8A8:
        return RunningRange()
    if precision is Precision.W8A8_DYNAMIC and isinstance(layer, nn.Linear):
        from torchao.quantization.qat import IntxFakeQuantizeConfig
        from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

        return IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False))
    return None


def _round_input(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    quantizer: nn.Module = getattr(layer, _INPUT)
    return (quantizer(args[0]), *args[1:])


@torch.no_grad()
def _calibrate(module: Deployable, images: Tensor) -> None:
    """Take the range of every input from what it is on images (N, C, H, W) in [0, 1], in place; leaves it in eval."""
    module.eval()
    ranges = [part for part in module.modules() if isinstance(part, RunningRange)]
    for part in ranges:
        part.momentum = 1.0
        part.train()
    module(images)
    for part in ranges:
        part.momentum = _MOMENTUM
        part.eval()
