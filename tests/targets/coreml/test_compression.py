"""Compressed weights: single operations against the definition, whole models against coremltools' own unpacking."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.targets.coreml.ops import compression as ops

from . import oracles_compression as oracle
from .conftest import save_program

COVERS = {
    "constexpr_affine_dequantize": "test_affine_dequantize",
    "constexpr_cast": "test_constexpr_cast",
    "constexpr_lut_to_dense": "test_palettes",
    "constexpr_sparse_to_dense": "test_sparse",
    "constexpr_blockwise_shift_scale": "test_blockwise_shift_scale",
    "constexpr_lut_to_sparse": "test_sparse_palettes",
    "constexpr_sparse_blockwise_shift_scale": "test_sparse_blockwise_shift_scale",
    "quantize": "test_quantize",
    "dequantize": "test_dequantize",
}
EPSILON = np.finfo(np.float32).eps
BITS = (1, 2, 3, 4, 6, 8)


@pytest.fixture
def rows() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def constants(run_op):
    """Run a program of constant operations only: constants(build, ios=18) with build(mb) -> their results."""

    def run(build, ios: int) -> list[np.ndarray]:
        def added(mb, zero):
            results = [mb.cast(x=c, dtype="fp32") if "int" in c.dtype.__name__ else c for c in build(mb)]
            results = [mb.cast(x=c, dtype="fp32") if c.dtype.__name__ == "fp16" else c for c in results]
            return [mb.add(x=c, y=zero) for c in results]

        return run_op(added, {"zero": np.zeros(1, np.float32)}, ios=ios)

    return run


def narrow(values: np.ndarray, kind: str) -> np.ndarray:
    """Values that coremltools stores in a type of less than a byte."""
    from coremltools.converters.mil.mil import types

    return values.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))


def packed(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of a few bits in bytes, from the lowest bit up."""
    whole = sum(int(n) << (i * bits) for i, n in enumerate(numbers))
    return np.frombuffer(whole.to_bytes((len(numbers) * bits + 7) // 8, "little"), np.uint8)


@pytest.mark.parametrize("ios", [16, 17])
def test_affine_dequantize(constants, rows, ios):
    cases = []
    for kind, low, high in ((np.uint8, 0, 255), (np.int8, -128, 127)):
        data = rows.integers(low, high, (3, 4, 2), endpoint=True).astype(kind)
        zero = rows.integers(low, high, 4).astype(kind)
        scale = rows.uniform(0.01, 1, 4).astype(np.float32)
        cases += [(data, zero, scale, 1), (data, zero[0], scale[0], 0), (data, zero[1], scale, -2)]
        cases += [(data, zero[:2], scale[:2].astype(np.float16), -1), (data, np.float32(1.5), scale[0], 0)]
    found = constants(
        lambda mb: [
            mb.constexpr_affine_dequantize(quantized_data=d, zero_point=z, scale=s, axis=np.int32(a))
            for d, z, s, a in cases
        ],
        ios,
    )
    for got, (data, zero, scale, axis) in zip(found, cases, strict=True):
        # the oracle's product is exact in float64 and rounded once, as is one of float32
        assert_array_equal(got, oracle.affine_dequantize(data, scale, zero, axis), f"{data.dtype}, axis {axis}")


def test_constexpr_cast(constants):
    values = np.array([0.1, -2.5, 65504, 2**-24], np.float16)
    for ios in (16, 18):
        (found,) = constants(lambda mb: [mb.constexpr_cast(source_val=values, output_dtype="fp32")], ios)
        assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("ios", [16, 17])
def test_palettes_in_bytes(constants, rows, ios):
    cases = []
    for bits in (1, 2, 4, 6, 8):
        for shape in ((5,), (3, 7), (2, 3, 4)):  # 5 and 21 indices end inside a byte
            lut = rows.normal(size=1 << bits)
            kind = (np.float32, np.float16, np.float32)[len(shape) - 1]
            numbers = rows.integers(0, 1 << bits, np.prod(shape))
            cases.append((packed(numbers, bits), lut.astype(kind), shape, lut.astype(kind)[numbers].reshape(shape)))
    whole = np.array([-128, 3, 7, 127], np.int8)
    if ios == 17:  # no other operation takes int8 before
        cases.append((packed(np.array([3, 0, 1, 2, 2]), 2), whole, (5,), whole[[3, 0, 1, 2, 2]]))
    found = constants(
        lambda mb: [
            mb.constexpr_lut_to_dense(indices=i, lut=lut, shape=np.array(shape, np.uint32))
            for i, lut, shape, _ in cases
        ],
        ios,
    )
    for got, (indices, lut, shape, expected) in zip(found, cases, strict=True):
        assert_array_equal(got, expected, f"{len(lut)} entries, {shape}")
        assert_array_equal(oracle.packed_lut(indices, lut, shape), expected)


def test_palettes_in_bytes_of_the_definition():
    # i0 = 0, i1 = 3, i2 = 2, i3 = 1 fill the first byte from the right, i4 = 3 begins the second
    lut = torch.tensor([10.0, 11.0, 12.0, 13.0])
    packed_ = torch.tensor([0b01101100, 0b00000011], dtype=torch.uint8)
    assert ops.constexpr_lut_to_dense(packed_, lut, shape=(5,)).tolist() == [10, 13, 12, 11, 13]


def test_palettes(constants, rows):
    cases: list[tuple[int, np.ndarray, np.ndarray, int | None]] = []
    for bits in BITS:
        shape = (4, 6, 2)
        indices = rows.integers(0, 1 << bits, shape)
        for groups in ((1, 1, 1), (2, 1, 1), (1, 3, 2)):
            cases.append((bits, indices, rows.normal(size=(*groups, 1 << bits, 1)).astype(np.float32), None))
        for axis, groups in ((0, (1, 1, 1)), (1, (2, 3, 1)), (-1, (1, 6, 2))):
            lut = rows.normal(size=(*groups, 1 << bits, 3)).astype((np.float32, np.float16)[axis])
            cases.append((bits, indices, lut, axis))
    cases.append((2, rows.integers(0, 4, (3, 5)), rows.integers(-128, 127, (1, 1, 4, 1)).astype(np.int8), None))
    cases.append((2, rows.integers(0, 4, (7,)), rows.integers(0, 255, (1, 4, 2)).astype(np.uint8), 0))

    def build(mb):
        return [
            mb.constexpr_lut_to_dense(
                indices=narrow(indices, f"uint{bits}"), lut=lut, **({} if axis is None else {"vector_axis": axis})
            )
            for bits, indices, lut, axis in cases
        ]

    for got, (bits, indices, lut, axis) in zip(constants(build, 18), cases, strict=True):
        assert_array_equal(got, oracle.looked_up(indices, lut, axis), f"{bits} bits, {lut.shape}, along {axis}")


def test_palettes_of_the_definition():
    # its two groups of scalars, and its vectors along axis 1 (a is 1, 2, 3 and b is 4, 5, 6)
    indices = torch.tensor([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], dtype=torch.uint8).reshape(6, 2)
    lut = torch.tensor([1.0, 5, 9, 13, 2, 10, 18, 26]).reshape(2, 1, 4, 1)
    expected = [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    assert ops.constexpr_lut_to_dense(indices, lut).tolist() == expected
    indices = torch.tensor([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], dtype=torch.uint8)
    vectors = torch.tensor([1, 2, 3, 4, 5, 6], dtype=torch.int8).reshape(1, 1, 1, 2, 3)
    expected = [[[1, 1], [2, 2], [3, 3], [4, 1], [5, 2], [6, 3]], [[4, 4], [5, 5], [6, 6], [1, 1], [2, 2], [3, 3]]]
    assert ops.constexpr_lut_to_dense(indices, vectors, vector_axis=1).tolist() == expected
    expected = [[[1, 2, 3, 1, 2, 3], [4, 5, 6, 1, 2, 3]], [[4, 5, 6, 4, 5, 6], [1, 2, 3, 1, 2, 3]]]
    assert ops.constexpr_lut_to_dense(indices, vectors, vector_axis=2).tolist() == expected


@pytest.mark.parametrize("ios", [16, 17])
def test_sparse_in_bytes(constants, rows, ios):
    cases = []
    for shape, kind in (((5,), np.float32), ((3, 7), np.float16), ((2, 4, 4), np.int8), ((2, 3), np.uint8)):
        if ios == 16 and kind in (np.int8, np.uint8):  # no other operation takes them before iOS 17
            continue
        mask = rows.integers(0, 2, np.prod(shape))
        values = rows.integers(1, 100, mask.sum()).astype(kind)
        cases.append((values, packed(mask, 1), shape, mask.reshape(shape)))
    found = constants(
        lambda mb: [
            mb.constexpr_sparse_to_dense(nonzero_data=v, mask=m, shape=np.array(shape, np.uint32))
            for v, m, shape, _ in cases
        ],
        ios,
    )
    for got, (values, packed_mask, shape, mask) in zip(found, cases, strict=True):
        expected = oracle.spread(values, mask)
        assert_array_equal(got, expected)
        assert_array_equal(oracle.packed_sparse(values, packed_mask, shape), expected)


def test_sparse(constants, rows):
    cases = []
    for kind in ("fp32", "fp16", "int8", "uint8", "int4", "uint4"):
        mask = rows.integers(0, 2, (3, 5, 3))
        values = rows.integers(-8 if kind == "int4" else 0, 8 if kind == "int4" else 16, mask.sum())
        cases.append((narrow(values, kind), mask))

    # int4 and uint4 cannot leave a program; they are scaled by 1 on the way
    def build(mb):
        dense = [mb.constexpr_sparse_to_dense(nonzero_data=v, mask=narrow(m, "uint1")) for v, m in cases]
        one = np.ones((1, 1, 1), np.float32)
        return dense[:4] + [mb.constexpr_blockwise_shift_scale(data=d, scale=one) for d in dense[4:]]

    for got, (values, mask) in zip(constants(build, 18), cases, strict=True):
        assert_array_equal(got, oracle.spread(values, mask), str(values.dtype))


def test_blockwise_shift_scale(constants, rows):
    cases: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
    for kind, low, high in (("int4", -8, 8), ("uint4", 0, 16), ("int8", -128, 128), ("uint8", 0, 256)):
        data = narrow(rows.integers(low, high, (4, 6, 2)), kind)
        for groups in ((1, 1, 1), (4, 1, 1), (2, 3, 1), (4, 6, 2)):
            scale = rows.uniform(0.01, 1, groups).astype(np.float16 if groups[0] == 2 else np.float32)
            offset = narrow(rows.integers(low, high, groups), kind)
            cases += [
                (data, scale, None),
                (data, scale, offset),
                (data, scale, rows.normal(size=groups).astype(scale.dtype)),
            ]
    data = rows.normal(size=(4, 6)).astype(np.float32)
    cases.append((data, rows.uniform(1, 2, (2, 3)).astype(np.float32), rows.normal(size=(2, 3)).astype(np.float32)))

    def build(mb):
        return [
            mb.constexpr_blockwise_shift_scale(data=d, scale=s, **({} if o is None else {"offset": o}))
            for d, s, o in cases
        ]

    for got, (data, scale, offset) in zip(constants(build, 18), cases, strict=True):
        assert_array_equal(got, oracle.blockwise(data, scale, offset), f"{data.dtype}, blocks of {scale.shape}")


def test_sparse_palettes(constants, rows):
    cases = []
    for bits in BITS:
        mask = rows.integers(0, 2, (4, 6))
        indices = rows.integers(0, 1 << bits, mask.sum())
        for groups, length, axis in (((1, 1), 1, None), ((2, 3), 1, None), ((1, 1), 2, 0), ((4, 1), 3, -1)):
            lut = rows.normal(size=(*groups, 1 << bits, length)).astype(np.float32)
            cases.append((bits, mask, indices, lut, axis))

    def build(mb):
        results = []
        for bits, mask, indices, lut, axis in cases:
            wide, values = mb.constexpr_lut_to_sparse(
                indices_mask=narrow(mask, "uint1"),
                indices_nonzero_data=narrow(indices, f"uint{bits}"),
                lut=lut,
                **({} if axis is None else {"vector_axis": axis}),
            )
            results += [values, mb.constexpr_sparse_to_dense(nonzero_data=values, mask=wide)]
        return results

    found = constants(build, 18)
    for k, (bits, mask, indices, lut, axis) in enumerate(cases):
        wide, values = oracle.lut_to_sparse(mask, indices, lut, axis)
        assert_array_equal(found[2 * k], values, f"{bits} bits, {lut.shape}, along {axis}")
        assert_array_equal(found[2 * k + 1], oracle.spread(values, wide), f"{bits} bits, {lut.shape}, along {axis}")


def test_sparse_palettes_of_the_definition():
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]]).byte()
    indices = torch.tensor([0, 1, 1, 0, 1, 1, 0, 0, 1]).byte()
    same, values = ops.constexpr_lut_to_sparse(mask, indices, torch.tensor([2.0, 3.0]).reshape(1, 1, 2, 1))
    assert torch.equal(same, mask)
    assert values.tolist() == [2, 3, 3, 2, 3, 3, 2, 2, 3]
    wide, values = ops.constexpr_lut_to_sparse(
        mask, indices, torch.tensor([[2.0, 2.0], [3.0, 3.0]]).reshape(1, 1, 2, 2), vector_axis=0
    )
    assert torch.equal(wide, torch.repeat_interleave(mask, 2, 0))
    assert values.tolist() == [2, 3, 2, 3, 3, 2, 3, 3, 2, 3, 3, 2, 2, 3, 2, 2, 3, 3]


