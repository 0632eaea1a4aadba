"""From a name to a model: timm names, packaged checkpoints, NAME@weights.safetensors, directories, hf:org/name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import torchvision_repair  # noqa: F401
from ..errors import BadInput
from ..hub import from_hub
from ..packaged import packaged
from ..registry import close_matches
from ..types import InputSpec
from .checkpoint import WEIGHTS, load_strictly, read_config, read_weights, weights_sha256
from .huggingface import create_huggingface
from .model import Model

_LOCAL = "local-dir:"


def create(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
    **model_args: Any,
) -> Model:
    """Create a classifier.

    name: a timm architecture (weights random unless `pretrained`), `architecture@weights.safetensors`, a checkpoint
    directory in timm's layout, the name of one that ships (`pocketvit models --ours`), or `hf:org/name` (also
    `hf:DIRECTORY`; needs the extra 'hf'). num_classes: where it is not what the weights have, the head is new and
    random, and the model untrained. labels name the classes. seed decides all that is random. model_args go to timm's
    constructor (img_size, patch_size, drop_path_rate...); img_size
    also sets the input size of a model that takes any.

    Raises BadInput for an unknown name (with close matches), weights that are missing, extra or misshapen, a pickle
    in place of safetensors, or a download without a network. Never falls back to random weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _create(name, pretrained, num_classes, model_args)
    if labels:
        if len(labels) != model.classes:
            raise BadInput(f"{len(labels)} labels were given for {name}, which has {model.classes} classes.")
        model = replace(model, spec=replace(model.spec, labels=tuple(labels)))
    return model


def _create(name: str, pretrained: bool, num_classes: int | None, model_args: dict[str, Any]) -> Model:
    if model_args.get("features_only"):
        raise BadInput(
            f"With features_only {name} has no classifier; build it with timm.create_model for its features."
        )
    if name.startswith("hf:"):
        if num_classes or model_args:
            raise BadInput(f"{name} comes with its own head and shape; num_classes and model arguments do not apply.")
        return create_huggingface(name)
    if Path(name).is_dir():
        return _from_directory(Path(name), num_classes, model_args)
    if name in packaged():
        return _from_directory(packaged()[name].path, num_classes, model_args)
    if "@" in name:
        architecture, _, weights = name.partition("@")
        return _from_weights_file(architecture, Path(weights), num_classes, model_args)
    if "/" in name or name.endswith((".safetensors", ".pth", ".pt", ".bin")):
        raise BadInput(
            f"There is no checkpoint directory {name}; a weights file is given as ARCHITECTURE@weights.safetensors."
        )
    return _from_timm(name, pretrained, num_classes, model_args)


def _from_timm(name: str, pretrained: bool, num_classes: int | None, model_args: dict[str, Any]) -> Model:
    import timm

    known(name)
    if pretrained and not timm.models.is_model_pretrained(name):
        raise BadInput(f"timm has no pretrained weights for {name}; train it, or choose another model.")
    if not pretrained:
        return _describe(name, _build(name, num_classes, model_args), trained=False)
    with from_hub(f"The pretrained weights of {name}"):
        module = _build(name, num_classes, model_args, pretrained=True)
    model = _describe(name, module, trained=True)
    return model if num_classes in (None, module.pretrained_cfg["num_classes"]) else _with_new_head(model)


def _from_weights_file(architecture: str, path: Path, num_classes: int | None, model_args: dict[str, Any]) -> Model:
    import timm

    known(architecture)
    weights = read_weights(path)
    if num_classes is None:
        described = timm.get_pretrained_cfg(architecture)
        num_classes = _head_size(described.to_dict(), weights) if described else None
    module = _build(architecture, num_classes, model_args)
    return _load(_describe(f"{architecture}@{path.name}", module, trained=True), weights, path, num_classes)


def _from_directory(directory: Path, num_classes: int | None, model_args: dict[str, Any]) -> Model:
    config = read_config(directory)
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        hint = f"; for a Hugging Face model use hf:{directory}" if "model_type" in config else ""
        raise BadInput(f"The config of {directory} names no timm architecture{hint}.")
    known(architecture)
    weights = read_weights(directory / WEIGHTS)
    module = _build(f"{_LOCAL}{directory}", num_classes, model_args)
    trained = config.get("trained") is not False  # timm's own say nothing
    model = _describe(directory.resolve().name, module, trained=trained)
    return _load(model, weights, directory / WEIGHTS, num_classes)


