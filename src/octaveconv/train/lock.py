"""One process at a time in a folder: a lock of the system's, which goes with the process that holds it."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import UsageError

PATIENCE = 10.0  # seconds: a process that was told to end may still be saving


def take(folder: Path) -> AbstractContextManager[Any]:
    """Be the only process in a folder, from this call to the end of the block at the latest.

    However the process ends, the system lets go of the lock; the file that stays behind locks nothing.

    Raises:
        UsageError: another process is there; the message names it, and what to do.
        OSError: nothing can be written there.
    """
    try:
        return FileLock(folder / "train.lock").acquire(timeout=PATIENCE)
    except Timeout as error:
        raise UsageError(
            f"{folder} is in use by {_holder(folder)}: wait until that has ended, or stop it (if it is long gone, as a "
            f"disk without locks of the system's may not notice, delete {folder / 'train.lock'})"
        ) from error
    except NotImplementedError:  # some cluster file systems: a run without a lock is better than none
        print(f"octaveconv: no locks in {folder}: make sure that no other process trains there", file=sys.stderr)
        return nullcontext()


def _holder(folder: Path) -> str:
    """Who started last, as the run's env.json tells."""
    try:
        newest = max(folder.glob("env*.json"), key=lambda path: path.stat().st_mtime)
        found = json.loads(newest.read_text())
        return f"process {found['process']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
