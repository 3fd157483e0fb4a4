"""Random changes of bytes and of JSON, drawn from a ``random.Random``; and zip archives with the right checksums."""

import io
import json
import zipfile

from deployed_files import change

MOST = 4096  # bytes of a changed file, usually
INTEGERS = (-1, 0, 1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**16, 2**20, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63)


def bytes_changed(data, draw, words=(), most=MOST):
    """A few changes of bytes, integers, spans and words; now and then a span is repeated many times."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 4, 8))):
        at, kind = draw.randrange(len(data) + 1), draw.randrange(9)
        end = min(len(data), at + draw.choice((1, 2, 4, 8, draw.randrange(1, 64))))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = draw.randrange(256)
        elif kind in (2, 3):
            width = draw.choice((1, 2, 4, 8))
            value = draw.choice((*INTEGERS, len(data), len(data) - at))
            if kind == 3:
                value = int.from_bytes(data[at : at + width], "little") + draw.choice((-8, -2, -1, 1, 2, 8))
            data[at : at + width] = (value % 256**width).to_bytes(width, "little")
        elif kind == 4 and words:
            data[at : draw.choice((at, end))] = draw.choice(words)
        elif kind == 5:
            del data[at:end]
        elif kind == 6:
            data[draw.randrange(len(data) + 1) : 0] = data[at:end]
        elif kind == 7 and draw.random() < 0.2:
            data[at:at] = (data[at:end] or b"[") * draw.choice((10, 100, 1000, 20_000))
            most = max(most, 2**15)
        elif kind == 8 and draw.random() < 0.2:
            del data[at:]
    return bytes(data[:most])


def json_changed(text, draw):
    """The text of a JSON value with one to four changed parts."""
    value = [json.loads(text)]  # so that the whole can be changed, too
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        change(value, draw)
    return json.dumps(value[0]) if value else "null"


def archive(records):
    """A zip archive of these records, by name, with the right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, data in records.items():
            written.writestr(name, data)
    return file.getvalue()


def archived(data):
    """The records of a zip archive, by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
