"""Checkpoints of other programs, damaged ones, and those made to do harm: read, or refused at once."""

import io
import pickle
import random
import tracemalloc
import warnings
from collections import OrderedDict

import pytest
import torch
from flips import same
from hostile import BOMBS, fate, kinds, mutated, torch_bytes, zipped

from octaveconv.weights import files, pickles


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_programs_save_is_read(tmp_path, legacy):
    shared, betas = torch.randn(3, 2), (0.9, 0.999)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "a": shared, "b": shared, "view": shared[1:],
        "groups": [{"betas": betas}] * 50, "order": OrderedDict(x=1, y=[2.5, None, True, "text", 2**70]),
        "parameter": torch.nn.Parameter(torch.ones(2)), "long": list(range(5000)), "half": torch.ones(2).bfloat16(),
        "keys": {i: str(i) for i in range(3000)}, "set": {1, 2}, "size": torch.Size([1, 2]), "none": torch.empty(0),
    }  # fmt: skip
    path = tmp_path / "a.safetensors"  # the content decides, not the name
    path.write_bytes(torch_bytes(content, legacy))
    found = pickles.read(path)
    expected = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    assert same(found, expected)
    assert found["model"]._metadata == expected["model"]._metadata
    assert pickles.read(path, "meta")["a"].is_meta


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("make", [bytes, zipped], ids=["legacy", "zip"])
def test_a_bomb_is_refused_within_a_second(tmp_path, name, make):
    path = tmp_path / "a.pth"
    path.write_bytes(make(BOMBS[name]))
    found, seconds = fate(lambda: files.read(path))
    assert found == "refused"
    assert seconds < 2, "a second, on a machine that does other work too"


@pytest.mark.parametrize("opcode", [b"X", b"B", b"T", b"\x8b", b"\x8d", b"\x8e", b"\x96"])
def test_a_length_beyond_the_file_takes_no_memory(tmp_path, opcode):
    path = tmp_path / "a.pth"
    size = 8 if opcode in b"\x8d\x8e\x96" else 4
    path.write_bytes(opcode + (2**30).to_bytes(size, "little") + b"text")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is damaged, or holds more than tensors"):
            files.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_a_tensor_without_content_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(1).expand(10**9)}, path)
    with pytest.raises(ValueError, match=r"tensor of shape \[1000000000\], more than the file holds"):
        files.read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EOFError"),
        (b"no checkpoint", "ValueError"),
        (pickle.dumps(print), "ValueError"),
        (zipped(pickle.dumps(print, 2)), "UnpicklingError"),
        (zipped(b"\x80\x02"), "ValueError"),
    ],
)
def test_the_reason_is_short(tmp_path, content, reason):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{reason}$"):
        pickles.read(path)
    with pytest.raises(FileNotFoundError):
        pickles.read(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: torch.zeros(2)}, "its entry '1' is not a named tensor"),
        ({"w": torch.zeros(2), "epoch": 3}, "its entry 'epoch' is not a named tensor"),
        ({"model": {"w": torch.zeros(2)}, "recipe": {"size": "x"}}, None),
        ({"model": {"w": torch.zeros(2)}, "about": {"alpha": []}}, "is damaged: its record of alpha"),
        ({"fc.weight": torch.tensor(1.0)}, None),
        ([torch.zeros(2)], "does not hold a state dict"),
        (3, "does not hold a state dict"),
    ],
)
def test_what_is_in_it_is_looked_at(tmp_path, content, message):
    path = tmp_path / "a.pth"
    torch.save(content, path)
    if message is None:
        assert files.read(path).num_classes is None
    else:
        with pytest.raises(ValueError, match=message):
            files.read(path)


@pytest.mark.parametrize(
    "kind", ["legacy", "zip", "pickle in a zip", "recipe", "metadata", "results.csv", "config.yaml"]
)
def test_mutations_are_read_or_refused(tmp_path, kind):
    """`make fuzz` tries more."""
    draw = random.Random(0)
    whole, write, read = kinds(tmp_path)[kind]
    assert fate(lambda: read(write(whole)))[0] == "read"
    fates = set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(60 if "." in kind else 150):
            path = write(mutated(whole, draw))
            fates.add(fate(lambda path=path: read(path))[0])
    assert fates <= {"read", "refused"}
