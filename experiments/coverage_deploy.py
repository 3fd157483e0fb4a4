"""Deploy every classification network of torchvision, and every octave network of this package: what runs where.

``python experiments/coverage_deploy.py --json results/deploy_coverage.json`` writes after each network, and goes on
where it stopped. A network counts as wrong if its answer at a size that it has not seen differs from eager PyTorch's.
"""

import argparse
import json
import re
import time
from pathlib import Path

import timm
import torch
import torchvision
from fuzz_deploy import difference
from networks import settle
from torch.utils import _pytree as pytree

import octaveconv.models  # noqa: F401
from octaveconv import env
from octaveconv.deploy.native import tune
from octaveconv.deploy.native.engine import NativeNetwork
from octaveconv.errors import BackendUnavailable

SIZE, UNSEEN = 224, (2, 3, 256, 224)


def networks(only):
    """Names to functions that build: those with the fewest layers first."""
    found = {}
    for name in torchvision.models.list_models(torchvision.models):
        found[f"torchvision {name}"] = lambda name=name: torchvision.models.get_model(name, weights=None)
    for name in timm.list_models("oct_*"):
        if not re.search(r"_a\d+$|\.", name):  # the same network at one alpha
            found[name] = lambda name=name: timm.create_model(name, alpha=0.25)
    chosen = [item for item in found.items() if only in item[0]]
    return dict(sorted(chosen, key=lambda item: layers(item[1])))


def layers(build):
    """How many; a RegNet, which reads its widths from tensors, comes in the middle."""
    try:
        with torch.device("meta"):
            return sum(1 for module in build().modules() if not list(module.children()))
    except NotImplementedError:
        return 200


def try_network(build):
    """One row: how it runs, and what is wrong."""
    torch.manual_seed(0)
    model = settle(build()).eval()
    example = torch.randn(1, 3, SIZE, SIZE)
    start = time.perf_counter()
    try:
        deployed = NativeNetwork(model, example)
    except BackendUnavailable as error:
        return {"engine": "inductor", "why": str(error)[:300]}
    row = {"engine": "native", "seconds": round(time.perf_counter() - start, 1), "stretches": len(deployed.report)}
    total = sum(part.multiply_adds for part in deployed.report)
    native = sum(part.multiply_adds for part in deployed.report if part.engine == "native")
    row["native_share"] = round(native / total, 4)
    row["why"] = sorted({reason.split(" ")[0] for part in deployed.report for reason in part.why})
    with torch.no_grad():
        for x in (example, torch.randn(UNSEEN)):
            try:
                expected = model(x)
            except (RuntimeError, AssertionError, ValueError):  # a vision transformer takes one size
                continue
            if wrong := difference(pytree.tree_leaves(expected), pytree.tree_leaves(deployed(x))):
                row["wrong"] = f"{list(x.shape)}: {wrong}"
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", default="", help="networks whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tune.SECONDS = 0.0  # any choice is right
    rows = json.loads(options.json.read_text())["networks"] if options.json.exists() else {}
    for name, build in networks(options.only).items():
        if name not in rows:
            rows[name] = try_network(build)
            print(name, rows[name], flush=True)
            options.json.write_text(json.dumps({"env": env.facts(), "threads": 1, "networks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
