"""Convert a program to OpenVINO with its layers named as in the module, quantize with NNCF, count what it did."""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from ..errors import CheckFailed
from ..types import Artifact, Calibrator, Precision, Quantized
from ._signal_stack import signal_stack_kept

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch.export import ExportedProgram
    from torch.fx import Node

DYNAMIC_GROUP = 32  # neighbours of an activation that share a range found at run time, as OpenVINO itself chooses
_GPTQ_IMAGES = 32  # NNCF holds what every layer read of them in memory
_LAYERS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
_KEEPS_WEIGHTS = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize", "Unsqueeze", "Squeeze"}
_INTEGERS = {"i8", "u8", "i4", "u4"}
_MARK = "pocketvit.layer"


def convert(program: ExportedProgram) -> Any:
    """Convert, and rename each operation with weights to layer and operator, `blocks.0.attn.qkv/MatMul`.

    The decoder is told of every operation it makes and for which node; OpenVINO copies what is noted there to the
    operation that takes the place of others, where it folds a batch norm into a convolution for one.
    """
    import openvino
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    def mark(decoder: Any, operation: Any) -> None:
        node = getattr(decoder, "pt_module", None)
        if operation.get_type_name() in _LAYERS and node is not None and (layer := _layer_of(node)):
            operation.get_rt_info()[_MARK] = layer

    with _quiet():
        decoder = TorchFXPythonDecoder.from_exported_program(program)
    decoder.mark_node_callback = mark
    model = openvino.convert_model(decoder)
    uses: dict[str, int] = defaultdict(int)
    for operation in model.get_ordered_ops():
        notes = operation.get_rt_info()
        if operation.get_type_name() in _LAYERS and _MARK in notes:
            name = f"{notes[_MARK].astype(str)}/{operation.get_type_name()}"
            uses[name] += 1
            operation.set_friendly_name(name if uses[name] == 1 else f"{name}_{uses[name]}")
            del notes[_MARK]
    return model


def _layer_of(node: Node) -> str | None:
    """The layer whose weight an operator reads; None where it has none."""
    import torch

    from ..models.graph import KEEPS_WEIGHTS, LAYERS, operator, owner

    for index in LAYERS.get(operator(node), ()):
        operand = node.args[index]
        while isinstance(operand, torch.fx.Node) and operator(operand) in KEEPS_WEIGHTS:
            operand = operand.args[0]
        if isinstance(operand, torch.fx.Node) and operand.op == "get_attr":
            return owner(str(operand.target))
    return None


def quantize(
    model: Any, draft: Artifact, calibration: NDArray[np.float32] | None, calibrator: Calibrator
) -> tuple[Any, Quantized]:
    """Quantize a converted model as the draft says; return it with what was counted."""
    import nncf

    layers = layer_operations(model)
    keep = [op.get_friendly_name() for name in draft.quantization.keep for op in layers.get(name, ())]
    ignored = nncf.IgnoredScope(names=keep)
    _check_named(layers, draft)
    with signal_stack_kept(), _quiet():
        if draft.precision is Precision.W8A8:
            assert calibration is not None  # checked by Target.export
            after = _static(model, calibration, calibrator, ignored)
        elif draft.precision is Precision.W4:
            after = _four_bits(model, draft.quantization.group_size, calibration, ignored)
        else:
            after = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=ignored)
    return after, _count(layers, after, draft.quantization.keep)


def _check_named(layers: Mapping[str, list[Any]], draft: Artifact) -> None:
    """Raise CheckFailed where a layer to keep is missing while others have lost their names: it may be one of them."""
    lost = [name for name in draft.quantization.keep if name not in layers]
    nameless = [name for name, found in layers.items() if any("/" not in op.get_friendly_name() for op in found)]
    if lost and nameless:
        raise CheckFailed(
            f"{draft.display_name}: {', '.join(lost)} cannot be kept float, because layers lost their names in the "
            f"conversion ({', '.join(nameless)}); export without keeping it."
        )


def _static(model: Any, calibration: NDArray[np.float32], calibrator: Calibrator, ignored: Any) -> Any:
    """Weights and activations in 8 bits, with smooth quantization and bias correction (NNCF's transformer preset)."""
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Ranges

    ranges = {
        Calibrator.MINMAX: Ranges.MINMAX,
        Calibrator.PERCENTILE: Ranges.MEAN_QUANTILE,
        Calibrator.MSE: Ranges.HISTOGRAM,
    }
    return nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in calibration]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
        ignored_scope=ignored,
        advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges[calibrator]),
    )


def _four_bits(model: Any, group_size: int, calibration: NDArray[np.float32] | None, ignored: Any) -> Any:
    """4-bit products in groups with a zero point, by GPTQ (arXiv 2210.17323) where images are given; the rest 8-bit.

    A small DeiT keeps 40.6 dB with GPTQ, 31.7 without, and less with NNCF's AWQ and scale estimation (30.5).
    """
    import nncf
    from nncf.quantization.advanced_parameters import GroupSizeFallbackMode

    images = None if calibration is None else [image[None] for image in calibration[:_GPTQ_IMAGES]]
    return nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=group_size,
        ratio=1.0,
        all_layers=True,
        gptq=bool(images),
        dataset=nncf.Dataset(images) if images else None,
        subset_size=len(images or [0]),
        ignored_scope=ignored,
        advanced_parameters=nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=16
        ),
    )


def layer_operations(model: Any) -> dict[str, list[Any]]:
    """The operations with constant weights, by layer."""
    found = defaultdict(list)
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in _LAYERS and _stored_type(operation):
            found[operation.get_friendly_name().partition("/")[0]].append(operation)
    return dict(found)


def _count(layers: Mapping[str, list[Any]], after: Any, reasons: Mapping[str, str]) -> Quantized:
    """Count layers whose weights are all stored as integers, of those the float model had; the rest with reasons."""
    integers = {
        name
        for name, operations in layer_operations(after).items()
        if all(_stored_type(operation) in _INTEGERS for operation in operations)
    }
    kept = {name: reasons.get(name) or _reason(found[0]) for name, found in layers.items() if name not in integers}
    return Quantized(layers=len(layers) - len(kept), of=len(layers), kept=kept)


def _reason(operation: Any) -> str:
    """Why NNCF left an operation float that it was not asked to."""
    sides = list(operation.get_output_partial_shape(0))[2:]
    if "Convolution" in operation.get_type_name() and all(side == 1 for side in sides):
        return "works on one pixel: NNCF leaves the gates of squeeze-and-excitation float"
    return "left float by NNCF"


def _stored_type(operation: Any) -> str | None:
    """Element type of the constant that an operation reads; None where it reads activations alone."""
    for index in range(2):
        node = operation.input_value(index).get_node()
        while node.get_type_name() in _KEEPS_WEIGHTS:
            node = node.input_value(0).get_node()
        if node.get_type_name() == "Constant":
            return str(node.get_element_type().get_type_name())
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep libraries from talking: the decoder warns of operators no model has, NNCF prints tables and progress."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
