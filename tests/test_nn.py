"""The layers: parameters, initialization, printing, state dicts, errors."""

import copy
import io

import pytest
import torch
from helpers import assert_close, random_octave
from torch import nn

import octaveconv as oc

CONVS = {
    oc.OctConv1d: nn.Conv1d,
    oc.OctConv2d: nn.Conv2d,
    oc.OctConv3d: nn.Conv3d,
    oc.OctConvTranspose2d: nn.ConvTranspose2d,
}
NORMS = {oc.OctBatchNorm1d: nn.BatchNorm1d, oc.OctBatchNorm2d: nn.BatchNorm2d, oc.OctBatchNorm3d: nn.BatchNorm3d}
SIZES = {1: (9,), 2: (9, 7), 3: (3, 9, 7)}  # by the number of axes


@pytest.mark.parametrize("octave_class", CONVS)
def test_initialization_equals_that_of_the_dense_layer(octave_class):
    torch.manual_seed(3)
    dense = CONVS[octave_class](8, 12, 3, padding=1)
    torch.manual_seed(3)
    octave = octave_class(8, 12, 3, padding=1, alpha_in=0.5, alpha_out=0.25)
    assert torch.equal(octave.weight, dense.weight)
    assert torch.equal(octave.bias, dense.bias)
    assert octave.state_dict().keys() == dense.state_dict().keys()
    octave.load_state_dict(dense.state_dict(), strict=True)
    dense.load_state_dict(octave.state_dict(), strict=True)


@pytest.mark.parametrize(
    "arguments", [dict(), dict(groups=4), dict(dilation=2, padding=2), dict(padding=0, bias=False)]
)
@pytest.mark.parametrize("octave_class", CONVS)
def test_at_alpha_0_and_stride_1_it_is_bit_equal_to_the_dense_layer(octave_class, arguments):
    arguments = dict(in_channels=8, out_channels=12, kernel_size=3, padding=1) | arguments
    check_bit_equal(octave_class, arguments)


@pytest.mark.parametrize(
    "arguments",
    [dict(), dict(padding=1, output_padding=1), dict(stride=(1, 2), groups=4), dict(dilation=2, output_padding=1)]
    + [dict(kernel_size=4, padding=2, bias=False), dict(kernel_size=5, stride=1, padding=3)],
)
def test_at_alpha_0_the_transposed_one_is_bit_equal_at_every_stride_and_padding(arguments):
    arguments = dict(in_channels=8, out_channels=12, kernel_size=3, stride=2) | arguments
    check_bit_equal(oc.OctConvTranspose2d, arguments)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("octave_class", [oc.OctConv1d, oc.OctConv2d, oc.OctConv3d])
def test_padding_of_any_mode_is_that_of_the_dense_layer_on_each_axis(octave_class, mode):
    kernel, padding = ((1, 3, 5)[-octave_class.axes :], (0, 1, 2)[-octave_class.axes :])
    arguments = dict(in_channels=8, out_channels=4, kernel_size=kernel, padding=padding, padding_mode=mode)
    check_bit_equal(octave_class, arguments)


def check_bit_equal(octave_class, arguments):
    dense, octave = CONVS[octave_class](**arguments), octave_class(**arguments)
    octave.load_state_dict(dense.state_dict())
    x = torch.randn(2, 8, *SIZES[octave.axes])
    y = octave(x)
    assert y.low is None
    assert torch.equal(y.high, dense(x))


@pytest.mark.parametrize("size", [(7, 6), (1, 1), (8, 5)])
@pytest.mark.parametrize("arguments", [(2, 2), (3, 2, 1, 1), (3, 2, 1), (4, 2, 1), (3, 1, 1), (5, (1, 2), 2)])
@pytest.mark.parametrize("alpha_in", [0, 0.5])
def test_a_transposed_layer_has_the_size_of_the_dense_one_and_half_of_it(alpha_in, arguments, size):
    dense = nn.ConvTranspose2d(8, 4, *arguments)(torch.ones(1, 8, *size))
    y = oc.OctConvTranspose2d(8, 4, *arguments, alpha_in=alpha_in, alpha_out=0.5)(random_octave(8, alpha_in, size))
    assert y.high.shape[2:] == dense.shape[2:]
    assert y.low.shape[2:] == oc.Split(4, 0.5)(dense).low.shape[2:]


