"""Octave and the arithmetic on it."""

from functools import reduce

import numpy as np
import pytest
import torch
from helpers import random_octave
from hypothesis import given
from hypothesis import strategies as st

import octaveconv as oc
from octaveconv.octave import ChannelSplit, merge_tensor, split_channels, split_tensor
from octaveconv.resolution import FACTORS, pool, upsample


@given(st.integers(1, 4096), st.floats(0, 1))
def test_channels_are_truncated_and_none_is_lost(channels, alpha):
    split = split_channels(channels, alpha)
    assert split.low == int(alpha * channels)
    assert split.high + split.low == channels


@pytest.mark.parametrize(("channels", "alpha", "low"), [(10, 0.8, 8), (64, 0.3, 19), (100, 0.29, 28), (7, 1, 7)])
def test_channel_rounding_of_the_original(channels, alpha, low):
    assert split_channels(channels, alpha).low == low


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_its_range(alpha):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        split_channels(8, alpha)


@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 4), st.sampled_from([0, 1]))
def test_join_is_the_inverse_of_split(cut, high, low, dim):
    if high + low == 0:
        return
    split = ChannelSplit(cut * high, cut * low, cut)
    x = torch.arange(2.0 * cut * (high + low)).view(2, -1)
    x = x if dim == 1 else x.T.contiguous()
    assert torch.equal(split.join(*split.split(x, dim), dim), x)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any), min_size=1, max_size=6))
def test_the_split_of_a_concatenation_is_that_of_its_pieces(pieces):
    split = ChannelSplit(*pieces[0])
    for piece in pieces[1:]:
        split = split.then(ChannelSplit(*piece))
    names = torch.tensor([10 * i + j for i, (high, low) in enumerate(pieces) for j in (1,) * high + (2,) * low])
    high, low = split.split(names)
    assert high.tolist() == [10 * i + 1 for i, piece in enumerate(pieces) for _ in range(piece[0])]
    assert low.tolist() == [10 * i + 2 for i, piece in enumerate(pieces) for _ in range(piece[1])]
    assert split[:2] == (len(high), len(low))
    assert torch.equal(split.join(high if len(high) else None, low if len(low) else None), names)


def test_like_pieces_are_kept_as_groups():
    split = ChannelSplit(64, 0)
    for _ in range(6):
        split = split.then(ChannelSplit(24, 8))
    assert split.pieces == (ChannelSplit(64, 0), ChannelSplit(144, 48, 6))
    assert not split.contiguous
    assert ChannelSplit(64, 0).then(ChannelSplit(32, 0)) == ChannelSplit(96, 0)


def test_the_pieces_of_concatenations_of_concatenations():
    grouped = ChannelSplit(12, 4, 2)
    twice, first = grouped.then(grouped), ChannelSplit(12, 4)
    for parts in ([first, twice, twice], [twice, first.then(twice)], [first.then(twice), twice, grouped]):
        split, whole = reduce(ChannelSplit.then, parts), torch.arange(sum(high + low for high, low, *_ in parts))
        pieces = whole.split([part.high + part.low for part in parts])
        highs, lows = zip(*(part.split(piece) for part, piece in zip(parts, pieces)))
        assert torch.equal(split.split(whole)[0], torch.cat(highs))
        assert torch.equal(split.split(whole)[1], torch.cat(lows))
        assert torch.equal(split.join(*split.split(whole)), whole)


def test_a_split_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="9 channels cannot be split into 6 high and 2 low ones"):
        split_channels(9, ChannelSplit(6, 2))
    with pytest.raises(ValueError, match="8 channels cannot be split into 9 high and -1 low ones"):
        split_channels(8, ChannelSplit(9, -1))
    with pytest.raises(ValueError, match="6 high and 2 low channels cannot be cut into 4 groups"):
        split_channels(8, ChannelSplit(6, 2, 4))


def test_combining_different_parts_is_refused():
    with pytest.raises(ValueError, match="without a low part"):
        random_octave(8, 0, (4, 4)) + random_octave(8, 0.5, (4, 4))


