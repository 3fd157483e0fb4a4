"""Pre-activation residual networks with octave convolutions: the paper's ablation networks (MXNet Symbol API).

Norm and activation precede each convolution, eps is 1e-4, the momentum 0.08, and the first block of every stage has a
shortcut convolution with its own norm.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..nn.fused import norm_act_conv
from ..octave import Octave
from ..weights.keymaps import mxnet_symbol_resnetv2
from ._build import DEFAULT_ALPHA, Alpha, Layers, OctNet, depths, stage_alphas
from ._registry import cfg, register


class PreActConv(nn.Module):
    """Norm, ReLU, convolution: the unit of these networks."""

    def __init__(
        self,
        make: Layers,
        in_chs: int,
        out_chs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        alpha_in: Alpha,
        alpha_out: Alpha,
        cut_in: int = 1,
        cut_out: int = 1,
    ) -> None:
        super().__init__()
        cuts: dict[str, Any] = {} if groups > 1 else dict(cut_in=cut_in, cut_out=cut_out)
        self.bn = make.norm(in_chs, alpha_in, cut=cut_in)
        self.act = make.act(alpha_in)
        self.conv = make.conv(in_chs, out_chs, kernel, stride, groups, alpha_in=alpha_in, alpha_out=alpha_out, **cuts)

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        return norm_act_conv(self.bn, self.act, self.conv, x)  # type: ignore[no-any-return]


class PreActBottleneck(nn.Module):
    """1x1, 3x3 with the stride and the groups, 1x1; then SE; then the sum with the shortcut, without activation."""

    def __init__(
        self,
        make: Layers,
        in_chs: int,
        mid: int,
        out: int,
        stride: int,
        groups: int,
        use_se: bool,
        alpha_in: float,
        alpha_out: float,
        is_first: bool,
    ) -> None:
        super().__init__()
        both: dict[str, Any] = dict(alpha_in=alpha_out, alpha_out=alpha_out)
        self.conv1 = PreActConv(make, in_chs, mid, 1, alpha_in=alpha_in, alpha_out=alpha_out, cut_out=groups)
        self.conv2 = PreActConv(make, mid, mid, 3, stride, groups, **both, cut_in=groups)
        self.conv3 = PreActConv(make, mid, out, 1, **both, cut_in=groups)
        self.se = make.se(out, alpha_out) if use_se else nn.Identity()
        self.downsample = (
            PreActConv(make, in_chs, out, 1, stride, alpha_in=alpha_in, alpha_out=alpha_out)
            if is_first
            else nn.Identity()
        )

    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        y = self.se(self.conv3(self.conv2(self.conv1(x))))
        return y + self.downsample(x)  # type: ignore[no-any-return]


class OctResNetV2(OctNet):
    """Pre-activation ResNet or ResNeXt, with or without SE, whose stages are octave convolutions.

    Args:
        layers: blocks of each of the four stages.
        alpha: low-frequency share of the channels in stages 1 to 3, in [0, 1]; at 0 this is the plain dense network.
        groups: groups of the 3x3 convolutions; more than 1 (ResNeXt) doubles the inner width.
        use_se: squeeze-and-excitation in every block.
        width: channels of the stem; the stages output 4, 8, 16 and 32 times as many.
        stem: ``"7x7"`` (ImageNet: stride 2, then max pooling) or ``"3x3"`` (small images: stride 1, no pooling).
        num_classes, in_chans, global_pool, drop_rate: as in every timm network.

    Source: section 4.2 of Chen et al., ICCV 2019 and its published code; He et al., ECCV 2016.
    """

    mxnet_names = staticmethod(mxnet_symbol_resnetv2)

    def __init__(
        self,
        layers: tuple[int, ...],
        alpha: float = DEFAULT_ALPHA,
        groups: int = 1,
        use_se: bool = False,
        width: int = 64,
        stem: str = "7x7",
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        make = Layers(octave=alpha != 0, eps=1e-4, momentum=0.08)
        plain = Layers(octave=False, eps=1e-4, momentum=0.08)
        if stem not in ("7x7", "3x3"):
            raise ValueError(f"stem must be '7x7' or '3x3', got {stem!r}")
        is_large = stem == "7x7"
        self.reductions = OctNet.reductions if is_large else (1, 1, 2, 4, 8)
        self.conv1 = plain.conv(in_chans, width, 7 if is_large else 3, 2 if is_large else 1)
        self.bn1 = plain.norm(width)
        self.act1 = plain.act()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if is_large else nn.Identity()
        in_chs, alpha_in, widths = width, 0.0, [width]
        for i, (name, depth, alpha_out) in enumerate(zip(self.stage_names, depths(layers), stage_alphas(alpha))):
            mid, out = width * 2**i * (2 if groups > 1 else 1), 4 * width * 2**i
            blocks = []
            for b in range(depth):
                stride = 2 if i > 0 and b == 0 else 1
                blocks.append(
                    PreActBottleneck(make, in_chs, mid, out, stride, groups, use_se, alpha_in, alpha_out, b == 0)
                )
                in_chs, alpha_in = out, alpha_out
            setattr(self, name, nn.Sequential(*blocks))
            widths.append(out)
        self.norm = plain.norm(in_chs)
        self.act = plain.act()
        self._finish(alpha, widths, num_classes, global_pool, drop_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:  # octave ones too; SE keeps PyTorch's default
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_stem_pool(self, x: Tensor) -> Tensor:
        return self.maxpool(x)  # type: ignore[no-any-return]

    def forward_norm(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))  # type: ignore[no-any-return]

    def prune_norm(self) -> None:
        """Drop the last norm and activation."""
        self.norm, self.act = nn.Identity(), nn.Identity()


_MEAN, _SCALE = (124, 117, 104), 0.0167  # of pixels in 0 ... 255, as the original evaluated them
ABLATION_CFG = cfg(
    mean=tuple(mean / 255 for mean in _MEAN), std=(1 / (_SCALE * 255),) * 3, interpolation="bicubic", license="mit"
)
register(
    OctResNetV2,
    {
        "oct_resnetv2_26": dict(layers=(2, 2, 2, 2)),
        "oct_resnetv2_50": dict(layers=(3, 4, 6, 3)),
        "oct_resnetv2_101": dict(layers=(3, 4, 23, 3)),
        "oct_resnetv2_152": dict(layers=(3, 8, 36, 3)),
        "oct_resnetv2_200": dict(layers=(3, 24, 36, 3)),
        "oct_seresnetv2_50": dict(layers=(3, 4, 6, 3), use_se=True),
        "oct_resnextv2_50_32x4d": dict(layers=(3, 4, 6, 3), groups=32),
        "oct_resnextv2_101_32x4d": dict(layers=(3, 4, 23, 3), groups=32),
    },
    ABLATION_CFG,
)