def test_sparse_blockwise_shift_scale(constants, rows):
    cases = []
    for kind, low, high in (("int4", -8, 8), ("uint4", 0, 16), ("int8", -128, 128), ("uint8", 0, 256)):
        mask = rows.integers(0, 2, (4, 6))
        values = narrow(rows.integers(low, high, mask.sum()), kind)
        for groups in ((1, 1), (4, 1), (2, 3)):
            scale = rows.uniform(0.01, 1, groups).astype(np.float32)
            cases += [
                (mask, values, scale, None),
                (mask, values, scale, narrow(rows.integers(low, high, groups), kind)),
            ]

    def build(mb):
        results = []
        for mask, values, scale, offset in cases:
            same, scaled = mb.constexpr_sparse_blockwise_shift_scale(
                data_mask=narrow(mask, "uint1"),
                nonzero_data=values,
                scale=scale,
                **({} if offset is None else {"offset": offset}),
            )
            results.append(mb.constexpr_sparse_to_dense(nonzero_data=scaled, mask=same))
        return results

    for got, (mask, values, scale, offset) in zip(constants(build, 18), cases, strict=True):
        assert_array_equal(got, oracle.spread(oracle.sparse_blockwise(mask, values, scale, offset)[1], mask))


def test_chains(constants, rows):
    indices, mask = rows.integers(0, 4, (4, 6)), rows.integers(0, 2, (4, 6))
    lut = rows.integers(-128, 128, (2, 1, 4, 1)).astype(np.int8)
    scale = rows.uniform(0.01, 1, (4, 1)).astype(np.float32)
    table_scale = rows.uniform(0.01, 1, (2, 1, 1, 1)).astype(np.float32)
    some = rows.integers(0, 4, mask.sum())

    def build(mb):
        dense = mb.constexpr_lut_to_dense(indices=narrow(indices, "uint2"), lut=lut)
        table = mb.constexpr_blockwise_shift_scale(data=lut, scale=table_scale)
        wide, values = mb.constexpr_lut_to_sparse(
            indices_mask=narrow(mask, "uint1"), indices_nonzero_data=narrow(some, "uint2"), lut=lut
        )
        wide, values = mb.constexpr_sparse_blockwise_shift_scale(data_mask=wide, nonzero_data=values, scale=scale)
        return [
            mb.constexpr_blockwise_shift_scale(data=dense, scale=scale),
            mb.constexpr_lut_to_dense(indices=narrow(indices, "uint2"), lut=table),
            mb.constexpr_sparse_to_dense(nonzero_data=values, mask=wide),
        ]

    found = constants(build, 18)
    assert_array_equal(found[0], oracle.blockwise(oracle.looked_up(indices, lut), scale))
    assert_array_equal(found[1], oracle.looked_up(indices, oracle.blockwise(lut, table_scale)))
    assert_array_equal(found[2], oracle.blockwise(oracle.looked_up(oracle.spread(some, mask), lut), scale) * mask)


