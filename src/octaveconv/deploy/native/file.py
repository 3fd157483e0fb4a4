"""The file of a deployed network: safetensors, with the layers as JSON in its metadata and a checksum of everything.

A file is damaged, or made by someone else, until the contrary is shown: nothing in it is executed, and `stored` and
`geometry` check what it says. A checksum finds damage, not malice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils import _pytree as pytree

from ... import _checksum
from ..._text import one_line
from ...about import About
from ...env import version
from ...errors import BackendUnavailable, UsageError
from ..capture import Captured
from ..ir import Lowered
from ..sizes import DIMENSIONS, LARGEST, checked, names_in, value, written
from .geometry import check
from .stored import CHANNELS, Reader, Writer, boolean, fields, integer, items, require

VERSION = 1  # of the format
HEADER = 2**23  # bytes of layers, at most; those of oct_resnet50 take 130 KB
FORMS = 64
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_IN_FILE = {"F32": torch.float32, "BF16": torch.bfloat16}  # safetensors' names


class Saved:
    """A form of a network out of a file: what `Captured` is to a captured one, with its layers.

    Attributes:
        network: the layers.
        input: for each dimension of the input, its size, or a name.
        alone: whether it is right for a single image, too, where the batch has a name.
        ranges: by name, the least and the largest size.
        conditions: expressions that must be true; for those of the batch alone a single image counts as two, as in
            `Captured.sizes`.
        out_spec: how the outputs are arranged.
    """

    def __init__(
        self,
        network: Lowered,
        input: Sequence[int | str],
        alone: bool,
        ranges: Mapping[str, tuple[int, int | None]],
        conditions: Sequence[Any],
        output: Any,
    ) -> None:
        self.network, self.input, self.alone = network, tuple(input), alone
        self.ranges, self.conditions, self.output = dict(ranges), list(conditions), output
        self.out_spec = pytree.tree_structure(output)

    def sizes(self, shape: torch.Size) -> dict[Any, int] | None:
        """The values of the input's names for an input of ``shape``, or None if this form does not cover it."""
        batch = self.input[0]
        if len(shape) != 4 or (type(batch) is str and shape[0] == 1 and not self.alone):
            return None
        known: dict[Any, int] = {}
        for name, size in zip(self.input, shape):
            if (known.setdefault(name, size) if isinstance(name, str) else name) != size:
                return None
        assumed = known | ({batch: max(shape[0], 2)} if type(batch) is str and self.alone else {})
        for name, (least, most) in self.ranges.items():
            if assumed[name] < least or (most is not None and assumed[name] > most):
                return None
        try:
            beside_others = [known if names_in(condition) - {batch} else assumed for condition in self.conditions]
            return known if all(map(value, self.conditions, beside_others)) else None
        except ZeroDivisionError:
            return None

    def __str__(self) -> str:
        """The sizes that it covers, in words."""
        first, *others = [self._range(name, int(i == 0 and self.alone)) for i, name in enumerate(self.input)]
        return f"[{', '.join([first, *others])}]" + (" where the layers' sizes agree" if self.conditions else "")

    def _range(self, name: int | str, least: int) -> str:
        if isinstance(name, int):
            return str(name)
        low, high = self.ranges.get(name, (1, None))
        if name == self.input[0]:
            low = 1 if least else max(low, 2)
        letter = name.upper()
        return (f"{low}<=" if low > 1 else "") + letter + ("" if high is None else f"<={high}")


class SavedForms:
    """Networks out of a file for several ranges of sizes, in place of `Captures`.

    Args:
        forms: at least one.
        name: of the file, for messages.
        about: what the file says of the network.
    """

    def __init__(self, forms: Sequence[Saved], name: str, about: About) -> None:
        self.forms, self.name, self.about = list(forms), name, about

    def __iter__(self) -> Iterator[Saved]:
        return iter(self.forms)

    def of(self, shape: torch.Size) -> tuple[Saved, dict[Any, int]]:
        """The form that covers an input's shape, and the values of its names there.

        Raises:
            BackendUnavailable: there is none, or images of this size are too small or too large for it.
            ValueError: there is one, but its layers are wrong for this shape.
        """
        for form in self.forms:
            if (sizes := form.sizes(shape)) is not None:
                try:
                    check(form.network, sizes, shape)
                except BackendUnavailable as error:
                    raise BackendUnavailable(f"{self.name}: {error}") from error
                except ValueError as error:
                    raise _damaged(self.name, error) from error
                return form, sizes
        raise BackendUnavailable(
            f"{self.name} holds the network for {' and '.join(map(str, self.forms))}. For another size, call the "
            f"deployed network with it before save, or deploy the model with an example of that size"
        )


