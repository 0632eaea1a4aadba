"""The Neural Engine pass: any attention model rewritten for it, with the same weights and the same outputs.

The model is exported, and its graph rewritten: norms fold into layers, Q, K and V get layers of their own, attention
runs head by head, windows are cut in steps of rank 5, and linear layers become 1x1 convolutions on (B, C, 1, S) where
that moves no more bytes (Apple, "Deploying Transformers on the Apple Neural Engine" and "Deploying Attention-Based
Vision Transformers to Apple Neural Engine").
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...data import open_data, sample
from ...errors import BadInput, CheckFailed
from ...models import EagerRunner, Model, deployable
from .. import PASSES, Pass
from .capture import capture
from .emit import Rewritten
from .positions import Position, replace_positions
from .rewriting import rewrite

TOLERANCE = 1e-5  # of the largest logit: what float32 rounds differently when sums are taken in another order
_OF_OWN = 4  # times the model's own float32 rounding, where that is coarser: two roundings differ by their sum
_COARSEST = 1e-3  # of the largest logit: a model that rounds worse than this proves nothing
_IMAGES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Ane:
    """What is rewritten; with nothing on, the model stays as it is.

    layouts: linear layers as 1x1 convolutions, channels first, where that moves no more bytes; windows and other moves
    of rank 6 and more in steps of rank 5. heads: Q, K and V from layers of their own, one softmax per head. norms:
    norms and scales folded into layers. position: keep, or replace relative position biases by a smaller form, which
    changes the function: the model then has to be fine-tuned.
    """

    layouts: bool = True
    heads: bool = True
    norms: bool = True
    position: Position = Position.KEEP


OFF = Ane(layouts=False, heads=False, norms=False)


def ane(model: Model, config: Ane | None = None) -> Model:
    """Return `model` rewritten for the Neural Engine; the model passed in stays as it was.

    The result is checked on real images. Raises BadInput, naming the module, for a model that is rewritten already or
    that the pass does not see through, CheckFailed when outputs differ by more than TOLERANCE of the largest logit and
    by more than the model's own rounding.
    """
    config = config or Ane()
    if any(isinstance(part, Rewritten) for part in model.module.modules()):
        raise BadInput(f"{model.name} is rewritten already; rewrite the model that it was made from.")
    if config == OFF:
        return replace(model, module=copy.deepcopy(model.module))
    rewritten = _rewritten(model, config)
    if config.position is Position.KEEP:
        images = sample(open_data("photos"), model.spec, _IMAGES)
        expected = EagerRunner(model)(images)
        if expected.any():
            _check(model, rewritten, images, expected)
        else:  # a head of zeros, as new models may have, hides whatever comes before it
            louder = _with_weights(model)
            _check(louder, _rewritten(louder, config), images, EagerRunner(louder)(images))
    return rewritten


def _rewritten(model: Model, config: Ane) -> Model:
    program = capture(model)
    changed = config.position is not Position.KEEP
    if changed:
        program = replace_positions(program, config.position, model.name)
    module = rewrite(program, layouts=config.layouts, heads=config.heads, norms=config.norms)
    name = f"{model.name}+ane" + (f" ({config.position}: fine-tune it)" if changed else "")
    return replace(model, module=module, name=name)


def _with_weights(model: Model) -> Model:
    """A copy whose layers of zeros have small weights."""
    module = copy.deepcopy(model.module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02, generator=generator)
    return replace(model, module=module)


def _check(model: Model, rewritten: Model, images: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Hold the two against one another on real images, as finely as the model's own float32 rounding allows."""
    error = _relative(EagerRunner(rewritten)(images), expected)
    if error <= TOLERANCE:
        return
    own = _own_rounding(model, images, expected)
    if not (own <= _COARSEST and error <= _OF_OWN * own):
        raise CheckFailed(
            f"{rewritten.name} differs from the model by {error:.1e} of its largest logit, more than {TOLERANCE:.0e} "
            f"and more than {_OF_OWN} times the model's own rounding ({own:.1e}); it was not taken."
        )


def _own_rounding(model: Model, images: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """How far the model is from itself in float64; infinite where it does not run in that."""
    try:
        with torch.no_grad():
            exact = deployable(model).double()(torch.from_numpy(images).double()).numpy()
    except RuntimeError:
        return float("inf")
    return _relative(expected, exact)


def _relative(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))


PASSES.add("ane", Pass(config=Ane, apply=ane, neutral=OFF, same_function=lambda c: c.position is Position.KEEP))
