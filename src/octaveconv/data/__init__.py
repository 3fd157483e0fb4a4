"""Labeled images: data sets of any kind, loaded and augmented.

Tars are read with ``tarfile``, directly (`shards`) and by timm: a data set is one that the user chose. Tars of weights,
which come from strangers, go through `octaveconv.mxnet.container` alone.
"""

from .datasets import CorruptImage, Images, Preprocessing, Stream, open_dataset, preprocessing

__all__ = ["CorruptImage", "Images", "Preprocessing", "Stream", "open_dataset", "preprocessing"]
