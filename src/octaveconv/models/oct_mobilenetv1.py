"""MobileNet v1 with octave convolutions (MXNet Gluon API).

The first pointwise convolution makes the low part, and the last one before the last stride ends it. A depthwise
convolution keeps each channel's frequency.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..octave import Octave
from ..weights.keymaps import mxnet_gluon_mobilenet
from ._build import DEFAULT_ALPHA, Layers, OctNet, depths
from ._registry import cfg, register


class DepthwiseSeparable(nn.Module):
    """3x3 depthwise with the stride, then 1x1, each followed by norm and activation."""

    def __init__(self, make: Layers, in_chs: int, out_chs: int, stride: int, alpha_in: float, alpha_out: float) -> None:
        super().__init__()
        self.conv1 = make.conv(in_chs, in_chs, 3, stride, in_chs, alpha_in=alpha_in, alpha_out=alpha_in)
        self.bn1 = make.norm(in_chs, alpha_in)
        self.act1 = make.act(alpha_in)
        self.conv2 = make.conv(in_chs, out_chs, 1, alpha_in=alpha_in, alpha_out=alpha_out)
        self.bn2 = make.norm(out_chs, alpha_out)
        self.act2 = make.act(alpha_out)

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)))  # type: ignore[no-any-return]


class OctMobileNetV1(OctNet):
    """MobileNet v1 whose stages, except the last, are octave convolutions.

    Args:
        alpha: low-frequency share of the channels, in [0, 1]; at 0 this is the plain dense network.
        channel_multiplier: multiplies every width; the result is truncated.
        layers: blocks of each of the five stages.
        num_classes, in_chans, global_pool, drop_rate: as in every timm network.

    Source: Howard et al., arXiv 1704.04861; table 5 of Chen et al., ICCV 2019 and its published code.
    """

    stage_names = ("layer0", *OctNet.stage_names)
    mxnet_names = staticmethod(mxnet_gluon_mobilenet)

    def __init__(
        self,
        alpha: float = DEFAULT_ALPHA,
        channel_multiplier: float = 1.0,
        layers: tuple[int, ...] = (1, 2, 2, 6, 2),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        make, plain = Layers(octave=alpha != 0), Layers(octave=False)
        in_chs = int(32 * channel_multiplier)
        self.conv1 = plain.conv(in_chans, in_chs, 3, 2)
        self.bn1 = plain.norm(in_chs)
        self.act1 = plain.act()
        alpha_in, widths = 0.0, []
        for name, depth, width in zip(self.stage_names, depths(layers, 5), (64, 128, 256, 512, 1024)):
            blocks = []
            out_chs = int(width * channel_multiplier)
            for b in range(depth):
                is_dense = name == "layer4" or (name == "layer3" and b == depth - 1)
                stride = 2 if b == 0 and name != "layer0" else 1
                alpha_out = 0.0 if is_dense else alpha
                blocks.append(DepthwiseSeparable(make, in_chs, out_chs, stride, alpha_in, alpha_out))
                in_chs, alpha_in = out_chs, alpha_out
            setattr(self, name, nn.Sequential(*blocks))
            widths.append(in_chs)
        self._finish(alpha, widths, num_classes, global_pool, drop_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # octave ones too
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


register(
    OctMobileNetV1,
    {"oct_mobilenetv1_075": dict(channel_multiplier=0.75), "oct_mobilenetv1_100": dict(channel_multiplier=1.0)},
    cfg(),
)
