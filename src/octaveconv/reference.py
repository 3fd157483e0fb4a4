"""Octave convolution as the paper defines it: the truth that every backend is tested against.

Slow, short, and without options. Four paths, each a pooling, a stride-1 convolution and an upsampling, in that order
(Chen et al., ICCV 2019, section 3.2; equations 3 and 4). A stride pools first, so no convolution is ever strided.
"""

from torch import Tensor

from .octave import Octave, pool
from .spec import ConvSpec


def octconv(x: Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Octave:
    """Convolve ``x`` with one dense weight ``[out, in / groups, k, k]`` and one bias ``[out]``.

    Returns:
        The high part ``[N, C_high, ceil(H / stride), ceil(W / stride)]`` and the low part at half that size, rounded
        up; ``None`` for a part that gets no channels.
    """
    high, low = x
    hh, hl, lh, ll = spec.paths(weight)
    to_high, to_low = [], []

    if high is not None:
        high = pool(high, spec.stride)
        if hh is not None:
            to_high.append(spec.conv(high, hh))
        if hl is not None:
            to_low.append(spec.conv(pool(high), hl))
    if low is not None:
        if lh is not None:
            to_high.append(spec.grow(spec.conv(low, lh), high))  # stride 2: low has the new high's size
        if ll is not None:
            to_low.append(spec.conv(pool(low, spec.stride), ll))

    bias_high, bias_low = (None, None) if bias is None else spec.outputs.split(bias)
    return Octave(_total(to_high, bias_high), _total(to_low, bias_low))


def _total(terms: list[Tensor], bias: Tensor | None) -> Tensor | None:
    """Sum the paths that end in one part; the bias is added to the sum, once."""
    if not terms:
        return None
    total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
    return total if bias is None else total + bias.to(total.dtype)[:, None, None]
