"""Words: how text becomes words, what the tables hold whatever happens, what words add, and search by words alone."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, unit
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_tokens import make_format_1

import mmsearch
from indexer import words
from indexer.catalogue import Catalogue
from indexer.changes import Piece, Put, Remove, Restamp
from indexer.errors import StorageError
from indexer.index import Index
from indexer.records import PieceRow
from indexer.types import Asset, Modality, Span
from mmsearch.lexicon import is_everyday
from mmsearch.present import hits_table
from mmsearch.words import NAME_OF_PICTURE, PRIOR, Evidence, evidence, is_code, raised, surprise, weigh

pytestmark = pytest.mark.usefixtures("log_odds_alone")

COMMON = Path(mmsearch.__file__).with_name("common_words.txt").read_text(encoding="ascii").split()

Paint = Callable[..., Path]


# -- text to words -----------------------------------------------------------------------------------------------------


def test_texts_are_prepared() -> None:
    assert words.prepare("ﬁle ２０２４ in\u00advoice") == "file 2024 invoice"
    assert words.prepare("Straße in Łódź, Ærø") == "Strasse in Lódź, AEro"
    assert words.tokens(words.prepare("猫がいるcafé")) == ["猫", "が", "い", "る", "café"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("IMG_2024-113.jpg", {"img", "2024", "113", "jpg"}),
        ("invoice-2024-113.pdf", {"invoice", "2024", "113", "pdf"}),
        ("HolidayBeach2021.png", {"holidaybeach2021", "holiday", "beach", "2021", "png"}),
        ("XMLParser v2.txt", {"xmlparser", "xml", "parser", "v2", "v", "2", "txt"}),
        ("été_à_Nîmes.jpg", {"été", "à", "nîmes", "jpg"}),
    ],
)
def test_names_are_found_by_their_parts(name: str, parts: set[str]) -> None:
    in_name, folders = words.name_words(f"/home/Lake District/{name}")
    assert {word.lower() for word in words.tokens(in_name)} == parts
    assert folders == "home Lake District"


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("invoice 2024-113", [("invoice",), ("2024", "113")]),
        ('a "red  invoice", 7', [("a",), ("red", "invoice"), ("7",)]),
        ("“Anna Berg” anna", [("Anna", "Berg"), ("anna",)]),
        ('half "open', [("half",), ("open",)]),
        ("NOT a* OR (b:c) ^d AND NEAR(e, 2)", "NOT|a|OR|b c|d|AND|NEAR e|2"),
        ("dog Dog DOG", [("dog",)]),
        ('-- "" * \0', []),
    ],
)
def test_questions_become_phrases(typed: str, asked: list[tuple[str, ...]] | str) -> None:
    if isinstance(asked, str):
        asked = [tuple(one.split()) for one in asked.split("|")]
    assert words.phrases(typed) == asked


def table(texts: Sequence[str]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE VIRTUAL TABLE words USING fts5(text, tokenize = '{words.TOKENIZER}')")
    rows = [(i, words.prepare(text)) for i, text in enumerate(texts)]
    connection.executemany("INSERT INTO words(rowid, text) VALUES (?, ?)", rows)
    return connection


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec=None), max_size=30))
@example('"')
@example('a" OR "b')
@example("a\0b")
@example("NEAR(a b) AND NOT c* {x}: -y ^z + 'w")
@example("ΣΑΣ σας İstanbul ß \ud800")
def test_any_text_is_a_safe_question_and_finds_itself(text: str) -> None:
    connection = table([text, "something else entirely"])
    asked = words.phrases(text)
    if asked:
        found = connection.execute("SELECT rowid FROM words WHERE words MATCH ?", (words.match_all(asked),)).fetchall()
        assert not found or (0,) in found
        if text.isascii():
            assert (0,) in found
    connection.close()


# -- BM25 and its plain twin -------------------------------------------------------------------------------------------

TEXTS = [
    "Invoice 2024-113 for a red lamp",
    "Invoice 2024-114 for a red table, a red chair and red cushions",
    "a letter about the invoice of last month",
    "notes on lamps",
    "the bench by the lake",
]


def bm25(asked: list[str], texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """The score of each text, as FTS5 defines it: all of ``asked`` as single words, which here have no ending but s."""
    split = [[word.lower().rstrip("s") for word in words.tokens(words.prepare(text))] for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for tokens in split:
        count, score = Counter(tokens), 0.0
        for word in asked:
            holders = sum(word in other for other in split)
            idf = max(math.log((len(split) - holders + 0.5) / (holders + 0.5)), 1e-6)
            tf = count[word]
            score += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(tokens) / mean))
        scores.append(score)
    return scores


def stored_texts(index: Index, texts: Sequence[str], folder: str = "/t") -> None:
    puts = [
        Put(
            Asset(f"{folder}/{i}.txt", Modality.TEXT, 1, 2, bytes([i]) * 16),
            [Piece(Modality.TEXT, Span(1, 1), text)],
            np.eye(4, dtype=np.float32)[[i % 4]],
        )
        for i, text in enumerate(texts)
    ]
    with index.writing() as writer:
        writer.apply(puts)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.create(tmp_path / "index", encoder="colours", fingerprint=ColourEncoder.fingerprint, dim=4)


def test_bm25_equals_its_plain_twin(index: Index) -> None:
    stored_texts(index, TEXTS)
    with index.catalogue.read() as reader:
        for asked in (["invoice"], ["red"], ["lamp"], ["invoice", "red"], ["a", "table"]):
            found = reader.ranked_texts(words.match_all([(word,) for word in asked]))
            expected = {
                i + 1: score
                for i, (score, text) in enumerate(zip(bm25(asked, TEXTS), TEXTS, strict=True))
                if set(asked) <= set(words.tokens(text.lower().replace("s", "")))
            }
            assert found == pytest.approx(expected)


# -- the tables, whatever happens --------------------------------------------------------------------------------------


def held(index: Index) -> tuple[dict[int, str], dict[int, tuple[str, str]]]:
    """What the word search holds: passages, and names with folders."""
    database = sqlite3.connect(index.folder / "catalogue.db")
    texts = dict(database.execute("SELECT rowid, text FROM words").fetchall())
    names = {r[0]: (r[1], r[2]) for r in database.execute("SELECT rowid, name, folders FROM names")}
    database.close()
    return texts, names


def test_words_follow_files_that_come_move_and_go(index: Index) -> None:
    stored_texts(index, ["one", "two"])
    assert held(index) == ({1: "one", 2: "two"}, {1: ("0.txt", "t"), 2: ("1.txt", "t")})
    with index.writing() as writer:
        writer.apply([Remove([1]), Restamp(2, Asset("/u/NewName.txt", Modality.TEXT, 1, 2, b"\1" * 16))])
    assert held(index) == ({2: "two"}, {2: ("NewName.txt New Name.txt", "u")})
    with index.writing() as writer:
        assert writer.verify().sound


def test_rows_are_counted(index: Index) -> None:
    """300 takes two bytes of seven bits."""
    with index.catalogue.read() as reader:
        assert reader.word_totals() == (0, 0)
    puts = [
        Put(
            Asset(f"/t/{i}.txt", Modality.TEXT, 1, 2, i.to_bytes(16, "big")),
            [Piece(Modality.TEXT, Span(1, 1), "word")] * (2 if i < 5 else 1),
            np.eye(4, dtype=np.float32)[: 2 if i < 5 else 1],
        )
        for i in range(300)
    ]
    with index.writing() as writer:
        writer.apply(puts)
        writer.apply([Remove(list(range(100, 150)))])
    with index.catalogue.read() as reader:
        assert reader.word_totals() == (255, 250)


def test_what_was_removed_leaves_no_word_on_disk(index: Index) -> None:
    stored_texts(index, ["a confidential zebracorn", "harmless"], folder="/t/zebrafolder")
    assert any(b"zebracorn" in path.read_bytes() for path in index.folder.rglob("*") if path.is_file())
    with index.writing() as writer:
        writer.apply([Remove([1]), Restamp(2, Asset("/t/plain.txt", Modality.TEXT, 1, 2, b"\1" * 16))])
    index.close()
    for path in index.folder.rglob("*"):
        assert not path.is_file() or b"zebra" not in path.read_bytes(), path


def test_a_transaction_that_fails_changes_no_word(index: Index) -> None:
    stored_texts(index, ["one"])
    before = held(index)
    with pytest.raises(RuntimeError), index.writing() as writer, writer.catalogue.write() as changes:
        changes.remove_assets([1])
        changes.put_asset(Asset("/t/new.txt", Modality.TEXT, 1, 2, b"n" * 16), complete=True)
        raise RuntimeError
    assert held(index) == before


@pytest.mark.parametrize(
    ("damage", "faults"),
    [
        ("DELETE FROM words WHERE rowid = 2", 1),
        ("INSERT INTO words(rowid, text) VALUES (99, 'ghost')", 1),
        ("UPDATE words SET text = 'other' WHERE rowid = 1", 1),
        ("UPDATE names SET name = 'other'", 5),
        ("UPDATE words_content SET c0 = 'behind its back' WHERE id = 1", 1),
        ("DELETE FROM words_data", 10),
    ],
)
def test_verify_finds_words_that_differ_and_makes_them_again(index: Index, damage: str, faults: int) -> None:
    stored_texts(index, TEXTS)
    before = held(index)
    with sqlite3.connect(index.folder / "catalogue.db") as database:
        database.execute(damage)
    database.close()
    with index.writing() as writer:
        if "words_" not in damage:
            expected = (f"the word search differed from {faults} passages and names; made again",)
            assert writer.verify().repaired == expected
        else:  # FTS5 itself sees that its parts differ, or cannot read them, and then nothing is trusted
            writer.verify()
        assert writer.verify().sound
    assert held(index) == before
    with index.catalogue.read() as reader:
        assert reader.texts_with(words.match_all([("lamp",)])).tolist() == [1, 4]


def test_an_old_index_gets_its_words_from_the_first_writer(tmp_path: Path) -> None:
    folder = make_format_1(tmp_path / "old")
    with Index.open(folder) as old:
        with old.snapshot() as snapshot:
            assert not snapshot.reader.has_words()
        with old.writing() as writer:
            assert writer.verify().sound
        assert held(old) == ({3: "one", 4: "two"}, {1: ("a.png", ""), 2: ("b.png", ""), 3: ("c.txt", "")})


PAIRS = [
    ("receipt", "receipts"),
    ("receipts", "Receipt"),
    ("rabies vaccination", "vaccinated against rabies"),
    ("café", "the cafe at the corner"),
    ("cafe", "the cafe\u0301s at the corner"),
    ("strasse", "Lange Straße 7"),
    ("Tromso", "a week in Tromsø"),
    ("families", "a family"),
    ("running", "he runs"),
]


@pytest.mark.parametrize(("asked", "held"), PAIRS)
def test_forms_of_a_word_meet_in_passages_names_and_folders(index: Index, asked: str, held: str) -> None:
    stored_texts(index, [held, "nothing of that"])
    with index.writing() as writer:
        for path in (f"/t/{held}.txt", f"/t/{held}/x.txt", "/t/vaccine.txt"):
            writer.apply([Put(Asset(path, Modality.TEXT, 1, 2, path.encode()[-16:].rjust(16)), [], np.zeros((0, 4)))])
    with index.catalogue.read() as reader:
        phrases = words.phrases(asked)
        assert reader.texts_with(words.match_all(phrases)).tolist() == [1]
        assert reader.names_with(words.match_all(phrases, "name")).tolist() == [3]
        assert reader.names_with(words.match_all(phrases, "folders")).tolist() == [4]
        assert reader.names_with(words.match_all(phrases)).tolist() == [3, 4]


@pytest.mark.parametrize(("word", "places"), [("Dogs", [1, 2]), ("using", [4]), ("dogma", []), ("dög", [1, 2])])
def test_forms_have_one_stem(word: str, places: list[int]) -> None:
    assert words.forms(word, ["cat", "dog", "dogged", "doge", "use"]) == places


def first_version(index: Index) -> None:
    """Make the tables as the first version had them, without stems."""
    with sqlite3.connect(index.folder / "catalogue.db") as database:
        for table, columns in (("words", "text"), ("names", "name, folders")):
            rows = database.execute(f"SELECT rowid, {columns} FROM {table}").fetchall()
            database.execute(f"DROP TABLE {table}")
            database.execute(
                f"CREATE VIRTUAL TABLE {table} USING fts5({columns}, tokenize = 'unicode61 remove_diacritics 2')"
            )
            marks = ", ".join("?" * (1 + columns.count(",") + 1))
            database.executemany(f"INSERT INTO {table}(rowid, {columns}) VALUES ({marks})", rows)
        database.execute("UPDATE meta SET value = 1 WHERE name = 'words'")
    database.close()
    index.close()


def test_words_of_the_first_version_are_searched_as_they_are_until_a_writer_gives_them_stems(index: Index) -> None:
    stored_texts(index, TEXTS)
    first_version(index)
    with index.snapshot() as snapshot:
        assert snapshot.reader.has_words()
        assert snapshot.reader.texts_with(words.match_all([("lamp",)])).tolist() == [1]
    with index.writing():
        pass
    with index.snapshot() as snapshot:
        assert snapshot.reader.word_version() == words.VERSION
        assert snapshot.reader.texts_with(words.match_all([("lamp",)])).tolist() == [1, 4]


def test_words_of_another_version_or_an_unreadable_form_are_made_again(index: Index) -> None:
    stored_texts(index, TEXTS)
    before = held(index)
    for damage in ("UPDATE meta SET value = 0 WHERE name = 'words'", "UPDATE words_config SET v = 99"):
        with sqlite3.connect(index.folder / "catalogue.db") as database:
            database.execute(damage)
        database.close()
        index.close()  # a connection that is open has read the form already
        with index.snapshot() as snapshot:
            assert not snapshot.reader.has_words()
        with index.writing():
            pass
        with index.snapshot() as snapshot:
            assert snapshot.reader.has_words()
        assert held(index) == before


def test_a_python_without_fts5_searches_by_meaning_and_says_so(
    library: mmsearch.Library, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer cannot keep the tables in step, and empties them; the next one that can makes them again."""
    (photos / "old.txt").write_text("quetzalcoatl")
    library.index(photos)
    monkeypatch.setattr(words, "available", lambda: False)
    (photos / "old.txt").unlink()
    (photos / "new.txt").write_text("a red kingfisher")
    library.index(photos)
    assert library.query("red", k=1)[0].path == photos / "red.png"
    monkeypatch.setattr("mmsearch.exact.available", lambda: False)
    with pytest.raises(StorageError, match="SQLite of this Python was built without FTS5"):
        library.query("kingfisher", exact=True)
    assert held(library._need_index()) == ({}, {})
    monkeypatch.undo()
    with pytest.raises(StorageError, match="no word search yet; 'mmsearch verify' makes it"):
        library.query("kingfisher", exact=True)
    assert library.verify().sound
    assert [hit.text for hit in library.query("kingfisher", exact=True)] == ["a red kingfisher"]
    assert library.query("quetzalcoatl", exact=True) == []


