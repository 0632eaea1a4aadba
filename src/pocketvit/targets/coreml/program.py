"""An ML program as plain, immutable data: read from a package's description, checked, independent of any runtime."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import BadInput
from .package import Package
from .values import MAX_ELEMENTS, Dtype, TensorType, Value, unpack

_MAX_OPS = 200_000
_MAX_DEPTH = 8  # of blocks within blocks; the Python stack is not the limit
_MAX_NAME = 1000
_MAX_BYTES = 1 << 33  # of all constants together, unpacked
_OPSETS = {"CoreML5": 15, "CoreML6": 16, "CoreML7": 17, "CoreML8": 18}
_FIELDS = {"floats": np.float32, "ints": np.int32, "bools": np.bool_, "longInts": np.int64, "doubles": np.float64}


@dataclass(frozen=True, slots=True)
class Output:
    """A named value that an operation makes, or that a block takes. type: None for lists and dictionaries."""

    name: str
    type: TensorType | None


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. inputs: per parameter, names of earlier values or constants written in place."""

    kind: str
    inputs: Mapping[str, tuple[str | Value, ...]]
    outputs: tuple[Output, ...]
    attributes: Mapping[str, Value]
    blocks: tuple[Block, ...]
    index: int

    @property
    def name(self) -> str:
        """The name of its first output, which is unique in the program."""
        return self.outputs[0].name if self.outputs else f"operation {self.index}"

    def __str__(self) -> str:
        return f"operation {self.index}, {self.kind!r} ({self.name})"


@dataclass(frozen=True, slots=True)
class Block:
    """Operations in order; the names in `outputs` are what the block returns."""

    inputs: tuple[Output, ...]
    outputs: tuple[str, ...]
    ops: tuple[Op, ...]

    def walk(self) -> Iterator[Op]:
        """Every operation, those of nested blocks after the one that holds them."""
        for op in self.ops:
            yield op
            for block in op.blocks:
                yield from block.walk()


@dataclass(frozen=True, slots=True)
class Program:
    """The main function. opset: the Core ML version its operations follow; ios: the same as an iOS version.

    weight_files: the names of the files its constants come from.
    """

    inputs: tuple[Output, ...]
    block: Block
    opset: str
    ios: int
    weight_files: frozenset[str]


def read_program(package: Package) -> Program:
    """Read a package's main function with its weights; BadInput for whatever does not fit together."""
    try:
        return _Reader(package).program()
    except BadInput as e:
        if str(package.path) in str(e):
            raise
        raise BadInput(f"{package.path}: {e}") from e
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError, RecursionError, OSError) as e:
        raise BadInput(f"{package.path} is not a readable ML program ({type(e).__name__}: {e}).") from e


class _Reader:
    def __init__(self, package: Package) -> None:
        self.package = package
        self.count = 0
        self.files: set[str] = set()
        self.bytes = 0

    def program(self) -> Program:
        functions = self.package.spec.mlProgram.functions
        name = self.package.spec.description.defaultFunctionName or "main"
        if name not in functions:
            raise BadInput(f"{self.package.path} has no function {name!r}; it has {sorted(functions) or 'none'}.")
        function = functions[name]
        if function.opset not in _OPSETS:
            raise BadInput(
                f"{self.package.path} uses the operations of {function.opset!r}; known are {', '.join(_OPSETS)}."
            )
        if function.opset not in function.block_specializations:
            raise BadInput(f"{self.package.path} has no operations for its own version {function.opset}.")
        inputs = tuple(self._output(named) for named in function.inputs)
        block = self._block(function.block_specializations[function.opset], 0)
        _check_names(inputs, block, [])
        return Program(
            inputs=inputs,
            block=block,
            opset=function.opset,
            ios=_OPSETS[function.opset],
            weight_files=frozenset(self.files),
        )

    def _block(self, spec: Any, depth: int) -> Block:
        if depth > _MAX_DEPTH:
            raise BadInput(f"blocks are nested more than {_MAX_DEPTH} deep")
        return Block(
            inputs=tuple(self._output(named) for named in spec.inputs),
            outputs=tuple(spec.outputs),
            ops=tuple(self._op(op, depth) for op in spec.operations),
        )

    def _op(self, spec: Any, depth: int) -> Op:
        self.count += 1
        if self.count > _MAX_OPS:
            raise BadInput(f"it holds more than {_MAX_OPS} operations")
        index = self.count
        if max(map(len, (spec.type, *(output.name for output in spec.outputs)))) > _MAX_NAME:
            raise BadInput(f"operation {index} has a name of more than {_MAX_NAME} characters")
        try:
            return Op(
                kind=spec.type,
                inputs={key: tuple(map(self._binding, spec.inputs[key].arguments)) for key in sorted(spec.inputs)},
                outputs=tuple(self._output(named) for named in spec.outputs),
                attributes={key: self._value(spec.attributes[key]) for key in sorted(spec.attributes)},
                blocks=tuple(self._block(block, depth + 1) for block in spec.blocks),
                index=index,
            )
        except BadInput as e:
            if str(e).startswith("operation "):
                raise
            name = spec.outputs[0].name if spec.outputs else "no output"
            raise BadInput(f"operation {index}, {spec.type!r} ({name}): {e}") from e

    def _binding(self, spec: Any) -> str | Value:
        return self._value(spec.value) if spec.WhichOneof("binding") == "value" else spec.name

    def _output(self, spec: Any) -> Output:
        kind = spec.type.WhichOneof("type")
        return Output(spec.name, _tensor_type(spec.type.tensorType) if kind == "tensorType" else None)

    def _value(self, spec: Any) -> Value:
        kind = spec.type.WhichOneof("type")
        immediate = spec.immediateValue if spec.WhichOneof("value") == "immediateValue" else None
        if kind == "listType" and immediate is not None:
            items = tuple(_scalar(self._value(item).data) for item in immediate.list.values)
            return Value(_tensor_type(spec.type.listType.type.tensorType), items)
        if kind == "dictionaryType" and immediate is not None:
            # only build information is stored so; no operation takes one
            return Value(TensorType(Dtype.STRING, ()), str(immediate.dictionary))
        if kind != "tensorType":
            raise BadInput(f"a value of kind {kind} cannot be read")
        type_ = _tensor_type(spec.type.tensorType)
        self.bytes += math.prod(type_.sides) * 4  # as float32, which is what they become
        if self.bytes > _MAX_BYTES:
            raise BadInput(f"its constants take more than {_MAX_BYTES} bytes")
        if immediate is not None:
            return Value(type_, _immediate(immediate.tensor, type_))
        if spec.WhichOneof("value") != "blobFileValue":
            raise BadInput("a constant has no value")
        blob = spec.blobFileValue
        self.files.add(blob.fileName)
        flat = self.package.weights(blob.fileName).read(blob.offset, type_.dtype, math.prod(type_.sides))
        return Value(type_, flat.reshape(type_.sides))


