"""The end of a classifier: from probabilities to a label."""

from __future__ import annotations

from torch import Tensor

from ....errors import BadInput
from . import Strs, handles


@handles("classify")
def classify(probabilities: Tensor, classes: Strs) -> tuple[str | int, dict[str | int, float]]:
    """The most probable class, the first of equals, and every class's probability.

    A dictionary has one place for classes of the same name, where the last one's probability stands.
    """
    if probabilities.numel() != len(classes):
        raise BadInput(f"it has {len(classes)} classes for {probabilities.numel()} probabilities")
    if probabilities.is_meta:  # a dry run, where nothing is known but the kinds
        return classes[0], dict.fromkeys(classes, 0.0)
    return classes[int(probabilities.argmax())], dict(zip(classes, probabilities.reshape(-1).tolist(), strict=True))