def test_conv_repr():
    layer = oc.OctConv2d(64, 128, 3, 2, 1, alpha_in=0.25, alpha_out=0.5)
    assert repr(layer) == (
        "OctConv2d(64, 128, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), "
        "alpha_in=0.25 (48+16), alpha_out=0.5 (64+64))"
    )
    assert repr(oc.OctConv1d(4, 4, 1, alpha_in=0.5)).startswith("OctConv1d(4, 4, kernel_size=(1,), stride=(1,), alpha")
    assert "factor" not in repr(oc.OctConv3d(4, 4, 1, alpha_in=0.5))
    assert repr(oc.OctConv3d(4, 4, 1, alpha_in=0.5, factor=2)).endswith("alpha_out=0 (4+0), factor=(2, 2, 2))")
    layer = oc.OctConvTranspose2d(8, 4, 3, 2, 1, 1, alpha_in=0.25)
    assert repr(layer) == (
        "OctConvTranspose2d(8, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1), "
        "alpha_in=0.25 (6+2), alpha_out=0 (4+0))"
    )


@pytest.mark.parametrize("padding", ["same", 2, (2, 2)])
def test_same_padding(padding):
    layer = oc.OctConv2d(4, 4, 3, padding=padding, dilation=2, alpha_out=0.5)
    assert layer(torch.ones(1, 4, 5, 5)).high.shape == (1, 2, 5, 5)


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (dict(stride=3, kernel_size=9), r"shifts the two frequencies against each other: use padding \(3, 3\)"),
        (dict(padding=0), r"use padding \(1, 1\), or alpha_in=alpha_out=0"),
        (dict(kernel_size=4, padding=0), "use padding 'same'"),
        (dict(alpha_in=1.5), r"must be in \[0, 1\], got 1.5"),
        (dict(groups=4, alpha_in=0.3), "use an alpha of 0, 0.5, 1"),
        (dict(groups=8, alpha_in=0.5), "depthwise convolution keeps each channel's frequency"),
        (dict(groups=2, cut_in=4), "omit cut_in and cut_out"),
        (dict(cut_in=3), "3 groups cannot share evenly"),
        (dict(padding_mode="zero"), "padding_mode must be one of"),
        (dict(groups=3), "divisible by groups"),
        (
            dict(kernel_size=(3, 3, 3)),
            r"kernel_size must be one number or 2 of them, .*, got \(3, 3, 3\)",
        ),
        (dict(factor=3), r"got 3: omit it for \(2, 2\)"),
        (dict(factor=2.0), r"got 2.0: omit it for \(2, 2\)"),
        (dict(alpha_in="a"), r"must be in \[0, 1\], got 'a'"),
        (dict(in_channels=8.0), "in_channels must be a whole number from 1 up, got 8.0"),
        (dict(out_channels=0), "out_channels must be a whole number from 1 up, got 0"),
        (dict(kernel_size=0), "kernel_size must be a whole number from 1 up, got 0"),
        (dict(stride=2.0), "stride must be a whole number from 1 up, got 2.0"),
        (dict(padding=-1), "padding must be a whole number from 0 up, got -1"),
        (dict(padding="some"), "padding must be 'same', 'valid' or pixels, got 'some'"),
        (dict(groups=0), "groups must be a whole number from 1 up, got 0"),
        (dict(cut_out=-2), "cut_out must be a whole number from 1 up, got -2"),
    ],
)
def test_bad_arguments_name_the_cure(arguments, cure):
    with pytest.raises(ValueError, match=cure):
        oc.OctConv2d(**(dict(in_channels=8, out_channels=8, kernel_size=3, padding=1, alpha_in=0.25) | arguments))


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (dict(stride=3), r"use padding \(0, 0\) and output_padding \(0, 0\)"),
        (dict(stride=5), "use a kernel as large as the stride"),
        (dict(padding=0), r"use padding \(1, 1\) and output_padding \(1, 1\), or alpha_in=alpha_out=0"),
        (dict(padding=2), r"use padding \(1, 1\) and output_padding \(1, 1\), or alpha_in=alpha_out=0"),
        (dict(stride=1, padding=0), r"use padding \(1, 1\) and output_padding \(0, 0\)"),
        (dict(kernel_size=4, output_padding=1), r"use padding \(1, 1\) and output_padding \(0, 0\)"),
        (dict(kernel_size=4, stride=1), "use an odd kernel at stride 1, or alpha_in=alpha_out=0"),
        (dict(padding_mode="reflect"), "only pads with zeros"),
        (dict(groups=8), "depthwise convolution keeps each channel's frequency"),
    ],
)
def test_bad_arguments_of_a_transposed_layer_name_the_cure(arguments, cure):
    arguments = dict(in_channels=8, out_channels=8, kernel_size=3, stride=2, padding=1, alpha_in=0.25) | arguments
    with pytest.raises(ValueError, match=cure):
        oc.OctConvTranspose2d(**arguments)


