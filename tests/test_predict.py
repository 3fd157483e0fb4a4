"""What a network sees in images: the class and the verb, every kind of image, every kind of file of a network."""

import csv
import io
import json
import os
import sys

import numpy as np
import pytest
import timm
import torch
from folders import encoded, make_folder, picture
from helpers import Fixed, classifier, run
from networks import settle
from PIL import Image
from torch import nn

import octaveconv as oc
from octaveconv.about import About
from octaveconv.data import CorruptImage, find_images, preprocessing
from octaveconv.data.images import decode
from octaveconv.models.create import create
from octaveconv.predict import Classifier
from octaveconv.weights import files

LABELS = ["cat", "dog2", "dog10"]


@pytest.fixture(scope="module")
def net():
    return classifier()


@pytest.fixture(scope="module")
def trained(net, tmp_path_factory):
    """A file of weights that says what it is, as training writes it."""
    net.pretrained_cfg |= {"input_size": (3, 32, 32), "label_names": LABELS}
    net.model_args = {"layers": (1, 1, 1, 1), "width": 8}
    out = tmp_path_factory.mktemp("run") / "model.safetensors"
    files.write(out, net.state_dict(), About.of(net, "oct_resnetv2_26").metadata())
    return out


def expected(net, image):
    """Numbers and probabilities of the classes, the likeliest first."""
    with torch.no_grad():
        chances = net(preprocessing(net, 32).transform()(decode(image))[None])[0].double().softmax(0)
    order = sorted(range(3), key=lambda i: -chances[i])
    return order, [chances[i].item() for i in order]


def predict(capsys, *argv):
    return run(capsys, "predict", *map(str, argv), "--workers", "0", "--device", "cpu")


def test_the_likeliest_classes_come_first(net, trained):
    found = Classifier.load(trained, device="cpu")(picture(3))
    order, chances = expected(net, picture(3))
    assert list(found.classes) == order
    assert list(found.labels) == [LABELS[i] for i in order]
    assert found.probabilities == pytest.approx(chances, rel=1e-5)
    assert (found.label, found.probability) == (found.labels[0], found.probabilities[0])
    assert repr(Classifier.load(trained)) == f"Classifier(oct_resnetv2_26, {trained}, 3 classes, 32x32 pixels)"


def test_an_image_is_the_same_in_every_form(trained, tmp_path):
    see = Classifier.load(trained, device="cpu")
    image, array, path = picture(1), np.asarray(picture(1)), tmp_path / "1.png"
    path.write_bytes(encoded(1))
    tensor = torch.from_numpy(array.copy()).movedim(-1, 0)
    forms = [
        image,
        array,
        path,
        str(path),
        path.read_bytes(),
        path.open("rb"),
        tensor,
        tensor / 255,
        array[..., ::-1][..., ::-1],
    ]
    found = see(forms)
    assert len({one.probabilities for one in found}) == 1
    assert [one.image for one in found[:3]] == ["image 0", "image 1", str(path)]
    assert [one.classes for one in see(torch.stack([tensor, tensor]), top_k=2)] == [found[0].classes[:2]] * 2
    assert see([]) == []
    gray = see([array[..., 0], array[..., :1], Image.fromarray(array[..., 0])])
    assert len({one.probabilities for one in gray}) == 1


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (3, TypeError, "an image is a path, .* got int"),
        ([[]], TypeError, "got list"),
        ("nothing.png", FileNotFoundError, "there is no file nothing.png"),
        (os.curdir, oc.UsageError, "is a folder: octaveconv.data.find_images lists"),
        (b"xx", CorruptImage, "image 0 cannot be read: it is not an image"),
        (np.zeros((2, 2, 2)), oc.UsageError, r"an array of shape \[2, 2, 2\] .* is not an image: give \[H, W, C\]"),
        (torch.full((3, 8, 8), 1.1), oc.UsageError, r"values outside \[0, 1\]: give colors as they are"),
        (torch.full((3, 8, 8), torch.nan), oc.UsageError, "values outside"),
        (np.zeros((8, 8), np.int64), oc.UsageError, "give uint8, or floating point"),
        (np.zeros((0, 8), np.uint8), oc.UsageError, "is not an image"),
    ],
)
def test_what_is_not_an_image(trained, image, error, message):
    with pytest.raises(error, match=message):
        Classifier.load(trained)(image)


