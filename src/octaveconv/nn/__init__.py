"""Octave layers."""

from .attention import OctSqueezeExcite
from .border import Merge, OctMap, Split
from .conv import OctConv2d
from .norm import OctBatchNorm2d

__all__ = ["Merge", "OctBatchNorm2d", "OctConv2d", "OctMap", "OctSqueezeExcite", "Split"]
