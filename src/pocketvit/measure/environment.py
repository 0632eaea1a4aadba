"""The machine and the library versions a number was obtained with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

# distributions whose version can change a result
_LIBRARIES = (
    "pocketvit torch torchvision timm numpy pillow accelerate transformers onnx onnxscript onnxruntime openvino nncf "
    "executorch torchao coremltools"
).split()


def versions(names: Iterable[str] = _LIBRARIES) -> dict[str, str]:
    """Installed version of each distribution, read without importing it; absent ones are left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(threads: int | None = None) -> dict[str, str]:
    """Flat description of this machine and its libraries, for tables, reports and result files."""
    described = {
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory_gb": f"{_memory_bytes() / 2**30:.0f}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if threads is not None:
        described["threads"] = str(threads)
    return described | versions()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
