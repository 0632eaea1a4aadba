"""Integer programs as ONNX: one operator, or a few, for each step, all of them on integer tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ..layers.integer.program import IntegerProgram, Step
from ..models.graph import capture, layers
from ..passes.ivit import IntegerModel, integer
from ..types import Artifact, Quantized

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

_OPSET = 18
_IR = 9
_TYPES = {
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
}
_SAME = {"add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "absolute": "Abs"}
_TO_END = 2**31 - 1


def integer_model(
    module: nn.Module, draft: Artifact, calibration: NDArray[np.float32]
) -> tuple[onnx.ModelProto, Quantized]:
    """The integer form of a deployable float model, and how many of its layers have integer weights: all of them.

    calibration: images (N, C, H, W) in [0, 1]. Raises BadInput, naming the module, for what has no integer form, and
    CheckFailed, naming the layer, where int32 does not suffice.
    """
    form = integer(module, calibration)
    found = layers(capture(module, draft.spec))
    counted = Quantized(layers=len(form.layers), of=len(found))
    return emit(form, draft.spec.size), counted


def emit(form: IntegerModel, size: Sequence[int], show: Sequence[int] = ()) -> onnx.ModelProto:
    """The model as ONNX, "image" (1, C, H, W) to "logits" (1, classes); `show`: values that become outputs too.

    Where ONNX Runtime has no vector instructions for products of bytes (x86 before VNNI) it adds pairs of them in 16
    bits and saturates, unless its session option session.x64quantprecision is 1.
    """
    program = form.program
    writer = _Writer(program)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, *size])
    writer.node("Mul", ["image", writer.constant(np.float32(255))], "scaled")
    writer.node("Round", ["scaled"], "whole")
    writer.node("Clip", ["whole", writer.constant(np.float32(0)), writer.constant(np.float32(255))], "bytes")
    for number, step in enumerate(program.steps):
        writer.write(number, step)
    writer.node("Cast", [_name(program.result)], "real", to=TensorProto.FLOAT)
    writer.node("Mul", ["real", writer.constant(np.float32(form.scale))], "logits")
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, list(program.shapes[program.result]))]
    outputs += [
        helper.make_tensor_value_info(_name(n), _TYPES[program.dtypes[n]], list(program.shapes[n])) for n in show
    ]
    graph = helper.make_graph(writer.nodes, "integer", [image], outputs, writer.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    onnx.checker.check_model(model, full_check=True)
    return model


def _name(number: int) -> str:
    return f"value_{number}"


class _Writer:
    """Collects nodes and constants; equal small constants are written once."""

    def __init__(self, program: IntegerProgram) -> None:
        self.program = program
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, array: Any) -> str:
        array = np.asarray(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def write(self, number: int, step: Step) -> None:
        """One step. A right shift is a division by a power of two: equal, as no operand is ever negative."""
        out, inputs, options = _name(number), [_name(i) for i in step.inputs], step.options
        dtype = self.program.dtypes[number]
        scalar = torch.empty(0, dtype=dtype).numpy().dtype.type
        if step.kind == "input":
            self.node("Cast", ["bytes"], out, to=_TYPES[dtype])
        elif step.kind == "constant":
            tensor = numpy_helper.from_array(self.program.constant(number).contiguous().numpy(), out)
            self.constants.append(tensor)
        elif step.kind in _SAME:
            self.node(_SAME[step.kind], inputs, out)
        elif step.kind == "shift":
            self.node("Div", [*inputs, self.constant(scalar(1 << options[0]))], out)
        elif step.kind == "shift_by":  # exists for unsigned integers only
            unsigned = [
                self.node("Cast", [name], f"{out}_{i}", to=TensorProto.UINT32) for i, name in enumerate(inputs)
            ]
            shifted = self.node("BitShift", unsigned, f"{out}_shifted", direction="RIGHT")
            self.node("Cast", [shifted], out, to=_TYPES[dtype])
        elif step.kind == "clamp":
            self.node("Clip", [*inputs, *(self.constant(scalar(limit)) for limit in options)], out)
        elif step.kind == "reaches":
            self.node("Cast", [self.node("GreaterOrEqual", inputs, f"{out}_true")], out, to=_TYPES[dtype])
        elif step.kind in ("largest", "total"):
            kind = "ReduceMax" if step.kind == "largest" else "ReduceSum"
            self.node(kind, [*inputs, self.constant(np.array([options[0]], np.int64))], out, keepdims=1)
        elif step.kind == "cast":
            self.node("Cast", inputs, out, to=_TYPES[dtype])
        elif step.kind == "product":
            zero = self.constant(torch.tensor(options[0], dtype=self.program.dtypes[step.inputs[0]]).numpy())
            self.node("MatMulInteger", [*inputs, zero], out)
        else:
            self._move(step, inputs[0], out, len(self.program.shapes[number]))

    def _move(self, step: Step, x: str, out: str, rank: int) -> None:
        options = step.options
        if step.kind == "reshape":
            self.node("Reshape", [x, self.constant(np.array(options, np.int64))], out)
        elif step.kind == "permute":
            self.node("Transpose", [x], out, perm=list(options))
        elif step.kind == "narrow":
            dim, start, length = options
            self._slice(x, out, dim, start, start + length)
        elif step.kind == "roll":
            for turn, (shift, dim) in enumerate(zip(*options, strict=True)):
                # what stands `shift` before the end comes first
                last, first = f"{out}_last{turn}", f"{out}_first{turn}"
                self._slice(x, last, dim, -shift, _TO_END)
                self._slice(x, first, dim, 0, -shift)
                done = out if turn == len(options[0]) - 1 else f"{out}_turn{turn}"
                x = self.node("Concat", [last, first], done, axis=dim)
        else:
            assert step.kind == "pad", f"no ONNX operators stand for {step.kind}"
            pairs = list(zip(options[::2], options[1::2], strict=True))[::-1]
            pairs = [(0, 0)] * (rank - len(pairs)) + pairs
            edges = [before for before, _ in pairs] + [after for _, after in pairs]
            self.node("Pad", [x, self.constant(np.array(edges, np.int64))], out)

    def _slice(self, x: str, out: str, dim: int, start: int, stop: int) -> None:
        bounds = [self.constant(np.array([n], np.int64)) for n in (start, stop, dim)]
        self.node("Slice", [x, *bounds], out)
