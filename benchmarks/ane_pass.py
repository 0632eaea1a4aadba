"""Rewrite a model of every timm family that attends or mixes tokens for the Neural Engine: one line each.

    python benchmarks/ane_pass.py [--out TABLE.csv] [--bench] [NAME ...]

Each is audited before and after, held against the model it was, converted to Core ML and interpreted. Weights are
random, with norm statistics as a trained model has them. A model that does not get through is a row with the reason.
With --bench the fp32 files of ONNX Runtime and OpenVINO are timed instead of converting, original and rewritten in one
interleaved run. Rows that are in TABLE.csv already are kept: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from coreml_families import lively, louder

import pocketvit
from pocketvit.artifacts import ProofImages, bench, export, proof_images, reference_logits
from pocketvit.audits.ane import audit_model
from pocketvit.errors import CheckFailed, PocketvitError
from pocketvit.models import Model, create
from pocketvit.passes.ane import ane

# one small model of each module of timm.models whose models attend or mix tokens
FAMILIES = {
    "beit": "beit_base_patch16_224", "byoanet": "botnet26t_256", "cait": "cait_xxs24_224", "coat": "coat_tiny",
    "convit": "convit_tiny", "cpubone": "cpubone_nano", "crossvit": "crossvit_tiny_240", "csatv2": "csatv2",
    "davit": "davit_tiny", "deepseek_vit": "deepseek_vit_412m", "deit": "deit_tiny_distilled_patch16_224",
    "edgenext": "edgenext_xx_small", "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0", "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0", "efficientvit_msra": "efficientvit_m0", "eva": "eva02_tiny_patch14_224",
    "fastvit": "fastvit_sa12", "focalnet": "focalnet_tiny_srf", "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m", "hiera": "hiera_tiny_224", "hieradet_sam2": "sam2_hiera_tiny",
    "iformer": "iformer_t", "levit": "levit_128s", "lowformer": "lowformer_b0",
    "maxxvit": "maxvit_rmlp_pico_rw_256", "metaformer": "caformer_s18", "mlp_mixer": "mixer_s32_224",
    "mobilenetv3": "mobilenetv4_hybrid_medium", "mobilenetv5": "mobilenetv5_base", "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny", "naflexvit": "naflexvit_base_patch16_gap", "nest": "nest_tiny",
    "nextvit": "nextvit_small", "pit": "pit_ti_224", "pvt_v2": "pvt_v2_b0", "qwen3_vit": "qwen3_vit_88m",
    "sequencer": "sequencer2d_s", "shvit": "shvit_s1", "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224", "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224", "tiny_vit": "tiny_vit_5m_224", "tnt": "tnt_s_legacy_patch16_224",
    "twins": "twins_svt_small", "visformer": "visformer_tiny", "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224", "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224", "volo": "volo_d1_224", "xcit": "xcit_nano_12_p16_224",
}  # fmt: skip
CONVOLUTIONAL = """
byobnet convmixer convnext cspnet cspnext densenet dla dpn efficientnet fasternet ghostnet hardcorenas hgnet hrnet
inception_next inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout nasnet nfnet pnasnet rdnet regnet
repghost repvit res2net resnest resnet resnetv2 rexnet selecsls senet sknet starnet tresnet vgg vovnet xception
xception_aligned
""".split()
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "moat (global)": ("tiny_moat_0", {}),
    "moat (local)": ("tiny_moat_0", {"attention": "local"}),
    "mobile_former": ("mobile_former_26m", {}),
    "mixformer": ("mixformer_b0", {}),
    "hugging_face": ("hf", {}),
}
PROVEN_ON = 4  # of the 16 images that set the norms' statistics
TIMED = (
    "deit", "swin_transformer", "mobilevit", "levit", "pvt_v2", "edgenext", "pit", "xcit", "visformer", "mlp_mixer",
    "efficientformer", "moat (global)",
)  # fmt: skip
COLUMNS = [
    "family", "model", "result", "error", "mb_before", "mb_after", "transposes_before", "transposes_after",
    "copies_before", "copies_after", "rank_before", "rank_after", "ops_before", "ops_after", "precision", "sqnr_db",
    "onnx_ratio", "openvino_ratio", "seconds", "detail",
]  # fmt: skip


def families() -> dict[str, tuple[str, dict[str, Any]]]:
    """By family, its model and arguments; raises where timm has a module that is in neither list."""
    import timm  # after pocketvit, which repairs torchvision where it has to

    homes = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    modules = {home.split(".")[-1] for home in homes if home.startswith("timm.")}  # ours register there as well
    unknown = modules - set(FAMILIES) - set(CONVOLUTIONAL)
    if unknown:
        raise SystemExit(f"timm has families that no list names: {', '.join(sorted(unknown))}")
    return {family: (name, {}) for family, name in FAMILIES.items()} | OURS


def build(name: str, args: dict[str, Any], directory: Path) -> Model:
    """The model with 100 classes; "hf" is a small Hugging Face ViT, written to disk and read back."""
    if name != "hf":
        return create(name, num_classes=100, **args)
    import transformers

    labels = {i: f"class {i}" for i in range(100)}
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, id2label=labels
    )
    transformers.ViTForImageClassification(config).eval().save_pretrained(directory / "hf")
    transformers.ViTImageProcessor().save_pretrained(directory / "hf")
    return create(f"hf:{directory / 'hf'}")


def check(family: str, name: str, args: dict[str, Any], directory: Path, timed: bool) -> dict[str, Any]:
    """One row."""
    start = time.perf_counter()
    row: dict[str, Any] = {"family": family, "model": name}
    try:
        model = build(name, args, directory)
        images = proof_images(model.spec, calibration=1, verification=16)
        lively(model, images.verification)
        try:
            expected = reference_logits(model, images.verification)
        except CheckFailed:  # so small weights that every image looks alike
            louder(model, images.verification)
            expected = reference_logits(model, images.verification)
        images = replace(images, verification=images.verification[:PROVEN_ON], names=images.names[:PROVEN_ON])
        expected = expected[:PROVEN_ON]
        rewritten = ane(model)
        found = reference_logits(rewritten, images.verification)
        row["error"] = f"{np.abs(found - expected).max() / np.abs(expected).max():.1e}"
        for when, audited in (("before", audit_model(model)), ("after", audit_model(rewritten))):
            row |= {
                f"mb_{when}": f"{audited.padded_bytes / 1e6:.1f}",
                f"transposes_{when}": audited.transposes,
                f"copies_{when}": audited.layout_copies,
                f"rank_{when}": audited.highest_rank,
                f"ops_{when}": audited.ops,
            }
        if timed:
            row |= _timed(model, rewritten, images, expected, directory)
        else:
            row |= _converted(rewritten, images, expected, directory)
    except PocketvitError as e:
        row |= {"result": "failed", "detail": " ".join(str(e).split())[:300]}
    except (RuntimeError, ValueError, TypeError) as e:  # a model that cannot be built as asked is a row too
        row |= {"result": "not built", "detail": " ".join(str(e).split())[:300]}
    return row | {"seconds": f"{time.perf_counter() - start:.0f}"}


def _converted(model: Model, images: ProofImages, expected: np.ndarray, directory: Path) -> dict[str, Any]:
    """Converted to Core ML in fp16, or in fp32 where fp16's rounding of random weights misses its floor."""
    said = ""
    for precision in ("fp16", "fp32"):
        try:
            path = directory / f"{precision}.mlpackage"
            found = export(model, "coreml", path, precision, images=images, reference=expected)
        except CheckFailed as e:
            said = " ".join(str(e).split())[:300]
            if "dB floor" not in said:
                break
            continue
        detail = f"fp16: {said}" if said else ""
        return {
            "result": "proven",
            "precision": precision,
            "sqnr_db": f"{found.agreement.sqnr_db:.1f}",
            "detail": detail,
        }
    return {"result": "failed", "detail": said}


