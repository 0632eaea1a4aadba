"""The figure of published latencies: what it shows, that names keep apart, and that each format is whole."""

from __future__ import annotations

import html
import importlib.util
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from pocketvit.catalogue import Choice, PublishedLatency
from pocketvit.errors import BadInput
from pocketvit.pareto import pareto
from pocketvit.report.landscape import FORMATS, GREY, LARGEST, OTHERS, Dot, landscape, places, write
from pocketvit.types import Evidence

CANVAS = (530.0, 330.0)
SVG = "{http://www.w3.org/2000/svg}"


def published_row(name: str, ms: float, top1: float, params: float | None = None, **changes) -> PublishedLatency:
    """One row; top1 in percent, params in millions."""
    row = PublishedLatency(
        model=None,
        name=name,
        device="Phone 1",
        os="",
        toolchain="Tool 2",
        toolchain_stated="Tool 2 of 2020",
        resolution=224,
        resolution_assumed=False,
        ms=ms,
        top1=top1 / 100,
        top1_source="the latency's source",
        params=None if params is None else round(params * 1e6),
        macs=None,
        read_from="table",
        note="",
        source="Someone, Table 1",
    )
    return replace(row, **changes)


def choice_of(rows: list[PublishedLatency]) -> Choice:
    ordered = sorted(rows, key=lambda row: row.ms)
    return Choice(
        device="Phone 1",
        toolchain="Tool 2",
        rows=tuple(ordered),
        front=pareto([(row.ms, row.top1) for row in ordered]),
        considered=len(ordered),
        reasons=(),
    )


@pytest.fixture
def choice() -> Choice:
    """Worked out by hand: Tiny-A, Tiny-B and Large-A are the front; Slow is beaten by Large-A, Worse by Tiny-B."""
    return choice_of(
        [
            published_row("Tiny-A", 0.5, 70.0, 1.0),
            published_row("Tiny-B", 1.0, 75.0, 4.0),
            published_row("Worse-A", 1.5, 74.0, 4.0),
            published_row("Large-A", 2.0, 80.0, 16.0),
            published_row("Slow-A", 6.0, 78.0),
        ]
    )


@pytest.fixture
def crowd() -> Choice:
    """Sixty models of twelve families in a corner, as surveys are."""
    chance = random.Random(3)
    rows = []
    for i in range(60):
        ms = 0.6 * 1.03**i
        top1 = 74 + 9 * (1 - math.exp(-i / 25)) - abs(chance.gauss(0, 0.8))
        rows.append(published_row(f"{chr(65 + i % 12)}former-Long{i}", ms, top1, chance.uniform(1, 80)))
    return choice_of(rows)


def test_the_front_is_the_one_worked_out_by_hand(choice):
    drawn = landscape(choice, CANVAS)
    assert {p.row.name for p in drawn.points if p.front} == {"Tiny-A", "Tiny-B", "Large-A"}
    assert drawn.front == ((0.5, 70.0), (1.0, 70.0), (1.0, 75.0), (2.0, 75.0), (2.0, 80.0))


def test_the_area_of_a_marker_is_its_parameters(choice):
    points = {p.row.name: p for p in landscape(choice, CANVAS).points}
    assert points["Large-A"].radius == LARGEST
    # half the side and a quarter of the area for a quarter of the parameters
    assert points["Tiny-B"].radius == pytest.approx(LARGEST / 2)
    assert points["Slow-A"].params is None


def test_names_are_of_the_front_and_the_extremes(choice, crowd):
    drawn = landscape(choice, CANVAS)
    assert {drawn.points[i].row.name for i in drawn.names} == {"Tiny-A", "Tiny-B", "Large-A", "Slow-A"}
    named = landscape(crowd, CANVAS)
    assert len(crowd.front) <= len(named.names) <= len(crowd.front) + 5 < len(crowd.rows)


def _boxes(drawn, canvas):
    from pocketvit.report.landscape import TEXT, text_width

    boxes = []
    for i, place in drawn.names.items():
        point = drawn.points[i]
        x, y = drawn.x.at(point.ms) * canvas[0] + place.dx, drawn.y.at(point.top1) * canvas[1] + place.dy
        half, tall = text_width(point.row.name) / 2, TEXT * 0.6
        boxes.append((point.row.name, x - half, y - tall, x + half, y + tall))
    return boxes


def test_no_name_covers_another_or_leaves_the_figure(crowd):
    boxes = _boxes(landscape(crowd, CANVAS), CANVAS)
    for k, (name, left, bottom, right, top) in enumerate(boxes):
        assert left >= 0, f"{name} begins at {left:.0f}"
        assert bottom >= 0, f"{name} begins at {bottom:.0f}"
        assert right <= CANVAS[0], f"{name} ends at {right:.0f}"
        assert top <= CANVAS[1], f"{name} ends at {top:.0f}"
        for other, l2, b2, r2, t2 in boxes[k + 1 :]:
            apart = right <= l2 or r2 <= left or top <= b2 or t2 <= bottom
            assert apart, f"{name} and {other} overlap"


