"""Why a picture fits words: where each word looked, and what the score hangs on. Pure: arrays in, arrays out.

Letters: L token states of a text, T image tokens in a square of S a side, row by row from the top left.
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.encoders import Box, Piece
from indexer.errors import StorageError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

METHODS = ("attention", "occlusion")
METHOD = "attention"
"""How the heat of all words together is made where nobody says, one of ``METHODS``.

``attention`` is the sum of the words' attention, weighted by how much each word counted, and spread a little. It costs
one pair and says which word looked where. It need not be what the score hangs on: other attention can give the same
score (Jain and Wallace 2019, arXiv:1902.10186), which is why deep transformers are explained by attention and gradients
together (Chefer et al. 2021, arXiv:2103.15679). A joint encoder has few looks between words and tokens, and no
gradients here.

``occlusion`` hides one token after the other behind the mean of all and takes by how much the logit falls (Zeiler and
Fergus 2014, arXiv:1311.2901). It is what the score hangs on and knows nothing of single words; what two tokens say
alike it misses, since hiding one of them changes nothing. It costs T pairs more.

``benchmarks/corners.py`` compares them.
"""
DIGITS, HEAT_DIGITS = 4, 6
"""Decimals in JSON."""
NINTHS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")


@dataclass(frozen=True, slots=True, eq=False)
class Word:
    """One word of the question: how much it counted, all words together being 1, and where it looked."""

    word: str
    weight: float
    heat: np.ndarray
    """``(S, S)``, sums to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Which parts of a picture the words of a question looked at, and what came of it."""

    question: str
    picture: str | None
    """The path; None for a picture from memory."""
    size: tuple[int, int]
    """Width and height of the picture in pixels, as it is shown."""
    probability: float | None
    """How likely it is that the two match, as the search has it; None where the model brings no calibration and there
    is no index on which to measure one."""
    logit: float
    """What the reranker says, higher is better."""
    method: str
    """How ``heat`` was made, one of ``METHODS``."""
    seen: Box
    """The part of the picture over which heat maps lie, as fractions of it: left, top, right, bottom."""
    words: tuple[Word, ...]
    """In the order of the question, without punctuation."""
    heat: np.ndarray
    """Of all words together ``(S, S)``, sums to 1."""
    image: Image = field(repr=False)
    """The picture, which may be smaller than ``size`` says."""

    @property
    def side(self) -> int:
        """S: cells a side of a heat map."""
        return len(self.heat)

    def place(self, heat: np.ndarray) -> str:
        """In which ninth of the picture a heat map ``(S, S)`` is strongest, as ``top left``; ``everywhere`` if it is
        flat."""
        if np.allclose(heat, heat[0, 0]):
            return "everywhere"
        row, column = divmod(int(heat.argmax()), self.side)
        left, top, right, bottom = self.seen
        across = left + (right - left) * (column + 0.5) / self.side
        down = top + (bottom - top) * (row + 0.5) / self.side
        return NINTHS[3 * _third(down) + _third(across)]

    def as_dict(self) -> dict[str, Any]:
        """The explanation in plain values, for JSON."""
        return {
            "question": self.question,
            "picture": self.picture,
            "size": list(self.size),
            "probability": None if self.probability is None else round(self.probability, DIGITS),
            "logit": round(self.logit, DIGITS),
            "method": self.method,
            "side": self.side,
            "seen": [round(edge, DIGITS) for edge in self.seen],
            "words": [
                {"word": word.word, "weight": round(word.weight, DIGITS), "heat": _plain(word.heat)}
                for word in self.words
            ],
            "heat": _plain(self.heat),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG: the picture under the heat of all words, and a small one for each of those that count most.

        Raises:
            UsageError: ``path`` does not end in ``.png``, or is the picture that was explained.
            StorageError: it cannot be written.
        """
        from mmsearch.rerank.overlay import draw

        check_writable(path, self.picture)
        content = io.BytesIO()
        draw(self).save(content, "PNG")
        try:
            Path(path).write_bytes(content.getvalue())
        except OSError as exc:
            raise StorageError(f"cannot write {os.fspath(path)!r}: {exc.strerror}") from exc


