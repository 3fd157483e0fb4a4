"""The native engine's library: the one that came with the package, or one built from the C++ beside this file."""

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
from .build import built, compiler, is_whole
from .targets import DTYPES as _DTYPES
from .targets import FLAGS, PREBUILT, SOURCES, TARGETS, key, prebuilt_name

DTYPES = {getattr(torch, name): flags for name, flags in _DTYPES.items()}
PREBUILT_FOLDER = Path(__file__).parent / "prebuilt"


def default_target() -> str:
    """What this CPU has, or less if ``ATEN_CPU_CAPABILITY`` limits PyTorch."""
    if not os.environ.get("ATEN_CPU_CAPABILITY"):
        return "native"
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "generic")


def runnable(dtype: torch.dtype = torch.float32) -> list[str]:
    """The instruction sets by name that this CPU can run and that differ for ``dtype``, the best one first."""
    capability, flags = torch.backends.cpu.get_cpu_capability(), _flags()
    wide = capability == "AVX512"
    has = {
        "amx": wide and flags >= {"avx512_bf16", "amx_tile", "amx_bf16"},
        "avx512_bf16": wide and "avx512_bf16" in flags,
        "avx512": wide,
        "avx2": wide or capability == "AVX2",
        "generic": True,
    }
    return [target for target in PREBUILT[_name(dtype)] if has[target]]


@functools.cache
def load(target: str = "native", dtype: torch.dtype = torch.float32) -> ctypes.CDLL:
    """The engine for one of `TARGETS`, and for maps and weights of one of `DTYPES`.

    A wheel for x86-64 Linux holds it prebuilt; "native" is then the best of those that this CPU can run, even where
    ``-march=native`` was built before: the vectors are the same, and what differs is the order of instructions.
    oct_resnet50 on a Zen 3 (GCC 12) is as fast with either, within 1 %, if native is not tuned for AMD; see `_built`.

    Elsewhere, and where the sources are not those of the wheel, it is built, and kept in ``OCTAVECONV_CACHE``
    (``~/.cache/octaveconv``) under a name made of sources, flags, compiler and CPU. Processes that need it at the same
    time build it once.

    Raises:
        BackendUnavailable: there is no C++ compiler, it fails, its library cannot be kept or loaded, or it lays out the
            records in another way than Python.
    """
    library = _prebuilt(runnable(dtype)[0] if target == "native" else target, dtype) or _built(target, dtype)
    try:
        engine = _typed(ctypes.CDLL(str(library)))
    except OSError as error:  # where a folder forbids execution, for instance
        raise BackendUnavailable(f"{library} cannot be loaded: {error}") from error
    records.check(engine)
    return engine


def table_of(engine: ctypes.CDLL) -> str:
    """The name of the table of what was measured with an engine on a CPU like this."""
    name = "\0".join([Path(engine._name).stem, _cpu()])
    return f"tuning-{hashlib.sha256(name.encode()).hexdigest()[:20]}.json"


def _prebuilt(target: str, dtype: torch.dtype) -> Path | None:
    """The library in the package, if it is made of the sources beside it and is whole.

    Its owner does not matter, unlike that of one in the cache: who can write there can change this file as well.
    """
    path = PREBUILT_FOLDER / prebuilt_name(target, _name(dtype))
    try:
        return path if is_whole(path) else None
    except OSError:  # it may not be read
        return None


def _built(target: str, dtype: torch.dtype) -> Path:
    """The library from the sources. Tuned for a Zen 3, as native would be, GCC 12's takes 1.25 times as long there."""
    tuning = ["-mtune=generic"] if target == "native" and "AMD" in _cpu() else []
    command = [*compiler(), *FLAGS, *TARGETS[target], *tuning, *DTYPES[dtype]]
    return built(command, [path for path in SOURCES if path.suffix == ".cpp"], key(*command, _cpu()))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cpu() -> str:
    """What -march=native may depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _flags() -> set[str]:
    """What the CPU has and Linux lets programs use, by Linux's names; PyTorch does not ask Linux about AMX."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def _typed(engine: ctypes.CDLL) -> ctypes.CDLL:
    engine.run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    engine.run.restype = None
    engine.records.restype = ctypes.c_char_p
    return engine
