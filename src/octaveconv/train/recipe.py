"""Recipe: everything that determines a training run, from a YAML file and the command line; kept with the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from .. import _yaml
from .._text import did_you_mean, reason
from ..errors import UsageError, raise_together

OPEN = ("epochs", "batch_size", "lr", "warmup_epochs")  # None until `defaults.settle` chooses them by the images


def _field(default: Any, text: str, **check: Any) -> Any:
    return field(default=default, metadata={"help": text, **check})


@dataclass(frozen=True)
class Recipe:
    """How to train. Every field is an option of ``octaveconv train``, whose help consists of these texts.

    ``epochs``, ``batch_size``, ``lr`` and ``warmup_epochs`` may be None, as they are by default: the run chooses them
    for its number of images.

    Raises:
        UsageError: values have the wrong type or are out of range; the message lists all of them.

    Example:
        >>> Recipe(model="oct_resnet50", alpha=0.5, lr=0.1, batch_size=256).scaled_lr()
        0.1
    """

    model: str = _field("oct_resnetv2_50", "a network of `octaveconv models`", main=True)
    alpha: float | None = _field(
        None, "low-frequency share of the channels (the network's own)", least=0, most=1, main=True
    )
    model_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "more arguments of the network, in YAML: {stem: 3x3, width: 16}"}
    )
    checkpoint: str = _field("", "weights of any kind to start from", main=True)
    data: str = _field("", "folder with train/ and val/, .tar, .rec, wds/DIR ...", main=True)
    val_data: str = _field("", "images to validate on, if not in data")
    num_classes: int = _field(0, "number of classes, if the data do not say (.rec)", least=0, most=2**24)
    size: int = _field(224, "height and width of the images in pixels", least=1, most=2**15)
    epochs: int = _field(None, "passes over the training images (by their number)", least=1, most=10**6, main=True)
    batch_size: int = _field(
        None, "images per step, all processes and parts (by their number)", least=1, most=2**24, main=True
    )
    accumulate: int = _field(1, "parts of a step that are computed one after the other", least=1, most=2**24)
    lr: float = _field(None, "peak learning rate, for the whole batch (by the batch)", above=0, main=True)
    lr_batch_size: int = _field(0, "batch that lr is for: lr is scaled by batch_size over it (0: not scaled)", least=0)
    warmup_epochs: float = _field(None, "epochs of linear warm-up (5, but at most a quarter of the epochs)", least=0)
    opt: str = _field("sgd", "optimizer, by timm's name (sgd has Nesterov momentum)")
    momentum: float = _field(0.9, "the optimizer's momentum", least=0)
    weight_decay: float = _field(1e-4, "weight decay", least=0)
    decay_norms: bool = _field(True, "decay biases and norms, too")
    layer_decay: float = _field(1.0, "factor on the learning rate from each block to the one before", above=0)
    label_smoothing: float = _field(0.0, "label smoothing", least=0, most=1)
    mixup: float = _field(0.0, "alpha of mixup's beta distribution (0: none)", least=0)
    cutmix: float = _field(0.0, "alpha of CutMix's beta distribution (0: none)", least=0)
    mix_off_epochs: int = _field(0, "number of last epochs without mixup and CutMix", least=0)
    crop: str = _field(
        "resized",
        "training crop: resized (random area and aspect) or padded (by an eighth)",
        choices=["resized", "padded"],
    )
    crop_area: float = _field(0.08, "smallest area of a resized crop", above=0, most=1)
    crop_pct: float = _field(0.875, "share of the image that validation sees", above=0, most=16)
    color_jitter: float = _field(0.4, "strength of brightness, contrast and saturation changes", least=0)
    lighting: float = _field(0.1, "deviation of the color shift along ImageNet's principal axes", least=0)
    dropout: float = _field(0.0, "dropout before the classifier", least=0, most=1)
    clip_grad: float = _field(0.0, "maximum norm of the gradient (0: no limit)", least=0)
    ema: float = _field(0.0, "decay of the averaged weights (0: none)", least=0, most=1)
    freeze_bn: bool = _field(False, "freeze the parameters and statistics of batch norms")
    sync_bn: bool = _field(False, "normalize over all processes")
    dtype: str = _field("fp32", "precision of the computation", choices=["fp32", "bf16", "fp16"], main=True)
    compile: bool = _field(False, "torch.compile the network")
    grad_checkpointing: bool = _field(False, "recompute activations instead of keeping them")
    workers: int = _field(4, "processes that load images, at most one for each core", least=0, main=True)
    skip_corrupt: bool = _field(False, "replace damaged images by others; count and name them")
    seed: int = _field(0, "determines weights, order and augmentation", least=0, most=2**63 - 1, main=True)
    save_steps: int = _field(1000, "steps between checkpoints within an epoch", least=1)

    def __post_init__(self) -> None:
        wrong = problems({item.name: getattr(self, item.name) for item in fields(self)})
        raise_together([UsageError(text) for text in wrong.values()])
        for name, hint in get_type_hints(Recipe).items():
            object.__setattr__(self, name, _as(hint, getattr(self, name)))

    @classmethod
    def of(cls, *layers: Mapping[str, Any]) -> Recipe:
        """Merge mappings, later ones over earlier ones; UsageError for all fields that do not exist or are wrong."""
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= layer
        raise_together([UsageError(text) for text in problems(merged).values()])
        return cls(**merged)

    def checked(self) -> Recipe:
        """Return this recipe; UsageError if its fields contradict each other, which a run that is resumed may keep."""
        if None not in (self.epochs, self.warmup_epochs) and self.warmup_epochs >= self.epochs:
            raise UsageError(
                f"warmup_epochs must be below epochs, got {self.warmup_epochs:g} of {self.epochs}: lower warmup_epochs "
                f"(0: no warm-up), or train for more epochs"
            )
        return self

    def complete(self) -> Recipe:
        """Return this recipe, that of a run; UsageError if it leaves anything open, as no run does."""
        if left := [name for name in OPEN if getattr(self, name) is None]:
            raise UsageError(f"the recipe of this run has lost its {', '.join(left)}: another program has changed it")
        return self

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)

    def scaled_lr(self) -> float:
        """The learning rate for the whole batch."""
        return self.lr * self.batch_size / self.lr_batch_size if self.lr_batch_size else self.lr


def included() -> dict[str, Path]:
    """The recipes of this package, by name: in a wheel inside it, in a clone beside it."""
    package = Path(__file__).parent.parent
    places = (package / "recipes", package.parent.parent / "recipes")
    return {path.stem: path for place in reversed(places) for path in sorted(place.glob("*.yaml"))}


def find(recipe: Path) -> Path:
    """The file of a recipe: the one at this path, or the one of this package with this name.

    Raises:
        UsageError: there is neither.
    """
    known = included()
    if str(recipe) in known and not recipe.is_file():  # a folder of images may have this name
        return known[str(recipe)]
    if not recipe.exists():
        near = did_you_mean(recipe.stem, known) or f": this package has {', '.join(known)}"
        cure = f": did you mean {recipe.stem}, of this package?" if recipe.stem in known else near
        raise UsageError(f"there is no recipe {recipe}{cure}")
    return recipe


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields that a YAML file sets.

    Raises:
        UsageError: it cannot be read, or is not a mapping.
    """
    try:
        found = _yaml.read(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"the recipe {path} cannot be read: {reason(error)}") from error
    if not isinstance(found, dict):
        raise UsageError(f"the recipe {path} must map fields to values, as in 'epochs: 90'")
    return found


