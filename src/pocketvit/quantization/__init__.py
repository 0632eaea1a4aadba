"""Quantized files that keep their accuracy: the calibrator that measures best, the layers that must stay float."""

from .budgeted import Budgeted, Labelled, check_drop, export_within, labelled
from .calibrators import measured_calibrators
from .files import Outcome, export_files, recommend_timed

__all__ = [
    "Budgeted",
    "Labelled",
    "Outcome",
    "check_drop",
    "export_files",
    "export_within",
    "labelled",
    "measured_calibrators",
    "recommend_timed",
]
