"""What PyTorch writes with pickle, read within bounds and without running anything in it.

Checkpoints of other programs, damaged ones, and those made to do harm all come through `read`. PyTorch's reader with
``weights_only=True`` runs nothing, but it hashes, compares and prints what it builds: a few hundred bytes of tuples in
tuples keep it busy for ever. So the operations are counted first.
"""

from __future__ import annotations

import io
import os
import pickletools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

DEEPEST = 100  # levels of containers in containers; a checkpoint has about eight
_REPEATED = 100  # how much larger than the pickle its content may be, once each shared part is counted where it is used
_SMALL = 10_000
_INFLATED = 8  # times the file's size that its content may have, as in `_checksum`
_SLACK = 2**24
_IN_LEGACY = 5  # pickles at the start of a file: a number, a version, the system, the object, the keys of its tensors
_FILL = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_OPEN = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "REDUCE", "NEWOBJ"}  # what may be filled later


class _Refused(Exception):
    """Why a file is not given to PyTorch."""


class _Node:
    """What stands on the stack of a pickle in place of an object: its levels, and whether it can still grow."""

    __slots__ = ("depth", "is_open", "size")

    def __init__(self, depth: int, size: int, is_open: bool) -> None:
        self.depth, self.size, self.is_open = depth, size, is_open


def read(path: str | os.PathLike[str], map_location: str = "cpu", mmap: bool = False) -> Any:
    """What `torch.save` wrote, in today's format or in that before PyTorch 1.6. The content decides, not the name.

    Args:
        path: the file.
        map_location: ``cpu``, or ``meta`` for tensors without their numbers.
        mmap: leave the numbers in the file until they are used.

    Raises:
        ValueError: it is another kind of file, is damaged, or holds what only running code could restore; the message
            is the reason, in a few words, without the file's name.
        OSError: there is no such file.
    """
    with open(path, "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise EOFError
            for pickled in _pickles(file, size):
                _check(pickled)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about protocols that it need not know
                source: Any = os.fspath(path) if mmap else file
                found = torch.load(source, map_location, weights_only=True, mmap=mmap)
            _check_tensors(found, _INFLATED * size + _SLACK)
            return found
        except _Refused as refusal:
            raise ValueError(str(refusal)) from None
        except Exception as error:  # a damaged file makes PyTorch raise anything
            raise ValueError(type(error).__name__) from error


def _pickles(file: BinaryIO, size: int) -> Iterator[BinaryIO]:
    """The pickles that PyTorch will read: the one in a zip archive, or those at the start of a file."""
    if file.read(4) == b"PK\x03\x04":
        record = torch._C.PyTorchFileReader(file.name).get_record("data.pkl")
        if len(record) > _INFLATED * size:
            raise _Refused(f"it holds more than {_INFLATED} times its size")
        yield io.BytesIO(record)
        return
    file.seek(0)
    for _ in range(_IN_LEGACY):
        yield file


def _check(file: BinaryIO) -> None:
    """Raise if the next pickle is nested too deeply, contains itself, or repeats its parts too often."""
    stack: list[_Node | None] = []  # None is a mark
    memo: dict[Any, _Node | None] = {}
    start, work = file.tell(), 0
    for opcode, argument, at in pickletools.genops(file):
        name = opcode.name
        if name == "MARK":
            stack.append(None)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            items = _taken(stack, opcode) if opcode.stack_before else []
            node = _filled(items) if name in _FILL else _made(items, argument, name in _OPEN)
            work += node.size
            if node.depth > DEEPEST:
                raise _Refused(f"it is nested more than {DEEPEST} levels deep")
            if work > _REPEATED * ((at or 0) - start) + _SMALL:
                raise _Refused("it repeats its parts too often")
            if opcode.stack_after:
                stack.append(node)


def _taken(stack: list[_Node | None], opcode: pickletools.OpcodeInfo) -> list[_Node]:
    """Remove from the stack what an operation takes; the lowest first."""
    before, taken = opcode.stack_before, []
    count = len(before)
    if pickletools.markobject in before:
        while (node := stack.pop()) is not None:
            taken.append(node)
        count = before.index(pickletools.markobject)
    for _ in range(count):
        node = stack.pop()
        if node is None:
            raise _Refused("it is not a whole pickle")
        taken.append(node)
    return taken[::-1]


def _made(items: list[_Node], argument: Any, is_open: bool) -> _Node:
    """A new object, with ``items`` in it."""
    depth, size = 0, 1 + (len(argument) if isinstance(argument, (str, bytes)) else 0)
    for item in items:
        item.is_open = False
        depth, size = max(depth, 1 + item.depth), size + item.size
    return _Node(depth, size, is_open)


def _filled(items: list[_Node]) -> _Node:
    """A container, the first, after the others have been put into it; it may not be in another yet, nor in itself."""
    target, *others = items
    made = _made(others, None, False)
    if not target.is_open:
        raise _Refused("a part of it contains itself, or changes after it was used")
    target.depth, target.size = max(target.depth, made.depth), target.size + made.size
    return target


def _check_tensors(found: Any, most: int) -> None:
    """Raise if a tensor has more numbers than the file can hold: PyTorch gives it memory without any content."""
    if isinstance(found, Tensor):
        if found.layout == torch.strided and found.numel() * found.element_size() > most:
            raise _Refused(f"it has a tensor of shape {[*found.shape]}, more than the file holds")
    elif isinstance(found, Mapping):
        for value in found.values():
            _check_tensors(value, most)
    elif isinstance(found, (list, tuple)):
        for value in found:
            _check_tensors(value, most)
