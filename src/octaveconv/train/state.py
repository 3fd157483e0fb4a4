"""What a checkpoint may hold: only what ``torch.load(weights_only=True)`` reads back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import _checksum
from ..weights import pickles

_PLAIN = (str, int, float, bool, type(None), Tensor, nn.Parameter)


def check(value: Any, name: str = "the state") -> None:
    """Raise TypeError, naming the key, for anything but tensors, text, numbers and None in dicts, lists and tuples.

    Types must match exactly: a NumPy float is a float too, but is stored as a NumPy object.
    """
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            check(key, f"a key of {name}")
            check(item, f"{name}[{key!r}]")
        for key, item in vars(value).items() if type(value) is OrderedDict else ():  # a state dict's _metadata
            check(item, f"{name}.{key}")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            check(item, f"{name}[{i}]")
    elif type(value) not in _PLAIN:
        raise TypeError(
            f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which weights_only=True would not read "
            f"back: a checkpoint holds tensors, text, numbers and None, in dicts, lists and tuples"
        )


def size(value: Any) -> int:
    """The tensors' size in bytes."""
    if isinstance(value, Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, Mapping) else value
    return sum(map(size, items)) if isinstance(value, (Mapping, list, tuple)) else 0


def is_whole(path: Path) -> bool:
    """Whether a file is a checkpoint, undamaged."""
    try:
        pickles.read(path, mmap=True)
        return not _checksum.problem(path)
    except (ValueError, OSError):
        return False
