"""Predict: what a trained network sees in images; the verb ``predict`` and the class `Classifier` are one code path."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:  # timm takes its time
    import torch
    from torch import nn

    from .data.unlabeled import Unlabeled


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, the first one first.

    Attributes:
        image: its file, or its place in what was given.
        classes: their numbers.
        labels: their names.
        probabilities: of each, in [0, 1].

    Example:
        >>> found = Prediction("a.jpg", (1, 0), ("dog", "cat"), (0.75, 0.25))
        >>> found.label, found.probability
        ('dog', 0.75)
    """

    image: str
    classes: tuple[int, ...]
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """The name of the likeliest class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """The probability of the likeliest class."""
        return self.probabilities[0]


class Classifier:
    """A trained network with all that it takes to ask it about a photo: its preprocessing and its classes' names.

    Args:
        model: a classifier ``[N, 3, H, W] -> [N, classes]`` that outputs logits: ours, of timm, octavified, or
            `octaveconv.deploy`'s. It stays where it is, and in its mode; it is called in evaluation mode.
        labels: the names of its classes, in order; by default those that it records, ImageNet's for as many classes as
            one of ImageNet's sets has, and otherwise numbers.
        size: height and width of the images in pixels; by default the network's own.
        dtype: precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` (autocast).

    Attributes:
        model, labels, size: as above.
        origin: the network's name and its weights, in words.
        assumed: what was assumed about the names of the classes, in words; empty if nothing was.

    Raises:
        UsageError: there are not as many labels as classes.

    Example:
        >>> import timm, octaveconv as oc
        >>> import octaveconv.models
        >>> from PIL import Image
        >>> model = timm.create_model("oct_resnet18", layers=(1, 1, 1, 1), num_classes=3)  # a trained one, say
        >>> classifier = oc.Classifier(model, labels=["cat", "dog", "owl"], size=64)
        >>> found = classifier(Image.new("RGB", (80, 60)))
        >>> sorted(found.labels), round(sum(found.probabilities), 3)
        (['cat', 'dog', 'owl'], 1.0)
    """

    def __init__(
        self, model: nn.Module, labels: Sequence[str] | None = None, size: int | None = None, dtype: str = "fp32"
    ) -> None:
        from ._modes import DTYPES, check_network
        from .data.datasets import preprocessing

        check_network(model, "Classifier")
        if labels is not None and (isinstance(labels, str) or not all(isinstance(label, str) for label in labels)):
            raise UsageError("labels are a list of texts, in the order of the classes")
        if getattr(model, "num_classes", None) == 0:
            raise UsageError("the network has no classifier (num_classes is 0): it gives features, not classes")
        if dtype not in DTYPES:
            raise UsageError(f"there is no dtype {dtype!r}: use {', '.join(DTYPES)}")
        self.model, self.dtype, self.origin = model, dtype, type(model).__name__
        self.labels, self.assumed = _labels(model) if labels is None else ([*labels], "")
        prepared = preprocessing(model, size)
        self.size, self._transform = prepared.size, prepared.transform()
        classes = getattr(model, "num_classes", None)
        if classes and self.labels:
            self._check_labels(classes)

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        alpha: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        model_args: Mapping[str, Any] | None = None,
        pretrained: bool | None = None,
        labels: Sequence[str] | None = None,
        size: int | None = None,
        dtype: str = "fp32",
        device: str | None = None,
    ) -> Classifier:
        """Load a trained network: from a run folder, a file of weights, a deployed ``.octave`` file, or by its name.

        Args:
            name: the file or folder; or the name of a published network, or of any with its ``checkpoint``.
            alpha, checkpoint, model_args, pretrained: as for `octaveconv.models.create`.
            labels, size, dtype: as for `Classifier`.
            device: ``"cpu"`` or ``"cuda"``; by default the GPU, if there is one and the network is not deployed.

        Raises:
            UsageError: there is no such network, or it has no trained weights.
            ValueError, OSError: the weights cannot be read, or do not fit.

        Example:
            >>> import tempfile, timm, torch, octaveconv as oc
            >>> import octaveconv.models
            >>> model = timm.create_model("oct_resnet18", num_classes=2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     torch.save(model.state_dict(), f"{folder}/weights.pth")
            ...     classifier = oc.Classifier.load("oct_resnet18", checkpoint=f"{folder}/weights.pth", device="cpu")
            >>> classifier(torch.rand(3, 64, 64)).probability > 0.5
            True
        """
        import torch

        from ._modes import LAYOUTS

        model, origin = _network(os.fspath(name), alpha, checkpoint, model_args, pretrained)
        if not _is_deployed(name):
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            if device.startswith("cuda") and not torch.cuda.is_available():
                raise UsageError("device cuda: PyTorch sees no GPU here: use device cpu")
            model.to(torch.device(device), memory_format=LAYOUTS["channels_last"])
        elif device not in (None, "cpu"):
            raise UsageError(f"{name} is deployed for the CPU: omit the device")
        found = cls(model.eval(), labels, size, dtype)
        found.origin = origin + (f" (size {size})" if size else "")
        return found

    def __repr__(self) -> str:
        classes = f"{len(self.labels)} classes, " if self.labels else ""
        return f"Classifier({self.origin}, {classes}{self.size[0]}x{self.size[1]} pixels)"

    def __call__(self, images: Any, top_k: int = 5) -> Any:
        """Ask about one image, or about a list of them.

        Args:
            images: a path, the bytes of a file, an open file, a PIL image, an array ``[H, W, C]`` or a tensor
                ``[C, H, W]`` (RGB, uint8, or floating point in [0, 1]), which it prepares; or a list of these, or a
                tensor ``[N, C, H, W]``.
            top_k: how many of the likeliest classes to tell.

        Returns:
            A `Prediction`, or a list of them.

        Raises:
            CorruptImage: an image cannot be read.
            TypeError, UsageError: it is not an image.
            FileNotFoundError: there is no such file.
            RuntimeError: a logit is not finite.
        """
        from .data.unlabeled import from_memory

        is_many = isinstance(images, (list, tuple)) or getattr(images, "ndim", 3) == 4
        found = [*self.stream(from_memory([*images] if is_many else [images]), top_k)]
        return found if is_many else found[0]

    def stream(
        self,
        images: Unlabeled,
        top_k: int = 5,
        batch_size: int = 64,
        workers: int = 0,
        skipped: dict[str, str] | None = None,
    ) -> Iterator[Prediction]:
        """Ask about many files, in batches: the predictions come one after the other, in order.

        Args:
            images: what `octaveconv.data.find_images` returns.
            top_k: how many of the likeliest classes to tell.
            batch_size: images per call of the network.
            workers: number of processes that load images; 0 loads in this one.
            skipped: if given, an image that cannot be read is noted here, by its name, with the reason.

        Raises:
            CorruptImage: an image cannot be read, and ``skipped`` is not given.
            RuntimeError: a logit is not finite.
        """
        import torch

        from ._modes import eval_mode
        from .data import loading
        from .evaluate import EvalSettings, logits_of

        if top_k < 1 or batch_size < 1:
            raise UsageError(f"top_k and batch_size must be at least 1, got {top_k} and {batch_size}")
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        settings = EvalSettings(device=str(device), dtype=self.dtype)
        workers = workers if len(images) > batch_size else 0
        pinned = device.type == "cuda"
        for x, _, names, corrupt in loading.batches(images, self._transform, batch_size, workers, pinned, whole=True):
            if corrupt and skipped is None:
                raise corrupt[0]
            for error in corrupt:
                skipped[error.file] = error.reason  # type: ignore[index]
            if names:
                with torch.inference_mode(), eval_mode(self.model):
                    logits = logits_of(self.model, x, names, settings)
                yield from self._told(logits, names, top_k)

    def _told(self, logits: torch.Tensor, names: Iterable[str], top_k: int) -> Iterator[Prediction]:
        """The predictions of a batch. Of classes with equal logits, the one with the lower number comes first."""
        count = logits.shape[1]
        if count < 2:
            raise UsageError("the network has one output, which is not a choice among classes: read it yourself")
        if self.labels:
            self._check_labels(count)
        values, order = logits.double().softmax(1).sort(dim=1, descending=True, stable=True)
        for name, chances, classes in zip(names, values[:, :top_k].tolist(), order[:, :top_k].tolist()):
            labels = tuple(self.labels[i] if self.labels else f"class {i}" for i in classes)
            yield Prediction(name, tuple(classes), labels, tuple(chances))

    def _check_labels(self, count: int) -> None:
        if len(self.labels) != count:
            raise UsageError(f"there are {len(self.labels)} labels, and the network has {count} classes: give as many")


def read_labels(path: Path) -> list[str]:
    """The names of classes in a text file, one a line.

    Raises:
        UsageError: it is not text.
        OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8: write the name of a class on each line") from error


def _is_deployed(name: str | os.PathLike[str]) -> bool:
    return os.fspath(name).endswith(".octave")


def _network(
    name: str,
    alpha: float | None,
    checkpoint: str | os.PathLike[str] | None,
    model_args: Mapping[str, Any] | None,
    pretrained: bool | None,
) -> tuple[Any, str]:
    """A trained network, and in words which one it is."""
    from .deploy import load_deployed
    from .models import published
    from .models.create import create, source

    if _is_deployed(name):
        if alpha is not None or checkpoint or model_args or pretrained:
            raise UsageError(f"{name} is deployed: its network and weights are what they are")
        model: Any = load_deployed(name)
        return model, f"{model.about.model or 'a network'}, {name}"
    network, file = source(name, checkpoint)
    if file is None and not pretrained and published(network) is None:
        raise UsageError(
            f"{network} has no trained weights: name a run folder or a file of weights in place of it, or one as the "
            f"checkpoint, or ask for timm's (pretrained)"
        )
    model = create(network, alpha, file, pretrained=pretrained, model_args=model_args)
    asked = file.about.overridden(alpha=alpha, **(model_args or {})) if file else ""
    return model, f"{network}, {file.file if file else 'published weights'}{asked}"


def _labels(model: nn.Module) -> tuple[list[str], str]:
    """The names of a network's classes, and what was assumed about them."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    from .evaluate import label_names

    names = label_names(model)
    if names:
        info = ImageNetInfo()
        if {*names} <= {*info.label_names()}:  # WordNet's numbers, by which ImageNet's folders are named
            names = [info.label_name_to_description(name) for name in names]
        return names, ""
    if (subset := infer_imagenet_subset(model)) is None:
        return [], "the weights record no names of classes: they are numbered"
    names = ImageNetInfo(subset).label_descriptions()
    return names, f"the weights record no names of classes: the {len(names):,} are taken for ImageNet's"
