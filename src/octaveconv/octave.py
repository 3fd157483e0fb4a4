"""Octave: the pair of feature maps that flows between layers, and the arithmetic on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, fx

from .resolution import Sizes, checked_factor, pool, pooled_size, traced, unflattened, upsample, whole


class Octave(NamedTuple):
    """Feature maps at two resolutions: what octave layers take and return.

    Args:
        high: high-frequency maps, ``[N, C_high, H, W]``, or ``None`` (alpha 1).
        low: low-frequency maps, ``[N, C_low, ceil(H/2), ceil(W/2)]``, or ``None`` (alpha 0).

    Series have the shapes ``[N, C_high, L]`` and ``[N, C_low, ceil(L/2)]``; for volumes see `OctConv3d`.

    ``+`` and ``*`` act part by part, so a residual block reads ``x + shortcut`` as usual. Being a NamedTuple it is
    a pytree: it goes through ``nn.Sequential``, ``torch.compile`` and ``torch.export``.

    Source: section 3.1 of Chen et al., ICCV 2019.

    Example:
        >>> import torch
        >>> x = Octave(torch.ones(1, 6, 8, 8), torch.ones(1, 2, 4, 4))
        >>> high, low = x + x
        >>> low.shape, low.max()
        (torch.Size([1, 2, 4, 4]), tensor(2.))
    """

    high: Tensor | None
    low: Tensor | None = None

    def __add__(self, other: Octave) -> Octave:  # type: ignore[override]  # a tuple would concatenate, silently
        return octave_map(torch.add, self, _only_octave(other, "+"))

    def __mul__(self, other: Octave) -> Octave:  # type: ignore[override]
        return octave_map(torch.mul, self, _only_octave(other, "*"))


torch.utils._pytree._register_namedtuple(Octave, serialized_type_name="octaveconv.Octave")  # for torch.export.save
torch.serialization.add_safe_globals([Octave])  # two tensors: loading runs no code


class ChannelSplit(NamedTuple):
    """Which channels of a dense layer are high-frequency and which are low-frequency.

    Every ``alpha`` of this package may be a ``ChannelSplit`` instead of a number. A concatenation needs one,
    because each of its pieces has its own high and low channels.

    Args:
        high: number of high-frequency channels.
        low: number of low-frequency channels.
        cut: number of equal groups; the high channels come first inside each. It is 1 except next to a grouped
            convolution, whose groups each have a high and a low part.
        pieces: the splits of concatenated channels, if they differ. Use `then` to make such a split.

    Raises:
        ValueError: a layer is given a split that does not fit its channels.

    Source: section 3.1 of Chen et al., ICCV 2019, splits one run of channels; groups and pieces are ours.

    Example:
        >>> import torch, octaveconv as oc
        >>> split = oc.ChannelSplit(48, 16).then(oc.ChannelSplit(24, 8))  # 64 channels, then 32 others
        >>> split.high, split.low, split.alpha
        (72, 24, 0.25)
        >>> x = oc.Octave(torch.ones(1, 72, 8, 8), torch.ones(1, 24, 4, 4))
        >>> oc.OctConv2d(96, 64, 1, alpha_in=split)(x).high.shape
        torch.Size([1, 64, 8, 8])
    """

    high: int
    low: int
    cut: int = 1
    pieces: tuple[ChannelSplit, ...] = ()

    @property
    def contiguous(self) -> bool:
        """Whether all high channels come first; `split` then returns views."""
        return self.cut == 1 and not self.pieces

    @property
    def alpha(self) -> float:
        """The low-frequency share; ValueError if there are no channels."""
        if not self.high + self.low:
            raise ValueError(f"{self} has no channels: give it high or low ones")
        return self.low / (self.high + self.low)

    def then(self, other: ChannelSplit) -> ChannelSplit:
        """The split of a concatenation: these channels followed by the ``other`` ones.

        Example:
            >>> ChannelSplit(64, 0).then(ChannelSplit(24, 8)).then(ChannelSplit(24, 8))[:2]
            (112, 16)
        """
        if other.pieces:
            return reduce(ChannelSplit.then, other.pieces, self)
        *before, last = self.pieces or (self,)
        high, low = last.high + other.high, last.low + other.low
        if not high or not low:  # one frequency: one piece
            pieces = [ChannelSplit(high, low)]
        elif other.cut == 1 and other[:2] == (last.high // last.cut, last.low // last.cut):  # one more of its groups
            pieces = [ChannelSplit(high, low, last.cut + 1)]
        else:
            pieces = [last, other]
        if not before and len(pieces) == 1:
            return pieces[0]
        return ChannelSplit(self.high + other.high, self.low + other.low, 1, (*before, *pieces))

    def split(self, x: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
        """Split dimension ``dim``, which is in dense order, into ``(high, low)``; they are views if `contiguous`.

        PyTorch joins the gradients of the views in one pass, and in return forbids changing the views in place.
        """
        if self.pieces:
            runs = x.split([piece.high + piece.low for piece in self.pieces], dim)
            highs, lows = zip(*(piece.split(run, dim) for piece, run in zip(self.pieces, runs)))
            return torch.cat(highs, dim), torch.cat(lows, dim)
        if self.cut == 1:
            high, low = x.split([self.high, self.low], dim)
            return high, low
        grouped = unflattened(x, dim, (self.cut, -1))  # [..., cut, C / cut, ...]
        parts = grouped.split([self.high // self.cut, self.low // self.cut], dim + 1)
        return parts[0].flatten(dim, dim + 1), parts[1].flatten(dim, dim + 1)

    def split_any(self, x: Tensor | None, dim: int = 0) -> tuple[Tensor | None, Tensor | None]:
        """`split`, or ``(None, None)`` for what is absent, such as a bias."""
        return (None, None) if x is None else self.split(x, dim)

    def high_first(self, x: Tensor, dim: int = 0) -> Tensor:
        """Reorder dimension ``dim`` from dense order to high channels first; ``x`` itself if it is so already."""
        return x if self.contiguous else torch.cat(self.split(x, dim), dim)

    def join(self, high: Tensor | None, low: Tensor | None, dim: int = 0) -> Tensor:
        """Join the two parts in dense order: the inverse of `split`. An absent part has no channels."""
        parts = [part for part in (high, low) if part is not None]
        if len(parts) == 1:
            return parts[0]
        if self.pieces:
            highs = parts[0].split([piece.high for piece in self.pieces], dim)
            lows = parts[1].split([piece.low for piece in self.pieces], dim)
            runs = (piece.join(top, bottom, dim) for piece, top, bottom in zip(self.pieces, highs, lows))
            return torch.cat([*runs], dim)
        if self.cut == 1:
            return torch.cat(parts, dim)
        return torch.cat(
            [unflattened(part, dim, (self.cut, part.shape[dim] // self.cut)) for part in parts], dim + 1
        ).flatten(dim, dim + 1)


def alpha_of(alpha: float | ChannelSplit) -> float:
    """The low-frequency share as a plain number."""
    return alpha.alpha if isinstance(alpha, ChannelSplit) else float(alpha)


def split_channels(channels: int, alpha: float | ChannelSplit, cut: int = 1) -> ChannelSplit:
    """Split ``channels`` as the original does: ``low = int(alpha * channels)``, truncated, and the rest is high.

    A `ChannelSplit` given as ``alpha`` is checked and returned.

    Raises:
        ValueError: alpha is outside [0, 1], the shares cannot be divided among ``cut`` groups, or a given split has a
            different number of channels.

    Example:
        >>> split_channels(64, 0.3)[:2]
        (45, 19)
    """
    channels = whole("the number of channels", channels)
    if isinstance(alpha, ChannelSplit):
        if min(alpha[:2]) < 0 or alpha.high + alpha.low != channels:
            raise ValueError(f"{channels} channels cannot be split into {alpha.high} high and {alpha.low} low ones")
        if alpha.high % alpha.cut or alpha.low % alpha.cut:
            raise ValueError(f"{alpha.high} high and {alpha.low} low channels cannot be cut into {alpha.cut} groups")
        return alpha
    if not isinstance(alpha, (float, int, Real)) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the low-frequency share of the channels and must be in [0, 1], got {alpha!r}")
    low = int(alpha * channels)
    split = ChannelSplit(channels - low, low, cut)
    if channels % cut or low % cut:
        per_group = channels // cut
        cure = ", ".join(f"{i / per_group:g}" for i in range(per_group + 1)) if per_group <= 16 else f"n/{per_group}"
        raise ValueError(
            f"{channels} channels at alpha {alpha} are {split.high} high and {low} low, which {cut} groups cannot "
            f"share evenly: use an alpha of {cure}, or fewer groups"
        )
    return split


def as_octave(x: Tensor | Octave) -> Octave:
    """Return an octave as it is, and a tensor as an octave without a low part.

    Raises:
        TypeError: ``x`` is neither a tensor nor an `Octave`.
        ValueError: it is an octave without any part.
    """
    parts = x if isinstance(x, Octave) else (x,)
    for part in parts:
        if not isinstance(part, (Tensor, fx.Proxy)) and (part is not None or len(parts) == 1):
            inside = "" if len(parts) == 1 else "an Octave of "
            raise TypeError(f"expected a Tensor or an octaveconv.Octave(high, low), got {inside}{type(part).__name__}")
    if not isinstance(x, Octave):
        return Octave(x, None)
    if x.high is None and x.low is None:
        raise ValueError("an octave needs a high or a low part, got Octave(None, None)")
    return x


def octave_map(fn: Callable[..., Tensor], *xs: Tensor | Octave) -> Octave:
    """Apply an elementwise or pooling function to the high parts and to the low parts.

    Args:
        fn: takes as many tensors as there are ``xs`` and returns one.
        xs: octaves that have the same parts; a tensor counts as an octave without a low part.

    Returns:
        ``Octave(fn(high, ...), fn(low, ...))``; a part that is absent stays absent.

    Raises:
        ValueError: one of ``xs`` has a part that another lacks.
        TypeError: one of ``xs`` is neither a tensor nor an `Octave`.

    Example:
        >>> import torch
        >>> octave_map(torch.relu, Octave(torch.tensor([-1.0, 2.0]), None))
        Octave(high=tensor([0., 2.]), low=None)
    """
    if not xs:
        raise ValueError("octave_map needs the octaves that the function is applied to, got none")
    octaves = [as_octave(x) for x in xs]
    for name, parts in zip(Octave._fields, zip(*octaves)):
        absent = [part is None for part in parts]
        if any(absent) and not all(absent):
            raise ValueError(
                f"an octave without a {name} part cannot be combined with one that has it: apply Split first"
            )
    highs, lows = zip(*octaves)
    return Octave(None if highs[0] is None else fn(*highs), None if lows[0] is None else fn(*lows))


def octave_cat(*xs: Tensor | Octave) -> Octave:
    """Concatenate the channels of octaves: the high parts, and the low parts.

    Args:
        xs: octaves whose maps have the same sizes; a tensor counts as an octave without a low part.

    Returns:
        ``Octave(cat(highs), cat(lows))``, the channels in the order of ``xs``; a part that all ``xs`` lack is ``None``.
        The next layer takes the matching split as ``alpha_in``: `ChannelSplit.then`.

    Raises:
        TypeError: one of ``xs`` is neither a tensor nor an `Octave`.
        RuntimeError: the maps differ in size.

    Source: the DenseNet of section 4.2 of Chen et al., ICCV 2019.

    Example:
        >>> import torch
        >>> octave_cat(torch.ones(1, 64, 8, 8), Octave(torch.ones(1, 24, 8, 8), torch.ones(1, 8, 4, 4))).low.shape
        torch.Size([1, 8, 4, 4])
    """
    if not xs:
        raise ValueError("octave_cat needs at least one octave, got none")
    highs, lows = ([part for part in parts if part is not None] for parts in zip(*map(as_octave, xs)))
    return Octave(torch.cat(highs, 1) if highs else None, torch.cat(lows, 1) if lows else None)


def check_sizes(x: Octave, factor: Sizes) -> None:
    """Raise ValueError unless the low part has ``ceil(size / factor)`` pixels on each axis."""
    high, low = x
    if high is None or low is None or torch.compiler.is_compiling() or traced():  # sizes may be symbols: no guards
        return
    expected = pooled_size(high.shape[2:], factor)
    if len(high) != len(low):
        raise ValueError(f"an octave's parts are of the same images, got {len(high)} high maps and {len(low)} low ones")
    if tuple(low.shape[2:]) != expected:
        rule = "half the size, rounded up" if min(factor) == 2 else f"the size divided by {factor}, rounded up"
        raise ValueError(
            f"the low part is {tuple(low.shape[2:])} pixels next to a high part of {tuple(high.shape[2:])}, expected "
            f"{expected}: {rule} (pool with ceil_mode=True, or pool both parts with octave_map)"
        )


def split_tensor(x: Tensor, split: ChannelSplit, factor: int | Sizes | None = None) -> Octave:
    """Keep the high channels of ``x`` and pool the low ones: ``[N, C, H, W]`` to an octave."""
    if split.contiguous:  # not split.split: a following activation may work in place
        high, low = x.narrow(1, 0, split.high), x.narrow(1, split.high, split.low)
    else:
        high, low = split.split(x, 1)
    return Octave(high if split.high else None, pool(low, checked_factor(factor, x.dim() - 2)) if split.low else None)


def merge_tensor(
    x: Tensor | Octave, size: Sizes | None = None, factor: int | Sizes | None = None, split: ChannelSplit | None = None
) -> Tensor:
    """Upsample the low part to the high size and return all channels as one tensor: ``[N, C, H, W]``.

    ``size`` is the high size of an octave without a high part; by default it is the low size times ``factor``. The
    channels are in the dense order of ``split``, by default high channels first.
    """
    high, low = as_octave(x)
    if low is None:
        assert high is not None
        return high
    factor = checked_factor(factor, low.dim() - 2)
    if high is not None:
        check_sizes(Octave(high, low), factor)
        size = high.shape[2:]
    elif size is None:
        size = tuple(f * n for f, n in zip(factor, low.shape[2:]))
    up = upsample(low, factor, size)
    if high is None:
        return up
    return torch.cat([high, up], 1) if split is None else split.join(high, up, 1)


def _only_octave(other: object, operator: str) -> Octave:
    if not isinstance(other, Octave):
        raise TypeError(
            f"Octave {operator} {type(other).__name__} is not defined: use two octaves, or octaveconv.octave_map(fn, x)"
        )
    return other
