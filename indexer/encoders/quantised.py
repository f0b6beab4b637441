"""Weights as the package keeps them: matrices in int8 with a scale for each row or column, vectors in float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SCALE = ".scale"


def quantise(tensors: Mapping[str, np.ndarray], *, along: int = 1) -> dict[str, np.ndarray]:
    """Every matrix ``(N, D)`` to int8 and a float32 scale called ``<name>.scale``; vectors to float32.

    There is a scale for each row, ``(N, 1)``, or with ``along=0`` for each column, ``(1, D)``: better where the columns
    are features of very different size. Rounding to the nearest step of max|row| / 127 moves no value by more than half
    a step. What comes out is contiguous: safetensors writes the bytes as they lie.
    """
    packed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            packed[name] = np.ascontiguousarray(tensor, dtype=np.float32)
            continue
        scale = np.maximum(np.abs(tensor).max(axis=along, keepdims=True) / 127, 1e-12).astype(np.float32)
        packed[name] = np.ascontiguousarray(np.rint(tensor / scale), dtype=np.int8)
        packed[name + SCALE] = scale
    return packed


def widen(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of ``quantise``, all in float32."""
    wide: dict[str, np.ndarray] = {}
    for name, tensor in packed.items():
        if name.endswith(SCALE):
            continue
        wide[name] = tensor.astype(np.float32)
        if name + SCALE in packed:
            wide[name] *= packed[name + SCALE]
    return wide
