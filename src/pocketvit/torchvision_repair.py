"""Makes torchvision importable beside a CPU-only torch; does nothing on a healthy machine.

torchvision's PyPI wheel carries a C extension built against a CUDA torch. Beside a CPU torch the extension cannot
load, the schemas of `nms` and `qnms` are missing, and `import torchvision` (and with it timm) dies registering
their fake kernels. Image transforms need neither. Import this module before timm or torchvision.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def repair() -> Any:
    """Import torchvision, defining the two missing schemas where needed; returns what keeps them alive, or None."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return None
    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    schemas = torch.library.Library("torchvision", "FRAGMENT")
    schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
    return schemas


_schemas = repair()
