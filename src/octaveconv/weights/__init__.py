"""Weights in files: under whose names, of which alpha, and where they come from."""

from .files import Weights, convert, load, read, write

__all__ = ["Weights", "convert", "load", "read", "write"]
