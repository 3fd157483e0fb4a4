"""The native engine in bfloat16: exact where the numbers are whole, and else as near to float32 as eager PyTorch."""

import copy

import pytest
import torch
from graphs import CONVOLUTIONS, GRAPHS, Net, captured_graph
from networks import few_layers, image, settle
from torch import nn
from torch.utils._pytree import tree_leaves

import octaveconv as oc
from octaveconv.deploy.native import library
from octaveconv.deploy.native.engine import NativeNetwork

BFLOAT16 = torch.bfloat16
pytestmark = pytest.mark.usefixtures("quickly")


@pytest.fixture(params=["native", "avx2"])
def target(request, lightly_optimized):
    if request.param not in ("native", *library.runnable(BFLOAT16)[1:]):
        pytest.skip(f"this CPU has no {request.param}, or that is its native one")
    return request.param


def whole(*shape):
    """Small whole numbers, of which sums are exact."""
    return torch.randint(-1, 2, shape).float()


def check_exactly(model, target, *xs):
    """Maps inside must be exact in bfloat16: up to 256, or a quarter of that once pooled. The output may be larger."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data = whole(*parameter.shape)
    deployed = NativeNetwork(copy.deepcopy(model).eval().to(BFLOAT16), xs[0].to(BFLOAT16), target)
    for x in xs:
        with torch.no_grad():
            expected = tree_leaves(model.double()(x.double()))
        for actual, y in zip(tree_leaves(deployed(x.to(BFLOAT16))), expected, strict=True):
            assert torch.equal(actual, y.to(BFLOAT16))


def on_every_target(names, kinds, on_both):
    """Every kind on the native instruction set, and some on another one; there the others are slow."""
    others = [pytest.param(*kind, "avx2", marks=[pytest.mark.slow] * (kind not in on_both)) for kind in kinds]
    cases = [(*kind, "native") for kind in kinds] + others
    return pytest.mark.parametrize((*names, "target"), cases, indirect=["target"])


@on_every_target(
    ("inputs", "outputs", "groups"),
    [(3, 5, 1), (16, 64, 1), (24, 24, 24), (36, 12, 4), (64, 100, 2), (67, 48, 1)],
    on_both=[(24, 24, 24), (67, 48, 1)],
)
def test_convolutions(inputs, outputs, groups, target):
    """All kinds side by side, in one network that is captured once."""
    kinds = [nn.Conv2d(inputs, outputs, groups=groups, **arguments) for arguments in CONVOLUTIONS]
    model = Net(
        lambda m, x: [kind(m.a(x)) for kind in m.kinds], a=nn.Conv2d(inputs, inputs, 1), kinds=nn.ModuleList(kinds)
    )
    check_exactly(model, target, whole(2, inputs, 13, 16), whole(1, inputs, 11, 9))


@on_every_target(
    ("alpha_in", "alpha_out", "kernel", "stride"),
    [(*alphas, *window) for window in [(1, 1), (3, 1), (3, 2)] for alphas in [(0, 0.5), (0.5, 0), (0.3, 0.6)]],
    on_both=[(0.3, 0.6, 3, 1), (0.3, 0.6, 3, 2)],
)
def test_octave_convolutions(alpha_in, alpha_out, kernel, stride, target):
    """With more than one staging area of pixels, and more than one panel."""
    model = nn.Sequential(
        oc.OctConv2d(3, 23, 1, alpha_out=alpha_in),
        oc.OctConv2d(23, 70, kernel, stride, kernel // 2, alpha_in=alpha_in, alpha_out=alpha_out),
        oc.Merge(),
    )
    check_exactly(model, target, whole(1, 3, 75, 74), whole(3, 3, 12, 11))


def errors(model, x, target="native"):
    """How far the engine and eager PyTorch are from float64, as a share of the largest output."""
    half = copy.deepcopy(model).to(BFLOAT16)
    with torch.no_grad():
        exact = copy.deepcopy(half).double()(x.to(BFLOAT16).double())
        eager = half(x.to(BFLOAT16))
    got = NativeNetwork(half, x.to(BFLOAT16), target)(x.to(BFLOAT16))
    assert got.dtype == BFLOAT16
    return [((y.double() - exact).abs().max() / exact.abs().max()).item() for y in (got, eager)]


@pytest.mark.slow
def test_every_block(blocks, captured_as):
    model, captures = blocks
    captured_as(captures)
    got, eager = errors(model, image(2, 3, 65, 49))
    assert got <= 1.5 * eager + 0.002


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name, captured_as):
    (model, captures), x = captured_graph(name), image(2, 8, 12, 11)
    captured_as(captures)
    deployed = NativeNetwork(copy.deepcopy(model).to(BFLOAT16), x.to(BFLOAT16))
    with torch.no_grad():
        expected = tree_leaves(model(x))
    for y, z in zip(tree_leaves(deployed(x.to(BFLOAT16))), expected):
        assert (y.float() - z).abs().max() <= 0.03 * z.abs().max()


def test_threads_do_not_change_a_bit(threads):
    model = settle(few_layers()).to(BFLOAT16)
    x = image(5, 3, 49, 63).to(BFLOAT16)
    deployed = NativeNetwork(model, x)
    outputs = []
    for count in (1, 2, 3):
        threads(count)
        outputs.append(deployed(x))
    assert all(torch.equal(outputs[0], y) for y in outputs)


def test_a_nan_comes_out_where_it_went_in():
    model = nn.Sequential(nn.Conv2d(3, 33, 3, padding=1), nn.ReLU(), nn.Conv2d(33, 40, 1)).to(BFLOAT16)
    x = image(1, 3, 20, 20).to(BFLOAT16)
    x[0, 1, 9, 9] = float("nan")
    found = NativeNetwork(model, x)(x).isnan()
    assert found[..., 8:11, 8:11].all()
    assert found.sum() == 9 * 40


@pytest.mark.parametrize("kernel", [1, 3])
def test_an_odd_channel_does_not_meet_its_neighbour(kernel, target):
    """Channels are multiplied in pairs, and beside the last one of an odd number lies another map's first one."""

    def forward(net, x):
        odd, infinite = net.a(x), net.b(x)
        return net.c(odd), net.grouped(torch.cat([odd, infinite], 1))

    a, b = nn.Conv2d(3, 33, 1), nn.Conv2d(3, 31, 1)
    nn.init.constant_(b.bias, float("inf"))
    grouped = nn.Conv2d(64, 8, 1, groups=2)  # which wants both in one map
    net = Net(forward, a=a, b=b, c=nn.Conv2d(33, 20, kernel), grouped=grouped).to(BFLOAT16)
    deployed = NativeNetwork(net, torch.ones(1, 3, 8, 8, dtype=BFLOAT16), target)
    finite, other = deployed(torch.ones(1, 3, 8, 8, dtype=BFLOAT16))
    assert finite.isfinite().all()
    assert not other[:, 4:].isfinite().any()


def test_another_dtype_is_refused():
    model = nn.Conv2d(3, 4, 1).to(BFLOAT16)
    deployed = oc.deploy(model, image(1, 3, 8, 8).to(BFLOAT16))
    assert deployed.engine == "native"
    with pytest.raises(ValueError, match=r"takes torch.bfloat16 images .* got torch.float32"):
        deployed(image(1, 3, 8, 8))
    with pytest.raises(oc.BackendUnavailable, match="float32 and bfloat16 on the CPU, not"):
        oc.deploy(model.half(), image(1, 3, 8, 8).half(), engine="native")