def test_damaged_weights_are_refused():
    nine, lut = torch.zeros(9, dtype=torch.uint8), torch.zeros(1, 1, 4, 1)
    with pytest.raises(BadInput, match="12 numbers of 4 bits are not"):
        ops.constexpr_lut_to_dense(nine, torch.zeros(16), shape=(3, 4))
    with pytest.raises(BadInput, match=r"lut of \(5,\) is not a vector of 2, 4, 16"):
        ops.constexpr_lut_to_dense(nine, torch.zeros(5), shape=(9,))
    with pytest.raises(BadInput, match="looks up entry 4 of 4"):
        ops.constexpr_lut_to_dense(torch.full((2, 2), 4, dtype=torch.uint8), lut)
    with pytest.raises(BadInput, match="does not divide"):
        ops.constexpr_blockwise_shift_scale(torch.zeros(4, 6), torch.ones(3, 1))
    with pytest.raises(BadInput, match="set 9 times for 4 values"):
        ops.constexpr_sparse_to_dense(torch.ones(4), torch.ones(3, 3, dtype=torch.uint8))
    with pytest.raises(BadInput, match="vector_axis is None"):
        ops.constexpr_lut_to_dense(torch.zeros((2, 2), dtype=torch.uint8), torch.zeros(1, 1, 4, 2))


