"""When the Triton backend can run, found out without importing Triton."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..octave import Octave
from ..spec import ConvSpec

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
    """Import Triton and register the operator, if that can be done."""
    if _INSTALLED:
        import_module(_MODULE)


def can_run(x: Octave, spec: ConvSpec) -> str | None:
    """The reason why the kernels cannot compute this convolution, or ``None``."""
    if spec.transposed or spec.factor != (2, 2):
        return "it convolves images whose low map has half their height and width, and does not transpose"
    if spec.padding_mode != "zeros":
        return f"it pads with zeros alone, not by padding_mode={spec.padding_mode!r}"
    if not (spec.inputs.low or spec.outputs.low) or not (spec.inputs.high or spec.outputs.high):
        return "with one frequency it is a plain convolution, which cuDNN computes: use the merged backend"
    if spec.groups > 1 and not spec.depthwise and not spec.inputs.cut == spec.outputs.cut == spec.groups:
        return "its groups must each have their own high and low channels: give alphas, not a ChannelSplit"
    return _cannot_read(x)


def can_normalize(x: Octave, residual: Octave | None) -> str | None:
    """The reason why the kernels cannot normalise these maps by their own statistics, or ``None``."""
    for part, addend in zip(x, residual or x):
        if part is None or addend is None:
            if part is not addend:
                return "the residual must have the parts of the input"
        elif part.dim() != 4 or part.numel() <= part.shape[1]:
            return "it normalises images, of more than one value per channel"
        elif (addend.shape, addend.dtype, addend.device) != (part.shape, part.dtype, part.device):
            return "the residual must have the shape, the dtype and the device of the input"
    return _cannot_read(x)


def _cannot_read(x: Octave) -> str | None:
    part = x.low if x.high is None else x.high
    assert part is not None
    if not _INSTALLED:
        return "Triton is not installed: pip install triton"
    if part.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it computes in float16, bfloat16 and float32, not in {part.dtype}"
    if not torch.compiler.is_compiling() and _MODULE not in sys.modules and torch._C._len_torch_dispatch_stack():
        return f"a mode such as FlopCounterMode is active that was made before the operator: import {_MODULE} first"
    return _cannot_run_on(part.device)


def _cannot_run_on(device: torch.device) -> str | None:
    if _INTERPRETED and torch.compiler.is_dynamo_compiling():
        return "torch.compile cannot trace Triton's interpreter: start Python without TRITON_INTERPRET"
    if device.type == "meta" or _INTERPRETED:  # no kernel runs; or it runs in NumPy
        return None
    if device.type != "cuda" or torch.version.hip:
        return (
            f"it needs an NVIDIA GPU, and the input is on {device}: move model and input there by .to('cuda'), or set "
            f"TRITON_INTERPRET=1 before Python starts to have the kernels interpreted, slowly"
        )
    major = torch.cuda.get_device_properties(device).major  # which torch.compile knows to be a constant
    if major < 8:
        return f"it needs a GPU of compute capability 8.0 or more, and {device} has {major}.x"
    return None
