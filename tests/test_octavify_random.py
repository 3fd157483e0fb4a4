"""octavify of networks at random: however values are added, gated, concatenated and cut, its promises hold."""

import copy
import random

import pytest
import timm
import torch
from helpers import assert_close
from octavify_parts import constant_images, conv, norm, prepared, shuffled_spaces
from torch import fx, nn
from torch.nn.utils import parametrizations

import octaveconv as oc
from octaveconv._modes import copied
from octaveconv.octavify.permute import permute

BORDER = dict(padding_mode="replicate")  # constant maps stay constant

# Layers of one input: what each is of so many channels, and its output's channels.
LAYERS = {
    "convolution": lambda c: (conv(c, 24), 24), "to 16": lambda c: (conv(c, 16, 1), 16),
    "grouped": lambda c: (conv(c, 8, groups=2 - c % 2), 8), "depthwise": lambda c: (conv(c, c, groups=c), c),
    "standardised": lambda c: (timm.layers.ScaledStdConv2d(c, 16, 1), 16), "norm": lambda c: (norm(c), c),
    "groups": lambda c: (nn.GroupNorm(2 - c % 2, c, 0.5), c), "each": lambda c: (nn.GroupNorm(c, c, 0.5), c),
    "pixels": lambda c: (timm.layers.LayerNorm2d(c, 0.5), c), "relu": lambda c: (nn.ReLU(), c),
    "drop": lambda c: (timm.layers.DropPath(0.5), c), "channels last": lambda c: (ChannelsLast(c), 16),
    "weight norm": lambda c: (parametrizations.weight_norm(conv(c, 16)), 16),
    "spectral norm": lambda c: (parametrizations.spectral_norm(conv(c, c, groups=2 - c % 2)), c),
    "old spectral norm": lambda c: (nn.utils.spectral_norm(conv(c, 24, 1)), 24),
    "even": lambda c: (nn.Conv2d(c, 16, 2, padding="same", **BORDER), 16),
    "one side": lambda c: (nn.Sequential(nn.ReplicationPad2d((2, 0, 0, 2)), nn.Conv2d(c, 16, 3)), 16),
    "slopes": lambda c: (nn.PReLU(c), c), "response": lambda c: (response(c), c),
}  # fmt: skip
SMALLER = {
    "pool": lambda c: (nn.MaxPool2d(2), c), "stride": lambda c: (conv(c, 16, stride=2), 16),
    "discriminator": lambda c: (nn.Conv2d(c, 16, 4, 2, 1, **BORDER), 16),
    "patches": lambda c: (parametrizations.weight_norm(nn.Conv2d(c, 16, 2, 2)), 16),
    "few patches": lambda c: (nn.Conv2d(c, c, 2, 2, groups=c), c),
    "in front": lambda c: (nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.Conv2d(c, 16, 3, 2)), 16),
}  # fmt: skip
LARGER = {"upsample": lambda c: (nn.Upsample(scale_factor=2), c), "transposed": lambda c: (transposed(c), 8)}


def response(channels):
    made = timm.layers.grn.GlobalResponseNorm(channels, channels_last=False)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made


class ChannelsLast(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.LayerNorm(channels, 0.5), nn.Linear(channels, 20), nn.GELU(), nn.Linear(20, 16))

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def transposed(channels):
    made = nn.ConvTranspose2d(channels, 8, 2, 2)
    made.weight.data = made.weight.data.mean((2, 3), keepdim=True).expand_as(made.weight).contiguous()
    return made


