"""What is measured, the scales and shifts that follow from it, and the edit of the parameters, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from ...models.graph import operator
from .labels import Absorber
from .pairs import Pair
from .running import OWN, run

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# A scale of 256 takes a weight of 0.02 to 8e-5, the least that fp16 holds with all its digits.
LIMIT = 256.0


@dataclass(slots=True)
class Range:
    """Least and greatest value that each input column of a layer held, float64."""

    low: Tensor
    high: Tensor


def input_ranges(program: ExportedProgram, images: NDArray[np.float32]) -> dict[Node, Range]:
    """Ranges of what every linear and convolution reads, over the images."""
    found: dict[Node, Range] = {}

    def visit(node: Node, x: Tensor) -> None:
        axis = x.ndim - 1 if operator(node) == "linear" else 1
        rows = x.detach().double().movedim(axis, 0).flatten(1)
        low, high = rows.amin(1), rows.amax(1)
        if node in found:
            low, high = torch.minimum(low, found[node].low), torch.maximum(high, found[node].high)
        found[node] = Range(low, high)

    run(program, images, visit)
    return found


class Editor:
    """The parameters of a model, in float64, while pairs are equalised one after the other.

    module: the captured one, which stays as it is. ranges: what layers read, kept true as the pairs change it;
    smooth and reparameterize need them, edit does not.
    """

    def __init__(self, module: nn.Module, ranges: Mapping[Node, Range] = MappingProxyType({})) -> None:
        self.weights = {name: p.detach().double().clone() for name, p in module.named_parameters()}
        self.ranges = ranges
        self.edited: set[str] = set()

    def write(self, module: nn.Module) -> None:
        """Store what was edited in the user's own module."""
        with torch.no_grad():
            for name in self.edited:
                module.get_parameter(name.removeprefix(OWN)).copy_(self.weights[name])

    def smooth(self, pair: Pair, strength: float) -> None:
        """Move a share of each channel's outliers into the weights (SmoothQuant, arXiv 2211.10438, equation 4).

        s = max|x|^strength / max|w|^(1 - strength), over all layers that read the channel, then divided by its
        geometric mean, so that the whole keeps its size.
        """
        low, high = self._bounds(pair)
        largest, weight = torch.maximum(low.abs(), high.abs()), self._largest_weights(pair)
        live = pair.channels & (largest > 0) & (weight > 0)
        if not live.any():
            return
        scale = torch.ones_like(largest)
        scale[live] = largest[live] ** strength / weight[live] ** (1 - strength)
        scale[live] = (scale[live] / scale[live].log().mean().exp()).clamp(1 / LIMIT, LIMIT)
        self.edit(pair, scale, torch.zeros_like(scale))

    def reparameterize(self, pair: Pair) -> None:
        """Give all channels one range, and so one scale and zero point (RepQ-ViT, arXiv 2212.08254, equations 7-10).

        Where a layer cannot take in a shift (no bias, or zeros around its map), one largest magnitude.
        """
        shifts = bool((pair.shiftable | ~pair.channels).all())
        low, high = self._bounds(pair)
        width = high - low if shifts else torch.maximum(high.abs(), low.abs())
        live = pair.channels & (width > 0)
        if not live.any():
            return
        scale, shift = torch.ones_like(width), torch.zeros_like(width)
        scale[live] = (width[live] / width[live].mean()).clamp(1 / LIMIT, LIMIT)
        if shifts:
            zero = (
                (-low[live] / width[live]).clamp(0, 1).mean()
            )  # the zero point that all get, as a share of the range
            shift[live] = low[live] + zero * width[live]
        self.edit(pair, scale, shift)

    def _bounds(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Least and greatest value of each channel, wherever it is read; zero where it is not."""
        low = torch.zeros(len(pair.channels), dtype=torch.float64)
        high = torch.zeros_like(low)
        read = [_read(absorber) for absorber in pair.reach.absorbers]
        held = [self.ranges[absorber.node] for absorber in pair.reach.absorbers]
        channels = torch.cat([channels for _, channels in read])
        lows = torch.cat([one.low[columns] for one, (columns, _) in zip(held, read, strict=True)])
        highs = torch.cat([one.high[columns] for one, (columns, _) in zip(held, read, strict=True)])
        low.scatter_reduce_(0, channels, lows, "amin", include_self=False)
        high.scatter_reduce_(0, channels, highs, "amax", include_self=False)
        return low, high

    def _largest_weights(self, pair: Pair) -> Tensor:
        """Largest magnitude of the weights that each channel is multiplied by, in all layers that read it."""
        largest = torch.zeros(len(pair.channels), dtype=torch.float64)
        for absorber in pair.reach.absorbers:
            columns, channels = _read(absorber)
            by_column = _by_column(self.weights[absorber.weight], absorber).abs().amax((1, 3)).flatten()
            largest.scatter_reduce_(0, channels, by_column[columns], "amax")
        return largest

    def edit(self, pair: Pair, scale: Tensor, shift: Tensor) -> None:
        """Make the producer give (y - shift) / scale, and whatever reads it undo that.

        scale, shift: one float64 for each channel of the producer; 1 and 0 outside pair.channels and pair.shiftable.
        """
        self.edited |= pair.parameters
        weight = self.weights[pair.scale]
        weight.div_(scale.reshape(weight.shape if weight.numel() == len(scale) else (-1, *[1] * (weight.ndim - 1))))
        if pair.shift is not None:
            self.weights[pair.shift].sub_(shift).div_(scale)
        for absorber in pair.reach.absorbers:
            columns, channels = _read(absorber)
            factors = torch.ones(len(absorber.columns), dtype=torch.float64)
            offsets = torch.zeros_like(factors)
            factors[columns], offsets[columns] = scale[channels], shift[channels]
            if absorber.node in self.ranges:
                held = self.ranges[absorber.node]
                held.low.sub_(offsets).div_(factors)
                held.high.sub_(offsets).div_(factors)
            by_column = _by_column(self.weights[absorber.weight], absorber)
            across = (len(by_column), 1, by_column.shape[2], 1)
            if absorber.bias is not None and offsets.any():
                self.weights[absorber.bias] += (by_column * offsets.view(across)).sum((2, 3)).flatten()
            by_column *= factors.view(across)


def _read(absorber: Absorber) -> tuple[Tensor, Tensor]:
    """The columns of a layer that hold a channel of the producer, and those channels."""
    columns = absorber.columns.nonzero().flatten()
    return columns, absorber.columns[columns] - 1


def _by_column(weight: Tensor, absorber: Absorber) -> Tensor:
    """A view of a weight as (groups, rows of a group, input columns of a group, kernel)."""
    groups = len(absorber.columns) // weight.shape[1]
    return weight.view(groups, len(weight) // groups, weight.shape[1], -1)
