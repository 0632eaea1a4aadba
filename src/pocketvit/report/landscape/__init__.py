"""The survey's figure: published top-1 against latency on one device and toolchain, as SVG, PNG or a page.

`layout` decides what is shown where, `places` finds room for names; `figure` and `page` draw what they say.
"""

from __future__ import annotations

from .formats import FORMATS, check, write
from .layout import GREY, LARGEST, OTHERS, TEXT, Landscape, landscape, text_width
from .places import Dot, places

__all__ = [
    "FORMATS",
    "GREY",
    "LARGEST",
    "OTHERS",
    "TEXT",
    "Dot",
    "Landscape",
    "check",
    "landscape",
    "places",
    "text_width",
    "write",
]
