from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: two threads, as on the smallest machine this suite must pass on; one for each of
# pytest-xdist's two workers.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT trained for a moment on digits: real weights, real labels."""
    from pocketvit.training import train_checkpoint

    out = tmp_path_factory.mktemp("trained") / "vit"
    settings = "epochs=8 batch_size=24 warmup_epochs=1 lr=0.02 repeated_aug=1 hflip=0 mixup=0 cutmix=0 val_every=8"
    quiet = "rand_augment=null random_erasing=0 crop_scale=[0.9,1.0] drop_path=0"
    small = "patch_size=8 embed_dim=96 depth=2 num_heads=6"
    found = train_checkpoint(
        "pocket_deit_patch4_32", "digits", out, settings=f"{settings} {quiet}".split(), model_args=small.split()
    )
    assert found["test_top1"] > 0.5, f"top-1 {found['test_top1']:.2f} after training; chance is 0.10"
    return out
