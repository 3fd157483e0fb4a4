"""Figures are written without a trace in the process that asks for them."""

import json
import sys
from pathlib import Path

import pytest
from forks import Fork

from octaveconv import _figure, quickstart
from octaveconv.bench import report
from octaveconv.errors import UsageError
from octaveconv.train import curves

RESULTS = Path(__file__).parent.parent / "results"


def draw_everything(out):
    """All that the package draws, in a process that has a backend of its own."""
    import matplotlib

    matplotlib.use("template")
    quickstart.plot(json.loads((RESULTS / "quickstart.json").read_text()), out / "quickstart.png")
    for name in ("ablation", "speed_oct_resnet50_cpu"):
        report.plot(report.read(RESULTS / f"{name}.json"), out / f"{name}.svg")
    _figure.save(curves.draw([{"epoch": "1", "lr": "0.1"}]), out / "curves.svg")
    print(matplotlib.get_backend(), "matplotlib.pyplot" in sys.modules)


def test_the_callers_backend_and_pyplot_stay_untouched(tmp_path):
    process = Fork(draw_everything, tmp_path)
    assert process.wait() == 0, process.output()[1]
    assert process.output()[0].lower() == "template false\n"
    names = ["ablation.svg", "curves.svg", "quickstart.png", "speed_oct_resnet50_cpu.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


@pytest.mark.parametrize("kind", _figure.KINDS)
def test_the_same_data_give_the_same_bytes(kind, tmp_path):
    for name in "ab":
        figure = _figure.new(2, 2)
        figure.subplots().plot([1, 2], [3, 4], label="line")
        _figure.save(figure, tmp_path / "new" / f"{name}{kind}")
    first, second = ((tmp_path / "new" / f"{name}{kind}").read_bytes() for name in "ab")
    assert first == second


def test_a_figure_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    figure = _figure.new(2, 2)
    with pytest.raises(UsageError, match=r"a.pdf must end in .png or .svg"):
        _figure.save(figure, tmp_path / "a.pdf")
    monkeypatch.setattr(figure, "savefig", None)
    with pytest.raises(TypeError):
        _figure.save(figure, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
