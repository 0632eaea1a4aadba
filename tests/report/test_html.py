"""What the page holds, read as text: every row, every number's evidence, no way out to a network."""

from __future__ import annotations

import html
import os
import re
from dataclasses import replace

import pytest

from pocketvit.errors import BadInput
from pocketvit.report import Budget, verdict, write_html
from pocketvit.types import Evidence


def page_text(path, rows, environment, **more):
    write_html(rows, environment, title="Digits", about="What was done.", path=path, **more)
    return re.sub(r"<script>.*?</script>", "", path.read_text(), flags=re.S)


def table_rows(text):
    body = re.search(r"<table id=candidates>.*?<tbody>(.*?)</tbody>", text, flags=re.S)
    assert body
    return re.findall(r"<tr>.*?</tr>", body.group(1), flags=re.S)


def test_every_number_carries_its_evidence(rows, environment, tmp_path):
    rows[3] = replace(rows[3], latency=replace(rows[3].latency, evidence=Evidence.PREDICTED))
    for row, markup in zip(rows, table_rows(page_text(tmp_path / "r.html", rows, environment)), strict=True):
        numbers = len(re.findall(r"<td class=number ", markup))
        tags = re.findall(r'<small class="evidence (\w+)">', markup)
        known = [row.accuracy, row.agreement, row.size_bytes, row.latency, row.quantized]
        assert numbers == len(tags) == sum(part is not None for part in known), (row.target, numbers, tags)
        assert ("predicted" in tags) == (row is rows[3])


def test_missing_numbers_are_words(rows, environment, tmp_path):
    markup = table_rows(page_text(tmp_path / "r.html", rows, environment))[-1]
    assert markup.count("not run") >= 4, markup
    assert "Core ML files run on macOS only" in markup
    assert not re.search(r"<td[^>]*></td>", markup), "a blank cell"


def test_rows_without_a_marker_are_listed_beneath_the_plot(rows, environment, tmp_path):
    text = page_text(tmp_path / "r.html", rows, environment)
    captions = re.findall(r"<figcaption>.*?</figcaption>", text, flags=re.S)
    assert [caption.count("<li>") for caption in captions] == [2, 3], captions
    assert "eager:fp32 of digits_deit_distilled has no size" in captions[1]


def test_untrained_is_said_wherever_the_name_is(rows, environment, tmp_path):
    untrained = [replace(row, trained=False) for row in rows]
    budget = Budget(max_latency_ms=1.0)
    text = page_text(tmp_path / "r.html", untrained, environment, budget=budget)
    text = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    after = [text[m.end() : m.end() + 40] for m in re.finditer("digits_deit_distilled", text)]
    assert len(after) > len(rows)
    assert all("UNTRAINED" in words for words in after), [words for words in after if "UNTRAINED" not in words]


def test_training_environment_and_verdict_are_there(rows, environment, tmp_path):
    training = [
        {"name": "teacher", "val_top1": 0.9833, "parameters": 52330},
        {"name": "student", "test_top1": 0.9722, "exported": "yes"},
    ]
    budget = Budget(max_top1_drop=0.0001, max_latency_ms=0.1)
    text = html.unescape(page_text(tmp_path / "r.html", rows, environment, training=training, budget=budget))
    for words in ("98.3%", "97.2%", "52,330", "val top1", verdict(rows, budget).sentence, *environment.values()):
        assert words in text, words
    table = text[text.index("<table id=training>") : text.index("Environment")]
    assert (table.count("not measured"), table.count("–")) == (3, 1), table


def test_nothing_points_outside_the_page(rows, environment, tmp_path):
    text = page_text(tmp_path / "r.html", rows, environment)
    assert not re.findall(r"""\b(?:src|href|action|srcset)\s*=|@import|url\(""", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert "default-src 'none'" in policy.group(1)
    assert "http" not in policy.group(1)
    assert policy.group(1).count("sha256-") == 2


def test_markup_in_names_is_escaped(rows, environment, tmp_path):
    hostile = [replace(row, name="<script>alert(1)</script>") for row in rows]
    page = tmp_path / "r.html"
    write_html(hostile, environment, title="<script>", about="<b>", path=page)
    assert "<script>alert" not in page.read_text()
    figures = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page.read_text(), flags=re.S)
    assert len(figures) == 2
    assert not any("<" in figure for figure in figures), "a figure's JSON could end its own element"
    assert "&lt;script&gt;alert(1)" in page.read_text()


def test_a_failed_write_leaves_the_old_page_alone(rows, environment, tmp_path, monkeypatch):
    page = tmp_path / "r.html"
    page.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="disk is full"):
        write_html(rows, environment, title="", about="", path=page)
    assert page.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_a_page_without_rows_still_opens(environment, tmp_path):
    assert table_rows(page_text(tmp_path / "r.html", [], environment)) == []
