"""What the Triton kernels take of an H100's resources: they are compiled for one, and none is needed.

python experiments/triton_resources.py --json results/triton_resources.json
"""

import argparse
import json
import re
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

import octaveconv as oc
from octaveconv import env
from octaveconv._text import text_table
from octaveconv.backends import _triton_norm
from octaveconv.backends import triton as backend

LAYERS = {
    "1x1, 256 to 64": dict(in_channels=256, out_channels=64, kernel_size=1),
    "3x3, 128 to 128": dict(in_channels=128, out_channels=128, kernel_size=3, padding=1),
    "depthwise 3x3, 128": dict(in_channels=128, out_channels=128, kernel_size=3, padding=1, groups=128),
}
DTYPES = (torch.bfloat16, torch.float32)
ALPHA = 0.5
NORM = "norm, 128"  # with its gradient


class _H100:
    """In the place of the driver of a GPU: it says what to compile for."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@contextmanager
def h100():
    """Triton believes that there is an H100; it can compile, and must not launch."""
    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(_H100())
    try:
        yield
    finally:
        driver.set_active(before)


@contextmanager
def recorded():
    """Collect the kernels that are launched, with their arguments; they are not launched."""
    found = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **kwargs: found.append((self.kernel, args, kwargs))

    with (
        mock.patch.object(backend, "wrap_triton", Recorder),
        mock.patch.object(_triton_norm, "wrap_triton", Recorder),
        torch.no_grad(),
    ):
        yield found


def launches(layer, x):
    """The kernels that the backend launches for ``layer(x)``."""
    with recorded() as found:
        backend.octconv(x, layer.weight, layer.bias, layer.spec)
    return found


def norm_launches(dtype, layout=torch.channels_last):
    """Those of a norm with ReLU, and of its gradient, by name: with a pooled copy, and with a residual."""
    named = {}
    for option in ("pooled", "residual"):
        x = residual = oc.octave_map(lambda part: part.contiguous(memory_format=layout), octave(128, dtype))
        weight, out = torch.ones(128), (None, None)
        if option == "pooled":
            residual = oc.Octave(None, None)
        else:
            out = x
        with recorded() as found:
            *_, statistics = _triton_norm.operator(*x, weight, weight, *residual, 1e-5, True, option == "pooled")
            _triton_norm.backward_operator(*x, *x, weight, weight, statistics, *out, True, option == "residual")
        for launch in found:
            name = launch[0].fn.__name__
            alike = name in ("moments", "statistics")
            named[f"{NORM}: {name}" + ("" if alike else f", {option}")] = launch
    return named


def octave(channels, dtype):
    """An octave of zeros."""
    high, low = (torch.zeros(2, channels // 2, size, size, dtype=dtype) for size in (8, 4))
    return oc.Octave(high, low)


def example(name, dtype):
    """A layer of the table in channels_last, and an input for it."""
    layer = oc.OctConv2d(**LAYERS[name], bias=True, alpha_in=ALPHA, alpha_out=ALPHA, dtype=dtype)
    last = torch.channels_last
    x = octave(layer.in_channels, dtype)
    return layer.to(memory_format=last), oc.octave_map(lambda part: part.contiguous(memory_format=last), x)


def compile_for_h100(launch, config=None):
    """The kernel as Triton compiles it for this launch, and configuration where there is a choice."""
    kernel, args, kwargs = launch
    with h100():
        if config is None:
            return kernel.warmup(*args, grid=(1,), **kwargs)
        return kernel.fn.warmup(*args, grid=(1,), **kwargs, **config.all_kwargs())


def usage(binary):
    """Registers of a thread and bytes of its stack, which is where registers are spilt to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(re.search(rf"{key.upper()}:(\d+)", report)[1]) for key in ("reg", "stack")}


def resources():
    """One row for each layer, dtype and configuration, and one for each dtype and kernel of a norm."""
    rows = []
    for name in LAYERS:
        for dtype in DTYPES:
            (launch,) = launches(*example(name, dtype))
            for config in launch[0].configs:
                rows.append(row(name, dtype, config.kwargs, compile_for_h100(launch, config)))
    for dtype in DTYPES:
        for name, launch in norm_launches(dtype).items():
            blocks = {key: value for key, value in launch[2].items() if key.startswith("BLOCK")}
            rows.append(row(name, dtype, blocks, compile_for_h100(launch)))
    return rows


def row(name, dtype, blocks, binary):
    """What the compiled kernel takes."""
    used = usage(binary)
    return {
        "layer": name,
        "dtype": str(dtype).removeprefix("torch."),
        "tile": "x".join(map(str, blocks.values())),
        "threads": 32 * binary.metadata.num_warps,
        "registers": used["reg"],
        "stack_bytes": used["stack"],
        "shared_bytes": binary.metadata.shared,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = {"env": env.facts(), "target": "sm_90", "alpha": ALPHA, "layout": "channels_last", "rows": resources()}
    print(text_table([list(result["rows"][0]), *([str(value) for value in row.values()] for row in result["rows"])]))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
