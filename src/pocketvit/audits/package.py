"""A Core ML package as the neutral records that an audit counts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifacts import is_artifact
from ..errors import BadInput
from ..measure.ane.graph import OpRecord, Tensor

if TYPE_CHECKING:
    from ..targets.coreml.package import Package
    from ..targets.coreml.program import Op, Output, Program
    from ..targets.coreml.values import Value

PACKAGE = ".mlpackage"
# names of weights as exporters write them: p_module_blocks_0_attn_qkv_weight_to_fp16, blocks_0_norm1_bias
_WEIGHT_NAME = re.compile(r"^(?:[pbc]_)?(?:module_)?(?P<path>.+?)_(?P<role>weight|bias|gamma|beta)(?!_\d)(?:_|$)")


def is_package(source: str) -> bool:
    """True for the name of a Core ML file, whether it can be read or not; False for what may name a model.

    Raises BadInput for an exported file of another format, and for a folder of packages instead of one.
    """
    path = Path(source.rstrip("/"))
    if path.suffix in (PACKAGE, ".mlmodel", ".mlmodelc"):
        return True
    if path.is_dir() and not (path / "config.json").exists() and (inside := sorted(path.glob(f"*{PACKAGE}"))):
        raise BadInput(f"{source} is a folder of packages; name one, such as {inside[0]}.")
    if is_artifact(source):
        raise BadInput(f"{source} is no Core ML package; the Neural Engine runs nothing but those. Audit its model.")
    return False


def package_records(
    program: Program, shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> tuple[OpRecord, ...]:
    """The operations of an ML program, constants left out; module paths as far as the names of weights tell them.

    shapes: of values that the program leaves open, as default_shapes finds them.
    """
    reader = _ProgramReader(program, shapes)
    return tuple(record for op in program.block.walk() if (record := reader.record(op)) is not None)


def default_shapes(package: Package, program: Program) -> dict[str, tuple[int, ...]]:
    """The shapes, for the default input, of values that the program leaves open; found by running it on zeros.

    Empty where nothing is open, and where the interpreter does not know an operation: what is open then stays so, and
    the audit says how many operations it leaves out of its bytes.
    """
    ends = (*program.inputs, *(put for op in program.block.walk() for put in op.outputs))
    if not any(put.type and None in put.type.shape for put in ends):
        return {}
    from ..targets.coreml.interpreter import Interpreter

    shapes: dict[str, tuple[int, ...]] = {}

    def observe(op: Op, arguments: Mapping[str, Any], results: tuple[Any, ...]) -> None:
        for put, result in zip(op.outputs, results, strict=True):
            if hasattr(result, "shape"):
                shapes[put.name] = tuple(result.shape)

    try:
        interpreter = Interpreter(package)
        interpreter.run({given.name: np.zeros(given.shape) for given in interpreter.inputs}, observe)
    except BadInput:
        return {}
    return shapes | {given.name: given.shape for given in interpreter.inputs}


class _ProgramReader:
    """Walks the operations in order, keeping constants apart from activations."""

    def __init__(self, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.activations = {put.name: self._tensor(put) for put in program.inputs}
        self.constants: dict[str, Value | None] = {}
        self.bytes: dict[str, int] = {}  # of constants that no operation has read yet
        self.modules: dict[str, str] = {}  # of activations: the module that touched them last
        self.readers = Counter(name for op in program.block.walk() for name in _names(op))

    def record(self, op: Op) -> OpRecord | None:
        """The record of one operation; None for a constant, whether stored plainly or compressed."""
        names = _names(op)
        new_bytes = sum(self.bytes.pop(name, 0) for name in names)
        if op.kind == "const" or op.kind.startswith("constexpr_"):
            values = [*op.attributes.values(), *(v for group in op.inputs.values() for v in group)]
            stored = sum(_stored(value) for value in values if not isinstance(value, str))
            self.bytes |= {op.name: new_bytes + stored}
            self.constants |= {output.name: op.attributes.get("val") for output in op.outputs}
            return None
        inputs = tuple(self.activations[name] for name in names if name in self.activations)
        outputs = tuple(map(self._tensor, op.outputs))
        self.activations |= {tensor.name: tensor for tensor in outputs}
        self.activations |= {put.name: self._tensor(put) for block in op.blocks for put in block.inputs}
        module, located = self._place(op, names)
        if located != "op":
            self.modules |= {tensor.name: module for tensor in outputs}
        return OpRecord(
            kind=op.kind,
            name=op.name,
            inputs=inputs,
            outputs=outputs,
            module=module,
            located=located,
            weight_bytes=new_bytes,
            axes=self._axes(op, inputs),
            dilated=any(gap > 1 for gap in self._numbers(op, "dilations")),
            rolled=op.kind == "gather" and _is_rolled(self._numbers(op, "indices")),
        )

    def _tensor(self, put: Output) -> Tensor:
        if put.type is None:
            return Tensor(put.name, (), "other")
        declared, found = put.type.shape, self.shapes.get(put.name, ())
        fits = len(found) == len(declared) and all(a in (None, b) for a, b in zip(declared, found, strict=True))
        if None in declared and fits:
            return Tensor(put.name, found, put.type.dtype.value, flexible=True)
        return Tensor(put.name, declared, put.type.dtype.value)

    def _place(self, op: Op, names: Sequence[str]) -> tuple[str, str]:
        # a constant that several operations read was one that converters found equal: its name is any one's
        own = (_weight(name) for name in names if name in self.constants and self.readers[name] == 1)
        if named := sorted(filter(None, own)):
            return named[-1][1], "weight"
        before = next((self.modules[name] for name in names if name in self.modules), None)
        return (op.name, "op") if before is None else (before, "after")

    def _axes(self, op: Op, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
        rank = len(inputs[0].shape) if inputs else 0
        found = self._numbers(op, "perm") or self._numbers(op, "axes") or self._numbers(op, "axis")
        if op.kind == "softmax" and not found:
            found = (-1,)
        return tuple(axis % rank for axis in found) if rank else ()

    def _numbers(self, op: Op, parameter: str) -> tuple[int, ...]:
        """The integers of a constant argument; none where it is missing or computed."""
        arguments = op.inputs.get(parameter, ())
        first = arguments[0] if arguments else None
        value = self.constants.get(first) if isinstance(first, str) else first
        return () if value is None else tuple(int(number) for number in np.asarray(value.data).ravel())


def _names(op: Op) -> list[str]:
    return [name for group in op.inputs.values() for name in group if isinstance(name, str)]


def _is_rolled(indices: tuple[int, ...]) -> bool:
    """True for 0, 1, 2... started elsewhere than at 0: what a roll of an axis becomes."""
    count = len(indices)
    return count > 1 and indices[0] != 0 and all(i == (indices[0] + at) % count for at, i in enumerate(indices))


def _stored(value: Value) -> int:
    return (math.prod(side or 1 for side in value.type.shape) * value.type.dtype.bits + 7) // 8


def _weight(name: str) -> tuple[bool, str] | None:
    """Whether it is a weight rather than a bias, and its module: (True, "blocks.0.attn_qkv") for
    p_module_blocks_0_attn_qkv_weight_to_fp16; None for a name that is no weight's.
    """
    match = _WEIGHT_NAME.match(name)
    if match is None:
        return None
    # a number that stands alone is an index: what follows it and what it follows are other modules
    path = re.sub(r"_?(?<![a-z0-9])(\d+)(?=_|$)_?", r".\1.", match["path"]).replace("..", ".").strip(".")
    return match["role"] in ("weight", "gamma"), path
