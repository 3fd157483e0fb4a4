"""Our networks as tests use them: few blocks, a few sizes of image, norms as after training."""

import timm
import torch
from torch import nn

import octaveconv as oc
import octaveconv.models
from octaveconv.models._build import Layers
from octaveconv.models.oct_densenet import DenseLayer, Transition
from octaveconv.models.oct_mobilenetv1 import DepthwiseSeparable
from octaveconv.models.oct_mobilenetv2 import InvertedResidual
from octaveconv.models.oct_resnet import BasicBlock, Bottleneck
from octaveconv.models.oct_resnetv2 import PreActBottleneck
from octaveconv.octave import split_channels

NAMES = list(octaveconv.models.COSTS)
SHALLOW = [  # of networks that differ in depth, one
    "oct_seresnetv2_50", "oct_seresnet152e", "oct_resnextv2_50_32x4d", "oct_resnext50_32x4d", "oct_resnetv2_26",
    "oct_resnet152f", "oct_resnet26", "oct_resnet18", "oct_mobilenetv2_100", "oct_mobilenetv1_075", "oct_densenet121",
    "oct_densenet161",
]  # fmt: skip
CLASSES = ("oct_resnet18", "oct_seresnetv2_50", "oct_densenet121", "oct_mobilenetv1_075", "oct_mobilenetv2_100")
ALPHAS = {name: (0.25, 0.5, 0.75) if "next" in name else (0.125, 0.3, 0.75) for name in NAMES}


def few_blocks(name, tiny):
    """The arguments for two blocks in one stage, or with ``tiny`` for as few as it can have."""
    if "mobilenet" in name:
        layers = dict(v1=(1, 1, 1, 2, 1), v2=(1, 1, 1, 1, 1, 1, 1) if tiny else (1, 2, 1, 1, 1, 1, 1))
        return dict(channel_multiplier=0.25, layers=layers[name[13:15]])
    return dict(layers=(1, 1, 1, 1) if tiny else (2, 1, 1, 1))


def shallow(name, alpha, tiny=False, **kwargs):
    """The network with few blocks."""
    torch.manual_seed(0)
    return timm.create_model(name, alpha=alpha, **(dict(num_classes=10) | few_blocks(name, tiny) | kwargs))


def few_layers(alpha=0.25):
    """A small classifier, for tests of what is around a network: to capture a larger one takes seconds."""
    torch.manual_seed(0)
    return nn.Sequential(
        oc.OctConv2d(3, 16, 3, 2, 1, alpha_out=alpha),
        oc.OctBatchNorm2d(16, alpha=alpha),
        oc.OctMap(nn.ReLU(inplace=True)),
        oc.OctConv2d(16, 16, 3, padding=1, alpha_in=alpha, alpha_out=alpha),
        oc.OctMap(nn.ReLU()),
        oc.OctConv2d(16, 24, 1, alpha_in=alpha, alpha_out=alpha),
        oc.Merge(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


def every_block(alpha=0.5):
    """A block of each of our networks in one: to capture all the networks takes a minute."""
    torch.manual_seed(0)
    make, make6 = Layers(octave=True), Layers(octave=True, act_layer=nn.ReLU6)
    split = split_channels(32, alpha)
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        BasicBlock(make, 16, 16, 1, 1, 0.0, alpha),
        Bottleneck(make, 16, 8, 2, 2, alpha, alpha),
        PreActBottleneck(make, 32, 16, 32, 1, 2, True, alpha, alpha, False),
        DenseLayer(make, 32, 8, split, alpha),
        Transition(make, 40, 16, split.then(split_channels(8, alpha)), 0.0),
        InvertedResidual(make6, 16, 16, 2, 1, alpha),
        DepthwiseSeparable(make, 16, 24, 1, 0.0, alpha),
        oc.Merge(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def settle(model):
    """Norms as after training, so that folding them has something to do."""
    torch.manual_seed(1)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


def difference(model, deployed, x):
    """The largest difference of any output, as a share of the largest value."""
    with torch.no_grad():
        expected = model(x)
    got = deployed(x)
    if isinstance(expected, torch.Tensor):
        expected, got = [expected], [got]
    assert [y.shape for y in got] == [y.shape for y in expected]
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(expected, got))
