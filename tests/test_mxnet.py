"""load_mxnet: what MXNet writes comes back, bit for bit, whatever holds it."""

import gzip
import hashlib
import lzma
import pickle
import struct

import mxnet_writer as writer
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octaveconv.errors import MXNetFormatError
from octaveconv.mxnet.params import DTYPES, load_mxnet

# The files that MXNet 1.9.1 wrote; they are 80 MB, so the tests write them again.
MXNET_WROTE = {
    "symbol_resnetv2-26_alpha-0.25": "5de28f5040a0e6fa8389bbef8c27ed8b89448c9846ba84048ca4d4b4bbf59c29",
    "gluon_mobilenet_v1_075_alpha-0.375": "739532605f21b8245bd5d3e342657a0d7d1fac023dfc8f6cc38c5a750f436ddd",
    "mobilenet_v1_075_fp16": "8be5350f84f17863fd40f285dc8588dbe4af02383e69f5cabdaa8faa46b1cb30",
}


def load(tmp_path, data, name="file.params"):
    path = tmp_path / name
    path.write_bytes(data)
    return load_mxnet(path)


def raw(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(raw(found[name]), raw(tensor)), name


def random_tensor(dtype, shape):
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8).view(dtype).view(shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mxnet")


@pytest.mark.parametrize("name", MXNET_WROTE)
def test_files_of_mxnet(tmp_path, name):
    data = writer.golden_file(name)
    assert hashlib.sha256(data).hexdigest() == MXNET_WROTE[name]
    found = load(tmp_path, data)
    assert_same(found, writer.golden_arrays(name))
    assert {tensor.dtype for tensor in found.values()} <= {torch.float32, torch.float16}


def test_a_published_archive(tmp_path):
    found = load(tmp_path, writer.golden_tar("symbol_resnetv2-26_alpha-0.25"), "a02_resnet-26_alpha-0.250.tar")
    assert_same(found, writer.golden_arrays("symbol_resnetv2-26_alpha-0.25"))
    assert found["aux:tail_bn_moving_var"].shape == (2048,)


def test_the_example_of_the_format(tmp_path):
    data = bytes.fromhex(
        "1201000000000000 0000000000000000 0200000000000000"
        "c9fa93f9 00000000 02000000 0100000000000000 0300000000000000 01000000 00000000 00000000"
        "0000803f 00000040 00004040"
        "c9fa93f9 00000000 01000000 0100000000000000 01000000 00000000 06000000 0700000000000000"
        "0200000000000000 0100000000000000 77 0200000000000000 6e6d"
    )
    assert_same(load(tmp_path, data), {"w": torch.tensor([[1.0, 2, 3]]), "nm": torch.tensor([7])})


@st.composite
def array_in_an_encoding(draw):
    encoding, dtype = draw(st.sampled_from(writer.ENCODINGS)), draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), min_size=0 if encoding == "V3" else 1, max_size=4))
    return encoding, random_tensor(dtype, shape)


@given(st.dictionaries(st.text(max_size=40), array_in_an_encoding(), max_size=5))
def test_round_trip(folder, arrays):
    tensors = {name: tensor for name, (_, tensor) in arrays.items()}
    assert_same(load(folder, writer.params(tensors, [encoding for encoding, _ in arrays.values()])), tensors)


