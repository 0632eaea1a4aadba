"""Builds the catalogue's tables: every timm classifier and ours counted, published figures brought into one form.

    python benchmarks/catalogue.py FIGURES [MODEL...] [--out src/pocketvit/catalogue]

FIGURES is the folder with accuracy.csv, iphone_latency.csv, snapdragon_latency.csv, android_latency_other.csv and
seeds_claims.csv. Counting every model takes a quarter of an hour on one core; counts that the table already holds
are kept while torch and timm stay the same, so that an interrupted run goes on where it stopped. MODEL names (with *)
to count again, for instance after a change to our own families. The published tables are always made anew. The last
line printed is JSON.
"""

from __future__ import annotations

from pocketvit import torchvision_repair  # noqa: F401 - before timm

# isort: split
import argparse
import csv
import json
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import timm
import torch
from timm.models import get_model_input_config

import pocketvit.catalogue
import pocketvit.models  # registers ours
from pocketvit.files import beside
from pocketvit.measure.cost import count
from pocketvit.measure.environment import versions

Row = dict[str, str]
Accuracies = dict[tuple[str, str], Row]  # by the name of the weights, as model.tag, and the image size in pixels

SAVE_EVERY = 25
IMAGENET = 1000  # classes
OF_OTHERS = "top-1 of other weights than the default "

MODEL_COLUMNS = "name ours params macs activations input_size weights top1 top5 top1_size top1_source note".split()
LATENCY_COLUMNS = (
    "model name setup resolution resolution_assumed ms top1 top1_source params macs read_from note source"
).split()
SETUP_COLUMNS = "id device os toolchain stated".split()
CLAIM_COLUMNS = "model name setting metric value status note source".split()

