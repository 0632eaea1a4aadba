"""Models to rewrite, and what a program or a rewritten module is compared by."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pocketvit.data import open_data, sample
from pocketvit.models import Model, create, deployable
from pocketvit.passes.ane.capture import capture
from pocketvit.passes.ane.program import Op, Program, evaluate
from pocketvit.types import InputSpec

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@cache
def benchmark(name: str) -> ModuleType:
    """A file of the benchmarks, which are scripts and no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lively(name: str, **arguments: Any) -> Model:
    """A model with norms and scales as training leaves them: untouched ones hide what a rewrite gets wrong.

    Statistics of batch norms are drawn, not measured: dividing by what random weights leave over magnifies rounding
    until float32 gives the outputs of LeViT to 1e-2 only.
    """
    model = create(name, num_classes=10, **arguments)
    if _has_batch_norms(model.module):
        return replace(model, module=tiny(model.module).module)
    return benchmark("coreml_families").lively(model, sample(open_data("photos"), model.spec, 1))


def _has_batch_norms(module: nn.Module) -> bool:
    return any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in module.modules())


class Function(nn.Module):
    """A function as a module, with the modules that it calls."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def tiny(
    module: nn.Module | Callable[..., Tensor], size: tuple[int, int, int] = (3, 8, 8), **parts: nn.Module
) -> Model:
    """A model of a few lines; norms get statistics and weights that are not those of a new one."""
    module = module if isinstance(module, nn.Module) else Function(module, **parts)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1 and ("gamma" in name or "layer_scale" in name):
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm) and part.weight is not None:
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(part.bias, generator=generator)
    return Model(name="tiny", module=module.eval(), spec=InputSpec(size=size), trained=False, classes=10)


def images(model: Model, count: int = 1) -> Tensor:
    return torch.randn(count, *model.spec.size, generator=torch.Generator().manual_seed(1))


def expected(model: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        return deployable(model).module(x)


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest error, as a share of the largest value."""
    assert found.shape == wanted.shape, f"{tuple(found.shape)}, not {tuple(wanted.shape)}"
    return float((found - wanted).abs().max() / wanted.abs().max())


def error(program: Program, model: Model) -> float:
    """How far a program is from the model it was made of."""
    x = images(model)
    with torch.no_grad():
        return relative(evaluate(program, x), expected(model, x))


def changed(model: Model, *edits: Callable[[Program], Program], within: float = 2e-6) -> Program:
    """The program after some rewrites, which must compute what the model does."""
    program = capture(model)
    for edit in edits:
        program = edit(program)
        assert (found := error(program, model)) <= within, f"{edit.__name__} is off by {found:.1e}"
    return program


def name_of(op: Op) -> str:
    schema = getattr(op.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else getattr(op.target, "__name__", "image")


def kinds(program: Program) -> Counter[str]:
    return Counter(map(name_of, program.ops))


class Attention(nn.Module):
    """Attention over the last two axes as timm writes it; talking: heads are mixed before and behind the softmax."""

    def __init__(self, dim: int = 32, heads: int = 4, talking: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mix = nn.Linear(heads, heads) if talking else None

    def forward(self, x: Tensor) -> Tensor:
        B, S, C = x.shape
        q, k, v = self.qkv(x).reshape(B, S, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)
        if self.mix is not None:
            scores = self.mix(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = scores.softmax(-1)
        if self.mix is not None:
            weights = self.mix(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, S, C))


def tokens(width: int = 32, **parts: nn.Module) -> dict[str, nn.Module]:
    """The parts of a model that starts with patches of 2 x 2 and ends with a classifier."""
    return {"embed": nn.Conv2d(3, width, 2, 2), **parts, "head": nn.Linear(width, 10)}


def on_tokens(middle: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A function of (1, S, C) between patches and a classifier."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(middle(m, m.embed(x).flatten(2).transpose(1, 2)).mean(1))

    return run
