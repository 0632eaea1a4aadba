"""The rewrite itself: which rewrites are applied, and which of the layouts that come out is taken."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from .emit import Rewritten, emit
from .heads import split_heads
from .layouts import Layout, Preference, choose, feeds_products, least_traffic, rows, swapped, traffic
from .moves import merge_moves, share_cuts
from .norms import fold_norms
from .program import Builder, Op, Program, swap
from .program import rewrite as edit
from .projections import split_projections
from .ranks import lower_ranks
from .steps import plan

_MARGIN = 0.01  # of the bytes: what this count and the audit of the exported graph may differ by
# How much of its traffic making a linear a convolution may cost: as much as it takes, then less and less.
_SHARES = (1000.0, 0.5, 0.25, 0.0)


def rewrite(program: Program, *, layouts: bool, heads: bool, norms: bool) -> Rewritten:
    """The module that computes `program`, rewritten.

    Of the forms that Apple recommends (heads apart, linears as convolutions, keys transposed before their heads), as
    many are taken as move no more padded bytes, and transpose no more often, than the program as it came. Where no
    choice keeps to that, heads stay together and the fewest bytes are taken.
    """
    limit = least_traffic(fold_norms(program, as_converters_do=True))
    most = int(limit.bytes * (1 - _MARGIN))
    program = lower_ranks(program)
    if norms:
        program = fold_norms(program)
    forms = [program]
    if heads:
        apart = split_projections(merge_moves(program, at_any_cost=True))
        apart = fold_norms(apart) if norms else apart  # a scale of Q alone now has a layer to go to
        forms = [split_heads(apart), apart, program]
    forms = [share_cuts(_with_flags(merge_moves(form))) for form in forms]
    best: tuple[Program, dict[Op, Layout], bool] = forms[-1], rows(forms[-1]), False
    least = traffic(forms[-1], best[1])
    preferences = [Preference(share, first) for share, first in product(_SHARES, (True, False))] if layouts else []
    for form, preference in product(forms, preferences):
        found = choose(form, preference)
        moved = traffic(form, found, key_first=preference.key_first)
        if moved.bytes <= most and moved.transposes <= limit.transposes:
            return emit(form, found, key_first=preference.key_first)
        if moved.bytes < least.bytes and form is not forms[0]:
            best, least = (form, found, preference.key_first), moved
    form, found, key_first = best
    return emit(form, found, key_first=key_first)


def _with_flags(program: Program) -> Program:
    """Products of rank 4 and more read an operand with its axes swapped where that spares a transpose.

    Those of rank 3 do so by their layouts.
    """
    readers = program.readers()

    def visit(builder: Builder, op: Op, new: Callable[[Op], Any]) -> Op:
        if op.is_rearrangement and len(op.sides) > 3 and feeds_products(op, readers):
            source, wanted = op.args
            if plan(swapped(wanted)).transposes < plan(wanted).transposes:
                return builder.call(swap, builder.move(new(source), swapped(wanted), op.path), path=op.path)
        return builder.again(op, new)

    return edit(program, visit)
