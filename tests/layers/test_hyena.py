"""Hyena against its definition, written out; its three forms against each other and against what they should cost."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pocketvit.errors import BadInput
from pocketvit.layers.mixers import Form, Hyena
from pocketvit.layers.mixers.hyena import ImplicitFilter
from pocketvit.layers.mixers.long_convolution import LongConvolution, fourier_matrices
from pocketvit.measure.cost import count

DIM = 8
GRIDS = [(3, 5), (7, 4), (1, 9), (14, 14)]
ORDERS = [2, 3]


def _hyena(grid: tuple[int, int], *, order: int = 2, form: Form = Form.FFT) -> Hyena:
    """The same weights for every form, with frequencies as training leaves them: not all equal."""
    torch.manual_seed(7)
    mixer = Hyena(DIM, grid, order=order, form=form, width=16, bands=3).eval()
    with torch.no_grad():
        for name, value in mixer.named_parameters():
            if "frequency" in name:
                value.uniform_(0.5, 3)
    return mixer


def _tokens(grid: tuple[int, int], batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, math.prod(grid), DIM, generator=torch.Generator().manual_seed(1))


def _convolved(z: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Sum over every pair of places: (C, H, W) by filters (C, 2H - 1, 2W - 1)."""
    _, H, W = z.shape
    y = np.zeros_like(z)
    for i in range(H):
        for j in range(W):
            for m in range(H):
                for n in range(W):
                    y[:, i, j] += h[:, i - m + H - 1, j - n + W - 1] * z[:, m, n]
    return y


@pytest.mark.parametrize("grid", [(3, 5), (6, 4), (1, 7)])
@pytest.mark.parametrize("form", Form)
def test_long_convolution_is_the_sum_over_all_pairs_of_places(form: Form, grid: tuple[int, int]) -> None:
    H, W = grid
    z, h = torch.randn(2, DIM, H, W), torch.randn(DIM, 2 * H - 1, 2 * W - 1)
    convolution = LongConvolution(grid, form)
    found = convolution(z, convolution.prepare(h)).numpy()
    expected = np.stack([_convolved(image, h.double().numpy()) for image in z.double().numpy()])
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    assert apart < 1e-6, f"{form} on {grid} is {apart:.1e} from the sum"


@pytest.mark.parametrize("side", [1, 2, 5, 14, 28])
def test_fourier_matrices_convolve_exactly(side: int) -> None:
    into, through, back = fourier_matrices(side)
    z, h = torch.randn(side, dtype=torch.float64), torch.randn(2 * side - 1, dtype=torch.float64)
    toeplitz = h[torch.arange(side)[:, None] - torch.arange(side) + side - 1]
    apart = float((back @ ((into @ z) * (through @ h)) - toeplitz @ z).abs().max())
    assert apart < 1e-12, f"{apart:.1e} apart for {side} places"
    assert len(into) == 3 * side - 2


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_all_forms_and_the_fused_ones_are_equal(grid: tuple[int, int], order: int) -> None:
    x = _tokens(grid)
    with torch.no_grad():
        found = {form.value: _hyena(grid, order=order, form=form)(x) for form in Form}
        for form in Form:
            fused = _hyena(grid, order=order, form=form).fuse()
            assert fused.convolve.form == (Form.DIRECT if form is Form.DIRECT else Form.MATMUL)
            found[f"{form} fused"] = fused(x)
    size = float(found["fft"].abs().max())
    apart = {name: float((y - found["fft"]).abs().max()) for name, y in found.items()}
    print(f"{grid}, order {order}: {apart}, of values up to {size:.2f}")
    assert max(apart.values()) < 1e-5 * size, f"{apart} of {size:.2f}"


