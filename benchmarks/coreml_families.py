"""Convert a model of every family to Core ML, interpret the files and say what was proven: one line each.

    python benchmarks/coreml_families.py [--out benchmarks/results/coreml_families.csv] [NAME ...]

The weights are random, with norm statistics as a trained model has them (untouched ones leave whole branches at
zero). A model that does not convert is a row with the reason.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pocketvit
from pocketvit.artifacts import export, proof_images, reference_logits
from pocketvit.errors import CheckFailed, PocketvitError
from pocketvit.models import Model, create

FAMILIES = """
beit_base_patch16_224 cait_xxs24_224 caformer_s18 coat_tiny coatnet_nano_rw_224 convit_tiny convnext_atto
convnextv2_atto crossvit_tiny_240 davit_tiny deit_tiny_distilled_patch16_224 deit3_small_patch16_224 edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224
fastvit_t8 flexivit_small focalnet_tiny_srf gcvit_xxtiny ghostnet_050 gmlp_ti16_224 hiera_tiny_224 inception_next_atto
lcnet_035 levit_128s mambaout_femto maxvit_rmlp_pico_rw_256 mixer_s32_224 mnasnet_small mobilenetv2_035
mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050
mvitv2_tiny nest_tiny nextvit_small pit_ti_224 poolformer_s12 poolformerv2_s12 pvt_v2_b0 regnety_002 repghostnet_050
repvit_m0_9 resmlp_12_224 resnet10t rexnet_100 sequencer2d_s shvit_s1 starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tinynet_e
tnt_s_legacy_patch16_224 twins_svt_small visformer_tiny vit_relpos_small_patch16_224 vit_tiny_patch16_224
vitamin_small_224 volo_d1_224
xcit_nano_12_p16_224
""".split()
COLUMNS = ["model", "precision", "result", "sqnr_db", "same_class", "seconds", "detail"]


def lively(model: Model, images: NDArray[np.float32]) -> Model:
    """Give norms and zero-initialised scales values as training leaves them, in place.

    images: (N, C, H, W) in [0, 1]; batch norms take their statistics from them.
    """
    torch.manual_seed(0)
    batch_norms = []
    for module in model.module.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            batch_norms.append(module)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm | nn.GroupNorm):
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.75, 1.25)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    for name, parameter in model.module.named_parameters():
        if parameter.ndim == 1 and ("gamma" in name or "layer_scale" in name):
            nn.init.uniform_(parameter, 0.05, 0.15)
        if parameter.ndim >= 2 and parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.02)
    for norm in batch_norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of what it sees
        norm.train()
    if batch_norms:
        mean, std = (torch.tensor(part).view(1, -1, 1, 1) for part in (model.spec.mean, model.spec.std))
        with torch.no_grad():
            model.module((torch.from_numpy(images) - mean) / std)
    for norm in batch_norms:  # a few images leave some channels almost still, and dividing by that magnifies rounding
        norm.running_var.clamp_(min=0.25 * float(norm.running_var.mean()))
    model.module.eval()
    return model


def louder(model: Model, images: NDArray[np.float32]) -> Model:
    """Give every layer weights that keep the size of what passes through, in place."""
    for module in model.module.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return lively(model, images)


def check(name: str, precision: str, directory: Path) -> dict[str, object]:
    """One row: the model exported in one precision and proven."""
    start = time.perf_counter()
    row: dict[str, object] = {"model": name, "precision": precision}
    try:
        model = create(name, num_classes=100)
        images = proof_images(model.spec, calibration=1, verification=16)
        model = lively(model, images.verification)
        try:
            reference = reference_logits(model, images.verification)
        except CheckFailed:  # so small weights that every image looks alike
            model = louder(model, images.verification)
            reference = reference_logits(model, images.verification)
        found = export(
            model, "coreml", directory / f"{name}_{precision}.mlpackage", precision, images=images, reference=reference
        )
        row |= {
            "result": "proven",
            "sqnr_db": f"{found.agreement.sqnr_db:.1f}",
            "same_class": f"{found.agreement.top1:.3f}",
            "detail": found.proof,
        }
    except PocketvitError as e:
        row |= {"result": "failed", "detail": " ".join(str(e).split())[:400]}
    except RuntimeError as e:  # a model that cannot even be built or run as asked is a row too
        row |= {"result": "not built", "detail": " ".join(str(e).split())[:400]}
    return row | {"seconds": f"{time.perf_counter() - start:.0f}"}


def main() -> None:
    """Run every family, print as it goes, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=FAMILIES)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = []
    for name in options.names or FAMILIES:
        for precision in ("fp16", "fp32"):
            with tempfile.TemporaryDirectory() as directory:
                row = check(name, precision, Path(directory))
            rows.append(row)
            print(*(f"{row.get(column, '')}" for column in COLUMNS), sep=" | ", flush=True)
            if options.out:
                with options.out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    writer.writeheader()
                    writer.writerows(rows)
            if "dB floor" not in str(row["detail"]):
                break  # what fp16 alone fails, for its rounding, is tried in fp32 too
    proven = len({row["model"] for row in rows if row["result"] == "proven"})
    print(f"{proven} of {len({row['model'] for row in rows})} proven, pocketvit {pocketvit.__version__}")


if __name__ == "__main__":
    main()
