"""register_layer: layers that a user brings along become octave like those that octavify knows."""

import copy
import json

import pytest
import torch
from helpers import assert_close
from octavify_parts import Part, constant_images, conv, layer
from torch import nn

import octaveconv as oc
from octaveconv.octavify.handlers import REGISTERED
from octaveconv.octavify.octavify import rebuild


@pytest.fixture(autouse=True)
def _registered():
    """What a test registers is forgotten behind it."""
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


class Snake(nn.Module):
    """An activation with a parameter."""

    def __init__(self):
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return x + (self.frequency * x).sin().square() / self.frequency


class Scale(nn.Module):
    """A number for each channel, one of them a statistic; tracing cannot enter it."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5)
        self.register_buffer("shift", torch.randn(channels))

    def forward(self, x):
        if x.abs().sum() < 0:
            return x
        return x * self.gamma[:, None, None] + self.shift[:, None, None]


class OctScale(nn.Module):
    def __init__(self, channels, split):
        super().__init__()
        self.gamma, self.split = nn.Parameter(torch.empty(channels, device="meta")), split
        self.register_buffer("shift", torch.empty(channels))

    def forward(self, x):
        gammas, shifts = self.split.split(self.gamma), self.split.split(self.shift)
        return oc.Octave(*(p * g[:, None, None] + s[:, None, None] for p, g, s in zip(x, gammas, shifts)))


class Mixer(nn.Module):
    """A convolution under another name, with a gain."""

    def __init__(self, ins, outs, stride=1):
        super().__init__()
        self.inner, self.gain = conv(ins, outs, stride=stride), nn.Parameter(torch.rand(()) + 0.5)

    def forward(self, x):
        return self.inner(x) * self.gain


class OctMixer(nn.Module):
    def __init__(self, mixer, inputs, outputs):
        super().__init__()
        given = mixer.inner
        self.inner = oc.OctConv2d(
            given.in_channels,
            given.out_channels,
            3,
            given.stride,
            1,
            padding_mode="replicate",
            alpha_in=inputs,
            alpha_out=outputs,
        )
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        assert isinstance(x, oc.Octave)
        return oc.octave_map(lambda part: part * self.gain, self.inner(x))


def register():
    oc.register_layer(Snake)
    oc.register_layer(Scale, lambda layer, inputs, outputs: OctScale(len(layer.gamma), inputs), mixes_channels=False)
    oc.register_layer(Mixer, OctMixer, mixes_channels=True)


class Own(Part):
    """All three kinds between layers that octavify knows."""

    def build(self):
        self.snake, self.scale, self.middle = Snake(), Scale(16), Mixer(16, 24)
        self.down, self.side = Mixer(24, 16, 2), conv(24, 16, stride=2)

    def part(self, x):
        x = self.middle(self.scale(self.snake(x)))
        return self.down(x) + self.side(x)


def test_registered_layers_become_octave():
    register()
    model, x = Own().double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for alpha in (0.25, 0.5):
        octave, plan = oc.octavify(model, alpha, x)
        for name in ("snake", "scale", "middle", "down", "side"):
            assert (layer(plan, name).alpha_in, layer(plan, name).alpha_out) == (alpha, alpha), name
        assert not plan.borders
        assert plan.macs_after == oc.cost(octave, input_size=32).counted_macs < plan.macs_before
        images = constant_images()
        assert_close(octave(images), model(images))
        assert not torch.allclose(octave(x), model(x), rtol=1e-3)


def test_at_alpha_0_nothing_is_called_and_nothing_changes():
    register()
    oc.register_layer(Mixer, lambda *_: 1 / 0, mixes_channels=True)
    oc.register_layer(Scale, lambda *_: 1 / 0, mixes_channels=False)
    model, x = Own().eval(), torch.randn(2, 3, 32, 32)
    octave, plan = oc.octavify(model, 0, x, calibrate=[x])
    assert torch.equal(octave(x), model(x))
    assert plan.macs_before == plan.macs_after
    assert type(octave.middle) is Mixer


def test_parameters_and_their_names_are_kept():
    register()
    model, x = Own(), torch.randn(2, 3, 32, 32)
    model.middle.gain.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    octave, _ = oc.octavify(model, 0.25, x)
    assert octave.state_dict().keys() == before.keys()
    assert all(torch.equal(octave.state_dict()[key], before[key]) for key in before)
    assert isinstance(octave.middle, OctMixer)
    octave.load_state_dict(before)
    twin = copy.deepcopy(octave)
    assert_close(twin(x), octave(x))
    octave(x).square().sum().backward()
    assert [name for name, p in octave.named_parameters() if p.grad is None] == ["middle.gain"]
    assert all(p.grad is None for p in [*model.parameters(), *twin.parameters()])


def test_one_side_without_low_channels():
    """Of a convolution that reads the dense stem, and of one whose output is the network's."""
    register()
    model = nn.Sequential(conv(3, 8), Mixer(8, 8), Mixer(8, 8), Mixer(8, 8)).double().eval()
    x = constant_images()
    octave, plan = oc.octavify(model, 0.5, x)
    assert [(one.alpha_in, one.alpha_out) for one in plan.layers[1:]] == [(0, 0.5), (0.5, 0.5), (0.5, 0)]
    assert_close(octave(x), model(x))
    assert octave.get_submodule("2").gain == model[2].gain != 0


