"""Classifiers as coremltools writes them: a label and a probability for each class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.targets.coreml.ops import OPS

COVERS = {"classify": "test_classify"}
PROBABILITIES = np.array([[0.125, 0.5, 0.25, 0.125]], np.float32)


def save_classifier(path, labels, ios, shape):
    import coremltools as ct
    from coremltools.converters.mil import Builder

    target = getattr(ct.target, f"iOS{ios}")

    @Builder.program(input_specs=[Builder.TensorSpec(shape=shape)], opset_version=target)
    def program(x):
        return Builder.mul(x=x, y=np.float32(1))

    model = ct.convert(
        program,
        convert_to="mlprogram",
        classifier_config=ct.ClassifierConfig(labels),
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=target,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


@pytest.mark.parametrize("ios", [15, 18])
@pytest.mark.parametrize("labels", [["cat", "dog", "a b", "ü"], [3, -7, 2**40, 0]], ids=["text", "numbers"])
@pytest.mark.parametrize("shape", [(1, 4), (4,), (1, 4, 1, 1)], ids=str)
def test_classify(tmp_path, labels, ios, shape):
    x = PROBABILITIES.reshape(shape)
    interpreter = Interpreter(save_classifier(tmp_path / "c.mlpackage", labels, ios, shape))
    label, probabilities = (interpreter.predict({"x": x})[output.name] for output in interpreter.outputs)
    assert label == labels[1]
    assert type(label) is type(labels[0])
    assert probabilities == dict(zip(labels, [0.125, 0.5, 0.25, 0.125], strict=True))


def test_the_first_of_equal_classes_is_given_and_counts_must_match():
    classify = OPS.get("classify")
    assert classify(torch.tensor([0.5, 0.5]), ("a", "b")) == ("a", {"a": 0.5, "b": 0.5})
    with pytest.raises(BadInput, match="2 classes for 3 probabilities"):
        classify(torch.zeros(3), ("a", "b"))


def test_classes_that_are_no_list_are_refused(tmp_path):
    from coremltools.proto import Model_pb2

    path = save_classifier(tmp_path / "c.mlpackage", ["a", "b", "c", "d"], 15, (1, 4))
    file = next(path.rglob("*.mlmodel"))
    spec = Model_pb2.Model.FromString(file.read_bytes())
    block = spec.mlProgram.functions["main"].block_specializations["CoreML5"]
    op = next(op for op in block.operations if op.type == "classify")
    op.inputs["classes"].arguments[0].name = "x"
    file.write_bytes(spec.SerializeToString())
    with pytest.raises(BadInput, match=r"'classify' .*its classes"):
        Interpreter(path)
