"""What the times mean: which dense candidate is the one to beat, and how much of the saved work becomes saved time.

T = MACs(dense twin) / MACs(octave) is what theory promises; S = time(fastest dense) / time(octave) is what we measure.
The fastest dense candidate is chosen from all runtimes, all layouts and, if another dense network was named, both
networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .measure import Timing

FINALISTS = {"dense": 3, "octave": 2}
NEAR = 1.15  # the quick time of a finalist over that of the fastest is at most this


@dataclass
class Candidate:
    """One network in one runtime and layout, with its figures. Alpha 0 means dense."""

    network: str
    alpha: float
    runtime: str
    layout: str | None
    engine: str | None
    difference: float  # from eager's logits, relative to the largest of them
    peak_bytes: int | None
    prepare_s: float
    call: Callable[[], Any] | None = None
    quick: Timing | None = None
    final: Timing | None = None

    @property
    def name(self) -> str:
        """Its name in the tables."""
        return ", ".join(filter(None, (self.network, self.runtime, self.layout)))

    @property
    def median(self) -> float:
        """Seconds per call, from the final timing if there is one."""
        timing = self.final or self.quick
        assert timing is not None
        return timing.median

    def to_dict(self) -> dict[str, Any]:
        """Plain data: everything but the call."""
        figures = {key: value for key, value in vars(self).items() if key not in ("call", "quick", "final")}
        timings = {"quick": self.quick, "final": self.final}
        return figures | {key: None if timing is None else asdict(timing) for key, timing in timings.items()}


def fastest(candidates: Sequence[Candidate], alpha: float) -> Candidate:
    """The fastest candidate at ``alpha``; at 0, the fastest of all dense ones in any runtime."""
    return min((one for one in candidates if one.alpha == alpha), key=lambda one: one.median)


def finalists(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates whose quick times are near the fastest of their alpha: they are timed again, with many runs.

    Lower quartiles are compared, so that noise in a few of the quick runs does not drop the fastest candidate.
    """

    def pace(one: Candidate) -> float:
        assert one.quick is not None
        return one.quick.lower

    chosen = []
    for alpha in sorted({one.alpha for one in candidates}):
        own = sorted((one for one in candidates if one.alpha == alpha), key=pace)
        near = [one for one in own if pace(one) <= NEAR * pace(own[0])]
        chosen += near[: FINALISTS["octave" if alpha else "dense"]]
    return chosen


def ratios(candidates: Sequence[Candidate], macs: dict[float, int]) -> list[dict[str, Any]]:
    """T, S and S/T of each alpha, from the finalists' times.

    Args:
        candidates: those of one batch size, timed; those without a final timing are ignored.
        macs: multiply-adds of one image by alpha; those of the dense twin under 0.

    Example:
        >>> dense = Candidate("dense twin", 0, "eager", "contiguous", None, 0, None, 0, final=Timing(3.0, 3.0, 3.0, 9))
        >>> octave = Candidate("alpha 0.5", 0.5, "eager", "contiguous", None, 0, None, 0, final=Timing(2, 2, 2, 9))
        >>> [(row["t"], row["s"], row["s_over_t"]) for row in ratios([dense, octave], {0: 200, 0.5: 100})]
        [(2.0, 1.5, 0.75)]
    """
    timed = [one for one in candidates if one.final]
    dense = fastest(timed, 0)
    rows = []
    for alpha in sorted({one.alpha for one in timed} - {0}):
        best = fastest(timed, alpha)
        t, s = macs[0] / macs[alpha], dense.median / best.median
        rows.append({"alpha": alpha, "macs": macs[alpha], "t": t, "s": s, "s_over_t": s / t, **_shown(best)})
    return rows


def best_dense(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The dense finalist that all octave networks are compared with."""
    return _shown(fastest([one for one in candidates if one.final], 0))


def _shown(candidate: Candidate) -> dict[str, Any]:
    assert candidate.final is not None
    figures = {key: getattr(candidate, key) for key in ("network", "runtime", "layout", "engine")}
    return figures | asdict(candidate.final)
