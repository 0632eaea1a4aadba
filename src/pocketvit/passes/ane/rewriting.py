"""The rewrite itself: which rewrites are applied, and which of the layouts that come out is taken."""

from __future__ import annotations

from itertools import product

from .emit import Rewritten, emit
from .heads import split_heads
from .layouts import Layout, Preference, choose, least_traffic, rows, traffic
from .norms import fold_norms
from .program import Op, Program
from .projections import split_projections

# How much of its traffic making a linear a convolution may cost: as much as it takes, then less and less.
_SHARES = (1000.0, 1.0, 0.5, 0.25, 0.1, 0.0)


def rewrite(program: Program, *, layouts: bool, heads: bool, norms: bool) -> Rewritten:
    """The module that computes `program`, rewritten.

    Of the forms that Apple recommends (heads apart, linears as convolutions, keys transposed before their heads), as
    many are taken as move no more padded bytes, and transpose no more often, than the program as it came.
    """
    limit = least_traffic(program)
    if norms:
        program = fold_norms(program)
    if heads:
        program = split_projections(program)
    if norms and heads:
        program = fold_norms(program)
    forms = [split_heads(program), program] if heads else [program]
    best: tuple[Program, dict[Op, Layout], bool] = forms[-1], rows(forms[-1]), False
    least = traffic(forms[-1], best[1])
    preferences = [Preference(share, first) for share, first in product(_SHARES, (True, False))] if layouts else []
    for form, preference in product(forms, preferences):
        found = choose(form, preference)
        moved = traffic(form, found, key_first=preference.key_first)
        if moved.bytes <= limit.bytes and moved.transposes <= limit.transposes:
            return emit(form, found, key_first=preference.key_first)
        if moved.bytes < least.bytes:
            best, least = (form, found, preference.key_first), moved
    form, found, key_first = best
    return emit(form, found, key_first=key_first)
