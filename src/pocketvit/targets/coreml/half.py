"""Operations with every step inside them rounded to fp16: the pessimistic end of what hardware may do.

Squares overflow above 255, sums lose what is small beside them, epsilons below 6e-8 vanish. Accumulators of sums and
products are rounded after every 32 terms; that number is an assumption, since the hardware's order is not public.
Elementwise operations have one result, which the plan rounds, and are not here.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from .arithmetic import to_half
from .ops import Handler
from .step_products import PRODUCTS
from .steps import STEPS


def _rounded(name: str, value: Tensor) -> Tensor:
    return to_half(value)


STEPWISE: dict[str, Handler] = {kind: partial(step, _rounded) for kind, step in (STEPS | PRODUCTS).items()}
