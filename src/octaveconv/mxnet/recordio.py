"""MXNet's RecordIO files (``.rec`` with ``.idx``), the original's format for ImageNet."""

from __future__ import annotations

import os
import re
import struct
import weakref
from array import array
from typing import Any, NamedTuple

import torch

from ..errors import MXNetFormatError
from .fields import check_regular

MAGIC = (0xCED7230A).to_bytes(4, "little")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)  # continuation flags
_HEADER = struct.Struct("<IfQQ")  # label count, label, id, id2
_ROOM = 2**26  # labels, which take eight times their bytes in the file, may take so much memory besides the file's size


class Record(NamedTuple):
    """One record: its labels (for classification one, the class), its id, and the encoded image."""

    labels: tuple[float, ...]
    id: int
    image: bytes


class RecordFile:
    """A RecordIO file as a sequence of `Record`; works in ``torch.utils.data.DataLoader`` with workers of any kind.

    Args:
        path: the ``.rec`` file.
        index_path: its ``.idx`` file, whose lines give the order; by default the file with that suffix beside it, if
            there is one. Without it, one pass over the file finds the records.

    Raises:
        MXNetFormatError: the file or its index is damaged; raised on opening, or when the record is read.
        OSError: a file cannot be read.

    Source: ``dmlc/recordio.h`` and ``mxnet.recordio`` of MXNet 1.9.1.

    Example:
        >>> import struct, tempfile
        >>> payload = struct.pack("<IfQQ", 0, 3.0, 7, 0) + b"JPEG"
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(struct.pack("<II", 0xCED7230A, len(payload)) + payload)
        ...     file.flush()
        ...     RecordFile(file.name)[0]
        Record(labels=(3.0,), id=7, image=b'JPEG')
    """

    def __init__(self, path: str | os.PathLike[str], index_path: str | os.PathLike[str] | None = None):
        self.path = os.fspath(path)
        self._open()
        self._size = os.fstat(self._fd).st_size
        beside = os.path.splitext(self.path)[0] + ".idx"
        if index_path is None and os.path.exists(beside):
            index_path = beside
        self._offsets = self._scan() if index_path is None else _read_index(os.fspath(index_path), self._size)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Record:
        at = self._offsets[index]
        payload = self._payload(at)
        if len(payload) < _HEADER.size:
            raise self._error(at, "image header", f"has {len(payload)} bytes, expected {_HEADER.size}")
        count, label, number, _ = _HEADER.unpack_from(payload)
        if count > min((_ROOM + self._size) // 32, (len(payload) - _HEADER.size) // 4):
            raise self._error(at, "label count", f"is {count} in a record of {len(payload)} bytes")
        labels = struct.unpack_from(f"<{count}f", payload, _HEADER.size) if count else (label,)
        return Record(labels, number, payload[_HEADER.size + 4 * count :])

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()  # the handle in ``state`` belongs to another process

    def _open(self) -> None:
        check_regular(self.path)
        self._fd = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)

    def _read(self, size: int, at: int, field: str) -> bytes:
        """Read with pread, which has no position that forked workers or threads would share."""
        found = os.pread(self._fd, size, at)
        if len(found) != size:
            raise self._error(at, field, f"needs {size} bytes, but {len(found)} are left")
        return found

    def _part(self, at: int, first: bool) -> tuple[int, int, int]:
        """Check the header of one part of a record; return its flag, its length, and where the next part starts."""
        header = self._read(8, at, "record header")
        if header[:4] != MAGIC:
            raise self._error(at, "record magic", f"is {header[:4].hex(' ')}, expected {MAGIC.hex(' ')}")
        word = int.from_bytes(header[4:], "little")
        flag, length = word >> 29, word & (2**29 - 1)
        expected = (_WHOLE, _FIRST) if first else (_MIDDLE, _LAST)
        if flag not in expected:
            raise self._error(at + 4, "continuation flag", f"is {flag}, expected {expected[0]} or {expected[1]}")
        end = at + 8 + (length + 3) // 4 * 4
        if end > self._size:
            raise self._error(at + 4, "record length", f"is {length}, but {self._size - at - 8} bytes are left")
        return flag, length, end

    def _payload(self, at: int) -> bytes:
        parts: list[bytes] = []
        flag = _FIRST
        while flag in (_FIRST, _MIDDLE):
            flag, length, end = self._part(at, first=not parts)
            parts.append(self._read(length, at + 8, "record"))
            at = end
        return MAGIC.join(parts)  # a payload is cut wherever it contains the magic, which is omitted

    def _scan(self) -> array[int]:
        offsets, at, flag = array("q"), 0, _WHOLE
        while at < self._size or flag in (_FIRST, _MIDDLE):
            first = flag in (_WHOLE, _LAST)
            if first:
                offsets.append(at)
            flag, _, at = self._part(at, first)
        return offsets

    def _error(self, at: int, field: str, problem: str) -> MXNetFormatError:
        return MXNetFormatError(self.path, at, field, problem)


def _read_index(path: str, size: int) -> array[int]:
    """The offsets in an index, whose lines are ``key TAB offset``; ``size`` is the record file's."""
    check_regular(path)
    starts, keys, offsets, at = array("q"), array("q"), array("q"), 0  # not lists: ImageNet has 1.3 million lines
    with open(path, "rb") as lines:
        for line in lines:
            match = re.fullmatch(rb"(\d{1,18})\t(\d{1,18})\r?\n?", line)
            if not match:
                shown = ascii(line[:40].decode(errors="replace"))
                raise MXNetFormatError(path, at, "index line", f"is {shown}, expected a key, a tab and an offset")
            key, offset = int(match[1]), int(match[2])
            if offset % 4 or offset >= size:
                raise MXNetFormatError(path, at, "offset", f"is {offset}, expected a multiple of 4 below {size}")
            for column, value in ((starts, at), (keys, key), (offsets, offset)):
                column.append(value)
            at += len(line)
    if keys:
        ordered, lines_of = torch.frombuffer(keys, dtype=torch.int64).sort(stable=True)
        repeated = lines_of[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            line_number = int(repeated.min())
            raise MXNetFormatError(path, starts[line_number], "key", f"{keys[line_number]} appears twice")
    return offsets
