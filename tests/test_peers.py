"""The bugs that recur in other implementations of octave convolution, each as a test of its own name."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, random_octave

import octaveconv as oc

CONVS = [oc.OctConv1d, oc.OctConv2d, oc.OctConv3d, oc.OctConvTranspose2d]


@pytest.mark.parametrize("size", [7, 75, 299, 300])
def test_odd_sizes(size):
    """Eleven peers fail or drop the border; here the low part has every pixel's share."""
    net = torch.nn.Sequential(
        oc.OctConv2d(3, 4, 3, padding=1, alpha_out=0.5),
        oc.OctConv2d(4, 4, 3, stride=2, padding=1, alpha_in=0.5, alpha_out=0.5),
        oc.OctConv2d(4, 4, 3, padding=1, alpha_in=0.5),
    )
    half = -(-size // 2)
    assert net(torch.ones(1, 3, size, size)).high.shape == (1, 4, half, half)


@pytest.mark.parametrize("octave_class", CONVS)
def test_bias_is_added_once_per_output(octave_class):
    """Eight peers add it once per path, so an output that two paths reach gets it twice."""
    layer = octave_class(8, 8, 3, padding=1, alpha_in=0.5, alpha_out=0.5)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.bias, 3.0)
    for part in layer(random_octave(8, 0.5, (6,) * layer.axes)):
        assert torch.all(part == 3.0)


def test_depthwise_has_no_path_between_frequencies():
    layer = oc.OctConv2d(8, 8, 3, padding=1, groups=8, alpha_in=0.5, alpha_out=0.5)
    assert layer.weight.shape == (8, 1, 3, 3)
    x = random_octave(8, 0.5, (6, 6))
    y, without_low = layer(x), layer(oc.Octave(x.high, torch.zeros_like(x.low)))
    assert torch.equal(y.high, without_low.high)
    assert_close(y.low, F.conv2d(x.low, layer.weight[4:], layer.bias[4:], padding=1, groups=4))


@pytest.mark.parametrize("octave_class", CONVS)
def test_one_channel_is_not_taken_for_depthwise(octave_class):
    layer = octave_class(1, 8, 3, padding=1, alpha_out=0.5)
    assert layer(torch.ones(1, 1, *[4] * layer.axes)).low.shape[:2] == (1, 4)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("octave_class", CONVS)
def test_groups_cost_as_many_parameters_as_in_a_dense_layer(octave_class, groups):
    octave = octave_class(8, 16, 3, padding=1, groups=groups, alpha_in=0.5, alpha_out=0.5)
    dense = getattr(torch.nn, octave_class.__name__[3:])(8, 16, 3, padding=1, groups=groups)
    assert sum(p.numel() for p in octave.parameters()) == sum(p.numel() for p in dense.parameters())
    assert octave(random_octave(8, 0.5, (4,) * octave.axes)).high.shape[1] == 8


@pytest.mark.parametrize(("channels", "alpha", "split"), [(10, 0.8, (2, 8)), (64, 0.3, (45, 19))])
def test_channel_rounding_loses_no_channel(channels, alpha, split):
    """``int((1 - alpha) * C)`` beside ``int(alpha * C)`` loses one; so do norms that round the other way."""
    x = oc.OctConv2d(3, channels, 1, alpha_out=alpha)(torch.ones(1, 3, 4, 4))
    x = oc.OctBatchNorm2d(channels, alpha=alpha)(x)
    assert (x.high.shape[1], x.low.shape[1]) == split


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("alpha_out", [0, 0.5, 1])
@pytest.mark.parametrize("alpha_in", [0, 0.5, 1])
@pytest.mark.parametrize("octave_class", CONVS)
def test_alpha_ends(octave_class, alpha_in, alpha_out, stride):
    transposed = octave_class is oc.OctConvTranspose2d
    kernel = 4 if transposed and stride == 2 else 3
    layer = octave_class(8, 8, kernel, stride, 1, alpha_in=alpha_in, alpha_out=alpha_out)
    high, low = layer(random_octave(8, alpha_in, (8,) * layer.axes))
    size = 8 * stride if transposed else 8 // stride
    low_channels = int(8 * alpha_out)
    assert (None if high is None else high.shape[1:]) == (
        None if alpha_out == 1 else (8 - low_channels, *[size] * layer.axes)
    )
    low_size = [size // factor for factor in layer.spec.factor]
    assert (None if low is None else low.shape[1:]) == (None if alpha_out == 0 else (low_channels, *low_size))


def test_a_transposed_layer_makes_maps_larger():
    """One peer's never upsamples; another's makes layers in its forward, whose weights no optimizer sees."""
    layer = oc.OctConvTranspose2d(8, 4, 2, stride=2, alpha_in=0.5, alpha_out=0.5)
    assert [part.shape[2:] for part in layer(random_octave(8, 0.5, (5, 3)))] == [(10, 6), (5, 3)]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_a_video_keeps_its_frames():
    y = oc.OctConv3d(3, 8, 3, padding=1, alpha_out=0.5)(torch.ones(1, 3, 5, 6, 6))
    assert [part.shape[2:] for part in y] == [(5, 6, 6), (5, 3, 3)]


def test_stride_pools_instead_of_skipping_pixels():
    """The paper measures 76.3 with strided convolutions and 77.3 with pooling."""
    layer = oc.OctConv2d(4, 4, 1, stride=2, bias=False)
    x = torch.randn(1, 4, 6, 6)
    assert_close(layer(x).high, F.conv2d(F.avg_pool2d(x, 2), layer.weight))


def test_low_to_high_at_stride_2_uses_the_low_map_as_it_is():
    """Pooling it and upsampling it again, as several peers do, throws detail away."""
    layer = oc.OctConv2d(8, 4, 3, stride=2, padding=1, bias=False, alpha_in=0.5)
    low = torch.randn(1, 4, 4, 4)
    y = layer(oc.Octave(torch.zeros(1, 4, 8, 8), low))
    assert_close(y.high, F.conv2d(low, layer.weight[:, 4:], padding=1))


def test_convolution_comes_before_upsampling_and_after_pooling():
    layer = oc.OctConv2d(8, 8, 3, padding=1, bias=False, alpha_in=0.5, alpha_out=0.5)
    x = random_octave(8, 0.5, (8, 8))
    up = layer(oc.Octave(torch.zeros_like(x.high), x.low)).high
    assert_close(up, F.conv2d(x.low, layer.weight[:4, 4:], padding=1).repeat_interleave(2, 2).repeat_interleave(2, 3))
    down = layer(oc.Octave(x.high, torch.zeros_like(x.low))).low
    assert_close(down, F.conv2d(F.avg_pool2d(x.high, 2), layer.weight[4:, :4], padding=1))


def test_inplace_activations_do_not_touch_the_other_part():
    x = random_octave(8, 0.5, (4, 4))
    low = x.low.clone()
    oc.octave_map(torch.nn.ReLU(inplace=True), oc.Octave(x.high, None))
    assert torch.equal(x.low, low)
