"""octaveconv look: the figures of the layers, and the page that shows them."""

import json

import pytest
import timm
import torch
from helpers import run
from pages import Page, as_shown
from PIL import Image
from torch import nn

import octaveconv as oc
from octaveconv import look
from octaveconv.errors import UsageError

NARROW = ("oct_resnetv2_26", "--alpha", "0.25", "--model-args", "{layers: [1, 1, 1, 1], width: 8}", "--size", "64")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from octaveconv import cli

    folder = tmp_path_factory.mktemp("look")
    photo = folder / "a <b>.png"
    Image.new("RGB", (90, 70), (200, 30, 10)).save(photo)
    assert (
        cli.main(["look", *NARROW, str(photo), "--out", str(folder / "l.html"), "--json", str(folder / "l.json")]) == 0
    )
    return folder / "l.html"


def test_the_page_has_the_network_the_table_and_the_maps(page):
    found, figures = Page(page), json.loads(page.with_suffix(".json").read_text())
    found.check_complete()
    [table] = found.tables
    names = [layer["name"] for layer in figures["layers"]]
    assert [row[0] for row in table[1:]] == names
    assert {"layer1.0.conv2.conv", "layer4.0.conv3.conv", "fc"} & {*names} == {
        "layer1.0.conv2.conv",
        "layer4.0.conv3.conv",
    }
    assert len(found.tags["title"]) == 1 + len(found.tags["rect"])
    counts = [sum(rect["class"] == kind for rect in found.tags["rect"]) for kind in ("high", "low")]
    low = sum(layer["channels"][1] > 0 for layer in figures["layers"])
    assert counts == [len(names), low]
    assert len(found.tags["img"]) == 1 + 2 * low
    assert "a <b>.png" in found.text
    assert "Random weights make random maps" in found.text


@pytest.mark.slow
def test_a_browser_shows_it(page):
    shown, written = as_shown(page), Page(page)
    for tag in ("img", "rect", "tr", "figure", "h2"):
        assert shown[tag] == len(written.tags[tag]), tag


def test_energy_is_variance_over_pixels():
    layer = oc.OctConv2d(2, 4, 1, bias=False, alpha_out=0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])[..., None, None])
    x = torch.zeros(1, 2, 4, 4)
    x[0, 0, :, ::2] = 2.0  # variance 1, none of it left at half resolution
    x[0, 1, :, 2:] = 2.0  # variance 1, all of it left
    [seen] = look.look(nn.Sequential(layer, oc.Merge()), x)
    assert seen.energy == (2.0, 1.0)
    assert (seen.smooth, seen.low_share, seen.low_energy) == (0.5, 0.5, pytest.approx(1 / 3))
    assert seen.pictures["high"].shape == (64, 2 * 66)
    assert {*seen.pictures["low"].flatten().tolist()} == {0, 255}


def test_the_network_stays_as_it_is():
    net = timm.create_model("oct_resnetv2_26", layers=(1, 1, 1, 1), width=8, num_classes=2).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    seen = look.look(net, torch.randn(1, 3, 33, 47))  # odd sizes
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    assert seen[1].sizes == ((9, 12), (5, 6))
    assert all(0 <= layer.low_energy <= 1 for layer in seen)


@pytest.mark.slow
def test_dense_and_octavified_networks(tmp_path, capsys):
    code, _, _ = run(capsys, "look", "resnet18", "--size", "32", "--out", str(tmp_path / "d.html"))
    assert code == 0
    assert "this network is dense" in Page(tmp_path / "d.html").text
    file = str(tmp_path / "o.safetensors")
    assert run(capsys, "octavify", "resnet18", "--size", "32", "--out", file)[0] == 0
    code, _, _ = run(capsys, "look", file, "--size", "32", "--out", str(tmp_path / "o.html"))
    assert code == 0
    assert "resnet18, octavified" in Page(tmp_path / "o.html").text


def test_constant_and_endless_maps_have_pictures():
    layer = oc.OctConv2d(1, 4, 1, alpha_out=0.5)
    for value in (0.0, float("inf"), float("nan")):
        [seen] = look.look(nn.Sequential(layer, oc.Merge()), torch.full((1, 1, 1, 1), value))
        assert look.table([seen])
        assert look.drawing([seen])
        assert look.maps(seen)


@pytest.mark.parametrize("content", [b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_image_is_named(tmp_path, capsys, content):
    (tmp_path / "a.png").write_bytes(content)
    code, out, err = run(capsys, "look", *NARROW, str(tmp_path / "a.png"), "--out", str(tmp_path / "x.html"))
    assert (code, out) == (1, "")
    assert "a.png is damaged, or not an image" in err
    assert run(capsys, "look", *NARROW, str(tmp_path / "b.png"), "--out", str(tmp_path / "x.html"))[0] == 2
    assert not (tmp_path / "x.html").exists()


def test_a_network_without_maps_is_refused():
    with pytest.raises(UsageError, match="no layer that makes maps"):
        look.look(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))