# Where a paper's toolchain is as good as unnamed, or named alike by two papers, the paper's name keeps them apart:
# (words of the source, the source's own words for its toolchain, our name for it).
IPHONE_TOOLCHAINS = (
    (
        "EfficientFormer",
        "CoreMLTools (repo README: CoreML==5.2, Torch==1.11 extra tools); latency via "
        "vladimir-chernykh/coreml-performance",
        "EfficientFormer: Core ML Tools 5.2",
    ),
    (
        "EfficientFormer",
        "CoreMLTools (CoreML==5.2, Torch==1.11); Xcode 14 benchmark tool",
        "EfficientFormerV2: Core ML Tools 5.2, Xcode 14",
    ),
    ("MobileOne", "Core ML; ModelBench app", "MobileOne: Core ML, ModelBench"),
    ("ml-mobileone", "Core ML mlmodel; ModelBench app", "MobileOne: Core ML mlmodel, ModelBench"),
    ("FastViT", "Core ML; ModelBench app", "FastViT: Core ML, ModelBench"),
    ("ml-fastvit", "Core ML; ModelBench app (average over all rounds)", "FastViT: Core ML, ModelBench, all rounds"),
    ("RepViT", "Core ML Tools; Xcode 14 benchmark tool", "RepViT: Core ML Tools, Xcode 14"),
    ("RepViT", "Core ML Tools", "RepViT: Core ML Tools"),
    (
        "RepViT",
        "Core ML Tools; Xcode performance report, median, all units",
        "RepViT: Core ML Tools, Xcode performance report",
    ),
    ("RepNeXt", "Core ML mlmodel; Xcode 14 benchmark tool", "RepNeXt: Core ML mlmodel, Xcode 14"),
    (
        "RepNeXt",
        "Core ML mlmodel; Xcode 14 benchmark tool, 20 experimental sets",
        "RepNeXt: Core ML mlmodel, Xcode 14, 20 sets",
    ),
    ("RecNeXt", "Core ML mlmodel; Xcode benchmark tool", "RecNeXt: Core ML mlmodel, Xcode"),
    ("iFormer", "Core ML Tools, batch 1", "iFormer: Core ML Tools"),
    ("StarNet", "CoreML-Tools", "StarNet: Core ML Tools"),
    ("MobileNetV4", "CoreML", "MobileNetV4: Core ML"),
    ("LowFormer", "", "LowFormer: not stated"),
    ("Scaling Graph Convolutions", "NPU", "MobileViGv2: NPU"),
    ("SwiftFormer", "coremltools==5.2.0; Xcode 14 benchmark tool", "SwiftFormer: Core ML Tools 5.2, Xcode 14"),
    ("Next-ViT", "coremltools==5.2.0; Xcode 14.0", "Next-ViT: Core ML Tools 5.2, Xcode 14"),
    (
        "Next-ViT",
        "coremltools==5.2.0; Xcode 14.0 performance report",
        "Next-ViT: Core ML Tools 5.2, Xcode 14 performance report",
    ),
    (
        "Next-ViT",
        "coremltools==5.2.0, Neural Network type; Xcode 14.0 performance report median, all units",
        "Next-ViT: Core ML Tools 5.2 neural network, Xcode 14 performance report",
    ),
    ("SHViT", "CoreML tools, batch 1, median of 1000 runs", "SHViT: Core ML Tools, median of 1000"),
    ("ml-mobileclip", "Core ML", "MobileCLIP: Core ML"),
    ("ml-vision-transformers-ane", "Core ML on ANE", "Apple ANE transformers: Core ML"),
    (
        "ml-vision-transformers-ane",
        "Core ML mlprogram; Xcode performance report median, all units",
        "Apple ANE transformers: Core ML mlprogram, Xcode performance report",
    ),
)
NO_DEVICE = "iPhone (not stated which)"
# Weights that a source names and timm has under a tag of its own, converted from the very same file. In none of these:
# EfficientFormer's 300 epochs (timm has its 1000), b2-r288.pt timed at 224, tonylins' MobileNetV2, and those of
# torchvision that the two patterns below do not find in the table of accuracies.
SAME_WEIGHTS = {
    "HF BeitForImageClassification microsoft/beit-base-patch16-224": "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "HF LevitForImageClassification facebook/levit-128S": "levit_128s.fb_dist_in1k",
    "HF MobileViTForImageClassification apple/mobilevit-small": "mobilevit_s.cvnets_in1k",
    "timm dla102x": "dla102x.in1k",  # the only one there is
}
TORCHVISION_TAGS = {"V1": "tv_in1k", "V2": "tv2_in1k"}
SNAPDRAGON_RUNTIMES = {"qnn_dlc": "QAIRT/QNN", "tflite": "TFLite", "onnx": "ONNX Runtime"}
UNUSUAL_QAIRT = "qairt=2.41"  # a few rows beside those of 2.42
ANDROID_DEVICES = {  # the columns of one table: device and what of it computed
    "Pixel 6 CPU": ("Pixel 6", "CPU"),
    "Pixel 8 EdgeTPU": ("Pixel 8", "EdgeTPU"),
    "Pixel Hexagon (DSP)": ("Pixel (not stated which)", "Hexagon DSP"),
    "Pixel 7 GPU": ("Pixel 7", "GPU"),
    "Samsung S23 CPU": ("Samsung S23", "CPU"),
    "Samsung S23 GPU": ("Samsung S23", "GPU"),
}
# what only those who gathered the figures can look up
PRIVATE = (
    (r"confirmed by file id \d+", "confirmed by a second copy"),
    (r"GitHub index file ids? \d+(, \d+)*", "a text copy"),
    (r"text copy,? (a text copy|id \d+)", "text copy"),
    (r"\(a text copy\)", "(text copy)"),
    (r"the brief says", "said to be"),
)


