"""Alternatives to attention: AFT, Hyena, linear attention and pooling, all on tokens of a grid known beforehand."""

from .aft import AFTConv, AFTFull, AFTLocal, AFTSimple
from .hyena import Form, Hyena
from .linear import LinearAttention
from .mixer import TokenMixer
from .pooling import Pooling

__all__ = ["AFTConv", "AFTFull", "AFTLocal", "AFTSimple", "Form", "Hyena", "LinearAttention", "Pooling", "TokenMixer"]
