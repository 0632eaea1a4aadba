"""I-ViT (arXiv 2207.01405): a DeiT or Swin in integers only, and its training with straight-through gradients.

`prepare` gives the form to train, `finish` the ordinary float model with the trained weights, and `integer` the
integers of a float model, trained so or not. Not a pass of the registry: what it returns is no float model.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ... import torchvision_repair  # noqa: F401 - before timm

# isort: split
from timm.models import SwinTransformer, VisionTransformer, VisionTransformerDistilled

from ...errors import BadInput
from ...models import Model
from ...models.model import Deployable
from .conversion import IntegerModel, observe, record, walker
from .recording import Quantity
from .supported import check_model, check_trainable
from .training import Ranges, Training

__all__ = ["IntegerModel", "finish", "integer", "prepare"]


class _Trained(nn.Module):
    """Takes the place of a timm model's forward; everything else of the model stays."""

    integers: Ranges
    training: bool

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits of normalised images (N, C, H, W), or a pair of them where the model trains two heads."""
        ranges = self.integers
        with torch.autocast(x.device.type, enabled=False):  # bf16 does not hold the integers
            form = Training(ranges, update=self.training)
            bytes_ = ((x.detach().float() * ranges.std + ranges.mean) * 255).round().clamp(0, 255)
            pixels = Quantity(ints=bytes_ - 128, scale=1 / 255)
            found: Any = walker(self)(form, self, pixels, ranges.mean, ranges.std)
            form.finish()
            if isinstance(found, tuple):
                return tuple(logits.ints * logits.scale for logits in found)
            return found.ints * found.scale


class TrainedVit(_Trained, VisionTransformer):  # type: ignore[misc]
    """A VisionTransformer whose forward is the integer form's."""


class TrainedDeit(_Trained, VisionTransformerDistilled):  # type: ignore[misc]
    """A VisionTransformerDistilled whose forward is the integer form's."""


class TrainedSwin(_Trained, SwinTransformer):  # type: ignore[misc]
    """A SwinTransformer whose forward is the integer form's."""


_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    VisionTransformer: TrainedVit,
    VisionTransformerDistilled: TrainedDeit,
    SwinTransformer: TrainedSwin,
}


def prepare(model: Model, images: NDArray[np.float32]) -> Model:
    """A copy of `model` that computes in integers and can be trained: the same parameters, under the same names.

    images: (N, C, H, W) in [0, 1], which set the first ranges; they follow the training from there, as running peaks.
    Raises BadInput, naming the module, for what has no integer form, CheckFailed where int32 does not suffice.
    """
    check_model(model.module, model.name)
    check_trainable(model.module, model.name)
    _check_images(images, model.spec.size, model.name)
    module = copy.deepcopy(model.module)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (model.spec.mean, model.spec.std))
    peaks = observe(_still(module), mean, std, images)
    record(_still(module), mean, std, model.spec.size, peaks)
    module.integers = Ranges(peaks, mean, std)
    module.__class__ = _FORMS[type(module)]
    return replace(model, module=module.train(model.module.training), name=f"{model.name}+integer")


def finish(model: Model) -> Model:
    """The float model with the weights of a trained integer form: an ordinary timm model again."""
    kinds = {form: plain for plain, form in _FORMS.items()}
    if type(model.module) not in kinds:
        raise BadInput(f"{model.name} is not an integer form in training; give finish what prepare returned, trained.")
    module = copy.deepcopy(model.module)
    del module.integers
    module.__class__ = kinds[type(module)]
    return replace(model, module=module, name=model.name.removesuffix("+integer"))


def integer(module: nn.Module, images: NDArray[np.float32]) -> IntegerModel:
    """The integer form of a float model as deployed (`models.deployable`).

    images: (N, C, H, W) in [0, 1], which set its ranges. Raises BadInput, naming the module, for what has no integer
    form; CheckFailed, naming the layer, where int32 cannot be proven to hold a sum, and where the form would not
    compute the model's own function.
    """
    if not isinstance(module, Deployable):
        raise BadInput(f"{type(module).__name__} does not hold a model and its normalisation; use models.deployable.")
    model = module.module
    check_model(model, type(model).__name__)
    size = tuple(images.shape[1:])
    _check_images(images, size, type(model).__name__)
    peaks = observe(_still(model), module.mean, module.std, images)
    return record(_still(model), module.mean, module.std, size, peaks)


def _still(module: nn.Module) -> nn.Module:
    """A copy that neither drops paths nor trains two heads."""
    return copy.deepcopy(module).float().eval()


def _check_images(images: NDArray[np.float32], size: tuple[int, ...], name: str) -> None:
    if images.ndim != 4 or len(images) == 0 or tuple(images.shape[1:]) != tuple(size):
        raise BadInput(f"{name} needs images of {size} to set its ranges, not {images.shape}.")
    if not (images.min() >= 0 and images.max() <= 1) or images.min() == images.max():
        raise BadInput(f"{name} needs real images with values in [0, 1] to set its ranges.")
