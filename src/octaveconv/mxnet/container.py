"""The parameter list inside a file: the file itself, or its contents if it is a gzip, xz or tar file.

The content decides, never a name. Nothing is written to disk, and member names are used in messages only.

Weights come from strangers, so their tars are walked here, with every field checked, and not with ``tarfile``, which
has looped endlessly (CVE-2025-8194) and matched slowly (CVE-2024-6232) on hostile ones. Tars of images are data sets
that the user chose: `octaveconv.data` reads those with ``tarfile``.
"""

from __future__ import annotations

import lzma
import mmap
import re
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import MXNetFormatError
from .fields import Fields, shortened

LIST_MAGIC = (0x112).to_bytes(8, "little")
HEAD = 262  # bytes that show what a file is
_PIECE = 2**16  # bytes given to a decompressor at once
_MIB = 2**20
_XZ_MEMORY = 66 * _MIB  # xz -9 requests 65; only what it fills is committed
_BLOCK = 512  # the unit of a tar file


class Member(NamedTuple):
    """A regular file in a tar; its data is ``buffer[start:end]``."""

    name: str
    start: int
    end: int


def kind_of(head: bytes) -> str | None:
    """What kind of file the first `HEAD` bytes show: "list", "gzip", "xz", "tar", or None."""
    magics = (("list", 0, LIST_MAGIC), ("gzip", 0, b"\x1f\x8b"), ("xz", 0, b"\xfd7zXZ\0"), ("tar", 257, b"ustar"))
    return next((kind for kind, at, magic in magics if head.startswith(magic, at)), None)


def contents(data: Fields) -> Fields:
    """Find the parameter list in a file; a plain or tarred one stays in place, a compressed one goes to memory."""
    kind = kind_of(_head(data))
    if kind in _STREAMS:
        data = _decompressed(data, f"{kind} stream", _STREAMS[kind](data))
        kind = kind_of(_head(data))
    if kind == "list":
        return data
    if kind == "tar":
        return _member(data)
    raise data.error(
        "list magic",
        f"found {_head(data)[:8].hex(' ') or 'nothing'}, expected {LIST_MAGIC.hex(' ')} (MXNet parameters), or a tar, "
        f"gzip or xz",
    )


def _head(data: Fields) -> bytes:
    return bytes(data.buffer[data.start : min(data.start + HEAD, data.end)])


def _decompressed(data: Fields, field: str, pieces: Iterator[bytes]) -> Fields:
    limit = 8 * data.left + 16 * _MIB  # weights hardly compress: anything that grows more is a bomb
    buffer = mmap.mmap(-1, limit, access=mmap.ACCESS_COPY)  # address space; it takes memory only where it is written
    size = 0
    try:
        for piece in pieces:
            if size + len(piece) > limit:
                raise data.error(
                    field,
                    f"decompresses to more than {limit} bytes, 8 times the file and 16 MiB: decompress it yourself",
                )
            buffer[size : size + len(piece)] = piece
            size += len(piece)
    except lzma.LZMAError as error:
        needs_memory = "emory" in str(error)  # a dictionary larger than xz -9 makes
        problem = f"needs more than {_XZ_MEMORY // _MIB} MiB of memory: decompress it yourself"
        raise data.error(field, problem if needs_memory else f"is damaged: {error}") from error
    except zlib.error as error:
        raise data.error(field, f"is damaged: {error}") from error
    if data.left:
        data.take(data.left, field)
        raise data.error(field, "other data follows it, expected a single stream: decompress the file yourself")
    return Fields(buffer, f"{data.file} (decompressed)", 0, size)


def _gunzip(data: Fields) -> Iterator[bytes]:
    decoder = zlib.decompressobj(wbits=31)
    while not decoder.eof:
        yield decoder.decompress(decoder.unconsumed_tail or _piece(data, "gzip stream"), _PIECE)
    data.at -= len(decoder.unused_data)


def _unxz(data: Fields) -> Iterator[bytes]:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    while not decoder.eof:
        yield decoder.decompress(_piece(data, "xz stream") if decoder.needs_input else b"", _PIECE)
    data.at -= len(decoder.unused_data)


_STREAMS: dict[str | None, Callable[[Fields], Iterator[bytes]]] = {"gzip": _gunzip, "xz": _unxz}


def _piece(data: Fields, field: str) -> bytes:
    return data.bytes(max(1, min(_PIECE, data.left)), field)


def _member(data: Fields) -> Fields:
    """The one member of a tar that is a parameter list, in place."""
    lists: list[str] = []
    others: list[str] = []
    for member in _members(data):
        found = data.buffer[member.start : min(member.start + 8, member.end)] == LIST_MAGIC
        (lists if found else others).append(member.name)
        if found:
            start, end = member.start, member.end
    if len(lists) != 1:
        names = lists or others
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise MXNetFormatError(
            data.file,
            0,
            "tar",
            f"expected one file of MXNet parameters in it, found {len(lists)}: {shown or 'no files'}",
        )
    return Fields(data.buffer, f"{data.file} (member {lists[0]})", start, end)


def _members(data: Fields) -> Iterator[Member]:
    """Walk the regular files of a tar."""
    while data.left >= _BLOCK:
        header = data.bytes(_BLOCK, "tar header")
        if not any(header):  # the end
            return
        checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if header[257:262] != b"ustar" or _number(header[148:156]) != checksum:
            raise data.error("tar header", f"is damaged, expected 'ustar' and the checksum {checksum:o}")
        kind, size = header[156:157], _number(header[124:136])
        if size is None:
            raise data.error("tar header", "has a size that is not a number")
        start = data.take(0 if kind in b"123456" else size, "tar member")  # links, devices, directories have no data
        if kind in (b"0", b"\0", b"7"):
            yield Member(_shown(header), start, data.at)
        data.take(min(-(data.at - data.start) % _BLOCK, data.left), "tar padding")


def _number(field: bytes) -> int | None:
    """Octal digits, or a binary number after 0x80 (GNU, for large files)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = re.fullmatch(rb" *([0-7]+)[ \0]*", field)
    return int(match[1], 8) if match else None


def _shown(header: bytes) -> str:
    """A member's name for a message: short, and without control characters."""
    prefix, name = (part.partition(b"\0")[0] for part in (header[345:500], header[:100]))
    return shortened(ascii((prefix + b"/" + name if prefix else name).decode(errors="replace")))
