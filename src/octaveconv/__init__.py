"""octaveconv: octave convolution (Chen et al., ICCV 2019) for PyTorch."""

from . import functional
from .backends import backend, explain
from .cost import cost
from .deploy import deploy, load_deployed
from .errors import BackendUnavailable, MissingExtra, MXNetFormatError, UsageError
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
    OctConvTranspose1d,
    OctConvTranspose2d,
    OctConvTranspose3d,
    OctGroupNorm,
    OctMap,
    OctSqueezeExcite,
    Split,
)
from .octave import ChannelSplit, Octave, octave_cat, octave_crop, octave_map
from .octavify.octavify import octavify
from .octavify.plan import Plan
from .octavify.register import register_layer
from .predict import Classifier, Prediction

__version__ = "0.2.0"

__all__ = [
    "BackendUnavailable",
    "ChannelSplit",
    "Classifier",
    "MXNetFormatError",
    "Merge",
    "MissingExtra",
    "OctBatchNorm1d",
    "OctBatchNorm2d",
    "OctBatchNorm3d",
    "OctConv1d",
    "OctConv2d",
    "OctConv3d",
    "OctConvTranspose1d",
    "OctConvTranspose2d",
    "OctConvTranspose3d",
    "OctGroupNorm",
    "OctMap",
    "OctSqueezeExcite",
    "Octave",
    "Plan",
    "Prediction",
    "Split",
    "UsageError",
    "backend",
    "cost",
    "deploy",
    "explain",
    "export",
    "functional",
    "load_deployed",
    "load_mxnet",
    "octave_cat",
    "octave_crop",
    "octave_map",
    "octavify",
    "register_layer",
]