def dumps(forms: Iterable[tuple[Captured | Saved, Lowered]], dtype: torch.dtype, about: About) -> bytes:
    """The bytes of a file that holds these forms.

    Raises:
        UsageError: a file cannot hold them; the message says why.
    """
    writer = Writer(dtype)
    name = next(name for name, known in _DTYPES.items() if known == dtype)
    written_forms = [_write_form(form, network, writer) for form, network in forms]
    record = {
        "sha256": _checksum.EMPTY,
        "version": VERSION,
        "octaveconv": version("octaveconv"),
        "torch": version("torch"),
        "dtype": name,
        "forms": written_forms,
        "about": about.metadata(),
    }
    text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    data = bytearray(save(writer.tensors, {"deployed": text}))
    if (length := int.from_bytes(data[:8], "little")) > HEADER or len(written_forms) > FORMS:
        raise UsageError(
            f"the network has {length:,} bytes of layers in {len(written_forms)} forms, and a file holds {HEADER:,} "
            f"bytes in {FORMS}: deploy the model again, and save it after fewer sizes"
        )
    at = data.index(_checksum.EMPTY.encode(), 8, 8 + length)
    data[at : at + 64] = _checksum.digest(data, at).encode()
    try:
        again = json.loads(text)
        _about(again)
        _read_forms(again, writer.tensors)
    except ValueError as error:
        raise UsageError(f"a file cannot hold this network: {error}") from error
    return bytes(data)


def loads(data: bytes | memoryview, name: str) -> tuple[SavedForms, torch.dtype]:
    """The forms in the bytes of a file, and their dtype.

    Args:
        data: all of it; if it can be written to, the weights stay in it.
        name: of the file, for messages.

    Raises:
        ValueError: it is not such a file, or damaged.
    """
    data = memoryview(data)
    if data.readonly:
        data = memoryview(bytearray(data))
    try:
        length = int.from_bytes(data[:8], "little")
        require(len(data) > 8 and length <= len(data) - 8 and length <= HEADER, "its header does not end")
        header = _json(bytes(data[8 : 8 + length]))
        metadata = header.pop("__metadata__", None) if type(header) is dict else None
        if type(metadata) is not dict or "deployed" not in metadata:
            raise _Foreign
        record = _json(metadata["deployed"])
        require(type(record) is dict, "its layers are not an object")
        _check_digest(data, length, record.get("sha256"))
        found = record.get("version")
        if type(found) is int and found > VERSION:
            raise _Newer(str(record.get("octaveconv"))[:20])
        about = _about(record)
        forms = _read_forms(record, _tensors(header, data, 8 + length))
        return SavedForms(forms, name, about), _DTYPES[record["dtype"]]
    except _Foreign as error:
        raise ValueError(f"{name} is not a file that save() of a deployed network has written") from error
    except _Newer as error:
        raise ValueError(f"{name} was written by octaveconv {error}: install that version, or a newer one") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(name, error) from error


class _Foreign(Exception):
    pass


class _Newer(Exception):
    pass


def _damaged(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} is damaged: {one_line(error)}")


def _tensors(header: dict[str, Any], data: memoryview, start: int) -> dict[str, Tensor]:
    """The tensors that a header names, in the memory of ``data``: one after another, from ``start`` to the end."""
    found, reached = {}, 0
    whole = data[start:]
    for name, entry in sorted(header.items(), key=lambda item: _first(item[1])):
        dtype, shape, (first, last) = fields(entry, "dtype", "shape", "data_offsets")
        require(type(dtype) is str and dtype in _IN_FILE, f"{name!r} is not in float32 or bfloat16")
        require(len(items(shape)) <= 4, f"{name!r} has too many dimensions")
        count = math.prod(integer(size, 1, LARGEST) for size in shape)
        size = _IN_FILE[dtype].itemsize
        require(first == reached and last == first + count * size and last <= len(whole), f"{name!r} has a wrong place")
        require((start + first) % size == 0, f"{name!r} has an odd place")
        found[name] = torch.frombuffer(whole, dtype=_IN_FILE[dtype], count=count, offset=first).view(shape)
        reached = last
    require(reached == len(whole), "it has more bytes than its tensors")
    return found


def _first(entry: Any) -> int:
    """Where a tensor begins."""
    _, _, offsets = fields(entry, "dtype", "shape", "data_offsets")
    first, last = items(offsets, 2)
    require(type(first) is int and type(last) is int, "a tensor has no place")
    return first  # type: ignore[no-any-return]


def _json(text: Any) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number")

    require(isinstance(text, (str, bytes)), "its layers are not a text")
    return json.loads(text, parse_constant=refuse)


def _check_digest(data: memoryview, length: int, digest: Any) -> None:
    require(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None, "it has no checksum")
    at = 8 + bytes(data[8 : 8 + length]).find(digest.encode())
    require(at >= 8 and _checksum.digest(data, at) == digest, "its checksum is not that of its content")


def _about(record: dict[str, Any]) -> About:
    """What a record says of the network, taken out of it; earlier files say nothing."""
    found = record.pop("about", {})
    require(type(found) is dict, "what it says of the network is not an object")
    return About.read(found)


