"""Puts the native engine, built for every instruction set, into a wheel for x86-64 Linux.

It runs only where ``HATCH_BUILD_HOOK_ENABLE_CUSTOM=1`` asks for it, as ``make wheel`` does. Without it the wheel is
pure, and the engine is built from source where it is used.
"""

import hashlib
import os
import platform
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "octaveconv/deploy/native"
# The C++ library goes inside, for older systems have an older one: only what is used, and hidden from everyone else.
LINKING = ["-static-libstdc++", "-Wl,--gc-sections,--exclude-libs,ALL", "-s"]
EXPORTED = "{ global: [a-z]*; local: *; };"  # C's names, not C++'s, which begin with _Z
EVERYWHERE = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}  # of PEP 600


class Engines(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "editable":
            return
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise SystemExit(
                f"the engine is prebuilt on x86-64 Linux, not on {platform.machine()} {sys.platform}: build without "
                f"HATCH_BUILD_HOOK_ENABLE_CUSTOM"
            )
        self.folder = tempfile.TemporaryDirectory()
        Path(self.folder.name, "exported").write_text(EXPORTED)
        targets = runpy.run_path(str(Path(self.root, "src", NATIVE, "targets.py")))
        which = [(target, dtype) for dtype, names in targets["PREBUILT"].items() for target in names]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = list(pool.map(lambda each: self._build(targets, *each), which))
        for path in (*made, *(path.with_suffix(".sha256") for path in made)):
            build_data["force_include"][str(path)] = f"{NATIVE}/prebuilt/{path.name}"
        major, minor = max(map(oldest_glibc, made))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_{major}_{minor}_x86_64"

    def finalize(self, version, build_data, artifact_path):
        if version != "editable":
            self.folder.cleanup()

    def _build(self, targets, target, dtype):
        path = Path(self.folder.name, targets["prebuilt_name"](target, dtype))
        flags = [*targets["FLAGS"], *targets["TARGETS"][target], *targets["DTYPES"][dtype]]
        sources = [str(source) for source in targets["SOURCES"] if source.suffix == ".cpp"]
        compiler = shlex.split(os.environ.get("CXX") or "g++")
        linking = [*LINKING, f"-Wl,--version-script={self.folder.name}/exported"]
        subprocess.run([*compiler, *flags, *sources, *linking, "-o", str(path)], check=True)
        path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
        self.app.display_info(f"{path.name}: {path.stat().st_size:,} bytes")
        return path


def oldest_glibc(library):
    """The version of glibc that a library needs at least, read from its symbols: (2, 34), say."""
    said = subprocess.run(["objdump", "-p", library], check=True, capture_output=True, text=True).stdout
    strange = set(re.findall(r"NEEDED +(\S+)", said)) - EVERYWHERE
    if strange:
        raise SystemExit(f"{library} needs {', '.join(sorted(strange))}, which not every Linux has")
    return max((int(major), int(minor)) for major, minor in re.findall(r"\bGLIBC_(\d+)\.(\d+)", said))
