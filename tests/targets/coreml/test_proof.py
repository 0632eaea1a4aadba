"""Every planted fault is found, in every precision, on several architectures; healthy packages pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketvit import torchvision_repair  # noqa: F401  (before timm)
from pocketvit.errors import CheckFailed
from pocketvit.models.graph import capture
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.targets.coreml.likeness import differences
from pocketvit.targets.coreml.package import read_package
from pocketvit.targets.coreml.program import Program, read_program
from pocketvit.targets.coreml.proof import follows
from pocketvit.types import Artifact, Precision

from .conftest import save_program
from .faults import FAULTS, plant

PRECISIONS = [Precision.FP32, Precision.FP16, Precision.W8]
MODELS = {
    # as many heads as tokens, so that swapped axes keep every shape and only the numbers can tell
    "vit_tiny_patch16_224": (
        32,
        {"img_size": 32, "patch_size": 16, "depth": 2, "embed_dim": 80, "num_heads": 5, "pre_norm": True},
    ),
    "swin_tiny_patch4_window7_224": (
        56,
        {"img_size": 56, "depths": (2, 2), "embed_dim": 32, "num_heads": (2, 4), "window_size": 7},
    ),
    "mobilevit_xxs": (64, {}),
}
QUICK = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
# what an architecture has no place for; every fault has a place in at least two of the three
NO_PLACE = {
    "vit_tiny_patch16_224": {"asymmetric padding"},
    "swin_tiny_patch4_window7_224": {"asymmetric padding", "positions moved by one", "concatenated in reverse"},
    "mobilevit_xxs": {"the other GELU", "positions moved by one"},
}


@dataclass(frozen=True)
class Made:
    module: nn.Module
    artifact: Artifact
    images: np.ndarray
    reference: np.ndarray


@pytest.fixture(scope="session")
def made(tiny, digits, draft, logits_of, tmp_path_factory):
    """made(model, precision): a small model of that architecture as a package, with images and its logits."""
    done: dict[tuple[str, Precision], Made] = {}

    def make(name: str, precision: Precision) -> Made:
        if (name, precision) not in done:
            size, arguments = MODELS[name]
            module, images = tiny(name, **arguments), digits(4, size)
            path = tmp_path_factory.mktemp(f"{name}_{precision}") / "model.mlpackage"
            artifact = TARGETS.get("coreml").export(module, draft(path, "coreml", precision, size))
            done[name, precision] = Made(module, artifact, images, logits_of(module, images))
        return done[name, precision]

    return make


def _program(path: Path) -> Program:
    return read_program(read_package(path))


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=() if name in QUICK and precision == "fp16" else pytest.mark.slow)
        for name in MODELS
        for precision in PRECISIONS
    ],
)
def test_a_healthy_package_is_proven(name, precision, made):
    it = made(name, precision)
    sentence = TARGETS.get("coreml").prove(read_artifact(it.artifact.path), it.module, it.images, it.reference)
    assert "the file is its twin" in sentence


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=() if name in QUICK and precision != "w8" else pytest.mark.slow)
        for name in MODELS
        for precision in PRECISIONS
    ],
)
def test_every_planted_fault_is_found(name, precision, made, tmp_path):
    it, twin = made(name, precision), _program(made(name, Precision.FP32).artifact.path)
    assert differences(_program(it.artifact.path), twin) == []
    missed, absent = [], set()
    for i, fault in enumerate(FAULTS):
        path = tmp_path / f"{i}.mlpackage"
        if not plant(fault, it.artifact.path, path):
            absent.add(fault)
            continue
        found = differences(_program(path), twin)
        print(f"{name} {precision}: {fault}: {found[:1]}")
        missed += [] if found else [fault]
    assert not missed, f"{name} in {precision} hides {missed}"
    expected = NO_PLACE[name] | (set() if precision is Precision.W8 else {"a layer of zeros with a coarse scale"})
    assert absent == expected, f"{name} in {precision} has no place for {absent}"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]
)
def test_a_faulty_conversion_is_found_although_its_twin_shares_the_fault(name, made, tmp_path):
    """The second net: the fp32 package against PyTorch, at the logits and at the values inside."""
    it = made(name, Precision.FP32)
    program = capture(it.module, it.artifact.spec).run_decompositions({})
    print(follows(Interpreter(it.artifact.path), program, it.images, it.reference))
    missed = set()
    for i, fault in enumerate(FAULTS):
        path = tmp_path / f"{i}.mlpackage"
        if not plant(fault, it.artifact.path, path):
            continue
        try:
            follows(Interpreter(path), program, it.images, it.reference)
        except CheckFailed as e:
            print(f"{name}: {fault}: {e}")
        else:
            missed.add(fault)
    # an epsilon twice as large, or the other GELU on values below one, changes less than an honest conversion may
    assert missed <= {"layer norm epsilon doubled", "the other GELU"}, f"{name}: numbers do not show {missed}"


def test_a_package_of_other_weights_and_a_conversion_that_changed_the_model_fail_by_name(made, tmp_path):
    it = made("vit_tiny_patch16_224", Precision.FP16)
    prove = TARGETS.get("coreml").prove
    path = tmp_path / "faulty.mlpackage"
    assert plant("one weight negated", it.artifact.path, path)
    with pytest.raises(CheckFailed, match=r"not its fp32 twin: 1 of \d+ numbers of 'p_network_\S*weight\S*' are off"):
        prove(replace(it.artifact, path=path), it.module, it.images, it.reference)
    with pytest.raises(CheckFailed, match="the conversion changed the model"):
        prove(it.artifact, it.module, it.images, it.reference * 1.001)


def test_a_package_of_another_coremltools_is_not_blamed_for_its_operations(made, tmp_path):
    it = made("vit_tiny_patch16_224", Precision.FP16)
    path = tmp_path / "other.mlpackage"
    assert plant("one norm gain 3% off", it.artifact.path, path)
    older = replace(it.artifact, path=path, made_with={"coremltools": "8.3.0"})
    sentence = TARGETS.get("coreml").prove(older, it.module, it.images, it.reference)
    assert "made with coremltools 8.3.0" in sentence
    assert "not compared" in sentence


class Masked(nn.Module):
    """Attention with a mask of infinities, as windows and causal models have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head = nn.Linear(48, 48 * 3), nn.Linear(48, 10)
        self.register_buffer("mask", torch.full((16, 16), -math.inf).triu(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.reshape(1, 48, 16).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(((q @ k.transpose(1, 2)) / 7 + self.mask).softmax(-1) @ v).mean(1)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_mask_of_infinities_is_no_fault(precision, draft, digits, logits_of, tmp_path):
    module, images = Masked().eval(), digits(4, 16)
    artifact = TARGETS.get("coreml").export(module, draft(tmp_path / "m.mlpackage", "coreml", precision, 16))
    sentence = TARGETS.get("coreml").prove(artifact, module, images, _each(logits_of, module, images))
    assert "the file is its twin" in sentence


def _each(logits_of, module, images):
    return np.concatenate([logits_of(module, image[None]) for image in images])


def test_an_fp32_package_that_holds_fp16_is_told_so(made):
    it = made("vit_tiny_patch16_224", Precision.FP16)
    claimed = replace(it.artifact, precision=Precision.FP32)
    with pytest.raises(CheckFailed, match="says fp32 and holds fp16"):
        TARGETS.get("coreml").prove(claimed, it.module, it.images, it.reference)


def test_quantized_layers_are_counted_in_the_file(made):
    it = made("vit_tiny_patch16_224", Precision.W8)
    count = it.artifact.quantized
    with pytest.raises(CheckFailed, match=f"says {count.layers - 1}/{count.of} layers"):
        wrong = replace(it.artifact, quantized=replace(count, layers=count.layers - 1))
        TARGETS.get("coreml").prove(wrong, it.module, it.images, it.reference)


@pytest.mark.parametrize(
    ("perm", "same"), [([0, 2, -3, -1], True), ([0, -2, 1, -1], True), ([0, 1, 2, 3], False), ([0, 2, -1, 1], False)]
)
def test_axes_counted_from_the_back_are_the_same_axes(perm: list[int], same: bool, tmp_path: Path) -> None:
    """coremltools writes a permutation anew when it compresses weights; other axes of the same shape stay a fault."""
    x = {"x": np.zeros((2, 4, 4, 4), np.float32)}

    def program(name: str, axes: list[int]) -> Program:
        path = save_program(tmp_path / name, lambda mb, x: mb.transpose(x=x, perm=axes, name="y"), x, 15)
        return read_program(read_package(path))

    found = differences(program("ours.mlpackage", perm), program("twin.mlpackage", [0, 2, 1, 3]))
    assert bool(found) != same, found
