"""MXNet's parameter files (``*.params``) without MXNet: names, shapes and bytes, nothing that could run.

A file consists of a list magic, a reserved word, N arrays and 0 or N names; little-endian, without padding, index or
checksum. Each array says how it is encoded; all encodings that MXNet has written since 2015 are read. Every number is
checked before it is used.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from .container import contents
from .fields import Fields, map_file, shortened

V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA  # how an array is encoded; a smaller word is the legacy one's ndim
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.uint8,
    torch.int32,
    torch.int8,
    torch.int64,
    torch.bool,
    torch.int16,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bfloat16,
)
_STORAGE = {-1: "undefined", 1: "row-sparse", 2: "CSR"}
# A tensor and a name take more memory than their bytes in the file. These limits grow with the file, and keep all of
# that below its size and 64 MiB: 4 KiB for an array with its name. A file that MXNet wrote exceeds them only with more
# than 16,384 arrays of on average less than 4 KiB, or with names of more than 4 MiB in all. MXNet's own arrays have at
# most 32 dimensions, as NumPy's had.
_ROOM, _PER_ARRAY, _NAMES, MAX_NDIM = 2**26, 2**12, 2**22, 32
_SMALLEST = 20  # bytes: a legacy array of one dimension, 0


def load_mxnet(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the arrays of an MXNet parameter file.

    Args:
        path: a file written by ``mx.nd.save``, ``save_parameters`` or ``save_checkpoint``; or a tar that contains one
            such file; or either, compressed with gzip or xz. The content decides, not the name.

    Returns:
        Tensors on the CPU by the names in the file, in its order; ``arg:`` and ``aux:`` are kept. Arrays without names
        are called "0", "1", .... The file is mapped and the tensors are views of it, so that loading takes no more
        memory than the file has bytes: do not truncate or overwrite it while they are in use (as with
        ``torch.load(mmap=True)``). Writing to the tensors does not change it.

    Raises:
        MXNetFormatError: the file is damaged, hostile, or contains what is not read here (sparse arrays,
            placeholders); the error says where. What follows the last name is ignored, as by MXNet.
        OSError: there is no such file, or it cannot be read.

    Source: ``NDArray::Load`` and ``LegacyLoad`` of MXNet 1.9.1.

    Example:
        >>> import struct, tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(struct.pack("<3Q 5I 2f 2Q1s", 0x112, 0, 1, 1, 2, 1, 0, 0, 0.5, 1.5, 1, 1, b"w"))
        ...     file.flush()
        ...     load_mxnet(file.name)
        {'w': tensor([0.5000, 1.5000])}
    """
    return read_list(contents(map_file(os.fspath(path))))


def read_list(data: Fields) -> dict[str, Tensor]:
    """Read a parameter list whose magic has been checked already."""
    most = max_arrays(data.left)
    names_left = _NAMES + data.left // 16
    data.take(16, "list magic and reserved word")
    count = data.integer("Q", "array count")
    if count > most:
        raise data.error("array count", f"is {count}, expected at most {most} in a file of this size")
    if count * _SMALLEST > data.left:
        raise data.error("array count", f"is {count}, but only {data.left} bytes are left")
    arrays = [_array(data, f"array {i}") for i in range(count)]
    names = data.integer("Q", "name count")
    if names not in (0, count):
        raise data.error("name count", f"is {names}, expected {count}, or 0 for a list without names")
    if not names:
        return {str(i): array for i, array in enumerate(arrays)}
    named: dict[str, Tensor] = {}
    for i, array in enumerate(arrays):
        start = data.at
        name = _name(data, f"name {i}", names_left)
        names_left -= data.at - start
        if name in named:
            raise data.error(f"name {i}", f"{shortened(repr(name[:99]))} appears twice: one array would be lost")
        named[name] = array
    return named


def max_arrays(size: int) -> int:
    """The most arrays that a list of ``size`` bytes may have."""
    return (_ROOM + size) // _PER_ARRAY


def _name(data: Fields, field: str, most: int) -> str:
    size = data.integer("Q", f"{field} length")
    if size > most:
        raise data.error(f"{field} length", f"is {size}, expected at most {most} in a file of this size")
    raw = data.bytes(size, field)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        at = max(error.start - 9, 0)
        raise data.error(field, f"{raw[at : at + 20]!r} in it is not UTF-8: {error.reason}") from error


def _array(data: Fields, field: str) -> Tensor:
    shape = _shape(data, field)
    data.take(8, f"{field} device")
    flag = data.integer("i", f"{field} dtype flag")
    if not 0 <= flag < len(DTYPES):
        raise data.error(f"{field} dtype flag", f"is {flag}, expected 0 to {len(DTYPES) - 1}")
    dtype = DTYPES[flag]
    size = math.prod(shape) * dtype.itemsize
    start = data.take(size, f"{field} data")
    if not size:
        return torch.empty(shape, dtype=dtype)
    raw = torch.frombuffer(data.buffer, dtype=torch.uint8, count=size, offset=start)
    if dtype is torch.bool and raw.max() > 1:  # other bytes are undefined behavior in a bool tensor
        raise data.error(f"{field} data", "contains bytes other than 0 and 1, which a bool cannot have")
    if start % dtype.itemsize:
        raw = raw.clone()  # torch computes on aligned memory
    return raw.view(dtype).view(shape)


def _shape(data: Fields, field: str) -> list[int]:
    """The fields before the device: how the array is encoded, and its shape."""
    magic = data.integer("I", f"{field} magic")
    if magic in (V2, V3):
        storage = data.integer("i", f"{field} storage type")
        if storage:
            kind = _STORAGE.get(storage, "unknown")
            raise data.error(f"{field} storage type", f"is {storage} ({kind}), expected 0 (dense): only that is read")
    elif magic != V1 and magic > MAX_NDIM:
        raise data.error(
            f"{field} magic", f"is {magic:#x}, expected {V1:#x}, {V2:#x}, {V3:#x}, or at most {MAX_NDIM} dimensions"
        )
    legacy = magic <= MAX_NDIM
    ndim = magic if legacy else data.integer("i", f"{field} ndim")
    if ndim == (-1 if magic == V3 else 0):
        raise data.error(
            f"{field} ndim", f"is {ndim}, a placeholder without data (its shape was unknown when it was saved)"
        )
    if not 0 <= ndim <= MAX_NDIM:
        raise data.error(f"{field} ndim", f"is {ndim}, expected 0 to {MAX_NDIM}")
    shape = []
    for axis in range(ndim):
        shape.append(data.integer("I" if legacy else "q", f"{field} dimension {axis}"))
        if shape[-1] < 0:
            raise data.error(f"{field} dimension {axis}", f"is {shape[-1]}, expected 0 or more")
    if math.prod(max(n, 1) for n in shape) >= 2**63:  # torch counts elements and strides in 63 bits, even of none
        raise data.error(f"{field} shape", f"{shape} has more elements than can be counted")
    return shape
