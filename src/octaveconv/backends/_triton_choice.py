"""When the Triton backend can run, decided without importing Triton."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..octave import Octave
from ..spec import ConvSpec

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of its maps
_MODULE = f"{__package__}.triton"
_INSTALLED = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")  # as Triton reads it


def octconv(x: Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Octave:
    """The same map as `reference.octconv`; see there for shapes."""
    return octconv_of_norm(x, weight, bias, spec)


def octconv_of_norm(x: Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec, **options: Any) -> Octave:
    """See `triton.fused`, whose options ``pooled`` and ``origin`` are what a norm knows of ``x``."""
    from . import triton

    return triton.fused(x, weight, bias, spec, **options)[0]


def batch_norm(x: Octave, weight: Tensor, bias: Tensor, eps: float, **options: Any) -> Any:
    """See `triton.batch_norm`."""
    from . import triton

    return triton.batch_norm(x, weight, bias, eps, **options)


def load() -> None:
    """Import Triton and register the operator, if Triton is installed."""
    if _INSTALLED:
        import_module(_MODULE)


def can_run(x: Octave, spec: ConvSpec) -> str | None:
    """The reason why the kernels cannot compute this convolution, or ``None``."""
    if spec.transposed or spec.factor != (2, 2):
        return "it convolves images whose low map has half their height and width, and has no transposed convolution"
    if spec.strides:
        return "its stride is 1 or 2, and its padding keeps the size of what the stride has pooled"
    if spec.padding_mode != "zeros":
        return f"it pads with zeros only, not with padding_mode={spec.padding_mode!r}"
    if spec.padding_after is not None:
        return "it pads both sides alike"
    if not (spec.inputs.low or spec.outputs.low) or not (spec.inputs.high or spec.outputs.high):
        return "without a high or a low part it is a plain convolution, which cuDNN computes: use the merged backend"
    if spec.groups > 1 and not spec.depthwise and not spec.inputs.cut == spec.outputs.cut == spec.groups:
        return "each of its groups must have its own high and low channels: give alphas, not a ChannelSplit"
    return _cannot_read(x)


def can_normalize(x: Octave, residual: Octave | None) -> str | None:
    """The reason why the kernels cannot normalize these maps with their own statistics, or ``None``."""
    for part, addend in zip(x, residual or x):
        if part is None or addend is None:
            if part is not addend:
                return "the residual must have the parts of the input"
        elif part.dim() != 4 or part.numel() <= part.shape[1]:
            return "it normalizes images, with more than one value per channel"
        elif (addend.shape, addend.dtype, addend.device) != (part.shape, part.dtype, part.device):
            return "the residual must have the shape, the dtype and the device of the input"
    return _cannot_read(x)


def _cannot_read(x: Octave) -> str | None:
    part = x.low if x.high is None else x.high
    assert part is not None
    if not _INSTALLED:
        return "Triton is not installed: pip install triton"
    if part.dtype not in DTYPES:
        return f"it computes in float32, float16 and bfloat16, not in {part.dtype}"
    if not torch.compiler.is_compiling() and _MODULE not in sys.modules and torch._C._len_torch_dispatch_stack():
        return f"a mode such as FlopCounterMode was entered before the operator was registered: import {_MODULE} first"
    return _cannot_run_on(part.device)


def _cannot_run_on(device: torch.device) -> str | None:
    if _INTERPRETED and torch.compiler.is_dynamo_compiling():
        return "torch.compile cannot trace Triton's interpreter: start Python without TRITON_INTERPRET"
    if device.type == "meta" or _INTERPRETED:  # no kernel runs; or it runs in NumPy
        return None
    if device.type != "cuda" or torch.version.hip:
        return (
            f"it needs an NVIDIA GPU, and the input is on {device}: move model and input there with .to('cuda'), or "
            f"set TRITON_INTERPRET=1 before Python starts to have the kernels interpreted, slowly"
        )
    major = torch.cuda.get_device_properties(device).major  # a constant for torch.compile
    if major < 8:
        return f"it needs a GPU of compute capability 8.0 or more, and {device} has {major}.x"
    return None
