"""Texts: a stream of bytes to passages that fit a text tower, each with its lines, in bounded memory.

A passage is packed greedily from whole sentences of one paragraph; what does not fit is split at lines, then at words,
then inside a word. In tables every row is a passage of its own. White space inside a passage is single spaces.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import BinaryIO

from indexer.errors import DecodeError, UsageError
from indexer.types import Span

CAPTION_COLUMNS = frozenset({"caption", "captions", "comment", "description", "sentence", "text", "title"})
"""Names of columns that hold what a table says; the others are then left out."""

_BLOCK = 1 << 16  # bytes read at once, and the characters of a line or a paragraph that are held at once
_ROW = 1 << 17  # characters of one row of a table
_CHARACTERS_PER_TOKEN = 16  # a token stands for at most so many: some tokenizers count any long word as one


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that fits the text tower, and where in its file it stands; ``source`` as of an ``Item``."""

    text: str
    span: Span
    source: str | None = None


def iter_passages(
    stream: BinaryIO, *, suffix: str, capacity: int, count_tokens: Callable[[str], int]
) -> Iterator[Passage]:
    """The passages of a text, in order.

    ``stream`` stands at its beginning and needs nothing but ``read``; ``suffix`` is the file's extension with or
    without its dot (md and markdown, csv and tsv; anything else is plain text). ``count_tokens`` counts a text's tokens
    with the special ones and must not truncate; no passage has more than ``capacity`` of them, unless one single
    character does.

    Two paragraphs share a passage only where each of them fills at most an eighth of it: a title or a line of
    dialogue says little alone, and a longer paragraph is about something of its own.

    Bytes are UTF-8, or UTF-16 or UTF-32 where they start with a byte order mark, or else Windows-1252.

    Raises DecodeError: empty, not text, no words, or a table with a row beyond all measure; UsageError: no room for a
    single token. OSError of the stream passes through.
    """
    room = capacity - count_tokens("")
    if room < 1:
        raise UsageError(f"a capacity of {capacity} tokens leaves no room for words")
    suffix = suffix.lower().lstrip(".")
    packer = _Packer(room, count_tokens)
    text = decoded(stream)
    passages = (
        _table(text, "\t" if suffix == "tsv" else None, packer)
        if suffix in ("csv", "tsv")
        else _prose(_lines(text, _BLOCK), suffix in ("md", "markdown"), packer)
    )
    empty = True
    for passage in passages:
        empty = False
        yield passage
    if empty:
        raise DecodeError("the text holds no words")


# --- bytes to characters, characters to lines

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))


def decoded(stream: BinaryIO) -> Iterator[str]:
    """The text in blocks, every line ended by a single newline, NUL as a space."""
    first = b""
    while len(first) < _BLOCK and (more := stream.read(_BLOCK - len(first))):
        first += more
    if not first:
        raise DecodeError("the file is empty")
    # A byte that does not fit the encoding after the first block is a flaw in a text: it becomes a replacement mark.
    bare = codecs.getincrementaldecoder(_encoding(first, ended=len(first) < _BLOCK))("replace")
    decoder = io.IncrementalNewlineDecoder(bare, translate=True)
    yield decoder.decode(first).replace("\0", " ")
    while block := stream.read(_BLOCK):
        yield decoder.decode(block).replace("\0", " ")
    yield decoder.decode(b"", final=True)


def _encoding(first: bytes, *, ended: bool) -> str:
    for mark, encoding in _MARKS:
        if first.startswith(mark):
            return encoding
    if b"\0" in first:
        raise DecodeError("not text: it holds NUL bytes")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(first, final=ended)
    except UnicodeDecodeError:
        if 50 * (len(first) - len(first.translate(None, _CONTROLS))) > len(first):
            raise DecodeError("not text: it holds control characters") from None
        return "cp1252"
    return "utf-8"


def _lines(blocks: Iterator[str], limit: int) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines. One much longer than ``limit`` comes in parts, cut at a space where it has any."""
    number, rest = 1, ""
    for block in blocks:
        *whole, rest = (rest + block).split("\n")
        for line in whole:
            yield number, line
            number += 1
        while len(rest) > limit:
            cut = max(rest.rfind(" ", 0, limit), rest.rfind("\t", 0, limit)) + 1 or limit
            yield number, rest[:cut]
            rest = rest[cut:]
    if rest:
        yield number, rest


# --- packing


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is never divided any more: it fits. ``glue`` stands between it and the piece before."""

    text: str
    glue: str
    tokens: int
    span: Span


