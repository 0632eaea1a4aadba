"""The layouts chosen are the cheapest there are, and what they cost is what the emitted module moves."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from pocketvit.audits.ane import _exported
from pocketvit.measure.ane.graph import OpRecord
from pocketvit.models import Model, create
from pocketvit.passes.ane.capture import capture
from pocketvit.passes.ane.cut import Preference, _Cut, choose
from pocketvit.passes.ane.emit import emit
from pocketvit.passes.ane.heads import split_heads
from pocketvit.passes.ane.layouts import (
    Layout,
    arrangement,
    conversion,
    in_place,
    least_traffic,
    may_be_channels_first,
    rows,
    stored,
    traffic,
)
from pocketvit.passes.ane.moves import merge_moves, share_cuts
from pocketvit.passes.ane.norms import fold_norms
from pocketvit.passes.ane.program import Program, carry_out
from pocketvit.passes.ane.projections import split_projections
from pocketvit.passes.ane.rearrange import Rearrangement

from .subjects import Attention, expected, images, name_of, on_tokens, relative, tiny, tokens

ROWS, FIRST = Layout.ROWS, Layout.CHANNELS_FIRST
_MOST_FREE = 13  # operations whose 2 ** n layouts are all tried


def all_heads(program: Program) -> Program:
    return share_cuts(merge_moves(split_heads(split_projections(fold_norms(program)))))


def mlp(m: nn.Module, x: Tensor) -> Tensor:
    return x + m.two(m.one(m.norm(x)).relu())


def mixer(m: nn.Module, x: Tensor) -> Tensor:
    """Over tokens, then over channels."""
    return m.two(m.one(x.mT).relu().mT + x)


def maps(m: nn.Module, x: Tensor) -> Tensor:
    """A map, tokens for a linear, and a map again."""
    y = m.conv(x)
    return m.last(m.linear(y.permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2) + y).mean((2, 3))


SMALL: dict[str, Model] = {
    "mlp": tiny(on_tokens(mlp), **tokens(norm=nn.LayerNorm(32), one=nn.Linear(32, 48), two=nn.Linear(48, 32))),
    "narrow mlp": tiny(
        lambda m, x: m.head(mlp(m, m.embed(x).flatten(2).mT).mean(1)),
        embed=nn.Conv2d(3, 8, 2, 2), norm=nn.LayerNorm(8), one=nn.Linear(8, 80), two=nn.Linear(80, 8),
        head=nn.Linear(8, 10),
    ),
    "many tokens": tiny(
        on_tokens(mlp), (3, 32, 32), **tokens(norm=nn.LayerNorm(32), one=nn.Linear(32, 20), two=nn.Linear(20, 32))
    ),
    "mixer": tiny(on_tokens(mixer), **tokens(one=nn.Linear(16, 16), two=nn.Linear(32, 32))),
    "maps": tiny(maps, conv=nn.Conv2d(3, 40, 3), linear=nn.Linear(40, 40), last=nn.Conv2d(40, 10, 1)),
    "one head": tiny(on_tokens(lambda m, x: m.attn(x)), **tokens(attn=Attention(heads=1))),
}  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("key_first", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_no_assignment_is_cheaper(name: str, key_first: bool, share: float) -> None:
    """Against every assignment of layouts to the operations that have a choice, by the same count."""
    program = all_heads(capture(SMALL[name]))
    preference = Preference(share, key_first)
    cut = _Cut(program, preference, {}, ROWS)
    assert 3 <= len(cut.free) <= _MOST_FREE, f"{len(cut.free)} operations are free"
    found = cut.total(choose(program, preference))
    costs = [
        cut.total(rows(program) | dict(zip(cut.free, layouts, strict=True)))
        for layouts in product(Layout, repeat=len(cut.free))
    ]
    assert found == min(costs), f"{name}: {found} chosen, {min(costs)} of {len(costs)} is the least"


@pytest.mark.parametrize("key_first", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_a_program_in_its_layouts_computes_the_same(name: str, key_first: bool) -> None:
    model = SMALL[name]
    program = all_heads(capture(model))
    for layouts in (rows(program), choose(program, Preference(1000.0, key_first))):
        x = images(model)
        with torch.no_grad():
            found = relative(emit(program, layouts, key_first=key_first)(x), expected(model, x))
        assert found <= 3e-6, f"{name} is off by {found:.1e}"


def test_every_layout_that_can_be_computes_the_same() -> None:
    """Not the chosen one only: any assignment is a correct program."""
    model = SMALL["mlp"]
    program = all_heads(capture(model))
    free = [op for op in program.ops if may_be_channels_first(op)]
    x = images(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        picks = torch.randint(2, (len(free),), generator=generator).tolist()
        layouts = rows(program) | {op: Layout(pick) for op, pick in zip(free, picks, strict=True)}
        with torch.no_grad():
            found = relative(emit(program, layouts)(x), expected(model, x))
        assert found <= 3e-6, f"{picks}: off by {found:.1e}"


def test_channels_first_is_what_apple_calls_b_c_1_s() -> None:
    assert stored((1, 197, 192), FIRST) == (1, 192, 1, 197)
    assert stored((2, 7, 5, 64), FIRST) == (2, 64, 1, 35)
    assert stored((1, 2, 3, 4, 5, 6), ROWS) == (2, 3, 4, 5, 6), "no tensor in memory has a rank above 5"
    assert arrangement((1, 8, 4), ROWS).is_reshape
    x = torch.arange(2 * 7 * 5 * 4).reshape(2, 7, 5, 4)
    assert torch.equal(carry_out(in_place((2, 7, 5, 4), ROWS, FIRST), x), x.permute(0, 3, 1, 2).reshape(2, 4, 1, 35))


def test_a_move_between_layouts_is_one_plan() -> None:
    """From a map to tokens channels first is a view: their order in memory is the same."""
    to_tokens = Rearrangement.identity((1, 192, 14, 14)).reshape((1, 192, 196)).permute((0, 2, 1))
    how = conversion(to_tokens, ROWS, FIRST)
    assert how is not None
    assert how.transposes == 0
    back = conversion(to_tokens, ROWS, ROWS)
    assert back is not None
    assert back.transposes == 1


def test_a_copy_serves_all_readers() -> None:
    """Three layers that read one value in the other layout pay for one transpose."""

    def middle(m: nn.Module, x: Tensor) -> Tensor:
        return m.a(x) + m.b(x) + m.c(x)

    model = tiny(on_tokens(middle), **tokens(a=nn.Linear(32, 32), b=nn.Linear(32, 32), c=nn.Linear(32, 32)))
    program = capture(model)
    layers = [op for op in program.ops if op.path in ("a", "b", "c")]
    plain, mixed = traffic(program, rows(program)), traffic(program, rows(program) | dict.fromkeys(layers, FIRST))
    sums = 2  # the first sum reads two of the results, the second one more: three copies back
    assert mixed.transposes - plain.transposes == 1 + sums + 1, f"{mixed.transposes - plain.transposes} more"


def by_kind(ops: tuple[OpRecord, ...], kind: str) -> list[OpRecord]:
    return [op for op in ops if op.kind == kind]


def test_deit_with_convolutions_transposes_the_keys_before_their_heads_and_nothing_else() -> None:
    """Apple's attention: one transpose in each, of the keys of all heads together."""
    depth = 2
    model = create("deit_tiny_patch16_224", depth=depth, num_classes=10)
    program = all_heads(capture(model))
    layouts = choose(program, Preference(1000.0, True))
    linears = [op for op in program.ops if name_of(op) == "linear" and len(op.sides) == 3]
    assert linears
    assert all(layouts[op] is FIRST for op in linears), "a linear is no convolution"
    assert traffic(program, layouts, key_first=True).transposes == depth
    module = emit(program, layouts, key_first=True)
    ops = _exported(Model(name="deit", module=module, spec=model.spec, trained=False, classes=10))
    transposes = by_kind(ops, "transpose")
    shapes = [(str(op.inputs[0]), str(op.outputs[0])) for op in transposes]
    assert len(transposes) == depth, shapes
    writers = {output.name: op for op in ops for output in op.outputs}
    for transpose, (before, _) in zip(transposes, shapes, strict=True):
        assert "192" in before.split("x"), f"{before}: of one head, not of all"
        source = writers[transpose.inputs[0].name]
        while source.kind in ("reshape", "squeeze"):
            source = writers[source.inputs[0].name]
        assert source.kind == "conv", f"it reads {source.kind}"
    assert not [op for op in by_kind(ops, "linear") if len(op.outputs[0].shape) > 2]


def test_what_a_program_is_said_to_move_is_what_its_module_moves() -> None:
    """Bytes and transposes of the plan, against the audit of the exported module without its normalisation."""
    model = create("deit_tiny_patch16_224", depth=2, num_classes=10)
    program = all_heads(capture(model))
    for key_first in (True, False):
        layouts = choose(program, Preference(1000.0, key_first))
        said = traffic(program, layouts, key_first=key_first)
        module = emit(program, layouts, key_first=key_first)
        ops = _exported(Model(name="deit", module=module, spec=model.spec, trained=False, classes=10))
        first = next(i for i, op in enumerate(ops) if op.kind == "conv")
        moved = sum(op.padded_bytes for op in ops[first:])
        assert abs(said.bytes - moved) < 0.02 * moved, f"{said.bytes} planned, {moved} counted ({key_first=})"
        assert said.transposes == len(by_kind(ops, "transpose")), f"{said.transposes} planned ({key_first=})"


def test_the_least_a_model_moves_is_no_more_than_it_moves() -> None:
    for name, model in SMALL.items():
        program = capture(model)
        least, plain = least_traffic(program), traffic(program, rows(program))
        assert least.bytes <= plain.bytes, name
        assert least.transposes <= plain.transposes, name
