"""RecordFile: what MXNet packed comes back, in any worker, and damage is noticed."""

import io
import json
import os
import pickle
import struct

import mxnet_writer as writer
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from octaveconv.errors import MXNetFormatError
from octaveconv.mxnet import recordio
from octaveconv.mxnet.recordio import Record, RecordFile

SAMPLE = writer.ORACLE / "files" / "sample.rec"
MAGIC = writer.RECORD_MAGIC
RECORDS = [
    Record((3.0,), 7, b"JPEG"),
    Record((1.5, -2.0), 2**63, b"x" * 5),
    Record((0.0,), 0, b"abcd" + MAGIC + b"e" * 9),
    Record((-1.0,), 1, MAGIC * 2),
]


def write(folder, records=RECORDS, index=True):
    data, lines = writer.record_file([writer.image_payload(record) for record in records])
    return write_bytes(folder, data, lines if index else None)


def write_bytes(folder, data, lines=None):
    path = folder / "file.rec"
    path.write_bytes(data)
    path.with_suffix(".idx").unlink(missing_ok=True)
    if lines is not None:
        path.with_suffix(".idx").write_bytes(lines)
    return path


def fails(action, file, offset, field, problem):
    with pytest.raises(MXNetFormatError) as caught:
        action()
    error = caught.value
    assert (error.file, error.offset, error.field) == (str(file), offset, field)
    assert problem in error.problem
    return error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rec")


def test_the_file_of_mxnet(tmp_path):
    records = RecordFile(SAMPLE)
    about = json.loads((SAMPLE.parent / "sample_rec.json").read_text())["records"]
    assert len(records) == len(about) == 31
    for record, entry in zip(records, about):
        assert record.labels[0] == entry["class"]
        assert record.id == entry["index"]
        assert len(record.image) == entry["bytes"]
        assert Image.open(io.BytesIO(record.image)).convert("RGB").size == (32, 32)
    assert records[28].labels == (9.0, 3.5)
    assert records[-1].image.count(MAGIC) == 2  # it was split at both
    path = write(tmp_path, records)
    assert path.read_bytes() == SAMPLE.read_bytes()
    assert path.with_suffix(".idx").read_bytes() == SAMPLE.with_suffix(".idx").read_bytes()


labels = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=3).map(tuple)
images = st.lists(st.sampled_from([MAGIC, b"abcd", b"x", b""]), max_size=6).map(b"".join)


@given(st.lists(st.builds(Record, labels, st.integers(0, 2**64 - 1), images), max_size=5), st.booleans())
def test_round_trip(folder, records, index):
    assert list(RecordFile(write(folder, records, index))) == records


def test_the_index_gives_the_order_and_may_lie_elsewhere(tmp_path):
    path = write(tmp_path)
    lines = path.with_suffix(".idx").read_bytes().splitlines()
    other = tmp_path / "other"
    other.write_bytes(b"\r\n".join(lines[::-2]))
    assert list(RecordFile(path, other)) == [RECORDS[3], RECORDS[1]]
    assert len(RecordFile(path)) == 4
    path.with_suffix(".idx").unlink()
    assert list(RecordFile(path)) == RECORDS


def test_it_is_a_sequence(tmp_path):
    records = RecordFile(write(tmp_path))
    assert records[-1] == RECORDS[-1]
    for index in (4, -5):
        with pytest.raises(IndexError):
            records[index]


@pytest.mark.parametrize("index", [False, True])
def test_it_pickles_without_its_handle(tmp_path, index):
    records = RecordFile(write(tmp_path, index=index))
    state = pickle.dumps(records)
    assert len(state) < 1000
    assert list(pickle.loads(state)) == RECORDS


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same(context):
    records = RecordFile(SAMPLE)
    loader = DataLoader(records, batch_size=4, num_workers=2, multiprocessing_context=context, collate_fn=list)
    assert [record for batch in loader for record in batch] == list(records)


