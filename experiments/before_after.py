"""Compares the speed of `oc.deploy` in two checkouts, a call of one after a call of the other.

python experiments/before_after.py --before OTHER/src --network oct_resnet50:0.5 --json results/deploy_before_after.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from octaveconv import env

ROOT = Path(__file__).parent.parent
SERVER = """
import json, sys, time
import torch, timm
name, alpha, threads, batch = sys.argv[1:]
torch.set_num_threads(int(threads))
torch.manual_seed(0)
import octaveconv as oc, octaveconv.models
model = timm.create_model(name, alpha=float(alpha)).eval()
x = torch.randn(int(batch), 3, 224, 224)
deployed = oc.deploy(model, x)
assert deployed.engine == "native", deployed.reason
print("ready", flush=True)
for line in sys.stdin:
    deployed(x)
    start = time.perf_counter()
    deployed(x)
    print(time.perf_counter() - start, flush=True)
"""


def server(source, *arguments):
    """A process that times a call whenever it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, *arguments],
        env=os.environ | {"PYTHONPATH": str(source)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.stdout.readline().strip() != "ready":
        assert process.poll() is None
    return process


def timed(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout's folder of sources")
    parser.add_argument("--network", default="oct_resnet50:0.5", help="NAME:ALPHA")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    name, alpha = options.network.split(":")
    result = {"network": options.network, "threads": options.threads, "env": env.facts(), "batches": {}}
    for batch in ("1", "8"):
        both = [server(source, name, alpha, options.threads, batch) for source in (options.before, ROOT / "src")]
        times = [[timed(process) for process in both] for _ in range(options.calls)]
        before, after = (statistics.median(each) for each in zip(*times))
        ratio = statistics.median(one / other for one, other in times)
        result["batches"][batch] = {"before_ms": 1e3 * before, "after_ms": 1e3 * after, "before_over_after": ratio}
        print(batch, result["batches"][batch], flush=True)
        for process in both:
            process.kill()
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
