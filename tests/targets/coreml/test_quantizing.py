"""8- and 4-bit weights and 8-bit activations: every layer by name, the numbers as defined, wrong ones found."""

from __future__ import annotations

import dataclasses
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketvit import torchvision_repair  # noqa: F401  (before timm)
from pocketvit.errors import CheckFailed
from pocketvit.models import create, deployable
from pocketvit.models import graph as torch_graph
from pocketvit.models.graph import capture
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.targets.coreml.activations import unfit
from pocketvit.targets.coreml.compiler import unpacked_constants
from pocketvit.targets.coreml.convert import convert
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.targets.coreml.layers import layers
from pocketvit.targets.coreml.likeness import likeness
from pocketvit.targets.coreml.package import read_package
from pocketvit.targets.coreml.program import Program, read_program
from pocketvit.targets.coreml.quantizing import bits
from pocketvit.targets.coreml.seal import seal
from pocketvit.targets.coreml.values import Value
from pocketvit.types import Artifact, Golden, Precision, Quantization

PRECISIONS = (Precision.W8, Precision.W8A8, Precision.W4)
ASKED = "second"
WHY = "it moves the logits too much"
FAINT = "faint"


class Small(nn.Module):
    """A folded norm, a depthwise convolution, readers of one value, a product with a parameter, faint weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 64, 4, 4, bias=False), nn.BatchNorm2d(64)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.first, self.second, self.third = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.faint = nn.Linear(64, 64)
        self.table = nn.Parameter(torch.randn(64, 64) / 8)
        self.head = nn.Linear(64, 10)
        nn.init.normal_(self.norm.running_mean, std=0.1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.faint.weight, std=2e-6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.norm(self.stem(image)))
        x = (x + self.depthwise(x)).flatten(2).transpose(1, 2)
        x = self.first(x) * torch.sigmoid(self.second(x)) + self.third(x) + self.faint(x)
        return self.head(nn.functional.relu(x @ self.table).mean(1))


@dataclasses.dataclass(frozen=True)
class Made:
    module: nn.Module
    artifact: Artifact
    images: np.ndarray
    reference: np.ndarray

    @property
    def program(self) -> Program:
        return read_program(read_package(self.artifact.path))


@pytest.fixture(scope="session")
def made(draft, digits, logits_of, tmp_path_factory):
    """made(precision): the small network as a package with one layer kept, with its images and logits."""
    done: dict[Precision, Made] = {}
    module, images = Small().eval(), digits(8, 16)
    reference = np.concatenate([logits_of(module, image[None]) for image in images])

    def make(precision: Precision) -> Made:
        if precision not in done:
            asked = draft(tmp_path_factory.mktemp(precision) / "m.mlpackage", "coreml", precision, 16)
            asked = replace(asked, quantization=Quantization(keep={ASKED: WHY}))
            done[precision] = Made(module, TARGETS.get("coreml").export(module, asked, images), images, reference)
        return done[precision]

    return make


@pytest.fixture(scope="session")
def twins(made, tmp_path_factory):
    """twins(precision): the fp32 package that the proof makes."""
    done: dict[Precision, Path] = {}

    def make(precision: Precision) -> Interpreter:
        if precision not in done:
            it, path = made(precision), tmp_path_factory.mktemp("twin") / "twin.mlpackage"
            program = capture(it.module, it.artifact.spec).run_decompositions({})
            convert(program, replace(it.artifact, path=path), full=True)
            done[precision] = path
        return Interpreter(done[precision])

    return make


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("pocket_mobilevit_32", marks=pytest.mark.slow),
        pytest.param("pocket_moat_48", marks=pytest.mark.slow),
        "pocket_deit_distilled_patch4_32",
    ],
)
def test_every_layer_of_the_model_is_found_once(name, tmp_path):
    model = create(name)
    draft = Artifact(
        path=tmp_path / "m.mlpackage",
        target="coreml",
        precision=Precision.W8,
        model=name,
        trained=False,
        classes=model.classes,
        spec=model.spec,
        golden=Golden(images=(), sha256="", logits=()),
        weights_sha256="",
    )
    captured = capture(deployable(model), model.spec)
    expected = torch_graph.layers(captured)
    names = convert(captured.run_decompositions({}), draft)
    found = layers(read_program(read_package(draft.path)), names)
    assert sorted(layer.name for layer in found) == sorted(layer.name for layer in expected)
    assert len({layer.name for layer in expected}) == len(expected)
    by_name = {layer.name: layer for layer in expected}
    for layer in found:
        assert layer.weight is not None
        assert layer.weight.size == np.prod(by_name[layer.name].shape), f"{layer.name} is another layer's weight"
    assert [p.name for p in draft.path.iterdir() if "debug" in p.name] == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_stays_float_is_named_with_its_reason(precision, made):
    quantized = made(precision).artifact.quantized
    assert (quantized.layers, quantized.of) == (6, 8)
    assert set(quantized.kept) == {ASKED, FAINT}
    assert quantized.kept[ASKED] == WHY
    assert "too coarse" in quantized.kept[FAINT]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_says_what_it_holds_keeps_its_decibels_and_is_proven(precision, made, sqnr_db):
    it, target = made(precision), TARGETS.get("coreml")
    artifact = read_artifact(it.artifact.path)
    assert artifact == it.artifact
    decibels = sqnr_db(it.reference, target.load(artifact, 1)(it.images))
    print(f"{precision}: {decibels:.1f} dB")
    assert decibels >= precision.floor_db
    sentence = target.prove(artifact, it.module, it.images, it.reference)
    assert "the file is its twin" in sentence
    assert ("8-bit ranges of 6 layers' inputs" in sentence) is (precision is Precision.W8A8)
    assert ("4 in 4 bits, 2 in 8 bits" in sentence) is (precision is Precision.W4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_coremltools_reads_what_was_edited(precision, made):
    """Types and shapes of every operation are inferred again there, those of our pairs too."""
    import coremltools as ct
    from coremltools.optimize.coreml import decompress_weights

    model = ct.models.MLModel(str(made(precision).artifact.path), skip_model_load=True)
    kinds = [op.kind for op in made(precision).program.block.ops]
    pairs = kinds.count("quantize")
    assert pairs == kinds.count("dequantize")
    assert pairs == (5 if precision is Precision.W8A8 else 0)  # of six layers, `first` and `third` read one value
    decompressed = decompress_weights(model).get_spec().mlProgram.functions["main"]
    again = [op.type for op in decompressed.block_specializations[decompressed.opset].operations]
    assert again.count("quantize") == pairs
    assert not any(kind.startswith("constexpr") for kind in again)


def test_groups_of_4_bits_are_as_large_as_asked_and_divide(made):
    it = made(Precision.W4)
    assert bits(it.program) == {4: 4, 8: 2}
    scales = {layer.op.name: layer.constant for layer in layers(it.program, {})}
    sides = [c.inputs["scale"][0].type.shape for c in scales.values() if "offset" in c.inputs]
    # a depthwise window has nine weights; rows of 64 have two groups of 32
    assert sorted(sides) == [(64, 1, 1, 1), (64, 2), (64, 2), (64, 2)]


def test_layers_of_few_weights_have_8_bits(draft, digits, logits_of, sqnr_db, tmp_path):
    """In 4 bits those of the trained MobileViT would save 2% of its file, and leave 12 dB of its logits."""
    module = deployable(create("pocket_mobilevit_32.cifar10"))
    asked = draft(tmp_path / "m.mlpackage", "coreml", Precision.W4, 32)
    images = digits(8, 32)
    runner = TARGETS.get("coreml").load(TARGETS.get("coreml").export(module, asked, images), 2)
    sizes = [math.prod(layer.shape) for layer in torch_graph.layers(capture(module, asked.spec))]
    few = min(8192, sum(sizes) // 100)
    narrow = 2 + sum(size < few for size in sizes[1:-1])  # the first layer and the classifier beside them
    assert bits(read_program(read_package(asked.path))) == {4: len(sizes) - narrow, 8: narrow}
    found = sqnr_db(logits_of(module, images), runner(images))
    assert found > 17, f"{found:.1f} dB"


def _edited(program: Program, numbers: dict[str, object]) -> Program:
    """The program with other numbers in constants, by the name of the operation (and parameter: 'name.scale')."""

    def other(value: Value, new: object) -> Value:
        data = np.asarray(new, value.data.dtype)
        assert data.shape == value.data.shape
        return Value(value.type, data)

    ops = []
    for op in program.block.ops:
        for key, new in numbers.items():
            name, _, parameter = key.partition(".")
            if op.name != name:
                continue
            if parameter in op.inputs:
                op = replace(op, inputs={**op.inputs, parameter: (other(op.inputs[parameter][0], new),)})
            else:
                held = parameter or "val"
                op = replace(op, attributes={**op.attributes, held: other(op.attributes[held], new)})
        ops.append(op)
    return replace(program, block=replace(program.block, ops=tuple(ops)))


def _scales(program: Program) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """The names and numbers of the scale and zero point of each pair."""
    by_name = {op.name: op for op in program.block.ops}
    return [
        (*names, *(by_name[name].attributes["val"].data for name in names))
        for op in program.block.ops
        if op.kind == "quantize"
        for names in [(op.inputs["scale"][0], op.inputs["zero_point"][0])]
    ]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda scale, zero: (scale * 16, zero), "times what its range"),
        (lambda scale, zero: (scale / 16, zero), "cut off"),
        (lambda scale, zero: (scale, 127 if zero < 0 else -128), "cut off"),
        (lambda scale, zero: (scale * 0, zero), "has a scale of 0"),
        (lambda scale, zero: (scale * np.nan, zero), "scale and zero point"),
        (lambda scale, zero: (-scale, zero), "has a scale of -"),
    ],
)
def test_a_wrong_activation_scale_is_found_wherever_it_is(fault, says, made, twins):
    it, twin = made(Precision.W8A8), twins(Precision.W8A8)
    assert _complaints(it.program, twin, it.images) == []
    for scale, zero, step, zero_point in _scales(it.program):
        faulty = dict(zip((scale, zero), fault(step.astype(np.float64), int(zero_point)), strict=True))
        found = _complaints(_edited(it.program, faulty), twin, it.images)
        print(scale, found[:1])
        assert found, f"{scale} may be anything"
        assert all(says in sentence for sentence in found)


def _complaints(program: Program, twin: Interpreter, images: np.ndarray) -> list[str]:
    held = likeness(program, twin.program, activations=True)
    assert held.differences == ()
    return list(unfit(held.pairs, unpacked_constants(program), twin, images))


def test_the_two_halves_of_a_pair_must_agree(made, twins):
    it = made(Precision.W8A8)
    pair = likeness(it.program, twins(Precision.W8A8).program, activations=True).pairs[0]
    constants = unpacked_constants(it.program)
    shared = dict(pair.dequantize.inputs)
    constants["other"] = constants[shared["scale"][0]] * 1.01
    other = replace(pair, dequantize=replace(pair.dequantize, inputs={**shared, "scale": ("other",)}))
    (sentence,) = unfit([other], constants, twins(Precision.W8A8), it.images)
    assert "widens with" in sentence


def test_8_bit_activations_are_no_part_of_another_precision(made, twins):
    it = made(Precision.W8A8)
    found = likeness(it.program, twins(Precision.W8A8).program).differences
    assert any("'dequantize'" in sentence for sentence in found), found


def test_a_pair_edited_in_the_file_fails_its_proof(made, tmp_path):
    it, path = made(Precision.W8A8), tmp_path / "m.mlpackage"
    shutil.copytree(it.artifact.path, path)
    package = read_package(path)
    main = package.spec.mlProgram.functions["main"]
    (name, *_), *_ = _scales(it.program)
    op = next(o for o in main.block_specializations[main.opset].operations if o.outputs[0].name == name)
    tensor = op.attributes["val"].immediateValue.tensor
    tensor.bytes.values = (np.frombuffer(tensor.bytes.values, np.float16) * 16).astype(np.float16).tobytes()
    package.model.write_bytes(package.spec.SerializeToString())
    package = read_package(path)
    seal(package, read_program(package))
    with pytest.raises(CheckFailed, match=r"has a step of .* in 8 bits, 1[0-9] times what its range"):
        TARGETS.get("coreml").prove(replace(it.artifact, path=path), it.module, it.images, it.reference)


def test_wrong_4_bit_weights_are_found(made, twins):
    it, twin = made(Precision.W4), twins(Precision.W4).program
    assert likeness(it.program, twin).differences == ()
    grouped = [layer.constant for layer in layers(it.program, {}) if "offset" in layer.constant.inputs]
    assert len(grouped) == 4
    linears = [constant for constant in grouped if constant.inputs["data"][0].data.shape == (64, 64)]
    one, two, _ = (constant.inputs["data"][0].data for constant in linears)
    faults = {"two layers' integers swapped": {f"{linears[0].name}.data": two, f"{linears[1].name}.data": one}}
    for constant in grouped:
        data, scale = (constant.inputs[name][0].data for name in ("data", "scale"))
        moved = data.copy()
        moved.flat[0] += (
            -2 if data.flat[0] > 0 else 2
        )  # one step could still be the next nearest of a number between two
        faults[f"{constant.name}: one weight two steps off"] = {f"{constant.name}.data": moved}
        coarse = scale.astype(np.float64)
        coarse.flat[0] *= 1.2
        faults[f"{constant.name}: one scale a fifth too large"] = {f"{constant.name}.scale": coarse}
        zeros = {f"{constant.name}.data": np.zeros_like(data), f"{constant.name}.scale": scale.astype(np.float64) * 15}
        faults[f"{constant.name}: zeros with a coarse scale"] = zeros
    for fault, numbers in faults.items():
        found = likeness(_edited(it.program, numbers), twin).differences
        print(fault, found)
        assert found, f"{fault}: not seen"


def test_a_wrong_list_of_layers_is_found(made):
    it, prove = made(Precision.W8), TARGETS.get("coreml").prove
    kept = it.artifact.quantized.kept
    other = {("first" if name == ASKED else name): why for name, why in kept.items()}
    wrong = replace(it.artifact, quantized=replace(it.artifact.quantized, kept=other))
    with pytest.raises(CheckFailed, match="says that faint, first stayed float, but faint, second did"):
        prove(wrong, it.module, it.images, it.reference)
    more = replace(it.artifact, quantization=Quantization(keep={ASKED: WHY, "head": WHY}))
    with pytest.raises(CheckFailed, match="should keep head float"):
        prove(more, it.module, it.images, it.reference)
