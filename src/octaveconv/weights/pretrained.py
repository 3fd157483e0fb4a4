"""Published weights: fetched once, checked, converted once, kept in timm's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock
from timm.models._hub import get_cache_dir
from torch import nn

from .download import DownloadError, fetch
from .files import convert


def fetch_converted(
    model: nn.Module, name: str, url: str, sha256: str | None, size: int | None, cache_dir: Any = None
) -> Path:
    """The weights at ``url`` as a safetensors file with our names; the second time it is there already.

    Args:
        model: the network they are for, with the class count that they have; it may be on ``meta``.
        name: the network's name, which the file gets.
        url: of a file that `weights.read` reads. A copy that was put into the cache by hand serves as well.
        sha256, size: of that file, if known; in any case it must fill the network completely.
        cache_dir: where to keep it; timm's cache by default.

    Raises:
        DownloadError: the file cannot be fetched; the message says where to put it by hand.
        ValueError: it is not what was expected; `MXNetFormatError` if it is damaged.
    """
    cache = Path(cache_dir or get_cache_dir())
    archive = cache / Path(urlparse(url).path).name
    converted = cache / f"{name}-{archive.name}.safetensors"
    if converted.exists():
        return converted
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{converted}.lock"):
        if converted.exists():  # another process made it meanwhile
            return converted
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
            archive.unlink()  # so that the next call fetches it anew
            raise ValueError(f"what came from {url} is not the expected file: {error}") from error
        if not by_hand:
            archive.unlink()
    return converted
