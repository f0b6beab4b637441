"""PDF: of each page its words, in reading order, and its look, which finds charts and scans.

One page at a time is in memory, and a page is drawn at the size that the model or the OCR takes, however large it says
it is. This is the only module that knows pypdfium2. PDFium knows no threads: everything that touches it holds one lock.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_double
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pypdfium2.raw as pdfium
from PIL import Image
from pypdfium2 import PdfDocument, PdfiumError, PdfPage, PdfTextPage

from indexer.decode.layout import Word, paragraphs
from indexer.decode.ocr import read_page
from indexer.decode.passages import cut
from indexer.decode.streams import Picture, Source
from indexer.decode.text import Passage
from indexer.errors import DecodeError
from indexer.types import Span

MAX_PAGES = 100_000
"""Pages of one file. A hostile page tree counts more in a few bytes."""
MAX_CHARACTERS = 200_000
"""Characters of one page that are read; a page of small print has 10,000."""
_SCAN = 25
"""A page with fewer letters than that is taken for a scan: a stamp or a page number is not what it says."""
_OCR_DPI = 150
_OCR_SIDE = 2000
"""How a page is drawn for the OCR: dots an inch, and the most pixels of its longer side."""
_LONGEST = 8
"""A page's longer side is drawn with at most so many times the model's size."""
_PAGE_NUMBER = re.compile(r"\W*\d{1,4}\W*")

_pdfium = threading.Lock()


def decode(source: Source) -> Iterator[Passage | Picture]:
    """The passages of each page, then its look, unless it is blank; a scan's words come from the OCR, if there is one.

    A page that cannot be read is reported and left out.

    Raises DecodeError: encrypted, not a PDF, damaged, or too many pages.
    """
    with _opened(source.file) as document:
        first, ordinal = 1, 0
        if source.stored and source.last is not None and source.last.page is not None:
            first, ordinal = source.last.page, source.page_begins
        with _pdfium:
            pages = len(document)
        if pages > MAX_PAGES:
            raise DecodeError(f"has {pages:,} pages; the limit is {MAX_PAGES:,}")
        for number in range(first, pages + 1):
            try:
                pieces = _page(document, number, number / pages, source)
            except (PdfiumError, ValueError) as exc:
                source.report(f"page {number} cannot be read: {exc}")
                continue
            for piece in pieces:
                if ordinal >= source.stored:
                    yield piece
                ordinal += 1


def still(path: str, span: Span, size: int) -> Image.Image:
    """The picture of a page."""
    with Path(path).open("rb") as file, _opened(file) as document, _pdfium:
        if span.page is None or span.page > len(document):
            raise DecodeError("the page is not there any more")
        try:
            return _drawn(document[span.page - 1], size)
        except (PdfiumError, ValueError) as exc:
            raise DecodeError(f"page {span.page} cannot be drawn: {exc}") from exc


@contextmanager
def _opened(file: BinaryIO) -> Iterator[PdfDocument]:
    head = file.read(1024)
    file.seek(0)
    if b"%PDF-" not in head:  # Adobe's readers, too, allow something before it
        raise DecodeError("not a PDF by its first bytes")
    try:
        with _pdfium:
            document = PdfDocument(file)
    except PdfiumError as exc:
        if exc.err_code == pdfium.FPDF_ERR_PASSWORD:
            raise DecodeError("it is encrypted and needs a password") from exc
        if exc.err_code == pdfium.FPDF_ERR_SECURITY:
            raise DecodeError("it is encrypted in a way that PDFium does not know") from exc
        raise DecodeError("it is damaged or cut short: PDFium finds no page in it") from exc
    try:
        yield document
    finally:
        with _pdfium:
            document.close()


def _page(document: PdfDocument, number: int, share: float, source: Source) -> list[Passage | Picture]:
    """The pieces of one page."""
    pieces: list[Passage | Picture] = []
    span = Span(page=number)
    with _pdfium:
        page = document[number - 1]
        try:
            found = [text for text in paragraphs(_words(page)) if not _PAGE_NUMBER.fullmatch(text)]
            look = _drawn(page, source.image_size)
            is_scan = sum(map(str.isalpha, "".join(found))) < _SCAN
            scan = _drawn(page, _OCR_SIDE, dpi=_OCR_DPI) if is_scan and source.ocr else None
        finally:
            page.close()
    pieces += [Passage(text, span) for text in cut(found, source.max_tokens, source.count_tokens)]
    pixels = np.asarray(look)  # (H, W, 3)
    blank = bool((pixels == pixels[0, 0]).all())
    if scan is not None and source.ocr and not blank:
        pieces += read_page(source.ocr, scan, span, source.max_tokens, source.count_tokens)
    if not blank:
        pieces.append(Picture(span, [source.prepare(look)], share=share))
    return pieces


def _drawn(page: PdfPage, size: int, *, dpi: float | None = None) -> Image.Image:
    """A page as a person sees it: its shorter side ``2 * size`` pixels, or at ``dpi`` but nowhere above ``size``."""
    width, height = page.get_size()
    if not (width > 0 and height > 0):
        raise ValueError("it has no area")
    if dpi is not None:
        scale = min(dpi / 72, size / max(width, height))
    else:
        scale = min(2 * size / min(width, height), _LONGEST * size / max(width, height))
    # A page that is all but a line still has a pixel.
    scale = max(scale, 1 / min(width, height)) if max(width, height) / min(width, height) < size else scale
    bitmap = page.render(scale=scale, rev_byteorder=True, limit_image_cache=True)
    try:
        return bitmap.to_pil().convert("RGB").copy()  # its own pixels: those of the bitmap are about to be freed
    finally:
        bitmap.close()


def _words(page: PdfPage) -> list[Word]:
    """Runs of characters without a gap, in the order in which the file draws them, with their places."""
    text = page.get_textpage()
    try:
        return list(_runs(text))
    finally:
        text.close()


def _runs(text: PdfTextPage) -> Iterator[Word]:
    run: list[str] = []
    left = bottom = right = top = slope = 0.0
    begin = (0.0, 0.0)
    box, x, y = pdfium.FS_RECTF(), c_double(), c_double()
    for i in range(min(text.count_chars(), MAX_CHARACTERS)):
        character = _character(pdfium.FPDFText_GetUnicode(text, i))
        # PDFium puts in the spaces and line ends that a file only means; they stand nowhere.
        if not character or character.isspace() or pdfium.FPDFText_IsGenerated(text, i) == 1:
            if character in ("\r", "\n") and run:
                yield Word("".join(run), left, bottom, right, top, slope)
                run = []
            elif run and character:
                run.append(character if not character.isspace() else " ")
            continue
        if not pdfium.FPDFText_GetLooseCharBox(text, i, byref(box)):
            continue
        if not pdfium.FPDFText_GetCharOrigin(text, i, byref(x), byref(y)):
            continue
        here = (box.left, box.bottom, box.right, box.top)
        height = max(here[3] - here[1], 1e-3)
        middle, before = (here[1] + here[3]) / 2, (bottom + top) / 2
        gap = here[0] - right
        if run and (gap > 0.7 * height or gap < -2 * height or abs(middle - before) > 0.5 * max(height, top - bottom)):
            yield Word("".join(run), left, bottom, right, top, slope)
            run = []
        if not run:
            left, bottom, right, top = here
            begin = (x.value, y.value)
        slope = (y.value - begin[1]) / (x.value - begin[0]) if x.value > begin[0] else 0.0
        run.append(character)
        right, bottom, top = max(right, here[2]), min(bottom, here[1]), max(top, here[3])
    if run:
        yield Word("".join(run), left, bottom, right, top, slope)


def _character(code: int) -> str:
    """A character; PDFium's mark for a hyphen at the end of a line as a hyphen, what is none as nothing."""
    if code in (2, 0xFFFE, 0xAD):
        return "-"
    if code == 0 or 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
        return ""
    return chr(code)
