"""Plan: what `octavify` did with each layer, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .._text import text_table


@dataclass(frozen=True)
class LayerPlan:
    """One layer of the given network.

    Attributes:
        name, kind: its name in the network, and the type of its module.
        alpha_in, alpha_out: low-frequency share of its channels; both 0 for a layer that stays as it is.
        why: what keeps its input or output dense, if something does.
        macs_before, macs_after: multiply-accumulates for one image, as given and in the octave network.
        error: how far the octave layer's output is from the dense one's, relative to it, on the calibration sample.
    """

    name: str
    kind: str
    alpha_in: float
    alpha_out: float
    why: str
    macs_before: int
    macs_after: int
    error: float | None = None

    @property
    def octave(self) -> bool:
        """Whether it takes or returns an octave."""
        return bool(self.alpha_in or self.alpha_out)

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution, or became one: a linear layer over the channels of each pixel."""
        return "Conv" in self.kind or (self.kind == "Linear" and self.octave)


@dataclass(frozen=True)
class Plan:
    """What `octavify` did. ``print(plan)`` shows a table.

    Attributes:
        layers: every layer that has parameters or takes multiply-accumulates, in the order of their calls.
        borders: of each border placed, ``"merge"`` or ``"split"`` and the layer or operation behind which it stands.
        recipe: what `rebuild` makes this network from the dense one with: ``alphas``, the alpha asked for of each
            convolution, and the other arguments that decide, ``input_size``, ``keep``, ``min_size``, ``stem``; and
            ``octave``, how many layers became so.
        notes: what else the caller must know.
    """

    layers: list[LayerPlan]
    borders: list[tuple[str, str]]
    recipe: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def macs_before(self) -> int:
        """Multiply-accumulates of the given network for one image."""
        return sum(layer.macs_before for layer in self.layers)

    @property
    def macs_after(self) -> int:
        """Multiply-accumulates of the octave network for one image."""
        return sum(layer.macs_after for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {**asdict(self), "macs_before": self.macs_before, "macs_after": self.macs_after}

    def table(self) -> list[list[str]]:
        """Rows of text, the heading first."""
        measured = any(layer.error is not None for layer in self.layers)
        rows = [["layer", "kind", "alpha in", "alpha out", "MACs before", "MACs after", *["error"] * measured, "why"]]
        for layer in self.layers:
            alphas = [f"{alpha:.3g}" if layer.octave else "dense" for alpha in (layer.alpha_in, layer.alpha_out)]
            error = ["" if layer.error is None else f"{layer.error:.3f}"] * measured
            rows.append(
                [layer.name, layer.kind, *alphas, f"{layer.macs_before:,}", f"{layer.macs_after:,}", *error, layer.why]
            )
        return rows

    def summary(self) -> str:
        """Costs and borders in a few lines."""
        convs = [layer for layer in self.layers if layer.convolves]
        octave = sum(layer.octave for layer in convs)
        share = self.macs_after / self.macs_before if self.macs_before else 1.0
        counts = {kind: sum(kind == other for other, _ in self.borders) for kind in ("merge", "split")}
        lines = [
            f"{octave} of {len(convs)} convolutions are octave; MACs {self.macs_before:,} -> {self.macs_after:,} "
            f"({share:.1%}); borders: {counts['merge']} Merge, {counts['split']} Split",
            *self.notes,
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{text_table(self.table())}\n\n{self.summary()}"
