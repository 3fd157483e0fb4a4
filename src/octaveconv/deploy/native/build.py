"""Builds the native engine's library, and keeps it in a folder that only this user can write."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from ..._atomic import replacing
from ...errors import BackendUnavailable
from ..cache import cache_folder

PATIENCE = 300.0  # seconds for the compiler, which takes about 20


def compiler() -> list[str]:
    """The command of the C++ compiler: ``CXX``, g++ or clang++.

    Raises:
        BackendUnavailable: there is none, ``CXX`` is not a command, or this is Windows.
    """
    if sys.platform == "win32":
        raise BackendUnavailable("the native engine does not run on Windows: use it in WSL 2 (Linux)")
    given = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or ""
    try:
        command = shlex.split(given)
    except ValueError as error:
        raise BackendUnavailable(f"CXX is not a command: {given!r} ({error})") from error
    if not command:
        raise BackendUnavailable("the native engine needs a C++ compiler: install g++ or clang++, or set CXX")
    return command


def built(command: Sequence[str], sources: Sequence[Path], key: str) -> Path:
    """The library that ``command`` makes of ``sources``: kept under ``key``, and built if it is not there or damaged.

    Processes that need it at the same time build it once.

    Raises:
        BackendUnavailable: the compiler fails or does not end, or the folder cannot be written or is not private.
    """
    cache = cache_folder()
    path = cache / f"engine-{key}.so"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(cache)
        if not is_whole(path):
            with FileLock(path.with_suffix(".lock"), timeout=PATIENCE * 1.1):
                if not is_whole(path):
                    _compile(command, sources, path)
        _check_private(path)
    except Timeout as error:
        raise BackendUnavailable(f"another process has been building {path} for too long: stop it") from error
    except OSError as error:
        raise BackendUnavailable(
            f"the native engine cannot be kept in {cache} ({error}): set OCTAVECONV_CACHE to a folder of your own"
        ) from error
    return path


def is_whole(path: Path) -> bool:
    """Whether a library is what was built: loading a part of one would end the process."""
    digest = path.with_suffix(".sha256")
    return path.exists() and digest.exists() and digest.read_bytes() == _digest(path)


def _check_private(path: Path) -> None:
    """Refuse what another user may have written: it would be run."""
    facts = path.stat()
    if os.name == "posix" and (facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise BackendUnavailable(
            f"{path} belongs to another user or can be written by others, so no library is loaded from there: set "
            f"OCTAVECONV_CACHE to a folder of your own, or chmod 700 {path}"
        )


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).hexdigest().encode()


def _compile(command: Sequence[str], sources: Sequence[Path], path: Path) -> None:
    """Compile to a temporary file first: what is at ``path`` is always complete."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "engine.so"
        arguments = [*command, *map(str, sources), "-o", str(made)]
        if sys.stderr is not None and sys.stderr.isatty():
            print("octaveconv builds its engine for this CPU, once: about half a minute", file=sys.stderr, flush=True)
        process = subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            _, said = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
            raise BackendUnavailable(f"{command[0]} did not end within {PATIENCE:g} seconds") from error
        if process.returncode:
            line = next((line for line in said.splitlines() if "error" in line), said.strip())
            raise BackendUnavailable(f"{command[0]} could not compile the native engine: {line}")
        with replacing(path.with_suffix(".sha256")) as file:
            file.write(_digest(made))
        made.chmod(0o600)
        made.replace(path)
