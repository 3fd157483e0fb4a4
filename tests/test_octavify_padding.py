"""Padding that is not the same on both sides, or stands in front of the convolution: of sound, TensorFlow, borders."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from torch import nn

import octaveconv as oc
from octaveconv.backends._triton_choice import can_run
from octaveconv.deploy.native.engine import NativeNetwork
from octaveconv.octavify.padding import Padded


def octave(channels, *sizes):
    """Half of the channels low; on three axes the first is not halved."""
    low = [size if len(sizes) == 3 and i == 0 else -(-size // 2) for i, size in enumerate(sizes)]
    return oc.Octave(torch.randn(2, channels // 2, *sizes), torch.randn(2, channels // 2, *low))


LAYERS = {
    "an even kernel": (oc.OctConv2d, dict(kernel_size=4, padding="same"), (9, 12)),
    "one side": (oc.OctConv1d, dict(kernel_size=5, padding=((4, 0),)), (17,)),
    "borders": (oc.OctConv2d, dict(kernel_size=(2, 3), padding=((0, 1), (2, 0)), padding_mode="reflect"), (8, 9)),
    "dilated": (oc.OctConv2d, dict(kernel_size=2, dilation=3, padding=((0, 3), (2, 1))), (11, 10)),
    "groups": (oc.OctConv2d, dict(kernel_size=2, padding="same", groups=2), (9, 8)),
    "depthwise": (oc.OctConv2d, dict(kernel_size=2, padding="same", groups=8), (9, 8)),
    "an axis that shrinks": (oc.OctConv3d, dict(kernel_size=(4, 3, 3), padding=(0, 1, 1)), (9, 6, 5)),
    "an axis that grows": (oc.OctConv3d, dict(kernel_size=2, padding=((2, 2), (1, 0), (0, 1))), (5, 6, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_all_backends_compute_the_same(name):
    kind, arguments, sizes = LAYERS[name]
    layer = kind(8, 8, alpha_in=0.5, alpha_out=0.5, **arguments).double()
    x = oc.octave_map(torch.Tensor.double, octave(8, *sizes))
    with oc.backend("reference"):
        expected = layer(x)
    with oc.backend("merged"):
        found = layer(x)
    assert_close(found.high, expected.high)
    assert_close(found.low, expected.low)
    assert found.low.shape[-1] == -(-found.high.shape[-1] // 2)
    assert str(arguments["padding"]) in str(layer)
    twin = copy.deepcopy(layer)
    assert_close(twin(x).high, found.high)


@pytest.mark.parametrize("name", LAYERS)
def test_without_low_channels_it_is_the_dense_convolution(name):
    kind, arguments, sizes = LAYERS[name]
    layer, x = kind(8, 8, **arguments), torch.randn(2, 8, *sizes)
    dense = (F.conv1d, F.conv2d, F.conv3d)[len(sizes) - 1]
    more = arguments.get("dilation", 1), arguments.get("groups", 1)
    expected = dense(layer.spec.padded(x), layer.weight, layer.bias, 1, 0, *more)
    assert_close(layer(x).high, expected)
    if arguments["padding"] == "same":
        assert_close(expected, dense(x, layer.weight, layer.bias, 1, "same", *more))


def test_the_low_path_is_padded_like_the_high_one():
    """A causal layer: what comes later changes nothing before it, in either map."""
    layer = oc.OctConv1d(4, 4, 3, padding=((2, 0),), alpha_in=0.5, alpha_out=0.5)
    x = octave(4, 32)
    later = oc.Octave(x.high.clone(), x.low.clone())
    later.high[..., 16:] += 1
    later.low[..., 8:] += 1
    for before, after in zip(layer(x), layer(later)):
        half = before.shape[-1] // 2
        assert torch.equal(before[..., :half], after[..., :half])
        assert not torch.equal(before[..., half:], after[..., half:])


@pytest.mark.parametrize(
    ("padding", "message"),
    [
        (((0, 0), (1, 1)), "shifts the two frequencies.* use padding \\(1, 1\\)"),
        (((1, 1, 1), (1, 1)), "one number or two for each axis"),
        (((1, 1),), "one number or 2 of them"),
        (((-1, 3), (1, 1)), "whole number from 0 up"),
        ("some", "'same', 'valid' or pixels"),
    ],
)
def test_wrong_padding(padding, message):
    with pytest.raises(ValueError, match=message):
        oc.OctConv2d(4, 4, 3, padding=padding, alpha_in=0.5, alpha_out=0.5)


def test_an_even_kernel_is_told_of_same():
    with pytest.raises(ValueError, match="use padding 'same', or alpha_in=alpha_out=0"):
        oc.OctConv2d(4, 4, 4, padding=0, alpha_in=0.5, alpha_out=0.5)


class OwnForward(nn.Conv2d):
    """As EfficientNets of several packages have it: its padding is a child, which it calls itself."""

    def __init__(self, *sizes, **arguments):
        super().__init__(*sizes, **arguments)
        rest = self.kernel_size[0] - self.stride[0]
        self.static_padding = nn.ZeroPad2d((rest // 2, rest - rest // 2) * 2)

    def forward(self, x):
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(c, 16, 5, dilation=d) for c, d in ((2, 1), (16, 2), (16, 4), (16, 1)))

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(F.pad(x, (4 * layer.dilation[0], 0))))
        return x


def chain(*pads, channels=3, **arguments):
    convs = [nn.Conv2d(channels if i == 0 else 16, 16, **arguments) for i in range(4)]
    return nn.Sequential(*(part for conv in convs for part in (*pads, conv, nn.ReLU())))


class Called(nn.Module):
    """The function with a layer's weight, and padding of its own beside the one in front."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 16, 3, bias=False) for c in (3, 16, 16))

    def forward(self, x):
        for conv in self.convs:
            x = torch.conv2d(F.pad(x, (1, 0, 1, 0)), conv.weight, padding=(1, 1), dilation=2).relu()
            x = F.pad(x, (0, 1))[..., :-1]
        return F.pad(x, (1, 1, 1, 1), "replicate")


