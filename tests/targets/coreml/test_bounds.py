"""Programs that ask for too much: rounds, constants, weights, names; and results that nobody else can change."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pocketvit.errors import BadInput
from pocketvit.targets.coreml import compiler, package, plan, program
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.targets.coreml.package import read_package

from .conftest import save_program

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    def build(mb, x):
        return mb.add(x=mb.relu(x=x), y=np.ones((300, 2, 3), np.float32))

    return save_program(tmp_path / "relu.mlpackage", build, {"x": X}, 16)


def test_loops_within_loops_share_one_budget(tmp_path, monkeypatch):
    def nested(mb, x):
        def count(start, body):
            return mb.while_loop(_cond=lambda i: mb.less(x=i, y=30.0), _body=body, loop_vars=(start,))

        def outer(i):
            inner = count(mb.mul(x=i, y=0.0), lambda j: mb.add(x=j, y=1.0))
            return mb.add(x=i, y=mb.real_div(x=inner, y=30.0))

        return count(mb.reduce_sum(x=mb.mul(x=x, y=0.0), keep_dims=False), outer)

    path = save_program(tmp_path / "loops.mlpackage", nested, {"x": X}, 16)
    assert next(iter(Interpreter(path).predict({"x": X}).values())) == 30
    monkeypatch.setattr(plan, "_MAX_ROUNDS", 500)  # 30 rounds of 31 are more
    with pytest.raises(BadInput, match="did not end after 500 rounds of all loops"):
        Interpreter(path).predict({"x": X})


@pytest.mark.parametrize(
    ("module", "limit", "value", "why"),
    [
        (compiler, "MAX_LIVE", 2000, "constants take more than 2000 bytes"),
        (program, "_MAX_BYTES", 2000, "constants take more than 2000 bytes"),
        (package, "_MAX_WEIGHTS", 2000, "more than the 2000 that a phone could hold"),
        (package, "_MAX_MODEL", 200, "more than 200 for a description"),
        (program, "_MAX_OPS", 1, "holds more than 1 operations"),
    ],
)
def test_what_takes_too_much_is_refused_by_name(module, limit, value, why, relu, monkeypatch):
    Interpreter(relu)
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(BadInput, match=why) as refused:
        Interpreter(relu)
    assert str(relu) in str(refused.value)


def test_a_weight_file_under_many_names_is_read_once(relu):
    found = read_package(relu)
    one = found.weights("@model_path/weights/weight.bin")
    assert found.weights("@model_path/weights/./././weight.bin") is one


@pytest.mark.parametrize(
    "name", ["weights/weight.bin", "@model_path/../x", "@model_path//etc/passwd", "@model_path/" + "x" * 5000]
)
def test_weights_anywhere_else_are_refused(name, relu):
    with pytest.raises((BadInput, OSError)):
        read_package(relu).weights(name)


def test_a_manifest_that_points_nowhere_is_a_sentence(relu, tmp_path):
    for i, item in enumerate(("x" * 5000, "\\u0000", "com.apple.CoreML")):
        path = tmp_path / f"{i}.mlpackage"
        shutil.copytree(relu, path)
        manifest = path / "Manifest.json"
        manifest.write_text(manifest.read_text().replace("com.apple.CoreML/model.mlmodel", item))
        with pytest.raises(BadInput) as refused:
            Interpreter(path)
        assert str(path) in str(refused.value)


def test_results_belong_to_the_caller(tmp_path):
    def build(mb, x):
        return mb.identity(x=x), mb.reshape(x=x, shape=[3, 2]), mb.add(x=np.float32([1, 2]), y=np.float32([0, 0]))

    path = save_program(tmp_path / "views.mlpackage", build, {"x": X}, 16)
    interpreter = Interpreter(path)
    given = X.copy()
    first = interpreter.predict({"x": given})
    for array in first.values():
        array += 100
    np.testing.assert_array_equal(given, X)
    for name, array in interpreter.predict({"x": X}).items():
        np.testing.assert_array_equal(array, first[name] - 100)


@pytest.mark.parametrize("value", [[[1.0], [1.0, 2.0]], "text", {"a": 1}, np.array(["a"]), 1j, None])
def test_what_is_no_array_of_numbers_is_refused(value, relu):
    with pytest.raises(BadInput, match="'x' takes"):
        Interpreter(relu).predict({"x": value})
