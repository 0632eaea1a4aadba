"""Padded traffic on cases computed by hand."""

from __future__ import annotations

import pytest

from pocketvit.measure.ane.audit import audit
from pocketvit.measure.ane.graph import OpRecord, Tensor


def op(kind, inputs, outputs, **more):
    reads = tuple(Tensor(f"in{i}", shape) for i, shape in enumerate(inputs))
    writes = tuple(Tensor(f"out{i}", shape) for i, shape in enumerate(outputs))
    return OpRecord(kind=kind, name="op", inputs=reads, outputs=writes, **more)


@pytest.mark.parametrize(
    ("shape", "dtype", "logical", "padded"),
    [
        ((1, 3, 7, 7), "fp16", 294, 3 * 7 * 64),  # 14 of 64 bytes in each row
        ((4, 32), "fp16", 256, 256),  # exactly one row
        ((4, 33), "fp16", 264, 4 * 128),
        ((196, 1280, 1), "fp16", 196 * 1280 * 2, 196 * 1280 * 64),
        ((4, 32), "fp32", 256, 256),  # the engine has 16-bit floats only
        ((4, 20), "int32", 320, 4 * 128),
        ((100,), "bool", 100, 128),
        ((), "fp16", 2, 64),
        ((None, 8), "fp16", 0, 0),  # not known is not 1
    ],
)
def test_bytes_of_a_tensor(shape, dtype, logical, padded):
    tensor = Tensor("x", shape, dtype)
    assert (tensor.logical_bytes, tensor.padded_bytes) == (logical, padded)


def test_a_reshape_that_keeps_the_last_axis_moves_nothing():
    view = op("reshape", [(1, 4, 8, 40)], [(32, 40)])
    assert view.is_view
    assert not view.is_layout_copy
    assert (view.padded_bytes, view.logical_bytes, view.wasted_bytes) == (0, 0, 0)


def test_a_reshape_that_changes_the_last_axis_and_every_transpose_are_waste_as_a_whole():
    reshape = op("reshape", [(8, 40)], [(8, 5, 8)])
    moved = 8 * 128 + 40 * 64
    assert (reshape.padded_bytes, reshape.wasted_bytes) == (moved, moved)
    transpose = op("transpose", [(2, 64)], [(64, 2)])
    assert transpose.wasted_bytes == 2 * 128 + 64 * 64


def test_computation_wastes_its_padding_only():
    add = op("add", [(8, 16), (8, 16)], [(8, 16)])
    assert (add.padded_bytes, add.logical_bytes, add.wasted_bytes) == (3 * 8 * 64, 3 * 8 * 32, 3 * 8 * 32)


def test_a_cast_counts_its_16_bit_side():
    cast = OpRecord(
        kind="cast", name="c", inputs=(Tensor("a", (4, 64), "fp32"),), outputs=(Tensor("b", (4, 64), "fp16"),)
    )
    assert cast.padded_bytes == 4 * 128


def test_totals_are_sums_and_an_empty_graph_has_none():
    ops = [op("add", [(8, 16)], [(8, 16)], weight_bytes=5), op("transpose", [(8, 16)], [(16, 8)], weight_bytes=6)]
    found = audit(ops)
    assert found.padded_bytes == 2 * 8 * 64 + 8 * 64 + 16 * 64
    assert found.wasted_bytes == 2 * 8 * 32 + 8 * 64 + 16 * 64
    assert (found.ops, found.layout_copies, found.transposes, found.weight_bytes) == (2, 1, 1, 11)
    nothing = audit([])
    assert (nothing.padded_bytes, nothing.padding_ratio, nothing.findings, nothing.groups) == (0, 1.0, (), ())


def test_waste_is_charged_once():
    """A badly shaped batch norm breaks three rules; its bytes appear under one."""
    wide, normed = Tensor("wide", (196, 100, 1)), Tensor("normed", (196, 100, 1))
    ops = [
        OpRecord(kind="expand_dims", name="e", inputs=(Tensor("x", (196, 100)),), outputs=(wide,)),
        OpRecord(kind="batch_norm", name="n", inputs=(wide,), outputs=(normed,)),
        OpRecord(kind="squeeze", name="s", inputs=(normed,), outputs=(Tensor("y", (196, 100)),)),
    ]
    found = audit(ops)
    assert [finding.rule for finding in found.findings] == ["norm"]
    assert found.findings[0].wasted_bytes == found.wasted_bytes == sum(one.wasted_bytes for one in ops)


def test_an_operation_of_unknown_size_is_left_out_and_counted():
    known = op("relu", [(8, 16)], [(8, 16)])
    found = audit([known, op("add", [(8, 16), (None, 16)], [(None, 16)]), op("reshape", [(None, 16)], [(None, 16)])])
    assert (found.padded_bytes, found.left_out) == (known.padded_bytes, 1), "a view moves nothing, known or not"
    assert found.largest_bytes == 8 * 64


def test_findings_and_the_rest_add_up_to_the_waste():
    """40 of 64 values in a row are a finding, 63 are not."""
    found = audit([op("relu", [(8, 40)], [(8, 40)]), op("relu", [(8, 63)], [(8, 63)])])
    assert [finding.wasted_bytes for finding in found.findings] == [2 * 8 * 24 * 2]
    assert found.small_padding_bytes == 2 * 8 * 1 * 2
    assert found.wasted_share == found.wasted_bytes / found.padded_bytes == (48 + 2) / (2 * 128)