def check_writable(path: str | os.PathLike[str], picture: str | None) -> None:
    """Raise UsageError unless an explanation of ``picture`` may be written to ``path``."""
    if Path(path).suffix.lower() != ".png":
        raise UsageError(f"an explanation is written as PNG; {os.fspath(path)!r} must end in .png")
    if picture is not None and os.path.exists(path) and os.path.exists(picture) and os.path.samefile(path, picture):
        raise UsageError(f"{os.fspath(path)!r} is the picture itself, which would be lost; name another file")


def whole_words(text: str, pieces: Sequence[Piece | None]) -> list[tuple[str, list[int]]]:
    """The words of a text, each with the numbers of its tokens.

    A word is what stands between spaces, without the punctuation at its ends. What is no part of a word is left out:
    punctuation, special tokens (None), and words of which no token is left since the text was cut.

        "a dog's nose!" in a · dog · ' · s · nose · !  gives  a [0], dog's [1, 2, 3], nose [4]
    """
    free = {number: piece for number, piece in enumerate(pieces) if piece is not None}
    words = []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        while start < end and _is_punctuation(text[start]):
            start += 1
        while start < end and _is_punctuation(text[end - 1]):
            end -= 1
        numbers = [number for number, (first, last) in free.items() if first < end and last > start]
        for number in numbers:
            del free[number]
        if numbers:
            words.append((text[start:end], numbers))
    return words


def looks(words: Sequence[tuple[str, list[int]]], attention: np.ndarray, weights: np.ndarray) -> tuple[Word, ...]:
    """Where each of the ``words``, given with the numbers of its tokens, looked.

    The tokens of a word count by their weights ``(L,)``, and so the weighted sum of the words' heat is that of their
    tokens' attention ``(L, T)``. What is left out leaves its weight to the words, to each by its own.
    """
    totals = np.array([weights[numbers].sum(dtype=np.float64) for _, numbers in words])
    heats = [_shares(weights[numbers]) @ attention[numbers].astype(np.float64) for _, numbers in words]  # each (T,)
    return tuple(
        Word(word, float(weight), as_square(heat))
        for (word, _), weight, heat in zip(words, _shares(totals), heats, strict=True)
    )


def attended(words: Sequence[Word]) -> np.ndarray:
    """The heat ``(S, S)`` of all words together: the sum of weight times heat."""
    heat: np.ndarray = np.sum([word.weight * word.heat for word in words], axis=0)
    return heat


def spread(heat: np.ndarray) -> np.ndarray:
    """Heat ``(S, S)`` in which each place shares with its neighbours, 4 : 2 : 1 for itself, a side and a corner.

    A token was pooled from patches that saw far beyond its own cell, so that one hot token alone says little about
    where; several side by side do. What would leave the picture stays at its edge.
    """
    padded = np.pad(heat, 1, mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    both: np.ndarray = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    return both


def hidden(tokens: np.ndarray) -> np.ndarray:
    """A picture's tokens ``(T, W)`` T times ``(T, T, W)``, in the t-th of which the t-th token is the mean of all."""
    count = len(tokens)
    copies = np.repeat(tokens[None], count, axis=0)
    copies[np.arange(count), np.arange(count)] = tokens.mean(axis=0)
    return copies


def missed(logit: float, without: np.ndarray) -> np.ndarray:
    """The heat ``(S, S)`` from the logits ``(T,)`` of a picture of which one token each was hidden.

    Where hiding makes the logit rise the heat is 0; if it nowhere falls, it is the same everywhere.
    """
    return as_square(_shares(np.maximum(logit - without, 0)))


def as_square(heat: np.ndarray) -> np.ndarray:
    """Heat ``(T,)`` as a map ``(S, S)`` that sums to 1."""
    side = round(len(heat) ** 0.5)
    square: np.ndarray = _shares(heat).reshape(side, side)
    return square


def _shares(values: np.ndarray) -> np.ndarray:
    """Values of at least 0 so scaled that they sum to 1; all alike if all are 0."""
    values = values.astype(np.float64)
    total = values.sum()
    return values / total if total > 0 else np.full(values.shape, 1 / values.size)


def _is_punctuation(letter: str) -> bool:
    return unicodedata.category(letter).startswith("P")


def _third(place: float) -> int:
    return min(max(int(place * 3), 0), 2)


def _plain(heat: np.ndarray) -> list[list[float]]:
    rows: list[list[float]] = heat.round(HEAT_DIGITS).tolist()
    return rows
