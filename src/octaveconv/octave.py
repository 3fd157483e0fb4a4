"""Octave: the pair of feature maps that flows between layers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, fx

from ._leaf import leaf_function
from .arithmetic import JOINING, applied, called, combined, is_pair, way
from .channels import ChannelSplit as ChannelSplit  # all that describes an octave can be imported from here
from .channels import alpha_of as alpha_of
from .channels import split_channels as split_channels
from .resolution import Sizes, checked_factor, crop, pool, pooled_size, traced, upsample


class Octave(NamedTuple):
    """Feature maps at two resolutions: what octave layers take and return.

    Args:
        high: high-frequency maps, ``[N, C_high, H, W]``, or ``None`` (alpha 1).
        low: low-frequency maps, ``[N, C_low, ceil(H/2), ceil(W/2)]``, or ``None`` (alpha 0).

    Series have the shapes ``[N, C_high, L]`` and ``[N, C_low, ceil(L/2)]``; for volumes see `OctConv3d`.

    ``+ - * / **`` act part by part: with another octave, with numbers and 0-d tensors, and with a number for each
    channel, ``[C, 1, 1]``, ``[1, C, 1, 1]`` or ``[N, C, 1, 1]``, the high channels first. Activations and other
    elementwise functions of PyTorch act on both parts (``F.relu(x)``, ``nn.ReLU()(x)``), and ``torch.cat`` of octaves
    joins their channels; other functions are refused with the way to do it. ``to``, ``cpu``, ``cuda``, ``detach``,
    ``clone`` and ``contiguous`` are those of both parts.

    Being a NamedTuple it is a pytree: it goes through ``nn.Sequential``, ``torch.compile`` and ``torch.export``. A
    plain tuple of two maps is taken wherever an octave is.

    Raises:
        TypeError: arithmetic with a tensor of full resolution, which has no low part: `Split` makes it an octave.
        ValueError: arithmetic with other channels, or with an octave that has other parts.

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

    def __add__(self, other: Any) -> Octave:  # type: ignore[override]  # a tuple would concatenate, silently
        return Octave(*combined(operator.add, self, other))

    def __radd__(self, other: Any) -> Octave:
        return Octave(*combined(operator.add, other, self))

    def __sub__(self, other: Any) -> Octave:
        return Octave(*combined(operator.sub, self, other))

    def __rsub__(self, other: Any) -> Octave:
        return Octave(*combined(operator.sub, other, self))

    def __mul__(self, other: Any) -> Octave:  # type: ignore[override]
        return Octave(*combined(operator.mul, self, other))

    def __rmul__(self, other: Any) -> Octave:  # type: ignore[override]
        return Octave(*combined(operator.mul, other, self))

    def __truediv__(self, other: Any) -> Octave:
        return Octave(*combined(operator.truediv, self, other))

    def __rtruediv__(self, other: Any) -> Octave:
        return Octave(*combined(operator.truediv, other, self))

    def __pow__(self, other: Any) -> Octave:
        return Octave(*combined(operator.pow, self, other))

    def __neg__(self) -> Octave:
        return Octave(*applied(operator.neg, self))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.autograd.grad, torch.autograd.backward):  # they take tuples of tensors
            return func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})
        if func in JOINING:
            return _joined(*args, **kwargs)
        return Octave(*called(func, args, kwargs))

    def to(self, *args: Any, **kwargs: Any) -> Octave:
        """Both parts on another device, of another dtype or in another memory format, as ``Tensor.to``."""
        return Octave(*applied(Tensor.to, self, *args, **kwargs))

    def cpu(self) -> Octave:
        """Both parts in the CPU's memory."""
        return Octave(*applied(Tensor.cpu, self))

    def cuda(self, *args: Any, **kwargs: Any) -> Octave:
        """Both parts in a GPU's memory."""
        return Octave(*applied(Tensor.cuda, self, *args, **kwargs))

    def detach(self) -> Octave:
        """Both parts without their history."""
        return Octave(*applied(Tensor.detach, self))

    def clone(self) -> Octave:
        """Copies of both parts."""
        return Octave(*applied(Tensor.clone, self))

    def contiguous(self, *args: Any, **kwargs: Any) -> Octave:
        """Both parts, dense in memory."""
        return Octave(*applied(Tensor.contiguous, self, *args, **kwargs))

    def dim(self) -> int:
        """Dimensions of each part: 4 for images."""
        return _one(self).dim()

    @property
    def dtype(self) -> torch.dtype:
        """That of the parts."""
        return _one(self).dtype

    @property
    def device(self) -> torch.device:
        """That of the parts."""
        return _one(self).device

    @property
    def requires_grad(self) -> bool:
        """Whether a part requires its gradient."""
        return any(part is not None and part.requires_grad for part in self)

    def __getattr__(self, name: str) -> NoReturn:
        cure = f": use {way(name)}" if hasattr(Tensor, name) else ""
        raise AttributeError(f"an Octave, a pair of maps, has no attribute {name!r}{cure}")


