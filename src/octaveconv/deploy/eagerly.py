"""PyTorch as a part of a deployed network: what must hold where it computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_forked = False


@contextmanager
def in_pytorch() -> Iterator[None]:
    """Let PyTorch compute a part of an answer: without gradients and autocast, and in a forked child with one thread.

    A child has none of the threads that its parent's PyTorch has started, and would wait for them.
    """
    threads = torch.get_num_threads()
    if _forked:
        torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        if _forked:
            torch.set_num_threads(threads)


def is_forked() -> bool:
    """Whether this process was forked from one that had imported this package."""
    return _forked


def _fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fork)
