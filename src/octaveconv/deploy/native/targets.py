"""What the engine's library is made of, and for which instruction sets. hatch_build.py reads this, too: no PyTorch."""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.h")) + sorted(Path(__file__).parent.glob("*.cpp"))
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
_AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mtune=skylake-avx512"]
TARGETS = {  # what the compiler may use; "native" is what this CPU has
    "native": ["-march=native"],
    "amx": [*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mtune=sapphirerapids"],
    "avx512_bf16": [*_AVX512, "-mavx512bf16"],
    "avx512": _AVX512,
    "avx2": ["-mavx2", "-mfma"],
    "generic": [],
}
DTYPES = {"float32": [], "bfloat16": ["-DBFLOAT16"]}
# Those of which the sources make something different, the best ones first. A wheel for x86-64 Linux holds all of them.
PREBUILT = {"float32": ["avx512", "avx2", "generic"], "bfloat16": ["amx", "avx512_bf16", "avx512", "avx2", "generic"]}


def key(*parts: str) -> str:
    """20 hexadecimal digits that stand for the sources and for ``parts``, which say how they are compiled."""
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in SOURCES:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def prebuilt_name(target: str, dtype: str) -> str:
    """The name of a library in a wheel: other sources or flags make another one."""
    return f"engine-{target}-{dtype}-{key(*FLAGS, *TARGETS[target], *DTYPES[dtype])}.so"
