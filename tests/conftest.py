from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: two threads, as on the smallest machine this suite must pass on.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# On a machine that does other work too, threads that spin while they wait make training ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pocketvit import torchvision_repair  # noqa: F401 - so that tests may import timm in any order


@pytest.fixture(scope="session")
def metadata():
    """An artifact with every field filled."""
    from pocketvit.types import Artifact, Golden, InputSpec, Precision, Quantized

    return Artifact(
        path=Path("model.onnx"),
        target="onnx",
        precision=Precision.W8A8,
        model="vit",
        trained=False,
        classes=2,
        spec=InputSpec(size=(3, 8, 8), labels=("cat", "dog")),
        golden=Golden(images=("aGk=",), sha256="00", logits=((0.1, 1 / 3),)),
        weights_sha256="ab",
        quantized=Quantized(layers=3, of=4),
        made_with={"torch": "2"},
    )