def quantized(x: np.ndarray, scale: Any, zero: Any, kind: str) -> np.ndarray:
    low, high = (-128, 127) if kind == "int8" else (0, 255)
    return np.clip(np.round(x / scale) + np.float32(zero), low, high)


def test_quantize(run_op, rows):
    # halves (x / 0.5 is exact) and values past both ends
    x = np.concatenate([np.arange(-8, 8) / 4, rows.normal(scale=300, size=8)]).astype(np.float32).reshape(2, 3, 4)
    vector = np.array([0.5, 0.25, 2], np.float32)
    cases = [
        ("int8", np.float32(0.5), None, None),
        ("int8", np.float32(0.5), np.int8(-7), None),
        ("uint8", np.float32(0.5), np.uint8(200), None),
        ("uint8", vector, np.array([0, 128, 255], np.uint8), 1),
        ("int8", vector, np.array([-128, 0, 127], np.int8), -2),
        ("int8", vector[:2], None, 0),
    ]

    def build(mb, x):
        results = []
        for kind, scale, zero, axis in cases:
            more = ({} if zero is None else {"zero_point": zero}) | ({} if axis is None else {"axis": axis})
            results.append(mb.cast(x=mb.quantize(input=x, scale=scale, output_dtype=kind, **more), dtype="int32"))
        return results

    for ios in (17, 18):
        for got, (kind, scale, zero, axis) in zip(run_op(build, {"x": x}, ios=ios), cases, strict=True):
            wide = [1 if axis is None or i != axis % 3 else -1 for i in range(3)]
            expected = quantized(x, scale.reshape(wide), 0 if zero is None else zero.reshape(wide), kind)
            assert_array_equal(got, expected, f"{kind}, axis {axis}")


