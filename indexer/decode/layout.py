"""Reading order: the words on a page, each with its place, to paragraphs in the order in which a person reads them.

Columns of prose are read one after the other, tables row by row, whatever the order in which the file draws them. What
a page looks like is guessed from white space: a band of rows that share an empty gutter is columns where the text
beside it is as long as lines of prose are, and a table otherwise; rows one cell of which is an amount are a table also
where the gutter of an article runs on through them. A page that lies askew is turned straight before. Pure: numbers and
strings in, strings out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import itemgetter
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
_ASKEW = 0.2
"""Slope above which a line is written upwards on purpose."""
_WINDOW = 3
"""Rows that must share a gutter before a band of rows without one ends."""


@dataclass(frozen=True, slots=True)
class Word:
    """Text without a gap in it, on one line. ``top`` is above ``bottom``: y grows upwards, as in PDF, in any unit.

    ``slope`` is by how much its line climbs for each unit to the right.
    """

    text: str
    left: float
    bottom: float
    right: float
    top: float
    slope: float = 0.0

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
    words = straight(words)
    height = median(word.height for word in words)
    for block in _blocks(words):
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


def straight(words: Sequence[Word]) -> list[Word]:
    """The same words where they would stand if the lines, as most of their length says, did not slope."""
    sloping = sorted((word.slope, word.right - word.left) for word in words if abs(word.slope) < _ASKEW)
    half, slope = sum(width for _, width in sloping) / 2, 0.0
    for one, width in sloping:
        half, slope = half - width, one
        if half <= 0:
            break
    return [_turned(word, slope) for word in words] if slope else list(words)


def _turned(word: Word, slope: float) -> Word:
    """A word moved up or down to where its line begins, as high as its letters without the climb of its line."""
    climb = abs(slope) * (word.right - word.left)
    half = max(word.height - climb, word.height / 4) / 2
    middle = word.middle - slope * (word.left + word.right) / 2
    return replace(word, bottom=middle - half, top=middle + half, slope=0.0)


def is_amount(text: str) -> bool:
    """Whether half of the letters and digits are digits, as in "EUR 14.54" and "2 x 3.20"."""
    signs = [c for c in text if c.isalnum()]
    return any(map(str.isdigit, signs)) and 2 * sum(map(str.isdigit, signs)) >= len(signs)


def is_prose(lengths: Iterable[int]) -> bool:
    """Whether lines of so many characters are lines of a column and not cells of a table."""
    return median(lengths) >= _PROSE


def _blocks(words: list[Word]) -> Iterator[list[_Line]]:
    """Runs of lines that belong together, in order."""
    if not words:
        return
    least = _GUTTER * median(word.height for word in words)
    for band in _bands(_rows(words), least):
        # The gutter of the prose alone says whether an amount is a cell of a wide table or stands inside a column.
        plain = [
            row for row, inside in zip(band, _in_table(band, _gutters(_all(band), least)), strict=True) if not inside
        ]
        gutters = _gutters(_all(plain), least)
        columns = _columns(_all(plain), gutters)
        if len(plain) < 2 or len(columns) < 2 or not all(map(_is_prose, columns)):
            yield _read_across(band)
            continue
        for is_table, part in groupby(zip(_in_table(band, gutters), band, strict=True), itemgetter(0)):
            rows = [row for _, row in part]
            if is_table:
                yield _read_across(rows)
                continue
            for column in _columns(_all(rows), gutters):
                yield from _blocks(column)


def _all(rows: Iterable[list[Word]]) -> list[Word]:
    return [word for row in rows for word in row]


def _read_across(rows: Iterable[list[Word]]) -> list[_Line]:
    return [_Line(_row_text(row), row[0].middle) for row in rows]


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
    """Whether a column holds lines of prose, whatever the length of the labels with an amount apart among them."""
    rows = _rows(list(column))
    lines = [row for row in rows if len(row) == 1 or not any(is_amount(word.text) for word in row)]
    return is_prose(sum(len(word.text) for word in row) for row in lines or rows)


def _in_table(band: list[list[Word]], gutters: Sequence[tuple[float, float]]) -> list[bool]:
    """Which rows are those of a table: two with an amount in one of their cells, and the short ones close to them."""
    cells = [[cell for cell in _columns(row, gutters) if cell] for row in band]
    amounts = [len(row) > 1 and any(all(is_amount(word.text) for word in cell) for cell in row) for row in cells]
    short = [len(row) > 1 and all(sum(len(word.text) for word in cell) < _PROSE for cell in row) for row in cells]
    steps = [above[0].middle - below[0].middle for above, below in pairwise(band)]
    near = [step <= _PARAGRAPH * median_low(steps) for step in steps]
    inside = list(amounts)
    for i, close in enumerate(near):
        inside[i + 1] |= inside[i] and close and short[i + 1]
    for i, close in reversed(list(enumerate(near))):
        inside[i] |= inside[i + 1] and close and short[i]
    runs = [list(run) for _, run in groupby(range(len(band)), inside.__getitem__)]
    return [inside[i] and sum(amounts[j] for j in run) > 1 for run in runs for i in run]


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
