"""Checkpoints in timm's Hub layout, config.json + model.safetensors; weights are read strictly and never unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import torchvision_repair  # noqa: F401
from ..errors import BadInput
from ..files import replace_directory
from ..layers.folding import Foldable

if TYPE_CHECKING:
    from .model import Model

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_PICKLE_NAMES = ("pytorch_model.bin", "model.pth", "model.pt", "checkpoint.pth.tar")
_CONFIG_MAX_BYTES = 8 << 20


def weights_sha256(module: nn.Module, without: Collection[str] = ()) -> str:
    """SHA-256 over every parameter and buffer not in `without`: names, types, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted((n, t) for n, t in module.state_dict().items() if n not in without):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture(module: nn.Module) -> str | None:
    """The timm architecture a module is built as, None for any other module."""
    described: dict[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    return described.get("architecture")


def check_destination(directory: Path) -> None:
    """Raise BadInput unless `directory` is absent, empty or a checkpoint with nothing of anybody else's in it."""
    import timm

    if not directory.exists():
        return
    if directory.is_dir():
        files = {path.name for path in directory.iterdir()}
        if not files or (
            files == {CONFIG, WEIGHTS} and timm.is_model(str(read_config(directory).get("architecture")))
        ):
            return
    raise BadInput(f"{directory} holds something that is not a checkpoint; choose another directory.")


def save(model: Model, directory: Path | str) -> None:
    """Write a timm-architecture model as a checkpoint directory, all of it or nothing.

    timm loads it as `local-dir:DIRECTORY`. Raises BadInput when the model is not of a timm architecture (a Hugging
    Face model) or the directory holds something else.
    """
    from timm.models import save_for_hf

    if architecture(model.module) is None:
        raise BadInput(f"{model.name} is not a timm architecture, so it cannot be saved as a timm checkpoint.")
    if any(isinstance(part, Foldable) and part.is_folded for part in model.module.modules()):
        raise BadInput(f"{model.name} is folded for deployment and can no longer be loaded; save it before.")
    directory = Path(directory).resolve()
    check_destination(directory)
    spec = model.spec
    data_config = {
        "input_size": spec.size,
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "crop_mode": spec.crop_mode,
    }
    with replace_directory(directory) as partial:
        save_for_hf(
            model.module,
            str(partial),
            model_config={"trained": model.trained} | ({"label_names": list(spec.labels)} if spec.labels else {}),
            safe_serialization=True,
            data_config=data_config,
        )


def read_config(directory: Path) -> dict[str, Any]:
    """Read a checkpoint's config.json; raises BadInput when it is missing, too large or not a checkpoint's."""
    path = directory / CONFIG
    if not path.is_file():
        raise BadInput(f"{directory} is not a checkpoint: it has no {CONFIG}.")
    if path.stat().st_size > _CONFIG_MAX_BYTES:
        raise BadInput(f"{path} is larger than {_CONFIG_MAX_BYTES >> 20} MB, which no checkpoint's config is.")
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{path} is not valid JSON ({e}).") from e
    if not isinstance(config, dict):
        raise BadInput(f"{path} does not hold a JSON object.")
    return config


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file into CPU tensors; a pickle or a damaged file is refused, never loaded."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.is_dir() or not path.exists():
        pickles = [name for name in _PICKLE_NAMES if (path.parent / name).exists()]
        if pickles:
            raise BadInput(
                f"{path.parent} has its weights in {pickles[0]}, a pickle, which can run code when loaded; "
                f"save them as {WEIGHTS} with safetensors."
            )
        raise BadInput(f"There is no weights file {path}.")
    with path.open("rb") as file:
        head = file.read(9)
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise BadInput(f"{path} is a pickle, which can run code when loaded; save the weights with safetensors.")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as e:
        raise BadInput(f"{path} is not a readable safetensors file ({e}).") from e


def load_strictly(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load `weights` into `module`; missing, extra or misshapen tensors raise BadInput naming the first of them."""
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    extra = sorted(weights.keys() - wanted.keys())
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if wanted[name].shape != weights[name].shape
    ]
    for kind, names in (("lacks", missing), ("has unknown", extra), ("does not fit:", shapes)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInput(f"{where} {kind} {names[0]}{more}; it belongs to another model or is incomplete.")
    module.load_state_dict(weights)
