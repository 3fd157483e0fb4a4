"""Files of deployed networks, taken apart, changed and put together with the right checksum."""

import copy
import hashlib
import json
import random
import re

import torch
from networks import image
from torch import nn

from octaveconv.deploy.native import engine, file

NUMBERS = (-1, 0, 1, 2, 3, 5, 8, 16, 31, 64, 1000, 2**15, 2**20, 2**31 - 1, 2**31, 2**63, 10**400, 0.5, 1e300)
OTHERS = (None, True, False, "", "n", "h", "w", "mean", "max", "silu", "0", [], {}, ["//", "h", 0], ["*", "h", "h"])


def taken_apart(data):
    """The header without the metadata, the record of the layers, and the bytes of the tensors."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header.pop("__metadata__")["deployed"]), data[8 + length :]


def put_together(header, record, tensors, text=None):
    """A file with the right checksum; ``text`` in place of the record's JSON."""
    if text is None:
        text = json.dumps({"sha256": "0" * 64} | record | {"sha256": "0" * 64})
    metadata = {"deployed": text}
    encoded = json.dumps({"__metadata__": metadata, **header}).encode()
    encoded += b" " * (-len(encoded) % 8)
    data = len(encoded).to_bytes(8, "little") + encoded + tensors
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def everything(part, path=()):
    """The path of every value inside a JSON value."""
    yield path
    if isinstance(part, (dict, list)):
        for key, value in list(part.items()) if isinstance(part, dict) else enumerate(part):
            yield from everything(value, (*path, key))


def at(part, path):
    for key in path:
        part = part[key]
    return part


def change(record, draw):
    """One random change of a JSON value, in its place."""
    paths = list(everything(record))[1:]
    path = draw.choice(paths)
    holder, key = at(record, path[:-1]), path[-1]
    value = holder[key]
    alike = [other for other in paths if type(at(record, other)) is type(value) and other[-1] == key]
    choices = [
        lambda: copy.deepcopy(at(record, draw.choice(alike))),
        lambda: copy.deepcopy(at(record, draw.choice(paths))),
        lambda: draw.choice(NUMBERS),
        lambda: copy.deepcopy(draw.choice(OTHERS)),
    ]
    if type(value) is int:
        choices += [lambda: value + draw.choice((-2, -1, 1, 2)), lambda: value * 2] * 4
    if isinstance(value, list) and value and draw.random() < 0.7:
        i, j = draw.randrange(len(value)), draw.randrange(len(value))
        kind = draw.randrange(3)
        if kind == 0:
            value[i], value[j] = value[j], value[i]
        elif kind == 1:
            value.insert(j, copy.deepcopy(value[i]))
        else:
            del value[i]
    elif isinstance(value, dict) and value and draw.random() < 0.2:
        del value[draw.choice(list(value))]
    else:
        holder[key] = draw.choice(choices)()


def changed(parts, draw):
    """The parts of a file with some random changes; now and then other tensors, or only its bytes, changed."""
    kind = draw.random()
    if isinstance(parts, bytes) or kind < 0.05:
        data = bytearray(packed(parts))
        for _ in range(draw.choice((1, 2, 20))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data)
    header, record, tensors = copy.deepcopy(parts)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        change(header if kind < 0.15 else record, draw)
    if kind > 0.95:
        tensors = draw.randbytes(len(tensors))
    return header, record, tensors


def packed(parts):
    """The bytes of a file, with the right checksum, of what `changed` returns."""
    return parts if isinstance(parts, bytes) else put_together(*parts)


def mutated(parts, seed):
    """A file with some random changes."""
    return packed(changed(parts, random.Random(seed)))


def fate(data, shapes):
    """What becomes of a file: "refused", "not run" (for no shape) or "run".

    An error that was not promised comes out.
    """
    try:
        forms, dtype = file.loads(data, "net.octave")
    except ValueError as error:
        if not re.fullmatch(r"net\.octave .{1,1000}", str(error)):
            raise RuntimeError("an error that misleads") from error
        return "refused"
    return "run" if runs(forms, dtype, shapes) else "not run"


