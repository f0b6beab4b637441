"""Text inside pictures: screenshots, receipts, signs and scans to passages with the boxes that they stand in.

The models of PP-OCR are inside the package rapidocr (``pip install 'mmsearch[ocr]'``), which no other module knows.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain, product, starmap
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from indexer.decode.layout import Word, is_amount, is_prose, paragraphs, straight
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
    """A line of text in a picture, and its place: left, top, right, bottom as fractions of width and height.

    ``slope`` is by how many pixels it climbs for each one to the right.
    """

    text: str
    box: Box
    slope: float = 0.0


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
        corners = np.asarray(corners, dtype=np.float64)  # (4, 2), from the upper left one on, clockwise
        places = np.clip(corners / size, 0, 1).round(4)
        (left, top), (right, bottom) = places.min(axis=0).tolist(), places.max(axis=0).tolist()
        across, down = (corners[1] + corners[2] - corners[0] - corners[3]).tolist()
        slope = round(-down / across, 4) if across > 0 else 0.0
        lines.append(Line(" ".join(text.split()), (left, top, right, bottom), slope))
    return lines[:_LINES]


@lru_cache(maxsize=1)
def _engine() -> Any:
    from rapidocr import RapidOCR

    # Without the classifier of upside-down lines: a third of the time, and photographs are turned upright before.
    return RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})


def read_picture(ocr: Ocr, image: Image.Image, capacity: int, count_tokens: Callable[[str], int]) -> list[Passage]:
    """The text in a picture: a passage for each block of lines, with the box around it."""
    passages = []
    lines = sorted(ocr(image), key=lambda line: (line.box[1], line.box[0]))
    words = _words(lines, image.size)
    for block in _blocks(straight(words)):
        left, top, right, bottom = zip(*(lines[i].box for i in block), strict=True)
        where = Span(box=(min(left), min(top), max(right), max(bottom)))
        text = "\n".join(paragraphs([words[i] for i in block]))
        passages += [Passage(one, where, "ocr") for one in cut([text], capacity, count_tokens)]
    return passages


def read_page(
    ocr: Ocr, image: Image.Image, span: Span, capacity: int, count_tokens: Callable[[str], int]
) -> list[Passage]:
    """The text on a scanned page, in reading order as if it were printed there."""
    lines = ocr(image)
    return [Passage(text, span, "ocr") for text in cut(paragraphs(_words(lines, image.size)), capacity, count_tokens)]


def _words(lines: Sequence[Line], size: tuple[int, int]) -> list[Word]:
    """The lines in pixels; y grows upwards."""
    width, height = size
    return [
        Word(text, left * width, -bottom * height, right * width, -top * height, slope)
        for text, (left, top, right, bottom), slope in lines
    ]


def _blocks(lines: Sequence[Word]) -> list[list[int]]:
    """The places of lines that belong together, growing: those that stand close, and the columns of a table."""
    close = _merged(
        [[i] for i in range(len(lines))], lines, lambda one, other: any(starmap(_near, product(one, other)))
    )
    return sorted(map(sorted, _merged(close, lines, _are_columns)))


def _merged(
    groups: Sequence[list[int]], lines: Sequence[Word], together: Callable[[list[Word], list[Word]], bool]
) -> list[list[int]]:
    """Groups of places, those in one whose lines belong ``together``."""
    merged: list[list[int]] = []
    for group in groups:
        here = [lines[i] for i in group]
        joined = [other for other in merged if together([lines[i] for i in other], here)]
        merged = [other for other in merged if other not in joined] + [[*chain(*joined), *group]]
    return merged


def _near(one: Word, other: Word) -> bool:
    """Whether two lines stand nearer than one and a half heights above each other, or twice that beside each other."""
    reach = 1.5 * min(one.height, other.height)
    across = max(one.left, other.left) - min(one.right, other.right)
    down = max(one.bottom, other.bottom) - min(one.top, other.top)
    return down <= reach and across <= 2 * reach


def _are_columns(one: Sequence[Word], other: Sequence[Word]) -> bool:
    """Whether two blocks are columns of one table: amounts with what stands beside them, or rows of short cells."""
    rows = [(a, b) for a, b in product(one, other) if _on_one_line(a, b)]
    if not rows:
        return False
    if any(all(is_amount(cell.text) for cell in cells) for cells in zip(*rows, strict=True)):
        return True
    short = not any(is_prose(len(line.text) for line in block) for block in (one, other))
    return short and len(rows) >= max(2, min(len(one), len(other)))


def _on_one_line(one: Word, other: Word) -> bool:
    smaller, larger = sorted((one.height, other.height))
    return larger <= 2 * smaller and abs(one.middle - other.middle) < 0.5 * smaller
