"""Real numbers as bytes without a sign, as products of whole numbers take them, and the passes between the products.

The bytes stand for whole numbers of -127 to 127 and are larger by ``ZERO``: oneDNN has no fast product of bytes with a
sign for chips that have AVX512-VNNI and no AMX, and takes ten thousand times as long there as for bytes without.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 127
ZERO = 128
"""The byte that stands for 0."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm: weight and bias ``(W,)``, and what is added to the variance."""

    weight: Tensor
    bias: Tensor
    eps: float


def rounded(numbers: Tensor) -> Tensor:
    """The nearest bytes to float32 or bfloat16 ``numbers``, uint8 of their shape; ``numbers`` may be overwritten.

    Torch converts to int8 eight times as fast as to uint8, and a flipped sign bit is the same as adding ``ZERO``.
    """
    signed = numbers.float().round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return signed.view(torch.uint8).bitwise_xor_(ZERO)


def normed(rows: Tensor, norm: Norm) -> Tensor:
    """The bytes of ``rows`` ``(R, W)`` float32 after a layer norm."""
    return rounded(F.layer_norm(rows, rows.shape[1:], norm.weight, norm.bias, norm.eps))


def cut(pixels: Tensor, side: tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` to patches ``(B, rows, columns, C * side * side)``, without what is left over at the edges."""
    batch, colours, height, width = pixels.shape
    down, across = height // side[0], width // side[1]
    whole = pixels[:, :, : down * side[0], : across * side[1]]
    parts = whole.reshape(batch, colours, down, side[0], across, side[1]).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(batch, down, across, -1)
