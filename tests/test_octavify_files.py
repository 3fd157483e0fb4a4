"""An octavified network goes to a file and comes back: the verb, the mark, scoring and fine-tuning from it."""

import json

import pytest
import safetensors
import timm
import torch
from folders import make_folder
from helpers import run

import octaveconv as oc
from octaveconv.models.create import create
from octaveconv.octavify.octavify import rebuild
from octaveconv.train import network
from octaveconv.train.recipe import Recipe
from octaveconv.weights import files as weights

MODEL = "test_resnet"  # a tiny one of timm's


@pytest.fixture
def dense(tmp_path):
    """A file of a dense network's weights for 3 classes."""
    model = timm.create_model(MODEL, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "dense.pth")
    return tmp_path / "dense.pth"


@pytest.fixture
def octave(capsys, dense, tmp_path):
    """What the verb makes of it."""
    out = tmp_path / "new" / "octave.safetensors"
    code, printed, err = run(
        capsys, "octavify", MODEL, "--checkpoint", str(dense), "--alpha", "0.5", "--size", "64",
        "--keep", "layer2.*", "--out", str(out), "--json", str(tmp_path / "plan.json"),
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "convolutions are octave; MACs" in printed
    assert f"octaveconv train {MODEL} --checkpoint {out}" in printed
    return out


def test_the_file_makes_the_network_again(octave, dense, tmp_path):
    expected, plan = oc.octavify(create(MODEL, None, dense), 0.5, torch.zeros(1, 3, 64, 64), ["layer2.*"])
    found = create(MODEL, checkpoint=octave).eval()
    assert found.conversion == plan.conversion == json.loads((tmp_path / "plan.json").read_text())["conversion"]
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(found(x), expected.eval()(x))
    with safetensors.safe_open(octave, "pt") as file:
        assert file.metadata()["model"] == MODEL
        written = json.loads(file.metadata()["octavify"])
    assert written == plan.conversion
    known = {"alphas", "input_size", "keep", "min_size", "stem", "octave"}  # those of files of 0.1.0
    assert written.keys() == known | {"pool_strides"}
    older = {key: value for key, value in written.items() if key in known}
    pooled = oc.octavify(create(MODEL, None, dense), 0.5, torch.zeros(1, 3, 64, 64), ["layer2.*"], pool_strides=True)[0]
    assert torch.equal(rebuild(create(MODEL, None, dense), older).eval()(x), pooled.eval()(x))
    torch.save({"state_dict": found.state_dict()}, tmp_path / "octave.pth")
    again = create(MODEL, checkpoint=tmp_path / "octave.pth").eval()
    assert torch.equal(again(x), expected(x))


def test_timm_does_not_take_octave_weights_for_dense_ones(octave):
    with pytest.raises(ValueError, match=r"octavified.*octaveconv.models.create\('test_resnet'"):
        timm.create_model(MODEL, num_classes=3, checkpoint_path=str(octave))


def test_a_sample_and_a_budget(capsys, dense, tmp_path):
    make_folder(tmp_path / "images" / "train", (2, 3, 2))
    arguments = ["octavify", MODEL, "--checkpoint", str(dense), "--size", "64", "--data", str(tmp_path / "images")]
    out = str(tmp_path / "auto.safetensors")
    more = "--alpha", "auto", "--macs", "0.8", "--images", "4", "--distill", "1", "--out", out
    code, printed, _ = run(capsys, *arguments, *more)
    assert code == 0
    assert "distilled 1 of 1 epochs" in printed
    assert " cost " in next(line for line in printed.splitlines() if line.startswith("layer"))
    assert "refitted: agreement" in printed
    assert 0.5 < float(printed.partition("(")[2].partition("%")[0]) / 100 <= 0.8
    found = create(MODEL, checkpoint=tmp_path / "auto.safetensors")
    assert any(isinstance(module, oc.OctConv2d) for module in found.modules())


@pytest.mark.parametrize("arguments", [["--keep", "*"], ["--checkpoint", "{octave}"]])
def test_what_converts_nothing_is_an_error(capsys, octave, tmp_path, arguments):
    argv = [word.format(octave=octave) for word in arguments]
    code, _, err = run(capsys, "octavify", MODEL, *argv, "--out", str(tmp_path / "x.safetensors"))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "nothing was written: 0 of " in err or "holds an octavified network already: fine-tune it with" in err
    assert not (tmp_path / "x.safetensors").exists()


def test_fine_tuning_and_scoring_the_result(capsys, octave, tmp_path):
    make_folder(tmp_path / "images" / "train", (4, 4, 4))
    make_folder(tmp_path / "images" / "val", (2, 2, 2))
    code, _, err = run(
        capsys, "train", MODEL, "--checkpoint", str(octave), "--data", str(tmp_path / "images"),
        "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "6", "--size", "64", "--workers", "0", "--ema", "0.5",
        "--dropout", "0.2",
        "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "runs"), "--name", "tuned",
    )  # fmt: skip
    assert (code, err) == (0, "")
    result = tmp_path / "runs" / "tuned" / "model.safetensors"
    assert weights.read(result).about.octavify == weights.read(octave).about.octavify
    assert not torch.equal(weights.read(result).tensors["fc.weight"], weights.read(octave).tensors["fc.weight"])
    code, printed, err = run(
        capsys, "eval", MODEL, "--checkpoint", str(result), "--data", str(tmp_path / "images"),
        "--size", "64", "--device", "cpu", "--workers", "0",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "top-1" in printed


def test_another_number_of_classes_starts_a_new_head(octave, capsys):
    recipe = Recipe(model=MODEL, checkpoint=str(octave), size=64)
    model = network.network(recipe, 7)
    assert model.num_classes == 7
    assert torch.equal(model.layer1[0].conv1.weight, create(MODEL, checkpoint=octave).layer1[0].conv1.weight)
    assert "its classifier starts from random weights" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no gradient checkpointing"):
        network.network(Recipe(model=MODEL, checkpoint=str(octave), size=64, grad_checkpointing=True), 7)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("{", "is not JSON"),
        ('{"alphas": {}}', "cannot be octavified in the way that the file records"),
        (
            '{"alphas": {"nothing": 0.5}, "input_size": [3, 64, 64], "keep": [], "min_size": 8, "stem": false}',
            "nothing",
        ),
        (
            '{"alphas": {"conv1": "x"}, "input_size": [3, 64, 64], "keep": [], "min_size": 8, "stem": false}',
            "in the way",
        ),
    ],
)
def test_a_broken_recipe_is_refused(octave, tmp_path, recipe, message):
    weights.write(tmp_path / "x.safetensors", weights.read(octave).tensors, {"octavify": recipe})
    with pytest.raises(ValueError, match=message):
        create(MODEL, checkpoint=tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["oct_resnet18"], "oct_resnet18 is an octave network already"),
        ([MODEL, "--alpha", "auto"], "--alpha auto needs a budget and a sample"),
        ([MODEL, "--alpha", "much"], "--alpha must be a number in [0, 1), or auto, got 'much'"),
        ([MODEL, "--alpha", "1"], "must be in [0, 1), got 1.0"),
        ([MODEL, "--keep", "nothing"], "keep pattern 'nothing' matches no layer"),
        ([MODEL, "--macs", "0.5"], 'macs is a budget of alpha="auto"'),
        ([MODEL, "--pretrained", "--checkpoint", "x.pth"], "two sources of weights"),
        (["resnet81"], "did you mean resnet18?"),
    ],
)
def test_wrong_use(capsys, tmp_path, argv, message):
    code, out, err = run(capsys, "octavify", *argv, "--out", str(tmp_path / "x.safetensors"))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_file_must_be_called_safetensors(capsys):
    code, _, err = run(capsys, "octavify", MODEL, "--out", "x.pth")
    assert code == 2
    assert "must end in .safetensors" in err


@pytest.mark.slow
def test_export_times_it_beside_its_dense_twin(capsys, octave, tmp_path):
    out = tmp_path / "octave.pt2"
    options = ["--checkpoint", str(octave), "--size", "64", "--runs", "2", "--threads", "1"]
    code, printed, err = run(capsys, "export", MODEL, *options, "--out", str(out))
    assert (code, err) == (0, "")
    assert f"{MODEL}, octavified, weights" in printed
    assert "its dense twin; T = " in printed
