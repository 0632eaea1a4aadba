"""Headroom against numbers known beforehand: how large, how small, which steps, which constants."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.arithmetic import HALF_MAX
from pocketvit.targets.coreml.findings import Headroom, State
from pocketvit.targets.coreml.headroom import headroom
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.types import Evidence, plain

from .conftest import save_program

RNG = np.random.default_rng(0)


@pytest.fixture
def audited(tmp_path):
    """audited(build, *arrays): the headroom of a program of x over these arrays, one image each."""

    def audit(build, *arrays, half=False) -> Headroom:
        path = save_program(tmp_path / "op.mlpackage", build, {"x": arrays[0]}, 16, half)
        return headroom(path, [{"x": array} for array in arrays])

    return audit


def test_spread_of_a_result_over_all_images(audited):
    first = np.array([[0.0, 3.0, -5.0, 2.0**-15]], np.float32)
    second = np.array([[0.0, -2000.0, 1e-9, 2.0**-20]], np.float32)
    (op,) = audited(lambda mb, x: mb.abs(x=x, name="size"), first, second).ops
    assert (op.name, op.kind) == ("size", "abs")
    assert op.result.worst == 2000 / HALF_MAX
    assert op.result.smallest == np.float32(1e-9)
    assert op.result.subnormal == 3 / 8  # 2^-15, 2^-20, 1e-9
    assert op.result.flushed == 1 / 8  # 1e-9
    assert op.state is State.FINE


@pytest.mark.parametrize(
    ("largest", "state"), [(32752, State.FINE), (32768, State.TIGHT), (65504, State.TIGHT), (65600, State.OVERFLOWS)]
)
def test_states_by_reach(audited, largest, state):
    x = np.array([[1.0, -largest]], np.float32)
    (op,) = audited(lambda mb, x: mb.abs(x=x, name="size"), x).ops
    assert op.state is state
    assert ("reaches" in op.because) == (state is not State.FINE)


def test_noise_is_what_rounding_changes(audited):
    x = (RNG.standard_normal((4, 50)) * 1e-6).astype(np.float32)
    (op,) = audited(lambda mb, x: mb.abs(x=x, name="size"), x).ops
    held = x.astype(np.float16).astype(np.float64)
    noise = np.sqrt(np.square(held - x).sum() / np.square(x.astype(np.float64)).sum())
    assert op.result.noise == pytest.approx(noise, rel=1e-6)
    assert op.state is State.IMPRECISE
    assert "matter" in op.because


def test_tiny_values_beside_large_ones_do_not_matter(audited):
    x = np.full((1, 100), 1e-6, np.float32)
    x[0, 0] = 1.0
    (op,) = audited(lambda mb, x: mb.abs(x=x, name="size"), x).ops
    assert op.result.subnormal == 0.99
    assert op.state is State.FINE


def test_steps_inside_a_layer_norm(audited):
    x = (RNG.standard_normal((1, 3, 64)) * 100 + 7).astype(np.float32)
    (op,) = audited(lambda mb, x: mb.layer_norm(x=x, axes=[-1], epsilon=1e-3, name="norm"), x).ops
    centred = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    squares = (centred**2).sum(-1).max()
    # 64 float32 additions
    assert op.step("sum of squares") * HALF_MAX == pytest.approx(squares, rel=64 * 2.0**-24)
    assert op.step("centred values") * HALF_MAX == pytest.approx(np.abs(centred).max(), rel=1e-5)
    assert op.result.worst < 1e-3
    assert (op.state, op.because) == (
        State.OVERFLOWS,
        f"its sum of squares reaches {squares / HALF_MAX:.3g} times what fp16 holds",
    )


def test_steps_inside_products_and_softmax(audited):
    x = (RNG.standard_normal((1, 8, 96)) * 30).astype(np.float32)

    def scores(mb, x):
        product = mb.matmul(x=x, y=x, transpose_y=True, name="product")
        return mb.softmax(x=mb.mul(x=product, y=np.float32(1e-3)), name="weights")

    product, scaled, weights = audited(scores, x).ops
    wide = x[0].astype(np.float64)
    # the largest partial sum, after each 32 terms
    partial = [np.abs(wide[:, :end] @ wide[:, :end].T).max() for end in (32, 64, 96)]
    assert product.step("accumulator") * HALF_MAX == pytest.approx(max(partial), rel=1e-5)
    assert product.state is State.OVERFLOWS
    assert scaled.state is State.FINE
    assert 1 <= weights.step("sum of exponentials") * HALF_MAX <= 8


def test_overflow_that_leads_to_the_right_limit_is_no_finding(audited):
    x = np.array([[-80.0, 30.0]], np.float32)
    (op,) = audited(lambda mb, x: mb.silu(x=x, name="y"), x).ops
    assert op.step("exponential of -x") > 1
    assert op.state is State.FINE


def test_dividing_by_too_small_a_number_is_a_finding(audited):
    flat = np.full((1, 2, 16), 0.5, np.float32)

    def norm(epsilon):
        return lambda mb, x: mb.layer_norm(x=x, axes=[-1], epsilon=epsilon, name="norm")

    (op,) = audited(norm(1e-6), flat).ops
    assert op.state is State.IMPRECISE
    assert op.because == "it divides by its variance plus epsilon, which falls to 1.0e-06"


def test_constants_that_do_not_fit(audited):
    x = np.ones((1, 4), np.float32)

    def build(mb, x):
        masked = mb.add(x=x, y=np.array([0, 0, 0, -1e9], np.float32))
        open_ = mb.add(x=masked, y=np.array([0, 0, 0, -np.inf], np.float32))
        rooted = mb.rsqrt(x=open_, epsilon=np.float32(1e-12))
        return mb.mul(x=rooted, y=np.array([1e-8, 3e-8, 2e-8, 1e-8], np.float32), name="y")

    found = {constant.because: constant for constant in audited(build, x).constants}
    assert set(found) >= {"it reaches 1.53e+04 times 65504", "it holds infinities", "1.0e-12 becomes 0"}
    assert {c.state for c in found.values() if c.spread.worst > 1} == {State.OVERFLOWS}
    assert any("rounding moves it by" in because and c.elements == 4 for because, c in found.items())


def test_a_mixed_package_is_judged_where_it_stores_fp16(tmp_path):
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS16)
    def program(x):
        large = mb.mul(x=x, y=np.float32(1e6), name="large")
        return mb.relu(x=mb.mul(x=large, y=np.float32(1e-6), name="back"), name="end")

    keep = ct.transform.FP16ComputePrecision(op_selector=lambda op: op.name == "end" or op.op_type == "relu")
    path = tmp_path / "mixed.mlpackage"
    ct.convert(
        program,
        convert_to="mlprogram",
        compute_precision=keep,
        minimum_deployment_target=ct.target.iOS16,
        pass_pipeline=ct.PassPipeline.DEFAULT,
        skip_model_load=True,
    ).save(str(path))
    found = headroom(path, [{"x": np.ones((1, 4), np.float32)}])
    kinds = {op.kind for op in found.ops}
    assert "relu" in kinds
    assert "mul" not in kinds, "float32 on purpose"
    assert not found.of(State.OVERFLOWS)


def test_the_result_says_what_it_is_and_fits_json(audited):
    x = np.array([[1e5, np.inf]], np.float32)
    found = audited(lambda mb, x: mb.abs(x=x, name="size"), x)
    assert found.evidence is Evidence.INTERPRETED
    assert found.sentence == "1 operations on 1 images: 1 overflows"
    read = json.loads(json.dumps(plain(found)))
    assert read["ops"][0]["result"]["worst"] == "inf"
    assert read["ops"][0]["because"] == "its result is infinite"


def test_refusals(tmp_path):
    path = save_program(tmp_path / "op.mlpackage", lambda mb, x: mb.abs(x=x), {"x": np.ones((1, 2), np.float32)}, 16)
    with pytest.raises(BadInput, match="needs at least one image"):
        headroom(path, [])
    with pytest.raises(BadInput, match="fp32 arithmetic, not in fp16"):
        headroom(Interpreter(path, "fp16"), [{"x": np.ones((1, 2), np.float32)}])
