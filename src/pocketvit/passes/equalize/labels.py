"""Where a tensor's channels go: labels pushed through the graph by the very operators that move the numbers.

A label tensor has the shape of the tensor it speaks of. It holds channel + 1 where a number is some channel of the
producer, times whatever does not depend on it; ZERO where it is zero; FOREIGN where it comes from elsewhere. Moves
(reshape, permute, roll, pad, cat...) are evaluated on the labels themselves, so no window partition or unfolding needs
code of its own. Only functions with f(s x) = s f(x) for every s > 0 let a channel pass.
"""

from __future__ import annotations

import operator as python
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...models.graph import operator

ZERO, FOREIGN = 0.0, -1.0

_MOVES = {
    "view", "reshape", "reshape_as", "view_as", "permute", "transpose", "t", "select", "unbind", "split", "chunk",
    "split_with_sizes", "slice", "narrow", "cat", "stack", "roll", "expand", "expand_as", "flip", "repeat",
    "contiguous", "clone", "squeeze", "unsqueeze", "flatten", "unflatten", "index_select", "index", "alias", "im2col",
    "_unsafe_view", "movedim", "swapaxes", "pixel_shuffle", "pixel_unshuffle",
}  # fmt: skip
_NOT_STRIDED = {"view": torch.reshape, "_unsafe_view": torch.reshape, "view_as": torch.Tensor.reshape_as}
_PADS = {"pad", "constant_pad_nd"}
_SAME = {"dropout", "dropout_", "feature_dropout", "detach", "detach_", "lift_fresh_copy"}
_CASTS = {"to", "_to_copy", "type_as"}
_FUNCTIONS = {"relu", "relu_", "leaky_relu", "leaky_relu_", "abs", "neg"}
_PRODUCTS = {"mul", "mul_"}
_QUOTIENTS = {"div", "div_"}
_MEANS = {"mean", "sum", "amax"}
_MAP_POOLS = {
    "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d",
}  # fmt: skip
_ATTENTION = "scaled_dot_product_attention"
_NOTHING = {"_assert_tensor_metadata"}


