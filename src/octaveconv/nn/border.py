"""The modules between tensors and octaves, and the module that applies a plain one to an octave."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from .._leaf import leaf_forward
from ..octave import ChannelSplit, Octave, alpha_of, as_octave, merge_tensor, octave_map, split_channels, split_tensor
from ..resolution import Sizes
from ._hooks import has_hooks


class Split(nn.Module):
    """Turn a tensor into an octave: its last channels become low-frequency ones by average pooling.

    Args:
        channels: channels of the tensor.
        alpha: share of them that becomes low, in [0, 1], or the `ChannelSplit` that says which.
        factor: how much smaller the low map is on each axis, 1 or 2; by default 2, and 1 on the first of three axes.

    Shape:
        ``[N, C, H, W]`` to ``Octave([N, C_high, H, W], [N, C_low, ceil(H/2), ceil(W/2)])``; or ``[N, C, L]``, or
        ``[N, C, T, H, W]``.

    Raises:
        ValueError: alpha outside [0, 1], or an input with other channels.

    Example:
        >>> import torch, octaveconv as oc
        >>> oc.Split(8, 0.25)(torch.ones(1, 8, 5, 5)).low.shape
        torch.Size([1, 2, 3, 3])
    """

    def __init__(self, channels: int, alpha: float | ChannelSplit, factor: int | Sizes | None = None) -> None:
        super().__init__()
        self.factor = factor
        self.split = split_channels(channels, alpha)
        self.alpha = alpha_of(alpha)

    @leaf_forward
    def forward(self, x: Tensor) -> Octave:
        if x.shape[1] != self.split.high + self.split.low:
            raise ValueError(f"{self} got {x.shape[1]} channels: give it the number of channels of its input")
        return split_tensor(x, self.split, self.factor)

    def extra_repr(self) -> str:
        """Channels, alpha with its high and low channels, and the factor if one was given."""
        factor = "" if self.factor is None else f", factor={self.factor}"
        return f"{self.split.high + self.split.low}, alpha={self.alpha:g} ({self.split.high}+{self.split.low}){factor}"


class Merge(nn.Module):
    """Turn an octave into a tensor: the low part is upsampled to the high size.

    Args:
        factor: as in `Split`.
        split: the dense order in which the channels are returned; by default high channels first.

    Shape:
        ``Octave([N, C_high, H, W], [N, C_low, ceil(H/2), ceil(W/2)])`` to ``[N, C, H, W]``; series and volumes as in
        `Split`. An octave with only a low part is returned at twice its size, a tensor as it is.

    Raises:
        ValueError: the low part does not have the size that the high one calls for.

    Example:
        >>> import torch, octaveconv as oc
        >>> oc.Merge()(oc.Octave(torch.ones(1, 6, 5, 5), torch.ones(1, 2, 3, 3))).shape
        torch.Size([1, 8, 5, 5])
    """

    def __init__(self, factor: int | Sizes | None = None, split: ChannelSplit | None = None) -> None:
        super().__init__()
        self.split, self.factor = split, factor

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Tensor:
        return merge_tensor(x, split=self.split, factor=self.factor)

    def extra_repr(self) -> str:
        """The factor if one was given."""
        return "" if self.factor is None else f"factor={self.factor}"


class OctMap(nn.Module):
    """Apply a plain module, such as an activation or a pooling, to both parts: `octave_map` for ``nn.Sequential``.

    ``nn.PReLU`` with a slope for each channel has those of the high channels first, also inside ``nn.Sequential``.

    Shape:
        as the module's, for the high and for the low part.

    Raises:
        ValueError: a module with code of its own holds such a ``nn.PReLU``, or an octave has other channels than it.

    Example:
        >>> import torch, octaveconv as oc
        >>> net = torch.nn.Sequential(oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.5), oc.OctMap(torch.nn.ReLU()))
        >>> net(torch.ones(1, 3, 8, 8)).low.shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._steps(module)

    @leaf_forward
    def forward(self, x: Tensor | Octave) -> Octave:
        octave = as_octave(x)
        for step in self._steps(self.module):
            octave = _with_slopes(step, octave) if _has_slopes(step) else octave_map(step, octave)
        return octave

    def _steps(self, module: nn.Module) -> list[nn.Module]:
        """The module, or the layers of a sequence that holds a ``nn.PReLU`` for channels."""
        if _has_slopes(module) or not any(map(_has_slopes, module.modules())):
            return [module]
        if type(module) is not nn.Sequential or has_hooks(module):
            raise ValueError(
                f"OctMap cannot give both parts the slopes of the PReLU inside {type(module).__name__}: put that PReLU "
                f"into an OctMap of its own"
            )
        return [step for child in module for step in self._steps(child)]


def _has_slopes(module: nn.Module) -> bool:
    """Whether it has one for each channel."""
    return isinstance(module, nn.PReLU) and module.num_parameters > 1


def _with_slopes(module: nn.Module, octave: Octave) -> Octave:
    weight: Tensor = module.weight  # type: ignore[assignment]
    channels = [0 if part is None else part.shape[1] for part in octave]
    if sum(channels) != len(weight):
        raise ValueError(f"{module} got an octave of {channels[0]} and {channels[1]} channels")
    return prelu(octave, weight.split(channels))


def prelu(x: Octave, slopes: Iterable[Tensor]) -> Octave:
    """``nn.PReLU`` with slopes ``[C_high]`` and ``[C_low]``."""
    return Octave(*(None if part is None else F.prelu(part, slope) for part, slope in zip(x, slopes)))
