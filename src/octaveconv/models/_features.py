"""features_only: every kind of feature network that timm has, of maps with all channels at the high size.

timm's own kinds take the outputs of stages, which for our networks are octaves, and lose their low channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from timm.models import FeatureDictNet, FeatureHookNet, FeatureListNet
from timm.models._features import FeatureGetterNet
from timm.models._features_fx import FeatureGraphNet
from torch import Tensor

_TIMMS = {
    FeatureListNet: "list",
    FeatureDictNet: "dict",
    FeatureHookNet: "hook",
    FeatureGraphNet: "fx",
    FeatureGetterNet: "getter",
}
_TAKEN = {"out_indices", "out_map", "output_fmt", "norm", "prune"}
_OF_MODULES = {"flatten_sequential", "no_rewrite", "default_hook_type"}  # how others take networks apart


class FeatureDict(FeatureGetterNet):  # type: ignore[misc]
    """The feature maps in a dictionary, by their indices, or by the names in ``out_map``."""

    def forward(self, x: Tensor) -> OrderedDict[int | str, Tensor]:
        """The maps ``[N, C, ceil(H/r), ceil(W/r)]``."""
        return OrderedDict(zip(self.out_map or self.out_indices, super().forward(x)))


def feature_cfg(given: Mapping[str, Any] | None, kind: Any = None) -> dict[str, Any]:
    """The arguments of timm's builder for feature networks, from those of ``timm.create_model``.

    Args:
        given: its ``feature_cfg``.
        kind: its ``feature_cls``: ``"dict"`` gives a dictionary, each of the others a list.

    Raises:
        ValueError: there is no such kind, or it does not take such arguments.
    """
    cfg = {"out_indices": (0, 1, 2, 3, 4), **(given or {})}
    kind = cfg.pop("feature_cls", "getter") if kind is None else kind
    name = kind.lower() if isinstance(kind, str) else _TIMMS.get(kind)
    if name not in _TIMMS.values():
        raise ValueError(f"feature_cls must be one of {', '.join(_TIMMS.values())}, got {kind!r}")
    as_dict = cfg.pop("return_dict", name == "dict")
    cfg = {key: value for key, value in cfg.items() if key not in _OF_MODULES}
    if unknown := cfg.keys() - _TAKEN:
        raise ValueError(f"feature_cfg takes {', '.join(sorted(_TAKEN))}, got {', '.join(sorted(unknown))}")
    return cfg | {"feature_cls": FeatureDict if as_dict else "getter"}
