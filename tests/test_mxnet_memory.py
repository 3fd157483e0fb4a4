"""What loading a parameter file costs in memory, measured in processes of their own."""

import gzip
import lzma
import subprocess
import sys

import mxnet_writer as writer
import pytest
import torch

from octaveconv.mxnet import params as mxnet

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc; ru_maxrss would count the parent's peak too"
)
MIB = 2**20
PROBES = """
import os, re, sys
import torch
from octaveconv.mxnet.params import load_mxnet
from octaveconv.errors import MXNetFormatError
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
for line in sys.stdin:
    if os.fork():
        os.wait()
        continue
    torch.frombuffer(bytearray(8), dtype=torch.uint8).clone().max(); torch.ones(8).amax()
    try:
        load_mxnet("/dev/null")  # the pages of all that code
    except MXNetFormatError:
        before = peak()
    try:
        found = load_mxnet(line.rstrip("\\n"))
        result = len(found)
    except MXNetFormatError as error:
        found, result = {}, error.field
    loaded = peak()
    if len(found) < 100:
        assert all(tensor.amax() == 1 for tensor in found.values())  # touches every page
    print(result, loaded - before, peak() - before, sep=", ", flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def probes():
    """A process that has imported what it needs; it forks one for each file that it is given."""
    command = [sys.executable, "-c", PROBES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def probe(probes, tmp_path):
    """What comes out of a file, and the bytes it takes to load, and to load and read all."""

    def probe(data):
        (tmp_path / "f").write_bytes(data)
        probes.stdin.write(f"{tmp_path / 'f'}\n")
        result, loaded, used = probes.stdout.readline().split(", ")
        print(f"{len(data)} bytes: {result}, {loaded} bytes to load, {used.strip()} to read all")
        return result, int(loaded), int(used)

    return probe


@pytest.mark.parametrize("archive", [False, True])
def test_a_large_file_costs_its_size_once(probe, archive):
    data = writer.params({f"arg:{i}": torch.ones(1_000_003) for i in range(25)})  # 100 MB
    result, _, used = probe(writer.tar({"a/x.params": data}) if archive else data)
    assert result == "25"
    assert 0.9 * len(data) < used < 1.1 * len(data)


def most_arrays(name_of):
    """As many arrays and names as are let through, of the kind that takes most memory for its bytes."""
    tensors = {name_of(i): torch.zeros([1] * 32, dtype=torch.float16) for i in range(1, mxnet.max_arrays(0))}
    return writer.params({"odd": torch.zeros(1, dtype=torch.uint8), **tensors})  # so all the others are unaligned


@pytest.mark.parametrize("name_of", ["{:05}", "\U0001f600{:0252}"], ids=["short", "long"])
def test_many_small_arrays(probe, name_of):
    data = most_arrays(name_of.format)
    result, loaded, _ = probe(data)
    assert result == str(mxnet.max_arrays(0))
    assert loaded < len(data) + 64 * MIB


@pytest.mark.slow
def test_more_small_arrays_in_a_larger_file(probe):
    size = 2**27
    names = [f"{i:0>9}\U0001f600" for i in range(mxnet.max_arrays(size) - 1)]
    small = dict.fromkeys(names, torch.zeros([1] * 32).half())
    data = writer.params({"w": torch.zeros(size, dtype=torch.uint8), **small})
    result, loaded, _ = probe(data)
    assert int(result) > 49_000
    assert loaded < len(data) + 64 * MIB


@pytest.mark.parametrize("kind", ["gzip", "xz"])
def test_bombs_are_stopped(probe, kind):
    head = writer.params({"w": torch.ones(2)})
    data = (gzip if kind == "gzip" else lzma).compress(head + bytes(2**27))
    result, loaded, _ = probe(data)
    assert result == f"{kind} stream"
    assert loaded < 8 * len(data) + (16 + 16) * MIB  # what was let through; xz's dictionary of 8 MiB and its tables


def test_a_tar_of_nothing_but_headers(probe):
    data = writer.tar({"x": b""})[:512] * 100_000
    result, loaded, _ = probe(data)
    assert result == "tar"
    assert loaded < len(data) + 32 * MIB
