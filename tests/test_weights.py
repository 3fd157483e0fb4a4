"""Weights from files of every kind: recognised by their content, converted completely, loaded by timm."""

import errno
import functools
import hashlib
import json
import os
import re

import mxnet_writer as writer
import pytest
import timm
import torch
from goldens import FILES, GOLDENS, ORACLE, convert
from helpers import assert_close
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import octaveconv.about
import octaveconv.models
from octaveconv import cli
from octaveconv.errors import MXNetFormatError, UsageError
from octaveconv.models.create import create
from octaveconv.models.oct_resnet import Bottleneck
from octaveconv.weights import files as weights
from octaveconv.weights import keymaps

SMALL = dict(layers=(1, 1, 1, 1), width=16, num_classes=7)


@pytest.fixture
def small():
    torch.manual_seed(1)
    model = timm.create_model("oct_resnet50", alpha=0.5, **SMALL)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("file", FILES)
def test_convert_writes_what_the_file_holds_and_where_it_came_from(tmp_path, file):
    out, figures = tmp_path / "out.safetensors", tmp_path / "figures.json"
    name = convert(file, tmp_path, out, "--json", str(figures))
    with safe_open(out, "pt") as written:
        metadata = written.metadata()
    digest = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
    alpha = "0.25" if "0.250" in file else "0.375"
    about = octaveconv.about.About.read(metadata).metadata()
    assert about.keys() == {"model", "alpha", "pretrained_cfg", "versions"}
    rest = {"format": "pt", "model": name, "alpha": alpha, "source": file, "sha256": digest}
    assert metadata == about | rest | {"checksum": metadata["checksum"]}
    del metadata["checksum"]
    assert json.loads(figures.read_text()).items() >= metadata.items()
    assert load_file(out)["conv1.weight"].dtype == (torch.float16 if "fp16" in file else torch.float32)
    assert sorted(os.listdir(tmp_path)) == sorted([file, out.name, figures.name])


@functools.cache
def on_meta(name, alpha):
    with torch.device("meta"):
        return timm.create_model(name, alpha=alpha)


@pytest.mark.parametrize("golden", GOLDENS)
def test_names_and_alpha_of_the_original_are_recognised(golden):
    about = json.loads((ORACLE / f"{golden}.json").read_text())
    arrays = {entry["file_name"]: torch.empty(entry["shape"], device="meta") for entry in about["params"]}
    read = weights.Weights("file", arrays)
    assert read.alpha == max(about["alpha"], 0)
    assert read.num_classes == 1000
    model = on_meta(GOLDENS[golden][0], read.alpha)
    assert read.state_dict(model).keys() == model.state_dict().keys()
    for other in ("oct_resnet50", "oct_densenet121", "oct_mobilenetv2_1125"):
        if other != GOLDENS[golden][0]:
            with pytest.raises(ValueError, match=r"arrays left over|the arrays|expected shape"):
                read.state_dict(on_meta(other, read.alpha))


