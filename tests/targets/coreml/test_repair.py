"""Packages that overflow in fp16 are rewritten into equal ones that do not; what cannot be rewritten is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pocketvit import torchvision_repair  # noqa: F401  (before timm)
from pocketvit.data import open_data, sample
from pocketvit.errors import BadInput, CheckFailed
from pocketvit.files import sha256
from pocketvit.targets.coreml.findings import State
from pocketvit.targets.coreml.headroom import headroom
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.targets.coreml.package import read_package
from pocketvit.targets.coreml.program import read_program
from pocketvit.targets.coreml.repair import TOLERANCE, repair, repaired_changes
from pocketvit.targets.coreml.rounding import rounded
from pocketvit.types import InputSpec, plain

from .overflowing import SIDE, TROUBLES, Masked, convert, healthy, residual

# fp16 arithmetic of a healthy program this small: some 20 roundings of 2^-11 one after another
HEALTHY = 20 * 2.0**-11


@pytest.fixture(scope="session")
def photos():
    spec = InputSpec(size=(3, SIDE, SIDE))
    return [{"image": image[None]} for image in sample(open_data("photos", "all"), spec, 4)]


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """package(name, half): one of the models as a package, converted once."""
    directory = tmp_path_factory.mktemp("troubles")
    made = {}

    def make(name, half):
        if (name, half) not in made:
            trouble = TROUBLES.get(name)
            build, ios = (
                (trouble.make, trouble.ios) if trouble else ({"healthy": healthy, "residual": residual}[name], 16)
            )
            made[name, half] = convert(build, directory / f"{len(made)}.mlpackage", half, ios)
        return made[name, half]

    return make


def logits(path, photos, arithmetic="fp32"):
    interpreter = Interpreter(path, arithmetic)
    return np.concatenate([interpreter.predict(photo)["logits"] for photo in photos])


def off(path, photos, arithmetic, expected):
    """Largest error over the largest logit; inf when a logit is not finite."""
    found = logits(path, photos, arithmetic)
    return float(np.abs(found - expected).max() / np.abs(expected).max()) if np.isfinite(found).all() else np.inf


# every model in fp16, and one for each rewrite in float32, which is judged as if it were stored in fp16
FP32 = {trouble.rewrite: name for name, trouble in TROUBLES.items()}.values()
CASES = [
    *(pytest.param(name, True, id=f"{name}, fp16") for name in TROUBLES),
    *(pytest.param(name, False, id=f"{name}, fp32") for name in FP32),
]


@pytest.mark.parametrize(("name", "half"), CASES)
def test_trouble_is_rewritten_exactly(name, half, package, photos, tmp_path):
    trouble, path = TROUBLES[name], package(name, half)
    before = headroom(path, photos)
    assert before.of(State.OVERFLOWS), before.sentence
    unchanged = sha256(path)
    found = repair(path, before, tmp_path / "new.mlpackage", photos)

    assert {change.rewrite for change in found.changes} == {trouble.rewrite}
    assert not found.refusals
    assert not found.after.of(State.OVERFLOWS), [op.because for op in found.after.of(State.OVERFLOWS)]
    assert sha256(path) == unchanged
    expected = logits(path, photos)
    assert off(found.path, photos, "fp32", expected) <= TOLERANCE
    for arithmetic in ("fp16-fp32acc", "fp16") if half else ():
        was, now = off(path, photos, arithmetic, expected), off(found.path, photos, arithmetic, expected)
        print(f"{name} in {arithmetic}: {was:.1e} before, {now:.1e} after")
        assert now <= HEALTHY, f"{arithmetic}: off by {now:.1e} of the scale after the repair"
        assert (was > 10 * HEALTHY) == (arithmetic in trouble.worse), f"{arithmetic}: off by {was:.1e} before it"


@pytest.mark.parametrize("name", TROUBLES)
def test_a_mac_could_read_what_is_written(name, package, photos, tmp_path):
    """coremltools builds its own typed program from the new description: every name, type and shape must fit."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    path = package(name, True)
    found = repair(path, headroom(path, photos), tmp_path / "new.mlpackage", photos)
    model = ct.models.MLModel(str(found.path), skip_model_load=True)
    spec = model.get_spec()
    loaded = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    declared = {o.name: o for op in read_program(read_package(found.path)).block.ops for o in op.outputs}
    for op in loaded.functions["main"].operations:
        for output in op.outputs if op.op_type != "const" else ():
            assert tuple(output.shape) == declared[output.name].type.shape, f"{op.op_type} {output.name}"


