"""Which layers PyTorch's quantization takes, how it finds the ranges of activations, and weights alone as integers."""

from __future__ import annotations

import itertools
import math
import operator as operator_module
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver, PlaceholderObserver
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationConfig,
    QuantizationSpec,
    Quantizer,
)

from ..models.graph import KEEPS_WEIGHTS, LAYERS, Layer, operator
from ..types import Calibrator, group_of
from ._torch_program import layer_nodes, name_of

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

FEW = 4096  # weights of a layer
TAIL = 1e-4  # share of the values left outside at either end by the percentile calibrator
NOT_A_LAYER = "neither a convolution nor a linear layer"
KINDS = {"linear", "conv1d", "conv2d"}
_LEAST_SCALE = 2**-16
_TINY = 2.0**-100  # instead of a scale of zero


class PercentileObserver(HistogramObserver):
    """Leaves the outermost `TAIL` of the values at either end outside of the range."""

    def _non_linear_param_search(self) -> tuple[torch.Tensor, torch.Tensor]:
        below = torch.cumsum(self.histogram, 0) / self.histogram.sum()
        first = int((below <= TAIL).sum())  # the bin in which that share is passed
        last = int((below < 1 - TAIL).sum())
        width = (self.max_val - self.min_val) / self.bins
        return self.min_val + width * first, self.min_val + width * (min(last, self.bins - 1) + 1)


_OBSERVERS = {
    Calibrator.MSE: HistogramObserver,
    Calibrator.MINMAX: MinMaxObserver,
    Calibrator.PERCENTILE: PercentileObserver,
}


def eight_bits(activations: torch.dtype, calibrator: Calibrator | None) -> QuantizationConfig:
    """8-bit integers: weights with a scale for each row; activations in this type, dynamic without a calibrator.

    The backends' own configurations end at scales of 2^-12, where a row of weights below 0.03 loses bits.
    """
    dynamic = calibrator is None
    limits = torch.iinfo(activations)
    observer = PlaceholderObserver if calibrator is None else _OBSERVERS[calibrator]
    activation = QuantizationSpec(
        dtype=activations,
        quant_min=limits.min,
        quant_max=limits.max,
        qscheme=torch.per_tensor_affine,
        is_dynamic=dynamic,
        observer_or_fake_quant_ctr=observer.with_args(eps=_LEAST_SCALE),
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=_LEAST_SCALE),
    )
    return QuantizationConfig(activation, None if dynamic else activation, weight, None)


class LayerQuantizer(Quantizer):
    """Quantizes what goes into the layers named, and their weights; all between two layers stays float."""

    def __init__(self, names: Collection[str], config: QuantizationConfig) -> None:
        super().__init__()
        self.names = names
        self.config = config

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark the inputs of each layer."""
        for node in layer_nodes(model.graph):
            if name_of(node) in self.names and operator(node) in KINDS and node.args[1].op == "get_attr":
                specs = {node.args[0]: self.config.input_activation, node.args[1]: self.config.weight}
                node.meta["quantization_annotation"] = QuantizationAnnotation(input_qspec_map=specs, _annotated=True)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to refuse: other layers are counted as float."""


class EightBits(nn.Module):
    """A weight as 8-bit integers, with one scale for each row (first axis)."""

    integers: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        integers, scale = _around_zero(weight.flatten(1), 8, torch.float32)
        self.register_buffer("integers", integers.view(weight.shape))
        self.register_buffer("scale", scale.view(-1, *[1] * (weight.ndim - 1)))

    def forward(self) -> torch.Tensor:
        """Return the weight as floats."""
        return self.integers * self.scale


