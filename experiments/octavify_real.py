"""Octavify networks with real weights, and score them on real inputs: ``python experiments/octavify_real.py``.

Some of the inputs, without labels, are the sample to convert with; the others are scored. `octavify_networks.py` says
which networks these are, and where their weights come from. ``--distill 10`` also lets the octave network learn from
the dense one for ten epochs. ``--json`` keeps what is done and goes on from there.
"""

import argparse
import copy
import json
import random
import time
from pathlib import Path

import torch
from octavify_networks import NETWORKS

import octaveconv as oc
from octaveconv import env

ROOT = Path(__file__).parent.parent
BUDGETS = (0.91, 0.83, 0.75, 0.7)
LONG = ("steps", "alphas")  # what a row holds besides figures


def answers(model, inputs):
    """The network's."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    layout = torch.channels_last if inputs.dim() == 4 else torch.contiguous_format
    with torch.no_grad():
        return torch.cat([model(batch) for batch in inputs.to(memory_format=layout).split(25)])


def convert(task, dense, row, options):
    """One conversion with a sample, scored on the other inputs."""
    order = list(range(len(task.inputs)))
    random.Random(row["seed"]).shuffle(order)
    some, rest = order[: options.images], order[options.images :]
    sample = task.inputs[some].split(16)
    begin = time.perf_counter()
    octave, plan = oc.octavify(
        task.model, "auto", task.inputs[:1], calibrate=sample, macs=row["budget"], distill=options.distill
    )
    seconds = time.perf_counter() - begin
    found, expected = answers(octave, task.inputs[rest]), dense[rest]
    return row | {
        "macs": round(plan.macs_after / plan.macs_before, 4),
        "dense": task.score(expected, expected, rest),
        "score": task.score(found, expected, rest),
        "agreement": task.agreement(found, expected),
        "seconds": round(seconds, 1),
        "steps": [vars(step) for step in plan.steps],
        "alphas": {layer.name: round(layer.alpha_out, 4) for layer in plan.layers if layer.cost is not None},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared/data/photos256.tar", help="a tar of JPEGs")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="shares of the multiply-adds")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5), help="of which inputs are the sample")
    parser.add_argument("--images", type=int, default=200, help="inputs of the sample")
    parser.add_argument("--distill", type=int, default=0, help="epochs of learning from the dense network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="the result; what is there already is not done again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {"images": options.images, "threads": options.threads, "env": env.facts(), "rows": []}
    if options.json and options.json.exists():
        result = json.loads(options.json.read_text())
    keys = ("network", "seed", "budget", "distill")
    done = {tuple(row[key] for key in keys) for row in result["rows"]}
    for name in options.networks:
        task = NETWORKS[name](options.photos)
        dense = answers(task.model, task.inputs)
        for seed in options.seeds:
            for budget in options.budgets:
                row = dict(zip(keys, (name, seed, budget, options.distill)))
                if tuple(row.values()) in done:
                    continue
                row = convert(task, dense, row | {"measure": task.measure}, options)
                print({key: row[key] for key in row if key not in LONG}, flush=True)
                result["rows"].append(row)
                if options.json:
                    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
