"""Cost: the formula, the count, and an actual dense twin must agree."""

import functools
import json

import pytest
import torch
from networks import CLASSES, SHALLOW, shallow
from torch import nn

import octaveconv as oc
from octaveconv.cost import MAC_HOOKS
from octaveconv.errors import UsageError
from octaveconv.nn.conv import OctConvNd


@functools.lru_cache(maxsize=2)
def report_of(name, alpha, size):
    with torch.device("meta"):
        return oc.cost(shallow(name, alpha, tiny=True), input_size=size)


@pytest.mark.parametrize(
    ("name", "alpha", "size"),
    [(name, 0.25, 65) for name in SHALLOW]
    + [pytest.param(name, 1, 64, marks=[pytest.mark.slow] * (name not in CLASSES)) for name in SHALLOW],
)
def test_formula_count_and_dense_twin_agree(name, alpha, size):
    """The layers of a deep network are these; `test_parity.py` counts all of it."""
    report, dense = (report_of(name, of, size) for of in (alpha, 0))
    assert report.macs == report.counted_macs
    assert dense.macs == dense.counted_macs
    assert report.params == dense.params
    if alpha < 1 or size % 32 == 0:  # at alpha 1 the high size is not known, and taken as twice the low one
        assert (report.dense.macs, report.dense.activation_bytes) == (dense.macs, dense.activation_bytes)


@pytest.mark.parametrize(
    ("alpha", "compute", "memory"),
    [(0, 100, 100), (0.125, 82, 91), (0.25, 67, 81), (0.5, 44, 62), (0.75, 30, 44), (0.875, 26, 34), (1, 25, 25)],
)
def test_table_1_of_the_paper(alpha, compute, memory):
    """One layer; the paper prints 63 and 35 for the memory's 62.5 and 34.4."""
    net = nn.Sequential(oc.Split(64, alpha), oc.OctConv2d(64, 64, 3, padding=1, alpha_in=alpha, alpha_out=alpha))
    report = oc.cost(net, torch.zeros(1, 64, 56, 56))
    assert round(100 * report.macs / report.dense.macs) == compute
    assert round(100 * report.activation_bytes / report.dense.activation_bytes) == memory


