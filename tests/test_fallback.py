"""The inference form in PyTorch alone: what is folded, the same answer, what happens without a compiler."""

import copy
import os
import pickle
import re

import pytest
import torch
from forks import exit_code_of_a_fork
from networks import ALPHAS, every_block, image, shallow
from torch import nn

import octaveconv as oc
from octaveconv.deploy import fallback as module
from octaveconv.deploy.capture import capture, exported
from octaveconv.deploy.fallback import fallback
from octaveconv.deploy.fold import folded
from octaveconv.errors import BackendUnavailable, UsageError

LIMIT = 1e-5  # of the largest number in the answer
SIZES = [(1, 64, 64), (3, 33, 57)]
FAMILIES = [
    ("oct_resnet18", "merged"),
    ("oct_seresnetv2_50", "reference"),
    ("oct_densenet121", "merged"),
]


def with_statistics(model):
    """Norms that change what they are given, in evaluation mode."""
    for norm in model.modules():
        if isinstance(getattr(norm, "running_mean", None), torch.Tensor):
            norm.running_mean.normal_(std=0.2)
            norm.running_var.uniform_(0.5, 2)
            if norm.weight is not None:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.2)
    return model.eval()


def octave_block(alpha=0.5):
    """Two convolutions with norms, and back to one frequency."""
    layers = [
        oc.OctConv2d(3, 8, 3, padding=1, alpha_out=alpha),
        oc.OctBatchNorm2d(8, alpha=alpha),
        oc.OctMap(nn.ReLU()),
        oc.OctConv2d(8, 8, 3, padding=1, alpha_in=alpha, alpha_out=alpha),
        oc.OctBatchNorm2d(8, alpha=alpha),
        oc.Merge(),
    ]
    return with_statistics(nn.Sequential(*layers))


def assert_same(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert expected.std() > 0
    assert (actual - expected).abs().max() <= LIMIT * expected.abs().max()


def count(graph, *names):
    """How often operations of these names are in a graph."""
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    return [sum(getattr(target, "_opname", "") == name for target in targets) for name in names]


def fold(model, *shape):
    """The folded graph, after comparing what it answers."""
    x = image(*(shape or (2, 3, 9, 11)))
    graph = folded(capture(model, x))
    with torch.no_grad():
        assert_same(graph(x), model(x))
    return graph


@pytest.fixture
def eager(monkeypatch):
    """Without a compiler: the mechanics can be tested in milliseconds."""

    def compile(graph):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", lambda graph: lambda x: compile(graph))


@pytest.mark.parametrize(
    ("make", "form", "norms"),  # those that a sum or a concatenation is given to
    [
        pytest.param(every_block, "merged", 6, marks=pytest.mark.slow),
        pytest.param(every_block, "reference", 6, marks=pytest.mark.slow),
        (octave_block, "reference", 0),
    ],
)
def test_every_block_folded_answers_as_the_block_does(make, form, norms):
    model = with_statistics(make())
    graph = folded(capture(model, image(2, 3, 64, 96), form))
    for batch, height, width in SIZES:
        x = image(batch, 3, height, width)
        with torch.no_grad():
            assert_same(graph(x), model(x))
    assert count(graph, "batch_norm") == [norms]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), FAMILIES)
def test_a_folded_network_answers_as_the_network_does(name, form):
    model = with_statistics(shallow(name, ALPHAS[name][0], tiny=True))
    graph = folded(capture(model, image(2, 3, 64, 96), form))
    for batch, height, width in SIZES:
        x = image(batch, 3, height, width)
        with torch.no_grad():
            assert_same(graph(x), model(x))
    kept, sliced = count(graph, "batch_norm", "slice")
    normed = any(word in name for word in ("resnetv2", "resnextv2", "densenet"))
    assert bool(kept) == normed  # where a sum or a concatenation is normalized
    assert not sliced or "se" in name or name == "oct_resnet18"  # weights are cut beforehand, maps where they must be


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oct_mobilenetv2_100", "oct_resnextv2_50_32x4d"])
def test_other_networks_folded_as_an_export_does(name):
    """At any batch size; `test_export.py` exports networks that together have every operation."""
    model = with_statistics(shallow(name, ALPHAS[name][0], tiny=True))
    graph = folded(exported(model, image(2, 3, 33, 57), (0,), "reference"))
    for batch in (1, 5):
        x = image(batch, 3, 33, 57)
        with torch.no_grad():
            assert_same(graph(x), model(x))


@pytest.mark.slow
def test_residual_sums_upsample_once_and_end_in_a_convolution():
    graph = fold(with_statistics(shallow("oct_resnet26", 0.5, tiny=True)), 2, 3, 64, 64)
    assert count(graph, "batch_norm", "slice", "upsample_nearest2d") == [0, 0, 7]  # of 9: the shortcuts' come for free
    relus = [node.args[0] for node in graph.graph.nodes if node.target is torch.ops.aten.relu.default]
    sums = [node for node in relus if node.target is torch.ops.aten.add.Tensor]
    assert sums
    assert {node.args[0].target for node in sums} == {torch.ops.aten.conv2d.default}


