"""The folder for what was built or measured for this machine, and the tables in it."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from filelock import FileLock

from .._atomic import replacing

ROWS = 2000  # of a table: the oldest are dropped


def cache_folder() -> Path:
    """``OCTAVECONV_CACHE``, or ``~/.cache/octaveconv``. It may not exist yet."""
    return Path(os.environ.get("OCTAVECONV_CACHE") or Path.home() / ".cache" / "octaveconv")


class Table:
    """Measurements by key in one file, which several processes may use at once; if it is damaged, they are made again.

    Args:
        name: the file's, in the folder.
    """

    def __init__(self, name: str) -> None:
        self.path = cache_folder() / name
        known = self._read()
        if known is None:
            warnings.warn(f"{self.path} is damaged: its measurements are made again", RuntimeWarning, stacklevel=2)
        self.known = known or {}

    def get(self, key: str) -> dict[str, Any]:
        """What is known, or nothing."""
        found: dict[str, Any] = self.known.get(key, {})
        return found

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Keep a row, with those that other processes found meanwhile."""
        self.known[key] = row
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=10):
                rows = (self._read() or {}) | self.known
                self.known = dict(list(rows.items())[-ROWS:])
                with replacing(self.path) as file:
                    file.write(json.dumps({"checksum": _digest(self.known), "rows": self.known}, indent=1).encode())
        except OSError as error:
            warnings.warn(f"deploy cannot store its measurements: {error}", RuntimeWarning, stacklevel=2)

    def _read(self) -> dict[str, Any] | None:
        """The rows in the file, if there is one; None if it is damaged."""
        try:
            data = self.path.read_bytes()
        except OSError:  # there is none yet
            return {}
        try:
            found = json.loads(data)
            sealed = isinstance(found.get("checksum"), str)  # earlier versions wrote the rows alone
            rows: dict[str, Any] = found["rows"] if sealed else found
            whole = all(isinstance(row, dict) for row in rows.values())
            return rows if whole and (not sealed or _digest(rows) == found["checksum"]) else None
        except (ValueError, KeyError, AttributeError, RecursionError):
            return None


def _digest(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
