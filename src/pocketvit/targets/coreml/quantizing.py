"""Integers in a saved package: 8- and 4-bit weights by coremltools, 8-bit activations by pairs of operations."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import CheckFailed
from ...types import Artifact, Calibrator, Precision, Quantized, group_of
from .graph import Graph
from .layers import Layer, count, layers
from .package import read_package
from .program import Program, read_program
from .ranges import Affine, affine, observe

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST_GROUP = 8  # weights: with fewer the fp16 scales take as many bits as the weights save
_FEW = 8192  # weights of a layer, or a hundredth of the model's where that is less
_COARSE = 2.0**-8  # relative: a scale that fp16 rounds by more moves the largest 8-bit weight by half a step


@dataclass(frozen=True, slots=True)
class Form:
    """How coremltools shall store a weight. block: elements per scale along each axis, 0: all; None: per channel."""

    bits: int
    block: tuple[int, ...] | None = None


def quantize(draft: Artifact, names: Mapping[str, str], calibration: NDArray[np.float32] | None) -> Quantized:
    """Quantize the float package at draft.path in place; returns how many layers, and why the others stayed float.

    names: layer by operation, as `convert` gives them. Raises CheckFailed when a layer to keep is not in the package.
    """
    path, wanted = draft.path, draft.quantization
    found = layers(read_program(read_package(path)), names)
    if lost := wanted.keep.keys() - {layer.name for layer in found}:
        raise CheckFailed(
            f"coremltools folded {', '.join(sorted(lost))} into something else; it cannot be kept float."
        )
    kept = dict(wanted.keep)
    pairs: dict[str, Affine] = {}
    if draft.precision is Precision.W8A8:
        assert calibration is not None  # checked by Target.export
        readers = {layer.op.name: layer.data for layer in found if layer.name not in kept}
        seen = observe(path, readers, calibration, wanted.calibrator or Calibrator.MSE)
        for layer in found:
            if layer.op.name not in seen:
                continue
            low, high = seen[layer.op.name]
            levels = affine(low, high)
            if levels is None:
                kept[layer.name] = f"its input runs from {low:.3g} to {high:.3g}, for which fp16 has no scale"
            else:
                pairs[layer.op.name] = levels
    forms: dict[str, Form] = {}
    four = _worth_four_bits(found, draft.classes) if draft.precision is Precision.W4 else set()
    for layer in found:
        if layer.name in kept:
            continue
        form = stored(layer, wanted.group_size if layer.name in four else None)
        if isinstance(form, str):
            kept[layer.name] = form
        else:
            forms[layer.constant.name] = form
    pairs = {layer.op.name: pairs[layer.op.name] for layer in found if layer.name not in kept and pairs}
    if forms:
        _compress(path, forms)
    if pairs:
        insert_pairs(path, pairs, {layer.op.name: layer.data for layer in found})
    return count(read_program(read_package(path)), names, kept, activations=draft.precision is Precision.W8A8)


def _worth_four_bits(found: Sequence[Layer], classes: int) -> set[str]:
    """Layers that 4 bits make smaller by more than they cost.

    The first layer and the classifier lose most: 2.7 to 3.9 dB of the whole on a trained CNN. Layers of few weights,
    the depthwise ones among them, save next to nothing: those of a trained MobileViT 2% of the file, for 10 dB.
    """
    sizes = {layer.name: layer.weight.size for layer in found if layer.weight is not None}
    few = min(_FEW, sum(sizes.values()) // 100)
    return {
        layer.name
        for layer in found[1:]
        if layer.name in sizes and sizes[layer.name] >= few and _outputs(layer) != classes
    }


def stored(layer: Layer, group_size: int | None) -> Form | str:
    """How a layer's weight is stored, or why it stays float. group_size: of 4-bit weights, None for 8 bits."""
    weight = layer.weight
    if weight is None or weight.ndim < 2:
        return "its weight is no matrix of plain numbers"
    channels = np.abs(np.moveaxis(weight.astype(np.float64), layer.output_axis, 0)).reshape(
        weight.shape[layer.output_axis], -1
    )
    if not np.isfinite(channels).all():
        return "its weights are not all finite in fp16"
    block = None if group_size is None else _block(layer, weight.shape, group_size)
    largest = channels.max(1)
    scales = largest[largest > 0] / 127
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16).astype(np.float64)
    if scales.size and (np.abs(rounded - scales) / scales).max() > _COARSE:
        return (
            f"its weights reach only {largest[largest > 0].min():.1e} in a channel; fp16 is too coarse for their scale"
        )
    return Form(8) if block is None else Form(4, block)


