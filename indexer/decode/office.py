"""DOCX and PPTX: the words of a Word document and of the slides of a presentation, tables row by row.

This is the only module that knows python-docx and python-pptx, which resolve no entities and fetch nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from indexer.decode.archive import Archive
from indexer.decode.passages import of_pages
from indexer.decode.streams import Source
from indexer.decode.text import Passage
from indexer.errors import DecodeError
from indexer.extras import needs

MAX_BYTES = 300_000_000
"""An Office file above this is not read: the libraries hold it in memory, with its pictures."""

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def decode_docx(source: Source) -> Iterator[Passage]:
    """The passages of a Word document; ``page`` where Word noted when it last laid the text out.

    Raises DecodeError: the extra is not there, encrypted, damaged, too large.
    """
    with needs("documents", "DOCX"):
        import docx
    data = _data(source, "a Word document")
    try:
        body = docx.Document(io.BytesIO(data)).element.body
    except Exception as exc:  # KeyError, ValueError, lxml's errors: whatever a part that is missing leads to
        raise DecodeError(f"a Word document that is damaged: {exc}") from exc
    yield from of_pages(source, _docx_pages(body))


def decode_pptx(source: Source) -> Iterator[Passage]:
    """The passages of a presentation, slide by slide, with the speaker's notes.

    Raises DecodeError: the extra is not there, encrypted, damaged, too large.
    """
    with needs("documents", "PPTX"):
        import pptx
    data = _data(source, "a presentation")
    try:
        slides = list(pptx.Presentation(io.BytesIO(data)).slides)
    except Exception as exc:  # as above
        raise DecodeError(f"a presentation that is damaged: {exc}") from exc
    yield from of_pages(source, ((number, _slide(slide)) for number, slide in enumerate(slides, 1)))


def _data(source: Source, what: str) -> bytes:
    data = source.file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DecodeError(f"{what} of more than {MAX_BYTES // 1_000_000} MB is not read")
    with Archive(io.BytesIO(data), what) as archive:
        archive.check_markup()
    return data


# --- Word


def _docx_pages(body: Any) -> Iterator[tuple[int | None, list[str]]]:
    """The paragraphs of each page. A document that was never laid out is one without a number."""
    breaks = _W + "lastRenderedPageBreak"
    laid_out = next(body.iter(breaks), None) is not None
    number = 1
    paragraphs: list[str] = []
    for block in _docx_blocks(body):
        turned = sum(1 for _ in block.iter(breaks))
        text = _row_text(block) if block.tag == _W + "tr" else _paragraph_text(block)
        # A paragraph that goes over the end of a page belongs to the one on which it begins.
        first = next((e.tag for e in block.iter(breaks, _W + "t") if e.tag == breaks or e.text), None)
        if turned and first == breaks:
            yield (number if laid_out else None), paragraphs
            number, paragraphs = number + 1, []
            turned -= 1
        before = block.getprevious()
        if text and block.tag == _W + "tr" and paragraphs and before is not None and before.tag == _W + "tr":
            paragraphs[-1] += "\n" + text
        elif text:
            paragraphs.append(text)
        if turned:
            yield (number if laid_out else None), paragraphs
            number, paragraphs = number + turned, []
    yield (number if laid_out else None), paragraphs


def _docx_blocks(body: Any) -> Iterator[Any]:
    """Paragraphs and rows of tables in their order, those in content controls too; not what stands inside a row."""
    pending = [iter(body)]
    while pending:
        element = next(pending[-1], None)
        if element is None:
            pending.pop()
        elif element.tag in (_W + "p", _W + "tr"):
            yield element
        elif isinstance(element.tag, str):
            pending.append(iter(element))


def _paragraph_text(paragraph: Any) -> str:
    """The words of a paragraph, those of text boxes in it too; of a box that is there twice the newer one."""
    parts: list[str] = []
    for element in paragraph.iter():
        if element.tag == _W + "t" and not _in_fallback(element, paragraph):
            parts.append(element.text or "")
        elif element.tag in (_W + "tab", _W + "br", _W + "cr", _W + "p"):
            parts.append(" ")
    return " ".join("".join(parts).split())


def _in_fallback(element: Any, top: Any) -> bool:
    while element is not top:
        if element.tag.endswith("}Fallback"):
            return True
        element = element.getparent()
    return False


def _row_text(row: Any) -> str:
    cells = (" ".join(map(_paragraph_text, cell.iter(_W + "p"))).strip() for cell in row.iterchildren(_W + "tc"))
    return ", ".join(filter(None, cells))


# --- PowerPoint


def _slide(slide: Any) -> list[str]:
    paragraphs: list[str] = []
    for shape in _shapes(slide.shapes):
        if shape.has_text_frame:
            paragraphs += [" ".join(paragraph.text.split()) for paragraph in shape.text_frame.paragraphs]
        elif getattr(shape, "has_table", False):
            rows = (", ".join(filter(None, (" ".join(c.text.split()) for c in row.cells))) for row in shape.table.rows)
            paragraphs.append("\n".join(filter(None, rows)))
        elif getattr(shape, "has_chart", False):
            paragraphs.append(_chart(shape.chart))
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        notes = slide.notes_slide.notes_text_frame.paragraphs
        paragraphs += [" ".join(paragraph.text.split()) for paragraph in notes]
    return [text for text in paragraphs if text]


def _shapes(shapes: Any) -> Iterator[Any]:
    """Shapes from the top of the slide, those in groups where the group stands."""
    pending = [iter(shapes)]
    while pending:
        shape = next(pending[-1], None)
        if shape is None:
            pending.pop()
        elif hasattr(shape, "shapes"):
            pending.append(iter(shape.shapes))
        else:
            yield shape


def _chart(chart: Any) -> str:
    """A chart's title and the names of its series and categories."""
    names = [chart.chart_title.text_frame.text] if chart.has_title and chart.chart_title.has_text_frame else []
    for plot in chart.plots:
        names += [series.name for series in plot.series] + [str(category) for category in plot.categories]
    return ", ".join(" ".join(name.split()) for name in names if name)
