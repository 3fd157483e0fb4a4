"""The ways to compute an octave convolution, which of them can run a call, and which one is chosen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

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


BACKENDS = {  # the fastest first: automatic choice takes the first that can run
    # Its kernels have been interpreted and compiled, but never run on a GPU: until then they are not for everyone.
    "triton": Backend("triton", _triton_choice.octconv, _triton_choice.can_run, False, _triton_choice.load),
    "merged": Backend("merged", merged.octconv, _always),
    "reference": Backend("reference", reference.octconv, _always),
}

_requested = tuple(filter(None, os.environ.get("OCTAVECONV_BACKEND", "").split(",")))  # none: choose automatically


@contextmanager
def backend(*names: str) -> Iterator[None]:
    """Compute every octave convolution inside the ``with`` block by the named backend, in the whole process.

    Of several names, each convolution takes the first that can run it. The environment variable ``OCTAVECONV_BACKEND``,
    names with commas between, does the same from the start of the process.

    Raises:
        BackendUnavailable: there is no such backend; or, when a layer is called, none of them can run that call.

    Example:
        >>> import torch, octaveconv as oc
        >>> layer = oc.OctConv2d(4, 4, 3, padding=1, alpha_out=0.5)
        >>> with oc.backend("reference"):
        ...     y = layer(torch.ones(1, 4, 8, 8))
    """
    global _requested
    for name in names:
        _find(name).load()
    before, _requested = _requested, names
    try:
        yield
    finally:
        _requested = before


def choose(x: Octave, spec: ConvSpec) -> Backend:
    """The first backend that can run, of those requested or else of the automatic ones.

    Raises:
        BackendUnavailable: none can, and why.
    """
    requested = [_find(name) for name in _requested]
    for candidate in requested or [candidate for candidate in BACKENDS.values() if candidate.automatic]:
        if candidate.can_run(x, spec) is None:
            return candidate
    raise BackendUnavailable(
        "; ".join(
            f"backend {name!r} was asked for and cannot run this call: {reason}"
            for name, reason in explain(x, spec).items()
            if name in _requested
        )
    )


def fuses_norm(x: Octave, residual: Octave | None = None) -> bool:
    """Whether batch norm, residual and ReLU of ``x`` are to be one, in the Triton backend.

    They are where that backend is the first one asked for and can compute them; elsewhere PyTorch does so, one after
    another, and `backend`, which speaks of convolutions, does not complain.
    """
    return _requested[:1] == ("triton",) and _triton_choice.can_normalize(x, residual) is None


def explain(x: Octave, spec: ConvSpec) -> dict[str, str]:
    """What each backend says to this call: ``"can run"``, or its reason not to."""
    return {name: candidate.can_run(x, spec) or "can run" for name, candidate in BACKENDS.items()}


def _find(name: str) -> Backend:
    if name not in BACKENDS:
        raise BackendUnavailable(f"there is no backend {name!r}: choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]
