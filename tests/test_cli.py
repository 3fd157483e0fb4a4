"""What the user types: verbs, JSON, exit codes, one-line errors."""

import dataclasses
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from helpers import run, shorten_quickstart
from safetensors.torch import save

from octaveconv import cli, quickstart
from octaveconv.train import recipe


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_is_one_screen_with_an_example(capsys, verb):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert f"example: octaveconv {verb}" in out
    assert len(out.splitlines()) <= 30
    assert run(capsys, "--help")[0] == 0


def positions(words, text):
    """Where each of the words stands in a text, of those that do."""
    found = [re.search(rf"^ +{word}\b", text, re.MULTILINE) for word in words]
    return [match.start() for match in found if match]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_example_parses(verb):
    example = cli.VERBS[verb].add.__doc__.partition("Example: ")[2].strip()
    program, *argv = shlex.split(example)
    assert program == "octaveconv"
    assert cli.parse(argv).verb == verb


# In the help of every verb, those that it has come in this order.
COMMON = [
    "MODEL", "--alpha", "--checkpoint", "--data", "--size", "--batch-size", "--device", "--dtype", "--workers",
    "--threads", "--seed", "--out", "--json",
]  # fmt: skip


@pytest.mark.parametrize("verb", cli.VERBS)
def test_what_verbs_share_comes_in_one_order(capsys, verb):
    found = positions(COMMON, run(capsys, verb, "--help")[1])
    assert found == sorted(found)


WITH_MODEL = ["cost", "bench", "choose", "look", "convert", "octavify", "eval", "predict", "train", "export"]


@pytest.mark.parametrize("verb", WITH_MODEL)
@pytest.mark.parametrize("option", [["--model", "resnet18"], ["--model=resnet18"]])
def test_model_is_the_first_argument(capsys, verb, option):
    code, out, err = run(capsys, verb, *option, "--alpha", "0.25", "--out", "file")
    cure = f"octaveconv {verb}: give the model as the first argument: octaveconv {verb} resnet18\n"
    assert (code, out, err) == (2, "", cure)
    assert "--model " not in run(capsys, verb, "--help")[1]


def test_the_model_may_follow_options_where_it_is_optional():
    before = cli.parse(["train", "oct_resnet18", "--recipe", "a.yaml", "--data", "images"])
    after = cli.parse(["train", "--recipe", "a.yaml", "--data", "images", "oct_resnet18"])
    assert before == after
    assert (before.model, before.data) == ("oct_resnet18", "images")
    assert cli.parse(["train", "--recipe", "a.yaml"]).model is None


def test_cost(capsys, tmp_path):
    file = tmp_path / "new" / "cost.json"
    code, out, _ = run(capsys, "cost", "oct_resnet50", "--alpha", "0.5", "--json", str(file))
    assert code == 0
    assert "2,367,143,936" in out
    assert "equal" in out
    figures = json.loads(file.read_text())
    assert (figures["model"], figures["alpha"], figures["counted_macs"]) == ("oct_resnet50", 0.5, 2367143936)
    assert "layer4.2.conv3" in run(capsys, "cost", "oct_resnet50", "--layers")[1]


def test_cost_says_where_the_formula_does_not_see_everything(capsys):
    assert "NOT equal" in run(capsys, "cost", "vit_tiny_patch16_224")[1]


def test_models(capsys, tmp_path):
    code, out, _ = run(capsys, "models", "oct_resnetv2_26*", "--json", str(tmp_path / "models.json"))
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert lines[1] == ["oct_resnetv2_26", "any", "(cost", "at", "0)", "15.991", "2.342"]
    assert lines[3] == [
        "oct_resnetv2_26_a250",
        "0.25",
        "15.991",
        "1.858",
        "1.884",
        "76.1",
        "92.6",
        "known",
        "a02_resnet-26_alpha-0.250.tar",
    ]
    assert json.loads((tmp_path / "models.json").read_text())[2]["sha256"].startswith("29fba1f4")
    assert len(run(capsys, "models")[1].splitlines()) == 1 + 25 + 31


