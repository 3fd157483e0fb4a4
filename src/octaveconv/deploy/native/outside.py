"""What the engine meets outside of it: models whose dtype it can keep, and tensors whose numbers it can read."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils import _pytree as pytree

from ..._text import one_line
from ...errors import BackendUnavailable
from ..eagerly import in_pytorch


def check_dtypes(model: nn.Module, example: Tensor, dtype: torch.dtype) -> None:
    """Refuse a model with outputs in another floating-point dtype than its own, since it is captured in float32.

    Raises:
        BackendUnavailable: it has, or it cannot run in its dtype.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            outputs = pytree.tree_leaves(copy.deepcopy(model).eval()(example.to(dtype)))
    except Exception as error:
        raise BackendUnavailable(f"the model cannot run in {dtype}: {one_line(error)}") from error
    for each in outputs:
        if isinstance(each, Tensor) and each.is_floating_point() and each.dtype != dtype:
            raise BackendUnavailable(f"the model is in {dtype}, but an output of it is in {each.dtype}")


def check_images(x: Tensor, dtype: torch.dtype) -> None:
    """Refuse what is no dense tensor ``[N, C, H, W]`` of numbers on the CPU.

    Raises:
        ValueError: it says what is wrong with it.
    """
    if not isinstance(x, Tensor) or x.is_nested or x.layout != torch.strided:
        got = type(x).__name__ + (f" of layout {x.layout}" if isinstance(x, Tensor) else "")
        raise ValueError(f"this deployed network takes a dense tensor of images [N, C, H, W], got {got}")
    if _has_no_numbers(x):
        raise ValueError(
            "a deployed network computes with numbers: it cannot be traced, exported or transformed; do that with "
            "the model, and deploy what comes out"
        )
    if x.device.type != "cpu" or x.dtype != dtype or x.dim() != 4:
        raise ValueError(
            f"this deployed network takes {dtype} images [N, C, H, W] on the CPU, got {x.dtype} "
            f"{list(x.shape)} on {x.device}"
        )


def _has_no_numbers(x: Tensor) -> bool:
    """Whether a call is there to see what a network does, not for its answer."""
    modes = torch._C._len_torch_dispatch_stack() > 0
    fakes = modes and (detect_fake_mode() is not None or get_proxy_mode() is not None)
    tracing = torch._C._is_tracing() or torch.compiler.is_exporting()
    return fakes or tracing or isinstance(x, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(x)


def in_memory(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor with its numbers in memory as they are: neither negative ones nor zeros by agreement alone."""
    if x.dtype == dtype and not x.is_neg() and not x._is_zerotensor():
        return x
    with in_pytorch():
        return torch.zeros(x.shape, dtype=dtype) if x._is_zerotensor() else x.to(dtype).resolve_neg()
