"""One model in every form the old mobile tutorial compares, and in today's: made, proven, timed side by side."""

from .comparing import Comparison as Comparison
from .comparing import compare as compare
