"""Checkpoints as other programs write them: their weights load, and nothing in them runs."""

import argparse
import collections
import pathlib
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import octaveconv as oc
from octaveconv import cli
from octaveconv.models import create
from octaveconv.weights import checkpoints, pickles, read

SMALL = dict(layers=(1, 1, 1, 1), width=8, num_classes=7)


@pytest.fixture(scope="module")
def small():
    return timm.create_model("oct_resnet50", alpha=0.5, **SMALL).eval()


class Settings(dict):
    """A trainer's own dictionary, which also keeps attributes."""

    def __init__(self, **content):
        super().__init__(content)
        self.note = "attribute"


class Names(list):
    """A trainer's own list."""


def of_timm(model):
    """What train.py's CheckpointSaver saves."""
    optimizer = torch.optim.AdamW(model.parameters())
    args = argparse.Namespace(
        model="oct_resnet50", lr=0.1, betas=(0.9, 0.999), data_dir=pathlib.Path("a"), cfg={1: [2]}
    )
    return {
        "epoch": 3, "arch": "oct_resnet50", "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(),
        "version": 2, "args": args, "amp_scaler": {}, "metric": np.float64(71.5),
    }  # fmt: skip


def prefixed(model, prefix):
    """The state dict of a network inside others."""
    for name in reversed(prefix.split(".")):
        model = nn.ModuleDict({name: model})
    return model.state_dict()


KINDS = {
    "timm": of_timm,
    "own classes": lambda model: dict(
        model=model.state_dict(),
        settings=Settings(lr=0.1),
        names=Names("ab"),
        counts=collections.defaultdict(list, a=[1]),
        scheduler=torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), 0.1), 1),
        array=np.ones(3),
    ),
    "Lightning": lambda model: {
        "pytorch-lightning_version": "2.5", "state_dict": prefixed(model, "model"), "global_step": 5,
        "hyper_parameters": Settings(lr=0.1), "callbacks": {}, "optimizer_states": [{}],
    },
    "Lightning, net": lambda model: {"state_dict": prefixed(model, "net"), "hyper_parameters": {"alpha": 0.25}},
    "model_state_dict": lambda model: {"model_state_dict": model.state_dict(), "optimizer_state_dict": {}, "loss": 1.0},
    "net": lambda model: {"net": model.state_dict(), "acc": 91.0, "epoch": 3},
    "params": lambda model: {"params": model.state_dict()},
    "params_ema": lambda model: {"params": {"x": torch.ones(1)}, "params_ema": model.state_dict()},
    "two levels": lambda model: {"model": {"state_dict": model.state_dict(), "epoch": 3}},
    "AveragedModel": lambda model: {"model_ema": torch.optim.swa_utils.AveragedModel(model).state_dict()},
    "DataParallel, compiled": lambda model: prefixed(model, "_orig_mod.module"),
    "compiled, DataParallel": lambda model: {"state_dict": prefixed(model, "module._orig_mod")},
    "Lightning, compiled, DataParallel": lambda model: {"state_dict": prefixed(model, "model._orig_mod.module")},
    "DataParallel, Lightning": lambda model: prefixed(model, "module.net"),
    "a compiled part": lambda model: {
        key.replace("layer1.", "layer1._orig_mod."): tensor for key, tensor in model.state_dict().items()
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_programs_write_loads(small, tmp_path, kind):
    torch.save(KINDS[kind](small), tmp_path / "c.pth", _use_new_zipfile_serialization=kind != "own classes")
    found, expected = read(tmp_path / "c.pth").state_dict(small), small.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("kind", ["timm", "Lightning"])
def test_every_way_to_load_reads_them(small, tmp_path, kind):
    path = tmp_path / "c.pth"
    torch.save(KINDS[kind](small), path)
    by_hand = timm.create_model("oct_resnet50", alpha=0.5, **SMALL)
    timm.models.load_checkpoint(by_hand, str(path))
    found = [
        timm.create_model("oct_resnet50", alpha=0.5, **SMALL, checkpoint_path=str(path)),
        by_hand,
        create("oct_resnet50", 0.5, path, model_args={key: SMALL[key] for key in ("layers", "width")}),
    ]
    for model in found:
        assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in small.state_dict().items())


@pytest.mark.parametrize("kind", ["timm", "Lightning, compiled, DataParallel", "compiled, DataParallel"])
def test_the_mark_of_alpha_is_found_in_them(small, tmp_path, kind):
    torch.save(KINDS[kind](small), tmp_path / "c.pth")
    assert read(tmp_path / "c.pth").alpha == 0.5
    with pytest.raises(ValueError, match=r"has weights of alpha 0\.5, the network has alpha 0\.25"):
        timm.models.load_checkpoint(timm.create_model("oct_resnet50", **SMALL), str(tmp_path / "c.pth"))


def test_timms_reader_keeps_the_mark(small, tmp_path):
    torch.save({"state_dict": prefixed(small, "module")}, tmp_path / "c.pth")
    state = timm.models.load_state_dict(str(tmp_path / "c.pth"))
    small.load_state_dict(state)
    with pytest.raises(RuntimeError, match="these weights have alpha"):
        timm.create_model("oct_resnet50", **SMALL).load_state_dict(state)


def test_the_averaged_weights_are_taken_if_they_are_wanted(small, tmp_path):
    averaged = {key: torch.zeros_like(tensor) for key, tensor in small.state_dict().items()}
    torch.save({"state_dict": small.state_dict(), "state_dict_ema": averaged}, tmp_path / "c.pth")
    model = timm.create_model("oct_resnet50", alpha=0.5, **SMALL)
    timm.models.load_checkpoint(model, str(tmp_path / "c.pth"))
    assert not model.fc.weight.any()
    timm.models.load_checkpoint(model, str(tmp_path / "c.pth"), use_ema=False)  # as validate.py does
    assert torch.equal(model.fc.weight, small.fc.weight)


