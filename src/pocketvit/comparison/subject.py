"""What every form is made from, and what making one gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import CheckFailed
from ..models import EagerRunner, Model, deployable
from ..types import Precision, Quantized, Runner

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..artifacts import ProofImages


class Step(StrEnum):
    """The tutorial's variants, in its order."""

    ORIGINAL = "original"
    QUANTIZED = "quantized"
    OPTIMISED = "optimised"
    LITE = "lite"


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A form that runs. path: its file, where it is one. how: what was done, in words. first_call_s: what its first
    image took where that compiles it; a user pays it once in a process.
    """

    runner: Runner
    how: str
    path: Path | None = None
    quantized: Quantized | None = None
    first_call_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A form a model can be brought into. make may raise whatever the library behind it raises."""

    target: str
    precision: Precision
    step: Step
    make: Callable[[Subject], Made]

    def __str__(self) -> str:
        return f"{self.target}:{self.precision}"


class Subject:
    """The model that is compared, with what several forms share: images, the reference, one folder for the files."""

    def __init__(self, model: Model, images: ProofImages, folder: Path, threads: int) -> None:
        self.model = model
        self.images = images
        self.folder = folder
        self.threads = threads
        self.reference = EagerRunner(model, threads)

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """The reference's logits for the verification images."""
        return self.reference(self.images.verification)

    @property
    def example(self) -> Tensor:
        """One real image (1, C, H, W) in [0, 1]."""
        return torch.from_numpy(self.images.verification[:1])

    def module(self) -> nn.Module:
        """A copy of the network, normalisation inside, that may be changed."""
        return deployable(self.model)

    def runner(self, form: str, forward: Callable[[Tensor], Tensor]) -> TorchRunner:
        """`forward` as a runner of this model."""
        return TorchRunner(self.model, f"{form} {self.model.display_name}", self.threads, forward)

    def count(self, swapped: nn.Module, is_quantized: Callable[[nn.Module], bool]) -> Quantized:
        """How many layers of `swapped` are quantized, of the linears and convolutions; CheckFailed for none."""
        found = sum(map(is_quantized, swapped.modules()))
        every = sum(isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) for part in self.model.module.modules())
        if not found:
            raise CheckFailed(f"0 of {every} layers quantized: it has no nn.Linear to quantize.")
        return Quantized(layers=found, of=every)


class TorchRunner(EagerRunner):
    """A form that PyTorch itself runs, one image at a time; profiled as the eager model is."""

    def __init__(self, model: Model, name: str, threads: int, forward: Callable[[Tensor], Tensor]) -> None:
        self.name = name
        self.threads = threads
        self.classes = model.classes
        self.spec = model.spec
        self._forward = forward

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1]."""
        if torch.get_num_threads() != self.threads:  # one setting for the process, restored after the comparison
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            rows = [self._forward(image[None]) for image in torch.from_numpy(images)]
            return torch.cat(rows).float().numpy()
