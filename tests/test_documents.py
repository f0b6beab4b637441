"""Documents: the words of PDF, Word, PowerPoint, HTML and EPUB in reading order, pages that are seen, hostile files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import docx
import numpy as np
import pptx
import pytest
from colour_encoder import ColourEncoder
from conftest import BLUE, RED, ROOT
from pdf_writer import HEIGHT, WIDTH, lines, pdf, rectangle, words
from PIL import Image
from pptx.util import Inches

import mmsearch
from indexer.decode import Passage, Picture, Source, archive, decode, markup, still
from indexer.decode.layout import Word, paragraphs
from indexer.errors import DecodeError
from indexer.index import Index
from indexer.pipeline import update
from indexer.types import Modality, Span

GUIDE = Path(__file__).with_name("media") / "fasta-guide.pdf"
LEFT = [
    "The harvest of the northern orchards was",
    "larger than in any year before, and the",
    "growers kept it in barns.",
]
RIGHT = [
    "Prices fell in the towns along the river,",
    "where merchants had bought too early, and",
    "many of them went home.",
]
TABLE = [("Item", "Units", "Price"), ("Copper pipe", "12", "4.50"), ("Brass valve", "3", "18.00")]


def table(x: float, y: float, rows: Sequence[Sequence[str]], step: float = 170) -> str:
    """A table that is drawn column by column, as some programs do."""
    return "\n".join(lines(x + i * step, y, column, step=16) for i, column in enumerate(zip(*rows, strict=True)))


def pieces(data: bytes | Path, suffix: str, **about: Any) -> list[Passage | Picture]:
    """All pieces of a file, with a model that takes 64 words."""
    stream = io.BytesIO(data if isinstance(data, bytes) else data.read_bytes())
    source = Source(
        "", stream, suffix, lambda image: np.asarray(image), 64, 66, lambda t: len(t.split()) + 2, print, **about
    )  # fmt: skip
    return list(decode(source))


def texts(data: bytes | Path, suffix: str) -> list[tuple[int | None, str]]:
    """Page and words of each passage."""
    return [(piece.span.page, piece.text) for piece in pieces(data, suffix) if isinstance(piece, Passage)]


LONG = "A paragraph of more than eight words stands alone in a passage."

# --- reading order


def test_a_word_at_a_time() -> None:
    """Three words of height 10: two lines of one paragraph, and one 40 further down."""
    page = [Word("one", 0, 90, 30, 100), Word("two", 0, 78, 30, 88), Word("three", 0, 30, 30, 40)]
    assert paragraphs(page[::-1]) == ["one\ntwo", "three"]


def test_columns_are_read_one_after_the_other_and_tables_row_by_row() -> None:
    pairs = enumerate(zip(LEFT, RIGHT, strict=True))
    across = "\n".join(f"{words(60, 700 - 14 * i, a)}\n{words(320, 700 - 14 * i, b)}" for i, (a, b) in pairs)
    title = words(60, 760, "Annual report of the orchards and of what was sold in the towns", 14)
    below = words(60, 640, "This line below both columns speaks of the table that follows it on the page.")
    assert texts(pdf([[title, across, below, table(60, 600, TABLE)]]), ".pdf") == [
        (1, "Annual report of the orchards and of what was sold in the towns"),
        (1, " ".join(LEFT)),
        (1, " ".join(RIGHT)),
        (1, "This line below both columns speaks of the table that follows it on the page."),
        (1, "Item, Units, Price; Copper pipe, 12, 4.50; Brass valve, 3, 18.00"),
    ]


def test_columns_whose_lines_stand_at_different_heights() -> None:
    data = pdf([[lines(60, 700, LEFT), lines(320, 693, RIGHT)]])
    assert [text for _, text in texts(data, ".pdf")] == [" ".join(LEFT), " ".join(RIGHT)]


def test_a_divided_word_is_whole_again_and_page_numbers_are_nothing() -> None:
    data = pdf([[lines(60, 700, ["The weather was excep-", "tional, well-known for it."]), words(290, 40, "- 17 -")]])
    assert texts(data, ".pdf") == [(1, "The weather was exceptional, well-known for it.")]


def test_a_real_guide() -> None:
    found = texts(GUIDE, ".pdf")
    assert {page for page, _ in found} == set(range(1, 9))
    on = {page: " ".join(text for at, text in found if at == page) for page in range(1, 9)}
    assert "that can be used to infer homology. The FASTA programs offer several advantages over BLAST:" in on[1]
    assert "tfastx36" in on[3] and "Table 1: Comparison programs in the FASTA36 package" in on[3]


# --- PDF


def test_pages_are_passages_and_pictures() -> None:
    half = Image.new("RGB", (10, 10), RED)
    half.paste(BLUE, (0, 5, 10, 10))
    blue = rectangle(0, 0, WIDTH, HEIGHT / 2, (0, 0, 1))
    first, look, scan = pieces(pdf([[words(72, 700, "red words"), blue], [], [half]]), ".pdf")
    assert isinstance(first, Passage) and (first.text, first.span) == ("red words", Span(page=1))
    assert isinstance(look, Picture) and isinstance(scan, Picture)
    assert (look.span, scan.span, len(look.frames), look.times) == (Span(page=1), Span(page=3), 1, ())
    assert look.frames[0].shape == (182, 128, 3)  # twice the model's 64 pixels on the shorter side
    assert tuple(look.frames[0][150, 64]) == BLUE and tuple(look.frames[0][40, 100]) == (255, 255, 255)
    assert tuple(scan.frames[0][40, 64]) == RED and tuple(scan.frames[0][150, 64]) == BLUE


def test_a_page_is_drawn_small_however_large_it_is() -> None:
    for size in ((200_000.0, 200_000.0), (14_400.0, 20.0), (3.0, 3.0)):
        (look,) = pieces(pdf([[rectangle(0, 0, size[0] / 2, size[1], (1, 0, 0))]], size), ".pdf")
        assert isinstance(look, Picture) and max(look.frames[0].shape) <= 8 * 64 + 1


def test_a_page_can_be_drawn_again(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(
        pdf([[rectangle(0, 0, WIDTH, 0.9 * HEIGHT, (1, 0, 0))], [rectangle(0, 0, WIDTH, 0.9 * HEIGHT, (0, 0, 1))]])
    )
    assert still(str(path), ".pdf", Span(page=2), 64).getpixel((20, 20)) == BLUE
    with pytest.raises(DecodeError, match="not there any more"):
        still(str(path), ".pdf", Span(page=3), 64)


def test_reading_goes_on_behind_every_piece_that_is_stored() -> None:
    parts = [[words(72, 700, f"page {n}"), words(72, 300, LONG)] for n in (1, 2, 3)]
    whole = pieces(pdf(parts), ".pdf")
    shown = [(one.span.page, one.text if isinstance(one, Passage) else "look") for one in whole]
    assert shown == [(n, text) for n in (1, 2, 3) for text in (f"page {n}", LONG, "look")]
    for stored in range(1, 10):
        last = whole[stored - 1].span
        begins = 3 * ((stored - 1) // 3)
        rest = pieces(pdf(parts), ".pdf", stored=stored, last=last, page_begins=begins)
        assert [(one.span.page, one.text if isinstance(one, Passage) else "look") for one in rest] == shown[stored:]


def test_several_threads(tmp_path: Path) -> None:
    """PDFium itself crashes when two threads are in it."""
    data, found = pdf([[words(72, 700, f"page {n}")] for n in range(20)]), []
    threads = [threading.Thread(target=lambda: found.append(texts(data, ".pdf"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[(n + 1, f"page {n}") for n in range(20)]] * 4


def test_ten_thousand_pages_are_read_one_at_a_time() -> None:
    data = pdf([[words(72, 700, f"page {n}")] for n in range(10_000)])
    source = Source("", io.BytesIO(data), ".pdf", lambda im: np.zeros(1), 8, 66, lambda t: len(t.split()) + 2, print,
                    stored=1, last=Span(page=9_999))  # fmt: skip
    first = next(iter(decode(source)))
    assert first.span.page == 9_999


ENCRYPTED = b"<< /Filter /Standard /V 1 /R 2 /O <" + b"28" * 32 + b"> /U <" + b"11" * 32 + b"> /P -4 /Length 40 >>"


def test_bad_files_say_what_is_wrong() -> None:
    sound = pdf([[words(72, 700, "hello")]])
    locked = sound.replace(b"/Root 1 0 R", b"/Root 1 0 R /ID [<00> <00>] /Encrypt " + ENCRYPTED)
    for data, reason in (
        (b"\x89PNG\r\n\x1a\n" * 9, "not a PDF by its first bytes"),
        (sound[:60], "damaged or cut short"),
        (locked, "encrypted and needs a password"),
    ):
        with pytest.raises(DecodeError, match=reason):
            pieces(data, ".pdf")
    rng = np.random.default_rng(7)
    whole = GUIDE.read_bytes()
    for cut in rng.integers(0, len(whole), 12):  # whatever is left of it: pieces, or a reason
        damaged = bytearray(whole[: int(cut)])
        for place in rng.integers(0, max(len(damaged), 1), 20):
            damaged[int(place) : int(place) + 1] = b"\xff"
        try:
            pieces(bytes(damaged), ".pdf")
        except DecodeError as exc:
            assert len(str(exc)) < 200


# --- Office


def word_file() -> bytes:
    document = docx.Document()
    document.add_heading("Minutes of the meeting of the garden club in the spring of this year", 1)
    document.add_paragraph("We bought two ladders and a wheelbarrow, and will build the shed in May before the rain.")
    rows = document.add_table(rows=2, cols=2).rows
    for row, cells in zip(rows, (("ladder", "80"), ("wheelbarrow", "45")), strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    document.add_paragraph("The next meeting is on the first Friday of the month, as always in the old school.")
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def slides() -> bytes:
    show = pptx.Presentation()
    for title, note in (("Our new pump", "Thank the sponsors."), ("Costs", "")):
        slide = show.slides.add_slide(show.slide_layouts[5])
        slide.shapes.title.text = title
        if note:
            slide.notes_slide.notes_text_frame.text = note
    cells = slide.shapes.add_table(2, 2, Inches(1), Inches(1), Inches(4), Inches(1)).table
    for (row, column), text in {(0, 0): "pump", (0, 1): "1200", (1, 0): "hose", (1, 1): "90"}.items():
        cells.cell(row, column).text = text
    out = io.BytesIO()
    show.save(out)
    return out.getvalue()


def test_word() -> None:
    assert texts(word_file(), ".docx") == [
        (None, "Minutes of the meeting of the garden club in the spring of this year"),
        (None, "We bought two ladders and a wheelbarrow, and will build the shed in May before the rain."),
        (None, "ladder, 80 wheelbarrow, 45"),
        (None, "The next meeting is on the first Friday of the month, as always in the old school."),
    ]


def test_slides() -> None:
    assert texts(slides(), ".pptx") == [(1, "Our new pump Thank the sponsors."), (2, "Costs pump, 1200 hose, 90")]


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("make", [word_file, slides])
def test_bad_office_files(make: Callable[[], bytes]) -> None:
    suffix = ".docx" if make is word_file else ".pptx"
    sound = make()
    for data, reason in (
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "encrypted, or from before Office 2007"),
        (sound[: len(sound) // 2], "damaged or cut short"),
        (b"%PDF-1.7", "by its first bytes"),
        (zipped({"a.txt": b"a"}), "is damaged"),
    ):
        with pytest.raises(DecodeError, match=reason):
            pieces(data, suffix)


def test_a_zip_bomb_is_refused_by_its_directory() -> None:
    bomb = zipped({"word/document.xml": b" " * 70_000_000})
    assert len(bomb) < 100_000
    with pytest.raises(DecodeError, match="takes 70 MB of markup; the limit is 64 MB"):
        pieces(bomb, ".docx")
    with pytest.raises(DecodeError, match="unpacks to 70 MB"), archive.Archive(io.BytesIO(bomb), "a zip") as file:
        file.read("word/document.xml")


def test_entities_of_a_document_are_not_resolved(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("swordfish")
    members = {}
    with zipfile.ZipFile(io.BytesIO(word_file())) as file:
        members = {name: file.read(name) for name in file.namelist()}
    xml = members["word/document.xml"].replace(
        b"<w:document", f'<!DOCTYPE d [<!ENTITY e SYSTEM "{secret.as_uri()}">]><w:document'.encode(), 1
    )
    members["word/document.xml"] = xml.replace(b"We bought", b"&e;We bought")
    assert "swordfish" not in str(texts(zipped(members), ".docx"))


# --- HTML and EPUB

PAGE = """<html><head><title>Soup</title><style>p {color: red}</style><script>alert("no")</script></head><body>
<h1>Pumpkin soup for a cold evening in November with friends and a fire</h1><p>Cut the <b>pump</b>kin, boil it for
twenty minutes &amp; stir<br>well.</p><noscript>no</noscript><img src=a.jpg alt="a bowl of soup">
<table><tr><td>pumpkin<td>1 kg<tr><td>cream<td>200 g</table></body></html>"""


def test_html() -> None:
    whole = " ".join(text for _, text in texts(PAGE.encode(), ".html"))
    assert whole == (
        "Soup Pumpkin soup for a cold evening in November with friends and a fire Cut the pumpkin, boil it for twenty "
        "minutes & stir well. a bowl of soup pumpkin, 1 kg cream, 200 g"
    )


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [("utf-8", ""), ("utf-16", ""), ("windows-1251", '<meta charset="windows-1251">'), ("koi8-r", "")],
)
def test_encodings(encoding: str, declared: str) -> None:
    said = "Съешь же ещё этих мягких французских булок да выпей чаю, сказал он и ушёл домой."
    data = f"<html>{declared}<p>{said}</p></html>".encode(encoding)
    assert texts(data, ".html") == [(None, said)]


def test_a_page_nested_beyond_reason() -> None:
    found = texts(b"<div>" * 100_000 + b"deep" + b"</div>" * 100_000 + b"<p>after", ".html")
    assert all(text in ("deep", "after", "deep after") for _, text in found)


def book(**more: bytes) -> dict[str, bytes]:
    return {
        "META-INF/container.xml": b'<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        b'<rootfile full-path="OEBPS/b.opf"/></rootfiles></container>',
        "OEBPS/b.opf": b'<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="two" href="two.xhtml"/>'
        b'<item id="one" href="text/one%201.xhtml"/></manifest><spine><itemref idref="one"/><itemref idref="two"/>'
        b"</spine></package>",
        "OEBPS/text/one 1.xhtml": b"<?xml version='1.0'?><html><body><p>It began in spring.</p></body></html>",
        "OEBPS/two.xhtml": b"<html><body><p>It ended in autumn.</p></body></html>",
    } | {name.replace("__", "/"): data for name, data in more.items()}


def test_a_book_is_read_by_its_spine() -> None:
    assert texts(zipped(book()), ".epub") == [(1, "It began in spring."), (2, "It ended in autumn.")]


def test_bad_books() -> None:
    locked = b'<e xmlns="http://www.w3.org/2001/04/xmlenc#"><CipherReference URI="OEBPS/two.xhtml"/></e>'
    laughs = b'<!DOCTYPE c [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "' + b"&a;" * 9 + b'">]><c>&b;</c>'
    for members, reason in (
        ({}, "META-INF/container.xml is missing"),
        (book() | {"META-INF/encryption.xml": locked}, "encrypted"),
        (book() | {"META-INF/container.xml": laughs}, "does not say where its book is"),
        (book() | {"OEBPS/b.opf": b"<package>"}, "is damaged"),
    ):
        with pytest.raises(DecodeError, match=reason):
            texts(zipped({"mimetype": b"application/epub+zip"} | members), ".epub")


def test_reading_of_texts_goes_on_behind_what_is_stored() -> None:
    for data, suffix in (
        (zipped(book()), ".epub"),
        (slides(), ".pptx"),
        (word_file(), ".docx"),
        (PAGE.encode(), ".html"),
    ):
        whole = pieces(data, suffix)
        assert pieces_equal(pieces(data, suffix, stored=1, last=whole[0].span), whole[1:])


def pieces_equal(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return [(one.text, one.span) for one in some] == [(one.text, one.span) for one in others]


def test_a_missing_extra_is_the_reason_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.html").write_text("<p>a red page</p>")
    index = Index.create(tmp_path / "index", encoder=ColourEncoder.name, fingerprint=ColourEncoder.fingerprint, dim=4)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "lxml", None)
        (skipped,) = update(index, ColourEncoder(), [tmp_path / "photos"]).skipped
    assert skipped.reason == "HTML needs a package that is not installed (lxml): pip install 'mmsearch[documents]'"
    assert update(index, ColourEncoder(), [tmp_path / "photos"]).added == 1


# --- in an index


def test_documents_come_move_change_and_go(tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(
        pdf([[words(72, 700, "a green thing")], [rectangle(0, 0, WIDTH, 0.9 * HEIGHT, (1, 0, 0))]])
    )
    with mmsearch.open(tmp_path / "index", model=ColourEncoder()) as library:
        assert library.index(folder).added == 1
        (hit, *_) = library.query("red", k=1)
        assert (hit.kind, hit.path, hit.page) == ("text", folder / "a.pdf", 2)
        (hit, *_) = library.query("green", k=1)
        assert (hit.page, hit.text) == (1, "a green thing")
        (folder / "a.pdf").rename(folder / "b.pdf")
        assert library.index(folder).moved == 1
        assert library.query("red", k=1)[0].path == folder / "b.pdf"
        (folder / "b.pdf").write_bytes(pdf([[words(72, 700, "a blue thing")]]))
        assert library.index(folder).updated == 1
        assert library.query("green", k=9)[0].text != "a green thing"
        (folder / "c.txt").write_text("a note")
        (folder / "b.pdf").unlink()
        assert library.index(folder).removed == 1
        assert library.status().items.get("image", 0) == 0
        assert library.verify().sound


class Interrupted(ColourEncoder):
    """Stops the run, as Ctrl-C does, after some batches of pictures."""

    def encode_prepared(self, batch: np.ndarray) -> np.ndarray:
        if self.images_seen >= 40:
            raise KeyboardInterrupt
        return super().encode_prepared(batch)


def test_a_run_that_was_stopped_in_the_middle_goes_on_at_its_page(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    data = pdf([[words(72, 700, f"page {n} red"), words(72, 600, LONG)] for n in range(1, 101)])
    (tmp_path / "papers" / "a.pdf").write_bytes(data)
    index = Index.create(tmp_path / "index", encoder=ColourEncoder.name, fingerprint=ColourEncoder.fingerprint, dim=4)
    with pytest.raises(KeyboardInterrupt):
        update(index, Interrupted(), [tmp_path / "papers"])
    assert 0 < len(whole_index(index)) < 300
    encoder = ColourEncoder()
    assert update(index, encoder, [tmp_path / "papers"]).updated == 1
    assert 0 < encoder.images_seen < 100
    pages = [(n, text) for n in range(1, 101) for text in (f"page {n} red", LONG, None)]
    assert sorted(whole_index(index), key=str) == sorted(pages, key=str)


def whole_index(index: Index) -> list[tuple[int | None, str | None]]:
    """Page and words of every piece."""
    with index.snapshot() as snapshot:
        return [
            (item.span.page if item.span else None, item.text)
            for m in Modality
            for item in snapshot.reader.items_at(m, range(snapshot.state.rows[m])).values()
        ]


def test_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "report.pdf").write_bytes(
        pdf([[words(72, 700, "The cat sleeps on the sofa.")], [words(72, 700, "Interest rates rose again in spring.")]])
    )
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MMSEARCH_INDEX": str(tmp_path / "index")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "mmsearch", *arguments]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)

    assert "skipped broken.pdf: it is damaged or cut short" in run("index", ".", "--no-tokens").stderr
    shown = run("query", "interest rates", "-k", "1", "--no-rerank").stdout
    assert "  text   report.pdf  page 2  Interest rates rose again in spring." in shown


def test_the_kinds_are_texts() -> None:
    from indexer.decode import modality_of

    assert {modality_of(f"a.{e}") for e in ("pdf", "docx", "PPTX", "html", "htm", "epub")} == {Modality.TEXT}
    assert markup.encoding_of(b'<meta charset="utf-16">a') == "utf-8"  # it could not be read if it were
