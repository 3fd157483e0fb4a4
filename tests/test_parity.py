"""Our networks against logits that the original MXNet code produced; the weights are regenerated from a rule."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import mxnet_writer as writer
import pytest
import timm
import torch
from oracle.rule import image, rule

import octaveconv as oc
import octaveconv.models
from octaveconv import cli, env
from octaveconv.weights import keymaps

ORACLE = Path(__file__).parent / "oracle"
LIMIT = 1e-4  # of the logits' standard deviation; a wrong eps shows at 8e-4, the original's own noise is 5e-6
GOLDENS = {
    "gluon_mobilenet_v1_075_alpha-0.375": ("oct_mobilenetv1_075", keymaps.mxnet_gluon_mobilenet),
    "gluon_mobilenet_v2_100_alpha-0.375": ("oct_mobilenetv2_100", keymaps.mxnet_gluon_mobilenet),
    "gluon_resnet152_v1f_alpha-0.125": ("oct_resnet152f", keymaps.mxnet_gluon_resnetv1_deep),
    "gluon_resnet50_v1b_alpha-0.5": ("oct_resnet50", keymaps.mxnet_gluon_resnetv1),
    "symbol_densenet-121_alpha-0.25": ("oct_densenet121", keymaps.mxnet_symbol_densenet),
    "symbol_resnetv2-26_baseline": ("oct_resnetv2_26", keymaps.mxnet_symbol_resnetv2),
    "symbol_resnetv2-26_alpha-0.125": ("oct_resnetv2_26", keymaps.mxnet_symbol_resnetv2),
    "symbol_resnetv2-26_alpha-0.25": ("oct_resnetv2_26", keymaps.mxnet_symbol_resnetv2),
    "symbol_resnetv2-26_alpha-0.5": ("oct_resnetv2_26", keymaps.mxnet_symbol_resnetv2),
    "symbol_resnetv2-26_alpha-0.75": ("oct_resnetv2_26", keymaps.mxnet_symbol_resnetv2),
    "symbol_resnetv2-50_alpha-0.5": ("oct_resnetv2_50", keymaps.mxnet_symbol_resnetv2),
    "symbol_resnext-50_32x4d_alpha-0.25": ("oct_resnextv2_50_32x4d", keymaps.mxnet_symbol_resnetv2),
    "symbol_se-resnet-50_alpha-0.125": ("oct_seresnetv2_50", keymaps.mxnet_symbol_resnetv2),
}


# Files as MXNet wrote them (`mxnet_writer` writes the same bytes): the golden they hold, and our network.
FILES = {
    "a02_resnet-26_alpha-0.250.tar": ("symbol_resnetv2-26_alpha-0.25", "oct_resnetv2_26"),
    "mobilenet_v1_075_alpha-0.375.params": ("gluon_mobilenet_v1_075_alpha-0.375", "oct_mobilenetv1_075"),
    "mobilenet_v1_075_fp16.params": ("mobilenet_v1_075_fp16", "oct_mobilenetv1_075"),
}


def load_golden(name):
    """The golden, its network with the golden's weights, and the arrays as the original stores them."""
    golden = json.loads((ORACLE / f"{name}.json").read_text())
    arch, keymap = GOLDENS[name]
    arrays = {}
    for entry in golden["params"]:
        key = entry["file_name"].split(":")[-1]
        arrays[entry["file_name"]] = torch.from_numpy(rule(key, entry["shape"], golden["gain"]))
    model = timm.create_model(arch, alpha=max(golden["alpha"], 0)).eval()
    return golden, model, arrays, keymap


def difference(name):
    """Largest difference to the original's logits, in units of their standard deviation."""
    golden, model, arrays, keymap = load_golden(name)
    model.load_state_dict(keymaps.to_state_dict(arrays, model, keymap), strict=True)
    return difference_of(model, golden)


def difference_of(model, golden):
    """The same of a network that has the golden's weights."""
    with torch.no_grad():
        logits = model(torch.from_numpy(image(golden["input_size"])))[0]
    expected = torch.tensor(golden["logits"])
    return ((logits - expected).abs().max() / expected.std()).item()


def convert(file, folder, out, *options):
    """Have one of the files converted by the command line; return the network's name."""
    golden, name = FILES[file]
    (folder / file).write_bytes((writer.golden_tar if file.endswith(".tar") else writer.golden_file)(golden))
    assert cli.main(["convert", name, str(folder / file), "--out", str(out), *options]) == 0
    return name


def file_difference(file, folder):
    """Largest difference to the original's logits with the weights of a file that was converted."""
    name = convert(file, folder, folder / "out.safetensors")
    golden = json.loads(next(ORACLE.rglob(f"{FILES[file][0]}.json")).read_text())
    model = timm.create_model(name, alpha=golden["alpha"], checkpoint_path=str(folder / "out.safetensors"))
    return difference_of(model.eval(), golden)


@pytest.mark.parametrize("file", FILES)
def test_files_of_mxnet_through_the_command_line(tmp_path, file):
    assert file_difference(file, tmp_path) <= LIMIT


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_equal_the_original(name):
    assert difference(name) <= LIMIT


@pytest.mark.parametrize("name", GOLDENS)
def test_cost_equals_the_original(name):
    golden = json.loads((ORACLE / f"{name}.json").read_text())
    with torch.device("meta"):
        model = timm.create_model(GOLDENS[name][0], alpha=max(golden["alpha"], 0))
    report = oc.cost(model, golden["input_size"])
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
    with pytest.raises(ValueError, match="build it at the weights' own alpha"):
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
    with pytest.raises(ValueError, match="build it at the weights' own alpha"):
        keymaps.to_state_dict(arrays, model, keymap)


def test_left_over_and_missing_arrays_are_listed():
    _, model, arrays, keymap = load_golden("symbol_resnetv2-26_alpha-0.25")
    arrays["arg:stranger_weight"] = arrays.pop("arg:tail_bn_gamma")
    with pytest.raises(ValueError, match=r"1 arrays left over \(arg:stranger_weight\), 1 not filled \(norm.weight\)"):
        keymaps.to_state_dict(arrays, model, keymap)


if __name__ == "__main__":  # results/parity.json, shown in docs/networks.md
    torch.set_num_threads(1)
    rows = {name: {"network": GOLDENS[name][0], "difference": difference(name)} for name in GOLDENS}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        rows |= {f: {"network": FILES[f][1], "difference": file_difference(f, Path(folder))} for f in FILES}
    print(json.dumps({"env": env.facts(), "threads": 1, "dtype": "float32", "goldens": rows}, indent=1))