def test_its_handle_is_closed_with_it(tmp_path):
    path = write(tmp_path)
    records = RecordFile(path)
    again = pickle.loads(pickle.dumps(records))
    handles = [records._fd, again._fd]
    assert handles[0] != handles[1]
    del records, again
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


def test_a_cut_anywhere_is_noticed(tmp_path):
    data, lines = writer.record_file([writer.image_payload(record) for record in RECORDS])
    starts = [int(line.split(b"\t")[1]) for line in lines.splitlines()]
    for size in range(len(data)):
        path = write_bytes(tmp_path, data[:size])
        if size in starts:
            assert list(RecordFile(path)) == RECORDS[: starts.index(size)]
        else:
            with pytest.raises(MXNetFormatError):
                RecordFile(path)
        with pytest.raises(MXNetFormatError):
            list(RecordFile(write_bytes(tmp_path, data[:size], lines)))


def test_a_flipped_bit_anywhere_harms_nothing(tmp_path):
    data, _ = writer.record_file([writer.image_payload(record) for record in RECORDS])
    refused = 0
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            list(RecordFile(write_bytes(tmp_path, broken)))
        except MXNetFormatError:
            refused += 1
    assert 100 < refused < 8 * len(data)


@pytest.mark.parametrize("at", range(4))
def test_magic(tmp_path, at):
    data = writer.part(0, writer.image_payload(RECORDS[0]))
    path = write_bytes(tmp_path, data + data[:at] + b"\0" + data[at + 1 :])
    fails(lambda: RecordFile(path), path, len(data), "record magic", ", expected 0a 23 d7 ce")


@pytest.mark.parametrize(("flags", "part"), [((2,), 0), ((3,), 0), ((4,), 0), ((7,), 0), ((1, 0), 1), ((1, 1), 1),
                                             ((1, 2, 0), 2), ((1, 3, 2), 2), ((0, 3), 1), ((1, 2, 5), 2)])  # fmt: skip
def test_sequences_of_flags(tmp_path, flags, part):
    piece = bytes(24)
    data = b"".join(writer.part(flag, piece) for flag in flags)
    path = write_bytes(tmp_path, data)
    fails(lambda: RecordFile(path), path, 32 * part + 4, "continuation flag", f"is {flags[part]}, expected ")
    if flags[:part] in ((), (1,), (1, 2)):  # the wrong one belongs to the first record
        path = write_bytes(tmp_path, data, b"0\t0\n")
        fails(lambda: RecordFile(path)[0], path, 32 * part + 4, "continuation flag", f"is {flags[part]}, expected ")


def test_a_record_that_is_not_finished(tmp_path):
    path = write_bytes(tmp_path, writer.part(1, bytes(24)))
    fails(lambda: RecordFile(path), path, 32, "record header", "needs 8 bytes, but 0 are left")


@pytest.mark.parametrize("length", [2**29 - 1, 33, 29])
def test_lengths_beyond_the_file(tmp_path, length):
    data = MAGIC + struct.pack("<I", length) + bytes(28)
    for lines in (None, b"0\t0\n"):
        path = write_bytes(tmp_path, data, lines)
        fails(lambda path=path: RecordFile(path)[0], path, 4, "record length", f"is {length}, but 28 bytes are left")


@pytest.mark.parametrize("size", [0, 23])
def test_image_headers_that_are_too_short(tmp_path, size):
    path = write_bytes(tmp_path, writer.part(0, bytes(24)) + writer.part(0, bytes(size)))
    records = RecordFile(path)
    assert records[0] == Record((0.0,), 0, b"")
    fails(lambda: records[1], path, 32, "image header", f"has {size} bytes, expected 24")


@pytest.mark.parametrize("count", [3, 2**31, 2**32 - 1])
def test_label_counts_beyond_the_payload(tmp_path, count):
    path = write_bytes(tmp_path, writer.part(0, struct.pack("<IfQQ", count, 0, 0, 0) + bytes(11)))
    fails(lambda: RecordFile(path)[0], path, 0, "label count", f"is {count} in a record of 35 bytes")


