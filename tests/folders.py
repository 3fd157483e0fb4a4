"""Images in folders, tars, record files and shards."""

import io
import struct
import tarfile

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog10", "dog2")  # in natural order dog2 comes before dog10
NUMBERS = {"cat": 0, "dog2": 1, "dog10": 2}


def picture(number, size=(40, 48)):
    """A smooth image, another for each number."""
    y, x = np.mgrid[: size[1], : size[0]] / 8
    pixels = np.stack([np.sin(x + number), np.cos(y * (number + 1)), np.sin(x * y / 9 - number)], -1)
    return Image.fromarray(((pixels + 1) * 127.5).astype(np.uint8))


def encoded(number):
    file = io.BytesIO()
    picture(number).save(file, "png")
    return file.getvalue()


def make_folder(root, counts=(3, 2, 4), corrupt=()):
    """Class folders of counted PNG files; return ``[(file, class)]`` in the order of the data set."""
    files = []
    for name, count in zip(CLASSES, counts):
        (root / name).mkdir(parents=True)
        for i in range(count):
            path = root / name / f"{i}.png"
            path.write_bytes(b"no image" if (name, i) in corrupt else encoded(len(files)))
            files.append((path, NUMBERS[name]))
    return sorted(files, key=lambda item: (item[1], item[0]))


def make_tar(path, folder):
    with tarfile.open(path, "w") as tar:
        tar.add(folder, ".")
    return path


def make_records(path, records):
    """A ``.rec`` file of (label, image bytes), and its ``.idx``."""
    content, index = b"", ""
    for i, (label, image) in enumerate(records):
        payload = struct.pack("<IfQQ", 0, label, i, 0) + image
        index += f"{i}\t{len(content)}\n"
        content += struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)
    path.write_bytes(content)
    path.with_suffix(".idx").write_text(index)
    return path


def pixels(images):
    return [(np.asarray(image).tobytes(), label) for image, label in images]


def webdataset_shards(path, shards=3, each=4):
    for shard in range(shards):
        with tarfile.open(path / f"val-{shard}.tar", "w") as tar:
            for i in range(each):
                for suffix, content in (("png", encoded(i)), ("cls", str(shard).encode())):
                    info = tarfile.TarInfo(f"{shard}{i}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
