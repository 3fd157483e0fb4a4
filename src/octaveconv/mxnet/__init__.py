"""Readers of MXNet's files. The bytes may come from strangers: each reader is bounded, and fuzzed."""

from .params import load_mxnet
from .recordio import Record, RecordFile

__all__ = ["Record", "RecordFile", "load_mxnet"]
