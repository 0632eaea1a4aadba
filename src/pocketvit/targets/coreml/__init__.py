"""Core ML packages (.mlpackage, ML programs); metadata in user_defined_metadata.

They run from iOS 16 and macOS 13 on, those with 8-bit activations from iOS 17 and macOS 14, those with 4-bit weights
from iOS 18 and macOS 15.

On a Mac they run with Core ML. Elsewhere the file itself is interpreted: its own operations, on its own weights, with
what it stores as fp16 rounded to fp16. Such numbers are called `interpreted`, and there are no times.
"""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from ...types import METADATA_KEY, Artifact, Calibrator, InputSpec, Precision, Runner
from .. import TARGETS, Target
from .._reading import NotOurs, check_metadata_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


def write(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> Artifact:
    """Convert the torch.export program to an ML program, quantize it where asked, save and seal the package."""
    from ...models.graph import capture
    from .convert import convert, describe
    from .package import read_package
    from .program import read_program
    from .quantizing import quantize
    from .seal import seal

    artifact, names = draft, convert(capture(module, draft.spec).run_decompositions({}), draft)
    if draft.precision.is_quantized:
        artifact = dataclasses.replace(draft, quantized=quantize(draft, names, calibration))
    package = read_package(draft.path)
    describe(package, artifact)
    seal(package, read_program(package))
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
    from .proof import prove as prove_twin

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
            Precision.W8A8: "as w8, and 8-bit inputs of the layers by quantize and dequantize operations, per tensor, "
            "calibrated through our interpreter; from iOS 17 and macOS 14 on",
            Precision.W4: "coremltools linear_quantize_weights, 4 bits with a scale and an offset per group (palettes "
            "of the same size keep less: docs/coreml.md), 8 bits in the first layer, the classifier, layers of few "
            "weights and where a group would have fewer than 8; from iOS 18 and macOS 15 on",
        },
        packages=("coremltools",),
        extra="coreml",
        # of three trained models MSE is best on two and 0.9 dB below percentiles on one (docs/quantization.md)
        calibrators=(Calibrator.MSE, Calibrator.MINMAX, Calibrator.PERCENTILE, Calibrator.ENTROPY),
        interpreted=platform.system() != "Darwin",
        write=write,
        open=open_runner,
        embedded=embedded,
        foreign=foreign,
        prove=prove,
    ),
)
