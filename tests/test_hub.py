"""timm.models.save_for_hf and push_to_hf_hub: what comes back is the network that was saved."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import octaveconv as oc
from octaveconv.models import create
from octaveconv.weights import read

SMALL = dict(layers=(1, 1, 1, 1), width=8, num_classes=3)
IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def octave():
    torch.manual_seed(0)
    dense = timm.create_model("test_resnet", num_classes=3, drop_rate=0.1).eval()
    dense.pretrained_cfg["label_names"] = ("a", "b", "c")
    return oc.octavify(dense, 0.5, IMAGE)[0]


@pytest.fixture(scope="module")
def saved(octave, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    timm.models.save_for_hf(octave, folder, safe_serialization="both")
    return folder


@pytest.mark.parametrize("left_out", ["model.safetensors", "pytorch_model.bin"])
def test_an_octavified_network_comes_back(octave, saved, tmp_path, left_out):
    folder = shutil.copytree(saved, tmp_path / "copy", ignore=shutil.ignore_patterns(left_out))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(model(IMAGE), octave(IMAGE))
    assert model.conversion == octave.conversion
    assert model.pretrained_cfg["architecture"] == "test_resnet"
    timm.models.save_for_hf(model, tmp_path / "again", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
    assert torch.equal(again(IMAGE), octave(IMAGE))


def test_with_another_classifier(octave, saved, capsys):
    model = timm.create_model(f"local-dir:{saved}", pretrained=True, num_classes=5).eval()
    assert model(IMAGE).shape == (1, 5)
    assert torch.equal(model.conv1[0].weight, octave.conv1[0].weight)
    assert "has 3 classes, the network 5: its classifier starts from random weights" in capsys.readouterr().out


def test_the_hub(octave, tmp_path, monkeypatch):
    class Api:
        def __init__(self, **arguments):
            pass

        def create_repo(self, repo_id, **arguments):
            return type("Url", (), {"repo_id": repo_id})

        def file_exists(self, **arguments):
            return False

        def upload_folder(self, folder_path, **arguments):
            shutil.copytree(folder_path, tmp_path / "hub")

    monkeypatch.setattr("timm.models._hub.HfApi", Api)
    for place in ("timm.models._hub", "octaveconv.models._octavified"):
        monkeypatch.setattr(f"{place}.download_from_hf", lambda model_id, name, cache_dir=None: tmp_path / "hub" / name)
    timm.models.push_to_hf_hub(octave, "someone/octave")
    model = timm.create_model("hf-hub:someone/octave", pretrained=True).eval()
    assert torch.equal(model(IMAGE), octave(IMAGE))


def test_its_files_are_not_taken_for_a_dense_networks(octave, saved):
    for name in ("model.safetensors", "pytorch_model.bin"):
        with pytest.raises(ValueError, match="holds the weights of an octavified network"):
            timm.create_model("test_resnet", num_classes=3, checkpoint_path=saved / name)
        overlay = dict(file=str(saved / name), custom_load=False)
        with pytest.raises(ValueError, match="holds the weights of an octavified network"):
            timm.create_model("test_resnet", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay)
    file = saved / "model.safetensors"
    assert torch.equal(create(str(file)).eval()(IMAGE), octave(IMAGE))
    assert read(file).about.label_names == ["a", "b", "c"]


def test_our_own_networks_come_back_with_their_alpha(tmp_path):
    model = timm.create_model("oct_resnet50", alpha=0.5, **SMALL).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(IMAGE), model(IMAGE))
    with pytest.raises(ValueError, match=r"has weights of alpha 0\.5, the network has alpha 0\.25"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, alpha=0.25)


def test_what_cannot_be(octave, saved, tmp_path):
    with pytest.raises(ValueError, match="no features_only: octavify timm's network made with it"):
        timm.create_model(f"local-dir:{saved}", features_only=True)
    with pytest.raises(ValueError, match="from a folder or from the hub that timm saved them to"):
        timm.create_model("octaveconv_octavified")
    own = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    with pytest.raises(ValueError, match="timm cannot make the network '' that was octavified: save its state_dict"):
        timm.models.save_for_hf(oc.octavify(own, 0.5, IMAGE, stem=True)[0], tmp_path)
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["conversion"]["alphas"] = {"no.layer": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be octavified in the way that the file records"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