def test_a_lone_name_stands_above_its_dot_and_a_crowded_one_gets_a_line():
    free = places([Dot(x=100, y=100, radius=5)], {0: (40, 12)}, (200, 200))[0]
    assert not free.leader
    assert math.hypot(free.dx, free.dy) < 40
    dots = [Dot(x=100 + 12 * i, y=100 + 12 * k, radius=8) for i in range(-3, 4) for k in range(-3, 4)]
    middle = len(dots) // 2
    crowded = places(dots, {middle: (40, 12)}, (300, 300))[middle]
    assert crowded.leader
    assert math.hypot(crowded.dx, crowded.dy) > 36, "the name lies on the dots around it"


def test_a_name_without_room_is_left_out():
    assert places([Dot(x=10, y=10, radius=3)], {0: (400, 12)}, (200, 200)) == {}


def test_more_families_than_colours_share_grey(crowd):
    drawn = landscape(crowd, CANVAS)
    colours = dict(drawn.families)
    assert len(colours) == 10
    assert colours[OTHERS] == GREY
    assert len(set(colours.values())) == 10
    on_front = {p.family for p in drawn.points if p.front}
    assert on_front - {OTHERS}, on_front


def test_rows_outside_the_budget_are_faint_and_never_named(choice):
    kept = replace(choice, rows=choice.rows[:2], front=(0, 1))
    drawn = landscape(kept, CANVAS, around=choice.rows)
    assert len(drawn.points) == len(choice.rows)
    assert {p.row.name for p in drawn.points if not p.inside} == {"Worse-A", "Large-A", "Slow-A"}
    assert all(drawn.points[i].inside for i in drawn.names)


def test_latencies_far_apart_are_drawn_on_a_logarithmic_axis(choice):
    assert landscape(choice, CANVAS).x.log
    close = replace(choice, rows=choice.rows[:4], front=(0, 1, 3))
    axis = landscape(close, CANVAS).x
    assert (axis.log, axis.low) == (False, 0.0)
    assert [axis.at(0.0), axis.at(axis.high)] == [0.0, 1.0]


@pytest.mark.parametrize("change", [{"device": "Phone 2"}, {"toolchain": "Tool 3"}])
def test_rows_of_another_device_or_toolchain_are_refused(choice, tmp_path, change):
    foreign = replace(published_row("Stranger", 1.0, 90.0), **change)
    with pytest.raises(BadInput, match="Stranger was timed on another device or toolchain"):
        write(choice, tmp_path / "a.svg", around=[foreign])
    assert not list(tmp_path.iterdir())


def test_an_empty_figure_is_refused_in_words(choice, tmp_path):
    empty = replace(choice, rows=(), front=())
    with pytest.raises(BadInput, match="no row with a latency and a top-1"):
        write(empty, tmp_path / "a.html", around=[published_row("Failed", math.inf, 70.0)])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_budget_that_nothing_keeps_still_shows_what_there_is(choice, tmp_path, suffix):
    write(replace(choice, rows=(), front=()), tmp_path / f"a{suffix}", around=choice.rows)
    assert (tmp_path / f"a{suffix}").stat().st_size > 5000


def test_the_svg_holds_names_as_text_and_every_marker(choice, tmp_path):
    write(choice, tmp_path / "a.svg")
    tree = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert tree.tag == f"{SVG}svg"
    words = {"".join(e.itertext()).strip() for e in tree.iter(f"{SVG}text")}
    assert {"Tiny-A", "Tiny-B", "Large-A", "Slow-A", "Published latency on Phone 1", "Tool 2"} <= words
    assert any("published" in w and "Someone, Table 1" in w for w in words), "the sources are not named"
    scattered = [e for e in tree.iter(f"{SVG}g") if e.get("id", "").startswith("PathCollection")]
    assert len(scattered) == len(choice.rows)
    outside = re.findall(r'(?:href|src)="(?!#)[^"]*"|url\((?!#)', (tmp_path / "a.svg").read_text())
    assert not outside, outside


def test_sources_that_find_no_room_are_counted(choice, tmp_path):
    rows = tuple(replace(row, source=f"{row.name}: {'a long source, ' * 12}") for row in choice.rows)
    write(replace(choice, rows=rows), tmp_path / "a.svg")
    words = " ".join("".join(e.itertext()) for e in ElementTree.parse(tmp_path / "a.svg").iter(f"{SVG}text"))
    shown = sum(f"{row.name}: a long source" in words for row in rows)
    assert 0 < shown < len(rows)
    assert f"and {len(rows) - shown} more" in words


