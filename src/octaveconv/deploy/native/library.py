"""The native engine's library: built from the C++ beside this file on first use, and the structures it reads."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ...errors import BackendUnavailable
from ..cache import cache_folder

SOURCES = sorted(Path(__file__).parent.glob("*.h")) + sorted(Path(__file__).parent.glob("*.cpp"))
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
TARGETS = {  # what the compiler is told to use; "native" is what this CPU has
    "native": ["-march=native"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "generic": [],
}
DTYPES = {torch.float32: [], torch.bfloat16: ["-DBFLOAT16"]}

_POINTER, _INT, _LONG, _FLOAT = np.uintp, np.int32, np.int64, np.float32


def _struct(**fields: object) -> np.dtype[np.void]:
    return np.dtype(list(fields.items()), align=True)


# program.h, field by field.
TERM = _struct(source=_POINTER, pixels=_POINTER, taps=_POINTER, tap_count=_INT, depthwise=_INT)
SLICE = _struct(weights=_POINTER, first=_INT, count=_INT)
PANEL = _struct(slices=_POINTER, bias=_POINTER, weights=_POINTER, weights_end=_POINTER, channel=_INT, vectors=_INT)
ADDEND = _struct(source=_POINTER, pixels=_POINTER, gate=_POINTER, gate_pixels=_POINTER, per_block=_INT)
OUTPUT = _struct(
    full=_POINTER, pixels=_POINTER, pooled=_POINTER, blocks=_POINTER, scale=_POINTER, shift=_POINTER,
    full_channels=_INT, pooled_channels=_INT, activation=_INT, low=_FLOAT, high=_FLOAT,
)  # fmt: skip
WINDOW = _struct(
    source=_POINTER, target=_POINTER, images=_INT, height=_INT, width=_INT, out_height=_INT, out_width=_INT,
    channels=_INT, kernel=(_INT, 2), stride=(_INT, 2), padding=(_INT, 2), count_padding=_INT,
    source_image=_INT, source_row=_INT, source_stride=_INT, target_image=_INT, target_row=_INT, target_stride=_INT,
    slot=_INT, first=_INT,
)  # fmt: skip
LAYER = _struct(
    kind=_INT, units=_INT, blocks=_INT, term_count=_INT, coarse_count=_INT, panel_count=_INT, addend_count=_INT,
    output_count=_INT, pixels_outside=_INT, staged=_INT, channel_split=_INT, terms=_POINTER, panels=_POINTER,
    addends=_POINTER, outputs=_POINTER, window=_POINTER,
)  # fmt: skip
PROGRAM = _struct(layers=_POINTER, phases=_POINTER, phase_count=_INT)
OUTSIDE = _struct(data=_POINTER, strides=(_LONG, 4), step=_LONG)
KINDS = ("gemm", "mean", "max", "average", "read", "write")
ACTIVATIONS = ("clamp", "sigmoid", "hardswish", "hardsigmoid", "silu")


def default_target() -> str:
    """What this CPU has, or less if ``ATEN_CPU_CAPABILITY`` tells PyTorch so."""
    if not os.environ.get("ATEN_CPU_CAPABILITY"):
        return "native"
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "generic")


def runnable() -> list[str]:
    """The targets that this CPU can run."""
    capability = torch.backends.cpu.get_cpu_capability()
    wide = {"AVX512": ["avx512", "avx2"], "AVX2": ["avx2"]}
    return ["native", *wide.get(capability, []), "generic"]


@functools.cache
def library(target: str = "native", dtype: torch.dtype = torch.float32) -> ctypes.CDLL:
    """The engine, built for a target of `TARGETS` and for maps and weights of a dtype of `DTYPES`.

    It is kept in ``OCTAVECONV_CACHE`` (``~/.cache/octaveconv``), under a name made of sources, flags, compiler and CPU;
    processes that need it at the same time build it once.

    Raises:
        BackendUnavailable: there is no C++ compiler, or it fails.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BackendUnavailable("the native engine needs a C++ compiler: install g++ or clang++, or set CXX")
    command = [*shlex.split(compiler), *FLAGS, *TARGETS[target], *DTYPES[dtype]]
    key = hashlib.sha256("\0".join([*command, _cpu()]).encode())
    for path in SOURCES:
        key.update(path.read_bytes())
    cache = cache_folder()
    path = cache / f"engine-{key.hexdigest()[:20]}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _build(command, path)
    return _typed(ctypes.CDLL(str(path)))


def _build(command: list[str], path: Path) -> None:
    """Compile to a file of our own first: what lies at ``path`` is always whole."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / "engine.so"
        sources = [str(source) for source in SOURCES if source.suffix == ".cpp"]
        done = subprocess.run([*command, *sources, "-o", str(built)], capture_output=True, text=True)
        if done.returncode:
            line = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
            raise BackendUnavailable(f"the native engine could not be compiled by {command[0]}: {line}")
        built.replace(path)


def _cpu() -> str:
    """What -march=native may depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _typed(engine: ctypes.CDLL) -> ctypes.CDLL:
    engine.run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    engine.run.restype = None
    return engine
