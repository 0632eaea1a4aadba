"""Compute plans from a Mac: read, refused by name, scored; and the script that makes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pocketvit.errors import BadInput
from pocketvit.measure.ane.compute_plan import load_plan, score
from pocketvit.measure.ane.graph import OpRecord, Tensor
from pocketvit.types import Evidence

SCRIPT = Path(__file__).parents[3] / "docs" / "mac" / "compute_plan_to_json.py"


def row(name="a", kind="ios16.relu", preferred="neural_engine", **more):
    return {"name": name, "kind": kind, "preferred": preferred, "supported": ["neural_engine", "cpu"], **more}


def write(path, rows, **changes):
    document = {"format": "pocketvit-compute-plan", "version": 1, "operations": rows} | changes
    path.write_text(json.dumps(document))
    return path


def record(name, kind="relu"):
    return OpRecord(kind=kind, name=name, inputs=(Tensor("x", (2, 2)),), outputs=(Tensor(name, (2, 2)),))


def test_our_form(tmp_path):
    rows = [row(cost=0.25), row("w", "const", None, supported=[])]
    relu, const = load_plan(write(tmp_path / "plan.json", rows))
    assert (relu.kind, relu.preferred, relu.supported, relu.cost) == (
        "relu",
        "neural_engine",
        ("neural_engine", "cpu"),
        0.25,
    )
    assert (const.preferred, const.supported, const.cost) == (None, (), None)


def test_the_form_coremltools_reads(tmp_path):
    where = {"components": [{"program": {}}, {"programOperation": {"data": {"outputName": "a"}}}]}
    engine, cpu = {"neuralEngine": {"totalCoreCount": 16}}, {"cpu": {}}
    info = {"deviceUsage": {"preferred": cpu, "supported": [cpu, engine]}, "estimatedCost": 0.5, "path": where}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"infos": [info]}))
    (found,) = load_plan(path)
    assert (found.name, found.preferred, found.supported, found.cost) == ("a", "cpu", ("cpu", "neural_engine"), 0.5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "Xcode"),
        ('"plan"', "Xcode"),
        ('{"layers": []}', "Xcode"),
        ('{"format": "pocketvit-compute-plan", "version": 2, "operations": []}', "Xcode"),
        ('{"format": "pocketvit-compute-plan", "version": 1}', "lists no operations"),
        ('{"format": "pocketvit-compute-plan", "version": 1, "operations": []}', "lists no operations"),
        ('{"format": "pocketvit-compute-plan", "version": 1, "operations": {"a": 1}}', "lists no operations"),
        (json.dumps({"infos": [{}]}), "Operation 0"),
        (json.dumps({"infos": [{"path": {"components": []}, "deviceUsage": {}}]}), "Operation 0"),
    ],
)
def test_a_foreign_file_is_refused_with_the_way_out(tmp_path, content, says):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=says) as refused:
        load_plan(path)
    assert "compute_plan_to_json.py" in str(refused.value)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"name": "a"},
        None,
        5,
        row(name=3),
        row(kind=None),
        row(preferred="tpu"),
        row(preferred=["cpu"]),
        row(supported=5),
        row(supported=[None]),
        row(cost="much"),
        row(cost=float("nan")),
        row(cost=True),
    ],
)
def test_a_damaged_operation_is_named(tmp_path, bad):
    with pytest.raises(BadInput, match="Operation 1"):
        load_plan(write(tmp_path / "plan.json", [row("first"), bad]))


@pytest.mark.parametrize("bad", [row(preferred="tpu"), row(supported=["cpu", "tpu"])])
def test_an_unknown_device_is_named_with_those_known(tmp_path, bad):
    says = "Operation 0 of .* names the device 'tpu'; known: neural_engine, gpu, cpu, other"
    with pytest.raises(BadInput, match=says):
        load_plan(write(tmp_path / "plan.json", [bad]))


def test_a_device_that_the_script_did_not_know_is_off_the_engine(tmp_path):
    plan = load_plan(write(tmp_path / "plan.json", [row(preferred="other", supported=["other"])]))
    assert (plan[0].preferred, plan[0].supported) == ("other", ("other",))
    found = score([record("a")], plan)
    assert (found.on_engine, found.of) == (0, 1), "it has a device, which is not none"


def test_more_refusals(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="There is no compute plan"):
        load_plan(tmp_path / "none.json")
    with pytest.raises(BadInput, match="There is no compute plan"):
        load_plan(tmp_path)
    with pytest.raises(BadInput, match="twice"):
        load_plan(write(tmp_path / "plan.json", [row(), row()]))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not JSON"):
        load_plan(tmp_path / "bytes.json")
    monkeypatch.setattr("pocketvit.measure.ane.compute_plan._MAX_BYTES", 10)
    with pytest.raises(BadInput, match="more than a compute plan"):
        load_plan(write(tmp_path / "plan.json", [row()]))


def test_score_counts_by_hand(tmp_path):
    """Five operations with a device: three relus on the engine, one not; a gather that is on it after all."""
    rows = [
        row("r1", cost=0.1),
        row("r2", cost=0.2),
        row("r3", cost=0.3),
        row("r4", preferred="cpu", cost=0.1),
        row("g", "ios17.gather", cost=0.3),
        row("w", "const", None),
        row("elsewhere", preferred="gpu"),
    ]
    ops = [*(record(f"r{i}") for i in range(1, 5)), record("g", "gather"), record("ours")]
    found = score(ops, load_plan(write(tmp_path / "plan.json", rows)))
    assert (found.on_engine, found.of, found.matched) == (4, 6, 5)
    assert found.precision == 3 / 4, "of four predicted on the engine, three are"
    assert found.recall == 3 / 4, "of four on the engine, three were predicted"
    assert found.cost_on_engine == pytest.approx(0.9)
    assert [(one.name, one.preferred, bool(one.reason)) for one in found.disagreements] == [
        ("r4", "cpu", False),
        ("g", "neural_engine", True),
    ]
    assert (found.not_in_plan, found.not_in_file) == (1, 1)
    assert found.evidence is Evidence.MEASURED


def test_a_plan_of_another_package_is_refused(tmp_path):
    with pytest.raises(BadInput, match="names none"):
        score([record("b")], load_plan(write(tmp_path / "plan.json", [row("a")])))


def test_nothing_on_the_engine_gives_no_shares(tmp_path):
    plan = load_plan(write(tmp_path / "plan.json", [row("g", "gather", "cpu")]))
    found = score([record("g", "gather")], plan)
    assert (found.precision, found.recall, found.cost_on_engine, found.disagreements) == (None, None, None, ())


FAKE = {
    "coremltools/__init__.py": """
