"""An audit for people: a table that fits, a page that a browser draws and that nothing can make run a script."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.console import Console

from pocketvit.measure.ane.audit import audit
from pocketvit.measure.ane.compute_plan import Disagreement, Score
from pocketvit.measure.ane.graph import OpRecord, Tensor
from pocketvit.measure.ane.rules import RULES
from pocketvit.measure.ane.sweep import Cliff, Refused, Sweep, SweepPoint
from pocketvit.report.audit_page import write_audit_page
from pocketvit.report.audit_table import SHOWN, audit_lines


def chain(modules):
    """One badly shaped relu for each module."""
    tensors = [Tensor(f"t{i}", (64, 7, 7)) for i in range(len(modules) + 1)]
    return [
        OpRecord(kind="relu", name=after.name, inputs=(before,), outputs=(after,), module=module, located="module")
        for module, before, after in zip(modules, tensors, tensors[1:], strict=False)
    ]


@pytest.fixture
def found():
    names = "abcdefghijkl"
    return audit(chain([f"stages.{i}.a_rather_long_module_name.{names[i]}.attention.qkv" for i in range(12)]))


@pytest.fixture
def sweep():
    points = [
        SweepPoint(size=s, ops=9, logical_bytes=s * s * 10, padded_bytes=s * s * b, wasted_bytes=s, places={"a": 1})
        for s, b in ((224, 12), (256, 11), (288, 19), (320, 12))
    ]
    cliff = Cliff(size=288, excess=1.65, place="stages.*.conv")
    refused = tuple(Refused(size=s, reason="AssertionError: no") for s in (448, 512))
    return Sweep(points=tuple(points), refused=refused, cliffs=(cliff,))


@pytest.fixture
def score():
    odd = Disagreement(
        name="gather_0", kind="gather", module="a", preferred="neural_engine", reason="gather operations"
    )
    return Score(
        on_engine=593,
        of=594,
        matched=590,
        precision=1.0,
        recall=0.998,
        cost_on_engine=0.99,
        disagreements=(odd,),
        not_in_plan=1,
        not_in_file=4,
    )


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_fits_and_is_short(found, sweep, score, width):
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as printed:
        for line in audit_lines(found, sweep=sweep, score=score):
            console.print(line)
    lines = printed.get().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= (40 if width == 80 else 30), "\n".join(lines)
    text = " ".join(printed.get().split())
    assert f"... and {len(found.groups) - SHOWN} more" in text
    assert "cliff at 288 px: 1.65x" in text
    assert "refused at 448, 512 px: AssertionError: no" in text
    assert "593 of 594 operations on the Neural Engine" in text
    assert "measured on the user's Mac" in text


def test_an_audit_alone_takes_25_lines_of_80_columns(found):
    console = Console(width=80)
    with console.capture() as printed:
        for line in audit_lines(found):
            console.print(line)
    assert len(printed.get().splitlines()) <= 25, printed.get()


def test_paths_break_between_words(found):
    console = Console(width=80)
    with console.capture() as printed:
        for line in audit_lines(found):
            console.print(line)
    rows = [line for line in printed.get().splitlines() if "attention" in line or "rather" in line]
    assert rows
    words = {word for line in rows for word in re.split(r"[ ._]+", line)}
    assert {"stages", "rather", "long", "module", "name", "attention"} <= words, printed.get()


def test_windows_that_change_and_sizes_unknown_are_told(found, sweep):
    windows = ("7x7", "7x7", "8x8", "7x7")
    points = tuple(replace(p, windows=w) for p, w in zip(sweep.points, windows, strict=True))
    swept = replace(sweep, points=points, windows="7x7")
    said = [line for line in audit_lines(replace(found, left_out=3), sweep=swept) if isinstance(line, str)]
    assert "windows become 8x8 at 288 px, from 7x7: another model there" in said
    assert "sizes unknown: 3 operations left out of the bytes" in said


def test_what_no_finding_names_stands_last(tmp_path):
    tensors = [Tensor(f"t{i}", (1000, 63)) for i in range(2)]
    found = audit([OpRecord(kind="relu", name="t1", inputs=(tensors[0],), outputs=(tensors[1],))])
    says = "4 kB padding in operations that waste less than a fifth"
    assert str(audit_lines(found)[-1]).startswith(says)
    write_audit_page(found, title="A model", path=tmp_path / "page.html")
    assert says in (tmp_path / "page.html").read_text()


def test_the_page_holds_everything(found, sweep, score, tmp_path):
    page = tmp_path / "audit.html"
    write_audit_page(found, title="A model", path=page, sweep=sweep, score=score)
    text = page.read_text()
    assert text.count("<td data-name=rule>") == len(found.groups)
    assert text.count("<circle") == len(sweep.points)
    assert text.count('class="cliff"') == 1
    used = {finding.rule for finding in found.findings}
    for rule in RULES:
        assert (rule.source in text) == (
            rule.id in used or any(r.source == rule.source for r in RULES if r.id in used)
        )
    assert "predicted" in text
    assert "measured on the user&#x27;s Mac" in text
    assert not re.search(r"<script|<link|<img|src=|url\(", text)


def test_a_browser_draws_it_and_hostile_names_stay_text(found, sweep, score, tmp_path, dump_dom):
    attack = "</td></table><script>document.documentElement.dataset.owned=1</script><img src=x onerror=owned()>"
    hostile = replace(
        found,
        findings=tuple(replace(one, module=attack, what=attack, op=attack, source=attack) for one in found.findings),
    )
    page = tmp_path / "audit.html"
    swept = replace(sweep, cliffs=(replace(sweep.cliffs[0], place=attack),), refused=(Refused(size=1, reason=attack),))
    odd = replace(score, disagreements=(replace(score.disagreements[0], name=attack, kind=attack),))
    write_audit_page(hostile, title=attack, path=page, sweep=swept, score=odd)
    text, removed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert removed == 1
    page.write_text(text)
    dom = dump_dom(page)
    assert "data-owned" not in dom[:300], "a script in a name ran"
    assert "<img" not in dom
    assert dom.count("<circle") == len(sweep.points)


def test_the_policy_refuses_a_planted_script(found, tmp_path, dump_dom):
    page = tmp_path / "audit.html"
    write_audit_page(found, title="A model", path=page)
    planted = "<script>document.documentElement.dataset.owned=1</script></body>"
    page.write_text(page.read_text().replace("</body>", planted))
    assert "data-owned" not in dump_dom(page)[:300]


def test_an_audit_without_findings_says_so(tmp_path):
    page = tmp_path / "audit.html"
    write_audit_page(audit([]), title="Nothing", path=page)
    assert "No rule applies" in page.read_text()
