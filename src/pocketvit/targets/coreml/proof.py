"""Proving a package without a Mac: an fp32 twin must be the model, and the package must be its twin.

The twin is held against the model at its logits and, because a fault in one block of many moves the logits little, at
every value inside that has the same name in PyTorch's exported graph and in the ML program, about two thirds of them.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ...errors import CheckFailed
from ...models.graph import capture
from ...types import Artifact, Precision, Quantized
from .activations import unfit
from .compiler import unpacked_constants
from .convert import convert
from .interpreter import Interpreter
from .layers import count
from .likeness import Pair, likeness
from .ops import OPS
from .package import read_package
from .program import Op, Program, read_program
from .quantizing import bits, quantize
from .repair import TOLERANCE, difference, repaired_changes
from .values import Dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.export import ExportedProgram

SCALE_ERROR = 1e-4  # largest error of the twin, relative to the largest logit; healthy ones measure 0 to 5e-5
INSIDE_ERROR = 1e-4  # the same of a value inside, relative to its own largest; healthy ones measure 0 to 5e-5
_MOST_IMAGES = 8  # for the twin: its errors are of structure, which every image shows


def prove(artifact: Artifact, module: nn.Module, images: NDArray[np.float32], reference: NDArray[np.float32]) -> str:
    """Convert `module` once more in fp32 and hold both packages together; return what was proven, in a sentence.

    images: (N, C, H, W) in [0, 1] with the model's own logits, `reference`. Raises CheckFailed when the twin does not
    follow the model (the conversion is wrong) or the package is not the twin (the file is wrong).
    """
    program = capture(module, artifact.spec).run_decompositions({})
    package = read_package(artifact.path)
    shipped = read_program(package)
    types = [output.type for op in shipped.block.walk() for output in op.outputs if output.type is not None]
    if artifact.precision is Precision.FP32 and any(type_.dtype is Dtype.FP16 for type_ in types):
        raise CheckFailed("it says fp32 and holds fp16 values.")
    activations = artifact.precision is Precision.W8A8
    _check_count(artifact, count(shipped, {}, {}, activations=activations))
    changes = repaired_changes(package)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "twin.mlpackage"
        names = convert(program, dataclasses.replace(artifact, path=path), full=True)
        twin = Interpreter(path)
        shown = follows(twin, program, images[:_MOST_IMAGES], reference[:_MOST_IMAGES])
        if changes and activations:
            return f"{shown}; it was repaired, and its ranges cannot be found again, so operations were not compared"
        if changes:
            # its operations are not the twin's: those of the package that was repaired are, and the two must be equal
            before = dataclasses.replace(artifact, path=Path(directory) / "unrepaired.mlpackage")
            again = convert(program, before)
            if artifact.precision.is_quantized:
                quantize(before, again, None)
            shown_to = [{"image": image[None]} for image in images[:_MOST_IMAGES]]
            error = difference(Interpreter(before.path), Interpreter(package), shown_to)
            if not error <= TOLERANCE:
                raise CheckFailed(f"it was repaired, and is off by {error:.1e} of its logits' scale from what it was.")
            shipped = read_program(read_package(before.path))
            shown += f"; it is the converted file but for {len(changes)} rewrites, equal within {error:.0e}"
    found = likeness(shipped, twin.program, activations=activations)
    if found.differences:
        made, here = artifact.made_with.get("coremltools"), importlib.metadata.version("coremltools")
        if made != here:
            # another version may write another program for the same model
            return f"{shown}; the file was made with coremltools {made}, not {here}, so operations were not compared"
        raise CheckFailed(f"it is not its fp32 twin: {_first(found.differences)}.")
    if wrong := tuple(unfit(found.pairs, unpacked_constants(shipped), twin, images[:_MOST_IMAGES])):
        raise CheckFailed(f"its 8-bit activations do not fit its fp32 twin: {_first(wrong)}.")
    _check_names(artifact, shipped, {op: names[twins] for op, twins in found.twins.items() if twins in names})
    operations = sum(op.kind != "const" for op in shipped.block.ops)
    return f"{shown}, and the file is its twin: {operations} operations, {_held(shipped, found.pairs)}"


def _first(sentences: Sequence[str]) -> str:
    return f"{sentences[0]}{f' (and {len(sentences) - 1} more)' if len(sentences) > 1 else ''}"


def _check_count(artifact: Artifact, counted: Quantized) -> None:
    """CheckFailed unless a quantized file has as many quantized layers as it says."""
    said = artifact.quantized
    if said is not None and (said.layers, said.of) != (counted.layers, counted.of):
        raise CheckFailed(f"it says {said} layers are quantized, but {counted} are.")


def _check_names(artifact: Artifact, shipped: Program, names: Mapping[str, str]) -> None:
    """CheckFailed unless the layers that stayed float are those the file names, with all that it was asked to keep."""
    if artifact.quantized is None:
        return
    counted = count(shipped, names, {}, activations=artifact.precision is Precision.W8A8)
    said, kept = set(artifact.quantized.kept), set(counted.kept)
    if said != kept:
        raise CheckFailed(f"it says that {_listed(said)} stayed float, but {_listed(kept)} did.")
    if lost := artifact.quantization.keep.keys() - kept:
        raise CheckFailed(f"it should keep {_listed(lost)} float, and does not.")


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "no layer"


def _held(shipped: Program, pairs: Sequence[Pair]) -> str:
    """What was compared of weights and activations, in words."""
    stored = bits(shipped)
    forms = ", ".join(f"{n} in {width} bits" for width, n in sorted(stored.items()))
    weights = f"each weight within its format's rounding{f' ({forms})' if len(stored) > 1 else ''}"
    if not pairs:
        return weights
    return f"{weights}, the 8-bit ranges of {len(pairs)} layers' inputs fit what the twin computes there"


def follows(
    twin: Interpreter, program: ExportedProgram, images: NDArray[np.float32], reference: NDArray[np.float32]
) -> str:
    """Hold an fp32 package against the graph it was converted from; return what was found, CheckFailed if they differ.

    images: (N, C, H, W) with their logits, `reference`; values inside are compared on the first.
    """
    error = _scale_error(twin, images, reference)
    if not error <= SCALE_ERROR:
        raise CheckFailed(
            f"its fp32 twin is off by {error:.1e} of the logits' scale, more than {SCALE_ERROR:.0e}: "
            "the conversion changed the model."
        )
    inside = _errors_inside(twin, program, images[:1])
    for name, off in inside.items():
        if not off <= INSIDE_ERROR:
            raise CheckFailed(
                f"in its fp32 twin the value {name!r} is off by {off:.1e} of its scale, more than {INSIDE_ERROR:.0e}: "
                "the conversion changed the model."
            )
    return f"its fp32 twin follows the model to {error:.0e} of the logits' scale and at {len(inside)} values inside"


def _scale_error(twin: Interpreter, images: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Largest error of any logit, relative to the largest logit of all."""
    logits = np.concatenate([twin.predict({"image": image[None]})["logits"] for image in images])
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


