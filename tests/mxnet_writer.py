"""Writes the files that MXNet 1.9.1 writes, byte for byte, and the older encodings that it still reads. For tests."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

import torch
from oracle.rule import rule

from octaveconv.mxnet.params import DTYPES, V1, V2, V3

ORACLE = Path(__file__).parent / "oracle"
RECORD_MAGIC = struct.pack("<I", 0xCED7230A)
MAGICS = {"V1": V1, "V2": V2, "V3": V3}
ENCODINGS = (*MAGICS, "legacy")


def array_header(magic, shape, flag=0, *, storage=0, device=(1, 0)):
    """What stands before an array's data; ``magic`` None is the legacy encoding."""
    if magic is None:
        return struct.pack(f"<I{len(shape)}I3i", len(shape), *shape, *device, flag)
    kind = b"" if magic == V1 else struct.pack("<i", storage)
    return struct.pack("<I", magic) + kind + struct.pack(f"<i{len(shape)}q3i", len(shape), *shape, *device, flag)


def array_bytes(tensor, encoding="V2"):
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return array_header(MAGICS.get(encoding), tensor.shape, DTYPES.index(tensor.dtype)) + data


def list_bytes(arrays, names=()):
    """A list of arrays, each as bytes, and its names (str or bytes)."""
    encoded = [name if isinstance(name, bytes) else name.encode() for name in names]
    return b"".join(
        [
            struct.pack("<3Q", 0x112, 0, len(arrays)),
            *arrays,
            struct.pack("<Q", len(encoded)),
            *(struct.pack("<Q", len(name)) + name for name in encoded),
        ]
    )


def params(arrays, encodings="V2"):
    """A dict of tensors as a parameter file, in one encoding or in one for each."""
    each = [encodings] * len(arrays) if isinstance(encodings, str) else encodings
    return list_bytes([array_bytes(tensor, e) for tensor, e in zip(arrays.values(), each)], list(arrays))


def golden_arrays(name):
    """The rule-made arrays of a golden, or of the float16 file that goes with one, in file order."""
    golden, half = name, name.endswith("_fp16")
    if half:
        about = json.loads((ORACLE / "files" / f"{name}.json").read_text())
        golden = f"{about['api']}_{about['model']}_alpha-{about['alpha']:g}"
    about = json.loads((ORACLE / f"{golden}.json").read_text())
    arrays = {}
    for entry in about["params"]:
        file_name = entry["file_name"]
        key = file_name.removeprefix("arg:").removeprefix("aux:")
        array = torch.from_numpy(rule(key, entry["shape"], about["gain"]))
        arrays[file_name] = array.half() if half and file_name.endswith(("weight", "bias")) else array
    return arrays


def golden_file(name):
    """The parameter file that MXNet wrote for a golden: the same bytes."""
    return params(golden_arrays(name))


def tar(members, **options):
    """A tar of ``{name: bytes}``; a name that ends in a slash is a directory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **{"format": tarfile.USTAR_FORMAT, **options}) as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def golden_tar(name):
    """A published archive: a directory that holds the parameters and the graph (here none)."""
    return tar(
        {
            f"{name}/": b"",
            f"{name}/checkpoint-0-0000.params": golden_file(name),
            f"{name}/checkpoint-0-symbol.json": b'{"nodes": []}',
        }
    )


def image_payload(record):
    """A record's payload, as ``mxnet.recordio.pack`` makes it."""
    single = len(record.labels) == 1
    head = struct.pack("<IfQQ", *(0, record.labels[0]) if single else (len(record.labels), 0), record.id, 0)
    return head + (b"" if single else struct.pack(f"<{len(record.labels)}f", *record.labels)) + record.image


def part(flag, payload):
    """One part of a record."""
    return RECORD_MAGIC + struct.pack("<I", flag << 29 | len(payload)) + payload + bytes(-len(payload) % 4)


def record_bytes(payload):
    """A record, split where the payload holds the magic at a multiple of 4."""
    cuts = [at for at in range(0, len(payload) - 3, 4) if payload[at : at + 4] == RECORD_MAGIC]
    parts = [payload[a:b] for a, b in zip([0, *(cut + 4 for cut in cuts)], [*cuts, len(payload)])]
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(part(flag, piece) for flag, piece in zip(flags, parts))


def record_file(payloads):
    """The bytes of a ``.rec`` file and of its ``.idx``."""
    records = [record_bytes(payload) for payload in payloads]
    starts = [sum(map(len, records[:i])) for i in range(len(records))]
    return b"".join(records), "".join(f"{i}\t{start}\n" for i, start in enumerate(starts)).encode()
