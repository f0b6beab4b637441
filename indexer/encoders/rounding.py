"""What is done to the numbers between the products of a tower in whole numbers: norms, sums, and rounding to int8.

Torch goes over the numbers four or five times for that, which is a third of a tower's time. Compiled by numba it is one
pass (``indexer.encoders.rounding_compiled``), and a ViT-B/32 is 1.2 times as fast. Numba is an optional package, and
loading takes a second: it is done in a thread of its own after so many pictures that a run is likely to hold many more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from indexer.later import Later

LARGEST = 127
BEGIN_AFTER = 256
"""Pictures after which the faster passes are loaded: about as many as their loading costs."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm: weight and bias ``(W,)``, and what is added to the variance."""

    weight: Tensor
    bias: Tensor
    eps: float


class Rounding(Protocol):
    """Real numbers to the nearest int8 of -127 to 127, ``(R, W)``."""

    hidden: torch.dtype
    """The type in which ``scaled`` takes many numbers fastest."""

    def whole(self, rows: Tensor) -> Tensor:
        """``rows`` ``(R, W)`` float32 or bfloat16, which may be overwritten."""

    def scaled(self, rows: Tensor, factors: Tensor) -> Tensor:
        """``rows`` ``(R, W)`` float32 or bfloat16, which may be overwritten, times ``factors`` ``(W,)`` float32."""

    def normed(self, rows: Tensor, norm: Norm) -> Tensor:
        """``rows`` ``(R, W)`` float32 after a layer norm."""

    def added(self, rows: Tensor, to: Tensor, norm: Norm) -> Tensor:
        """Add ``rows`` ``(R, W)`` to ``to`` ``(R, W)``, whose numbers lie in a row: what that is after a layer norm."""

    def patches(self, pixels: Tensor, side: tuple[int, int], factors: Tensor) -> Tensor:
        """Pixels ``(B, C, H, W)`` cut into patches, each times ``factors`` ``(C * side * side,)``:
        ``(B * rows * columns, C * side * side)``. What is left over at the edges is left out."""


class InTorch:
    """Everything in torch, a pass for each step."""

    hidden = torch.float32

    def whole(self, rows: Tensor) -> Tensor:
        return _whole(rows.float())

    def scaled(self, rows: Tensor, factors: Tensor) -> Tensor:
        return _whole(rows.float().mul_(factors))

    def normed(self, rows: Tensor, norm: Norm) -> Tensor:
        return _whole(F.layer_norm(rows, rows.shape[1:], norm.weight, norm.bias, norm.eps))

    def added(self, rows: Tensor, to: Tensor, norm: Norm) -> Tensor:
        return self.normed(to.add_(rows), norm)

    def patches(self, pixels: Tensor, side: tuple[int, int], factors: Tensor) -> Tensor:
        return _whole((cut(pixels, side) * factors).flatten(0, 2))


def cut(pixels: Tensor, side: tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` to patches ``(B, rows, columns, C * side * side)``, without what is left over at the edges."""
    batch, colours, height, width = pixels.shape
    down, across = height // side[0], width // side[1]
    whole = pixels[:, :, : down * side[0], : across * side[1]]
    parts = whole.reshape(batch, colours, down, side[0], across, side[1]).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(batch, down, across, -1)


def _whole(numbers: Tensor) -> Tensor:
    """To the nearest int8, in place of what they were."""
    return numbers.round_().clamp_(-LARGEST, LARGEST).to(torch.int8)


def load() -> Rounding:
    """The faster passes, compiled.

    Raises:
        Exception: whatever numba raises where it is not there, or has no place to keep what it compiles.
    """
    from indexer.encoders.rounding_compiled import Compiled

    return Compiled()


class Best:
    """The passes in torch, and after some pictures the compiled ones. May be used from several threads."""

    def __init__(self, begin_after: int = BEGIN_AFTER) -> None:
        self.faster: Later[Rounding] = Later(load, begin_after, "mmsearch-rounding")
        self._plain = InTorch()

    def get(self, pictures: int = 0) -> Rounding:
        """What is best for so many pictures, which are counted."""
        return self.faster.get(pictures) or self._plain


BEST = Best()
"""That of the whole process: what was loaded once need not be loaded again."""
