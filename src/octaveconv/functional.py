"""The octave convolution as a function: check the arguments, choose a backend, call it."""

from __future__ import annotations

from torch import Tensor

from . import backends
from .octave import ChannelSplit, Octave
from .resolution import Sizes
from .spec import ConvSpec, conv_spec

__all__ = ["octconv"]


def octconv(
    x: Tensor | Octave,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sizes = 1,
    padding: int | Sizes | tuple[Sizes, ...] | str = 0,
    dilation: int | Sizes = 1,
    groups: int = 1,
    *,
    alpha_in: float | ChannelSplit,
    alpha_out: float | ChannelSplit,
    padding_mode: str = "zeros",
    cut_in: int | None = None,
    cut_out: int | None = None,
    factor: int | Sizes | None = None,
    transposed: bool = False,
    output_padding: int | Sizes = 0,
    pool_strides: bool = True,
) -> Octave:
    """Octave convolution with one dense weight: the counterpart of ``torch.nn.functional.conv1d``, ``2d`` and ``3d``.

    Args:
        x: an `Octave`, or a tensor ``[N, C, H, W]``, which counts as an octave without a low part. The weight's
            dimensions say how many axes are convolved: series are ``[N, C, L]``, volumes ``[N, C, T, H, W]``.
        weight: that of a dense convolution, ``[out, in / groups, kh, kw]``; the four paths are blocks of it. If
            ``transposed``, ``[in, out / groups, kh, kw]``.
        bias: ``[out]``.
        stride, padding: as of `OctConv2d`, or if ``transposed`` of `OctConvTranspose2d`.
        dilation, groups, padding_mode: as in ``torch.nn.Conv2d``. If ``groups`` equals both channel counts, the
            convolution is depthwise and has no path between the frequencies.
        alpha_in, alpha_out: low-frequency share of the input and of the output channels, in [0, 1], or a
            `ChannelSplit`.
        cut_in, cut_out, factor, pool_strides: see `OctConv2d`.
        transposed: convolve as ``torch.nn.functional.conv_transpose2d`` does.
        output_padding: as in ``torch.nn.functional.conv_transpose2d``; only if ``transposed``.

    Returns:
        ``Octave(high, low)``; a part without channels is ``None``.

    Raises:
        ValueError: the arguments do not fit each other or the input; the message names the cure.
        BackendUnavailable: a backend was chosen by name and cannot run.

    Source: section 3.2 of Chen et al., ICCV 2019.

    Example:
        >>> import torch
        >>> y = octconv(torch.ones(1, 3, 7, 7), torch.ones(8, 3, 3, 3), padding=1, alpha_in=0, alpha_out=0.25)
        >>> y.high.shape, y.low.shape
        (torch.Size([1, 6, 7, 7]), torch.Size([1, 2, 4, 4]))
    """
    if not 3 <= weight.dim() <= 5:
        raise ValueError(f"weight must be [out, in / groups, kernel sizes of 1 to 3 axes], got {list(weight.shape)}")
    if output_padding and not transposed:
        raise ValueError(f"only a transposed convolution pads its output: pass transposed=True, got {output_padding=}")
    rows, columns = weight.shape[0], weight.shape[1] * groups
    in_channels, out_channels = (rows, columns) if transposed else (columns, rows)
    spec = conv_spec(
        weight.dim() - 2,
        in_channels,
        out_channels,
        tuple(weight.shape[2:]),
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
        alpha_in,
        alpha_out,
        cut_in,
        cut_out,
        factor,
        output_padding if transposed else None,
        pool_strides,
    )
    return run(x, weight, bias, spec)


def run(x: Tensor | Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Octave:
    """`octconv` with arguments that `conv_spec` has already checked."""
    octave = spec.check_input(x)
    if spec.same:
        spec = spec.at(spec.high_size(octave))
    return backends.choose(octave, spec).run(octave, weight, bias, spec)