class Sources:
    """Source texts by a short id that stays the same from one build to the next."""

    def __init__(self) -> None:
        self.by_text: dict[str, str] = {}

    def id_of(self, text: str) -> str:
        """The id of a text, given to it on first sight."""
        text = public(text)
        if text not in self.by_text:
            short = re.sub(r"^[\w-]+/([\w-]+)@[0-9a-f]{8}:(qai_hub_models/models/)?", r"\1 ", text)
            short = short.partition("/perf.yaml")[0].replace("ai-hub-models", "ai-hub").lower()
            short = "-".join(re.findall(r"[a-z0-9]+", short))[:28].strip("-")
            taken = set(self.by_text.values())
            candidates = [short, *(f"{short}-{i}" for i in range(2, 100))]
            self.by_text[text] = next(candidate for candidate in candidates if candidate not in taken)
        return self.by_text[text]


class Setups:
    """Device, system and toolchain by a short id."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def id_of(self, row: Row) -> str:
        """The id of what a row was measured with, given to it on first sight."""
        described = {column: row[column] for column in SETUP_COLUMNS if column != "id"}
        for known in self.rows:
            if described.items() <= known.items():
                return known["id"]
        device = "-".join(re.findall(r"[a-z0-9]+", row["device"].lower()))
        number = 1 + sum(known["device"] == row["device"] for known in self.rows)
        self.rows.append({"id": f"{device}-{number}"} | described)
        return self.rows[-1]["id"]


def public(text: str) -> str:
    """A source or note without references that a reader cannot follow."""
    for pattern, words in PRIVATE:
        text = re.sub(pattern, words, text)
    return text.strip()


def read(path: Path) -> list[Row]:
    """Rows of a CSV; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, columns: list[str], rows: Iterable[Row]) -> None:
    """Write a CSV whole or not at all."""
    unfinished = beside(path)
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)


def ours(name: str) -> bool:
    """True where this package registers the model."""
    return timm.model_entrypoint(name).__module__.startswith("pocketvit.")


def count_model(name: str) -> Row:
    """What one architecture costs at its default size, or why that cannot be said."""
    row = dict.fromkeys(MODEL_COLUMNS, "") | {"name": name, "ours": "yes" if ours(name) else ""}
    size = timm.get_pretrained_cfg(name).input_size
    try:
        with torch.device("meta"):  # no weights, so that the largest of them fit in memory
            module = timm.create_model(name)
        size = get_model_input_config(module)["input_size"]
        found = count(module, size)
    except Exception as e:  # any model may fail in its own way; the table says how
        note = f"not counted: {type(e).__name__}: {' '.join(str(e).split())[:120]}"
        return row | {"input_size": "x".join(map(str, size)), "note": note}
    classes = module.num_classes
    return row | {
        "params": str(found.params),
        "macs": str(found.macs),
        "activations": str(found.activations),
        "input_size": "x".join(map(str, size)),
        "note": "" if classes == IMAGENET else f"{classes} classes" if classes else "no classifier",
    }


def read_accuracies(figures: Path) -> Accuracies:
    """accuracy.csv, which has some weights at several image sizes."""
    rows = read(figures / "accuracy.csv")
    found = {(row["model"], row["img_size"]): row for row in rows}
    if len(found) != len(rows):
        raise SystemExit("accuracy.csv has two rows for the same weights and size.")
    return found


def add_accuracy(row: Row, accuracies: Accuracies, sources: Sources) -> Row:
    """The row with the accuracy of the default weights, else of the best weights there are."""
    row = row | dict.fromkeys(["weights", "top1", "top5", "top1_size", "top1_source"], "")
    row["note"] = row["note"].partition(OF_OTHERS)[0].rstrip("; ")
    name, size = row["name"], row["input_size"].rpartition("x")[2]
    described = timm.get_pretrained_cfg(name)
    default = described.tag if described and described.tag and timm.models.is_model_pretrained(name) else ""
    found = best_accuracy(name, default, size, accuracies)
    row["weights"] = found["model"].partition(".")[2] if found else default
    if found:
        row |= {"top1": found["top1"], "top5": found["top5"], "top1_size": found["img_size"]}
        row["top1_source"] = sources.id_of(found["source"])
        if row["weights"] != default:
            row["note"] = "; ".join(filter(None, [row["note"], f"{OF_OTHERS}{default}"]))
    return row


