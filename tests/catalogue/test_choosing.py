"""Choosing by hand-made rows, and its promises over every device and toolchain of the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pocketvit.catalogue import Choice, PublishedLatency, choose, choosing, latencies, setups
from pocketvit.errors import BadInput

PLAIN = PublishedLatency(
    model=None,
    name="",
    device="Phone 1",
    os="",
    toolchain="Tool A",
    resolution=224,
    resolution_assumed=False,
    ms=1.0,
    top1=0.75,
    top1_source="the latency's source",
    params=5_000_000,
    macs=None,
    read_from="table",
    note="",
    source="a paper",
)
ROWS = (
    replace(PLAIN, name="small", ms=1.0, top1=0.70, params=2_000_000),
    replace(PLAIN, name="beaten", ms=1.5, top1=0.69),
    replace(PLAIN, name="middle", ms=2.0, top1=0.78),
    replace(PLAIN, name="large", ms=4.0, top1=0.82, params=20_000_000),
    replace(PLAIN, name="failing", ms=math.inf, top1=0.90),
    replace(PLAIN, name="unknown", ms=0.5, top1=None, top1_source="not stated"),
    replace(PLAIN, name="counted", ms=0.9, top1=0.60, params=None, model="levit_128s"),
    replace(PLAIN, name="sizeless", ms=0.8, top1=0.60, params=None),
    replace(PLAIN, name="other tool", ms=0.1, top1=0.99, toolchain="Tool B"),
    replace(PLAIN, name="other phone", ms=0.1, top1=0.99, device="Phone 2"),
)


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "latencies", lambda: ROWS)


def names(rows: Sequence[PublishedLatency]) -> list[str]:
    return [row.name for row in rows]


def front(choice: Choice) -> list[str]:
    return [choice.rows[i].name for i in choice.front]


def test_setups_are_counted(hand: None) -> None:
    assert setups() == (("Phone 1", "Tool A", 8), ("Phone 1", "Tool B", 1), ("Phone 2", "Tool A", 1))


def test_without_a_budget_the_front_is_that_of_all_usable_rows(hand: None) -> None:
    first, second = choose(device="phone 1")
    assert (first.toolchain, second.toolchain) == ("Tool A", "Tool B")
    assert names(first.rows) == ["sizeless", "counted", "small", "beaten", "middle", "large"]
    assert front(first) == ["sizeless", "small", "middle", "large"]
    assert first.considered == 8
    assert first.reasons == (
        "Left out, 1 of 8 rows: the model failed to run.",
        "Left out, 1 of 8 rows: no published top-1 (not stated).",
    )
    assert front(second) == ["other tool"]
    assert second.reasons == ()


def test_a_budget_leaves_out_with_a_reason(hand: None) -> None:
    (choice,) = choose(device="Phone 1", toolchain="tool a", max_ms=2.0, min_top1=0.70)
    assert names(choice.rows) == ["small", "middle"], "both bounds are inclusive"
    assert set(choice.reasons) == {
        "Left out, 1 of 8 rows: the model failed to run.",
        "Left out, 1 of 8 rows: no published top-1 (not stated).",
        "Left out, 3 of 8 rows: below 70.0% top-1.",
        "Left out, 1 of 8 rows: slower than 2 ms.",
    }


def test_parameters_are_the_sources_or_counted(hand: None) -> None:
    (choice,) = choose(device="Phone 1", toolchain="Tool A", max_params=10_000_000)
    assert names(choice.rows) == ["counted", "small", "beaten", "middle"]  # levit_128s has 7.8 M
    assert "Left out, 1 of 8 rows: above 10 M parameters." in choice.reasons
    assert "Left out, 1 of 8 rows: no published number of parameters." in choice.reasons


@pytest.mark.parametrize(
    ("budget", "nearest"),
    [
        ({"max_ms": 0.7}, "sizeless, 0.8 ms at 60.0% top-1"),
        ({"min_top1": 0.85}, "large, 4 ms at 82.0% top-1"),
        ({"max_ms": 1.9, "min_top1": 0.78}, "middle, 2 ms at 78.0% top-1"),
    ],
)
def test_an_empty_choice_names_the_nearest_miss(hand: None, budget: dict[str, float], nearest: str) -> None:
    (choice,) = choose(device="Phone 1", toolchain="Tool A", **budget)  # type: ignore[arg-type]
    assert (choice.rows, choice.front) == ((), ())
    assert choice.reasons[-1] == f"No row is within the budget; nearest is {nearest}."


def test_a_device_without_usable_rows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "latencies", lambda: tuple(row for row in ROWS if row.name == "unknown"))
    (choice,) = choose(device="Phone 1", min_top1=0.5)
    assert choice.reasons == (
        "Left out, 1 of 1 rows: no published top-1 (not stated).",
        "No row has all that choosing needs.",
    )


def test_unknown_names_are_refused_with_what_there_is(hand: None) -> None:
    with pytest.raises(BadInput, match=r"'Phone 3'.* Did you mean Phone 1, Phone 2\? Known devices: Phone 1, Phone 2"):
        choose(device="Phone 3")
    with pytest.raises(BadInput, match=r"Phone 1 with a toolchain called 'Tool C'.*There is: Tool A; Tool B\."):
        choose(device="Phone 1", toolchain="Tool C")


def test_a_part_of_a_toolchain_selects_and_its_whole_name_wins() -> None:
    apart = choose(device="iPhone 12", toolchain="repvit")
    assert {choice.toolchain for choice in apart} == {
        setup.toolchain for setup in setups() if setup.device == "iPhone 12" and "RepViT" in setup.toolchain
    }
    assert len(apart) > 1
    (whole,) = choose(device="iPhone 12", toolchain="RepViT: core ml tools")
    assert whole.toolchain == "RepViT: Core ML Tools"


def test_every_device_keeps_its_toolchains_apart_and_has_the_front_of_its_definition() -> None:
    considered = 0
    for device in {setup.device for setup in setups()}:
        for choice in choose(device=device):
            considered += choice.considered
            assert {(row.device, row.toolchain) for row in choice.rows} <= {(choice.device, choice.toolchain)}
            points = [(row.ms, row.top1 or 0.0) for row in choice.rows]
            beaten = {
                i
                for i, (ms, top1) in enumerate(points)
                if any(m <= ms and t >= top1 and (m, t) != (ms, top1) for m, t in points)
            }
            assert set(choice.front) == set(range(len(points))) - beaten, choice.toolchain
            assert choice.rows or choice.reasons
    assert considered == len(latencies())


def test_a_toolchain_without_letters_is_refused_since_it_is_in_every_name(hand: None) -> None:
    for nothing in ("", "  "):
        with pytest.raises(BadInput, match="leave it out to see them all"):
            choose(device="Phone 1", toolchain=nothing)


def test_no_row_is_left_out_by_its_own_value() -> None:
    for setup in setups():
        (whole,) = choose(device=setup.device, toolchain=setup.toolchain)
        sizes = {value for row in whole.rows if (value := choosing._params(row))}
        for row in whole.rows:
            (by_time,) = choose(device=setup.device, toolchain=setup.toolchain, max_ms=row.ms)
            (by_top1,) = choose(device=setup.device, toolchain=setup.toolchain, min_top1=row.top1)
            assert row in by_time.rows, f"{row.name} takes {row.ms} ms"
            assert row in by_top1.rows, f"{row.name} reaches {row.top1}"
        for params in sizes:
            (by_size,) = choose(device=setup.device, toolchain=setup.toolchain, max_params=params)
            same = [row for row in whole.rows if choosing._params(row) == params]
            assert set(same) <= set(by_size.rows), f"{params} parameters"


def test_the_issues_example() -> None:
    found = choose(device="iPhone 12", max_ms=3, min_top1=0.75)
    assert sum(len(choice.rows) for choice in found) > 20
    for choice in found:
        assert all(row.ms <= 3 and (row.top1 or 0) >= 0.75 and row.source for row in choice.rows)
