"""The original's 31 published checkpoints: figures from its README, sizes and hashes from Intel's Open Model Zoo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

_ADDRESS = "https://dl.fbaipublicfiles.com/octconv/"


class Published(NamedTuple):
    """One checkpoint of the original.

    ``top1`` and ``top5`` are percentages on ImageNet-1k's validation set (one center crop of 224 pixels). ``gmacs`` are
    the published "#FLOPs" in 1e9 and ``mparams`` the parameters in 1e6, if published. ``sha256`` and ``size`` (in
    bytes) are those of the file, if known.
    """

    network: str
    alpha: float
    file: str
    top1: float
    top5: float
    gmacs: float | None = None
    mparams: float | None = None
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The name in timm's registry: that of the network with alpha in thousandths."""
        return f"{self.network}_a{round(self.alpha * 1000)}"

    @property
    def url(self) -> str:
        """Where the original publishes it."""
        return _ADDRESS + self.file


# The accuracies of each ablation archive by alpha in thousandths; then the facts about those that Intel converted.
_ABLATION = {
    ("oct_densenet121", "a01_densenet-121"): {125: (76.1, 93.0), 250: (75.9, 93.1)},
    ("oct_resnetv2_26", "a02_resnet-26"): {125: (75.8, 92.6), 250: (76.1, 92.6), 500: (75.5, 92.5), 750: (74.6, 92.1)},
    ("oct_resnetv2_50", "a03_resnet-50"): {125: (78.2, 93.9), 250: (78.0, 93.8), 500: (77.4, 93.6), 750: (76.7, 93.0)},
    ("oct_resnextv2_50_32x4d", "a04_resnext-50_32x4d"): {250: (78.8, 94.2), 500: (78.4, 94.0), 750: (77.5, 93.6)},
    ("oct_seresnetv2_50", "a05_se-resnet-50"): {
        125: (78.7, 94.1), 250: (78.4, 94.0), 500: (77.9, 93.8), 750: (77.4, 93.5),
    },
    ("oct_resnetv2_101", "a06_resnet-101"): {125: (79.2, 94.4), 250: (79.2, 94.4), 500: (78.7, 94.1)},
    ("oct_resnextv2_101_32x4d", "a07_resnext-101_32x4d"): {250: (79.6, 94.5), 500: (78.9, 94.4)},
    ("oct_resnetv2_200", "a08_resnet-200"): {125: (80.0, 94.9), 250: (79.8, 94.8), 500: (79.5, 94.7)},
}  # fmt: skip
# Top-1 and top-5 that the original published of the dense twins. It published no weights for these.
DENSE = {
    "oct_densenet121": (75.4, 92.7), "oct_resnetv2_26": (73.2, 91.3), "oct_resnetv2_50": (77.0, 93.4),
    "oct_seresnetv2_50": (77.6, 93.6), "oct_resnextv2_50_32x4d": (78.4, 94.0), "oct_resnetv2_101": (78.5, 94.1),
    "oct_resnextv2_101_32x4d": (79.4, 94.6), "oct_resnetv2_200": (79.6, 94.7),
}  # fmt: skip
_CONVERTED_BY_INTEL = {  # GMACs, parameters in 1e6, bytes, SHA-256
    "a01_densenet-121_alpha-0.125.tar": (
        4.883 / 2, 7.977, 32983040, "93fcdf376c2ee7e9278e2c4a9d8a0a30e35d92051ad4889fb5d5c1855ea31ca4"),
    "a02_resnet-26_alpha-0.250.tar": (
        3.768 / 2, 15.99, 64256000, "29fba1f4f421f86bebcc5bd99c0d1936c20c63b3e5bb20b48665106469bd54b0"),
    "a03_resnet-50_alpha-0.125.tar": (
        7.221 / 2, 25.551, 102748160, "1ad2c754a5569d6c297c10601fd62feed4d5fe36354167697315e644f5c913d4"),
    "a04_resnext-50_32x4d_alpha-0.250.tar": (
        6.444 / 2, 25.02, 100700160, "e4f4d8438cb1cf6e349eb0e583e5cc6bf2754fe6093dc24471e893eb3b8c3944"),
    "a05_se-resnet-50_alpha-0.125.tar": (
        7.246 / 2, 28.082, 112947200, "a080ed21c747b877697ca8a91843d2d83b15d1ad4702a09cd74126a3fcdffc52"),
    "a06_resnet-101_alpha-0.125.tar": (
        13.387 / 2, 44.543, 179302400, "28fe5741d60232fa303292c632f8665cb10ed2f7c32617dae575bad14d4ac45a"),
    "a07_resnext-101_32x4d_alpha-0.250.tar": (
        11.521 / 2, 44.169, 177950720, "00c2c7d7048eb0c07509414b4aff845cd1cc6f92b8414a2837b2344e6c6400d3"),
    "a08_resnet-200_alpha-0.125.tar": (
        25.407 / 2, 64.667, 260812800, "d9ce49aa73e3f0f31ac659ddf812ff8a79242a058e6b53a7140c756d83413e58"),
}  # fmt: skip


def _ablation() -> list[Published]:
    records = []
    for (network, stem), cells in _ABLATION.items():
        for thousandths, accuracies in cells.items():
            file = f"{stem}_alpha-{thousandths / 1000:.3f}.tar"
            known = _CONVERTED_BY_INTEL.get(file, (None, None, None, None))
            records.append(Published(network, thousandths / 1000, f"ablation/{file}", *accuracies, *known))
    return records


PUBLISHED = {
    record.name: record
    for record in [
        *_ablation(),
        Published("oct_mobilenetv1_075", 0.375, "others/mobilenet_v1_075_alpha-0.375.params", 70.5, 89.5, 0.213, 2.6),
        Published("oct_mobilenetv1_100", 0.5, "others/mobilenet_v1_100_alpha-0.5.params", 72.5, 90.6, 0.321, 4.2),
        Published("oct_mobilenetv2_100", 0.375, "others/mobilenet_v2_100_alpha-0.375.params", 72.0, 90.7, 0.256, 3.5),
        Published("oct_mobilenetv2_1125", 0.5, "others/mobilenet_v2_1125_alpha-0.5.params", 73.0, 91.2, 0.295, 4.2),
        Published("oct_resnet152f", 0.125, "others/resnet152_v1f_alpha-0.125.params", 81.4, 95.4, 10.9, 60.2),
        Published("oct_seresnet152e", 0.125, "others/se-resnet152_v1e_alpha-0.125.params", 81.6, 95.7, 10.9, 66.8),
    ]
}


def published(name: str) -> Published | None:
    """The published checkpoint of this name, or ``None``.

    Example:
        >>> published("oct_resnetv2_50_a250").top1
        78.0
    """
    return PUBLISHED.get(name.partition(".")[0])


# Parameters, and MACs at 224 pixels by alpha, of every network: written by scripts/write_docs.py.
COSTS: dict[str, Any] = json.loads(Path(__file__).with_name("costs.json").read_text())
