"""Encoders: the one seam between a model and everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@runtime_checkable
class Encoder(Protocol):
    """Turns pictures and words into unit vectors of one space.

    ``prepare`` is called from several threads at once, ahead of the model; every other method by one thread at a time.
    Two encoders with the same ``fingerprint`` give vectors that may stand in the same index.
    """

    name: str
    """What ``--model`` says: ``mini``, ``ViT-B-32/laion2b_s34b_b79k`` or a folder."""
    fingerprint: str
    """Hexadecimal digest of whatever the vectors depend on: weights, architecture, preprocessing."""
    dim: int
    image_size: int
    """Pixels a side of what ``prepare`` gives; a decoder may shrink a picture to twice that before."""
    max_tokens: int
    """Tokens of a text that the text tower sees, its special tokens counted."""
    calibration: Mapping[str, Mapping[str, float]] | None
    """How likely a match is at a given cosine, if that was ever measured; ``mmsearch.calibration`` reads it."""

    def prepare(self, image: Image) -> np.ndarray:
        """One RGB picture as the model wants it: ``(C, H, W)``, contiguous."""

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        """Prepared pictures ``(B, C, H, W)`` to float32 unit rows ``(B, D)``."""

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """RGB pictures to float32 unit rows ``(B, D)``."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 unit rows ``(B, D)``; what is beyond ``max_tokens`` is not seen."""

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``, special tokens counted."""
