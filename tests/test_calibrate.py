"""What octavify does with a sample: order channels, choose alphas for a budget, refit layers, and judge each step."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import assert_close, random_octave
from octavify_parts import PARTS, Part, conv, layer, norm, prepared, shuffled_spaces
from torch import fx, nn

import octaveconv as oc
from octaveconv.octave import octave_map
from octaveconv.octavify import budget, regression, repair
from octaveconv.octavify.permute import permute
from octaveconv.octavify.refit import _Fit
from octaveconv.octavify.regression import Pixels
from octaveconv.octavify.repair import reestimate_norms
from octaveconv.octavify.saliency import saliencies
from octaveconv.octavify.sample import FEWEST, Judge, Sample, images_in

NETWORKS = {
    "resnext": lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], groups=8),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2, 2, 2), 16),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(),
    "dla": lambda: timm.create_model("dla46_c"),
    "convnext": lambda: timm.models.convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), ls_init_value=0.5),
    "dpn": lambda: timm.create_model("dpn48b", num_classes=3),
}


def randomise(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.load_state_dict(norm(module.num_features).state_dict())
    return model.double().eval()


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=[pytest.mark.slow] * (name != "densenet")) for name in NETWORKS), *PARTS],
    ids=lambda name: name if isinstance(name, str) else name.__name__,
)
def test_reordering_channels_changes_nothing(name):
    model = randomise(NETWORKS[name]() if isinstance(name, str) else name())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net = prepared(copy.deepcopy(model), x, 4, False)
    found = shuffled_spaces(net)
    permute(net, found)
    before, after = model.state_dict(), net.model.state_dict()
    changed = sum(not torch.equal(before[key], after[key]) for key in before)
    assert changed > len(found) / 2  # of two channels the random order may be that they have
    assert_close(fx.GraphModule(net.model, net.graph)(x), model(x))


class Scaled(Part):
    def build(self):
        self.scale, self.middle = nn.Parameter(torch.rand(16, 1, 1) + 0.5), conv(16, 16)

    def part(self, x):
        return self.middle(x) * self.scale


def test_a_learned_scale_is_reordered_with_its_channels():
    model, x = Scaled().double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    net = prepared(copy.deepcopy(model), x, 4, False)
    permute(net, shuffled_spaces(net))
    assert not torch.equal(net.model.scale, model.scale)
    assert_close(fx.GraphModule(net.model, net.graph)(x), model(x))


# Which channels become low


class Waves(nn.Module):
    """Channels of known detail: of each group the first two are rough, the other two smooth."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 1, bias=False)
        self.first, self.second = conv(8, 8, 1, groups=2), conv(8, 8, 3, groups=2)
        with torch.no_grad():
            self.stem.weight.copy_(torch.eye(4).repeat(2, 1)[..., None, None])
            self.first.weight.copy_(torch.eye(4).repeat(2, 1)[..., None, None])

    def forward(self, x):
        return self.second(self.first(self.stem(x)))


