"""What ONNX files hold after quantization: which layers, how, and why the others stayed float."""

from __future__ import annotations

import copy
import functools

import numpy as np
import onnx
import pytest
import torch

from pocketvit.errors import CheckFailed
from pocketvit.models.graph import capture, layers
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.targets._gptq import four_bits
from pocketvit.targets._onnx_graph import convert, fold_transposed_weights, layer_nodes
from pocketvit.targets._onnx_quantize import _prepared
from pocketvit.targets._ranges import Histogram
from pocketvit.types import ASKED, Calibrator, InputSpec, Precision

QUANTIZED = [
    precision
    for precision in TARGETS.get("onnx").precisions
    if precision.is_quantized and precision is not Precision.INTEGER  # all or nothing: test_onnx_integer.py
]


@pytest.fixture(scope="session")
def export(export_vit):
    """Exports the tiny ViT, once for each precision and way of quantizing it."""
    return functools.partial(export_vit, "onnx")


def _run(artifact, images):
    return TARGETS.get("onnx").load(read_artifact(artifact.path), 1)(images)


@pytest.mark.slow
def test_every_layer_is_found_by_its_name_also_after_onnx_runtime_rewrote_the_graph(named, tmp_path, draft):
    module, side = named
    wanted = draft(tmp_path / "m.onnx", "onnx", Precision.FP32, side)
    expected = sorted(layer.name for layer in layers(capture(module, wanted.spec)))
    graph = convert(module, wanted)
    assert sorted(layer_nodes(graph)) == expected
    assert all(len(nodes) == 1 for nodes in layer_nodes(graph).values())
    assert sorted(layer_nodes(_prepared(graph, tmp_path))) == expected


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_layer_to_keep_is_float_in_the_file_and_said_to_be(precision, export):
    name = "network.blocks.0.mlp.fc1"
    artifact = export(precision, keep=(name,))
    found = artifact.quantized
    assert found.kept[name] == ASKED
    assert found.of - found.layers == len(found.kept)
    graph = onnx.load(artifact.path)
    (node,) = layer_nodes(graph)[name]
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    assert types[node.input[1]] == onnx.TensorProto.FLOAT
    assert read_artifact(artifact.path).quantized == found


@pytest.mark.parametrize("precision", QUANTIZED)
def test_keeping_every_layer_leaves_nothing_to_quantize(precision, vit, export):
    names = tuple(layer.name for layer in layers(capture(vit, InputSpec(size=(3, 32, 32)))))
    with pytest.raises(
        CheckFailed, match=r"quantized 0/6 layers|no product with a constant matrix of at least 32 rows"
    ):
        export(precision, keep=names)


def test_dynamic_int8_says_why_convolutions_stay_float(export):
    found = export(Precision.W8A8_DYNAMIC).quantized
    assert set(found.kept) == {"network.patch_embed.proj"}
    assert "ConvInteger" in found.kept["network.patch_embed.proj"]


def test_8_bit_weights_compute_what_the_rounded_weights_compute_in_float(export, vit, images, logits_of):
    rounded = copy.deepcopy(vit)
    for layer in layers(capture(vit, read_artifact(export(Precision.W8).path).spec)):
        weight = rounded.get_parameter(layer.weight)
        scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / 127
        weight.data = torch.round(weight / scale) * scale
    difference = np.abs(_run(export(Precision.W8), images[:4]) - logits_of(rounded, images[:4])).max()
    unrounded = np.abs(_run(export(Precision.W8), images[:4]) - logits_of(vit, images[:4])).max()
    assert difference < 1e-4, f"differs by {difference}"  # float32 rounding over a few hundred sums
    assert unrounded > 10 * difference, "rounding changed nothing: the file holds float weights"


def test_images_make_4_bit_weights_better(export, vit, images, sqnr_db, logits_of):
    reference = logits_of(vit, images[:8])
    blind = sqnr_db(reference, _run(export(Precision.W4, False), images[:8]))
    shown = sqnr_db(reference, _run(export(Precision.W4), images[:8]))
    assert shown > blind + 3, f"{blind:.1f} dB without images, {shown:.1f} with"


