"""Audits of models and of the packages made from them: the same counts either way, and bad input named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pocketvit.audits import audit_ane, package_records
from pocketvit.errors import BadInput, CheckFailed
from pocketvit.measure.ane.audit import audit
from pocketvit.measure.ane.torch_graph import torch_records
from pocketvit.models import Model, create, deployable
from pocketvit.models.graph import capture
from pocketvit.targets import TARGETS
from pocketvit.targets.coreml.package import read_package
from pocketvit.targets.coreml.program import read_program
from pocketvit.types import Artifact, Evidence, Golden, Precision

# depth cut down where that is possible: what is compared does not need twelve equal blocks
MODELS = {
    "deit_tiny_patch16_224": {"depth": 2},
    "mobilevit_xxs": {},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2)},
    "levit_128s": {},
    "efficientformer_l1": {},
    "poolformer_s12": {},
}
SLOW = ("mobilevit_xxs", "levit_128s", "efficientformer_l1", "poolformer_s12")


def build(name: str) -> Model:
    """A timm model whose norms and scales are not the identity, which the converter would drop."""
    model = create(name, **MODELS[name])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (*model.module.parameters(), *model.module.buffers()):
            if parameter.dtype.is_floating_point and parameter.ndim < 3:
                parameter.uniform_(0.5, 1.5)
    return model


def convert(name: str, directory: Path, precision: Precision = Precision.FP16) -> Path:
    """The model's package, made as export makes it."""
    model = build(name)
    draft = Artifact(
        path=directory / f"{name}_{precision}.mlpackage",
        target="coreml",
        precision=precision,
        model=name,
        trained=False,
        classes=model.classes,
        spec=model.spec,
        golden=Golden(images=(), sha256="", logits=()),
        weights_sha256="",
    )
    return TARGETS.get("coreml").export(deployable(model), draft).path


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    made: dict[str, Path] = {}

    def package(name: str) -> Path:
        if name not in made:
            made[name] = convert(name, tmp_path_factory.mktemp("packages"))
        return made[name]

    return package


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in MODELS])
def test_a_model_and_its_package_count_the_same(name, packages):
    """The graph before conversion is lowered by rules; the package shows whether they are the converter's."""
    model = build(name)
    ours = audit(torch_records(capture(deployable(model), model.spec)))
    theirs = audit_ane(str(packages(name))).audit
    for count in (
        "ops",
        "padded_bytes",
        "logical_bytes",
        "wasted_bytes",
        "transposes",
        "layout_copies",
        "weight_bytes",
    ):
        before, after = getattr(ours, count), getattr(theirs, count)
        assert abs(before - after) <= 0.03 * after, (
            f"{name}: {count} {before} before conversion, {after} in the package"
        )


def test_deit_moves_heads_about_and_little_else():
    deit = audit_ane("deit_tiny_patch16_224").audit
    assert deit.padding_ratio < 1.1
    assert [group.rule for group in deit.groups][:2] == ["copies", "softmax"]
    (qkv,) = [group for group in deit.groups if group.rule == "qkv"]
    assert (qkv.count, qkv.where) == (12, "blocks.*.attn.qkv")
    assert not deit.off_engine
    assert deit.evidence is Evidence.PREDICTED


@pytest.mark.slow
def test_levit_wastes_its_traffic_on_norms():
    levit = audit_ane("levit_256").audit
    norms = sum(group.wasted_bytes for group in levit.groups if group.rule == "norm")
    assert levit.groups[0].rule == "norm"
    assert norms / levit.wasted_bytes > 0.9
    assert levit.padding_ratio > 4


def test_swin_breaks_the_rank_and_shifts():
    """Two stages of two blocks, the second of each shifted."""
    model = build("swin_tiny_patch4_window7_224")
    swin = audit(torch_records(capture(deployable(model), model.spec)))
    assert swin.highest_rank == 6
    (rank,) = [group for group in swin.groups if group.rule == "rank" and group.where == "layers.*.blocks.*"]
    assert rank.count == 2 * 4, "a partition and its reverse in each block"
    assert rank.worst.source.startswith("swin_transformer.py:")
    (shift,) = [group for group in swin.groups if group.rule == "kinds"]
    assert shift.count == swin.off_engine == 2 * 2 * 2, "there and back, over two axes, in two blocks"


def test_a_package_names_modules_as_far_as_its_weights_do(packages):
    found = audit_ane(str(packages("deit_tiny_patch16_224"))).audit
    located = {finding.located for finding in found.findings}
    assert "weight" in located
    assert located <= {"weight", "after", "op"}
    linears = [finding for finding in found.findings if finding.rule == "layout"]
    assert {finding.located for finding in linears} == {"weight"}
    assert linears[0].module.startswith("blocks.")
    attention = [finding for finding in found.findings if finding.rule == "softmax"]
    assert {finding.module.split(".")[2] for finding in attention} == {"attn_qkv"}, "what they read comes from there"


