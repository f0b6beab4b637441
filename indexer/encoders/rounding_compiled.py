"""The passes of ``indexer.encoders.rounding``, compiled: each goes over the numbers once, a row after the other.

This module needs numba, an optional package. Its import takes a second, or several where nothing was compiled before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from indexer.encoders.rounding import LARGEST, Norm

_LARGEST = np.float32(LARGEST)
_ONE = np.float32(1)
_ZERO = np.float32(0)
_SIXTEEN = np.uint32(16)

# Sums may be made in any order, which is what lets several numbers of a row be added at once.
_compiled: Any = partial(njit, nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
_of_floats, _of_halves = types.float32[:, ::1], types.uint16[:, ::1]
_of_bytes, _row = types.int8[:, ::1], types.float32[::1]


@_compiled()
def _nearest(number):  # type: ignore[no-untyped-def]
    return np.int8(np.int32(max(min(np.rint(number), _LARGEST), -_LARGEST)))


@_compiled(types.void(_of_floats, _row, _of_bytes))
def _scale(rows, factors, out):  # type: ignore[no-untyped-def]
    for r in range(len(rows)):
        for c in range(rows.shape[1]):
            out[r, c] = _nearest(rows[r, c] * factors[c])


@_compiled(types.void(_of_halves, _row, _of_bytes))
def _scale_halves(rows, factors, out):  # type: ignore[no-untyped-def]
    """A bfloat16 is the upper half of a float32's bits."""
    for r in range(len(rows)):
        for c in range(rows.shape[1]):
            number = np.uint32(np.uint32(rows[r, c]) << _SIXTEEN).view(np.float32)
            out[r, c] = _nearest(number * factors[c])


@_compiled()
def _norm_row(row, weight, bias, eps, out):  # type: ignore[no-untyped-def]
    total, squares = _ZERO, _ZERO
    for c in range(len(row)):
        total += row[c]
    mean = total / np.float32(len(row))
    for c in range(len(row)):
        off = row[c] - mean
        squares += off * off
    scale = _ONE / np.sqrt(squares / np.float32(len(row)) + eps)
    for c in range(len(row)):
        out[c] = _nearest((row[c] - mean) * scale * weight[c] + bias[c])


@_compiled(types.void(_of_floats, _row, _row, types.float32, _of_bytes))
def _norm(rows, weight, bias, eps, out):  # type: ignore[no-untyped-def]
    for r in range(len(rows)):
        _norm_row(rows[r], weight, bias, eps, out[r])


@_compiled(types.void(_of_floats, _of_floats, _row, _row, types.float32, _of_bytes))
def _add_and_norm(rows, to, weight, bias, eps, out):  # type: ignore[no-untyped-def]
    for r in range(len(rows)):
        for c in range(rows.shape[1]):
            to[r, c] += rows[r, c]
        _norm_row(to[r], weight, bias, eps, out[r])


@_compiled(types.void(types.float32[:, :, :, ::1], types.int64, types.int64, _row, _of_bytes))
def _cut(pixels, tall, wide, factors, out):  # type: ignore[no-untyped-def]
    batch, colours, height, width = pixels.shape
    down, across = height // tall, width // wide
    for b in range(batch):
        for i in range(down):
            first = (b * down + i) * across
            for c in range(colours):
                for y in range(tall):
                    at = (c * tall + y) * wide
                    line = pixels[b, c, i * tall + y]
                    for j in range(across):
                        for x in range(wide):
                            out[first + j, at + x] = _nearest(line[j * wide + x] * factors[at + x])


class Compiled:
    """``Rounding`` in one pass each."""

    hidden = torch.bfloat16

    def whole(self, rows: Tensor) -> Tensor:
        return self.scaled(rows, torch.ones(rows.shape[1]))

    def scaled(self, rows: Tensor, factors: Tensor) -> Tensor:
        out = torch.empty(rows.shape, dtype=torch.int8)
        if rows.dtype is torch.bfloat16:
            _scale_halves(rows.contiguous().view(torch.uint16).numpy(), factors.numpy(), out.numpy())
        else:
            _scale(rows.contiguous().numpy(), factors.numpy(), out.numpy())
        return out

    def normed(self, rows: Tensor, norm: Norm) -> Tensor:
        out = torch.empty(rows.shape, dtype=torch.int8)
        _norm(rows.contiguous().numpy(), norm.weight.numpy(), norm.bias.numpy(), norm.eps, out.numpy())
        return out

    def added(self, rows: Tensor, to: Tensor, norm: Norm) -> Tensor:
        out = torch.empty(rows.shape, dtype=torch.int8)
        given, weight, bias = rows.contiguous().numpy(), norm.weight.numpy(), norm.bias.numpy()
        _add_and_norm(given, to.numpy(), weight, bias, norm.eps, out.numpy())
        return out

    def patches(self, pixels: Tensor, side: tuple[int, int], factors: Tensor) -> Tensor:
        batch, colours, height, width = pixels.shape
        tall, wide = side
        patches = batch * (height // tall) * (width // wide)
        out = torch.empty(patches, colours * tall * wide, dtype=torch.int8)
        _cut(pixels.contiguous().numpy(), tall, wide, factors.numpy(), out.numpy())
        return out
