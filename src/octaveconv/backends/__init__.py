"""The ways to compute an octave convolution, which of them can run a call, and which one is chosen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
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

    Where there are ``devices``, it is chosen automatically on these alone, and not while a program is exported, which
    is to run elsewhere too. To ask for it by name calls ``load`` first.
    """

    name: str
    run: Callable[[Octave, Tensor, Tensor | None, ConvSpec], Octave]
    can_run: Callable[[Octave, ConvSpec], str | None]
    devices: tuple[str, ...] | None = None
    load: Callable[[], None] = lambda: None

    def is_automatic(self, x: Octave) -> bool:
        """Whether automatic choice may take it for this input."""
        device = next(part.device.type for part in x if part is not None)
        return self.devices is None or (device in self.devices and not torch.compiler.is_exporting())


def _always(x: Octave, spec: ConvSpec) -> str | None:
    return None


BACKENDS = {  # the fastest first: automatic choice takes the first that can run
    "triton": Backend(
        "triton", _triton_choice.octconv, _triton_choice.can_run, _triton_choice.DEVICES, _triton_choice.load
    ),
    "merged": Backend("merged", merged.octconv, _always),
    "reference": Backend("reference", reference.octconv, _always),
}

_requested: str | None = os.environ.get("OCTAVECONV_BACKEND") or None  # None: choose automatically


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Compute every octave convolution inside the ``with`` block by the named backend, in the whole process.

    The environment variable ``OCTAVECONV_BACKEND`` does the same from the start of the process.

    Raises:
        BackendUnavailable: there is no such backend; or, when a layer is called, it cannot run that call.

    Example:
        >>> import torch, octaveconv as oc
        >>> layer = oc.OctConv2d(4, 4, 3, padding=1, alpha_out=0.5)
        >>> with oc.backend("reference"):
        ...     y = layer(torch.ones(1, 4, 8, 8))
    """
    global _requested
    _find(name).load()
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before


def choose(x: Octave, spec: ConvSpec) -> Backend:
    """The requested backend if one is named, or else the first that can run; BackendUnavailable says why not."""
    if _requested is not None:
        chosen = _find(_requested)
        reason = chosen.can_run(x, spec)
        if reason is not None:
            raise BackendUnavailable(f"backend {chosen.name!r} was asked for and cannot run this call: {reason}")
        return chosen
    for candidate in BACKENDS.values():
        if candidate.is_automatic(x) and candidate.can_run(x, spec) is None:
            return candidate
    raise BackendUnavailable(f"no backend can run this call: {explain(x, spec)}")


def fuses_norm(x: Octave, residual: Octave | None = None) -> bool:
    """Whether batch norm, residual and ReLU of ``x`` are to be one, in the Triton backend.

    They are where that backend is named, or chosen automatically, and can compute them; elsewhere PyTorch does so, one
    after another, also where the backend is named: `backend` speaks of convolutions.
    """
    triton = BACKENDS["triton"]
    wanted = triton.is_automatic(x) if _requested is None else _requested == triton.name
    return wanted and _triton_choice.can_normalize(x, residual) is None


def explain(x: Octave, spec: ConvSpec) -> dict[str, str]:
    """What each backend says to this call: ``"can run"``, or its reason not to."""
    return {name: candidate.can_run(x, spec) or "can run" for name, candidate in BACKENDS.items()}


def _find(name: str) -> Backend:
    if name not in BACKENDS:
        raise BackendUnavailable(f"there is no backend {name!r}: choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]
