"""Measurement: agreement, accuracy, latency, cost, environment. Takes runners; knows nothing of targets."""

from .accuracy import accuracy
from .agreement import agreement, compare_logits
from .cost import Cost, cost
from .environment import environment, versions
from .latency import interleave

__all__ = ["Cost", "accuracy", "agreement", "compare_logits", "cost", "environment", "interleave", "versions"]