NETWORKS = {  # the network, an input, and how many convolutions become octave
    "their own forward": (
        nn.Sequential(OwnForward(3, 16, 3, stride=2), nn.ReLU(), OwnForward(16, 16, 5, groups=16), nn.ReLU(),
                      OwnForward(16, 32, 3), nn.ReLU(), OwnForward(32, 16, 3, bias=False)), (3, 33, 36), 4,
    ),
    "causal": (Causal(), (2, 64), 4),
    "reflected borders": (chain(nn.ReflectionPad2d(1), kernel_size=3), (3, 17, 20), 4),
    "replicated borders": (chain(nn.ReplicationPad2d((1, 0, 0, 1)), kernel_size=2), (3, 17, 20), 4),
    "zeros in front": (chain(nn.ZeroPad2d(1), kernel_size=5, padding=1), (3, 17, 20), 4),
    "even kernels": (chain(kernel_size=4, padding="same"), (3, 17, 20), 4),
    "spectral kernels": (
        nn.Sequential(*(nn.Conv3d(1 if i == 0 else 8, 8, (7, 3, 3), padding=(0, 1, 1)) for i in range(3))),
        (1, 30, 10, 9), 3,
    ),
    "a constant": (chain(nn.ConstantPad2d(1, 2.0), kernel_size=3), (3, 17, 20), 0),
    "too little": (chain(nn.ZeroPad2d((0, 1, 0, 0)), kernel_size=3), (3, 27, 30), 0),
    "strides of two": (chain(nn.ZeroPad2d((0, 1, 0, 1)), kernel_size=3, stride=2), (3, 34, 40), 3),
    "a function": (Called(), (3, 16, 17), 0),
}  # fmt: skip


