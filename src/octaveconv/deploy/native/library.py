"""The native engine's library: built from the C++ beside this file on first use."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
from pathlib import Path

import torch

from ...errors import BackendUnavailable
from . import records
from .build import built, compiler

SOURCES = sorted(Path(__file__).parent.glob("*.h")) + sorted(Path(__file__).parent.glob("*.cpp"))
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
TARGETS = {  # what the compiler may use; "native" is what this CPU has
    "native": ["-march=native"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "generic": [],
}
DTYPES = {torch.float32: [], torch.bfloat16: ["-DBFLOAT16"]}


def default_target() -> str:
    """What this CPU has, or less if ``ATEN_CPU_CAPABILITY`` limits PyTorch."""
    if not os.environ.get("ATEN_CPU_CAPABILITY"):
        return "native"
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "generic")


def runnable() -> list[str]:
    """The targets that this CPU can run."""
    capability = torch.backends.cpu.get_cpu_capability()
    wide = {"AVX512": ["avx512", "avx2"], "AVX2": ["avx2"]}
    return ["native", *wide.get(capability, []), "generic"]


@functools.cache
def load(target: str = "native", dtype: torch.dtype = torch.float32) -> ctypes.CDLL:
    """The engine, built for one of `TARGETS` and for maps and weights of one of `DTYPES`.

    It is kept in ``OCTAVECONV_CACHE`` (``~/.cache/octaveconv``), under a name made of sources, flags, compiler and CPU.
    Processes that need it at the same time build it once.

    Raises:
        BackendUnavailable: there is no C++ compiler, it fails, its library cannot be kept or loaded, or it lays out the
            records in another way than Python.
    """
    command = [*compiler(), *FLAGS, *TARGETS[target], *DTYPES[dtype]]
    key = hashlib.sha256("\0".join([*command, _cpu()]).encode())
    for path in SOURCES:
        key.update(path.read_bytes())
    library = built(command, [path for path in SOURCES if path.suffix == ".cpp"], key.hexdigest()[:20])
    try:
        engine = _typed(ctypes.CDLL(str(library)))
    except OSError as error:  # where a folder forbids execution, for instance
        raise BackendUnavailable(f"{library} cannot be loaded: {error}") from error
    records.check(engine)
    return engine


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
    engine.records.restype = ctypes.c_char_p
    return engine
