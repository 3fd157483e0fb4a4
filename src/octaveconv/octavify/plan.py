"""Plan: what `octavify` did with each layer, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .._text import text_table
from .repair import RepairStep


@dataclass(frozen=True)
class LayerPlan:
    """One layer of the given network.

    Attributes:
        name, kind: its name in the network, and the type of its module.
        alpha_in, alpha_out: low-frequency share of its channels; both 0 for a layer that stays as it is.
        why: what keeps its input or output dense, if something does.
        macs_before, macs_after: multiply-accumulates for one image, as given and in the octave network.
        cost: with a sample, how far the network's answers are expected to diverge because its output has low channels
            (see `RepairStep`); layers whose outputs are added share the number.
        convolves: whether it is a convolution, or became one: a linear layer over the channels of each pixel.
    """

    name: str
    kind: str
    alpha_in: float
    alpha_out: float
    why: str
    macs_before: int
    macs_after: int
    cost: float | None = None
    convolves: bool = False

    @property
    def octave(self) -> bool:
        """Whether it takes or returns an octave."""
        return bool(self.alpha_in or self.alpha_out)


@dataclass(frozen=True)
class PartPlan:
    """One module of a network that torch.fx cannot trace as a whole.

    Attributes:
        name, kind: its name in the network, "" for the network itself, and its type.
        calls: how often the network calls it.
        why: why it was not converted as one part; empty if it was.
    """

    name: str
    kind: str
    calls: int
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """What `octavify` did. ``print(plan)`` shows a table.

    Attributes:
        layers: a `LayerPlan` for every layer that has parameters, takes multiply-accumulates or was registered, in
            the order of their calls.
        borders: for each border placed, ``"merge"`` or ``"split"`` and the layer or operation behind which it stands.
        conversion: what `rebuild` needs to make this network from the dense one: ``alphas``, the alpha wanted for
            each convolution, and the other arguments that decide, ``input_size``, ``keep``, ``min_size``, ``stem``;
            ``octave``, how many layers became octave; ``registered``, the types that `register_layer` was told about,
            if there are any in the network. It is plain data, for JSON.
        notes: what else the caller must know.
        steps: with a sample, what was done to keep the dense network's answers, and what each step brought.
        parts: of a network that could not be traced as a whole, a `PartPlan` for each module that was converted by
            itself, and for each that was not, and why. Their borders are in ``borders``; between parts, and to what is
            kept, plain tensors pass.

    Example:
        >>> import torch, octaveconv as oc
        >>> model = torch.nn.Sequential(*(torch.nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8)))
        >>> octave, plan = oc.octavify(model, 0.5, torch.zeros(1, 3, 16, 16))
        >>> print(plan)
        layer    kind  alpha in  alpha out  MACs before  MACs after                                            why
        0      Conv2d     dense      dense       55,296      55,296               stem, octave only with stem=True
        1      Conv2d         0        0.5      147,456      92,160  input dense: stem, octave only with stem=True
        2      Conv2d       0.5          0      147,456      92,160    output dense: not between two octave layers
        <BLANKLINE>
        2 of 3 convolutions are octave; MACs 350,208 -> 239,616 (68.4%); borders: 0 Merge, 0 Split
    """

    layers: list[LayerPlan]
    borders: list[tuple[str, str]]
    conversion: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)
    steps: list[RepairStep] = field(default_factory=list)
    parts: list[PartPlan] = field(default_factory=list)

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
        measured = any(layer.cost is not None for layer in self.layers)
        rows = [["layer", "kind", "alpha in", "alpha out", "MACs before", "MACs after", *["cost"] * measured, "why"]]
        for layer in self.layers:
            alphas = [f"{alpha:.3g}" if layer.octave else "dense" for alpha in (layer.alpha_in, layer.alpha_out)]
            cost = ["" if layer.cost is None else f"{layer.cost:.4f}"] * measured
            rows.append(
                [layer.name, layer.kind, *alphas, f"{layer.macs_before:,}", f"{layer.macs_after:,}", *cost, layer.why]
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
            *(f"{step}{'' if step.kept else ' (not kept)'}" for step in self.steps),
            *self._told_parts(),
            *self.notes,
        ]
        return "\n".join(lines)

    def _told_parts(self) -> list[str]:
        """Which parts of a network were converted, and why no larger ones."""
        if not self.parts:
            return []
        converted = ", ".join(part.name or "the network" for part in self.parts if not part.why)
        kept: dict[tuple[str, str], list[str]] = {}
        for part in self.parts:
            if part.why:
                kept.setdefault((part.kind, part.why), []).append(part.name or "the network")
        told = [
            f"not as one: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} ({kind}): {why}"
            for (kind, why), names in kept.items()
        ]
        return [f"converted in parts: {converted}", *told]

    def nothing(self) -> str:
        """That no convolution became octave, and why."""
        convs = [layer for layer in self.layers if layer.convolves]
        reasons = Counter(layer.why for layer in convs or self.layers).most_common(4)
        listed = "; ".join(f"{why} ({count})" for why, count in reasons if why)
        return f"0 of {len(convs)} convolutions became octave: {listed or 'there is none'}"

    def __str__(self) -> str:
        return f"{text_table(self.table())}\n\n{self.summary()}"