def test_models_are_sorted_and_filtered(capsys):
    def rows(*options):
        return [line.split() for line in run(capsys, "models", *options)[1].splitlines()[1:]]

    found = rows("oct_resnetv2_26*", "--alpha", "0.25")
    assert [row[0] for row in found] == ["oct_resnetv2_26", "oct_resnetv2_26_a250"]
    assert found[0][1:] == ["any", "(cost", "at", "0.25)", "15.991", "1.858"]
    costs = [float(row[6] if row[1] == "any" else row[3]) for row in rows("--sort", "macs")]
    assert costs == sorted(costs)
    assert len(costs) == 25 + 31
    assert max(costs) > 5 >= max(float(row[3]) for row in rows("--max-gmacs", "5", "--min-top1", "75"))
    accuracies = [float(row[5]) for row in rows("*_a*", "--sort", "top1", "--min-top1", "78")]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] >= 78
    for options in (["--alpha", "0.3"], ["--min-top1", "99"], ["--max-gmacs", "0"]):
        code, out, err = run(capsys, "models", *options)
        assert (code, out, "octaveconv cost NETWORK --alpha A counts any" in err) == (2, "", True)


def test_env(capsys, tmp_path):
    code, out, _ = run(capsys, "env", "--json", str(tmp_path / "env.json"))
    assert code == 0
    assert "torch" in out
    assert json.loads((tmp_path / "env.json").read_text())["octaveconv"] != "not installed"


@pytest.fixture
def narrow(monkeypatch):
    """The main job on a narrow network and a few of the images."""
    shorten_quickstart(monkeypatch)
    job = quickstart.run
    monkeypatch.setattr(quickstart, "run", lambda settings, *more: job(dataclasses.replace(settings, width=4), *more))


@pytest.mark.usefixtures("narrow")
@pytest.mark.slow
def test_quickstart(capsys, tmp_path):
    file = tmp_path / "quickstart.json"
    code, out, _ = run(
        capsys, "quickstart", "--epochs", "1", "--batch-size", "64", "--threads", "1",
        "--out", str(tmp_path / "run"), "--json", str(file),
    )  # fmt: skip
    assert code == 0
    assert "multiply-adds" in out
    assert "times as long" in out or "times as fast" in out
    assert (tmp_path / "run" / "curves.png").exists()
    assert f"report: {tmp_path}/run/report.html" in out
    assert "octaveconv predict" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads(file.read_text())["settings"]["epochs"] == 1


def test_without_scikit_learn_quickstart_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    code, _, err = run(capsys, "quickstart")
    assert code == 1
    assert err == "octaveconv: this needs sklearn, which is not installed: pip install 'octaveconv[demo]'\n"


