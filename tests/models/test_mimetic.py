"""Weights that attention starts from (arXiv 2305.09828, section 3.2)."""

from __future__ import annotations

import pytest
import torch

from pocketvit.models import create

NAMES = ["pocket_deit_patch4_32", "pocket_deit_distilled_patch4_32"]


def _started(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return create(name, weight_init="mimetic").module.eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_products_lean_to_the_identity(name: str) -> None:
    """Queries times keys of a head have 32 of 128 directions, the strongest ones; values times projection have all."""
    for block in _started(name).blocks:
        queries, keys, values = (part.detach() for part in block.attn.qkv.weight.chunk(3))
        for q, k in zip(queries.chunk(4), keys.chunk(4), strict=True):
            assert torch.linalg.matrix_rank(q.T @ k) == 32
            leaning = torch.trace(q.T @ k).item() / 128
            assert leaning > 0.15, f"queries times keys has {leaning:.2f} on its diagonal"  # chance: 0 +- 0.005
        mixed = values.T @ block.attn.proj.weight.detach().T
        assert torch.trace(mixed).item() / 128 == pytest.approx(-0.4, abs=0.015)  # 5 sd of the mean of 128
        off = mixed - torch.diag(torch.diagonal(mixed))
        assert off.std().item() == pytest.approx(0.4 / 128**0.5, rel=0.05)


def test_at_first_a_patch_looks_at_those_around_it() -> None:
    model = _started(NAMES[1])
    block = model.blocks[0]
    patches = 0.3 * torch.randn(16, 64, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = block.norm1(torch.cat([model.cls_token, model.dist_token], 1).expand(16, -1, -1))
        x = torch.cat([x, block.norm1(patches + model.pos_embed[:, 2:])], 1)
        q, k, _ = block.attn.qkv(x).reshape(16, 66, 3, 4, 32).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * 32**-0.5).softmax(-1)[..., 2:, 2:].mean((0, 1))
    rows, columns = torch.arange(64) // 8, torch.arange(64) % 8
    distance = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
    near, far = weights[distance == 1].mean().item(), weights[distance >= 4].mean().item()
    assert near > 2 * far, f"neighbours get {near:.4f} each, patches four and more away {far:.4f}"


def test_nothing_else_starts_otherwise() -> None:
    torch.manual_seed(0)
    plain = create(NAMES[0]).module
    assert torch.equal(plain.patch_embed.proj.weight, _started(NAMES[0]).patch_embed.proj.weight)
    assert not torch.equal(plain.pos_embed, _started(NAMES[0]).pos_embed)
    assert torch.equal(plain.blocks[3].mlp.fc1.weight, _started(NAMES[0]).blocks[3].mlp.fc1.weight)
