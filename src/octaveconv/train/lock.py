"""One process at a time in a folder: a lock of the operating system, which ends with the process that holds it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .._text import say
from ..errors import UsageError

PATIENCE = 10.0  # seconds: a process that was told to end may still be saving


def take(folder: Path) -> AbstractContextManager[Any]:
    """Lock a folder for this process, from this call to the end of a ``with`` block.

    However the process ends, the system releases the lock; the file that stays behind locks nothing.

    Raises:
        UsageError: another process holds the lock; the message names it, and what to do.
        OSError: the folder cannot be written to.
    """
    try:
        return FileLock(folder / "train.lock").acquire(timeout=PATIENCE)
    except Timeout as error:
        raise UsageError(
            f"{folder} is in use by {_holder(folder)}: wait until it ends, or stop it (if it ended long ago, but the "
            f"file system did not release its lock, delete {folder / 'train.lock'})"
        ) from error
    except NotImplementedError:  # some cluster file systems: a run without a lock is better than none
        say(f"octaveconv: {folder} cannot be locked: make sure that no other process trains in it", error=True)
        return nullcontext()


def _holder(folder: Path) -> str:
    """The process that started last, according to the run's env.json."""
    try:
        newest = max(folder.glob("env*.json"), key=lambda path: path.stat().st_mtime)
        found = json.loads(newest.read_text())
        return f"process {found['process']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
