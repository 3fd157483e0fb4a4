"""Promises of every network in the registry: a new one is tested by existing.

Shapes are tested at full depth on the meta device; values on shallow versions of the same networks.
"""

import functools

import pytest
import timm
import torch
import torchvision
from helpers import TOLERANCE, assert_close
from networks import ALPHAS, CLASSES, NAMES, SHALLOW, every_block, image, shallow
from timm.models._features_fx import create_feature_extractor
from torch import nn

import octaveconv as oc
from octaveconv.models._build import OctNet
from octaveconv.octave import as_octave

OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
every_name = pytest.mark.parametrize(  # at full depth; the others of a class are slow
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in CLASSES)) for name in NAMES]
)


def deep(name, alpha):
    with torch.device("meta"):
        return timm.create_model(name, alpha=alpha).eval()


def on_meta(name, alpha):
    with torch.device("meta"):
        return shallow(name, alpha).eval()


@functools.cache
def deep_dense(name):
    return deep(name, 0)


@functools.cache
def shapes_of_the_dense_twin(name):
    return shapes(on_meta(name, 0))


every_shallow = pytest.mark.parametrize(  # at one alpha inside, of which each comes up, and at both ends
    ("name", "alpha"),
    [
        pytest.param(name, alpha, marks=[pytest.mark.slow] * (0 < alpha < 1 and i % 3 != j % 3))
        for i, name in enumerate(SHALLOW)
        for j, alpha in enumerate((*ALPHAS[name], 0, 1))
    ],
)
one_alpha_or_the_ends = pytest.mark.parametrize(  # which make the same layers in every network of a class
    ("name", "alpha"),
    [pytest.param(name, ALPHAS[name][0], marks=[pytest.mark.slow] * (name not in CLASSES)) for name in SHALLOW]
    + [(name, alpha) for name in CLASSES for alpha in (0, 1)],
)
shallow_names = pytest.mark.parametrize("name", SHALLOW)


