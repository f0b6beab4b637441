"""What the words of a question say beside its meaning: by how much a passage or a file name that holds them is likelier.

A vector knows what a text is about and not which number, name or code stands in it. The words know that, and little
else: two captions that share "dog" are hardly likelier to be about the same picture, beyond what their vectors say. So
a word counts by how rare it is. If a share p of all other passages holds it, -ln p is its *surprise*; measured on the
captions of Flickr8k's dev split (``benchmarks/words.py``) a shared word adds nothing to the log-odds of a match up to a
surprise of 4.6 (one passage in a hundred), and from there on 0.8 for each unit. A code, as "2024-113", is nothing to a
vector, and counts whole. What a passage gains is the sum over the words that it holds, times the share of the question
that this is.

The share p is that of the library, held by a thousand passages of everyday English: in a library of twenty files, a
word that one of them holds is not common for that. Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009),
which the gain takes the place of, knows ranks only: a shared "dog" lifts as much as a shared number. It loses 3 to 8
points of recall on those captions where the gain wins one, and what it gives is no probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from indexer.catalogue import Reader
from indexer.records import PieceRow
from indexer.words import Phrase, match_all, phrases, prepare, tokens

HINGE = 4.6
"""Surprise, in nats, up to which a word says nothing."""
SLOPE = 0.8
"""Log-odds for each nat above it."""
CODE_SLOPE = 0.9
"""Log-odds for each nat of a code, from the first on."""
EVERYDAY = 1000
"""Passages of everyday English that are counted with those of the library."""
DEPTH = 1000
"""A word that more passages hold than this is not looked for, nor do more passages than this gain by a question."""
MOST_PHRASES = 32
"""Of a question; what is said after them is left to the vectors."""
FIRST_PIECES = 64
"""Pieces of a file, from its beginning, of which the best may gain by its name."""

_PASSAGE = 6.0
"""Chance of the r-th most common word to be in a passage of everyday English: 1 - exp(-6 / r), after Zipf's law."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """A phrase of a question with who holds it: passages ``texts``, files with it in their names ``names``, and what
    that is worth in log-odds. ``worth`` is the most that it can be worth, also where nobody holds it."""

    phrase: Phrase
    texts: np.ndarray
    names: np.ndarray
    in_text: float
    in_name: float
    worth: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """The pieces ``(P,)`` that words speak for, and what each holds of the weighed phrases ``(P, W)``, as log-odds."""

    pieces: Sequence[PieceRow]
    in_text: np.ndarray
    in_name: np.ndarray
    worth: float

    def gains(self, logits: np.ndarray) -> np.ndarray:
        """What each piece gains ``(P,)``; ``logits`` ``(P,)`` say which piece of a file is the best without.

        The name of a file counts for its best piece alone, so that a long text of that name does not fill the list.
        """
        with_name = self._gain(np.maximum(self.in_text, self.in_name))  # (P,)
        best: dict[int, int] = {}
        for i, piece in enumerate(self.pieces):
            j = best.setdefault(piece.asset_id, i)
            if logits[i] + with_name[i] > logits[j] + with_name[j]:
                best[piece.asset_id] = i
        gains = self._gain(self.in_text)
        chosen = list(best.values())
        gains[chosen] = with_name[chosen]
        return gains

    def _gain(self, held: np.ndarray) -> np.ndarray:
        mass = held.sum(axis=1)
        return np.asarray(mass * np.minimum(mass / self.worth, 1))


def evidence(reader: Reader, question: str, totals: tuple[int, int]) -> Evidence | None:
    """What the words of ``question`` speak for among all items; None if they say nothing.

    Args:
        totals: how many passages and how many names there are, ``Reader.word_totals``.
    """
    weighed = weigh(reader, question, totals)
    texts = sorted({i for one in weighed if one.in_text for i in one.texts.tolist()})
    names = sorted({i for one in weighed if one.in_name for i in one.names.tolist()})
    if not texts and not names:
        return None
    pieces = reader.pieces(ids=texts, of=names, first=FIRST_PIECES)
    ids = np.array([piece.id for piece in pieces])
    assets = np.array([piece.asset_id for piece in pieces])
    in_text = np.stack([np.isin(ids, one.texts) * one.in_text for one in weighed], axis=1)  # (P, W)
    in_name = np.stack([np.isin(assets, one.names) * one.in_name for one in weighed], axis=1)  # (P, W)
    mass = np.maximum(in_text, in_name).sum(axis=1)
    kept = np.sort(np.lexsort((ids, -mass))[:DEPTH])
    return Evidence([pieces[i] for i in kept], in_text[kept], in_name[kept], sum(one.worth for one in weighed))


def weigh(reader: Reader, question: str, totals: tuple[int, int]) -> list[Weighed]:
    """The phrases of a question that are rare enough to count; joined words that nobody holds so count one by one."""
    found: list[Weighed] = []
    waiting = phrases(question)[:MOST_PHRASES]
    while waiting:
        phrase = waiting.pop(0)
        code, everyday = is_code(phrase), _everyday(phrase)
        if not code and -math.log(everyday) <= HINGE:
            continue
        match = match_all([phrase])
        texts, names = reader.texts_with(match, DEPTH + 1), reader.names_with(match, DEPTH + 1)
        if not len(texts) and not len(names) and len(phrase) > 1:
            waiting = [(word,) for word in phrase] + waiting
            continue
        in_text, in_name = (
            worth(len(holders), total, everyday, code) if len(holders) <= DEPTH else 0.0
            for holders, total in zip((texts, names), totals, strict=True)
        )
        most = max(in_text * bool(len(texts)), in_name * bool(len(names))) or min(in_text, in_name)
        if most:
            found.append(Weighed(phrase, texts, names, in_text, in_name, most))
    return found


def worth(holders: int, total: int, everyday: float, code: bool) -> float:
    """Log-odds that a phrase adds where it is held, by ``holders`` of ``total`` texts.

    >>> round(worth(1, 20, 0.001, code=True), 2), worth(5, 20, 0.001, code=False)
    (6.23, 0.0)
    """
    others = max(holders - 1, 0)
    share = max(others / max(total, 1), (others + EVERYDAY * everyday) / (total + EVERYDAY))
    surprise = -math.log(min(share, 1.0))
    return CODE_SLOPE * surprise if code else SLOPE * max(surprise - HINGE, 0.0)


def is_code(phrase: Phrase) -> bool:
    """Whether a phrase is a number or a mark that a vector knows nothing of: three digits at least, or digits joined to
    letters or to other digits, as in "2024-113", "A4711" and "7/12"."""
    digits = sum(c.isdigit() for word in phrase for c in word)
    return digits >= 3 or (digits > 0 and sum(map(len, phrase)) > digits) or (digits > 1 and len(phrase) > 1)


def _everyday(phrase: Phrase) -> float:
    """The share of everyday passages that hold a phrase; one in ``EVERYDAY`` where nothing is known of it."""
    rank = _ranks().get(phrase[0].lower()) if len(phrase) == 1 else None
    return max(1 - math.exp(-_PASSAGE / rank), 1 / EVERYDAY) if rank else 1 / EVERYDAY


@cache
def _ranks() -> dict[str, int]:
    """The most common words of English, from 1 on."""
    text = resources.files("mmsearch").joinpath("common_words.txt").read_text(encoding="ascii")
    return {word: rank for rank, word in enumerate(text.split(), 1)}