def _errors_inside(twin: Interpreter, program: ExportedProgram, image: NDArray[np.float32]) -> dict[str, float]:
    """The largest error of the values that both sides have under one name and shape, relative to the largest.

    A value that differs and whose name coremltools may have made up itself is left out.
    """
    names = {output.name for op in twin.program.block.ops for output in op.outputs}
    values: dict[str, torch.Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        """Runs PyTorch's graph and keeps what the twin has too."""

        def run_node(self, node: torch.fx.Node) -> Any:
            result = super().run_node(node)
            first = result[0] if isinstance(result, tuple | list) and result else result
            if node.op == "call_function" and node.name in names and isinstance(first, torch.Tensor):
                values[node.name] = first
            return result

    with torch.inference_mode():
        # contiguous, as it was when the graph was captured: its views rely on that
        Recorder(program.module()).run(torch.from_numpy(np.ascontiguousarray(image)))
    errors: dict[str, float] = {}

    def compare(op: Op, arguments: Mapping[str, Any], results: tuple[Any, ...]) -> None:
        # where there are several results coremltools numbers their names: split_1 is a part of split, not split_1
        expected = values.pop(op.name, None) if len(results) == 1 else None
        if expected is None or expected.shape != results[0].shape or not expected.is_floating_point():
            return
        error = _relative(expected, results[0])
        # it also numbers what it makes itself (mul_5), and PyTorch may call another value so; that is no error
        numbered = re.fullmatch(r"(.+)_\d+", op.name)
        if error <= INSIDE_ERROR or numbered is None or numbered[1] not in OPS:
            errors[op.name] = error

    twin.run({"image": image}, compare)
    return errors


def _relative(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The largest difference over the largest finite value expected; infinite where they disagree about infinity."""
    finite = expected.isfinite()
    if not torch.equal(expected[~finite], found[~finite]):
        return math.inf
    if not finite.any():
        return 0.0
    scale, gap = (float(x[finite].abs().max()) for x in (expected, expected - found))
    return gap / scale if scale else gap
