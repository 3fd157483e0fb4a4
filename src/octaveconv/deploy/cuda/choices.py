"""Choices: the fastest of several ways to compute the same, measured once and kept in a file."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ... import env
from ..._text import one_line
from ..cache import Table
from .graphs import Graph

Call = Callable[[], Any]
ROUNDS, REPEATS = 5, 10
# How much two ways may differ, relative to the largest value: more than rounding (TF32's in float32) is a wrong result.
LIMITS = {torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 1e-1}
SOURCES = [Path(__file__).with_name("steps.py"), *sorted(Path(__file__).parents[2].glob("backends/*triton*.py"))]


class Choices:
    """The fastest way by key, in one file for each kind of device, which several processes may use at once.

    Args:
        device: a CUDA device, or the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.table = Table(f"choices-{name.replace(' ', '-').replace('/', '-')}-{_version()}.json")
        self.path = self.table.path

    def fastest(self, key: str, makers: Mapping[str, Callable[[], Call]]) -> tuple[str, Call]:
        """The name of the fastest way, and its call.

        Args:
            key: says what is computed and for which sizes; if it is known, nothing is measured.
            makers: each makes the call of one way. The first one is correct and must run; another one that fails, or
                returns something else, is omitted with a warning.
        """
        if len(makers) == 1:
            [(name, make)] = makers.items()
            return name, make()
        digest = hashlib.sha256(key.encode()).hexdigest()[:20]
        name = str(self.table.get(digest).get("fastest"))
        if name in makers:
            return name, makers[name]()
        calls = _checked(makers)
        times = seconds(calls, self.device)
        name = min(times, key=lambda way: times[way])
        times_of = {way: round(s * 1e6, 2) for way, s in times.items()}
        self.table.put(digest, {"fastest": name, "microseconds": times_of})
        return name, calls[name]


def seconds(calls: Mapping[str, Call], device: torch.device) -> dict[str, float]:
    """The shortest time of each call, measured in turns; on a GPU without the time to launch it."""
    clocks = {name: _clock(call, device) for name, call in calls.items()}
    times = [{name: clock() for name, clock in clocks.items()} for _ in range(ROUNDS)]
    return {name: min(round[name] for round in times) for name in calls}


def _clock(call: Call, device: torch.device) -> Callable[[], float]:
    def repeated() -> None:
        for _ in range(REPEATS):
            call()

    if device.type == "cuda":
        graph = Graph(repeated)
        return lambda: graph.seconds() / REPEATS

    def clock() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return clock


def _checked(makers: Mapping[str, Callable[[], Call]]) -> dict[str, Call]:
    """The calls that run and return what the first one returns."""
    (first, make), *others = makers.items()
    calls = {first: make()}
    expected = calls[first]()
    for name, make in others:
        try:
            call = make()
            _check(call(), expected)
        except Exception as error:  # compilers and kernels may raise anything
            why = f"{type(error).__name__}: {one_line(error, 200)}"
            warnings.warn(f"deploy omits the form {name!r}: {why}", RuntimeWarning, stacklevel=3)
        else:
            calls[name] = call
    return calls


def _check(result: Any, expected: Any) -> None:
    for got, wanted in zip(pytree.tree_leaves(result), pytree.tree_leaves(expected), strict=True):
        if isinstance(wanted, Tensor):
            far, scale = (got.float() - wanted.float()).abs().max().item(), wanted.float().abs().max().item()
            if not far <= LIMITS[wanted.dtype] * scale:  # written so that NaN is wrong too
                raise ArithmeticError(f"its result is off by {far:.2g}, where the largest value is {scale:.2g}")


@cache
def _version() -> str:
    """A name for what the times depend on, apart from the device."""
    facts = env.facts()
    found = hashlib.sha256(f"{facts['torch']} {facts['triton']} {torch.backends.cudnn.version()}".encode())
    for path in SOURCES:
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
