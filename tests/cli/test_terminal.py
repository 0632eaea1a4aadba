"""What a person sees on a real terminal, where bars are drawn while libraries print."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

# on top of what torch and coremltools print for themselves
NOISY = """
import logging, sys, warnings
from pocketvit import data
from pocketvit.cli import main

opened = data.open_data

def noisy(*arguments, **options):
    print("noise on stdout")
    print("noise on stderr", file=sys.stderr)
    warnings.warn("noise as a warning")
    logging.getLogger("a.library").warning("noise as a log message")
    return opened(*arguments, **options)

data.open_data = noisy
sys.argv = ["pocketvit", "eval", PACKAGE, "--data", "digits", "--split", "val"]
main()
"""
# a bar erases itself; what stays on the screen is found by removing the sequences that move the cursor
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _on_a_terminal(directory: Path, code: str) -> tuple[int, str]:
    """Run Python with a terminal for its three streams; its exit code and all that reached the terminal."""
    main_end, terminal = pty.openpty()
    env = os.environ | {"XDG_CACHE_HOME": str(directory / "cache"), "TERM": "xterm", "COLUMNS": "200"}
    running = subprocess.Popen(
        [sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=terminal, cwd=directory, env=env
    )
    os.close(terminal)
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                part = os.read(main_end, 65536)
            except OSError:  # Linux: the last holder of the terminal has left
                return
            if not part:
                return
            shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    status = running.wait(timeout=280)
    reader.join(timeout=10)
    os.close(main_end)
    return status, CONTROLS.sub("", shown.decode())


def test_a_terminal_shows_our_lines_and_bars_and_no_library(packages: Path, tmp_path: Path) -> None:
    path = packages / "same.mlpackage"
    status, shown = _on_a_terminal(tmp_path, NOISY.replace("PACKAGE", repr(str(path))))
    assert status == 0, shown
    assert f"{path.name}: top-1 " in shown
    assert "━" in shown, f"no bar was drawn, so nothing is shown about bars:\n{shown}"
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown) if line.strip()]
    ours = (
        r"(checking|accuracy of) .*\d+/\d+|coreml, not pocketvit's: same\.mlpackage: top-1|Messages of the libraries"
    )
    foreign = [line for line in lines if not re.match(ours, line)]
    assert not foreign, foreign
    (log,) = (tmp_path / "cache" / "pocketvit" / "logs").glob("*.log")
    for where in ("on stdout", "on stderr", "as a warning", "as a log message"):
        assert f"noise {where}" in log.read_text()
