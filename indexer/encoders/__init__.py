"""Encoders: the one seam between a model and everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Piece = tuple[int, int]
"""Characters of a text, from the first up to but not including the second."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom as fractions of a picture; below 0 and above 1 where a model pads it."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@runtime_checkable
class Encoder(Protocol):
    """Turns pictures and words into unit vectors of one space.

    ``prepare`` is called from several threads at once, ahead of the model; every other method by one thread at a time,
    but see ``streams``.
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
        """RGB pictures to float32 unit rows ``(B, D)``; here for encoders that name this class as theirs."""
        if not images:
            return np.zeros((0, self.dim), np.float32)
        return self.encode_prepared(np.stack([self.prepare(image) for image in images]))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to float32 unit rows ``(B, D)``; what is beyond ``max_tokens`` is not seen."""

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``, special tokens counted."""


@runtime_checkable
class PatchEncoder(Encoder, Protocol):
    """An encoder that also gives what its vectors were pooled from: the patches of a picture, the tokens of a text."""

    patches: tuple[int, int]
    """P, F: patches of a picture, row by row from the top left, and numbers of each."""
    state_size: int
    """F_t: numbers of each token state of a text."""

    def encode_prepared_patches(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prepared pictures ``(B, C, H, W)`` to float32 unit rows ``(B, D)``, those of ``encode_prepared``, and to
        patches ``(B, P, F)`` float32."""

    def encode_text_states(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Texts to float32 unit rows ``(B, D)``, those of ``encode_texts``, and for each text its token states
        ``(L, F_t)`` float32, special tokens included."""


@runtime_checkable
class PlacedEncoder(PatchEncoder, Protocol):
    """A ``PatchEncoder`` that can also say where its token states and its patches lie."""

    def read_text(self, text: str) -> tuple[str, list[Piece | None]]:
        """The text as the tokenizer reads it, and of which of its characters each of the L token states is: None for a
        special token.

        Raises:
            UsageError: the tokenizer of this model cannot say so.
        """

    def seen(self, width: int, height: int) -> Box:
        """Which part of a picture of so many pixels the patches divide among them."""


def streams(encoder: Encoder) -> int:
    """How many threads may embed pictures at once: what an attribute ``streams`` of the encoder says, else 1.

    It is of ``encode_prepared`` and ``encode_prepared_patches`` that the encoder says so, each thread with one core.
    """
    return int(getattr(encoder, "streams", 1))


def places(offsets: Sequence[Piece], special: Sequence[int]) -> list[Piece | None]:
    """What ``PlacedEncoder.read_text`` says, from the offsets of tokens and the mask of special ones."""
    return [None if skip else (start, end) for (start, end), skip in zip(offsets, special, strict=True)]


def has_patches(encoder: Encoder) -> TypeGuard[PatchEncoder]:
    """Whether the towers of ``encoder`` are such that it gives patches and token states."""
    return isinstance(encoder, PatchEncoder)