def check_shapes(model, height, width):
    features = model.forward_features(torch.empty(2, 3, height, width, device="meta"))
    assert model.forward_head(features).shape == (2, model.num_classes)
    assert features.shape == (2, model.num_features, -(-height // 32), -(-width // 32))


def shapes(model):
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


@every_name
def test_at_full_depth(name):
    """The shallow networks have every alpha; `test_parity.py` runs networks of each class at full depth."""
    assert shapes(deep(name, ALPHAS[name][0])) == shapes(deep_dense(name))


@pytest.mark.slow
@every_name
def test_any_size_at_full_depth(name):
    check_shapes(deep(name, ALPHAS[name][0]), 33, 47)


@every_shallow
def test_any_size(name, alpha):
    """The state dict has the keys and shapes of the dense twin."""
    model = on_meta(name, alpha)
    for size in ((32, 32), (33, 47), (224, 160)) if 0 < alpha < 1 else ((33, 47),):
        check_shapes(model, *size)
    assert shapes(model) == shapes_of_the_dense_twin(name)


@every_name
def test_the_dense_twin_is_plain(name):
    layers = [module for module in deep_dense(name).modules() if not isinstance(module, OctNet)]
    assert not [layer for layer in layers if type(layer).__name__.startswith("Oct")]
    strided = [module for module in deep_dense(name).layer2.modules() if getattr(module, "stride", 1) in (2, (2, 2))]
    assert {type(module) for module in strided} == {nn.AvgPool2d if "densenet" in name else nn.Conv2d}


@shallow_names
def test_the_last_stage_has_alpha_0(name):
    model = on_meta(name, ALPHAS[name][0])
    assert {module.alpha_out for module in model.layer4.modules() if isinstance(module, oc.OctConv2d)} == {0}
    assert model.alpha in {module.alpha_out for module in model.layer3.modules() if isinstance(module, oc.OctConv2d)}


@shallow_names
def test_dense_stages_take_and_return_plain_tensors(name):
    model, seen = on_meta(name, ALPHAS[name][0]), []
    for module in model.layer4.modules():
        module.register_forward_hook(lambda module, args, y: seen.extend((args[0], y)))
    model.forward_features(torch.empty(1, 3, 65, 47, device="meta"))
    assert type(seen[-1]) is torch.Tensor
    octaves = [x for x in seen if not isinstance(x, torch.Tensor)]
    assert all(x.low is not None for x in octaves)  # of stage 3
    assert len({id(x) for x in octaves}) <= 5  # that map, normalized and activated, for the block and its shortcut


@pytest.mark.parametrize("name", CLASSES)
def test_other_tools_find_tensors_in_the_last_stage(name):
    """Grad-CAM and captum's layer methods; backbones of detection; checkpointing, which gives plain tuples."""
    model, x, maps = shallow(name, 0.25, tiny=True).eval(), image(1, 3, 64, 64), {}
    model.layer4[0].register_forward_pre_hook(lambda module, args: maps.update(before=as_octave(args[0])))
    model.layer4[-1].register_forward_hook(lambda module, args, y: maps.update(after=y))
    (gradient,) = torch.autograd.grad(model(x)[0, 0], maps["after"])
    assert gradient.abs().sum() > 0
    expected, before = maps["after"], [part.detach().requires_grad_() for part in maps["before"] if part is not None]
    again = torch.utils.checkpoint.checkpoint(
        lambda *parts: model.layer4(parts[0] if len(parts) == 1 else parts), *before, use_reentrant=True
    )
    again.sum().backward()
    assert all(part.grad is not None for part in before)
    getter = torchvision.models._utils.IntermediateLayerGetter(model, {"layer4": "map"})
    assert torch.equal(getter(x)["map"], expected)
    assert torch.equal(again, expected)


@one_alpha_or_the_ends
def test_features_only(name, alpha):
    with torch.device("meta"):
        model = shallow(name, alpha, tiny=True, features_only=True)
    taps = model(torch.empty(1, 3, 65, 97, device="meta"))
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    for tap, channels, reduction in zip(taps, model.feature_info.channels(), model.feature_info.reduction()):
        assert tap.shape == (1, channels, -(-65 // reduction), -(-97 // reduction))


@one_alpha_or_the_ends
def test_feature_values_and_pruning(name, alpha):
    x = image(1, 3, 64, 64)
    model = shallow(name, alpha).eval()
    final, taps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(model.forward_intermediates(x, norm=True, intermediates_only=True)[-1], final)
    backbone = shallow(name, alpha, features_only=True, out_indices=(1, 3)).eval()
    assert len(list(backbone.model.layer4)) == 0
    for actual, expected in zip(backbone(x), (taps[1], taps[3])):
        assert_close(actual, expected)
    _, early = model.forward_intermediates(x, indices=[0, 2], stop_early=True)
    assert_close(early[1], taps[2])


def test_the_last_norm_counts_a_batch_once():
    model = shallow("oct_resnetv2_26", 0.25).train()
    model.forward_intermediates(image(2, 3, 64, 64), norm=True)
    assert model.norm.num_batches_tracked == 1


@shallow_names
def test_head(name):
    model = shallow(name, ALPHAS[name][0], in_chans=1, num_classes=7, global_pool="avg")
    model.eval()
    x = image(2, 1, 48, 48)
    assert model(x).shape == (2, 7)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(3, "catavgmax")
    assert model(x).shape == (2, 3)
    assert model.get_classifier().in_features == model.head_hidden_size == 2 * model.num_features
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_features, 2, 2)
    headless = shallow(name, 0, num_classes=0, drop_rate=0.5).eval()
    assert headless(image(1, 3, 32, 32)).shape == (1, headless.num_features)


@every_name
def test_pretrained_cfg(name):
    cfg = deep_dense(name).default_cfg
    assert cfg["architecture"] == name
    assert deep_dense(name).get_classifier(name_only=True) == cfg["classifier"] == "fc"
    assert deep_dense(name).get_submodule(cfg["first_conv"]).in_channels == 3
    with pytest.raises(RuntimeError, match="No pretrained weights exist"), torch.device("meta"):
        shallow(name, 0, pretrained=True)


@one_alpha_or_the_ends
def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none(name, alpha):
    gradients = []
    for checkpointing in (False, True):
        model = shallow(name, alpha, tiny=True).train()
        model.set_grad_checkpointing(checkpointing)
        model(image(2, 3, 64, 64)).square().sum().backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient is not None, key
        assert gradient.abs().max() > 0, key
        assert torch.equal(gradient, gradients[1][key]), key


@every_name
def test_group_matcher_puts_every_parameter_somewhere(name):
    from timm.models._manipulate import group_parameters

    model = deep_dense(name)
    for coarse in (True, False):
        groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
        assert set(groups) == {key for key, _ in model.named_parameters()}
        first = min(key for key in groups if key.startswith("layer"))
        assert {group for key, group in groups.items() if key.startswith(("conv1", "bn1", "maxpool"))} == {0}
        assert groups[first] == 1


def check_compiled(model):
    torch._dynamo.reset()
    x = image(1, 3, 33, 47)
    with torch.no_grad():
        assert_close(torch.compile(model.eval(), fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.slow
def test_every_block_compiles_without_graph_breaks():
    check_compiled(every_block())


@pytest.mark.parametrize(
    ("name", "alpha"),
    [("oct_resnet18", 1)] + [pytest.param(name, ALPHAS[name][0], marks=pytest.mark.slow) for name in CLASSES],
)
def test_compile_without_graph_breaks(name, alpha):
    check_compiled(shallow(name, alpha, tiny=True))


@pytest.mark.skipif(OLD_TORCH, reason="there, PyTorch's pooling with ceil_mode guards on odd sizes")
@pytest.mark.parametrize(
    ("name", "alpha"),
    [("oct_resnet18", 1)] + [pytest.param(name, ALPHAS[name][0], marks=pytest.mark.slow) for name in CLASSES],
)
def test_export_at_every_size(name, alpha):
    """At every batch size and one size of image: `test_export.py`. The dense twin: `test_deploy.py`."""
    model = shallow(name, alpha, tiny=True).eval()
    dims = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(model, (image(2, 3, 64, 96),), dynamic_shapes=(dims,)).module()
    for shape in ((3, 3, 33, 47), (1, 3, 96, 64)):
        with torch.no_grad():
            assert_close(exported(image(*shape)), model(image(*shape)))


@pytest.mark.skipif(OLD_TORCH, reason="as above")
@pytest.mark.parametrize(
    ("factor", "least", "deferred", "sizes"),
    [
        (1, 33, True, ((33, 47), (96, 65))),
        pytest.param(32, 2, False, ((64, 64), (96, 64)), marks=pytest.mark.slow),
    ],
)
def test_export_with_named_sizes(factor, least, deferred, sizes):
    """The two ways that docs/ecosystem.md shows."""
    model = shallow("oct_resnet18", 0.25, tiny=True).eval()
    named = {axis: factor * torch.export.Dim(name, min=least) for axis, name in ((2, "h"), (3, "w"))}
    exported = torch.export.export(
        model,
        (image(2, 3, 64, 96),),
        dynamic_shapes=(named,),
        prefer_deferred_runtime_asserts_over_guards=deferred,
    ).module()
    for size in sizes:
        with torch.no_grad():
            assert_close(exported(image(2, 3, *size)), model(image(2, 3, *size)))


@one_alpha_or_the_ends
def test_tracing_keeps_the_low_part(name, alpha):
    model = shallow(name, alpha, tiny=True).eval()
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        traced = create_feature_extractor(model, ["fc"])
        assert_close(traced(x)["fc"], model(x))


@one_alpha_or_the_ends
def test_channels_last_and_autocast(name, alpha):
    model = shallow(name, alpha, tiny=True).eval()
    x = image(1, 3, 65, 47)
    with torch.no_grad():
        expected = model(x)
        model = model.to(memory_format=torch.channels_last)
        assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected)
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).std() <= 2 * TOLERANCE[torch.bfloat16] * expected.std()


@one_alpha_or_the_ends
def test_weights_of_another_alpha_are_refused(name, alpha):
    state, other, dense = (on_meta(name, a) for a in (alpha, ALPHAS[name][-1], 0))
    state = state.state_dict()
    if alpha == 0:
        other.load_state_dict(state, strict=True, assign=True)  # dense weights are welcome at every alpha
        return
    for target in (other, dense):
        with pytest.raises(RuntimeError, match=rf"weights have alpha .{alpha}(\.0)?,"):
            target.load_state_dict(state, assign=True)
    with pytest.raises(RuntimeError) as error:
        other.load_state_dict(state, assign=True)
    assert str(error.value).count("Build it with that alpha") == 1


@pytest.mark.parametrize(
    ("name", "alpha"), [(name, ALPHAS[name][1]) for name in SHALLOW] + [(name, 1) for name in CLASSES]
)
def test_dense_weights_mean_the_same_at_every_alpha(name, alpha):
    """Where neither resolution nor border matters (constant maps, kernels reduced to their centre) octave is dense.

    So every channel of the dense network is found in its place; a mix-up shows as a difference of order 1.
    """
    model, dense = (shallow(name, a).double().eval() for a in (alpha, 0))
    for key, weight in dense.state_dict().items():
        if key.endswith("weight") and weight.dim() == 4 and weight.shape[-1] > 1:
            centre = torch.zeros_like(weight)
            centre[..., weight.shape[2] // 2, weight.shape[3] // 2] = weight.sum((2, 3))
            weight.copy_(centre)
        elif weight.is_floating_point() and weight.dim() == 1:
            weight.uniform_(0.5, 1.5)
    model.load_state_dict(dense.state_dict(), strict=True)
    channels = dense.bn1.num_features
    x = image(1, channels, 1, 1).double().expand(1, channels, 16, 16)
    with torch.no_grad():
        for net in (model, dense):
            net.conv1 = net.bn1 = net.act1 = net.maxpool = nn.Identity()
        assert_close(model(x), dense(x))


@pytest.mark.parametrize(
    ("name", "alpha"),
    [(name, 0) for name in ("resnet18", "resnet34", "resnet50", "resnext50_32x4d")]
    + [("resnet18", 0.5), ("resnext50_32x4d", 0.25)],
)
def test_torchvision_weights_load_strictly(name, alpha):
    theirs = getattr(torchvision.models, name)()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    model = timm.create_model(f"oct_{name}", alpha=alpha)
    model.load_state_dict(theirs.state_dict(), strict=True)
    x = image(1, 3, 97, 65)
    with torch.no_grad():
        expected, actual = theirs.eval()(x), model.eval()(x)
    assert torch.equal(actual, expected) if alpha == 0 else actual.isfinite().all()


def test_resnext_refuses_an_alpha_that_its_groups_cannot_share():
    with pytest.raises(ValueError, match=r"use an alpha of 0, 0.25, 0.5, 0.75, 1"):
        timm.create_model("oct_resnext50_32x4d", alpha=0.125)


def test_a_misspelt_stem_is_refused():
    with pytest.raises(ValueError, match="stem must be '7x7' or '3x3'"):
        timm.create_model("oct_resnetv2_26", stem="5x5")


def test_small_image_stem():
    model = shallow("oct_resnetv2_26", 0.5, stem="3x3", features_only=True)
    assert model.feature_info.reduction() == [1, 1, 2, 4, 8]
    assert [tuple(tap.shape[2:]) for tap in model(image(1, 3, 33, 33))] == [(33,) * 2] * 2 + [
        (17,) * 2,
        (9,) * 2,
        (5,) * 2,
    ]


def test_of_networks_that_differ_in_depth_one_is_shallow():
    kinds = [str(shapes_of_the_dense_twin(name)) for name in SHALLOW]
    assert len(set(kinds)) == len(SHALLOW)
    assert set(kinds) == {str(shapes_of_the_dense_twin(name)) for name in NAMES}


def test_every_network_is_listed_once_and_under_our_module():
    assert len(NAMES) == 25
    assert all(issubclass(type(deep_dense(name)), OctNet) for name in NAMES)
