"""Options that several commands share, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Download timm's pretrained weights.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads for every runtime.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse data with unreadable images instead of skipping them.")]
Data = Annotated[
    str,
    typer.Option("--data", metavar="D", help="digits, photos, folder:PATH, parquet:PATH or hf:NAME."),
]
MODEL_HELP = "A timm name, NAME@weights.safetensors, a checkpoint directory, or hf:org/name."
ANY_HELP = "An exported file, or a model: a timm name, NAME@weights.safetensors, a checkpoint directory, hf:org/name."
