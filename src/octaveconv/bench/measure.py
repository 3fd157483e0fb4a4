"""The one stopwatch: it times several callables in turns, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

import ctypes
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PAUSE = 0.012  # seconds: idle workers of libgomp and oneTBB spin for less than this before they sleep
WARM = 0.03  # seconds: workers of ONNX Runtime spin for less than this, and it wakes the processor up
Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and the quartiles of ``runs`` calls."""

    median: float
    lower: float
    upper: float
    runs: int


def wall_clock(call: Call) -> float:
    """Seconds that ``call`` takes to return.

    Example:
        >>> wall_clock(lambda: None) < wall_clock(lambda: sum(range(100_000)))
        True
    """
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cuda_events(call: Call) -> float:
    """Seconds between two events on the current CUDA stream, one before and one after the work of ``call``.

    The device is idle at the first event. So where the CPU takes longer to launch the kernels than the GPU to run them,
    that time counts, as it does for whoever waits for the answer.

    Example:
        >>> x = torch.ones(8, device="cuda")  # doctest: +SKIP
        >>> cuda_events(lambda: x + x) > 0  # doctest: +SKIP
        True
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()  # type: ignore[no-untyped-call]
    call()
    end.record()  # type: ignore[no-untyped-call]
    end.synchronize()  # type: ignore[no-untyped-call]
    return float(begin.elapsed_time(end)) / 1e3  # type: ignore[no-untyped-call]


def interleaved(
    calls: Mapping[str, Call],
    runs: int = 30,
    warm_up: int = 3,
    *,
    limit: float | None = None,
    isolate: bool = False,
    clock: Callable[[Call], float] = wall_clock,
) -> dict[str, Timing]:
    """Time each of ``calls``, one call of each per round.

    Args:
        calls: what to time, by name. Each finishes its work before it returns, or puts it on CUDA's current stream.
        runs: timed rounds, at least 2.
        warm_up: untimed rounds before them.
        limit: begin no round after this many seconds of timing, except the second.
        isolate: before every timed call sleep for `PAUSE`, then make untimed calls of the same callable for `WARM`, at
            least one. Needed where the calls belong to several runtimes: the workers of one keep spinning after its
            call and would take a core from the next, and its weights fill the cache.
        clock: makes one call and returns its seconds: `wall_clock` or `cuda_events`.

    Returns:
        The `Timing` of each call, by name.

    Example:
        >>> interleaved({"a": lambda: None, "b": lambda: sum(range(1000))}, runs=5)["b"].runs
        5
    """
    _keep_freed_memory()
    for _ in range(warm_up):
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    end = math.inf if limit is None else time.perf_counter() + limit
    for done in range(runs):
        if done >= 2 and limit is not None and time.perf_counter() > end:
            break
        for name, call in calls.items():
            if isolate:
                time.sleep(PAUSE)
                warm = time.perf_counter() + WARM
                clock(call)  # the clock waits for a GPU; plain calls would queue up thousands of launches
                while time.perf_counter() < warm:
                    clock(call)
            seconds[name].append(clock(call))
    timings = {}
    for name, values in seconds.items():
        lower, median, upper = statistics.quantiles(values, n=4)
        timings[name] = Timing(median, lower, upper, len(values))
    return timings


def unrest(timings: Iterable[Timing]) -> float:
    """By how much the times of one call vary on this machine: upper quartile over lower, the mean of all calls.

    Example:
        >>> unrest([Timing(2.0, 1.0, 3.0, 9), Timing(2.0, 2.0, 2.0, 9)])
        2.0
    """
    return statistics.fmean(timing.upper / timing.lower for timing in timings)


def protocol(runs: int, pause_s: float, warm_s: float | None) -> str:
    """How isolated calls were timed, in words; no ``warm_s`` means a single untimed call.

    Example:
        >>> protocol(30, PAUSE, WARM)
        '30 interleaved runs, each after 12 ms of sleep and 30 ms of untimed calls'
    """
    untimed = "one untimed call" if warm_s is None else f"{warm_s * 1e3:g} ms of untimed calls"
    return f"{runs} interleaved runs, each after {pause_s * 1e3:g} ms of sleep and {untimed}"


def peak_bytes(call: Call, device: str = "cpu") -> int:
    """The most bytes that ``call`` holds at any moment, beyond what was held before it.

    This sees only PyTorch's allocator. It does not count weights that exist already, nor what other runtimes allocate.

    Example:
        >>> 4000 <= peak_bytes(lambda: torch.ones(1000)) < 4100
        True
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        call()
    with tempfile.TemporaryDirectory() as folder:
        watched.export_chrome_trace(str(trace := Path(folder) / "trace.json"))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def _silent() -> Iterator[None]:
    """Discard what is written to file descriptor 2: the profiler's C++ library logs there."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks up to 1 GiB instead of returning them to the system.

    Otherwise the order of allocations decides whether glibc returns the large feature maps, whose pages the next call
    then faults in again: in one process a network took 30 ms at every call, in the next process 40 ms.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(mmap_threshold, 1 << 30)
