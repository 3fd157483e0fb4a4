"""Octavified networks in timm's registry: what `timm.models.save_for_hf` saves, `timm.create_model` rebuilds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import register_model, resolve_pretrained_cfg
from timm.models._hub import download_from_hf

from ..errors import UsageError
from ..octavify.octavify import rebuild
from ..weights import files as weights
from .create import load_weights

_FILES = ("model.safetensors", "pytorch_model.bin")  # that timm saves, the safer first


def saved_file(source: Any, cache_dir: str | None = None) -> Path | None:
    """The weights in a folder or on the hub, where timm saved them; None if a configuration does not mean such ones."""
    if source.source == "local-dir":
        return next((path for name in _FILES if (path := Path(source.file) / name).is_file()), None)
    if source.source != "hf-hub" or not source.hf_hub_id or source.hf_hub_filename:
        return None
    from huggingface_hub.errors import EntryNotFoundError

    for name in _FILES:
        try:
            return Path(download_from_hf(source.hf_hub_id, name, cache_dir=cache_dir))
        except EntryNotFoundError:
            continue
    return None


@register_model
def octaveconv_octavified(
    pretrained: bool = False,
    *,
    network: str | None = None,
    conversion: Mapping[str, Any] | None = None,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: str | None = None,
    **network_args: Any,
) -> Any:
    """An octavified network, as its ``config.json`` says: timm's ``network``, and how it was octavified."""
    if network is None or conversion is None:
        raise UsageError("octavified networks are made from a folder or from the hub that timm saved them to")
    if network_args.pop("features_only", False):
        raise UsageError("an octavified network has no features_only: octavify timm's network made with it")
    network_args = {key: value for key, value in network_args.items() if key != "pretrained_model_args"}
    source = resolve_pretrained_cfg(network, pretrained_cfg, pretrained_cfg_overlay)
    dense = timm.create_model(network, pretrained_cfg=source.to_dict() | {"architecture": network}, **network_args)
    model: Any = rebuild(dense, conversion)
    model.model_args = dict(network_args)
    if pretrained:
        file = saved_file(source, cache_dir)
        if file is None:
            raise UsageError(f"there are no weights, {' or '.join(_FILES)}, where {network}'s configuration says")
        load_weights(model, weights.read(file), network, network_args)
    return model
