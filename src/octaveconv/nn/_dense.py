"""Layers without a low output that return a plain tensor, as the dense stages of networks do."""

from __future__ import annotations

from ..octave import Octave


class MayReturnTensor:
    """A layer returns an `Octave`, always, unless a network whose next layers are dense sets ``_returns_tensor``."""

    _returns_tensor = False

    def _returned(self, y: Octave) -> Octave:
        """What `forward` returns."""
        if not self._returns_tensor:
            return y
        assert y.high is not None
        return y.high  # type: ignore[return-value]  # seen by the layers of networks only
