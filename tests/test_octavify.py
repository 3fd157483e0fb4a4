"""octavify: weights and meaning kept, borders in the right place, a plan that tells the truth."""

import copy
import io
import json
import pickle

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import assert_close, random_octave
from octavify_parts import (
    PARTS,
    GatedPieces,
    Grouped,
    Part,
    Plain,
    Pyramid,
    Recut,
    Residual,
    SpatialGate,
    Squeeze,
    Unknown,
    constant_images,
    conv,
    layer,
)
from torch import nn

import octaveconv as oc
from octaveconv.models.oct_densenet import OctDenseNet
from octaveconv.models.oct_resnet import Bottleneck, OctResNet
from octaveconv.models.oct_resnetv2 import OctResNetV2
from octaveconv.octave import split_channels
from octaveconv.octavify.calls import Recording
from octaveconv.octavify.layers import oct_layer_norm


@pytest.mark.parametrize("alpha", [0.25, 0.5])
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_where_nothing_varies_over_the_map_nothing_changes(part, alpha):
    model = part().double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    octave, plan = oc.octavify(model, alpha, x, min_size=4)
    assert sum(layer.octave for layer in plan.layers) >= 2, plan
    images = constant_images()
    assert_close(octave(images), model(images))
    assert not torch.allclose(octave(x), model(x), rtol=1e-3)
    for size in (40, 45):  # pooling's halves are odd, and of another parity in the low part
        other = constant_images(size)
        assert_close(octave(other), model(other))


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_at_alpha_0_nothing_changes_at_all(part):
    model, x = part().eval(), torch.randn(2, 3, 32, 32)
    octave, plan = oc.octavify(model, 0, x, calibrate=[x])
    assert torch.equal(octave(x), model(x))
    assert plan.macs_before == plan.macs_after
    assert not plan.borders


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.models.convnext.ConvNeXt(depths=(2, 1, 1, 1), dims=(8, 8, 8, 8), ls_init_value=0.5),
        lambda: torchvision.models.convnext.ConvNeXt([torchvision.models.convnext.CNBlockConfig(8, None, 2)]),
    ],
)
def test_a_convnext_has_no_borders_in_its_blocks(make):
    model = make().eval()
    _, plan = oc.octavify(model, 0.25, torch.zeros(1, 3, 64, 64))
    layers = [layer for layer in plan.layers if layer.octave]
    assert [layer.kind for layer in layers[:6]] == ["Linear", "Linear", "Conv2d", "LayerNorm", "Linear", "Linear"]
    assert [kind for kind, _ in plan.borders] in (["split"], ["split", "merge"])
    assert plan.summary().startswith(f"{sum(layer.convolves for layer in layers)} of ")


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_a_layer_norm_normalises_high_pixels_as_in_the_merged_maps(size):
    split = split_channels(8, 0.25)
    plain = nn.LayerNorm(8).double()
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    norm, x = oct_layer_norm(plain, split, split), random_octave(8, 0.25, size, dtype=torch.float64)
    expected = plain(oc.Merge()(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    high, low = norm(x)
    assert_close(high, expected[:, :6])
    assert low.shape == x.low.shape
    constant = oc.octave_map(lambda part: part[:, :, :1, :1].expand_as(part), x)
    assert_close(oc.Merge()(norm(constant)), plain(oc.Merge()(constant).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_parameters_and_their_names_are_kept(part):
    model, x = part(), torch.randn(2, 3, 32, 32)
    before = copy.deepcopy(model.state_dict())
    octave, _ = oc.octavify(model, 0.25, x, min_size=4)
    assert list(octave.state_dict()) == list(before)
    assert all(torch.equal(a, b) for a, b in zip(octave.state_dict().values(), before.values()))
    octave.load_state_dict(before)
    octave(x).square().sum().backward()
    assert all(p.grad is not None for p in octave.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values())), "the given one changed"
    with pytest.raises(RuntimeError, match="these weights have alpha"):
        octave.load_state_dict(oc.octavify(model, 0.5, x, min_size=4)[0].state_dict())


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_the_plan_counts_what_is_executed(part):
    octave, plan = oc.octavify(part(), 0.25, torch.zeros(2, 3, 32, 32), min_size=4)
    report = oc.cost(octave, input_size=32)
    assert plan.macs_after == report.counted_macs
    assert plan.macs_before > plan.macs_after
    assert json.loads(json.dumps(plan.to_dict()))["macs_after"] == plan.macs_after


def reading(model, alpha, channels):
    """The network with a convolution of its third stage's octave in place of the last stage."""
    if alpha:
        model.layer4 = oc.OctConv2d(channels, 8, 1, alpha_in=alpha)
    else:
        model.layer4 = nn.Conv2d(channels, 8, 1)
    model.norm = model.fc = nn.Identity()
    return model


def own_network(name, alpha):
    """A network of ours whose stages have one block each, and the pixels below which maps are dense in it."""
    if name == "resnext":
        return reading(OctResNet(Bottleneck, (1, 1, 1, 1), alpha, groups=8, width=16), alpha, 256)
    if name == "densenet":
        return OctDenseNet((2, 2, 2, 1), alpha, growth=8, width=16)
    return reading(OctResNetV2((2, 1, 1, 1), alpha, width=16, use_se=name == "seresnet"), alpha, 256)


@pytest.mark.parametrize("name", ["resnext", "densenet", "resnetv2", "seresnet"])
def test_a_dense_twin_becomes_the_octave_network_of_this_package(name):
    dense, expected = own_network(name, 0.0).double(), own_network(name, 0.5).double()
    expected.load_state_dict(dict(dense.state_dict()))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    octave, _ = oc.octavify(dense, 0.5, x, min_size=4, pool_strides=True)
    with oc.backend("reference"):
        output = expected(x)
        output.square().sum().backward()
    assert_close(octave(x), output)
    octave(x).square().sum().backward()
    gradients = {key: p.grad for key, p in octave.named_parameters()}
    octave.zero_grad()
    octave.load_state_dict(dense.state_dict())
    octave(x).square().sum().backward()
    for key, parameter in expected.named_parameters():
        assert gradients.keys() >= {key}
        assert_close(octave.get_parameter(key).grad, parameter.grad, key)


def segmentation(head):
    """One of torchvision's segmentation networks on a backbone of few blocks, the last one dilated."""
    blocks = torchvision.models.resnet.Bottleneck
    backbone = torchvision.models.ResNet(
        blocks, [1, 2, 1, 1], replace_stride_with_dilation=[True, True, True], width_per_group=16
    )
    backbone = torchvision.models._utils.IntermediateLayerGetter(backbone, {"layer2": "out"})
    return torchvision.models.segmentation.FCN(backbone, head)


NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(),
    "shufflenet_v2": lambda: torchvision.models.shufflenet_v2_x0_5(),
    "regnet_y": lambda: timm.create_model("regnety_002"),
    "efficientnet": lambda: timm.create_model("tinynet_e", drop_path_rate=0.1),
    "eca": lambda: timm.create_model("ecaresnet26t"),
    "fpn": lambda: torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None
    ),
    "deeplab": lambda: segmentation(torchvision.models.segmentation.deeplabv3.DeepLabHead(512, 2, (1, 2, 3))),
    "fcn": lambda: segmentation(torchvision.models.segmentation.fcn.FCNHead(512, 2)),
    "lraspp": lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None),
}


