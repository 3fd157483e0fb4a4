"""What runs each part of a deployed network."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A part of a deployed network, which runs after the parts before it.

    Attributes:
        engine: what runs it: ``"native"``, ``"cuda"``, ``"inductor"``, or ``"eager"`` for PyTorch as it is.
        operations: of the captured network; 0 where it was not captured.
        multiply_adds: those of its convolutions and matrix products for the example; 0 if they were not counted.
        why: for operations that an engine does not know: which ones, and what it does not know.
    """

    engine: str
    operations: int = 0
    multiply_adds: int = 0
    why: tuple[str, ...] = ()


class Report(tuple[Part, ...]):
    """The parts in the order in which they run; printed, a line for each."""

    def __str__(self) -> str:
        total = sum(part.multiply_adds for part in self)
        lines = []
        for part in self:
            facts = [f"{part.operations} operations"] if part.operations else []
            facts += [f"{part.multiply_adds / total:.1%} of the multiply-adds"] if part.multiply_adds else []
            lines.append(f"{part.engine}: {', '.join(facts)}" if facts else part.engine)
            lines += [f"    {reason}" for reason in dict.fromkeys(part.why)]
        return "\n".join(lines)
