"""The octave convolutions: parameters, initialization and printing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional
from .._leaf import leaf_forward
from ..octave import ChannelSplit, Octave, alpha_of
from ..resolution import FACTORS, Sizes
from ..spec import ConvSpec, conv_spec
from ._dense import MayReturnTensor
from ._mark import AlphaMarked


class OctConvNd(MayReturnTensor, AlphaMarked):
    """What all octave convolutions share. Each also inherits from the dense layer that it replaces."""

    axes: int
    weight: Tensor
    bias: Tensor | None
    spec: ConvSpec
    pool_strides = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if "alpha" in kwargs:
            raise TypeError(
                f"{cls.__name__} has two alphas: alpha_in=, the share of its input, and alpha_out=, of its output; "
                f"got alpha={kwargs['alpha']!r}"
            )
        return super().__new__(cls)

    def _set_spec(self, spec: ConvSpec, alpha_in: float | ChannelSplit, alpha_out: float | ChannelSplit) -> None:
        self.spec = spec
        self.alpha_in, self.alpha_out = self.alpha_mark = alpha_of(alpha_in), alpha_of(alpha_out)

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Octave:
        return self._returned(functional.run(x, self.weight, self.bias, self.spec))

    def extra_repr(self) -> str:
        """The arguments of the dense layer, then both alphas with their high and low channels."""
        inputs, outputs = self.spec.inputs, self.spec.outputs
        factor = "" if self.spec.factor == FACTORS[self.axes] else f", factor={self.spec.factor}"
        strides = "" if self.pool_strides else ", pool_strides=False"
        return (
            f"{super().extra_repr()}, alpha_in={self.alpha_in:g} ({inputs.high}+{inputs.low}), "
            f"alpha_out={self.alpha_out:g} ({outputs.high}+{outputs.low}){factor}{strides}"
        )


class _OctConv(OctConvNd):
    """The constructor of the convolutions that are not transposed."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sizes,
        stride: int | Sizes = 1,
        padding: int | Sizes | tuple[Sizes, ...] | str = 0,
        dilation: int | Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        alpha_in: float | ChannelSplit = 0.0,
        alpha_out: float | ChannelSplit = 0.0,
        cut_in: int | None = None,
        cut_out: int | None = None,
        factor: int | Sizes | None = None,
        pool_strides: bool = True,
    ) -> None:
        spec = conv_spec(
            self.axes,
            in_channels,
            out_channels,
            kernel_size,
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
            pool_strides=pool_strides,
        )
        plain = isinstance(padding, int | str) or all(isinstance(p, int) for p in padding)
        own = padding if plain and not spec.same else spec.padding
        super().__init__(
            in_channels, out_channels, kernel_size, stride, own, dilation, groups, bias, padding_mode, device, dtype
        )
        if own is spec.padding:
            vars(self)["padding"] = padding  # as given, to be printed
        self._set_spec(spec, alpha_in, alpha_out)
        self.pool_strides = pool_strides


class OctConv1d(_OctConv, nn.Conv1d):  # type: ignore[misc]  # it takes and returns octaves
    """Octave convolution of series: ``nn.Conv1d`` with a share alpha of the channels at half the length.

    Args, raises: as `OctConv2d`, with sizes of one axis.

    Shape:
        ``Octave([N, C_high, L], [N, C_low, ceil(L/2)])``, or a tensor ``[N, C, L]`` if alpha_in is 0, to
        ``Octave([N, O_high, L'], [N, O_low, ceil(L'/2)])``, ``L' = ceil(L / stride)``.

    Source: section 3 of Chen et al., ICCV 2019, on one axis.

    Example:
        >>> import torch, octaveconv as oc
        >>> y = oc.OctConv1d(16, 32, 5, padding=2, alpha_out=0.25)(torch.ones(1, 16, 101))
        >>> y.high.shape, y.low.shape
        (torch.Size([1, 24, 101]), torch.Size([1, 8, 51]))
    """

    axes = 1


