"""What OpenVINO files hold after quantization: which layers, how, and why the others stayed float."""

from __future__ import annotations

import functools

import numpy as np
import openvino
import pytest

from pocketvit.models.graph import capture, layers
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.targets._openvino_quantize import _stored_type, convert, layer_operations
from pocketvit.types import ASKED, Precision

QUANTIZED = [precision for precision in TARGETS.get("openvino").precisions if precision.is_quantized]


@pytest.fixture(scope="session")
def export(export_vit):
    """Exports the tiny ViT, once for each precision and way of quantizing it."""
    return functools.partial(export_vit, "openvino")


def _run(artifact, images):
    return TARGETS.get("openvino").load(read_artifact(artifact.path), 1)(images)


@pytest.mark.slow
def test_every_layer_is_found_by_its_name_also_where_a_batch_norm_was_folded_in(named, tmp_path, draft):
    module, side = named
    program = capture(module, draft(tmp_path / "m.xml", "openvino", Precision.FP32, side).spec)
    found = layer_operations(convert(program))
    assert sorted(found) == sorted(layer.name for layer in layers(program))
    assert all(len(operations) == 1 for operations in found.values())


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_layer_to_keep_is_float_in_the_file_and_said_to_be(precision, export):
    name = "network.blocks.0.mlp.fc1"
    artifact = export(precision, keep=(name,))
    assert artifact.quantized.kept == {name: ASKED}
    assert (artifact.quantized.layers, artifact.quantized.of) == (5, 6)
    stored = {
        layer: [_stored_type(operation) for operation in operations]
        for layer, operations in layer_operations(openvino.Core().read_model(artifact.path)).items()
    }
    assert stored.pop(name) == ["f32"]
    integers = {"i8", "u8", "u4"} if precision is Precision.W4 else {"i8", "u8"}
    assert all(set(types) <= integers for types in stored.values()), stored
    assert read_artifact(artifact.path).quantized == artifact.quantized


def test_dynamic_ranges_are_really_taken_at_run_time(export, vit, images, sqnr_db, logits_of):
    """The two files hold the same weights, so whatever differs comes from the arithmetic."""
    reference = logits_of(vit, images[:8])
    weights = _run(export(Precision.W8), images[:8])
    dynamic = _run(export(Precision.W8A8_DYNAMIC), images[:8])
    between = sqnr_db(weights, dynamic)
    assert 20 < between < 60, f"{between:.1f} dB: 8-bit activations leave about 40"
    assert sqnr_db(reference, weights) > sqnr_db(reference, dynamic)


def test_images_make_4_bit_weights_better(export, vit, images, sqnr_db, logits_of):
    reference = logits_of(vit, images[:8])
    blind = sqnr_db(reference, _run(export(Precision.W4, False), images[:8]))
    shown = sqnr_db(reference, _run(export(Precision.W4), images[:8]))
    assert shown > blind + 3, f"{blind:.1f} dB without images, {shown:.1f} with"


def test_products_have_4_bits_and_the_convolution_8(export):
    model = openvino.Core().read_model(export(Precision.W4).path)
    stored = {name: _stored_type(found[0]) for name, found in layer_operations(model).items()}
    assert stored.pop("network.patch_embed.proj") in ("i8", "u8")
    assert set(stored.values()) == {"u4"}, stored


@pytest.mark.slow
def test_each_calibrator_finds_other_ranges_and_a_good_file(export, vit, images, sqnr_db, logits_of):
    reference, found = logits_of(vit, images[:8]), {}
    for calibrator in TARGETS.get("openvino").calibrators:
        found[calibrator] = _run(export(Precision.W8A8, calibrator=calibrator), images[:8])
        measured = sqnr_db(reference, found[calibrator])
        assert measured > 20, f"{calibrator}: {measured:.1f} dB"
    assert len({logits.tobytes() for logits in found.values()}) == len(found)
    default = _run(export(Precision.W8A8), images[:8])
    assert np.array_equal(default, found[TARGETS.get("openvino").calibrators[0]])
