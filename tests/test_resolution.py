"""From one resolution to the other and back, on maps of one, two and three axes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octaveconv.resolution import checked_factor, crop, pool, upsample

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def halved(size):
    return tuple(-(-n // 2) for n in size)


@given(SIZES)
def test_pool_averages_the_pixels_that_are_there(size):
    pooled = pool(torch.ones(1, 1, *size), (2,) * len(size))
    assert pooled.shape[2:] == halved(size)
    assert torch.all(pooled == 1)


@given(SIZES, st.data())
def test_pool_is_the_mean_of_each_window(size, data):
    factor = data.draw(st.tuples(*[st.sampled_from([1, 2])] * len(size)))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = x
    for axis, f in enumerate(factor, start=2):
        windows = [window.mean(axis, keepdim=True) for window in expected.split(f, axis)]
        expected = torch.cat(windows, axis)
    torch.testing.assert_close(pool(x, factor), expected)


def test_a_video_is_pooled_in_space_alone_if_nothing_else_is_said():
    assert pool(torch.ones(1, 1, 5, 5, 5)).shape == (1, 1, 5, 3, 3)


@given(SIZES)
def test_upsample_repeats_each_pixel(size):
    low = torch.randn(1, 1, *halved(size))
    up = upsample(low, (2,) * len(size), size)
    for axis in range(2, low.dim()):
        low = low.repeat_interleave(2, axis)
    assert torch.equal(up, crop(low, size))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("width", [4189, 8219, 8220])
def test_upsample_finds_the_right_pixel_in_large_maps(width, memory_format):
    low = torch.arange(-(-width // 2), dtype=torch.float64).expand(1, 2, 1, -1).contiguous(memory_format=memory_format)
    assert torch.equal(upsample(low, (1, 2), (1, width))[0, 0, 0], (torch.arange(width) // 2).double())


@pytest.mark.parametrize("width", [4189, 8219, 8220])
def test_upsample_finds_the_right_pixel_in_long_series_and_large_volumes(width):
    low, expected = torch.arange(-(-width // 2), dtype=torch.float64), (torch.arange(width) // 2).double()
    assert torch.equal(upsample(low[None, None], (2,), (width,))[0, 0], expected)
    assert torch.equal(upsample(low[None, None, None, None], (1, 1, 2), (1, 1, width))[0, 0, 0, 0], expected)


@pytest.mark.parametrize(("factor", "axes", "expected"), [(None, 3, (1, 2, 2)), (2, 3, (2, 2, 2)), ([1, 2], 2, (1, 2))])
def test_the_factors_of_an_octave(factor, axes, expected):
    assert checked_factor(factor, axes) == expected


@pytest.mark.parametrize("factor", [1, 3, (1, 1), (2, 2, 2), (2,), (0, 2), (2, 4)])
def test_other_factors_are_refused(factor):
    with pytest.raises(
        ValueError, match=r"1 or 2 on each of 2 axes and not 1 on all of them, got .*: omit it for \(2, 2\)"
    ):
        checked_factor(factor, 2)


def test_maps_have_one_to_three_axes():
    with pytest.raises(ValueError, match="got a tensor of 6 dimensions"):
        checked_factor(None, 4)
