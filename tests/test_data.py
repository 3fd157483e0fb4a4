"""Folders, tars, record files and named data sets; what cannot be read; what a network's input is."""

import io
import pickle
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import timm
import torch
from folders import NUMBERS, encoded, make_folder, make_records, make_tar, picture, pixels, webdataset_shards
from PIL import Image

import octaveconv.models  # noqa: F401  # registers
from octaveconv.data import datasets as data
from octaveconv.data import loading
from octaveconv.data.datasets import CorruptImage, Images, Stream, open_dataset, preprocessing
from octaveconv.errors import MissingExtra, UsageError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "set", make_folder(tmp_path / "set")


def test_a_folder_a_tar_and_a_record_file_hold_the_same(folder, tmp_path):
    path, files = folder
    expected = [(np.asarray(Image.open(file)).tobytes(), label) for file, label in files]
    tar = make_tar(tmp_path / "set.tar", path)
    records = make_records(tmp_path / "set.rec", [(label, file.read_bytes()) for file, label in files])
    for source, classes in ((path, 3), (tar, 3), (records, None)):
        dataset = open_dataset(str(source))
        assert len(dataset) == 9
        assert dataset.num_classes == classes
        assert pixels(dataset[i] for i in range(9)) == expected, source
    assert open_dataset(path).filename(3) == str(path / "dog2" / "0.png")
    assert open_dataset(tar).filename(3) == f"{tar}: ./dog2/0.png"
    assert open_dataset(records).filename(3) == f"{records}: record 3"


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_splits(tmp_path, kind):
    top = tmp_path / "set"
    for split, count in (("train", 5), ("test", 1), ("validation", 2), ("val", 3)):
        make_folder(top / split, (count, 1, 1))
    source = top if kind == "folder" else make_tar(tmp_path / "set.tar", top)
    assert len(open_dataset(source)) == 5
    assert len(open_dataset(source, "validation")) == 4
    assert len(open_dataset(source, "test")) == 3
    assert len(open_dataset(source, "train")) == 7
    files = sorted((top / "validation").glob("*/*"), key=lambda file: (NUMBERS[file.parent.name], file))
    expected = [(np.asarray(Image.open(file)).tobytes(), NUMBERS[file.parent.name]) for file in files]
    assert pixels(open_dataset(source, "validation")[i] for i in range(4)) == expected
    with pytest.raises(UsageError, match=r"no folder 'vall' in .*: it has test, train, val, validation"):
        open_dataset(source, "vall")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_training_images_are_not_scored_by_accident(tmp_path, kind):
    make_folder(tmp_path / "set" / "train")
    source = tmp_path / "set" if kind == "folder" else make_tar(tmp_path / "set.tar", tmp_path / "set")
    with pytest.raises(UsageError, match="has train but no val, validation or test: name a folder as the split"):
        open_dataset(source)


