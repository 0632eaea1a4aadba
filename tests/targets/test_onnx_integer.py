"""Integer programs as ONNX files: the same integers in ONNX Runtime as in torch, and nothing else between them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from pocketvit.errors import BadInput
from pocketvit.models import deployable
from pocketvit.passes.ivit import integer
from pocketvit.targets import TARGETS
from pocketvit.targets._onnx_integer import emit, integer_model
from pocketvit.types import ASKED, Artifact, Golden, Precision, Quantization

ort = pytest.importorskip("onnxruntime")


def _subjects() -> ModuleType:
    """The tiny models of the pass's own tests."""
    path = Path(__file__).parents[1] / "passes" / "ivit" / "subjects.py"
    spec = importlib.util.spec_from_file_location("ivit_subjects", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ivit_subjects"] = module
    spec.loader.exec_module(module)
    return module


subjects = _subjects()
SIZE = (3, 32, 32)


def _session(model: onnx.ModelProto, threads: int = 1, entries: dict[str, str] | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", subjects.SUBJECTS)
def test_every_rounded_value_and_the_logits_are_the_same_integers(name: str) -> None:
    given = subjects.images(12)
    form = integer(deployable(subjects.subject(name)), given[:8])
    show = [number for number, _, _ in form.sites.values()]
    assert len(show) == len(set(show)) > 10
    session = _session(emit(form, SIZE, show))
    for image in given:
        found = session.run([f"value_{n}" for n in show], {"image": image[None]})
        values = form.program.run(form.quantize(torch.from_numpy(image[None])), show)
        for site, number, ints in zip(form.sites, show, found, strict=True):
            different = (torch.from_numpy(ints) != values[number]).sum().item()
            assert different == 0, f"{site}: {different} of {ints.size} integers differ"
        assert np.array_equal(session.run(["logits"], {"image": image[None]})[0], form(torch.from_numpy(image[None])))


@pytest.mark.parametrize("name", ["deit", "swin, shifted windows and merging"])
def test_the_file_holds_integers_only_between_the_bytes_and_the_logits(name: str) -> None:
    form = integer(deployable(subjects.subject(name)), subjects.images(8))
    graph = onnx.shape_inference.infer_shapes(emit(form, SIZE), strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input, *graph.output]}
    types |= {t.name: t.data_type for t in graph.initializer}
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
    touching = [n for n in graph.node if any(types[name] in floats for name in [*n.input, *n.output] if name)]
    assert [n.op_type for n in touching] == ["Mul", "Round", "Clip", "Cast", "Cast", "Mul"], touching
    products = [n for n in graph.node if n.op_type == "MatMulInteger"]
    weights = {t.name for t in graph.initializer}
    assert sum(n.input[1] in weights for n in products) == len(form.layers) - ("head_dist" in form.layers)


def test_threads_and_exact_byte_products_change_nothing() -> None:
    given = subjects.images(4)
    model = emit(integer(deployable(subjects.subject("deit")), given), SIZE)
    sessions = [_session(model), _session(model, 2), _session(model, 1, {"session.x64quantprecision": "1"})]
    for image in given:
        first, *others = (s.run(["logits"], {"image": image[None]})[0] for s in sessions)
        assert all(np.array_equal(first, other) for other in others)


def _draft(model: Any, path: Path, quantization: Quantization = Quantization()) -> Artifact:
    return Artifact(
        path=path, target="onnx", precision=Precision.INTEGER, model=model.name, trained=True, classes=10,
        spec=model.spec, golden=Golden(images=(), sha256="", logits=()), weights_sha256="", quantization=quantization,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["deit", "swin, shifted windows and merging"])
def test_every_layer_that_carries_weights_is_counted(name: str, tmp_path: Path) -> None:
    model = subjects.subject(name)
    draft = _draft(model, tmp_path / "model.onnx")
    made, counted = integer_model(deployable(model), draft, subjects.images(8))
    assert counted.layers == counted.of > 8, f"{counted}: {counted.kept}"
    assert [i.name for i in made.graph.input] == ["image"]
    assert [o.name for o in made.graph.output] == ["logits"]


def test_a_layer_to_keep_float_is_refused(tmp_path: Path) -> None:
    model = subjects.subject("deit")
    draft = _draft(model, tmp_path / "model.onnx", Quantization(keep={"head": ASKED}))
    with pytest.raises(BadInput, match="head cannot stay float"):
        TARGETS.get("onnx").export(deployable(model), draft, subjects.images(8))
