"""Time what `octavify_real.py` converted, deployed, beside the dense network in the fastest runtime there is.

    python experiments/octavify_latency.py --json results/octavify_latency.json

The alphas are those that a conversion chose; times do not depend on the weights, which are random here. All candidates
take turns in one process, as in ``octaveconv bench``; run it with nothing else on the machine.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import timm
import torch

import octaveconv as oc
from octaveconv import env
from octaveconv.bench.cases import BenchSettings
from octaveconv.bench.measure import interleaved, protocol
from octaveconv.bench.runtimes import Task, conditions, prepare

ROOT = Path(__file__).parent.parent
DENSE = ("deployed", "openvino", "onnxruntime")
RUNS = 30


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--converted", type=Path, default=ROOT / "results/octavify_real.json")
    parser.add_argument(
        "--networks", nargs="+", default=["tf_efficientnet_lite0", "tf_efficientnet_lite1"], help="timm's"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    converted = json.loads(options.converted.read_text())["rows"]
    result = {"env": env.facts() | {"commit": env.commit()}, "protocol": protocol(RUNS, 0.012, 0.03), "rows": []}
    for name in options.networks:
        alphas = {row["budget"]: row["alphas"] for row in converted if row["network"] == name and row["seed"] == 0}
        for threads in options.threads:
            for batch in options.batch_sizes:
                for row in timed(name, alphas, threads, batch):
                    print(row, flush=True)
                    result["rows"].append(row)
                options.json.write_text(json.dumps(result, indent=1) + "\n")


def timed(name, alphas, threads, batch):
    """The median seconds of the dense network in each runtime, and of the octave ones deployed."""
    model = timm.create_model(name).eval()
    x = torch.randn(batch, *model.pretrained_cfg["input_size"])
    settings = BenchSettings("oct_resnet50", threads=threads)
    with conditions(settings), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        calls, shares = {}, {}
        for runtime in DENSE:
            place = Path(folder) / runtime
            place.mkdir()
            calls[runtime] = prepare(runtime, Task(model, x, None, settings, place, dense=True)).call
        for budget, chosen in alphas.items():
            octave, plan = oc.octavify(model, chosen, x[:1])
            shares[f"octave {budget:g}"] = plan.macs_after / plan.macs_before
            calls[f"octave {budget:g}"] = prepare("deployed", Task(octave, x, None, settings, Path(folder))).call
        timings = interleaved(calls, RUNS, isolate=True)
    for key, timing in timings.items():
        yield dict(network=name, threads=threads, batch=batch, what=key, macs=shares.get(key, 1.0), **asdict(timing))


if __name__ == "__main__":
    main()
