"""Accuracy of a runner over a whole data set."""

from __future__ import annotations

import numpy as np

from ..data import ImageDataset, batches, check_classes
from ..errors import BadInput
from ..types import Accuracy, Progress, Runner, silent

_BATCH = 32


def accuracy(runner: Runner, dataset: ImageDataset, progress: Progress = silent) -> Accuracy:
    """Top-1 and top-5 of `runner` over every image of `dataset`.

    Raises BadInput when their class counts differ, or when both name the same classes in another order: names that
    merely differ (synsets against words) are taken to mean the same.
    """
    check_classes(runner.classes, dataset)
    ours, theirs = runner.spec.labels, tuple(dataset.labels)
    if ours != theirs and sorted(ours) == sorted(theirs):
        first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise BadInput(
            f"{runner.name} and {dataset.name} have the same classes in another order: class {first} is "
            f"{ours[first]!r} in the model and {theirs[first]!r} in the data."
        )
    top1 = top5 = seen = 0
    for images, targets in batches(dataset, runner.spec, _BATCH):
        logits = runner(images)
        # argmax decides ties as every runtime's user would; top-5 counts classes strictly ahead of the right one
        right = logits[np.arange(len(targets)), targets][:, None]
        top1 += int((logits.argmax(axis=1) == targets).sum())
        top5 += int(((logits > right).sum(axis=1) < 5).sum())
        seen += len(targets)
        progress(f"accuracy of {runner.name}", seen, len(dataset))
    return Accuracy(top1=top1 / seen, top5=top5 / seen, images=seen, skipped=dataset.skipped, evidence=runner.evidence)
