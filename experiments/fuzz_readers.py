"""The readers of foreign bytes that `fuzz.py` tries: how each is called, what it may raise, and what it is tried on."""

import argparse
import copy
import gzip
import io
import json
import lzma
import os
import random
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from deployed_files import change
from fuzz_changes import archive, archived, bytes_changed, json_changed

from octaveconv import _checksum

RARELY = 1000  # one in so many of the files that can be read is also put to what takes long


class Reader(NamedTuple):
    """One kind of file.

    Attributes:
        seeds: what is changed first; of any type.
        changed: a changed copy of one of them, or of a copy.
        packed: the bytes of such a copy.
        read: reads these bytes.
        errors: what ``read`` may raise, in one line.
        room: MiB that it may take beside the file.
    """

    seeds: list[Any]
    changed: Callable[[Any, random.Random], Any]
    packed: Callable[[Any], bytes]
    read: Callable[[bytes], Any]
    errors: Any = ValueError
    room: int = 64


def rarely(data):
    return zlib.crc32(data) % RARELY == 0


class File:
    """A file in memory, which has a path."""

    def __init__(self):
        self.number = os.memfd_create("fuzz")
        self.path = Path(f"/proc/self/fd/{self.number}")

    def write(self, data):
        os.ftruncate(self.number, 0)
        os.pwrite(self.number, data, 0)
        return self.path


# MXNet's files


def params():
    """Small files; the first byte says how the others are given to the reader, see `_open_params`."""
    import mxnet_writer as writer
    import torch

    from octaveconv.errors import MXNetFormatError
    from octaveconv.mxnet.params import DTYPES

    tensors = {str(dtype): torch.ones(1, 2, dtype=dtype) for dtype in DTYPES}
    each = [writer.ENCODINGS[i % 4] for i in range(len(tensors))]
    lists = [writer.params(tensors, encoding) for encoding in (*writer.ENCODINGS, each)]
    lists += [writer.params({"s": torch.tensor(1.0), "e": torch.zeros(0, 3)}, "V3"), writer.list_bytes([])]
    lists += [writer.list_bytes([writer.array_bytes(torch.ones(3))])]
    small = writer.params({"w": torch.ones(2)})
    tar = writer.tar({"a/": b"", "a/x.json": b"{}", "a/x.params": small})
    lists += [tar, gzip.compress(small), lzma.compress(small)]
    file = File()

    def read(data):
        loaded = _open_params(data[:1], data[1:], file)
        for tensor in loaded.values():
            if tensor.numel():
                tensor.view(-1).view(dtype=torch.uint8).max()  # every byte can be read
        if data[1:3] not in (b"\x1f\x8b", b"\xfd7"):
            assert sum(tensor.nbytes for tensor in loaded.values()) <= len(data), "more came out than went in"

    seeds = [bytes([form]) + data for data in lists for form in range(8)]
    # A dictionary as of xz -9 takes 65 MiB, and the address space for what comes out 16.
    return Reader(seeds, bytes_changed, bytes, read, MXNetFormatError, 64 + 18)


def _open_params(form, body, file):
    """Eight ways to the parameter reader: half of the cases straight, the others through a path or a container."""
    from octaveconv.mxnet.container import contents
    from octaveconv.mxnet.fields import Fields
    from octaveconv.mxnet.params import load_mxnet, read_list

    form = sum(form) % 8
    if form == 4:
        return load_mxnet(file.write(body))
    if form == 5:  # a tar whose checksums are right, so that what is behind them is reached
        body = bytearray(body)
        for at in range(0, len(body) - 511, 512):
            if body[at + 257 : at + 262] == b"ustar":
                body[at + 148 : at + 156] = b" " * 8
                body[at + 148 : at + 156] = b"%06o\0 " % sum(body[at : at + 512])
    if form == 6:
        body = gzip.compress(body, 1)
    if form == 7:
        body = lzma.compress(body, preset=0)
    return read_list(contents(Fields(bytearray(body), "fuzz")))


def records():
    """Two records; the first two bytes are the length of the index that follows them."""
    import mxnet_writer as writer

    from octaveconv.errors import MXNetFormatError
    from octaveconv.mxnet.recordio import Record, RecordFile

    images = [Record((3.0,), 7, b"JPEG"), Record((1.0, 2.0), 8, b"abcd" + writer.RECORD_MAGIC + b"e" * 9)]
    content, index = writer.record_file([writer.image_payload(record) for record in images])
    seeds = [struct.pack("<H", 0) + content, struct.pack("<H", len(index)) + index + content]
    files = File(), File()

    def read(data):
        end = 2 + int.from_bytes(data[:2], "little")
        paths = [file.write(part) for file, part in zip(files, (data[end:], data[2:end]))]
        for record in RecordFile(paths[0], paths[1] if end > 2 else None):
            assert len(record.image) + 4 * len(record.labels) <= len(data) + 4, "more came out than went in"

    return Reader(seeds, bytes_changed, bytes, read, MXNetFormatError)


