"""The table of what octavify does with each layer: how layers are looked up in it, and what it costs to ask."""

import pytest
import timm
import torch
import torchvision
from helpers import assert_close
from octavify_parts import Part, conv, layer, prepared
from torch import nn

import octaveconv as oc
from octaveconv.octavify.handlers import LAYERS, handler_of
from octaveconv.octavify.splits import Splits


class Renamed(nn.Conv2d):
    pass


class Shuffled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).flip(1)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.transpose(1, 3)).transpose(1, 3)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (Renamed(4, 4, 1), nn.Conv2d),
        (Shuffled(4, 4, 1), None),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.Conv2d),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear),
        (nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(4), dim=None), None),
        (type("Norm", (nn.BatchNorm2d,), {})(4), nn.BatchNorm2d),
        (nn.SyncBatchNorm(4), nn.SyncBatchNorm),
        (LayerNorm2d(4), None),
        (nn.LayerNorm((4, 4)), None),
        (nn.PReLU(), nn.PReLU),
        (nn.Softmax2d(), None),
        (nn.MaxPool2d(2, return_indices=True), None),
        (oc.OctConv2d(4, 4, 1), None),
        (nn.Sequential(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_is_taken_for_the_one_whose_forward_it_has(module, kind):
    assert handler_of(module) is (LAYERS[kind] if kind else None)


@pytest.mark.parametrize(
    "module",
    [
        timm.layers.StdConv2d(4, 4, 1),
        timm.layers.BatchNormAct2d(4),
        timm.layers.GroupNormAct(4, 2),
        timm.layers.LayerNorm2d(4),
        timm.layers.DropPath(0.1),
        torchvision.ops.StochasticDepth(0.1, "row"),
        torchvision.models.convnext.LayerNorm2d(4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_layers_of_timm_and_torchvision_are_known_by_name(module):
    assert handler_of(module).make is not None


def test_a_norm_with_an_unknown_activation_stays():
    assert handler_of(timm.layers.BatchNormAct2d(4, act_layer=nn.Softmax2d)) is None


def test_asking_what_a_network_would_cost_builds_no_module(monkeypatch):
    x = torch.zeros(1, 3, 64, 64)
    net = prepared(torchvision.models.resnet18().eval(), x, 8, False)
    built = []
    monkeypatch.setattr(nn.Module, "__init__", lambda self, *_, **__: built.append(type(self)))
    counts = {alpha: sum(map(Splits(net, lambda node, a=alpha: a).macs, net.steps)) for alpha in (0.0, 0.25, 0.5)}
    assert counts[0.0] > counts[0.25] > counts[0.5]
    assert not built


class DropsTwice(Part):
    """One stochastic depth in two places, one of which is dense."""

    def build(self):
        self.drop, self.middle, self.more = timm.layers.DropPath(0.5), conv(16, 16), conv(16, 16)

    def part(self, x):
        x = self.more(self.drop(self.middle(self.drop(x))))
        return self.drop(x.flip(1))


def test_stochastic_depth_that_is_called_in_several_places():
    model, x = DropsTwice(), torch.randn(64, 3, 16, 16)
    octave, plan = oc.octavify(model, 0.5, x)
    assert layer(plan, "middle").alpha_out == 0.5
    assert not torch.equal(octave(x), octave(x))
    assert_close(oc.octavify(model.eval(), 0, x)[0](x), model(x))


def varied(make):
    """The layer with other numbers than new ones have."""
    layer = make()
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return layer


BETWEEN = {
    "a slope for each channel": lambda: nn.PReLU(16),
    "synchronized": lambda: nn.SyncBatchNorm(16),
    "timm's synchronized": lambda: timm.layers.SyncBatchNormAct(16),
    "frozen": lambda: timm.layers.FrozenBatchNormAct2d(16),
    "torchvision's frozen": lambda: torchvision.ops.FrozenBatchNorm2d(16),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_layers_between_convolutions(name):
    model = nn.Sequential(
        *(part for i in range(4) for part in (nn.Conv2d(3 if i == 0 else 16, 16, 1), varied(BETWEEN[name])))
    ).eval()
    x = torch.randn(4, 3, 1, 1).expand(4, 3, 12, 12).contiguous()
    same, _ = oc.octavify(model, 0, x)
    assert torch.equal(same(x), model(x))
    for sample in (None, [torch.randn(12, 3, 12, 12)]):
        net, plan = oc.octavify(model, 0.5, x, calibrate=sample)
        assert sum(layer.octave and layer.convolves for layer in plan.layers) == 3
        assert net.state_dict().keys() == model.state_dict().keys()
        if sample is None:
            assert_close(net(x), model(x))  # nothing varies over the map
        net.train()(torch.randn(2, 3, 12, 12)).sum().backward()
    frozen = torch.randn(2, 3, 12, 12)
    if "frozen" in name:
        assert torch.equal(net.train()(frozen), net.eval()(frozen))


def test_an_activation_of_channels_on_an_octave():
    layer = varied(lambda: nn.PReLU(6))
    x = oc.Octave(torch.randn(1, 4, 6, 6), torch.randn(1, 2, 3, 3))
    found = oc.OctMap(layer)(x)
    assert_close(found.high, nn.functional.prelu(x.high, layer.weight[:4]))
    assert_close(found.low, nn.functional.prelu(x.low, layer.weight[4:]))
    with pytest.raises(ValueError, match="got an octave of 4 and 3 channels"):
        oc.OctMap(layer)(oc.Octave(x.high, torch.randn(1, 3, 3, 3)))


@pytest.mark.parametrize("training", [False, True])
def test_a_graph_of_torch_fx_stays_in_its_mode(training):
    model = torchvision.models.resnet18(num_classes=3)
    graph = torchvision.models.feature_extraction.create_feature_extractor(model, ["layer2"]).train(training)
    x = torch.randn(2, 3, 32, 32)
    same, _ = oc.octavify(graph, 0, x)
    assert same.training == training
    assert {module.training for module in same.modules()} == {training}
    graph.eval()
    same.eval()
    assert torch.equal(same(x)["layer2"], graph(x)["layer2"])
    assert_close(oc.deploy(graph, x)(x)["layer2"], graph(x)["layer2"])


def test_a_model_that_cannot_be_copied_is_refused_with_the_cure():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    model.kept = [model[0].weight * 2]
    for use in (lambda: oc.octavify(model, 0.5, x), lambda: oc.deploy(model, x)):
        with pytest.raises(oc.UsageError, match=r"cannot be copied.*remove what it keeps of a call"):
            use()


class OwnLayerNorm(nn.LayerNorm):
    """With a forward of its own, as in transformers."""

    def forward(self, x):
        return super().forward(x)


class ScaledLast(nn.Module):
    """A block of ConvNeXt, as transformers writes it: it scales channels while they are last."""

    def __init__(self):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), OwnLayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(torch.relu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


def test_a_block_that_scales_channels_while_they_are_last():
    model = nn.Sequential(conv(3, 16), ScaledLast(), ScaledLast(), conv(16, 8)).eval()
    x = torch.randn(2, 3, 16, 16)
    octave, plan = oc.octavify(model, 0.25, x)
    assert [layer.name for layer in plan.layers if not layer.octave] == ["0", "1.depthwise", "1.norm"]  # the stem
    assert [kind for kind, _ in plan.borders] == ["split"]
    assert torch.equal(oc.octavify(model, 0, x)[0](x), model(x))
    assert octave.state_dict().keys() == model.state_dict().keys()
