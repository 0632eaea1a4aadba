"""The doctor command: what works here, what is missing, and the exact command that fixes it. Imports nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from . import app
from .options import AsJson
from .session import session

_PROBE_S = 2.2  # doctor answers within three seconds even where an import hangs
_CORE = ("torch", "torchvision", "timm", "accelerate", "safetensors", "numpy")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say which targets work here and how to fix those that do not.

    Example: pocketvit doctor
    """
    with session("doctor", as_json) as out:
        from rich.markup import escape

        probe = _start_probe()
        targets = _targets()
        problems = _core_problems()
        tried, found = _probe_problems(probe)
        problems += found if not problems else []
        lines = [f"pocketvit {metadata.version('pocketvit')}, Python {sys.version.split()[0]}"]
        for problem in problems:
            lines += [f"[red]problem[/red] {escape(problem['problem'])}", f"  fix: {escape(problem['fix'])}"]
        if not problems:
            state = "usable" if tried else f"found (not imported: that takes more than {_PROBE_S:g} s here)"
            lines.append("core: " + ", ".join(f"{name} {metadata.version(name)}" for name in _CORE[:3]) + f", {state}")
        for entry in targets:
            state = f"[green]{entry['state']}[/green]" if entry["usable"] else f"[yellow]{entry['state']}[/yellow]"
            fix = f"  fix: {entry['fix']}" if entry["fix"] else ""
            lines.append(f"{entry['target']:13} {state}  {escape(', '.join(entry['precisions']))}{escape(fix)}")
        document = {
            "ok": not problems,
            "imports_tried": tried,
            "problems": problems,
            "targets": targets,
            "python": sys.version.split()[0],
        }
        out.finish(document, *lines, ok=not problems)


def _targets() -> list[dict[str, Any]]:
    from ..targets import TARGETS

    found = []
    for name in TARGETS:
        target = TARGETS.get(name)
        missing = target.missing()
        usable = "usable, interpreted" if target.interpreted else "usable"
        state = f"missing {', '.join(missing)}" if missing else usable
        found.append(
            {
                "target": name,
                "usable": not missing,
                "state": state,
                "precisions": [str(p) for p in target.precisions],
                "fix": f"pip install 'pocketvit[{target.extra}]'" if missing else None,
            }
        )
    return found


def _core_problems() -> list[dict[str, str]]:
    """Missing core packages, and a torchvision that was built for another torch, from package metadata alone."""
    installed = {name: _version(name) for name in _CORE}
    problems = [
        {"problem": f"{name} is not installed.", "fix": "pip install pocketvit"}
        for name, version in installed.items()
        if version is None and name != "torchvision"
    ]
    torch_version = installed["torch"]
    if torch_version is None:
        return problems
    if installed["torchvision"] is None:
        fix = "pip install --no-deps torchvision"
        problems.append({"problem": f"torchvision is not installed beside torch {torch_version}.", "fix": fix})
        return problems
    needs = [r for r in metadata.requires("torchvision") or [] if re.match(r"torch\s*[=(]", r)]
    wanted = re.search(r"==\s*([\w.+]+)", needs[0]) if needs else None
    if wanted and wanted.group(1).split("+")[0] != torch_version.split("+")[0]:
        problems.append(
            {
                "problem": f"torchvision {installed['torchvision']} was built for torch {wanted.group(1)}, "
                f"but torch is {torch_version}; the two must match.",
                "fix": f"pip install torch=={wanted.group(1)} && pip install --no-deps "
                f"torchvision=={installed['torchvision']}",
            }
        )
    return problems


def _version(name: str) -> str | None:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    # metadata without the package itself is what an interrupted uninstall leaves behind
    return version if util.find_spec(name) is not None else None


def _start_probe() -> subprocess.Popen[str]:
    """Import torch and torchvision for real, in a process of its own, so that a crash cannot take us along.

    Not timm: with it the import takes longer than doctor may. It is pure Python, and compiled here instead.
    """
    timm = util.find_spec("timm")
    code = (
        "import sys; from pathlib import Path; from pocketvit import torchvision_repair\n"
        "for path in map(Path, sys.argv[1:]): compile(path.read_bytes(), path, 'exec')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *([timm.origin] if timm and timm.origin else [])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(sys.prefix),
    )


def _probe_problems(probe: subprocess.Popen[str]) -> tuple[bool, list[dict[str, str]]]:
    """Whether the probe came to an end in time, and what it met."""
    try:
        _, errors = probe.communicate(timeout=_PROBE_S)
    except subprocess.TimeoutExpired:
        probe.kill()
        probe.communicate()
        return False, []
    if probe.returncode == 0:
        return True, []
    last = (errors.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
    pinned = [f"{name}=={(_version(name) or '').split('+')[0]}" for name in ("torch", "torchvision", "timm")]
    fix = f"pip install --force-reinstall --no-deps {' '.join(pinned)}"
    return True, [{"problem": f"torch, torchvision or timm cannot be imported: {last}", "fix": fix}]
