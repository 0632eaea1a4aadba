"""What every page of a report shares: it opens offline, and its policy lets nothing in that it does not carry."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence
from html import escape

from ..types import Evidence
from .cells import plain


def document(title: str, body: str, *, style: str = "", scripts: Sequence[str] = ()) -> str:
    """A whole page: body inside main, `style` after the styles all pages share, scripts at the end.

    title: plain text. body: HTML. The Content-Security-Policy allows these scripts, by hash, and no connection.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>{asset("page.css")}{style}</style>
</head>
<body>
<main>
{body}
</main>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def policy(scripts: Sequence[str]) -> str:
    """Only these scripts, inline styles and, beside scripts, inline images; nothing that would use the network."""
    allowed = "style-src 'unsafe-inline'; "
    if scripts:
        digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
        hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
        allowed = f"script-src {hashes}; {allowed}img-src data: blob:; "
    return f"default-src 'none'; {allowed}base-uri 'none'; form-action 'none'"


def plot_scripts() -> tuple[str, str]:
    """The scripts of a page with plots and a sortable table: plotly, and the page's own."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs(), asset("page.js")


def asset(name: str) -> str:
    """A text file that lies beside this one."""
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def text(words: object) -> str:
    """Words as HTML: escaped, without control characters."""
    return escape(plain(str(words)))


def evidence_tag(evidence: Evidence | None) -> str:
    """How a number is known, below it; nothing where there is no number."""
    return f'<small class="evidence {evidence}">{evidence}</small>' if evidence else ""
