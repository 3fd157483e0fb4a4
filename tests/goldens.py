"""The original's networks: their goldens, the files that hold their weights, and how far our networks are from them."""

import json
from pathlib import Path

import mxnet_writer as writer
import timm
import torch
from oracle.rule import image, rule

import octaveconv.models  # noqa: F401  # registers
from octaveconv import cli
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