def gluon_name(key, part):
    """A parameter's name in the files of the original's SE-ResNet-152 v1e; written from its specification."""
    leaf = {"weight": "weight", "bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}
    module, _, last = key.rpartition(".")
    norm = re.search(r"bn|(?:^conv1|downsample)\.[147]$", module) and not module.endswith("fc")
    last = {"weight": "gamma", "bias": "beta"}.get(last, last) if norm else leaf[last]
    plain = {"bn1": "conv1.7", "fc": "classifer"}.get(module, module)
    match = re.fullmatch(r"layer(\d)\.(\d+)\.(.*)", module)
    if match is None:
        return f"{plain}.{last}"
    unit = {"downsample.0": "conv4", "downsample.1": "bn4"}.get(match[3], match[3])
    block = f"L{match[1]}_B{match[2]}"
    if unit == "se.fc1":
        return f"{block}.se_block.conv1.{last}"
    if unit == "se.fc2":
        return f"{block}.se_block.conv2_{part}.{last}"
    return f"{block}.{unit}.{'bn' if len(part) == 1 else 'conv'}_{part[0]}{'2' + part[1] if part[1:] else ''}.{last}"


def test_se_resnet152_v1e_has_arrays_for_everything():
    model = timm.create_model("oct_seresnet152e", alpha=0.125, layers=(2, 1, 1, 1), num_classes=5)
    arrays = {}
    for key, tensor in model.state_dict().items():
        module = model.get_submodule(key.rpartition(".")[0])
        if key.endswith("num_batches_tracked"):
            continue
        parts = {"": tensor}
        if isinstance(module, octaveconv.OctConv2d):
            low_out, low_in = int(0.125 * tensor.shape[0]), int(0.125 * tensor.shape[1])
            low_out, low_in = low_out * bool(module.alpha_out), low_in * bool(module.alpha_in)
            rows = dict(h=tensor[: tensor.shape[0] - low_out], l=tensor[tensor.shape[0] - low_out :])
            cut = tensor.shape[1] - low_in
            parts = {f"h{to}": row[:, :cut] for to, row in rows.items()} | {
                f"l{to}": r[:, cut:] for to, r in rows.items()
            }
        elif isinstance(module, octaveconv.OctBatchNorm2d) or key.split(".")[-2] == "fc2":
            alpha = 0 if key.startswith("layer4") and "bn1a" not in key and "bn4a" not in key else 0.125
            alpha = 0 if key.startswith(("layer1.0.bn1a", "layer1.0.bn4a", "layer4.0.bn1.")) else alpha
            low = int(alpha * len(tensor))
            parts = dict(h=tensor[: len(tensor) - low], l=tensor[len(tensor) - low :])
        arrays |= {gluon_name(key, part): piece for part, piece in parts.items() if piece.numel()}
    raw = [name.removesuffix("running_var") for name in arrays if re.search(r"bn[14]a.*running_var", name)]
    for name in raw:  # the files hold these, though the network does not use them
        arrays |= {f"{name}gamma": torch.rand(3), f"{name}beta": torch.zeros(1)}
    assert len(raw) == 2 * (5 + 4) - 2  # high and low, but for the first block's input
    found = weights.Weights("file", arrays).state_dict(model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(found[key], tensor), key


def test_a_frozen_shift_goes_into_the_running_mean():
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.bias.data.normal_()
    names = dict(bias="beta", weight="gamma", running_mean="running_mean", running_var="running_var")
    arrays = {f"L1_B0.bn1a.bn_h.{theirs}": norm.state_dict()[ours] for ours, theirs in names.items()}
    folded = keymaps.fold_fixed_norms(arrays | {"L1_B0.bn1a.bn_h.gamma": torch.full((4,), 9.0)})
    assert set(folded) == {"L1_B0.bn1a.bn_h.running_mean", "L1_B0.bn1a.bn_h.running_var"}
    ours = nn.BatchNorm2d(4, affine=False)
    ours.running_mean, ours.running_var = folded.values()
    x = torch.randn(2, 4, 3, 3)
    assert_close(ours.eval()(x), norm.eval()(x))


def test_a_block_with_late_stride_gates_and_raw_norms():
    model = timm.create_model("oct_seresnet152e", alpha=0, layers=(1, 1, 1, 1)).eval()
    block, x = model.layer2[0], torch.randn(1, 256, 6, 6)
    assert isinstance(block, Bottleneck)
    with torch.no_grad():
        y = block.bn1(block.conv1(block.bn1a(x))).relu()
        y = block.bn3(nn.functional.conv2d(block.bn2(block.conv2(y)).relu(), block.conv3.weight, stride=2))
        gate = block.se.fc2(block.se.fc1(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        shortcut = block.downsample[1](block.downsample[0](block.bn4a(x)))
        assert_close(block(x), (y * gate + shortcut).relu())


def d_li14(model):
    """The parameters of an alpha 0.5 network by d-li14's names, cut into their parts."""
    state = {}
    for key, tensor in model.state_dict().items():
        match = re.fullmatch(r"(layer\d\.\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", key)
        if match is None:
            state[key] = tensor
            continue
        block, kind, number, leaf = match.groups()
        unit = "downsample.0" if kind == "downsample." else f"conv{number}"
        module = model.get_submodule(key.rpartition(".")[0])
        if isinstance(module, octaveconv.OctConv2d):
            out, into = (round(n * a) for n, a in zip(tensor.shape, (1 - module.alpha_out, 1 - module.alpha_in)))
            for name, part in dict(
                h2h=tensor[:out, :into], h2l=tensor[out:, :into], l2h=tensor[:out, into:], l2l=tensor[out:, into:]
            ).items():
                if part.numel():
                    state[f"{block}.{unit}.conv.conv_{name}.{leaf}"] = part.clone()
        else:
            high = round(module.num_features * (1 - module.alpha))
            parts = dict(h=tensor, l=tensor) if not tensor.dim() else dict(h=tensor[:high], l=tensor[high:])
            state |= {f"{block}.{unit}.bn_{name}.{leaf}": part for name, part in parts.items() if part.numel()}
    return state


def test_checkpoints_of_d_li14(tmp_path, small):
    for module in small.modules():
        if hasattr(module, "num_batches_tracked") and module.num_batches_tracked is not None:
            module.num_batches_tracked.fill_(5)
    theirs = d_li14(small)
    assert {"layer1.0.conv2.conv.conv_h2l.weight", "layer1.0.conv2.bn_l.running_var", "fc.bias"} <= theirs.keys()
    assert {"layer1.0.downsample.0.conv.conv_h2h.weight", "layer1.0.downsample.0.bn_h.weight"} <= theirs.keys()
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in theirs.items()}}, tmp_path / "d.pth")
    read = weights.read(tmp_path / "d.pth")
    assert (read.alpha, read.num_classes) == (0.5, 7)
    found = read.state_dict(small)
    assert found.keys() == small.state_dict().keys()
    for key, tensor in small.state_dict().items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize(
    "write",
    [
        lambda state, path: torch.save(state, path),
        lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
        lambda state, path: torch.save({"model": {}, "state_dict_ema": state, "state_dict": {"x": 1}}, path),
        lambda state, path: torch.save({f"module.{key}": tensor for key, tensor in state.items()}, path),
        lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
        lambda state, path: save_file(dict(state), path),
        lambda state, path: save_file(dict(state), path, {"alpha": "0.5"}),
    ],
    ids=["state dict", "nested", "ema", "ddp", "legacy", "safetensors", "marked safetensors"],
)
def test_checkpoints_of_pytorch(tmp_path, small, write):
    write(small.state_dict(), tmp_path / "file")
    model = timm.create_model("oct_resnet50", alpha=0.5, **SMALL, checkpoint_path=str(tmp_path / "file"))
    for key, tensor in small.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


@pytest.mark.parametrize("write", [torch.save, lambda state, path: save_file(dict(state), path, {"alpha": "0.5"})])
def test_marked_weights_of_another_alpha_are_refused(tmp_path, small, write):
    write(small.state_dict(), tmp_path / "file")
    assert weights.read(tmp_path / "file").alpha == 0.5
    with pytest.raises(
        ValueError, match=r"has weights of alpha 0.5, the network has alpha 0.25: create it at alpha 0.5"
    ):
        timm.create_model("oct_resnet50", alpha=0.25, **SMALL, checkpoint_path=str(tmp_path / "file"))


def test_dense_weights_are_welcome_at_every_alpha(tmp_path):
    dense = timm.create_model("oct_resnet50", alpha=0, **SMALL)
    torch.save(dense.state_dict(), tmp_path / "dense.pth")
    timm.create_model("oct_resnet50", alpha=0.25, **SMALL, checkpoint_path=str(tmp_path / "dense.pth"))


def test_networks_that_are_not_ours_are_left_to_timm(tmp_path):
    theirs = timm.create_model("resnet18")
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    loaded = timm.create_model("resnet18", checkpoint_path=str(tmp_path / "resnet18.pth"))
    assert torch.equal(loaded.fc.weight, theirs.fc.weight)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"state_dict": {"x": torch.ones(1)}, "bomb": Bomb(tmp_path / "boom")}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match=r"bomb.pth .*cannot read it with weights_only=True"):
        weights.read(tmp_path / "bomb.pth")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an MXNet or safetensors file"),
        (b"Hello, world", "is not an MXNet or safetensors file"),
        (b"\x40\0\0\0\0\0\0\0{}", "is damaged"),
        (bytes.fromhex("1201000000000000"), "needs"),
        (b"\x1f\x8bnothing", "gzip stream"),
    ],
)
def test_damaged_files(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        weights.read(tmp_path / "file")


def test_no_file_and_no_state_dict(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        weights.read(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        weights.read(tmp_path / "pipe")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="does not hold a state dict"):
        weights.read(tmp_path / "list.pth")


def test_what_does_not_fit_is_listed_and_nothing_written(tmp_path, small):
    state = dict(small.state_dict())
    state["stranger"] = state.pop("bn1.weight")
    source, out = tmp_path / "a.pth", tmp_path / "sub" / "out.safetensors"
    torch.save(state, source)
    with pytest.raises(ValueError, match=r"1 arrays left over \(stranger\), 1 not filled \(bn1.weight\)"):
        weights.convert(source, small, "oct_resnet50", out)
    torch.save(small.state_dict() | {"fc.bias": torch.zeros(8)}, source)
    with pytest.raises(ValueError, match=r"fc.bias has shape \[8\], the network expects \[7\]"):
        weights.convert(source, small, "oct_resnet50", out)
    torch.save(small.state_dict(), source)
    with pytest.raises(ValueError, match=r"has sha256 \w{64}, expected beef"):
        weights.convert(source, small, "oct_resnet50", out, sha256="beef")
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path, small, monkeypatch):
    source, out = tmp_path / "a.pth", tmp_path / "out.safetensors"
    torch.save(small.state_dict(), source)
    out.write_text("before")

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*out.safetensors: No space left"):
        weights.convert(source, small, "oct_resnet50", out)
    assert out.read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "out.safetensors"]


