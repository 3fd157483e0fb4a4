"""octavify networks that other projects write: ``python experiments/strangers.py --json results/strangers.json``.

Networks of packages, made small by their configurations, with random weights (nothing is downloaded), and networks
written here in the form that such projects write them (`stranger_networks`). Each is octavified whole, in one call, at
alpha 0.25; its answers at alpha 0 are compared with its own, and it runs forward and backward. What is in the file
already is not done again; a package that is not installed is left out.
"""

import argparse
import importlib.util
import json
import os
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from coverage_octavify import attempt
from stranger_networks import NETWORKS

import octaveconv as oc
from octaveconv import env
from octaveconv.octavify.parts import leaves

ALPHA = 0.25


def largest_difference(found, expected):
    """Of all numbers in two networks' answers; infinity if they are not alike."""
    pairs = list(zip(leaves(found), leaves(expected)))
    if not pairs or any(x.shape != y.shape for x, y in pairs):
        return float("inf")
    return max(((x.double() - y.double()).abs().max().item() for x, y in pairs if x.numel()), default=0.0)


def answers(model, inputs):
    """What it returns in evaluation mode, with random numbers of one seed."""
    torch.manual_seed(1)
    with torch.no_grad():
        return model.eval()(*inputs)


def outcome(build):
    """What becomes of one network."""
    torch.manual_seed(0)
    model, inputs = build()
    model.eval()
    began = time.perf_counter()
    try:
        octave, plan = oc.octavify(model, ALPHA, inputs)
    except Exception as error:
        return {"outcome": "refused", "why": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]}
    seconds = time.perf_counter() - began
    convs = [layer for layer in plan.layers if layer.convolves]
    dense = [layer for layer in convs if not layer.octave]
    total = max(plan.macs_before, 1)
    row = {
        "outcome": "octave" if len(dense) < len(convs) else "dense",
        "octave": len(convs) - len(dense),
        "convs": len(convs),
        "conv_share": round(sum(layer.macs_before for layer in convs) / total, 3),
        "macs_before": plan.macs_before,
        "macs_after": plan.macs_after,
        "macs": round(plan.macs_after / total, 4),
        "borders": len(plan.borders),
        "parts": sum(not part.why for part in plan.parts),
        "whole": not plan.parts,
        "seconds": round(seconds, 1),
        "why": Counter(layer.why for layer in dense).most_common(4),
        "not_as_one": [[part.name, part.why] for part in plan.parts if part.why][:4],
        "difference_at_0": largest_difference(
            answers(oc.octavify(model, 0, inputs)[0], inputs), answers(model, inputs)
        ),
    }
    return row | checks(octave, inputs)


def checks(octave, inputs):
    """Whether an octave network runs forward and backward."""
    row = {"forward": attempt(lambda: answers(octave, inputs))}
    return row | {
        "backward": attempt(lambda: sum(x.sum() for x in leaves(octave(*inputs)) if x.requires_grad).backward())
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[""], help="networks whose name contains one of these")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no network after this time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("YOLO_OFFLINE", "1")
    result = {"env": env.facts(), "threads": 1, "alpha": ALPHA, "versions": {}, "networks": {}}
    if args.json.exists():
        result |= json.loads(args.json.read_text())
    began = time.time()
    for name, (package, build) in NETWORKS.items():
        if (
            name in result["networks"]
            or not any(only in name for only in args.only)
            or time.time() - began > 60 * args.minutes
        ):
            continue
        if package and importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not installed")
            continue
        if package:
            result["versions"][package] = env.version(package.replace("_", "-")) or env.version(package)
        try:
            row = outcome(build)
        except Exception as error:  # a network that cannot be built
            row = {"outcome": "not built", "why": f"{type(error).__name__}: {error}"[:200]}
        result["networks"][name] = row | {"package": package}
        print(f"{name}: {row}", flush=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