SLOW = ("strides of two", "replicated borders")  # their layers have tests of their own


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NETWORKS])
def test_networks(name, quickly):
    model, size, count = NETWORKS[name]
    model, x = copy.deepcopy(model).eval(), torch.randn(2, *size)
    same, _ = oc.octavify(model, 0, x, stem=True)
    assert torch.equal(same(x), model(x))
    assert same.state_dict().keys() == model.state_dict().keys()
    net, plan = oc.octavify(model, 0.5, x, stem=True)
    assert sum(layer.octave for layer in plan.layers) == count, str(plan)
    if not count:
        return
    assert not [node for node in net.graph.nodes if "pad" in str(node.target).lower()]
    assert plan.macs_after < 0.85 * plan.macs_before
    assert net.state_dict().keys() == model.state_dict().keys()
    larger = torch.randn(3, *size[:-1], size[-1] + 3)
    assert net(larger).shape == model(larger).shape
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    net.train()(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    fitted, plan = oc.octavify(model, 0.5, x[:1], stem=True, calibrate=[torch.randn(12, *size)])
    assert [step.name for step in plan.steps][:3] == ["as given", "ordered", "refitted"]
    assert min(step.divergence for step in plan.steps[1:]) < plan.steps[0].divergence
    if len(size) == 3:
        deployed = NativeNetwork(fitted, x)
        torch.testing.assert_close(deployed(larger), fitted(larger).detach(), rtol=1e-4, atol=1e-4)


def test_one_octave_layer_reads_a_pad_that_another_needs():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)

        def forward(self, x):
            x = F.pad(self.stem(x), (1, 1, 1, 1))
            return self.a(x) + self.b(x), x.mean()

    model, x = Both().eval(), torch.randn(1, 3, 16, 16)
    same, _ = oc.octavify(model, 0, x)
    assert all(map(torch.equal, same(x), model(x)))
    assert sum(isinstance(part, Padded) for part in same.modules()) == 2
    assert not any(isinstance(part, Padded) for part in model.modules())


def test_a_layer_that_is_kept_or_hooked_keeps_its_padding_in_front():
    model, x = chain(nn.ZeroPad2d(1), kernel_size=3).eval(), torch.randn(1, 3, 16, 16)
    model[7].register_forward_hook(lambda module, args, output: output * 2)
    same, _ = oc.octavify(model, 0, x, ["4"])
    assert torch.equal(same(x), model(x))
    assert [name for name, part in same.named_modules() if isinstance(part, Padded)] == ["1", "10"]


def test_the_triton_kernel_leaves_it_to_the_others():
    layer = oc.OctConv2d(8, 8, 2, padding="same", alpha_in=0.5, alpha_out=0.5)
    assert can_run(octave(8, 9, 8), layer.spec) == "it pads both sides alike"


