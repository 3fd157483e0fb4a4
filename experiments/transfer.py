"""Fine-tune a network with ImageNet's weights on few images of other classes, dense and octavified.

    python experiments/transfer.py --data cifar10 --json results/transfer.json

EfficientNet-Lite0 at 96 pixels. ``octave, tuned`` is octavified with some of the training images as its sample, then
fine-tuned like the dense one; ``tuned, octave`` is the fine-tuned dense one, octavified. The file is written after each
network; what it holds is not done again.
"""

import argparse
import copy
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from octavify_networks import NETWORKS
from PIL import Image
from torchvision import transforms

import octaveconv as oc
from octaveconv import env

BATCH = 32
RATE = 3e-4  # the highest of one cycle, with AdamW
SAMPLE = 200  # training images to octavify with


def images(folder, per_class, size, seed):
    """So many images of each class, drawn by seed, and their classes."""
    prepare = transforms.Compose(
        [transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC), transforms.ToTensor(),
         transforms.Normalize([0.5] * 3, [0.5] * 3)]
    )  # fmt: skip
    found, classes = [], []
    for number, kind in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        files = sorted(kind.iterdir())
        for path in random.Random(seed).sample(files, min(per_class, len(files))):
            found.append(prepare(Image.open(path).convert("RGB")))
            classes.append(number)
    return torch.stack(found), torch.tensor(classes)


def with_classes(model, count):
    """A copy of a network with a classifier of ``count`` classes."""
    model = copy.deepcopy(model)
    model.reset_classifier(count)
    return model.eval()


def tuned(model, x, y, epochs, seed):
    """The network, fine-tuned on images that are flipped at random."""
    torch.manual_seed(seed)
    model = model.train().to(memory_format=torch.channels_last)
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(epochs):
        for some in torch.randperm(len(x))[: steps // epochs * BATCH].split(BATCH):
            batch = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x[some], x[some].flip(3))
            optimizer.zero_grad()
            F.cross_entropy(model(batch.to(memory_format=torch.channels_last)), y[some]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def right(model, x, y):
    """Top-1 in percent."""
    with torch.no_grad():
        found = torch.cat([model(batch).argmax(1) for batch in x.split(100)])
    return round(100 * float((found == y).float().mean()), 2)


def octavified(model, x, seed, macs):
    """The octave network, made with some of the images, and its share of the multiply-adds."""
    some = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:SAMPLE]]
    octave, plan = oc.octavify(model, "auto", some[:1], calibrate=some.split(16), macs=macs)
    return octave, round(plan.macs_after / plan.macs_before, 4)


def rows(options, seed):
    """Of one seed: the dense network, and both octave ones."""
    model = with_classes(NETWORKS["tf_efficientnet_lite0"](options.photos).model, 10)
    x, y = images(options.data / "train", options.images, options.size, seed)
    test_x, test_y = images(options.data / "test", options.test, options.size, 0)

    def row(name, macs, network, start):
        return dict(seed=seed, network=name, macs=macs, top1=right(network, test_x, test_y),
                    seconds=round(time.perf_counter() - start, 1))  # fmt: skip

    start = time.perf_counter()
    dense = tuned(copy.deepcopy(model), x, y, options.epochs, seed)
    yield row("dense", 1.0, dense, start)
    start = time.perf_counter()
    octave, macs = octavified(model, x, seed, options.macs)
    yield row("octave, tuned", macs, tuned(octave, x, y, options.epochs, seed), start)
    start = time.perf_counter()
    octave, macs = octavified(dense, x, seed, options.macs)
    yield row("tuned, octave", macs, octave, start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/CLASS and test/CLASS")
    parser.add_argument("--photos", type=Path, required=True, help="see octavify_real.py; they are not used")
    parser.add_argument("--images", type=int, default=200, help="training images of each class")
    parser.add_argument("--test", type=int, default=300, help="images of each class that judge, the same for all seeds")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--macs", type=float, default=0.83, help="the octave networks' budget")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(3))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {
        "env": env.facts(),
        **{key: getattr(options, key) for key in ("images", "test", "size", "epochs", "threads")},
    }
    result |= {"rows": json.loads(options.json.read_text())["rows"] if options.json.exists() else []}
    for seed in options.seeds:
        if any(row["seed"] == seed for row in result["rows"]):
            continue
        found = []
        for row in rows(options, seed):
            print(row, flush=True)
            found.append(row)
        result["rows"] += found
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
