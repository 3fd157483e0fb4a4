"""octaveconv doctor finds what is wrong, names it, and says what to do; of what is right it says so."""

import json
import shutil

import pytest
import torch
from flips import make
from folders import encoded, make_folder, make_records, make_tar
from helpers import run as cli_run

from octaveconv.deploy.native import tune
from octaveconv.doctor import examine
from octaveconv.weights import files as weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "SECONDS", 0)
        make(folder)
    return folder


@pytest.fixture
def run(files, tmp_path):
    """A run folder whose last checkpoint is at epoch 3 of 120."""
    shutil.copytree(files / "run", tmp_path / "runs" / "run")
    path = tmp_path / "runs" / "run"
    state = torch.load(path / "last.pth", weights_only=True) | {"step": 0, "streams": 1}
    for name in ("last.pth", "best.pth", "last.prev.pth"):
        (path / name).unlink(missing_ok=True)
        torch.save(state, path / name)
    (path / "model.safetensors").unlink()
    (path / "results.csv").write_text("epoch,top1\n1,10\n2,20\n3,30\n")
    return path


def wrong(path):
    return texts_of_the_wrong([finding._asdict() for finding in examine(path)])


def texts_of_the_wrong(found):
    assert all("\n" not in finding["text"] for finding in found)
    return [f"{finding['path']}: {finding['text']}" for finding in found if finding["wrong"]]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.unlink()
    path.write_bytes(data)


def change(path, **items):
    torch.save(torch.load(path, weights_only=True) | items, path)


def test_a_run_that_is_right(run, capsys):
    code, out, err = cli_run(capsys, "doctor", str(run.parent), "--json", str(run.parent / "found.json"))
    assert (code, err) == (0, "")
    assert out.endswith(f"nothing is wrong with {run.parent}\n")
    assert f"not finished, 3 of 120 epochs: octaveconv train --resume {run}" in out
    assert "last.pth: epoch 3, step 0; oct_resnetv2_26, alpha 0.5, layers [1, 1, 1, 1], width 4, stem 3x3, 3 cl" in out
    figures = json.loads((run.parent / "found.json").read_text())
    assert figures["problems"] == 0
    assert len(figures["findings"]) == len(out.splitlines()) - 1


WRONG = {
    "last": (lambda run: flip(run / "last.pth"), "starts from last.prev.pth instead"),
    "no last": (lambda run: (run / "last.pth").unlink(), "there is no such checkpoint"),
    "best": (lambda run: flip(run / "best.pth"), "best.pth: it cannot be read (the checksum of its record "),
    "final": (
        lambda run: weights.write(run / "model.safetensors", {"fc.weight": torch.ones(3, 4)}, {"model": "resnet18"}),
        "model.safetensors: ",
    ),
    "config": (lambda run: (run / "config.yaml").write_text("alpha: ["), "config.yaml: is not YAML"),
    "results": (lambda run: (run / "results.csv").write_text("epoch,top1\n1,2\n1,3\n"), "its epochs are 1, 1, not"),
    "rows": (lambda run: (run / "results.csv").write_text("epoch,top1\n1,2\n"), "has 1 row, but last.pth is at epoch"),
    "env": (lambda run: (run / "env.json").write_text("{"), "env.json: it is not JSON"),
    "foreign": (lambda run: torch.save({"epoch": 1}, run / "last.pth"), "last.pth: it has no model, optimizer, "),
    "not finite": (
        lambda run: change(run / "last.pth", model={"fc.bias": torch.full((3,), float("nan"))}),
        "last.pth: epoch 3, step 0; not finite: fc.bias",
    ),
    "incomplete": (lambda run: change(run / "best.pth", model={"fc.bias": torch.ones(3)}), "not filled (conv1.weight"),
    "finished": (lambda run: (run / "config.yaml").write_text("epochs: 3\nmodel: oct_resnetv2_26\n"), "no final wei"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_run_with_a_fault(run, tmp_path, what, capsys):
    break_it, message = WRONG[what]
    break_it(run)
    assert cli_run(capsys, "doctor", str(run), "--json", str(tmp_path / "found.json"))[0] == 1
    [found] = texts_of_the_wrong(json.loads((tmp_path / "found.json").read_text())["findings"])
    assert message in found


def test_final_weights_of_another_time(run):
    (run / "config.yaml").write_text("epochs: 3\nmodel: oct_resnetv2_26\n")
    last = weights.read(run / "last.pth")
    weights.write(run / "model.safetensors", last.tensors, last.about.metadata())
    assert wrong(run) == []
    last.tensors["fc.bias"] += 1
    weights.write(run / "model.safetensors", last.tensors, last.about.metadata())
    [found] = wrong(run)
    assert f"not have the weights of last.pth; octaveconv train --resume {run} writes it again" in found


@pytest.mark.parametrize("name", ["converted.safetensors", "octavified.safetensors", "deployed.octave"])
def test_files(files, tmp_path, name):
    shutil.copy(files / name, tmp_path)
    assert wrong(tmp_path / name) == []
    flip(tmp_path / name)
    [found] = wrong(tmp_path / name)
    assert " is damaged: " in found


def test_a_file_that_says_nothing_of_itself(tmp_path):
    torch.save({"fc.weight": torch.ones(7, 4)}, tmp_path / "w.pth")
    [found] = examine(tmp_path / "w.pth")
    assert not found.wrong
    assert "weights, 7 classes; 28 numbers; it does not say which network it belongs to" in found.text


@pytest.mark.parametrize("kind", ["folder", "tar", "one folder"])
def test_data_that_are_right(tmp_path, kind):
    make_folder(tmp_path / "set" / "train", (3, 2, 4))
    make_folder(tmp_path / "set" / "val", (1, 1, 2))
    path = {"folder": tmp_path / "set", "one folder": tmp_path / "set" / "val"}.get(kind)
    found = [*examine(path or make_tar(tmp_path / "set.tar", tmp_path / "set"))]
    assert not any(finding.wrong for finding in found)
    texts = [finding.text for finding in found]
    assert texts[-1] == "4 images of 3 classes, 1 to 2 of each"
    assert texts[:-1] == ([] if kind == "one folder" else ["9 images of 3 classes, 2 to 4 of each"])


def test_data_with_faults(tmp_path, capsys):
    make_folder(tmp_path / "train", (3, 2, 4), corrupt={("cat", 0)})
    make_folder(tmp_path / "val", (2, 2, 2))
    shutil.rmtree(tmp_path / "val" / "cat")
    (tmp_path / "val" / "wolf").mkdir()
    code, out, _ = cli_run(capsys, "doctor", str(tmp_path), "--workers", "0")
    assert code == 1
    assert "1 image cannot be read: " in out
    assert "cat/0.png (it is not an image that Pillow knows): delete or replace them" in out
    assert "without a readable image: wolf: add some, or delete the folder in every split" in out
    assert f"{tmp_path / 'train'}: only here are the classes cat: validation says nothing about them" in out


def test_records(tmp_path):
    images = [(0, encoded(0)), (2, encoded(1)), (2, b"no image")]
    found = [*examine(make_records(tmp_path / "x.rec", images))]
    assert [finding.wrong for finding in found] == [False, True, True]
    assert found[0].text == "2 images of 3 classes, 0 to 1 of each"
    assert "without a readable image: 1: " in found[2].text


def test_nothing_is_there(tmp_path, capsys):
    code, _, err = cli_run(capsys, "doctor", str(tmp_path / "x"))
    assert (code, err) == (2, f"octaveconv: there is no file or folder {tmp_path / 'x'}\n")
    [found] = wrong(tmp_path)
    assert "there are no images" in found