def _load(model: Model, weights: dict[str, Tensor], path: Path, num_classes: int | None) -> Model:
    """Put `weights` into the model, strictly; a head asked for with other classes than theirs stays new."""
    module: Any = model.module
    if num_classes is None or _head_size(module.pretrained_cfg, weights) in (None, num_classes):
        load_strictly(module, weights, str(path))
        return model
    head = _head(module)
    new = {name: tensor for name, tensor in module.state_dict().items() if name in head}
    load_strictly(module, {n: t for n, t in weights.items() if n not in head} | new, str(path))
    return _with_new_head(model)


def _with_new_head(model: Model) -> Model:
    """Such a model is a starting point, not a result."""
    body = weights_sha256(model.module, without=_head(model.module))
    return replace(model, trained=False, body=body, spec=replace(model.spec, labels=()))


def known(name: str) -> None:
    """Raise BadInput with the nearest names unless timm (with our own families in it) knows this architecture."""
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise BadInput(f"There is no model called {name!r}.{close_matches(name, timm.list_models())}")
    if "." in name and name not in timm.list_pretrained():
        tags = [tagged for tagged in timm.list_pretrained() if tagged.startswith(name.partition(".")[0] + ".")]
        raise BadInput(f"There are no weights called {name!r}.{close_matches(name, tags)}")


def _build(name: str, num_classes: int | None, model_args: dict[str, Any], pretrained: bool = False) -> Any:
    import timm

    def build(**arguments: Any) -> Any:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **arguments).eval()

    try:
        try:
            return build(**model_args)
        except TypeError as e:
            # a network of convolutions takes any size, so its constructor knows none: only the preprocessing does
            if "img_size" not in model_args or "unexpected keyword" not in str(e) or "'img_size'" not in str(e):
                raise
            others = {key: value for key, value in model_args.items() if key != "img_size"}
            return build(**others, pretrained_cfg_overlay={"input_size": _input_size(name, model_args["img_size"])})
    except (TypeError, ValueError, AssertionError, KeyError, IndexError, AttributeError) as e:
        arguments = ", ".join(f"{k}={v}" for k, v in model_args.items()) or "its stored arguments"
        raise BadInput(f"{name} cannot be built with {arguments}: {e or type(e).__name__}") from e


def _input_size(name: str, size: Any) -> tuple[int, int, int]:
    """Channels, height and width of a model that takes any image size, at this one."""
    import timm

    directory = name.removeprefix(_LOCAL)
    architecture = name if directory == name else str(read_config(Path(directory))["architecture"])
    described = timm.get_pretrained_cfg(architecture)
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise BadInput(f"img_size takes a positive integer or a height and a width, not {size}.")
    return (described.input_size[0] if described else 3, *sides)


def _classifiers(pretrained_cfg: dict[str, Any]) -> tuple[str, ...]:
    """Names of the layers that give the logits: one, or two in a distilled model."""
    named = pretrained_cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _head(module: Any) -> frozenset[str]:
    """Names of the tensors of the classifier."""
    layers = tuple(f"{layer}." for layer in _classifiers(module.pretrained_cfg))
    return frozenset(name for name in module.state_dict() if name.startswith(layers))


def _head_size(pretrained_cfg: dict[str, Any], weights: dict[str, Tensor]) -> int | None:
    """Read the number of classes off the classifier's weight, when the file has it."""
    found = [weights[f"{layer}.weight"] for layer in _classifiers(pretrained_cfg) if f"{layer}.weight" in weights]
    return int(found[0].shape[0]) if found and found[0].ndim else None


def _describe(name: str, module: Any, *, trained: bool) -> Model:
    from timm.data import resolve_input_data_config
    from timm.models import get_model_input_config

    data = resolve_input_data_config(module, {"input_size": get_model_input_config(module)["input_size"]})
    spec = InputSpec(
        size=tuple(data["input_size"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        crop_pct=data["crop_pct"],
        crop_mode=data["crop_mode"],
        labels=_labels(module),
    )
    return Model(name=name, module=module, spec=spec, trained=trained, classes=int(module.num_classes))


def _labels(module: Any) -> tuple[str, ...]:
    """Class names: the checkpoint's own, else ImageNet's where the head is one of ImageNet's, else none."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    names = module.pretrained_cfg.get("label_names")
    if names and len(names) == module.num_classes:
        return tuple(map(str, names))
    if module.num_classes != module.pretrained_cfg.get("num_classes") or names:
        return ()
    subset = infer_imagenet_subset(module)
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else ()
