"""Words by themselves: which are common in English, which the model has a token for, and which of them are no names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from indexer.encoders import Encoder

SHORTEST = 3
"""Letters of what a word may be a form of."""
_ENDINGS = (
    ("ies", "y"),
    ("es", ""),
    ("s", ""),
    ("ed", ""),
    ("ed", "e"),
    ("ing", ""),
    ("ing", "e"),
    ("er", ""),
    ("ly", ""),
)
_DOUBLE = re.compile(r"(.)\1(ed|ing|er)")


@cache
def common_ranks() -> dict[str, int]:
    """The most common words of English, each with its rank, from 1 on."""
    words = Path(__file__).with_name("common_words.txt").read_text(encoding="ascii").split()
    return {word: rank for rank, word in enumerate(words, 1)}


def in_english(word: str) -> bool:
    """Whether a word is a common one of English, or a form of one."""
    return any(form in common_ranks() for form in _forms(word))


def model_knows(encoder: Encoder, word: str) -> bool:
    """Whether a word, or what it is a form of, is a single token to the model."""
    empty = encoder.count_tokens("")
    return any(encoder.count_tokens(form) <= empty + 1 for form in _forms(word))


def is_everyday(encoder: Encoder, word: str) -> bool:
    """Whether a picture may show what a word says, as far as its forms tell: names of people and places have none.

    A common word of English, or a single token to the model that has another form with a token of its own.
    """
    word = word.lower()
    if in_english(word):
        return True
    one = encoder.count_tokens("") + 1
    others = [word + ending for ending in ("s", "es", "ed", "d", "ing")] + [*_forms(word)][1:]
    return encoder.count_tokens(word) <= one and any(encoder.count_tokens(other) <= one for other in others)


def _forms(word: str) -> Iterable[str]:
    """A word, and what it may be a form of."""
    yield word
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= SHORTEST:
            yield word.removesuffix(ending) + instead
    doubled = _DOUBLE.search(word)
    if doubled and doubled.end() == len(word):
        yield word[: doubled.start() + 1]
