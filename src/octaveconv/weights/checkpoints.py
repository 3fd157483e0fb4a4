"""Checkpoints as they come: where in one the state dict is, and what other programs put before its names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .pickles import Skipped

# Where timm's trainer, ours, Lightning, BasicSR and others put a state dict, in timm's order.
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "params_ema")
_NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "params")
_DEEPEST = 3  # levels of these
_PARALLEL = ("module.",)  # of DataParallel and AveragedModel: no network has it itself
_ATTRIBUTES = ("model.", "net.")  # where Lightning's modules keep their network
_COMPILED = "_orig_mod."  # by torch.compile, also around a part
_CLASS_NAMES = ("label_names", "class_names", "classes", "CLASSES", "class_to_idx")
_SETTINGS = ("meta", "hyper_parameters")  # of OpenMMLab's checkpoints and of Lightning's
_MARKS = {"alpha", "octavify"}
_AVERAGED = "n_averaged"  # AveragedModel's counter


def state_dict_in(found: Any, averaged: bool = True, levels: int = _DEEPEST) -> Mapping[Any, Any] | None:
    """The state dict in what a file holds, with averaged weights if they are wanted and there; None if there is none.

    Example:
        >>> import torch
        >>> state_dict_in({"epoch": 3, "model": {}, "params": {"w": torch.ones(1)}})
        {'w': tensor([1.])}
    """
    if not isinstance(found, Mapping):
        return None
    keys = (*_AVERAGES * averaged, *_NESTED) if levels else ()
    inner = (state_dict_in(found.get(key), averaged, levels - 1) for key in keys)
    state = next((state for state in inner if state is not None), None)
    has_tensors = any(isinstance(value, Tensor) for value in found.values())
    return found if state is None and has_tensors else state


def whole_network(found: Any) -> str | None:
    """The class of an object where a state dict should be; None if there is no such object."""
    places = [found, *(found.get(key) for key in (*_AVERAGES, *_NESTED))] if isinstance(found, Mapping) else [found]
    return next((place.kind for place in places if isinstance(place, Skipped)), None)


def unwrapped(name: str, wrappers: tuple[str, ...] = (*_PARALLEL, *_ATTRIBUTES)) -> str:
    """A parameter's or module's name without what wrappers put before it.

    Example:
        >>> unwrapped("model._orig_mod.module.layer1.0.conv1.weight")
        'layer1.0.conv1.weight'
    """
    name = name.replace(_COMPILED, "")
    while name.startswith(wrappers):
        name = name.partition(".")[2]
    return name


def plain(state: Mapping[str, Tensor], names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """A state dict without the names and counters of wrappers.

    Args:
        state: by the names of a file.
        names: those of the network that it is for, which may itself keep its parts in a ``model``; without them only
            what no network has is removed.

    Raises:
        ValueError: it holds several networks.
    """
    own = names is None or any(name.startswith(_ATTRIBUTES) for name in names)
    wrappers = _PARALLEL if own else (*_PARALLEL, *_ATTRIBUTES)
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = unwrapped(key, wrappers)
        if name in found:
            raise ValueError(f"it holds several networks, of which {key} is one: save the state_dict of one alone")
        if name != _AVERAGED or tensor.dim():
            found[name] = tensor
    return found


def root_metadata(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a state dict says of the whole network, apart from names and numbers."""
    modules: Mapping[str, Any] = getattr(state, "_metadata", {})
    of_root = [found for name, found in modules.items() if not name or not unwrapped(f"{name}.")]
    return next((found for found in of_root if _MARKS & found.keys()), {})


def class_names(found: Any) -> list[str] | None:
    """The names of the classes that a checkpoint keeps beside its weights, in order; None if it keeps none.

    Example:
        >>> class_names({"model": {}, "class_to_idx": {"dog": 1, "cat": 0}})
        ['cat', 'dog']
    """
    places = [found, *(found.get(key) for key in _SETTINGS)] if isinstance(found, Mapping) else []
    for place in places:
        for key in _CLASS_NAMES:
            names = place.get(key) if isinstance(place, Mapping) else None
            if isinstance(names, Mapping) and {*names.values()} == {*range(len(names))}:
                names = sorted(names, key=names.__getitem__)
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                return [*names]
    return None
