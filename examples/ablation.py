"""Train one network at several alphas and seeds, and write accuracy, cost and speed into one JSON file.

    python examples/ablation.py --data cifar10 --out runs/ablation --json results/ablation.json -- --epochs 30

What follows ``--`` goes to ``octaveconv train``. ``octaveconv report FILE`` draws the result.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch

import octaveconv as oc
import octaveconv.models  # registers the networks
from octaveconv import env
from octaveconv.bench.measure import interleaved
from octaveconv.train.loop import Training
from octaveconv.train.recipe import Recipe, read_yaml

RECIPE = Path(__file__).parent.parent / "recipes" / "cifar10.yaml"


def main() -> None:
    """Run what is not there yet, then gather everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--data", required=True)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0, 0.125, 0.25, 0.5, 0.75])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--what", default="", help="a text about the experiment, kept with its result")
    parser.add_argument("options", nargs="*", help="further options of octaveconv train, after --")
    args = parser.parse_args()
    cases = [(alpha, seed) for seed in args.seeds for alpha in args.alphas]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(lambda case: run(args, *case), cases))
    result = {
        "what": args.what, "env": env.facts(), "threads": 1, "recipe": args.recipe.name, "options": args.options,
        **speed(args), "runs": runs,
    }  # fmt: skip
    args.json.write_text(json.dumps(result, indent=1) + "\n")


def run(args: argparse.Namespace, alpha: float, seed: int) -> dict[str, Any]:
    """One run; one that is complete is not done again, and one that was cut is continued."""
    name = f"alpha-{alpha:g}-seed-{seed}"
    folder = args.out / name
    if not (folder / "model.safetensors").exists():
        arguments = ["--resume", str(folder)] if (folder / "last.pth").exists() else [
            "--recipe", str(args.recipe), "--data", args.data, "--out", str(args.out), "--name", name,
            f"--alpha={alpha}", f"--seed={seed}", *args.options,
        ]  # fmt: skip
        subprocess.run([sys.executable, "-m", "octaveconv", "train", "--threads", "1", *arguments], check=True)
    with open(folder / "results.csv") as file:
        rows = list(csv.DictReader(file))
    recipe = Recipe.of(read_yaml(folder / "config.yaml"))
    with torch.device("meta"):
        model = timm.create_model(recipe.model, alpha=alpha, num_classes=10, **recipe.model_args)
    report = oc.cost(model, input_size=recipe.size)
    return dict(
        alpha=alpha, seed=seed, top1=float(rows[-1]["top1"]), macs=report.macs, params=report.params, epochs=len(rows)
    )


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of a training step at each alpha: the networks in turns, one thread."""
    torch.set_num_threads(1)
    steps: dict[str, Any] = {}
    for alpha in args.alphas:
        recipe = Recipe.of(read_yaml(args.out / f"alpha-{alpha:g}-seed-{args.seeds[0]}" / "config.yaml"))
        training = Training(recipe, "cpu")
        batch = next(iter(training.batches()))
        steps[f"{alpha:g}"] = lambda training=training, batch=batch: training.train_step([batch])
    timings = interleaved(steps, 20)
    return {
        "images_per_s": {alpha: recipe.batch_size / timing.median for alpha, timing in timings.items()},
        "images_per_s_quartiles": {
            alpha: [recipe.batch_size / timing.upper, recipe.batch_size / timing.lower]
            for alpha, timing in timings.items()
        },
        "rounds": 20, "batch": recipe.batch_size, "dtype": recipe.dtype, "layout": "channels_last",
    }  # fmt: skip


if __name__ == "__main__":
    main()
