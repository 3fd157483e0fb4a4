"""What operators and functions of PyTorch do with an octave."""

import copy
import operator
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import random_octave
from torch import nn

import octaveconv as oc

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv]
INPLACE = [operator.iadd, operator.isub, operator.imul, operator.itruediv]


def same(actual, high, low):
    assert type(actual) is oc.Octave
    assert torch.equal(actual.high, high)
    assert torch.equal(actual.low, low)


@pytest.mark.parametrize("size", [(5,), (5, 6), (2, 5, 3)])
@pytest.mark.parametrize("op", OPERATORS)
def test_operators_act_part_by_part(op, size):
    x, y = random_octave(8, 0.25, size), random_octave(8, 0.25, size)
    same(op(x, y), op(x.high, y.high), op(x.low, y.low))
    same(op(x, tuple(y)), op(x.high, y.high), op(x.low, y.low))
    same(op(tuple(x), y), op(x.high, y.high), op(x.low, y.low))
    for number in (2, 0.5, np.float32(1.5), np.float64(1.5), np.int64(3), torch.tensor(0.3), torch.ones(1)):
        same(op(x, number), op(x.high, number), op(x.low, number))
        same(op(number, x), op(number, x.high), op(number, x.low))
    ones = (1,) * len(size)
    for shape in ((8, *ones), (1, 8, *ones), (2, 8, *ones)):
        gates = torch.rand(shape) + 0.5
        high, low = gates.split([6, 2], -1 - len(size))
        same(op(x, gates), op(x.high, high), op(x.low, low))
        same(op(gates, x), op(high, x.high), op(low, x.low))
    per_image = torch.rand(2, 1, *ones) + 0.5
    same(op(x, per_image), op(x.high, per_image), op(x.low, per_image))
    gates = oc.Octave(torch.rand(2, 6, *ones) + 0.5, torch.rand(2, 2, *ones) + 0.5)
    same(op(x, gates), op(x.high, gates.high), op(x.low, gates.low))


@pytest.mark.parametrize(("inplace", "op"), [*zip(INPLACE, OPERATORS)])
def test_in_place_forms_make_a_new_octave(inplace, op):
    x = random_octave(8, 0.25, (5, 5))
    before = x.clone()
    same(inplace(x, x), op(before.high, before.high), op(before.low, before.low))
    same(inplace(x, 2), op(before.high, 2), op(before.low, 2))
    same(inplace(torch.tensor(2.0), x), op(2, before.high), op(2, before.low))
    same(x, before.high, before.low)


def test_sums_signs_and_powers():
    x = random_octave(8, 0.25, (5, 5))
    same(sum([x, x, x]), x.high + x.high + x.high, x.low + x.low + x.low)
    same(-x, -x.high, -x.low)
    same(x**2, x.high**2, x.low**2)
    same(x - x, x.high * 0, x.low * 0)


def test_a_learned_scale_gets_its_gradient():
    x, scale, gates = random_octave(8, 0.25, (4, 4)), nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(8, 1, 1))
    y = x * scale * gates
    (y.high.sum() + y.low.sum()).backward()
    assert torch.allclose(scale.grad, x.high.sum() + x.low.sum())
    assert torch.allclose(gates.grad.flatten(), torch.cat([x.high.sum((0, 2, 3)), x.low.sum((0, 2, 3))]))


def test_one_part_is_a_map_like_any_other():
    high, low = oc.Octave(torch.rand(2, 4, 5, 5)), oc.Octave(None, torch.rand(2, 4, 5, 5))
    whole, gates = torch.rand(2, 4, 5, 5), torch.rand(4, 1, 1)
    assert torch.equal((high + whole).high, high.high + whole)
    assert torch.equal((whole - high).high, whole - high.high)
    assert torch.equal((low * gates).low, low.low * gates)
    assert (low * 2).high is None
    assert (2 * high).low is None
    with pytest.raises(TypeError, match=r"octaveconv.Split\(channels, alpha\)"):
        low + whole


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (torch.ones(2, 8, 4, 4), TypeError, r"tensor \[2, 8, 4, 4\] has no low part .*Split\(channels, alpha\)"),
        (torch.ones(2, 1, 4, 4), TypeError, r"octaveconv.Octave\(high, low\) of its own two resolutions"),
        (torch.ones(8), TypeError, r"a number for each channel is \[C, 1, 1\]"),
        (torch.ones(1, 2, 8, 1, 1), TypeError, "has no low part"),
        (torch.ones(1, 6, 1, 1), ValueError, "does not fit an Octave of 6 high and 2 low channels"),
        (np.ones(3), TypeError, "arithmetic of an Octave with ndarray is not defined"),
        ([1], TypeError, "with list is not defined"),
        ((1, 2), TypeError, "with tuple is not defined"),
        (None, TypeError, "with NoneType is not defined"),
        ("a", TypeError, "with str is not defined"),
        ((torch.ones(1), None), ValueError, "without a low part"),
        (oc.Octave(torch.ones(1)), ValueError, "without a low part"),
        (oc.Octave(None, torch.ones(1)), ValueError, "without a high part"),
    ],
)
@pytest.mark.parametrize("op", OPERATORS)
def test_what_is_ambiguous_is_refused_with_the_cure(op, other, error, message):
    x = random_octave(8, 0.25, (4, 4))
    with pytest.raises(error, match=message):
        op(x, other)
    with pytest.raises(error, match=message):
        op(other, x)