@pytest.mark.parametrize("group_size", [16, 64])
def test_groups_are_as_large_as_asked_and_layers_too_small_for_one_have_8_bits(group_size, export):
    graph = onnx.load(export(Precision.W4, group_size=group_size).path)
    products = [node for node in graph.graph.node if node.op_type == "MatMulNBits"]
    sizes = {a.i for node in products for a in node.attribute if a.name == "block_size"}
    assert sizes == {group_size}
    assert len(products) == 5  # qkv, projection, two of the MLP, head: all have at least 64 inputs
    assert len([n for n in graph.graph.node if n.op_type == "DequantizeLinear"]) == 1  # the patch convolution
    larger = onnx.load(export(Precision.W4, group_size=128).path)
    fewer = [node.name for node in larger.graph.node if node.op_type == "MatMulNBits"]
    assert fewer == ["network.blocks.0.mlp.fc2/MatMulNBits"]  # the only one with 128 inputs or more


def test_static_int8_leaves_the_sums_after_a_linear_layer_in_float(export):
    graph = onnx.load(export(Precision.W8A8).path).graph
    linear = {name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.output}
    rounded = [node.name for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in linear]
    assert linear
    assert rounded == []


def test_each_calibrator_finds_other_ranges_and_a_good_file(export, vit, images, sqnr_db, logits_of):
    reference, found = logits_of(vit, images[:8]), {}
    for calibrator in TARGETS.get("onnx").calibrators:
        logits = _run(export(Precision.W8A8, calibrator=calibrator), images[:8])
        found[calibrator] = logits
        assert sqnr_db(reference, logits) > 20, f"{calibrator}: {sqnr_db(reference, logits):.1f} dB"
    distinct = {logits.tobytes() for name, logits in found.items() if name is not Calibrator.ENTROPY}
    assert len(distinct) == len(found) - 1  # where nothing is worth clipping, entropy takes everything seen
    default = _run(export(Precision.W8A8), images[:8])
    assert np.array_equal(default, found[TARGETS.get("onnx").calibrators[0]])


def test_ranges_of_a_bell_with_one_far_outlier():
    values = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    values[0] = 40
    seen = Histogram()
    seen.widen(values)
    seen.fill(values)
    for calibrator, lowest, highest in (
        (Calibrator.MINMAX, 40, 40),
        (Calibrator.PERCENTILE, 3.5, 4.2),  # one in 1e4 is above 3.72
        (Calibrator.ENTROPY, 20, 39),  # a half is the most it may cut off
        (Calibrator.MSE, 8, 20),  # 1e6 ((4.8 + b) / 255)^2 / 12 + (40 - b)^2 is least near 13, and flat there
    ):
        high = seen.range(calibrator)[1]
        assert lowest <= high <= highest, f"{calibrator} chose {high}"
    still = Histogram()
    still.widen(np.zeros(4, np.float32))
    assert still.range(Calibrator.MSE) == (0, 0)


def test_4_bit_rounding_is_exact_where_it_can_be_and_gptq_lowers_the_error_of_the_product():
    rng = np.random.default_rng(0)
    exact = rng.integers(0, 16, (8, 64)).astype(np.float32) * 0.25 - 2
    exact[:, ::32], exact[:, 1::32] = -2, 1.75  # every group shows both ends
    held = four_bits(exact, 32)
    back = (held.levels.astype(float) - held.zeros[..., None]) * held.scales[..., None]
    assert np.abs(back.reshape(8, 64) - exact).max() < 1e-6
    weight = rng.normal(size=(32, 72)).astype(np.float32)  # 72: the last group is filled up
    inputs = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 72)) + 0.1 * rng.normal(size=(500, 72))
    errors = []
    for moments in (None, inputs.T @ inputs):
        held = four_bits(weight, 32, moments)
        back = (held.levels.astype(float) - held.zeros[..., None]) * held.scales[..., None]
        errors.append(np.square(inputs @ (back.reshape(32, -1)[:, :72] - weight).T).mean())
    assert errors[1] < 0.5 * errors[0], errors


def test_large_transposed_weights_are_stored_as_their_layer_reads_them():
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    make = onnx.helper
    graph = make.make_graph(
        [
            make.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            make.make_node("MatMul", ["x", "t"], ["y"], "a/MatMul"),
        ],
        "g",
        [make.make_tensor_value_info("x", 1, [1, 3])],
        [make.make_tensor_value_info("y", 1, [1, 2])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = make.make_model(graph)
    fold_transposed_weights(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    (stored,) = model.graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(stored), weight.T)
    assert stored.name == "t"