def test_a_class_may_be_called_train_or_test(tmp_path):
    for name in ("bus", "test", "train"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.png").write_bytes(encoded(0))
    for source in (tmp_path / "set", make_tar(tmp_path / "set.tar", tmp_path / "set")):
        assert (len(open_dataset(source)), open_dataset(source).num_classes) == (3, 3)


def test_transform(folder):
    dataset = open_dataset(folder[0], transform=lambda image: image.size)
    assert dataset[0] == ((40, 48), 0)
    assert dataset.read(0)[0].size == (40, 48)


def test_every_kind_of_file_becomes_rgb(tmp_path):
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
    (tmp_path / "a").mkdir()
    for i, mode in enumerate(modes):
        suffix = "jpg" if mode == "CMYK" else "png"
        image = Image.new(mode, (8, 8)) if mode == "I;16" else picture(0, (8, 8)).convert(mode)
        image.save(tmp_path / "a" / f"{i}.{suffix}")
    dataset = open_dataset(tmp_path)
    assert {dataset[i][0].mode for i in range(len(modes))} == {"RGB"}


def test_what_is_no_data_set_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "flat", "mixed/cat", "split/val"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("flat/0.png", "mixed/0.png", "mixed/cat/0.png", "split/val/0.png", "image.png"):
        (tmp_path / name).write_bytes(encoded(0))
    (tmp_path / "text.tar").write_bytes(b"text" * 999)
    make_tar(tmp_path / "empty.tar", tmp_path / "empty")
    make_tar(tmp_path / "flat.tar", tmp_path / "flat")
    make_records(tmp_path / "empty.rec", [])
    for source, message in {
        "no": "there is no folder or file 'no': name one, or a data set as in hfds/NAME",
        "hdfs/x": "there is no folder or file 'hdfs/x'",
        "empty": "there are no images .* in empty",
        "empty.tar": r"there are no images .* in empty\.tar",
        "empty.rec": r"there are no images .* in empty\.rec",
        "flat": "there are images directly in flat: put each in a folder named after its class",
        "flat.tar": r"there are images directly in flat\.tar",
        "mixed": "there are images directly in mixed",
        "split": "there are images directly in split",
        "image.png": "neither a folder nor a .tar nor a .rec file: unpack it and name the folder",
        "text.tar": "not a complete, uncompressed tar",
        "torch/cifar99": "timm has no data set 'torch/cifar99'",
        "torch/cifar10": r"torch/cifar10 cannot be opened \(folder data\): Dataset not found",
    }.items():
        with pytest.raises(UsageError, match=message):
            open_dataset(source)


def test_a_cut_tar_is_told(folder, tmp_path):
    whole = make_tar(tmp_path / "set.tar", folder[0]).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(UsageError, match="not a complete, uncompressed tar file"):
        open_dataset(tmp_path / "cut.tar")


def broken_png():
    """One whose pixels end early, behind a sound header."""
    return encoded(0)[:-40]


def bomb():
    """The header of a PNG of a billion pixels."""
    content = bytearray(encoded(0))
    content[16:24] = struct.pack(">II", 30000, 40000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not an image that Pillow knows"),
        (b"no image", "it is not an image that Pillow knows"),
        (broken_png(), "truncated|broken|incomplete"),
        (bomb(), "decompression bomb"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "tar", "rec"])
def test_a_corrupt_image_is_named(tmp_path, kind, content, reason):
    make_folder(tmp_path / "set")
    (tmp_path / "set" / "cat" / "1.png").write_bytes(content)
    source, name = {
        "folder": lambda: (tmp_path / "set", str(tmp_path / "set" / "cat" / "1.png")),
        "tar": lambda: (make_tar(tmp_path / "a.tar", tmp_path / "set"), f"{tmp_path}/a.tar: ./cat/1.png"),
        "rec": lambda: (
            make_records(tmp_path / "a.rec", [(0, encoded(0)), (0, content), (1, encoded(0))]),
            f"{tmp_path}/a.rec: record 1",
        ),
    }[kind]()
    dataset = open_dataset(source)
    assert dataset[0][1] == dataset[2][1] == 0 or kind == "rec"
    with pytest.raises(CorruptImage, match=reason) as caught:
        dataset[1]
    assert caught.value.file == name
    assert str(caught.value).startswith(f"{name} cannot be read: ")
    assert "object at" not in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.file, str(copy)) == (name, str(caught.value))


def test_a_lost_file_and_a_damaged_record_are_corrupt_images_too(folder, tmp_path):
    dataset = open_dataset(folder[0])
    folder[1][0][0].unlink()
    with pytest.raises(CorruptImage, match=r"0\.png cannot be read: .*No such file"):
        dataset[0]
    path = make_records(tmp_path / "a.rec", [(0, encoded(0)), (1, encoded(1))])
    content = bytearray(path.read_bytes())
    content[int(path.with_suffix(".idx").read_text().split()[-1])] ^= 1
    path.write_bytes(content)
    assert open_dataset(path)[0][1] == 0
    with pytest.raises(CorruptImage, match=r"a\.rec: record 1 cannot be read: .*magic"):
        open_dataset(path)[1]


@pytest.mark.parametrize("label", [1.5, float("nan"), float("inf")])
def test_a_label_that_is_no_index_is_told(tmp_path, label):
    with pytest.raises(CorruptImage, match=f"record 0 cannot be read: its label {label} is not a class index"):
        open_dataset(make_records(tmp_path / "a.rec", [(label, encoded(0))]))[0]