@pytest.mark.parametrize(  # the others are slow: `make coverage` does those of torchvision
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("resnet18", "fcn", "eca", "lraspp", "deeplab")))
        for name in NETWORKS
    ],
)
def test_networks_of_other_packages(name):
    model, x = NETWORKS[name]().eval(), torch.randn(1, 3, 96, 96)
    octave, plan = oc.octavify(model, 0.25, x, min_size=6)
    assert list(octave.state_dict()) == list(model.state_dict())
    assert plan.macs_after < 0.96 * plan.macs_before
    with torch.no_grad():
        same = oc.octavify(model, 0, x)[0](x)
        pairs = zip(same.values(), model(x).values()) if isinstance(same, dict) else [(same, model(x))]
        assert all(torch.equal(*pair) for pair in pairs)
    octave.train()
    y = octave(torch.randn(2, 3, 77, 90))  # sizes of which some are odd at every stage
    sum(map(torch.sum, y.values() if isinstance(y, dict) else [y])).backward()
    assert any(p.grad is not None for p in octave.parameters())


def test_a_detector_runs_on_an_octave_backbone():
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    model.backbone, plan = oc.octavify(model.backbone, 0.25, torch.zeros(1, 3, 128, 128))
    assert plan.macs_after < 0.9 * plan.macs_before
    assert "boxes" in model.eval()([torch.rand(3, 128, 128)])[0]


