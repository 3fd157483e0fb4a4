"""What a figure was measured with: versions, commit and machine, for results and for bug reports."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

DIRTY = "-dirty"  # the end of a commit in a working tree with uncommitted changes


def facts() -> dict[str, str]:
    """Versions of the packages that matter, the processor and its cores, the chosen backend, and the GPU if any."""
    packages = ("octaveconv", "torch", "timm", "torchvision", "triton")
    found = {name: version(name) for name in packages}
    found["python"] = platform.python_version()
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["cpu"] = f"{_cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    found["backend"] = os.environ.get("OCTAVECONV_BACKEND") or "automatic"
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


def commit() -> str:
    """What ``git describe`` says of this checkout, with `DIRTY` at the end if it has uncommitted changes."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        command = [*git, "describe", "--always", f"--dirty={DIRTY}", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def version(package: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