def test_no_memory_is_no_corrupt_image(folder, monkeypatch):
    def decode(file):
        raise MemoryError

    monkeypatch.setattr(data, "decode", decode)
    with pytest.raises(MemoryError):
        open_dataset(folder[0])[0]


@pytest.mark.parametrize(
    ("source", "module", "message"),
    [
        ("hfds/x", "datasets", r"this needs datasets, .*octaveconv\[data\]"),
        ("HFIDS/x", "datasets", r"this needs datasets, .*octaveconv\[data\]"),
        ("tfds/x", "tensorflow_datasets", r"this needs tensorflow_datasets, .*octaveconv\[data\]"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch, source, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=message):
        open_dataset(source)


class Digits:
    """What torchvision's data sets look like."""

    classes = ("0", "1")

    def __len__(self):
        return 2

    def __getitem__(self, i):
        if i:
            raise OSError("broken")
        return Image.new("L", (28, 28)), i


def test_a_data_set_of_torchvision(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(data, "create_dataset", lambda name, **kwargs: asked.update(kwargs, name=name) or Digits())
    dataset = open_dataset("torch/mnist", "test", root=tmp_path)
    assert asked == {"name": "torch/mnist", "root": str(tmp_path), "split": "test"}
    assert (len(dataset), dataset.num_classes, dataset[0][0].mode) == (2, 2, "RGB")
    with pytest.raises(CorruptImage, match="torch/mnist: image 1 cannot be read: broken"):
        dataset[1]


class Reader:
    """A stream's reader."""

    num_samples = 3
    class_to_idx = MappingProxyType({"a": 0, "b": 1})

    def __iter__(self):
        yield picture(0).convert("L"), 0
        yield picture(1), 1
        raise OSError("the shard is cut")


def test_a_stream_ends_at_its_first_error():
    stream = Stream("hfids/x", Reader(), transform=lambda image: image.mode)
    assert (stream.announced, stream.num_classes) == (3, 2)
    items = iter(stream)
    assert [next(items), next(items)] == [("RGB", 0), ("RGB", 1)]
    with pytest.raises(CorruptImage, match="an image of hfids/x cannot be read: the shard is cut"):
        next(items)


def test_webdataset(tmp_path):
    webdataset_shards(tmp_path)
    images = open_dataset(f"wds/{tmp_path}", "val-{0..2}.tar|12")
    assert [images[i][1] for i in range(len(images))] == [0] * 4 + [1] * 4 + [2] * 4
    assert images.read(1)[0].tobytes() == Image.open(io.BytesIO(encoded(1))).tobytes()
    assert images.filename(5) == f"wds/{tmp_path}: val-1.tar/11.png"
    assert len(open_dataset(f"wds/{tmp_path}", "val-{1..2}.tar")) == 8
    assert len(open_dataset(f"wds/{tmp_path}")) == len(open_dataset(f"wds/{tmp_path}", "val")) == 12
    loader = torch.utils.data.DataLoader(images, None, num_workers=2)
    assert pixels(loader) == pixels(images[i] for i in range(12))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("val-{0..2}.tar|13", "contain 12 images, expected 13"),
        ("val-{2..3}.tar", r"there are no shards val-3.tar in .*name them as the split"),
        ("train", r"no shards named \*train\*.tar"),
        ("bare.tar", r"7.png has no class: add a .cls file"),
        ("broken.tar", r"broken.tar cannot be read"),
    ],
)
def test_shards_that_cannot_be_used(tmp_path, split, message):
    webdataset_shards(tmp_path)
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 200)
    with tarfile.open(tmp_path / "bare.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("7.png"), io.BytesIO())
    with pytest.raises(UsageError, match=message):
        open_dataset(f"wds/{tmp_path}", split)


def test_hugging_face(folder):
    pytest.importorskip("datasets", reason="optional: octaveconv[data]")
    dataset = open_dataset(f"hfds/{folder[0]}", "train")
    assert (len(dataset), dataset.num_classes) == (9, 3)
    assert sorted(pixels(dataset[i] for i in range(9)))[0][0] == min(
        np.asarray(Image.open(file)).tobytes() for file, _ in folder[1]
    )


def test_the_original_preprocessing():
    """Shorter side to 256 (bicubic), centre crop 224, subtract (124, 117, 104), times 0.0167."""
    image = picture(1, (300, 400))
    prepared = preprocessing(timm.create_model("oct_resnetv2_26", layers=(1, 1, 1, 1), width=8))
    resized = image.resize((256, 341), Image.Resampling.BICUBIC)
    cropped = np.asarray(resized, dtype=np.float64)[58:282, 16:240]  # (341 - 224) / 2, (256 - 224) / 2
    expected = (cropped - (124, 117, 104)) * 0.0167
    actual = prepared.transform()(image)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_the_usual_preprocessing():
    """Shorter side to 256 (bilinear), centre crop 224, ImageNet's mean and deviation on [0, 1]."""
    image = picture(1, (512, 300))
    prepared = preprocessing(timm.create_model("oct_resnet50"))
    resized = image.resize((436, 256), Image.Resampling.BILINEAR)
    cropped = np.asarray(resized, dtype=np.float64)[16:240, 106:330]
    expected = (cropped / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(prepared.transform()(image).permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert (prepared.size, prepared.interpolation, prepared.crop_pct) == ((224, 224), "bilinear", 0.875)


def test_crop_and_size_are_the_network_s_own():
    net = torch.nn.Flatten()
    net.pretrained_cfg = {"input_size": (3, 24, 32), "crop_pct": 0.5, "crop_mode": "squash", "interpolation": "nearest"}
    resized = picture(0).resize((64, 48), Image.Resampling.NEAREST).crop((16, 12, 48, 36))
    expected = (np.asarray(resized) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    actual = preprocessing(net).transform()(picture(0))
    np.testing.assert_allclose(actual.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_the_size_can_be_given():
    prepared = preprocessing(torch.nn.Flatten(), 64)  # no configuration: timm's defaults
    assert (prepared.size, prepared.interpolation) == ((64, 64), "bicubic")
    assert prepared.transform()(picture(0)).shape == (3, 64, 64)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(tmp_path, workers):
    files = make_folder(tmp_path, corrupt=[("cat", 1), ("dog2", 0), ("dog2", 1), ("dog2", 2)])
    transform = preprocessing(torch.nn.Flatten(), 32).transform()
    before = torch.get_rng_state()
    found = list(loading.batches(open_dataset(tmp_path), transform, 3, workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert [images if images is None else len(images) for images, *_ in found] == [2, None, 2, 1] or len(found) == 3
    names = [name for _, _, names, _ in found for name in names]
    corrupt = [error.file for *_, errors in found for error in errors]
    assert sorted(names + corrupt) == sorted(str(file) for file, _ in files)
    assert corrupt == [str(tmp_path / name) for name in ("cat/1.png", "dog2/0.png", "dog2/1.png", "dog2/2.png")]
    labels = {name: label for _, labels, names, _ in found for name, label in zip(names, labels.tolist())}
    assert labels == {str(file): label for file, label in files if str(file) in names}
    for images, _, names, _ in found:
        for i, name in enumerate(names):
            assert torch.equal(images[i], transform(Image.open(name)))


def test_workers_read_a_tar_that_this_process_has_read(folder, tmp_path):
    tar = make_tar(tmp_path / "set.tar", folder[0])
    dataset = open_dataset(tar)
    expected = pixels(dataset[i] for i in range(9))
    handles = {handle.resolve() for handle in Path("/proc/self/fd").glob("*")}
    assert tar not in handles  # forked workers would share its position
    loader = torch.utils.data.DataLoader(dataset, None, num_workers=2)
    assert pixels(loader) == expected


def test_images_can_be_built_on_any_reader():
    images = Images("mine", [(picture(0), 1), (picture(1), 2.5)])
    assert images[0][1] == 1
    with pytest.raises(CorruptImage, match=r"mine: image 1 cannot be read: its label 2\.5 is not a class index"):
        images[1]