def _outputs(layer: Layer) -> int:
    """Output channels of a float weight."""
    assert layer.weight is not None
    return int(layer.weight.shape[layer.output_axis])


def _block(layer: Layer, shape: tuple[int, ...], group_size: int) -> tuple[int, ...] | None:
    """The elements that share a scale in 4 bits: as many input channels as divide; None where they are too few."""
    if not layer.direct:
        return None
    out, inside = (axis % len(shape) for axis in (layer.output_axis, layer.input_axis))
    taps = int(np.prod(shape)) // (shape[out] * shape[inside])
    if len(shape) > 2 and layer.op.kind == "matmul":
        return None  # a batch of matrices, whose first axes are no window
    most = group_of(shape[inside], group_size) if taps == 1 else group_size  # a matrix is cut as everywhere
    fitting = [n for n in range(1, shape[inside] + 1) if shape[inside] % n == 0 and n * taps <= most]
    channels = max(fitting, default=1)
    if channels * taps < _LEAST_GROUP:
        return None
    return tuple({out: 1, inside: channels}.get(axis, 0) for axis in range(len(shape)))


def _compress(path: Path, forms: Mapping[str, Form]) -> None:
    """Let coremltools store constants, by name, in their forms."""
    import coremltools as ct
    import coremltools.optimize.coreml as optimize

    def config(form: Form) -> Any:
        if form.block is None:
            return optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
        return optimize.OpLinearQuantizerConfig(
            mode="linear", dtype="int4", granularity="per_block", block_size=form.block, weight_threshold=0
        )

    chosen = optimize.OptimizationConfig(op_name_configs={name: config(form) for name, form in forms.items()})
    model = optimize.linear_quantize_weights(ct.models.MLModel(str(path), skip_model_load=True), chosen)
    shutil.rmtree(path)
    model.save(str(path))


def insert_pairs(path: Path, forms: Mapping[str, Affine], parameters: Mapping[str, str]) -> None:
    """Make operations, by name, read their activation through 8 bits; readers of one value share a pair."""
    package = read_package(path)
    graph = Graph(package)
    made: dict[tuple[str, Affine], str] = {}
    for op in list(graph.operations):
        name = op.outputs[0].name if op.outputs else ""
        if name not in forms:
            continue
        value, form = graph.argument(op, parameters[name]), forms[name]
        if (value, form) not in made:
            made[value, form] = _pair(graph, op, value, form)
        graph.feed(op, parameters[name], made[value, form])
    package.model.write_bytes(graph.spec().SerializeToString())


def _pair(graph: Graph, near: Any, value: str, form: Affine) -> str:
    scale = graph.add_constant(near, f"{value}_scale", np.float32(form.scale), value)
    zero_point = graph.add_constant(near, f"{value}_zero_point", np.int8(form.zero_point))
    kind = graph.add_text(near, f"{value}_kind", "int8")
    arguments = {"input": value, "scale": scale, "zero_point": zero_point}
    levels = graph.add(near, "quantize", {**arguments, "output_dtype": kind}, f"{value}_levels", value, element="INT8")
    return graph.add(near, "dequantize", {**arguments, "input": levels}, f"{value}_through_int8", value)


def bits(program: Program) -> dict[int, int]:
    """How many layers have weights of how many bits."""
    types = {output.name: output.type for op in program.block.ops for output in op.outputs}
    found: Counter[int] = Counter()
    for layer in layers(program, {}):
        given = {**layer.constant.attributes, **{name: v[0] for name, v in layer.constant.inputs.items()}}
        data = given.get("data", given.get("quantized_data"))
        stored = types[data] if isinstance(data, str) else data.type if data is not None else None
        if stored is not None:
            found[stored.dtype.bits] += 1
    return dict(found)