def test_a_writer_that_dies_before_the_rewrite_leaves_it_to_the_next(index: Index) -> None:
    stored_texts(index, ["a zebracorn", "harmless"])
    catalogue = Catalogue(index.folder / "catalogue.db")
    with catalogue.write() as writer:
        writer.remove_assets([1])
        traces = sqlite3.sqlite_version_info < words.SECURE_DELETE
        assert writer.word_traces() is traces
    catalogue.close()
    with index.writing() as after, after.catalogue.read() as reader:
        assert not reader.word_traces()


# -- what words add ----------------------------------------------------------------------------------------------------


def test_codes() -> None:
    assert [is_code(one) for one in [("2024", "113"), ("A4711",), ("mp3",), ("12", "03"), ("2024",)]] == [True] * 5
    assert [is_code(one) for one in [("dog",), ("2",), ("22",), ("well", "known")]] == [False] * 4


def test_a_word_is_as_common_as_all_its_forms(index: Index) -> None:
    """Of the common words "dog" is the 1,649th; "run", "running" and "runs" are three of them."""
    with index.catalogue.read() as reader:
        said = {one.phrase: one.most for one in weigh(reader, "dogs run quagga", (0, 0))}
    ranks = [rank for rank, word in enumerate(COMMON, 1) if word in ("run", "running", "runs")]
    run = -math.log(-math.expm1(-6 * sum(1 / rank for rank in ranks)))
    assert len(ranks) == 3
    assert said == pytest.approx(
        {("dogs",): -math.log(-math.expm1(-6 / 1649)), ("run",): run, ("quagga",): math.log(1000)}
    )


