"""Our networks against logits that the original MXNet code produced; the weights are regenerated from a rule."""

import json

import pytest
import timm
import torch
from goldens import FILES, GOLDENS, LIMIT, ORACLE, difference, file_difference, load_golden

import octaveconv as oc
from octaveconv.weights import keymaps

ALIKE = [f"symbol_resnetv2-26_alpha-{alpha}" for alpha in (0.125, 0.5, 0.75)]  # `make parity` does all
SLOW = [*ALIKE, "gluon_resnet152_v1f_alpha-0.125", "gluon_mobilenet_v1_075_alpha-0.375", "symbol_resnetv2-50_alpha-0.5"]


def quick(slow):
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in GOLDENS]


@pytest.mark.parametrize("file", FILES)
def test_files_of_mxnet_through_the_command_line(tmp_path, file):
    assert file_difference(file, tmp_path) <= LIMIT


@pytest.mark.parametrize("name", quick(SLOW))
def test_logits_equal_the_original(name):
    assert difference(name) <= LIMIT


@pytest.mark.parametrize("name", quick(SLOW))
def test_cost_equals_the_original(name):
    golden = json.loads((ORACLE / f"{name}.json").read_text())
    with torch.device("meta"):
        model = timm.create_model(GOLDENS[name][0], alpha=max(golden["alpha"], 0))
    report = oc.cost(model, input_size=golden["input_size"])
    assert report.macs == report.counted_macs == golden["macs"]
    assert report.params == golden["num_params_trainable"]


@pytest.mark.parametrize("name", GOLDENS)
def test_norms_have_the_epsilon_and_momentum_of_the_original(name):
    golden = json.loads((ORACLE / f"{name}.json").read_text())
    with torch.device("meta"):
        model = timm.create_model(GOLDENS[name][0], alpha=max(golden["alpha"], 0))
    norms = [module for module in model.modules() if isinstance(module, (oc.OctBatchNorm2d, torch.nn.BatchNorm2d))]
    assert {norm.eps for norm in norms} == {golden["batchnorm_eps"]}
    assert {round(1 - norm.momentum, 6) for norm in norms} == {
        golden["batchnorm_momentum"]
    }  # MXNet weighs the old value


def test_a_lone_convolution_of_another_alpha_is_refused():
    paths = {name: torch.zeros(4, 4, 1, 1) for name in ("hh", "hl", "lh", "ll")}
    net = torch.nn.ModuleDict({"conv": oc.OctConv2d(8, 8, 1, bias=False, alpha_in=0.5, alpha_out=0.5)})
    assert (
        keymaps.to_state_dict(paths, net, lambda name: keymaps.Target("conv.weight", name))["conv.weight"].shape[0] == 8
    )
    net = torch.nn.ModuleDict({"conv": oc.OctConv2d(8, 8, 1, bias=False, alpha_in=0.25, alpha_out=0.25)})
    with pytest.raises(ValueError, match="create it at their own alpha"):
        keymaps.to_state_dict(paths, net, lambda name: keymaps.Target("conv.weight", name))


def test_a_transposed_array_is_refused_and_a_linear_layer_taken_for_a_1x1_convolution():
    assert keymaps.to_state_dict(
        {"w": torch.zeros(4, 6, 1, 1)}, torch.nn.Linear(6, 4, bias=False), lambda _: keymaps.Target("weight")
    )
    with pytest.raises(ValueError, match=r"expected shape \[4, 6\], the arrays make \[6, 4\]"):
        keymaps.to_state_dict(
            {"w": torch.zeros(6, 4)}, torch.nn.Linear(6, 4, bias=False), lambda _: keymaps.Target("weight")
        )


def test_weights_of_another_alpha_are_refused():
    _, _, arrays, keymap = load_golden("symbol_resnetv2-26_alpha-0.25")
    with torch.device("meta"):
        model = timm.create_model("oct_resnetv2_26", alpha=0.5)
    with pytest.raises(ValueError, match="create it at their own alpha"):
        keymaps.to_state_dict(arrays, model, keymap)


def test_left_over_and_missing_arrays_are_listed():
    _, model, arrays, keymap = load_golden("symbol_resnetv2-26_alpha-0.25")
    arrays["arg:stranger_weight"] = arrays.pop("arg:tail_bn_gamma")
    with pytest.raises(ValueError, match=r"1 arrays left over \(arg:stranger_weight\), 1 not filled \(norm.weight\)"):
        keymaps.to_state_dict(arrays, model, keymap)
