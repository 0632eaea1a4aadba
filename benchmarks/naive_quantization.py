"""The recipes that each runtime's own quick start gives, on the same model and images: what ours is compared with."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketvit.models.graph import capture
from pocketvit.targets import TARGETS, Target
from pocketvit.types import METADATA_KEY, Artifact, Precision, Quantized

# isort: split
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Images = NDArray[np.float32] | None


def naive(target: Target, precision: Precision) -> Target | None:
    """The target with the stock recipe in place of ours; None where there is no such recipe."""
    write = _RECIPES.get((target.name, precision))
    return None if write is None else dataclasses.replace(target, write=write)


def _onnx(module: nn.Module, draft: Artifact, calibration: Images) -> Artifact:
    """quantize_static or quantize_dynamic on the float file with every argument left at its default."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):
        """One image after the other."""

        def __init__(self) -> None:
            self.images = iter(calibration if calibration is not None else ())

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            """The next image, None after the last."""
            image = next(self.images, None)
            return None if image is None else {"image": image[None]}

    with tempfile.TemporaryDirectory() as directory:
        before, after = Path(directory) / "float.onnx", Path(directory) / "quantized.onnx"
        program = torch.onnx.export(
            module,
            (torch.zeros(1, *draft.spec.size),),
            dynamo=True,
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        onnx.save(program.model_proto, str(before))
        if draft.precision is Precision.W8A8:
            quantize_static(before, after, Reader())
        else:
            quantize_dynamic(before, after)
        model = onnx.load(str(after))
    artifact = dataclasses.replace(draft, quantized=Quantized(layers=1, of=1))
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=artifact.to_json())
    artifact.path.write_bytes(model.SerializeToString())
    return artifact


def _openvino(module: nn.Module, draft: Artifact, calibration: Images) -> Artifact:
    """nncf.quantize with its defaults: no model type, so every operation that can be is quantized."""
    import nncf
    import openvino

    assert calibration is not None
    model = openvino.convert_model(capture(module, draft.spec))
    model.inputs[0].get_tensor().set_names({"image"})
    model.outputs[0].get_tensor().set_names({"logits"})
    model.reshape({"image": [1, *draft.spec.size]})
    model = nncf.quantize(model, nncf.Dataset([image[None] for image in calibration]))
    artifact = dataclasses.replace(draft, quantized=Quantized(layers=1, of=1))
    model.set_rt_info(artifact.to_json(), [METADATA_KEY])
    openvino.save_model(model, str(draft.path), compress_to_fp16=False)
    return artifact


def _executorch(module: nn.Module, draft: Artifact, calibration: Images) -> Artifact:
    """PT2E with XNNPACKQuantizer's default configuration set globally."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    assert calibration is not None
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    with torch.no_grad():
        prepared = prepare_pt2e(capture(module, draft.spec).module(), quantizer)
        for image in torch.from_numpy(calibration):
            prepared(image[None])
        converted: Any = convert_pt2e(prepared)
        program = torch.export.export(converted, (torch.zeros(1, *draft.spec.size),))
    artifact = dataclasses.replace(draft, quantized=Quantized(layers=1, of=1))
    edge = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_KEY: artifact.to_json()}
    )
    artifact.path.write_bytes(edge.to_executorch().buffer)
    return artifact


_RECIPES: dict[tuple[str, Precision], Callable[[nn.Module, Artifact, Images], Artifact]] = {
    ("onnx", Precision.W8A8): _onnx,
    ("onnx", Precision.W8A8_DYNAMIC): _onnx,
    ("openvino", Precision.W8A8): _openvino,
    ("executorch", Precision.W8A8): _executorch,
}

assert {name for name, _ in _RECIPES} <= set(TARGETS)