def test_dequantize(run_op, rows):
    x = rows.normal(scale=40, size=(2, 3, 4)).astype(np.float32)
    cases = [
        ("int8", np.float32(0.3), None, None),
        ("uint8", np.float32(0.3), np.uint8(100), None),
        ("int8", np.array([0.1, 0.2, 0.7], np.float32), np.array([-128, 3, 127], np.int8), 1),
        ("uint8", np.array([0.1, 0.2, 0.7, 1.1], np.float32), np.array([0, 3, 128, 255], np.uint8), -1),
        ("int8", np.array([0.1, 0.2], np.float32), None, -3),
    ]

    def build(mb, x):
        results = []
        for kind, scale, zero, axis in cases:
            more = ({} if zero is None else {"zero_point": zero}) | ({} if axis is None else {"axis": axis})
            levels = mb.quantize(input=x, scale=np.float32(0.5), output_dtype=kind)
            results.append(mb.dequantize(input=levels, scale=scale, **more))
        return results

    for ios in (17, 18):
        for got, (kind, scale, zero, axis) in zip(run_op(build, {"x": x}, ios=ios), cases, strict=True):
            levels = quantized(x, np.float32(0.5), 0, kind)
            assert_array_equal(got, oracle.affine_dequantize(levels, scale, zero, axis), f"{kind}, axis {axis}")