def test_a_package_in_32_bits_is_off_the_engine(packages, tmp_path):
    found = audit_ane(str(convert("deit_tiny_patch16_224", tmp_path, Precision.FP32))).audit
    assert found.off_engine == found.ops
    assert any(group.rule == "float32" for group in found.groups)
    half = audit_ane(str(packages("deit_tiny_patch16_224"))).audit
    ends = half.padded_bytes - found.padded_bytes
    assert ends == 3 * 224 * 224 * 2 + 2048, "floats count 16 bits either way; only the casts of image and logits go"


def test_a_compressed_package_counts_what_it_stores(packages, tmp_path):
    plain = audit_ane(str(packages("deit_tiny_patch16_224"))).audit
    small = audit_ane(str(convert("deit_tiny_patch16_224", tmp_path, Precision.W8))).audit
    assert small.ops == plain.ops, "decompression is not an operation of its own"
    assert small.padded_bytes == plain.padded_bytes
    share = small.weight_bytes / plain.weight_bytes
    assert 0.5 < share < 0.6, f"{share:.0%} of the 16-bit weights"


def foreign(path, sides):
    """A package traced, not exported, with other names and a height and width of 40 as `sides` spells them."""
    import coremltools as ct

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 1)).eval()
    dims = {2: torch.export.Dim("h", min=32, max=64), 3: torch.export.Dim("w", min=32, max=64)}
    dynamic = None if sides == 40 else (dims,)
    program = torch.export.export(net, (torch.zeros(1, 3, 40, 40),), dynamic_shapes=dynamic)
    package = ct.convert(
        program.run_decompositions({}),
        inputs=[ct.TensorType(name="picture", shape=(1, 3, sides, sides))],
        minimum_deployment_target=ct.target.iOS17,
        skip_model_load=True,
    )
    package.save(str(path))
    return str(path)


def test_a_foreign_package_with_a_range_of_shapes_counts_at_its_default(tmp_path):
    import coremltools as ct

    found = audit_ane(foreign(tmp_path / "open.mlpackage", ct.RangeDim(32, 64, default=40))).audit
    fixed = audit_ane(foreign(tmp_path / "fixed.mlpackage", 40)).audit
    assert any(group.rule == "dynamic" for group in found.groups)
    assert found.off_engine == found.ops, "every shape depends on the picture"
    assert found.off_engine_reasons == {"a shape that is not fixed": found.ops}
    assert {finding.module for finding in found.findings if finding.located == "weight"} == {"0", "2"}
    for count in ("padded_bytes", "logical_bytes", "wasted_bytes", "largest_bytes"):
        assert getattr(found, count) == getattr(fixed, count) > 0, count
    assert found.left_out == fixed.left_out == fixed.off_engine == 0


def test_sizes_that_the_interpreter_cannot_find_are_left_out(tmp_path, monkeypatch):
    import coremltools as ct

    path = foreign(tmp_path / "open.mlpackage", ct.RangeDim(32, 64, default=40))

    def unknown(package):
        raise BadInput("pocketvit's interpreter does not know this operation")

    monkeypatch.setattr("pocketvit.targets.coreml.interpreter.Interpreter", unknown)
    found = audit_ane(path).audit
    assert found.left_out == found.ops
    assert found.padded_bytes == found.logical_bytes == 0


def test_sweep_of_a_model_that_takes_any_size():
    found = audit_ane("pocket_regnety_32", sizes=(48, 32, 64))
    assert [point.size for point in found.sweep.points] == [32, 48, 64]
    assert found.sweep.refused == ()
    own = found.sweep.points[0]
    assert (own.padded_bytes, own.ops) == (found.audit.padded_bytes, found.audit.ops)
    assert sum(own.places.values()) == own.padded_bytes


def test_sweep_sets_the_size_of_a_transformer():
    found = audit_ane("pocket_deit_patch4_32", sizes=(32, 64))
    assert [point.size for point in found.sweep.points] == [32, 64]
    grown = found.sweep.points[1].logical_bytes / found.sweep.points[0].logical_bytes
    assert 257 / 65 < grown < (257 / 65) ** 2, f"{grown:.2f}: linear layers grow with the tokens, attention squared"


@pytest.mark.slow
def test_sweep_keeps_the_windows_of_a_model():
    """timm's own way would make them 14x14 at twice the size: another model."""
    found = audit_ane("swin_tiny_patch4_window7_224", sizes=(224, 448)).sweep
    assert [point.windows for point in found.points] == ["7x7", "7x7"]
    small, large = found.points
    # four times the windows at every stage; only the last, of one window, grows by shifts that it had no room for
    assert large.bytes_per_pixel == pytest.approx(small.bytes_per_pixel, rel=0.02)


