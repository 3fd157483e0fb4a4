"""ConvSpec: the checked arguments of one octave convolution, and how they cut its one dense weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .octave import OCTAVE, ChannelSplit, Octave, as_octave, split_channels, upsample

Pair = tuple[int, int]


class Paths(NamedTuple):
    """The weight of each path, named from-to; ``None`` where the path does not exist."""

    hh: Tensor | None
    hl: Tensor | None
    lh: Tensor | None
    ll: Tensor | None


class ConvSpec(NamedTuple):
    """What an octave convolution is asked to do. Made, with all checks, by `conv_spec`."""

    inputs: ChannelSplit
    outputs: ChannelSplit
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    padding_mode: str

    @property
    def depthwise(self) -> bool:
        """One filter per channel: then only the paths hh and ll exist."""
        return self.groups > 1 and self.groups == sum(self.inputs[:2]) == sum(self.outputs[:2])

    def paths(self, weight: Tensor) -> Paths:
        """Cut the dense weight ``[out, in / groups, k, k]`` into its four blocks."""
        to_high, to_low = self.outputs.split(weight)
        if self.depthwise:
            return Paths(_block(to_high), None, None, _block(to_low))
        (hh, lh), (hl, ll) = self._columns.split(to_high, 1), self._columns.split(to_low, 1)
        return Paths(_block(hh), _block(hl), _block(lh), _block(ll))

    def join_paths(self, paths: Paths) -> Tensor:
        """Put the blocks together into the dense weight: the inverse of `paths`."""

        def row(high: Tensor | None, low: Tensor | None) -> Tensor | None:
            return None if high is None and low is None else self._columns.join(high, low, 1)

        return self.outputs.join(row(paths.hh, paths.lh), row(paths.hl, paths.ll))

    @property
    def _columns(self) -> ChannelSplit:
        """How the weight's input channels are cut: each group of a grouped convolution has high and low ones."""
        if self.groups == 1 or self.depthwise:
            return self.inputs
        return ChannelSplit(self.inputs.high // self.groups, self.inputs.low // self.groups)

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The stride-1 convolution that every path is made of."""
        groups = weight.shape[0] if self.depthwise else self.groups
        padding = self.padding
        if self.padding_mode != "zeros" and any(padding):
            x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), mode=self.padding_mode)
            padding = (0, 0)
        return F.conv2d(x, weight, bias, 1, padding, self.dilation, groups)

    def grow(self, y: Tensor, high: Tensor | None) -> Tensor:
        """Bring ``y``, convolved from a low map, to the size of ``high``, which the stride has pooled already.

        At stride 2 it has that size. Without a high map it grows to a whole multiple.
        """
        factor = (OCTAVE[0] // self.stride[0], OCTAVE[1] // self.stride[1])
        if high is None:
            return upsample(y, factor, (y.shape[-2] * factor[0], y.shape[-1] * factor[1]))
        return upsample(y, factor, (high.shape[-2], high.shape[-1]))

    def check_input(self, x: Tensor | Octave) -> Octave:
        """Return ``x`` as an octave, or raise ValueError saying which part has the wrong shape."""
        octave = as_octave(x)
        for name, part, channels in zip(("high", "low"), octave, self.inputs[:2]):
            got = 0 if part is None else part.shape[1] if part.dim() == 4 else None
            if got != channels:
                raise ValueError(
                    f"this layer's input has {self.inputs.high} high and {self.inputs.low} low channels, but the "
                    f"{name} part given is {_describe(part)}: set alpha_in and in_channels to match what comes in "
                    f"(a plain tensor has alpha 0; octaveconv.Split makes an octave of it)"
                )
        check_sizes(octave)
        return octave


def check_sizes(x: Octave) -> None:
    """Raise ValueError unless the low part has ``ceil(size / 2)`` of the high part."""
    high, low = x
    if high is None or low is None or torch.compiler.is_compiling():  # then sizes may be symbols: no guards on them
        return
    expected = tuple(-(-size // 2) for size in high.shape[-2:])
    if tuple(low.shape[-2:]) != expected:
        raise ValueError(
            f"the low part is {tuple(low.shape[-2:])} pixels beside a high part of {tuple(high.shape[-2:])}, expected "
            f"{expected}: half the size, rounded up (pool with ceil_mode=True, or pool both parts by octave_map)"
        )


def conv_spec(
    in_channels: int, out_channels: int, kernel_size: int | Pair, stride: int | Pair, padding: int | Pair | str,
    dilation: int | Pair, groups: int, padding_mode: str,
    alpha_in: float | ChannelSplit, alpha_out: float | ChannelSplit, cut_in: int | None, cut_out: int | None,
) -> ConvSpec:  # fmt: skip
    """Check the arguments of an octave convolution and return them in one form; ValueError names the cure."""
    kernel, strides, dilations = _pair(kernel_size), _pair(stride), _pair(dilation)
    if any(s not in (1, 2) for s in strides):
        raise ValueError(
            f"an octave convolution has stride 1 or 2 on each axis, got {stride}: use nn.Conv2d beyond that"
        )
    keeping = tuple(d * (k - 1) / 2 for d, k in zip(dilations, kernel))
    if padding == "same":
        padding = _integers(keeping, kernel)
    elif padding == "valid":
        padding = 0
    paddings = _pair(padding)  # type: ignore[arg-type]
    has_low = any(alpha.low if isinstance(alpha, ChannelSplit) else alpha for alpha in (alpha_in, alpha_out))
    if has_low and tuple(map(float, paddings)) != keeping:
        raise ValueError(
            f"padding {paddings} with kernel {kernel} and dilation {dilations} changes the map's size, which two "
            f"frequencies cannot share: use padding {_integers(keeping, kernel)}, or alpha_in=alpha_out=0"
        )
    depthwise = groups > 1 and groups == in_channels == out_channels
    default_cut = 1 if depthwise else groups
    if not depthwise and groups > 1 and {cut_in or groups, cut_out or groups} != {groups}:
        raise ValueError(
            f"a grouped convolution is cut inside its own groups: leave cut_in and cut_out away ({groups=})"
        )
    inputs = split_channels(in_channels, alpha_in, cut_in or default_cut)
    outputs = split_channels(out_channels, alpha_out, cut_out or default_cut)
    if depthwise and inputs != outputs:
        raise ValueError(
            f"a depthwise convolution keeps each channel's frequency: give it one alpha, "
            f"got alpha_in={alpha_in} and alpha_out={alpha_out}"
        )
    return ConvSpec(inputs, outputs, kernel, strides, paddings, dilations, groups, padding_mode)


def _pair(value: int | Iterable[int]) -> Pair:
    if isinstance(value, Iterable):
        first, second = value
        return first, second
    return value, value


def _integers(keeping: tuple[float, ...], kernel: Pair) -> Pair:
    if any(p != int(p) for p in keeping):
        raise ValueError(f"kernel {kernel} cannot keep the map's size with equal padding on both sides: use an odd one")
    return int(keeping[0]), int(keeping[1])


def _block(weight: Tensor) -> Tensor | None:
    return weight if weight.numel() else None


def _describe(part: Tensor | None) -> str:
    return "absent" if part is None else f"a tensor {list(part.shape)}"