@pytest.mark.parametrize(
    ("x", "error", "cure"),
    [
        (torch.ones(1, 8, 4, 4), ValueError, "the high part given is a tensor .1, 8, 4, 4.: set alpha_in"),
        (oc.Octave(torch.ones(1, 6, 4, 4), None), ValueError, "the low part given is absent"),
        (oc.Octave(torch.ones(6, 4, 4), torch.ones(2, 2, 2)), ValueError, "the high part given is a tensor .6, 4, 4."),
        (oc.Octave(torch.ones(1, 6, 5, 5), torch.ones(1, 2, 2, 2)), ValueError, r"expected \(3, 3\): half the size"),
        ([torch.ones(1, 6, 4, 4)], TypeError, "got list"),
        (None, TypeError, "got NoneType"),
        ("text", TypeError, "got str"),
        (oc.Octave(3, None), TypeError, "got an Octave of int"),
    ],
)
def test_bad_inputs_name_the_cure(x, error, cure):
    with pytest.raises(error, match=cure):
        oc.OctConv2d(8, 8, 3, padding=1, alpha_in=0.25, alpha_out=0.25)(x)


def test_functional_checks_too():
    x = torch.ones(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"weight must be \[out, in / groups, .* 1 to 3 axes\], got \[3, 3\]"):
        oc.functional.octconv(x, torch.ones(3, 3), alpha_in=0, alpha_out=0)
    weight = torch.ones(3, 3, 3, 3)
    with pytest.raises(ValueError, match="pass transposed=True, got output_padding=1"):
        oc.functional.octconv(x, weight, output_padding=1, alpha_in=0, alpha_out=0)
    with pytest.raises(ValueError, match="takes its padding in pixels, got 'same'"):
        oc.functional.octconv(x, weight, padding="same", transposed=True, alpha_in=0, alpha_out=0)
    with pytest.raises(ValueError, match="only pads with zeros, got padding_mode='reflect'"):
        oc.functional.octconv(x, weight, padding_mode="reflect", transposed=True, alpha_in=0, alpha_out=0)


@pytest.mark.parametrize("octave_class", CONVS)
def test_maps_of_other_axes_are_refused(octave_class):
    layer = octave_class(8, 8, 3, padding=1, alpha_in=0.25)
    other = (4,) * (layer.axes % 3 + 1)
    with pytest.raises(ValueError, match=r"the high part given is a tensor \[2, 6, 4"):
        layer(random_octave(8, 0.25, other))


def test_meta_copy_and_pickle():
    with torch.device("meta"):
        assert oc.OctConv2d(8, 8, 1, alpha_out=0.5)(torch.empty(1, 8, 4, 4)).low.shape == (1, 4, 2, 2)
    layer = oc.OctConv2d(8, 8, 1, alpha_out=0.5)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    x = torch.randn(1, 8, 4, 4)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x).low, layer(x).low)


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("through", [lambda state: state, saved_and_loaded], ids=["memory", "file"])
def test_weights_of_another_alpha_are_refused(through):
    def net(alpha):
        return nn.Sequential(oc.OctConv2d(8, 8, 1, alpha_out=alpha))

    trained = through(net(0.5).state_dict())
    net(0.5).load_state_dict(trained)
    with pytest.raises(RuntimeError, match=r"0: these weights have alpha \(0.0, 0.5\)"):
        net(0.25).load_state_dict(trained)
    net(0.25).load_state_dict(dict(trained))  # knowingly
    net(0.25).load_state_dict(through(net(0).state_dict()))  # dense weights
    net(0.25).load_state_dict(through(nn.Sequential(nn.Conv2d(8, 8, 1)).state_dict()))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("alpha", [0, 0.25, 1])
