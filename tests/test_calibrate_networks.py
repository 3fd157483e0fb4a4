"""octavify with a sample, of networks as others write them: their answers and the plan's figures are right."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, random_octave
from octavify_parts import conv, norm
from torch import nn

import octaveconv as oc
from octaveconv.octavify import refit
from octaveconv.octavify.regression import Pixels
from octaveconv.octavify.sample import Judge, Sample

X = torch.zeros(1, 3, 16, 16)


class Net(nn.Module):
    """A stem, a body of octave layers, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.n, self.b, self.head = conv(3, 8), conv(8, 8), norm(8), conv(8, 8), nn.Linear(8, 5)
        self.build()

    def build(self):
        pass

    def body(self, x):
        return self.b(self.n(self.a(x)).relu()).relu()

    def forward(self, x):
        return self.head(self.body(self.stem(x).relu()).mean((2, 3)))


class GateTwice(Net):
    def build(self):
        self.gate = nn.Parameter(torch.linspace(-1, 2, 8).view(1, 8, 1, 1))

    def body(self, x):
        return self.b(self.n(self.a(x)).relu() * self.gate).relu() * self.gate


class ConstantGate(Net):
    def body(self, x):
        return self.b(self.n(self.a(x)).relu() * torch.linspace(-1, 3, 8).view(1, 8, 1, 1)).relu()


class BufferGate(Net):
    def build(self):
        self.register_buffer("gate", torch.linspace(-1, 3, 8).view(1, 8, 1, 1), persistent=False)

    def body(self, x):
        return self.b(self.n(self.a(x)).relu() * self.gate).relu()


class NormTwice(Net):
    def build(self):
        self.n, self.c = nn.BatchNorm2d(8, affine=False), conv(8, 8)
        self.n.running_mean.normal_()
        self.n.running_var.uniform_(0.5, 2)

    def body(self, x):
        return self.c(self.n(self.b(self.n(self.a(x)).relu())).relu()).relu()


class InstanceNormTwice(Net):
    def build(self):
        self.i = nn.InstanceNorm2d(8)

    def body(self, x):
        return self.b(self.i(self.i(self.a(x)).relu())).relu()


class KeptNorm(Net):
    def build(self):
        self.pre, self.c, self.m, self.d = conv(8, 8), conv(8, 8, bias=False), norm(8), conv(8, 8)

    def body(self, x):
        x = self.pre(x).relu()
        return self.d((x + self.m(self.c(self.n(self.a(x)).relu()))).relu()).relu()


class Race(Net):
    """What is fitted later is changed in place before."""

    def build(self):
        self.c, self.d, self.r = conv(8, 8), conv(8, 8), nn.ReLU(inplace=True)

    def body(self, x):
        first = self.n(self.a(x)).relu()
        second, third = self.b(first), self.r(self.c(first))
        return self.d((first + second) + third).relu()


class InputInPlace(Net):
    def forward(self, x):
        return super().forward(x.mul_(2).add_(0.5))


class NormOfVectors(Net):
    def build(self):
        self.vectors = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.head(self.vectors(self.body(self.stem(x).relu()).mean((2, 3))))


class Numbers(Net):
    def forward(self, x):
        y = super().forward(x)
        return {"loss": y.square().mean(), "y": y, "classes": 5}


class ExtraState(Net):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state["version"] == 3


class Masked(Net):
    def forward(self, x):
        return super().forward(x).masked_fill(torch.tensor([False, True, False, False, False]), -torch.inf)


class Dropping(Net):
    def body(self, x):
        return self.b(F.dropout(self.n(self.a(x)).relu(), 0.5, self.training)).relu()


class Cut(Net):
    """Channels that are cut into halves, of which one goes on."""

    def build(self):
        self.wide, self.narrow, self.out = conv(8, 16), conv(8, 8), conv(24, 8)

    def body(self, x):
        halves = list(self.wide(x).relu().chunk(2, 1))
        return self.b(self.out(torch.cat([*halves, self.narrow(halves[-1])], 1)).relu()).relu()


