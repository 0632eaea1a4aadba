"""A norm over channels is one operation, as in the package that coremltools writes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pocketvit.audits import package_records
from pocketvit.measure.ane.graph import OpRecord
from pocketvit.measure.ane.torch_graph import torch_records
from pocketvit.passes.ane.emit import ChannelNorm
from pocketvit.targets.coreml.package import read_package
from pocketvit.targets.coreml.program import read_program

from .modules import Function, export, records

SHAPE = (1, 32, 1, 50)
STEPS = ["reduce_mean", "sub", "mul", "reduce_mean", "add", "rsqrt", "mul"]


def norm(scaled: bool) -> ChannelNorm:
    torch.manual_seed(0)
    return ChannelNorm(1e-5, *((torch.rand(32) + 0.5, torch.randn(32)) if scaled else (None, None)))


def kinds(ops: tuple[OpRecord, ...]) -> list[str]:
    return [op.kind for op in ops if op.kind != "cast"]


class Between(nn.Module):
    """A norm between two convolutions, read by both the second and a sum."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(32, 32, 1), norm(scaled), nn.Conv2d(32, 32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        return self.two(self.norm(y)) + y


@pytest.mark.parametrize("scaled", [True, False])
def test_it_is_one_layer_norm_over_axis_1(scaled: bool) -> None:
    ops = records(norm(scaled), SHAPE)
    assert kinds(ops) == ["layer_norm"], kinds(ops)
    (one,) = [op for op in ops if op.kind == "layer_norm"]
    assert one.axes == (1,)
    assert [str(tensor) for tensor in (*one.inputs, *one.outputs)] == ["1x32x1x50"] * 2
    assert one.padded_bytes == 2 * 32 * 128, "rows of 50 are padded to 64, read once and written once"
    assert (one.weight_bytes >= 2 * 2 * 32) == scaled, f"{one.weight_bytes} bytes of weights"


@pytest.mark.parametrize("scaled", [True, False])
def test_the_package_has_one_too(scaled: bool, tmp_path: Path) -> None:
    import coremltools as ct

    program = export(Between(scaled), SHAPE)
    made = ct.convert(
        program.run_decompositions({}),
        inputs=[ct.TensorType(name="x", shape=SHAPE)],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    )
    made.save(str(tmp_path / "norm.mlpackage"))
    theirs = package_records(read_program(read_package(tmp_path / "norm.mlpackage")))
    ours = torch_records(program)
    assert kinds(ours) == kinds(theirs) == ["conv", "layer_norm", "conv", "add"], (kinds(ours), kinds(theirs))
    assert [op.axes for op in ours if op.kind == "layer_norm"] == [op.axes for op in theirs if op.kind == "layer_norm"]
    bytes_ = [sum(op.padded_bytes for op in ops if op.kind != "cast") for ops in (ours, theirs)]
    assert bytes_[0] == bytes_[1], f"{bytes_[0]} predicted, {bytes_[1]} in the package"


def almost(change: str) -> nn.Module:
    """The same steps with one that is not the norm's."""

    def run(x: torch.Tensor) -> torch.Tensor:
        axis = 3 if change == "another axis" else 1
        mean = x.mean(axis, keepdim=True)
        centred = x - mean
        variance = (centred * centred).mean(axis, keepdim=True)
        if change == "a mean that is read again":
            return centred * (variance + 1e-5).rsqrt() + mean
        if change == "a root that is read again":
            root = (variance + 1e-5).rsqrt()
            return centred * root + root
        if change == "another value scaled":
            return x * (variance + 1e-5).rsqrt()
        return centred * (variance + 1e-5).rsqrt()

    return Function(run)


CHANGES = ["another axis", "a mean that is read again", "a root that is read again", "another value scaled"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_almost_a_norm_stays_spelt_out(change: str) -> None:
    found = kinds(records(almost(change), SHAPE))
    assert "layer_norm" not in found, found
    assert [kind for kind in found if kind in STEPS][: len(STEPS)] == STEPS, found


def test_the_same_without_a_change_is_a_norm() -> None:
    assert kinds(records(almost("nothing"), SHAPE)) == ["layer_norm"]


def test_three_axes_are_not_what_the_converter_looks_for() -> None:
    assert "layer_norm" not in kinds(records(almost("nothing"), (1, 32, 50)))
