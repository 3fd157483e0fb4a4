"""Files that version 0.1.0 wrote load and give what they gave then, or are refused with the cure.

``files_0_1_0.tar.xz`` holds one of each kind, made with seed 0 at commit 6193d70: a state dict and a file of weights of
a small network, an octavified network of timm's ``test_resnet``, an exported network, and a run that was stopped after
its first epoch; ``answers.json`` has what each network answered.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import timm
import torch
from folders import make_folder
from torch import nn

import octaveconv as oc
import octaveconv.models
from octaveconv import cli
from octaveconv.export import load

ARCHIVE = Path(__file__).parent / "files_0_1_0.tar.xz"
NETWORK = dict(layers=[1, 1, 1, 1], width=4, stem="3x3")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def image(size):
    return torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)


def assert_answers(model, path, size):
    expected = json.loads((path.parent / "answers.json").read_text())[path.name]
    with torch.no_grad():
        found = model.eval()(image(size))[0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["state_dict.pth", "weights.safetensors"])
def test_weights(files, name):
    model = octaveconv.models.create("oct_resnetv2_26", checkpoint=files / name, model_args=NETWORK)
    assert model.alpha == 0.5
    assert_answers(model, files / name, 32)


def test_a_state_dict_keeps_its_mark_of_alpha(files):
    state = torch.load(files / "state_dict.pth", weights_only=True)
    model = timm.create_model("oct_resnetv2_26", alpha=0.25, num_classes=2, **NETWORK)
    with pytest.raises(RuntimeError, match="these weights have alpha"):
        model.load_state_dict(state)


@pytest.mark.parametrize("name", ["octavified.safetensors", "octavified.pth"])
def test_an_octavified_network(files, name):
    assert_answers(octaveconv.models.create("test_resnet", checkpoint=files / name), files / name, 64)


def exported_network(files):
    layers = oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.5), oc.OctBatchNorm2d(8, alpha=0.5)
    last = oc.OctConv2d(8, 4, 3, padding=1, alpha_in=0.5), oc.Merge()
    model = nn.Sequential(*layers, oc.OctMap(nn.ReLU()), *last).eval()
    model.load_state_dict(torch.load(files / "exported_network.pth", weights_only=True))
    return model


@pytest.mark.parametrize("name", ["exported.onnx", "exported.pt2"])
def test_an_exported_network(files, name):
    with torch.no_grad():
        expected = exported_network(files)(image(32))
        found = load(files / name)(image(32))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_run_is_not_resumed_with_other_random_numbers_but_its_weights_start_a_new_one(
    files, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "images" / "train", (4, 4))
    make_folder(tmp_path / "images" / "val", (2, 2))
    shutil.copytree(files / "run", tmp_path / "run")
    assert cli.main(["train", "--resume", "run", "--device", "cpu"]) == 2
    assert "give its last.pth as the checkpoint of a new run" in capsys.readouterr().err
    started = [
        "train",
        "--recipe",
        "run/config.yaml",
        "--checkpoint",
        "run/last.pth",
        "--warmup-epochs",
        "0",
        "--epochs",
        "1",
        "--device",
        "cpu",
    ]
    assert cli.main(started) == 0
    assert (tmp_path / "runs" / "oct_resnetv2_26-0.5" / "model.safetensors").exists()