def test_create_takes_alpha_and_classes_from_the_weights(tmp_path):
    (tmp_path / "a.params").write_bytes(writer.golden_file("gluon_mobilenet_v1_075_alpha-0.375"))
    assert create("oct_mobilenetv1_075", checkpoint=tmp_path / "a.params").alpha == 0.375
    with pytest.raises(ValueError, match="create it at their own alpha"):
        create("oct_mobilenetv1_075", 0.5, tmp_path / "a.params")
    with pytest.raises(UsageError, match=r"no network 'oct_mobilenetv1_07': did you mean oct_mobilenetv1_075\?"):
        create("oct_mobilenetv1_07")
    (tmp_path / "b.params").write_bytes((tmp_path / "a.params").read_bytes()[:5000])
    with pytest.raises(MXNetFormatError, match=r"b.params: at byte \d+"):
        create("oct_mobilenetv1_075", checkpoint=tmp_path / "b.params")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["oct_mobilenetv1_075", "a.params", "--out", "a.pth"], 2, "must end in .safetensors"),
        (["oct_mobilenetv1_075", "no.params", "--out", "a.safetensors"], 2, "there is no file no.params"),
        (["oct_mobilnet", "a.params", "--out", "a.safetensors"], 2, "there is no network 'oct_mobilnet'"),
        (["oct_mobilenetv1_100", "a.params", "--out", "a.safetensors"], 1, "expected shape [32, 3, 3, 3]"),
        (["resnet18", "a.params", "--out", "a.safetensors"], 2, "is a dense network and has no alpha"),
    ],
)
def test_convert_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, capsys, argv, code, message):
    (tmp_path / "a.params").write_bytes(writer.golden_file("gluon_mobilenet_v1_075_alpha-0.375"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", *argv]) == code
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["a.params"]
