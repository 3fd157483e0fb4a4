"""octaveconv: octave convolution (Chen et al., ICCV 2019) for PyTorch."""

from . import functional
from .backends import backend
from .cost import cost
from .deploy import deploy
from .errors import BackendUnavailable, MXNetFormatError
from .export import export
from .mxnet.params import load_mxnet
from .nn import (
    Merge,
    OctBatchNorm1d,
    OctBatchNorm2d,
    OctBatchNorm3d,
    OctConv1d,
    OctConv2d,
    OctConv3d,
    OctConvTranspose2d,
    OctGroupNorm,
    OctMap,
    OctSqueezeExcite,
    Split,
)
from .octave import Octave, octave_map
from .octavify.octavify import octavify

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "MXNetFormatError",
    "Merge",
    "OctBatchNorm1d",
    "OctBatchNorm2d",
    "OctBatchNorm3d",
    "OctConv1d",
    "OctConv2d",
    "OctConv3d",
    "OctConvTranspose2d",
    "OctGroupNorm",
    "OctMap",
    "OctSqueezeExcite",
    "Octave",
    "Split",
    "backend",
    "cost",
    "deploy",
    "export",
    "functional",
    "load_mxnet",
    "octave_map",
    "octavify",
]