import enum
from . import models
__version__ = "9.0"
class ComputeUnit(enum.Enum):
    ALL = 1
    CPU_ONLY = 3
""",
    "coremltools/models/__init__.py": "from . import utils",
    "coremltools/models/utils.py": "def compile_model(path): return path.replace('mlpackage', 'mlmodelc')",
    "coremltools/models/compute_plan.py": """
from types import SimpleNamespace as N
class MLNeuralEngineComputeDevice: pass
class MLCPUComputeDevice: pass
class MLQuantumComputeDevice: pass
def op(name, kind, blocks=()):
    return N(operator_name=kind, outputs=[N(name=name)], blocks=blocks)
inner = op("inner", "ios16.add")
new = op("new", "ios18.new")
OPS = [op("w", "const"), op("a", "ios16.conv"), op("c", "ios16.cond", [N(operations=[inner])]), new]
class MLComputePlan:
    model_structure = N(program=N(functions={"main": N(block=N(operations=OPS))}))
    @classmethod
    def load_from_path(cls, path, compute_units):
        assert path == "model.mlmodelc" and compute_units.name == "ALL", (path, compute_units)
        return cls()
    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        if operation.operator_name == "const":
            return None
        both = [MLNeuralEngineComputeDevice(), MLCPUComputeDevice()]
        preferred = both[operation.operator_name.endswith("cond")]
        if operation is new:
            preferred = MLQuantumComputeDevice()
        return N(preferred_compute_device=preferred, supported_compute_devices=both)
    def get_estimated_cost_for_mlprogram_operation(self, operation):
        return None if operation.operator_name == "const" else N(weight=0.5)
""",
}


def test_the_mac_script_writes_what_we_read(tmp_path):
    """Against a stand-in with the interface that coremltools documents: there is no Mac here."""
    for name, text in FAKE.items():
        file = tmp_path / "fake" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    call = [sys.executable, str(SCRIPT), "model.mlpackage", "plan.json"]
    subprocess.run(call, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "fake")}, check=True)
    plan = load_plan(tmp_path / "plan.json")
    assert [(op.name, op.kind, op.preferred, op.cost) for op in plan] == [
        ("w", "const", None, None),
        ("a", "conv", "neural_engine", 0.5),
        ("c", "cond", "cpu", 0.5),
        ("inner", "add", "neural_engine", 0.5),
        ("new", "new", "other", 0.5),
    ]
    missing = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "model.mlpackage plan.json" in missing.stderr


def test_the_script_uses_only_what_coremltools_has():
    from coremltools.models import compute_device
    from coremltools.models.compute_plan import MLComputePlan

    text = SCRIPT.read_text()
    for name in ("load_from_path", "get_compute_device_usage_for_mlprogram_operation"):
        assert name in text
        assert hasattr(MLComputePlan, name)
    assert hasattr(MLComputePlan, "get_estimated_cost_for_mlprogram_operation")
    for device in ("MLNeuralEngineComputeDevice", "MLGPUComputeDevice", "MLCPUComputeDevice"):
        assert device in text
        assert hasattr(compute_device, device)
