"""A flipped bit in any file that we write is noticed when it is loaded, or changes nothing; the file is named."""

import random
import shutil
import zipfile

import pytest
import torch
from flips import NETWORK, fate, make, same

from octaveconv import _checksum, cli
from octaveconv.deploy.native import tune
from octaveconv.models import create
from octaveconv.train import RunFolder
from octaveconv.weights import files as weights

KINDS = ["last.pth", "best.pth", "model.safetensors", "converted.safetensors", "octavified.safetensors",
         "deployed.octave", "tuning.json"]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "SECONDS", 0)
        return {path.name: (path, read) for path, read in make(tmp_path_factory.mktemp("files")).items()}


def test_every_kind_is_tried(files):
    assert [*files] == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_flips_are_noticed_or_harmless(files, kind):
    (path, read), draw = files[kind], random.Random(kind)
    expected, size = read(path), path.stat().st_size
    start = 8 * min(size, 600)  # more of them where sizes and names are
    bits = [*(draw.randrange(start) for _ in range(12)), *(draw.randrange(8 * size) for _ in range(20))]
    assert {fate(path, read, expected, bit) for bit in bits} <= {"noticed", "harmless"}


def test_what_is_seen_as_equal(files):
    path, read = files["best.pth"]
    one, other = read(path), read(path)
    assert same(one, other)
    other.tensors["fc.bias"][0] += 1e-6
    assert not same(one, other)


def broken(path, name="fc.weight"):
    """Change a tensor in a file of weights, and nothing else."""
    data, tensor = path.read_bytes(), weights.read(path).tensors[name]
    raw = tensor.contiguous().numpy().tobytes()
    at = data.index(raw) + 2
    path.unlink()  # it may be linked
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.fixture
def run(files, tmp_path):
    shutil.copytree(files["last.pth"][0].parent, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def test_the_run_resumes_from_the_checkpoint_before(run, capsys):
    shutil.copy(run.last, run.previous)
    broken(run.last)
    assert RunFolder.open(run.path).load()["epoch"] == 3
    error = capsys.readouterr().err
    assert error.startswith(f"octaveconv: {run.last} cannot be read (the checksum of its record ")
    assert error.endswith(f": resuming from {run.previous}\n")
    broken(run.previous)
    assert run.load()["epoch"] == 3
    assert capsys.readouterr().err.endswith(f": resuming from {run.best}\n")
    broken(run.best)
    with pytest.raises(ValueError, match=r"best\.pth cannot be read \(.*\): there is nothing to resume from"):
        run.load()


def test_a_damaged_checkpoint_does_not_become_the_previous_one(run):
    shutil.copy(run.last, run.previous)
    broken(run.last)
    before = run.previous.read_bytes()
    RunFolder(run.path).save({"epoch": 4})
    assert run.previous.read_bytes() == before


def test_a_name_inside_the_file_is_shown_in_one_line(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a\n\x1b[2J", b"content")
    path.write_bytes(path.read_bytes().replace(b"content", b"contenT"))
    with pytest.raises(ValueError, match=r"the checksum of its record a\\n\\x1b\[2J is not that of its content"):
        weights.read(path)


def test_a_damaged_file_names_what_is_beside_it(run):
    broken(run.path / "model.safetensors")
    message = (
        r"model\.safetensors is damaged: its checksum is not .*: use another file of the run: best\.pth, last\.pth$"
    )
    with pytest.raises(ValueError, match=message):
        create(str(run.path))
    broken(run.best)
    with pytest.raises(ValueError, match=r"best\.pth is damaged: the checksum of its record .*: use another file"):
        create(str(run.best))


@pytest.mark.parametrize("name", ["resnet18", "oct_resnetv2_26"])
def test_timm_does_not_load_a_damaged_file_either(run, name):
    import timm

    broken(run.path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its checksum"):
        timm.create_model(name, checkpoint_path=str(run.path / "model.safetensors"))


def test_a_checksum_cannot_get_lost(run):
    path = run.path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"checksum":', b'"checksun":'))
    with pytest.raises(ValueError, match="it has lost its checksum"):
        weights.read(path)


def test_files_without_checksums_load(tmp_path):
    model = create("oct_resnetv2_26", 0.5, num_classes=3, model_args=NETWORK)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert not any(record.CRC for record in zipfile.ZipFile(tmp_path / "w.pth").infolist())
    assert same(weights.read(tmp_path / "w.pth").tensors, dict(model.state_dict()))


def test_an_archive_that_claims_too_much_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**26))
    assert "claim to hold more than 8 times" in _checksum.problem(tmp_path / "bomb.pth")


def test_the_verb_says_it_in_one_line(run, capsys):
    broken(run.best)
    assert cli.main(["eval", str(run.best), "--data", str(run.path), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"octaveconv: {run.best} is damaged: ")
    assert len(error.splitlines()) == 1


def test_a_checkpoint_of_another_program_is_not_resumed(run, capsys):
    torch.save({"epoch": 3, "state_dict": {"x": torch.ones(1)}}, run.last)
    assert cli.main(["train", "--resume", str(run.path), "--device", "cpu"]) == 2
    assert "is not one of octaveconv train, which records its recipe" in capsys.readouterr().err
