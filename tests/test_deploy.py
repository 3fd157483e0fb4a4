"""The native engine: the module's answer for every network, size, batch, number of threads and instruction set."""

import pytest
import timm
import torch
import torch.nn.functional as F
from test_models import ALPHAS, SHALLOW, image, shallow
from torch import nn

import octaveconv as oc
import octaveconv.models
from octaveconv.deploy.native import library, tune
from octaveconv.deploy.native.engine import NativeNetwork

LIMIT = 1e-5  # of the largest output; float32 in another order of summation


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Try each choice of the tuner once."""
    monkeypatch.setattr(tune, "SECONDS", 0)


@pytest.fixture
def threads():
    """Set the number of threads, and set it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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


def check(model, *xs, target="native"):
    deployed = NativeNetwork(model.eval(), xs[0], target)
    for x in xs:
        assert difference(model, deployed, x) <= LIMIT
    return deployed


@pytest.mark.parametrize(
    ("name", "alpha"), [(name, alpha) for name in SHALLOW for alpha in (0, ALPHAS[name][1])] + [("oct_resnet50", 1)]
)
def test_every_network(name, alpha):
    check(settle(shallow(name, alpha)), image(1, 3, 64, 64), image(2, 3, 65, 33))


@pytest.mark.parametrize("target", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("name", ["oct_resnet50", "oct_resnextv2_50_32x4d", "oct_mobilenetv2_100", "oct_seresnetv2_50"])
def test_every_instruction_set(name, target):
    if target not in library.runnable():
        pytest.skip(f"this CPU has no {target}")
    check(settle(shallow(name, 0.5)), image(1, 3, 64, 64), image(3, 3, 33, 49), target=target)


@pytest.mark.slow
def test_every_size_batch_and_thread_count(threads):
    """Sizes in odd steps: height and width go different ways, so that all pairs of parities come up.

    What was captured at one size must not be taken where it does not hold, such as where a map has one pixel.
    """
    model = settle(timm.create_model("oct_resnet18", alpha=0.25, layers=(1, 1, 1, 1), num_classes=10))
    deployed = NativeNetwork(model, image(1, 3, 32, 32))
    for i, height in enumerate(range(32, 321, 17)):
        width = 320 - (height - 32) * 7 % 289
        threads(1 + i % 4)
        assert difference(model, deployed, image(1 + i % 5, 3, height, width)) <= LIMIT, (height, width)


def test_threads_and_passes_do_not_change_a_bit(threads):
    model = settle(shallow("oct_resnet50", 0.25))
    deployed = NativeNetwork(model, image(1, 3, 64, 64))
    x = image(5, 3, 49, 63)
    outputs = []
    for count in (1, 2, 3):
        threads(count)
        deployed(x)
        for chunk in (1, 4, 5):
            form, sizes = deployed._by_shape[x.shape]
            outputs.append(form(x, sizes, chunk, count))
    assert all(torch.equal(outputs[0], y) for y in outputs)


class Net(nn.Module):
    """A function as a module."""

    def __init__(self, fn, **modules):
        super().__init__()
        self.fn = fn
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.fn(self, x)


def conv(*args, **kwargs):
    torch.manual_seed(2)
    return nn.Conv2d(*args, **kwargs)


CONVOLUTIONS = [
    dict(kernel_size=k, stride=s, padding=p, dilation=d)
    for k, s, p, d in [
        (1, 1, 0, 1), (1, 2, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 3, 0, 1), (3, 1, 2, 2), (5, 1, 2, 1), (7, 2, 3, 1),
        (2, 2, 0, 1), ((1, 3), 1, (0, 1), 1), ((5, 1), (2, 1), (2, 0), 1), (3, 1, 0, 1), (3, 1, 3, 1),
    ]
]  # fmt: skip


@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"), [(3, 5, 1), (16, 64, 1), (24, 24, 24), (40, 20, 4), (32, 96, 8), (64, 100, 2)]
)
def test_convolutions(arguments, inputs, outputs, groups):
    model = nn.Sequential(conv(inputs, inputs, 1), conv(inputs, outputs, groups=groups, **arguments))
    check(model, image(2, inputs, 13, 16), image(1, inputs, 11, 9))


def two(fn, **modules):
    return Net(fn, a=conv(8, 24, 3, padding=1), b=conv(8, 24, 1), c=conv(24, 16, 3, padding=1), **modules)


def residual(fn):
    return Net(
        fn, a=conv(8, 60, 1), b=conv(60, 60, 3, padding=1), c=conv(60, 4, 1), d=conv(8, 60, 1), e=conv(8, 64, 1),
        f=conv(64, 9, 3, padding=1),
    )  # fmt: skip