def test_a_whole_network_is_refused_with_the_cure(small, tmp_path):
    whole = timm.create_model("test_resnet")
    for content in (whole, {"epoch": 3, "model": whole}, {"ema": whole, "model": None}):
        torch.save(content, tmp_path / "c.pth")
        with pytest.raises(
            ValueError, match=r"c\.pth holds a whole timm\.models\.resnet\.ResNet, .* save its state_dict"
        ):
            read(tmp_path / "c.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(nn.Identity()), tmp_path / "c.pth")
    with pytest.raises(ValueError, match="TorchScript archive, a program"):
        read(tmp_path / "c.pth")


def test_what_does_not_belong_to_the_network_is_told(small, tmp_path):
    torch.save({"state_dict": prefixed(small, "model") | {"criterion.weight": torch.ones(7)}}, tmp_path / "c.pth")
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "criterion\.weight"'):
        timm.create_model("oct_resnet50", alpha=0.5, **SMALL, checkpoint_path=str(tmp_path / "c.pth"))
    torch.save(prefixed(small, "model") | prefixed(small, "net"), tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"c\.pth: it holds several networks, of which net\.conv1\.weight is one"):
        timm.create_model("oct_resnet50", alpha=0.5, **SMALL, checkpoint_path=str(tmp_path / "c.pth"))


def test_a_network_that_has_such_names_itself_keeps_them(tmp_path):
    model = nn.ModuleDict({"model": nn.Conv2d(3, 4, 1)})
    torch.save(nn.ModuleDict({"module": model}).state_dict(), tmp_path / "c.pth")
    assert read(tmp_path / "c.pth").state_dict(model).keys() == {"model.weight", "model.bias"}


def test_octavified_networks_load_checkpoints_of_their_own_kind_alone(tmp_path):
    dense = timm.create_model("test_resnet", num_classes=3).eval()
    image = torch.zeros(1, 3, 64, 64)
    first, other = (oc.octavify(dense, alpha, image)[0] for alpha in (0.5, 0.25))
    torch.save({"state_dict": first.state_dict(), "args": argparse.Namespace()}, tmp_path / "c.pth")
    timm.models.load_checkpoint(first, str(tmp_path / "c.pth"))
    for model in (other, dense):
        with pytest.raises(ValueError, match=r"c\.pth holds the weights of an octavified network"):
            timm.models.load_checkpoint(model, str(tmp_path / "c.pth"))


@pytest.mark.parametrize(
    ("beside", "names"),
    [
        ({"classes": ["0", "1", "10", "2"]}, ["0", "1", "10", "2"]),
        ({"class_to_idx": {"a": 1, "b": 0, "c": 3, "d": 2}}, ["b", "a", "d", "c"]),
        ({"meta": {"CLASSES": ("a", "b", "c", "d")}}, ["a", "b", "c", "d"]),
        ({"hyper_parameters": {"class_names": ["a", "b", "c", "d"]}}, ["a", "b", "c", "d"]),
        ({"classes": ["a", "b"]}, None),
        ({"classes": 4}, None),
        ({"classes": {"a": 7}, "class_names": [1, 2, 3, 4]}, None),
    ],
)
def test_names_of_classes(tmp_path, beside, names):
    torch.save({"model": {"fc.weight": torch.ones(4, 2)}} | beside, tmp_path / "c.pth")
    assert read(tmp_path / "c.pth").about.label_names == names


def test_a_checkpoints_own_classes_decide(tmp_path, capsys):
    model = timm.create_model("test_resnet", num_classes=3)
    for name in ("1", "10", "2"):  # as torchvision's ImageFolder sorts them
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / "0.png")
    argv = [
        "eval",
        "test_resnet",
        "--data",
        str(tmp_path / "data"),
        "--workers",
        "0",
        "--size",
        "32",
        "--device",
        "cpu",
    ]
    for beside, told in [
        ({}, "natural order, class 1 is '2'; torchvision's ImageFolder sorts names as text, so there it is '10'"),
        ({"classes": ["1", "10", "2"]}, "its classes are numbered as in the weights"),
    ]:
        torch.save({"model": model.state_dict()} | beside, tmp_path / "c.pth")
        assert cli.main([*argv, "--checkpoint", str(tmp_path / "c.pth")]) == 0
        assert told in capsys.readouterr().out


class Bomb:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [exec, eval], ids=lambda call: call.__name__)
def test_nothing_runs(tmp_path, call):
    fuse = tmp_path / "boom"
    bomb = Bomb(call, f"open({str(fuse)!r}, 'w')")
    torch.save({"state_dict": {"w": torch.ones(1)}, "bomb": bomb}, tmp_path / "c.pth")
    assert read(tmp_path / "c.pth").tensors.keys() == {"w"}
    assert not fuse.exists()
    with pytest.raises(ValueError, match="UnpicklingError"):  # of our own runs' files nothing is skipped
        pickles.read(tmp_path / "c.pth")


def test_objects_leave_nothing_behind(tmp_path):
    allowed = torch.serialization.get_safe_globals()
    torch.save({"a": argparse.Namespace(x=torch.ones(1)), "b": Settings(y=1), "c": Names([1])}, tmp_path / "c.pth")
    found = pickles.read(tmp_path / "c.pth", skip=True)
    assert vars(found["a"]) == {}
    assert found["a"].kind == "argparse.Namespace"
    assert (found["b"], found["c"]) == ({"y": 1}, [1])
    assert {*torch.serialization.get_safe_globals()} == {*allowed}
    assert checkpoints.state_dict_in(found) is None
