"""Faults to plant in a saved package: each edits one thing a converter or a rewrite could get wrong, then reseals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pocketvit.targets.coreml.package import read_package
from pocketvit.targets.coreml.program import read_program
from pocketvit.targets.coreml.seal import seal

_BLOB = {10: np.float16, 11: np.float32, 21: np.int8}  # MIL data type -> numpy


@dataclass
class Edited:
    """The description of a package under edit, and its weight file as bytes."""

    spec: Any
    weights: bytearray

    @property
    def ops(self) -> list[Any]:
        main = self.spec.mlProgram.functions["main"]
        return list(main.block_specializations[main.opset].operations)

    def of(self, *kinds: str) -> list[Any]:
        return [op for op in self.ops if op.type in kinds]

    def given(self, op: Any, parameter: str) -> Any:
        """The operation that makes an argument, or None for the function's input."""
        name = op.inputs[parameter].arguments[0].name
        return next((o for o in self.ops if name in [x.name for x in o.outputs]), None)

    def constant(self, op: Any, parameter: str) -> Any:
        """The constant behind an argument; packages share equal ones, so an edit would reach others: copy it."""
        shared = self.given(op, parameter)
        main = self.spec.mlProgram.functions["main"]
        block = main.block_specializations[main.opset]
        own = type(shared)()
        own.CopyFrom(shared)
        own.outputs[0].name = f"{shared.outputs[0].name}_fault"
        op.inputs[parameter].arguments[0].name = own.outputs[0].name
        operations = [own, *block.operations]
        del block.operations[:]
        block.operations.extend(operations)
        return next(o for o in block.operations if o.outputs[0].name == own.outputs[0].name)

    def numbers(self, const: Any) -> np.ndarray:
        """The numbers of a constant or of a quantized weight, to be changed in place where they come from a file."""
        value = const.attributes["quantized_data" if "quantized_data" in const.attributes else "val"]
        kind = np.dtype(_BLOB[value.type.tensorType.dataType])
        shape = [d.constant.size for d in value.type.tensorType.dimensions]
        if value.WhichOneof("value") == "blobFileValue":
            at = value.blobFileValue.offset
            start = int.from_bytes(self.weights[at + 16 : at + 24], "little")
            count = int(np.prod(shape))
            return np.frombuffer(self.weights, kind, count, start).reshape(shape)
        raise LookupError("not in the weight file")

    def weight(self, op: Any, parameter: str = "weight") -> np.ndarray:
        const = self.given(op, parameter)
        if const is None or not (const.type == "const" or const.type.startswith("constexpr")):
            raise LookupError("not a constant")
        return self.numbers(const)


def set_scalar(const: Any, value: Any) -> None:
    """Replace a small constant that stands in the description itself."""
    tensor = const.attributes["val"].immediateValue.tensor
    field = tensor.WhichOneof("value")
    if field == "bytes":
        tensor.bytes.values = np.asarray(value, np.float16).tobytes()
        return
    values = getattr(tensor, field).values
    values[:] = list(np.atleast_1d(value)) if not isinstance(value, str) else [value]


def scalar(const: Any) -> list[Any]:
    """The numbers of such a constant."""
    tensor = const.attributes["val"].immediateValue.tensor
    field = tensor.WhichOneof("value")
    if field == "bytes":
        return np.frombuffer(tensor.bytes.values, np.float16).astype(np.float32).tolist()
    return list(getattr(tensor, field).values)


def _gelu(e: Edited) -> None:
    set_scalar(e.constant(e.of("gelu")[-1], "mode"), "TANH_APPROXIMATION")


def _activation(e: Edited) -> None:
    e.of("gelu", "silu", "relu")[0].type = "sigmoid"
    op = e.of("sigmoid")[0]
    if "mode" in op.inputs:
        del op.inputs["mode"]


def _epsilon(e: Edited) -> None:
    set_scalar(e.constant(e.of("layer_norm")[-1], "epsilon"), 1e-3)


def _small_epsilon(e: Edited) -> None:
    """Within the rounding of any logit: only the comparison of operations can see it."""
    const = e.constant(e.of("layer_norm")[-1], "epsilon")
    set_scalar(const, 2 * scalar(const)[0])


