"""pocketvit puts any vision transformer on a phone or edge device and proves that it still works."""

__version__ = "0.1.0"
