"""The octave convolution as a function: check the arguments, choose a backend, call it."""

from __future__ import annotations

from torch import Tensor

from . import backends
from .octave import ChannelSplit, Octave
from .resolution import Sizes
from .spec import ConvSpec, conv_spec

__all__ = ["octconv"]


def octconv(
    x: Tensor | Octave, weight: Tensor, bias: Tensor | None = None, stride: int | Sizes = 1,
    padding: int | Sizes | str = 0, dilation: int | Sizes = 1, groups: int = 1, *,
    alpha_in: float | ChannelSplit, alpha_out: float | ChannelSplit, padding_mode: str = "zeros",
    cut_in: int | None = None, cut_out: int | None = None, factor: int | Sizes | None = None,
    transposed: bool = False, output_padding: int | Sizes = 0,
) -> Octave:  # fmt: skip
    """Octave convolution with one dense weight, the counterpart of ``torch.nn.functional.conv2d`` and its relatives.

    Args:
        x: `Octave`, or a tensor ``[N, C, H, W]`` taken as an octave that has no low part. Like the weight it has three
            dimensions where it is a series that is convolved, and five where it is a volume.
        weight: ``[out, in / groups, kh, kw]``, that of a dense convolution; the four paths are blocks of it. Transposed
            it is ``[in, out / groups, kh, kw]``.
        bias: ``[out]``.
        stride: 1 or 2 on each axis; 2 pools the input, then convolves at stride 1. Transposed, it is the stride of the
            convolution.
        padding: must keep the map's size where there are two frequencies; transposed, see `OctConvTranspose2d`.
        dilation, groups, padding_mode: as in ``torch.nn.Conv2d``. If ``groups`` equals both channel counts, the
            convolution is depthwise and has no path between the frequencies.
        alpha_in, alpha_out: low-frequency share of the input and output channels, in [0, 1]; or see `OctConv2d`.
        cut_in, cut_out, factor: see `OctConv2d`.
        transposed: convolve as ``torch.nn.functional.conv_transpose2d`` does.
        output_padding: as there; 0 otherwise.

    Returns:
        ``Octave(high, low)``, a part being ``None`` where it gets no channels.

    Raises:
        ValueError: the arguments do not fit each other or the input; the message names the cure.
        BackendUnavailable: a backend was asked for by name and cannot run.

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
        raise ValueError(f"only a transposed convolution pads its output: give transposed=True, got {output_padding=}")
    rows, columns = weight.shape[0], weight.shape[1] * groups
    in_channels, out_channels = (rows, columns) if transposed else (columns, rows)
    spec = conv_spec(
        weight.dim() - 2, in_channels, out_channels, tuple(weight.shape[2:]), stride, padding, dilation, groups,
        padding_mode, alpha_in, alpha_out, cut_in, cut_out, factor, output_padding if transposed else None,
    )  # fmt: skip
    return run(x, weight, bias, spec)


def run(x: Tensor | Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Octave:
    """`octconv` with its arguments already checked into a ``spec``."""
    octave = spec.check_input(x)
    return backends.choose(octave, spec).run(octave, weight, bias, spec)