def runs(forms, dtype, shapes):
    """Whether a network that was read runs for any shape."""
    network = engine.NativeNetwork._of(forms, dtype, engine.load(engine.default_target(), dtype))
    network.to_bytes()
    run = False
    for shape in shapes:
        try:
            network(image(*shape).to(dtype))
            run = True
        except ValueError as error:
            if "net.octave" not in str(error) and "too large for the native engine" not in str(error):
                raise RuntimeError("an error that misleads") from error
    return run


class Everything(nn.Module):
    """Convolutions of every kind, at both resolutions, gates, concatenations, poolings and two outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.n = nn.BatchNorm2d(12)
        self.b = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.c = nn.Conv2d(12, 8, (1, 3), padding=(0, 1), groups=2)
        self.d = nn.Conv2d(12, 8, 1)
        self.e = nn.Conv2d(20, 12, 1)
        self.g = nn.Conv2d(12, 12, 1)
        self.s = nn.Conv2d(12, 9, 3, stride=2, padding=2, dilation=2)
        self.h = nn.Conv2d(20, 20, 3, padding=1, groups=5)
        self.fc = nn.Linear(9, 5)

    def forward(self, x):
        from octaveconv.octave import pool, upsample

        y = self.n(self.a(x)).relu()
        y = self.n(y + self.b(y)).relu()
        z = self.c(y) + upsample(self.d(pool(y)), (2, 2), y.shape[-2:])
        z = self.e(self.h(torch.cat([y, z.relu()], 1)))
        z = z * self.g(z.mean((2, 3), keepdim=True)).sigmoid() + y
        z = nn.functional.silu(self.s(nn.functional.max_pool2d(z, 3, 1, 1)))
        return {"logits": self.fc(nn.functional.adaptive_avg_pool2d(z, 1).flatten(1)), "maps": (z, [pool(y)])}


class Part(nn.Module):
    """A network of two or three layers, of one of the kinds in `PARTS`."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.a, self.n = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b = {
            "sum": nn.Conv2d(8, 8, 3, padding=1, groups=8),
            "octave": nn.Conv2d(8, 4, (1, 3), padding=(0, 1), groups=2),
            "gate": nn.Conv2d(8, 8, 1),
            "window": nn.Conv2d(11, 5, 3, stride=2, padding=2, dilation=2),
        }[kind]
        self.c = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        from octaveconv.octave import pool, upsample

        y = self.a(x)
        if self.kind == "sum":
            y = self.n(y).relu()
            return self.n(y + self.b(y)).relu()
        if self.kind == "octave":
            return nn.functional.silu(self.b(y) + upsample(self.c(pool(y)), (2, 2), y.shape[-2:]))
        if self.kind == "gate":
            z = y * self.b(y.mean((2, 3), keepdim=True)).sigmoid() + y
            return nn.functional.adaptive_avg_pool2d(z, 1).flatten(1)
        z = self.b(nn.functional.max_pool2d(torch.cat([y, x], 1), 3, 1, 1))
        return {"z": z, "maps": (pool(x), [y])}


PARTS = ("sum", "octave", "gate", "window")
SHAPES = ((1, 3, 12, 12), (2, 3, 7, 9), (3, 3, 16, 5))


def small_files():
    """Files to change: a network with everything, in both dtypes, with two forms in the first."""
    for dtype in (torch.float32, torch.bfloat16):
        deployed = engine.NativeNetwork(Everything().eval().to(dtype), image(1, 3, 12, 12).to(dtype))
        if dtype == torch.float32:
            deployed(image(1, 3, 1, 6))
        yield deployed.to_bytes()


def tiny_files():
    """Files of a few layers each, for many changes; between them they have the same fields."""
    for kind in PARTS:
        dtype = torch.bfloat16 if kind == "octave" else torch.float32
        deployed = engine.NativeNetwork(Part(kind).eval().to(dtype), image(1, 3, 12, 12).to(dtype))
        if kind == "sum":
            deployed(image(1, 3, 1, 6))
        yield deployed.to_bytes()
