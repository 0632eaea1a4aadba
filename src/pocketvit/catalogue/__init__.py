"""What is known about models before anything runs: counted cost, published accuracy, published device latency."""

from __future__ import annotations

from .choosing import Choice, Setup, choose, setups
from .tables import Claim, Entry, Published, PublishedLatency, entries, entry, latencies, published

__all__ = [
    "Choice",
    "Claim",
    "Entry",
    "Published",
    "PublishedLatency",
    "Setup",
    "choose",
    "entries",
    "entry",
    "latencies",
    "published",
    "setups",
]