class FourBits(nn.Module):
    """A weight as 4-bit integers, two to a byte, with a scale and an offset for at most `group_size` of them.

    A row (all but the first axis) is cut into groups that divide it, else into as few of one even length as that
    takes; zeros fill the last.
    Without offsets a small network loses 2 dB more.
    """

    packed: torch.Tensor
    shifts: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, weight: torch.Tensor, group_size: int) -> None:
        super().__init__()
        self.shape = weight.shape
        rows = weight.flatten(1)
        self.length = rows.shape[1]
        groups = -(-self.length // group_of(self.length, group_size))
        pairs = -(-self.length // (2 * groups))
        rows = nn.functional.pad(rows, (0, 2 * pairs * groups - self.length))
        integers, scale, offset = _between(rows.view(-1, 2 * pairs))
        low, high = integers.view(-1, pairs, 2).unbind(-1)
        self.register_buffer("packed", (low | high << 4)[..., None])
        self.register_buffer("shifts", torch.tensor([0, 4], dtype=torch.uint8))
        self.register_buffer("scale", scale[..., None])
        self.register_buffer("offset", offset[..., None])

    def forward(self) -> torch.Tensor:
        """Return the weight as floats, in few operations: each takes a kilobyte of a .pt2."""
        steps = (self.packed >> self.shifts & 15).float()
        rows = torch.addcmul(self.offset, steps, self.scale).view(self.shape[0], -1)
        return rows[:, : self.length].reshape(self.shape) if rows.shape[1] > self.length else rows.view(self.shape)


def _between(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round each row to 0..15, with the bfloat16 scale and offset (rows, 1) that leave the least squared error."""
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    integers, scales, offsets = torch.zeros_like(rows), torch.ones_like(low), torch.zeros_like(low)
    shares = torch.linspace(0, 0.15, 6)  # of the range, cut off at either end: the steps of all others become finer
    for below, above in itertools.product(shares, shares):
        offset = (low + (high - low) * below).bfloat16().float()
        scale = ((high - low) * (1 - below - above) / 15).clamp(min=_TINY).bfloat16().float()
        steps = ((rows - offset) / scale).round().clamp(0, 15)
        error = (steps * scale + offset - rows).square().sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        integers, scales = torch.where(better, steps, integers), torch.where(better, scale, scales)
        offsets = torch.where(better, offset, offsets)
    return integers.to(torch.uint8), scales.bfloat16(), offsets.bfloat16()


def _around_zero(rows: torch.Tensor, bits: int, scales_in: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to signed integers, with the positive scale (rows, 1) that leaves the least squared error."""
    most = 2 ** (bits - 1) - 1
    peak = rows.abs().amax(1, keepdim=True)
    best = torch.full_like(peak, torch.inf)
    integers, scales = torch.zeros_like(rows), torch.ones_like(peak)
    for share in torch.linspace(1, 0.7, 16):
        scale = (peak * share / most).clamp(min=_TINY).to(scales_in).float()
        steps = (rows / scale).round().clamp(-most - 1, most)
        error = (steps * scale - rows).square().sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        integers, scales = torch.where(better, steps, integers), torch.where(better, scale, scales)
    return integers.to(torch.int8), scales


def weights_to_integers(module: GraphModule, groups: Mapping[str, int | None]) -> None:
    """Store the weights of the layers named as integers, in place; layers compute in float.

    groups: how many 4-bit weights share a scale; None for 8 bits, one scale for each row.
    """
    for source, (name, weight) in stored_weights(module, groups).items():
        size = groups[name]
        called = f"{source.name}_integers"
        module.add_submodule(called, EightBits(weight) if size is None else FourBits(weight, size))
        with module.graph.inserting_after(source):
            source.replace_all_uses_with(module.graph.call_module(called))
    module.graph.eliminate_dead_code()
    module.recompile()


def better_in_eight(layers: Sequence[Layer], classes: int) -> set[str]:
    """Layers for which 4 bits are not worth it.

    Those that see pixels or give the logits are small, and in 4 bits cost a small network 2.5 dB. Those of few weights
    take more room in 4 bits than in 8, for the operations that unpack them.
    """
    few = {layer.name for layer in layers if math.prod(layer.shape) < FEW}
    return few | {layers[0].name} | {layer.name for layer in layers if layer.shape[0] == classes} if layers else few


def stored_weights(module: GraphModule, names: Collection[str]) -> dict[Node, tuple[str, torch.Tensor]]:
    """The nodes that give the weights of the layers named, with the layer's name and its weight."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    found = {}
    for node in layer_nodes(module.graph):
        for index in LAYERS[operator(node)] if name_of(node) in names else ():
            source = node.args[index]
            while source.op == "call_function" and operator(source) in KEEPS_WEIGHTS:
                source = source.args[0]
            if source.op == "get_attr":
                found[source] = str(name_of(node)), tensors[source.target].detach()
                break
    return found


def four_bits_dynamic(module: GraphModule, names: Collection[str], group_size: int) -> None:
    """Give linear layers, in place, 4-bit weights in groups and 8-bit inputs with a range for each token at run time.

    The form is that of torchao's Int8DynamicActivationIntxWeightConfig, which XNNPACK knows. Rows must divide into
    groups.
    """
    ops = torch.ops.torchao
    for node in [node for node in layer_nodes(module.graph) if name_of(node) in names]:
        source, (_, weight) = next(iter(stored_weights(module, {str(name_of(node))}).items()))
        rows = weight.shape[0]
        integers, scale = _around_zero(weight.reshape(-1, group_size), 4, torch.bfloat16)
        scale = scale.view(rows, -1)
        parts = {
            "integers": integers.view(weight.shape),
            "scale": scale,
            "zero": torch.zeros_like(scale).to(torch.int8),
        }
        for part, tensor in parts.items():
            module.register_buffer(f"{source.name}_{part}", tensor)
        token = [1] * (node.meta["val"].ndim - 1) + [weight.shape[1]]
        call = module.graph.call_function
        with module.graph.inserting_before(node):
            limits = (torch.int8, -128, 127)
            ranges = call(
                ops.choose_qparams_affine.default,
                (node.args[0], "ASYMMETRIC", token, *limits, None, None, torch.int8),
            )
            found = tuple(call(operator_module.getitem, (ranges, i)) for i in range(2))
            steps = call(ops.quantize_affine.default, (node.args[0], token, *found, *limits))
            inputs = call(ops.dequantize_affine.default, (steps, token, *found, *limits))
            stored = tuple(module.graph.get_attr(f"{source.name}_{part}") for part in parts)
            block: tuple[Any, ...] = (stored[0], [1, group_size], *stored[1:], torch.int8, -8, 7)
            node.args = (inputs, call(ops.dequantize_affine.default, block), *node.args[2:])
    module.graph.eliminate_dead_code()
    module.recompile()
