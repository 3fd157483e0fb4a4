"""octavify of series and volumes: the promises of `test_octavify.py` on one and on three axes."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import assert_close
from octavify_parts import layer, prepared, shuffled_spaces
from torch import fx, nn
from torchvision.models.video import resnet as video

import octaveconv as oc
from octaveconv.octavify.octavify import rebuild
from octaveconv.octavify.permute import permute
from octaveconv.octavify.saliency import saliencies

SIZES = {1: (29,), 3: (3, 21, 23)}
CONV = {1: nn.Conv1d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}
OCT_CONV = {1: oc.OctConv1d, 3: oc.OctConv3d}
OCT_NORM = {1: oc.OctBatchNorm1d, 3: oc.OctBatchNorm3d}


def randomise(model):
    """Norms that do something."""
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.eval()


class Block(nn.Module):
    """Everything that octaves go through, on so many axes."""

    def __init__(self, axes):
        super().__init__()
        self.axes = axes
        self.stem, self.first, self.bn = self.conv(2, 8), self.conv(8, 8), NORM[axes](8)
        self.depthwise, self.grouped = self.conv(8, 8, groups=8), self.conv(8, 16, groups=2)
        self.fc1, self.fc2 = CONV[axes](16, 4, 1), CONV[axes](4, 16, 1)
        self.scale = nn.Parameter(torch.rand(16, *[1] * axes) + 0.5)
        self.down, self.bn_down = self.conv(32, 8, stride=2), NORM[axes](8)
        self.last = self.conv(8, 8)
        self.pool = (nn.MaxPool1d, None, nn.AvgPool3d)[axes - 1](2)
        self.drop = timm.layers.DropPath(0.5)
        self.head = nn.Linear(8, 3)

    def conv(self, ins, outs, **kwargs):
        return CONV[self.axes](ins, outs, 3, padding=1, padding_mode="replicate", **kwargs)

    def forward(self, x):
        pixels = tuple(range(2, 2 + self.axes))
        x = F.relu(self.bn(self.first(self.stem(x))), inplace=True)
        x = self.grouped(self.drop(self.depthwise(x)) + x)
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(pixels, keepdim=True)))))
        x = torch.cat([x * gate.expand_as(x), x * self.scale], -1 - self.axes)
        x = self.last(self.bn_down(self.down(x)))
        return self.head(self.pool(x).mean(pixels))


def constant(axes, size):
    return torch.randn(2, 2, *[1] * axes, dtype=torch.float64).expand(2, 2, *size).contiguous()


@pytest.mark.parametrize("alpha", [0.25, 0.5])
@pytest.mark.parametrize("axes", SIZES)
def test_where_nothing_varies_over_the_map_nothing_changes(axes, alpha):
    model = randomise(Block(axes)).double()
    x = torch.randn(2, 2, *SIZES[axes], dtype=torch.float64)
    octave, plan = oc.octavify(model, alpha, x, min_size=4)
    assert {one.name for one in plan.layers if one.octave} >= {"first", "depthwise", "grouped", "down", "last"}
    assert not plan.borders
    assert not torch.allclose(octave(x), model(x), rtol=1e-3)
    for size in (SIZES[axes], tuple(n + 5 for n in SIZES[axes])):
        images = constant(axes, size)
        assert_close(octave(images), model(images))


@pytest.mark.parametrize("axes", SIZES)
def test_at_alpha_0_nothing_changes_at_all(axes):
    model, x = randomise(Block(axes)), torch.randn(2, 2, *SIZES[axes])
    octave, plan = oc.octavify(model, 0, x, calibrate=[x])
    assert torch.equal(octave(x), model(x))
    assert plan.macs_before == plan.macs_after


@pytest.mark.parametrize("axes", SIZES)
def test_parameters_are_kept_and_the_plan_counts_what_is_executed(axes):
    model, x = Block(axes), torch.randn(2, 2, *SIZES[axes])
    octave, plan = oc.octavify(model, 0.25, x, min_size=4)
    assert list(octave.state_dict()) == list(model.state_dict())
    assert plan.macs_before > plan.macs_after == oc.cost(octave, input_size=(2, *SIZES[axes])).counted_macs
    octave.load_state_dict(model.state_dict())
    octave(x).square().sum().backward()
    assert all(p.grad is not None for p in octave.parameters())
    again = rebuild(model, plan.conversion).eval()
    again.load_state_dict(octave.state_dict())
    assert torch.equal(again(x), octave.eval()(x))
    with pytest.raises(ValueError, match=r"layers become octave, but 1 were: octavify it again, use the version"):
        rebuild(model, plan.conversion | {"octave": 1})


class Layers(nn.Module):
    """The same network of plain layers, or of this package's; the second convolution strides on every axis."""

    def __init__(self, axes, alpha):
        super().__init__()
        self.is_octave = alpha > 0
        conv, norm = (OCT_CONV[axes], OCT_NORM[axes]) if alpha else (CONV[axes], NORM[axes])
        both, of_norm = (dict(alpha_in=alpha, alpha_out=alpha), dict(alpha=alpha)) if alpha else ({}, {})
        out, into = ({key: alpha} if alpha else {} for key in ("alpha_out", "alpha_in"))
        self.stem = CONV[axes](2, 4, 3, padding=1)
        self.first, self.bn = conv(4, 8, 3, padding=1, **out), norm(8, **of_norm)
        self.down, self.skip = conv(8, 8, 3, 2, 1, **both), conv(8, 8, 1, 2, **both)
        self.last = conv(8, 4, 1, **into)

    def forward(self, x):
        x = self.bn(self.first(self.stem(x)))
        x = self.down(x) + self.skip(x)
        return self.last(x).high if self.is_octave else self.last(x)


