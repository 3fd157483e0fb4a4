"""Octave layers that `octaveconv.octavify` makes from those of other libraries: ``print(model)`` shows them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from .._leaf import leaf_forward
from ..octave import ChannelSplit, Octave, as_octave
from ..resolution import pool, upsample
from .border import prelu
from .conv import OctConv2d
from .norm import moments


class PixelwiseOctLinear(OctConv2d):
    """``nn.Linear`` over the channels of each pixel, on octaves: a 1x1 convolution whose weight is ``[out, in]``."""

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Octave:  # type: ignore[override]
        return self._returned(functional.run(x, self.weight[..., None, None], self.bias, self.spec))


class OctLayerNorm(nn.LayerNorm):
    """Layer normalization over the channels of each pixel. A low pixel uses the statistics of those it stands for."""

    split: ChannelSplit

    @leaf_forward
    def forward(self, x: Octave) -> Octave:  # type: ignore[override]
        assert x.high is not None
        assert x.low is not None
        high, low = moments(x.high, 1), [upsample(map_, (2, 2), x.high.shape[2:]) for map_ in moments(x.low, 1)]
        share = self.split.alpha
        mean = torch.lerp(high[0], low[0], share)
        var = torch.lerp(high[1] + (high[0] - mean).square(), low[1] + (low[0] - mean).square(), share)
        parameters = [self.split.split_any(parameter) for parameter in (self.weight, self.bias)]
        return Octave(
            self._normalize(x.high, mean, var, *(of_high for of_high, _ in parameters)),
            self._normalize(x.low, pool(mean), pool(var), *(of_low for _, of_low in parameters)),
        )

    def _normalize(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = (x - mean) * (var + self.eps).rsqrt()
        if weight is not None:
            y = y * weight[:, None, None]
        return (y if bias is None else y + bias[:, None, None]).to(x.dtype)


class OctGlobalResponseNorm(nn.Module):
    """timm's response normalization of ConvNeXt-V2, on octaves: a low pixel counts for those that it stands for."""

    split: ChannelSplit
    eps: float

    def forward(self, x: Octave) -> Octave:
        assert x.high is not None
        assert x.low is not None
        squares = x.high.square(), upsample(x.low.square(), (2, 2), x.high.shape[2:])
        norms = [part.sum((2, 3), keepdim=True).sqrt() for part in squares]  # [N, C, 1, 1]
        high, low = (norm.mean(1, keepdim=True) for norm in norms)
        mean = torch.lerp(high, low, self.split.alpha) + self.eps
        parameters = zip(*(self.split.split(getattr(self, name)[:, None, None]) for name in ("weight", "bias")))
        return Octave(
            *(
                part + (bias + weight * (part * (norm / mean)))
                for part, norm, (weight, bias) in zip((x.high, x.low), norms, parameters)
            )
        )


class OctPReLU(nn.PReLU):
    """``nn.PReLU`` with a slope for each channel, on octaves."""

    split: ChannelSplit

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Octave:  # type: ignore[override]
        return prelu(as_octave(x), self.split.split(self.weight))


class FrozenOctBatchNorm2d(nn.Module):
    """timm's batch normalization whose statistics and parameters are constants, on octaves."""

    split: ChannelSplit
    eps: float

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Octave:
        mean, var, weight, bias = (
            self.split.split(getattr(self, name)) for name in ("running_mean", "running_var", "weight", "bias")
        )
        parts = zip(as_octave(x), mean, var, weight, bias)
        return Octave(
            *(y if y is None else F.batch_norm(y, m, v, w, b, False, 0.0, self.eps) for y, m, v, w, b in parts)
        )


class StandardizedOctConv2d(OctConv2d):
    """timm's convolution with weights of mean 0 and variance 1 for each output channel, then perhaps a gain."""

    eps: float
    scale: float

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Octave:  # type: ignore[override]
        gain = self._parameters.get("gain")
        scale = None if gain is None else (gain * self.scale).flatten()
        rows = self.weight.flatten(1)[None]
        weight = F.batch_norm(rows, None, None, scale, None, True, 0.0, self.eps).view_as(self.weight)
        return self._returned(functional.run(x, weight, self.bias, self.spec))


class SampleDrop(nn.Module):
    """Stochastic depth on octaves: of a sample it drops both parts or neither. A plain tensor goes to the module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Tensor | Octave:
        if not isinstance(x, Octave):
            return self.module(x)  # type: ignore[no-any-return]
        if not self.training:
            return x
        assert x.high is not None
        assert x.low is not None
        mask = self.module(x.high.new_ones(len(x.high), *[1] * (x.high.dim() - 1)))
        return Octave(x.high * mask, x.low * mask)
