"""WebDataset's shards as a data set whose images are read by number: exact counts, exact order, exact resuming.

A shard is a tar in which files with the same name up to the first dot belong together: ``000123.jpg``, ``000123.cls``.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .._text import reason
from ..errors import UsageError
from .listing import forward

_IMAGES = ("jpg", "jpeg", "png", "webp")
_CLASSES = ("cls", "cls.txt")


class Sample(NamedTuple):
    """Where an image is stored, and its class."""

    shard: int
    name: str
    start: int
    size: int
    label: str


class Shards:
    """The images of some shards, as a reader for `octaveconv.data.Images`.

    Args:
        folder: where the shards are.
        split: a pattern of their names such as ``val-{0000..0009}.tar``, followed by ``|N`` to check the number of
            images; or a word that their names contain, such as ``val``.

    Raises:
        UsageError: there are no such shards, one is damaged, or the number of images differs.
    """

    def __init__(self, folder: Path, split: str) -> None:
        pattern, _, announced = split.partition("|")
        self.paths = _find(folder, pattern)
        self.samples = [sample for number, path in enumerate(self.paths) for sample in _samples(number, path)]
        if announced and len(self.samples) != int(announced):
            raise UsageError(f"the shards {pattern} contain {len(self.samples):,} images, expected {int(announced):,}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[io.BytesIO, float]:
        sample = self.samples[i]
        with open(self.paths[sample.shard], "rb") as file:
            file.seek(sample.start)
            return io.BytesIO(file.read(sample.size)), float(sample.label)

    def filename(self, i: int) -> str:
        """The shard's name and the image's name in it."""
        sample = self.samples[i]
        return f"{self.paths[sample.shard].name}/{sample.name}"


def _find(folder: Path, pattern: str) -> list[Path]:
    if not pattern.endswith(".tar"):
        paths = sorted(path for path in folder.rglob("*.tar") if pattern in str(path.relative_to(folder)))
    else:
        paths = [folder / name for name in _expand(pattern)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise UsageError(
            f"there are no shards {', '.join(missing[:3]) or f'named *{pattern}*.tar'} in {folder}: name them as the "
            f"split, for instance val-{{0000..0009}}.tar"
        )
    return paths


def _expand(pattern: str) -> list[str]:
    """``a-{08..10}.tar`` to its three names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [
        f"{pattern[: match.start()]}{n:0{len(match[1])}d}{rest}"
        for n in numbers
        for rest in _expand(pattern[match.end() :])
    ]


def _samples(number: int, path: Path) -> Iterator[Sample]:
    images: dict[str, tarfile.TarInfo] = {}
    classes: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in forward(tar):
                key, _, kind = os.path.basename(member.name).lower().partition(".")
                key = f"{os.path.dirname(member.name)}/{key}"
                if kind in _IMAGES:
                    images[key] = member
                elif kind in _CLASSES and (file := tar.extractfile(member)):
                    classes[key] = file.read(32).decode("ascii", "replace").strip()
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UsageError(f"the shard {path} cannot be read: {reason(error)}") from error
    for key, member in images.items():
        if not re.fullmatch(r"\d+", classes.get(key, "")):
            raise UsageError(f"{path}: {member.name} has no class: add a .cls file of the same name with a number")
        yield Sample(number, member.name, member.offset_data, member.size, classes[key])
