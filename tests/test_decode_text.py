"""Texts to passages: packing, lines, encodings, tables, and files of any size in bounded memory.

Tokens are words here, plus two special ones as in BERT, so that a capacity can be checked by counting on fingers.
"""

from __future__ import annotations

import codecs
import csv
import io
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer.decode import Passage, iter_passages, text
from indexer.errors import DecodeError, UsageError
from indexer.types import Span


def count_words(passage: str) -> int:
    return len(passage.split()) + 2


def count_letters(passage: str) -> int:
    """As a tokenizer that knows no word: every letter is a token."""
    return sum(not letter.isspace() for letter in passage)


def passages(
    content: bytes | str, suffix: str = ".txt", room: int = 6, count: Callable[[str], int] = count_words
) -> list[Passage]:
    stream = io.BytesIO(content.encode() if isinstance(content, str) else content)
    return list(iter_passages(stream, suffix=suffix, capacity=room + count(""), count_tokens=count))


def told(content: bytes | str, suffix: str = ".txt", room: int = 6) -> list[tuple[str, int, int]]:
    found = passages(content, suffix, room)
    return [(passage.text, passage.span.first_line, passage.span.last_line) for passage in found]


# --- prose


def test_sentences_are_packed_whole_and_know_their_lines() -> None:
    """Six words a passage: 3 + 3 fit; 4 do not fit after them; 4 + 2 fit, across a line end."""
    content = "One two three. Four\nfive six! Seven eight nine\nten? Eleven twelve."
    assert told(content) == [
        ("One two three. Four five six!", 1, 2),
        ("Seven eight nine ten? Eleven twelve.", 2, 3),
    ]


def test_a_sentence_too_long_is_split_at_lines_then_at_words_then_inside_a_word() -> None:
    assert told("a b c d\ne f g h", room=6) == [("a b c d", 1, 1), ("e f g h", 2, 2)]
    assert told("a b c d e f g h i j", room=6) == [("a b c d e", 1, 1), ("f g h i j", 1, 1)]
    whole = "x" * 100 + "y" * 20
    cut = passages(f"see\n{whole}\nend", room=20, count=count_letters)
    assert "".join(passage.text.replace(" ", "") for passage in cut) == f"see{whole}end"
    assert max(count_letters(passage.text) for passage in cut) <= 20
    assert [passage.span for passage in cut][1:-1] == [Span(2, 2)] * (len(cut) - 2)


def test_a_word_that_the_tokenizer_takes_for_one_token_is_cut_all_the_same() -> None:
    """WordPiece makes one unknown token of any long word; 16 characters stand for a token at most."""
    found = passages("w" * 1000, room=10)
    assert "".join(passage.text for passage in found) == "w" * 1000
    assert max(len(passage.text) for passage in found) == 1000 // 7 + 1  # ceil(1000 / 16) = 63 tokens: 7 parts of 143


def test_only_short_paragraphs_share_a_passage() -> None:
    """Room for 32: up to 4 words is short. The title and the two lines of dialogue join; the long paragraphs do not."""
    long = "This paragraph of nine words is about something."
    content = f"A Title\n\n— Yes.\n\n— No, never.\n\n{long}\n\n\n \n{long}\n\nThe end.\n"
    assert told(content, room=32) == [
        ("A Title — Yes. — No, never.", 1, 5),
        (long, 7, 7),
        (long, 11, 11),
        ("The end.", 13, 13),
    ]