def test_surprise_by_hand() -> None:
    """Nobody else of 1,000, against one everyday passage in a thousand: 1 of 2,000. All of 20: nearly certain."""
    assert surprise(1, 1000, 0.001) == pytest.approx(math.log(2000))
    assert surprise(101, 1000, 0.001) == pytest.approx(-math.log(101 / 2000), abs=0.5)
    assert surprise(1001, 1000, 0.001) == pytest.approx(-math.log(1 - 2 * math.sqrt(1000) / 1000))
    assert surprise(0, 0, 1.0) == 0


def test_gains_by_hand() -> None:
    """A question of a code worth 6 and a word worth 6: one piece holds both, one the code, one the word."""
    pieces = [PieceRow(i, i, Modality.TEXT, i) for i in range(3)]
    in_text, codes, none = np.array([[6.0, 6], [6, 0], [0, 6]]), np.array([True, False]), np.zeros((0, 2))
    spoken = Evidence(
        pieces,
        in_text,
        np.zeros((3, 2)),
        np.zeros((3, 2), dtype=bool),
        codes,
        np.array([6.0, 6]),
        12.0,
        np.zeros(0),
        none,
    )
    gains, whole = spoken.gains(np.zeros(3))
    half = 4.6 * (1 - 0.5**4)
    assert gains.tolist() == pytest.approx([0.9 * 6 + 0.8 * 6, 0.5 * 0.9 * 6, 0.5 * 0.8 * (6 - half)])
    assert whole.tolist() == pytest.approx([1, 0.0625, 0.0625])
    # Far below odds of 1 : 10 the gain counts whole, from the prior on; at even odds e⁵ - 1 is divided by 1 + 10.
    expected = [PRIOR + math.log(1 + math.expm1(5) / (1 + 10 / 999)), math.log(1 + math.expm1(5) / 11), 1.0]
    assert raised(np.array([-12.0, 0, 1]), np.array([5.0, 5, 0]), np.array([1.0, 1, 0])).tolist() == pytest.approx(
        expected
    )