@pytest.mark.parametrize("size", [(12, 10), (9, 11)])
def test_a_network_with_transposed_octave_convolutions_is_captured(size):
    up = oc.OctConvTranspose2d(8, 8, 4, 2, 1, alpha_in=0.5, alpha_out=0.5)
    norm = oc.OctBatchNorm2d(8, alpha=0.5)
    model = nn.Sequential(*octave_block()[:-1], up, norm, oc.Merge())
    fold(with_statistics(model), 2, 3, *size)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_network_with_group_norms_is_captured(groups):
    """A group of both resolutions too, where torch.export asserts the dtype of what it converts."""
    model = nn.Sequential(*octave_block()[:-1], oc.OctGroupNorm(groups, 8, alpha=0.5), oc.Merge())
    fold(with_statistics(model), 2, 3, 12, 10)


@pytest.mark.parametrize("affine", [True, False])
def test_norms_are_folded_into_every_kind_of_convolution(affine):
    norm = nn.BatchNorm2d(6, affine=affine)
    for conv in (nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.Conv2d(3, 6, 3, groups=3, dilation=2)):
        assert count(fold(with_statistics(nn.Sequential(conv, norm))), "batch_norm", "conv2d") == [0, 1]


class Wired(nn.Module):
    """Two convolutions and a norm, connected by a function."""

    def __init__(self, wires):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.wires = wires

    def forward(self, x):
        return self.wires(self, x)


@pytest.mark.parametrize(
    ("wires", "folds"),
    [
        (lambda m, x: m.norm(m.a(x) + m.b(x)), True),
        (lambda m, x: m.norm(m.b(x) + nn.functional.interpolate(m.a(x), scale_factor=2)[..., :9, :11]), False),
        (lambda m, x: m.norm(nn.functional.interpolate(m.a(x), scale_factor=2)), True),
        (lambda m, x: m.norm(y := m.a(x)) + y, False),
        (lambda m, x: (m.norm(s := m.a(x) + m.b(x)), s)[0] * s, False),
        (lambda m, x: m.norm((y := m.a(x)) + y), False),
        (lambda m, x: m.norm(m.a(x).relu()), False),
        (lambda m, x: m.norm(m.a(x) + 1), False),
        (lambda m, x: m.norm(nn.functional.conv2d(x, m.a.weight * x.mean(), m.a.bias)), False),
        (lambda m, x: m.norm(m.a(x)) + m.a(x), True),
        (lambda m, x: m.norm(m.a(x)) + nn.functional.max_pool2d(m.b(x), 3, 1, 1), True),
        (lambda m, x: m.norm(m.b(x)) + m.norm(m.a(x)), True),
        (lambda m, x: m.norm(m.a(x) + m.norm.bias[:, None, None]), True),
        (lambda m, x: m.norm(m.a(x) + m.norm.bias[:, None, None].expand(6, 1, 11)), False),
        (lambda m, x: m.norm(torch.add(m.a(x), m.norm.bias[:, None, None], alpha=2)), False),
        (lambda m, x: m.norm(x.mean((1, 2, 3), keepdim=True) + m.norm.bias[:, None, None]), False),
        (lambda m, x: m.norm((y := m.a(x)) + m.norm.bias[:, None, None]) * y, False),
    ],
)
def test_a_norm_is_folded_only_where_nothing_else_sees_it(wires, folds):
    model = with_statistics(Wired(wires))
    assert bool(count(fold(model), "batch_norm")[0]) is not folds


resized = nn.functional.interpolate


def up(x, size, scale=2.0):
    return torch.ops.aten.upsample_nearest2d(x, list(size), scale, scale)


@pytest.mark.parametrize(
    ("wires", "upsamplings", "convolutions"),
    [
        (lambda m, x: up(m.a(x), (18, 22)) + up(m.b(x), (18, 22)), 1, 2),
        (lambda m, x: up(m.a(x), (17, 21)) + (up(m.b(x), (17, 21)) + up(m.a(x), (17, 21))), 1, 3),
        (lambda m, x: up(m.a(x), (17, 21)) + up(m.b(x), (18, 22))[..., :17, :21], 2, 2),
        (lambda m, x: up(m.a(x), (17, 21)) + up(m.b(x), (17, 21), 3.0), 2, 2),
        (lambda m, x: up(m.a(x), (17, 21)) * (y := up(m.b(x), (17, 21))) + y, 2, 2),
        (lambda m, x: resized(m.a(x), (9, 9)) + resized(m.b(x)[:, :, 1:], (9, 9)), 2, 2),
        (lambda m, x: resized(m.a(x), (5, 9)) + resized(m.b(x), (5, 9)), 1, 2),
        (lambda m, x: (s := m.a(x) + m.b(x)) * (s + x.mean()), 0, 2),
        (lambda m, x: m.a(x) + torch.add(m.b(x), x.mean(), alpha=2), 0, 2),
        (lambda m, x: (m.b(x) + (y := m.a(x))) * y, 0, 2),
        (lambda m, x: (up(m.b(x) + (y := m.a(x)), (18, 22)) + up(m.a(x), (18, 22))).sum() * y, 1, 3),
    ],
)
def test_sums_are_put_in_order(wires, upsamplings, convolutions):
    graph = fold(with_statistics(Wired(wires)))
    assert count(graph, "upsample_nearest2d", "conv2d") == [upsamplings, convolutions]