def test_label_counts_are_bounded_by_the_file(tmp_path, monkeypatch):
    path = write(tmp_path, [Record((1.0,) * 100_000, 0, b"")], index=False)  # as of a map of pixels
    assert len(RecordFile(path)[0].labels) == 100_000
    monkeypatch.setattr(recordio, "_ROOM", 0)
    fails(lambda: RecordFile(path)[0], path, 0, "label count", "is 100000")


def test_an_index_that_points_between_records(tmp_path):
    path = write(tmp_path)
    data = path.read_bytes()
    write_bytes(tmp_path, data, b"0\t0\n1\t8\n2\t%d\n" % data.index(b"abcd", 60))
    records = RecordFile(path)
    assert records[0] == RECORDS[0]
    fails(lambda: records[1], path, 8, "record magic", "is 00 00 00 00")
    fails(lambda: records[2], path, data.index(b"abcd", 60), "record magic", "is 61 62 63 64")
    middle = data.index(MAGIC, data.index(b"abcd", 60))
    write_bytes(tmp_path, data, b"0\t%d\n" % middle)
    fails(lambda: RecordFile(path)[0], path, middle + 4, "continuation flag", "is 3, expected 0 or 1")


BAD_LINES = [
    b"", b"1 36", b"1\t", b"\t36", b"a\t36", b"1\t3x", b"1\t-4", b"-1\t36", b"1\t36\t0", b"1\t3_6", b"1\t0x24",
    b" 1\t36", b"1\t36 ", b"1\t 36", "1\t\u0663".encode(), b"\xff\t36", b"1\t" + b"4" * 19, b"1\t" + b"4" * 10**6,
    b"1\t4\0",
]  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: ascii(line[:20]))
def test_index_lines(tmp_path, line):
    path = write(tmp_path)
    index = path.with_suffix(".idx")
    index.write_bytes(b"0\t0\n" + line + b"\n2\t36\n")  # an empty line too
    error = fails(lambda: RecordFile(path), index, 4, "index line", "expected a key, a tab and an offset")
    assert len(error.problem) < 200


@pytest.mark.parametrize("offset", [1, 38, 144, 148, 10**17])
def test_index_offsets(tmp_path, offset):
    path = write(tmp_path, [RECORDS[0]] * 4)
    size = path.stat().st_size
    index = path.with_suffix(".idx")
    assert size == 144
    index.write_bytes(b"0\t0\n1\t%d\n" % offset)
    fails(lambda: RecordFile(path), index, 4, "offset", f"is {offset}, expected a multiple of 4 below 144")


def test_index_keys_are_unique(tmp_path):
    path = write(tmp_path)
    index = path.with_suffix(".idx")
    index.write_bytes(b"3\t0\n5\t0\n4\t0\n5\t0\n3\t0\n")
    fails(lambda: RecordFile(path), index, 12, "key", "5 appears twice")


def test_empty_files(tmp_path):
    assert len(RecordFile(write(tmp_path, []))) == 0
    assert len(RecordFile(write(tmp_path, [], index=False))) == 0


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        RecordFile(tmp_path / "absent.rec")
    with pytest.raises(FileNotFoundError):
        RecordFile(write(tmp_path), tmp_path / "absent.idx")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(MXNetFormatError, match="expected a regular file"):
            RecordFile(path)
        with pytest.raises(MXNetFormatError, match="expected a regular file"):
            RecordFile(SAMPLE, path)


def test_a_file_that_shrinks_later(tmp_path):
    path = write(tmp_path)
    records = RecordFile(path)
    os.truncate(path, 20)
    fails(lambda: records[0], path, 8, "record", "needs 28 bytes, but 12 are left")
    fails(lambda: records[1], path, 36, "record header", "needs 8 bytes, but 0 are left")
