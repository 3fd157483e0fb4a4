"""OctGroupNorm: what nn.GroupNorm makes of the merged maps, groups of both resolutions included."""

import copy

import pytest
import torch
from helpers import assert_close, random_octave
from torch import nn

import octaveconv as oc

SIZES = {1: (10,), 2: (8, 6), 3: (3, 4, 8)}


def randomise(norm):
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 8, 16])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_it_is_the_norm_of_the_merged_maps(size, groups, cut):
    norm = randomise(oc.OctGroupNorm(groups, 16, 1e-3, alpha=0.375, cut=cut)).double()
    dense = nn.GroupNorm(groups, 16, 1e-3).double()
    dense.load_state_dict(norm.state_dict())
    merge = oc.Merge(split=norm.split)
    x = random_octave(16, 0.375, size, dtype=torch.float64)
    high, low = norm(x)
    assert_close(merge(oc.Octave(high, low)), dense(merge(x)))
    assert low.shape == x.low.shape


def test_the_gradient_is_that_of_the_merged_maps():
    norm, x = randomise(oc.OctGroupNorm(2, 8, alpha=0.25)).double(), random_octave(8, 0.25, (3, 5), dtype=torch.float64)
    parts = [part.requires_grad_() for part in x]
    assert torch.autograd.gradcheck(lambda high, low, *_: norm(oc.Octave(high, low)), (*parts, norm.weight, norm.bias))


@pytest.mark.parametrize("alpha", [0, 1])
def test_of_one_resolution_it_is_group_norm_itself(alpha):
    norm, dense, x = oc.OctGroupNorm(4, 8, alpha=alpha), nn.GroupNorm(4, 8), torch.randn(2, 8, 5, 5)
    high, low = norm(oc.Octave(None, x) if alpha else x)
    assert torch.equal(low if alpha else high, dense(x))
    assert (high if alpha else low) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_are_exact_in_half_precision(dtype):
    """A mean of 100 and a deviation of 1, of 1,000 numbers."""
    x = oc.octave_map(lambda part: (part + 100).to(dtype), random_octave(8, 0.5, (16, 16)))
    norm = oc.OctGroupNorm(2, 8, affine=False, alpha=0.5)
    y = norm(x)
    assert y.high.dtype == y.low.dtype == dtype
    exact = norm(oc.octave_map(torch.Tensor.double, x))
    for part, expected in zip(y, exact):
        torch.testing.assert_close(part.double(), expected, rtol=1e-2, atol=1e-2)


def test_it_holds_what_group_norm_holds_and_prints_its_alpha():
    norm = oc.OctGroupNorm(2, 8, alpha=0.25)
    assert list(norm.state_dict()) == list(nn.GroupNorm(2, 8).state_dict())
    assert repr(norm).startswith("OctGroupNorm(2, 8, eps=1e-05")
    assert repr(norm).endswith("alpha=0.25 (6+2))")
    twin = copy.deepcopy(norm)
    x = random_octave(8, 0.25, (4, 4))
    assert all(torch.equal(a, b) for a, b in zip(twin(x), norm(x)))
    with pytest.raises(ValueError, match="high part has 8 channels: give it the alpha of the layer"):
        norm(torch.randn(2, 8, 4, 4))
    with pytest.raises(ValueError, match="num_channels"):
        oc.OctGroupNorm(3, 8, alpha=0.25)


def test_cost_counts_its_parameters_by_part():
    net = nn.Sequential(oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.25), oc.OctGroupNorm(2, 8, alpha=0.25))
    layer = oc.cost(net, input_size=16).layers[1]
    assert (layer.high.params, layer.low.params, layer.total.params) == (12, 4, 16)
