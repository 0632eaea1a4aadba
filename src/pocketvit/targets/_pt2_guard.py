"""Refuses a .pt2 archive that could run code when PyTorch loads it.

torch.export.load runs code it is given; seen to happen with torch 2.13 (the tests do it again):

- sample inputs: torch.load, and unpickled without restriction when that refuses;
- symbolic sizes: passed to sympify, which evals;
- names of graph inputs, and guards where sample inputs are present: pasted into Python source that is executed.

Read in its source, not tried: weights and constants whose config says use_pickle, custom and opaque objects and the
older single-file weights are unpickled without restriction, and compiled libraries (AOTInductor) are loaded. Refused
as well, though PyTorch stopped what was tried: operator names, which it resolves by attribute from the torch module
(`torch.os.system` fails only in its verifier), and argument names, which it pastes into source too.

A file written by this package needs none of these. So the archive is read with PyTorch's own reader (two readers of
one zip may disagree) and must hold nothing but plain tensors, our metadata and a graph of known operators. The
guard names what is allowed; everything else is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..types import METADATA_KEY, METADATA_MAX_BYTES

MODEL = "models/model.json"
WEIGHTS_CONFIG = "data/weights/model_weights_config.json"
CONSTANTS_CONFIG = "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
EXTRA = f"extra/{METADATA_KEY}"

_RECORD = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+|\.data/serialization_id|\.format_version")
_BOOKKEEPING = {"archive_format", "archive_version", "byteorder", "version", ".data/version"}
_OPERATOR = re.compile(r"torch\.ops\.(aten|quantized_decomposed)\.\w+\.\w+|_operator\.getitem")
_MAX_GRAPH_BYTES = 256 << 20
_MAX_DEPTH = 64

# parts of the serialized graph that lead to evaluation, to other objects or to subgraphs with either
_NO_KEYS = {"as_expr", "expr_str", "as_graph", "as_operator", "as_custom_obj", "custom_obj", "token"}
_EMPTY_KEYS = {"guards_code", "range_constraints", "custom_obj_values", "metadata", "treespec_namedtuple_fields"}
_NAME_KEYS = {"name", "as_name"}
_PLAIN_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def check_archive(path: Path) -> None:
    """Raise BadInput, naming what was found, unless loading the archive cannot run anything but its graph."""
    import torch

    reader = torch._C.PyTorchFileReader(str(path))
    names = reader.get_all_records()
    if len({name.lower() for name in names}) != len(names):
        raise _refused(path, "the same name twice")
    size = path.stat().st_size
    if sum(reader.get_record_size(name) for name in names) > size:
        raise _refused(path, "compressed parts that unpack to more than the file")
    known = {MODEL, WEIGHTS_CONFIG, CONSTANTS_CONFIG, SAMPLE_INPUTS, EXTRA} | _BOOKKEEPING
    for name in names:
        if name not in known and not _RECORD.fullmatch(name):
            raise _refused(path, f"a part called {name!r}")
    if SAMPLE_INPUTS in names and reader.get_record_size(SAMPLE_INPUTS):
        raise _refused(path, "pickled sample inputs")
    for config in (WEIGHTS_CONFIG, CONSTANTS_CONFIG):
        _check_config(path, _json(path, reader, config))
    _check_graph(path, _json(path, reader, MODEL))


def _json(path: Path, reader: Any, name: str) -> Any:
    limit = _MAX_GRAPH_BYTES if name == MODEL else METADATA_MAX_BYTES
    if reader.get_record_size(name) > limit:
        raise _refused(path, f"a {name} of {reader.get_record_size(name)} bytes")
    return json.loads(reader.get_record(name))


def _check_config(path: Path, config: Any) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"] is not False or payload["tensor_meta"] is None:
            raise _refused(path, f"a pickle in place of the tensor {name!r}")
        if not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            raise _refused(path, f"the tensor {name!r} in {payload['path_name']!r}")
        _check_part(path, payload["tensor_meta"], 0)


def _check_graph(path: Path, program: Any) -> None:
    _check_part(path, program, 0)
    for node in program["graph_module"]["graph"]["nodes"]:
        if not _OPERATOR.fullmatch(node["target"]):
            raise _refused(path, f"the operator {node['target']!r}")


def _check_part(path: Path, part: Any, depth: int) -> None:
    """Walk the JSON; every key is looked at wherever it stands, so nothing hides in an unexpected place."""
    if depth > _MAX_DEPTH:
        raise _refused(path, f"a graph nested more than {_MAX_DEPTH} deep")
    if isinstance(part, list):
        for item in part:
            _check_part(path, item, depth + 1)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in _NO_KEYS and value is not None:
                raise _refused(path, f"{key!r} in its graph")
            if key in _EMPTY_KEYS and value:
                raise _refused(path, f"{key!r} in its graph")
            if key in _NAME_KEYS and isinstance(value, str) and value and not value.isidentifier():
                raise _refused(path, f"the name {value[:80]!r}")
            if key == "forward_arg_names" and not all(str(name).isidentifier() for name in value or ()):
                raise _refused(path, f"the argument names {value!r}")
            if key in ("in_spec", "out_spec"):
                _check_tree(path, json.loads(value))
            else:
                _check_part(path, value, depth + 1)


def _check_tree(path: Path, tree: Any) -> None:
    """Arguments may be tuples, lists and dicts only: other kinds name modules to import."""
    specs = [tree[1]] if isinstance(tree, list) else [tree]
    while specs:
        spec = specs.pop()
        if spec["type"] not in _PLAIN_TREES:
            raise _refused(path, f"arguments of type {spec['type']!r}")
        specs += spec["children_spec"]


def _refused(path: Path, what: str) -> BadInput:
    return BadInput(f"{path} was not loaded: it holds {what}, which no file exported by pocketvit does.")