@pytest.mark.parametrize("octave_class", NORMS)
def test_batch_norm_is_two_dense_ones_with_shared_arrays(octave_class, alpha, track, affine, momentum):
    norm, dense_class = octave_class(8, 1e-3, momentum, affine, track, alpha=alpha), NORMS[octave_class]
    parts = [dense_class(count, 1e-3, momentum, affine, track) if count else None for count in norm.split[:2]]
    dense = dense_class(8, 1e-3, momentum, affine, track)
    assert norm.state_dict().keys() == dense.state_dict().keys()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        for part, rows in zip(parts, (slice(None, norm.split.high), slice(norm.split.high, None))):
            if part is not None:
                part.load_state_dict({k: v[rows] if v.dim() else v for k, v in norm.state_dict().items()})
    for training in (True, True, False):
        x = random_octave(8, alpha, SIZES[norm.axes])
        y = norm.train(training)(x)
        for part, given, actual in zip(parts, x, y):
            assert_close(actual, None if part is None else part.train(training)(given))
    if track:
        expected = torch.cat([part.running_var for part in parts if part is not None])
        assert_close(norm.running_var, expected)
        assert norm.num_batches_tracked == 2


def test_batch_norm_cut_inside_groups_equals_a_permuted_one():
    norm = oc.OctBatchNorm2d(8, alpha=0.5, cut=2)
    plain = oc.OctBatchNorm2d(8, alpha=0.5)
    order = [0, 1, 4, 5, 2, 3, 6, 7]  # high channels first: where cut=2 has them
    nn.init.normal_(norm.weight)
    with torch.no_grad():
        plain.weight.copy_(norm.weight[order])
    for _ in range(2):
        x = random_octave(8, 0.5, (4, 4))
        y = norm(x)
        for actual, expected in zip(y, plain(x)):
            assert_close(actual, expected)
        (y.high.sum() + y.low.sum()).backward()
    assert torch.equal(norm.running_mean[order], plain.running_mean)
    assert torch.equal(norm.running_var[order], plain.running_var)


@pytest.mark.parametrize("alpha", [0, 1])
def test_batch_norm_cut_with_one_part_trains(alpha):
    norm = oc.OctBatchNorm2d(8, alpha=alpha, cut=4)
    sum(part.sum() for part in norm(random_octave(8, alpha, (4, 4))) if part is not None).backward()
    assert norm.running_mean.abs().sum() > 0


def test_batch_norm_stands_the_usual_initialization_loop():
    net = nn.Sequential(oc.OctConv2d(3, 8, 1, alpha_out=0.5), oc.OctBatchNorm2d(8, alpha=0.5))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 1)
    assert net(torch.ones(2, 3, 4, 4)).low.shape == (2, 4, 2, 2)


def test_batch_norm_repr_and_errors():
    norm = oc.OctBatchNorm2d(8, alpha=0.25)
    assert repr(norm).startswith("OctBatchNorm2d(8, eps=1e-05")
    assert repr(norm).endswith("alpha=0.25 (6+2))")
    with pytest.raises(ValueError, match="whose high part has 8 channels: give it the alpha of the layer before"):
        norm(torch.ones(1, 8, 4, 4))
    with pytest.raises(ValueError, match="whose low part is absent"):
        norm(torch.ones(1, 6, 4, 4))
    with pytest.raises(ValueError, match="high part has 3 dimensions, expected 4: use OctBatchNorm1d"):
        norm(random_octave(8, 0.25, (4,)))
    assert repr(oc.OctBatchNorm3d(8, alpha=0.25)).startswith("OctBatchNorm3d(8, eps=1e-05")


def test_batch_norm_under_compile_updates_its_statistics():
    norm = oc.OctBatchNorm2d(8, alpha=0.5, cut=2)
    other = copy.deepcopy(norm)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x = random_octave(8, 0.5, (4, 4))
    for actual, expected in zip(compiled(x), norm(x)):
        assert_close(actual, expected)
    assert_close(other.running_mean, norm.running_mean)
    assert_close(other.running_var, norm.running_var)


@pytest.mark.parametrize("alpha", [0, 0.25, 1])
def test_squeeze_excite_equals_timms_on_a_constant_image(alpha):
    from timm.layers import SqueezeExcite

    dense = SqueezeExcite(32, rd_channels=4)
    octave = oc.OctSqueezeExcite(32, rd_channels=4, alpha=alpha)
    octave.load_state_dict(dense.state_dict(), strict=True)
    x = torch.randn(2, 32, 1, 1).expand(2, 32, 6, 6)
    assert_close(oc.Merge()(octave(oc.Split(32, alpha)(x))), dense(x))


def test_squeeze_excite_repr_and_errors():
    assert "alpha=0.25 (24+8)" in repr(oc.OctSqueezeExcite(32, alpha=0.25))
    with pytest.raises(ValueError, match="pass rd_channels"):
        oc.OctSqueezeExcite(8)
    with pytest.raises(ValueError, match="whose high part has 32 channels: give it the alpha of the layer before"):
        oc.OctSqueezeExcite(32, alpha=0.25)(torch.ones(1, 32, 2, 2))


