"""Ridge regressions of a convolution's outputs on what it reads: sums over pixels, and the weights that fit them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..octave import Octave
from ..resolution import Sizes, pool
from ..spec import ConvSpec

_LARGE = 1_000  # inputs, from which on fewer ridges are tried, and in one direction
_RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)  # of the mean variance of the inputs


class Sums:
    """Sums over pixels of a layer's inputs and of what they are to give, group by group: all that a fit needs."""

    def __init__(self) -> None:
        self.count = 0
        self.products: Any = 0  # of inputs with inputs and outputs: [groups, inputs, inputs + outputs]
        self.squares: Any = 0  # of outputs, [groups, outputs]
        self.totals: Any = 0  # [groups, inputs + outputs]

    def add(self, x: Tensor, y: Tensor) -> None:
        """``x`` is ``[groups, inputs, pixels]``, ``y`` ``[groups, outputs, pixels]``."""
        both = torch.cat([x, y], 1)
        self.count += x.shape[2]
        self.products = self.products + torch.bmm(x, both.mT).double()
        self.squares = self.squares + y.square().sum(2, dtype=torch.float64)
        self.totals = self.totals + both.sum(2, dtype=torch.float64)

    def __add__(self, other: Sums) -> Sums:
        total = Sums()
        for name, value in vars(self).items():
            setattr(total, name, value + getattr(other, name))
        return total

    def statistics(self, centered: bool) -> Statistics:
        """The means and covariances, or with means of 0."""
        mean = self.totals / self.count
        mean = mean if centered else torch.zeros_like(mean)
        inputs = self.products.shape[1]
        covariance = self.products / self.count - mean[:, :inputs, None] * mean[:, None]
        return Statistics(mean, covariance, self.squares / self.count - mean[:, inputs:].square())


class Statistics(NamedTuple):
    """The means of inputs and outputs, the covariance of inputs with both, and the variance of the outputs."""

    mean: Tensor
    covariance: Tensor
    variance: Tensor

    def cpu(self) -> Statistics:
        """The same in the host's memory."""
        return Statistics(*(each.cpu() for each in self))

    @property
    def square(self) -> Tensor:
        """The covariance of the inputs, ``[groups, inputs, inputs]``."""
        return self.covariance[:, :, : self.covariance.shape[1]]

    @property
    def cross(self) -> Tensor:
        """The covariance of inputs with outputs, ``[groups, inputs, outputs]``."""
        return self.covariance[:, :, self.covariance.shape[1] :]

    def left(self, found: Tensor) -> Tensor:
        """The variance of what weights ``[groups, inputs, outputs]`` leave of the outputs, ``[groups, outputs]``."""
        left: Tensor = self.variance + ((self.square @ found - 2 * self.cross) * found).sum(1)
        return left


class Pixels(NamedTuple):
    """Draws pixels of the maps of a sample of ``images``."""

    images: int
    draw: torch.Generator

    def of(self, size: Sizes, wanted: int) -> Tensor:
        """Pixels of a map, about ``wanted`` in all images together."""
        total, each = prod(size), wanted // self.images + 1
        return torch.randperm(total, generator=self.draw)[:each] if total > each else torch.arange(total)


def collect(sums: Sums, spec: ConvSpec, x: Octave, y: Tensor, for_low: bool, some: Tensor) -> None:
    """Note what a convolution reads, and what one output part is to be, at ``some`` pixels of that."""
    spec = spec.at(spec.high_size(x))
    read = [*_patches(spec, x, for_low, tuple(y.shape[2:]), some)]
    groups = read[0].shape[1] if spec.depthwise else spec.groups
    rows = torch.cat([_grouped(patch, groups) for patch in read], 1)
    sums.add(rows, _grouped(y.flatten(2)[:, :, None, some], groups))


def _patches(spec: ConvSpec, x: Octave, for_low: bool, size: Sizes, some: Tensor) -> Iterator[Tensor]:
    """What a convolution multiplies at ``some`` pixels of one output part: ``[N, C, taps, pixels]`` of each input."""
    if x.high is not None and not (spec.depthwise and for_low):
        high = pool(x.high, spec.pooling)
        yield _taps(spec, spec.extended(pool(high, spec.factor)) if for_low else high, size, some)
    if x.low is not None and not (spec.depthwise and not for_low):
        low = spec.extended(pool(x.low, spec.pooling if for_low else spec.remaining_stride))
        yield _taps(spec, low, size, some, None if for_low else spec.growth)


def _taps(spec: ConvSpec, x: Tensor, size: Sizes, some: Tensor, growth: Sizes | None = None) -> Tensor:
    x = spec.padded(x)
    corner = list(torch.unravel_index(some, size))
    if growth is not None:
        corner = [at // g for at, g in zip(corner, growth)]
    taps, steps = [], spec.stride if spec.strides else (1,) * len(size)
    for offsets in itertools.product(*map(range, spec.kernel_size)):
        at = torch.zeros_like(some)
        for first, step, offset, dilation, pixels in zip(corner, steps, offsets, spec.dilation, x.shape[2:]):
            at = at * pixels + first * step + offset * dilation
        taps.append(x.flatten(2)[:, :, at])
    return torch.stack(taps, 2)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """From ``[N, C, taps, pixels]`` to ``[groups, C / groups * taps, N * pixels]``."""
    by_group: Tensor = x.unflatten(1, (groups, -1))  # type: ignore[no-untyped-call]
    return by_group.flatten(2, 3).permute(1, 2, 0, 3).flatten(2)


def ridge_fit(folds: tuple[Sums, Sums], start: Tensor, centered: bool) -> tuple[Tensor, Tensor]:
    """Weights ``[groups, inputs, outputs]`` and offsets ``[groups, outputs]``, near ``start``.

    How near, is what predicts either half of the sample best from the other.
    """
    inputs = start.shape[1]
    ridge = 0.1
    if all(fold.count for fold in folds):
        each = [fold.statistics(centered) for fold in folds]
        tries, ways = (_RIDGES, (each, each[::-1])) if inputs <= _LARGE else (_RIDGES[3::2], (each,))
        errors = [sum(_error(solved(one, start, r), one, other) for one, other in ways) for r in tries]
        ridge = tries[min(range(len(tries)), key=errors.__getitem__)]
    total = (folds[0] + folds[1] if folds[1].count else folds[0]).statistics(centered)
    found = solved(total, start, ridge)
    return found, total.mean[:, inputs:] - (total.mean[:, :inputs, None] * found).sum(1)


def solved(statistics: Statistics, start: Tensor, ridge: float) -> Tensor:
    """The weights ``[groups, inputs, outputs]`` of one regression, near ``start``."""
    square = statistics.square
    if not statistics.covariance.isfinite().all():
        return start
    strength = ridge * square.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
    one = torch.eye(len(square[0])).to(square)
    while True:
        factor, failed = torch.linalg.cholesky_ex(square + strength[:, None, None] * one)
        if not failed.any():
            return start + torch.cholesky_solve(statistics.cross - square @ start, factor)
        strength = torch.where(failed > 0, strength * 10, strength)  # more inputs than pixels, and rounding


def _error(found: Tensor, one: Statistics, other: Statistics) -> float:
    """The squared error, on the ``other`` half of the sample, of weights and offset that fit ``one``."""
    shift_in, shift_out = (other.mean - one.mean).split([found.shape[1], found.shape[2]], 1)
    offset = shift_out - (shift_in[..., None] * found).sum(1)
    return float(other.left(found).sum() + offset.square().sum())
