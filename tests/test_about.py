"""What a file of weights says of itself: every verb needs the file, and nothing else."""

import json

import pytest
import timm
import torch
import yaml
from folders import CLASSES, make_folder
from helpers import run as cli_run
from safetensors import safe_open

import octaveconv as oc
from octaveconv import cli
from octaveconv.about import About
from octaveconv.data.datasets import preprocessing
from octaveconv.errors import UsageError
from octaveconv.models import create
from octaveconv.train import RunFolder
from octaveconv.weights import files as weights

MODEL, ARGUMENTS = "oct_resnetv2_26", dict(layers=[1, 1, 1, 1], width=8, stem="3x3")
FILES = ["", "model.safetensors", "best.pth", "last.pth"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images, and a run of them by options that are not the network's own."""
    place = tmp_path_factory.mktemp("place")
    make_folder(place / "images" / "train", (4, 4, 4))
    make_folder(place / "images" / "val", (2, 3, 2))
    argv = ["train", MODEL, "--data", place / "images", "--model-args", json.dumps(ARGUMENTS), "--alpha", "0.5"]
    argv += ["--size", "32", "--crop-pct", "1", "--epochs", "1", "--batch-size", "6", "--workers", "0", "--ema", "0.9"]
    argv += ["--device", "cpu", "--threads", "1", "--out", place, "--name", "run"]
    assert cli.main(list(map(str, argv))) == 0
    return place


def run(capsys, *argv):
    code, out, err = cli_run(capsys, *map(str, argv))
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize("name", FILES)
def test_eval_needs_the_file_alone(place, capsys, name):
    out = run(capsys, "eval", place / "run" / name, "--data", place / "images", "--device", "cpu", "--workers", 0)
    assert out.startswith(f"{MODEL}, {place / 'run' / (name or 'model.safetensors')}; ")
    assert "32x32 pixels, bicubic, crop 1;" in out
    assert f"{float(RunFolder(place / 'run').rows()[0]['ema_top1']):.3f} %" in out


@pytest.mark.parametrize("name", FILES)
def test_a_file_holds_everything(place, name):
    about = weights.read(place / "run" / name).about
    assert (about.model, about.model_args, about.alpha, about.size) == (MODEL, ARGUMENTS, 0.5, 32)
    assert about.label_names == sorted(CLASSES, key=lambda word: (len(word), word))
    own = timm.create_model(MODEL).pretrained_cfg
    cfg = about.pretrained_cfg
    assert (cfg["mean"], cfg["std"]) == ([*own["mean"]], [*own["std"]])
    assert (cfg["interpolation"], cfg["crop_pct"], cfg["crop_mode"]) == (own["interpolation"], 1, "center")
    assert cfg["num_classes"] == 3
    assert about.versions["torch"] == torch.__version__.partition("+")[0]
    model = create(str(place / "run" / name))
    assert model.pretrained_cfg["label_names"] == tuple(about.label_names)
    assert timm.data.resolve_data_config(model=model)["input_size"] == (3, 32, 32)


@pytest.mark.parametrize("name", FILES)
def test_the_other_verbs_need_it_alone_too(place, tmp_path, capsys, name):
    source, out = place / "run" / name, tmp_path / "out.safetensors"
    assert "arrays used, all" in run(capsys, "convert", source, "--out", out)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert About.read(metadata) == weights.read(source).about
    if name == "":
        out = run(capsys, "export", source, "--out", tmp_path / "x.octave", "--no-timing")
        assert "images of 32x32 pixels" in out


@pytest.mark.usefixtures("quickly")
def test_a_deployed_file_says_it_too(place, tmp_path, capsys):
    model = create(str(place / "run")).eval()
    oc.deploy(model, torch.zeros(1, 3, 32, 32), engine="native").save(tmp_path / "net.octave")
    loaded = oc.load_deployed(tmp_path / "net.octave")
    assert loaded.about.model == MODEL
    assert loaded.num_classes == 3
    assert loaded.pretrained_cfg["label_names"] == tuple(weights.read(place / "run").about.label_names)
    assert preprocessing(loaded) == preprocessing(model)
    options = ["--data", place / "images", "--device", "cpu", "--workers", 0]
    out = run(capsys, "eval", tmp_path / "net.octave", *options)
    assert out.startswith(f"{MODEL}, {tmp_path / 'net.octave'}; ")
    assert "32x32 pixels, bicubic, crop 1;" in out
    assert f"{float(RunFolder(place / 'run').rows()[0]['ema_top1']):.3f} %" in out
    loaded.save(tmp_path / "again.octave")
    assert oc.load_deployed(tmp_path / "again.octave").about == loaded.about


def test_options_override_and_the_output_says_so(place, capsys):
    options = ["--data", place / "images", "--device", "cpu", "--workers", 0]
    out = run(capsys, "eval", place / "run", *options, "--size", 48)
    assert "model.safetensors (size 48, not the recorded 32); " in out
    assert "48x48 pixels" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eval", "resnet18", "--checkpoint", "{run}"], "has the weights of oct_resnetv2_26, not of resnet18: create"),
        (["eval", "oct_resnet50", "--checkpoint", "{run}"], "of oct_resnetv2_26, not of oct_resnet50: create oct_resn"),
        (["eval", "{run}", "--model-args", "{{width: 16}}"], "with width=8, not with width=16: omit model_args"),
        (["eval", "{run}", "--alpha", "0.25"], "has weights of alpha 0.5, the network has alpha 0.25"),
        (["eval", "{run}", "--checkpoint", "{run}"], "is a file or folder, and a checkpoint is given as well"),
        (["eval", "{place}"], "is a folder without model.safetensors, best.pth: name a file of weights"),
        (["eval", "{place}/nameless.pth"], "does not say which network it belongs to: name that"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line(place, capsys, argv, message):
    torch.save({"fc.weight": torch.ones(3, 4)}, place / "nameless.pth")
    words = [word.format(run=place / "run", place=place) for word in argv]
    code, _, err = cli_run(capsys, *words, "--data", str(place / "images"), "--device", "cpu")
    assert code in (1, 2)
    assert message in err
    assert len(err.splitlines()) == 1
    assert len(err) < 500


def test_a_run_of_an_earlier_version_is_completed_by_its_recipe(place, tmp_path, capsys):
    old = weights.read(place / "run")
    folder = tmp_path / "old"
    folder.mkdir()
    weights.write(folder / "model.safetensors", old.tensors, {"model": MODEL, "alpha": "0.5"})
    state = torch.load(place / "run" / "best.pth", weights_only=True)
    del state["about"]
    torch.save(state, folder / "best.pth")
    (folder / "config.yaml").write_text((place / "run" / "config.yaml").read_text())
    for path in (folder, folder / "best.pth"):
        found = weights.read(path).about
        assert (found.model_args, found.size, found.alpha) == (ARGUMENTS, 32, 0.5)
    with pytest.raises(ValueError, match=r"does not fit oct_resnetv2_26"):
        create(str(folder / "model.safetensors"))
    options = ["--data", place / "images", "--device", "cpu", "--workers", 0, "--size", 32]
    run(capsys, "eval", folder / "model.safetensors", *options, "--model-args", yaml.safe_dump(ARGUMENTS))


def test_fine_tuning_takes_size_and_arguments_from_the_file(place, tmp_path, capsys):
    options = ["--data", place / "images", "--epochs", 1, "--batch-size", 6, "--workers", 0, "--device", "cpu"]
    out = run(capsys, "train", place / "run", *options, "--out", tmp_path, "--name", "tuned")
    assert "images of 32x32 pixels" in out
    assert weights.read(tmp_path / "tuned").about == weights.read(place / "run").about
    config = RunFolder(tmp_path / "tuned").config()
    assert (config["model"], config["size"], config["checkpoint"]) == (MODEL, 32, str(place / "run"))
    config_path = tmp_path / "tuned" / "config.yaml"
    state = torch.load(tmp_path / "tuned" / "last.pth", weights_only=True)
    state["recipe"]["checkpoint"] = str(tmp_path / "gone.pth")
    torch.save(state, tmp_path / "tuned" / "last.pth")
    assert config_path.exists()
    assert "is finished" in run(capsys, "train", "--resume", tmp_path / "tuned", "--device", "cpu")


def test_a_place_with_the_name_of_a_network(place, tmp_path, monkeypatch):
    (tmp_path / "resnet18.safetensors").write_bytes((place / "run" / "model.safetensors").read_bytes())
    (tmp_path / "test_resnet").mkdir()
    monkeypatch.chdir(tmp_path)
    assert create("resnet18.safetensors").alpha == 0.5
    assert create("test_resnet").pretrained_cfg["architecture"] == "test_resnet"


def test_averaged_weights_are_those_of_a_checkpoint(place):
    state = torch.load(place / "run" / "best.pth", weights_only=True)
    assert torch.equal(weights.read(place / "run" / "best.pth").tensors["fc.weight"], state["ema"]["fc.weight"])


def test_classes_of_other_names(place, tmp_path, capsys):
    kinds = dict(shifted=("cat", "dog10", "wolf"), renamed=("a", "b", "c"), fewer=("cat", "dog10"))
    for name, classes in kinds.items():
        make_folder(tmp_path / "made" / name, (1, 1, 1))
        (tmp_path / name).mkdir()
        for old, new in zip(sorted((tmp_path / "made" / name).iterdir()), classes):
            old.rename(tmp_path / name / new)
    options = ["eval", str(place / "run"), "--device", "cpu", "--workers", "0", "--data"]
    code, _, err = cli_run(capsys, *options, str(tmp_path / "shifted"))
    assert code == 2
    assert "shifted has images of classes that are not among the 3 expected ones" in err
    code, out, _ = cli_run(capsys, *options, str(tmp_path / "fewer"))
    assert code == 0
    assert "images 2 skipped 0" in " ".join(out.split())
    assert "classes without images, which have a number as well: dog2" in out
    code, out, _ = cli_run(capsys, *options, str(tmp_path / "renamed"))
    assert code == 0
    assert "its classes have other names than those of the weights: they are taken in the same order" in out


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"alpha": "much"}, "its record of alpha is not JSON"),
        ({"alpha": "2"}, "its record of alpha is '2'"),
        ({"alpha": "NaN"}, "its record of alpha is 'nan'"),
        ({"model": ""}, "its record of the model is not a name"),
        ({"model_args": "[]"}, r"its record of model_args is '\[\]'"),
        ({"pretrained_cfg": "[" * 100_000}, "its record of pretrained_cfg is not JSON"),
        ({"pretrained_cfg": '{"input_size": [3, 1e9, 5]}'}, "its record of input_size"),
        ({"pretrained_cfg": '{"std": [1, 0, 1]}'}, "its record of std"),
        ({"alpha": "1" + "0" * 400}, "its record of alpha is '1000"),  # no float is so large
        ({"pretrained_cfg": '{"mean": [1' + "0" * 400 + "]}"}, "its record of mean"),
        ({"pretrained_cfg": '{"mean": [NaN]}'}, "its record of mean"),
        ({"pretrained_cfg": '{"interpolation": ["x"]}'}, "its record of interpolation"),
        ({"pretrained_cfg": '{"label_names": [1]}'}, "its record of label_names"),
        ({"pretrained_cfg": '{"label_names": ["a"], "num_classes": 2}'}, "it records 1 names of 2 classes"),
    ],
)
def test_a_record_that_cannot_be_is_refused(tmp_path, metadata, message):
    weights.write(tmp_path / "x.safetensors", {"w": torch.ones(1)}, metadata)
    with pytest.raises(ValueError, match=rf"x\.safetensors is damaged: {message}") as caught:
        weights.read(tmp_path / "x.safetensors")
    assert len(str(caught.value)) < 400


