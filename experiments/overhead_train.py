"""What the training loop costs beside a bare PyTorch loop on the same network and images, interleaved.

python experiments/overhead_train.py --data cifar10 --json results/overhead.json
"""

import argparse
import itertools
import json
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torchvision.datasets import ImageFolder

from octaveconv import env
from octaveconv.bench.measure import interleaved
from octaveconv.data.augment import train_transform
from octaveconv.data.datasets import preprocessing
from octaveconv.train.loop import Training, _train_epoch
from octaveconv.train.progress import Progress
from octaveconv.train.recipe import Recipe, read_yaml

RECIPE = Path(__file__).parent.parent / "recipes" / "cifar10.yaml"
STEPS = 8


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe.of(
        read_yaml(RECIPE), dict(data=args.data, batch_size=64, workers=0, model_args=dict(stem="3x3", width=8))
    )
    training = Training(recipe, "cpu")
    full = training.steps

    def ours():
        training.step = full - STEPS  # the end of an epoch, so that it is as long as the other
        _train_epoch(training, None, [], Progress())

    bare = Training(recipe, "cpu")
    prepared = preprocessing(bare.model)
    transform = train_transform(32, "padded", 1.0, 0, 0, prepared.interpolation, prepared.mean, prepared.std)
    optimizer = create_optimizer_v2(
        bare.model, opt="sgd", lr=0.1, weight_decay=5e-4, momentum=0.9, filter_bias_and_bn=False
    )
    loader = torch.utils.data.DataLoader(
        ImageFolder(f"{args.data}/train", transform), 64, shuffle=True, drop_last=True, num_workers=0
    )

    def theirs():
        bare.model.train()
        for images, labels in itertools.islice(loader, STEPS):
            loss = F.cross_entropy(bare.model(images.contiguous(memory_format=torch.channels_last)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    times = interleaved({"ours": ours, "bare": theirs}, args.rounds)
    overhead = times["ours"].median / times["bare"].median - 1
    result = {
        "env": env.facts(),
        "threads": 1,
        "dtype": "float32",
        "layout": "channels_last",
        "batch": 64,
        "steps": STEPS,
        "network": "oct_resnetv2_26 at alpha 0.25, stem 3x3, width 8, 32 pixels",
        "overhead": overhead,
        "seconds": {name: asdict(timing) for name, timing in times.items()},
    }
    print(f"overhead {overhead:.2%}", {name: f"{timing.median:.3f} s" for name, timing in times.items()})
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
