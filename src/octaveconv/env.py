"""The conditions of a measurement: versions and machine, for results and for bug reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch


def facts() -> dict[str, str]:
    """Versions of the relevant packages, the processor, its cores, the chosen backend, and the GPU if there is one."""
    packages = ("octaveconv", "torch", "timm", "torchvision", "triton")
    found = {name: _version(name) for name in packages}
    found["python"] = platform.python_version()
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["cpu"] = f"{_cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    found["backend"] = os.environ.get("OCTAVECONV_BACKEND") or "automatic"
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


def _version(package: str) -> str:
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
