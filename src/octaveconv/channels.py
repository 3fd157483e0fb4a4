"""ChannelSplit: which channels of a dense layer are high-frequency, and which are low-frequency."""

from __future__ import annotations

from functools import reduce
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from .resolution import unflattened, whole


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
        grouped = unflattened(x, dim, (self.cut, x.shape[dim] // self.cut))  # [..., cut, C / cut, ...]
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
