"""Paragraphs of a document to passages that fit the text tower; where they stand is for the caller to say."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator

from indexer.decode.text import iter_passages


def cut(paragraphs: Iterable[str], capacity: int, count_tokens: Callable[[str], int]) -> Iterator[str]:
    """The passages of some paragraphs, by the rules for plain texts; none where there are no words.

    Bytes that are no characters, as half of a pair of surrogates, are replaced.
    """
    whole = [paragraph for paragraph in paragraphs if any(map(str.isalnum, paragraph))]
    if not whole:
        return
    stream = io.BytesIO("\n\n".join(whole).encode("utf-8", "replace"))
    for passage in iter_passages(stream, suffix="txt", capacity=capacity, count_tokens=count_tokens):
        yield passage.text
