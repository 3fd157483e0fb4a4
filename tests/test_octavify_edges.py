"""Rough edges of octavify: odd names, lazy layers, borders of small images, samples that are not normalized."""

import copy
from functools import partial

import pytest
import timm
import torch
from helpers import assert_close
from timm.layers.conv2d_same import conv2d_same
from torch import nn

import octaveconv as oc
from octaveconv.octavify import regression


def chain(*layers):
    return nn.Sequential(*layers).eval()


class Keywords(nn.Module):
    """Modules and parameters may have names that Python does not read."""

    def __init__(self):
        super().__init__()
        self.add_module("in", nn.Conv2d(3, 8, 3, padding=1))
        self.add_module("while", nn.ModuleDict({"lambda": nn.Conv2d(8, 8, 3, padding=1), "0": nn.Conv2d(8, 8, 1)}))
        self.register_parameter("is", nn.Parameter(torch.rand(8, 1, 1)))

    def forward(self, x):
        x = getattr(self, "in")(x) * getattr(self, "is")
        for layer in getattr(self, "while").values():
            x = layer(x).relu()
        return x.cos()


def test_modules_named_by_python_keywords():
    model, x = Keywords().eval(), torch.randn(2, 3, 16, 16)
    same, _ = oc.octavify(model, 0, x)
    assert torch.equal(same(x), model(x))
    net, plan = oc.octavify(model, 0.5, x, stem=True)
    assert [layer.octave for layer in plan.layers] == [True] * 3
    assert net.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_lazy_layers():
    model = chain(
        nn.LazyConv2d(8, 3, padding=1), nn.LazyBatchNorm2d(), nn.LazyConv2d(8, 3, padding=1), nn.LazyConv2d(4, 1)
    )
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"0\.weight has no size yet, as of a lazy layer: call the model once"):
        oc.octavify(model, 0.5, x)
    model(x)
    net, plan = oc.octavify(model, 0.5, x, stem=True)
    assert [layer.octave for layer in plan.layers] == [True] * 4
    assert net(x).shape == model(x).shape


