"""What torch.fx records as one node, whoever traces: the code of octave layers branches on the parts they get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import fx

P = ParamSpec("P")
R = TypeVar("R")


def leaf_function(function: Callable[P, R]) -> Callable[P, R]:
    """Let tracers record a call of the function, and not what it does."""

    @wraps(function)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
        proxy = proxy_among((*args, *kwargs.values()))
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", recorded, args, kwargs)  # type: ignore[no-any-return]

    return recorded


def leaf_forward(forward: Callable[P, R]) -> Callable[P, R]:
    """Let tracers record a call of the layer, and not what its ``forward`` does.

    Raises:
        TypeError: the layer is all that is traced.
    """

    @wraps(forward)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
        proxy = proxy_among((*args, *kwargs.values()))
        if proxy is None:
            return forward(*args, **kwargs)
        path = proxy.tracer.path_of_module(args[0])
        if not path:
            raise TypeError(f"an octave layer is not traced by itself: trace nn.Sequential(layer); got {args[0]}")
        return proxy.tracer.create_proxy("call_module", path, args[1:], kwargs)  # type: ignore[no-any-return]

    return recorded


def proxy_among(values: Sequence[Any]) -> Any:
    """The first proxy among arguments, also within tuples and lists; None outside of a trace."""
    if torch.compiler.is_compiling():
        return None
    for value in values:
        found = value if isinstance(value, fx.Proxy) else None
        if isinstance(value, tuple | list):
            found = proxy_among(value)
        if found is not None:
            return found
    return None
