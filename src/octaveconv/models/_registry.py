"""Registration with timm: names, pretrained configurations, and weights from every kind of file that we read."""

from __future__ import annotations

import sys
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg

from ..weights import files as weights
from ..weights.pretrained import fetch_converted
from ._build import OctNet
from ._features import feature_cfg
from ._octavified import saved_file
from ._published import PUBLISHED, Published


def cfg(**kwargs: Any) -> dict[str, Any]:
    """A pretrained configuration with ImageNet's defaults and without weights."""
    return (
        dict(
            num_classes=1000,
            input_size=(3, 224, 224),
            pool_size=(7, 7),
            crop_pct=0.875,
            interpolation="bilinear",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            first_conv="conv1",
            classifier="fc",
        )
        | kwargs
    )


def register(cls: type[OctNet], networks: dict[str, dict[str, Any]], base_cfg: dict[str, Any]) -> None:
    """Register ``networks`` (name to constructor arguments) with timm, and each of their published checkpoints.

    A published name fixes alpha and has weights: ``oct_resnetv2_50_a250`` is ``oct_resnetv2_50`` at alpha 0.25.
    """
    module = sys.modules[cls.__module__]
    records = [record for record in PUBLISHED.values() if record.network in networks]
    cfgs: dict[str, Any] = dict.fromkeys(networks, base_cfg)
    cfgs |= {f"{record.name}.fb_in1k": base_cfg | _published_cfg(record) for record in records}
    module.default_cfgs = getattr(module, "default_cfgs", {}) | generate_default_cfgs(cfgs)  # type: ignore[attr-defined]
    for name, arguments in networks.items():
        _register(cls, name, arguments)
    for record in records:
        _register(cls, record.name, networks[record.network], record)


def _register(cls: type[OctNet], name: str, arguments: dict[str, Any], record: Published | None = None) -> None:
    def entry(pretrained: bool = False, **kwargs: Any) -> Any:
        if record and kwargs.setdefault("alpha", record.alpha) != record.alpha:
            raise ValueError(
                f"{name} has alpha {record.alpha}, got {kwargs['alpha']}: {record.network} takes every alpha"
            )
        return _build(cls, name, pretrained, arguments, kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = cls.__module__
    entry.__doc__ = f"``{record.network}`` at alpha {record.alpha}." if record else f"The network ``{name}``."
    setattr(sys.modules[cls.__module__], name, register_model(entry))


def _build(cls: type[OctNet], name: str, pretrained: bool, arguments: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """Build with timm's builder, and give it pretrained weights under our names, whatever file they come from."""
    kwargs = dict(kwargs)
    if pretrained:
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        kwargs = kwargs | dict(pretrained_cfg_overlay=overlay | _weights(cls, name, arguments, kwargs))
    if not cls.dilates and kwargs.pop("output_stride", 32) != 32:
        raise ValueError(
            f"{name} has stride 32 only: for another output_stride use oct_resnet18 ... oct_resnext50_32x4d"
        )
    features = feature_cfg(kwargs.pop("feature_cfg", None), kwargs.pop("feature_cls", None))
    model = build_model_with_cfg(cls, name, pretrained, feature_cfg=features, **(arguments | kwargs))
    model.pretrained_cfg.pop("state_dict", None)
    return model


def _weights(cls: type[OctNet], name: str, arguments: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Entries of timm's pretrained configuration that say where the weights are."""
    source = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    with torch.device("meta"):
        bare = cls(
            **arguments, **{key: kwargs[key] for key in ("alpha",) if key in kwargs}, num_classes=source.num_classes
        )
    named = source.file if source.source != "local-dir" else None
    if file := named or saved_file(source, kwargs.get("cache_dir")):
        return dict(state_dict=weights.read(file).state_dict(bare))
    if not source.url or source.source == "hf-hub":
        return {}
    record = PUBLISHED.get(name)
    known = (record.sha256, record.size) if record and record.url == source.url else (None, None)
    return dict(file=str(fetch_converted(bare, name, source.url, *known, kwargs.get("cache_dir"))))


def _published_cfg(record: Published) -> dict[str, Any]:
    return dict(
        url=record.url,
        license="mit",
        origin_url="https://github.com/facebookresearch/OctConv",
        paper_name="Drop an Octave: Reducing Spatial Redundancy in Convolutional Neural Networks with Octave "
        "Convolution",
        paper_ids="arXiv:1904.05049",
        notes=(f"published: top-1 {record.top1} %, top-5 {record.top5} %",),
    )