def _softmax_axis(e: Edited) -> None:
    set_scalar(e.constant(e.of("softmax")[0], "axis"), -2)


def _scale(e: Edited) -> None:
    """The attention's 1/sqrt(d), two percent off."""
    for op in e.of("mul"):
        for side in ("x", "y"):
            const = e.given(op, side)
            if const is not None and const.type == "const" and not const.outputs[0].type.tensorType.dimensions:
                own = e.constant(op, side)
                set_scalar(own, 1.02 * scalar(own)[0])
                return
    raise LookupError("no product with a number")


def _one_row(e: Edited) -> None:
    row = e.weight(e.of("linear", "conv")[-1])[0]
    row[...] = np.round(row * 1.1) if row.dtype == np.int8 else row * 1.1


def _one_weight(e: Edited) -> None:
    flat = e.weight(e.of("linear", "conv")[len(e.of("linear", "conv")) // 2]).reshape(-1)
    worst = int(np.abs(flat.astype(np.float32)).argmax())
    flat[worst] = -flat[worst]


def _bias(e: Edited) -> None:
    for op in e.of("linear", "conv"):
        if "bias" in op.inputs:
            try:
                bias = e.weight(op, "bias")
            except LookupError:
                continue
            if np.abs(bias).max() > 0:
                bias[...] = 0
                return
    raise LookupError("no bias")


def _swapped_weights(e: Edited) -> None:
    """Two layers of one shape have each other's weights."""
    met: dict[tuple[int, ...], Any] = {}
    for op in e.of("linear", "conv"):
        const = e.given(op, "weight")
        if const is None or not (const.type == "const" or const.type.startswith("constexpr")):
            continue
        shape = tuple(d.constant.size for d in const.outputs[0].type.tensorType.dimensions)
        other = met.setdefault(shape, const)
        if other is not const:
            mine, its = e.numbers(const), e.numbers(other)
            mine[...], its[...] = its.copy(), mine.copy()
            return
    raise LookupError("no two layers of one shape")


def _query_key(e: Edited) -> None:
    for op in e.of("matmul"):
        first, second = op.inputs["x"].arguments[0], op.inputs["y"].arguments[0]
        kinds = {str(o.outputs[i].type) for n in (first.name, second.name) for o in e.ops
                 for i in range(len(o.outputs)) if o.outputs[i].name == n}  # fmt: skip
        if len(kinds) == 1:
            first.name, second.name = second.name, first.name
            return
    raise LookupError("no product of two alike")


def _residual(e: Edited) -> None:
    """The branch is added to itself instead of to the stream."""
    adds = [op for op in e.of("add") if all(a.name for side in op.inputs.values() for a in side.arguments)]
    for op in reversed(adds):
        x, y = (e.given(op, side) for side in ("x", "y"))
        if x is not None and y is not None and "const" not in (x.type, y.type):
            op.inputs["x"].arguments[0].name = op.inputs["y"].arguments[0].name
            return
    raise LookupError("no residual")


def _padding(e: Edited) -> None:
    for op in e.of("conv"):
        const = e.given(op, "pad")
        pads = scalar(const) if const is not None else []
        if pads == [1, 1, 1, 1]:
            set_scalar(e.constant(op, "pad"), [0, 2, 0, 2])
            return
    raise LookupError("no padded convolution")


def _mean(e: Edited) -> None:
    """The normalisation of the image, half a percent off."""
    for op in e.of("sub", "add", "mul"):
        for side in ("y", "x"):
            const = e.given(op, side)
            if const is not None and const.type == "const" and len(const.outputs[0].type.tensorType.dimensions) == 4:
                own = e.constant(op, side)
                set_scalar(own, 1.005 * np.asarray(scalar(own)))
                return
    raise LookupError("no mean")


def _concat(e: Edited) -> None:
    for op in e.of("concat"):
        arguments = op.inputs["values"].arguments
        names = [a.name for a in arguments]
        if len(set(names)) > 1:
            for argument, name in zip(arguments, reversed(names), strict=True):
                argument.name = name
            return
    raise LookupError("nothing is concatenated")


def _positions(e: Edited) -> None:
    """Position embeddings moved by one token."""
    for op in e.of("add"):
        for side in ("x", "y"):
            try:
                table = e.weight(op, side)
            except (LookupError, KeyError):
                continue
            if table.ndim == 3 and table.shape[1] > 2:
                table[...] = np.roll(table.copy(), 1, axis=1)
                return
    raise LookupError("no table of positions")


def _norm_gain(e: Edited) -> None:
    e.weight(e.of("layer_norm")[0], "gamma").reshape(-1)[3] *= 1.03


def _head_order(e: Edited) -> None:
    """Heads and tokens of the attention's result trade places where both have one length, or two heads do."""
    for op in reversed(e.of("transpose")):
        perm = scalar(e.given(op, "perm"))
        source = e.given(op, "x")
        if source is None:
            continue
        sides = [d.constant.size for d in source.outputs[0].type.tensorType.dimensions]
        for i in range(len(perm)):
            for j in range(i + 1, len(perm)):
                if sides[perm[i]] == sides[perm[j]] and sides[perm[i]] > 1:
                    perm[i], perm[j] = perm[j], perm[i]
                    set_scalar(e.constant(op, "perm"), perm)
                    return
    raise LookupError("no two sides alike")


def _coarse_scale(e: Edited) -> None:
    """A layer of zeros, excused by a step as large as its largest weight."""
    op = next(op for op in e.ops if op.type == "constexpr_affine_dequantize")
    e.numbers(op)[...] = 0
    scale = op.attributes["scale"].immediateValue.tensor
    if scale.WhichOneof("value") == "bytes":
        scale.bytes.values = (np.frombuffer(scale.bytes.values, np.float16) * 254).astype(np.float16).tobytes()
    elif op.attributes["scale"].WhichOneof("value") == "blobFileValue":
        at = op.attributes["scale"].blobFileValue.offset
        start = int.from_bytes(e.weights[at + 16 : at + 24], "little")
        kind = np.dtype(_BLOB[op.attributes["scale"].type.tensorType.dataType])
        size = int(np.prod([d.constant.size for d in op.attributes["scale"].type.tensorType.dimensions]))
        values = np.frombuffer(e.weights, kind, size, start)
        values[...] = values * 254
    else:
        raise LookupError("no scale that can be changed")


def _attribute(e: Edited) -> None:
    """An epsilon in the attributes, where operations keep only their name."""
    norm = e.of("layer_norm")[-1]
    norm.attributes["epsilon"].CopyFrom(e.given(norm, "epsilon").attributes["val"])
    set_value = norm.attributes["epsilon"].immediateValue.tensor
    if set_value.WhichOneof("value") == "bytes":
        set_value.bytes.values = np.float16(0.5).tobytes()
    else:
        set_value.floats.values[:] = [0.5]
    del norm.inputs["epsilon"]


FAULTS: dict[str, Callable[[Edited], None]] = {
    "the other GELU": _gelu,
    "another activation": _activation,
    "layer norm epsilon 1e-3": _epsilon,
    "layer norm epsilon doubled": _small_epsilon,
    "softmax over another axis": _softmax_axis,
    "attention scale 2% off": _scale,
    "one row of weights 10% off": _one_row,
    "one weight negated": _one_weight,
    "a bias lost": _bias,
    "two layers' weights swapped": _swapped_weights,
    "factors of a product swapped": _query_key,
    "a residual lost": _residual,
    "asymmetric padding": _padding,
    "image mean half a percent off": _mean,
    "concatenated in reverse": _concat,
    "positions moved by one": _positions,
    "one norm gain 3% off": _norm_gain,
    "axes of a transpose swapped": _head_order,
    "an epsilon among the attributes": _attribute,
    "a layer of zeros with a coarse scale": _coarse_scale,
}


def plant(fault: str, source: Path, path: Path) -> bool:
    """Copy a package with one fault in it; False when the package has nothing that the fault could hit."""
    shutil.copytree(source, path)
    package = read_package(path)
    weights = package.model.parent / "weights" / "weight.bin"
    edited = Edited(package.spec, bytearray(weights.read_bytes()))
    try:
        FAULTS[fault](edited)
    except (LookupError, IndexError, StopIteration):
        shutil.rmtree(path)
        return False
    package.model.write_bytes(edited.spec.SerializeToString())
    weights.write_bytes(edited.weights)
    package = read_package(path)
    seal(package, read_program(package))
    return True
