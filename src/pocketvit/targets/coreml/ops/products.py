"""Products: linear layers, matrix products, attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import BadInput
from ..values import TensorType
from . import Tensors, handles


@handles("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` (..., D_in) times weight (D_out, D_in) transposed, plus bias (D_out); BadInput for int x, float weight."""
    if weight.dtype is not x.dtype or (bias is not None and bias.dtype is not x.dtype):
        if not x.is_floating_point():
            raise BadInput("it multiplies integers by fractions to give integers, and MIL does not say how to round")
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return F.linear(x, weight, bias)


@handles("matmul")
def matmul(
    x: Tensor, y: Tensor, outputs: tuple[TensorType, ...], transpose_x: bool = False, transpose_y: bool = False
) -> Tensor:
    """Product of the last two axes, which may be swapped first; batch axes broadcast, 1-D as in numpy.

    From iOS 17 a constant factor may have another type. BadInput for int times float declared int. coremltools
    declares too few axes for 1-D x times y of rank 3 and more, which is refused where shapes are checked.
    """
    if x.dtype is not y.dtype:
        if not outputs[0].dtype.is_float:
            raise BadInput("it multiplies integers by fractions to give integers, and MIL does not say how to round")
        x, y = x.float(), y.float()
    if transpose_x and x.ndim > 1:
        x = x.transpose(-1, -2)
    if transpose_y and y.ndim > 1:
        y = y.transpose(-1, -2)
    return x @ y


@handles("einsum")
def einsum(values: Tensors, equation: str) -> Tensor:
    """The two products MIL has: "nchw,nwhu->nchu" and "chw,whu->chu" with any letters.

    Axes that are not multiplied broadcast. Raises BadInput for another equation.
    """
    letters = dict.fromkeys(c for c in equation if c not in ",->")
    numbered = "".join(str(list(letters).index(c)) if c in letters else c for c in equation)
    if len(values) != 2 or numbered not in ("0123,0324->0124", "012,213->013"):
        raise BadInput(f"its equation {equation!r} is not of the form 'nchw,nwhu->nchu' or 'chw,whu->chu'")
    if [value.ndim for value in values] != [numbered.index(",")] * 2:
        raise BadInput(f"its equation {equation!r} is for other ranks than {[value.ndim for value in values]}")
    x, y = (value.transpose(-3, -2) for value in values)
    return (x @ y).transpose(-3, -2)


@handles("scaled_dot_product_attention")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(E) + mask) value, for query (..., L, E), key (..., S, E), value (..., S, EV).

    attn_mask broadcasts to (..., L, S): added to the scores, or if bool true where attention goes. A row that is
    masked throughout gives NaN, as the definition's softmax of minus infinities does; torch would give zeros.
    """
    if attn_mask is None:
        return F.scaled_dot_product_attention(query, key, value)
    mask = attn_mask if attn_mask.ndim > 1 else attn_mask[None]
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    if mask.dtype is torch.bool:  # as bytes, because `any` takes three times as long
        shut = mask.view(torch.uint8).amax(-1, keepdim=True) == 0
    else:
        shut = mask.amax(-1, keepdim=True) == -torch.inf
    return found.masked_fill(shut, torch.nan)