@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("backend", ["reference", "merged"])
def test_a_layer_by_hand(backend, groups, stride):
    layer = oc.OctConv2d(8, 8, 3, stride, 1, groups=groups, alpha_in=0.5, alpha_out=0.5)
    with oc.backend(backend):
        report = oc.cost(nn.Sequential(oc.Split(8, 0.5), layer), input_size=(8, 9, 7))
    assert report.macs == report.counted_macs
    high = {1: 63, 2: 20, (1, 2): 36}[stride]
    low = {1: 20, 2: 6, (1, 2): 10}[stride]
    paths = dict(hh=high, hl=low, lh=20, ll=low)  # pixels that each path convolves; lh before upsampling
    if groups == 8:
        assert report.layers[0].paths == {"hh": 4 * 9 * high, "ll": 4 * 9 * low}
    else:
        assert report.layers[0].paths == {path: 16 // groups * 9 * pixels for path, pixels in paths.items()}
    assert report.high.activation_bytes == 4 * high * 4
    assert report.low.activation_bytes == 4 * low * 4


@pytest.mark.parametrize(
    ("layer", "dense", "size"),
    [
        (oc.OctConv1d, nn.Conv1d, (9,)),
        (oc.OctConv3d, nn.Conv3d, (3, 6, 4)),
        (oc.OctConvTranspose2d, nn.ConvTranspose2d, (9, 7)),
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("alpha", [0, 0.5, 1])
@pytest.mark.parametrize("backend", ["reference", "merged"])
def test_the_whole_family_against_the_count_and_the_dense_twin(backend, alpha, stride, groups, layer, dense, size):
    arguments = (8, 8, 3, stride, 1)
    if alpha == 1:
        size = tuple(n + n % 2 for n in size)  # else the high size is not known, and taken as twice the low one
    net = nn.Sequential(oc.Split(8, alpha), layer(*arguments, groups=groups, alpha_in=alpha, alpha_out=alpha))
    with oc.backend(backend):
        report = oc.cost(net, input_size=(8, *size))
    twin = oc.cost(dense(*arguments, groups=groups), input_size=(8, *size))
    assert (report.macs, twin.macs) == (report.counted_macs, twin.counted_macs)
    assert report.dense == twin.total


def test_a_transposed_layer_by_hand():
    layer = oc.OctConvTranspose2d(8, 8, 4, 2, 1, alpha_in=0.5, alpha_out=0.5)
    report = oc.cost(nn.Sequential(oc.Split(8, 0.5), layer), input_size=(8, 9, 7))
    pixels = dict(hh=63, hl=20, lh=20, ll=20)  # of the inputs, hl's after pooling
    assert report.layers[0].paths == {path: 16 * 16 * n for path, n in pixels.items()}
    assert (report.high.activation_bytes, report.low.activation_bytes) == (4 * 18 * 14 * 4, 4 * 9 * 7 * 4)


def test_it_changes_nothing_and_runs_no_arithmetic():
    model = nn.Sequential(
        oc.OctConv2d(3, 8, 1, alpha_out=0.5), oc.OctBatchNorm2d(8, alpha=0.5), oc.OctMap(nn.Dropout())
    )
    model[2].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    oc.cost(model, input_size=8)
    assert [module.training for module in model] == [True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("size", [0, -1, 2.5, "a", (3, 0, 8)])
def test_an_input_size_is_of_whole_numbers(size):
    with pytest.raises(ValueError, match="input_size must be a number of pixels from 1 up, or a tuple"):
        oc.cost(nn.Conv2d(3, 4, 1), input_size=size)


@pytest.mark.parametrize("function", [oc.cost, oc.octavify, oc.deploy, oc.export])
@pytest.mark.parametrize(("model", "got"), [(None, "NoneType"), (nn.Conv2d, "the class Conv2d")])
def test_what_is_no_network_is_named(function, model, got):
    rest = {oc.deploy: [torch.zeros(1, 3, 8, 8)], oc.export: [torch.zeros(1, 3, 8, 8), "x.pt2"]}.get(function, [])
    with pytest.raises(TypeError, match=f"{function.__name__} takes a network, an nn.Module, got {got}"):
        function(model, *rest)


def test_a_failing_forward_leaves_no_hooks():
    model = nn.Sequential(nn.Conv2d(4, 4, 1))
    with pytest.raises(UsageError, match=r"Sequential itself fails on inputs \[1, 3, 8, 8\] "):
        oc.cost(model, input_size=(3, 8, 8))
    assert not model[0]._forward_hooks
    assert model.training


def test_shared_and_idle_layers_count_their_parameters_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.idle = nn.Conv2d(3, 3, 1), nn.Linear(5, 5)

        def forward(self, x):
            return self.shared(input=self.shared(x))

    report = oc.cost(Net(), input_size=4)
    assert report.params == sum(p.numel() for p in Net().parameters())
    assert report.macs == report.counted_macs == 2 * 9 * 16


def test_example_inputs_or_a_size():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 1), nn.Linear(5, 4)

        def forward(self, x, scale, features):
            return self.conv(x) * scale + self.linear(features)[..., None, None]

    report = oc.cost(TwoInputs(), (torch.zeros(2, 3, 7, 5), 2.0, torch.zeros(2, 5)))
    assert report.macs == report.counted_macs == 2 * (3 * 4 * 35 + 5 * 4)
    assert report.input_size == (3, 7, 5)
    conv = nn.Conv2d(3, 4, 1)
    assert oc.cost(conv).input_size == (3, 224, 224)
    conv.pretrained_cfg = {"input_size": (3, 32, 48)}
    assert oc.cost(conv) == oc.cost(conv, torch.zeros(1, 3, 32, 48)) == oc.cost(conv, input_size=(3, 32, 48))
    assert oc.cost(conv, input_size=24).input_size == (3, 24, 24)
    with pytest.raises(ValueError, match="example_inputs or input_size, got both"):
        oc.cost(conv, torch.zeros(1, 3, 4, 4), input_size=4)
    for size in (224, (3, 8, 8)):
        with pytest.raises(ValueError, match=r"a tensor or a tuple with one, got .*: pass a size as input_size="):
            oc.cost(conv, size)


def test_text_and_json():
    report = report_of("oct_resnet18", 0.5, 64)
    text = str(report)
    assert "layer3.0.downsample.0" in text
    assert "total / dense" in text
    data = json.loads(json.dumps(report.to_dict()))
    assert (
        data["total"]["macs"] == report.macs == sum(row["high"]["macs"] + row["low"]["macs"] for row in data["layers"])
    )
    assert data["dense"]["params"] == report.params


@pytest.mark.parametrize("counter", ["total_ops", "__flops__"])
def test_hooks_for_counters_that_go_by_class(counter):
    """thop and ptflops give each module a number of this name, and hook the layers whose exact class they know."""
    net = nn.Sequential(
        oc.OctConv2d(4, 8, 3, 2, 1, alpha_out=0.5), oc.OctConvTranspose2d(8, 4, 2, 2, alpha_in=0.5, alpha_out=0.25)
    )
    for layer in net:
        setattr(layer, counter, 0)
        layer.register_forward_hook(MAC_HOOKS[type(layer)])
    x = torch.zeros(2, 4, 9, 7)
    net(x)
    assert [getattr(layer, counter) for layer in net] == [layer.total.macs for layer in oc.cost(net, x).layers]


def test_every_octave_convolution_has_its_hook():
    classes, found = [OctConvNd], set()
    while classes:
        classes += (subclasses := classes.pop().__subclasses__())
        found |= {cls for cls in subclasses if cls.__module__.startswith("octaveconv.") and cls.__name__[0] != "_"}
    assert found == MAC_HOOKS.keys()
