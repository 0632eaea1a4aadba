"""The command line: parses, calls, prints. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Annotated

import typer

from .. import __version__

app = typer.Typer(
    name="pocketvit",
    help="Put a vision transformer on a phone or edge device and prove that it still works.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: pocketvit demo",
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"pocketvit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    pass


# each file adds its commands to the app
for _commands in ("runs", "catalogue", "models", "convert", "export", "files", "compare", "audit", "doctor"):
    importlib.import_module(f".{_commands}", __name__)


def main() -> None:
    """Entry point of the `pocketvit` command."""
    try:
        app()
    except SystemExit as left:
        # a command line that cannot be parsed never reaches a command's session, which speaks JSON elsewhere
        usage = getattr(left.__context__, "format_message", None)
        if usage is not None and "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": usage(), "exit_code": left.code}) + "\n")
        raise
