"""The records that Python hands to the C++, as structures of NumPy: those of ``program.h``, field by field."""

from __future__ import annotations

import ctypes
from typing import get_args

import numpy as np

from ...errors import BackendUnavailable
from ..ir import Activation

_POINTER, _INT, _LONG, _FLOAT = np.uintp, np.int32, np.int64, np.float32


def _struct(**fields: object) -> np.dtype[np.void]:
    return np.dtype(list(fields.items()), align=True)


TERM = _struct(source=_POINTER, pixels=_POINTER, taps=_POINTER, tap_count=_INT, depthwise=_INT)
SLICE = _struct(weights=_POINTER, first=_INT, count=_INT)
PANEL = _struct(slices=_POINTER, bias=_POINTER, weights=_POINTER, weights_end=_POINTER, channel=_INT, vectors=_INT)
ADDEND = _struct(source=_POINTER, pixels=_POINTER, gate=_POINTER, gate_pixels=_POINTER, per_block=_INT)
OUTPUT = _struct(
    full=_POINTER, pixels=_POINTER, pooled=_POINTER, blocks=_POINTER, scale=_POINTER, shift=_POINTER,
    full_channels=_INT, pooled_channels=_INT, activation=_INT, low=_FLOAT, high=_FLOAT,
)  # fmt: skip
WINDOW = _struct(
    source=_POINTER, target=_POINTER, images=_INT, height=_INT, width=_INT, out_height=_INT, out_width=_INT,
    channels=_INT, kernel=(_INT, 2), stride=(_INT, 2), padding=(_INT, 2), count_padding=_INT,
    source_image=_INT, source_row=_INT, source_stride=_INT, target_image=_INT, target_row=_INT, target_stride=_INT,
    slot=_INT, first=_INT,
)  # fmt: skip
LAYER = _struct(
    kind=_INT, units=_INT, blocks=_INT, term_count=_INT, coarse_count=_INT, panel_count=_INT, addend_count=_INT,
    output_count=_INT, pixels_outside=_INT, staged=_INT, channel_split=_INT, terms=_POINTER, panels=_POINTER,
    addends=_POINTER, outputs=_POINTER, window=_POINTER,
)  # fmt: skip
PROGRAM = _struct(layers=_POINTER, phases=_POINTER, phase_count=_INT)
OUTSIDE = _struct(data=_POINTER, strides=(_LONG, 4), step=_LONG)
RECORDS = {
    "Term": TERM, "Slice": SLICE, "Panel": PANEL, "Addend": ADDEND, "Output": OUTPUT, "Window": WINDOW,
    "Layer": LAYER, "Program": PROGRAM, "Outside": OUTSIDE,
}  # fmt: skip
KINDS = ("gemm", "mean", "max", "average", "read", "write", "zeros", "reflect", "replicate", "circular")
ACTIVATIONS = get_args(Activation)


def check(engine: ctypes.CDLL) -> None:
    """Compare the size of each record and the offsets of its fields with those in the C++.

    Raises:
        BackendUnavailable: they differ.
    """
    lines = engine.records().decode().splitlines()
    for (name, dtype), compiled in zip(RECORDS.items(), lines, strict=True):
        assert dtype.fields is not None
        offsets = [f"{field} {offset}" for field, (_, offset, *_) in dtype.fields.items()]
        expected = ", ".join([f"{name} {dtype.itemsize}", *offsets])
        if compiled != expected:
            raise BackendUnavailable(
                f"the native engine was compiled with another layout of its records than this package has (C++: "
                f"{compiled}; Python: {expected}): set CXX to g++ or clang++, or install octaveconv again"
            )
