"""What Python's operators and PyTorch's functions do with a pair of maps: they act on each part."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

Pair = tuple[Tensor | None, Tensor | None]  # the high and the low maps

# What acts on each number alone, or drops numbers or channels at random. Arguments after the first are not maps.
ELEMENTWISE = {
    F.relu, F.relu6, F.leaky_relu, F.rrelu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
    F.hardtanh, F.softplus, F.softsign, F.softshrink, F.hardshrink, F.tanhshrink, F.threshold, F.logsigmoid, F.sigmoid,
    F.tanh, F.dropout, F.alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.relu, torch.selu, torch.sigmoid,
    torch.tanh, torch.abs, torch.neg, torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.square, torch.reciprocal,
    torch.erf, torch.sin, torch.cos, torch.sign, torch.clamp, torch.clip, torch.nan_to_num, torch.clone,
    torch.zeros_like, torch.ones_like, operator.neg,
}  # fmt: skip
BINARY: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, operator.add, operator.iadd), torch.add),
    **dict.fromkeys((torch.sub, torch.subtract, Tensor.sub, Tensor.__sub__, operator.sub, operator.isub), torch.sub),
    **dict.fromkeys((torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, operator.mul, operator.imul), torch.mul),
    **dict.fromkeys((torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.__truediv__), torch.div),
    **dict.fromkeys((operator.truediv, operator.itruediv), torch.div),
    **dict.fromkeys((torch.pow, Tensor.pow, operator.pow, operator.ipow), torch.pow),
}
_REFLECTED = (  # torch.compile calls these
    (Tensor.__radd__, operator.add), (Tensor.__rsub__, operator.sub), (Tensor.__rmul__, operator.mul),
    (Tensor.__rdiv__, operator.truediv), (Tensor.__rpow__, operator.pow),
)  # fmt: skip
JOINING = {torch.cat, torch.concat, torch.concatenate}
_WAYS = (  # the part of a function's name, and what to use instead; the first match counts
    ("batch_norm", "octaveconv.OctBatchNorm2d (1d, 3d)"),
    ("group_norm", "octaveconv.OctGroupNorm"),
    ("instance_norm", "octaveconv.OctGroupNorm with one group per channel"),
    ("conv_transpose", "octaveconv.OctConvTranspose2d"),
    ("conv", "octaveconv.OctConv2d (1d, 3d)"),
    ("prelu", "octaveconv.OctMap(nn.PReLU(channels))"),
    ("adaptive", "octaveconv.Merge() before it"),
    ("pool", "octaveconv.OctMap(nn.MaxPool2d(...)) or octave_map, with ceil_mode=True at odd sizes"),
    ("interpolate", "octaveconv.octave_map with a scale_factor"),
    ("cat", "octaveconv.octave_cat, which joins channels (dim=1)"),
    ("shape", "y.high.shape and y.low.shape"),
    ("size", "y.high.shape and y.low.shape"),
)
_ANY_WAY = "octaveconv.octave_map(fn, y) for both parts, or octaveconv.Merge() for one tensor"


def is_pair(x: object) -> bool:
    """Whether ``x`` is a tuple of two parts, each a tensor or None."""
    return isinstance(x, tuple) and len(x) == 2 and all(p is None or isinstance(p, (Tensor, fx.Proxy)) for p in x)


def applied(fn: Callable[..., Tensor], pair: Pair, *args: Any, **kwargs: Any) -> Pair:
    """A function of each part that is there."""
    high, low = pair
    return (
        None if high is None else fn(high, *args, **kwargs),
        None if low is None else fn(low, *args, **kwargs),
    )


def combined(fn: Callable[..., Tensor], x: Any, y: Any, **kwargs: Any) -> Pair:
    """``fn(x, y)`` part by part, where one is a pair and the other a pair, a number or a tensor of channels.

    Raises:
        ValueError: a part is absent in one of them only, or a tensor does not fit the channels.
        TypeError: one of them is something else, such as a tensor of full resolution, of which no low part is known.
    """
    pair = x if is_pair(x) else y
    high, low = zip(_parts(x, pair), _parts(y, pair))
    for name, (a, b) in (("high", high), ("low", low)):
        if (a is None) != (b is None):
            raise ValueError(
                f"an octave without a {name} part cannot be combined with one that has it: apply Split first"
            )
    return (
        None if high[0] is None else fn(*high, **kwargs),
        None if low[0] is None else fn(*low, **kwargs),
    )


def called(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Pair:
    """What a function of PyTorch gives for arguments among which are pairs.

    Raises:
        TypeError: it does not act on each number alone; the message names the way.
    """
    named = [kwargs[name] for name in ("input", "other") if name in kwargs]
    args, rest = [*args, *named], {key: value for key, value in kwargs.items() if key not in ("input", "other")}
    if not any(isinstance(value, (tuple, Tensor)) for value in rest.values()):
        if function in BINARY and len(args) == 2:
            return combined(BINARY[function], *args, **rest)
        for reflected, operation in _REFLECTED:
            if function is reflected:
                return combined(operation, args[1], args[0])
        if function in ELEMENTWISE and not any(isinstance(value, (tuple, Tensor)) for value in args[1:]):
            return applied(function, *args, **rest)
    name = str(getattr(function, "__name__", function)).strip("_")
    raise TypeError(f"torch's {name} does not take an Octave, a pair of maps: use {way(name)}")


def way(name: str) -> str:
    """What to use instead of a function or an attribute of tensors."""
    return next((cure for part, cure in _WAYS if part in name), _ANY_WAY)


def _parts(x: Any, pair: Pair) -> Sequence[Any]:
    """The operand for each part of ``pair``."""
    if is_pair(x):
        return x  # type: ignore[no-any-return]
    if isinstance(x, Tensor) and pair[1] is not None:
        whole: tuple[Any, Any] = _channels(x, pair)
    elif isinstance(x, (Number, torch.SymInt, torch.SymFloat, Tensor)):  # a tensor: the octave is one map, too
        whole = (x, x)
    else:
        raise TypeError(
            f"arithmetic of an Octave with {type(x).__name__} is not defined: use a number, a tensor of channels, "
            f"another Octave, or octaveconv.octave_map(fn, x)"
        )
    return [None if part is None else own for part, own in zip(pair, whole)]


def _channels(x: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
    """A scalar for both parts; or of a number for each channel, ``[..., C, 1, 1]``, those of each part."""
    axes = next(part.dim() for part in pair if part is not None) - 2
    if x.dim() == 0 or (x.dim() <= axes and all(n == 1 for n in x.shape)):
        return x, x
    if not 0 < axes < x.dim() <= axes + 2 or any(n != 1 for n in x.shape[-axes:]):
        raise TypeError(
            f"a tensor {list(x.shape)} has no low part to combine with that of an Octave: make it an Octave with "
            f"octaveconv.Split(channels, alpha), or octaveconv.Octave(high, low) of its own two resolutions; a number "
            f"for each channel is [C{', 1' * max(axes, 1)}]"
        )
    if x.shape[-axes - 1] == 1:
        return x, x
    counts = [0 if part is None else part.shape[1] for part in pair]
    if x.shape[-axes - 1] != sum(counts):
        raise ValueError(
            f"a tensor {list(x.shape)} does not fit an Octave of {counts[0]} high and {counts[1]} low channels: "
            f"give one number, or one for each channel, the high channels first"
        )
    high, low = x.split(counts, x.dim() - axes - 1)
    return high, low
