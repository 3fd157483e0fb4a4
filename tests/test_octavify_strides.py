"""Kernels and strides of discriminators, generators, patches, codecs, speech: octave at every size, or a reason."""

import copy

import pytest
import timm
import torch
from helpers import assert_close
from torch import nn

import octaveconv as oc

LINE, LINE_UP, FLAT, FLAT_UP = nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d, nn.ConvTranspose2d
REPLICATE = dict(padding_mode="replicate")


def chain(kind, sizes, **more):
    """Layers of the given channels, kernels, strides, paddings ..."""
    return nn.Sequential(*(part for size in sizes for part in (kind(*size, **more), nn.LeakyReLU(0.2))))


NETWORKS = {  # the network, an input, and how many of its convolutions stay dense, with the stem converted
    "PatchGAN": (
        chain(FLAT, [(3, 16, 4, 2, 1), (16, 16, 4, 2, 1), (16, 16, 4, 1, 1), (16, 8, 4, 1, 1), (8, 1, 4, 1, 2)]),
        (3, 48, 48), 0,
    ),
    "DCGAN": (
        nn.Sequential(chain(FLAT_UP, [(16, 16, 4, 1, 0), (16, 16, 3, 2, 1, 1), (16, 16, 4, 2, 1)]),
                      chain(FLAT_UP, [(16, 8, 4, 2, 1), (8, 3, 2, 2)])), (16, 3, 3), 1,
    ),
    "compression": (
        nn.Sequential(chain(FLAT, [(3, 16, 5, 2, 2), (16, 16, 5, 2, 2)]),
                      chain(FLAT_UP, [(16, 16, 5, 2, 2, 1), (16, 3, 5, 2, 2, 1)])), (3, 40, 40), 0,
    ),
    "patches": (
        chain(FLAT, [(3, 16, 4, 4), (16, 16, 3, 1, 1), (16, 16, 2, 2), (16, 16, 4, 2, 1, 1, 16), (16, 8, 1)]),
        (3, 128, 128), 0,
    ),
    "unpadded": (chain(FLAT, [(3, 16, 11, 4, 2), (16, 16, 3, 2), (16, 16, 2, 1, 1), (16, 8, 2)]), (3, 99, 99), 0),
    "shifted": (chain(FLAT, [(3, 16, 3), (16, 16, 3)]), (3, 30, 30), 2),
    "a vocoder": (
        nn.Sequential(chain(LINE_UP, [(8, 16, 16, 8, 4), (16, 16, 16, 8, 4), (16, 8, 5, 3, 1)]),
                      chain(LINE, [(8, 1, 7, 1, 3)])), (8, 12), 0,
    ),
    "speech": (chain(LINE, [(1, 16, 10, 5), (16, 16, 3, 2), (16, 16, 2, 2), (16, 16, 9, 1, 4)]), (1, 600), 0),
    "frames": (
        nn.Sequential(
            chain(nn.Conv3d, [(3, 8, (5, 3, 3), (8, 1, 1), (2, 1, 1)), (8, 8, (2, 4, 4), (3, 2, 2), (0, 1, 1))]),
                      chain(nn.ConvTranspose3d, [(8, 8, (3, 2, 2), (1, 2, 2)), (8, 4, 4, 2, 1)])), (3, 33, 16, 18), 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    model, size, dense = NETWORKS[name]
    model, x = copy.deepcopy(model).eval(), torch.randn(1, *size)
    same, _ = oc.octavify(model, 0, x)
    assert torch.equal(same(x), model(x))
    net, plan = oc.octavify(model, 0.5, x, stem=True, min_size=2)
    assert sum(layer.convolves and not layer.octave for layer in plan.layers) == dense, str(plan)
    if dense > 1:
        return
    assert plan.macs_after == oc.cost(net, x).counted_macs < 0.75 * plan.macs_before
    for more in range(1, 5):
        larger = torch.randn(1, size[0], *(n + more for n in size[1:-1]), size[-1] + (more + 1) % 4)
        assert net(larger).shape == model(larger).shape
    net.train()(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("quickly_tried", ["unpadded", "patches"])
def test_a_sample_refits_layers_whose_paths_stride(quickly_tried, quickly):
    model, size, _ = NETWORKS[quickly_tried]
    _, plan = oc.octavify(model.eval(), 0.5, torch.randn(1, *size), stem=True, calibrate=[torch.randn(12, *size)])
    assert min(step.divergence for step in plan.steps[1:]) < plan.steps[0].divergence


@pytest.mark.parametrize("size", [(16, 16), (15, 18), (13, 21)])
def test_constant_maps_stay_constant_at_every_size(size):
    """Where the low map is a pixel short of what the output needs, its last pixel goes on."""
    sizes = [(3, 8, 4, 2, 1), (8, 8, 2, 1, 0), (8, 8, 5, 2, 1), (8, 8, 4, 2, 2)]
    layers = [
        oc.OctConv2d(*each, alpha_in=0.5 * (i > 0), alpha_out=0.5, **REPLICATE).double() for i, each in enumerate(sizes)
    ]
    model = nn.Sequential(*(nn.Conv2d(*each, **REPLICATE).double() for each in sizes))
    flat = torch.randn(2, 3, 1, 1, dtype=torch.float64).expand(2, 3, *size)
    x = flat
    for layer, dense in zip(layers, model):
        dense.load_state_dict(dict(layer.state_dict()))
        x = layer(x)
    assert_close(oc.Merge()(x), model(flat))


def test_a_stride_that_pools_is_as_before():
    layer = oc.OctConv2d(8, 8, 3, stride=2, padding=1, alpha_in=0.5, alpha_out=0.5)
    assert not layer.spec.strides
    assert layer.spec.pooling == (2, 2)
    other = oc.OctConv2d(8, 8, 3, stride=2, padding=0, alpha_in=0.5, alpha_out=0.5)
    assert other.spec.strides
    assert other.spec.pooling == (1, 1)
    assert "its stride is 1 or 2" in oc.explain(other, oc.Split(8, 0.5)(torch.ones(1, 8, 9, 9)))["triton"]


@pytest.mark.parametrize("kind", [oc.OctConvTranspose1d, oc.OctConvTranspose3d])
def test_transposed_layers_of_other_axes(kind):
    axes = kind.axes
    dense = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1](8, 4, 4, 2, 1)
    layer = kind(8, 4, 4, 2, 1, alpha_in=0.5, alpha_out=0.25)
    layer.load_state_dict(dense.state_dict())
    x = oc.Split(8, 0.5)(torch.randn(2, 8, *range(5, 5 + axes)))
    y = layer(x)
    assert y.high.shape[2:] == dense(x.high.repeat(1, 2, *[1] * axes)).shape[2:]
    assert y.low.shape[1] == 1
    assert "alpha_in=0.5 (4+4)" in str(layer)
    plain = kind(8, 4, 4, 2, 1)
    plain.load_state_dict(dense.state_dict())
    z = torch.randn(2, 8, *range(5, 5 + axes))
    assert torch.equal(plain(z).high, dense(z))
    with pytest.raises(ValueError, match="with two frequencies the output size must be the input size times"):
        kind(8, 4, 3, 2, 0, alpha_out=0.5)


class Several(nn.Module):
    """Layers that all read one octave."""

    def __init__(self, conv, transposed, strided, enlarging):
        super().__init__()
        torch.manual_seed(0)
        some = dict(alpha_in=0.5, alpha_out=0.25)
        self.first = conv(3, 8, 3, padding=1, alpha_out=0.5)
        self.layers = nn.ModuleList([conv(8, 4, *each, **some) for each in strided])
        self.layers.extend(transposed(8, 4, *each, **some) for each in enlarging)

    def forward(self, x):
        x = self.first(x)
        return [part for layer in self.layers for part in layer(x)]


STRIDED = [(4, 2, 1), (3, 3, 0), (5, 3, 1), (4, 4, 0), (7, 4, 3), (2, 1, 1), (3, 2, 0)]
ENLARGING = [(4, 2, 1), (2, 2), (3, 2, 1, 0), (3, 2, 1, 1), (5, 3, 1), (16, 8, 4)]
IMAGES, SERIES = (oc.OctConv2d, oc.OctConvTranspose2d), (oc.OctConv1d, oc.OctConvTranspose1d)
EXPORTED = [  # of layers, how many of each kind, and the size at which they are exported
    (IMAGES, 1, (32, 45)), pytest.param(IMAGES, 7, (32, 48), marks=pytest.mark.slow),
    pytest.param(IMAGES, 7, (33, 45), marks=pytest.mark.slow), pytest.param(SERIES, 7, (33,), marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.skipif(torch.__version__ < "2.14", reason="there, PyTorch's pooling with ceil_mode may guard on odd sizes")
@pytest.mark.parametrize(("kinds", "count", "size"), EXPORTED)
def test_an_exported_program_holds_for_all_sizes(kinds, count, size):
    model = Several(*kinds, STRIDED[:count], ENLARGING[:count]).eval()
    images = [torch.randn(2, 3, *(n, n + 5)[: len(size)]) for n in (24, 25, 26, 27, 29, 32, 35, 36)]
    dims = dict.fromkeys(range(2, images[0].dim()), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(model, (torch.randn(2, 3, *size),), dynamic_shapes=(dims,)).module()
    for x in images:
        with torch.no_grad():
            for y, z in zip(exported(x), model(x), strict=True):
                assert_close(y, z)


@pytest.mark.slow
def test_tensorflows_padding_at_every_size():
    """Exported, compiled for all sizes, and in older ONNX files' arithmetic (`test_traced.py`)."""
    same = timm.layers.Conv2dSame
    model = nn.Sequential(nn.Conv2d(3, 8, 1), same(8, 8, 3, stride=2), same(8, 8, 5, stride=2), nn.Conv2d(8, 4, 1))
    net, _ = oc.octavify(model.eval(), 0.5, torch.zeros(1, 3, 64, 64), stem=True)
    dims = dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(net, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(dims,)).module()
    compiled = torch.compile(net, dynamic=True, fullgraph=True, backend="eager")
    for size in ((64, 64), (65, 67), (50, 33)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert_close(exported(x), net(x))
            assert_close(compiled(x), net(x))


@pytest.mark.slow
def test_deployed():
    model, x = NETWORKS["patches"][0], torch.randn(1, 3, 64, 64)
    net, _ = oc.octavify(model.eval(), 0.5, x, stem=True, min_size=4)
    larger = torch.randn(1, 3, 65, 66)
    assert_close(oc.deploy(net, x)(larger), net(larger).detach())
