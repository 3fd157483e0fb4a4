"""Working as one of several processes that torchrun started; with a single process, everything here is trivial."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from .errors import UsageError


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, and leave them at the end of the block.

    Args:
        device: ``cpu``, or ``cuda`` for this process's own GPU.

    Yields:
        The device to use.

    Raises:
        UsageError: there is no such GPU.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda":
        device = f"cuda:{local_rank}"
    if device.startswith("cuda"):
        _check_gpu(torch.device(device).index or 0)
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield device
        return
    store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.PrefixStore(agreed_name(store, rank, size), store)  # type: ignore[attr-defined]
    # gloo for plain data beside NCCL: it notices at once that a peer has died.
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def agreed_name(store: Any, rank: int, size: int, patience: float = 1800) -> str:
    """A name that all processes of this start share through ``store``, and that no earlier start has used.

    After a failure torchrun gives the processes that it restarts the store of those before them, with addresses that no
    longer answer (https://github.com/pytorch/pytorch/issues/135712). The number of restarts cannot tell the starts
    apart: each machine has a count of its own.

    Raises:
        RuntimeError: the others have not arrived within ``patience`` seconds.
    """
    mine, end = uuid.uuid4().hex, time.monotonic() + patience
    store.set(f"hello {rank}", mine)
    while time.monotonic() < end:
        if rank:
            first, *seen = str(store.get("seen"), "ascii").split()
            if mine in seen:  # so the first process belongs to this start, too
                store.set(f"name {rank}", first)
                return first
        else:
            store.set("seen", " ".join([mine, *(store.get(f"hello {other}").decode() for other in range(1, size))]))
            told = [name for other in range(1, size) if store.check([name := f"name {other}"])]
            if [store.get(name).decode() for name in told] == [mine] * (size - 1):
                return mine
        time.sleep(0.02)
    raise RuntimeError(f"the {size} processes have not found each other within {patience:g} seconds")


def _check_gpu(index: int) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise UsageError(
            f"there is no GPU number {index}, PyTorch sees {count}: use device cpu, or start fewer processes"
        )


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(mine: Any) -> list[Any]:
    """Every process's piece of plain data, in the order of their ranks, on each of them.

    Raises:
        RuntimeError: another process ended before it called this.
    """
    if world_size() == 1:
        return [mine]
    shares: list[Any] = [None] * world_size()
    try:
        dist.all_gather_object(shares, mine)
    except RuntimeError as error:
        raise RuntimeError("another process has ended early: its own message says why") from error
    return shares
