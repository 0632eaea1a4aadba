"""A .pt2 archive can make PyTorch run anything; ours are plain data, and anything else is refused before loading."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pocketvit.errors import BadInput
from pocketvit.targets import TARGETS
from pocketvit.targets._pt2_guard import check_archive
from pocketvit.types import Precision

MODEL = "archive/models/model.json"
WEIGHTS = "archive/data/weights/model_weights_config.json"
CONSTANTS = "archive/data/constants/model_constants_config.json"
SAMPLES = "archive/data/sample_inputs/model.pt"


class Touch:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def _torch_pickle(thing: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(members: dict[str, bytes], path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _edited(members: dict[str, bytes], name: str, edit: Callable[[dict], None]) -> dict[str, bytes]:
    content = json.loads(members[name])
    edit(content)
    return {**members, name: json.dumps(content).encode()}


@pytest.fixture
def members(exported) -> dict[str, bytes]:
    return _members(exported("torch_export", Precision.W8A8).path)


@pytest.fixture
def load(exported) -> Callable[[Path], None]:
    from dataclasses import replace

    artifact = exported("torch_export", Precision.W8A8)
    return lambda path: TARGETS.get("torch_export").load(replace(artifact, path=path), 1)


def test_an_archive_only_written_again_loads(members, load, tmp_path):
    load(_write(members, tmp_path / "same.pt2"))


def test_our_archives_hold_no_pickle(members):
    for name, content in members.items():
        assert content[:1] != b"\x80", f"{name} starts like a pickle"
        assert not content.startswith(b"PK"), f"{name} is a zip inside the zip, as torch.save writes"
    assert members[SAMPLES] == b""


def test_pytorch_alone_would_have_run_it(members, load, tmp_path):
    """The danger is real: the same file that the guard refuses touches a file when PyTorch loads it."""
    marker = tmp_path / "ran"
    path = _write({**members, SAMPLES: _torch_pickle((Touch(marker),))}, tmp_path / "evil.pt2")
    with pytest.raises(BadInput, match="pickled sample inputs"):
        load(path)
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017  (whatever happens after the code has run)
        torch.export.load(path)
    assert marker.exists(), "PyTorch no longer unpickles sample inputs: this guard may be dropped"


def test_an_operator_may_not_be_any_function_of_torch(members, load, tmp_path):
    """PyTorch resolves operator names by attribute, and torch imports os; only its verifier stands in between."""
    marker = tmp_path / "ran"

    def call_the_shell(program: dict) -> None:
        node = {
            "target": "torch.os.system",
            "inputs": [{"name": "", "arg": {"as_string": f"touch {marker}"}, "kind": 1}],
            "outputs": [],
            "metadata": {},
            "is_hop_single_tensor_return": None,
            "name": "shell",
        }
        program["graph_module"]["graph"]["nodes"].insert(0, node)

    path = _write(_edited(members, MODEL, call_the_shell), tmp_path / "evil.pt2")
    with pytest.raises(BadInput, match=r"the operator 'torch\.os\.system'"):
        load(path)
    assert not marker.exists()


def _without_metadata(program: dict) -> None:
    program["graph_module"]["metadata"] = {}
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}


def _runs_as_a_guard(program: dict, code: str) -> None:
    program["guards_code"] = [f"{code} is None"]


def _runs_as_a_size(program: dict, code: str) -> None:
    values = program["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": code, "hint": None}}


def _runs_as_a_name(program: dict, code: str) -> None:
    name = program["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"]
    renamed = json.loads(json.dumps(program).replace(json.dumps(name), json.dumps(f"{name}={code}")))
    program.clear()
    program.update(renamed)


@pytest.mark.parametrize("inject", [_runs_as_a_guard, _runs_as_a_size, _runs_as_a_name])
def test_json_alone_runs_code_in_pytorch_and_is_refused_here(inject, load, tmp_path):
    """No pickle is needed: each of these touches a file when PyTorch loads or calls the program."""
    marker, plain = tmp_path / "ran", tmp_path / "plain.pt2"
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 3),)), plain)
    members = _members(plain)
    model = next(name for name in members if name.endswith("models/model.json"))
    samples = next(name for name in members if name.endswith("sample_inputs/model.pt"))
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    edited = _edited(members, model, lambda program: inject(program, code))
    # as bare as ours, or what else PyTorch writes would be refused first and prove nothing about the injection
    check_archive(_write(_edited({**members, samples: b""}, model, _without_metadata), tmp_path / "control.pt2"))
    path = _write(_edited({**edited, samples: b""}, model, _without_metadata), tmp_path / "evil.pt2")
    with pytest.raises(BadInput, match=r"evil\.pt2 was not loaded: it holds ('guards_code'|'as_expr'|the name)"):
        load(path)
    assert not marker.exists()
    with contextlib.suppress(Exception):  # some of them fail once the code has run
        torch.export.load(_write(edited, tmp_path / "whole.pt2")).module()(torch.zeros(2, 3))
    assert marker.exists(), "PyTorch no longer runs this: this part of the guard may be dropped"


def _pickled_weight(config: dict) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def _custom_object(config: dict) -> None:
    config["config"]["evil"] = {
        "path_name": "opaque_obj_0",
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }


def _other_file(config: dict) -> None:
    next(iter(config["config"].values()))["path_name"] = "../weights/weight_0"


def _guard(program: dict) -> None:
    program["guards_code"] = ["__import__('os').getcwd()"]


def _symbol(program: dict) -> None:
    values = program["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": "__import__('os').getcwd()", "hint": None}}


def _range(program: dict) -> None:
    program["range_constraints"] = {"s0": {"min_val": 0, "max_val": 1}}


def _node_name(program: dict) -> None:
    program["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"] = "x):\n  import os #"


def _argument_name(program: dict) -> None:
    entry = program["graph_module"]["module_call_graph"][0]["signature"]
    entry["forward_arg_names"] = ["x=__import__('os').getcwd()"]


def _subgraph(program: dict) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["inputs"][0]["arg"] = {"as_graph": {"name": "inner", "graph": {"nodes": []}}}


def _argument_operator(program: dict) -> None:
    program["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_operator": "torch.os.system"}


def _tree(program: dict) -> None:
    entry = program["graph_module"]["module_call_graph"][0]["signature"]
    spec = json.loads(entry["in_spec"])
    spec[1]["type"] = "collections.defaultdict"
    entry["in_spec"] = json.dumps(spec)


def _metadata(program: dict) -> None:
    program["graph_module"]["graph"]["nodes"][0]["metadata"] = {"stack_trace": "\nimport os"}


def _deep(program: dict) -> None:
    nested: list = []
    for _ in range(200):
        nested = [nested]
    program["graph_module"]["metadata"] = {}
    program["extra"] = nested


@pytest.mark.parametrize(
    ("member", "edit", "why"),
    [
        (WEIGHTS, _pickled_weight, "a pickle in place of the tensor"),
        (CONSTANTS, _custom_object, "a pickle in place of the tensor 'evil'"),
        (WEIGHTS, _other_file, "in '../weights/weight_0'"),
        (MODEL, _guard, "'guards_code'"),
        (MODEL, _symbol, "'as_expr'"),
        (MODEL, _range, "'range_constraints'"),
        (MODEL, _node_name, "the name "),
        (MODEL, _argument_name, "the argument names"),
        (MODEL, _subgraph, "'as_graph'"),
        (MODEL, _argument_operator, "'as_operator'"),
        (MODEL, _tree, "arguments of type 'collections.defaultdict'"),
        (MODEL, _metadata, "'metadata'"),
        (MODEL, _deep, "nested more than"),
    ],
)
def test_each_way_to_run_code_is_refused(member, edit, why, members, load, tmp_path):
    path = _write(_edited(members, member, edit), tmp_path / "evil.pt2")
    with pytest.raises(BadInput, match=r"evil\.pt2 was not loaded: it holds") as refused:
        load(path)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "archive/data/weights/model.pt",
        "archive/data/constants/model.pt",
        "archive/data/constants/custom_obj_0",
        "archive/data/aotinductor/model/model.so",
        "archive/models/second.json",
        "archive/extra/other",
        "archive/../../escaped",
    ],
)
def test_parts_we_never_write_are_refused(name, members, load, tmp_path):
    path = _write({**members, name: pickle.dumps(Touch(tmp_path / "ran"))}, tmp_path / "evil.pt2")
    with pytest.raises(BadInput, match=r"evil\.pt2 was not loaded: it holds a part called"):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_two_parts_of_one_name_are_refused(members, load, tmp_path):
    """Readers differ in which of the two they take."""
    path = _write(members, tmp_path / "evil.pt2")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(MODEL, members[MODEL])
    with pytest.raises(BadInput, match="twice"):
        load(path)
    path = _write({**members, MODEL.replace("model.json", "MODEL.json"): b"{}"}, tmp_path / "case.pt2")
    with pytest.raises(BadInput, match="twice"):
        load(path)


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(members, load, tmp_path):
    bomb = {**members, "archive/data/weights/weight_999": bytes(64 << 20)}
    path = _write(bomb, tmp_path / "bomb.pt2", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BadInput, match="unpack to more than the file"):
        load(path)


def test_metadata_that_unpacks_to_gigabytes_is_refused_unread(members, tmp_path):
    bomb = {**members, "archive/extra/pocketvit": bytes(64 << 20)}
    path = _write(bomb, tmp_path / "bomb.pt2", zipfile.ZIP_DEFLATED)
    with pytest.raises(BadInput, match="67108864 bytes of pocketvit metadata"):
        TARGETS.get("torch_export").read(path)