def _write_form(form: Captured | Saved, network: Lowered, writer: Writer) -> dict[str, Any]:
    if isinstance(form, Saved):
        stated = {"input": form.input, "ranges": form.ranges, "conditions": form.conditions}
        names: dict[Any, str] = {}
        output = form.output
    else:
        names, stated = _stated(form)
        output = _plain(pytree.tree_unflatten(range(form.out_spec.num_leaves), form.out_spec))
    return stated | {"alone": form.alone, "output": _packed(output), "network": writer.network(network, names)}


def _stated(captured: Captured) -> tuple[dict[Any, str], dict[str, Any]]:
    """The names of the input's symbols; and in them the input, the range of each name, and the conditions."""
    names: dict[Any, str] = {}
    dimensions: list[int | str] = []
    ranges: dict[str, list[int | None]] = {}
    for dimension, size in zip(DIMENSIONS, captured.input.meta["val"].shape):
        symbol = size.node.expr if isinstance(size, torch.SymInt) else size
        if isinstance(symbol, int) or symbol.is_Integer:
            dimensions.append(int(symbol))
            continue
        if not symbol.is_Symbol:
            raise UsageError(f"a file cannot hold a network whose input has the size {symbol}")
        dimensions.append(names.setdefault(symbol, dimension))
        if names[symbol] == dimension and (bounds := captured.ranges.get(symbol)) is not None:
            least, most = (int(end) if end.is_Integer else None for end in (bounds.lower, bounds.upper))
            # torch.export assumes two or more, and asserts what is more than that
            ranges[dimension] = [least if least is not None and least > 2 else 0, most]
    conditions = [written(captured.environment.replace(condition), names) for condition in captured.conditions]
    return names, {"input": dimensions, "ranges": ranges, "conditions": conditions}


def _plain(output: Any) -> Any:
    """The outputs' places in their containers, if those are Python's own."""
    if type(output) is dict and all(type(key) in (str, int) for key in output):
        return {key: _plain(each) for key, each in output.items()}
    if type(output) in (list, tuple):
        return type(output)(map(_plain, output))
    if type(output) is int:
        return output
    raise UsageError(
        f"a file cannot hold an output that is a {type(output).__name__}: return tensors in dicts, lists or tuples"
    )


def _packed(output: Any) -> Any:
    """Containers as JSON, which knows neither tuples nor numbers as keys."""
    if isinstance(output, dict):
        return {"dict": [[key, _packed(each)] for key, each in output.items()]}
    if isinstance(output, (list, tuple)):
        return {type(output).__name__: [_packed(each) for each in output]}
    return output


def _unpacked(data: Any, depth: int = 0) -> Any:
    require(depth < 20, "its outputs are nested too deeply")
    if type(data) is int:
        return data
    require(type(data) is dict and len(data) == 1, "its outputs are not arranged in containers")
    ((kind, content),) = data.items()
    if kind == "dict":
        pairs = [items(each, 2) for each in items(content)]
        require(all(type(key) in (str, int) for key, _ in pairs), "its outputs have other names than texts")
        found = {key: _unpacked(each, depth + 1) for key, each in pairs}
        require(len(found) == len(pairs), "two of its outputs have one name")
        return found
    require(kind in ("list", "tuple"), "its outputs are in an unknown container")
    parts = [_unpacked(each, depth + 1) for each in items(content)]
    return parts if kind == "list" else tuple(parts)


def _read_forms(record: Any, tensors: Mapping[str, Tensor]) -> list[Saved]:
    _, number, _, _, dtype, forms = fields(record, "sha256", "version", "octaveconv", "torch", "dtype", "forms")
    integer(number, VERSION, VERSION)
    require(type(dtype) is str and dtype in _DTYPES, "there is no such dtype")
    require(0 < len(items(forms)) <= FORMS, "it has no forms, or too many")
    reader = Reader(tensors, _DTYPES[dtype])
    read = [_read_form(form, reader) for form in forms]
    require(not reader.unused, "it has tensors that no layer uses")
    return read


def _read_form(data: Any, reader: Reader) -> Saved:
    dimensions, alone, ranges, conditions, output, network = fields(
        data, "input", "alone", "ranges", "conditions", "output", "network"
    )
    names = []
    for name, size in zip(DIMENSIONS, items(dimensions, 4)):
        if type(size) is str:
            require(size == name or size in names, "a size of its input has an unknown name")
            names.append(size)
        else:
            integer(size, 0, CHANNELS)
    require(type(ranges) is dict and ranges.keys() <= set(names), "a range belongs to no size of its input")
    bounds = {}
    for name, ends in ranges.items():
        least, most = items(ends, 2)
        bounds[name] = (integer(least, 0, LARGEST), None if most is None else integer(most, 0, LARGEST))
    truths = [checked(condition, names) for condition in items(conditions)]
    lowered = reader.network(network, names)
    arranged = _unpacked(output)
    leaves = pytree.tree_leaves(arranged)
    require(leaves == list(range(len(lowered.outputs))), "its outputs are arranged in another order")
    return Saved(lowered, dimensions, boolean(alone), bounds, truths, arranged)
