"""Options that several commands share, declared and read once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput
from ..types import InputSpec

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Download timm's pretrained weights.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads for every runtime.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse data with unreadable images instead of skipping them.")]
Data = Annotated[
    str,
    typer.Option("--data", metavar="D", help="digits, photos, folder:PATH, parquet:PATH or hf:NAME."),
]
ModelArgs = Annotated[
    list[str] | None, typer.Option("--arg", metavar="KEY=VALUE", help="One argument of the model; repeatable.")
]
Passes = Annotated[
    list[str] | None,
    typer.Option("--pass", metavar="NAME[:KEY=VALUE,...]", help="First: ane, prune:sparsity=0.5, ...; repeatable."),
]
Calibration = Annotated[int, typer.Option(min=1, help="Images that set ranges, and that passes measure on.")]
Mean = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="For a Core ML package of others that takes an array.")
]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="As --mean, for RGB in [0, 1].")]
Arithmetic = Annotated[
    str | None,
    typer.Option(metavar="A", help="How a Core ML package is interpreted: fp32, fp16-fp32acc (if left out) or fp16."),
]
MODEL_HELP = "A timm name, NAME@weights.safetensors, a checkpoint directory, or hf:org/name."
ANY_HELP = "An exported file, or a model: a timm name, NAME@weights.safetensors, a checkpoint directory, hf:org/name."


def foreign_spec(mean: str | None, std: str | None) -> InputSpec | None:
    """The normalisation given on the command line; BadInput unless both are three numbers, or neither is there."""
    if mean is None and std is None:
        return None
    if std is None:
        raise BadInput("--mean needs --std.")
    if mean is None:
        raise BadInput("--std needs --mean.")
    try:
        means, stds = (tuple(float(part) for part in text.split(",")) for text in (mean, std))
    except ValueError as e:
        raise BadInput("--mean and --std each take three numbers, as 0.485,0.456,0.406.") from e
    if len(means) != 3 or len(stds) != 3 or not all(value > 0 for value in stds):
        raise BadInput("--mean and --std each take three numbers, as 0.485,0.456,0.406, and --std positive ones.")
    return InputSpec(mean=means, std=stds)


def check_new_file(path: Path, option: str) -> None:
    """Raise BadInput unless `option` names a file that is new and can be written."""
    from ..files import check_writable

    if path.is_dir():
        raise BadInput(f"{path} is a directory; {option} needs the name of a file.")
    if path.exists():
        raise BadInput(f"{path} exists; choose another name or remove it.")
    check_writable(path)