@pytest.mark.slow
def test_sweep_tells_of_windows_that_have_to_change():
    """A map of 64 is not whole windows of 7."""
    found = audit_ane("maxvit_tiny_rw_224", sizes=(224, 256)).sweep
    assert found.windows == "7x7"
    assert [point.windows for point in found.points] == ["7x7", "8x8"]


class FixedSize(nn.Module):
    """Adds a position to every pixel of a 32-pixel map."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 3, 32, 32))
        self.head = nn.Conv2d(3, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.position).mean((2, 3))


def replaced(monkeypatch, module: nn.Module) -> None:
    """Let every model name build `module`, except with arguments, which it does not take."""
    like = create("pocket_deit_patch4_32")

    def create_it(name, **arguments):
        if "img_size" in arguments:
            raise BadInput(f"{name} cannot be built with img_size")
        return replace(like, name=name, module=module, classes=10)

    monkeypatch.setattr("pocketvit.audits.ane.create", create_it)


def test_a_size_the_model_refuses_is_reported(monkeypatch):
    replaced(monkeypatch, FixedSize())
    found = audit_ane("fixed", sizes=(32, 48))
    assert [point.size for point in found.sweep.points] == [32]
    (refused,) = found.sweep.refused
    assert refused.size == 48
    assert refused.reason.startswith("RuntimeError: "), refused.reason
    assert "32" in refused.reason, refused.reason
    assert found.sweep.cliffs == ()


@pytest.mark.slow
def test_a_real_model_refuses_sizes_by_name():
    found = audit_ane("efficientformer_l1", sizes=(224, 256))
    assert [point.size for point in found.sweep.points] == [224]
    assert "49" in found.sweep.refused[0].reason, found.sweep.refused


def test_a_plan_is_scored_against_the_package(packages, tmp_path):
    path = packages("deit_tiny_patch16_224")
    names = [op.name for op in _ops(path)]
    rows = [
        {"name": n, "kind": "ios16.op", "preferred": "neural_engine", "supported": [], "cost": None} for n in names
    ]
    rows[3]["preferred"] = "cpu"
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"format": "pocketvit-compute-plan", "version": 1, "operations": rows}))
    found = audit_ane(str(path), plan=plan).score
    assert (found.on_engine, found.of, found.matched) == (len(names) - 1, len(names), len(names))
    assert (found.precision, found.recall) == ((len(names) - 1) / len(names), 1.0)
    assert [one.name for one in found.disagreements] == [names[3]]


def _ops(path: Path):
    return package_records(read_program(read_package(path)))


@pytest.mark.parametrize(
    ("source", "arguments", "says"),
    [
        ("levit_129s", {}, "levit_128s"),
        ("none.mlpackage", {}, "There is no none.mlpackage"),
        ("net.mlmodel", {}, "single file"),
        ("net.onnx", {}, "no Core ML package"),
        ("none.mlpackage", {"sizes": (224,)}, "sweep needs the model"),
        ("levit_128s", {"plan": Path("plan.json")}, "belongs to a package"),
        ("none.mlpackage", {"plan": Path("plan.json")}, "no compute plan"),
        ("levit_128s", {"sizes": (0,)}, "0 pixels"),
        ("levit_128s", {"sizes": (224, 224)}, "twice"),
        ("levit_128s", {"sizes": (100_000,)}, "100000 pixels"),
    ],
)
def test_bad_input_is_named_before_work(source, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=says):
        audit_ane(source, **arguments)


def test_a_folder_of_packages_is_no_package(tmp_path):
    (tmp_path / "exported" / "mine.mlpackage").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"is a folder of packages; name one, such as .*mine\.mlpackage"):
        audit_ane(str(tmp_path / "exported"))


def test_a_package_that_is_no_ml_program_is_refused(tmp_path):
    import coremltools as ct
    from coremltools.models import datatypes
    from coremltools.models.neural_network import NeuralNetworkBuilder

    builder = NeuralNetworkBuilder([("x", datatypes.Array(3))], [("y", None)], disable_rank5_shape_mapping=True)
    builder.add_activation("relu", "RELU", "x", "y")
    path = tmp_path / "old.mlpackage"
    ct.models.MLModel(builder.spec, skip_model_load=True).save(str(path))
    with pytest.raises(BadInput, match="not an ML program"):
        audit_ane(str(path))


def test_a_model_that_cannot_be_exported_fails_by_name(monkeypatch):
    class Stubborn(nn.Module):
        num_classes = 10

        def forward(self, x):
            return x.flatten(1)[:, : int(x.sum().item() > 0) + 1]

    replaced(monkeypatch, Stubborn())
    with pytest.raises(CheckFailed, match=r"stubborn .* cannot be exported at 32 px"):
        audit_ane("stubborn")
