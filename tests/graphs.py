"""Small networks, each with something that an engine has to do right."""

import functools

import torch
import torch.nn.functional as F
from fuzz_deploy import answer, difference
from networks import settle
from torch import nn

import octaveconv as oc
from octaveconv.deploy.capture import Captures


class Wired(nn.Module):
    """Two convolutions, some constants, and a function that wires them."""

    def __init__(self, wires):
        super().__init__()
        self.wires = wires
        self.conv, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.scale, self.vector = nn.Parameter(torch.randn(8, 1, 1)), nn.Parameter(torch.randn(8))
        self.linear, self.pixels = nn.Linear(26, 26), nn.Linear(8, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        return self.wires(self, x)


def agree(model, deployed, shapes):
    """At each of the shapes both give the same, and the input stays as it is."""
    for shape in shapes:
        x = torch.randn(shape)
        kept = x.clone()
        assert not difference(answer(model, x.clone()), answer(deployed, x)), shape
        assert torch.equal(x, kept), shape


class Net(nn.Module):
    """A function as a module."""

    def __init__(self, fn, **modules):
        super().__init__()
        self.fn = fn
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.fn(self, x)


def kept_half(y):
    """A view that is taken before its base is changed in place."""
    half = y[:, : y.shape[1] // 2]
    y.relu_()
    return half


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


def two(fn, **modules):
    return Net(fn, a=conv(8, 24, 3, padding=1), b=conv(8, 24, 1), c=conv(24, 16, 3, padding=1), **modules)


def residual(fn):
    return Net(
        fn,
        a=conv(8, 60, 1),
        b=conv(60, 60, 3, padding=1),
        c=conv(60, 4, 1),
        d=conv(8, 60, 1),
        e=conv(8, 64, 1),
        f=conv(64, 9, 3, padding=1),
    )


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
    "constants": two(lambda m, x: 3 * m.a(x) - torch.arange(24, dtype=x.dtype)[:, None, None]),
    "in place": two(lambda m, x: (y := m.a(x)).relu_() + m.b(x) + y),
    "read, then in place": two(lambda m, x: m.c(y := m.a(x)) + m.c(y.relu_())),
    "every activation": two(lambda m, x: m.c(F.silu(m.a(x))) + F.hardswish(m.c(F.hardsigmoid(m.b(x))))),
    "every other activation": two(
        lambda m, x: (
            m.c(F.gelu(m.a(x)) + F.gelu(m.b(x), approximate="tanh") + torch.tanh(m.a(x)) + F.mish(m.b(x)))
            + m.c(F.leaky_relu(m.a(x), 0.3) + F.elu(m.b(x), 0.7) + F.selu(m.a(x)) + m.b(x).clamp(-1, 2))
        )
    ),
    "paddings": Net(
        lambda m, x: (
            m.c(m.b(m.a(F.pad(x, (0, 1, 2, 0)))) + m.b(m.a(F.pad(x, (1, 0, 1, 1))))) - F.pad(m.d(x), (2, 3, 3, 3))
        ),
        a=conv(8, 9, 3, padding=1, padding_mode="reflect"),
        b=nn.Sequential(*(conv(9, 9, 3, padding=2, padding_mode=mode) for mode in ("replicate", "circular"))),
        c=conv(9, 9, 2, padding="same", padding_mode="zeros"),
        d=conv(8, 9, 3, padding="same", dilation=2),
    ),
    "activation of an activation": two(lambda m, x: F.relu6(torch.sigmoid(m.a(x)) * 9)),
    "concatenation": two(lambda m, x: torch.cat([m.a(x), x, m.b(x)], 1)),
    "concatenation, then all at once": Net(
        lambda m, x: m.c(m.n(torch.cat([y := m.a(x), x, m.b(x).relu(), y], 1)).relu()),
        a=conv(8, 20, 1),
        b=conv(8, 12, 3, padding=1),
        n=nn.BatchNorm2d(60),
        c=conv(60, 9, 3, padding=1),
    ),
    "a growing concatenation": Net(
        lambda m, x: m.d(torch.cat([x, y := m.a(x), z := m.b(m.n(torch.cat([x, y], 1))), m.c(y + z)], 1).relu()),
        a=conv(8, 12, 1),
        n=nn.BatchNorm2d(20),
        b=conv(20, 12, 3, padding=1),
        c=conv(12, 5, 1),
        d=conv(37, 4, 1),
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
    "head": Net(lambda m, x: m.fc(F.adaptive_avg_pool2d(m.a(x), 1).flatten(1)), a=conv(8, 24, 1), fc=nn.Linear(24, 7)),
    "dropout": Net(lambda m, x: m.d(m.a(x)), a=conv(8, 24, 1), d=nn.Dropout(0.5)),
    "a dictionary": two(lambda m, x: {"a": m.a(x), "b": [m.b(x), x]}),
    "the input itself": two(lambda m, x: x),
}


@functools.cache
def captured_graph(name):
    """One of `GRAPHS`, and its captures: for all tests that only read them."""
    model = settle(GRAPHS[name])
    return model, Captures(model)
