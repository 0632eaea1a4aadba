"""Turn a trained checkpoint into one that ships: half-precision weights, what they reach, and a model card.

Example: python benchmarks/package_checkpoint.py my_deit --as pocket_deit_distilled_patch4_32.cifar10 \
    --data parquet:../shared/data/cifar10 --settings deit.yaml --minutes 95 --teacher pocket_resnet_32.cifar10
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from pocketvit.artifacts import evaluate
from pocketvit.models import create, save, weights_sha256
from pocketvit.packaged import MEASURED
from pocketvit.train import TrainConfig

# isort: split
import torch
import yaml
from safetensors.torch import load_file, save_file

SHIPPED = Path(__file__).parents[1] / "src" / "pocketvit" / "weights"
MOST_BYTES = 6_000_000
_ALWAYS_GIVEN = ("num_classes", "in_chans", "global_pool", "img_size")  # in config.json, whatever was asked for
_STATISTICS = ("running_mean", "running_var")  # a variance may be smaller than half precision can hold


def main() -> None:
    """Save, halve, score what was saved, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="directory that `pocketvit train` wrote")
    parser.add_argument("--as", dest="name", required=True, help="ARCHITECTURE.DATA")
    parser.add_argument("--data", required=True)
    parser.add_argument(
        "--settings", type=Path, required=True, nargs="+", help="the YAML it was trained with, one for each round"
    )
    parser.add_argument("--minutes", type=float, required=True, help="how long training took")
    parser.add_argument("--on", default="one thread of a 2-core AMD EPYC that did other work as well")
    parser.add_argument("--teacher", help="packaged name of what it was distilled from")
    asked = parser.parse_args()
    out = SHIPPED / asked.name
    model = create(str(asked.checkpoint))
    texts = [path.read_text() for path in asked.settings]
    rounds = [TrainConfig.from_dict(yaml.safe_load(text)) for text in texts]
    if out.is_dir():  # an earlier one, with its card
        shutil.rmtree(out)
    save(model, out)
    weights = load_file(out / "model.safetensors")
    halved = {
        name: tensor.half() if tensor.is_floating_point() and not name.endswith(_STATISTICS) else tensor
        for name, tensor in weights.items()
    }
    save_file({name: tensor.contiguous() for name, tensor in halved.items()}, out / "model.safetensors")
    size = (out / "model.safetensors").stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{out} holds {size} bytes, more than {MOST_BYTES}.")
    reached = evaluate(str(out), asked.data, threads=2)
    shipped = create(str(out))
    spec = shipped.spec
    size_text = " x ".join(map(str, spec.size))
    config = json.loads((out / "config.json").read_text())
    config[MEASURED] = {
        "params": sum(p.numel() for p in shipped.module.parameters()),
        "data": "CIFAR-10",
        "top1": reached.top1,
        "images": reached.images,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    learnt = f",\ndistilled ({rounds[-1].distillation}) from {asked.teacher}" if asked.teacher else ""
    given = {key: value for key, value in config["model_args"].items() if key not in _ALWAYS_GIVEN}
    for text, file in zip(texts, _files(len(texts)), strict=True):
        (out / file).write_text(text)
    (out / "README.md").write_text(
        f"""---
license: apache-2.0
library_name: timm
tags: [image-classification, pocketvit]
datasets: [cifar10]
---
# {asked.name}

{config[MEASURED]["params"] / 1e6:.2f} M parameters, trained from random weights on 45,000 of CIFAR-10's 50,000
training images (a tenth is set apart for validation){learnt}. A small model to measure with, not one for an app.

| | |
|---|---|
| top-1 | {100 * reached.top1:.2f}% of {reached.images} test images (500 of each class), the weights as stored |
| top-5 | {100 * reached.top5:.2f}% |
| seed | {rounds[0].seed} |
| epochs | {" + ".join(str(settings.epochs) for settings in rounds)} |
| training | {asked.minutes:.0f} minutes on {asked.on} |
| weights | half precision (running statistics in single), {size / 1e6:.2f} MB, computed in fp32 |
| input | {size_text}, mean {spec.mean[0]}, std {spec.std[0]}, {spec.interpolation} |
| SHA-256 of the weights as loaded | {weights_sha256(shipped.module)} |

Measure it again, with train.parquet and test.parquet of CIFAR-10 in one folder (all 10,000 test
images give a little more or less):

    pocketvit eval {asked.name} --data parquet:FOLDER

Train it again, with {" and ".join(_files(len(texts)))} from this folder (random weights are those of the seed):

{_commands(asked.name, len(texts), asked.teacher, given)}
"""
    )
    print(json.dumps({"name": asked.name, "top1": reached.top1, "bytes": size}))


def _files(rounds: int) -> list[str]:
    """A file name for the settings of each round."""
    return ["train.yaml", *(f"train-{i}.yaml" for i in range(2, rounds + 1))]


def _commands(name: str, rounds: int, teacher: str | None, model_args: dict[str, object]) -> str:
    """What trains each round, from the architecture or from what the round before it left."""
    architecture = name.partition(".")[0]
    start = " ".join([architecture, *(f"--arg {key}={value}" for key, value in model_args.items())])
    lines = []
    for i, file in enumerate(_files(rounds), start=1):
        out = f"my_{architecture}" + ("" if i == rounds else f"_round_{i}")
        taught = f" --teacher {teacher}" if teacher else ""
        lines.append(f"    pocketvit train {start} --data parquet:FOLDER --out {out} --config {file}{taught}")
        start = out
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
