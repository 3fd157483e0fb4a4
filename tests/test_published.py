"""octaveconv report --published and --latency: the original's figure. Times are made up."""

import json
from types import SimpleNamespace

import pytest
from helpers import run

from octaveconv import models
from octaveconv.bench import published

FIGURES = {"engine": "native", "median": 0.02, "lower": 0.02, "upper": 0.021, "runs": 9}


def test_every_published_cell_is_a_point(capsys, tmp_path):
    file = tmp_path / "p.json"
    code, out, _ = run(capsys, "report", "--published", "--plot", str(tmp_path / "p.svg"), "--json", str(file))
    assert code == 0
    points = json.loads(file.read_text())
    ablation = [one for one in models.PUBLISHED.values() if "ablation" in one.file]
    assert len(points) == len(ablation) + len(models.DENSE) == 33
    assert {point["network"] for point in points} == {*published.TITLES}
    assert ["ResNet-50", "0.25", "78.0", "3.104", "25.6"] in [line.split() for line in out.splitlines()]
    drawn = (tmp_path / "p.svg").read_text()
    assert drawn.count("<!-- 0.125 -->") == sum(one.alpha == 0.125 for one in ablation)
    assert "<!-- ResNeXt-101 -->" in drawn


@pytest.fixture
def measured(monkeypatch):
    """The networks that are measured, in turn."""
    asked = []
    monkeypatch.setattr(
        published, "make_cases", lambda it: [SimpleNamespace(alpha=a, model=it.model) for a in (0.0, *it.alphas)]
    )

    def latencies(nets, shapes, limit, eager, say):
        asked.append((next(iter(nets.values())), sorted(nets)))
        return {alpha: {"deployed": {"1": FIGURES}} for alpha in nets}

    monkeypatch.setattr(published, "latencies", latencies)
    return asked


def test_a_file_is_continued(capsys, tmp_path, measured):
    file, plot = str(tmp_path / "new" / "l.json"), str(tmp_path / "l.svg")
    argv = ["report", "--latency", file, "--threads", "1", "--plot", plot, "--networks"]
    code, out, _ = run(capsys, *argv, "oct_resnetv2_26")
    assert code == 0
    assert measured == [("oct_resnetv2_26", [f"alpha {alpha}" for alpha in (0, 0.125, 0.25, 0.5, 0.75)])]
    assert "ResNet-26    0.5     75.5  1.480      16.0  20.00" in out
    assert "not measured yet: oct_densenet121" in out
    assert run(capsys, *argv, "oct_resnet*_50")[0] == 0
    assert [network for network, _ in measured] == ["oct_resnetv2_26", "oct_resnetv2_50"]
    assert "milliseconds for one image" in (tmp_path / "l.svg").read_text()
    result = json.loads((tmp_path / "new" / "l.json").read_text())
    assert result["networks"]["oct_resnetv2_50"]["0.75"] == FIGURES
    assert {"threads", "env", "size", "batch_size"} <= result.keys()
    assert "was measured with threads 1 and not 2: name another file" in run(
        capsys, "report", "--latency", file, "--threads", "2"
    )[2]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "shows one thing"),
        (["--published", "--latency", "x.json"], "shows one thing"),
        (["--latency", "x.json", "--networks", "oct_resnetv2_51"], "did you mean oct_resnetv2_50?"),
        (["--published", "--plot", "x.pdf"], "must end in .png or .svg"),
    ],
)
def test_wrong_use(capsys, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "report", *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "published_latency"}', '{"kind": "bench"}'])
def test_other_files_stay_as_they_are(tmp_path, capsys, text, measured):
    (tmp_path / "a.json").write_text(text)
    assert run(capsys, "report", "--latency", str(tmp_path / "a.json"))[0] == 2
    assert (tmp_path / "a.json").read_text() == text
    assert not measured