def best_accuracy(name: str, default: str, size: str, accuracies: Accuracies) -> Row | None:
    """The published accuracy of an architecture: of its default weights if it can be, at its own size if it can be."""
    found = [row for row in accuracies.values() if row["model"].partition(".")[0] == name]
    of_default = [row for row in found if row["model"] == f"{name}.{default}"]
    return max(of_default or found, key=lambda row: (row["img_size"] == size, float(row["top1"])), default=None)


def known_name(name: str, paper_name: str) -> str:
    """The registered name of a published model, ours included; empty where there is none."""
    if timm.is_model(name):
        return name
    ours = re.match(r"mobile-?former-(\d+)m?\b", paper_name, re.IGNORECASE)
    return f"mobile_former_{ours[1]}m" if ours else ""


def weights_timed(architecture: str, model: str) -> str:
    """What timm calls the weights that a source says it timed, as model.tag; empty where timm has no such weights."""
    named = re.fullmatch(r"torchvision \w+ IMAGENET1K_(V\d)( \(transform_input=False\))?", architecture)
    if named and model:
        return f"{model}.{TORCHVISION_TAGS[named[1]]}"
    tagged = re.fullmatch(r"timm (\w+\.\w+)", architecture)
    return tagged[1] if tagged else SAME_WEIGHTS.get(architecture, "")


def with_accuracy(row: Row, accuracies: Accuracies) -> Row:
    """The row with timm's accuracy where its source states none but names weights timm has, else why there is none.

    An accuracy of other weights would say little about what was timed: one architecture has some points apart.
    """
    if row["top1"]:
        return row | {"top1_source": "the latency's source"}
    if re.search("backbone|image encoder", f"{row['name']} {row['note']}"):
        return row | {"top1_source": "a backbone without its head"}
    if not row["model"]:
        return row | {"top1_source": "not stated, and timm does not have the model"}
    if re.search(r"\bw\d", row["toolchain"]):
        return row | {"top1_source": "a quantized file"}
    if not row["architecture"]:
        return row | {"top1_source": "not stated, nor which weights were timed"}
    if not (size := row["resolution"]):
        return row | {"top1_source": "not stated, nor at which size it was timed"}
    if found := accuracies.get((weights_timed(row["architecture"], row["model"]), size)):
        return row | {"top1": found["top1"], "top1_source": f"timm {found['model']}"}
    whose = "torchvision's weights" if "torchvision" in row["architecture"] else "the weights that were timed"
    return row | {"top1_source": f"timm has not evaluated {whose} at {size} px"}


def elements(number: str, unit: float) -> str:
    """A published count such as 5.3 (M) in full; empty stays empty."""
    return str(round(float(number) * unit)) if number else ""


def iphone_row(raw: Row, sources: Sources) -> Row:
    """One row of iphone_latency.csv in the catalogue's form."""
    names = [n for source, text, n in IPHONE_TOOLCHAINS if text == raw["toolchain"] and source in raw["source"]]
    if len(names) != 1:
        raise SystemExit(f"{len(names)} names for toolchain {raw['toolchain']!r} of {raw['source']!r}")
    return {
        "model": known_name(raw["model"], raw["paper_name"]),
        "architecture": "",
        "name": raw["paper_name"],
        "device": raw["device"] or NO_DEVICE,
        "os": raw["os"],
        "toolchain": names[0],
        "stated": raw["toolchain"],
        "resolution": raw["resolution"] or raw["resolution_assumed"],
        "resolution_assumed": "yes" if raw["resolution_assumed"] else "",
        "ms": raw["latency_ms"],
        "top1": raw["top1"],
        "params": elements(raw["params_m"], 1e6),
        "macs": elements(raw["gmacs"], 1e9),
        "read_from": raw["read_from"],
        "note": public(raw["note"]),
        "source": sources.id_of(raw["source"]),
    }


