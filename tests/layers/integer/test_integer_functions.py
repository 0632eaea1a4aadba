"""Each function of I-ViT against the exact one, and against its own recording; tolerances from the approximations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pocketvit.layers.integer import (
    IntegerProgram,
    Recorder,
    integer_sqrt,
    normalise,
    requantize,
    shift_gelu,
    shiftmax_weights,
    weighted_mean,
)

N = 10  # bits after the point
LINEAR = 0.0615  # of 2^-r: the most by which 1 - r / 2 is too large, at r = 0.4427
BASE = 1 - 23 / 16 / np.log2(np.e)  # how far the exponent is off, as a share of itself


def test_the_root_is_exact_or_one_more() -> None:
    wide = torch.from_numpy(np.random.default_rng(0).integers(1, 2**62, 2000))
    edges = torch.tensor([1, 2, 3, 4, 2**31, 2**61, 2**62 - 1, (2**30 - 1) ** 2, (2**30) ** 2, (2**30) ** 2 - 1])
    powers = torch.tensor([(1 << k) + d for k in range(2, 62) for d in (-1, 0, 1)])
    x = torch.cat([wide, edges, powers])[:, None]
    exact = torch.tensor([math.isqrt(v) for v in x[:, 0].tolist()])[:, None]
    over = integer_sqrt(x) - exact
    assert set(over.unique().tolist()) <= {0, 1}, f"off by {over.min().item()}..{over.max().item()}"


def test_shiftmax_is_as_close_as_its_lines_and_shifts_allow() -> None:
    scores = torch.arange(-12 << N, 1, 7, dtype=torch.int32)
    weights = shiftmax_weights(scores, N) / 255
    exact = torch.exp(scores / 2**N)
    # the straight line is never below the curve; the base makes it larger too; one step of 1/255 is rounded
    most = exact * (torch.exp(-scores / 2**N * BASE) * (1 + LINEAR) - 1) + 1 / 255
    worst = ((weights - exact) - most).max().item()
    assert worst <= 0, f"{worst} above what the approximation explains"
    assert (weights - exact).min() >= -1 / 255 - 2**-N, "below the exact function"
    assert weights.max() == 1


def test_equal_scores_share_evenly_however_many_there_are() -> None:
    scores = torch.full((1, 1000), -300, dtype=torch.int32)
    values = torch.randint(-127, 128, (1000, 3), dtype=torch.int32)
    weights = shiftmax_weights(scores, N)
    mean = weighted_mean(weights @ values, weights, 1, 0, 128, 1, 255) - 128
    assert torch.equal(mean, values.double().mean(0, keepdim=True).round().int())


def test_shift_gelu_is_as_close_as_its_sigmoid() -> None:
    x = torch.arange(-8 << N, 8 << N, 3, dtype=torch.int32)
    gelu = shift_gelu(x, N) / 2**N
    sigmoid = x / 2**N * torch.sigmoid(1.702 * x / 2**N)
    # |x| e / (1 + e): e is off by LINEAR at most, the quotient by a quarter of that, where |x| is up to 1.5
    error = (gelu - sigmoid).abs().max().item()
    assert error < 0.25 * (LINEAR + 0.02) * 1.5, f"{error} from x sigmoid(1.702 x)"
    error = (gelu - F.gelu(x / 2**N)).abs().max().item()
    assert 0.005 < error < 0.045, f"{error} from GELU"


@pytest.mark.parametrize("channels", [3, 64, 384])
def test_layer_norm_keeps_fourteen_bits(channels: int) -> None:
    generator = np.random.default_rng(channels)
    x = torch.from_numpy(generator.integers(-32767, 32768, (64, channels))).int()
    x[::2] //= 50  # a stream has quiet tokens too
    centred = x.double() - x.double().mean(-1, keepdim=True)
    norm = centred.square().sum(-1, keepdim=True).sqrt()
    exact = centred / norm
    # the root is a whole number, rounded down or one more, of numbers `channels` times as large
    error = (normalise(x, 1) / 2**15 - exact).abs() - exact.abs() / (channels * norm)
    assert error.max() < 2**-14, f"off by {error.max().item() * 2**15:.2f} of 2^-15"


def test_layer_norm_of_a_constant_row_is_zero_and_of_an_extreme_one_within_its_bound() -> None:
    assert normalise(torch.full((1, 64), 777, dtype=torch.int32), 1).abs().max() <= 1
    one = torch.full((1, 1024), -32767, dtype=torch.int32)
    one[0, 0] = 32767
    half = torch.cat([one[:, 1:513], -one[:, 1:513]], 1)
    for x in (one, -one, half):
        assert normalise(x, 1).abs().max() <= 2**15


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "shiftmax": (lambda x: shiftmax_weights(x, N), (2, 3, 65)),
    "gelu": (lambda x: shift_gelu(x, N), (2, 3, 64)),
    "norm": (lambda x: normalise(x, 5), (2, 3, 64)),
    "norm of many channels": (lambda x: normalise(x, 5), (2, 3, 1536)),
    "rescaling": (lambda x: requantize(x, 255, 129 << 12, 12, 1, 255), (2, 3, 64)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_recorded_functions_equal_computed_ones_within_proven_bounds(name: str) -> None:
    """Every value, between the two, of the extremes of 16 bits and of anything else."""
    function, shape = FUNCTIONS[name]
    recorder = Recorder()
    recorder.layer = name
    x = recorder.input((1, *shape[1:]), torch.int32)
    program = IntegerProgram(recorder, function(x.clamp(-32767, 32767)))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randint(-32767, 32768, shape, generator=generator, dtype=torch.int32)]
    inputs += [torch.full(shape, n, dtype=torch.int32) for n in (-32767, 0, 32767)]
    spike = torch.full(shape, -32767, dtype=torch.int32)
    spike[..., 0] = 32767
    inputs += [spike, -spike, torch.sign(inputs[0]) * 32767, inputs[0] // 3000]
    for ints in inputs:
        values = program.run(ints, keep=range(len(program.steps)))
        assert torch.equal(values[program.result], function(ints))
        for number, value in values.items():
            if program.steps[number].kind in ("input", "constant"):
                continue
            low, high = recorder.values[number].lowest.min(), recorder.values[number].highest.max()
            seen = value.min().item(), value.max().item()
            inside = low <= seen[0] and seen[1] <= high
            assert inside, f"{program.steps[number]}: {seen} outside {low}..{high}"
