"""Text inside pictures: read, placed, linked to its picture, looked for once, and only where it was asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder
from pdf_writer import pdf
from PIL import Image, ImageDraw, ImageFont

import mmsearch
from indexer.decode import Passage, Source, decode
from indexer.decode.ocr import Line, read_lines, read_picture
from indexer.errors import UsageError
from indexer.index import Index
from indexer.pipeline import update
from indexer.types import Span

SIGN = "Invoice 2024-113"


def count(text: str) -> int:
    return len(text.split()) + 2


def sign(text: str = SIGN, size: tuple[int, int] = (400, 200), at: tuple[int, int] = (40, 120)) -> Image.Image:
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).text(at, text, font=ImageFont.load_default(32), fill="black")
    return picture


class Reader:
    """Reads in every picture the same words, and counts the pictures."""

    def __init__(self, *lines: Line) -> None:
        self.lines = list(lines)
        self.pictures = 0

    def __call__(self, image: Image.Image) -> list[Line]:
        self.pictures += 1
        return self.lines


def test_a_sign_is_read_where_it_stands() -> None:
    (passage,) = read_picture(read_lines, sign(), 66, count)
    assert (passage.text, passage.source) == (SIGN, "ocr")
    assert passage.span.box is not None
    left, top, right, bottom = passage.span.box
    assert 0.05 < left < 0.12 and 0.55 < top < 0.68 and 0.6 < right < 0.85 and 0.72 < bottom < 0.9


def test_lines_near_each_other_are_one_passage() -> None:
    reader = Reader(
        Line("on two lines.", (0.1, 0.16, 0.5, 0.2)),
        Line("A notice", (0.1, 0.1, 0.4, 0.14)),
        Line("EXIT", (0.7, 0.8, 0.9, 0.9)),
    )
    assert read_picture(reader, Image.new("RGB", (100, 100)), 66, count) == [
        Passage("A notice on two lines.", Span(box=(0.1, 0.1, 0.5, 0.2)), "ocr"),
        Passage("EXIT", Span(box=(0.7, 0.8, 0.9, 0.9)), "ocr"),
    ]


def test_a_scanned_page_is_read_in_reading_order_and_a_printed_one_is_not() -> None:
    import io

    reader = Reader(Line("below", (0.1, 0.14, 0.5, 0.16)), Line("Above and", (0.1, 0.1, 0.5, 0.12)))
    printed = "BT /F 12 Tf 72 700 Td (Words that are printed on the page and no scan) Tj ET"

    def texts(data: bytes, with_ocr: bool = True) -> list[tuple[str, str | None]]:
        source = Source(
            "", io.BytesIO(data), ".pdf", np.asarray, 64, 66, count, print, ocr=reader if with_ocr else None
        )
        return [(one.text, one.source) for one in decode(source) if isinstance(one, Passage)]

    assert texts(pdf([[sign()], [printed]])) == [
        ("Above and below", "ocr"),
        ("Words that are printed on the page and no scan", None),
    ]
    assert reader.pictures == 1
    assert texts(pdf([[sign()]]), with_ocr=False) == []


def test_pictures_are_read_once_and_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    sign().save(folder / "a.png")
    (folder / "notes.txt").write_text("a red thing")
    (folder / "scan.pdf").write_bytes(pdf([[sign()]]))
    encoder, reader = ColourEncoder(), Reader(Line("a green exit", (0.1, 0.1, 0.4, 0.2)))
    index = Index.create(tmp_path / "index", encoder=encoder.name, fingerprint=encoder.fingerprint, dim=encoder.dim)
    assert update(index, encoder, [folder]).added == 3
    assert update(index, encoder, [folder]).unchanged == 3
    report = update(index, encoder, [folder], ocr=reader)
    assert (report.updated, report.unchanged, reader.pictures) == (2, 1, 2)
    report = update(index, encoder, [folder], ocr=reader)
    assert (report.updated, report.unchanged, reader.pictures) == (0, 3, 2)
    assert update(index, encoder, [folder]).unchanged == 3
    with mmsearch.open(tmp_path / "index", model=encoder) as library:
        found = {hit.path.name: hit for hit in library.query("green", k=9) if hit.path and hit.text == "a green exit"}
        assert found["a.png"].box == (0.1, 0.1, 0.4, 0.2)
        assert (found["a.png"].kind, found["a.png"].source) == ("image", "ocr")
        assert (found["scan.pdf"].kind, found["scan.pdf"].page) == ("text", 1)
        (folder / "a.png").unlink()
        library.index(folder)
        assert {hit.path.name for hit in library.query("green", k=9) if hit.path} == {"notes.txt", "scan.pdf"}
        assert library.verify().sound


def test_without_the_extra_it_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    sign().save(tmp_path / "photos" / "a.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        mmsearch.open(tmp_path / "index", model=ColourEncoder()) as library,
        pytest.raises(UsageError, match=r"pip install 'mmsearch\[ocr\]'"),
    ):
        library.index(tmp_path / "photos", ocr=True)