def test_only_what_was_named_is_touched(package, photos, tmp_path):
    path = package("layer norm", True)
    found = repair(path, headroom(path, photos), tmp_path / "new.mlpackage", photos)
    old, new = (read_program(read_package(p)).block.ops for p in (path, found.path))
    known = {op.name: op for op in new}
    (touched,) = found.changes[0].touched
    for op in old:
        if op.name in known and op.name != touched and op.kind != "const":
            assert (op.kind, op.inputs) == (known[op.name].kind, known[op.name].inputs)
    weights = [sha256(p / "Data/com.apple.CoreML/weights") for p in (path, found.path)]
    assert weights[0] == weights[1]
    assert repaired_changes(read_package(found.path)) == (f"scaled norm: {found.changes[0].detail}",)


def test_a_repaired_package_needs_no_repair(package, photos, tmp_path):
    path = package("scaled by another factor", True)
    once = repair(path, headroom(path, photos), tmp_path / "once.mlpackage", photos)
    again = repair(once.path, once.after, tmp_path / "again.mlpackage", photos)
    assert again.path is None
    assert again.sentence == "nothing to repair; nothing written"


def test_a_healthy_package_is_left_alone(package, photos, tmp_path):
    path = package("healthy", True)
    found = repair(path, headroom(path, photos), tmp_path / "new.mlpackage", photos)
    assert found.path is None
    assert found.sentence == "nothing to repair; nothing written"
    assert list(tmp_path.iterdir()) == []


def test_what_no_rewrite_helps_is_named_with_the_reason(package, photos, tmp_path):
    path = package("residual", True)
    found = repair(path, headroom(path, photos), tmp_path / "new.mlpackage", photos)
    assert found.path is None
    reasons = {refusal.op: refusal.reason for refusal in found.refusals}
    assert len(reasons) == len(found.before.of(State.OVERFLOWS)) > 1
    assert any("its result reaches" in reason and "the network's own scale" in reason for reason in reasons.values())
    assert any("its input overflows already" in reason for reason in reasons.values())
    json.dumps(plain(found))


def test_a_rewrite_that_changes_results_is_not_kept(photos, tmp_path):
    # in rows masked throughout, -1e9 swallows the scores in float32 and -3e4 does not
    path = convert(lambda: Masked(-1e9, rows_masked=8), tmp_path / "old.mlpackage", False)
    with pytest.raises(CheckFailed, match=r"differs from the original by .* it was not kept"):
        repair(path, headroom(path, photos), tmp_path / "new.mlpackage", photos)
    assert [p.name for p in tmp_path.iterdir()] == ["old.mlpackage"]


@pytest.mark.parametrize(("name", "sentence"), [("new.onnx", "should end in"), ("taken.mlpackage", "exists")])
def test_bad_destinations(name, sentence, package, photos, tmp_path):
    (tmp_path / "taken.mlpackage").mkdir()
    path = package("healthy", True)
    with pytest.raises(BadInput, match=sentence):
        repair(path, headroom(path, photos), tmp_path / name, photos)


@pytest.mark.slow
def test_a_whole_deit_with_a_large_residual_stream(tmp_path):
    import coremltools as ct
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", num_classes=10).eval()
    with torch.no_grad():
        for part in (model.patch_embed.proj.weight, model.pos_embed, model.cls_token):
            part *= 300
        for block in model.blocks:
            block.attn.proj.weight *= 200
            block.mlp.fc2.weight *= 200
    path = tmp_path / "deit.mlpackage"
    ct.convert(
        torch.export.export(model, (torch.zeros(1, 3, 224, 224),)).run_decompositions({}),
        convert_to="mlprogram",
        inputs=[ct.TensorType(name="image", shape=(1, 3, 224, 224))],
        outputs=[ct.TensorType(name="logits", dtype=np.float32)],
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    ).save(str(path))
    photos = [{"image": i[None]} for i in sample(open_data("photos", "all"), InputSpec(), 4)]
    found = repair(path, headroom(path, photos), tmp_path / "new.mlpackage", photos)
    assert [change.rewrite for change in found.changes] == ["scaled norm"] * 25  # two a block, and the last
    assert not found.after.of(State.OVERFLOWS)
    before, after = rounded(path, photos)[1], rounded(found.path, photos)[1]
    assert before.error > 0.5, before.sentence
    assert after.same_class == after.images, after.sentence
    # 12 blocks of some 20 roundings, which add up at random: 16 of 2^-11
    assert after.error < 16 * 2.0**-11, after.sentence
