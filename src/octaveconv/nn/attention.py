"""OctSqueezeExcite: channel attention over both frequencies."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._leaf import leaf_forward
from ..octave import ChannelSplit, Octave, alpha_of, split_channels
from .norm import check_channels


class OctSqueezeExcite(nn.Module):
    """Squeeze-and-excitation on an octave: it squeezes the means of both parts, and its gates scale both.

    It holds exactly the parameters of the dense squeeze-and-excitation it replaces (timm's ``SqueezeExcite``): two 1x1
    convolutions with bias, ``fc1`` and ``fc2``, over all channels in dense order.

    Args:
        channels: all channels, high and low.
        rd_ratio: channels of the bottleneck as a share of ``channels``, truncated.
        rd_channels: channels of the bottleneck, instead of ``rd_ratio``.
        device, dtype: as in ``nn.Conv2d``.
        alpha: low-frequency share of the channels, in [0, 1], or the `ChannelSplit` of concatenated ones.
        cut: ``cut_in`` or ``cut_out`` of the `OctConv2d` next to it.

    Shape:
        ``Octave([N, C_high, H, W], [N, C_low, ceil(H/2), ceil(W/2)])`` to the same; a tensor if alpha is 0.

    Raises:
        ValueError: alpha outside [0, 1], an input with other channels, or a bottleneck without channels.

    Source: Hu et al., CVPR 2018; the two frequencies as in the original octave code.

    Example:
        >>> import torch, octaveconv as oc
        >>> se = oc.OctSqueezeExcite(64, alpha=0.25)
        >>> se(oc.Octave(torch.ones(1, 48, 8, 8), torch.ones(1, 16, 4, 4))).low.shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        device: Any = None,
        dtype: Any = None,
        *,
        alpha: float | ChannelSplit = 0.0,
        cut: int = 1,
    ) -> None:
        super().__init__()
        rd_channels = int(channels * rd_ratio) if rd_channels is None else rd_channels
        if rd_channels < 1:
            raise ValueError(
                f"{channels} channels at rd_ratio {rd_ratio} leave none for the bottleneck: pass rd_channels"
            )
        self.split = split_channels(channels, alpha, cut)
        self.alpha = alpha_of(alpha)
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, device=device, dtype=dtype)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, device=device, dtype=dtype)

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Octave:
        octave = check_channels(self, x, self.split)
        high, low = (None if part is None else part.mean((2, 3), keepdim=True) for part in octave)
        squeezed = self.split.join(high, low, 1)  # [N, C, 1, 1], in dense order
        gates = self.split.split(self.fc2(self.fc1(squeezed).relu()).sigmoid(), 1)
        return Octave(*(None if part is None else part * gate for part, gate in zip(octave, gates)))

    def extra_repr(self) -> str:
        """Alpha with its high and low channels."""
        return f"alpha={self.alpha:g} ({self.split.high}+{self.split.low})"