def test_a_record_of_arguments_cannot_do_what_options_cannot(tmp_path):
    metadata = {"model": MODEL, "model_args": json.dumps({"checkpoint_path": "/etc/passwd"})}
    weights.write(tmp_path / "x.safetensors", {"fc.weight": torch.ones(3, 1)}, metadata)
    with pytest.raises(UsageError, match="cannot have 'checkpoint_path'"):
        create(str(tmp_path / "x.safetensors"))


def test_a_record_cannot_ask_for_more_memory_than_the_file_has(tmp_path):
    metadata = {"model": MODEL, "model_args": json.dumps({"width": 2**14})}
    weights.write(tmp_path / "x.safetensors", {"fc.weight": torch.ones(3, 1)}, metadata)
    with pytest.raises(ValueError, match=r"x\.safetensors .*has [\d,]+ parameters, the file 3"):
        create(str(tmp_path / "x.safetensors"))


def test_a_network_of_ones_own_may_mean_anything_by_these_names():
    model = torch.nn.Conv2d(3, 4, 1)
    model.pretrained_cfg, model.model_args, model.alpha = "a.yaml", [1], torch.ones(3)
    model.num_classes, model.conversion = "ten", None
    about = About.of(model)
    assert about == About(versions=about.versions)


def test_arguments_that_no_file_can_record():
    model = create("test_resnet", model_args=dict(act_layer=torch.nn.SiLU))
    with pytest.raises(UsageError, match="a file cannot record"):
        About.of(model).metadata()
