"""Published weights: downloaded once, checked, converted once, kept in timm's cache."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock
from timm.models._hub import get_cache_dir
from torch import nn

from .. import _checksum
from .download import DownloadError, fetch
from .files import convert


def fetch_converted(
    model: nn.Module, name: str, url: str, sha256: str | None, size: int | None, cache_dir: Any = None
) -> Path:
    """The path of a safetensors file with the weights at ``url`` under our names; later calls find it in the cache.

    Args:
        model: the network they are for, with their number of classes; it may be on ``meta``.
        name: the network's name, which becomes part of the file's name.
        url: address of a file that `weights.read` reads. A copy that the user put into the cache serves as well.
        sha256, size: that file's digest and length, if known; in any case it must fill the network completely.
        cache_dir: where to keep the result; timm's cache by default.

    Raises:
        DownloadError: the file cannot be downloaded; the message says where to put it by hand.
        ValueError: it is not what was expected; `MXNetFormatError` if it is damaged.
    """
    cache = Path(cache_dir or get_cache_dir())
    archive = cache / Path(urlparse(url).path).name
    converted = cache / f"{name}-{archive.name}.safetensors"
    if converted.exists() and not _checksum.problem(converted):
        return converted
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{converted}.lock"):
        if converted.exists():  # another process wrote it meanwhile, or it is damaged
            if not (problem := _checksum.problem(converted)):
                return converted
            warnings.warn(f"{converted} is damaged: {problem}: it is made again", RuntimeWarning, stacklevel=2)
        by_hand = archive.exists()
        try:
            fetch(url, archive, sha256=sha256, size=size)
            convert(archive, model, name, converted, origin=url, sha256=sha256)
        except DownloadError as error:
            cure = f"or name it: timm.create_model({name!r}, checkpoint_path=FILE), octaveconv eval --checkpoint FILE"
            raise DownloadError(f"{error}; {cure}") from error
        except ValueError as error:
            if by_hand:
                raise
            archive.unlink()  # so that the next call downloads it again
            raise ValueError(f"{url} does not have the expected file: {error}") from error
        if not by_hand:
            archive.unlink()
    return converted
