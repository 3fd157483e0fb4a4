"""How long a deployed network takes beside another one."""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

_SECONDS = 2.0  # of calls, at least
_ROUNDS = 9


def latency_share(network: nn.Module, other: nn.Module, inputs: tuple[Any, ...]) -> float:
    """The time of the deployed ``network`` as a share of that of the deployed ``other``, on the CPU or GPU they are on.

    The calls take turns; it is the ratio of medians.

    Raises:
        BackendUnavailable, UsageError: as of `deploy`.
    """
    from . import deploy

    deployed = [deploy(copy.deepcopy(each).eval(), inputs) for each in (network, other)]
    seconds: list[list[float]] = [[], []]
    begin = time.perf_counter()
    with torch.no_grad():
        for each in deployed:
            each(*inputs)
        while len(seconds[0]) < _ROUNDS or time.perf_counter() - begin < _SECONDS:
            for each, times in zip(deployed, seconds):
                start = time.perf_counter()
                _wait(each(*inputs))
                times.append(time.perf_counter() - start)
    ours, theirs = map(statistics.median, seconds)
    return ours / theirs


def _wait(answer: Any) -> None:
    """Until a GPU is done."""
    if isinstance(answer, Tensor) and answer.is_cuda:
        torch.cuda.synchronize()