# Our own files


def safetensors():
    """Files of weights with what they say of themselves; a change is in the header, and the checksum right, mostly."""
    import torch
    from safetensors.torch import save

    from octaveconv.about import About
    from octaveconv.models.create import check, create
    from octaveconv.weights import files

    network = create("oct_resnetv2_26", 0.5, num_classes=3, model_args=dict(layers=[1, 1, 1, 1], width=4))
    about = About.of(network).metadata()
    about["octavify"] = json.dumps({"alpha": 0.5, "keep": ["fc"], "example": [1, 3, 32, 32]})
    tensors = {"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3).bfloat16(), "n": torch.tensor(1)}
    file = File()

    def read(data):
        path = file.write(data)
        found = files.read(path)
        found.alpha, found.num_classes, found.about.metadata(), found.about.overlay(3), found.about.size
        if found.about.model and rarely(data):
            check(found.about.model, None, found)

    seeds = []
    for metadata in (about, {key: about[key] for key in ("model", "alpha")}, {}):
        data = save(tensors, metadata | {"checksum": _checksum.EMPTY})
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"] = {key: _parsed(text) for key, text in header["__metadata__"].items()}
        seeds.append((json.dumps(header), data[8 + length :]))
    return Reader(seeds, _header_changed, _with_header, read)


def _parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _header_changed(seed, draw):
    """Another header, as JSON in which metadata are values, and the tensors; or the bytes of a file."""
    if isinstance(seed, bytes) or draw.random() < 0.1:
        return bytes_changed(_with_header(seed), draw)
    header, tensors = seed
    return json_changed(header, draw), tensors


def _with_header(seed):
    """The file of a header, whose metadata are texts again, with the right checksum; or bytes as they are."""
    if isinstance(seed, bytes):
        return seed
    header, tensors = seed
    found = json.loads(header)
    metadata = found.get("__metadata__") if isinstance(found, dict) else None
    if isinstance(metadata, dict):
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        found["__metadata__"] = texts
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text + tensors
    return b"".join(_checksum.sealed(data)) if b'"checksum":"' + _checksum.EMPTY.encode() in data else data


YAML = [
    word.encode()
    for word in (
        "&a ", "*a", "<<: *a\n", "<<: [*a, *a]\n", "!!python/object/apply:os.system [ls]", "!!binary aGk=", "!!set ",
        "!!timestamp ", "2020-01-01 00:00:00", "!!omap ", "!!int ", "!!float ", "? ", "- ", ": ", "[", "]", "{", "}",
        "'", '"', "|\n ", ">\n ", "#", "---\n", "...\n", "%YAML 9.9\n", "\t", "\0", "\ufeff", "\u2028", "\\x", "~",
        ".inf", "-.inf", ".nan", "1e23", "1e999", "-1", "0", "1" * 400, "0x" + "f" * 40, "1_0", "0b1", "1:30:30", "yes",
        "null", "[1, 2]", "{a: 1}", "''", "a: &a [x, x, x, x, x, x, x, x, x]\n", "b: &b [*a, *a, *a, *a, *a, *a, *a]\n",
        "c: &c [*b, *b, *b, *b, *b, *b, *b]\n", "d: &d [*c, *c, *c, *c, *c, *c, *c]\n", "e: [*d, *d, *d, *d, *d, *d]\n",
        "\nepochs: ", "\nlr: ", "\nalpha: ", "\nsize: ", "\nmodel_args: ", "\nmodel: ", "\n1: ", "\n[1]: ", "\n~: ",
    )
]  # fmt: skip


def recipes():
    from octaveconv.train.defaults import settle
    from octaveconv.train.recipe import Recipe, read_yaml

    root = Path(__file__).parent.parent / "recipes"
    seeds = [path.read_bytes() for path in sorted(root.glob("*.yaml"))]
    lines = [line for seed in seeds for line in seed.splitlines(keepends=True) if line[:1] not in b"#\n"]
    seeds = [b"".join(lines[i : i + 6]) for i in range(0, len(lines), 6)]
    file = File()

    def read(data):
        recipe = settle(Recipe.of(read_yaml(file.write(data))).checked(), 50_000)[0]
        recipe.scaled_lr(), recipe.to_dict()

    return Reader(seeds, lambda seed, draw: bytes_changed(seed, draw, YAML), bytes, read)


def runs():
    """The files of a run folder, each alone: a byte says which, what follows is its content."""
    import torch

    from octaveconv import _figure, doctor
    from octaveconv.train import lock
    from octaveconv.train.folder import RunFolder
    from octaveconv.train.recipe import Recipe
    from octaveconv.verbs import train as verb

    names = ("config.yaml", "results.csv", "env.json", "last.pth")
    training, row = _small_training(), {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "top1": 50.0, "top5": 100.0}
    recipe = {"model": "oct_resnet18", "alpha": 0.5, "model_args": {"width": 4}, "epochs": 3, "data": "d"}
    recipe |= {"batch_size": 8, "lr": 0.1, "warmup_epochs": 1}
    state, folder = training.state() | {"recipe": recipe}, RunFolder(Path(tempfile.mkdtemp()))
    folder.write_config(recipe)
    folder.append(row)
    folder.append(row | {"epoch": 2})
    folder.write_env()
    folder.save(state)
    whole = {name: (folder.path / name).read_bytes() for name in names}

    def resume(state):
        recipe, _, _ = verb._of_run(argparse.Namespace(epochs=None), folder.path, state, "cpu")
        resumed = copy.deepcopy(training)
        resumed.restore(state)
        folder.truncate(resumed.epoch + 1)
        return resumed.epoch >= recipe.epochs or resumed.learning_rate()

    readers = {
        "config.yaml": lambda: Recipe.of(folder.config()),
        "results.csv": lambda: (folder.truncate(2), folder.rows()),
        "env.json": lambda: lock._holder(folder.path),
        "last.pth": lambda: resume(folder.load()),
    }

    def examine():
        list(doctor.examine(folder.path))
        folder.curves()

    def read(data):
        name = names[data[0] % len(names)] if data else names[0]
        (folder.path / name).write_bytes(data[1:])
        try:
            if rarely(data):
                examine()
            readers[name]()
        finally:
            (folder.path / name).write_bytes(whole[name])

    def changed(seed, draw):
        name, content = seed
        if name == "records":
            record = draw.choice(list(content))
            return name, content | {record: bytes_changed(content[record], draw)}
        if name == "state":
            holder = [copy.deepcopy(content)]  # so that the whole can be changed, too
            change(holder, draw)
            return name, holder[0] if holder else None
        return name, bytes_changed(content, draw, YAML)

    def packed(seed):
        name, content = seed
        if name == "records":
            return b"\3" + archive(content)
        if name == "state":
            file = io.BytesIO()
            torch.save(content, file)
            return b"\3" + file.getvalue()
        return bytes([names.index(name)]) + content

    _figure.write = lambda *_: None  # what is drawn is what the table decides
    examine()  # imports what it needs
    seeds = [*whole.items(), ("records", archived(whole["last.pth"])), *[("state", state)] * 2]
    return Reader(seeds, changed, packed, read, (ValueError, OSError, RuntimeError))


def _small_training():
    """What is restored from a checkpoint, of a network of one layer."""
    import torch
    from torch import nn

    from octaveconv.train.loop import Training
    from octaveconv.train.recipe import Recipe

    training = Training.__new__(Training)
    training.recipe = Recipe(epochs=3, batch_size=8, lr=0.1, warmup_epochs=1)
    training.device = torch.device("cpu")
    training.model = nn.Sequential(OrderedDict(fc=nn.Linear(4, 3)))
    training.optimizer = torch.optim.SGD(training.model.parameters(), 0.1, momentum=0.9)
    training.model(torch.ones(1, 4)).sum().backward()
    training.optimizer.step()
    training.scaler, training.ema = torch.amp.GradScaler("cpu", enabled=False), None
    training.about, training.steps = {"model": "oct_resnet18", "alpha": "0.5", "model_args": '{"width": 4}'}, 4
    training.epoch, training.step, training.best, training.loss_sum = 1, 2, 50.0, 1.5
    return training


def deployed():
    """Files of small networks, read, and run if they can be."""
    from deployed_files import SHAPES, changed, packed, runs, taken_apart, tiny_files

    from octaveconv.deploy.native import file, geometry, library, tune

    library.FLAGS[:1] = SANITIZED
    geometry.MEMORY, tune.SECONDS = 2**25, 0

    def read(data):
        found = file.loads(data, "net.octave")
        try:
            runs(*found, SHAPES[1:2])
        except ValueError as error:
            raise RuntimeError("it was read, and cannot be run") from error

    return Reader([taken_apart(data) for data in tiny_files()], changed, packed, read)


SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def sanitizers():
    """The environment of a process with the C++ under the sanitizers: a step outside of a map or table ends it."""
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=4",
        "CXX": "g++",
    }


READERS = {
    "params": params,
    "records": records,
    "safetensors": safetensors,
    "recipes": recipes,
    "runs": runs,
    "deployed": deployed,
}
