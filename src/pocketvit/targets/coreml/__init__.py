"""Core ML packages (.mlpackage, ML programs for iOS 16 and macOS 13 on); metadata in user_defined_metadata.

On a Mac they run with Core ML. Elsewhere the file itself is interpreted: its own operations, on its own weights, with
what it stores as fp16 rounded to fp16. Such numbers are called `interpreted`, and there are no times.
"""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import CheckFailed
from ...types import METADATA_KEY, Artifact, InputSpec, Precision, Runner
from .. import TARGETS, Target
from .._reading import NotOurs, check_metadata_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


def write(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> Artifact:
    """Convert the torch.export program to an ML program, quantize weights where asked, save and seal the package."""
    from ...models.graph import capture
    from .convert import convert, describe, layers
    from .package import read_package
    from .program import read_program
    from .seal import seal

    convert(capture(module, draft.spec).run_decompositions({}), draft)
    package = read_package(draft.path)
    program = read_program(package)
    artifact = dataclasses.replace(draft, quantized=layers(program)) if draft.precision.is_quantized else draft
    describe(package, artifact)
    seal(package, program)
    return artifact


def open_runner(artifact: Artifact, threads: int) -> Runner:
    """Run with Core ML on macOS (never tried: this was developed on Linux), with our interpreter elsewhere."""
    from .runner import InterpretedRunner, core_ml_runner

    return core_ml_runner(artifact, threads) if platform.system() == "Darwin" else InterpretedRunner(artifact, threads)


def foreign(path: Path, threads: int, spec: InputSpec | None) -> Runner:
    """Interpret a package that pocketvit did not write; see ForeignRunner."""
    from .runner import ForeignRunner

    return ForeignRunner(path, threads, spec)


def embedded(path: Path) -> str:
    """Return the JSON from user_defined_metadata; the weights are not read."""
    from .package import read_package

    text = read_package(path).spec.description.metadata.userDefined.get(METADATA_KEY)
    if text is None:
        raise NotOurs(path)
    check_metadata_size(path, len(text))
    return text


def prove(artifact: Artifact, module: nn.Module, images: NDArray[np.float32], reference: NDArray[np.float32]) -> str:
    """Hold the package against an fp32 twin of `module` and the twin against the model; see proof.py."""
    from .convert import layers
    from .package import read_package
    from .program import read_program
    from .proof import prove as prove_twin

    if artifact.quantized is not None:
        counted = layers(read_program(read_package(artifact.path)))
        if artifact.quantized != counted:
            raise CheckFailed(f"it says {artifact.quantized} layers are quantized, but {counted} are.")
    return prove_twin(artifact, module, images, reference)


TARGETS.add(
    "coreml",
    Target(
        name="coreml",
        suffix=".mlpackage",
        precisions={
            Precision.FP32: "coremltools ML program, compute precision FLOAT32",
            Precision.FP16: "coremltools ML program, compute precision FLOAT16",
            Precision.W8: "coremltools linear_quantize_weights, symmetric per channel, on the FLOAT16 program",
        },
        packages=("coremltools",),
        extra="coreml",
        interpreted=platform.system() != "Darwin",
        write=write,
        open=open_runner,
        embedded=embedded,
        foreign=foreign,
        prove=prove,
    ),
)
