"""About: what a file of weights is. Every file that we write records it, and every verb reads it.

Keys are timm's where it has them: ``model_args``, and in ``pretrained_cfg`` ``input_size``, ``interpolation``,
``crop_pct``, ``crop_mode``, ``mean``, ``std``, ``num_classes`` and ``label_names``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import env
from .errors import UsageError

Plain = dict[str, Any]
_DEEPEST = 20  # levels of what is recorded
_PACKAGES = ("octaveconv", "torch", "timm")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
_CROP_MODES = ("center", "squash", "border")
_OF_CLASSES = ("num_classes", "label_names")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_color(value: Any, above: float) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 16 and all(_is_number(x) and x > above for x in value)


_CFG: dict[str, Callable[[Any], bool]] = {
    "input_size": lambda value: (
        isinstance(value, list) and len(value) == 3 and all(_is_count(size, 1, 2**15) for size in value)
    ),
    "interpolation": lambda value: value in _INTERPOLATIONS,
    "crop_pct": lambda value: _is_number(value) and 0 < value <= 16,
    "crop_mode": lambda value: value in _CROP_MODES,
    "mean": lambda value: _is_color(value, -math.inf),
    "std": lambda value: _is_color(value, 0),
    "num_classes": lambda value: _is_count(value, 0, 2**31),
    "label_names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
}


@dataclass(frozen=True)
class About:
    """What a file of weights is; what it does not record is None or empty.

    Attributes:
        model: the network's name in timm.
        model_args: arguments of ``timm.create_model`` apart from ``alpha`` and ``num_classes``.
        alpha: low-frequency share of the channels.
        octavify: how the network was octavified, if it was (`Plan.conversion`).
        pretrained_cfg: the preprocessing and the classes, by timm's keys.
        versions: of the packages that wrote it.

    Example:
        >>> about = About("resnet18", pretrained_cfg={"input_size": [3, 64, 64], "label_names": ["cat", "dog"]})
        >>> About.read(about.metadata()) == about, about.size, about.label_names
        (True, 64, ['cat', 'dog'])
    """

    model: str | None = None
    model_args: Plain = field(default_factory=dict)
    alpha: float | None = None
    octavify: Plain | None = None
    pretrained_cfg: Plain = field(default_factory=dict)
    versions: Plain = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, name: str | None = None) -> About:
        """What is known of a network: timm's configuration, and the arguments that `octaveconv.models.create` got.

        Args:
            model: any network.
            name: its name in timm; by default the one in its configuration.
        """
        cfg, model_args, conversion = (
            found if isinstance(found := getattr(model, name, None), Mapping) else {}
            for name in ("pretrained_cfg", "model_args", "conversion")
        )
        found = {key: _listed(cfg.get(key)) for key in _CFG} | {"num_classes": getattr(model, "num_classes", None)}
        kept = {key: value for key, value in found.items() if value is not None and _CFG[key](value)}
        if len(kept.get("label_names", ())) != kept.get("num_classes"):
            kept.pop("label_names", None)
        alpha: Any = getattr(model, "alpha", None)
        return cls(
            name or cfg.get("architecture"),
            dict(model_args),
            float(alpha) if _is_number(alpha) else None,
            dict(conversion) or None,
            kept,
            {package: env.version(package) for package in _PACKAGES},
        )

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any]) -> About:
        """What a training recipe says, for files of versions that did not record more."""
        size = recipe.get("size")
        cfg = {"input_size": [3, size, size], "crop_pct": recipe.get("crop_pct")}
        found: Plain = {key: recipe.get(key) for key in ("model", "model_args", "alpha")}
        return cls.read(found | {"pretrained_cfg": {key: value for key, value in cfg.items() if _CFG[key](value)}})

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> About:
        """The same from what `metadata` gave, or from plain data; entries that are unknown are ignored.

        Raises:
            ValueError: an entry is not what it should be; the message names it.
        """
        model = data.get("model")
        if model is not None and not (isinstance(model, str) and 0 < len(model) <= 200):
            raise ValueError("its record of the model is not a name")
        alpha = _decoded(data, "alpha", lambda value: _is_number(value) and 0 <= value <= 1)
        pretrained_cfg = _decoded(data, "pretrained_cfg", _is_plain) or {}
        for key, value in pretrained_cfg.items():
            if key in _CFG and not _CFG[key](value):
                raise ValueError(f"its record of {key} is {str(value)[:40]!r}")
        names, count = pretrained_cfg.get("label_names"), pretrained_cfg.get("num_classes")
        if names is not None and count not in (None, len(names)):
            raise ValueError(f"it records {len(names)} names of {count} classes")
        return cls(
            model,
            _decoded(data, "model_args", _is_plain) or {},
            None if alpha is None else float(alpha),
            _decoded(data, "octavify", _is_plain),
            {key: value for key, value in pretrained_cfg.items() if key in _CFG},
            _decoded(data, "versions", _is_plain) or {},
        )

    def metadata(self) -> dict[str, str]:
        """All of it as text, for the metadata of a safetensors file and for a checkpoint.

        Raises:
            UsageError: the network's arguments are not plain data, so that no file can record them.
        """
        plain = {key: value for key, value in vars(self).items() if value not in (None, {})}
        try:
            return {
                key: value if isinstance(value, str) else json.dumps(value, allow_nan=False)
                for key, value in plain.items()
            }
        except (TypeError, ValueError) as error:
            raise UsageError(f"a file cannot record {self.model_args}, arguments of the network: {error}") from error

    @property
    def size(self) -> int | None:
        """Height of the images in pixels."""
        size: list[int] | None = self.pretrained_cfg.get("input_size")
        return size[1] if size else None

    @property
    def label_names(self) -> list[str] | None:
        """The names of the classes, in order."""
        return self.pretrained_cfg.get("label_names")

    def overlay(self, num_classes: int | None) -> Plain:
        """Entries for timm's ``pretrained_cfg_overlay``: the classes only where their number is ``num_classes``."""
        same = num_classes in (None, self.pretrained_cfg.get("num_classes"))
        kept = {key: value for key, value in self.pretrained_cfg.items() if same or key not in _OF_CLASSES}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}

    def overridden(self, **given: Any) -> str:
        """What was asked for instead of what is recorded, in words for the end of a line; nothing if nothing was."""
        recorded = {"alpha": self.alpha, "size": self.size, **self.model_args}
        pairs = [(key, value, recorded.get(key)) for key, value in given.items() if value is not None]
        told = [f"{key} {value}, not the recorded {own}" for key, value, own in pairs if own not in (None, value)]
        return f" ({'; '.join(told)})" if told else ""


def _is_plain(value: Any) -> bool:
    return isinstance(value, dict)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _decoded(data: Mapping[str, Any], key: str, check: Callable[[Any], bool]) -> Any:
    """An entry, which may be JSON."""
    value = data.get(key)
    try:
        value = json.loads(value) if isinstance(value, str) else value
        deep = _depth_exceeds(value, _DEEPEST)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its record of {key} is not JSON ({type(error).__name__})") from error
    if deep:
        raise ValueError(f"its record of {key} is nested more than {_DEEPEST} levels deep")
    if value is not None and not check(value):
        raise ValueError(f"its record of {key} is {str(value)[:40]!r}")
    return value


def _depth_exceeds(value: Any, levels: int) -> bool:
    """Whether plain data are lists or mappings in more levels than these."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return levels < 0 or any(_depth_exceeds(item, levels - 1) for item in items)