@pytest.mark.parametrize(
    "module",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(),
     nn.LeakyReLU(), nn.ELU(), nn.Softplus(), nn.Sigmoid(), nn.Tanh(), nn.Hardtanh(), nn.Dropout(0.0), nn.Softsign(),
     nn.LogSigmoid(), nn.Hardshrink(), nn.Threshold(0.1, 0.2), nn.Identity()],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_activations_act_on_both_parts(module):
    x = random_octave(8, 0.25, (4, 4))
    copied = x.clone()
    same(module(x), module(copied.high), module(copied.low))


def test_functions_act_on_both_parts():
    x = random_octave(8, 0.25, (4, 4))
    same(F.relu(x), x.high.relu(), x.low.relu())
    same(F.relu(input=x), x.high.relu(), x.low.relu())
    same(torch.clamp(x, min=0.0, max=0.5), x.high.clamp(0, 0.5), x.low.clamp(0, 0.5))
    same(torch.add(x, x, alpha=2), x.high + 2 * x.high, x.low + 2 * x.low)
    same(torch.mul(torch.tensor(2.0), x), 2 * x.high, 2 * x.low)
    same(torch.cat([x, x], 1), *oc.octave_cat(x, x))
    same(torch.cat(tensors=(x, x), dim=-3), *oc.octave_cat(x, x))
    assert (F.relu(oc.Octave(x.high))).low is None


@pytest.mark.parametrize(
    ("call", "way"),
    [
        (nn.BatchNorm2d(8), "OctBatchNorm2d"),
        (nn.GroupNorm(2, 8), "OctGroupNorm"),
        (lambda x: F.instance_norm(x), "OctGroupNorm with one group per channel"),
        (nn.Conv2d(8, 8, 1), "OctConv2d"),
        (nn.ConvTranspose2d(8, 8, 1), "OctConvTranspose2d"),
        (nn.MaxPool2d(2), r"OctMap\(nn.MaxPool2d"),
        (nn.AdaptiveAvgPool2d(1), r"Merge\(\) before it"),
        (nn.PReLU(8), r"OctMap\(nn.PReLU\(channels\)\)"),
        (nn.Linear(8, 8), r"Merge\(\)"),
        (nn.Flatten(), r"Merge\(\)"),
        (nn.Upsample(scale_factor=2), "octave_map with a scale_factor"),
        (lambda x: torch.cat([x, x]), r"octave_cat, which joins channels \(dim=1\)"),
        (lambda x: torch.stack([x, x]), r"octave_map\(fn, y\)"),
        (lambda x: torch.clamp(x, x), r"octave_map\(fn, y\)"),
        (lambda x: F.softmax(x, 1), r"octave_map\(fn, y\)"),
        (lambda x: torch.add(x, 1, out=torch.empty(0)), r"octave_map\(fn, y\)"),
        (lambda x: torch.ones(2, 8, 4, 4).add_(x), r"octave_map\(fn, y\)"),
    ],
)  # fmt: skip
def test_other_functions_are_refused_with_the_way(call, way):
    with pytest.raises((TypeError, AttributeError), match=way):
        call(random_octave(8, 0.25, (4, 4)))


@pytest.mark.parametrize("name", ["shape", "size", "view", "mean", "backward"])
def test_attributes_of_tensors_are_refused_with_the_way(name):
    x = random_octave(8, 0.25, (4, 4))
    way = r"y\.high\.shape and y\.low\.shape" if name in ("shape", "size") else "octave_map"
    with pytest.raises(AttributeError, match=way):
        getattr(x, name)
    with pytest.raises(AttributeError, match=r"no attribute 'hihg'$"):
        x.hihg  # noqa: B018


