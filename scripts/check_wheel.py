"""Checks that a wheel needs no compiler: installed apart, all of it runs where no compiler is found."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Runs in another process, with nothing of this repository on its path.
CALLS = """
import json
import sys
import timm, torch, octaveconv as oc
import octaveconv.models
from octaveconv.deploy.native import library
from octaveconv.deploy.native.engine import NativeNetwork

torch.manual_seed(0)
model = timm.create_model("oct_resnet18", alpha=0.25, layers=(1, 1, 1, 1), num_classes=10).eval()
images = [torch.randn(1, 3, 64, 64), torch.randn(3, 3, 75, 90)]
rows = []
for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
    deployed = oc.deploy(model.to(dtype), images[0].to(dtype))
    assert deployed.engine == "native", deployed.reason
    networks = {"chosen": deployed}
    for target in library.runnable(dtype):
        networks[target] = NativeNetwork(model, images[0].to(dtype), target)
    for name, network in networks.items():
        for x in images:
            with torch.no_grad():
                expected = model.float()(x.to(dtype).float())
                error = ((network(x.to(dtype)).float() - expected).abs().max() / expected.abs().max()).item()
            model.to(dtype)
            assert error <= limit, (name, dtype, x.shape, error)
        rows.append([str(dtype), name, network.library._name, error])
print(json.dumps({"package": oc.__file__, "rows": rows}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--no-index", "--target", f"{folder}/site", wheel], check=True)
        Path(folder, "bin").mkdir()
        environment = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"} | {
            "CXX": "/bin/false",
            "PATH": f"{folder}/bin",
            "PYTHONPATH": f"{folder}/site",
            "OCTAVECONV_CACHE": f"{folder}/cache",
        }
        done = subprocess.run(
            [sys.executable, "-c", CALLS], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE
        )
        said = json.loads(done.stdout)
        assert said["package"].startswith(f"{folder}/site"), said["package"]
        for dtype, name, library, error in said["rows"]:
            assert library.startswith(f"{folder}/site"), library
            print(f"{dtype:15} {name:12} {Path(library).name:55} error {error:.1e}")
        subprocess.run([sys.executable, Path(__file__).with_name("check_install.py")], env=environment, check=True)
        assert not list(Path(folder, "cache").glob("*.so"))
    with zipfile.ZipFile(wheel) as file:
        for entry in file.infolist():
            if entry.filename.endswith(".so"):
                print(f"{Path(entry.filename).name:60} {entry.file_size:>9,} bytes, {entry.compress_size:,} packed")
    print(f"{wheel.name:60} {wheel.stat().st_size:>9,} bytes")


if __name__ == "__main__":
    main()
