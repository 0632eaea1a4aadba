"""The command that turns checkpoints of other frameworks into ours: convert-moat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput
from . import app
from .options import AsJson, ModelArgs
from .session import session

_SHOWN = 6


@app.command()
def convert_moat(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Prefix of the checkpoint, as DIR/model.ckpt.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Checkpoint directory to write.")],
    ema: Annotated[
        bool | None,
        typer.Option(
            "--ema/--no-ema", help="The moving averages of the weights, or the weights; averages if there are any."
        ),
    ] = None,
    model_args: ModelArgs = None,
    as_json: AsJson = False,
) -> None:
    """Turn a published TensorFlow MOAT checkpoint into one of ours with the same logits.

    The architecture is read off the variables. What no checkpoint holds is given with --arg: img_size (the position
    tables are resized to it), attention=local with window_size, pool_size=3 for weights fine-tuned for dense
    prediction. position=none leaves the position tables out.

    Example: pocketvit convert-moat tiny_moat0/model.ckpt --to my_moat --arg img_size=224
    """
    with session("convert-moat", as_json) as out:
        from rich.markup import escape

        from ..configs import read_pairs
        from ..models import save
        from ..models.moat_tensorflow import EMA
        from ..models.moat_tensorflow import convert_moat as convert

        if to.exists() and not (to.is_dir() and not any(to.iterdir())):
            raise BadInput(f"{to} exists; choose another directory with --to.")
        done = convert(checkpoint, ema=ema, **read_pairs("--arg", model_args or []))
        save(done.model, to)
        document = {
            "checkpoint": str(to),
            "architecture": done.architecture,
            "input_size": done.model.spec.size,
            "classes": done.model.classes,
            "position": done.position,
            "ema": done.ema,
            "new_head": done.new_head,
            "used": dict(done.used),
            "unused": list(done.unused),
        }
        twins = [name for name in done.unused if name + EMA in done.used or name.removesuffix(EMA) in done.used]
        others = sorted(set(done.unused) - set(twins))
        lines = [
            f"[bold]{done.architecture}[/bold], {' x '.join(map(str, done.model.spec.size))}, "
            f"position {done.position}, {done.model.classes} classes",
            f"{len(done.used)} variables used, with {'moving averages' if done.ema else 'the weights'} rather than "
            f"{'the weights' if done.ema else 'moving averages'} where there are both ({len(twins)})",
        ]
        if others:
            more = f" and {len(others) - _SHOWN} more (--json lists them)" if len(others) > _SHOWN else ""
            lines.append(f"{len(others)} not used: {escape(', '.join(others[:_SHOWN]))}{more}")
        if done.new_head:
            lines.append("The checkpoint has no classifier: this one's is random, so the model counts as untrained.")
        out.finish(document, *lines, f"Checkpoint: {escape(str(to))}")
