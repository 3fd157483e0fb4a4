"""A network by its name: what every verb says when name, arguments and weights do not fit together."""

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import octaveconv as oc
from octaveconv import cli
from octaveconv.about import About
from octaveconv.errors import UsageError
from octaveconv.models import create
from octaveconv.train import RunFolder
from octaveconv.weights import read
from octaveconv.weights.files import write

NARROW = dict(layers=(1, 1, 1, 1), width=8)


@pytest.mark.parametrize(
    ("name", "alpha", "arguments", "message"),
    [
        ("resnet50", 0.25, {}, "resnet50 is a dense network and has no alpha: use oct_resnet50, or convert it "
                               "(octaveconv octavify resnet50)"),
        ("vgg11", 0.25, {}, "vgg11 is a dense network and has no alpha: use an octave network (octaveconv models lists "
                            "them), or convert it (octaveconv octavify vgg11)"),
        ("oct_resnet50", 2, {}, "oct_resnet50: alpha is the low-frequency share of the channels and must be in "
                                "[0, 1], got 2"),
        ("oct_resnet50", "much", {}, "oct_resnet50: alpha is the low-frequency share of the channels and must be in "
                                     "[0, 1], got 'much'"),
        ("oct_resnet50_a", None, {}, "there is no network 'oct_resnet50_a': did you mean oct_resnet50?"),
        ("oct_resnet50", None, dict(widht=8), "oct_resnet50 has no argument 'widht': did you mean width?"),
        ("oct_resnet50", None, dict(colour=8), "oct_resnet50 has no argument 'colour': it takes block, layers, "),
        ("resnet18", None, dict(drop_rat=0.1), "resnet18 has no argument 'drop_rat': did you mean drop_rate?"),
        ("oct_resnet50", None, dict(width="wide"), "oct_resnet50 cannot be built with width='wide' (TypeError: "),
        ("oct_resnet50", None, dict(num_classes=-3), "num_classes must be a whole number from 0 up, got -3"),
        ("oct_resnet50", None, dict(num_classes="ten"), "num_classes must be a whole number from 0 up, got 'ten'"),
        ("oct_resnet50", None, dict(layers=(1, 1, 1)), "oct_resnet50: layers must be 4 whole numbers from 1 up, the "
                                                       "blocks of each stage, got (1, 1, 1)"),
        ("oct_mobilenetv1_100", None, dict(layers=(1, 0)), "layers must be 5 whole numbers from 1 up"),
        ("oct_resnet50", 0, dict(width=0), "oct_resnet50: conv1.weight would have no numbers with alpha=0, width=0"),
        ("oct_resnet50", 0.5, dict(alpha=0.25), "alpha is 0.5, but model_args have alpha 0.25: omit it there"),
        ("oct_resnet50", None, dict(features_only=True), "cannot have 'features_only': it leaves out the classifier"),
        ("resnet18", None, dict(pretrained=True), "cannot have 'pretrained': name a file of weights"),
        ("resnet18", None, dict(checkpoint_path="x"), "cannot have 'checkpoint_path': name the file as the checkpoint"),
        (None, None, {}, "a network is given by its name in timm, got None"),
        ("oct_resnetv2_26", None, dict(stem="5x5"), "oct_resnetv2_26: stem must be '7x7' or '3x3', got '5x5'"),
        ("oct_resnetv2_50_a250", 0.5, {}, "oct_resnetv2_50_a250 has alpha 0.25, got 0.5: oct_resnetv2_50 takes every"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be(name, alpha, arguments, message):
    with pytest.raises(UsageError) as caught:
        create(name, alpha, pretrained=False, model_args=arguments)
    assert message in str(caught.value)
    assert str(caught.value).count("oct_resnetv2_50_a250") <= 1


def test_there_is_one_source_of_weights(weights):
    with pytest.raises(UsageError, match="two sources of weights: give one"):
        create("oct_resnet50", checkpoint=weights, pretrained=True)
    with pytest.raises(UsageError, match="oct_resnet18 has no published weights: omit pretrained, or give a file"):
        create("oct_resnet18", pretrained=True)


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "resnet18", "--alpha", "0.5", "--data", "{images}", "--batch-size", "4"],
        ["eval", "resnet18", "--alpha", "0.5", "--data", "{images}", "--device", "cpu"],
        ["export", "resnet18", "--alpha", "0.5", "--format", "pt2", "--out", "{out}.pt2"],
        ["cost", "resnet18", "--alpha", "0.5"],
        ["convert", "resnet18", "{weights}", "--alpha", "0.5", "--out", "{out}.safetensors"],
    ],
    ids=lambda argv: argv[0],
)
def test_every_verb_says_what_a_dense_network_lacks(capsys, tmp_path, argv):
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / folder / f"{i}.png")
    torch.save({"x": torch.ones(1)}, tmp_path / "weights.pth")
    places = dict(images=tmp_path / "images", out=tmp_path / "out", weights=tmp_path / "weights.pth")
    assert cli.main([word.format(**places) for word in argv]) == 2
    assert capsys.readouterr().err == (
        "octaveconv: resnet18 is a dense network and has no alpha: use oct_resnet18, or convert it (octaveconv "
        "octavify resnet18)\n"
    )


