"""The rules of the audit: each with the public fact it rests on and where that was published.

Rules marked `reported` rest on what users measured or believe, not on what Apple documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import matches
from .graph import Graph
from .matches import Match

_APPLE = "https://machinelearning.apple.com/research/neural-engine-transformers"
_APPLE_VISION = "https://github.com/apple/ml-vision-transformers-ane/blob/main/vision_transformers/attention_utils.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule, the fact it rests on and where that was published. reported: by users, not by Apple."""

    id: str
    fact: str
    source: str
    reported: bool = False
    find: Callable[[Graph], Iterator[Match]]


# from the most to the least specific: an operation's waste is charged to the first rule that asks for it
RULES = (
    Rule(
        id="rank",
        fact="Core ML takes tensors of rank 5 at most; Apple partitions windows without six-dimensional tensors.",
        source="https://github.com/apple/coremltools/issues/2536",
        find=matches.rank,
    ),
    Rule(
        id="norm",
        fact="coremltools folds a batch norm into the convolution it follows directly (fuse_conv_batchnorm).",
        source="https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.passes.defs.html",
        find=matches.norm,
    ),
    Rule(
        id="softmax",
        fact="Apple's attention runs one softmax per head, which its code says reduces latency significantly.",
        source=_APPLE_VISION,
        find=matches.softmax,
    ),
    Rule(
        id="channels",
        fact="The last axis is aligned to 64 bytes, which are 32 values of 16 bits: the width of a channels-last row.",
        source=_APPLE,
        find=matches.channels,
    ),
    Rule(
        id="copies",
        fact="Because an axis is not packed, reshapes and transposes are likely to trigger memory copies.",
        source=_APPLE,
        find=matches.copies,
    ),
    Rule(
        id="padding",
        fact="The last axis is not packed but aligned to 64 bytes: a single 16-bit value takes 32 times its memory.",
        source=_APPLE,
        find=matches.padding,
    ),
    Rule(
        id="kinds",
        fact="Users report that these operations run on the CPU or GPU: each line names who did.",
        source=matches.HOLLANCE,
        reported=True,
        find=matches.kinds,
    ),
    Rule(
        id="dynamic",
        fact="With a range of shapes, only the default shape runs on the Neural Engine; enumerated shapes all can.",
        source="https://developer.apple.com/forums/thread/724930",
        find=matches.dynamic,
    ),
    Rule(
        id="float32",
        fact="A 16-bit program may run on Neural Engine, GPU and CPU; a 32-bit one runs on GPU and CPU.",
        source="https://apple.github.io/coremltools/docs-guides/source/typed-execution-example.html",
        find=matches.float32,
    ),
    Rule(
        id="weights",
        fact="Apple splits its diffusion model into parts of under 1 GB of weights for the Neural Engine of phones.",
        source="https://github.com/apple/ml-stable-diffusion",
        find=matches.weights,
    ),
    Rule(
        id="layout",
        fact="The format most conducive to the engine is 4-D and channels first; Apple swaps linear layers for 1x1 "
        "convolutions on (B, C, 1, S).",
        source=_APPLE,
        find=matches.layout,
    ),
    Rule(
        id="qkv",
        fact="Smaller chunks stay in the L2 cache more often; Apple projects Q, K and V with separate convolutions.",
        source=_APPLE_VISION,
        find=matches.qkv,
    ),
)
