"""Quantize an ONNX graph: ONNX Runtime's own quantizers for 8-bit arithmetic, and weights alone in 8 or 4 bits."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from ..errors import BadInput, CheckFailed
from ..types import Artifact, Calibrator, Precision, Quantized
from ._onnx_graph import FLOAT_LAYERS, check_named, count_quantized, fold_transposed_weights, layer_nodes, observe
from ._onnx_weights import store_weights_as_integers
from ._ranges import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_LARGEST_GROUP = 256
_SLOW_CONVOLUTION = "convolutions stay float in dynamic int8: as ConvInteger they take twice the time"


def quantize(
    model: onnx.ModelProto, draft: Artifact, calibration: NDArray[np.float32] | None, calibrator: Calibrator
) -> tuple[onnx.ModelProto, Quantized]:
    """Quantize a converted model as the draft says; return it with what was counted."""
    keep = draft.quantization.keep
    check_named(layer_nodes(model), draft)
    if draft.precision in (Precision.W8, Precision.W4):
        fold_transposed_weights(model)
        group = draft.quantization.group_size if draft.precision is Precision.W4 else None
        if group is not None and group > _LARGEST_GROUP:
            raise BadInput(f"ONNX Runtime's groups of 4-bit weights have at most {_LARGEST_GROUP}, not {group}.")
        after, unfit = store_weights_as_integers(model, keep, group, calibration)
        if group is not None and not any(node.op_type == "MatMulNBits" for node in after.graph.node):
            raise CheckFailed(
                f"{draft.display_name}: no product with a constant matrix of at least {group} rows is left, "
                "and ONNX Runtime has 4-bit weights for those alone; export w8."
            )
        return after, count_quantized(model, after, {**unfit, **keep})
    with tempfile.TemporaryDirectory() as directory:
        model = _prepared(model, Path(directory))
        check_named(layer_nodes(model), draft)
        if draft.precision is Precision.W8A8_DYNAMIC:
            after, slow = _dynamic(model, set(keep), Path(directory))
            return after, count_quantized(model, after, {**slow, **keep})
        assert calibration is not None  # checked by Target.export
        after = _static(model, set(keep), calibration, calibrator, Path(directory))
        return after, count_quantized(model, after, keep)


def _dynamic(model: onnx.ModelProto, keep: set[str], directory: Path) -> tuple[onnx.ModelProto, dict[str, str]]:
    """8-bit weights per output channel, activation ranges taken at run time, for MatMul and Gemm.

    Convolutions stay float: as ConvInteger they run, but edgenext_xx_small then takes 18.2 ms instead of 6.9 (float
    throughout: 8.1; 256 px, 2 threads, ONNX Runtime 1.31.1).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    layers = layer_nodes(model)
    slow = {name: _SLOW_CONVOLUTION for name, nodes in layers.items() if nodes[0].op_type.startswith("Conv")}
    names = _names(layers, keep | set(slow))
    if not names:  # no names would mean all
        return model, slow
    out = directory / "quantized.onnx"
    quantize_dynamic(
        model,
        out,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_quantize=[*names, *(f"{name}_MatMul" for name in names)],  # what it first makes of a Gemm
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return onnx.load(str(out)), slow


def _static(
    model: onnx.ModelProto,
    keep: set[str],
    calibration: NDArray[np.float32],
    calibrator: Calibrator,
    directory: Path,
) -> onnx.ModelProto:
    """8-bit weights per output channel and activations in calibrated ranges, for every layer that has weights.

    What has no weights stays float: normalisations, softmax, and products of two activations. With both products of
    an attention in 8 bits ONNX Runtime 1.31.1 fuses the softmax between them into QLinearSoftmax, and one file of a
    small ViT falls from 31.5 dB (optimizations off or basic) to 7.6 dB (its default). What a linear layer gives
    stays float too, and with it the sums around blocks: a DeiT trained on digits keeps 40.4 dB in 0.80 of the float
    file's time, against 38.0 dB in 0.91 with 8 bits there. Convolutions do give 8 bits: with float results ONNX
    Runtime computes them in float, and a RegNet trained on CIFAR-10 gains 4 dB but takes 1.23 of the float file's
    time in place of 0.85.

    Weights have all 8 bits. x86 CPUs without VNNI add pairs of products in 16 bits, which can saturate; there ONNX
    Runtime's `reduce_range` (7 bits) is the remedy, at the cost of accuracy everywhere else.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

    names = _names(layer_nodes(model), keep)
    if not names:  # no names would mean all
        return model
    chosen = [node for node in model.graph.node if node.name in set(names)]
    ranges = _ranges(model, chosen, calibration, calibrator)
    ends = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    cache, out = directory / "ranges.json", directory / "quantized.onnx"
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, ends), cache)
    quantize_static(
        model,
        out,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=sorted(FLOAT_LAYERS),
        nodes_to_quantize=names,
        calibration_cache_path=cache,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
    )
    return onnx.load(str(out))


def _names(layers: dict[str, list[onnx.NodeProto]], without: set[str]) -> list[str]:
    return [node.name for name, nodes in layers.items() if name not in without for node in nodes]


def _ranges(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], images: NDArray[np.float32], calibrator: Calibrator
) -> dict[str, tuple[float, float]]:
    """The range of every activation that these nodes read or write, from images (N, C, H, W)."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = {name for node in nodes for name in (*node.input[:2], *node.output) if name not in constants}
    seen = {name: Histogram() for name in names}
    for name, values in observe(model, names, images):
        seen[name].widen(values)
    if calibrator is not Calibrator.MINMAX:
        for name, values in observe(model, names, images):
            seen[name].fill(values)
    return {name: histogram.range(calibrator) for name, histogram in seen.items()}


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
