"""The networks; importing this package registers them with timm."""

from . import _timm as _timm
from ._published import COSTS, DENSE, PUBLISHED, Published, published
from .create import create
from .oct_densenet import OctDenseNet
from .oct_mobilenetv1 import OctMobileNetV1
from .oct_mobilenetv2 import OctMobileNetV2
from .oct_resnet import OctResNet
from .oct_resnetv2 import OctResNetV2

__all__ = [
    "COSTS",
    "DENSE",
    "PUBLISHED",
    "OctDenseNet",
    "OctMobileNetV1",
    "OctMobileNetV2",
    "OctResNet",
    "OctResNetV2",
    "Published",
    "create",
    "published",
]
