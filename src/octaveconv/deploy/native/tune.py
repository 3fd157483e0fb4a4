"""Tune: how the threads share each layer and which loop is outside, chosen by measurement inside the running network.

A layer that runs alone finds its weights in the cache; in the network it does not. So all layers are tried at once, and
each phase, which ends at a barrier, takes what was fastest for it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SECONDS = 1.0  # of each round, about


def tune(
    layers: Array, phase_starts: Array, same: Array, tunable: Array, threads: int, run: Callable[[Array], None]
) -> None:
    """Set ``channel_split`` and ``pixels_outside`` of the ``layers`` where ``tunable``.

    Phases with the same number in ``same`` are one phase of several images. ``run`` runs the network once and writes
    the seconds of each phase into the array it is given.
    """
    splits = [n for n in range(1, threads + 1) if threads % n == 0]
    choices = np.array(list(itertools.product(splits, (0, 1))))  # [choices, 2]
    place = np.searchsorted(phase_starts, np.arange(len(layers)), side="right") - 1
    rank = np.array([tunable[phase_starts[p] : i].sum() for i, p in enumerate(place)])  # among those of its phase
    several = np.array([tunable[phase_starts[p] : phase_starts[p + 1]].sum() > 1 for p in place])
    chosen = np.zeros(len(layers), int)  # of each layer, which choice

    def improve(where: Array) -> None:
        """Try every choice for the layers ``where``, one or all of each phase."""
        trials = [np.where(where, choice, chosen) for choice in range(len(choices))]
        best = _fastest(trials, apply, run, same)
        chosen[where] = best[same[place[where]]]

    def apply(trial: Array) -> None:
        layers["channel_split"], layers["pixels_outside"] = choices[trial].T

    improve(tunable)
    for i in range(rank[tunable].max(initial=0) + 1):
        if (where := tunable & several & (rank == i)).any():
            improve(where)
    apply(chosen)


def _fastest(trials: list[Array], apply: Callable[[Array], None], run: Callable[[Array], None], same: Array) -> Array:
    """For each number in ``same``, the trial in which its phases took the least time."""
    least = np.full((len(trials), same.max() + 1), np.inf)
    seconds = np.zeros(len(same))
    start = time.perf_counter()
    for _ in range(10):  # in turns, so that a slow moment of the machine affects all of them
        for least_so_far, trial in zip(least, trials):
            apply(trial)
            run(seconds)
            np.minimum(least_so_far, np.bincount(same, seconds), out=least_so_far)
        if time.perf_counter() - start > SECONDS:
            break
    fastest: Array = least.argmin(0)
    return fastest
