"""octaveconv choose: the recommendation, and what it stands on. Times are made up."""

import json

import pytest
import timm
from folders import CLASSES, make_folder
from helpers import run

from octaveconv.about import About
from octaveconv.bench import choose
from octaveconv.bench.choose import Option
from octaveconv.weights import files as weights


def option(alpha, share, ms, top1=None):
    timing = {"median": ms / 1e3, "lower": ms / 1.1e3, "upper": ms / 0.9e3, "runs": 9, "engine": "native"}
    return Option(alpha, int(share * 1e9), share, int(share * 5e6), timing, top1)


OPTIONS = [option(0, 1, 20), option(0.25, 0.8, 22), option(0.5, 0.6, 14), option(0.75, 0.5, 12)]
KNOWN = [option(0, 1, 20, 77.0), option(0.25, 0.8, 18, 78.0), option(0.5, 0.6, 14, 77.4), option(0.75, 0.5, 12)]


@pytest.mark.parametrize(
    ("options", "budget", "limit", "alpha"),
    [
        (OPTIONS, "macs", 0.9, 0.25),
        (OPTIONS, "macs", 1, 0),
        (OPTIONS, "latency", 15, 0.5),
        (OPTIONS, "latency", 11, None),
        (OPTIONS, "memory", 2.5, 0.75),
        (KNOWN, "latency", 30, 0.25),
        (KNOWN, "latency", 13, 0.75),  # its accuracy is not known, but it alone meets the budget
    ],
)
def test_recommendation(options, budget, limit, alpha):
    chosen = choose.recommend(options, budget, limit)
    assert (chosen and chosen.alpha) == alpha
    said = choose.verdict(options, budget, limit)
    assert (
        f"Use alpha {alpha:g}:" if chosen else "No alpha stays within 11 ms. The nearest is alpha 0.75 with 12"
    ) in said


def test_it_says_where_octave_is_slower():
    assert "slower than the dense network: it takes 1.10 times as long" in choose.verdict(OPTIONS, "macs", 0.9)
    assert "is the most accurate (78.0% top-1)" in choose.verdict(KNOWN, "latency", 30)
    assert "That is the dense network as it is." in choose.verdict(OPTIONS, "macs", 1)


@pytest.fixture
def times(monkeypatch):
    """Time goes with the order of the networks."""

    def latencies(nets, shapes, limit, eager, say):
        batch = str(shapes[0][0])
        return {
            name: {"deployed": {batch: option(0, 1, 20 - number).timing}} for number, name in enumerate(sorted(nets))
        }

    monkeypatch.setattr(choose, "latencies", latencies)


def test_an_octave_network(capsys, tmp_path, times):
    file, plot = tmp_path / "c.json", tmp_path / "c.svg"
    argv = ["--alpha", "0.5", "--size", "33", "--batch-size", "2", "--threads", "1", "--macs", "0.9"]
    code, out, _ = run(capsys, "choose", "oct_resnetv2_26", *argv, "--json", str(file), "--plot", str(plot))
    assert code == 0
    found = json.loads(file.read_text())
    dense, octave = found["options"]
    assert (found["recommended"], found["shape"]) == (0.5, [2, 3, 33, 33])
    assert (dense["alpha"], dense["share"], dense["top1"]) == (0, 1, 73.2)
    assert 0.5 < octave["share"] < 0.9
    assert octave["memory"] < dense["memory"]
    assert "Use alpha 0.5" in out
    assert "top-1 is what the original published" in out
    assert "recommended" in plot.read_text()


@pytest.mark.slow
def test_alphas_that_the_network_does_not_take_are_left_out(capsys, monkeypatch):
    monkeypatch.setattr(choose, "measure", lambda nets, *more: [option(alpha, 1 - alpha / 2, 9) for alpha in nets])
    code, out, _ = run(capsys, "choose", "oct_resnext50_32x4d", "--macs", "0.9", "--size", "32")
    assert code == 0
    assert "alpha 0.125 is left out: " in out
    assert "Use alpha 0.25" in out


@pytest.mark.slow
def test_a_dense_network_from_a_file_is_scored_on_images(capsys, tmp_path, times):
    model = timm.create_model("resnet18", num_classes=len(CLASSES))
    weights.write(tmp_path / "r.safetensors", model.state_dict(), About.of(model, "resnet18").metadata())
    make_folder(tmp_path / "images")
    argv = ["--data", str(tmp_path / "images"), "--images", "4", "--alpha", "0.5", "--size", "32", "--macs", "0.9"]
    code, _, err = run(capsys, "choose", str(tmp_path / "r.safetensors"), *argv, "--json", str(tmp_path / "c.json"))
    assert code == 0, err
    found = json.loads((tmp_path / "c.json").read_text())
    assert all(0 <= one["top1"] <= 100 for one in found["options"])
    assert found["recommended"] == 0.5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["oct_resnet18"], "one of the arguments --latency --macs --memory is required"),
        (["oct_resnet18", "--macs", "0"], "must be a number above 0, got '0'"),
        (["oct_resnet18", "--macs", "nan"], "must be a number above 0, got 'nan'"),
        (["oct_resnet18", "--macs", "1", "--latency", "2"], "not allowed with argument"),
        (["oct_resnet18", "--macs", "1", "--data", "x"], "must be trained at each alpha"),
        (["resnet18", "--macs", "1", "--data", "x"], "name a file or run folder of resnet18"),
        (["resnet18", "--macs", "1", "--alpha", "1", "--size", "32"], "must be above 0 and below 1, got 1"),
        (["oct_resnet18", "--macs", "1", "--alpha", "2", "--size", "32"], "must be in [0, 1], got 2.0"),
        (["oct_resnet18", "--macs", "1", "--plot", "x.gif"], "must end in .png or .svg"),
    ],
)
def test_wrong_use(capsys, argv, message):
    code, out, err = run(capsys, "choose", *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
