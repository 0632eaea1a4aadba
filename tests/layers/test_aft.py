"""AFT against the loops of the paper's equations, in float64 where a wrong formula cannot hide behind rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pocketvit.errors import BadInput
from pocketvit.layers.mixers import AFTConv, AFTFull, AFTLocal, AFTSimple, TokenMixer

DIM, GRID = 6, (3, 5)
H, W = GRID
TOKENS = H * W
VARIANTS = {
    "simple": lambda: AFTSimple(DIM, GRID),
    "full": lambda: AFTFull(DIM, GRID, rank=4),
    "full, free bias": lambda: AFTFull(DIM, GRID, rank=None),
    "local": lambda: AFTLocal(DIM, GRID, window=2, rank=4),
    "local, free bias": lambda: AFTLocal(DIM, GRID, window=3, rank=None),
    "conv, a key per channel": lambda: AFTConv(DIM, GRID, heads=DIM, kernel=3),
    "conv, shared keys": lambda: AFTConv(DIM, GRID, heads=2, kernel=5),
    "conv, one head": lambda: AFTConv(DIM, GRID, heads=1, kernel=7),
}
FUSED = [name for name in VARIANTS if name != "simple"]


def _mixer(name: str, bias: float = 1.0) -> TokenMixer:
    """A mixer with position biases of about `bias`, as training leaves them: none zero, none equal."""
    torch.manual_seed(sum(map(ord, name)))
    mixer = VARIANTS[name]().eval()
    with torch.no_grad():
        for part, value in mixer.named_parameters():
            if part in mixer.no_weight_decay():
                value.normal_(std=bias if part in ("gain", "shift") or "free" in name else bias**0.5)
    return mixer


def _projected(mixer: TokenMixer, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """The queries, keys and values of one image, float64."""
    weight, bias = (p.detach().double().numpy() for p in (mixer.qkv.weight, mixer.qkv.bias))
    all_three = x @ weight.T + bias
    return all_three[:, :DIM], all_three[:, DIM:-DIM], all_three[:, -DIM:]


def _bias(mixer: TokenMixer, name: str, channel: int) -> np.ndarray:
    """w[t, t'] of one channel, written out from the definitions of section 3."""
    values = {name: p.detach().double().numpy() for name, p in mixer.named_parameters()}
    w = np.zeros((TOKENS, TOKENS))
    for t in range(TOKENS):
        for other in range(TOKENS):
            rows, columns = other // W - t // W, other % W - t % W
            if isinstance(mixer, AFTConv):
                head, reach = channel % mixer.keys, values["w"].shape[-1] // 2
                if abs(rows) <= reach and abs(columns) <= reach:
                    raw = values["w"][head, 0]
                    normal = (raw - raw.mean()) / raw.std()
                    w[t, other] = (
                        values["gain"][head, 0, 0, 0] * normal[rows + reach, columns + reach]
                        + values["shift"][head, 0, 0, 0]
                    )
            elif isinstance(mixer, AFTFull):
                window = {"local": 2, "local, free bias": 3}.get(name, 99)
                if abs(rows) < window and abs(columns) < window:
                    w[t, other] = values["u"][t] @ values["v"][other] if "u" in values else values["w"][t, other]
    return w


def _loops(mixer: TokenMixer, name: str, x: np.ndarray) -> np.ndarray:
    """Equation 2 for one image: every output channel of every token by itself."""
    q, k, v = _projected(mixer, x)
    y = np.zeros((TOKENS, DIM))
    for c in range(DIM):
        w, key = _bias(mixer, name, c), k[:, c % k.shape[1]]
        for t in range(TOKENS):
            exponent = key + w[t]
            weight = np.exp(exponent - exponent.max())
            y[t, c] = (weight * v[:, c]).sum() / weight.sum() / (1 + np.exp(-q[t, c]))
    return y @ mixer.proj.weight.detach().double().numpy().T + mixer.proj.bias.detach().double().numpy()


def _apart(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(found.detach().double().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", VARIANTS)
def test_aft_is_the_loops_of_its_equations(name: str) -> None:
    mixer = _mixer(name)
    x = torch.randn(2, TOKENS, DIM)
    expected = np.stack([_loops(mixer, name, image) for image in x.double().numpy()])
    # float32 and the subtraction in exp(w) - 1, which magnifies rounding by exp(-min w)
    least = min(0.0, float(mixer.position_bias().min())) if name != "simple" else 0.0
    single, double = _apart(mixer(x), expected), _apart(mixer.double()(x.double()), expected)
    print(f"{name}: {single:.1e} in float32, {double:.1e} in float64, least bias {least:.1f}")
    assert single < 1e-6 * np.exp(-least), f"{single:.1e} of the largest value"
    assert double < 1e-14 * np.exp(-least), f"{double:.1e} of the largest value"


@pytest.mark.parametrize("name", FUSED)
def test_position_biases_matter(name: str) -> None:
    mixer = _mixer(name)
    x = torch.randn(1, TOKENS, DIM)
    with torch.no_grad():
        before = mixer(x)
        for part in mixer.no_weight_decay():
            if getattr(mixer, part) is not None:
                getattr(mixer, part).zero_()
        mixer.w = nn.Parameter(torch.randn_like(mixer.w)) if isinstance(mixer, AFTConv) else mixer.w  # keep a spread
    apart = float((mixer(x) - before).abs().max())
    assert apart > 1e-3, f"without its position bias {name} moves by {apart:.1e} only"


@pytest.mark.parametrize("name", VARIANTS)
def test_large_keys_neither_overflow_nor_vanish(name: str) -> None:
    mixer = _mixer(name)
    x = torch.randn(1, TOKENS, DIM)
    with torch.no_grad():
        keys = slice(DIM, -DIM)
        mixer.qkv.bias[keys] = 0
        mixer.qkv.weight[keys] *= 1e3 / (x @ mixer.qkv.weight[keys].T).abs().max()
    k = mixer.qkv(x)[..., keys]
    assert 999 < float(k.detach().abs().max()) < 1001
    with pytest.raises(FloatingPointError), np.errstate(over="raise"):
        np.exp(k.detach().numpy())  # what the equation as it stands would do
    y = mixer(x)
    y.square().sum().backward()
    for what, tensor in [("output", y), *((n, p.grad) for n, p in mixer.named_parameters())]:
        assert tensor.isfinite().all(), (
            f"{name}: {what} has {int((~tensor.isfinite()).sum())} values that are not finite"
        )
    # Keys are of size 1000, so float32 holds them to 3e-5, and as much is how far the weights may be off.
    apart = _apart(y, _loops(mixer, name, x[0].double().numpy())[None])
    assert apart < 20 * 3e-5, f"{name}: {apart:.1e} from the loops"


@pytest.mark.parametrize("shift", [-5.0, -30.0, -200.0])
def test_sums_that_cancel_leave_something(shift: float) -> None:
    """All within the kernel is suppressed by exp(shift), and next to nothing is outside."""
    mixer = _mixer("conv, one head")
    x = torch.randn(1, TOKENS, DIM)
    with torch.no_grad():
        mixer.gain.zero_()
        mixer.shift.fill_(shift)
        mixer.qkv.weight[DIM] *= 500
    y = mixer(x)
    y.sum().backward()
    assert y.isfinite().all(), f"{int((~y.isfinite()).sum())} values are not finite at a bias of {shift}"
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
    if shift > -6:
        apart = _apart(y, _loops(mixer, "conv, one head", x[0].double().numpy())[None])
        assert apart < 1e-6 * np.exp(-shift), f"{apart:.1e} from the loops"


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients(name: str) -> None:
    mixer = _mixer(name).double()
    parameters = dict(mixer.named_parameters())
    x = torch.randn(1, TOKENS, DIM, dtype=torch.float64, requires_grad=True)
    values = [p.detach().requires_grad_() for p in parameters.values()]

    def output(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(mixer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(output, (x, *values), fast_mode=True)


@pytest.mark.parametrize("name", FUSED)
def test_fuse_changes_nothing_but_the_parameters(name: str) -> None:
    mixer = _mixer(name)
    x = torch.randn(2, TOKENS, DIM)
    with torch.no_grad():
        before, kept = mixer(x), x.clone()
        once = mixer.fuse()(x)
        twice = mixer.fuse()(x)
    assert torch.equal(once, before)
    assert torch.equal(twice, before)
    assert torch.equal(x, kept), "the caller's tensor was edited"
    assert {n.split(".")[0] for n, _ in mixer.named_parameters()} == {"qkv", "proj"}
    with pytest.raises(BadInput, match="fused"):
        mixer.position_bias()


def test_aft_conv_begins_as_aft_simple() -> None:
    """Gain and shift are 0 at first (equation 8), so all biases are."""
    conv, simple = AFTConv(DIM, GRID, heads=DIM, kernel=3), AFTSimple(DIM, GRID)
    simple.load_state_dict({n: p for n, p in conv.state_dict().items() if n.startswith(("qkv", "proj"))})
    x = torch.randn(2, TOKENS, DIM)
    torch.testing.assert_close(conv(x), simple(x), rtol=1e-5, atol=1e-6)


def test_a_grid_of_one_row_is_the_papers_sequence() -> None:
    """|t - t'| < s (equation 4), and 1 on the diagonal only where s is 1."""
    for window in (1, 3):
        mixer = AFTLocal(DIM, (1, 7), window=window, rank=None)
        distance = (torch.arange(7)[:, None] - torch.arange(7)).abs()
        assert torch.equal(mixer.position_bias() != 0, distance < window)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AFTConv(6, GRID, heads=4), "6 channels do not divide into 4 heads"),
        (lambda: AFTConv(6, GRID, heads=3, kernel=4), "odd"),
        (lambda: AFTFull(6, GRID, rank=0), "at least 1"),
        (lambda: AFTLocal(6, GRID, window=0), "AFT-simple"),
        (lambda: AFTSimple(6, (0, 4)), "at least one"),
        (lambda: AFTSimple(6, GRID)(torch.zeros(1, 16, 6)), "built for a 3x5 grid"),
        (lambda: AFTSimple(6, GRID)(torch.zeros(1, 15, 8)), "with 6 channels"),
        (lambda: AFTSimple(6, GRID)(torch.zeros(1, 15, 6), is_causal=True), "no attention to mask"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make()