def test_what_both_parts_have():
    x = random_octave(8, 0.25, (4, 4), requires_grad=True)
    assert x.dtype == torch.float32
    assert x.device.type == "cpu"
    assert x.dim() == 4
    assert x.requires_grad
    assert not x.detach().requires_grad
    assert x.to(torch.float64).low.dtype == torch.float64
    assert x.to(memory_format=torch.channels_last).high.is_contiguous(memory_format=torch.channels_last)
    same(x.cpu().contiguous().clone(), x.high, x.low)
    assert oc.Octave(None, x.low).cpu().high is None


def test_copies_and_pickles_are_octaves():
    x = random_octave(8, 0.25, (4, 4))
    for twin in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        same(twin, x.high, x.low)


def test_gradients_of_an_octave():
    x = random_octave(8, 0.25, (4, 4), requires_grad=True)
    y = x * 2
    high, low = torch.autograd.grad(y, x, grad_outputs=y.detach())
    assert torch.equal(high, 2 * y.high)
    assert torch.equal(low, 2 * y.low)
    torch.autograd.backward(x * 3, grad_tensors=x.detach())
    assert torch.equal(x.low.grad, 3 * x.low)


class Uses(nn.Module):
    """All that a network may do with octaves."""

    def __init__(self):
        super().__init__()
        self.conv = oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.25)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.1)
        self.scale, self.gates = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.rand(1, 8, 1, 1))
        self.out = oc.OctConv2d(16, 4, 1, alpha_in=oc.ChannelSplit(6, 2).then(oc.ChannelSplit(6, 2)))

    def forward(self, x):
        y = self.act(self.conv(x))
        y = 0.2 * y - y / 2 + self.scale * y * self.gates
        y *= self.scale
        y = self.scale - sum([-y, F.gelu(self.drop(y)), y.detach()])
        return self.out(torch.cat([y - self.scale, torch.tanh(y.to(y.dtype))], 1)).high


def test_compiled_and_exported():
    net, x, wide = Uses().eval(), torch.randn(2, 3, 7, 6), torch.randn(5, 3, 7, 6)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))
    dynamic = ({0: torch.export.Dim("batch", min=2)},)
    exported = torch.export.export(net, (x,), dynamic_shapes=dynamic, strict=False).module()
    torch.testing.assert_close(exported(wide), net(wide))


def test_compiled_with_octaves_as_input_and_output():
    def double(x):
        return F.relu(2 * x) + x

    x = random_octave(8, 0.25, (4, 4))
    y = torch.compile(double, fullgraph=True, backend="eager")(x)
    same(y, *double(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(reentrant):
    net = nn.Sequential(oc.OctConv2d(8, 8, 3, padding=1, alpha_in=0.25, alpha_out=0.25), nn.ReLU())
    x = random_octave(8, 0.25, (4, 4), requires_grad=True)

    def gradients(y):
        y = net(y)  # a plain tuple is taken, too
        return torch.autograd.grad(y.high.sum() + y.low.sum(), [*x, *net.parameters()])

    plain = gradients(net(x))
    kept = torch.utils.checkpoint.checkpoint(lambda *parts: net(oc.Octave(*parts)), *x, use_reentrant=reentrant)
    loss = net(kept)
    (loss.high.sum() + loss.low.sum()).backward()
    for gradient, leaf in zip(plain, [*x, *net.parameters()]):
        torch.testing.assert_close(leaf.grad, gradient)


def test_parallel_with_octaves_as_input_and_output():
    net = nn.Sequential(oc.OctConv2d(8, 8, 3, padding=1, alpha_in=0.25, alpha_out=0.25), nn.ReLU())
    x = random_octave(8, 0.25, (4, 4))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        y = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)(x)
    finally:
        dist.destroy_process_group()
    same(y, *net(x))


def test_under_modes_and_transforms():
    x = random_octave(8, 0.25, (4, 4))
    with torch.device("meta"):
        same(F.relu(x) * 2, x.high.relu() * 2, x.low.relu() * 2)
    same(torch.vmap(lambda y: 2 * F.relu(y))(x), 2 * x.high.relu(), 2 * x.low.relu())
    with torch.autocast("cpu", torch.bfloat16):
        assert oc.OctConv2d(8, 8, 1, alpha_in=0.25, alpha_out=0.5)(2 * x).low.dtype == torch.bfloat16


def test_a_wrong_name_of_alpha_is_answered_with_the_right_ones():
    for layer in (oc.OctConv1d, oc.OctConv2d, oc.OctConv3d, oc.OctConvTranspose2d):
        with pytest.raises(TypeError, match="alpha_in=, the share of its input, and alpha_out="):
            layer(8, 8, 1, alpha=0.25)
