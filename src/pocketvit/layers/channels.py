"""Channel counts that fill the rows of memory an accelerator works in."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

from ..errors import BadInput

# They take each value by itself (a dropout may take whole channels), so that more channels change nothing.
_POINTWISE = (
    nn.CELU, nn.Dropout, nn.Dropout2d, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity,
    nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
)  # fmt: skip
# The norm whose channels lie along the same axis.
_NORM: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}


def aligned(channels: int, multiple: int = 32) -> int:
    """The first multiple at or above `channels`; 32 values of 16 bits fill the 64 bytes the Neural Engine pads to."""
    if channels < 1 or multiple < 1:
        raise BadInput(f"A number of channels and what it is a multiple of are 1 or more, not {channels}, {multiple}.")
    return -(-channels // multiple) * multiple


def pad_channels(module: nn.Sequential, multiple: int = 32) -> nn.Sequential:
    """Return a copy whose hidden widths are multiples of `multiple` and whose outputs are the same.

    A hidden width is made by a Conv2d or Linear and read by a later one; depthwise convolutions, batch norms and
    pointwise layers between keep it. Added channels have zero weights; where zero activates to zero, training leaves
    them so. Takes and gives what `module` does: channels first for convolutions, last for linears. Raises BadInput,
    naming the layer, for any other kind between the first and the last.
    """
    if type(module).forward is not nn.Sequential.forward:
        raise BadInput(f"A {type(module).__name__} does more than run its layers in order; give an nn.Sequential.")
    layers = list(module._modules.items())
    mixing = [i for i, (_, layer) in enumerate(layers) if _mixes(layer)]
    if len(mixing) < 2:
        raise BadInput("A hidden width stands between two Conv2d or Linear layers; this nn.Sequential has none.")
    first, last = mixing[0], mixing[-1]
    for name, layer in layers[first : last + 1]:
        _check(name, layer, type(layers[first][1]))
    padded = nn.Sequential(OrderedDict((name, copy.deepcopy(layer)) for name, layer in layers))
    for i, layer in enumerate(padded):
        if first <= i <= last and type(layer) not in _POINTWISE:
            _widen(layer, multiple, inputs=i != first, outputs=i != last)
    padded.training = module.training
    return padded


def _check(name: str, layer: nn.Module | None, kind: type[nn.Module]) -> None:
    """Raise BadInput unless a layer between those of `kind` can be widened, or need not be."""
    widens = type(layer) in (kind, _NORM[kind]) and (_mixes(layer) or _keeps_channels(layer)) and _owns_weights(layer)
    if not widens and type(layer) not in _POINTWISE:
        known = "Conv2d (of one group or depthwise)" if kind is nn.Conv2d else kind.__name__
        raise BadInput(
            f"Layer '{name}', {layer}, cannot be padded: between {kind.__name__} layers there can be {known}, "
            f"{_NORM[kind].__name__}, dropout and pointwise activations."
        )


def _mixes(layer: Any) -> bool:
    """Whether each output is a sum over all inputs, so that the two widths are independent."""
    return type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)


def _keeps_channels(layer: Any) -> bool:
    """Whether each channel is made of the same one before it."""
    if type(layer) is nn.Conv2d:
        return layer.groups == layer.in_channels == layer.out_channels
    return type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d)


def _owns_weights(layer: Any) -> bool:
    """Whether its weights are its parameters, and not made of others by a hook, as torch's pruning has it."""
    return {name for name, _ in layer.named_parameters()} <= {"weight", "bias"}


def _widen(layer: Any, multiple: int, *, inputs: bool, outputs: bool) -> None:
    """Round a layer up in place, on the sides that are hidden."""
    if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d):
        layer.num_features = aligned(layer.num_features, multiple)
        for name in ("weight", "bias", "running_mean"):
            _grow(layer, name, (layer.num_features,))
        _grow(layer, "running_var", (layer.num_features,), fill=1.0)  # as in a new norm
    elif type(layer) is nn.Linear:
        layer.in_features = aligned(layer.in_features, multiple) if inputs else layer.in_features
        layer.out_features = aligned(layer.out_features, multiple) if outputs else layer.out_features
        _grow(layer, "weight", (layer.out_features, layer.in_features))
        _grow(layer, "bias", (layer.out_features,))
    else:
        depthwise = not _mixes(layer)
        layer.in_channels = aligned(layer.in_channels, multiple) if inputs else layer.in_channels
        layer.out_channels = aligned(layer.out_channels, multiple) if outputs else layer.out_channels
        layer.groups = layer.in_channels if depthwise else 1
        _grow(layer, "weight", (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size))
        _grow(layer, "bias", (layer.out_channels,))


def _grow(layer: nn.Module, name: str, shape: tuple[int, ...], fill: float = 0.0) -> None:
    """Put a larger tensor in place of one that the layer has, with `fill` in what is added."""
    old = getattr(layer, name)
    if old is None:
        return
    new = old.detach().new_full(shape, fill)
    new[tuple(slice(side) for side in old.shape)] = old.detach()
    setattr(layer, name, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)
