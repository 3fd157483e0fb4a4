"""Prints how tuning shares each layer among threads, what the rules say, and the time of both, measured in turns.

python experiments/tuning_rules.py oct_resnet50:0.5 oct_mobilenetv2_100:0.375 --shapes 1x224x224 8x64x64
"""

import argparse
import statistics
import time

import timm
import torch

import octaveconv as oc
import octaveconv.models  # registers the networks
from octaveconv.deploy.native.tune import ruled


def compare(deployed, shape, rounds, verbose):
    """Times of one call by rules and tuned, and the choices of each layer."""
    x = torch.randn(shape)
    threads = torch.get_num_threads()
    deployed.tune(x)
    programs = [program for *_, program in deployed._chunks(deployed._shape(x.shape))]
    ways = {
        "rules": [ruled(program.work, threads) for program in programs],
        "tuned": [program.choices[threads] for program in programs],
    }
    times = {way: [] for way in ways}
    for _ in range(rounds):
        for way, choices in ways.items():
            for program, choice in zip(programs, choices):
                program.choices[threads] = choice
            deployed(x)
            start = time.perf_counter()
            deployed(x)
            times[way].append(time.perf_counter() - start)
    if verbose:
        print("threads over panels, pixels outside")
        for i, layer in enumerate(programs[0].constants.network.layers):
            work = programs[0].work
            if work.units[i]:
                facts = f"{work.pixels[i]:7} pixels {work.panels[i]:3} panels {work.weights[i] / 1024:8.0f} KB"
                print(f"{facts}  rules {ways['rules'][0][i]}  tuned {ways['tuned'][0][i]}  {layer.name}")
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="NAME:ALPHA")
    parser.add_argument("--shapes", nargs="+", default=["1x64x64", "1x224x224", "8x64x64"], help="NxHxW")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", action="store_true", help="print each layer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for network in options.networks:
        name, alpha = network.split(":")
        torch.manual_seed(0)
        model = timm.create_model(name, alpha=float(alpha)).eval()
        deployed = oc.deploy(model, torch.randn(1, 3, 64, 64), engine="native")
        for text in options.shapes:
            images, height, width = map(int, text.split("x"))
            times = compare(deployed, (images, 3, height, width), options.rounds, options.layers)
            for measure in (statistics.median, min):
                rules, tuned = (1e3 * measure(times[way]) for way in ("rules", "tuned"))
                found = f"rules {rules:.2f} ms, tuned {tuned:.2f} ms, {rules / tuned:.3f} times"
                print(f"{network} {text}, {options.threads} threads, {measure.__name__}: {found}", flush=True)


if __name__ == "__main__":
    main()