def _scalar(data: Any) -> Any:
    """A single number as Python has it; anything else as it is."""
    return data.item() if isinstance(data, np.ndarray) and data.ndim == 0 else data


def _tensor_type(spec: Any) -> TensorType:
    names = spec.DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_number
    name = names[spec.dataType].name if spec.dataType in names else str(spec.dataType)
    # FLOAT16 -> fp16, BFLOAT16 -> bf16, UINT4 -> uint4
    short = name.lower().replace("bfloat", "bf").replace("float", "fp")
    if short not in set(Dtype):
        raise BadInput(f"elements of type {name} are not known")
    shape = tuple(
        int(side.constant.size) if side.WhichOneof("dimension") == "constant" else None for side in spec.dimensions
    )
    if spec.rank != len(shape):
        raise BadInput(f"a tensor claims rank {spec.rank} and has {len(shape)} dimensions")
    type_ = TensorType(Dtype(short), shape)
    if type_.elements > MAX_ELEMENTS:
        raise BadInput(f"a tensor claims {type_.elements} elements, more than {MAX_ELEMENTS}")
    return type_


def _immediate(tensor: Any, type_: TensorType) -> np.ndarray | str | tuple:
    sides = type_.sides
    field = tensor.WhichOneof("value")
    if field is None:
        raise BadInput("a constant has no value")
    stored = getattr(tensor, field).values
    if type_.dtype is Dtype.STRING:
        if field != "strings" or len(stored) != type_.elements:
            raise BadInput(f"a constant of {type_.elements} strings holds {len(stored)} {field}")
        return stored[0] if type_.shape == () else tuple(stored)
    if field == "bytes":
        return unpack(stored, type_.dtype, type_.elements).reshape(sides)
    if field not in _FIELDS:
        raise BadInput(f"a constant of {type_.dtype} is written as {field}")
    numbers: np.ndarray = np.array(stored, _FIELDS[field])
    if len(numbers) != math.prod(sides):
        raise BadInput(f"a constant of shape {type_.shape} holds {len(numbers)} numbers")
    wanted = type_.dtype.numpy
    if numbers.dtype != wanted:
        narrow = numbers.astype(wanted)
        if not np.array_equal(narrow, numbers, equal_nan=numbers.dtype.kind == "f"):
            raise BadInput(f"a constant of {type_.dtype} holds numbers that do not fit")
        numbers = narrow
    return numbers.reshape(sides)


def _check_names(inputs: tuple[Output, ...], block: Block, outer: list[set[str]]) -> None:
    """Every name is made before it is used, and made once; `outer` are the names of the blocks around this one."""
    made = {given.name for given in (*inputs, *block.inputs)}
    scopes = [*outer, made]
    for op in block.ops:
        for parameter, arguments in op.inputs.items():
            for argument in arguments:
                if isinstance(argument, str) and not any(argument in scope for scope in scopes):
                    raise BadInput(f"{op}: its {parameter} is {argument!r}, which nothing before it makes")
        for nested in op.blocks:
            _check_names((), nested, scopes)
        for output in op.outputs:
            if output.name in made:
                raise BadInput(f"{op}: {output.name!r} is made twice")
            made.add(output.name)
    for name in block.outputs:
        if not any(name in scope for scope in scopes):
            raise BadInput(f"the result {name!r} is made by no operation")
