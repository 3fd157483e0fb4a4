"""Batches of this process's share of a data set; images that cannot be read come separately."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .. import processes
from .._text import one_line
from .datasets import CorruptImage, Images, Stream, Transform

Batch = tuple[Tensor | None, Tensor, list[str], list[CorruptImage]]


def batches(
    dataset: Images | Stream,
    transform: Transform,
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
    whole: bool = False,
) -> DataLoader[Any]:
    """Go through a data set once, in order: each process takes every n-th image, none padded or repeated.

    Args:
        dataset: what `octaveconv.data.open_dataset` returns; its own transform is not used.
        transform: turns a PIL image into a tensor ``[3, H, W]``.
        batch_size: images per batch, including those that cannot be read.
        workers: number of processes that load; 0 loads in this one.
        pin_memory: for faster copies to a GPU.
        whole: this process takes all images that can be read by number, not only its share.

    Returns:
        A loader of batches: images ``[N, 3, H, W]`` or None, labels ``[N]``, the images' names, and a `CorruptImage`
        for each image that cannot be read. A stream ends after the first of these.
    """
    items: Dataset[Any]
    if isinstance(dataset, Stream):
        items, share = _StreamItems(dataset, transform), None
    else:
        first, step = (0, 1) if whole else (processes.rank(), processes.world_size())
        items, share = _Items(dataset, transform), range(first, len(dataset), step)
    return DataLoader(
        items,
        batch_size,
        sampler=share,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),  # the global one is left as it is
    )


def worker_count(asked: int) -> int:
    """As many loading processes as were asked for, but at most this process's share of the cores that it may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", processes.world_size()))))


@dataclass
class _Items(Dataset[Any]):
    """An item is (tensor, label, name), or the error: if a worker raised it, it would arrive inside a traceback."""

    images: Images
    transform: Transform

    def __getitem__(self, i: int) -> tuple[Any, int, str] | CorruptImage:
        try:
            return *self.images.prepare(i, self.transform), self.images.filename(i)
        except CorruptImage as error:
            return error


@dataclass
class _StreamItems(IterableDataset[Any]):
    """The same for a stream, which ends at its first error."""

    stream: Stream
    transform: Transform

    def __iter__(self) -> Iterator[tuple[Any, int, str] | CorruptImage]:
        try:
            for image, label in self.stream.read():
                yield self.transform(image), label, f"an image of {self.stream.source}"
        except CorruptImage as error:
            yield error
        except ValueError as error:  # of the transform
            yield CorruptImage(f"an image of {self.stream.source}", one_line(error))


def _collate(items: list[Any]) -> Batch:
    corrupt = [item for item in items if isinstance(item, CorruptImage)]
    good = [item for item in items if not isinstance(item, CorruptImage)]
    images = torch.stack([image for image, _, _ in good]) if good else None
    return images, torch.tensor([label for _, label, _ in good]), [name for _, _, name in good], corrupt
