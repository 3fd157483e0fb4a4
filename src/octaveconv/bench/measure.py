"""The one stopwatch: several callables timed in turns, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and the quartiles of ``runs`` calls."""

    median: float
    lower: float
    upper: float
    runs: int


def interleaved(calls: Mapping[str, Callable[[], Any]], runs: int = 30, warm_up: int = 3) -> dict[str, Timing]:
    """Time each of ``calls`` on the CPU, one call of each per round.

    Args:
        calls: what to time, by name; each does its whole work before it returns.
        runs: timed rounds, at least 2.
        warm_up: untimed rounds before.

    Example:
        >>> interleaved({"a": lambda: None, "b": lambda: sum(range(1000))}, runs=5)["b"].runs
        5
    """
    _keep_freed_memory()
    for _ in range(warm_up):
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    timings = {}
    for name, values in seconds.items():
        lower, median, upper = statistics.quantiles(values, n=4)
        timings[name] = Timing(median, lower, upper, runs)
    return timings


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks up to 1 GiB instead of returning them to the system.

    Whether it returns the large maps, to fault their pages in again at the next call, is decided by the order of
    allocations: in one process a network took 30 ms at every call, in the next 40 ms.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(mmap_threshold, 1 << 30)