# a small network, compressed by coremltools: what is done to it, one step after the other, and what that makes of it
_GROUPS = {"granularity": "per_grouped_channel", "group_size": 4}
_SHIFT, _LUT, _SPARSE = "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense", "constexpr_sparse_to_dense"
_BLOCKS = {"granularity": "per_block"}
COMPRESSIONS: dict[str, tuple[tuple[tuple[str, dict[str, Any]], ...], set[str]]] = {
    "int8 per channel": ((("quantize", {}),), {_SHIFT}),
    "int8 with offsets": ((("quantize", {"mode": "linear", "granularity": "per_tensor"}),), {_SHIFT}),
    "uint8 with offsets": ((("quantize", {"mode": "linear", "dtype": "uint8"}),), {_SHIFT}),
    "int4 per channel": ((("quantize", {"dtype": "int4"}),), {_SHIFT}),
    "int4 per block": ((("quantize", {"dtype": "int4", "block_size": 4, **_BLOCKS}),), {_SHIFT}),
    "uint4 per block": ((("quantize", {"mode": "linear", "dtype": "uint4", "block_size": 2, **_BLOCKS}),), {_SHIFT}),
    "8 bits": ((("palettize", {"nbits": 8}),), {_LUT}),
    "6 bits": ((("palettize", {"nbits": 6}),), {_LUT}),
    "4 bits in groups": ((("palettize", {"nbits": 4, **_GROUPS}),), {_LUT}),
    "3 bits": ((("palettize", {"nbits": 3}),), {_LUT}),
    "2 bits in groups": ((("palettize", {"nbits": 2, "channel_axis": 0, **_GROUPS}),), {_LUT}),
    "1 bit": ((("palettize", {"nbits": 1}),), {_LUT}),
    "4 bits and scales": ((("palettize", {"nbits": 4, "enable_per_channel_scale": True, **_GROUPS}),), {_LUT, _SHIFT}),
    "pruned": ((("prune", {}),), {_SPARSE}),
    "pruned, int8": ((("prune", {}), ("quantize", {})), {"constexpr_sparse_blockwise_shift_scale", _SPARSE}),
    "pruned, 4 bits": ((("prune", {}), ("palettize", {"nbits": 4})), {"constexpr_lut_to_sparse", _SPARSE}),
    "4 bits, table in int8": (
        (("palettize", {"nbits": 4}), ("quantize", {"granularity": "per_tensor"})),
        {_LUT, _SHIFT},
    ),
}  # fmt: skip
COMPRESSIONS_IOS16 = {
    **{name: COMPRESSIONS[name] for name in ("8 bits", "6 bits", "1 bit", "pruned")},
    "int8 per channel": (COMPRESSIONS["int8 per channel"][0], {"constexpr_affine_dequantize"}),
    "uint8 with offsets": (COMPRESSIONS["uint8 with offsets"][0], {"constexpr_affine_dequantize"}),
    "4 bits": ((("palettize", {"nbits": 4}),), {_LUT}),
    "2 bits": ((("palettize", {"nbits": 2}),), {_LUT}),
}
NETWORK_INPUT = (1, 4, 5, 5)


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[tuple[int, str], Path]:
    """Two convolutions and a linear layer, by iOS version and by the type that the weights have."""
    rows = np.random.default_rng(1)
    first, second = rows.normal(size=(8, 4, 3, 3)), rows.normal(size=(16, 8, 1, 1))
    last = rows.normal(size=(32, 64))

    def build(mb, x):
        x = mb.relu(x=mb.conv(x=x, weight=np.float32(first), strides=[2, 2], pad_type="valid"))
        x = mb.relu(x=mb.conv(x=x, weight=np.float32(second), pad_type="valid"))
        return mb.linear(x=mb.reshape(x=x, shape=(1, -1)), weight=np.float32(last), bias=np.zeros(32, np.float32))

    folder = tmp_path_factory.mktemp("networks")
    return {
        (ios, kind): save_program(
            folder / f"{kind}-{ios}.mlpackage", build, {"x": np.zeros(NETWORK_INPUT, np.float32)}, ios, kind == "fp16"
        )
        for ios, kind in ((18, "fp32"), (18, "fp16"), (16, "fp32"), (16, "fp16"))
    }


