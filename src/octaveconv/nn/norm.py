"""The octave batch normalizations: they normalize both parts, with one set of parameters and statistics."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from .. import backends
from .._leaf import leaf_forward
from ..octave import ChannelSplit, Octave, alpha_of, as_octave, split_channels
from ._dense import MayReturnTensor


class State(NamedTuple):
    """The parameters and running statistics of one part, each ``[C]``."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None


class OctBatchNormNd(MayReturnTensor, _NormBase):
    """What the batch normalizations of one, two and three axes share."""

    axes: int

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        alpha: float | ChannelSplit = 0.0,
        cut: int = 1,
    ) -> None:
        split = split_channels(num_features, alpha, cut)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.split = split
        self.alpha = alpha_of(alpha)
        self.sync: nn.Module = _SyncMarker(num_features, affine=False, track_running_stats=False)

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Octave:
        octave = self._check(x)
        use_batch = self.training or self.running_mean is None
        momentum = self._count_batch()
        high_state, low_state = self._states()
        high = None if octave.high is None else self._normalize(octave.high, high_state, use_batch, momentum)
        low = None if octave.low is None else self._normalize(octave.low, low_state, use_batch, momentum)
        if not self.split.contiguous and self.training and self.running_mean is not None:
            self.running_mean.copy_(self.split.join(high_state.mean, low_state.mean))
            self.running_var.copy_(self.split.join(high_state.var, low_state.var))  # type: ignore[union-attr]
        return self._returned(Octave(high, low))

    def _forward_fused(
        self, x: Tensor | Octave, residual: Octave | None = None, *, with_pooled: bool = False
    ) -> tuple[Octave, dict[str, Any]]:
        """``relu(self(x) + residual)`` with this batch's statistics, fused; only where `backends.fuses_norm` allows it.

        It also returns the arguments of `backends.octconv_of_norm`, which takes no residual.
        """
        octave, momentum = self._check(x), self._count_batch()
        weight, bias = (self.split.high_first(parameter) for parameter in (self.weight, self.bias))
        y, pooled, statistics = backends.batch_norm(
            octave, weight, bias, self.eps, residual=residual, relu=True, with_pooled=with_pooled
        )
        if self.training and self.running_mean is not None:
            for running, batch in zip((self.running_mean, self.running_var), statistics):
                if not self.split.contiguous:
                    batch = self.split.join(*batch.split(self.split[:2]))
                running.lerp_(batch.to(running.dtype), momentum)  # type: ignore[union-attr]
        return y, dict(pooled=pooled, origin=(*octave, weight, bias, statistics))

    def _check(self, x: Tensor | Octave) -> Octave:
        octave = check_channels(self, x, self.split)
        for name, part in zip(("high", "low"), octave):
            if part is not None and part.dim() != self.axes + 2:
                raise ValueError(
                    f"{self} got an octave whose {name} part has {part.dim()} dimensions, expected {self.axes + 2}: "
                    f"use OctBatchNorm1d, 2d or 3d to match the maps"
                )
        return octave

    def _states(self) -> tuple[State, State]:
        """Weight, bias, running mean and running variance of the high and of the low channels."""
        mean, var = self.running_mean, self.running_var
        if not self.split.contiguous and mean is not None and var is not None:
            mean, var = mean.clone(), var.clone()  # not views: forward writes them back in one piece
        whole = (self.weight, self.bias, mean, var)
        cut = [self.split.split_any(state) for state in whole]
        return State(*(high for high, _ in cut)), State(*(low for _, low in cut))

    def _count_batch(self) -> float:
        """Count a training batch; return the momentum with which its statistics enter the running ones."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average
                return 1.0 / float(self.num_batches_tracked)
        return 0.0 if self.momentum is None else self.momentum

    def _normalize(self, x: Tensor, state: State, use_batch: bool, momentum: float) -> Tensor:
        weight, bias, mean, var = state
        update = self.training and mean is not None
        if use_batch and isinstance(self.sync, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
            y, batch_mean, batch_var = _synchronized(x, weight, bias, self.eps, self.sync.process_group)
            if update:
                mean.lerp_(batch_mean.to(mean.dtype), momentum)  # type: ignore[union-attr]
                var.lerp_(batch_var.to(var.dtype), momentum)  # type: ignore[union-attr]
            return y
        if use_batch and not update:
            mean = var = None
        return F.batch_norm(x, mean, var, weight, bias, use_batch, momentum, self.eps)

    def extra_repr(self) -> str:
        """The arguments of ``nn.BatchNorm2d``, then alpha with its high and low channels."""
        sync = ", synchronized" if isinstance(self.sync, nn.SyncBatchNorm) else ""
        return f"{super().extra_repr()}, alpha={self.alpha:g} ({self.split.high}+{self.split.low}){sync}"

    def __repr__(self) -> str:
        return f"{self._get_name()}({self.extra_repr()})"


class OctBatchNorm1d(OctBatchNormNd):
    """``nn.BatchNorm1d`` on an octave of series. Args, raises: as `OctBatchNorm2d`.

    Shape:
        ``Octave([N, C_high, L], [N, C_low, ceil(L/2)])`` to the same; a tensor ``[N, C, L]`` if alpha is 0.

    Example:
        >>> import torch, octaveconv as oc
        >>> oc.OctBatchNorm1d(8, alpha=0.25)(oc.Octave(torch.randn(2, 6, 5), torch.randn(2, 2, 3))).low.shape
        torch.Size([2, 2, 3])
    """

    axes = 1


class OctBatchNorm2d(OctBatchNormNd):
    """``nn.BatchNorm2d`` on an octave: each channel is normalized over its own pixels.

    It holds exactly the parameters and buffers of the ``nn.BatchNorm2d`` it replaces, in the same order.
    ``nn.SyncBatchNorm.convert_sync_batchnorm`` makes it synchronize its statistics over the process group, on
    every device.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as in ``nn.BatchNorm2d``.
        alpha: low-frequency share of the channels, in [0, 1], or the `ChannelSplit` of concatenated ones.
        cut: ``cut_in`` or ``cut_out`` of the `OctConv2d` next to it.

    Shape:
        ``Octave([N, C_high, H, W], [N, C_low, ceil(H/2), ceil(W/2)])`` to the same; a tensor if alpha is 0.

    Raises:
        ValueError: alpha outside [0, 1], or an input with other channels or dimensions.

    Example:
        >>> import torch, octaveconv as oc
        >>> oc.OctBatchNorm2d(8, alpha=0.25)(oc.Octave(torch.randn(2, 6, 4, 4), torch.randn(2, 2, 2, 2))).low.shape
        torch.Size([2, 2, 2, 2])
    """

    axes = 2


class OctBatchNorm3d(OctBatchNormNd):
    """``nn.BatchNorm3d`` on an octave of volumes. Args, raises: as `OctBatchNorm2d`.

    Shape:
        ``Octave([N, C_high, T, H, W], [N, C_low, T, ceil(H/2), ceil(W/2)])`` to the same; a tensor if alpha is 0.

    Example:
        >>> import torch, octaveconv as oc
        >>> x = oc.Split(8, 0.25)(torch.randn(2, 8, 3, 5, 5))
        >>> oc.OctBatchNorm3d(8, alpha=0.25)(x).low.shape
        torch.Size([2, 2, 3, 3, 3])
    """

    axes = 3


def check_channels(layer: nn.Module, x: Tensor | Octave, split: ChannelSplit) -> Octave:
    """Return ``x`` as an octave, or raise ValueError saying which part does not have the channels of ``split``."""
    octave = as_octave(x)
    for name, part, channels in zip(("high", "low"), octave, split[:2]):
        if (0 if part is None else part.shape[1]) != channels:
            got = "is absent" if part is None else f"has {part.shape[1]} channels"
            raise ValueError(f"{layer} got an octave whose {name} part {got}: give it the alpha of the layer before")
    return octave


def at_least_single(x: Tensor) -> Tensor:
    """``x``, converted to single precision if it is in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def moments(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and variance over a dimension, which is kept; on a CPU ten times as fast as ``torch.var_mean``."""
    values = at_least_single(x)
    mean = values.mean(dim, keepdim=True)
    return mean, (values - mean).square().mean(dim, keepdim=True)


class _SyncMarker(_BatchNorm):
    """A child without state that ``convert_sync_batchnorm`` replaces, which tells the parent to synchronize."""


def _synchronized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize over the batches of all processes; also return their mean and unbiased variance, both ``[C]``."""
    values = at_least_single(x)
    pixels = tuple(range(2, x.dim()))
    per_channel = (..., *[None] * len(pixels))  # as an index: [C] to [C, 1, 1], for broadcasting
    count = values.new_full((1,), values.numel() / values.shape[1])
    total = _ProcessSum.apply(torch.cat([values.sum((0, *pixels)), count]), group)
    mean, count = total[:-1] / total[-1], total[-1].detach()
    centered = values - mean[per_channel]
    var = _ProcessSum.apply(centered.square().sum((0, *pixels)), group) / count
    y = centered * (var + eps).rsqrt()[per_channel]
    if weight is not None and bias is not None:
        y = y * weight[per_channel] + bias[per_channel]
    return y.to(x.dtype), mean.detach(), (var * count / (count - 1).clamp(min=1)).detach()


class _ProcessSum(torch.autograd.Function):
    """The sum over all processes of a group; its gradient is summed the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
