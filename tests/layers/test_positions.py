"""Position embeddings against their definitions, index by index, and against timm's and torch's own forms."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from pocketvit import torchvision_repair  # noqa: F401  (before timm)
from pocketvit.errors import BadInput
from pocketvit.layers import AbsolutePosition, LocallyEnhancedPosition, RelativePositionBias
from pocketvit.layers.folding import fold

EPS = torch.finfo(torch.float32).eps
# window, base
SIZES = [((3, 4), None), ((1, 5), None), ((4, 4), (7, 7)), ((8, 6), (3, 5)), ((5, 3), (5, 4)), ((2, 2), (2, 2))]


def _bias(window, heads=2, **options) -> RelativePositionBias:
    """With a table whose entries all differ."""
    torch.manual_seed(0)
    module = RelativePositionBias(window, heads, **options)
    torch.nn.init.normal_(module.table)
    return module


def _looked_up(table: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """The definition, one query and one key at a time."""
    h, w = window
    places = [(y, x) for y in range(h) for x in range(w)]
    rows = [torch.stack([table[:, yj - yi + h - 1, xj - xi + w - 1] for yj, xj in places], 1) for yi, xi in places]
    return torch.stack(rows, 1)


@pytest.mark.parametrize("single_head", [False, True])
@pytest.mark.parametrize(("window", "base"), SIZES)
def test_a_relative_bias_is_its_table_by_distance(window, base, single_head):
    module = _bias(window, 3, single_head=single_head, base=base)
    stored = [2 * side - 1 for side in base or window]
    assert module.table.shape == (1 if single_head else 3, *stored)
    table = module.table.detach()
    if base not in (None, window):
        size = [2 * side - 1 for side in window]
        table = F.interpolate(table[None], size=size, mode="bilinear", align_corners=False)[0]
    # A resized entry is a sum of four products; each of torch's two ways to it rounds a few times.
    allowed = 0 if base in (None, window) else 8 * EPS * module.table.abs().max().item()
    wrong = (module() - _looked_up(table, window)).abs().max().item()
    print(f"relative bias {window} from {base}: {wrong:.1e} of {allowed:.1e}")
    assert wrong <= allowed, f"{wrong:.2e} from the definition, {allowed:.2e} is rounding"


def test_a_relative_bias_is_timms_with_the_axes_reversed():
    """timm counts from key to query, MOAT and this from query to key."""
    from timm.layers import RelPosBias

    ours, theirs = _bias((3, 5), 4), RelPosBias((3, 5), 4)
    with torch.no_grad():
        theirs.relative_position_bias_table.copy_(ours.table.flip(1, 2).flatten(1).T)
    assert torch.equal(ours(), theirs.get_bias()[0])


def test_single_and_multi_head_tables_really_differ():
    many, one = _bias((3, 4), 4), _bias((3, 4), 4, single_head=True)
    assert many.table.numel() == 4 * one.table.numel() == 4 * 5 * 7
    assert many().shape == (4, 12, 12)
    assert one().shape == (1, 12, 12)
    heads = many()
    assert not any(torch.equal(heads[0], heads[n]) for n in range(1, 4)), "all heads have one table"


@pytest.mark.parametrize(("window", "base"), SIZES)
def test_folding_keeps_the_bias_and_drops_the_table(window, base):
    module = _bias(window, base=base)
    expected = module().detach()
    holder = torch.nn.Sequential(copy.deepcopy(module))
    for _ in range(2):
        fold(holder)
        assert torch.equal(holder[0](), expected)
    assert not list(holder.parameters())
    assert list(holder.state_dict()) == ["0.folded"]
    assert torch.equal(module(), expected), "the original was folded with its copy"


def test_a_folded_bias_leaves_nothing_to_compute():
    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relative = _bias((4, 3), base=(2, 2))

        def forward(self, x):
            return x + self.relative()

    module, x = Scores(), torch.randn(1, 2, 12, 12)
    counts = []
    for _ in range(2):
        graph = torch.export.export(module, (x,)).graph
        counts.append(sum(n.op == "call_function" for n in graph.nodes))
        assert all(n.meta["val"].ndim <= 5 for n in graph.nodes if n.op == "call_function")
        fold(module)
    assert counts[0] > counts[1] == 1, counts


def test_every_entry_of_a_table_learns():
    module = _bias((4, 3), base=(2, 3))
    (module() * torch.randn(2, 12, 12)).sum().backward()
    assert module.table.grad.count_nonzero() == module.table.numel()


def test_an_absolute_table_is_added_and_only_to_its_own_number_of_tokens():
    torch.manual_seed(0)
    module, x = AbsolutePosition(6, 4), torch.randn(3, 6, 4)
    before = x.clone()
    found = module(x)
    assert module.table.shape == (1, 6, 4)
    for image in range(3):
        assert torch.equal(found[image], before[image] + module.table[0])
    assert torch.equal(x, before), "the caller's tensor was edited"
    for tokens in (1, 5):
        with pytest.raises(BadInput, match=f"for 6 tokens, not {tokens}"):
            module(torch.randn(3, tokens, 4))


def test_tables_start_as_timm_starts_them():
    torch.manual_seed(0)
    for table in (RelativePositionBias((16, 16), 8).table, AbsolutePosition(256, 32).table):
        error = 5 * 0.02 / math.sqrt(2 * table.numel())  # five standard errors of a standard deviation
        assert abs(table.std().item() - 0.02) < error, f"standard deviation {table.std().item():.4f}, not 0.02"


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7)])
def test_lepe_is_a_sum_over_neighbours_with_9_weights_a_channel(size):
    torch.manual_seed(0)
    module = LocallyEnhancedPosition(4)
    assert sum(p.numel() for p in module.parameters()) == 9 * 4, "9 dim parameters, whatever the number of tokens"
    x = torch.randn(2, 4, *size)
    before = x.clone()
    found = module(x).detach()
    expected = torch.zeros_like(x, dtype=torch.float64)
    for y in range(size[0]):
        for x_ in range(size[1]):
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if 0 <= y + dy < size[0] and 0 <= x_ + dx < size[1]:
                        tap = module.weight[:, 0, dy + 1, dx + 1].detach().double()
                        expected[:, :, y, x_] += tap * x[:, :, y + dy, x_ + dx]
    allowed = 9 * EPS * 9 * (module.weight.abs().max() * x.abs().max()).item()
    wrong = (found - expected).abs().max().item()
    assert wrong <= allowed, f"{wrong:.2e} from the sum over neighbours, {allowed:.2e} is rounding"
    assert torch.equal(x, before), "the caller's tensor was edited"


def test_windows_without_a_side_are_refused():
    with pytest.raises(BadInput, match="not 0x3"):
        RelativePositionBias((0, 3), 2)
    with pytest.raises(BadInput, match="not 3x0"):
        RelativePositionBias((3, 3), 2, base=(3, 0))
