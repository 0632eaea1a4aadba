"""Commands about what is known before anything runs: models, choose. Neither imports torch."""

from __future__ import annotations

import importlib.util
import math
import re
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

from ..errors import BadInput
from ..types import Evidence, plain
from . import app
from .options import AsJson, check_new_file
from .session import Session, session

if TYPE_CHECKING:
    from ..catalogue import Choice, Entry

_SHOWN = 9
_COUNTED, _SCORED = ("params", "macs", "activations"), ("top1", "top5")

MaxParams = Annotated[float | None, typer.Option(metavar="N", help="At most so many parameters, as 10e6.")]
MinTop1 = Annotated[float | None, typer.Option(metavar="PERCENT", help="At least this top-1 on ImageNet, as 75.")]


class Listed(NamedTuple):
    """A model that can be named; entry: what the catalogue has about it, None where it has nothing."""

    name: str
    ours: bool
    entry: Entry | None


class Order(StrEnum):
    """What models are sorted by."""

    NAME = "name"
    PARAMS = "params"
    MACS = "macs"
    TOP1 = "top1"


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="Names to list; * stands for anything.")] = "*",
    sort: Annotated[
        Order | None, typer.Option(help="Fewest params or macs first, best top1 first; else ours, then by name.")
    ] = None,
    max_params: MaxParams = None,
    max_macs: Annotated[
        float | None, typer.Option(metavar="N", help="At most so many multiply-accumulates, as 1e9.")
    ] = None,
    min_top1: MinTop1 = None,
    all_: Annotated[bool, typer.Option("--all", help="List every match, not only the first.")] = False,
    ours: Annotated[bool, typer.Option("--ours", help="The trained checkpoints that ship with pocketvit.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the models that can be named: what each costs, and how good the weights to be had for it are.

    What it costs is counted for one image of px pixels. Top-1 is published,
    for the weights named, at px or at the size after @.

    Example: pocketvit models '*vit*' --max-params 10e6 --min-top1 75 --sort top1

    Example: pocketvit models --ours
    """
    with session("models", as_json) as out:
        if ours:
            _ours(out, pattern)
        from ..report.catalogue_table import models_table

        most = {"params": _positive("--max-params", max_params), "macs": _positive("--max-macs", max_macs)}
        least = _share(min_top1)
        matching = _matching(pattern)
        if not matching:
            raise BadInput(f"No model matches {pattern!r}; try '*{pattern.strip('*')}*' or pocketvit models.")
        found = [model for model in matching if _within(model.entry, most, least)]
        if sort is not None:
            found.sort(key=lambda model: _rank(sort, model))
        shown = found if all_ else found[:_SHOWN]
        lines: list[Any] = [models_table((model.name, model.entry) for model in shown)] if shown else []
        if len(found) > len(shown):
            lines.append(f"... and {len(found) - len(shown)} more; --all lists them.")
        if not found:
            lines.append(f"None of the {len(matching)} models that match is known to keep these limits.")
        out.finish([_document(model) for model in found], *lines, ok=bool(found))


def _ours(out: Session, pattern: str) -> NoReturn:
    """The trained checkpoints in the package; every command takes their names."""
    from rich import box
    from rich.table import Column, Table

    from ..packaged import packaged

    found = [one for name, one in packaged().items() if fnmatchcase(name, pattern)]
    if not found:
        raise BadInput(f"No packaged checkpoint matches {pattern!r}; pocketvit models --ours lists all.")
    whole = Column("checkpoint", overflow="fold")  # a name cut short could not be copied
    table = Table(whole, "params", "file", "top-1", "test images", box=box.SIMPLE_HEAD, pad_edge=False)
    for one in found:
        table.add_row(
            one.name,
            f"{one.params / 1e6:.2f} M",
            f"{one.size_bytes / 1e6:.2f} MB",
            f"{one.top1:.2%}",
            f"{one.images} of {one.data}",
        )
    note = f"Measured with the weights as stored. Each has a model card: {found[0].path.parent}/NAME/README.md"
    out.finish([plain(one) for one in found], table, note)
    raise AssertionError  # finish leaves


@app.command()
def choose(
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="As 'iPhone 12'; all are listed if left out.")
    ] = None,
    toolchain: Annotated[
        str | None, typer.Option(metavar="NAME", help="Or a part of it; each on its own if left out.")
    ] = None,
    max_ms: Annotated[float | None, typer.Option(metavar="MS", help="At most so many milliseconds.")] = None,
    min_top1: MinTop1 = None,
    max_params: MaxParams = None,
    all_: Annotated[bool, typer.Option("--all", help="Rows that another beats, too.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw one toolchain's rows: .svg, .png or .html.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose a model by what is published about a device: the models that no other beats in both time and top-1.

    Every number names its source. Latencies of two toolchains cannot be
    compared, so each toolchain has its own table. For your own models, the plot
    of what was measured here is in the report of a run (see pocketvit run).

    Example: pocketvit choose --device 'iPhone 12' --max-ms 3 --min-top1 75
    """
    with session("choose", as_json) as out:
        limits: dict[str, Any] = {
            "max_ms": _positive("--max-ms", max_ms),
            "min_top1": _share(min_top1),
            "max_params": _positive("--max-params", max_params),
        }
        if device is None:
            if toolchain is not None or plot or any(limits.values()):
                raise BadInput("Which device? Add --device NAME; pocketvit choose lists those with published rows.")
            _list_setups(out)
        if plot is not None:
            from ..report.landscape import check as check_kind

            check_kind(plot)
            check_new_file(plot, "--plot")
        from rich.markup import escape

        from ..catalogue import choose as choose_rows
        from ..report.catalogue_table import choice_lines
        from ..report.published import row_document

        choices = choose_rows(device=device, toolchain=toolchain, **limits)
        lines = choice_lines(choices, every=all_)
        if plot is not None:
            _draw(choices, plot)
            lines.append(f"Plot: {escape(str(plot))}")
        document = {
            "device": choices[0].device,
            "limits": limits,
            "choices": [
                plain(choice) | {"rows": [row_document(row, i in choice.front) for i, row in enumerate(choice.rows)]}
                for choice in choices
            ],
            "plot": plot,
        }
        out.finish(document, *lines, ok=any(choice.rows for choice in choices))


def _list_setups(out: Session) -> NoReturn:
    """Print every device with its toolchains, and leave."""
    from ..catalogue import setups
    from ..report.catalogue_table import setups_table

    found = setups()
    devices = len({setup.device for setup in found})
    counted = f"{sum(setup.rows for setup in found)} published rows of {devices} devices"
    document = {"setups": [setup._asdict() for setup in found]}
    out.finish(document, setups_table(found), f"{counted}; pocketvit choose --device NAME has their best.")
    raise AssertionError("finish leaves")


def _draw(choices: tuple[Choice, ...], path: Path) -> None:
    """Draw the one choice there is, with the rows outside its budget around it."""
    from ..catalogue import choose as choose_rows
    from ..report.landscape import write

    if len(choices) > 1:
        names = "; ".join(choice.toolchain for choice in choices)
        raise BadInput(
            f"A plot is of one toolchain, since latencies of two cannot be compared; {choices[0].device} has "
            f"{len(choices)}. Name one with --toolchain: {names}."
        )
    (whole,) = choose_rows(device=choices[0].device, toolchain=choices[0].toolchain)
    write(choices[0], path, around=whole.rows)


def _matching(pattern: str) -> list[Listed]:
    """Every model whose name matches, ours first."""
    from ..catalogue import entries

    found = {entry.name: Listed(entry.name, entry.ours, entry) for entry in entries(pattern)}
    for name, ours in _registered().items():
        if name not in found and fnmatchcase(name, pattern):
            found[name] = Listed(name, ours, None)
    return sorted(found.values(), key=lambda model: (not model.ours, model.name))


def _registered() -> dict[str, bool]:
    """Names that timm and this package register, read from their files since importing them takes seconds; ours?"""
    timm = importlib.util.find_spec("timm")
    homes = [(Path(home), False) for home in (timm.submodule_search_locations or () if timm else ())]
    homes.append((Path(__file__).parents[1], True))
    return {
        name: ours
        for home, ours in homes
        for file in sorted((home / "models").glob("*.py"))
        for name in re.findall(r"^@register_model\n(?:@.*\n)*def (\w+)\(", file.read_text(encoding="utf-8"), re.M)
    }


def _within(entry: Entry | None, most: dict[str, float | None], least_top1: float | None) -> bool:
    """True where the figures that limits ask about are known and keep them."""
    limits = [(getattr(entry, name, None), limit) for name, limit in most.items() if limit is not None]
    top1 = entry.top1 if entry else None
    kept = all(value is not None and value <= limit for value, limit in limits)
    return kept and (least_top1 is None or (top1 is not None and top1 >= least_top1))


def _rank(sort: Order, model: Listed) -> tuple[bool, float, str]:
    if sort is Order.NAME:
        return False, 0.0, model.name
    value = getattr(model.entry, sort, None)
    return value is None, (-1 if sort is Order.TOP1 else 1) * (value or 0.0), model.name


def _document(model: Listed) -> dict[str, Any]:
    """A model for JSON; evidence: how each number that is there is known."""
    if model.entry is None:
        unknown: dict[str, Any] = {"pretrained": None, "note": "not in the catalogue", "evidence": {}}
        return {"name": model.name, "ours": model.ours, **unknown}
    kinds = {**dict.fromkeys(_COUNTED, Evidence.MEASURED), **dict.fromkeys(_SCORED, Evidence.PUBLISHED)}
    evidence = {key: kind for key, kind in kinds.items() if getattr(model.entry, key) is not None}
    return {**plain(model.entry), "pretrained": model.entry.weights is not None, "evidence": evidence}


def _positive(option: str, value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise BadInput(f"{option} takes a positive number, not {value:g}.")
    return value


def _share(percent: float | None) -> float | None:
    """Percent as a share; what looks like a share is refused, since top-1 is written in percent everywhere."""
    if percent is None:
        return None
    if not 0 < percent <= 100:
        raise BadInput(f"--min-top1 takes percent from 0 to 100, as 75, not {percent:g}.")
    if percent <= 1:
        raise BadInput(f"--min-top1 takes percent: did you mean {100 * percent:g}?")
    return round(percent / 100, 6)  # as the tables are: 81.4 / 100 is more than 0.814
