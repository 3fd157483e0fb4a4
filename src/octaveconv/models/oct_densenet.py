"""DenseNet with octave convolutions (MXNet Symbol API): each layer appends to the high and to the low channels.

The state dict keeps the channel order of the dense network, layer after layer. The input of each layer is a
concatenation, and each of its pieces has high and low channels (`ChannelSplit.then`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..octave import ChannelSplit, Octave, octave_cat, split_channels
from ..weights.keymaps import mxnet_symbol_densenet
from ._build import DEFAULT_ALPHA, Layers, OctNet, depths, stage_alphas
from ._registry import register
from .oct_resnetv2 import ABLATION_CFG, PreActConv


class DenseLayer(nn.Module):
    """1x1 to four times the growth, 3x3 to the growth, appended to the input's channels."""

    def __init__(self, make: Layers, in_chs: int, growth: int, split_in: ChannelSplit, alpha: float) -> None:
        super().__init__()
        self.conv1 = PreActConv(make, in_chs, 4 * growth, 1, alpha_in=split_in, alpha_out=alpha)
        self.conv2 = PreActConv(make, 4 * growth, growth, 3, alpha_in=alpha, alpha_out=alpha)
        self.is_octave = make.octave and alpha > 0

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        y = self.conv2(self.conv1(x))
        return octave_cat(x, y) if self.is_octave else torch.cat([x, y], 1)  # type: ignore[list-item]


class Transition(nn.Module):
    """1x1 to half the width, then 2x2 average pooling, which rounds odd sizes up as everywhere in this package."""

    def __init__(self, make: Layers, in_chs: int, out_chs: int, split_in: ChannelSplit, alpha: float) -> None:
        super().__init__()
        self.conv = PreActConv(make, in_chs, out_chs, 1, alpha_in=split_in, alpha_out=alpha)
        self.pool = make.map(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), alpha)

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        return self.pool(self.conv(x))  # type: ignore[no-any-return]


class OctDenseNet(OctNet):
    """DenseNet whose stages are octave convolutions; stem and last stage are plain.

    Args:
        layers: dense layers of each of the four stages; a transition precedes the second, third and fourth.
        alpha: low-frequency share of the channels in stages 1 to 3, in [0, 1]; at 0 this is the plain dense network.
        growth: channels that each layer appends.
        width: channels of the stem.
        num_classes, in_chans, global_pool, drop_rate: as in every timm network.

    Source: Huang et al., CVPR 2017; section 4.2 of Chen et al., ICCV 2019 and its published code.
    """

    mxnet_names = staticmethod(mxnet_symbol_densenet)

    def __init__(
        self,
        layers: tuple[int, ...],
        alpha: float = DEFAULT_ALPHA,
        growth: int = 32,
        width: int = 64,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        make = Layers(octave=alpha != 0, eps=1e-4, momentum=0.08)
        plain = Layers(octave=False, eps=1e-4, momentum=0.08)
        self.conv1 = plain.conv(in_chans, width, 7, 2)
        self.bn1 = plain.norm(width)
        self.act1 = plain.act()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        chs, split, widths = width, ChannelSplit(width, 0), [width]
        for name, depth, stage_alpha in zip(self.stage_names, depths(layers), stage_alphas(alpha)):
            blocks: list[nn.Module] = []
            if len(widths) > 1:
                blocks.append(Transition(make, chs, chs // 2, split, stage_alpha))
                chs, split = chs // 2, split_channels(chs // 2, stage_alpha)
            for _ in range(depth):
                blocks.append(DenseLayer(make, chs, growth, split, stage_alpha))
                chs, split = chs + growth, split.then(split_channels(growth, stage_alpha))
            setattr(self, name, nn.Sequential(*blocks))
            widths.append(chs)
        self.norm = plain.norm(chs)
        self.act = plain.act()
        self._finish(alpha, widths, num_classes, global_pool, drop_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # octave ones too
                nn.init.kaiming_normal_(module.weight)

    def forward_stem_pool(self, x: Tensor) -> Tensor:
        return self.maxpool(x)  # type: ignore[no-any-return]

    def forward_norm(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))  # type: ignore[no-any-return]

    def prune_norm(self) -> None:
        """Drop the last norm and activation."""
        self.norm, self.act = nn.Identity(), nn.Identity()


register(
    OctDenseNet,
    {
        "oct_densenet121": dict(layers=(6, 12, 24, 16)),
        "oct_densenet161": dict(layers=(6, 12, 36, 24), width=96, growth=48),
        "oct_densenet169": dict(layers=(6, 12, 32, 32)),
        "oct_densenet201": dict(layers=(6, 12, 48, 32)),
    },
    ABLATION_CFG,
)