Octave.__array_ufunc__ = None  # type: ignore[attr-defined]  # numpy's scalars leave arithmetic to us
torch.utils._pytree._register_namedtuple(Octave, serialized_type_name="octaveconv.Octave")  # for torch.export.save
torch.serialization.add_safe_globals([Octave])  # two tensors: loading runs no code


def as_octave(x: Tensor | Octave) -> Octave:
    """Return an octave as it is, and a tensor as an octave without a low part.

    Raises:
        TypeError: ``x`` is neither a tensor nor an `Octave`.
        ValueError: it is an octave without any part.
    """
    if isinstance(x, fx.Proxy):
        raise TypeError("torch.fx does not know yet whether this is an octave: use a layer, such as octaveconv.OctMap")
    if not isinstance(x, Octave) and is_pair(x):
        x = Octave(*x)  # plain tuples come back from `torch.utils.checkpoint` and from autograd functions
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


@leaf_function
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


def octave_crop(x: Tensor | Octave, size: Sizes, factor: int | Sizes | None = None) -> Octave:
    """Crop an octave to the first ``size`` pixels of its high maps, as after an upsampling of maps of odd size.

    Args:
        x: an octave; a tensor counts as one without a low part.
        size: pixels of the high maps on each axis, at most as many as there are.
        factor: as in `Split`.

    Returns:
        The high part ``[N, C_high, *size]`` and the low part at the size that belongs to it.

    Raises:
        TypeError: ``x`` is neither a tensor nor an `Octave`.
        ValueError: ``size`` has another number of axes than the maps, or is larger.

    Example:
        >>> import torch
        >>> x = Octave(torch.ones(1, 6, 8, 8), torch.ones(1, 2, 4, 4))
        >>> high, low = octave_crop(x, (7, 5))
        >>> high.shape, low.shape
        (torch.Size([1, 6, 7, 5]), torch.Size([1, 2, 4, 3]))
    """
    octave, size = as_octave(x), tuple(size)
    factors = checked_factor(factor, len(size))
    for name, part, pixels in zip(Octave._fields, octave, (size, pooled_size(size, factors))):
        if part is not None and (part.dim() != len(size) + 2 or any(n < m for n, m in zip(part.shape[2:], pixels))):
            raise ValueError(f"the {name} part is {list(part.shape)}, which cannot be cropped to {pixels} pixels")
    high, low = octave
    return Octave(
        None if high is None else crop(high, size), None if low is None else crop(low, pooled_size(size, factors))
    )


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


@leaf_function
def split_tensor(x: Tensor, split: ChannelSplit, factor: int | Sizes | None = None) -> Octave:
    """Keep the high channels of ``x`` and pool the low ones: ``[N, C, H, W]`` to an octave."""
    if split.contiguous and traced():  # pnnx knows slices, but not narrow
        high, low = x[:, : split.high], x[:, split.high :]
    elif split.contiguous:  # not split.split: a following activation may work in place
        high, low = x.narrow(1, 0, split.high), x.narrow(1, split.high, split.low)
    else:
        high, low = split.split(x, 1)
    return Octave(high if split.high else None, pool(low, checked_factor(factor, x.dim() - 2)) if split.low else None)


@leaf_function
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


def _plain(x: Any) -> Any:
    """A tuple of tensors in place of an octave, or of a sequence of them."""
    if not isinstance(x, tuple | list):
        return x
    return tuple(part for one in x for part in (one if isinstance(one, Octave) else [one]) if part is not None)


def _one(x: Octave) -> Tensor:
    """The high part, or the low one where there is no high one."""
    return next(part for part in x if part is not None)


def _joined(tensors: Any, dim: int = 0) -> Octave:
    """``torch.cat`` of octaves."""
    octaves = [as_octave(x) for x in tensors] if isinstance(tensors, list | tuple) else []
    if isinstance(tensors, Octave) or not octaves or dim not in (1, 1 - octaves[0].dim()):
        raise TypeError(f"torch.cat joins the channels of a list of octaves, dim=1: use {way('cat')}")
    return octave_cat(*octaves)
