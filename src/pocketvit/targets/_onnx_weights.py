"""Weights stored as integers in an ONNX graph that computes in float: 8 bits per channel, or 4 bits in groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..types import group_of
from ._gptq import four_bits
from ._onnx_graph import layer_nodes, observe

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

_DOMAIN = "com.microsoft"  # of MatMulNBits


def store_weights_as_integers(
    model: onnx.ModelProto,
    keep: Collection[str],
    group_size: int | None = None,
    calibration: NDArray[np.float32] | None = None,
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy of `model` with integer weights; with a group size, 4 bits in groups where a product can hold them.

    8 bits: per output channel, a DequantizeLinear before the layer. With calibration images, groups are rounded by
    GPTQ. Returns also why a layer could not be, by name.
    """
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    graph, unfit, grouped = _Weights(copy), {}, []
    for name, nodes in layer_nodes(copy).items():
        for node in nodes if name not in keep else ():
            index = next((i for i in (1, 0) if node.input[i] in graph.stored), None)
            if index is None:
                unfit[name] = "its weights are computed from others, not stored"
            elif group_size is not None and _takes_groups(
                node, graph.stored[node.input[index]].dims, index, group_size
            ):
                grouped.append(node)
            else:
                graph.dequantize(node, index)
    if group_size is not None:
        moments = (
            {}
            if calibration is None or not grouped
            else _moments(model, {node.input[0] for node in grouped}, calibration)
        )
        for node in grouped:
            graph.group(node, group_size, moments.get(node.input[0]))
    graph.finish()
    return copy, unfit


def _moments(
    model: onnx.ModelProto, names: Collection[str], images: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Sum of x x^T over the rows x of each activation."""
    sums: dict[str, NDArray[np.float64]] = {}
    for name, values in observe(model, names, images):
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        sums[name] = sums.get(name, 0) + rows.T @ rows
    return sums


def _attributes(node: onnx.NodeProto) -> dict[str, float]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _takes_groups(node: onnx.NodeProto, shape: Collection[int], index: int, group_size: int) -> bool:
    """Whether MatMulNBits can stand for the node: a product with a constant matrix of at least a group's rows."""
    if node.op_type not in ("MatMul", "Gemm") or index != 1 or len(shape) != 2:
        return False
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **_attributes(node)}
    rows = tuple(shape)[1 if given["transB"] else 0]
    return rows >= group_size and (given["alpha"], given["beta"], given["transA"]) == (1.0, 1.0, 0)


def _channel_axis(node: onnx.NodeProto, index: int, rank: int) -> int:
    """The axis of a weight along which outputs are counted."""
    if node.op_type == "MatMul":
        return rank - 1 if index == 1 else rank - 2
    if node.op_type == "Gemm":
        return int(not _attributes(node).get("transB", 0)) if index == 1 else int(_attributes(node).get("transA", 0))
    return int(node.op_type == "ConvTranspose")


class _Weights:
    """The constants of a graph, and the nodes that take the place of those that read them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._instead: dict[str, list[onnx.NodeProto]] = {}  # by the name of the node replaced or preceded
        self._dequantized: dict[tuple[str, int], str] = {}

    def _add(self, name: str, values: NDArray[np.generic]) -> str:
        self._model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def dequantize(self, node: onnx.NodeProto, index: int) -> None:
        """Read the weight through a DequantizeLinear, 8 bits per output channel, symmetric."""
        name = node.input[index]
        weight = numpy_helper.to_array(self.stored[name])
        axis = _channel_axis(node, index, weight.ndim)
        before = []
        if (name, axis) not in self._dequantized:
            others = tuple(i for i in range(weight.ndim) if i != axis)
            scale = np.abs(weight).max(axis=others, initial=np.finfo(np.float32).tiny) / 127
            levels = np.round(weight / np.expand_dims(scale, others)).astype(np.int8)
            operands = [self._add(f"{name}_int8_{axis}", levels), self._add(f"{name}_scale_{axis}", scale)]
            self._dequantized[name, axis] = f"{name}_float_{axis}"
            before = [
                helper.make_node(
                    "DequantizeLinear", operands, [f"{name}_float_{axis}"], f"{node.name}_weight", axis=axis
                )
            ]
        node.input[index] = self._dequantized[name, axis]
        self._instead[node.name] = [*before, node]

    def group(self, node: onnx.NodeProto, size: int, moments: NDArray[np.float64] | None) -> None:
        """Replace the product by MatMulNBits, 4 bits with a scale and a zero point for at most `size` rows."""
        weight = numpy_helper.to_array(self.stored[node.input[1]])
        columns_NK = weight if _attributes(node).get("transB", 0) else weight.T
        bias = node.input[2] if len(node.input) > 2 else ""
        size = group_of(columns_NK.shape[1], size)
        rounded = four_bits(columns_NK, size, moments)
        name = f"{node.name}NBits"
        operands = [
            node.input[0],
            self._add(f"{name}_int4", _packed(rounded.levels)),
            self._add(f"{name}_scales", rounded.scales),
            self._add(f"{name}_zeros", _packed(rounded.zeros)),
        ]
        product = f"{name}_product" if bias else node.output[0]
        new = helper.make_node(
            "MatMulNBits", operands, [product], name, domain=_DOMAIN,
            K=columns_NK.shape[1], N=columns_NK.shape[0], bits=4, block_size=size,
        )  # fmt: skip
        added = [helper.make_node("Add", [product, bias], [node.output[0]], f"{name}_bias")] if bias else []
        self._instead[node.name] = [new, *added]

    def finish(self) -> None:
        """Put the new nodes in their places, and drop constants that nothing reads any more."""
        graph = self._model.graph
        nodes = [new for node in graph.node for new in self._instead.get(node.name, [node])]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        read = {name for node in copies for name in node.input}
        for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
            graph.initializer.remove(tensor)
        del graph.value_info[:]  # shapes of what was replaced
        if any(node.domain == _DOMAIN for node in copies) and _DOMAIN not in {
            o.domain for o in self._model.opset_import
        }:
            self._model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def _packed(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit values to a byte along the last axis, the first in the low half."""
    odd = values.shape[-1] % 2
    even = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, odd)])
    return (even[..., 0::2] | (even[..., 1::2] << 4)).astype(np.uint8)
