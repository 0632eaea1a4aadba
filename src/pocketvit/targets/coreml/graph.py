"""A program's protobuf description under edit: who makes and reads a value, operations and constants put in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput
from .package import Package
from .program import read_program

MAX_SPELT_OUT = 1 << 22  # elements of a new constant, which the description itself holds

# only shape and place change, so that a factor passes through them
LAYOUT = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "identity"})


class Graph:
    """The operations of a package's main function, copied; `spec()` gives the description with what was changed.

    Values read inside nested blocks have readers that cannot be edited: `readers` names them as None.
    """

    def __init__(self, package: Package) -> None:
        self._spec = type(package.spec)()
        self._spec.CopyFrom(package.spec)
        self._names = {op.name: op for op in read_program(package).block.ops}
        functions = self._spec.mlProgram.functions
        function = functions[self._spec.description.defaultFunctionName or "main"]
        self._block = function.block_specializations[function.opset]
        self.operations: list[Any] = []
        for op in self._block.operations:
            copy = type(op)()
            copy.CopyFrom(op)
            self.operations.append(copy)
        self._types = {given.name: given.type for given in function.inputs}
        self._makers: dict[str, Any] = {}
        self.taken = set(self._types)
        for op in self.operations:
            self._register(op)
        self._idle = self._unread()

    def spec(self) -> Any:
        """The description, edited; operations whose results nothing reads any more are left out."""
        unread = self._unread() - self._idle
        del self._block.operations[:]
        self._block.operations.extend(op for op in self.operations if op.outputs[0].name not in unread)
        return self._spec

    def maker(self, name: str) -> Any | None:
        """The operation that makes a value; None for an input of the program."""
        return self._makers.get(name)

    def origin(self, name: str) -> str:
        """The value before its layout was changed."""
        while (op := self.maker(name)) is not None and op.type in LAYOUT:
            name = self.argument(op, "x")
        return name

    def argument(self, op: Any, parameter: str) -> str:
        """The name of the value an operation takes as `parameter`; empty when it takes none."""
        bindings: Any = op.inputs[parameter].arguments if parameter in op.inputs else ()
        return bindings[0].name if len(bindings) == 1 and bindings[0].WhichOneof("binding") == "name" else ""

    def readers(self, name: str) -> list[Any | None]:
        """Operations that read a value, each once; None for a nested block or the end of the program."""
        found: list[Any | None] = []
        for op in self.operations:
            if name in _read(op):
                found.append(op)
            if any(name in _reads_inside(block) for block in op.blocks):
                found.append(None)
        return found + [None] * (name in self._block.outputs)

    def only_reader(self, name: str) -> Any | None:
        """The operation that alone reads a value, or None."""
        found = self.readers(name)
        return found[0] if len(found) == 1 else None

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Sides of a value, None where they vary."""
        return tuple(
            int(side.constant.size) if side.WhichOneof("dimension") == "constant" else None
            for side in self._types[name].tensorType.dimensions
        )

    def is_half(self, name: str) -> bool:
        """True for a value declared fp16."""
        return self._types[name].tensorType.dataType == _type("FLOAT16")

    def is_float(self, name: str) -> bool:
        """True for a value of fractions."""
        return self._types[name].tensorType.dataType in (_type("FLOAT16"), _type("FLOAT32"))

    def constant_value_of(self, name: str) -> NDArray | None:
        """The numbers of a constant of the program as it was; None for another value."""
        op = self._names.get(name)
        value = op.attributes.get("val") if op is not None and op.kind == "const" else None
        return value.data if value is not None and isinstance(value.data, np.ndarray) else None

    def constant_value(self, op: Any, parameter: str) -> NDArray | None:
        """The numbers an operation takes as `parameter`, where they are a constant; None where they are not."""
        read = self._names.get(op.outputs[0].name)
        given = read.inputs.get(parameter, ()) if read is not None else ()
        if len(given) != 1:
            return None
        if isinstance(given[0], str):
            return self.constant_value_of(given[0])
        return given[0].data if isinstance(given[0].data, np.ndarray) else None

    def scalar(self, op: Any, parameter: str) -> float | None:
        """A constant of one element as a number."""
        found = self.constant_value(op, parameter)
        return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None

    def add_constant(self, near: Any, hint: str, numbers: Any, like: str = "") -> str:
        """Put a constant in before the operation `near`; floats take the element type of the value `like`."""
        array = np.asarray(numbers)
        if array.size > MAX_SPELT_OUT:
            raise BadInput(f"a new constant of {array.size} elements is too large to write")
        op, value = self._constant(near, hint)
        if array.dtype.kind == "f":
            value.type.tensorType.dataType = _type("FLOAT16" if self.is_half(like) else "FLOAT32")
            tensor = value.immediateValue.tensor
            if self.is_half(like):
                tensor.bytes.values = array.astype(np.float16).tobytes()
            else:
                tensor.floats.values.extend(array.astype(np.float32).reshape(-1).tolist())
        elif array.dtype == np.int8:
            value.type.tensorType.dataType = _type("INT8")
            value.immediateValue.tensor.bytes.values = array.tobytes()
        elif array.dtype.kind == "b":
            value.type.tensorType.dataType = _type("BOOL")
            value.immediateValue.tensor.bools.values.extend(array.reshape(-1).tolist())
        else:
            value.type.tensorType.dataType = _type("INT32")
            value.immediateValue.tensor.ints.values.extend(array.reshape(-1).tolist())
        _set_shape(value.type, array.shape)
        op.outputs[0].type.CopyFrom(value.type)
        self._finish(op, near)
        return op.outputs[0].name

    def add_text(self, near: Any, hint: str, text: str) -> str:
        """Put a constant string in before the operation `near`."""
        op, value = self._constant(near, hint)
        value.type.tensorType.dataType = _type("STRING")
        value.immediateValue.tensor.strings.values.append(text)
        op.outputs[0].type.CopyFrom(value.type)
        self._finish(op, near)
        return op.outputs[0].name

    def _constant(self, near: Any, hint: str) -> tuple[Any, Any]:
        """A constant operation under a new name, and its value, both still to be filled in."""
        op = type(near)()
        op.type = "const"
        op.outputs.add().name = self._unique(hint)
        return op, op.attributes["val"]

    def add(
        self,
        near: Any,
        kind: str,
        arguments: Mapping[str, Any],
        hint: str,
        like: str,
        shape: Iterable | None = None,
        element: str = "",
    ) -> str:
        """Put an operation in before `near` and return the name of its result.

        arguments: names of values, or numbers that become constants. The result has the type of the value
        `like`, with sides `shape` and the element type `element` ("INT8") where given.
        """
        op = type(near)()
        op.type = kind
        made = op.outputs.add()
        made.type.CopyFrom(self._types[like])
        if shape is not None:
            _set_shape(made.type, tuple(shape))
        if element:
            made.type.tensorType.dataType = _type(element)
        made.name = self._unique(hint)
        self._bind(op, near, arguments, like)
        self._finish(op, near)
        return made.name

    def duplicate(self, op: Any, hint: str) -> Any:
        """Put a copy of an operation of one result in before it, under another name; return the copy."""
        copy = type(op)()
        copy.CopyFrom(op)
        copy.outputs[0].name = self._unique(hint)
        if "name" in copy.attributes:
            del copy.attributes["name"]
        self._finish(copy, op)
        return copy

    def feed(self, op: Any, parameter: str, argument: str) -> None:
        """Make an operation take the value `argument` as `parameter`."""
        del op.inputs[parameter].arguments[:]
        op.inputs[parameter].arguments.add().name = argument

    def become(self, op: Any, kind: str, arguments: Mapping[str, Any]) -> None:
        """Turn an operation into another that makes the same value."""
        for parameter in list(op.inputs):
            del op.inputs[parameter]
        op.type = kind
        self._bind(op, op, arguments, op.outputs[0].name)

    def replace(self, old: str, new: str) -> None:
        """Make every operation read `new` where it read `old`.

        Raises BadInput when a nested block or the end of the program reads the old one: its name is part of what the
        package promises.
        """
        if None in self.readers(old):
            raise BadInput(f"{old} is a result of the program or read by a nested block")
        for op in self.operations:
            for argument in op.inputs.values():
                for binding in argument.arguments:
                    if binding.name == old:
                        binding.name = new

    def _bind(self, op: Any, near: Any, arguments: Mapping[str, Any], like: str) -> None:
        for parameter, argument in arguments.items():
            if not isinstance(argument, str):
                argument = self.add_constant(near, f"{op.outputs[0].name}_{parameter}", argument, like)
            op.inputs[parameter].arguments.add().name = argument

    def _finish(self, op: Any, near: Any) -> None:
        name = op.outputs[0].name
        text = op.attributes["name"]
        text.type.tensorType.dataType = _type("STRING")
        text.immediateValue.tensor.strings.values.append(name)
        place = next(i for i, other in enumerate(self.operations) if other is near)
        self.operations.insert(place, op)
        self._register(op)

    def _register(self, op: Any) -> None:
        for output in op.outputs:
            self._makers[output.name] = op
            self._types[output.name] = output.type
            self.taken.add(output.name)
        for block in op.blocks:
            self.taken |= _names_inside(block)

    def _unique(self, hint: str) -> str:
        """A new name; letters, digits and underscores, as the compiler wants them."""
        base = "".join(c if c.isalnum() else "_" for c in hint)
        name = next(n for n in (base, *(f"{base}_{i}" for i in range(len(self.taken) + 1))) if n not in self.taken)
        self.taken.add(name)
        return name

    def _unread(self) -> set[str]:
        """First outputs of the operations that no result of the program needs."""
        needed = set(self._block.outputs)
        unread = set()
        for op in reversed(self.operations):
            if any(output.name in needed for output in op.outputs):
                needed |= _read(op) | {name for block in op.blocks for name in _reads_inside(block)}
            else:
                unread.add(op.outputs[0].name)
        return unread