@pytest.mark.parametrize("name", ["oct_resnet26", "oct_mobilenetv2_100"])
def test_segmentation_models_with_an_octave_encoder(name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet(f"tu-{name}", encoder_weights=None, alpha=0.5)
    assert any(isinstance(module, oc.OctConv2d) and module.alpha_in == 0.5 for module in model.encoder.modules())
    octave, plan = oc.octavify(model, 0.25, torch.zeros(1, 3, 64, 64), min_size=4)
    assert all(layer.octave for layer in plan.layers if layer.name.startswith("decoder") and layer.kind == "Conv2d")
    x = torch.randn(2, 3, 75, 90)
    for network in (model, octave):
        y = network(x)
        assert y.shape == (2, 1, 75, 90)
        y.sum().backward()
        assert all(p.grad is not None for p in network.parameters())
    assert torch.equal(oc.octavify(model.eval(), 0, x)[0](x), model(x))


@pytest.mark.parametrize("name", ["Unet", "FPN", "DeepLabV3Plus"])
def test_segmentation_models_become_octave_networks(name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = getattr(smp, name)("resnet18", encoder_weights=None).eval()
    model.requires_divisible_input_shape = False  # it branches on the size, which cannot be traced
    x = torch.randn(1, 3, 64, 64)
    octave, plan = oc.octavify(model, 0.25, x, min_size=4)
    assert plan.macs_after < 0.85 * plan.macs_before
    assert octave(x).shape == (1, 1, 64, 64)
    assert torch.equal(oc.octavify(model, 0, x)[0](x), model(x))


def test_the_plan_says_why():
    model = torchvision.models.resnet18()
    _, plan = oc.octavify(model, 0.25, torch.zeros(1, 3, 128, 128), keep=["layer2.1.conv1"])
    text = str(plan)
    assert (layer(plan, "layer1.0.conv2").alpha_in, layer(plan, "layer1.0.conv2").alpha_out) == (0.25, 0.25)
    assert layer(plan, "conv1").why == "stem, octave only with stem=True"
    assert layer(plan, "layer1.0.conv1").why == "input dense: stem, octave only with stem=True"
    assert layer(plan, "layer2.1.conv1").why == "listed in keep"
    assert layer(plan, "layer2.1.bn1").why == "listed in keep"
    assert layer(plan, "layer4.0.conv1").why == "4x4 map, smaller than min_size=8"
    assert not layer(plan, "layer4.0.conv1").octave, "a strided convolution to a dense output saves nothing"
    assert "13 of 20 convolutions are octave" in text
    assert ("split", "maxpool") in plan.borders
    assert ("merge", "layer3.0.relu") in plan.borders


def alphas(plan):
    return {layer.name: layer.alpha_out for layer in plan.layers if layer.kind == "Conv2d" and layer.octave}


def test_alpha_by_stage_and_by_name():
    model, x = torchvision.models.resnet18(), torch.zeros(1, 3, 128, 128)
    found = alphas(oc.octavify(model, [0.5, 0.25], x)[1])
    assert (found["layer1.1.conv1"], found["layer2.1.conv1"], found["layer3.1.conv1"]) == (0.5, 0.25, 0.25)
    found = alphas(oc.octavify(model, {"layer1.*": 0.5, "layer3.*": 0.25}, x)[1])
    assert (found["layer1.1.conv1"], found["layer3.1.conv1"]) == (0.5, 0.25)
    assert "layer2.1.conv1" not in found


def test_stem_and_small_maps_on_request():
    model, x = torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64)
    found = alphas(oc.octavify(model, 0.25, x, stem=True, min_size=2)[1])
    assert found["conv1"] == found["layer3.0.conv2"] == 0.25


def test_a_stem_ends_with_its_pooling():
    model = nn.Sequential(conv(3, 8), conv(8, 8), nn.ReLU(), nn.MaxPool2d(2), conv(8, 8), conv(8, 8), conv(8, 8))
    _, plan = oc.octavify(model, 0.25, torch.zeros(1, 3, 32, 32))
    assert [layer.why for layer in plan.layers[:2]] == ["stem, octave only with stem=True"] * 2
    assert plan.layers[2].alpha_out == 0.25
    assert oc.octavify(model, 0.25, torch.zeros(1, 3, 32, 32), stem=True)[1].layers[1].octave


def test_a_strided_convolution_to_a_dense_output_strides():
    octave, plan = oc.octavify(Pyramid(), 0.25, torch.zeros(1, 3, 16, 16), min_size=16)
    assert layer(plan, "first").alpha_out == layer(plan, "side").alpha_in == 0.25
    assert not layer(plan, "down").octave
    assert type(octave.down) is nn.Conv2d
    assert ("merge", "first") in plan.borders


def test_gates_and_resizing_need_no_border():
    for part in (Squeeze, SpatialGate, GatedPieces, Pyramid):
        assert not oc.octavify(part(), 0.25, torch.zeros(1, 3, 32, 32))[1].borders


@pytest.mark.parametrize("how", ["module", "function", "keywords"])
def test_both_parts_are_resized_in_the_same_way(how):
    class Resized(Part):
        def build(self):
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

        def part(self, x):
            if how == "module":
                return self.up(x)
            if how == "function":
                return F.interpolate(x, None, 2, "bilinear", True)
            return F.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2), mode="bilinear", align_corners=True)

    x = torch.randn(1, 3, 15, 16)
    octave, plan = oc.octavify(Resized(), 0.25, x)
    assert not plan.borders
    first = octave.first(octave.stem(x))
    parts = (
        F.interpolate(part, s, mode="bilinear", align_corners=True) for part, s in zip(first, [(30, 32), (15, 16)])
    )
    expected = torch.cat([part.mean((2, 3)) for part in octave.last(oc.Octave(*parts))], 1)
    assert_close(octave(x), octave.head(expected))


