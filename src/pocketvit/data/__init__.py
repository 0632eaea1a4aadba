"""Real images with labels, from files or from scikit-learn, and what it takes to feed them to a model."""

from .dataset import ImageDataset, check_classes
from .images import load_image
from .opening import open_data
from .preprocessing import batches, check_calibration, preprocess, sample
from .sources import SOURCES

__all__ = [
    "SOURCES",
    "ImageDataset",
    "batches",
    "check_calibration",
    "check_classes",
    "load_image",
    "open_data",
    "preprocess",
    "sample",
]