def compressed(model: Any, steps: tuple[tuple[str, dict[str, Any]], ...]) -> Any:
    """The model after coremltools' compression; later steps work on what earlier ones left."""
    import coremltools.optimize.coreml as cto

    configs = {
        "quantize": cto.OpLinearQuantizerConfig,
        # evenly spaced entries; how coremltools chooses better ones is its own affair
        "palettize": lambda **options: cto.OpPalettizerConfig(mode="uniform", **options),
        "prune": lambda **options: cto.OpMagnitudePrunerConfig(target_sparsity=0.6, **options),
    }
    passes = {
        "quantize": cto.linear_quantize_weights,
        "palettize": cto.palettize_weights,
        "prune": cto.prune_weights,
    }
    for i, (kind, options) in enumerate(steps):
        config = cto.OptimizationConfig(global_config=configs[kind](weight_threshold=0, **options))
        model = passes[kind](model, config, **({"joint_compression": True} if i else {}))
    return model


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("ios", "how"), [*((18, how) for how in COMPRESSIONS), *((16, how) for how in COMPRESSIONS_IOS16)]
)
def test_compressed_network(networks, ios, how, kind, tmp_path):
    import coremltools as ct
    import coremltools.optimize.coreml as cto

    steps, kinds = (COMPRESSIONS if ios == 18 else COMPRESSIONS_IOS16)[how]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = compressed(ct.models.MLModel(str(networks[ios, kind]), skip_model_load=True), steps)
        model.save(str(tmp_path / "small.mlpackage"))
        cto.decompress_weights(model).save(str(tmp_path / "large.mlpackage"))
    arithmetic = "fp16-fp32acc" if kind == "fp16" else "fp32"
    small, large = (Interpreter(tmp_path / f"{size}.mlpackage", arithmetic) for size in ("small", "large"))

    # the packages as they are: what the definition makes of what is stored
    constants: dict[str, np.ndarray] = {}
    found = [op for op in small.program.block.ops if op.kind.startswith("constexpr")]
    assert {op.kind for op in found} == kinds
    for op in found:
        constants |= zip([o.name for o in op.outputs], oracle.unpacked(op, constants), strict=True)
    users = [op for op in small.program.block.ops if "weight" in op.inputs]
    assert len(users) == 3

    # the packages as they run
    x = np.random.default_rng(2).normal(size=NETWORK_INPUT).astype(np.float32)
    ours, theirs = weights_used(small, x), weights_used(large, x)
    rounding = 2.0**-11 if kind == "fp16" else 0.0
    for op, one, other in zip(users, ours, theirs, strict=True):
        expected = constants[op.inputs["weight"][0]]
        # float32: one product, rounded once. fp16: rounded once more, as the result is stored
        assert_allclose(one, expected, rtol=rounding + EPSILON, atol=rounding and 2.0**-25, err_msg="the definition")
        assert_array_equal(one, other, "coremltools' own unpacking")
    assert_array_equal(*(next(iter(each.predict({"x": x}).values())) for each in (small, large)))


def weights_used(interpreter: Interpreter, x: np.ndarray) -> list[np.ndarray]:
    seen: list[np.ndarray] = []
    interpreter.run({"x": x}, lambda op, given, results: seen.append(given["weight"]) if "weight" in given else None)
    return seen