def test_the_graph_keeps_several_outputs():
    model = with_statistics(Wired(lambda m, x: {"a": m.norm(m.a(x)), "b": (m.b(x), x)}))
    graph = folded(capture(model, image(1, 3, 9, 9)))
    x = image(3, 3, 12, 7)
    with torch.no_grad():
        actual, expected = graph(x), model(x)
    assert_same(actual["a"], expected["a"])
    assert_same(actual["b"][0], expected["b"][0])
    assert actual["b"][1] is x


@pytest.mark.usefixtures("eager")
def test_without_a_compiler_it_runs_eagerly_and_says_so():
    model = octave_block()
    deployed = fallback(model, image(1, 3, 16, 16))
    assert (deployed.engine, deployed.reason) == ("eager", "no compiler here")
    for batch, height, width in (*SIZES, (2, 7, 5)):
        x = image(batch, 3, height, width)
        assert_same(deployed(x), model(x).detach())
    assert len(deployed._graphs) <= 2


@pytest.mark.usefixtures("eager")
def test_an_octave_may_lack_a_part():
    model = oc.OctConv2d(3, 4, 1).eval()
    high, low = fallback(model, image(1, 3, 8, 8))(image(2, 3, 8, 8))
    assert_same(high, model(image(2, 3, 8, 8)).high.detach())
    assert low is None


@pytest.mark.usefixtures("eager")
def test_the_network_is_not_changed_and_taken_in_evaluation_mode():
    model = octave_block()
    expected = model(image(2, 3, 9, 9)).detach()
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    deployed = fallback(model, image(1, 3, 8, 8))
    actual = deployed(image(2, 3, 9, 9))
    assert_same(actual, expected)
    assert not actual.requires_grad
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not list(deployed.parameters())
    expected = model.eval()(image(2, 3, 1, 1)).detach()
    with torch.no_grad():
        model[0].weight.zero_()
    assert_same(deployed(image(2, 3, 1, 1)), expected)  # its weights are its own, also where it is captured anew
    assert len(deployed._graphs) == 2


class Branch(nn.Module):
    """What it computes depends on the size, so a captured graph is not for every size."""

    def forward(self, x):
        return x + 1 if x.shape[-1] > 20 else x * 2


@pytest.mark.usefixtures("eager")
def test_a_size_that_the_graph_does_not_cover_is_captured_anew():
    deployed = fallback(Branch(), image(1, 3, 8, 8))
    for size in (8, 9, 30, 31, 10, 40):
        x = image(2, 3, size, size)
        assert_same(deployed(x), Branch()(x))
    assert len(deployed._graphs) == 2


@pytest.mark.usefixtures("eager")
def test_other_dtypes_and_layouts():
    model = octave_block().bfloat16()
    x = image(2, 3, 9, 11).bfloat16()
    expected = model(x).detach()
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        actual = fallback(model, given)(given)
        assert actual.dtype == torch.bfloat16
        assert (actual - expected).abs().max() <= 0.05 * expected.abs().max()


def test_a_network_that_cannot_be_captured_runs_as_it_is_and_says_why():
    model = Wired(lambda m, x: m.a(x) if x.sum() > 0 else m.b(x)).eval()
    deployed = oc.deploy(model, image(1, 3, 8, 8))
    assert deployed.engine == "eager"
    assert re.search(r"data-dependent|Could not guard", deployed.reason)
    for x in (torch.ones(2, 3, 8, 8), -torch.ones(1, 3, 9, 9)):
        assert_same(deployed(x), model(x).detach())


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 4, 8, 8)])
def test_series_and_volumes_are_refused(shape):
    with pytest.raises(UsageError, match=r"deploy takes images \[N, C, H, W\], got an example of shape \[2, 3, "):
        oc.deploy(octave_block(), torch.ones(shape))


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ((), r"got \(\)"),
        ((torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)), r"got \(Tensor, Tensor\)"),
        ([torch.ones(1, 3, 8, 8)], "got list"),
        ({"x": torch.ones(1, 3, 8, 8)}, "got dict"),
        (((1, 3, 8, 8),), r"got \(tuple\)"),
        (None, "got NoneType"),
    ],
)
@pytest.mark.parametrize("function", [oc.deploy, fallback])
def test_example_inputs_that_are_not_one_tensor_are_refused(function, given, got):
    with pytest.raises(UsageError, match=f"example_inputs must be one tensor .* a tuple of one, {got}: a network"):
        function(octave_block(), given)


