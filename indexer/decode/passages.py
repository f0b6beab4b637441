"""Paragraphs of a document to passages that fit the text tower; on which page they stand is for the caller to say."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from indexer.decode.streams import Source
from indexer.decode.text import Passage, iter_passages
from indexer.types import Span


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


def of_pages(source: Source, pages: Iterable[tuple[int | None, Iterable[str]]]) -> Iterator[Passage]:
    """The passages of numbered pages, each given as its paragraphs, behind those that are stored."""
    passages = (
        Passage(text, Span(page=number))
        for number, paragraphs in pages
        for text in cut(paragraphs, source.max_tokens, source.count_tokens)
    )
    return islice(passages, source.stored, None)