class _Packer:
    """Divides texts into pieces that fit ``room`` tokens, and packs pieces into passages."""

    def __init__(self, room: int, count_tokens: Callable[[str], int]) -> None:
        self.room = room
        self._count_tokens = count_tokens
        self._special = count_tokens("")
        self._pieces: list[_Piece] = []
        self._tokens = 0

    def add(self, piece: _Piece) -> Iterator[Passage]:
        """Put the piece into the passage at hand; where that is full, it comes out and the piece begins the next."""
        if self._tokens + piece.tokens > self.room:
            yield from self.flush()
        self._pieces.append(piece)
        self._tokens += piece.tokens

    def flush(self) -> Iterator[Passage]:
        pieces, self._pieces, self._tokens = self._pieces, [], 0
        if pieces:
            yield from self._passages(pieces)

    def _passages(self, pieces: list[_Piece]) -> Iterator[Passage]:
        """One passage; more than one in the rare case that a whole counts more tokens than its parts together."""
        text = "".join(chain.from_iterable((piece.glue, piece.text) for piece in pieces)).lstrip()
        if len(pieces) > 1 and self._measure(text) > self.room:
            middle = len(pieces) // 2
            yield from self._passages(pieces[:middle])
            yield from self._passages(pieces[middle:])
        else:
            yield Passage(text, replace(pieces[0].span, last_line=pieces[-1].span.last_line))

    def pieces(self, text: str, span: Callable[[int, int], Span]) -> Iterator[_Piece]:
        """``text`` in pieces; ``span(start, end)`` gives the lines of its characters ``start`` to ``end``."""
        before = 0
        for start, end, tokens in self._divided(text, 0, len(text), _SENTENCE_END):
            glue = " " if start == 0 or start > before else ""
            yield _Piece(" ".join(text[start:end].split()), glue, tokens, span(start, end))
            before = end

    def _divided(
        self, text: str, start: int, end: int, boundary: re.Pattern[str] | None
    ) -> Iterator[tuple[int, int, int]]:
        """Ranges of ``text[start:end]`` that fit, without the space around them, and their tokens.

        What does not fit is divided at ``boundary``: at the ends of sentences, then of lines, then (None) in as many
        equal parts as it should take, at a space if there is one.
        """
        start, end = _stripped(text, start, end)
        if start == end:
            return
        tokens = self._measure(" ".join(text[start:end].split()))
        if tokens <= self.room or end - start == 1:
            yield start, end, tokens
            return
        edges: list[int] = []
        while boundary and not edges:
            edges = [match.end() for match in boundary.finditer(text, start, end) if match.end() < end]
            boundary = _LINE_END if boundary is _SENTENCE_END else None
        if not edges:
            words = [match.end() for match in _SPACE.finditer(text, start, end)]
            cuts = words or range(start + 1, end)
            parts = min(-(-tokens // self.room), len(cuts) + 1)
            edges = [cuts[len(cuts) * part // parts] for part in range(1, parts)]
        for left, right in zip([start, *edges], [*edges, end], strict=True):
            yield from self._divided(text, left, right, boundary)

    def _measure(self, text: str) -> int:
        """Tokens of a text without the special ones; of one that is far too long, a number that is far too large."""
        least = -(-len(text) // _CHARACTERS_PER_TOKEN)
        return least if least > self.room else max(least, self._count_tokens(text) - self._special)


_SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*\s+|[。！？]+[」』”’）]*""")
_LINE_END = re.compile(r"\n")
_SPACE = re.compile(r"\s+")


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


# --- prose


@dataclass(slots=True)
class _Paragraph:
    """Lines without a blank one between; ``continues`` marks the later parts of one too long to be held at once."""

    lines: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    heading: bool = False
    continues: bool = False
    characters: int = 0

    def add(self, number: int, line: str) -> None:
        self.lines.append(line)
        self.numbers.append(number)
        self.characters += len(line) + 1


def _prose(lines: Iterator[tuple[int, str]], markdown: bool, packer: _Packer) -> Iterator[Passage]:
    after_heading = all_short = False
    for paragraph in _paragraphs(lines, markdown):
        starts = [0]
        for line in paragraph.lines:
            starts.append(starts[-1] + len(line) + 1)

        def span(start: int, end: int, starts: list[int] = starts, numbers: list[int] = paragraph.numbers) -> Span:
            return Span(numbers[bisect_right(starts, start) - 1], numbers[bisect_right(starts, end - 1) - 1])

        pieces = list(packer.pieces("\n".join(paragraph.lines), span))
        short = 8 * sum(piece.tokens for piece in pieces) <= packer.room
        joined = after_heading or (all_short and short and not paragraph.heading)
        if not (joined or paragraph.continues):
            yield from packer.flush()
            all_short = True
        for piece in pieces:
            yield from packer.add(piece)
        all_short = all_short and short
        after_heading = paragraph.heading
    yield from packer.flush()


_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]+(.*?))??[ \t]*(?:[ \t]#+[ \t]*)?$")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)\s*$")
_RULE = re.compile(r" {0,3}(?:[-*_][ \t]*){3,}$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_FRONT = re.compile(r"(-{3})\s*$|" + _FENCE.pattern)
_TARGET = r"\((?:[^()\s]|\([^()\s]*\))*(?:\s+(?:\"[^\"]*\"|'[^']*'))?\)"
_IMAGE = re.compile(rf"!\[([^\[\]]*)\]{_TARGET}")
_LINK = re.compile(rf"\[([^\[\]]*)\](?:{_TARGET}|\[[^\[\]]*\])")


def _paragraphs(lines: Iterator[tuple[int, str]], markdown: bool) -> Iterator[_Paragraph]:
    """Paragraphs, a heading of Markdown being one of its own; fences and rules only divide."""
    paragraph, fence = _Paragraph(), ""
    for number, line in lines:
        heading = False
        if fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                line = fence = ""
        elif markdown:
            if opened := (_FRONT if number == 1 else _FENCE).match(line):
                line, fence = "", opened[opened.lastindex or 1]
            elif _UNDERLINE.match(line) or _RULE.match(line):
                paragraph.heading = bool(paragraph.lines and _UNDERLINE.match(line))
                line = ""
            elif title := _HEADING.match(line):
                line, heading = title[1] or "", True
            line = _LINK.sub(r"\1", _IMAGE.sub(r"\1", line))
        blank = not line or line.isspace()
        if blank and not (paragraph.lines or paragraph.continues):
            continue
        if blank or heading:
            if paragraph.lines:
                yield paragraph
            paragraph = _Paragraph(heading=heading and not blank)
        if blank:
            continue
        paragraph.add(number, line)
        if heading or paragraph.characters > _BLOCK:
            yield paragraph
            paragraph = _Paragraph(continues=not heading)
    if paragraph.lines:
        yield paragraph


# --- tables


_FILE_NAME = re.compile(r"\S+\.[A-Za-z]\w{1,4}(?:#\d+)?")  # Flickr8k numbers its captions: 1000268201.jpg#0


def _table(text: Iterator[str], delimiter: str | None, packer: _Packer) -> Iterator[Passage]:
    """A passage a row: of its caption columns where the first row names one, else of every cell with a letter."""
    lines = _single(_lines(text, _ROW))
    head = list(islice(lines, 20))
    delimiter = delimiter or _delimiter(head)
    reader = csv.reader(chain(head, lines), delimiter=delimiter)
    header: list[str] | None = None
    while True:
        first_line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as exc:
            raise DecodeError(
                f"the row on line {first_line} is too long ({exc}); is a quotation mark left open there?"
            ) from exc
        if row is None:
            return
        if not row:
            continue
        if header is None:
            names = [cell.strip().casefold() for cell in row]
            header = names if CAPTION_COLUMNS.intersection(names) else []
            if header:
                continue
        span = Span(first_line, reader.line_num)
        cells = _captions(row, header, delimiter) if header else _worded(row)
        for piece in packer.pieces(", ".join(cells), lambda *_, span=span: span):
            yield from packer.add(piece)
        yield from packer.flush()


def _captions(row: list[str], header: list[str], delimiter: str) -> list[str]:
    if len(row) > len(header):  # a caption with bare commas, in the last column
        row = [*row[: len(header) - 1], delimiter.join(row[len(header) - 1 :])]
    return [cell.strip() for name, cell in zip(header, row, strict=False) if name in CAPTION_COLUMNS and cell.strip()]


def _worded(row: list[str]) -> list[str]:
    worded = [cell.strip() for cell in row if any(map(str.isalpha, cell))]
    return [cell for cell in worded if not _FILE_NAME.fullmatch(cell)] or worded


def _single(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    """Lines for the csv module, which counts them itself; one that came in parts cannot be a row."""
    before = 0
    for number, line in lines:
        if number == before:
            raise DecodeError(f"line {number} is longer than {_ROW:,} characters: too long for the row of a table")
        yield line + "\n"
        before = number


def _delimiter(head: list[str]) -> str:
    """Whichever of , ; tab | divides most of the first rows into the same number of cells, more than one."""

    def agreement(delimiter: str) -> tuple[float, int]:
        try:
            widths = [len(row) for row in csv.reader(head, delimiter=delimiter) if row]
        except csv.Error:
            return 0.0, 0
        if not widths or widths[0] == 1:
            return 0.0, 0
        return widths.count(widths[0]) / len(widths), widths[0]

    return max(",;\t|", key=agreement)
