"""An ONNX graph from a module, its layers named as in the module, and nothing in it that should not travel.

Every operator that carries weights is called after its layer, `blocks.0.attn.qkv/MatMul`. ONNX Runtime's tools keep
what stands before the slash through fusing, folding and quantizing, so the file's layers stay known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from ..errors import CheckFailed
from ..types import Quantized

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ..types import Artifact

FLOAT_LAYERS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
_INTEGER_LAYERS = {"MatMulInteger", "ConvInteger", "MatMulNBits"}
_KEEPS_WEIGHTS = {"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze", "Expand", "DequantizeLinear"}
_INTEGERS = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
_MARK = "pocketvit.layer"


def convert(module: torch.nn.Module, draft: Artifact) -> onnx.ModelProto:
    """Export through torch.export (dynamo), each layer's node named after the module that holds its weight."""
    import torch

    image = torch.zeros(1, *draft.spec.size)
    program = torch.onnx.export(
        module,
        (image,),
        dynamo=True,
        optimize=False,  # weights still have the names of their parameters
        input_names=["image"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None  # only without dynamo
    _mark_layers(program)
    program.optimize()  # folds batch norms and transposes; a fused node keeps the marks of its parts
    model = program.model_proto
    _name_layers(model)
    return without_traces(model)


def _mark_layers(program: torch.onnx.ONNXProgram) -> None:
    """Note at every node with weights the layer whose weights they are."""
    from ..models.graph import owner

    for node in program.model.graph:
        if node.op_type not in FLOAT_LAYERS:
            continue
        for value in node.inputs[:2]:
            while value is not None and (before := value.producer()) and before.op_type in _KEEPS_WEIGHTS:
                value = before.inputs[0]
            if value is not None and value.is_initializer() and value.name:
                node.metadata_props[_MARK] = owner(value.name)


def _name_layers(model: onnx.ModelProto) -> None:
    """Rename marked nodes to their layer and operator, with a number where a layer is computed more than once."""
    uses: dict[str, int] = defaultdict(int)
    for node in model.graph.node:
        for prop in node.metadata_props:
            if prop.key == _MARK:
                name = f"{prop.value}/{node.op_type}"
                uses[name] += 1
                node.name = name if uses[name] == 1 else f"{name}_{uses[name]}"


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


def layer_nodes(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes with constant weights, by layer, in the order they are computed."""
    found = defaultdict(list)
    for node, _ in _weighted(model):
        found[layer_of(node)].append(node)
    return dict(found)


def layer_of(node: onnx.NodeProto) -> str:
    """The layer a node computes; its own name where the exporter made it of something else."""
    return node.name.partition("/")[0]


def check_named(layers: Mapping[str, Sequence[onnx.NodeProto]], draft: Artifact) -> None:
    """Raise CheckFailed where a layer to keep is missing while others have lost their names: it may be one of them.

    One that is missing alone was computed from constants, and folded into one.
    """
    lost = [name for name in draft.quantization.keep if name not in layers]
    nameless = [name for name, nodes in layers.items() if any("/" not in node.name for node in nodes)]
    if lost and nameless:
        raise CheckFailed(
            f"{draft.display_name}: {', '.join(lost)} cannot be kept float, because layers lost their names in the "
            f"conversion ({', '.join(nameless)}); export without keeping it."
        )


def count_quantized(before: onnx.ModelProto, after: onnx.ModelProto, reasons: Mapping[str, str]) -> Quantized:
    """Count layers whose weights are all stored as integers, of those the float graph had; the rest with reasons."""
    layers = layer_nodes(before)
    stored: dict[str, list[bool]] = defaultdict(list)
    for node, integer in _weighted(after):
        stored[layer_of(node)].append(integer)
    integers = {name for name, kinds in stored.items() if all(kinds)}
    kept = {
        name: reasons.get(name, "left float by ONNX Runtime's quantizer") for name in layers if name not in integers
    }
    return Quantized(layers=len(layers) - len(kept), of=len(layers), kept=kept)


def _weighted(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, bool]]:
    """Each node with constant weights, and whether they are integers."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    nodes = []
    for node in model.graph.node:
        if node.op_type in FLOAT_LAYERS:
            found = [types[name] for operand in node.input[:2] if (name := _stored(operand, types, producers))]
        elif node.op_type in _INTEGER_LAYERS:
            found = [types[name] for name in node.input if types.get(name) in _INTEGERS]
        else:
            continue
        if found:
            nodes.append((node, found[0] in _INTEGERS))
    return nodes


def _stored(name: str, types: Mapping[str, int], producers: Mapping[str, onnx.NodeProto]) -> str | None:
    """The constant behind a value, seen through what only reshapes or dequantizes it; None for an activation."""
    while name not in types:
        node = producers.get(name)
        if node is None or node.op_type not in _KEEPS_WEIGHTS:
            return None
        name = node.input[0]
    return name


def fold_transposed_weights(model: onnx.ModelProto) -> None:
    """Store weights as layers read them, in place: the exporter leaves a Transpose before weights it finds large."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    read_by: dict[str, int] = defaultdict(int)
    for node in model.graph.node:
        for name in node.input:
            read_by[name] += 1
    for node in [node for node in model.graph.node if node.op_type in FLOAT_LAYERS]:
        for name in node.input[:2]:
            before = producers.get(name)
            if before is None or before.op_type != "Transpose" or before.input[0] not in stored:
                continue
            weight = stored[before.input[0]]
            order = next((list(a.ints) for a in before.attribute if a.name == "perm"), None)
            folded = onnx.numpy_helper.from_array(np.transpose(onnx.numpy_helper.to_array(weight), order).copy(), name)
            if read_by[weight.name] == 1:
                model.graph.initializer.remove(weight)
            model.graph.node.remove(before)
            model.graph.initializer.append(folded)
            stored[name] = folded
            del producers[name]


def observe(
    model: onnx.ModelProto, names: Collection[str], images: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each of these tensors, by name, for one image (C, H, W) after the other."""
    import onnxruntime

    observed = onnx.ModelProto.FromString(model.SerializeToString())
    inside = sorted(name for name in names if name != "image")
    del observed.graph.output[:]
    observed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inside
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(observed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for image in images:
        batch = np.ascontiguousarray(image[None], np.float32)
        if "image" in names:
            yield "image", batch
        yield from zip(inside, session.run(inside, {"image": batch}), strict=True)
