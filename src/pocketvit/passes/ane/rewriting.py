"""The rewrite itself: which rewrites are applied, and which of the layouts that come out is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from .cut import Preference, choose
from .emit import Rewritten, emit
from .heads import split_heads
from .layouts import Layout, Traffic, feeds_products, least_traffic, rows, swapped, traffic
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
    best = _Candidate(forms[-1], rows(forms[-1]), False)
    for candidate in _candidates(forms, layouts):
        moved = candidate.traffic
        if moved.bytes <= most and moved.transposes <= limit.transposes:
            best = candidate
            break
        if moved.bytes < best.traffic.bytes and (len(forms) == 1 or candidate.program is not forms[0]):
            best = candidate
    return emit(best.program, best.layouts, key_first=best.key_first)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A program in layouts that it may be emitted in."""

    program: Program
    layouts: dict[Op, Layout]
    key_first: bool

    @property
    def traffic(self) -> Traffic:
        return traffic(self.program, self.layouts, key_first=self.key_first)


def _candidates(forms: list[Program], layouts: bool) -> Iterator[_Candidate]:
    """What could be emitted, what Apple's forms are most of first."""
    for form in forms:
        if not layouts:
            yield _Candidate(form, rows(form), False)
            continue
        for share, first in product(_SHARES, (True, False)):
            yield _Candidate(form, choose(form, Preference(share, first)), first)


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
