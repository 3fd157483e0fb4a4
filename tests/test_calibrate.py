"""What octavify learns from a sample: the order of channels, the errors, the norms' statistics, alphas for a budget."""

import copy

import pytest
import timm
import torch
import torchvision
from helpers import assert_close
from octavify_parts import PARTS, Part, conv, layer, norm, shuffled_spaces
from torch import fx, nn

import octaveconv as oc
from octaveconv import reference
from octaveconv.octave import merge_tensor, split_tensor
from octaveconv.octavify.calibrate import high_shares, orders
from octaveconv.octavify.octavify import _prepare
from octaveconv.octavify.permute import permute
from octaveconv.spec import conv_spec

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


@pytest.mark.parametrize("name", [*NETWORKS, *PARTS], ids=lambda name: name if isinstance(name, str) else name.__name__)
def test_reordering_channels_changes_nothing(name):
    model = randomise(NETWORKS[name]() if isinstance(name, str) else name())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    net, _ = _prepare(copy.deepcopy(model), (x,), [], 4, False)
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
    net, _ = _prepare(copy.deepcopy(model), (x,), [], 4, False)
    permute(net, shuffled_spaces(net))
    assert not torch.equal(net.model.scale, model.scale)
    assert_close(fx.GraphModule(net.model, net.graph)(x), model(x))


