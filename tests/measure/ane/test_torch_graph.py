"""From torch to records: what is counted, what the converter would remove, and where each operation comes from."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pocketvit.errors import CheckFailed
from pocketvit.measure.ane.torch_graph import torch_records
from pocketvit.models import create, deployable
from pocketvit.models.graph import capture

from .modules import Attention, Norm1d, export, records


def kinds(module, shape):
    return [op.kind for op in records(module, shape)]


def test_casts_stand_at_both_ends_and_views_are_not_copies():
    ops = records(lambda x: x.reshape(4, 16, 32).relu(), (1, 64, 32))
    assert [op.kind for op in ops] == ["cast", "reshape", "relu", "cast"]
    assert ops[1].is_view


def test_what_the_converter_removes_is_left_out():
    def nothing(x):
        return nn.functional.dropout(x.contiguous().clone(), 0.5, False)[:, :].expand(1, 8).relu()

    assert kinds(nothing, (1, 8)) == ["cast", "relu", "cast"]


def test_constants_are_no_operations():
    table = torch.randn(5, 32)
    index = torch.arange(8) % 5
    assert kinds(lambda x: x + table[index].relu(), (8, 32)) == ["cast", "add", "cast"]


def test_reshapes_and_transposes_that_follow_each_other_are_one():
    ops = records(lambda x: x.reshape(8, 8).reshape(4, 16).reshape(2, 32).relu(), (1, 64))
    assert [str(op.outputs[0]) for op in ops] == ["1x64", "2x32", "2x32", "2x32"]
    (transpose,) = [op for op in records(lambda x: x.permute(2, 0, 1).permute(2, 1, 0) + 1, (2, 3, 4)) if op.axes]
    expected = torch.zeros(2, 3, 4).permute(2, 0, 1).permute(2, 1, 0).shape
    assert transpose.outputs[0].shape == tuple(expected)
    assert transpose.axes == (1, 0, 2) or tuple((2, 3, 4)[axis] for axis in transpose.axes) == tuple(expected)


def test_a_reshape_that_two_read_stays():
    def twice(x):
        y = x.reshape(8, 8)
        return y.reshape(4, 16).sum() + y.relu().sum()

    assert kinds(twice, (1, 64)).count("reshape") == 2


def test_a_swap_of_the_last_axes_is_free_before_a_product_only():
    assert "transpose" not in kinds(lambda x: x @ x.transpose(-2, -1), (1, 4, 8))
    assert "transpose" in kinds(lambda x: x.transpose(-2, -1) + 1, (1, 4, 8))


def test_a_norm_folds_into_a_convolution_and_nothing_else():
    folded = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    assert kinds(folded, (1, 3, 8, 8)) == ["cast", "conv", "cast"]
    shared = nn.Conv2d(3, 8, 1)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = shared, nn.BatchNorm2d(8)

        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) + y

    assert "batch_norm" in kinds(Both(), (1, 3, 8, 8)), "a convolution that others read too cannot take the norm"
    assert kinds(Norm1d(), (1, 196, 64)).count("batch_norm") == 1


def test_the_norm_of_a_matrix_gets_a_last_axis_of_one():
    (norm,) = [op for op in records(Norm1d(), (1, 196, 64)) if op.kind == "batch_norm"]
    assert str(norm.inputs[0]) == "196x64x1"


def test_attention_is_spelt_out():
    ops = records(Attention(heads=4), (1, 256, 128))
    attention = [op for op in ops if op.kind in ("mul", "matmul", "softmax")]
    assert [op.kind for op in attention] == ["mul", "matmul", "softmax", "matmul"]
    assert str(attention[2].inputs[0]) == "1x4x256x256"
    assert attention[2].axes == (3,)


def test_weights_count_once_and_in_16_bits():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(32, 64)

        def forward(self, x):
            return self.linear(x) + self.linear(x * 2)

    ops = records(Twice(), (1, 32))
    assert sum(op.weight_bytes for op in ops) == 2 * (32 * 64 + 64)


def test_shapes_that_are_not_fixed_are_unknown():
    class Any_(nn.Module):  # noqa: N801
        def forward(self, x):
            return x.relu()

    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(Any_(), (torch.zeros(2, 8),), dynamic_shapes=({0: batch},))
    relu = next(op for op in torch_records(program) if op.kind == "relu")
    assert relu.outputs[0].shape == (None, 8)


@pytest.fixture(scope="module")
def levit():
    """A real model whose norms do not fold, and its records."""
    model = create("levit_128s")
    return model.module, torch_records(capture(deployable(model), model.spec))


def test_module_and_line_are_named_without_a_machine_path(levit):
    module, ops = levit
    norms = [op for op in ops if op.kind == "batch_norm"]
    paths = {name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    assert {op.module for op in norms} <= paths
    lines = {op.source for op in norms}
    assert all(re.fullmatch(r"levit\.py:\d+", line) for line in lines), lines
    code = Path(inspect.getsourcefile(type(module))).read_text().splitlines()
    assert all(".bn(" in code[int(line.split(":")[1]) - 1] for line in lines), lines
    named = [op for op in ops if op.kind != "cast"]
    assert all(op.located == "module" and op.module for op in named)
    assert not any("/" in op.source for op in ops)


def test_levit_spends_its_traffic_in_norms_that_do_not_fold(levit):
    """Four fifths and more, as was found before: the norms and the two copies their shape forces."""
    ops = levit[1]
    spent = sum(
        op.padded_bytes
        for op in ops
        if op.kind == "batch_norm" or (op.kind in ("expand_dims", "squeeze") and op.is_layout_copy)
    )
    share = spent / sum(op.padded_bytes for op in ops)
    assert 0.8 < share < 0.95, f"{share:.1%} of the padded traffic"


def test_the_graph_that_was_exported_stays_as_it_was():
    program = export(Attention(), (1, 256, 128))
    before = str(program.graph)
    first, second = torch_records(program), torch_records(program)
    assert first == second
    assert str(program.graph) == before


def test_every_byte_is_counted_on_a_small_model():
    """relu(conv(x)) on 1x3x8x8: the casts, the convolution, the relu, each with rows of 8 padded to 32."""
    ops = records(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (1, 3, 8, 8))
    image, maps = 3 * 8 * 64, 4 * 8 * 64
    assert sum(op.padded_bytes for op in ops) == image + (image + maps) + 2 * maps + maps
    assert sum(op.logical_bytes for op in ops) == math.prod((3, 8, 8)) * 2 * 2 + math.prod((4, 8, 8)) * 2 * 4


def test_a_scale_of_channels_folds_into_a_convolution():
    class Scaled(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 8, 1), nn.Parameter(torch.rand(shape))

        def forward(self, x):
            return self.conv(x) * self.scale

    assert kinds(Scaled((8, 1, 1)), (1, 3, 4, 4)) == ["cast", "conv", "cast"]
    assert kinds(Scaled((8, 4, 4)), (1, 3, 4, 4)) == ["cast", "conv", "mul", "cast"], "one for each pixel does not"


def test_control_flow_is_refused():
    def branch(x):
        return torch.cond(x.sum() > 0, lambda x: x.relu(), lambda x: -x, (x,))

    with pytest.raises(CheckFailed, match="nested graph"):
        records(branch, (1, 8))
