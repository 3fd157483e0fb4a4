"""What PyTorch writes with pickle, read within bounds and without running anything in it.

Checkpoints of other programs, damaged ones, and those made to do harm all come through `read`. PyTorch's reader with
``weights_only=True`` runs nothing, but it hashes, compares and prints what it builds: a few hundred bytes of tuples in
tuples keep it busy for ever. So the operations are counted first.

Checkpoints also hold objects of the classes of the program that wrote them, such as its settings: where that is asked
for, `read` puts a `Skipped` in the place of each.
"""

from __future__ import annotations

import io
import os
import pickletools
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
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
_CLASSES = 1_000  # that a checkpoint names
_FILL = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_OPEN = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "REDUCE", "NEWOBJ"}  # what may be filled later


class _Refused(Exception):
    """Why a file is not given to PyTorch."""


class Skipped:
    """What stands in a checkpoint in place of an object that only its own code could restore: its content is dropped.

    Attributes:
        kind: the name of the object's class.
    """

    kind = ""

    def __new__(cls, *arguments: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Node:
    """What stands on the stack of a pickle in place of an object: its levels, whether it can still grow, its class."""

    __slots__ = ("depth", "is_open", "kind", "size")

    def __init__(self, depth: int, size: int, is_open: bool, kind: str | None = None) -> None:
        self.depth, self.size, self.is_open, self.kind = depth, size, is_open, kind


def read(path: str | os.PathLike[str], map_location: str = "cpu", mmap: bool = False, skip: bool = False) -> Any:
    """What `torch.save` wrote, in today's format or in that before PyTorch 1.6. The content decides, not the name.

    Args:
        path: the file.
        map_location: ``cpu``, or ``meta`` for tensors without their numbers.
        mmap: leave the numbers in the file until they are used.
        skip: put a `Skipped` in the place of each object that only running code could restore, and plain dictionaries
            and lists in the place of what is derived from them; otherwise they are refused.

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
            named: dict[str, set[str]] = {}
            for pickled in _pickles(file, size):
                _check(pickled, named)
            file.seek(0)
            with warnings.catch_warnings(), torch.serialization.safe_globals(_stand_ins(named) if skip else []):
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
        archive = torch._C.PyTorchFileReader(file.name)
        if "constants.pkl" in archive.get_all_records():
            raise _Refused("it is a TorchScript archive, a program")
        record = archive.get_record("data.pkl")
        if len(record) > _INFLATED * size:
            raise _Refused(f"it holds more than {_INFLATED} times its size")
        yield io.BytesIO(record)
        return
    file.seek(0)
    for _ in range(_IN_LEGACY):
        yield _Within(file, size)  # type: ignore[misc]  # it reads, which is all that is asked of it


class _Within:
    """A file of which no more is asked than it has: Python takes memory for as many bytes as it asks for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._size - self.tell()))


def _stand_ins(named: Mapping[str, set[str]]) -> list[Any]:
    """What PyTorch is to make of each class and function that a pickle names and that it does not know itself."""
    known = {
        entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
        for entry in torch.serialization.get_safe_globals()
    }
    if len(named) > _CLASSES:
        raise _Refused(f"it names more than {_CLASSES} classes")
    return [(_stand_in(kind, filled_by), kind) for kind, filled_by in named.items() if kind not in known]


def _stand_in(kind: str, filled_by: set[str]) -> type:
    """A class that makes a dictionary or a list, if that is what the pickle fills, or else a `Skipped`."""
    made = OrderedDict if filled_by & {"SETITEM", "SETITEMS"} else list if filled_by & {"APPEND", "APPENDS"} else None
    if made is None:
        return type("Skipped", (Skipped,), {"kind": kind})
    return type("Filled", (), {"__new__": lambda cls, *arguments: made()})


def _full_name(argument: str) -> str:
    """The name of a class or function, of Python 3 if the pickle has that of Python 2."""
    module, name = argument.split(" ", 1)
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _check(file: BinaryIO, named: dict[str, set[str]]) -> None:
    """Raise if the next pickle is nested too deeply, contains itself, or repeats its parts too often.

    ``named`` gets the classes and functions that it names, and the operations that fill what they make.
    """
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
            _note_class(node, name, items, argument, named)
            work += node.size
            if node.depth > DEEPEST:
                raise _Refused(f"it is nested more than {DEEPEST} levels deep")
            if work > _REPEATED * ((at or 0) - start) + _SMALL:
                raise _Refused("it repeats its parts too often")
            if opcode.stack_after:
                stack.append(node)


def _note_class(node: _Node, name: str, items: list[_Node], argument: Any, named: dict[str, set[str]]) -> None:
    """Keep in mind of which class a new object is, or how one is filled."""
    if name == "GLOBAL":
        node.kind = _full_name(argument)
        named.setdefault(node.kind, set())
    elif name in ("REDUCE", "NEWOBJ"):
        node.kind = items[0].kind
    elif name in _FILL and node.kind is not None:
        named[node.kind].add(name)


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