class Waves(nn.Module):
    """Channels of known frequencies: of each group the first two are rough, the other two smooth."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 1, bias=False)
        self.first, self.second = conv(8, 8, 1, groups=2), conv(8, 8, 3, groups=2)
        with torch.no_grad():
            self.stem.weight.copy_(torch.tensor([[1.0, 0.0], [1, 0], [0, 1], [0, 1]]).repeat(2, 1)[..., None, None])
            self.first.weight.copy_(torch.eye(4).repeat(2, 1)[..., None, None])

    def forward(self, x):
        return self.second(self.first(self.stem(x)))


def waves(batch=3):
    """Two channels: a checkerboard, and a wave of an eighth of a cycle per pixel; with an offset that is no wave."""
    columns = torch.arange(16.0)
    rough = (-1.0) ** (columns[:, None] + columns)
    smooth = torch.cos(columns * torch.pi / 4).expand(16, 16)
    return torch.stack([rough, smooth]).expand(batch, 2, 16, 16) * torch.rand(batch, 2, 1, 1) + 3


def test_the_energy_above_half_the_nyquist_frequency():
    net, _ = _prepare(Waves(), (waves(),), [], 8, True)
    shares = {str(node.target): share for node, share in high_shares(net, [(waves(2),), (waves(3),)]).items()}
    assert_close(shares["first"].float(), torch.tensor([1.0, 1, 0, 0] * 2))
    quarter = torch.cos(torch.arange(16.0) * torch.pi / 2).expand(1, 2, 16, 16).clone()  # half Nyquist is not above it
    quarter[:, 1] = torch.cos(torch.arange(16.0) * torch.pi * 5 / 8)
    for images in (quarter, quarter.transpose(2, 3)):
        shares = {str(node.target): share for node, share in high_shares(net, [(images,)]).items()}
        assert_close(shares["stem"].float(), torch.tensor([0.0, 0, 1, 1] * 2))


class Grouped(Part):
    def build(self):
        self.norm, self.middle = nn.GroupNorm(4, 16), conv(16, 16)

    def part(self, x):
        return self.middle(self.norm(x))


def test_the_groups_of_a_norm_stay_together():
    net, _ = _prepare(Grouped(), (torch.zeros(1, 3, 16, 16),), [], 8, False)
    node = next(node for node in net.steps if node.target == "first")
    share = torch.tensor([0, 1, 2, 3, 23, 22, 21, 20, 12, 13, 10, 11, 31, 30, 33, 32])
    (order,) = orders(net, {node: share / 40}).values()
    assert order.tolist() == [14, 15, 12, 13, 4, 5, 6, 7, 9, 8, 11, 10, 3, 2, 1, 0]


def test_groups_that_a_concatenation_mixes_keep_their_order():
    class Mixed(Part):
        def build(self):
            self.side, self.norm, self.out = conv(16, 8), nn.GroupNorm(2, 24), conv(24, 16)

        def part(self, x):
            return self.out(self.norm(torch.cat([x, self.side(x)], 1)))

    model = Mixed().double()
    sample = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    net, _ = _prepare(copy.deepcopy(model), (sample,), [], 8, False)
    assert not {"first", "side"} & {str(node.target) for node in high_shares(net, [(sample,)])}
    plan = oc.octavify(model, 0.25, sample, calibrate=[sample])[1]
    assert {one.name for one in plan.layers if one.octave} >= {"first", "side", "out", "norm"}


def test_the_smoothest_channels_become_the_low_ones():
    model = Waves()
    with torch.no_grad():  # the smooth ones first, so that the rough ones are the low ones of an octave
        model.first.weight.copy_(torch.eye(4).roll(2, 0).repeat(2, 1)[..., None, None])
    net, _ = _prepare(copy.deepcopy(model), (waves(),), [], 8, False)
    shares = {node: share for node, share in high_shares(net, [(waves(),)]).items() if node.target == "first"}
    (order,) = orders(net, shares).values()
    assert [sorted(pair) for pair in order.view(4, 2).tolist()] == [[2, 3], [0, 1], [6, 7], [4, 5]]
    ordered, plan = oc.octavify(model, 0.5, waves(), calibrate=[waves()])
    plain = oc.octavify(model, 0.5, waves())[0]
    low, lost = (network.first(network.stem(waves())).low for network in (ordered, plain))
    assert layer(plan, "first").alpha_out == 0.5
    assert (low.std((2, 3)) > 0.1).all()
    assert (lost.std((2, 3)) < 1e-5).all(), "pooling leaves nothing of a checkerboard"


class NoNorm(Part):
    def build(self):
        self.middle = conv(16, 16)

    def part(self, x):
        return torch.relu(self.middle(x)) + x


def test_inputs_and_outputs_keep_their_order():
    model = NoNorm().double()
    sample = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    octave, _ = oc.octavify(model, 0.5, sample, calibrate=[sample])
    assert not torch.equal(octave.first.weight, model.first.weight)
    flat = torch.randn(2, 3, 1, 1, dtype=torch.float64).expand(2, 3, 32, 32)
    assert_close(octave(flat), model(flat))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.bn, self.last = conv(3, 8), conv(8, 8), norm(8), conv(8, 4)

    def forward(self, x):
        return self.last(self.bn(self.conv(self.stem(x))))


def test_norms_are_estimated_on_the_sample():
    model = Normed().eval()
    sample = [torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16) + 2]
    labelled = [(images, torch.zeros(4)) for images in sample]
    octave, _ = oc.octavify(model, 0.25, sample[0], calibrate=labelled)
    parts = [octave.conv(octave.stem(images)) for images in sample]
    means = torch.cat([torch.stack([p[i].mean((0, 2, 3)) for p in parts]).mean(0) for i in range(2)])
    variances = torch.cat(
        [torch.stack([p[i].transpose(0, 1).flatten(1).var(1) for p in parts]).mean(0) for i in range(2)]
    )
    assert_close(octave.bn.running_mean, means)
    assert_close(octave.bn.running_var, variances)
    assert octave.bn.momentum == 0.1
    assert not any(module.training for module in octave.modules())


def test_the_error_is_that_of_the_octave_convolution_itself():
    model = NoNorm().double()
    sample = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    octave, plan = oc.octavify(model, 0.5, sample, calibrate=[sample[:3], sample[3:]])
    spec = conv_spec(2, 16, 16, 3, 1, 1, 1, 1, "replicate", 0.5, 0.5, None, None)
    with torch.no_grad():
        x = octave.first.spec.conv(octave.stem(sample), octave.first.weight, octave.first.bias)
        dense = octave.middle.spec.conv(x, octave.middle.weight, octave.middle.bias)
        low = split_tensor(x, spec.inputs)
        found = merge_tensor(reference.octconv(low, octave.middle.weight, octave.middle.bias, spec))
    assert layer(plan, "middle").error == pytest.approx(((found - dense).norm() / dense.norm()).item())
    assert layer(plan, "stem").error is None
    assert "error" in str(plan)
    assert "error" not in str(oc.octavify(model, 0.5, sample)[1])


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
