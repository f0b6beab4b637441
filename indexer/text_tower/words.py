"""Tokenizers without torch: CLIP's byte pairs, searched where they are mapped, and those of the tokenizers library.

open_clip's own classes import torch, and transformers takes a second. What the two here give is compared with what
those give, in the tests and whenever a tower is exported.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from indexer.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END = "<start_of_text>", "<end_of_text>"
_ASCII_WORD = re.compile(rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+", re.IGNORECASE)
_WORD = rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


class Words(Protocol):
    """From a text to the numbers of its tokens."""

    def ids(self, text: str) -> list[int]:
        """The numbers, special tokens included, as many as the model takes; without padding."""

    def count(self, text: str) -> int:
        """How many tokens ``text`` has, special ones and those that the model does not see included."""


def is_plain(text: str) -> bool:
    """Whether ftfy and ``html.unescape`` find nothing to put right in ``text``: printable ASCII without ``&``."""
    return text.isascii() and text.isprintable() and "&" not in text


def _repaired(text: str) -> str:
    if not is_plain(text):
        import html

        import ftfy  # a tenth of a second, which a question in plain English need not wait for

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def _lower(text: str) -> str:
    return _repaired(text).lower()


def _canonical(text: str) -> str:
    return " ".join(_repaired(text).translate(_NO_PUNCTUATION).lower().split())


CLEANERS: Mapping[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "whitespace": _repaired,
    "lower": _lower,
    "canonicalize": _canonical,
}
"""What a text goes through first, by the names that open_clip has for it; transformers leaves all to the tokenizer."""


class BytePairs:
    """The tokenizer of CLIP (Radford et al. 2021): pairs of neighbours become one, the most frequent pair first
    (Sennrich et al. 2016), beginning with the bytes of UTF-8.

    Token numbers are those of 256 bytes, of 256 bytes that end a word, of the pairs in their order, of start and end.

    Args:
        pairs: ``(M,)`` uint32, sorted: the numbers of the two tokens, the first shifted by 16 bits.
        ranks: ``(M,)`` uint16, the place of each pair in the order of merging.
        letters: ``(256,)`` uint8, the token of each byte.
        clean: one of ``CLEANERS``.
    """

    def __init__(self, pairs: np.ndarray, ranks: np.ndarray, letters: np.ndarray, *, clean: str, limit: int) -> None:
        self._pairs, self._ranks = pairs, ranks
        self._letters = letters.tolist()
        self._clean = CLEANERS[clean]
        self._limit = limit
        self._special = {START: 512 + len(pairs), END: 513 + len(pairs)}

    def ids(self, text: str) -> list[int]:
        """See ``Words``."""
        ids = self._all(text)
        return ids if len(ids) <= self._limit else [*ids[: self._limit - 1], ids[-1]]

    def count(self, text: str) -> int:
        """See ``Words``."""
        return len(self._all(text))

    def _all(self, text: str) -> list[int]:
        text = self._clean(text)
        merged = [number for word in _words(text) for number in self._merge(word)]
        return [self._special[START], *merged, self._special[END]]

    def _merge(self, word: str) -> list[int]:
        if word in self._special:
            return [self._special[word]]
        parts = [self._letters[byte] for byte in word.encode("utf-8")]
        parts[-1] += 256
        while len(parts) > 1:
            keys = np.array(parts[:-1], np.uint32) << np.uint32(16) | np.array(parts[1:], np.uint32)
            places = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
            found = self._pairs[places] == keys
            if not found.any():
                break
            ranks = np.where(found, self._ranks[places], len(self._pairs))
            parts = _join(parts, int(keys[ranks.argmin()]), 512 + int(ranks.min()))
        return parts


def _words(text: str) -> Iterator[str]:
    """What CLIP merges by itself: runs of letters, single digits, runs of anything else."""
    if text.isascii():
        return (match[0] for match in _ASCII_WORD.finditer(text))
    import regex  # letters and digits of all scripts, which `re` does not know

    return (match[0] for match in regex.finditer(_WORD, text, regex.IGNORECASE))


def _join(parts: Sequence[int], key: int, into: int) -> list[int]:
    """``parts`` with every two neighbours that are the pair ``key`` made one, from the left."""
    first, second = key >> 16, key & 0xFFFF
    joined: list[int] = []
    i = 0
    while i < len(parts):
        if parts[i] == first and i + 1 < len(parts) and parts[i + 1] == second:
            joined.append(into)
            i += 2
        else:
            joined.append(parts[i])
            i += 1
    return joined


class LibraryWords:
    """A tokenizer of the tokenizers library, read from its JSON.

    Args:
        clean: one of ``CLEANERS``.
        without: a token that becomes token 0, as open_clip does with the last one of BERT's.
    """

    def __init__(self, path: Path, *, clean: str, limit: int, without: int | None) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:  # the library raises a bare Exception
            raise ModelError(f"cannot read the tokenizer {path}: {exc}") from exc
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._clean = CLEANERS[clean]
        self._limit = limit
        self._without = without

    def ids(self, text: str) -> list[int]:
        """See ``Words``."""
        text = self._clean(text)
        ids = self._tokenizer.encode(text).ids
        if len(ids) > self._limit:
            self._tokenizer.enable_truncation(self._limit)  # which knows where special tokens stand
            ids = self._tokenizer.encode(text).ids
            self._tokenizer.no_truncation()
        return [0 if number == self._without else number for number in ids]

    def count(self, text: str) -> int:
        """See ``Words``."""
        return len(self._tokenizer.encode(self._clean(text)).ids)
