"""What torch.fx, and tools that use it, make of octave layers: one node each."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import CLASSES, every_block, few_layers, image, shallow
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

import octaveconv as oc
from octaveconv.octave import merge_tensor, split_tensor


class Mixed(nn.Module):
    """Dense and octave layers, and all that code does between octave layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.before, self.after, self.last = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.opens = oc.OctConv2d(16, 16, 3, padding=1, alpha_out=0.25)
        self.stays = oc.OctConv2d(16, 16, 3, padding=1, alpha_in=0.25, alpha_out=0.25)
        self.gates, self.act = nn.Parameter(torch.rand(16, 1, 1)), nn.ReLU(inplace=True)
        self.norm, self.closes = oc.OctBatchNorm2d(16, alpha=0.25), oc.OctConv2d(16, 16, 1, alpha_in=0.25)

    def forward(self, x):
        x = self.opens(self.before(self.stem(x)))
        y = self.act(self.norm(x + 2 * self.stays(x) * self.gates))
        y = oc.octave_cat(F.relu(y), oc.Octave(y.high, y.low))
        high, low = y
        y = self.stays(oc.Octave(high[:, :12], low=low[:, :4])) - split_tensor(merge_tensor(x), self.norm.split)
        return self.last(self.after(self.closes(y).high + merge_tensor(y)))


def agrees(traced, model, x):
    with torch.no_grad():
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("net", [few_layers, every_block, Mixed], ids=lambda net: net.__name__)
def test_layers_are_leaves_to_every_tracer(net):
    model, x = net().eval(), image(2, 3, 37, 64)
    traced = fx.symbolic_trace(model)
    agrees(traced, model, x)
    agrees(copy.deepcopy(traced), model, x)
    agrees(pickle.loads(pickle.dumps(traced)), model, x)
    agrees(fx.symbolic_trace(traced), model, x)
    inside = [node for node in traced.graph.nodes if "aten" in str(node.target) or "conv2d" in str(node.target)]
    assert not inside


@pytest.mark.parametrize("name", CLASSES)
def test_feature_extraction_of_torchvision(name):
    model, x = shallow(name, 0.25, tiny=True).eval(), image(1, 3, 64, 64)
    agrees(fx.symbolic_trace(model), model, x)
    maps = create_feature_extractor(model, {"layer3": "octave", "layer4": "dense"})(x)
    stages = ("layer0", "layer1", "layer2", "layer3") if hasattr(model, "layer0") else ("layer1", "layer2", "layer3")
    y = model.forward_stem_pool(model.forward_stem(x))
    for stage in stages:
        y = getattr(model, stage)(y)
    assert type(maps["octave"]) is type(y)
    assert torch.equal(maps["dense"], model.layer4(y))


def test_what_cannot_be_traced_says_so():
    with pytest.raises(TypeError, match=r"trace nn.Sequential\(layer\)"):
        fx.symbolic_trace(oc.OctConv2d(3, 8, 1, alpha_out=0.5))

    class Maps(nn.Module):
        def forward(self, x):
            return oc.octave_map(torch.relu, x)

    with pytest.raises(TypeError, match=r"use a layer, such as octaveconv\.OctMap"):
        fx.symbolic_trace(Maps())


def test_octavify_leaves_octave_parts_as_they_are():
    model, x = Mixed().eval(), image(2, 3, 48, 64)
    octave, plan = oc.octavify(model, 0.25, x)
    becomes = {layer.name: layer.octave for layer in plan.layers if layer.kind.endswith("Conv2d")}
    assert [name for name, octave in becomes.items() if octave] == ["after", "last"]
    assert octave.state_dict().keys() == model.state_dict().keys()
    dense, _ = oc.octavify(model, 0, x)
    with torch.no_grad():
        assert torch.equal(dense(x), model(x))
        assert octave(x).shape == model(x).shape
        agrees(fx.symbolic_trace(octave), octave, x)
        agrees(copy.deepcopy(octave), octave, x)
