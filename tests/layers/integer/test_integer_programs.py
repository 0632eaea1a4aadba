"""What a recorded program proves: that nothing overflows, and that each step means the same everywhere."""

from __future__ import annotations

import pytest
import torch

from pocketvit.errors import CheckFailed
from pocketvit.layers.integer import IntegerProgram, Recorder, Site, product, requantize, rescale_product

EIGHT = Site(name="out")


def _input(*shape: int) -> tuple[Recorder, object]:
    recorder = Recorder()
    recorder.layer = "blocks.3.mlp.fc1"
    return recorder, recorder.input((1, *shape), torch.uint8)


def test_a_sum_that_may_overflow_is_refused_by_the_name_of_its_layer() -> None:
    recorder, x = _input(140_000)
    weight = recorder.value(torch.full((140_000, 1), 127), torch.int8)
    sums = product(x, weight, 128)
    with pytest.raises(CheckFailed, match=r"blocks\.3\.mlp\.fc1 .*-2275840000.*int32"):
        sums + 1
    with pytest.raises(CheckFailed, match=r"blocks\.3\.mlp\.fc1"):
        IntegerProgram(recorder, sums)


def test_the_bound_of_a_product_is_the_most_that_an_input_can_reach() -> None:
    recorder, x = _input(300)
    weight = torch.randint(-127, 128, (300, 5), generator=torch.Generator().manual_seed(0))
    sums = product(x, recorder.value(weight, torch.int8), 128)
    program = IntegerProgram(recorder, sums)
    for channel in range(5):
        worst = torch.where(weight[:, channel] > 0, 255, 0).to(torch.uint8)[None]
        assert program(worst)[0, channel].item() == sums.highest[channel]
        assert program(255 - worst)[0, channel].item() == sums.lowest[channel]


def test_divisions_and_shifts_of_what_may_be_negative_are_refused() -> None:
    _recorder, x = _input(4)
    signed = x.to(torch.int32) - 128
    for operation in (lambda: signed >> 3, lambda: signed // 3, lambda: (signed + 128) // signed):
        with pytest.raises(CheckFailed, match="not to be negative"):
            operation()
    with pytest.raises(CheckFailed, match="less than 32 bits"):
        (signed + 128) >> (signed + 128)


def test_rescaling_fits_int32_for_the_worst_input_and_is_exact_to_half_a_step() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 96, generator=generator) * torch.logspace(-2, 1, 40)[:, None]
    weight[7] = 0
    bias = torch.randn(40, generator=generator)
    scale_out = torch.full((40,), 0.3, dtype=torch.float64)
    scale, rescaling = rescale_product("layer", weight, bias, 0.02, scale_out, EIGHT)
    ints = (weight / scale[:, None]).round()
    assert ints.abs().max() <= 127
    x = torch.randint(-127, 128, (500, 96), generator=generator)
    worst = torch.cat([ints.sign() * 128, -ints.sign() * 128]).long()
    for given in (x, worst):
        wide = (given @ ints.long().T) * rescaling.multiplier.long() + rescaling.offset.long()
        assert wide.abs().max() < 2**31, f"{wide.abs().max()} does not fit int32"
    sums = (x @ ints.long().T).int()
    found = requantize(sums, rescaling.multiplier, rescaling.offset, rescaling.shift, 1, 255) - 128
    exact = ((x * 0.02).double() @ (ints * scale[:, None]).T + bias) / 0.3
    # half a step of rounding, and what float64 and the offset's own last bit may move
    error = (found - exact.clamp(-127, 127)).abs().max().item()
    assert error <= 0.5 + 2**-rescaling.shift + 1e-6, f"{error} steps"


def test_a_layer_too_large_for_int32_is_refused_by_name() -> None:
    with pytest.raises(CheckFailed, match=r"head\.huge .*300000 products.*int32"):
        rescale_product("head.huge", torch.ones(2, 300_000), None, 0.1, torch.full((2,), 100.0), EIGHT)


def test_numbers_too_large_for_a_power_of_two_are_refused() -> None:
    with pytest.raises(CheckFailed, match=r"fc1 reaches 2e\+04"):
        Site(name="fc1", bits=16, power=True).fraction(2e4)
