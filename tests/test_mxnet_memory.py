"""What loading a parameter file costs in memory, measured in a process of its own."""

import gzip
import lzma
import subprocess
import sys

import mxnet_writer as writer
import pytest
import torch

from octaveconv.mxnet import params as mxnet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; ru_maxrss would count the parent's peak too"),
]
MIB = 2**20
PROBE = """
import re, sys
import torch
from octaveconv.mxnet.params import load_mxnet
from octaveconv.errors import MXNetFormatError
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
torch.frombuffer(bytearray(8), dtype=torch.uint8).clone().max(); torch.ones(8).amax()
before = peak()
try:
    found = load_mxnet(sys.argv[1])
    result = len(found)
except MXNetFormatError as error:
    found, result = {}, error.field
loaded = peak()
if len(found) < 100:
    assert all(tensor.amax() == 1 for tensor in found.values())  # touches every page
print(result, loaded - before, peak() - before, sep=", ")
"""


def probe(tmp_path, data):
    """What came out, and the bytes it took to load, and to load and read all."""
    (tmp_path / "f").write_bytes(data)
    command = [sys.executable, "-c", PROBE, tmp_path / "f"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result, loaded, used = done.stdout.split(", ")
    print(f"{len(data)} bytes: {result}, {loaded} bytes to load, {used.strip()} to read all")
    return result, int(loaded), int(used)


@pytest.mark.parametrize("archive", [False, True])
def test_a_large_file_costs_its_size_once(tmp_path, archive):
    data = writer.params({f"arg:{i}": torch.ones(1_000_003) for i in range(25)})  # 100 MB
    result, _, used = probe(tmp_path, writer.tar({"a/x.params": data}) if archive else data)
    assert result == "25"
    assert 0.9 * len(data) < used < 1.1 * len(data)


def most_arrays(name_of):
    """As many arrays and names as are let through, of the kind that takes most memory for its bytes."""
    tensors = {name_of(i): torch.zeros([1] * 32, dtype=torch.float16) for i in range(1, mxnet.MAX_ARRAYS)}
    return writer.params({"odd": torch.zeros(1, dtype=torch.uint8), **tensors})  # so all the others are unaligned


@pytest.mark.parametrize("name_of", ["{:05}", "\U0001f600{:0252}"], ids=["short", "long"])
def test_many_small_arrays(tmp_path, name_of):
    data = most_arrays(name_of.format)
    result, loaded, _ = probe(tmp_path, data)
    assert result == str(mxnet.MAX_ARRAYS)
    assert loaded < len(data) + 64 * MIB


@pytest.mark.parametrize("kind", ["gzip", "xz"])
def test_bombs_are_stopped(tmp_path, kind):
    head = writer.params({"w": torch.ones(2)})
    data = (gzip if kind == "gzip" else lzma).compress(head + bytes(2**28))
    result, loaded, _ = probe(tmp_path, data)
    assert result == f"{kind} stream"
    assert loaded < 8 * len(data) + (16 + 16) * MIB  # what was let through; xz's dictionary of 8 MiB and its tables


def test_a_tar_of_nothing_but_headers(tmp_path):
    data = writer.tar({"x": b""})[:512] * 100_000
    result, loaded, _ = probe(tmp_path, data)
    assert result == "tar"
    assert loaded < len(data) + 32 * MIB
