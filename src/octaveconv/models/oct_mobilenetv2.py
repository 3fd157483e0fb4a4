"""MobileNet v2 with octave convolutions (MXNet Gluon API): only the inside of a block is octave.

Blocks exchange high-frequency maps. A block's expanded channels are split; its last convolution merges them.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..octave import Octave
from ..weights.keymaps import mxnet_gluon_mobilenet
from ._build import DEFAULT_ALPHA, Layers, OctNet, depths
from ._registry import cfg, register

_WIDTHS = (16, 24, 32, 64, 96, 160, 320)
_STAGES = ("layer0", "layer1", "layer2", "layer3", "layer3", "layer4", "layer4")  # the stage of each width


class InvertedResidual(nn.Module):
    """1x1 to the inner width, 3x3 depthwise with the stride, 1x1 without activation; a shortcut if shapes agree."""

    def __init__(self, make: Layers, in_chs: int, out_chs: int, expansion: int, stride: int, alpha: float) -> None:
        super().__init__()
        mid = in_chs * expansion
        self.conv1 = make.conv(in_chs, mid, 1, alpha_out=alpha)
        self.bn1 = make.norm(mid, alpha)
        self.act1 = make.act(alpha)
        self.conv2 = make.conv(mid, mid, 3, stride, mid, alpha_in=alpha, alpha_out=alpha)
        self.bn2 = make.norm(mid, alpha)
        self.act2 = make.act(alpha)
        self.conv3 = make.conv(mid, out_chs, 1, alpha_in=alpha)
        self.bn3 = make.norm(out_chs)
        self.has_shortcut = stride == 1 and in_chs == out_chs

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y + x if self.has_shortcut else y  # type: ignore[no-any-return]


class OctMobileNetV2(OctNet):
    """MobileNet v2 whose blocks, except those of the last stage, are octave inside.

    Args:
        alpha: low-frequency share of the inner channels, in [0, 1]; at 0 this is the plain dense network.
        channel_multiplier: multiplies every width, that of the head only if above 1; the result is truncated.
        layers: blocks of each of the seven widths 16, 24, 32, 64, 96, 160, 320.
        num_classes, in_chans, global_pool, drop_rate: as in every timm network.

    Source: Sandler et al., CVPR 2018; table 5 of Chen et al., ICCV 2019 and its published code.
    """

    stage_names = ("layer0", *OctNet.stage_names)
    mxnet_names = staticmethod(mxnet_gluon_mobilenet)

    def __init__(
        self,
        alpha: float = DEFAULT_ALPHA,
        channel_multiplier: float = 1.0,
        layers: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        make = Layers(octave=alpha != 0, act_layer=nn.ReLU6)
        plain = Layers(octave=False, act_layer=nn.ReLU6)
        in_chs = int(32 * channel_multiplier)
        self.conv1 = plain.conv(in_chans, in_chs, 3, 2)
        self.bn1 = plain.norm(in_chs)
        self.act1 = plain.act()
        stages: dict[str, list[nn.Module]] = {name: [] for name in self.stage_names}
        widths = dict.fromkeys(self.stage_names, 0)
        for name, width, depth in zip(_STAGES, _WIDTHS, depths(layers, len(_WIDTHS))):
            for _ in range(depth):
                expansion, alpha_inside = 1 if name == "layer0" else 6, 0.0 if name == "layer4" else alpha
                stride = 2 if not stages[name] and name != "layer0" else 1
                widths[name] = int(width * channel_multiplier)
                stages[name].append(InvertedResidual(make, in_chs, widths[name], expansion, stride, alpha_inside))
                in_chs = widths[name]
        for name, blocks in stages.items():
            setattr(self, name, nn.Sequential(*blocks))
        head = int(1280 * max(channel_multiplier, 1.0))
        self.conv_head = plain.conv(in_chs, head, 1)
        self.norm = plain.norm(head)
        self.act = plain.act()
        self._finish(alpha, [*widths.values()], num_classes, global_pool, drop_rate, num_features=head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # octave ones too
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward_norm(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv_head(x)))  # type: ignore[no-any-return]

    def prune_norm(self) -> None:
        """Drop the head's convolution, norm and activation."""
        self.conv_head, self.norm, self.act = nn.Identity(), nn.Identity(), nn.Identity()


register(
    OctMobileNetV2,
    {"oct_mobilenetv2_100": dict(channel_multiplier=1.0), "oct_mobilenetv2_1125": dict(channel_multiplier=1.125)},
    cfg(),
)