@pytest.mark.parametrize("kind", ["Conv2dSame", "StdConv2dSame", "ScaledStdConv2dSame"])
def test_convolutions_that_pad_as_tensorflow_does(kind):
    made = [getattr(timm.layers, kind)(c, 8, k, stride=s) for c, k, s in ((3, 3, 2), (8, 4, 1), (8, 5, 2), (8, 3, 3))]
    model, x = chain(*made), torch.randn(1, 3, 33, 36)
    same, _ = oc.octavify(model, 0, x)
    assert torch.equal(same(x), model(x))
    net, plan = oc.octavify(model, 0.5, x, stem=True)
    assert [layer.octave for layer in plan.layers] == [True, True, False, False]  # whose outputs are dense
    for size in ((34, 35), (37, 40)):
        assert net(torch.zeros(1, 3, *size)).shape == model(torch.zeros(1, 3, *size)).shape


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_high_channels_are_strided_as_in_the_dense_layer(kernel, stride):
    layer = oc.OctConv2d(8, 12, kernel, stride, "same", alpha_in=0.5, alpha_out=0.25, bias=False, pool_strides=False)
    for height, width in ((12, 13), (14, 11), (9, 16)):
        high, low = torch.randn(2, 4, height, width), torch.zeros(2, 4, (height + 1) // 2, (width + 1) // 2)
        y = layer(oc.Octave(high, low))
        expected = conv2d_same(high, layer.weight[:9, :4], None, (stride, stride))
        assert_close(y.high, expected)
        assert y.low.shape[2:] == tuple((n + 1) // 2 for n in expected.shape[2:])


@pytest.mark.parametrize("size", [(14, 16), (15, 13)])
def test_a_regression_reads_what_a_layer_pads_by_its_size(size):
    layer = oc.OctConv2d(8, 8, 3, 2, "same", alpha_in=0.5, alpha_out=0.5, bias=False, pool_strides=False).double()
    low_size = tuple((n + 1) // 2 for n in size)
    x = oc.Octave(torch.randn(4, 4, *size).double(), torch.randn(4, 4, *low_size).double())
    with torch.no_grad():
        y = layer(x)
        for rows, part, for_low in ((layer.weight[:4], y.high, False), (layer.weight[4:], y.low, True)):
            sums = regression.Sums()
            regression.collect(sums, layer.spec, x, part, for_low, torch.arange(part[0, 0].numel()))
            left = sums.statistics(centered=False).left(rows.flatten(1).mT[None])
            assert left.abs().max() < 1e-9, "the layer's own weight gives its own output"


@pytest.mark.parametrize("size", [(32, 32), (33, 36), (35, 38)])
@pytest.mark.parametrize("make", [timm.layers.Conv2dSame, partial(nn.Conv2d, padding=1)], ids=["same", "padding"])
def test_trained_weights_stride_as_they_have_learned(make, size):
    """Low channels that hold nothing change nothing: what is left is the dense network, its strides included."""
    model = chain(nn.Conv2d(3, 8, 1), make(8, 8, 3, stride=2), make(8, 8, 3, stride=2, groups=8), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        for layer, both in zip(model, (False, True, False, True)):
            low = layer.out_channels // 2 if layer is not model[3] else 4
            layer.weight[low:], layer.bias[low:] = 0, 0
            if both:
                layer.weight[:, 4:] = 0
    octave, plan = oc.octavify(model, 0.5, torch.randn(1, 3, 64, 64), stem=True)
    assert [layer.octave for layer in plan.layers] == [True] * 4
    x = torch.randn(2, 3, *size)
    assert_close(octave(x), model(x))


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_images_whose_low_maps_are_smaller_than_their_border(mode):
    model = chain(*(nn.Conv2d(c, 8, 7, padding=3, padding_mode=mode) for c in (3, 8, 8)))
    net, _ = oc.octavify(model, 0.5, torch.randn(1, 3, 16, 16), stem=True)
    least = 4 if mode == "reflect" else 3
    assert net(torch.randn(1, 3, 2 * least, 8)).shape == (1, 8, 2 * least, 8)
    with pytest.raises(
        ValueError,
        match=rf"padding_mode='{mode}'.* needs a map of \({least}, {least}\) pixels or more, got \({least - 1}, 4\)",
    ):
        net(torch.randn(1, 3, 2 * least - 2, 8))


def test_a_sample_of_whole_numbers_is_refused_with_the_cure():
    model, images = chain(nn.Conv2d(3, 8, 3, padding=1)), torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"calibrate holds torch.uint8: images must be float, normalized as the network"
    ):
        oc.octavify(model, 0.5, torch.zeros(1, 3, 16, 16), calibrate=[images])


class Behind(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


def test_slopes_inside_a_sequence():
    slopes, x = nn.PReLU(8), oc.Split(8, 0.25)(torch.randn(2, 8, 6, 6))
    nn.init.uniform_(slopes.weight)
    expected = oc.OctMap(slopes)(oc.octave_map(torch.tanh, x))
    found = oc.OctMap(nn.Sequential(nn.Tanh(), nn.Sequential(slopes, nn.Identity())))(x)
    assert_close(found.high, expected.high)
    assert_close(found.low, expected.low)
    with pytest.raises(ValueError, match="slopes of the PReLU inside Behind: put that PReLU into an OctMap of its own"):
        oc.OctMap(nn.Sequential(nn.Tanh(), Behind(slopes)))


def test_crop_of_an_octave():
    x = oc.Split(8, 0.5)(torch.randn(2, 8, 3, 9, 9))
    high, low = oc.octave_crop(x, (2, 7, 8))
    assert torch.equal(high, x.high[:, :, :2, :7, :8])
    assert torch.equal(low, x.low[:, :, :2, :4, :4])
    assert oc.octave_crop(x, (2, 7, 8), factor=2).low.shape[2:] == (1, 4, 4)
    assert oc.octave_crop(torch.ones(1, 2, 5), (3,)).high.shape == (1, 2, 3)
    assert oc.octave_crop(oc.Octave(None, torch.ones(1, 2, 4, 4)), (5, 7)).low.shape == (1, 2, 3, 4)
    with pytest.raises(
        ValueError, match=r"the high part is \[2, 4, 3, 9, 9\], which cannot be cropped to \(3, 10, 9\)"
    ):
        oc.octave_crop(x, (3, 10, 9))
    with pytest.raises(ValueError, match=r"cannot be cropped to \(9, 9\) pixels"):
        oc.octave_crop(x, (9, 9))
