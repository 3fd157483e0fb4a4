"""The ways to compute an octave convolution, which of them can run a call, and which one is chosen."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference
from ..errors import BackendUnavailable
from ..octave import Octave
from ..spec import ConvSpec
from . import _triton_choice, merged
from ._triton_choice import batch_norm, octconv_of_norm

__all__ = [
    "BACKENDS",
    "Backend",
    "backend",
    "batch_norm",
    "choose",
    "explain",
    "fuses_norm",
    "octconv_of_norm",
    "reasons",
]


@dataclass(frozen=True)
class Backend:
    """One implementation: ``run`` computes, ``can_run`` returns the reason why it cannot, or ``None``.

    One that is not ``automatic`` must be asked for by name, which calls ``load`` first.
    """

    name: str
    run: Callable[[Octave, Tensor, Tensor | None, ConvSpec], Octave]
    can_run: Callable[[Octave, ConvSpec], str | None]
    automatic: bool = True
    load: Callable[[], None] = lambda: None


def _always(x: Octave, spec: ConvSpec) -> str | None:
    return None


BACKENDS = {  # the fastest first: the automatic choice is the first that can run
    # Its kernels have been interpreted and compiled but never run on a GPU; until then they are chosen by name only.
    "triton": Backend("triton", _triton_choice.octconv, _triton_choice.can_run, False, _triton_choice.load),
    "merged": Backend("merged", merged.octconv, _always),
    "reference": Backend("reference", reference.octconv, _always),
}

_DEFAULT = tuple(filter(None, os.environ.get("OCTAVECONV_BACKEND", "").split(",")))


class _Request(threading.local):
    """The names that this thread asks for; none: the automatic choice.

    A ContextVar would follow asynchronous tasks too, but torch.compile cannot trace one before PyTorch 2.14.
    """

    def __init__(self) -> None:  # called once in each thread
        self.names = _DEFAULT


_request = _Request()


@contextmanager
def backend(*names: str) -> Iterator[None]:
    """Compute every octave convolution of this thread inside the ``with`` block with the named backend.

    Of several names, each convolution takes the first that can run it; without a name the choice is automatic. Like
    ``torch.no_grad`` it does not reach other threads, nor those that are started inside the block. The environment
    variable ``OCTAVECONV_BACKEND``, names separated by commas, is what every thread starts with.

    Raises:
        BackendUnavailable: there is no such backend; or, when a layer is called, none of them can run that call.

    Example:
        >>> import torch, octaveconv as oc
        >>> layer = oc.OctConv2d(4, 4, 3, padding=1, alpha_out=0.5)
        >>> with oc.backend("reference"):
        ...     y = layer(torch.ones(1, 4, 8, 8))
    """
    for name in names:
        _find(name).load()
    before, _request.names = _request.names, names
    try:
        yield
    finally:
        _request.names = before


def choose(x: Octave, spec: ConvSpec) -> Backend:
    """The first backend that can run, of those requested or else of the automatic ones.

    Raises:
        BackendUnavailable: none can, and why.
    """
    requested = [_find(name) for name in _request.names]
    for candidate in requested or [candidate for candidate in BACKENDS.values() if candidate.automatic]:
        if candidate.can_run(x, spec) is None:
            return candidate
    raise BackendUnavailable(
        "; ".join(
            f"backend {name!r} was asked for and cannot run this call: {reason}"
            for name, reason in reasons(x, spec).items()
            if name in _request.names
        )
    )


def fuses_norm(x: Octave, residual: Octave | None = None) -> bool:
    """Whether batch norm, residual and ReLU of ``x`` are to be one call, in the Triton backend.

    They are where that backend is the first one asked for and can compute them. Elsewhere PyTorch computes them one
    after another, and `backend`, which is about convolutions, does not complain.
    """
    return _request.names[:1] == ("triton",) and _triton_choice.can_normalize(x, residual) is None


def explain(layer: nn.Module, x: Tensor | Octave) -> dict[str, str]:
    """Which backends can run an octave convolution on an input, and why the others cannot.

    Args:
        layer: an octave convolution, such as `OctConv2d`.
        x: what it would be called with; nothing is computed.

    Returns:
        For each backend, the fastest first, ``"can run"`` or its reason not to. A layer takes the first that can run,
        except ``"triton"``, which must be asked for with `backend`.

    Raises:
        TypeError: ``layer`` is not an octave convolution, or ``x`` neither a tensor nor an `Octave`.
        ValueError: ``x`` does not fit the layer, in its shape or its dtype.

    Example:
        >>> import torch, octaveconv as oc
        >>> layer = oc.OctConv2d(8, 8, 3, padding=1, alpha_out=0.5, padding_mode="reflect")
        >>> for name, answer in oc.explain(layer, torch.ones(1, 8, 6, 6)).items():
        ...     print(f"{name}: {answer}")
        triton: it pads with zeros only, not with padding_mode='reflect'
        merged: can run
        reference: can run
    """
    spec = getattr(layer, "spec", None)
    if not isinstance(spec, ConvSpec):
        raise TypeError(f"explain takes an octave convolution such as OctConv2d, got {type(layer).__name__}")
    octave = spec.check_input(x)
    dtype: Any = layer.weight.dtype
    for name, part in zip(Octave._fields, octave):
        if part is not None and part.dtype != dtype and not torch.is_autocast_enabled(part.device.type):
            raise ValueError(
                f"the layer is of {dtype} and the {name} part of its input of {part.dtype}: make them alike"
            )
    return reasons(octave, spec)


def reasons(x: Octave, spec: ConvSpec) -> dict[str, str]:
    """What each backend says to this call: ``"can run"``, or its reason not to."""
    return {name: candidate.can_run(x, spec) or "can run" for name, candidate in BACKENDS.items()}


def _find(name: str) -> Backend:
    if name not in BACKENDS:
        raise BackendUnavailable(f"there is no backend {name!r}: choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]
