"""The native engine: the module's answer for every network, size, batch, number of threads and instruction set."""

from itertools import pairwise

import pytest
import timm
import torch
from graphs import CONVOLUTIONS, GRAPHS, Net, captured_graph, conv
from networks import difference, few_layers, image, settle, shallow
from torch import nn

import octaveconv as oc
from octaveconv.deploy.capture import Captures
from octaveconv.deploy.native import library
from octaveconv.deploy.native.engine import NativeNetwork

LIMIT = 1e-5  # of the largest output; float32 in another order of summation
pytestmark = pytest.mark.usefixtures("quickly")


def check(model, *xs, target="native"):
    deployed = NativeNetwork(model.eval(), xs[0], target)
    for x in xs:
        assert difference(model, deployed, x) <= LIMIT
    return deployed


def check_every_target(model, captures, captured_as, by_name=slice(1, None)):
    """Those that this CPU has, of which the best one is also "native"; a network is captured once for all."""
    captured_as(captures)
    for target in ("native", *library.runnable()[by_name]):
        check(model, image(1, 3, 64, 64), image(2, 3, 65, 33), target=target)


@pytest.mark.usefixtures("lightly_optimized")
def test_every_block_and_instruction_set(blocks, captured_as):
    check_every_target(*blocks, captured_as)


@pytest.mark.usefixtures("lightly_optimized")
@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_of_alpha(alpha, captured_as):
    model = settle(few_layers(alpha))
    check_every_target(model, Captures(model), captured_as)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("oct_resnet50", 0),
        ("oct_resnet50", 1),
        ("oct_resnextv2_50_32x4d", 0.5),
        ("oct_mobilenetv2_100", 0.5),
        ("oct_seresnetv2_50", 0.125),
        ("oct_densenet121", 0.25),
    ],
)
def test_every_kind_of_network_and_instruction_set(name, alpha, captured_as):
    model = settle(shallow(name, alpha, tiny=True))
    check_every_target(model, Captures(model), captured_as, by_name=slice(None))


def halving(alphas=(0, 0.25, 0.25, 0.25, 0.25, 0)):
    """Layers of stride 2, five if not told otherwise, and a shortcut: of 32 pixels one is left."""
    layers = [oc.OctConv2d(4, 4, 3, 2, 1, alpha_in=a, alpha_out=b) for a, b in pairwise(alphas)]
    norms = [oc.OctBatchNorm2d(4, alpha=alpha) for alpha in alphas[1:]]
    pairs = [nn.Sequential(*pair, oc.OctMap(nn.ReLU())) for pair in zip(layers, norms)]
    shortcut = nn.AvgPool2d(2 ** len(layers), ceil_mode=True, count_include_pad=False)
    return Net(lambda m, x: m.layers(x) + m.shortcut(x), layers=nn.Sequential(*pairs, oc.Merge()), shortcut=shortcut)


def some_network():
    return timm.create_model("oct_resnet18", alpha=0.25, layers=(1, 1, 1, 1), num_classes=10)


@pytest.mark.parametrize(
    ("make", "step"),
    [
        (lambda: halving((0, 0.25, 0)), 57),
        pytest.param(halving, 17, marks=pytest.mark.slow),
        pytest.param(some_network, 17, marks=pytest.mark.slow),
    ],
)
def test_every_size_batch_and_thread_count(make, step, threads):
    """Sizes in odd steps: height and width go different ways, so that all pairs of parities come up.

    What was captured at one size must not be taken where it does not hold, such as where a map has one pixel.
    """
    model = settle(make())
    channels = 3 if make is some_network else 4
    deployed = NativeNetwork(model, image(1, channels, 32, 32))
    for i, height in enumerate(range(32, 321, step)):
        width = 320 - (height - 32) * 7 % 289
        threads(1 + i % 4)
        assert difference(model, deployed, image(1 + i % 5, channels, height, width)) <= LIMIT, (height, width)


def test_threads_and_passes_do_not_change_a_bit(threads):
    model = settle(few_layers())
    deployed = NativeNetwork(model, image(1, 3, 64, 64))
    x = image(5, 3, 49, 63)
    outputs = []
    for count in (1, 2, 3):
        threads(count)
        deployed(x)
        for chunk in (1, 4, 5):
            shape = deployed._shape(x.shape)
            parts = [part._replace(together=chunk) for part in shape.parts]
            outputs.append(deployed._run(x, shape._replace(parts=parts), count))
    assert all(torch.equal(outputs[0], y) for y in outputs)


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"), [(3, 5, 1), (16, 64, 1), (24, 24, 24), (40, 20, 4), (32, 96, 8), (64, 100, 2)]
)
def test_convolutions(inputs, outputs, groups):
    """All kinds side by side, in one network that is captured once."""
    kinds = [conv(inputs, outputs, groups=groups, **arguments) for arguments in CONVOLUTIONS]
    model = Net(lambda m, x: [kind(m.a(x)) for kind in m.kinds], a=conv(inputs, inputs, 1), kinds=nn.ModuleList(kinds))
    check(model, image(2, inputs, 13, 16), image(1, inputs, 11, 9))


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name, captured_as):
    model, captures = captured_graph(name)
    captured_as(captures)
    deployed = NativeNetwork(model, image(1, 8, 12, 12))
    for x in (image(1, 8, 12, 12), image(3, 8, 9, 14), image(2, 8, 5, 5)):
        expected, got = (torch.utils._pytree.tree_leaves(f(x)) for f in (model, deployed))
        assert len(got) == len(expected)
        for a, b in zip(expected, got):
            assert a.shape == b.shape
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