def snapdragon_row(raw: Row, sources: Sources) -> Row:
    """One row of snapdragon_latency.csv in the catalogue's form."""
    named = re.search(r"timm (\w+)", raw["timm_torchvision_counterpart"])
    runtime = SNAPDRAGON_RUNTIMES.get(raw["runtime"], raw["runtime"])
    older = f"({UNUSUAL_QAIRT.replace('=', ' ').upper()})" if UNUSUAL_QAIRT in raw["tool_versions"] else ""
    toolchain = " ".join(filter(None, [runtime, raw["precision"], raw["compute_unit"], older]))
    elsewhere = {unit: raw[f"layers_{unit}"] for unit in ("npu", "gpu", "cpu")} | {raw["compute_unit"].lower(): ""}
    notes = [
        f"{layers} of {raw['layers_total']} layers on {unit.upper()}" for unit, layers in elsewhere.items() if layers
    ]
    if raw["info_yaml_resolution"] not in ("", f"{raw['resolution']}x{raw['resolution']}"):
        notes.append(f"info.yaml says {raw['info_yaml_resolution']}")
    return {
        "model": known_name(named[1] if named else "", ""),
        "architecture": raw["architecture"],
        "name": raw["model"],
        "device": raw["device"],
        "os": raw["device_os"],
        "toolchain": toolchain,
        "stated": raw["tool_versions"],
        "resolution": raw["resolution"],
        "resolution_assumed": "",
        "ms": raw["latency_ms"],
        "top1": "",
        "params": elements(raw["info_yaml_params"].removesuffix("M"), 1e6),
        "macs": "",
        "read_from": "file",
        "note": "; ".join(filter(None, notes)),
        "source": sources.id_of(f"{raw['source']}; model: {raw['architecture']}"),
    }


def android_row(raw: Row, sources: Sources) -> Row:
    """One row of android_latency_other.csv in the catalogue's form."""
    device, unit = ANDROID_DEVICES[raw["target"]]
    return {
        "model": known_name(raw["model"], raw["paper_name"]),
        "architecture": "",
        "name": raw["paper_name"],
        "device": device,
        "os": "",
        "toolchain": f"MobileNetV4: {unit}",
        "stated": raw["target"],
        "resolution": "",
        "resolution_assumed": "",
        "ms": raw["latency_ms"],
        "top1": raw["top1"],
        "params": elements(raw["params_m"], 1e6),
        "macs": elements(raw["gmacs"], 1e9),
        "read_from": "text_copy",
        "note": public(raw["note"]),
        "source": sources.id_of(raw["source"]),
    }


def latency_rows(figures: Path, accuracies: Accuracies, sources: Sources) -> tuple[list[Row], list[Row]]:
    """Every published latency, in the order of the files, and the setups they were measured with."""
    files: list[tuple[str, Callable[[Row, Sources], Row]]] = [
        ("iphone_latency.csv", iphone_row),
        ("snapdragon_latency.csv", snapdragon_row),
        ("android_latency_other.csv", android_row),
    ]
    rows, setups = [], Setups()
    for file, convert in files:
        for raw in read(figures / file):
            row = with_accuracy(convert(raw, sources), accuracies)
            rows.append({column: row[column] for column in LATENCY_COLUMNS if column != "setup"})
            rows[-1]["setup"] = setups.id_of(row)
    return rows, setups.rows


