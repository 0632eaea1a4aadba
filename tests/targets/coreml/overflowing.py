"""Small models that are healthy in float32 and overflow in fp16, each in one way; and one that does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, TOKENS, CLASSES = 32, 64, 10


class Attention(nn.Module):
    """Patches, one attention, mean, classes. gain: multiplies queries and keys. score: turns them into weights."""

    def __init__(self, score: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor], gain: float, dim: int = 64):
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 4, 4)
        self.q, self.k, self.v, self.head = (nn.Linear(dim, n) for n in (dim, dim, dim, CLASSES))
        self.attend, self.gain = score, gain

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        return self.head(self.attend(self, self.q(x) * self.gain, self.k(x) * self.gain, self.v(x)).mean(1))


class Masked(Attention):
    """Some tokens are masked by `value`; rows_masked: all of these rows' tokens are."""

    def __init__(self, value: float, rows_masked: int = 0):
        super().__init__(lambda m, q, k, v: (q / 8 @ k.mT + m.mask).softmax(-1) @ v, 1.0)
        mask = torch.zeros(TOKENS, TOKENS)
        mask[:, 40:] = value
        mask[:rows_masked] = value
        self.register_buffer("mask", mask)


class Normed(nn.Module):
    """Patches, one norm of large values, mean, classes. axis: of the channels the norm sees them at."""

    def __init__(self, norm: Callable[[nn.Module, Tensor], Tensor], gain: float, dim: int = 64):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, dim, 4, 4), nn.Linear(dim, CLASSES)
        self.weight, self.bias = nn.Parameter(0.5 + torch.rand(dim)), nn.Parameter(torch.randn(dim))
        self.norm, self.gain = norm, gain

    def forward(self, image: Tensor) -> Tensor:
        x = (self.embed(image) * self.gain).flatten(2).transpose(1, 2)
        return self.head(self.norm(self, x).mean(1))


def _softmax_by_hand(m, q, k, v):
    powers = (q / 8 @ k.mT).exp()
    return (powers / powers.sum(-1, keepdim=True)) @ v


def _layer_norm(epsilon):
    return lambda m, x: F.layer_norm(x, x.shape[-1:], m.weight, m.bias, epsilon)


def _uneven_layer_norm(m, x):
    # half of the tokens are so small that their variance is not far from the epsilon, which 2^-24 would then drown
    uneven = x * torch.where(torch.arange(TOKENS) % 2 == 0, 1.0, 1e-3)[:, None]
    return F.layer_norm(uneven, x.shape[-1:], m.weight, m.bias, 1e-6)


def _rms_norm(m, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.weight


def _norm_by_hand(m, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-6) * m.weight + m.bias


def _group_norm(m, x):
    return F.group_norm(x.mT.unflatten(-1, (8, 8)), 4, m.weight, m.bias).flatten(2).mT


def _residual(m, x):
    return F.layer_norm(x + torch.tanh(x), x.shape[-1:], m.weight, m.bias)


@dataclass(frozen=True)
class Trouble:
    """make: the model. rewrite: what repairs it. ios: the version it is converted for. worse: fp16 arithmetics that
    go wrong before the repair."""

    make: Callable[[], nn.Module]
    rewrite: str
    worse: tuple[str, ...] = ("fp16",)
    ios: int = 16


BOTH = ("fp16", "fp16-fp32acc")
TROUBLES = {
    "scaled by a power of two": Trouble(
        lambda: Attention(lambda m, q, k, v: ((q @ k.mT) * 0.125).softmax(-1) @ v, 400.0), "pre-scaled QK", BOTH
    ),
    "scaled by another factor": Trouble(
        lambda: Attention(lambda m, q, k, v: ((q @ k.mT) * 0.1443).softmax(-1) @ v, 400.0), "pre-scaled QK", BOTH
    ),
    "divided": Trouble(
        lambda: Attention(lambda m, q, k, v: ((q @ k.mT) / 11.3).softmax(-1) @ v, 400.0), "pre-scaled QK", BOTH
    ),
    "scaled after reshaping": Trouble(
        lambda: Attention(
            lambda m, q, k, v: ((q @ k.mT).unflatten(1, (8, 8)) * 0.125).softmax(-1).flatten(1, 2) @ v, 400.0
        ),
        "pre-scaled QK",
        BOTH,
    ),
    "not scaled": Trouble(
        lambda: Attention(lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v, 400.0), "shifted softmax", BOTH
    ),
    "attention as one operation": Trouble(
        lambda: Attention(
            lambda m, q, k, v: F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0], 420.0, 48
        ),
        "pre-scaled QK",
        ios=18,
    ),
    "softmax by hand": Trouble(lambda: Attention(_softmax_by_hand, 25.0), "shifted softmax", BOTH),
    "mask of -1e9": Trouble(lambda: Masked(-1e9), "finite mask", ()),
    "mask of the lowest float": Trouble(lambda: Masked(torch.finfo(torch.float32).min), "finite mask", ()),
    "mask of minus infinity": Trouble(lambda: Masked(-math.inf), "finite mask", ()),
    "layer norm": Trouble(lambda: Normed(_layer_norm(1e-5), 400.0), "scaled norm"),
    "layer norm of uneven tokens": Trouble(lambda: Normed(_uneven_layer_norm, 200.0), "split LayerNorm"),
    "rms norm by hand": Trouble(lambda: Normed(_rms_norm, 800.0), "scaled norm", BOTH),
    "layer norm by hand": Trouble(lambda: Normed(_norm_by_hand, 800.0), "scaled norm", BOTH),
    "group norm": Trouble(lambda: Normed(_group_norm, 60.0), "scaled norm"),
    "length": Trouble(lambda: Normed(lambda m, x: F.normalize(x, dim=-1), 400.0), "scaled mean"),
    "mean of large values": Trouble(lambda: Normed(lambda m, x: x + 4000, 400.0), "scaled mean"),
}


def healthy() -> nn.Module:
    return Attention(lambda m, q, k, v: ((q @ k.mT) * 0.125).softmax(-1) @ v, 1.0)


def residual() -> nn.Module:
    return Normed(_residual, 3e5)


def convert(make: Callable[[], nn.Module], path: Path, half: bool, ios: int = 16) -> Path:
    """Write the model with its random weights, the same each time, to `path`."""
    import coremltools as ct

    torch.manual_seed(0)
    exported = torch.export.export(make().eval(), (torch.zeros(1, 3, SIDE, SIDE),)).run_decompositions({})
    ct.convert(
        exported,
        convert_to="mlprogram",
        inputs=[ct.TensorType(name="image", shape=(1, 3, SIDE, SIDE))],
        outputs=[ct.TensorType(name="logits", dtype=np.float32)],
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        minimum_deployment_target=getattr(ct.target, f"iOS{ios}"),
        skip_model_load=True,
    ).save(str(path))
    return path
