"""Tune: how the threads share each layer and which loop is outside, by rules or by measurement.

A layer that runs alone finds its weights in the cache; in the network it does not. So the measurement tries all layers
at once, and each phase, which ends at a barrier, takes what was fastest for it. The rules are what it mostly finds:
``experiments/tuning_rules.py`` compares them.

A choice is an array ``[layers, 2]``: the threads that share a layer's panels, while the others share its pixels, and
whether the loop over pixels is outside.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
SECONDS = 1.0  # of each round, about
TILE = 4  # pixels that make a thread's share worth while
HEAVY, LIGHT = 3 << 20, 128 << 10  # bytes of weights
MANY = 64  # pixels


class Work(NamedTuple):
    """What each layer of a network has to do in a phase: 0 for those that are no sums."""

    units: Array  # pixels, or 2x2 blocks: what threads may share
    pixels: Array
    panels: Array
    weights: Array  # bytes
    phase: Array


def ruled(work: Work, threads: int) -> Array:
    """A choice by rules, from what `tuned` chose for some networks and sizes.

    Threads share the pixels, unless one would get less than a tile of them, or the weights are so many that each thread
    should read only a part. The loop over pixels is outside where all weights stay in the cache meanwhile.
    """
    splits = _splits(threads)
    enough = work.pixels[:, None] * splits >= TILE * threads  # pixels for each thread, by split
    enough[work.weights >= HEAVY] = splits == threads
    possible = splits <= np.maximum(work.panels, 1)[:, None]
    wanted = np.where((enough & possible).any(1), (enough & possible).argmax(1), possible.sum(1) - 1)
    outside = (work.weights < LIGHT) & (work.pixels >= MANY) & (splits[wanted] == 1)
    return np.stack([splits[wanted], outside], axis=1).astype(np.int32)


def _splits(threads: int) -> Array:
    return np.array([n for n in range(1, threads + 1) if threads % n == 0])


def tuned(work: Work, threads: int, run: Callable[[Array], Array]) -> Array:
    """The choice that is fastest, measured.

    Args:
        work: of each layer.
        threads: how many run it.
        run: runs the network once with a choice, and returns the seconds of each phase.
    """
    choices = np.array(list(itertools.product(_splits(threads), (0, 1))), np.int32)  # [choices, 2]
    tunable = work.units > 0
    rank = np.array(  # of each layer in its phase
        [np.count_nonzero(tunable[:i] & (work.phase[:i] == phase)) for i, phase in enumerate(work.phase)], int
    )
    several = np.bincount(work.phase, tunable)[work.phase] > 1
    chosen = np.zeros(len(tunable), int)  # of each layer, which choice

    def improve(where: Array) -> None:
        """Try every choice for the layers ``where``, one or all of each phase."""
        trials = [choices[np.where(where, choice, chosen)] for choice in range(len(choices))]
        chosen[where] = _fastest(trials, run)[work.phase[where]]

    improve(tunable)
    for i in range(rank[tunable].max(initial=0) + 1):
        if (where := tunable & several & (rank == i)).any():
            improve(where)
    ways = [choices[chosen], ruled(work, threads)]  # on a busy machine the first may be chance
    return ways[int(_least(ways, run).sum(1).argmin())]


def _fastest(trials: list[Array], run: Callable[[Array], Array]) -> Array:
    """For each phase, the trial in which it took the least time."""
    fastest: Array = _least(trials, run).argmin(0)
    return fastest


def _least(trials: list[Array], run: Callable[[Array], Array]) -> Array:
    """The least time of each phase in each trial."""
    start = time.perf_counter()
    least = np.array([run(trial) for trial in trials])
    for _ in range(9):  # in turns, so that a slow moment of the machine affects all of them
        if time.perf_counter() - start >= SECONDS:
            break
        least = np.minimum(least, [run(trial) for trial in trials])
    return least


def kept(choices: Mapping[int, Array]) -> dict[str, list[int]]:
    """Choices by the number of threads, as they are kept in a file."""
    return {str(threads): choice.ravel().tolist() for threads, choice in choices.items()}


def restored(row: Mapping[str, Any], work: Work) -> dict[int, Array]:
    """The choices that `kept` gave, without those that cannot be."""
    choices = {}
    for threads, numbers in row.items():
        if not (threads.isdecimal() and isinstance(numbers, list) and all(type(each) is int for each in numbers)):
            continue
        choice = np.array(numbers, np.int32)
        if choice.size == 2 * len(work.units):
            choice = choice.reshape(-1, 2)
            splits, outside = choice.T
            if (splits >= 1).all() and (splits <= int(threads)).all() and ((outside == 0) | (outside == 1)).all():
                choices[int(threads)] = choice
    return choices
