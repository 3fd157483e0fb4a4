"""A sample of images without labels: what to fit with, what to judge with, and how far two networks' answers differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .._modes import eval_mode
from .answers import divergence, numbers, reading

Batch = tuple[Any, ...]
IMAGES = 16  # of a batch, at most
HELD_OUT = 5  # one of so many batches is kept to judge with
_WORST = 1e9  # divergence, for what is not a number
FEWEST = 10  # images that are worth dividing


class Sample(NamedTuple):
    """Batches of inputs; no image is in both lists unless there are fewer than `FEWEST`."""

    fit: list[Batch]
    judge: list[Batch]

    @classmethod
    def of(cls, given: Iterable[Any], inputs: Batch) -> Sample:
        """Divide what the caller gave as ``calibrate``.

        Raises:
            ValueError: there is no batch, or the inputs of one do not match the example.
        """
        batches = _batches(given, inputs)
        images = sum(map(images_in, batches))
        if images < FEWEST:
            return cls(batches, batches)
        most = min(IMAGES, max(images // HELD_OUT, 1))
        small = [piece for batch in batches for piece in pieces(batch, most)]
        if len(small) < HELD_OUT:  # inputs that cannot be cut
            return cls(small, small)
        judge = small[HELD_OUT - 1 :: HELD_OUT]
        return cls([batch for i, batch in enumerate(small) if i % HELD_OUT != HELD_OUT - 1], judge)


def _batches(sample: Iterable[Any], inputs: Batch) -> list[Batch]:
    """The network's inputs: the first items of each batch, as many as the network takes."""
    batches = []
    if not isinstance(sample, Iterable):
        raise ValueError(f"calibrate must hold batches of the network's inputs, got {sample!r}")
    for item in [sample] if isinstance(sample, Tensor) else sample:
        given = tuple(item) if isinstance(item, (tuple, list)) else (item,)
        for x, example in zip(given, inputs):
            if isinstance(example, Tensor) and (not isinstance(x, Tensor) or x.shape[1:] != example.shape[1:]):
                shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(
                    f"calibrate has a batch {shape}, but example_inputs {list(example.shape)}: give both one size"
                )
        device = next((x.device for x in inputs if isinstance(x, Tensor)), "cpu")
        batches.append(tuple(_like(x, example, device) for x, example in zip(given, inputs)))
    batches = [batch for batch in batches if images_in(batch)]
    if not batches or any(len(batch) < len(inputs) for batch in batches):
        raise ValueError("calibrate must hold batches of the network's inputs, as a list of tensors or a DataLoader")
    return batches


def _like(x: Any, example: Any, device: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    if isinstance(example, Tensor) and example.is_floating_point() and not x.is_floating_point():
        raise ValueError(f"calibrate holds {x.dtype}: images must be float, normalized as the network expects")
    is_float = isinstance(example, Tensor) and example.is_floating_point() and x.is_floating_point()
    return x.detach().to(device, example.dtype if is_float else x.dtype)


def cloned(inputs: Any) -> Any:
    """The same inputs, also in containers, which a network may change."""
    return pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, inputs)


def images_in(batch: Batch) -> int:
    """How many images a batch holds."""
    return next((len(x) for x in batch if isinstance(x, Tensor) and x.dim()), 0)


def pieces(batch: Batch, most: int) -> Iterator[Batch]:
    """The batch in smaller ones, of about ``most`` images; as it is if inputs do not have a row for each image."""
    images = images_in(batch)
    if any(not isinstance(x, Tensor) or not x.dim() or len(x) != images for x in batch):
        yield batch
        return
    yield from zip(*(x.tensor_split(max(images // most, 1)) for x in batch))  # none of a single image


class Closeness(NamedTuple):
    """How close a network's answers are to those of the dense one.

    Attributes:
        divergence: of scores, the mean Kullback-Leibler divergence of the classes' probabilities, in nats; of other
            answers, the squared error relative to their variance. 0 for the same answers.
        agreement: of scores, the share of images with the same first class; of others, 1 less the divergence.
    """

    divergence: float
    agreement: float


class Judge:
    """Compares networks with the dense one on the images kept for it."""

    def __init__(self, dense: nn.Module, sample: Sample) -> None:
        self.batches = sample.judge
        self.expected = [numbers(y) for y in _run(dense, self.batches)]
        together = [torch.cat(each) for each in zip(*self.expected)] if _are_rows(self.expected) else []
        self.reading = reading(together)

    def __call__(self, model: nn.Module) -> Closeness:
        """How close ``model`` comes, in evaluation mode."""
        wrong = whole = same = images = 0.0
        read = self.reading
        for batch, outputs, expected in zip(self.batches, _run(model, self.batches), self.expected):
            found = numbers(outputs)
            images += images_in(batch)
            for ours, theirs in zip(found, expected):
                if read:
                    wrong += float(divergence(read(ours), read(theirs)))
                    same += float((ours.argmax(1) == theirs.argmax(1)).sum())
                else:
                    wrong += float((ours - theirs).double().square().sum())
                    whole += float((theirs - theirs.mean()).double().square().sum())
        far = wrong / max(images, 1) if read else wrong / whole if whole else wrong
        far = far if abs(far) < _WORST else _WORST
        return Closeness(max(far, 0.0), same / max(images, 1) if read else max(1 - far, 0.0))


def _are_rows(answers: Sequence[Sequence[Tensor]]) -> bool:
    """Whether answers to batches are rows of one table."""
    return all(len(each) == 1 and each[0].dim() == 2 and each[0].shape[1] == answers[0][0].shape[1] for each in answers)


def _run(model: nn.Module, batches: Sequence[Batch]) -> Iterator[Any]:
    with eval_mode(model), torch.no_grad():
        for batch in batches:
            yield model(*cloned(batch))
