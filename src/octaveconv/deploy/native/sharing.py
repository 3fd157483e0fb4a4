"""What calls at the same time share: the process's threads, and a network's programs and scratch memory."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from .program import Array, Frame, Program

KEPT = 32  # programs of a network: those used last
KEPT_BYTES = 2**28  # of their tables; one is kept in any case


class Lock:
    """A lock that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """In a forked child: forget who holds it."""
        self._lock = threading.Lock()


class Threads:
    """How many threads run, in all networks of this process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.running = 0

    def take(self, wanted: int, limit: int) -> int:
        """So many threads, or those that the limit leaves, but one in any case: the caller's."""
        with self._lock:
            taken = max(1, min(wanted, limit - self.running))
            self.running += taken
            return taken

    def give_back(self, taken: int) -> None:
        """After a call."""
        with self._lock:
            self.running -= taken


class Recent:
    """The values used last, by key: at most ``count``, and as long as ``fits`` says so."""

    def __init__(self, count: int, fits: Callable[[list[Any]], bool] = lambda values: True) -> None:
        self._count, self._fits = count, fits
        self._values: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any) -> Any:
        """The value, or None."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Any, value: Any) -> Any:
        """The value that is there, or else this one; the least recently used ones go."""
        value = self._values.setdefault(key, value)
        self._values.move_to_end(key)
        while len(self._values) > self._count or (len(self._values) > 1 and not self._fits(self.values())):
            self._values.popitem(last=False)
        return value

    def keep(self, wanted: Callable[[Any], bool]) -> None:
        """Forget the other values."""
        for key in [key for key, value in self._values.items() if not wanted(value)]:
            del self._values[key]

    def values(self) -> list[Any]:
        """All of them, the least recently used first."""
        return list(self._values.values())


class Programs:
    """The programs of a network for the sizes used last, and their scratch memory.

    A call takes a `Frame`, in memory that is large enough for each program that is kept, and gives it back: calls in
    turn use the same memory, whatever their sizes.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._programs = Recent(KEPT, lambda kept: sum(each.nbytes for each in kept) <= KEPT_BYTES)
        self._idle: list[Frame] = []  # the least recently used first
        self._largest = 0

    def get(self, key: Any, make: Callable[[], Program]) -> Program:
        """The program with this key; other calls go on while it is made."""
        with self._lock:
            program: Program | None = self._programs.get(key)
        if program is None:
            made = make()
            with self._lock:
                program = self._programs.put(key, made)
                self._shrink()
        return program

    def keep(self, wanted: Callable[[Program], bool]) -> None:
        """Forget the other programs."""
        with self._lock:
            self._programs.keep(wanted)
            self._idle = [frame for frame in self._idle if wanted(frame.program)]
            self._shrink()

    def _shrink(self) -> None:
        self._largest = max((each.scratch for each in self._programs.values()), default=0)
        self._idle = [frame for frame in self._idle if frame.scratch.nbytes <= self._largest]

    def take(self, program: Program) -> Frame:
        """A frame of this program that no other call uses."""
        with self._lock:
            for frame in reversed(self._idle):
                if frame.program is program:
                    self._idle.remove(frame)
                    return frame
            scratch = self._idle.pop(0).scratch if self._idle else None
            size = max(self._largest, program.scratch)
        if scratch is None or scratch.nbytes < program.scratch:
            del scratch
            scratch = new_scratch(size)
        return Frame(program, scratch)

    def give_back(self, frame: Frame) -> None:
        """After a call. What more calls at once than threads have used is freed."""
        with self._lock:
            if frame.scratch.nbytes <= self._largest and len(self._idle) < torch.get_num_threads():
                self._idle.append(frame)


def new_scratch(size: int) -> Array:
    """So many bytes, with any content, at the beginning of a line of the cache."""
    return torch.empty(size, dtype=torch.uint8, device="cpu").numpy()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()
THREADS = Threads()
measuring = Lock()  # held by whoever measures


def _renew() -> None:
    for lock in list(_locks):
        lock.renew()
    THREADS.running = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