@dataclass(frozen=True, slots=True)
class Absorber:
    """A layer that can take scales in: input column c carries label columns[c] - 1, or nothing where it is 0."""

    node: Node
    weight: str
    bias: str | None
    columns: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Where the channels of a producer end, one flag for each channel.

    open: reaches layers and nothing else. shiftable: may be shifted as well, not only scaled. passed: went through a
    function or a product on the way. attended: was a value of attention. stops: the operators that other channels ran
    into.
    """

    open: Tensor
    shiftable: Tensor
    passed: Tensor
    attended: Tensor
    absorbers: Sequence[Absorber]
    stops: Set[str]


def follow(
    producer: Node,
    channels: int,
    axis: int,
    layers: Mapping[Node, tuple[str, str | None]],
    constants: Mapping[Node, Tensor],
) -> Reach:
    """Push the labels of a producer's channels, along `axis` of its result, to wherever they end.

    layers: the linear and convolution nodes whose weight (and bias) may be edited. constants: what index tensors hold.
    """
    walk = _Walk(producer, channels, axis, layers, constants)
    walk.run(producer)
    return Reach(
        open=walk.absorbed & ~walk.blocked,
        shiftable=~walk.fixed,
        passed=walk.passed,
        attended=walk.attended,
        absorbers=walk.absorbers,
        stops=walk.stops,
    )


class _Stopped(Exception):
    """No channel passes a node."""


class _Walk:
    """One producer's labels on their way; a step returns the labels of a node's result, None where nothing passes."""

    def __init__(
        self,
        producer: Node,
        channels: int,
        axis: int,
        layers: Mapping[Node, tuple[str, str | None]],
        constants: Mapping[Node, Tensor],
    ) -> None:
        self.layers, self.constants = layers, constants
        shape = producer.meta["val"].shape
        along = [1] * len(shape)
        along[axis] = channels
        labels = torch.arange(1, channels + 1, dtype=torch.float32).view(along).expand(shape)
        self.labels: dict[Node, Any] = {producer: labels}
        none = torch.zeros(channels, dtype=torch.bool)
        self.absorbed, self.blocked, self.fixed = none.clone(), none.clone(), none.clone()
        self.passed, self.attended = none.clone(), none.clone()
        self.absorbers: list[Absorber] = []
        self.stops: set[str] = set()

    def run(self, producer: Node) -> None:
        node = producer.next
        while node.op != "root":
            if any(argument in self.labels for argument in node.all_input_nodes):
                try:
                    found = self._step(node)
                except _Stopped:
                    self._stop(node)
                    found = None
                if found is not None:
                    self.labels[node] = found
            node = node.next

    def _step(self, node: Node) -> Any:
        kind = operator(node)
        if node.target is python.getitem:
            return self.labels[node.args[0]][node.args[1]]  # type: ignore[index]
        x = node.args[0] if node.args else None
        if kind in _MOVES or kind in _PADS:
            return self._moved(node, kind)
        if kind in _NOTHING:
            return None
        if kind in _PRODUCTS:
            return self._product(node)
        if kind == "matmul" or kind == "bmm":
            return self._matmul(node)
        if isinstance(x, Node) and x in self.labels and not self._elsewhere(node, x):
            labels = self.labels[x]
            if kind in _FUNCTIONS or kind in _QUOTIENTS:
                self._mark(labels, self.passed, self.fixed)
                return labels.expand(node.meta["val"].shape)
            if kind in _SAME and not (len(node.args) > 2 and node.args[2]):
                return labels
            if kind in _CASTS and node.meta["val"].is_floating_point():
                return labels
            if kind in _MEANS and len(node.args) > 1:
                return self._mean(node, labels, kind)
            if kind in _MAP_POOLS:
                self._mark(labels, self.fixed)
                return self._merged(labels, (-2, -1)).expand(node.meta["val"].shape)
            if node in self.layers:
                return self._absorb(node, labels)
        if kind == _ATTENTION:
            return self._attention(node)
        raise _Stopped

    def _moved(self, node: Node, kind: str) -> Any:
        """The labels moved as the numbers are: the same operator, with every other tensor as FOREIGN."""
        value = node.kwargs.get("value", node.args[3] if kind == "pad" and len(node.args) > 3 else None)
        if kind == "constant_pad_nd":
            value = node.args[2] if len(node.args) > 2 else 0
        if kind in _PADS and value:
            raise _Stopped

        def stand_in(argument: Node) -> Any:
            if argument in self.labels:
                return self.labels[argument]
            if argument in self.constants:
                held = self.constants[argument]
                return held if not held.is_floating_point() else torch.full(held.shape, FOREIGN)
            shape = argument.meta["val"].shape
            if not argument.meta["val"].is_floating_point():
                raise LookupError  # an index that is computed from the image
            return torch.full(shape, FOREIGN)

        try:
            arguments, named = torch.fx.map_arg((node.args, dict(node.kwargs)), stand_in)
        except LookupError as e:
            raise _Stopped from e
        move = _NOT_STRIDED.get(kind, node.target)  # labels need not lie in memory as the numbers do
        return move(*arguments, **named)  # type: ignore[operator]

    def _product(self, node: Node) -> Tensor:
        """A gate: one factor lets its channels pass, the other must not depend on them."""
        x, other = node.args[:2]
        if not isinstance(x, Node) or x not in self.labels:
            x, other = other, x
        assert isinstance(x, Node)
        if isinstance(other, Node) and other in self.labels:
            self._block(self.labels[other], "a product with itself")
        self._mark(self.labels[x], self.passed, self.fixed)
        return self.labels[x].expand(node.meta["val"].shape)

    def _matmul(self, node: Node) -> Tensor:
        first, second = node.args[:2]
        both = first in self.labels and second in self.labels
        if both or min(len(argument.meta["val"].shape) for argument in (first, second)) < 2:  # type: ignore[union-attr]
            raise _Stopped
        x, along = (second, -2) if second in self.labels else (first, -1)
        return self._weighed(node, self.labels[x], along)  # type: ignore[index]

    def _attention(self, node: Node) -> Tensor:
        """Values pass, queries, keys and masks do not."""
        for argument in node.all_input_nodes:
            if argument in self.labels and argument is not node.args[2]:
                self._block(self.labels[argument], "attention scores")
        values = node.args[2]
        assert isinstance(values, Node)
        if values not in self.labels or len({*node.args[:3]}) < 3:
            raise _Stopped
        shape, labels = node.meta["val"].shape, self.labels[values]
        if labels.shape[-3] != shape[-3]:  # grouped heads
            raise _Stopped
        return self._weighed(node, labels, -2)

    def _weighed(self, node: Node, labels: Tensor, along: int) -> Tensor:
        """Sums over one axis with weights that do not depend on the channels."""
        self._mark(labels, self.passed, self.fixed, self.attended)
        return self._merged(labels, (along,)).expand(node.meta["val"].shape)

    def _mean(self, node: Node, labels: Tensor, kind: str) -> Tensor:
        axes: Any = [node.args[1]] if isinstance(node.args[1], int) else node.args[1]
        if not axes:
            raise _Stopped
        if kind == "sum":
            self._mark(labels, self.fixed)
        return self._merged(labels, axes).reshape(node.meta["val"].shape)

    def _absorb(self, node: Node, labels: Tensor) -> None:
        """A layer whose input columns each carry one label; those that carry several stop there."""
        axis = labels.ndim - 1 if operator(node) == "linear" else 1
        others = tuple(i for i in range(labels.ndim) if i != axis)
        columns = self._merged(labels, others).flatten().clamp_min(0).long()
        weight, bias = self.layers[node]
        if bias is None or _pads(node):
            self._mark(columns, self.fixed)
        self._mark(columns, self.absorbed)
        self.absorbers.append(Absorber(node, weight, bias, columns))

    def _merged(self, labels: Tensor, axes: Sequence[int]) -> Tensor:
        """The one label along the axes (kept, of length 1); channels that meet others or foreign numbers stop."""
        highest = labels.amax(tuple(axes), keepdim=True)
        self._mark(highest[(labels == ZERO).amax(tuple(axes), keepdim=True)], self.fixed)  # a zero cannot be shifted
        conflict = (labels != highest) & (labels != ZERO)
        if conflict.any():
            mixed = conflict.amax(tuple(axes), keepdim=True)
            self._block(labels[mixed.expand(labels.shape)], "a sum over channels")
            highest = torch.where(mixed, FOREIGN, highest)
        return highest

    def _stop(self, node: Node) -> None:
        for argument in node.all_input_nodes:
            if argument in self.labels:
                held = self.labels[argument]
                for labels in held if isinstance(held, list | tuple) else [held]:
                    self._block(labels, operator(node) or getattr(node.target, "__name__", str(node.target)))

    def _block(self, labels: Tensor, why: str) -> None:
        if (labels > 0).any():
            self.stops.add(why)
        self._mark(labels, self.blocked)

    def _mark(self, labels: Tensor, *flags: Tensor) -> None:
        channels = labels.unique().long()
        for flag in flags:
            flag[channels[channels > 0] - 1] = True

    def _elsewhere(self, node: Node, x: Node) -> bool:
        """True where channels are read by another argument than the first too."""
        return any(other in self.labels for other in node.all_input_nodes if other is not x) or (
            [*node.args, *node.kwargs.values()].count(x) > 1
        )


def _pads(node: Node) -> bool:
    """True for a convolution that puts zeros around its map."""
    padding = node.args[4] if operator(node) != "linear" and len(node.args) > 4 else 0
    return any(padding) if isinstance(padding, list | tuple) else bool(padding) and padding != "valid"
