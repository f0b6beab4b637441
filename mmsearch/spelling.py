"""Misspelt words of a question: which ones nobody knows, and what they are one slip away from.

A slip is a letter too many, one too few, a wrong one, or two in the wrong order (Damerau, "A technique for computer
detection and correction of spelling errors", CACM 1964: four in five misspellings). A word is asked as another only
where nothing knows it: no text, name or folder here, no list of common words, and not the model, to which it is no
single token. What it becomes stands in the index, or is a common word. Names and codes are left as they are: nothing
with a capital or a digit in it, in quotes, or shorter than four letters.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence

from indexer.encoders import Encoder
from indexer.reader import Reader
from indexer.words import MARKS, match_all, match_any, tokens
from mmsearch.language import foreign, is_english_only
from mmsearch.lexicon import common_ranks, in_english, model_knows

SHORTEST = 4
"""Letters of a word that may be misspelt; shorter ones are too near to each other."""
LONGEST = 30
_SAMPLE = 200
"""Passages, and names, in which the words one slip away are looked for."""
_LETTERS = re.compile(r"[^\W\d_]+")
_QUOTED = re.compile(r'("[^"]*")')


def read_words(question: str, reader: Reader, encoder: Encoder) -> tuple[str | None, dict[str, str]]:
    """The language of a question, if it is one that the model does not know, and else its misspelt words; see
    ``mmsearch.language.foreign`` and ``respelled``."""
    if is_english_only(encoder.name):

        def is_english(word: str) -> bool:
            return in_english(word) or model_knows(encoder, word)

        language = foreign(question, is_english, lambda word: reader.has_words() and in_index(reader, word))
        if language is not None:
            return language, {}
    return None, respelled(question, reader, encoder)


def respelled(question: str, reader: Reader, encoder: Encoder) -> dict[str, str]:
    """The words of ``question`` that nobody knows, each with the word that it is asked as; empty if there is none."""
    unknown = [
        one for one in dict.fromkeys(_candidates(question)) if not (in_english(one) or model_knows(encoder, one))
    ]
    if not unknown or not reader.has_words():
        return {}
    better = {word: _best(word, reader, encoder) for word in unknown if not in_index(reader, word)}
    return {word: meant for word, meant in better.items() if meant is not None}


def with_words(question: str, instead: dict[str, str]) -> str:
    """The question with some of its words instead of others; what is in quotes stays.

    >>> with_words('vaccinated against rabeis, "rabeis"', {"rabeis": "rabies"})
    'vaccinated against rabies, "rabeis"'
    """
    parts = _QUOTED.split(question.translate(MARKS))
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\w+", lambda match: instead.get(match[0], match[0]), parts[i])
    return "".join(parts)


def in_index(reader: Reader, word: str) -> bool:
    """Whether a text, a name or a folder holds a word in any of its forms."""
    match = match_all([tuple(tokens(word))])
    return bool(len(reader.texts_with(match, 1)) or len(reader.names_with(match, 1)))


def one_slip(word: str) -> set[str]:
    """All that is one slip away from a word of plain small letters.

    >>> sorted(one_slip("ab"))[:4], len(one_slip("ab"))
    (['a', 'aa', 'aab', 'aba'], 129)
    """
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    deleted = {a + b[1:] for a, b in cuts if b}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    changed = {a + c + b[1:] for a, b in cuts if b for c in string.ascii_lowercase}
    inserted = {a + c + b for a, b in cuts for c in string.ascii_lowercase}
    return (deleted | swapped | changed | inserted) - {word}


def _candidates(question: str) -> Iterable[str]:
    """The words that may be misspelt."""
    for part in _QUOTED.split(question.translate(MARKS))[::2]:
        for joined in part.split():
            word = joined.strip(",.;:?!()")
            if SHORTEST <= len(word) <= LONGEST and word.isascii() and word.isalpha() and word.islower():
                yield word


def _best(word: str, reader: Reader, encoder: Encoder) -> str | None:
    """The word one slip away that is the most frequent here, then in English; None where two are equally good."""
    near = {one for one in one_slip(word) if len(one) >= SHORTEST - 1}
    known = reader.known(sorted(near))
    here = _surfaces(list(known), reader) or {one for one in known if model_knows(encoder, one)}
    # So few letters are a slip away from a common word by chance.
    common = near.intersection(common_ranks()) if len(word) > SHORTEST else set()
    order = sorted(((-known[one] if one in here else 0, _rank(one)), one) for one in here | common)
    if not order or (len(order) > 1 and (order[0][0] == order[1][0] or len(word) == SHORTEST)):
        return None
    return order[0][1]


def _surfaces(near: Sequence[str], reader: Reader) -> set[str]:
    """Those words that stand as they are in some of the texts and names that hold them or another of their forms."""
    texts = reader.some_texts(match_any(near), _SAMPLE) if near else []
    return {one for text in texts for one in _LETTERS.findall(_plain(text))}.intersection(near)


def _rank(word: str) -> float:
    return common_ranks().get(word, math.inf)


def _plain(text: str) -> str:
    """A text as FTS5 compares it: small letters without marks."""
    if text.isascii():
        return text.lower()
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
