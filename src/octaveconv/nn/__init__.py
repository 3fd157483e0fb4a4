"""Octave layers."""

from .attention import OctSqueezeExcite
from .border import Merge, OctMap, Split
from .conv import OctConv1d, OctConv2d, OctConv3d, OctConvTranspose1d, OctConvTranspose2d, OctConvTranspose3d
from .group_norm import OctGroupNorm
from .layers import (
    FrozenOctBatchNorm2d,
    OctGlobalResponseNorm,
    OctLayerNorm,
    OctPReLU,
    PixelwiseOctLinear,
    SampleDrop,
    StandardizedOctConv2d,
)
from .norm import OctBatchNorm1d, OctBatchNorm2d, OctBatchNorm3d

__all__ = [
    "FrozenOctBatchNorm2d",
    "Merge",
    "OctBatchNorm1d",
    "OctBatchNorm2d",
    "OctBatchNorm3d",
    "OctConv1d",
    "OctConv2d",
    "OctConv3d",
    "OctConvTranspose1d",
    "OctConvTranspose2d",
    "OctConvTranspose3d",
    "OctGlobalResponseNorm",
    "OctGroupNorm",
    "OctLayerNorm",
    "OctMap",
    "OctPReLU",
    "OctSqueezeExcite",
    "PixelwiseOctLinear",
    "SampleDrop",
    "Split",
    "StandardizedOctConv2d",
]
