"""Every rule fires on a model made to break it, and says nothing of one that does not."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from pocketvit.measure.ane.audit import audit
from pocketvit.measure.ane.graph import OpRecord, Tensor
from pocketvit.measure.ane.matches import LARGE_SOFTMAX, Rewrite, Severity, off_engine
from pocketvit.measure.ane.rules import RULES

from .modules import Attention, Mlp, Norm1d, audited, nchw_windows, nhwc_windows, relay_windows

CHANNELS_FIRST = (1, 160, 32, 32)
TOKENS = (1, 256, 128)
NARROW = (1, 256, 64)


def conv_norm():
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32))


def one(kind, shape=(8, 64), dtype="fp16", **more):
    tensors = Tensor("x", shape, dtype), Tensor("y", shape, dtype)
    return audit([OpRecord(kind=kind, name="y", inputs=tensors[:1], outputs=tensors[1:], **more)])


def many(count, weight_bytes=0):
    chain = [Tensor(str(i), (8, 64)) for i in range(count + 1)]
    return audit(
        [
            OpRecord(kind="relu", name=b.name, inputs=(a,), outputs=(b,), weight_bytes=weight_bytes)
            for a, b in pairwise(chain)
        ]
    )


# rule, what breaks it, the rewrite named, what does not
CASES = {
    "rank, expanded": (
        "rank",
        lambda: audited(nhwc_windows(8), (1, 32, 32, 160)),
        Rewrite.RELAY,
        lambda: audited(relay_windows(8), (1, 32, 32, 160)),
    ),
    "rank, refused": (
        "rank",
        lambda: audited(lambda x: x.reshape(1, 2, 2, 2, 2, 2).relu(), (1, 32)),
        Rewrite.LOWER_RANK,
        lambda: audited(lambda x: x.reshape(2, 2, 2, 2, 2).relu(), (1, 32)),
    ),
    "norm": (
        "norm",
        lambda: audited(Norm1d(), (1, 196, 64)),
        Rewrite.FOLD_NORM,
        lambda: audited(conv_norm(), (1, 3, 32, 32)),
    ),
    "norm over groups": (
        "norm",
        lambda: audited(nn.GroupNorm(1, 32), (1, 32, 32, 32)),
        Rewrite.CHANNEL_NORM,
        lambda: audited(nn.LayerNorm(32), (1, 32, 32)),
    ),
    "softmax": (
        "softmax",
        lambda: audited(Attention(), TOKENS),
        Rewrite.SPLIT_SOFTMAX,
        lambda: audited(Attention(split=True), TOKENS),
    ),
    "softmax, small": (
        "softmax",
        lambda: audited(Attention(), TOKENS),
        Rewrite.SPLIT_SOFTMAX,
        lambda: audited(Attention(), (1, 64, 128)),
    ),
    "channels of rows": (
        "channels",
        lambda: audited(Mlp(80), NARROW),
        Rewrite.PAD_CHANNELS,
        lambda: audited(Mlp(96), NARROW),
    ),
    "channels of maps": (
        "channels",
        lambda: audited(Mlp(80, conv=True), (1, 64, 32, 32)),
        Rewrite.PAD_CHANNELS,
        lambda: audited(Mlp(96, conv=True), (1, 64, 32, 32)),
    ),
    "copies": (
        "copies",
        lambda: audited(lambda x: x.transpose(1, 2).relu(), (1, 64, 96)),
        Rewrite.KEEP_LAYOUT,
        lambda: audited(lambda x: x.reshape(8, 8, 96).relu(), (1, 64, 96)),
    ),
    "copies of attention": (
        "copies",
        lambda: audited(Attention(), TOKENS),
        Rewrite.EINSUM,
        lambda: audited(lambda x: x.relu() @ x, (1, 64, 64)),
    ),
    "padding": (
        "padding",
        lambda: audited(torch.relu, (1, 64, 7, 7)),
        Rewrite.LONG_AXIS_LAST,
        lambda: audited(torch.relu, (1, 64, 56, 56)),
    ),
    "kinds": (
        "kinds",
        lambda: audited(lambda x: x[:, [3, 1, 2]], (1, 4, 32)),
        Rewrite.REPLACE_KIND,
        lambda: audited(lambda x: x[:, 1:3], (1, 4, 32)),
    ),
    "kinds, shifts": (
        "kinds",
        lambda: audited(lambda x: x.roll((1, 1), (1, 2)), (1, 8, 8, 32)),
        Rewrite.CONCAT_SHIFT,
        lambda: audited(lambda x: torch.cat([x[:, 1:], x[:, :1]], 1), (1, 8, 8, 32)),
    ),
    "kinds, dilation": (
        "kinds",
        lambda: audited(nn.Conv2d(32, 32, 3, dilation=2), (1, 32, 32, 32)),
        Rewrite.REPLACE_KIND,
        lambda: audited(nn.Conv2d(32, 32, 3), (1, 32, 32, 32)),
    ),
    "dynamic": ("dynamic", lambda: one("relu", (None, 64)), Rewrite.FIXED_SHAPE, lambda: one("relu")),
    "float32": ("float32", lambda: one("relu", dtype="fp32"), Rewrite.HALF, lambda: one("cast", dtype="fp32")),
    "weights": ("weights", lambda: many(2, 5 * 10**8), Rewrite.SMALLER, lambda: many(2, 4 * 10**8)),
    "layout": (
        "layout",
        lambda: audited(Mlp(64), (1, 256, 64)),
        Rewrite.CONVOLUTION,
        lambda: audited(Mlp(64, conv=True), (1, 64, 1, 256)),
    ),
    "qkv": ("qkv", lambda: audited(Attention(), TOKENS), Rewrite.SPLIT_QKV, lambda: audited(Mlp(192), (1, 256, 64))),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rule_fires_and_stays_silent(case):
    rule, breaks, rewrite, keeps = CASES[case]
    found = [(finding.rule, finding.rewrite) for finding in breaks().findings]
    assert (rule, rewrite) in found, f"{case}: found only {found}"
    others = [(finding.rule, finding.what) for finding in keeps().findings if finding.rule == rule]
    assert not others, f"{case}: a model that keeps the rule is charged with {others}"


def test_every_rule_and_every_rewrite_has_a_case():
    assert {rule for rule, *_ in CASES.values()} == {rule.id for rule in RULES}
    assert {rewrite for _, _, rewrite, _ in CASES.values()} == set(Rewrite)


def test_every_rule_has_a_public_source_and_says_when_it_is_hearsay():
    for rule in RULES:
        assert re.match(
            r"https://(machinelearning|developer)\.apple\.com/|https://(apple\.)?github\.(com|io)/", rule.source
        )
        assert len(rule.fact) > 40
        assert rule.fact.endswith(".")
    assert [rule.id for rule in RULES if rule.reported] == ["kinds"]
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_windows_cost_what_was_measured_by_hand():
    """32x32x160 into 4x4 windows. Each step of the forms is written out; rows of 160 halves are 320 bytes."""
    image = 32 * 32 * 160 * 2
    relay = audited(relay_windows(4), (1, 32, 32, 160))
    assert relay.padded_bytes == 4 * image, "cast in, transpose (read, write), cast out; both reshapes are views"
    swin = audited(nhwc_windows(4), (1, 32, 32, 160))
    assert swin.padded_bytes == 8 * image, "two reshapes and a transpose over rows of 640, and the casts"
    maps = audited(nchw_windows(4), CHANNELS_FIRST)
    assert round(maps.padded_bytes / 1e6, 1) == 74.1, f"{maps.padded_bytes} bytes"
    assert maps.highest_rank == swin.highest_rank == 6
    assert relay.highest_rank == 5
    assert maps.findings[0].rule == "rank"


def test_waste_of_a_rank_six_partition_is_its_whole_expansion():
    found = audited(nhwc_windows(8), (1, 32, 32, 160))
    (rank,) = [finding for finding in found.findings if finding.rule == "rank"]
    assert rank.wasted_bytes == 6 * 32 * 32 * 160 * 2
    assert rank.severity is Severity.WASTE


def test_what_blocks_comes_first_then_waste():
    def blocked(x):
        return x.transpose(1, 2).reshape(1, 2, 2, 2, 4, 4, 32).relu()

    rules = [group.rule for group in audited(blocked, (1, 64, 64)).groups]
    assert rules[0] == "rank", rules
    wasted = [group.wasted_bytes for group in audited(Attention(), TOKENS).groups]
    assert wasted == sorted(wasted, reverse=True)


def test_findings_of_alike_places_are_one_group():
    blocks = nn.Sequential(*(nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64)) for _ in range(12)))
    (group,) = [group for group in audited(blocks, NARROW).groups if group.rule == "layout"]
    assert (group.count, group.where) == (12, "*.*")


@pytest.mark.parametrize(
    ("shape", "fires"), [((1, 4, 128, 128), True), ((1, 1, 256, 256), False), ((1, 4, 64, 64), False)]
)
def test_softmax_is_large_from_128_kib_of_several_heads(shape, fires):
    found = audited(lambda x: x.softmax(-1), shape)
    assert any(finding.rule == "softmax" for finding in found.findings) is fires
    assert LARGE_SOFTMAX == 4 * 128 * 128 * 2


def test_the_last_layer_may_have_any_width():
    both = audited(Mlp(96), NARROW)
    assert not [finding for finding in both.findings if finding.rule == "channels"], "10 classes were called a fault"


@pytest.mark.parametrize(
    ("kind", "dtype", "rank", "says"),
    [("relu", "fp16", 2, ""), ("gather", "fp16", 2, "gather"), ("relu", "fp32", 2, "32-bit"), ("cast", "fp32", 2, ""),
     ("relu", "fp16", 6, "rank 6")],
)  # fmt: skip
def test_prediction_of_placement(kind, dtype, rank, says):
    tensor = Tensor("x", (2,) * rank, dtype)
    record = OpRecord(kind=kind, name="op", inputs=(tensor,), outputs=(tensor,), expandable=rank <= 5)
    assert (says in off_engine(record)) if says else (off_engine(record) == "")


def test_a_copy_is_called_attention_only_beside_a_product_or_softmax():
    def rewrites(function, shape=(1, 64, 96)):
        return {finding.rewrite for finding in audited(function, shape).findings if finding.rule == "copies"}

    assert rewrites(lambda x: x.transpose(1, 2).relu()) == {Rewrite.KEEP_LAYOUT}
    assert rewrites(lambda x: nn.functional.linear(x.transpose(1, 2), torch.ones(8, 64))) == {Rewrite.KEEP_LAYOUT}
    assert rewrites(lambda x: (x.transpose(1, 2) * 0.5).softmax(-1)) == {Rewrite.EINSUM}
    assert rewrites(lambda x: (x.relu() @ x.mT.sigmoid()).transpose(1, 2).relu()) >= {Rewrite.EINSUM}


def test_a_gather_that_keeps_its_shape_is_a_shift_only_when_it_rolls():
    (found,) = [one for one in audited(lambda x: x[:, [2, 0, 3, 1]], (1, 4, 32)).findings if one.rule == "kinds"]
    assert found.rewrite is Rewrite.REPLACE_KIND
    assert "shift" not in found.what


def test_what_is_off_the_engine_is_counted_by_reason():
    shapes = Tensor("x", (2, 2)), Tensor("y", (2, 2), "fp32")
    ops = [OpRecord(kind="gather", name="g", inputs=shapes[:1], outputs=shapes[:1])]
    ops += [OpRecord(kind="relu", name=f"r{i}", inputs=shapes[1:], outputs=shapes[1:]) for i in range(2)]
    found = audit(ops)
    assert found.off_engine == 3
    assert list(found.off_engine_reasons.items()) == [("32-bit floats", 2), ("gather", 1)]