def test_the_short_end_of_a_long_paragraph_is_not_a_short_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paragraph longer than a block comes in parts; what is left of this one is its last line."""
    monkeypatch.setattr(text, "_BLOCK", 50)
    content = (
        "Nine words stand on the first of the lines,\nnine words stand on the second of the lines,\nend.\n\nShort.\n"
    )
    assert told(content, room=32) == [(" ".join(content[:-8].split()), 1, 3), ("Short.", 5, 5)]


def test_full_stops_of_chinese_and_japanese_end_a_sentence() -> None:
    found = passages("我喜欢猫。你喜欢狗。\n他喜欢鸟！", room=10, count=count_letters)
    assert [(passage.text, passage.span) for passage in found] == [
        ("我喜欢猫。你喜欢狗。", Span(1, 1)),
        ("他喜欢鸟！", Span(2, 2)),
    ]


def test_a_tokenizer_whose_whole_is_more_than_its_parts_never_overfills() -> None:
    def quadratic(passage: str) -> int:
        return len(passage.split()) ** 2

    found = passages("a. b. c. d. e. f. g.", room=9, count=quadratic)
    assert [passage.text for passage in found] == [
        "a. b. c.",
        "d. e.",
        "f. g.",
    ]  # 49 tokens; then 9 and 16; then 4 and 4


def test_no_room_for_words_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="2 tokens"):
        list(iter_passages(io.BytesIO(b"a"), suffix="txt", capacity=2, count_tokens=count_words))


def test_tokens_are_counted_once_a_sentence_and_once_a_passage() -> None:
    calls: list[str] = []

    def counted(passage: str) -> int:
        calls.append(passage)
        return count_words(passage)

    content = "\n".join(f"Sentence number {number} of six words." for number in range(500))
    found = passages(content, room=60, count=counted)
    assert len(found) == 50
    assert len(calls) <= 500 + 50 + 5


WORDS = st.text(st.sampled_from('ab.!? \n\t\r\fé。’"1\u2028\x85'), max_size=120)


@given(content=WORDS, room=st.integers(1, 12), letters=st.booleans(), block=st.sampled_from([7, 40, 1 << 16]))
@example(content="a\r\nb\rc\n\nd", room=1, letters=False, block=7)
@settings(deadline=None, max_examples=400)
def test_no_word_is_lost_none_is_moved_and_nothing_is_too_long(
    content: str, room: int, letters: bool, block: int
) -> None:
    """The plain twin walks over the characters and notes the line of each one that is not white space.

    The block is made small so that long lines and long paragraphs come in parts.
    """
    line, twin = 1, []
    for letter in content.replace("\r\n", "\n").replace("\r", "\n"):
        if not letter.isspace():
            twin.append((letter, line))
        line += letter == "\n"
    count = count_letters if letters else count_words
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK", block)
        if not twin:
            with pytest.raises(DecodeError):
                passages(content, room=room, count=count)
            return
        found = passages(content, room=room, count=count)
    position = 0
    for passage in found:
        letters_of = "".join(passage.text.split())
        lines = twin[position : position + len(letters_of)]
        assert "".join(letter for letter, _ in lines) == letters_of
        assert passage.span == Span(lines[0][1], lines[-1][1])
        assert count(passage.text) <= room + count("")
        assert passage.text == " ".join(passage.text.split())
        position += len(letters_of)
    assert position == len(twin)


@given(words=st.lists(st.text("abc.!?", min_size=1, max_size=8), min_size=1, max_size=60), room=st.integers(1, 12))
@settings(deadline=None)
def test_words_that_fit_are_never_cut(words: list[str], room: int) -> None:
    content = "".join(word + "\n  \t\n"[index % 4 : index % 4 + 2] for index, word in enumerate(words))
    assert [word for passage in passages(content, room=room) for word in passage.text.split()] == content.split()


# --- markdown


def test_markdown_headings_begin_a_passage_and_links_become_their_words() -> None:
    content = """---
title: about cats
---
# All about [cats](https://example.org/a_(b) "t") #

## Fur
It is soft, see ![a soft cat](cat.png) and [![badge](b.svg)](c) and [this][ref].

Second paragraph about claws and how they are used every day.

Paws
----
Four.

