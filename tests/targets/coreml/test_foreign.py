"""Packages that pocketvit did not write: image inputs, labels, flexible shapes, arrays without a normalisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pocketvit.artifacts import evaluate, load
from pocketvit.errors import BadInput
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.types import Evidence, InputSpec

LABELS = [f"digit {i}" for i in range(10)]


class Net(nn.Module):
    """Two convolutions; fully convolutional, so that its input size may vary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 10, 3, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(image))).mean((2, 3)).softmax(-1)


def _convert(path: Path, **arguments) -> Path:
    import coremltools as ct

    shape = (1, 3, 32, 48)
    if arguments.pop("flexible", False):
        sides = {2: torch.export.Dim("h", min=16, max=64), 3: torch.export.Dim("w", min=16, max=64)}
        program = torch.export.export(Net().eval(), (torch.zeros(shape),), dynamic_shapes=(sides,))
    else:
        program = torch.export.export(Net().eval(), (torch.zeros(shape),))
    ct.convert(
        program.run_decompositions({}),
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
        **arguments,
    ).save(str(path))
    return path


def _image(width: int = 48, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _expected(pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return Net().eval()(torch.from_numpy(pixels)[None]).numpy()


@pytest.mark.parametrize("colour", ["RGB", "BGR"])
def test_an_image_input_takes_pictures_and_applies_its_own_scale_and_bias(colour, tmp_path):
    import coremltools as ct

    scale, bias = 1 / (0.226 * 255), [-0.485 / 0.226, -0.456 / 0.226, -0.406 / 0.226]
    given = ct.ImageType(name="picture", shape=(1, 3, 32, 48), scale=scale, bias=bias, color_layout=colour)
    path = _convert(tmp_path / "m.mlpackage", inputs=[given])
    interpreter = Interpreter(path)
    found = next(iter(interpreter.predict({"picture": _image()}).values()))
    pixels = np.asarray(_image(), np.float32).transpose(2, 0, 1)
    ordered = pixels[::-1] if colour == "BGR" else pixels
    expected = _expected((ordered * scale + np.array(bias, np.float32)[:, None, None]).astype(np.float32))
    # fp32 sums of 27 and 72 products of numbers below 3: about 72 x 3 x 6e-8
    np.testing.assert_allclose(found, expected, atol=2e-5)
    runner = load(path)
    assert runner.evidence is Evidence.INTERPRETED
    np.testing.assert_allclose(runner(pixels[None] / np.float32(255)), expected, atol=2e-5)
    with pytest.raises(BadInput, match=r"takes shape \(1, 3, 32, 48\), not \(1, 3, 48, 32\)"):
        interpreter.predict({"picture": _image(32, 48)})


def test_a_classifier_gives_its_label_and_its_accuracy_can_be_measured(tmp_path):
    import coremltools as ct

    given = ct.ImageType(name="picture", shape=(1, 3, 32, 48), scale=1 / 255)
    path = _convert(tmp_path / "m.mlpackage", inputs=[given], classifier_config=ct.ClassifierConfig(LABELS))
    found = Interpreter(path).predict({"picture": _image()})
    pixels = np.asarray(_image(), np.float32).transpose(2, 0, 1) / np.float32(255)
    expected = _expected(pixels)[0]
    assert found["classLabel"] == LABELS[int(expected.argmax())]
    probabilities = next(value for value in found.values() if isinstance(value, dict))
    assert list(probabilities) == LABELS
    np.testing.assert_allclose(list(probabilities.values()), expected, atol=2e-5)
    runner = load(path)
    assert runner.spec.labels == tuple(LABELS)
    scored = evaluate(path, "digits", split="val")
    assert scored.evidence is Evidence.INTERPRETED
    assert 0 <= scored.top1 <= scored.top5 <= 1
    assert scored.images > 100


def test_an_array_input_needs_to_be_told_the_normalisation(tmp_path):
    import coremltools as ct

    path = _convert(tmp_path / "m.mlpackage", inputs=[ct.TensorType(name="x", shape=(1, 3, 32, 48))])
    with pytest.raises(BadInput, match="does not say how images are normalised for it; give --mean and --std"):
        load(path)
    spec = InputSpec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = np.asarray(_image(), np.float32).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.array(part, np.float32)[:, None, None] for part in (spec.mean, spec.std))
    np.testing.assert_allclose(load(path, foreign=spec)(pixels[None]), _expected((pixels - mean) / std), atol=2e-5)


def test_flexible_shapes_run_at_every_size_they_allow(tmp_path):
    import coremltools as ct

    side = ct.RangeDim(16, 64, default=32)
    shape = ct.Shape(shape=(1, 3, side, ct.RangeDim(16, 64, default=48)))
    path = _convert(tmp_path / "m.mlpackage", flexible=True, inputs=[ct.TensorType(name="x", shape=shape)])
    interpreter = Interpreter(path)
    for height, width in ((32, 48), (16, 64), (50, 50)):
        pixels = np.random.default_rng(height).random((3, height, width), np.float32)
        found = next(iter(interpreter.predict({"x": pixels[None]}).values()))
        np.testing.assert_allclose(found, _expected(pixels), atol=2e-5)
    with pytest.raises(BadInput, match=r"within .*, not \(1, 3, 8, 8\)"):
        interpreter.predict({"x": np.zeros((1, 3, 8, 8), np.float32)})


def test_listed_shapes_are_the_only_ones_taken(tmp_path):
    import coremltools as ct

    shapes = ct.EnumeratedShapes(shapes=[[1, 3, 32, 32], [1, 3, 48, 48]], default=[1, 3, 32, 32])
    path = _convert(tmp_path / "m.mlpackage", flexible=True, inputs=[ct.TensorType(name="x", shape=shapes)])
    interpreter = Interpreter(path)
    for side in (32, 48):
        pixels = np.random.default_rng(side).random((3, side, side), np.float32)
        found = next(iter(interpreter.predict({"x": pixels[None]}).values()))
        np.testing.assert_allclose(found, _expected(pixels), atol=2e-5)
    with pytest.raises(BadInput, match="takes shape one of"):
        interpreter.predict({"x": np.zeros((1, 3, 40, 40), np.float32)})


def test_inputs_are_asked_for_by_name(tmp_path):
    import coremltools as ct

    path = _convert(tmp_path / "m.mlpackage", inputs=[ct.TensorType(name="x", shape=(1, 3, 32, 48))])
    interpreter = Interpreter(path)
    with pytest.raises(BadInput, match=r"no input \['y'\]; it takes \['x'\]"):
        interpreter.predict({"y": np.zeros(1)})
    with pytest.raises(BadInput, match="needs its input 'x'"):
        interpreter.predict({})
    with pytest.raises(BadInput, match="takes numbers"):
        interpreter.predict({"x": np.array(["text"])})


def test_scores_come_in_the_order_of_the_datas_labels(tmp_path):
    import coremltools as ct

    given = ct.ImageType(name="picture", shape=(1, 3, 32, 48), scale=1 / 255)
    path = _convert(tmp_path / "m.mlpackage", inputs=[given], classifier_config=ct.ClassifierConfig(LABELS))
    runner = load(path)
    assert runner.probabilities
    pixels = np.asarray(_image(), np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    order = np.random.default_rng(1).permutation(10)
    wanted = [LABELS[i] for i in order]
    ordered = runner.in_order_of(wanted)
    assert ordered.spec.labels == tuple(wanted)
    np.testing.assert_array_equal(ordered(pixels), runner(pixels)[:, order])
    again = ordered.in_order_of(LABELS)
    np.testing.assert_array_equal(again(pixels), runner(pixels))
    for others in (LABELS, LABELS[:9], ["another", *LABELS[1:]]):
        assert runner.in_order_of(others) is runner


def test_another_arithmetic_rounds_otherwise(tmp_path):
    import coremltools as ct

    path = tmp_path / "half.mlpackage"
    program = torch.export.export(Net().eval(), (torch.zeros(1, 3, 32, 48),)).run_decompositions({})
    ct.convert(
        program,
        inputs=[ct.ImageType(name="picture", shape=(1, 3, 32, 48), scale=1 / 255)],
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    ).save(str(path))
    runner = load(path)
    pixels = np.asarray(_image(), np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    found = {name: runner.computing_in(name)(pixels) for name in ("fp32", "fp16-fp32acc", "fp16")}
    np.testing.assert_array_equal(found["fp16-fp32acc"], runner(pixels))
    np.testing.assert_allclose(found["fp32"], _expected(pixels[0]), atol=1e-3)  # its weights are stored as fp16
    for name in ("fp32", "fp16"):
        assert not np.array_equal(found[name], runner(pixels)), f"{name} rounds as the default does"
    assert runner.computing_in("fp32").name == "coreml, not pocketvit's: half.mlpackage, in fp32 arithmetic"
