"""The main job, on one epoch of a narrow network and a few of the images."""

import shlex

import pytest
import torch
from helpers import shorten_quickstart
from pages import Page, as_shown

from octaveconv import cli, quickstart

SMALL = quickstart.QuickstartSettings(epochs=1, width=4, batch_size=64, threads=1)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return tmp_path_factory.mktemp("new") / "run" / "report.html"


@pytest.fixture(scope="module")
def result(page):
    with pytest.MonkeyPatch.context() as patch:
        shorten_quickstart(patch)
        return quickstart.run(SMALL, page=page)


def test_the_data_are_real_and_the_split_is_held_out():
    data = quickstart.load_digits(0)
    assert {name: tuple(images.shape) for name, (images, _) in data.items()} == {
        "train": (1437, 1, 32, 32),
        "test": (360, 1, 32, 32),
    }
    assert set(data["test"][1].tolist()) == set(range(10))
    train = {image.numpy().tobytes() for image in data["train"][0]}
    assert not any(image.numpy().tobytes() in train for image in data["test"][0])
    other = quickstart.load_digits(1)
    assert not torch.equal(other["test"][0], data["test"][0])


def test_both_start_from_the_same_weights():
    octave, dense = (quickstart.make_net(SMALL, alpha).state_dict() for alpha in (0.5, 0))
    assert octave.keys() == dense.keys()
    assert all(torch.equal(octave[key], dense[key]) for key in octave)


def test_the_seed_decides_the_weights():
    other = quickstart.QuickstartSettings(epochs=1, width=4, seed=1)
    assert not torch.equal(quickstart.make_net(SMALL, 0).conv1.weight, quickstart.make_net(other, 0).conv1.weight)


def test_figures(result):
    octave, dense = result["octave"], result["dense"]
    assert octave["params"] == dense["params"]
    assert octave["macs"] < dense["macs"]
    assert octave["activation_bytes"] < dense["activation_bytes"]
    for net in (octave, dense):
        assert 0 < net["accuracy"] < 1
        assert len(net["curves"]) == 1
        assert net["latency"]["1"]["median"] > 0
        assert net["deployed"]["64"]["median"] > 0


def test_the_page_shows_figures_curves_and_maps(result, page):
    found = Page(page)
    found.check_complete()
    [table] = found.tables
    assert table == quickstart.table(result)
    for text in (quickstart.verdict(result), "The machine was busy with other work", *quickstart.NEXT):
        assert text in found.text
    texts = [image["alt"] for image in found.tags["img"]]
    assert texts[:2] == ["training loss, test accuracy, and what octave saves", "the image"]
    assert [text.partition(", ")[2] for text in texts[2:]] == ["high maps", "low maps"] * 2
    assert len({text.partition(",")[0] for text in texts[2:]}) == 2  # layers


@pytest.mark.slow
def test_a_browser_shows_the_page(result, page):
    assert as_shown(page)["img"] == 6


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures(result, monkeypatch):
    shorten_quickstart(monkeypatch)
    again = quickstart.run(SMALL)
    for net in quickstart.NETS:
        for key in ("accuracy", "params", "macs", "activation_bytes", "curves"):
            assert again[net][key] == result[net][key], (net, key)


def test_it_is_honest_about_whichever_loses(result):
    slow, fast = ({"1": {"median": t}, "64": {"median": t}} for t in (0.002, 0.001))
    worse = result | {
        "octave": result["octave"] | {"latency": slow, "deployed": fast, "accuracy": 0.5},
        "dense": result["dense"] | {"latency": fast, "deployed": slow, "accuracy": 0.9},
    }
    said = quickstart.verdict(worse)
    assert "In eager PyTorch, at batch 1, the octave network takes 2.00 times as long as its dense twin." in said
    assert "Deployed, at batch 64, the octave network is 2.00 times as fast as its dense twin." in said
    assert "the octave network gets 180 wrong, the dense one 36." in quickstart.verdict(worse)
    rows = {row[0]: row[1:] for row in quickstart.table(worse)}
    assert rows["eager, batch 64"] == ["2.00 ms", "1.00 ms", "0.50"]
    assert rows["deployed, batch 64"] == ["1.00 ms", "2.00 ms", "2.00"]
    assert rows["test accuracy"] == ["50.00%", "90.00%", "-40.00 points"]


def test_plot(result, tmp_path):
    quickstart.plot(result, tmp_path / "new" / "curves.png")
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_progress_prints_a_line_per_epoch_off_a_terminal(capsys):
    with quickstart.progress(3) as log:
        log("octave", 2, {"loss": 0.5, "accuracy": 0.25})
    assert capsys.readouterr().out == "octave  epoch 2/3  loss 0.5000  accuracy 25.00%\n"


def test_a_page_of_a_network_without_low_maps(result):
    """A tiny alpha leaves none."""
    nets = {name: quickstart.make_net(SMALL, 0) for name in quickstart.NETS}
    assert "low maps; those with the most" not in quickstart.html(result, nets, torch.randn(1, 1, 32, 32))


@pytest.mark.parametrize("line", quickstart.NEXT)
def test_what_to_type_next_is_understood(line):
    program, verb, *argv = shlex.split(line, comments=True)
    assert program == "octaveconv"
    if verb not in cli.VERBS:
        pytest.skip(f"there is no {verb} yet")
    assert cli.parse([verb, *argv]).verb == verb
