"""Rerankers: the one seam between the first answers to a question and a closer look at them.

The first stage compares one vector with one vector. A reranker looks at the words and the picture of a pair together,
and so only at the best that the first stage brings ("Retrieve Fast, Rerank Smart", Geigle et al. 2022,
arXiv:2103.11920).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from indexer.errors import DecodeError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from indexer.tokens import Compressor
    from indexer.types import Modality, Span
    from mmsearch.calibration import FusedLine
    from mmsearch.rerank.bank import QueryBank


@dataclass(frozen=True, slots=True, eq=False)
class TextSide:
    """The words of a pair; ``states`` ``(L, S)`` are what the encoder's text tower says of each token."""

    words: str
    states: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PictureSide:
    """The picture of a pair: its ``tokens`` ``(T, W)``, or for a reranker that reads none, where to get it from.

    With a ``span`` it is a part of a file of this ``kind``: a frame of a video, a page of a document.
    """

    tokens: np.ndarray | None = None
    image: Image | None = None
    path: str = ""
    span: Span | None = None
    kind: Modality | None = None

    def open(self, size: int) -> Image:
        """The RGB picture, which a decoder may have shrunk to ``size`` pixels a side; only a reranker asks for it.

        Raises:
            DecodeError: the file is gone, or is no picture.
        """
        if self.image is not None:
            return self.image
        from indexer.decode import decode_image, still, stream_suffix

        if self.span is not None and self.kind is not None:
            try:
                return still(self.path, stream_suffix(self.path, self.kind), self.span, size)
            except OSError as exc:
                raise DecodeError(f"cannot be read: {exc.strerror or exc}") from exc
        try:
            data = Path(self.path).read_bytes()
        except OSError as exc:
            raise DecodeError(f"cannot be read: {exc.strerror}") from exc
        return decode_image(data, size=size).image


class Reranker(Protocol):
    """Says of pairs of a text and a picture how well they fit.

    May be called from several threads at once. With a ``compressor`` it reads the token states of texts and the image
    tokens that ``compressor`` made of pictures, which the index keeps; without one it reads words and opens pictures.
    """

    name: str
    candidates: int
    """How many of the first answers are worth its time, as measured with it."""
    calibration: Mapping[tuple[Modality, Modality], FusedLine]
    """For text→image and image→text: how likely a match is, given what both stages say of it."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of whatever its logits depend on; the model may have to be loaded for it."""

    @property
    def bank(self) -> QueryBank | None:
        """What tells an answer to this question from an answer to any; None if ``calibration`` does not ask for it."""

    @property
    def compressor(self) -> Compressor | None:
        """Its picture side, which runs while indexing."""

    def score(self, texts: Sequence[TextSide], pictures: Sequence[PictureSide], pairs: np.ndarray) -> np.ndarray:
        """The logit of each pair ``(K,)``, higher is better; ``pairs[k]`` is the place of its text and of its picture
        in ``texts`` and ``pictures``, ``pairs`` being int64 ``(K, 2)``.

        NaN says that the picture of a pair cannot be opened any more, by a reranker that opens pictures; whatever else
        goes wrong is raised.

        Raises:
            ModelError: the model cannot be loaded, or fails.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """How the words of a pair looked at its picture: ``attention`` ``(L, T)``, of which each row sums to 1, says how
    much of each word's look went to each token, ``weights`` ``(L,)``, which sum to 1, how much each word counted."""

    logit: float
    attention: np.ndarray
    weights: np.ndarray


@runtime_checkable
class LookingReranker(Protocol):
    """A ``Reranker`` with a compressor whose tokens are a square, row by row from the top left, and which can say where
    words looked. The search does without."""

    def look(self, text: TextSide, picture: PictureSide) -> Look:
        """What became of one pair.

        Raises:
            ModelError: the model cannot be loaded, fails, or does not say where its words look.
        """


__all__ = ["Look", "LookingReranker", "PictureSide", "Reranker", "TextSide"]
