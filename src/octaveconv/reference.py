"""Octave convolution as the paper defines it: every backend is tested against this file.

It is slow, short, and without options. There are four paths, each a pooling, a stride-1 convolution and an upsampling,
in that order (Chen et al., ICCV 2019, section 3.2; equations 3 and 4). A stride pools first, so no convolution is
strided. Maps have one, two or three axes; the shapes below are for two.

The paper has no transposed octave convolution, nor strides above 2, nor padding that does not keep the size of what is
pooled. Ours have the same four paths, and T is the dense convolution at its own stride:

    high' = T(high, hh) + upsample(T(low, lh))        low' = T(pool(high), hl) + T(low, ll)

A transposed one at stride 1 and even sizes is the adjoint of the octave convolution with the same weight, in the inner
product that counts each low pixel four times, once for each high pixel that it covers.
"""

from torch import Tensor

from .octave import Octave
from .resolution import crop, pool, upsample
from .spec import ConvSpec


def octconv(x: Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Octave:
    """Convolve ``x`` with one dense weight ``[out, in / groups, kh, kw]`` and one bias ``[out]``.

    Returns:
        The high part ``[N, C_high, ceil(H / stride), ceil(W / stride)]`` and the low part at half that size, rounded
        up; ``None`` for a part without channels. Where paths stride or are transposed see `octconv_at_stride`.
    """
    if spec.strides or spec.transposed:
        return octconv_at_stride(x, weight, bias, spec)
    high, low = x
    hh, hl, lh, ll = spec.paths(weight)
    to_high, to_low = [], []

    if high is not None:
        high = pool(high, spec.stride)
        if hh is not None:
            to_high.append(spec.conv(high, hh))
        if hl is not None:
            to_low.append(spec.conv(pool(high, spec.factor), hl))
    if low is not None:
        if lh is not None:
            low_for_high = pool(low, spec.remaining_stride)  # on a halved axis, low has the new high's size
            to_high.append(spec.grow(spec.conv(low_for_high, lh), high))
        if ll is not None:
            to_low.append(spec.conv(pool(low, spec.stride), ll))

    bias_high, bias_low = spec.outputs.split_any(bias)
    return Octave(_total(to_high, bias_high), _total(to_low, bias_low))


def octconv_at_stride(x: Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Octave:
    """The octave convolution whose paths stride, or are transposed with a weight ``[in, out / groups, kh, kw]``.

    Returns:
        The high part, of the size that the dense convolution makes, and the low part at half that size, rounded up.
    """
    high, low = x
    hh, hl, lh, ll = spec.paths(weight)
    high_size, low_size = spec.out_sizes(x)
    to_high, to_low = [], []

    if high is not None:
        if hh is not None:
            y = spec.conv(high, hh)
            to_high.append(crop(y, high_size) if spec.same else y)  # it has that size, which symbols may not show
        if hl is not None:
            to_low.append(spec.conv_low(pool(high, spec.factor), hl, low_size))
    if low is not None:
        if lh is not None:
            to_high.append(upsample(spec.conv_low(low, lh, low_size), spec.factor, high_size))
        if ll is not None:
            to_low.append(spec.conv_low(low, ll, low_size))

    bias_high, bias_low = spec.outputs.split_any(bias)
    return Octave(_total(to_high, bias_high), _total(to_low, bias_low))


def _total(terms: list[Tensor], bias: Tensor | None) -> Tensor | None:
    """Sum the paths that end in one part; add the bias once, to the sum."""
    if not terms:
        return None
    total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
    return total if bias is None else total + bias.to(total.dtype)[(...,) + (None,) * (total.dim() - 2)]