def _filters(mixer: Hyena) -> np.ndarray:
    """Equation 7 offset by offset: (count, C, P, Q)."""
    H, W = mixer.grid
    network = [part for part in mixer.filter.network if isinstance(part, nn.Linear)]
    frequencies = [v.detach().double().numpy() for n, v in mixer.filter.named_parameters() if "frequency" in n]
    weights = [p.weight.detach().double().numpy() for p in network]
    biases = [p.bias.detach().double().numpy() for p in network[:-1]]
    bands = (weights[0].shape[1] - 2) // 4
    rates = np.linspace(math.log(100) / 1.5, math.log(100) / 0.3, DIM)
    h = np.zeros((mixer.order - 1, DIM, 2 * H - 1, 2 * W - 1))
    for row in range(1 - H, H):
        for column in range(1 - W, W):
            t = np.array([row / H, column / W])
            waves = [math.pi * band * axis for axis in t for band in range(1, bands + 1)]
            value = np.concatenate([t, np.cos(waves), np.sin(waves)])
            for weight, bias, frequency in zip(weights, biases, frequencies, strict=False):
                value = np.sin(frequency * (weight @ value + bias))
            drawn = (weights[-1] @ value).reshape(-1, DIM)
            h[:, :, row + H - 1, column + W - 1] = drawn * np.exp(-rates * np.hypot(*t))
    h[:, :, H - 1, W - 1] += mixer.filter.skip.detach().double().numpy()
    return h


@pytest.mark.parametrize("order", ORDERS)
def test_hyena_is_its_definition_written_out(order: int) -> None:
    """Definition 3.1, where the short convolution of the projections stands for the first filter."""
    grid = H, W = (3, 4)
    mixer, x = _hyena(grid, order=order), _tokens(grid, 1)
    wide = x[0].double().numpy() @ mixer.projections.weight.detach().double().numpy().T
    wide = (wide + mixer.projections.bias.detach().double().numpy()).T.reshape(-1, H, W)
    kernel, bias = mixer.short.weight.detach().double().numpy()[:, 0], mixer.short.bias.detach().double().numpy()
    padded = np.pad(wide, ((0, 0), (1, 1), (1, 1)))
    short = np.zeros_like(wide)
    for i in range(H):
        for j in range(W):
            short[:, i, j] = (padded[:, i : i + 3, j : j + 3] * kernel).sum(axis=(1, 2)) + bias
    *gates, value = short.reshape(order + 1, DIM, H, W)
    z = gates[0] * value
    for gate, h in zip(gates[1:], _filters(mixer), strict=True):
        z = gate * _convolved(z, h)
    expected = z.reshape(DIM, -1).T @ mixer.proj.weight.detach().double().numpy().T
    expected = expected + mixer.proj.bias.detach().double().numpy()
    apart = np.abs(mixer(x)[0].detach().numpy() - expected).max() / np.abs(expected).max()
    assert apart < 2e-6, f"{apart:.1e} of the largest value"


def test_every_token_reaches_every_other() -> None:
    """In both directions: images have no past."""
    grid = (4, 4)
    x = _tokens(grid, 1).requires_grad_()
    for at in (0, 15):
        (gradient,) = torch.autograd.grad(_hyena(grid)(x)[0, at].square().sum(), x)
        reach = gradient[0].abs().amax(dim=-1)
        assert (reach > 0).all(), f"token {at} does not see tokens {(reach == 0).nonzero().flatten().tolist()}"


def test_filters_belong_to_offsets_as_fractions_of_the_grid() -> None:
    """So the same parameters serve every image size, and a filter twice as fine has the coarse one's values."""
    coarse, fine = _hyena((4, 3)), _hyena((8, 6))
    fine.load_state_dict(coarse.state_dict())
    torch.testing.assert_close(fine.filter()[..., 1::2, 1::2], coarse.filter(), rtol=1e-5, atol=1e-6)


def test_fuse_leaves_one_constant_per_filter_and_no_fft() -> None:
    mixer = _hyena((7, 4), order=3)
    x = _tokens((7, 4))
    with torch.no_grad():
        before, kept = mixer(x), x.clone()
        once = mixer.fuse()(x)
        assert torch.equal(mixer.fuse()(x), once)
    assert torch.equal(x, kept), "the caller's tensor was edited"
    torch.testing.assert_close(once, before, rtol=1e-5, atol=1e-5)
    assert {name.split(".")[0] for name, _ in mixer.named_parameters()} == {"projections", "short", "proj"}
    program = torch.export.export(mixer, (x,))
    assert not [node for node in program.graph.nodes if "fft" in str(node.target)]
    assert not mixer.no_weight_decay()


