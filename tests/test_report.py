"""octaveconv report: what an ablation's file says, as a table and as a plot."""

import json

import pytest

from octaveconv import cli
from octaveconv.bench import report

RUNS = [
    dict(alpha=alpha, seed=seed, top1=top1 + seed, macs=macs)
    for alpha, top1, macs in ((0.5, 70.0, 6_000_000), (0, 71.0, 10_000_000))
    for seed in (0, 1, 2)
]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"runs": RUNS, "images_per_s": {"0": 400.4}}))
    return tmp_path / "a.json"


def test_means_and_deviations(file, capsys, tmp_path):
    assert cli.main(["report", str(file), "--plot", str(tmp_path / "a.svg"), "--json", str(tmp_path / "b.json")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == [
        ["0", "10.00", "100%", "3", "72.00", "1.00", "400"],
        ["0.5", "6.00", "60%", "3", "71.00", "1.00", "-"],
    ]
    assert [point["alpha"] for point in json.loads((tmp_path / "b.json").read_text())] == [0, 0.5]
    first = (tmp_path / "a.svg").read_text()
    report.plot(report.read(file), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text() == first
    assert "multiply-adds" in first


def test_other_endings(file, tmp_path, capsys):
    assert cli.main(["report", str(file), "--plot", str(tmp_path / "a.gif")]) == 2
    assert capsys.readouterr().err == f"octaveconv: {tmp_path}/a.gif must end in .png or .svg\n"
    assert not (tmp_path / "a.gif").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": [{"alpha": 1}]}'])
def test_other_files(tmp_path, capsys, text):
    (tmp_path / "a.json").write_text(text)
    assert cli.main(["report", str(tmp_path / "a.json")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
