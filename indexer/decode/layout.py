"""Reading order: the words on a page, each with its place, to paragraphs in the order in which a person reads them.

Columns of prose are read one after the other, tables row by row, whatever the order in which the file draws them. What
a page looks like is guessed from white space alone: a band of rows that share an empty gutter is columns where the text
beside it is as long as lines of prose are, and a table otherwise. Pure: numbers and strings in, strings out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, median_low

_GUTTER = 0.7
"""White between two columns or cells, in heights of a line; justified lines stretch their spaces to half of one."""
_CELL = 1.2
"""White between two cells on one line, in its heights: a word may stand further from the next than columns do."""
_PROSE = 18
"""Characters of the middle line of a column from which on it is prose and no cells."""
_PARAGRAPH = 1.55
"""The step from line to line, in the usual one, above which a new paragraph begins."""
_SPACED = 1.8
"""The largest usual step, in heights of a line: nobody prints more widely."""
_WINDOW = 3
"""Rows that must share a gutter before a band of rows without one ends."""


@dataclass(frozen=True, slots=True)
class Word:
    """Text without a gap in it, on one line. ``top`` is above ``bottom``: y grows upwards, as in PDF, in any unit."""

    text: str
    left: float
    bottom: float
    right: float
    top: float

    @property
    def middle(self) -> float:
        """The height on the page at which it stands."""
        return (self.bottom + self.top) / 2

    @property
    def height(self) -> float:
        """The height of its line."""
        return self.top - self.bottom


@dataclass(frozen=True, slots=True)
class _Line:
    """A line as read: its text and the height at which it stands."""

    text: str
    middle: float


def paragraphs(words: Sequence[Word]) -> list[str]:
    """The paragraphs of a page in reading order; the lines of each, and the rows of a table, end with a newline."""
    found: list[str] = []
    if not words:
        return found
    height = median(word.height for word in words)
    for block in _blocks(list(words)):
        step = min(_usual_step(block), _SPACED * height)
        lines: list[str] = []
        for i, line in enumerate(block):
            if lines and block[i - 1].middle - line.middle > _PARAGRAPH * step:
                found.append(_joined(lines))
                lines = []
            lines.append(line.text)
        if lines:
            found.append(_joined(lines))
    return [text for text in found if text.strip()]


def _blocks(words: list[Word]) -> Iterator[list[_Line]]:
    """Runs of lines that belong together, in order."""
    if not words:
        return
    height = median(word.height for word in words)
    for band in _bands(_rows(words), _GUTTER * height):
        inside = [word for row in band for word in row]
        gutters = _gutters(inside, _GUTTER * height)
        columns = _columns(inside, gutters)
        if len(columns) > 1 and len(band) > 1 and all(_is_prose(column) for column in columns):
            for column in columns:
                yield from _blocks(column)
        else:
            yield [_Line(_row_text(row), row[0].middle) for row in band]


def _rows(words: list[Word]) -> list[list[Word]]:
    """Words at one height, from the left; the rows from the top."""
    rows: list[list[Word]] = []
    for word in sorted(words, key=lambda word: (-word.middle, word.left)):
        if rows and abs(rows[-1][0].middle - word.middle) < 0.5 * min(rows[-1][0].height, word.height):
            rows[-1].append(word)
        else:
            rows.append([word])
    return [sorted(row, key=lambda word: word.left) for row in rows]


def _bands(rows: list[list[Word]], least: float) -> Iterator[list[list[Word]]]:
    """Rows divided wherever a gutter begins or ends."""
    band: list[list[Word]] = []
    inside: list[Word] = []
    shared = False
    for i, row in enumerate(rows):
        together = bool(_gutters(inside + row, least))
        window = [word for later in _near(rows[i : i + _WINDOW]) for word in later]
        begins = not shared and not together and bool(band) and bool(_gutters(window, least))
        if (shared and not together) or begins:
            yield band
            band, inside = [], []
            together = bool(_gutters(row, least))
        band.append(row)
        inside += row
        shared = together
    if band:
        yield band


def _near(rows: Sequence[list[Word]]) -> list[list[Word]]:
    """Those of the first rows that stand close below each other."""
    near = list(rows[:1])
    for row in rows[1:]:
        if near[-1][0].middle - row[0].middle > _SPACED * _PARAGRAPH * near[-1][0].height:
            break
        near.append(row)
    return near


def _gutters(words: Sequence[Word], least: float) -> list[tuple[float, float]]:
    """White from top to bottom, at least so wide, with words on both sides: its left and right edges."""
    gutters: list[tuple[float, float]] = []
    reached: float | None = None
    for word in sorted(words, key=lambda word: word.left):
        if reached is not None and word.left - reached >= least:
            gutters.append((reached, word.left))
        reached = word.right if reached is None else max(reached, word.right)
    return gutters


def _columns(words: list[Word], gutters: Sequence[tuple[float, float]]) -> list[list[Word]]:
    columns: list[list[Word]] = [[] for _ in range(len(gutters) + 1)]
    for word in words:
        columns[sum(word.left >= right for _, right in gutters)].append(word)
    return columns


def _is_prose(column: Sequence[Word]) -> bool:
    return median(sum(len(word.text) for word in row) for row in _rows(list(column))) >= _PROSE


def _row_text(row: Sequence[Word]) -> str:
    """A line; commas stand where white parts the cells of a table, and a semicolon at the end of such a row."""
    text = row[0].text.strip()
    cells = False
    for before, word in pairwise(row):
        apart = word.left - before.right >= _CELL * before.height
        cells |= apart
        text += (", " if apart and not text.endswith((",", ".", ":", ";")) else " ") + word.text.strip()
    return f"{text};" if cells and text[-1].isalnum() else text


def _usual_step(block: Sequence[_Line]) -> float:
    steps = [a.middle - b.middle for a, b in pairwise(block) if a.middle > b.middle]
    return median_low(steps) if steps else math.inf


def _joined(lines: Sequence[str]) -> str:
    """Lines with the words that were divided at their ends whole again."""
    text = ""
    for line in lines:
        divided = text.endswith("-") and len(text) > 1 and text[-2].isalpha() and line[:1].islower()
        text = text[:-1] + line if divided else f"{text}\n{line}" if text else line
    return text.removesuffix(";")