def behind(graph: Graph, name: str) -> tuple[str, Any | None]:
    """The last form of a value whose layout changes on the way to its only reader, and that reader."""
    reader = graph.only_reader(name)
    while reader is not None and reader.type in LAYOUT:
        name = reader.outputs[0].name
        reader = graph.only_reader(name)
    return name, reader


def terms(graph: Graph, name: str, axes: Iterable[int]) -> int | None:
    """How many elements of a value lie along `axes`; None where that varies."""
    shape = graph.shape(name)
    sides = [shape[axis] for axis in axes]
    return None if None in sides else math.prod(side for side in sides if side is not None)


def _read(op: Any) -> set[str]:
    return {binding.name for argument in op.inputs.values() for binding in argument.arguments}


def _reads_inside(block: Any) -> set[str]:
    names = set(block.outputs)
    for op in block.operations:
        names |= _read(op)
        for nested in op.blocks:
            names |= _reads_inside(nested)
    return names


def _names_inside(block: Any) -> set[str]:
    names = {given.name for given in block.inputs}
    for op in block.operations:
        names |= {output.name for output in op.outputs}
        for nested in op.blocks:
            names |= _names_inside(nested)
    return names


def _set_shape(value_type: Any, shape: tuple[int | None, ...]) -> None:
    tensor = value_type.tensorType
    tensor.rank = len(shape)
    del tensor.dimensions[:]
    for side in shape:
        dimension = tensor.dimensions.add()
        if side is None:
            dimension.unknown.variadic = False
        else:
            dimension.constant.size = side


def _type(name: str) -> int:
    from coremltools.proto import MIL_pb2

    return MIL_pb2.DataType.Value(name)
