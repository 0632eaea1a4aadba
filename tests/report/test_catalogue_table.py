"""The catalogue's tables on a terminal: they fit, show what is there as it is, and number every source once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from pocketvit.catalogue import Choice, Entry, PublishedLatency, Setup
from pocketvit.report import published
from pocketvit.report.catalogue_table import SHOWN_NOTES, choice_lines, models_table, setups_table
from pocketvit.types import Evidence

LONG = "vit_base_patch16_rope_reg1_gap_256_and_more"
ENTRY = Entry(
    name=LONG,
    ours=False,
    params=1_844_000_000,
    macs=2_859_900_000_000,
    activations=2_618_300_000,
    input_size=(3, 256, 256),
    top1=0.8812,
    top5=0.98,
    weights="sbb2_e200_in12k_ft_in1k",
    top1_size=384,
    top1_source="a table",
    note="",
)
ROW = PublishedLatency(
    model=LONG,
    name="ViT-B",
    device="Phone 1",
    os="",
    toolchain="[red]Tool[/red] 2, with a rather long name of its own: compiled, all units, median of 1000",
    toolchain_stated="Tool 2",
    resolution=256,
    resolution_assumed=True,
    ms=123.456,
    top1=0.8812,
    top1_source="the latency's source",
    params=None,
    macs=None,
    read_from="figure_digitised",
    note="a note",
    source="A source with a name as long as sources have, arXiv 2412.00000 Table 18 (text copy), Section 4.1",
)
SETUP = Setup(ROW.device, ROW.toolchain, 3)


def choice_of(*rows: PublishedLatency) -> Choice:
    return Choice(
        device=ROW.device,
        toolchain=ROW.toolchain,
        rows=rows,
        front=tuple(range(len(rows))),
        considered=len(rows),
        reasons=(),
    )


def printed(lines, width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as caught:
        for line in lines:
            console.print(line)
    return caught.get()


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue counts one model."""
    monkeypatch.setattr(published, "entry", lambda name: ENTRY if name == LONG else None)


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_and_no_number_is_cut(width: int) -> None:
    other = replace(ENTRY, name="tiny", params=372_000, macs=38_000_000, activations=None, top1=None, weights=None)
    models = printed([models_table([(LONG, ENTRY), ("tiny", other), ("unknown", None)])], width)
    for part in ("1844", "2860", "2618", "256", "88.1 @384", "0.372", "0.0380", "none", "not counted"):
        assert part in models.split() or part in models, f"{part} is not whole in\n{models}"
    choice = printed(choice_lines([choice_of(ROW, replace(ROW, model=None, source="B", note="b"))]), width)
    for part in ("123.456 [1]", "88.1 [1]", "1844 [c]", "256?", "123.456 [2]", "ViT-B (not in timm)"):
        assert part in choice, f"{part} is not whole in\n{choice}"
    setups = printed([setups_table([SETUP])], width)
    assert max(map(len, (models + choice + setups).splitlines())) <= width


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("read_from", ["figure_digitised", "table", "text_copy"])
def test_how_a_number_was_read_has_room_on_a_narrow_terminal(width: int, read_from: str) -> None:
    rows = [replace(ROW, read_from=read_from), replace(ROW, model=None, name=LONG)]
    text = printed(choice_lines([choice_of(*rows)]), width)
    assert max(map(len, text.splitlines())) <= width
    for part in (
        "read",
        "from",
        *read_from.removesuffix("_digitised").split("_"),
        "123.456 [1]",
        "88.1 [1]",
        "not known",
        "256?",
    ):
        assert part in text, f"{part!r} is not whole in\n{text}"


def test_marks_say_where_a_number_is_from_and_how_it_is_known() -> None:
    text = " ".join(printed(choice_lines([choice_of(ROW, ROW)]), 300).split())
    assert text.count("[1] published: A source") == 1
    assert "[c] measured: counted by pocketvit" in text
    assert "note: a note" in text
    assert "[red]Tool[/red] 2" in text, "a name was taken for markup"


def test_an_accuracy_taken_from_timm_has_its_own_source() -> None:
    timm = replace(ROW, top1_source=f"timm {LONG}.tag")
    text = printed(choice_lines([choice_of(timm)]), 300)
    assert "123.456 [1]" in text
    assert "88.1 [2]" in text
    assert "[2] published: a table" in text
    assert f"top-1 as timm evaluated the weights that were timed: {LONG}.tag." in text
    assert "as timm evaluated" not in printed(choice_lines([choice_of(ROW)]), 300)
    figure = published.top1(timm)
    assert figure == published.Figure(
        value=0.8812, evidence=Evidence.PUBLISHED, source="a table", detail=f"{LONG}.tag"
    )


def test_counted_multiply_accumulates_are_given_only_for_the_size_that_was_counted() -> None:
    assert published.macs(ROW) == published.Figure(
        value=ENTRY.macs, evidence=Evidence.MEASURED, source=published.COUNTED
    )
    assert published.macs(replace(ROW, resolution=224)) is None
    stated = published.macs(replace(ROW, resolution=224, macs=10**9))
    assert stated == published.Figure(value=10**9, evidence=Evidence.PUBLISHED, source=ROW.source)


def test_many_notes_are_counted_not_listed() -> None:
    rows = [replace(ROW, note=f"note {i}") for i in range(SHOWN_NOTES + 1)]
    text = printed(choice_lines([choice_of(*rows)]), 120)
    assert f"{SHOWN_NOTES + 1} notes" in text
    assert "note 0" not in text


def test_a_toolchain_without_rows_gives_its_reasons_and_no_table() -> None:
    empty = replace(choice_of(), considered=4, reasons=("4 of 4: slower.", "No row is left."))
    text = printed(choice_lines([empty]), 120)
    assert "4 of 4: slower." in text
    assert "published" not in text


@pytest.mark.parametrize(
    ("model", "name", "family"),
    [
        ("efficientformerv2_s0", "EfficientFormerV2-S0", "EfficientFormerV2"),
        ("resnet101", "RSB-ResNet101", "resnet"),
        ("mobilenetv4_conv_small", "MNV4-Conv-S", "mobilenetv4"),
        ("tf_efficientnetv2_s", "EfficientNetV2-S", "EfficientNetV2"),
        ("mobile_former_508m", "MobileFormer-508M", "MobileFormer"),
        (None, "EdgeViT-XXS", "EdgeViT"),
        (None, "104", "104"),
    ],
)
def test_sizes_of_one_architecture_are_one_family(model: str | None, name: str, family: str) -> None:
    assert published.family(replace(ROW, model=model, name=name)) == family
