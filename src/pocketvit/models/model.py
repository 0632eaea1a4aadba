"""A model is a module plus what its input must look like; here it also becomes deployable and runnable."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..layers.folding import fold
from ..types import InputSpec, OpTime, Runner

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """An image classifier, how its input is prepared, and whether its weights come from training.

    module maps normalised images (N, C, H, W) to logits (N, classes). body: where only the head is random, the
    SHA-256 of the weights below it; empty otherwise.
    """

    name: str
    module: nn.Module
    spec: InputSpec
    trained: bool
    classes: int
    body: str = ""

    @property
    def display_name(self) -> str:
        """The name, followed by UNTRAINED where the weights are random."""
        return self.name if self.trained else f"{self.name} (UNTRAINED)"


class Deployable(nn.Module):
    """What every exported file computes: RGB in [0, 1] of shape (N, C, H, W) to logits, normalisation inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.module: nn.Module = module
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, classes) of float32 images (N, C, H, W) in [0, 1]."""
        return self.module((image - self.mean) / self.std)


def deployable(model: Model) -> Deployable:
    """Return an independent evaluation copy of `model` with the normalisation inside; the original is untouched."""
    module = copy.deepcopy(model.module).cpu().float().eval().requires_grad_(False)
    both_heads = getattr(module, "set_distilled_training", None)
    if both_heads is not None:
        both_heads(False)  # their average is the answer at inference (DeiT, arXiv 2012.12877, section 4)
    fold(module)
    return Deployable(module, model.spec).eval()


class EagerRunner(Runner):
    """The model itself in eager PyTorch, fp32: the reference every file is compared with."""

    def __init__(self, model: Model, threads: int = 2) -> None:
        self.name = f"eager:fp32 {model.display_name}"
        self.threads = threads
        self.classes = model.classes
        self.spec = model.spec
        self._module = deployable(model)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1], the whole batch at once."""
        with _threads(self.threads), torch.inference_mode():
            logits = self._module(torch.from_numpy(images))
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise BadInput(f"{self.name} does not return logits of shape (batch, classes); give it a classifier head.")
        return logits.float().numpy()

    def profile(self, images: NDArray[np.float32], runs: int) -> tuple[OpTime, ...]:
        """Self CPU time per operator, by torch.profiler."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as trace:
            for _ in range(runs):
                self(images[:1])
        ops = [
            OpTime(op=event.key, ms=event.self_cpu_time_total / 1e3 / runs, calls=event.count // runs)
            for event in trace.key_averages()
        ]
        return tuple(sorted(ops, key=lambda op: -op.ms))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with `count` threads; afterwards PyTorch uses as many as before."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
