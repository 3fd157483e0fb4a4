"""`oc.deploy` computes what eager PyTorch computes, or says why not natively: one unusual operation each."""

import copy
import pickle
import random
import re

import pytest
import torch
import torch.nn.functional as F
from fuzz_deploy import answer, difference, quick_captures, shapes
from graphs import Wired, agree, kept_half
from random_networks import RandomNetwork
from timm.layers import Conv2dSame
from torch import nn

import octaveconv as oc
from octaveconv.deploy.capture import Captures
from octaveconv.deploy.fallback import Fallback
from octaveconv.deploy.fold import folded
from octaveconv.deploy.native.engine import NativeNetwork

pytestmark = pytest.mark.usefixtures("quickly")
SHAPES = ((2, 3, 24, 26), (1, 3, 24, 26), (5, 3, 24, 26), (2, 3, 37, 45), (3, 3, 26, 24))


def piece_in_place(m, x):
    y = m.conv(x)
    y.chunk(2, 1)[0].relu_()
    return y


def counts_calls(m, x):
    m.calls.add_(1)
    return m.conv(x) * m.calls


def changes_input(m, x):
    return m.conv(x.relu_())


def backwards(m, y):
    return F.conv_transpose2d(y, m.conv.weight)


def shuffled(m, x):
    y = m.conv(x)
    return m.mix(y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)) + y