def test_octave_map_keeps_absent_parts_and_takes_tensors():
    assert oc.octave_map(torch.relu, torch.ones(1)).low is None
    assert oc.octave_map(torch.relu, oc.Octave(None, -torch.ones(1))).low == 0
    for wrong in ([torch.ones(1), torch.ones(1)], (torch.ones(1),), (torch.ones(1), 1)):
        with pytest.raises(TypeError, match=f"got {type(wrong).__name__}"):
            oc.octave_map(torch.relu, wrong)


def test_a_plain_tuple_of_two_maps_is_an_octave():
    x, layer = random_octave(8, 0.25, (5, 5)), oc.OctConv2d(8, 4, 3, padding=1, alpha_in=0.25)
    assert torch.equal(layer(tuple(x)).high, layer(x).high)
    assert torch.equal(oc.Merge()(tuple(x)), oc.Merge()(x))
    assert type(oc.OctMap(torch.nn.ReLU())(tuple(x))) is oc.Octave
    assert oc.octave_cat(tuple(x), x).low.shape[1] == 4
    with pytest.raises(ValueError, match="needs a high or a low part"):
        layer((None, None))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (oc.octave_cat, "octave_cat needs at least one octave, got none"),
        (lambda: oc.octave_map(torch.relu), "octave_map needs the octaves that the function is applied to"),
        (lambda: oc.Merge()(oc.Octave(None, None)), "an octave needs a high or a low part"),
        (lambda: oc.ChannelSplit(0, 0).alpha, "has no channels: give it high or low ones"),
        (lambda: oc.Split(4.0, 0.5), "the number of channels must be a whole number from 1 up, got 4.0"),
        (lambda: oc.OctBatchNorm2d(4.0, alpha=0.5), "the number of channels must be a whole number from 1 up, got 4.0"),
        (lambda: oc.OctSqueezeExcite(32, alpha="a"), r"must be in \[0, 1\], got 'a'"),
        (lambda: oc.Merge()(oc.Octave(torch.ones(1, 2, 4, 4), torch.ones(2, 2, 2, 2))), "got 1 high maps and 2 low"),
    ],
)
def test_what_has_no_parts_or_channels_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_alpha_of_numpy_becomes_a_plain_number():
    layer = oc.OctConv2d(4, 4, 1, alpha_out=np.float32(0.5))
    assert type(layer.alpha_out) is float
    assert type(oc.Split(4, np.float64(0.5)).alpha) is float


def test_octave_is_a_pytree_that_keeps_its_type():
    x = random_octave(8, 0.5, (4, 4))
    leaves, spec = torch.utils._pytree.tree_flatten(x)
    assert len(leaves) == 2
    assert isinstance(torch.utils._pytree.tree_unflatten(leaves, spec), oc.Octave)


@pytest.mark.parametrize("size", [(7,), (7, 5), (3, 7, 5)])
@pytest.mark.parametrize("alpha", [0, 0.25, 1])
def test_merge_after_split_keeps_the_shape_and_the_high_channels(alpha, size):
    x = torch.randn(2, 8, *size)
    octave = split_tensor(x, split_channels(8, alpha))
    merged = merge_tensor(octave, size)
    assert merged.shape == x.shape
    high = split_channels(8, alpha).high
    assert torch.equal(merged[:, :high], x[:, :high])
    if alpha:
        assert torch.equal(merged[:, high:], upsample(pool(x[:, high:]), FACTORS[len(size)], size))


@pytest.mark.parametrize(("factor", "size"), [(None, (3, 6, 6)), (2, (6, 6, 6)), ((2, 1, 1), (6, 3, 3))])
def test_merging_a_lone_low_part_multiplies_its_size(factor, size):
    assert oc.Merge(factor)(oc.Octave(None, torch.ones(1, 4, 3, 3, 3))).shape == (1, 4, *size)
    assert oc.Merge()(oc.Octave(None, torch.ones(1, 4, 3, 3))).shape == (1, 4, 6, 6)


def test_merging_parts_of_another_factor_is_refused():
    x = oc.Split(8, 0.5, factor=2)(torch.ones(1, 8, 4, 6, 6))
    with pytest.raises(
        ValueError, match=r"\(2, 3, 3\) pixels .* expected \(4, 3, 3\): the size divided by \(1, 2, 2\)"
    ):
        oc.Merge()(x)
    assert oc.Merge(2)(x).shape == (1, 8, 4, 6, 6)
