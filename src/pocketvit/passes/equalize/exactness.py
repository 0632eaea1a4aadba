"""Whether two models compute the same, as finely as float32 tells."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import BadInput, CheckFailed
from ...models import EagerRunner, Model, deployable

TOLERANCE = 1e-5  # of the logits' norm: what float32 rounds differently when weights are scaled
_OF_OWN = 4  # times the model's own float32 rounding, where that is coarser: two roundings differ by their sum
_COARSEST = 1e-3  # of the logits' norm: a model that rounds worse than this proves nothing
_BATCH = 16


def check_same(model: Model, changed: Model, images: NDArray[np.float32]) -> None:
    """Raise CheckFailed, with the number, where an image's logits differ by more than rounding does.

    Raises BadInput for a model whose logits are the same for every image: they cannot show a fault.
    """
    expected = _logits(model, images)
    if not expected.any() or (len(images) > 1 and (expected == expected[0]).all()):
        raise BadInput(
            f"{model.name} gives the same logits for every image, so no rewrite can be checked; train it first."
        )
    error = _relative(_logits(changed, images), expected)
    if error <= TOLERANCE:
        return
    own = _own_rounding(model, images, expected)
    if not (own <= _COARSEST and error <= _OF_OWN * own):
        raise CheckFailed(
            f"{changed.name} differs from the model by {error:.1e} of its logits' norm, more than {TOLERANCE:.0e} and "
            f"more than {_OF_OWN} times the model's own rounding ({own:.1e}); it was not taken."
        )


def _logits(model: Model, images: NDArray[np.float32]) -> NDArray[np.float32]:
    runner = EagerRunner(model, torch.get_num_threads())
    return np.concatenate([runner(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])


def _own_rounding(model: Model, images: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """How far the model is from itself in float64; infinite where it does not run in that."""
    try:
        with torch.no_grad():
            exact = deployable(model).double()(torch.from_numpy(images).double()).numpy()
    except RuntimeError:
        return float("inf")
    return _relative(expected, exact)


def _relative(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """The largest error of an image, as a share of the norm of its logits."""
    norms = np.linalg.norm(expected, axis=1).clip(min=1e-30)
    return float((np.linalg.norm(found - expected, axis=1) / norms).max())