@pytest.mark.parametrize("axes", SIZES)
def test_it_becomes_a_network_of_this_packages_layers(axes):
    dense, expected = Layers(axes, 0).double(), Layers(axes, 0.5).double()
    expected.load_state_dict(dict(dense.state_dict()))
    x = torch.randn(2, 2, *SIZES[axes], dtype=torch.float64)
    octave, _ = oc.octavify(dense, 0.5, x, min_size=4, pool_strides=True)
    with oc.backend("reference"):
        output = expected(x)
        output.square().sum().backward()
    found = octave(x)
    assert_close(found, output)
    found.square().sum().backward()
    for key, parameter in expected.named_parameters():
        assert_close(octave.get_parameter(key).grad, parameter.grad, key)


@pytest.mark.parametrize("axes", SIZES)
def test_reordering_channels_changes_nothing(axes):
    model, x = randomise(Block(axes)).double(), torch.randn(2, 2, *SIZES[axes], dtype=torch.float64)
    net = prepared(copy.deepcopy(model), x, 4, False)
    found = shuffled_spaces(net)
    permute(net, found)
    assert not torch.equal(net.model.scale, model.scale)
    assert not torch.equal(net.model.last.weight, model.last.weight)
    assert_close(fx.GraphModule(net.model, net.graph)(x), model(x))


@pytest.mark.parametrize("axes", SIZES)
def test_detail_is_lost_on_the_halved_axes_only(axes):
    model = nn.Sequential(CONV[axes](2, 2, 1, bias=False), CONV[axes](2, 2, 1))
    nn.init.eye_(model[0].weight.data[..., 0] if axes == 1 else model[0].weight.data[..., 0, 0, 0])
    rough, smooth = torch.randn(8, 1, 16), torch.randn(8, 1, 8).repeat_interleave(2, 2)
    x = torch.cat([rough, smooth], 1)
    if axes == 3:  # the smooth channel changes from frame to frame, which no octave loses
        x = x[:, :, None, :, None].expand(8, 2, 4, 16, 16) * torch.randn(8, 1, 4, 1, 1)
    net = prepared(model, x, 8, True)
    (node,) = (node for node in net.steps if node.target == "0")
    order, costs = saliencies(net, [(x,)])[net.spaces.of(node)]
    assert order.tolist() == [0, 1]
    assert costs[1] < 0.01 * costs[2]


def test_calibration_on_clips():
    model, x = randomise(Block(3)), torch.randn(4, 2, *SIZES[3])
    _, plan = oc.octavify(model, 0.25, x, calibrate=[x], min_size=4)
    given, *_, best = sorted(plan.steps, key=lambda step: -step.divergence)
    assert best.kept
    assert best.divergence < given.divergence
    assert any(one.cost for one in plan.layers)


def test_few_moments_are_no_small_map():
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1))
    assert oc.octavify(model, 0.5, torch.zeros(1, 1, 1, 8, 8))[1].layers[1].alpha_out == 0.5
    assert oc.octavify(model, 0.5, torch.zeros(1, 1, 9, 9, 7))[1].layers[1].why == "9x7 map, smaller than min_size=8"


def test_alpha_by_height():
    model = nn.Sequential(*(nn.Conv3d(1 if i == 0 else 4, 4, 3, (1, 2 if i == 2 else 1, 1), 1) for i in range(4)))
    _, plan = oc.octavify(model, [0.5, 0.25], torch.zeros(1, 1, 5, 32, 32))
    assert [one.alpha_out for one in plan.layers] == [0, 0.5, 0.25, 0]