GRAPHS = {
    "sum of two convolutions": two(lambda m, x: m.a(x) + m.b(x)),
    "sum with a map used twice": two(lambda m, x: (y := m.a(x)) + m.b(x) * 2 + y.relu()),
    "sum with itself": two(lambda m, x: (y := m.a(x)) + y),
    "residual sums": residual(lambda m, x: m.b(m.b(m.b(z := m.b(m.b(y := m.a(x))) + y))) + z),
    "a residual that is read later": residual(lambda m, x: m.b(m.b(m.b(y := m.a(x))) + y) + y),
    "a residual that is read meanwhile": residual(lambda m, x: [m.b(m.b(m.a(x)) + (y := m.d(x))), m.b(y)]),
    "a part of a residual": residual(lambda m, x: m.b(m.a(x)) + m.e(x)[:, 4:]),
    "a residual out of a concatenation": residual(
        lambda m, x: [m.b(m.b(y := m.a(x))) + y, m.f(torch.cat([x[:, :4], y], 1))]
    ),
    "a residual sum in a concatenation": residual(
        lambda m, x: m.f(torch.cat([m.c(z := m.b(m.b(y := m.a(x))) + y), z], 1))
    ),
    "constants": two(lambda m, x: 3 * m.a(x) - torch.arange(24.0)[:, None, None]),
    "in place": two(lambda m, x: (y := m.a(x)).relu_() + m.b(x) + y),
    "read, then in place": two(lambda m, x: m.c(y := m.a(x)) + m.c(y.relu_())),
    "every activation": two(lambda m, x: m.c(F.silu(m.a(x))) + F.hardswish(m.c(F.hardsigmoid(m.b(x))))),
    "activation of an activation": two(lambda m, x: F.relu6(torch.sigmoid(m.a(x)) * 9)),
    "concatenation": two(lambda m, x: torch.cat([m.a(x), x, m.b(x)], 1)),
    "concatenation, then all at once": Net(
        lambda m, x: m.c(m.n(torch.cat([y := m.a(x), x, m.b(x).relu(), y], 1)).relu()),
        a=conv(8, 20, 1), b=conv(8, 12, 3, padding=1), n=nn.BatchNorm2d(60), c=conv(60, 9, 3, padding=1),
    ),
    "a growing concatenation": Net(
        lambda m, x: m.d(torch.cat([x, y := m.a(x), z := m.b(m.n(torch.cat([x, y], 1))), m.c(y + z)], 1).relu()),
        a=conv(8, 12, 1), n=nn.BatchNorm2d(20), b=conv(20, 12, 3, padding=1), c=conv(12, 5, 1), d=conv(37, 4, 1),
    ),
    "two concatenations of the same maps": two(
        lambda m, x: m.c(torch.cat([x, x, y := m.b(x)[:, :8]], 1).relu() + torch.cat([y, x, x], 1).relu())
    ),
    "split, slices and narrow": two(
        lambda m, x: m.c(torch.cat([(y := m.a(x)).split([4, 15, 5], 1)[1], y[:, :7], y.narrow(1, 9, 2)], 1))
    ),
    "chunks": two(lambda m, x: m.a(x).chunk(2, 1)[0] * 2 + m.b(x)[:, 12:]),
    "pooling of other kinds": two(lambda m, x: F.avg_pool2d(y := m.a(x), 3, 2, 1) + F.max_pool2d(y, 3, 2, 1)),
    "average without the padding": two(lambda m, x: F.avg_pool2d(m.a(x), 3, 2, 1, count_include_pad=False)),
    "average pooling that drops the edge": two(lambda m, x: F.avg_pool2d(m.a(x), 2, 2)),
    "octave pooling": two(lambda m, x: m.c(oc.octave.pool(oc.octave.pool(m.a(x).relu())))),
    "octave pooling of what is read too": two(lambda m, x: [oc.octave.pool(y := m.a(x)), y, oc.octave.pool(x)]),
    "upsampling": two(lambda m, x: m.a(x) + oc.octave.upsample(m.b(oc.octave.pool(x)), (2, 2), x.shape[-2:])),
    "upsampling of what is activated": two(
        lambda m, x: m.a(x) + oc.octave.upsample(m.b(oc.octave.pool(x)).relu(), (2, 2), x.shape[-2:])
    ),
    "gates": two(lambda m, x: (y := m.a(x)) * m.a(y.mean((2, 3), keepdim=True)[:, :8]).sigmoid() + m.b(x)),
    "head": Net(
        lambda m, x: m.fc(F.adaptive_avg_pool2d(m.a(x), 1).flatten(1)), a=conv(8, 24, 1), fc=nn.Linear(24, 7)
    ),
    "dropout": Net(lambda m, x: m.d(m.a(x)), a=conv(8, 24, 1), d=nn.Dropout(0.5)),
    "a dictionary": two(lambda m, x: {"a": m.a(x), "b": [m.b(x), x]}),
    "the input itself": two(lambda m, x: x),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name):
    model = settle(GRAPHS[name])
    deployed = NativeNetwork(model, image(1, 8, 12, 12))
    for x in (image(1, 8, 12, 12), image(3, 8, 9, 14), image(2, 8, 5, 5)):
        expected, got = (torch.utils._pytree.tree_leaves(f(x)) for f in (model, deployed))
        assert len(got) == len(expected)
        for a, b in zip(expected, got):
            assert a.shape == b.shape
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