def test_equal_classes_come_in_order_and_may_be_nameless():
    found = Classifier(Fixed(0, 1, 1, 0), size=8)(picture(0))
    assert found.classes == (1, 2, 0, 3)
    assert found.labels == ("class 1", "class 2", "class 0", "class 3")


def test_imagenet_has_names():
    see = Classifier(timm.create_model("resnet18"))
    assert (len(see.labels), see.labels[281]) == (1000, "tabby, tabby cat")
    assert "1,000 are taken for ImageNet's" in see.assumed
    net = Fixed(0, 1)
    net.pretrained_cfg = {"label_names": ["n01440764", "n02123045"]}  # ImageNet's folders
    assert Classifier(net, size=8)(picture(0)).labels == ("tabby, tabby cat", "tench, Tinca tinca")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier(Fixed(1), size=8)(picture(0)), "the network has one output"),
        (lambda: Classifier(Fixed(1, 2), ["a"], size=8)(picture(0)), "there are 1 labels, and the network has 2"),
        (lambda: Classifier(timm.create_model("resnet18", num_classes=3), ["a"]), "there are 1 labels"),
        (lambda: Classifier(Fixed(1, 2), size=8)(picture(0), top_k=0), "top_k .* must be at least 1, got 0"),
        (lambda: Classifier(Fixed(1, 2), dtype="fp8"), "there is no dtype 'fp8'"),
        (lambda: Classifier(Fixed(1, 2), "ab"), "labels are a list of texts"),
        (lambda: Classifier(Fixed(1, 2), {0: "a", 1: "b"}), "labels are a list of texts"),
        (lambda: Classifier(timm.create_model("resnet18", num_classes=0)), "the network has no classifier"),
        (lambda: Classifier(timm.create_model("resnet18", features_only=True), size=64)(picture(0)), "outputs a list"),
        (lambda: Classifier.load("oct_resnet18"), "oct_resnet18 has no trained weights: name a run folder or"),
        (lambda: Classifier.load("oct_resnet81"), "did you mean oct_resnet18"),
        (lambda: Classifier.load("a.octave", alpha=0.5), "a.octave is deployed: its network and weights are what"),
    ],
)
def test_wrong_use(make, message):
    with pytest.raises(oc.UsageError, match=message):
        make()


def test_a_file_that_is_not_there():
    for name in ("nothing.safetensors", "no/where", "nothing.octave"):
        with pytest.raises(FileNotFoundError, match=f"there is no file.* {name}"):
            Classifier.load(name)


def test_the_network_is_evaluated_and_left_as_it_was(net):
    net = classifier().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = Classifier(net, LABELS, size=32)(picture(2))
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert found.probabilities == pytest.approx(expected(net.eval(), picture(2))[1], rel=1e-5)


def test_a_logit_that_is_not_finite():
    with pytest.raises(RuntimeError, match="the network's logits for image 0 are not finite"):
        Classifier(Fixed(0, torch.inf), size=8)(picture(0))