def test_no_initialisation_of_a_model_flattens_the_filters() -> None:
    """timm draws all linear layers with a deviation of 0.02; the hook it then calls gives the filters theirs back."""
    mixer = _hyena((5, 5))
    for part in mixer.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
    flat = float((mixer.filter() - mixer.filter.skip[:, :, None, None] * mixer.filter.here).std())
    mixer.filter.init_weights()
    restored = float((mixer.filter() - mixer.filter.skip[:, :, None, None] * mixer.filter.here).std())
    assert restored > 10 * flat, f"deviation of the filters {restored:.1e}, {flat:.1e} before"


@pytest.mark.parametrize("form", Form)
def test_mixed_and_half_precision(form: Form) -> None:
    grid = (4, 4)
    mixer, x = _hyena(grid, form=form), _tokens(grid)
    exact = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mixer(x)
    mixed.float().sum().backward()
    with torch.no_grad():
        half = mixer.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    for name, y in (("mixed", mixed), ("half", half)):
        apart = float((y.float() - exact).norm() / exact.norm())
        assert apart < 0.05, f"{name} precision: {apart:.1%} off"  # eight bits hold a value to 0.4%


class _Alone(nn.Module):
    """A long convolution by itself, its filters as large as they are."""

    def __init__(self, side: int, form: Form) -> None:
        super().__init__()
        self.convolution = LongConvolution((side, side), form)
        self.register_buffer("prepared", self.convolution.prepare(torch.zeros(DIM, 2 * side - 1, 2 * side - 1)))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.convolution(z, self.prepared)


def test_operations_grow_as_they_should() -> None:
    """fft as N log N, direct as N^2 and matmul as N^1.5, from 64 to 4096 tokens: counted, and to the formula."""
    sides = (8, 16, 32, 64)
    macs = {form: [count(_Alone(side, form), (DIM, side, side)).macs for side in sides] for form in Form}
    for side, fft, direct, matmul in zip(sides, *(macs[form] for form in Form), strict=True):
        points, m = 4 * side**2, 3 * side - 2
        # three transforms of reals (image, filter, back), each 2.5 M log2 M operations
        assert fft == round(DIM * 3 * 2.5 * points * math.log2(points) / 2), side
        assert direct == DIM * side**2 * (2 * side - 1) ** 2, side
        assert matmul == DIM * 2 * (side * side * m + m * side * m), side
    growth = {form.value: [b / a for a, b in pairwise(found)] for form, found in macs.items()}
    print(growth)
    # four times the tokens: 4 (1 + 1 / log2) at most, 16 and 8, less where the 2H - 1 and 3H - 2 still show
    assert all(4 < g <= 4 * 10 / 8 for g in growth["fft"]), growth
    assert all(16 < g < 18 for g in growth["direct"]), growth
    assert all(7.9 < g < 9 for g in growth["matmul"]), growth


def test_whole_hyena_costs_n_log_n() -> None:
    """With its projections and its filters, from 64 to 4096 tokens, next to the direct form."""
    tokens = [64, 256, 1024, 4096]
    found = {
        form: [count(Hyena(192, (int(n**0.5),) * 2, form=form), (n, 192)).macs / (n * math.log2(n)) for n in tokens]
        for form in (Form.FFT, Form.DIRECT)
    }
    assert found[Form.FFT] == sorted(found[Form.FFT], reverse=True), f"macs / N log2 N grow: {found[Form.FFT]}"
    assert found[Form.DIRECT][-1] > 5 * found[Form.DIRECT][0], f"macs / N log2 N: {found[Form.DIRECT]}"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Hyena(DIM, (4, 4), order=1), "order of at least 2"),
        (lambda: Hyena(DIM, (4, 4), form="fourier"), "fft, direct, matmul"),
        (lambda: Hyena(DIM, (4, 4), bands=0), "band"),
        (lambda: Hyena(DIM, (4, 4))(torch.zeros(1, 15, DIM)), "built for a 4x4 grid"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make()


def test_filter_size() -> None:
    """2 + 4 bands inputs, four linear layers of which the last has no bias, three frequencies and the skip."""
    made = ImplicitFilter(192, (14, 14), count=2, width=64, bands=8)
    expected = (34 * 64 + 64) + 2 * (64 * 64 + 64) + 64 * 384 + 3 * 64 + 384
    assert sum(p.numel() for p in made.parameters()) == expected
