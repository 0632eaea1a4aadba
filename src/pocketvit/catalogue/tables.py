"""The packaged tables, read on first use; benchmarks/catalogue.py builds them.

Counts of parameters, multiply-accumulates and activations were measured by `pocketvit.measure.cost`; accuracies,
latencies and claims are published, each with its source.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One architecture: what it costs at its default input size, and the accuracy of the weights to be had for it.

    ours: registered by this package. params, macs, activations: of one image of input_size (channels, height,
    width), elements; None where the model cannot be counted, and note says why. top1, top5: shares (0..1) on
    ImageNet-1k of the weights tagged `weights`, on images of top1_size pixels, which need not be input_size.
    """

    name: str
    ours: bool
    params: int | None
    macs: int | None
    activations: int | None
    input_size: tuple[int, int, int]
    top1: float | None
    top5: float | None
    weights: str | None
    top1_size: int | None
    top1_source: str | None
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedLatency:
    """One published latency: milliseconds for one image on one device, with all that its source says.

    model: the name timm knows it by, None where it has none. name: as the source prints it. toolchain: our name, which
    tells rows that can be compared from others; toolchain_stated: the source's own words, versions included.
    resolution: pixels; resolution_assumed where the source does not say. ms: infinite where the source says that the
    model failed to run. top1: share (0..1); top1_source: "the latency's source" where that states it, "timm NAME.TAG"
    where timm evaluated the very weights that were timed, at that size, else why there is none. params, macs: as the
    latency's source states them. read_from: table, figure_digitised, screenshot...
    """

    model: str | None
    name: str
    device: str
    os: str
    toolchain: str
    resolution: int | None
    resolution_assumed: bool
    ms: float
    top1: float | None
    top1_source: str
    params: int | None
    macs: int | None
    read_from: str
    note: str
    source: str
    toolchain_stated: str = ""

    @property
    def failed(self) -> bool:
        """True where the source says that the model did not run."""
        return math.isinf(self.ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One number that a paper or its repository states about one of our families.

    metric: "top1" (share 0..1), "params" or "macs". status: read, or read in a secondary citation.
    """

    model: str
    name: str
    setting: str
    metric: str
    value: float
    status: str
    note: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """All that is published about one model."""

    latencies: tuple[PublishedLatency, ...]
    claims: tuple[Claim, ...]


def entries(pattern: str = "*") -> tuple[Entry, ...]:
    """Every architecture whose name matches, * standing for anything; ours first."""
    return tuple(found for found in _entries().values() if fnmatchcase(found.name, pattern))


def entry(name: str) -> Entry | None:
    """The architecture of this name, with or without a weights tag; None where the catalogue has none."""
    return _entries().get(name.partition(".")[0])


@cache
def latencies() -> tuple[PublishedLatency, ...]:
    """Every published latency, in the order of the table."""
    sources, setups = _sources(), {row["id"]: row for row in _rows("setups.csv")}
    return tuple(
        PublishedLatency(
            model=row["model"] or None,
            name=row["name"],
            device=setups[row["setup"]]["device"],
            os=setups[row["setup"]]["os"],
            toolchain=setups[row["setup"]]["toolchain"],
            toolchain_stated=setups[row["setup"]]["stated"],
            resolution=_whole(row["resolution"]),
            resolution_assumed=row["resolution_assumed"] == "yes",
            ms=float(row["ms"]) if row["ms"] else math.inf,
            top1=_share(row["top1"]),
            top1_source=row["top1_source"],
            params=_whole(row["params"]),
            macs=_whole(row["macs"]),
            read_from=row["read_from"],
            note=row["note"],
            source=sources[row["source"]],
        )
        for row in _rows("latency.csv")
    )


def published(name: str) -> Published:
    """Latencies and claims about the architecture of this name; both empty where nothing is published."""
    model = name.partition(".")[0]
    return Published(
        latencies=tuple(row for row in latencies() if row.model == model),
        claims=tuple(claim for claim in _claims() if claim.model == model),
    )


@cache
def _entries() -> Mapping[str, Entry]:
    sources = _sources()
    found = [
        Entry(
            name=row["name"],
            ours=row["ours"] == "yes",
            params=_whole(row["params"]),
            macs=_whole(row["macs"]),
            activations=_whole(row["activations"]),
            input_size=_size(row["input_size"]),
            top1=_share(row["top1"]),
            top5=_share(row["top5"]),
            weights=row["weights"] or None,
            top1_size=_whole(row["top1_size"]),
            top1_source=sources[row["top1_source"]] if row["top1_source"] else None,
            note=row["note"],
        )
        for row in _rows("models.csv")
    ]
    return {found.name: found for found in sorted(found, key=lambda e: (not e.ours, e.name))}


@cache
def _claims() -> tuple[Claim, ...]:
    sources = _sources()
    return tuple(
        Claim(
            model=row["model"],
            name=row["name"],
            setting=row["setting"],
            metric=row["metric"],
            value=round(float(row["value"]) / 100, 6) if row["metric"] == "top1" else float(row["value"]),
            status=row["status"],
            note=row["note"],
            source=sources[row["source"]],
        )
        for row in _rows("claims.csv")
    )


def _sources() -> dict[str, str]:
    return {row["id"]: row["text"] for row in _rows("sources.csv")}


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(resources.files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines()))


def _whole(text: str) -> int | None:
    return int(text) if text else None


def _share(percent: str) -> float | None:
    """A percentage as printed becomes a share, to the digits that were printed."""
    return round(float(percent) / 100, 6) if percent else None


def _size(text: str) -> tuple[int, int, int]:
    channels, height, width = map(int, text.split("x"))
    return channels, height, width