NATIVE = {
    "other outputs": lambda m, x: {
        "a": m.conv(x),
        "b": x.shape[2],
        "c": None,
        "d": m.vector,
        "e": (x.shape[3] // 2, 1.5),
    },
    "a linear layer over pixels": (
        lambda m, x: m.pixels(F.gelu(m.conv(x).permute(0, 2, 3, 1) * m.vector)).permute(0, 3, 1, 2) - m.scale[:5]
    ),
    "constant - x": lambda m, x: m.scale - m.conv(x),
    "constant - 2 x": lambda m, x: torch.sub(m.scale, m.conv(x), alpha=2),
    "constant + 2 x": lambda m, x: torch.add(m.scale, m.conv(x), alpha=2),
    "1 - x": lambda m, x: 1 - m.conv(x),
    "x - 3 y": lambda m, x: torch.sub(m.conv(x), m.mix(m.conv(x)), alpha=3),
    "a view, then in place": lambda m, x: kept_half(m.conv(x)),
    "by batch size": lambda m, x: m.conv(x) * (2.0 if x.shape[0] == 1 else 1.0),
    "by image size": lambda m, x: m.conv(x) * (2.0 if x.shape[2] > 30 else 1.0),
    "a vector and a vector": lambda m, x: m.conv(x).mean((2, 3)) * m.vector + m.vector,
    "a dict and a list": lambda m, x: {"a": m.conv(x), "b": [m.mix(m.conv(x)), x]},
}
MIXED = {  # of native stretches and others, and what these have to do
    "a slice by size": (lambda m, x: m.conv(x)[:, :, : x.shape[2] // 2], "depends on the size of the input"),
    "a slice by size, pooled": (lambda m, x: m.conv(x)[:, :, : x.shape[2] // 2].mean((2, 3)), "depends on the size"),
    "a product with a size": (lambda m, x: m.mix(m.conv(x) * (x.shape[2] / x.shape[3]) ** 0.5), "depends on the size"),
    "a constant along the width": (lambda m, x: m.conv(x[..., :24]) * m.linear.bias[:24], "constant of shape|slice"),
    "a piece in place": (piece_in_place, "slice_scatter"),
    "one channel times a constant": (lambda m, x: m.mix(m.conv(x)[:, :1] * m.scale), "different shapes"),
    "channel shuffle": (shuffled, "transpose"),
    "a view": (lambda m, x: m.conv(x).permute(0, 2, 3, 1).reshape(-1, 8).view(-1, 2).softmax(1), "view|reshape"),
    "a view of a map": (lambda m, x: m.conv(x).view(len(x), -1).flip(1), "view"),
    "batch and channels": (lambda m, x: m.conv(x.flatten(0, 1).unflatten(0, x.shape[:2])).softmax(1), "softmax"),
    "maps that are both smaller": (lambda m, x: (y := m.conv(x)).amax(2, True) * y.amax(3, True), "amax"),
    "a linear layer over tokens": (
        lambda m, x: m.pixels(F.layer_norm(m.conv(x).flatten(2).mT, (8,)).relu() + m.vector).mean(1),
        "layer_norm",
    ),
    "attention": (lambda m, x: F.scaled_dot_product_attention(*[m.conv(x).flatten(2).mT[:, :9]] * 3), "dot_product"),
    "a result that is its argument": (lambda m, x: {"a": (y := m.conv(x)).flip(3), "b": x, "c": [x[:, :1], y]}, "flip"),
}
REFUSED = {  # and the reason
    "most of it in PyTorch": (lambda m, x: backwards(m, m.conv(x)) + backwards(m, -m.conv(x)), "run most"),
    "counts its calls": (counts_calls, "changes its own buffer 'calls'"),
    "changes its input": (changes_input, "changes its input"),
    "dropout in evaluation": (lambda m, x: F.dropout(m.conv(x), 0.5, training=True), "draws random numbers"),
    "noise": (lambda m, x: m.conv(x) + torch.randn(1), "draws random numbers"),
    "a size by values": (
        lambda m, x: m.conv(x)[(x.mean((1, 2, 3)) > 0).nonzero()[:, 0]],
        "cannot capture|depends on the v",
    ),
}
RANDOM_RESULT = ("dropout in evaluation", "noise", "counts its calls")


@pytest.mark.parametrize("name", NATIVE)
def test_the_native_engine_answers_as_eager_pytorch_does(name):
    model = Wired(NATIVE[name]).eval()
    deployed = NativeNetwork(model, torch.randn(SHAPES[0]))
    assert [part.engine for part in deployed.report] == ["native"]
    agree(model, deployed, SHAPES)


@pytest.mark.parametrize("name", MIXED)
def test_pytorch_runs_what_the_engine_does_not_know(name):
    wires, reason = MIXED[name]
    model = Wired(wires).eval()
    deployed = NativeNetwork(model, torch.randn(SHAPES[0]))
    assert {part.engine for part in deployed.report} == {"native", "eager"}
    assert re.search(reason, str(deployed.report))
    agree(model, deployed, SHAPES)


def test_a_network_of_both_kinds_in_bfloat16_keeps_its_dtypes():
    model = Wired(lambda m, x: (y := m.conv(x), shuffled(m, x), y.argmax(1), y.softmax(1))).eval()
    x = torch.randn(2, 3, 24, 26)
    expected, found = model(x), NativeNetwork(model.bfloat16(), x.bfloat16())(x.bfloat16())
    assert [y.dtype for y in found] == [torch.bfloat16, torch.bfloat16, torch.int64, torch.bfloat16]
    for y, z in zip(found, expected):
        if y.is_floating_point():
            torch.testing.assert_close(y.float(), z, rtol=0.05, atol=0.02)


def test_a_network_of_both_kinds_is_copied_and_pickled_but_not_saved(tmp_path):
    model = Wired(shuffled).eval()
    deployed, x = NativeNetwork(model, torch.randn(SHAPES[0])), torch.randn(SHAPES[-1])
    for twin in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(twin(x), deployed(x))
        assert len(twin.report) == 3
    with pytest.raises(oc.UsageError, match=r"PyTorch runs a part: aten\.unflatten"):
        deployed.save(tmp_path / "net.octave")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinity_stays_in_its_group(dtype):
    """Between groups the engine has zeros, and zero times infinity is not zero."""
    model = nn.Sequential(nn.Conv2d(20, 10, 3, groups=5), nn.ReLU(), nn.Conv2d(10, 10, 1, groups=2)).to(dtype).eval()
    x = torch.randn(2, 20, 9, 9).to(dtype)
    deployed = NativeNetwork(model, x)
    for value in (torch.inf, -torch.inf, torch.nan):
        x[1, 6, 4, 4] = value
        expected, found = model(x), deployed(x)
        assert 0 < (~expected.isfinite()).sum() < expected.numel() / 3
        assert torch.equal(found.isfinite(), expected.isfinite())


@pytest.mark.parametrize("name", REFUSED)
def test_the_native_engine_refuses_and_the_fallback_answers(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph: graph)  # Inductor itself is not what is tested
    wires, reason = REFUSED[name]
    model = Wired(wires).eval()
    with pytest.raises(oc.BackendUnavailable, match=reason):
        NativeNetwork(model, torch.randn(SHAPES[0]))
    deployed = oc.deploy(model, torch.randn(SHAPES[0]))
    assert isinstance(deployed, Fallback)
    assert deployed.reason.startswith("not the native engine: ")
    for shape in SHAPES if name not in RANDOM_RESULT else ():
        x = torch.randn(shape)
        assert not difference(answer(model, x.clone()), answer(deployed, x)), shape


def test_a_network_that_draws_random_numbers_still_draws_them():
    deployed = oc.deploy(Wired(REFUSED["dropout in evaluation"][0]).eval(), torch.randn(SHAPES[0]))
    x = torch.randn(SHAPES[0])
    assert not torch.equal(deployed(x), deployed(x))


def test_a_network_that_counts_its_calls_still_counts_them():
    model = Wired(counts_calls).eval()
    deployed, x = oc.deploy(model, torch.randn(SHAPES[0])), torch.randn(SHAPES[0])
    first, second = deployed(x), deployed(x)
    torch.testing.assert_close(second, first * 2)
    assert first.any()
    assert not model.calls


@pytest.mark.parametrize("size", [310, 641])
def test_large_maps(size):
    """Beyond 2^31 for the product of pixels and runs."""
    model = Wired(lambda m, x: m.conv(x)).eval()
    deployed, x = NativeNetwork(model, torch.randn(1, 3, 32, 32)), torch.randn(1, 3, size, size)
    assert not difference(answer(model, x), answer(deployed, x))


SLOWLY = [pytest.param(first, marks=pytest.mark.slow) for first in range(20, 200, 20)]


@pytest.mark.parametrize("first", [0, *SLOWLY])
def test_random_networks(first):
    """Short ones, all 200 in CI; ``python experiments/fuzz_deploy.py`` tries thousands, and longer ones."""
    with quick_captures():
        for seed in range(first, first + 20):
            compare(RandomNetwork(seed, 1 + seed % 3), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_longer_random_networks(seed):
    compare(RandomNetwork(seed), seed)


def compare(network, seed):
    try:
        deployed = NativeNetwork(network, network.example)
    except oc.BackendUnavailable:
        return
    agree(network, deployed, shapes(network, random.Random(seed)))


def test_sizes_that_grow_with_each_layer_are_taken_as_they_are():
    """TensorFlow's padding: the capture of four such layers did not end."""
    model = nn.Sequential(*(Conv2dSame(3, 3, 3, 2) for _ in range(4)))
    captures = Captures(model)
    for shape in ((1, 3, 40, 37), (2, 3, 33, 40)):
        captured, _ = captures.of(torch.Size(shape))
        graph, x = folded(captured), torch.randn(shape)
        torch.testing.assert_close(graph(x), model(x).detach(), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in captures.model.modules())
