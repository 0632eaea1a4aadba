"""Policy as tests: imports go one way, importing costs nothing, nothing is unpickled, nothing prints."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pocketvit"
# from the bottom up; a part may import from itself and from what stands before it
LAYERS = [
    "errors registry files configs types pareto torchvision_repair hub packaged",
    "layers",
    "models",
    "catalogue",
    "data",
    "train",
    "passes",
    "targets",
    "measure",
    "search",
    "report",
    "recipe runs golden stages",
    "artifacts training audits comparison",
    "quantization",
    "pipeline",
    "cli",
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
FILES = sorted(SOURCE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Top-level parts of pocketvit that a file imports, at the top or inside functions."""
    package = path.relative_to(SOURCE).with_suffix("").parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level]
                parts = (*base, *(node.module.split(".") if node.module else ()))
                found |= {parts[0]} if parts else {alias.name for alias in node.names}
            elif (node.module or "").split(".")[0] == "pocketvit":
                found |= set((node.module or "").split(".")[1:2]) or {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {n.name.split(".")[1] for n in node.names if n.name.startswith("pocketvit.")}
    return found & RANK.keys()


def test_every_part_has_a_place_in_the_layers() -> None:
    parts = {p.stem if p.is_file() else p.name for p in SOURCE.iterdir() if not p.name.startswith(("_", "."))}
    data = {"py", "recipes", "weights"}
    assert parts - data == set(RANK), "name new parts in LAYERS, and remove those that are gone"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down_only(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part.startswith("__"):
        return  # the package's own front door and `python -m` see everything
    upward = {name for name in _imports(path) if RANK[name] > RANK[part]}
    assert not upward, f"{part} imports upward from {sorted(upward)}"


def test_importing_pocketvit_is_light() -> None:
    heavy = "torch timm numpy onnx onnxruntime openvino coremltools executorch transformers rich".split()
    code = (
        "import sys, pocketvit.types, pocketvit.targets, pocketvit.cli, pocketvit.report, pocketvit.recipe\n"
        "list(pocketvit.targets.TARGETS)\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]", f"imported before they are needed: {out}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_unpickles_or_prints(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print", f"line {node.lineno} prints; only the command line may, through its session"
            assert not called.startswith(("pickle.", "joblib.")), f"line {node.lineno} calls {called}"
            if called == "torch.load":
                arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert arguments.get("weights_only") == "True", f"line {node.lineno} may unpickle"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_torchvision_is_repaired_before_timm_is_imported(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    lines = {"repair": 10**6, "timm": 10**6}
    for node in body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if "torchvision_repair" in names:
            lines["repair"] = min(lines["repair"], node.lineno)
        if any((module or name).split(".")[0] in ("timm", "torchvision") for name in names):
            lines["timm"] = min(lines["timm"], node.lineno)
    assert lines["timm"] == 10**6 or lines["repair"] < lines["timm"]
