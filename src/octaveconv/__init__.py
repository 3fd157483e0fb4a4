"""octaveconv: octave convolution (Chen et al., ICCV 2019) for PyTorch."""

from . import functional
from .backends import backend
from .cost import cost
from .errors import BackendUnavailable
from .nn import Merge, OctBatchNorm2d, OctConv2d, OctMap, OctSqueezeExcite, Split
from .octave import Octave, octave_map

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "Merge",
    "OctBatchNorm2d",
    "OctConv2d",
    "OctMap",
    "OctSqueezeExcite",
    "Octave",
    "Split",
    "backend",
    "cost",
    "functional",
    "octave_map",
]
