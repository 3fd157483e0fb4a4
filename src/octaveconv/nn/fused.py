"""Norm, residual, ReLU and the next convolution: the sequence in the blocks of the networks, fused where possible.

By definition each function calls the modules one after another. In training on a GPU it runs the fused kernels of the
Triton backend instead (``docs/triton.md``); the modules are then not called. A module with a hook prevents that.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .. import backends
from ..octave import Octave, as_octave
from ._hooks import has_hooks
from .border import OctMap
from .conv import OctConv2d
from .norm import OctBatchNorm2d


def norm_act(norm: nn.Module, act: nn.Module, x: Any, residual: Any = None) -> Any:
    """``act(norm(x) + residual)``.

    Args:
        norm, act: any modules; only `OctBatchNorm2d` and ``nn.ReLU()``, also in `OctMap`, can be fused.
        x: what ``norm`` takes: a tensor or an `Octave`.
        residual: what to add, of the same kind as ``x``; ``None`` adds nothing.

    Example:
        >>> import torch, octaveconv as oc
        >>> norm, act = oc.OctBatchNorm2d(8, alpha=0.5), oc.OctMap(torch.nn.ReLU())
        >>> x = oc.Octave(torch.randn(2, 4, 6, 6), torch.randn(2, 4, 3, 3))
        >>> norm_act(norm, act, x, residual=x).low.shape
        torch.Size([2, 4, 3, 3])
    """
    if _can_fuse(norm, act, x, residual):
        residual = None if residual is None else as_octave(residual)
        return norm._returned(norm._forward_fused(x, residual)[0])  # type: ignore[operator]
    y = norm(x)
    return act(y if residual is None else y + residual)


def norm_act_conv(norm: nn.Module, act: nn.Module, conv: nn.Module, x: Any) -> Any:
    """``conv(act(norm(x)))``; if fused, the output of ``act`` is not kept for the gradient but recomputed.

    Args:
        norm, act: as in `norm_act`.
        conv: any module; only `OctConv2d` can be fused.
        x: what ``norm`` takes: a tensor or an `Octave`.

    Example:
        >>> import torch, octaveconv as oc
        >>> norm, act = oc.OctBatchNorm2d(8), oc.OctMap(torch.nn.ReLU())
        >>> norm_act_conv(norm, act, oc.OctConv2d(8, 8, 1, alpha_out=0.5), torch.randn(2, 8, 6, 6)).low.shape
        torch.Size([2, 4, 3, 3])
    """
    if not _can_fuse(norm, act, x):
        return conv(act(norm(x)))
    if type(conv) is not OctConv2d or _is_hooked(conv) or backends.choose(as_octave(x), conv.spec).name != "triton":
        return conv(norm._forward_fused(x)[0])  # type: ignore[operator]
    spec = conv.spec
    with_pooled = spec.stride == (1, 1) and not spec.depthwise and spec.outputs.low > 0
    y, known = norm._forward_fused(x, with_pooled=with_pooled)  # type: ignore[operator]
    return conv._returned(backends.octconv_of_norm(spec.check_input(y), conv.weight, conv.bias, spec, **known))


def _can_fuse(norm: nn.Module, act: nn.Module, x: Any, residual: Any = None) -> bool:
    """Whether the kernels can stand in for these modules, and nothing observes that the modules are not called."""
    relu = act.module if type(act) is OctMap else act
    return (
        isinstance(x, (Tensor, Octave))  # not a proxy while a program is traced
        and type(norm) is OctBatchNorm2d
        and type(relu) is nn.ReLU
        and norm.weight is not None
        and (norm.training or norm.running_mean is None)
        and not isinstance(norm.sync, nn.SyncBatchNorm)
        and not any(map(_is_hooked, (norm, act, relu)))
        and backends.fuses_norm(as_octave(x), None if residual is None else as_octave(residual))
    )


def _is_hooked(module: nn.Module) -> bool:
    return has_hooks(module) or bool(torch_module._has_any_global_hook())