def test_an_index_of_some_pixels_is_not_taken_for_all():
    class Window(Part):
        def part(self, x):
            return x[:, :, :32, :32]

    model = Window().eval()
    octave, plan = oc.octavify(model, 0.5, torch.zeros(1, 3, 32, 32))
    assert not layer(plan, "first").octave
    images = constant_images(40, torch.float32)
    assert_close(octave(images), model(images))


def test_groups_round_the_share_down():
    _, plan = oc.octavify(Grouped(), 0.2, torch.zeros(1, 3, 32, 32))
    assert layer(plan, "first").why == "alpha 0.2 of 4 channels per group rounds down to none"
    assert layer(plan, "grouped").alpha_out == 4 * int(0.2 * 8) / 32


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(conv(3, 8), Chooser())
        self.out = conv(8, 8)

    def forward(self, x):
        return self.out(self.inner(x))


class Chooser(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_named_and_can_be_kept():
    x, model = torch.randn(1, 3, 16, 16), Branching()
    with pytest.warns(UserWarning, match="0 of 2 convolutions became octave: stem, octave only"):
        octave, plan = oc.octavify(model, 0.25, x)
    assert "not as one: inner.1 (Chooser): TraceError: symbolically traced" in plan.summary()
    assert torch.equal(octave(-x), model(-x))
    with pytest.warns(UserWarning, match="0 of 2 convolutions became octave: stem, octave only"):
        octave, plan = oc.octavify(model, 0.25, x, keep=["inner.1"])
    assert torch.equal(octave(-x), model(-x))
    assert not plan.parts
    with pytest.raises(ValueError, match=r"Chooser cannot be traced: the forward of the model branches on values"):
        oc.octavify(Chooser(), 0.25, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(alpha=1.0), r"alpha is .* must be in \[0, 1\), got 1.0"),
        (dict(alpha=[0.25, -0.5]), r"must be in \[0, 1\), got -0.5"),
        (dict(alpha=[]), "empty list"),
        (dict(alpha=[0.5] * 9), "alpha has 9 numbers, but maps have 1 size only: "),
        (dict(alpha={"frist": 0.5}), "alpha pattern 'frist' matches no convolution: did you mean first?"),
        (dict(alpha={"bn0": 0.5}), "matches no convolution"),
        (
            dict(alpha={"first": 0.5, "conv1": 0.25}),
            "first is to have alpha 0.5 and conv1 alpha 0.25, but their outputs",
        ),
        (dict(min_size="8"), "min_size must be a whole number of pixels from 0 up, got '8'"),
        (dict(min_size=-1), "min_size must be a whole number of pixels from 0 up, got -1"),
        (dict(example_inputs=torch.zeros(0, 3, 32, 32)), "hold no image"),
        (dict(keep=5), "keep must be patterns of layer names"),
        (dict(alpha="some"), "must be a number, a list, a dict or 'auto', got 'some'"),
        (dict(alpha="auto"), "give calibrate=batches and macs=0.7"),
        (dict(macs=0.5), 'macs is a budget of alpha="auto", got alpha=0.25'),
        (dict(alpha="auto", calibrate=[torch.zeros(1)], macs=0.5, latency=0.5), "one budget"),
        (dict(alpha="auto", calibrate=[torch.zeros(1)], agreement=1), "above 0 and below 1, got agreement=1"),
        (dict(keep=["lats"]), "keep pattern 'lats' matches no layer: did you mean last?"),
        (dict(calibrate=[]), "calibrate must hold batches"),
        (dict(calibrate=[torch.zeros(1, 3, 16, 16)]), r"calibrate has a batch \[1, 3, 16, 16\], but example_inputs"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        oc.octavify(Residual(), **{"example_inputs": torch.zeros(1, 3, 32, 32)} | arguments)


class Modes(Part):
    def build(self):
        self.drop_path = timm.layers.DropPath(0.5)

    def part(self, x):
        x = F.dropout(x, 0.5, training=self.training)
        return self.drop_path(x)


def test_the_mode_is_read_when_the_network_runs():
    model, x = Modes(), torch.randn(64, 3, 16, 16)
    octave, plan = oc.octavify(model.eval(), 0.5, x)
    assert not plan.notes
    assert not octave.training
    assert torch.equal(octave(x), octave(x))
    octave.train()
    assert not torch.equal(octave(x), octave(x))
    parts = []
    octave.last.register_forward_hook(lambda module, inputs, output: parts.append(inputs[0]))
    octave(x)
    dropped = [part.flatten(1).abs().sum(1) == 0 for part in parts[0]]
    assert torch.equal(*dropped), "a sample's parts are dropped together"
    assert 10 < dropped[0].sum() < 54


class Auxiliary(Part):
    def part(self, x):
        return x + self.last(x) if self.training else x


def test_what_is_done_in_training_only_is_noted():
    _, plan = oc.octavify(Auxiliary(), 0.25, torch.zeros(1, 3, 16, 16))
    assert "in training mode" in plan.notes[0]
    assert "in training mode" in str(plan)


def test_a_cut_that_does_not_agree_with_others_takes_a_plain_tensor():
    _, plan = oc.octavify(Recut(), 0.25, torch.zeros(1, 3, 32, 32))
    assert all(layer.octave for layer in plan.layers if layer.name.startswith(("first", "inner")))
    assert plan.borders == [("merge", "getitem_2"), ("merge", "add")]  # the last sum is cut in the other way


class FewerPieces(Plain):
    def part(self, x):
        a, b, c = x[:, :5].chunk(4, 1)[:3]
        return torch.cat([a, b, c, x[:, 5:]], 1)


class Named(Plain):
    def part(self, x):
        a, b = list(torch.chunk(x, dim=1, chunks=2))
        return torch.cat([*b.split(dim=1, split_size=[6, 2]), a], 1)


class OnePiece(Plain):
    def part(self, x):
        return torch.cat([x, x], 1).chunk(2, 1)[0]


@pytest.mark.parametrize("part", [FewerPieces, OnePiece, Named])
def test_cuts_that_cannot_be_followed_take_plain_tensors(part):
    model, x = part().eval(), torch.randn(2, 3, 16, 16)
    octave, plan = oc.octavify(model, 0, x)
    assert torch.equal(octave(x), model(x))
    octave, plan = oc.octavify(model, 0.5, x, min_size=4)
    assert layer(plan, "first").octave == (part is Named)
    images = constant_images(16, torch.float32)
    assert_close(octave(images), model(images))


class Optional(Plain):
    """Arguments that have defaults, on which it branches."""

    def forward(self, x, mask=None, scale: float = 2.0, *, pooled: bool = True):
        if mask is not None:
            x = x * mask
        maps = self.last(self.part(self.first(self.stem(x)))) * scale
        return self.head(maps.mean((2, 3))) if pooled else maps


def test_arguments_that_are_not_given_have_their_defaults():
    model, x = Optional().eval(), torch.randn(2, 3, 16, 16)
    octave, plan = oc.octavify(model, 0.5, x)
    assert plan.macs_after < plan.macs_before
    assert torch.equal(oc.octavify(model, 0, x)[0](x), model(x))
    assert octave(x).shape == (2, 5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'scale'"):
        octave(x, scale=1.0)
    mask = torch.rand(2, 1, 16, 16)
    assert torch.equal(oc.octavify(model, 0, (x, mask))[0](x, mask), model(x, mask))


def test_unused_modules_and_attributes_survive_a_copy():
    model = timm.create_model("resnet18", num_classes=3)
    model.spare = nn.Linear(2, 2)
    octave, _ = oc.octavify(model, 0.25, torch.zeros(1, 3, 64, 64))
    for network in (octave, copy.deepcopy(octave)):
        assert "spare.weight" in network.state_dict()
        assert network.num_classes == 3
        assert network.pretrained_cfg["classifier"] == "fc"
    twin, x = copy.deepcopy(octave.eval()), torch.randn(1, 3, 64, 64)
    assert torch.equal(twin(x), octave(x))
    assert twin.fc.weight is not octave.fc.weight


def test_it_is_not_pickled_whole():
    octave, _ = oc.octavify(Plain(), 0.25, torch.zeros(1, 3, 16, 16))
    with pytest.raises(TypeError, match="save its state_dict"):
        pickle.dump(octave, io.BytesIO())


class Konvolution(nn.Conv2d):
    """A convolution whose name does not say so."""


class ConvProbe(nn.Linear):
    """A layer that is none, whose name says so."""


def test_a_plan_counts_what_is_a_convolution_whatever_its_name():
    layers = [Konvolution(n, 8, 3, padding=1) for n in (3, 8, 8, 8)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), ConvProbe(8, 2))
    _, plan = oc.octavify(model, np.float32(0.5), torch.zeros(1, 3, 16, 16))
    assert plan.summary().startswith("3 of 4 convolutions are octave")
    assert json.loads(json.dumps(plan.conversion["alphas"]))["1"] == 0.5


def test_layers_that_share_weights_stay():
    model = Residual()
    model.conv1.weight = model.last.weight
    with pytest.warns(UserWarning, match="0 of 4 convolutions became octave: shares its weights"):
        octave, plan = oc.octavify(model, 0.25, torch.zeros(1, 3, 32, 32))
    assert layer(plan, "conv1").why == layer(plan, "last").why == "shares its weights with another layer"
    assert octave.conv1.weight is octave.last.weight


def test_layers_with_hooks_or_called_twice_stay():
    model = Unknown()
    model.first.register_forward_hook(lambda module, inputs, output: output + 1)
    _, plan = oc.octavify(model, 0.25, torch.zeros(1, 3, 32, 32))
    assert layer(plan, "first").why == "has hooks, which expect plain tensors"
    assert layer(plan, "twice").why == "called more than once"


class OctaveEncoder(nn.Module):
    """A decoder behind one of our networks as a backbone, as segmentation packages build it."""

    def __init__(self):
        super().__init__()
        self.encoder = timm.create_model("oct_resnet18", features_only=True, out_indices=(0, 1))
        self.conv1, self.conv2 = conv(128, 16), conv(16, 16)

    def forward(self, x):
        _, fine, coarse = [x, *self.encoder(x)]
        x = torch.cat([fine, F.interpolate(coarse, scale_factor=2)], 1)
        return self.conv2(self.conv1(x)).mean((2, 3))


def test_a_part_that_is_octave_already_is_left_alone():
    model = OctaveEncoder().eval()
    x = torch.randn(1, 3, 64, 64)
    octave, plan = oc.octavify(model, 0.5, x)
    assert [layer.name for layer in plan.layers if layer.octave] == ["conv1", "conv2"]
    assert layer(plan, "conv1").alpha_out == 0.5
    assert all(torch.equal(a, b) for a, b in zip(octave.encoder(x), model.encoder(x)))
    assert torch.equal(oc.octavify(model, 0, x)[0](x), model(x))


def test_lists_are_counted_where_their_length_is_always_the_same():
    class Lists(nn.Module):
        def forward(self, x, count=2):
            return [x] * count

    class Caller(nn.Module):
        def __init__(self):
            super().__init__()
            self.same, self.changing = Lists(), Lists()

        def forward(self, x):
            return sum([*self.same(x), *self.changing(x), *self.changing(x, 3)])

    model = Caller()
    assert Recording(model, (torch.zeros(1),)).lengths == {"same": 2}


@pytest.mark.parametrize("how", ["compile", "export"])
def test_it_compiles_and_exports(how):
    octave, _ = oc.octavify(Residual().eval(), 0.25, torch.zeros(1, 3, 16, 16))
    x = torch.randn(2, 3, 16, 16)
    if how == "compile":
        made = torch.compile(octave, backend="eager", fullgraph=True)
    else:
        made = torch.export.export(octave, (x,)).module()
    assert_close(made(x), octave(x))
