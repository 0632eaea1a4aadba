"""Arithmetic with every step rounded: cases whose answer follows by hand, and agreement where nothing is extreme."""

from __future__ import annotations

import math

import pytest
import torch

from pocketvit.targets.coreml.half import STEPWISE
from pocketvit.targets.coreml.ops import OPS, parameters

HALF_UNIT = 2.0**-11  # rounding to fp16 changes a number of normal size by at most this share


def stepwise(kind, *args, **kwargs):
    names = list(parameters(STEPWISE[kind]))
    return STEPWISE[kind](**dict(zip(names, args, strict=False)), **kwargs).half().float()


@pytest.mark.parametrize("kind", sorted(STEPWISE))
def test_parameters_are_those_of_the_plain_operation(kind):
    plain = {name: p for name, p in parameters(OPS.get(kind)).items() if name not in ("opset", "outputs")}
    assert dict(parameters(STEPWISE[kind])) == plain


def test_layer_norm_gives_zero_when_squares_overflow():
    x = torch.tensor([[300.0, -300.0] * 4])
    # 300 squared is 90000: infinite, its reciprocal root 0
    assert torch.equal(stepwise("layer_norm", x, (-1,)), torch.zeros(1, 8))
    assert torch.equal(OPS.get("layer_norm")(x, (-1,)).sign(), x.sign())


def test_layer_norm_overflows_only_when_the_sum_does():
    x = torch.tensor([[200.0, -200.0]])
    # 40000 + 40000 overflows; 160 squared twice is 51200 and fits
    assert torch.equal(stepwise("layer_norm", x, (-1,)), torch.zeros(1, 2))
    assert torch.equal(stepwise("layer_norm", x * 0.8, (-1,)), torch.tensor([[1.0, -1.0]]))


def test_layer_norm_of_a_constant_row_needs_an_epsilon_that_fp16_holds():
    x = torch.full((1, 8), 3.0)
    assert torch.equal(stepwise("layer_norm", x, (-1,), epsilon=1e-5), torch.zeros(1, 8))
    # 1e-8 is nearer to 0 than to 2^-24: the root of 0 has no reciprocal
    assert bool(stepwise("layer_norm", x, (-1,), epsilon=1e-8).isnan().all())


def test_softmax_is_not_moved_by_a_large_shift():
    x = torch.tensor([[1.0, 2.0, 4.0, -3.0]])
    # 30000 and its neighbours are multiples of 16 in fp16, so these shifts are exact
    assert torch.equal(stepwise("softmax", x * 16 + 30000), stepwise("softmax", x * 16))


def test_softmax_of_infinite_scores_is_undefined():
    assert bool(stepwise("softmax", torch.tensor([[math.inf, math.inf, 0.0]])).isnan().any())


@pytest.mark.parametrize("terms", [4064, 4096])
def test_dot_product_overflows_exactly_when_its_accumulator_does(terms):
    # 4096 products of 16 make 65536, which fp16 rounds to infinity; 4064 make 65024, a multiple of 32, exact
    x = torch.ones(1, terms)
    expected = 65024.0 if terms == 4064 else math.inf
    assert stepwise("linear", x, 16 * x).item() == expected
    assert stepwise("matmul", x, 16 * x, transpose_y=True).item() == expected
    assert stepwise("conv", x[..., None, None], 16 * x[..., None, None]).item() == expected
    assert stepwise("reduce_sum", 16 * x).item() == expected


def test_an_accumulator_that_overflows_on_the_way_stays_infinite():
    x = torch.cat([torch.full((1, 64), 2000.0), torch.full((1, 64), -2000.0)], -1)
    assert stepwise("linear", x, torch.ones(1, 128)).item() == math.inf
    assert OPS.get("linear")(x, torch.ones(1, 128)).item() == 0


def test_small_terms_are_lost_beside_a_large_accumulator():
    # between 2048 and 4096 fp16 counts in twos: a block of 32 terms of 1/64 adds a half, which is rounded away
    x = torch.cat([torch.full((1, 32), 128.0), torch.full((1, 3200), 1 / 64)], -1)
    assert stepwise("reduce_sum", x, (-1,)).item() == 4096
    assert OPS.get("reduce_sum")(x, (-1,)).item() == 4096 + 50


