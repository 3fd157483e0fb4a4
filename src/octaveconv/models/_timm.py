"""What we replace in timm, here and nowhere else.

timm reads and writes weights without a hook for what they say of themselves: an octavified network, whose weights fit
the dense network's shapes, would come back as the dense one. For networks that are not ours its own functions run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm.models._builder
import timm.models._factory
import timm.models._helpers
import timm.models._hub
from torch import nn

from ..about import About
from ..octavify.rewrite import OctavifiedModule
from ..weights import files as weights
from ._build import OctNet
from ._octavified import octaveconv_octavified

_load_checkpoint = timm.models.load_checkpoint
_load_state_dict = timm.models.load_state_dict
_clean_state_dict = timm.models.clean_state_dict
_save_for_hf = timm.models._hub.save_for_hf
_save_config_for_hf = timm.models._hub.save_config_for_hf


def load_checkpoint(model: Any, checkpoint_path: str, *args: Any, **kwargs: Any) -> Any:
    """timm's; for our networks a file of any kind."""
    if isinstance(model, (OctNet, OctavifiedModule)):
        return _load_ours(model, checkpoint_path, *args, **kwargs)
    weights.refuse(checkpoint_path, weights.architecture(model))
    return _load_checkpoint(model, checkpoint_path, *args, **kwargs)


def _load_ours(
    model: nn.Module, path: str, use_ema: bool = True, device: Any = "cpu", strict: bool = True, **others: Any
) -> Any:
    """timm's arguments, of which ``weights_only`` and ``device`` do not matter here."""
    if others.get("remap") or others.get("filter_fn"):
        raise ValueError("remap and filter_fn are not for octave networks: load the state_dict by hand")
    return weights.load(model, path, strict, use_ema)


def clean_state_dict(state_dict: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """timm's, but the result still says of which alpha the weights are."""
    cleaned: Any = OrderedDict(_clean_state_dict(state_dict))
    modules = getattr(state_dict, "_metadata", {})
    cleaned._metadata = OrderedDict(
        (key[:-1], value)
        for name, value in modules.items()
        for key in _clean_state_dict({f"{name}." if name else "": None})
    )
    return cleaned  # type: ignore[no-any-return]


def load_state_dict(checkpoint_path: str, *args: Any, **kwargs: Any) -> Any:
    """timm's, for a network of timm's that it builds: not the weights of an octavified one."""
    weights.refuse(checkpoint_path)
    return _load_state_dict(checkpoint_path, *args, **kwargs)


def save_for_hf(model: nn.Module, save_directory: str, *args: Any, **kwargs: Any) -> None:
    """timm's; the safetensors of our networks say what they are."""
    _save_for_hf(model, save_directory, *args, **kwargs)
    file = Path(save_directory) / "model.safetensors"
    if isinstance(model, (OctNet, OctavifiedModule)) and file.is_file():
        weights.write(file, model.state_dict(), About.of(model).metadata())


def save_config_for_hf(
    model: Any, config_path: str, model_config: Any = None, model_args: Any = None, **others: Any
) -> None:
    """timm's; an octavified network is recorded as what `octaveconv_octavified` makes."""
    if not isinstance(model, OctavifiedModule):
        return _save_config_for_hf(model, config_path, model_config, model_args, **others)  # type: ignore[no-any-return]
    octavified: Any = model
    given = getattr(octavified, "pretrained_cfg", None) or {}
    name = given.get("architecture", "")
    if not timm.is_model(name):
        raise ValueError(f"timm cannot make the network {name!r} that was octavified: save its state_dict() instead")
    arguments = {**getattr(model, "model_args", {}), **(model_args or {})}
    arguments |= {"network": name, "conversion": model.conversion}
    octavified.pretrained_cfg = {**given, "architecture": octaveconv_octavified.__name__}
    try:
        _save_config_for_hf(model, config_path, model_config, arguments, **others)
    finally:
        octavified.pretrained_cfg = given


_PLACES: dict[str, tuple[Any, ...]] = {
    "load_checkpoint": (timm.models, timm.models._helpers, timm.models._factory),
    "clean_state_dict": (timm.models, timm.models._helpers),
    "load_state_dict": (timm.models._builder, timm.models._hub),
    "save_for_hf": (timm.models, timm.models._hub),
    "save_config_for_hf": (timm.models._hub,),
}
for _name, _modules in _PLACES.items():
    for _module in _modules:
        setattr(_module, _name, globals()[_name])
