from __future__ import annotations

import numpy as np
import pytest

from pocketvit.data import open_data
from pocketvit.errors import BadInput
from pocketvit.measure.accuracy import accuracy
from pocketvit.types import InputSpec, Runner

DIGITS = tuple("0123456789")


class Oracle(Runner):
    """Answers from a list, shifting every answer in `wrong` to another class."""

    def __init__(self, answers: np.ndarray, wrong: int, labels: tuple[str, ...] = DIGITS) -> None:
        self.name, self.threads, self.classes = "oracle", 1, len(labels)
        self.spec = InputSpec(size=(3, 32, 32), crop_pct=1.0, labels=labels)
        self.answers = answers.copy()
        self.answers[:wrong] = (self.answers[:wrong] + 1) % 10
        self.asked = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        answers = self.answers[self.asked : self.asked + len(images)]
        self.asked += len(images)
        return np.eye(10, dtype=np.float32)[answers]


def test_every_image_is_counted_once() -> None:
    test = open_data("digits", "test")
    found = accuracy(Oracle(test.targets, wrong=36), test)
    assert (found.images, found.top1) == (360, 324 / 360)


def test_classes_in_another_order_or_number_are_refused() -> None:
    test = open_data("digits", "test")
    with pytest.raises(BadInput, match="class 0 is '9' in the model and '0' in the data"):
        accuracy(Oracle(test.targets, 0, DIGITS[::-1]), test)
    with pytest.raises(BadInput, match="9 classes but digits"):
        accuracy(Oracle(test.targets, 0, DIGITS[:9]), test)
