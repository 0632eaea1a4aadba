"""Draw Apple's published Neural Engine latencies beside what our audit predicts before and after the pass.

    python benchmarks/ane_figure.py [docs/ane.svg]

Left, published: the figure of Apple's repository ml-vision-transformers-ane (milliseconds; device and resolution are
not stated there). Right, predicted: padded traffic at 512 px of the models as they are and as the pass rewrites them.
The two panels have different units and prove nothing about each other's numbers, only about their order.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

from third_party_moat import ThirdPartyMoat

from pocketvit.audits.ane import audit_model
from pocketvit.models import Model, create
from pocketvit.passes.ane import ane
from pocketvit.types import Evidence, InputSpec

SIZE = 512
PUBLISHED = (("DeiT/16-tiny", 24.9), ("MOAT TM1, 3rd party", 32.8), ("MOAT TM1, Apple", 13.8))
SOURCE = "apple/ml-vision-transformers-ane, assets/latency.png; device and resolution not stated"
TABLE = Path(__file__).parent / "results" / "ane-figure-torch2.13.0.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One model as it is and as the pass leaves it, in padded megabytes."""

    name: str
    before: float
    after: float
    transposes: tuple[int, int]


def bars() -> list[Bar]:
    """Audit DeiT-tiny and tiny-MOAT-1, the second in the third-party form and in ours, at 512 px."""
    third = ThirdPartyMoat(window=8).eval()
    spec = InputSpec(size=(3, SIZE, SIZE))
    models = {
        "DeiT/16-tiny (timm)": create("deit_tiny_patch16_224", img_size=SIZE),
        "MOAT TM1, 3rd-party form": Model(name="third_party", module=third, spec=spec, trained=False, classes=10),
        "MOAT TM1, ours": create("tiny_moat_1", img_size=SIZE, attention="local", window_size=[8, 8], position="lepe"),
    }
    found = []
    for name, model in models.items():
        before, after = audit_model(model), audit_model(ane(model))
        found.append(
            Bar(
                name=name,
                before=before.padded_bytes / 1e6,
                after=after.padded_bytes / 1e6,
                transposes=(before.transposes, after.transposes),
            )
        )
        print(f"{name}: {found[-1].before:.0f} -> {found[-1].after:.0f} MB, transposes {found[-1].transposes}")
    return found


def draw(found: list[Bar], path: Path) -> None:
    """Two panels, each with its evidence in the title."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "pocketvit", "font.size": 9}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.1), layout="constrained")
    names, times = zip(*PUBLISHED, strict=True)
    left.barh(names[::-1], times[::-1], color="#8c96a3")
    for place, value in enumerate(times[::-1]):
        left.text(value + 0.5, place, f"{value:g}", va="center")
    left.set_title(f"ms on the Neural Engine ({Evidence.PUBLISHED})", fontsize=9, loc="left")
    left.set_xlim(0, 38)
    left.set_xlabel("from Apple's repository; device and resolution not stated", color="#626a76")
    places = range(len(found))
    order = found[::-1]
    right.barh([p + 0.2 for p in places], [bar.before for bar in order], 0.38, color="#c9d0d8", label="as it is")
    right.barh([p - 0.2 for p in places], [bar.after for bar in order], 0.38, color="#2563c9", label="with --pass ane")
    most = max(bar.before for bar in found)
    for place, bar in zip(places, order, strict=True):
        right.text(bar.before + 0.01 * most, place + 0.2, f"{bar.before:.0f}", va="center")
        right.text(bar.after + 0.01 * most, place - 0.2, f"{bar.after:.0f}", va="center")
    right.set_yticks(list(places), [bar.name for bar in order])
    right.set_xlim(0, 1.12 * most)
    right.set_title(f"padded MB moved at {SIZE} px ({Evidence.PREDICTED})", fontsize=9, loc="left")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Count, write the numbers, draw."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/ane.svg")
    found = bars()
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "evidence", "unit", "before", "after", "source"])
        for name, value in PUBLISHED:
            writer.writerow([name, Evidence.PUBLISHED, "ms", value, "", SOURCE])
        for bar in found:
            unit = f"padded MB at {SIZE} px"
            writer.writerow([bar.name, Evidence.PREDICTED, unit, f"{bar.before:.1f}", f"{bar.after:.1f}", "the audit"])
    draw(found, path)


if __name__ == "__main__":
    main()
