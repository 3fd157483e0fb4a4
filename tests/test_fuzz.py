"""The fuzzer of `make fuzz` notices what it is there for, and the readers withstand some of its files."""

import time

import fuzz
import fuzz_readers
import pytest
import torch
from forks import Fork


def bad(data):
    """A reader that goes wrong in a way for each first byte."""
    kind = data[:1]
    if kind == b"r":
        raise ValueError("net: refused")
    if kind == b"l":
        raise ValueError("two\nlines")
    if kind == b"f":
        raise KeyError("foreign")
    if kind == b"s":
        end = time.process_time() + 1.01
        while time.process_time() < end:
            pass
    if kind == b"m":
        torch.empty(2**27, dtype=torch.uint8)
    if kind == b"M":
        try:
            torch.empty(2**27, dtype=torch.uint8)
            raise MemoryError
        except MemoryError as error:
            raise ValueError("net: refused") from error


def told():
    reader = fuzz_readers.Reader([b"."], None, bytes, bad)
    trial = fuzz.Trial(reader)
    for data in (b".", b"r", b"l", b"f", b"s", b"m", b"M", b"m", b"."):
        print(data.decode(), trial.run(data), flush=True)


def test_it_notices_what_goes_wrong():
    process = Fork(told, MALLOC_ARENA_MAX="1")
    assert process.wait() == 0, process.output()[1]
    read, refused, lines, foreign, slow, large, hidden, again, after = process.output()[0].splitlines()
    assert read == after == ". ()"
    assert refused.startswith("r ('fuzz.py")
    assert "an error that misleads: 'two\\nlines'" in lines
    assert foreign.startswith("f KeyError at ")
    assert slow == "s it takes 1.0 s"
    assert large == again == "m it takes 128 MiB"
    assert "a refusal for want of memory" in hidden


def fuzzed(name):
    trial = fuzz.Trial(fuzz_readers.READERS[name]())
    read = [seed for seed in trial.reader.seeds if not trial.place(trial.reader.packed(seed))]
    assert len(read) > len(trial.reader.seeds) / 2, "what is changed cannot be read before"
    print(fuzz.chunk(trial, name, 0, 200, bytearray(2**20)))


@pytest.mark.parametrize("name", ["params", "records", "safetensors", "recipes", "runs"])
def test_readers_withstand_some_files(name, tmp_path):
    process = Fork(fuzzed, name, MALLOC_ARENA_MAX="1", TMPDIR=str(tmp_path))
    assert process.wait() == 0, process.output()[1]
    assert "'cases': 200" in process.output()[0]
    assert "'problems': []" in process.output()[0], process.output()[0]
