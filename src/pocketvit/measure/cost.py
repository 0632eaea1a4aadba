"""Parameters, multiply-accumulates and activations of a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

if TYPE_CHECKING:
    from ..models import Model

aten = torch.ops.aten
_Shape = Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a model costs for one image.

    params: number of weights. macs: multiply-accumulates, half of torch's floating point operations. activations:
    elements that convolutions, linear layers and matrix products give out (the convention of fvcore and of timm's
    tables).
    """

    params: int
    macs: int
    activations: int


def cost(model: Model) -> Cost:
    """Count the model as it is, nothing folded, at its own input size; preparing the image is not counted."""
    return count(model.module, model.spec.size)


def count(module: nn.Module, size: tuple[int, int, int]) -> Cost:
    """Count one forward pass in evaluation mode over one image of `size` (channels, height, width).

    Counted: convolutions, matrix products (linear layers, attention, einsum, recurrent layers), Fourier transforms,
    and norms, as fvcore and so timm's tables and most papers have it: 2 an element for a batch norm, 5 for a layer or
    group norm. Not counted: other elementwise work, pooling, resizing, softmax. The module stays as it is, and may be
    on the meta device.
    """
    try:
        return _count(_without_weights(module).eval(), size)
    except (RuntimeError, NotImplementedError, TypeError):  # it looks at values, or keeps a tensor out of sight
        with _no_fused_layers():
            return _count(copy.deepcopy(module).requires_grad_(False).eval(), size)


def _without_weights(module: nn.Module) -> nn.Module:
    """A copy on the meta device: only shapes matter here, so nothing is computed, nor are the weights copied."""
    weights = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, weights | {id(b): b.to("meta") for b in module.buffers()})


@contextmanager
def _no_fused_layers() -> Iterator[None]:
    """Keep torch from computing attention and recurrent layers as one operation each, which has no formula."""
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    # not through flags(), which sets more than this and warns of it
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before[0])
        torch.backends.mkldnn.enabled = before[1]


def _count(module: nn.Module, size: tuple[int, int, int]) -> Cost:
    given_out: list[int] = []
    parameters = list(module.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    products = {op: _noting(formula, given_out) for op, formula in (flop_registry | _PRODUCTS).items()}
    counter = FlopCounterMode(display=False, custom_mapping=products | _TRANSFORMS | _NORMS)
    # the fused attention kernel of the CPU has no formula in torch's counter; the plain form is made of matmuls
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        module(torch.zeros(1, *size, device=device))
    return Cost(
        params=sum(p.numel() for p in parameters),
        macs=counter.get_total_flops() // 2,
        activations=sum(given_out),
    )


def _noting(formula: Callable[..., int], given_out: list[int]) -> Callable[..., int]:
    """`formula`, which also notes how many elements the operation gives out."""

    def noted(*args: Any, out_val: Any, **kwargs: Any) -> int:
        given_out.append(out_val.numel())
        return formula(*args, out_val=out_val, **kwargs)

    noted._get_raw = True  # type: ignore[attr-defined]  # how torch marks formulas that want tensors, not shapes
    return noted


def _matrix_by_vector(matrix: torch.Tensor, vector: torch.Tensor, *, out_val: torch.Tensor) -> int:
    return 2 * matrix.numel()


def _vector_by_vector(a: torch.Tensor, b: torch.Tensor, *, out_val: torch.Tensor) -> int:
    return 2 * a.numel()


def _fft(transformed: _Shape, axes: Sequence[int], share: float) -> int:
    """Operations of a fast Fourier transform over `axes`: 5 N log2 N for N complex values, half of that for reals.

    Radix 2 makes log2 N passes of N / 2 butterflies, 10 real operations each (Cooley and Tukey 1965).
    """
    points = math.prod(transformed[axis] for axis in axes)
    return round(share * 5 * math.prod(transformed) * math.log2(points))


def _complex_fft(values: _Shape, axes: Sequence[int], *rest: Any, out_shape: _Shape) -> int:
    return _fft(values, axes, 1.0)


def _fft_of_reals(values: _Shape, axes: Sequence[int], *rest: Any, out_shape: _Shape) -> int:
    return _fft(values, axes, 0.5)


def _fft_to_reals(values: _Shape, axes: Sequence[int], *rest: Any, out_shape: _Shape) -> int:
    return _fft(out_shape, axes, 0.5)


def _norm(affine: int, plain: int) -> Callable[..., int]:
    """Formula of a norm that takes this many multiply-accumulates an element, with and without weights (fvcore's)."""

    def counted(values: _Shape, weight: _Shape | None, *rest: Any, out_shape: _Shape) -> int:
        return 2 * math.prod(values) * (plain if weight is None else affine)

    return counted


_BATCH_NORM = _norm(affine=2, plain=1)


def _rows_norm(values: _Shape, normalized: Sequence[int], weight: _Shape | None, *rest: Any, out_shape: _Shape) -> int:
    return _norm(affine=5, plain=4)(values, weight, out_shape=out_shape)


# What torch's own table lacks.
_PRODUCTS = {aten.mv: _matrix_by_vector, aten.dot: _vector_by_vector}
_TRANSFORMS = {aten._fft_c2c: _complex_fft, aten._fft_r2c: _fft_of_reals, aten._fft_c2r: _fft_to_reals}
_NORMS = {
    aten.native_batch_norm: _BATCH_NORM,
    aten._native_batch_norm_legit: _BATCH_NORM,
    aten._native_batch_norm_legit_no_training: _BATCH_NORM,
    aten.native_layer_norm: _rows_norm,
    aten.native_group_norm: _norm(affine=5, plain=4),
}
