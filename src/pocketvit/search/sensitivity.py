"""How much is lost when one layer alone is quantized: rounding played through in PyTorch, alike for every runtime.

It only decides in which order layers are tried in float. What counts is the accuracy of the files made then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models.graph import Layer, capture, layers
from ..types import InputSpec, Precision, Progress, group_of, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WEIGHT_BITS = {Precision.W8: 8, Precision.W8A8: 8, Precision.W8A8_DYNAMIC: 8, Precision.W4: 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """One layer: the signal-to-noise ratio (dB) of the logits when only it is quantized, and its share of the work."""

    layer: str
    sqnr_db: float
    share: float  # of the model's multiplications, 0..1

    @property
    def order(self) -> float:
        """Noise it alone adds for each share of the work that keeping it float costs; what is most is kept first."""
        return 10 ** (-self.sqnr_db / 10) / max(self.share, 1e-6)


def sensitivities(
    module: nn.Module,
    spec: InputSpec,
    images: NDArray[np.float32],
    precision: Precision,
    group_size: int = 32,
    progress: Progress = silent,
) -> tuple[Sensitivity, ...]:
    """Quantize the layers of `module` one at a time on images (N, C, H, W) in [0, 1]; most worth keeping first.

    Weights round per output channel (in groups of `group_size` for w4), the layer's input per tensor: to the range
    seen on the images for w8a8, to each image's own for w8a8-dynamic, not at all for weight-only precisions.
    """
    program = capture(module, spec)
    graph = program.module()
    found = layers(program)
    by_node: dict[str, Layer] = {layer.node: layer for layer in found}
    batches = torch.from_numpy(images).split(1)
    with torch.inference_mode():
        watch = _Playing(graph, by_node, {}, precision, group_size)
        exact = [watch.run(image) for image in batches]
        signal = sum(float((logits**2).sum()) for logits in exact)
        total = sum(layer.macs for layer in found) or 1
        result = []
        names = dict.fromkeys(layer.name for layer in found)
        for done, name in enumerate(names):
            nodes = {node: layer for node, layer in by_node.items() if layer.name == name}
            play = _Playing(graph, nodes, watch.ranges, precision, group_size, rounding=True)
            noise = sum(
                float(((play.run(image) - logits) ** 2).sum()) for image, logits in zip(batches, exact, strict=True)
            )
            share = sum(layer.macs for layer in nodes.values()) / total
            db = 10 * math.log10(signal / noise) if noise else math.inf
            result.append(Sensitivity(layer=name, sqnr_db=db, share=share))
            progress("sensitivity of layers", done + 1, len(names))
    return tuple(sorted(result, key=lambda one: -one.order))


class _Playing(torch.fx.Interpreter):
    """Runs the graph with some layers' operands rounded, or, not rounding, notes the range of their inputs."""

    def __init__(
        self,
        graph: torch.fx.GraphModule,
        nodes: Mapping[str, Layer],
        ranges: dict[str, tuple[float, float]],
        precision: Precision,
        group_size: int,
        rounding: bool = False,
    ) -> None:
        super().__init__(graph)
        self.nodes = nodes
        self.ranges = ranges
        self.precision = precision
        self.group_size = group_size
        self.rounding = rounding

    def run_node(self, node: torch.fx.Node) -> Any:
        layer = self.nodes.get(node.name)
        if layer is None:
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        weight, given = layer.operand, layer.given
        if not self.rounding:
            low, high = self.ranges.get(node.name, (0.0, 0.0))
            seen = args[given]
            self.ranges[node.name] = (min(low, float(seen.min())), max(high, float(seen.max())))
            return node.target(*args, **kwargs)  # type: ignore[operator]
        rounded = list(args)
        # no runtime packs the weights of convolutions in 4 bits
        bits = 8 if layer.kind.startswith("conv") else _WEIGHT_BITS[self.precision]
        rounded[weight] = _rounded_weight(args[weight], bits, self.group_size)
        if self.precision is Precision.W8A8:
            rounded[given] = _rounded(args[given], *self.ranges[node.name])
        elif self.precision is Precision.W8A8_DYNAMIC:
            rounded[given] = _rounded(args[given], float(args[given].min()), float(args[given].max()))
        return node.target(*rounded, **kwargs)  # type: ignore[operator]


def _rounded(x: Tensor, low: float, high: float) -> Tensor:
    """Per tensor, 256 levels from low to high, zero among them."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    zero = round(-low / scale)
    return (torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero) * scale


def _rounded_weight(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Symmetric per row (output channel); 4 bits in groups along the row, where they divide it."""
    rows = weight.reshape(weight.shape[0], -1)
    size = group_of(rows.shape[1], group_size)
    grouped = bits == 4 and rows.shape[1] % size == 0
    split = rows.reshape(rows.shape[0], -1, size) if grouped else rows.unsqueeze(1)
    most = 2 ** (bits - 1) - 1 if grouped or bits == 8 else 127
    scale = split.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / most
    return (torch.round(split / scale).clamp(-most, most) * scale).reshape(weight.shape)