@pytest.mark.usefixtures("narrow")
def test_without_matplotlib_the_figures_are_not_lost(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = "--epochs", "1", "--batch-size", "64", "--threads", "1", "--out", str(tmp_path)
    code, out, _ = run(capsys, "quickstart", *options, "--json", str(tmp_path / "q.json"))
    assert code == 0
    assert "No curves: this needs matplotlib" in (tmp_path / "report.html").read_text()
    assert "no curves: this needs matplotlib" in out
    assert (tmp_path / "q.json").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["qickstart"], "did you mean quickstart?"),
        (["zzz"], "invalid choice: 'zzz'"),
        (["bench", "oct_resnet50", "--device", "cud"], "did you mean cuda?"),
        (["train", "--recipe", "a.yaml", "oct_resnet18", "more"], "unrecognized arguments: more"),
        (["cost", "oct_resnet50", "--aplha=1"], "did you mean --alpha?"),
        (["cost", "oct_resnet5O"], "there is no network 'oct_resnet5O': did you mean oct_resnet50?"),
        (["cost", "zzz"], "octaveconv models lists them"),
        (["cost", "oct_resnet50", "--aplha", "1"], "did you mean --alpha?"),
        (["cost", "oct_resnet50", "--alpha", "2"], "must be in [0, 1], got 2.0"),
        (["cost", "oct_resnext50_32x4d", "--alpha", "0.1"], "use an alpha of 0, 0.25, 0.5, 0.75, 1"),
        (["cost", "resnet18", "--alpha", "0.5"], "resnet18 is a dense network and has no alpha"),
        (["cost", "oct_resnet50", "--size", "0"], "must be a whole number from 1 up, got '0'"),
        (["cost"], "required: MODEL"),
        (["models", "oct_rasnet50"], "did you mean oct_resnet50?"),
        (["quickstart", "--alpha", "0"], "--alpha must be above 0 and at most 1"),
        (
            ["eval", "resnet18", "--data", "x", "--workers", "-1"],
            "must be a whole number from 0 up, got '-1'",
        ),
        (["train", "oct_resnet81", "--data", "x"], "there is no network 'oct_resnet81': did you mean oct_resnet18?"),
        (["train", "--data", "x", "--opt", "sgdd"], "timm has no optimizer 'sgdd': did you mean sgd?"),
        (
            ["train", "--data", "x", "--epochs", "5", "--warmup-epochs", "5"],
            "warmup_epochs must be below epochs, got 5 of 5: lower",
        ),
        (["bench", "oct_resnet18", "--dense", "foo"], "neither timm nor torchvision has a network 'foo'"),
        (["bench", "oct_resnet18", "--dense", "torchvison/resnet18"], "did you mean torchvision?"),
        (["--json"], "required: VERB"),
        (["eval", "--data", "x"], "required: MODEL"),
        (["export", "--out", "x.onnx"], "required: MODEL"),
        (["train", "--recipe", "recipes/cifar1.yaml"], "there is no recipe recipes/cifar1.yaml: did you mean cifar10?"),
        (["train", "--recipe", "no/mobilenetv1.yaml"], "did you mean mobilenetv1, of this package?"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(capsys, argv, message):
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert "did you mean" in message or "did you mean" not in err


@pytest.mark.parametrize(
    ("argv", "messages"),
    [
        (
            ["eval", "--data", "x", "--workers", "-1", "--dtype", "fp8"],
            ["from 0 up, got '-1'", "'fp8'", "required: MODEL"],
        ),
        (["eval", "resnet18", "--size", "0", "--json", "{d}"], ["required: --data", "from 1 up, got '0'"]),
        (["cost", "resnet18", "--size", "0", "--json", "{d}"], ["from 1 up, got '0'", "--json {d} is a folder"]),
        (
            ["train", "oct_resnet81", "--data", "{d}", "--threads", "0", "--lr", "x", "--json", "{d}"],
            ["'0'", "lr must", "--json", "oct_resnet18"],
        ),
        (["train", "--recipe", "{d}/none", "--threads", "0", "--lr", "x"], ["'0'", "there is no recipe", "lr must be"]),
        (["train", "--resume", "{d}", "--device", "cud", "--threads", "0"], ["did you mean cuda?", "got '0'"]),
    ],
)
def test_all_that_is_wrong_comes_together(capsys, tmp_path, argv, messages):
    code, out, err = run(capsys, *(word.format(d=tmp_path) for word in argv))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"octaveconv: {len(messages)} things are wrong: (1) " in err
    for message in messages:
        assert message.format(d=tmp_path) in err


def test_alone_it_shows_its_help(capsys):
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert out == run(capsys, "--help")[1]


def test_the_help_of_train_has_every_option_that_is_not_a_field(capsys):
    assert {"--device", "--threads", "--name", "--tensorboard"} <= {*run(capsys, "train", "--help")[1].split()}


def test_recipes_have_names(capsys, tmp_path, monkeypatch):
    code, out, _ = run(capsys, "train", "--recipe", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == sorted(recipe.included())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()  # of images
    assert recipe.find(Path("cifar10")).name == "cifar10.yaml"
    (tmp_path / "ablation").write_text("epochs: 1\n")
    assert recipe.read_yaml(recipe.find(Path("ablation"))) == {"epochs": 1}


def test_a_file_that_records_its_network_needs_no_name(tmp_path):
    for verb, *options in (
        ["eval", "--data", "x"],
        ["export", "--out", "x.onnx"],
        ["octavify", "--out", "x.safetensors"],
    ):
        args = cli.parse([verb, "--checkpoint", "run", *options])
        assert (args.model, args.checkpoint) == ("run", None)


def test_a_deployed_file_is_for_some_verbs(capsys, tmp_path):
    (tmp_path / "a.octave").touch()
    for verb, *options in (["cost"], ["export", "--out", "x.onnx"], ["bench"], ["octavify", "--out", "x.safetensors"]):
        code, _, err = run(capsys, verb, str(tmp_path / "a.octave"), *options)
        assert (code, "is a deployed network, for octaveconv eval and predict" in err) == (2, True)
    (tmp_path / "a.safetensors").write_bytes(save({"a": torch.zeros(1)}, {"model": "oct_resnet18"}))
    code, _, err = run(capsys, "bench", str(tmp_path / "a.safetensors"))
    assert (code, "time this one with octaveconv export" in err) == (2, True)


def test_a_failure_is_one_line_and_exit_code_1(capsys, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"no weights")
    code, _, err = run(capsys, "export", "oct_resnet18", "--checkpoint", str(tmp_path / "w.pth"), "--out", "x.pt2")
    assert code == 1
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["quickstart", "--out", "{d}/file"], "--out {d}/file is a file: name a folder"),
        (["quickstart", "--out", "{d}/file/run"], "cannot be written, because {d}/file is a file: name another place"),
        (["train", "--data", "{d}", "--out", "{d}/file"], "--out {d}/file is a file: name a folder"),
        (["export", "oct_resnet18", "--out", "{d}/folder"], "--out {d}/folder is a folder: name a file"),
        (["report", "{d}/file", "--plot", "{d}/p.pdf"], "p.pdf must end in .png or .svg"),
        (["report", "{d}/file", "--plot", "{d}/file/p.svg"], "cannot be written, because {d}/file is a file"),
        (["eval", "resnet18", "--data", "{d}", "--results-file", "{d}"], "--results-file {d} is a folder: name a file"),
        (["env", "--json", "{d}/file/env.json"], "cannot be written, because {d}/file is a file: name another place"),
    ],
)
def test_outputs_are_checked_before_the_work(capsys, tmp_path, argv, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    code, out, err = run(capsys, *(word.format(d=tmp_path) for word in argv))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message.format(d=tmp_path) in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    "argv",
    [
        ["eval", "oct_resnet18", "--data", ".", "--checkpoint", "{f}"],
        ["export", "oct_resnet18", "--out", "x.pt2", "--checkpoint", "{f}"],
        ["convert", "oct_resnet18", "{f}", "--out", "x.safetensors"],
        ["train", "oct_resnet18", "--checkpoint", "{f}", "--data", "nothing"],
        ["train", "--recipe", "{f}"],
        ["train", "--resume", "{f}"],
        ["report", "{f}"],
    ],
)
@pytest.mark.parametrize("kind", ["nothing", "a folder"])
def test_a_file_that_is_not_there_is_wrong_use(capsys, tmp_path, argv, kind):
    if kind == "a folder":
        (tmp_path / "zz.pth").mkdir()
    code, out, err = run(capsys, *(word.format(f=tmp_path / "zz.pth") for word in argv))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.count("zz.pth") == 1
    assert "Errno" not in err


def test_a_reader_who_has_seen_enough_is_no_error(monkeypatch, capsys):
    """As in ``octaveconv env | true``."""
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(["env"]) == 0
    assert capsys.readouterr().err == ""


def test_version(capsys):
    code, out, _ = run(capsys, "--version")
    assert (code, out.split()[0]) == (0, "octaveconv")


def test_a_wheel_brings_the_recipes():
    assert '"recipes" = "octaveconv/recipes"' in (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert "cifar10" in recipe.included()


def test_completion_of_a_shell(capsys):
    pytest.importorskip("shtab")
    code, out, _ = run(capsys, "--print-completion", "bash")
    assert code == 0
    assert "--top-k" in out
    assert "_octaveconv_predict_pos_1_COMPGEN=_shtab_compgen_files" in out


def test_json_appears_whole(capsys, tmp_path, monkeypatch):
    file = tmp_path / "env.json"
    file.write_text("old")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("no space")))
    assert run(capsys, "env", "--json", str(file))[0] == 1
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["env.json"]