def test_average_of_a_large_window_overflows_in_its_sum():
    x = torch.full((1, 2, 16, 16), 300.0)
    assert torch.equal(stepwise("avg_pool", x, (16, 16)), torch.full((1, 2, 1, 1), math.inf))
    assert torch.equal(stepwise("avg_pool", x / 2, (16, 16)), torch.full((1, 2, 1, 1), 150.0))


def test_attention_overflows_before_its_scale():
    q = torch.full((1, 1, 2, 64), 40.0)
    # 64 * 1600 is 102400; scaled by 1/8 afterwards it is too late
    assert bool(stepwise("scaled_dot_product_attention", q, q, q).isnan().all())
    assert torch.equal(stepwise("scaled_dot_product_attention", q / 8, q, q), q)


def test_steps_that_overflow_towards_the_right_limit():
    x = torch.tensor([60.0, -60.0])
    assert torch.equal(stepwise("sigmoid", x), torch.tensor([1.0, 0.0]))
    assert torch.equal(stepwise("silu", x), torch.tensor([60.0, 0.0]))
    assert torch.equal(stepwise("gelu", x, "TANH_APPROXIMATION"), torch.tensor([60.0, 0.0]))
    # log(1 + exp(60)) does not: the definition overflows
    assert stepwise("softplus", x)[0].item() == math.inf


def test_difference_of_nearly_equal_numbers_loses_its_digits():
    # erf(-2.83) is -0.99993: one plus that is 0 in steps of 2^-11
    assert stepwise("gelu", torch.tensor([-4.0])).item() == 0
    assert OPS.get("gelu")(torch.tensor([-4.0])).item() < -1e-4


def _random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


