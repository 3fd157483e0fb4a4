"""The roofline: how close a time is to what the GPU's arithmetic and memory allow, from counts and measured rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .._modes import DTYPES
from .cases import Case
from .measure import Call, cuda_events

COPY_BYTES, MATRIX = 1 << 30, 8192  # enough to fill any GPU, and more than its caches hold
PASSES = {"infer": 1, "train": 3}  # a training step: forward, gradient of the maps, gradient of the weights
RUNS = 20


def counts(case: Case, batch_size: int, dtype: str, mode: str) -> dict[str, int]:
    """A lower bound on the floating-point operations and bytes of one call.

    Each multiply-add is two operations. Bytes: the outputs of convolutions and linear layers are written once and read
    once, and the weights are read once. A training step counts as three such passes. Norms, activations, residuals and
    the optimizer do not count: each can be fused with a pass that does.

    Example:
        >>> counts(Case("dense twin", 0, 100, torch.nn.Identity(), params=10, map_elements=50), 2, "bf16", "infer")
        {'flops': 400, 'bytes': 420}
    """
    size = torch.empty(0, dtype=DTYPES[dtype]).element_size()
    moved = size * (case.params + 2 * batch_size * case.map_elements)
    return {"flops": PASSES[mode] * 2 * batch_size * case.macs, "bytes": PASSES[mode] * moved}


def rates(
    dtype: str,
    device: str = "cuda",
    copy_bytes: int = COPY_BYTES,
    matrix: int = MATRIX,
    clock: Callable[[Call], float] = cuda_events,
) -> dict[str, float]:
    """The rates that the device reaches in the two simplest kernels: the best of several runs of each.

    Returns:
        ``copy_bytes_per_s``, bytes read plus bytes written in a copy; ``matrix_flops_per_s`` in a product of square
        matrices.

    Example:
        >>> rates("fp32", "cpu", copy_bytes=1000, matrix=10, clock=lambda call: call() is None or 0.5)
        {'copy_bytes_per_s': 4000.0, 'matrix_flops_per_s': 4000.0}
    """
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a = torch.randn(matrix, matrix, device=device).to(DTYPES[dtype])
    calls: dict[str, tuple[Call, float]] = {
        "copy_bytes_per_s": (lambda: target.copy_(source), 2.0 * copy_bytes),
        "matrix_flops_per_s": (lambda: a @ a, 2.0 * matrix**3),
    }
    found = {}
    for name, (call, amount) in calls.items():
        call()
        found[name] = amount / min(clock(call) for _ in range(RUNS))
    return found


def shares(figures: dict[str, Any], count: dict[str, int], rate: dict[str, float]) -> dict[str, Any]:
    """The rates that a timed network reaches, as shares of the measured ones.

    Args:
        figures: with ``median``, the seconds of a call.
        count: of that call; see `counts`.
        rate: see `rates`.

    Example:
        >>> rate = {"copy_bytes_per_s": 1000.0, "matrix_flops_per_s": 2000.0}
        >>> shares({"median": 0.5}, {"flops": 500, "bytes": 100}, rate)
        {'flops': 500, 'bytes': 100, 'matrix_share': 0.5, 'copy_share': 0.2}
    """
    matrix = count["flops"] / figures["median"] / rate["matrix_flops_per_s"]
    return count | {"matrix_share": matrix, "copy_share": count["bytes"] / figures["median"] / rate["copy_bytes_per_s"]}