def test_a_strided_one_with_a_dense_output_stays_dense():
    register()
    model = nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), Mixer(8, 8, 2))
    _, plan = oc.octavify(model, 0.5, torch.zeros(1, 3, 16, 16), min_size=16)
    assert layer(plan, "2").alpha_in == 0.5
    assert not layer(plan, "3").octave


def test_calibration_leaves_channels_beside_a_handler_in_their_order():
    register()
    model, x = Own().double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    octave, plan = oc.octavify(model, 0.5, x, calibrate=[x])
    assert torch.equal(octave.scale.gamma, model.scale.gamma)
    assert plan.steps[-1].divergence < 1
    assert {one.name for one in plan.layers if one.cost is not None} >= {"middle", "down"}


def test_calibration_reorders_channels_that_an_activation_reads():
    class Few(Snake):
        """With as many coefficients as there are channels, by chance."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16))

        def forward(self, x):
            return super().forward(x) * self.weight[0] + self.weight[1]

    oc.register_layer(Few)
    model = nn.Sequential(conv(3, 12), conv(12, 16), Few(), conv(16, 16)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    octave, plan = oc.octavify(model, 0.5, x, calibrate=[x])
    assert layer(plan, "2").alpha_out == 0.5
    assert torch.equal(octave.get_parameter("2.weight"), model[2].weight)
    assert not torch.equal(octave.get_parameter("1.weight"), model[1].weight)
    assert min(step.divergence for step in plan.steps) < 1


def test_a_budget_counts_registered_layers():
    register()
    model, x = Own().eval(), torch.randn(2, 3, 32, 32)
    octave, plan = oc.octavify(model, "auto", x, calibrate=[x], macs=0.7)
    assert plan.macs_after == oc.cost(octave, input_size=32).counted_macs <= 0.7 * plan.macs_before
    assert any(one.octave for one in plan.layers if one.kind == "Mixer")


def test_an_activation_between_permutations():
    class Last(Part):
        def build(self):
            self.fc1, self.snake, self.fc2 = nn.Linear(16, 32), Snake(), nn.Linear(32, 16)

        def part(self, x):
            return self.fc2(self.snake(self.fc1(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)

    oc.register_layer(Snake)
    model, images = Last().double().eval(), constant_images()
    octave, plan = oc.octavify(model, 0.5, images)
    assert layer(plan, "snake").alpha_out == 0.5
    assert not plan.borders
    assert_close(octave(images), model(images))


def test_a_registered_type_is_not_entered_and_others_are_not_taken():
    class Tall(Scale):
        pass

    register()
    model = nn.Sequential(conv(3, 8), conv(8, 8), Tall(8), conv(8, 8))
    with pytest.warns(UserWarning, match="0 of 3 convolutions became octave"):
        _, plan = oc.octavify(model, 0.5, torch.zeros(1, 3, 16, 16))
    assert next(part.why for part in plan.parts if part.name == "2").startswith("TraceError: symbolically traced")
    assert oc.register_layer(Tall, REGISTERED[Scale].make, mixes_channels=False) is REGISTERED[Scale].make
    assert layer(oc.octavify(model, 0.5, torch.zeros(1, 3, 16, 16))[1], "2").alpha_out == 0.5


def test_decorators_give_back_what_they_decorate():
    @oc.register_layer
    class Mine(nn.ReLU):
        pass

    @oc.register_layer(Scale, mixes_channels=False)
    def handler(layer, inputs, outputs):
        return OctScale(len(layer.gamma), inputs)

    assert Mine()(torch.ones(1)) == 1
    assert REGISTERED[Scale].make is handler
    oc.register_layer(Scale, OctMixer, mixes_channels=True)
    assert REGISTERED[Scale].make is OctMixer


def test_a_known_layer_can_be_registered():
    calls = []

    class Conv(oc.OctConv2d):
        pass

    @oc.register_layer(nn.Conv2d, mixes_channels=True)
    def own(layer, inputs, outputs):
        calls.append(layer.groups)
        arguments = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, True, "replicate"
        return Conv(layer.in_channels, layer.out_channels, *arguments, alpha_in=inputs, alpha_out=outputs)

    model = nn.Sequential(conv(3, 8), conv(8, 16, groups=2), conv(16, 8)).double()
    images = constant_images()
    octave, plan = oc.octavify(model, 0.5, images)
    assert set(calls) == {1, 2}
    made = octave.get_submodule("1")
    assert type(made) is Conv
    assert made.spec.outputs.cut == 2
    assert layer(plan, "0").why == "stem, octave only with stem=True"
    assert_close(octave(images), model(images))


def test_a_file_needs_the_same_registrations():
    register()
    model = Own()
    octave, plan = oc.octavify(model, 0.5, torch.zeros(1, 3, 32, 32))
    conversion = json.loads(json.dumps(plan.conversion))
    assert conversion["registered"] == ["Mixer", "Scale", "Snake"]
    again = rebuild(model, conversion)
    again.load_state_dict(octave.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), octave(x))
    del REGISTERED[Snake], REGISTERED[Scale]
    with pytest.raises(ValueError, match=r"register its layers first, with octaveconv\.register_layer: Scale, Snake"):
        rebuild(model, conversion)
    register()
    with pytest.raises(ValueError, match=r"5 layers become octave, but 9 were: .* or register the same layers as then"):
        rebuild(nn.Sequential(*(conv(n, 8) for n in (3, *[8] * 5))), conversion | {"alphas": {"*": 0.5}, "octave": 9})


def test_networks_without_registered_layers_say_nothing_of_them():
    register()
    assert "registered" not in oc.octavify(nn.Sequential(conv(3, 8)), 0, torch.zeros(1, 3, 16, 16))[1].conversion


def test_layers_that_are_called_twice_stay():
    class Twice(Part):
        def build(self):
            self.quiet = Quiet()

        def part(self, x):
            return self.quiet(self.quiet(x))

    class Quiet(nn.Module):
        def forward(self, x):
            return x * 2

    oc.register_layer(Quiet, lambda *_: 1 / 0, mixes_channels=False)
    _, plan = oc.octavify(Twice(), 0.5, torch.zeros(1, 3, 16, 16))
    assert layer(plan, "quiet").why == "called more than once"
    oc.register_layer(Quiet)
    model, images = Twice().double(), constant_images()
    octave, plan = oc.octavify(model, 0.5, images)
    assert layer(plan, "quiet").alpha_out == 0.5
    assert_close(octave(images), model(images))


def test_a_shared_activation_with_a_parameter_is_called_on_each_part():
    class Twice(Part):
        def build(self):
            self.snake = Snake()

        def part(self, x):
            return self.snake(self.snake(x))

    oc.register_layer(Snake)
    model, images = Twice().double(), constant_images()
    octave, plan = oc.octavify(model, 0.5, images)
    assert layer(plan, "snake").alpha_out == 0.5
    assert octave.state_dict().keys() == model.state_dict().keys()
    assert_close(octave(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        ((Snake(),), {}, "register_layer takes a type of layers, a subclass of nn.Module, got Snake()"),
        ((torch.relu,), {}, "a subclass of nn.Module, got <built-in"),
        ((Scale, OctScale), {}, "say whether Scale mixes channels: mixes_channels=False if"),
        ((Scale, "OctScale"), {"mixes_channels": True}, "handler of Scale must be a function of 3 arguments, got 'Oct"),
        ((nn.Module,), {}, "register_layer takes the type of your layer, got nn.Module"),
        ((Scale, OctScale), {"mixes_channels": "no"}, "mixes_channels must be True or False, got 'no'"),
    ],
)
def test_wrong_registrations(arguments, given, message):
    with pytest.raises(TypeError) as caught:
        oc.register_layer(*arguments, **given)
    assert message in str(caught.value)


class Halves(nn.Module):
    """Of another layer's parameters, what the test says."""

    def __init__(self, gamma, result):
        super().__init__()
        self.gamma, self.result = nn.Parameter(torch.zeros(gamma)), result
        self.register_buffer("shift", torch.zeros(16))

    def forward(self, x):
        return self.result(x)


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (None, TypeError, "for Scale, called for scale, returned NoneType, expected an nn.Module"),
        (nn.Identity(), ValueError, 'returned Identity, whose state dict is not the layer\'s: Unexpected key.*"gamma"'),
        (Halves(15, lambda x: x), ValueError, r"Halves, whose state dict .*size mismatch for gamma: .*\[16\]"),
        (Halves(16, lambda x: x.high), TypeError, "which returns a Tensor, expected an Octave"),
        (Halves(16, lambda x: tuple(x)), TypeError, "which returns a tuple, expected an Octave"),
        (Halves(16, lambda x: oc.Octave(x.high[:, 7:], x.low)), ValueError, r"\(1, 5, 32, .*expected \(\(1, 12, 32"),
        (Halves(16, lambda x: oc.Octave(x.high)), ValueError, "None.* expected .*channels must match the split"),
        (Halves(16, lambda x: x.high + x.low), ValueError, r"fails on Octave\(\[\[1, 12, 32, 32\], \[1, 4, "),
    ],
)
def test_what_a_handler_returns_is_checked(made, error, message):
    register()
    oc.register_layer(Scale, lambda *_: made, mixes_channels=False)
    with pytest.raises(error, match=message):
        oc.octavify(Own(), 0.25, torch.zeros(1, 3, 32, 32))


def test_a_wrong_contract_is_noticed():
    oc.register_layer(Scale)
    with pytest.raises(ValueError, match=r"scale \(Scale\) is registered without a handler, but it does not treat"):
        oc.octavify(Own(), 0.25, torch.zeros(1, 3, 16, 16))
    register()
    oc.register_layer(Mixer, OctMixer, mixes_channels=False)
    with pytest.raises(ValueError, match=r"middle \(Mixer\) turns 16 channels into 24, .* mixes_channels=True"):
        oc.octavify(Own(), 0.25, torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("how", ["compile", "export"])
def test_it_compiles_and_exports(how):
    register()
    octave, _ = oc.octavify(Own().eval(), 0.25, torch.zeros(1, 3, 16, 16))
    x = torch.randn(2, 3, 16, 16)
    if how == "compile":
        made = torch.compile(octave, backend="eager", fullgraph=True)
    else:
        made = torch.export.export(octave, (x,)).module()
    assert_close(made(x), octave(x))
