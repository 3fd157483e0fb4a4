"""Backbones: features_only of every kind that timm has, and output_stride."""

import pytest
import timm
import torch
from networks import shallow
from timm.models import FeatureHookNet, FeatureListNet

IMAGE = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))
SMALL = dict(layers=(1, 1, 1, 1), width=8)


def features(alpha=0.5, name="oct_resnet50", **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, alpha=alpha, features_only=True, **SMALL, **arguments).eval()


@pytest.mark.parametrize("kind", ["list", "hook", "fx", "getter", FeatureListNet, FeatureHookNet])
def test_every_kind_gives_all_channels(kind):
    maps, expected = features(feature_cls=kind)(IMAGE), features()(IMAGE)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (8, 33, 49), (32, 17, 25), (64, 9, 13), (128, 5, 7), (256, 3, 4),
    ]  # fmt: skip
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, expected))


def test_as_a_dictionary():
    expected = features(out_indices=(1, 3))(IMAGE)
    found = features(feature_cls="dict", out_indices=(1, 3))(IMAGE)
    assert [*found] == [1, 3]
    named = features(feature_cfg=dict(feature_cls="dict", out_indices=(1, 3), out_map=["a", "b"]))(IMAGE)
    assert [*named] == ["a", "b"]
    for maps in (found, named):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps.values(), expected))


def test_feature_cfg():
    assert len(features(feature_cfg=dict(out_indices=(2,), flatten_sequential=True))(IMAGE)) == 1
    with pytest.raises(ValueError, match="feature_cfg takes norm, out_indices, out_map, output_fmt, prune, got colour"):
        features(feature_cfg=dict(colour=1))
    for kind in ("nothing", torch.nn.Module):
        with pytest.raises(ValueError, match="feature_cls must be one of list, dict, hook, fx, getter, got"):
            features(feature_cls=kind)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_is_timms(block, output_stride):
    layers = (1, 2, 1, 2)
    name = "resnet18" if block == "basic" else "resnet50"
    theirs = timm.create_model(name, layers=layers, output_stride=output_stride).eval()
    ours = timm.create_model(f"oct_{name}", alpha=0, layers=layers, output_stride=output_stride).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(IMAGE), theirs(IMAGE))


@pytest.mark.parametrize(
    ("output_stride", "expected"), [(8, [2, 4, 8, 8, 8]), (16, [2, 4, 8, 16, 16]), (32, [2, 4, 8, 16, 32])]
)
def test_output_stride_of_features(output_stride, expected):
    backbone = features(output_stride=output_stride)
    assert backbone.feature_info.reduction() == expected
    for x, reduction in zip(backbone(IMAGE), expected):
        assert tuple(x.shape[2:]) == (-(-65 // reduction), -(-97 // reduction))


def test_output_strides_that_cannot_be():
    with pytest.raises(
        ValueError, match="oct_densenet121 has stride 32 only: for another output_stride use oct_resnet18"
    ):
        timm.create_model("oct_densenet121", output_stride=16)
    assert shallow("oct_densenet121", 0.5, tiny=True, output_stride=32).feature_info[-1]["reduction"] == 32
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        features(output_stride=4)