@pytest.mark.parametrize(
    "split", [oc.ChannelSplit(24, 8, 4), oc.ChannelSplit(12, 4).then(oc.ChannelSplit(6, 10))], ids=["cut", "pieces"]
)
def test_squeeze_excite_keeps_dense_weights_at_every_split(split):
    from timm.layers import SqueezeExcite

    dense = SqueezeExcite(32, rd_channels=4)
    octave = oc.OctSqueezeExcite(32, rd_channels=4, alpha=split)
    octave.load_state_dict(dense.state_dict(), strict=True)
    x = torch.randn(2, 32, 1, 1).expand(2, 32, 6, 6)
    high, low = split.split(x, 1)
    y = octave(oc.Octave(high, low[..., ::2, ::2]))
    assert_close(oc.Merge(split=split)(y), dense(x))
    assert repr(octave).startswith(f"OctSqueezeExcite(\n  alpha={split.alpha:g} ({split.high}+{split.low})")


def test_squeeze_excite_takes_cut_device_and_dtype_like_its_siblings():
    octave = oc.OctSqueezeExcite(32, 1 / 8, None, "meta", torch.bfloat16, alpha=0.25, cut=4)
    assert octave.split == oc.ChannelSplit(24, 8, 4)
    assert {(p.device.type, p.dtype) for p in octave.parameters()} == {("meta", torch.bfloat16)}
    assert octave(random_octave(32, 0.25, (5, 5), dtype=torch.bfloat16, device="meta")).low.dtype == torch.bfloat16


def test_split_merge_map():
    assert repr(oc.Split(8, 0.25)) == "Split(8, alpha=0.25 (6+2))"
    assert repr(oc.Split(8, 0.25, factor=(1, 2))) == "Split(8, alpha=0.25 (6+2), factor=(1, 2))"
    assert (repr(oc.Merge()), repr(oc.Merge(2))) == ("Merge()", "Merge(factor=2)")
    assert "ReLU" in repr(oc.OctMap(nn.ReLU()))
    with pytest.raises(ValueError, match="got 4 channels"):
        oc.Split(8, 0.25)(torch.ones(1, 4, 2, 2))
    x = torch.ones(1, 4, 2, 2)
    assert oc.Merge()(x) is x


def test_sequential_of_octave_layers():
    net = nn.Sequential(
        oc.OctConv2d(3, 16, 3, padding=1, alpha_out=0.25),
        oc.OctBatchNorm2d(16, alpha=0.25),
        oc.OctMap(nn.ReLU()),
        oc.OctMap(nn.MaxPool2d(2, ceil_mode=True)),
        oc.OctConv2d(16, 8, 3, padding=1, alpha_in=0.25),
        oc.Merge(),
    )
    assert net(torch.randn(2, 3, 15, 9)).shape == (2, 8, 8, 5)


@pytest.mark.parametrize("factor", [None, 2])
def test_sequential_on_videos_and_on_series(factor):
    video = nn.Sequential(
        oc.OctConv3d(3, 16, 3, padding=1, alpha_out=0.25, factor=factor),
        oc.OctBatchNorm3d(16, alpha=0.25),
        oc.OctMap(nn.ReLU()),
        oc.OctConv3d(16, 16, 3, stride=(1, 2, 2), padding=1, alpha_in=0.25, alpha_out=0.25, factor=factor),
        oc.OctMap(nn.MaxPool3d(2, ceil_mode=True)),
        oc.Merge(factor),
    )
    assert video(torch.randn(2, 3, 5, 15, 9)).shape == (2, 16, 3, 4, 3)
    series = nn.Sequential(
        oc.Split(4, 0.5),
        oc.OctConv1d(4, 8, 3, 2, 1, alpha_in=0.5, alpha_out=0.5),
        oc.OctBatchNorm1d(8, alpha=0.5),
        oc.Merge(),
    )
    assert series(torch.randn(2, 4, 17)).shape == (2, 8, 9)


def test_a_unet_goes_down_and_up_in_octaves():
    down = oc.OctConv2d(8, 16, 3, 2, 1, alpha_in=0.5, alpha_out=0.5)
    up = oc.OctConvTranspose2d(16, 8, 4, 2, 1, alpha_in=0.5, alpha_out=0.5)
    x = random_octave(8, 0.5, (10, 6))
    assert (x + up(down(x))).low.shape == x.low.shape