_x = _random(2, 48, 9, 10)
_channels = {"gamma": 1 + 0.1 * _random(48, seed=1), "beta": 0.1 * _random(48, seed=2)}
# kind -> arguments, several per operation where they take different ways
BENIGN = {
    "softmax": [{"x": _x, "axis": 1}, {"x": _x}],
    "layer_norm": [{"x": _x}, {"x": _x, "axes": (1,), **_channels}, {"x": _x, "axes": (-1, -2), "epsilon": 1e-3}],
    "instance_norm": [{"x": _x, **_channels}, {"x": _x}],
    "batch_norm": [{"x": _x, "mean": _random(48, seed=3), "variance": 0.5 + _random(48, seed=4).abs(), **_channels}],
    "l2_norm": [{"x": _x * 0.1}],
    "local_response_norm": [{"x": _x, "size": 4, "alpha": 0.5}, {"x": _x, "size": 5, "k": 2.0}],
    "reduce_sum": [{"x": _x.abs(), "axes": (1,), "keep_dims": True}, {"x": _x.abs(), "axes": (-1, 1)}],
    "reduce_mean": [{"x": _x.abs()}, {"x": _x.abs(), "axes": (2, 3), "keep_dims": True}],
    "reduce_sum_square": [{"x": _x, "axes": (1, 2)}],
    "reduce_l1_norm": [{"x": _x, "axes": (1, 2)}],
    "reduce_l2_norm": [{"x": _x, "axes": (1, 2)}],
    "reduce_log_sum": [{"x": _x.abs() + 1, "axes": (1,)}],
    "reduce_log_sum_exp": [{"x": _x, "axes": (1,)}, {"x": _x, "axes": (-1, -2), "keep_dims": True}],
    "sigmoid": [{"x": _x}],
    "silu": [{"x": _x}],
    "gelu": [{"x": _x, "mode": mode} for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")],
    "softplus": [{"x": _x}],
    "softplus_parametric": [{"x": _x, "alpha": _random(48, seed=5), "beta": _random(48, seed=6)}],
    "elu": [{"x": _x, "alpha": 0.7}],
    "rsqrt": [{"x": _x.abs() + 0.1, "epsilon": 0.01}],
    "inverse": [{"x": _x.abs() + 0.1}],
    "log": [{"x": _x.abs() + 1.5}],
    "linear": [{"x": _random(2, 7, 100), "weight": _random(5, 100, seed=1), "bias": _random(5)}],
    "matmul": [
        {"x": _random(2, 3, 7, 70), "y": _random(3, 70, 4)},
        {"x": _random(2, 70, 7), "y": _random(2, 4, 70), "transpose_x": True, "transpose_y": True},
        {"x": _random(70), "y": _random(70, 4)},
        {"x": _random(4, 70), "y": _random(70)},
    ],
    "einsum": [
        {"values": (_random(2, 3, 4, 40), _random(2, 40, 4, 5)), "equation": "nchw,nwhu->nchu"},
        {"values": (_random(3, 4, 40), _random(40, 4, 5)), "equation": "chw,whr->chr"},
    ],
    "scaled_dot_product_attention": [
        {"query": _random(2, 3, 40), "key": _random(2, 50, 40, seed=1), "value": _random(2, 50, 8)},
        {"query": _random(2, 3, 40), "key": _random(2, 50, 40, seed=1), "value": _random(2, 50, 8),
         "attn_mask": _random(3, 50)},
        {"query": _random(2, 3, 40), "key": _random(2, 50, 40, seed=1), "value": _random(2, 50, 8),
         "attn_mask": torch.arange(50) % 3 > 0},
    ],
    "conv": [
        {"x": _x, "weight": _random(6, 48, 3, 3, seed=1), "bias": _random(6), "strides": (2, 1), "pad_type": "same"},
        {"x": _x, "weight": _random(8, 12, 3, 2), "groups": 4, "dilations": (2, 1), "pad_type": "custom",
         "pad": (1, 0, 2, 3)},
        {"x": _x, "weight": _random(48, 1, 7, 7), "groups": 48},
        {"x": _random(1, 3, 40), "weight": _random(5, 3, 35)},
        {"x": _random(1, 3, 4, 5, 6), "weight": _random(5, 3, 2, 3, 3), "pad_type": "same_lower"},
    ],
    "conv_transpose": [
        {"x": _x, "weight": _random(48, 3, 3, 3), "strides": (2, 2), "bias": _random(3)},
        {"x": _x, "weight": _random(48, 2, 6, 7), "groups": 4, "pad_type": "custom", "pad": (1, 1, 0, 2)},
    ],
    "avg_pool": [
        {"x": _x, "kernel_sizes": (9, 10)},
        {"x": _x, "kernel_sizes": (3, 2), "strides": (2, 2), "pad_type": "same"},
        {"x": _x, "kernel_sizes": (6, 7), "strides": (2, 1), "pad_type": "custom", "pad": (1, 2, 3, 0),
         "exclude_padding_from_average": True},
        {"x": _x, "kernel_sizes": (4, 4), "strides": (3, 3), "pad_type": "custom", "pad": (1, 1, 1, 1),
         "ceil_mode": True},
        {"x": _random(1, 2, 50), "kernel_sizes": (40,)},
    ],
}  # fmt: skip


def _all_benign():
    return [pytest.param(kind, i, id=f"{kind}-{i}") for kind, cases in BENIGN.items() for i in range(len(cases))]


def _plain(kind, arguments):
    extra = {}
    if "outputs" in parameters(OPS.get(kind)):
        from pocketvit.targets.coreml.values import Dtype, TensorType

        extra = {"outputs": (TensorType(Dtype.FP16, ()),)}
    return OPS.get(kind)(**arguments, **extra)


def test_every_operation_has_a_benign_case():
    assert BENIGN.keys() == STEPWISE.keys()


@pytest.mark.parametrize(("kind", "i"), _all_benign())
def test_steps_agree_with_the_plain_operation_on_benign_numbers(kind, i):
    arguments = BENIGN[kind][i]
    expected, found = _plain(kind, arguments), STEPWISE[kind](**arguments)
    assert found.shape == expected.shape
    # no more than 16 roundings follow one another here (of accumulators after 32 terms each, or of steps), each by at
    # most half a unit of a value no larger than the result's largest
    error = float((found - expected).abs().max()) / float(expected.abs().max()) / HALF_UNIT
    assert error <= 16, f"{kind}: {error:.1f} half units from the plain result"
    assert error > 0, "not one step was rounded"


@pytest.mark.parametrize(("kind", "i"), _all_benign())
def test_steps_run_dry_and_leave_their_arguments_alone(kind, i):
    def on_meta(value):
        if isinstance(value, tuple):
            return tuple(on_meta(item) for item in value)
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    arguments = BENIGN[kind][i]
    before = {name: a.clone() for name, a in arguments.items() if isinstance(a, torch.Tensor)}
    real = STEPWISE[kind](**arguments)
    dry = STEPWISE[kind](**{name: on_meta(value) for name, value in arguments.items()})
    assert dry.is_meta
    assert dry.shape == real.shape
    assert all(torch.equal(arguments[name], value) for name, value in before.items())
