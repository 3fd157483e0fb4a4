"""Parameter files that are broken or made to harm: an MXNetFormatError that says where, within bounded memory."""

import contextlib
import gzip
import lzma
import os
import struct

import mxnet_writer as writer
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octaveconv.errors import MXNetFormatError
from octaveconv.mxnet import params as mxnet
from octaveconv.mxnet.container import contents
from octaveconv.mxnet.fields import Fields
from octaveconv.mxnet.params import V1, V2, V3, load_mxnet, read_list

SMALL = writer.params(
    {"a": torch.ones(2, 1), "é": torch.tensor([True, False]), "c": torch.tensor(5), "d": torch.zeros(1).half()},
    ["V2", "V1", "V3", "legacy"],
)
ARRAY = writer.array_bytes(torch.ones(2))


def load(data):
    return read_list(contents(Fields(bytearray(data), "F")))


def fails(data, field, problem, offset=None):
    with pytest.raises(MXNetFormatError) as caught:
        load(data)
    error = caught.value
    assert error.field == field
    assert problem in error.problem
    assert offset is None or error.offset == offset
    assert "\n" not in str(error)
    return error


def one(array, names=("w",)):
    return writer.list_bytes([array], names)


def header(*args, data=b"", **options):
    return one(writer.array_header(*args, **options) + data)


def test_a_cut_anywhere_is_noticed(tmp_path):
    assert len(load(SMALL)) == 4
    for size in range(len(SMALL)):
        with pytest.raises(MXNetFormatError) as caught:
            load(SMALL[:size])
        assert caught.value.offset <= size
    for size in range(24):
        (tmp_path / "f").write_bytes(SMALL[:size])
        with pytest.raises(MXNetFormatError):
            load_mxnet(tmp_path / "f")


def test_a_flipped_bit_anywhere_harms_nothing():
    outcomes = {True: 0, False: 0}
    for bit in range(8 * len(SMALL)):
        data = bytearray(SMALL)
        data[bit // 8] ^= 1 << bit % 8
        try:
            outcomes[len(load(data)) <= 4] += 1
        except MXNetFormatError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 100


@given(st.data())
def test_any_bytes_anywhere_harm_nothing(data):
    mutated = bytearray(data.draw(st.sampled_from([SMALL, writer.tar({"a": SMALL})])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, b"\xff" * 8, bytes(8)]))
        mutated[at : at + len(piece)] = piece
    with contextlib.suppress(MXNetFormatError):
        load(mutated)