class OctConv2d(_OctConv, nn.Conv2d):  # type: ignore[misc]
    """Octave convolution: ``nn.Conv2d`` with a share alpha of the channels at half resolution.

    It holds exactly the parameters of the ``nn.Conv2d`` it replaces, initialized the same way: one weight
    ``[out, in / groups, kh, kw]`` and one bias ``[out]``. At every alpha, each loads the other's state dict.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in ``nn.Conv2d``. The padding may be a pair for each axis, pixels before and after it
            (``((2, 0), (1, 1))``). If there are ``dilation * (kernel_size - 1)`` of them before and after each axis
            together, as with ``"same"``, which takes even kernels, too, then a stride of 2 pools the input 2x2 and
            convolves at stride 1. Otherwise, or at strides above 2, each path convolves at the stride. Unless both
            alphas are 0, where the factor is 2, the kernel less the padding must then span at most twice the stride:
            4 pixels with padding 1 at stride 2, for example, or patches of 2x2.
        alpha_in: low-frequency share of the input channels, in [0, 1]; 0 if the input is a plain tensor. After a
            concatenation, the `ChannelSplit` of its pieces.
        alpha_out: the same for the output channels; 0 for an output at the high resolution only.
        cut_in, cut_out: number of equal groups of channels that each have high and low channels. For a grouped
            convolution it is ``groups``, the default. Give its ungrouped neighbors the same number on the side they
            share with it if the network is to use dense weights.
        factor: how much smaller the low map is on each axis, 1 or 2; by default 2 on both.
        pool_strides: False: each path convolves at the stride, at 2 as well. So the high channels are convolved as in
            the dense layer, and weights that have learned to stride keep what they know. ``"same"`` then makes the
            input's size over the stride, rounded up, as in TensorFlow.

    Shape:
        ``Octave([N, C_high, H, W], [N, C_low, ceil(H/2), ceil(W/2)])``, or a tensor ``[N, C, H, W]`` if alpha_in is 0,
        to ``Octave([N, O_high, H', W'], [N, O_low, ceil(H'/2), ceil(W'/2)])``, ``H' = ceil(H / stride)`` if the stride
        pools, otherwise as in ``nn.Conv2d``; a part that has no channels is ``None``. ``C_low = int(alpha_in * C)``.

    Raises:
        ValueError: arguments that do not fit together, or an input that does not fit the layer.

    Source: section 3 of Chen et al., ICCV 2019.

    Example:
        >>> import torch, octaveconv as oc
        >>> layer = oc.OctConv2d(64, 128, 3, stride=2, padding=1, alpha_in=0.25, alpha_out=0.25)
        >>> y = layer(oc.Octave(torch.ones(1, 48, 15, 15), torch.ones(1, 16, 8, 8)))
        >>> y.high.shape, y.low.shape
        (torch.Size([1, 96, 8, 8]), torch.Size([1, 32, 4, 4]))
    """

    axes = 2


class OctConv3d(_OctConv, nn.Conv3d):  # type: ignore[misc]
    """Octave convolution of volumes: ``nn.Conv3d`` with a share alpha of the channels at half resolution.

    By default low maps have half the height and width and all frames, as in the paper's video networks.

    Args, raises: as `OctConv2d`, with sizes of three axes, the first of which is time.
        factor: how much smaller the low map is on each axis, 1 or 2; by default ``(1, 2, 2)``. 2 also halves time.

    Shape:
        ``Octave([N, C_high, T, H, W], [N, C_low, T, ceil(H/2), ceil(W/2)])``, or a tensor ``[N, C, T, H, W]`` if
        alpha_in is 0, to the same with the output's channels and each size divided by the stride, rounded up.

    Source: sections 3 and 4.4 of Chen et al., ICCV 2019.

    Example:
        >>> import torch, octaveconv as oc
        >>> y = oc.OctConv3d(3, 16, 3, padding=1, alpha_out=0.25)(torch.ones(1, 3, 5, 9, 9))
        >>> y.high.shape, y.low.shape
        (torch.Size([1, 12, 5, 9, 9]), torch.Size([1, 4, 5, 5, 5]))
    """

    axes = 3


