"""BERT's tokenizer for plain English: a question need not import the tokenizers library and build its tables for that.

Words are taken apart into the longest pieces that the vocabulary has, from the left (Wu et al. 2016, section 4.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LONGEST = 100
"""A word of more characters is unknown, as in the library."""
_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


class WordPieces:
    """Token numbers of texts in printable ASCII, without special tokens in them.

    Args:
        settings: what the library's JSON says.

    Raises:
        ValueError: that is not BERT's tokenizer in lower case.
        KeyError: it is damaged.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        model, normalizer = settings["model"], settings["normalizer"]
        kinds = model["type"], normalizer["type"], settings["pre_tokenizer"]["type"], model["continuing_subword_prefix"]
        if kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer", "##") or not normalizer["lowercase"]:
            raise ValueError(f"no tokenizer of BERT in lower case: {kinds}")
        if model["max_input_chars_per_word"] != LONGEST:
            raise ValueError(f"words of {model['max_input_chars_per_word']} characters")
        self._numbers: Mapping[str, int] = model["vocab"]
        self._start, self._end, self._unknown = (self._numbers[name] for name in ("[CLS]", "[SEP]", model["unk_token"]))

    @staticmethod
    def can_read(text: str) -> bool:
        """Whether ``ids`` may be asked."""
        return text.isascii() and text.isprintable() and "[" not in text

    def ids(self, text: str) -> list[int]:
        """The numbers, those of the start and the end included."""
        return [self._start, *(n for word in _WORD.findall(text.lower()) for n in self._pieces(word)), self._end]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > LONGEST:
            return [self._unknown]
        numbers: list[int] = []
        start, prefix = 0, ""
        while start < len(word):
            for end in range(len(word), start, -1):
                number = self._numbers.get(prefix + word[start:end])
                if number is not None:
                    break
            else:
                return [self._unknown]
            numbers.append(number)
            start, prefix = end, "##"
        return numbers