```md
# no heading [a](b)
```
* * *
# Last
"""
    assert told(content, ".md", room=24) == [
        ("title: about cats", 2, 2),
        ("All about cats Fur It is soft, see a soft cat and badge and this.", 4, 7),
        ("Second paragraph about claws and how they are used every day.", 9, 9),
        ("Paws Four.", 11, 13),
        ("# no heading [a](b)", 16, 16),
        ("Last", 19, 19),
    ]
    assert told("# a [b](c)", "txt") == [("# a [b](c)", 1, 1)]


@pytest.mark.parametrize("unit", ["[a](", "![", "# #", "[x](y ", "- -x", "` `", "[[x]"])
def test_markdown_that_never_closes_takes_linear_time(unit: str) -> None:
    begin = time.perf_counter()
    found = passages("x " + unit * 16_000, "md", room=200)
    assert time.perf_counter() - begin < 5  # one that is quadratic takes minutes
    assert "".join(passage.text for passage in found).replace(" ", "") == ("x" + unit * 16_000).replace(" ", "")


# --- tables


@pytest.mark.parametrize(
    ("suffix", "content", "rows"),
    [
        ("csv", 'image,caption\na.jpg,"A dog, running"\nb.jpg,A cat\n', [("A dog, running", 2, 2), ("A cat", 3, 3)]),
        ("csv", "image,caption\na.jpg,A dog, running, fast\n", [("A dog, running, fast", 2, 2)]),
        ("csv", "Title;id;DESCRIPTION\nRex;7;a dog\n;8;no name\n", [("Rex, a dog", 2, 2), ("no name", 3, 3)]),
        ("csv", 'caption\n"two\nlines"\n\nthree\n', [("two lines", 2, 3), ("three", 5, 5)]),
        ("csv", "a.jpg|A dog, a cat|3\nb.jpg|Two|4\n", [("A dog, a cat", 1, 1), ("Two", 2, 2)]),
        ("csv", "1,one,uno\n2,two,\n", [("one, uno", 1, 1), ("two", 2, 2)]),
        ("csv", "just.jpg\n12\n", [("just.jpg", 1, 1)]),
        ("csv", "\ufeffcaption,x\nfirst,1\n", [("first", 2, 2)]),
        ("tsv", 'a.jpg#0\tA dog, "barking"\na.jpg#1\tAn animal\r\n', [('A dog, "barking"', 1, 1), ("An animal", 2, 2)]),
        (".TSV", "caption\timage\nA dog\ta.jpg\n", [("A dog", 2, 2)]),
    ],
)
def test_a_row_is_a_passage_of_what_it_says(suffix: str, content: str, rows: list[tuple[str, int, int]]) -> None:
    assert told(content, suffix) == rows


def test_a_long_row_is_split_and_keeps_its_lines() -> None:
    assert told('caption\n"a b c d.\ne f g h i j k"\n', "csv") == [
        ("a b c d.", 2, 3),
        ("e f g h", 2, 3),
        ("i j k", 2, 3),
    ]


@given(
    rows=st.lists(
        st.lists(st.text('ab,;"\n ', min_size=1, max_size=12), min_size=2, max_size=2), min_size=1, max_size=9
    )
)
@settings(deadline=None)
def test_rows_written_by_the_csv_module_come_back(rows: list[list[str]]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([["caption", "other"], *rows])
    wanted = [" ".join(row[0].split()) for row in rows if row[0].strip()]
    if wanted:
        assert [passage.text for passage in passages(table.getvalue(), "csv", room=30)] == wanted


def test_a_quotation_mark_left_open_is_said_with_its_line() -> None:
    with pytest.raises(DecodeError, match=r"row on line 3 .* quotation mark"):
        passages('caption,n\nfine,1\n"never closed,2\n' + "more and more,3\n" * 20_000, "csv")


def test_a_line_too_long_for_a_row_is_said() -> None:
    with pytest.raises(DecodeError, match="line 2 is longer than 131,072 characters"):
        passages("caption\n" + "a," * 300_000, "csv")


# --- bytes


@pytest.mark.parametrize(
    "content",
    [
        "Grüße, 猫.".encode(),
        codecs.BOM_UTF8 + "Grüße, 猫.".encode(),
        "Grüße, 猫.".encode("utf-16"),
        codecs.BOM_UTF16_BE + "Grüße, 猫.".encode("utf-16-be"),
        "Grüße, 猫.".encode("utf-32"),
        codecs.BOM_UTF32_BE + "Grüße, 猫.".encode("utf-32-be"),
    ],
)
def test_unicode_in_every_form(content: bytes) -> None:
    assert told(content) == [("Grüße, 猫.", 1, 1)]


def test_windows_text_and_a_bad_byte_far_into_a_good_one() -> None:
    assert told("Grüße – “schön”".encode("cp1252")) == [("Grüße – “schön”", 1, 1)]
    start = "ok. " * 20_000
    assert passages(start.encode() + b"caf\xe9", room=6)[-1].text == "ok. ok. caf\ufffd"


def test_a_character_cut_by_the_end_of_the_first_block_is_no_flaw() -> None:
    content = "x" * 65_535 + "é" + " and more"
    assert passages(content, room=9000, count=count_letters)[-1].text.endswith("é and more")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b" \n\t\r\n", "the text holds no words"),
        (codecs.BOM_UTF8, "the text holds no words"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not text: it holds NUL bytes"),
        (bytes(range(128, 256)) + bytes(range(1, 32)), "not text: it holds control characters"),
    ],
)
def test_what_is_not_text_is_said(content: bytes, reason: str) -> None:
    for suffix in ("txt", "md", "csv", "tsv"):
        with pytest.raises(DecodeError) as caught:
            passages(content, suffix)
        assert str(caught.value) == reason


def test_nul_bytes_further_in_are_spaces() -> None:
    filler = "word\n" * 14_000
    for suffix in ("txt", "csv"):
        assert passages(filler.encode() + b"one\0two", suffix, room=2)[-1].text == "one two"


class Endless(io.RawIOBase):
    """A binary file of ``size`` bytes that repeats ``unit`` and is never in memory."""

    def __init__(self, unit: bytes, size: int) -> None:
        self.block = unit * (1 + (1 << 17) // len(unit))
        self.unit, self.left, self.offset = len(unit), size, 0

    def read(self, size: int = -1) -> bytes:
        assert 0 < size <= 1 << 16
        size = min(size, self.left)
        data = self.block[self.offset : self.offset + size]
        self.left -= size
        self.offset = (self.offset + size) % self.unit
        return data


@pytest.mark.parametrize(
    ("suffix", "unit"),
    [
        ("txt", b"word and more "),
        ("txt", b"QUJDREVGR0hJ"),
        ("txt", b"A sentence of six words.\n"),
        ("csv", b"a.jpg,A dog on the grass\n"),
    ],
)
def test_two_hundred_megabytes_need_no_more_memory_than_a_few_blocks(suffix: str, unit: bytes) -> None:
    """The stream says it has 200 MB; a first stretch of it shows that memory does not follow the passages."""
    stream = Endless(unit, 200 << 20)
    found = iter_passages(stream, suffix=suffix, capacity=256, count_tokens=lambda passage: len(passage) // 4)
    tracemalloc.start()
    try:
        taken = sum(len(next(found).text) for _ in range(500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken >= 500 * len("A dog on the grass")
    assert peak < 16 << 20