class Waveform(nn.Module):
    """What it is given is no feature map."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv1d(n, 4, 3, padding=1) for n in (1, 4, 4))

    def forward(self, x):
        x = self.conv2(self.conv1(x.unsqueeze(1)))
        return F.max_pool1d(self.conv3(x), 8).mean(2)


def test_a_series_without_channels():
    octave, plan = oc.octavify(Waveform(), 0.5, torch.zeros(2, 64))
    assert [one.alpha_out for one in plan.layers] == [0, 0.5, 0.5]
    assert plan.macs_before == 64 * 4 * 3 * (1 + 4 + 4)
    assert octave(torch.zeros(3, 77)).shape == (3, 4)


@pytest.mark.parametrize("kind", [video.Conv3DSimple, video.Conv3DNoTemporal, video.Conv2Plus1D])
def test_video_networks_of_torchvision(kind):
    stem = video.R2Plus1dStem if kind is video.Conv2Plus1D else video.BasicStem
    model = video.VideoResNet(video.BasicBlock, [kind] * 4, [1, 1, 1, 1], stem, num_classes=3).eval()
    x = torch.randn(1, 3, 3, 32, 32)
    octave, plan = oc.octavify(model, 0.25, x, min_size=4)
    assert plan.macs_after < 0.85 * plan.macs_before
    assert layer(plan, "layer1.0.conv1.0" if kind is not video.Conv2Plus1D else "layer1.0.conv1.0.0").alpha_out == 0.25
    assert isinstance(octave.get_submodule("layer1.0.conv2.1"), oc.OctBatchNorm3d)
    assert torch.equal(oc.octavify(model, 0, x)[0](x), model(x))
    octave.train()(torch.randn(2, 3, 5, 29, 30)).sum().backward()
    assert all(p.grad is not None for p in octave.parameters())


@pytest.mark.parametrize(
    ("axes", "how"),
    [
        (1, "export"),
        (3, "compile"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, "compile"), (3, "export"))),
    ],
)
def test_it_compiles_and_exports(axes, how):
    x = torch.randn(2, 2, *SIZES[axes])
    octave, _ = oc.octavify(randomise(Block(axes)), 0.25, x, min_size=4)
    if how == "compile":
        made = torch.compile(octave, backend="eager", fullgraph=True)
    else:
        made = torch.export.export(octave, (x,)).module()
    assert_close(made(x), octave(x))


def test_convolutions_of_other_axes_stay():
    """As the Conv1d of gates, or a Conv3d of one's own in a network of images."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv1, self.conv2 = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
            self.deep, self.lines = nn.Conv3d(1, 1, 1), nn.Sequential(*(nn.Conv1d(8, 8, 1) for _ in range(4)))

        def forward(self, x):
            x = self.deep(self.stem(x).unsqueeze(1)).squeeze(1)
            return self.lines(self.conv2(self.conv1(x)).flatten(2))

    model, x = Mixed(), torch.randn(1, 3, 16, 16)
    octave, plan = oc.octavify(model, 0.5, x)
    assert layer(plan, "conv1").alpha_out == layer(plan, "conv2").alpha_in == 0.5
    assert layer(plan, "deep").why == "Conv3d among 2-d feature maps"
    assert layer(plan, "lines.0").why == "Conv1d among 2-d feature maps"
    assert octave(x).shape == model(x).shape


class OwnForward(nn.Conv1d):
    def forward(self, x):
        return super().forward(x).flip(1)


def test_a_convolution_that_computes_something_else_stays():
    model = nn.Sequential(*(nn.Conv1d(4, 4, 1) for _ in range(4)))
    model[1] = OwnForward(4, 4, 1)
    octave, plan = oc.octavify(model.eval(), 0.5, torch.randn(1, 4, 16))
    assert not any(one.octave for one in plan.layers if one.name.startswith("1"))
    assert layer(plan, "2").alpha_out == 0.5
    flat = torch.randn(1, 4, 1).expand(1, 4, 16)
    assert_close(octave(flat), model(flat))


@pytest.mark.parametrize(("axes", "maps"), [(1, r"\[N, C, L\]"), (3, r"\[N, C, T, H, W\]")])
def test_example_inputs_are_not_guessed(axes, maps):
    with pytest.raises(ValueError, match=f"Block does not convolve images: give example_inputs, a tensor {maps}"):
        oc.octavify(Block(axes))


def test_inputs_that_the_network_itself_refuses():
    with pytest.raises(ValueError, match=r"Block itself fails on inputs \[2, 3, 9\] .*give example_inputs that it"):
        oc.octavify(Block(1), 0.25, torch.zeros(2, 3, 9))
