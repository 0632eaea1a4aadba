"""What every token mixer shares: tokens of a known grid in, as many out.

Axes: B image, N token, C channel, H and W the grid; N = H * W, row after row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ...errors import BadInput


class TokenMixer(nn.Module, ABC):
    """Takes the place of attention in a block: x_BNC to x_BNC, every token in sight of every other unless it says so.

    The grid (height, width) is fixed at construction, so that position tables and filters are constants of an
    exported file. It has no class token and no mask, and it is not causal: images have no past.
    """

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        if min(dim, *grid) < 1:
            raise BadInput(f"A token mixer needs at least one channel and one token, not {dim} channels on {grid}.")
        self.dim = dim
        self.grid = grid

    @property
    def tokens(self) -> int:
        """Number of tokens, N."""
        return self.grid[0] * self.grid[1]

    def forward(self, x_BNC: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Mix the tokens; the other two arguments are what timm's blocks pass to attention.

        Raises BadInput when the tokens are not those of the grid, or for a mask.
        """
        if x_BNC.shape[1:] != (self.tokens, self.dim):
            raise BadInput(
                f"{type(self).__name__} was built for a {self.grid[0]}x{self.grid[1]} grid of tokens with {self.dim} "
                f"channels and got {tuple(x_BNC.shape[1:])}; build the model for this image size."
            )
        if attn_mask is not None or is_causal:
            raise BadInput(f"{type(self).__name__} has no attention to mask.")
        return self.mix(x_BNC)

    @abstractmethod
    def mix(self, x_BNC: Tensor) -> Tensor:
        """The mixing itself, of tokens already checked."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that describe positions; decay would pull them towards one particular pattern."""
        return set()

    def to_map(self, x_BNC: Tensor) -> Tensor:
        """Tokens as a map x_BCHW."""
        return x_BNC.transpose(1, 2).reshape(x_BNC.shape[0], x_BNC.shape[2], *self.grid)

    def to_tokens(self, x_BCHW: Tensor) -> Tensor:
        """A map as tokens x_BNC."""
        return x_BCHW.flatten(2).transpose(1, 2)
