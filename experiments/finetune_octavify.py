"""What octavify keeps of a trained network, and how soon fine-tuning brings back the rest.

    python experiments/finetune_octavify.py --data cifar10 --out runs/octavify --json results/octavify_finetune.json

Trains the dense twin of finetune_octavify.yaml, octavifies it at each alpha with and without a sample, and scores:
right away, with norms re-estimated, after one epoch, and after a tenth of the dense network's epochs; beside the same
octave network trained from random weights for that tenth. What is complete is not done again.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import timm
import torch

import octaveconv as oc
from octaveconv import env
from octaveconv.about import About
from octaveconv.data.datasets import open_dataset, preprocessing
from octaveconv.evaluate import EvalSettings, evaluate
from octaveconv.octavify.repair import reestimate_norms
from octaveconv.train.recipe import Recipe, read_yaml
from octaveconv.weights import files as weights

RECIPE = Path(__file__).with_suffix(".yaml")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20, help="of the dense network; a tenth of it is the fine-tuning")
    parser.add_argument("--lr", type=float, default=0.02, help="of the fine-tuning")
    parser.add_argument("--images", type=int, default=512, help="of the sample")
    parser.add_argument("--out", type=Path, default=Path("runs/octavify"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--what", default="", help="what the data is, for the table")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("options", nargs="*", help="further options of octaveconv train, after --")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe.of(read_yaml(args.recipe))
    rows = [row for seed in args.seeds for row in of_seed(args, recipe, seed)]
    result = {
        "env": env.facts(),
        "threads": 1,
        "device": args.device,
        "recipe": args.recipe.name,
        "options": args.options,
        "what": args.what,
        "epochs": args.epochs,
        "tenth": tenth_of(args.epochs),
        "lr": args.lr,
        "images": args.images,
        "rows": rows,
    }
    args.json.write_text(json.dumps(result, indent=1) + "\n")


def of_seed(args, recipe, seed):
    """The rows of one dense network."""
    dense, top1 = train(args, f"dense-{seed}", seed, args.epochs)
    yield dict(seed=seed, network="dense", alpha=0.0, top1=top1)
    tenth = tenth_of(args.epochs)
    for alpha in args.alphas:
        model = network(args, recipe, dense)
        sample = batches(args, model, recipe)
        plain, plan = oc.octavify(model, alpha, sample[0][:1])
        row = dict(seed=seed, network="octavified", alpha=alpha, macs=plan.macs_after, dense_macs=plan.macs_before)
        row |= stages(args, recipe, plain, sample, f"plain-{alpha:g}-{seed}", seed, tenth)
        yield row | dict(calibrated=False)
        with patch("octaveconv.octavify.octavify.reestimate_norms"):  # that is a stage of its own here
            ordered, plan = oc.octavify(model, alpha, sample[0][:1], calibrate=sample)
        errors = {layer.name: layer.error for layer in plan.layers if layer.error is not None}
        row = dict(seed=seed, network="octavified", alpha=alpha, macs=plan.macs_after, dense_macs=plan.macs_before)
        row |= stages(args, recipe, ordered, sample, f"ordered-{alpha:g}-{seed}", seed, tenth)
        yield row | dict(calibrated=True, errors=errors)
        start = save(args, f"scratch-{alpha:g}-{seed}", scratch(args, recipe, alpha, seed, sample), recipe.model)
        _, top1 = train(args, f"scratch-{alpha:g}-{seed}-{tenth}", seed, tenth, start)
        yield dict(seed=seed, network="from scratch", alpha=alpha, top1=top1)


def tenth_of(epochs):
    return max(round(epochs / 10), 1)


def stages(args, recipe, octave, sample, name, seed, tenth):
    """The score of an octavified network, as it is and after more and more work on it."""
    scores = dict(right_away=score(args, octave, recipe))
    reestimate_norms(octave, [(images,) for images in sample])
    scores["norms"] = score(args, octave, recipe)
    start = save(args, name, octave, recipe.model)
    for label, epochs in (("one_epoch", 1), ("tenth", tenth)):
        _, scores[label] = train(args, f"{name}-{epochs}", seed, epochs, start, lr=args.lr, warmup_epochs=0)
    return scores


def train(args, name, seed, epochs, checkpoint=None, **changes):
    """A run of ``octaveconv train``: its final weights and its last top-1."""
    folder = args.out / name
    if not (folder / "model.safetensors").exists():
        options = dict(data=args.data, alpha=0.0, seed=seed, epochs=epochs) | changes
        options |= {} if checkpoint is None else dict(checkpoint=checkpoint)
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        resumed, fresh = ["--resume", str(folder)], [f"--recipe={args.recipe}", f"--out={args.out}", f"--name={name}"]
        arguments = resumed if (folder / "last.pth").exists() else [*fresh, *words, *args.options]
        command = [sys.executable, "-m", "octaveconv", "train", "--threads", "1", "--device", args.device]
        subprocess.run([*command, *arguments], check=True)
    with open(folder / "results.csv") as file:
        return folder / "model.safetensors", float(list(csv.DictReader(file))[-1]["top1"])


def network(args, recipe, file=None):
    """The dense twin, with weights if there is a file of them."""
    model = timm.create_model(
        recipe.model, alpha=0.0, num_classes=open_dataset(args.data).num_classes, **recipe.model_args
    )
    model.pretrained_cfg |= dict(input_size=(3, recipe.size, recipe.size), crop_pct=recipe.crop_pct)
    if file is not None:
        weights.load(model, file)
    return model.eval()


def scratch(args, recipe, alpha, seed, sample):
    """The octave network with random weights."""
    torch.manual_seed(seed)
    return oc.octavify(network(args, recipe), alpha, sample[0][:1])[0]


def save(args, name, octave, name_in_timm):
    file = args.out / f"{name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    weights.write(file, octave.state_dict(), About.of(octave, name_in_timm).metadata())
    return file


def batches(args, model, recipe):
    """Training images from all over the classes, as the network takes them."""
    data = open_dataset(args.data, "train", preprocessing(model, recipe.size).transform())
    step = len(data) // args.images
    return list(torch.stack([data[i * step][0] for i in range(args.images)]).split(128))


def score(args, model, recipe):
    data = open_dataset(args.data)
    return evaluate(model, data, EvalSettings(recipe.size, 256, args.device)).top1


if __name__ == "__main__":
    main()