@pytest.mark.parametrize("data", [b"", b"\x12", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x12\x01\0\0\0\0\0\1" + bytes(24)])
def test_what_is_no_list(data):
    error = fails(data, "list magic", "expected 12 01 00 00 00 00 00 00", 0)
    assert (data[:8].hex(" ") or "nothing") in error.problem


@pytest.mark.parametrize("count", [2**14 + 1, 2**31, 2**63, 2**64 - 1])
def test_array_counts(count):
    data = struct.pack("<3Q", 0x112, 0, count)
    fails(data, "array count", f"is {count}, expected at most 16384 in a file of this size", 16)


def test_a_larger_file_may_have_more_arrays_and_longer_names():
    arrays = writer.list_bytes([ARRAY] * 20_000)
    fails(arrays, "array count", "is 20000, expected at most 16", 16)
    large = torch.zeros(15_000_000, dtype=torch.uint8)
    data = writer.params({"large": large, **dict.fromkeys(map(str, range(19_999)), torch.zeros(1))})
    assert len(load(data)) == 20_000
    long = "w" * (2**22 + 900_000)  # more than an empty file may have
    fails(one(ARRAY, [long[: 2**22 + 300_000]]), "name 0 length", "expected at most 4", len(one(ARRAY)) - 9)
    assert list(load(writer.params({long: large}))) == [long]


def test_counts_are_compared_with_the_bytes_left():
    fails(struct.pack("<3Q", 0x112, 0, 100) + bytes(1999), "array count", "is 100, but only 1999 bytes are left", 16)
    fails(struct.pack("<3Q", 0x112, 0, 100) + bytes(2000), "array 0 ndim", "placeholder", 24)


def test_the_smallest_array_is_not_too_small():
    nothing = writer.array_header(None, [0])
    assert len(load(writer.list_bytes([nothing] * 9))) == 9  # by name count alone more than 20 bytes an array


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b", "c")])
def test_name_counts(names):
    data = writer.list_bytes([ARRAY] * 2, names)
    if names:
        fails(data, "name count", f"is {len(names)}, expected 2", 24 + 2 * len(ARRAY))
    else:
        assert len(load(data)) == 2


@pytest.mark.parametrize("length", [2**23, 2**32, 2**63, 2**64 - 1])
def test_name_lengths(length):
    data = one(ARRAY)[:-9] + struct.pack("<Q", length) + b"w" * 300
    fails(data, "name 0 length", f"is {length}, expected at most 41943", len(one(ARRAY)) - 9)


@pytest.mark.parametrize("name", ["w" * 300, "\U0001f600" * 20_000], ids=["300", "emoji"])
def test_long_names_are_legal(name):
    assert list(load(one(ARRAY, [name]))) == [name]
    error = fails(writer.list_bytes([ARRAY] * 2, [name] * 2), "name 1", "appears twice")
    assert len(str(error)) < 300


@pytest.mark.parametrize("name", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"a\xc3", b"\xf4\x90\x80\x80"])
def test_names_are_strict_utf8(name):
    error = fails(one(ARRAY, [name]), "name 0", "is not UTF-8", len(one(ARRAY)) - 1)
    assert repr(name) in error.problem


@pytest.mark.parametrize("name", ["a", "", "\n\x1b[2J"])
def test_duplicate_names(name):
    fails(writer.list_bytes([ARRAY] * 3, ["x", name, name]), "name 2", f"{name!r} appears twice")


@pytest.mark.parametrize("magic", [33, 0xF993FAC7, 0xF993FACB, 2**32 - 1])
def test_array_magics(magic):
    fails(one(struct.pack("<I", magic) + ARRAY[4:]), "array 0 magic", f"is {magic:#x}, expected 0xf993fac8", 24)


@pytest.mark.parametrize("magic", [V2, V3])
@pytest.mark.parametrize(("storage", "kind"), [(1, "row-sparse"), (2, "CSR"), (-1, "undefined"), (3, "unknown")])
def test_storage_types(magic, storage, kind):
    data = header(magic, [2], storage=storage, data=bytes(64))
    fails(data, "array 0 storage type", f"is {storage} ({kind}), expected 0 (dense)", 28)


@pytest.mark.parametrize(("magic", "ndim", "at"), [(V1, 0, 28), (V2, 0, 32), (V3, -1, 32), (None, 0, 24)])
def test_placeholders(magic, ndim, at):
    start = struct.pack("<Ii", magic, 0)[: at - 24] if magic else b""
    fails(one(start + struct.pack("<i", ndim)), "array 0 ndim", f"is {ndim}, a placeholder", at)


@pytest.mark.parametrize(("magic", "ndim"), [(V1, -1), (V2, -1), (V3, -2), (V1, 33), (V2, 33), (V3, 2**31 - 1)])
def test_ndims(magic, ndim):
    start = struct.pack("<Ii", magic, 0)[: 4 if magic == V1 else 8]
    fails(one(start + struct.pack("<i", ndim) + bytes(400)), "array 0 ndim", f"is {ndim}, expected 0 to 32")


@pytest.mark.parametrize("magic", [V1, V2, V3])
@pytest.mark.parametrize("dim", [-1, -(2**63)])
def test_negative_dims(magic, dim):
    fails(
        header(magic, [1, dim]),
        "array 0 dimension 1",
        f"is {dim}, expected 0 or more",
        24 + (16 if magic == V1 else 20),
    )


WRAPPING = [  # in 64 bits the product is 0, or small, or negative
    [2**32, 2**32], [2**63 - 1, 2], [2**33, 2**33, 2], [2**62, 4], [2**62, 2], [(2**64 + 2) // 6, 3],
    [2**63 - 1, 2**63 - 1], [2**62, 0, 4], [0, 2**63 - 1, 2],
]  # fmt: skip


@pytest.mark.parametrize("shape", WRAPPING, ids=str)
@pytest.mark.parametrize("magic", [V1, V2, V3])
def test_products_that_wrap(magic, shape):
    fails(header(magic, shape, data=bytes(100)), "array 0 shape", "more elements than can be counted")


@pytest.mark.parametrize(("shape", "field"), [([2**32 - 1] * 2, "shape"), ([2**16] * 4, "shape"), ([2] * 32, "data")])
def test_legacy_products(shape, field):
    fails(header(None, shape, data=bytes(100)), f"array 0 {field}", "")


@pytest.mark.parametrize(
    ("shape", "flag"), [([2**61], 1), ([2**62, 1], 0), ([2**40], 3), ([26], 0), ([13], 6), ([101], 7)]
)
def test_data_beyond_the_file(shape, flag):
    size = torch.Size(shape).numel() * mxnet.DTYPES[flag].itemsize
    data = struct.pack("<3Q", 0x112, 0, 1) + writer.array_header(V2, shape, flag)
    fails(data + bytes(100), "array 0 data", f"needs {size} bytes, but 100 are left", len(data))


@pytest.mark.parametrize("shape", [[0], [2**63 - 1, 0], [0] * 32, [2**40, 0, 2**22]], ids=str)
def test_arrays_without_cells_take_no_memory(shape):
    assert load(header(V3, shape))["w"].shape == tuple(shape)


@pytest.mark.parametrize("flag", [-1, 13, 2**31 - 1, -(2**31)])
def test_dtype_flags(flag):
    fails(header(V2, [1], flag, data=bytes(8)), "array 0 dtype flag", f"is {flag}, expected 0 to 12", 24 + 28)


@pytest.mark.parametrize("byte", [2, 128, 255])
def test_bools_are_0_or_1(byte):
    fails(header(V2, [3], 7, data=bytes([1, byte, 0])), "array 0 data", "other than 0 and 1", 24 + 32)


def test_the_second_array_is_called_so():
    fails(writer.list_bytes([ARRAY, ARRAY[:4] + b"\1" + ARRAY[5:]]), "array 1 storage type", "row-sparse", 24 + 40 + 4)


# tar


def test_member_names_are_for_messages_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["../../evil.params", "/etc/passwd.params", "a\nb\x1b[2J.params", "y" * 90 + "/" + "x" * 99]
    for name in names:
        assert list(load(writer.tar({name: SMALL}))) == ["a", "é", "c", "d"]
        error = fails(writer.tar({name: SMALL, "second": SMALL}), "tar", "found 2", 0)
        assert "second" in error.problem
        assert len(str(error)) < 200
    assert list(tmp_path.iterdir()) == []


def test_tars_need_exactly_one_list():
    none = fails(writer.tar({"a/": b"", "a/read\nme": b"text", "b": SMALL[:7]}), "tar", "found 0: 'a/read\\nme', 'b'")
    assert none.file == "F"
    fails(writer.tar({"a/": b""}), "tar", "found 0: no files")
    fails(
        writer.tar({"x": b"?", **{f"{i}.params": SMALL for i in range(9)}}),
        "tar",
        "found 9: '0.params', '1.params', '2.params', '3.params', ...",
    )


def test_errors_inside_a_tar_count_from_the_member():
    broken = SMALL[:16] + struct.pack("<Q", 10**6) + SMALL[24:]
    assert (
        fails(writer.tar({"x": b"?", "a.params": broken}), "array count", "is 1000000", 16).file
        == "F (member 'a.params')"
    )


def test_a_member_ends_where_its_header_says():
    data = writer.tar({"a": SMALL[:-1], "b": b"x" * 600})
    fails(data, "name 3", "needs 1 bytes, but 0 are left")


def checked(data, at=0):
    """Correct the checksum of the tar header at ``at``."""
    data = bytearray(data)
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


@pytest.mark.parametrize("at", [0, 124, 148, 257, 345, 511])
def test_tar_headers_are_checked(at):
    data = bytearray(writer.tar({"x": b"?", "a": SMALL}))
    data[1024 + at] ^= 1
    fails(data, "tar header", "is damaged", 1024)
    if at == 257:
        fails(checked(data, 1024), "tar header", "expected 'ustar'", 1024)


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"%011o\0" % (len(SMALL) + 2000)])
def test_tar_sizes_beyond_the_file(size):
    data = writer.tar({"a": SMALL})[: 512 + len(SMALL)]
    fails(checked(data[:124] + size + data[136:]), "tar member", f"but {len(SMALL)} are left", 512)


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"-0000000001\0", b"0x10\0" + bytes(7), b"1_0" + bytes(9), bytes(12), b"8" * 12]
)
def test_tar_sizes_that_are_none(size):
    data = writer.tar({"a": SMALL})
    fails(checked(data[:124] + size + data[136:]), "tar header", "a size that is not a number", 0)


