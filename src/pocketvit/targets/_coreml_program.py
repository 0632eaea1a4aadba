"""Reading an ML program (MIL) as stored in a package, and teaching the converter operators it lacks."""

from __future__ import annotations

import math
from typing import Any

from ..types import Quantized

_LAYERS = {"conv": "weight", "conv_transpose": "weight", "linear": "weight", "matmul": "y"}
_KEEPS_WEIGHTS = {"transpose", "reshape", "cast", "squeeze", "expand_dims", "identity"}


def register_missing_operators() -> None:
    """Teach coremltools `alias`, which Swin exports: the same tensor under another name."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY, register_torch_op

    if "alias" in _TORCH_OPS_REGISTRY:
        return

    @register_torch_op
    def alias(context: Any, node: Any) -> None:
        (x,) = _get_inputs(context, node, expected=1)
        context.add(Builder.identity(x=x, name=node.name))


def program(spec: Any) -> list[Any]:
    """Operations of the main function."""
    main = spec.mlProgram.functions["main"]
    return list(main.block_specializations[main.opset].operations)


def stored_elements(spec: Any) -> dict[str, int]:
    """Number of weight elements by stored type (FLOAT32, FLOAT16, INT8...), scalars and shape arguments left out.

    A constexpr counts as the type of what it unpacks.
    """
    found: dict[str, int] = {}
    for op in program(spec):
        if op.type.startswith("constexpr"):
            size, kind = _size(op), _type_name(op.attributes["quantized_data"])
        elif op.type == "const" and (kind := _type_name(op.attributes["val"])).startswith("FLOAT"):
            size = _size(op)
        else:
            continue
        if size > 1:
            found[kind] = found.get(kind, 0) + size
    return found


def layers(spec: Any) -> Quantized:
    """Count convolutions, linears and products with a constant whose weights are unpacked from integers, of all."""
    producers = {output.name: op for op in program(spec) for output in op.outputs}
    kinds = []
    for op in program(spec):
        if op.type in _LAYERS:
            producer = _origin(op.inputs[_LAYERS[op.type]].arguments[0].name, producers)
            if producer is not None:
                kinds.append(producer.type.startswith("constexpr"))
    return Quantized(layers=sum(kinds), of=len(kinds))


def _origin(name: str, producers: dict[str, Any]) -> Any | None:
    """Constant behind a value, or None for an activation."""
    while (op := producers.get(name)) is not None and op.type in _KEEPS_WEIGHTS:
        name = op.inputs["x"].arguments[0].name
    return op if op is not None and (op.type == "const" or op.type.startswith("constexpr")) else None


def _size(op: Any) -> int:
    """Number of elements of an operation's first output."""
    dimensions = op.outputs[0].type.tensorType.dimensions
    return math.prod(dimension.constant.size for dimension in dimensions)


def _type_name(value: Any) -> str:
    """Name of a constant's element type."""
    tensor = value.type.tensorType
    return tensor.DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_number[tensor.dataType].name