def claim_rows(figures: Path, sources: Sources) -> list[Row]:
    """What papers state about our families and DeiT: top-1 in percent, parameters and MACs in full."""
    rows = []
    for raw in read(figures / "seeds_claims.csv"):
        metric = {"ImageNet top-1": "top1", "ImageNet top-1 (reference)": "top1", "params": "params"}.get(
            raw["metric"]
        )
        metric = "macs" if raw["metric"].startswith("FLOPs") else metric
        model = claimed_model(raw["model"], raw["setting"])
        if model and metric and raw["topic"] in ("MOAT", "Mobile-Former", "MixFormer", "DeiT variants"):
            scale = {"M": 1e6, "G": 1e9, "B": 1e9}.get(raw["unit"])
            rows.append(
                {
                    "model": model,
                    "name": raw["model"],
                    "setting": raw["setting"],
                    "metric": metric,
                    "value": elements(raw["value"], scale) if scale else raw["value"],
                    "status": raw["status"],
                    "note": public(raw["note"]),
                    "source": sources.id_of(raw["source"]),
                }
            )
    return rows


def claimed_model(paper_name: str, setting: str) -> str:
    """The registered name of one of our families or of DeiT, by the paper's name; empty for anything else."""
    if deit := re.fullmatch(r"DeiT-(Ti|S|B|tiny|small|base)( distilled.*)?", paper_name):
        width = {"Ti": "tiny", "S": "small", "B": "base"}.get(deit[1], deit[1])
        size = "384" if "@384" in setting else "224"
        return f"deit_{width}{'_distilled' if deit[2] else ''}_patch16_{size}"
    ours = re.fullmatch(r"(tiny-MOAT|MOAT|Mobile-Former|MixFormer)-(\w+)", paper_name)
    return f"{ours[1].replace('-', '_')}_{ours[2]}".lower() if ours else ""


def main() -> None:
    """Count what is missing or named, rebuild the published tables, and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("models", nargs="*", help="names to count again, * for anything")
    parser.add_argument("--out", type=Path, default=Path(pocketvit.catalogue.__file__).parent)
    given = parser.parse_args()
    names = timm.list_models()
    libraries = [
        {"library": name, "version": version.partition("+")[0]}
        for name, version in versions(["torch", "timm"]).items()
    ]
    same = read(given.out / "counted_with.csv") == libraries
    kept = {row["name"]: row for row in read(given.out / "models.csv") if same and row["name"] in names}
    due = [n for n in names if n not in kept or any(fnmatchcase(n, pattern) for pattern in given.models)]
    accuracies = read_accuracies(given.figures)
    write(given.out / "counted_with.csv", ["library", "version"], libraries)
    for i, name in enumerate(due, 1):
        kept[name] = count_model(name)
        print(f"{i}/{len(due)} {name}: {kept[name]['macs'] or kept[name]['note']}", flush=True)
        if i % SAVE_EVERY == 0:
            write(given.out / "models.csv", MODEL_COLUMNS, (kept[n] for n in names if n in kept))
    sources = Sources()
    models = [add_accuracy(kept[name], accuracies, sources) for name in names]
    latencies, setups = latency_rows(given.figures, accuracies, sources)
    claims = claim_rows(given.figures, sources)
    write(given.out / "models.csv", MODEL_COLUMNS, models)
    write(given.out / "latency.csv", LATENCY_COLUMNS, latencies)
    write(given.out / "setups.csv", SETUP_COLUMNS, setups)
    write(given.out / "claims.csv", CLAIM_COLUMNS, claims)
    write(given.out / "sources.csv", ["id", "text"], ({"id": i, "text": text} for text, i in sources.by_text.items()))
    print(
        json.dumps(
            {
                "models": len(models),
                "counted_now": len(due),
                "not_counted": [row["name"] for row in models if not row["params"]],
                "with_top1": sum(bool(row["top1"]) for row in models),
                "latencies": len(latencies),
                "setups": len(setups),
                "claims": len(claims),
                "bytes": {path.name: path.stat().st_size for path in sorted(given.out.glob("*.csv"))},
            }
        )
    )


if __name__ == "__main__":
    main()
