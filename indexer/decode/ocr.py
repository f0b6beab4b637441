"""Text inside pictures: screenshots, receipts, signs and scans to passages with the boxes that they stand in.

The models of PP-OCR are inside the package rapidocr (``pip install 'mmsearch[ocr]'``), which no other module knows.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from indexer.decode.layout import Word, paragraphs
from indexer.decode.passages import cut
from indexer.decode.text import Passage
from indexer.errors import UsageError
from indexer.types import Box, Span

MAX_SIDE = 2000
"""Pixels of the longer side of a picture that is read: the time grows with them."""
MIN_CONFIDENCE = 0.6
"""Lines that the model is less sure of are patterns rather than letters."""
_LINES = 500
"""Lines of one picture; a newspaper's page has fewer."""

_reading = threading.Lock()


class Line(NamedTuple):
    """A line of text in a picture, and its place: left, top, right, bottom as fractions of width and height."""

    text: str
    box: Box


Ocr = Callable[[Image.Image], list[Line]]
"""The lines of text in an RGB picture, in no special order. May be called from several threads."""


def load_ocr() -> Ocr:
    """Raises UsageError: the extra is not installed."""
    if importlib.util.find_spec("rapidocr") is None:
        raise UsageError(
            "reading the text in pictures needs a package that is not installed: pip install 'mmsearch[ocr]'"
        )
    return read_lines


def read_lines(image: Image.Image) -> list[Line]:
    """The lines of text in a picture, by PP-OCR. One picture at a time: the model uses every core."""
    image = image.convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    with _reading:
        # Their order of channels is OpenCV's.
        found = _engine()(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
    if found.txts is None:
        return []
    size = np.array(image.size, dtype=np.float64)
    lines = []
    for text, score, corners in zip(found.txts, found.scores, found.boxes, strict=True):
        if score < MIN_CONFIDENCE or not any(map(str.isalnum, text)):
            continue
        places = np.clip(np.asarray(corners, dtype=np.float64) / size, 0, 1).round(4)  # (4, 2)
        (left, top), (right, bottom) = places.min(axis=0).tolist(), places.max(axis=0).tolist()
        lines.append(Line(" ".join(text.split()), (left, top, right, bottom)))
    return lines[:_LINES]


@lru_cache(maxsize=1)
def _engine() -> Any:
    from rapidocr import RapidOCR

    # Without the classifier of upside-down lines: a third of the time, and photographs are turned upright before.
    return RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})


def read_picture(ocr: Ocr, image: Image.Image, capacity: int, count_tokens: Callable[[str], int]) -> list[Passage]:
    """The text in a picture: a passage for each block of lines, with the box around it."""
    passages = []
    for block in _blocks(ocr(image)):
        left, top, right, bottom = zip(*(line.box for line in block), strict=True)
        where = Span(box=(min(left), min(top), max(right), max(bottom)))
        text = "\n".join(paragraphs(_words(block, image.size)))
        passages += [Passage(one, where, "ocr") for one in cut([text], capacity, count_tokens)]
    return passages


def read_page(
    ocr: Ocr, image: Image.Image, span: Span, capacity: int, count_tokens: Callable[[str], int]
) -> list[Passage]:
    """The text on a scanned page, in reading order as if it were printed there."""
    lines = ocr(image)
    return [Passage(text, span, "ocr") for text in cut(paragraphs(_words(lines, image.size)), capacity, count_tokens)]


def _words(lines: Sequence[Line], size: tuple[int, int]) -> list[Word]:
    width, height = size
    return [
        Word(line.text, line.box[0] * width, -line.box[3] * height, line.box[2] * width, -line.box[1] * height)
        for line in lines
    ]


def _blocks(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that stand close together: nearer to each other than one and a half times their height."""
    blocks: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: (line.box[1], line.box[0])):
        touching = [block for block in blocks if any(_near(line.box, other.box) for other in block)]
        merged = [one for block in touching for one in block] + [line]
        blocks = [block for block in blocks if block not in touching] + [merged]
    return sorted((sorted(block, key=lambda line: line.box[1]) for block in blocks), key=lambda block: block[0].box[1])


def _near(one: Box, other: Box) -> bool:
    reach = 1.5 * min(one[3] - one[1], other[3] - other[1])
    across = max(one[0], other[0]) - min(one[2], other[2])
    down = max(one[1], other[1]) - min(one[3], other[3])
    return down <= reach and across <= 2 * reach
