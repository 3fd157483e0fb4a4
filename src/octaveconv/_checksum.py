"""Checksums: whether a file is as it was written.

A safetensors file of ours has the SHA-256 of all its bytes in its metadata, computed with zeros where it stands itself.
A PyTorch checkpoint is a zip archive, in which each record has a CRC-32: PyTorch writes them, and does not check them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ._text import shown

Buffer = bytes | bytearray | memoryview
EMPTY = "0" * 64
_KEY = b'"checksum":"'
_BLOCK = 2**20
_SLACK = 2**24


def digest(head: Buffer, at: int, rest: Iterable[Buffer] = ()) -> str:
    """The checksum of ``head`` and ``rest``, in which it stands, or will stand, at the byte ``at`` of ``head``."""
    found, view = hashlib.sha256(), memoryview(head)
    for piece in itertools.chain((view[:at], EMPTY.encode(), view[at + 64 :]), rest):
        found.update(piece)
    return found.hexdigest()


def sealed(data: bytes) -> list[Buffer]:
    """The pieces of a safetensors file, whose metadata have the entry ``checksum`` with `EMPTY`, with the checksum."""
    at = data.index(_KEY + EMPTY.encode()) + len(_KEY)
    view = memoryview(data)
    return [view[:at], digest(data, at).encode(), view[at + 64 :]]


def problem(path: Path) -> str:
    """What is wrong with a file according to its checksums; nothing if they are right, or if it has none."""
    with path.open("rb") as file:
        head = file.read(9)
        if head[:4] == b"PK\x03\x04":
            return _problem_of_zip(path)
        file.seek(0)
        return _problem_of_safetensors(file) if head[8:] == b"{" else ""


def _problem_of_safetensors(file: BinaryIO) -> str:
    head = file.read(8)
    length = int.from_bytes(head, "little")
    file.seek(0, 2)
    if length > file.tell() - 8:
        return "it is cut off"
    file.seek(8)
    head += file.read(length)
    try:
        metadata = json.loads(head[8:])["__metadata__"]
        written, ours = metadata.get("checksum"), "versions" in metadata
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ""  # safetensors says what is wrong with it
    if written is None:
        return "it has lost its checksum" if ours else ""
    at = head.find(_KEY + str(written).encode()) + len(_KEY)
    if at < len(_KEY) or not re.fullmatch("[0-9a-f]{64}", str(written)) or digest(head, at, _blocks(file)) != written:
        return "its checksum is not that of its content (or another program has changed it)"
    return ""


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _problem_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if sum(record.file_size for record in records) > 8 * path.stat().st_size + _SLACK:
                return "its records claim to hold more than 8 times its size"  # weights hardly compress
            if not any(record.CRC for record in records):
                return ""  # torch.serialization.set_crc32_options(False)
            record = archive.testzip()
    except Exception as error:  # a damaged archive makes zipfile raise anything
        return f"it is not a complete zip archive ({type(error).__name__})"
    return "" if record is None else f"the checksum of its record {shown(record)} is not that of its content"
