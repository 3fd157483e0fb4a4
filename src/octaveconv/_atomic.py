"""Files that appear complete or not at all, on the disk and not only in its cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that replaces ``path`` at the end of the block; after an error ``path`` is unchanged."""
    part = _part(path)
    try:
        with part.open("xb") as file:
            yield file
            flush(file)
        os.replace(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write text to a file that appears whole, in a folder that is made for it; or to a pipe or a terminal."""
    data = text.encode(errors="surrogateescape")  # of names of files that are not UTF-8
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with replacing(path) as file:
        file.write(data)


def link(source: Path, path: Path) -> None:
    """Make ``path`` a hard link to ``source``, or a copy where the file system has no hard links."""
    part = _part(path)
    try:
        try:
            os.link(source, part)
        except OSError:
            with source.open("rb") as whole, part.open("xb") as file:
                shutil.copyfileobj(whole, file, 2**20)
                flush(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # needed even here: replacing a file with a link to itself does nothing


def flush(file: BinaryIO) -> None:
    """Wait until everything written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _part(path: Path) -> Path:
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # left by a crash: it may be linked to a file in use, so never write into it
    return part
