"""Pooling as a token mixer (PoolFormer, arXiv 2111.11418)."""

from __future__ import annotations

from torch import Tensor, nn

from ...errors import BadInput
from .mixer import TokenMixer


class Pooling(TokenMixer):
    """The mean of a token's neighbours, less the token itself, which the block's shortcut adds again (equation 4).

    size: width of the square of neighbours, odd; beyond the border there are none. No parameters, and the only mixer
    here that sees no further than its square.
    """

    def __init__(self, dim: int, grid: tuple[int, int], *, size: int = 3, proj_drop: float = 0.0) -> None:
        super().__init__(dim, grid)
        if size < 3 or size % 2 == 0:
            raise BadInput(f"The size of pooling must be odd and at least 3, not {size}.")
        self.pool = nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False)
        self.proj_drop = nn.Dropout(proj_drop)

    def mix(self, x_BNC: Tensor) -> Tensor:
        """See the class."""
        return self.proj_drop(self.to_tokens(self.pool(self.to_map(x_BNC))) - x_BNC)
