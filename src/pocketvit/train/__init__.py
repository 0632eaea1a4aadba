"""Training: one resumable loop for teachers, students and plain fine-tuning."""

from __future__ import annotations

from .config import Amp, Distillation, TrainConfig
from .loop import Trained, fit

__all__ = ["Amp", "Distillation", "TrainConfig", "Trained", "fit"]
