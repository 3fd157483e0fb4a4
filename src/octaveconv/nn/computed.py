"""Layers that compute their weight from other parameters: weight norm, spectral norm, any parametrization."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ._hooks import has_hooks

_SOURCES = ("_g", "_v", "_orig")  # what the hooks append to the name of a weight for what it is computed from


def _norms(layer: nn.Module) -> list[Any]:
    """Its hooks of ``torch.nn.utils.weight_norm`` and ``spectral_norm``, which set the weight before each call."""
    return [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, (WeightNorm, SpectralNorm))]


def computes_weight(layer: nn.Module) -> bool:
    """Whether it has a parametrization, or the hook of a norm of its weight."""
    return is_parametrized(layer) or bool(_norms(layer))


def has_other_hooks(layer: nn.Module) -> bool:
    """Whether it has hooks besides those of norms of its weight."""
    norms = _norms(layer)
    return has_hooks(layer) and not (norms and len(norms) == len(layer._forward_pre_hooks) and not _sees_calls(layer))


def _sees_calls(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def parameter_names(layer: nn.Module) -> set[str]:
    """The names of its parameters, the computed ones in place of those that they are computed from."""
    names = set(layer._parameters)
    if is_parametrized(layer):
        names.update(layer.parametrizations)  # type: ignore[arg-type]
    for hook in _norms(layer):
        names = names - {hook.name + end for end in _SOURCES} | {hook.name}
    return names


def compute_like(made: nn.Module, layer: nn.Module) -> None:
    """Let ``made`` compute its weight as ``layer`` does, once it has that layer's parameters, buffers and children."""
    for name in layer.parametrizations if is_parametrized(layer) else ():  # type: ignore[union-attr]
        register_parametrization(made, str(name), nn.Identity(), unsafe=True)  # for the class; the rest are children
    for hook in _norms(layer):
        delattr(made, hook.name)
        setattr(made, hook.name, getattr(layer, hook.name))
        made.register_forward_pre_hook(hook)
        made._state_dict_hooks.update(layer._state_dict_hooks)
        made._load_state_dict_pre_hooks.update(layer._load_state_dict_pre_hooks)