@pytest.mark.parametrize(
    "size", [b"\x80" + len(SMALL).to_bytes(11, "big"), b"%11o " % len(SMALL), b"%012o" % len(SMALL)]
)
def test_tar_sizes_in_other_forms(size):
    data = writer.tar({"a": SMALL})
    assert len(load(checked(data[:124] + size + data[136:]))) == 4


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
def test_tar_types_of_files(kind):
    data = writer.tar({"a": SMALL})
    assert len(load(checked(data[:156] + kind + data[157:]))) == 4


@pytest.mark.parametrize("kind", [*b"123456LKxgSVZ"])
def test_tar_types_that_are_no_files(kind):
    """Those with data are stepped over; links, devices and directories have none, whatever size they tell."""
    first, second = writer.tar({"a": SMALL})[:-1024], writer.tar({"b": SMALL})
    first = first[: 512 + -(-len(SMALL) // 512) * 512]
    skipped = checked(first[:156] + bytes([kind]) + first[157:])
    if kind in b"123456":
        skipped = skipped[:512]
    assert len(load(skipped + second)) == 4
    fails(skipped, "tar", "found 0: no files")


def test_a_tar_ends_at_its_empty_block():
    data = writer.tar({"a": SMALL})
    assert len(load(data + writer.tar({"b": SMALL}))) == 4
    assert len(load(data[: 512 + len(SMALL)])) == 4  # nor does it need one


def test_many_empty_members_end():
    block = writer.tar({"x": b""})[:512]
    fails(block * 20_000, "tar", "found 0: 'x', 'x', 'x', 'x', ...")


# gzip, xz

KINDS = {"gzip": gzip.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_streams_that_end_early(kind):
    data = KINDS[kind](SMALL)
    assert len(load(data)) == 4
    for size in range(6, len(data)):
        fails(data[:size], f"{kind} stream", "needs 1 bytes, but 0 are left", size)


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_streams_are_checked(kind):
    data = KINDS[kind](SMALL)
    for at in range(6, len(data)):
        broken = bytearray(data)
        broken[at] ^= 0x55
        try:
            found = load(broken)
        except MXNetFormatError:
            continue
        assert len(found) == 4  # a bit of gzip's header that means nothing, such as its time
    broken = bytearray(data)
    broken[-5 if kind == "gzip" else len(data) // 2] ^= 1
    fails(broken, f"{kind} stream", "is damaged: ", 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [b"\0" * 4, b"garbage", None])
def test_only_one_stream_is_read(kind, more):
    data = KINDS[kind](SMALL)
    fails(data + (data if more is None else more), f"{kind} stream", "other data follows it", len(data))


@pytest.mark.parametrize("kind", KINDS)
def test_errors_inside_a_stream_count_from_its_content(kind):
    assert fails(KINDS[kind](SMALL[:-1]), "name 3", "needs 1 bytes").file == "F (decompressed)"
    inner = KINDS[kind](writer.tar({"a.params": SMALL[:-1]}))
    assert fails(inner, "name 3", "needs 1 bytes").file == "F (decompressed) (member 'a.params')"
    fails(KINDS[kind](b""), "list magic", "found nothing")
    fails(KINDS[kind](b"\x12\1"), "list magic", "found 12 01, ")  # the memory behind it is 0, as the magic's rest
    fails(KINDS[kind](KINDS[kind](SMALL)), "list magic", "expected 12 01")


@pytest.mark.parametrize("kind", KINDS)
def test_bombs(kind):
    data = KINDS[kind](SMALL + bytes(17 * 2**20))
    fails(data, f"{kind} stream", f"decompresses to more than {8 * len(data) + 16 * 2**20} bytes")
    assert len(load(KINDS[kind](SMALL + bytes(16 * 2**20 - len(SMALL))))) == 4


def test_xz_dictionaries_are_bounded():
    filters = [
        {"id": lzma.FILTER_LZMA2, "dict_size": 128 * 2**20, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3, "depth": 1}
    ]
    fails(lzma.compress(SMALL, filters=filters), "xz stream", "needs more than 66 MiB of memory: decompress")


# files


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_mxnet(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(MXNetFormatError, match="expected a regular file") as caught:
            load_mxnet(path)
        assert caught.value.file == str(path)
    (tmp_path / "empty").touch()
    with pytest.raises(MXNetFormatError, match="at byte 0, file: is empty"):
        load_mxnet(tmp_path / "empty")
