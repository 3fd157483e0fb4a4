"""Training batches whose random choices depend on (seed, epoch, image) alone.

So a resumed run makes the same choices as an uninterrupted one, whatever the number of loading workers, and no
generator's state has to be saved.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms

from .. import processes
from .datasets import CorruptImage, Images

Batch = list[Tensor]  # images, labels, numbers
_Item = tuple[Tensor, int, int]
STREAMS = 2  # version of all random streams of a run: raise it with every change to what the same seed gives
# Standard deviations and axes of ImageNet's colors in [0, 1] (Krizhevsky et al., NeurIPS 2012).
_DEVIATIONS = torch.tensor([0.2175, 0.0188, 0.0045])
_AXES = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class _RandomCrop(RandomResizedCropAndInterpolation):
    """timm's, of at least one pixel: of an image of a few pixels, timm may take none."""

    @staticmethod
    def get_params(img: Image.Image, scale: Any, ratio: Any) -> tuple[int, int, int, int]:
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(img, scale, ratio)
        height, width = max(height, 1), max(width, 1)
        return min(top, img.height - height), min(left, img.width - width), height, width


class Lighting:
    """Shift the colors of a tensor ``[3, H, W]`` in [0, 1] at random along ImageNet's principal axes."""

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def __call__(self, image: Tensor) -> Tensor:
        shift = _AXES @ (torch.randn(3) * self.deviation * _DEVIATIONS)
        return image + shift[:, None, None]


def train_transform(
    size: int,
    crop: str,
    crop_area: float,
    color_jitter: float,
    lighting: float,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Callable[[Image.Image], Tensor]:
    """The original's augmentation: random crop, mirror image, color, lighting; to ``[3, size, size]``."""
    if crop == "padded":
        cropping: list[Any] = [transforms.Resize((size, size)), transforms.RandomCrop(size, size // 8)]
    else:
        cropping = [_RandomCrop(size, (crop_area, 1.0), interpolation=interpolation)]
    jitter = [transforms.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []
    light = [Lighting(lighting)] if lighting else []
    return transforms.Compose(  # type: ignore[no-any-return]
        [
            *cropping,
            transforms.RandomHorizontalFlip(),
            *jitter,
            transforms.ToTensor(),
            *light,
            transforms.Normalize(mean, std),
        ]
    )


def seed_of(*numbers: int) -> int:
    """One seed of 32 bits from several numbers; different ones give unrelated seeds."""
    entropy = (len(numbers), *numbers)  # the count, because NumPy ignores zeros at the end
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_generators(*numbers: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators (the last on the CPU) from several numbers."""
    seed = seed_of(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore these generators at the end of the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def training_batches(
    images: Images,
    transform: Callable[[Image.Image], Tensor],
    *,
    seed: int,
    epoch: int,
    start: int,
    batch_size: int,
    parts: int,
    workers: int,
    pin_memory: bool = False,
    skipped: dict[str, str] | None = None,
) -> Iterator[Batch]:
    """The rest of an epoch from step ``start`` on: this process's share of the ``parts`` batches of each step.

    Args:
        images: all images; those that do not fill a step are omitted, different ones in each epoch.
        transform: turns a PIL image into a tensor.
        seed, epoch: decide order and augmentation.
        start: number of steps of this epoch that are done.
        batch_size: images per step, over all processes and parts.
        parts: number of batches in one step.
        workers: number of processes that load; 0 loads in this one.
        pin_memory: for faster copies to a GPU.
        skipped: if given, an image that cannot be read is replaced by the next one that can, with that one's label, so
            that every batch is full; and noted here, by its name, with the reason.

    Yields:
        Images ``[N, 3, H, W]``, labels ``[N]``, and the images' numbers ``[N]``.

    Raises:
        CorruptImage: an image cannot be read, and ``skipped`` is not given; or no image can be.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed_of(seed, epoch))).tolist()
    share = processes.world_size()
    batches = []
    for step in range(start, len(images) // batch_size):
        mine = order[step * batch_size : (step + 1) * batch_size][processes.rank() :: share]
        size = len(mine) // parts
        batches += [mine[part * size : (part + 1) * size] for part in range(parts)]
    loader: DataLoader[Any] = DataLoader(
        _Items(images, transform, seed, epoch, skipped is not None),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),  # the global one is left as it is
    )
    for batch, corrupt in loader:
        if batch is None or (corrupt and skipped is None):
            raise corrupt[0]  # here: a worker that raises it prints a traceback
        for error in corrupt:
            skipped[error.file] = error.reason  # type: ignore[index]
        yield batch


@dataclass
class _Items(Dataset[Any]):
    images: Images
    transform: Callable[[Image.Image], Tensor]
    seed: int
    epoch: int
    skips: bool

    def __getitems__(self, indices: list[int]) -> list[_Item | CorruptImage]:
        found: list[_Item | CorruptImage] = []
        with generators_kept():  # once per batch: it costs more than seeding
            for index in indices:
                found += self._items(index)
                if isinstance(found[-1], CorruptImage):
                    break  # the batch ends the run
        return found

    def _items(self, index: int) -> Iterator[_Item | CorruptImage]:
        """The image, or the errors of those that cannot be read, and the first after them that can."""
        count = len(self.images)
        for number in range(index, index + count if self.skips else index + 1):
            seed_generators(self.seed, self.epoch, index)
            try:
                yield *self.images.prepare(number % count, self.transform), number % count
            except CorruptImage as error:
                yield error
            else:
                return


def _collate(items: list[_Item | CorruptImage]) -> tuple[Batch | None, list[CorruptImage]]:
    corrupt = [item for item in items if isinstance(item, CorruptImage)]
    good = [item for item in items if not isinstance(item, CorruptImage)]
    return (default_collate(good) if good else None), corrupt
