"""Reading foreign bytes field by field: each is checked against what is left, and an error says where it is."""

from __future__ import annotations

import mmap
import os
import stat
import struct

from ..errors import MXNetFormatError

Buffer = mmap.mmap | bytearray


class Fields:
    """A cursor over part of a buffer; all integers are little-endian.

    Args:
        buffer: the bytes, writable (which torch requires of memory that it shares).
        file: the file's name in errors.
        start, end: the part of the buffer to read; offsets in errors count from ``start``.
    """

    def __init__(self, buffer: Buffer, file: str, start: int = 0, end: int | None = None):
        self.buffer, self.file, self.start = buffer, file, start
        self.end = len(buffer) if end is None else end
        self.at = self.last = start  # the next byte, and where the last field began

    @property
    def left(self) -> int:
        return self.end - self.at

    def take(self, size: int, field: str) -> int:
        """Step over a field of ``size`` bytes; return its place in the buffer, or raise if it is not all there."""
        self.last = self.at
        if size > self.left:
            raise self.error(field, f"needs {size} bytes, but {self.left} are left")
        self.at += size
        return self.last

    def integer(self, kind: str, field: str) -> int:
        """Take an integer; ``kind`` is struct's letter for it."""
        layout = f"<{kind}"
        value: int = struct.unpack_from(layout, self.buffer, self.take(struct.calcsize(layout), field))[0]
        return value

    def bytes(self, size: int, field: str) -> bytes:
        start = self.take(size, field)
        return bytes(self.buffer[start : start + size])

    def error(self, field: str, problem: str) -> MXNetFormatError:
        """The error, to be raised, about the field taken last."""
        return MXNetFormatError(self.file, self.last - self.start, field, problem)


def shortened(text: str) -> str:
    """At most 80 characters of a text, from its ends, for a message."""
    return text if len(text) <= 80 else f"{text[:38]}...{text[-38:]}"


def check_regular(file: str) -> None:
    """Refuse what would block or never end, such as a pipe; OSError if there is no such file."""
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise MXNetFormatError(file, 0, "file", "is a directory, pipe or device, expected a regular file")


def map_file(file: str) -> Fields:
    """All of a file, mapped: its pages are read when they are used. Writing to them never changes the file."""
    check_regular(file)
    with open(file, "rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            raise MXNetFormatError(file, 0, "file", "is empty")
        return Fields(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY), file)
