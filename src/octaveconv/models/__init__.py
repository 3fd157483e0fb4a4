"""The networks; importing this package registers them with timm."""

from .oct_resnet import OctResNet
from .oct_resnetv2 import OctResNetV2

__all__ = ["OctResNet", "OctResNetV2"]
