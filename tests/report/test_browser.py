"""The page in a real browser without network: plots are drawn, the table sorts, nothing foreign runs."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace

from pocketvit.report import write_html


def with_script(text: str, script: str) -> str:
    """The page with one more script at its end, allowed by its policy."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    return text.replace("</body>", f"<script>{script}</script></body>")


def plot_markup(dom: str, name: str) -> str:
    """What the browser drew in one plot's place."""
    return dom[dom.index(f'id="plot-{name}"') : dom.index(f'data-for="plot-{name}"')]


def test_plots_are_drawn_without_network(rows, environment, tmp_path, dump_dom):
    page = tmp_path / "report.html"
    write_html(rows, environment, title="Digits", about="", path=page)
    dom = dump_dom(page)
    expected = {
        "latency": [row for row in rows if row.accuracy and row.latency],
        "size": [row for row in rows if row.accuracy and row.size_bytes is not None],
    }
    for name, shown in expected.items():
        drawn = plot_markup(dom, name)
        assert "main-svg" in drawn, f"plotly drew nothing for {name}: {drawn[:500]}"
        points = len(re.findall(r'<path class="point"', drawn))
        assert points == len(shown), f"{points} markers in the {name} plot for {len(shown)} rows"
        assert "js-line" in drawn, f"the {name} plot has no front line"


def test_headings_sort_by_number_and_keep_missing_last(rows, environment, tmp_path, dump_dom):
    page = tmp_path / "report.html"
    write_html(rows, environment, title="Digits", about="", path=page)
    script = """
      const button = document.querySelectorAll("#candidates thead button")[4];
      const order = () => [...document.querySelectorAll("#candidates tbody tr")]
        .map((row) => row.cells[0].dataset.key).join(" ");
      button.focus();
      document.body.dataset.focused = document.activeElement === button;
      button.click();
      document.body.dataset.up = order();
      document.body.dataset.aria = button.parentElement.getAttribute("aria-sort");
      button.click();
      document.body.dataset.down = order();
    """
    page.write_text(with_script(page.read_text(), script))
    body = re.search(r"<body[^>]*>", dump_dom(page))
    assert body
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', body.group()))
    measured = sorted((row for row in rows if row.latency), key=lambda row: row.latency.median_ms)
    up = [f"{row.target}:{row.precision}" for row in measured]
    last = [f"{row.target}:{row.precision}" for row in rows if not row.latency]
    assert found.get("up", "").split() == up + last, found
    assert found.get("down", "").split() == up[::-1] + last, found
    assert found.get("focused") == "true", "the heading cannot take the keyboard's focus"
    assert found.get("aria") == "ascending", found


def test_hostile_names_stay_text_even_without_the_policy(rows, environment, tmp_path, dump_dom):
    attack = "</script><script>document.documentElement.dataset.owned=1</script><img src=x onerror=owned()>"
    hostile = [
        replace(row, name=attack, target=attack, precision=attack, check=attack, settings={attack: attack})
        for row in rows
    ]
    page = tmp_path / "report.html"
    training = [{"name": attack, attack: attack}]
    write_html(hostile, {attack: attack}, title=attack, about=attack, path=page, training=training)
    text, removed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert removed == 1
    page.write_text(text)
    dom = dump_dom(page)
    assert "data-owned" not in dom[:300], "a script in a name ran"
    assert "<img" not in re.sub(r"<script\b.*?</script>", "", dom, flags=re.S), "a tag in a name became an element"
    assert "main-svg" in plot_markup(dom, "latency"), "the hostile name broke the plot"


def test_policy_refuses_a_planted_script(rows, environment, tmp_path, dump_dom):
    page = tmp_path / "report.html"
    write_html(rows, environment, title="Digits", about="", path=page)
    planted = "<script>document.documentElement.dataset.owned=1</script></body>"
    page.write_text(page.read_text().replace("</body>", planted))
    assert "data-owned" not in dump_dom(page)[:300], "the page's policy let a foreign script run"