def problems(given: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with the fields of a recipe, by name: those that do not exist, wrong types, values out of range."""
    known, hints, found = {item.name: item.metadata for item in fields(Recipe)}, get_type_hints(Recipe), {}
    for name, value in given.items():
        if name not in known:
            cure = did_you_mean(str(name), known) or ": octaveconv train --fields lists them"
            found[name] = f"a recipe has no field {_told(name)}{cure}"
            continue
        if value is None and name in OPEN:
            continue
        try:
            value = _as(hints[name], value)
        except (TypeError, ValueError, OverflowError):
            found[name] = f"{name} must be {_KINDS[hints[name]]}, got {_told(value)}"
            continue
        if limited := _outside(value, known[name]):
            found[name] = f"{name} must be {limited}, got {_told(value)}"
    return found


def _outside(value: Any, limits: Mapping[str, Any]) -> str:
    """What a value should be; nothing if it is that."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if "choices" in limits and value not in limits["choices"]:
        return f"one of {', '.join(limits['choices'])}"
    if value is not None and "least" in limits and value < limits["least"]:
        return f"at least {limits['least']}"
    if value is not None and "above" in limits and value <= limits["above"]:
        return f"above {limits['above']}"
    if value is not None and "most" in limits and value > limits["most"]:
        return f"at most {limits['most']}"
    if isinstance(value, int) and "most" not in limits and value >= 10**18:  # some are divided as floats
        return "below 10^18"
    return ""


def _told(value: Any) -> str:
    """A value in a message."""
    if isinstance(value, (str, int, float, type(None))):
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number of more than 20 digits"
        return text if len(text) <= 60 else f"{text[:60]} ..."
    return f"a {type(value).__name__}"


_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    float | None: "a number",
    bool: "true or false",
    dict[str, Any]: "a mapping, as in {width: 16}",
}


def _as(hint: Any, value: Any) -> Any:
    """The value in its field's type; text, which comes from a command line, is read as YAML."""
    if hint is str:
        if isinstance(value, (dict, list, tuple, bytes)) or value is True:
            raise TypeError(value)
        return str(value or "")
    if value is None:
        return None
    if isinstance(value, str) and hint is not float and hint != float | None:  # YAML takes 1e-4 for text
        value = _yaml.load(value)
    if hint is bool or hint == dict[str, Any]:
        if not isinstance(value, bool if hint is bool else dict):
            raise TypeError(value)
        return value
    if isinstance(value, bool) or (hint is int and not isinstance(value, int)):
        raise TypeError(value)
    return int(value) if hint is int else float(value)
