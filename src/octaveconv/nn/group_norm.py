"""The octave group normalization."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._leaf import leaf_forward
from ..octave import ChannelSplit, Octave, alpha_of, split_channels
from .norm import at_least_single, check_channels, moments


class OctGroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` on an octave: a group is normalized over its high and low channels together.

    It holds exactly the parameters of the ``nn.GroupNorm`` it replaces. The groups are those of the dense layer, in
    dense order, and may have channels of both resolutions. Every channel counts equally in the statistics of its group:
    a low pixel weighs as much as all the high pixels that it covers. With one group per channel it is instance
    normalization.

    Args:
        num_groups, num_channels, eps, affine, device, dtype: as in ``nn.GroupNorm``.
        alpha: low-frequency share of the channels, in [0, 1], or the `ChannelSplit` of concatenated ones.
        cut: ``cut_in`` or ``cut_out`` of the `OctConv2d` next to it.

    Shape:
        ``Octave([N, C_high, *], [N, C_low, *])`` to the same; a tensor ``[N, C, *]`` if alpha is 0.

    Raises:
        ValueError: alpha outside [0, 1], or an input with other channels.

    Example:
        >>> import torch, octaveconv as oc
        >>> oc.OctGroupNorm(2, 8, alpha=0.25)(oc.Octave(torch.randn(2, 6, 4, 4), torch.randn(2, 2, 2, 2))).low.shape
        torch.Size([2, 2, 2, 2])
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        alpha: float | ChannelSplit = 0.0,
        cut: int = 1,
    ) -> None:
        split = split_channels(num_channels, alpha, cut)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self.split = split
        self.alpha = alpha_of(alpha)
        self._groups = _whole_groups(num_groups, self.split)

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Octave:  # type: ignore[override]  # it takes and returns octaves
        octave = check_channels(self, x, self.split)
        if self._groups is not None:
            return Octave(
                *map(self._normalize, octave, self._groups, *map(self.split.split_any, (self.weight, self.bias)))
            )
        assert octave.high is not None
        assert octave.low is not None
        scale, shift = (self.split.split(each, 1) for each in self._scale_and_shift(octave.high, octave.low))
        return Octave(*map(_affine, octave, scale, shift))

    def _normalize(self, x: Tensor | None, groups: int, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        return None if x is None else F.group_norm(x, groups, weight, bias, self.eps)

    def _scale_and_shift(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """The scale of each channel and the shift to add after it, in dense order, both ``[N, C]``."""
        pairs = zip(*(moments(part.flatten(2), 2) for part in (high, low)))  # each [N, C_high, 1] and [N, C_low, 1]
        mean, var = (
            self.split.join(of_high, of_low, 1).flatten(1).unflatten(1, (self.num_groups, -1))
            for of_high, of_low in pairs
        )  # [N, groups, C / groups]
        whole = mean.mean(2, keepdim=True)
        within = (var + (mean - whole).square()).mean(2, keepdim=True)
        scale = (within + self.eps).rsqrt().expand_as(mean).flatten(1)
        shift = -whole.expand_as(mean).flatten(1) * scale
        if self.weight is not None:
            scale, shift = scale * self.weight, shift * self.weight
        return scale, shift if self.bias is None else shift + self.bias

    def extra_repr(self) -> str:
        """The arguments of ``nn.GroupNorm``, then alpha with its high and low channels."""
        return f"{super().extra_repr()}, alpha={self.alpha:g} ({self.split.high}+{self.split.low})"


def _whole_groups(groups: int, split: ChannelSplit) -> tuple[int, int] | None:
    """The number of groups with only high channels and with only low ones; None if a group has both."""
    size = (split.high + split.low) // groups
    if size == 1 or (split.contiguous and split.high % size == 0):
        return split.high // size, split.low // size
    return None


def _affine(x: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """``x * scale + shift``, where scale and shift are ``[N, C]``: one for each channel of each sample."""
    assert x is not None
    assert scale is not None
    assert shift is not None
    per_channel = (..., *[None] * (x.dim() - 2))
    return torch.addcmul(shift[per_channel], at_least_single(x), scale[per_channel]).to(x.dtype)
