"""What the tests of the Triton kernels share: they run on a GPU, or interpreted in a process of their own."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import octaveconv as oc
from octaveconv.spec import conv_spec

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

on_device = (lambda test: test) if INTERPRETED else pytest.mark.gpu  # runs the kernels
on_host = pytest.mark.skipif(INTERPRETED, reason="needs kernels that are compiled")


def triton():
    """The module: importing it imports Triton, which must not happen before it is known whether it interprets."""
    from octaveconv.backends import triton

    return triton


def passed_interpreted(file, kind="not slow", *more):
    """How many tests of a file, and of more, pass.

    Triton looks for the variable when it is imported: it takes a fresh process.
    """
    options = "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs", "-m", kind
    command = [sys.executable, "-m", "pytest", *options, file, *more]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in done.stdout:
        pytest.skip("the interpreter of Triton 3.6 needs a NumPy before 2.4")
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def quick(cases, some):
    """Cases to run, of which those are slow that are not among ``some``."""
    return [pytest.param(case, marks=[pytest.mark.slow] * (case not in some)) for case in cases]


def strided(part):
    """The same numbers, every second of a larger map."""
    wide = part.new_empty([2 * n for n in part.shape])
    wide[::2, ::2, ::2, ::2] = part
    return wide[::2, ::2, ::2, ::2]


LAYOUTS = {
    "channels_last": lambda part: part.contiguous(memory_format=torch.channels_last),
    "strided": strided,
    "transposed": lambda part: part.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda part: part[:1].expand(part.shape),
}


def on_cuda():
    """An input of which a GPU would be found to be the device."""
    spec = conv_spec(2, 16, 16, 3, 1, 1, 1, 1, "zeros", 0.25, 0.25, None, None)
    with FakeTensorMode():
        return oc.Octave(torch.empty(2, 12, 8, 8, device="cuda"), torch.empty(2, 4, 4, 4, device="cuda")), spec


def pretend_gpu(monkeypatch, major):
    """Let there be a GPU of this compute capability."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