class _OctConvTranspose(OctConvNd):
    """The constructor of the transposed convolutions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sizes,
        stride: int | Sizes = 1,
        padding: int | Sizes = 0,
        output_padding: int | Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sizes = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        alpha_in: float | ChannelSplit = 0.0,
        alpha_out: float | ChannelSplit = 0.0,
        cut_in: int | None = None,
        cut_out: int | None = None,
        factor: int | Sizes | None = None,
    ) -> None:
        spec = conv_spec(
            self.axes,
            in_channels,
            out_channels,
            kernel_size,
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
            output_padding,
        )
        dense: Any = super().__init__
        dense(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self._set_spec(spec, alpha_in, alpha_out)


class OctConvTranspose1d(_OctConvTranspose, nn.ConvTranspose1d):  # type: ignore[misc]
    """Transposed octave convolution of series: ``nn.ConvTranspose1d`` on series of two lengths.

    Args, raises, source: as `OctConvTranspose2d`, with sizes of one axis.

    Shape:
        ``Octave([N, C_high, L], [N, C_low, ceil(L/2)])``, or a tensor ``[N, C, L]`` if alpha_in is 0, to
        ``Octave([N, O_high, L'], [N, O_low, ceil(L'/2)])``; ``L'`` as in ``nn.ConvTranspose1d``.

    Example:
        >>> import torch, octaveconv as oc
        >>> layer = oc.OctConvTranspose1d(64, 32, 16, stride=8, padding=4, alpha_out=0.25)
        >>> y = layer(torch.ones(1, 64, 25))
        >>> y.high.shape, y.low.shape
        (torch.Size([1, 24, 200]), torch.Size([1, 8, 100]))
    """

    axes = 1


class OctConvTranspose2d(_OctConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]
    """Transposed octave convolution: ``nn.ConvTranspose2d`` on feature maps of two resolutions.

    It holds exactly the parameters of the ``nn.ConvTranspose2d`` it replaces: one weight ``[in, out / groups, kh, kw]``
    and one bias ``[out]``. If T is that layer, at its own stride, the outputs are

        ``high' = T(high, hh) + upsample(T(low, lh))`` and ``low' = T(pool(high), hl) + T(low, ll)``.

    T's output for a low map is cropped to the size of ``low'``, which is half that of ``high'``, rounded up.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode,
            device, dtype: as in ``nn.ConvTranspose2d``. Unless both alphas are 0, n pixels must become ``stride * n``,
            or one less, where the factor is 2: at stride 2 for example with kernel 2; with kernel 3, padding 1 and
            output_padding 1 or 0; or with kernel 4 and padding 1; at stride 8 with kernel 16 and padding 4.
        alpha_in, alpha_out, cut_in, cut_out, factor: as in `OctConv2d`.

    Shape:
        ``Octave([N, C_high, H, W], [N, C_low, ceil(H/2), ceil(W/2)])``, or a tensor ``[N, C, H, W]`` if alpha_in is 0,
        to ``Octave([N, O_high, H', W'], [N, O_low, ceil(H'/2), ceil(W'/2)])``; ``H'`` as in ``nn.ConvTranspose2d``.

    Raises:
        ValueError: arguments that do not fit together, or an input that does not fit the layer.

    Source: ours; the paper has none. At stride 1 and even sizes it is the adjoint of the `OctConv2d` with the same
    weight, if each low pixel counts four times, once for each high pixel that it covers.

    Example:
        >>> import torch, octaveconv as oc
        >>> layer = oc.OctConvTranspose2d(64, 32, 4, stride=2, padding=1, alpha_in=0.25, alpha_out=0.25)
        >>> y = layer(oc.Octave(torch.ones(1, 48, 7, 7), torch.ones(1, 16, 4, 4)))
        >>> y.high.shape, y.low.shape
        (torch.Size([1, 24, 14, 14]), torch.Size([1, 8, 7, 7]))
    """

    axes = 2


class OctConvTranspose3d(_OctConvTranspose, nn.ConvTranspose3d):  # type: ignore[misc]
    """Transposed octave convolution of volumes: ``nn.ConvTranspose3d`` on maps of two resolutions.

    By default low maps have half the height and width and all frames, so that only these two axes bind the padding.

    Args, raises, source: as `OctConvTranspose2d`, with sizes of three axes, the first of which is time.
        factor: how much smaller the low map is on each axis, 1 or 2; by default ``(1, 2, 2)``. 2 also halves time.

    Shape:
        ``Octave([N, C_high, T, H, W], [N, C_low, T, ceil(H/2), ceil(W/2)])``, or a tensor ``[N, C, T, H, W]`` if
        alpha_in is 0, to the same with the output's channels, and sizes as in ``nn.ConvTranspose3d``.

    Example:
        >>> import torch, octaveconv as oc
        >>> y = oc.OctConvTranspose3d(16, 8, (3, 2, 2), stride=(1, 2, 2), alpha_out=0.25)(torch.ones(1, 16, 5, 7, 7))
        >>> y.high.shape, y.low.shape
        (torch.Size([1, 6, 7, 14, 14]), torch.Size([1, 2, 7, 7, 7]))
    """

    axes = 3