def test_the_same_figure_is_the_same_file(choice, tmp_path):
    for name in ("a.svg", "b.svg"):
        write(choice, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_png_is_whole_and_not_blank(choice, tmp_path):
    write(choice, tmp_path / "a.PNG")
    with Image.open(tmp_path / "a.PNG") as image:
        assert image.format == "PNG"
        assert image.size == (1688, 1044), "760 x 470 points at 160 dots per inch"
        colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert max(count for count, _ in colours) < 0.99 * 1688 * 1044, "one colour only"
    for point in landscape(choice, CANVAS).points:
        rgb = tuple(bytes.fromhex(point.colour[1:]))
        assert any(colour == rgb for _, colour in colours), f"{point.row.name} is not drawn in {point.colour}"


def page_without_scripts(path: Path) -> str:
    return re.sub(r"<script>.*?</script>", "", path.read_text(), flags=re.S)


def test_the_page_points_nowhere_and_tags_every_number(choice, tmp_path):
    write(choice, tmp_path / "a.html")
    text = page_without_scripts(tmp_path / "a.html")
    assert not re.findall(r"""\b(?:src|action|srcset)\s*=|\bhref="(?!#)|@import|url\(|https?:""", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy.group(1).startswith("default-src 'none'; script-src 'sha256-")
    assert policy.group(1).count("sha256-") == 2
    body = re.search(r"<tbody>(.*?)</tbody>", text, flags=re.S)
    assert body
    rows = re.findall(r"<tr.*?</tr>", body.group(1), flags=re.S)
    assert len(rows) == len(choice.rows)
    for row, markup in zip(choice.rows, rows, strict=True):
        known = 2 + (row.params is not None)
        tags = re.findall(r'class="evidence (\w+)"', markup)
        assert tags == [Evidence.PUBLISHED] * known, (row.name, tags)
        assert markup.count('href="#source-1"') == known
        assert "not known" in markup, "multiply-accumulates that nobody states are words"
    assert '<li id="source-1">Someone, Table 1</li>' in text


def test_the_page_names_the_weights_of_an_accuracy_from_elsewhere(choice, tmp_path):
    borrowed = replace(choice.rows[0], model="resnet18", top1_source="timm resnet18.tv_in1k")
    write(replace(choice, rows=(borrowed, *choice.rows[1:])), tmp_path / "a.html")
    text = page_without_scripts(tmp_path / "a.html")
    assert text.count("<small>resnet18.tv_in1k</small>") == 1
    (figure,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text)
    hovers = json.loads(figure)["data"][1]["hovertext"]
    assert [hover for hover in hovers if "top-1: 70.0% · published · resnet18.tv_in1k" in hover], hovers


def test_names_cannot_become_markup(choice, tmp_path):
    attack = "<script>alert(1)</script>$x$"
    hostile = replace(choice, rows=tuple(replace(r, name=attack, note=attack, source=attack) for r in choice.rows))
    write(hostile, tmp_path / "a.html")
    assert "<script>alert" not in (tmp_path / "a.html").read_text()
    (figure,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', (tmp_path / "a.html").read_text())
    assert "<" not in figure, "a figure's JSON could end its own element"
    assert html.escape(attack) in json.loads(figure)["layout"]["annotations"][0]["text"]
    write(hostile, tmp_path / "a.svg")
    words = {"".join(e.itertext()).strip() for e in ElementTree.parse(tmp_path / "a.svg").iter(f"{SVG}text")}
    assert attack in words


@pytest.mark.slow  # a browser takes ten seconds to start here
def test_the_page_draws_every_row_in_a_browser(choice, tmp_path, dump_dom):
    write(choice, tmp_path / "a.html")
    dom = dump_dom(tmp_path / "a.html")
    drawn = dom[dom.index('id="plot-landscape"') : dom.index('data-for="plot-landscape"')]
    assert "main-svg" in drawn, f"plotly drew nothing: {drawn[:500]}"
    assert len(re.findall(r'<path class="point"', drawn)) == len(choice.rows)
    assert "js-line" in drawn
    for name in ("Tiny-A", "Large-A"):
        assert name in drawn


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.svg.txt"])
def test_other_formats_are_refused(choice, tmp_path, name):
    with pytest.raises(BadInput, match=r"\.svg, \.png, \.html"):
        write(choice, tmp_path / name)


def test_without_matplotlib_the_command_that_installs_it_is_named(choice, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    with pytest.raises(BadInput, match=re.escape("pip install 'pocketvit[plot]'")):
        write(choice, tmp_path / "a.svg")
    write(choice, tmp_path / "a.html")
