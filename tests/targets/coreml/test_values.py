"""Stored numbers of every type: packed by hand, and as coremltools writes them into descriptions and weight files."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.package import WeightFile, read_package
from pocketvit.targets.coreml.program import read_program
from pocketvit.targets.coreml.values import Dtype, TensorType, Value, unpack

from .conftest import save_program

COVERS: dict[str, str] = {}
# type, the letter that struct packs it with, values with both ends of the range
WHOLE_BYTES = [
    (Dtype.FP16, "e", (0.5, -2.0, 65504.0, 2.0**-24, float("inf"))),
    (Dtype.FP32, "f", (0.5, -1.5, 2.0**127, 2.0**-149, float("-inf"))),
    (Dtype.FP64, "d", (0.1, -1.7e308, 5e-324)),
    (Dtype.INT8, "b", (-128, -1, 0, 127)),
    (Dtype.UINT8, "B", (0, 1, 128, 255)),
    (Dtype.INT16, "h", (-32768, -1, 32767)),
    (Dtype.UINT16, "H", (0, 258, 65535)),
    (Dtype.INT32, "i", (-(2**31), -1, 2**31 - 1)),
    (Dtype.UINT32, "I", (0, 0x01020304, 2**32 - 1)),
    (Dtype.INT64, "q", (-(2**63), -1, 2**63 - 1)),
    (Dtype.UINT64, "Q", (0, 1, 2**64 - 1)),
]
# type, bytes, numbers: written out bit by bit, the first number in the lowest bits of the first byte
PARTS_OF_BYTES = [
    (Dtype.UINT1, [0b10110010, 0b00000001], [0, 1, 0, 0, 1, 1, 0, 1, 1]),
    (Dtype.UINT2, [0b01_10_11_00, 0b00_00_00_11], [0, 3, 2, 1, 3]),
    # 7 is 111: two of its bits end the first byte, the third begins the second
    (Dtype.UINT3, [0b11_010_001, 0b0_000_011_1], [1, 2, 7, 3, 0]),
    (Dtype.UINT4, [0x21, 0xF3, 0x0A], [1, 2, 3, 15, 10]),
    (Dtype.UINT6, [0b01_100001, 0b1010_1110, 0b111111_00], [33, 57, 10, 63]),
    (Dtype.INT4, [0x81, 0x7F, 0x0E], [1, -8, -1, 7, -2]),
]


@pytest.mark.parametrize(("dtype", "letter", "values"), WHOLE_BYTES, ids=[str(row[0]) for row in WHOLE_BYTES])
def test_numbers_of_whole_bytes(dtype, letter, values):
    raw = struct.pack(f"<{len(values)}{letter}", *values)
    found = unpack(raw, dtype, len(values))
    assert found.tolist() == list(values)
    assert found.dtype == dtype.numpy
    assert_array_equal(unpack(np.frombuffer(raw, np.uint8), dtype, len(values)), found)


@pytest.mark.parametrize(("dtype", "raw", "values"), PARTS_OF_BYTES, ids=[str(row[0]) for row in PARTS_OF_BYTES])
def test_numbers_of_parts_of_bytes(dtype, raw, values):
    found = unpack(bytes(raw), dtype, len(values))
    assert found.tolist() == values
    assert found.dtype == (np.int8 if dtype is Dtype.INT4 else np.uint8)


def test_uint6_by_arithmetic():
    # the same rule said another way: one long number, of which each takes 6 bits
    values = [33, 57, 10, 63, 0, 1, 62]
    long = sum(value << (6 * i) for i, value in enumerate(values))
    assert unpack(long.to_bytes(6, "little"), Dtype.UINT6, 7).tolist() == values


def test_bf16():
    # the upper half of a float32: 1.0 is 3F80, -2.5 is C020, the largest is 7F7F
    raw = bytes.fromhex("803f20c07f7f80ff")
    assert unpack(raw, Dtype.BF16, 4).tolist() == [1.0, -2.5, 3.3895313892515355e38, float("-inf")]
    assert unpack(raw, Dtype.BF16, 4).dtype == np.float32


def test_bool():
    assert unpack(bytes([0, 1, 2]), Dtype.BOOL, 3).tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [dtype for dtype in Dtype if dtype is not Dtype.STRING])
def test_too_few_or_too_many_bytes_are_refused(dtype):
    needed = -(-9 * dtype.bits // 8)
    assert len(unpack(bytes(needed), dtype, 9)) == 9
    for size in (needed - 1, needed + 1):
        with pytest.raises(BadInput, match=f"9 elements of {dtype} take {needed} bytes, not {size}"):
            unpack(bytes(size), dtype, 9)


def test_types():
    bits = {"fp16": 16, "bf16": 16, "fp32": 32, "fp64": 64, "bool": 8, "string": 0, "int4": 4, "uint1": 1, "uint6": 6}
    assert {name: Dtype(name).bits for name in bits} == bits
    assert {dtype for dtype in Dtype if dtype.is_float} == {Dtype.FP16, Dtype.FP32, Dtype.FP64, Dtype.BF16}
    assert {dtype for dtype in Dtype if not dtype.is_float and not dtype.is_integer} == {Dtype.BOOL, Dtype.STRING}
    with pytest.raises(BadInput, match="strings"):
        _ = Dtype.STRING.numpy
    known, unknown = TensorType(Dtype.FP16, (2, 3)), TensorType(Dtype.INT4, (2, None))
    assert (str(known), known.elements, known.is_static) == ("fp16(2, 3)", 6, True)
    assert (str(unknown), unknown.elements, unknown.is_static) == ("int4(2, ?)", 2, False)


# how coremltools' writer is called, and the values it is given as
WRITERS = {
    Dtype.FP32: ("float", np.float32), Dtype.FP16: ("fp16", np.float16), Dtype.INT8: ("int8", np.int8),
    Dtype.UINT8: ("uint8", np.uint8), Dtype.INT16: ("int16", np.int16), Dtype.UINT16: ("uint16", np.uint16),
    Dtype.INT32: ("int32", np.int32), Dtype.UINT32: ("uint32", np.uint32), Dtype.INT4: ("int4", np.int8),
    Dtype.UINT1: ("uint1", np.uint8), Dtype.UINT2: ("uint2", np.uint8), Dtype.UINT3: ("uint3", np.uint8),
    Dtype.UINT4: ("uint4", np.uint8), Dtype.UINT6: ("uint6", np.uint8),
}  # fmt: skip


def drawn(dtype: Dtype, count: int, kind: type) -> np.ndarray:
    """Values over the whole range of a type, both ends among them."""
    rows = np.random.default_rng(dtype.bits)
    if dtype.is_float:
        return rows.normal(scale=100, size=count).astype(kind)
    signed = dtype.value.startswith("int")
    low, high = (-(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1) if signed else (0, 2**dtype.bits - 1)
    values = rows.integers(low, high, count, endpoint=True)
    values[:2] = low, high
    return values.astype(kind)


def test_weight_files_that_coremltools_writes(tmp_path):
    from coremltools.libmilstoragepython import _BlobStorageWriter

    path, stored = tmp_path / "weight.bin", {}
    writer = _BlobStorageWriter(str(path))
    for dtype, (name, kind) in WRITERS.items():
        for count in (2, 13, 64):
            values = drawn(dtype, count, kind)
            given = values.view(np.uint16) if dtype is Dtype.FP16 else values
            stored[dtype, count] = getattr(writer, f"write_{name}_data")(given), values
    del writer
    weights = WeightFile(path, np.fromfile(path, np.uint8))
    for (dtype, count), (offset, values) in stored.items():
        assert_array_equal(weights.read(offset, dtype, count), values, f"{count} of {dtype}")

    offset, _ = stored[Dtype.INT4, 13]
    with pytest.raises(BadInput, match=f"stores int4 at byte {offset}, but the program expects uint4"):
        weights.read(offset, Dtype.UINT4, 13)
    with pytest.raises(BadInput, match="15 elements of int4 take 8 bytes, not 7"):
        weights.read(offset, Dtype.INT4, 15)
    with pytest.raises(BadInput, match=f"holds no weights at byte {offset + 64}"):
        weights.read(offset + 64, Dtype.INT4, 13)


def test_constants_of_programs(tmp_path):
    """Few elements lie in the description, ten and more in the weight file."""
    from coremltools.converters.mil.mil import types

    plain = {
        f"{dtype}_{count}": drawn(dtype, count, WRITERS[dtype][1]).reshape(shape)
        for dtype in (Dtype.FP32, Dtype.FP16, Dtype.INT8, Dtype.UINT8, Dtype.INT16, Dtype.UINT16, Dtype.INT32)
        for count, shape in ((6, (2, 3)), (12, (3, 4)))
    }
    plain |= {"truths": np.array([True, False, True]), "one": np.float32(0.1), "half": np.float16(0.1)}
    narrow = {
        f"{dtype}_{count}": drawn(dtype, count, WRITERS[dtype][1]).astype(
            types.nptype_from_builtin(types.string_to_builtin(str(dtype)))
        )
        for dtype in (Dtype.INT4, Dtype.UINT4)
        for count in (5, 21)
    }

    def build(mb, x):
        results = [mb.cast(x=mb.const(val=value, name=name), dtype="fp32") for name, value in plain.items()]
        results += [
            mb.constexpr_blockwise_shift_scale(data=value, scale=np.ones(1, np.float32), name=name)
            for name, value in narrow.items()
        ]
        return [mb.mul(x=result, y=x) for result in results]

    path = save_program(tmp_path / "constants.mlpackage", build, {"x": np.ones(1, np.float32)}, 18)
    ops = read_program(read_package(path)).block.ops
    found = {op.name: op.attributes["val"] for op in ops if op.kind == "const"}
    found |= {op.name: op.inputs["data"][0] for op in ops if op.kind.startswith("constexpr")}
    for name, values in (plain | narrow).items():
        value = found[name]
        assert isinstance(value, Value)
        assert value.type.shape == values.shape
        assert str(value.type.dtype) == (
            "bool" if name == "truths" else {"one": "fp32", "half": "fp16"}.get(name, name.split("_")[0])
        )
        assert_array_equal(value.data, values, name)
