"""Which calibrator suits a model: each makes a file, and images it was not calibrated on decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..artifacts import ProofImages, export
from ..errors import CheckFailed
from ..models import Model
from ..types import Calibrator, Precision, Progress, Quantization, silent

if TYPE_CHECKING:
    from ..targets import Target

HELD_IN = 0.25  # of the calibration images are kept from calibration, to judge it
LEAST_IMAGES = 16  # fewer cannot be divided into some that calibrate and some that judge


def measured_calibrators(
    model: Model,
    target: Target,
    images: ProofImages,
    wanted: Quantization,
    threads: int = 2,
    progress: Progress = silent,
) -> Mapping[Calibrator, float]:
    """Signal-to-noise ratio (dB) of the w8a8 file that each of the target's calibrators makes, best first.

    Three quarters of images.calibration calibrate, the rest judge. A calibrator whose file does not hold up counts as
    -inf. With one calibrator to choose from, or too few images, nothing is made and the result is empty.
    """
    count = len(images.calibration)
    if len(target.calibrators) < 2 or count < LEAST_IMAGES:
        return {}
    cut = count - max(2, round(HELD_IN * count))
    divided = ProofImages(
        calibration=images.calibration[:cut],
        verification=images.calibration[cut:],
        names=tuple(f"calibration image {i}" for i in range(cut, count)),
    )
    found: dict[Calibrator, float] = {}
    for done, calibrator in enumerate(target.calibrators):
        progress(f"calibrators of {target.name}", done, len(target.calibrators))
        with TemporaryDirectory() as directory:
            try:
                made = export(
                    model,
                    target.name,
                    Path(directory) / f"{calibrator}{target.suffix}",
                    Precision.W8A8,
                    images=divided,
                    threads=threads,
                    quantization=replace(wanted, calibrator=calibrator),
                )
                found[calibrator] = made.agreement.sqnr_db
            except CheckFailed:
                found[calibrator] = float("-inf")
    progress(f"calibrators of {target.name}", len(target.calibrators), len(target.calibrators))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
