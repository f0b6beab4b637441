"""Rows before columns in a table, columns before rows in prose: boxes as a printer or the OCR gives them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder
from pdf_writer import lines, pdf
from PIL import Image

import mmsearch
from indexer.decode import Passage, Source, decode
from indexer.decode.layout import Word, is_amount, paragraphs, straight
from indexer.decode.ocr import Line, read_picture

LEFT = "The harvest of the northern orchards was larger than in any year before and the growers kept it in barns"
RIGHT = "Prices fell in the towns along the river where merchants had bought too early and many of them went home"
ARTICLE = LEFT.split(), RIGHT.split()
RECEIPT = [("Bread", "3.20"), ("Milk 1.5 l", "1.49"), ("Cheese", "9.85"), ("TOTAL EUR", "14.54")]


def cell(text: str, left: float, line: int, *, right: float | None = None) -> Word:
    """Text on a line, from the top; letters are 6 wide and 10 high, lines 12 apart. It begins at ``left``, or ends at
    ``right``."""
    width = 6 * len(text)
    left = left if right is None else right - width
    return Word(text, left, -12 * line - 10, left + width, -12 * line)


def column(words: Sequence[str], left: float, first: int = 0, a_line: int = 4) -> list[Word]:
    """Prose of so many words a line."""
    starts = range(0, len(words), a_line)
    return [cell(" ".join(words[at : at + a_line]), left, first + i) for i, at in enumerate(starts)]


def receipt(first: int = 0, left: float = 0, right: float = 400) -> list[Word]:
    rows = enumerate(RECEIPT, first)
    return [word for i, (a, b) in rows for word in (cell(a, left, i), cell(b, 0, i, right=right))]


def askew(words: Sequence[Word], degrees: float) -> list[Word]:
    """The boxes around the words of a page that lies askew, each with the slope of its line."""
    slope = math.tan(math.radians(degrees))
    turned = []
    for word in words:
        up, climb = slope * (word.left + word.right) / 2, abs(slope) * (word.right - word.left) / 2
        turned.append(replace(word, bottom=word.bottom + up - climb, top=word.top + up + climb, slope=slope))
    return turned


def text(words: Sequence[Word]) -> str:
    return "\n".join(paragraphs(words))


TOTAL = "Bread, 3.20;\nMilk 1.5 l, 1.49;\nCheese, 9.85;\nTOTAL EUR, 14.54"


def test_a_receipt_is_rows_however_wide_its_gap() -> None:
    for right in (150, 400, 2000):
        assert text(receipt(right=right)) == TOTAL


def test_a_table_of_three_columns_and_numbers_that_end_below_each_other() -> None:
    rows = [("Item", "Units", "Price"), ("Copper pipe, bent by hand", "12", "1,204.50"), ("Brass valve", "3", "18.00")]
    words = [
        word
        for i, (a, b, c) in enumerate(rows)
        for word in (cell(a, 0, i), cell(b, 0, i, right=260), cell(c, 0, i, right=400))
    ]
    assert text(words) == "Item, Units, Price;\nCopper pipe, bent by hand, 12, 1,204.50;\nBrass valve, 3, 18.00"


def test_an_article_of_two_columns_is_read_column_by_column() -> None:
    read = text(column(ARTICLE[0], 0) + column(ARTICLE[1], 300))
    assert read.split() == ARTICLE[0] + ARTICLE[1]


def test_a_table_whose_gap_is_that_of_the_article_above_and_below() -> None:
    """Without the amounts, the white between the columns of the article would part the labels from them."""
    words = [
        *column(ARTICLE[0], 0),
        *column(ARTICLE[1], 300),
        *receipt(first=7, right=500),
        *column(ARTICLE[1], 0, 12),
        *column(ARTICLE[0], 300, 12),
    ]
    above, table, below = text(words).partition(TOTAL)
    assert (above.split(), table, below.split()) == (ARTICLE[0] + ARTICLE[1], TOTAL, ARTICLE[1] + ARTICLE[0])


def test_a_table_that_is_longer_than_the_article_around_it() -> None:
    words = [*column(ARTICLE[0], 0), *column(ARTICLE[1], 300)]
    words += [cell(f"Fee {i}", 0, 6 + i) for i in range(30)] + [cell(f"{i}.50", 0, 6 + i, right=500) for i in range(30)]
    read = text(words)
    assert read.split()[:40] == ARTICLE[0] + ARTICLE[1]
    assert "\nFee 29, 29.50" in read


def test_a_table_in_one_column_of_an_article() -> None:
    words = [*column(ARTICLE[0] * 2, 0), *column(ARTICLE[1], 300), *receipt(first=6, left=300, right=480)]
    left, right = text(words).split("Prices fell")
    assert left.split() == ARTICLE[0] * 2
    assert right.endswith("went home\n" + TOTAL)


@pytest.mark.parametrize("degrees", [-4, -1, 2, 5])
def test_pages_that_lie_askew(degrees: float) -> None:
    assert text(askew(receipt(), degrees)) == TOTAL
    read = text(askew(column(ARTICLE[0], 0) + column(ARTICLE[1], 300), degrees))
    assert read.split() == ARTICLE[0] + ARTICLE[1]


def test_straight_words_stand_where_they_stood() -> None:
    words = receipt()
    assert straight(words) == words
    for word, before in zip(straight(askew(words, 3)), words, strict=True):
        assert (word.left, word.right, word.slope) == (before.left, before.right, 0)
        assert (word.bottom, word.top) == pytest.approx((before.bottom, before.top), abs=1e-6)


def test_a_line_that_climbs_on_purpose_turns_no_page() -> None:
    words = [*receipt(), replace(cell("VERY MUCH REDUCED PRICES IN ALL OUR SHOPS", 0, 20), slope=1.0)]
    assert text(words).startswith(TOTAL)


def test_what_an_amount_is() -> None:
    assert [is_amount(one) for one in ("14.54", "EUR 14.54", "2 x 3.20", "-1 %")] == [True] * 4
    assert [is_amount(one) for one in ("12 High Street", "—", "Milk 1.5 litre", "")] == [False] * 4


# --- as passages


def count(text: str) -> int:
    return len(text.split()) + 2


def in_picture(words: Sequence[Word], width: float = 600, height: float = 400) -> list[str]:
    """What is read in a picture in which these words are found."""
    found = [
        Line(one.text, (one.left / width, -one.top / height, one.right / width, -one.bottom / height), one.slope)
        for one in words
    ]
    picture = Image.new("RGB", (int(width), int(height)))
    return [passage.text for passage in read_picture(lambda _: found, picture, 66, count)]


@pytest.mark.parametrize("degrees", [0, -2, 3])
def test_the_receipt_in_a_picture_is_one_passage_of_rows(degrees: float) -> None:
    words = askew([cell("CORNER SHOP", 40, 5), *receipt(first=6), cell("Thank you", 150, 16)], degrees)
    assert in_picture(words) == [
        "CORNER SHOP Bread, 3.20; Milk 1.5 l, 1.49; Cheese, 9.85; TOTAL EUR, 14.54",
        "Thank you",
    ]


def test_an_amount_alone_on_its_line_and_far_away_stands_with_its_label() -> None:
    words = [cell("TOTAL EUR", 0, 1), cell("14.54", 0, 1, right=590), cell("EXIT", 250, 9)]
    assert in_picture(words) == ["TOTAL EUR, 14.54", "EXIT"]


def test_labels_and_words_far_apart_are_a_table_and_two_columns_of_prose_are_not() -> None:
    words = [cell("Name", 0, 0), cell("City", 0, 1), cell("Anna Berg", 300, 0), cell("Porto", 300, 1)]
    assert in_picture(words) == ["Name, Anna Berg; City, Porto"]
    words = column(ARTICLE[0], 0) + column(ARTICLE[1], 300)
    assert in_picture(words) == [" ".join(ARTICLE[0]), " ".join(ARTICLE[1])]


def test_signs_side_by_side_are_two() -> None:
    big = Word("7", 300, -40, 340, -0)
    assert in_picture([cell("EXIT", 0, 1), cell("OPEN", 300, 1)]) == ["EXIT", "OPEN"]
    assert in_picture([cell("Harbour", 0, 1), big]) == ["7", "Harbour"]


def test_the_receipt_in_a_pdf_drawn_column_by_column_and_askew(tmp_path: Path) -> None:
    labels, amounts = zip(*RECEIPT, strict=True)
    drawn = f"{lines(60, 700, labels)}\n{lines(480, 700, amounts)}"
    slope = math.radians(3)
    turn = f"{math.cos(slope):.6f} {math.sin(slope):.6f} {-math.sin(slope):.6f} {math.cos(slope):.6f} 0 0 cm"
    for page in (drawn, f"q {turn} {drawn} Q"):
        source = Source("", io.BytesIO(pdf([[page]])), ".pdf", np.asarray, 64, 66, count, print)
        found = [one.text for one in decode(source) if isinstance(one, Passage)]
        assert found == [TOTAL.replace("\n", " ")]


def test_the_total_is_found_by_label_and_amount(tmp_path: Path) -> None:
    labels, amounts = zip(*RECEIPT, strict=True)
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "scan.pdf").write_bytes(pdf([[lines(60, 700, labels), lines(480, 700, amounts)]]))
    (folder / "other.txt").write_text("TOTAL EUR 41.45 and 14.54")
    with mmsearch.open(tmp_path / "index", model=ColourEncoder()) as library:
        library.index(folder)
        hits = library.query('"TOTAL EUR 14.54"', exact=True)
        assert [(hit.path and hit.path.name, hit.page) for hit in hits] == [("scan.pdf", 1)]
