"""Commands about one model: info, classify, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import BadInput
from . import app
from .options import ANY_HELP, MODEL_HELP, AsJson, Data, Mean, ModelArgs, Pretrained, Std, Threads, foreign_spec
from .session import session


@app.command()
def info(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    pretrained: Pretrained = False,
    as_json: AsJson = False,
) -> None:
    """Describe a model: size, cost, what its input must look like, and what is published about it.

    Example: pocketvit info deit_tiny_patch16_224
    """
    with session("info", as_json) as out:
        from rich.markup import escape

        from ..measure.cost import cost
        from ..models import create, weights_sha256
        from ..report.published import documents, sentences

        found = create(model, pretrained=pretrained)
        counted = cost(found)
        spec = found.spec
        # what is published is of an architecture and its known weights, not of what lies in a directory
        published = [] if Path(model).is_dir() else documents(model)
        document = {
            "name": found.name,
            "trained": found.trained,
            "params": counted.params,
            "macs": counted.macs,
            "activations": counted.activations,
            "classes": found.classes,
            "input": {k: v for k, v in _spec(spec).items() if k != "labels"},
            "labels": spec.labels[:5],
            "weights_sha256": weights_sha256(found.module),
            "published": published,
        }
        channels, height, width = spec.size
        out.finish(
            document,
            f"[bold]{escape(found.display_name)}[/bold]",
            f"  {counted.params / 1e6:.2f} M parameters; per image {counted.macs / 1e9:.3f} G multiply-accumulates, "
            f"{counted.activations / 1e6:.2f} M activations",
            f"  input {channels} x {height} x {width}, {spec.interpolation}, crop {spec.crop_pct:g} {spec.crop_mode}",
            f"  mean {_numbers(spec.mean)}, std {_numbers(spec.std)}, applied inside every exported file",
            f"  {found.classes} classes{escape(_first(spec.labels))}",
            *(f"  {escape(line)}" for line in sentences(published)),
        )


@app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[str, typer.Option("--model", "-m", metavar="M", help=ANY_HELP)],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each image.")] = 5,
    mean: Mean = None,
    std: Std = None,
    pretrained: Pretrained = False,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Name what is in pictures, with a model or an exported file.

    Preprocessing is the checkpoint's own.

    Example: pocketvit classify cat.jpg --model deit_tiny_patch16_224 --pretrained
    """
    with session("classify", as_json) as out:
        from rich.markup import escape

        from ..artifacts import classify as run_classify
        from ..artifacts import load
        from ..data import load_image

        missing = [str(path) for path in images if not path.is_file()]
        if missing:
            raise BadInput(f"There is no image {missing[0]}.")
        runner = load(model, threads, pretrained=pretrained, foreign=foreign_spec(mean, std))
        # one picture at a time: hundreds of photographs do not fit in memory at once
        answers = [run_classify(runner, [load_image(path)], top)[0] for path in images]
        document: list[dict[str, Any]] = []
        lines: list[str] = [f"[bold]{escape(runner.name)}[/bold]"]
        for path, answer in zip(images, answers, strict=True):
            document.append({"image": str(path), "classes": [{"name": n, "probability": p} for n, p in answer]})
            named = ", ".join(f"{name} {probability:.1%}" for name, probability in answer)
            lines.append(f"{escape(str(path))}: {escape(named)}")
        out.finish({"model": runner.name, "images": document}, *lines)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    data: Data,
    out_dir: Annotated[Path, typer.Option("--out", help="Checkpoint directory to write.")],
    config: Annotated[Path | None, typer.Option(help="YAML file with training settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One training setting; repeatable.")
    ] = None,
    model_args: ModelArgs = None,
    teacher: Annotated[
        str | None, typer.Option(help="Model to distil from; needs --set distillation=soft|hard.")
    ] = None,
    qat: Annotated[
        str | None,
        typer.Option(metavar="PRECISION", help="Quantization-aware: w4, w8a8, w8a8-dynamic or integer-only."),
    ] = None,
    pretrained: Pretrained = False,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a model; run the same command again to go on after an interruption.

    Defaults are DeiT's. On several CPU processes: torchrun --nproc-per-node 2 -m pocketvit train ...; GPUs:
    accelerate launch -m pocketvit train ... (not yet tried on one).

    Example: pocketvit train vit_tiny_patch16_224 --data folder:photos --out my_vit --set epochs=20

    With --qat a trained model learns to live with the rounding of a precision before it is exported to it. Settings
    then start from a short, gentle training, softly distilled from the float model (or from --teacher).

    Example: pocketvit train my_vit --qat w4 --data folder:photos --out my_vit_w4 --set epochs=2 --set lr=1e-3
    """
    with session("train", as_json) as out:
        from rich.markup import escape

        from ..training import train_checkpoint

        trained = train_checkpoint(
            model,
            data,
            out_dir,
            config=config,
            settings=settings or [],
            model_args=model_args or [],
            teacher=teacher,
            qat=qat,
            pretrained=pretrained,
            progress=out.progress,
        )
        out.finish(
            trained,
            f"{escape(trained['model'])}: {trained['val_top1']:.2%} of {trained['val_images']} validation images, "
            f"{trained['test_top1']:.2%} of {trained['test_images']} test images",
            *_rounded(trained.get("qat")),
            f"Checkpoint: {escape(str(out_dir))}",
        )


def _rounded(qat: dict[str, Any] | None) -> list[str]:
    """What quantization-aware training did, in one line."""
    if qat is None:
        return []
    layers = f" in {qat['quantized']} layers" if qat["quantized"] else ""
    return [
        f"Rounded to {qat['precision']}{layers}: {qat['before_test_top1']:.2%} of the test images before, "
        f"{qat['after_test_top1']:.2%} after; the float model has {qat['float_test_top1']:.2%}"
    ]


def _spec(spec: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(spec)


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in values)


def _first(labels: tuple[str, ...]) -> str:
    if not labels:
        return " without names"
    return f": {'; '.join(labels[:3])}{'; ...' if len(labels) > 3 else ''}"
