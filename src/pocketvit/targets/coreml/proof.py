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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ...errors import CheckFailed
from ...models.graph import capture
from ...types import Artifact, Precision
from .convert import convert
from .interpreter import Interpreter
from .likeness import differences
from .ops import OPS
from .package import read_package
from .program import Op, read_program
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
    changes = repaired_changes(package)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "twin.mlpackage"
        convert(program, dataclasses.replace(artifact, path=path, precision=Precision.FP32, quantized=None))
        twin = Interpreter(path)
        shown = follows(twin, program, images[:_MOST_IMAGES], reference[:_MOST_IMAGES])
        if changes:
            # its operations are not the twin's: those of the package that was repaired are, and the two must be equal
            before = Path(directory) / "unrepaired.mlpackage"
            convert(program, dataclasses.replace(artifact, path=before))
            shown_to = [{"image": image[None]} for image in images[:_MOST_IMAGES]]
            error = difference(Interpreter(before), Interpreter(package), shown_to)
            if not error <= TOLERANCE:
                raise CheckFailed(f"it was repaired, and is off by {error:.1e} of its logits' scale from what it was.")
            shipped = read_program(read_package(before))
            shown += f"; it is the converted file but for {len(changes)} rewrites, equal within {error:.0e}"
    found = differences(shipped, twin.program)
    if not found:
        count = sum(op.kind != "const" for op in shipped.block.ops)
        return f"{shown}, and the file is its twin: {count} operations, each weight within its format's rounding"
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    made, here = artifact.made_with.get("coremltools"), importlib.metadata.version("coremltools")
    if made != here:
        # another version may write another program for the same model
        return f"{shown}; the file was made with coremltools {made}, not {here}, so operations were not compared"
    raise CheckFailed(f"it is not its fp32 twin: {found[0]}{others}.")


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