def test_the_verb_says_what_the_class_says(trained, tmp_path, capsys):
    make_folder(tmp_path / "photos")
    (tmp_path / "photos" / "top.png").write_bytes(encoded(9))
    table, report = tmp_path / "new" / "a.csv", tmp_path / "a.json"
    code, out, err = predict(
        capsys, trained, tmp_path / "photos", "--batch-size", "4", "--csv", table, "--json", report
    )
    assert code == 0
    images = find_images([tmp_path / "photos"])
    assert len(images) == 10
    found = [*Classifier.load(trained, device="cpu").stream(images, batch_size=4)]
    lines = out.splitlines()
    assert lines[0].split() == ["image", "probability", "class"]
    assert lines[1].split() == [found[0].image, f"{found[0].probability:.2%}", found[0].label]
    assert lines[2].split() == [f"{found[0].probabilities[1]:.2%}", found[0].labels[1]]
    assert len(lines) == 1 + 10 * 3
    assert "10 images, " in err
    rows = [*csv.DictReader(table.open())]
    assert [
        (row["image"], int(row["rank"]), int(row["class"]), row["label"], float(row["probability"])) for row in rows
    ] == [
        (one.image, rank, *each)
        for one in found
        for rank, each in enumerate(zip(one.classes, one.labels, one.probabilities), 1)
    ]
    figures = json.loads(report.read_text())
    assert [one["image"] for one in figures["images"]] == images.names
    assert figures["images"][0]["predictions"][0]["label"] == found[0].label


def test_files_folders_and_patterns_in_the_order_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("10.png", "9.png", "b/x.png", "b/c/y.jpg", "[1].png"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        picture(0).save(name)
    os.link("9.png", "b/same.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "notes.txt").touch()
    found = find_images(["[1].png", "*.png", "b", "b/notes.txt", "9.png"])
    assert found.names == [
        "[1].png", "9.png", "10.png", "[1].png", "b/c/y.jpg", "b/same.png", "b/x.png", "b/notes.txt", "9.png",
    ]  # fmt: skip
    assert "left out: 1 that are hidden" in " ".join(found.notes)
    assert "not followed" in " ".join(found.notes)
    for words, message in (
        (["*.gif"], "no file matches"),
        (["none"], "there is no file or folder none"),
        ([], "no image"),
    ):
        with pytest.raises((oc.UsageError, FileNotFoundError), match=message):
            find_images(words)
    os.mkdir("empty")
    with pytest.raises(oc.UsageError, match="there are no images"):
        find_images(["empty"])


def test_standard_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("1 a.png", "2.png"):
        (tmp_path / name).write_bytes(encoded(0))

    def names(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return find_images(["-"]).names

    assert (
        names(b"1 a.png\n\n2.png")
        == names(b"1 a.png\r\n2.png\r\n")
        == names(b"1 a.png\x002.png\0")
        == ["1 a.png", "2.png"]
    )
    for image in (encoded(0), b"P3 1 1 255 0 0 0\n", encoded(0)[:20]):
        assert names(image) == ["standard input"]
    for data, message in (
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"3.png", "folder 3.png, which"),
        (b"2.png\n3.png", "3.png"),
    ):
        with pytest.raises((oc.UsageError, FileNotFoundError), match=message):
            names(data)


def test_an_image_from_a_pipe(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encoded(3))))
    code, out, _ = predict(capsys, trained, "-", "--top-k", "1")
    assert (code, len(out.splitlines())) == (0, 2)
    assert out.splitlines()[1].startswith("standard input ")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_damaged_image_stops_or_is_named_and_skipped(trained, tmp_path, capsys, workers):
    make_folder(tmp_path, (2, 2, 1), corrupt=[("cat", 1), ("dog2", 0)])
    argv = (trained, tmp_path / "cat", tmp_path / "dog2", tmp_path / "dog10", "--batch-size", "1", "--workers", workers)
    code, out, err = run(capsys, "predict", *map(str, argv))
    assert code == 1
    assert f"{tmp_path}/cat/1.png cannot be read: it is not an image that Pillow knows: repair" in err
    assert len(out.splitlines()) == 1 + 3  # what came before it
    code, out, err = run(capsys, "predict", *map(str, argv), "--skip-corrupt", "--json", str(tmp_path / "a.json"))
    assert code == 0
    assert len(out.splitlines()) == 1 + 3 * 3
    assert f"{tmp_path}/cat/1.png: it is not an image" in err.partition("skipped:")[2]
    assert [*json.loads((tmp_path / "a.json").read_text())["skipped"]] == [
        f"{tmp_path}/{x}.png" for x in ("cat/1", "dog2/0")
    ]
    code, _, err = run(capsys, "predict", str(trained), str(tmp_path / "cat/1.png"), "--skip-corrupt")
    assert (code, "none of the 1 images could be read" in err) == (1, True)


