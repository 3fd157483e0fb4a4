"""Images: labeled data sets of any kind, loaded and augmented, and images without labels.

Tars are read with ``tarfile``, directly (`shards`) and by timm: a data set is one that the user chose. Tars of weights,
which come from strangers, go through `octaveconv.mxnet.container` alone.
"""

from .datasets import CorruptImage, Images, Preprocessing, Stream, open_dataset, preprocessing
from .unlabeled import Unlabeled, find_images

__all__ = [
    "CorruptImage",
    "Images",
    "Preprocessing",
    "Stream",
    "Unlabeled",
    "find_images",
    "open_dataset",
    "preprocessing",
]
