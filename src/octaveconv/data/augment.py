"""Training batches whose every random choice follows from (seed, epoch, image), and from nothing else.

So an interrupted run goes on as if it had not been, whatever the number of loading workers, and no generator's state
has to be kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from .. import processes
from .datasets import Images

# Standard deviations and axes of ImageNet's colours in [0, 1] (Krizhevsky et al., NeurIPS 2012).
_DEVIATIONS = torch.tensor([0.2175, 0.0188, 0.0045])
_AXES = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class Lighting:
    """Shift the colours of a tensor ``[3, H, W]`` in [0, 1] along ImageNet's principal axes, at random."""

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def __call__(self, image: Tensor) -> Tensor:
        shift = _AXES @ (torch.randn(3) * self.deviation * _DEVIATIONS)
        return image + shift[:, None, None]


def train_transform(
    size: int, crop: str, crop_area: float, color_jitter: float, lighting: float, interpolation: str,
    mean: Sequence[float], std: Sequence[float],
) -> Callable[[Image.Image], Tensor]:  # fmt: skip
    """The original's augmentation: a random crop, a mirror image, colour, lighting; to ``[3, size, size]``."""
    if crop == "padded":
        cropping: list[Any] = [transforms.Resize((size, size)), transforms.RandomCrop(size, size // 8)]
    else:
        cropping = [RandomResizedCropAndInterpolation(size, (crop_area, 1.0), interpolation=interpolation)]
    jitter = [transforms.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []
    light = [Lighting(lighting)] if lighting else []
    return transforms.Compose(  # type: ignore[no-any-return]
        [*cropping, transforms.RandomHorizontalFlip(), *jitter, transforms.ToTensor(), *light,
         transforms.Normalize(mean, std)]
    )  # fmt: skip


def mix_seed(*numbers: int) -> int:
    """One seed of 32 bits from several numbers; different ones give unrelated seeds (splitmix64, folded)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**32


def seed_generators(*numbers: int) -> None:
    """Start Python's generator and PyTorch's (on the CPU) from a seed."""
    seed = mix_seed(*numbers)
    random.seed(seed)
    torch.default_generator.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Whatever happens to these generators inside, outside they go on as before."""
    states = random.getstate(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        torch.set_rng_state(states[1])


def training_batches(
    images: Images, transform: Callable[[Image.Image], Tensor], *, seed: int, epoch: int, start: int, batch_size: int,
    parts: int, workers: int, pin_memory: bool = False,
) -> DataLoader[Any]:  # fmt: skip
    """The rest of an epoch from step ``start`` on: each step is ``parts`` batches, this process's share of them.

    Args:
        images: all images; those that do not fill a step are left out, others in each epoch.
        transform: a PIL image to a tensor.
        seed, epoch: decide order and augmentation.
        start: steps of this epoch that are done.
        batch_size: images per step, over all processes and parts.
        parts: batches that make one step.
        workers: processes that load; 0 loads in this one.
        pin_memory: for faster copies to a GPU.

    Returns:
        Of each batch: images ``[N, 3, H, W]``, labels ``[N]``, and the images' numbers ``[N]``.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(mix_seed(seed, epoch))).tolist()
    share = processes.world_size()
    batches = []
    for step in range(start, len(images) // batch_size):
        mine = order[step * batch_size : (step + 1) * batch_size][processes.rank() :: share]
        size = len(mine) // parts
        batches += [mine[part * size : (part + 1) * size] for part in range(parts)]
    return DataLoader(
        _Items(images, transform, seed, epoch), batch_sampler=batches, num_workers=workers, pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),  # the global one is left as it is
    )  # fmt: skip


@dataclass
class _Items(Dataset[Any]):
    images: Images
    transform: Callable[[Image.Image], Tensor]
    seed: int
    epoch: int

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int, int]]:
        with generators_kept():  # once for a batch: it costs more than seeding
            return [self._item(index) for index in indices]

    def _item(self, index: int) -> tuple[Tensor, int, int]:
        image, label = self.images.read(index)
        seed_generators(self.seed, self.epoch, index)
        return self.transform(image), label, index
