"""The low-frequency share that a caller wants for each convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Real

from torch import fx

from .._text import counted, did_you_mean
from .maps import halved_size
from .roles import Role
from .spaces import Net

Alpha = float | Sequence[float] | Mapping[str, float] | str


def choosers(nets: Sequence[Net], alpha: Alpha) -> list[Callable[[fx.Node], float]]:
    """For each net, the alpha that the caller wants for a convolution's output.

    Raises:
        ValueError: an alpha is outside [0, 1), or of an unknown kind, or a pattern matches nothing.
    """
    if isinstance(alpha, Mapping):
        return _by_name(nets, dict(zip(alpha, _checked(*alpha.values()))))
    if isinstance(alpha, (list, tuple)):
        return [_by_size(nets, _checked(*alpha))] * len(nets)
    if not isinstance(alpha, (int, float, Real)):
        raise ValueError(f"alpha must be a number, a list, a dict or 'auto', got {alpha!r}")
    (share,) = _checked(alpha)
    return [lambda node: share] * len(nets)


def wants_any(alpha: Alpha) -> bool:
    """Whether any layer is to become octave."""
    alphas = alpha.values() if isinstance(alpha, Mapping) else alpha if isinstance(alpha, (list, tuple)) else (alpha,)
    return any(alphas)


def _checked(*alphas: float) -> list[float]:
    """The same alphas as plain numbers, for JSON."""
    for alpha in alphas:
        if not isinstance(alpha, (int, float, Real)) or not 0 <= alpha < 1:
            raise ValueError(f"alpha is the low-frequency share of the channels and must be in [0, 1), got {alpha!r}")
    return [float(alpha) for alpha in alphas]


def _by_name(nets: Sequence[Net], alphas: Mapping[str, float]) -> list[Callable[[fx.Node], float]]:
    """The alpha of the first pattern that matches the convolution's name."""
    names = [net.name(node) for net in nets for node in net.nodes(Role.CONV)]
    for pattern in alphas:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"alpha pattern {pattern!r} matches no convolution{did_you_mean(pattern, names)}")
    wanted = {name: next((alphas[p] for p in alphas if fnmatchcase(name, p)), 0.0) for name in names}
    return [lambda node, net=net: wanted[net.name(node)] for net in nets]  # type: ignore[misc]


def _by_size(nets: Sequence[Net], alphas: Sequence[float]) -> Callable[[fx.Node], float]:
    """One alpha for each size of the maps that convolutions write and that can be octaves."""
    if not alphas:
        raise ValueError("alpha is an empty list: give one number for each size of the feature maps")

    free = [node for net in nets for node in net.nodes(Role.CONV) if net.runs.of(node) not in net.pinned]
    sizes = sorted({halved_size(node)[0] for node in free}, reverse=True)
    if len(alphas) > len(sizes):
        raise ValueError(f"alpha has {len(alphas)} numbers, but maps have {counted(len(sizes), 'size')} only: {sizes}")
    by_size = {size: alphas[min(i, len(alphas) - 1)] for i, size in enumerate(sizes)}
    return lambda node: by_size.get(halved_size(node)[0], 0.0)
