"""Post-activation residual networks with octave convolutions, shaped and named as torchvision's.

Their state dicts have the keys, shapes and channel order of torchvision's networks at every alpha, so dense ImageNet
weights load with ``strict=True``. The original Gluon ``resnet50_v1b`` is ``oct_resnet50``.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..octave import Octave
from ._build import DEFAULT_ALPHA, Layers, OctNet, build, cfg, stage_alphas


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the stride is in the first."""

    expansion = 1

    def __init__(
        self, make: Layers, in_chs: int, width: int, stride: int, groups: int, alpha_in: float, alpha_out: float
    ) -> None:
        super().__init__()
        self.conv1 = make.conv(in_chs, width, 3, stride, alpha_in=alpha_in, alpha_out=alpha_out)
        self.bn1 = make.norm(width, alpha_out)
        self.act1 = make.act()
        self.conv2 = make.conv(width, width, 3, alpha_in=alpha_out, alpha_out=alpha_out)
        self.bn2 = make.norm(width, alpha_out)
        self.downsample = _shortcut(make, in_chs, width, stride, alpha_in, alpha_out)
        self.act2 = make.act()

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act2(y + self.downsample(x))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride and the groups, 1x1 to four times the width, and a shortcut."""

    expansion = 4

    def __init__(
        self, make: Layers, in_chs: int, width: int, stride: int, groups: int, alpha_in: float, alpha_out: float
    ) -> None:
        super().__init__()
        mid, out = width * (2 if groups > 1 else 1), width * self.expansion  # ResNeXt: 32 groups of 4 at width 64
        both: dict[str, Any] = dict(alpha_in=alpha_out, alpha_out=alpha_out)
        self.conv1 = make.conv(in_chs, mid, 1, alpha_in=alpha_in, alpha_out=alpha_out, cut_out=groups)
        self.bn1 = make.norm(mid, alpha_out, cut=groups)
        self.act1 = make.act()
        self.conv2 = make.conv(mid, mid, 3, stride, groups, **both)
        self.bn2 = make.norm(mid, alpha_out, cut=groups)
        self.act2 = make.act()
        self.conv3 = make.conv(mid, out, 1, **both, cut_in=groups)
        self.bn3 = make.norm(out, alpha_out)
        self.downsample = _shortcut(make, in_chs, out, stride, alpha_in, alpha_out)
        self.act3 = make.act()

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.act3(y + self.downsample(x))  # type: ignore[no-any-return]


def _shortcut(make: Layers, in_chs: int, out_chs: int, stride: int, alpha_in: float, alpha_out: float) -> nn.Module:
    """A 1x1 convolution and a norm where the shape changes, as in torchvision; parameter-free elsewhere."""
    if stride == 1 and in_chs == out_chs:
        return make.split(in_chs, alpha_in, alpha_out)
    conv = make.conv(in_chs, out_chs, 1, stride, alpha_in=alpha_in, alpha_out=alpha_out)
    return nn.Sequential(conv, make.norm(out_chs, alpha_out))


class OctResNet(OctNet):
    """ResNet or ResNeXt whose stages are octave convolutions; the stem is plain and the last stage has alpha 0.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks of each of the four stages.
        alpha: low-frequency share of the channels in stages 1 to 3, in [0, 1]; at 0 this is the plain dense network.
        groups: groups of the 3x3 convolutions; more than 1 (ResNeXt) doubles the inner width.
        width: channels of the stem; the stages have 1, 2, 4 and 8 times as many, times the block's expansion.
        num_classes, in_chans, global_pool, drop_rate: as in every timm network.
        zero_init_last: start each block's last norm at 0.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], layers: tuple[int, ...], alpha: float = DEFAULT_ALPHA,
        groups: int = 1, width: int = 64, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg",
        drop_rate: float = 0.0, zero_init_last: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        make = Layers(octave=alpha != 0)
        self.conv1 = nn.Conv2d(in_chans, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        in_chs, alpha_in, widths = width, 0.0, [width]
        for i, (name, depth, alpha_out) in enumerate(zip(self.stage_names, layers, stage_alphas(alpha), strict=True)):
            blocks = []
            for b in range(depth):
                stride = 2 if i > 0 and b == 0 else 1
                blocks.append(block(make, in_chs, width * 2**i, stride, groups, alpha_in, alpha_out))
                in_chs, alpha_in = width * 2**i * block.expansion, alpha_out
            setattr(self, name, nn.Sequential(*blocks))
            widths.append(in_chs)
        self._finish(alpha, widths, num_classes, global_pool, drop_rate)
        self._initialise(zero_init_last)

    def _initialise(self, zero_init_last: bool) -> None:
        """As torchvision: He-normal convolutions, norms at 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # octave ones too
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_last and isinstance(module, (BasicBlock, Bottleneck)):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def forward_stem(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.conv1(x)))  # type: ignore[no-any-return]

    def forward_stem_pool(self, x: Tensor) -> Tensor:
        return self.maxpool(x)  # type: ignore[no-any-return]


_NAMES = [f"oct_resnet{depth}" for depth in (18, 34, 26, 50, 101, 152)] + ["oct_resnext50_32x4d"]
default_cfgs = generate_default_cfgs({name: cfg() for name in _NAMES})


def _oct_resnet(variant: str, pretrained: bool, given: dict[str, Any], **defaults: Any) -> OctResNet:
    return build(OctResNet, variant, pretrained, **(defaults | given))  # type: ignore[no-any-return]


@register_model
def oct_resnet18(pretrained: bool = False, **kwargs: Any) -> OctResNet:
    """ResNet-18 with octave convolutions."""
    return _oct_resnet("oct_resnet18", pretrained, kwargs, block=BasicBlock, layers=(2, 2, 2, 2))


@register_model
def oct_resnet34(pretrained: bool = False, **kwargs: Any) -> OctResNet:
    """ResNet-34 with octave convolutions."""
    return _oct_resnet("oct_resnet34", pretrained, kwargs, block=BasicBlock, layers=(3, 4, 6, 3))


@register_model
def oct_resnet26(pretrained: bool = False, **kwargs: Any) -> OctResNet:
    """ResNet-26 (bottleneck blocks) with octave convolutions."""
    return _oct_resnet("oct_resnet26", pretrained, kwargs, block=Bottleneck, layers=(2, 2, 2, 2))


@register_model
def oct_resnet50(pretrained: bool = False, **kwargs: Any) -> OctResNet:
    """ResNet-50 with octave convolutions."""
    return _oct_resnet("oct_resnet50", pretrained, kwargs, block=Bottleneck, layers=(3, 4, 6, 3))


@register_model
def oct_resnet101(pretrained: bool = False, **kwargs: Any) -> OctResNet:
    """ResNet-101 with octave convolutions."""
    return _oct_resnet("oct_resnet101", pretrained, kwargs, block=Bottleneck, layers=(3, 4, 23, 3))


@register_model
def oct_resnet152(pretrained: bool = False, **kwargs: Any) -> OctResNet:
    """ResNet-152 with octave convolutions."""
    return _oct_resnet("oct_resnet152", pretrained, kwargs, block=Bottleneck, layers=(3, 8, 36, 3))


@register_model
def oct_resnext50_32x4d(pretrained: bool = False, **kwargs: Any) -> OctResNet:
    """ResNeXt-50 32x4d with octave convolutions; alpha 0, 0.25, 0.5, 0.75 or 1."""
    return _oct_resnet("oct_resnext50_32x4d", pretrained, kwargs, block=Bottleneck, layers=(3, 4, 6, 3), groups=32)
