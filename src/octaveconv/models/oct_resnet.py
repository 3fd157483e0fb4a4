"""Post-activation residual networks with octave convolutions, with torchvision's shapes and names.

Their state dicts have the keys, shapes and channel order of torchvision's networks at every alpha, so dense ImageNet
weights load with ``strict=True``. The original Gluon ``resnet50_v1b`` is ``oct_resnet50``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from operator import mul
from typing import Any

from torch import Tensor, nn

from ..nn.fused import norm_act, norm_act_conv
from ..octave import Octave
from ..weights.keymaps import mxnet_gluon_resnetv1, mxnet_gluon_resnetv1_deep
from ._build import DEFAULT_ALPHA, Layers, OctNet, depths, stage_alphas
from ._registry import cfg, register


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, which have the ``dilations``, and a shortcut; the stride is in the first."""

    expansion = 1

    def __init__(
        self,
        make: Layers,
        in_chs: int,
        width: int,
        stride: int,
        groups: int,
        alpha_in: float,
        alpha_out: float,
        *,
        dilations: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        first, second = dilations
        self.conv1 = make.conv(in_chs, width, 3, stride, alpha_in=alpha_in, alpha_out=alpha_out, dilation=first)
        self.bn1 = make.norm(width, alpha_out)
        self.act1 = make.act(alpha_out)
        self.conv2 = make.conv(width, width, 3, alpha_in=alpha_out, alpha_out=alpha_out, dilation=second)
        self.bn2 = make.norm(width, alpha_out)
        self.downsample = _shortcut(make, in_chs, width, stride, alpha_in, alpha_out)
        self.act2 = make.act(alpha_out)

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        y = norm_act_conv(self.bn1, self.act1, self.conv2, self.conv1(x))
        return norm_act(self.bn2, self.act2, y, self.downsample(x))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 with the groups, 1x1 to ``expansion`` times the width, and a shortcut.

    The 3x3 convolution has the first of the ``dilations`` and the stride; with ``late_stride`` the last 1x1 has that.
    With ``raw_norm`` a norm without scale and shift precedes the first convolution and that of the shortcut.
    """

    expansion = 4

    def __init__(
        self,
        make: Layers,
        in_chs: int,
        width: int,
        stride: int,
        groups: int,
        alpha_in: float,
        alpha_out: float,
        *,
        dilations: tuple[int, int] = (1, 1),
        expansion: int = 4,
        late_stride: bool = False,
        use_se: bool = False,
        raw_norm: bool = False,
    ) -> None:
        super().__init__()
        mid, out = width * (2 if groups > 1 else 1), width * expansion  # ResNeXt: 32 groups of 4 at width 64
        both: dict[str, Any] = dict(alpha_in=alpha_out, alpha_out=alpha_out)
        strides = (1, stride) if late_stride else (stride, 1)
        self.bn1a = make.norm(in_chs, alpha_in, affine=False) if raw_norm else nn.Identity()
        self.conv1 = make.conv(in_chs, mid, 1, alpha_in=alpha_in, alpha_out=alpha_out, cut_out=groups)
        self.bn1 = make.norm(mid, alpha_out, cut=groups)
        self.act1 = make.act(alpha_out)
        self.conv2 = make.conv(mid, mid, 3, strides[0], groups, **both, dilation=dilations[0])
        self.bn2 = make.norm(mid, alpha_out, cut=groups)
        self.act2 = make.act(alpha_out)
        self.conv3 = make.conv(mid, out, 1, strides[1], **both, cut_in=groups)
        self.bn3 = make.norm(out, alpha_out)
        self.se = make.se(out, alpha_out) if use_se else nn.Identity()
        self.downsample = _shortcut(make, in_chs, out, stride, alpha_in, alpha_out)
        has_conv = isinstance(self.downsample, nn.Sequential)
        self.bn4a = make.norm(in_chs, alpha_in, affine=False) if raw_norm and has_conv else nn.Identity()
        self.act3 = make.act(alpha_out)

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        y = norm_act_conv(self.bn1, self.act1, self.conv2, self.conv1(self.bn1a(x)))
        y = norm_act_conv(self.bn2, self.act2, self.conv3, y)
        shortcut = self.downsample(self.bn4a(x))
        if isinstance(self.se, nn.Identity):
            return norm_act(self.bn3, self.act3, y, shortcut)  # type: ignore[no-any-return]
        return self.act3(self.se(self.bn3(y)) + shortcut)  # type: ignore[no-any-return]


def stage_strides(output_stride: int) -> list[tuple[int, tuple[int, int]]]:
    """For each of the four stages, its stride, and the dilations of its first block and of the others, as in timm.

    A stage after which the stride would exceed ``output_stride`` keeps its size; it and all that follow are dilated.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")
    found, dilation = [(1, (1, 1))], 1
    for reduction in (8, 16, 32):
        fits = reduction <= output_stride
        found.append((2 if fits else 1, (dilation, dilation if fits else 2 * dilation)))
        dilation = found[-1][1][1]
    return found


def _shortcut(make: Layers, in_chs: int, out_chs: int, stride: int, alpha_in: float, alpha_out: float) -> nn.Module:
    """A 1x1 convolution and a norm if the shape changes, as in torchvision; otherwise no parameters."""
    if stride == 1 and in_chs == out_chs:
        return make.split(in_chs, alpha_in, alpha_out)
    conv = make.conv(in_chs, out_chs, 1, stride, alpha_in=alpha_in, alpha_out=alpha_out)
    return nn.Sequential(conv, make.norm(out_chs, alpha_out))


def _deep_stem(in_chans: int, first: int, strides: tuple[int, int]) -> nn.Sequential:
    """Three 3x3 convolutions to ``first``, 32 and 64 channels; the network adds the norm and activation of the last."""
    widths = (first, 32, 64)
    layers: list[nn.Module] = []
    for i, (in_chs, out_chs, stride) in enumerate(zip((in_chans, *widths), widths, (*strides, 1))):
        layers.append(nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False))
        if i < 2:
            layers += [nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class OctResNet(OctNet):
    """ResNet or ResNeXt whose stages are octave convolutions; the stem is plain and the last stage has alpha 0.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks of each of the four stages.
        alpha: low-frequency share of the channels in stages 1 to 3, in [0, 1]; at 0 this is the plain dense network.
        groups: groups of the 3x3 convolutions; more than 1 (ResNeXt) doubles the inner width.
        width: channels of the stem; the stages have 1, 2, 4 and 8 times as many, times the block's expansion.
        num_classes, in_chans, global_pool, drop_rate: as in every timm network.
        zero_init_last: initialize each block's last norm to 0.
        stem: ``"7x7"``; ``"deep"`` is three 3x3 convolutions (64 channels); in ``"deep_block"`` the first of them has 8
            channels, the second has the stride, and a plain residual block replaces the max pooling.
        output_stride: 32, or 16 or 8: the last stages keep their size, and their 3x3 convolutions are dilated instead.
        block_args: further arguments of the blocks.
    """

    dilates = True

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: tuple[int, ...],
        alpha: float = DEFAULT_ALPHA,
        groups: int = 1,
        width: int = 64,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        zero_init_last: bool = False,
        stem: str = "7x7",
        output_stride: int = 32,
        **block_args: Any,
    ) -> None:
        super().__init__()
        strides = stage_strides(output_stride)
        self.reductions = (2, *accumulate((stride for stride, _ in strides[1:]), mul, initial=4))
        make = Layers(octave=alpha != 0)
        self._add_stem(stem, in_chans, width)
        in_chs, alpha_in, widths = width, 0.0, [width]
        for i, (name, depth, alpha_out) in enumerate(zip(self.stage_names, depths(layers), stage_alphas(alpha))):
            blocks = []
            for b in range(depth):
                stride, (first, later) = (strides[i][0] if b == 0 else 1), strides[i][1]
                block_args["dilations"] = (later if b else first, later)
                blocks.append(block(make, in_chs, width * 2**i, stride, groups, alpha_in, alpha_out, **block_args))
                in_chs, alpha_in = width * 2**i * block.expansion, alpha_out
            setattr(self, name, nn.Sequential(*blocks))
            widths.append(in_chs)
        self._finish(alpha, widths, num_classes, global_pool, drop_rate)
        self._initialize(zero_init_last)

    def _add_stem(self, stem: str, in_chans: int, width: int) -> None:
        stems: dict[str, Callable[[], nn.Module]] = {
            "7x7": lambda: nn.Conv2d(in_chans, width, 7, 2, 3, bias=False),
            "deep": lambda: _deep_stem(in_chans, 32, (2, 1)),
            "deep_block": lambda: _deep_stem(in_chans, 8, (1, 2)),
        }
        if stem not in stems or (stem != "7x7" and width != 64):
            raise ValueError(f"stem must be one of {list(stems)}, the deep ones of width 64; got {stem!r}, {width}")
        self.conv1 = stems[stem]()
        self.mxnet_names = mxnet_gluon_resnetv1 if stem == "7x7" else mxnet_gluon_resnetv1_deep
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1)
        if stem == "deep_block":
            self.maxpool = Bottleneck(Layers(octave=False), 64, 32, 2, 1, 0.0, 0.0, expansion=2)

    def _initialize(self, zero_init_last: bool) -> None:
        """As in torchvision: He-normal convolutions, norms at 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:  # octave ones too; SE keeps PyTorch's default
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_last and isinstance(module, (BasicBlock, Bottleneck)):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def forward_stem_pool(self, x: Tensor) -> Tensor:
        return self.maxpool(x)  # type: ignore[no-any-return]


register(
    OctResNet,
    {
        "oct_resnet18": dict(block=BasicBlock, layers=(2, 2, 2, 2)),
        "oct_resnet34": dict(block=BasicBlock, layers=(3, 4, 6, 3)),
        "oct_resnet26": dict(block=Bottleneck, layers=(2, 2, 2, 2)),
        "oct_resnet50": dict(block=Bottleneck, layers=(3, 4, 6, 3)),
        "oct_resnet101": dict(block=Bottleneck, layers=(3, 4, 23, 3)),
        "oct_resnet152": dict(block=Bottleneck, layers=(3, 8, 36, 3)),
        "oct_resnext50_32x4d": dict(block=Bottleneck, layers=(3, 4, 6, 3), groups=32),
    },
    cfg(),
)
_LATE: dict[str, Any] = dict(block=Bottleneck, layers=(3, 8, 36, 3), late_stride=True)  # the original's v1e and v1f
register(
    OctResNet,
    {
        "oct_resnet152f": dict(_LATE, stem="deep_block"),
        "oct_seresnet152e": dict(_LATE, stem="deep", use_se=True, raw_norm=True),
    },
    cfg(first_conv="conv1.0"),
)
