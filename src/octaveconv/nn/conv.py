"""OctConv2d: the parameters, initialisation and printing of an octave convolution."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional
from ..octave import ChannelSplit, Octave
from ..spec import Pair, conv_spec
from ._mark import AlphaMarked


class OctConv2d(AlphaMarked, nn.Conv2d):
    """Octave convolution: ``nn.Conv2d`` on feature maps of which a share alpha is kept at half resolution.

    It holds exactly the parameters of the ``nn.Conv2d`` it replaces, initialised the same way: one weight
    ``[out, in / groups, kh, kw]`` and one bias ``[out]``. So their state dicts can be exchanged, at every alpha.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in ``nn.Conv2d``. A stride of 2 pools the input 2x2, then convolves at stride 1. Where either alpha is
            not 0 the padding must keep the map's size (``2 * padding == dilation * (kernel_size - 1)``).
        alpha_in: low-frequency share of the input channels, in [0, 1]; 0 if a plain tensor comes in.
        alpha_out: the same for the output channels; 0 if everything is to come out at the high resolution. Either may
            be a `ChannelSplit` instead, where the channels are a concatenation whose pieces are split each by itself.
        cut_in, cut_out: inside how many equal groups of channels the high and the low ones are cut apart. A grouped
            convolution cuts inside its own groups, which is the default; its ungrouped neighbours are given the same
            number on the side they share with it if the network is to use the weights of a dense one.

    Shape:
        ``Octave([N, C_high, H, W], [N, C_low, ceil(H/2), ceil(W/2)])``, or a tensor ``[N, C, H, W]`` if alpha_in is 0,
        to ``Octave([N, O_high, H', W'], [N, O_low, ceil(H'/2), ceil(W'/2)])``, ``H' = ceil(H / stride)``; a part that
        has no channels is ``None``. ``C_low = int(alpha_in * C)``.

    Raises:
        ValueError: arguments that do not fit together, or an input that does not fit the layer.

    Source: section 3 of Chen et al., ICCV 2019.

    Example:
        >>> import torch, octaveconv as oc
        >>> layer = oc.OctConv2d(64, 128, 3, stride=2, padding=1, alpha_in=0.25, alpha_out=0.25)
        >>> y = layer(oc.Octave(torch.ones(1, 48, 15, 15), torch.ones(1, 16, 8, 8)))
        >>> y.high.shape, y.low.shape
        (torch.Size([1, 96, 8, 8]), torch.Size([1, 32, 4, 4]))
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Pair, stride: int | Pair = 1,
        padding: int | Pair | str = 0, dilation: int | Pair = 1, groups: int = 1, bias: bool = True,
        padding_mode: str = "zeros", device: Any = None, dtype: Any = None, *, alpha_in: float | ChannelSplit = 0.0,
        alpha_out: float | ChannelSplit = 0.0, cut_in: int | None = None, cut_out: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,  # type: ignore[arg-type]  # nn.Conv2d checks the mode
        )  # fmt: skip
        self.spec = conv_spec(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode,
            alpha_in, alpha_out, cut_in, cut_out,
        )  # fmt: skip
        self.alpha_in, self.alpha_out = (
            split.alpha if isinstance(alpha, ChannelSplit) else alpha
            for alpha, split in ((alpha_in, self.spec.inputs), (alpha_out, self.spec.outputs))
        )
        self.alpha_mark = (self.alpha_in, self.alpha_out)

    def forward(self, x: Tensor | Octave) -> Octave:  # type: ignore[override]
        return functional.run(x, self.weight, self.bias, self.spec)

    def extra_repr(self) -> str:
        """The arguments of ``nn.Conv2d``, then both alphas and the channels they make."""
        inputs, outputs = self.spec.inputs, self.spec.outputs
        return (
            f"{super().extra_repr()}, alpha_in={self.alpha_in:g} ({inputs.high}+{inputs.low}), "
            f"alpha_out={self.alpha_out:g} ({outputs.high}+{outputs.low})"
        )
