"""Tiny models with the operators of real ones, real images, and artifacts to export them as."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketvit import torchvision_repair  # noqa: F401  (before timm)
from pocketvit.models import Deployable, create, deployable
from pocketvit.targets import TARGETS
from pocketvit.types import ASKED, Artifact, Golden, InputSpec, Precision, Quantization

SIZE = 32
CLASSES = 10


_NORMALISED = InputSpec(size=(3, SIZE, SIZE))  # ImageNet's mean and deviation, as below


class Deployed(nn.Module):
    """An image in [0, 1] to logits: normalisation, then the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network((pixels - self.mean) / self.std)


def _tiny(name: str, **arguments: object) -> nn.Module:
    """A timm model with weights and norm statistics as a trained one has: nothing zero, nothing exactly one."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=CLASSES, **arguments)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.75, 1.25)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.75, 1.25)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.05)
    for parameter in network.parameters():
        if parameter.ndim == 2 and parameter.shape[0] == CLASSES:
            nn.init.normal_(parameter, std=0.2)
    return Deployed(network).eval()


def _digits(count: int, size: int) -> np.ndarray:
    """Handwritten digits, enlarged: float32 (N, 3, size, size) in [0, 1]."""
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images[:count], dtype=torch.float32)[:, None] / 16
    enlarged = nn.functional.interpolate(images, size=(size, size), mode="bilinear")
    return enlarged.expand(-1, 3, -1, -1).contiguous().numpy()


def _logits_of(module: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


def _sqnr_db(reference: np.ndarray, candidate: np.ndarray) -> float:
    noise = float(np.square(reference.astype(np.float64) - candidate).sum())
    return float("inf") if noise == 0 else 10 * np.log10(float(np.square(reference.astype(np.float64)).sum()) / noise)


def _draft(path: Path, target: str, precision: Precision, size: int = SIZE) -> Artifact:
    """An artifact whose text holds everything that XML, JSON or protobuf could trip over."""
    rng = np.random.default_rng(0)
    return Artifact(
        path=path,
        target=target,
        precision=precision,
        model="tiny <vit> & \"quoted\" 'twice' \\ \n é 猫",
        trained=False,
        classes=CLASSES,
        spec=InputSpec(size=(3, size, size), labels=tuple(f"zïffer {i}" for i in range(CLASSES))),
        golden=Golden(
            images=("iVBORw0KGgo=",), sha256="0" * 64, logits=(tuple(map(float, rng.normal(size=CLASSES))),)
        ),
        weights_sha256="f" * 64,
        made_with={"pocketvit": "0.1.0"},
    )


@pytest.fixture(scope="session")
def tiny() -> Callable[..., nn.Module]:
    return _tiny


@pytest.fixture(scope="session")
def digits() -> Callable[[int, int], np.ndarray]:
    return _digits


@pytest.fixture(scope="session")
def draft() -> Callable[..., Artifact]:
    return _draft


@pytest.fixture(scope="session")
def logits_of() -> Callable[[nn.Module, np.ndarray], np.ndarray]:
    return _logits_of


@pytest.fixture(scope="session")
def sqnr_db() -> Callable[[np.ndarray, np.ndarray], float]:
    return _sqnr_db


@pytest.fixture(scope="session")
def vit() -> nn.Module:
    return _tiny(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=8, depth=1, embed_dim=64, num_heads=2, class_token=True
    )


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return _digits(24, SIZE)


@pytest.fixture(scope="session")
def exported(
    vit: nn.Module, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Precision], Artifact]:
    """Exports the tiny ViT once per target and precision and moves it, as a caller does, to its final name."""
    made: dict[tuple[str, Precision], Artifact] = {}

    def export(name: str, precision: Precision) -> Artifact:
        if (name, precision) not in made:
            target = TARGETS.get(name)
            directory = tmp_path_factory.mktemp(f"{name}_{precision}")
            (directory / "partial").mkdir()
            wanted = _draft(directory / "partial" / f"model{target.suffix}", name, precision)
            module = Deployable(vit.network, _NORMALISED) if precision is Precision.INTEGER else vit
            artifact = target.export(module, wanted, images[8:])
            for part in target.files(artifact.path):
                part.rename(directory / part.name)
            (directory / "partial").rmdir()  # fails if export left anything else behind
            made[name, precision] = replace(artifact, path=directory / artifact.path.name)
        return made[name, precision]

    return export


_WITH_NAMES: dict[str, dict[str, object]] = {  # small ones of timm's
    "levit_128s": {"img_size": 32, "embed_dim": (32, 48), "key_dim": 8, "num_heads": (2, 2), "depth": (1, 1)},
    "swin_tiny_patch4_window7_224": {
        "img_size": 16,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 32,
        "depths": (1, 1),
        "num_heads": (2, 2),
    },
}


@pytest.fixture(params=[*_WITH_NAMES, "pocket_deit_distilled_patch4_32", "pocket_mobilevit_32", "pocket_moat_48"])
def named(request):
    """A module whose layers every target must find by name, and the side of its images."""
    name = request.param
    if name in _WITH_NAMES:
        return _tiny(name, **_WITH_NAMES[name]), _WITH_NAMES[name]["img_size"]
    model = create(name)
    return deployable(model), model.spec.size[1]


@pytest.fixture(scope="session")
def export_vit(vit, images, tmp_path_factory, draft):
    """Exports the tiny ViT to a target, once for each precision and way of quantizing it."""

    @functools.cache
    def export(target, precision, shown=True, keep=(), **wanted):
        path = tmp_path_factory.mktemp(target) / f"m{TARGETS.get(target).suffix}"
        quantization = Quantization(keep=dict.fromkeys(keep, ASKED), **wanted)
        asked = replace(draft(path, target, precision), quantization=quantization)
        return TARGETS.get(target).export(vit, asked, images[8:] if shown else None)

    return export
