"""Hooks on a module, which would not notice that it is replaced or not called."""

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has a forward or backward hook of its own."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in hooks)