NETWORKS = (
    Net, GateTwice, ConstantGate, BufferGate, NormTwice, InstanceNormTwice, KeptNorm, Race, InputInPlace, NormOfVectors,
    Numbers, ExtraState, Masked, Dropping, Cut,
)  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_the_network_and_its_figures_are_right(network):
    torch.manual_seed(0)
    model, images = network().train(network is Dropping), torch.randn(11, 3, 16, 16)
    given, keep = copy.deepcopy(model), ["m"] if network is KeptNorm else []
    sample = images.clone()
    octave, plan = oc.octavify(model, 0.5, X, keep, calibrate=[sample])
    assert torch.equal(sample, images)
    before, after = (dict(one.named_parameters()) | dict(one.named_buffers()) for one in (given, model))
    assert all(torch.equal(before[name], after[name]) for name in before)
    judge = Judge(given, Sample.of([images], (X,)))
    best = min(step.divergence for step in plan.steps)
    assert judge(octave).divergence == pytest.approx(best, rel=1e-2, abs=1e-7)
    plain, _ = oc.octavify(given, 0.5, X, keep)
    assert best <= judge(plain).divergence * 1.01 + 1e-7
    again, _ = oc.octavify(network(), 0.5, X, keep)
    again.load_state_dict(octave.state_dict())
    for actual, expected in zip(values(again.eval(), images), values(octave.eval(), images)):
        assert_close(actual, expected)
    json.dumps(plan.to_dict(), allow_nan=False)


def values(model, images):
    with torch.no_grad():
        found = model(images.clone())
    return [x for x in (found.values() if isinstance(found, dict) else [found]) if isinstance(x, torch.Tensor)]


def test_a_vector_of_a_series_is_reordered():
    class Series(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b, self.c = (nn.Conv1d(i, 8, 3, padding=1) for i in (3, 8, 8, 8))
            self.gate, self.head = nn.Parameter(torch.linspace(-1, 2, 8).view(1, 8)), nn.Linear(8, 4)

        def forward(self, x):
            x = self.a(self.stem(x).relu()).relu()
            return self.head(self.gate * x.mean(2)) + self.c(self.b(x).relu()).mean(2)[:, :4]

    model, x = Series().eval(), torch.randn(12, 3, 32)
    octave, plan = oc.octavify(model, 0.5, x[:1], calibrate=[x])
    found = Judge(model, Sample.of([x], (x[:1],)))(octave).divergence
    assert found == pytest.approx(min(step.divergence for step in plan.steps), rel=1e-2, abs=1e-8)


def test_norms_that_do_not_run_keep_their_statistics():
    class Auxiliary(Net):
        def build(self):
            self.auxiliary = norm(8)

        def body(self, x):
            y = super().body(x)
            return y + self.auxiliary(y) if self.training else y

    model = Auxiliary().eval()
    octave, _ = oc.octavify(model, 0.5, X, calibrate=[torch.randn(12, 3, 16, 16)])
    assert torch.equal(octave.auxiliary.running_mean, model.auxiliary.running_mean)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_image_that_is_no_image_ends_in_a_network(bad):
    images = torch.randn(12, 3, 16, 16)
    images[0, 0, 0, 0] = bad
    octave, plan = oc.octavify(Net().eval(), 0.5, X, calibrate=[images])
    assert octave(torch.randn(2, 3, 16, 16)).isfinite().all()
    json.dumps(plan.to_dict(), allow_nan=False)


def test_a_sample_of_another_dtype_is_converted():
    _, plan = oc.octavify(Net().double().eval(), 0.5, X.double(), calibrate=[torch.randn(12, 3, 16, 16)])
    assert len(plan.steps) == 4


def test_of_a_layer_with_too_many_inputs_only_the_mean_is_fitted(monkeypatch):
    monkeypatch.setattr(refit, "_MOST", 8)
    torch.manual_seed(0)
    layer, other = (oc.OctConv2d(8, 8, 3, padding=1, alpha_in=0.5, alpha_out=0.5) for _ in range(2))
    other.weight.data, weight = layer.weight.data.clone(), layer.weight.data
    fit, pixels = refit._Fit(other, None), Pixels(images=4, draw=torch.Generator())
    with torch.no_grad():
        for fold in (0, 1):
            x = random_octave(8, 0.5, (8, 8), batch=2)
            fit.add(x, layer(x), pixels, fold)
        fit.solve()
    assert torch.equal(other.weight, weight)
    assert_close(other.bias, layer.bias)


def test_a_budget_can_be_spent_on_channels_that_are_cut():
    torch.manual_seed(0)
    model, images = Cut().eval(), torch.randn(12, 3, 16, 16)
    _, plan = oc.octavify(model, "auto", X, calibrate=[images], macs=0.55)
    assert next(one.alpha_out for one in plan.layers if one.name == "wide") > 0