def nothing_below(kind: Modality, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    raise AssertionError(f"no folder is named, and {rows} of {kind} are looked for below one")


def test_a_name_counts_for_the_best_piece_of_its_file(index: Index) -> None:
    pieces = [Piece(Modality.TEXT, Span(n, n), "words") for n in (1, 2, 3)]
    with index.writing() as writer:
        writer.apply(
            [Put(Asset("/t/Garmisch.txt", Modality.TEXT, 1, 2, b"d" * 16), pieces, np.eye(4)[:3].astype("f4"))]
        )
    with index.catalogue.read() as reader:
        spoken = evidence(reader, "garmisch", reader.word_totals(), nothing_below, lambda _: True)
        assert spoken is not None and [piece.id for piece in spoken.pieces] == [1, 2, 3]
        gains, whole = spoken.gains(np.array([-3.0, -1.0, -2.0]))
        assert gains.tolist() == pytest.approx([0, 0.8 * surprise(1, 1, 0.001), 0])
        assert whole.tolist() == [0, 1, 0]
        assert evidence(reader, "the of a", reader.word_totals(), nothing_below, lambda _: True) is None


def test_the_name_of_a_picture_is_evidence_and_that_of_a_text_says_what_it_is(index: Index) -> None:
    """Pictures called zebra, one of them with the word in it, another named by a code; a text and a page called so."""
    puts = [
        Put(Asset(path, kind, 1, 2, path.encode().rjust(16)), [piece], np.eye(4)[:1].astype("f4"))
        for path, kind, piece in (
            ("/p/zebra.png", Modality.IMAGE, Piece(Modality.IMAGE)),
            ("/p/zebra.txt", Modality.TEXT, Piece(Modality.TEXT, Span(1, 1), "words")),
            ("/p/zebra.pdf", Modality.TEXT, Piece(Modality.IMAGE, Span(page=1))),
            ("/p/a/zebra.png", Modality.IMAGE, Piece(Modality.TEXT, Span(box=(0, 0, 1, 1)), "a zebra", "ocr")),
            ("/p/b/zebra.png", Modality.IMAGE, Piece(Modality.TEXT, Span(box=(0, 0, 1, 1)), "words", "ocr")),
            ("/p/2024-113.png", Modality.IMAGE, Piece(Modality.IMAGE)),
        )
    ]
    with index.writing() as writer:
        writer.apply(puts)

    def gains(question: str, may_show: bool) -> tuple[list[float], list[float]]:
        with index.catalogue.read() as reader:
            spoken = evidence(reader, question, reader.word_totals(), nothing_below, lambda _: may_show)
        assert spoken is not None
        gains, whole = spoken.gains(np.full(len(spoken.pieces), -9.0))
        return gains.tolist(), whole.tolist()

    name, text = 0.8 * surprise(5, 6, 0.001), 0.8 * surprise(1, 3, 0.001)
    assert name > NAME_OF_PICTURE
    assert gains("zebra", False) == (pytest.approx([name, name, name, max(name, text), name]), [1.0] * 5)
    assert gains("zebra", True) == (
        pytest.approx([NAME_OF_PICTURE, name, name, text, NAME_OF_PICTURE]),
        [0.0, 1.0, 1.0, 1.0, 0.0],
    )
    code = 0.9 * surprise(1, 6, 0.001)
    assert gains("2024-113", True) == gains("2024-113", False) == (pytest.approx([code]), [1.0])
    # Of a name that says both, the code counts whole, and what is seen beside it.
    half = gains("zebra 2024-113", True)[0]
    assert half[-1] == gains("zebra 2024-113", False)[0][-1] and half[0] < NAME_OF_PICTURE


def test_words_that_a_picture_may_show() -> None:
    """A model with single tokens for a few words; names have no other form, rare words are several tokens."""

    class Few(ColourEncoder):
        def count_tokens(self, text: str) -> int:
            return 2 + sum(1 if word in {"zebra", "zebras", "lisbon", "anna"} else 3 for word in text.split())

    words = ("zebra", "Zebras", "dog", "dogs", "walking", "lisbon", "Anna", "sintra", "quagga")
    assert [is_everyday(Few(), word) for word in words] == [True] * 5 + [False] * 4


def test_a_number_finds_its_passage_and_common_words_change_nothing(library: mmsearch.Library, photos: Path) -> None:
    """All invoices say nothing of red, and are as unlikely; the number lifts one of them, and a folder filter holds."""
    for n in range(100, 130):
        (photos / f"scan{n}.txt").write_text(f"invoice 2024-{n} for a thing")
    library.index(photos)
    hits = library.query("red invoice 2024-113", k=40, kind="text")
    number = next(hit for hit in hits if hit.text == "invoice 2024-113 for a thing")
    others = {hit.score for hit in hits if hit.text and "invoice" in hit.text and hit is not number}
    assert max(others) - min(others) < 1e-6 and max(others) < 0.001
    assert number.score > 20 * max(others)
    assert library.query("invoice 2024-113", k=1)[0].text == "invoice 2024-113 for a thing"
    before = {hit.path: hit.score for hit in library.query("red", k=3)}
    common = {hit.path: hit.score for hit in library.query("a red thing for", k=3)}
    assert common == pytest.approx(before)
    assert [hit.path for hit in library.query("invoice 2024-113", k=3, kind="image")] != [hits[0].path]
    assert all(hit.kind == "image" for hit in library.query("invoice 2024-113", k=3, kind="image"))
    assert library.query("2024-113", under=photos / "scan114.txt", k=9)[0].path == photos / "scan114.txt"


@pytest.fixture
def trips(library: mmsearch.Library, tmp_path: Path, paint: Paint) -> Path:
    """Seventy pictures below "2019/Berlin trip" that are green, the later the brighter, and ten of other places: one
    is red, the others are blue."""
    for n in range(70):
        paint(f"2019/Berlin trip/IMG_{n:04}.png", (0, 186 + n, 0))
    paint("2020/Lakes/IMG_0100.png", (250, 0, 0))
    for n in range(9):
        paint(f"2020/Lakes/IMG_{n + 101:04}.png", (0, 0, 240 + n))
    library.index(tmp_path / "photos")
    return tmp_path / "photos"


def test_a_full_folder_counts_for_every_file_below_it(library: mmsearch.Library, trips: Path) -> None:
    """Seven of eight files lie below it, and still it is one name."""
    hits = library.query("berlin", k=80)
    assert [hit.path.parent.name for hit in hits if hit.path] == ["Berlin trip"] * 70 + ["Lakes"] * 10
    assert min(hit.score for hit in hits[:70]) > 0.05 > 0.002 > max(hit.score for hit in hits[70:])
    assert len(library.query("berlin")) == 10 and len(library.query("Berlin trip", k=70)) == 70
    assert {hit.path.parent.name for hit in library.query("trip to berlin", k=70) if hit.path} == {"Berlin trip"}
    assert len(library.query("berlin", k=40, under=trips / "2020")) == 10
    assert library.query("berlin", k=9) == library.query("berlin", k=80)[:9]


def test_a_folder_decides_less_than_the_picture_where_more_is_asked(library: mmsearch.Library, trips: Path) -> None:
    assert library.query("red berlin", k=1)[0].path == trips / "2020/Lakes/IMG_0100.png"
    assert library.query("green berlin", k=1)[0].path == trips / "2019/Berlin trip/IMG_0069.png"


def test_the_name_of_a_folder_around_everything_says_nothing(library: mmsearch.Library, paint: Paint) -> None:
    for n in range(30):
        paint(f"camera/{n}.png", (0, 0, 225 + n))
    library.index(paint("camera/red.png", (250, 0, 0)).parent.parent)
    with library._need_index().catalogue.read() as reader:
        (camera,) = weigh(reader, "camera", reader.word_totals())
    assert camera.in_folder == pytest.approx(-math.log((30 - 2 * math.sqrt(30)) / 31))
    assert {hit.level for hit in library.query("camera")} == {"weak"}


def test_folders_count_in_plain_figures(library: mmsearch.Library, trips: Path) -> None:
    """One of 80 names beside a thousand everyday passages, in which "berlin" is the 1,789th word; and a common word,
    which only folders are asked for, and only where it is all that is asked."""
    (trips / "House").mkdir()
    (trips / "2020/Lakes").rename(trips / "House/Lakes")
    library.index(trips)
    with library._need_index().catalogue.read() as reader:
        berlin, lakes = weigh(reader, "berlin lakes", reader.word_totals())
        rank = COMMON.index("lake") + 1
        assert berlin.in_folder == berlin.most == pytest.approx(-math.log(1000 * -math.expm1(-6 / 1789) / 1080))
        assert lakes.in_folder == pytest.approx(-math.log(1000 * -math.expm1(-6 / rank) / 1080))
        (house,) = weigh(reader, "house", reader.word_totals())
        assert 3 < house.in_folder < 4.6
    assert {hit.path.parent.parent.name for hit in library.query("house", k=10) if hit.path} == {"House"}


def test_a_picture_is_found_by_its_name(library: mmsearch.Library, photos: Path) -> None:
    Image.new("RGB", (9, 9), (0, 0, 255)).save(photos / "IMG_2024-113.png")
    library.index(photos)
    assert library.query("img_2024-113", k=1)[0].path == photos / "IMG_2024-113.png"
    assert library.query("2024-113", without="blue", k=9)[0].score < library.query("2024-113", k=1)[0].score


def test_the_beginning_of_a_long_list_is_the_short_list(library: mmsearch.Library, photos: Path) -> None:
    for n in range(60):
        (photos / f"{n}.txt").write_text(f"{'red' if n % 3 else 'green'} quagga {n // 10}-{n % 7}")
    library.index(photos)
    long = library.query("a red quagga 3-4", k=60)
    assert [hit.rank for hit in long] == list(range(1, 61))
    for k in (1, 2, 5, 20):
        assert library.query("a red quagga 3-4", k=k) == long[:k]


# -- one answer for one thing ------------------------------------------------------------------------------------------


def colours(*rgb: tuple[float, float, float]) -> np.ndarray:
    return unit(np.array(rgb))


@pytest.fixture
def merged(library: mmsearch.Library) -> mmsearch.Library:
    """Ten receipts, each a picture with two pieces of text in it, and a document of two pages with words and look."""
    receipts = [
        Put(
            Asset(f"/p/{n}.png", Modality.IMAGE, 1, 2, bytes([n]) * 16),
            [
                Piece(Modality.IMAGE),
                Piece(Modality.TEXT, Span(box=(0.1, 0.2, 0.3, 0.4)), f"total {n}", "ocr"),
                Piece(Modality.TEXT, Span(box=(0.5, 0.5, 0.9, 0.6)), "thank you", "ocr"),
            ],
            colours((0.5, 0.5, 0.1 * n), (1, 0, 0.05 * n), (1, 0, 0)),
        )
        for n in range(10)
    ]
    pages = Put(
        Asset("/p/report.pdf", Modality.TEXT, 1, 2, b"p" * 16),
        [
            Piece(Modality.TEXT, Span(page=1), "about lakes"),
            Piece(Modality.TEXT, Span(page=1), "about rivers"),
            Piece(Modality.IMAGE, Span(page=1)),
            Piece(Modality.TEXT, Span(page=2), "about seas"),
        ],
        colours((0, 0, 1), (0, 0.1, 1), (0, 1, 1), (0, 1, 0)),
    )
    with library._make_index().writing() as writer:
        writer.apply([*receipts, pages])
    return library


def test_pieces_of_one_thing_are_one_answer(merged: mmsearch.Library) -> None:
    hits = merged.query("red", k=12)
    places = [(str(hit.path), hit.page) for hit in hits]
    assert len(set(places)) == 12 and len(hits) == 12
    best = hits[0]
    assert (str(best.path), best.kind, best.text, best.source) == ("/p/0.png", "image", "total 0", "ocr")
    assert best.box == (0.1, 0.2, 0.3, 0.4) and best.as_dict()["box"] == [0.1, 0.2, 0.3, 0.4]
    page = merged.query("blue", k=1)[0]
    assert (str(page.path), page.kind, page.page, page.text) == ("/p/report.pdf", "text", 1, "about lakes")
    assert {str(hit.path) for hit in merged.query("red", k=12, kind="text")} == {"/p/report.pdf"}


def test_a_list_of_k_answers_is_k_things_and_the_beginning_of_a_longer_one(merged: mmsearch.Library) -> None:
    everything = merged.query("red", k=12)
    for k in (1, 3, 7, 12):
        hits = merged.query("red", k=k)
        assert [(hit.path, hit.page, hit.score) for hit in hits] == [
            (hit.path, hit.page, hit.score) for hit in everything[:k]
        ]


def test_a_page_is_named_in_the_table(merged: mmsearch.Library) -> None:
    (line,) = hits_table(merged.query("seas", exact=True), width=80).splitlines()
    assert line == " 1.00  text   /p/report.pdf  page 2  about seas"
    (line,) = hits_table(merged.query("total 7", exact=True), width=80).splitlines()
    assert line == " 1.00  image  /p/7.png  (ocr) total 7"


# -- words alone -------------------------------------------------------------------------------------------------------


def test_exact_finds_what_holds_all_words_best_first(library: mmsearch.Library, photos: Path) -> None:
    for n, text in enumerate(TEXTS):
        (photos / f"{n}.txt").write_text(text)
    library.index(photos.parent)

    def found(question: str, **asked: object) -> list[str]:
        return [hit.path.name for hit in library.query(question, exact=True, **asked) if hit.path]  # type: ignore[arg-type]

    assert found("INVOICE") == ["0.txt", "2.txt", "1.txt"]  # the shorter the better
    assert found("red invoice") == ["1.txt", "0.txt"]
    assert found('"red lamp"') == ["0.txt"]
    assert found('"lamp red"') == []
    assert found("2024-113") == ["0.txt"]
    assert found("invoice 2024") == ["0.txt", "1.txt"]
    assert found("invoice", without=["chair", "letter"]) == ["0.txt"]
    assert found("invoice", under=photos / "2.txt") == ["2.txt"]
    assert found("red", kind="image") == ["red.png"]
    assert found("green png") == ["green.png"]
    assert found("photos lake") == ["4.txt"]  # one word in the name of the folder, the other in the text
    assert found("invoice", k=1) == ["0.txt"]
    assert found("invoice", after="2999") == []


def test_the_score_of_exact_is_a_share_of_the_best(library: mmsearch.Library, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for n, text in enumerate(TEXTS):
        (folder / f"{n}.txt").write_text(text)
    library.index(folder)
    hits = library.query("red", exact=True)
    scores = bm25(["red"], TEXTS)
    assert [hit.score for hit in hits] == pytest.approx([1, scores[0] / scores[1]])
    assert all(hit.exact and hit.probability is None and hit.as_dict()["exact"] for hit in hits)
    assert library.searcher().search_many([mmsearch.parse_query("red", exact=True)], 1) == [hits[:1]]


def test_exact_in_a_mixed_batch_and_what_makes_no_sense(library: mmsearch.Library, photos: Path) -> None:
    library.index(photos)
    exact, plain = mmsearch.parse_query("green", exact=True), mmsearch.parse_query("red")
    answers = library.searcher().search_many([plain, exact, plain], 2)
    assert answers[0] == answers[2] and answers[1][0].exact and not answers[0][0].exact
    for asked in ({"image": Image.new("RGB", (1, 1))}, {"min_prob": 0.5}):
        with pytest.raises(mmsearch.UsageError, match="--exact"):
            library.query("red", exact=True, **asked)  # type: ignore[arg-type]
    with pytest.raises(mmsearch.UsageError, match="no word in '--'"):
        library.query("--", exact=True)


def test_exact_as_a_command_loads_no_model(tmp_path: Path, photos: Path) -> None:
    """The model of this index does not exist, so whatever loaded it would fail."""
    with mmsearch.open(tmp_path / "index", model=ColourEncoder()) as library:
        library.index(photos)
    command = [
        sys.executable,
        "-m",
        "mmsearch",
        "query",
        '"green thing"',
        "--exact",
        "--index",
        str(tmp_path / "index"),
    ]
    run = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (hit,) = json.loads(run.stdout)["hits"]
    assert (hit["text"], hit["score"], hit["lines"], hit["exact"]) == ("a green thing", 1.0, [3, 3], True)
    run = subprocess.run([*command, "--min-prob", "0.5"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "") and "--exact gives no probability" in run.stderr
