"""Images without labels, for prediction: files, folders, patterns, standard input, and what is in memory already."""

from __future__ import annotations

import glob
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UsageError
from .datasets import Images
from .listing import ENDINGS, list_folder, natural

Picture = str | Path | bytes | Image.Image


class Unlabeled(Images):
    """Images without labels; each has the class index 0, which says nothing.

    Args:
        pictures: paths of files, their bytes, or PIL images.
        names: of the images, for messages and results.
        notes: lines about what was found beside them, for the user.
    """

    def __init__(self, pictures: Sequence[Picture], names: Sequence[str], notes: Sequence[str] = ()) -> None:
        super().__init__("images", _Reader(pictures), notes=notes)
        self.names = list(names)

    def filename(self, i: int) -> str:
        """The name of image number ``i``."""
        return self.names[i]


class _Reader:
    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = list(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[IO[bytes] | Image.Image, int]:
        picture = self.pictures[i]
        if isinstance(picture, Image.Image):
            return picture, 0
        return io.BytesIO(picture) if isinstance(picture, bytes) else open(picture, "rb"), 0


def find_images(sources: Iterable[str | os.PathLike[str]]) -> Unlabeled:
    """The images that some words name, in this order; of a folder, all those below it, in natural order.

    Args:
        sources: files (of any ending); folders; patterns such as ``photos/**/*.jpg``; or ``-`` for standard input,
            which has either one image, or paths, one a line (or ended by NUL, as ``find -print0`` writes them).

    Raises:
        UsageError: there is no image where a word says.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("10.png", "9.png"):
        ...         Image.new("RGB", (8, 8)).save(f"{folder}/{name}")
        ...     [Path(name).name for name in find_images([f"{folder}/*.png"]).names]
        ['9.png', '10.png']
    """
    pictures: list[Picture] = []
    names: list[str] = []
    notes: list[str] = []
    for word in sources:
        found = _stdin() if word == "-" else _expanded(os.fspath(word))
        for path in [found] if isinstance(found, bytes) else found:
            if isinstance(path, bytes):
                added: list[Picture] = [path]
                names.append("standard input")
            else:
                added = list(_files(path, notes))
                names += map(str, added)
            pictures += added
    if not pictures:
        raise UsageError("there is no image to look at: name files, folders or patterns, or - for standard input")
    return Unlabeled(pictures, names, notes)


def from_memory(images: Sequence[Any]) -> Unlabeled:
    """The same of paths, encoded bytes, open files, PIL images, arrays and tensors.

    Raises:
        TypeError, UsageError: one is not an image.
        FileNotFoundError: there is no such file.
    """
    pictures = [_picture(image) for image in images]
    names = [str(picture) if isinstance(picture, str) else f"image {i}" for i, picture in enumerate(pictures)]
    return Unlabeled(pictures, names)


def _expanded(word: str) -> list[str]:
    """The paths that a word names: itself, or what matches it as a pattern."""
    if os.path.lexists(word):
        return [word]
    if glob.has_magic(word):
        if not (found := sorted(glob.glob(word, recursive=True), key=natural)):
            raise UsageError(f"no file matches {word}")
        return found
    raise FileNotFoundError(f"there is no file or folder {word}")


def _files(path: str, notes: list[str]) -> Iterable[str]:
    """The image at a path, or all below it."""
    if not os.path.isdir(path):
        return [path]
    found = list_folder(Path(path), once=False)
    if not found.files:
        raise UsageError(f"there are no images ({', '.join(ENDINGS)}) in {path}")
    notes += (f"{path}: {note}" for note in found.notes)
    return [os.path.join(path, file.name) for file in found.files]


def _stdin() -> list[str] | bytes:
    """The paths, or the one image, on standard input; if the first line is a path that exists, they are paths."""
    data = sys.stdin.buffer.read()
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    paths = [os.fsdecode(line) for line in lines if line]
    if not paths:
        raise UsageError("standard input is empty: it must have an image, or paths of images, one a line")
    if not os.path.lexists(paths[0]) and not _is_text(data):
        return data
    missing = next((path for path in paths if not os.path.lexists(path)), None)
    if missing is not None:
        raise FileNotFoundError(f"there is no file or folder {missing[:300]}, which standard input names")
    return paths


def _is_text(data: bytes) -> bool:
    """Whether this can be lines of paths, and is not one of the images that are text (PPM)."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return not re.match(r"P[1-6]\s", text) and re.sub(r"[\0\r\n]", "", text).isprintable()


def _picture(image: Any) -> Picture:
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        if os.path.isdir(path):
            raise UsageError(f"{path} is a folder: octaveconv.data.find_images lists the images in it")
        if not os.path.lexists(path):
            raise FileNotFoundError(f"there is no file {path}")
        return path
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if hasattr(image, "read"):
        return image.read()  # type: ignore[no-any-return]
    if isinstance(image, (Tensor, np.ndarray)):
        return _of_numbers(image)
    if isinstance(image, Image.Image):
        return image
    raise TypeError(
        f"an image is a path, bytes, an open file, a PIL image, an array or a tensor: got {type(image).__name__}"
    )


def _of_numbers(image: Tensor | np.ndarray[Any, Any]) -> Image.Image:
    """A tensor ``[C, H, W]`` or an array ``[H, W, C]``, of bytes or of numbers in [0, 1], as an image."""
    is_tensor = isinstance(image, Tensor)
    array = image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    if is_tensor and array.ndim == 3:
        array = array.movedim(0, -1)
    given = f"{'a tensor' if is_tensor else 'an array'} of shape {list(image.shape)} and {array.dtype}"
    layout = "[C, H, W]" if is_tensor else "[H, W, C]"
    if array.ndim not in (2, 3) or not array.numel() or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise UsageError(f"{given} is not an image: give {layout} with 1, 3 or 4 channels, or [H, W]")
    if array.is_floating_point():
        if not bool(((array >= 0) & (array <= 1)).all()):
            raise UsageError(f"{given} has values outside [0, 1]: give colors as they are, not normalized ones")
        array = (array.double() * 255).round().to(torch.uint8)
    if array.dtype is not torch.uint8:
        raise UsageError(f"{given} is not an image: give uint8, or floating point in [0, 1]")
    pixels = array.numpy()
    return Image.fromarray(
        np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)
    )