class Pitch(nn.Module):
    """As CREPE has it: a series as an image of one column, an even kernel, padding in front, in one function."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 16, (8, 1)) for c in (1, 16, 16, 16))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in self.convs)

    def forward(self, x):
        x = x[:, None, :, None]
        for conv, norm in zip(self.convs, self.norms):
            x = F.max_pool2d(norm(F.relu(conv(F.pad(x, (0, 0, 3, 4))))), (2, 1), (2, 1))
        return x.permute(0, 2, 1, 3).flatten(1)


def test_a_series_as_an_image_of_one_column():
    model, x = Pitch().eval(), torch.randn(2, 256)
    net, plan = oc.octavify(model, 0.5, x)
    assert sum(layer.octave and layer.convolves for layer in plan.layers) == 3
    assert net(x).shape == model(x).shape
    assert oc.octavify(model, 0.5, x, min_size=65)[1].layers[4].alpha_out == 0


def test_a_video_of_one_pixel_a_frame_stays_dense():
    model = nn.Sequential(*(nn.Conv3d(3 if i == 0 else 8, 8, (3, 1, 1), padding=(1, 0, 0)) for i in range(3))).eval()
    with pytest.warns(UserWarning, match="1x1 map, smaller than min_size=8"):
        oc.octavify(model, 0.5, torch.randn(1, 3, 9, 1, 1))


def test_a_generator_has_no_stem_beyond_its_first_layer():
    sizes = [(32, 32, 4, 1, 0), (32, 32, 4, 2, 1), (32, 16, 4, 2, 1), (16, 16, 4, 2, 1), (16, 3, 4, 2, 1)]
    model = nn.Sequential(*(part for each in sizes for part in (nn.ConvTranspose2d(*each), nn.ReLU()))).eval()
    x = torch.randn(2, 32, 1, 1)
    same, _ = oc.octavify(model, 0, x)
    assert torch.equal(same(x), model(x))
    net, plan = oc.octavify(model, 0.5, x)
    assert [layer.name for layer in plan.layers if layer.octave] == ["2", "4", "6", "8"]
    assert net(x).shape == model(x).shape


class Wired(nn.Module):
    """A stem, a layer with padding in front, a head, and a function that wires them."""

    def __init__(self, wires, conv=None, pad=None):
        super().__init__()
        self.wires, self.stem, self.head = wires, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.conv, self.pad = conv or nn.Conv2d(8, 8, 3), pad or nn.ZeroPad2d(1)

    def forward(self, x):
        return self.head(self.wires(self, self.stem(x)))


def masked():
    conv = nn.Conv2d(8, 8, 3)
    conv.register_buffer("mask", torch.rand(8, 1, 1))
    conv.register_buffer("other", torch.rand(1), persistent=False)
    return conv


class WithState(nn.Conv2d):
    def get_extra_state(self):
        return {"more": 1}

    def set_extra_state(self, state):
        pass


def written_between(m, y):
    p = m.pad(y)
    y = F.relu(y, inplace=True)
    return m.conv(p) + y


def written_by_a_function(m, y):
    p = F.pad(y, (1, 1, 1, 1))
    torch.relu_(y)
    return m.conv(p) + y


UNUSUAL = {
    "called and used": (lambda m, y: m.conv(y) + F.conv2d(y, m.conv.weight, m.conv.bias, padding=2, dilation=2),
                        lambda: nn.Conv2d(8, 8, 3, padding=1)),
    "two paddings": (lambda m, y: m.conv(m.pad(y)) + F.conv2d(y, m.conv.weight, m.conv.bias, padding=1), None),
    "written between": (written_between, None),
    "written by a function": (written_by_a_function, None),
    "buffers": (lambda m, y: m.conv(m.pad(y)), masked),
    "buffers that are read": (lambda m, y: m.conv(m.pad(y)) * m.conv.mask, masked),
    "extra state": (lambda m, y: m.conv(m.pad(y)), lambda: WithState(8, 8, 3)),
    "by keyword": (lambda m, y: m.conv(m.pad(input=y)), None),
    "function by keyword": (lambda m, y: m.conv(F.pad(input=y, pad=(1, 1, 1, 1))), None),
    "sequences of one": (lambda m, y: F.conv2d(m.pad(y), m.conv.weight, m.conv.bias, (1,), (0,), (1,)), None),
    "a low map smaller than the padding": (
        lambda m, y: m.conv(F.pad(F.avg_pool2d(y, 2), (4, 4, 4, 4), "reflect")), lambda: nn.Conv2d(8, 8, 3, dilation=4)
    ),
    "a low map that goes round twice": (
        lambda m, y: m.conv(F.pad(F.avg_pool2d(y, 2), (6, 0, 3, 3), "circular")), lambda: nn.Conv2d(8, 8, 3, dilation=3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_uses(name):
    wires, conv = UNUSUAL[name]
    model, x = Wired(wires, conv and conv()).eval(), torch.randn(2, 3, 16, 16)
    same, _ = oc.octavify(model, 0.0, x)
    with torch.no_grad():
        assert torch.equal(same(x), model(x))
        net, _ = oc.octavify(model, 0.5, x, stem=True, min_size=2)
        assert net(x).shape == model(x).shape
    for made in (same, net):
        assert made.state_dict().keys() == model.state_dict().keys()
        assert not [part for part in made.modules() if part.training]


def test_a_module_of_two_names_is_left():
    model = Wired(lambda m, y: m.conv(m.pad(y)) + F.conv2d(y, m.twin.weight, m.twin.bias, padding=1)).eval()
    model.twin, x = model.conv, torch.randn(1, 3, 16, 16)
    same, _ = oc.octavify(model, 0.0, x)
    assert torch.equal(same(x), model(x))


@pytest.mark.parametrize("conv", [
    nn.Conv3d(8, 8, (4, 3, 3), 2, 1), nn.Conv3d(8, 8, 3, 2, (0, 1, 1)), nn.Conv3d(8, 8, (2, 3, 3), 2, (0, 1, 1)),
    nn.Sequential(nn.ConstantPad3d((1, 1, 1, 1, 0, 1), 0), nn.Conv3d(8, 8, 3, 2)),
])  # fmt: skip
def test_an_axis_that_is_not_halved_may_change_its_size_and_stride(conv):
    model, x = nn.Sequential(nn.Conv3d(3, 8, 1), conv, nn.Conv3d(8, 4, 1)).eval(), torch.randn(1, 3, 16, 16, 16)
    net, plan = oc.octavify(model, 0.5, x, stem=True)
    assert net(x).shape == model(x).shape
    assert [layer.octave for layer in plan.layers] == [True] * 3