class Random(nn.Module):
    """Steps in a random order, each on some of the last values; the last three are put out."""

    def __init__(self, seed):
        super().__init__()
        self.random, self.steps, self.layers = random.Random(seed), [], nn.ModuleList([conv(3, 16)])
        self.values = [(16, 1)]  # channels, and by how much their maps are smaller than the image
        for _ in range(self.random.randint(6, 16)):
            self.add()
        self.heads = nn.ModuleList(conv(channels, 8) for channels, _ in self.values[-3:])

    def add(self):
        i = self.random.randrange(max(0, len(self.values) - 4), len(self.values))
        channels, scale = self.values[i]
        like = [j for j, value in enumerate(self.values) if value == (channels, scale)]
        kinds = [*["layer"] * 5, "resize", "sum", "product", "cat", "squeeze", "gate", "flip"]
        kind = self.random.choice(kinds + ["cut"] * (channels > 7))
        argument, made = None, [(channels, scale)]
        if kind in ("layer", "resize"):
            layers = LAYERS if kind == "layer" else SMALLER if scale == 1 else LARGER
            layer, count = layers[self.random.choice(list(layers))](channels)
            argument = self.keep(layer)
            made = [(count, scale if kind == "layer" else 3 - scale)]
        elif kind in ("squeeze", "gate"):
            argument = self.keep(nn.Conv2d(channels, channels if kind == "squeeze" else 1, 1))
        elif kind in ("sum", "product"):
            argument = self.random.choice(like)
        elif kind == "cat":
            argument = self.random.choice([j for j, (_, other) in enumerate(self.values) if other == scale])
            made = [(channels + self.values[argument][0], scale)]
        elif kind == "cut":
            first = self.random.choice([channels // 2, channels - 3])
            argument = [first, channels - first]
            made = [(count, scale) for count in argument]
        self.steps.append((kind, i, argument))
        self.values += made

    def keep(self, layer):
        self.layers.append(layer)
        return len(self.layers) - 1

    def forward(self, x):
        values = [self.layers[0](x)]
        for kind, i, argument in self.steps:
            x = values[i]
            if kind in ("layer", "resize"):
                values.append(self.layers[argument](x))
            elif kind == "squeeze":
                values.append(x * self.layers[argument](x.mean((2, 3), keepdim=True)).sigmoid())
            elif kind == "gate":
                values.append(x * self.layers[argument](x).sigmoid())
            elif kind == "sum":
                values.append(x + values[argument])
            elif kind == "product":
                values.append(x * values[argument].sigmoid())
            elif kind == "cat":
                values.append(torch.cat([x, values[argument]], 1))
            elif kind == "cut":
                values += torch.split(x, argument, 1)
            else:
                values.append(x.flip(1))
        return tuple(head(value) for head, value in zip(self.heads, values[-3:]))


def seeded(net, x):
    torch.manual_seed(0)
    return net(x)


def train_save_and_copy(model, same, octave, x):
    """In training mode, too, nothing changes at alpha 0; a copy, and a network with the same weights, do the same."""
    model = copied(model).train()
    assert all(map(torch.equal, seeded(same.train(), x), seeded(model, x)))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in same.state_dict().items())
    octave.train()(x)
    twin = copy.deepcopy(octave)
    loaded = copy.deepcopy(twin)
    for value in loaded.state_dict().values():
        value.zero_()
    loaded.load_state_dict(octave.state_dict())
    expected = seeded(octave, x)
    for other in (twin, loaded):
        assert all(map(torch.equal, seeded(other, x), expected))
        assert all(map(torch.equal, seeded(other.eval(), x), seeded(octave.eval(), x)))
        octave.train()


@pytest.mark.parametrize("seed", [pytest.param(i, marks=[pytest.mark.slow] * (i >= 6)) for i in range(24)])
def test_a_random_network(seed):
    torch.manual_seed(seed)
    model, x = Random(seed).double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    same, _ = oc.octavify(model, 0, x)
    assert all(map(torch.equal, same(x), model(x)))
    for alpha in (0.25, 0.5):
        octave, plan = oc.octavify(model, alpha, x, min_size=2, stem=bool(seed % 2))
        assert plan.macs_after == oc.cost(octave, input_size=32).counted_macs
        for size in (32, 36):
            images = constant_images(size)
            for actual, expected in zip(octave(images), model(images)):
                assert_close(actual, expected)
    train_save_and_copy(model, same, octave, x)
    octave, _ = oc.octavify(model, 0.5, x, min_size=2, calibrate=[x])
    sum(y.sum() for y in octave.train()(x)).backward()
    net = prepared(copied(model), x, 2, False)
    permute(net, shuffled_spaces(net))
    for actual, expected in zip(fx.GraphModule(net.model, net.graph)(x), model(x)):
        assert_close(actual, expected)