def test_names_of_files_are_escaped_where_they_are_shown(trained, tmp_path, capsys):
    odd = tmp_path / "a\x1b[2J\nb\u202e.png"
    odd.write_bytes(encoded(0))
    odd.with_name("\x1b.png").write_bytes(b"no image")
    code, out, err = predict(capsys, trained, tmp_path, "--skip-corrupt", "--csv", tmp_path / "a.csv")
    assert code == 0
    assert not {"\x1b", "\u202e"} & {*out, *err}
    assert "a\\x1b[2J\\nb\\u202e.png" in out
    assert next(csv.DictReader((tmp_path / "a.csv").open(newline="")))["image"] == str(odd)


def test_labels_of_a_file(trained, tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(encoded(0))
    (tmp_path / "labels.txt").write_text("Katze\r\nHund\nUhu\n")
    code, out, _ = predict(capsys, trained, tmp_path / "0.png", "--labels", tmp_path / "labels.txt")
    assert code == 0
    assert {line.split()[-1] for line in out.splitlines()[1:]} == {"Katze", "Hund", "Uhu"}
    code, _, err = predict(capsys, trained, tmp_path / "0.png", "--labels", tmp_path / "0.png")
    assert (code, "0.png is not text in UTF-8" in err) == (2, True)


def test_every_file_of_a_network_is_one(net, trained, tmp_path, capsys):
    """A run folder, and a checkpoint with the network's name."""
    (tmp_path / "0.png").write_bytes(encoded(0))
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    args = "{layers: [1, 1, 1, 1], width: 8}"
    ways = [
        [trained],
        [trained.parent],
        ["oct_resnetv2_26", "--checkpoint", tmp_path / "weights.pth", "--model-args", args, "--size", "32"],
    ]
    said = []
    for model, *options in ways:
        code, _, err = predict(capsys, model, tmp_path / "0.png", *options, "--json", tmp_path / "a.json")
        assert code == 0, err
        said.append(json.loads((tmp_path / "a.json").read_text())["images"][0]["predictions"])
    for found in said[1:]:
        assert [one["class"] for one in found] == [one["class"] for one in said[0]]
        np.testing.assert_allclose(*[[one["probability"] for one in each] for each in (found, said[0])], atol=1e-5)
    assert {one["label"] for one in said[2]} == {"class 0", "class 1", "class 2"}


def test_an_octavified_network(tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(encoded(0))
    dense = settle(
        create("resnetv2_18d", num_classes=2, model_args={"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]})
    )
    octave, _ = oc.octavify(dense, 0.25, torch.zeros(1, 3, 64, 64))
    octave.pretrained_cfg |= {"label_names": ["day", "night"], "input_size": (3, 64, 64)}
    files.write(tmp_path / "o.safetensors", octave.state_dict(), About.of(octave, "resnetv2_18d").metadata())
    code, out, err = predict(capsys, tmp_path / "o.safetensors", tmp_path / "0.png")
    assert code == 0, err
    assert {line.split()[-1] for line in out.splitlines()[1:]} == {"day", "night"}


def test_a_deployed_network(net, tmp_path, quickly, capsys):
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    small.pretrained_cfg, small.num_classes = net.pretrained_cfg | {"label_names": LABELS}, 3
    oc.deploy(small, torch.randn(1, 3, 32, 32)).save(tmp_path / "net.octave")
    (tmp_path / "0.png").write_bytes(encoded(0))
    code, out, err = predict(capsys, tmp_path / "net.octave", tmp_path / "0.png")
    assert (code, f", {tmp_path}/net.octave\n" in err) == (0, True)
    found = Classifier(small, size=32)(tmp_path / "0.png")
    assert [line.split()[-1] for line in out.splitlines()[1:]] == [*found.labels]
    code, _, err = predict(capsys, tmp_path / "net.octave", tmp_path / "0.png", "--alpha", "0.5")
    assert (code, "is deployed: its network and weights are what they are" in err) == (2, True)
