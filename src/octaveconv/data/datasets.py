"""Labeled images from a folder, a tar, a record file or a named data set, and how a network wants them prepared.

Files are listed and decoded here: timm's own reader follows loops of links and omits empty classes, and its data set
silently replaces a corrupt image with the next one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from timm.data import create_dataset, create_transform, resolve_data_config
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from .._text import reason, shown, some
from ..errors import UsageError, require
from .images import decode
from .listing import ENDINGS, Files, Listing, composed_form, list_folder, list_tar, numbered
from .shards import Shards

Transform = Callable[[Image.Image], Any]

_SPLITS = ("val", "validation", "test")  # the first that exists, if none is named
_SPLIT_NAMES = {"train", *_SPLITS}
_NAMED = {"wds": "", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "torch": ""}


class CorruptImage(ValueError):
    """An image, or its label, cannot be read: ``file`` names it, ``reason`` says why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return shown(f"{self.file} cannot be read: {self.reason}")


class Images(Dataset[Any]):
    """Images that are read by number; an item is the transformed image and its class index.

    Args:
        source: the data set's name, for messages.
        reader: like timm's readers: ``reader[i]`` is a file, or a PIL image, and a label; it may have ``filename(i)``.
        num_classes: number of classes, if known.
        transform: applied to each image, a PIL image in RGB.
        notes: lines about what was found beside them, for the user.

    Raises:
        CorruptImage: an item cannot be read.
    """

    def __init__(
        self,
        source: str,
        reader: Any,
        num_classes: int | None = None,
        transform: Transform | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.source, self.reader, self.num_classes, self.transform = source, reader, num_classes, transform
        self.notes = tuple(notes)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.prepare(i, self.transform) if self.transform else self.read(i)

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes in the order of their numbers, if they have names."""
        return _class_names(self.reader)

    def prepare(self, i: int, transform: Transform) -> tuple[Any, int]:
        """Image number ``i``, prepared, and its class index; also `CorruptImage` if it cannot be prepared."""
        image, label = self.read(i)
        try:
            return transform(image), label
        except ValueError as error:
            raise CorruptImage(self.filename(i), _reason(error)) from error

    def read(self, i: int) -> tuple[Image.Image, int]:
        """Image number ``i`` without the transform, in RGB, and its class index."""
        try:
            file, label = self.reader[i]
            return decode(file), _class_index(label)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            raise CorruptImage(self.filename(i), _reason(error)) from error

    def filename(self, i: int) -> str:
        """The name of image number ``i`` in messages."""
        name = self.reader.filename(i) if hasattr(self.reader, "filename") else None
        return f"{self.source}{'/' if Path(self.source).is_dir() else ': '}{name or f'image {i}'}"


class Stream(IterableDataset[Any]):
    """Images that can only be read one after the other; each process and each worker gets its share of them.

    ``announced`` is the number of images in all shares, or None: a stream may contain more or fewer.
    """

    def __init__(self, source: str, reader: Any, transform: Transform | None = None) -> None:
        self.source, self.reader, self.transform = source, reader, transform
        self.announced: int | None = getattr(reader, "num_samples", None) or None
        self.num_classes = len(getattr(reader, "class_to_idx", None) or ()) or None
        self.notes: tuple[str, ...] = ()

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes in the order of their numbers, if they have names."""
        return _class_names(self.reader)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for image, label in self.read():
            yield (self.transform(image) if self.transform else image), label

    def read(self) -> Iterator[tuple[Image.Image, int]]:
        """The images without the transform, in RGB, and their class indices."""
        try:
            for image, label in self.reader:
                yield decode(image), _class_index(label)
        except (OSError, SyntaxError, ValueError) as error:
            raise CorruptImage(f"an image of {self.source}", _reason(error)) from error


def open_dataset(
    source: str | Path,
    split: str | None = None,
    transform: Transform | None = None,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> Images | Stream:
    """Open a data set of labeled images.

    Args:
        source: a folder of ``CLASS/*``, or one with such a folder ``val``, ``validation`` or ``test`` in it; a ``.tar``
            of the same; a ``.rec`` file with its ``.idx`` beside it; ``wds/DIR`` for WebDataset's shards; or a name
            that timm knows: ``hfds/NAME``, ``hfids/NAME``, ``tfds/NAME``, ``torch/NAME``.
        split: the folder or the named split to read; by default the first of val, validation and test that exists.
        transform: applied to each image, a PIL image in RGB.
        root: where a named data set is stored or cached; by default its library's own place, ``data`` for
            ``torch/NAME``.
        classes: the names of the classes in the order of their numbers, such as those of the training images; by
            default the folders at the top, also empty ones, in natural order of their names (class2 before class10).

    Returns:
        `Images`, or a `Stream` for ``hfids/`` and ``tfds/``. All images below ``CLASS`` belong to it. ``notes`` says
        which files were left out (by their ending, or hidden), which links were followed, and which classes are empty;
        one file with several names in a class is one image.

    Raises:
        UsageError: there is nothing at ``source``, no image or class folder in it, a folder that cannot be read, one
            file in two classes, or a class that is not in ``classes``; the message says which.
        MissingExtra: the package that reads it is not installed.

    Example:
        >>> import tempfile, pathlib
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         (pathlib.Path(folder) / name).mkdir()
        ...         Image.new("RGB", (8, 8)).save(f"{folder}/{name}/0.png")
        ...     images = open_dataset(folder)
        ...     len(images), images.num_classes, images[1][1]
        (2, 2, 1)
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path, split, transform, classes)
    if path.suffix == ".rec" and path.is_file():
        return _records(path, transform)
    if path.suffix == ".tar" and path.is_file():
        return _tar(path, split, transform, classes)
    if path.exists():
        raise UsageError(f"{path} is neither a folder nor a .tar nor a .rec file: unpack it and name the folder")
    if is_named(str(source)):
        named = _named(str(source), split, transform, root)
        _check_order(named.source, named.classes, classes)
        return named
    raise UsageError(f"there is no folder or file {str(source)!r}: name one, or a data set as in hfds/NAME")


def is_named(source: str) -> bool:
    """Whether a source has the form of a name, as in ``hfds/NAME``."""
    prefix, slash, _ = source.partition("/")
    return bool(slash) and prefix.lower() in _NAMED


def _folder(path: Path, split: str | None, transform: Transform | None, classes: Sequence[str] | None) -> Images:
    folders = {entry.name for entry in path.iterdir() if entry.is_dir()}
    if split is None:  # a class may have a split's name, but no folders in it
        folders = {name for name in folders & _SPLIT_NAMES if any(file.is_dir() for file in (path / name).iterdir())}
    folder = path / (_choose_split(path, folders, split) or "")
    return _listed(folder, folder, list_folder(folder), transform, classes)


def _tar(path: Path, split: str | None, transform: Transform | None, classes: Sequence[str] | None) -> Images:
    found = list_tar(path)
    while True:
        tops = found.tops()
        splits = tops if split else {name for name in tops & _SPLIT_NAMES if found.below(name).folders}
        if split in splits or (split is None and splits):
            found = found.below(_choose_split(path, splits, split) or "")
            break
        if len(tops) != 1 or any(len(file.folders) < 2 for file in found.files):
            _choose_split(path, splits, split)
            break
        found = found.below(*tops)  # a folder around all
    return _listed(path, path, found, transform, classes)


def _listed(
    source: Path, path: Path, found: Listing, transform: Transform | None, classes: Sequence[str] | None
) -> Images:
    """The data set of listed images, whose classes have the numbers of ``classes``, or of all folders at the top."""
    if not found.files:
        raise _no_images(source)
    names = found.tops()
    if not all(file.folders for file in found.files) or names <= _SPLIT_NAMES:
        raise UsageError(
            f"there are images directly in {source}: put each in a folder named after its class, as in "
            f"{source}/CLASS/{found.files[0].name.rpartition('/')[2]}"
        )
    numbers, notes = numbered(str(source), names), [*found.notes]
    used = {composed_form(file.folders[0]) for file in found.files}
    if classes is not None:
        if empty := sorted({*numbers} - used - {*map(composed_form, classes)}):
            notes.append(f"left out: folders without images, of classes that are not expected: {some(empty)}")
        numbers = [composed_form(name) for name in classes]
        if unknown := sorted(used - {*numbers}):
            raise UsageError(
                f"{source} has images of classes that are not among the {len(numbers):,} expected ones "
                f"({some(numbers)}): {some(unknown)}: remove them, or add them to the training images"
            )
    if empty := [name for name in numbers if name not in used]:
        notes.append(f"classes without images, which have a number as well: {some(empty)}")
    reader = Files(path, found.files, {name: number for number, name in enumerate(numbers)})
    return Images(str(source), reader, len(numbers), transform, [f"{source}: {note}" for note in notes])


def _records(path: Path, transform: Transform | None) -> Images:
    reader = _Records(path)
    if not len(reader):
        raise _no_images(path)
    return Images(str(path), reader, None, transform)


def _no_images(path: Path) -> UsageError:
    return UsageError(f"there are no images ({', '.join(ENDINGS)}, or records) in {path}, expected {path}/CLASS/*.jpg")


def _choose_split(source: Path, folders: set[str], split: str | None) -> str | None:
    """The folder to descend into, or None if the class folders are at the top."""
    if split is not None:
        if split not in folders:
            raise UsageError(
                f"there is no folder {split!r} in {source}: it has {some(sorted(folders), 10) or 'no folders'}; "
                f"expected {source}/{split}/CLASS/*.jpg"
            )
        return split
    found = next((name for name in _SPLITS if name in folders), None)
    if found is None and "train" in folders:
        raise UsageError(f"{source} has train but no val, validation or test: name a folder as the split")
    return found


def _check_order(source: str, found: Sequence[str] | None, classes: Sequence[str] | None) -> None:
    if classes and found and [*found] != [*classes]:
        raise UsageError(
            f"{source} has the classes {some(found)}, expected {some(classes)}: use data with the same classes in the "
            f"same order"
        )


def _named(source: str, split: str | None, transform: Transform | None, root: str | Path | None) -> Images | Stream:
    prefix, _, name = source.partition("/")
    prefix = prefix.lower()
    if _NAMED[prefix]:
        require(_NAMED[prefix], "data")
    if prefix == "wds":
        return Images(source, Shards(Path(root or name), split or "val"), None, transform)
    split = split or "validation"
    if prefix == "torch":
        root = root or "data"
    try:
        data = create_dataset(f"{prefix}/{name}", root=root and str(root), split=split)
    except AssertionError as error:
        raise UsageError(f"timm has no data set {source!r}: {error}") from error
    except RuntimeError as error:
        where = f" (folder {root})" if prefix == "torch" else ""
        raise UsageError(f"{source} cannot be opened{where}: {error}") from error
    if prefix == "torch":
        return Images(source, data, len(getattr(data, "classes", ())) or None, transform)
    if prefix == "hfds":
        return Images(source, data.reader, len(data.reader.class_to_idx) or None, transform)
    return Stream(source, data.reader, transform)


class _Records:
    """A reader of a record file."""

    def __init__(self, path: Path) -> None:
        from ..mxnet.recordio import RecordFile

        self.records = RecordFile(path)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> tuple[io.BytesIO, float | None]:
        record = self.records[i]
        return io.BytesIO(record.image), record.labels[0] if record.labels else None

    def filename(self, i: int) -> str:
        """Records have no names, only numbers."""
        return f"record {i}"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input: resized, cropped at the center, and normalized."""

    size: tuple[int, int]  # height and width in pixels
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]  # of each color, in [0, 1]
    std: tuple[float, ...]

    def transform(self) -> Transform:
        """The transform for scoring, from a PIL image to a float32 tensor ``[3, H, W]``."""
        prepare = create_transform(
            self.size,
            is_training=False,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )
        return _Bounded(prepare, max(self.size) / self.crop_pct) if self.crop_mode == "center" else prepare


@dataclass(frozen=True)
class _Bounded:
    """A transform that resizes the shorter side to ``side``: a long strip would become larger than Pillow reads."""

    transform: Transform
    side: float

    def __call__(self, image: Image.Image) -> Any:
        short, long = sorted(image.size)
        if Image.MAX_IMAGE_PIXELS and self.side**2 * long / short > 2 * Image.MAX_IMAGE_PIXELS:
            width, height = image.size
            raise ValueError(f"it has {width}x{height} pixels: with a shorter side of {self.side:.0f} it is too large")
        return self.transform(image)


def preprocessing(model: nn.Module, size: int | None = None) -> Preprocessing:
    """What the network's pretrained configuration asks for, or timm's defaults; ``size``, in pixels, overrides it."""
    config = resolve_data_config({"img_size": size}, model=model)
    return Preprocessing(
        tuple(config["input_size"][1:]),
        config["interpolation"],
        config["crop_pct"],
        config["crop_mode"],
        tuple(config["mean"]),
        tuple(config["std"]),
    )


def _class_index(label: Any) -> int:
    try:
        index = int(label)
    except (TypeError, ValueError, OverflowError):  # None, text, NaN, infinity
        index = None
    if index is None or index != label:
        raise ValueError(f"its label {label} is not a class index")
    return index


def _class_names(reader: Any) -> list[str] | None:
    numbers = getattr(reader, "class_to_idx", None) or {}
    names = sorted(numbers, key=lambda name: numbers[name])
    is_one_each = [numbers[name] for name in names] == [*range(len(names))]  # torchvision's ImageNet has synonyms
    return names if names and is_one_each and all(isinstance(name, str) for name in names) else None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text shows Python objects
        return "it is not an image that Pillow knows"
    return reason(error) or type(error).__name__
