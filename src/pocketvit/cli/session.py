"""What one command prints: lines for a person or one JSON document; everything third parties print goes to a log."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ..errors import BadInput, PocketvitError
from ..types import plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

_KEPT_LOGS = 20


class Session:
    """The output of one command. progress is a types.Progress that draws bars when a person is watching."""

    def __init__(self, command: str, as_json: bool) -> None:
        from rich.console import Console

        self.command = command
        self.as_json = as_json
        self.log, self._sink = _open_log(command)
        self._out = os.fdopen(os.dup(1), "w")
        self._err = os.fdopen(os.dup(2), "w")
        # a pipe has no width of its own; 100 columns keep tables whole in logs
        width = None if self._out.isatty() else 100
        self.console: Console = Console(file=self._out, width=width, highlight=False)
        self._notes: Console = Console(file=self._err, width=width, highlight=False)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def progress(self, task: str, done: int, total: int) -> None:
        """Draw or advance the bar of `task` on a terminal; a finished one disappears."""
        if self._bars is None:
            return
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total)
        self._bars.update(self._tasks[task], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(task))

    def finish(self, document: Any, *lines: RenderableType, ok: bool = True) -> None:
        """Print the result, as JSON or for a person, and leave with exit code 0, or 1 when a check failed."""
        self._stop_bars()
        if os.environ.get("RANK", "0") != "0":  # of several training processes, the first one speaks
            raise typer.Exit(0 if ok else 1)
        if self.as_json:
            self._out.write(json.dumps(plain(document), ensure_ascii=False) + "\n")
        else:
            for line in lines:
                self.console.print(line)
            self._name_log()
        self._out.flush()
        raise typer.Exit(0 if ok else 1)

    def fail(self, sentence: str, code: int) -> NoReturn:
        """Print one sentence and leave with `code`."""
        self._stop_bars()
        if self.as_json:
            self._out.write(json.dumps({"error": sentence, "exit_code": code}, ensure_ascii=False) + "\n")
            self._out.flush()
        self._notes.print(f"Error: {sentence}", markup=False, soft_wrap=True)
        self._name_log()
        self._err.flush()
        raise typer.Exit(code)

    def close(self) -> None:
        """Give back the descriptors of the caller's own output."""
        self._out.close()
        self._err.close()

    def _redirect(self) -> None:
        """Send what anything else prints, native code too, to the log."""
        os.dup2(self._sink, 1)
        os.dup2(self._sink, 2)
        os.close(self._sink)

    def _name_log(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if self.log.exists() and self.log.stat().st_size:
            self._notes.print(f"Messages of the libraries used: {self.log}", style="dim", soft_wrap=True, markup=False)

    def _start_bars(self) -> None:
        if self.as_json or not self._err.isatty():
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        # what libraries print goes to the log; rich would otherwise take it over and draw it above the bars
        self._bars = Progress(
            *columns, console=self._notes, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._bars.start()

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


@contextmanager
def session(command: str, as_json: bool) -> Iterator[Session]:
    """Run a command's body with all noise, native libraries' too, in the log, and errors as sentences and codes."""
    current = Session(command, as_json)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    current._redirect()
    current._start_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            yield current
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        current.fail("Stopped; run the same command again to go on.", 130)
    except PocketvitError as e:
        if e.__cause__ is not None:
            traceback.print_exc()
        current.fail(str(e), 2 if isinstance(e, BadInput) else 1)
    except ImportError as e:
        traceback.print_exc()
        current.fail(f"{e.name or 'A library'} cannot be imported ({e}); run `pocketvit doctor`.", 2)
    except Exception as e:
        traceback.print_exc()
        text = " ".join(str(e).split())[:300]
        current.fail(f"pocketvit met an error it does not know, {type(e).__name__}: {text}", 1)
    finally:
        current._stop_bars()
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in saved:
            os.close(descriptor)
        current.close()
        if current.log.exists() and not current.log.stat().st_size:
            current.log.unlink()


def _open_log(command: str) -> tuple[Path, int]:
    """Open this process's log for writing, in the cache or where that cannot be, in a temporary file."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = cache / "pocketvit" / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        old = sorted(directory.glob("*.log"), key=lambda p: p.stat().st_mtime)
        for log in old[: -_KEPT_LOGS + 1]:
            log.unlink(missing_ok=True)
        path = directory / f"{command}-{os.getpid()}.log"
        return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        sink, name = tempfile.mkstemp(prefix=f"pocketvit-{command}-", suffix=".log")
        return Path(name), sink
