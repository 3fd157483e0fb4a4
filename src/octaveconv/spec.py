"""ConvSpec: the checked arguments of one octave convolution, and how they cut its one dense weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .octave import ChannelSplit, Octave, as_octave, check_sizes, split_channels
from .resolution import Sizes, checked_factor, crop, pooled_size, upsample, whole


class Paths(NamedTuple):
    """The weight of each path, named from-to; ``None`` where the path does not exist."""

    hh: Tensor | None
    hl: Tensor | None
    lh: Tensor | None
    ll: Tensor | None


class ConvSpec(NamedTuple):
    """The arguments of an octave convolution, checked and in one form. `conv_spec` makes it."""

    inputs: ChannelSplit
    outputs: ChannelSplit
    kernel_size: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int
    padding_mode: str
    output_padding: Sizes | None  # None: not transposed
    factor: Sizes  # how much smaller the low map is on each axis
    growth: Sizes  # upsampling on path lh: the factor, or 1 where a stride of 2 makes the new high map as small as low
    remaining_stride: Sizes  # pooling on path lh: 1, except for a stride of 2 on an axis whose factor is 1
    padding_after: Sizes | None = None  # where that is not as much as before each axis, which ``padding`` is
    strides: bool = False  # each path convolves at the stride, as a transposed one does; otherwise the stride pools
    same: bool = False  # pads by the input's size, to the input's size over the stride; see `at`

    def at(self, size: Sizes) -> ConvSpec:
        """The same with the padding for a high map of ``size``, where it depends on that: ``"same"`` at a stride."""
        if not self.same:
            return self
        spans = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size))
        axes = zip(size, spans, self.stride)
        total = [_to_ceil(n, span, s) for n, span, s in axes]
        before = tuple(pixels // 2 for pixels in total)
        return self._replace(padding=before, padding_after=tuple(n - b for n, b in zip(total, before)))

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution, whose weight is ``[in, out / groups, *kernel]``."""
        return self.output_padding is not None

    @property
    def depthwise(self) -> bool:
        """Whether it has one filter per channel; then only the paths hh and ll exist."""
        return self.groups > 1 and self.groups == sum(self.inputs[:2]) == sum(self.outputs[:2])

    def paths(self, weight: Tensor) -> Paths:
        """Cut the dense weight into its four blocks."""
        high_rows, low_rows = self._rows.split(weight)
        if self.depthwise:
            return Paths(_block(high_rows), None, None, _block(low_rows))
        (hh, lh), (hl, ll) = self._columns.split(high_rows, 1), self._columns.split(low_rows, 1)
        return self._turned(Paths(_block(hh), _block(hl), _block(lh), _block(ll)))

    def join_paths(self, paths: Paths) -> Tensor:
        """Join the blocks into the dense weight: the inverse of `paths`."""

        def row(high: Tensor | None, low: Tensor | None) -> Tensor | None:
            return None if high is None and low is None else self._columns.join(high, low, 1)

        hh, hl, lh, ll = self._turned(paths)
        return self._rows.join(row(hh, lh), row(hl, ll))

    def _turned(self, paths: Paths) -> Paths:
        """Swap hl and lh if transposed: the rows of a transposed weight are its input channels."""
        return paths._replace(hl=paths.lh, lh=paths.hl) if self.transposed else paths

    @property
    def _rows(self) -> ChannelSplit:
        return self.inputs if self.transposed else self.outputs

    @property
    def _columns(self) -> ChannelSplit:
        """How the weight's columns are cut: a grouped convolution has the columns of one group, high and low."""
        columns = self.outputs if self.transposed else self.inputs
        if self.groups == 1 or self.depthwise:
            return columns
        return ChannelSplit(columns.high // self.groups, columns.low // self.groups)

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution of each path: at stride 1, or at the layer's stride if the paths stride or are transposed."""
        axes = len(self.kernel_size)
        groups = weight.shape[0] if self.depthwise else self.groups
        padding = self.padding
        if self.output_padding is not None:
            transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
            return transpose(x, weight, bias, self.stride, padding, self.output_padding, groups, self.dilation)
        if self.padding_after is not None or (self.padding_mode != "zeros" and any(padding)):
            x, padding = self.padded(x), (0,) * axes
        conv = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        return conv(x, weight, bias, self.stride if self.strides else 1, padding, self.dilation, groups)

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """Pixels of padding before and after each axis."""
        return tuple(zip(self.padding, self.padding_after or self.padding))

    def padded(self, x: Tensor) -> Tensor:
        """A map with the padding around it.

        Raises:
            ValueError: it is too small for its border to be reflected, or to go round.
        """
        sides = [side for pair in reversed(self.sides) for side in pair]
        if self.padding_mode in ("reflect", "circular") and not torch.compiler.is_compiling():  # sizes may be symbols
            least = [max(pair) + (self.padding_mode == "reflect") for pair in self.sides]
            if any(pixels < n for pixels, n in zip(x.shape[2:], least)):
                raise ValueError(
                    f"padding_mode={self.padding_mode!r} with padding {self.sides} needs a map of {tuple(least)} "
                    f"pixels or more, got {tuple(x.shape[2:])}, perhaps a low map, half as large as the high one: give "
                    f"larger inputs"
                )
        return F.pad(x, sides, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)

    @property
    def pooling(self) -> Sizes:
        """By how much the input is pooled before it is convolved."""
        return (1,) * len(self.stride) if self.strides or self.transposed else self.stride

    @property
    def aligned(self) -> bool:
        """Whether the low path's pixels lie where the high path's do, to half a pixel of the output, at every size.

        A kernel may reach over its stride on both sides, but no further than that: 4 pixels at stride 2 with padding
        1 or 0, for example. Axes on which both maps have one size have no such bounds.
        """
        axes = zip(self.factor, self.reach, self.stride)
        return not self.strides or all(f == 1 or 0 <= r <= 2 * s for f, r, s in axes)

    def conv_low(self, x: Tensor, weight: Tensor, size: Sizes, bias: Tensor | None = None) -> Tensor:
        """The convolution of a map of low size where paths stride or are transposed, cropped to ``size``.

        A transposed one makes the map's size times the stride. For others see `extended`.
        """
        if self.output_padding is None:
            return crop(self.conv(self.extended(x), weight, bias), size)
        axes = zip(self.factor, self.stride, self.reach, self.output_padding)
        fill = tuple(p if f == 1 else s - r for f, s, r, p in axes)
        return crop(self._replace(output_padding=fill).conv(x, weight, bias), size)

    def extended(self, low: Tensor) -> Tensor:
        """A low map with so much of its last pixels repeated that a path which strides makes half of the high size.

        Half the high size is rounded up, and half the dense output's as well, so the low map may be a pixel short.
        """
        more = [n for pair in reversed(self._extension) for n in pair]
        return F.pad(low, more, "replicate") if any(more) else low

    @property
    def _extension(self) -> tuple[tuple[int, int], ...]:
        most = self.stride if self.same else self.reach  # which depends on the input's size then
        return tuple((0, r // 2 if self.strides and f > 1 else 0) for f, r in zip(self.factor, most))

    def convolved_low(self, size: Sizes) -> Sizes:
        """Pixels on each axis that `conv_low` makes of a low map of ``size``, where paths stride, before it crops."""
        axes = zip(size, self._extension, self.reach, self.stride)
        return tuple((n + more - r) // s + 1 for n, (_, more), r, s in axes)

    def grow(self, y: Tensor, high: Tensor | None) -> Tensor:
        """Upsample ``y``, convolved from a low map, to the size of ``high``, which the stride has already pooled.

        At stride 2 it has that size already. Without a high map the size is that of ``y`` times `growth`. An axis that
        does not grow keeps its size, which the convolution may have changed.
        """
        sizes = y.shape[2:]
        grown = tuple(g * n for g, n in zip(self.growth, sizes)) if high is None else high.shape[2:]
        return upsample(y, self.growth, tuple(n if g == 1 else m for n, m, g in zip(sizes, grown, self.growth)))

    def high_size(self, x: Octave) -> Sizes:
        """Pixels of the high map on each axis; if it is absent, those of the low map times `factor`."""
        if x.high is not None:
            return x.high.shape[2:]
        assert x.low is not None
        return tuple(o * n for o, n in zip(self.factor, x.low.shape[2:]))

    def out_sizes(self, x: Octave) -> tuple[Sizes, Sizes]:
        """Pixels of the high and of the low output, where paths stride or are transposed."""
        axes = zip(self.high_size(x), self.stride, self.reach)
        if self.same:
            high = pooled_size(self.high_size(x), self.stride)
        elif self.output_padding is None:
            high = tuple((n - r) // s + 1 for n, s, r in axes)
        else:
            high = tuple(s * (n - 1) + r + p for (n, s, r), p in zip(axes, self.output_padding))
        return high, pooled_size(high, self.factor)

    @property
    def reach(self) -> Sizes:
        """Pixels on each axis that the kernel spans, less the padding: what a transposed one makes from one pixel."""
        return _reaches(self.kernel_size, self.dilation, self.sides)

    def check_input(self, x: Tensor | Octave) -> Octave:
        """Return ``x`` as an octave, or raise ValueError saying which part has the wrong shape."""
        octave = as_octave(x)
        dimensions = len(self.kernel_size) + 2
        for name, part, channels in zip(("high", "low"), octave, self.inputs[:2]):
            got = 0 if part is None else part.shape[1] if part.dim() == dimensions else None
            if got != channels:
                raise ValueError(
                    f"this layer's input has {self.inputs.high} high and {self.inputs.low} low channels, but the "
                    f"{name} part given is {_describe(part)}: set alpha_in and in_channels to match the input "
                    f"(a plain tensor has alpha 0; octaveconv.Split turns it into an octave)"
                )
        check_sizes(octave, self.factor)
        return octave


def conv_spec(
    axes: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int | Sizes,
    stride: int | Sizes,
    padding: int | Sizes | tuple[Sizes, ...] | str,
    dilation: int | Sizes,
    groups: int,
    padding_mode: str,
    alpha_in: float | ChannelSplit,
    alpha_out: float | ChannelSplit,
    cut_in: int | None,
    cut_out: int | None,
    factor: int | Sizes | None = None,
    output_padding: int | Sizes | None = None,
    pool_strides: bool = True,
) -> ConvSpec:
    """Check the arguments of an octave convolution and return them in one form.

    ``axes`` is 1, 2 or 3; ``output_padding`` is None unless the convolution is transposed. For others see `OctConv2d`.

    Raises:
        ValueError: the arguments do not fit each other; the message names the cure.
    """
    factor = checked_factor(factor, axes)
    kernel, dilations = _per_axis("kernel_size", kernel_size, axes), _per_axis("dilation", dilation, axes)
    strides = _per_axis("stride", stride, axes)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if whole(name, channels) % whole("groups", groups):
            raise ValueError(f"{name} must be divisible by groups, got {channels} and {groups}")
    two_sizes = any(alpha.low if isinstance(alpha, ChannelSplit) else alpha for alpha in (alpha_in, alpha_out))
    paths_stride = same = False
    if output_padding is None:
        same = padding == "same" and not pool_strides and max(strides) > 1
        paddings, after = _checked_padding(padding, kernel, dilations, strides if same else None)
        reaches, extra = _reaches(kernel, dilations, zip(paddings, after)), None
        pools = [s in (1, 2) and (r == 1 or s == f == 1) for s, r, f in zip(strides, reaches, factor)]
        paths_stride = not all(pools) or (not pool_strides and max(strides) > 1)
    else:
        if isinstance(padding, str):
            raise ValueError(f"a transposed convolution takes its padding in pixels, got {padding!r}")
        paddings, after = _per_axis("padding", padding, axes, 0), None  # type: ignore[arg-type]  # it says what fits
        extra = _per_axis("output_padding", output_padding, axes, 0)
        _check_transposed(kernel, strides, dilations, paddings, extra, padding_mode, factor if two_sizes else None)
    depthwise = groups > 1 and groups == in_channels == out_channels
    default_cut = 1 if depthwise else groups
    if not depthwise and groups > 1 and {cut_in or groups, cut_out or groups} != {groups}:
        raise ValueError(f"a grouped convolution is cut inside its own groups: omit cut_in and cut_out ({groups=})")
    inputs = split_channels(in_channels, alpha_in, whole("cut_in", cut_in or default_cut))
    outputs = split_channels(out_channels, alpha_out, whole("cut_out", cut_out or default_cut))
    if depthwise and inputs != outputs:
        raise ValueError(
            f"a depthwise convolution keeps each channel's frequency, so alpha_in and alpha_out must be equal: "
            f"got alpha_in={alpha_in} and alpha_out={alpha_out}"
        )
    spec = ConvSpec(
        inputs, outputs, kernel, strides, paddings, dilations, groups, padding_mode, extra, factor, factor,
        (1,) * axes, None if after == paddings else after, paths_stride, same,
    )  # fmt: skip
    if two_sizes and not spec.aligned:
        raise ValueError(_misaligned(spec, padding))
    growth = tuple(max(o // s, 1) for o, s in zip(factor, spec.pooling))
    return spec._replace(growth=growth, remaining_stride=tuple(max(s // o, 1) for o, s in zip(factor, spec.pooling)))


def _per_axis(name: str, value: int | Iterable[int], axes: int, least: int = 1) -> Sizes:
    sizes = tuple(value) if isinstance(value, Iterable) else (value,) * axes
    if len(sizes) != axes:
        raise ValueError(f"{name} must be one number or {axes} of them, one for each axis, got {value!r}")
    return tuple(whole(name, size, least) for size in sizes)


def _checked_padding(
    padding: Any, kernel: Sizes, dilations: Sizes, strides: Sizes | None = None
) -> tuple[Sizes, Sizes]:
    """Pixels before and after each axis; for ``"same"`` at ``strides`` those of an input that the stride divides."""
    spans = tuple(d * (k - 1) for d, k in zip(dilations, kernel))
    if padding == "same":
        if strides is not None:
            spans = tuple(_to_ceil(s, span, s) for span, s in zip(spans, strides))
        return tuple(span // 2 for span in spans), tuple(span - span // 2 for span in spans)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        raise ValueError(f"padding must be 'same', 'valid' or pixels, got {padding!r}")
    pairs = [*padding] if isinstance(padding, Iterable) else [padding] * len(kernel)
    sides = [tuple(pair) if isinstance(pair, Iterable) else (pair, pair) for pair in pairs]
    if any(len(pair) != 2 for pair in sides):
        raise ValueError(f"padding has one number or two for each axis, before and after it, got {padding!r}")
    before, after = (_per_axis("padding", [pair[i] for pair in sides], len(kernel), 0) for i in range(2))
    return before, after


def _to_ceil(pixels: int, span: int, stride: int) -> Any:
    """Padding of both sides together that makes ``pixels / stride``, rounded up; sizes may be symbols."""
    padding = (pixels + stride - 1) // stride * stride - pixels + span + 1 - stride
    return padding if span + 1 >= stride else torch.sym_max(padding, 0)


def _misaligned(spec: ConvSpec, padding: Any) -> str:
    """What is wrong with padding that does not keep the low map's pixels beside the high one's, and the cure."""
    spans = tuple(d * (k - 1) for d, k in zip(spec.dilation, spec.kernel_size))
    fit = tuple(max(span + 2 - s, 0) // 2 for span, s in zip(spans, spec.stride))  # the least that is centered
    cure = f"padding {fit}" if set(spec.stride) != {1} or not any(span % 2 for span in spans) else "padding 'same'"
    return (
        f"padding {padding} with kernel {spec.kernel_size}, stride {spec.stride} and dilation {spec.dilation} shifts "
        f"the two frequencies against each other: use {cure}, or alpha_in=alpha_out=0"
    )


def _check_transposed(
    kernel: Sizes,
    strides: Sizes,
    dilations: Sizes,
    paddings: Sizes,
    extra: Sizes,
    padding_mode: str,
    factor: Sizes | None,
) -> None:
    """With two frequencies, the output size must be the input size times the stride, or one pixel less than that.

    So it is on the axes on which the ``factor`` halves the low map; None: there is one frequency.
    """
    if padding_mode != "zeros":
        raise ValueError(f"a transposed convolution only pads with zeros, got padding_mode={padding_mode!r}")
    reaches = _reaches(kernel, dilations, zip(paddings, paddings))
    axes = [*zip(factor or (), reaches, strides, extra)]
    if all(f == 1 or max(s - 1, 1) <= r <= s - p for f, r, s, p in axes):
        return
    spans = [d * (k - 1) for d, k in zip(dilations, kernel)]
    cure = tuple(max(span + 2 - s, 0) // 2 for span, s in zip(spans, strides))
    if any(s == 1 and span % 2 for s, span in zip(strides, spans)):
        advice = "an odd kernel at stride 1"
    elif any(span + 2 < s for s, span in zip(strides, spans)):
        advice = "a kernel as large as the stride"
    else:
        fill = tuple(s - r for s, r in zip(strides, _reaches(kernel, dilations, zip(cure, cure))))
        advice = f"padding {cure} and output_padding {fill}"
    raise ValueError(
        f"with two frequencies the output size must be the input size times the stride, which padding {paddings} and "
        f"output_padding {extra} with kernel {kernel}, stride {strides} and dilation {dilations} do not give: "
        f"use {advice}, or alpha_in=alpha_out=0"
    )


def _reaches(kernel: Sizes, dilations: Sizes, sides: Iterable[tuple[int, int]]) -> Sizes:
    return tuple(d * (k - 1) + 1 - sum(pair) for k, d, pair in zip(kernel, dilations, sides))


def _block(weight: Tensor) -> Tensor | None:
    return weight if weight.numel() else None


def _describe(part: Tensor | None) -> str:
    return "absent" if part is None else f"a tensor {list(part.shape)}"