@pytest.mark.usefixtures("eager")
def test_a_tuple_of_one_example_is_taken():
    model, x = octave_block(), image(1, 3, 8, 8)
    assert_same(fallback(model, (x,))(x), model(x).detach())
    assert oc.deploy(model, (x,), engine="inductor").engine == "eager"


def test_compiled():
    model = octave_block()
    deployed = fallback(model, image(1, 3, 16, 16))
    assert (deployed.engine, deployed.reason) == ("inductor", "")
    for batch, height, width in ((1, 16, 16), (2, 33, 57)):
        x = image(batch, 3, height, width)
        assert_same(deployed(x), model(x).detach())
        with torch.inference_mode():
            assert_same(deployed(x.clone()), model(x))


def test_a_compiler_that_does_not_exist(monkeypatch, tmp_path):
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, x = octave_block(), image(1, 3, 12, 12)
    with module._inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        deployed = fallback(model, x)
    assert deployed.engine == "eager"
    assert "compiler" in deployed.reason
    assert_same(deployed(x), model(x).detach())


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda deployed: pickle.loads(pickle.dumps(deployed))])
@pytest.mark.usefixtures("eager")
def test_a_copy_runs_the_folded_graph_too(twin):
    model = octave_block()
    copied = twin(fallback(model, image(1, 3, 16, 16)))
    assert_same(copied(image(2, 3, 16, 16)), model(image(2, 3, 16, 16)).detach())
    assert (copied.engine, copied.reason, len(copied._graphs)) == ("eager", "no compiler here", 1)


def strided(m, x):
    y = m.a(x)
    return y.as_strided(y.shape, (y[0].numel(), y[0, 0].numel(), y.shape[3], 1)) * y


@pytest.mark.parametrize(
    "wires",
    [
        lambda m, x: m.a(x).view(x.shape[0], -1),
        lambda m, x: m.a(x).view(x.shape[0], -1, 2, x.shape[3]).transpose(1, 2),
        strided,
    ],
)
@pytest.mark.usefixtures("eager")
def test_views_of_the_layout_that_was_captured(wires):
    model = with_statistics(Wired(wires))
    deployed = fallback(model, image(2, 3, 8, 10))
    for shape in ((2, 3, 8, 10), (3, 3, 8, 6), (1, 3, 8, 10)):
        assert_same(deployed(image(*shape)), model(image(*shape)).detach())
    assert deployed.reason == "no compiler here"


@pytest.mark.usefixtures("eager")
def test_a_size_that_cannot_be_captured_runs_as_it_is_and_is_tried_once(monkeypatch):
    """In the layout that it is given, which the network may count on."""
    model = with_statistics(Wired(lambda m, x: m.a(x).view(len(x), -1)))
    deployed = fallback(model, image(2, 3, 8, 8))
    tried = []

    def refuse(shape):
        tried.append(shape)
        raise BackendUnavailable("not this one")

    monkeypatch.setattr(deployed._captures, "of", refuse)
    for _ in range(2):
        assert_same(deployed(image(2, 3, 9, 9)), model(image(2, 3, 9, 9)).detach())
    assert len(tried) == 1


def test_without_any_compiler_nothing_is_left_to_inductor(monkeypatch):
    monkeypatch.setattr(module, "get_cpp_compiler", lambda: (_ for _ in ()).throw(RuntimeError("no compiler here")))
    monkeypatch.setattr(torch, "compile", lambda graph: pytest.fail)
    model = octave_block()
    deployed = fallback(model, image(1, 3, 16, 16))
    assert (deployed.engine, deployed.reason) == ("eager", "no compiler here")
    assert_same(deployed(image(2, 3, 9, 9)), model(image(2, 3, 9, 9)).detach())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_runs_the_graph_eagerly(monkeypatch, threads):
    """With one thread: it has none of those that its parent's PyTorch has started."""
    threads(2)
    monkeypatch.setattr(torch, "compile", lambda graph: graph)
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Softmax(1)).eval(), image(4, 3, 64, 64)
    deployed = oc.deploy(model, x, engine="inductor")
    expected = deployed(x)

    def right():
        found = deployed(x)
        torch.set_num_threads(1)  # for the comparison, in a child
        return torch.equal(found, expected)

    assert exit_code_of_a_fork(right) == 0
    assert [part.engine for part in deployed.report] == ["inductor"]