def waves(batch=6):
    """Two channels of noise, and two that are the same for every two by two pixels."""
    smooth = torch.randn(batch, 2, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return torch.cat([torch.randn(batch, 2, 16, 16), smooth], 1)


def saliency_of(model, x, name, stem=True):
    net = prepared(copy.deepcopy(model), x, 8, stem)
    (node,) = (node for node in net.steps if node.target == name)
    return saliencies(net, [(x,)])[net.spaces.of(node)]


def test_what_is_smooth_is_given_up_first_and_costs_nothing():
    order, costs = saliency_of(Waves(), waves(), "first")
    assert [sorted(half) for half in order.view(4, 2).tolist()] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert costs[0] == 0
    assert costs[2] < 0.01 * costs[4]
    assert costs == sorted(costs)


def test_detail_that_other_channels_tell_costs_little():
    """Of five rough channels the last is a sum of others: who reads it can read them."""

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first, self.second = conv(3, 3, 1), nn.Conv2d(3, 4, 1, bias=False), conv(4, 8, 1)
            with torch.no_grad():
                self.first.weight.copy_(torch.cat([torch.eye(3), torch.ones(1, 3)])[..., None, None])

        def forward(self, x):
            return self.second(self.first(self.stem(x)))

    _, costs = saliency_of(Told(), torch.randn(8, 3, 16, 16), "first", stem=False)
    assert costs[1] < 0.02 * costs[2]
    assert 0 < costs[2] < costs[4]


def test_what_the_answers_do_not_need_costs_nothing():
    model = Waves()
    with torch.no_grad():
        model.second.weight[:, 1] = 0  # nobody reads the second channel of a group, a rough one
    order, costs = saliency_of(model, waves(), "first")
    assert set(order.view(2, 4)[:, -3:].flatten().tolist()) == {1, 2, 3, 5, 6, 7}
    assert costs[3] < 0.01 * costs[4]


class Grouped(Part):
    def build(self):
        self.norm, self.middle = nn.GroupNorm(4, 16), conv(16, 16)

    def part(self, x):
        return self.middle(self.norm(x))


def test_the_groups_of_a_norm_stay_together():
    order, _ = saliency_of(Grouped(), torch.randn(4, 3, 16, 16), "first", stem=False)
    assert sorted(order.tolist()) == [*range(16)]
    assert all(len({channel // 4 for channel in group}) == 1 for group in order.view(4, 4).tolist())


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_form_is_measured(part):
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net = prepared(part().double(), x, 4, False)
    found = saliencies(net, [(x,)])
    assert found
    for space, (order, costs) in found.items():
        assert order.sort().values.tolist() == [*range(net.channels(space))]
        assert len(costs) - 1 == net.channels(space) / max(net.cuts.get(space) or {1})
        assert costs == sorted(costs)
        assert all(cost >= 0 for cost in costs)
    assert all(p.requires_grad for p in net.model.parameters())


# Refitting


LAYERS = {
    "1x1": dict(kernel_size=1),
    "3x3": dict(kernel_size=3, padding=1),
    "stride": dict(kernel_size=3, padding=1, stride=2),
    "dilated": dict(kernel_size=(3, 1), padding=(2, 0), dilation=2),
    "reflected": dict(kernel_size=3, padding=1, padding_mode="reflect"),
    "grouped": dict(kernel_size=3, padding=1, groups=2),
    "depthwise": dict(kernel_size=3, padding=1, groups=8, stride=2),
    "from high": dict(kernel_size=3, padding=1, alpha_in=0.0),
    "to high": dict(kernel_size=3, padding=1, stride=2, alpha_out=0.0),
    "no bias": dict(kernel_size=1, bias=False),
}


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_that_has_other_weights_finds_those_that_made_the_outputs(case, axes, monkeypatch):
    monkeypatch.setattr(regression, "_RIDGES", (1e-12,))
    options = {"alpha_in": 0.5, "alpha_out": 0.5} | LAYERS[case]
    if axes != 2:
        options = {name: value[0] if isinstance(value, tuple) else value for name, value in options.items()}
    kind = (oc.OctConv1d, oc.OctConv2d, oc.OctConv3d)[axes - 1]
    made, other = (kind(8, 8, **options, dtype=torch.float64) for _ in range(2))
    size = {1: (301,), 2: (25, 26), 3: (6, 13, 12)}[axes]
    fit, pixels = _Fit(other, None), Pixels(images=6, draw=torch.Generator())
    with torch.no_grad():
        for fold in (0, 1):
            x = random_octave(8, options["alpha_in"], size, batch=3, dtype=torch.float64, factor=made.spec.factor)
            fit.add(x, made(x), pixels, fold)
        fit.solve()
        for actual, expected in zip(other(x), made(x)):
            if expected is not None:
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_fewer_pixels_than_inputs_are_no_error():
    layer, other = (oc.OctConv2d(64, 8, 3, padding=1, alpha_in=0.5, alpha_out=0.5) for _ in range(2))
    fit, x = _Fit(other, None), random_octave(64, 0.5, (4, 5), batch=1)
    x = octave_map(lambda part: part[:, :1].expand(part.shape), x)  # and all alike
    with torch.no_grad():
        for fold in (0, 1):
            fit.add(x, layer(x), Pixels(images=1, draw=torch.Generator()), fold)
        before = (other(x).high - layer(x).high).norm()
        fit.solve()
        assert (other(x).high - layer(x).high).norm() < 0.1 * before


def network(seed=0):
    """A residual network whose norms fit its images, as those of a trained one do."""
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=10)
    reestimate_norms(model, [(pictures(16, seed),)])
    return model.eval()


def pictures(count, seed):
    """Noise of several sizes of detail."""
    draw = torch.Generator().manual_seed(seed)
    small = (torch.randn(count, 3, size, size, generator=draw) for size in (4, 8, 16, 32))
    return sum(F.interpolate(each, 64, mode="bilinear") for each in small)


def test_a_sample_brings_the_answers_closer_than_none():
    for seed in range(2):
        model, x = network(seed), pictures(30, seed)
        for alpha in (0.25, 0.5):
            plain, _ = oc.octavify(model, alpha, x[:1])
            octave, plan = oc.octavify(model, alpha, x[:1], calibrate=[x])
            other = Sample([], [(pictures(20, 99),)])
            judge = Judge(model, other)
            assert judge(octave).divergence < judge(plain).divergence
            assert [step.name for step in plan.steps] == ["as given", "ordered", "refitted", "norms"]
            kept = [step for step in plan.steps if step.kept]
            assert kept == [min(plan.steps, key=lambda step: step.divergence)]
            assert judge(model) == (0, 1)


def test_distillation_brings_the_answers_closer_still():
    model, x, lines = network(1), pictures(30, 1), []
    model.fc.weight.requires_grad_(False)
    octave, plan = oc.octavify(model, 0.5, x[:1], calibrate=[x], distill=5, say=lines.append)
    names = [step.name for step in plan.steps]
    assert names == ["as given", "ordered", "refitted", "norms", "distilled"]
    assert plan.steps[-1].kept
    assert plan.steps[-1].divergence < 0.95 * plan.steps[-3].divergence
    assert "distilled 5 of 5 epochs" in lines
    assert [name for name, p in octave.named_parameters() if not p.requires_grad] == ["fc.weight"]
    assert all(p.grad is None for p in octave.parameters())
    plain, _ = oc.octavify(model, 0.5, x[:1], calibrate=[x])
    found, other = octave.state_dict(), plain.state_dict()
    assert all(torch.equal(found[name], other[name]) for name in found if "num_batches" in name)
    again, _ = oc.octavify(model, 0.5, x[:1], calibrate=[x], distill=5)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in found.items())


def test_distillation_of_several_inputs_answers_and_what_changes_them():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = conv(3, 8), conv(8, 8), conv(8, 8)

        def forward(self, x, y):
            x = self.a(x.add_(y))
            return {"map": self.c(self.b(x).relu_()), "first": x.mean((2, 3))}

    x, y = (torch.randn(12, 3, 16, 16) for _ in range(2))
    kept = x.clone()
    _, plan = oc.octavify(Both().eval(), 0.5, (x[:1].clone(), y[:1]), calibrate=[(x, y)], distill=1, min_size=2)
    assert plan.steps[-1].name == "distilled"
    assert plan.steps[-1].divergence < 1
    assert torch.equal(x, kept)


class Answers(nn.Module):
    """A small network with other answers than scores."""

    def __init__(self, answer, classes=1):
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 16), conv(16, 16), conv(16, 16), nn.Linear(16, classes)
        self.answer = answer

    def forward(self, x, more=None):
        x = self.a(x).relu()
        return self.answer(self, self.c(self.b(x if more is None else x + more).relu()).relu())


ANSWERS = {
    "a number of one image": (lambda m, y: m.head(y.mean((2, 3))), [(torch.randn(1, 3, 16, 16),) for _ in range(20)]),
    "one number of all": (lambda m, y: y.mean(), [(torch.randn(8, 3, 16, 16),) for _ in range(3)]),
    "a number beside maps": (lambda m, y: {"a": y, "b": y.sum()}, [(torch.randn(8, 3, 16, 16),) for _ in range(3)]),
    "one row for all images": (
        lambda m, y: m.head(y.mean((2, 3))), [(torch.randn(8, 3, 16, 16), torch.randn(1, 16, 16, 16)) for _ in range(3)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_distillation_of_few_numbers(name):
    answer, batches = ANSWERS[name]
    model = Answers(answer).eval()
    octave, plan = oc.octavify(model, 0.5, batches[0], calibrate=batches, distill=2, min_size=2)
    assert plan.steps[-1].name == "distilled"
    assert plan.steps[-1].divergence < 1e6
    assert all(p.isfinite().all() for p in octave.parameters())


def test_what_has_no_derivative_is_not_distilled_and_says_so():
    class Changing(Answers):
        def forward(self, x):
            return self.head(self.c(self.b(self.a(x)).sigmoid().mul_(2)).mean((2, 3)))

    model = Changing(None, 3).eval()
    x = torch.randn(12, 3, 16, 16)
    with pytest.warns(UserWarning, match="it could not be distilled: one of the variables"):
        _, plan = oc.octavify(model, 0.5, x[:1], calibrate=[x], distill=1, min_size=2)
    assert plan.steps[-1].name != "distilled"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(calibrate=None), "give calibrate=batches"),
        (dict(distill=1.5), "distill is a number of epochs"),
        (dict(distill=-1), "distill is a number of epochs"),
        (dict(distill="a"), "distill is a number of epochs"),
        (dict(say=3), "say takes a line of text"),
        (dict(calibrate=5), "calibrate must hold batches of the network's inputs, got 5"),
        (dict(alpha="auto", macs="x"), "above 0 and below 1, got macs='x'"),
    ],
)
def test_wrong_use_of_a_sample(arguments, message):
    x = pictures(12, 0)
    with pytest.raises(ValueError, match=message):
        oc.octavify(network(), **{"alpha": 0.5, "example_inputs": x[:1], "calibrate": [x], "distill": 1} | arguments)


def test_a_step_that_does_harm_is_not_kept(monkeypatch):
    """Where every step does, the network is no worse than without a sample."""
    model, x = network(), pictures(20, 0)

    def harm(*args):
        for module in args[2].modules():
            if isinstance(module, oc.OctConv2d):
                module.weight.data.zero_()

    monkeypatch.setattr(repair, "refit", harm)
    octave, plan = oc.octavify(model, 0.5, x[:1], calibrate=[x])
    plain, _ = oc.octavify(model, 0.5, x[:1])
    best = min(step.divergence for step in plan.steps)
    assert next(step.name for step in plan.steps if step.kept) != "refitted"
    assert Judge(model, Sample.of([x], (x[:1],)))(octave).divergence == pytest.approx(best, rel=1e-3)
    assert best <= Judge(model, Sample.of([x], (x[:1],)))(plain).divergence * 1.001


def test_it_is_the_same_every_time():
    model, x = network(), pictures(20, 0)
    first, second = (oc.octavify(model, 0.5, x[:1], calibrate=[x])[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_model_given_is_not_changed():
    model, x = network().train(), pictures(12, 0)
    before = copy.deepcopy(model.state_dict())
    octave, _ = oc.octavify(model, 0.5, x[:1], calibrate=[x])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert octave.training
    assert all(p.requires_grad and p.grad is None for p in [*model.parameters(), *octave.parameters()])


def test_answers_without_a_gradient_leave_the_order():
    class Labels(Part):
        def part(self, x):
            return x

        def forward(self, x):
            return super().forward(x).argmax(1)

    x = torch.randn(12, 3, 16, 16)
    _, plan = oc.octavify(Labels(), 0.5, x[:1], calibrate=[x])
    assert "no gradients could be taken (its answers have no gradient): channels keep their order" in str(plan)
    with pytest.raises(ValueError, match="a budget cannot be spent by what it costs: no gradients could be taken"):
        oc.octavify(Labels(), "auto", x[:1], calibrate=[x], macs=0.9)


def test_answers_of_several_kinds_are_compared():
    class Maps(Part):
        def forward(self, x):
            x = F.relu(self.first(self.stem(x)))
            return {"maps": self.last(x), "mean": x.mean((2, 3)), "size": x.shape[2]}

    x = torch.randn(12, 3, 16, 16)
    model = Maps().eval()
    octave, plan = oc.octavify(model, 0.5, x[:1], calibrate=[x])
    assert 0 < min(step.divergence for step in plan.steps) < 1
    assert set(octave(x)) == {"maps", "mean", "size"}


# The norms


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.bn, self.last = conv(3, 8), conv(8, 8), norm(8), conv(8, 4)

    def forward(self, x):
        return self.last(self.bn(self.conv(self.stem(x))))


def test_norms_are_estimated_on_the_sample():
    octave, _ = oc.octavify(Normed().eval(), 0.25, torch.zeros(1, 3, 16, 16))
    sample = [torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16) + 2]
    reestimate_norms(octave, [(images,) for images in sample])
    parts = [octave.conv(octave.stem(images)) for images in sample]
    means = torch.cat([torch.stack([p[i].mean((0, 2, 3)) for p in parts]).mean(0) for i in range(2)])
    variances = torch.cat(
        [torch.stack([p[i].transpose(0, 1).flatten(1).var(1) for p in parts]).mean(0) for i in range(2)]
    )
    assert_close(octave.bn.running_mean, means)
    assert_close(octave.bn.running_var, variances)
    assert octave.bn.momentum == 0.1
    assert not any(module.training for module in octave.modules())


# The budget


def test_a_budget_is_spent_where_it_hurts_least():
    torch.manual_seed(1)
    model = nn.Sequential(*(conv(3 if i == 0 else 8, 8) for i in range(8)), nn.AdaptiveAvgPool2d(1)).eval()
    sample = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        for i in range(4, 8):
            model[i].weight.copy_(model[i].weight.mean((2, 3), keepdim=True))  # blurred again and again: smooth
    _, plan = oc.octavify(model, "auto", sample, calibrate=[sample], macs=0.7)
    assert 0.5 < plan.macs_after / plan.macs_before <= 0.7
    rough, smooth = (sum(layer(plan, str(i)).alpha_out for i in some) for some in ((1, 2, 3), (5, 6, 7)))
    assert rough < smooth
    tighter = oc.octavify(model, "auto", sample, calibrate=[sample], macs=0.5)[1]
    assert tighter.macs_after <= 0.5 * plan.macs_before
    with pytest.raises(ValueError, match=r"macs=0.1 is out of reach: the least is 0\.\d+ of the dense"):
        oc.octavify(model, "auto", sample, calibrate=[sample], macs=0.1)


# The sample


def test_a_sample_is_divided():
    x = torch.arange(23.0)[:, None]
    sample = Sample.of([x[:20], x[20:]], (x[:1],))
    fit, judge = (torch.cat([batch[0] for batch in part]).flatten().tolist() for part in sample)
    assert sorted(fit + judge) == x.flatten().tolist()
    assert 3 <= len(judge) <= 6
    assert max(map(images_in, sample.fit)) <= 4


def test_a_few_images_are_both_fitted_and_judged():
    x = torch.randn(FEWEST - 1, 3)
    sample = Sample.of([x], (x,))
    assert sample.fit is sample.judge


@pytest.mark.parametrize(
    ("calibrate", "message"),
    [
        ([], "calibrate must hold batches of the network's inputs"),
        ([torch.zeros(0, 3, 16, 16)], "calibrate must hold batches of the network's inputs"),
        ([torch.zeros(2, 3, 18, 18)], r"calibrate has a batch \[2, 3, 18, 18\], but example_inputs \[1, 3, 16, 16\]"),
        (["a.jpg"], "calibrate has a batch str"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(calibrate, message):
    with pytest.raises(ValueError, match=message):
        oc.octavify(Normed(), 0.5, torch.zeros(1, 3, 16, 16), calibrate=calibrate)


def test_labels_are_not_read():
    x = torch.randn(12, 3, 16, 16)
    model = Normed().eval()
    plain, _ = oc.octavify(model, 0.5, x[:1], calibrate=[x])
    labelled, _ = oc.octavify(model, 0.5, x[:1], calibrate=[(x, torch.zeros(12))])
    parts = octave_map(lambda part: part, plain.conv(plain.stem(x)))
    assert parts.low is not None
    assert torch.equal(plain(x), labelled(x))


def scoring():
    """A network of ten classes."""
    torch.manual_seed(0)
    convs = [layer for i in range(4) for layer in (conv(3 if i == 0 else 16, 16), nn.ReLU())]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


def test_a_budget_of_agreement_is_kept_at_as_few_multiply_adds_as_that_takes(monkeypatch):
    monkeypatch.setattr(budget, "TRIES", 3)
    model, sample = scoring(), torch.randn(40, 3, 32, 32)
    plans = [
        oc.octavify(model, "auto", sample, calibrate=[sample], agreement=wanted, min_size=2)[1] for wanted in (0.6, 0.9)
    ]
    shares = [plan.macs_after / plan.macs_before for plan in plans]
    for wanted, plan in zip((0.6, 0.9), plans):
        assert next(step.agreement for step in plan.steps if step.kept) >= wanted
    assert shares[0] <= shares[1] < 1


def test_a_budget_of_latency_is_measured(monkeypatch):
    """As if time were multiply-adds and a tenth."""
    model, sample = scoring(), torch.randn(20, 3, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()

    def clock(octave, dense, inputs):
        assert dense is model
        return oc.cost(octave, input_size=32).counted_macs / oc.cost(dense, input_size=32).counted_macs + 0.1

    monkeypatch.setattr(budget, "_clocks", [clock])
    lines = []
    _, plan = oc.octavify(model, "auto", sample, calibrate=[sample], latency=0.9, min_size=2, say=lines.append)
    share = plan.macs_after / plan.macs_before
    assert 0.7 < share <= 0.8
    assert plan.notes[-1] == f"deployed, it takes {share + 0.1:.1%} of the dense network's time; asked for 90.0%"
    assert sum("of the latency" in line for line in lines) == budget.TRIES
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"latency=0.05 is out of reach: at \d+\.\d% of the multiply-adds it is 0\."):
        oc.octavify(model, "auto", sample, calibrate=[sample], latency=0.05, min_size=2)


@pytest.mark.usefixtures("quickly")
@pytest.mark.slow
def test_the_clock_deploys_both():
    model = scoring()
    octave, _ = oc.octavify(model, 0.5, torch.randn(1, 3, 32, 32), min_size=2)
    assert 0.05 < budget.latency(octave, model, (torch.randn(1, 3, 32, 32),)) < 20


def test_chances_count_as_their_logits_do():
    """A softmax at the end changes nothing; a sigmoid asks about each class by itself."""
    model, x = network(), pictures(30, 0)
    plans = [
        oc.octavify(nn.Sequential(model, *end).eval(), 0.5, x[:1], calibrate=[x])[1]
        for end in ([], [nn.Softmax(1)], [nn.Sigmoid()])
    ]
    for plain, soft in zip(plans[0].steps, plans[1].steps):
        assert soft.divergence == pytest.approx(plain.divergence, rel=1e-3)
        assert soft.agreement == plain.agreement
    octave, _ = oc.octavify(model, 0.5, x[:1])
    judge = Judge(nn.Sequential(model, nn.Sigmoid()).eval(), Sample([], [(x,)]))
    with torch.no_grad():
        p, q = model(x).double().sigmoid(), octave(x).double().sigmoid()
    wanted = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean()
    assert judge(nn.Sequential(octave, nn.Sigmoid())).divergence == pytest.approx(wanted.item(), rel=1e-3)
    assert plans[2].steps[-2].divergence < plans[2].steps[0].divergence
