"""OctSqueezeExcite: channel attention over both frequencies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..octave import Octave, as_octave, split_channels


class OctSqueezeExcite(nn.Module):
    """Squeeze-and-excitation whose squeeze sees the means of both parts and whose gates scale both.

    Its parameters are those of a dense squeeze-and-excitation of the same width (timm's ``SqueezeExcite``): two 1x1
    convolutions with bias, ``fc1`` and ``fc2``, over all channels, the high ones first.

    Args:
        channels: all channels, high and low.
        rd_ratio: width of the bottleneck as a share of ``channels``, truncated.
        rd_channels: that width itself.
        alpha: low-frequency share of the channels, in [0, 1].

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
        self, channels: int, rd_ratio: float = 1 / 16, rd_channels: int | None = None, *, alpha: float = 0.0
    ) -> None:
        super().__init__()
        rd_channels = int(channels * rd_ratio) if rd_channels is None else rd_channels
        if rd_channels < 1:
            raise ValueError(
                f"{channels} channels at rd_ratio {rd_ratio} leave none for the bottleneck: give rd_channels"
            )
        self.alpha = alpha
        self.split = split_channels(channels, alpha)
        self.fc1 = nn.Conv2d(channels, rd_channels, 1)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1)

    def forward(self, x: Tensor | Octave) -> Octave:
        high, low = as_octave(x)
        means = [part.mean((2, 3), keepdim=True) for part in (high, low) if part is not None]
        squeezed = torch.cat(means, 1)  # [N, C, 1, 1]
        if squeezed.shape[1] != self.fc1.in_channels:
            raise ValueError(f"{self} got {squeezed.shape[1]} channels: give it the width of the layer before")
        gates = self.split.split(self.fc2(self.fc1(squeezed).relu()).sigmoid(), 1)
        high, low = (None if part is None else part * gate for part, gate in zip((high, low), gates))
        return Octave(high, low)

    def extra_repr(self) -> str:
        """Alpha and the channels it makes."""
        return f"alpha={self.alpha:g} ({self.split.high}+{self.split.low})"
