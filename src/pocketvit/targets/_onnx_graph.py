"""Work on an ONNX graph: ONNX Runtime's quantizers, counting what they did, and removing what should not travel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from ..types import Quantized

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLOAT_LAYERS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
_INTEGER_LAYERS = {"MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "QLinearConv"}
_KEEPS_WEIGHTS = {"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze"}
_INTEGERS = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the exporter's stack traces (they name files of the machine that exported) from every part, in place."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in model.functions:
        for part in (function, *function.node):
            del part.metadata_props[:]
            part.doc_string = ""
    model.doc_string = ""
    return model


def quantize_dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    """8-bit weights per output channel, activation ranges taken at run time, for MatMul and Gemm.

    Convolutions stay float: as ConvInteger they run, but edgenext_xx_small then takes 18.2 ms instead of 6.9 (float
    throughout: 8.1; 256 px, 2 threads, ONNX Runtime 1.31.1).
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "quantized.onnx"
        quantize(
            _prepared(model, Path(directory)),
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return onnx.load(str(out))


def quantize_static(model: onnx.ModelProto, calibration: NDArray[np.float32]) -> onnx.ModelProto:
    """8-bit weights per output channel and activations in calibrated ranges, for every layer that has weights.

    Products of two activations (attention) stay float. With both products of an attention in 8 bits ONNX Runtime
    1.31.1 fuses the softmax between them into QLinearSoftmax, and one file of a small ViT falls from 31.5 dB
    (optimizations off or basic) to 7.6 dB (its default); either product alone, without that fusion, costs nothing.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Images(CalibrationDataReader):
        """Feeds the calibration images one by one."""

        def __init__(self) -> None:
            self._images = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            """Return the next image as a batch of one."""
            image = next(self._images, None)
            return None if image is None else {"image": np.ascontiguousarray(image[None], np.float32)}

    with tempfile.TemporaryDirectory() as directory:
        prepared = _prepared(model, Path(directory))
        out = Path(directory) / "quantized.onnx"
        quantize(
            prepared,
            out,
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=sorted(_FLOAT_LAYERS),
            nodes_to_quantize=[node.name for node, _ in _layers(prepared)],
        )
        return onnx.load(str(out))


def _prepared(model: onnx.ModelProto, directory: Path) -> onnx.ModelProto:
    """Fold constants and batch norms as ONNX Runtime's quantizers expect, and drop the shapes that makes stale."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    before, after = directory / "float.onnx", directory / "prepared.onnx"
    onnx.save(model, str(before))
    quant_pre_process(before, after, skip_symbolic_shape=True)
    prepared = onnx.load(str(after))
    del prepared.graph.value_info[:]  # shapes from before a Gemm was turned round make the quantizer's inference fail
    for i, node in enumerate(prepared.graph.node):
        node.name = node.name or f"node_{i}"
    return prepared


def count_quantized(model: onnx.ModelProto) -> Quantized:
    """Count layers with constant weights whose weights are stored as 8-bit integers, of all layers with weights."""
    kinds = [integer for _, integer in _layers(model)]
    return Quantized(layers=sum(kinds), of=len(kinds))


def _layers(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """Yield each node with constant weights, and whether they are 8-bit integers."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in _FLOAT_LAYERS:
            found = [t for name in node.input[:2] if (t := _stored_type(name, types, producers)) is not None]
        elif node.op_type in _INTEGER_LAYERS:
            found = [types[name] for name in node.input if types.get(name) in _INTEGERS]
        else:
            continue
        if found:
            yield node, found[0] in _INTEGERS


def _stored_type(name: str, types: dict[str, int], producers: dict[str, onnx.NodeProto]) -> int | None:
    """Data type in which a value is stored, seen through reshapes and DequantizeLinear; None for an activation."""
    while name not in types:
        node = producers.get(name)
        if node is None or node.op_type not in _KEEPS_WEIGHTS | {"DequantizeLinear"}:
            return None
        name = node.input[0]
    return types[name]