@pytest.fixture
def weights(tmp_path):
    """Of a network with 7 classes."""
    torch.save(create("oct_resnet50", 0.5, num_classes=7, model_args=NARROW).state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_weights_of_another_number_of_classes(weights, capsys):
    message = r"w\.pth has 7 classes, but num_classes is 3: omit it, or fine-tune with a new classifier"
    with pytest.raises(UsageError, match=message):
        create("oct_resnet50", None, weights, 3, model_args=NARROW)
    model = create("oct_resnet50", None, weights, 3, model_args=NARROW, new_head=True)
    assert "its classifier starts from random weights" in capsys.readouterr().out
    assert create("oct_resnet50", None, weights, 0, model_args=NARROW, new_head=True).num_classes == 0
    assert capsys.readouterr().out == ""
    assert model.num_classes == 3
    assert torch.equal(model.conv1.weight, read(weights).tensors["conv1.weight"])


def test_weights_of_another_network_are_told_in_one_line(weights):
    with pytest.raises(ValueError, match=r"w\.pth does not fit oct_resnet18: ") as caught:
        create("oct_resnet18", None, weights)
    assert len(str(caught.value)) < 500
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_that_records_its_network_names_it(octave, tmp_path, ending):
    other = f"x.{ending} has the weights of test_resnet, not of resnet18: create test_resnet, or use another file"
    state = timm.create_model("test_resnet").state_dict()
    if ending == "pth":  # of a run
        torch.save({"model": state, "recipe": {"model": "test_resnet"}}, tmp_path / "x.pth")
    else:
        write(tmp_path / "x.safetensors", octave.state_dict(), About.of(octave, "test_resnet").metadata())
    with pytest.raises(ValueError, match=other):
        create("resnet18", checkpoint=tmp_path / f"x.{ending}")


def test_a_file_of_the_same_network_at_another_alpha_names_the_alpha(tmp_path):
    model = create("oct_resnet50", 0.5, model_args=NARROW)
    write(tmp_path / "x.safetensors", model.state_dict(), About.of(model, "oct_resnet50").metadata())
    with pytest.raises(ValueError, match=r"has weights of alpha 0\.5, the network has alpha 0\.25: create it at"):
        create("oct_resnet50", 0.25, tmp_path / "x.safetensors", model_args=NARROW)


def test_a_folder_is_no_file_of_weights(tmp_path):
    for arguments in (dict(name="resnet18", checkpoint=tmp_path), dict(name=str(tmp_path))):
        message = r"is a folder without model\.safetensors, best\.pth: name a file of weights$"
        with pytest.raises(IsADirectoryError, match=message):
            create(**arguments)


def test_converting_octave_weights_names_the_network(octave, tmp_path, capsys):
    torch.save(octave.state_dict(), tmp_path / "w.pth")
    assert cli.main(["convert", OCTAVIFIED, str(tmp_path / "w.pth"), "--out", str(tmp_path / "x.safetensors")]) == 1
    assert "octaveconv.models.create('test_resnet', checkpoint=" in capsys.readouterr().err


def test_a_dense_network_is_converted_too(capsys, tmp_path):
    model = timm.create_model("test_resnet")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    out = tmp_path / "out.safetensors"
    assert cli.main(["convert", "test_resnet", str(tmp_path / "w.pth"), "--out", str(out)]) == 0
    assert torch.equal(read(out).tensors["fc.weight"], model.fc.weight)


# Weights of octavified networks, which fit the dense network's shapes

OCTAVIFIED = "test_resnet"


@pytest.fixture(scope="module")
def octave():
    dense = timm.create_model(OCTAVIFIED, num_classes=3).eval()
    return oc.octavify(dense, 0.5, torch.zeros(1, 3, 64, 64))[0]


KINDS = {
    "plain": lambda octave, path: torch.save(octave.state_dict(), path),
    "legacy": lambda octave, path: torch.save(octave.state_dict(), path, _use_new_zipfile_serialization=False),
    "state_dict": lambda octave, path: torch.save({"state_dict": octave.state_dict(), "epoch": 3}, path),
    "model": lambda octave, path: torch.save({"model": octave.state_dict(), "ema": None}, path),
    "state_dict_ema": lambda octave, path: torch.save({"state_dict_ema": octave.state_dict()}, path),
    "model_ema": lambda octave, path: torch.save({"model_ema": octave.state_dict()}, path),
    "ddp": lambda octave, path: torch.save({"model": torch.nn.ModuleDict({"module": octave}).state_dict()}, path),
    "safetensors": lambda octave, path: save_file(octave.state_dict(), path, {"octavify": "{}"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_timm_does_not_take_octave_weights_for_dense_ones(octave, tmp_path, kind):
    file = str(tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth"))
    KINDS[kind](octave, file)
    with pytest.raises(ValueError, match=r"octavified network: octaveconv\.models\.create\('test_resnet', checkpoint="):
        timm.create_model(OCTAVIFIED, num_classes=3, checkpoint_path=file)


def test_a_run_folder_of_an_octavified_network_is_refused_by_timm_and_rebuilt_by_create(octave, tmp_path):
    run = RunFolder.new(tmp_path, "run")
    run.save({"model": octave.state_dict(), "ema": None, "epoch": 1}, best=True)
    with pytest.raises(ValueError, match=r"best\.pth holds the weights of an octavified network"):
        timm.create_model(OCTAVIFIED, num_classes=3, checkpoint_path=str(run.best))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(create(OCTAVIFIED, checkpoint=run.best).eval()(x), octave(x))
    with pytest.raises(UsageError, match=r"best\.pth says how its network was octavified: omit alpha, got 0\.5"):
        create(OCTAVIFIED, 0.5, run.best)


def test_our_networks_do_not_take_the_weights_of_octavified_ones_for_dense_ones(tmp_path):
    dense = timm.create_model("resnet18").eval()
    octave, _ = oc.octavify(dense, 0.5, torch.zeros(1, 3, 64, 64))
    torch.save(octave.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds the weights of an octavified network"):
        timm.create_model("oct_resnet18", alpha=0.5, checkpoint_path=str(tmp_path / "w.pth"))


class Settings:
    """What a foreign trainer keeps beside its weights; weights_only=True does not read it."""


def test_foreign_files_still_go_to_timm(tmp_path, monkeypatch):
    dense = timm.create_model(OCTAVIFIED, num_classes=3)
    torch.save({"state_dict": dense.state_dict(), "settings": Settings()}, tmp_path / "foreign.pth")
    torch.save(dense.state_dict(), tmp_path / "dense.pth")
    given = []
    monkeypatch.setattr("octaveconv.models._timm._load_checkpoint", lambda model, path: given.append(path))
    paths = [str(tmp_path / name) for name in ("foreign.pth", "dense.pth", "nothing.pth")]
    for path in paths:
        timm.create_model(OCTAVIFIED, num_classes=3, checkpoint_path=path)
    assert given == paths


def test_nothing_in_a_file_runs_while_it_is_judged(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("boom").mkdir, ())

    torch.save({"state_dict": {"x": torch.ones(1)}, "bomb": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        timm.create_model(OCTAVIFIED, checkpoint_path=str(tmp_path / "bomb.pth"))
    assert not (tmp_path / "boom").exists()
