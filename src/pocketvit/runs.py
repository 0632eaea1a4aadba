"""A finished run: what it found, written to and read back from its directory. Light: no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .configs import read_config
from .errors import BadInput
from .files import write_text
from .report import Budget, Verdict, load_rows, save_rows, verdict, write_html
from .types import Row

_RESULTS, _SUMMARY, _REPORT = "results.json", "run.json", "report.html"
_MAX_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished run. training: one mapping per trained model (name, val_top1, test_top1, ...), in order."""

    path: Path
    title: str
    about: str
    rows: tuple[Row, ...]
    training: tuple[Mapping[str, Any], ...]
    environment: Mapping[str, str]
    budget: Budget | None
    reused: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict | None:
        """Whether the budget, if there is one, is met, and the nearest miss otherwise."""
        return verdict(self.rows, self.budget) if self.budget else None

    @property
    def ok(self) -> bool:
        """True when every file held up and the budget, if there is one, is met."""
        judged = self.verdict
        return (judged is None or judged.met) and not any(row.check.startswith("failed") for row in self.rows)

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / _REPORT

    def write(self) -> None:
        """Write the results and the report into the run's directory."""
        save_rows(self.rows, self.environment, self.path / _RESULTS)
        summary = {
            "title": self.title,
            "about": self.about,
            "training": self.training,
            "budget": dataclasses.asdict(self.budget) if self.budget else None,
        }
        write_text(self.path / _SUMMARY, json.dumps(summary, indent=1))
        self.write_report()

    def write_report(self) -> None:
        """Write the page from the rows."""
        write_html(
            self.rows,
            self.environment,
            title=self.title,
            about=self.about,
            path=self.report,
            training=self.training,
            budget=self.budget,
        )


def read_run(path: Path) -> Run:
    """Read a finished run's directory; BadInput when it is not one, or the run has not reached its end yet."""
    if not path.is_dir():
        raise BadInput(f"There is no run directory {path}.")
    if not (path / _SUMMARY).is_file():
        raise BadInput(f"{path} holds no finished run; give the directory of a run, or run its recipe to the end.")
    rows, environment = load_rows(path / _RESULTS)
    try:
        if (path / _SUMMARY).stat().st_size > _MAX_BYTES:
            raise BadInput(f"{path / _SUMMARY} is larger than {_MAX_BYTES >> 20} MB, which no run's summary is.")
        raw = json.loads((path / _SUMMARY).read_text())
        training: Sequence[Mapping[str, Any]] = raw["training"]
        return Run(
            path=path,
            title=str(raw["title"]),
            about=str(raw["about"]),
            rows=rows,
            training=tuple(dict(entry) for entry in training),
            environment=environment,
            budget=read_config(Budget, raw["budget"], str(path / _SUMMARY)) if raw["budget"] else None,
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as e:
        raise BadInput(f"{path / _SUMMARY} cannot be read ({e}); run the recipe again to make it anew.") from e
