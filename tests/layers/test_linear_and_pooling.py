"""Linear attention and pooling against their equations, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.models.metaformer import Pooling as TimmPooling

from pocketvit.errors import BadInput
from pocketvit.layers.mixers import LinearAttention, Pooling
from pocketvit.measure.cost import count

DIM, GRID = 12, (4, 5)
TOKENS = GRID[0] * GRID[1]


def _linear(head_dim: int = 4) -> LinearAttention:
    torch.manual_seed(0)
    return LinearAttention(DIM, GRID, head_dim=head_dim).eval()


@pytest.mark.parametrize("head_dim", [4, 6, 12])
def test_linear_attention_is_its_equation(head_dim: int) -> None:
    """Attention with the kernel phi(q) . phi(k), every weight computed (equation 4)."""
    mixer, x = _linear(head_dim), torch.randn(2, TOKENS, DIM)
    weight, bias = (p.detach().double().numpy() for p in (mixer.qkv.weight, mixer.qkv.bias))
    expected = np.zeros((2, TOKENS, DIM))
    for image in range(2):
        q, k, v = np.split(x[image].double().numpy() @ weight.T + bias, 3, axis=1)
        for head in range(DIM // head_dim):
            part = slice(head * head_dim, (head + 1) * head_dim)
            phi_q, phi_k = (np.where(z > 0, z + 1, np.exp(z)) for z in (q[:, part], k[:, part]))
            similarity = phi_q @ phi_k.T
            expected[image, :, part] = similarity @ v[:, part] / similarity.sum(axis=1, keepdims=True)
    expected = expected @ mixer.proj.weight.detach().double().numpy().T + mixer.proj.bias.detach().double().numpy()
    apart = np.abs(mixer(x).detach().numpy() - expected).max() / np.abs(expected).max()
    assert apart < 2e-6, f"{apart:.1e} of the largest value"


def test_linear_attention_costs_the_same_for_every_token() -> None:
    macs = [count(LinearAttention(DIM, (side, side), head_dim=4), (side * side, DIM)).macs for side in (4, 8, 64)]
    per_token = [m / side**2 for m, side in zip(macs, (4, 8, 64), strict=True)]
    # qkv, proj, the sums and their use, and the denominator
    assert per_token == [4 * DIM * DIM + 2 * DIM * 4 + DIM] * 3


@pytest.mark.parametrize("scale", [1e3, -1e3])
def test_linear_attention_stays_finite(scale: float) -> None:
    """Far below zero phi is 0 in float32, numerator and denominator with it."""
    mixer, x = _linear(), torch.randn(1, TOKENS, DIM)
    with torch.no_grad():
        mixer.qkv.weight[: 2 * DIM] = 0
        mixer.qkv.bias[: 2 * DIM] = scale
    y = mixer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
    if scale > 0:  # all keys are equal, so every output is the mean of the values
        mean = mixer.proj(mixer.qkv(x)[..., 2 * DIM :].mean(dim=1, keepdim=True)).expand_as(y)
        torch.testing.assert_close(y, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [3, 5])
def test_pooling_is_the_mean_of_the_neighbours_less_itself(size: int) -> None:
    x = torch.randn(1, TOKENS, DIM)
    tokens, reach = x[0].double().numpy().reshape(*GRID, DIM), size // 2
    expected = np.zeros((*GRID, DIM))
    for i in range(GRID[0]):
        for j in range(GRID[1]):
            around = tokens[max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1]
            expected[i, j] = around.mean(axis=(0, 1)) - tokens[i, j]
    found = Pooling(DIM, GRID, size=size)(x)[0].numpy().reshape(*GRID, DIM)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_pooling_is_timms_on_tokens() -> None:
    x_BCHW = torch.randn(2, DIM, *GRID)
    found = Pooling(DIM, GRID)(x_BCHW.flatten(2).transpose(1, 2))
    assert torch.equal(found, TimmPooling()(x_BCHW).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LinearAttention(DIM, GRID, head_dim=5), "12 channels do not divide into heads of 5"),
        (lambda: Pooling(DIM, GRID, size=4), "odd"),
        (lambda: Pooling(DIM, GRID)(torch.zeros(1, 4, DIM)), "4x5 grid"),
        (lambda: _linear()(torch.zeros(1, TOKENS, DIM), attn_mask=torch.zeros(1)), "no attention to mask"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make()