def _timed(
    model: Model, rewritten: Model, images: ProofImages, expected: np.ndarray, directory: Path
) -> dict[str, Any]:
    """How long the rewritten fp32 files take on a CPU, in times of the original's."""
    ratios: dict[str, Any] = {"result": "timed"}
    for target, suffix in (("onnx", ".onnx"), ("openvino", ".xml")):
        paths = []
        for which, one in (("original", model), ("rewritten", rewritten)):
            paths.append(directory / f"{which}{suffix}")
            export(one, target, paths[-1], "fp32", images=images, reference=expected)
        before, after = bench(paths, rounds=40, threads=2)
        ratios[f"{target}_ratio"] = f"{after.median_ms / before.median_ms:.2f}"
    return ratios


def main() -> None:
    """Run every family that is not in the table, print as it goes, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="families; all if none is named")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--bench", action="store_true", help=f"time {', '.join(TIMED)} on ONNX Runtime and OpenVINO")
    options = parser.parse_args()
    known = families()
    rows: list[dict[str, Any]] = []
    if options.out and options.out.exists():
        with options.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {row["family"] for row in rows}
    for family in options.names or (TIMED if options.bench else known):
        if family in done:
            continue
        with tempfile.TemporaryDirectory() as directory:
            row = check(family, *known[family], Path(directory), options.bench)
        rows.append(row)
        print(*(f"{row.get(column, '')}" for column in COLUMNS), sep=" | ", flush=True)
        if options.out:
            with options.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
    proven = sum(row["result"] == "proven" for row in rows)
    both = [row for row in rows if row.get("mb_after")]
    risen = ", ".join(row["family"] for row in both if float(row["mb_after"]) > float(row["mb_before"])) or "none"
    print(f"{proven} of {len(rows)} proven; padded traffic rises in {risen}; {pocketvit.__version__}")


if __name__ == "__main__":
    main()