@pytest.mark.parametrize("encoding", writer.ENCODINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_in_every_encoding(tmp_path, dtype, encoding):
    tensors = {"odd": random_tensor(torch.uint8, [1]), "w": random_tensor(dtype, [2, 3])}  # the second one is unaligned
    found = load(tmp_path, writer.params(tensors, encoding))
    assert_same(found, tensors)
    assert found["w"].data_ptr() % dtype.itemsize == 0


def test_ranks_from_scalar_to_32(tmp_path):
    tensors = {str(n): random_tensor(torch.float32, [1] * n) for n in range(33)}
    assert_same(load(tmp_path, writer.params(tensors, "V3")), tensors)


def test_flags_are_those_of_the_format():
    names = "float32 float64 float16 uint8 int32 int8 int64 bool int16 uint16 uint32 uint64 bfloat16"
    assert [str(dtype).removeprefix("torch.") for dtype in DTYPES] == names.split()


def test_lists_without_names(tmp_path):
    arrays = [torch.ones(2), torch.zeros(3)]
    found = load(tmp_path, writer.list_bytes([writer.array_bytes(array) for array in arrays]))
    assert_same(found, {"0": arrays[0], "1": arrays[1]})


def test_an_empty_list(tmp_path):
    assert load(tmp_path, writer.list_bytes([])) == {}


def test_what_mxnet_ignores_is_ignored(tmp_path):
    tensors = {"w": torch.ones(2)}
    data = bytearray(writer.params(tensors))
    data[8:16] = b"reserved"
    on_a_gpu = writer.array_header(writer.V2, [2], device=(2, 7)) + struct.pack("<2f", 1, 1)
    assert_same(load(tmp_path, bytes(data) + b"after the last name"), tensors)
    assert_same(load(tmp_path, writer.list_bytes([on_a_gpu], ["w"])), tensors)


def compressed(kind, data):
    return {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[kind](data)


@pytest.mark.parametrize("kind", ["", ".gz", ".xz"])
@pytest.mark.parametrize("archive", [False, True])
def test_containers_are_known_by_content(tmp_path, archive, kind):
    tensors = {"arg:w": torch.randn(700, 300), "aux:v": random_tensor(torch.int8, [3])}
    data = writer.params(tensors)
    data = writer.tar({"a/": b"", "a/x-symbol.json": b"{}", "a/x-0000.params": data}) if archive else data
    assert_same(load(tmp_path, compressed(kind, data), "misleading.jpeg"), tensors)


def test_xz_at_its_highest_level_and_in_pieces(tmp_path):
    tensors = {"w": torch.ones(1000)}
    assert_same(load(tmp_path, lzma.compress(writer.params(tensors), preset=9)), tensors)
    assert_same(load(tmp_path, lzma.compress(writer.params(tensors), preset=9 | lzma.PRESET_EXTREME)), tensors)


@pytest.mark.parametrize("tar_format", [0, 1, 2], ids=["ustar", "gnu", "pax"])
def test_tars_of_other_writers(tmp_path, tar_format):
    name = "long/" * 30 + "x-0000.params"  # gnu and pax put such a name into a member of its own
    found = load(tmp_path, writer.tar({"ä.txt": b"text", name: writer.params({"w": torch.ones(3)})}, format=tar_format))
    assert_same(found, {"w": torch.ones(3)})


def test_tensors_are_views_and_the_file_stays_as_it_is(tmp_path):
    data = writer.params({"w": torch.ones(5), "v": torch.zeros(2)})
    found = load(tmp_path, data)
    header = len(writer.array_header(writer.V2, [2]))
    assert found["v"].data_ptr() - found["w"].data_ptr() == 5 * 4 + header
    found["w"].fill_(7)
    found["w"].requires_grad_()
    assert (tmp_path / "file.params").read_bytes() == data


def test_tensors_outlive_the_file_name(tmp_path):
    found = load(tmp_path, writer.params({"w": torch.ones(5000)}))
    (tmp_path / "file.params").unlink()
    assert found["w"].sum() == 5000


def test_an_error_tells_where_and_survives_a_worker(tmp_path):
    with pytest.raises(MXNetFormatError) as caught:
        load(tmp_path, writer.params({"w": torch.ones(2)})[:-1])
    error = caught.value
    path = str(tmp_path / "file.params")
    assert (error.file, error.offset, error.field) == (path, 80, "name 0")
    assert str(error) == f"{path}: at byte 80, name 0: needs 1 bytes, but 0 are left"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.field) == (str(error), error.field)
